//! The commands. The command line (`cli`) and the addon (`node`) both call these functions.
//!
//! | module | content |
//! | --- | --- |
//! | [`backup`] | make a backup |
//! | [`restore`] | restore a project, or a part of it, from a backup |
//! | [`undo`] | undo a restore |
//! | [`verify`] | check every byte of an archive |
//! | [`drill`] | restore into a temporary directory and check the result |
//! | [`check`] | check and repair a project |
//! | [`manage`] | delete, pin and unpin backups |
//! | [`consolidate`] | write a full backup from a chain |
//! | [`copy`] | copy backups to a second store |
//! | [`prune`] | remove backups that retention does not keep |
//! | [`store_check`] | try what backups and retention do to a store |
//! | [`configured`] | the store, the options and the schedule that the settings define |
//! | [`credentials`] | the sources of the keys of encrypted backups |
//! | [`own_backups`] | the backups of one project in a shared store |

pub mod backup;
pub mod check;
pub mod configured;
pub mod consolidate;
pub mod copy;
pub mod credentials;
pub mod drill;
pub mod manage;
pub mod own_backups;
pub mod prune;
pub mod restore;
pub mod store_check;
pub mod undo;
pub mod verify;
