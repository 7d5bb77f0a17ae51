'use strict';
// What the client scripts share: where the simulators are, checks with words, and the control port.
const fs = require('fs');
const path = require('path');

const dir = process.env.HEAVE_SIM_DIR;
if (!dir) {
  console.error('HEAVE_SIM_DIR must name the --dir of a running heave-sim.');
  process.exit(2);
}
const ports = JSON.parse(fs.readFileSync(path.join(dir, 'sim.json'), 'utf8'));
const control = `http://127.0.0.1:${ports.control}`;

let passed = 0;
let failed = 0;

// Runs one check; a thrown error is its failure.
async function check(name, run) {
  try {
    await run();
    passed += 1;
    console.log(`PASS ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL ${name}: ${error && error.stack ? error.stack : error}`);
  }
}

// Runs `run`, which must throw, and returns the error.
async function refused(run) {
  try {
    await run();
  } catch (error) {
    return error;
  }
  throw new Error('it was accepted, and must have been refused');
}

function equal(actual, expected, what) {
  if (JSON.stringify(actual) !== JSON.stringify(expected)) {
    throw new Error(`${what}: ${JSON.stringify(actual)} instead of ${JSON.stringify(expected)}`);
  }
}

function matches(text, pattern, what) {
  if (!pattern.test(String(text))) {
    throw new Error(`${what}: ${text} does not match ${pattern}`);
  }
}

async function ask(method, target, body) {
  const response = await fetch(control + target, {
    method,
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (!response.ok) {
    throw new Error(`${method} ${target}: ${response.status} ${await response.text()}`);
  }
  return Buffer.from(await response.arrayBuffer());
}

async function summary(service) {
  return JSON.parse(await ask('GET', '/summary'))[service];
}

async function deliveries(query) {
  const text = (await ask('GET', `/deliveries?${new URLSearchParams(query)}`)).toString();
  return text.split('\n').filter((line) => line !== '').map((line) => JSON.parse(line));
}

async function reset() {
  await ask('DELETE', '/fault');
  await ask('POST', '/reset');
}

function finish() {
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed === 0 && passed > 0 ? 0 : 1);
}

function addresses(count, domain) {
  return Array.from({ length: count }, (_, i) => `user${i}@${domain}`);
}

module.exports = {
  ports, ask, addresses, check, deliveries, equal, finish, matches, refused, reset, summary,
};
