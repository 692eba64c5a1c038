//! Reads an archive to its end and checks every byte, while it passes the entries to an [`Unpack`].
//!
//! One pass checks:
//!
//! * the seal;
//! * the size and digest of the archive against the sidecar;
//! * the CRC of each block;
//! * the name, size and digest of each entry against the list of files;
//! * the list of a full backup against the manifest inside;
//! * `checksums.sha256` against all of these;
//! * the sidecar against the manifest inside.

use std::{
    io::{self, Read, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use sha2::{Digest, Sha256};

use super::{
    block_reader::Decoder,
    encryption::{Keys, read::Closed},
    errors::backup_not_found,
    file_list::{FILE_LIST_ENTRY, FileList, ListParser, MAX_NAMES_BYTES, MAX_RECORDS},
    file_record::Owner,
    first_format,
    manifest::{CHECKSUMS_ENTRY, MANIFEST_ENTRY, Manifest},
    report::{Contents, MAX_PROBLEMS, Problem, ProblemCode, ReadEntry, Report},
    seal::SealedFile,
    tally::{Tallied, Tally},
    tar_entries::{Entries, Head, TarItem},
    verify::{self, ChecksumsCheck},
};
use crate::{
    error::{Code, Error, Result},
    place::Archive,
    util::{
        hex::hex,
        operation::{OperationContext, Phase},
        progress::ByteProgress,
    },
};

/// Maximum number of entries: the records of a list, and the entries that describe them.
const MAX_ENTRIES: usize = MAX_RECORDS + 3;
/// Maximum length of a manifest. Manifests of the first format list all files.
pub const MAX_TEXT_BYTES: u64 = 256 * 1024 * 1024;
const COPY_BYTES: usize = 128 * 1024;
const TAR_BLOCK_BYTES: usize = 512;

/// Receives the entries as they are read. What it received is valid only if [`read_archive`] found
/// no problem.
pub trait Unpack {
    /// Returns the destination for the content of file entry `number`, or `None` to skip it.
    fn entry(
        &mut self,
        number: usize,
        name: &str,
        size_bytes: u64,
    ) -> Result<Option<&mut dyn Write>>;

    /// Receives the owner of the next entry, which may be a file, a directory or a link.
    fn owner(&mut self, _owner: Owner) {}

    /// Returns whether a damaged archive is useless to the receiver, so that reading stops at the
    /// first damage.
    fn wants_whole(&self) -> bool {
        false
    }
}

/// Skips all content, so that the archive is only checked.
pub struct Discard;

impl Unpack for Discard {
    fn entry(
        &mut self,
        _number: usize,
        _name: &str,
        _size_bytes: u64,
    ) -> Result<Option<&mut dyn Write>> {
        Ok(None)
    }
}

/// Reads an archive. `beside` is the text of the sidecar, if there is one.
///
/// The report lists damage. It holds a description of each entry and the list of files, so it takes
/// memory for each file. The function fails if the file cannot be read, `keys` do not open it,
/// or its format is newer (`KG_FORMAT_NEWER`). It also fails if `unpack` cannot store an entry or
/// the operation is cancelled.
pub fn read_archive(
    archive: &Archive,
    keys: &Keys,
    beside: Option<&[u8]>,
    unpack: &mut dyn Unpack,
    context: &OperationContext,
    phase: Phase,
) -> Result<Report> {
    let (report, _) = read_and_check(archive, keys, beside, unpack, None, context, phase)?;
    Ok(report)
}

/// Works like [`read_archive`], for a full archive, in little memory. It writes the list of files
/// to `list`; the report has none. The second part is `None` if the archive is not a full one or has
/// a problem. Then [`read_archive`] can say which problem.
pub fn read_full_archive(
    archive: &Archive,
    keys: &Keys,
    beside: Option<&[u8]>,
    unpack: &mut dyn Unpack,
    list: &mut dyn Write,
    context: &OperationContext,
    phase: Phase,
) -> Result<(Report, Option<Tallied>)> {
    let tally = Some(Tally::new(list));
    let (report, tallied) = read_and_check(archive, keys, beside, unpack, tally, context, phase)?;
    let is_intact = report.problems.is_empty();
    Ok((report, tallied.filter(|_| is_intact)))
}

fn read_and_check(
    archive: &Archive,
    keys: &Keys,
    beside: Option<&[u8]>,
    unpack: &mut dyn Unpack,
    mut tally: Option<Tally<'_>>,
    context: &OperationContext,
    phase: Phase,
) -> Result<(Report, Option<Tallied>)> {
    let failed = |cause| unreadable(archive, cause);
    let file = archive.open().map_err(failed)?;
    let file = match SealedFile::open(file, keys) {
        Ok(file) => file,
        Err(Closed::Io(cause)) => return Err(failed(cause)),
        Err(Closed::Key(error)) if error.code == Code::NotEncrypted => {
            return Err(Error {
                message: format!("{archive}: {}", error.message),
                ..error
            });
        }
        Err(closed) => {
            let report = closed_archive(archive, closed, beside, context)?;
            return Ok((report, None));
        }
    };
    let size_bytes = file.size_bytes();
    let progress = ByteProgress::new(context, phase, size_bytes);
    let decoder = Decoder::new(file, progress.clone()).map_err(failed)?;
    let is_damaged = decoder.is_damaged();
    let mut contents = Contents::default();
    let mut tar = tar::Archive::new(decoder);
    let tally_of_entries = tally.as_mut();
    read_entries(
        &mut tar,
        unpack,
        tally_of_entries,
        &progress,
        &is_damaged,
        &mut contents,
    )?;
    let mut decoder = tar.into_inner();
    read_rest(&mut decoder, &mut contents);
    let facts = decoder.finish(|| progress.report())?;
    context.report(phase, size_bytes, size_bytes)?;
    let manifest = parse_manifest(archive, facts.sealed, &mut contents)?;
    verify::damages(decoder.damages(), &mut contents);
    verify::seal(&facts, &mut contents);
    let files = match &manifest {
        Some(manifest) if tally.is_none() => read_list(manifest, &mut contents),
        _ => Ok(FileList::default()),
    };
    let (files, problem) = match files {
        Ok(files) => (files, None),
        Err(problem) => (FileList::default(), Some(problem)),
    };
    verify::beside(&facts, manifest.as_ref(), &files, beside, &mut contents);
    verify::name(archive.name(), &facts, &mut contents);
    contents.problems.extend(problem);
    let tallied = match (tally, &manifest) {
        (Some(tally), Some(manifest)) => tally.finish(manifest),
        (None, Some(manifest)) => {
            verify::entries(manifest, &files, &mut contents);
            None
        }
        (_, None) => None,
    };
    let report = Report {
        manifest,
        files,
        problems: contents.problems,
        size_bytes: facts.size_bytes,
        sha256: hex(&facts.sha256),
        encrypted: facts.encrypted,
    };
    Ok((report, tallied))
}

/// Parses the manifest. A missing or invalid one is a problem of the archive. Fails with
/// `KG_FORMAT_NEWER` if the archive is complete and has a newer format.
fn parse_manifest(
    archive: &Archive,
    is_sealed: bool,
    contents: &mut Contents,
) -> Result<Option<Manifest>> {
    let problem = match contents.manifest.as_deref() {
        None => "It contains no manifest".into(),
        Some(json) => match Manifest::parse(json, &archive.to_string()) {
            Ok(manifest) => return Ok(Some(manifest)),
            Err(error) if error.code == Code::FormatNewer && is_sealed => return Err(error),
            Err(error) => error.message,
        },
    };
    contents
        .problems
        .push(Problem::of_archive(ProblemCode::Structure, problem));
    Ok(None)
}

/// Returns the list of files. A missing or invalid one is a problem of the archive.
fn read_list(
    manifest: &Manifest,
    contents: &mut Contents,
) -> std::result::Result<FileList, Problem> {
    let (list, text) = (contents.list.take(), contents.manifest.as_deref());
    if let Some(files) = text.and_then(|json| first_format::file_list(json, manifest)) {
        return Ok(files);
    }
    let files = match list {
        Some(list) => list
            .finish()
            .map_err(|what| format!("The list of files {what}")),
        None => Err("It contains no list of files".into()),
    };
    files.map_err(|problem| Problem::of_archive(ProblemCode::Structure, problem))
}

/// Reports on an encrypted archive that cannot be opened. The sidecar shows whether the key is
/// wrong or the file was changed.
fn closed_archive(
    archive: &Archive,
    closed: Closed,
    beside: Option<&[u8]>,
    context: &OperationContext,
) -> Result<Report> {
    if let Closed::Key(error) = &closed
        && (error.code != Code::KeyWrong || beside.is_none())
    {
        return Err(error.clone());
    }
    let read = || SealedFile::new(archive.open()?)?.finish(|| context.cancel.is_cancelled());
    let facts = read();
    context.cancel.check()?;
    let facts = facts.map_err(|cause| unreadable(archive, cause))?;
    let mut contents = Contents::default();
    verify::beside(&facts, None, &FileList::default(), beside, &mut contents);
    match closed {
        Closed::Key(error) if contents.problems.is_empty() => return Err(error),
        Closed::Damaged(what) => {
            contents.problems.push(Problem::of_archive(
                ProblemCode::Archive,
                format!("It is encrypted, and {what}"),
            ));
        }
        Closed::Key(_) | Closed::Io(_) => {}
    }
    let (problems, sha256) = (contents.problems, hex(&facts.sha256));
    Ok(Report {
        manifest: None,
        files: FileList::default(),
        problems,
        size_bytes: facts.size_bytes,
        sha256,
        encrypted: true,
    })
}

/// Returns the error for an archive that could not be read. If the file is missing, for example
/// because another process has just removed it, the code is `KG_BACKUP_NOT_FOUND`.
pub fn unreadable(archive: &Archive, cause: io::Error) -> Error {
    if cause.kind() != io::ErrorKind::NotFound {
        return Error::io("read", &archive.path(), cause);
    }
    backup_not_found(format!("{archive} no longer exists")).with_cause(cause)
}

/// Why reading ends before the end of the tar. The archive has a problem then.
#[derive(Clone, Copy)]
enum Stop {
    TooManyEntries,
    Damaged,
    NamesTooLong,
    TextTooLong,
}

impl Stop {
    fn problem(self, entries_read: usize) -> Problem {
        let what = match self {
            Stop::TooManyEntries => "has more entries than a backup can have",
            Stop::Damaged => "is damaged",
            Stop::NamesTooLong => "has names of an impossible length",
            Stop::TextTooLong => "has a manifest of an impossible size",
        };
        let message = format!("The tar inside {what} (after {entries_read} entries)");
        Problem::of_archive(ProblemCode::Structure, message)
    }
}

fn read_entries(
    tar: &mut tar::Archive<Decoder>,
    unpack: &mut dyn Unpack,
    tally: Option<&mut Tally<'_>>,
    progress: &ByteProgress,
    is_damaged: &AtomicBool,
    contents: &mut Contents,
) -> Result<()> {
    let mut entries =
        Entries::new(tar).map_err(|cause| Error::io("read", "the archive".as_ref(), cause))?;
    let mut reading = EntryReader {
        stops_at_damage: unpack.wants_whole(),
        unpack,
        tally,
        progress,
        is_damaged,
        contents,
        buffer: vec![0; COPY_BYTES],
        names_bytes: 0,
    };
    for number in 0.. {
        let stop = match entries.next() {
            Ok(None) => return Ok(()),
            Ok(Some(_)) if number == MAX_ENTRIES => Some(Stop::TooManyEntries),
            Ok(Some((TarItem::Entry(head), entry))) => reading.read(number, head, entry)?,
            Ok(Some((TarItem::Foreign { name, what }, _))) => {
                reading.note_foreign(name, what);
                None
            }
            // The cause is dropped because it quotes the unreadable bytes, which may be anything.
            Err(_) => Some(Stop::Damaged),
        };
        if let Some(stop) = stop {
            contents.problems.push(stop.problem(number));
            return Ok(());
        }
    }
    Ok(())
}

/// An entry that describes others.
enum Text<'a, 'b> {
    /// Only its digest counts.
    Nothing,
    Tallied(&'a mut Tally<'b>),
    List(&'a mut ListParser),
    Manifest(&'a mut Vec<u8>),
    /// The checksums, and the entries before them.
    Checksums(&'a mut ChecksumsCheck, &'a [ReadEntry]),
}

impl Text<'_, '_> {
    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Text::Nothing => {}
            Text::Tallied(tally) => {
                let written = tally.list(bytes);
                written.map_err(|cause| Error::io("write", FILE_LIST_ENTRY.as_ref(), cause))?;
            }
            Text::List(list) => list.push(bytes),
            Text::Manifest(manifest) => manifest.extend_from_slice(bytes),
            Text::Checksums(check, entries) => check.push(bytes, entries),
        }
        Ok(())
    }
}

/// Passes entries on, and collects what is checked at the end of the archive.
struct EntryReader<'a, 'b> {
    unpack: &'a mut dyn Unpack,
    /// Takes the place of the descriptions of all entries.
    tally: Option<&'a mut Tally<'b>>,
    stops_at_damage: bool,
    progress: &'a ByteProgress,
    is_damaged: &'a AtomicBool,
    contents: &'a mut Contents,
    buffer: Vec<u8>,
    names_bytes: usize,
}

impl EntryReader<'_, '_> {
    /// Reads one entry. Returns why reading has to stop, if it has to.
    fn read(
        &mut self,
        number: usize,
        mut head: Head,
        mut content: impl Read,
    ) -> Result<Option<Stop>> {
        head.name.shrink_to_fit();
        head.link.shrink_to_fit();
        self.names_bytes += head.name.len() + head.link.len();
        if self.names_bytes > MAX_NAMES_BYTES {
            return Ok(Some(Stop::NamesTooLong));
        }
        let (stops_at_damage, is_damaged) = (self.stops_at_damage, self.is_damaged);
        let must_stop = || stops_at_damage && is_damaged.load(Ordering::Relaxed);
        let mut text = match (head.name.as_str(), &mut self.tally) {
            (FILE_LIST_ENTRY, Some(tally)) => Some(Text::Tallied(tally)),
            (CHECKSUMS_ENTRY, Some(_)) => Some(Text::Nothing),
            (FILE_LIST_ENTRY, None) => {
                Some(Text::List(self.contents.list.insert(Default::default())))
            }
            (MANIFEST_ENTRY, _) => Some(Text::Manifest(self.contents.manifest.insert(Vec::new()))),
            (CHECKSUMS_ENTRY, None) => Some(Text::Checksums(
                self.contents.checksums.insert(Default::default()),
                &self.contents.entries,
            )),
            _ => None,
        };
        if matches!(text, Some(Text::Manifest(_))) && head.size_bytes > MAX_TEXT_BYTES {
            return Ok(Some(Stop::TextTooLong));
        }
        self.unpack.owner(head.owner);
        if must_stop() {
            return Ok(Some(Stop::Damaged));
        }
        let mut out = None;
        if text.is_none() && head.kind.is_file() {
            out = self.unpack.entry(number, &head.name, head.size_bytes)?;
        }
        let mut hasher = Sha256::new();
        // If an entry ends early or cannot be read, its size and digest do not match.
        while let Ok(read @ 1..) = content.read(&mut self.buffer) {
            let read = &self.buffer[..read];
            hasher.update(read);
            if let Some(text) = &mut text {
                text.push(read)?;
            }
            if must_stop() {
                break;
            }
            if let Some(out) = &mut out {
                out.write_all(read)
                    .map_err(|cause| Error::io("write", "the unpacked files".as_ref(), cause))?;
            }
            self.progress.report()?;
        }
        let digest = hasher.finalize().into();
        match &mut self.tally {
            Some(tally) => tally.entry(&head, digest),
            None => self.contents.entries.push(ReadEntry { head, digest }),
        }
        Ok(None)
    }

    /// Notes an entry of a type or name that no backup contains.
    fn note_foreign(&mut self, name: String, what: &str) {
        if self.contents.problems.len() < MAX_PROBLEMS {
            let message = format!("{name} {what}, so it is not an entry of a backup");
            self.contents
                .problems
                .push(Problem::of_entry(name, message));
        }
    }
}

/// Checks the end of the tar. A tar ends with two blocks of zeros, and the tar crate has read the
/// first one.
fn read_rest(decoder: &mut Decoder, contents: &mut Contents) {
    let mut rest = Vec::new();
    let read = decoder
        .take(2 * TAR_BLOCK_BYTES as u64)
        .read_to_end(&mut rest);
    if read.is_err() || rest.len() != TAR_BLOCK_BYTES || rest.iter().any(|byte| *byte != 0) {
        let message = "The tar inside does not end correctly".to_string();
        contents
            .problems
            .push(Problem::of_archive(ProblemCode::Structure, message));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn an_archive_that_was_removed_meanwhile_is_a_backup_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let read = |path: &Path| {
            read_archive(
                &Archive::at(path),
                &Keys::default(),
                None,
                &mut Discard,
                &OperationContext::default(),
                Phase::Verifying,
            )
            .unwrap_err()
        };
        assert_eq!(
            read(&dir.path().join("kg-backup-20240115-020000.tar.gz")).code,
            Code::BackupNotFound
        );
        assert_eq!(read(dir.path()).code, Code::Io);
    }
}
