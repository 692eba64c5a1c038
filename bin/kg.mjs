#!/usr/bin/env node
// Hands over to the native `kg`: its input, output and exit status are the ones of this process.

import { spawn } from 'node:child_process';
import { constants } from 'node:os';

import { nativeParts } from '../lib/native-parts.mjs';

/** Returns the native `kg`. If there is none for this machine, says why, without a stack. */
function find() {
  try {
    return nativeParts().kgPath;
  } catch (error) {
    process.stderr.write(`kg: ${error.message} [${error.code}]\n`);
    process.exit(1);
  }
}

const kgPath = find();

const child = spawn(kgPath, process.argv.slice(2), { stdio: 'inherit' });

// A terminal sends Ctrl-C to both; this process waits for the native one to end cleanly.
/** @type {NodeJS.Signals[]} */
const forwarded = ['SIGINT', 'SIGTERM', 'SIGHUP'];
for (const signal of forwarded) {
  process.on(signal, () => {
    if (signal !== 'SIGINT' || !process.stdin.isTTY) child.kill(signal);
  });
}

child.on('error', (error) => {
  process.stderr.write(`kg: ${kgPath} could not be started: ${error.message}\n`);
  process.exitCode = 1;
});
child.on('exit', (code, signal) => {
  process.exitCode = code ?? 128 + constants.signals[signal];
});
