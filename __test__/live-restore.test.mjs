// A restore over a database that other processes have open. They keep their connections and see the
// restored content.

import { readFileSync, statSync } from 'node:fs';
import path from 'node:path';

import { createBackupManager } from '@weavelogic/knowledge-graph-agent';
import Database from 'better-sqlite3';
import { describe, expect, onTestFinished, test } from 'vitest';

import { run, startWriter } from './support/processes.mjs';
import { integrityOf, makeProject, withDatabase } from './support/project.mjs';

const count = (db) => db.prepare('SELECT count(*) FROM nodes').pluck().get();
const shell = (database, sql) => run('sqlite3', ['-cmd', '.timeout 10000', database, sql]).trim();

async function setUp(journalMode, config) {
  const project = makeProject({ journalMode, nodes: 2000 });
  const manager = createBackupManager({
    projectRoot: project.root,
    backupDir: project.backups,
    ...config,
  });
  await manager.createBackup();
  return { ...project, manager };
}

for (const journalMode of ['wal', 'delete']) {
  describe(`in ${journalMode} mode`, () => {
    test('a connection of this process sees the restored content, and others see its next commit', async () => {
      const { manager, database } = await setUp(journalMode);
      const db = new Database(database);
      onTestFinished(() => db.close());
      db.exec("DELETE FROM nodes; INSERT INTO metadata VALUES ('last', 'before the restore')");
      const inode = statSync(database).ino;

      const { safetyCopy, filesReplaced } = await manager.restore({
        backupId: 'latest',
        overwrite: true,
      });
      expect(filesReplaced).toBe(4);
      expect(statSync(database).ino).toBe(inode);
      expect(count(db)).toBe(2000);
      db.exec("INSERT INTO metadata VALUES ('next', 'after the restore')");
      expect(shell(database, 'SELECT value FROM metadata')).toBe('after the restore');
      expect(db.pragma('journal_mode', { simple: true })).toBe(journalMode);
      expect(db.pragma('integrity_check', { simple: true })).toBe('ok');
      expect(
        shell(database, "INSERT INTO nodes_fts(nodes_fts, rank) VALUES ('integrity-check', 1)"),
      ).toBe('');

      const kept = path.join(safetyCopy, '.kg/knowledge.db');
      expect(shell(kept, 'SELECT count(*) FROM nodes; SELECT value FROM metadata')).toBe(
        '0\nbefore the restore',
      );
    });

    test('a process that writes all the time continues with the restored content', async () => {
      const { manager, database } = await setUp(journalMode);
      const writer = await startWriter(database);
      await manager
        .restore({ backupId: 'latest', overwrite: true, only: ['database'] })
        .finally(async () => {
          const { written } = await writer.stop();
          expect(written).toBeGreaterThan(0);
        });
      // The backup contains no rows of the writer, so all of its rows are complete transactions
      // after the restore.
      const { nodes, counter } = withDatabase(database, (db) => ({
        nodes: db.prepare("SELECT count(*) FROM nodes WHERE id LIKE 'w%'").pluck().get(),
        counter: Number(
          db.prepare("SELECT value FROM metadata WHERE key = 'written'").pluck().get() ?? 0,
        ),
      }));
      expect(nodes).toBe(counter);
      expect(integrityOf(database)).toBe('ok');
    });

    test('a restore waits for another transaction, then fails and changes nothing', async () => {
      const { manager, root, database } = await setUp(journalMode, { lockTimeout: 300 });
      const db = new Database(database);
      onTestFinished(() => db.close());
      db.exec("BEGIN IMMEDIATE; INSERT INTO metadata VALUES ('half', 'done')");
      const config = readFileSync(path.join(root, '.kg/config.json'));
      await expect(manager.restore({ backupId: 'latest', overwrite: true })).rejects.toMatchObject({
        code: 'KG_DATABASE_BUSY',
      });
      expect(readFileSync(path.join(root, '.kg/config.json'))).toEqual(config);
      db.exec('COMMIT');
      expect(shell(database, 'SELECT value FROM metadata')).toBe('done');
      expect(run('ls', ['-A', path.join(root, '.kg')])).not.toContain('restore-');
    });
  });
}

test('a database with another page size is replaced by a rename, but not while a process has it open', async () => {
  const { manager, database } = await setUp('wal');
  for (const suffix of ['', '-wal', '-shm']) run('rm', ['-f', database + suffix]);
  const db = new Database(database);
  db.exec(
    'PRAGMA page_size = 8192; PRAGMA journal_mode = wal; CREATE TABLE nodes (id); INSERT INTO nodes VALUES (1)',
  );
  await expect(manager.restore({ backupId: 'latest', overwrite: true })).rejects.toMatchObject({
    code: 'KG_DATABASE_IN_USE',
    message: expect.stringContaining(`process ${process.pid}`),
  });
  expect(count(db)).toBe(1);
  db.close();
  await manager.restore({ backupId: 'latest', overwrite: true });
  expect(shell(database, 'SELECT count(*) FROM nodes; PRAGMA page_size')).toBe('2000\n4096');
});
