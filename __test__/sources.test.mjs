// Databases that are damaged, locked, linked or in other unusual states during a backup.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
  closeSync,
} from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import Database from 'better-sqlite3';
import { describe, expect, onTestFinished, test } from 'vitest';

import { run } from './support/processes.mjs';
import { fingerprint, integrityOf, makeProject, temporaryDirectory } from './support/project.mjs';

function managerOf(project, config) {
  return createBackupManager({ projectRoot: project.root, backupDir: project.backups, ...config });
}

/** Backs up, restores elsewhere, and returns the backup and the restored database. */
async function roundTrip(project) {
  const manager = managerOf(project);
  const backup = await manager.createBackup();
  const target = temporaryDirectory();
  await manager.restore({ backupId: backup.id, targetDir: target });
  return { backup, restored: path.join(target, '.kg/knowledge.db') };
}

function overwrite(file, at, bytes) {
  const fd = openSync(file, 'r+');
  writeSync(fd, bytes, 0, bytes.length, at);
  closeSync(fd);
}

describe('a damaged database', () => {
  test('is saved with every byte that may have meaning, a warning, and its findings in the manifest', async () => {
    const project = makeProject({ nodes: 3000 });
    const noise = Buffer.alloc(40_000, 0xa5);
    overwrite(project.database, Math.floor(statSync(project.database).size / 2), noise);
    const { backup, restored } = await roundTrip(project);
    expect(backup.integrity.status).toBe('failed');
    expect(backup.integrity.messages.length).toBeGreaterThan(0);
    expect(backup.warnings).toMatchObject([
      { code: 'KG_WARN_SOURCE_DAMAGED', path: '.kg/knowledge.db' },
    ]);
    const [before, after] = [project.database, restored].map((file) => readFileSync(file));
    // A backup replaces unused bytes of a page with zeros.
    expect(after.equals(before.map((byte, at) => (after[at] === 0 ? 0 : byte)))).toBe(true);
    const at = Math.floor(before.length / 2);
    expect(after.subarray(at, at + noise.length).equals(noise)).toBe(true);
    expect(integrityOf(restored)).toEqual(integrityOf(project.database));
    expect(await managerOf(project).verifyBackup(backup.id)).toBe(true);
  });

  const unreadable = {
    'whose header is zeroed': (file) => overwrite(file, 0, Buffer.alloc(100)),
    'whose schema is noise': (file) => overwrite(file, 100, Buffer.alloc(3000, 0xa5)),
    'that was truncated in the middle': (file) =>
      truncateSync(file, Math.floor(statSync(file).size / 2)),
    'that is text': (file) =>
      writeFileSync(file, 'not a database at all, but quite long all the same'.repeat(100)),
  };
  for (const [what, damage] of Object.entries(unreadable)) {
    test(`${what} is saved byte for byte`, async () => {
      const project = makeProject({ nodes: 500 });
      damage(project.database);
      const before = readFileSync(project.database);
      const { backup, restored } = await roundTrip(project);
      expect(backup.integrity.status).toBe('failed');
      expect(backup.warnings).toMatchObject([{ code: 'KG_WARN_SOURCE_DAMAGED' }]);
      expect(readFileSync(restored).equals(before)).toBe(true);
      expect(readFileSync(project.database).equals(before)).toBe(true);
    });
  }

  test('keeps the WAL that belongs to it', async () => {
    const project = makeProject({ nodes: 500 });
    const db = new Database(project.database);
    db.exec("INSERT INTO metadata VALUES ('in', 'the WAL')");
    const crashed = makeProject();
    for (const suffix of ['', '-wal'])
      copyFileSync(project.database + suffix, crashed.database + suffix);
    db.close();
    overwrite(crashed.database, 0, Buffer.alloc(100));
    const wal = readFileSync(`${crashed.database}-wal`);
    const { restored } = await roundTrip(crashed);
    expect(readFileSync(`${restored}-wal`).equals(wal)).toBe(true);
  });
});

test('the hot journal of a killed writer is rolled back in the backup and kept in the project', async () => {
  const project = makeProject({ journalMode: 'delete', nodes: 2000 });
  const script = `
    const db = require('better-sqlite3')(process.argv[1]);
    db.pragma('cache_size = 2');
    db.exec("BEGIN; UPDATE nodes SET content = 'half', title = 'half'");
    console.log('written');
    setInterval(() => {}, 1000);`;
  const writer = spawn(process.execPath, ['-e', script, project.database], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  onTestFinished(() => writer.kill('SIGKILL'));
  await once(writer.stdout, 'data');
  writer.kill('SIGKILL');
  await once(writer, 'exit');
  expect(statSync(`${project.database}-journal`).size).toBeGreaterThan(0);
  const before = fingerprint(project.root);
  const { backup, restored } = await roundTrip(project);
  expect(backup.warnings).toEqual([]);
  expect(integrityOf(restored)).toBe('ok');
  expect(run('sqlite3', [restored, "SELECT count(*) FROM nodes WHERE content = 'half'"])).toBe(
    '0\n',
  );
  expect(fingerprint(project.root)).toEqual(before);
});

test('an empty database is saved as an empty database', async () => {
  const project = makeProject();
  for (const suffix of ['', '-wal', '-shm']) rmSync(project.database + suffix, { force: true });
  writeFileSync(project.database, '');
  const { backup, restored } = await roundTrip(project);
  expect(backup.stats).toMatchObject({ nodeCount: 0, edgeCount: 0 });
  expect(backup.integrity.status).toBe('ok');
  expect(statSync(restored).size).toBe(0);
});

test('a database behind a symbolic link is saved with its WAL', async () => {
  const project = makeProject();
  const elsewhere = path.join(temporaryDirectory(), 'real.db');
  copyFileSync(project.database, elsewhere);
  for (const suffix of ['', '-wal', '-shm']) rmSync(project.database + suffix, { force: true });
  symlinkSync(elsewhere, project.database);
  const db = new Database(elsewhere);
  onTestFinished(() => db.close());
  db.exec("INSERT INTO metadata VALUES ('in', 'the WAL')");
  const { restored } = await roundTrip(project);
  expect(run('sqlite3', [restored, 'SELECT value FROM metadata'])).toBe('the WAL\n');
});

test('a database outside the project is saved, and restored elsewhere into .kg', async () => {
  const project = makeProject();
  const outside = path.join(temporaryDirectory(), 'graph.db');
  copyFileSync(project.database, outside);
  rmSync(project.database);
  writeFileSync(
    path.join(project.root, '.kg/config.json'),
    JSON.stringify({ database: { path: outside } }),
  );
  const { backup, restored } = await roundTrip(project);
  expect(backup.warnings).toMatchObject([{ code: 'KG_WARN_CONFIG' }]);
  expect(existsSync(restored)).toBe(true);
  run('sqlite3', [outside, 'DELETE FROM edges']);
  const result = await managerOf(project).restore({ backupId: backup.id, overwrite: true });
  expect(result.warnings).toMatchObject([{ code: 'KG_WARN_CONFIG' }]);
  expect(run('sqlite3', [outside, 'SELECT count(*) FROM edges'])).toBe('199\n');
});

test('a linked .kg, or an old database in the project in addition to an outside one, can be restored', async () => {
  const linked = makeProject();
  const real = path.join(temporaryDirectory(), 'state');
  run('mv', [path.join(linked.root, '.kg'), real]);
  symlinkSync(real, path.join(linked.root, '.kg'));
  const fromLink = await roundTrip(linked);
  expect(fromLink.backup.stats.totalFiles).toBe(4);
  expect(integrityOf(fromLink.restored)).toBe('ok');

  const project = makeProject();
  const outside = path.join(temporaryDirectory(), 'graph.db');
  run('cp', [project.database, outside]);
  run('sqlite3', [outside, "DELETE FROM nodes WHERE id <> 'n1'"]);
  writeFileSync(
    path.join(project.root, '.kg/config.json'),
    JSON.stringify({ database: { path: outside } }),
  );
  const { restored } = await roundTrip(project);
  const count = (file) => run('sqlite3', [file, 'SELECT count(*) FROM nodes']);
  expect(count(restored)).toBe('200\n');
  expect(count(path.join(path.dirname(restored), 'graph-1.db'))).toBe('1\n');
});

test('the WAL of an excluded database is excluded too', async () => {
  const project = makeProject();
  const other = path.join(project.root, '.kg/other.db');
  const db = new Database(other);
  onTestFinished(() => db.close());
  db.exec('PRAGMA journal_mode = wal; CREATE TABLE t (a); INSERT INTO t VALUES (1)');
  writeFileSync(path.join(project.root, '.kg/notes-journal'), 'a diary, not a journal of SQLite');
  const manager = managerOf(project);
  const { path: archive } = await manager.createBackup({ excludePatterns: ['other.db'] });
  const entries = run('tar', ['-tzf', archive]);
  expect(entries).not.toContain('other.db');
  expect(entries).toContain('files/notes-journal');
});

test('a project of hundreds of databases is saved completely', async () => {
  const project = makeProject();
  const dir = path.join(project.root, '.kg/plugins/many');
  mkdirSync(dir);
  const db = new Database(path.join(dir, '0.db'));
  db.exec('PRAGMA journal_mode = wal; CREATE TABLE t (a); INSERT INTO t VALUES (1)');
  db.close();
  for (let n = 1; n < 300; n += 1) copyFileSync(path.join(dir, '0.db'), path.join(dir, `${n}.db`));
  const { stats, warnings } = await managerOf(project).createBackup();
  expect([stats.totalFiles, warnings]).toEqual([304, []]);
});

test('files of every size are restored with content, mode and time', async () => {
  const project = makeProject();
  const dir = path.join(project.root, '.kg/plugins/sizes');
  mkdirSync(dir);
  for (const size of [0, 1, 511, 512, 513, 262_144, 524_288, 9_000_000]) {
    writeFileSync(path.join(dir, String(size)), Buffer.alloc(size, size % 251), { mode: 0o640 });
    run('touch', ['-d', '2001-02-03 04:05:06.789', path.join(dir, String(size))]);
  }
  chmodSync(path.join(dir, '513'), 0o755);
  const before = fingerprint(dir);
  const { restored } = await roundTrip(project);
  const back = path.join(path.dirname(restored), 'plugins/sizes');
  expect(fingerprint(back)).toEqual(before);
  for (const size of ['0', '513', '9000000']) {
    const [was, is] = [statSync(path.join(dir, size)), statSync(path.join(back, size))];
    expect([is.mode, is.mtimeMs]).toEqual([was.mode, was.mtimeMs]);
  }
});

test('a backup waits for a database that another process locks, and then names it', async () => {
  const project = makeProject({ journalMode: 'delete' });
  const db = new Database(project.database);
  onTestFinished(() => db.close());
  db.exec('BEGIN EXCLUSIVE');
  const manager = managerOf(project, { lockTimeout: 300 });
  await expect(manager.createBackup()).rejects.toMatchObject({ code: 'KG_DATABASE_BUSY' });
  const waiting = managerOf(project).createBackup();
  db.exec('COMMIT');
  expect((await waiting).integrity.status).toBe('ok');
});

test('a backup waits for another writer of the store, and then names the lock holder', async () => {
  const project = makeProject();
  const first = await managerOf(project).createBackup();
  const lock = spawn('flock', [
    '--no-fork',
    path.join(project.backups, '.kg-store.lock'),
    'sh',
    '-c',
    'echo held; exec sleep 60',
  ]);
  onTestFinished(() => lock.kill('SIGKILL'));
  await once(lock.stdout, 'data');
  const refused = managerOf(project, { lockTimeout: 200 }).createBackup();
  await expect(refused).rejects.toMatchObject({
    code: 'KG_STORE_LOCKED',
    message: expect.stringContaining(`process ${process.pid}`),
  });
  expect(await managerOf(project).verifyBackup(first.id)).toBe(true);
  const waiting = managerOf(project).createBackup();
  lock.kill('SIGKILL');
  await waiting;
});
