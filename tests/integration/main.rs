//! One program for all integration tests. Separate programs would each be compiled and linked with
//! the whole crate.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by a panic"
)]

mod changing_files;
mod damage;
mod encryption;
mod layers;
mod messages;
mod objects;
mod objects_copy;
mod objects_faults;
mod reference;
mod round_trip;
mod salvage;
mod salvage_journal;
mod salvage_random;
mod salvage_shapes;
mod salvage_wal;
mod support;
mod unchanged;
