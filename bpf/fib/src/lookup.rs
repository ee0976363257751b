//! Longest-prefix match: a few direct tables that settle nearly every address, then trie nodes of 6 bits.
//!
//! The direct part has the same steps for every address, so that a processor runs ahead through several lookups while
//! their memory accesses are on the way: a branch that depends on what was read would stop it.
//!
//! - **IPv4**: the first 6, 12 or 18 bits index a table of *blocks*, the next 6 a byte of the block, and that byte one of
//!   the 256 targets of the block's *palette*. This is DIR-24-8 (Gupta, Lin and McKeown, "Routing Lookups in Hardware at
//!   Memory Access Speeds", INFOCOM 1998) with its first table cut into blocks that are shared where they are uniform, and
//!   of one byte instead of four.
//! - **IPv6**: three tables of fixed widths, as in a multibit trie with shared uniform nodes.
//! - **Nodes**: where prefixes are longer than the direct part, a poptrie (Asai and Ohara, "Poptrie: A Compressed Trie
//!   with Population Count for Fast and Scalable Software IP Routing Table Lookup", SIGCOMM 2015) with leaf-vector
//!   compression: a node holds two 64-bit maps, and the number of ones up to a bit is the index of a child or a leaf.

use crate::image::Image;
use crate::layout::{
    AT_V4_FIB, AT_V6_FIB, BLOCK_BYTES, DIRECT_BITS_MIN, DIRECT_BLOCK_BITS, DIRECT_NODE, LAST_LEAF, LEAF_BYTES,
    NODE_BYTES, PALETTE_BYTES, STRIDE_BITS, Section, V4_BLOCKS, V4_DIRECT, V4_DIRECT_BITS, V4_PALETTES, V6_BITS_MIN,
    V6_LAST, V6_MIDDLE, V6_ROOT, V6_WIDTHS,
};

/// Target index of an IPv4 address (numeric); 0 when no prefix matches.
#[inline(always)]
pub fn v4<I: Image + ?Sized>(image: &I, address: u32) -> Option<u16> {
    let bits = image.u32(AT_V4_FIB + V4_DIRECT_BITS)?;
    let direct = image.u32(AT_V4_FIB + V4_DIRECT)?;
    // `& 63` keeps the shifts defined whatever the image says.
    let high = u64::from(address) << 32;
    let index = (high >> (64u32.wrapping_sub(bits) & 63)) as u32;
    let entry = image.u32(direct.wrapping_add(index.wrapping_mul(4)))?;
    let rest = high << (bits & 63);
    if entry & DIRECT_NODE != 0 {
        let levels = const { levels(32, DIRECT_BITS_MIN) };
        return walk(image, [Section::V4Nodes, Section::V4Leaves], entry & !DIRECT_NODE, rest, 0, levels);
    }
    let block = (entry & ((1 << DIRECT_BLOCK_BITS) - 1)).wrapping_mul(BLOCK_BYTES);
    let slot = (rest >> (64 - STRIDE_BITS)) as u32;
    let blocks = image.u32(AT_V4_FIB + V4_BLOCKS)?;
    let colour = image.u8(blocks.wrapping_add(block | slot))?;
    let palette = (entry >> DIRECT_BLOCK_BITS).wrapping_mul(PALETTE_BYTES);
    let palettes = image.u32(AT_V4_FIB + V4_PALETTES)?;
    image.u16(palettes.wrapping_add(palette | u32::from(colour) << 1))
}

/// Target index of an IPv6 address (numeric halves); 0 when no prefix matches.
#[inline(always)]
pub fn v6<I: Image + ?Sized>(image: &I, high: u64, low: u64) -> Option<u16> {
    let widths = image.u32(AT_V6_FIB + V6_WIDTHS)?;
    let mut rest = high;
    let mut entry = 0u32;
    let mut bits = 0u32;
    for (at, shift) in [(V6_ROOT, 0), (V6_MIDDLE, 8), (V6_LAST, 16)] {
        let table = image.u32(AT_V6_FIB + at)?;
        let width = (widths >> shift) & 63;
        let index = (rest >> (64u32.wrapping_sub(width) & 63)) as u32;
        entry = image.u32(table.wrapping_add(entry.wrapping_add(index).wrapping_mul(4)))?;
        rest <<= width;
        bits = bits.wrapping_add(width);
    }
    if entry & LAST_LEAF != 0 {
        return Some(entry as u16);
    }
    let rest = rest | (low >> (64u32.wrapping_sub(bits) & 63));
    let levels = const { levels(128, V6_BITS_MIN) };
    walk(image, [Section::V6Nodes, Section::V6Leaves], entry, rest, low << (bits & 63), levels)
}

/// Nodes below the first `from` bits that resolve any address of `bits` bits.
const fn levels(bits: u32, from: u32) -> u32 {
    (bits - from).div_ceil(STRIDE_BITS)
}

/// Goes down from a node; `high` and `low` begin with the bits that it resolves.
#[inline(always)]
fn walk<I: Image + ?Sized>(
    image: &I,
    [nodes, leaves]: [Section; 2],
    mut node: u32,
    mut high: u64,
    mut low: u64,
    levels: u32,
) -> Option<u16> {
    let nodes = image.u32(nodes.at())?;
    for _ in 0..levels {
        let [children, starts, first] = image.words(nodes.wrapping_add(node.wrapping_mul(NODE_BYTES)))?;
        let bit = (high >> (64 - STRIDE_BITS)) as u32;
        // What is left of a map after this shift: the ones up to and including `bit`.
        let above = 63 - bit;
        if (children >> bit) & 1 == 0 {
            let leaf = (first as u32).wrapping_add((starts << above).count_ones()).wrapping_sub(1);
            let leaves = image.u32(leaves.at())?;
            return image.u16(leaves.wrapping_add(leaf.wrapping_mul(LEAF_BYTES)));
        }
        node = ((first >> 32) as u32).wrapping_add((children << above).count_ones()).wrapping_sub(1);
        high = (high << STRIDE_BITS) | (low >> (64 - STRIDE_BITS));
        low <<= STRIDE_BITS;
    }
    None
}
