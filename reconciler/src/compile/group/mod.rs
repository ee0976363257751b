//! Next-hop groups: a slot table that honours weights exactly and moves few flows when members change.
//!
//! 1. Every member scores every slot by rendezvous hashing (Thaler and Ravishankar, "Using Name-Based Mappings to Increase
//!    Hit Rates", IEEE/ACM Transactions on Networking 6(1), 1998), from its own identity alone: `rendezvous`.
//! 2. Every member has a quota of slots: its share by weight, by largest remainder.
//! 3. Slots go to members so that the total score is the largest that the quotas allow: `exchange`. Without quotas that is
//!    rendezvous hashing itself, whose shares are off by the square root of their slots; table filling by turns, as in
//!    Maglev (Eisenbud et al., NSDI 2016, section 3.4), meets quotas but moves several times more flows.
//!
//! The table is a function of the set of members, and all arithmetic is on integers: every node makes the same one,
//! whatever was live before and in whatever order members are written.
//!
//! Bounds, held by the tests over random member sets with equal weights, 3:1, 10:20:30:41 and 1..100:
//! - A member's slots are its exact share to within one slot, and within 1 % of it up to 655 equal members: those whose
//!   share is at least 100 of the largest table's 65,536 slots.
//! - With up to 256 members, one that leaves or comes moves at most its share and 2 % of all flows. What is moved beside the
//!   share is 0.2 % of all flows on average for 3 equal members, 0.7 % for 10, 1.1 % for 41, 1.8 % for 256; above, about 1.5 %
//!   for 400 and 2.2 % for 1024. More than 2 % is seen where most of the traffic leaves many members at once: 4 % when 655
//!   members lose one that had three quarters.
//!
//! One table takes about 0.2 ms for 4 members, 0.5 ms for 10, 4 ms for 41, 50 ms for 256 (what a policy may have) and 0.3 s for
//! 1024 of equal weight; for 1024 of weights 1 to 100, where every member is a candidate of every slot, 8 s.
mod exchange;
mod rendezvous;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;

use fib::layout::GROUP_MEMBERS_MAX;

use crate::policy::NextHop;
use exchange::{Candidate, Held};

/// Slots of an ordinary group, and the number of those that members score: a larger table is this one with every slot
/// divided, so that a group that outgrows its table keeps its flows. What moves beside a member's share falls with the
/// square root of this number; half of it would be over 2 % of all flows for 41 members.
const SLOTS_SCORED: usize = 1 << 12;
/// Slots of the largest table.
pub const SLOTS_MAX: usize = 1 << 16;
/// Most members of one group, all of which the packet path can try when others are down; each of equal weight has 256
/// slots in the largest table.
pub const MEMBERS_MAX: usize = GROUP_MEMBERS_MAX as usize;
/// A member's slots are within this part of its exact share, while a larger table is to be had.
const PART: u64 = 100;
/// How many members a slot may go to, its best ones: more where those do not allow the quotas.
const WIDTHS: [usize; 3] = [16, 128, 1024];

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
    let mut members = members.to_vec();
    members.sort_unstable_by_key(|m| (m.identity, m.next_hop));
    let size = table_size(&members);
    let quotas = quotas(&members, size);
    let held = WIDTHS.into_iter().find_map(|width| {
        let candidates = candidates(&members, width.min(members.len()));
        exchange::assign(&candidates, width.min(members.len()), &quotas, narrow(size / SLOTS_SCORED))
    });
    // The last width takes in every member, and among all of them any quotas can be met.
    table(&members, &held.unwrap_or_default(), size)
}

/// The smallest size that honours all weights.
fn table_size(members: &[Placed]) -> usize {
    let total: u64 = members.iter().map(|m| u64::from(m.weight)).sum();
    let honours = |size: usize| {
        quotas(members, size).iter().zip(members).all(|(&quota, member)| {
            let exact = u64::from(member.weight) * size as u64;
            (u64::from(quota) * total).abs_diff(exact) * PART <= exact
        })
    };
    let mut size = SLOTS_SCORED;
    while size < SLOTS_MAX && !honours(size) {
        size *= 2;
    }
    size
}

/// Slots of each member by largest remainder; they add up to `size`.
fn quotas(members: &[Placed], size: usize) -> Vec<u32> {
    let total: u64 = members.iter().map(|m| u64::from(m.weight)).sum::<u64>().max(1);
    let share = |m: &Placed| u64::from(m.weight) * size as u64;
    let mut quotas: Vec<u32> = members.iter().map(|m| narrow(share(m) / total)).collect();
    let left = size - quotas.iter().map(|&quota| quota as usize).sum::<usize>();
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|&i| (Reverse(share(&members[i]) % total), members[i].identity));
    for &i in order.iter().take(left) {
        quotas[i] += 1;
    }
    quotas
}

/// The best `width` members of every slot that is scored.
fn candidates(members: &[Placed], width: usize) -> Vec<Candidate> {
    let scored = |slot| {
        (0..)
            .zip(members)
            .map(move |(member, m): (u32, &Placed)| Candidate { member, score: rendezvous::score(m.identity, slot) })
    };
    let slots = 0..narrow(SLOTS_SCORED);
    if width >= members.len() {
        return slots.flat_map(scored).collect();
    }
    let weights: Vec<i64> = members.iter().map(|m| rendezvous::log2(u64::from(m.weight))).collect();
    let mut candidates = Vec::with_capacity(SLOTS_SCORED * width);
    let mut all: Vec<Candidate> = Vec::with_capacity(members.len());
    for slot in slots {
        all.clear();
        all.extend(scored(slot));
        all.select_nth_unstable_by_key(width, |c| (Reverse(c.score + weights[c.member as usize]), c.member));
        candidates.extend_from_slice(&all[..width]);
    }
    candidates
}

/// Writes down who holds what. A divided slot's parts are taken in bit-reversed order, so that each member has the same
/// ones in a table twice as large.
fn table(members: &[Placed], held: &[Vec<Held>], size: usize) -> Vec<u16> {
    let units = narrow(size / SLOTS_SCORED);
    let mut table = vec![0; size];
    let mut taken = vec![0u32; SLOTS_SCORED];
    for (member, held) in members.iter().zip(held) {
        for held in held {
            let taken = &mut taken[held.slot as usize];
            for _ in 0..held.units {
                let part = taken.reverse_bits().checked_shr(32 - units.ilog2()).unwrap_or(0);
                table[held.slot as usize + SLOTS_SCORED * part as usize] = member.next_hop;
                *taken += 1;
            }
        }
    }
    table
}

/// Of numbers up to [`SLOTS_MAX`].
fn narrow(number: impl TryInto<u32>) -> u32 {
    number.try_into().unwrap_or(u32::MAX)
}
