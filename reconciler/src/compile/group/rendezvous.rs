//! Scores of members over slots: rendezvous hashing, in integers that are the same on every machine.
//!
//! With `u` uniform in (0, 1), the member of largest `-weight / ln u` is each member with the probability of its share
//! (the weighted form, by the exponential race, of Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit
//! Rates", 1998). Its logarithm keeps the order and makes the weight a term beside the score:
//! `log2(weight) - log2(-log2 u)`. A score depends on the member's own identity and the slot only.

use fib::hash::mix;

/// One of [`log2`].
pub(super) const ONE: i64 = 1 << FRACTION_BITS;
const FRACTION_BITS: u32 = 32;

/// Of 2^64 / the golden ratio, odd: successive multiples lie far apart (Knuth, TAOCP volume 3, section 6.4).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// How much the member likes the slot: `-log2(-log2 u)` with the `u` of this pair, and a constant, in units of 1 / [`ONE`].
pub(super) fn score(identity: u64, slot: u32) -> i64 {
    let u = mix(identity.wrapping_add(u64::from(slot).wrapping_mul(GOLDEN))) | 1;
    let exponential = 64 * ONE - log2(u);
    -log2(exponential.max(1).cast_unsigned())
}

/// Binary logarithm of a positive number in units of 1 / [`ONE`]: whole bits counted, the rest from a table and linear
/// between its entries, at most 2^-22 too small.
pub(super) const fn log2(number: u64) -> i64 {
    let zeros = number.leading_zeros();
    let fraction = (number << zeros) << 1;
    let entry = (fraction >> (64 - TABLE_BITS)) as usize;
    let between = (fraction << TABLE_BITS >> 32).cast_signed();
    let (low, high) = (TABLE[entry], TABLE[entry + 1]);
    (63 - zeros as i64) * ONE + low + (((high - low) * between) >> 32)
}

const TABLE_BITS: u32 = 10;

/// `log2(1 + i / 1024)`.
static TABLE: [i64; (1 << TABLE_BITS) + 1] = {
    let mut table = [0; (1 << TABLE_BITS) + 1];
    let mut i = 0;
    while i < table.len() {
        // Squaring a number of [1, 2) doubles its logarithm: whether the square reaches 2 is the next bit.
        let mut number = (1 << 63) + ((i as u128) << (63 - TABLE_BITS));
        let mut bits = 0;
        let mut left = FRACTION_BITS;
        if number >> 64 != 0 {
            number >>= 1;
            bits = 1;
        }
        while left > 0 {
            number = (number * number) >> 63;
            bits <<= 1;
            if number >> 64 != 0 {
                number >>= 1;
                bits |= 1;
            }
            left -= 1;
        }
        table[i] = bits;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_those_of_mathematics() {
        assert_eq!((log2(1), log2(2), log2(1 << 63)), (0, ONE, 63 * ONE));
        for number in (1..2000).chain((0..64).map(|bit| (1 << bit) | 0x1234_5678_9abc >> (63 - bit))).chain([u64::MAX])
        {
            #[expect(clippy::cast_precision_loss, reason = "compared to 2^-22")]
            let (exact, got) = ((number as f64).log2(), log2(number) as f64 / ONE as f64);
            assert!((exact - got).abs() < 1.0 / f64::from(1 << 22), "{number}: {got}, exactly {exact}");
        }
    }

    #[test]
    fn logarithms_never_fall() {
        for number in (1..5000).chain((1..1 << 20).map(|i| u64::MAX - (1 << 20) + i)) {
            assert!(log2(number) <= log2(number + 1), "{number}");
        }
    }

    /// These very numbers, on every machine and in every release: tables of nodes are compared.
    #[test]
    fn scores_are_pinned() {
        let scores = [(0, 0), (1, 0), (1, 1), (u64::MAX, 4095)].map(|(identity, slot)| score(identity, slot));
        assert_eq!(scores, [-163_208_757_248, -133_210_962_834, -125_869_541_023, -133_953_410_864]);
    }
}
