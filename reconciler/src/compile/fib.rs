//! The builder of the lookup tables: sorted prefixes in; direct tables, nodes and leaves out, as `fib::lookup` reads them.
//!
//! No pointer trie is built. Sorted by (address, length), all prefixes inside one slot of a table are neighbours and come
//! after the prefixes that cover the slot, so one pass over a table's prefixes paints its slots and finds those that need
//! a table of their own.

use std::collections::HashMap;
use std::ops::Range;

use fib::layout::{
    BLOCK_BYTES, BUCKET_KEY_BITS, BUCKET_KEYS, BUCKET_LANE_BITS, BUCKET_LANES, BUCKET_WORDS, DIRECT_BITS_MAX,
    DIRECT_BITS_MIN, DIRECT_BLOCK_BITS, DIRECT_NODE, PALETTE_BYTES, PALETTES_MAX, RADIX_NODE, RADIX_STEPS,
    RADIX_TAG_BITS, STRIDE_BITS,
};

/// Slots of one node or block.
const SLOTS: usize = 1 << STRIDE_BITS;
/// Colours of one palette.
const COLOURS: usize = PALETTE_BYTES as usize / 2;
/// Fewest prefixes for which a 12-bit direct table (16 KiB) is worth its bytes.
const DIRECT_12_FROM: usize = 512;
/// Fewest prefixes for which the 18-bit direct table (1 MiB) is worth its bytes.
const DIRECT_18_FROM: usize = 512;
/// Fewest prefixes of IPv6 for which a 16-bit root (256 KiB) is worth its bytes; a 12-bit one from [`DIRECT_12_FROM`] on.
const ROOT_16_FROM: usize = 8_192;
/// Widest radix table, in bits.
const RADIX_BITS_MAX: u32 = 16;
/// Most entries of a radix table for each run of addresses in it: bounds the image whatever the prefixes are.
const RADIX_ENTRIES_PER_RUN: usize = 32;
/// What a run costs that the radix tables leave to the trie, in bytes: it is looked up slowly.
const TRIE_RUN_COST: u64 = 512;
/// Values of runs from here on are no targets: longer prefixes divide one /64.
const DIVIDED: u32 = 1 << 16;

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
        Self { direct_bits, direct, blocks: blocks.rows, palettes: blocks.palettes, trie }
    }
}

/// Blocks and their palettes while they grow. A palette is used until a block needs more colours than it has left.
#[derive(Default)]
struct Blocks {
    rows: Vec<[u8; SLOTS]>,
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
        let block = self.paint(targets).or_else(|| {
            self.open()?;
            // An empty palette has more colours than a block has slots.
            self.paint(targets)
        })?;
        let entry = index(self.rows.len()) | index(self.palettes.len() - 1) << DIRECT_BLOCK_BITS;
        self.rows.push(block);
        Some(entry)
    }

    /// The block in the colours of the last palette, which gets those it lacks; `None` when it has no room for them.
    fn paint(&mut self, targets: &[u16; SLOTS]) -> Option<[u8; SLOTS]> {
        let palette = self.palettes.last_mut()?;
        let mut block = [0; SLOTS];
        let mut previous = None;
        for (slot, &target) in block.iter_mut().zip(targets) {
            let known = match previous {
                Some((same, colour)) if same == target => Some(colour),
                _ => self.colours.get(&target).copied(),
            };
            let colour = if let Some(colour) = known {
                colour
            } else {
                let colour = u8::try_from(self.taken).ok()?;
                palette[self.taken] = target;
                self.taken += 1;
                self.colours.insert(target, colour);
                colour
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
#[derive(Debug, Default)]
pub(super) struct V6Fib {
    pub root_bits: u32,
    pub root: Vec<u32>,
    /// The radix tables of each step. Entries of the root and of all steps but the last count from the start of the next
    /// step's tables.
    pub steps: [Vec<u32>; RADIX_STEPS],
    pub buckets: Vec<Bucket>,
    pub trie: Poptrie,
}

/// Runs of addresses in one cache line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    /// First keys of all runs but the first, less one, in lanes whose highest bit is set.
    pub keys: [u64; BUCKET_WORDS],
    pub targets: [u16; 16],
}

impl V6Fib {
    /// Builds the tables of `rules`, which are sorted by (address, length) and hold no prefix twice.
    pub(super) fn build(rules: &[Rule<u128>]) -> Self {
        let root_bits = if rules.len() >= ROOT_16_FROM {
            16
        } else if rules.len() >= DIRECT_12_FROM {
            12
        } else {
            DIRECT_BITS_MIN
        };
        let runs = runs(rules);
        let mut builder = V6Builder {
            rules,
            regions: Regions { runs: &runs, all: Vec::new(), best: Vec::new() },
            same: std::array::from_fn(|_| HashMap::default()),
            fib: Self { root_bits, ..Self::default() },
        };
        let mut next = 0;
        for slot in 0..1u64 << root_bits {
            let first = slot << (64 - root_bits);
            let last = first | (u64::MAX >> root_bits);
            // The run that holds `first` may have begun before it.
            let start = next;
            next += runs[next..].partition_point(|run| run.first <= last);
            let start = if runs.get(start).is_some_and(|run| run.first == first) { start } else { start - 1 };
            let entry = builder.slot(Area { first, bits: root_bits }, start..next);
            builder.fib.root.push(entry);
        }
        builder.fib
    }
}

/// Addresses from `first` to the next run's `first` that have one target. Addresses are their first 64 bits.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u64,
    /// Target, or [`DIVIDED`] and more.
    value: u32,
}

/// The address space as runs, neighbours of different values, the first of them at zero.
fn runs(rules: &[Rule<u128>]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::with_capacity(rules.len() + 1);
    runs.push(Run { first: 0, value: 0 });
    // Prefixes around the current one, outermost first: their last address and value.
    let mut around: Vec<(u64, u32)> = Vec::new();
    let mut begin = |first: u64, value: u32| {
        if let Some(last) = runs.last_mut()
            && last.first == first
        {
            last.value = value;
            if let [.., before, last] = runs[..]
                && before.value == last.value
            {
                runs.pop();
            }
        } else if runs.last().is_none_or(|last| last.value != value) {
            runs.push(Run { first, value });
        }
    };
    let mut divided = DIVIDED;
    for rule in rules {
        let first = (rule.address >> 64) as u64;
        while let Some(&(last, _)) = around.last()
            && last < first
        {
            around.pop();
            begin(last + 1, around.last().map_or(0, |&(_, value)| value));
        }
        let value = if rule.length <= 64 {
            u32::from(rule.target)
        } else {
            // One mark is enough for all that divide the same /64.
            if around.last().is_some_and(|&(last, value)| last == first && value >= DIVIDED) {
                continue;
            }
            divided += 1;
            divided
        };
        begin(first, value);
        around.push((first | u64::MAX.checked_shr(rule.length.into()).unwrap_or(0), value));
    }
    while let Some((last, _)) = around.pop() {
        if last < u64::MAX {
            begin(last + 1, around.last().map_or(0, |&(_, value)| value));
        }
    }
    runs
}

/// All addresses with the first `bits` bits of `first`.
#[derive(Clone, Copy, Debug)]
struct Area {
    first: u64,
    bits: u32,
}

impl Area {
    fn halves(self) -> [Self; 2] {
        let bits = self.bits + 1;
        [Self { first: self.first, bits }, Self { first: self.first | 1 << (64 - bits), bits }]
    }
}

/// An area that was halved until every part fits into a bucket.
#[derive(Clone, Debug)]
struct Region {
    area: Area,
    runs: Range<usize>,
    fits: bool,
    /// The first of its two halves, which are neighbours; none if it fits or is a single /64.
    halves: Option<usize>,
}

struct Regions<'a> {
    runs: &'a [Run],
    all: Vec<Region>,
    /// For each region and number of steps, the cheapest cost and the width that gives it.
    best: Vec<[(u64, u32); RADIX_STEPS]>,
}

impl Regions<'_> {
    fn fits(&self, area: Area, runs: Range<usize>) -> bool {
        let finer = u64::MAX.checked_shr(area.bits + BUCKET_KEY_BITS).unwrap_or(0);
        runs.len() <= BUCKET_KEYS + 1
            && area.bits < 64
            && self.runs[runs]
                .iter()
                .all(|run| run.value < DIVIDED && (run.first <= area.first || run.first & finer == 0))
    }

    /// Halves an area that holds these runs; all regions below it follow it.
    fn divide(&mut self, at: usize) {
        let Region { area, runs, fits, .. } = self.all[at].clone();
        if fits || area.bits == 64 {
            return;
        }
        let halves = area.halves();
        let middle = runs.start + self.runs[runs.clone()].partition_point(|run| run.first < halves[1].first);
        let begins = self.runs.get(middle).is_some_and(|run| run.first == halves[1].first);
        let parts = [runs.start..middle, if begins { middle } else { middle - 1 }..runs.end];
        let first = self.all.len();
        self.all[at].halves = Some(first);
        for (area, runs) in halves.into_iter().zip(parts) {
            let fits = self.fits(area, runs.clone());
            self.all.push(Region { area, runs, fits, halves: None });
        }
        self.divide(first);
        self.divide(first + 1);
    }

    /// Finds the best widths of all regions; those below come after those above.
    fn weigh(&mut self) {
        self.best.clear();
        self.best.resize(self.all.len(), [(0, 0); RADIX_STEPS]);
        for at in (0..self.all.len()).rev() {
            if self.all[at].fits {
                continue;
            }
            for steps in 0..RADIX_STEPS {
                self.best[at][steps] = self.cheapest(at, steps);
            }
        }
    }

    /// The width of one table and `steps` more below it.
    fn cheapest(&self, at: usize, steps: usize) -> (u64, u32) {
        let region = &self.all[at];
        let entries_max = (region.runs.len() * RADIX_ENTRIES_PER_RUN).next_power_of_two().trailing_zeros();
        let bits_max = entries_max.min(RADIX_BITS_MAX).min(64 - region.area.bits);
        let mut below = [0u64; RADIX_BITS_MAX as usize + 1];
        self.below(at, 0, bits_max, steps, &mut below);
        (0..=bits_max).map(|bits| ((4 << bits) + below[bits as usize], bits)).min().unwrap_or_default()
    }

    /// Adds up what the parts cost that a table of each width leaves to the next step.
    fn below(&self, at: usize, depth: u32, bits_max: u32, steps: usize, costs: &mut [u64]) {
        let region = &self.all[at];
        if region.fits {
            return;
        }
        costs[depth as usize] += match steps.checked_sub(1) {
            Some(steps) => self.best[at][steps].0,
            None => TRIE_RUN_COST * region.runs.len() as u64,
        };
        if let Some(halves) = region.halves
            && depth < bits_max
        {
            self.below(halves, depth + 1, bits_max, steps, costs);
            self.below(halves + 1, depth + 1, bits_max, steps, costs);
        }
    }
}

struct V6Builder<'a> {
    rules: &'a [Rule<u128>],
    regions: Regions<'a>,
    /// Entries of areas that have one target throughout, by that target, for each number of steps below them.
    same: [HashMap<u16, u32, Unmixed>; RADIX_STEPS + 1],
    fib: V6Fib,
}

impl V6Builder<'_> {
    /// The root's entry for an area.
    fn slot(&mut self, area: Area, runs: Range<usize>) -> u32 {
        let fits = self.regions.fits(area, runs.clone());
        self.regions.all.clear();
        self.regions.all.push(Region { area, runs, fits, halves: None });
        self.regions.divide(0);
        self.regions.weigh();
        self.entry(0, RADIX_STEPS)
    }

    /// The entry that leads on from a region, with so many steps to go.
    fn entry(&mut self, at: usize, steps: usize) -> u32 {
        let Region { area, runs, fits, .. } = self.regions.all[at].clone();
        let same = (fits && runs.len() == 1).then(|| target(self.regions.runs[runs.start]));
        if let Some(&entry) = same.and_then(|target| self.same[steps].get(&target)) {
            return entry;
        }
        let entry = if let Some(below) = steps.checked_sub(1) {
            let bits = if fits { 0 } else { self.regions.best[at][below].1 };
            let mut entries = Vec::with_capacity(1 << bits);
            self.spread(at, area.bits + bits, below, &mut entries);
            let table = &mut self.fib.steps[RADIX_STEPS - steps];
            let first = index(table.len());
            table.extend(entries);
            first << RADIX_TAG_BITS | bits
        } else if fits {
            let bucket = bucket(area, &self.regions.runs[runs]);
            self.fib.buckets.push(bucket);
            index(self.fib.buckets.len() - 1) << RADIX_TAG_BITS | area.bits
        } else {
            RADIX_NODE | self.plant(area)
        };
        if let Some(target) = same {
            self.same[steps].insert(target, entry);
        }
        entry
    }

    /// The entries of a table, which resolves the bits up to `end`: parts that fit a bucket are not halved further.
    fn spread(&mut self, at: usize, end: u32, steps: usize, entries: &mut Vec<u32>) {
        let &Region { area, fits, halves, .. } = &self.regions.all[at];
        match halves {
            Some(halves) if !fits && area.bits < end => {
                self.spread(halves, end, steps, entries);
                self.spread(halves + 1, end, steps, entries);
            }
            _ => {
                let entry = self.entry(at, steps);
                entries.extend(std::iter::repeat_n(entry, 1 << (end - area.bits)));
            }
        }
    }

    /// A trie for what no bucket holds.
    fn plant(&mut self, area: Area) -> u32 {
        let first = u128::from(area.first) << 64;
        let last = first | u128::MAX.checked_shr(area.bits).unwrap_or(0);
        let inside = |rule: &Rule<u128>| (rule.address, u32::from(rule.length)) <= (first, area.bits);
        let start = self.rules.partition_point(inside);
        let end = self.rules.partition_point(|rule| rule.address <= last);
        let around = (0..=area.bits).rev().find_map(|length| {
            let address = first & !u128::MAX.checked_shr(length).unwrap_or(0);
            let key = (address, length);
            let found = self.rules.binary_search_by_key(&key, |rule| (rule.address, rule.length.into())).ok()?;
            Some(self.rules[found].target)
        });
        self.fib.trie.plant(&self.rules[start..end], area.bits, around.unwrap_or(0))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "values below DIVIDED are targets")]
fn target(run: Run) -> u16 {
    run.value as u16
}

/// The bucket of an area, which fits these runs.
fn bucket(area: Area, runs: &[Run]) -> Bucket {
    let key_max = (1u64 << BUCKET_KEY_BITS) - 1;
    let mut bucket = Bucket { keys: [0; BUCKET_WORDS], targets: [0; 16] };
    for place in 0..BUCKET_KEYS {
        // No key is above the highest: runs that are not there never begin.
        let before =
            runs.get(place + 1).map_or(key_max, |run| ((run.first << area.bits) >> (64 - BUCKET_KEY_BITS)) - 1);
        let lane = before | 1 << BUCKET_KEY_BITS;
        bucket.keys[place / BUCKET_LANES] |= lane << (place % BUCKET_LANES * BUCKET_LANE_BITS as usize);
    }
    for (to, run) in bucket.targets.iter_mut().zip(runs) {
        *to = target(*run);
    }
    bucket
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
