#!/usr/bin/env node
'use strict';

// Hands over to the native `kg`: its input, output and exit status are the ones of this process.

const { spawn } = require('node:child_process');
const { constants } = require('node:os');

/** Starts the native `kg` and forwards signals to it. */
function run(kgPath) {
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
}

import('../lib/native-parts.mjs')
  .then(({ nativeParts }) => run(nativeParts().kgPath))
  // A sentence without a stack, because there is nothing to debug here.
  .catch((error) => {
    process.stderr.write(`kg: ${error.message} [${error.code}]\n`);
    process.exitCode = 1;
  });
