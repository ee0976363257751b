//! One write makes a generation live: no packet ever meets a mixture of two, and publishing loses none.
//!
//! Generations A and B send the probe's prefixes to the same upstream, but their tables are laid out so that any mixture of
//! a table of one with a table of the other would send them to z.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fib::layout::{AT_SLOTS, AT_TARGETS, SLOT_BYTES, TARGET_BYTES};
use fib::{Image as _, lookup};
use wayleave::compile::View;
use wayleave::compile::view::{RouteAction, TargetView};
use wayleave::daemon::apply::{apply, propose};
use wayleave_tests::{
    Blaster, CountingSink, Host, Mac, Packet, PacketSocket, Seen, TestNode, Topology, attach_xdp_drop,
    require_root_and_bpf,
};

const SECOND: Duration = Duration::from_secs(1);
/// Publishes under packets at full speed.
const PUBLISHES: usize = 1000;
/// Packets that are forwarded meanwhile, at least.
const PACKETS_MIN: u64 = 10_000_000;
/// Publishes under packets at a pace.
const PUBLISHES_PACED: usize = 200;
const ONE: &str = "198.51.100.7";
const GROUP: &str = "203.0.113.7";
const ONE_V6: &str = "2001:db8:100::7";
/// Next hops to z that stand before or behind those to x.
const OTHERS: usize = 12;

/// The probe's three routes, among routes to z whose names sort before (`a`) or behind (`z`) those of x.
fn rules(others: char) -> String {
    let mut hops = String::new();
    let mut routes = String::new();
    for number in 0..OTHERS {
        writeln!(hops, "    - {{name: {others}{number:02}, via: 10.77.255.2, port: sink}}").unwrap();
        writeln!(routes, "    - {{prefix: 192.0.{number}.0/24, nextHops: [{{name: {others}{number:02}}}]}}").unwrap();
        writeln!(hops, "    - {{name: {others}{number:02}-v6, via: \"fd77:ff::2\", port: sink}}").unwrap();
        writeln!(
            routes,
            "    - {{prefix: \"2001:db8:{number:x}f::/48\", nextHops: [{{name: {others}{number:02}-v6}}]}}"
        )
        .unwrap();
    }
    format!(
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: mixed}}\nspec:\n  nextHops:\n    - {{name: x1, via: \
         10.77.1.2, port: uplink-a}}\n    - {{name: x2, via: 10.77.1.3, port: uplink-a}}\n    - {{name: x3, via: \"fd77:1::2\", \
         port: uplink-a}}\n{hops}  routes:\n    - {{prefix: 198.51.100.0/24, nextHops: [{{name: x1}}]}}\n    - {{prefix: \
         203.0.113.0/24, nextHops: [{{name: x1}}, {{name: x2}}]}}\n    - {{prefix: \"2001:db8:100::/48\", nextHops: [{{name: \
         x3}}]}}\n{routes}"
    )
}

/// The ports that a target of an image sends to, through a slot table and next hops of possibly other images.
fn ports_of(target: u16, targets: &View, slots: &View, hops: &View) -> Vec<String> {
    let port =
        |row: u32| if row < hops.next_hops().len().try_into().unwrap() { hops.next_hop(row).port } else { "none" };
    let bytes = targets.bytes();
    let at = bytes.u32(AT_TARGETS).unwrap() + u32::from(target) * TARGET_BYTES;
    match targets.target(target) {
        Some(TargetView::Route { action: RouteAction::Forward { group }, .. }) if targets.members(group).len() == 1 => {
            // The target itself names the next hop's row, as well as its id and port.
            vec![port((bytes.u64(at).unwrap() >> 32).try_into().unwrap()).to_owned()]
        }
        Some(TargetView::Route { action: RouteAction::Forward { .. }, .. }) => {
            let tail = bytes.u64(at + 8).unwrap();
            let (first, mask) = ((tail & 0xffff_ffff) as u32, (tail >> 32) as u32);
            let table = slots.bytes().u32(AT_SLOTS).unwrap();
            let mut ports: Vec<String> = (0..=mask)
                .filter_map(|slot| slots.bytes().u16(table + (first + slot) * SLOT_BYTES))
                .map(|row| port(row.into()).to_owned())
                .collect();
            ports.sort();
            ports.dedup();
            ports
        }
        _ => vec!["none".to_owned()],
    }
}

/// Every mixture of the two images' tables sends the probes elsewhere than to x.
fn a_mixture_would_show(one: &View, other: &View) {
    for (address, is_group) in [(ONE, false), (GROUP, true), (ONE_V6, false)] {
        let target = |view: &View| match address.parse::<IpAddr>().unwrap() {
            IpAddr::V4(a) => lookup::v4(view.bytes(), a.to_bits()).unwrap(),
            IpAddr::V6(a) => {
                let (high, low) = (a.to_bits() >> 64, a.to_bits() & u128::from(u64::MAX));
                lookup::v6(view.bytes(), high.try_into().unwrap(), low.try_into().unwrap()).unwrap()
            }
        };
        let only_x = ["uplink-a".to_owned()];
        assert_eq!(ports_of(target(one), one, one, one), only_x, "{address} unmixed");
        // The trie of one with the targets of the other.
        let mixed = ports_of(target(one), other, other, other);
        assert!(!mixed.contains(&only_x[0]), "{address}: trie of one, rest of the other: {mixed:?}");
        // Trie and targets of one with the next hops of the other.
        let mixed = ports_of(target(one), one, one, other);
        assert!(!mixed.contains(&only_x[0]), "{address}: next hops of the other: {mixed:?}");
        if is_group {
            let mixed = ports_of(target(one), one, other, one);
            assert!(!mixed.contains(&only_x[0]), "{address}: slots of the other: {mixed:?}");
        }
    }
}

struct Arrived {
    sent: u64,
    router: u64,
    forwarded: u64,
    x: u64,
    z: u64,
}

/// Sends while `during` runs, and counts: what came to the router, what its program forwarded, what x got and what z got.
fn count(lab: &Topology, node: &TestNode, paced: bool, during: impl FnOnce()) -> Arrived {
    let x = lab.upstream(0).unwrap();
    let _swallow = attach_xdp_drop(&x.namespace, "eth0").unwrap();
    let z = CountingSink::start(&lab.sink.namespace, "eth0", |frame| {
        Seen::parse(frame).is_some_and(|seen| seen.payload.ends_with(b"probe"))
    })
    .unwrap();
    let frames: Vec<Vec<u8>> = (0..48u16)
        .map(|number| {
            let destination: IpAddr = [ONE, GROUP, ONE_V6][usize::from(number) % 3].parse().unwrap();
            let source: IpAddr = if destination.is_ipv4() { lab.client.v4.into() } else { lab.client.v6.into() };
            let packet = Packet::between(source, destination).macs(lab.client.mac, lab.client.router_mac);
            packet.udp(1000 + number, 53).payload(b"probe").frame()
        })
        .collect();
    let received = |host: &Host| host.namespace.counters("eth0").unwrap().rx_packets;
    let before = (lab.router.counters("lan").unwrap().rx_packets, node.counters().unwrap(), received(x));
    let sent = if paced {
        let stop = AtomicBool::new(false);
        let sender = PacketSocket::open(&lab.client.namespace, "eth0").unwrap();
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    for frame in &frames {
                        sender.send(frame).unwrap();
                        sent += 1;
                    }
                    thread::sleep(Duration::from_millis(2));
                }
                sent
            });
            during();
            stop.store(true, Ordering::Relaxed);
            sending.join().unwrap()
        })
    } else {
        let blaster = Blaster::frames(&lab.client.namespace, "eth0", frames, None).unwrap();
        during();
        blaster.stop().unwrap()
    };
    // Until nothing moves any more.
    let mut last = 0;
    loop {
        thread::sleep(Duration::from_millis(50));
        let now = received(x);
        if now == last {
            break;
        }
        last = now;
    }
    let counted = node.counters().unwrap().since(&before.1);
    let others: u64 = counted.0.iter().filter(|(name, _)| *name != "forward/forwarded").map(|(_, count)| count).sum();
    // The lab's kernels may say a word of neighbour discovery; no probe may have passed or been dropped.
    assert!(others < 20, "{counted:?}");
    Arrived {
        sent,
        router: lab.router.counters("lan").unwrap().rx_packets - before.0,
        forwarded: counted.get("forward/forwarded"),
        x: received(x) - before.2,
        z: z.stop().unwrap().matched,
    }
}

/// Publishes A and B in turn with the library, in a thread of the router's namespace.
fn publish(lab: &Topology, node: &TestNode, sources: &[PathBuf; 2], times: usize) {
    let work = || {
        let node = node.library().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for number in 0..times {
                let proposal = propose(&node, &sources[number % 2]).await.unwrap();
                let applied = apply(&node, proposal, &mut |_| {}).await.unwrap();
                assert!(applied.report.published.is_some(), "each is another set of rules");
            }
        });
    };
    lab.router.enter(work).unwrap();
}

fn source(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir(&path).unwrap();
    fs::write(path.join("mixed.yaml"), text).unwrap();
    path
}

#[test]
fn no_packet_meets_a_mixture_and_none_is_lost() {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    lab.fix_neighbours().unwrap();
    let x = lab.upstream(0).unwrap();
    // The second member of the group is the same host by another address.
    lab.router.add_neighbour("upa", "10.77.1.3".parse().unwrap(), x.mac).unwrap();
    let node = TestNode::router(&lab).unwrap();
    let sources = [source(node.scratch(), "a", &rules('z')), source(node.scratch(), "b", &rules('a'))];
    for source in &sources {
        node.succeed(&["apply", "--auto-approve", source.to_str().unwrap()]).unwrap();
    }
    lab.router
        .enter(|| {
            let observed = node.library().unwrap().observe().unwrap();
            let views: Vec<_> =
                observed.live.iter().chain(&observed.retained).map(|g| g.image.view().unwrap()).collect();
            a_mixture_would_show(&views[0], &views[1]);
            a_mixture_would_show(&views[1], &views[0]);
            // Ids and ports are the same in both: the neighbour table cannot hide a mixture.
            let ids = |view: &View| -> BTreeMap<String, u32> {
                view.next_hops()
                    .filter(|hop| hop.name.starts_with('x'))
                    .map(|hop| (hop.name.to_owned(), hop.id))
                    .collect()
            };
            assert_eq!(ids(&views[0]), ids(&views[1]));
        })
        .unwrap();
    // B is live now, and after every even number of publishes.
    let begun = Instant::now();
    let full = count(&lab, &node, false, || publish(&lab, &node, &sources, PUBLISHES));
    let took = begun.elapsed();
    println!(
        "{PUBLISHES} publishes in {took:?} under load: {} sent, {} came to the router, {} forwarded, {} at x, {} at z",
        full.sent, full.router, full.forwarded, full.x, full.z
    );
    assert_eq!(full.z, 0, "a packet met a mixture");
    assert!(full.forwarded >= PACKETS_MIN, "only {} packets", full.forwarded);
    // Whatever came in was forwarded; neighbour discovery apart.
    assert!(full.forwarded <= full.router && full.router - full.forwarded < 20);
    let control = count(&lab, &node, false, || thread::sleep(took.min(5 * SECOND)));
    let lost = |run: &Arrived| run.forwarded.saturating_sub(run.x);
    println!(
        "control without publishes: {} sent, {} came to the router, {} forwarded, {} at x; lost in rings: {} with, {} without",
        control.sent,
        control.router,
        control.forwarded,
        control.x,
        lost(&full),
        lost(&control)
    );
    assert_eq!(control.z, 0);

    // At a pace that no ring overflows, nothing at all is lost.
    let paced = count(&lab, &node, true, || publish(&lab, &node, &sources, PUBLISHES_PACED));
    println!(
        "{PUBLISHES_PACED} publishes at a pace: {} sent, {} forwarded, {} at x, {} at z",
        paced.sent, paced.forwarded, paced.x, paced.z
    );
    assert_eq!((paced.z, paced.forwarded), (0, paced.sent));
    assert!(paced.x >= paced.sent && paced.x < paced.sent + 20, "sent {}, at x {}", paced.sent, paced.x);
    assert!(paced.sent > 10_000, "only {} packets", paced.sent);
    let status = node.status().unwrap();
    assert!(status["generation"].as_u64().unwrap() > (PUBLISHES + PUBLISHES_PACED) as u64);
    assert_eq!(status["leftovers"], 0);
}

#[test]
fn the_last_generation_of_many_is_the_one_that_packets_meet() {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    lab.fix_neighbours().unwrap();
    let node = TestNode::router(&lab).unwrap();
    let to = |letter: char, number: u8| {
        format!(
            "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: p}}\nspec:\n  nextHops:\n    - {{name: n, via: \
             10.77.{number}.2, port: uplink-{letter}}}\n  routes:\n    - {{prefix: 198.51.100.0/24, nextHops: [{{name: n}}]}}\n"
        )
    };
    // The same name moves between upstreams: after each publish the very next packet must show it, MAC and device alike.
    let sources = [source(node.scratch(), "a", &to('a', 1)), source(node.scratch(), "b", &to('b', 2))];
    let mut receivers: Vec<_> =
        lab.upstreams.iter().map(|one| PacketSocket::open(&one.namespace, "eth0").unwrap()).collect();
    let sender = PacketSocket::open(&lab.client.namespace, "eth0").unwrap();
    let packet =
        Packet::between(lab.client.v4.into(), ONE.parse().unwrap()).macs(lab.client.mac, lab.client.router_mac);
    for round in 0..40u16 {
        let at = usize::from(round % 2);
        publish(&lab, &node, &[sources[at].clone(), sources[1 - at].clone()], 1);
        // Long enough that no other frame on the wire ends with it by chance.
        let payload = [b"round".as_slice(), &round.to_be_bytes()].concat();
        sender.send(&packet.clone().payload(&payload).frame()).unwrap();
        let frame = receivers[at].receive(SECOND, |frame| frame.ends_with(&payload)).unwrap();
        let seen = Seen::parse(&frame.unwrap_or_else(|| panic!("round {round}: not at upstream {at}"))).unwrap();
        let expected: Mac = lab.upstreams[at].mac;
        assert_eq!(seen.destination_mac, expected, "round {round}");
    }
}
