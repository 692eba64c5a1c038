//! What checks find: a stable code, how bad it is, what it is about, and what can be done.

use serde::{Deserialize, Serialize};

use crate::error::Code;

/// An issue names this many of what it counts.
pub const MAX_EXAMPLES: usize = 10;

macro_rules! issue_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, $severity:ident;)+) => {
        /// `docs/reference/errors.md` explains each one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum IssueCode { $($(#[doc = $doc])+ #[serde(rename = $text)] $name,)+ }

        impl IssueCode {
            pub const ALL: &[IssueCode] = &[$(IssueCode::$name),+];

            pub fn as_str(self) -> &'static str {
                match self { $(IssueCode::$name => $text),+ }
            }

            /// How bad it is, unless the check knows better.
            fn severity(self) -> Severity {
                match self { $(IssueCode::$name => Severity::$severity),+ }
            }
        }
    };
}

issue_codes! {
    /// There is no database where the configuration has it.
    DatabaseMissing = "KG_ISSUE_DATABASE_MISSING", Error;
    /// Whether there is a database cannot be told: its directory cannot be entered, or the disk fails.
    DatabaseUnreadable = "KG_ISSUE_DATABASE_UNREADABLE", Error;
    /// The graph database has no table: it has 0 bytes, or everything in it was dropped.
    DatabaseEmpty = "KG_ISSUE_DATABASE_EMPTY", Error;
    /// SQLite says that the file is no database, or it cannot be opened.
    NotADatabase = "KG_ISSUE_NOT_A_DATABASE", Error;
    /// Pages that are not what a database is made of.
    DatabaseDamaged = "KG_ISSUE_DATABASE_DAMAGED", Error;
    /// An index that does not agree with its table.
    IndexDamaged = "KG_ISSUE_INDEX_DAMAGED", Error;
    /// A full-text index that does not agree with its table, or with itself.
    FullTextDamaged = "KG_ISSUE_FTS_DAMAGED", Error;
    /// Rows that break what their table declares.
    Constraint = "KG_ISSUE_CONSTRAINT", Error;
    /// Rows whose declared parent is missing.
    ForeignKey = "KG_ISSUE_FOREIGN_KEY", Error;
    /// Edges whose source is no node.
    EdgeSource = "KG_ISSUE_EDGE_SOURCE", Error;
    /// Edges whose target is no node.
    EdgeTarget = "KG_ISSUE_EDGE_TARGET", Warning;
    /// Rows of `node_tags` without their node or tag.
    TagOrphan = "KG_ISSUE_TAG_ORPHAN", Warning;
    /// `frontmatter` that is not JSON.
    Frontmatter = "KG_ISSUE_FRONTMATTER", Warning;
    /// Several nodes of one path.
    DuplicatePath = "KG_ISSUE_DUPLICATE_PATH", Warning;
    /// A documented table that is not there.
    TableMissing = "KG_ISSUE_TABLE_MISSING", Error;
    /// Nothing keeps the full-text index up to date.
    TriggerMissing = "KG_ISSUE_TRIGGER_MISSING", Warning;
    /// A WAL that SQLite cannot use: what was committed to it is lost.
    WalUnreadable = "KG_ISSUE_WAL_UNREADABLE", Error;
    /// A WAL that does not belong to the database beside it.
    WalForeign = "KG_ISSUE_WAL_FOREIGN", Error;
    /// A process commits to another WAL than the one next to the database.
    WalNotInUse = "KG_ISSUE_WAL_NOT_IN_USE", Error;
    /// The configured database lies outside the project, perhaps in another one.
    DatabaseOutside = "KG_ISSUE_DATABASE_OUTSIDE", Error;
    /// The database lies where file locks may not work.
    NetworkFileSystem = "KG_ISSUE_NETWORK_FILE_SYSTEM", Warning;
    /// It was written by a SQLite that can corrupt a database in WAL mode.
    SqliteOld = "KG_ISSUE_SQLITE_OLD", Warning;
    /// The database has several names, and processes that use different ones do not see each other's WAL.
    DatabaseLinked = "KG_ISSUE_DATABASE_LINKED", Warning;
    /// Something that could not be checked.
    NotChecked = "KG_ISSUE_NOT_CHECKED", Info;
    /// A restore was interrupted: the project is half of what it was and half of a backup.
    RestorePending = "KG_ISSUE_RESTORE_PENDING", Error;
    /// A configuration file that is not JSON.
    ConfigInvalid = "KG_ISSUE_CONFIG_INVALID", Error;
    /// A setting of the wrong type, or out of range.
    ConfigValue = "KG_ISSUE_CONFIG_VALUE", Warning;
    /// Nodes whose document is gone.
    DocumentMissing = "KG_ISSUE_DOCUMENT_MISSING", Warning;
    /// Documents beside those of nodes that have no node.
    DocumentUnindexed = "KG_ISSUE_DOCUMENT_UNINDEXED", Info;
    /// Files that cannot be read, or links that lead nowhere.
    FileUnreadable = "KG_ISSUE_FILE_UNREADABLE", Warning;
    /// Everyone may write what only the host should.
    Permissions = "KG_ISSUE_PERMISSIONS", Warning;
    /// Others may read what looks like a key.
    KeyExposed = "KG_ISSUE_KEY_EXPOSED", Warning;
    /// Vectors that are not as long as their dimensions say.
    VectorLength = "KG_ISSUE_VECTOR_LENGTH", Error;
    /// Vectors of different dimensions in one store.
    VectorDimensions = "KG_ISSUE_VECTOR_DIMENSIONS", Error;
    /// Vectors with something that is no finite number.
    VectorNotFinite = "KG_ISSUE_VECTOR_NOT_FINITE", Error;
    /// Vectors of zeros alone, which have no direction.
    VectorZero = "KG_ISSUE_VECTOR_ZERO", Warning;
    /// Vectors of nodes that do not exist.
    VectorOrphan = "KG_ISSUE_VECTOR_ORPHAN", Warning;
    /// Nodes that have no vector.
    VectorMissing = "KG_ISSUE_VECTOR_MISSING", Info;
    /// A file of vectors that is shorter or longer than its index says.
    VectorFile = "KG_ISSUE_VECTOR_FILE", Error;
    /// An index of vectors that cannot be used.
    VectorIndex = "KG_ISSUE_VECTOR_INDEX", Error;
    /// There is no good backup.
    BackupNone = "KG_ISSUE_BACKUP_NONE", Warning;
    /// The newest good backup is too old.
    BackupOld = "KG_ISSUE_BACKUP_OLD", Warning;
    /// A backup rests on one that is not there, or is another one.
    BackupChain = "KG_ISSUE_BACKUP_CHAIN", Error;
    /// An archive that is not listed: it is not whole, or its manifest is gone.
    BackupUnlisted = "KG_ISSUE_BACKUP_UNLISTED", Error;
    /// The directory of the backups cannot be used.
    BackupDir = "KG_ISSUE_BACKUP_DIR", Error;
    /// The store held backups of this project at the last run, and holds none now.
    StoreEmptied = "KG_ISSUE_STORE_EMPTIED", Error;
    /// `latest` passes over newer backups, or what is left of them.
    BackupPassedOver = "KG_ISSUE_BACKUP_PASSED_OVER", Warning;
    /// The newest good backup does not hold all of the project.
    BackupIncomplete = "KG_ISSUE_BACKUP_INCOMPLETE", Warning;
    /// The last run that was to make a backup failed.
    BackupFailed = "KG_ISSUE_BACKUP_FAILED", Warning;
    /// Backups are to be made on a schedule, and nothing makes them.
    ServiceStopped = "KG_ISSUE_SERVICE_STOPPED", Warning;
    /// A backup of which nothing says how to encrypt it is refused.
    BackupRefused = "KG_ISSUE_BACKUP_REFUSED", Warning;
    /// Whether a service runs cannot be told.
    ServiceUnknown = "KG_ISSUE_SERVICE_UNKNOWN", Warning;
    /// A service runs, and no backups are to be made on a schedule.
    ServiceIdle = "KG_ISSUE_SERVICE_IDLE", Warning;
    /// The disk has too little space for the next backup.
    DiskSpace = "KG_ISSUE_DISK_SPACE", Warning;
}

impl IssueCode {
    /// Of an issue of backups: the error that it leads to.
    pub fn of_backups(self) -> Code {
        match self {
            IssueCode::BackupChain => Code::ChainBroken,
            IssueCode::BackupUnlisted => Code::ChecksumMismatch,
            IssueCode::BackupNone | IssueCode::BackupOld | IssueCode::StoreEmptied => {
                Code::NoBackups
            }
            _ => Code::NoSpace,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something is wrong: what is there is not healthy.
    Error,
    /// Something that a person should see to.
    Warning,
    /// Good to know.
    Info,
}

/// What an issue is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    Database,
    Files,
    Vectors,
    Backups,
}

/// One kind of thing that is wrong in one place, however often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Issue {
    pub code: IssueCode,
    pub severity: Severity,
    pub component: Part,
    /// A sentence, without its full stop.
    pub message: String,
    /// What to do, without a full stop.
    pub remedy: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<String>,
    /// Of the first row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rowid: Option<i64>,
    /// The first page, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<u64>,
    /// The file, relative to the project where it lies in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// How often.
    pub count: u64,
    /// The first of them.
    pub examples: Vec<String>,
    /// Whether repair can do something about it.
    pub repairable: bool,
    /// What repair would do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repair: Option<String>,
}

impl Issue {
    pub fn new(
        code: IssueCode,
        component: Part,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Issue {
            code,
            severity: code.severity(),
            component,
            message: message.into(),
            remedy: remedy.into(),
            table: None,
            index: None,
            rowid: None,
            page: None,
            path: None,
            count: 1,
            examples: Vec::new(),
            repairable: false,
            repair: None,
        }
    }

    pub fn severity(self, severity: Severity) -> Self {
        Issue { severity, ..self }
    }

    pub fn path(self, path: impl Into<String>) -> Self {
        Issue {
            path: Some(path.into()),
            ..self
        }
    }

    pub fn table(self, table: impl Into<String>) -> Self {
        Issue {
            table: Some(table.into()),
            ..self
        }
    }

    /// How often, and the first of them.
    pub fn found(self, found: Examples) -> Self {
        Issue {
            count: found.count,
            examples: found.examples,
            rowid: found.rowid.or(self.rowid),
            ..self
        }
    }

    /// What tells it apart from every other one.
    pub fn key(&self) -> (IssueCode, Part, Option<&str>, Option<&str>, Option<&str>) {
        (
            self.code,
            self.component,
            self.path.as_deref(),
            self.table.as_deref(),
            self.index.as_deref(),
        )
    }
}

/// Things of one kind: how many, the first of them, the row of the very first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Examples {
    pub count: u64,
    pub examples: Vec<String>,
    pub rowid: Option<i64>,
}

impl Examples {
    pub fn add(&mut self, example: impl Into<String>) {
        self.count += 1;
        if self.examples.len() < MAX_EXAMPLES {
            self.examples.push(example.into());
        }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}
