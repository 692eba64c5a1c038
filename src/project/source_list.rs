//! The sources of a backup, in little memory.
//!
//! A project may have millions of plain files. The walk finds them in the order of the archive, so
//! they are only ever needed one after another. Each takes some 40 bytes here: what its path does
//! not share with the one before it, and what the system says about the file.

use std::{
    collections::{BTreeMap, HashMap},
    iter,
};

use jiff::Timestamp;

use super::{
    Component,
    discover::{Source, SourceKind},
    entry_names::EntryNames,
    file_state::{FileState, FoundFile},
    names::path_order,
};
use crate::sqlite::files::COMPANIONS;

const CHUNK_BYTES: usize = 64 * 1024;
/// The most bytes of all numbers of a file.
const MOST_NUMBER_BYTES: usize = 8 * 10;

/// Everything that a backup saves.
#[derive(Debug, Default)]
pub struct SourceList {
    plain: BTreeMap<Component, PlainFiles>,
    /// The sources that are not plain files. They may be changed until [`SourceList::sort`].
    pub others: Vec<Source>,
    /// The entry names of plain files that do not follow from their paths, by path.
    named: HashMap<String, Box<str>>,
}

impl SourceList {
    /// Adds a source. Plain files take least memory if they come in the order of the archive.
    pub fn push(&mut self, source: Source) {
        let is_plain = source.is_found_at_its_path() && !may_be_companion(&source.path);
        match source.found.filter(|_| is_plain) {
            Some(found) if self.plain(source.component).follows(&source.path) => {
                self.plain(source.component).push(&source.path, &found);
            }
            _ => self.others.push(source),
        }
    }

    fn plain(&mut self, component: Component) -> &mut PlainFiles {
        self.plain.entry(component).or_default()
    }

    /// Puts the sources that are not plain files in order. Required after they were changed.
    pub fn sort(&mut self) {
        self.others.sort_by(Source::order);
    }

    /// Makes entry names unique, and returns them. Two sources can have the same name
    /// (`.kg/vectors.db` and `.kg/vectors/vectors.db`), so the later one gets a suffix. The list of
    /// files maps entries to paths, so nothing depends on the name.
    pub fn name_entries(&mut self) -> EntryNames {
        let mut taken = EntryNames::default();
        let mut renamed: HashMap<String, Box<str>> = HashMap::new();
        for source in self.iter() {
            let wanted = source.entry();
            let free = taken.take(&wanted);
            if free != wanted {
                renamed.insert(source.path, free.into());
            }
        }
        for source in &mut self.others {
            if let Some(name) = renamed.remove(&source.path) {
                source.named = Some(name);
            }
        }
        self.named = renamed;
        taken
    }

    /// Returns all sources in the order of the archive.
    pub fn iter(&self) -> impl Iterator<Item = Source> {
        let plain = self.plain.iter().flat_map(|(component, files)| {
            let files = files.iter();
            files.map(|(path, found)| self.plain_source(path, *component, found))
        });
        let (mut plain, mut others) = (plain.peekable(), self.others.iter().peekable());
        iter::from_fn(move || match (plain.peek(), others.peek()) {
            (Some(file), Some(other)) if other.order(file).is_lt() => others.next().cloned(),
            (Some(_), _) => plain.next(),
            (None, _) => others.next().cloned(),
        })
    }

    fn plain_source(&self, path: String, component: Component, found: FoundFile) -> Source {
        let named = self.named.get(&path).cloned();
        let mut source = Source::new(path, component, SourceKind::File, Some(found));
        source.named = named;
        source
    }
}

/// Returns whether the name is that of a WAL, an index or a journal. Such a file may turn out to be
/// part of a database.
fn may_be_companion(path: &str) -> bool {
    COMPANIONS.iter().any(|suffix| path.ends_with(suffix))
}

/// Plain files of one component, in order.
#[derive(Debug, Default)]
struct PlainFiles {
    chunks: Vec<Vec<u8>>,
    last_path: String,
}

impl PlainFiles {
    fn follows(&self, path: &str) -> bool {
        self.chunks.is_empty() || path_order(&self.last_path, path).is_lt()
    }

    fn push(&mut self, path: &str, found: &FoundFile) {
        let (old, new) = (self.last_path.as_bytes(), path.as_bytes());
        let shared = iter::zip(old, new).take_while(|(a, b)| a == b).count();
        let rest = &new[shared..];
        let has_room =
            |chunk: &Vec<u8>| chunk.capacity() - chunk.len() >= rest.len() + MOST_NUMBER_BYTES;
        let mut chunk = match self.chunks.pop() {
            Some(last) if has_room(&last) => last,
            full => {
                self.chunks.extend(full);
                Vec::with_capacity(CHUNK_BYTES)
            }
        };
        put(&mut chunk, shared as u64);
        put(&mut chunk, rest.len() as u64);
        chunk.extend_from_slice(rest);
        put(&mut chunk, found.size);
        put_signed(&mut chunk, found.modified.as_second());
        put_signed(&mut chunk, found.modified.subsec_nanosecond().into());
        put(&mut chunk, found.state.inode);
        let (seconds, nanoseconds) = found.state.changed;
        put_signed(&mut chunk, seconds.wrapping_sub(found.modified.as_second()));
        put(&mut chunk, nanoseconds.into());
        self.chunks.push(chunk);
        path.clone_into(&mut self.last_path);
    }

    fn iter(&self) -> impl Iterator<Item = (String, FoundFile)> {
        let mut path = Vec::new();
        self.chunks.iter().flat_map(move |chunk| {
            let mut files = Vec::new();
            let mut rest = &chunk[..];
            while let Some(found) = take_file(&mut rest, &mut path) {
                files.push((String::from_utf8_lossy(&path).into_owned(), found));
            }
            files
        })
    }
}

/// Takes a file, and changes the path of the one before it to its own.
fn take_file(bytes: &mut &[u8], path: &mut Vec<u8>) -> Option<FoundFile> {
    path.truncate(take(bytes)? as usize);
    let length = take(bytes)? as usize;
    let (rest, after) = bytes.split_at_checked(length)?;
    path.extend_from_slice(rest);
    *bytes = after;
    let size = take(bytes)?;
    let seconds = take_signed(bytes)?;
    let modified = Timestamp::new(seconds, take_signed(bytes)? as i32).ok()?;
    let inode = take(bytes)?;
    let changed = seconds.wrapping_add(take_signed(bytes)?);
    Some(FoundFile {
        size,
        modified,
        state: FileState {
            inode,
            changed: (changed, take(bytes)? as u32),
        },
    })
}

/// Writes seven bits in a byte, the lowest first. The highest bit says that more follow.
fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Writes a number so that those near zero are short, whatever their sign.
fn put_signed(bytes: &mut Vec<u8>, number: i64) {
    put(bytes, ((number << 1) ^ (number >> 63)) as u64);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn take_signed(bytes: &mut &[u8]) -> Option<i64> {
    let number = take(bytes)?;
    Some((number >> 1) as i64 ^ -((number & 1) as i64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found() -> impl Strategy<Value = FoundFile> {
        let times = (-377_000_000_000..253_000_000_000_i64, 0..1_000_000_000_i32);
        (
            any::<u64>(),
            times,
            any::<u64>(),
            any::<i64>(),
            any::<u32>(),
        )
            .prop_map(
                |(size, (seconds, nanoseconds), inode, changed, changed_nanoseconds)| FoundFile {
                    size,
                    modified: Timestamp::new(seconds, nanoseconds).unwrap(),
                    state: FileState {
                        inode,
                        changed: (changed, changed_nanoseconds),
                    },
                },
            )
    }

    fn sources() -> impl Strategy<Value = Vec<Source>> {
        let component = prop::sample::select(vec![
            Component::Config,
            Component::Vectors,
            Component::Files,
        ]);
        let source = (
            "[ab%é]{1,3}(/[ab.]{1,2}){0,3}(-wal)?",
            component,
            prop::option::of(found()),
        )
            .prop_map(|(path, component, found)| {
                Source::new(path, component, SourceKind::File, found)
            });
        prop::collection::vec(source, 0..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_list_has_every_source_once_in_the_order_of_the_archive(mut sources in sources(), is_sorted: bool) {
            if is_sorted {
                sources.sort_by(Source::order);
            }
            let mut list = SourceList::default();
            sources.iter().cloned().for_each(|source| list.push(source));
            list.sort();
            let key = |source: &Source| (source.component, source.path.clone(), format!("{source:?}"));
            let mut listed: Vec<Source> = list.iter().collect();
            prop_assert!(listed.is_sorted_by(|a, b| a.order(b).is_le()));
            listed.sort_by_cached_key(key);
            sources.sort_by_cached_key(key);
            prop_assert_eq!(listed, sources);
        }
    }

    #[test]
    fn a_plain_file_takes_less_than_forty_bytes() {
        let mut list = SourceList::default();
        let state = |number: u64| FileState {
            inode: 13_000_000 + number,
            changed: (1_790_000_000, 123_456_789),
        };
        for number in 0..100_000 {
            let found = FoundFile {
                size: 1000,
                modified: Timestamp::new(1_790_000_000, 123_456_789).unwrap(),
                state: state(number),
            };
            let path = format!(".kg/plugins/{:03}/note-{number:06}.txt", number / 1000);
            list.push(Source::new(
                path,
                Component::Plugins,
                SourceKind::File,
                Some(found),
            ));
        }
        assert!(list.others.is_empty());
        let chunks = list.plain.values().flat_map(|files| &files.chunks);
        let bytes: usize = chunks.map(Vec::capacity).sum();
        assert!(bytes < 4_000_000, "{bytes}");
    }

    #[test]
    fn a_name_that_is_taken_gets_a_suffix() {
        let mut list = SourceList::default();
        let found = FoundFile {
            size: 1,
            modified: Timestamp::UNIX_EPOCH,
            state: FileState {
                inode: 1,
                changed: (0, 0),
            },
        };
        for path in [".kg/vectors/vectors.db", ".kg/vectors.db"] {
            list.push(Source::new(
                path.into(),
                Component::Vectors,
                SourceKind::File,
                Some(found),
            ));
        }
        let mut names = list.name_entries();
        let entries: Vec<String> = list.iter().map(|source| source.entry()).collect();
        assert_eq!(entries, ["vectors/vectors.db", "vectors/vectors.db~2"]);
        assert_eq!(names.take("vectors/vectors.db"), "vectors/vectors.db~3");
    }
}
