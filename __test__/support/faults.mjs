// System calls that fail, as they do on a bad disk or on a file system that cannot do what is asked.

import { spawnSync } from 'node:child_process';

import { kgPath } from './processes.mjs';

/** Runs `kg` while a system call fails, for `only` a path or for all. */
export function failing(call, error, args, { only, cwd, when } = {}) {
  const [trace, options] = [['-e', `trace=${call}`], only ? ['-P', only] : []];
  const inject = `inject=${call}:error=${error}${when ? `:when=${when}` : ''}`;
  const { status, stdout, stderr } = spawnSync('strace', ['-f', '-o', '/dev/null', ...options, ...trace, '-e', inject, kgPath, ...args], { cwd, encoding: 'utf8' });
  return { status, stdout, stderr };
}
