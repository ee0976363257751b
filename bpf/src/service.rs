//! The service stage in the kernel: its maps, and the functions that are entered only where an image has services.
//!
//! Programs have 512 bytes of stack for all functions together, so what the stage finds lies in a map of one entry a CPU.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    btf_maps::{Array, LruHashMap, PerCpuArray},
    helpers::bpf_ktime_get_ns,
    macros::btf_map,
};
use fib::answer;
use fib::icmp;
use fib::layout::{BACKEND_IDS_MAX, SERVICE_IDS_MAX};
use fib::packet::{self, Tags};
use fib::service::{self, Chosen, FlowKey, FlowWords, HalfOpenWords, Steer, step};
use fib::tunnel;
use fib::verdict::{parse_served, serve_read};
use fib::{Image, Ingress, Met, Neighbour, Node, ReachWords, Reason};

use crate::hook::{Hook, slot};
use crate::image::{CalledImage, KernelImage};
use crate::maps::{self, KernelNode};

/// Entries of the flow table; a flow with `nat` takes two.
const FLOWS_MAX: usize = 1 << 17;

/// Slots of `GENERATIONS`.
const LIVE: u32 = 0;
const PREVIOUS: u32 = 2;

/// Established flows by their addresses and ports, as `fib::service` writes them; of an image's packets and the answers of its backends.
/// The candidate has one of its own, and writes none.
#[btf_map]
static FLOWS: LruHashMap<FlowKey, FlowWords, FLOWS_MAX> = LruHashMap::new();

/// Entries of the table of half-open flows: with `nat` two a flow.
const HALF_OPEN_MAX: usize = 1 << 16;

/// Flows of which it was not seen yet that both sides speak. The candidate has one of its own, and writes none.
#[btf_map]
static HALF_OPEN: LruHashMap<FlowKey, HalfOpenWords, HALF_OPEN_MAX> = LruHashMap::new();

/// New flows that a CPU takes: how many at once, how many a second, and until when the choice of the generation before is
/// honoured, in seconds of the monotonic clock. The daemon's to write.
#[btf_map]
static FLOW_LIMITS: Array<[u64; 3], 1> = Array::new();

/// The token bucket of each CPU: tokens in billionths, and when they were counted.
#[btf_map]
static FLOW_TOKENS: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();

/// What became of the flow table's work on this CPU: flows that were begun, and not taken for want of tokens.
#[btf_map]
static FLOW_EVENTS: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();

/// Packets and bytes by service id: of those to it, whatever became of them, then of its answers. The candidate's has no entry
/// for any id.
#[btf_map]
static SERVICE_COUNTERS: PerCpuArray<[u64; 4], { SERVICE_IDS_MAX as usize }> = PerCpuArray::new();

/// Packets and bytes by backend id: of those that were sent to it. The candidate's has no entry for any id.
#[btf_map]
static BACKEND_COUNTERS: PerCpuArray<[u64; 2], { BACKEND_IDS_MAX as usize }> = PerCpuArray::new();

/// Backends by id: the lowest bit says that it is down and gets no packets, the second byte how many of 256 new flows it passes
/// on. The daemon's to write, what else stands there is its own. The candidate has one of its own.
#[btf_map]
static BACKEND_HEALTH: Array<u32, { BACKEND_IDS_MAX as usize }> = Array::new();

/// What the stage finds.
#[btf_map]
static STEERS: PerCpuArray<Steer, 1> = PerCpuArray::new();

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

/// Where the stage writes. `None` never: the map has its entry.
#[inline(always)]
pub(crate) fn steer() -> Option<*mut Steer> {
    STEERS.get_ptr_mut(0)
}

/// The stage, part by part: each is entered from here, so that the stack of the one before is free again.
#[inline(always)]
pub(crate) fn stage<H: Hook>(context: *mut H::Context, image: *const u8, steer: *mut Steer) -> u32 {
    let mut at = read::<H>(context, steer);
    if at == step::OUTER {
        at = judge_outer::<H>(context, image, steer);
    }
    if at == step::ICMP {
        at = read_icmp::<H>(context, steer);
    }
    if at == step::ECHO {
        at = echo(image, steer);
    }
    if at == step::TO_SERVICE {
        at = locate(image, steer);
    }
    if at == step::FROM_BACKEND {
        look_up(steer);
        at = from_backend(steer);
    }
    if at == step::TO_SERVICE {
        look_up(steer);
        at = known(image, steer);
    }
    if at == step::UNKNOWN {
        previous_choice(steer);
        at = pick(image, steer);
        if at == step::DOWN {
            at = stand_in(image, steer);
        }
        if at == step::PICKED {
            at = begin(image, steer);
        }
    }
    if at == step::BEGUN || at == step::REFRESH {
        at = keep(image, steer, at);
    }
    // SAFETY: as in `read`.
    at = tunnel::step(at, unsafe { (*steer).tunnel });
    // SAFETY: as in `read`.
    unsafe {
        write_volatile(&raw mut (*steer).at, at);
        read_volatile(&raw const (*steer).at)
    }
}

/// The same word, of which the verifier forgets what it knows: it would follow the rest of the program for each one apart.
#[inline(always)]
pub(crate) fn forgotten(met: Met, steer: *mut Steer) -> Met {
    // SAFETY: the entry belongs to this CPU while the program runs.
    Met::from_word(unsafe {
        write_volatile(&raw mut (*steer).met, met.word());
        read_volatile(&raw const (*steer).met)
    })
}

/// Reads the packet. Not inlined, as the others: images without services never come here.
#[inline(never)]
fn read<H: Hook>(context: *mut H::Context, steer: *mut Steer) -> u32 {
    let frame = H::of(context);
    let Ok(link) = packet::link(&frame) else { return step::UNSERVED };
    let node = KernelNode { context: context.cast(), device: frame.ingress_device() };
    // SAFETY: the entry belongs to this CPU while the program runs; so everywhere below.
    let steer = unsafe { &mut *steer };
    serve_read(&frame, &link, &node, steer)
}

/// Reads what the route stage decides on.
#[inline(never)]
pub(crate) fn parse<H: Hook>(context: *mut H::Context, steer: *mut Steer, at: u32) {
    let frame = H::of(through_memory(context));
    let node = KernelNode { context: context.cast(), device: frame.ingress_device() };
    // SAFETY: as in `read`.
    parse_served(&frame, packet::link(&frame), &node, at, unsafe { &mut *steer });
}

/// Reads what a packet of ICMP quotes.
#[inline(never)]
fn read_icmp<H: Hook>(context: *mut H::Context, steer: *mut Steer) -> u32 {
    let frame = H::of(through_memory(context));
    let Ok(link) = packet::link(&frame) else { return step::UNSERVED };
    // SAFETY: as in `read`.
    icmp::read(&frame.after(link.tag_bytes), unsafe { &mut *steer })
}

/// Reads what a packet holds that holds another one.
#[inline(never)]
fn judge_outer<H: Hook>(context: *mut H::Context, image: *const u8, steer: *mut Steer) -> u32 {
    let frame = H::of(through_memory(context));
    let Ok(link) = packet::link(&frame) else { return step::UNSERVED };
    // SAFETY: as in `read`.
    tunnel::judge(&CalledImage::of(image), &frame.after(link.tag_bytes), unsafe { &mut *steer })
}

/// Puts the packet into one to its backend. 0: the frame has no room.
#[inline(never)]
pub(crate) fn encapsulate<H: Hook>(context: *mut H::Context, image: *const u8, steer: *const Steer) -> u32 {
    let mut frame = H::of(through_memory(context));
    // SAFETY: as in `translate`.
    u32::from(tunnel::encapsulate(&CalledImage::of(image), &mut frame, unsafe { &*steer }).is_some())
}

/// Takes the outer header off. 0: it could not be taken off.
#[inline(never)]
pub(crate) fn decapsulate<H: Hook>(context: *mut H::Context, steer: *const Steer) -> u32 {
    let mut frame = H::of(through_memory(context));
    // SAFETY: as in `translate`.
    u32::from(tunnel::decapsulate(&mut frame, unsafe { &*steer }).is_some())
}

/// The same pointer: the compiler would otherwise hand over the frame's pointers as they stand in the context, cut to 32 bits.
#[inline(always)]
fn through_memory<T>(context: *mut T) -> *mut T {
    // SAFETY: a local variable.
    unsafe { read_volatile(&raw const context) }
}

#[inline(never)]
fn echo(image: *const u8, steer: *const Steer) -> u32 {
    // SAFETY: as in `read`.
    icmp::echo(&KernelImage::again(image), unsafe { &*steer })
}

#[inline(never)]
fn locate(image: *const u8, steer: *mut Steer) -> u32 {
    // SAFETY: as in `read`.
    service::locate(&KernelImage::again(image), unsafe { &mut *steer })
}

#[inline(never)]
fn look_up(steer: *mut Steer) {
    // SAFETY: as in `read`.
    service::look_up(&FlowNode, unsafe { &mut *steer });
}

#[inline(never)]
fn known(image: *const u8, steer: *mut Steer) -> u32 {
    // SAFETY: as in `read`.
    service::known(&KernelImage::again(image), &FlowNode, unsafe { &mut *steer })
}

#[inline(never)]
fn pick(image: *const u8, steer: *mut Steer) -> u32 {
    // SAFETY: as in `read`.
    service::pick(&KernelImage::again(image), &FlowNode, unsafe { &mut *steer })
}

#[inline(never)]
fn stand_in(image: *const u8, steer: *mut Steer) -> u32 {
    // Its loops need more registers than there are, so that the bound would lie on the stack.
    // SAFETY: as in `read`.
    service::stand_in(&CalledImage::of(image), &FlowNode, unsafe { &mut *steer })
}

#[inline(never)]
fn begin(image: *const u8, steer: *mut Steer) -> u32 {
    // SAFETY: as in `read`.
    service::begin(&KernelImage::again(image), unsafe { &mut *steer })
}

#[inline(never)]
fn keep(image: *const u8, steer: *mut Steer, at: u32) -> u32 {
    // SAFETY: as in `read`.
    service::keep(&KernelImage::again(image), &FlowNode, unsafe { &mut *steer }, at)
}

#[inline(never)]
fn from_backend(steer: *mut Steer) -> u32 {
    // SAFETY: as in `read`.
    service::answer(&FlowNode, unsafe { &mut *steer })
}

/// The flow table as the stage asks for it; it asks nothing else of a node.
struct FlowNode;

impl Node for FlowNode {
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
    fn flow(&self, key: &FlowKey) -> FlowWords {
        let Some(entry) = FLOWS.get_ptr(key) else { return [0; 4] };
        let entry = entry.cast::<u64>();
        // SAFETY: the entry is four words; another CPU may write them meanwhile, each is read whole.
        unsafe {
            [
                read_volatile(entry),
                read_volatile(entry.add(1)),
                read_volatile(entry.add(2)),
                read_volatile(entry.add(3)),
            ]
        }
    }

    #[inline(always)]
    fn keep(&self, key: &FlowKey, entry: &FlowWords) {
        if slot() == LIVE {
            let _ = FLOWS.insert(key, entry, 0);
        }
    }

    #[inline(always)]
    fn forget(&self, key: &FlowKey) {
        if slot() == LIVE {
            let _ = FLOWS.remove(key);
        }
    }

    #[inline(always)]
    fn half_open(&self, key: &FlowKey) -> HalfOpenWords {
        let Some(entry) = HALF_OPEN.get_ptr(key) else { return [0; 5] };
        let entry = entry.cast::<u64>();
        // SAFETY: as in `flow`, of five words.
        unsafe {
            [
                read_volatile(entry),
                read_volatile(entry.add(1)),
                read_volatile(entry.add(2)),
                read_volatile(entry.add(3)),
                read_volatile(entry.add(4)),
            ]
        }
    }

    #[inline(always)]
    fn keep_half_open(&self, key: &FlowKey, entry: &HalfOpenWords) {
        if slot() == LIVE {
            let _ = HALF_OPEN.insert(key, entry, 0);
        }
    }

    #[inline(always)]
    fn is_down(&self, backend: u32) -> bool {
        health(backend) & service::BACKEND_DOWN != 0
    }

    #[inline(always)]
    fn passes_on(&self, backend: u32, drawn: u32) -> bool {
        service::passes_on(health(backend), drawn)
    }

    #[inline(always)]
    fn admits_flow(&self) -> bool {
        slot() != LIVE || admits_flow() != 0
    }

    #[inline(always)]
    fn now_s(&self) -> u32 {
        // SAFETY: no pointers are involved.
        (unsafe { bpf_ktime_get_ns() } / SECOND) as u32
    }
}

/// The word of a backend; 0: nothing is known of it.
#[inline(always)]
fn health(backend: u32) -> u32 {
    let Some(word) = BACKEND_HEALTH.get_ptr(backend) else { return 0 };
    // SAFETY: the entry is one word.
    unsafe { read_volatile(word.cast::<u32>()) }
}

/// The choice of the generation before, as long as it is honoured.
#[inline(never)]
fn previous_choice(steer: *mut Steer) {
    if slot() != LIVE {
        return;
    }
    let Some(limits) = FLOW_LIMITS.get_ptr(0) else { return };
    // SAFETY: the entry is three words, each read whole.
    if u64::from(FlowNode.now_s()) >= unsafe { read_volatile(limits.cast::<u64>().add(2)) } {
        return;
    }
    let Some(image) = KernelImage::of(PREVIOUS) else { return };
    // SAFETY: as in `read`.
    let steer = unsafe { &mut *steer };
    steer.previous = service::choice_of(&image, steer).unwrap_or(0);
}

/// Errors and resets that a CPU answers with, a second; so many at once, too. As many as Linux sends of errors.
const ANSWERS_MAX: u64 = 1000;

/// The token bucket of each CPU for them: tokens in billionths, and when they were counted.
#[btf_map]
static ANSWER_TOKENS: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();

/// Takes a token for an answer; 0: there is none.
#[inline(never)]
fn admits_answer() -> u32 {
    if slot() != LIVE {
        return 1;
    }
    let Some(tokens) = ANSWER_TOKENS.get_ptr_mut(0) else { return 0 };
    // SAFETY: the entry is this CPU's, of two words.
    u32::from(unsafe { take(tokens.cast::<u64>(), ANSWERS_MAX, ANSWERS_MAX) })
}

/// Takes a token from a bucket of two words: of a second's `rate`, but never more than `burst`.
///
/// # Safety
/// Nobody else uses the words meanwhile.
#[inline(always)]
unsafe fn take(tokens: *mut u64, burst: u64, rate: u64) -> bool {
    // SAFETY: as above.
    unsafe {
        let now = bpf_ktime_get_ns();
        let mut passed = now.wrapping_sub(read_volatile(tokens.add(1)));
        if passed > SECOND {
            passed = SECOND;
        }
        // Of a second: no more than 2^20 a second, so that the product stays below 2^64.
        let mut left = read_volatile(tokens).wrapping_add(passed.wrapping_mul(rate));
        let most = burst.wrapping_mul(SECOND);
        if left > most {
            left = most;
        }
        let admitted = left >= SECOND;
        write_volatile(tokens, if admitted { left - SECOND } else { left });
        write_volatile(tokens.add(1), now);
        admitted
    }
}

/// Answers a packet that ended for this reason; returns the number of the reason for which it ends now.
#[inline(always)]
pub(crate) fn answer_packet<H: Hook>(context: *mut H::Context, steer: *const Steer, reason: u8) -> u8 {
    let made = if reason == Reason::EchoAnswered as u8 {
        answer_echo::<H>(context, steer)
    } else if admits_answer() == 0 {
        return Reason::AnswerRate as u8;
    // SAFETY: the entry belongs to this CPU while the program runs.
    } else if reason == Reason::NoBackendReject as u8 && unsafe { (*steer).is_tcp() } {
        answer_reset::<H>(context, steer)
    } else {
        answer_error::<H>(context, steer, reason)
    };
    if made == 0 { Reason::NoAnswer as u8 } else { reason }
}

#[inline(never)]
fn answer_echo<H: Hook>(context: *mut H::Context, steer: *const Steer) -> u32 {
    let mut frame = H::of(through_memory(context));
    // SAFETY: as in `translate`.
    u32::from(answer::echo(&mut frame, unsafe { &*steer }).is_some())
}

#[inline(never)]
fn answer_reset<H: Hook>(context: *mut H::Context, steer: *const Steer) -> u32 {
    let mut frame = H::of(through_memory(context));
    // SAFETY: as in `translate`.
    u32::from(answer::reset(&mut frame, unsafe { &*steer }).is_some())
}

#[inline(never)]
fn answer_error<H: Hook>(context: *mut H::Context, steer: *const Steer, reason: u8) -> u32 {
    let mut frame = H::of(through_memory(context));
    // SAFETY: as in `translate`.
    u32::from(answer::error_for(&mut frame, unsafe { &*steer }, reason).is_some())
}

/// Takes a token; 0: there is none.
#[inline(never)]
fn admits_flow() -> u32 {
    let (Some(limits), Some(tokens)) = (FLOW_LIMITS.get_ptr(0), FLOW_TOKENS.get_ptr_mut(0)) else { return 1 };
    let (limits, tokens) = (limits.cast::<u64>(), tokens.cast::<u64>());
    // SAFETY: the entries are of so many words; the tokens are this CPU's.
    unsafe {
        let burst = read_volatile(limits);
        if burst == 0 {
            // Nobody has set a limit yet.
            return 1;
        }
        let admitted = take(tokens, burst, read_volatile(limits.add(1)));
        if let Some(events) = FLOW_EVENTS.get_ptr_mut(0) {
            let count = events.cast::<u64>().add(usize::from(!admitted));
            write_volatile(count, read_volatile(count) + 1);
        }
        u32::from(admitted)
    }
}

/// Changes the packet as the stage found. 0: it could not be changed.
#[inline(always)]
pub(crate) fn translate<H: Hook>(context: *mut H::Context, steer: *mut Steer) -> u32 {
    // SAFETY: the entry belongs to this CPU while the program runs.
    let (translated, quoted) = unsafe { ((*steer).translated, (*steer).quoted) };
    if translated == service::translated::NOTHING {
        1
    } else if quoted == 0 {
        translate_segment::<H>(context, steer)
    } else {
        translate_addresses::<H>(context, steer) & translate_quoted::<H>(context, steer)
    }
}

#[inline(never)]
fn translate_segment<H: Hook>(context: *mut H::Context, steer: *const Steer) -> u32 {
    let mut frame = H::of(through_memory(context));
    // SAFETY: as in `translate`.
    u32::from(service::translate_segment(&mut frame, unsafe { &*steer }).is_some())
}

#[inline(never)]
fn translate_addresses<H: Hook>(context: *mut H::Context, steer: *mut Steer) -> u32 {
    let mut frame = H::of(through_memory(context));
    // SAFETY: as in `translate`.
    u32::from(icmp::translate_addresses(&mut frame, unsafe { &mut *steer }).is_some())
}

#[inline(never)]
fn translate_quoted<H: Hook>(context: *mut H::Context, steer: *const Steer) -> u32 {
    let mut frame = H::of(through_memory(context));
    // SAFETY: as in `translate`.
    u32::from(icmp::translate_quoted(&mut frame, unsafe { &*steer }).is_some())
}

/// Counts a packet that met a service: for it, and for its backend where the packet goes to it. Returns both.
#[inline(never)]
pub(crate) fn count(steer: *const Steer, bytes: u32, goes_on: u32) -> u32 {
    // SAFETY: the entry belongs to this CPU while the program runs.
    let (chosen, why) = unsafe { (Chosen((*steer).chosen), (*steer).why) };
    let is_answer = why == service::Why::Answer as u32;
    if let Some(counter) = SERVICE_COUNTERS.get_ptr_mut(chosen.service()) {
        let counter = counter.cast::<u64>();
        // SAFETY: the entry belongs to this CPU, and has four words.
        unsafe {
            let packets = counter.add(if is_answer { 2 } else { 0 });
            *packets += 1;
            *packets.add(1) += u64::from(bytes);
        }
    }
    if goes_on != 0 && !is_answer {
        maps::add(BACKEND_COUNTERS.get_ptr_mut(chosen.backend()), bytes.into());
    }
    chosen.0
}

/// Translates a packet that the kernel routes on, where it must; counts it. Returns service and backend for its event.
#[inline(always)]
pub(crate) fn stays<H: Hook>(context: *mut H::Context, steer: *mut Steer, at: u32, met: Met, bytes: u32) -> u32 {
    // SAFETY: the entry belongs to this CPU while the program runs.
    if at == step::UNSERVED || unsafe { (*steer).chosen } == 0 {
        return 0;
    }
    if at == step::STEERED && service::is_translated_for(met.reason()) {
        translate::<H>(context, steer);
    }
    count(steer, bytes, 0)
}
