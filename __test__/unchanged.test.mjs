// Full backups that reuse unchanged blocks of an earlier archive, and archives with zstd.

import { execFileSync } from 'node:child_process';
import { readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import Database from 'better-sqlite3';
import { expect, test } from 'vitest';

import { makeProject, temporaryDirectory } from './support/project.mjs';

/** Makes a project with a database of some megabytes and a separate store. */
function makeLargeProject() {
  const { root: projectRoot, database, backups: backupDir } = makeProject();
  const db = new Database(database);
  db.exec('CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)');
  const add = db.prepare('INSERT INTO notes (text) VALUES (?)');
  db.transaction(() => {
    for (let n = 0; n < 4000; n += 1)
      add.run(
        Array.from({ length: 60 }, (_, k) => `word-${(n * 7919 + k * 104729) % 9973}`).join(' '),
      );
  })();
  db.close();
  return {
    projectRoot,
    backupDir,
    manager: (config) => createBackupManager({ projectRoot, backupDir, ...config }),
  };
}

function change(projectRoot, sql) {
  const db = new Database(path.join(projectRoot, '.kg/knowledge.db'));
  db.exec(sql);
  db.close();
}

function dump(file) {
  return execFileSync('sqlite3', [file, '.dump'], { encoding: 'utf8', maxBuffer: 2 ** 28 });
}

for (const compression of ['gzip', 'zstd']) {
  test(`a full backup reuses unchanged blocks and does not depend on the earlier archive: ${compression}`, async () => {
    const { projectRoot, manager } = makeLargeProject();
    const backups = manager({ compression });
    const first = await backups.createBackup();
    expect(first.reusedBytes).toBe(0);
    change(
      projectRoot,
      `UPDATE notes SET text = 'changed' WHERE id = 2000; INSERT INTO notes (text) VALUES ('one more')`,
    );
    const second = await backups.createBackup();
    expect(second.reusedBytes).toBeGreaterThan(second.size / 3);
    await backups.deleteBackup(first.id);
    expect(await backups.verifyBackup(second.id)).toBe(true);
    const targetDir = path.join(temporaryDirectory(), 'restored');
    await backups.restore({ backupId: second.id, targetDir });
    expect(dump(path.join(targetDir, '.kg/knowledge.db'))).toBe(
      dump(path.join(projectRoot, '.kg/knowledge.db')),
    );
  });
}

test('nearly every block is reused if nothing changed, also by a snapshot', async () => {
  const { manager } = makeLargeProject();
  const backups = manager();
  await backups.createBackup();
  for (const type of ['full', 'snapshot']) {
    const again = await backups.createBackup({ type });
    expect(again.reusedBytes).toBeGreaterThan(again.size * 0.9);
    expect(again.integrity).toEqual({ status: 'ok', messages: [], fullText: true });
    expect(await backups.verifyBackup(again.id)).toBe(true);
  }
});

test('a changed database with its old size and time is saved correctly', async () => {
  const { projectRoot, manager } = makeLargeProject();
  const database = path.join(projectRoot, '.kg/knowledge.db');
  const then = new Date('2026-01-01T00:00:00Z');
  utimesSync(database, then, then);
  const { size } = statSync(database);
  const first = await manager().createBackup();
  change(projectRoot, `UPDATE notes SET text = replace(text, 'word-7', 'WORD-7') WHERE id = 3000`);
  utimesSync(database, then, then);
  expect(statSync(database)).toMatchObject({ mtime: then, size });
  const second = await manager().createBackup();
  expect(second.checksum).not.toBe(first.checksum);
  const targetDir = path.join(temporaryDirectory(), 'restored');
  await manager().restore({ backupId: second.id, targetDir });
  expect(dump(path.join(targetDir, '.kg/knowledge.db'))).toBe(dump(database));
});

test('lost page hashes only cost time', async () => {
  const { projectRoot, manager } = makeLargeProject();
  await manager().createBackup();
  rmSync(path.join(projectRoot, '.kg/cache'), { recursive: true });
  const again = await manager().createBackup();
  expect(again.reusedBytes).toBeGreaterThan(again.size * 0.9);
  expect(await manager().verifyBackup(again.id)).toBe(true);
});

test('no block of a damaged archive, or of one with another compression, is reused', async () => {
  const { manager } = makeLargeProject();
  const first = await manager().createBackup();
  for (const config of [{ compressionLevel: 9 }, { compression: 'zstd' }, { compression: false }]) {
    expect((await manager(config).createBackup()).reusedBytes).toBe(0);
  }
  rmSync(`${first.path}.manifest.json`);
  const archive = readFileSync(first.path);
  archive[archive.length >> 1] ^= 1;
  writeFileSync(first.path, archive);
  const next = await manager().createBackup();
  expect(next.reusedBytes).toBe(0);
  expect(await manager().verifyBackup(next.id)).toBe(true);
});

test('no block of an archive that was damaged after its manifest was written is reused', async () => {
  const { manager } = makeLargeProject();
  const first = await manager().createBackup();
  const archive = readFileSync(first.path);
  archive[archive.length >> 1] ^= 1;
  writeFileSync(first.path, archive);
  const next = await manager().createBackup();
  expect(next.reusedBytes).toBe(0);
  expect(next.warnings).toEqual([
    expect.objectContaining({
      code: 'KG_WARN_STORE',
      message: expect.stringContaining('not what was written'),
    }),
  ]);
  expect(await manager().verifyBackup(next.id)).toBe(true);
  expect(await manager().verifyBackup(first.id)).toBe(false);
});

test('an archive with zstd opens with zstd and tar, and its checksums agree', async () => {
  const { projectRoot, manager } = makeLargeProject();
  const { path: archive } = await manager({ compression: 'zstd' }).createBackup();
  expect(archive).toMatch(/kg-backup-[0-9-]+\.tar\.zst$/);
  const dir = temporaryDirectory();
  execFileSync(
    'sh',
    ['-c', `zstd -dc "$1" | tar -xf - && sha256sum -c --quiet checksums.sha256`, 'sh', archive],
    { cwd: dir },
  );
  expect(dump(path.join(dir, 'database.sqlite'))).toBe(
    dump(path.join(projectRoot, '.kg/knowledge.db')),
  );
});

test('an incremental backup may have a base with another compression', async () => {
  const { projectRoot, manager } = makeLargeProject();
  await manager({ compression: 'zstd' }).createBackup();
  change(projectRoot, `UPDATE notes SET text = 'changed' WHERE id = 7`);
  const next = await manager().createBackup({ type: 'incremental' });
  expect([next.type, await manager().verifyBackup(next.id)]).toEqual(['incremental', true]);
  const targetDir = path.join(temporaryDirectory(), 'restored');
  await manager().restore({ backupId: 'latest', targetDir });
  expect(dump(path.join(targetDir, '.kg/knowledge.db'))).toBe(
    dump(path.join(projectRoot, '.kg/knowledge.db')),
  );
});

test('every changed byte of an archive with zstd is detected', async () => {
  const { backupDir, manager } = makeLargeProject();
  const { path: archive } = await manager({
    compression: 'zstd',
    compressionLevel: 1,
  }).createBackup({ type: 'snapshot' });
  const whole = readFileSync(archive);
  const copy = path.join(backupDir, 'copy.tar.zst');
  for (let at = 0; at < whole.length; at += Math.floor(whole.length / 60)) {
    const changed = Buffer.from(whole);
    changed[at] ^= 0x10;
    writeFileSync(copy, changed);
    expect([at, await manager().verifyBackup(copy)]).toEqual([at, false]);
  }
});
