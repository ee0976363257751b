//! The image in kernel memory: the outer map and the bounds-checked reads.

use core::ptr::read_volatile;

use aya_ebpf::btf_maps::{Array, ArrayOfMaps};
use aya_ebpf::macros::btf_map;
use fib::Image;
use fib::layout::{CAPACITY_MIN, HEADER_BYTES};

/// `BPF_F_MMAPABLE` of the kernel's uapi.
const MMAPABLE: usize = 1 << 10;

/// Bytes of every image in `GENERATIONS`. Constant to the verifier; the loader always overrides the value here, which is
/// one that no other constant has (see `SLOT` of the program).
#[unsafe(no_mangle)]
static CAPACITY: u32 = 0x0cab_ac17;

/// Offsets of header fields are below this.
const HEADER_ROOM: u32 = HEADER_BYTES.next_power_of_two();
const _: () = assert!(HEADER_ROOM <= CAPACITY_MIN);

/// The published generation (slot 0), the candidate (slot 1) and the generation before the published one (slot 2). The loader makes it for the capacity class at hand.
#[btf_map]
static GENERATIONS: ArrayOfMaps<Array<[u8; CAPACITY_MIN as usize], 1, MMAPABLE>, 3> = ArrayOfMaps::new();

/// An image in kernel memory: so many readable bytes, a power of two.
///
/// An offset is not compared with the capacity but masked by it: one instruction without a branch, whose result the
/// verifier knows to lie inside. Every entry of an image is aligned to its size, so the mask changes no offset of an image
/// that `View` has taken; one that leads outside reads some word of the image instead, which is as wrong as no answer.
pub(crate) struct KernelImage {
    bytes: *const u8,
    /// The capacity less one. The verifier knows its value.
    mask: u32,
}

impl KernelImage {
    /// The image in a slot. A program calls this once a packet: what it returns is one generation, whole.
    #[inline(always)]
    pub(crate) fn of(slot: u32) -> Option<Self> {
        // SAFETY: the loader sets `CAPACITY` once, before the program is loaded.
        let mask = unsafe { read_volatile(&raw const CAPACITY) } - 1;
        GENERATIONS.get_value(slot, &0).map(|value| Self { bytes: value.as_ptr(), mask })
    }

    /// Where the image is, for [`KernelImage::again`].
    #[allow(dead_code, reason = "the benchmark's programs call no functions")]
    #[inline(always)]
    pub(crate) fn bytes(&self) -> *const u8 {
        self.bytes
    }

    /// The same image where only the pointer was handed on: the bound is a constant anew.
    #[allow(dead_code, reason = "the benchmark's programs call no functions")]
    #[inline(always)]
    pub(crate) fn again(bytes: *const u8) -> Self {
        // SAFETY: the loader sets `CAPACITY` once, before the program is loaded.
        let mask = unsafe { read_volatile(&raw const CAPACITY) } - 1;
        Self { bytes, mask }
    }

    /// The entry of `T` at an offset.
    #[inline(always)]
    fn at<T>(&self, offset: u32) -> *const T {
        const { assert!(size_of::<T>().is_power_of_two()) };
        let offset = offset & self.mask & !(size_of::<T>() as u32 - 1);
        // SAFETY: the map value has `mask + 1` bytes, a multiple of the entry's size.
        unsafe { self.bytes.add(offset as usize).cast() }
    }
}

macro_rules! read {
    ($name:ident, $type:ty) => {
        #[inline(always)]
        fn $name(&self, offset: u32) -> Option<$type> {
            // SAFETY: `at` returns only what lies within the map value; the verifier proves it again.
            Some(unsafe { read_volatile(self.at::<$type>(offset)) })
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
        let mut words = [0; COUNT];
        for (at, word) in (0..).zip(words.iter_mut()) {
            *word = self.u64(offset.wrapping_add(at * 8))?;
        }
        Some(words)
    }

    /// The verifier sees a constant below the smallest capacity.
    #[inline(always)]
    fn head(&self, offset: u32) -> Option<u32> {
        // SAFETY: the header lies within the smallest map value.
        Some(unsafe { read_volatile(self.bytes.add((offset % HEADER_ROOM) as usize).cast::<u32>()) })
    }
}

/// An image for functions that are called: what they get lies on the stack, where the verifier of 6.1 does not keep what it
/// knows of a number, so the bound is read anew with every access.
#[allow(dead_code, reason = "the benchmark's programs call no functions")]
pub(crate) struct CalledImage {
    bytes: *const u8,
}

#[allow(dead_code, reason = "the benchmark's programs call no functions")]
impl CalledImage {
    #[inline(always)]
    pub(crate) fn of(bytes: *const u8) -> Self {
        Self { bytes }
    }

    #[inline(always)]
    fn again(&self) -> KernelImage {
        KernelImage::again(self.bytes)
    }
}

impl Image for CalledImage {
    #[inline(always)]
    fn u8(&self, offset: u32) -> Option<u8> {
        self.again().u8(offset)
    }
    #[inline(always)]
    fn u16(&self, offset: u32) -> Option<u16> {
        self.again().u16(offset)
    }
    #[inline(always)]
    fn u32(&self, offset: u32) -> Option<u32> {
        self.again().u32(offset)
    }
    #[inline(always)]
    fn u64(&self, offset: u32) -> Option<u64> {
        self.again().u64(offset)
    }
    #[inline(always)]
    fn words<const COUNT: usize>(&self, offset: u32) -> Option<[u64; COUNT]> {
        self.again().words(offset)
    }
    #[inline(always)]
    fn head(&self, offset: u32) -> Option<u32> {
        self.again().head(offset)
    }
}
