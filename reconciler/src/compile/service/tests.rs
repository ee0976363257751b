//! The policy scanned naively and the packet path agree on every packet's service and backend.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

use std::cell::RefCell;
use std::net::Ipv4Addr;

use fib::service::{FlowKey, FlowWords, HalfOpenWords, Steer, Why, flow_key, read, stage, step, tcp};
use fib::{Image, Ingress, Neighbour, Node, ReachWords, hash};
use proptest::prelude::*;

use super::*;
use crate::compile::{HASH_SEED, LiveIds, NodeFacts, View, compile};
use crate::policy::{Backend, FlowTimeouts, HealthCheck, HealthChecks, MinHealthy, Origin, Protocol, Selector, Span};

/// A node without a flow table.
struct Nobody;

/// The same, with backends that are down.
struct Down(std::collections::BTreeSet<u32>);

impl Node for Down {
    fn ingress(&self, _tags: fib::packet::Tags) -> Option<Ingress> {
        None
    }
    fn reach(&self, _id: u32) -> ReachWords {
        [0; 4]
    }
    fn ask<I: Image + ?Sized>(&self, _image: &I, _at: u32, _port: u32) -> Option<Neighbour> {
        None
    }
    fn is_down(&self, backend: u32) -> bool {
        self.0.contains(&backend)
    }
}

impl Node for Nobody {
    fn ingress(&self, _tags: fib::packet::Tags) -> Option<Ingress> {
        None
    }
    fn reach(&self, _id: u32) -> ReachWords {
        [0; 4]
    }
    fn ask<I: Image + ?Sized>(&self, _image: &I, _at: u32, _port: u32) -> Option<Neighbour> {
        None
    }
}

pub(in crate::compile) fn service(number: u8, vip: u8, ports: Vec<ServicePort>, weights: &[u16]) -> ServicePolicy {
    let origin = Origin { file: 0, line: 1 };
    let backend = |i: usize, weight: u16| Backend {
        address: Ipv4Addr::new(10, 1, number, u8::try_from(i).unwrap()).into(),
        port: None,
        weight,
        origin,
    };
    ServicePolicy {
        name: format!("service-{number:03}"),
        owner: None,
        nodes: Selector::default(),
        origin,
        vip: Ipv4Addr::new(198, 51, 100, vip).into(),
        ports,
        forwarding: Forwarding::Nat,
        forwarding_span: Span::line(1),
        backends: weights.iter().enumerate().map(|(i, weight)| backend(i + 1, *weight)).collect(),
        affinity: None,
        on_no_backend: OnNoBackend::Drop,
        echo: Echo::Pass,
        timeouts: FlowTimeouts { established_s: 900, closing_s: 60, udp_s: 120 },
        health: None,
        health_text: String::new(),
        health_line: 0,
    }
}

fn policy(services: Vec<ServicePolicy>) -> Policy {
    Policy {
        revision: "dir@sha256:test".to_owned(),
        files: vec!["a.yaml".to_owned()],
        route_policies: Vec::new(),
        filter_policies: Vec::new(),
        service_policies: services,
    }
}

/// Where the stage ends for a packet to this address and port.
fn stage_of(view: &View<'_>, dst: [u8; 4], protocol: Protocol, sport: u16, dport: u16) -> (u32, Steer) {
    staged(view, &Nobody, dst, protocol, (sport, dport))
}

fn staged(
    view: &View<'_>,
    node: &impl Node,
    dst: [u8; 4],
    protocol: Protocol,
    (sport, dport): (u16, u16),
) -> (u32, Steer) {
    let mut steer = Steer::NONE;
    let src = address(Ipv4Addr::new(198, 18, 0, 1).into());
    let dst = address(Ipv4Addr::from(dst).into());
    steer.key = flow_key(src, dst, protocol.number(), u32::from(sport) << 16 | u32::from(dport));
    let at = stage(view.bytes(), node, &mut steer);
    (at, steer)
}

/// A service with checks and backends of these weights, and the ids of these.
fn checked(weights: &[u16]) -> (crate::compile::Image, Vec<u32>) {
    let ports = vec![ServicePort { protocol: Protocol::Tcp, first: 443, last: 443, target: None }];
    let checks = HealthChecks {
        check: HealthCheck::Tcp { port: None },
        interval: std::time::Duration::from_secs(2),
        timeout: std::time::Duration::from_secs(1),
        rise: 2,
        fall: 2,
        min_healthy: MinHealthy::Count(0),
        min_share: None,
    };
    let one = ServicePolicy { health_text: checks.text(), health: Some(checks), ..service(1, 10, ports, weights) };
    let image = compile(&policy(vec![one]), &NodeFacts::default(), &LiveIds::default()).unwrap();
    let view = image.view().unwrap();
    let row = view.services().next().unwrap();
    let ids = view.backends(&row).map(|backend| backend.id).collect();
    (image, ids)
}

#[test]
fn only_flows_of_a_backend_that_is_down_move_and_they_are_shared_out_by_weight() {
    let (image, ids) = checked(&[1, 1, 2, 1, 4]);
    let view = image.view().unwrap();
    let down = Down([ids[1], ids[4]].into());
    let mut stand_ins = BTreeMap::<u32, u32>::new();
    for sport in 1..=60_000 {
        let (_, before) = staged(&view, &Nobody, [198, 51, 100, 10], Protocol::Tcp, (sport, 443));
        let (at, after) = staged(&view, &down, [198, 51, 100, 10], Protocol::Tcp, (sport, 443));
        assert_eq!(at, step::STEERED);
        let (was, is) = (before.chosen().backend(), after.chosen().backend());
        if down.is_down(was) {
            assert_eq!((after.why(), after.passed_over), (Some(Why::StandIn), was));
            assert!(!down.is_down(is));
            *stand_ins.entry(is).or_default() += 1;
        } else {
            assert_eq!((is, after.why(), after.passed_over), (was, Some(Why::Slot), 0));
        }
    }
    let all: u32 = stand_ins.values().sum();
    // Five ninths of the flows moved, to weights of 1, 2 and 1.
    assert!((32_000..34_700).contains(&all), "{all}");
    for (id, share) in [(ids[0], 4), (ids[2], 2), (ids[3], 4)] {
        let expected = all / share;
        assert!(stand_ins[&id].abs_diff(expected) < expected / 20, "{stand_ins:?}");
    }
}

/// A node with backends that pass on so many of 256 new flows, by id.
struct Slow(BTreeMap<u32, u32>);

impl Node for Slow {
    fn ingress(&self, _tags: fib::packet::Tags) -> Option<Ingress> {
        None
    }
    fn reach(&self, _id: u32) -> ReachWords {
        [0; 4]
    }
    fn ask<I: Image + ?Sized>(&self, _image: &I, _at: u32, _port: u32) -> Option<Neighbour> {
        None
    }
    fn passes_on(&self, backend: u32, drawn: u32) -> bool {
        let away = self.0.get(&backend).copied().unwrap_or(0);
        fib::service::passes_on(away << fib::service::BACKEND_AWAY_AT, drawn)
    }
}

#[test]
fn a_slow_backend_keeps_its_share_of_new_flows_and_only_what_it_passes_on_moves() {
    let (image, ids) = checked(&[1, 1, 2]);
    let view = image.view().unwrap();
    // Thinned more and more: a flow that has moved never comes back.
    let mut moved = std::collections::BTreeSet::new();
    for away in [64u32, 128, 192] {
        let slow = Slow([(ids[1], away)].into());
        let (mut had, mut kept, mut taken) = (0, 0, BTreeMap::<u32, u32>::new());
        for sport in 1..=60_000 {
            let (_, before) = staged(&view, &Nobody, [198, 51, 100, 10], Protocol::Tcp, (sport, 443));
            let (at, after) = staged(&view, &slow, [198, 51, 100, 10], Protocol::Tcp, (sport, 443));
            assert_eq!(at, step::STEERED);
            let (was, is) = (before.chosen().backend(), after.chosen().backend());
            if was != ids[1] {
                assert_eq!((is, after.why(), after.passed_over), (was, Some(Why::Slot), 0));
                continue;
            }
            had += 1;
            if after.why() == Some(Why::Slot) {
                assert!(is == was && !moved.contains(&sport));
                kept += 1;
            } else {
                assert_eq!((after.why(), after.passed_over), (Some(Why::PassedOn), was));
                moved.insert(sport);
                // A further draw may fall on it again, as one of those that it keeps.
                *taken.entry(is).or_default() += 1;
            }
        }
        let expected = had * (256 - away) / 256;
        assert!(u32::abs_diff(kept, expected) < had / 50, "{kept} of {had} with {away} of 256 passed on");
        // What is passed on is shared out by weight, 1 to 2.
        let [small, large] = [ids[0], ids[2]].map(|id| taken.get(&id).copied().unwrap_or(0));
        assert!((small * 2).abs_diff(large) < large / 5, "{taken:?}");
    }
}

#[test]
fn slow_backends_alone_never_leave_a_flow_without_one() {
    let (image, ids) = checked(&[1, 1]);
    let view = image.view().unwrap();
    let slow = Slow(ids.iter().map(|id| (*id, 255)).collect());
    for sport in 1..2_000 {
        let (at, _) = staged(&view, &slow, [198, 51, 100, 10], Protocol::Tcp, (sport, 443));
        assert_eq!(at, step::STEERED, "{sport}");
    }
}

#[test]
fn the_only_one_that_is_up_of_as_many_as_are_tried_is_always_found() {
    let (image, ids) = checked(&[1; fib::service::STAND_INS_MAX as usize]);
    let view = image.view().unwrap();
    for up in [0, 1, 31, 62, 63] {
        let down = Down(ids.iter().enumerate().filter(|(at, _)| *at != up).map(|(_, id)| *id).collect());
        for sport in 1..500 {
            let (_, steer) = staged(&view, &down, [198, 51, 100, 10], Protocol::Tcp, (sport, 443));
            assert_eq!(steer.chosen().backend(), ids[up]);
        }
    }
    let down = Down(ids.iter().copied().collect());
    let (at, _) = staged(&view, &down, [198, 51, 100, 10], Protocol::Tcp, (1, 443));
    assert_eq!(at, step::stays(fib::Reason::NoBackendDrop));
}

/// Disjoint ranges of ports of a vip, each with a service.
fn ranges() -> impl Strategy<Value = Vec<(u8, Protocol, u16, u16)>> {
    let one = (0u8..6, prop::bool::ANY, 1u16..60_000, 0u16..300);
    prop::collection::vec(one, 1..60).prop_map(|all| {
        let mut kept: Vec<(u8, Protocol, u16, u16)> = Vec::new();
        for (vip, tcp, first, more) in all {
            let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
            let last = first + more;
            if kept.iter().all(|k| (k.0, k.1) != (vip, protocol) || k.3 < first || last < k.2) {
                kept.push((vip, protocol, first, last));
            }
        }
        kept
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_port_finds_its_service_and_no_other(ranges in ranges(), probes in prop::collection::vec((0u8..7, any::<u16>()), 40)) {
        let services: Vec<ServicePolicy> = ranges
            .iter()
            .zip(0u8..)
            .map(|((vip, protocol, first, last), number)| {
                let ports = vec![ServicePort { protocol: *protocol, first: *first, last: *last, target: None }];
                service(number, *vip, ports, &[1])
            })
            .collect();
        let image = compile(&policy(services), &NodeFacts::default(), &LiveIds::default()).unwrap();
        let view = image.view().unwrap();
        let edges = ranges.iter().flat_map(|r| [(r.0, r.2 - 1), (r.0, r.2), (r.0, r.3), (r.0, r.3 + 1)]);
        for (vip, port) in probes.into_iter().chain(edges).filter(|(_, port)| *port > 0) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let naive = ranges
                    .iter()
                    .position(|r| (r.0, r.1) == (vip, protocol) && (r.2..=r.3).contains(&port))
                    .map(|number| format!("service-{number:03}"));
                let (at, steer) = stage_of(&view, [198, 51, 100, vip], protocol, 1000, port);
                let found = view.services().find(|s| s.id == steer.chosen().service()).map(|s| s.name.to_owned());
                prop_assert_eq!(&found, &naive, "{}:{}", vip, port);
                prop_assert_eq!(at, if naive.is_some() { step::STEERED } else { step::UNSERVED });
            }
        }
    }
}

#[test]
fn a_flow_falls_on_the_slot_of_its_hash_and_shares_are_the_weights() {
    let ports = vec![ServicePort { protocol: Protocol::Tcp, first: 443, last: 443, target: Some(8443) }];
    let image =
        compile(&policy(vec![service(1, 10, ports, &[3, 0, 1])]), &NodeFacts::default(), &LiveIds::default()).unwrap();
    let view = image.view().unwrap();
    let service = view.services().next().unwrap();
    let slots: Vec<u16> = view.service_slots(&service).collect();
    assert_eq!(slots.len(), 65_537);
    let backends: Vec<_> = view.backends(&service).collect();
    let mut counts = [0u32; 3];
    for sport in 1..=u16::MAX {
        let (at, steer) = stage_of(&view, [198, 51, 100, 10], Protocol::Tcp, sport, 443);
        assert_eq!((at, steer.port, steer.why()), (step::STEERED, 8443, Some(Why::Slot)));
        let flow = hash::Flow {
            src: [0xc612_0001 << 32, 0],
            dst: [0xc633_640a << 32, 0],
            protocol: 6,
            ports: u32::from(sport) << 16 | 0x1bb,
        };
        let slot = (u64::from(hash::flow(&flow, HASH_SEED)) * slots.len() as u64) >> 32;
        let place = slots[usize::try_from(slot).unwrap()];
        assert_eq!(steer.chosen().backend(), backends[usize::from(place)].id);
        counts[usize::from(place)] += 1;
    }
    assert_eq!(counts[1], 0, "drained");
    assert!((48_600..=49_700).contains(&counts[0]), "three quarters of 65535: {counts:?}");
}

#[test]
fn backends_keep_their_ids_while_a_generation_knows_them() {
    let ports = || vec![ServicePort { protocol: Protocol::Tcp, first: 443, last: 443, target: None }];
    let of =
        |services: Vec<ServicePolicy>, live: &LiveIds| compile(&policy(services), &NodeFacts::default(), live).unwrap();
    let first = of(vec![service(1, 10, ports(), &[1, 1, 1])], &LiveIds::default());
    let live = LiveIds::from_views([&first.view().unwrap()]);
    // Another weight is the same backend; one that goes leaves its id alone.
    let mut fewer = service(1, 10, ports(), &[1, 7, 1]);
    fewer.backends.remove(0);
    let second = of(vec![service(0, 11, ports(), &[1]), fewer], &live);
    let ids = |image: &crate::compile::Image| -> BTreeMap<String, u32> {
        let view = image.view().unwrap();
        view.services().flat_map(|s| view.backends(&s).map(|b| (b.name(), b.id)).collect::<Vec<_>>()).collect()
    };
    let (before, after) = (ids(&first), ids(&second));
    assert_eq!((before["10.1.1.2"], before["10.1.1.3"]), (after["10.1.1.2"], after["10.1.1.3"]));
    assert!(before.values().all(|id| *id != after["10.1.0.1"]), "a new one gets no id of another");
}

/// What the largest expected source takes; the time is printed, and bounded loosely: machines differ.
#[test]
fn ten_thousand_services_of_ten_backends_compile_and_fit() {
    let services: Vec<ServicePolicy> = (0..10_000u32)
        .map(|number| {
            let [_, _, high, low] = number.to_be_bytes();
            let ports = vec![ServicePort { protocol: Protocol::Tcp, first: 443, last: 443, target: None }];
            let mut one = service(0, 0, ports, &[1; 10]);
            one.name = format!("service-{number:05}");
            one.vip = Ipv4Addr::new(100, 64, high, low).into();
            for (i, backend) in (0u8..).zip(&mut one.backends) {
                backend.address = Ipv4Addr::new(10 + i, 1, high, low).into();
            }
            one
        })
        .collect();
    let policy = policy(services);
    let started = std::time::Instant::now();
    let image = compile(&policy, &NodeFacts::default(), &LiveIds::default()).unwrap();
    let took = started.elapsed();
    println!("{} bytes in {} ms", image.bytes().len(), took.as_millis());
    assert!(image.bytes().len() < 64 << 20, "{}", image.bytes().len());
    assert!(took < std::time::Duration::from_secs(10), "{took:?}");
    let view = image.view().unwrap();
    let (at, steer) = stage_of(&view, [100, 64, 0x12, 0x34], Protocol::Tcp, 999, 443);
    assert_eq!(at, step::STEERED);
    assert_eq!(view.services().find(|s| s.id == steer.chosen().service()).unwrap().name, "service-04660");
}

/// A frame and its checksums, translated there and back again.
#[test]
fn translation_there_and_back_is_none() {
    let frame: Vec<u8> = [
        &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0][..],
        &[0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0x12, 0x34, 198, 18, 0, 1, 198, 51, 100, 10],
        &[0x9c, 0x40, 1, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0xab, 0xcd, 0, 0],
    ]
    .concat();
    let mut steer = Steer::NONE;
    assert_eq!(read(&frame[..], 0x0800, &mut steer), step::TO_SERVICE);
    steer.translated = fib::service::translated::DESTINATION;
    steer.address = address(Ipv4Addr::new(10, 1, 0, 11).into());
    steer.port = 8099;
    let mut there = frame.clone();
    fib::service::translate(&mut there[..], &mut steer).unwrap();
    assert_eq!((&there[30..34], &there[36..38]), (&[10, 1, 0, 11][..], &8099u16.to_be_bytes()[..]));
    assert_eq!((&there[..24], &there[38..50]), (&frame[..24], &frame[38..50]));
    steer.address = address(Ipv4Addr::new(198, 51, 100, 10).into());
    steer.port = 443;
    fib::service::translate(&mut there[..], &mut steer).unwrap();
    assert_eq!(there, frame);
}

/// A node whose tables of flows hold whatever they are told.
#[derive(Default)]
struct Remembering {
    established: RefCell<BTreeMap<FlowKey, FlowWords>>,
    half_open: RefCell<BTreeMap<FlowKey, HalfOpenWords>>,
}

impl Node for Remembering {
    fn ingress(&self, _tags: fib::packet::Tags) -> Option<Ingress> {
        None
    }
    fn reach(&self, _id: u32) -> ReachWords {
        [0; 4]
    }
    fn ask<I: Image + ?Sized>(&self, _image: &I, _at: u32, _port: u32) -> Option<Neighbour> {
        None
    }
    fn flow(&self, key: &FlowKey) -> FlowWords {
        self.established.borrow().get(key).copied().unwrap_or_default()
    }
    fn keep(&self, key: &FlowKey, entry: &FlowWords) {
        self.established.borrow_mut().insert(*key, *entry);
    }
    fn forget(&self, key: &FlowKey) {
        self.established.borrow_mut().remove(key);
    }
    fn half_open(&self, key: &FlowKey) -> HalfOpenWords {
        self.half_open.borrow().get(key).copied().unwrap_or_default()
    }
    fn keep_half_open(&self, key: &FlowKey, entry: &HalfOpenWords) {
        self.half_open.borrow_mut().insert(*key, *entry);
    }
}

/// A packet of the one flow of [`becomes`]: of the client or of its backend, of TCP where it has flags.
#[derive(Clone, Copy)]
enum Said {
    Client(u32, u32),
    Backend(u32, u32),
    ClientDatagram,
    BackendDatagram,
}
use Said::{Backend as FromBackend, BackendDatagram, Client, ClientDatagram};

const SYN: u32 = tcp::SYN;
const ACK: u32 = tcp::ACK;
const FIN: u32 = tcp::FIN;
const RST: u32 = tcp::RST;

/// The frame, with a number in both places of the header: flags say which of them counts.
fn frame(said: Said) -> Vec<u8> {
    const CLIENT: ([u8; 4], u16) = ([198, 18, 0, 1], 40_000);
    let (from, to, tcp) = match said {
        Client(flags, number) => (CLIENT, ([198, 51, 100, 10], 443), Some((flags, number))),
        ClientDatagram => (CLIENT, ([198, 51, 100, 10], 443), None),
        FromBackend(flags, number) => (([10, 1, 1, 1], 443), CLIENT, Some((flags, number))),
        BackendDatagram => (([10, 1, 1, 1], 443), CLIENT, None),
    };
    let (protocol, bytes) = if tcp.is_some() { (6, 40) } else { (17, 28) };
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, bytes, 0, 1, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend(from.0.into_iter().chain(to.0));
    frame.extend(from.1.to_be_bytes().into_iter().chain(to.1.to_be_bytes()));
    match tcp {
        None => frame.extend([0, 8, 0, 0]),
        Some((flags, number)) => {
            frame.extend(number.to_be_bytes().into_iter().chain(number.to_be_bytes()));
            frame.extend([0x50, u8::try_from(flags).unwrap(), 0xff, 0xff, 0, 0, 0, 0]);
        }
    }
    frame
}

/// Sends the packets one after the other; which of them left the flow among the established ones.
fn becomes(forwarding: Forwarding, packets: &[Said]) -> Vec<bool> {
    let port = |protocol| ServicePort { protocol, first: 443, last: 443, target: None };
    let ports = vec![port(Protocol::Tcp), port(Protocol::Udp)];
    let one = ServicePolicy { forwarding, ..service(1, 10, ports, &[1]) };
    let image = compile(&policy(vec![one]), &NodeFacts::default(), &LiveIds::default()).unwrap();
    let view = image.view().unwrap();
    let node = Remembering::default();
    let entries = if forwarding == Forwarding::Nat { 2 } else { 1 };
    let sent = |said: &Said| {
        let mut steer = Steer::NONE;
        assert_eq!(read(&frame(*said)[..], 0x0800, &mut steer), step::TO_SERVICE);
        assert_eq!(stage(view.bytes(), &node, &mut steer), step::STEERED);
        let established = node.established.borrow().len();
        assert!([0, entries].contains(&established), "both directions or none: {established}");
        established != 0
    };
    packets.iter().map(sent).collect()
}

#[test]
fn a_flow_is_half_open_until_both_sides_are_seen_to_speak() {
    let check = |what: &str, forwarding, packets: &[Said], expected: &[bool]| {
        assert_eq!(becomes(forwarding, packets), expected, "{what}");
    };
    let nat = |what, packets: &[Said], expected: &[bool]| check(what, Forwarding::Nat, packets, expected);
    let dsr = |what, packets: &[Said], expected: &[bool]| check(what, Forwarding::L2Dsr, packets, expected);

    nat("a handshake", &[Client(SYN, 7), FromBackend(SYN | ACK, 999), Client(ACK, 1_000)], &[false, false, true]);
    nat("handshakes alone", &[Client(SYN, 7); 4], &[false; 4]);
    nat("nothing was answered yet", &[Client(SYN, 7), Client(ACK, 0), Client(ACK, 1)], &[false; 3]);
    nat("only answered", &[Client(SYN, 7), FromBackend(SYN | ACK, 999), Client(SYN, 7)], &[false; 3]);
    let guessed = |number| [Client(SYN, 7), FromBackend(SYN | ACK, 999), Client(ACK, number)];
    nat("a guess below", &guessed(999), &[false; 3]);
    nat("a guess above", &guessed(1_000 + 0x1_0000), &[false; 3]);
    nat("what may have been sent with the handshake", &guessed(1_000 + 0xffff), &[false, false, true]);
    let around = [Client(SYN, 7), FromBackend(SYN | ACK, u32::MAX), Client(ACK, 0)];
    nat("the number of a handshake that goes around", &around, &[false, false, true]);
    let ended = [Client(SYN, 7), FromBackend(SYN | ACK, 999), Client(FIN | ACK, 1_000), Client(RST | ACK, 1_000)];
    nat("what ends before it has begun", &ended, &[false; 4]);
    nat("the backend refuses", &[Client(SYN, 7), FromBackend(RST | ACK, 0), Client(ACK, 0)], &[false; 3]);
    nat("the backend goes on", &[Client(SYN, 7), FromBackend(ACK, 1_000)], &[false, true]);
    nat("a flow that was forgotten", &[Client(ACK, 77), Client(ACK, 78), FromBackend(ACK, 5)], &[false, false, true]);

    nat("datagrams without an answer", &[ClientDatagram; 3], &[false; 3]);
    let asked = [ClientDatagram, BackendDatagram, BackendDatagram, ClientDatagram];
    nat("datagrams there, back and there", &asked, &[false, false, false, true]);

    dsr("handshakes alone", &[Client(SYN, 7); 3], &[false; 3]);
    dsr("a handshake", &[Client(SYN, 7), Client(ACK, 5)], &[false, true]);
    dsr("what ends before it has begun", &[Client(SYN, 7), Client(RST, 5), Client(FIN | ACK, 5)], &[false; 3]);
    dsr("a second datagram", &[ClientDatagram; 2], &[false, true]);

    // Over a flow that has ended a new one begins, in the place of all.
    let reopened = [
        Client(SYN, 7),
        FromBackend(SYN | ACK, 999),
        Client(ACK, 1_000),
        Client(FIN | ACK, 1_000),
        Client(SYN, 9),
        Client(ACK, 1_000),
    ];
    nat("a new flow over an old one", &reopened, &[false, false, true, true, false, false]);
}
