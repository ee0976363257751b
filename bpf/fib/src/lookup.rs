//! Longest-prefix match: a few direct tables that settle nearly every address, then trie nodes of 6 bits.
//!
//! The direct part has the same steps for every address, so that a processor runs ahead through several lookups while
//! their memory accesses are on the way: a branch that depends on what was read would stop it.
//!
//! - **IPv4**: the first 6, 12 or 18 bits index a table of *blocks*, the next 6 a byte of the block, and that byte one of
//!   the 256 targets of the block's *palette*. This is DIR-24-8 (Gupta and others, "Routing Lookups in Hardware at
//!   Memory Access Speeds", INFOCOM 1998) with its first table cut into blocks that are shared where they are uniform, and
//!   of one byte instead of four.
//! - **IPv6**: a root table and three radix tables, each as wide as its prefixes need (Nilsson and Karlsson, "IP-Address
//!   Lookup Using LC-Tries", IEEE JSAC 1999), lead to a *bucket*: one cache line with the starts and targets of up to 13
//!   runs of addresses, as in DXR (Zec, Rizzo and Mikuc, "DXR: Towards a Billion Routing Lookups Per Second in Software",
//!   CCR 2012), but compared all at once, three keys in a word.
//! - **Nodes**: where prefixes are longer than the direct part, a poptrie (Asai and Ohara, "Poptrie: A Compressed Trie
//!   with Population Count for Fast and Scalable Software IP Routing Table Lookup", SIGCOMM 2015) with leaf-vector
//!   compression: a node holds two 64-bit maps, and the number of ones up to a bit is the index of a child or a leaf.

use crate::image::Image;
use crate::layout::{
    AT_V4_FIB, AT_V6_FIB, BLOCK_BYTES, BUCKET_BYTES, BUCKET_KEY_BITS, BUCKET_KEYS, BUCKET_LANE_BITS, BUCKET_LANES,
    BUCKET_TARGETS, BUCKET_WORDS, DIRECT_BITS_MIN, DIRECT_BLOCK_BITS, DIRECT_NODE, LEAF_BYTES, NODE_BYTES,
    PALETTE_BYTES, RADIX_NODE, RADIX_STEPS, RADIX_TAG_BITS, STRIDE_BITS, Section, V4_BLOCKS, V4_DIRECT, V4_DIRECT_BITS,
    V4_PALETTES, V6_BUCKETS, V6_ROOT, V6_ROOT_BITS,
};

/// Target index of an IPv4 address (numeric); 0 when no prefix matches.
#[inline(always)]
pub fn v4<I: Image + ?Sized>(image: &I, address: u32) -> Option<u16> {
    let bits = image.head(AT_V4_FIB + V4_DIRECT_BITS)?;
    let direct = image.head(AT_V4_FIB + V4_DIRECT)?;
    // `& 63` keeps the shifts defined whatever the image says.
    let high = u64::from(address) << 32;
    let index = (high >> (64u32.wrapping_sub(bits) & 63)) as u32;
    let entry = image.u32(direct.wrapping_add(index.wrapping_mul(4)))?;
    let rest = high << (bits & 63);
    if entry & DIRECT_NODE != 0 {
        let levels = const { levels(32, DIRECT_BITS_MIN) };
        return walk(image, [Section::V4Nodes, Section::V4Leaves], entry & !DIRECT_NODE, rest, 0, levels);
    }
    block(image, [image.head(AT_V4_FIB + V4_BLOCKS)?, image.head(AT_V4_FIB + V4_PALETTES)?], entry, rest)
}

/// What a direct entry's block and palette say of the bits that `rest` begins with; `tables` is where blocks and palettes are.
#[inline(always)]
pub(crate) fn block<I: Image + ?Sized>(image: &I, tables: [u32; 2], entry: u32, rest: u64) -> Option<u16> {
    let [blocks, palettes] = tables;
    let block = (entry & ((1 << DIRECT_BLOCK_BITS) - 1)).wrapping_mul(BLOCK_BYTES);
    let slot = (rest >> (64 - STRIDE_BITS)) as u32;
    let colour = image.u8(blocks.wrapping_add(block | slot))?;
    let palette = (entry >> DIRECT_BLOCK_BITS).wrapping_mul(PALETTE_BYTES);
    image.u16(palettes.wrapping_add(palette | u32::from(colour) << 1))
}

/// Target index of an IPv6 address (numeric halves); 0 when no prefix matches.
#[inline(always)]
pub fn v6<I: Image + ?Sized>(image: &I, high: u64, low: u64) -> Option<u16> {
    let root = image.head(AT_V6_FIB + V6_ROOT)?;
    let mut bits = image.head(AT_V6_FIB + V6_ROOT_BITS)?;
    let index = (high >> (64u32.wrapping_sub(bits) & 63)) as u32;
    let mut entry = image.u32(root.wrapping_add(index.wrapping_mul(4)))?;
    let mut rest = high << (bits & 63);
    for _ in 0..RADIX_STEPS {
        let width = entry & TAG;
        // In two shifts, since the width may be zero.
        let index = (rest >> 1 >> (63 - width)) as u32;
        entry = image.u32(root.wrapping_add((entry >> RADIX_TAG_BITS).wrapping_add(index).wrapping_mul(4)))?;
        rest <<= width;
        bits = bits.wrapping_add(width);
    }
    if entry & RADIX_NODE != 0 {
        let rest = rest | (low >> (64u32.wrapping_sub(bits) & 63));
        let levels = const { levels(128, DIRECT_BITS_MIN) };
        let tables = [Section::V6Nodes, Section::V6Leaves];
        return walk(image, tables, entry & !RADIX_NODE, rest, low << (bits & 63), levels);
    }
    let bucket = image.head(AT_V6_FIB + V6_BUCKETS)?.wrapping_add((entry >> RADIX_TAG_BITS).wrapping_mul(BUCKET_BYTES));
    let key = (high << (entry & TAG)) >> (64 - BUCKET_KEY_BITS);
    let keys = key.wrapping_mul(EVERY_LANE);
    let mut later = 0u64;
    for word in image.words::<BUCKET_WORDS>(bucket)? {
        // The highest bit of a lane stays where its run begins after the key.
        later = later.wrapping_add((word.wrapping_sub(keys) >> BUCKET_KEY_BITS) & EVERY_LANE);
    }
    // The highest lane of the product is the sum of all.
    let later = (later.wrapping_mul(EVERY_LANE) >> (BUCKET_LANE_BITS * (BUCKET_LANES as u32 - 1))) as u32 & 0xf;
    let place = (BUCKET_KEYS as u32).wrapping_sub(later).wrapping_mul(2);
    image.u16(bucket.wrapping_add(BUCKET_TARGETS).wrapping_add(place))
}

/// The low bits of a radix entry.
const TAG: u32 = (1 << RADIX_TAG_BITS) - 1;
/// The lowest bit of each lane of a bucket's word.
const EVERY_LANE: u64 = 1 | 1 << BUCKET_LANE_BITS | 1 << (2 * BUCKET_LANE_BITS);

/// Nodes below the first `from` bits that resolve any address of `bits` bits.
pub(crate) const fn levels(bits: u32, from: u32) -> u32 {
    (bits - from).div_ceil(STRIDE_BITS)
}

/// Goes down from a node; `high` and `low` begin with the bits that it resolves.
#[inline(always)]
pub(crate) fn walk<I: Image + ?Sized>(
    image: &I,
    [nodes, leaves]: [Section; 2],
    mut node: u32,
    mut high: u64,
    mut low: u64,
    levels: u32,
) -> Option<u16> {
    let nodes = image.u32(nodes.at())?;
    for _ in 0..levels {
        let [children, starts, first] = image.words::<3>(nodes.wrapping_add(node.wrapping_mul(NODE_BYTES)))?;
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
