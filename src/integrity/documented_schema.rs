//! The documented tables of the host, as SQL text. A salvage uses them if the schema itself is
//! lost.

use super::issue::Part;
use crate::salvage::FallbackSchema;

/// Schema of the graph database.
const GRAPH: FallbackSchema<'static> = &[
    (
        "nodes",
        "CREATE TABLE nodes (
            id TEXT PRIMARY KEY, path TEXT, filename TEXT, title TEXT, type TEXT, status TEXT, content TEXT,
            frontmatter TEXT, word_count INTEGER, created_at TEXT, updated_at TEXT
        )",
    ),
    (
        "edges",
        "CREATE TABLE edges (
            id INTEGER PRIMARY KEY, source_id TEXT NOT NULL REFERENCES nodes(id) ON DELETE CASCADE,
            target_id TEXT NOT NULL, type TEXT, weight REAL, context TEXT
        )",
    ),
    ("tags", "CREATE TABLE tags (id INTEGER PRIMARY KEY, name TEXT UNIQUE)"),
    ("node_tags", "CREATE TABLE node_tags (node_id TEXT, tag_id INTEGER, PRIMARY KEY (node_id, tag_id))"),
    ("metadata", "CREATE TABLE metadata (key TEXT PRIMARY KEY, value TEXT)"),
    ("nodes_fts", "CREATE VIRTUAL TABLE nodes_fts USING fts5(title, content, content='nodes', content_rowid='rowid')"),
    (
        "nodes_ai",
        "CREATE TRIGGER nodes_ai AFTER INSERT ON nodes BEGIN
            INSERT INTO nodes_fts(rowid, title, content) VALUES (new.rowid, new.title, new.content);
        END",
    ),
    (
        "nodes_ad",
        "CREATE TRIGGER nodes_ad AFTER DELETE ON nodes BEGIN
            INSERT INTO nodes_fts(nodes_fts, rowid, title, content)
                VALUES ('delete', old.rowid, old.title, old.content);
        END",
    ),
    (
        "nodes_au",
        "CREATE TRIGGER nodes_au AFTER UPDATE ON nodes BEGIN
            INSERT INTO nodes_fts(nodes_fts, rowid, title, content)
                VALUES ('delete', old.rowid, old.title, old.content);
            INSERT INTO nodes_fts(rowid, title, content) VALUES (new.rowid, new.title, new.content);
        END",
    ),
];

/// Schema of the vector database.
const VECTORS: FallbackSchema<'static> = &[(
    "embeddings",
    "CREATE TABLE embeddings (
        id TEXT, node_type TEXT, embedding BLOB, dimensions INTEGER, metadata TEXT, created_at TEXT,
        updated_at TEXT
    )",
)];

/// Returns the schema that the database of a part should have.
pub fn schema_of(part: Part) -> FallbackSchema<'static> {
    match part {
        Part::Database => GRAPH,
        Part::Vectors => VECTORS,
        Part::Files | Part::Backups => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_creates_what_it_is_named_after() {
        for part in [Part::Database, Part::Vectors] {
            let connection = rusqlite::Connection::open_in_memory().unwrap();
            for (name, sql) in schema_of(part) {
                connection.execute_batch(sql).unwrap();
                let made: bool = connection
                    .query_row(
                        "SELECT count(*) FROM sqlite_schema WHERE name = ?1",
                        [name],
                        |row| row.get(0),
                    )
                    .unwrap();
                assert!(made, "{name}");
            }
        }
    }
}
