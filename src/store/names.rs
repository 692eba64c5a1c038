//! Names of backups and of their files.

use jiff::{Timestamp, tz::TimeZone};

use crate::archive::{block::Compression, encryption::NAME_MARK};

pub const MANIFEST_SUFFIX: &str = ".manifest.json";
pub const PIN_SUFFIX: &str = ".pin.json";
pub const LOCK_FILE: &str = ".kg-store.lock";
/// The link to the newest archive, without its ending.
pub const LATEST: &str = "latest";

const ARCHIVE_PREFIX: &str = "kg-backup-";
pub const ID_PREFIX: &str = "backup-";
/// Endings of archives, most common first, then those of encrypted archives.
pub const ENDINGS: [&str; 6] = [
    ".tar.gz",
    ".tar.zst",
    ".tar",
    ".enc.tar.gz",
    ".enc.tar.zst",
    ".enc.tar",
];

/// Returns `20240115-020000`, in UTC. If several backups begin in the same second, the second and
/// later ones get a suffix.
pub fn stamp(at: Timestamp, number: u32) -> String {
    let stamp = at
        .to_zoned(TimeZone::UTC)
        .strftime("%Y%m%d-%H%M%S")
        .to_string();
    if number > 1 {
        format!("{stamp}-{number}")
    } else {
        stamp
    }
}

pub fn id(stamp: &str) -> String {
    format!("{ID_PREFIX}{stamp}")
}

pub fn archive(stamp: &str, compression: Compression, encrypted: bool) -> String {
    let ending = match compression {
        Compression::Gzip(_) => ".tar.gz",
        Compression::Zstd(_) => ".tar.zst",
        Compression::None => ".tar",
    };
    let encrypted = if encrypted { NAME_MARK } else { "" };
    format!("{ARCHIVE_PREFIX}{stamp}{encrypted}{ending}")
}

/// Returns the id of the archive of that name, or `None` if the name is not that of an archive.
pub fn id_of_archive(name: &str) -> Option<String> {
    let stamp = name
        .strip_prefix(ARCHIVE_PREFIX)?
        .strip_suffix(ending(name)?)?;
    is_stamp(stamp).then(|| id(stamp))
}

/// Returns the ending of the name of an archive, or of a link to one, starting at its first dot.
pub fn ending(name: &str) -> Option<&'static str> {
    let (_, found) = name.split_once('.')?;
    ENDINGS.into_iter().find(|ending| ending[1..] == *found)
}

/// Returns the possible archive names of a backup, or an empty list if `id` is not a backup id.
pub fn archives_of_id(id: &str) -> Vec<String> {
    match id.strip_prefix(ID_PREFIX) {
        Some(stamp) if is_stamp(stamp) => ENDINGS
            .iter()
            .map(|ending| format!("{ARCHIVE_PREFIX}{stamp}{ending}"))
            .collect(),
        _ => Vec::new(),
    }
}

/// Returns when the backup with that id began, according to the id, in seconds since the epoch.
pub fn time_of_id(id: &str) -> Option<i64> {
    let stamp = id.strip_prefix(ID_PREFIX).filter(|stamp| is_stamp(stamp))?;
    let civil = jiff::civil::DateTime::strptime("%Y%m%d-%H%M%S", stamp.get(..15)?).ok()?;
    TimeZone::UTC
        .to_timestamp(civil)
        .ok()
        .map(Timestamp::as_second)
}

pub fn is_id(id: &str) -> bool {
    !archives_of_id(id).is_empty()
}

fn is_stamp(stamp: &str) -> bool {
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts = stamp.split('-');
    let (date, time, number) = (parts.next(), parts.next(), parts.next());
    date.is_some_and(|date| date.len() == 8 && digits(date))
        && time.is_some_and(|time| time.len() == 6 && digits(time))
        && number.is_none_or(|number| !number.is_empty() && digits(number))
        && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::encryption::is_named;

    #[test]
    fn names_follow_the_guide() {
        let at: Timestamp = "2024-01-15T02:00:00.5Z".parse().unwrap();
        let gzip = Compression::Gzip(6);
        assert_eq!(id(&stamp(at, 1)), "backup-20240115-020000");
        assert_eq!(
            archive(&stamp(at, 1), gzip, false),
            "kg-backup-20240115-020000.tar.gz"
        );
        assert_eq!(
            archive(&stamp(at, 1), gzip, true),
            "kg-backup-20240115-020000.enc.tar.gz"
        );
        assert_eq!(
            archive(&stamp(at, 2), Compression::None, false),
            "kg-backup-20240115-020000-2.tar"
        );
    }

    #[test]
    fn ids_and_archives_lead_to_each_other_and_nothing_else_does() {
        for stamp in ["20240115-020000", "20240115-020000-12"] {
            for compression in [Compression::GZIP, Compression::ZSTD, Compression::None] {
                for encrypted in [false, true] {
                    let name = archive(stamp, compression, encrypted);
                    assert_eq!(
                        (id_of_archive(&name), is_named(&name)),
                        (Some(id(stamp)), encrypted)
                    );
                }
            }
            for archive in archives_of_id(&id(stamp)) {
                assert_eq!(id_of_archive(&archive), Some(id(stamp)));
            }
        }
        for name in [
            "kg-backup-2024.tar.gz",
            "kg-backup-20240115-020000.zip",
            "kg-backup-20240115-020000.enc",
            "kg-backup-20240115-020000.tar.gz.tar",
            "kg-backup-../../etc/passwd.tar",
            "latest.tar.gz",
        ] {
            assert_eq!(id_of_archive(name), None, "{name}");
        }
        assert!(archives_of_id("backup-../../x").is_empty());
        assert_eq!(time_of_id("backup-20240115-020000-12"), Some(1_705_284_000));
        assert_eq!(time_of_id("backup-20241515-020000"), None);
    }
}
