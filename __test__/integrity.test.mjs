// IntegrityChecker as a host uses it: while the host has a connection, with the code of the guide,
// and with repairs.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

import {
  backupFreshnessCheck,
  createBackupManager,
  IntegrityChecker,
} from '@weavelogic/knowledge-graph-agent';
import Database from 'better-sqlite3';
import { describe, expect, onTestFinished, test } from 'vitest';

import { installRuntimes } from '../scripts/runtimes.mjs';
import {
  kg,
  kgOnTerminal,
  kgPath,
  repository,
  run,
  startWriter,
  until,
} from './support/processes.mjs';
import {
  contents,
  fillDatabase,
  fingerprint,
  integrityOf,
  makeProject,
  temporaryDirectory,
  withDatabase,
} from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';

const codes = ({ issues }) => issues.map((issue) => issue.code);

/** Returns the names that a check, drill or snapshot left in a directory for temporary files. */
const leftoversIn = (dir) =>
  readdirSync(dir).filter((name) => /^\.kg-(check|drill|snapshot)-/.test(name));

/** Adds edges without nodes, a tag without a node, and a wrong full-text index. */
function breakRows(database) {
  withDatabase(database, (db) => {
    db.pragma('foreign_keys = off');
    db.exec(`INSERT INTO edges (source_id, target_id) VALUES ('gone', 'n1'), ('n1', 'lost');
             INSERT INTO node_tags VALUES ('gone', 5);
             DROP TRIGGER nodes_au;
             UPDATE nodes SET title = 'Other words' WHERE id = 'n3'`);
  });
}

const BROKEN = [
  'KG_ISSUE_EDGE_SOURCE',
  'KG_ISSUE_EDGE_TARGET',
  'KG_ISSUE_FTS_DAMAGED',
  'KG_ISSUE_TAG_ORPHAN',
];
const broken = (result) =>
  codes(result)
    .filter((code) => BROKEN.includes(code))
    .sort();

describe('the target of a check', () => {
  test('can be a path, a URL, a project, any kind of handle or the class of the host', async () => {
    const { root, database } = makeProject();
    const handle = new Database(database);
    onTestFinished(() => handle.close());
    const relative = new Database(path.relative(process.cwd(), database));
    onTestFinished(() => relative.close());
    const subjects = [
      database,
      pathToFileURL(database),
      root,
      handle,
      relative,
      { location: () => database, exec() {} },
      { getDatabase: () => handle },
      { dbPath: database },
      { filename: database },
      { filename: path.relative(process.cwd(), database) },
    ];
    for (const subject of subjects) {
      const result = await new IntegrityChecker(subject).runChecks();
      expect(result).toMatchObject({
        healthy: true,
        checked: { project: root, database, nodes: 200, edges: 199, documents: 200, vectors: 0 },
      });
      expect(codes(result)).toEqual(['KG_ISSUE_DOCUMENT_MISSING']);
      expect(result.issues[0]).toMatchObject({
        severity: 'info',
        component: 'files',
        count: 200,
        repairable: false,
      });
      expect(result.issues[0].examples).toHaveLength(10);
    }
  });

  test('can be a database outside every project, which is checked alone', async () => {
    const file = path.join(temporaryDirectory(), 'alone.db');
    fillDatabase(file);
    const { healthy, issues, checked } = await new IntegrityChecker(file).runChecks();
    expect([healthy, issues, checked.project, checked.nodes]).toEqual([true, [], undefined, 200]);
    breakRows(file);
    expect((await new IntegrityChecker(file).runChecks()).healthy).toBe(false);
  });

  test('can be a handle of bun:sqlite in Bun', () => {
    const { root, database } = makeProject();
    const program = path.join(root, 'check.mjs');
    writeFileSync(
      program,
      `import { Database } from 'bun:sqlite';
      import { createIntegrityChecker } from ${JSON.stringify(path.join(repository, 'index.mjs'))};
      const handle = new Database('.kg/knowledge.db');
      const checker = createIntegrityChecker(handle);
      const { healthy, checked } = await checker.runChecks();
      let memory;
      try {
        createIntegrityChecker(new Database());
      } catch ({ message }) {
        memory = message;
      }
      console.log(JSON.stringify({ path: checker.path, healthy, nodes: checked.nodes, memory }));`,
    );
    expect(JSON.parse(run(installRuntimes().bun, [program], { cwd: root }))).toEqual({
      path: database,
      healthy: true,
      nodes: 200,
      memory: expect.stringMatching(/in memory/),
    });
  });

  test('without a file is refused with a message', () => {
    const memory = new Database(':memory:');
    onTestFinished(() => memory.close());
    for (const db of [
      ':memory:',
      memory,
      { location: () => null },
      { getDatabase: () => memory },
      { filename: ':memory:' },
      { filename: '' },
    ]) {
      expect(() => new IntegrityChecker(db)).toThrow(
        expect.objectContaining({
          code: 'KG_INVALID_OPTION',
          message: expect.stringMatching(/in memory/),
        }),
      );
    }
    for (const db of [undefined, null, {}, 7]) {
      expect(() => new IntegrityChecker(db)).toThrow(
        expect.objectContaining({ code: 'KG_INVALID_OPTION' }),
      );
    }
  });

  test('unknown options are refused', async () => {
    const { database } = makeProject();
    const refused = { code: 'KG_INVALID_OPTION' };
    expect(() => new IntegrityChecker(database, { projectroot: '.' })).toThrow(
      expect.objectContaining(refused),
    );
    const checker = new IntegrityChecker(database);
    await expect(checker.runChecks({ checkDb: true })).rejects.toMatchObject(refused);
    await expect(checker.runChecks({ checkFiles: false, repairMode: true })).rejects.toMatchObject(
      refused,
    );
    await expect(checker.repair('all')).rejects.toMatchObject(refused);
    await expect(checker.repair([{ message: 'no code' }])).rejects.toMatchObject(refused);
    await expect(
      new IntegrityChecker(path.join(path.dirname(database), '..', '..')).runChecks(),
    ).rejects.toMatchObject({ code: 'KG_NO_PROJECT' });
  });

  test('only the requested checks run', async () => {
    const { root, database } = makeProject();
    breakRows(database);
    writeFileSync(path.join(root, '.kg/config.json'), 'not JSON');
    const checker = new IntegrityChecker(root);
    const of = async (database, files) =>
      codes(
        await checker.runChecks({
          checkDatabase: database,
          checkFiles: files,
          checkVectors: false,
        }),
      );
    expect(await of(false, true)).toEqual(['KG_ISSUE_CONFIG_INVALID', 'KG_ISSUE_DOCUMENT_MISSING']);
    expect(broken({ issues: (await of(true, false)).map((code) => ({ code })) })).toEqual(BROKEN);
    expect(await of(false, false)).toEqual([]);
  });
});

describe('during writes', () => {
  test('writers of this and another process continue, and a check finds one sound commit', async () => {
    const { database } = makeProject({ nodes: 3000 });
    const writer = await startWriter(database);
    const db = new Database(database);
    onTestFinished(() => db.close());
    const checker = new IntegrityChecker(db);
    let written = 0;
    for (let round = 0; round < 5; round += 1) {
      const checking = checker.runChecks();
      let done = false;
      void checking.finally(() => (done = true));
      while (!done) {
        db.prepare('INSERT INTO metadata VALUES (?, ?)').run(`own ${(written += 1)}`, 'x');
        await new Promise((resolve) => setImmediate(resolve));
      }
      expect((await checking).healthy).toBe(true);
    }
    const other = await writer.stop();
    expect(written).toBeGreaterThan(0);
    expect(other.written).toBeGreaterThan(0);
    expect(db.prepare("SELECT count(*) FROM metadata WHERE key LIKE 'own %'").pluck().get()).toBe(
      written,
    );
    expect(integrityOf(database)).toBe('ok');
  });

  test('a check does not wait for a writer that holds the write lock, in both journal modes', async () => {
    for (const journalMode of ['wal', 'delete']) {
      const { database } = makeProject({ journalMode });
      const db = new Database(database);
      onTestFinished(() => db.close());
      db.exec("BEGIN IMMEDIATE; INSERT INTO metadata VALUES ('held', 'yes')");
      const { healthy } = await new IntegrityChecker(db, { lockTimeout: 1000 }).runChecks();
      expect(healthy).toBe(true);
      db.exec('COMMIT');
    }
  });

  test('an abort ends a check at once and leaves no files', async () => {
    const { database } = makeProject();
    // SQLite needs seconds for this work, so the check cannot end before the abort reaches it.
    withDatabase(database, (db) => {
      db.pragma('ignore_check_constraints = on');
      db.exec(`CREATE TABLE slow (x CHECK (length(hex(zeroblob(50000))) > 0));
        WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 200000) INSERT INTO slow SELECT x FROM n`);
    });
    // Other processes may have left files in the common directory.
    const before = leftoversIn(os.tmpdir());
    const controller = new AbortController();
    const checking = new IntegrityChecker(database).runChecks({
      signal: controller.signal,
      onProgress: ({ phase, bytesTotal }) =>
        phase === 'checking' && bytesTotal > 0 && controller.abort('enough'),
    });
    await expect(checking).rejects.toMatchObject({ name: 'AbortError', code: 'ABORT_ERR' });
    expect(
      leftoversIn(os.tmpdir()).filter(
        (name) => name.startsWith('.kg-snapshot-') && !before.includes(name),
      ),
    ).toEqual([]);
  });
});

describe('damage', () => {
  const damages = {
    'noise in the middle': (bytes) => bytes.fill(0xa5, bytes.length / 2, bytes.length / 2 + 9000),
    'a header of zeros': (bytes) => bytes.fill(0, 0, 100),
    'a truncated file': (bytes) => bytes.subarray(0, Math.floor(bytes.length * 0.6)),
    'a text file': () => Buffer.from('not a database at all\n'.repeat(500)),
    'an empty file': () => Buffer.alloc(0),
  };
  for (const [name, damage] of Object.entries(damages)) {
    test(`${name} is reported, and the file does not change`, async () => {
      const { root, database } = makeProject({ nodes: 2000, journalMode: 'delete' });
      const bytes = readFileSync(database);
      writeFileSync(database, damage(bytes) ?? bytes);
      const before = fingerprint(root);
      const result = await new IntegrityChecker(database).runChecks();
      expect(result.healthy).toBe(false);
      expect(result.issues[0]).toMatchObject({
        severity: 'error',
        component: 'database',
        path: '.kg/knowledge.db',
      });
      expect(fingerprint(root)).toEqual(before);
      const health = await kg(['diag', 'health'], { cwd: root });
      expect(health.status).toBe(3);
    });
  }
});

describe('repair', () => {
  test('fixes what it can while the host has the database open, after a backup of the old state', async () => {
    const { root, database } = makeProject();
    breakRows(database);
    const before = contents(root);
    const db = new Database(database);
    onTestFinished(() => db.close());
    const checker = new IntegrityChecker(db);
    const found = await checker.runChecks();
    expect(found.healthy).toBe(false);
    expect(broken(found)).toEqual(BROKEN);
    // The checker searches for the rows again, because it does not trust the given issues.
    const forged = found.issues.map((issue) => ({
      ...issue,
      rowid: 1,
      table: 'nodes',
      examples: ['n1'],
    }));
    const repaired = await checker.repair(forged);
    expect(repaired).toMatchObject({
      fixed: 4,
      failed: 0,
      healthy: true,
      safetyBackup: { id: expect.stringMatching(/^backup-/) },
    });
    expect(broken(repaired)).toEqual([]);
    expect(
      repaired.actions.map((action) => [action.code, action.done, action.rowsRemoved]).sort(),
    ).toEqual([
      ['KG_ISSUE_EDGE_SOURCE', true, 1],
      ['KG_ISSUE_EDGE_TARGET', true, 1],
      ['KG_ISSUE_FTS_DAMAGED', true, 0],
      ['KG_ISSUE_TAG_ORPHAN', true, 1],
    ]);
    // The connection of the host sees the repair.
    expect(db.prepare('SELECT count(*) FROM edges').pluck().get()).toBe(199);
    expect(
      db.prepare("SELECT rowid FROM nodes_fts WHERE nodes_fts MATCH 'Other'").all(),
    ).toHaveLength(1);
    const removed = db.prepare('SELECT * FROM kg_repair_removed ORDER BY id').all();
    expect(removed.map((row) => [row.table, row.reason, JSON.parse(row.row)])).toEqual([
      [
        'edges',
        'KG_ISSUE_EDGE_SOURCE',
        expect.objectContaining({ source_id: 'gone', target_id: 'n1' }),
      ],
      [
        'edges',
        'KG_ISSUE_EDGE_TARGET',
        expect.objectContaining({ source_id: 'n1', target_id: 'lost' }),
      ],
      ['node_tags', 'KG_ISSUE_TAG_ORPHAN', { node_id: 'gone', tag_id: 5 }],
    ]);
    expect(new Date(removed[0].removed_at).getTime()).toBeGreaterThan(Date.now() - 60_000);
    expect(integrityOf(database)).toBe('ok');

    const manager = createBackupManager({ projectRoot: root });
    expect(await manager.verifyBackup(repaired.safetyBackup.path)).toBe(true);
    await manager.restore({ backupId: repaired.safetyBackup.id, overwrite: true });
    expect(contents(root).filter((line) => line.includes('knowledge.db'))).toEqual(
      before.filter((line) => line.includes('knowledge.db')),
    );
  });

  test('repairs only the given codes, and counts missing ones as skipped', async () => {
    const { database, backups } = makeProject();
    breakRows(database);
    const checker = new IntegrityChecker(database, { backupDir: backups });
    const repaired = await checker.repair([
      { code: 'KG_ISSUE_TAG_ORPHAN' },
      { code: 'KG_ISSUE_INDEX_DAMAGED' },
      { code: 'KG_ISSUE_NO_SUCH' },
    ]);
    expect(repaired).toMatchObject({ fixed: 1, failed: 0, skipped: 2 });
    expect(broken(repaired)).toEqual(BROKEN.slice(0, 3));
    expect(readdirSync(backups)).toContain(path.basename(repaired.safetyBackup.path));
  });

  test('keeps a copy next to a repaired database outside every project', async () => {
    const dir = temporaryDirectory();
    const file = path.join(dir, 'alone.db');
    fillDatabase(file);
    breakRows(file);
    chmodSync(file, 0o640);
    const rows = (database) =>
      withDatabase(database, (db) =>
        ['nodes', 'edges', 'node_tags'].map((table) => db.prepare(`SELECT * FROM ${table}`).all()),
      );
    const before = rows(file);
    const db = new Database(file);
    onTestFinished(() => db.close());
    const checker = new IntegrityChecker(db);
    const { repair, healthy } = await checker.runChecks({ repairMode: true });
    expect(healthy).toBe(true);
    expect(repair).toMatchObject({
      fixed: 4,
      failed: 0,
      safetyCopy: expect.stringMatching(/\/alone\.db-before-repair-\d{8}-\d{6}\.sqlite$/),
    });
    expect(repair.safetyBackup).toBe(undefined);
    expect(statSync(repair.safetyCopy).mode & 0o777).toBe(0o640);
    expect(rows(repair.safetyCopy)).toEqual(before);
    expect(db.prepare('SELECT count(*) FROM edges').pluck().get()).toBe(199);
    // The repair must not add other files or replace existing ones.
    db.exec("INSERT INTO node_tags VALUES ('gone', 6)");
    const output = (await kg(['diag', 'repair', '--auto', file], { cwd: '/' })).stdout;
    expect(output).toMatch(/^Saved before the repair: .*before-repair-.*\.sqlite\n/);
    expect(readdirSync(dir).filter((name) => !/^alone\.db(-wal|-shm)?$/.test(name))).toHaveLength(
      2,
    );
  });

  test('leaves a damaged database outside every project as it is, because no copy could keep it', async () => {
    const dir = temporaryDirectory();
    const file = path.join(dir, 'alone.db');
    fillDatabase(file, { nodes: 2000, journalMode: 'delete' });
    const bytes = readFileSync(file);
    writeFileSync(file, bytes.fill(0xa5, bytes.length / 2, bytes.length / 2 + 9000));
    await expect(new IntegrityChecker(file).runChecks({ repairMode: true })).rejects.toMatchObject({
      code: 'KG_NO_PROJECT',
      remedy: expect.stringContaining('copy it into a project'),
    });
    expect(readdirSync(dir)).toEqual(['alone.db']);
    expect(readFileSync(file).equals(bytes)).toBe(true);
  });

  test('repairMode repairs everything that it can, and a second run finds no work', async () => {
    const { root } = makeProject();
    breakRows(path.join(root, '.kg/knowledge.db'));
    const checker = new IntegrityChecker(root);
    const first = await checker.runChecks({ repairMode: true });
    expect(first).toMatchObject({ healthy: true, repair: { fixed: 4, failed: 0 } });
    const second = await checker.runChecks({ repairMode: true });
    expect(second.repair).toEqual({
      fixed: 0,
      failed: 0,
      skipped: second.issues.length,
      actions: [],
    });
  });

  test('a lock that another process holds is an error that changes nothing', async () => {
    const { root, database } = makeProject();
    breakRows(database);
    const db = new Database(database);
    onTestFinished(() => db.close());
    db.exec("BEGIN IMMEDIATE; INSERT INTO metadata VALUES ('held', 'yes')");
    const checker = new IntegrityChecker(root, { lockTimeout: 300 });
    await expect(checker.runChecks({ repairMode: true })).rejects.toMatchObject({
      code: 'KG_DATABASE_BUSY',
      remedy: expect.stringMatching(/backup-/),
    });
    db.exec('COMMIT');
    expect(broken(await checker.runChecks())).toEqual(BROKEN);
  });
});

describe('drills', () => {
  test('a backup is restored to a temporary directory, checked, counted and removed', async () => {
    const { root, backups, database } = makeProject();
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    await manager.createBackup();
    withDatabase(database, (db) => db.exec("INSERT INTO nodes (id) VALUES ('later')"));
    await manager.createBackup({ type: 'incremental' });
    const directory = temporaryDirectory();
    const before = fingerprint(root);
    const rehearsal = await manager.rehearse({ directory });
    expect(rehearsal).toMatchObject({
      passed: true,
      nodes: { expected: 201, found: 201 },
      edges: { expected: 199, found: 199 },
      filesRestored: 4,
    });
    expect(rehearsal.restoreMs).toBeGreaterThan(0);
    expect(rehearsal.durationMs).toBeGreaterThanOrEqual(rehearsal.restoreMs);
    expect(readdirSync(directory)).toEqual([]);
    expect(fingerprint(root)).toEqual(before);
  });

  test('a backup of a damaged database fails the drill, and a damaged backup rejects', async () => {
    const { root, backups, database } = makeProject({ nodes: 2000, journalMode: 'delete' });
    const bytes = readFileSync(database);
    writeFileSync(database, bytes.fill(0xa5, bytes.length / 2, bytes.length / 2 + 9000));
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    const backup = await manager.createBackup();
    const directory = temporaryDirectory();
    const rehearsal = await manager.rehearse({ directory });
    expect(rehearsal.passed).toBe(false);
    expect(codes(rehearsal)).toContain('KG_ISSUE_DATABASE_DAMAGED');
    const archive = readFileSync(backup.path);
    archive[archive.length >> 1] ^= 1;
    writeFileSync(backup.path, archive);
    await expect(manager.rehearse({ directory })).rejects.toMatchObject({
      code: 'KG_CHECKSUM_MISMATCH',
    });
    expect(readdirSync(directory)).toEqual([]);
  });

  test('a database outside the project is checked in the drill, not in its live place', async () => {
    const { root, backups, database } = makeProject();
    const outside = path.join(temporaryDirectory(), 'graph.db');
    fillDatabase(outside, { nodes: 7 });
    rmSync(database);
    writeFileSync(
      path.join(root, '.kg/config.json'),
      JSON.stringify({ database: { path: outside } }),
    );
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    await manager.createBackup();
    withDatabase(outside, (db) => db.exec('DELETE FROM edges; DELETE FROM nodes'));
    expect(await manager.rehearse()).toMatchObject({
      passed: true,
      nodes: { expected: 7, found: 7 },
    });
  });

  for (const signal of ['SIGTERM', 'SIGKILL']) {
    test(`${signal} during a drill leaves no files${signal === 'SIGKILL' ? ' after the next one' : ''}`, async () => {
      const { root } = makeProject({ nodes: 30_000 });
      await createBackupManager({ projectRoot: root }).createBackup();
      const directory = temporaryDirectory();
      const env = { ...process.env, TMPDIR: temporaryDirectory() };
      const child = spawn(kgPath, ['diag', 'drill', '--directory', directory], {
        cwd: root,
        env,
        stdio: 'ignore',
      });
      onTestFinished(() => child.kill('SIGKILL'));
      await until(() => readdirSync(directory).length > 0, 'a directory of the drill');
      child.kill(signal);
      await once(child, 'exit');
      if (signal === 'SIGKILL')
        expect(
          (await kg(['diag', 'drill', '--directory', directory], { cwd: root, env })).status,
        ).toBe(0);
      expect(readdirSync(directory)).toEqual([]);
      expect(leftoversIn(env.TMPDIR)).toEqual([]);
    });
  }
});

describe('freshness', () => {
  test('suits the monitor of the guide, and tells a recent good backup from an old or missing one', async () => {
    const { root, backups } = makeProject();
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    const day = backupFreshnessCheck(manager, { maxAge: '24h' });
    expect(day).toEqual({
      name: 'backup-freshness',
      interval: '1h',
      check: expect.any(Function),
      status: expect.any(Function),
    });
    expect(await day.check()).toBe(false);
    const { timestamp } = await manager.createBackup();
    expect(await day.check()).toBe(true);
    await until(() => Date.now() > timestamp + 1);
    expect(
      await backupFreshnessCheck(manager, { maxAge: 1, interval: '5m', name: 'x' }).check(),
    ).toBe(false);
    for (const maxAge of ['soon', 0, -1, NaN, '1.5h'])
      expect(() => backupFreshnessCheck(manager, { maxAge })).toThrow(
        expect.objectContaining({ code: 'KG_INVALID_OPTION' }),
      );
    expect(() => backupFreshnessCheck({})).toThrow(
      expect.objectContaining({ code: 'KG_INVALID_OPTION' }),
    );
  });

  test('does not count an incremental backup without its base', async () => {
    const { root, backups } = makeProject();
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    const full = await manager.createBackup();
    await manager.createBackup({ type: 'incremental' });
    await manager.createBackup({ type: 'incremental' });
    const { check } = backupFreshnessCheck(manager);
    expect(await check()).toBe(true);
    rmSync(full.path);
    expect(await check()).toBe(false);
    const health = resultOf(
      (await kg(['diag', 'health', '--json', '--backup-dir', backups], { cwd: root })).stdout,
    );
    expect(health.issues.find((issue) => issue.code === 'KG_ISSUE_BACKUP_CHAIN').count).toBe(2);
    expect(codes(health)).toContain('KG_ISSUE_BACKUP_NONE');
  });

  test('does not count a backup of a damaged database', async () => {
    const { root, backups, database } = makeProject({ nodes: 2000, journalMode: 'delete' });
    const manager = createBackupManager({ projectRoot: root, backupDir: backups });
    const bytes = readFileSync(database);
    writeFileSync(database, bytes.fill(0xa5, bytes.length / 2, bytes.length / 2 + 9000));
    await manager.createBackup();
    expect(await backupFreshnessCheck(manager).check()).toBe(false);
  });
});

describe('kg', () => {
  test('diag health reports the state, and its exit status names the problem', async () => {
    const { root, database } = makeProject();
    const health = async (...args) => {
      const { status, stdout } = await kg(['diag', 'health', '--json', ...args], { cwd: root });
      return { status, ...resultOf(stdout) };
    };
    expect(await health()).toMatchObject({ status: 0, healthy: true, backups: { count: 0 } });
    expect(codes(await health())).toContain('KG_ISSUE_BACKUP_NONE');
    const manager = createBackupManager({ projectRoot: root });
    const full = await manager.createBackup();
    withDatabase(database, (db) => db.exec("INSERT INTO nodes (id) VALUES ('later')"));
    const incremental = await manager.createBackup({ type: 'incremental' });
    expect(await health('--check-db')).toMatchObject({
      status: 0,
      backups: { count: 2, newestGood: incremental.id, freeBytes: expect.any(Number) },
    });
    expect(codes(await health('--max-age', '0s'))).toContain('KG_ISSUE_BACKUP_OLD');
    expect((await kg(['diag', 'health'], { cwd: root })).stdout).toMatch(
      /^Database .*\nBackups .*\nDisk .*\n[^]*Healthy\n$/,
    );

    rmSync(`${full.path}.manifest.json`);
    expect(await health()).toMatchObject({ status: 5 });
    rmSync(full.path);
    const chain = await health();
    expect([chain.status, codes(chain)]).toEqual([
      5,
      expect.arrayContaining(['KG_ISSUE_BACKUP_CHAIN']),
    ]);
    writeFileSync(incremental.path, readFileSync(incremental.path).subarray(0, -1));
    const cut = await health();
    expect([cut.status, codes(cut)]).toEqual([
      5,
      expect.arrayContaining(['KG_ISSUE_BACKUP_UNLISTED']),
    ]);
    writeFileSync(path.join(root, 'file'), '');
    const unusable = await kg(['diag', 'health', '--json', '--backup-dir', 'file/below'], {
      cwd: root,
    });
    expect([unusable.status, codes(resultOf(unusable.stdout))]).toEqual([
      4,
      expect.arrayContaining(['KG_ISSUE_BACKUP_DIR']),
    ]);

    breakRows(database);
    expect((await health()).status).toBe(5);
    expect(await health('--check-db')).toMatchObject({ status: 3, healthy: false });
  });

  test('diag health --watch repeats the report until it is interrupted', async () => {
    const { root } = makeProject();
    const child = spawn(kgPath, ['diag', 'health', '--watch', '--interval', '1', '--json'], {
      cwd: root,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    onTestFinished(() => child.kill('SIGKILL'));
    let reports = '';
    child.stdout.on('data', (text) => (reports += text));
    await until(() => reports.split('\n').length > 2, 'a second report');
    child.kill('SIGINT');
    expect((await once(child, 'exit'))[0]).toBe(130);
    for (const line of reports.trim().split('\n').slice(0, 2))
      expect(resultOf(line)).toMatchObject({ healthy: true });
  });

  test('diag integrity lists problems, diag repair shows its plan, and --auto carries it out', async () => {
    const { root, database } = makeProject();
    expect(await kg(['diag', 'integrity'], { cwd: root })).toMatchObject({
      status: 0,
      stdout: expect.stringMatching(/knowledge\.db is healthy/),
    });
    breakRows(database);
    // SQLite creates an empty WAL and its index when it opens a database in WAL mode.
    const data = () => fingerprint(root).filter((line) => !/-(shm|wal) /.test(line));
    const before = data();
    const listed = await kg(['diag', 'integrity', database], { cwd: '/' });
    expect(listed).toMatchObject({
      status: 3,
      stdout: expect.stringMatching(
        /error +1 edge .*\[KG_ISSUE_EDGE_SOURCE\]\n.*\n +repair would: /,
      ),
    });
    const asked = await kg(['diag', 'repair'], { cwd: root });
    expect(asked).toMatchObject({
      status: 3,
      stdout: expect.stringMatching(
        /Nothing was changed\. To repair, run `kg diag repair --auto`\n$/,
      ),
    });
    expect(data()).toEqual(before);
    const done = await kg(['diag', 'repair', '--auto'], { cwd: root });
    expect(done).toMatchObject({
      status: 0,
      stdout: expect.stringMatching(/^Saved before the repair: .*\n[^]*4 fixed, 0 failed/),
    });
    const again = resultOf(
      (await kg(['diag', 'integrity', '--repair', '--json'], { cwd: root })).stdout,
    );
    expect(again.repair).toMatchObject({ fixed: 0, actions: [] });
  });

  test('diag repair asks for confirmation on a terminal', () => {
    const { root, database } = makeProject();
    breakRows(database);
    const answer = (text) => kgOnTerminal(['diag', 'repair'], root, text);
    expect(() => answer('n\n')).toThrow(
      expect.objectContaining({
        status: 3,
        stdout: expect.stringMatching(/Repair 4 of these, after a backup\? \[y\/N\]/),
      }),
    );
    expect(answer('y\n')).toMatch(/4 fixed/);
  });

  test('diag drill exits with 0 if it passes and with 5 if it fails', async () => {
    const { root, database } = makeProject({ nodes: 2000, journalMode: 'delete' });
    await kg(['diag', 'backup'], { cwd: root });
    expect(await kg(['diag', 'drill'], { cwd: root })).toMatchObject({
      status: 0,
      stdout: expect.stringMatching(/nodes {5}2000 of 2000\n[^]*Passed\n$/),
    });
    const bytes = readFileSync(database);
    writeFileSync(database, bytes.fill(0xa5, bytes.length / 2, bytes.length / 2 + 9000));
    const { id } = resultOf((await kg(['diag', 'backup', '--json'], { cwd: root })).stdout);
    const failed = await kg(['diag', 'drill', '--file', id, '--json'], { cwd: root });
    expect([failed.status, resultOf(failed.stdout).passed]).toEqual([5, false]);
  });

  test('a restored copy passes the monthly test of the guide, and Level 1 ends healthy', async () => {
    const { root, database } = makeProject();
    await kg(['diag', 'backup', '--output', './backups'], { cwd: root });
    mkdirSync(path.join(root, 'test-restore'));
    run(
      kgPath,
      ['diag', 'restore', '--file', './backups/latest.tar.gz', '--target', './test-restore'],
      { cwd: root },
    );
    expect(
      await kg(['diag', 'health', '--project', './test-restore'], { cwd: root }),
    ).toMatchObject({ status: 0 });
    for (const suffix of ['-wal', '-shm']) rmSync(database + suffix, { force: true });
    writeFileSync(database, 'damaged');
    expect(await kg(['diag', 'health', '--check-db'], { cwd: root })).toMatchObject({ status: 3 });
    await kg(['diag', 'restore', '--file', './backups/latest.tar.gz'], { cwd: root });
    expect(await kg(['diag', 'health', '--check-db'], { cwd: root })).toMatchObject({ status: 0 });
  });
});
