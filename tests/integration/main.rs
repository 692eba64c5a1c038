//! One program for all of these tests: each would be compiled and linked with the whole crate.

mod changing_files;
mod damage;
mod encryption;
mod layers;
mod reference;
mod round_trip;
mod salvage;
mod salvage_journal;
mod salvage_random;
mod salvage_shapes;
mod salvage_wal;
mod support;
mod unchanged;
