//! Checks the structure of a database with `PRAGMA integrity_check`. Each line of the result is
//! assigned to a page, an index or a table. What SQLite cannot check here is a separate issue and
//! not damage.

use std::collections::{BTreeMap, HashMap};

use rusqlite::Connection;

use super::{
    Check, Named,
    issue::{Examples, Issue, IssueCode},
};
use crate::{
    error::{Code, Error, Result},
    sqlite::check::{BrokenRows, Findings, NotChecked, Pragma, broken_rows, everything},
};

/// Number of findings after which `integrity_check` stops.
const MAX_FINDINGS: u32 = 1000;
pub const RESTORE: &str = "Restore the newest good backup with `kg diag restore --file latest`, or \
                           salvage what can be read with `kg diag repair`";

/// Tables and indexes by root page, and the table of each index.
#[derive(Default)]
struct Trees {
    tables: HashMap<u64, String>,
    indexes: HashMap<u64, String>,
    table_of: HashMap<String, String>,
}

/// The subject of one line of `integrity_check`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Finding {
    code: Option<IssueCode>,
    table: Option<String>,
    index: Option<String>,
    page: Option<u64>,
    rowid: Option<i64>,
}

/// Returns the issue of a file that SQLite could not open.
pub fn refused_to_open(named: &Named, error: &Error) -> Issue {
    let is_none = error
        .cause
        .as_deref()
        .is_some_and(|cause| cause.contains("not a database"));
    let code = if is_none || error.code != Code::DatabaseDamaged {
        IssueCode::NotADatabase
    } else {
        IssueCode::DatabaseDamaged
    };
    named.issue(code, error.message.clone(), RESTORE)
}

/// Runs the check. Damage is part of the result and not an error.
pub fn integrity_check(
    connection: &mut Connection,
    named: &Named,
    check: &Check,
) -> Result<Vec<Issue>> {
    let found = everything(
        connection,
        Pragma::Full {
            most_findings: MAX_FINDINGS,
        },
        check.cancel,
    )?;
    Ok(issues_of(connection, named, &found))
}

/// Converts the findings of a check to issues.
pub fn issues_of(connection: &Connection, named: &Named, found: &Findings) -> Vec<Issue> {
    let trees = trees(connection).unwrap_or_default();
    let lines = found
        .damage
        .iter()
        .chain(&found.rows)
        .flat_map(|lines| lines.lines());
    let mut issues = issues(named, &trees, lines);
    issues.extend(not_checked(named, found));
    issues
}

fn not_checked(named: &Named, found: &Findings) -> Vec<Issue> {
    let issue = |NotChecked {
                     table,
                     what,
                     reason,
                 }: &NotChecked| {
        let message = format!("{} was not fully checked ({what}): {reason}", named.path);
        let remedy =
            "Check it in the host, which provides what it needs; every page of it is accounted for";
        let issue = named.issue(IssueCode::NotChecked, message, remedy);
        if table.is_empty() {
            issue
        } else {
            issue.table(table)
        }
    };
    found.not_checked.iter().map(issue).collect()
}

fn issues<'a>(named: &Named, trees: &Trees, lines: impl Iterator<Item = &'a str>) -> Vec<Issue> {
    let mut grouped: BTreeMap<_, (Finding, Examples)> = BTreeMap::new();
    for line in lines.filter(|line| *line != "ok" && !line.is_empty() && !line.starts_with("***")) {
        let finding = classify(line, trees);
        let key = (finding.code, finding.table.clone(), finding.index.clone());
        let (first, found) = grouped
            .entry(key)
            .or_insert_with(|| (finding, Examples::default()));
        found.rowid = first.rowid;
        found.add(line);
    }
    grouped
        .into_values()
        .map(|(finding, found)| describe(named, finding, found))
        .collect()
}

fn describe(named: &Named, finding: Finding, found: Examples) -> Issue {
    let code = finding.code.unwrap_or(IssueCode::DatabaseDamaged);
    let path = &named.path;
    let of_table = finding
        .table
        .as_ref()
        .map_or(String::new(), |table| format!(" of the table {table}"));
    let (message, remedy) = match code {
        IssueCode::IndexDamaged => {
            let index = finding.index.as_deref().unwrap_or_default();
            (
                format!("The index {index}{of_table} in {path} does not agree with its table"),
                "Run `kg diag repair`",
            )
        }
        IssueCode::Constraint => {
            let message = format!("Rows{of_table} in {path} violate the constraints of the table");
            (
                message,
                "Correct the listed rows, or restore the newest good backup",
            )
        }
        IssueCode::FullTextDamaged => {
            let table = finding.table.as_deref().unwrap_or_default();
            (
                format!("The full-text index {table} in {path} is damaged"),
                "Run `kg diag repair`",
            )
        }
        IssueCode::NotADatabase => (format!("{path} is not a database"), RESTORE),
        _ => (format!("{path} has damaged pages{of_table}"), RESTORE),
    };
    let issue = named.issue(code, message, remedy).found(found);
    Issue {
        table: finding.table,
        index: finding.index,
        page: finding.page,
        ..issue
    }
}

fn trees(connection: &Connection) -> rusqlite::Result<Trees> {
    let mut trees = Trees::default();
    let mut statement = connection
        .prepare("SELECT type, name, tbl_name, rootpage FROM sqlite_schema WHERE rootpage > 0")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (kind, name, table, root): (String, String, String, u64) =
            (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        if kind == "index" {
            trees.indexes.insert(root, name.clone());
            trees.table_of.insert(name, table);
        } else {
            trees.tables.insert(root, name);
        }
    }
    Ok(trees)
}

impl Trees {
    /// Returns the finding for an index and its table.
    fn of_index(&self, name: &str, rowid: Option<i64>) -> Finding {
        Finding {
            code: Some(IssueCode::IndexDamaged),
            table: self.table_of.get(name).cloned(),
            index: Some(name.to_string()),
            rowid,
            page: None,
        }
    }
}

/// Determines the subject of a line, in the wording of SQLite 3.45 and later.
fn classify(line: &str, trees: &Trees) -> Finding {
    if line.ends_with("file is not a database") {
        return Finding {
            code: Some(IssueCode::NotADatabase),
            ..Finding::default()
        };
    }
    damaged_tree(line, trees)
        .or_else(|| wrong_index(line, trees))
        .or_else(|| damaged_full_text(line))
        .or_else(|| broken_constraint(line, trees))
        .unwrap_or_else(|| damaged_pages(line, trees))
}

/// Returns the finding for a damaged page of one tree.
fn damaged_tree(line: &str, trees: &Trees) -> Option<Finding> {
    let tree = number_after(line, "Tree ").filter(|_| !line.contains("2nd reference"))?;
    let finding = match trees.indexes.get(&tree) {
        Some(name) => trees.of_index(name, None),
        None => Finding {
            code: Some(IssueCode::DatabaseDamaged),
            table: trees.tables.get(&tree).cloned(),
            ..Finding::default()
        },
    };
    Some(Finding {
        page: number_after(line, " page "),
        ..finding
    })
}

/// Returns the finding for an index that does not agree with its table.
fn wrong_index(line: &str, trees: &Trees) -> Option<Finding> {
    if let Some(name) = after(line, " missing from index ")
        .or_else(|| after(line, "wrong # of entries in index "))
        .or_else(|| after(line, " values differ from index "))
    {
        let row = line
            .strip_prefix("row ")
            .and_then(|rest| rest.split(' ').next());
        return Some(trees.of_index(name, row.and_then(|row| row.parse().ok())));
    }
    let rest = line.strip_prefix("rowid not at end-of-record for row ")?;
    let (rowid, name) = rest.split_once(" of index ").unwrap_or((rest, ""));
    Some(trees.of_index(name, rowid.parse().ok()))
}

fn damaged_full_text(line: &str) -> Option<Finding> {
    let table = after(line, " for FTS5 table ")?;
    let table = table.split(':').next().unwrap_or(table);
    let table = table.split_once('.').map_or(table, |(_, table)| table);
    Some(Finding {
        code: Some(IssueCode::FullTextDamaged),
        table: Some(table.to_string()),
        ..Finding::default()
    })
}

fn broken_constraint(line: &str, trees: &Trees) -> Option<Finding> {
    let finding = match broken_rows(line)? {
        BrokenRows::Index(name) => trees.of_index(name, None),
        BrokenRows::Table(name) => Finding {
            table: Some(name.to_string()),
            ..Finding::default()
        },
    };
    Some(Finding {
        code: Some(IssueCode::Constraint),
        ..finding
    })
}

/// Returns the finding for all other lines. A page with two owners damages the whole database:
/// rebuilding one owner would free a page of the other.
fn damaged_pages(line: &str, trees: &Trees) -> Finding {
    let table = number_after(line, "Tree ").and_then(|tree| trees.tables.get(&tree).cloned());
    let page = number_after(line, " page ")
        .filter(|_| line.starts_with("Tree "))
        .or(number_after(line, "Page "));
    Finding {
        code: Some(IssueCode::DatabaseDamaged),
        table,
        page,
        ..Finding::default()
    }
}

fn after<'a>(line: &'a str, text: &str) -> Option<&'a str> {
    line.split_once(text).map(|(_, rest)| rest)
}

fn number_after(line: &str, text: &str) -> Option<u64> {
    let rest = after(line, text)?;
    rest.split(|character: char| !character.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_sqlite_leads_to_a_page_an_index_or_a_table() {
        let trees = Trees {
            tables: HashMap::from([(2, "nodes".into())]),
            indexes: HashMap::from([(3, "by_path".into())]),
            table_of: HashMap::from([("by_path".into(), "nodes".into())]),
        };
        let told = |line: &str| {
            let found = classify(line, &trees);
            let name = |name: Option<String>| name.unwrap_or_default();
            (
                found.code.unwrap().as_str(),
                name(found.table),
                name(found.index),
                found.page,
                found.rowid,
            )
        };
        let expect = |line: &str,
                      code: &'static str,
                      table: &str,
                      index: &str,
                      page: Option<u64>,
                      rowid: Option<i64>| {
            assert_eq!(
                told(line),
                (code, table.into(), index.into(), page, rowid),
                "{line}"
            );
        };
        let (damaged, index) = ("KG_ISSUE_DATABASE_DAMAGED", "KG_ISSUE_INDEX_DAMAGED");
        expect(
            "Tree 2 page 7 cell 3: 2nd reference to page 9",
            damaged,
            "nodes",
            "",
            Some(7),
            None,
        );
        expect(
            "Tree 3 page 8: btreeInitPage() returns error code 11",
            index,
            "nodes",
            "by_path",
            Some(8),
            None,
        );
        expect("Page 12: never used", damaged, "", "", Some(12), None);
        expect(
            "Freelist: size is 3 but should be 5",
            damaged,
            "",
            "",
            None,
            None,
        );
        expect(
            "row 5 missing from index by_path",
            index,
            "nodes",
            "by_path",
            None,
            Some(5),
        );
        expect(
            "wrong # of entries in index by_path",
            index,
            "nodes",
            "by_path",
            None,
            None,
        );
        expect(
            "row 6 values differ from index by_path",
            index,
            "nodes",
            "by_path",
            None,
            Some(6),
        );
        expect(
            "rowid not at end-of-record for row 4 of index by_path",
            index,
            "nodes",
            "by_path",
            None,
            Some(4),
        );
        expect(
            "non-unique entry in index by_path",
            "KG_ISSUE_CONSTRAINT",
            "nodes",
            "by_path",
            None,
            None,
        );
        expect(
            "NULL value in edges.source_id",
            "KG_ISSUE_CONSTRAINT",
            "edges",
            "",
            None,
            None,
        );
        expect(
            "CHECK constraint failed in nodes",
            "KG_ISSUE_CONSTRAINT",
            "nodes",
            "",
            None,
            None,
        );
        let fts = "KG_ISSUE_FTS_DAMAGED";
        expect(
            "malformed inverted index for FTS5 table main.nodes_fts",
            fts,
            "nodes_fts",
            "",
            None,
            None,
        );
        expect(
            "something that no release has said yet",
            damaged,
            "",
            "",
            None,
            None,
        );
    }
}
