//! The folders of `src` are layers. Each may import itself and the folders below it in the table of
//! `src/lib.rs`. The faces, which are the first row, do not import each other. Tests may use anything.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Returns the rows of the table in `src/lib.rs`, from top to bottom.
fn layers() -> Vec<Vec<String>> {
    let text = include_str!("../../src/lib.rs");
    let rows = text
        .lines()
        .filter_map(|line| line.strip_prefix("//! | [")?.split(" | ").next());
    rows.map(|names| {
        let names = names.split('`').skip(1).step_by(2);
        names.map(str::to_string).collect()
    })
    .collect()
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "tests" {
            files(&path, found);
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// Returns the first name of each path in a use tree: `a` and `c` for `a::b, c::{d, e}`.
fn first_names(tree: &str) -> Vec<String> {
    let (mut names, mut name, mut depth, mut is_done) = (Vec::new(), String::new(), 0, false);
    for letter in tree.chars().chain([',']) {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(std::mem::take(&mut name));
                is_done = false;
            }
            ':' if depth == 0 => is_done = true,
            letter if depth == 0 && !is_done && (letter.is_alphanumeric() || letter == '_') => {
                name.push(letter)
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Returns the names after `crate::` in a file, without its comments and its tests.
fn imports(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(tree) => {
                let mut depth = 1;
                let end = tree.find(|letter| {
                    depth += i32::from(letter == '{') - i32::from(letter == '}');
                    depth == 0
                });
                found.extend(first_names(&tree[..end.unwrap_or(tree.len())]));
            }
            None => found.extend(first_names(
                &rest[..rest
                    .find(|letter: char| !letter.is_alphanumeric() && letter != '_')
                    .unwrap_or(rest.len())],
            )),
        }
    }
    found
}

/// Returns the height of a layer above the lowest one.
fn level(layers: &[Vec<String>], layer: &str) -> Option<usize> {
    layers
        .iter()
        .rev()
        .position(|names| names.iter().any(|name| name == layer))
}

#[test]
fn no_layer_imports_one_above_it() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let layers = layers();
    assert_eq!(layers[0], ["cli", "node"]);
    let mut all = Vec::new();
    files(&source, &mut all);
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for path in all {
        let place = path.strip_prefix(&source).unwrap();
        let layer = place
            .iter()
            .next()
            .unwrap()
            .to_string_lossy()
            .trim_end_matches(".rs")
            .to_string();
        if ["lib", "main"].contains(&layer.as_str()) {
            continue;
        }
        let Some(own) = level(&layers, &layer) else {
            wrong.push(format!("{} is in no layer", place.display()));
            continue;
        };
        for import in imports(&fs::read_to_string(&path).unwrap()) {
            // `Code`, `Error` and `Result` are re-exported by lib.rs from `error`.
            let of = if import.starts_with(char::is_uppercase) {
                "error"
            } else {
                import.as_str()
            };
            checked += 1;
            match level(&layers, of) {
                Some(other) if other < own || of == layer => {}
                Some(_) => wrong.push(format!(
                    "{} imports {import}, which is not below {layer}",
                    place.display()
                )),
                None => wrong.push(format!(
                    "{} imports {import}, which is no layer",
                    place.display()
                )),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 500, "only {checked} imports were found");
}

#[test]
fn imports_are_found_in_every_form() {
    let text = "use crate::{\n    a::{self, b},\n    c,\n};\nuse crate::d::e;\nlet x = crate::f::g(); // crate::no\n// crate::not\npub use crate::Error;\n#[cfg(test)]\nmod tests { use crate::hidden; }";
    assert_eq!(imports(text), ["a", "c", "d", "f", "no", "Error"]);
}
