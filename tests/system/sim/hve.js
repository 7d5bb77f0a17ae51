'use strict';
// nodemailer against the HVE simulator: STARTTLS and AUTH LOGIN, XOAUTH2, and what HVE refuses.
const { ClientSecretCredential } = require('@azure/identity');
const nodemailer = require('nodemailer');
const lib = require('./lib');

const HVE = 'hve@contoso.test';

function transport(auth, extra) {
  return nodemailer.createTransport({
    host: 'localhost', port: lib.ports.hve, secure: false, requireTLS: true, auth, ...extra,
  });
}

const password = { type: 'login', method: 'LOGIN', user: HVE, pass: 'hve-password' };

function mail(extra) {
  return { from: HVE, to: 'a@contoso.test', subject: 'Störung behoben', text: 'Zeile\n.Punkt\n', ...extra };
}

async function sent() {
  const to = [...lib.addresses(49, 'contoso.test'), 'Last@Contoso.Test'];
  const info = await transport(password).sendMail(mail({
    from: `"Überwachung" <${HVE}>`, to, attachments: [{ filename: 'ä.bin', content: Buffer.alloc(5000, 7) }],
  }));
  lib.equal(info.accepted.length, 50, 'accepted');
  lib.matches(info.response, /^250 2\.6\.0 <.*> \[InternalId=/, 'reply');
  const taken = await lib.deliveries({ message_id: info.messageId });
  lib.equal(taken.length, 50, 'recipients in the ledger');
  lib.equal([taken[0].service, taken[0].account], ['hve', HVE], 'service and account');
  const stored = await lib.ask('GET', `/bodies?${new URLSearchParams({ message_id: info.messageId })}`);
  lib.matches(stored.toString(), /\r\n\.Punkt\r\n/, 'the dot was unstuffed');
  lib.equal(stored.length, taken[0].bytes, 'bytes');
}

async function manyInOneSession() {
  const before = await lib.summary('hve');
  const pool = transport(password, { pool: true, maxConnections: 1 });
  await Promise.all(lib.addresses(20, 'contoso.test').map((to) => pool.sendMail(mail({ to }))));
  pool.close();
  const after = await lib.summary('hve');
  lib.equal([after.transactions - before.transactions, after.requests - before.requests], [20, 1], 'messages, sessions');
}

async function withToken() {
  const credential = new ClientSecretCredential('sim', 'heave', 'sim-secret', {
    authorityHost: `https://localhost:${lib.ports.token}`, disableInstanceDiscovery: true,
  });
  const { token } = await credential.getToken('https://outlook.office.com/.default');
  const info = await transport({ type: 'OAuth2', user: HVE, accessToken: token }).sendMail(mail());
  lib.equal(info.accepted, ['a@contoso.test'], 'accepted');
}

async function wrongToken() {
  const error = await lib.refused(() => transport({ type: 'OAuth2', user: HVE, accessToken: 'a.b.c' }).sendMail(mail()));
  lib.matches(error.response || error.message, /535 5\.7\.3/, 'reply');
}

async function refusedWith(pattern, what, auth) {
  const error = await lib.refused(() => transport(auth || password).sendMail(what));
  lib.matches(error.response || error.message, pattern, 'reply');
}

async function fiftyFirst() {
  const info = await transport(password).sendMail(mail({ to: lib.addresses(51, 'contoso.test') }));
  lib.equal([info.accepted.length, info.rejected], [50, ['user50@contoso.test']], 'accepted and rejected');
  lib.matches(info.rejectedErrors[0].response, /^452 4\.5\.3 Too many recipients/, 'reply');
}

async function badCertificate() {
  await lib.ask('POST', '/fault', { service: 'hve', kind: 'bad_certificate', count: 1 });
  const error = await lib.refused(() => transport(password).sendMail(mail()));
  lib.matches(`${error.code} ${error.message}`, /certificate|altname|self.signed/i, 'error');
}

async function lostAnswer() {
  await lib.reset();
  await lib.ask('POST', '/fault', { service: 'hve', kind: 'lost_answer', count: 1 });
  await lib.refused(() => transport(password).sendMail(mail({ messageId: '<lost@hve.test>' })));
  lib.equal((await lib.deliveries({ message_id: '<lost@hve.test>' })).length, 1, 'it was recorded all the same');
  await transport(password).sendMail(mail({ messageId: '<lost@hve.test>' }));
  const seen = await lib.summary('hve');
  lib.equal([seen.lost_answers, seen.duplicates], [1, 1], 'lost answers, duplicates');
}

async function main() {
  await lib.reset();
  await lib.check('nodemailer: 50 recipients, attachment', sent);
  await lib.check('nodemailer: 20 messages in one session', manyInOneSession);
  await lib.check('nodemailer: XOAUTH2', withToken);
  await lib.check('nodemailer: wrong token', wrongToken);
  await lib.check('nodemailer: wrong password', () => refusedWith(/535 5\.7\.3 /, mail(), { ...password, pass: 'no' }));
  await lib.check('nodemailer: envelope of somebody else', () => refusedWith(/550 5\.7\.62 /, mail({
    envelope: { from: 'boss@contoso.test', to: 'a@contoso.test' },
  })));
  await lib.check('nodemailer: From of somebody else', () => refusedWith(/550 5\.6\.241 /, mail({
    from: 'boss@contoso.test', envelope: { from: HVE, to: 'a@contoso.test' },
  })));
  await lib.check('nodemailer: external recipient', () => refusedWith(/550 5\.7\.1 /, mail({ to: 'a@example.com' })));
  await lib.check('nodemailer: 11 MB', () => refusedWith(/552 5\.3\.4 /, mail({
    attachments: [{ filename: 'a', content: Buffer.alloc(8 * 1024 * 1024) }],
  })));
  await lib.check('nodemailer: 51st recipient', fiftyFirst);
  await lib.check('nodemailer: 432 instead of 354', async () => {
    await lib.ask('POST', '/fault', { service: 'hve', kind: 'throttle', count: 1 });
    await refusedWith(/432 4\.3\.2 Concurrent connections limit exceeded/, mail());
  });
  await lib.check('nodemailer: bad certificate', badCertificate);
  await lib.check('nodemailer: lost answer', lostAnswer);
  lib.finish();
}

main();
