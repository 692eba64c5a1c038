//! Reads the `CREATE VIRTUAL TABLE` statement of an FTS5 table.
//!
//! FTS5 accepts abbreviated options, and quotes nearly everywhere. This parser accepts only what
//! people usually write, and rejects everything else.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    /// The text without its quotes.
    Quoted(&'a str),
    Mark(char),
}

use Token::{Mark, Quoted, Word};

/// Returns whether the statement creates an FTS5 table with external content or none. Options that
/// change the format of the index must be absent.
pub fn is_understood(sql: &str) -> bool {
    let Some(tokens) = tokens(sql) else {
        return false;
    };
    let [
        Word(create),
        Word(kind),
        Word(table),
        Word(_) | Quoted(_),
        Word(using),
        Word(module),
        Mark('('),
        arguments @ ..,
        Mark(')'),
    ] = tokens.as_slice()
    else {
        return false;
    };
    let words = [create, kind, table, using, module].map(|word| word.to_ascii_lowercase());
    words == ["create", "virtual", "table", "using", "fts5"] && has_content_elsewhere(arguments)
}

fn has_content_elsewhere(arguments: &[Token]) -> bool {
    let mut contents = 0;
    for argument in arguments.split(|token| *token == Mark(',')) {
        match argument {
            [Word(key), Mark('='), value] if !matches!(value, Mark(_)) => {
                match key.to_ascii_lowercase().as_str() {
                    "content" => contents += 1,
                    "content_rowid" | "tokenize" | "prefix" | "columnsize" => {}
                    "detail" if is_full(value) => {}
                    _ => return false,
                }
            }
            // A column.
            [_, ..] if !argument.iter().any(|token| matches!(token, Mark(_))) => {}
            _ => return false,
        }
    }
    contents == 1
}

fn is_full(detail: &Token) -> bool {
    matches!(detail, Word(value) | Quoted(value) if value.eq_ignore_ascii_case("full"))
}

fn tokens(sql: &str) -> Option<Vec<Token<'_>>> {
    let mut tokens = Vec::new();
    let mut rest = sql.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' | '\'' | '`' => quoted_length(rest, first)?,
            '[' => rest.find(']')? + 1,
            _ if is_of_word(first) => rest.find(|other| !is_of_word(other)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        tokens.push(match first {
            '"' | '\'' | '`' | '[' => Quoted(token.get(1..length - 1)?),
            _ if is_of_word(first) => Word(token),
            _ => Mark(first),
        });
        rest = after.trim_start();
    }
    Some(tokens)
}

/// Returns the length of a quoted text, including its quotes. A quote inside the text is doubled.
fn quoted_length(text: &str, quote: char) -> Option<usize> {
    let mut at = 1;
    loop {
        at += text.get(at..)?.find(quote)? + 1;
        if !text.get(at..)?.starts_with(quote) {
            return Some(at);
        }
        at += 1;
    }
}

fn is_of_word(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_' || !letter.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_elsewhere_is_understood_and_everything_that_changes_the_format_is_not() {
        let understood = [
            "CREATE VIRTUAL TABLE f USING fts5(a, content=notes)",
            "CREATE VIRTUAL TABLE \"a \"\"b\"\"\" USING FTS5(title, content UNINDEXED, content='notes', content_rowid='rowid')",
            "CREATE VIRTUAL TABLE [f] using fts5 (a, b, Content = '', tokenize = \"porter unicode61\", prefix='2 3', detail=full)",
            "CREATE VIRTUAL TABLE f USING fts5(a, content='it''s, (here)', columnsize=0)",
        ];
        assert!(understood.into_iter().all(is_understood));
        let not = [
            "CREATE VIRTUAL TABLE f USING fts5(a)",
            "CREATE VIRTUAL TABLE f USING fts5(a, content)",
            "CREATE VIRTUAL TABLE f USING fts5(a, c='')",
            "CREATE VIRTUAL TABLE f USING fts5(a, content='', content='')",
            "CREATE VIRTUAL TABLE f USING fts5(a, content='', contentless_delete=1)",
            "CREATE VIRTUAL TABLE f USING fts5(a, content='', contentless_unindexed=1)",
            "CREATE VIRTUAL TABLE f USING fts5(a, content='', detail=none)",
            "CREATE VIRTUAL TABLE f USING fts5(a, content='', detail='column')",
            "CREATE VIRTUAL TABLE f USING fts5(a, content='', d=none)",
            "CREATE VIRTUAL TABLE f USING fts5(a, content='', \"detail\"=none)",
            "CREATE VIRTUAL TABLE f USING fts5(a, content='', tokendata=1)",
            "CREATE VIRTUAL TABLE f USING fts5(a -- , content=''\n)",
            "CREATE VIRTUAL TABLE f USING fts5(a /*, content='' */)",
            "CREATE VIRTUAL TABLE f USING fts5(a, content=''",
            "CREATE VIRTUAL TABLE f USING fts5(a, content=')",
            "CREATE VIRTUAL TABLE f USING fts4(a, content='')",
            "CREATE VIRTUAL TABLE \"f USING fts5(a, content='')\" USING fts3(a)",
            "CREATE TABLE f (a)",
            "",
        ];
        assert!(!not.into_iter().any(is_understood));
    }
}
