//! The builder of the lookup tables: sorted prefixes in; direct tables, nodes and leaves out, as `fib::lookup` reads them.
//!
//! No pointer trie is built. Sorted by (address, length), all prefixes inside one slot of a table are neighbours and come
//! after the prefixes that cover the slot, so one pass over a table's prefixes paints its slots and finds those that need
//! a table of their own.

use std::collections::HashMap;
use std::ops::Range;

use fib::layout::{
    BLOCK_BYTES, DIRECT_BITS_MAX, DIRECT_BITS_MIN, DIRECT_BLOCK_BITS, DIRECT_NODE, LAST_LEAF, PALETTE_BYTES,
    PALETTES_MAX, STRIDE_BITS,
};

/// Slots of one node or block.
const SLOTS: usize = 1 << STRIDE_BITS;
/// Colours of one palette.
const COLOURS: usize = PALETTE_BYTES as usize / 2;
/// Fewest prefixes for which a 12-bit direct table (16 KiB) is worth its bytes.
const DIRECT_12_FROM: usize = 512;
/// Fewest prefixes for which the 18-bit direct table (1 MiB) is worth its bytes.
const DIRECT_18_FROM: usize = 65_536;
/// Widths of the three tables of IPv6, from the widest on.
const V6_SHAPES: [[u32; 3]; 3] = [[16, 8, 6], [12, 6, 6], V6_SMALLEST];
const V6_SMALLEST: [u32; 3] = [6, 6, 6];
/// Most bytes that the three tables may take for each prefix; otherwise the next shape is tried.
const V6_BYTES_PER_PREFIX: usize = 32;

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
    fn plant<A: Address>(&mut self, rules: &[Rule<A>], at: u32, default: u16) -> u32 {
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

/// The lookup tables of IPv4.
#[derive(Debug)]
pub(super) struct V4Fib {
    pub direct_bits: u32,
    pub direct: Vec<u32>,
    pub blocks: Vec<[u8; BLOCK_BYTES as usize]>,
    pub palettes: Vec<[u16; COLOURS]>,
    pub trie: Poptrie,
}

impl V4Fib {
    /// Builds the tables of `rules`, which are sorted by (address, length) and hold no prefix twice.
    pub(super) fn build(rules: &[Rule<u32>]) -> Self {
        let direct_bits = direct_bits(rules.len());
        let mut targets = vec![0u16; 1 << direct_bits];
        let mut divided: Vec<(usize, Range<usize>)> = Vec::new();
        // Painted with targets first; 0 is "no route".
        paint(rules, 0, direct_bits, &mut targets, |slot, run| divided.push((slot, run)));

        let mut trie = Poptrie { nodes: Vec::new(), leaves: Vec::new() };
        let mut blocks = Blocks::default();
        let mut direct = Vec::with_capacity(targets.len());
        let mut divided = divided.into_iter().peekable();
        for (slot, &target) in targets.iter().enumerate() {
            let entry = if let Some((_, run)) = divided.next_if(|(divided, _)| *divided == slot) {
                let rules = &rules[run];
                let end = direct_bits + STRIDE_BITS;
                let block = if rules.iter().all(|rule| u32::from(rule.length) <= end) {
                    let mut slots = [target; SLOTS];
                    paint(rules, direct_bits, STRIDE_BITS, &mut slots, |_, _| ());
                    blocks.add(&slots)
                } else {
                    None
                };
                block.unwrap_or_else(|| DIRECT_NODE | trie.plant(rules, direct_bits, target))
            } else {
                // Nothing divides the slot, so a node would have one leaf.
                blocks.uniform(target).unwrap_or_else(|| DIRECT_NODE | trie.plant::<u32>(&[], direct_bits, target))
            };
            direct.push(entry);
        }
        Self { direct_bits, direct, blocks: blocks.blocks, palettes: blocks.palettes, trie }
    }
}

/// Blocks and their palettes while they grow. A palette is used until a block needs more colours than it has left.
#[derive(Default)]
struct Blocks {
    blocks: Vec<[u8; SLOTS]>,
    palettes: Vec<[u16; COLOURS]>,
    /// Colours of the last palette that are taken.
    taken: usize,
    /// Colour of each target in the last palette.
    colours: HashMap<u16, u8, Unmixed>,
    /// Entry of each target that fills a block alone.
    uniform: HashMap<u16, u32, Unmixed>,
}

impl Blocks {
    /// The direct entry of a block that is one target throughout; `None` when there are no more palettes.
    fn uniform(&mut self, target: u16) -> Option<u32> {
        if let Some(&entry) = self.uniform.get(&target) {
            return Some(entry);
        }
        let entry = self.add(&[target; SLOTS])?;
        self.uniform.insert(target, entry);
        Some(entry)
    }

    /// The direct entry of a block with these targets; `None` when there are no more palettes.
    fn add(&mut self, targets: &[u16; SLOTS]) -> Option<u32> {
        if self.palettes.is_empty() {
            self.open()?;
        }
        let (colours, taken) = (self.colours.len(), self.taken);
        let block = match self.paint(targets) {
            Some(block) => block,
            None => {
                debug_assert!(colours <= self.colours.len() && taken <= self.taken);
                self.open()?;
                // An empty palette has more colours than a block has slots.
                self.paint(targets)?
            }
        };
        let entry = index(self.blocks.len()) | index(self.palettes.len() - 1) << DIRECT_BLOCK_BITS;
        self.blocks.push(block);
        Some(entry)
    }

    /// The block in the colours of the last palette, which gets those it lacks; `None` when it has no room for them.
    fn paint(&mut self, targets: &[u16; SLOTS]) -> Option<[u8; SLOTS]> {
        let palette = self.palettes.last_mut()?;
        let mut block = [0; SLOTS];
        let mut previous = None;
        for (slot, &target) in block.iter_mut().zip(targets) {
            let colour = match previous {
                Some((same, colour)) if same == target => colour,
                _ => match self.colours.get(&target) {
                    Some(&colour) => colour,
                    None => {
                        let colour = u8::try_from(self.taken).ok()?;
                        palette[self.taken] = target;
                        self.taken += 1;
                        self.colours.insert(target, colour);
                        colour
                    }
                },
            };
            *slot = colour;
            previous = Some((target, colour));
        }
        Some(block)
    }

    /// Begins a palette.
    fn open(&mut self) -> Option<()> {
        if self.palettes.len() == PALETTES_MAX as usize {
            return None;
        }
        self.palettes.push([0; COLOURS]);
        self.taken = 0;
        self.colours.clear();
        Some(())
    }
}

/// The lookup tables of IPv6.
#[derive(Debug)]
pub(super) struct V6Fib {
    pub widths: [u32; 3],
    pub root: Vec<u32>,
    pub middle: Vec<u32>,
    pub last: Vec<u32>,
    pub trie: Poptrie,
}

impl V6Fib {
    /// Builds the tables of `rules`, which are sorted by (address, length) and hold no prefix twice.
    pub(super) fn build(rules: &[Rule<u128>]) -> Self {
        let widths = v6_widths(rules);
        let trie = Poptrie { nodes: Vec::new(), leaves: Vec::with_capacity(rules.len()) };
        let mut fib = Self { widths, root: Vec::new(), middle: Vec::new(), last: Vec::new(), trie };
        let mut same = Uniform::default();
        let [width, ..] = widths;
        let mut targets = vec![0u16; 1 << width];
        let mut divided: Vec<(usize, Range<usize>)> = Vec::new();
        paint(rules, 0, width, &mut targets, |slot, run| divided.push((slot, run)));
        let mut divided = divided.into_iter().peekable();
        for (slot, &target) in targets.iter().enumerate() {
            let entry = match divided.next_if(|(divided, _)| *divided == slot) {
                Some((_, run)) => fib.add_middle(&rules[run], target, &mut same),
                None => match same.middle.get(&target) {
                    Some(&entry) => entry,
                    None => {
                        let entry = fib.add_middle(&[], target, &mut same);
                        same.middle.insert(target, entry);
                        entry
                    }
                },
            };
            fib.root.push(entry);
        }
        fib
    }

    fn add_middle(&mut self, rules: &[Rule<u128>], default: u16, same: &mut Uniform) -> u32 {
        let [at, width, _] = self.widths;
        let first = self.middle.len();
        let mut targets = vec![default; 1 << width];
        let mut divided: Vec<(usize, Range<usize>)> = Vec::new();
        paint(rules, at, width, &mut targets, |slot, run| divided.push((slot, run)));
        let mut divided = divided.into_iter().peekable();
        for (slot, &target) in targets.iter().enumerate() {
            let entry = match divided.next_if(|(divided, _)| *divided == slot) {
                Some((_, run)) => self.add_last(&rules[run], target),
                None => *same.last.entry(target).or_insert_with(|| self.add_last(&[], target)),
            };
            self.middle.push(entry);
        }
        index(first)
    }

    fn add_last(&mut self, rules: &[Rule<u128>], default: u16) -> u32 {
        let [root, middle, width] = self.widths;
        let at = root + middle;
        let first = self.last.len();
        let mut targets = vec![default; 1 << width];
        let mut divided: Vec<(usize, Range<usize>)> = Vec::new();
        paint(rules, at, width, &mut targets, |slot, run| divided.push((slot, run)));
        self.last.extend(targets.iter().map(|&target| LAST_LEAF | u32::from(target)));
        for (slot, run) in divided {
            self.last[first + slot] = self.trie.plant(&rules[run], at + width, targets[slot]);
        }
        index(first)
    }
}

/// Tables that are one target throughout, by that target: one of each is enough.
#[derive(Default)]
struct Uniform {
    middle: HashMap<u16, u32, Unmixed>,
    last: HashMap<u16, u32, Unmixed>,
}

/// The widest shape whose tables are worth their bytes.
fn v6_widths(rules: &[Rule<u128>]) -> [u32; 3] {
    let worth = |&[root, middle, last]: &[u32; 3]| {
        let (middle_bytes, last_bytes) = (4usize << middle, 4usize << last);
        // Those of the default.
        let mut bytes = (4usize << root) + middle_bytes + last_bytes;
        let mut previous = None;
        for rule in rules {
            let differs = |bits: u32| {
                previous
                    .is_none_or(|previous: &Rule<u128>| rule.address.slot(0, bits) != previous.address.slot(0, bits))
            };
            // A prefix that ends in a table may need a uniform one below it; a longer one needs its own.
            let length = u32::from(rule.length);
            let own = length > root + middle;
            if length <= root || differs(root) {
                bytes += middle_bytes;
            }
            if !own || differs(root + middle) {
                bytes += last_bytes;
            }
            // A shorter prefix with the same address has no table that the next one could share.
            previous = if length > root { Some(rule) } else { None };
        }
        bytes <= rules.len() * V6_BYTES_PER_PREFIX
    };
    V6_SHAPES.into_iter().find(worth).unwrap_or(V6_SMALLEST)
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
        bytes.iter().for_each(|&byte| self.write_u16(byte.into()));
    }
    fn write_u16(&mut self, target: u16) {
        self.0 = (self.0 ^ u64::from(target)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Paints the slots after the first `at` bits with the targets of prefixes that end in them, and reports every slot that
/// longer prefixes divide, with those prefixes' range; a slot whose longer prefixes all repeat its target is not divided.
fn paint<A: Address>(
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

fn direct_bits(rules: usize) -> u32 {
    if rules >= DIRECT_18_FROM {
        DIRECT_BITS_MAX
    } else if rules >= DIRECT_12_FROM {
        DIRECT_BITS_MIN + STRIDE_BITS
    } else {
        DIRECT_BITS_MIN
    }
}

/// A table index; a table of 2^32 entries would exceed every capacity class long before.
#[expect(clippy::cast_possible_truncation, reason = "the image's size limit is checked before anything is written")]
fn index(i: usize) -> u32 {
    i as u32
}
