//! `messages.txt` next to this file lists every message of the source with its code, so that all
//! messages can be proofread together. To regenerate it:
//! `KG_WRITE_REFERENCE=1 cargo test --test integration messages`.

use std::{
    env,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The functions that make errors of one code. `::` begins the name of an associated function.
const CONSTRUCTORS: [(&str, &str); 7] = [
    ("::damaged", "DatabaseDamaged"),
    ("::internal", "Internal"),
    ("backup_not_found", "BackupNotFound"),
    ("checksum_mismatch", "ChecksumMismatch"),
    ("in_the_way", "TargetInvalid"),
    ("not_a_backup", "NotABackup"),
    ("unsafe_file", "UnsafeFile"),
];

#[test]
fn the_list_of_messages_is_up_to_date() {
    let mut expected = String::new();
    for (name, lines) in messages() {
        writeln!(expected, "{name}\n{lines}").unwrap();
    }
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/messages.txt");
    if env::var_os("KG_WRITE_REFERENCE").is_some() {
        fs::write(&list, &expected).unwrap();
    }
    assert!(
        fs::read_to_string(&list).unwrap_or_default() == expected,
        "messages.txt is stale: proofread what changed, then run \
         KG_WRITE_REFERENCE=1 cargo test --test integration messages"
    );
}

/// The core names options as the API does. Only the command line knows its flags, and translates.
#[test]
fn only_the_command_line_and_the_service_name_flags() {
    let mut wrong = Vec::new();
    for (name, lines) in messages() {
        let is_face = name.starts_with("src/cli/") || name.starts_with("src/service/");
        for line in lines.lines().filter(|_| !is_face) {
            if names_flag(line) {
                wrong.push(format!("{name}: {}", line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_flag_of_a_command_is_not_a_flag_alone() {
    for line in [
        "raise it (`--lock-timeout`)",
        "see `kg diag verify` and use `--list`",
        "use --exclude to leave it out",
    ] {
        assert!(names_flag(line), "{line}");
    }
    for line in [
        "run `kg diag restore --file latest --path 'a'`",
        "name it: kg diag repair '{}' --project '{}'",
        "-- nothing -",
    ] {
        assert!(!names_flag(line), "{line}");
    }
}

/// Returns whether a message names a flag outside of a command of `kg`.
fn names_flag(message: &str) -> bool {
    message.match_indices("--").any(|(at, _)| {
        let is_flag = message[at + 2..].starts_with(|letter: char| letter.is_ascii_lowercase());
        let before = message[..at].rsplit('`').next().unwrap_or_default();
        is_flag && !before.contains("kg ")
    })
}

/// Returns the name of each file that has messages, and one line for each message.
fn messages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let of_file = |file: PathBuf| {
        let text = fs::read_to_string(&file).unwrap();
        let mut found = Messages::default();
        found.read(text.parse::<TokenStream>().unwrap(), None);
        let name = file.strip_prefix(root).unwrap().display().to_string();
        (name, found.lines)
    };
    let all = sources(&root.join("src")).into_iter().map(of_file);
    all.filter(|(_, lines)| !lines.is_empty()).collect()
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    let of = |path: PathBuf| match path.file_stem().and_then(|stem| stem.to_str()) {
        Some(name) if name.ends_with("tests") => Vec::new(),
        _ if path.is_dir() => sources(&path),
        _ => vec![path],
    };
    entries.into_iter().flat_map(of).collect()
}

#[derive(Default)]
struct Messages {
    /// One message per line, with its code.
    lines: String,
}

impl Messages {
    /// Reads the tokens of a block. `code` is the code that the enclosing blocks name.
    fn read(&mut self, tokens: TokenStream, code: Option<&str>) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        for (at, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Group(group) => {
                    let is_attribute = group.delimiter() == Delimiter::Bracket
                        && at > 0
                        && matches!(&tokens[at - 1], TokenTree::Punct(punct) if "#!".contains(punct.as_char()));
                    if is_attribute || is_of_test(&tokens[..at]) {
                        continue;
                    }
                    let nearest = nearest_code(&tokens, at).or(code.map(str::to_string));
                    self.read(group.stream(), nearest.as_deref());
                }
                TokenTree::Literal(literal) => {
                    let text = literal.to_string();
                    if is_message(&text) {
                        let nearest = nearest_code(&tokens, at).or(code.map(str::to_string));
                        let code = nearest.unwrap_or_default();
                        let message = unfolded(&text);
                        writeln!(self.lines, "  {code:<18} {message}").unwrap();
                    }
                }
                _ => {}
            }
        }
    }
}

/// Returns whether the block that follows is a module of tests.
fn is_of_test(before: &[TokenTree]) -> bool {
    let mut last = before.iter().rev();
    let name = last.next();
    let keyword = last.next();
    matches!((keyword, name), (Some(TokenTree::Ident(keyword)), Some(TokenTree::Ident(name)))
        if keyword == "mod" && name.to_string().ends_with("tests"))
}

/// Returns the code that is nearest to a token of the same block, before or after it.
fn nearest_code(tokens: &[TokenTree], at: usize) -> Option<String> {
    let codes = codes(tokens);
    let is_near = |place: usize| place.abs_diff(at);
    codes
        .into_iter()
        .min_by_key(|(place, _)| is_near(*place))
        .map(|(_, code)| code)
}

fn codes(tokens: &[TokenTree]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(name) if name.to_string().ends_with("Code") => {
                if let Some(TokenTree::Ident(code)) = tokens.get(at + 3) {
                    found.push((at, code.to_string()));
                }
            }
            TokenTree::Ident(name) => {
                let before = at.checked_sub(1).map(|before| tokens[before].to_string());
                let name = match before.as_deref() {
                    Some("fn") => continue,
                    Some(":") => format!("::{name}"),
                    _ => name.to_string(),
                };
                let code = CONSTRUCTORS.iter().find(|(of, _)| *of == name);
                found.extend(code.map(|(_, code)| (at, code.to_string())));
            }
            TokenTree::Group(group) if group.delimiter() == Delimiter::Parenthesis => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                found.extend(codes(&inner).into_iter().map(|(_, code)| (at, code)));
            }
            _ => {}
        }
    }
    found
}

/// Returns whether a literal is text for people: more than two words, and not SQL.
fn is_message(literal: &str) -> bool {
    let text = literal.trim_start_matches(['b', 'r', '#']);
    let words = text
        .split_whitespace()
        .filter(|word| word.chars().any(char::is_alphabetic));
    !literal.starts_with('b')
        && text.starts_with('"')
        && words.count() > 2
        && !is_sql(text.trim_start_matches('"').trim_start())
}

fn is_sql(text: &str) -> bool {
    [
        "SELECT", "INSERT", "CREATE", "PRAGMA", "DELETE", "UPDATE", "WITH ", "ALTER", "DROP",
        "ATTACH", "BEGIN",
    ]
    .iter()
    .any(|keyword| text.starts_with(keyword))
}

/// Returns the text of a literal on one line.
fn unfolded(literal: &str) -> String {
    let text = literal.trim_start_matches(['r', '#']).trim_end_matches('#');
    let text = text.trim_matches('"');
    let lines: Vec<&str> = text
        .lines()
        .map(|line| line.trim_start().trim_end_matches('\\'))
        .collect();
    lines.join("")
}
