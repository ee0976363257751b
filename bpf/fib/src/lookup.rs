//! Longest-prefix match: a direct table over the first 6, 12 or 18 bits, then trie nodes of 6 bits.
//!
//! The structure is a poptrie (Asai and Ohara, "Poptrie: A Compressed Trie with Population Count for Fast and Scalable
//! Software IP Routing Table Lookup", SIGCOMM 2015) with leaf-vector compression: a node holds two 64-bit maps, and the
//! number of ones up to a bit is the index of a child or a leaf.

use crate::image::{Image, levels};
use crate::layout::{
    AT_V4_FIB, AT_V6_FIB, DIRECT_LEAF, FIB_DIRECT, FIB_DIRECT_BITS, FIB_LEAVES, FIB_NODES, LEAF_BYTES, NODE_BYTES,
    NODE_CHILDREN, NODE_FIRST_CHILD, NODE_FIRST_LEAF, NODE_LEAVES, STRIDE_BITS,
};

/// Target index of an IPv4 address (numeric); 0 when no prefix matches.
#[inline(always)]
pub fn v4<I: Image + ?Sized>(image: &I, address: u32) -> Option<u16> {
    walk::<I, { levels(32) }>(image, AT_V4_FIB, u64::from(address) << 32, 0)
}

/// Target index of an IPv6 address (numeric halves); 0 when no prefix matches.
#[inline(always)]
pub fn v6<I: Image + ?Sized>(image: &I, high: u64, low: u64) -> Option<u16> {
    walk::<I, { levels(128) }>(image, AT_V6_FIB, high, low)
}

#[inline(always)]
fn walk<I: Image + ?Sized, const LEVELS: u32>(image: &I, fib: u32, high: u64, low: u64) -> Option<u16> {
    let direct = image.u32(fib + FIB_DIRECT)?;
    let nodes = image.u32(fib + FIB_NODES)?;
    let bits = image.u32(fib + FIB_DIRECT_BITS)?;
    // `& 63` keeps the shifts defined whatever the image says.
    let index = (high >> (64u32.wrapping_sub(bits) & 63)) as u32;
    let entry = image.u32(direct.wrapping_add(index.wrapping_mul(4)))?;
    if entry & DIRECT_LEAF != 0 {
        return Some(entry as u16);
    }
    let mut node = entry;
    let mut high = (high << (bits & 63)) | (low >> (64u32.wrapping_sub(bits) & 63));
    let mut low = low << (bits & 63);
    for _ in 0..LEVELS {
        let at = nodes.wrapping_add(node.wrapping_mul(NODE_BYTES));
        let children = image.u64(at.wrapping_add(NODE_CHILDREN))?;
        let bit = (high >> (64 - STRIDE_BITS)) as u32;
        // Ones up to and including `bit`.
        let mask = u64::MAX >> (63 - bit);
        if (children >> bit) & 1 == 0 {
            let leaves = image.u64(at.wrapping_add(NODE_LEAVES))?;
            let first = image.u32(at.wrapping_add(NODE_FIRST_LEAF))?;
            let leaf = first.wrapping_add((leaves & mask).count_ones()).wrapping_sub(1);
            let leaves = image.u32(fib + FIB_LEAVES)?;
            return image.u16(leaves.wrapping_add(leaf.wrapping_mul(LEAF_BYTES)));
        }
        let first = image.u32(at.wrapping_add(NODE_FIRST_CHILD))?;
        node = first.wrapping_add((children & mask).count_ones()).wrapping_sub(1);
        high = (high << STRIDE_BITS) | (low >> (64 - STRIDE_BITS));
        low <<= STRIDE_BITS;
    }
    None
}
