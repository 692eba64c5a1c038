//! Assembles the state that a chain describes.
//!
//! ```text
//! manifests, newest first ─▶ entries that the newest state needs ─▶ archives, full first ─▶ files
//! ```
//!
//! A file comes from the newest archive that stores all of it, with the pages that later archives
//! changed. Nothing else is unpacked. However, every archive is read to its end and verified, and
//! each record is checked against the archive before it.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{broken, hash_pages, walk};
use crate::{
    archive::{
        delta,
        encryption::Keys,
        extract::Unpacking,
        filter::EntryFilter,
        manifest::{DIGEST_PREFIX, FileRecord, Manifest, Owner, Storage},
        reader::read_archive,
    },
    error::{Error, Result},
    store::manifest_beside,
    util::{
        hex::hex,
        operation::{OperationContext, Phase},
        progress::ByteProgress,
    },
};

const PIECE_BYTES: usize = 1 << 20;

/// The members of a chain, full backup first, and the entries to unpack from each.
pub struct Plan {
    members: Vec<Member>,
}

struct Member {
    archive: PathBuf,
    /// Names of entries. `None` means all of them, because a manifest that names them cannot be
    /// read yet.
    wanted: Option<HashSet<String>>,
}

/// The unpacked state of a project.
pub struct Unpacked {
    pub manifest: Manifest,
    /// The owner for each record of the manifest. Empty if a chain of several archives was only
    /// verified.
    pub owners: Vec<Owner>,
}

/// Plans what to unpack for the part of `archive` that `pick` selects.
///
/// The plan relies on manifests that are verified only when the archives are read. An encrypted
/// archive lists its content only inside. From the newest encrypted member down to the full backup,
/// everything is therefore unpacked.
pub fn plan(
    archive: &Path,
    pick: &EntryFilter,
    keys: &Keys,
    context: &OperationContext,
) -> Result<Plan> {
    let mut needed: Option<HashSet<String>> = None;
    let (mut wanted, mut is_told) = (Vec::new(), true);
    let members = walk(archive, keys, context, |manifest| {
        is_told &= manifest
            .as_ref()
            .is_some_and(|manifest| !manifest.encrypted);
        let Some(manifest) = manifest.filter(|_| is_told) else {
            return wanted.push(None);
        };
        let needed = needed.get_or_insert_with(|| {
            let files = pick
                .select(&manifest)
                .into_iter()
                .filter(|(_, record)| record.kind.is_file());
            files.map(|(_, record)| record.path.clone()).collect()
        });
        wanted.push(Some(wanted_of(&manifest, needed)));
    })?;
    wanted.reverse();
    let members = members
        .into_iter()
        .zip(wanted)
        .map(|(archive, wanted)| Member { archive, wanted });
    Ok(Plan {
        members: members.collect(),
    })
}

/// Returns the entries that an archive stores for the paths in `needed`. Removes the paths that
/// earlier archives need not provide.
fn wanted_of(manifest: &Manifest, needed: &mut HashSet<String>) -> HashSet<String> {
    let files = manifest
        .files
        .iter()
        .filter(|record| record.kind.is_file() && needed.contains(&record.path));
    let (mut wanted, mut whole) = (HashSet::new(), Vec::new());
    for record in files.filter(|record| record.stored != Storage::Unchanged) {
        wanted.insert(record.entry.clone());
        whole.extend((record.stored == Storage::Full).then_some(&record.path));
    }
    for path in whole {
        needed.remove(path);
    }
    wanted
}

/// Unpacks the planned entries into `dir`, each file under the number of its record. Without `dir`,
/// only verifies the archives.
pub fn unpack(
    plan: &Plan,
    dir: Option<&Path>,
    keys: &Keys,
    context: &OperationContext,
) -> Result<Unpacked> {
    match (plan.members.as_slice(), dir) {
        ([], _) => Err(Error::internal("The chain has no members")),
        ([only], dir) => {
            let (mut unpacked, _) = read_member(only, dir, keys, context)?;
            unpacked.owners.truncate(unpacked.manifest.files.len());
            Ok(unpacked)
        }
        (members, Some(dir)) => unpack_members(members, dir, keys, context),
        (members, None) => check(members, keys, context),
    }
}

/// Verifies all archives, and that the resulting database pages match the manifests.
fn check(members: &[Member], keys: &Keys, context: &OperationContext) -> Result<Unpacked> {
    let archives: Vec<PathBuf> = members
        .iter()
        .map(|member| member.archive.clone())
        .collect();
    let (reports, hashes) = hash_pages(&archives, keys, context)?;
    let manifests: Result<Vec<Manifest>> = reports
        .into_iter()
        .zip(&archives)
        .map(|(report, archive)| report.into_manifest(archive))
        .collect();
    match (manifests?.pop(), archives.last(), hashes) {
        (Some(manifest), _, Some(_)) => Ok(Unpacked {
            manifest,
            owners: Vec::new(),
        }),
        (_, newest, _) => {
            let newest = newest.map_or(Path::new(""), |newest| newest);
            Err(broken(
                newest,
                "its files do not match the backups before it".into(),
            ))
        }
    }
}

fn unpack_members(
    members: &[Member],
    dir: &Path,
    keys: &Keys,
    context: &OperationContext,
) -> Result<Unpacked> {
    let own_dir = |number: usize| dir.join(format!("member-{number}"));
    let mut state = HashMap::new();
    let mut before: Option<String> = None;
    let mut newest = None;
    for (number, member) in members.iter().enumerate() {
        let own = own_dir(number);
        fs::create_dir(&own).map_err(|cause| Error::io("create", &own, cause))?;
        let (unpacked, checksum) = read_member(member, Some(&own), keys, context)?;
        if unpacked.manifest.based_on_checksum != before {
            return Err(broken(
                &member.archive,
                "it was made from another archive of that name".into(),
            ));
        }
        before = Some(checksum);
        state = next_state(state, &unpacked, &own, member)?;
        newest = Some((unpacked.manifest, &member.archive));
    }
    let (manifest, archive) = newest.ok_or_else(|| Error::internal("The chain has no members"))?;
    let mut owners = Vec::with_capacity(manifest.files.len());
    for (number, record) in manifest.files.iter().enumerate() {
        let content = state.remove(&record.path);
        owners.push(content.as_ref().map_or((0, 0), |content| content.owner));
        let Some(Content {
            file: Some(file),
            sha256: Some(digest),
            assembled,
            ..
        }) = content
        else {
            continue;
        };
        if assembled {
            assert_digest(record, &file, &digest, archive, context)?;
        }
        fs::rename(&file, dir.join(number.to_string()))
            .map_err(|cause| Error::io("move", &file, cause))?;
    }
    for own in (0..members.len()).map(own_dir) {
        fs::remove_dir_all(&own).map_err(|cause| Error::io("remove", &own, cause))?;
    }
    Ok(Unpacked { manifest, owners })
}

/// Unpacks one archive. Returns its manifest, the owners of its entries, and its digest with the
/// prefix.
fn read_member(
    member: &Member,
    dir: Option<&Path>,
    keys: &Keys,
    context: &OperationContext,
) -> Result<(Unpacked, String)> {
    let beside = manifest_beside(&member.archive)?;
    let mut unpacking = Unpacking::new(dir, member.wanted.as_ref(), beside.as_deref());
    let report = read_archive(
        &member.archive,
        keys,
        beside.as_deref(),
        &mut unpacking,
        context,
        Phase::Unpacking,
    )?;
    let checksum = format!("{DIGEST_PREFIX}{}", report.sha256);
    let manifest = report.into_manifest(&member.archive)?;
    Ok((
        Unpacked {
            manifest,
            owners: unpacking.into_owners(),
        },
        checksum,
    ))
}

/// A file, directory or link at one member of a chain.
struct Content {
    /// `None` if nothing of it is unpacked.
    file: Option<PathBuf>,
    /// Digest of a file; `None` for anything else.
    sha256: Option<String>,
    owner: Owner,
    /// Whether pages were applied to the file, so that its digest must be checked.
    assembled: bool,
}

/// Computes the state at one member from the state before it and from its unpacked entries.
fn next_state(
    mut before: HashMap<String, Content>,
    Unpacked { manifest, owners }: &Unpacked,
    dir: &Path,
    Member { archive, wanted }: &Member,
) -> Result<HashMap<String, Content>> {
    let mut state = HashMap::new();
    let mut entry = 0;
    for record in &manifest.files {
        let number = entry;
        entry += usize::from(record.stored != Storage::Unchanged);
        let lost = |what: &str| broken(archive, format!("{} {what}", record.path));
        let sha256 = match record.kind.is_file() {
            true => Some(
                manifest
                    .content_digest(record)
                    .ok_or_else(|| lost("has no digest"))?
                    .to_string(),
            ),
            false => None,
        };
        let is_wanted = wanted
            .as_ref()
            .is_none_or(|wanted| wanted.contains(&record.entry));
        let own = (is_wanted && record.kind.is_file()).then(|| dir.join(number.to_string()));
        let owner = owners.get(number).copied().unwrap_or_default();
        let mut base = || {
            before
                .remove(&record.path)
                .ok_or_else(|| lost("is not in the backup before it"))
        };
        let content = match record.stored {
            Storage::Full => Content {
                file: own,
                sha256,
                owner,
                assembled: false,
            },
            Storage::Unchanged => {
                let content = base()?;
                if content.sha256 != sha256 {
                    return Err(lost("is different in the backup before it"));
                }
                content
            }
            Storage::Delta => {
                let file = base()?.file;
                if let (Some(database), Some(pages)) = (&file, own) {
                    put_pages(record, database, &pages, archive)?;
                    fs::remove_file(&pages).map_err(|cause| Error::io("remove", &pages, cause))?;
                }
                Content {
                    file,
                    sha256,
                    owner,
                    assembled: true,
                }
            }
        };
        state.insert(record.path.clone(), content);
    }
    // Deletes files that were removed or replaced, to free disk space.
    for file in before.into_values().filter_map(|content| content.file) {
        fs::remove_file(&file).map_err(|cause| Error::io("remove", &file, cause))?;
    }
    Ok(state)
}

fn put_pages(record: &FileRecord, database: &Path, pages: &Path, member: &Path) -> Result<()> {
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

fn assert_digest(
    record: &FileRecord,
    database: &Path,
    digest: &str,
    member: &Path,
    context: &OperationContext,
) -> Result<()> {
    let failed = |cause| Error::io("read", database, cause);
    let mut file = File::open(database).map_err(failed)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    let progress = ByteProgress::new(context, Phase::Unpacking, record.size);
    loop {
        let read = file.read(&mut piece).map_err(failed)?;
        hasher.update(&piece[..read]);
        progress.add(read as u64);
        progress.report()?;
        if read == 0 {
            break;
        }
    }
    let found = hex(&hasher.finalize());
    if found == digest {
        return Ok(());
    }
    Err(broken(
        member,
        format!(
            "{} has SHA-256 {found} after it is assembled; the manifest says {digest}",
            record.path
        ),
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const STORED: [&str; 3] = ["whole", "base", "pages"];

    /// Returns the manifest of a backup that stores each file in one of these ways; `None` stands
    /// for a missing file.
    fn manifest(stored: &[Option<usize>]) -> Manifest {
        let record = |(number, how): (usize, &Option<usize>)| {
            how.map(|how| {
                json!({ "entry": format!("e{number}"), "path": format!("p{number}"), "stored": STORED[how], "component": "files",
                    "size": 0, "mode": 0, "mtime": "2024-01-15T02:00:00Z" })
            })
        };
        let files: Vec<_> = stored.iter().enumerate().filter_map(record).collect();
        let contents =
            json!({ "database": false, "config": false, "vectors": false, "plugins": false });
        let stats = json!({ "totalFiles": 0, "totalSize": 0, "compressedSize": 0, "nodeCount": 0, "edgeCount": 0 });
        let manifest = json!({ "version": "1.0.0", "id": "b", "type": "full", "timestamp": "2024-01-15T02:00:00Z", "contents": contents,
            "stats": stats, "checksums": {}, "files": files, "integrity": { "status": "ok", "messages": [] },
            "tool": { "name": "", "version": "" } });
        serde_json::from_value(manifest).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_file_is_wanted_where_it_is_whole_and_its_pages_after_that_and_nowhere_else(
            chain in prop::collection::vec(prop::collection::vec(prop::option::of(0..3_usize), 4), 1..12),
            picked in prop::collection::hash_set(0..4_usize, 0..5),
        ) {
            let mut needed: HashSet<String> = picked.iter().map(|number| format!("p{number}")).collect();
            // Newest first.
            let wanted: Vec<HashSet<String>> =
                chain.iter().map(|stored| wanted_of(&manifest(stored), &mut needed)).collect();
            for number in 0..4 {
                let whole = chain.iter().position(|stored| stored[number] == Some(0)).unwrap_or(chain.len());
                for (member, stored) in chain.iter().enumerate() {
                    let has_some = matches!(stored[number], Some(0 | 2));
                    let expected = picked.contains(&number) && member <= whole && has_some;
                    prop_assert_eq!(wanted[member].contains(&format!("e{number}")), expected, "file {}, member {}", number, member);
                }
            }
        }
    }
}
