//! Numbers in sentences.

/// Returns a number with its noun, such as `1 backup`, `2 backups` or `0 entries`.
pub fn count(number: impl TryInto<u64>, noun: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    let plural = match noun.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{noun}s"),
    };
    format!("{number} {}", agree(number, noun, &plural))
}

/// Returns `one` for the number 1, and `many` for every other number.
pub fn agree<'a>(number: impl TryInto<u64>, one: &'a str, many: &'a str) -> &'a str {
    if number.try_into().is_ok_and(|number| number == 1) {
        one
    } else {
        many
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_noun_agrees_with_its_number() {
        assert_eq!(
            [0, 1, 2].map(|n| count(n, "backup")),
            ["0 backups", "1 backup", "2 backups"]
        );
        assert_eq!([1, 2].map(|n| count(n, "entry")), ["1 entry", "2 entries"]);
        assert_eq!(
            [1, 2].map(|n| agree(n, "belongs", "belong")),
            ["belongs", "belong"]
        );
    }
}
