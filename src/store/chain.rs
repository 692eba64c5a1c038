//! Chains: a full backup and the incremental backups that depend on it.
//!
//! An archive names its base, which is in the same directory. [`members`] finds all members, and
//! [`unpack`] assembles the state that the newest one describes. [`read_state`] computes only the
//! list of files and the page hashes of that state, without a copy of any file.

mod content;
mod read_ahead;
mod unpack;

use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
};

pub use self::unpack::{Extent, Unpacked, UnpackedFull, unpack, unpack_full};
use crate::{
    archive::{
        delta::{Collected, PageCollector},
        encryption::Keys,
        errors::checksum_mismatch,
        file_list::FileList,
        file_record::{FileRecord, Storage},
        manifest::{DIGEST_PREFIX, FIRST_FORMAT, Manifest},
        reader::{Discard, Unpack, read_archive},
        report::{Problem, ProblemCode, Report},
    },
    error::{Code, Error, Result},
    place::Archive,
    sqlite::page_hashes::PageHashes,
    store::{Store, described_beside, manifest_beside},
    util::{
        content_hash::ContentHash,
        operation::{OperationContext, Phase},
    },
};

/// A longer chain is treated as forged, because it would be a cycle.
const MAX_MEMBERS: usize = 10_000;

/// Returns the members of the chain that ends at `archive`, full backup first. `KG_CHAIN_BROKEN` if
/// a base is missing, is a different backup, or closes a cycle. The archives are not verified.
pub fn members(archive: &Archive, keys: &Keys, context: &OperationContext) -> Result<Vec<Archive>> {
    let mut members = vec![archive.clone()];
    let newest = manifest_of(archive, keys, context)?;
    let base_of = |manifest: &Manifest| {
        Some((
            manifest.based_on.clone()?,
            manifest.based_on_checksum.clone(),
        ))
    };
    let mut next = newest.as_ref().and_then(base_of);
    let store = Store::of(archive.place());
    while let Some((id, checksum)) = next {
        let missing = |why: &str| {
            Error::new(
                Code::ChainBroken,
                format!("{archive} depends on {id}, which {why}"),
                format!(
                    "Put the archive of {id} back next to it, or use another backup: \
                     `kg diag list`"
                ),
            )
        };
        let base = store.archive_of(&id, checksum.as_deref());
        let base = base.ok_or_else(|| missing(&format!("is not in {}", store.dir().display())))?;
        if members.contains(&base) || members.len() == MAX_MEMBERS {
            return Err(missing("depends on it in turn"));
        }
        let manifest = manifest_of(&base, keys, context)?.filter(|manifest| manifest.id == id);
        let manifest =
            manifest.ok_or_else(|| missing("is not what the archive of that name contains"))?;
        next = base_of(&manifest);
        members.push(base);
    }
    members.reverse();
    Ok(members)
}

/// Returns the sidecar of an archive, or the manifest inside the archive if there is no sidecar.
fn manifest_of(
    archive: &Archive,
    keys: &Keys,
    context: &OperationContext,
) -> Result<Option<Manifest>> {
    match described_beside(archive)? {
        Some(manifest) => Ok(Some(manifest)),
        None => Ok(
            read_archive(archive, keys, None, &mut Discard, context, Phase::Verifying)?.manifest,
        ),
    }
}

fn broken(member: &Archive, what: String) -> Error {
    checksum_mismatch(format_args!(
        "{member} does not match the backups that it depends on: {what}"
    ))
}

/// The state that the newest member of a chain describes.
pub struct ChainState {
    /// Everything that a restore puts back, in order.
    pub files: FileList,
    /// The page hashes of all databases, by path.
    pub page_hashes: BTreeMap<String, PageHashes>,
}

/// The state at one member of a chain.
#[derive(Default)]
struct LinkState {
    files: FileList,
    databases: BTreeMap<String, PageHashes>,
}

/// Reads and verifies all members. The state is `None` if an archive has problems or does not fit
/// the one before it. The list of each report moves into the state.
pub fn read_state(
    members: &[Archive],
    keys: &Keys,
    context: &OperationContext,
) -> Result<(Vec<Report>, Option<ChainState>)> {
    let mut reports = Vec::new();
    let mut state = Some(LinkState::default());
    let mut before: Option<String> = None;
    for member in members {
        let beside = manifest_beside(member)?;
        let mut collecting = Collecting::default();
        let mut report = read_archive(
            member,
            keys,
            beside.as_deref(),
            &mut collecting,
            context,
            Phase::Verifying,
        )?;
        let files = std::mem::take(&mut report.files);
        let manifest = report
            .manifest
            .as_ref()
            .filter(|_| report.problems.is_empty());
        state = match (
            manifest.filter(|manifest| manifest.based_on_checksum == before),
            state,
        ) {
            (Some(manifest), Some(state)) => {
                next_state(state, manifest, files, collecting.finish())
            }
            _ => None,
        };
        before = Some(format!("{DIGEST_PREFIX}{}", report.sha256));
        reports.push(report);
    }
    let newest = reports.last().and_then(|report| report.manifest.as_ref());
    let state =
        state.filter(|state| newest.is_some_and(|manifest| describes(manifest, &state.files)));
    let state = state.map(|LinkState { files, databases }| ChainState {
        files,
        page_hashes: databases,
    });
    Ok((reports, state))
}

/// Returns whether the manifest describes that whole list. A manifest of the first format does not
/// say.
fn describes(manifest: &Manifest, files: &FileList) -> bool {
    manifest
        .file_list
        .is_none_or(|expected| expected == files.summary())
}

/// Returns the list of a member from the list of the one before it and from what its archive
/// contains. The error completes the sentence "The list of files …".
fn next_list(
    before: FileList,
    manifest: &Manifest,
    files: FileList,
) -> std::result::Result<FileList, String> {
    if manifest.based_on.is_some() && manifest.format != FIRST_FORMAT {
        return before.after(files);
    }
    let of_base = |record: &FileRecord| {
        let index = before.find(&record.path)?;
        before.records().get(index)
    };
    let of_others = |record: &&FileRecord| record.stored != Storage::Full;
    for record in files.records().iter().filter(of_others) {
        match (record.stored, of_base(record)) {
            (Storage::Unchanged, Some(base)) if record.has_content_of(base) => {}
            (Storage::Delta, Some(_)) => {}
            _ => return Err(format!("keeps {}, which differs in the base", record.path)),
        }
    }
    let records = files.into_records();
    Ok(FileList::sorted(
        records.into_iter().map(FileRecord::into_state).collect(),
    ))
}

/// Returns `None` if the member does not fit the one before it.
fn next_state(
    before: LinkState,
    manifest: &Manifest,
    files: FileList,
    mut entries: HashMap<String, Collected>,
) -> Option<LinkState> {
    let (mut databases, mut known) = (before.databases, BTreeMap::new());
    for record in files.records() {
        let base = databases.remove(&record.path);
        // The entry of a deleted file may have the name of a new one.
        let own = record
            .entry_size()
            .and_then(|_| entries.remove(&record.entry));
        let pages = match (record.stored, own) {
            (Storage::Unchanged, _) => base,
            (Storage::Full, Some(Collected::Database(pages))) if record.database => Some(pages),
            (Storage::Full | Storage::Deleted, _) => None,
            (
                Storage::Delta,
                Some(Collected::Delta {
                    page_size_bytes,
                    pages,
                }),
            ) => Some(changed_pages(base?, record, page_size_bytes, pages)?),
            (Storage::Delta, _) => return None,
        };
        known.extend(pages.map(|pages| (record.path.clone(), pages)));
    }
    // A database that the list of an incremental backup does not name is unchanged.
    if manifest.based_on.is_some() && manifest.format != FIRST_FORMAT {
        known.extend(databases);
    }
    Some(LinkState {
        files: next_list(before.files, manifest, files).ok()?,
        databases: known,
    })
}

/// Returns the hashes of the pages after a change, or `None` if the pages do not fit the database
/// before it.
fn changed_pages(
    mut hashes: PageHashes,
    record: &FileRecord,
    page_size_bytes: u64,
    pages: Vec<(u64, ContentHash)>,
) -> Option<PageHashes> {
    if hashes.page_size_bytes != page_size_bytes {
        return None;
    }
    let count = usize::try_from(record.size / page_size_bytes).ok()?;
    hashes.hashes.truncate(count);
    pages
        .into_iter()
        .try_for_each(|(number, hash)| hashes.set(number, hash))?;
    let is_complete = hashes.hashes.len() == count && hashes.root() == record.pages.as_ref()?.root;
    is_complete.then_some(hashes)
}

/// Hashes the pages of every entry while the archive is read.
#[derive(Default)]
struct Collecting {
    current: Option<(String, PageCollector)>,
    done: HashMap<String, Collected>,
}

impl Collecting {
    fn end_entry(&mut self) {
        if let Some((name, collector)) = self.current.take()
            && let Some(collected) = collector.finish()
        {
            self.done.insert(name, collected);
        }
    }

    fn finish(mut self) -> HashMap<String, Collected> {
        self.end_entry();
        self.done
    }
}

impl Unpack for Collecting {
    fn entry(
        &mut self,
        _number: usize,
        name: &str,
        _size_bytes: u64,
    ) -> Result<Option<&mut dyn Write>> {
        self.end_entry();
        self.current = Some((name.to_string(), PageCollector::default()));
        Ok(Some(self))
    }
}

impl Write for Collecting {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Some((_, collector)) = &mut self.current {
            collector.push(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Reports problems of the bases as problems of the backup that depends on them, and reports if the
/// backup does not fit its bases.
pub fn problems(members: &[Archive], reports: &[Report], fits: bool) -> Vec<Problem> {
    let bases = members.len().saturating_sub(1);
    let mut problems = Vec::new();
    for (member, report) in members.iter().zip(reports).take(bases) {
        for problem in &report.problems {
            let message = format!("{member}, which it depends on: {}", problem.message);
            problems.push(Problem {
                code: ProblemCode::Chain,
                message,
                ..problem.clone()
            });
        }
    }
    if problems.is_empty()
        && !fits
        && reports
            .last()
            .is_some_and(|report| report.problems.is_empty())
    {
        let message =
            "The pages that it contains do not match the backups that it depends on".to_string();
        problems.push(Problem::of_archive(ProblemCode::Chain, message));
    }
    problems
}
