// An undo puts back the files that a restore replaced, also in a live database. It is complete or
// has no effect, and can be undone.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import Database from 'better-sqlite3';
import { describe, expect, onTestFinished, test } from 'vitest';

import { kg, run, startWriter } from './support/processes.mjs';
import {
  contents,
  integrityOf,
  makeProject,
  temporaryDirectory,
  withDatabase,
} from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

async function setUp(options, config) {
  const project = makeProject(options);
  const manager = createBackupManager({
    projectRoot: project.root,
    backupDir: project.backups,
    ...config,
  });
  const backup = await manager.createBackup();
  return {
    ...project,
    manager,
    backup,
    at: (...parts) => path.join(project.root, '.kg', ...parts),
  };
}

const titles = (file) =>
  withDatabase(file, (db) => db.prepare('SELECT count(*), max(title) FROM nodes').raw().get());

for (const journalMode of ['wal', 'delete']) {
  describe(`in ${journalMode} mode`, () => {
    test('a connection that stays open sees first the restored content and then the old one', async () => {
      const { manager, database, backup, at } = await setUp({ journalMode, nodes: 500 });
      const db = new Database(database);
      onTestFinished(() => db.close());
      db.exec("DELETE FROM nodes WHERE id <> 'n7'; UPDATE nodes SET title = 'only this one'");
      writeFileSync(at('config.json'), '{"theme":"light"}');
      writeFileSync(at('notes.txt'), 'not in the backup');
      rmSync(at('plugins/glossary'), { recursive: true });
      const count = () => db.prepare('SELECT count(*) FROM nodes').pluck().get();

      const restored = await manager.restore({ backupId: backup.id, overwrite: true });
      expect(count()).toBe(500);
      const undone = await manager.undoRestore();
      expect(undone).toMatchObject({
        id: backup.id,
        dryRun: false,
        filesRestored: 3,
        filesRemoved: 1,
        warnings: [],
      });
      expect(Date.now() - undone.restoredAt).toBeLessThan(60_000);
      expect(count()).toBe(1);
      expect(readFileSync(at('config.json'), 'utf8')).toBe('{"theme":"light"}');
      expect(readFileSync(at('notes.txt'), 'utf8')).toBe('not in the backup');
      expect(existsSync(at('plugins/glossary')), 'a directory that the restore made').toBe(false);
      expect(existsSync(restored.safetyCopy), 'what was put back is not kept twice').toBe(false);
      db.exec("INSERT INTO metadata VALUES ('after', 'the undo')");
      expect(run('sqlite3', [database, 'SELECT value FROM metadata'])).toBe('the undo\n');
      expect(db.pragma('integrity_check', { simple: true })).toBe('ok');
    });

    test('a process that writes all the time continues through a restore and its undo', async () => {
      const { manager, database } = await setUp({ journalMode, nodes: 500 });
      const writer = await startWriter(database);
      await manager.restore({ backupId: 'latest', overwrite: true });
      await manager.undoRestore();
      await writer.stop();
      const { nodes, counter } = withDatabase(database, (db) => ({
        nodes: db.prepare("SELECT count(*) FROM nodes WHERE id LIKE 'w%'").pluck().get(),
        counter: Number(
          db.prepare("SELECT value FROM metadata WHERE key = 'written'").pluck().get() ?? 0,
        ),
      }));
      expect(nodes).toBe(counter);
      expect(integrityOf(database)).toBe('ok');
    });
  });
}

test('several restores can be undone in turn, back to the state before the first', async () => {
  const { manager, root, backup, at } = await setUp();
  writeFileSync(at('config.json'), '{"theme":"second"}');
  const second = await manager.createBackup();
  writeFileSync(at('config.json'), '{"theme":"live"}');
  writeFileSync(at('live.txt'), 'in no backup');
  const live = contents(root);
  for (const { id } of [backup, second]) await manager.restore({ backupId: id, overwrite: true });
  expect(readFileSync(at('config.json'), 'utf8')).toContain('second');
  await manager.undoRestore();
  expect(readFileSync(at('config.json'), 'utf8')).toContain('dark');
  // The undo consumed the newest record and left one for its own undo, so `earlier` names the
  // restore before.
  expect((await manager.undoRestore({ earlier: true, dryRun: true })).id).toBe(backup.id);
  const further = await kg(['diag', 'restore', '--undo', '--earlier'], { cwd: root });
  expect(further).toMatchObject({
    status: 0,
    stdout: expect.stringContaining(`restore of ${backup.id}`),
  });
  expect(contents(root)).toEqual(live);
  await expect(manager.undoRestore({ earlier: true })).rejects.toMatchObject({
    code: 'KG_NOTHING_TO_UNDO',
  });
  // An undo of an undo is a restore again.
  for (const expected of ['dark', 'live']) {
    await manager.undoRestore();
    expect(readFileSync(at('config.json'), 'utf8')).toContain(expected);
  }
  for (const expected of ['dark']) {
    await manager.undoRestore();
    expect(readFileSync(at('config.json'), 'utf8')).toContain(expected);
  }
  await manager.undoRestore({ earlier: true });
  expect(contents(root)).toEqual(live);
});

test('an undo of an undo brings the restored state back, any number of times', async () => {
  const { manager, root, database, at } = await setUp();
  withDatabase(database, (db) => db.exec('DELETE FROM edges'));
  writeFileSync(at('config.json'), '{"theme":"light"}');
  rmSync(at('plugins'), { recursive: true });
  const before = contents(root);
  await manager.restore({ backupId: 'latest', overwrite: true });
  const restored = contents(root);
  expect(restored).not.toEqual(before);
  for (const expected of [before, restored, before, restored]) {
    await manager.undoRestore();
    expect(contents(root)).toEqual(expected);
    expect(readdirSync(at('restore-undo'))).toHaveLength(1);
  }
});

test('restores are undone newest first', async () => {
  const { manager, at } = await setUp();
  for (const theme of ['a', 'b', 'c']) {
    writeFileSync(at('config.json'), JSON.stringify({ theme }));
    await manager.restore({ backupId: 'latest', overwrite: true, only: ['config'] });
  }
  const seen = [];
  const undone = new Set();
  for (let n = 0; n < 3; n += 1) {
    const { safetyCopy } = await manager.undoRestore();
    undone.add(safetyCopy);
    seen.push(JSON.parse(readFileSync(at('config.json'), 'utf8')).theme);
    rmSync(safetyCopy, { recursive: true });
  }
  expect(seen).toEqual(['c', 'b', 'a']);
  await expect(manager.undoRestore()).rejects.toMatchObject({ code: 'KG_NOTHING_TO_UNDO' });
});

test('a damaged database comes back in its damaged state, with its WAL', async () => {
  const { manager, database, at } = await setUp();
  writeFileSync(database, 'noise');
  writeFileSync(`${database}-wal`, 'noise of a WAL');
  await manager.restore({ backupId: 'latest', overwrite: true });
  expect(integrityOf(database)).toBe('ok');
  await manager.undoRestore();
  expect(readFileSync(database, 'utf8')).toBe('noise');
  expect(readFileSync(`${database}-wal`, 'utf8')).toBe('noise of a WAL');
  await manager.undoRestore();
  expect(integrityOf(database)).toBe('ok');
  expect(existsSync(`${database}-wal`)).toBe(false);
  expect(existsSync(at('restore-journal.json'))).toBe(false);
});

test('files that a restore only added are removed, and kept in the safety copy', async () => {
  const { manager, at } = await setUp();
  rmSync(at('plugins'), { recursive: true });
  const restored = await manager.restore({ backupId: 'latest', paths: ['plugins/**'] });
  expect(restored).toMatchObject({ filesRestored: 1, filesReplaced: 0 });
  expect(existsSync(at('plugins/glossary/terms.json'))).toBe(true);
  const { filesRemoved, safetyCopy } = await manager.undoRestore();
  expect(filesRemoved).toBe(1);
  expect(existsSync(at('plugins'))).toBe(false);
  expect(existsSync(path.join(safetyCopy, '.kg/plugins/glossary/terms.json'))).toBe(true);
});

test('a database outside the project is put back in its place', async () => {
  const { root, backups, database } = makeProject();
  const outside = path.join(temporaryDirectory(), 'graph.db');
  renameSync(database, outside);
  writeFileSync(
    path.join(root, '.kg/config.json'),
    JSON.stringify({ database: { path: outside } }),
  );
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  await manager.createBackup();
  withDatabase(outside, (db) => db.exec('DELETE FROM edges'));
  await manager.restore({ backupId: 'latest', overwrite: true });
  const edges = () =>
    withDatabase(outside, (db) => db.prepare('SELECT count(*) FROM edges').pluck().get());
  expect(edges()).toBe(199);
  await manager.undoRestore();
  expect(edges()).toBe(0);
  writeFileSync(outside, 'noise');
  await manager.restore({ backupId: 'latest', overwrite: true });
  expect(edges()).toBe(199);
  await manager.undoRestore();
  expect(readFileSync(outside, 'utf8')).toBe('noise');
});

// A file on another file system cannot be renamed into the project.
test.runIf(
  statSync('/dev/shm', { throwIfNoEntry: false }) &&
    statSync('/dev/shm').dev !== statSync(os.tmpdir()).dev,
)('a database on another file system is replaced, kept and put back', async () => {
  const { root, backups, database } = makeProject();
  const elsewhere = mkdtempSync('/dev/shm/kg-test-');
  onTestFinished(() => rmSync(elsewhere, { recursive: true }));
  const outside = path.join(elsewhere, 'graph.db');
  copyFileSync(database, outside);
  for (const suffix of ['', '-wal', '-shm']) rmSync(database + suffix, { force: true });
  writeFileSync(
    path.join(root, '.kg/config.json'),
    JSON.stringify({ database: { path: outside } }),
  );
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  await manager.createBackup();
  for (const [state, expected] of [
    ['noise', 'noise'],
    [null, null],
  ]) {
    for (const suffix of ['', '-wal', '-shm']) rmSync(outside + suffix, { force: true });
    if (state) writeFileSync(outside, state);
    const { safetyCopy } = await manager.restore({ backupId: 'latest', overwrite: true });
    expect(titles(outside)[0]).toBe(200);
    if (state)
      expect(readFileSync(path.join(safetyCopy, 'outside/graph.db'), 'utf8')).toBe(expected);
    await manager.undoRestore();
    expect(existsSync(outside) ? readFileSync(outside, 'utf8') : null).toBe(expected);
    expect(readdirSync(elsewhere)).toEqual(state ? ['graph.db'] : []);
  }
});

test('a dry run reports the changes and makes none', async () => {
  const { manager, root } = await setUp();
  await manager.restore({ backupId: 'latest', overwrite: true });
  const before = contents(root, { all: true });
  const result = await manager.undoRestore({ dryRun: true });
  expect(result).toMatchObject({ dryRun: true, filesRestored: 4, filesRemoved: 0 });
  expect(result.safetyCopy).toBeUndefined();
  expect(contents(root, { all: true })).toEqual(before);
});

test('kg undoes a restore, reports the result, and has an exit status for nothing to undo', async () => {
  const { root, backup, database } = await setUp();
  withDatabase(database, (db) => db.exec('DELETE FROM nodes'));
  const restored = await kg(['diag', 'restore', '--file', backup.path], { cwd: root });
  expect(restored.stderr + restored.stdout).toContain('kg diag restore --undo');
  expect(titles(database)[0]).toBe(200);
  const dry = await kg(['diag', 'restore', '--undo', '--dry-run'], { cwd: root });
  expect(dry.stdout).toContain(`restore of ${backup.id}`);
  const undone = await kg(['diag', 'restore', '--undo', '--json'], { cwd: root });
  expect(resultOf(undone.stdout)).toMatchObject({ id: backup.id, filesRestored: 4 });
  expect(titles(database)[0]).toBe(0);
  const empty = makeProject();
  const refused = await kg(['diag', 'restore', '--undo', '--json'], { cwd: empty.root });
  expect(refused.status).toBe(4);
  expect(refused.stderr + refused.stdout).toContain('KG_NOTHING_TO_UNDO');
  expect((await kg(['diag', 'restore', '--undo', '--file', 'latest'], { cwd: root })).status).toBe(
    2,
  );
});

test('the next backup removes only expired files in restore-undo', async () => {
  const { manager, root, backups, at } = await setUp();
  const { safetyCopy } = await manager.restore({ backupId: 'latest', overwrite: true });
  const old = at('restore-undo/20240115-020000');
  renameSync(safetyCopy, old);
  const other = at('restore-undo/mine');
  mkdirSync(other);
  const patient = createBackupManager({
    projectRoot: root,
    backupDir: backups,
    undoRetentionDays: 100_000,
  });
  await patient.createBackup({ type: 'snapshot' });
  expect(existsSync(old)).toBe(true);
  const { safetyCopy: newer } = await patient.restore({ backupId: 'latest', overwrite: true });
  await manager.createBackup({ type: 'snapshot' });
  expect([existsSync(old), existsSync(newer), existsSync(other)]).toEqual([false, true, true]);
});

describe('through links', () => {
  test('no file is put back or restored through a directory that became a link', async () => {
    const { manager, at } = await setUp();
    await manager.restore({ backupId: 'latest', overwrite: true });
    const outside = temporaryDirectory();
    writeFileSync(path.join(outside, 'terms.json'), 'not of the project');
    rmSync(at('plugins/glossary'), { recursive: true });
    symlinkSync(outside, at('plugins/glossary'));
    for (const attempt of [
      () => manager.undoRestore(),
      () => manager.restore({ backupId: 'latest', overwrite: true }),
    ]) {
      await expect(attempt()).rejects.toMatchObject({ code: 'KG_TARGET_INVALID' });
    }
    expect(readFileSync(path.join(outside, 'terms.json'), 'utf8')).toBe('not of the project');
    expect(readdirSync(outside)).toEqual(['terms.json']);
  });

  test('a link in the place of a file is itself replaced and put back', async () => {
    const { manager, at } = await setUp();
    const outside = path.join(temporaryDirectory(), 'config.json');
    writeFileSync(outside, '{"theme":"elsewhere"}');
    rmSync(at('config.json'));
    symlinkSync(outside, at('config.json'));
    await manager.restore({ backupId: 'latest', overwrite: true, only: ['config'] });
    expect(readFileSync(outside, 'utf8')).toBe('{"theme":"elsewhere"}');
    expect(readFileSync(at('config.json'), 'utf8')).toContain('dark');
    await manager.undoRestore();
    expect(readFileSync(at('config.json'), 'utf8')).toBe('{"theme":"elsewhere"}');
  });

  test('a link in the place of a database is refused', async () => {
    const { manager, database } = await setUp();
    const outside = path.join(temporaryDirectory(), 'real.db');
    for (const suffix of ['-wal', '-shm']) rmSync(database + suffix, { force: true });
    renameSync(database, outside);
    symlinkSync(outside, database);
    const before = readFileSync(outside);
    await expect(manager.restore({ backupId: 'latest', overwrite: true })).rejects.toMatchObject({
      code: 'KG_TARGET_INVALID',
      message: expect.stringContaining('database.path'),
    });
    expect(readFileSync(outside)).toEqual(before);
  });
});

test('force replaces a damaged database that another process has open', async () => {
  const { manager, database } = await setUp();
  const child = spawn('sqlite3', [database], { stdio: ['pipe', 'pipe', 'inherit'] });
  onTestFinished(() => child.kill('SIGKILL'));
  child.stdin.write('SELECT count(*) FROM nodes;\n');
  await once(child.stdout, 'data');
  // The pages are noise, but the locks of the process still show that the file is in use.
  const handle = statSync(database).size;
  run('sh', [
    '-c',
    `head -c ${handle - 4096} /dev/urandom | dd of='${database}' bs=4096 seek=1 conv=notrunc status=none`,
  ]);
  for (const attempt of [{ overwrite: true }, { overwrite: true, dryRun: true }]) {
    await expect(manager.restore({ backupId: 'latest', ...attempt })).rejects.toMatchObject({
      code: 'KG_DATABASE_IN_USE',
      message: expect.stringContaining(`process ${child.pid} (sqlite3)`),
    });
  }
  await manager.restore({ backupId: 'latest', overwrite: true, force: true });
  child.stdin.end();
  await once(child, 'exit');
  expect(titles(database)[0]).toBe(200);
});

test('one locked database among several leaves all of them as they were', async () => {
  const { manager, at, database } = await setUp({}, { lockTimeout: 300 });
  const vectors = at('vectors.db');
  withDatabase(vectors, (db) =>
    db.exec('CREATE TABLE embeddings (id); INSERT INTO embeddings VALUES (1)'),
  );
  await manager.createBackup();
  withDatabase(database, (db) => db.exec('DELETE FROM edges'));
  const db = new Database(vectors);
  onTestFinished(() => db.close());
  db.exec('DELETE FROM embeddings; BEGIN IMMEDIATE; INSERT INTO embeddings VALUES (7)');
  await expect(manager.restore({ backupId: 'latest', overwrite: true })).rejects.toMatchObject({
    code: 'KG_DATABASE_BUSY',
  });
  db.exec('COMMIT');
  const edges = withDatabase(database, (graph) =>
    graph.prepare('SELECT count(*) FROM edges').pluck().get(),
  );
  expect([edges, db.prepare('SELECT id FROM embeddings').pluck().all()]).toEqual([0, [7]]);
  expect(readdirSync(at()).filter((name) => name.startsWith('restore-'))).toEqual([]);
});
