// Messages name the cause, the place and the alternatives. A result that cannot be written is not a
// success.

import { spawn, spawnSync } from 'node:child_process';
import { openSync, readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';

import { describe, expect, onTestFinished, test } from 'vitest';

import { kg, kgPath, once, repository, run } from './support/processes.mjs';
import { resultOf } from './support/json-output.mjs';
import { makeProject } from './support/project.mjs';

describe('arguments that kg does not accept', () => {
  const wrong = [
    [
      ['diag', 'backup', '--jsn'],
      /Unexpected argument '--jsn' found/,
      /A similar argument exists: '--json'.*`kg diag backup --help`/,
    ],
    [
      ['diag', 'restore'],
      /required arguments were not provided: --file <FILE>/,
      /`kg diag restore --help`/,
    ],
    [['diag', 'prune', '--max-backups', '0'], /Invalid value '0'/, /`kg diag prune --help`/],
    [
      ['diag', 'backup', '--lock-timeout', 'soon'],
      /Invalid value 'soon'/,
      /`kg diag backup --help`/,
    ],
    [['nothing'], /Unrecognized subcommand 'nothing'/, /`kg --help`/],
    [['diag', 'check'], /Unrecognized subcommand 'check'/, /`kg diag --help`/],
    [
      ['verify', 'latest'],
      /Unrecognized subcommand 'verify'/,
      /Run `kg diag verify latest --json`/,
    ],
    [['diag', 'health', '--quiet'], /cannot be used with/, /--help`/],
  ];
  test.each(wrong)('%j is JSON with --json', async (args, message, remedy) => {
    const { status, stdout, stderr } = await kg([...args, '--json']);
    const { error } = resultOf(stdout);
    expect(status).toBe(2);
    expect(error).toEqual({
      code: 'KG_INVALID_OPTION',
      message: expect.stringMatching(message),
      remedy: expect.stringMatching(remedy),
    });
    expect(stderr).toMatch(/^error: /);
  });

  test('without --json they are plain text, and help is not an error', async () => {
    expect(await kg(['diag', 'backup', '--jsn'])).toMatchObject({ status: 2, stdout: '' });
    expect(await kg(['diag', 'backup', '--description', '--json', '--jsn', '--'])).toMatchObject({
      status: 2,
    });
    expect(await kg(['diag', 'backup', '--json', '--help'])).toMatchObject({
      status: 0,
      stdout: expect.stringContaining('Usage:'),
      stderr: '',
    });
  });
});

describe('a result that cannot be written', () => {
  const root = () => makeProject({ nodes: 20 }).root;
  const into = (file, args, cwd) => {
    const { status, stderr } = spawnSync(kgPath, args, {
      cwd,
      encoding: 'utf8',
      stdio: ['ignore', openSync(file, 'w'), 'pipe'],
    });
    return { status, stderr };
  };

  test('to a full device is an error for every command', () => {
    const project = root();
    const commands = [
      ['diag', 'backup', '--json'],
      ['diag', 'backup'],
      ['diag', 'backup', '--list', '--json'],
      ['diag', 'health'],
      ['diag', 'restore', '--file', 'latest', '--dry-run'],
      ['config', 'show', '--all'],
      ['serve', '--stop'],
      ['completions', 'bash'],
      ['--version'],
      ['diag', '--help'],
    ];
    for (const args of commands) {
      const { status, stderr } = into('/dev/full', args, project);
      expect({ args, status }).toEqual({ args, status: 4 });
      expect(stderr).toMatch(
        /Could not write the result to standard output: No space left on device \[KG_NO_SPACE\]/,
      );
    }
    // An error of the command itself keeps its exit status.
    expect(
      into('/dev/full', ['diag', 'restore', '--file', 'none', '--json'], project),
    ).toMatchObject({ status: 4 });
    expect(into('/dev/full', ['diag', 'backup', '--jsn', '--json'], project)).toMatchObject({
      status: 2,
    });
    expect(
      readdirSync(path.join(project, '.kg/backups')).filter((name) =>
        /^kg-backup-.*\.gz$/.test(name),
      ),
    ).toHaveLength(2);
  });

  test('to a reader that has ended is not an error', () => {
    const output = run(
      'bash',
      ['-c', `set -o pipefail; "${kgPath}" config show --all | head -1 > /dev/null; echo $?`],
      { cwd: root() },
    );
    expect(output).toBe('0\n');
  });
});

describe('messages about a lock holder', () => {
  /** Starts a Python process that holds a lock on a database until the test ends. */
  async function holding(database, statement) {
    const script = `import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute(sys.argv[2]); print('held', flush=True); sys.stdin.read()`;
    const child = spawn('python3', ['-c', script, database, statement], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    onTestFinished(() => child.kill('SIGKILL'));
    await once(child.stdout, 'data');
    return child.pid;
  }

  test.each([
    ['delete', 'BEGIN EXCLUSIVE', 'backup'],
    ['wal', 'BEGIN IMMEDIATE', 'restore'],
  ])(
    'a locked database in %s mode: the process is named',
    async (journalMode, statement, command) => {
      const { root, database, backups } = makeProject({ nodes: 20, journalMode });
      run(kgPath, ['diag', 'backup', '--output', backups], { cwd: root });
      const pid = await holding(database, statement);
      const args =
        command === 'backup'
          ? ['backup']
          : ['restore', '--file', path.join(backups, 'latest.tar.gz'), '--yes'];
      const { status, stderr } = await kg(['diag', ...args, '--lock-timeout', '0'], { cwd: root });
      expect({ status, stderr }).toEqual({
        status: 3,
        stderr: expect.stringMatching(
          new RegExp(`is locked by process ${pid} \\(python3\\).*\\[KG_DATABASE_BUSY\\]`),
        ),
      });
    },
  );

  test.skipIf(process.getuid() !== 0)(
    'a process in another container is described as such',
    async () => {
      const { root, database } = makeProject({ nodes: 20, journalMode: 'delete' });
      await holding(database, 'BEGIN EXCLUSIVE');
      const { status, stderr } = spawnSync(
        'unshare',
        ['--pid', '--fork', '--mount-proc', kgPath, 'diag', 'backup', '--lock-timeout', '0'],
        { cwd: root, encoding: 'utf8' },
      );
      expect({ status, stderr }).toEqual({
        status: 3,
        stderr: expect.stringMatching(
          /locked by a process that cannot be seen from here \(in another container/,
        ),
      });
    },
  );

  test('a store in use: the flag in the remedy shortens the wait of kg', async () => {
    const { root, backups } = makeProject({ nodes: 20 });
    run(kgPath, ['diag', 'backup', '--output', backups], { cwd: root });
    const holder = spawn('flock', [path.join(backups, '.kg-store.lock'), '-c', 'echo held; cat'], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    onTestFinished(() => holder.kill('SIGKILL'));
    await once(holder.stdout, 'data');
    const began = Date.now();
    for (const args of [
      ['backup'],
      ['prune', '--max-backups', '1'],
      [
        'backup',
        '--pin',
        readdirSync(backups)
          .find((name) => /\.gz$/.test(name))
          .replace(/^kg-(.*)\.tar\.gz$/, '$1'),
      ],
    ]) {
      const { status, stderr } = await kg(
        ['diag', ...args, '--output', backups, '--lock-timeout', '0s'],
        { cwd: root },
      );
      expect({ status, stderr }).toEqual({
        status: 4,
        stderr: expect.stringMatching(/KG_STORE_LOCKED\][^]*`--lock-timeout`/),
      });
    }
    expect(Date.now() - began).toBeLessThan(10_000);
    holder.stdin.end();
  });
});

test.skipIf(process.getuid() !== 0)(
  'a drill without space suggests only flags that a drill has',
  () => {
    const { root } = makeProject({ nodes: 400 });
    run(kgPath, ['diag', 'backup'], { cwd: root });
    for (const size of ['200k', '900k']) {
      const script = `mkdir ../small; mount -t tmpfs -o size=${size} none ../small; TMPDIR=$PWD/../small "${kgPath}" diag drill --json; mkdir ../large; mount -t tmpfs none ../large; TMPDIR=$PWD/../small "${kgPath}" diag drill --directory ../large`;
      const { stdout, stderr } = spawnSync(
        'unshare',
        ['-m', 'sh', '-c', `mount --make-rprivate /; ${script}`],
        { cwd: root, encoding: 'utf8' },
      );
      expect(stderr).toMatch(/\[KG_NO_SPACE\]\n.*`--directory`/);
      expect(stderr).not.toMatch(/--target|TMPDIR/);
      expect(stdout).toMatch(/Passed\n$/);
    }
  },
);

describe('flags and commands in messages', () => {
  const help = new Map();
  const read = (command) => {
    if (help.has(command)) return help.get(command);
    const { status, stdout } = spawnSync(
      kgPath,
      [...command.split(' ').filter(Boolean), '--help'],
      { encoding: 'utf8' },
    );
    help.set(command, status === 0 ? stdout : null);
    return help.get(command);
  };
  const flagsOf = (text) => new Set(text.match(/--[a-z][a-z-]+/g) ?? []);
  const commandsOf = (text) =>
    (text.split(/^Commands:\n/m)[1] ?? '')
      .split(/\n\n/)[0]
      .split('\n')
      .map((line) => line.match(/^ {2}([a-z-]+)/)?.[1])
      .filter((name) => name && name !== 'help');
  function everyFlag(command = '') {
    const text = read(command);
    const below = commandsOf(text).map((name) => [...everyFlag(`${command} ${name}`.trim())]);
    return new Set([...flagsOf(text), ...below.flat()]);
  }

  /** The string literals of the source, without tests and comments. */
  const literals = readdirSync(path.join(repository, 'src'), { recursive: true })
    .filter((name) => name.endsWith('.rs') && !/tests?(\.rs|\/)|_tests\.rs/.test(name))
    .flatMap((name) => {
      const source = readFileSync(path.join(repository, 'src', name), 'utf8').split(
        '#[cfg(test)]\nmod tests',
      )[0];
      const code = source.replace(/^\s*\/\/.*$/gm, '').replace(/\\\n\s*/g, '');
      return [...code.matchAll(/"((?:[^"\\]|\\.)*)"/g)].map(([, text]) => ({ name, text }));
    });

  test('exist', () => {
    const known = everyFlag();
    let seen = 0;
    for (const { name, text } of literals) {
      for (const [, quoted] of text.matchAll(/`([^`]+)`/g)) {
        const words = quoted.split(/\s+/);
        if (words[0] === 'kg' && words.length > 1) {
          let command = '';
          while (words.length > 1 && read(`${command} ${words[1]}`.trim()))
            command = `${command} ${words.splice(1, 1)}`.trim();
          const flags = flagsOf(read(command));
          expect(command, `${name}: ${quoted}`).not.toBe('');
          for (const flag of quoted.match(/(?<=\s)--[a-z-]+/g) ?? [])
            expect([...flags], `${name}: ${quoted}`).toContain(flag);
          seen += 1;
        } else if (/^--[a-z]/.test(quoted)) {
          expect([...known], `${name}: ${quoted}`).toContain(words[0].split('=')[0]);
          seen += 1;
        }
      }
    }
    expect(seen).toBeGreaterThan(40);
  });
});
