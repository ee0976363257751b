//! Any frame against the good image: parse, decide, forward.

use fib::{Decision, Neighbour, Packet as _, Reach, Reason, Verdict};
use wayleave::compile::view::{Match, RouteAction};

use super::headers::{Headers, headers, words};
use super::world::{WORLD, World};
use crate::packet::internet_checksum;

/// Bits of the first byte: what is put right in the frame that follows, so that not every path needs six lucky bytes.
const TO_THE_PORT: u8 = 1;
const CHECKSUM: u8 = 2;

/// The input that stands for a frame.
pub(super) fn frame_seed(frame: &[u8]) -> Vec<u8> {
    [&[TO_THE_PORT], frame].concat()
}

/// The verdict is that of a slow reading of frame and routes; only a forwarded frame changes, and only as it must.
pub fn packet(bytes: &[u8]) {
    let world = &*WORLD;
    let Some((&control, frame)) = bytes.split_first() else { return };
    let mut frame = frame.to_vec();
    if control & TO_THE_PORT != 0 && frame.len() >= 6 {
        frame[..6].copy_from_slice(&world.ingress);
    }
    if control & CHECKSUM != 0 {
        put_checksum(&mut frame);
    }

    let read = headers(&frame);
    // No port of the node is a VLAN: a frame with a tag passes before its packet is read.
    let parsed = fib::packet::link(&frame[..]).and_then(|link| match link.tags.vids() {
        0 => fib::packet::parse(&frame[..].after(link.tag_bytes), link.ethertype),
        _ => Err(Reason::Vlan),
    });
    assert_eq!(parsed.map(|parsed| of_product(&parsed)), read.map(|read| of_oracle(&read)), "parsed otherwise");

    let decision = fib::decide(world.view.bytes(), &frame[..], world);
    let expected = expected(world, &frame, read, &decision);
    assert_eq!(decision.reason, expected, "decided otherwise: {decision:?}");

    if let (Verdict::Forward, Some(neighbour), Ok(read)) = (decision.reason.verdict(), decision.neighbour, read) {
        let mut sent = frame.clone();
        let done = fib::packet::forward(&mut sent[..], &neighbour);
        assert_eq!(done, Some(()), "a packet that was parsed can be rewritten");
        check_forwarded(&frame, &sent, &neighbour, read.dst.is_ipv4());
    }
}

/// Writes the right checksum into what may be an IPv4 header.
fn put_checksum(frame: &mut [u8]) {
    let Some(header_bytes) = frame.get(14).map(|first| usize::from(first % 16) * 4) else { return };
    if let Some(header) = frame.get_mut(14..14 + header_bytes)
        && header_bytes >= 20
    {
        header[10..12].fill(0);
        let checksum = internet_checksum(&[header]);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
}

type Fields = ([u64; 2], [u64; 2], u8, u8, u32, usize);

fn of_product(parsed: &fib::packet::Parsed) -> Fields {
    let flow = parsed.flow;
    (flow.src, flow.dst, parsed.ttl, flow.protocol, flow.ports, parsed.ip_bytes as usize)
}

fn of_oracle(read: &Headers) -> Fields {
    let ports = u32::from(read.ports[0]) << 16 | u32::from(read.ports[1]);
    (words(read.src), words(read.dst), read.ttl, read.protocol, ports, read.ip_bytes)
}

/// The reason by the route tables, which the packet path does not read. Of a group it takes the member that was chosen,
/// if it is one.
fn expected(world: &World, frame: &[u8], read: Result<Headers, Reason>, decision: &Decision) -> Reason {
    let view = &world.view;
    let read = match read {
        Err(reason) => return reason,
        Ok(_) if frame[..6] != world.ingress => return Reason::LinkNotOurs,
        Ok(read) => read,
    };
    let group = match view.lookup(read.dst) {
        Match::None => return Reason::NoRoute,
        Match::Local => return Reason::Local,
        Match::Route(route) => match route.action {
            RouteAction::Drop => return Reason::RouteDrop,
            RouteAction::Pass => return Reason::RoutePass,
            RouteAction::Forward { group } => group,
        },
    };
    let chosen = decision.next_hop.unwrap_or_else(|| panic!("no next hop was chosen: {decision:?}"));
    assert!(view.has_member(group, chosen), "next hop {chosen} is no member of group {group}");
    let hop = view.next_hop(chosen);
    assert_eq!(hop.via.is_ipv4(), read.dst.is_ipv4());
    let neighbour = Reach::decode(fib::Node::reach(world, hop.id)).up();
    match neighbour {
        _ if read.ttl <= 1 => Reason::TtlExpired,
        None => Reason::NoNeighbour,
        Some(neighbour) if read.ip_bytes > usize::from(neighbour.mtu) => Reason::OverMtu,
        Some(_) => Reason::Forwarded,
    }
}

fn check_forwarded(before: &[u8], after: &[u8], neighbour: &Neighbour, is_ipv4: bool) {
    assert_eq!(after.len(), before.len());
    assert_eq!(after[..6], neighbour.destination.to_le_bytes()[..6], "destination MAC");
    assert_eq!(after[6..12], neighbour.source.to_le_bytes()[..6], "source MAC");
    let ttl_at = if is_ipv4 { 22 } else { 21 };
    assert_eq!(after[ttl_at], before[ttl_at] - 1, "TTL");
    let changes = |at: usize| at < 12 || at == ttl_at || (is_ipv4 && (24..26).contains(&at));
    let other = (0..before.len()).find(|&at| !changes(at) && before[at] != after[at]);
    assert_eq!(other, None, "a byte changed that must not");
    if is_ipv4 {
        let header = 14..14 + usize::from(before[14] % 16) * 4;
        let sums = [before, after].map(|frame| internet_checksum(&[&frame[header.clone()]]));
        // 0 for a right checksum; a wrong one stays wrong by as much, and in one's complement 0xffff is 0.
        assert_eq!(sums[0] % 0xffff, sums[1] % 0xffff, "checksum");
        assert!(sums[0] != 0 || sums[1] == 0, "a right checksum stays right: {sums:04x?}");
    }
}
