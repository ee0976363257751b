//! The headers of a frame, read slowly: slices and standard library types, apart from the product's parser.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fib::Reason;

/// What a router has to know of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Headers {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) ttl: u8,
    /// The transport protocol, or the last header that was looked at.
    pub(super) protocol: u8,
    /// Source and destination port; zeros where the packet shows none.
    pub(super) ports: [u16; 2],
    /// Everything behind the Ethernet header and its tags.
    pub(super) ip_bytes: usize,
}

/// What stands before the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkHeader {
    /// VLAN identifiers, outer and inner; 0 where there is no tag or a priority tag.
    pub(super) vids: [u16; 2],
    /// Where the packet begins.
    pub(super) bytes: usize,
    ethertype: u16,
}

/// IPv6 extension headers in a row that a router follows.
const EXTENSIONS: usize = 6;

/// Reads the addresses, the tags and the type of a frame, or says why its packet is not to be routed.
pub(super) fn link(frame: &[u8]) -> Result<LinkHeader, Reason> {
    let (addresses, mut rest) = frame.split_at_checked(12).ok_or(Reason::Malformed)?;
    let is_group = addresses[0] % 2 == 1;
    let mut vids = Vec::new();
    loop {
        let ethertype = word(rest.get(..2).ok_or(Reason::Malformed)?);
        if is_group {
            return Err(Reason::LinkNotOurs);
        }
        if !matches!(ethertype, 0x8100 | 0x88a8) {
            vids.resize(2, 0);
            return Ok(LinkHeader { vids: [vids[0], vids[1]], bytes: frame.len() - rest.len() + 2, ethertype });
        }
        if vids.len() == 2 {
            return Err(Reason::Vlan);
        }
        vids.push(word(rest.get(2..4).ok_or(Reason::Malformed)?) % 4096);
        rest = &rest[4..];
    }
}

/// Reads the packet behind the link header, or says why it is not to be routed.
pub(super) fn headers(frame: &[u8], link: &LinkHeader) -> Result<Headers, Reason> {
    let packet = &frame[link.bytes..];
    match link.ethertype {
        0x0800 => ipv4(packet),
        0x86dd => ipv6(packet),
        _ => Err(Reason::NotIp),
    }
}

fn ipv4(all: &[u8]) -> Result<Headers, Reason> {
    let fixed = all.get(..20).ok_or(Reason::Malformed)?;
    let header_bytes = usize::from(fixed[0] % 16) * 4;
    let packet = all.get(..usize::from(word(&fixed[2..]))).ok_or(Reason::Malformed)?;
    if fixed[0] / 16 != 4 || header_bytes < 20 || packet.len() < header_bytes {
        return Err(Reason::Malformed);
    }
    let address = |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]);
    let stays = |a: Ipv4Addr| {
        a.octets()[0] == 0 || a.is_loopback() || a.is_link_local() || a.is_multicast() || a.is_broadcast()
    };
    let (src, dst) = (address(12), address(16));
    if stays(src) || stays(dst) {
        return Err(Reason::NotForwardable);
    }
    let is_fragment = word(&fixed[6..]) & 0x3fff != 0;
    let protocol = fixed[9];
    let transport = if is_fragment { &[][..] } else { &packet[header_bytes..] };
    let ports = ports(protocol, transport);
    Ok(Headers { src: src.into(), dst: dst.into(), ttl: fixed[8], protocol, ports, ip_bytes: all.len() })
}

fn ipv6(all: &[u8]) -> Result<Headers, Reason> {
    let fixed = all.get(..40).ok_or(Reason::Malformed)?;
    let mut rest = all[40..].get(..usize::from(word(&fixed[4..]))).ok_or(Reason::Malformed)?;
    if fixed[0] / 16 != 6 {
        return Err(Reason::Malformed);
    }
    let address = |at: usize| Ipv6Addr::from_segments(std::array::from_fn(|i| word(&fixed[at + 2 * i..])));
    let stays = |a: Ipv6Addr| {
        let local = a.is_unspecified() || a.is_loopback() || a.is_unicast_link_local();
        local || a.is_multicast() || a.to_ipv4_mapped().is_some()
    };
    let (src, dst) = (address(8), address(24));
    if stays(src) || stays(dst) {
        return Err(Reason::NotForwardable);
    }
    let mut protocol = fixed[6];
    if protocol == 0 {
        return Err(Reason::HopByHop);
    }
    for _ in 0..EXTENSIONS {
        let unit = match protocol {
            43 | 60 => |length: usize| 8 + 8 * length,
            51 => |length: usize| 8 + 4 * length,
            44 => |_| 8,
            _ => break,
        };
        let is_fragment = protocol == 44;
        let &[next, length, ..] = rest else { return Err(Reason::Malformed) };
        rest = rest.get(unit(usize::from(length))..).ok_or(Reason::Malformed)?;
        protocol = next;
        if is_fragment {
            rest = &[];
            break;
        }
    }
    let ports = ports(protocol, rest);
    Ok(Headers { src: src.into(), dst: dst.into(), ttl: fixed[7], protocol, ports, ip_bytes: all.len() })
}

/// The ports of TCP, UDP, DCCP, SCTP and UDP-Lite, if the packet has them.
fn ports(protocol: u8, transport: &[u8]) -> [u16; 2] {
    match transport.first_chunk::<4>() {
        Some(first) if [6, 17, 33, 132, 136].contains(&protocol) => [word(first), word(&first[2..])],
        _ => [0, 0],
    }
}

/// An address as the image's lookup takes it: IPv4 in the high half of the first word.
pub(super) fn words(address: IpAddr) -> [u64; 2] {
    let mut octets = [0; 16];
    match address {
        IpAddr::V4(address) => octets[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => octets = address.octets(),
    }
    [0, 8].map(|at| octets[at..at + 8].iter().fold(0, |word, octet| word * 256 + u64::from(*octet)))
}

/// The first two bytes, network order.
fn word(bytes: &[u8]) -> u16 {
    u16::from(bytes[0]) * 256 + u16::from(bytes[1])
}
