//! Records: the rows inside cells (<https://www.sqlite.org/fileformat2.html#record_format>).
//!
//! SQLite writes a record without gaps. The header gives the length of each value, and header and
//! values together are as long as the payload. Bytes whose lengths do not add up are not a record.
//! This distinguishes rows from noise.

use super::btree::varint;

/// More columns than any build of SQLite allows.
const MAX_FIELDS: usize = 32_767;

/// The classes of values. They allow a record to be compared with the columns of a table without
/// reading its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Null,
    Integer,
    Real,
    Text,
    Blob,
}

/// Returns the serial types of a record that starts with `bytes`, and the length of its header.
/// Returns `None` if the lengths do not add up to `payload_bytes`, or if the header continues
/// beyond `bytes`.
pub fn serial_types(bytes: &[u8], payload_bytes: u64) -> Option<(Vec<u64>, usize)> {
    let mut types = Vec::new();
    let header = fields(bytes, payload_bytes, |serial, _| types.push(serial))?;
    Some((types, header))
}

/// Calls `visit` with the serial type and the offset of each value of a record. Returns the length
/// of the header, or `None` as [`serial_types`] does. `visit` may have been called before a `None`.
pub fn fields(bytes: &[u8], payload_bytes: u64, mut visit: impl FnMut(u64, u64)) -> Option<usize> {
    let (header, mut at) = varint(bytes)?;
    let header = usize::try_from(header)
        .ok()
        .filter(|header| *header >= at && *header <= bytes.len())?;
    let (mut value, mut count) = (header as u64, 0);
    while at < header {
        let (serial, length) = varint(&bytes[at..header])?;
        visit(serial, value);
        value = value.checked_add(size_of(serial)?)?;
        at += length;
        count += 1;
        if count > MAX_FIELDS {
            return None;
        }
    }
    (value == payload_bytes).then_some(header)
}

/// Returns the size in bytes of a value of that serial type. Returns `None` for the two types that
/// are never written.
pub fn size_of(serial: u64) -> Option<u64> {
    match serial {
        0 | 8 | 9 => Some(0),
        1..=4 => Some(serial),
        5 => Some(6),
        6 | 7 => Some(8),
        10 | 11 => None,
        _ => Some((serial - 12) / 2),
    }
}

pub fn class_of(serial: u64) -> Class {
    match serial {
        0 => Class::Null,
        7 => Class::Real,
        1..=9 => Class::Integer,
        _ if serial.is_multiple_of(2) => Class::Blob,
        _ => Class::Text,
    }
}
