//! What must become of a packet, and what differs when something else did.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use fib::{Reason, Verdict};

use super::case::Case;
use super::frame::Frame;
use super::node::NodeDescription;
use super::words::Words;
use crate::Mac;
use crate::packet::internet_checksum;

/// The expectation of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    /// Passed or dropped with every byte as it came.
    Unchanged(Reason),
    /// Passed to the kernel with an address translated.
    PassTranslated(Reason, Translated),
    Forward {
        /// One of these (port, next hop).
        hops: Vec<(String, String)>,
        /// All cases of a theme with the same word here leave by the same next hop.
        alike: Option<String>,
        ttl: u8,
        /// The header's checksum was wrong and stays wrong by as much.
        stays_wrong: bool,
        translated: Translated,
    },
    /// The IP packet is another one, byte for byte; the frame is as it came, or is forwarded to one of these.
    Becomes { reason: Reason, hops: Vec<(String, String)>, packet: Frame },
}

/// Addresses and ports that a service changes; `None`: as they came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Translated {
    src: Option<IpAddr>,
    dst: Option<IpAddr>,
    sport: Option<u16>,
    dport: Option<u16>,
}

impl Translated {
    fn read(fields: &mut Words) -> Result<Self> {
        Ok(Self {
            src: fields.address("src")?,
            dst: fields.address("dst")?,
            sport: fields.number("sport")?,
            dport: fields.number("dport")?,
        })
    }

    /// Changes a frame whose IP header stands at `l3` and its ports at `l4`; both checksums are summed up anew, and stay as
    /// wrong as they were. A UDP checksum of zero says that there is none.
    fn apply(self, frame: &mut [u8], l3: usize, l4: usize, is_tcp: bool) {
        if self == Self::default() {
            return;
        }
        let is_v4 = frame[l3] >> 4 == 4;
        let checksum_at = l4 + if is_tcp { 16 } else { 6 };
        let sums = |frame: &[u8]| {
            let bytes = if is_v4 {
                usize::from(u16::from_be_bytes([frame[l3 + 2], frame[l3 + 3]]))
            } else {
                40 + usize::from(u16::from_be_bytes([frame[l3 + 4], frame[l3 + 5]]))
            };
            let addresses = if is_v4 { l3 + 12..l3 + 20 } else { l3 + 8..l3 + 40 };
            let segment = &frame[l4..l3 + bytes];
            let length = u32::try_from(segment.len()).unwrap_or(0).to_be_bytes();
            let protocol = [0, if is_tcp { 6 } else { 17 }];
            let header = l3..l3 + usize::from(frame[l3] & 15) * 4;
            let own = if is_v4 { internet_checksum(&[&frame[header]]) } else { 0 };
            (own, internet_checksum(&[&frame[addresses], &length, &protocol, segment]))
        };
        let (own, before) = sums(frame);
        let has_none = !is_tcp && frame[checksum_at..checksum_at + 2] == [0, 0];
        for (address, at) in [(self.src, 0), (self.dst, 1)] {
            match address {
                Some(IpAddr::V4(v4)) => frame[l3 + 12 + at * 4..][..4].copy_from_slice(&v4.octets()),
                Some(IpAddr::V6(v6)) => frame[l3 + 8 + at * 16..][..16].copy_from_slice(&v6.octets()),
                None => {}
            }
        }
        for (port, at) in [(self.sport, 0), (self.dport, 2)] {
            if let Some(port) = port {
                frame[l4 + at..][..2].copy_from_slice(&port.to_be_bytes());
            }
        }
        let mut renew = |at: usize, before: u16, of: fn((u16, u16)) -> u16| {
            frame[at..at + 2].fill(0);
            let right = of(sums(frame));
            let sum = if before == 0 { right } else { ones_sum(right, !before) };
            frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        };
        if is_v4 {
            renew(l3 + 10, own, |(own, _)| own);
        }
        if !has_none {
            renew(checksum_at, before, |(_, transport)| transport);
            if !is_tcp && frame[checksum_at..checksum_at + 2] == [0, 0] {
                frame[checksum_at..checksum_at + 2].fill(0xff);
            }
        }
    }
}

/// Next hop by word of `as`, as the cases of a theme have shown so far.
pub(super) type Alike = BTreeMap<String, String>;

/// What a witness did with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) verdict: Verdict,
    pub(super) reason: Reason,
    pub(super) frame: Vec<u8>,
    /// The outermost tag of a frame that leaves is not in its bytes: the kernel keeps it beside them, where a test run
    /// does not show it.
    pub(super) is_tag_beside: bool,
}

impl Expect {
    /// `becomes`: the IP packet that it is afterwards, where the case writes it out.
    pub(super) fn read(text: &str, becomes: Option<Frame>, node: &NodeDescription) -> Result<Self> {
        let (words, fields) = text.split_once(':').unwrap_or((text, ""));
        let words: Vec<&str> = words.split_whitespace().collect();
        let reason = |verdict: Verdict, name: &str| {
            let found = Reason::ALL.iter().copied().find(|reason| reason.name() == name && reason.verdict() == verdict);
            found.with_context(|| format!("there is no {verdict:?} with the reason `{name}`"))
        };
        if let Some(packet) = becomes {
            ensure!(fields.is_empty(), "what the packet becomes stands in `becomes:`");
            let (reason, hops) = match words[..] {
                ["pass", "translated", name] => (reason(Verdict::Pass, name)?, Vec::new()),
                ["answer", name] => (reason(Verdict::Answer, name)?, Vec::new()),
                ["forward", port, hop] => (Reason::Forwarded, vec![Self::hop(&[port, hop], node)?]),
                _ => bail!(
                    "`{text}`: with `becomes:` stands `forward PORT NEXT-HOP`, `pass translated REASON` or `answer REASON`"
                ),
            };
            return Ok(Self::Becomes { reason, hops, packet });
        }
        Ok(match words[..] {
            ["pass", "unchanged", name] if fields.is_empty() => Self::Unchanged(reason(Verdict::Pass, name)?),
            ["pass", "translated", name] => {
                let mut fields = Words::of(fields)?;
                let translated = Translated::read(&mut fields)?;
                fields.finish()?;
                ensure!(translated != Translated::default(), "nothing is translated");
                Self::PassTranslated(reason(Verdict::Pass, name)?, translated)
            }
            ["drop", name] if fields.is_empty() => Self::Unchanged(reason(Verdict::Drop, name)?),
            ["forward", ref rest @ ..] => {
                let (hops, alike) = match rest {
                    [hops @ .., "as", word] => (hops, Some((*word).to_owned())),
                    hops => (hops, None),
                };
                let hops = hops.split(|word| *word == "or").map(|hop| Self::hop(hop, node)).collect::<Result<_>>()?;
                let mut fields = Words::of(fields)?;
                let ttl = fields.number("ttl")?.context("`ttl` is missing: write `forward PORT NEXT-HOP: ttl=63`")?;
                let stays_wrong = match fields.text("checksum") {
                    None => false,
                    Some("still-wrong") => true,
                    Some(other) => bail!("`checksum={other}`: it is right unless it is `still-wrong`"),
                };
                let translated = Translated::read(&mut fields)?;
                fields.finish()?;
                Self::Forward { hops, alike, ttl, stays_wrong, translated }
            }
            _ => bail!("`{text}`: write `pass unchanged REASON`, `drop REASON` or `forward PORT NEXT-HOP: ttl=63`"),
        })
    }

    fn hop(words: &[&str], node: &NodeDescription) -> Result<(String, String)> {
        let &[port, hop] = words else { bail!("`{}` is no port and next hop", words.join(" ")) };
        ensure!(node.port(port).is_some(), "the node has no port `{port}`");
        ensure!(node.hop(hop).is_some_and(|hop| hop.mac.is_some()), "the node has no MAC for the next hop `{hop}`");
        Ok((port.to_owned(), hop.to_owned()))
    }

    /// Whether addresses or ports are translated.
    pub(super) fn is_translated(&self) -> bool {
        match self {
            Self::Forward { translated, .. } => *translated != Translated::default(),
            Self::Becomes { .. } => true,
            Self::Unchanged(_) | Self::PassTranslated(..) => false,
        }
    }

    /// The port that a packet leaves by, when that is sure.
    pub(super) fn port(&self) -> Option<&str> {
        match self {
            Self::Forward { hops, .. } | Self::Becomes { hops, .. } => {
                let first = hops.first()?;
                hops.iter().all(|hop| hop.0 == first.0).then_some(&first.0)
            }
            _ => None,
        }
    }
}

/// Compares what happened with what the case says; the error says what differs.
pub(super) fn check(case: &Case, node: &NodeDescription, got: &Outcome, alike: &mut Alike) -> Result<(), String> {
    // Names of fields for the report, and where the frame begins that has them.
    let mut named = (&case.frame, 0);
    let (reason, mut expected) = match &case.expect {
        Expect::Becomes { reason, hops, packet } => {
            let outside = 14 + 4 * case.frame.tags();
            let mut expected = match hops.first() {
                None if reason.verdict() == Verdict::Answer => {
                    let macs = case.frame.bytes.get(..12).ok_or("the frame has no MAC addresses")?;
                    let (to, from) = macs.split_at(6);
                    [from, to, &case.frame.bytes[12..outside - 2]].concat()
                }
                None => case.frame.bytes[..outside - 2].to_vec(),
                Some((port, hop)) => {
                    let (Some(port), Some(to)) = (node.port(port), node.mac(hop)) else {
                        return Err(format!("no MAC for {hop}"));
                    };
                    let tags = port.tags.iter().flat_map(|tag| tag.bytes());
                    [to.0, port.mac.0].concat().into_iter().chain(tags).collect()
                }
            };
            let is_v4 = packet.bytes.first().is_some_and(|first| first >> 4 == 4);
            expected.extend(if is_v4 { [0x08, 0x00] } else { [0x86, 0xdd] });
            named = (packet, expected.len());
            expected.extend(&packet.bytes);
            (*reason, expected)
        }
        Expect::Unchanged(reason) => (*reason, case.frame.bytes.clone()),
        Expect::PassTranslated(reason, translated) => {
            let mut expected = case.frame.bytes.clone();
            let l3 = 14 + 4 * case.frame.tags();
            let (l4, is_tcp) = transport(case)?;
            translated.apply(&mut expected, l3, l4, is_tcp);
            (*reason, expected)
        }
        Expect::Forward { hops, alike: word, ttl, stays_wrong, translated } => {
            let sent = got.frame.first_chunk().copied().map(Mac);
            let to = |hop: &(String, String)| node.mac(&hop.1);
            let hop = hops.iter().find(|hop| to(hop) == sent).unwrap_or(&hops[0]);
            if let (Some(word), Verdict::Forward) = (word, got.verdict) {
                let first = alike.entry(word.clone()).or_insert_with(|| hop.1.clone());
                if *first != hop.1 {
                    return Err(format!("it left by {}, but others of `{word}` left by {first}", hop.1));
                }
            }
            let mut expected = forwarded(case, node, hop, *ttl, *stays_wrong)?;
            if *translated != Translated::default() {
                let tags = node.port(&hop.0).map_or(0, |port| port.tags.len());
                let (l4, is_tcp) = transport(case)?;
                let l4 = l4 + 4 * tags - 4 * case.frame.tags();
                translated.apply(&mut expected, 14 + 4 * tags, l4, is_tcp);
            }
            (Reason::Forwarded, expected)
        }
    };
    if got.is_tag_beside && [Reason::Forwarded, Reason::Decapsulated].contains(&reason) {
        // The first twelve bytes are the MAC addresses.
        let tagged = |bytes: &[u8]| matches!(bytes.get(12..14), Some([0x81, 0x00] | [0x88, 0xa8]));
        if tagged(&expected) {
            named.1 = named.1.saturating_sub(4);
            expected.drain(12..16);
        }
    }
    let mut wrong = String::new();
    if (got.verdict, got.reason) != (reason.verdict(), reason) {
        let say =
            |verdict: Verdict, reason: Reason| format!("{} {}", format!("{verdict:?}").to_lowercase(), reason.name());
        let _ = writeln!(wrong, "expected {}", say(reason.verdict(), reason));
        let _ = writeln!(wrong, "got      {}", say(got.verdict, got.reason));
    }
    if got.frame != expected {
        let field = |at: usize| match at.checked_sub(named.1) {
            Some(inside) => named.0.field(inside),
            None => case.frame.field(at),
        };
        wrong += &difference(field, &expected, &got.frame);
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// Where the transport header of the case's frame stands, and whether it is TCP's.
fn transport(case: &Case) -> Result<(usize, bool), String> {
    let tcp = case.frame.at("tcp ports").map(|at| (at, true));
    tcp.or(case.frame.at("udp sport").map(|at| (at, false))).ok_or_else(|| "the packet has no ports".to_owned())
}

/// The frame as it must leave, or why the case itself is wrong.
fn forwarded(
    case: &Case,
    node: &NodeDescription,
    (port, hop): &(String, String),
    ttl: u8,
    stays_wrong: bool,
) -> Result<Vec<u8>, String> {
    let bytes = &case.frame.bytes;
    let (Some(port), Some(to)) = (node.port(port), node.mac(hop)) else { return Err(format!("no MAC for {hop}")) };
    let outside = 12 + 4 * case.frame.tags();
    let rest = bytes.get(outside..).ok_or("the frame is too short to be forwarded")?;
    let mut expected = [to.0, port.mac.0].concat();
    expected.extend(port.tags.iter().flat_map(|tag| tag.bytes()));
    let l3 = expected.len() + 2;
    expected.extend_from_slice(rest);
    let old = |name: &str| case.frame.at(name).ok_or_else(|| format!("the frame has no `{name}`"));
    if old("ipv6 hop").is_ok_and(|at| at == outside + 9) {
        expected[l3 + 7] = ttl;
        return if stays_wrong { Err("IPv6 has no checksum of its own".to_owned()) } else { Ok(expected) };
    }
    if old("ipv4 ttl")? != outside + 10 {
        return Err("the outermost packet is neither IPv4 nor IPv6".to_owned());
    }
    let header = usize::from(expected[l3] & 15) * 4;
    let before = internet_checksum(&[&expected[l3..l3 + header]]);
    if (before != 0) != stays_wrong {
        return Err(
            "`checksum=still-wrong` is for packets that come with a wrong checksum, and only for them".to_owned()
        );
    }
    expected[l3 + 8] = ttl;
    expected[l3 + 10..l3 + 12].fill(0);
    let right = internet_checksum(&[&expected[l3..l3 + header]]);
    // A good header sums up to 0xffff, so `before` is 0. A bad one must sum up to what it did, which is `!before`.
    let checksum = if before == 0 { right } else { ones_sum(right, !before) };
    expected[l3 + 10..l3 + 12].copy_from_slice(&checksum.to_be_bytes());
    Ok(expected)
}

/// One's-complement sum, RFC 1071: the carry comes back at the low end.
fn ones_sum(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// Both frames where they differ: field, offset, bytes.
fn difference<'n>(field: impl Fn(usize) -> &'n str, expected: &[u8], got: &[u8]) -> String {
    let mut text = String::new();
    if expected.len() != got.len() {
        let _ = writeln!(text, "expected {} bytes, got {}", expected.len(), got.len());
    }
    let differs = |at: usize| expected.get(at) != got.get(at);
    let length = expected.len().max(got.len());
    let mut at = 0;
    while at < length {
        if !differs(at) {
            at += 1;
            continue;
        }
        // One line a field: everything up to the next equal byte or the next field.
        let name = field(at);
        let end = (at..length).find(|&end| !differs(end) || field(end) != name).unwrap_or(length);
        let hex = |bytes: &[u8]| -> String {
            let bytes = bytes.get(at..end.min(bytes.len())).unwrap_or_default();
            bytes.iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let _ = writeln!(text, "byte {at} ({name}): expected {}, got {}", hex(expected), hex(got));
        at = end;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(text: &str) -> (NodeDescription, Case) {
        let mut node = NodeDescription::default();
        for line in [
            "port uplink mac=02:00:00:00:01:00 mtu=1500",
            "port dc mac=02:00:00:00:02:00 tags=s200.100",
            "neighbour edge-a mac=02:00:00:00:00:0a",
            "neighbour edge-b mac=02:00:00:00:00:0b",
        ] {
            node.add(line).expect(line);
        }
        let body: Vec<&str> = text.lines().collect();
        let case = Case::read("t.packets", 1, "t", &body, &node).expect(text);
        (node, case)
    }

    fn outcome(frame: &[u8]) -> Outcome {
        Outcome { verdict: Verdict::Forward, reason: Reason::Forwarded, frame: frame.to_vec(), is_tag_beside: false }
    }

    #[test]
    fn every_other_byte_must_be_as_it_came() {
        let (node, case) = case("in: eth / ipv4 dst=10.1.2.3 / udp\nout: forward uplink edge-a: ttl=63");
        let mut right = case.frame.bytes.clone();
        right[..12].copy_from_slice(&[2, 0, 0, 0, 0, 0x0a, 2, 0, 0, 0, 1, 0]);
        right[22] = 63;
        right[24] += 1;
        assert_eq!(check(&case, &node, &outcome(&right), &mut Alike::new()), Ok(()));
        for at in 0..right.len() {
            let mut wrong = right.clone();
            wrong[at] ^= 0x10;
            let said = check(&case, &node, &outcome(&wrong), &mut Alike::new()).expect_err("a byte differs");
            assert!(said.contains(&format!("byte {at} ({})", case.frame.field(at))), "{said}");
        }
        let said = check(&case, &node, &outcome(&right[..41]), &mut Alike::new()).expect_err("too short");
        assert!(said.contains("expected 42 bytes, got 41"), "{said}");
        let passed = Outcome {
            verdict: Verdict::Pass,
            reason: Reason::NoRoute,
            frame: case.frame.bytes.clone(),
            is_tag_beside: false,
        };
        let said = check(&case, &node, &passed, &mut Alike::new()).expect_err("it passed");
        assert!(said.starts_with("expected forward forwarded\ngot      pass no-route\n"), "{said}");
    }

    #[test]
    fn a_wrong_checksum_stays_wrong_by_as_much() {
        let (node, case) = case(
            "in: eth / ipv4 dst=10.1.2.3 checksum=wrong / udp\nout: forward uplink edge-a: ttl=63 checksum=still-wrong",
        );
        let expected = forwarded(&case, &node, &("uplink".to_owned(), "edge-a".to_owned()), 63, true).expect("a frame");
        let off = |bytes: &[u8]| internet_checksum(&[&bytes[14..34]]);
        assert_ne!(off(&expected), 0);
        assert_eq!(off(&expected), off(&case.frame.bytes));
        assert!(forwarded(&case, &node, &("uplink".to_owned(), "edge-a".to_owned()), 63, false).is_err());
    }

    #[test]
    fn tags_are_those_of_the_ports() {
        let (node, case) =
            case("in dc: eth / svlan 200 / vlan 100 / ipv6 dst=2001:db8::1\nout: forward uplink edge-a: ttl=63");
        let expected =
            forwarded(&case, &node, &("uplink".to_owned(), "edge-a".to_owned()), 63, false).expect("a frame");
        assert_eq!((&expected[12..15], expected[21]), (&[0x86, 0xdd, 0x60][..], 63));
        assert_eq!(expected.len(), case.frame.bytes.len() - 8);
        let (node, case) = self::case("in: eth / ipv6 dst=2001:db8::1\nout: forward dc edge-a: ttl=63");
        let expected = forwarded(&case, &node, &("dc".to_owned(), "edge-a".to_owned()), 63, false).expect("a frame");
        assert_eq!(expected[12..24], [0x88, 0xa8, 0, 200, 0x81, 0, 0, 100, 0x86, 0xdd, 0x60, 0]);
    }

    #[test]
    fn one_word_means_one_next_hop() {
        let (node, case) =
            case("in: eth / ipv6 dst=2001:db8::1\nout: forward uplink edge-a or uplink edge-b as flow: ttl=63");
        let leaving =
            |hop: &str| forwarded(&case, &node, &("uplink".to_owned(), hop.to_owned()), 63, false).expect("a frame");
        let mut alike = Alike::new();
        assert_eq!(check(&case, &node, &outcome(&leaving("edge-b")), &mut alike), Ok(()));
        assert_eq!(check(&case, &node, &outcome(&leaving("edge-b")), &mut alike), Ok(()));
        let said = check(&case, &node, &outcome(&leaving("edge-a")), &mut alike).expect_err("another one");
        assert_eq!(said, "it left by edge-a, but others of `flow` left by edge-b");
    }
}
