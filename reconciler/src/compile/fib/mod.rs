//! The builder of the lookup tables: sorted prefixes in; direct tables, nodes and leaves out, as `fib::lookup` reads them.
//!
//! No pointer trie is built. Sorted by (address, length), all prefixes inside one slot of a table are neighbours and come
//! after the prefixes that cover the slot, so one pass over a table's prefixes paints its slots and finds those that need
//! a table of their own.

mod ipv4;
mod ipv6;

use std::ops::Range;

use fib::layout::STRIDE_BITS;

pub(super) use ipv4::{Blocks, V4Fib};
pub(super) use ipv6::V6Fib;

/// Slots of one node or block.
pub(super) const SLOTS: usize = 1 << STRIDE_BITS;
/// Fewest prefixes for which a 12-bit direct table (16 KiB) is worth its bytes.
const DIRECT_12_FROM: usize = 512;

/// A numeric address whose bits are counted from the most significant.
pub(super) trait Address: Copy + Ord {
    const BITS: u32;
    /// The `bits` bits that follow the first `at`, padded with zeros past the address's end.
    fn slot(self, at: u32, bits: u32) -> usize;
}

impl Address for u32 {
    const BITS: u32 = Self::BITS;
    fn slot(self, at: u32, bits: u32) -> usize {
        ((self << at) >> (Self::BITS - bits)) as usize
    }
}

impl Address for u128 {
    const BITS: u32 = Self::BITS;
    fn slot(self, at: u32, bits: u32) -> usize {
        ((self << at) >> (Self::BITS - bits)) as usize
    }
}

/// One prefix with its target and the place that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule<A> {
    pub address: A,
    pub length: u8,
    pub target: u16,
    pub file: u16,
    pub line: u32,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TrieNode {
    pub children: u64,
    pub leaves: u64,
    pub first_leaf: u32,
    pub first_child: u32,
}

/// The trie below the direct tables.
#[derive(Debug, Default)]
pub(super) struct Poptrie {
    pub nodes: Vec<TrieNode>,
    pub leaves: Vec<u16>,
}

impl Poptrie {
    /// A new trie of prefixes that divide what the first `at` bits select; `default` is what covers it from above.
    /// Returns its node.
    pub(super) fn plant<A: Address>(&mut self, rules: &[Rule<A>], at: u32, default: u16) -> u32 {
        let node = self.nodes.len();
        self.nodes.push(TrieNode::default());
        self.fill(node, rules, at, default);
        index(node)
    }

    /// Fills the node that resolves the bits after the first `at`.
    fn fill<A: Address>(&mut self, node: usize, rules: &[Rule<A>], at: u32, default: u16) {
        let mut targets = [default; SLOTS];
        let mut runs: [Range<usize>; SLOTS] = [const { 0..0 }; SLOTS];
        let mut children = 0u64;
        paint(rules, at, STRIDE_BITS, &mut targets, |slot, run| {
            children |= 1 << slot;
            runs[slot] = run;
        });

        let first_leaf = index(self.leaves.len());
        let mut leaves = 0u64;
        let mut previous = None;
        for (slot, &target) in targets.iter().enumerate() {
            // A child's slot has no leaf of its own: it neither starts nor ends a run.
            if (children >> slot) & 1 == 0 && previous != Some(target) {
                leaves |= 1 << slot;
                self.leaves.push(target);
                previous = Some(target);
            }
        }

        let first_child = self.nodes.len();
        self.nodes.resize(first_child + children.count_ones() as usize, TrieNode::default());
        self.nodes[node] = TrieNode { children, leaves, first_leaf, first_child: index(first_child) };
        let divided = (0..SLOTS).filter(|slot| (children >> slot) & 1 != 0);
        for (child, slot) in (first_child..).zip(divided) {
            self.fill(child, &rules[runs[slot].clone()], at + STRIDE_BITS, targets[slot]);
        }
    }
}

/// Hash maps of targets: small numbers that need no mixing beyond one multiplication.
type Unmixed = std::hash::BuildHasherDefault<TargetHasher>;

#[derive(Default)]
struct TargetHasher(u64);

impl std::hash::Hasher for TargetHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u16(byte.into());
        }
    }
    fn write_u16(&mut self, target: u16) {
        self.0 = (self.0 ^ u64::from(target)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Paints the slots after the first `at` bits with the targets of prefixes that end in them, and reports every slot that
/// longer prefixes divide, with those prefixes' range; a slot whose longer prefixes all repeat its target is not divided.
pub(super) fn paint<A: Address>(
    rules: &[Rule<A>],
    at: u32,
    bits: u32,
    targets: &mut [u16],
    mut divided: impl FnMut(usize, Range<usize>),
) {
    let end = at + bits;
    let mut i = 0;
    while let Some(rule) = rules.get(i) {
        let slot = rule.address.slot(at, bits);
        if u32::from(rule.length) <= end {
            targets[slot..slot + (1 << (end - u32::from(rule.length)))].fill(rule.target);
            i += 1;
            continue;
        }
        let start = i;
        let mut differs = false;
        while let Some(rule) = rules.get(i)
            && rule.address.slot(at, bits) == slot
        {
            differs |= rule.target != targets[slot];
            i += 1;
        }
        if differs {
            divided(slot, start..i);
        }
    }
}

/// A table index; a table of 2^32 entries would exceed every capacity class long before.
#[expect(clippy::cast_possible_truncation, reason = "the image's size limit is checked before anything is written")]
fn index(i: usize) -> u32 {
    i as u32
}
