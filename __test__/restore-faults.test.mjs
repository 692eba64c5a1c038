// Restores into difficult places: unlucky names of user files, edited journals, restrictive modes
// and unusual links. Each test reproduces a former bug.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import Database from 'better-sqlite3';
import { describe, expect, onTestFinished, test } from 'vitest';

import { kg, kgPath, run } from './support/processes.mjs';
import {
  contents,
  integrityOf,
  makeProject,
  temporaryDirectory,
  withDatabase,
} from './support/project.mjs';

async function setUp(prepare = () => {}) {
  const project = makeProject();
  const at = (...parts) => path.join(project.root, '.kg', ...parts);
  prepare(at);
  const manager = createBackupManager({ projectRoot: project.root, backupDir: project.backups });
  const backup = await manager.createBackup();
  return { ...project, manager, backup, at };
}

const isRoot = process.getuid() === 0;
/** Runs `kg` as a user who only owns the project. */
function asUser(root, args) {
  const base = path.dirname(root);
  run('chown', ['-R', '65534:65534', base]);
  return kg(args, { cwd: root, uid: 65534, gid: 65534 });
}

test.runIf(isRoot)(
  'a file and a database that are read-only are restored by their owner',
  async () => {
    const { root, backup, database } = await setUp((at) => {
      writeFileSync(at('fixed'), 'x', { mode: 0o444 });
      mkdirSync(at('closed'));
      writeFileSync(at('closed/file'), 'x');
      chmodSync(at('closed'), 0o555);
    });
    chmodSync(database, 0o444);
    const target = path.join(path.dirname(root), 'target');
    const done = await asUser(root, [
      'diag',
      'restore',
      '--file',
      backup.path,
      '--target',
      target,
      '--json',
    ]);
    expect([done.status, done.stderr]).toEqual([0, '']);
    expect(statSync(path.join(target, '.kg/fixed')).mode & 0o777).toBe(0o444);
    expect(statSync(path.join(target, '.kg/closed')).mode & 0o777).toBe(0o555);

    // Repeats this in the project, with a writable and a read-only database.
    for (const mode of [0o644, 0o444]) {
      chmodSync(database, mode);
      const back = await asUser(root, [
        'diag',
        'restore',
        '--file',
        backup.path,
        '--db-only',
        '--json',
      ]);
      expect([back.status, back.stderr]).toEqual([0, '']);
      const undone = await asUser(root, ['diag', 'restore', '--undo', '--json']);
      expect([undone.status, undone.stderr]).toEqual([0, '']);
      expect(integrityOf(database)).toBe('ok');
    }
  },
);

test.runIf(isRoot)('a restore by root can be undone by the owner of the project', async () => {
  const { root, manager, at } = await setUp();
  run('chown', ['-R', '65534:65534', path.dirname(root)]);
  writeFileSync(at('config.json'), '{"theme":"light"}');
  await manager.restore({ backupId: 'latest', overwrite: true });
  const done = await kg(['diag', 'restore', '--undo', '--json'], {
    cwd: root,
    uid: 65534,
    gid: 65534,
  });
  expect([done.status, done.stderr]).toEqual([0, '']);
  expect(readFileSync(at('config.json'), 'utf8')).toContain('light');
});

test('times before 1970 are restored', async () => {
  const { manager, backup } = await setUp((at) => {
    mkdirSync(at('old'));
    writeFileSync(at('old/file'), 'x');
    for (const place of ['old/file', 'old'])
      run('touch', ['-d', '1969-12-31 23:59:58.5 UTC', at(place)]);
  });
  const target = path.join(temporaryDirectory(), 'target');
  await manager.restore({ backupPath: backup.path, targetDir: target });
  expect(statSync(path.join(target, '.kg/old/file')).mtimeMs).toBe(-1500);
  expect(statSync(path.join(target, '.kg/old')).mtimeMs).toBe(-1500);
});

test('a user file with a name that the tool might use survives a restore and its undo', async () => {
  const names = [
    'knowledge.db-before',
    'knowledge.db-interrupted',
    'config.json.kg-partial',
    'restore-staging-plan.md',
  ];
  const { root, manager, at } = await setUp((place) =>
    names.forEach((name) => writeFileSync(place(name), 'then')),
  );
  names.forEach((name) => writeFileSync(at(name), 'now'));
  const before = contents(root);
  await manager.restore({ backupId: 'latest', overwrite: true });
  expect(names.map((name) => readFileSync(at(name), 'utf8'))).toEqual([
    'then',
    'then',
    'then',
    'then',
  ]);
  await manager.undoRestore();
  expect(contents(root)).toEqual(before);
});

test('the WAL of a missing database is not saved, and is never placed next to another database', async () => {
  const { manager, root, backup, at } = await setUp((place) => {
    const db = new Database(place('plugins/data.db'));
    db.exec('PRAGMA journal_mode = wal; CREATE TABLE old (a); INSERT INTO old VALUES (1)');
    run('cp', [place('plugins/data.db-wal'), place('plugins/kept-wal')]);
    db.close();
    rmSync(place('plugins/data.db'));
    renameSync(place('plugins/kept-wal'), place('plugins/data.db-wal'));
  });
  expect(backup.warnings.map(({ code, path: about }) => [code, about])).toEqual([
    ['KG_WARN_FILE_UNREADABLE', '.kg/plugins/data.db-wal'],
  ]);
  rmSync(at('plugins/data.db-wal'));
  writeFileSync(at('plugins/notes-wal'), 'no WAL at all');
  const second = await manager.createBackup();
  expect(second.warnings).toEqual([]);
  withDatabase(at('plugins/notes'), (db) =>
    db.exec('CREATE TABLE notes (a); INSERT INTO notes VALUES (7)'),
  );
  rmSync(at('plugins/notes-wal'), { force: true });
  const before = contents(root);
  await expect(manager.restore({ backupId: second.id, overwrite: true })).rejects.toMatchObject({
    code: 'KG_TARGET_INVALID',
  });
  expect(contents(root)).toEqual(before);
});

test('a refused restore leaves the WAL of a damaged database in place', async () => {
  const { manager, at } = await setUp((place) => {
    const db = new Database(place('plugins/data.db'));
    db.exec('PRAGMA journal_mode = wal; CREATE TABLE t (a)');
    db.close();
  });
  writeFileSync(at('plugins/data.db'), 'x'.repeat(8192));
  writeFileSync(at('plugins/data.db-wal'), 'y'.repeat(41_000));
  rmSync(at('config.json'));
  mkdirSync(at('config.json'));
  await expect(manager.restore({ backupId: 'latest', overwrite: true })).rejects.toMatchObject({
    code: 'KG_TARGET_INVALID',
  });
  expect(readFileSync(at('plugins/data.db-wal'), 'utf8')).toBe('y'.repeat(41_000));
  rmSync(at('config.json'), { recursive: true });
  await manager.restore({ backupId: 'latest', overwrite: true });
  await manager.undoRestore();
  expect(readFileSync(at('plugins/data.db'), 'utf8')).toBe('x'.repeat(8192));
  expect(readFileSync(at('plugins/data.db-wal'), 'utf8')).toBe('y'.repeat(41_000));
});

test('an undo does not remove a database that a process has open', async () => {
  const { manager, at } = await setUp((place) =>
    withDatabase(place('plugins/data.db'), (db) =>
      db.exec('PRAGMA journal_mode = wal; CREATE TABLE t (a)'),
    ),
  );
  rmSync(at('plugins/data.db'));
  await manager.restore({ backupId: 'latest', overwrite: true });
  const db = new Database(at('plugins/data.db'));
  onTestFinished(() => db.close());
  db.exec('INSERT INTO t VALUES (1)');
  await expect(manager.undoRestore()).rejects.toMatchObject({ code: 'KG_DATABASE_IN_USE' });
  db.exec('INSERT INTO t VALUES (2)');
  expect(run('sqlite3', [at('plugins/data.db'), 'SELECT count(*) FROM t'])).toBe('2\n');
});

test('empty directories and their modes return when an undo is undone', async () => {
  const { root, manager, at } = await setUp((place) => {
    mkdirSync(place('plugins/empty'), { mode: 0o700 });
    utimesSync(place('plugins/empty'), 1, 1);
  });
  rmSync(at('plugins'), { recursive: true });
  await manager.restore({ backupId: 'latest', overwrite: true });
  const restored = contents(root);
  await manager.undoRestore();
  expect(existsSync(at('plugins'))).toBe(false);
  await manager.undoRestore();
  expect(contents(root)).toEqual(restored);
  expect([
    statSync(at('plugins/empty')).mode & 0o777,
    statSync(at('plugins/empty')).mtimeMs,
  ]).toEqual([0o700, 1000]);
});

test('an undo whose kept file is missing reports what to do, and changes nothing', async () => {
  const { root, manager, at } = await setUp();
  writeFileSync(at('config.json'), '{"theme":"light"}');
  const { safetyCopy } = await manager.restore({ backupId: 'latest', overwrite: true });
  rmSync(path.join(safetyCopy, '.kg/plugins/glossary/terms.json'));
  const before = contents(root);
  await expect(manager.undoRestore()).rejects.toMatchObject({
    code: 'KG_NOTHING_TO_UNDO',
    remedy: expect.stringContaining('restore-undo'),
  });
  expect(contents(root)).toEqual(before);
});

test('logs, tmp and cache may be links, and only entries of the tool in restore-undo are removed', async () => {
  const elsewhere = temporaryDirectory();
  const { manager, backup, at } = await setUp((place) => {
    for (const name of ['logs', 'tmp', 'cache']) symlinkSync(elsewhere, place(name));
    mkdirSync(place('restore-undo-notes'));
    writeFileSync(place('restore-undo-notes/file'), 'x');
    mkdirSync(place('restore-undo/99990101-000000~'), { recursive: true });
    writeFileSync(place('restore-undo/20200101-000000'), 'a file, and long ago');
  });
  expect(backup.warnings).toEqual([]);
  const target = path.join(temporaryDirectory(), 'target');
  await manager.restore({ backupPath: backup.path, targetDir: target });
  expect(readFileSync(path.join(target, '.kg/restore-undo-notes/file'), 'utf8')).toBe('x');
  await manager.restore({ backupId: 'latest', overwrite: true });
  await manager.undoRestore();
  expect(existsSync(at('restore-undo/20200101-000000'))).toBe(true);
});

describe('a killed restore', () => {
  const journal = (at) => at('restore-journal.json');

  /** Kills restores until one leaves its journal. */
  async function interruptRestore({ root, backup, at }, spoil) {
    for (let n = 0; n < 500; n += 1) {
      spoil();
      const child = spawn(kgPath, ['diag', 'restore', '--quiet', '--file', backup.path], {
        cwd: root,
        stdio: 'ignore',
      });
      const exited = once(child, 'exit');
      while (child.exitCode === null && !existsSync(journal(at)))
        await new Promise((resolve) => setImmediate(resolve));
      child.kill('SIGKILL');
      await exited;
      if (existsSync(journal(at))) return JSON.parse(readFileSync(journal(at), 'utf8'));
      await kg(
        [
          'diag',
          'backup',
          '--type',
          'snapshot',
          '--quiet',
          '--output',
          path.join(root, '../other'),
        ],
        { cwd: root },
      );
    }
    throw new Error('no restore was interrupted');
  }

  test('whose staging directory was removed by hand loses no file', async () => {
    const project = await setUp();
    const { at, manager } = project;
    const spoil = () => {
      writeFileSync(at('config.json'), '{"theme":"light"}');
      writeFileSync(at('plugins/glossary/terms.json'), 'mine');
    };
    await interruptRestore(project, spoil);
    for (const name of readdirSync(at()).filter((name) => name.startsWith('restore-staging-')))
      rmSync(at(name), { recursive: true });
    const { warnings } = await manager.createBackup({ type: 'snapshot' });
    expect(warnings.map(({ code }) => code)).toContain('KG_WARN_RECOVERED');
    const found = ['config.json', 'plugins/glossary/terms.json'].map((name) =>
      readFileSync(at(name), 'utf8'),
    );
    const old = ['{"theme":"light"}', 'mine'];
    expect(found[0] === old[0] || found[0].includes('dark')).toBe(true);
    expect(found[1] === old[1] || found[1].includes('graph')).toBe(true);
    expect(existsSync(at('vectors/a.f32'))).toBe(true);
    expect(existsSync(journal(at))).toBe(false);
  });

  test('with an unreadable journal names that file', async () => {
    const { manager, at } = await setUp();
    writeFileSync(journal(at), 'not a journal');
    await expect(manager.createBackup()).rejects.toMatchObject({
      code: 'KG_TARGET_INVALID',
      message: expect.stringContaining('restore-journal.json'),
    });
  });
});
