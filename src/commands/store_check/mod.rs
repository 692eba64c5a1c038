//! The command `store --check`: tries what backups, restores, retention and the lock do to a store,
//! and leaves it as it was.
//!
//! Everything is written below a random name of its own, and removed at the end. An answer that
//! proves nothing is reported as such: "cannot tell" is neither a success nor a failure.

mod directory;
mod objects;
mod report;

use std::time::Instant;

pub use self::report::{Need, Operation, Outcome, StoreCheck, Tried};
use crate::{
    error::Result,
    store::{Store, location},
    util::operation::OperationContext,
};

/// Names begin with this, so that a person recognises what a killed check left.
const CHECK_PREFIX: &str = ".kg-check-";

/// Checks a store. Fails only if it cannot be opened, or if the check is cancelled; everything else
/// is in the result.
pub fn check_store(store: &Store, context: &OperationContext) -> Result<StoreCheck> {
    store.assert_undoubted()?;
    let began = Instant::now();
    context.cancel.enter();
    let check = match location(store.dir())? {
        Some(location) => objects::check(&location, context)?,
        None => directory::check(store)?,
    };
    context.cancel.check()?;
    Ok(StoreCheck {
        duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        ..check
    })
}
