// Makes a project of real text: the documentation and sources that a build of this repository has
// on disk.

import {
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import Database from 'better-sqlite3';

import { root } from '../scripts/setup.mjs';

const MEGABYTE = 1e6;
/**
 * Enough text that no part repeats within the window of any compressor measured here. A small
 * project gets text of a few times its size.
 */
const CORPUS_BYTES = 120 * MEGABYTE;
const LEAST_CORPUS_BYTES = 4 * MEGABYTE;
const CORPUS_PER_PROJECT = 4;
/** The number of nodes added between two checks of the size. */
const BATCH = 200;
const TEXT = /\.(md|markdown|txt|rs|ts|js|c|h)$/;

/** Returns a generator of numbers from 0 to 1, the same in every run. */
function numbers(seed) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

function corpus(wantedBytes) {
  const places = [
    root,
    path.join(process.env.CARGO_HOME ?? path.join(os.homedir(), '.cargo'), 'registry/src'),
  ];
  const texts = [];
  let bytes = 0;
  const visit = (dir) => {
    for (const entry of readdirSync(dir, { withFileTypes: true }).sort((a, b) =>
      a.name < b.name ? -1 : 1,
    )) {
      if (bytes >= wantedBytes || ['target', '.git', 'data'].includes(entry.name)) continue;
      const full = path.join(dir, entry.name);
      if (entry.isDirectory()) visit(full);
      else if (TEXT.test(entry.name) && statSync(full).size < MEGABYTE) {
        const text = readFileSync(full, 'utf8');
        texts.push(text);
        bytes += text.length;
      }
    }
  };
  places.filter(existsSync).forEach(visit);
  return texts.join('\n');
}

/**
 * The schema of the host's database: a graph with a full-text index that triggers keep up to date.
 */
const GRAPH = `
  CREATE TABLE nodes (id TEXT PRIMARY KEY, path TEXT, filename TEXT, title TEXT, type TEXT, status TEXT, content TEXT,
    frontmatter TEXT, word_count INTEGER, created_at TEXT, updated_at TEXT);
  CREATE TABLE edges (id INTEGER PRIMARY KEY, source_id TEXT REFERENCES nodes(id), target_id TEXT, type TEXT, weight REAL);
  CREATE INDEX edges_source ON edges(source_id);
  CREATE TABLE metadata (key TEXT PRIMARY KEY, value TEXT);
  CREATE VIRTUAL TABLE nodes_fts USING fts5(title, content, content='nodes', content_rowid='rowid');
  CREATE TRIGGER nodes_ai AFTER INSERT ON nodes BEGIN
    INSERT INTO nodes_fts(rowid, title, content) VALUES (new.rowid, new.title, new.content);
  END;
  CREATE TRIGGER nodes_au AFTER UPDATE OF title, content ON nodes BEGIN
    INSERT INTO nodes_fts(nodes_fts, rowid, title, content) VALUES ('delete', old.rowid, old.title, old.content);
    INSERT INTO nodes_fts(rowid, title, content) VALUES (new.rowid, new.title, new.content);
  END;`;

function graphFiller(db, text, next) {
  const node = db.prepare('INSERT INTO nodes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)');
  const edge = db.prepare(
    'INSERT INTO edges (source_id, target_id, type, weight) VALUES (?, ?, ?, ?)',
  );
  return (n) => {
    const start = Math.floor(next() * (text.length - 10_000));
    const content = text.slice(start, start + 1000 + Math.floor(next() ** 2 * 9000));
    const name = `${n.toString(36)}.md`;
    const [title] = content.split('\n', 1);
    const time = `2026-01-01T00:00:${String(n % 60).padStart(2, '0')}Z`;
    const frontmatter = JSON.stringify({ title, order: n });
    node.run(
      `node-${n}`,
      `docs/${name}`,
      name,
      title,
      'document',
      'active',
      content,
      frontmatter,
      content.length,
      time,
      time,
    );
    for (let e = 0; e < 3 && n > 0; e += 1)
      edge.run(`node-${n}`, `node-${Math.floor(next() * n)}`, 'links', next());
  };
}

/**
 * A schema whose nodes fill a page each, so that a share of the rows is the same share of the
 * pages.
 */
const PAGES = `
  CREATE TABLE nodes (id INTEGER PRIMARY KEY, content TEXT);
  CREATE TABLE edges (id INTEGER PRIMARY KEY, source_id TEXT, target_id TEXT);`;
/**
 * More than half of a page of 4,096 bytes, so that no two nodes share a page. It is short enough to
 * need no overflow page.
 */
const PAGE_TEXT_BYTES = 4000;

function pageFiller(db, text, next) {
  const node = db.prepare('INSERT INTO nodes (content) VALUES (?)');
  return () => {
    const start = Math.floor(next() * (text.length - PAGE_TEXT_BYTES));
    node.run(text.slice(start, start + PAGE_TEXT_BYTES).replace(/[\u0080-\uffff]/g, '?'));
  };
}

const SHAPES = { graph: [GRAPH, graphFiller], pages: [PAGES, pageFiller] };

const FILES_IN_A_DIRECTORY = 1000;
const FILE_BYTES = 1000;

/** Writes `count` plugin files of text. */
function writeFiles(dir, count, text, next) {
  for (let n = 0; n < count; n += 1) {
    const below = path.join(dir, String(Math.floor(n / FILES_IN_A_DIRECTORY)));
    if (n % FILES_IN_A_DIRECTORY === 0) mkdirSync(below, { recursive: true });
    const start = Math.floor(next() * (text.length - FILE_BYTES));
    writeFileSync(path.join(below, `${n}.txt`), text.slice(start, start + FILE_BYTES));
  }
}

/**
 * Returns a project below the directory `data` whose database has about `megabytes` MB, with
 * `files` plugin files of 1 kB. A fresh database comes from `VACUUM`, so its pages have no
 * leftovers of earlier content. Makes the project on first use and keeps it.
 */
export function project(data, megabytes, { shape = 'graph', files = 0, fresh = false } = {}) {
  const dir = path.join(
    data,
    `${shape}-${megabytes}${fresh ? '-fresh' : ''}${files > 0 ? `-files-${files}` : ''}`,
  );
  const database = path.join(dir, '.kg/knowledge.db');
  if (existsSync(path.join(dir, 'ready'))) return dir;
  console.error(`Making a project of ${megabytes} MB of text …`);
  rmSync(dir, { recursive: true, force: true });
  mkdirSync(path.join(dir, '.kg/plugins/notes'), { recursive: true });
  writeFileSync(path.join(dir, '.kg/config.json'), '{"database":{"path":".kg/knowledge.db"}}\n');
  const text = corpus(
    Math.min(CORPUS_BYTES, Math.max(LEAST_CORPUS_BYTES, CORPUS_PER_PROJECT * megabytes * MEGABYTE)),
  );
  const [schema, filler] = SHAPES[shape];
  const db = new Database(database);
  db.pragma('page_size = 4096');
  db.pragma('journal_mode = wal');
  db.exec(schema);
  const fill = filler(db, text, numbers(megabytes));
  const add = db.transaction((first) => {
    for (let n = first; n < first + BATCH; n += 1) fill(n);
  });
  for (let n = 0; statSync(database).size < megabytes * MEGABYTE; n += BATCH) {
    add(n);
    db.pragma('wal_checkpoint(TRUNCATE)');
  }
  if (fresh) {
    db.exec('VACUUM');
    db.pragma('wal_checkpoint(TRUNCATE)');
  }
  db.close();
  writeFiles(path.join(dir, '.kg/plugins/notes'), files, text, numbers(files));
  writeFileSync(path.join(dir, 'ready'), '');
  return dir;
}
