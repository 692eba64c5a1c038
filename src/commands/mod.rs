//! What a user asks for. Both faces call these functions, and only these.
//!
//! | module | command |
//! | --- | --- |
//! | [`backup`], [`incremental_base`] | back up; what an incremental backup may leave out |
//! | [`restore`], [`undo`] | restore; undo a restore |
//! | [`verify`], [`drill`] | check an archive; rehearse a recovery |
//! | [`verify`] | check and repair a project |
//! | [`manage`], [`consolidate`] | delete, pin and unpin backups; make a full backup of a chain |
//! | [`prune`] | remove old backups |
//! | [`scheduled`] | what the settings of a project say of its backups |
//! | [`credentials`] | where the keys of encrypted backups come from |

pub mod backup;
pub mod check;
pub mod consolidate;
pub mod credentials;
pub mod drill;
pub mod manage;
pub mod own_backups;
pub mod prune;
pub mod restore;
pub mod scheduled;
pub mod undo;
pub mod verify;
