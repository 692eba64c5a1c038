//! Patterns for paths of a project: what a backup leaves out (`excludePatterns`, `--exclude`), and
//! what a restore selects (`paths`, `--path`).
//!
//! The syntax is that of a `.gitignore` file:
//!
//! * `*.tmp` matches a name anywhere.
//! * A pattern with a slash starts at the project's root, and a slash at its end matches only
//!   directories.
//! * A pattern that matches a directory covers everything in it.
//! * A later `!pattern` reverses an earlier match.
//!
//! In addition:
//!
//! * A pattern with a slash may also start at `.kg`: `plugins/x` matches `.kg/plugins/x`.
//! * A `./` at the beginning and `..` between names are resolved. An absolute path inside the
//!   project means that part of the project.
//! * A pattern that leads out of the project is refused. So is one that cannot match anything, such
//!   as an empty pattern or a comment.

use std::{
    cell::Cell,
    path::{Component, Path, PathBuf},
};

use globset::GlobBuilder;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::STATE_DIR;
use crate::{
    error::{Error, Result},
    system::paths::resolve,
};

/// Compiled patterns.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    each: Vec<Pattern>,
}

#[derive(Debug, Clone)]
struct Pattern {
    /// The pattern as the user gave it.
    text: String,
    /// The pattern starts with `!` and reverses earlier matches.
    is_negated: bool,
    /// The pattern relative to the root and, if it has a slash, also relative to the state
    /// directory.
    globs: Gitignore,
    has_matched: Cell<bool>,
}

impl Patterns {
    /// Compiles patterns. Messages name the option `option`. The project at `root` need not exist.
    /// Fails with `KG_INVALID_OPTION`.
    pub fn new(root: &Path, patterns: &[String], option: &str) -> Result<Self> {
        let each = patterns
            .iter()
            .map(|text| Pattern::new(root, text, option))
            .collect::<Result<_>>()?;
        Ok(Patterns { each })
    }

    /// Returns whether the patterns match `path`, which is relative to the project's root. The
    /// parents of `path` are not considered.
    pub fn name(&self, path: &Path, is_dir: bool) -> bool {
        self.verdict(path, is_dir) == Some(true)
    }

    /// Returns whether the patterns match `path` or a directory that contains it. The innermost
    /// match decides.
    pub fn take(&self, path: &Path, is_dir: bool) -> bool {
        let ancestors = path
            .ancestors()
            .enumerate()
            .filter(|(_, path)| *path != Path::new(""));
        ancestors
            .map(|(above, path)| self.verdict(path, is_dir || above > 0))
            .find_map(|verdict| verdict)
            == Some(true)
    }

    /// Returns the patterns that have matched nothing so far.
    pub fn unmatched(&self) -> impl Iterator<Item = &str> {
        self.each
            .iter()
            .filter(|pattern| !pattern.has_matched.get())
            .map(|pattern| pattern.text.as_str())
    }

    fn verdict(&self, path: &Path, is_dir: bool) -> Option<bool> {
        let mut verdict = None;
        for pattern in &self.each {
            if pattern.globs.matched(path, is_dir).is_ignore() {
                pattern.has_matched.set(true);
                verdict = Some(!pattern.is_negated);
            }
        }
        verdict
    }
}

impl Pattern {
    fn new(root: &Path, text: &str, option: &str) -> Result<Self> {
        let refused = |what: &str| {
            let remedy = "Write it as in a .gitignore file, for example `*.tmp`, `plugins/cache/` or `vectors/*.f32`";
            Error::invalid(
                format!("`{text}` in `{option}` is not a pattern: {what}"),
                remedy,
            )
        };
        if text.starts_with('#') {
            return Err(refused(
                "it is a comment; if a name begins with `#`, write `\\#`",
            ));
        }
        let (is_negated, body) = text
            .strip_prefix('!')
            .map_or((false, text), |body| (true, body));
        let body = body.trim_end();
        let inside = normalized(root, body).map_err(|what| refused(&what))?;
        if inside.is_empty() {
            return Err(refused("it matches nothing inside the project"));
        }
        let slash = if body.ends_with('/') { "/" } else { "" };
        // Like `a/name`, `/name` starts at the root. A name without a slash matches anywhere.
        let is_anchored = inside.contains('/') || body.starts_with('/') || inside == STATE_DIR;
        let mut lines = Vec::new();
        if !is_anchored || inside.starts_with("**/") {
            lines.push(format!("{inside}{slash}"));
        } else {
            lines.push(format!("/{inside}{slash}"));
            if inside.split('/').next() != Some(STATE_DIR) {
                lines.push(format!("/{STATE_DIR}/{inside}{slash}"));
            }
        }
        // A `.gitignore` file may contain an unclosed class, which is then a literal name. Here it
        // is an error.
        let syntax = GlobBuilder::new(&inside).literal_separator(true).build();
        syntax.map_err(|cause| refused(&cause.kind().to_string()))?;
        let mut builder = GitignoreBuilder::new(".");
        for line in lines {
            builder
                .add_line(None, &line)
                .map_err(|cause| refused(&cause.to_string()))?;
        }
        let globs = builder
            .build()
            .map_err(|cause| refused(&cause.to_string()))?;
        if globs.num_ignores() == 0 {
            return Err(refused("it matches nothing"));
        }
        Ok(Pattern {
            text: text.to_string(),
            is_negated,
            globs,
            has_matched: Cell::new(false),
        })
    }
}

/// Returns the pattern relative to the project's root, without `.`, `..`, and slashes at its ends.
/// The error says why the pattern is not valid.
fn normalized(root: &Path, body: &str) -> std::result::Result<String, String> {
    let outside = || format!("it leads out of the project at {}", root.display());
    let inside = if body.starts_with('/') {
        below_root(root, body).ok_or_else(outside)?
    } else {
        body.to_string()
    };
    let mut names: Vec<&str> = Vec::new();
    for name in inside.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop().ok_or_else(outside)?;
            }
            name => names.push(name),
        }
    }
    Ok(names.join("/"))
}

/// Returns a pattern that begins with a slash relative to the project's root. It is an absolute
/// path inside the project, or starts at the project's root as in a `.gitignore` file. Returns
/// `None` for an absolute path outside the project.
fn below_root(root: &Path, body: &str) -> Option<String> {
    if let Some(rest) = rest_below(root, body) {
        return Some(rest);
    }
    let (names, plain) = names_of(body);
    let first = names.first().filter(|_| plain > 0);
    let is_elsewhere = first.is_some_and(|first| {
        let inside = [root.join(first), root.join(STATE_DIR).join(first)];
        *first != STATE_DIR
            && !inside.iter().any(|path| path.exists())
            && Path::new("/").join(first).exists()
    });
    (!is_elsewhere).then(|| names.join("/"))
}

/// Returns the names of a pattern, and how many of them come before the first with a wildcard.
/// Those names form a path.
fn names_of(body: &str) -> (Vec<&str>, usize) {
    let is_plain = |name: &&str| !name.contains(['*', '?', '[', '{', '\\']);
    let names: Vec<&str> = body.split('/').filter(|name| !name.is_empty()).collect();
    let plain = names.iter().copied().take_while(is_plain).count();
    (names, plain)
}

/// Returns the part of an absolute path that comes after the directory `root`, or `None` if the
/// path is not inside it.
fn rest_below(root: &Path, body: &str) -> Option<String> {
    let (names, plain) = names_of(body);
    let path: PathBuf = Path::new("/").join(names[..plain].iter().collect::<PathBuf>());
    // The last name is not resolved: if it is a link, the pattern means the link itself.
    let resolved = path
        .parent()
        .map(resolve)
        .unwrap_or_default()
        .join(path.file_name().unwrap_or_default());
    let is_absolute = root
        .components()
        .any(|part| matches!(part, Component::Normal(_)));
    let rest = [(&path, root.to_path_buf()), (&resolved, resolve(root))]
        .into_iter()
        .find_map(|(path, root)| path.strip_prefix(root).ok().filter(|_| is_absolute))?;
    Some([&[rest.to_str()?], &names[plain..]].concat().join("/"))
}

/// Makes an absolute path inside the project at `root` relative and returns any other pattern
/// unchanged. A pattern with the path of the saved project then has the same meaning in the project
/// that is restored.
pub fn relative(root: &Path, text: &str) -> String {
    let (sign, body) = text
        .strip_prefix('!')
        .map_or(("", text), |body| ("!", body));
    let rest = body
        .starts_with('/')
        .then(|| rest_below(root, body.trim_end()))
        .flatten();
    match rest.filter(|rest| !rest.is_empty()) {
        // The leading slash keeps the pattern anchored at the root.
        Some(rest) => format!(
            "{sign}/{rest}{}",
            if body.trim_end().ends_with('/') {
                "/"
            } else {
                ""
            }
        ),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(pattern: &str, path: &str) -> bool {
        let patterns =
            Patterns::new(Path::new("/srv/project"), &[pattern.to_string()], "paths").unwrap();
        patterns.take(Path::new(path), false)
    }

    #[test]
    fn a_pattern_may_start_anywhere_at_the_root_or_at_the_state_directory() {
        for pattern in [
            "plugins/glossary/**",
            "plugins/glossary",
            "plugins/glossary/",
            "glossary/",
            "terms.json",
            ".kg/plugins/*/terms.json",
            "/plugins",
            "/.kg/plugins",
            ".kg",
            "./plugins/glossary",
            "./plugins",
            "./.kg/./plugins",
            "plugins/other/../glossary",
            "/srv/project/.kg/plugins/glossary",
            "/srv/project/.kg/plugins/*/terms.json",
            "/srv/project/.kg/plugins/",
            "**/terms.*",
        ] {
            assert!(
                takes(pattern, ".kg/plugins/glossary/terms.json"),
                "{pattern}"
            );
        }
        for pattern in [
            "/terms.json",
            "plugins/*.json",
            "plugins/gloss",
            "terms.json/",
            "/srv/project/plugins/other",
        ] {
            assert!(
                !takes(pattern, ".kg/plugins/glossary/terms.json"),
                "{pattern}"
            );
        }
        assert!(takes("data/graph.db", "data/graph.db") && takes("50%", ".kg/50%"));
    }

    #[test]
    fn what_is_no_pattern_or_leads_out_of_the_project_is_refused() {
        for (pattern, what) in [
            ("", "matches nothing inside the project"),
            ("/", "matches nothing inside the project"),
            ("./", "matches nothing inside the project"),
            ("!", "matches nothing inside the project"),
            ("a[", "is not a pattern"),
            ("{b", "is not a pattern"),
            ("# all", "comment"),
            ("../other/x", "leads out"),
            ("plugins/../../x", "leads out"),
            ("/etc/passwd", "leads out"),
            ("/srv/project/../other", "leads out"),
            ("/srv/project", "matches nothing inside the project"),
        ] {
            let error = Patterns::new(Path::new("/srv/project"), &[pattern.to_string()], "paths")
                .unwrap_err();
            assert_eq!(error.code.as_str(), "KG_INVALID_OPTION");
            assert!(error.message.contains(what), "{pattern}: {}", error.message);
        }
    }

    #[test]
    fn the_last_pattern_decides_and_those_that_matched_nothing_are_known() {
        let all = ["*.tmp", "!keep.tmp", "plugins/none"].map(String::from);
        let patterns = Patterns::new(Path::new("/srv/project"), &all, "excludePatterns").unwrap();
        assert!(
            patterns.name(Path::new(".kg/a.tmp"), false)
                && !patterns.name(Path::new(".kg/keep.tmp"), false)
        );
        assert_eq!(patterns.unmatched().collect::<Vec<_>>(), ["plugins/none"]);
    }

    #[test]
    fn an_absolute_path_of_the_saved_project_is_the_same_part_of_any_other_directory() {
        let root = Path::new("/srv/project");
        for (given, expected) in [
            ("/srv/project/.kg/plugins/", "/.kg/plugins/"),
            ("!/srv/project/.kg/vectors/*.f32", "!/.kg/vectors/*.f32"),
            ("/srv/other/x", "/srv/other/x"),
            ("plugins/x", "plugins/x"),
            ("/srv/project", "/srv/project"),
        ] {
            assert_eq!(relative(root, given), expected);
        }
    }

    #[test]
    fn an_absolute_path_through_a_link_is_inside_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let root = dunce::canonicalize(dir.path()).unwrap().join("real");
        std::fs::create_dir_all(root.join(".kg/plugins")).unwrap();
        std::os::unix::fs::symlink(&root, dir.path().join("link")).unwrap();
        let through = dir.path().join("link/.kg/plugins/x").display().to_string();
        let patterns = Patterns::new(&root, &[through], "paths").unwrap();
        assert!(patterns.take(Path::new(".kg/plugins/x/y"), false));
    }
}
