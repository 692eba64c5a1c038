//! Chains: a full backup and the incremental ones that rest on it.
//!
//! An archive names the backup that it is based on, and that one is found beside it. [`links`] finds them all, [`unpack`]
//! puts together what the newest of them describes, [`hash_pages`] does the same for the hashes of pages alone, without a
//! copy of any database.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{
    archive::{
        delta::{self, Collected, PageCollector},
        manifest::{FileRecord, Manifest, Stored, hex},
        pick::Pick,
        read::{Problem, ProblemCode, Report, Unpack, read_archive},
        unpack::Unpacking,
    },
    error::{Code, Error, Result},
    sqlite::pages::{PageFile, PageHashes},
    store::{Store, manifest_beside},
    task::{Phase, Task},
};

/// Longer ones are taken for forged: they would lead in a circle.
const MAX_LINKS: usize = 10_000;

/// The archives that the one at `archive` rests on and that one itself, full backup first.
pub fn links(archive: &Path, task: &Task) -> Result<Vec<PathBuf>> {
    let mut links = vec![archive.to_path_buf()];
    let mut next = based_on(archive, task)?;
    let store = Store::at(archive.parent().unwrap_or(archive))?;
    while let Some(id) = next {
        let missing = |why: &str| {
            Error::new(
                Code::ChainBroken,
                format!("{} rests on {id}, which {why}", archive.display()),
                format!("Put the archive of {id} back beside it, or use another backup: `kg diag backup --list`"),
            )
        };
        let base = store.archive_of(&id);
        let base = base.ok_or_else(|| missing(&format!("is not in {}", store.dir().display())))?;
        if links.contains(&base) || links.len() == MAX_LINKS {
            return Err(missing("rests on it in turn"));
        }
        next = based_on(&base, task)?;
        links.push(base);
    }
    links.reverse();
    Ok(links)
}

/// The backup that an archive rests on, from the manifest beside it, or inside where there is none.
fn based_on(archive: &Path, task: &Task) -> Result<Option<String>> {
    let name = archive.display().to_string();
    if let Some(manifest) = manifest_beside(archive).and_then(|json| Manifest::parse(&json, &name).ok()) {
        return Ok(manifest.based_on);
    }
    let report = read_archive(archive, None, &mut crate::archive::read::Discard, task, Phase::Verifying)?;
    Ok(report.manifest.and_then(|manifest| manifest.based_on))
}

/// Unpacks what the newest of `links` describes into `dir`: each file under the number of its record. Without `dir`
/// everything is only checked.
pub fn unpack(links: &[PathBuf], dir: Option<&Path>, pick: &Pick, task: &Task) -> Result<Manifest> {
    let Some((newest, bases)) = links.split_last() else { return Err(no_links()) };
    if bases.is_empty() {
        return read_link(newest, dir, pick, task);
    }
    let mut state = HashMap::new();
    for (number, link) in links.iter().enumerate() {
        let own = dir.map(|dir| dir.join(format!("link-{number}")));
        if let Some(own) = &own {
            fs::create_dir(own).map_err(|cause| Error::io("create", own, cause))?;
        }
        // What a later link needs of it is not known yet.
        let manifest = read_link(link, own.as_deref(), &Pick::default(), task)?;
        state = next_state(state, &manifest, own.as_deref(), link)?;
        if number + 1 < links.len() {
            continue;
        }
        for (record_number, record) in manifest.files.iter().enumerate() {
            if let (Some(dir), Some(Content { file: Some(file), .. })) = (dir, state.get(&record.path)) {
                let to = dir.join(record_number.to_string());
                fs::rename(file, &to).map_err(|cause| Error::io("move", file, cause))?;
            }
        }
        if let Some(dir) = dir {
            for number in 0..links.len() {
                let own = dir.join(format!("link-{number}"));
                fs::remove_dir_all(&own).map_err(|cause| Error::io("remove", &own, cause))?;
            }
        }
        return Ok(manifest);
    }
    Err(no_links())
}

fn read_link(archive: &Path, dir: Option<&Path>, pick: &Pick, task: &Task) -> Result<Manifest> {
    let beside = manifest_beside(archive);
    let mut unpacking = Unpacking::new(dir, pick, beside.as_deref());
    read_archive(archive, beside.as_deref(), &mut unpacking, task, Phase::Unpacking)?.into_manifest(archive)
}

/// What a file is at one link of a chain.
struct Content {
    /// Absent where nothing is unpacked.
    file: Option<PathBuf>,
    sha256: String,
}

/// The files that `manifest` describes, made of those that the link before it left and what it was unpacked into.
fn next_state(
    mut before: HashMap<String, Content>,
    manifest: &Manifest,
    dir: Option<&Path>,
    link: &Path,
) -> Result<HashMap<String, Content>> {
    let mut state = HashMap::new();
    let mut entry = 0;
    for record in &manifest.files {
        let number = entry;
        entry += usize::from(record.stored != Stored::Base);
        if !record.kind.is_file() {
            continue;
        }
        let lost = |what: &str| broken(link, format!("{} {what}", record.path));
        let digest = manifest.content_digest(record).ok_or_else(|| lost("has no digest"))?.to_string();
        let own = dir.map(|dir| dir.join(number.to_string()));
        let content = match record.stored {
            Stored::Whole => Content { file: own, sha256: digest },
            Stored::Base => {
                let content = before.remove(&record.path).ok_or_else(|| lost("is not in the backup before it"))?;
                if content.sha256 != digest {
                    return Err(lost("is another one in the backup before it"));
                }
                content
            }
            Stored::Pages => {
                let base = before.remove(&record.path).ok_or_else(|| lost("is not in the backup before it"))?;
                if let (Some(database), Some(pages)) = (&base.file, own) {
                    apply(record, database, &pages, &digest, link)?;
                }
                Content { file: base.file, sha256: digest }
            }
        };
        state.insert(record.path.clone(), content);
    }
    Ok(state)
}

fn apply(record: &FileRecord, database: &Path, pages: &Path, digest: &str, link: &Path) -> Result<()> {
    let failed = |cause| Error::io("write", database, cause);
    let file = File::options().read(true).write(true).open(database).map_err(failed)?;
    let delta = File::open(pages).map_err(failed)?;
    delta::apply(delta, &file, record.size).map_err(failed)?;
    let mut hasher = Hasher(Sha256::new());
    std::io::copy(&mut &file, &mut hasher).map_err(failed)?;
    let found = hex(&hasher.0.finalize());
    if found == digest {
        return Ok(());
    }
    Err(broken(link, format!("{} has SHA-256 {found} once put together; the manifest says {digest}", record.path)))
}

struct Hasher(Sha256);

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn broken(link: &Path, what: String) -> Error {
    Error::new(
        Code::ChecksumMismatch,
        format!("Checksum mismatch: {} does not fit what it rests on: {what}", link.display()),
        "Nothing was changed; use another backup (`kg diag backup --list`)",
    )
}

fn no_links() -> Error {
    Error::new(Code::Internal, "A chain without links", "Please report this")
}

/// The hashes of the pages of all databases that the newest of `links` describes. All archives are checked on the way; with
/// problems, the hashes are none.
pub fn hash_pages(links: &[PathBuf], task: &Task) -> Result<(Vec<Report>, Option<PageFile>)> {
    let mut reports = Vec::new();
    let mut state = Some(BTreeMap::new());
    for link in links {
        let beside = manifest_beside(link);
        let mut collecting = Collecting::default();
        let report = read_archive(link, beside.as_deref(), &mut collecting, task, Phase::Verifying)?;
        let manifest = report.manifest.as_ref().filter(|_| report.problems.is_empty());
        state = match (manifest, state) {
            (Some(manifest), Some(before)) => next_hashes(before, manifest, collecting.finish()),
            _ => None,
        };
        reports.push(report);
    }
    Ok((reports, state.map(|databases| PageFile { archive: String::new(), databases })))
}

/// `None` where the link does not fit the one before it.
fn next_hashes(
    mut before: BTreeMap<String, PageHashes>,
    manifest: &Manifest,
    mut entries: HashMap<String, Collected>,
) -> Option<BTreeMap<String, PageHashes>> {
    let mut state = BTreeMap::new();
    for record in manifest.files.iter().filter(|record| record.kind.is_file()) {
        match (record.stored, entries.remove(&record.entry)) {
            (Stored::Base, _) => {
                if let Some(pages) = before.remove(&record.path) {
                    state.insert(record.path.clone(), pages);
                }
            }
            (Stored::Whole, Some(Collected::Database(pages))) if record.database => {
                state.insert(record.path.clone(), pages);
            }
            (Stored::Whole, _) => {}
            (Stored::Pages, Some(Collected::Delta { page_size_bytes, pages })) => {
                let mut hashes = before.remove(&record.path).filter(|base| base.page_size_bytes == page_size_bytes)?;
                let count = usize::try_from(record.size / page_size_bytes).ok()?;
                hashes.hashes.truncate(count);
                for (number, hash) in pages {
                    if number == 0 || number > count as u64 {
                        return None;
                    }
                    hashes.set(number, hash);
                }
                let root = &record.pages.as_ref()?.root;
                if hashes.hashes.len() != count || hashes.root() != *root {
                    return None;
                }
                state.insert(record.path.clone(), hashes);
            }
            (Stored::Pages, _) => return None,
        }
    }
    Some(state)
}

/// Hashes the pages of everything that streams by.
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
    fn entry(&mut self, _number: usize, name: &str, _size_bytes: u64) -> Result<Option<&mut dyn Write>> {
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

/// Problems of the archives that a backup rests on, as problems of that, and whether it fits them.
pub fn problems(links: &[PathBuf], reports: &[Report], fits: bool) -> Vec<Problem> {
    let bases = links.len().saturating_sub(1);
    let mut problems = Vec::new();
    for (link, report) in links.iter().zip(reports).take(bases) {
        for problem in &report.problems {
            let message = format!("{}, on which it rests: {}", link.display(), problem.message);
            problems.push(Problem { code: ProblemCode::Chain, message, ..problem.clone() });
        }
    }
    if problems.is_empty() && !fits && reports.last().is_some_and(|report| report.problems.is_empty()) {
        let message = "The pages that it holds do not fit the backups that it rests on".to_string();
        problems.push(Problem::of_archive(ProblemCode::Chain, message));
    }
    problems
}
