//! Keeps what the base has of sources that exist and cannot be read.

use std::{collections::HashSet, io, path::Path};

use super::Saving;
use crate::{
    archive::manifest::{EntryKind, FileRecord, Storage},
    error::{Result, Warning, WarningCode},
    project::{
        Project,
        discover::{Selection, Source},
        exclude::Exclusion,
        names,
    },
    sqlite::files::COMPANIONS,
    worker::protocol::Message,
};

impl Saving<'_> {
    /// Warns of a source that exists and cannot be read. An incremental backup keeps the content
    /// that the base has of it.
    pub(super) fn unreadable(&mut self, source: &Source, cause: &io::Error) -> Result<()> {
        let kept = self.base.and_then(|base| base.at(&source.path));
        let what = if kept.is_some() {
            "is kept as it is in the base"
        } else {
            "was left out"
        };
        let message = format!("{} could not be read and {what}: {cause}", source.path);
        self.saved.warnings.push(Warning::about(
            WarningCode::FileUnreadable,
            &source.path,
            message,
        ));
        let Some(kept) = kept else { return Ok(()) };
        self.keep(FileRecord {
            entry: source.entry.clone(),
            ..kept.clone()
        })?;
        // The base of a damaged database includes its WAL or journal.
        let of_damaged = COMPANIONS
            .iter()
            .filter(|_| kept.database)
            .map(|suffix| format!("{}{suffix}", source.path));
        let companions: Vec<&FileRecord> =
            of_damaged.filter_map(|path| self.base?.at(&path)).collect();
        companions
            .into_iter()
            .try_for_each(|record| self.keep_under_free_name(record))
    }

    /// Sends that an entry is unchanged since the base.
    fn keep(&mut self, record: FileRecord) -> Result<()> {
        if let Some(hashes) = self.base.and_then(|base| base.hashes(&record.path)) {
            self.hashes
                .databases
                .insert(record.path.clone(), hashes.clone());
        }
        self.responses.message(Message::Unchanged {
            record: FileRecord {
                stored: Storage::Unchanged,
                ..record
            },
        })
    }

    /// Keeps an entry of the base. If a source of this backup has its name, adds `~2`, `~3`, ….
    fn keep_under_free_name(&mut self, record: &FileRecord) -> Result<()> {
        let mut entry = record.entry.clone();
        let mut number = 2;
        while !self.entries.insert(entry.clone()) {
            entry = format!("{}~{number}", record.entry);
            number += 1;
        }
        self.keep(FileRecord {
            entry,
            ..record.clone()
        })
    }

    /// Keeps everything that the base has below directories that could not be read.
    pub(super) fn keep_closed(&mut self, project: &Project, selection: &Selection) -> Result<()> {
        let Some(base) = self.base else { return Ok(()) };
        let exclusion = Exclusion::new(project.root(), &selection.exclude_patterns)?;
        let mut done = HashSet::new();
        let mut warnings = std::mem::take(&mut self.saved.warnings);
        for warning in warnings
            .iter_mut()
            .filter(|warning| warning.code == WarningCode::FileUnreadable)
        {
            let Some(path) = warning
                .path
                .clone()
                .filter(|path| done.insert(path.clone()))
            else {
                continue;
            };
            let mut kept = base.below(&path);
            kept.retain(|record| {
                selection.wants(record.component) && !is_excluded(&exclusion, record)
            });
            if !kept.is_empty() {
                warning
                    .message
                    .push_str("; the content in the base is kept");
            }
            kept.into_iter()
                .try_for_each(|record| self.keep_under_free_name(record))?;
        }
        self.saved.warnings = warnings;
        Ok(())
    }
}

/// Returns whether a pattern excludes the entry, or a directory that contains it.
fn is_excluded(exclusion: &Exclusion, record: &FileRecord) -> bool {
    let Some(path) = names::decode(&record.path) else {
        return false;
    };
    let mut ancestors = path
        .ancestors()
        .enumerate()
        .filter(|(_, path)| *path != Path::new(""));
    ancestors.any(|(above, path)| {
        exclusion.excludes(path, above > 0 || record.kind == EntryKind::Directory)
    })
}
