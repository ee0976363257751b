//! Flow hash: which member of a group carries a flow.
//!
//! Each 64-bit word is mixed by the finalizer of `MurmurHash3` (Austin Appleby, public domain, `fmix64`), whose avalanche
//! keeps weights exact over real address patterns. Kernel and library compute the same value from the same packet.

const MIX_1: u64 = 0xff51_afd7_ed55_8ccd;
const MIX_2: u64 = 0xc4ce_b9fe_1a85_ec53;

/// `fmix64` of `MurmurHash3`.
#[inline(always)]
pub const fn mix(word: u64) -> u64 {
    let mut h = word;
    h ^= h >> 33;
    h = h.wrapping_mul(MIX_1);
    h ^= h >> 33;
    h = h.wrapping_mul(MIX_2);
    h ^ (h >> 33)
}

/// What identifies a flow. Fragments carry no ports, so all fragments of a packet hash alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Source address, numeric; IPv4 in the high 32 bits of `[0]`.
    pub src: [u64; 2],
    /// Destination address, likewise.
    pub dst: [u64; 2],
    pub protocol: u8,
    /// Source port in the high half, destination port in the low half; 0 where the packet shows none.
    pub ports: u32,
}

/// Hash of a flow; the low 32 bits of a good mix.
#[inline(always)]
pub fn flow(flow: &Flow, seed: u32) -> u32 {
    let mut h = mix(flow.src[0] ^ u64::from(seed));
    h = mix(h ^ flow.dst[0].rotate_left(32));
    if flow.src[1] | flow.dst[1] != 0 {
        h = mix(h ^ flow.src[1]);
        h = mix(h ^ flow.dst[1].rotate_left(32));
    }
    h = mix(h ^ (u64::from(flow.protocol) << 32 | u64::from(flow.ports)));
    (h >> 32) as u32
}
