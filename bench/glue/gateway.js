// What a team would otherwise write: smtp-server -> BullMQ -> nodemailer, on the same Redis settings as heave. One process
// accepts and delivers. Recipients are split into jobs of at most 50; 250 is said after Redis has the jobs.
//
//   node gateway.js LISTEN_PORT REDIS_PORT SINK_PORT [tls|plain] [USER PASSWORD]
'use strict';
const { SMTPServer } = require('smtp-server');
const { Queue, Worker } = require('bullmq');
const nodemailer = require('nodemailer');

const [listenPort, redisPort, sinkPort, tls, user, pass] = process.argv.slice(2);
const connection = { host: '127.0.0.1', port: Number(redisPort), maxRetriesPerRequest: null };
const queue = new Queue('mail', { connection, defaultJobOptions: { removeOnComplete: true, attempts: 5, backoff: { type: 'exponential', delay: 1000 } } });
const transport = nodemailer.createTransport({
  host: '127.0.0.1', port: Number(sinkPort), secure: false, ignoreTLS: tls !== 'tls', requireTLS: tls === 'tls',
  tls: { rejectUnauthorized: false }, auth: user ? { user, pass } : undefined,
  pool: true, maxConnections: 20, maxMessages: Infinity,
});

const server = new SMTPServer({
  disabledCommands: ['AUTH', 'STARTTLS'], disableReverseLookup: true, logger: false, size: 60 * 1024 * 1024, maxClients: 1000,
  onData(stream, session, callback) {
    const chunks = [];
    stream.on('data', (chunk) => chunks.push(chunk));
    stream.on('end', () => {
      const raw = Buffer.concat(chunks).toString('base64');
      const from = session.envelope.mailFrom ? session.envelope.mailFrom.address : '';
      const to = [...new Set(session.envelope.rcptTo.map((r) => r.address))];
      const jobs = [];
      for (let i = 0; i < to.length; i += 50) jobs.push({ name: 'send', data: { from, to: to.slice(i, i + 50), raw } });
      queue.addBulk(jobs).then(() => callback(null, 'queued'), () => callback(Object.assign(new Error('try again'), { responseCode: 451 })));
    });
  },
});

const worker = new Worker('mail', (job) => transport.sendMail({
  envelope: { from: job.data.from, to: job.data.to }, raw: Buffer.from(job.data.raw, 'base64'),
}), { connection, concurrency: 50 });
worker.on('failed', (job, error) => console.error('failed', error.message));
server.on('error', (error) => console.error('smtp', error.message));
server.listen(Number(listenPort), '127.0.0.1', () => console.log('ready'));
process.on('SIGTERM', () => process.exit(0));
