//! The errors of archives that several modules return.

use crate::error::{Code, Error};

/// Describes an archive that is not what was written. `what` names the archive or the entry.
pub fn checksum_mismatch(what: impl std::fmt::Display) -> Error {
    Error::new(
        Code::ChecksumMismatch,
        format!("Checksum mismatch: {what}"),
        "Nothing was changed; see the damage with `kg diag verify` and use another backup \
         (`kg diag list`)",
    )
}

/// Describes a file that is not a valid archive of this tool.
pub fn not_a_backup(message: impl Into<String>) -> Error {
    Error::new(
        Code::NotABackup,
        message,
        "Use another backup: `kg diag list`",
    )
}

/// Describes a backup that does not exist, or no longer exists.
pub fn backup_not_found(message: impl Into<String>) -> Error {
    Error::new(
        Code::BackupNotFound,
        message,
        "See the backups with `kg diag list`",
    )
}
