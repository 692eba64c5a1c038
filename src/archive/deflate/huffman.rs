//! Huffman codes of limited length, as deflate requires them (RFC 1951, 3.2.2).

/// An upper bound for the number of symbols in every alphabet of deflate.
const MAX_SYMBOLS: usize = 288;
/// An upper bound for the depth of a tree whose counts sum to less than 2^26. With each level, the
/// sum of the counts grows at least as fast as the Fibonacci numbers.
const MAX_DEPTH: usize = 40;

/// A code as it is written to a stream, lowest bit first, and its length in bits. The length is 0
/// if the symbol does not occur.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Code {
    pub bits: u32,
    pub length: u32,
}

/// Returns the code lengths of symbols that occur this often. They are Huffman lengths, adjusted so
/// that none exceeds `limit`. At least two symbols get a code, because some inflaters reject fewer.
pub fn lengths<const SYMBOLS: usize>(counts: &[u32; SYMBOLS], limit: usize) -> [u8; SYMBOLS] {
    let mut lengths = [0; SYMBOLS];
    // The count of a symbol, with the symbol in the low bits.
    let mut keys = [0; MAX_SYMBOLS];
    let mut used = 0;
    for (symbol, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        keys[used] = u64::from(*count) << 16 | symbol as u64;
        used += 1;
    }
    let symbol = |key: u64| (key & 0xffff) as usize;
    if used < 2 {
        let only = symbol(keys[0]);
        lengths[only] = 1;
        lengths[usize::from(only == 0)] = 1;
        return lengths;
    }
    let keys = &mut keys[..used];
    keys.sort_unstable();
    let of_length = limited(depths(keys), limit);
    // The rarest symbols get the longest codes.
    let mut rarest = keys.iter();
    for length in (1..=limit).rev() {
        for key in rarest.by_ref().take(of_length[length] as usize) {
            lengths[symbol(*key)] = length as u8;
        }
    }
    lengths
}

/// Returns the number of leaves at each depth of the tree for these sorted keys.
fn depths(keys: &[u64]) -> [u32; MAX_DEPTH] {
    let count = |key: u64| key >> 16;
    // Inner nodes are created in the order of their counts. So the next two nodes to join are
    // always at the front of one of two queues.
    let mut inner_counts = [0; MAX_SYMBOLS];
    let mut parents = [0_u16; 2 * MAX_SYMBOLS];
    let (mut leaf, mut inner) = (0, 0);
    for made in 0..keys.len() - 1 {
        for _ in 0..2 {
            let is_leaf =
                leaf < keys.len() && (inner == made || count(keys[leaf]) <= inner_counts[inner]);
            let node = if is_leaf {
                inner_counts[made] += count(keys[leaf]);
                leaf += 1;
                leaf - 1
            } else {
                inner_counts[made] += inner_counts[inner];
                inner += 1;
                keys.len() + inner - 1
            };
            parents[node] = made as u16;
        }
    }
    // The root was created last.
    let mut inner_depths = [0; MAX_SYMBOLS];
    for inner in (0..keys.len() - 2).rev() {
        inner_depths[inner] = inner_depths[usize::from(parents[keys.len() + inner])] + 1;
    }
    let mut of_depth = [0; MAX_DEPTH];
    for parent in &parents[..keys.len()] {
        of_depth[inner_depths[usize::from(*parent)] + 1] += 1;
    }
    of_depth
}

/// Moves leaves that are deeper than `limit` up, and moves as many others down as that requires.
fn limited(mut of_depth: [u32; MAX_DEPTH], limit: usize) -> [u32; MAX_DEPTH] {
    let too_deep: u32 = of_depth[limit + 1..].iter().sum();
    if too_deep == 0 {
        return of_depth;
    }
    of_depth[limit + 1..].fill(0);
    of_depth[limit] += too_deep;
    // The room that all leaves take, in units of the deepest leaves. The available room is `1 <<
    // limit`.
    let taken: u32 = (1..=limit)
        .map(|depth| of_depth[depth] << (limit - depth))
        .sum();
    for _ in 1 << limit..taken {
        // A leaf moves one level down and makes room next to it for one of the deepest leaves.
        // Together they take one unit less.
        let Some(depth) = (1..limit).rev().find(|depth| of_depth[*depth] > 0) else {
            break;
        };
        of_depth[depth] -= 1;
        of_depth[depth + 1] += 2;
        of_depth[limit] -= 1;
    }
    of_depth
}

/// Returns the codes with these lengths.
pub fn codes<const SYMBOLS: usize>(lengths: &[u8; SYMBOLS]) -> [Code; SYMBOLS] {
    let mut of_length = [0; 16];
    lengths
        .iter()
        .for_each(|length| of_length[usize::from(*length)] += 1);
    of_length[0] = 0;
    let mut next = [0_u32; 16];
    for length in 1..16 {
        next[length] = (next[length - 1] + of_length[length - 1]) << 1;
    }
    lengths.map(|length| match length {
        0 => Code::default(),
        length => {
            let next = &mut next[usize::from(length)];
            let code = Code {
                bits: next.reverse_bits() >> (32 - u32::from(length)),
                length: length.into(),
            };
            *next += 1;
            code
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn codes_are_those_of_the_example_in_rfc_1951() {
        let codes = codes(&[3, 3, 3, 3, 3, 2, 4, 4]).map(|code| {
            let bits = code.bits.reverse_bits() >> (32 - code.length);
            format!("{bits:0width$b}", width = code.length as usize)
        });
        assert_eq!(
            codes,
            ["010", "011", "100", "101", "110", "00", "1110", "1111"]
        );
    }

    #[test]
    fn one_symbol_or_none_gets_two_codes_of_one_bit() {
        assert_eq!(lengths(&[0, 0, 0], 15), [1, 1, 0]);
        assert_eq!(lengths(&[0, 7, 0], 15), [1, 1, 0]);
        assert_eq!(lengths(&[7, 0, 0], 15), [1, 1, 0]);
        assert_eq!(lengths(&[0, 0, 7], 15), [1, 0, 1]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn codes_fill_the_tree_within_the_limit_and_frequent_symbols_have_short_ones(
            counts in prop::array::uniform32(prop_oneof![Just(0_u32), 1..20_u32, (0..24_u32).prop_map(|power| 1 << power)]),
            limit in 5..=15_usize,
        ) {
            prop_assume!(counts.iter().filter(|count| **count > 0).count() > 1);
            let lengths = lengths(&counts, limit);
            let taken: u32 = lengths.iter().filter(|length| **length > 0).map(|length| 1 << (limit - usize::from(*length))).sum();
            prop_assert_eq!(taken, 1 << limit);
            for (count, length) in counts.iter().zip(lengths) {
                prop_assert_eq!(*count > 0, length > 0);
                let shorter = counts.iter().zip(lengths).filter(|(_, other)| (1..length).contains(other));
                prop_assert!(shorter.into_iter().all(|(other, _)| other >= count), "{:?} {:?}", counts, lengths);
            }
        }
    }
}
