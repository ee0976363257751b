//! Builds frames with right lengths and checksums.
//!
//! Written against the RFCs and apart from the product's own packet code, so that the two can disagree.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Mac;

/// TCP flag bits (RFC 9293, section 3.1).
pub mod tcp_flags {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
}

pub(crate) const IPPROTO_ICMP: u8 = 1;
pub(crate) const IPPROTO_TCP: u8 = 6;
pub(crate) const IPPROTO_UDP: u8 = 17;
pub(crate) const IPPROTO_ICMPV6: u8 = 58;
pub(crate) const EXT_HOP_BY_HOP: u8 = 0;
pub(crate) const EXT_ROUTING: u8 = 43;
pub(crate) const EXT_FRAGMENT: u8 = 44;
pub(crate) const EXT_DESTINATION: u8 = 60;

/// An IPv6 extension header (RFC 8200, section 4); contents are padded to the next multiple of eight bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extension {
    /// The options themselves.
    HopByHop(Vec<u8>),
    /// The options themselves.
    DestinationOptions(Vec<u8>),
    /// Everything after the length: routing type, segments left, data.
    Routing(Vec<u8>),
    /// `offset_bytes` must be a multiple of eight; after a header with an offset no transport header follows.
    Fragment { offset_bytes: u16, more: bool, identification: u32 },
}

#[derive(Clone, Debug)]
enum Network {
    V4 { source: Ipv4Addr, destination: Ipv4Addr, options: Vec<u8>, flags_and_offset: u16, identification: u16 },
    V6 { source: Ipv6Addr, destination: Ipv6Addr, extensions: Vec<Extension>, flow_label: u32 },
}

#[derive(Clone, Debug)]
enum Transport {
    Udp { source: u16, destination: u16, with_checksum: bool },
    Tcp { source: u16, destination: u16, flags: u8, sequence: u32 },
    Icmp { kind: u8, code: u8, rest: [u8; 4] },
    Raw { protocol: u8 },
}

/// A frame in the making: `Packet::v4(src, dst).macs(a, b).udp(1000, 53).payload(b"x").frame()`.
///
/// Starts as UDP from port 40000 to port 9, TTL 64, no payload, MACs zero. Lengths beyond 65,535 saturate.
#[derive(Clone, Debug)]
pub struct Packet {
    source_mac: Mac,
    destination_mac: Mac,
    vlans: Vec<(u16, u16)>,
    network: Network,
    hop_limit: u8,
    traffic_class: u8,
    transport: Transport,
    payload: Vec<u8>,
}

impl Packet {
    pub fn v4(source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        Self::over(Network::V4 { source, destination, options: Vec::new(), flags_and_offset: 0, identification: 0 })
    }

    pub fn v6(source: Ipv6Addr, destination: Ipv6Addr) -> Self {
        Self::over(Network::V6 { source, destination, extensions: Vec::new(), flow_label: 0 })
    }

    /// For tables of cases that hold both families; the two addresses must be of one family.
    pub fn between(source: IpAddr, destination: IpAddr) -> Self {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Self::v4(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Self::v6(source, destination),
            _ => panic!("{source} and {destination} are of different families"),
        }
    }

    fn over(network: Network) -> Self {
        Self {
            source_mac: Mac::default(),
            destination_mac: Mac::default(),
            vlans: Vec::new(),
            network,
            hop_limit: 64,
            traffic_class: 0,
            transport: Transport::Udp { source: 40_000, destination: 9, with_checksum: true },
            payload: Vec::new(),
        }
    }

    #[must_use]
    pub fn macs(mut self, source: Mac, destination: Mac) -> Self {
        (self.source_mac, self.destination_mac) = (source, destination);
        self
    }

    /// Adds an 802.1Q tag inside the tags already there.
    #[must_use]
    pub fn vlan(mut self, tag: u16) -> Self {
        self.vlans.push((0x8100, tag));
        self
    }

    /// Adds an 802.1ad service tag inside the tags already there.
    #[must_use]
    pub fn service_vlan(mut self, tag: u16) -> Self {
        self.vlans.push((0x88a8, tag));
        self
    }

    /// TTL or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.hop_limit = ttl;
        self
    }

    /// TOS byte or traffic class.
    #[must_use]
    pub fn traffic_class(mut self, class: u8) -> Self {
        self.traffic_class = class;
        self
    }

    /// IPv6 only.
    #[must_use]
    pub fn flow_label(mut self, label: u32) -> Self {
        if let Network::V6 { flow_label, .. } = &mut self.network {
            *flow_label = label & 0x000f_ffff;
        } else {
            panic!("an IPv4 packet has no flow label");
        }
        self
    }

    /// IPv4 only: at most 40 bytes, padded with "end of options".
    #[must_use]
    pub fn ipv4_options(mut self, bytes: &[u8]) -> Self {
        assert!(bytes.len() <= 40, "IPv4 options of {} bytes", bytes.len());
        if let Network::V4 { options, .. } = &mut self.network {
            *options = bytes.to_vec();
            options.resize(bytes.len().next_multiple_of(4), 0);
        } else {
            panic!("an IPv6 packet has extension headers, not IPv4 options");
        }
        self
    }

    /// IPv4 only.
    #[must_use]
    pub fn dont_fragment(mut self) -> Self {
        if let Network::V4 { flags_and_offset, .. } = &mut self.network {
            *flags_and_offset |= 0x4000;
        } else {
            panic!("an IPv6 packet has no don't-fragment flag");
        }
        self
    }

    /// Makes this one fragment of a datagram; after the first one no transport header is written, only the payload.
    ///
    /// `offset_bytes` must be a multiple of eight. A first fragment's checksum covers that fragment alone.
    #[must_use]
    pub fn fragment(mut self, offset_bytes: u16, more: bool, identification: u16) -> Self {
        match &mut self.network {
            Network::V4 { flags_and_offset, identification: id, .. } => {
                *flags_and_offset = (offset_bytes / 8) | if more { 0x2000 } else { 0 };
                *id = identification;
            }
            Network::V6 { extensions, .. } => {
                extensions.push(Extension::Fragment { offset_bytes, more, identification: identification.into() });
            }
        }
        self
    }

    /// IPv6 only: adds an extension header after those already there.
    #[must_use]
    pub fn extension(mut self, extension: Extension) -> Self {
        if let Network::V6 { extensions, .. } = &mut self.network {
            extensions.push(extension);
        } else {
            panic!("an IPv4 packet has no extension headers");
        }
        self
    }

    #[must_use]
    pub fn udp(mut self, source: u16, destination: u16) -> Self {
        self.transport = Transport::Udp { source, destination, with_checksum: true };
        self
    }

    /// UDP with checksum field zero, which IPv4 allows and means "none".
    #[must_use]
    pub fn udp_without_checksum(mut self, source: u16, destination: u16) -> Self {
        self.transport = Transport::Udp { source, destination, with_checksum: false };
        self
    }

    #[must_use]
    pub fn tcp(mut self, source: u16, destination: u16, flags: u8) -> Self {
        self.transport = Transport::Tcp { source, destination, flags, sequence: 1 };
        self
    }

    #[must_use]
    pub fn echo_request(self, identifier: u16, sequence: u16) -> Self {
        let kind = if matches!(self.network, Network::V4 { .. }) { 8 } else { 128 };
        let [a, b] = identifier.to_be_bytes();
        let [c, d] = sequence.to_be_bytes();
        self.icmp(kind, 0, [a, b, c, d])
    }

    /// `ICMP` or `ICMPv6`, as the addresses are.
    #[must_use]
    pub fn icmp(mut self, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        self.transport = Transport::Icmp { kind, code, rest };
        self
    }

    /// Any protocol number; the payload is all that follows the network header.
    #[must_use]
    pub fn protocol(mut self, protocol: u8) -> Self {
        self.transport = Transport::Raw { protocol };
        self
    }

    #[must_use]
    pub fn payload(mut self, bytes: &[u8]) -> Self {
        self.payload = bytes.to_vec();
        self
    }

    /// Fills up with zero payload until the frame has `bytes` bytes, without FCS; longer frames stay as they are.
    #[must_use]
    pub fn padded_to_frame(mut self, bytes: usize) -> Self {
        let missing = bytes.saturating_sub(self.frame().len());
        self.payload.resize(self.payload.len() + missing, 0);
        self
    }

    /// The frame's bytes, from the destination MAC on, without FCS.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = Vec::with_capacity(128 + self.payload.len());
        frame.extend(self.destination_mac.0);
        frame.extend(self.source_mac.0);
        for (protocol, tag) in &self.vlans {
            frame.extend(protocol.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        match &self.network {
            Network::V4 { source, destination, options, flags_and_offset, identification } => {
                let later = flags_and_offset & 0x1fff != 0;
                let (protocol, segment) = self.segment(&pseudo_v4(*source, *destination), true, later);
                frame.extend([0x08, 0x00]);
                let start = frame.len();
                frame.extend([0x40 | low_byte((20 + options.len()) / 4), self.traffic_class]);
                frame.extend(length(20 + options.len() + segment.len()).to_be_bytes());
                frame.extend(identification.to_be_bytes());
                frame.extend(flags_and_offset.to_be_bytes());
                frame.extend([self.hop_limit, protocol, 0, 0]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                frame.extend(options);
                let sum = internet_checksum(&[&frame[start..]]).to_be_bytes();
                frame[start + 10..start + 12].copy_from_slice(&sum);
                frame.extend(segment);
            }
            Network::V6 { source, destination, extensions, flow_label } => {
                let later =
                    extensions.iter().any(|header| matches!(header, Extension::Fragment { offset_bytes: 8.., .. }));
                let (protocol, segment) = self.segment(&pseudo_v6(*source, *destination), false, later);
                let (first, headers) = chain(extensions, protocol);
                frame.extend([0x86, 0xdd]);
                frame.extend((0x6000_0000 | u32::from(self.traffic_class) << 20 | flow_label).to_be_bytes());
                frame.extend(length(headers.len() + segment.len()).to_be_bytes());
                frame.extend([first, self.hop_limit]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                frame.extend(headers);
                frame.extend(segment);
            }
        }
        frame
    }

    /// Protocol number and bytes of transport header and payload.
    fn segment(&self, pseudo_header: &[u8], v4: bool, later_fragment: bool) -> (u8, Vec<u8>) {
        let protocol = match &self.transport {
            Transport::Udp { .. } => IPPROTO_UDP,
            Transport::Tcp { .. } => IPPROTO_TCP,
            Transport::Icmp { .. } => {
                if v4 {
                    IPPROTO_ICMP
                } else {
                    IPPROTO_ICMPV6
                }
            }
            Transport::Raw { protocol } => *protocol,
        };
        if later_fragment {
            return (protocol, self.payload.clone());
        }
        let mut bytes = Vec::with_capacity(20 + self.payload.len());
        let checksum_at = match &self.transport {
            Transport::Udp { source, destination, with_checksum } => {
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                bytes.extend(length(8 + self.payload.len()).to_be_bytes());
                bytes.extend([0, 0]);
                with_checksum.then_some(6)
            }
            Transport::Tcp { source, destination, flags, sequence } => {
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                bytes.extend(sequence.to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend([5 << 4, *flags, 0xff, 0xff, 0, 0, 0, 0]);
                Some(16)
            }
            Transport::Icmp { kind, code, rest } => {
                bytes.extend([*kind, *code, 0, 0]);
                bytes.extend(rest);
                Some(2)
            }
            Transport::Raw { .. } => None,
        };
        bytes.extend(&self.payload);
        if let Some(at) = checksum_at {
            // ICMP for IPv4 is the one checksum without pseudo-header.
            let sum = if protocol == IPPROTO_ICMP {
                internet_checksum(&[&bytes])
            } else {
                transport_checksum(pseudo_header, protocol, &bytes)
            };
            // A UDP checksum of zero would mean "none" (RFC 768).
            let sum = if protocol == IPPROTO_UDP && sum == 0 { 0xffff } else { sum };
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        (protocol, bytes)
    }
}

/// The number of the first header and the bytes of all extension headers before `protocol`.
fn chain(extensions: &[Extension], protocol: u8) -> (u8, Vec<u8>) {
    let number = |extension: &Extension| match extension {
        Extension::HopByHop(_) => EXT_HOP_BY_HOP,
        Extension::DestinationOptions(_) => EXT_DESTINATION,
        Extension::Routing(_) => EXT_ROUTING,
        Extension::Fragment { .. } => EXT_FRAGMENT,
    };
    let followers = extensions.iter().skip(1).map(number).chain([protocol]);
    let mut bytes = Vec::new();
    for (extension, next) in extensions.iter().zip(followers) {
        match extension {
            Extension::HopByHop(content) | Extension::DestinationOptions(content) | Extension::Routing(content) => {
                let total = (2 + content.len()).next_multiple_of(8);
                bytes.extend([next, low_byte(total / 8 - 1)]);
                bytes.extend(content);
                let padding = total - 2 - content.len();
                match (extension, padding) {
                    // Routing data has no options to pad with.
                    (Extension::Routing(_), _) | (_, 0 | 1) => bytes.resize(bytes.len() + padding, 0),
                    // PadN (RFC 8200, section 4.2): type 1, length, zeros.
                    _ => {
                        bytes.extend([1, low_byte(padding - 2)]);
                        bytes.resize(bytes.len() + padding - 2, 0);
                    }
                }
            }
            Extension::Fragment { offset_bytes, more, identification } => {
                bytes.extend([next, 0]);
                bytes.extend(((offset_bytes & !7) | u16::from(*more)).to_be_bytes());
                bytes.extend(identification.to_be_bytes());
            }
        }
    }
    (extensions.first().map_or(protocol, number), bytes)
}

pub(crate) fn pseudo_v4(source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    [source.octets(), destination.octets()].concat()
}

pub(crate) fn pseudo_v6(source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    [source.octets(), destination.octets()].concat()
}

/// Checksum over the addresses, the protocol, the length and the segment; zero when a received segment is intact.
pub(crate) fn transport_checksum(addresses: &[u8], protocol: u8, segment: &[u8]) -> u16 {
    let [a, b] = length(segment.len()).to_be_bytes();
    internet_checksum(&[addresses, &[0, protocol, a, b], segment])
}

/// RFC 1071; every part but the last must have an even length.
pub(crate) fn internet_checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).unwrap_or(u16::MAX)
}

fn low_byte(value: usize) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}
