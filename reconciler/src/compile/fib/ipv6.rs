//! The tables of IPv6: a root, three radix tables, buckets of runs, and a trie for what is longer.

use std::collections::HashMap;
use std::ops::Range;

use fib::layout::{
    BUCKET_KEY_BITS, BUCKET_KEYS, BUCKET_LANE_BITS, BUCKET_LANES, BUCKET_WORDS, DIRECT_BITS_MIN, RADIX_NODE,
    RADIX_STEPS, RADIX_TAG_BITS,
};

use super::{DIRECT_12_FROM, Poptrie, Rule, Unmixed, index};

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

/// The lookup tables of IPv6.
#[derive(Debug, Default)]
pub(in crate::compile) struct V6Fib {
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
pub(in crate::compile) struct Bucket {
    /// First keys of all runs but the first, less one, in lanes whose highest bit is set.
    pub keys: [u64; BUCKET_WORDS],
    pub targets: [u16; 16],
}

impl V6Fib {
    /// Builds the tables of `rules`, which are sorted by (address, length) and hold no prefix twice.
    pub(in crate::compile) fn build(rules: &[Rule<u128>]) -> Self {
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
