// The most important rule (docs/internals/architecture.md): a host with an open database keeps its
// locks, WAL and commits through every call.

import {
  closeSync,
  existsSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import {
  backupFreshnessCheck,
  createBackupManager,
  IntegrityChecker,
} from '@weavelogic/knowledge-graph-agent';
import Database from 'better-sqlite3';
import { describe, expect, onTestFinished, test } from 'vitest';

import { run } from './support/processes.mjs';
import { makeProject, temporaryDirectory } from './support/project.mjs';

/**
 * Returns the locks of this process on the database and its companions, from the list of the
 * kernel.
 */
function locks(database) {
  const inodes = ['', '-wal', '-shm']
    .map((suffix) => database + suffix)
    .filter(existsSync)
    .map((file) => statSync(file).ino);
  return readFileSync('/proc/locks', 'utf8')
    .split('\n')
    .map((line) => line.split(/\s+/).slice(1))
    .filter(
      ([, , , pid, where]) =>
        pid === String(process.pid) && inodes.includes(Number(where?.split(':')[2])),
    )
    .map((fields) => fields.join(' '))
    .sort();
}

/** Checks whether another process can take the write lock. */
function othersCanWrite(database) {
  try {
    run('sqlite3', ['-cmd', '.timeout 0', database, 'BEGIN IMMEDIATE; ROLLBACK;']);
    return true;
  } catch {
    return false;
  }
}

function hold(database) {
  const db = new Database(database);
  onTestFinished(() => db.close());
  db.prepare('SELECT count(*) FROM nodes').get();
  db.exec("BEGIN IMMEDIATE; INSERT INTO metadata VALUES ('held', 'yes')");
  return db;
}

describe('while this process has the database open and holds its write lock', () => {
  for (const journalMode of ['wal', 'delete']) {
    test(`every call keeps its locks, in ${journalMode} mode`, async () => {
      const { root, database, backups } = makeProject({ journalMode });
      // Adds an edge that a repair would remove.
      run('sqlite3', [database, "INSERT INTO edges (source_id, target_id) VALUES ('n1', 'lost')"]);
      const manager = createBackupManager({
        projectRoot: root,
        backupDir: backups,
        lockTimeout: 300,
      });
      const config = path.join(root, '.kg/config.json');
      const db = hold(database);
      const before = locks(database);
      expect(before.length).toBeGreaterThan(0);
      const checker = new IntegrityChecker(db, { backupDir: backups, lockTimeout: 300 });
      const orphan = [{ code: 'KG_ISSUE_EDGE_TARGET' }];

      const calls = {
        createBackup: () => manager.createBackup(),
        snapshot: () => manager.createBackup({ type: 'snapshot' }),
        listBackups: () => manager.listBackups(),
        getBackup: async () => manager.getBackup((await manager.getLatestBackup()).id),
        verifyBackup: () => manager.verifyBackup('latest'),
        checkBackup: () => manager.checkBackup('latest'),
        restoreElsewhere: () =>
          manager.restore({ backupId: 'latest', targetDir: temporaryDirectory() }),
        dryRun: () =>
          manager
            .restore({ backupId: 'latest', overwrite: true, dryRun: true })
            .catch((error) => error.code),
        restoreHere: () =>
          manager.restore({ backupId: 'latest', overwrite: true }).catch((error) => error.code),
        verifyTheDatabase: () => manager.verifyBackup(database).catch((error) => error.code),
        restoreTheDatabase: () =>
          manager.restore({ backupPath: database, overwrite: true }).catch((error) => error.code),
        refusedRestore: () => manager.restore({ backupId: 'latest' }).catch((error) => error.code),
        rehearse: () => manager.rehearse(),
        freshness: () => backupFreshnessCheck(manager).check(),
        makeChecker: async () =>
          [db, database, root, { location: () => database }].map(
            (of) => new IntegrityChecker(of).path,
          ),
        runChecks: () => checker.runChecks(),
        checkFilesAlone: () => checker.runChecks({ checkDatabase: false, checkVectors: false }),
        repairNothing: () => checker.repair([]),
        repairHere: () => checker.repair(orphan).catch((error) => error.code),
        repairMode: () => checker.runChecks({ repairMode: true }).catch((error) => error.code),
        schedule: async () => {
          const scheduler = manager.scheduler({ schedule: '0 2 * * *' });
          scheduler.start();
          await scheduler.runNow();
          await scheduler.stop();
        },
        defaultDirectory: () => createBackupManager({ projectRoot: root }).backupDir,
        settings: () => createBackupManager({ projectRoot: root }).listBackups(),
        configurationThatLeadsToIt: async () => {
          rmSync(config);
          symlinkSync(database, config);
          const manager = createBackupManager({ projectRoot: root, lockTimeout: 300 });
          const refused = await manager
            .createBackup({ type: 'snapshot' })
            .catch((error) => error.code);
          // A call that names the directory and the encryption policy needs no settings.
          const explicit = createBackupManager({
            projectRoot: root,
            backupDir: backups,
            encryption: false,
            lockTimeout: 300,
          });
          return [
            manager.backupDir,
            await manager.listBackups().catch((error) => error.code),
            refused,
            await explicit.createBackup({ type: 'snapshot' }),
          ];
        },
        encrypt: () =>
          createBackupManager({ projectRoot: root, encryption: { passphraseFile: database } })
            .createBackup()
            .catch((error) => error.code),
        deleteBackup: async () => manager.deleteBackup((await manager.getLatestBackup()).id),
      };
      for (const [name, call] of Object.entries(calls)) {
        const result = await call();
        expect(locks(database), name).toEqual(before);
        expect(othersCanWrite(database), name).toBe(false);
        if (name.endsWith('TheDatabase')) expect(result).toBe('KG_NOT_A_BACKUP');
        if (['restoreHere', 'repairHere', 'repairMode'].includes(name))
          expect(result).toBe('KG_DATABASE_BUSY');
        if (name === 'encrypt') expect(result).toBe('KG_KEY_INVALID');
        if (name === 'runChecks')
          expect(result).toMatchObject({ healthy: true, checked: { nodes: 200 } });
      }

      db.exec('COMMIT');
      if (journalMode === 'wal') expect(statSync(`${database}-wal`).size).toBeGreaterThan(0);
      expect(
        run('sqlite3', [database, "SELECT value FROM metadata WHERE key = 'held'"]).trim(),
      ).toBe('yes');
    });
  }

  test('opening and closing the file in this process removes the locks, so these tests can detect it', () => {
    const { database } = makeProject({ journalMode: 'delete' });
    const db = hold(database);
    const before = locks(database);
    closeSync(openSync(database, 'r'));
    expect(locks(database)).not.toEqual(before);
    expect(othersCanWrite(database)).toBe(true);
    db.exec('ROLLBACK');
  });
});

test('a repair that would replace a damaged database is refused while this process has it open', async () => {
  const { root, database } = makeProject({ nodes: 2000 });
  const bytes = readFileSync(database);
  writeFileSync(database, bytes.fill(0xa5, bytes.length / 2, bytes.length / 2 + 9000));
  const files = ['', '-wal'].map((suffix) => database + suffix);
  const db = new Database(database);
  onTestFinished(() => db.close());
  db.prepare("INSERT INTO metadata VALUES ('held', 'yes')").run();
  const heldLocks = locks(database);
  expect(heldLocks.length).toBeGreaterThan(0);
  const wal = statSync(files[1]).size;
  const checker = new IntegrityChecker(db, { lockTimeout: 300 });
  const { issues } = await checker.runChecks();
  expect(issues[0]).toMatchObject({ code: 'KG_ISSUE_DATABASE_DAMAGED', repairable: true });
  const refused = {
    code: 'KG_DATABASE_IN_USE',
    message: expect.stringContaining(String(process.pid)),
    remedy: expect.stringMatching(/close it.*backup-/),
  };
  await expect(checker.repair(issues)).rejects.toMatchObject(refused);
  await expect(new IntegrityChecker(root).runChecks({ repairMode: true })).rejects.toMatchObject(
    refused,
  );
  expect(locks(database)).toEqual(heldLocks);
  expect(statSync(files[1]).size).toBe(wal);
  expect(db.prepare('SELECT value FROM metadata').pluck().get()).toBe('yes');
  expect(existsSync(path.join(root, '.kg/restore-undo'))).toBe(false);
  // This comparison is last because reading the file here removes the locks.
  expect(readFileSync(database).equals(bytes)).toBe(true);
});

test('a WAL without a checkpoint is still there after a backup', async () => {
  const { database, backups } = makeProject();
  const db = new Database(database);
  db.exec("INSERT INTO metadata VALUES ('in', 'the WAL')");
  // Simulates a crash: the WAL holds the commit, and no process has the database open.
  const crashed = makeProject();
  for (const suffix of ['', '-wal']) run('cp', [database + suffix, crashed.database + suffix]);
  db.close();
  const size = statSync(`${crashed.database}-wal`).size;
  expect(size).toBeGreaterThan(0);

  const manager = createBackupManager({ projectRoot: crashed.root, backupDir: backups });
  await manager.createBackup();
  expect(statSync(`${crashed.database}-wal`).size).toBe(size);

  const target = temporaryDirectory();
  await manager.restore({ backupId: 'latest', targetDir: target });
  expect(run('sqlite3', [`${target}/.kg/knowledge.db`, 'SELECT value FROM metadata']).trim()).toBe(
    'the WAL',
  );
});
