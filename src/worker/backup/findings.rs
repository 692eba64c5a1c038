//! Notes what a backup counts and finds, for its manifest.

use rusqlite::Connection;

use super::{Counts, Saving};
use crate::{
    error::{Result, Warning, WarningCode, first_and_more},
    integrity::rows,
    project::discover::Source,
    sqlite::check::{Depth, Findings, Integrity, IntegrityStatus, read_schema},
};

impl Saving<'_> {
    /// Counts the rows and tables of the graph database. What cannot be read counts as 0.
    pub(super) fn count(&mut self, connection: &Connection) -> Result<()> {
        read_schema(connection, self.cancel)?;
        let page_count = connection.query_row("PRAGMA page_count", [], |row| row.get::<_, u64>(0));
        self.counts = Counts {
            nodes: rows::count(connection, "nodes").unwrap_or(0),
            edges: rows::count(connection, "edges").unwrap_or(0),
            tables: rows::table_count(connection).ok(),
            has_no_page: page_count.is_ok_and(|count| count == 0),
        };
        Ok(())
    }

    /// Adds the findings of one database.
    pub(super) fn found(&mut self, path: &str, found: Findings, depth: Depth) {
        if let Some(rows) = first_and_more(&found.rows) {
            let message = format!(
                "Rows of {path} violate constraints of their table ({rows}). The backup contains \
                 them as they are; `kg diag integrity` lists them"
            );
            self.warnings
                .push(Warning::about(WarningCode::Constraint, path, message));
        }
        let found = Integrity::of(found, depth);
        let Integrity {
            messages,
            not_checked,
            full_text,
            ..
        } = found;
        let integrity = &mut self.integrity;
        integrity.full_text &= full_text;
        if let Some(left) = first_and_more(&not_checked) {
            let message =
                format!("{path} was checked only in part: {left}. The backup contains all of it");
            self.warnings
                .push(Warning::about(WarningCode::NotChecked, path, message));
            if integrity.status == IntegrityStatus::Ok {
                integrity.status = IntegrityStatus::Partial;
            }
            integrity.not_checked.extend(
                not_checked
                    .into_iter()
                    .map(|what| format!("{path}: {what}")),
            );
        }
        if !messages.is_empty() {
            self.damaged(path, messages);
        }
    }

    fn damaged(&mut self, path: &str, messages: Vec<String>) {
        let first = messages.first().map_or("", String::as_str);
        let message = format!("{path} is damaged ({first}). The backup contains it as it is");
        self.warnings
            .push(Warning::about(WarningCode::SourceDamaged, path, message));
        self.integrity.status = IntegrityStatus::Failed;
        self.integrity.messages.extend(
            messages
                .into_iter()
                .map(|message| format!("{path}: {message}")),
        );
    }

    pub(super) fn super_journal(&mut self, source: &Source) {
        let message = format!(
            "{} was left out: it belongs to a transaction over several databases",
            source.path
        );
        self.warnings.push(Warning::about(
            WarningCode::FileUnreadable,
            &source.path,
            message,
        ));
    }

    pub(super) fn ignored_wal(&mut self, source: &Source) {
        let path = &source.path;
        let message = format!(
            "SQLite ignores {path}-wal because its header is not valid. Commits in that file are not \
             in the backup"
        );
        self.warnings
            .push(Warning::about(WarningCode::WalNotInUse, path, message));
    }

    pub(super) fn changed(&mut self, source: &Source) {
        let message = format!(
            "{} changed while it was read. The backup may contain half of the change",
            source.path
        );
        self.warnings.push(Warning::about(
            WarningCode::FileChanged,
            &source.path,
            message,
        ));
    }
}
