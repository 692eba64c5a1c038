// A database is "ok" only if every page is accounted for. A backup of a database without its tables
// is not good.

import { readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { createBackupManager, IntegrityChecker } from '@weavelogic/knowledge-graph-agent';
import Database from 'better-sqlite3';
import { expect, test } from 'vitest';

import { kg } from './support/processes.mjs';
import { makeProject, temporaryDirectory, withDatabase } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

/**
 * SQLite lists the object that was created last first. With these objects, its check skips the
 * freelist and shared pages.
 */
const LISTED_FIRST = {
  'no other object': '',
  'a view': 'CREATE VIEW recent AS SELECT * FROM nodes',
  'a virtual table': 'CREATE VIRTUAL TABLE notes USING fts5(x)',
  'a trigger': 'CREATE TRIGGER t AFTER DELETE ON edges BEGIN SELECT 1; END',
};

/** Puts a page that is in use on the freelist. */
function freeLivePage(file) {
  const live = withDatabase(file, (db) => {
    db.exec(
      'CREATE TABLE gone (x); WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) INSERT INTO gone SELECT hex(zeroblob(400)) FROM n; DROP TABLE gone',
    );
    db.pragma('wal_checkpoint(TRUNCATE)');
    return db
      .prepare(
        "SELECT pageno FROM dbstat WHERE name = 'edges' AND pagetype = 'leaf' LIMIT 1 OFFSET 1",
      )
      .pluck()
      .get();
  });
  const bytes = readFileSync(file);
  bytes.writeUInt32BE(live, (bytes.readUInt32BE(32) - 1) * 4096 + 8);
  writeFileSync(file, bytes);
}

for (const [name, sql] of Object.entries(LISTED_FIRST)) {
  for (const vacuum of ['NONE', 'FULL']) {
    test(`a used page on the freelist is found with auto_vacuum ${vacuum} and ${name} first in the schema`, async () => {
      const { root, database, backups } = makeProject({ nodes: 400, journalMode: 'delete' });
      withDatabase(database, (db) => {
        db.pragma(`auto_vacuum = ${vacuum === 'NONE' ? 'NONE' : 'INCREMENTAL'}`);
        db.exec('VACUUM');
        db.exec(sql);
      });
      const sound = await createBackupManager({
        projectRoot: root,
        backupDir: temporaryDirectory(),
      }).createBackup();
      expect(sound.integrity).toMatchObject({ status: 'ok', messages: [] });
      freeLivePage(database);
      const backup = await createBackupManager({
        projectRoot: root,
        backupDir: backups,
      }).createBackup();
      expect(backup.integrity.status).toBe('failed');
      expect(backup.integrity.messages.join()).toContain('2nd reference');
      for (const how of [
        ['integrity'],
        ['health', '--backup-dir', backups],
        ['health', '--check-db', '--backup-dir', backups],
      ]) {
        const checked = await kg(['diag', ...how, '--project', root]);
        expect(checked).toMatchObject({
          status: 3,
          stdout: expect.stringContaining('KG_ISSUE_DATABASE_DAMAGED'),
        });
      }
    });
  }
}

/** Ways to lose every table. */
const EMPTIED = {
  'a file of 0 bytes': (file) => truncateSync(file, 0),
  'a schema without tables': (file) =>
    withDatabase(file, (db) => {
      db.pragma('foreign_keys = OFF');
      const tables = db
        .prepare(
          "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'virtual') AND name NOT LIKE 'sqlite%'",
        )
        .pluck()
        .all();
      for (const table of tables) db.exec(`DROP TABLE IF EXISTS "${table}"`);
    }),
};

for (const [name, empty] of Object.entries(EMPTIED)) {
  test(`${name} is not a good backup if an earlier one has tables`, async () => {
    const { root, database, backups } = makeProject({ nodes: 20, journalMode: 'delete' });
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    const good = await manager.createBackup();
    expect(good.stats.tableCount).toBeGreaterThan(5);
    empty(database);

    const strict = createBackupManager({ projectRoot: root, backupDir: backups, strict: true });
    await expect(strict.createBackup()).rejects.toMatchObject({
      code: 'KG_INCOMPLETE',
      message: expect.stringContaining('no table'),
    });
    const emptied = await manager.createBackup();
    expect(emptied).toMatchObject({
      integrity: { status: 'ok' },
      emptied: true,
      incomplete: true,
      stats: { tableCount: 0 },
    });
    expect(emptied.warnings).toContainEqual(
      expect.objectContaining({
        code: 'KG_WARN_DATABASE_EMPTY',
        message: expect.stringContaining(good.id),
      }),
    );
    // `latest` still names the good backup.
    expect(readFileSync(path.join(backups, 'latest.tar.gz')).equals(readFileSync(good.path))).toBe(
      true,
    );
    const again = await manager.createBackup();
    expect(again.warnings).toContainEqual(
      expect.objectContaining({ message: expect.stringContaining(good.id) }),
    );

    for (const how of ['integrity', 'health']) {
      const checked = await kg(['diag', how, '--project', root]);
      expect(checked).toMatchObject({
        status: 3,
        stdout: expect.stringContaining('KG_ISSUE_DATABASE_EMPTY'),
      });
    }
  });
}

test('a new project whose database never had tables is backed up with a warning', async () => {
  const { root, database, backups } = makeProject({ nodes: 1 });
  for (const suffix of ['', '-wal', '-shm']) rmSync(`${database}${suffix}`, { force: true });
  const db = new Database(database);
  db.pragma('user_version = 1');
  db.close();
  const backup = await createBackupManager({
    projectRoot: root,
    backupDir: backups,
    strict: true,
  }).createBackup();
  expect(backup).toMatchObject({
    integrity: { status: 'ok' },
    warnings: [{ code: 'KG_WARN_DATABASE_EMPTY' }],
  });
  expect(backup.incomplete).toBe(undefined);
});

test('a database of 0 bytes is never a good backup, even as the first one', async () => {
  const { root, database, backups } = makeProject({ nodes: 1 });
  for (const suffix of ['', '-wal', '-shm']) rmSync(`${database}${suffix}`, { force: true });
  writeFileSync(database, '');
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  expect(await manager.createBackup()).toMatchObject({
    emptied: true,
    incomplete: true,
    warnings: [{ code: 'KG_WARN_DATABASE_EMPTY' }],
  });
  await expect(manager.createBackup({ strict: true })).rejects.toMatchObject({
    code: 'KG_INCOMPLETE',
  });
});

test('rows that violate a constraint are reported, and the others are checked', async () => {
  const { root, database } = makeProject({ nodes: 20 });
  withDatabase(database, (db) => {
    db.pragma('ignore_check_constraints = on');
    db.exec('CREATE TABLE q (a CHECK (a > 5)); INSERT INTO q VALUES (1), (9)');
  });
  const { stdout, status } = await kg(['diag', 'integrity', '--project', root, '--json']);
  const { issues, checked } = resultOf(stdout);
  const errors = issues.filter(({ severity }) => severity === 'error');
  expect([status, errors.map(({ code }) => code)]).toEqual([3, ['KG_ISSUE_CONSTRAINT']]);
  expect(issues.map(({ code }) => code)).not.toContain('KG_ISSUE_NOT_CHECKED');
  expect(checked).toMatchObject({ nodes: 20, edges: 19 });
});

test('a backup with rows that violate a constraint is good, warns each time, and no repair replaces the database', async () => {
  const { root, database, backups } = makeProject({ nodes: 20 });
  withDatabase(database, (db) => {
    db.exec('CREATE TABLE later (x); INSERT INTO later VALUES (NULL)');
    db.unsafeMode(true);
    db.pragma('writable_schema = on');
    db.exec(
      "UPDATE sqlite_schema SET sql = 'CREATE TABLE later (x NOT NULL)' WHERE name = 'later'",
    );
  });
  const manager = createBackupManager({ projectRoot: root, backupDir: backups });
  for (const options of [{}, {}, { type: 'incremental' }, { strict: true }]) {
    const backup = await manager.createBackup(options);
    expect(backup.integrity).toMatchObject({ status: 'ok', messages: [] });
    expect(backup.warnings).toMatchObject([
      {
        code: 'KG_WARN_CONSTRAINT',
        path: '.kg/knowledge.db',
        message: expect.stringContaining('NULL value in later.x'),
      },
    ]);
    expect(backup.incomplete).toBe(undefined);
  }
  const health = await kg([
    'diag',
    'health',
    '--check-db',
    '--backup-dir',
    backups,
    '--project',
    root,
  ]);
  expect(health).toMatchObject({
    status: 3,
    stdout: expect.stringContaining('KG_ISSUE_CONSTRAINT'),
  });
  expect(health.stdout).not.toContain('DAMAGED');
  const before = withDatabase(database, (db) =>
    db.prepare('SELECT group_concat(sql) FROM sqlite_schema').pluck().get(),
  );
  const { repair } = await new IntegrityChecker(root, { backupDir: backups }).runChecks({
    repairMode: true,
  });
  expect(repair.actions.filter(({ salvage }) => salvage)).toEqual([]);
  expect(
    withDatabase(database, (db) =>
      db.prepare('SELECT group_concat(sql) FROM sqlite_schema').pluck().get(),
    ),
  ).toBe(before);
});

test('one repair leaves no problem for another one', async () => {
  const { root, database, backups } = makeProject({ nodes: 600 });
  // Lost nodes leave edges and full-text rows behind.
  const leaf = withDatabase(database, (db) => {
    db.pragma('wal_checkpoint(TRUNCATE)');
    return db
      .prepare(
        "SELECT pageno FROM dbstat WHERE name = 'nodes' AND pagetype = 'leaf' LIMIT 1 OFFSET 3",
      )
      .pluck()
      .get();
  });
  const bytes = readFileSync(database);
  bytes.fill(0x55, (leaf - 1) * 4096, leaf * 4096);
  writeFileSync(database, bytes);
  const checker = new IntegrityChecker(root, { backupDir: backups });
  const repaired = await checker.runChecks({ repairMode: true });
  expect(repaired.repair.actions.some((action) => action.salvage?.rowsLost > 0)).toBe(true);
  expect(repaired.issues.filter((issue) => issue.repairable)).toEqual([]);
  const again = await checker.runChecks({ repairMode: true });
  expect(again.repair.actions).toEqual([]);
});
