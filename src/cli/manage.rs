//! The actions of `kg diag backup` on one existing backup: delete, pin, unpin and consolidate.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{
    interrupt::Watched,
    output::{Output, size},
};
use crate::{
    archive::block::Compression,
    commands::{
        consolidate::consolidate,
        manage::{delete, pin, unpin},
    },
    error::{Result, WarningCode},
    store::{Backup, Store},
};

#[derive(Debug, Args)]
pub struct Manage {
    /// Remove a backup
    #[arg(long, value_name = "ID", group = "instead")]
    delete: Option<String>,
    /// Also remove the backups that depend on it
    #[arg(long, requires = "delete")]
    cascade: bool,
    /// Keep a backup until it is unpinned; retention and --delete do not remove it
    #[arg(long, value_name = "ID", group = "instead")]
    pin: Option<String>,
    /// Why the backup is pinned
    #[arg(long, value_name = "TEXT", requires = "pin")]
    reason: Option<String>,
    /// Remove the pin of a backup
    #[arg(long, value_name = "ID", group = "instead")]
    unpin: Option<String>,
    /// Write a full backup from the chain of an incremental one
    #[arg(long, value_name = "ID", group = "instead")]
    consolidate: Option<String>,
}

impl Manage {
    pub fn is_asked_for(&self) -> bool {
        [&self.delete, &self.pin, &self.unpin, &self.consolidate]
            .iter()
            .any(|id| id.is_some())
    }

    /// Returns the backup whose archive the action opens.
    pub fn opens(&self) -> Option<&str> {
        self.consolidate.as_deref()
    }

    /// Runs the requested action; `None` if no action was requested.
    pub fn run(
        &self,
        store: &Store,
        compression: Compression,
        lock_timeout: Duration,
        output: &Output,
    ) -> Option<Result<()>> {
        if let Some(id) = &self.delete {
            return Some(self.delete(store, id, lock_timeout, output));
        }
        if let Some(id) = &self.consolidate {
            return Some(run_consolidate(
                store,
                id,
                compression,
                lock_timeout,
                output,
            ));
        }
        (self.pin.is_some() || self.unpin.is_some()).then(|| self.pin(store, lock_timeout, output))
    }

    fn delete(
        &self,
        store: &Store,
        id: &str,
        lock_timeout: Duration,
        output: &Output,
    ) -> Result<()> {
        let watched = Watched::new(output);
        let before = store.read()?.backups;
        let deleted = delete(store, id, self.cascade, lock_timeout, &watched.context)?;
        drop(watched);
        output.result(&json!({ "deleted": deleted }));
        deleted
            .iter()
            .for_each(|id| output.line(format!("Deleted {id}")));
        let linked = before
            .iter()
            .filter(|backup| deleted.contains(&backup.id))
            .filter_map(Backup::left_behind);
        output.late_warnings(&Vec::from_iter(linked));
        Ok(())
    }

    fn pin(&self, store: &Store, lock_timeout: Duration, output: &Output) -> Result<()> {
        let watched = Watched::new(output);
        let backup = match (&self.pin, &self.unpin) {
            (Some(id), _) => pin(
                store,
                id,
                self.reason.clone(),
                lock_timeout,
                &watched.context,
            )?,
            (None, id) => unpin(
                store,
                id.as_deref().unwrap_or_default(),
                lock_timeout,
                &watched.context,
            )?,
        };
        drop(watched);
        output.result(&backup);
        print_store_warnings(&backup, output);
        output.line(match backup.pinned {
            Some(_) => format!(
                "Pinned {}: nothing removes it until `kg diag backup --unpin {0}`",
                backup.id
            ),
            None => format!("Unpinned {}", backup.id),
        });
        Ok(())
    }
}

/// Prints warnings about the store. Warnings from the time of the backup are not repeated.
fn print_store_warnings(backup: &Backup, output: &Output) {
    let is_of_store = |code| matches!(code, WarningCode::Store | WarningCode::KeyExposed);
    let warnings = backup
        .warnings
        .iter()
        .filter(|warning| is_of_store(warning.code));
    output.warnings(&warnings.cloned().collect::<Vec<_>>());
}

fn run_consolidate(
    store: &Store,
    id: &str,
    compression: Compression,
    lock_timeout: Duration,
    output: &Output,
) -> Result<()> {
    let watched = Watched::new(output);
    let backup = consolidate(store, id, compression, lock_timeout, &watched.context)?;
    drop(watched);
    output.result(&backup);
    print_store_warnings(&backup, output);
    output.line(format!("Backup created: {}", backup.archive));
    output.line(format!(
        "  id        {}, with the content of {id} and without a base",
        backup.id
    ));
    let (files, from) = (backup.stats.total_files, size(backup.stats.total_size));
    output.line(format!(
        "  size      {} ({files} files, {from} before compression)",
        size(backup.size)
    ));
    output.line(format!("  checksum  {}", backup.checksum));
    Ok(())
}
