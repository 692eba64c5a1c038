//! Parsers for SQLite's file format (<https://sqlite.org/fileformat2.html>): database header,
//! b-tree pages and records.

pub mod btree;
pub mod header;
pub mod record;
