//! Assembles the state that a chain describes.
//!
//! ```text
//! archives, full first ─▶ entries, each under its number ─▶ the newest of each path ─▶ files
//! ```
//!
//! A file comes from the newest archive that stores all of it, with the pages that later archives
//! changed. Every archive is read to its end and verified, and its list of files is checked against
//! the archive before it.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{
    broken, content::assert_content, describes, members, next_list, read_ahead::read_in_order,
    read_state,
};
use crate::{
    archive::{
        delta,
        encryption::Keys,
        extract::{Promises, Unpacking},
        file_list::FileList,
        file_record::{FileRecord, Owner, Storage},
        filter::EntryFilter,
        look_ahead::{self, Hints},
        manifest::{DIGEST_PREFIX, FIRST_FORMAT, Manifest},
        reader::{read_archive, read_full_archive},
    },
    error::{Error, Result},
    place::Archive,
    store::{described_beside, manifest_beside},
    util::{
        operation::{OperationContext, Phase},
        sync_many::EarlySync,
    },
};

/// The unpacked state of a project.
pub struct Unpacked {
    pub manifest: Manifest,
    /// Everything that the backup describes, whether or not it was picked.
    pub files: FileList,
    /// The owner for each record of the list. Empty if a chain of several archives was only
    /// verified.
    pub owners: Vec<Owner>,
}

impl Unpacked {
    /// Returns the size of all entries of the archive.
    fn entry_bytes(&self) -> u64 {
        let records = self.files.records().iter();
        records.filter_map(FileRecord::entry_size).sum()
    }
}

/// What is unpacked, each file under the number of its record. All archives are verified.
#[derive(Debug, Clone, Copy)]
pub enum Extent<'a> {
    /// What was picked, into this directory.
    Picked(&'a Path),
    /// Only the file with this entry name, into this directory, if there is one.
    File(&'a Path, &'a str),
}

/// Unpacks `archive` and its chain as far as `extent` says. `pick` selects a part of the backup.
/// `early_sync` syncs files while others are written.
pub fn unpack(
    archive: &Archive,
    pick: &EntryFilter,
    extent: Extent<'_>,
    early_sync: Option<EarlySync<'_>>,
    keys: &Keys,
    context: &OperationContext,
) -> Result<Unpacked> {
    let members = members(archive, keys, context)?;
    let dir = match (extent, members.as_slice()) {
        (Extent::Picked(dir), [only]) if pick.is_everything() => {
            return whole(only, None, Some(dir), keys, context);
        }
        (Extent::Picked(dir), _) => dir,
        (Extent::File(dir, name), [only]) => {
            let wanted = HashSet::from([name.to_string()]);
            return whole(only, Some(&wanted), Some(dir), keys, context);
        }
        (Extent::File(dir, name), members) => {
            let unpacked = check(members, keys, context)?;
            unpack_file(members, &unpacked.files, name, dir, keys, context)?;
            return Ok(unpacked);
        }
    };
    let wanted = plan(&members, pick)?;
    match (members.as_slice(), wanted.as_deref()) {
        ([only], wanted) => {
            let wanted = wanted.and_then(<[_]>::first);
            whole(only, wanted, Some(dir), keys, context)
        }
        (members, wanted) => unpack_members(members, wanted, dir, early_sync, keys, context),
    }
}

/// What [`unpack_full`] unpacked.
pub struct UnpackedFull {
    pub manifest: Manifest,
    pub records: usize,
    /// The path of the graph database.
    pub graph_database: Option<String>,
}

/// Unpacks a full backup in little memory, as far as `extent` says. Writes its list of files to
/// `list`. Returns `None` if it is not a full backup or has a problem: [`unpack`] can say which.
/// `early_sync` syncs files while others are written.
pub fn unpack_full(
    archive: &Archive,
    extent: Extent<'_>,
    list: &mut dyn Write,
    early_sync: Option<EarlySync<'_>>,
    keys: &Keys,
    context: &OperationContext,
) -> Result<Option<UnpackedFull>> {
    let (beside, described) = (manifest_beside(archive)?, described_beside(archive)?);
    let is_incremental = described
        .as_ref()
        .is_some_and(|manifest| manifest.based_on.is_some() || manifest.format == FIRST_FORMAT);
    if is_incremental {
        return Ok(None);
    }
    let (dir, wanted) = match extent {
        Extent::Picked(dir) => (dir, None),
        Extent::File(dir, name) => (dir, Some(HashSet::from([name.to_string()]))),
    };
    let hints = match &wanted {
        Some(_) => None,
        None => Hints::of(archive, described.as_ref()),
    };
    let mut unpacking = Unpacking::new(Some(dir), wanted.as_ref(), described.as_ref())
        .without_owners()
        .with_hints(hints)
        .with_early_sync(early_sync);
    let (report, tallied) = read_full_archive(
        archive,
        keys,
        beside.as_deref(),
        &mut unpacking,
        list,
        context,
        Phase::Unpacking,
    )?;
    unpacking.end()?;
    Ok(report
        .manifest
        .zip(tallied)
        .map(|(manifest, tallied)| UnpackedFull {
            manifest,
            records: tallied.records,
            graph_database: tallied.graph_database,
        }))
}

/// Unpacks an archive that is a chain of its own.
fn whole(
    archive: &Archive,
    wanted: Option<&HashSet<String>>,
    dir: Option<&Path>,
    keys: &Keys,
    context: &OperationContext,
) -> Result<Unpacked> {
    let (mut unpacked, _) = read_member(archive, wanted, dir, &Promises::default(), keys, context)?;
    unpacked.owners.truncate(unpacked.files.records().len());
    Ok(unpacked)
}

/// Returns the entries of each member that the picked part of the newest state needs. `None` if
/// everything must be unpacked, because a list cannot be read ahead of its archive.
///
/// The plan relies on lists that are verified only when the archives are read.
fn plan(members: &[Archive], pick: &EntryFilter) -> Result<Option<Vec<HashSet<String>>>> {
    let mut lists = Vec::new();
    let mut newest = FileList::default();
    for member in members {
        let (json, described) = (manifest_beside(member)?, described_beside(member)?);
        let list = json.zip(described).and_then(|(json, manifest)| {
            let list = look_ahead::file_list(member, &json, &manifest)?;
            newest = next_list(std::mem::take(&mut newest), &manifest, list.clone()).ok()?;
            Some(list)
        });
        let Some(list) = list else { return Ok(None) };
        lists.push(list);
    }
    let picked = pick.select(&newest).into_iter();
    let files = picked.filter(|(_, record)| record.kind.is_file());
    let mut needed: HashSet<&str> = files.map(|(_, record)| record.path.as_str()).collect();
    let mut wanted: Vec<_> = lists
        .iter()
        .rev()
        .map(|list| wanted_of(list, &mut needed))
        .collect();
    wanted.reverse();
    Ok(Some(wanted))
}

/// Returns the entries that an archive stores for the paths in `needed`. Removes the paths that
/// earlier archives need not provide.
fn wanted_of(list: &FileList, needed: &mut HashSet<&str>) -> HashSet<String> {
    let mut wanted = HashSet::new();
    for record in list.records() {
        if record.entry_size().is_some() && needed.contains(record.path.as_str()) {
            wanted.insert(record.entry.clone());
            if record.stored == Storage::Full {
                needed.remove(record.path.as_str());
            }
        }
    }
    wanted
}

/// Verifies all archives, and that the resulting list and database pages match the manifests.
fn check(members: &[Archive], keys: &Keys, context: &OperationContext) -> Result<Unpacked> {
    let (reports, state) = read_state(members, keys, context)?;
    let manifests: Result<Vec<Manifest>> = reports
        .into_iter()
        .zip(members)
        .map(|(report, archive)| Ok(report.intact(archive)?.0))
        .collect();
    match (manifests?.pop(), members.last(), state) {
        (Some(manifest), _, Some(state)) => Ok(Unpacked {
            manifest,
            files: state.files,
            owners: Vec::new(),
        }),
        (_, Some(newest), _) => Err(broken(
            newest,
            "its files do not match the backups before it".into(),
        )),
        (_, None, _) => Err(no_members()),
    }
}

/// Unpacks one file from the newest archive that stores it. `files` is the list of the newest
/// member. The archives are verified already.
fn unpack_file(
    members: &[Archive],
    files: &FileList,
    name: &str,
    dir: &Path,
    keys: &Keys,
    context: &OperationContext,
) -> Result<()> {
    let is_it = |record: &FileRecord| record.entry == name && record.kind.is_file();
    let Some(number) = files.records().iter().position(is_it) else {
        return Ok(());
    };
    let wanted = HashSet::from([name.to_string()]);
    for member in members.iter().rev() {
        let own = dir.join("member");
        let failed = |cause| Error::io("write", &own, cause);
        fs::create_dir(&own).map_err(failed)?;
        let promises = Promises::default();
        read_member(member, Some(&wanted), Some(&own), &promises, keys, context)?;
        let found = fs::read_dir(&own).map_err(failed)?.next().transpose();
        let found = found.map_err(failed)?;
        if let Some(file) = &found {
            fs::rename(file.path(), dir.join(number.to_string())).map_err(failed)?;
        }
        fs::remove_dir(&own).map_err(failed)?;
        if found.is_some() {
            break;
        }
    }
    Ok(())
}

fn unpack_members(
    members: &[Archive],
    wanted: Option<&[HashSet<String>]>,
    dir: &Path,
    mut early_sync: Option<EarlySync<'_>>,
    keys: &Keys,
    context: &OperationContext,
) -> Result<Unpacked> {
    let own_dir = |number: usize| dir.join(format!("member-{number}"));
    let mut state = State::default();
    let mut before: Option<String> = None;
    let mut newest = None;
    let wanted_of = |number: usize| wanted.and_then(|wanted| wanted.get(number));
    let promises = Promises::default();
    let read = |number: usize, member: &Archive, context: &OperationContext| {
        let own = own_dir(number);
        fs::create_dir(&own).map_err(|cause| Error::io("create", &own, cause))?;
        read_member(
            member,
            wanted_of(number),
            Some(&own),
            &promises,
            keys,
            context,
        )
    };
    let apply = |number: usize, member: &Archive, (unpacked, checksum): (Unpacked, String)| {
        if unpacked.manifest.based_on_checksum != before {
            return Err(broken(
                member,
                "it was made from another archive of that name".into(),
            ));
        }
        before = Some(checksum);
        if let Some(early_sync) = &mut early_sync {
            early_sync.wrote(unpacked.entry_bytes());
        }
        let manifest = unpacked.manifest.clone();
        state = std::mem::take(&mut state).next(
            unpacked,
            wanted_of(number),
            &own_dir(number),
            member,
        )?;
        newest = Some((manifest, member.clone()));
        Ok(())
    };
    read_in_order(members, context, Phase::Unpacking, read, apply)?;
    let (manifest, archive) = newest.ok_or_else(no_members)?;
    let State {
        files,
        mut contents,
    } = state;
    if !describes(&manifest, &files) {
        return Err(broken(
            &archive,
            "its list of files does not match the backups before it".into(),
        ));
    }
    let mut owners = Vec::with_capacity(files.records().len());
    for (number, record) in files.records().iter().enumerate() {
        let content = contents.remove(&record.path).unwrap_or_default();
        owners.push(content.owner);
        let Some(file) = content.file else {
            continue;
        };
        if content.assembled {
            assert_content(record, &file, &archive, context)?;
        }
        fs::rename(&file, dir.join(number.to_string()))
            .map_err(|cause| Error::io("move", &file, cause))?;
    }
    early_sync.map_or(Ok(()), EarlySync::end)?;
    for own in (0..members.len()).map(own_dir) {
        fs::remove_dir_all(&own).map_err(|cause| Error::io("remove", &own, cause))?;
    }
    Ok(Unpacked {
        manifest,
        files,
        owners,
    })
}

fn no_members() -> Error {
    Error::internal("The chain has no members")
}

/// Unpacks one archive. The list is that of the archive, which may name only what changed. Also
/// returns the digest of the archive with its prefix.
fn read_member(
    archive: &Archive,
    wanted: Option<&HashSet<String>>,
    dir: Option<&Path>,
    promises: &Promises,
    keys: &Keys,
    context: &OperationContext,
) -> Result<(Unpacked, String)> {
    let (beside, described) = (manifest_beside(archive)?, described_beside(archive)?);
    let hints = dir.and_then(|_| Hints::of(archive, described.as_ref()));
    let mut unpacking = Unpacking::new(dir, wanted, described.as_ref())
        .with_hints(hints)
        .with_promises(promises.clone());
    let report = read_archive(
        archive,
        keys,
        beside.as_deref(),
        &mut unpacking,
        context,
        Phase::Unpacking,
    )?;
    unpacking.end()?;
    let checksum = format!("{DIGEST_PREFIX}{}", report.sha256);
    let (manifest, files) = report.intact(archive)?;
    let unpacked = Unpacked {
        manifest,
        files,
        owners: unpacking.into_owners(),
    };
    Ok((unpacked, checksum))
}

/// A file, directory or link at one member of a chain.
#[derive(Default)]
struct Content {
    /// `None` if nothing of it is unpacked.
    file: Option<PathBuf>,
    owner: Owner,
    /// Whether pages were applied to the file, so that its digest must be checked.
    assembled: bool,
}

/// The state at one member of a chain.
#[derive(Default)]
struct State {
    files: FileList,
    contents: HashMap<String, Content>,
}

impl State {
    /// Returns the state at the next member. `dir` holds its unpacked entries, each under its
    /// number.
    fn next(
        mut self,
        Unpacked {
            manifest,
            files,
            owners,
        }: Unpacked,
        wanted: Option<&HashSet<String>>,
        dir: &Path,
        archive: &Archive,
    ) -> Result<State> {
        let lists_all = manifest.based_on.is_none() || manifest.format == FIRST_FORMAT;
        let mut before = std::mem::take(&mut self.contents);
        let mut contents = HashMap::new();
        let mut entry = 0;
        for record in files.records() {
            let number = entry;
            entry += usize::from(record.entry_size().is_some());
            let base = before.remove(&record.path);
            let is_wanted = wanted.is_none_or(|wanted| wanted.contains(&record.entry));
            let is_here = is_wanted && record.kind.is_file() && record.entry_size().is_some();
            let own = is_here.then(|| dir.join(number.to_string()));
            let content = match record.stored {
                Storage::Full => {
                    base.map_or(Ok(()), Content::remove)?;
                    Some(Content {
                        file: own,
                        owner: owners.get(number).copied().unwrap_or_default(),
                        assembled: false,
                    })
                }
                Storage::Unchanged => base,
                Storage::Delta => {
                    let base = base.unwrap_or_default();
                    if let (Some(database), Some(pages)) = (&base.file, own) {
                        put_pages(record, database, &pages, archive)?;
                        fs::remove_file(&pages)
                            .map_err(|cause| Error::io("remove", &pages, cause))?;
                    }
                    Some(Content {
                        assembled: true,
                        ..base
                    })
                }
                Storage::Deleted => {
                    base.map_or(Ok(()), Content::remove)?;
                    None
                }
            };
            contents.extend(content.map(|content| (record.path.clone(), content)));
        }
        if lists_all {
            before.into_values().try_for_each(Content::remove)?;
        } else if contents.len() < before.len() {
            before.extend(contents);
            contents = before;
        } else {
            contents.extend(before);
        }
        let files = next_list(self.files, &manifest, files)
            .map_err(|what| broken(archive, format!("its list of files {what}")))?;
        Ok(State { files, contents })
    }
}

impl Content {
    /// Removes the file, to free disk space.
    fn remove(self) -> Result<()> {
        let Some(file) = self.file else { return Ok(()) };
        fs::remove_file(&file).map_err(|cause| Error::io("remove", &file, cause))
    }
}

fn put_pages(record: &FileRecord, database: &Path, pages: &Path, member: &Archive) -> Result<()> {
    let failed = |cause| Error::io("write", database, cause);
    let file = File::options().write(true).open(database).map_err(failed)?;
    let delta = File::open(pages).map_err(failed)?;
    // A forged size must not create a file that takes too long to read.
    let most = file.metadata().map_err(failed)?.len() + delta.metadata().map_err(failed)?.len();
    if record.size > most {
        return Err(broken(
            member,
            format!(
                "{} would have more bytes than its pages provide",
                record.path
            ),
        ));
    }
    delta::apply(delta, &file, record.size).map_err(|cause| match cause.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => broken(
            member,
            format!("the pages of {} are not those of a database", record.path),
        ),
        _ => failed(cause),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::archive::file_list::ListParser;

    const STORED: [&str; 4] = ["whole", "base", "pages", "deleted"];

    /// Returns the list of a backup that stores each file in one of these ways; `None` stands for a
    /// file that is not listed.
    fn list(stored: &[Option<usize>]) -> FileList {
        let mut list = ListParser::default();
        for (number, how) in stored.iter().enumerate() {
            let Some(how) = how else { continue };
            let record = json!({ "entry": format!("e{number}"), "path": format!("p{number}"),
                "stored": STORED[*how], "component": "files", "size": 0, "mode": 0,
                "mtime": "2024-01-15T02:00:00Z", "pages": { "pageSize": 512, "changed": 1, "root": "" } });
            list.push(format!("{record}\n").as_bytes());
        }
        list.finish().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_file_is_wanted_where_it_is_whole_and_its_pages_after_that_and_nowhere_else(
            chain in prop::collection::vec(prop::collection::vec(prop::option::of(0..4_usize), 4), 1..12),
            picked in prop::collection::hash_set(0..4_usize, 0..5),
        ) {
            let picked: Vec<String> = picked.iter().map(|number| format!("p{number}")).collect();
            let mut needed: HashSet<&str> = picked.iter().map(String::as_str).collect();
            // Newest first.
            let wanted: Vec<HashSet<String>> =
                chain.iter().map(|stored| wanted_of(&list(stored), &mut needed)).collect();
            for number in 0..4 {
                let whole = chain.iter().position(|stored| stored[number] == Some(0)).unwrap_or(chain.len());
                for (member, stored) in chain.iter().enumerate() {
                    let has_some = matches!(stored[number], Some(0 | 2));
                    let expected = picked.contains(&format!("p{number}")) && member <= whole && has_some;
                    prop_assert_eq!(wanted[member].contains(&format!("e{number}")), expected, "file {}, member {}", number, member);
                }
            }
        }
    }
}
