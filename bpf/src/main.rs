//! The programs: one read of the live generation, one verdict, one reason that is counted.
//!
//! Everything that decides lies in the `fib` crate. The same [`run`] serves three hooks: XDP, XDP for drivers whose frames
//! may lie in several buffers, and TC. The loader sets [`SLOT`] and the capacity before the verifier sees a program.
#![no_std]
#![no_main]
#![allow(clippy::inline_always, reason = "BPF programs are verified as one function; calls cost stack and registers")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "sizes and MAC halves fit by construction; actions are small"
)]
#![allow(clippy::needless_pass_by_value, reason = "the macros hand a context over by value")]
#![allow(clippy::cast_ptr_alignment, reason = "the kernel loads this object only where unaligned reads are fine")]

mod events;
mod frame;
mod image;
mod maps;
mod tc;
mod xdp;

use core::ptr::read_volatile;

use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use fib::layout::AT_GENERATION;
use fib::{Decision, Image as _, PacketMut, Reason, Verdict};
use image::KernelImage;
use maps::KernelNode;
use tc::SkbFrame;
use xdp::XdpFrame;

/// Which slot of `GENERATIONS` this instance reads: 0 live, 1 candidate. Constant to the verifier.
///
/// The loader always overrides the value here. It is one that no other constant has, since the compiler may let an
/// anonymous constant of equal value share the place: a key `&0` would then read as the slot.
#[unsafe(no_mangle)]
static SLOT: u32 = 0x5107_5107;

/// A place in the kernel's receive path where a frame can be decided on.
trait Hook: PacketMut + Sized {
    const PASS: i32;
    const DROP: i32;
    /// What becomes of a frame whose rewriting failed half-way.
    const GIVE_UP: i32;
    /// What the kernel calls a program of this hook with.
    type Context;
    fn of(context: *mut Self::Context) -> Self;
    /// Kernel index of the device that the frame came in by.
    fn ingress_device(&self) -> u32;
    /// Copies the frame's first `bytes` (1 to `fib::event::CAPTURE_MAX`), wherever they lie; `false`: they were not read.
    fn copy(&self, to: *mut u8, bytes: u32) -> bool;
    /// The action that sends the frame out by a port; touches no byte of it. `None`: the port has no device.
    fn redirect(&self, port: u32) -> Option<i32>;
}

/// XDP, for drivers that hand over every frame in one buffer.
#[xdp]
fn wayleave(context: XdpContext) -> u32 {
    run::<XdpFrame<false>>(context.ctx) as u32
}

/// XDP, for drivers that hand over large frames in several buffers.
#[xdp(frags)]
fn wayleave_frags(context: XdpContext) -> u32 {
    run::<XdpFrame<true>>(context.ctx) as u32
}

/// TC ingress, for devices without native XDP.
#[classifier]
fn wayleave_tc(context: TcContext) -> i32 {
    run::<SkbFrame>(context.skb.skb)
}

#[inline(always)]
fn run<H: Hook>(context: *mut H::Context) -> i32 {
    let frame = H::of(context);
    let bytes = u64::from(frame.length());
    let (met, action) = decide(context, &frame);
    let count = maps::count(met.reason, bytes);
    if met.policy != 0 {
        maps::count_policy(met.policy, bytes);
    }
    if matches!(met.reason.verdict(), Verdict::Forward) {
        maps::count_next_hop(met.next_hop, bytes);
    } else {
        events::offer::<H>(context, &met, count);
    }
    action
}

/// What a packet met: why it was decided on as it was, and the ids of what counts it.
struct Met {
    reason: Reason,
    generation: u64,
    target: u16,
    policy: u32,
    next_hop: u32,
    in_port: u32,
}

#[inline(always)]
fn decide<H: Hook>(context: *mut H::Context, frame: &H) -> (Met, i32) {
    let mut met = Met { reason: Reason::NoGeneration, generation: 0, target: 0, policy: 0, next_hop: 0, in_port: 0 };
    // SAFETY: the loader sets `SLOT` once, before the program is loaded.
    let slot = unsafe { read_volatile(&raw const SLOT) };
    let Some(image) = KernelImage::of(slot) else { return (met, H::PASS) };
    let node = KernelNode { context: context.cast(), device: frame.ingress_device() };
    let decision = fib::decide(&image, frame, &node);
    met.policy = decision.policy;
    met.next_hop = decision.next_hop_id;
    let (reason, action) = match decision.reason.verdict() {
        Verdict::Drop => (decision.reason, H::DROP),
        Verdict::Pass => (decision.reason, H::PASS),
        Verdict::Forward => forward::<H>(context, frame, &decision),
    };
    met.reason = reason;
    if !matches!(reason.verdict(), Verdict::Forward) {
        met.generation = image.u64(AT_GENERATION).unwrap_or(0);
        met.target = decision.target;
        met.in_port = decision.in_port;
    }
    (met, action)
}

#[inline(always)]
fn forward<H: Hook>(context: *mut H::Context, frame: &H, decision: &Decision) -> (Reason, i32) {
    let Some(neighbour) = decision.neighbour else { return (Reason::NoNeighbour, H::PASS) };
    // Redirect first: it touches no byte of the packet, so a port without a device still passes it unchanged.
    let Some(action) = frame.redirect(decision.port) else { return (Reason::NoPort, H::PASS) };
    // Its pointers are read anew: none has to live through the lookup.
    match fib::packet::forward(&mut H::of(context), &neighbour) {
        Some(()) => (Reason::Forwarded, action),
        None => (Reason::NoRoom, H::GIVE_UP),
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // SAFETY: nothing here panics; the verifier refuses the program if this were reachable.
    unsafe { core::hint::unreachable_unchecked() }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
