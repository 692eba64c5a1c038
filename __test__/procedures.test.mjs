// The recovery procedures of the guide, run as an operator runs them. The blocks of the guide run
// as shell scripts against seven kinds of damage. npm installs the package from a local registry,
// which serves the result of `npm pack`.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readdirSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import Database from 'better-sqlite3';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';

import { kg, kgPath, repository, run, until } from './support/processes.mjs';
import { fillDatabase, makeProject, temporaryDirectory, withDatabase } from './support/project.mjs';
import { resultOf } from './support/json-output.mjs';
import { startRegistry } from './support/registry.mjs';

/** Returns the first shell script below a heading of the guide. */
function procedure(heading) {
  const guide = readFileSync(path.join(repository, 'docs/reference/specification.md'), 'utf8');
  return guide.slice(guide.indexOf(`${heading}\n`)).match(/^```bash\n([^]*?)^```$/m)[1];
}

const LEVEL_1 = procedure('#### Level 1: Database Corruption');
const LEVEL_2 = procedure('#### Level 2: Full System Recovery');

let shared;
beforeAll(async () => {
  const dir = mkdtempSync(path.join(os.tmpdir(), 'kg-test-'));
  const bin = path.join(dir, 'bin');
  mkdirSync(bin);
  symlinkSync(kgPath, path.join(bin, 'kg'));
  shared = { dir, bin, registry: await startRegistry(dir) };
});
afterAll(() => {
  shared.registry.close();
  rmSync(shared.dir, { recursive: true, force: true });
});

/** Runs a script as an operator does and resolves to its exit status and output. */
async function shell(script, { cwd, searched, strict = false }) {
  const env = {
    ...process.env,
    PATH: `${searched}:${process.env.PATH}`,
    npm_config_registry: shared.registry.url,
    npm_config_cache: path.join(shared.dir, 'cache'),
    npm_config_audit: 'false',
    npm_config_fund: 'false',
    npm_config_update_notifier: 'false',
  };
  // A service that the script starts must not inherit these variables.
  const child = spawn('sh', [strict ? '-ec' : '-c', script], {
    cwd,
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const output = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr']) child[name].on('data', (text) => (output[name] += text));
  const [status] = await once(child, 'close');
  return { status, ...output };
}

/** Returns the processes of `kg` that use a directory. */
function processesOf(root) {
  const ids = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
  const command = (id) => {
    try {
      return readFileSync(`/proc/${id}/cmdline`, 'utf8').replaceAll('\0', ' ').trim();
    } catch {
      // The process has ended.
      return '';
    }
  };
  return ids.map(command).filter((text) => /\bkg\b/.test(text) && text.includes(root));
}

/** Returns the output of the sqlite3 shell for a database. */
const sqlite = (database, sql) => run('sqlite3', ['-readonly', database, sql]).trim();

const rowsOf = (database) =>
  Object.fromEntries(
    ['nodes', 'edges', 'tags', 'node_tags', 'metadata'].map((table) => [
      table,
      withDatabase(database, (db) => db.prepare(`SELECT * FROM ${table} ORDER BY rowid`).all()),
    ]),
  );

/**
 * Makes a project with backups in ./backups. Some commits are only in its WAL, and the backup holds
 * all of them.
 */
function makeBackedUpProject() {
  const { root, database } = makeProject({ nodes: 300 });
  const settings = { dir: './backups', enabled: true, schedule: '0 2 * * *' };
  writeFileSync(
    path.join(root, '.kg/config.json'),
    JSON.stringify({ database: { path: '.kg/knowledge.db' }, backup: settings }),
  );
  const aside = path.join(temporaryDirectory(), 'aside.db');
  copyFileSync(database, aside);
  const db = new Database(aside);
  db.pragma('wal_autocheckpoint = 0');
  db.exec("INSERT INTO nodes (id, title, content) VALUES ('late', 'Nightjar', 'in the WAL alone')");
  copyFileSync(aside, database);
  copyFileSync(`${aside}-wal`, `${database}-wal`);
  db.close();
  run(kgPath, ['diag', 'backup'], { cwd: root });
  const archive = realpathSync(path.join(root, 'backups/latest.tar.gz'));
  const rows = readRows(database);
  expect(rows.nodes).toHaveLength(301);
  return { root, database, archive, rows };
}

function overwrite(file, position, bytes) {
  const descriptor = openSync(file, 'r+');
  writeSync(descriptor, bytes, 0, bytes.length, position);
  closeSync(descriptor);
}

const DAMAGES = {
  'noise in the middle of the database': ({ database }) => {
    rmSync(`${database}-wal`, { force: true });
    overwrite(database, Math.floor(readFileSync(database).length / 2), Buffer.alloc(9000, 0xa5));
  },
  'a header of zeros': ({ database }) => overwrite(database, 0, Buffer.alloc(100)),
  'a missing WAL': ({ database }) => rmSync(`${database}-wal`),
  'the WAL of another database next to it': ({ database }) => {
    const other = path.join(temporaryDirectory(), 'other.db');
    fillDatabase(other, { nodes: 2000 });
    const db = new Database(other);
    db.pragma('wal_autocheckpoint = 0');
    db.exec("UPDATE nodes SET content = content || ' other' WHERE rowid % 50 = 0");
    copyFileSync(`${other}-wal`, `${database}-wal`);
    db.close();
  },
  'an older WAL of its own next to it': ({ database }) => {
    const aside = path.join(temporaryDirectory(), 'aside.db');
    for (const suffix of ['', '-wal']) copyFileSync(database + suffix, aside + suffix);
    const db = new Database(aside);
    db.exec(
      "UPDATE nodes SET content = content || ' later' WHERE rowid % 20 = 0; DELETE FROM nodes WHERE rowid % 7 = 1",
    );
    db.pragma('wal_checkpoint(TRUNCATE)');
    db.close();
    // Simulates a copy of the database file alone from another machine.
    copyFileSync(aside, database);
  },
  'no database file': ({ database }) => rmSync(database),
  'no .kg': ({ root }) => rmSync(path.join(root, '.kg'), { recursive: true }),
};

/**
 * The exit status and output of `kg diag health --check-db` for each damage. It cannot detect a
 * missing WAL.
 */
const EXPECTED_HEALTH = {
  'noise in the middle of the database': [3, 'KG_ISSUE_DATABASE_DAMAGED'],
  'a header of zeros': [3, 'KG_ISSUE_NOT_A_DATABASE'],
  'a missing WAL': [0, 'Healthy'],
  'the WAL of another database next to it': [3, 'KG_ISSUE_WAL_FOREIGN'],
  'an older WAL of its own next to it': [3, 'KG_ISSUE_WAL_FOREIGN'],
  'no database file': [3, 'KG_ISSUE_DATABASE_MISSING'],
  'no .kg': [2, 'KG_NO_PROJECT'],
};

async function damage({ root, database, rows }, name) {
  DAMAGES[name]({ root, database });
  rmSync(`${database}-shm`, { force: true });
  const { status, stdout, stderr } = await kg(['diag', 'health', '--check-db'], { cwd: root });
  expect([status, stdout + stderr]).toEqual([
    EXPECTED_HEALTH[name][0],
    expect.stringContaining(EXPECTED_HEALTH[name][1]),
  ]);
  expect(readRows(database)).not.toEqual(rows);
}

/**
 * Reads the rows from a copy, because opening a database changes it. Returns the error code of
 * SQLite if it cannot read them.
 */
function readRows(database) {
  const copy = path.join(temporaryDirectory(), 'copy.db');
  for (const suffix of ['', '-wal'])
    if (existsSync(database + suffix)) copyFileSync(database + suffix, copy + suffix);
  try {
    return rowsOf(copy);
  } catch (error) {
    return error.code;
  }
}

/**
 * Expects the backed-up content and a running service that leaves no process once it is stopped.
 */
async function expectRecovered({ root, database, rows }, searched) {
  expect(sqlite(database, 'PRAGMA integrity_check')).toBe('ok');
  expect(
    sqlite(database, 'SELECT (SELECT count(*) FROM nodes), (SELECT count(*) FROM edges)'),
  ).toBe('301|299');
  expect(
    sqlite(
      database,
      "SELECT id FROM nodes JOIN nodes_fts ON nodes_fts.rowid = nodes.rowid WHERE nodes_fts MATCH 'nightjar'",
    ),
  ).toBe('late');
  expect(rowsOf(database)).toEqual(rows);
  const { service } = resultOf(
    (await shell('kg serve --status --json', { cwd: root, searched, strict: true })).stdout,
  );
  expect(processesOf(root)).toHaveLength(1);
  expect(existsSync(`/proc/${service.pid}`)).toBe(true);
  expect((await shell('kg serve --stop', { cwd: root, searched })).status).toBe(0);
  expect(processesOf(root)).toEqual([]);
}

test('the guide contains both procedures', () => {
  expect(LEVEL_1).toMatch(
    /^kg serve --stop$[^]*^kg diag restore --file \.\/backups\/latest\.tar\.gz$[^]*^kg serve --all$/m,
  );
  expect(LEVEL_2).toMatch(
    /^npm install @weavelogic\/knowledge-graph-agent$[^]*^kg diag restore --file backup\.tar\.gz --config-only$[^]*^kg serve --all$/m,
  );
});

describe.each(Object.keys(DAMAGES))('%s', (name) => {
  const stopLater = (root) =>
    onTestFinished(() => shell('kg serve --stop', { cwd: root, searched: shared.bin }));

  test('is recovered by Level 1', async () => {
    const project = makeBackedUpProject();
    const { root } = project;
    const searched = shared.bin;
    stopLater(root);
    await shell('kg serve --all', { cwd: root, searched, strict: true });
    await damage(project, name);
    if (name === 'no .kg') {
      // The first command finds no project and fails, and the service ends with its project. The
      // rest of Level 1 must still work.
      const stopped = await shell(LEVEL_1, { cwd: root, searched, strict: true });
      expect(stopped).toMatchObject({
        status: 2,
        stdout: '',
        stderr: expect.stringContaining('KG_NO_PROJECT'),
      });
    }
    const done = await shell(LEVEL_1, { cwd: root, searched, strict: name !== 'no .kg' });
    expect(done.status, done.stderr).toBe(0);
    expect(done.stdout).toMatch(/Restored \d+ files[^]*^Healthy$[^]*The service runs: process/m);
    await until(() => processesOf(root).length === 1, 'one service');
    await expectRecovered(project, searched);
  });

  test('is recovered by Level 2, from an npm installation', async () => {
    const project = makeBackedUpProject();
    const { root, archive } = project;
    const searched = path.join(root, 'node_modules/.bin');
    stopLater(root);
    copyFileSync(archive, path.join(root, 'backup.tar.gz'));
    await damage(project, name);
    const done = await shell(LEVEL_2, { cwd: root, searched });
    expect(done.status, done.stderr).toBe(0);
    expect(
      realpathSync(path.join(searched, 'kg')).startsWith(
        realpathSync(path.join(root, 'node_modules')),
      ),
    ).toBe(true);
    expect(done.stdout).toMatch(
      /added 2 packages[^]*Restored 1 file[^]*Restored 1 file[^]*^Healthy$[^]*The service runs: process/m,
    );
    await expectRecovered(project, searched);
  });
});
