// `npm run setup`: prepares a fresh clone for the tests. Installs the JavaScript packages and the
// system programs, and builds the native code. It is safe to run again.

import { spawn, spawnSync } from 'node:child_process';
import { existsSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { installLocked } from './locked.mjs';
import { installAzurite, installObjectServer } from './object-server.mjs';
import { installRuntimes } from './runtimes.mjs';

export const root = path.join(path.dirname(fileURLToPath(import.meta.url)), '..');

const running = new Set();

/**
 * Runs a command in the repository and shows its output. If it fails, ends the other running
 * commands and this process.
 */
async function must(command, ...args) {
  const child = spawn(command, args, { cwd: root, stdio: 'inherit' });
  running.add(child);
  const failure = await new Promise((resolve) => {
    child.on('error', (error) => resolve(`could not be started: ${error.message}`));
    child.on('close', (status) => resolve(status === 0 ? null : 'failed'));
  });
  running.delete(child);
  if (failure === null) return;
  for (const other of running) other.kill();
  console.error(`\n${[command, ...args].join(' ')} ${failure}.`);
  process.exit(1);
}

function changedAt(file) {
  const full = path.join(root, file);
  return existsSync(full) ? statSync(full).mtimeMs : 0;
}

/**
 * Installs the JavaScript packages of the lock file. Compiles better-sqlite3 if it has no prebuilt
 * binary for this system.
 */
async function packages() {
  if (changedAt('node_modules/.package-lock.json') < changedAt('package-lock.json'))
    await must('npm', 'ci', '--no-audit', '--no-fund');
  const works =
    spawnSync(process.execPath, ['-e', "new (require('better-sqlite3'))(':memory:')"], {
      cwd: root,
    }).status === 0;
  if (!works) await must('npm', 'rebuild', 'better-sqlite3', '--foreground-scripts');
}

/** Builds the addon and `kg`. */
async function build(...options) {
  await must(process.execPath, path.join(root, 'scripts/build.mjs'), ...options);
}

/**
 * Installs the packages and builds at the same time, because the installation mostly waits for the
 * network and for a single compiler. `options` are those of scripts/build.mjs.
 */
export async function prepare(...options) {
  await Promise.all([packages(), build(...options)]);
  await must(process.execPath, path.join(root, 'scripts/commonjs.mjs'));
}

/** The programs that the tests compare results with, each with its Debian package. */
const TOOLS = {
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
};

/**
 * Installs missing tools if this process runs as root on a Debian system. Otherwise prints their
 * names and exits with status 1.
 */
async function tools() {
  const missing = Object.entries(TOOLS).filter(
    ([name]) => spawnSync('sh', ['-c', `command -v ${name}`]).status !== 0,
  );
  if (missing.length === 0) return;
  const wanted = [...new Set(missing.map(([, debianPackage]) => debianPackage))];
  if (process.getuid?.() === 0 && existsSync('/usr/bin/apt-get')) {
    await must('apt-get', 'update', '-q');
    await must('apt-get', 'install', '-y', '-q', '--no-install-recommends', ...wanted);
  } else {
    console.error(
      `Please install: ${missing.map(([name]) => name).join(', ')} (Debian packages: ${wanted.join(' ')})`,
    );
    process.exit(1);
  }
}

export const require = createRequire(import.meta.url);

/** Prepares everything that the tests need. Only those in JavaScript need the tools. */
export async function setUp({ withTools = true } = {}) {
  if (withTools) {
    await tools();
    installObjectServer();
    installAzurite();
    installRuntimes();
    installLocked('__test__/bundlers');
  }
  await prepare('--dev');
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await setUp();
