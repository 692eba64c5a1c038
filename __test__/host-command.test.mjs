// `kg` hands commands that it does not have to the `kg` of the host.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, copyFileSync, linkSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { describe, expect, onTestFinished, test } from 'vitest';

import { kg, kgPath, repository } from './support/processes.mjs';
import { temporaryDirectory } from './support/project.mjs';

const launcher = path.join(repository, 'bin/kg.js');

/** Makes an executable script named `kg` in a directory of its own, and returns its path. */
function makeKg(base, dir, script) {
  const file = path.join(base, dir, 'kg');
  mkdirSync(path.dirname(file), { recursive: true });
  writeFileSync(file, script);
  chmodSync(file, 0o755);
  return file;
}

/** A host that prints its arguments and input, and ends with status 7. */
const HOST = '#!/bin/sh\nprintf "host"; printf " <%s>" "$@"; cat; echo warned >&2; exit 7\n';

function setUp() {
  const base = temporaryDirectory();
  const host = makeKg(base, 'host', HOST);
  /** Returns the options of a process that finds these directories before the system's. */
  const on = (dirs, env = {}) => ({
    cwd: base,
    env: {
      ...process.env,
      PATH: [...dirs, path.dirname(process.execPath), '/usr/bin', '/bin'].join(path.delimiter),
      ...env,
    },
  });
  return { base, host, hostDir: path.dirname(host), on };
}

/** Makes the directories in which package managers put a `kg` that is ours. */
function oursIn(base) {
  const at = (dir) => {
    mkdirSync(path.join(base, dir), { recursive: true });
    return path.join(base, dir, 'kg');
  };
  symlinkSync(launcher, at('npm'));
  symlinkSync(kgPath, at('native'));
  const relative = path.relative(path.join(base, 'pnpm'), launcher);
  makeKg(
    base,
    'pnpm',
    `#!/bin/sh\nbasedir=$(dirname "$0")\nexec node  "$basedir/${relative}" "$@"\n`,
  );
  makeKg(base, 'copy/bin', '');
  copyFileSync(launcher, path.join(base, 'copy/bin/kg'));
  return ['npm', 'native', 'pnpm', 'copy/bin'].map((dir) => path.join(base, dir));
}

describe('a command that kg does not have', () => {
  test.each([
    [['init', '--force', 'a b', '']],
    [['search', '--json', '-x']],
    [['diag', 'run', '--fix']],
    [['help', 'init']],
  ])('goes to the host with arguments, input, output and status: %j', async (args) => {
    const { base, hostDir, on } = setUp();
    const ours = oursIn(base);
    for (const command of [[kgPath], [process.execPath, launcher]]) {
      const [file, ...before] = command;
      const child = spawn(file, [...before, ...args], on([...ours, hostDir]));
      onTestFinished(() => child.kill('SIGKILL'));
      let [stdout, stderr] = ['', ''];
      child.stdout.on('data', (data) => (stdout += data));
      child.stderr.on('data', (data) => (stderr += data));
      child.stdin.end(' input');
      const [status] = await once(child, 'close');
      expect({ status, stdout, stderr }).toEqual({
        status: 7,
        stdout: `host${args.map((one) => ` <${one}>`).join('')} input`,
        stderr: 'warned\n',
      });
    }
  });

  test('gets the signals, and no signal is blocked', async () => {
    const { base, on } = setUp();
    const script =
      '#!/bin/sh\ngrep SigBlk /proc/self/status\ntrap "echo stopped; exit 9" TERM\necho ready\nwhile :; do sleep 0.02; done\n';
    const host = makeKg(base, 'waiting', script);
    const child = spawn(kgPath, ['init'], on([path.dirname(host)]));
    onTestFinished(() => child.kill('SIGKILL'));
    let stdout = '';
    for await (const data of child.stdout) {
      stdout += data;
      if (stdout.endsWith('ready\n')) child.kill('SIGTERM');
    }
    expect(stdout).toBe('SigBlk:\t0000000000000000\nready\nstopped\n');
    expect(child.exitCode ?? (await once(child, 'exit'))[0]).toBe(9);
  });

  test('goes to the executable that KG_HOST_COMMAND names', async () => {
    const { base, hostDir, on } = setUp();
    const named = makeKg(base, 'elsewhere', HOST.replace('"host"', '"named"'));
    const run = (env) => kg(['init'], on([hostDir], env));
    expect(await run({ KG_HOST_COMMAND: named })).toMatchObject({
      status: 7,
      stdout: 'named <init>',
    });
    for (const wrong of [path.join(base, 'missing'), 'elsewhere/kg', base, kgPath]) {
      const refused = await run({ KG_HOST_COMMAND: wrong });
      expect(refused, wrong).toMatchObject({ status: 2, stdout: '' });
      expect(refused.stderr).toContain('[KG_INVALID_OPTION]');
    }
  });

  test('is a usage error that says so if there is no host, and nothing of the working directory runs', async () => {
    const { base, on } = setUp();
    const ours = oursIn(base);
    makeKg(base, '.', HOST);
    makeKg(base, 'node_modules/.bin', HOST);
    const without = on([...ours, '.', '', 'node_modules/.bin']);
    for (const command of [[kgPath], [process.execPath, launcher]]) {
      const [file, ...before] = command;
      const child = spawn(file, [...before, 'init'], without);
      let stderr = '';
      child.stderr.on('data', (data) => (stderr += data));
      expect((await once(child, 'close'))[0]).toBe(2);
      expect(stderr).toContain("unrecognized subcommand 'init'");
      expect(stderr).toMatch(/no other kg is installed .*KG_HOST_COMMAND/);
    }
    const json = await kg(['init', '--json'], without);
    expect(json.status).toBe(2);
    expect(JSON.parse(json.stdout).error).toMatchObject({
      code: 'KG_INVALID_OPTION',
      remedy: expect.stringContaining('other kg is installed'),
    });
  });

  test('is looked for by each of two copies only once', async () => {
    const { base, on } = setUp();
    // Scripts that do not look like a kg of this package, but run it.
    const first = makeKg(base, 'first', `#!/bin/sh\nexec '${kgPath}' "$@"\n`);
    const second = makeKg(base, 'second', `#!/bin/sh\nexec '${kgPath}' "$@"\n`);
    const both = [first, second].map((file) => path.dirname(file));
    expect(await kg(['init'], on(both))).toMatchObject({
      status: 2,
      stderr: expect.stringContaining('no other kg is installed'),
    });
    const host = path.dirname(makeKg(base, 'third', HOST));
    expect(await kg(['init'], on([...both, host]))).toMatchObject({ status: 7 });
  });
});

test('a host may run commands of its own through kg', async () => {
  const { base, on } = setUp();
  const script = `#!/bin/sh\nif [ "$1" = init ]; then '${process.execPath}' '${launcher}' search; fi\necho "host $1"\n`;
  const host = makeKg(base, 'nesting', script);
  expect(await kg(['init'], on([...oursIn(base), path.dirname(host)]))).toMatchObject({
    status: 0,
    stdout: 'host search\nhost init\n',
  });
});

test('a misspelt command, and an option of a command that kg has, are not handed over', async () => {
  const { host, hostDir, on } = setUp();
  for (const [args, ours] of [
    [['digg', 'backup'], 'diag'],
    [['diag', 'bakcup'], 'backup'],
    [['serv'], 'serve'],
  ]) {
    const refused = await kg(args, on([hostDir]));
    expect(refused, args.join(' ')).toMatchObject({ status: 2, stdout: '' });
    expect(refused.stderr).toContain(`resembles '${ours}', so it was not handed over`);
    expect(refused.stderr).toContain(host);
  }
  const verb = await kg(['backup'], on([hostDir]));
  expect(verb).toMatchObject({ status: 2, stdout: '' });
  expect(verb.stderr).toContain('run `kg diag backup`');
  for (const args of [['graph', '--depth', '3'], ['--unknown'], ['serve', '--graphql']])
    expect(await kg(args, on([hostDir])), args.join(' ')).toMatchObject({ status: 2, stdout: '' });
});

test('the help says which commands are whose, and runs nothing', async () => {
  const { base, hostDir, host, on } = setUp();
  const ours = oursIn(base);
  const words = (text) => text.replace(/\s+/g, ' ');
  for (const args of [['--help'], ['-h'], ['help'], []]) {
    const { stdout, stderr } = await kg(args, on([...ours, hostDir]));
    expect(words(stdout + stderr)).toContain('Other commands, such as init, belong to the host');
    expect(words(stdout + stderr)).toContain(`Here that is ${host}.`);
    const without = await kg(args, on(ours));
    expect(words(without.stdout + without.stderr)).toContain('None is installed here.');
  }
  // A hard link is the same executable.
  const linked = path.join(base, 'linked');
  mkdirSync(linked);
  try {
    linkSync(kgPath, path.join(linked, 'kg'));
  } catch (error) {
    if (error.code !== 'EXDEV') throw error;
    return;
  }
  expect((await kg(['--help'], on([linked]))).stdout).toContain('None is installed here.');
});
