//! What the benchmark measures with: lookups in programs of the same shape, forwarding by the peers, and a generator.
//!
//! Lookups: the image, its filters, `LPM_TRIE`, `bpf_fib_lookup` and DIR-24-8. Each run looks up [`LOOKUPS`] addresses of a list, starting where the last run ended, and adds what it found to a
//! sum, so that the programs can be compared for equality and none is optimised away.
#![no_std]
#![no_main]
#![expect(clippy::inline_always, reason = "BPF programs are verified as one function; calls cost stack and registers")]
#![expect(clippy::cast_possible_truncation, reason = "taking the low bits of a word is how packed fields are read")]
#![expect(clippy::cast_possible_wrap, reason = "helpers take small sizes as i32")]
#![expect(clippy::cast_ptr_alignment, reason = "the architectures that this object is loaded on read unaligned words")]
#![expect(clippy::needless_pass_by_value, reason = "the signature of an XDP program")]

mod image;

use core::mem::zeroed;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    bindings::{bpf_fib_lookup as FibParams, xdp_action, xdp_md},
    btf_maps::{Array, DevMap, LpmTrie, lpm_trie::Key},
    helpers::bpf_fib_lookup,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use fib::filter::{self, Seen};
use fib::lookup;
use fib::packet::UDP;

use image::KernelImage;

/// Lookups of one run.
const LOOKUPS: u32 = 64;
/// The same of searches of filters, of which the verifier can follow no more.
const FILTER_LOOKUPS: u32 = 16;
/// Addresses in the list; a power of two.
const ADDRESSES_LEN: usize = 1 << 20;
/// `BPF_F_NO_PREALLOC`, which the kernel requires of a trie.
const NO_PREALLOC: usize = 1;
const AF_INET: u8 = 2;
/// DIR-24-8: 2^24 entries of 4 bytes, then blocks of 256.
const DIR_BYTES: usize = 1 << 27;
const DIR_LONG: u32 = 1 << 31;

/// Offsets in an Ethernet frame that holds an IPv4 packet.
const AT_ETHERTYPE: usize = 12;
const AT_IP: usize = 14;
const AT_TTL: usize = 22;
const AT_CHECKSUM: usize = 24;
const AT_SOURCE: usize = 26;
const AT_DESTINATION: usize = 30;
const AT_SOURCE_PORT: usize = 34;

const ETHERTYPE_IPV4: u16 = 0x0800;
/// Version 4, five words of header.
const IPV4_WITHOUT_OPTIONS: u8 = 0x45;

/// Device that kernel lookups are made from.
#[unsafe(no_mangle)]
static DEVICE: u32 = 0x0de5_1ce0;

#[btf_map]
static ADDRESSES_V4: Array<u32, ADDRESSES_LEN> = Array::new();

#[btf_map]
static ADDRESSES_V6: Array<[u64; 2], ADDRESSES_LEN> = Array::new();

/// Next position in the list, sum of results, lookups that found something.
#[btf_map]
static STATE: Array<[u64; 3], 1> = Array::new();

#[btf_map]
static TRIE_V4: LpmTrie<[u8; 4], u32, 1_048_576, NO_PREALLOC> = LpmTrie::new();

#[btf_map]
static TRIE_V6: LpmTrie<[u8; 16], u32, 1_048_576, NO_PREALLOC> = LpmTrie::new();

/// One value, as an image is: the same kind of memory access.
#[btf_map]
static DIR: Array<[u8; DIR_BYTES], 1, 1024> = Array::new();

/// Words of [`FRAME`]: the head of the generator's frames, from the MAC addresses to the UDP header.
const FRAME_WORDS: usize = 5;

/// The generators' frame, with zeros where frames differ and no checksum, and then the sum over its IPv4 header.
#[btf_map]
static FRAME: Array<[u64; FRAME_WORDS + 1], 1> = Array::new();

/// How many flows the generator of flows sends in turn. Their sources are a few addresses from [`FLOW_SOURCE`] on, with as many
/// ports each from [`FLOW_PORT`] on.
#[btf_map]
static FLOWS: Array<u64, 1> = Array::new();
/// 10.64.0.0
const FLOW_SOURCE: u32 = 10 << 24 | 64 << 16;
const FLOW_PORT: u32 = 1024;
const FLOW_PORT_BITS: u32 = 14;

/// The MAC addresses that forwarded frames get: twelve bytes.
#[btf_map]
static MACS: Array<[u64; 2], 1> = Array::new();

/// Where forwarded frames leave.
#[btf_map]
static EGRESS: DevMap<1> = DevMap::new();

/// Runs `look` over the next addresses of the list.
#[inline(always)]
fn run(look: impl Fn(u32) -> Option<u32>) -> u32 {
    run_over::<LOOKUPS>(look)
}

#[inline(always)]
fn run_over<const COUNT: u32>(look: impl Fn(u32) -> Option<u32>) -> u32 {
    let Some(state) = STATE.get_ptr_mut(0) else { return xdp_action::XDP_ABORTED };
    // SAFETY: one run at a time: the benchmark is the only caller.
    let state = unsafe { &mut *state };
    let start = state[0] as u32;
    let (mut sum, mut hits) = (0u64, 0u64);
    for i in 0..COUNT {
        if let Some(found) = look(start.wrapping_add(i) & (ADDRESSES_LEN as u32 - 1)) {
            sum = sum.wrapping_add(found.into());
            hits += u64::from(found != 0);
        }
    }
    state[0] = u64::from(start.wrapping_add(COUNT));
    state[1] = state[1].wrapping_add(sum);
    state[2] = state[2].wrapping_add(hits);
    xdp_action::XDP_PASS
}

#[inline(always)]
fn v4(index: u32) -> Option<u32> {
    ADDRESSES_V4.get(index).copied()
}

/// What the list alone costs.
#[xdp]
fn empty_v4(_context: XdpContext) -> u32 {
    run(v4)
}

#[xdp]
fn empty_v6(_context: XdpContext) -> u32 {
    run(|index| ADDRESSES_V6.get(index).map(|[high, low]| (high ^ low) as u32))
}

#[xdp]
fn image_v4(_context: XdpContext) -> u32 {
    let Some(image) = KernelImage::of(0) else { return xdp_action::XDP_ABORTED };
    run(|index| lookup::v4(&image, v4(index)?).map(u32::from))
}

#[xdp]
fn image_v6(_context: XdpContext) -> u32 {
    let Some(image) = KernelImage::of(0) else { return xdp_action::XDP_ABORTED };
    run(|index| {
        let [high, low] = *ADDRESSES_V6.get(index)?;
        lookup::v6(&image, high, low).map(u32::from)
    })
}

/// What the list alone costs in runs as short as the next program's.
#[xdp]
fn empty_filter_v4(_context: XdpContext) -> u32 {
    run_over::<FILTER_LOOKUPS>(v4)
}

/// The filter's search for the rule that decides about a packet from the address: its number, and one, so that it is not 0.
#[xdp]
fn filter_v4(_context: XdpContext) -> u32 {
    let Some(image) = KernelImage::of(0) else { return xdp_action::XDP_ABORTED };
    run_over::<FILTER_LOOKUPS>(|index| {
        let seen = Seen {
            family: 4,
            src: [u64::from(v4(index)?) << 32, 0],
            // 10.78.1.1
            dst: [u64::from(10u32 << 24 | 78 << 16 | 1 << 8 | 1) << 32, 0],
            protocol: UDP,
            is_later_fragment: false,
            ports: Seen::HAS_PORTS | 9,
            flags: Seen::NO_FLAGS,
            bytes: 60,
        };
        filter::find(&image, &seen, 1).map(|rule| rule.wrapping_add(2))
    })
}

#[xdp]
fn trie_v4(_context: XdpContext) -> u32 {
    run(|index| TRIE_V4.get(&Key::new(32, v4(index)?.to_be_bytes())).copied())
}

#[xdp]
fn trie_v6(_context: XdpContext) -> u32 {
    run(|index| {
        let [high, low] = *ADDRESSES_V6.get(index)?;
        // SAFETY: two words in network order are sixteen bytes.
        let bytes: [u8; 16] = unsafe { core::mem::transmute([high.to_be(), low.to_be()]) };
        TRIE_V6.get(&Key::new(128, bytes)).copied()
    })
}

#[xdp]
fn kernel_v4(context: XdpContext) -> u32 {
    // SAFETY: the loader sets the device once, before the program is loaded.
    let device = unsafe { read_volatile(&raw const DEVICE) };
    run(|index| kernel_lookup(context.ctx, device, v4(index)?))
}

#[inline(always)]
fn kernel_lookup(context: *mut xdp_md, device: u32, address: u32) -> Option<u32> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut params: FibParams = unsafe { zeroed() };
    params.family = AF_INET;
    params.ifindex = device;
    params.__bindgen_anon_4.ipv4_dst = address.to_be();
    // SAFETY: context and parameters are valid and of the stated size.
    let found = unsafe { bpf_fib_lookup(context.cast(), &raw mut params, size_of::<FibParams>() as i32, 0) };
    if found == 0 { Some(1) } else { None }
}

#[xdp]
fn dir_v4(_context: XdpContext) -> u32 {
    let Some(table) = DIR.get(0) else { return xdp_action::XDP_ABORTED };
    let table = table.as_ptr();
    run(|index| {
        let address = v4(index)?;
        let first = dir_read(table, address >> 8)?;
        if first & DIR_LONG == 0 {
            return Some(first);
        }
        dir_read(table, (1 << 24) + ((first & !DIR_LONG) << 8) + (address & 0xff))
    })
}

#[inline(always)]
fn dir_read(table: *const u8, entry: u32) -> Option<u32> {
    let offset = entry as usize * 4;
    if offset > DIR_BYTES - 4 {
        return None;
    }
    // SAFETY: the offset was checked against the value's size.
    Some(unsafe { read_volatile(table.add(offset).cast::<u32>()) })
}

/// Sends each frame to the next address of the list, whatever a forwarder made of the frame when it was out before.
#[xdp]
fn generate_v4(context: XdpContext) -> u32 {
    let vary = |number| Some(Varied { destination: Some(listed(number)?), ..Varied::NOTHING });
    generate(&context, u64::MAX, vary).unwrap_or(xdp_action::XDP_ABORTED)
}

/// Sends each frame from the next address of the list.
#[xdp]
fn generate_from_v4(context: XdpContext) -> u32 {
    let vary = |number| Some(Varied { source: Some(listed(number)?), ..Varied::NOTHING });
    generate(&context, u64::MAX, vary).unwrap_or(xdp_action::XDP_ABORTED)
}

/// Sends each frame as one of the next flow of [`FLOWS`], each to an address of the list.
#[xdp]
fn generate_flows_v4(context: XdpContext) -> u32 {
    let Some(flows) = FLOWS.get(0) else { return xdp_action::XDP_ABORTED };
    let vary = |number: u64| {
        let (host, port) = ((number >> FLOW_PORT_BITS) as u32, number as u32 & ((1 << FLOW_PORT_BITS) - 1));
        Some(Varied {
            source: Some(FLOW_SOURCE | host & 0xffff),
            port: Some((FLOW_PORT + port) as u16),
            destination: Some(listed(number)?),
        })
    };
    generate(&context, *flows, vary).unwrap_or(xdp_action::XDP_ABORTED)
}

#[inline(always)]
fn listed(number: u64) -> Option<u32> {
    v4(number as u32 & (ADDRESSES_LEN as u32 - 1))
}

/// What differs from frame to frame; the rest is as the template has it.
struct Varied {
    source: Option<u32>,
    port: Option<u16>,
    destination: Option<u32>,
}

impl Varied {
    const NOTHING: Self = Self { source: None, port: None, destination: None };
}

/// Writes the next of `count` frames, and sends it.
#[inline(always)]
fn generate(context: &XdpContext, count: u64, vary: impl Fn(u64) -> Option<Varied>) -> Option<u32> {
    let frame = head(context)?;
    let template = FRAME.get(0)?;
    let state = STATE.get_ptr_mut(0)?;
    // SAFETY: one run at a time: the benchmark is the only caller.
    let state = unsafe { &mut *state };
    let number = if state[0] < count { state[0] } else { 0 };
    let varied = vary(number)?;
    state[0] = number + 1;
    // What varies is zero in the template, and so not yet in its sum.
    let mut sum = template[FRAME_WORDS] as u32;
    for address in [varied.source.unwrap_or(0), varied.destination.unwrap_or(0)] {
        sum += (address >> 16) + (address & 0xffff);
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    // SAFETY: `head` has checked that the frame has the bytes of the template.
    unsafe {
        for (word, value) in template[..FRAME_WORDS].iter().enumerate() {
            write_volatile(frame.cast::<u64>().add(word), *value);
        }
        write_volatile(frame.add(AT_CHECKSUM).cast::<u16>(), (!sum as u16).to_be());
        if let Some(source) = varied.source {
            write_volatile(frame.add(AT_SOURCE).cast::<u32>(), source.to_be());
        }
        if let Some(destination) = varied.destination {
            write_volatile(frame.add(AT_DESTINATION).cast::<u32>(), destination.to_be());
        }
        if let Some(port) = varied.port {
            write_volatile(frame.add(AT_SOURCE_PORT).cast::<u16>(), port.to_be());
        }
    }
    Some(xdp_action::XDP_TX)
}

/// The frame, when it is as long as the generator's frames.
#[inline(always)]
fn head(context: &XdpContext) -> Option<*mut u8> {
    let (start, end) = (context.data(), context.data_end());
    if start + FRAME_WORDS * 8 > end { None } else { Some(start as *mut u8) }
}

/// The least that a forwarder can do: no lookup, other MAC addresses, the next device.
#[xdp]
fn forward_rewrite(context: XdpContext) -> u32 {
    let forward = || {
        let frame = head(&context)?;
        let [first, second] = *MACS.get(0)?;
        send(frame, first, second as u32)
    };
    forward().unwrap_or(xdp_action::XDP_ABORTED)
}

/// The least that a router can do: what Ethernet and IPv4 headers say is believed only after a look at it, and the time
/// to live goes down. No table is asked.
#[xdp]
fn forward_age(context: XdpContext) -> u32 {
    route_nothing(&context, |_| true).unwrap_or(xdp_action::XDP_PASS)
}

/// The same, and the header's checksum must be right, as RFC 1812 section 5.2.2 has it.
#[xdp]
fn forward_verify(context: XdpContext) -> u32 {
    let is_right = |frame: *mut u8| {
        let mut sum = 0u64;
        for word in 0..5 {
            // SAFETY: the caller has checked the length of the frame.
            sum += u64::from(unsafe { read_volatile(frame.add(AT_IP + word * 4).cast::<u32>()) });
        }
        sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        (sum & 0xffff) + (sum >> 16) == 0xffff
    };
    route_nothing(&context, is_right).unwrap_or(xdp_action::XDP_PASS)
}

#[inline(always)]
fn route_nothing(context: &XdpContext, is_right: impl Fn(*mut u8) -> bool) -> Option<u32> {
    let frame = head(context)?;
    // SAFETY: `head` has checked the length.
    let (ethertype, first, length) = unsafe {
        (
            read_volatile(frame.add(AT_ETHERTYPE).cast::<u16>()),
            read_volatile(frame.add(AT_IP)),
            read_volatile(frame.add(AT_IP + 2).cast::<u16>()),
        )
    };
    if ethertype != ETHERTYPE_IPV4.to_be() || first != IPV4_WITHOUT_OPTIONS {
        return None;
    }
    if AT_IP + usize::from(u16::from_be(length)) > context.data_end() - context.data() || !is_right(frame) {
        return None;
    }
    let [first, second] = *MACS.get(0)?;
    age(frame)?;
    send(frame, first, second as u32)
}

/// A forwarder on `LPM_TRIE`.
#[xdp]
fn forward_trie(context: XdpContext) -> u32 {
    let forward = || {
        let frame = head(&context)?;
        // SAFETY: `head` has checked the length.
        let address = unsafe { read_volatile(frame.add(AT_DESTINATION).cast::<u32>()) };
        TRIE_V4.get(&Key::new(32, address.to_ne_bytes()))?;
        let [first, second] = *MACS.get(0)?;
        age(frame)?;
        send(frame, first, second as u32)
    };
    forward().unwrap_or(xdp_action::XDP_PASS)
}

/// A forwarder on `bpf_fib_lookup`: routes and neighbours are the kernel's.
#[xdp]
fn forward_kernel(context: XdpContext) -> u32 {
    let forward = || {
        let frame = head(&context)?;
        // SAFETY: all fields are integers, for which zero is a value.
        let mut params: FibParams = unsafe { zeroed() };
        params.family = AF_INET;
        // SAFETY: the context is valid while the program runs; `head` has checked the length.
        unsafe {
            params.ifindex = (*context.ctx).ingress_ifindex;
            params.__bindgen_anon_3.ipv4_src = read_volatile(frame.add(AT_DESTINATION - 4).cast::<u32>());
            params.__bindgen_anon_4.ipv4_dst = read_volatile(frame.add(AT_DESTINATION).cast::<u32>());
        }
        // SAFETY: context and parameters are valid and of the stated size.
        let found = unsafe { bpf_fib_lookup(context.ctx.cast(), &raw mut params, size_of::<FibParams>() as i32, 0) };
        if found != 0 {
            return None;
        }
        let (d, s) = (params.dmac, params.smac);
        age(frame)?;
        let first = u64::from_ne_bytes([d[0], d[1], d[2], d[3], d[4], d[5], s[0], s[1]]);
        send(frame, first, u32::from_ne_bytes([s[2], s[3], s[4], s[5]]))
    };
    forward().unwrap_or(xdp_action::XDP_PASS)
}

/// Takes one from the time to live, and corrects the checksum as RFC 1624 has it.
#[inline(always)]
fn age(frame: *mut u8) -> Option<()> {
    // SAFETY: the caller has checked the length of the frame.
    unsafe {
        let ttl = read_volatile(frame.add(AT_TTL));
        if ttl <= 1 {
            return None;
        }
        write_volatile(frame.add(AT_TTL), ttl - 1);
        let checksum = frame.add(AT_CHECKSUM).cast::<u16>();
        let sum = u32::from(u16::from_be(read_volatile(checksum))) + 0x0100;
        write_volatile(checksum, ((sum + (sum >> 16)) as u16).to_be());
    }
    Some(())
}

/// Writes both MAC addresses and lets the frame leave.
#[inline(always)]
fn send(frame: *mut u8, first: u64, second: u32) -> Option<u32> {
    // SAFETY: the caller has checked the length of the frame.
    unsafe {
        write_volatile(frame.cast::<u64>(), first);
        write_volatile(frame.add(8).cast::<u32>(), second);
    }
    EGRESS.redirect(0, 0).ok()
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
