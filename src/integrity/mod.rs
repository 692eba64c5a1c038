//! Checks and repairs of databases. Only the reader may call into this module (`src/reader`).

pub mod salvage;
