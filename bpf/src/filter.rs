//! The filter stage in the kernel: its counters, and the buckets of its limits, which outlive generations.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    btf_maps::{LruHashMap, PerCpuArray},
    helpers::bpf_ktime_get_ns,
    macros::btf_map,
};
use fib::filter::{Limit, NO_RULE, Seen};
use fib::layout::{FILTER_RULE_IDS_MAX, LIMIT_SECOND};
use fib::packet::Tags;
use fib::{Image, Ingress, Neighbour, Node, ReachWords};

use crate::hook::{Hook, slot};
use crate::image::CalledImage;
use crate::maps::KernelNode;

/// Buckets that are kept; of more sources the one that was longest without a packet starts anew, with a full bucket.
const BUCKETS_MAX: usize = 1 << 16;
/// Of the kernel's nanoseconds.
const NS: u64 = LIMIT_SECOND / 1_000_000_000;

/// Packets and bytes that a filter rule matched, and of those that its limit dropped; by the rule's id. The candidate's has
/// no entry for any id.
#[btf_map]
static FILTER_COUNTERS: PerCpuArray<[u64; 4], { FILTER_RULE_IDS_MAX as usize }> = PerCpuArray::new();

/// When a bucket will be full, by [`Limit::key`]. The candidate asks none.
#[btf_map]
static FILTER_BUCKETS: LruHashMap<[u64; 3], u64, BUCKETS_MAX> = LruHashMap::new();

/// Words of a `Seen`.
const WORDS: usize = 6;

/// What the filter sees of the packet at hand, and the port that it came in by. By way of a map, since the verifier
/// then knows nothing of the values: it follows the rules once, and not for every way in which headers can follow each other.
#[btf_map]
static FILTER_LOOKED: PerCpuArray<[u64; WORDS + 1], 1> = PerCpuArray::new();

/// The node as the rules ask for it.
struct FilterNode {
    bytes: u64,
}

impl Node for FilterNode {
    #[inline(always)]
    fn ingress(&self, _tags: Tags) -> Option<Ingress> {
        None
    }
    #[inline(always)]
    fn reach(&self, _id: u32) -> ReachWords {
        [0; 4]
    }
    #[inline(always)]
    fn ask<I: Image + ?Sized>(&self, _image: &I, _at: u32, _port: u32) -> Option<Neighbour> {
        None
    }
    #[inline(always)]
    fn admits(&self, limit: &Limit) -> bool {
        // Test packets take no tokens of live ones, and meet full buckets, as the library does.
        slot() != 0 || admits(limit)
    }
    #[inline(always)]
    fn count_rule(&self, id: u32, limited: bool) {
        let Some(counter) = FILTER_COUNTERS.get_ptr_mut(id) else { return };
        // SAFETY: the entry belongs to this CPU, and programs of one hook are not preempted by each other.
        unsafe {
            (*counter)[0] += 1;
            (*counter)[1] += self.bytes;
            if limited {
                (*counter)[2] += 1;
                (*counter)[3] += self.bytes;
            }
        }
    }
}

/// What becomes of the frame: 0 when it goes on, otherwise the word of a `fib::Met`.
#[inline(always)]
pub(crate) fn judge<H: Hook>(context: *mut H::Context, image: *const u8) -> u64 {
    if look::<H>(context) == 0 {
        return 0;
    }
    act(image, find(image))
}

/// What was written down of the packet, and the port that it came in by.
#[inline(always)]
fn looked() -> Option<(Seen, u32)> {
    let looked = FILTER_LOOKED.get_ptr(0)?.cast::<u64>();
    let mut words = [0; WORDS];
    for (at, word) in words.iter_mut().enumerate() {
        // SAFETY: the entry has so many words and one more, and belongs to this CPU.
        *word = unsafe { read_volatile(looked.add(at)) };
    }
    // SAFETY: as above.
    Some((Seen::decode(words), unsafe { read_volatile(looked.add(WORDS)) } as u32))
}

/// The rule that decides on the packet that was written down, as `fib::filter::find`.
///
/// Apart from [`act`]: what both need on the stack would be too much for one.
#[inline(never)]
fn find(image: *const u8) -> u32 {
    let Some((seen, in_port)) = looked() else { return NO_RULE };
    fib::filter::find(&CalledImage::of(image), &seen, in_port).unwrap_or(NO_RULE)
}

/// Does what the rule says about the packet that was written down.
#[inline(never)]
fn act(image: *const u8, rule: u32) -> u64 {
    let Some((seen, in_port)) = looked() else { return 0 };
    let node = FilterNode { bytes: seen.bytes.into() };
    fib::filter::act(&CalledImage::of(image), rule, &seen, in_port, &node).unwrap_or(0)
}

/// Writes down what the filter sees; 0: the packet is none for it.
#[inline(never)]
fn look<H: Hook>(context: *mut H::Context) -> u64 {
    let frame = H::of(context);
    let node = KernelNode { context: context.cast(), device: frame.ingress_device() };
    let (Some(seen), in_port) = fib::filter::look(&frame, &node) else { return 0 };
    let Some(looked) = FILTER_LOOKED.get_ptr_mut(0) else { return 0 };
    let looked = looked.cast::<u64>();
    for (at, word) in seen.encode().into_iter().enumerate() {
        // SAFETY: the entry has so many words and one more, and belongs to this CPU.
        unsafe { write_volatile(looked.add(at), word) };
    }
    // SAFETY: as above.
    unsafe { write_volatile(looked.add(WORDS), in_port.into()) };
    1
}

/// Takes what the packet costs out of its bucket, unless that holds too little.
///
/// Packets of one bucket that several CPUs decide on within the same moment (some ten nanoseconds) may take the same tokens:
/// each such meeting lets at most one packet of each other CPU through beside those that the limit allows.
#[inline(always)]
fn admits(limit: &Limit) -> bool {
    // SAFETY: no pointers are involved.
    let now = unsafe { bpf_ktime_get_ns() }.wrapping_mul(NS);
    let Some(bucket) = FILTER_BUCKETS.get_ptr_mut(limit.key) else {
        let Some(full_at) = limit.take(0, now) else { return false };
        // A new bucket that cannot be written leaves the packet unlimited: the map evicts, so that this is rare.
        let _ = FILTER_BUCKETS.insert(limit.key, full_at, 0);
        return true;
    };
    // SAFETY: the entry is one word, read and written whole; it stays readable while the program runs.
    match limit.take(unsafe { read_volatile(bucket) }, now) {
        None => false,
        Some(full_at) => {
            // SAFETY: as above.
            unsafe { write_volatile(bucket, full_at) };
            true
        }
    }
}
