//! Keeps what the base has of sources that exist and cannot be read.

use std::{io, path::Path};

use super::{Saving, listing::KnownFile};
use crate::{
    archive::file_record::{EntryKind, FileRecord},
    error::{Result, Warning, WarningCode},
    project::{
        Project,
        discover::{Selection, Source},
        exclude::Exclusion,
        names,
    },
    sqlite::files::COMPANIONS,
};

impl Saving<'_> {
    /// Warns of a source that exists and cannot be read. An incremental backup keeps the content
    /// that the base has of it.
    pub(super) fn unreadable(
        &mut self,
        source: &Source,
        kept: Option<KnownFile<'_>>,
        cause: &io::Error,
    ) -> Result<()> {
        let what = if kept.is_some() {
            "is kept as it is in the base"
        } else {
            "was left out"
        };
        let message = format!("{} could not be read and {what}: {cause}", source.path);
        self.warnings.push(Warning::about(
            WarningCode::FileUnreadable,
            &source.path,
            message,
        ));
        let (Some(base), Some((kept, state))) = (self.base_files, kept) else {
            return Ok(());
        };
        // The base of a damaged database includes its WAL or journal.
        let of_damaged = COMPANIONS
            .iter()
            .filter(|_| kept.database)
            .filter_map(|suffix| base.find(&format!("{}{suffix}", source.path)));
        self.listing
            .keep(of_damaged.chain(base.below(&source.path)));
        let record = FileRecord {
            entry: source.entry.clone(),
            ..kept.clone()
        };
        self.keep(record, (kept, state))
    }

    /// Adds an entry of the base. `record` is the same, maybe with another entry name.
    fn keep(&mut self, record: FileRecord, (kept, state): KnownFile<'_>) -> Result<()> {
        if let Some(hashes) = self.base.and_then(|base| base.hashes(&record.path)) {
            self.hashes
                .databases
                .insert(record.path.clone(), hashes.clone());
        }
        if record == *kept {
            self.same(&record, state)
        } else {
            self.same_content(record, state)
        }
    }

    /// Keeps an entry of the base. If a source of this backup has its name, adds `~2`, `~3`, ….
    pub(super) fn keep_under_free_name(&mut self, kept: KnownFile<'_>) -> Result<()> {
        let (record, _) = kept;
        let mut entry = record.entry.clone();
        let mut number = 2;
        while !self.entries.insert(entry.clone()) {
            entry = format!("{}~{number}", record.entry);
            number += 1;
        }
        let record = FileRecord {
            entry,
            ..record.clone()
        };
        self.keep(record, kept)
    }

    /// Keeps everything that the base has below directories that could not be read.
    pub(super) fn keep_closed(&mut self, project: &Project, selection: &Selection) -> Result<()> {
        let Some(base) = self.base_files else {
            return Ok(());
        };
        let exclusion = Exclusion::new(project.root(), &selection.exclude_patterns)?;
        let is_kept = |index: &usize| {
            base.records().get(*index).is_some_and(|record| {
                selection.wants(record.component) && !is_excluded(&exclusion, record)
            })
        };
        let is_closed = |warning: &&mut Warning| warning.code == WarningCode::FileUnreadable;
        for warning in self.warnings.iter_mut().filter(is_closed) {
            let below = warning.path.as_deref().map(|path| base.below(path));
            let mut kept = below.into_iter().flatten().filter(is_kept).peekable();
            if kept.peek().is_some() {
                warning
                    .message
                    .push_str("; the content in the base is kept");
            }
            self.listing.keep(kept);
        }
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
