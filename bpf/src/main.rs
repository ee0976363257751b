//! The XDP program: one read of the live generation, one verdict, one counter.
//!
//! Everything that decides lies in the `fib` crate; this file holds the maps and the only unsafe reads of packets and
//! images. The loader sets [`SLOT`] and the capacity before the verifier sees the program.
#![no_std]
#![no_main]
#![allow(clippy::inline_always, reason = "BPF programs are verified as one function; calls cost stack and registers")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "sizes and MAC halves fit by construction"
)]
#![allow(clippy::needless_pass_by_value, reason = "the macros hand a context over by value")]
#![allow(clippy::cast_ptr_alignment, reason = "the kernel loads this object only where unaligned reads are fine")]

mod image;

use core::mem::zeroed;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    bindings::{bpf_fib_lookup as FibParams, xdp_action, xdp_md},
    btf_maps::{Array, DevMap, PerCpuArray},
    helpers::bpf_fib_lookup,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use fib::layout::{NEXT_HOP_FAMILY, NEXT_HOP_IDS_MAX, NEXT_HOP_VIA, PORT_IDS_MAX};
use fib::verdict::REASONS_MAX;
use fib::{Image, Neighbour, Node, Packet, PacketMut, Reason, Verdict};
use image::KernelImage;

/// `BPF_FIB_LOOKUP_OUTPUT`: look from the egress device.
const FIB_LOOKUP_OUTPUT: u32 = 1 << 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Devices by kernel index that can carry a port.
const DEVICES_MAX: usize = 1 << 16;

/// Which slot of `GENERATIONS` this instance reads: 0 live, 1 candidate. Constant to the verifier.
///
/// The loader always overrides the value here. It is one that no other constant has, since the compiler may let an
/// anonymous constant of equal value share the place: a key `&0` would then read as the slot.
#[unsafe(no_mangle)]
static SLOT: u32 = 0x5107_5107;
/// Egress devices by port id.
#[btf_map]
static PORTS: DevMap<{ PORT_IDS_MAX as usize }> = DevMap::new();

/// Neighbours by next-hop id, as `fib::Neighbour::encode` writes them.
#[btf_map]
static NEIGHBOURS: Array<[u64; 2], { NEXT_HOP_IDS_MAX as usize }> = Array::new();

/// MAC addresses of the devices that carry a port, by kernel index; 0: not ours.
#[btf_map]
static DEVICES: Array<u64, DEVICES_MAX> = Array::new();

/// Packets and bytes by reason.
#[btf_map]
static COUNTERS: PerCpuArray<[u64; 2], { REASONS_MAX as usize }> = PerCpuArray::new();

/// The frame that the driver handed over.
struct Frame {
    data: usize,
    end: usize,
}

impl Frame {
    /// Highest offset that headers can have; tells the verifier that no sum wraps.
    const OFFSET_MASK: u32 = 0x7fff;

    #[inline(always)]
    fn at<T>(&self, at: u32) -> Option<*mut T> {
        let start = self.data + (at & Self::OFFSET_MASK) as usize;
        if start + size_of::<T>() > self.end { None } else { Some(start as *mut T) }
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn length(&self) -> u32 {
        (self.end - self.data) as u32
    }
    #[inline(always)]
    fn u8(&self, at: u32) -> Option<u8> {
        // SAFETY: `at` returns only pointers whose whole target lies before the end of the frame.
        self.at(at).map(|p| unsafe { read_volatile(p) })
    }
    #[inline(always)]
    fn be16(&self, at: u32) -> Option<u16> {
        // SAFETY: as in `u8`.
        self.at(at).map(|p| u16::from_be(unsafe { read_volatile(p) }))
    }
    #[inline(always)]
    fn be32(&self, at: u32) -> Option<u32> {
        // SAFETY: as in `u8`.
        self.at(at).map(|p| u32::from_be(unsafe { read_volatile(p) }))
    }
}

impl PacketMut for Frame {
    #[inline(always)]
    fn set_u8(&mut self, at: u32, value: u8) -> Option<()> {
        // SAFETY: as in `u8`; the driver gives the frame to this program alone.
        self.at(at).map(|p| unsafe { write_volatile(p, value) })
    }
    #[inline(always)]
    fn set_be16(&mut self, at: u32, value: u16) -> Option<()> {
        // SAFETY: as in `set_u8`.
        self.at(at).map(|p| unsafe { write_volatile(p, value.to_be()) })
    }
    #[inline(always)]
    fn set_mac(&mut self, at: u32, mac: u64) -> Option<()> {
        // SAFETY: as in `set_u8`.
        self.at(at).map(|p| unsafe { write_volatile(p, mac as u32) })?;
        // SAFETY: as in `set_u8`.
        self.at(at + 4).map(|p| unsafe { write_volatile(p, (mac >> 32) as u16) })
    }
}

/// The node as the kernel's maps describe it.
struct KernelNode {
    context: *mut xdp_md,
    ingress_mac: u64,
}

impl Node for KernelNode {
    #[inline(always)]
    fn ingress_mac(&self) -> Option<u64> {
        Some(self.ingress_mac)
    }

    #[inline(always)]
    fn neighbour<I: Image + ?Sized>(&self, image: &I, id: u32, at: u32, port: u32) -> Option<Neighbour> {
        if let Some(entry) = NEIGHBOURS.get_ptr(id) {
            let entry = entry.cast::<u64>();
            // SAFETY: the entry is two words; each is read once and whole.
            let words = unsafe { [read_volatile(entry), read_volatile(entry.add(1))] };
            if let Some(neighbour) = Neighbour::decode(words) {
                return Some(neighbour);
            }
        }
        resolve(self.context, image, at, port)
    }
}

/// Asks the kernel's own tables for a next hop that the daemon has not resolved: by the port's device only.
#[inline(always)]
fn resolve<I: Image + ?Sized>(context: *mut xdp_md, image: &I, at: u32, port: u32) -> Option<Neighbour> {
    let device = PORTS.get_ifindex(port)?;
    // SAFETY: all fields are integers, for which zero is a value.
    let mut params: FibParams = unsafe { zeroed() };
    params.ifindex = device;
    let low = image.u64(at.wrapping_add(NEXT_HOP_VIA))?;
    // The image holds `via` as the bytes that go on the wire, as the kernel's structure does.
    if image.u16(at.wrapping_add(NEXT_HOP_FAMILY))? as u8 == 4 {
        params.family = AF_INET;
        params.__bindgen_anon_4.ipv4_dst = low as u32;
    } else {
        let high = image.u64(at.wrapping_add(NEXT_HOP_VIA + 8))?;
        params.family = AF_INET6;
        params.__bindgen_anon_4.ipv6_dst = [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32];
    }
    // SAFETY: context and parameters are valid and of the stated size.
    let found =
        unsafe { bpf_fib_lookup(context.cast(), &raw mut params, size_of::<FibParams>() as i32, FIB_LOOKUP_OUTPUT) };
    // 0 is BPF_FIB_LKUP_RET_SUCCESS: MAC addresses are filled in.
    if found != 0 || params.ifindex != device {
        return None;
    }
    // SAFETY: on success the kernel has written the MTU into this field.
    let mtu = unsafe { params.__bindgen_anon_1.mtu_result };
    Some(Neighbour { destination: mac(params.dmac), source: mac(params.smac), mtu })
}

#[inline(always)]
fn mac(bytes: [u8; 6]) -> u64 {
    let [b0, b1, b2, b3, b4, b5] = bytes;
    u64::from_le_bytes([b0, b1, b2, b3, b4, b5, 0, 0])
}

#[xdp]
fn wayleave(context: XdpContext) -> u32 {
    let (reason, action) = run(&context);
    count(reason, (context.data_end() - context.data()) as u64);
    action
}

#[inline(always)]
fn run(context: &XdpContext) -> (Reason, u32) {
    const PASS: u32 = xdp_action::XDP_PASS;
    // SAFETY: the loader sets `SLOT` once, before the program is loaded.
    let slot = unsafe { read_volatile(&raw const SLOT) };
    let Some(image) = KernelImage::of(slot) else { return (Reason::NoGeneration, PASS) };
    let mut frame = Frame { data: context.data(), end: context.data_end() };
    // SAFETY: the context is valid while the program runs.
    let ingress = unsafe { (*context.ctx).ingress_ifindex };
    let Some(ingress_mac) = DEVICES.get(ingress) else { return (Reason::NoPort, PASS) };
    let node = KernelNode { context: context.ctx, ingress_mac: *ingress_mac };
    let decision = fib::decide(&image, &frame, &node);
    match decision.reason.verdict() {
        Verdict::Drop => (decision.reason, xdp_action::XDP_DROP),
        Verdict::Pass => (decision.reason, PASS),
        Verdict::Forward => {
            let Some(neighbour) = decision.neighbour else { return (Reason::NoNeighbour, PASS) };
            // Redirect first: it touches no byte of the packet, so a port without a device still passes it unchanged.
            let Ok(action) = PORTS.redirect(decision.port, PASS.into()) else { return (Reason::NoPort, PASS) };
            match fib::packet::forward(&mut frame, decision.family, &neighbour) {
                Some(()) => (Reason::Forwarded, action),
                None => (Reason::Malformed, PASS),
            }
        }
    }
}

#[inline(always)]
fn count(reason: Reason, bytes: u64) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: the entry belongs to this CPU, and XDP programs are not preempted by each other.
        unsafe {
            (*counter)[0] += 1;
            (*counter)[1] += bytes;
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
