//! The tables of IPv4: a direct table, blocks with their palettes, and a trie for what is longer.

use std::collections::HashMap;
use std::ops::Range;

use fib::layout::{
    BLOCK_BYTES, DIRECT_BITS_MAX, DIRECT_BITS_MIN, DIRECT_BLOCK_BITS, DIRECT_NODE, PALETTE_BYTES, PALETTES_MAX,
    STRIDE_BITS,
};

use super::{DIRECT_12_FROM, Poptrie, Rule, SLOTS, Unmixed, index, paint};

/// Colours of one palette.
pub(in crate::compile) const COLOURS: usize = PALETTE_BYTES as usize / 2;
/// Fewest prefixes for which the 18-bit direct table (1 MiB) is worth its bytes: with it no prefix up
/// to /24 needs the trie, whose depth a processor cannot foresee.
const DIRECT_18_FROM: usize = 512;

/// The lookup tables of IPv4.
#[derive(Debug)]
pub(in crate::compile) struct V4Fib {
    pub direct_bits: u32,
    pub direct: Vec<u32>,
    pub blocks: Vec<[u8; BLOCK_BYTES as usize]>,
    pub palettes: Vec<[u16; COLOURS]>,
    pub trie: Poptrie,
}

impl V4Fib {
    /// Builds the tables of `rules`, which are sorted by (address, length) and hold no prefix twice.
    pub(in crate::compile) fn build(rules: &[Rule<u32>]) -> Self {
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
#[derive(Debug, Default)]
pub(in crate::compile) struct Blocks {
    pub rows: Vec<[u8; SLOTS]>,
    pub palettes: Vec<[u16; COLOURS]>,
    /// Colours of the last palette that are taken.
    taken: usize,
    /// Colour of each target in the last palette.
    colours: HashMap<u16, u8, Unmixed>,
    /// Entry of each target that fills a block alone.
    uniform: HashMap<u16, u32, Unmixed>,
}

impl Blocks {
    /// The direct entry of a block that is one target throughout; `None` when there are no more palettes.
    pub(in crate::compile) fn uniform(&mut self, target: u16) -> Option<u32> {
        if let Some(&entry) = self.uniform.get(&target) {
            return Some(entry);
        }
        let entry = self.add(&[target; SLOTS])?;
        self.uniform.insert(target, entry);
        Some(entry)
    }

    /// The direct entry of a block with these targets; `None` when there are no more palettes.
    pub(in crate::compile) fn add(&mut self, targets: &[u16; SLOTS]) -> Option<u32> {
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

fn direct_bits(rules: usize) -> u32 {
    if rules >= DIRECT_18_FROM {
        DIRECT_BITS_MAX
    } else if rules >= DIRECT_12_FROM {
        DIRECT_BITS_MIN + STRIDE_BITS
    } else {
        DIRECT_BITS_MIN
    }
}
