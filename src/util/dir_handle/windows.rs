//! Windows opens a name below an open directory with `NtCreateFile`. Links and mount points are
//! reparse points, which are opened themselves and then refused.
//!
//! Windows has no owners in the sense of Unix. Links on the path that the user names are followed
//! by the system. Only administrators, and users in the developer mode, can create such links.

use std::{
    ffi::{OsStr, OsString},
    fs::{File, OpenOptions},
    io,
    os::windows::{
        ffi::{OsStrExt, OsStringExt},
        fs::{OpenOptionsExt, symlink_dir, symlink_file},
        io::{AsRawHandle, FromRawHandle, OwnedHandle},
    },
    path::{Path, PathBuf},
    ptr::null,
    time::{Duration, UNIX_EPOCH},
};

use windows_sys::{
    Wdk::{
        Foundation::OBJECT_ATTRIBUTES,
        Storage::FileSystem::{
            FILE_CREATE, FILE_DIRECTORY_FILE, FILE_DISPOSITION_DELETE,
            FILE_DISPOSITION_IGNORE_READONLY_ATTRIBUTE, FILE_DISPOSITION_INFORMATION,
            FILE_DISPOSITION_INFORMATION_EX, FILE_DISPOSITION_POSIX_SEMANTICS,
            FILE_NON_DIRECTORY_FILE, FILE_OPEN, FILE_OPEN_FOR_BACKUP_INTENT, FILE_OPEN_IF,
            FILE_OPEN_REPARSE_POINT, FILE_RENAME_INFORMATION, FILE_RENAME_POSIX_SEMANTICS,
            FILE_RENAME_REPLACE_IF_EXISTS, FILE_SYNCHRONOUS_IO_NONALERT,
            FileDispositionInformation, FileDispositionInformationEx, FileRenameInformation,
            FileRenameInformationEx, NtCreateFile, NtSetInformationFile,
        },
    },
    Win32::{
        Foundation::{
            ERROR_CANT_ACCESS_FILE, ERROR_CANT_RESOLVE_FILENAME, ERROR_DIRECTORY,
            ERROR_INVALID_FUNCTION, ERROR_INVALID_PARAMETER, ERROR_NOT_A_REPARSE_POINT,
            ERROR_NOT_SUPPORTED, HANDLE, NTSTATUS, RtlNtStatusToDosError, UNICODE_STRING,
        },
        Storage::FileSystem::{
            DELETE, FILE_ADD_FILE, FILE_APPEND_DATA, FILE_ATTRIBUTE_NORMAL,
            FILE_FLAG_BACKUP_SEMANTICS, FILE_GENERIC_READ, FILE_GENERIC_WRITE, FILE_LIST_DIRECTORY,
            FILE_READ_ATTRIBUTES, FILE_SHARE_DELETE, FILE_SHARE_READ, FILE_SHARE_WRITE,
            FILE_TRAVERSE, FILE_WRITE_ATTRIBUTES, FILE_WRITE_DATA, GetFinalPathNameByHandleW,
            SYNCHRONIZE,
        },
        System::IO::IO_STATUS_BLOCK,
    },
};

use super::{Access, Create};
use crate::{
    system::{
        file_id::FileId,
        portable::{self, MetadataExt},
    },
    util::entry_stat::{EntryStat, EntryType},
};

pub type Dir = OwnedHandle;

/// The file that is locked instead of its directory.
const LOCK_FILE: &str = ".kg-directory.lock";

const ON_THE_WAY: u32 = FILE_TRAVERSE | FILE_READ_ATTRIBUTES | SYNCHRONIZE;
const DIRECTORY: u32 = ON_THE_WAY | FILE_LIST_DIRECTORY;
const SHARE: u32 = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;

/// Opens a directory, of which only names can be accessed, and returns its path without links.
pub fn reach(path: &Path) -> io::Result<(Dir, PathBuf)> {
    let dir = OpenOptions::new()
        .access_mode(ON_THE_WAY)
        .custom_flags(FILE_FLAG_BACKUP_SEMANTICS)
        .open(path)?;
    if !dir.metadata()?.is_dir() {
        return Err(error(ERROR_DIRECTORY));
    }
    let path = path_of(&dir)?;
    Ok((dir.into(), path))
}

/// Returns the path of an open file or directory, without links.
#[allow(unsafe_code, reason = "std resolves only paths")]
fn path_of(file: &impl AsRawHandle) -> io::Result<PathBuf> {
    let mut text = vec![0_u16; 512];
    loop {
        // SAFETY: the handle is open, and `text` has the length that is given.
        let length = unsafe {
            GetFinalPathNameByHandleW(
                file.as_raw_handle(),
                text.as_mut_ptr(),
                text.len() as u32,
                0,
            )
        } as usize;
        match length {
            0 => return Err(io::Error::last_os_error()),
            _ if length < text.len() => {
                // Without the prefix `\\?\`, unless the path needs it.
                let path = PathBuf::from(OsString::from_wide(&text[..length]));
                return Ok(dunce::simplified(&path).to_path_buf());
            }
            _ => text.resize(length + 1, 0),
        }
    }
}

pub fn readable(dir: &Dir) -> io::Result<Dir> {
    open_below(
        dir,
        OsStr::new(""),
        DIRECTORY,
        FILE_OPEN,
        FILE_DIRECTORY_FILE,
    )
}

/// Returns the directory as a file that can be synced, which needs the right to write to it.
pub fn to_sync(dir: &Dir) -> io::Result<File> {
    let rights = DIRECTORY | FILE_ADD_FILE;
    open_below(dir, OsStr::new(""), rights, FILE_OPEN, FILE_DIRECTORY_FILE).map(File::from)
}

/// Returns a file in the directory, because Windows does not lock directories. Backups leave out
/// files with this ending.
pub fn to_lock(dir: &Dir) -> io::Result<File> {
    let name = OsStr::new(LOCK_FILE);
    open_at(dir, name, Access::ReadWrite, Create::IfMissing)
}

/// Opens a directory; fails for a link.
pub fn enter(dir: &Dir, name: &OsStr) -> io::Result<Dir> {
    let entered = open_below(dir, name, DIRECTORY, FILE_OPEN, FILE_DIRECTORY_FILE)?;
    no_link(File::from(entered)).map(Dir::from)
}

/// Returns whether an entry was not opened because it is not a directory.
pub fn is_no_directory(cause: &io::Error) -> bool {
    cause.kind() == io::ErrorKind::NotADirectory
        || [ERROR_DIRECTORY, ERROR_CANT_ACCESS_FILE]
            .iter()
            .any(|code| cause.raw_os_error() == Some(*code as i32))
}

/// Returns whether [`link_at`] failed because the entry is not a link.
pub fn is_no_link(cause: &io::Error) -> bool {
    cause.raw_os_error() == Some(ERROR_NOT_A_REPARSE_POINT as i32)
}

pub fn too_many_links() -> io::Error {
    error(ERROR_CANT_RESOLVE_FILENAME)
}

/// Returns the target of the link of that name, and its owner, which is unknown.
pub fn link_at(_dir: &Dir, path: &Path, name: &OsStr) -> io::Result<(PathBuf, u32)> {
    std::fs::read_link(path.join(name)).map(|target| (target, 0))
}

/// Returns whether links of this user are trusted: see the top of this file.
pub fn is_trusted(_user: u32) -> bool {
    true
}

/// Opens or creates a file; fails for a link.
pub fn open_at(dir: &Dir, name: &OsStr, access: Access, create: Create) -> io::Result<File> {
    let rights = match access {
        Access::Read => FILE_GENERIC_READ,
        Access::Write => FILE_GENERIC_WRITE | FILE_READ_ATTRIBUTES,
        Access::ReadWrite => FILE_GENERIC_READ | FILE_GENERIC_WRITE,
        Access::Append => {
            FILE_GENERIC_WRITE & !FILE_WRITE_DATA | FILE_APPEND_DATA | FILE_READ_ATTRIBUTES
        }
    };
    // A new file gets the access list of its directory.
    let disposition = match create {
        Create::No => FILE_OPEN,
        Create::IfMissing => FILE_OPEN_IF,
        Create::New { mode: _ } => FILE_CREATE,
    };
    // Only a directory that is opened for reading is no error, as on Unix.
    let kind = if access == Access::Read {
        FILE_OPEN_FOR_BACKUP_INTENT
    } else {
        FILE_NON_DIRECTORY_FILE
    };
    no_link(open_below(dir, name, rights, disposition, kind)?.into())
}

fn no_link(file: File) -> io::Result<File> {
    if file.metadata()?.is_symlink() {
        return Err(error(ERROR_CANT_ACCESS_FILE));
    }
    Ok(file)
}

pub fn stat(dir: &Dir) -> io::Result<EntryStat> {
    described(&dir.try_clone()?.into())
}

pub fn stat_at(dir: &Dir, name: &OsStr, follows_link: bool) -> io::Result<EntryStat> {
    if follows_link {
        let path = path_of(dir)?.join(name);
        return described(&portable::open_to_read(&path, true)?);
    }
    described(&open_below(dir, name, FILE_READ_ATTRIBUTES | SYNCHRONIZE, FILE_OPEN, 0)?.into())
}

fn described(file: &File) -> io::Result<EntryStat> {
    let (found, id) = (file.metadata()?, FileId::of(file)?);
    Ok(EntryStat {
        entry_type: if found.is_symlink() {
            EntryType::Link
        } else if found.is_dir() {
            EntryType::Directory
        } else if found.is_file() {
            EntryType::File
        } else {
            EntryType::Other
        },
        mode: MetadataExt::mode(&found),
        user: 0,
        group: 0,
        device: id.identity.0,
        inode: id.identity.1,
        names: id.names,
        modified: (found.mtime(), found.mtime_nsec()),
    })
}

pub fn rename(from: &Dir, old: &OsStr, to: &Dir, new: &OsStr) -> io::Result<()> {
    move_to(
        from,
        old,
        to,
        new,
        FILE_RENAME_REPLACE_IF_EXISTS | FILE_RENAME_POSIX_SEMANTICS,
    )
}

/// Renames to an unused name.
pub fn rename_new(from: &Dir, old: &OsStr, to: &Dir, new: &OsStr) -> io::Result<()> {
    move_to(from, old, to, new, FILE_RENAME_POSIX_SEMANTICS)
}

#[allow(unsafe_code, reason = "std renames only by path")]
fn move_to(from: &Dir, old: &OsStr, to: &Dir, new: &OsStr, flags: u32) -> io::Result<()> {
    let entry = open_below(
        from,
        old,
        DELETE | SYNCHRONIZE,
        FILE_OPEN,
        FILE_OPEN_FOR_BACKUP_INTENT,
    )?;
    let name: Vec<u16> = new.encode_wide().collect();
    let name_at = std::mem::offset_of!(FILE_RENAME_INFORMATION, FileName);
    // The structure ends with the first letter of the name and padding, so a short name fits into it.
    let bytes = (name_at + size_of_val(name.as_slice())).max(size_of::<FILE_RENAME_INFORMATION>());
    // The buffer is aligned like the structure.
    let count = bytes.div_ceil(size_of::<FILE_RENAME_INFORMATION>());
    let mut buffer = vec![FILE_RENAME_INFORMATION::default(); count];
    let start = buffer.as_mut_ptr();
    // SAFETY: the buffer has room for the structure and the name after it.
    unsafe {
        (*start).Anonymous.Flags = flags;
        (*start).RootDirectory = to.as_raw_handle();
        (*start).FileNameLength = size_of_val(name.as_slice()) as u32;
        start
            .cast::<u8>()
            .add(name_at)
            .copy_from_nonoverlapping(name.as_ptr().cast(), size_of_val(name.as_slice()));
    }
    let set = |order: *const FILE_RENAME_INFORMATION, class| {
        let mut status = IO_STATUS_BLOCK::default();
        // SAFETY: both handles are open, and the buffer has the length that is given.
        succeeded(unsafe {
            NtSetInformationFile(
                entry.as_raw_handle(),
                &mut status,
                order.cast(),
                bytes as u32,
                class,
            )
        })
    };
    match set(start, FileRenameInformationEx) {
        Err(cause) if is_unknown_class(&cause) => {
            let replaces = flags & FILE_RENAME_REPLACE_IF_EXISTS != 0;
            // SAFETY: as above.
            unsafe { (*start).Anonymous.ReplaceIfExists = replaces };
            set(start, FileRenameInformation)
        }
        renamed => renamed,
    }
}

/// Returns whether the file system (FAT, some network shares) or the system (before Windows 10,
/// Wine) does not have the newer form of a call.
fn is_unknown_class(cause: &io::Error) -> bool {
    [
        ERROR_INVALID_FUNCTION,
        ERROR_INVALID_PARAMETER,
        ERROR_NOT_SUPPORTED,
    ]
    .iter()
    .any(|code| cause.raw_os_error() == Some(*code as i32))
}

pub fn make_dir(dir: &Dir, name: &OsStr, _mode: u32) -> io::Result<()> {
    open_below(dir, name, DIRECTORY, FILE_CREATE, FILE_DIRECTORY_FILE).map(drop)
}

pub fn make_link(dir: &Dir, _path: &Path, name: &OsStr, target: &Path) -> io::Result<()> {
    symlink(target, &path_of(dir)?.join(name))
}

/// Makes a link. Windows distinguishes links to directories, and allows both only to
/// administrators and in its developer mode.
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    let leads_to = link.parent().unwrap_or(link).join(target);
    if leads_to.is_dir() {
        symlink_dir(target, link)
    } else {
        symlink_file(target, link)
    }
}

pub fn unlink(dir: &Dir, name: &OsStr) -> io::Result<()> {
    remove(dir, name, FILE_NON_DIRECTORY_FILE)
}

pub fn remove_dir(dir: &Dir, name: &OsStr) -> io::Result<()> {
    remove(dir, name, FILE_DIRECTORY_FILE)
}

/// Removes a name at once, even if the file is open elsewhere, as on Unix. Where that is not
/// possible, the name goes when the last handle is closed.
fn remove(dir: &Dir, name: &OsStr, kind: u32) -> io::Result<()> {
    let entry = open_below(dir, name, DELETE | SYNCHRONIZE, FILE_OPEN, kind)?;
    let order = FILE_DISPOSITION_INFORMATION_EX {
        Flags: FILE_DISPOSITION_DELETE
            | FILE_DISPOSITION_POSIX_SEMANTICS
            | FILE_DISPOSITION_IGNORE_READONLY_ATTRIBUTE,
    };
    match set_information(&entry, FileDispositionInformationEx, &order) {
        Err(cause) if is_unknown_class(&cause) => set_information(
            &entry,
            FileDispositionInformation,
            &FILE_DISPOSITION_INFORMATION { DeleteFile: true },
        ),
        removed => removed,
    }
}

#[allow(unsafe_code, reason = "std has no such call")]
fn set_information<T>(entry: &Dir, class: i32, value: &T) -> io::Result<()> {
    let mut status = IO_STATUS_BLOCK::default();
    // SAFETY: the handle is open, and the length is that of `value`.
    succeeded(unsafe {
        NtSetInformationFile(
            entry.as_raw_handle(),
            &mut status,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as u32,
            class,
        )
    })
}

/// Sets the time of the last modification, in seconds and nanoseconds since the epoch.
pub fn set_modified(dir: &Dir, name: &OsStr, time: (i64, i64)) -> io::Result<()> {
    let rights = FILE_WRITE_ATTRIBUTES | FILE_READ_ATTRIBUTES | SYNCHRONIZE;
    let file = File::from(open_below(
        dir,
        name,
        rights,
        FILE_OPEN,
        FILE_OPEN_FOR_BACKUP_INTENT,
    )?);
    let since = Duration::from_secs(time.0.unsigned_abs());
    let at = if time.0 < 0 {
        UNIX_EPOCH.checked_sub(since)
    } else {
        UNIX_EPOCH.checked_add(since)
    };
    let at = at.and_then(|at| at.checked_add(Duration::from_nanos(time.1.unsigned_abs())));
    file.set_modified(at.ok_or(io::ErrorKind::InvalidInput)?)
}

pub fn give(_dir: &Dir, _name: &OsStr, _user: u32, _group: u32) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Returns the present path of this open directory, or of the directory with this open lock file;
/// `path` if the system does not tell.
pub fn held_path(handle: &impl AsRawHandle, path: &Path) -> PathBuf {
    match path_of(handle) {
        Ok(found) if found.ends_with(LOCK_FILE) => found.parent().unwrap_or(path).to_path_buf(),
        Ok(found) => found,
        Err(_) => path.to_path_buf(),
    }
}

/// Opens or creates a name below a directory, or the directory itself if the name is empty. A link
/// is opened itself.
#[allow(unsafe_code, reason = "std opens only paths")]
fn open_below(
    dir: &Dir,
    name: &OsStr,
    rights: u32,
    disposition: u32,
    kind: u32,
) -> io::Result<Dir> {
    let mut name: Vec<u16> = name.encode_wide().collect();
    // Such a name would lead elsewhere.
    if name
        .iter()
        .any(|unit| [b'\\', b'/', b':', 0].map(u16::from).contains(unit))
    {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let length = u16::try_from(size_of_val(name.as_slice()))
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidFilename))?;
    let text = UNICODE_STRING {
        Length: length,
        MaximumLength: length,
        Buffer: name.as_mut_ptr(),
    };
    /// Names that differ only in their case are one name.
    const OBJ_CASE_INSENSITIVE: u32 = 64;
    let attributes = OBJECT_ATTRIBUTES {
        Length: size_of::<OBJECT_ATTRIBUTES>() as u32,
        RootDirectory: dir.as_raw_handle(),
        ObjectName: &text,
        Attributes: OBJ_CASE_INSENSITIVE,
        SecurityDescriptor: null(),
        SecurityQualityOfService: null(),
    };
    let mut handle: HANDLE = std::ptr::null_mut();
    let mut status = IO_STATUS_BLOCK::default();
    // SAFETY: everything that the attributes point to outlives the call.
    succeeded(unsafe {
        NtCreateFile(
            &mut handle,
            rights,
            &attributes,
            &mut status,
            null(),
            FILE_ATTRIBUTE_NORMAL,
            SHARE,
            disposition,
            kind | FILE_OPEN_REPARSE_POINT | FILE_SYNCHRONOUS_IO_NONALERT,
            null(),
            0,
        )
    })?;
    // SAFETY: the call succeeded, so the handle is open and belongs to nothing else.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

#[allow(unsafe_code, reason = "std does not translate these numbers")]
fn succeeded(status: NTSTATUS) -> io::Result<()> {
    if status >= 0 {
        return Ok(());
    }
    // SAFETY: the function takes any number.
    Err(error(unsafe { RtlNtStatusToDosError(status) }))
}

fn error(code: u32) -> io::Error {
    io::Error::from_raw_os_error(code as i32)
}
