//! The XDP program: passes every packet to the kernel.
#![no_std]
#![no_main]

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

/// Leaves the packet to the kernel.
#[xdp]
fn wayleave(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// The kernel only accepts helpers for tracing and printing from programs under a GPL-compatible licence.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never runs: the verifier accepts no path that could panic.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
