//! Issues: what checks find, with a stable code, a severity, the affected part and a remedy.

use serde::{Deserialize, Serialize};

use crate::error::Code;

/// Maximum number of examples in an issue.
pub const MAX_EXAMPLES: usize = 10;

macro_rules! issue_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, $severity:ident;)+) => {
        /// Stable code of an issue. `docs/reference/errors.md` explains each one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum IssueCode { $($(#[doc = $doc])+ #[serde(rename = $text)] $name,)+ }

        impl IssueCode {
            #[cfg(not(without_internals))]
            pub const ALL: &[IssueCode] = &[$(IssueCode::$name),+];

            pub fn as_str(self) -> &'static str {
                match self { $(IssueCode::$name => $text),+ }
            }

            /// Returns the severity that applies unless the check sets another.
            fn severity(self) -> Severity {
                match self { $(IssueCode::$name => Severity::$severity),+ }
            }
        }
    };
}

issue_codes! {
    /// The configured database does not exist.
    DatabaseMissing = "KG_ISSUE_DATABASE_MISSING", Error;
    /// It is unknown whether the database exists: its directory cannot be entered, or the disk
    /// fails.
    DatabaseUnreadable = "KG_ISSUE_DATABASE_UNREADABLE", Error;
    /// The graph database has no table: it has 0 bytes, or all tables were dropped.
    DatabaseEmpty = "KG_ISSUE_DATABASE_EMPTY", Error;
    /// SQLite reports that the file is not a database, or the file cannot be opened.
    NotADatabase = "KG_ISSUE_NOT_A_DATABASE", Error;
    /// Pages do not have the structure of a database.
    DatabaseDamaged = "KG_ISSUE_DATABASE_DAMAGED", Error;
    /// An index does not agree with its table.
    IndexDamaged = "KG_ISSUE_INDEX_DAMAGED", Error;
    /// A full-text index does not agree with its table or with itself.
    FullTextDamaged = "KG_ISSUE_FTS_DAMAGED", Error;
    /// Rows violate constraints that their table declares.
    Constraint = "KG_ISSUE_CONSTRAINT", Error;
    /// Rows refer to a declared parent that is missing.
    ForeignKey = "KG_ISSUE_FOREIGN_KEY", Error;
    /// The source of an edge is not a node.
    EdgeSource = "KG_ISSUE_EDGE_SOURCE", Error;
    /// The target of an edge is not a node.
    EdgeTarget = "KG_ISSUE_EDGE_TARGET", Warning;
    /// Rows of `node_tags` refer to a missing node or tag.
    TagOrphan = "KG_ISSUE_TAG_ORPHAN", Warning;
    /// The `frontmatter` of a node is not JSON.
    Frontmatter = "KG_ISSUE_FRONTMATTER", Warning;
    /// Several nodes have the same path.
    DuplicatePath = "KG_ISSUE_DUPLICATE_PATH", Warning;
    /// A documented table is missing.
    TableMissing = "KG_ISSUE_TABLE_MISSING", Error;
    /// No trigger keeps the full-text index up to date.
    TriggerMissing = "KG_ISSUE_TRIGGER_MISSING", Warning;
    /// SQLite cannot use the WAL, so its commits are lost.
    WalUnreadable = "KG_ISSUE_WAL_UNREADABLE", Error;
    /// The WAL does not belong to the database next to it.
    WalForeign = "KG_ISSUE_WAL_FOREIGN", Error;
    /// A process commits to a WAL other than the one next to the database.
    WalNotInUse = "KG_ISSUE_WAL_NOT_IN_USE", Error;
    /// The configured database is outside the project, perhaps in another one.
    DatabaseOutside = "KG_ISSUE_DATABASE_OUTSIDE", Error;
    /// The database is on a file system where file locks may not work.
    NetworkFileSystem = "KG_ISSUE_NETWORK_FILE_SYSTEM", Warning;
    /// The database was written by a version of SQLite that can corrupt a database in WAL mode.
    SqliteOld = "KG_ISSUE_SQLITE_OLD", Warning;
    /// The database has several names. Processes that use different names do not see each other's
    /// WAL.
    DatabaseLinked = "KG_ISSUE_DATABASE_LINKED", Warning;
    /// Something could not be checked.
    NotChecked = "KG_ISSUE_NOT_CHECKED", Info;
    /// A restore was interrupted: the project is a mixture of its earlier state and a backup.
    RestorePending = "KG_ISSUE_RESTORE_PENDING", Error;
    /// A configuration file is not JSON.
    ConfigInvalid = "KG_ISSUE_CONFIG_INVALID", Error;
    /// A setting has the wrong type or is out of range.
    ConfigValue = "KG_ISSUE_CONFIG_VALUE", Warning;
    /// The document of a node is missing.
    DocumentMissing = "KG_ISSUE_DOCUMENT_MISSING", Warning;
    /// Documents have no node, although documents in the same directory have one.
    DocumentUnindexed = "KG_ISSUE_DOCUMENT_UNINDEXED", Info;
    /// Files cannot be read, or links lead nowhere.
    FileUnreadable = "KG_ISSUE_FILE_UNREADABLE", Warning;
    /// Everyone may write files that only the host should write.
    Permissions = "KG_ISSUE_PERMISSIONS", Warning;
    /// Other users may read a file that looks like a key.
    KeyExposed = "KG_ISSUE_KEY_EXPOSED", Warning;
    /// The length of a vector does not match its dimensions.
    VectorLength = "KG_ISSUE_VECTOR_LENGTH", Error;
    /// Vectors in one store have different dimensions.
    VectorDimensions = "KG_ISSUE_VECTOR_DIMENSIONS", Error;
    /// Vectors contain a value that is not a finite number.
    VectorNotFinite = "KG_ISSUE_VECTOR_NOT_FINITE", Error;
    /// Vectors consist only of zeros and have no direction.
    VectorZero = "KG_ISSUE_VECTOR_ZERO", Warning;
    /// Vectors belong to nodes that do not exist.
    VectorOrphan = "KG_ISSUE_VECTOR_ORPHAN", Warning;
    /// Nodes have no vector.
    VectorMissing = "KG_ISSUE_VECTOR_MISSING", Info;
    /// A vector file is shorter or longer than its index says.
    VectorFile = "KG_ISSUE_VECTOR_FILE", Error;
    /// A vector index cannot be used.
    VectorIndex = "KG_ISSUE_VECTOR_INDEX", Error;
    /// There is no good backup.
    BackupNone = "KG_ISSUE_BACKUP_NONE", Warning;
    /// The newest good backup is too old.
    BackupOld = "KG_ISSUE_BACKUP_OLD", Warning;
    /// The second store lacks new backups.
    CopyBehind = "KG_ISSUE_COPY_BEHIND", Warning;
    /// Whether the second store has the backups could not be determined.
    CopyUnknown = "KG_ISSUE_COPY_UNKNOWN", Warning;
    /// The base of a backup is missing or is a different backup.
    BackupChain = "KG_ISSUE_BACKUP_CHAIN", Error;
    /// An archive is not listed because it is incomplete or its manifest is missing.
    BackupUnlisted = "KG_ISSUE_BACKUP_UNLISTED", Error;
    /// The backup directory cannot be used.
    BackupDir = "KG_ISSUE_BACKUP_DIR", Error;
    /// The store held backups of this project at the last run and holds none now.
    StoreEmptied = "KG_ISSUE_STORE_EMPTIED", Error;
    /// `latest` skips newer backups or what remains of them.
    BackupPassedOver = "KG_ISSUE_BACKUP_PASSED_OVER", Warning;
    /// The newest good backup does not contain the whole project.
    BackupIncomplete = "KG_ISSUE_BACKUP_INCOMPLETE", Warning;
    /// The last run that should have made a backup failed.
    BackupFailed = "KG_ISSUE_BACKUP_FAILED", Warning;
    /// Backups are scheduled, but no service makes them.
    ServiceStopped = "KG_ISSUE_SERVICE_STOPPED", Warning;
    /// No setting says how to encrypt the next backup, so the backup is refused.
    BackupRefused = "KG_ISSUE_BACKUP_REFUSED", Warning;
    /// It is unknown whether a service runs.
    ServiceUnknown = "KG_ISSUE_SERVICE_UNKNOWN", Warning;
    /// A service runs, but no backups are scheduled.
    ServiceIdle = "KG_ISSUE_SERVICE_IDLE", Warning;
    /// The disk has too little space for the next backup.
    DiskSpace = "KG_ISSUE_DISK_SPACE", Warning;
}

impl IssueCode {
    /// Returns the error code that an issue about backups leads to.
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
    /// What was checked is not healthy.
    Error,
    /// A person should look into this.
    Warning,
    /// Information that requires no action.
    Info,
}

/// The part of a project that an issue belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    Database,
    Files,
    Vectors,
    Backups,
}

/// One kind of fault in one place, regardless of how often it occurs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Issue {
    pub code: IssueCode,
    pub severity: Severity,
    pub component: Part,
    /// One sentence, without its full stop.
    pub message: String,
    /// What the user should do, without a full stop.
    pub remedy: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<String>,
    /// Rowid of the first affected row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rowid: Option<i64>,
    /// The first affected page, starting at 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<u64>,
    /// The affected file, relative to the project if it is inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Number of occurrences.
    pub count: u64,
    /// The first occurrences, at most [`MAX_EXAMPLES`].
    pub examples: Vec<String>,
    /// Whether repair can do something about the issue.
    pub repairable: bool,
    /// The action that repair would take.
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

    /// Sets the number of occurrences, the first of them, and the first rowid if known.
    pub fn found(self, found: Examples) -> Self {
        Issue {
            count: found.count,
            examples: found.examples,
            rowid: found.rowid.or(self.rowid),
            ..self
        }
    }

    /// Returns the fields that distinguish an issue from every other one.
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

/// Occurrences of one kind: their number, the first of them, and the rowid of the very first.
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
