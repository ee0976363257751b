//! The XDP side: the frame as the driver hands it over, and the ways out of it.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::helpers::{
    bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes,
};
use fib::{Packet, PacketMut};

use crate::frame::{Headers, reads_headers, writes_headers};
use crate::hook::Hook;
use crate::maps::{PORTS, PORTS_FRAGS};

/// The frame that the driver handed over. With `FRAGS` it may lie in several buffers, of which the first is readable.
pub(crate) struct XdpFrame<const FRAGS: bool> {
    context: *mut xdp_md,
    headers: Headers,
    /// Bytes of the frame before `headers`.
    skipped: u32,
}

#[inline(always)]
fn headers(context: *mut xdp_md) -> Headers {
    // SAFETY: the context is valid while the program runs.
    let (data, end) = unsafe { ((*context).data, (*context).data_end) };
    Headers { data: data as usize, end: end as usize }
}

impl<const FRAGS: bool> Packet for XdpFrame<FRAGS> {
    #[inline(always)]
    fn length(&self) -> u32 {
        if FRAGS {
            // SAFETY: the context is valid while the program runs.
            (unsafe { bpf_xdp_get_buff_len(self.context) } as u32).wrapping_sub(self.skipped)
        } else {
            self.headers.bytes()
        }
    }
    reads_headers!();

    #[inline(always)]
    fn is_scattered(&self) -> bool {
        FRAGS && self.length() > self.headers.bytes()
    }
}

impl<const FRAGS: bool> PacketMut for XdpFrame<FRAGS> {
    writes_headers!();

    #[inline(always)]
    fn move_head(&mut self, bytes: i32) -> Option<()> {
        // SAFETY: the context is valid while the program runs; the pointers into the frame are read anew.
        if unsafe { bpf_xdp_adjust_head(self.context, bytes) } != 0 {
            return None;
        }
        self.headers = headers(self.context);
        Some(())
    }

    #[inline(always)]
    fn shorten(&mut self, bytes: u32) -> Option<()> {
        let more = bytes.wrapping_sub(self.length()).cast_signed();
        // SAFETY: the context is valid while the program runs; the pointers into the frame are read anew.
        if more > 0 || unsafe { bpf_xdp_adjust_tail(self.context, more) } != 0 {
            return None;
        }
        self.headers = headers(self.context);
        Some(())
    }
}

impl<const FRAGS: bool> Hook for XdpFrame<FRAGS> {
    const PASS: i32 = xdp_action::XDP_PASS as i32;
    const DROP: i32 = xdp_action::XDP_DROP as i32;
    /// A frame that could not be rewritten is as it was.
    const GIVE_UP: i32 = Self::PASS;

    type Context = xdp_md;

    #[inline(always)]
    fn of(context: *mut xdp_md) -> Self {
        Self { context, headers: headers(context), skipped: 0 }
    }
    #[inline(always)]
    fn ingress_device(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.context).ingress_ifindex }
    }
    #[inline(always)]
    fn copy(&self, to: *mut u8, bytes: u32) -> bool {
        // SAFETY: the context is valid while the program runs; the caller has room for so many bytes.
        unsafe { bpf_xdp_load_bytes(self.context, 0, to.cast(), bytes) == 0 }
    }
    #[inline(always)]
    fn send_back(&self) -> i32 {
        // Not XDP_TX: a veth whose peer has no program keeps such frames until others come (`veth_xdp_flush`).
        // SAFETY: no pointers are involved.
        unsafe { bpf_redirect(self.ingress_device(), 0) as i32 }
    }
    #[inline(always)]
    fn redirect(&self, port: u32) -> Option<i32> {
        let ports = if FRAGS { &PORTS_FRAGS } else { &PORTS };
        ports.redirect(port, Self::PASS as u64).ok().map(|action| action as i32)
    }
}
