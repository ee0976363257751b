//! Reads frames that a test received.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Mac;
use crate::packet::{
    EXT_DESTINATION, EXT_FRAGMENT, EXT_HOP_BY_HOP, EXT_ROUTING, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP,
    internet_checksum, pseudo_v4, pseudo_v6, transport_checksum,
};

/// What a received IP frame says; made by [`Seen::parse`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub source_mac: Mac,
    pub destination_mac: Mac,
    /// The tags, outermost first.
    pub vlans: Vec<u16>,
    pub source: IpAddr,
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    pub traffic_class: u8,
    /// The protocol behind all extension headers.
    pub protocol: u8,
    /// Of UDP and TCP, zero otherwise and in fragments after the first.
    pub source_port: u16,
    pub destination_port: u16,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
    pub fragment: bool,
    /// What follows the transport header.
    pub payload: Vec<u8>,
    /// Header and transport checksums are right; a fragment's transport checksum is not looked at.
    pub checksums_hold: bool,
}

impl Seen {
    /// Reads an IPv4 or IPv6 frame; `None` for anything else and for truncated frames.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let destination_mac = Mac(frame.get(..6)?.try_into().ok()?);
        let source_mac = Mac(frame.get(6..12)?.try_into().ok()?);
        let mut vlans = Vec::new();
        let mut at = 12;
        let mut ether_type = u16_at(frame, at)?;
        while matches!(ether_type, 0x8100 | 0x88a8) {
            vlans.push(u16_at(frame, at + 2)?);
            at += 4;
            ether_type = u16_at(frame, at)?;
        }
        let network = match ether_type {
            0x0800 => Layer3::parse_v4(frame.get(at + 2..)?)?,
            0x86dd => Layer3::parse_v6(frame.get(at + 2..)?)?,
            _ => return None,
        };
        let segment = network.segment;
        let header_bytes = match network.protocol {
            _ if network.later_fragment => 0,
            IPPROTO_UDP | IPPROTO_ICMP | IPPROTO_ICMPV6 => 8,
            IPPROTO_TCP => usize::from(segment.get(12)? >> 4) * 4,
            _ => 0,
        };
        let has_ports = header_bytes > 0 && matches!(network.protocol, IPPROTO_UDP | IPPROTO_TCP);
        let has_icmp = header_bytes > 0 && matches!(network.protocol, IPPROTO_ICMP | IPPROTO_ICMPV6);
        Some(Self {
            source_mac,
            destination_mac,
            vlans,
            source: network.source,
            destination: network.destination,
            ttl: network.ttl,
            traffic_class: network.traffic_class,
            protocol: network.protocol,
            source_port: if has_ports { u16_at(segment, 0)? } else { 0 },
            destination_port: if has_ports { u16_at(segment, 2)? } else { 0 },
            icmp: if has_icmp { Some((*segment.first()?, *segment.get(1)?)) } else { None },
            fragment: network.fragment,
            payload: segment.get(header_bytes..)?.to_vec(),
            checksums_hold: network.header_holds && (network.fragment || network.transport_holds()),
        })
    }
}

struct Layer3<'a> {
    source: IpAddr,
    destination: IpAddr,
    ttl: u8,
    traffic_class: u8,
    protocol: u8,
    fragment: bool,
    later_fragment: bool,
    header_holds: bool,
    segment: &'a [u8],
}

impl<'a> Layer3<'a> {
    fn parse_v4(packet: &'a [u8]) -> Option<Self> {
        let header_bytes = usize::from(packet.first()? & 0xf) * 4;
        let header = packet.get(..header_bytes.max(20))?;
        // The total length, as short frames carry padding behind it.
        let segment = packet.get(header_bytes..usize::from(u16_at(packet, 2)?))?;
        let fragment = u16_at(packet, 6)?;
        let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?).into());
        Some(Self {
            source: address(12)?,
            destination: address(16)?,
            ttl: header[8],
            traffic_class: header[1],
            protocol: header[9],
            fragment: fragment & 0x3fff != 0,
            later_fragment: fragment & 0x1fff != 0,
            header_holds: internet_checksum(&[header]) == 0,
            segment,
        })
    }

    fn parse_v6(packet: &'a [u8]) -> Option<Self> {
        let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?).into());
        let [_, traffic_class, _, _] = (u32::from(u16_at(packet, 0)?) << 12).to_be_bytes();
        let mut segment = packet.get(40..40 + usize::from(u16_at(packet, 4)?))?;
        let mut protocol = *packet.get(6)?;
        let (mut fragment, mut later_fragment) = (false, false);
        loop {
            let header_bytes = match protocol {
                EXT_HOP_BY_HOP | EXT_ROUTING | EXT_DESTINATION => (usize::from(*segment.get(1)?) + 1) * 8,
                EXT_FRAGMENT => {
                    fragment = true;
                    later_fragment = u16_at(segment, 2)? & !7 != 0;
                    8
                }
                _ => break,
            };
            protocol = *segment.first()?;
            segment = segment.get(header_bytes..)?;
            if later_fragment {
                break;
            }
        }
        Some(Self {
            source: address(8)?,
            destination: address(24)?,
            ttl: *packet.get(7)?,
            traffic_class,
            protocol,
            fragment,
            later_fragment,
            header_holds: true,
            segment,
        })
    }

    fn transport_holds(&self) -> bool {
        let addresses = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => pseudo_v4(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => pseudo_v6(source, destination),
            _ => return false,
        };
        match self.protocol {
            IPPROTO_ICMP => internet_checksum(&[self.segment]) == 0,
            // "None" is allowed over IPv4 only.
            IPPROTO_UDP if u16_at(self.segment, 6) == Some(0) => self.source.is_ipv4(),
            IPPROTO_UDP | IPPROTO_TCP | IPPROTO_ICMPV6 => {
                transport_checksum(&addresses, self.protocol, self.segment) == 0
            }
            _ => true,
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{Extension, Packet, tcp_flags};

    fn v4() -> Packet {
        Packet::v4(Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 7))
    }

    fn v6() -> Packet {
        Packet::v6("fd77::2".parse().unwrap(), "2001:db8:100::7".parse().unwrap())
    }

    /// Bytes checked by hand and with an independent implementation (the kernel accepts the same form in `lab.rs`).
    #[test]
    fn known_header_has_the_known_checksum() {
        // The worked example of RFC 1071's usual header: 45 00 00 73 00 00 40 00 40 11 → b8 61.
        let header = [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(internet_checksum(&[&header]), 0xb861);
    }

    #[test]
    fn what_is_built_is_read_back() {
        let cases = [
            v4().udp(1, 2).payload(b"odd"),
            v4().udp_without_checksum(1, 2),
            v4().ipv4_options(&[1, 1, 1]).tcp(1, 2, tcp_flags::SYN),
            v4().vlan(5).vlan(6).udp(1, 2),
            v6().udp(1, 2).payload(b"abcd"),
            v6().extension(Extension::HopByHop(vec![5, 2, 0, 0])).tcp(1, 2, tcp_flags::ACK),
            v6().extension(Extension::DestinationOptions(vec![])).extension(Extension::Routing(vec![4, 0])).udp(1, 2),
        ];
        for packet in cases {
            let seen = Seen::parse(&packet.frame()).unwrap();
            assert!(seen.checksums_hold, "{packet:?}");
            assert_eq!((seen.source_port, seen.destination_port), (1, 2), "{packet:?}");
        }
    }

    #[test]
    fn any_changed_byte_breaks_a_checksum() {
        let frame = v4().udp(1000, 2000).payload(b"payload!").frame();
        // From the IPv4 header on; the MACs are not covered.
        for at in 14..frame.len() {
            let mut changed = frame.clone();
            changed[at] ^= 0x10;
            assert!(!Seen::parse(&changed).is_some_and(|seen| seen.checksums_hold), "byte {at}");
        }
    }

    #[test]
    fn later_fragments_have_no_ports() {
        for packet in [v4().fragment(8, false, 9).payload(b"rest"), v6().fragment(8, false, 9).payload(b"rest")] {
            let seen = Seen::parse(&packet.frame()).unwrap();
            assert!(seen.fragment && seen.source_port == 0 && seen.payload == b"rest", "{seen:?}");
        }
    }

    #[test]
    fn traffic_class_and_ttl_are_read() {
        for packet in [v4(), v6()] {
            let seen = Seen::parse(&packet.traffic_class(0xb8).ttl(3).frame()).unwrap();
            assert_eq!((seen.traffic_class, seen.ttl), (0xb8, 3));
        }
    }
}
