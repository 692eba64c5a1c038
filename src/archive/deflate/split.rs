//! Divides a part into blocks.
//!
//! The pages of a part belong to different b-trees. A block with codes of its own for some of them
//! can save more than its codes take.

use super::{
    PART_BYTES,
    tokens::{Counts, SEGMENT_BYTES, Segment, Token, Tokens},
};

/// Bits that another block must save. Its codes take about half of them. The other half pays for
/// its time: each block has to sort its symbols and write its codes.
const BLOCK_BITS: u64 = 1200;
/// Largest number of blocks of a part.
pub const MAX_BLOCKS: usize = PART_BYTES / SEGMENT_BYTES;
/// Digits of an estimate after the binary point.
const FRACTION_BITS: u32 = 8;

/// Tokens that share one set of codes.
pub struct Block<'a> {
    /// The end of the block is not among them, but it is counted.
    pub tokens: &'a [Token],
    pub counts: Counts,
}

/// Returns the blocks of a part.
pub fn blocks(found: Tokens<'_>) -> Vec<Block<'_>> {
    let mut blocks = Vec::with_capacity(MAX_BLOCKS);
    let whole = Estimate::of(found.segments);
    divide(found.tokens, found.segments, whole, &mut blocks);
    blocks
}

/// Divides segments in the middle as long as both halves together become smaller.
fn divide<'a>(
    tokens: &'a [Token],
    segments: &[Segment],
    whole: Estimate,
    blocks: &mut Vec<Block<'a>>,
) {
    let (first, second) = segments.split_at(segments.len() / 2);
    if !first.is_empty() {
        let (first_half, second_half) = (Estimate::of(first), Estimate::of(second));
        if first_half.size + second_half.size < whole.size {
            let first_tokens = first.iter().map(|segment| segment.tokens).sum();
            let (first_tokens, second_tokens) = tokens.split_at(first_tokens);
            divide(first_tokens, first, first_half, blocks);
            divide(second_tokens, second, second_half, blocks);
            return;
        }
    }
    blocks.push(Block {
        tokens,
        counts: whole.counts,
    });
}

/// What a block of some segments would be.
struct Estimate {
    counts: Counts,
    /// Size of the block in fractions of a bit. The extra bits of lengths and distances are left
    /// out, because they do not depend on the block.
    size: u64,
}

impl Estimate {
    fn of(segments: &[Segment]) -> Self {
        let counts = Counts::of_block(segments);
        let size =
            (BLOCK_BITS << FRACTION_BITS) + entropy(&counts.literals) + entropy(&counts.distances);
        Estimate { counts, size }
    }
}

/// Returns the number of fractions of a bit that symbols with these counts take at least.
fn entropy(counts: &[u32]) -> u64 {
    let weighted = |count: u32| u64::from(count) * u64::from(log2(count));
    let total = counts.iter().sum();
    weighted(total) - counts.iter().map(|count| weighted(*count)).sum::<u64>()
}

/// Returns the approximate binary logarithm of a number below 2^24 in fractions of a bit; 0 for 0.
/// It is not smaller for larger numbers, so an entropy cannot be negative.
#[inline(always)]
fn log2(number: u32) -> u32 {
    const ONE: u32 = 1 << FRACTION_BITS;
    let whole = (number | 1).ilog2();
    let fraction = (number << FRACTION_BITS >> whole) % ONE;
    // Between two powers of two, the logarithm is close to a parabola.
    let bulge = fraction * (ONE - fraction) * 11 / 32;
    (whole << FRACTION_BITS) + fraction + (bulge >> FRACTION_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_exact_to_a_fiftieth_and_never_decrease() {
        assert_eq!(
            [log2(0), log2(1), log2(2), log2(1 << 20)],
            [0, 0, 256, 20 * 256]
        );
        for number in 1..100_000_u32 {
            let error = f64::from(log2(number)) / 256.0 - f64::from(number).log2();
            assert!(error.abs() < 0.02, "{error} for {number}");
            assert!(log2(number) >= log2(number - 1), "{number}");
        }
    }
}
