//! Decides how a backup is made: its type, and what it reuses of earlier backups.

use super::incremental_base::{self, IncrementalBase};
use crate::{
    archive::manifest::BackupType,
    config::backup_config::BackupOptions,
    error::{Code, Error, Result, Warning, WarningCode},
    project::Project,
    store::Store,
    util::operation::OperationContext,
};

/// How one backup is made.
pub(super) struct BackupPlan {
    /// A full backup if an incremental one was asked for and is not possible.
    pub kind: BackupType,
    pub reuse: Reuse,
    /// Why the backup is not the one that was asked for.
    pub warnings: Vec<Warning>,
}

/// What a backup reuses of earlier ones.
pub(super) enum Reuse {
    None,
    /// Compressed blocks of the newest archive that has the same kind of content. The backup does
    /// not depend on that archive.
    Previous,
    /// Entries and pages of its base, on which it depends.
    Incremental(Box<IncrementalBase>),
}

impl BackupPlan {
    /// Plans the backup that `options` ask for.
    ///
    /// An incremental backup without a usable base becomes a full one, with a warning. If the
    /// caller named the base, it is an error instead: `KG_BASE_UNUSABLE`, `KG_KEY_NEEDED`,
    /// `KG_KEY_WRONG`.
    pub fn decide(
        project: &Project,
        store: &Store,
        options: &BackupOptions,
        context: &OperationContext,
    ) -> Result<BackupPlan> {
        let named_base = options.based_on.as_deref();
        if options.kind != BackupType::Incremental {
            return match named_base {
                None => Ok(BackupPlan {
                    kind: options.kind,
                    reuse: Reuse::Previous,
                    warnings: Vec::new(),
                }),
                Some(_) => Err(Error::invalid(
                    "`basedOn` requires the type `incremental`",
                    "Leave `basedOn` out, or set the type to `incremental`",
                )),
            };
        }
        let base = match incremental_base::choose(store, project, named_base, context) {
            Err(error) if named_base.is_none() && error.code.is_key_error() => {
                return Ok(BackupPlan::full_instead(&newest_unusable(&error)));
            }
            chosen => chosen?,
        };
        let Some(base) = base else {
            return Ok(BackupPlan::full_instead(
                "Made a full backup because this project has no good backup that can be the base",
            ));
        };
        let members = base.members();
        if named_base.is_none() && members >= options.max_chain_length as usize {
            return Ok(BackupPlan::full_instead(&format!(
                "Made a full backup because the chain of {members} backups that ends with {} is as \
                 long as `maxChainLength` allows",
                base.backup.id
            )));
        }
        Ok(BackupPlan {
            kind: BackupType::Incremental,
            reuse: Reuse::Incremental(Box::new(base)),
            warnings: Vec::new(),
        })
    }

    /// Returns the plan to follow after this one failed with `error`: the same without reuse.
    /// Returns `error` itself if that would not help, or if the caller named the base.
    pub fn fall_back(self, error: Error, options: &BackupOptions) -> Result<BackupPlan> {
        let (kind, warning) = match self.reuse {
            Reuse::Incremental(_)
                if options.based_on.is_none()
                    && (is_base_error(&error) || error.code.is_key_error()) =>
            {
                let message = newest_unusable(&error);
                (BackupType::Full, Warning::new(WarningCode::Full, message))
            }
            Reuse::Previous if is_base_error(&error) => {
                let message = format!(
                    "Reused nothing of the previous archive: {}. Run `kg diag verify` to \
                     see the damage",
                    error.message
                );
                (self.kind, Warning::new(WarningCode::Store, message))
            }
            _ => return Err(error),
        };
        let mut warnings = self.warnings;
        warnings.push(warning);
        Ok(BackupPlan {
            kind,
            reuse: Reuse::None,
            warnings,
        })
    }

    fn full_instead(message: &str) -> BackupPlan {
        BackupPlan {
            kind: BackupType::Full,
            reuse: Reuse::Previous,
            warnings: vec![Warning::new(WarningCode::Full, message)],
        }
    }
}

fn newest_unusable(error: &Error) -> String {
    format!(
        "Made a full backup because the newest backup cannot be used as a base: {}",
        error.message
    )
}

/// Returns whether the earlier backup caused the error, and not the project.
fn is_base_error(error: &Error) -> bool {
    matches!(
        error.code,
        Code::ChecksumMismatch | Code::BaseUnusable | Code::ChainBroken
    )
}
