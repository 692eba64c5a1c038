//! Chains: a full backup and the incremental backups that depend on it.
//!
//! An archive names its base, which is in the same directory. [`members`] finds all members. [`plan`]
//! also determines which entries of each member the newest state needs, and [`unpack`] assembles
//! that state. [`hash_pages`] computes only the page hashes of that state, without a copy of any
//! database.

mod unpack;

use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
    path::{Path, PathBuf},
};

pub use self::unpack::{Unpacked, plan, unpack};
use crate::{
    archive::{
        delta::{Collected, PageCollector},
        encryption::Keys,
        errors::checksum_mismatch,
        manifest::{DIGEST_PREFIX, Manifest, Storage},
        reader::{Discard, Unpack, read_archive},
        report::{Problem, ProblemCode, Report},
    },
    error::{Code, Error, Result},
    sqlite::page_hashes::{DatabaseHashes, PageFile, PageHashes},
    store::{Store, described_beside, manifest_beside},
    util::operation::{OperationContext, Phase},
};

/// A longer chain is treated as forged, because it would be a cycle.
const MAX_MEMBERS: usize = 10_000;

/// Returns the members of the chain that ends at `archive`, full backup first. `KG_CHAIN_BROKEN` if
/// a base is missing, is a different backup, or closes a cycle.
pub fn members(archive: &Path, keys: &Keys, context: &OperationContext) -> Result<Vec<PathBuf>> {
    walk(archive, keys, context, |_| {})
}

/// Works like [`members`]. Passes the manifest of each member to `visit`, newest first; the manifests
/// are not verified yet.
fn walk(
    archive: &Path,
    keys: &Keys,
    context: &OperationContext,
    mut visit: impl FnMut(Option<Manifest>),
) -> Result<Vec<PathBuf>> {
    let mut members = vec![archive.to_path_buf()];
    let newest = manifest_of(archive, keys, context)?;
    let base_of = |manifest: &Manifest| {
        Some((
            manifest.based_on.clone()?,
            manifest.based_on_checksum.clone(),
        ))
    };
    let mut next = newest.as_ref().and_then(base_of);
    visit(newest);
    let store = Store::at(archive.parent().unwrap_or(archive))?;
    while let Some((id, checksum)) = next {
        let missing = |why: &str| {
            Error::new(
                Code::ChainBroken,
                format!("{} depends on {id}, which {why}", archive.display()),
                format!(
                    "Put the archive of {id} back next to it, or use another backup: \
                     `kg diag backup --list`"
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
        visit(Some(manifest));
        members.push(base);
    }
    members.reverse();
    Ok(members)
}

/// Returns the sidecar of an archive, or the manifest inside the archive if there is no sidecar.
fn manifest_of(
    archive: &Path,
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

fn broken(member: &Path, what: String) -> Error {
    checksum_mismatch(format_args!(
        "{} does not match the backups that it depends on: {what}",
        member.display()
    ))
}

/// Returns the page hashes of all databases in the newest of `members`. All archives are verified on
/// the way. The hashes are `None` if an archive has problems or does not fit the one before it.
pub fn hash_pages(
    members: &[PathBuf],
    keys: &Keys,
    context: &OperationContext,
) -> Result<(Vec<Report>, Option<PageFile>)> {
    let mut reports = Vec::new();
    let mut state = Some(LinkState::default());
    let mut before: Option<String> = None;
    for member in members {
        let beside = manifest_beside(member)?;
        let mut collecting = Collecting::default();
        let report = read_archive(
            member,
            keys,
            beside.as_deref(),
            &mut collecting,
            context,
            Phase::Verifying,
        )?;
        let manifest = report
            .manifest
            .as_ref()
            .filter(|_| report.problems.is_empty());
        state = match (
            manifest.filter(|manifest| manifest.based_on_checksum == before),
            state,
        ) {
            (Some(manifest), Some(known)) => next_known(known, manifest, collecting.finish()),
            _ => None,
        };
        before = Some(format!("{DIGEST_PREFIX}{}", report.sha256));
        reports.push(report);
    }
    let of_pages = |pages| DatabaseHashes {
        pages,
        ..DatabaseHashes::default()
    };
    let hashes = state.map(|known| PageFile {
        archive: String::new(),
        databases: known
            .databases
            .into_iter()
            .map(|(path, pages)| (path, of_pages(pages)))
            .collect(),
    });
    Ok((reports, hashes))
}

/// The known state at one member of a chain, without assembling it.
#[derive(Default)]
struct LinkState {
    /// Digest of each file.
    files: HashMap<String, String>,
    databases: BTreeMap<String, PageHashes>,
}

/// Returns `None` if the member does not fit the one before it.
fn next_known(
    mut before: LinkState,
    manifest: &Manifest,
    mut entries: HashMap<String, Collected>,
) -> Option<LinkState> {
    let mut known = LinkState::default();
    for record in manifest.files.iter().filter(|record| record.kind.is_file()) {
        let digest = manifest.content_digest(record)?;
        let base = before.files.get(&record.path);
        let pages = match (record.stored, entries.remove(&record.entry)) {
            (Storage::Unchanged, _) if base.is_none_or(|base| base != digest) => return None,
            (Storage::Unchanged, _) => before.databases.remove(&record.path),
            (Storage::Full, Some(Collected::Database(pages))) if record.database => Some(pages),
            (Storage::Full, _) => None,
            (
                Storage::Delta,
                Some(Collected::Delta {
                    page_size_bytes,
                    pages,
                }),
            ) => {
                let mut hashes = before.databases.remove(&record.path)?;
                if hashes.page_size_bytes != page_size_bytes {
                    return None;
                }
                let count = usize::try_from(record.size / page_size_bytes).ok()?;
                hashes.hashes.truncate(count);
                pages
                    .into_iter()
                    .try_for_each(|(number, hash)| hashes.set(number, hash))?;
                if hashes.hashes.len() != count || hashes.root() != record.pages.as_ref()?.root {
                    return None;
                }
                Some(hashes)
            }
            (Storage::Delta, _) => return None,
        };
        known.files.insert(record.path.clone(), digest.to_string());
        known
            .databases
            .extend(pages.map(|pages| (record.path.clone(), pages)));
    }
    Some(known)
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
pub fn problems(members: &[PathBuf], reports: &[Report], fits: bool) -> Vec<Problem> {
    let bases = members.len().saturating_sub(1);
    let mut problems = Vec::new();
    for (member, report) in members.iter().zip(reports).take(bases) {
        for problem in &report.problems {
            let message = format!(
                "{}, which it depends on: {}",
                member.display(),
                problem.message
            );
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
