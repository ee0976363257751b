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
mod filter;
mod frame;
mod hook;
mod image;
mod maps;
mod service;
mod tc;
mod xdp;

use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use hook::run;
use tc::SkbFrame;
use xdp::XdpFrame;

/// XDP, for drivers that hand over every frame in one buffer.
#[xdp]
#[inline(always)]
fn wayleave(context: XdpContext) -> u32 {
    run::<XdpFrame<false>>(context.ctx) as u32
}

/// XDP, for drivers that hand over large frames in several buffers.
#[xdp(frags)]
#[inline(always)]
fn wayleave_frags(context: XdpContext) -> u32 {
    run::<XdpFrame<true>>(context.ctx) as u32
}

/// TC ingress, for devices without native XDP.
#[classifier]
#[inline(always)]
fn wayleave_tc(context: TcContext) -> i32 {
    run::<SkbFrame>(context.skb.skb)
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
