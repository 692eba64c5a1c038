//! Error and warning types: a stable code, a message that says what happened, and a remedy.
//!
//! One plain, serializable type serves every layer. An error may cross the pipe from the worker,
//! cross the border to JavaScript, or end as a line on a terminal. Rules:
//!
//! * `message` says what happened and names the path or value concerned. `remedy` is the next step
//!   for the person who reads the message. Neither is ever empty.
//! * The code that detects the cause chooses the error code. Callers match on codes, never on text.
//! * Functions return errors and never log and swallow them. A problem that does not stop an
//!   operation is a [`Warning`] in the result of the operation.

use std::{error::Error as StdError, fmt, io, path::Path};

use serde::{Deserialize, Serialize};

use crate::system::{holders, mounts, refusal};

pub type Result<T, E = Error> = std::result::Result<T, E>;

const CHECK_THE_DISK: &str = "Check the disk and the system's log, then run it again";
const RESTORE_THE_NEWEST: &str =
    "Restore the newest good backup with `kg diag restore --file latest`";

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, exit $exit:literal;)+) => {
        /// Error codes that programs may rely on. `docs/reference/errors.md` explains each one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Code { $($(#[doc = $doc])+ #[serde(rename = $text)] $name,)+ }

        impl Code {
            /// All codes, in the order of `docs/reference/errors.md`.
            pub const ALL: &[Code] = &[$(Code::$name),+];

            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text),+ }
            }

            /// Returns the exit status of `kg` for this code: 1 error, 2 usage, 3 database, 4 file
            /// system or store, 5 verification failed, 130 interrupted.
            pub fn exit_status(self) -> u8 {
                match self { $(Code::$name => $exit),+ }
            }
        }
    };
}

codes! {
    /// An option or value does not exist or is out of range.
    InvalidOption = "KG_INVALID_OPTION", exit 2;
    /// This release does not support the operation.
    Unsupported = "KG_UNSUPPORTED", exit 2;
    /// `.kg/config.json` is not a JSON object, so no setting can be written to it.
    ConfigInvalid = "KG_CONFIG_INVALID", exit 2;
    /// `.kg/hooks.json` is not a list of hooks, or other users could have written it.
    HooksInvalid = "KG_HOOKS_INVALID", exit 2;
    /// The directory does not contain `.kg/`.
    NoProject = "KG_NO_PROJECT", exit 2;
    /// With `strict`: the backup lacks part of the project, or holds a part that changed during the
    /// backup.
    Incomplete = "KG_INCOMPLETE", exit 4;
    /// The project has no database.
    NoDatabase = "KG_NO_DATABASE", exit 3;
    /// The lock on the source database could not be acquired in time.
    DatabaseBusy = "KG_DATABASE_BUSY", exit 3;
    /// SQLite reports that the file is malformed or is not a database.
    DatabaseDamaged = "KG_DATABASE_DAMAGED", exit 3;
    /// SQLite could not open or read the file.
    DatabaseUnreadable = "KG_DATABASE_UNREADABLE", exit 3;
    /// Another process has the database open that a restore would replace.
    DatabaseInUse = "KG_DATABASE_IN_USE", exit 3;
    /// The backup directory is a file or cannot be used.
    BackupDirInvalid = "KG_BACKUP_DIR_INVALID", exit 4;
    /// The backup directory lies inside the part of the project that is backed up.
    BackupDirInProject = "KG_BACKUP_DIR_IN_PROJECT", exit 2;
    /// Another backup or deletion holds the lock of the store.
    StoreLocked = "KG_STORE_LOCKED", exit 4;
    /// The object store does not answer: the network, its name, its certificate, or the service.
    StoreUnreachable = "KG_STORE_UNREACHABLE", exit 4;
    /// The object store refused access: credentials are missing, wrong, expired or too weak.
    StoreDenied = "KG_STORE_DENIED", exit 4;
    /// Another process changed, deleted or created an object of the store at the same time.
    StoreChanged = "KG_STORE_CHANGED", exit 4;
    /// The store holds no backup.
    NoBackups = "KG_NO_BACKUPS", exit 4;
    /// No backup has that id, or no file has that name.
    BackupNotFound = "KG_BACKUP_NOT_FOUND", exit 4;
    /// The name may mean backups of several projects.
    Ambiguous = "KG_AMBIGUOUS", exit 4;
    /// The store has another backup of that name.
    BackupExists = "KG_BACKUP_EXISTS", exit 4;
    /// The file is not an archive of this tool.
    NotABackup = "KG_NOT_A_BACKUP", exit 5;
    /// The archive, or a file in the same directory that belongs to it, differs from what was
    /// written.
    ChecksumMismatch = "KG_CHECKSUM_MISMATCH", exit 5;
    /// The backup is encrypted or must be encrypted, and the caller gave no key.
    KeyNeeded = "KG_KEY_NEEDED", exit 2;
    /// The given key does not open the backup.
    KeyWrong = "KG_KEY_WRONG", exit 2;
    /// The archive is not encrypted, and the caller accepts only encrypted archives.
    NotEncrypted = "KG_NOT_ENCRYPTED", exit 5;
    /// A passphrase file, identity file or recipient cannot be used.
    KeyInvalid = "KG_KEY_INVALID", exit 2;
    /// A backup that this one depends on is missing.
    ChainBroken = "KG_CHAIN_BROKEN", exit 5;
    /// The backup cannot be the base of an incremental backup.
    BaseUnusable = "KG_BASE_UNUSABLE", exit 2;
    /// Other backups depend on the backup that was to be deleted.
    BackupNeeded = "KG_BACKUP_NEEDED", exit 4;
    /// A deletion would remove a pinned backup.
    BackupPinned = "KG_BACKUP_PINNED", exit 4;
    /// The archive has a newer format than this release can read.
    FormatNewer = "KG_FORMAT_NEWER", exit 1;
    /// The restore would replace files, and `overwrite` is off.
    TargetExists = "KG_TARGET_EXISTS", exit 4;
    /// The target directory cannot take a restore.
    TargetInvalid = "KG_TARGET_INVALID", exit 4;
    /// Another restore into the target is running.
    TargetLocked = "KG_TARGET_LOCKED", exit 4;
    /// No restore is kept that could be undone.
    NothingToUndo = "KG_NOTHING_TO_UNDO", exit 4;
    /// The operating system refused access.
    PermissionDenied = "KG_PERMISSION_DENIED", exit 4;
    /// The disk or quota is full.
    NoSpace = "KG_NO_SPACE", exit 4;
    /// A file to be written is a link, has other names, or is not a regular file.
    UnsafeFile = "KG_UNSAFE_FILE", exit 4;
    /// The system limits this user or process: threads, processes, open files, or the size of a
    /// file.
    Limit = "KG_LIMIT", exit 4;
    /// Another file system call failed.
    Io = "KG_IO", exit 4;
    /// The worker process could not be started.
    ReaderStart = "KG_READER_START", exit 1;
    /// The worker process ended before it finished its work.
    ReaderDied = "KG_READER_DIED", exit 1;
    /// The worker process belongs to another release than the addon.
    ReaderVersion = "KG_READER_VERSION", exit 1;
    /// The worker process sent something that does not follow the protocol.
    ReaderProtocol = "KG_READER_PROTOCOL", exit 1;
    /// The service of `kg serve` could not be started or stopped.
    Service = "KG_SERVICE", exit 1;
    /// The process of a run in the history was killed.
    Killed = "KG_KILLED", exit 1;
    /// The signal of the caller, or Ctrl-C, ended the operation.
    Aborted = "KG_ABORTED", exit 130;
    /// The user did not confirm that files or backups are replaced or removed.
    NotConfirmed = "KG_NOT_CONFIRMED", exit 1;
    /// A defect of this software.
    Internal = "KG_INTERNAL", exit 1;
}

impl Code {
    /// Returns whether the operation failed because of a key: missing, wrong or unusable.
    pub fn is_key_error(self) -> bool {
        matches!(self, Code::KeyNeeded | Code::KeyWrong | Code::KeyInvalid)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failed operation: what happened, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}. {remedy}.")]
pub struct Error {
    pub code: Code,
    /// What happened, without a full stop.
    pub message: String,
    /// What to do, without a full stop.
    pub remedy: String,
    /// The texts of the underlying error and of its sources, as the operating system or SQLite gave
    /// them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

impl Error {
    pub fn new(code: Code, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Error {
            code,
            message: message.into(),
            remedy: remedy.into(),
            cause: None,
        }
    }

    /// Adds to the remedy that the operation left everything as it was.
    pub fn with_nothing_changed(mut self) -> Self {
        let mut rest = self.remedy.chars();
        let first = rest.next().map(|letter| letter.to_ascii_lowercase());
        let rest = rest.as_str();
        self.remedy = format!("Nothing was changed; {}{rest}", first.unwrap_or_default());
        self
    }

    /// Replaces the remedy if the error has that code, because the caller knows a better one.
    pub fn with_remedy_for(mut self, code: Code, remedy: &str) -> Self {
        if self.code == code {
            self.remedy = remedy.into();
        }
        self
    }

    /// Adds the texts of an underlying error and of its sources.
    pub fn with_cause(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.cause = Some(chain(&*cause.into()));
        self
    }

    pub fn invalid(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Error::new(Code::InvalidOption, message, remedy)
    }

    /// Describes a defect of this software.
    pub fn internal(message: impl Into<String>) -> Self {
        Error::new(Code::Internal, message, "Please report this")
    }

    /// Describes a database that only a backup can bring back.
    pub fn damaged(message: impl Into<String>) -> Self {
        Error::new(Code::DatabaseDamaged, message, RESTORE_THE_NEWEST)
    }

    /// Describes a lock of this tool that another process kept for longer than `lockTimeout`.
    pub fn locked(code: Code, message: impl Into<String>) -> Self {
        Error::new(code, message, "Wait until it ends, or raise `lockTimeout`")
    }

    pub fn aborted() -> Self {
        Error::new(
            Code::Aborted,
            "The operation was aborted",
            "Nothing was changed; run it again when you are ready",
        )
    }

    /// Describes a failed call on `path`. `action` completes "Could not …", for example "write".
    pub fn io(action: &str, path: &Path, cause: io::Error) -> Self {
        if let Some(own) = own(&cause) {
            return Error {
                message: format!("Could not {action} {}: {}", path.display(), own.message),
                ..own.clone()
            };
        }
        let (code, remedy) = match cause.kind() {
            io::ErrorKind::ResourceBusy if mounts::is_point(path) => (
                Code::Io,
                "A single file is mounted there, as containers do, and cannot be replaced: mount \
                 the directory that contains it instead",
            ),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (
                Code::NoSpace,
                "Free some space there, or choose another directory, and run it again",
            ),
            io::ErrorKind::FileTooLarge => (
                Code::Limit,
                "Let this process write larger files (`ulimit -f`), or use another file system",
            ),
            _ if refusal::is_out_of_files(&cause) => (
                Code::Limit,
                "Raise the limit on open files: `ulimit -n`, or `LimitNOFILE=` in a systemd unit",
            ),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => (
                Code::PermissionDenied,
                "Give this user access to it, or run as a user that has it",
            ),
            io::ErrorKind::NotFound => (Code::Io, "Check that the path exists"),
            io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::AlreadyExists => (
                Code::Io,
                "Another kind of file is at this path or above it: find out what it is, and move \
                 it away",
            ),
            _ => (Code::Io, CHECK_THE_DISK),
        };
        Error::new(
            code,
            format!("Could not {action} {}: {}", path.display(), plain(&cause)),
            remedy,
        )
        .with_cause(cause)
    }

    /// Describes a database at `path` that another process keeps locked.
    pub fn busy(
        action: &str,
        path: &Path,
        cause: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        let message = format!(
            "Could not {action} {}: it is locked by {}",
            path.display(),
            holders::of(path)
        );
        let remedy = "Wait until that process ends its transaction, or stop it, then run it again; or raise `lockTimeout`";
        Error::new(Code::DatabaseBusy, message, remedy).with_cause(cause)
    }

    /// Describes a failed SQLite call on the database at `path`. `action` completes "Could not …".
    pub fn sqlite(action: &str, path: &Path, cause: rusqlite::Error) -> Self {
        use rusqlite::{ErrorCode::*, ffi};
        let refused_to_sync = matches!(
            cause.sqlite_error().map(|error| error.extended_code),
            Some(ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC)
        );
        let (code, remedy) = match cause.sqlite_error_code() {
            Some(DatabaseBusy | DatabaseLocked) => return Error::busy(action, path, cause),
            Some(DatabaseCorrupt | NotADatabase) => (Code::DatabaseDamaged, RESTORE_THE_NEWEST),
            Some(DiskFull) => (
                Code::NoSpace,
                "Free some space on that disk and run it again",
            ),
            Some(OperationInterrupted) => return Error::aborted(),
            Some(SystemIoFailure) if refused_to_sync => (
                Code::DatabaseUnreadable,
                "SQLite does not change a database that it cannot sync: check the disk and the \
                 system's log. If the file system has no `fsync`, restore into a directory on \
                 another file system with `targetDir`",
            ),
            Some(SystemIoFailure) => (Code::DatabaseUnreadable, CHECK_THE_DISK),
            _ => (
                Code::DatabaseUnreadable,
                "Check that this user may read the file and write its directory",
            ),
        };
        let what = match refused_to_sync {
            true => format!("the file system refused to sync it ({cause})"),
            false => cause.to_string(),
        };
        Error::new(
            code,
            format!("Could not {action} {}: {what}", path.display()),
            remedy,
        )
        .with_cause(cause)
    }
}

/// Returns the error of this crate that one of its readers or writers wrapped in an `io::Error`.
fn own(error: &io::Error) -> Option<&Error> {
    let inner = error.get_ref()?;
    inner
        .downcast_ref()
        .or_else(|| inner.downcast_ref().and_then(own))
}

/// Returns the texts of an error and of its sources, from the outermost to the innermost. Many
/// errors repeat the text of their source, so a text that the ones before it contain is left out.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut texts = String::new();
    let mut add = |text: &str| {
        if !texts.contains(text) {
            let colon = if texts.is_empty() { "" } else { ": " };
            texts = format!("{texts}{colon}{text}");
        }
    };
    let mut next = Some(error);
    while let Some(error) = next {
        let wrapped = error.downcast_ref::<io::Error>().and_then(own);
        match error.downcast_ref::<Error>().or(wrapped) {
            // The remedy of the outer error replaces the one of this error.
            Some(own) => {
                add(&own.message);
                own.cause.iter().for_each(|cause| add(cause));
            }
            None => add(&error.to_string()),
        }
        next = error.source();
    }
    texts
}

/// Returns the sentence of the operating system without Rust's "(os error N)", and without the full
/// stop that Windows has.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].trim_end_matches('.').to_string(),
        None => text,
    }
}

/// Returns the first text and the number of further texts, or `None` if there is no text.
pub(crate) fn first_and_more<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Option<String> {
    let mut texts = texts.into_iter();
    let first = texts.next()?.as_ref().to_string();
    Some(match texts.count() {
        0 => first,
        more => format!("{first}, and {more} more"),
    })
}

/// A problem that did not stop an operation but that a person should see. It is part of the result
/// of the operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// A stable code, `KG_WARN_…`.
    pub code: WarningCode,
    pub message: String,
    /// The path concerned, relative to the project, if the warning is about a single file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WarningCode {
    /// The source database failed its integrity check. The backup holds the database as it is.
    #[serde(rename = "KG_WARN_SOURCE_DAMAGED")]
    SourceDamaged,
    /// Part of a source database could not be checked here. The backup holds the whole database.
    #[serde(rename = "KG_WARN_NOT_CHECKED")]
    NotChecked,
    /// Rows violate a NOT NULL, UNIQUE or CHECK constraint or a column type of their table. The
    /// backup holds the rows as they are.
    #[serde(rename = "KG_WARN_CONSTRAINT")]
    Constraint,
    /// The graph database has no table.
    #[serde(rename = "KG_WARN_DATABASE_EMPTY")]
    DatabaseEmpty,
    /// A file changed while the worker read it. The backup holds what the worker read.
    #[serde(rename = "KG_WARN_FILE_CHANGED")]
    FileChanged,
    /// A file or directory could not be read and is not in the backup.
    #[serde(rename = "KG_WARN_FILE_UNREADABLE")]
    FileUnreadable,
    /// A socket or device, which a backup does not save.
    #[serde(rename = "KG_WARN_NOT_A_FILE")]
    NotAFile,
    /// A symbolic link that leads out of the project, which a backup does not save.
    #[serde(rename = "KG_WARN_LINK_OUTSIDE")]
    LinkOutside,
    /// A setting in the configuration of the project could not be used.
    #[serde(rename = "KG_WARN_CONFIG")]
    Config,
    /// The backup is good, but another file in the store could not be written or removed.
    #[serde(rename = "KG_WARN_STORE")]
    Store,
    /// The mode or time of a restored directory could not be set.
    #[serde(rename = "KG_WARN_ATTRIBUTES")]
    Attributes,
    /// No backup could serve as the base of an incremental backup, so a full one was made.
    #[serde(rename = "KG_WARN_FULL")]
    Full,
    /// An interrupted restore was found and was rolled back or completed.
    #[serde(rename = "KG_WARN_RECOVERED")]
    Recovered,
    /// A hook failed or could not be used. This does not affect the backup.
    #[serde(rename = "KG_WARN_HOOK")]
    Hook,
    /// Some nodes have no vector.
    #[serde(rename = "KG_WARN_VECTORS")]
    Vectors,
    /// The restored backup belongs to another project, or to this project at another path.
    #[serde(rename = "KG_WARN_OTHER_PROJECT")]
    OtherProject,
    /// The id of the project cannot be read or created, so only its path identifies its backups.
    #[serde(rename = "KG_WARN_PROJECT_ID")]
    ProjectId,
    /// A database has another name in the project and is saved only once.
    #[serde(rename = "KG_WARN_SAME_FILE")]
    SameFile,
    /// A process commits to another WAL than the one next to a database. The backup does not hold
    /// those commits.
    #[serde(rename = "KG_WARN_WAL_NOT_IN_USE")]
    WalNotInUse,
    /// `latest` skipped newer backups or the remains of newer backups.
    #[serde(rename = "KG_WARN_PASSED_OVER")]
    PassedOver,
    /// The restored backup does not hold all of its project.
    #[serde(rename = "KG_WARN_INCOMPLETE")]
    Incomplete,
    /// The store held backups of this project at the last run and holds none now.
    #[serde(rename = "KG_WARN_STORE_EMPTIED")]
    StoreEmptied,
    /// A pattern of `excludePatterns` excluded nothing.
    #[serde(rename = "KG_WARN_EXCLUDE")]
    Exclude,
    /// Other users can read or replace a key of encrypted backups, or the key lies next to what it
    /// opens.
    #[serde(rename = "KG_WARN_KEY_EXPOSED")]
    KeyExposed,
    /// The restored configuration has other backup settings than the one that it replaced.
    #[serde(rename = "KG_WARN_SETTINGS_CHANGED")]
    SettingsChanged,
    /// The caller gave keys, or backups must be encrypted, but the backup that was read is not
    /// encrypted.
    #[serde(rename = "KG_WARN_NOT_ENCRYPTED")]
    NotEncrypted,
    /// A file changed, but its size and times did not.
    #[serde(rename = "KG_WARN_TIMESTAMPS")]
    Timestamps,
}

impl WarningCode {
    #[cfg(not(without_internals))]
    pub const ALL: &[WarningCode] = &[
        WarningCode::SourceDamaged,
        WarningCode::NotChecked,
        WarningCode::Constraint,
        WarningCode::DatabaseEmpty,
        WarningCode::FileChanged,
        WarningCode::FileUnreadable,
        WarningCode::NotAFile,
        WarningCode::LinkOutside,
        WarningCode::Config,
        WarningCode::Store,
        WarningCode::Attributes,
        WarningCode::Full,
        WarningCode::Recovered,
        WarningCode::Hook,
        WarningCode::Vectors,
        WarningCode::OtherProject,
        WarningCode::SameFile,
        WarningCode::WalNotInUse,
        WarningCode::PassedOver,
        WarningCode::Incomplete,
        WarningCode::StoreEmptied,
        WarningCode::Exclude,
        WarningCode::KeyExposed,
        WarningCode::SettingsChanged,
        WarningCode::NotEncrypted,
        WarningCode::Timestamps,
    ];

    /// Returns whether a backup with this warning lacks part of its project or may hold half of a
    /// change.
    pub fn means_incomplete(self) -> bool {
        matches!(
            self,
            WarningCode::FileChanged
                | WarningCode::FileUnreadable
                | WarningCode::LinkOutside
                | WarningCode::WalNotInUse
        )
    }
}

impl Warning {
    pub fn new(code: WarningCode, message: impl Into<String>) -> Self {
        Warning {
            code,
            message: message.into(),
            path: None,
        }
    }

    pub fn about(code: WarningCode, path: impl fmt::Display, message: impl Into<String>) -> Self {
        Warning {
            code,
            message: message.into(),
            path: Some(path.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    fn layers(texts: &[&'static str]) -> Layer {
        let (text, inner) = texts.split_first().unwrap();
        let source = (!inner.is_empty()).then(|| Box::new(layers(inner)));
        Layer { text, source }
    }

    fn cause_of(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> String {
        let error = Error::invalid("It failed", "Try again").with_cause(cause);
        error.cause.unwrap()
    }

    #[test]
    fn a_remedy_is_prefixed_or_replaced() {
        let error = Error::damaged("It is damaged").with_nothing_changed();
        assert_eq!(
            error.remedy,
            "Nothing was changed; restore the newest good backup with \
             `kg diag restore --file latest`"
        );
        let other = error
            .clone()
            .with_remedy_for(Code::NoSpace, "Free some space");
        assert_eq!(other, error);
        let replaced = error.with_remedy_for(Code::DatabaseDamaged, "Salvage it");
        assert_eq!(replaced.remedy, "Salvage it");
    }

    #[test]
    fn a_cause_names_each_source_once() {
        for (texts, cause) in [
            (&["outer"][..], "outer"),
            (&["outer", "inner", "innermost"], "outer: inner: innermost"),
            (
                &["outer: inner", "inner", "innermost"],
                "outer: inner: innermost",
            ),
            (&["outer: inner", "inner"], "outer: inner"),
            (&["same", "same", "innermost"], "same: innermost"),
        ] {
            assert_eq!(cause_of(layers(texts)), cause);
        }
        assert_eq!(cause_of("a text"), "a text");
        assert_eq!(cause_of(io::Error::other(layers(&["a", "b"]))), "a: b");
    }

    #[test]
    fn an_error_that_a_reader_wrapped_keeps_its_code_and_cause() {
        let own = Error::invalid("The block is wrong", "Use another one").with_cause("bit 3");
        let once = io::Error::other(own.clone());
        let twice = io::Error::other(io::Error::other(own.clone()));
        for wrapped in [once, twice] {
            let expected = Error {
                message: "Could not read /a: The block is wrong".into(),
                ..own.clone()
            };
            assert_eq!(Error::io("read", Path::new("/a"), wrapped), expected);
        }
        let wrapped = io::Error::other(own);
        assert_eq!(cause_of(wrapped), "The block is wrong: bit 3");
    }
}
