//! What a user asks for. Both faces call these functions, and only these.
//!
//! | module | command |
//! | --- | --- |
//! | [`backup`], [`base`] | back up; what an incremental backup may leave out |
//! | [`restore`], [`undo`] | restore; undo a restore |
//! | [`verify`], [`rehearse`] | check an archive; rehearse a recovery |
//! | [`inspect`] | check and repair a project |
//! | [`manage`], [`consolidate`] | delete, pin and unpin backups; make a full backup of a chain |
//! | [`prune`] | remove old backups |
//! | [`automatic`] | what the settings of a project say of its backups |
//! | [`keys`] | where the keys of encrypted backups come from |

pub mod automatic;
pub mod backup;
pub mod base;
pub mod consolidate;
pub mod inspect;
pub mod keys;
pub mod manage;
pub mod prune;
pub mod rehearse;
pub mod restore;
pub mod undo;
pub mod verify;
