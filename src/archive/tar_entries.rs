//! Reads the entries of a tar as strictly as this tool writes them.
//!
//! An archive of this tool contains only files, directories, symbolic links, and GNU long names
//! before them. Nothing else is interpreted. A forged archive can make this module hold at most one
//! name and one link target of `MAX_NAME_BYTES` in memory.

use std::io::{self, Read};

use tar::EntryType;

use super::file_record::{EntryKind, Owner};

/// Maximum length of a name or link target: that of a path on Linux.
pub(super) const MAX_NAME_BYTES: u64 = 4096;

/// One item of the tar.
pub enum TarItem {
    Entry(Head),
    /// An entry whose type or name never occurs in a backup.
    Foreign {
        name: String,
        what: &'static str,
    },
}

pub struct Head {
    pub name: String,
    pub kind: EntryKind,
    /// Target of a link; empty for other entries.
    pub link: Vec<u8>,
    pub size_bytes: u64,
    pub owner: Owner,
    /// Offsets in the tar of the first header of the entry and of its end.
    pub start: u64,
    pub end: u64,
}

/// Iterates over a tar. After an error nothing more can be read.
pub struct Entries<'a, R: Read> {
    raw: tar::Entries<'a, R>,
}

impl<'a, R: Read> Entries<'a, R> {
    pub fn new(tar: &'a mut tar::Archive<R>) -> io::Result<Self> {
        Ok(Entries {
            raw: tar.entries()?.raw(true),
        })
    }

    /// Returns the next entry and its content.
    #[allow(
        clippy::type_complexity,
        reason = "a pair of the head and what tar calls an entry"
    )]
    pub fn next(&mut self) -> io::Result<Option<(TarItem, tar::Entry<'a, R>)>> {
        let (mut long_name, mut long_link, mut first) = (None, None, None);
        loop {
            let Some(entry) = self.raw.next() else {
                let is_whole = first.is_none();
                return if is_whole {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            };
            let mut entry = entry?;
            let start = *first.get_or_insert(entry.raw_header_position());
            match entry.header().entry_type() {
                EntryType::GNULongName => keep_once(&mut long_name, long(&mut entry)?)?,
                EntryType::GNULongLink => keep_once(&mut long_link, long(&mut entry)?)?,
                kind => {
                    let name = long_name.unwrap_or_else(|| entry.path_bytes().into_owned());
                    let short = || {
                        entry
                            .link_name_bytes()
                            .map_or(Vec::new(), |link| link.into_owned())
                    };
                    let link = long_link.unwrap_or_else(short);
                    return Ok(Some((found(kind, name, link, &entry, start), entry)));
                }
            }
        }
    }
}

fn found<R: Read>(
    kind: EntryType,
    name: Vec<u8>,
    link: Vec<u8>,
    entry: &tar::Entry<'_, R>,
    start: u64,
) -> TarItem {
    let name = match String::from_utf8(name) {
        Ok(name) => name,
        Err(bytes) => {
            let name = String::from_utf8_lossy(bytes.as_bytes()).into_owned();
            return TarItem::Foreign {
                name,
                what: "has a name that is not UTF-8",
            };
        }
    };
    let kind = match kind {
        EntryType::Regular => EntryKind::File,
        EntryType::Directory => EntryKind::Directory,
        EntryType::Symlink => EntryKind::Link,
        _ => {
            return TarItem::Foreign {
                name,
                what: "is neither a file nor a directory nor a link",
            };
        }
    };
    let size_bytes = entry.size();
    // Only a link needs a target. A forged archive could add targets to other entries to fill the
    // memory.
    let link = if kind == EntryKind::Link {
        link
    } else {
        Vec::new()
    };
    if !kind.is_file() && size_bytes > 0 {
        return TarItem::Foreign {
            name,
            what: "is a directory or link with content",
        };
    }
    let number = |id: io::Result<u64>| {
        id.ok()
            .and_then(|id| u32::try_from(id).ok())
            .unwrap_or_default()
    };
    let owner = (number(entry.header().uid()), number(entry.header().gid()));
    TarItem::Entry(Head {
        name,
        kind,
        link,
        size_bytes,
        owner,
        start,
        end: entry.raw_file_position() + size_bytes,
    })
}

/// Stores a long name and rejects a second one for the same entry, because tar readers disagree on
/// which of them counts.
fn keep_once(kept: &mut Option<Vec<u8>>, name: Vec<u8>) -> io::Result<()> {
    if kept.replace(name).is_some() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(())
}

/// Reads a long name, which must end with a zero byte.
fn long<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Vec<u8>> {
    if entry.size() > MAX_NAME_BYTES + 1 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut name = Vec::new();
    entry.read_to_end(&mut name)?;
    if name.pop() != Some(0) || name.contains(&0) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(name)
}
