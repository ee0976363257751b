//! The image in kernel memory: the outer map and the bounds-checked reads.

use core::ptr::read_volatile;

use aya_ebpf::btf_maps::{Array, ArrayOfMaps};
use aya_ebpf::macros::btf_map;
use fib::Image;
use fib::layout::CAPACITY_MIN;

/// `BPF_F_MMAPABLE` of the kernel's uapi.
const MMAPABLE: usize = 1 << 10;

/// Bytes of every image in `GENERATIONS`. Constant to the verifier; the loader always overrides the value here, which is
/// one that no other constant has (see `SLOT` of the program).
#[unsafe(no_mangle)]
static CAPACITY: u32 = 0x0cab_ac17;

/// The published generation (slot 0) and the candidate (slot 1). The loader makes it for the capacity class at hand.
#[btf_map]
static GENERATIONS: ArrayOfMaps<Array<[u8; CAPACITY_MIN as usize], 1, MMAPABLE>, 2> = ArrayOfMaps::new();

/// An image in kernel memory: so many readable bytes. The capacity is read once a packet and stays in a register, where
/// the verifier knows its value and removes the checks of constant offsets.
pub(crate) struct KernelImage {
    bytes: *const u8,
    capacity: u32,
}

impl KernelImage {
    /// The image in a slot. A program calls this once a packet: what it returns is one generation, whole.
    #[inline(always)]
    pub(crate) fn of(slot: u32) -> Option<Self> {
        // SAFETY: the loader sets `CAPACITY` once, before the program is loaded.
        let capacity = unsafe { read_volatile(&raw const CAPACITY) };
        GENERATIONS.get_value(slot, &0).map(|value| Self { bytes: value.as_ptr(), capacity })
    }
}

macro_rules! read {
    ($name:ident, $type:ty) => {
        #[inline(always)]
        fn $name(&self, offset: u32) -> Option<$type> {
            if offset > self.capacity - size_of::<$type>() as u32 {
                return None;
            }
            // SAFETY: the map value has `capacity` bytes and the read ends within them; the verifier proves it again.
            // Alignment: the architectures that this object is loaded on read unaligned words.
            Some(unsafe { read_volatile(self.bytes.add(offset as usize).cast::<$type>()) })
        }
    };
}

impl Image for KernelImage {
    read!(u8, u8);
    read!(u16, u16);
    read!(u32, u32);
    read!(u64, u64);

    #[inline(always)]
    fn words<const COUNT: usize>(&self, offset: u32) -> Option<[u64; COUNT]> {
        if offset > self.capacity - COUNT as u32 * 8 {
            return None;
        }
        let mut words = [0; COUNT];
        for (at, word) in words.iter_mut().enumerate() {
            // SAFETY: as above, for all words.
            *word = unsafe { read_volatile(self.bytes.add(offset as usize + at * 8).cast::<u64>()) };
        }
        Some(words)
    }
}
