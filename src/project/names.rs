//! Writes paths as text in manifests, journals and messages, whatever their bytes are.
//!
//! A path is relative to the project's root, with `/` between its parts. Bytes that are not UTF-8,
//! and the percent sign, are written as `%XX`. Everything else is unchanged. So every path has
//! exactly one text, and the text is UTF-8.

use std::{
    cmp::Ordering,
    path::{Component, Path, PathBuf},
};

use crate::system::portable::{OsStrExt, bytes_with_slashes, os_string};

/// Returns the text of a path or of a part of a path.
pub fn encode(path: &Path) -> String {
    let mut text = String::new();
    for chunk in bytes_with_slashes(path).utf8_chunks() {
        text.push_str(&chunk.valid().replace('%', "%25"));
        for byte in chunk.invalid() {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Returns the path for a text, or `None` if [`encode`] never writes that text.
pub fn decode(text: &str) -> Option<PathBuf> {
    // Only a percent sign has another meaning than itself.
    if !text.contains('%') {
        return Some(PathBuf::from(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    let path = PathBuf::from(os_string(bytes)?);
    (encode(&path) == text).then_some(path)
}

/// Compares two paths name by name, so that the content of a directory follows it directly.
pub fn path_order(one: &str, other: &str) -> Ordering {
    // No name contains a zero byte.
    let key = |byte: u8| if byte == b'/' { 0 } else { byte };
    one.bytes().map(key).cmp(other.bytes().map(key))
}

/// Maximum length of a path on Linux, without the final zero byte. [`MAX_NAME_BYTES`] is the
/// maximum length of one name in it.
const MAX_PATH_BYTES: usize = 4095;
const MAX_NAME_BYTES: usize = 255;
/// Maximum depth of nested directories in a backup. The work of a restore for a path grows with the
/// square of its depth.
const MAX_DEPTH: usize = 255;

/// Returns whether a relative path stays below its start on every system and is written in its
/// canonical form.
pub fn stays_below(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    let is_plain = path
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    // `a//b`, `a/./b` and `a/` are other texts for the same file.
    let is_canonical = encode(&path.components().collect::<PathBuf>()) == encode(path);
    // On Windows, `\` separates names and `C:` leads to another drive.
    let is_drive = matches!(bytes, [letter, b':', ..] if letter.is_ascii_alphabetic());
    let climbs = bytes
        .split(|byte| matches!(byte, b'/' | b'\\'))
        .any(|part| part == b"..");
    !bytes.is_empty()
        && is_plain
        && is_canonical
        && !is_drive
        && !climbs
        && bytes[0] != b'\\'
        && !is_too_long(path)
}

fn is_too_long(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    let has_long_name = path.iter().any(|name| name.len() > MAX_NAME_BYTES);
    bytes.len() > MAX_PATH_BYTES
        || bytes.contains(&0)
        || has_long_name
        || path.iter().nth(MAX_DEPTH).is_some()
}

/// Returns whether a link at `path` to `target` leads to a place below the start of `path`. Only
/// the names are considered: first up, then down. Going up again is refused, because a directory on
/// the way may be a link, and `..` would then lead elsewhere.
pub fn link_stays_below(path: &Path, target: &Path) -> bool {
    let mut depth = path.components().count().saturating_sub(1);
    let mut goes_down = false;
    for part in target.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(_) => goes_down = true,
            Component::ParentDir if depth > 0 && !goes_down => depth -= 1,
            _ => return false,
        }
    }
    !target.as_os_str().is_empty() && target.as_os_str().len() <= MAX_PATH_BYTES
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_plain_paths_below_stay_below() {
        for good in ["a", "a/b", ".kg/x y", "a\\b", "..a/b..", "é", "ab:c"] {
            assert!(stays_below(Path::new(good)), "{good}");
        }
        let bad = [
            "",
            "/",
            "/a",
            "..",
            "a/..",
            "../a",
            "a/../../b",
            ".",
            "a/.",
            "./a",
            "a//b",
            "a/",
            "C:\\x",
            "C:x",
            "c:/x",
            "\\\\host\\share",
            "\\x",
            "a\\..\\..\\b",
            "..\\x",
            "a\0b",
        ];
        for bad in bad {
            assert!(!stays_below(Path::new(bad)), "{bad:?}");
        }
    }

    #[test]
    fn a_link_may_lead_anywhere_below_and_nowhere_else() {
        let stays = |path: &str, target: &str| link_stays_below(Path::new(path), Path::new(target));
        assert!(
            stays(".kg/plugins/a", "b")
                && stays(".kg/plugins/a", "../../docs/./x")
                && stays("a", ".")
        );
        for target in [
            "../../../x",
            "/etc/passwd",
            "",
            "../../.kg/../../x",
            "b/../c",
        ] {
            assert!(!stays(".kg/plugins/a", target), "{target}");
        }
    }

    #[test]
    fn a_text_that_names_a_path_in_another_way_is_none() {
        for text in ["%", "%4", "%zz", "%2e%2e", "%2F", "%41", "caf%c3%a9", "50%"] {
            assert_eq!(decode(text), None, "{text}");
        }
        assert_eq!(encode(Path::new("50%/é")), "50%25/é");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_path_has_one_text(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let path = PathBuf::from(os_string(bytes).unwrap());
            prop_assert_eq!(decode(&encode(&path)), Some(path));
        }

        #[test]
        fn no_text_reads_as_a_path_of_another_text(text in "[a%2Ecf0-9é]{0,12}") {
            if let Some(path) = decode(&text) {
                prop_assert_eq!(encode(&path), text);
            }
        }
    }

    #[test]
    fn the_content_of_a_directory_follows_it_directly() {
        let mut paths = ["a.b", "a/b", "a", "a/b/c", "a-b", "a/b.c", "b", "aa"];
        paths.sort_by(|one, other| path_order(one, other));
        assert_eq!(
            paths,
            ["a", "a/b", "a/b/c", "a/b.c", "a-b", "a.b", "aa", "b"]
        );
    }
}
