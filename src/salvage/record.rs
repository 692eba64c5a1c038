//! Values of records, as far as they can be trusted.

use super::file::Encoding;
use crate::sqlite::format::record::{serial_types, size_of};

/// Number of consecutive zero bytes in a text that indicates a lost sector instead of real content.
const ZERO_RUN: usize = 8;

#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    Blob(&'a [u8]),
    /// Text that is invalid in the encoding of the database, or that contains the traces of a lost
    /// sector.
    DoubtfulText(&'a [u8]),
}

/// Decodes the values of a complete record. Returns `None` if the payload is not a valid record.
pub fn values(payload: &[u8], encoding: Encoding) -> Option<Vec<Value<'_>>> {
    let (types, mut at) = serial_types(payload, payload.len() as u64)?;
    let mut values = Vec::with_capacity(types.len());
    for serial in types {
        let length = usize::try_from(size_of(serial)?).ok()?;
        let bytes = payload.get(at..at.checked_add(length)?)?;
        at += length;
        values.push(match serial {
            0 => Value::Null,
            8 => Value::Integer(0),
            9 => Value::Integer(1),
            1..=6 => Value::Integer(integer(bytes)),
            7 => match f64::from_bits(integer(bytes) as u64) {
                // SQLite stores NULL instead of NaN.
                real if real.is_nan() => return None,
                real => Value::Real(real),
            },
            _ if serial.is_multiple_of(2) => Value::Blob(bytes),
            _ => text(bytes, encoding),
        });
    }
    Some(values)
}

/// Decodes a signed big-endian integer of up to eight bytes.
fn integer(bytes: &[u8]) -> i64 {
    let start = if bytes.first().is_some_and(|byte| byte & 0x80 != 0) {
        -1
    } else {
        0
    };
    bytes
        .iter()
        .fold(start, |value, byte| (value << 8) | i64::from(*byte))
}

fn text(bytes: &[u8], encoding: Encoding) -> Value<'_> {
    let decoded = match encoding {
        Encoding::Utf8 => std::str::from_utf8(bytes).ok().map(str::to_string),
        Encoding::Utf16Le => utf16(bytes, u16::from_le_bytes),
        Encoding::Utf16Be => utf16(bytes, u16::from_be_bytes),
    };
    match decoded {
        Some(text) if !has_zero_run(bytes) => Value::Text(text),
        _ => Value::DoubtfulText(bytes),
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Option<String> {
    let pairs = bytes.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    let units: Vec<u16> = pairs.map(|pair| unit([pair[0], pair[1]])).collect();
    String::from_utf16(&units).ok()
}

fn has_zero_run(bytes: &[u8]) -> bool {
    let mut run = 0;
    bytes.iter().any(|byte| {
        run = if *byte == 0 { run + 1 } else { 0 };
        run >= ZERO_RUN
    })
}
