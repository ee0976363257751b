//! A packet in words, and the frame that it means.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fib::packet::{ETHERNET_BYTES, Tags};
use serde_json::Value;

const TTL_DEFAULT: u8 = 64;
/// Protocol numbers of the IANA registry.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Header bytes of IPv4 without options (RFC 791) and of IPv6 (RFC 8200).
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const KEYS: [&str; 8] = ["src", "dst", "protocol", "sport", "dport", "ttl", "length", "about"];
/// The MTU that an error about a packet says: no link of IPv6 has a smaller one (RFC 8200 section 5).
const ERROR_MTU: u16 = 1280;

/// Why a description is not a packet.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    #[error("a packet is one JSON object a line, as in {{\"src\": \"198.18.0.1\", \"dst\": \"10.20.3.4\"}}")]
    Json(#[source] serde_json::Error),
    #[error("a packet is a JSON object")]
    NotAnObject,
    #[error("a packet has no `{key}`; its keys are src, dst, protocol, sport, dport, ttl, length and about")]
    UnknownKey { key: String },
    #[error("the packet needs `{key}`")]
    Missing { key: &'static str },
    #[error("`{key}` must be an IP address, not {value}")]
    Address { key: &'static str, value: String },
    #[error("`{key}` must be a number from 0 to {max}, not {value}")]
    Number { key: &'static str, value: String, max: u64 },
    #[error("`protocol` must be tcp, udp, icmp or a number from 0 to 255, not {0}")]
    Protocol(String),
    #[error("src {src} and dst {dst} are of different families")]
    Families { src: IpAddr, dst: IpAddr },
    #[error("a packet of protocol {0} has no ports")]
    NoPorts(u8),
    #[error(
        "`about` is written as in `tcp 198.51.100.10:443 198.18.0.1:40000`: tcp or udp, source, destination; not `{0}`"
    )]
    About(String),
    #[error("only an ICMP error is about another packet: leave `protocol` out, and ports")]
    AboutProtocol,
    #[error("an error about a packet from {src} is sent to {src}, not to {dst}")]
    AboutSource { src: IpAddr, dst: IpAddr },
    #[error("`length` is {length}, its headers alone need {needed} bytes; the most is {max}")]
    Length { length: u32, needed: usize, max: u32 },
}

/// One packet; checked, so that it always has a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketDescription {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    sport: u16,
    dport: u16,
    ttl: u8,
    /// From the IP header to the packet's end.
    ip_bytes: usize,
    /// What an ICMP error quotes.
    about: Option<About>,
}

/// The packet that an ICMP error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct About {
    protocol: u8,
    src: SocketAddr,
    dst: SocketAddr,
}

impl About {
    fn read(text: &str) -> Result<Self, PacketError> {
        let malformed = || PacketError::About(text.to_owned());
        let words: Vec<&str> = text.split_whitespace().collect();
        let &[protocol, src, dst] = words.as_slice() else { return Err(malformed()) };
        let protocol = match protocol {
            "tcp" => TCP,
            "udp" => UDP,
            _ => return Err(malformed()),
        };
        let socket = |text: &str| text.parse::<SocketAddr>().map_err(|_| malformed());
        let (src, dst) = (socket(src)?, socket(dst)?);
        if src.is_ipv4() == dst.is_ipv4() { Ok(Self { protocol, src, dst }) } else { Err(malformed()) }
    }

    /// The packet itself, without payload.
    fn packet(&self) -> PacketDescription {
        let Self { protocol, src, dst } = *self;
        let header_bytes = if src.is_ipv4() { IPV4_BYTES } else { IPV6_BYTES };
        PacketDescription {
            src: src.ip(),
            dst: dst.ip(),
            protocol,
            sport: src.port(),
            dport: dst.port(),
            ttl: TTL_DEFAULT,
            ip_bytes: header_bytes + transport_bytes(protocol),
            about: None,
        }
    }
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.protocol == TCP { "tcp" } else { "udp" };
        write!(f, "{name} {} → {}", self.src, self.dst)
    }
}

/// The fields of a description as somebody writes them; what is not written has a default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fields<'t> {
    pub src: Option<IpAddr>,
    pub dst: Option<IpAddr>,
    /// `tcp`, `udp`, `icmp` or a number; tcp by default.
    pub protocol: Option<&'t str>,
    pub sport: Option<u16>,
    pub dport: Option<u16>,
    /// 64 by default.
    pub ttl: Option<u8>,
    /// Bytes of the IP packet; just its headers by default.
    pub length: Option<u32>,
    /// The packet is an ICMP error that quotes this one: `tcp 198.51.100.10:443 198.18.0.1:40000`.
    pub about: Option<&'t str>,
}

impl PacketDescription {
    pub fn new(fields: &Fields) -> Result<Self, PacketError> {
        let src = fields.src.ok_or(PacketError::Missing { key: "src" })?;
        let dst = fields.dst.ok_or(PacketError::Missing { key: "dst" })?;
        if src.is_ipv4() != dst.is_ipv4() {
            return Err(PacketError::Families { src, dst });
        }
        let about = fields.about.map(About::read).transpose()?;
        let protocol = match fields.protocol {
            None if about.is_some() && src.is_ipv4() => ICMP,
            None if about.is_some() => ICMPV6,
            None | Some("tcp") => TCP,
            Some("udp") => UDP,
            Some("icmp") if src.is_ipv4() => ICMP,
            Some("icmp") => ICMPV6,
            Some(text) => text.parse().map_err(|_| PacketError::Protocol(format!("`{text}`")))?,
        };
        let (sport, dport) = (fields.sport.unwrap_or(0), fields.dport.unwrap_or(0));
        // DCCP, SCTP and UDP-Lite begin with the same two ports.
        if (sport, dport) != (0, 0) && !matches!(protocol, TCP | UDP | 33 | 132 | 136) {
            return Err(PacketError::NoPorts(protocol));
        }
        if let Some(about) = about {
            if protocol != if src.is_ipv4() { ICMP } else { ICMPV6 } {
                return Err(PacketError::AboutProtocol);
            }
            if about.src.ip() != dst {
                return Err(PacketError::AboutSource { src: about.src.ip(), dst });
            }
        }
        let (header_bytes, max) = if src.is_ipv4() { (IPV4_BYTES, 65_535) } else { (IPV6_BYTES, 65_575) };
        let quoted_bytes = about.map_or(0, |about| about.packet().ip_bytes);
        let needed = header_bytes + transport_bytes(protocol) + quoted_bytes;
        let ip_bytes = match fields.length {
            None => needed,
            Some(length) => match usize::try_from(length) {
                Ok(bytes) if bytes >= needed && length <= max => bytes,
                _ => return Err(PacketError::Length { length, needed, max }),
            },
        };
        Ok(Self { src, dst, protocol, sport, dport, ttl: fields.ttl.unwrap_or(TTL_DEFAULT), ip_bytes, about })
    }

    /// Reads one JSON object; keys as in [`Fields`].
    pub fn from_json(line: &str) -> Result<Self, PacketError> {
        let value: Value = serde_json::from_str(line).map_err(PacketError::Json)?;
        let object = value.as_object().ok_or(PacketError::NotAnObject)?;
        if let Some(key) = object.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(PacketError::UnknownKey { key: key.clone() });
        }
        let get = |key: &str| object.get(key).filter(|value| !value.is_null());
        let address = |key: &'static str| match get(key) {
            None => Ok(None),
            Some(value) => match value.as_str().and_then(|text| text.parse().ok()) {
                Some(address) => Ok(Some(address)),
                None => Err(PacketError::Address { key, value: value.to_string() }),
            },
        };
        let about = match get("about") {
            None => None,
            Some(value) => Some(value.as_str().ok_or_else(|| PacketError::About(value.to_string()))?),
        };
        let protocol = match get("protocol") {
            None => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            Some(other) => return Err(PacketError::Protocol(other.to_string())),
        };
        Self::new(&Fields {
            src: address("src")?,
            dst: address("dst")?,
            protocol: protocol.as_deref(),
            sport: number("sport", get("sport"), u16::MAX.into())?,
            dport: number("dport", get("dport"), u16::MAX.into())?,
            ttl: number("ttl", get("ttl"), u8::MAX.into())?,
            length: number("length", get("length"), u32::MAX.into())?,
            about,
        })
    }

    pub fn dst(&self) -> IpAddr {
        self.dst
    }

    /// The Ethernet frame with these VLAN tags: locally administered MAC addresses, valid IP header, zero payload; the
    /// transport checksum is left 0, since nothing on a router's way reads it.
    pub fn frame(&self, tags: Tags) -> Vec<u8> {
        let mut frame = self.untagged();
        let tags = [tags.outer, tags.inner].into_iter().filter(|tag| *tag != 0);
        // Between the addresses and the ethertype.
        frame.splice(12..12, tags.flat_map(u32::to_be_bytes));
        frame
    }

    fn untagged(&self) -> Vec<u8> {
        let mut frame = Vec::with_capacity(ETHERNET_BYTES as usize + self.ip_bytes);
        frame.extend_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.write_v4(&mut frame, src, dst),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.write_v6(&mut frame, src, dst),
            // `new` refuses mixed families; an empty payload is malformed, not wrong.
            _ => return frame,
        }
        let transport = frame.len();
        frame.resize(ETHERNET_BYTES as usize + self.ip_bytes, 0);
        let [mtu_high, mtu_low] = ERROR_MTU.to_be_bytes();
        let fields: &[(usize, u8)] = match self.protocol {
            // Data offset 5 words and SYN, RFC 9293.
            TCP => &[(12, 0x50), (13, 0x02)],
            // Fragmentation needed and packet too big; echo request: RFC 792 and RFC 4443.
            ICMP if self.about.is_some() => &[(0, 3), (1, 4), (6, mtu_high), (7, mtu_low)],
            ICMPV6 if self.about.is_some() => &[(0, 2), (6, mtu_high), (7, mtu_low)],
            ICMP => &[(0, 8)],
            ICMPV6 => &[(0, 128)],
            _ => &[],
        };
        for &(at, byte) in fields {
            frame[transport + at] = byte;
        }
        if (self.sport, self.dport) != (0, 0) {
            frame[transport..transport + 2].copy_from_slice(&self.sport.to_be_bytes());
            frame[transport + 2..transport + 4].copy_from_slice(&self.dport.to_be_bytes());
        }
        if let Some(about) = self.about {
            let quoted = about.packet().untagged();
            let (_, packet) = quoted.split_at(ETHERNET_BYTES as usize);
            let at = transport + transport_bytes(self.protocol);
            frame[at..at + packet.len()].copy_from_slice(packet);
        }
        if self.protocol == UDP {
            let header = if self.src.is_ipv4() { IPV4_BYTES } else { IPV6_BYTES };
            frame[transport + 4..transport + 6].copy_from_slice(&low16(self.ip_bytes - header).to_be_bytes());
        }
        frame
    }

    fn write_v4(&self, frame: &mut Vec<u8>, src: Ipv4Addr, dst: Ipv4Addr) {
        frame.extend_from_slice(&[0x08, 0x00]);
        let mut header = [0; IPV4_BYTES];
        header[0] = 0x45;
        header[2..4].copy_from_slice(&low16(self.ip_bytes).to_be_bytes());
        header[8] = self.ttl;
        header[9] = self.protocol;
        header[12..16].copy_from_slice(&src.octets());
        header[16..].copy_from_slice(&dst.octets());
        let sum: u32 = header.chunks_exact(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        header[10..12].copy_from_slice(&(!low16(sum as usize)).to_be_bytes());
        frame.extend_from_slice(&header);
    }

    fn write_v6(&self, frame: &mut Vec<u8>, src: Ipv6Addr, dst: Ipv6Addr) {
        frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend_from_slice(&low16(self.ip_bytes - IPV6_BYTES).to_be_bytes());
        frame.extend_from_slice(&[self.protocol, self.ttl]);
        frame.extend_from_slice(&src.octets());
        frame.extend_from_slice(&dst.octets());
    }
}

impl fmt::Display for PacketDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { src, dst, protocol, sport, dport, ttl, ip_bytes, about } = self;
        if let Some(about) = about {
            return write!(f, "{src} → {dst}, icmp error about {about}, ttl {ttl}, {ip_bytes} bytes");
        }
        match *protocol {
            TCP | UDP => {
                let name = if *protocol == TCP { "tcp" } else { "udp" };
                write!(f, "{src} → {dst}, {name} {sport} → {dport}, ttl {ttl}, {ip_bytes} bytes")
            }
            ICMP | ICMPV6 => write!(f, "{src} → {dst}, icmp, ttl {ttl}, {ip_bytes} bytes"),
            other => write!(f, "{src} → {dst}, protocol {other}, ttl {ttl}, {ip_bytes} bytes"),
        }
    }
}

fn transport_bytes(protocol: u8) -> usize {
    match protocol {
        TCP => 20,
        UDP | ICMP | ICMPV6 | 136 => 8,
        // The common header of SCTP (RFC 9260) and the short one of DCCP (RFC 4340).
        33 | 132 => 12,
        _ => 0,
    }
}

fn number<N: TryFrom<u64>>(key: &'static str, value: Option<&Value>, max: u64) -> Result<Option<N>, PacketError> {
    match value {
        None => Ok(None),
        Some(value) => match value.as_u64().and_then(|number| number.try_into().ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(PacketError::Number { key, value: value.to_string(), max }),
        },
    }
}

#[expect(clippy::cast_possible_truncation, reason = "lengths are checked to fit 16 bits in `new`, sums are folded")]
fn low16(number: usize) -> u16 {
    number as u16
}
