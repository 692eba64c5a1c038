//! Writes the blocks of a deflate stream.

use super::{
    PART_BYTES,
    huffman::{self, Code},
    split::{Block, MAX_BLOCKS, blocks},
    tokens::{
        DISTANCE_CODES, END, LENGTHS, LITERAL_CODES, MAX_LENGTH, Token, Tokens, distance_rest_bits,
    },
};

/// Maximum length of the codes for literals and distances. [`MAX_LENGTH_CODE_BITS`] is the maximum
/// length of the codes that encode those lengths.
const MAX_CODE_BITS: usize = 15;
const MAX_LENGTH_CODE_BITS: usize = 7;
/// An upper bound for the size of a part. A literal takes at most 15 bits, and the codes of a block
/// take some hundred bytes.
const MAX_PART_BYTES: usize = 2 * PART_BYTES + MAX_BLOCKS * 512;
const WORD_BYTES: usize = 8;
/// Largest content of a stored block (RFC 1951, 3.2.4).
const MAX_STORED_BYTES: usize = 65_535;
/// Largest overhead of a stored block.
const STORED_HEAD_BYTES: usize = 5;
const STORED: u64 = 0;
const DYNAMIC: u64 = 2;

/// Number of codes that encode code lengths. A code stands for one length or for a run of equal
/// lengths, whose size takes extra bits.
const LENGTH_CODES: usize = 19;
const REPEAT: RowKind = RowKind {
    code: 16,
    rows: 3..=6,
    rest_bits: 2,
};
const SHORT_ZEROS: RowKind = RowKind {
    code: 17,
    rows: 3..=10,
    rest_bits: 3,
};
const LONG_ZEROS: RowKind = RowKind {
    code: 18,
    rows: 11..=138,
    rest_bits: 7,
};
/// The order in which a stream lists the lengths of these codes (RFC 1951, 3.2.7).
const LENGTH_CODE_ORDER: [usize; LENGTH_CODES] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];

struct RowKind {
    code: u8,
    rows: std::ops::RangeInclusive<usize>,
    rest_bits: u32,
}

/// A stream that is being written.
pub struct Bits<'a> {
    out: &'a mut Vec<u8>,
    end: End,
}

/// The current end of a stream.
#[derive(Clone, Copy)]
struct End {
    /// Position of the first incomplete byte.
    at: usize,
    /// Bits of that byte, lowest first. Between two writes there are fewer than eight.
    held: u64,
    held_bits: u32,
}

impl End {
    /// Adds bits. At most 56 bits may be added between two calls of [`End::store`].
    #[inline(always)]
    fn add(&mut self, bits: u64, count: u32) {
        self.held |= bits << self.held_bits;
        self.held_bits += count;
    }

    #[inline(always)]
    fn store(&mut self, out: &mut [u8]) {
        out[self.at..self.at + WORD_BYTES].copy_from_slice(&self.held.to_le_bytes());
        self.at += self.held_bits as usize / 8;
        self.held >>= self.held_bits & !7;
        self.held_bits %= 8;
    }
}

impl<'a> Bits<'a> {
    /// Starts a stream at the end of `out`.
    pub fn after(out: &'a mut Vec<u8>) -> Self {
        let end = End {
            at: out.len(),
            held: 0,
            held_bits: 0,
        };
        Bits { out, end }
    }

    /// Fills the last byte with zero bits.
    pub fn finish(mut self) {
        self.fill_byte();
        self.out.truncate(self.end.at);
    }

    /// Writes a part of the content, whose tokens are `found`. The part is compressed unless that
    /// takes more room.
    pub fn part(&mut self, found: Tokens<'_>, part: &[u8], is_last: bool) {
        let before = self.end;
        self.out.resize(before.at + MAX_PART_BYTES + WORD_BYTES, 0);
        let mut blocks = blocks(found).into_iter().peekable();
        while let Some(block) = blocks.next() {
            self.compressed(&block, is_last && blocks.peek().is_none());
        }
        let stored_bytes =
            part.len() + part.len().div_ceil(MAX_STORED_BYTES).max(1) * STORED_HEAD_BYTES;
        if self.end.at - before.at > stored_bytes {
            self.end = before;
            self.stored(part, is_last);
        }
    }

    /// Writes stored blocks. An empty part becomes one block too.
    fn stored(&mut self, mut part: &[u8], is_last: bool) {
        loop {
            let (piece, after) = part.split_at(part.len().min(MAX_STORED_BYTES));
            self.put(u64::from(is_last && after.is_empty()) | STORED << 1, 3);
            self.fill_byte();
            let length = piece.len() as u64;
            self.put(length | (!length & 0xffff) << 16, 32);
            self.out[self.end.at..self.end.at + piece.len()].copy_from_slice(piece);
            self.end.at += piece.len();
            part = after;
            if part.is_empty() {
                break;
            }
        }
    }

    /// Writes a block with codes of its own.
    fn compressed(&mut self, block: &Block<'_>, is_last: bool) {
        let literal_lengths = huffman::lengths(&block.counts.literals, MAX_CODE_BITS);
        let distance_lengths = huffman::lengths(&block.counts.distances, MAX_CODE_BITS);
        self.put(u64::from(is_last) | DYNAMIC << 1, 3);
        self.codes(&literal_lengths, &distance_lengths);
        let whats = whats(&huffman::codes(&literal_lengths));
        let distances = distances(&huffman::codes(&distance_lengths));
        let mut end = self.end;
        for token in block.tokens {
            let what = whats[token.what()];
            let distance = distances[token.distance_code()];
            let rest = u64::from(token.distance_rest()) << distance.code_bits;
            // These are at most 20 and 28 bits, in addition to the at most 7 bits that are left
            // over.
            let bits = u64::from(what.bits) | (rest | u64::from(distance.bits)) << what.count;
            end.add(bits, what.count + u32::from(distance.count));
            end.store(self.out);
        }
        self.end = end;
        let end_of_block = whats[END];
        self.put(end_of_block.bits.into(), end_of_block.count);
    }

    /// Writes the lengths of the codes that follow (RFC 1951, 3.2.7).
    fn codes(&mut self, literals: &[u8; LITERAL_CODES], distances: &[u8; DISTANCE_CODES]) {
        let up_to_last = |lengths: &[u8], least: usize| {
            lengths
                .iter()
                .rposition(|length| *length > 0)
                .map_or(least, |last| least.max(last + 1))
        };
        let (literal_count, distance_count) = (up_to_last(literals, 257), up_to_last(distances, 1));
        let lengths = [&literals[..literal_count], &distances[..distance_count]].concat();
        let rows = rows(&lengths);
        let mut counts = [0; LENGTH_CODES];
        rows.iter()
            .for_each(|row| counts[usize::from(row.code)] += 1);
        let row_lengths = huffman::lengths(&counts, MAX_LENGTH_CODE_BITS);
        let row_codes = huffman::codes(&row_lengths);
        let ordered = LENGTH_CODE_ORDER.map(|code| row_lengths[code]);
        let row_count = up_to_last(&ordered, 4);
        self.put(
            (literal_count - 257) as u64
                | (distance_count as u64 - 1) << 5
                | (row_count as u64 - 4) << 10,
            14,
        );
        ordered[..row_count]
            .iter()
            .for_each(|length| self.put((*length).into(), 3));
        for row in rows {
            let code = row_codes[usize::from(row.code)];
            self.put(
                u64::from(code.bits) | row.rest << code.length,
                code.length + row.rest_bits,
            );
        }
    }

    fn put(&mut self, bits: u64, count: u32) {
        self.end.add(bits, count);
        self.end.store(self.out);
    }

    fn fill_byte(&mut self) {
        if self.end.held_bits > 0 {
            self.put(0, 8 - self.end.held_bits);
        }
    }
}

/// One length, or a run of equal lengths.
struct Row {
    code: u8,
    rest: u64,
    rest_bits: u32,
}

fn rows(lengths: &[u8]) -> Vec<Row> {
    let mut rows = Vec::with_capacity(lengths.len());
    let mut row = |kind: &RowKind, equal: usize| {
        let taken = equal.min(*kind.rows.end());
        rows.push(Row {
            code: kind.code,
            rest: (taken - kind.rows.start()) as u64,
            rest_bits: kind.rest_bits,
        });
        taken
    };
    let mut at = 0;
    while let Some(length) = lengths.get(at) {
        let equal = lengths[at..]
            .iter()
            .take_while(|other| *other == length)
            .count();
        let one = RowKind {
            code: *length,
            rows: 1..=1,
            rest_bits: 0,
        };
        at += match (*length, equal) {
            (0, 11..) => row(&LONG_ZEROS, equal),
            (0, 3..) => row(&SHORT_ZEROS, equal),
            (_, 4..) => row(&one, 1) + row(&REPEAT, equal - 1),
            _ => row(&one, 1),
        };
    }
    rows
}

/// The bits for a value of [`Token::what`].
#[derive(Clone, Copy, Default)]
struct What {
    bits: u32,
    count: u32,
}

fn whats(codes: &[Code; LITERAL_CODES]) -> [What; Token::WHATS] {
    let mut whats = [What::default(); Token::WHATS];
    // Literals and the end of a block.
    for (what, code) in whats.iter_mut().zip(&codes[..=END]) {
        *what = What {
            bits: code.bits,
            count: code.length,
        };
    }
    for length in 3..=MAX_LENGTH {
        let written = LENGTHS[length];
        let code = codes[written.code];
        whats[Token::what_of_length(length)] = What {
            bits: code.bits | written.rest << code.length,
            count: code.length + written.rest_bits,
        };
    }
    whats
}

/// The bits of a distance code; none if there is no distance.
#[derive(Clone, Copy, Default)]
struct DistanceBits {
    bits: u16,
    code_bits: u8,
    /// Number of bits, including the extra bits after the code.
    count: u8,
}

fn distances(codes: &[Code; DISTANCE_CODES]) -> [DistanceBits; Token::DISTANCE_CODES] {
    let mut distances = [DistanceBits::default(); Token::DISTANCE_CODES];
    for (number, (distance, code)) in distances.iter_mut().zip(codes).enumerate() {
        let count = code.length + distance_rest_bits(number);
        *distance = DistanceBits {
            bits: code.bits as u16,
            code_bits: code.length as u8,
            count: count as u8,
        };
    }
    distances
}
