//! The problems of a store.

use std::time::Duration;

use jiff::Timestamp;

use super::{Backups, DEFAULT_MAX_AGE, age_ms, next_size, own_of, room};
use crate::{
    commands::backup::page_cache,
    error::{Code, WarningCode},
    integrity::{
        Checked,
        issue::{Examples, Issue, IssueCode, Part, Severity},
    },
    store::{
        Backup, Flaw, Listing, Store, Unlisted, broken_chains, known_stores, newest_good,
        passed_over, passed_over_warning,
    },
    util::age::age,
};

/// Describes the store of a project, and adds its problems to `issues`.
pub(super) fn of_store(
    store: &Store,
    checked: &Checked,
    max_age: Option<Duration>,
    issues: &mut Vec<Issue>,
) -> Backups {
    let look = StoreLook { store };
    let read = store.read();
    let is_read = read.is_ok();
    let listing = read.unwrap_or_else(|error| {
        let remedy = match store.directory() {
            Some(_) => "Give this user access to it, or name another directory",
            None => &error.remedy,
        };
        issues.push(look.issue(IssueCode::BackupDir, error.message, remedy));
        Listing::default()
    });
    let unread = if is_read { listing.unread().count() } else { 1 };
    let Listing { backups, unlisted } = listing;
    let backups = own_of(store, backups);
    let newest = newest_good(&backups);
    let age_ms = newest.map(|newest| age_ms(newest.timestamp));

    if is_read {
        issues.extend(look.emptied(&backups));
    }
    issues.extend(look.freshness(newest, age_ms, unread, max_age));
    issues.extend(newest.and_then(|newest| look.incomplete(newest)));
    issues.extend(look.broken_chains(&backups, unread));
    issues.extend(newest.and_then(|newest| look.passed_over(newest, &backups, &unlisted)));
    issues.extend(unlisted.iter().map(|left| look.unlisted(left)));
    issues.extend(
        store
            .refusal_to_lock()
            .map(|error| look.issue(IssueCode::BackupDir, error.message, &error.remedy)),
    );
    issues.extend(look.refused());
    let next_bytes = next_size(&backups, checked.database_size);
    let directory = store.directory();
    let free_bytes = directory.and_then(|dir| room(dir, next_bytes, issues));
    Backups {
        backup_dir: store.dir().to_path_buf(),
        count: backups.len(),
        unread,
        newest_good: newest.map(|newest| newest.id.clone()),
        age_ms,
        free_bytes,
        next_bytes,
    }
}

const MAKE_A_BACKUP: &str = "Make one with `kg diag backup`";
const GIVE_ACCESS: &str =
    "Give this user access to the files that the other issues name, then run this again";

/// The problems of one store.
struct StoreLook<'a> {
    store: &'a Store,
}

impl StoreLook<'_> {
    fn issue(&self, code: IssueCode, message: String, remedy: &str) -> Issue {
        Issue::new(code, Part::Backups, message, remedy).path(self.store.dir().to_string_lossy())
    }

    /// Backups that the store had before are gone, or whether it had some is unknown.
    fn emptied(&self, backups: &[Backup]) -> Option<Issue> {
        let warning = known_stores::emptied(self.store.home()?, self.store, backups)?;
        Some(match warning.code {
            WarningCode::StoreEmptied => {
                let remedy = "Mount it, then run this again; if the backups were removed on \
                              purpose, make one with `kg diag backup`";
                self.issue(IssueCode::StoreEmptied, warning.message, remedy)
            }
            _ => {
                let remedy = "Give this user the right to read that file";
                self.issue(IssueCode::FileUnreadable, warning.message, remedy)
                    .severity(Severity::Warning)
            }
        })
    }

    /// There is no good backup, or it is too old. `unread` is how much of the store could not be
    /// read.
    fn freshness(
        &self,
        newest: Option<&Backup>,
        age_ms: Option<u64>,
        unread: usize,
        max_age: Option<Duration>,
    ) -> Option<Issue> {
        let dir = self.store.dir().display();
        let max_age_ms = max_age.unwrap_or(DEFAULT_MAX_AGE).as_millis() as u64;
        let issue = match age_ms {
            None if unread > 0 => {
                let message = format!("Could not determine whether {dir} contains a good backup");
                self.issue(IssueCode::BackupNone, message, GIVE_ACCESS)
            }
            None => {
                let message = format!("There is no good backup in {dir}");
                self.issue(IssueCode::BackupNone, message, MAKE_A_BACKUP)
            }
            Some(past) if past > max_age_ms => {
                let message = format!(
                    "The newest good backup is {} old; the limit is {}",
                    age(past),
                    age(max_age_ms)
                );
                self.issue(IssueCode::BackupOld, message, MAKE_A_BACKUP)
            }
            Some(_) if newest.is_some_and(|newest| newest.is_ahead(Timestamp::now())) => {
                let message = format!(
                    "Every good backup in {dir} is dated in the future: the clock was wrong then, \
                     or it is wrong now"
                );
                let remedy = "Set the clock, and make one with `kg diag backup`";
                self.issue(IssueCode::BackupOld, message, remedy)
            }
            Some(_) => return None,
        };
        Some(issue.severity(if max_age.is_some() {
            Severity::Error
        } else {
            Severity::Warning
        }))
    }

    fn incomplete(&self, newest: &Backup) -> Option<Issue> {
        if !newest.incomplete {
            return None;
        }
        let message = format!(
            "The newest good backup, {}, is incomplete: {}",
            newest.id,
            newest.lacks()
        );
        let remedy = "Give this user access to the files that the message names, or exclude them \
                      with `excludePatterns` (`backup.excludePatterns` for scheduled backups)";
        Some(self.issue(IssueCode::BackupIncomplete, message, remedy))
    }

    fn broken_chains(&self, backups: &[Backup], unread: usize) -> Option<Issue> {
        let broken = broken_chains(backups);
        if broken.is_empty() {
            return None;
        }
        let mut found = Examples::default();
        broken.values().for_each(|why| found.add(why));
        let message = format!(
            "{} incremental backups in {} cannot be restored",
            found.count,
            self.store.dir().display()
        );
        let remedy = if unread == 0 {
            "Put back the archives that they depend on, or make a full backup and delete these \
             backups"
        } else {
            GIVE_ACCESS
        };
        Some(
            self.issue(IssueCode::BackupChain, message, remedy)
                .found(found),
        )
    }

    /// Newer backups that `latest` does not mean, because something is wrong with them.
    fn passed_over(
        &self,
        newest: &Backup,
        backups: &[Backup],
        unlisted: &[Unlisted],
    ) -> Option<Issue> {
        let passed = passed_over(backups, unlisted, newest);
        let warning = passed_over_warning(&passed, newest)?;
        let remedy = "Put back the missing files, or make a backup now with `kg diag backup`";
        Some(self.issue(IssueCode::BackupPassedOver, warning.message, remedy))
    }

    fn unlisted(&self, left: &Unlisted) -> Issue {
        let message = format!("{} is not listed: {}", left.archive, left.why());
        let remedy = match &left.flaw {
            Flaw::NoArchive => "Put the archive back; the next backup removes the manifest",
            Flaw::Unread(error) => &error.remedy,
            _ => {
                "Verify it with `kg diag verify FILE`; the next backup lists it if it is \
                 intact"
            }
        };
        let severity = match left.flaw {
            Flaw::Misfit | Flaw::Unread(_) => Severity::Error,
            _ => Severity::Warning,
        };
        self.issue(IssueCode::BackupUnlisted, message, remedy)
            .severity(severity)
            .path(left.archive.to_string())
    }

    /// Returns an issue if the store refuses a backup that does not specify encryption, so that the
    /// user learns it before the first refusal. Each call may still specify encryption.
    fn refused(&self) -> Option<Issue> {
        let error = self
            .store
            .check_encryption_policy(page_cache::is_of_encrypted(self.store.home()?))
            .err()
            .filter(|error| error.code == Code::KeyInvalid)?;
        let message = format!(
            "A backup without an encryption option is refused: {}",
            error.message
        );
        Some(self.issue(IssueCode::BackupRefused, message, &error.remedy))
    }
}
