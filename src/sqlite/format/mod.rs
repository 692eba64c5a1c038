//! Parsers for SQLite's file format (<https://sqlite.org/fileformat2.html>): database header,
//! b-tree pages, records and the write-ahead log.

pub mod btree;
pub mod header;
pub mod record;
pub mod wal;
