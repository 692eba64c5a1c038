//! Writes deflate streams (RFC 1951) of database pages at the speed of a backup.
//!
//! ```text
//! content ─▶ tokens: literals and matches ─▶ blocks with counts ─▶ codes for these counts ─▶ bits
//!            tokens.rs                       split.rs              huffman.rs                stream.rs
//! ```
//!
//! This is the fastest gzip level of databases. The search for matches looks at only one earlier
//! position and takes the match that it finds there. The writer treats literals and matches in the
//! same way, without a branch.
//!
//! `docs/internals/benchmarks.md` compares the speed and size with libdeflate, which compresses all
//! other content and all other levels. Every inflater reads the streams.

mod huffman;
mod split;
mod stream;
mod tokens;

use stream::Bits;
use tokens::Finder;

/// Length of the content that is divided into blocks, each with codes of its own.
const PART_BYTES: usize = 64 * 1024;

/// Writes streams, one after the other.
#[derive(Default)]
pub struct Deflater {
    finder: Finder,
}

impl Deflater {
    /// Appends the stream of `content` to `out`.
    pub fn deflate(&mut self, content: &[u8], out: &mut Vec<u8>) {
        let mut bits = Bits::after(out);
        self.finder.forget();
        let mut from = 0;
        loop {
            let to = content.len().min(from + PART_BYTES);
            let found = self.finder.find(content, from..to);
            bits.part(found, &content[from..to], to == content.len());
            from = to;
            if from == content.len() {
                break;
            }
        }
        bits.finish();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    /// Returns the stream of `content` after both inflaters have read it back.
    fn deflated(deflater: &mut Deflater, content: &[u8]) -> Vec<u8> {
        let mut stream = b"before".to_vec();
        deflater.deflate(content, &mut stream);
        let stream = stream.strip_prefix(b"before").unwrap().to_vec();
        let mut inflated = vec![0; content.len()];
        let length = libdeflater::Decompressor::new()
            .deflate_decompress(&stream, &mut inflated)
            .unwrap();
        assert!(
            length == content.len() && inflated == content,
            "libdeflate reads something else"
        );
        let mut inflated = Vec::new();
        let read = flate2::bufread::DeflateDecoder::new(&stream[..])
            .read_to_end(&mut inflated)
            .unwrap();
        assert!(
            read == content.len() && inflated == content,
            "zlib reads something else"
        );
        stream
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..bytes).map(|_| next()).collect()
    }

    #[test]
    fn content_of_every_length_around_those_where_parts_and_words_end_is_read_back() {
        let mut deflater = Deflater::default();
        let text: Vec<u8> = (0..)
            .flat_map(|n: u32| format!("{n} nodes, ").into_bytes())
            .take(3 * PART_BYTES)
            .collect();
        let lengths = (0..600)
            .chain(PART_BYTES - 20..PART_BYTES + 20)
            .chain(2 * PART_BYTES - 9..2 * PART_BYTES + 9);
        for length in lengths {
            deflated(&mut deflater, &text[..length]);
        }
    }

    #[test]
    fn pieces_of_different_bytes_get_codes_of_their_own() {
        // A byte takes four bits in a piece, but six in all pieces together.
        let content: Vec<u8> = noise(PART_BYTES)
            .chunks(PART_BYTES / 4)
            .zip(0..)
            .flat_map(|(piece, n)| piece.iter().map(move |byte| n * 16 + byte % 16))
            .collect();
        let stream = deflated(&mut Deflater::default(), &content);
        assert!(stream.len() < PART_BYTES * 5 / 8, "{}", stream.len());
    }

    #[test]
    fn what_cannot_be_compressed_takes_hardly_more_than_itself() {
        for bytes in [1, 1000, PART_BYTES, 2 * PART_BYTES + 1] {
            let stream = deflated(&mut Deflater::default(), &noise(bytes));
            assert!(stream.len() <= bytes + 32, "{} of {bytes}", stream.len());
        }
    }

    #[test]
    fn what_repeats_itself_takes_next_to_nothing_at_any_distance_that_deflate_can_name() {
        for period in [1, 2, 3, 5, 258, 259, 4096, 32 * 1024] {
            let unit = noise(period);
            let content: Vec<u8> = unit.iter().copied().cycle().take(2 * PART_BYTES).collect();
            let stream = deflated(&mut Deflater::default(), &content);
            assert!(
                stream.len() < period + 2000,
                "{} for {period}",
                stream.len()
            );
        }
        let too_far: Vec<u8> = noise(33 * 1024).repeat(3);
        deflated(&mut Deflater::default(), &too_far);
    }

    #[test]
    fn counts_that_would_need_longer_codes_than_deflate_has_are_read_back() {
        // Each byte occurs as often as the two rarer ones together, which makes the deepest
        // possible tree.
        let (mut a, mut b) = (1_usize, 1_usize);
        let mut content = Vec::new();
        for byte in 0..22 {
            content.extend(std::iter::repeat_n(byte, a));
            (a, b) = (b, a + b);
        }
        // The bytes are shuffled so that they become literals.
        let order = noise(8 * content.len());
        let mut keyed: Vec<(&[u8], u8)> = order.chunks(8).zip(content).collect();
        keyed.sort_unstable();
        let content: Vec<u8> = keyed.into_iter().map(|(_, byte)| byte).collect();
        deflated(&mut Deflater::default(), &content);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_is_deflated_is_read_back_whatever_was_deflated_before(
            contents in prop::collection::vec(
                prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), 1..400_usize, 0..3_u8), 0..60),
                1..4,
            ),
        ) {
            let mut deflater = Deflater::default();
            for pieces in contents {
                let mut content = Vec::new();
                for (piece, times, kind) in pieces {
                    match kind {
                        0 => content.extend(piece.repeat(times)),
                        1 => content.extend(noise(times * 10)),
                        _ => content.extend(piece),
                    }
                }
                deflated(&mut deflater, &content);
            }
        }
    }
}
