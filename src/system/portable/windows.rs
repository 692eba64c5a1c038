use std::{
    borrow::Cow,
    ffi::{OsStr, OsString},
    fs::{self, File, Metadata, OpenOptions, Permissions, TryLockError},
    io::{self, Seek, SeekFrom},
    os::windows::{
        fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
        io::{AsHandle, AsRawHandle, FromRawHandle},
    },
    path::Path,
};

use windows_sys::Win32::{
    Foundation::{
        ERROR_ACCESS_DENIED, ERROR_CANT_ACCESS_FILE, ERROR_LOCK_VIOLATION, INVALID_HANDLE_VALUE,
    },
    Storage::FileSystem::{
        FILE_ACCESS_RIGHTS, FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_OPEN_REPARSE_POINT,
        FILE_GENERIC_WRITE, FILE_SHARE_DELETE, FILE_SHARE_MODE, FILE_SHARE_READ, FILE_SHARE_WRITE,
        FILE_WRITE_ATTRIBUTES, LOCK_FILE_FLAGS, LOCKFILE_EXCLUSIVE_LOCK, LOCKFILE_FAIL_IMMEDIATELY,
        LockFileEx, ReOpenFile,
    },
    System::IO::{OVERLAPPED, OVERLAPPED_0, OVERLAPPED_0_0},
};

/// The permissions that a file or a directory has for this description.
const FILE: u32 = 0o644;
const DIRECTORY: u32 = 0o755;
const WRITE: u32 = 0o222;

/// Seconds from 1601, where Windows begins to count, to 1970.
const EPOCH_SECONDS: i64 = 11_644_473_600;
const TICKS_PER_SECOND: u64 = 10_000_000;

/// Reads and writes at an offset, and leaves the position of the file where it was. Windows moves the
/// position, so no other thread may use it meanwhile.
pub trait FileExt {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    fn read_exact_at(&self, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.read_at(bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    bytes = &mut bytes[read..];
                    offset += read as u64;
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    fn write_all_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write_at(bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = &bytes[written..];
                    offset += written as u64;
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }
}

impl FileExt for File {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        /// The error of a read behind the end (`ERROR_HANDLE_EOF`).
        const END_OF_FILE: i32 = 38;
        match at_same_position(self, || self.seek_read(bytes, offset)) {
            Err(cause) if cause.raw_os_error() == Some(END_OF_FILE) => Ok(0),
            read => read,
        }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        at_same_position(self, || self.seek_write(bytes, offset))
    }
}

fn at_same_position(
    mut file: &File,
    access: impl FnOnce() -> io::Result<usize>,
) -> io::Result<usize> {
    let position = file.stream_position()?;
    let done = access();
    file.seek(SeekFrom::Start(position))?;
    done
}

pub trait MetadataExt {
    fn uid(&self) -> u32;
    fn gid(&self) -> u32;
    fn mode(&self) -> u32;
    fn mtime(&self) -> i64;
    fn mtime_nsec(&self) -> i64;
}

impl MetadataExt for Metadata {
    fn uid(&self) -> u32 {
        0
    }

    fn gid(&self) -> u32 {
        0
    }

    fn mode(&self) -> u32 {
        let mode = if self.is_dir() { DIRECTORY } else { FILE };
        mode & if self.permissions().readonly() {
            !WRITE
        } else {
            !0
        }
    }

    fn mtime(&self) -> i64 {
        (self.last_write_time() / TICKS_PER_SECOND) as i64 - EPOCH_SECONDS
    }

    fn mtime_nsec(&self) -> i64 {
        (self.last_write_time() % TICKS_PER_SECOND * 100) as i64
    }
}

pub trait PermissionsExt {
    fn mode(&self) -> u32;
}

impl PermissionsExt for Permissions {
    fn mode(&self) -> u32 {
        if self.readonly() { FILE & !WRITE } else { FILE }
    }
}

pub trait OpenOptionsExt {
    /// A new file gets the permissions of its directory.
    fn mode(&mut self, mode: u32) -> &mut Self;
}

impl OpenOptionsExt for OpenOptions {
    fn mode(&mut self, _mode: u32) -> &mut Self {
        self
    }
}

pub trait OsStrExt {
    /// Returns the text as UTF-8, with an encoding of its own for text that is not Unicode.
    fn as_bytes(&self) -> &[u8];
}

impl OsStrExt for OsStr {
    fn as_bytes(&self) -> &[u8] {
        self.as_encoded_bytes()
    }
}

/// Returns the text of these bytes. `None` if no name on this system has them.
pub fn os_string(bytes: Vec<u8>) -> Option<OsString> {
    String::from_utf8(bytes).ok().map(OsString::from)
}

/// Sets the one permission that Windows has: whether the file can be written.
pub fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    let wanted = with_mode(&file.metadata()?, mode);
    reopened(file, FILE_WRITE_ATTRIBUTES)?.set_permissions(wanted)
}

/// Syncs a file or directory. Windows does that only for a handle with the right to write.
pub fn sync(file: &File) -> io::Result<()> {
    match file.sync_all() {
        Err(cause) if cause.raw_os_error() == Some(ERROR_ACCESS_DENIED as i32) => {
            reopened(file, FILE_GENERIC_WRITE)?.sync_all()
        }
        synced => synced,
    }
}

/// Opens an open file or directory again, with these rights.
#[allow(unsafe_code, reason = "std opens only paths")]
pub fn reopened(file: &File, rights: FILE_ACCESS_RIGHTS) -> io::Result<File> {
    const SHARE: FILE_SHARE_MODE = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
    // SAFETY: the handle is open. The result belongs to nothing else.
    unsafe {
        let handle = ReOpenFile(
            file.as_raw_handle(),
            rights,
            SHARE,
            FILE_FLAG_BACKUP_SEMANTICS,
        );
        if handle == INVALID_HANDLE_VALUE {
            return Err(io::Error::last_os_error());
        }
        Ok(File::from_raw_handle(handle))
    }
}

pub fn set_mode_at(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, with_mode(&fs::metadata(path)?, mode))
}

fn with_mode(found: &Metadata, mode: u32) -> Permissions {
    let mut permissions = found.permissions();
    permissions.set_readonly(mode & WRITE == 0 && !found.is_dir());
    permissions
}

/// Opens a file or directory for reading.
pub fn open_to_read(path: &Path, follows_link: bool) -> io::Result<File> {
    let link = if follows_link {
        0
    } else {
        FILE_FLAG_OPEN_REPARSE_POINT
    };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(link | FILE_FLAG_BACKUP_SEMANTICS)
        .open(path)?;
    if file.metadata()?.is_symlink() {
        return Err(io::Error::from_raw_os_error(ERROR_CANT_ACCESS_FILE as i32));
    }
    Ok(file)
}

/// Returns whether a file was not opened because it is a link.
pub fn is_link(cause: &io::Error) -> bool {
    cause.raw_os_error() == Some(ERROR_CANT_ACCESS_FILE as i32)
}

/// Returns a handle to the standard output without the buffer and the lock of std.
pub fn own_stdout() -> io::Result<File> {
    io::stdout()
        .as_handle()
        .try_clone_to_owned()
        .map(File::from)
}

/// Returns the bytes of a path, with `/` between its names.
pub fn bytes_with_slashes(path: &Path) -> Cow<'_, [u8]> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.contains(&b'\\') {
        let slash = |byte: &u8| if *byte == b'\\' { b'/' } else { *byte };
        bytes.iter().map(slash).collect::<Vec<u8>>().into()
    } else {
        bytes.into()
    }
}

/// Waits for a lock of an open file. It keeps only other locks out: other processes may read the
/// file, because the lock covers a byte that no file reaches.
pub fn lock(file: &File) -> io::Result<()> {
    lock_with(file, LOCKFILE_EXCLUSIVE_LOCK)
}

pub fn try_lock(file: &File) -> Result<(), TryLockError> {
    tried(lock_with(
        file,
        LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY,
    ))
}

pub fn try_lock_shared(file: &File) -> Result<(), TryLockError> {
    tried(lock_with(file, LOCKFILE_FAIL_IMMEDIATELY))
}

fn tried(locked: io::Result<()>) -> Result<(), TryLockError> {
    locked.map_err(|cause| {
        if cause.raw_os_error() == Some(ERROR_LOCK_VIOLATION as i32) {
            TryLockError::WouldBlock
        } else {
            TryLockError::Error(cause)
        }
    })
}

#[allow(
    unsafe_code,
    reason = "std locks all bytes of a file, and then no process can read it"
)]
fn lock_with(file: &File, flags: LOCK_FILE_FLAGS) -> io::Result<()> {
    const OFFSET_HIGH: u32 = 1 << 30;
    let mut at = OVERLAPPED {
        Anonymous: OVERLAPPED_0 {
            Anonymous: OVERLAPPED_0_0 {
                Offset: 0,
                OffsetHigh: OFFSET_HIGH,
            },
        },
        ..OVERLAPPED::default()
    };
    // SAFETY: the handle is open, and the place of the lock is in `at`.
    if unsafe { LockFileEx(file.as_raw_handle(), flags, 0, 1, 0, &mut at) } == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
