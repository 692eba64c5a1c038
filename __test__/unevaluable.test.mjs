// Databases that need functions, collations, tokenizers or modules of their host. This is not
// damage.

import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { createBackupManager, IntegrityChecker } from '@weavelogic/knowledge-graph-agent';
import Database from 'better-sqlite3';
import { expect, test } from 'vitest';

import { kg } from './support/processes.mjs';
import { makeProject, temporaryDirectory } from './support/project.mjs';

const FILL =
  'WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400) INSERT INTO';

/** Runs `sql`, then replaces the definitions with these names, or adds them. */
function define(sql, definitions) {
  return (db) => {
    db.exec(sql);
    db.unsafeMode(true);
    db.pragma('writable_schema = ON');
    for (const [name, text] of Object.entries(definitions)) {
      const { changes } = db
        .prepare('UPDATE sqlite_schema SET sql = ? WHERE name = ?')
        .run(text, name);
      if (changes === 0)
        db.prepare("INSERT INTO sqlite_schema VALUES ('table', ?, ?, 0, ?)").run(name, name, text);
    }
  };
}

const people = (columns, definition, more = '') =>
  define(`CREATE TABLE people (${columns}); ${more} ${FILL} people (name) SELECT 'p' || i FROM n`, {
    people: `CREATE TABLE people (${definition})`,
  });

/** Each situation: how to make the project, what SQLite lacks here, and the table that needs it. */
const SITUATIONS = {
  'a CHECK with a function': [
    people('name', 'name CHECK (norm(name) IS NOT NULL)'),
    'function norm',
  ],
  'a CHECK with REGEXP': [people('name', "name CHECK (name REGEXP '^p')"), 'function regexp'],
  'a generated column with a function': [
    people('name', 'name, folded AS (norm(name)) VIRTUAL'),
    'function norm',
  ],
  'a stored column with a function': [
    define(
      `CREATE TABLE people (name, folded AS (upper(name)) STORED); ${FILL} people SELECT 'p' || i FROM n`,
      {
        people: 'CREATE TABLE people (name, folded AS (norm(name)) STORED)',
      },
    ),
    'function norm',
  ],
  'an expression index with a function': [
    define(
      `CREATE TABLE people (name); CREATE INDEX by_name ON people (lower(name)); ${FILL} people SELECT 'p' || i FROM n`,
      {
        by_name: 'CREATE INDEX by_name ON people (norm(name))',
      },
    ),
    'function norm',
  ],
  'a partial index with a function': [
    define(
      `CREATE TABLE people (name); CREATE INDEX some ON people (name) WHERE name <> 'p7'; ${FILL} people SELECT 'p' || i FROM n`,
      {
        some: "CREATE INDEX some ON people (name) WHERE norm(name) <> 'p7'",
      },
    ),
    'function norm',
  ],
  'a collation': [
    people('name TEXT UNIQUE', 'name TEXT COLLATE localized UNIQUE'),
    'collation localized',
  ],
  'a collation in a primary key without rowids': [
    define(
      `CREATE TABLE people (name TEXT PRIMARY KEY, v) WITHOUT ROWID; ${FILL} people SELECT 'p' || i, i FROM n`,
      {
        people: 'CREATE TABLE people (name TEXT COLLATE localized PRIMARY KEY, v) WITHOUT ROWID',
      },
    ),
    'collation localized',
  ],
  'a collation in a table with a sequence, an overflow chain and several levels': [
    define(
      `CREATE TABLE people (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE);
       ${FILL} people (name) SELECT i || hex(zeroblob(i * i % 4001)) FROM n; DELETE FROM people WHERE id > 390`,
      {
        people:
          'CREATE TABLE people (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT COLLATE localized UNIQUE)',
      },
    ),
    'collation localized',
  ],
  'a tokenizer of FTS5': [
    define(`CREATE VIRTUAL TABLE people USING fts5(name); ${FILL} people SELECT 'p' || i FROM n`, {
      people: 'CREATE VIRTUAL TABLE people USING fts5(name, tokenize=nope)',
    }),
    'tokenizer nope',
  ],
  'a module': [
    define(
      `CREATE TABLE people_chunks (id INTEGER PRIMARY KEY, validity BLOB); ${FILL} people_chunks SELECT i, zeroblob(50) FROM n`,
      {
        people: 'CREATE VIRTUAL TABLE people USING vec0(embedding float[4])',
      },
    ),
    'module vec0',
  ],
};
/** A check never has to evaluate these definitions. */
const SOUND = {
  'a view with a function': (db) =>
    db.exec('CREATE TABLE people (name); CREATE VIEW folded AS SELECT norm(name) FROM people'),
  'a trigger with a function': (db) =>
    db.exec(
      'CREATE TABLE people (name); CREATE TRIGGER t AFTER INSERT ON people BEGIN SELECT norm(new.name); END',
    ),
  'a default with a function': (db) => db.exec('CREATE TABLE people (name DEFAULT (norm(1)))'),
  'a CHECK of 900 terms': (db) => {
    const terms = Array.from({ length: 900 }, (_, n) => `name <> 'a${n}'`).join(' AND ');
    db.exec(`CREATE TABLE people (name, CHECK (${terms})); ${FILL} people SELECT 'p' || i FROM n`);
  },
};

function project(make) {
  const { root, database, backups } = makeProject({ nodes: 300 });
  const db = new Database(database);
  make(db);
  db.close();
  new Database(database).close();
  return { root, database, backups };
}

/** Returns every definition in the schema. */
function definitions(file) {
  const db = new Database(file, { readonly: true });
  try {
    return db
      .prepare(
        "SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'kg_%' ORDER BY type, name",
      )
      .all();
  } finally {
    db.close();
  }
}

/** Returns the rows of the tables named `people…`. */
function peopleOf(file) {
  const db = new Database(file, { readonly: true });
  try {
    const wanted = "(name LIKE 'people%' OR name = 'sqlite_sequence')";
    const tables = db
      .prepare(
        `SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0 AND ${wanted} ORDER BY name`,
      )
      .pluck()
      .all();
    return tables.map((name) => {
      try {
        const columns = db
          .prepare('SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0')
          .pluck()
          .all(name);
        return [name, db.prepare(`SELECT ${columns} FROM "${name}" NOT INDEXED`).all()];
      } catch (error) {
        return [name, error.message];
      }
    });
  } finally {
    db.close();
  }
}

/** Overwrites a page in the middle of a table and returns the number of rows lost with it. */
function damage(file, table) {
  const db = new Database(file, { readonly: true });
  const leaves = db
    .prepare("SELECT pageno, ncell FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY path")
    .all(table);
  db.close();
  const { pageno, ncell } = leaves[leaves.length >> 1];
  const bytes = readFileSync(file);
  bytes.fill(0x55, (pageno - 1) * 4096, pageno * 4096);
  writeFileSync(file, bytes);
  return ncell;
}

const codes = (issues) => issues.map((issue) => issue.code);

for (const [name, [make, missing]] of Object.entries(SITUATIONS)) {
  test(`${name} is reported as not checked, and not as damage`, async () => {
    const { root, database, backups } = project(make);
    const before = readFileSync(database);
    const backup = await createBackupManager({
      projectRoot: root,
      backupDir: backups,
      strict: true,
    }).createBackup();
    expect(backup).toMatchObject({
      integrity: {
        status: 'partial',
        messages: [],
        notChecked: [expect.stringContaining(missing)],
      },
    });
    expect(backup.warnings).toMatchObject([
      {
        code: 'KG_WARN_NOT_CHECKED',
        path: '.kg/knowledge.db',
        message: expect.stringContaining(missing),
      },
    ]);
    expect(backup.incomplete).toBe(undefined);

    const checker = new IntegrityChecker(root);
    const found = await checker.runChecks();
    expect(found.healthy).toBe(true);
    const left = found.issues.filter((issue) => issue.code === 'KG_ISSUE_NOT_CHECKED');
    expect(left).toMatchObject([
      {
        severity: 'info',
        table: 'people',
        message: expect.stringContaining(missing),
        repairable: false,
      },
    ]);
    expect(found.checked).toMatchObject({ nodes: 300, edges: 299 });

    const repaired = await kg([
      'diag',
      'repair',
      '--auto',
      '--project',
      root,
      '--backup-dir',
      backups,
    ]);
    expect(repaired).toMatchObject({ status: 0 });
    expect(readFileSync(database).equals(before)).toBe(true);
  });

  test(`${name} survives a salvage of damaged pages next to it`, async () => {
    const { root, database, backups } = project(make);
    const [definitionsBefore, rowsBefore] = [definitions(database), peopleOf(database)];
    const lost = damage(database, 'nodes');
    const found = await new IntegrityChecker(root).runChecks();
    expect(codes(found.issues)).toContain('KG_ISSUE_DATABASE_DAMAGED');

    const repaired = await kg([
      'diag',
      'repair',
      '--auto',
      '--project',
      root,
      '--backup-dir',
      backups,
    ]);
    expect(repaired.stdout).toContain(`nodes: ${300 - lost} rows saved`);
    // Rows were lost, so the status is not success.
    expect(repaired.status).toBe(6);
    expect(definitions(database)).toEqual(definitionsBefore);
    expect(peopleOf(database)).toEqual(rowsBefore);
    const after = await new IntegrityChecker(root).runChecks();
    expect(codes(after.issues)).not.toContain('KG_ISSUE_DATABASE_DAMAGED');
    expect(after.issues.some((issue) => issue.repairable)).toBe(false);
  });
}

for (const [name, make] of Object.entries(SOUND)) {
  test(`${name} leaves no table unchecked`, async () => {
    const { root, backups } = project(make);
    const backup = await createBackupManager({
      projectRoot: root,
      backupDir: backups,
    }).createBackup();
    expect(backup).toMatchObject({ integrity: { status: 'ok', messages: [] }, warnings: [] });
    const found = await new IntegrityChecker(root).runChecks();
    expect(codes(found.issues)).not.toContain('KG_ISSUE_NOT_CHECKED');
  });
}

test('an unparsable schema with sound pages is not damage, and is never lost in a salvage', async () => {
  const make = people('name', 'name) FUTURE --');
  const { root, database, backups } = project(make);
  const backup = await createBackupManager({
    projectRoot: root,
    backupDir: backups,
  }).createBackup();
  expect(backup).toMatchObject({
    integrity: { status: 'partial', notChecked: [expect.stringContaining('FUTURE')] },
    stats: { nodeCount: 300 },
  });
  expect(await kg(['diag', 'drill', '--file', backup.path, '--project', root])).toMatchObject({
    status: 0,
  });
  expect(await kg(['diag', 'health', '--project', root, '--backup-dir', backups])).toMatchObject({
    status: 0,
  });

  const db = new Database(database);
  db.unsafeMode(true);
  db.pragma('writable_schema = ON');
  const rootPage = db
    .prepare("SELECT rootpage FROM sqlite_schema WHERE name = 'edges'")
    .pluck()
    .get();
  db.close();
  const bytes = readFileSync(database);
  bytes.fill(0x55, (rootPage - 1) * 4096, rootPage * 4096);
  writeFileSync(database, bytes);
  const repaired = await kg([
    'diag',
    'repair',
    '--auto',
    '--project',
    root,
    '--backup-dir',
    backups,
  ]);
  expect(repaired.status).toBe(3);
  expect(repaired.stdout).toContain('the table people would be missing');
  expect(readFileSync(database).equals(bytes)).toBe(true);
});

test('a damaged table that cannot be evaluated is kept, with a message, if SQLite still reads rows of it', async () => {
  const { root, database, backups } = project(SITUATIONS['a collation'][0]);
  const db = new Database(database, { readonly: true });
  db.unsafeMode(true);
  const pages = db
    .prepare("SELECT pageno FROM dbstat WHERE name = 'people' AND pagetype = 'leaf'")
    .pluck()
    .all();
  db.close();
  const bytes = readFileSync(database);
  bytes.fill(0x55, (pages.at(-1) - 1) * 4096, pages.at(-1) * 4096);
  writeFileSync(database, bytes);
  const repaired = await kg([
    'diag',
    'repair',
    '--auto',
    '--project',
    root,
    '--backup-dir',
    backups,
  ]);
  expect(repaired.status).toBe(3);
  expect(repaired.stdout).toContain('SQLite can still read more of');
  expect(readFileSync(database).equals(bytes)).toBe(true);
});

test('the table of the host keeps its full-text index, its indexes and its triggers', async () => {
  const { root, database, backups } = project((db) => {
    const definition = db
      .prepare("SELECT sql FROM sqlite_schema WHERE name = 'nodes'")
      .pluck()
      .get();
    define('CREATE INDEX by_path ON nodes (path)', {
      nodes: definition.replace(/\)$/, ', CHECK (norm(title) IS NOT NULL))'),
    })(db);
  });
  const rows = () => {
    const db = new Database(database, { readonly: true });
    const found = [
      'SELECT * FROM nodes NOT INDEXED',
      'SELECT id FROM nodes ORDER BY path',
      "SELECT rowid FROM nodes_fts WHERE nodes_fts MATCH 'node' ORDER BY rowid",
    ];
    const all = found.map((sql) => db.prepare(sql).all());
    db.close();
    return all;
  };
  const [definitionsBefore, rowsBefore] = [definitions(database), rows()];
  const lost = damage(database, 'edges');
  expect(lost).toBeGreaterThan(0);
  expect(
    (await kg(['diag', 'repair', '--auto', '--project', root, '--backup-dir', backups])).status,
  ).toBe(6);
  expect(definitions(database)).toEqual(definitionsBefore);
  expect(rowsBefore[2].length).toBe(300);
  expect(rows()).toEqual(rowsBefore);
  const db = new Database(database);
  db.exec("INSERT INTO nodes_fts(nodes_fts, rank) VALUES ('integrity-check', 1)");
  db.close();
});

test('the command line reports which tables of a backup were not checked', async () => {
  const { root } = project(SITUATIONS['a CHECK with a function'][0]);
  const dir = temporaryDirectory();
  const made = await kg(['diag', 'backup', '--project', root, '--output', dir, '--strict']);
  expect(made.status).toBe(0);
  expect(made.stdout).toContain(
    'ok when it was saved; not checked: .kg/knowledge.db: the table people: the function norm is not available here',
  );
  expect(
    await kg(['diag', 'drill', '--file', path.join(dir, 'latest.tar.gz'), '--project', root]),
  ).toMatchObject({ status: 0 });
});
