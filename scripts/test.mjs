// `npm test`: prepares the clone, runs every suite, and prints one line of totals at the end.
//
// `npm run lint`, `test:rust` and `test:js` run one part each. The parts can also be named:
// `node scripts/test.mjs lint rust js`.

import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { installLocked } from './locked.mjs';
import { root, setUp } from './setup.mjs';

// `npm run test:long`: tests every point that is otherwise sampled, then runs each fuzz target for
// a minute.
const isLong = process.argv.includes('--long');
const parts = process.argv.slice(2).filter((argument) => !argument.startsWith('--'));
const runs = (part) => parts.length === 0 || parts.includes(part);
const reports = mkdtempSync(path.join(os.tmpdir(), 'kg-reports-'));
const figures = path.join(reports, 'figures');
if (isLong) Object.assign(process.env, { KG_TEST_LONG: '1', KG_TEST_FIGURES: figures });
await setUp({ withTools: runs('js') });

const total = { passed: 0, failed: 0, skipped: 0 };

/** Runs a command and shows its output. Resolves to whether it succeeded and what it printed. */
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

/**
 * Adds the counts of a suite. A suite that failed without a failed test, for example because it did
 * not compile, counts as one failure.
 */
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
  for (const [, passed, failed, ignored] of printed.matchAll(
    /^test result: .*? (\d+) passed; (\d+) failed; (\d+) ignored/gm,
  )) {
    counts.passed += Number(passed);
    counts.failed += Number(failed);
    counts.skipped += Number(ignored);
  }
  add(ok, counts);
}

/** Runs vitest or jest. Their reports have the same form. */
async function javascript(command, ...args) {
  const report = path.join(reports, `${path.basename(command)}.json`);
  const { ok } = await show(process.execPath, [command, ...args, `--outputFile=${report}`]);
  let counts = { passed: 0, failed: 0, skipped: 0 };
  try {
    const { numPassedTests, numFailedTests, numPendingTests } = JSON.parse(
      readFileSync(report, 'utf8'),
    );
    counts = { passed: numPassedTests, failed: numFailedTests, skipped: numPendingTests };
  } catch {
    add(false, counts);
    return;
  }
  add(ok, counts);
}

/** Prints `sums` together with the counts that the suites of the long run recorded. */
function printFigures(sums) {
  const lines = existsSync(figures) ? readFileSync(figures, 'utf8').trim().split('\n') : [];
  for (const line of lines) {
    for (const [name, number] of Object.entries(JSON.parse(line)))
      sums[name] = (sums[name] ?? 0) + number;
  }
  console.log(
    `\n${Object.entries(sums)
      .map(([name, number]) => `${number} ${name}`)
      .join(', ')}`,
  );
}

/**
 * Runs the jest test. jest has more packages than everything else together, so only this test
 * installs them.
 */
async function jest() {
  const home = installLocked('__test__/jest');
  const config = path.join(root, '__test__/jest/jest.config.cjs');
  const script = path.join(home, 'node_modules/jest/bin/jest.js');
  await javascript(script, '--config', config, '--json', '--silent');
}

if (runs('lint')) {
  await check('cargo', 'fmt', '--check');
  await check('cargo', 'clippy', '--locked', '--all-targets', '--', '-D', 'warnings');
  // Reports dead code. Without this configuration, the items exported for the tests would hide it.
  await check(
    'cargo',
    'rustc',
    '--locked',
    '--lib',
    '--profile',
    'check',
    '--',
    '--cfg',
    'without_internals',
    '-D',
    'warnings',
  );
  // Leaves out the fuzzer itself, which is C++ that would have to be compiled.
  await check(
    'cargo',
    'clippy',
    '--locked',
    '-p',
    'kg-fuzz',
    '--no-default-features',
    '--bins',
    '--',
    '-D',
    'warnings',
  );
  await check('npx', '--no-install', 'prettier', '--check', '--log-level', 'warn', '.');
  await check('npx', '--no-install', 'eslint', '.');
  await check('npx', '--no-install', 'tsc', '-p', 'tsconfig.json');
}
if (runs('rust')) await cargoTest();
if (runs('js')) {
  const vitest = path.join(root, 'node_modules/vitest/vitest.mjs');
  await javascript(vitest, 'run', '--reporter=default', '--reporter=json');
  await jest();
}
if (isLong) {
  const { fuzz } = await import('./fuzz.mjs');
  const { executions, failures } = fuzz();
  add(failures === 0, { passed: 0, failed: failures, skipped: 0 });
  printFigures({ 'fuzz executions': executions, failures });
}
rmSync(reports, { recursive: true });

console.log(`\n${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`);
process.exitCode = total.failed === 0 && total.passed > 0 ? 0 : 1;
