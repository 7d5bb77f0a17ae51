'use strict';
// The official ACS Email SDK against the ACS simulator: HMAC with a connection string, and Entra tokens.
const { EmailClient } = require('@azure/communication-email');
const { ClientSecretCredential } = require('@azure/identity');
const lib = require('./lib');

const KEY = 'aGVhdmUtc2ltLWFjcy1hY2Nlc3Mta2V5LTAxMjM0NTY3';
const WRONG_KEY = Buffer.from('not the key of this resource').toString('base64');
const endpoint = `https://localhost:${lib.ports.acs}/`;
// A refusal must be seen at once, not after the SDK's own retries.
const options = { retryOptions: { maxRetries: 0 } };

function client(key) {
  return new EmailClient(`endpoint=${endpoint};accesskey=${key}`, options);
}

function message(to, extra) {
  return {
    senderAddress: 'no-reply@contoso.test',
    content: { subject: 'Grüße aus dem Test', plainText: 'Hallo', html: '<p>Hallo</p>' },
    recipients: { to: to.map((address) => ({ address })) },
    headers: { 'Message-ID': `<${Date.now()}.${Math.random()}@acs.test>` },
    ...extra,
  };
}

async function send(sender, what, sendOptions) {
  const poller = await sender.beginSend(what, { updateIntervalInMs: 50, ...sendOptions });
  return poller.pollUntilDone();
}

async function accepted() {
  const what = message(lib.addresses(3, 'example.com'), {
    attachments: [{
      name: 'a.txt', contentType: 'text/plain', contentInBase64: Buffer.from('attached').toString('base64'),
    }],
  });
  const result = await send(client(KEY), what);
  lib.equal(result.status, 'Succeeded', 'status');
  const taken = await lib.deliveries({ message_id: what.headers['Message-ID'] });
  lib.equal(taken.map((d) => d.recipient), lib.addresses(3, 'example.com'), 'recipients');
  lib.equal([taken[0].service, taken[0].account], ['acs', 'no-reply@contoso.test'], 'account');
}

async function acceptedWithToken() {
  const credential = new ClientSecretCredential('sim', 'heave', 'sim-secret', {
    authorityHost: `https://localhost:${lib.ports.token}`, disableInstanceDiscovery: true,
  });
  const sender = new EmailClient(endpoint, credential, options);
  const result = await send(sender, message(['token@example.com']));
  lib.equal(result.status, 'Succeeded', 'status');
}

async function operationId() {
  const id = '8540c0de-899f-4cce-acb5-3ec493af3800';
  const before = await lib.summary('acs');
  const what = message(['twice@example.com']);
  const first = await send(client(KEY), what, { operationId: id });
  const second = await send(client(KEY), what, { operationId: id });
  lib.equal([first.id, second.id], [id, id], 'the caller chooses the id');
  const after = await lib.summary('acs');
  lib.equal(after.transactions - before.transactions, 1, 'a repeated operation sends nothing');
}

async function failedOperation() {
  const result = await send(client(KEY), message(['dropped@example.com'])).catch((error) => ({ error }));
  const text = JSON.stringify(result.error ? { message: result.error.message } : result);
  lib.matches(text, /EmailDropped|dropped|failed/i, 'the operation');
}

async function wrongKey() {
  const before = await lib.summary('acs');
  const error = await lib.refused(() => send(client(WRONG_KEY), message(['a@example.com'])));
  lib.equal([error.statusCode, error.code], [401, 'Denied'], 'status and code');
  const after = await lib.summary('acs');
  lib.equal(after.auth_failures - before.auth_failures, 1, 'auth_failures');
}

async function refusedWith(what, status, code) {
  const error = await lib.refused(() => send(client(KEY), what));
  lib.equal([error.statusCode, error.code], [status, code], 'status and code');
}

async function throttled() {
  await lib.ask('POST', '/fault', { service: 'acs', kind: 'throttle', retry_after: 7, count: 1 });
  const error = await lib.refused(() => send(client(KEY), message(['a@example.com'])));
  lib.equal([error.statusCode, error.code], [429, 'TooManyRequests'], 'status and code');
  lib.matches(error.message, /PerSubscriptionPerMinuteLimitExceeded/, 'message');
  lib.equal(error.response.headers.get('retry-after'), '7', 'Retry-After');
  await lib.reset();
}

async function sdkRetries() {
  await lib.ask('POST', '/fault', { service: 'acs', kind: 'throttle', retry_after: 1, count: 1 });
  const patient = new EmailClient(`endpoint=${endpoint};accesskey=${KEY}`);
  const result = await send(patient, message(['patient@example.com']));
  lib.equal(result.status, 'Succeeded', 'status');
  const seen = await lib.summary('acs');
  lib.equal([seen.throttled, seen.requests_during_retry_after], [1, 0], 'throttled, asked too early');
  await lib.reset();
}

async function main() {
  await lib.reset();
  await lib.check('acs sdk: 3 recipients with attachment', accepted);
  await lib.check('acs sdk: Entra token', acceptedWithToken);
  await lib.check('acs sdk: Operation-Id is idempotent', operationId);
  await lib.check('acs sdk: failed operation', failedOperation);
  await lib.check('acs sdk: wrong key', wrongKey);
  await lib.check('acs sdk: 51 recipients', () => refusedWith(message(lib.addresses(51, 'example.com')), 400, 'BadRequest'));
  await lib.check('acs sdk: domain not linked', () => refusedWith(
    message(['a@example.com'], { senderAddress: 'no-reply@elsewhere.test' }), 404, 'DomainNotLinked'));
  await lib.check('acs sdk: unknown sender user', () => refusedWith(
    message(['a@example.com'], { senderAddress: 'nobody@contoso.test' }), 400, 'InvalidSenderUserName'));
  await lib.check('acs sdk: bad address', () => refusedWith(message(['no-at-sign']), 400, 'BadRequest'));
  await lib.check('acs sdk: throttled', throttled);
  await lib.check('acs sdk: waits for Retry-After and goes on', sdkRetries);
  lib.finish();
}

main();
