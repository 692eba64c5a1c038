// Makes projects like a host does, with its schema, triggers and directories.

import { createHash } from 'node:crypto';
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import Database from 'better-sqlite3';
import { onTestFinished } from 'vitest';

import { fillDatabase } from './database.mjs';

export { fillDatabase, SCHEMA, text } from './database.mjs';

/** Makes a temporary directory that is deleted at the end of the test. */
export function temporaryDirectory() {
  const dir = mkdtempSync(path.join(os.tmpdir(), 'kg-test-'));
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

/** Makes a project with a database, configuration, vectors and a plugin. */
export function makeProject({ nodes, journalMode } = {}) {
  const base = temporaryDirectory();
  const root = path.join(base, 'project');
  for (const dir of ['.kg/vectors', '.kg/plugins/glossary'])
    mkdirSync(path.join(root, dir), { recursive: true });
  fillDatabase(path.join(root, '.kg/knowledge.db'), { nodes, journalMode });
  writeFileSync(
    path.join(root, '.kg/config.json'),
    '{"database":{"path":".kg/knowledge.db"},"theme":"dark"}\n',
  );
  writeFileSync(
    path.join(root, '.kg/vectors/a.f32'),
    Buffer.from(new Float32Array([0.25, 0.5, 1]).buffer),
  );
  writeFileSync(path.join(root, '.kg/plugins/glossary/terms.json'), '["graph","node"]\n');
  return {
    root,
    database: path.join(root, '.kg/knowledge.db'),
    backups: path.join(base, 'backups'),
  };
}

/** Returns 'ok' if SQLite and FTS5 find a database sound, or else their messages. */
export function integrityOf(file) {
  const db = new Database(file);
  try {
    const [{ integrity_check: found }] = db.pragma('integrity_check');
    db.exec("INSERT INTO nodes_fts(nodes_fts, rank) VALUES ('integrity-check', 1)");
    return found;
  } catch (error) {
    return String(error);
  } finally {
    db.close();
  }
}

/** Runs `work` on the database in this process, and closes it. */
export function withDatabase(file, work) {
  const db = new Database(file);
  try {
    return work(db);
  } finally {
    db.close();
  }
}

/** Returns the directory with the cache of the only store that a project uses. */
export function pageCache(root) {
  const all = path.join(root, '.kg/cache/backup-pages');
  const [store, ...others] = readdirSync(all, { withFileTypes: true }).filter((entry) =>
    entry.isDirectory(),
  );
  if (!store || others.length > 0) throw new Error(`${all} has no single store`);
  return path.join(all, store.name);
}

/**
 * Returns every file below a directory with a digest, to detect changes. Page hashes of backups and
 * the id of the project are excluded.
 */
export function fingerprint(root) {
  const isKept = (entry) =>
    entry.isFile() &&
    entry.name !== 'backup-project-id' &&
    !entry.parentPath.includes('/.kg/cache');
  const files = readdirSync(root, { recursive: true, withFileTypes: true }).filter(isKept);
  return files
    .map((entry) => path.join(entry.parentPath, entry.name))
    .map(
      (file) =>
        `${path.relative(root, file)} ${createHash('sha256').update(readFileSync(file)).digest('hex')}`,
    )
    .sort();
}

/**
 * Returns the content of a project in a comparable form: databases by rows, other files by bytes,
 * and directories and links. Files of restores and caches are excluded unless `all` is set.
 */
export function contents(root, { all = false } = {}) {
  const ours =
    /^\.kg\/(cache|backup-project-id|restore-undo|restore-staging-|restore-journal|\.kg-partial-)/;
  const entries = readdirSync(root, { recursive: true, withFileTypes: true });
  return entries
    .map((entry) => ({ entry, file: path.join(entry.parentPath, entry.name) }))
    .map(({ entry, file }) => ({ entry, file, name: path.relative(root, file) }))
    .filter(({ name }) => (all || !ours.test(name)) && !/-(wal|shm|journal)$/.test(name))
    .map(({ entry, file, name }) => `${name} ${describeEntry(entry, file)}`)
    .sort();
}

function describeEntry(entry, file) {
  if (entry.isDirectory()) return 'directory';
  if (entry.isSymbolicLink()) return `-> ${readlinkSync(file)}`;
  const bytes = readFileSync(file);
  const digest = (value) => createHash('sha256').update(value).digest('hex');
  if (!bytes.subarray(0, 16).equals(Buffer.from('SQLite format 3\0'))) return digest(bytes);
  return withDatabase(file, (db) => {
    const tables = db.prepare(
      "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE '%fts%' ORDER BY name",
    );
    const rows = tables
      .pluck()
      .all()
      .map((table) => [table, db.prepare(`SELECT * FROM "${table}" ORDER BY rowid`).raw().all()]);
    return digest(JSON.stringify(rows));
  });
}
