// A repair of damaged pages saves the readable content in a new database and loses nothing else.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';

import { createBackupManager, IntegrityChecker } from '@weavelogic/knowledge-graph-agent';
import Database from 'better-sqlite3';
import { expect, onTestFinished, test } from 'vitest';

import { kg, kgPath, until } from './support/processes.mjs';
import {
  fillDatabase,
  integrityOf,
  makeProject,
  temporaryDirectory,
  withDatabase,
} from './support/project.mjs';

const rowsOf = (file, table = 'nodes') =>
  withDatabase(file, (db) => db.prepare(`SELECT rowid, * FROM ${table} ORDER BY rowid`).all());

/** Serializes rows so that their order does not matter. */
const byText = (rows) => rows.map((row) => JSON.stringify(row)).sort();

/** Overwrites whole pages, counted from 1, with bytes that no page type has. */
function damagePages(file, pages) {
  const bytes = readFileSync(file);
  for (const page of pages) bytes.fill(0xa5, (page - 1) * 4096, page * 4096);
  writeFileSync(file, bytes);
  return bytes;
}

/** Returns two pages in the middle of `nodes` and the rows on the other pages. */
function middleOfNodes(file) {
  return withDatabase(file, (db) => {
    const leaves = db
      .prepare(
        "SELECT pageno, ncell FROM dbstat WHERE name = 'nodes' AND pagetype = 'leaf' ORDER BY path",
      )
      .all();
    const rows = db.prepare('SELECT rowid, * FROM nodes ORDER BY rowid').all();
    const pages = [leaves.length >> 1, (leaves.length >> 1) + 1].map(
      (number) => leaves[number].pageno,
    );
    const whole = leaves.flatMap(({ pageno, ncell }) => {
      const onPage = rows.splice(0, ncell);
      return pages.includes(pageno) ? [] : onPage;
    });
    expect(rows).toEqual([]);
    return { pages, whole };
  });
}

/**
 * Checks that an undo put the damaged pages back. The undo uses SQLite, which changes a counter in
 * the header.
 */
const isPutBack = (file, damaged) => readFileSync(file).subarray(100).equals(damaged.subarray(100));

/** Returns the files that a killed salvage may leave. */
const leftoversOf = (root) =>
  readdirSync(path.join(root, '.kg')).filter((name) =>
    /^(restore-(staging|journal)|\.kg-)/.test(name),
  );

test('a full-text index of FTS4 on sound pages is rebuilt next to a damaged table', async () => {
  const { root, database } = makeProject({ nodes: 200, journalMode: 'delete' });
  withDatabase(database, (db) =>
    db.exec(
      "CREATE VIRTUAL TABLE notes USING fts4(a); INSERT INTO notes VALUES ('hello'), ('world')",
    ),
  );
  const page = withDatabase(database, (db) =>
    db.prepare("SELECT rootpage FROM sqlite_schema WHERE name = 'tags'").pluck().get(),
  );
  damagePages(database, [page]);
  const { status, stderr } = await kg(['diag', 'repair', '--auto', '--project', root]);
  expect([status, stderr.includes('KG_INTERNAL')]).toEqual([6, false]);
  expect(rowsOf(database, "notes WHERE notes MATCH 'hello'")).toHaveLength(1);
  expect(integrityOf(database)).toBe('ok');
});

for (const journalMode of ['wal', 'delete']) {
  test(`pages of noise cost only the rows on them, in ${journalMode} mode`, async () => {
    const { root, database } = makeProject({ nodes: 2000, journalMode });
    const { pages, whole } = middleOfNodes(database);
    const edges = rowsOf(database, 'edges');
    const damaged = damagePages(database, pages);
    chmodSync(database, 0o640);

    const checker = new IntegrityChecker(root);
    const found = await checker.runChecks();
    expect(found.healthy).toBe(false);
    const issue = found.issues[0];
    expect(issue).toMatchObject({
      code: 'KG_ISSUE_DATABASE_DAMAGED',
      repairable: true,
      repair: expect.stringMatching(/new database/),
    });
    expect(issue.remedy).toMatch(/kg diag restore.*kg diag repair/);
    const repaired = await checker.repair(found.issues);

    expect(byText(rowsOf(database))).toEqual(byText(whole));
    expect(repaired).toMatchObject({ healthy: true, failed: 0, checked: { nodes: whole.length } });
    expect(integrityOf(database)).toBe('ok');
    expect(withDatabase(database, (db) => db.pragma('journal_mode', { simple: true }))).toBe(
      journalMode,
    );
    expect(statSync(database).mode & 0o777).toBe(0o640);
    const [{ salvage, ...action }] = repaired.actions;
    expect(action).toMatchObject({
      code: 'KG_ISSUE_DATABASE_DAMAGED',
      component: 'database',
      done: true,
      rowsRemoved: 0,
    });
    const nodes = salvage.tables.find((table) => table.name === 'nodes');
    expect(nodes).toMatchObject({
      rowsRecovered: whole.length,
      rowsLost: 2000 - whole.length,
      rowsLostBy: 'index',
      pagesLost: 2,
    });
    expect(salvage).toMatchObject({
      headerReadable: true,
      schemaReadable: true,
      lostAndFound: null,
      unreadablePages: { count: 2 },
    });
    // The repair moves edges of lost nodes to another table and keeps all others.
    const ids = new Set(whole.map((row) => row.id));
    expect(rowsOf(database, 'edges')).toEqual(edges.filter((edge) => ids.has(edge.source_id)));
    const removed = withDatabase(database, (db) =>
      db.prepare('SELECT count(*) FROM kg_repair_removed').pluck().get(),
    );
    expect(removed).toBe(edges.filter((edge) => !ids.has(edge.source_id)).length);

    // The damaged file is kept in two places: in restore-undo and in the backup.
    expect(readFileSync(salvage.kept).equals(damaged)).toBe(true);
    const manager = createBackupManager({ projectRoot: root });
    expect(await manager.verifyBackup(repaired.safetyBackup.path)).toBe(true);
    const target = temporaryDirectory();
    await manager.restore({ backupId: repaired.safetyBackup.id, targetDir: target });
    expect(readFileSync(path.join(target, '.kg/knowledge.db')).equals(damaged)).toBe(true);
    expect(leftoversOf(root)).toEqual([]);
    await manager.undoRestore();
    expect(isPutBack(database, damaged)).toBe(true);
  });
}

test('a header of zeros costs no row, and repairMode saves all of them', async () => {
  const { root, database } = makeProject({ nodes: 500 });
  const before = { nodes: rowsOf(database), edges: rowsOf(database, 'edges') };
  const bytes = readFileSync(database);
  writeFileSync(database, bytes.fill(0, 0, 100));
  const result = await new IntegrityChecker(root).runChecks({ repairMode: true });
  expect(result).toMatchObject({
    healthy: true,
    repair: { failed: 0, actions: [{ done: true, salvage: { headerReadable: false } }] },
  });
  expect({ nodes: rowsOf(database), edges: rowsOf(database, 'edges') }).toEqual(before);
  expect(readFileSync(result.repair.actions[0].salvage.kept).equals(bytes)).toBe(true);
});

test('if the schema is lost, the documented tables are created and filled', async () => {
  const { root, database } = makeProject({ nodes: 500 });
  const before = rowsOf(database);
  damagePages(database, [1]);
  const result = await new IntegrityChecker(root).runChecks({ repairMode: true });
  expect(result.issues.filter(({ severity }) => severity === 'error')).toEqual([]);
  const [{ salvage }] = result.repair.actions;
  expect(salvage).toMatchObject({ headerReadable: false, schemaReadable: false });
  expect(rowsOf(database).length + (salvage.lostAndFound?.rows ?? 0)).toBeGreaterThanOrEqual(
    before.length,
  );
  expect(byText(before)).toEqual(expect.arrayContaining(byText(rowsOf(database))));
  expect(integrityOf(database)).toBe('ok');
});

/** Makes a damaged project whose last commit is only in the WAL, as after a crash. */
function makeCrashedProject() {
  const { database } = makeProject({ nodes: 2000 });
  const { pages, whole } = middleOfNodes(database);
  const db = new Database(database);
  onTestFinished(() => db.close());
  db.exec("INSERT INTO metadata VALUES ('in', 'the WAL')");
  const project = makeProject({ nodes: 1 });
  for (const suffix of ['', '-wal']) copyFileSync(database + suffix, project.database + suffix);
  const damaged = damagePages(project.database, pages);
  return { ...project, damaged, whole, wal: readFileSync(`${project.database}-wal`) };
}

test('content of the WAL is saved too, and the WAL is kept next to the damaged database', async () => {
  const { root, database, damaged, whole, wal } = makeCrashedProject();
  const result = await new IntegrityChecker(root).runChecks({ repairMode: true });
  const [{ salvage }] = result.repair.actions;
  expect(salvage.wal).toBe('applied');
  expect(rowsOf(database, 'metadata')).toMatchObject([{ key: 'in', value: 'the WAL' }]);
  expect(byText(rowsOf(database))).toEqual(byText(whole));
  expect(readFileSync(salvage.kept).equals(damaged)).toBe(true);
  expect(readFileSync(`${salvage.kept}-wal`).equals(wal)).toBe(true);
  expect(result.healthy).toBe(true);
});

test('a database outside the project is replaced in its place', async () => {
  const { root, database } = makeProject({ nodes: 1 });
  const outside = path.join(temporaryDirectory(), 'graph.db');
  fillDatabase(outside, { nodes: 2000 });
  const { pages, whole } = middleOfNodes(outside);
  rmSync(database);
  writeFileSync(
    path.join(root, '.kg/config.json'),
    JSON.stringify({ database: { path: outside } }),
  );
  const damaged = damagePages(outside, pages);
  // Other projects may use this database, so the caller must name it.
  await expect(new IntegrityChecker(root).runChecks({ repairMode: true })).rejects.toMatchObject({
    code: 'KG_INVALID_OPTION',
  });
  const result = await new IntegrityChecker(outside, { projectRoot: root }).runChecks({
    repairMode: true,
  });
  const [{ salvage }] = result.repair.actions;
  expect(salvage.kept.startsWith(path.join(root, '.kg/restore-undo/'))).toBe(true);
  expect(readFileSync(salvage.kept).equals(damaged)).toBe(true);
  expect(byText(rowsOf(outside))).toEqual(byText(whole));
  expect(result.healthy).toBe(true);
});

test('a file of noise is refused with a message, and stays byte for byte', async () => {
  const { root, database } = makeProject({ nodes: 500, journalMode: 'delete' });
  let state = 1;
  const noise = Buffer.from(
    readFileSync(database).map(() => (state = (state * 1103515245 + 12345) % 2147483648) >> 16),
  );
  writeFileSync(database, noise);
  const result = await new IntegrityChecker(root).runChecks({ repairMode: true });
  expect(result).toMatchObject({ healthy: false, repair: { fixed: 0, failed: 1 } });
  expect(result.repair.actions).toMatchObject([
    {
      done: false,
      error: {
        code: 'KG_DATABASE_DAMAGED',
        remedy: expect.stringMatching(/[Rr]estore the newest/),
      },
    },
  ]);
  expect(readFileSync(database).equals(noise)).toBe(true);
  expect(existsSync(path.join(root, '.kg/restore-undo'))).toBe(false);
  expect(leftoversOf(root)).toEqual([]);
});

test('on the command line, nothing changes without --auto, and --auto reports the saved rows', async () => {
  const { root, database } = makeProject({ nodes: 2000, journalMode: 'delete' });
  const { pages, whole } = middleOfNodes(database);
  const damaged = damagePages(database, pages);
  const asked = await kg(['diag', 'repair'], { cwd: root });
  expect(asked.status).toBe(3);
  expect(asked.stdout).toMatch(
    /repair would: Salvage what can be read.*\n +to do: Restore the newest good backup/,
  );
  expect(readFileSync(database).equals(damaged)).toBe(true);
  const done = await kg(['diag', 'repair', '--auto'], { cwd: root });
  // Rows are lost with their pages, so the status is not success.
  expect(done).toMatchObject({ status: 6 });
  expect(done.stdout).toMatch(/^Saved before the repair: .*\n +done +Salvage what can be read/);
  expect(done.stdout).toContain(`nodes: ${whole.length} rows saved, ${2000 - whole.length} lost\n`);
  expect(done.stdout).toContain('edges: 1999 rows saved, none lost\n');
  const [, kept] = done.stdout.match(/The damaged database is (.*)\n/);
  expect(readFileSync(kept).equals(damaged)).toBe(true);
  expect(await kg(['diag', 'health', '--check-db'], { cwd: root })).toMatchObject({ status: 0 });
  const undone = await kg(['diag', 'restore', '--undo', '--yes'], { cwd: root });
  expect(undone).toMatchObject({
    status: 0,
    stdout: expect.stringMatching(/^Undid the repair at /),
  });
  expect(isPutBack(database, damaged)).toBe(true);

  writeFileSync(database, Buffer.alloc(damaged.length, 0xa5));
  const hopeless = await kg(['diag', 'repair', '--auto'], { cwd: root });
  expect(hopeless).toMatchObject({
    status: 3,
    stdout: expect.stringMatching(
      /FAILED Salvage what can be read.*\n +.*nothing that could be salvaged/,
    ),
  });
});

for (const moment of ['restore-staging-', 'restore-journal', 'restore-undo']) {
  test(`killed when ${moment} exists, it leaves the old files or the new one after the next run`, async () => {
    const { root, database, damaged, whole, wal } = makeCrashedProject();
    const child = spawn(kgPath, ['diag', 'repair', '--auto'], { cwd: root, stdio: 'ignore' });
    onTestFinished(() => child.kill('SIGKILL'));
    const exited = once(child, 'exit');
    const isOver = () => child.exitCode !== null;
    await until(
      () => isOver() || readdirSync(path.join(root, '.kg')).some((name) => name.startsWith(moment)),
      moment,
    );
    child.kill('SIGKILL');
    await exited;
    expect((await kg(['diag', 'backup'], { cwd: root })).status).toBe(0);
    expect(leftoversOf(root)).toEqual([]);
    const isOld = readFileSync(database).equals(damaged);
    if (isOld) expect(readFileSync(`${database}-wal`).equals(wal)).toBe(true);
    else expect(integrityOf(database)).toBe('ok');
    // Rows that were repaired before the kill must not be lost again.
    expect((await kg(['diag', 'repair', '--auto'], { cwd: root })).status).toBe(isOld ? 6 : 0);
    expect(byText(rowsOf(database))).toEqual(byText(whole));
    expect(rowsOf(database, 'metadata')).toMatchObject([{ value: 'the WAL' }]);
  });
}
