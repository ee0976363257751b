//! Any frame against the good image: parse, decide, forward.

use fib::packet::Tags;
use fib::{Decision, Image, Ingress, Neighbour, Node, Packet as _, Reach, ReachWords, Reason, Verdict};
use wayleave::compile::view::{Match, RouteAction};
use wayleave::policy::OnAllDown;
use wayleave::trace::Frame;

use super::headers::{Headers, headers, link, words};
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
    let link = link(&frame);
    if let (Ok(link), true) = (link, control & TO_THE_PORT != 0)
        && let Some(port) = world.port(link.vids)
    {
        frame[..6].copy_from_slice(&port);
    }
    if let (Ok(link), true) = (link, control & CHECKSUM != 0) {
        put_checksum(&mut frame[link.bytes..]);
    }
    // In the order of a router: the link, the port, the packet, and whether the frame is for the port.
    let read = link.and_then(|link| match world.port(link.vids) {
        None => Err(Reason::Vlan),
        Some(port) => headers(&frame, &link).map(|read| (link, read, frame[..6] == port)),
    });
    if let Ok((_, read, _)) = &read {
        let parsed = fib::packet::link(&frame[..])
            .and_then(|link| fib::packet::parse(&frame[..].after(link.tag_bytes), link.ethertype));
        assert_eq!(parsed.map(|parsed| of_product(&parsed)), Ok(of_oracle(read)), "parsed otherwise");
    }

    let decision = fib::decide(world.view.bytes(), &frame[..], world);
    let expected = match &read {
        Err(reason) => *reason,
        Ok((_, _, false)) => Reason::LinkNotOurs,
        Ok((_, read, true)) => expected(world, &frame, read, &decision),
    };
    assert_eq!(decision.reason(), expected, "decided otherwise: {decision:?}");

    if let (Verdict::Forward, Some(neighbour), Ok((link, read, _))) =
        (decision.reason().verdict(), decision.neighbour(), read)
    {
        let mut sent = Frame::new(&frame);
        let done = fib::packet::forward(&mut sent, &neighbour);
        assert_eq!(done, Some(()), "a packet that was parsed can be rewritten");
        check_forwarded(&frame[link.bytes - 2..], sent.bytes(), &neighbour, read.dst.is_ipv4());
    }
}

/// Writes the right checksum into what may be an IPv4 header.
fn put_checksum(packet: &mut [u8]) {
    let Some(header_bytes) = packet.first().map(|first| usize::from(first % 16) * 4) else { return };
    if let Some(header) = packet.get_mut(..header_bytes)
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

/// The world, when no next hop is down.
struct AllUp<'w>(&'w World);

impl Node for AllUp<'_> {
    fn ingress(&self, tags: Tags) -> Option<Ingress> {
        self.0.ingress(tags)
    }
    fn reach(&self, _id: u32) -> ReachWords {
        Reach::Unknown.encode()
    }
    fn ask<I: Image + ?Sized>(&self, _image: &I, _at: u32, _port: u32) -> Option<Neighbour> {
        None
    }
}

/// The reason by the route tables, which the packet path does not read. Of a group it takes the member that was chosen,
/// if it is one that may be.
fn expected(world: &World, frame: &[u8], read: &Headers, decision: &Decision) -> Reason {
    let view = &world.view;
    let group = match view.lookup(read.dst) {
        Match::None => return Reason::NoRoute,
        Match::Local => return Reason::Local,
        Match::Route(route) => match route.action {
            RouteAction::Drop => return Reason::RouteDrop,
            RouteAction::Pass => return Reason::RoutePass,
            RouteAction::Forward { group } => group,
        },
    };
    let reach = |id: u32| Reach::decode(world.reach(id));
    if view.members(group).all(|member| reach(member.next_hop.id) == Reach::Down) {
        assert_eq!(decision.next_hop, None, "a next hop that is down was chosen");
        return match view.on_all_down(group) {
            OnAllDown::Pass => Reason::AllDown,
            OnAllDown::Drop => Reason::AllDownDrop,
        };
    }
    let chosen = decision.next_hop.unwrap_or_else(|| panic!("no next hop was chosen: {decision:?}"));
    assert!(view.has_member(group, chosen), "next hop {chosen} is no member of group {group}");
    let hop = view.next_hop(chosen);
    assert_eq!(hop.via.is_ipv4(), read.dst.is_ipv4());
    let undisturbed = fib::decide(view.bytes(), frame, &AllUp(world));
    if reach(undisturbed.met.next_hop()) != Reach::Down {
        assert_eq!(decision.next_hop, undisturbed.next_hop, "a flow has left a member that is not down");
    }
    match reach(hop.id) {
        Reach::Down => panic!("{} is down and was chosen", hop.name),
        _ if read.ttl <= 1 => Reason::TtlExpired,
        Reach::Unknown => Reason::NoNeighbour,
        Reach::Up(neighbour) if read.ip_bytes > usize::from(neighbour.mtu) => Reason::OverMtu,
        Reach::Up(_) => Reason::Forwarded,
    }
}

/// `before` is what came, from the ethertype on; `after` the whole frame that leaves.
fn check_forwarded(before: &[u8], after: &[u8], neighbour: &Neighbour, is_ipv4: bool) {
    assert_eq!(after[..6], neighbour.destination.to_le_bytes()[..6], "destination MAC");
    assert_eq!(after[6..12], neighbour.source.to_le_bytes()[..6], "source MAC");
    let tags = [neighbour.tags.outer, neighbour.tags.inner].into_iter().filter(|tag| *tag != 0);
    let tags: Vec<u8> = tags.flat_map(u32::to_be_bytes).collect();
    let after = after[12..].strip_prefix(&tags[..]).unwrap_or_else(|| panic!("not the tags {tags:02x?}: {after:02x?}"));
    assert_eq!(after.len(), before.len());
    let ttl_at = if is_ipv4 { 10 } else { 9 };
    assert_eq!(after[ttl_at], before[ttl_at] - 1, "TTL");
    let changes = |at: usize| at == ttl_at || (is_ipv4 && (12..14).contains(&at));
    let other = (0..before.len()).find(|&at| !changes(at) && before[at] != after[at]);
    assert_eq!(other, None, "a byte changed that must not");
    if is_ipv4 {
        let header = 2..2 + usize::from(before[2] % 16) * 4;
        let sums = [before, after].map(|frame| internet_checksum(&[&frame[header.clone()]]));
        // 0 for a right checksum; a wrong one stays wrong by as much, and in one's complement 0xffff is 0.
        assert_eq!(sums[0] % 0xffff, sums[1] % 0xffff, "checksum");
        assert!(sums[0] != 0 || sums[1] == 0, "a right checksum stays right: {sums:04x?}");
    }
}
