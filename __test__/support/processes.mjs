// Other processes: a writer, a host, `kg` and tools of the system.

import { execFile, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import { onTestFinished } from 'vitest';

import { nativeParts } from '../../lib/native-parts.mjs';

const here = path.dirname(fileURLToPath(import.meta.url));
export const repository = path.join(here, '..', '..');
export const { kgPath } = nativeParts();

/**
 * Starts support/writer.mjs and waits for its first transaction. `stop()` resolves to its report.
 */
export async function startWriter(database) {
  const child = spawn(process.execPath, [path.join(here, 'writer.mjs'), database], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  onTestFinished(() => child.kill('SIGKILL'));
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  await lines.next();
  return {
    async stop() {
      child.stdin.end();
      const { value } = await lines.next();
      return JSON.parse(value);
    },
  };
}

/**
 * Returns a command that runs another one in a mount namespace of its own, in which `from` is also
 * at `to`. For `through` of {@link startHost}.
 */
export const inBindMount = (from, to) => [
  'unshare',
  '-m',
  'sh',
  '-c',
  'mount --bind "$0" "$1" && shift && exec "$@"',
  from,
  to,
];

/**
 * Starts support/host.mjs and waits until it has the database open. `tell(sql)` resolves to its
 * rows. `through` is a command line that runs the host command appended to it.
 */
export async function startHost(database, { through = [] } = {}) {
  const [command, ...args] = [...through, process.execPath, path.join(here, 'host.mjs'), database];
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  onTestFinished(() => child.kill('SIGKILL'));
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  await lines.next();
  return {
    pid: child.pid,
    async tell(sql) {
      child.stdin.write(`${JSON.stringify(sql)}\n`);
      const { value } = await lines.next();
      return JSON.parse(value);
    },
    async stop() {
      child.stdin.end();
      await once(child, 'exit');
    },
    async kill() {
      child.kill('SIGKILL');
      await once(child, 'exit');
    },
  };
}

/** Runs a command and returns its output. */
export function run(command, args, options = {}) {
  return execFileSync(command, args, {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
    ...options,
  });
}

/**
 * Runs the native `kg` on a terminal, with the text that a person types, and returns what the terminal
 * shows. The arguments are words of a shell.
 */
export const kgOnTerminal = (args, cwd, typed) =>
  run('script', ['-qec', [kgPath, ...args].join(' '), '/dev/null'], {
    cwd,
    input: typed,
    stdio: ['pipe', 'pipe', 'pipe'],
  });

/**
 * Runs the native `kg` and resolves to its exit status and output. A failing status does not
 * reject.
 */
export function kg(args, options = {}) {
  return new Promise((resolve) => {
    const child = execFile(kgPath, args, options, (error, stdout, stderr) => {
      resolve({ status: error ? error.code : 0, signal: error?.signal, stdout, stderr });
    });
    child.stdin.end();
  });
}

/** Resolves once `condition` returns a true value. Tries again after each turn of the timer. */
export async function until(condition, what = 'the condition', timeoutMs = 30_000) {
  const deadline = Date.now() + timeoutMs;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`${what} did not come true within ${timeoutMs} ms`);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

export { once, spawn };

const MEASURE = `
import json, os, sys, time
began = time.monotonic()
null = os.open(os.devnull, os.O_RDWR)
streams = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
pid = os.posix_spawn('/usr/bin/env', ['env', *sys.argv[1:]], os.environ, file_actions=streams)
_, status, usage = os.wait4(pid, 0)
print(json.dumps({'status': os.waitstatus_to_exitcode(status), 'seconds': time.monotonic() - began,
                  'peakBytes': usage.ru_maxrss * 1024, 'writtenBytes': usage.ru_oublock * 512}))`;

/**
 * Runs a command and returns its exit status, duration, peak memory and bytes written to disk.
 */
export function measure(command, cwd) {
  return JSON.parse(
    execFileSync('python3', ['-c', MEASURE, ...command], { encoding: 'utf8', cwd }),
  );
}
