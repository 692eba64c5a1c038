//! The journal of a restore. It is written before the restore begins, so that the next run can
//! recover the project after a kill at any instant.
//!
//! The journal lists every change in order. Until it says `decided`, recovery rolls back everything
//! in it: directories and renames. From then on a database may have its new content. If one has,
//! recovery completes the rest too ([`super::transaction`]).

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    json_list,
    record::{MadeDir, Record},
    target::parent,
    texts::{MoreTexts, TextId, Texts},
};
use crate::{
    error::{Code, Error, Result},
    project::{STATE_DIR, UNDO_DIR, exclude::JOURNAL_FILE},
    util::{atomic_file, regular_file},
};

/// Maximum length of a journal or record. Only this user and root can have written it, so this only
/// catches what is certainly something else.
pub const MAX_JOURNAL_BYTES: u64 = 4 * 1024 * 1024 * 1024;

/// The changes of one restore. All paths are locations, see [`super::target`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// The renames are made, and the first commit may have happened. Once a database is committed,
    /// recovery completes this restore.
    pub decided: bool,
    /// Part of the names of temporary files, unique to this restore.
    pub token: String,
    /// The location where the backup was unpacked, with a trailing slash.
    pub staging: Option<String>,
    /// Directories that this user must make writable for the changes, with their original
    /// permissions.
    #[serde(default)]
    pub opened: Vec<MadeDir>,
    /// Directories that do not exist yet, parents first.
    pub made: Vec<MadeDir>,
    /// Renames, in the order in which they are made.
    pub moves: Moves,
    /// Live databases that get their new content through SQLite.
    pub swaps: Vec<Swapped>,
    /// The location that keeps the replaced files, and the record to write there.
    pub undo: Option<(String, Record)>,
    /// The location to remove when everything is done: the directory of the restore that this one
    /// undoes.
    pub retired: Option<String>,
    /// Directories to remove if they are empty at the end.
    pub emptied: Vec<String>,
    /// The graph database, if it lies outside the project.
    pub outside: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    pub from: String,
    pub to: String,
    /// Device and inode of the moved file, which identify it later.
    pub identity: (u64, u64),
}

/// A list of [`Move`], in little memory. It holds each path once, and not the directories that many
/// paths begin with.
#[derive(Debug, Clone, Default)]
pub struct Moves {
    /// The directory of the new files, with a trailing slash.
    source: String,
    /// The directory that keeps the replaced files, with a trailing slash.
    undo: String,
    texts: MoreTexts,
    /// The devices of the moved files.
    devices: Vec<u64>,
    rows: Vec<Row>,
}

/// A move in 20 bytes.
#[derive(Debug, Clone, Copy)]
#[repr(Rust, packed(4))]
struct Row {
    from: PackedSpot,
    to: PackedSpot,
    inode: u64,
    /// The index of the device.
    device: u32,
}

/// A location in a list of moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spot {
    At(TextId),
    /// An unpacked file, which has this number as its name.
    Numbered(u32),
    /// A location below the directory of the new files.
    New(TextId),
    /// A location below the directory that keeps the replaced files.
    Kept(TextId),
}

/// A [`Spot`] in 4 bytes: the lowest bits say which kind, the others are the number.
#[derive(Debug, Clone, Copy)]
struct PackedSpot(u32);

impl PackedSpot {
    const KIND_BITS: u32 = 2;

    fn of(spot: Spot) -> Result<Self> {
        let (kind, number) = match spot {
            Spot::At(id) => (0, id.number()),
            Spot::New(id) => (1, id.number()),
            Spot::Kept(id) => (2, id.number()),
            Spot::Numbered(number) => (3, number),
        };
        let packed = number
            .checked_mul(1 << PackedSpot::KIND_BITS)
            .ok_or_else(|| Error::internal("There are too many files"))?;
        Ok(PackedSpot(packed | kind))
    }

    /// Returns the spot; `None` only if it was not packed.
    fn spot(self) -> Option<Spot> {
        let number = self.0 >> PackedSpot::KIND_BITS;
        let id = TextId::of_number(number);
        match self.0 & 3 {
            0 => id.map(Spot::At),
            1 => id.map(Spot::New),
            2 => id.map(Spot::Kept),
            _ => Some(Spot::Numbered(number)),
        }
    }
}

impl Moves {
    /// Creates an empty list with room for `count` moves. The directories end with a slash.
    pub fn between(source: String, undo: String, texts: Arc<Texts>, count: usize) -> Self {
        Moves {
            source,
            undo,
            texts: MoreTexts::after(texts),
            devices: Vec::new(),
            rows: Vec::with_capacity(count),
        }
    }

    pub fn text(&mut self, text: &str) -> Result<TextId> {
        self.texts.push(text)
    }

    pub fn push(&mut self, from: Spot, to: Spot, (device, inode): (u64, u64)) -> Result<()> {
        let (from, to) = (PackedSpot::of(from)?, PackedSpot::of(to)?);
        let known = self.devices.iter().position(|known| *known == device);
        let device = known.unwrap_or_else(|| {
            self.devices.push(device);
            self.devices.len() - 1
        });
        let device = u32::try_from(device)
            .map_err(|_| Error::internal("There are too many file systems"))?;
        self.rows.push(Row {
            from,
            to,
            inode,
            device,
        });
        Ok(())
    }

    pub fn count(&self) -> usize {
        self.rows.len()
    }

    pub fn get(&self, number: usize) -> Option<Move> {
        self.rows.get(number).map(|row| self.move_of(row))
    }

    pub fn iter(&self) -> impl Iterator<Item = Move> + '_ {
        self.rows.iter().map(|row| self.move_of(row))
    }

    /// Writes the locations of a move, or nothing if there is none with that number.
    pub fn write_paths(&self, number: usize, from: &mut String, to: &mut String) {
        from.clear();
        to.clear();
        if let Some(row) = self.rows.get(number) {
            self.write(row.from, from);
            self.write(row.to, to);
        }
    }

    /// Returns the number that is the name of the moved file, if it is an unpacked one.
    pub fn number_of(&self, number: usize) -> Option<u32> {
        let from = self.rows.get(number)?.from;
        match from.spot()? {
            Spot::Numbered(number) => Some(number),
            _ => None,
        }
    }

    /// Returns whether any file goes to the directory that keeps the replaced files.
    pub fn keep_any(&self) -> bool {
        let mut rows = self.rows.iter();
        rows.any(|row| {
            let to = row.to;
            matches!(to.spot(), Some(Spot::Kept(_)))
        })
    }

    /// Returns one of the old locations in each directory.
    pub fn sources(&self) -> Vec<String> {
        self.one_in_each_dir(|row| row.from)
    }

    /// Returns one of the new locations in each directory, in the order of the moves.
    pub fn destinations(&self) -> Vec<String> {
        self.one_in_each_dir(|row| row.to)
    }

    fn one_in_each_dir(&self, of: impl Fn(&Row) -> PackedSpot) -> Vec<String> {
        let (mut dirs, mut locations) = (HashSet::new(), Vec::<String>::new());
        let mut location = String::new();
        let mut is_numbered = false;
        for row in &self.rows {
            let spot = of(row);
            // All numbered files have one directory.
            if matches!(spot.spot(), Some(Spot::Numbered(_)))
                && std::mem::replace(&mut is_numbered, true)
            {
                continue;
            }
            location.clear();
            self.write(spot, &mut location);
            let dir = parent(&location);
            // Most files follow another one of their directory.
            let is_same = locations.last().is_some_and(|last| parent(last) == dir);
            if !is_same && !dirs.contains(dir) {
                dirs.insert(dir.to_string());
                locations.push(location.clone());
            }
        }
        locations
    }

    fn move_of(&self, row: &Row) -> Move {
        let location = |spot| {
            let mut location = String::new();
            self.write(spot, &mut location);
            location
        };
        Move {
            from: location(row.from),
            to: location(row.to),
            identity: (
                self.devices
                    .get(row.device as usize)
                    .copied()
                    .unwrap_or_default(),
                row.inode,
            ),
        }
    }

    fn write(&self, spot: PackedSpot, out: &mut String) {
        let (dir, name) = match spot.spot() {
            None => return,
            Some(Spot::At(id)) => ("", id),
            Some(Spot::New(id)) => (self.source.as_str(), id),
            Some(Spot::Kept(id)) => (self.undo.as_str(), id),
            Some(Spot::Numbered(number)) => {
                out.push_str(&self.source);
                out.push_str(&number.to_string());
                return;
            }
        };
        out.push_str(dir);
        out.push_str(self.texts.get(name));
    }

    fn add(&mut self, change: &Move) -> Result<()> {
        let (from, to) = (self.text(&change.from)?, self.text(&change.to)?);
        self.push(Spot::At(from), Spot::At(to), change.identity)
    }
}

impl Serialize for Moves {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Moves {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        json_list::collect(deserializer, "a list of moves", Moves::add)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Swapped {
    /// The location of the new content.
    pub new: String,
    pub live: String,
    /// The location of the previous content of the live database. It exists once the new content is
    /// committed.
    pub kept: String,
    /// The location of the previous content until then. It has a separate directory that keeps no
    /// file of a project.
    pub pending: String,
    /// The digest of the new content, set when `decided` is set. Recovery puts no other content
    /// into the live database. Journals of older releases do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

impl Swapped {
    /// Returns the location of the copy that becomes `pending` once it is complete.
    pub fn growing(&self) -> String {
        format!("{}~", self.pending)
    }
}

/// Returns whether a restore was interrupted or is running. A host may call this function because
/// it only looks up a path and opens no file.
pub fn is_pending(state: &Path) -> bool {
    state.join(JOURNAL_FILE).exists()
}

pub fn path(root: &Path) -> PathBuf {
    root.join(STATE_DIR).join(JOURNAL_FILE)
}

/// Writes the journal durably.
pub fn write(root: &Path, intent: &Intent) -> Result<()> {
    let path = path(root);
    atomic_file::write_orders(&path, |out| {
        serde_json::to_writer(out, intent).map_err(io::Error::from)
    })
}

/// Reads the journal of an interrupted restore. Returns `KG_UNSAFE_FILE` if another user could have
/// written it, because recovery carries out its contents.
pub fn read(root: &Path) -> Result<Option<Intent>> {
    let path = path(root);
    let opened = regular_file::open_orders(&path, MAX_JOURNAL_BYTES).map_err(|error| Error {
        message: format!(
            "An earlier restore may have been interrupted: {}",
            error.message
        ),
        ..error
    })?;
    let Some(json) = opened else { return Ok(None) };
    serde_json::from_reader(json).map(Some).map_err(|cause| {
        if let Some(kind) = cause.io_error_kind() {
            return Error::io("read", &path, kind.into());
        }
        Error::new(
            Code::TargetInvalid,
            format!(
                "{} cannot be read: it is not the journal of an interrupted restore",
                path.display()
            ),
            format!("Look for the old files in {STATE_DIR}/{UNDO_DIR}, then remove it"),
        )
        .with_cause(cause)
    })
}

/// Removes the journal after the restore was completed or rolled back.
pub fn end(root: &Path) -> Result<()> {
    let path = path(root);
    atomic_file::remove(&path)?;
    atomic_file::sync_parent(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A journal as earlier releases wrote it.
    const EARLIER: &str = r#"{"decided":false,"token":"1-2","staging":".kg/restore-staging-1/","opened":[],"made":[],"moves":[{"from":".kg/a","to":".kg/restore-undo/20240115-020000/.kg/a","identity":[1,2]},{"from":".kg/restore-staging-1/0","to":".kg/a","identity":[1,3]},{"from":".kg/restore-staging-1/1","to":".kg/b","identity":[4,3]}],"swaps":[],"undo":[".kg/restore-undo/20240115-020000",{"version":1,"of":"backup-20240115-020000","at":"2024-01-15T02:00:00Z","files":[{"path":".kg/a","kept":".kg/a"},{"path":".kg/b"},{"path":"/db","kept":"outside/db","database":true}],"made":[]}],"retired":null,"emptied":[],"outside":null}"#;

    #[test]
    fn a_journal_of_an_earlier_release_is_read_and_written_as_it_was() {
        let intent: Intent = serde_json::from_str(EARLIER).unwrap();
        assert_eq!(serde_json::to_string(&intent).unwrap(), EARLIER);
        assert_eq!(intent.moves.sources(), [".kg/a", ".kg/restore-staging-1/0"]);
        assert_eq!(
            intent.moves.destinations(),
            [".kg/restore-undo/20240115-020000/.kg/a", ".kg/a"]
        );
        assert!(intent.moves.get(3).is_none());
    }

    #[test]
    fn planned_moves_are_written_with_whole_paths() {
        let mut texts = Texts::default();
        let [a, b] = [".kg/a", ".kg/b"].map(|path| texts.push(path).unwrap());
        let (new, undo) = (".kg/restore-staging-1/", ".kg/restore-undo/1/");
        let mut moves = Moves::between(new.into(), undo.into(), Arc::new(texts), 2);
        let name = moves.text("name").unwrap();
        for (from, to, identity) in [
            (Spot::At(a), Spot::Kept(a), (1, 2)),
            (Spot::Numbered(0), Spot::At(a), (1, 3)),
            (Spot::New(name), Spot::At(b), (u64::MAX, u64::MAX)),
        ] {
            moves.push(from, to, identity).unwrap();
        }
        assert!(moves.keep_any());
        assert_eq!((moves.number_of(0), moves.number_of(1)), (None, Some(0)));
        let expected = [
            (".kg/a", ".kg/restore-undo/1/.kg/a", (1, 2)),
            (".kg/restore-staging-1/0", ".kg/a", (1, 3)),
            (".kg/restore-staging-1/name", ".kg/b", (u64::MAX, u64::MAX)),
        ];
        let expected = expected.map(|(from, to, identity)| Move {
            from: from.into(),
            to: to.into(),
            identity,
        });
        assert_eq!(moves.iter().collect::<Vec<_>>(), expected);
        let json = serde_json::to_vec(&moves).unwrap();
        let read: Moves = serde_json::from_slice(&json).unwrap();
        assert_eq!(read.iter().collect::<Vec<_>>(), expected);
        assert!(
            Moves::default()
                .push(Spot::Numbered(1 << 30), Spot::At(a), (0, 0))
                .is_err()
        );
    }
}
