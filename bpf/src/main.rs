//! The programs: one read of the live generation, one verdict, one counter.
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
use fib::{PacketMut, Reason, Verdict};
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
    let (reason, action) = decide(context, &frame);
    maps::count(reason, bytes);
    action
}

#[inline(always)]
fn decide<H: Hook>(context: *mut H::Context, frame: &H) -> (Reason, i32) {
    // SAFETY: the loader sets `SLOT` once, before the program is loaded.
    let slot = unsafe { read_volatile(&raw const SLOT) };
    let Some(image) = KernelImage::of(slot) else { return (Reason::NoGeneration, H::PASS) };
    let node = KernelNode { context: context.cast(), device: frame.ingress_device() };
    let decision = fib::decide(&image, frame, &node);
    match decision.reason.verdict() {
        Verdict::Drop => (decision.reason, H::DROP),
        Verdict::Pass => (decision.reason, H::PASS),
        Verdict::Forward => {
            let Some(neighbour) = decision.neighbour else { return (Reason::NoNeighbour, H::PASS) };
            // Redirect first: it touches no byte of the packet, so a port without a device still passes it unchanged.
            let Some(action) = frame.redirect(decision.port) else { return (Reason::NoPort, H::PASS) };
            // Its pointers are read anew: none has to live through the lookup.
            match fib::packet::forward(&mut H::of(context), &neighbour) {
                Some(()) => (Reason::Forwarded, action),
                None => (Reason::NoRoom, H::GIVE_UP),
            }
        }
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
