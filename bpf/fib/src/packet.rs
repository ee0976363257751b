//! Frames: access, parsing and the rewrite that forwarding makes.
//!
//! Numbers are returned in host order from network-order bytes; offsets count from the Ethernet destination address.

use crate::hash::Flow;
use crate::verdict::{Neighbour, Reason};

/// Bounds-checked reads of a frame; `None` past its end.
pub trait Packet {
    /// Bytes of the frame.
    fn length(&self) -> u32;
    fn u8(&self, at: u32) -> Option<u8>;
    /// Network-order 16 bits.
    fn be16(&self, at: u32) -> Option<u16>;
    /// Network-order 32 bits.
    fn be32(&self, at: u32) -> Option<u32>;
}

/// Bounds-checked writes to a frame.
pub trait PacketMut: Packet {
    fn set_u8(&mut self, at: u32, value: u8) -> Option<()>;
    fn set_be16(&mut self, at: u32, value: u16) -> Option<()>;
    /// Writes the six bytes of a MAC address, the low 48 bits of `mac` with its first byte lowest.
    fn set_mac(&mut self, at: u32, mac: u64) -> Option<()>;
}

impl Packet for [u8] {
    fn length(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }
    fn u8(&self, at: u32) -> Option<u8> {
        self.get(at as usize).copied()
    }
    fn be16(&self, at: u32) -> Option<u16> {
        Some(u16::from_be_bytes(*self.get(at as usize..)?.first_chunk()?))
    }
    fn be32(&self, at: u32) -> Option<u32> {
        Some(u32::from_be_bytes(*self.get(at as usize..)?.first_chunk()?))
    }
}

impl PacketMut for [u8] {
    fn set_u8(&mut self, at: u32, value: u8) -> Option<()> {
        *self.get_mut(at as usize)? = value;
        Some(())
    }
    fn set_be16(&mut self, at: u32, value: u16) -> Option<()> {
        *self.get_mut(at as usize..)?.first_chunk_mut()? = value.to_be_bytes();
        Some(())
    }
    fn set_mac(&mut self, at: u32, mac: u64) -> Option<()> {
        *self.get_mut(at as usize..)?.first_chunk_mut::<6>()? = *mac.to_le_bytes().first_chunk()?;
        Some(())
    }
}

/// Ethernet header, RFC 894.
pub const ETHERNET_BYTES: u32 = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// IEEE 802.1Q and 802.1ad.
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

/// Protocol numbers of the IANA registry.
const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
/// RFC 8200, section 4.5.
const FRAGMENT_BYTES: u32 = 8;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const DCCP: u8 = 33;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

/// Extension headers that are followed to the ports; a packet with more is forwarded by its three fields.
pub const EXTENSION_HEADERS_MAX: u32 = 6;

/// Most-significant-first bits of a MAC's first byte: set for group addresses.
const MAC_GROUP_BIT: u16 = 0x0100;

/// What the verdict needs to know of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// 4 or 6.
    pub family: u8,
    pub flow: Flow,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Bytes from the IP header to the end of the frame: the packet, and padding where there is some. What leaves is this.
    pub ip_bytes: u32,
}

/// The frame's destination MAC, as [`Neighbour`] holds them.
#[inline(always)]
pub fn destination_mac<P: Packet + ?Sized>(packet: &P) -> Option<u64> {
    let high = packet.be32(0)?.swap_bytes();
    let low = packet.be16(4)?.swap_bytes();
    Some(u64::from(low) << 32 | u64::from(high))
}

/// Reads the headers, or says why the packet is not for the routes.
#[inline(always)]
pub fn parse<P: Packet + ?Sized>(packet: &P) -> Result<Parsed, Reason> {
    let Some(ethertype) = packet.be16(12) else { return Err(Reason::Malformed) };
    match packet.be16(0) {
        Some(first) if first & MAC_GROUP_BIT != 0 => return Err(Reason::LinkNotOurs),
        _ => {}
    }
    match ethertype {
        ETHERTYPE_IPV4 => parse_v4(packet).ok_or(Reason::Malformed)?,
        ETHERTYPE_IPV6 => parse_v6(packet).ok_or(Reason::Malformed)?,
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => Err(Reason::Vlan),
        _ => Err(Reason::NotIp),
    }
}

/// RFC 791. `None`: malformed.
#[inline(always)]
fn parse_v4<P: Packet + ?Sized>(packet: &P) -> Option<Result<Parsed, Reason>> {
    const L3: u32 = ETHERNET_BYTES;
    let version = packet.u8(L3)?;
    let header_bytes = u32::from(version & 0x0f) * 4;
    let ip_bytes = u32::from(packet.be16(L3 + 2)?);
    if version >> 4 != 4 || header_bytes < 20 || ip_bytes < header_bytes || packet.length() < L3 + ip_bytes {
        return None;
    }
    let src = packet.be32(L3 + 12)?;
    let dst = packet.be32(L3 + 16)?;
    if stays_v4(src) || stays_v4(dst) {
        return Some(Err(Reason::NotForwardable));
    }
    let protocol = packet.u8(L3 + 9)?;
    // More-fragments flag or fragment offset.
    let fragment = packet.be16(L3 + 6)? & 0x3fff != 0;
    let ports = if has_ports(protocol) && !fragment && ip_bytes >= header_bytes + 4 {
        packet.be32(L3 + header_bytes)?
    } else {
        0
    };
    let flow = Flow { src: [u64::from(src) << 32, 0], dst: [u64::from(dst) << 32, 0], protocol, ports };
    Some(Ok(Parsed { family: 4, flow, ttl: packet.u8(L3 + 8)?, ip_bytes: packet.length() - L3 }))
}

/// Whether no router may forward from or to this address: "this network", loopback, link-local, multicast and the limited
/// broadcast (RFC 1812 section 5.3.7, RFC 3927 section 7, RFC 6890).
#[inline(always)]
const fn stays_v4(address: u32) -> bool {
    address >> 24 == 0 || address >> 24 == 127 || address >> 16 == 0xa9fe || address >> 28 == 0xe || address == u32::MAX
}

/// The same for IPv6: multicast ff00::/8, link-local fe80::/10, unspecified and loopback (::/127), and IPv4-mapped
/// ::ffff:0:0/96 (RFC 4291 section 2.5, RFC 6890).
#[inline(always)]
const fn stays_v6(address: [u64; 2]) -> bool {
    address[0] >> 56 == 0xff
        || address[0] >> 54 == 0x3fa
        || (address[0] == 0 && (address[1] <= 1 || address[1] >> 32 == 0xffff))
}

/// RFC 8200. `None`: malformed.
#[inline(always)]
fn parse_v6<P: Packet + ?Sized>(packet: &P) -> Option<Result<Parsed, Reason>> {
    const L3: u32 = ETHERNET_BYTES;
    const HEADER_BYTES: u32 = 40;
    let ip_bytes = HEADER_BYTES + u32::from(packet.be16(L3 + 4)?);
    if packet.u8(L3)? >> 4 != 6 || packet.length() < L3 + ip_bytes {
        return None;
    }
    let src = [be64(packet, L3 + 8)?, be64(packet, L3 + 16)?];
    let dst = [be64(packet, L3 + 24)?, be64(packet, L3 + 32)?];
    if stays_v6(src) || stays_v6(dst) {
        return Some(Err(Reason::NotForwardable));
    }
    let ttl = packet.u8(L3 + 7)?;
    let mut next = packet.u8(L3 + 6)?;
    if next == HOP_BY_HOP {
        // Every router must look at these options (router alert): that is the kernel's work.
        return Some(Err(Reason::HopByHop));
    }
    let mut at = L3 + HEADER_BYTES;
    let end = L3 + ip_bytes;
    for _ in 0..EXTENSION_HEADERS_MAX {
        match next {
            ROUTING | DESTINATION_OPTIONS | AUTHENTICATION => {
                // Next header and length, the first two bytes of each of these headers.
                let head = packet.be16(at)?;
                let length = u32::from(head & 0xff);
                // RFC 4302 counts the authentication header in 4-byte units minus 2, the others count 8-byte units minus 1.
                let bytes = if next == AUTHENTICATION { (length + 2) * 4 } else { (length + 1) * 8 };
                next = (head >> 8) as u8;
                at += bytes;
                if at > end {
                    return None;
                }
            }
            FRAGMENT => {
                if at + FRAGMENT_BYTES > end {
                    return None;
                }
                next = (packet.be16(at)? >> 8) as u8;
                // No fragment shows ports, the first one neither.
                at = end;
                break;
            }
            _ => break,
        }
    }
    let ports = if has_ports(next) && at + 4 <= end { packet.be32(at)? } else { 0 };
    Some(Ok(Parsed { family: 6, flow: Flow { src, dst, protocol: next, ports }, ttl, ip_bytes: packet.length() - L3 }))
}

#[inline(always)]
fn be64<P: Packet + ?Sized>(packet: &P, at: u32) -> Option<u64> {
    Some(u64::from(packet.be32(at)?) << 32 | u64::from(packet.be32(at + 4)?))
}

#[inline(always)]
const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | DCCP | SCTP | UDP_LITE)
}

/// Makes the frame leave by `neighbour`: new MAC addresses, TTL or hop limit one lower, IPv4 checksum to match.
///
/// The caller has parsed the packet and knows its TTL to be at least 2.
#[inline(always)]
pub fn forward<P: PacketMut + ?Sized>(packet: &mut P, family: u8, neighbour: &Neighbour) -> Option<()> {
    const L3: u32 = ETHERNET_BYTES;
    if family == 4 {
        let ttl = packet.u8(L3 + 8)?;
        let checksum = u32::from(packet.be16(L3 + 10)?);
        // RFC 1141: the TTL is the high byte of its word, so one less adds 0x0100 to the one's-complement checksum.
        let sum = checksum + 0x0100;
        packet.set_be16(L3 + 10, (sum + u32::from(sum >= 0xffff)) as u16)?;
        packet.set_u8(L3 + 8, ttl.wrapping_sub(1))?;
    } else {
        let limit = packet.u8(L3 + 7)?;
        packet.set_u8(L3 + 7, limit.wrapping_sub(1))?;
    }
    packet.set_mac(0, neighbour.destination)?;
    packet.set_mac(6, neighbour.source)
}
