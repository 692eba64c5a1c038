// A writer in rollback-journal mode is killed when half of its transaction is in the file. Every
// command must use the commit before it.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { createBackupManager, IntegrityChecker } from '@weavelogic/knowledge-graph-agent';
import { expect, onTestFinished, test } from 'vitest';

import { kg } from './support/processes.mjs';
import {
  fingerprint,
  integrityOf,
  makeProject,
  temporaryDirectory,
  withDatabase,
} from './support/project.mjs';

const TABLES = ['nodes', 'edges', 'metadata'];
const HALF =
  "UPDATE nodes SET content = 'half', title = 'half'; DELETE FROM nodes WHERE rowid > 1500; INSERT INTO metadata VALUES ('half', 'done')";

const rowsOf = (file) =>
  withDatabase(file, (db) =>
    Object.fromEntries(
      TABLES.map((table) => [
        table,
        db.prepare(`SELECT rowid, * FROM ${table} ORDER BY rowid`).all(),
      ]),
    ),
  );

const pagesOf = (file, table) =>
  withDatabase(file, (db) =>
    db
      .prepare(
        "SELECT pageno AS page, ncell AS rows FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY path",
      )
      .all(table),
  );

/**
 * Begins a transaction in a separate process and kills it after pages of it were spilled into the
 * file.
 */
async function killWriter(database) {
  const committed = readFileSync(database);
  const script = `
    const db = require('better-sqlite3')(process.argv[1]);
    db.pragma('cache_size = 5');
    db.pragma('cache_spill = 5');
    db.pragma('foreign_keys = OFF');
    db.exec(${JSON.stringify(`BEGIN; ${HALF}`)});
    console.log('written');
    setInterval(() => {}, 1000);`;
  const writer = spawn(process.execPath, ['-e', script, database], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  onTestFinished(() => writer.kill('SIGKILL'));
  await once(writer.stdout, 'data');
  writer.kill('SIGKILL');
  await once(writer, 'exit');
  expect(statSync(`${database}-journal`).size).toBeGreaterThan(0);
  expect(readFileSync(database).equals(committed), 'some of it is in the file').toBe(false);
}

/**
 * Makes a project with such a database. `change` is committed before the transaction; `before` is
 * the committed content.
 */
async function makeProjectWithKilledWriter({ change = '' } = {}) {
  const project = makeProject({ nodes: 2000, journalMode: 'delete' });
  withDatabase(project.database, (db) => db.exec(change));
  const before = rowsOf(project.database);
  const pages = {
    nodes: pagesOf(project.database, 'nodes'),
    edges: pagesOf(project.database, 'edges'),
  };
  await killWriter(project.database);
  return { ...project, before, pages };
}

function damagePage(file, page) {
  const bytes = readFileSync(file).fill(0xa5, (page - 1) * 4096, page * 4096);
  writeFileSync(file, bytes);
  return bytes;
}

test('a backup holds the commit before, a check finds no problem, and neither changes the file or its journal', async () => {
  const { root, before } = await makeProjectWithKilledWriter();
  const manager = createBackupManager({
    projectRoot: root,
    backupDir: path.join(temporaryDirectory(), 'backups'),
  });
  const files = fingerprint(root);
  const result = await new IntegrityChecker(root).runChecks();
  expect(result).toMatchObject({ healthy: true, checked: { nodes: 2000, edges: 1999 } });
  expect(result.issues.filter(({ component }) => component === 'database')).toEqual([]);
  expect(
    await kg(['diag', 'health', '--check-db', '--backup-dir', temporaryDirectory()], { cwd: root }),
  ).toMatchObject({ stdout: expect.stringMatching(/2000 nodes, 1999 edges/) });
  expect(fingerprint(root)).toEqual(files);

  const backup = await manager.createBackup();
  expect(backup).toMatchObject({ warnings: [], stats: { nodeCount: 2000, edgeCount: 1999 } });
  const incremental = await manager.createBackup({ type: 'incremental' });
  expect(fingerprint(root)).toEqual(files);
  for (const { id } of [backup, incremental]) {
    const target = temporaryDirectory();
    await manager.restore({ backupId: id, targetDir: target });
    const restored = path.join(target, '.kg/knowledge.db');
    expect(existsSync(`${restored}-journal`)).toBe(false);
    expect(rowsOf(restored)).toEqual(before);
    expect(integrityOf(restored)).toBe('ok');
  }
});

test('a restore over it gives the content of the backup, and an undo gives the commit before the kill', async () => {
  const { root, database } = makeProject({ nodes: 300, journalMode: 'delete' });
  const first = rowsOf(database);
  expect((await kg(['diag', 'backup'], { cwd: root })).status).toBe(0);
  withDatabase(database, (db) =>
    db.exec("INSERT INTO metadata VALUES ('after', 'the backup'); UPDATE nodes SET status = 'new'"),
  );
  const before = rowsOf(database);
  await killWriter(database);
  expect(await kg(['diag', 'restore', '--file', 'latest', '--yes'], { cwd: root })).toMatchObject({
    status: 0,
  });
  expect(rowsOf(database)).toEqual(first);
  expect(await kg(['diag', 'restore', '--undo', '--yes'], { cwd: root })).toMatchObject({
    status: 0,
  });
  expect(rowsOf(database)).toEqual(before);
  expect(integrityOf(database)).toBe('ok');
});

test('a repair of rows rolls the transaction back first', async () => {
  const { root, database, before } = await makeProjectWithKilledWriter({
    change: "INSERT INTO edges VALUES (9000, 'n1', 'nobody', 'links', 1.0, '')",
  });
  const done = await kg(['diag', 'repair', '--auto'], { cwd: root });
  expect(done).toMatchObject({ status: 0, stdout: expect.stringMatching(/1 fixed, 0 failed/) });
  expect(rowsOf(database)).toEqual({
    ...before,
    edges: before.edges.filter(({ id }) => id !== 9000),
  });
  expect(integrityOf(database)).toBe('ok');
});

test('damaged pages that the transaction changed are restored from the journal and need no repair', async () => {
  const { root, database, before, pages } = await makeProjectWithKilledWriter();
  for (const page of [1, pages.nodes[pages.nodes.length >> 1].page]) damagePage(database, page);
  const result = await new IntegrityChecker(root).runChecks({ repairMode: true });
  expect(result).toMatchObject({ healthy: true, repair: { actions: [] } });
  expect(rowsOf(database)).toEqual(before);
  expect(integrityOf(database)).toBe('ok');
});

test('a damaged page that it did not change loses its rows, and the transaction is still rolled back', async () => {
  const { root, database, before, pages } = await makeProjectWithKilledWriter();
  const middle = pages.edges.length >> 1;
  const { page, rows } = pages.edges[middle];
  const first = pages.edges.slice(0, middle).reduce((sum, { rows: count }) => sum + count, 0);
  damagePage(database, pages.nodes[9].page);
  const damaged = damagePage(database, page);
  const journal = readFileSync(`${database}-journal`);
  const done = await kg(['diag', 'repair', '--auto'], { cwd: root });
  // Rows are lost, and the exit status reports it.
  expect(done.status).toBe(6);
  expect(rowsOf(database)).toEqual({
    ...before,
    edges: before.edges.filter((_, index) => index < first || index >= first + rows),
  });
  expect(integrityOf(database)).toBe('ok');
  const [, kept] = done.stdout.match(/The damaged database is (.*)\n/);
  expect(readFileSync(kept).equals(damaged)).toBe(true);
  expect(readFileSync(`${kept}-journal`).equals(journal)).toBe(true);
});
