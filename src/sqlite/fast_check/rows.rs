//! Checks whether SQLite would accept a row: a record whose lengths add up, in which every value is
//! allowed in its column.

use crate::sqlite::{
    format::{
        btree::Cell,
        record::{Class, class_of, fields, size_of},
    },
    row_schema::{Affinity, Column, RowSchema},
};

const EMPTY_TEXT: u64 = 13;

/// Returns whether SQLite would certainly accept the row. Returns `false` if the part of it in
/// `page` is not enough to be certain.
pub fn is_plain(page: &[u8], cell: &Cell, shape: &RowSchema, is_utf8: bool) -> bool {
    let local = cell.local(page);
    let mut columns = shape.columns.iter();
    let (mut is_plain, mut has_values) = (true, false);
    let record = fields(local, cell.payload_bytes, |serial, start| {
        has_values = true;
        is_plain = is_plain
            && columns.next().is_some_and(|column| {
                let start = local.len().min(start as usize);
                let size = size_of(serial)
                    .unwrap_or(0)
                    .min((local.len() - start) as u64) as usize;
                column.is_rowid
                    || is_plain_value(column, serial, &local[start..start + size], is_utf8)
            });
    });
    record.is_some() && has_values && is_plain && columns.all(may_lack)
}

/// Returns whether a value is allowed in its column. `value` may be cut off.
fn is_plain_value(column: &Column, serial: u64, value: &[u8], is_utf8: bool) -> bool {
    match (class_of(serial), column.affinity) {
        (Class::Null, _) => !column.not_null,
        (Class::Integer | Class::Real, Affinity::Text) => false,
        // SQLite treats a value that is not a number (NaN) as NULL.
        (Class::Real, _) => !column.not_null || is_finite(value),
        // If the type of a column is an empty name, nothing shows that the column is numeric.
        (Class::Text, affinity) => {
            affinity == Affinity::Text || serial == EMPTY_TEXT || (is_utf8 && is_no_number(value))
        }
        _ => true,
    }
}

/// Returns whether a record may lack the column because it was written before the column was added.
/// SQLite uses the default value then.
fn may_lack(column: &Column) -> bool {
    column.is_rowid
        || (!column.not_null && (!column.has_default || column.affinity == Affinity::Blob))
}

fn is_finite(value: &[u8]) -> bool {
    value
        .try_into()
        .is_ok_and(|bytes| f64::from_bits(u64::from_be_bytes(bytes)).is_finite())
}

/// Returns whether a text contains a character that no number contains, or a sign after a digit, as
/// dates do. SQLite reads a text only up to a zero byte, so the result is `false` if there is one.
fn is_no_number(text: &[u8]) -> bool {
    let is_of_number =
        |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E' | b' ' | 9..=13);
    let has_sign_within = |pair: &[u8]| pair[0].is_ascii_digit() && matches!(pair[1], b'+' | b'-');
    !text.contains(&0) && (!text.iter().all(is_of_number) || text.windows(2).any(has_sign_within))
}
