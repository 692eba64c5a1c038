// `npm test`: sets everything up, runs every suite, and ends with one line over all of them.

import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { prepare, root, tools } from './setup.mjs';

// Each point of what is otherwise sampled.
if (process.argv.includes('--long')) process.env.KG_TEST_LONG = '1';
await tools({
  age: 'age',
  chattr: 'e2fsprogs',
  flock: 'util-linux',
  losetup: 'mount',
  'mkfs.ext4': 'e2fsprogs',
  openssl: 'openssl',
  pigz: 'pigz',
  promtool: 'prometheus',
  python3: 'python3',
  script: 'bsdutils',
  sha256sum: 'coreutils',
  sqlite3: 'sqlite3',
  strace: 'strace',
  tar: 'tar',
  unshare: 'util-linux',
  zstd: 'zstd',
});
await prepare();

const total = { passed: 0, failed: 0, skipped: 0 };
const reports = mkdtempSync(path.join(os.tmpdir(), 'kg-reports-'));

/** Runs a command, showing its output; resolves to its status and what it printed. */
function show(command, args) {
  console.log(`\n── ${[command, ...args].join(' ')}`);
  return new Promise((resolve) => {
    const child = spawn(command, args, { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] });
    let printed = '';
    child.stdout.on('data', (text) => {
      printed += text;
      process.stdout.write(text);
    });
    child.on('error', (error) => resolve({ ok: false, printed: error.message }));
    child.on('close', (status) => resolve({ ok: status === 0, printed }));
  });
}

/** Adds a suite's counts. One that failed without a failed test (it did not compile, say) counts as one failure. */
function add(ok, { passed, failed, skipped }) {
  total.passed += passed;
  total.failed += ok ? failed : Math.max(failed, 1);
  total.skipped += skipped;
}

async function check(command, ...args) {
  const { ok } = await show(command, args);
  add(ok, { passed: ok ? 1 : 0, failed: 0, skipped: 0 });
}

async function cargoTest() {
  const { ok, printed } = await show('cargo', ['test', '--locked', '--no-fail-fast']);
  const counts = { passed: 0, failed: 0, skipped: 0 };
  for (const [, passed, failed, ignored] of printed.matchAll(/^test result: .*? (\d+) passed; (\d+) failed; (\d+) ignored/gm)) {
    counts.passed += Number(passed);
    counts.failed += Number(failed);
    counts.skipped += Number(ignored);
  }
  add(ok, counts);
}

/** vitest and jest write reports of one form. */
async function javascript(command, ...args) {
  const report = path.join(reports, `${command}.json`);
  const toReport = command === 'vitest' ? ['run', '--reporter=default', '--reporter=json'] : ['--json'];
  const { ok } = await show('npx', ['--no-install', command, ...toReport, `--outputFile=${report}`, ...args]);
  let counts = { passed: 0, failed: 0, skipped: 0 };
  try {
    const { numPassedTests, numFailedTests, numPendingTests } = JSON.parse(readFileSync(report, 'utf8'));
    counts = { passed: numPassedTests, failed: numFailedTests, skipped: numPendingTests };
  } catch {
    add(false, counts);
    return;
  }
  add(ok, counts);
}

await check('cargo', 'fmt', '--check');
await check('cargo', 'clippy', '--locked', '--all-targets', '--', '-D', 'warnings');
await cargoTest();
await javascript('vitest');
await javascript('jest', '--silent');
rmSync(reports, { recursive: true });

console.log(`\n${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`);
process.exitCode = total.failed === 0 && total.passed > 0 ? 0 : 1;
