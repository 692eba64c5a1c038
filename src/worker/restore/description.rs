//! What was unpacked: the manifest and the list of files in the staging directory.
//!
//! The list of a large project is long, so it is read from its file record by record.

use std::{
    collections::HashSet,
    fs::{self, File},
    path::{Path, PathBuf},
};

use crate::{
    archive::{
        file_list::{FILE_LIST_ENTRY, read_records},
        file_record::FileRecord,
        manifest::{MANIFEST_ENTRY, Manifest},
    },
    error::{Error, Result},
    project::{CONFIG_FILE, entry_names::DATABASE_ENTRY},
};

pub struct Description {
    pub manifest: Manifest,
    /// The paths of all databases.
    pub databases: HashSet<String>,
    /// The number and the path of the graph database.
    pub graph: Option<(usize, String)>,
    /// The number and the record of the configuration.
    pub config: Option<(usize, FileRecord)>,
    /// The number of records, and the length of their paths together.
    pub count: usize,
    pub paths_bytes: usize,
    list: PathBuf,
    known_as: PathBuf,
}

impl Description {
    /// Reads the description in `staging`. Messages call that directory `known_as`.
    pub fn read(staging: &Path, known_as: &Path) -> Result<Self> {
        let json = fs::read(staging.join(MANIFEST_ENTRY));
        let json =
            json.map_err(|cause| Error::io("read", &known_as.join(MANIFEST_ENTRY), cause))?;
        let mut description = Description {
            manifest: Manifest::parse(&json, "the backup")?,
            databases: HashSet::new(),
            graph: None,
            config: None,
            count: 0,
            paths_bytes: 0,
            list: staging.join(FILE_LIST_ENTRY),
            known_as: known_as.join(FILE_LIST_ENTRY),
        };
        let (mut databases, mut graph, mut config) = (HashSet::new(), None, None);
        let (mut count, mut paths_bytes) = (0, 0);
        description.each(|number, record| {
            count += 1;
            paths_bytes += record.path.len();
            if graph.is_none() && record.entry == DATABASE_ENTRY {
                graph = Some((number, record.path.clone()));
            }
            if record.database {
                databases.insert(record.path.clone());
            }
            if config.is_none() && record.entry == CONFIG_FILE && record.kind.is_file() {
                config = Some((number, record));
            }
            Ok(())
        })?;
        description.count = count;
        description.paths_bytes = paths_bytes;
        description.databases = databases;
        description.graph = graph;
        description.config = config;
        Ok(description)
    }

    /// Passes on each record of the list with its number.
    pub fn each(&self, each: impl FnMut(usize, FileRecord) -> Result<()>) -> Result<()> {
        let read = File::open(&self.list).and_then(|file| read_records(file, each));
        let read = read.map_err(|cause| Error::io("read", &self.known_as, cause))?;
        read?.map_err(|what| Error::internal(format!("The list of files {what}")))
    }
}
