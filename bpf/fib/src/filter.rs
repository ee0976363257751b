//! Filters: the first of the ordered rules that matches a packet, found without looking at every rule.
//!
//! Each of seven fields of the packet (source, destination, both ports, protocol, TCP flags, the port that it came in by) is
//! looked up on its own and gives a *class*: a row of bits, one for each rule that the field lets match. The first bit that
//! all seven rows have is the first matching rule (Lakshman and Stiliadis, "High-Speed Policy-based Packet Forwarding Using
//! Efficient Multi-dimensional Range Matching", SIGCOMM 1998). Addresses are looked up as those of IPv4 routes are, in a direct
//! table, blocks and a poptrie ([`crate::lookup`]), so that a hundred thousand prefixes cost little more than one does; the
//! rows cost seven words for every 64 rules.
//!
//! A filter sees what routes see: unicast packets to the node's own MAC addresses, also those to the node itself, and also
//! those with hop-by-hop options. Neighbour discovery, which belongs to the link, is not filtered.

use crate::image::Image;
use crate::layout::{
    AT_FILTER, DIRECT_BITS_MIN, DIRECT_NODE, FILTER_DEFAULT, FILTER_DESTINATION_PAGES, FILTER_FLAGS, FILTER_IN_PORTS,
    FILTER_NO_FLAGS, FILTER_NO_PORTS, FILTER_PAGES, FILTER_PROTOCOLS, FILTER_RULE_BYTES, FILTER_RULE_DEPTH,
    FILTER_RULE_DOES, FILTER_RULE_FLAGS, FILTER_RULE_FLAGS_BYTES, FILTER_RULE_ID, FILTER_RULE_POLICY_ID,
    FILTER_RULE_RATE, FILTER_SOURCE_PAGES, FILTER_TABLE_BITS, FILTER_WORDS, FILTER_WORDS_MAX, FilterTable,
    LIMIT_SECOND, Section, filter_action, filter_per,
};
use crate::lookup::{block, levels, walk};
use crate::packet::{
    AUTHENTICATION, DESTINATION_OPTIONS, ETHERNET_BYTES, ETHERTYPE_IPV4, ETHERTYPE_IPV6, EXTENSION_HEADERS_MAX,
    FRAGMENT, FRAGMENT_BYTES, HOP_BY_HOP, Packet, ROUTING, TCP, be64, destination_mac, has_ports, link, stays_v4,
    stays_v6,
};
use crate::verdict::{Met, Node, Reason};

/// Neighbour discovery, RFC 4861: router and neighbour solicitations and advertisements, and redirects.
const ICMPV6: u8 = 58;
const DISCOVERY_FIRST: u8 = 133;
const DISCOVERY_LAST: u8 = 137;
/// No router has forwarded a packet with this hop limit.
const DISCOVERY_HOP_LIMIT: u8 = 255;

/// No rule matches.
pub const NO_RULE: u32 = u32::MAX;

/// What a filter sees of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// 4 or 6.
    pub family: u8,
    /// As in [`crate::hash::Flow`].
    pub src: [u64; 2],
    pub dst: [u64; 2],
    /// Of IPv6 the protocol after the extension headers, as far as those are followed.
    pub protocol: u8,
    /// A fragment that is not the first: it has neither ports nor flags.
    pub is_later_fragment: bool,
    /// Source port in the high half, destination port in the low half; above them 1 where the packet shows them.
    pub ports: u64,
    /// Flags of TCP; [`Seen::NO_FLAGS`]: the packet shows none.
    pub flags: u32,
    /// Bytes of the frame.
    pub bytes: u32,
}

/// [`Seen`] in whole words.
pub type SeenWords = [u64; 6];

impl Seen {
    pub const HAS_PORTS: u64 = 1 << 32;
    pub const NO_FLAGS: u32 = FILTER_NO_FLAGS - FILTER_FLAGS;

    const FLAGS_AT: u32 = 36;
    const PROTOCOL_AT: u32 = 48;
    const FAMILY_AT: u32 = 56;
    const LATER_AT: u32 = 60;

    #[inline(always)]
    pub const fn encode(&self) -> SeenWords {
        let rest = self.ports
            | (self.flags as u64) << Self::FLAGS_AT
            | (self.protocol as u64) << Self::PROTOCOL_AT
            | (self.family as u64) << Self::FAMILY_AT
            | (self.is_later_fragment as u64) << Self::LATER_AT;
        [self.src[0], self.src[1], self.dst[0], self.dst[1], rest, self.bytes as u64]
    }

    #[inline(always)]
    pub const fn decode(words: SeenWords) -> Self {
        let rest = words[4];
        Self {
            family: (rest >> Self::FAMILY_AT) as u8 & 0xf,
            src: [words[0], words[1]],
            dst: [words[2], words[3]],
            protocol: (rest >> Self::PROTOCOL_AT) as u8,
            is_later_fragment: rest >> Self::LATER_AT & 1 != 0,
            ports: rest & (Self::HAS_PORTS << 1).wrapping_sub(1),
            flags: (rest >> Self::FLAGS_AT) as u32 & 0x1ff,
            bytes: words[5] as u32,
        }
    }
}

/// A limit that a packet is subject to: generic cell rate algorithm (ITU-T I.371, virtual scheduling), which is a token
/// bucket that keeps one number: when it will be full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Whose bucket: the rule's id and the family above it, then the source as far as it counts.
    pub key: [u64; 3],
    /// What the packet takes, in [`LIMIT_SECOND`]s.
    pub cost: u64,
    /// What the bucket holds when it is full, likewise.
    pub depth: u64,
}

impl Limit {
    /// Decides on a packet at `now`, for a bucket that will be full at `full_at` (both in [`LIMIT_SECOND`]s): when it will be
    /// full after the packet has taken what it costs. `None`: the packet is over the limit.
    #[inline(always)]
    pub const fn take(&self, full_at: u64, now: u64) -> Option<u64> {
        let debt = full_at.saturating_sub(now);
        // Neither is near the end of the clock.
        if debt.wrapping_add(self.cost) > self.depth {
            None
        } else {
            Some(now.wrapping_add(debt).wrapping_add(self.cost))
        }
    }
}

/// Whether the image has filters at all: the one question that packets of other images pay for.
#[inline(always)]
pub fn has_filters<I: Image + ?Sized>(image: &I) -> bool {
    matches!(image.head(AT_FILTER), Some(at) if at != 0)
}

/// What becomes of a frame: 0 when it goes on, otherwise the [`Met`] of one that is dropped.
#[inline(always)]
pub fn judge<I: Image + ?Sized, P: Packet + ?Sized, N: Node>(image: &I, packet: &P, node: &N) -> u64 {
    let (Some(seen), in_port) = look(packet, node) else { return 0 };
    rule_on(image, &seen, in_port, node)
}

/// The first half of [`judge`]: what the filter sees of a frame that is for it, and the port that it came in by.
#[inline(always)]
pub fn look<P: Packet + ?Sized, N: Node>(packet: &P, node: &N) -> (Option<Seen>, u32) {
    let none = (None, 0);
    let Ok(link) = link(packet) else { return none };
    let Some(ingress) = node.ingress(link.tags) else { return none };
    if !node.takes(&ingress, destination_mac(packet)) {
        return none;
    }
    let Some(mut seen) = see(&packet.after(link.tag_bytes), link.ethertype) else { return none };
    seen.bytes = packet.length();
    (Some(seen), ingress.port)
}

/// The second half of [`judge`].
#[inline(always)]
pub fn rule_on<I: Image + ?Sized, N: Node>(image: &I, seen: &Seen, in_port: u32, node: &N) -> u64 {
    let Some(rule) = find(image, seen, in_port) else { return Met::only(Reason::BadImage).word() };
    act(image, rule, seen, in_port, node).unwrap_or(Met::only(Reason::BadImage).word())
}

/// Does what a rule says ([`NO_RULE`]: the default); 0: the packet goes on.
#[inline(always)]
pub fn act<I: Image + ?Sized, N: Node>(image: &I, rule: u32, seen: &Seen, in_port: u32, node: &N) -> Option<u64> {
    if rule == NO_RULE {
        let deny = image.u32(image.head(AT_FILTER)?.wrapping_add(FILTER_DEFAULT))? != u32::from(filter_action::ALLOW);
        return Some(if deny { Met::filtered(Reason::FilterDefaultDeny, in_port, 0, 0).word() } else { 0 });
    }
    let at = image.head(Section::FilterRules.at())?.wrapping_add(rule.wrapping_mul(FILTER_RULE_BYTES));
    let id = image.u32(at.wrapping_add(FILTER_RULE_ID))?;
    let does = image.u32(at.wrapping_add(FILTER_RULE_DOES))?;
    let policy = image.u32(at.wrapping_add(FILTER_RULE_POLICY_ID))?;
    let action = does as u8;
    if action == filter_action::LIMIT {
        let admits = node.admits(&limit(image, at, id, does, seen)?);
        node.count_rule(id, !admits);
        return Some(if admits { 0 } else { Met::filtered(Reason::FilterRateLimited, in_port, policy, id).word() });
    }
    node.count_rule(id, false);
    Some(if action == filter_action::ALLOW { 0 } else { Met::filtered(Reason::FilterDeny, in_port, policy, id).word() })
}

/// The limit of the rule at an offset, for this packet.
#[inline(always)]
fn limit<I: Image + ?Sized>(image: &I, at: u32, id: u32, does: u32, seen: &Seen) -> Option<Limit> {
    let rate = image.u64(at.wrapping_add(FILTER_RULE_RATE))?;
    let depth = image.u64(at.wrapping_add(FILTER_RULE_DEPTH))?;
    let flags = image.u32(at.wrapping_add(FILTER_RULE_FLAGS))?;
    let tokens = if flags & FILTER_RULE_FLAGS_BYTES != 0 { u64::from(seen.bytes) } else { 1 };
    let cost = tokens.wrapping_mul(LIMIT_SECOND).checked_div(rate)?;
    let whose = u64::from(id) | u64::from(seen.family) << 32;
    let key = if (does >> 8) as u8 == filter_per::SOURCE {
        let bits = if seen.family == 4 { (does >> 16) as u8 } else { (does >> 24) as u8 };
        let [high, low] = masks(bits);
        [whose, seen.src[0] & high, seen.src[1] & low]
    } else {
        [id.into(), 0, 0]
    };
    Some(Limit { key, cost, depth })
}

/// The first `bits` bits of two words.
#[inline(always)]
const fn masks(bits: u8) -> [u64; 2] {
    let bits = bits as u32;
    if bits == 0 {
        [0, 0]
    } else if bits <= 64 {
        [u64::MAX << ((64 - bits) & 63), 0]
    } else {
        [u64::MAX, u64::MAX << (128u32.wrapping_sub(bits) & 63)]
    }
}

/// The first rule that matches; [`NO_RULE`]: none does. `None`: the image is damaged.
#[inline(always)]
pub fn find<I: Image + ?Sized>(image: &I, seen: &Seen, in_port: u32) -> Option<u32> {
    let head = image.head(AT_FILTER)?;
    let (source, destination) = if seen.family == 4 {
        (FilterTable::V4Source, FilterTable::V4Destination)
    } else {
        (FilterTable::V6Source, FilterTable::V6Destination)
    };
    let classes = image.head(Section::FilterClasses.at())?;
    let of = |index: u32| image.u16(classes.wrapping_add(index.wrapping_mul(2))).map(u32::from);
    let ports = |pages: u32, none: u32, port: u32| {
        if seen.ports & Seen::HAS_PORTS == 0 {
            return of(none + u32::from(seen.is_later_fragment));
        }
        let page = of(pages + (port >> 8 & 0xff))?;
        of((FILTER_PAGES + (port & 0xff)).wrapping_add(page << 8))
    };
    let flags = if seen.is_later_fragment { Seen::NO_FLAGS + 1 } else { seen.flags };
    // The addresses last: what the others need does not have to lie on the stack while they are looked up.
    let mut found = [
        0,
        0,
        ports(FILTER_SOURCE_PAGES, FILTER_NO_PORTS, (seen.ports >> 16) as u32 & 0xffff)?,
        ports(FILTER_DESTINATION_PAGES, FILTER_NO_PORTS + 2, seen.ports as u32 & 0xffff)?,
        of(FILTER_PROTOCOLS + u32::from(seen.protocol) + if seen.family == 4 { 0 } else { 256 })?,
        of(FILTER_IN_PORTS + (in_port & 0xff))?,
        of(FILTER_FLAGS + flags)?,
    ];
    found[0] = address(image, head.wrapping_add(source.at()), seen.src[0], seen.src[1]);
    found[1] = address(image, head.wrapping_add(destination.at()), seen.dst[0], seen.dst[1]);
    Some(first(image, image.u32(head.wrapping_add(FILTER_WORDS))?, &found))
}

/// The class of an address in the table whose words stand at `table`.
///
/// Not inlined: the verifier follows its loop apart from what comes after it, and it is called twice.
#[inline(never)]
fn address<I: Image + ?Sized>(image: &I, table: u32, high: u64, low: u64) -> u32 {
    class(image, table, high, low).unwrap_or(0)
}

#[inline(always)]
fn class<I: Image + ?Sized>(image: &I, table: u32, high: u64, low: u64) -> Option<u32> {
    let direct = image.u32(table)?;
    let bits = image.u32(table.wrapping_add(FILTER_TABLE_BITS))?;
    // `& 63` keeps the shifts defined whatever the image says.
    let index = (high >> (64u32.wrapping_sub(bits) & 63)) as u32;
    let entry = image.u32(direct.wrapping_add(index.wrapping_mul(4)))?;
    let rest = high << (bits & 63) | (low >> (64u32.wrapping_sub(bits) & 63));
    if entry & DIRECT_NODE != 0 {
        let levels = const { levels(128, DIRECT_BITS_MIN) };
        let tables = [Section::FilterNodes, Section::FilterLeaves];
        return walk(image, tables, entry & !DIRECT_NODE, rest, low << (bits & 63), levels).map(u32::from);
    }
    // What is in one slot of the direct table is a block even where it is one class throughout: without a branch that depends
    // on what was read, the processor runs ahead.
    let tables = [image.head(Section::FilterBlocks.at())?, image.head(Section::FilterPalettes.at())?];
    block(image, tables, entry, rest).map(u32::from)
}

/// The first rule that all rows have; [`NO_RULE`]: there is none.
///
/// Not inlined: as [`address`].
#[inline(never)]
fn first<I: Image + ?Sized>(image: &I, words: u32, classes: &[u32; 7]) -> u32 {
    let Some(rows) = image.head(Section::FilterRows.at()) else { return NO_RULE };
    for word in 0..FILTER_WORDS_MAX {
        if word >= words {
            break;
        }
        let mut all = u64::MAX;
        for class in classes {
            let row = class.wrapping_mul(words).wrapping_add(word);
            all &= image.u64(rows.wrapping_add(row.wrapping_mul(8))).unwrap_or(0);
        }
        if all != 0 {
            // As many ones as there are zeros below the lowest one: the machine has no instruction for either.
            return word * 64 + ((all & all.wrapping_neg()).wrapping_sub(1)).count_ones();
        }
    }
    NO_RULE
}

/// What a filter sees of a packet whose tags have been cut off; `None`: it is none for filters. Whatever is wrong behind the
/// addresses hides ports and flags, and not the packet.
#[inline(always)]
pub fn see<P: Packet + ?Sized>(packet: &P, ethertype: u16) -> Option<Seen> {
    match ethertype {
        ETHERTYPE_IPV4 => see_v4(packet),
        ETHERTYPE_IPV6 => see_v6(packet),
        _ => None,
    }
}

#[inline(always)]
fn see_v4<P: Packet + ?Sized>(packet: &P) -> Option<Seen> {
    const L3: u32 = ETHERNET_BYTES;
    let dst = packet.be32(L3 + 16)?;
    let src = packet.be32(L3 + 12)?;
    let version = packet.be16(L3)? >> 8;
    let header_bytes = u32::from(version & 0x0f) * 4;
    let end = L3 + u32::from(packet.be16(L3 + 2)?);
    let protocol = packet.be16(L3 + 8)? as u8;
    let offset = packet.be16(L3 + 6)? & 0x1fff;
    if version >> 4 != 4 || header_bytes < 20 || stays_v4(src) || stays_v4(dst) {
        return None;
    }
    let (src, dst) = ([u64::from(src) << 32, 0], [u64::from(dst) << 32, 0]);
    Some(transport(packet, 4, [src, dst], protocol, L3 + header_bytes, end, offset != 0))
}

#[inline(always)]
fn see_v6<P: Packet + ?Sized>(packet: &P) -> Option<Seen> {
    const L3: u32 = ETHERNET_BYTES;
    const HEADER_BYTES: u32 = 40;
    let src = [be64(packet, L3 + 8)?, be64(packet, L3 + 16)?];
    let dst = [be64(packet, L3 + 24)?, be64(packet, L3 + 32)?];
    let end = L3 + HEADER_BYTES + u32::from(packet.be16(L3 + 4)?);
    let [mut next, hop_limit] = packet.be16(L3 + 6)?.to_be_bytes();
    if packet.be16(L3)? >> 12 != 6 || stays_v6(src) || stays_v6(dst) {
        return None;
    }
    let mut at = L3 + HEADER_BYTES;
    let mut is_later_fragment = false;
    // One more than for routes, since these never see the first hop-by-hop header.
    for _ in 0..=EXTENSION_HEADERS_MAX {
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION => {
                let Some(head) = packet.be16(at) else { break };
                let length = u32::from(head & 0xff);
                let bytes = if next == AUTHENTICATION { (length + 2) * 4 } else { (length + 1) * 8 };
                if at + bytes > end {
                    // The header is not whole: what comes after it, if anything, nobody sees.
                    at = end;
                    break;
                }
                next = (head >> 8) as u8;
                at += bytes;
            }
            FRAGMENT => {
                let (Some(head), Some(offset)) = (packet.be16(at), packet.be16(at + 2)) else { break };
                if at + FRAGMENT_BYTES > end {
                    at = end;
                    break;
                }
                next = (head >> 8) as u8;
                at += FRAGMENT_BYTES;
                if offset & 0xfff8 != 0 {
                    is_later_fragment = true;
                    break;
                }
            }
            _ => break,
        }
    }
    if next == ICMPV6 && hop_limit == DISCOVERY_HOP_LIMIT && !is_later_fragment && at + 2 <= end {
        let kind = packet.be16(at).unwrap_or(0).to_be_bytes()[0];
        if (DISCOVERY_FIRST..=DISCOVERY_LAST).contains(&kind) {
            return None;
        }
    }
    Some(transport(packet, 6, [src, dst], next, at, end, is_later_fragment))
}

/// Reads ports and flags, where the packet shows them.
#[inline(always)]
fn transport<P: Packet + ?Sized>(
    packet: &P,
    family: u8,
    [src, dst]: [[u64; 2]; 2],
    protocol: u8,
    at: u32,
    end: u32,
    is_later_fragment: bool,
) -> Seen {
    let mut ports = 0;
    let mut flags = Seen::NO_FLAGS;
    if !is_later_fragment && has_ports(protocol) && at + 4 <= end {
        if let Some(word) = packet.be32(at) {
            ports = Seen::HAS_PORTS | u64::from(word);
        }
        if protocol == TCP
            && at + 14 <= end
            && let Some(word) = packet.be16(at + 12)
        {
            flags = u32::from(word & 0xff);
        }
    }
    Seen { family, src, dst, protocol, is_later_fragment, ports, flags, bytes: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_survives_the_way_through_words() {
        for (family, ports, flags, is_later_fragment) in [
            (4, 0, Seen::NO_FLAGS, true),
            (6, Seen::HAS_PORTS | 0xffff_0001, 0xff, false),
            (4, Seen::HAS_PORTS, 0, false),
        ] {
            let (src, dst) = ([1, u64::MAX], [u64::MAX, 2]);
            let seen = Seen { family, src, dst, protocol: 255, is_later_fragment, ports, flags, bytes: u32::MAX };
            assert_eq!(Seen::decode(seen.encode()), seen);
        }
    }

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_its_rate_after_it() {
        let cost = LIMIT_SECOND / 100;
        let limit = Limit { key: [0; 3], cost, depth: 5 * cost };
        // A full bucket that nobody has asked for a long time.
        let (mut full_at, start) = (7, LIMIT_SECOND * 1000);
        let mut admitted = |now: u64| match limit.take(full_at, now) {
            Some(next) => {
                full_at = next;
                true
            }
            None => false,
        };
        assert_eq!((0..20).filter(|_| admitted(start)).count(), 5, "the burst");
        assert_eq!((1..=200).filter(|step| admitted(start + step * cost / 2)).count(), 100, "one in two");
        let later = start + LIMIT_SECOND * 100;
        assert_eq!((0..20).filter(|_| admitted(later)).count(), 5, "never more than the burst");
        assert_eq!(Limit { cost: 6 * cost, ..limit }.take(0, later), None, "more than the bucket holds");
    }

    #[test]
    fn sources_share_a_bucket_by_their_first_bits() {
        assert_eq!(masks(0), [0, 0]);
        assert_eq!(masks(24), [0xffff_ff00_0000_0000, 0]);
        assert_eq!(masks(64), [u64::MAX, 0]);
        assert_eq!(masks(65), [u64::MAX, 1 << 63]);
        assert_eq!(masks(128), [u64::MAX, u64::MAX]);
    }
}
