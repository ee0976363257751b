//! Frames: access, parsing and the rewrite that forwarding makes.
//!
//! Numbers are returned in host order from network-order bytes; offsets count from the Ethernet destination address.

use crate::hash::Flow;
use crate::service::Difference;
use crate::verdict::{Neighbour, Reason};

/// Bounds-checked reads of a frame; `None` past its end.
pub trait Packet {
    /// Bytes of the frame, those included that a read cannot reach.
    fn length(&self) -> u32;
    /// Network-order 16 bits.
    fn be16(&self, at: u32) -> Option<u16>;
    /// Network-order 32 bits.
    fn be32(&self, at: u32) -> Option<u32>;
    /// The first eight bytes, the first of them lowest.
    fn first_le64(&self) -> Option<u64>;
    /// The frame without its first `bytes`; every offset counts from there.
    fn after(&self, bytes: u32) -> impl Packet;
    /// The frame again, from its beginning: with pointers of its own where they would else have to live until now.
    fn again(&self) -> impl Packet;
    /// The outermost VLAN tag where the kernel has taken it out of the frame, as in [`Tags`]; 0: none.
    #[inline(always)]
    fn offloaded_tag(&self) -> u32 {
        0
    }
    /// Whether the frame lies in several buffers, so that reads reach only the first.
    #[inline(always)]
    fn is_scattered(&self) -> bool {
        false
    }
    /// One's-complement sum of network-order 16 bits (RFC 1071) over `bytes` from `at`: a multiple of four, no more than
    /// [`SUM_BYTES_MAX`].
    #[inline(always)]
    fn sum(&self, at: u32, bytes: u32) -> Option<u16> {
        let mut sum = Difference(0);
        for word in 0..SUM_BYTES_MAX / 4 {
            if word * 4 < bytes {
                sum.add32(self.be32(at + word * 4)?);
            }
        }
        Some(sum.folded())
    }
    /// Bytes of the largest IP packet that leaves when this one is sent: less than all where the kernel has merged
    /// segments that it will divide again.
    #[inline(always)]
    fn largest_segment(&self, parsed: &Parsed) -> u32 {
        parsed.ip_bytes
    }
}

/// Bounds-checked writes to a frame.
pub trait PacketMut: Packet {
    fn set_be16(&mut self, at: u32, value: u16) -> Option<()>;
    fn set_be32(&mut self, at: u32, value: u32) -> Option<()>;
    /// Writes the twelve bytes of both MAC addresses, each the low 48 bits of its word with its first byte lowest.
    fn set_macs(&mut self, destination: u64, source: u64) -> Option<()>;
    /// Takes bytes away from the front (`bytes` > 0) or adds room there; `None`: nothing has changed.
    fn move_head(&mut self, bytes: i32) -> Option<()>;

    /// Cuts the frame off behind its first `bytes`, which is no more than it has; `None`: nothing has changed.
    fn shorten(&mut self, bytes: u32) -> Option<()>;

    /// Adds room at the front, for a header; what lies in it and the MAC addresses are undefined. `None`: nothing has changed.
    #[inline(always)]
    fn add_room(&mut self, bytes: u32) -> Option<()> {
        self.move_head(-bytes.cast_signed())
    }

    /// Gives the frame other VLAN tags; returns the bytes of those that lie in the frame afterwards. The MAC addresses
    /// are undefined then: the caller writes them.
    #[inline(always)]
    fn set_tags(&mut self, link: &Link, tags: Tags) -> Option<u32> {
        let bytes = tags.bytes();
        if bytes != link.tag_bytes {
            self.move_head(link.tag_bytes.cast_signed() - bytes.cast_signed())?;
        }
        write_tags(self, tags, link.ethertype)?;
        Some(bytes)
    }

    /// Gives the frame other VLAN tags, and `bytes` of room between them and the packet, for a header of `ethertype`; returns where it
    /// begins. What lies in it and the MAC addresses are undefined then: the caller writes them.
    #[inline(always)]
    fn push_header(&mut self, link: &Link, tags: Tags, bytes: u32, ethertype: u16) -> Option<u32> {
        let tag_bytes = tags.bytes();
        self.move_head(link.tag_bytes.cast_signed() - (tag_bytes + bytes).cast_signed())?;
        write_tags(self, tags, ethertype)?;
        Some(ETHERNET_BYTES + tag_bytes)
    }

    /// Takes `bytes` of headers away that stand between the VLAN tags and a packet of `ethertype`; MAC addresses and tags stay.
    /// `None`: nothing has changed, or the frame must not go on.
    #[inline(always)]
    fn pull_header(&mut self, link: &Link, bytes: u32, ethertype: u16) -> Option<()> {
        let (to, from) = (destination_mac(self)?, source_mac(self)?);
        self.move_head(bytes.cast_signed())?;
        self.set_macs(to, from)?;
        write_tags(self, link.tags, ethertype)
    }

    /// Changes the checksum of a transport header for other addresses, which its pseudo header has, and other ports.
    /// `never_zero`: a sum of zero is written as all ones, since zero says that there is none (UDP, RFC 768).
    #[inline(always)]
    fn change_checksum(&mut self, at: u32, addresses: Difference, ports: Difference, never_zero: bool) -> Option<()> {
        let checksum = addresses.and(ports).apply(self.be16(at)?);
        self.set_be16(at, if never_zero && checksum == 0 { 0xffff } else { checksum })
    }
}

impl<T: Packet + ?Sized> Packet for &T {
    #[inline(always)]
    fn length(&self) -> u32 {
        (**self).length()
    }
    #[inline(always)]
    fn be16(&self, at: u32) -> Option<u16> {
        (**self).be16(at)
    }
    #[inline(always)]
    fn be32(&self, at: u32) -> Option<u32> {
        (**self).be32(at)
    }
    #[inline(always)]
    fn first_le64(&self) -> Option<u64> {
        (**self).first_le64()
    }
    #[inline(always)]
    fn after(&self, bytes: u32) -> impl Packet {
        (**self).after(bytes)
    }
    #[inline(always)]
    fn again(&self) -> impl Packet {
        (**self).again()
    }
    #[inline(always)]
    fn offloaded_tag(&self) -> u32 {
        (**self).offloaded_tag()
    }
    #[inline(always)]
    fn is_scattered(&self) -> bool {
        (**self).is_scattered()
    }
    #[inline(always)]
    fn largest_segment(&self, parsed: &Parsed) -> u32 {
        (**self).largest_segment(parsed)
    }
}

impl Packet for [u8] {
    fn length(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }
    fn be16(&self, at: u32) -> Option<u16> {
        Some(u16::from_be_bytes(*self.get(at as usize..)?.first_chunk()?))
    }
    fn be32(&self, at: u32) -> Option<u32> {
        Some(u32::from_be_bytes(*self.get(at as usize..)?.first_chunk()?))
    }
    fn first_le64(&self) -> Option<u64> {
        Some(u64::from_le_bytes(*self.first_chunk()?))
    }
    fn after(&self, bytes: u32) -> impl Packet {
        self.get(bytes as usize..).unwrap_or_default()
    }
    fn again(&self) -> impl Packet {
        self
    }
}

/// A slice cannot grow or shrink, so its tags can only be replaced by as many.
impl PacketMut for [u8] {
    fn set_be16(&mut self, at: u32, value: u16) -> Option<()> {
        *self.get_mut(at as usize..)?.first_chunk_mut()? = value.to_be_bytes();
        Some(())
    }
    fn set_be32(&mut self, at: u32, value: u32) -> Option<()> {
        *self.get_mut(at as usize..)?.first_chunk_mut()? = value.to_be_bytes();
        Some(())
    }
    fn set_macs(&mut self, destination: u64, source: u64) -> Option<()> {
        let macs = self.first_chunk_mut::<12>()?;
        macs[..6].copy_from_slice(&destination.to_le_bytes()[..6]);
        macs[6..].copy_from_slice(&source.to_le_bytes()[..6]);
        Some(())
    }
    fn move_head(&mut self, _bytes: i32) -> Option<()> {
        None
    }
    fn shorten(&mut self, bytes: u32) -> Option<()> {
        (bytes == self.length()).then_some(())
    }
}

/// Most bytes that [`Packet::sum`] takes.
pub const SUM_BYTES_MAX: u32 = 128;
/// Ethernet header, RFC 894.
pub const ETHERNET_BYTES: u32 = 14;
const AT_ETHERTYPE: u32 = 12;
pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// IEEE 802.1Q and 802.1ad.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
pub const ETHERTYPE_QINQ: u16 = 0x88a8;
/// Tag protocol identifier and tag control information.
const TAG_BYTES: u32 = 4;
/// The VLAN identifier among the control information.
const VID_MASK: u32 = 0x0fff;

/// Protocol numbers of the IANA registry.
pub(crate) const HOP_BY_HOP: u8 = 0;
pub const ICMP: u8 = 1;
/// A packet of IPv4 in one of any family, RFC 2003 and RFC 2473; then the same of IPv6.
pub const IP_IN_IP: u8 = 4;
pub const IPV6_IN_IP: u8 = 41;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
/// RFC 8200, section 4.5.
pub(crate) const FRAGMENT_BYTES: u32 = 8;
pub(crate) const AUTHENTICATION: u8 = 51;
pub const ICMPV6: u8 = 58;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;
const DCCP: u8 = 33;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

/// Extension headers that are followed to the ports; a packet with more is forwarded by its three fields.
pub const EXTENSION_HEADERS_MAX: u32 = 6;

/// Most-significant-first bits of a MAC's first byte: set for group addresses.
const MAC_GROUP_BIT: u16 = 0x0100;
/// The six bytes of a MAC address in a word.
const MAC_MASK: u64 = (1 << 48) - 1;

/// VLAN tags of a frame, outermost first: tag protocol identifier in the high half, control information in the low half;
/// 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    pub outer: u32,
    pub inner: u32,
}

impl Tags {
    /// Bytes that the tags take in a frame.
    #[inline(always)]
    pub const fn bytes(self) -> u32 {
        if self.inner != 0 {
            2 * TAG_BYTES
        } else if self.outer != 0 {
            TAG_BYTES
        } else {
            0
        }
    }

    /// The VLAN identifiers: outer in the high half, inner in the low half. A priority tag (identifier 0) is no VLAN.
    #[inline(always)]
    pub const fn vids(self) -> u32 {
        (self.outer & VID_MASK) << 16 | self.inner & VID_MASK
    }
}

/// The link layer of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub tags: Tags,
    /// Of what the tags carry.
    pub ethertype: u16,
    /// Bytes of those tags that lie in the frame: 0, 4 or 8.
    pub tag_bytes: u32,
}

impl Link {
    /// IPv4 without a tag.
    pub const PLAIN_V4: Self = Self { tags: Tags { outer: 0, inner: 0 }, ethertype: ETHERTYPE_IPV4, tag_bytes: 0 };

    #[inline(always)]
    pub const fn is_plain_v4(&self) -> bool {
        self.ethertype == ETHERTYPE_IPV4 && self.tags.outer == 0
    }
}

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
    /// Bytes of the IP header with its options or extension headers.
    pub header_bytes: u32,
}

/// The frame's destination MAC, as [`Neighbour`] holds them.
#[inline(always)]
pub fn destination_mac<P: Packet + ?Sized>(packet: &P) -> Option<u64> {
    Some(packet.first_le64()? & MAC_MASK)
}

/// The frame's source MAC, likewise.
#[inline(always)]
pub fn source_mac<P: Packet + ?Sized>(packet: &P) -> Option<u64> {
    let mac = u64::from(packet.be16(6)?) << 32 | u64::from(packet.be32(8)?);
    Some(mac.swap_bytes() >> 16)
}

/// Writes the tags and the type of what they carry where they stand in a frame.
#[inline(always)]
fn write_tags<P: PacketMut + ?Sized>(packet: &mut P, tags: Tags, ethertype: u16) -> Option<()> {
    if tags.outer != 0 {
        packet.set_be32(AT_ETHERTYPE, tags.outer)?;
    }
    if tags.inner != 0 {
        packet.set_be32(AT_ETHERTYPE + TAG_BYTES, tags.inner)?;
    }
    packet.set_be16(AT_ETHERTYPE + tags.bytes(), ethertype)
}

/// Reads the link layer, or says why the frame is not for the routes.
#[inline(always)]
pub fn link<P: Packet + ?Sized>(packet: &P) -> Result<Link, Reason> {
    let Some(ethertype) = packet.be16(AT_ETHERTYPE) else { return Err(Reason::Malformed) };
    match packet.be16(0) {
        Some(first) if first & MAC_GROUP_BIT != 0 => return Err(Reason::LinkNotOurs),
        _ => {}
    }
    let offloaded = packet.offloaded_tag();
    if !is_tag(ethertype) {
        return Ok(Link { tags: Tags { outer: offloaded, inner: 0 }, ethertype, tag_bytes: 0 });
    }
    tagged(packet, offloaded).ok_or(Reason::Malformed)?
}

/// Reads the tags that lie in the frame. `None`: malformed.
#[inline(always)]
fn tagged<P: Packet + ?Sized>(packet: &P, offloaded: u32) -> Option<Result<Link, Reason>> {
    let first = packet.be32(AT_ETHERTYPE)?;
    let ethertype = packet.be16(AT_ETHERTYPE + TAG_BYTES)?;
    if offloaded != 0 {
        let tags = Tags { outer: offloaded, inner: first };
        let link = Link { tags, ethertype, tag_bytes: TAG_BYTES };
        return Some(if is_tag(ethertype) { Err(Reason::Vlan) } else { Ok(link) });
    }
    if !is_tag(ethertype) {
        return Some(Ok(Link { tags: Tags { outer: first, inner: 0 }, ethertype, tag_bytes: TAG_BYTES }));
    }
    let inner = packet.be32(AT_ETHERTYPE + TAG_BYTES)?;
    let ethertype = packet.be16(AT_ETHERTYPE + 2 * TAG_BYTES)?;
    let link = Link { tags: Tags { outer: first, inner }, ethertype, tag_bytes: 2 * TAG_BYTES };
    Some(if is_tag(ethertype) { Err(Reason::Vlan) } else { Ok(link) })
}

#[inline(always)]
const fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ)
}

/// Reads the IP headers of a frame whose tags have been cut off ([`Packet::after`]), or says why the packet is not for
/// the routes.
#[inline(always)]
pub fn parse<P: Packet + ?Sized>(packet: &P, ethertype: u16) -> Result<Parsed, Reason> {
    let mut parsed = parse_route(packet, ethertype)?;
    if parsed.family == 4 {
        parsed.flow.ports = ports_v4(packet).ok_or(Reason::Malformed)?;
    }
    Ok(parsed)
}

/// As [`parse`], without the ports of IPv4, which only a choice among several next hops needs: see [`ports_v4`].
#[inline(always)]
pub(crate) fn parse_route<P: Packet + ?Sized>(packet: &P, ethertype: u16) -> Result<Parsed, Reason> {
    match ethertype {
        ETHERTYPE_IPV4 => parse_v4(packet).ok_or(Reason::Malformed)?,
        ETHERTYPE_IPV6 => parse_v6(packet).ok_or(Reason::Malformed)?,
        _ => Err(Reason::NotIp),
    }
}

/// RFC 791. `None`: malformed.
#[inline(always)]
fn parse_v4<P: Packet + ?Sized>(packet: &P) -> Option<Result<Parsed, Reason>> {
    const L3: u32 = ETHERNET_BYTES;
    // The last field first: its check covers the others.
    let dst = packet.be32(L3 + 16)?;
    let src = packet.be32(L3 + 12)?;
    let version = (packet.be16(L3)? >> 8) as u8;
    let header_bytes = u32::from(version & 0x0f) * 4;
    let total_bytes = u32::from(packet.be16(L3 + 2)?);
    let [ttl, protocol] = packet.be16(L3 + 8)?.to_be_bytes();
    let length = packet.length();
    if version >> 4 != 4 || header_bytes < 20 || total_bytes < header_bytes || length < L3 + total_bytes {
        return None;
    }
    if stays_v4(src) || stays_v4(dst) {
        return Some(Err(Reason::NotForwardable));
    }
    let flow = Flow { src: [u64::from(src) << 32, 0], dst: [u64::from(dst) << 32, 0], protocol, ports: 0 };
    Some(Ok(Parsed { family: 4, flow, ttl, ip_bytes: length - L3, header_bytes }))
}

/// Ports of an IPv4 packet that [`parse_v4`] has taken; 0 where it shows none.
#[inline(always)]
pub(crate) fn ports_v4<P: Packet + ?Sized>(packet: &P) -> Option<u32> {
    const L3: u32 = ETHERNET_BYTES;
    // More-fragments flag or fragment offset.
    let fragment = packet.be16(L3 + 6)? & 0x3fff != 0;
    let protocol = packet.be16(L3 + 8)? as u8;
    let header_bytes = u32::from(packet.be16(L3)? >> 8 & 0x0f) * 4;
    if !has_ports(protocol) || fragment || u32::from(packet.be16(L3 + 2)?) < header_bytes + 4 {
        return Some(0);
    }
    packet.be32(L3 + header_bytes)
}

/// Whether no router may forward from or to this address: "this network", loopback, link-local, multicast and the limited
/// broadcast (RFC 1812 section 5.3.7, RFC 3927 section 7, RFC 6890).
#[inline(always)]
pub(crate) const fn stays_v4(address: u32) -> bool {
    let first = address >> 24;
    // Few comparisons for the addresses that do not stay.
    if first.wrapping_sub(1) >= 0xdf {
        return first >> 4 == 0xe || first == 0 || address == u32::MAX;
    }
    first == 127 || address >> 16 == 0xa9fe
}

/// The same for IPv6: multicast `ff00::/8`, link-local `fe80::/10`, unspecified and loopback (`::/127`), and IPv4-mapped
/// `::ffff:0:0/96` (RFC 4291 section 2.5, RFC 6890).
#[inline(always)]
pub(crate) const fn stays_v6(address: [u64; 2]) -> bool {
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
    if packet.be16(L3)? >> 12 != 6 || packet.length() < L3 + ip_bytes {
        return None;
    }
    let src = [be64(packet, L3 + 8)?, be64(packet, L3 + 16)?];
    let dst = [be64(packet, L3 + 24)?, be64(packet, L3 + 32)?];
    if stays_v6(src) || stays_v6(dst) {
        return Some(Err(Reason::NotForwardable));
    }
    let [mut next, ttl] = packet.be16(L3 + 6)?.to_be_bytes();
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
    let flow = Flow { src, dst, protocol: next, ports };
    Some(Ok(Parsed { family: 6, flow, ttl, ip_bytes: packet.length() - L3, header_bytes: at - L3 }))
}

#[inline(always)]
pub(crate) fn be64<P: Packet + ?Sized>(packet: &P, at: u32) -> Option<u64> {
    Some(u64::from(packet.be32(at)?) << 32 | u64::from(packet.be32(at + 4)?))
}

#[inline(always)]
pub(crate) const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | DCCP | SCTP | UDP_LITE)
}

/// Makes the frame leave by `neighbour`: VLAN tags of its port, new MAC addresses, TTL or hop limit one lower, IPv4
/// checksum to match.
///
/// The caller has decided on the frame as it is and knows its TTL to be at least 2. The link layer is read once more
/// here, so that nothing but the verdict has to be carried so far: the verifier follows fewer ways. `None` before the
/// first write where the frame has no room for the tags.
#[inline(always)]
pub fn forward<P: PacketMut + ?Sized>(packet: &mut P, neighbour: &Neighbour) -> Option<()> {
    let link = link(packet).ok()?;
    if link.tags.outer == 0 && neighbour.tags.outer == 0 {
        // The common case keeps constant offsets.
        return rewrite(packet, ETHERNET_BYTES, link.ethertype, neighbour);
    }
    let tag_bytes = packet.set_tags(&link, neighbour.tags)?;
    rewrite(packet, ETHERNET_BYTES + tag_bytes, link.ethertype, neighbour)
}

/// [`forward`] for a frame whose link layer is [`Link::PLAIN_V4`], to a neighbour behind an untagged port.
#[inline(always)]
pub fn forward_plain_v4<P: PacketMut + ?Sized>(packet: &mut P, neighbour: &Neighbour) -> Option<()> {
    rewrite(packet, ETHERNET_BYTES, ETHERTYPE_IPV4, neighbour)
}

#[inline(always)]
fn rewrite<P: PacketMut + ?Sized>(packet: &mut P, l3: u32, ethertype: u16, neighbour: &Neighbour) -> Option<()> {
    renew_ttl(packet, l3, ethertype)?;
    packet.set_macs(neighbour.destination, neighbour.source)
}

/// TTL or hop limit one lower, IPv4 checksum to match.
#[inline(always)]
pub(crate) fn renew_ttl<P: PacketMut + ?Sized>(packet: &mut P, l3: u32, ethertype: u16) -> Option<()> {
    if ethertype == ETHERTYPE_IPV4 {
        // TTL and protocol are one word of the checksum.
        let word = packet.be16(l3 + 8)?;
        let checksum = u32::from(packet.be16(l3 + 10)?);
        // RFC 1141: the TTL is the high byte of its word, so one less adds 0x0100 to the one's-complement checksum.
        let sum = checksum + 0x0100;
        packet.set_be16(l3 + 10, (sum + u32::from(sum >= 0xffff)) as u16)?;
        packet.set_be16(l3 + 8, word.wrapping_sub(0x0100))?;
    } else {
        // Next header and hop limit.
        let word = packet.be16(l3 + 6)?;
        packet.set_be16(l3 + 6, word & 0xff00 | word.wrapping_sub(1) & 0x00ff)?;
    }
    Some(())
}
