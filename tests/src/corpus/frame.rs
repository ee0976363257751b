//! A frame from words: layers from the outside in, then changes to the finished bytes.
//!
//! Every length, type and checksum that a case does not write is right; every one that it writes stands in the frame as
//! written. Each byte keeps the name of its field, for the report of a difference.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};

use super::words::{SOURCE_V4, SOURCE_V6, Words, hex, number};
use crate::Mac;
use crate::packet::internet_checksum;

/// IEEE 802 numbers.
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_TAG: u16 = 0x8100;
const ETHERTYPE_SERVICE_TAG: u16 = 0x88a8;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_LLDP: u16 = 0x88cc;

/// IANA protocol numbers.
const ICMP: u8 = 1;
const IPV4: u8 = 4;
const TCP: u8 = 6;
const UDP: u8 = 17;
const IPV6: u8 = 41;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ESP: u8 = 50;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;
/// RFC 3692: for experiments. Stands before layers that have no number of their own.
const EXPERIMENT: u8 = 253;

/// A frame and the names of its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    pub bytes: Vec<u8>,
    /// (first byte, length, name), in order.
    fields: Vec<(usize, usize, String)>,
}

impl Frame {
    /// The frame that `layers` (separated by ` / `) and `changes` describe. `name` gives the MAC of a port or neighbour;
    /// `to` is what an `eth` without `dst` is sent to.
    pub(super) fn build(layers: &str, changes: &[&str], to: Mac, name: impl Fn(&str) -> Option<Mac>) -> Result<Self> {
        let texts: Vec<&str> = layers.split(" / ").collect();
        let read: Vec<(Layer, bool)> = texts.iter().map(|text| Layer::read(text, to, &name)).collect::<Result<_>>()?;
        let (layers, summed): (Vec<Layer>, Vec<bool>) = read.into_iter().unzip();
        let mut frame = Self::default();
        let mut sums = Vec::new();
        let mut addresses = 0..0;
        for (at, layer) in layers.iter().enumerate() {
            let (_, inside) = layers.split_at(at + 1);
            let start = frame.bytes.len();
            layer.write(&mut frame, inside).with_context(|| format!("`{}`", texts[at].trim()))?;
            addresses = layer.addresses(start).unwrap_or(addresses);
            if summed[at] {
                let place = layer.checksum().with_context(|| format!("`{}` has no checksum", texts[at].trim()))?;
                sums.push((start, place, addresses.clone()));
            }
        }
        // From the inside out: an error's checksum covers that of what it quotes.
        for (start, (offset, protocol), addresses) in sums.into_iter().rev() {
            frame.sum(start, offset, protocol, addresses)?;
        }
        for change in changes {
            frame.change(change).with_context(|| format!("`{change}`"))?;
        }
        Ok(frame)
    }

    /// Name of the field that byte `at` belongs to.
    pub(super) fn field(&self, at: usize) -> &str {
        self.fields.iter().rev().find(|(first, length, _)| (*first..first + length).contains(&at)).map_or("", |f| &f.2)
    }

    /// Where the field of this name begins, the first one of several.
    pub(super) fn at(&self, name: &str) -> Option<usize> {
        self.fields.iter().find(|field| field.2 == name).map(|field| field.0)
    }

    /// How many VLAN tags stand in it.
    pub(super) fn tags(&self) -> usize {
        self.fields.iter().filter(|field| field.2 == "vlan tag").count()
    }

    fn put(&mut self, name: &str, bytes: &[u8]) {
        self.fields.push((self.bytes.len(), bytes.len(), name.to_owned()));
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes the right checksum of the transport header at `start`, over everything behind it; ICMP has no pseudo header.
    fn sum(&mut self, start: usize, offset: usize, protocol: u8, addresses: Range<usize>) -> Result<()> {
        let at = start + offset;
        self.bytes[at..at + 2].fill(0);
        let length = u32::try_from(self.bytes.len() - start)?.to_be_bytes();
        let sum = if protocol == ICMP {
            internet_checksum(&[&self.bytes[start..]])
        } else {
            internet_checksum(&[&self.bytes[addresses], &length, &[0, protocol], &self.bytes[start..]])
        };
        let sum = if protocol == UDP && sum == 0 { 0xffff } else { sum };
        self.bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        Ok(())
    }

    fn change(&mut self, text: &str) -> Result<()> {
        let words: Vec<&str> = text.split_whitespace().collect();
        match words[..] {
            ["truncate", bytes] => {
                let bytes = number(bytes)?;
                ensure!(bytes < self.bytes.len(), "the frame has only {} bytes", self.bytes.len());
                self.bytes.truncate(bytes);
            }
            ["pad", bytes] => {
                let bytes: usize = number(bytes)?;
                ensure!(bytes > self.bytes.len(), "the frame has {} bytes already", self.bytes.len());
                self.put("padding", &vec![0; bytes - self.bytes.len()]);
            }
            // Of TCP or UDP, over the pseudo header, at its place.
            ["transport", "checksum"] => {
                let (at, offset, protocol) = match (self.at("tcp ports"), self.at("udp sport")) {
                    (Some(at), _) => (at, 16, 6),
                    (None, Some(at)) => (at, 6, 17),
                    _ => bail!("the frame has no transport header with a checksum"),
                };
                let addresses = match (self.at("ipv4 src"), self.at("ipv6 src")) {
                    (Some(src), _) => src..src + 8,
                    (None, Some(src)) => src..src + 32,
                    _ => bail!("the frame has no IP header"),
                };
                self.sum(at, offset, protocol, addresses)?;
            }
            ["set", "byte", at, value] => {
                let (at, length) = (number::<usize>(at)?, self.bytes.len());
                *self.bytes.get_mut(at).with_context(|| format!("the frame has only {length} bytes"))? = number(value)?;
            }
            _ => bail!("changes are `truncate BYTES`, `pad BYTES`, `transport checksum` and `set byte OFFSET VALUE`"),
        }
        Ok(())
    }
}

#[derive(Debug)]
enum Layer {
    Ethernet {
        dst: Mac,
        src: Mac,
        kind: Option<u16>,
    },
    Tag {
        ethertype: u16,
        control: u16,
        kind: Option<u16>,
    },
    Ipv4(Box<Ipv4>),
    Ipv6 {
        src: Ipv6Addr,
        dst: Ipv6Addr,
        hops: u8,
        word: u32,
        len: Option<u16>,
        next: Option<u8>,
    },
    Extension {
        protocol: u8,
        name: &'static str,
        next: Option<u8>,
        len: u8,
        body: Vec<u8>,
    },
    Udp {
        protocol: u8,
        ports: [u16; 2],
        len: Option<u16>,
        checksum: u16,
    },
    /// Whatever else: named bytes that depend on nothing.
    Bytes {
        ethertype: u16,
        protocol: u8,
        fields: Vec<(&'static str, Vec<u8>)>,
    },
    Gre {
        kind: Option<u16>,
    },
}

#[derive(Debug)]
struct Ipv4 {
    first: u8,
    tos: u8,
    len: Option<u16>,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: Option<u8>,
    checksum: Checksum,
    src: Ipv4Addr,
    dst: Ipv4Addr,
    options: Vec<u8>,
}

#[derive(Debug)]
enum Checksum {
    Right,
    /// Off by so much in one's complement.
    Wrong,
    Written(u16),
}

impl Layer {
    /// The layer, and whether its checksum is to be right.
    fn read(text: &str, to: Mac, name: &impl Fn(&str) -> Option<Mac>) -> Result<(Self, bool)> {
        let mut words = Words::of(text)?;
        let summed = words.flag("summed");
        let layer = Self::of(&mut words, to, name).with_context(|| format!("`{}`", text.trim()))?;
        words.finish()?;
        Ok((layer, summed))
    }

    /// Where the addresses are of an IP header that begins at `start`.
    fn addresses(&self, start: usize) -> Option<Range<usize>> {
        match self {
            Self::Ipv4(_) => Some(start + 12..start + 20),
            Self::Ipv6 { .. } => Some(start + 8..start + 40),
            _ => None,
        }
    }

    /// Where a transport header has its checksum, and which protocol it is.
    fn checksum(&self) -> Option<(usize, u8)> {
        match self.protocol() {
            protocol @ (ICMP | ICMPV6) => Some((2, protocol)),
            UDP => Some((6, UDP)),
            TCP => Some((16, TCP)),
            _ => None,
        }
    }

    fn of(words: &mut Words, to: Mac, name: &impl Fn(&str) -> Option<Mac>) -> Result<Self> {
        let bytes = |protocol, fields| Self::Bytes { ethertype: EXPERIMENTAL_ETHERTYPE, protocol, fields };
        Ok(match words.next("the layer's name")? {
            "eth" => {
                let mut mac = |key, default| match words.text(key) {
                    None => Ok(default),
                    Some(text) => name(text).map_or_else(|| text.parse(), Ok),
                };
                let (dst, src) = (mac("dst", to)?, mac("src", SOURCE_MAC)?);
                Self::Ethernet { dst, src, kind: words.number("type")? }
            }
            tag @ ("vlan" | "svlan") => {
                let id: u16 = number(words.next("the VLAN id")?)?;
                let priority: u16 = words.number("pcp")?.unwrap_or(0);
                ensure!(id < 4096 && priority < 8, "a VLAN id has 12 bits, a priority 3");
                Self::Tag {
                    ethertype: if tag == "vlan" { ETHERTYPE_TAG } else { ETHERTYPE_SERVICE_TAG },
                    control: priority << 13 | u16::from(words.flag("dei")) << 12 | id,
                    kind: words.number("type")?,
                }
            }
            "ipv4" => Self::Ipv4(Box::new(Ipv4::read(words)?)),
            "ipv6" => {
                let version: u32 = words.number("version")?.unwrap_or(6);
                let class: u32 = words.number("class")?.unwrap_or(0);
                let flow: u32 = words.number("flow")?.unwrap_or(0);
                ensure!(version < 16 && class < 256 && flow < 1 << 20, "version has 4 bits, class 8, flow 20");
                Self::Ipv6 {
                    src: words.address("src")?.unwrap_or(SOURCE_V6),
                    dst: words.address("dst")?.context("`dst` is missing")?,
                    hops: words.number("hop")?.unwrap_or(64),
                    word: version << 28 | class << 20 | flow,
                    len: words.number("len")?,
                    next: words.number("next")?,
                }
            }
            "hopopts" => Self::extension(words, 0, "hop-by-hop", 8, options)?,
            "dstopts" => Self::extension(words, DESTINATION_OPTIONS, "destination options", 8, options)?,
            "routing" => {
                let (kind, left) = (words.number("type")?.unwrap_or(0), words.number("left")?.unwrap_or(0));
                Self::extension(words, ROUTING, "routing", 24, |bytes| {
                    let mut body = vec![0; bytes];
                    body[..2].copy_from_slice(&[kind, left]);
                    body
                })?
            }
            "ah" => Self::extension(words, AUTHENTICATION, "authentication", 24, |bytes| vec![0x5a; bytes])?,
            "frag" => {
                let offset = fragment_offset(words)? << 3 | u16::from(words.flag("more"));
                let id: u32 = words.number("id")?.unwrap_or(7);
                let body = [&offset.to_be_bytes()[..], &id.to_be_bytes()].concat();
                Self::Extension { protocol: FRAGMENT, name: "fragment", next: words.number("next")?, len: 0, body }
            }
            "udp" => Self::udp(words, 17)?,
            "udplite" => Self::udp(words, 136)?,
            "tcp" => {
                let ports = ports(words)?;
                let flags = words.number("flags")?.unwrap_or(0x10);
                let (seq, ack) = (words.number("seq")?.unwrap_or(1_u32), words.number("ack")?.unwrap_or(0_u32));
                let window: u16 = words.number("window")?.unwrap_or(0xffff);
                let mut rest = [seq.to_be_bytes(), ack.to_be_bytes()].concat();
                rest.extend([0x50, flags]);
                rest.extend(window.to_be_bytes());
                rest.extend([0; 4]);
                bytes(6, vec![("tcp ports", ports), ("tcp header", rest)])
            }
            "sctp" => bytes(132, vec![("sctp ports", ports(words)?), ("sctp header", vec![0, 0, 0, 9, 0, 0, 0, 0])]),
            "dccp" => bytes(33, vec![("dccp ports", ports(words)?), ("dccp header", vec![3, 0, 0, 0, 0x10, 0, 0, 1])]),
            icmp @ ("icmp" | "icmpv6") => {
                let (protocol, echo) = if icmp == "icmp" { (ICMP, 8) } else { (ICMPV6, 128) };
                let kind: u8 = words.number("type")?.unwrap_or(echo);
                let code: u8 = words.number("code")?.unwrap_or(0);
                // The same four bytes: of an echo, of an error that says an MTU, of other errors.
                let is_echo = [0, 8, 128, 129].contains(&kind);
                let mtu: Option<u16> = words.number("mtu")?;
                let id: u16 = words.number("id")?.unwrap_or(u16::from(is_echo));
                let seq: u16 = words.number("seq")?.or(mtu).unwrap_or(u16::from(is_echo));
                let rest = [id.to_be_bytes(), seq.to_be_bytes()].concat();
                bytes(protocol, vec![("icmp type", vec![kind, code, 0, 0]), ("icmp id", rest)])
            }
            "esp" => bytes(ESP, vec![("esp header", vec![0, 0, 0x10, 1, 0, 0, 0, 1])]),
            "gre" => Self::Gre { kind: words.number("type")? },
            "arp" => {
                let op: u16 = words.number("op")?.unwrap_or(1);
                let sender: Ipv4Addr = words.address("sender")?.context("`sender` is missing")?;
                let target: Ipv4Addr = words.address("target")?.context("`target` is missing")?;
                let mut body = vec![0, 1, 8, 0, 6, 4];
                body.extend(op.to_be_bytes());
                body.extend(SOURCE_MAC.0);
                body.extend(sender.octets());
                body.extend([0; 6]);
                body.extend(target.octets());
                Self::Bytes { ethertype: ETHERTYPE_ARP, protocol: EXPERIMENT, fields: vec![("arp", body)] }
            }
            "lldp" => {
                // Chassis id and port id by MAC, time to live, end: IEEE 802.1AB.
                let body = hex("0207040200000000ee.0407030200000000ee.06020078.0000")?;
                Self::Bytes { ethertype: ETHERTYPE_LLDP, protocol: EXPERIMENT, fields: vec![("lldp", body)] }
            }
            "payload" => {
                let count: usize = number(words.next("the number of bytes")?)?;
                let counting = (0..count).map(|at| at.to_le_bytes()[0]).collect();
                bytes(EXPERIMENT, vec![("payload", counting)])
            }
            "hex" => bytes(EXPERIMENT, vec![("hex", hex(words.next("the bytes")?)?)]),
            other => bail!("there is no layer `{other}`"),
        })
    }

    /// An extension header; `body` makes all but its first two bytes. A `len` that is written does not change the bytes.
    fn extension(
        words: &mut Words,
        protocol: u8,
        name: &'static str,
        default: usize,
        body: impl Fn(usize) -> Vec<u8>,
    ) -> Result<Self> {
        let bytes: usize = words.number("bytes")?.unwrap_or(default);
        let unit = if protocol == AUTHENTICATION { 4 } else { 8 };
        ensure!(bytes >= 8 && bytes.is_multiple_of(unit), "{bytes} bytes are no {name} header");
        // RFC 8200 leaves out the first 8 bytes, RFC 4302 the first two words.
        let len = u8::try_from(bytes / unit - 8 / unit).context("the header is too long")?;
        let len = words.number("len")?.unwrap_or(len);
        Ok(Self::Extension { protocol, name, next: words.number("next")?, len, body: body(bytes - 2) })
    }

    fn udp(words: &mut Words, protocol: u8) -> Result<Self> {
        let (sport, dport) = (words.number("sport")?.unwrap_or(40_000), words.number("dport")?.unwrap_or(9));
        let checksum = words.number("checksum")?.unwrap_or(0);
        Ok(Self::Udp { protocol, ports: [sport, dport], len: words.number("len")?, checksum })
    }

    fn header_bytes(&self) -> usize {
        match self {
            Self::Ethernet { .. } => 14,
            Self::Tag { .. } | Self::Gre { .. } => 4,
            Self::Ipv4(header) => 20 + header.options.len(),
            Self::Ipv6 { .. } => 40,
            Self::Extension { body, .. } => 2 + body.len(),
            Self::Udp { .. } => 8,
            Self::Bytes { fields, .. } => fields.iter().map(|(_, bytes)| bytes.len()).sum(),
        }
    }

    fn ethertype(&self) -> u16 {
        match self {
            Self::Tag { ethertype, .. } | Self::Bytes { ethertype, .. } => *ethertype,
            Self::Ipv4(_) => ETHERTYPE_IPV4,
            Self::Ipv6 { .. } => ETHERTYPE_IPV6,
            _ => EXPERIMENTAL_ETHERTYPE,
        }
    }

    fn protocol(&self) -> u8 {
        match self {
            Self::Extension { protocol, .. } | Self::Udp { protocol, .. } | Self::Bytes { protocol, .. } => *protocol,
            Self::Ipv4(_) => IPV4,
            Self::Ipv6 { .. } => IPV6,
            Self::Gre { .. } => 47,
            Self::Ethernet { .. } | Self::Tag { .. } => EXPERIMENT,
        }
    }

    fn write(&self, frame: &mut Frame, inside: &[Self]) -> Result<()> {
        let rest: usize = inside.iter().map(Self::header_bytes).sum();
        let inner = inside.first();
        let kind_or =
            |kind: &Option<u16>| kind.unwrap_or_else(|| inner.map_or(EXPERIMENTAL_ETHERTYPE, Self::ethertype));
        let next_or = |next: &Option<u8>| next.unwrap_or_else(|| inner.map_or(EXPERIMENT, Self::protocol));
        let length = |bytes: usize| u16::try_from(bytes).context("the packet is longer than its length field can say");
        match self {
            Self::Ethernet { dst, src, kind } => {
                frame.put("eth dst", &dst.0);
                frame.put("eth src", &src.0);
                frame.put("eth type", &kind_or(kind).to_be_bytes());
            }
            Self::Tag { control, kind, .. } => {
                frame.put("vlan tag", &control.to_be_bytes());
                frame.put("vlan type", &kind_or(kind).to_be_bytes());
            }
            Self::Ipv4(header) => {
                let len = header.len.map_or_else(|| length(self.header_bytes() + rest), Ok)?;
                header.write(frame, len, next_or(&header.protocol));
            }
            Self::Ipv6 { src, dst, hops, word, len, next } => {
                frame.put("ipv6 version, class, flow", &word.to_be_bytes());
                frame.put("ipv6 len", &len.map_or_else(|| length(rest), Ok)?.to_be_bytes());
                frame.put("ipv6 next", &[next_or(next)]);
                frame.put("ipv6 hop", &[*hops]);
                frame.put("ipv6 src", &src.octets());
                frame.put("ipv6 dst", &dst.octets());
            }
            Self::Extension { name, next, len, body, .. } => {
                frame.put(&format!("{name} next"), &[next_or(next)]);
                frame.put(&format!("{name} len"), &[*len]);
                frame.put(name, body);
            }
            Self::Udp { ports: [sport, dport], len, checksum, .. } => {
                frame.put("udp sport", &sport.to_be_bytes());
                frame.put("udp dport", &dport.to_be_bytes());
                frame.put("udp len", &len.map_or_else(|| length(8 + rest), Ok)?.to_be_bytes());
                frame.put("udp checksum", &checksum.to_be_bytes());
            }
            Self::Bytes { fields, .. } => fields.iter().for_each(|(name, bytes)| frame.put(name, bytes)),
            Self::Gre { kind } => {
                frame.put("gre flags", &[0, 0]);
                frame.put("gre type", &kind_or(kind).to_be_bytes());
            }
        }
        Ok(())
    }
}

/// Sender of frames that name none.
const SOURCE_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xee]);
/// IEEE 802 local experimental ethertype 1.
const EXPERIMENTAL_ETHERTYPE: u16 = 0x88b5;

impl Ipv4 {
    fn read(words: &mut Words) -> Result<Self> {
        let options = words.hex("options")?.unwrap_or_default();
        ensure!(options.len() <= 40 && options.len().is_multiple_of(4), "options are whole words, ten at most");
        let version: u8 = words.number("version")?.unwrap_or(4);
        let ihl: u8 = words.number("ihl")?.unwrap_or(u8::try_from(5 + options.len() / 4)?);
        ensure!(version < 16 && ihl < 16, "version and ihl have 4 bits");
        let checksum = match words.text("checksum") {
            None => Checksum::Right,
            Some("wrong") => Checksum::Wrong,
            Some(text) => Checksum::Written(number(text)?),
        };
        let flag = |set, bit: u16| if set { bit } else { 0 };
        let flags =
            flag(words.flag("reserved"), 0x8000) | flag(words.flag("df"), 0x4000) | flag(words.flag("mf"), 0x2000);
        Ok(Self {
            first: version << 4 | ihl,
            tos: words.number("tos")?.unwrap_or(0),
            len: words.number("len")?,
            id: words.number("id")?.unwrap_or(1),
            fragment: flags | fragment_offset(words)?,
            ttl: words.number("ttl")?.unwrap_or(64),
            protocol: words.number("protocol")?,
            checksum,
            src: words.address("src")?.unwrap_or(SOURCE_V4),
            dst: words.address("dst")?.context("`dst` is missing")?,
            options,
        })
    }

    fn write(&self, frame: &mut Frame, len: u16, protocol: u8) {
        let start = frame.bytes.len();
        frame.put("ipv4 version, ihl", &[self.first]);
        frame.put("ipv4 tos", &[self.tos]);
        frame.put("ipv4 len", &len.to_be_bytes());
        frame.put("ipv4 id", &self.id.to_be_bytes());
        frame.put("ipv4 fragment", &self.fragment.to_be_bytes());
        frame.put("ipv4 ttl", &[self.ttl]);
        frame.put("ipv4 protocol", &[protocol]);
        frame.put("ipv4 checksum", &[0, 0]);
        frame.put("ipv4 src", &self.src.octets());
        frame.put("ipv4 dst", &self.dst.octets());
        frame.put("ipv4 options", &self.options);
        let right = internet_checksum(&[&frame.bytes[start..]]);
        let checksum = match self.checksum {
            Checksum::Right => right,
            Checksum::Wrong => right ^ 0x5a5a,
            Checksum::Written(checksum) => checksum,
        };
        frame.bytes[start + 10..start + 12].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// `offset`, in bytes as everybody counts them, in the 8-byte units of the field.
fn fragment_offset(words: &mut Words) -> Result<u16> {
    let offset: u32 = words.number("offset")?.unwrap_or(0);
    ensure!(
        offset < 1 << 16 && offset.is_multiple_of(8),
        "offset={offset}: fragments begin at multiples of 8 below 65536"
    );
    Ok(u16::try_from(offset / 8)?)
}

fn ports(words: &mut Words) -> Result<Vec<u8>> {
    let (sport, dport): (u16, u16) = (words.number("sport")?.unwrap_or(40_000), words.number("dport")?.unwrap_or(9));
    Ok([sport.to_be_bytes(), dport.to_be_bytes()].concat())
}

/// A body of options that is one `PadN`, RFC 8200 section 4.2.
fn options(bytes: usize) -> Vec<u8> {
    let mut body = vec![0; bytes];
    body[..2].copy_from_slice(&[1, (bytes - 2).to_le_bytes()[0]]);
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(layers: &str, changes: &[&str]) -> Result<Frame> {
        let port = Mac([2, 0, 0, 0, 1, 0]);
        Frame::build(layers, changes, port, |name| (name == "uplink").then_some(port))
    }

    #[test]
    fn a_frame_is_what_its_words_say() {
        let built =
            frame("eth / vlan 100 pcp=5 / ipv4 dst=10.1.2.3 ttl=7 df / udp sport=1 dport=2 / payload 3", &["pad 60"]);
        let expected = "020000000100.0200000000ee.8100.a064.0800\
            45.00.001f.0001.4000.07.11.a1b6.c6120001.0a010203 0001.0002.000b.0000 000102";
        let mut expected = hex(&expected.replace(' ', "")).expect("bytes");
        expected.resize(60, 0);
        let built = built.expect("a frame");
        assert_eq!(built.bytes, expected, "{:02x?}", built.bytes);
        assert_eq!((built.field(26), built.field(59)), ("ipv4 ttl", "padding"));
    }

    #[test]
    fn extension_headers_know_what_follows() {
        let built = frame("eth / ipv6 dst=2001:db8::1 hop=9 / routing left=1 / ah / frag offset=16 more / udp", &[]);
        let bytes = built.expect("a frame").bytes;
        assert_eq!(bytes[18..22], [0, 24 + 24 + 8 + 8, ROUTING, 9]);
        assert_eq!(bytes[54..58], [AUTHENTICATION, 2, 0, 1]);
        assert_eq!(bytes[78..80], [FRAGMENT, 4]);
        assert_eq!(bytes[102..106], [17, 0, 0, 17]);
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let check = |layers: &str, changes: &[&str], expected: &str| {
            let error = format!("{:#}", frame(layers, changes).expect_err(layers));
            assert!(error.contains(expected), "{error}");
        };
        check("eth / ipv4 dst=10.0.0.1 tll=3", &[], "`tll=3` means nothing");
        check("eth / ipv4 dst=10.0.0.1 ttl=3 ttl=4", &[], "twice");
        check("eth / ipv4 dst=10.0.0.1 ttl=256", &[], "does not fit");
        check("eth / ipv4 / udp", &[], "`dst` is missing");
        check("eth dst=nowhere", &[], "nowhere");
        check("eth / ipv7", &[], "no layer `ipv7`");
        check("eth", &["truncate 14"], "only 14 bytes");
        check("eth", &["set byte 14 1"], "only 14 bytes");
        check("eth", &["pad 14"], "14 bytes already");
    }
}
