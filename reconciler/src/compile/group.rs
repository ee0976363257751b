//! Next-hop groups: a slot table that honours weights exactly and moves few flows when members change.
//!
//! Slots are counted by largest remainder and placed by permutation filling, as in Maglev (Eisenbud et al., "Maglev: A Fast
//! and Reliable Software Network Load Balancer", NSDI 2016, section 3.4): every member has its own order of preference
//! over the slots, made from its name and address alone, and members take turns to claim their next free slot.
//!
//! What a member's leaving moves, as a multiple of its own share (1 is the least possible): 1.05 of 4 equal members, 1.28 of
//! 10, 1.6 of 16, 3.7 of 41; the tests hold these numbers.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use fib::hash::mix;
use fib::layout::GROUP_MEMBERS_MAX;

use crate::policy::NextHop;

/// Slots of an ordinary group, and the number of different places in every group's order of preference.
const SLOTS_DEFAULT: usize = 1 << BASE_BITS;
const BASE_BITS: u32 = 10;
/// Slots of the largest table.
pub const SLOTS_MAX: usize = 16_384;
/// Fewest slots of the lightest member while a larger table is to be had: a slot more or less is below 1 % of its share.
const SHARE_SLOTS_MIN: u64 = 100;
/// Most members of one group: each of equal weight still has 16 slots in the largest table.
pub const MEMBERS_MAX: usize = GROUP_MEMBERS_MAX as usize;

/// A member as placement sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    /// Names the member across generations.
    pub identity: u64,
    pub weight: u16,
    /// Index into the image's next-hop table.
    pub next_hop: u16,
}

/// What a next hop is, whatever its place in any table.
pub(super) fn identity(policy: &str, hop: &NextHop) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in [policy, &hop.name, &hop.via.to_string(), &hop.port] {
        hasher.update(part.as_bytes());
        hasher.update(&[0]);
    }
    let digest = hasher.finalize();
    digest.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The group's slot table: a power of two of next-hop indices.
pub(super) fn slots(members: &[Placed]) -> Vec<u16> {
    let size = table_size(members);
    let quotas = quotas(members, size);
    let mut turns: BinaryHeap<Turn> = members
        .iter()
        .zip(&quotas)
        .enumerate()
        .filter(|(_, (_, quota))| **quota > 0)
        .map(|(member, (placed, &quota))| Turn { claimed: 0, quota, identity: placed.identity, member })
        .collect();
    let mut table: Vec<Option<u16>> = vec![None; size];
    let mut preferences: Vec<Preferences> = members.iter().map(|m| Preferences::new(m.identity, size)).collect();
    while let Some(mut turn) = turns.pop() {
        // Quotas add up to the table's size, so whoever has a turn finds a free slot before its preferences end.
        if let Some(slot) = preferences[turn.member].by_ref().find(|&slot| table[slot].is_none()) {
            table[slot] = Some(members[turn.member].next_hop);
        }
        turn.claimed += 1;
        if turn.claimed < turn.quota {
            turns.push(turn);
        }
    }
    table.into_iter().flatten().collect()
}

/// Does not depend on the number of members as long as each has a fair number of slots.
fn table_size(members: &[Placed]) -> usize {
    let total: u64 = members.iter().map(|m| u64::from(m.weight)).sum();
    let lightest = members.iter().map(|m| u64::from(m.weight)).min().unwrap_or(1);
    let mut size = SLOTS_DEFAULT;
    while size < SLOTS_MAX && size as u64 * lightest < SHARE_SLOTS_MIN * total {
        size *= 4;
    }
    size
}

/// Slots of each member by largest remainder; they add up to `size`.
fn quotas(members: &[Placed], size: usize) -> Vec<u64> {
    let total: u64 = members.iter().map(|m| u64::from(m.weight)).sum::<u64>().max(1);
    let share = |m: &Placed| u64::from(m.weight) * size as u64;
    let mut quotas: Vec<u64> = members.iter().map(|m| share(m) / total).collect();
    let mut left = size as u64 - quotas.iter().sum::<u64>();
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(share(&members[i]) % total), members[i].identity));
    for i in order {
        if left == 0 {
            break;
        }
        quotas[i] += 1;
        left -= 1;
    }
    quotas
}

/// Whose turn it is: the member that has claimed the smallest part of its quota.
#[derive(Debug, PartialEq, Eq)]
struct Turn {
    claimed: u64,
    quota: u64,
    identity: u64,
    member: usize,
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> Ordering {
        // (2 claimed + 1) / quota, smallest first: the heap gives its largest.
        let ours = (2 * self.claimed + 1) * other.quota;
        let theirs = (2 * other.claimed + 1) * self.quota;
        theirs.cmp(&ours).then(other.identity.cmp(&self.identity)).then(other.member.cmp(&self.member))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A member's order of preference: a permutation of the slots.
///
/// A larger table is the base table with every slot divided, visited together: so a group that outgrows its table keeps
/// most flows where they were.
struct Preferences {
    rounds: [(usize, usize); 3],
    next: usize,
    size: usize,
}

impl Preferences {
    fn new(identity: u64, size: usize) -> Self {
        let mut word = identity;
        let rounds = std::array::from_fn(|_| {
            word = mix(word.wrapping_add(0x9e37_79b9_7f4a_7c15));
            // An odd factor and any addend make a permutation modulo a power of two.
            (low(word) | 1, low(word >> 32))
        });
        Self { rounds, next: 0, size }
    }
}

impl Iterator for Preferences {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.next >= self.size {
            return None;
        }
        let parts = self.size / SLOTS_DEFAULT;
        let mut base = self.next / parts;
        for (factor, addend) in self.rounds {
            base = base.wrapping_mul(factor).wrapping_add(addend) % SLOTS_DEFAULT;
            base ^= base >> (BASE_BITS / 2);
        }
        let slot = base + SLOTS_DEFAULT * (self.next % parts);
        self.next += 1;
        Some(slot)
    }
}

/// The low bits that address a base slot.
fn low(word: u64) -> usize {
    let [low, high, ..] = word.to_le_bytes();
    usize::from(u16::from_le_bytes([low, high])) % SLOTS_DEFAULT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(i: u16, weight: u16) -> Placed {
        Placed { identity: mix(u64::from(i) + 1), weight, next_hop: i }
    }

    fn moved(before: &[Placed], after: &[Placed]) -> f64 {
        let (a, b) = (slots(before), slots(after));
        let size = a.len().max(b.len());
        let differ = (0..size).filter(|i| a[i % a.len()] != b[i % b.len()]).count();
        f64::from(u32::try_from(differ).expect("small")) / f64::from(u32::try_from(size).expect("small"))
    }

    #[test]
    fn a_permutation_visits_every_slot_once() {
        for size in [1024, 4096, 16_384] {
            let mut seen = vec![false; size];
            for slot in Preferences::new(mix(7), size) {
                assert!(!std::mem::replace(&mut seen[slot], true));
            }
            assert!(seen.into_iter().all(|s| s));
        }
    }

    #[test]
    fn weights_are_exact_to_one_slot() {
        for weights in [&[1][..], &[3, 1], &[1; 7], &[1; 100], &[1; 1000], &[65_535, 1], &[10, 20, 30, 41], &[1, 99]] {
            let members: Vec<Placed> = weights.iter().zip(0..).map(|(&w, i)| member(i, w)).collect();
            let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
            let table = slots(&members);
            assert!(table.len().is_power_of_two() && table.len() <= SLOTS_MAX);
            for m in &members {
                let got = table.iter().filter(|&&hop| hop == m.next_hop).count() as u64 * total;
                let exact = table.len() as u64 * u64::from(m.weight);
                assert!(got.abs_diff(exact) < total, "{weights:?}: {got} against {exact} (times {total})");
                if table.len() < SLOTS_MAX || exact >= 100 * total {
                    assert!(got.abs_diff(exact) * 100 <= exact, "{weights:?}: over 1 % off its share");
                }
            }
        }
    }

    #[test]
    fn a_member_that_leaves_or_comes_moves_about_its_own_share() {
        // (members before, most that may move when the last leaves, as a multiple of its share)
        for (count, most) in [(2, 1.05), (4, 1.5), (8, 1.6), (10, 1.6), (11, 1.6), (16, 1.6), (41, 4.0)] {
            let all: Vec<Placed> = (0..count).map(|i| member(i, 1)).collect();
            let share = 1.0 / f64::from(count);
            let fraction = moved(&all, &all[..usize::from(count) - 1]);
            println!("{count} members, one leaves: {:.3} of its share moves", fraction / share);
            assert!(fraction <= share * most, "{count}: {fraction} moved, its share is {share}");
            assert!(fraction >= share * 0.95, "{count}: {fraction} moved, its share is {share}");
        }
    }

    #[test]
    fn a_new_weight_moves_about_the_difference() {
        let with = |heavy| [member(0, heavy), member(1, 1), member(2, 1), member(3, 1)];
        let least = 4.0 / 7.0 - 3.0 / 6.0;
        let fraction = moved(&with(3), &with(4));
        println!("weight 3 to 4 among four: {:.3} of the difference moves", fraction / least);
        assert!(fraction <= 1.5 * least && fraction >= 0.95 * least, "{fraction} moved, {least} must");
    }

    #[test]
    fn a_group_that_outgrows_its_table_keeps_its_flows() {
        let all: Vec<Placed> = (0..11).map(|i| member(i, 1)).collect();
        assert_eq!((slots(&all[..10]).len(), slots(&all).len()), (1024, 4096));
        assert!(moved(&all[..10], &all) <= 1.6 / 11.0);
    }

    #[test]
    fn the_order_of_members_does_not_matter() {
        let mut members: Vec<Placed> = (0..9).map(|i| member(i, 1 + i)).collect();
        let table = slots(&members);
        members.reverse();
        assert_eq!(slots(&members), table);
    }
}
