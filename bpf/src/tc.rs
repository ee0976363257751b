//! The TC side: the kernel's buffer, after it was made and before the network stack sees it.

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO,
    BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_OK, TC_ACT_SHOT,
};
use aya_ebpf::helpers::{
    bpf_l4_csum_replace, bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_proto,
    bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_vlan_pop, bpf_skb_vlan_push,
};
use fib::packet::{ETHERNET_BYTES, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Link, Parsed, Tags};
use fib::service::Difference;
use fib::{Packet, PacketMut};

use crate::frame::{Headers, reads_headers, writes_headers};
use crate::hook::Hook;
use crate::maps::PORT_LINKS;

/// Bytes at the front that are made readable: Ethernet, IPv6 with some extension headers, ports; of an ICMP error, as much of
/// the packet that it quotes.
const HEADER_BYTES: u32 = 192;
const TCP: u8 = 6;
/// Words of a TCP header stand in the high four bits of its 13th byte.
const TCP_WORDS_AT: u32 = 12;
const UDP_HEADER_BYTES: u32 = 8;

/// A packet that has become a socket buffer; `data` moves on in views without the tags.
pub(crate) struct SkbFrame {
    context: *mut __sk_buff,
    headers: Headers,
    /// Bytes of the frame before `headers`.
    skipped: u32,
}

#[inline(always)]
fn headers(context: *mut __sk_buff) -> Headers {
    // SAFETY: the context is valid while the program runs.
    let (data, end) = unsafe { ((*context).data, (*context).data_end) };
    Headers { data: data as usize, end: end as usize }
}

impl Packet for SkbFrame {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.context).len }.wrapping_sub(self.skipped)
    }
    reads_headers!();

    #[inline(always)]
    fn offloaded_tag(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        let (present, protocol, tci) =
            unsafe { ((*self.context).vlan_present, (*self.context).vlan_proto, (*self.context).vlan_tci) };
        if present == 0 { 0 } else { u32::from(u16::from_be(protocol as u16)) << 16 | tci & 0xffff }
    }
    #[inline(always)]
    fn largest_segment(&self, parsed: &Parsed) -> u32 {
        // SAFETY: the context is valid while the program runs.
        let segment = unsafe { (*self.context).gso_size };
        if segment == 0 {
            return parsed.ip_bytes;
        }
        // As skb_gso_network_seglen: the network header, the transport header and one segment's payload.
        let transport = if parsed.flow.protocol == TCP {
            let words = self.headers.be16(ETHERNET_BYTES + parsed.header_bytes + TCP_WORDS_AT).unwrap_or_default();
            u32::from(words >> 12) * 4
        } else {
            UDP_HEADER_BYTES
        };
        parsed.header_bytes + transport + segment
    }
}

impl PacketMut for SkbFrame {
    writes_headers!();

    #[inline(always)]
    fn move_head(&mut self, _bytes: i32) -> Option<()> {
        None
    }

    #[inline(always)]
    fn shorten(&mut self, bytes: u32) -> Option<()> {
        // SAFETY: the context is valid while the program runs; the pointers into the frame are read anew.
        if bytes > self.length() || unsafe { bpf_skb_change_tail(self.context, bytes, 0) } != 0 {
            return None;
        }
        self.headers = headers(self.context);
        Some(())
    }

    #[inline(always)]
    fn add_room(&mut self, bytes: u32) -> Option<()> {
        // SAFETY: the context is valid while the program runs; the pointers into the frame are read anew.
        if unsafe { bpf_skb_change_head(self.context, bytes, 0) } != 0 {
            return None;
        }
        self.headers = headers(self.context);
        Some(())
    }

    /// By the kernel's helper, which knows what is left of a checksum that the device will complete.
    #[inline(always)]
    fn change_checksum(&mut self, at: u32, addresses: Difference, ports: Difference, never_zero: bool) -> Option<()> {
        let zero = if never_zero { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        // In the order of bytes in which the kernel sums up.
        let [addresses, ports] = [addresses, ports].map(|difference| u64::from(difference.folded().to_be()));
        // SAFETY: the context is valid while the program runs; the pointers into the frame are read anew.
        let failed = unsafe {
            bpf_l4_csum_replace(self.context, at, 0, addresses, u64::from(BPF_F_PSEUDO_HDR) | zero) != 0
                || bpf_l4_csum_replace(self.context, at, 0, ports, zero) != 0
        };
        self.headers = headers(self.context);
        if failed { None } else { Some(()) }
    }

    /// The kernel keeps the outermost tag beside the frame; its helpers know when to move one in or out.
    #[inline(always)]
    fn set_tags(&mut self, link: &Link, tags: Tags) -> Option<u32> {
        if !pop_all(self.context, link.tags) || !push_all(self.context, tags) {
            return None;
        }
        self.headers = headers(self.context);
        Some(bytes_inside(tags))
    }

    /// By the kernel's helper, which notes where the inner packet's headers are: who divides a large one needs to know. What a
    /// segment carries stays as it is: the verdict has counted the outer header in.
    #[inline(always)]
    fn push_header(&mut self, link: &Link, tags: Tags, bytes: u32, ethertype: u16) -> Option<u32> {
        let family =
            if ethertype == ETHERTYPE_IPV4 { BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 } else { BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 };
        let flags = u64::from(family | BPF_F_ADJ_ROOM_FIXED_GSO);
        if !pop_all(self.context, link.tags)
            || !adjust_room(self.context, bytes.cast_signed(), flags)
            || !push_all(self.context, tags)
        {
            return None;
        }
        self.headers = headers(self.context);
        let inside = bytes_inside(tags);
        self.set_be16(ETHERNET_BYTES - 2 + inside, ethertype)?;
        Some(ETHERNET_BYTES + inside)
    }

    /// A packet of IPv4 in one of IPv6 in two steps, since only Linux 6.3 brought a flag for it: the helper that translates between the
    /// families takes what they differ by, and says that it is IPv4 from then on.
    #[inline(always)]
    fn pull_header(&mut self, link: &Link, bytes: u32, ethertype: u16) -> Option<()> {
        const DIFFERENCE: u32 = 20;
        if !pop_all(self.context, link.tags) {
            return None;
        }
        // SAFETY: the context is valid while the program runs; the pointers into the frame are read anew.
        let is_ipv6 = unsafe { (*self.context).protocol } == u32::from(ETHERTYPE_IPV6.to_be());
        let mut bytes = bytes;
        if is_ipv6 && ethertype == ETHERTYPE_IPV4 {
            // SAFETY: as above.
            if unsafe { bpf_skb_change_proto(self.context, ETHERTYPE_IPV4.to_be(), 0) } != 0 {
                return None;
            }
            bytes -= DIFFERENCE;
        }
        let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
        if !adjust_room(self.context, -bytes.cast_signed(), flags) || !push_all(self.context, link.tags) {
            return None;
        }
        self.headers = headers(self.context);
        self.set_be16(ETHERNET_BYTES - 2 + bytes_inside(link.tags), ethertype)
    }
}

/// Takes the tags of the frame out of it: only then does the kernel know that it carries IP. Pointers into the frame are void after it.
#[inline(always)]
fn pop_all(context: *mut __sk_buff, tags: Tags) -> bool {
    (tags.outer == 0 || pop(context)) && (tags.inner == 0 || pop(context))
}

/// Pointers into the frame are void after it.
#[inline(always)]
fn push_all(context: *mut __sk_buff, tags: Tags) -> bool {
    (tags.inner == 0 || push(context, tags.inner)) && (tags.outer == 0 || push(context, tags.outer))
}

/// Bytes of the tags that lie in the frame: all but the outermost.
#[inline(always)]
const fn bytes_inside(tags: Tags) -> u32 {
    if tags.inner == 0 { 0 } else { Tags { outer: tags.inner, inner: 0 }.bytes() }
}

/// Pointers into the frame are void after it.
#[inline(always)]
fn pop(context: *mut __sk_buff) -> bool {
    // SAFETY: the context is valid while the program runs.
    unsafe { bpf_skb_vlan_pop(context) == 0 }
}

/// Pointers into the frame are void after it.
#[inline(always)]
fn push(context: *mut __sk_buff, tag: u32) -> bool {
    // SAFETY: the context is valid while the program runs.
    unsafe { bpf_skb_vlan_push(context, ((tag >> 16) as u16).to_be(), tag as u16) == 0 }
}

/// Pointers into the frame are void after it.
#[inline(always)]
fn adjust_room(context: *mut __sk_buff, bytes: i32, flags: u64) -> bool {
    // SAFETY: the context is valid while the program runs.
    unsafe { bpf_skb_adjust_room(context, bytes, BPF_ADJ_ROOM_MAC, flags) == 0 }
}

impl Hook for SkbFrame {
    const PASS: i32 = TC_ACT_OK;
    const DROP: i32 = TC_ACT_SHOT;
    /// A buffer whose tags could not be changed for want of memory may have lost one: it must not reach another network.
    const GIVE_UP: i32 = Self::DROP;

    type Context = __sk_buff;

    #[inline(always)]
    fn of(context: *mut __sk_buff) -> Self {
        let mut readable = headers(context);
        // SAFETY: the context is valid while the program runs.
        let length = unsafe { (*context).len };
        let wanted = if length < HEADER_BYTES { length } else { HEADER_BYTES };
        if readable.bytes() < wanted {
            // SAFETY: as above; the pointers into the frame are read anew, also where the call failed.
            unsafe { bpf_skb_pull_data(context, wanted) };
            readable = headers(context);
        }
        Self { context, headers: readable, skipped: 0 }
    }
    #[inline(always)]
    fn ingress_device(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.context).ifindex }
    }
    #[inline(always)]
    fn copy(&self, to: *mut u8, bytes: u32) -> bool {
        // SAFETY: the context is valid while the program runs; the caller has room for so many bytes.
        unsafe { bpf_skb_load_bytes(self.context.cast(), 0, to.cast(), bytes) == 0 }
    }
    #[inline(always)]
    fn send_back(&self) -> i32 {
        // SAFETY: no pointers are involved.
        unsafe { bpf_redirect(self.ingress_device(), 0) as i32 }
    }
    #[inline(always)]
    fn redirect(&self, port: u32) -> Option<i32> {
        let [devices, _] = *PORT_LINKS.get(port)?;
        let device = devices as u32;
        if device == 0 {
            return None;
        }
        // SAFETY: no pointers are involved.
        Some(unsafe { bpf_redirect(device, 0) } as i32)
    }
}
