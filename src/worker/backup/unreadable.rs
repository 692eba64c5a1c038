//! Keeps what the base has of sources that exist and cannot be read.

use std::{collections::BTreeMap, io, path::Path};

use super::{Saving, hashes_failed};
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
    worker::known_files::KnownFile,
};

/// What an incremental backup keeps of its base although its sources cannot be read.
#[derive(Default)]
pub(super) struct Kept {
    /// The paths of directories that cannot be read, and whether something below them is kept.
    closed: BTreeMap<String, bool>,
    /// The paths of single files.
    files: Vec<String>,
    /// What the backup would save.
    wanted: Option<(Selection, Exclusion)>,
}

impl Kept {
    /// Returns whether a record of the base is kept.
    pub fn takes(&mut self, record: &FileRecord) -> bool {
        if self.files.contains(&record.path) {
            return true;
        }
        if self.closed.is_empty() {
            return false;
        }
        let is_wanted = self.wanted.as_ref().is_none_or(|(selection, exclusion)| {
            selection.wants(record.component) && !is_excluded(exclusion, record)
        });
        let mut above = record.path.as_str();
        while let Some((parent, _)) = above.rsplit_once('/') {
            if let Some(is_used) = self.closed.get_mut(parent).filter(|_| is_wanted) {
                *is_used = true;
                return true;
            }
            above = parent;
        }
        false
    }
}

impl Saving<'_> {
    /// Keeps everything that the base has below directories that could not be read.
    pub(super) fn keep_closed(&mut self, project: &Project, selection: &Selection) -> Result<()> {
        if self.base.is_none() {
            return Ok(());
        }
        let closed = self
            .warnings
            .iter()
            .filter(|warning| is_of_unreadable(warning));
        let paths = closed.filter_map(|warning| Some((warning.path.clone()?, false)));
        let exclusion = Exclusion::new(project.root(), &selection.exclude_patterns)?;
        self.listing.kept = Kept {
            closed: paths.collect(),
            files: Vec::new(),
            wanted: Some((selection.clone(), exclusion)),
        };
        Ok(())
    }

    /// Says in the warnings what is kept.
    pub(super) fn tell_kept(&mut self) {
        let closed = &self.listing.kept.closed;
        let warnings = self.warnings.iter_mut();
        for warning in warnings.filter(|warning| is_of_unreadable(warning)) {
            let path = warning.path.as_ref();
            if path.and_then(|path| closed.get(path)) == Some(&true) {
                warning
                    .message
                    .push_str("; the content in the base is kept");
            }
        }
    }

    /// Warns of a source that exists and cannot be read. An incremental backup keeps the content
    /// that the base has of it.
    pub(super) fn unreadable(
        &mut self,
        source: &Source,
        base: Option<KnownFile>,
        cause: &io::Error,
    ) -> Result<()> {
        let what = if base.is_some() {
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
        let Some(base) = base else { return Ok(()) };
        let kept = &mut self.listing.kept;
        kept.closed.insert(source.path.clone(), false);
        // The base of a damaged database includes its WAL or journal.
        if base.0.database {
            let companions = COMPANIONS.iter();
            kept.files
                .extend(companions.map(|suffix| format!("{}{suffix}", source.path)));
        }
        self.keep(source.entry(), base)
    }

    /// Keeps an entry of the base. If a source of this backup has its name, adds `~2`, `~3`, ….
    pub(super) fn keep_under_free_name(&mut self, base: KnownFile) -> Result<()> {
        let entry = self.entries.take(&base.0.entry);
        self.keep(entry, base)
    }

    /// Adds a record of the base, with that entry name.
    fn keep(&mut self, entry: String, (record, state): KnownFile) -> Result<()> {
        if let Some(hashes) = self.base.and_then(|base| base.hashes(&record.path)) {
            self.hashes
                .copy_database(&record.path, hashes)
                .map_err(hashes_failed)?;
        }
        if record.entry == entry {
            return self.same(&record, state);
        }
        self.same_content(FileRecord { entry, ..record }, state)
    }
}

fn is_of_unreadable(warning: &Warning) -> bool {
    warning.code == WarningCode::FileUnreadable
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
