//! Sampled events of dropped and passed packets, for a listener.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    btf_maps::{Array, PerCpuArray, RingBuf},
    helpers::bpf_ktime_get_ns,
    macros::btf_map,
};
use fib::event::{CAPTURE_MAX, EVENT_BYTES, Event, RING_BYTES, Sampling, SamplingWords, WORDS};

use fib::Met;

use crate::hook::Hook;

/// Where events go.
#[btf_map]
static EVENTS: RingBuf<[u64; EVENT_BYTES / 8], { RING_BYTES as usize }> = RingBuf::new();

/// What the listener asks for, as `Sampling::encode` writes it; all zeros while nobody listens.
#[btf_map]
static SAMPLING: Array<SamplingWords, 1> = Array::new();

/// Events for which the ring buffer had no room.
#[btf_map]
static EVENTS_LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Makes an event of the packet if somebody listens and wants it: `count` is its number among those of its reason.
#[inline(always)]
pub(crate) fn offer<H: Hook>(context: *mut H::Context, met: Met, generation: u64, count: u64, chosen: u32) {
    let Some(sampling) = SAMPLING.get_ptr_mut(0) else { return };
    let sampling = sampling.cast::<u64>();
    // SAFETY: the entry is three words; the listener writes them while they are read, and a mixture of two wishes is a
    // packet too many or too few.
    let first = unsafe { read_volatile(sampling) };
    if first == 0 {
        return;
    }
    // SAFETY: as above.
    let wanted = unsafe { Sampling::decode([first, read_volatile(sampling.add(1)), read_volatile(sampling.add(2))]) };
    if !wanted.wants(met.reason(), met.policy(), count) {
        return;
    }
    // SAFETY: no pointers are involved.
    let now = unsafe { bpf_ktime_get_ns() };
    if now > wanted.until_ns {
        // The listener was killed. One that starts in this moment writes its wish again within a second.
        // SAFETY: as above.
        unsafe { write_volatile(sampling, 0) };
        return;
    }
    write::<H>(context, met.word(), generation, now, chosen);
}

/// Not inlined: the verifier follows it apart from the paths that lead to it.
#[inline(never)]
fn write<H: Hook>(context: *mut H::Context, met: u64, generation: u64, now: u64, chosen: u32) {
    let met = Met::from_word(met);
    let Some(mut room) = EVENTS.reserve(0) else {
        if let Some(lost) = EVENTS_LOST.get_ptr_mut(0) {
            // SAFETY: the entry belongs to this CPU.
            unsafe { *lost += 1 };
        }
        return;
    };
    let frame = H::of(context);
    let length = frame.length();
    let words = room.as_mut_ptr().cast::<u64>();
    // In a form that keeps the bounds in sight of the verifier.
    let bytes = (if length > CAPTURE_MAX { CAPTURE_MAX } else { length }).wrapping_sub(1) & (CAPTURE_MAX - 1);
    // SAFETY: the captured bytes have their room behind the words.
    let copied = length != 0 && frame.copy(unsafe { words.add(WORDS).cast() }, bytes + 1);
    let event = Event {
        generation,
        monotonic_ns: now,
        reason: met.reason(),
        target: met.target(),
        policy: met.policy(),
        next_hop: met.next_hop(),
        in_port: met.in_port(),
        device: frame.ingress_device(),
        length,
        captured: if copied { bytes + 1 } else { 0 },
        chosen,
    };
    for (at, word) in event.encode().into_iter().enumerate() {
        // SAFETY: the room begins with so many words.
        unsafe { write_volatile(words.add(at), word) };
    }
    room.submit(0);
}
