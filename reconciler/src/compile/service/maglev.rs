//! Maglev hashing: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4.
//!
//! Every backend has a permutation of the table's slots, made from two hashes of its name alone; by turns each takes the
//! first slot of its permutation that nobody has. The table is a function of names and weights: every node makes the same one.
//! With weights, which the paper mentions and does not describe, a backend takes turns in proportion to its weight: in round
//! `n` it has had `n * weight / largest` of them.

/// Sizes of tables: primes, so that any skip visits every slot.
const SIZES: [u32; 5] = [251, 1_021, 4_093, 16_381, 65_537];

/// Size of a service's table among so many services, in slots.
///
/// 65,537 with up to 64 services: 2 % of a table is more than what moves beside a backend that leaves. With up to 1,024
/// services 16,381, with up to 4,096 services 4,093, above 1,021: so the tables of an image take 33 MB at most, and are made in
/// a fraction of a second. A service with many backends has a table of a hundred times as many slots all the same, as section
/// 5.3 of the paper advises, up to the largest.
pub(super) fn size(services: usize, backends: usize) -> u32 {
    let by_services = match services {
        0..=64 => 65_537,
        65..=1_024 => 16_381,
        1_025..=4_096 => 4_093,
        _ => 1_021,
    };
    let by_backends = SIZES.into_iter().find(|size| *size as usize >= backends * 100).unwrap_or(65_537);
    by_services.max(by_backends)
}

/// Where a permutation begins and how it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Permutation {
    offset: u32,
    skip: u32,
}

impl Permutation {
    /// Of a backend, from two independent hashes of its name: the first two words of its BLAKE3.
    pub(super) fn of(name: &str, size: u32) -> Self {
        let digest = blake3::hash(name.as_bytes());
        let word = |at: usize| digest.as_bytes()[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Self { offset: below(word(0), size), skip: below(word(8), size - 1) + 1 }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a remainder of a u32")]
fn below(word: u64, limit: u32) -> u32 {
    (word % u64::from(limit)) as u32
}

/// Which backend has each of `size` slots: indexes into `backends`, which are permutations and weights. Empty where no
/// backend has a weight.
pub(super) fn table(backends: &[(Permutation, u16)], size: u32) -> Vec<u16> {
    const NOBODY: u16 = u16::MAX;
    struct Turn {
        backend: u16,
        at: u32,
        skip: u32,
        weight: u64,
        /// Of the round in which its next turn is, times its weight.
        due: u64,
    }
    let largest = backends.iter().map(|(_, weight)| u64::from(*weight)).max().unwrap_or(0);
    if largest == 0 {
        return Vec::new();
    }
    let mut turns: Vec<Turn> = (0..)
        .zip(backends)
        .filter(|(_, (_, weight))| *weight > 0)
        .map(|(backend, (permutation, weight))| Turn {
            backend,
            at: permutation.offset,
            skip: permutation.skip,
            weight: u64::from(*weight),
            due: largest.min(u64::from(*weight)),
        })
        .collect();
    let mut slots = vec![NOBODY; size as usize];
    let mut left = size;
    for round in 1.. {
        for turn in &mut turns {
            if round * turn.weight < turn.due {
                continue;
            }
            turn.due += largest;
            while slots[turn.at as usize] != NOBODY {
                turn.at = next(turn.at, turn.skip, size);
            }
            slots[turn.at as usize] = turn.backend;
            turn.at = next(turn.at, turn.skip, size);
            left -= 1;
            if left == 0 {
                return slots;
            }
        }
    }
    slots
}

fn next(at: u32, skip: u32, size: u32) -> u32 {
    let next = at + skip;
    if next >= size { next - size } else { next }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The permutations of table 1 of the paper, M = 7, and its lookup table before and after B1 left.
    #[test]
    fn the_papers_example() {
        let [b0, b1, b2] = [(3, 4), (0, 2), (3, 1)].map(|(offset, skip)| (Permutation { offset, skip }, 1));
        let visits = |(permutation, _): (Permutation, u16)| {
            let mut at = permutation.offset;
            let mut list = Vec::new();
            for _ in 0..7 {
                list.push(at);
                at = next(at, permutation.skip, 7);
            }
            list
        };
        assert_eq!(visits(b0), [3, 0, 4, 1, 5, 2, 6]);
        assert_eq!(visits(b1), [0, 2, 4, 6, 1, 3, 5]);
        assert_eq!(visits(b2), [3, 4, 5, 6, 0, 1, 2]);
        assert_eq!(table(&[b0, b1, b2], 7), [1, 0, 1, 0, 2, 2, 0]);
        // The places of B0 and B2 in the shorter list are 0 and 1.
        assert_eq!(table(&[b0, b2], 7), [0, 0, 0, 0, 1, 1, 1]);
        // A backend that is drained is as one that is gone, but for its place.
        assert_eq!(table(&[b0, (b1.0, 0), b2], 7), [0, 0, 0, 0, 2, 2, 2]);
    }

    fn backends(count: u32, weight: impl Fn(u32) -> u16) -> Vec<(Permutation, u16)> {
        let name = |i: u32| format!("10.1.{}.{}:8099", i / 256, i % 256);
        (0..count).map(|i| (Permutation::of(&name(i), 65_537), weight(i))).collect()
    }

    fn shares(table: &[u16], count: u32) -> Vec<f64> {
        let mut shares = vec![0.0; count as usize];
        for backend in table {
            shares[usize::from(*backend)] += 1.0;
        }
        shares
    }

    #[test]
    fn shares_are_those_of_the_weights_within_one_percent() {
        let check = |weights: &[u16]| {
            let count = u32::try_from(weights.len()).expect("few");
            let table = table(&backends(count, |i| weights[i as usize]), 65_537);
            let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
            for (share, weight) in shares(&table, count).into_iter().zip(weights) {
                let exact = 65_537.0 * f64::from(*weight) / total;
                assert!((share - exact).abs() <= exact / 100.0, "{weights:?}: {share} slots, {exact} wanted");
            }
        };
        check(&[1, 1, 1]);
        check(&[3, 2, 1]);
        check(&[10, 10, 10, 1]);
        check(&[65_535, 30_000, 10_000]);
        check(&[7; 100]);
    }

    #[test]
    fn one_of_a_hundred_that_leaves_moves_little_else() {
        let all = backends(100, |_| 1);
        let before = table(&all, 65_537);
        for gone in [0, 42, 99] {
            let without: Vec<_> = all.iter().enumerate().filter(|(i, _)| *i != gone).map(|(_, b)| *b).collect();
            let after = table(&without, 65_537);
            let back = |backend: u16| usize::from(backend) + usize::from(usize::from(backend) >= gone);
            let moved = before
                .iter()
                .zip(&after)
                .filter(|(b, a)| usize::from(**b) != gone && usize::from(**b) != back(**a))
                .count();
            assert!(moved * 50 <= 65_537, "{moved} of 65537 slots moved that were not of the one that left");
        }
    }

    #[test]
    fn all_drained_is_no_table() {
        assert!(table(&backends(3, |_| 0), 65_537).is_empty());
        assert!(table(&[], 251).is_empty());
    }

    #[test]
    fn sizes_are_primes_and_follow_the_rule() {
        for size in SIZES {
            assert!((2..size).take_while(|d| d * d <= size).all(|d| size % d != 0), "{size}");
        }
        assert_eq!([size(1, 3), size(64, 10), size(65, 10)], [65_537, 65_537, 16_381]);
        assert_eq!([size(1_024, 10), size(1_025, 10), size(10_000, 10)], [16_381, 4_093, 1_021]);
        assert_eq!([size(10_000, 11), size(10_000, 1_000)], [4_093, 65_537]);
    }
}
