//! Splits content into literals and matches: repetitions of bytes that occurred at most 32 KiB
//! before.

use std::ops::Range;

use super::PART_BYTES;

/// Number of codes for literals, for the end of a block, and for the lengths of matches.
pub const LITERAL_CODES: usize = 286;
pub const DISTANCE_CODES: usize = 30;
/// Code for the end of a block.
pub const END: usize = 256;
const FIRST_LENGTH_CODE: usize = 257;

const MIN_LENGTH: usize = 4;
pub const MAX_LENGTH: usize = 258;
/// A distance minus one is always below this number.
const WINDOW_BYTES: usize = 32 * 1024;
const HASH_BITS: u32 = 14;
/// Length of the content whose tokens are counted together.
pub const SEGMENT_BYTES: usize = 8 * 1024;
/// No search begins closer to the end of a part, so that whole words can be read everywhere.
const TAIL_BYTES: usize = 16;

/// A literal or a match, packed into one number so that it can be written without a branch.
///
/// The fields are a literal or the length of a match, the code of its distance, and the extra bits
/// of that code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Token(u32);

impl Token {
    /// Number of values of [`Token::what`].
    pub const WHATS: usize = 1 << Token::DISTANCE_SHIFT;
    /// Number of values of [`Token::distance_code`].
    pub const DISTANCE_CODES: usize = 1 << (Token::REST_SHIFT - Token::DISTANCE_SHIFT);
    const DISTANCE_SHIFT: u32 = 10;
    const REST_SHIFT: u32 = 16;
    const NO_DISTANCE: u32 = DISTANCE_CODES as u32;

    fn literal(byte: u8) -> Self {
        Token(u32::from(byte) | Token::NO_DISTANCE << Token::DISTANCE_SHIFT)
    }

    fn matched(length: usize, distance: Distance) -> Self {
        let what = Token::what_of_length(length) as u32;
        Token(what | distance.code << Token::DISTANCE_SHIFT | distance.rest << Token::REST_SHIFT)
    }

    /// Returns [`Token::what`] of a match of this length.
    pub const fn what_of_length(length: usize) -> usize {
        END + length
    }

    /// Returns a byte for a literal, or a value above [`END`] for a match.
    pub fn what(self) -> usize {
        self.0 as usize % Token::WHATS
    }

    /// Returns the distance code of a match, or [`DISTANCE_CODES`] for a literal.
    pub fn distance_code(self) -> usize {
        (self.0 >> Token::DISTANCE_SHIFT) as usize % Token::DISTANCE_CODES
    }

    pub fn distance_rest(self) -> u32 {
        self.0 >> Token::REST_SHIFT
    }
}

/// A distance as deflate writes it: a code and extra bits (RFC 1951, 3.2.5).
struct Distance {
    code: u32,
    rest: u32,
}

impl Distance {
    #[inline(always)]
    fn of(less_one: u32) -> Self {
        if less_one < 4 {
            return Distance {
                code: less_one,
                rest: 0,
            };
        }
        // Every second code has one extra bit more. The extra bits are those below the two highest
        // bits.
        let highest = less_one.ilog2();
        let rest_bits = highest - 1;
        Distance {
            code: 2 * highest + (less_one >> rest_bits & 1),
            rest: less_one & ((1 << rest_bits) - 1),
        }
    }
}

/// Returns the number of extra bits that follow a distance code.
pub fn distance_rest_bits(code: usize) -> u32 {
    (code as u32 / 2).saturating_sub(1)
}

/// The length of a match as deflate writes it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Length {
    pub code: usize,
    pub rest: u32,
    pub rest_bits: u32,
}

/// Codes by the length of a match. The shortest match that deflate can write has length 3.
pub static LENGTHS: [Length; MAX_LENGTH + 1] = lengths();

const fn lengths() -> [Length; MAX_LENGTH + 1] {
    let mut lengths = [Length {
        code: 0,
        rest: 0,
        rest_bits: 0,
    }; MAX_LENGTH + 1];
    let (mut length, mut code) = (3, FIRST_LENGTH_CODE);
    while length < MAX_LENGTH {
        let number = (code - FIRST_LENGTH_CODE) as u32;
        let rest_bits = if number < 8 { 0 } else { number / 4 - 1 };
        let mut rest = 0;
        while rest < 1 << rest_bits && length < MAX_LENGTH {
            lengths[length] = Length {
                code,
                rest,
                rest_bits,
            };
            length += 1;
            rest += 1;
        }
        code += 1;
    }
    // The longest match has a code of its own.
    lengths[MAX_LENGTH] = Length {
        code: LITERAL_CODES - 1,
        rest: 0,
        rest_bits: 0,
    };
    lengths
}

/// The tokens of one part of the content.
pub struct Tokens<'a> {
    pub tokens: &'a [Token],
    /// The segments of the part, at least one.
    pub segments: &'a [Segment],
}

/// The tokens that begin in [`SEGMENT_BYTES`] of a part.
pub struct Segment {
    pub tokens: usize,
    counts: Counts,
}

/// The number of occurrences of each code.
#[derive(Clone)]
pub struct Counts {
    pub literals: [u32; LITERAL_CODES],
    pub distances: [u32; DISTANCE_CODES],
}

impl Counts {
    const NONE: Counts = Counts {
        literals: [0; LITERAL_CODES],
        distances: [0; DISTANCE_CODES],
    };

    /// Returns the counts of a block that consists of `segments`.
    pub fn of_block(segments: &[Segment]) -> Self {
        let mut sums = Counts::NONE;
        for Segment { counts, .. } in segments {
            let add = |(sum, count): (&mut u32, &u32)| *sum += count;
            sums.literals.iter_mut().zip(&counts.literals).for_each(add);
            sums.distances
                .iter_mut()
                .zip(&counts.distances)
                .for_each(add);
        }
        sums.literals[END] = 1;
        sums
    }
}

/// Finds matches.
pub struct Finder {
    /// The last position of each hash of four bytes. An entry is the position plus one; its low 16
    /// bits are enough.
    places: Box<[u16; 1 << HASH_BITS]>,
    taken: Box<TokenBuffer>,
}

/// The tokens of the current part so far.
struct TokenBuffer {
    tokens: [Token; PART_BYTES],
    token_count: usize,
    segments: Vec<Segment>,
    /// Position of the first token of the current segment.
    segment_start: usize,
    counts: Counts,
    /// The number of matches of each length in the current segment.
    lengths: [u32; MAX_LENGTH + 1],
}

impl TokenBuffer {
    fn begin(&mut self) {
        self.token_count = 0;
        self.segment_start = 0;
        self.segments.clear();
    }

    #[inline(always)]
    fn literal(&mut self, byte: u8) {
        self.counts.literals[usize::from(byte)] += 1;
        self.push(Token::literal(byte));
    }

    #[inline(always)]
    fn matched(&mut self, length: usize, distance: Distance) {
        self.lengths[length] += 1;
        self.counts.distances[distance.code as usize] += 1;
        self.push(Token::matched(length, distance));
    }

    #[inline(always)]
    fn push(&mut self, token: Token) {
        self.tokens[self.token_count] = token;
        self.token_count += 1;
    }

    fn end_segment(&mut self) {
        for (count, length) in self.lengths.iter().zip(&LENGTHS).skip(MIN_LENGTH) {
            self.counts.literals[length.code] += count;
        }
        self.lengths.fill(0);
        self.segments.push(Segment {
            tokens: self.token_count - self.segment_start,
            counts: std::mem::replace(&mut self.counts, Counts::NONE),
        });
        self.segment_start = self.token_count;
    }
}

impl Default for Finder {
    fn default() -> Self {
        let taken = TokenBuffer {
            tokens: [Token::default(); PART_BYTES],
            token_count: 0,
            segments: Vec::new(),
            segment_start: 0,
            counts: Counts::NONE,
            lengths: [0; MAX_LENGTH + 1],
        };
        Finder {
            places: Box::new([0; 1 << HASH_BITS]),
            taken: Box::new(taken),
        }
    }
}

impl Finder {
    /// Prepares for new content, which has no earlier parts.
    pub fn forget(&mut self) {
        // The value 1 stands for position 0, so bytes not seen before are compared with the first
        // ones.
        self.places.fill(1);
    }

    /// Splits a part of `content` that is at most [`PART_BYTES`] long. The earlier parts of
    /// `content` must have been split before.
    pub fn find(&mut self, content: &[u8], part: Range<usize>) -> Tokens<'_> {
        let content = &content[..part.end];
        self.taken.begin();
        let mut at = part.start;
        let tail = part.end.saturating_sub(TAIL_BYTES).max(at);
        // Nothing comes before the first byte, so it cannot be part of a match.
        if at == 0 && at < tail {
            self.taken.literal(content[at]);
            at += 1;
        }
        let mut segment_end = part.start;
        loop {
            segment_end = part.end.min(segment_end + SEGMENT_BYTES);
            at = self.find_until(content, at, tail.min(segment_end));
            if segment_end == part.end {
                break;
            }
            self.taken.end_segment();
        }
        let taken = &mut *self.taken;
        content[at..].iter().for_each(|byte| taken.literal(*byte));
        taken.end_segment();
        Tokens {
            tokens: &taken.tokens[..taken.token_count],
            segments: &taken.segments,
        }
    }

    /// Takes tokens from `at` on, as long as they begin before `to`. Returns where the last one
    /// ends.
    #[inline(always)]
    fn find_until(&mut self, content: &[u8], mut at: usize, to: usize) -> usize {
        let (places, taken) = (&mut *self.places, &mut *self.taken);
        while at < to {
            let word = word_at(content, at);
            let place = &mut places[hash(word as u32)];
            // Only the low bits of the position are known. If the position is out of reach, they
            // name another one within reach, which is as good a guess.
            let distance_less_one = usize::from((at as u16).wrapping_sub(*place)) % WINDOW_BYTES;
            *place = (at as u16).wrapping_add(1);
            let differs = word_at(content, at - 1 - distance_less_one) ^ word;
            if differs as u32 != 0 {
                taken.literal(word as u8);
                at += 1;
                continue;
            }
            let length = match differs {
                0 => long_match(content, at, distance_less_one + 1),
                _ => differs.trailing_zeros() as usize / 8,
            };
            taken.matched(length, Distance::of(distance_less_one as u32));
            // Of the positions in a match, only the second and the last are recorded.
            places[hash((word >> 8) as u32)] = (at as u16).wrapping_add(2);
            at += length;
            places[hash(word_at(content, at - 1) as u32)] = at as u16;
        }
        at
    }
}

#[inline(always)]
fn hash(four_bytes: u32) -> usize {
    (four_bytes.wrapping_mul(0x9e37_79b1) >> (32 - HASH_BITS)) as usize
}

/// Returns the eight bytes at `at`, or 0 if fewer are left.
#[inline(always)]
fn word_at(content: &[u8], at: usize) -> u64 {
    content[at..]
        .first_chunk()
        .map_or(0, |word| u64::from_le_bytes(*word))
}

/// Returns the length of a match whose first eight bytes are known to be equal.
#[inline(never)]
fn long_match(content: &[u8], at: usize, distance: usize) -> usize {
    let this = &content[at..content.len().min(at + MAX_LENGTH)];
    let that = &content[at - distance..][..this.len()];
    let (words, _) = this.as_chunks::<8>();
    let (those_words, _) = that.as_chunks::<8>();
    let mut length = 8;
    for (word, that) in words.iter().zip(those_words).skip(1) {
        let differs = u64::from_le_bytes(*word) ^ u64::from_le_bytes(*that);
        if differs != 0 {
            return length + differs.trailing_zeros() as usize / 8;
        }
        length += 8;
    }
    length
        + this[length..]
            .iter()
            .zip(&that[length..])
            .take_while(|(byte, that)| byte == that)
            .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_distances_have_the_codes_of_rfc_1951() {
        let length = |length: usize| {
            (
                LENGTHS[length].code,
                LENGTHS[length].rest_bits,
                LENGTHS[length].rest,
            )
        };
        assert_eq!(
            [length(3), length(10), length(11), length(12)],
            [(257, 0, 0), (264, 0, 0), (265, 1, 0), (265, 1, 1)]
        );
        assert_eq!(
            [length(18), length(19), length(130)],
            [(268, 1, 1), (269, 2, 0), (280, 4, 15)]
        );
        assert_eq!(
            [length(131), length(257), length(258)],
            [(281, 5, 0), (284, 5, 30), (285, 0, 0)]
        );
        let distance = |distance: u32| {
            let Distance { code, rest } = Distance::of(distance - 1);
            (code, distance_rest_bits(code as usize), rest)
        };
        assert_eq!(
            [distance(1), distance(4), distance(5), distance(6)],
            [(0, 0, 0), (3, 0, 0), (4, 1, 0), (4, 1, 1)]
        );
        assert_eq!(
            [distance(7), distance(192), distance(193)],
            [(5, 1, 0), (14, 6, 63), (15, 6, 0)]
        );
        assert_eq!(
            [distance(24_576), distance(24_577), distance(32_768)],
            [(28, 13, 8191), (29, 13, 0), (29, 13, 8191)]
        );
    }
}
