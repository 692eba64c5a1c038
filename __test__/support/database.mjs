// Makes databases with the schema of the host.

import Database from 'better-sqlite3';

export const SCHEMA = `
  CREATE TABLE nodes (
    id TEXT PRIMARY KEY, path TEXT, filename TEXT, title TEXT, type TEXT, status TEXT, content TEXT,
    frontmatter TEXT, word_count INTEGER, created_at TEXT, updated_at TEXT
  );
  CREATE TABLE edges (
    id INTEGER PRIMARY KEY, source_id TEXT NOT NULL REFERENCES nodes(id) ON DELETE CASCADE, target_id TEXT NOT NULL,
    type TEXT, weight REAL, context TEXT
  );
  CREATE TABLE tags (id INTEGER PRIMARY KEY, name TEXT UNIQUE);
  CREATE TABLE node_tags (node_id TEXT, tag_id INTEGER, PRIMARY KEY (node_id, tag_id));
  CREATE TABLE metadata (key TEXT PRIMARY KEY, value TEXT);
  CREATE VIRTUAL TABLE nodes_fts USING fts5(title, content, content='nodes', content_rowid='rowid');
  CREATE TRIGGER nodes_ai AFTER INSERT ON nodes BEGIN
    INSERT INTO nodes_fts(rowid, title, content) VALUES (new.rowid, new.title, new.content);
  END;
  CREATE TRIGGER nodes_ad AFTER DELETE ON nodes BEGIN
    INSERT INTO nodes_fts(nodes_fts, rowid, title, content) VALUES ('delete', old.rowid, old.title, old.content);
  END;
  CREATE TRIGGER nodes_au AFTER UPDATE ON nodes BEGIN
    INSERT INTO nodes_fts(nodes_fts, rowid, title, content) VALUES ('delete', old.rowid, old.title, old.content);
    INSERT INTO nodes_fts(rowid, title, content) VALUES (new.rowid, new.title, new.content);
  END;`;

const WORDS =
  'graph node edge vector memory agent page commit reader writer snapshot archive restore verify'.split(
    ' ',
  );

/** Returns a text that depends on `seed`. */
export function text(seed, words = 60) {
  let state = seed + 1;
  return Array.from({ length: words }, () => {
    state = (state * 1103515245 + 12345) % 2147483648;
    return WORDS[state % WORDS.length] + (state % 97);
  }).join(' ');
}

/** Fills a database with the schema of the host and `nodes` rows, then closes it. */
export function fillDatabase(file, { nodes = 200, journalMode = 'wal' } = {}) {
  const db = new Database(file);
  db.pragma(`journal_mode = ${journalMode}`);
  db.exec(SCHEMA);
  const insert = db.prepare(
    'INSERT INTO nodes (id, path, title, type, content) VALUES (?, ?, ?, ?, ?)',
  );
  const link = db.prepare(
    'INSERT INTO edges (source_id, target_id, type, weight) VALUES (?, ?, ?, 1.0)',
  );
  db.transaction(() => {
    for (let n = 0; n < nodes; n += 1)
      insert.run(`n${n}`, `docs/${n}.md`, `Node ${n}`, 'document', text(n));
    for (let n = 1; n < nodes; n += 1) link.run(`n${n}`, `n${n - 1}`, 'links');
  })();
  db.close();
}
