//! Chains: a full backup and the incremental ones that rest on it.
//!
//! An archive names the backup that it is based on, and that one is found beside it. [`links`] finds them all, [`unpack`]
//! puts together what the newest of them describes, [`hash_pages`] does the same for the hashes of pages alone, without a
//! copy of any database.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{
    archive::{
        delta::{self, Collected, PageCollector},
        manifest::{DIGEST_PREFIX, FileRecord, Manifest, Stored, hex},
        pick::Pick,
        read::{Discard, Problem, ProblemCode, Report, Unpack, read_archive},
        unpack::Unpacking,
    },
    error::{Code, Error, Result},
    sqlite::pages::{PageFile, PageHashes},
    store::{Store, manifest_beside},
    task::{Phase, Task},
};

/// Longer ones are taken for forged: they would lead in a circle.
const MAX_LINKS: usize = 10_000;
const PIECE_BYTES: usize = 1 << 20;

/// The archives that the one at `archive` rests on and that one itself, full backup first.
pub fn links(archive: &Path, task: &Task) -> Result<Vec<PathBuf>> {
    let mut links = vec![archive.to_path_buf()];
    let mut next = base_of(archive, task)?.based_on;
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
        let found = base_of(&base, task)?;
        if found.id != id {
            return Err(missing("is not what the archive of that name holds"));
        }
        next = found.based_on;
        links.push(base);
    }
    links.reverse();
    Ok(links)
}

/// What an archive is and rests on, as its manifest says, beside it or inside where there is none.
struct Link {
    id: String,
    based_on: Option<String>,
}

fn base_of(archive: &Path, task: &Task) -> Result<Link> {
    let name = archive.display().to_string();
    let beside = manifest_beside(archive).and_then(|json| Manifest::parse(&json, &name).ok());
    let manifest = match beside {
        Some(manifest) => Some(manifest),
        None => read_archive(archive, None, &mut Discard, task, Phase::Verifying)?.manifest,
    };
    Ok(manifest.map_or(Link { id: String::new(), based_on: None }, |manifest| Link {
        id: manifest.id,
        based_on: manifest.based_on,
    }))
}

/// Unpacks what the newest of `links` describes into `dir`: each file under the number of its record. Without `dir`
/// everything is only checked.
pub fn unpack(links: &[PathBuf], dir: Option<&Path>, pick: &Pick, task: &Task) -> Result<Manifest> {
    let Some((newest, bases)) = links.split_last() else { return Err(no_links()) };
    if bases.is_empty() {
        return read_link(newest, dir, pick, task).map(|(manifest, _)| manifest);
    }
    let own_dir = |number: usize| dir.map(|dir| dir.join(format!("link-{number}")));
    let mut state = HashMap::new();
    let mut before: Option<String> = None;
    let mut newest_manifest = None;
    for (number, link) in links.iter().enumerate() {
        let own = own_dir(number);
        if let Some(own) = &own {
            fs::create_dir(own).map_err(|cause| Error::io("create", own, cause))?;
        }
        // What a later link needs of it is not known yet.
        let (manifest, checksum) = read_link(link, own.as_deref(), &Pick::default(), task)?;
        if manifest.based_on_checksum != before {
            return Err(broken(link, "it was made from another archive of that name".into()));
        }
        before = Some(checksum);
        state = next_state(state, &manifest, own.as_deref(), link, number + 1 == links.len(), task)?;
        newest_manifest = Some(manifest);
    }
    let manifest = newest_manifest.ok_or_else(no_links)?;
    if let Some(dir) = dir {
        for (number, record) in manifest.files.iter().enumerate() {
            if let Some(Content { file: Some(file), .. }) = state.get(&record.path) {
                let to = dir.join(number.to_string());
                fs::rename(file, &to).map_err(|cause| Error::io("move", file, cause))?;
            }
        }
    }
    for own in (0..links.len()).filter_map(own_dir) {
        fs::remove_dir_all(&own).map_err(|cause| Error::io("remove", &own, cause))?;
    }
    Ok(manifest)
}

/// The manifest of a whole archive, and its digest with the prefix.
fn read_link(archive: &Path, dir: Option<&Path>, pick: &Pick, task: &Task) -> Result<(Manifest, String)> {
    let beside = manifest_beside(archive);
    let mut unpacking = Unpacking::new(dir, pick, beside.as_deref());
    let report = read_archive(archive, beside.as_deref(), &mut unpacking, task, Phase::Unpacking)?;
    let checksum = format!("{DIGEST_PREFIX}{}", report.sha256);
    Ok((report.into_manifest(archive)?, checksum))
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
    is_newest: bool,
    task: &Task,
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
                    put_pages(record, database, &pages, link)?;
                    // What is between is checked with what comes of it.
                    if is_newest {
                        assert_digest(record, database, &digest, link, task)?;
                    }
                    fs::remove_file(&pages).map_err(|cause| Error::io("remove", &pages, cause))?;
                }
                Content { file: base.file, sha256: digest }
            }
        };
        state.insert(record.path.clone(), content);
    }
    // What is no more, or was saved anew, needs its room no longer.
    for file in before.into_values().filter_map(|content| content.file) {
        fs::remove_file(&file).map_err(|cause| Error::io("remove", &file, cause))?;
    }
    Ok(state)
}

fn put_pages(record: &FileRecord, database: &Path, pages: &Path, link: &Path) -> Result<()> {
    let failed = |cause| Error::io("write", database, cause);
    let file = File::options().write(true).open(database).map_err(failed)?;
    let delta = File::open(pages).map_err(failed)?;
    // A forged size must not make a file that takes for ever to read.
    let most = file.metadata().map_err(failed)?.len() + delta.metadata().map_err(failed)?.len();
    if record.size > most {
        return Err(broken(link, format!("{} would have more bytes than its pages give", record.path)));
    }
    delta::apply(delta, &file, record.size).map_err(|cause| match cause.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            broken(link, format!("the pages of {} are none of a database", record.path))
        }
        _ => failed(cause),
    })
}

fn assert_digest(record: &FileRecord, database: &Path, digest: &str, link: &Path, task: &Task) -> Result<()> {
    let failed = |cause| Error::io("read", database, cause);
    let mut file = File::open(database).map_err(failed)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    let mut done = 0;
    loop {
        let read = file.read(&mut piece).map_err(failed)?;
        hasher.update(&piece[..read]);
        done += read as u64;
        task.report(Phase::Unpacking, done, record.size)?;
        if read == 0 {
            break;
        }
    }
    let found = hex(&hasher.finalize());
    if found == digest {
        return Ok(());
    }
    Err(broken(link, format!("{} has SHA-256 {found} once put together; the manifest says {digest}", record.path)))
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
    let mut state = Some(Known::default());
    let mut before: Option<String> = None;
    for link in links {
        let beside = manifest_beside(link);
        let mut collecting = Collecting::default();
        let report = read_archive(link, beside.as_deref(), &mut collecting, task, Phase::Verifying)?;
        let manifest = report.manifest.as_ref().filter(|_| report.problems.is_empty());
        state = match (manifest.filter(|manifest| manifest.based_on_checksum == before), state) {
            (Some(manifest), Some(known)) => next_known(known, manifest, collecting.finish()),
            _ => None,
        };
        before = Some(format!("{DIGEST_PREFIX}{}", report.sha256));
        reports.push(report);
    }
    let hashes = state.map(|known| PageFile { archive: String::new(), databases: known.databases });
    Ok((reports, hashes))
}

/// What is known of the state at one link without putting it together.
#[derive(Default)]
struct Known {
    /// Digest of each file.
    files: HashMap<String, String>,
    databases: BTreeMap<String, PageHashes>,
}

/// `None` where the link does not fit the one before it.
fn next_known(mut before: Known, manifest: &Manifest, mut entries: HashMap<String, Collected>) -> Option<Known> {
    let mut known = Known::default();
    for record in manifest.files.iter().filter(|record| record.kind.is_file()) {
        let digest = manifest.content_digest(record)?;
        let base = before.files.get(&record.path);
        let pages = match (record.stored, entries.remove(&record.entry)) {
            (Stored::Base, _) if base.is_none_or(|base| base != digest) => return None,
            (Stored::Base, _) => before.databases.remove(&record.path),
            (Stored::Whole, Some(Collected::Database(pages))) if record.database => Some(pages),
            (Stored::Whole, _) => None,
            (Stored::Pages, Some(Collected::Delta { page_size_bytes, pages })) => {
                let mut hashes = before.databases.remove(&record.path)?;
                if hashes.page_size_bytes != page_size_bytes {
                    return None;
                }
                let count = usize::try_from(record.size / page_size_bytes).ok()?;
                hashes.hashes.truncate(count);
                pages.into_iter().try_for_each(|(number, hash)| hashes.set(number, hash))?;
                if hashes.hashes.len() != count || hashes.root() != record.pages.as_ref()?.root {
                    return None;
                }
                Some(hashes)
            }
            (Stored::Pages, _) => return None,
        };
        known.files.insert(record.path.clone(), digest.to_string());
        known.databases.extend(pages.map(|pages| (record.path.clone(), pages)));
    }
    Some(known)
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
