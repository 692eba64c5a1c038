// System calls that fail, as they do on a bad disk or on a file system that cannot do what is asked.

import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { kgPath } from './processes.mjs';

/** Runs `kg` while a system call fails, for `only` a path or for all, and each time or the `when`th of each thread: `injected` times. */
export function failing(call, error, args, { only, cwd, when, env } = {}) {
  const log = path.join(mkdtempSync(path.join(os.tmpdir(), 'kg-strace-')), 'log');
  const [trace, options] = [['-e', `trace=${call}`], only ? ['-P', only] : []];
  const inject = `inject=${call}:error=${error}${when ? `:when=${when}` : ''}`;
  const command = ['-f', '-o', log, ...options, ...trace, '-e', inject, kgPath, ...args];
  const { status, stdout, stderr } = spawnSync('strace', command, { cwd, env, encoding: 'utf8' });
  const injected = readFileSync(log, 'utf8').split('(INJECTED)').length - 1;
  rmSync(path.dirname(log), { recursive: true });
  return { status, stdout, stderr, injected };
}

/** How often a run of `kg` makes each system call: in that of its threads which makes most of them. */
export function callsOf(args, cwd) {
  const log = path.join(mkdtempSync(path.join(os.tmpdir(), 'kg-strace-')), 'log');
  spawnSync('strace', ['-f', '-o', log, kgPath, ...args], { cwd });
  const counts = {};
  for (const line of readFileSync(log, 'utf8').split('\n')) {
    const [, thread, call] = line.match(/^(\d+) +(\w+)\(/) ?? [];
    if (call) counts[call] = { ...counts[call], [thread]: (counts[call]?.[thread] ?? 0) + 1 };
  }
  rmSync(path.dirname(log), { recursive: true });
  return Object.fromEntries(Object.entries(counts).map(([call, threads]) => [call, Math.max(...Object.values(threads))]));
}
