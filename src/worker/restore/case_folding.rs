//! Detects names that a file system treats as equal.
//!
//! If a file system ignores case or the composition of accents, two files of a backup could have
//! the same destination. The second would overwrite the first.

use std::{borrow::Cow, fs, path::Path};

use unicode_normalization::UnicodeNormalization;

/// The differences that the file system of a directory ignores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Folding {
    case: bool,
    composition: bool,
}

impl Folding {
    /// Probes the file system in a private directory of this restore. If a probe fails, the restore
    /// cannot unpack there either.
    pub fn of(dir: &Path) -> Self {
        let is_one = |made: &str, asked: &str| {
            let made = dir.join(made);
            let is_one = fs::write(&made, "").is_ok() && dir.join(asked).exists();
            let _ = fs::remove_file(&made);
            is_one
        };
        Folding {
            case: is_one("kg-case", "KG-CASE"),
            composition: is_one("kg-\u{e9}", "kg-e\u{301}"),
        }
    }

    /// Returns a key that is equal for names that the file system treats as equal.
    pub fn key<'a>(&self, name: &'a str) -> Cow<'a, str> {
        let name = if self.composition {
            Cow::Owned(name.nfc().collect())
        } else {
            Cow::Borrowed(name)
        };
        // To upper case and back, because some letters have two lower-case forms.
        if self.case {
            Cow::Owned(name.to_uppercase().to_lowercase())
        } else {
            name
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_exactly_where_the_file_system_says_so() {
        let exact = Folding {
            case: false,
            composition: false,
        };
        let folding = Folding {
            case: true,
            composition: true,
        };
        for (a, b) in [
            ("Notes.md", "notes.MD"),
            ("caf\u{e9}", "cafe\u{301}"),
            ("ΣΑΣ", "σας"),
            ("CAF\u{c9}", "cafe\u{301}"),
        ] {
            assert_eq!(folding.key(a), folding.key(b));
            assert_ne!(exact.key(a), exact.key(b));
        }
        assert_ne!(folding.key("a"), folding.key("b"));
    }

    #[test]
    fn the_file_system_itself_is_asked_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("kg-probe"), "").unwrap();
        let folds_case = dir.path().join("KG-PROBE").exists();
        assert_eq!(Folding::of(dir.path()).case, folds_case);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
