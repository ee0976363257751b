//! IP in IP: a packet to a backend in a packet of its own, and the way back out of it.
//!
//! RFC 2003 (IPv4 in IPv4) and RFC 2473 (IPv4 and IPv6 in IPv6). The node that has the service is a router on the packet's way, so
//! the inner TTL is one less, and the outer header is one from this node to the backend: TTL 64, "don't fragment", DSCP and
//! congestion mark of the inner header (RFC 2983 section 3.1, RFC 6040 section 4.1, normal mode), and of IPv6 a flow label that is the
//! same for all packets of a flow, since routers between see no ports (RFC 6438).
//!
//! The backend's node takes the outer header off again where its configuration says so: of packets to one of its addresses, from one
//! of the prefixes that may send such, and with an inner destination that is one of those listed. What does not fit is dropped:
//! the kernel might decapsulate it for anybody. The congestion mark goes inside as RFC 6040 section 4.2 says; DSCP does not.

use crate::hash;
use crate::icmp::end;
use crate::image::Image;
use crate::layout::{
    AT_HASH_SEED, DECAPSULATION_BYTES, DECAPSULATION_MASK, DECAPSULATION_ROWS_MAX, DECAPSULATION_WHAT, Section,
    TUNNEL_SOURCE_BYTES, decapsulation,
};
use crate::packet::{
    ETHERNET_BYTES, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IP_IN_IP, IPV6_IN_IP, Packet, PacketMut, be64, link, renew_ttl,
    stays_v4, stays_v6,
};
use crate::service::{Address, Difference, Steer, is_v4, mapped, plain, step};
use crate::verdict::{Neighbour, Reach, Reason};

const V4_BYTES: u32 = 20;
const V6_BYTES: u32 = 40;
/// Of the outer header: RFC 1700.
const TTL: u16 = 64;
/// Version and words of a header without options.
const V4_FIRST: u16 = 0x4500;
/// What has it needs no identification, RFC 6864 section 4.1.
const DF: u16 = 0x4000;
/// A flow label has 20 bits, RFC 8200 section 3.
const FLOW_LABEL: u32 = 0xf_ffff;
/// Congestion experienced, RFC 3168 section 5; then the mark of a transport that knows marks, `ECT(0)`, and its other form.
const CE: u16 = 3;
const ECT_0: u16 = 2;
const ECT_1: u16 = 1;
const ECN: u16 = 3;

/// [`step::STEERED`] by a tunnel, where the stage found one.
#[inline(always)]
pub const fn step(at: u32, tunnel: u32) -> u32 {
    if at == step::STEERED && tunnel != 0 { tunnel } else { at }
}

/// Whether a packet that the stage left here goes by a tunnel.
#[inline(always)]
pub const fn is_tunnel(at: u32) -> bool {
    at == step::TUNNEL_V4 || at == step::TUNNEL_V6
}

/// Bytes of the outer header that a packet gets.
#[inline(always)]
pub const fn overhead(at: u32) -> u32 {
    match at {
        step::TUNNEL_V4 => V4_BYTES,
        step::TUNNEL_V6 => V6_BYTES,
        _ => 0,
    }
}

/// Notes how a packet that goes by a tunnel is sent, for [`encapsulate`] and [`crate::answer::too_large`].
#[inline(always)]
pub fn note(at: u32, sent_to: &Neighbour, steer: &mut Steer) {
    if is_tunnel(at) {
        steer.sent_to = Reach::Up(*sent_to).encode();
        steer.mtu = u32::from(sent_to.mtu).saturating_sub(overhead(at));
    }
}

/// Sends a packet as the verdict says: by its tunnel, or as it is. `None`: the frame has no room.
pub fn send<I: Image + ?Sized, P: PacketMut + ?Sized>(
    image: &I,
    packet: &mut P,
    neighbour: &Neighbour,
    steer: &Steer,
) -> Option<()> {
    if steer.tunnel == 0 { crate::packet::forward(packet, neighbour) } else { encapsulate(image, packet, steer) }
}

/// Puts the packet into one from the node to its backend, and makes the frame leave as [`note`] has noted. `None` before the first
/// write where the frame has no room or the lengths do not fit.
#[inline(always)]
pub fn encapsulate<I: Image + ?Sized, P: PacketMut + ?Sized>(image: &I, packet: &mut P, steer: &Steer) -> Option<()> {
    let Reach::Up(neighbour) = Reach::decode(steer.sent_to) else { return None };
    let link = link(packet).ok()?;
    let l3 = ETHERNET_BYTES + link.tag_bytes;
    let first = packet.be16(l3)?;
    let (class, inner_bytes, protocol) = if link.ethertype == ETHERTYPE_IPV4 {
        (first & 0xff, u32::from(packet.be16(l3 + 2)?), IP_IN_IP)
    } else {
        (first >> 4 & 0xff, V6_BYTES + u32::from(packet.be16(l3 + 4)?), IPV6_IN_IP)
    };
    if is_v4(steer.address) {
        let bytes = u16::try_from(inner_bytes + V4_BYTES).ok()?;
        let at = packet.push_header(&link, neighbour.tags, V4_BYTES, ETHERTYPE_IPV4)?;
        renew_ttl(packet, at + V4_BYTES, link.ethertype)?;
        let (from, to) = (source(image, 0)?[1] as u32, steer.address[1] as u32);
        write_v4(packet, at, class, bytes, protocol, from, to)?;
    } else {
        let bytes = u16::try_from(inner_bytes).ok()?;
        let at = packet.push_header(&link, neighbour.tags, V6_BYTES, ETHERTYPE_IPV6)?;
        renew_ttl(packet, at + V6_BYTES, link.ethertype)?;
        packet.set_be32(at, 6 << 28 | u32::from(class) << 20 | flow_label(image, steer)?)?;
        packet.set_be16(at + 4, bytes)?;
        packet.set_be16(at + 6, u16::from(protocol) << 8 | TTL)?;
        write_address(packet, at + 8, source(image, 1)?)?;
        write_address(packet, at + 24, steer.address)?;
    }
    packet.set_macs(neighbour.destination, neighbour.source)
}

/// The node's address of the outer header.
#[inline(always)]
fn source<I: Image + ?Sized>(image: &I, row: u32) -> Option<Address> {
    let at = image.head(Section::TunnelSources.at())?.wrapping_add(row * TUNNEL_SOURCE_BYTES);
    Some([image.u64(at)?, image.u64(at.wrapping_add(8))?])
}

/// The label of a flow: never 0, which says that there is none.
#[inline(always)]
fn flow_label<I: Image + ?Sized>(image: &I, steer: &Steer) -> Option<u32> {
    let (src, dst) = (plain(steer.source()), plain(steer.destination()));
    let flow = hash::Flow { src, dst, protocol: steer.protocol(), ports: steer.ports() };
    let label = hash::flow(&flow, image.head(AT_HASH_SEED)?) & FLOW_LABEL;
    Some(if label == 0 { FLOW_LABEL } else { label })
}

#[inline(always)]
fn write_v4<P: PacketMut + ?Sized>(
    packet: &mut P,
    at: u32,
    class: u16,
    bytes: u16,
    protocol: u8,
    from: u32,
    to: u32,
) -> Option<()> {
    let ttl = TTL << 8 | u16::from(protocol);
    let mut sum = Difference(0);
    for word in [V4_FIRST | class, bytes, DF, ttl] {
        sum.add32(word.into());
    }
    sum.add32(from);
    sum.add32(to);
    packet.set_be16(at, V4_FIRST | class)?;
    packet.set_be16(at + 2, bytes)?;
    packet.set_be16(at + 4, 0)?;
    packet.set_be16(at + 6, DF)?;
    packet.set_be16(at + 8, ttl)?;
    packet.set_be16(at + 10, !sum.folded())?;
    packet.set_be32(at + 12, from)?;
    packet.set_be32(at + 16, to)
}

#[inline(always)]
fn write_address<P: PacketMut + ?Sized>(packet: &mut P, at: u32, address: Address) -> Option<()> {
    packet.set_be32(at, (address[0] >> 32) as u32)?;
    packet.set_be32(at + 4, address[0] as u32)?;
    packet.set_be32(at + 8, (address[1] >> 32) as u32)?;
    packet.set_be32(at + 12, address[1] as u32)
}

/// What becomes of a packet that holds another one, and that [`crate::service::read`] has taken: [`step::UNSERVED`] where its
/// destination is not one that decapsulates, or why it goes no further; reads only. `headers`: the frame without its tags.
#[inline(always)]
pub fn judge<I: Image + ?Sized, P: Packet + ?Sized>(image: &I, headers: &P, steer: &mut Steer) -> u32 {
    let inner = inner(headers, steer);
    steer.address = inner.unwrap_or([0; 2]);
    let Some(matched) = matched(image, steer) else { return step::stays(Reason::BadImage) };
    if matched & decapsulation::ADDRESS == 0 {
        return step::UNSERVED;
    }
    if matched & decapsulation::FROM == 0 {
        return step::stays(Reason::DecapsulationRefused);
    }
    if inner.is_none() {
        return step::stays(Reason::DecapsulationMalformed);
    }
    let allowed = matched & decapsulation::TO != 0 && marks(headers, ETHERNET_BYTES, steer).is_some();
    step::stays(if allowed { Reason::Decapsulated } else { Reason::DecapsulationRefused })
}

/// Which of [`decapsulation`] some row holds of this packet; `steer.address` is its inner destination.
#[inline(always)]
fn matched<I: Image + ?Sized>(image: &I, steer: &Steer) -> Option<u64> {
    let rows = image.head(Section::Decapsulation.at())?;
    let count = image.head(Section::Decapsulation.at() + 4)?;
    let mut matched = 0;
    for row in 0..DECAPSULATION_ROWS_MAX {
        if row >= count {
            break;
        }
        let at = rows.wrapping_add(row * DECAPSULATION_BYTES);
        let what = image.u64(at.wrapping_add(DECAPSULATION_WHAT))?;
        let compared = match what {
            decapsulation::ADDRESS => steer.destination(),
            decapsulation::FROM => steer.source(),
            _ => steer.address,
        };
        let mask = at.wrapping_add(DECAPSULATION_MASK);
        let high = (compared[0] ^ image.u64(at)?) & image.u64(mask)?;
        let low = (compared[1] ^ image.u64(at.wrapping_add(8))?) & image.u64(mask.wrapping_add(8))?;
        if high | low == 0 {
            matched |= what;
        }
    }
    Some(matched)
}

/// Destination of the inner packet; `None`: it is none that could be sent on. IPv6 in IPv4 is not among what is decapsulated here.
#[inline(always)]
fn inner<P: Packet + ?Sized>(headers: &P, steer: &Steer) -> Option<Address> {
    const L3: u32 = ETHERNET_BYTES;
    let outer_is_v4 = is_v4(steer.source());
    // More-fragments flag or fragment offset; of IPv6, a fragment's header goes to its end.
    if outer_is_v4 && headers.be16(L3 + 6)? & 0x3fff != 0 {
        return None;
    }
    let outer_end = end(headers, L3, outer_is_v4)?;
    let at = L3 + steer.transport;
    let first = headers.be16(at)?;
    if steer.protocol() == IP_IN_IP {
        let header_bytes = u32::from(first >> 8 & 0x0f) * 4;
        let bytes = u32::from(headers.be16(at + 2)?);
        let (src, dst) = (headers.be32(at + 12)?, headers.be32(at + 16)?);
        let is_whole = first >> 12 == 4 && header_bytes >= V4_BYTES && bytes >= header_bytes && at + bytes <= outer_end;
        (is_whole && !stays_v4(src) && !stays_v4(dst)).then_some(mapped(4, [u64::from(dst) << 32, 0]))
    } else {
        let bytes = V6_BYTES + u32::from(headers.be16(at + 4)?);
        let src = [be64(headers, at + 8)?, be64(headers, at + 16)?];
        let dst = [be64(headers, at + 24)?, be64(headers, at + 32)?];
        let is_whole = first >> 12 == 6 && !outer_is_v4 && at + bytes <= outer_end;
        (is_whole && !stays_v6(src) && !stays_v6(dst)).then_some(dst)
    }
}

/// The congestion mark of an inner packet once its outer header is gone: RFC 6040, figure 4. `None`: the packet is dropped, since its
/// transport would not see that the network is congested. The outer IP header stands at `l3`.
#[inline(always)]
fn marks<P: Packet + ?Sized>(packet: &P, l3: u32, steer: &Steer) -> Option<u16> {
    let mark = |at: u32, is_v4: bool| Some(if is_v4 { packet.be16(at)? } else { packet.be16(at)? >> 4 } & ECN);
    let outer = mark(l3, is_v4(steer.source()))?;
    let inner = mark(l3 + steer.transport, steer.protocol() == IP_IN_IP)?;
    match (inner, outer) {
        (0, CE) => None,
        (_, CE) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

/// Takes the outer header off a packet that [`judge`] has called decapsulated. `None`: the frame must not go on as it is.
#[inline(always)]
pub fn decapsulate<P: PacketMut + ?Sized>(packet: &mut P, steer: &Steer) -> Option<()> {
    let link = link(packet).ok()?;
    let l3 = ETHERNET_BYTES + link.tag_bytes;
    let mark = marks(packet, l3, steer)?;
    let at = l3 + steer.transport;
    let first = packet.be16(at)?;
    if steer.protocol() == IP_IN_IP {
        let marked = first & !ECN | mark;
        let mut header = Difference(0);
        header.replace16(first, marked);
        let checksum = packet.be16(at + 10)?;
        packet.set_be16(at + 10, header.apply(checksum))?;
        packet.set_be16(at, marked)?;
        packet.pull_header(&link, steer.transport, ETHERTYPE_IPV4)
    } else {
        packet.set_be16(at, first & !(ECN << 4) | mark << 4)?;
        packet.pull_header(&link, steer.transport, ETHERTYPE_IPV6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::TCP;
    use crate::service::flow_key;

    /// A frame of an IPv4 packet in one of IPv4, with these marks, and its `Steer`.
    fn tunnelled(inner: u8, outer: u8) -> ([u8; 54], Steer) {
        let mut frame = [0; 54];
        frame[12..14].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
        frame[14..18].copy_from_slice(&[0x45, outer, 0, 40]);
        frame[34..38].copy_from_slice(&[0x45, inner, 0, 20]);
        let address = |last: u64| [0, 0xffff_0a00_0000 | last];
        let mut steer = Steer::NONE;
        steer.key = flow_key(address(1), address(2), IP_IN_IP, 0);
        steer.transport = 20;
        (frame, steer)
    }

    #[test]
    fn marks_go_inside_as_figure_4_of_rfc_6040_says() {
        // Rows: the inner mark 0, ECT(1), ECT(0), CE; columns: the outer one, in the same order.
        let figure: [[Option<u16>; 4]; 4] = [
            [Some(0), Some(0), Some(0), None],
            [Some(1), Some(1), Some(1), Some(3)],
            [Some(2), Some(1), Some(2), Some(3)],
            [Some(3), Some(3), Some(3), Some(3)],
        ];
        for (inner, row) in (0_u8..).zip(figure) {
            for (outer, expected) in (0_u8..).zip(row) {
                // DSCP of either header is none of it.
                let (frame, steer) = tunnelled(inner | 0x28, outer | 0xb8);
                assert_eq!(marks(frame.as_slice(), ETHERNET_BYTES, &steer), expected, "inner {inner}, outer {outer}");
            }
        }
    }

    #[test]
    fn only_what_is_steered_goes_by_a_tunnel() {
        assert_eq!(step(step::STEERED, 0), step::STEERED);
        assert_eq!(step(step::STEERED, step::TUNNEL_V6), step::TUNNEL_V6);
        for at in [step::UNSERVED, step::stays(Reason::NoBackendDrop)] {
            assert_eq!(step(at, step::TUNNEL_V4), at);
            assert_eq!(overhead(at), 0);
        }
        assert_eq!((overhead(step::TUNNEL_V4), overhead(step::TUNNEL_V6)), (20, 40));
    }

    #[test]
    fn a_port_without_a_limit_has_none_with_a_tunnel() {
        let mut steer = Steer::NONE;
        for (mtu, left) in [(0, 0), (1500, 1460), (20, 0)] {
            note(step::TUNNEL_V6, &Neighbour { mtu, ..Neighbour::default() }, &mut steer);
            assert_eq!(steer.mtu, left);
        }
    }

    #[test]
    fn a_frame_without_room_stays_as_it_came() {
        let mut frame = [0; 54];
        frame[12..14].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
        frame[14..18].copy_from_slice(&[0x45, 0, 0, 40]);
        let before = frame;
        let mut steer = Steer::NONE;
        steer.key = flow_key([0, 1], [0, 2], TCP, 0);
        steer.address = [0, 0xffff_0a00_0001];
        note(step::TUNNEL_V4, &Neighbour::default(), &mut steer);
        // A slice cannot grow.
        assert_eq!(encapsulate([0_u8; 1024].as_slice(), frame.as_mut_slice(), &steer), None);
        assert_eq!(frame, before);
        // Nor can a length beyond 16 bits be written.
        frame[16..18].copy_from_slice(&0xfff0_u16.to_be_bytes());
        assert_eq!(encapsulate([0_u8; 1024].as_slice(), frame.as_mut_slice(), &steer), None);
    }
}
