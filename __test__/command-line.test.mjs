// What the commands of `kg` have in common: docs/reference/command-line.md.

import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import readline from 'node:readline';

import { describe, expect, onTestFinished, test } from 'vitest';

import { resultOf } from './support/json-output.mjs';
import { kg, kgOnTerminal, kgPath, once, run } from './support/processes.mjs';
import { makeProject, temporaryDirectory } from './support/project.mjs';

/** Makes a project with backups, and functions that run `kg diag` in it. */
async function withBackups(count, options) {
  const project = makeProject({ nodes: 5 });
  const diag = (...args) => kg(['diag', ...args], { cwd: project.root, ...options });
  const ids = [];
  for (let n = 0; n < count; n += 1) {
    ids.push(resultOf((await diag('backup', '--json')).stdout).id);
  }
  return {
    ...project,
    diag,
    json: async (...args) => resultOf((await diag(...args, '--json')).stdout),
    ids,
  };
}

describe('the commands on existing backups', () => {
  test('do what the flags of the guide do', async () => {
    const { json, ids } = await withBackups(2);
    const [first] = ids;
    expect(await json('list')).toEqual(await json('backup', '--list'));
    const { durationMs: _, ...verified } = await json('verify', first);
    expect(await json('backup', '--verify', first)).toMatchObject(verified);
    expect((await json('status')).count).toBe((await json('backup', '--status')).count);
    expect((await json('pin', first, '--reason', 'audit')).pinned).toMatchObject({
      reason: 'audit',
    });
    expect((await json('unpin', first)).pinned).toBeUndefined();
    const incremental = await json('backup', '--type', 'incremental');
    expect(await json('consolidate', incremental.id)).toMatchObject({ type: 'full' });
    expect(await json('delete', incremental.id)).toEqual({ deleted: [incremental.id] });
    expect(await json('delete', first, '--cascade')).toEqual({ deleted: [first] });
  });

  test('without `diag` get a hint', async () => {
    for (const words of [['backup', '--output', 'b'], ['restore', '--file', 'latest'], ['list']]) {
      const { status, stderr } = await kg(words);
      expect([status, stderr]).toEqual([
        2,
        expect.stringContaining(`run \`kg diag ${words.join(' ')}\``),
      ]);
    }
  });

  test('of a missing directory fail, except for a project without backups', async () => {
    const { root, diag } = await withBackups(0);
    expect((await diag('list')).status).toBe(0);
    const missing = path.join(root, 'not-mounted');
    for (const list of [['list'], ['backup', '--list']]) {
      expect(await diag(...list, '--backup-dir', missing)).toMatchObject({
        status: 4,
        stdout: '',
        stderr: expect.stringContaining(`${missing} does not exist [KG_NO_BACKUPS]`),
      });
    }
    const outside = temporaryDirectory();
    expect((await kg(['diag', 'list'], { cwd: outside })).status).toBe(4);
    expect(readdirSync(outside)).toEqual([]);
  });
});

describe('a backup is named', () => {
  test('by the beginning of its id, with or without the prefix', async () => {
    const { json, ids, root } = await withBackups(1);
    const [id] = ids;
    for (const name of [id, id.slice(0, -2), id.slice('backup-'.length, -4)]) {
      expect((await json('verify', name)).path, name).toContain(`kg-${id}.tar.gz`);
      expect((await json('pin', name)).id, name).toBe(id);
      expect((await json('unpin', name)).id, name).toBe(id);
    }
    const short = id.slice('backup-'.length, -2);
    expect((await json('restore', '--file', short, '--target', path.join(root, 'copy'))).id).toBe(
      id,
    );
    expect((await json('drill', '--file', short)).id).toBe(id);
    const based = await json('backup', '--type', 'incremental', '--base-backup', short);
    expect(based.basedOn).toBe(id);
    const copied = await json('backup', '--copy-to', path.join(root, 'b2'), '--copy', id);
    expect(copied.copied.map((one) => one.id)).toEqual([id]);
  });

  test('and a whole id is no beginning of another one of the same second', async () => {
    const { json, diag, root } = await withBackups(1);
    writeFileSync(path.join(root, '.kg/plugins/more.json'), '{}');
    const { id } = await json('backup', '--type', 'incremental');
    // Another backup of the second of the first one, or of the second one.
    const [, stamp, number] = (await json('consolidate', id)).id.match(/^backup-(.*)-(\d)$/);
    for (const whole of [stamp, `${stamp}-${number}`])
      expect((await json('pin', whole)).id).toBe(`backup-${whole}`);
    expect((await diag('verify', stamp.slice(0, -1))).stderr).toContain('KG_AMBIGUOUS');
  });

  test('and an ambiguous beginning changes nothing', async () => {
    const { diag, ids } = await withBackups(3);
    const { status, stderr } = await diag('delete', ids[0].slice(0, 12));
    expect([status, stderr]).toEqual([4, expect.stringContaining('KG_AMBIGUOUS')]);
    for (const id of ids) expect(stderr).toContain(id);
    expect(resultOf((await diag('list', '--json')).stdout).backups).toHaveLength(3);
    expect((await diag('delete', '202')).status).toBe(4);
  });

  test('as latest, or by its path, also for an action', async () => {
    const { json, diag, ids, root } = await withBackups(2);
    expect((await json('pin', 'latest')).id).toBe(ids[1]);
    const store = path.join(root, '.kg/backups');
    const archive = path.join(store, `kg-${ids[0]}.tar.gz`);
    expect((await json('pin', archive)).id).toBe(ids[0]);
    const other = path.join(root, 'other');
    await diag('backup', '--copy-to', other);
    const elsewhere = path.join(other, `kg-${ids[0]}.tar.gz`);
    expect(await diag('unpin', elsewhere)).toMatchObject({
      status: 4,
      stderr: expect.stringContaining(`${elsewhere} is not in ${store}`),
    });
  });
});

describe('environment variables', () => {
  test('name the project and the store, and flags have precedence', async () => {
    const { root, backups } = makeProject({ nodes: 5 });
    const cwd = temporaryDirectory();
    const env = { ...process.env, KG_PROJECT: root, KG_BACKUP_DIR: backups };
    const made = resultOf((await kg(['diag', 'backup', '--json'], { cwd, env })).stdout);
    expect(path.dirname(made.path)).toBe(backups);
    expect((await kg(['diag', 'verify'], { cwd, env })).status).toBe(0);
    const other = path.join(root, 'other');
    await kg(['diag', 'backup', '--backup-dir', other], { cwd, env });
    expect(readdirSync(other)).toContain('latest.tar.gz');
    expect(
      await kg(['diag', 'list', '--project', cwd, '--backup-dir', other], { cwd, env }),
    ).toMatchObject({ status: 0 });
    const empty = { ...env, KG_BACKUP_DIR: '' };
    expect((await kg(['diag', 'list'], { cwd, env: empty })).stdout).toContain(
      'contains no backup',
    );
  });

  test('that name no project are named in the error', async () => {
    const cwd = temporaryDirectory();
    const env = { ...process.env, KG_PROJECT: path.join(cwd, 'gone') };
    expect(await kg(['diag', 'backup'], { cwd, env })).toMatchObject({
      status: 2,
      stderr: expect.stringMatching(/gone is not a knowledge-graph project[^]*Unset \$KG_PROJECT/),
    });
  });
});

describe('--json prints one object', () => {
  test('for a result, an error, wrong arguments, and both', async () => {
    const { root, diag, ids } = await withBackups(1);
    const object = async (...args) => JSON.parse((await diag(...args, '--json')).stdout);
    expect(await object('list')).toEqual({
      version: 1,
      command: 'diag list',
      exitStatus: 0,
      result: { backups: [expect.objectContaining({ id: ids[0] })], unlisted: [] },
      warnings: [],
    });
    expect(await object('verify', 'backup-20200101-000000')).toMatchObject({
      command: 'diag verify',
      exitStatus: 4,
      error: { code: 'KG_BACKUP_NOT_FOUND' },
    });
    expect(await object('prune', '--max-backups', '0')).toMatchObject({
      command: 'diag prune',
      exitStatus: 2,
      error: { code: 'KG_INVALID_OPTION' },
    });
    writeFileSync(path.join(root, '.kg/config.json'), '{"backup":{"retentionDays":"soon"}}');
    expect(await object('list')).toMatchObject({
      exitStatus: 0,
      warnings: [{ code: 'KG_WARN_CONFIG' }],
    });
    expect(JSON.parse((await kg(['version', '--json'])).stdout)).toMatchObject({
      result: { archiveFormat: 2, jsonOutput: 1, executable: kgPath },
    });
  });

  test('a line with --watch', async () => {
    const { root } = await withBackups(0);
    const watch = spawn(kgPath, ['diag', 'health', '--watch', '--interval', '1', '--json'], {
      cwd: root,
    });
    onTestFinished(() => watch.kill('SIGKILL'));
    const lines = readline.createInterface({ input: watch.stdout });
    const [first] = await once(lines, 'line');
    const [second] = await once(lines, 'line');
    expect([first, second].map((line) => JSON.parse(line))).toMatchObject([
      { version: 1, command: 'diag health', result: { checked: {} } },
      { version: 1, command: 'diag health', result: { checked: {} } },
    ]);
  });
});

describe('what does not exist', () => {
  test.each([
    ['list', []],
    ['status', []],
    ['prune', ['--max-backups', '1']],
    ['backup', ['--copy-to', 'copies']],
  ])('is an error of %s and creates nothing', async (command, args) => {
    const { root } = makeProject({ nodes: 5 });
    const result = await kg(['diag', command, ...args, '--backup-dir', 'typo'], { cwd: root });
    expect(result).toMatchObject({
      status: 4,
      stderr: expect.stringMatching(/typo does not exist \[KG_NO_BACKUPS\]/),
    });
    for (const name of ['typo', 'copies']) expect(existsSync(path.join(root, name))).toBe(false);
  });

  test('cannot be copied from: an empty store is no success', async () => {
    const { root } = makeProject({ nodes: 5 });
    mkdirSync(path.join(root, 'empty'));
    const args = ['diag', 'backup', '--backup-dir', 'empty', '--copy-to', 'copies'];
    expect(await kg(args, { cwd: root })).toMatchObject({
      status: 4,
      stderr: expect.stringContaining('empty contains no backup [KG_NO_BACKUPS]'),
    });
  });

  test('as a project is an error of the status', async () => {
    const env = { ...process.env, KG_PROJECT: '/nowhere' };
    expect((await kg(['diag', 'status'], { cwd: temporaryDirectory(), env })).stderr).toContain(
      'KG_NO_PROJECT',
    );
  });

  test('as a file, but as a directory of backups, is told apart', async () => {
    const { diag } = await withBackups(1);
    expect((await diag('verify', '.kg/backups')).stderr).toMatch(
      /\.kg\/backups is a directory, not a backup.*--backup-dir/s,
    );
  });
});

test('numbers out of range are explained in plain words', async () => {
  const { root } = makeProject({ nodes: 5 });
  const refused = async (...args) => (await kg(['diag', ...args], { cwd: root })).stderr;
  for (const value of ['0', 'x', '-1', '99999999999'])
    expect(await refused('prune', `--max-backups=${value}`)).toContain(
      'it must be a whole number, 1 or more',
    );
  for (const value of ['0', 'x', '10'])
    expect(await refused('backup', '--level', value)).toContain('a whole number from 1 to 9');
  expect(await refused('backup', '--exclude', '[')).toContain('`[` in `--exclude` is not');
});

describe('confirmations', () => {
  test('the command that undoes a restore is printed even if the restore replaced nothing', async () => {
    const { diag, root } = await withBackups(1, {
      env: { ...process.env, KG_CONFIRM: 'always' },
    });
    const database = path.join(root, '.kg/knowledge.db');
    rmSync(database);
    const { stdout } = await diag('restore', '--file', 'latest', '--db-only', '--yes');
    const [, command] = stdout.match(/To undo this: kg (diag restore --undo --yes .*)\n$/);
    const env = { ...process.env, KG_CONFIRM: 'always' };
    expect((await kg(command.split(' '), { cwd: root, env })).status).toBe(0);
    expect(existsSync(database)).toBe(false);
  });

  test('the last line of a restore is the command that undoes it', async () => {
    const base = temporaryDirectory();
    const root = path.join(base, "Ann's project");
    mkdirSync(base, { recursive: true });
    const made = makeProject({ nodes: 5 });
    execFileSync('cp', ['-a', made.root, root]);
    await kg(['diag', 'backup'], { cwd: root });
    const config = path.join(root, '.kg/config.json');
    writeFileSync(config, '{"theme":"light"}\n');
    const { status, stdout } = await kg(['diag', 'restore', '--file', 'latest'], { cwd: root });
    expect(status).toBe(0);
    const last = stdout.trim().split('\n').at(-1);
    const [, command] = last.match(/^To undo this: kg (diag restore --undo .*)$/);
    expect(readFileSync(config, 'utf8')).toContain('dark');
    run('sh', ['-c', `"${kgPath}" ${command}`], { cwd: base });
    expect(readFileSync(config, 'utf8')).toBe('{"theme":"light"}\n');
  });

  test.each([
    ['delete', 'latest', /Delete backup-\S+ in .* for good\? \[y\/N\]/],
    ['prune', '--max-backups=1', /Remove the backups in .* that no rule keeps\? \[y\/N\]/],
  ])(
    'are asked for by %s on a terminal, and "no" removes nothing',
    async (verb, what, question) => {
      const { json, root } = await withBackups(3);
      const count = async () => (await json('list')).backups.length;
      const answer = (text, ...more) => kgOnTerminal(['diag', verb, what, ...more], root, text);
      expect(() => answer('n\n')).toThrow(
        expect.objectContaining({ status: 1, stdout: expect.stringContaining('KG_NOT_CONFIRMED') }),
      );
      expect(await count()).toBe(3);
      expect(answer('y\n')).toMatch(question);
      const left = await count();
      expect(left).toBeLessThan(3);
      expect(answer('', '--yes')).not.toContain('[y/N]');
    },
  );

  test('are required without a terminal if KG_CONFIRM is always', async () => {
    const env = { ...process.env, KG_CONFIRM: 'always' };
    const { diag, ids, root } = await withBackups(2, { env });
    const [id] = ids;
    for (const args of [
      ['restore', '--file', 'latest'],
      ['restore', '--file', 'latest', '--overwrite'],
      ['restore', '--undo'],
      ['delete', id],
      ['backup', '--delete', id],
      ['prune', '--max-backups', '1'],
    ]) {
      expect(await diag(...args), args.join(' ')).toMatchObject({
        status: 1,
        stderr: expect.stringMatching(/KG_NOT_CONFIRMED[^]*`--yes`/),
      });
    }
    expect(existsSync(path.join(root, '.kg/restore-undo'))).toBe(false);
    expect(resultOf((await diag('list', '--json')).stdout).backups).toHaveLength(2);
    for (const args of [
      ['prune', '--max-backups', '1', '--dry-run'],
      ['restore', '--file', 'latest', '--dry-run'],
      ['restore', '--file', 'latest', '--yes'],
      ['delete', id, '--yes'],
    ]) {
      expect((await diag(...args)).status, args.join(' ')).toBe(0);
    }
  });

  test('reject other values of KG_CONFIRM', async () => {
    const { diag } = await withBackups(1, { env: { ...process.env, KG_CONFIRM: 'allways' } });
    expect(await diag('delete', 'latest')).toMatchObject({
      status: 2,
      stderr: expect.stringContaining('KG_CONFIRM is allways'),
    });
  });
});

test('a list fits the terminal', async () => {
  const { root, diag } = await withBackups(0);
  await diag('backup', '--description', 'a long text '.repeat(20));
  for (const columns of [60, 80, 132]) {
    // `script` gives the command a terminal.
    const printed = execFileSync(
      'script',
      ['-qec', `stty rows 24 cols ${columns}; ${kgPath} diag list`, '/dev/null'],
      { cwd: root, encoding: 'utf8' },
    );
    const lines = printed.trim().split(/\r?\n/);
    expect(lines).toHaveLength(2);
    for (const line of lines) expect(line.length, line).toBeLessThanOrEqual(columns);
    expect(lines[1]).toMatch(/…$/);
  }
});
