// `npm test`: sets everything up, runs every suite, and ends with one line over all of them.

import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { prepare, root, tools } from './setup.mjs';

// `npm run test:long`: each point of what is otherwise sampled, then a minute of each fuzz target.
const isLong = process.argv.includes('--long');
const reports = mkdtempSync(path.join(os.tmpdir(), 'kg-reports-'));
const figures = path.join(reports, 'figures');
if (isLong) Object.assign(process.env, { KG_TEST_LONG: '1', KG_TEST_FIGURES: figures });
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
await prepare('--dev');

const total = { passed: 0, failed: 0, skipped: 0 };

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

/** What the suites of the long run counted, and what comes with it. */
function printFigures(sums) {
  const lines = existsSync(figures) ? readFileSync(figures, 'utf8').trim().split('\n') : [];
  for (const line of lines) {
    for (const [name, number] of Object.entries(JSON.parse(line))) sums[name] = (sums[name] ?? 0) + number;
  }
  console.log(`\n${Object.entries(sums).map(([name, number]) => `${number} ${name}`).join(', ')}`);
}

await check('cargo', 'fmt', '--check');
await check('cargo', 'clippy', '--locked', '--all-targets', '--', '-D', 'warnings');
// Without the fuzzer itself, which is C++ to compile.
await check('cargo', 'clippy', '--locked', '-p', 'kg-fuzz', '--no-default-features', '--bins', '--', '-D', 'warnings');
await cargoTest();
await javascript('vitest');
await javascript('jest', '--silent');
if (isLong) {
  const { fuzz } = await import('./fuzz.mjs');
  const { executions, failures } = fuzz();
  add(failures === 0, { passed: 0, failed: failures, skipped: 0 });
  printFigures({ 'fuzz executions': executions, failures });
}
rmSync(reports, { recursive: true });

console.log(`\n${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`);
process.exitCode = total.failed === 0 && total.passed > 0 ? 0 : 1;
