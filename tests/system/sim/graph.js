'use strict';
// The official Graph SDK with the official identity library against the Graph and token simulators.
const { ClientSecretCredential } = require('@azure/identity');
const { Client } = require('@microsoft/microsoft-graph-client');
const {
  TokenCredentialAuthenticationProvider,
} = require('@microsoft/microsoft-graph-client/authProviders/azureTokenCredentials');
const lib = require('./lib');

const SCOPE = 'https://graph.microsoft.com/.default';

function credential(secret, tenant, id) {
  return new ClientSecretCredential(tenant || 'sim', id || 'heave', secret, {
    authorityHost: `https://localhost:${lib.ports.token}`, disableInstanceDiscovery: true,
    retryOptions: { maxRetries: 0 },
  });
}

function client(secret, extra) {
  const authProvider = new TokenCredentialAuthenticationProvider(credential(secret), { scopes: [SCOPE] });
  // The SDK sends its token to Graph's own hosts only, unless told of others.
  return Client.initWithMiddleware({
    authProvider, baseUrl: `https://localhost:${lib.ports.graph}`, customHosts: new Set(['localhost']), ...extra,
  });
}

function recipients(addresses) {
  return addresses.map((address) => ({ emailAddress: { address } }));
}

function json(to, extra) {
  return {
    message: {
      subject: 'Größe', body: { contentType: 'HTML', content: '<p>x</p>' }, toRecipients: recipients(to), ...extra,
    },
    saveToSentItems: false,
  };
}

function mime(to, id) {
  return `From: Notify <notify1@contoso.test>\r\nTo: ${to.join(',\r\n ')}\r\nBcc: hidden@example.com\r\n`
    + `Subject: MIME\r\nMessage-ID: ${id}\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\nHello\r\n.dots\r\n`;
}

const SEND = '/users/notify1@contoso.test/sendMail';

async function sendJson() {
  const to = lib.addresses(3, 'example.com');
  await client('sim-secret').api(SEND).post(json(to, {
    ccRecipients: recipients(['cc@example.com']), bccRecipients: recipients(['bcc@example.com']),
    internetMessageHeaders: [{ name: 'x-test', value: '1' }],
    attachments: [{
      '@odata.type': '#microsoft.graph.fileAttachment', name: 'a.txt', contentType: 'text/plain',
      contentBytes: Buffer.from('attached').toString('base64'),
    }],
  }));
  const taken = (await lib.deliveries({ service: 'graph' })).slice(-5);
  lib.equal(taken.map((d) => d.recipient), [...to, 'cc@example.com', 'bcc@example.com'], 'recipients');
}

async function sendMime() {
  const id = `<${Date.now()}@graph.test>`;
  const text = mime(lib.addresses(2, 'example.com'), id);
  await client('sim-secret').api(SEND).header('Content-Type', 'text/plain').post(Buffer.from(text).toString('base64'));
  const taken = await lib.deliveries({ message_id: id });
  lib.equal(taken.map((d) => d.recipient), [...lib.addresses(2, 'example.com'), 'hidden@example.com'], 'recipients');
  const stored = await lib.ask('GET', `/bodies?${new URLSearchParams({ message_id: id })}`);
  lib.equal(stored.toString(), text, 'the stored message');
}

async function batch() {
  const before = await lib.summary('graph');
  const answer = await client('sim-secret').api('/$batch').post({
    requests: [
      { id: '1', method: 'POST', url: SEND, headers: { 'Content-Type': 'application/json' }, body: json(['b1@example.com']) },
      {
        id: '2', method: 'POST', url: '/users/nobody@contoso.test/sendMail', headers: { 'Content-Type': 'application/json' },
        body: json(['b2@example.com']),
      },
      {
        id: '3', method: 'POST', url: SEND, headers: { 'Content-Type': 'application/json' }, body: json(['b3@example.com']),
        dependsOn: ['2'],
      },
    ],
  });
  const states = Object.fromEntries(answer.responses.map((r) => [r.id, r.status]));
  lib.equal([states['1'], states['2'], states['3']], [202, 404, 424], 'statuses');
  const after = await lib.summary('graph');
  lib.equal(after.transactions - before.transactions, 1, 'transactions');
}

async function refusedWith(status, code, run) {
  const error = await lib.refused(run);
  lib.equal([error.statusCode, error.code], [status, code], 'status and code');
}

async function wrongSecret() {
  const error = await lib.refused(() => client('wrong').api(SEND).post(json(['a@example.com'])));
  lib.matches(error.message, /AADSTS7000215/, 'message');
}

async function tokenRefused(tenant, id, scope, pattern) {
  const error = await lib.refused(() => credential('sim-secret', tenant, id).getToken(scope));
  lib.matches(error.message, pattern, 'message');
}

async function sdkRetries() {
  await lib.reset();
  await lib.ask('POST', '/fault', { service: 'graph', kind: 'throttle', retry_after: 1, count: 1 });
  await client('sim-secret').api(SEND).post(json(['patient@example.com']));
  const seen = await lib.summary('graph');
  lib.equal([seen.transactions, seen.throttled, seen.requests_during_retry_after], [1, 1, 0], 'sent, throttled, early');
}

async function large() {
  const content = Buffer.alloc(4 * 1024 * 1024).toString('base64');
  const attachments = [{ '@odata.type': '#microsoft.graph.fileAttachment', name: 'a', contentBytes: content }];
  const error = await lib.refused(() => client('sim-secret').api(SEND).post(json(['a@example.com'], { attachments })));
  lib.equal(error.statusCode, 413, 'status');
}

async function main() {
  const good = client('sim-secret');
  const headers = (count) => Array.from({ length: count }, (_, i) => ({ name: `x-h${i}`, value: 'v' }));
  await lib.reset();
  await lib.check('graph sdk: JSON form', sendJson);
  await lib.check('graph sdk: MIME form', sendMime);
  await lib.check('graph sdk: $batch', batch);
  await lib.check('graph sdk: wrong secret', wrongSecret);
  await lib.check('identity: unknown application', () => tokenRefused('sim', 'stranger', SCOPE, /AADSTS700016/));
  await lib.check('identity: unknown tenant', () => tokenRefused('nowhere', 'heave', SCOPE, /endpoints_resolution_error|AADSTS90002/));
  await lib.check('identity: scope without .default', () => tokenRefused(
    'sim', 'heave', 'https://graph.microsoft.com/Mail.Send', /AADSTS70011|scope/));
  await lib.check('identity: token is fresh', async () => {
    const token = await credential('sim-secret').getToken(SCOPE);
    const left = token.expiresOnTimestamp - Date.now();
    if (left < 3000000 || left > 3600000) {
      throw new Error(`the token lives ${left} ms`);
    }
  });
  await lib.check('graph sdk: unknown mailbox', () => refusedWith(404, 'ErrorInvalidUser', () => good.api(
    '/users/nobody@contoso.test/sendMail').post(json(['a@example.com']))));
  await lib.check('graph sdk: token of another resource', () => refusedWith(401, 'InvalidAuthenticationToken', () => {
    const authProvider = new TokenCredentialAuthenticationProvider(credential('sim-secret'), {
      scopes: ['https://communication.azure.com/.default'],
    });
    return client('sim-secret', { authProvider }).api(SEND).post(json(['a@example.com']));
  }));
  await lib.check('graph sdk: 501 recipients', () => refusedWith(400, 'ErrorExceededMaxRecipientLimit', () => good.api(
    SEND).post(json(lib.addresses(501, 'example.com')))));
  await lib.check('graph sdk: header without x-', () => refusedWith(400, 'InvalidInternetMessageHeader', () => good.api(
    SEND).post(json(['a@example.com'], { internetMessageHeaders: [{ name: 'List-Id', value: 'v' }] }))));
  await lib.check('graph sdk: six headers', () => refusedWith(400, 'InvalidInternetMessageHeaderCollection', () => good.api(
    SEND).post(json(['a@example.com'], { internetMessageHeaders: headers(6) }))));
  await lib.check('graph sdk: MIME that is no base64', () => refusedWith(400, 'ErrorMimeContentInvalidBase64String',
    () => good.api(SEND).header('Content-Type', 'text/plain').post('From: me!')));
  await lib.check('graph sdk: From of somebody else', () => refusedWith(403, 'ErrorSendAsDenied', () => good.api(
    SEND).post(json(['a@example.com'], { from: { emailAddress: { address: 'boss@contoso.test' } } }))));
  await lib.check('graph sdk: above 4 MB', large);
  await lib.check('graph sdk: waits for Retry-After and goes on', sdkRetries);
  lib.finish();
}

main();
