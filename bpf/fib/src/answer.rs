//! Answers in the place of a service: to a ping, to packets that no backend takes, and to those too large for a tunnel.
//!
//! An answer goes back by the way that its packet came: the same device and tags, the MAC addresses turned around. So it needs
//! no route to the client, and the node whose MAC address the packet had for destination is the one that it comes from. The frame
//! of the packet becomes that of the answer.

use core::cmp::min;

use crate::icmp::{
    ERROR_V4_FRAGMENTATION_NEEDED, ERROR_V4_PORT_UNREACHABLE, ERROR_V6_PACKET_TOO_BIG, ERROR_V6_PORT_UNREACHABLE, end,
};
use crate::packet::{ETHERNET_BYTES, ICMP, ICMPV6, PacketMut, SUM_BYTES_MAX, TCP, destination_mac, link, source_mac};
use crate::service::{Address, Difference, Steer, is_v4, tcp};
use crate::verdict::Reason;

/// TTL and hop limit of answers: RFC 1700.
const TTL: u16 = 64;
const V4_BYTES: u32 = 20;
const V6_BYTES: u32 = 40;
const TCP_BYTES: u32 = 20;
const ICMP_BYTES: u32 = 8;
/// RFC 8200 section 5.
const V6_MTU_MIN: u32 = 1280;
/// Most that an error quotes: as [`crate::Packet::sum`] takes it. RFC 792 wants 28 bytes of a packet without options at least; RFC 1812 and
/// RFC 4443 want more, for protocols whose ports lie deeper, which services have not.
const QUOTED_BYTES_MAX: u32 = SUM_BYTES_MAX;
/// "Don't fragment" of the IPv4 header; a packet that cannot be fragmented needs no identification (RFC 6864).
const DF: u16 = 0x4000;
/// Internetwork control, RFC 1812 section 4.3.2.5: precedence of errors.
const ERROR_TOS: u16 = 0xc0;
/// First half word of an IPv4 header without options.
const V4_FIRST: u16 = 0x4500;

/// Makes the answer to a packet that ended for this reason, one of the verdict `Answer`; what became of it.
pub fn answer<P: PacketMut + ?Sized>(packet: &mut P, steer: &Steer, reason: Reason) -> Reason {
    let made = match reason {
        Reason::EchoAnswered => echo(packet, steer),
        Reason::NoBackendReject if steer.protocol() == TCP => reset(packet, steer),
        _ => error_for(packet, steer, reason as u8),
    };
    if made.is_some() { reason } else { Reason::NoAnswer }
}

/// An echo request becomes its reply, RFC 792 and RFC 4443 section 4.2.
#[inline(always)]
pub fn echo<P: PacketMut + ?Sized>(packet: &mut P, steer: &Steer) -> Option<()> {
    let l3 = ETHERNET_BYTES + link(packet).ok()?.tag_bytes;
    let icmp = l3 + steer.transport;
    // Type and code: the sum of everything else stays, since addresses change places.
    let kind = packet.be16(icmp)?;
    let reply = kind & 0xff | if is_v4(steer.source()) { 0 } else { 129 << 8 };
    let mut message = Difference(0);
    message.replace16(kind, reply);
    let checksum = packet.be16(icmp + 2)?;
    if is_v4(steer.source()) {
        let word = packet.be16(l3 + 8)?;
        let renewed = TTL << 8 | word & 0xff;
        let mut header = Difference(0);
        header.replace16(word, renewed);
        let sum = packet.be16(l3 + 10)?;
        packet.set_be16(l3 + 8, renewed)?;
        packet.set_be16(l3 + 10, header.apply(sum))?;
    } else {
        let word = packet.be16(l3 + 6)?;
        packet.set_be16(l3 + 6, word & 0xff00 | TTL)?;
    }
    turn_addresses(packet, l3, steer)?;
    packet.set_be16(icmp, reply)?;
    packet.set_be16(icmp + 2, message.apply(checksum))?;
    turn_macs(packet)
}

/// A segment becomes the reset that a host without the connection answers it with: RFC 9293 section 3.10.7.1.
#[inline(always)]
pub fn reset<P: PacketMut + ?Sized>(packet: &mut P, steer: &Steer) -> Option<()> {
    let l3 = ETHERNET_BYTES + link(packet).ok()?.tag_bytes;
    let is_v4 = is_v4(steer.source());
    let segment = l3 + steer.transport;
    let (seq, ack) = (packet.be32(segment + 4)?, packet.be32(segment + 8)?);
    let word = u32::from(packet.be16(segment + 12)?);
    let data = end(packet, l3, is_v4)?.wrapping_sub(segment + (word >> 12) * 4);
    // SYN and FIN take a number each.
    let numbers = data.wrapping_add(word >> 1 & 1).wrapping_add(word & 1);
    let (seq, ack, flags) =
        if word & tcp::ACK == 0 { (0, seq.wrapping_add(numbers), tcp::RST | tcp::ACK) } else { (ack, 0, tcp::RST) };
    let l4 = l3 + if is_v4 { V4_BYTES } else { V6_BYTES };
    packet.shorten(l4 + TCP_BYTES)?;
    let ports = steer.ports().rotate_left(16);
    let head = (TCP_BYTES as u16 / 4) << 12 | flags as u16;
    let mut sum = Difference(0);
    sum.add_address(steer.source());
    sum.add_address(steer.destination());
    for word in [ports, seq, ack, u32::from(head), u32::from(TCP), TCP_BYTES] {
        sum.add32(word);
    }
    packet.set_be32(l4, ports)?;
    packet.set_be32(l4 + 4, seq)?;
    packet.set_be32(l4 + 8, ack)?;
    packet.set_be16(l4 + 12, head)?;
    packet.set_be16(l4 + 14, 0)?;
    packet.set_be32(l4 + 16, u32::from(!sum.folded()) << 16)?;
    if is_v4 {
        write_v4(packet, l3, 0, (V4_BYTES + TCP_BYTES) as u16, TCP, steer)?;
    } else {
        write_v6(packet, l3, 0, TCP_BYTES as u16, TCP, steer)?;
    }
    turn_macs(packet)
}

/// A packet that ended for the reason of this number becomes an error that quotes it. `None` of an error, which nobody answers (RFC 1122
/// section 3.2.2, RFC 4443 section 2.4).
///
/// One that no backend takes: its port is closed. One that is too large for its backend's tunnel: how large the next one may be (RFC
/// 1191, RFC 4443 section 3.2). A packet of IPv4 that may be fragmented is told so, too, as by Katran: nothing here fragments, and its
/// sender lowers its path MTU by the answer (Linux: `ipv4_update_pmtu`) where silence would lose every packet that large.
#[inline(always)]
pub fn error_for<P: PacketMut + ?Sized>(packet: &mut P, steer: &Steer, reason: u8) -> Option<()> {
    if steer.quoted != 0 {
        return None;
    }
    let is_v4 = is_v4(steer.source());
    let (kind, rest) = match (reason == Reason::TunnelMtu as u8, is_v4) {
        (false, true) => (ERROR_V4_PORT_UNREACHABLE, 0),
        (false, false) => (ERROR_V6_PORT_UNREACHABLE, 0),
        (true, true) => (ERROR_V4_FRAGMENTATION_NEEDED, steer.mtu),
        // No link carries less, RFC 8200 section 5: a smaller number would be ignored.
        (true, false) => (ERROR_V6_PACKET_TOO_BIG, if steer.mtu < V6_MTU_MIN { V6_MTU_MIN } else { steer.mtu }),
    };
    error(packet, steer, kind, rest)
}

/// A packet becomes an error that quotes it: type and code, then what stands in its second word.
#[inline(always)]
pub(crate) fn error<P: PacketMut + ?Sized>(packet: &mut P, steer: &Steer, kind: u16, rest: u32) -> Option<()> {
    let tag_bytes = link(packet).ok()?.tag_bytes;
    let l3 = ETHERNET_BYTES + tag_bytes;
    let is_v4 = is_v4(steer.source());
    let quoted = min(end(packet, l3, is_v4)? - l3, QUOTED_BYTES_MAX) & !3;
    let mut sum = Difference(packet.sum(l3, quoted)?.into());
    sum.add32(kind.into());
    sum.add32(rest);
    let (to, from) = (source_mac(packet)?, destination_mac(packet)?);
    let tags = [packet.be32(12)?, packet.be32(16)?];
    let ethertype = packet.be16(12 + tag_bytes)?;
    packet.shorten(l3 + quoted)?;
    let l4 = l3 + if is_v4 { V4_BYTES } else { V6_BYTES };
    packet.add_room(l4 + ICMP_BYTES - l3)?;
    packet.set_macs(to, from)?;
    if tag_bytes >= 4 {
        packet.set_be32(12, tags[0])?;
    }
    if tag_bytes >= 8 {
        packet.set_be32(16, tags[1])?;
    }
    packet.set_be16(12 + tag_bytes, ethertype)?;
    let bytes = ICMP_BYTES + quoted;
    if is_v4 {
        write_v4(packet, l3, ERROR_TOS, (V4_BYTES + bytes) as u16, ICMP, steer)?;
    } else {
        sum.add_address(steer.source());
        sum.add_address(steer.destination());
        sum.add32(u32::from(ICMPV6) + bytes);
        write_v6(packet, l3, ERROR_TOS, bytes as u16, ICMPV6, steer)?;
    }
    packet.set_be16(l4, kind)?;
    packet.set_be16(l4 + 2, !sum.folded())?;
    packet.set_be32(l4 + 4, rest)
}

/// The header of an answer.
#[inline(always)]
fn write_v4<P: PacketMut + ?Sized>(
    packet: &mut P,
    l3: u32,
    tos: u16,
    bytes: u16,
    protocol: u8,
    steer: &Steer,
) -> Option<()> {
    let word = TTL << 8 | u16::from(protocol);
    let mut sum = Difference(0);
    for word in [V4_FIRST | tos, bytes, DF, word] {
        sum.add32(word.into());
    }
    sum.add32(steer.source()[1] as u32);
    sum.add32(steer.destination()[1] as u32);
    packet.set_be16(l3, V4_FIRST | tos)?;
    packet.set_be16(l3 + 2, bytes)?;
    packet.set_be16(l3 + 4, 0)?;
    packet.set_be16(l3 + 6, DF)?;
    packet.set_be16(l3 + 8, word)?;
    packet.set_be16(l3 + 10, !sum.folded())?;
    turn_addresses(packet, l3, steer)
}

/// The same of IPv6.
#[inline(always)]
fn write_v6<P: PacketMut + ?Sized>(
    packet: &mut P,
    l3: u32,
    class: u16,
    bytes: u16,
    next: u8,
    steer: &Steer,
) -> Option<()> {
    packet.set_be32(l3, 6 << 28 | u32::from(class) << 20)?;
    packet.set_be16(l3 + 4, bytes)?;
    packet.set_be16(l3 + 6, u16::from(next) << 8 | TTL)?;
    turn_addresses(packet, l3, steer)
}

/// From where the packet went, to where it came from.
#[inline(always)]
fn turn_addresses<P: PacketMut + ?Sized>(packet: &mut P, l3: u32, steer: &Steer) -> Option<()> {
    let (from, to) = (steer.destination(), steer.source());
    if is_v4(to) {
        packet.set_be32(l3 + 12, from[1] as u32)?;
        return packet.set_be32(l3 + 16, to[1] as u32);
    }
    set_address(packet, l3 + 8, from)?;
    set_address(packet, l3 + 24, to)
}

#[inline(always)]
fn set_address<P: PacketMut + ?Sized>(packet: &mut P, at: u32, address: Address) -> Option<()> {
    packet.set_be32(at, (address[0] >> 32) as u32)?;
    packet.set_be32(at + 4, address[0] as u32)?;
    packet.set_be32(at + 8, (address[1] >> 32) as u32)?;
    packet.set_be32(at + 12, address[1] as u32)
}

#[inline(always)]
fn turn_macs<P: PacketMut + ?Sized>(packet: &mut P) -> Option<()> {
    let (to, from) = (source_mac(packet)?, destination_mac(packet)?);
    packet.set_macs(to, from)
}
