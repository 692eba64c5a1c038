//! The text form of digests.

/// Returns lower-case hexadecimal digits.
pub fn hex(digest: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits =
        |byte: &u8| [byte >> 4, byte & 15].map(|digit| char::from(DIGITS[usize::from(digit)]));
    digest.iter().flat_map(digits).collect()
}
