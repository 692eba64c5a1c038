//! Databases to damage, and the pages that hold each of their rows; an object store, and a proxy
//! that lets its requests fail.

pub mod beside;
pub mod damage;
pub mod fault_proxy;
pub mod object_server;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use rusqlite::{Connection, types::Value};

pub const SCHEMA: &[(&str, &str)] = &[
    (
        "nodes",
        "CREATE TABLE nodes (id TEXT PRIMARY KEY, path TEXT NOT NULL, title TEXT, type TEXT, content TEXT, word_count INTEGER, created_at TEXT)",
    ),
    (
        "edges",
        "CREATE TABLE edges (id INTEGER PRIMARY KEY AUTOINCREMENT, source_id TEXT NOT NULL REFERENCES nodes(id), target_id TEXT NOT NULL, type TEXT, weight REAL, context TEXT)",
    ),
    (
        "tags",
        "CREATE TABLE tags (id INTEGER PRIMARY KEY, name TEXT NOT NULL, used INTEGER NOT NULL)",
    ),
    (
        "node_tags",
        "CREATE TABLE node_tags (node_id TEXT, tag_id INTEGER, PRIMARY KEY (node_id, tag_id)) WITHOUT ROWID",
    ),
    (
        "metadata",
        "CREATE TABLE metadata (key TEXT PRIMARY KEY, value TEXT)",
    ),
    (
        "edges_source",
        "CREATE INDEX edges_source ON edges (source_id)",
    ),
    (
        "nodes_fts",
        "CREATE VIRTUAL TABLE nodes_fts USING fts5(title, content, content='nodes', content_rowid='rowid')",
    ),
    (
        "nodes_ai",
        "CREATE TRIGGER nodes_ai AFTER INSERT ON nodes BEGIN INSERT INTO nodes_fts(rowid, title, content) VALUES (new.rowid, new.title, new.content); END",
    ),
    (
        "nodes_ad",
        "CREATE TRIGGER nodes_ad AFTER DELETE ON nodes BEGIN INSERT INTO nodes_fts(nodes_fts, rowid, title, content) VALUES ('delete', old.rowid, old.title, old.content); END",
    ),
];
pub const TABLES: [&str; 5] = ["nodes", "edges", "tags", "node_tags", "metadata"];

#[derive(Debug, Clone, Copy)]
pub struct Variant {
    pub page_size: usize,
    pub encoding: &'static str,
    pub auto_vacuum: bool,
    /// The number of reserved bytes at the end of each page, which SQLite does not use.
    pub reserved: u8,
    /// Whether the last commits are only in a WAL.
    pub in_wal: bool,
}

impl Variant {
    #[allow(dead_code, reason = "each test needs some of it")]
    pub const fn new(page_size: usize, encoding: &'static str, auto_vacuum: bool) -> Variant {
        Variant {
            page_size,
            encoding,
            auto_vacuum,
            reserved: 0,
            in_wal: false,
        }
    }
}

/// The rowid (0 if there is none) and the values.
pub type Row = (i64, Vec<Value>);

#[allow(dead_code, reason = "each test needs some of it")]
pub struct Intact {
    pub bytes: Vec<u8>,
    pub wal: Option<Vec<u8>>,
    pub page_size: usize,
    pub rows: BTreeMap<&'static str, Vec<Row>>,
    /// The pages that hold each row, by table, in the order of `rows`.
    pub places: BTreeMap<&'static str, Vec<BTreeSet<u32>>>,
    /// The kind of each page: `schema`, `table leaf`, `table interior`, `index`, `overflow`, `full
    /// text` or `free`.
    pub kinds: BTreeMap<u32, &'static str>,
}

/// Builds a database of the host's schema with long texts, deleted rows and free pages.
pub fn build(path: &Path, variant: Variant, rows: usize) -> Intact {
    let connection = Connection::open(path).unwrap();
    let (size, vacuum) = (variant.page_size, if variant.auto_vacuum { 1 } else { 0 });
    let encoding = variant.encoding;
    reserve(&connection, variant.reserved);
    connection
        .execute_batch(&format!(
            "PRAGMA foreign_keys = OFF; PRAGMA page_size = {size}; PRAGMA auto_vacuum = {vacuum}; PRAGMA encoding = '{encoding}';
             PRAGMA user_version = 7; PRAGMA application_id = 99; BEGIN"
        ))
        .unwrap();
    if variant.in_wal {
        connection
            .execute_batch(
                "COMMIT; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; BEGIN",
            )
            .unwrap();
    }
    SCHEMA
        .iter()
        .for_each(|(_, sql)| connection.execute_batch(sql).unwrap());
    for n in 0..rows {
        let id = format!("node-{:05}", (n * 7919) % 100_003);
        let content = format!("text {n} ").repeat(if n % 9 == 0 { size / 5 } else { 3 + n % 11 });
        connection
            .execute(
                "INSERT INTO nodes VALUES (?1, ?2, ?3, 'note', ?4, ?5, '2026-01-01')",
                rusqlite::params![
                    id,
                    format!("docs/{n}.md"),
                    format!("Title ä {n}"),
                    content,
                    n
                ],
            )
            .unwrap();
        connection
            .execute(
                "INSERT INTO edges (source_id, target_id, type, weight, context) VALUES (?1, ?2, 'link', ?3, 'c')",
                rusqlite::params![id, format!("node-{n}"), n as f64 / 3.0],
            )
            .unwrap();
        connection
            .execute(
                "INSERT INTO tags VALUES (?1, ?2, 3)",
                rusqlite::params![n * 3, format!("tag {n}")],
            )
            .unwrap();
        connection
            .execute(
                "INSERT INTO node_tags VALUES (?1, ?2)",
                rusqlite::params![id, n],
            )
            .unwrap();
        connection
            .execute(
                "INSERT INTO metadata VALUES (?1, 'v')",
                [format!("key {n}")],
            )
            .unwrap();
    }
    if variant.in_wal {
        connection
            .execute_batch("COMMIT; PRAGMA wal_checkpoint; BEGIN")
            .unwrap();
    }
    connection
        .execute_batch(&format!(
            "COMMIT; DELETE FROM edges WHERE id > {0} AND id < {1}; DELETE FROM nodes WHERE rowid % 13 = 5; DELETE FROM tags WHERE id % 5 = 1",
            rows / 3,
            rows / 2
        ))
        .unwrap();
    let rows = all_rows(&connection);
    let (mut places, mut kinds) = (BTreeMap::new(), BTreeMap::new());
    let mut statement = connection
        .prepare("SELECT name, path, pageno, pagetype, ncell FROM dbstat ORDER BY name, path")
        .unwrap();
    let stat: Vec<Stat> = statement
        .query_map([], |row| {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
            ))
        })
        .unwrap()
        .collect::<rusqlite::Result<_>>()
        .unwrap();
    for (name, _, page, kind, _) in &stat {
        let is_table = TABLES.contains(&name.as_str()) && name != "node_tags";
        kinds.insert(
            *page,
            match (name.as_str(), kind.as_str()) {
                ("sqlite_schema", _) => "schema",
                (name, _) if name.starts_with("nodes_fts") => "full text",
                (_, "overflow") => "overflow",
                (_, "internal") if is_table => "table interior",
                (_, "leaf") if is_table => "table leaf",
                _ => "index",
            },
        );
    }
    for table in TABLES {
        let tree = Tree {
            stat: stat.iter().filter(|entry| entry.0 == table).collect(),
            holds_all: table == "node_tags",
        };
        let mut of_table = Vec::new();
        tree.places("/", &mut of_table);
        places.insert(table, of_table);
        assert_eq!(
            places[table].len(),
            rows[table].len(),
            "dbstat and the rows of {table} agree"
        );
    }
    drop(statement);
    let bytes = std::fs::read(path).unwrap();
    // Read the WAL before the connection is closed, because closing empties it.
    let wal = variant
        .in_wal
        .then(|| std::fs::read(path.with_extension("db-wal")).unwrap());
    connection.close().unwrap();
    for page in 2..=(bytes.len() / size) as u32 {
        kinds.entry(page).or_insert("free");
    }
    Intact {
        bytes,
        wal,
        page_size: size,
        rows,
        places,
        kinds,
    }
}

fn reserve(connection: &Connection, bytes: u8) {
    let mut bytes = std::ffi::c_int::from(bytes);
    // SAFETY: the handle is that of an open connection, and the control takes a pointer to an int.
    #[allow(unsafe_code, reason = "rusqlite has no such call")]
    let status = unsafe {
        rusqlite::ffi::sqlite3_file_control(
            connection.handle(),
            c"main".as_ptr(),
            rusqlite::ffi::SQLITE_FCNTL_RESERVE_BYTES,
            (&raw mut bytes).cast(),
        )
    };
    assert_eq!(status, rusqlite::ffi::SQLITE_OK);
}

/// A row of dbstat: name, path, page, kind and number of cells.
type Stat = (String, String, u32, String, usize);

/// The rows of dbstat for one tree.
struct Tree<'s> {
    stat: Vec<&'s Stat>,
    /// Whether interior pages hold rows too, as in a table without rowids.
    holds_all: bool,
}

impl Tree<'_> {
    /// Adds the pages of each row below a page, in the order of the keys.
    fn places(&self, path: &str, places: &mut Vec<BTreeSet<u32>>) {
        let (_, _, page, kind, cells) = self.stat.iter().find(|entry| entry.1 == path).unwrap();
        let is_interior = kind == "internal";
        for cell in 0..*cells {
            if is_interior {
                self.places(&format!("{path}{cell:03x}/"), places);
            }
            if !is_interior || self.holds_all {
                let prefix = format!("{path}{cell:03x}+");
                let overflow = self
                    .stat
                    .iter()
                    .filter(|entry| entry.1.starts_with(&prefix));
                places.push(overflow.map(|entry| entry.2).chain([*page]).collect());
            }
        }
        if is_interior {
            self.places(&format!("{path}{cells:03x}/"), places);
        }
    }
}

pub fn all_rows(connection: &Connection) -> BTreeMap<&'static str, Vec<Row>> {
    let mut all = BTreeMap::new();
    for table in TABLES {
        let sql = match table {
            "node_tags" => "SELECT 0, * FROM node_tags ORDER BY node_id, tag_id".to_string(),
            _ => format!("SELECT rowid, * FROM {table} ORDER BY rowid"),
        };
        let Ok(mut statement) = connection.prepare(&sql) else {
            continue;
        };
        let columns = statement.column_count();
        let rows = statement
            .query_map([], |row| {
                Ok((
                    row.get(0)?,
                    (1..columns)
                        .map(|at| row.get(at))
                        .collect::<Result<_, _>>()?,
                ))
            })
            .unwrap()
            .collect::<rusqlite::Result<_>>()
            .unwrap();
        all.insert(table, rows);
    }
    all
}
