//! ICMP errors about packets of services: found by the packet that they quote, and translated with it.
//!
//! Routers and hosts answer a packet that they cannot deliver by an error to its source, which quotes its beginning (RFC 792,
//! RFC 4443). There are two kinds that concern services:
//!
//! - The quoted packet comes from a VIP and a port of its service: a backend sent it, and the error is for that backend. With
//!   `nat` the error's destination and the quoted source become the backend's; without translation the error is sent on as it is.
//! - The quoted packet goes to a backend with `nat`: a client sent it to the VIP, and the error is for the client, which knows the
//!   VIP alone. The quoted destination becomes the VIP's, and so does the error's source, whoever sent it: between VIP and
//!   backend there is nothing that a client could reach (so does Linux: `nf_nat_icmp_reply_translation`).
//!
//! Either way the quoted packet turned around is one that would go to the VIP or come from the backend: with its key the stage
//! finds the flow as it does for any packet of it. What is found stands in the `Steer`; errors begin no flow and keep none alive.

use crate::image::Image;
use crate::layout::{SERVICE_ADDRESS_ECHO, SERVICE_ADDRESS_VIP};
use crate::packet::{
    AUTHENTICATION, DESTINATION_OPTIONS, ETHERNET_BYTES, FRAGMENT, FRAGMENT_BYTES, Packet, PacketMut, ROUTING, TCP,
    UDP, be64, link,
};
use crate::service::{
    Address, Difference, Steer, TCP_CHECKSUM_AT, UDP_CHECKSUM_AT, find, flow_key, is_v4, mapped, step, translated,
};
use crate::verdict::Reason;

/// Bytes of the ICMP header; what is quoted follows it.
pub const HEADER_BYTES: u32 = 8;
const CHECKSUM_AT: u32 = 2;
/// Every error quotes at least so much of what follows the IP header, RFC 792.
const QUOTED_BYTES_MIN: u32 = 8;
const V4_BYTES: u32 = 20;
const V6_BYTES: u32 = 40;

/// Types of errors, as bits. RFC 792: destination unreachable (fragmentation needed is one of its codes), time exceeded,
/// parameter problem.
const ERRORS_V4: u64 = 1 << 3 | 1 << 11 | 1 << 12;
/// RFC 4443: destination unreachable, packet too big, time exceeded, parameter problem.
const ERRORS_V6: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4;

/// Type and code of errors that answers are: port unreachable.
pub(crate) const ERROR_V4_PORT_UNREACHABLE: u16 = 3 << 8 | 3;
pub(crate) const ERROR_V6_PORT_UNREACHABLE: u16 = 1 << 8 | 4;
/// The same of those that say how large a packet may be.
pub(crate) const ERROR_V4_FRAGMENTATION_NEEDED: u16 = 3 << 8 | 4;
pub(crate) const ERROR_V6_PACKET_TOO_BIG: u16 = 2 << 8;

/// Types of echo requests.
const ECHO_V4: u16 = 8;
const ECHO_V6: u16 = 128;

/// Reads an ICMP packet that [`crate::service::read`] has come to: [`step::TO_SERVICE`] with the key of the quoted packet turned
/// around, [`step::ECHO`], or [`step::UNSERVED`].
#[inline(always)]
pub fn read<P: Packet + ?Sized>(headers: &P, steer: &mut Steer) -> u32 {
    read_in(headers, steer).unwrap_or(step::UNSERVED)
}

/// `None`: the packet is no error about TCP or UDP.
#[inline(always)]
fn read_in<P: Packet + ?Sized>(headers: &P, steer: &mut Steer) -> Option<u32> {
    const L3: u32 = ETHERNET_BYTES;
    let is_v4 = is_v4(steer.source());
    // More-fragments flag or fragment offset; of IPv6, a fragment's transport is at its end.
    if is_v4 && headers.be16(L3 + 6)? & 0x3fff != 0 {
        return None;
    }
    let icmp = L3 + steer.transport;
    let packet_end = end(headers, L3, is_v4)?;
    if icmp + HEADER_BYTES > packet_end {
        return None;
    }
    let kind = headers.be16(icmp)? >> 8;
    if kind == if is_v4 { ECHO_V4 } else { ECHO_V6 } {
        // Options and extension headers would have to be answered, too; and not every driver sends what lies in several buffers.
        let is_bare = steer.transport == if is_v4 { V4_BYTES } else { V6_BYTES };
        return (is_bare && !headers.is_scattered()).then_some(step::ECHO);
    }
    let errors = if is_v4 { ERRORS_V4 } else { ERRORS_V6 };
    if kind > 63 || errors >> kind & 1 == 0 {
        return None;
    }
    let quoted = quoted(headers, icmp + HEADER_BYTES, is_v4)?;
    // An error is sent to the source of what it quotes: another one is made up.
    if quoted.transport + QUOTED_BYTES_MIN > packet_end || quoted.src != steer.destination() {
        return None;
    }
    let ports = headers.be32(quoted.transport)?.rotate_left(16);
    steer.key = flow_key(quoted.dst, quoted.src, quoted.protocol, ports);
    steer.quoted = quoted.transport - L3;
    Some(step::TO_SERVICE)
}

/// What becomes of an echo request: whether its destination is a VIP that answers.
#[inline(always)]
pub fn echo<I: Image + ?Sized>(image: &I, steer: &Steer) -> u32 {
    match find(image, steer.destination()) {
        Some(word) if word & SERVICE_ADDRESS_VIP != 0 && word & SERVICE_ADDRESS_ECHO != 0 => {
            step::stays(Reason::EchoAnswered)
        }
        Some(_) => step::UNSERVED,
        None => step::stays(Reason::BadImage),
    }
}

/// Where an IP packet whose header stands at `l3` ends.
#[inline(always)]
pub(crate) fn end<P: Packet + ?Sized>(packet: &P, l3: u32, is_v4: bool) -> Option<u32> {
    let bytes = if is_v4 { u32::from(packet.be16(l3 + 2)?) } else { V6_BYTES + u32::from(packet.be16(l3 + 4)?) };
    Some(l3 + bytes)
}

/// The beginning of a packet that an error quotes.
struct Quoted {
    src: Address,
    dst: Address,
    protocol: u8,
    /// Where its transport header stands.
    transport: u32,
}

/// Reads a quoted packet at `at`; `None`: it shows no ports of TCP or UDP.
#[inline(always)]
fn quoted<P: Packet + ?Sized>(headers: &P, at: u32, is_v4: bool) -> Option<Quoted> {
    let quoted = if is_v4 { quoted_v4(headers, at)? } else { quoted_v6(headers, at)? };
    (quoted.protocol == TCP || quoted.protocol == UDP).then_some(quoted)
}

#[inline(always)]
fn quoted_v4<P: Packet + ?Sized>(headers: &P, at: u32) -> Option<Quoted> {
    let version = headers.be16(at)? >> 8;
    let header_bytes = u32::from(version & 0x0f) * 4;
    // The first fragment shows ports, the others do not.
    if version >> 4 != 4 || header_bytes < V4_BYTES || headers.be16(at + 6)? & 0x1fff != 0 {
        return None;
    }
    let address = |at| Some(mapped(4, [u64::from(headers.be32(at)?) << 32, 0]));
    Some(Quoted {
        src: address(at + 12)?,
        dst: address(at + 16)?,
        protocol: headers.be16(at + 8)? as u8,
        transport: at + header_bytes,
    })
}

#[inline(always)]
fn quoted_v6<P: Packet + ?Sized>(headers: &P, at: u32) -> Option<Quoted> {
    if headers.be16(at)? >> 12 != 6 {
        return None;
    }
    let src = [be64(headers, at + 8)?, be64(headers, at + 16)?];
    let dst = [be64(headers, at + 24)?, be64(headers, at + 32)?];
    let mut header = Header { protocol: (headers.be16(at + 6)? >> 8) as u8, at: at + V6_BYTES };
    // Not a loop: the compiler would move the frame's end before it, and calculate with it, which the verifier refuses.
    if extension(headers, &mut header)? && extension(headers, &mut header)? {
        extension(headers, &mut header)?;
    }
    Some(Quoted { src, dst, protocol: header.protocol, transport: header.at })
}

/// A header of IPv6.
struct Header {
    protocol: u8,
    at: u32,
}

/// Goes on to the next header where this is an extension header; `None`: it is a later fragment's, or is not there.
#[inline(always)]
fn extension<P: Packet + ?Sized>(headers: &P, header: &mut Header) -> Option<bool> {
    let bytes = match header.protocol {
        ROUTING | DESTINATION_OPTIONS => (u32::from(headers.be16(header.at)? & 0xff) + 1) * 8,
        // RFC 4302 counts 4-byte units.
        AUTHENTICATION => (u32::from(headers.be16(header.at)? & 0xff) + 2) * 4,
        FRAGMENT => {
            if headers.be16(header.at + 2)? & 0xfff8 != 0 {
                return None;
            }
            FRAGMENT_BYTES
        }
        _ => return Some(false),
    };
    *header = Header { protocol: (headers.be16(header.at)? >> 8) as u8, at: header.at + bytes };
    Some(true)
}

/// Translates the addresses of an error that is steered to a backend (`translated::DESTINATION`) or to a client; its checksums
/// are right after [`translate_quoted`]. `None`: the frame is not what [`read`] took.
#[inline(always)]
pub fn translate_addresses<P: PacketMut + ?Sized>(packet: &mut P, steer: &mut Steer) -> Option<()> {
    let link = link(packet).ok()?;
    let l3 = ETHERNET_BYTES + link.tag_bytes;
    let is_to_client = steer.translated == translated::SOURCE;
    let to = steer.address;
    let icmp = l3 + steer.transport;
    let inner = icmp + HEADER_BYTES;
    // What the error's checksum covers.
    let mut message = Difference(0);
    // What the quoted transport's checksum covers: addresses and a port.
    let mut segment = Difference(0);
    if is_v4(to) {
        let new = to[1] as u32;
        let outer_at = l3 + if is_to_client { 12 } else { 16 };
        let mut header = Difference(0);
        header.replace32(packet.be32(outer_at)?, new);
        let checksum = packet.be16(l3 + 10)?;
        packet.set_be16(l3 + 10, header.apply(checksum))?;
        packet.set_be32(outer_at, new)?;
        // An IPv4 header sums up to the same before and after, so the error's checksum does not see it: but where it was
        // cut off or wrong.
        let inner_at = inner + if is_to_client { 16 } else { 12 };
        segment.replace32(packet.be32(inner_at)?, new);
        let checksum = packet.be16(inner + 10)?;
        let renewed = segment.apply(checksum);
        message = message.and(segment);
        message.replace16(checksum, renewed);
        packet.set_be16(inner + 10, renewed)?;
        packet.set_be32(inner_at, new)?;
    } else {
        let outer_at = l3 + if is_to_client { 8 } else { 24 };
        let inner_at = inner + if is_to_client { 24 } else { 8 };
        // The pseudo header has the outer addresses (RFC 4443 section 2.3). Not a loop, as above.
        let [high, low] = to;
        replace(packet, outer_at, (high >> 32) as u32, &mut message)?;
        replace(packet, outer_at + 4, high as u32, &mut message)?;
        replace(packet, outer_at + 8, (low >> 32) as u32, &mut message)?;
        replace(packet, outer_at + 12, low as u32, &mut message)?;
        replace(packet, inner_at, (high >> 32) as u32, &mut segment)?;
        replace(packet, inner_at + 4, high as u32, &mut segment)?;
        replace(packet, inner_at + 8, (low >> 32) as u32, &mut segment)?;
        replace(packet, inner_at + 12, low as u32, &mut segment)?;
        message = message.and(segment);
    }
    steer.message = message.folded().into();
    steer.segment = segment.folded().into();
    Some(())
}

/// What follows: the quoted port, and the checksums of the quoted packet and of the error.
#[inline(always)]
pub fn translate_quoted<P: PacketMut + ?Sized>(packet: &mut P, steer: &Steer) -> Option<()> {
    let link = link(packet).ok()?;
    let l3 = ETHERNET_BYTES + link.tag_bytes;
    let icmp = l3 + steer.transport;
    let l4 = l3 + steer.quoted;
    let mut message = Difference(steer.message);
    let port_at = if steer.translated == translated::SOURCE { l4 + 2 } else { l4 };
    let mut port = Difference(0);
    port.replace16(packet.be16(port_at)?, steer.port as u16);
    packet.set_be16(port_at, steer.port as u16)?;
    message = message.and(port);
    // Of TCP it is quoted by those who quote more than they must.
    let is_tcp = steer.protocol() == TCP;
    let checksum_at = l4 + if is_tcp { TCP_CHECKSUM_AT } else { UDP_CHECKSUM_AT };
    if checksum_at + 2 <= end(packet, l3, is_v4(steer.address))? {
        let checksum = packet.be16(checksum_at)?;
        if checksum != 0 || is_tcp {
            let sum = Difference(steer.segment).and(port).apply(checksum);
            let renewed = if sum == 0 && !is_tcp { 0xffff } else { sum };
            message.replace16(checksum, renewed);
            packet.set_be16(checksum_at, renewed)?;
        }
    }
    let checksum = packet.be16(icmp + CHECKSUM_AT)?;
    packet.set_be16(icmp + CHECKSUM_AT, message.apply(checksum))
}

/// Writes a word, and notes the difference that it makes.
#[inline(always)]
fn replace<P: PacketMut + ?Sized>(packet: &mut P, at: u32, new: u32, difference: &mut Difference) -> Option<()> {
    difference.replace32(packet.be32(at)?, new);
    packet.set_be32(at, new)
}
