//! Sampled events: what the program writes into its ring buffer about a packet that it dropped or passed, and what makes
//! it do so.

use crate::image::Image;

/// Bytes of the ring buffer; a power of two and a multiple of every page size.
pub const RING_BYTES: u32 = 1 << 18;
/// Bytes of a frame's start that an event carries at most.
pub const CAPTURE_MAX: u32 = 128;
/// Words of an event before the captured bytes.
pub const WORDS: usize = 6;
/// Bytes of an event in the ring buffer.
pub const EVENT_BYTES: usize = WORDS * 8 + CAPTURE_MAX as usize;

/// One dropped or passed packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Generation that decided; 0: none was published.
    pub generation: u64,
    /// Nanoseconds of the kernel's monotonic clock.
    pub monotonic_ns: u64,
    /// Number of the `Reason`.
    pub reason: u8,
    /// Target in that generation's image; 0: the packet met no route.
    pub target: u16,
    /// Id of the policy; 0: none.
    pub policy: u32,
    /// Id of the next hop that was chosen; 0: none.
    pub next_hop: u32,
    /// Id of the port that the packet came in by; 0: none that the image names.
    pub in_port: u32,
    /// Kernel index of the device that the packet came in by.
    pub device: u32,
    /// Bytes of the frame.
    pub length: u32,
    /// Bytes of the frame's start that follow the words.
    pub captured: u32,
    /// Service and backend, as [`crate::service::Chosen`] has them; 0: the packet met no service.
    pub chosen: u32,
}

impl Event {
    #[inline(always)]
    pub const fn encode(&self) -> [u64; WORDS] {
        [
            self.generation,
            self.monotonic_ns,
            self.reason as u64 | (self.target as u64) << 16 | (self.policy as u64) << 32,
            self.next_hop as u64 | (self.in_port as u64) << 32,
            self.device as u64 | (self.length as u64) << 32,
            self.captured as u64 | (self.chosen as u64) << 32,
        ]
    }

    /// An event and the bytes that it captured; `None`: these bytes are no event.
    pub fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let words: [u64; WORDS] = bytes.words(0)?;
        let event = Self {
            generation: words[0],
            monotonic_ns: words[1],
            reason: words[2] as u8,
            target: (words[2] >> 16) as u16,
            policy: (words[2] >> 32) as u32,
            next_hop: words[3] as u32,
            in_port: (words[3] >> 32) as u32,
            device: words[4] as u32,
            length: (words[4] >> 32) as u32,
            captured: words[5] as u32,
            chosen: (words[5] >> 32) as u32,
        };
        Some((event, bytes.get(WORDS * 8..)?.get(..event.captured as usize)?))
    }
}

/// Which packets become events, as the listener asks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sampling {
    /// Every so many packets of a reason; 0: nobody listens.
    pub every: u32,
    /// Id of the only policy whose packets are wanted; 0: all packets.
    pub policy: u32,
    /// When listening ends by itself, in nanoseconds of the kernel's monotonic clock.
    pub until_ns: u64,
    /// Wanted reasons: bit `n` is the reason with number `n`.
    pub reasons: u64,
}

/// [`Sampling`] as the kernel's array holds it; the first word decides whether anybody listens.
pub type SamplingWords = [u64; 3];

impl Sampling {
    #[inline(always)]
    pub const fn encode(&self) -> SamplingWords {
        [self.every as u64 | (self.policy as u64) << 32, self.until_ns, self.reasons]
    }

    #[inline(always)]
    pub const fn decode(words: SamplingWords) -> Self {
        Self { every: words[0] as u32, policy: (words[0] >> 32) as u32, until_ns: words[1], reasons: words[2] }
    }

    /// Whether the packet that a reason's counter has counted as number `count` is wanted.
    #[inline(always)]
    pub const fn wants(&self, reason: u8, policy: u32, count: u64) -> bool {
        self.every != 0
            && self.reasons >> (reason & 63) & 1 != 0
            && (self.policy == 0 || self.policy == policy)
            && count.is_multiple_of(self.every as u64)
    }
}
