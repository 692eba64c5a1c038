//! Files that change during a backup. Each change happens at the moment that matters, between two
//! pieces of the content of the file.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use kg_backup::internals::{
    Result,
    archive::file_record::FileRecord,
    error::WarningCode,
    project::discover::Selection,
    util::{content_hash::ContentHash, operation::CancelToken},
    worker::{
        backup::save,
        protocol::{Message, ResponseSink, SaveRequest},
    },
};
use rusqlite::Connection;

/// Larger than the limit up to which a file is read whole, and read again if it changed.
const LARGE: usize = 9 * 1024 * 1024;
const PATH: &str = ".kg/plugins/p/data";

/// Receives what is sent, and changes the file at `when`.
struct Receiver<F> {
    change: Option<F>,
    when: When,
    entries: Vec<(FileRecord, usize)>,
}

#[derive(Clone, Copy, PartialEq)]
enum When {
    /// After everything was found, before anything is read.
    Planned,
    /// After the first piece of the content of the file was sent.
    Reading,
}

impl<F: FnOnce()> ResponseSink for Receiver<F> {
    fn message(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Planned { .. } if self.when == When::Planned => self.change_it(),
            Message::Entry { record, .. } | Message::Database { record, .. } => {
                self.entries.push((record, 0))
            }
            _ => {}
        }
        Ok(())
    }

    fn data(&mut self, data: Vec<u8>) -> Result<()> {
        let (record, bytes) = self.entries.last_mut().unwrap();
        *bytes += data.len();
        if record.path == PATH && self.when == When::Reading {
            self.change_it();
        }
        Ok(())
    }

    fn block(&mut self, block: Vec<u8>, _: ContentHash) -> Result<()> {
        self.data(block)
    }
}

impl<F: FnOnce()> Receiver<F> {
    fn change_it(&mut self) {
        if let Some(change) = self.change.take() {
            change();
        }
    }
}

/// Saves a project whose file of `size` bytes changes. Returns the announced and the sent size of
/// the file, if it was saved, and the codes of the warnings.
fn saved(
    size: usize,
    when: When,
    change: impl Fn(&Path),
) -> (Option<(u64, usize)>, Vec<WarningCode>) {
    let dir = tempfile::tempdir().unwrap();
    let file: PathBuf = dir.path().join(PATH);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, vec![7; size]).unwrap();
    Connection::open(dir.path().join(".kg/knowledge.db"))
        .unwrap()
        .execute_batch("CREATE TABLE nodes (id)")
        .unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let request = SaveRequest {
        root: dir.path().to_path_buf(),
        selection: Selection::everything(),
        check_source: true,
        erase: true,
        scratch: scratch.path().to_path_buf(),
        known: None,
        block_bytes: 65_536,
        takes_over: false,
        force_read: false,
        lock_timeout_ms: 1000,
    };
    let mut receiver = Receiver {
        change: Some(|| change(&file)),
        when,
        entries: Vec::new(),
    };
    let saved = save(&request, &mut receiver, &CancelToken::default()).unwrap();
    assert!(receiver.change.is_none(), "the file was never changed");
    for (record, sent) in &receiver.entries {
        assert_eq!(record.size, *sent as u64, "{}", record.path);
    }
    let entry = receiver
        .entries
        .iter()
        .find(|(record, _)| record.path == PATH);
    let codes = saved.warnings.iter().map(|warning| warning.code).collect();
    (entry.map(|(record, sent)| (record.size, *sent)), codes)
}

fn grow(file: &Path) {
    File::options()
        .append(true)
        .open(file)
        .unwrap()
        .write_all(&[8; 100])
        .unwrap();
}

fn shrink(file: &Path) {
    File::options()
        .write(true)
        .open(file)
        .unwrap()
        .set_len(10)
        .unwrap();
}

fn replace(file: &Path) {
    let other = file.with_extension("new");
    fs::write(&other, vec![9; LARGE]).unwrap();
    fs::rename(other, file).unwrap();
}

#[test]
fn a_large_file_that_grows_or_shrinks_is_saved_at_the_size_it_had_and_said_to_have_changed() {
    for change in [grow, shrink] {
        let (sizes, warnings) = saved(LARGE, When::Reading, change);
        assert_eq!(
            (sizes, warnings),
            (Some((LARGE as u64, LARGE)), vec![WarningCode::FileChanged])
        );
    }
}

#[test]
fn a_file_that_is_replaced_or_removed_while_it_is_read_is_saved_as_it_was() {
    for change in [replace, |file: &Path| fs::remove_file(file).unwrap()] {
        let (sizes, warnings) = saved(LARGE, When::Reading, change);
        assert_eq!((sizes, warnings), (Some((LARGE as u64, LARGE)), vec![]));
    }
}

#[test]
fn a_file_that_is_gone_or_other_before_it_is_read_is_saved_as_it_is_then() {
    for (size, change, expected) in [
        (1000, grow as fn(&Path), Some(1100)),
        (LARGE, grow, Some(LARGE as u64 + 100)),
        (LARGE, shrink, Some(10)),
        (1000, replace, Some(LARGE as u64)),
        (LARGE, |file| fs::remove_file(file).unwrap(), None),
        (
            1000,
            |file| fs::remove_dir_all(file.parent().unwrap()).unwrap(),
            None,
        ),
    ] {
        let (sizes, warnings) = saved(size, When::Planned, change);
        assert_eq!((sizes.map(|(size, _)| size), warnings), (expected, vec![]));
    }
}

#[test]
fn a_file_that_became_a_link_or_a_pipe_is_not_read() {
    let link = |file: &Path| {
        fs::remove_file(file).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", file).unwrap();
    };
    let pipe = |file: &Path| {
        fs::remove_file(file).unwrap();
        nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    };
    for change in [link as fn(&Path), pipe] {
        let (sizes, warnings) = saved(1000, When::Planned, change);
        assert_eq!((sizes, warnings), (None, vec![WarningCode::FileUnreadable]));
    }
}
