// Installs packages that only some tests need, at the versions of a lock file of their own.

import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { copyFileSync, readFileSync } from 'node:fs';
import path from 'node:path';

import { installOnce, root } from './install-once.mjs';

/**
 * Installs the packages of the lock file in `folder`, a path in the repository, unless an earlier
 * run did. Returns the directory in `target/test-tools` that contains their `node_modules`.
 */
export function installLocked(folder) {
  const lock = readFileSync(path.join(root, folder, 'package-lock.json'));
  const version = createHash('sha256').update(lock).digest('hex').slice(0, 12);
  return installOnce(`${path.basename(folder)}-${version}`, (directory) => {
    for (const file of ['package.json', 'package-lock.json'])
      copyFileSync(path.join(root, folder, file), path.join(directory, file));
    const { status } = spawnSync('npm', ['ci', '--prefix', directory, '--no-audit', '--no-fund'], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    if (status !== 0) throw new Error(`the packages of ${folder} cannot be installed`);
  });
}
