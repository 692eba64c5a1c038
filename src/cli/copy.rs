//! `kg diag backup --copy-to`: copy backups to a second store.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{
    args::{Keep, Waiting},
    interrupt::Watched,
    list,
    output::{Output, size},
    reference,
};
use crate::{
    commands::copy::{CopyFailure, CopyOptions, CopyResult, copy},
    config::{Settings, backup_config::BackupConfig},
    error::{Error, Result, Warning, WarningCode},
    objects::Location,
    store::{Store, full_name},
    system::paths::resolve,
};

/// The flags of a new backup, which a copy does not make.
const OF_A_BACKUP: [&str; 16] = [
    "kind",
    "base_backup",
    "include_vectors",
    "no_vectors",
    "no_plugins",
    "exclude",
    "description",
    "compression",
    "level",
    "strict",
    "force_read",
    "no_check",
    "metrics_file",
    "encrypt",
    "recipient",
    "max_chain",
];

#[derive(Debug, Args)]
pub struct CopyArgs {
    /// Make no backup, but copy the backups that another store lacks: to a directory, or to a URL
    /// such as s3://bucket/prefix [default: `backup.copyTo` of the settings]
    #[arg(long, value_name = "DIR", num_args = 0..=1, group = "instead", conflicts_with_all = OF_A_BACKUP)]
    copy_to: Option<Option<PathBuf>>,
    /// Copy only this backup and those that it depends on; may be repeated
    #[arg(long, value_name = "ID", requires = "copy_to")]
    copy: Vec<String>,
    /// Copy nothing, but print what would be copied
    #[arg(long, requires = "copy_to")]
    dry_run: bool,
}

impl CopyArgs {
    pub fn is_asked_for(&self) -> bool {
        self.copy_to.is_some()
    }

    /// Copies the backups. Returns whether every chosen backup is there.
    pub fn run(
        &self,
        source: &Store,
        root: &Path,
        settings: &Settings,
        (keep, waiting): (&Keep, &Waiting),
        output: &Output,
    ) -> Result<bool> {
        let configured = settings.copy_to(root);
        let named = self.copy_to.as_ref().and_then(Option::as_ref);
        let target = named.or(configured.as_ref()).ok_or_else(no_target)?;
        // A copy makes no backup, so a wrong name of the source must not look like a success.
        list::assert_exists(source, root)?;
        source.assert_not_empty()?;
        // The limits of the settings belong to the store of the settings.
        let lower = match &configured {
            Some(configured) if is_same(configured, target) => BackupConfig::of_copies(settings),
            _ => BackupConfig {
                zone: settings.zone(),
                ..BackupConfig::default()
            },
        };
        let flags = BackupConfig {
            lock_timeout: Some(waiting.timeout()),
            ..keep.set(&lower)
        };
        let options = CopyOptions {
            ids: self.ids(source)?,
            dry_run: self.dry_run,
            ..CopyOptions::with_limits(flags.over(lower))
        };
        let target = Store::at(target)?
            .for_project(root)
            .with_mode(settings.archive_mode());
        let watched = Watched::new(output);
        let result = copy(source, &target, &options, &watched.context)?;
        drop(watched);
        print(&result, output);
        Ok(result.failed.is_empty())
    }

    /// Returns the ids of the backups that the user named; `None` if none is named.
    fn ids(&self, source: &Store) -> Result<Option<Vec<String>>> {
        let named = self.copy.iter();
        let ids = named.map(|named| reference::id(source, named));
        Ok(Some(ids.collect::<Result<Vec<_>>>()?).filter(|ids| !ids.is_empty()))
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let resolved = |path: &Path| {
        let is_url = Location::is_url(&path.to_string_lossy());
        if is_url {
            full_name(path)
        } else {
            resolve(path)
        }
    };
    resolved(one) == resolved(other)
}

fn no_target() -> Error {
    Error::invalid(
        "No store is named to copy to, and `backup.copyTo` is not set",
        "Name a directory or URL: `--copy-to s3://bucket/prefix`",
    )
}

fn print(result: &CopyResult, output: &Output) {
    output.result(result);
    let verb = if result.dry_run {
        "Would copy"
    } else {
        "Copied"
    };
    for backup in &result.copied {
        output.line(format!(
            "{verb} {} ({})",
            backup.id,
            size(backup.disk_size())
        ));
    }
    let target = result.target.display();
    let (copied, present) = (result.copied.len(), result.present);
    let copied = match result.dry_run {
        true => format!("{copied} would be copied"),
        false => format!("{copied} copied"),
    };
    output.line(format!(
        "{copied} to {target}, {}; {present} were there",
        size(result.bytes_copied)
    ));
    if let Some(retention) = &result.retention {
        let removed = retention.decisions.iter().filter(|one| !one.kept).count();
        output.line(format!(
            "{removed} removed there, {} freed",
            size(retention.bytes_freed)
        ));
    }
    output.warnings(&result.warnings);
    let failed = result.failed.iter().map(|CopyFailure { id, error }| {
        let message = format!("{id} was not copied: {} [{}]", error.message, error.code);
        Warning::new(WarningCode::Store, message)
    });
    output.warnings(&Vec::from_iter(failed));
}
