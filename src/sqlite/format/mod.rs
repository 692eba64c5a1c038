//! The file format of SQLite (<https://sqlite.org/fileformat2.html>): the header of a database, b-tree pages, records.

pub mod btree;
pub mod header;
pub mod record;
