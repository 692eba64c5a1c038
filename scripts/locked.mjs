// Installs packages that only some tests need, at the versions of a lock file of their own.

import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { copyFileSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.join(path.dirname(fileURLToPath(import.meta.url)), '..');

/**
 * Installs the packages of the lock file in `folder`, a path in the repository, unless an earlier
 * run did. Returns the directory in `target/test-tools` that contains their `node_modules`.
 */
export function installLocked(folder) {
  const lock = readFileSync(path.join(root, folder, 'package-lock.json'));
  const version = createHash('sha256').update(lock).digest('hex').slice(0, 12);
  const installed = path.join(root, 'target/test-tools', `${path.basename(folder)}-${version}`);
  if (existsSync(installed)) return installed;
  const partial = `${installed}.${process.pid}`;
  rmSync(partial, { recursive: true, force: true });
  mkdirSync(partial, { recursive: true });
  for (const file of ['package.json', 'package-lock.json'])
    copyFileSync(path.join(root, folder, file), path.join(partial, file));
  const { status } = spawnSync('npm', ['ci', '--prefix', partial, '--no-audit', '--no-fund'], {
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  if (status !== 0) throw new Error(`the packages of ${folder} cannot be installed`);
  try {
    renameSync(partial, installed);
  } catch (error) {
    // Another test file may have installed them meanwhile.
    if (!existsSync(installed)) throw error;
    rmSync(partial, { recursive: true });
  }
  return installed;
}
