// System calls that fail, or at which a run is killed, as with a bad disk or a loss of power.

import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { kgPath } from './processes.mjs';

/** Runs a program with a log file and passes the log to `read`. */
function logged(command, read, options) {
  const dir = mkdtempSync(path.join(os.tmpdir(), 'kg-faults-'));
  const log = path.join(dir, 'log');
  const ran = spawnSync(...command(log), { encoding: 'utf8', ...options });
  const outcome = read(existsSync(log) ? readFileSync(log, 'utf8') : '', ran);
  rmSync(dir, { recursive: true });
  return outcome;
}

/** Returns the outcome of a run and the number of injected faults. A killed run has no status. */
function outcomeOf({ status, signal, stdout, stderr }, injected) {
  const isKilled = signal === 'SIGKILL' || status === 137;
  return {
    status: isKilled ? null : status,
    stdout,
    stderr,
    injected: isKilled ? 1 : injected,
    isKilled,
  };
}

function traced(call, what, args, { only, cwd, when, env } = {}) {
  const options = [
    '-e',
    `trace=${call}`,
    '-e',
    `inject=${call}:${what}${when ? `:when=${when}` : ''}`,
    ...(only ? ['-P', only] : []),
  ];
  return logged(
    (log) => ['strace', ['-f', '-o', log, ...options, kgPath, ...args]],
    (log, ran) => outcomeOf(ran, log.split('(INJECTED)').length - 1),
    { cwd, env },
  );
}

/**
 * Runs `kg` while a system call fails: on the path `only` or everywhere, and each time or the
 * `when`th time in each thread. `injected` counts the failures.
 */
export const failing = (call, error, args, options) =>
  traced(call, `error=${error}`, args, options);

/** Runs `kg` and kills it before the `when`th such call of a thread. */
export const killed = (call, args, options) => traced(call, 'error=EIO:signal=KILL', args, options);

/**
 * Runs `kg` until its `when`th write, of which only the first half is made. `then` selects the
 * result: a kill, an error, or a short write ("short"), which write(2) permits.
 */
export function torn(then, args, { cwd, when, env }) {
  return logged(
    (log) => [
      kgPath,
      args,
      {
        cwd,
        encoding: 'utf8',
        env: {
          ...env,
          LD_PRELOAD: library(),
          TORN_AT: String(when),
          TORN_THEN: then,
          TORN_LOG: log,
        },
      },
    ],
    (log, ran) => outcomeOf(ran, log.length),
  );
}

/** Compiles the library on the first call. */
function library() {
  const source = fileURLToPath(new URL('torn.c', import.meta.url));
  const built = path.join(os.tmpdir(), `kg-torn-${process.pid}.so`);
  if (!existsSync(built)) {
    execFileSync('cc', ['-shared', '-fPIC', '-O1', '-o', `${built}.new`, source, '-ldl']);
    renameSync(`${built}.new`, built);
    process.on('exit', () => rmSync(built, { force: true }));
  }
  return built;
}

/** Counts the system calls of a run of `kg`: `most` in one thread, and `total`. */
export function callsOf(args, cwd) {
  return logged(
    (log) => ['strace', ['-f', '-o', log, kgPath, ...args]],
    (log) => {
      const counts = {};
      for (const line of log.split('\n')) {
        const [, thread, call] = line.match(/^(\d+) +(\w+)\(/) ?? [];
        if (call) counts[call] = { ...counts[call], [thread]: (counts[call]?.[thread] ?? 0) + 1 };
      }
      const each = (of) =>
        Object.fromEntries(
          Object.entries(counts).map(([call, threads]) => [call, of(Object.values(threads))]),
        );
      return {
        most: each((calls) => Math.max(...calls)),
        total: each((calls) => calls.reduce((sum, made) => sum + made, 0)),
      };
    },
    { cwd },
  );
}
