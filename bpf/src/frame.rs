//! Frames in kernel memory: bounds-checked access to headers, for both kinds of context.

use core::ptr::{null_mut, read_volatile, write_volatile};

use aya_ebpf::helpers::bpf_csum_diff;

/// The readable part of a frame: from `data` up to `end`.
#[derive(Clone, Copy)]
pub(crate) struct Headers {
    pub(crate) data: usize,
    pub(crate) end: usize,
}

impl Headers {
    /// Highest offset that headers can have; tells the verifier that no sum wraps.
    const OFFSET_MASK: u32 = 0x7fff;

    #[inline(always)]
    fn at<T>(&self, at: u32) -> Option<*mut T> {
        // SAFETY: an address of the kernel and two small numbers do not wrap. Told so, the compiler drops the checks of what
        // lies before something that was checked already.
        let (start, end) = unsafe {
            let start = self.data.unchecked_add((at & Self::OFFSET_MASK) as usize);
            (start, start.unchecked_add(size_of::<T>()))
        };
        if end > self.end { None } else { Some(start as *mut T) }
    }

    #[inline(always)]
    pub(crate) fn bytes(&self) -> u32 {
        (self.end - self.data) as u32
    }

    #[inline(always)]
    pub(crate) fn be16(&self, at: u32) -> Option<u16> {
        // SAFETY: `at` returns only pointers whose whole target lies before the end of the frame.
        self.at(at).map(|p| u16::from_be(unsafe { read_volatile(p) }))
    }

    #[inline(always)]
    pub(crate) fn be32(&self, at: u32) -> Option<u32> {
        // SAFETY: as in `be16`.
        self.at(at).map(|p| u32::from_be(unsafe { read_volatile(p) }))
    }

    #[inline(always)]
    pub(crate) fn first_le64(&self) -> Option<u64> {
        // SAFETY: as in `be16`.
        self.at(0).map(|p| u64::from_le(unsafe { read_volatile(p) }))
    }

    #[inline(always)]
    pub(crate) fn set_be16(&self, at: u32, value: u16) -> Option<()> {
        // SAFETY: as in `be16`; the kernel gives the frame to this program alone.
        self.at(at).map(|p| unsafe { write_volatile(p, value.to_be()) })
    }

    #[inline(always)]
    pub(crate) fn set_be32(&self, at: u32, value: u32) -> Option<()> {
        // SAFETY: as in `set_be16`.
        self.at(at).map(|p| unsafe { write_volatile(p, value.to_be()) })
    }

    #[inline(always)]
    pub(crate) fn set_macs(&self, destination: u64, source: u64) -> Option<()> {
        const MAC: u64 = (1 << 48) - 1;
        let rest = self.at::<u32>(8)?;
        // SAFETY: as in `set_be16`; the check of the last bytes holds for those before them.
        unsafe {
            write_volatile(self.data as *mut u64, destination & MAC | source << 48);
            write_volatile(rest, (source >> 16) as u32);
        }
        Some(())
    }

    /// As `fib::Packet::sum`, by the kernel's helper: a loop of reads would be followed turn by turn, and the compiler would
    /// calculate with the frame's end in it. In pieces of a constant length each, since so the verifier knows their ends.
    #[inline(always)]
    pub(crate) fn sum(&self, at: u32, bytes: u32) -> Option<u16> {
        let (mut at, mut sum) = (at, 0);
        self.add::<128>(&mut at, bytes, &mut sum)?;
        self.add::<64>(&mut at, bytes, &mut sum)?;
        self.add::<32>(&mut at, bytes, &mut sum)?;
        self.add::<16>(&mut at, bytes, &mut sum)?;
        self.add::<8>(&mut at, bytes, &mut sum)?;
        self.add::<4>(&mut at, bytes, &mut sum)?;
        let folded = (sum & 0xffff) + (sum >> 16);
        Some((((folded & 0xffff) + (folded >> 16)) as u16).to_be())
    }

    /// Adds `BYTES` from `at` on, where `bytes` has this bit.
    #[inline(always)]
    fn add<const BYTES: usize>(&self, at: &mut u32, bytes: u32, sum: &mut u32) -> Option<()> {
        if bytes & BYTES as u32 != 0 {
            let piece = self.at::<[u8; BYTES]>(*at)?;
            // SAFETY: `at` returns only pointers whose whole target lies before the end of the frame.
            *sum = unsafe { bpf_csum_diff(null_mut(), 0, piece.cast(), BYTES as u32, *sum) } as u32;
            *at += BYTES as u32;
        }
        Some(())
    }

    /// The frame without its first `bytes`.
    #[inline(always)]
    pub(crate) fn after(&self, bytes: u32) -> Self {
        // SAFETY: as in `at`.
        Self { data: unsafe { self.data.unchecked_add((bytes & Self::OFFSET_MASK) as usize) }, end: self.end }
    }
}

/// The methods of `fib::Packet` that read headers, for a frame with a field `headers`.
macro_rules! reads_headers {
    () => {
        #[inline(always)]
        fn be16(&self, at: u32) -> Option<u16> {
            self.headers.be16(at)
        }
        #[inline(always)]
        fn be32(&self, at: u32) -> Option<u32> {
            self.headers.be32(at)
        }
        #[inline(always)]
        fn first_le64(&self) -> Option<u64> {
            self.headers.first_le64()
        }
        #[inline(always)]
        fn sum(&self, at: u32, bytes: u32) -> Option<u16> {
            self.headers.sum(at, bytes)
        }
        #[inline(always)]
        fn after(&self, bytes: u32) -> impl Packet {
            Self { context: self.context, headers: self.headers.after(bytes), skipped: self.skipped + bytes }
        }
        #[inline(always)]
        fn again(&self) -> impl Packet {
            Self { context: self.context, headers: headers(self.context), skipped: 0 }
        }
    };
}

/// The methods of `fib::PacketMut` that write headers, for the same.
macro_rules! writes_headers {
    () => {
        #[inline(always)]
        fn set_be16(&mut self, at: u32, value: u16) -> Option<()> {
            self.headers.set_be16(at, value)
        }
        #[inline(always)]
        fn set_be32(&mut self, at: u32, value: u32) -> Option<()> {
            self.headers.set_be32(at, value)
        }
        #[inline(always)]
        fn set_macs(&mut self, destination: u64, source: u64) -> Option<()> {
            self.headers.set_macs(destination, source)
        }
    };
}

pub(crate) use {reads_headers, writes_headers};
