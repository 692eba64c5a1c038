//! Opens files that another user may have put into a project or a store.
//!
//! Opening a pipe blocks, a device has no end, and a link leads to another file. A file with
//! several names may also belong to another user. All short reads below a project or a store
//! therefore use this module, and all writes use [`crate::util::dir_handle`]. Both accept only a
//! regular file, without blocking, up to a limit; for writing, it must have one name and not be a
//! link.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

use crate::{
    error::{Code, Error, Result},
    system::{file_id::FileId, portable, writers},
};

/// Opens a regular file for reading; a link is an error.
pub fn open(path: &Path) -> io::Result<File> {
    only(portable::open_to_read(path, false)?)
}

/// Works like [`open`], but follows links, because a configuration that is mounted into a container
/// is often a link.
pub fn open_linked(path: &Path) -> io::Result<File> {
    only(portable::open_to_read(path, true)?)
}

/// Returns the first bytes of the file at `path`; `None` if it is shorter or cannot be read.
pub fn start<const BYTES: usize>(path: &Path) -> Option<[u8; BYTES]> {
    let mut start = [0; BYTES];
    open_linked(path)
        .and_then(|mut file| file.read_exact(&mut start))
        .ok()?;
    Some(start)
}

/// Returns the open file if it is a regular file.
pub fn only(file: File) -> io::Result<File> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ));
    }
    Ok(file)
}

/// Reads the whole file. Fails if it is larger than `most_bytes`.
pub fn read(file: &File, most_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most_bytes.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most_bytes {
        return Err(larger_than(most_bytes));
    }
    Ok(bytes)
}

fn larger_than(most_bytes: u64) -> io::Error {
    let most = match most_bytes / 1024 {
        kib if kib >= 1024 => format!("{} MiB", kib / 1024),
        kib => format!("{kib} KiB"),
    };
    let message = format!("it is larger than {most}");
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Reads the regular file at `path`, following links. Returns `None` if it does not exist.
pub fn read_if_there(path: &Path, most_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    match open_linked(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => read(&opened?, most_bytes).map(Some),
    }
}

/// Works like [`read_if_there`], but does not follow a link at the end of the path.
pub fn read_unlinked(path: &Path, most_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    match open(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => read(&opened?, most_bytes).map(Some),
    }
}

/// Opens a file of instructions for this process. Returns `None` if it does not exist.
/// `KG_UNSAFE_FILE` if any user other than this one and root could have written it. Fails if it is
/// larger than `most_bytes`.
pub fn open_orders(
    path: &Path,
    most_bytes: u64,
) -> Result<Option<impl Read + std::fmt::Debug + use<>>> {
    let failed = |cause| Error::io("read", path, cause);
    let file = match open(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) if portable::is_link(&cause) => {
            return Err(unsafe_file(path, "it is a symbolic link"));
        }
        opened => opened.map_err(failed)?,
    };
    assert_one_name(&file, path)?;
    if let Some(why) = writers::foreign(&file).map_err(failed)? {
        return Err(Error {
            remedy: "Run this as that user; or review the file, and move it away".into(),
            ..unsafe_file(path, &why)
        });
    }
    if file.metadata().map_err(failed)?.len() > most_bytes {
        return Err(failed(larger_than(most_bytes)));
    }
    Ok(Some(BufReader::new(file.take(most_bytes))))
}

/// Fails with `KG_UNSAFE_FILE` if an open file has other names, because it then also belongs to
/// another user.
pub fn assert_one_name(file: &File, path: &Path) -> Result<()> {
    let found = FileId::of(file).map_err(|cause| Error::io("open", path, cause))?;
    if found.names > 1 {
        Err(unsafe_file(path, "it has other names (hard links)"))
    } else {
        Ok(())
    }
}

pub fn unsafe_file(path: &Path, why: &str) -> Error {
    let message = format!("{} was not used: {why}", path.display());
    Error::new(
        Code::UnsafeFile,
        message,
        "Find out who made it, remove it, then run this again",
    )
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn orders_are_taken_from_a_file_that_nobody_else_could_have_written() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "orders").unwrap();
        for (mode, is_followed) in [(0o644, true), (0o600, true), (0o664, false), (0o602, false)] {
            fs::set_permissions(at("file"), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(open_orders(&at("file"), 9).is_ok(), is_followed, "{mode:o}");
        }
        fs::set_permissions(at("file"), fs::Permissions::from_mode(0o600)).unwrap();
        assert!(open_orders(&at("none"), 9).unwrap().is_none());
        symlink("file", at("link")).unwrap();
        assert_eq!(
            open_orders(&at("link"), 9).unwrap_err().code,
            Code::UnsafeFile
        );
        fs::hard_link(at("file"), at("second")).unwrap();
        assert_eq!(
            open_orders(&at("file"), 9).unwrap_err().code,
            Code::UnsafeFile
        );
    }

    #[test]
    fn what_is_read_is_a_regular_file_of_a_bounded_length() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "12345").unwrap();
        symlink("file", at("link")).unwrap();
        mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        assert_eq!(
            read_if_there(&at("link"), 5).unwrap(),
            Some(b"12345".to_vec())
        );
        assert_eq!(read_if_there(&at("none"), 5).unwrap(), None);
        assert!(read_if_there(&at("file"), 4).is_err());
        for path in [at("pipe"), dir.path().to_path_buf(), "/dev/zero".into()] {
            assert!(read_if_there(&path, 5).is_err(), "{}", path.display());
        }
        assert!(open(&at("link")).is_err());
    }
}
