//! Columns of text that fit the terminal.

use std::io::IsTerminal;

use terminal_size::{Width, terminal_size_of};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

const GAP: &str = "  ";
/// The narrowest last column. On a narrower terminal, lines wrap.
const MIN_LAST: usize = 8;

/// The alignment of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Returns the number of columns of the terminal; `None` if standard output is not a terminal.
pub fn width() -> Option<usize> {
    let out = std::io::stdout();
    let is_terminal = out.is_terminal();
    let (Width(columns), _) = terminal_size_of(out).filter(|_| is_terminal)?;
    Some(usize::from(columns))
}

/// Returns the lines of a table. The last column is cut off at `width`, if that is known.
pub fn lines<const N: usize>(
    columns: [Align; N],
    rows: &[[String; N]],
    width: Option<usize>,
) -> Vec<String> {
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.width()).max().unwrap_or(0)
    });
    let before: usize = widths
        .iter()
        .take(N.saturating_sub(1))
        .map(|width| width + GAP.len())
        .sum();
    let most = width.map(|width| width.saturating_sub(before).max(MIN_LAST));
    let line = |row: &[String; N]| {
        let mut text = String::new();
        for (place, ((cell, column), width)) in row.iter().zip(columns).zip(widths).enumerate() {
            if place + 1 == N {
                text.push_str(&cut(cell, most));
                break;
            }
            let fill = " ".repeat(width - cell.width().min(width));
            match column {
                Align::Left => text.extend([cell.as_str(), &fill, GAP]),
                Align::Right => text.extend([fill.as_str(), cell, GAP]),
            }
        }
        text.trim_end().to_string()
    };
    rows.iter().map(line).collect()
}

/// Returns a text of at most `most` columns.
fn cut(text: &str, most: Option<usize>) -> String {
    let Some(most) = most.filter(|most| text.width() > *most) else {
        return text.to_string();
    };
    let mut left = most.saturating_sub(1);
    let fits = |character: &char| {
        let width = character.width().unwrap_or(0);
        let is_in = width <= left;
        left = left.saturating_sub(width);
        is_in
    };
    let mut short: String = text.chars().take_while(fits).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(width: Option<usize>) -> Vec<String> {
        let row = |cells: [&str; 3]| cells.map(str::to_string);
        let rows = [
            row(["ID", "SIZE", "DESCRIPTION"]),
            row(["backup-1", "2.5 kB", "before the migration"]),
            row(["b", "100 B", "数据库"]),
        ];
        lines([Align::Left, Align::Right, Align::Left], &rows, width)
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        assert_eq!(
            table(None),
            [
                "ID          SIZE  DESCRIPTION",
                "backup-1  2.5 kB  before the migration",
                "b          100 B  数据库",
            ]
        );
    }

    #[test]
    fn the_last_column_fits_the_terminal() {
        assert_eq!(
            table(Some(30)),
            [
                "ID          SIZE  DESCRIPTION",
                "backup-1  2.5 kB  before the …",
                "b          100 B  数据库",
            ]
        );
        for line in table(Some(26)) {
            assert!(line.width() <= 26, "{line}");
        }
    }
}
