//! The new database: settings, schema, and the objects that are created after the rows.
//!
//! Rows and objects are written in one transaction of a file that no other process uses. Tables
//! come first, so that SQLite reports their columns. Unique indexes come before the rows, so that a
//! row that violates them is found. Other indexes, views and triggers come after the rows.
//! Full-text indexes are filled last.

use std::path::{Path, PathBuf};

use rusqlite::{
    Connection, OpenFlags,
    config::DbConfig,
    hooks::{AuthAction, Authorization},
};

use super::{
    copy_trees::{self, Carried},
    file::{Encoding, Source},
    not_sound,
    report::ObjectReport,
    schema::Object,
};
use crate::{
    error::{Error, Result},
    sqlite::{check, format::header::Header, quoted},
    util::operation::CancelToken,
};

const INSTRUCTIONS_PER_CALLBACK: i32 = 10_000;

pub struct Target {
    pub connection: Connection,
    path: PathBuf,
    pub reports: Vec<ObjectReport>,
}

impl Target {
    pub fn create(
        path: &Path,
        page_size: usize,
        encoding: Encoding,
        header: &Header,
        cancel: &CancelToken,
    ) -> Result<Target> {
        let failed = |cause| Error::sqlite("create", path, cause);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        let encoding = match encoding {
            Encoding::Utf8 => "UTF-8",
            Encoding::Utf16Le => "UTF-16le",
            Encoding::Utf16Be => "UTF-16be",
        };
        let vacuum = match (
            header.is_sound && header.largest_root != 0,
            header.is_incremental,
        ) {
            (false, _) => "NONE",
            (true, false) => "FULL",
            (true, true) => "INCREMENTAL",
        };
        let stop = cancel.clone();
        let prepare = || -> rusqlite::Result<()> {
            connection
                .progress_handler(INSTRUCTIONS_PER_CALLBACK, Some(move || stop.is_cancelled()))?;
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false)?;
            connection.execute_batch(&format!(
                "PRAGMA page_size = {page_size}; PRAGMA encoding = '{encoding}'; PRAGMA auto_vacuum = {vacuum};
                 PRAGMA journal_mode = DELETE; PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF; BEGIN IMMEDIATE"
            ))
        };
        prepare().map_err(failed)?;
        Ok(Target {
            connection,
            path: path.to_path_buf(),
            reports: Vec::new(),
        })
    }

    pub fn error(&self, cause: rusqlite::Error) -> Error {
        Error::sqlite("write", &self.path, cause)
    }

    /// Makes SQLite create the table `sqlite_sequence`, which remains after the table that needed
    /// it is dropped.
    pub fn make_sequences(&self) -> Result<()> {
        let sql = "CREATE TABLE kg_sequences (id INTEGER PRIMARY KEY AUTOINCREMENT); DROP TABLE kg_sequences";
        self.in_savepoint(|connection| connection.execute_batch(sql))
            .map(|_| ())
    }

    /// Returns whether a table, index, view or trigger of that name exists.
    pub fn has(&self, kind: &str, name: &str) -> Result<bool> {
        let sql = "SELECT count(*) FROM sqlite_schema WHERE type = ?1 AND name = ?2 COLLATE NOCASE";
        self.connection
            .query_row(sql, [kind, name], |row| row.get(0))
            .map_err(|cause| self.error(cause))
    }

    /// Executes the text of an object. The text comes from the damaged file, so it may create that
    /// object and nothing else.
    pub fn create_object(&mut self, object: &Object) -> Result<bool> {
        let kind = if is_virtual(object) {
            "virtual table"
        } else {
            &object.kind
        };
        let failed = self.try_create(object)?;
        let is_made = failed.is_none();
        // Created tables have a report of their own.
        if !(is_made && kind == "table") {
            self.reports.push(ObjectReport {
                kind: kind.to_string(),
                name: object.name.clone(),
                failed,
            });
        }
        Ok(is_made)
    }

    /// Returns whether an object could not be created because this build of SQLite lacks something
    /// that its text uses.
    pub fn lacks_something_for(&self, object: &Object) -> bool {
        let of_object =
            |report: &&ObjectReport| report.name == object.name && report.kind == object.kind;
        let reason = self
            .reports
            .iter()
            .rev()
            .find(of_object)
            .and_then(|report| report.failed.as_deref());
        reason.is_some_and(check::is_missing)
    }

    fn try_create(&mut self, object: &Object) -> Result<Option<String>> {
        let words: Vec<String> = object
            .sql
            .split_whitespace()
            .take(3)
            .map(str::to_ascii_uppercase)
            .collect();
        let creates = words.first().is_some_and(|word| word == "CREATE")
            && words[1..]
                .iter()
                .any(|word| word.starts_with(&object.kind.to_ascii_uppercase()));
        if !creates {
            return Ok(Some("its SQL does not create it".to_string()));
        }
        if self.has(&object.kind, &object.name)? {
            return Ok(Some("another object has that name".to_string()));
        }
        // The definition of a table in a schema contains no query and no ATTACH, so both are
        // denied.
        if object.kind == "table" && !is_virtual(object) {
            let deny = |context: rusqlite::hooks::AuthContext<'_>| match context.action {
                AuthAction::Select | AuthAction::Attach { .. } => Authorization::Deny,
                _ => Authorization::Allow,
            };
            self.connection
                .authorizer(Some(deny))
                .map_err(|cause| self.error(cause))?;
        }
        let outcome =
            self.in_savepoint(|connection| connection.execute(&object.sql, []).map(|_| ()));
        type NoHook = fn(rusqlite::hooks::AuthContext<'_>) -> Authorization;
        self.connection
            .authorizer(None::<NoHook>)
            .map_err(|cause| self.error(cause))?;
        match outcome? {
            Some(reason) => Ok(Some(reason)),
            None if self.has(&object.kind, &object.name)? => Ok(None),
            None => Ok(Some("its SQL creates something else".to_string())),
        }
    }

    /// Runs an action in a savepoint, and returns why it failed. A failed action is rolled back. An
    /// error of the disk or the caller ([`is_fatal`]) is returned as an error.
    pub fn in_savepoint(
        &self,
        action: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<Option<String>> {
        let run = |sql: &str| {
            self.connection
                .execute_batch(sql)
                .map_err(|cause| self.error(cause))
        };
        run("SAVEPOINT attempt")?;
        match action(&self.connection) {
            Ok(()) => run("RELEASE attempt").map(|()| None),
            Err(cause) if is_fatal(&cause) => Err(self.error(cause)),
            Err(cause) => {
                run("ROLLBACK TO attempt; RELEASE attempt")?;
                Ok(Some(cause.to_string()))
            }
        }
    }

    /// Fills a full-text index from its content, and checks an FTS5 index against that content.
    pub fn rebuild_full_text(&mut self, object: &Object) -> Result<()> {
        let name = quoted(&object.name);
        let module = module_of(object);
        let failed = match module.as_str() {
            "fts5" => {
                let rebuilt = self.in_savepoint(|connection| {
                    connection.execute_batch(&format!(
                        "INSERT INTO {name}({name}) VALUES('rebuild');
                         INSERT INTO {name}({name}, rank) VALUES('integrity-check', 1)"
                    ))
                })?;
                rebuilt
                    .map(|reason| format!("it is empty because it could not be rebuilt: {reason}"))
            }
            "fts4" | "fts3" => {
                let rebuilt = self.in_savepoint(|connection| {
                    connection
                        .execute_batch(&format!("INSERT INTO {name}({name}) VALUES('rebuild')"))
                })?;
                rebuilt
                    .map(|reason| format!("it is empty because it could not be rebuilt: {reason}"))
            }
            // The content of other modules is in tables of their own, which were copied.
            _ => None,
        };
        if let Some(report) = self
            .reports
            .iter_mut()
            .find(|report| report.name == object.name && report.failed.is_none())
        {
            report.failed = failed;
        }
        Ok(())
    }

    /// Commits, appends the tables that are copied as pages, checks the result, fills the full-text
    /// indexes, and syncs the file.
    pub fn finish(
        self,
        source: &Source,
        carried: &Carried,
        cancel: &CancelToken,
    ) -> Result<Vec<ObjectReport>> {
        let header = &source.header;
        self.commit(header)?;
        self.assert_sound(&carried.full_text)?;
        let (path, mut reports) = self.close()?;
        let refused = copy_trees::append(&path, source, carried, cancel)?;
        reports.extend(carried.definitions.iter().map(|definition| {
            ObjectReport {
                kind: "virtual table".to_string(),
                name: definition.name.clone(),
                failed: refused
                    .iter()
                    .find(|(object, _)| object == definition)
                    .map(|(_, reason)| reason.clone()),
            }
        }));
        let mut complete = Target::reopen(path, reports)?;
        for object in &carried.full_text {
            complete.rebuild_full_text(object)?;
        }
        if header.is_sound && header.is_wal {
            complete
                .connection
                .query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
                .map_err(|cause| complete.error(cause))?;
        }
        let (path, reports) = complete.close()?;
        let synced = std::fs::File::open(&path)
            .and_then(|file| crate::util::unsupported::sync(&file, &path));
        synced.map_err(|cause| Error::io("sync", &path, cause))?;
        Ok(reports)
    }

    /// Commits the rows and objects, with the versions of the source.
    fn commit(&self, header: &Header) -> Result<()> {
        let commit = || -> rusqlite::Result<()> {
            if header.is_sound {
                self.connection
                    .pragma_update(None, "user_version", header.user_version)?;
                self.connection
                    .pragma_update(None, "application_id", header.application_id)?;
            }
            self.connection.execute_batch("COMMIT")
        };
        commit().map_err(|cause| self.error(cause))
    }

    /// Fails with `KG_INTERNAL` if SQLite finds damage. The full-text indexes are still empty, so
    /// findings about them do not count.
    fn assert_sound(&self, full_text: &[Object]) -> Result<()> {
        let findings = || -> rusqlite::Result<Vec<String>> {
            let mut statement = self.connection.prepare("PRAGMA integrity_check(10)")?;
            statement.query_map([], |row| row.get(0))?.collect()
        };
        let mut findings = findings().map_err(|cause| self.error(cause))?;
        let is_of_index = |line: &str| {
            full_text
                .iter()
                .any(|index| line.ends_with(&format!(".{}", index.name)))
        };
        findings.retain(|line| {
            line != "ok" && !(line.contains("inverted index for FTS") && is_of_index(line))
        });
        if findings.is_empty() {
            return Ok(());
        }
        Err(not_sound(&findings.join("; ")))
    }

    fn close(self) -> Result<(PathBuf, Vec<ObjectReport>)> {
        let Target {
            connection,
            path,
            reports,
        } = self;
        connection
            .close()
            .map_err(|(_, cause)| Error::sqlite("write", &path, cause))?;
        Ok((path, reports))
    }

    fn reopen(path: PathBuf, reports: Vec<ObjectReport>) -> Result<Target> {
        let failed = |cause| Error::sqlite("write", &path, cause);
        let connection = Connection::open(&path).map_err(failed)?;
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)
            .map_err(failed)?;
        Ok(Target {
            connection,
            path,
            reports,
        })
    }
}

/// Returns whether an error concerns the disk or the caller instead of the row or text at hand.
pub fn is_fatal(cause: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::*;
    matches!(
        cause.sqlite_error_code(),
        Some(
            DiskFull
                | OperationInterrupted
                | OutOfMemory
                | SystemIoFailure
                | CannotOpen
                | ReadOnly
                | DatabaseBusy
        )
    )
}

pub fn is_virtual(object: &Object) -> bool {
    object.kind == "table"
        && object
            .sql
            .split_whitespace()
            .nth(1)
            .is_some_and(|word| word.eq_ignore_ascii_case("VIRTUAL"))
}

/// Returns the module of a virtual table in lower case.
pub fn module_of(object: &Object) -> String {
    check::module_of(&object.sql)
}
