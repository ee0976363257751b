//! Routes, services and filters change in one write: no packet meets the filter of one generation with the service or the
//! route of another.
//!
//! Both generations filter, share out and route the same two kinds of marked packets, to port 1001 and to port 1002 of one
//! virtual address. A lets the first kind through to upstream a and denies the second; B the other way round, to upstream b.
//! What the filter denies, the service would send to a backend in the sink, and the other generation's backend is routed to
//! the sink:
//!
//! | | A | B |
//! |---|---|---|
//! | filter | allows 1001, denies 1002 | denies 1001, allows 1002 |
//! | service | 1001 to backend ONE, 1002 to backend NONE | 1001 to backend NONE, 1002 to backend TWO |
//! | route | ONE to a, TWO and NONE to the sink | TWO to b, ONE and NONE to the sink |
//!
//! So each of the six mixtures of three parts sends one of the kinds to the sink, which the test shows first.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use wayleave::daemon::apply::{apply, propose};
use wayleave_tests::{
    CountingSink, Host, Packet, PacketSocket, Seen, TestNode, Topology, attach_xdp_drop, require_root_and_bpf,
};

const PUBLISHES: usize = 1000;
/// Marked packets that each generation's upstream gets, at least: the load was one.
const PACKETS_MIN: u64 = 500_000;
/// How long a generation that is live may take to show itself at its upstream.
const SHOWN: Duration = Duration::from_secs(2);
const MARK: &[u8] = b"marked packet";
const PORTS: [u16; 2] = [1001, 1002];
/// By family: the virtual address, the backends ONE, TWO and NONE, and what leads to upstream a, to b and to the sink.
const FAMILIES: [(&str, [&str; 3], [&str; 3]); 2] = [
    ("198.51.100.10", ["10.1.0.1", "10.1.0.2", "10.1.0.3"], ["10.77.1.2", "10.77.2.2", "10.77.255.2"]),
    ("2001:db8:100::10", ["fd00:1::1", "fd00:1::2", "fd00:1::3"], ["fd77:1::2", "fd77:2::2", "fd77:ff::2"]),
];
/// Source ports of one sender in one family: each is a flow of its own.
const FLOWS: u16 = 24;
/// Between two rounds of a sender: at full speed four of them would leave the publisher no processor.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    A,
    B,
}

use Side::{A, B};

fn filter(side: Side) -> String {
    let (allowed, denied) = if side == A { (1001, 1002) } else { (1002, 1001) };
    format!(
        "apiVersion: wayleave/v1\nkind: FilterPolicy\nmetadata: {{name: edge}}\nspec:\n  default: deny\n  rules:\n    - {{name: \
         closed, protocol: udp, ports: [{denied}], action: deny}}\n    - {{name: open, protocol: udp, ports: [{allowed}], action: \
         allow}}\n"
    )
}

/// A service for each port and family, a file each, all under names that both generations have.
fn services(side: Side) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for (family, (vip, backends, _)) in FAMILIES.iter().enumerate() {
        for (number, port) in PORTS.iter().enumerate() {
            let is_open = (side == A) == (number == 0);
            let backend = backends[if is_open { number } else { 2 }];
            let text = format!(
                "apiVersion: wayleave/v1\nkind: ServicePolicy\nmetadata: {{name: s{family}-{port}}}\nspec:\n  vip: \"{vip}\"\n  \
                 ports: [{{port: {port}, protocol: udp}}]\n  forwarding: nat\n  backends:\n    - {{address: \"{backend}\"}}\n"
            );
            files.push((format!("s{family}-{port}.yaml"), text));
        }
    }
    files
}

fn routes(side: Side) -> String {
    let (mut hops, mut routes) = (String::new(), String::new());
    for (family, (_, backends, vias)) in FAMILIES.iter().enumerate() {
        let upstream = if side == A { ("a", "uplink-a", vias[0]) } else { ("b", "uplink-b", vias[1]) };
        for (name, port, via) in [upstream, ("sink", "sink", vias[2])] {
            writeln!(hops, "    - {{name: {name}{family}, via: \"{via}\", port: {port}}}").unwrap();
        }
        let to = if side == A { ["a", "sink", "sink"] } else { ["sink", "b", "sink"] };
        let bits = if family == 0 { 32 } else { 128 };
        for (backend, hop) in backends.iter().zip(to) {
            writeln!(routes, "    - {{prefix: \"{backend}/{bits}\", nextHops: [{{name: {hop}{family}}}]}}").unwrap();
        }
    }
    format!(
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: backends}}\nspec:\n  nextHops:\n{hops}  routes:\n{routes}"
    )
}

/// A source with the filter of one generation, the services of another and the routes of a third.
fn source(folder: &Path, [of_filter, of_services, of_routes]: [Side; 3]) -> PathBuf {
    let name: String =
        [of_filter, of_services, of_routes].map(|side| if side == A { 'a' } else { 'b' }).iter().collect();
    let path = folder.join(name);
    fs::create_dir(&path).unwrap();
    fs::write(path.join("filter.yaml"), filter(of_filter)).unwrap();
    for (name, text) in services(of_services) {
        fs::write(path.join(name), text).unwrap();
    }
    fs::write(path.join("routes.yaml"), routes(of_routes)).unwrap();
    path
}

/// Marked packets of a host: both ports, both families, many flows.
fn marked(host: &Host, first_port: u16) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for number in 0..FLOWS {
        for (family, (vip, ..)) in FAMILIES.iter().enumerate() {
            let from = if family == 0 { IpAddr::from(host.v4) } else { host.v6.into() };
            for port in PORTS {
                let packet = Packet::between(from, vip.parse().unwrap()).macs(host.mac, host.router_mac);
                frames.push(packet.udp(first_port + number, port).payload(MARK).frame());
            }
        }
    }
    frames
}

fn is_marked(frame: &[u8]) -> bool {
    Seen::parse(frame).is_some_and(|seen| seen.payload.ends_with(MARK))
}

fn received(host: &Host) -> u64 {
    host.namespace.counters("eth0").unwrap().rx_packets
}

/// What the two upstreams and the sink get of every marked packet, sent once by each sender, under a source.
fn delivered(node: &TestNode, source: &Path, senders: &[&Host], receivers: [&Host; 3]) -> [u64; 3] {
    node.succeed(&["apply", "--auto-approve", source.to_str().unwrap()]).unwrap();
    let counts = receivers.map(|host| CountingSink::start(&host.namespace, "eth0", is_marked).unwrap());
    for host in senders {
        let socket = PacketSocket::open(&host.namespace, "eth0").unwrap();
        for frame in marked(host, 20_000) {
            socket.send(&frame).unwrap();
        }
    }
    let each = u64::from(FLOWS) * FAMILIES.len() as u64 * senders.len() as u64;
    // One of the kinds arrives somewhere, or both do; none may come late.
    let deadline = Instant::now() + SHOWN;
    while counts.iter().map(CountingSink::matched).sum::<u64>() < each && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(2));
    }
    thread::sleep(Duration::from_millis(50));
    counts.map(|count| count.stop().unwrap().matched)
}

#[test]
fn no_packet_meets_a_mixture_of_filter_service_and_route() {
    require_root_and_bpf().unwrap();
    let lab = Topology::with_upstreams(3).unwrap();
    lab.fix_neighbours().unwrap();
    let mut node = TestNode::router(&lab).unwrap();
    // Every publish reads all that are retained: here the number of publishes counts.
    node.set_spec("retain: {generations: 1}").unwrap();
    let (a, b) = (lab.upstream(0).unwrap(), lab.upstream(1).unwrap());
    // Two devices that packets come in by.
    let senders = [&lab.client, lab.upstream(2).unwrap()];
    let receivers = [a, b, &lab.sink];

    // The witness first: each consistent generation delivers to its own upstream, each mixture to the sink.
    let each = u64::from(FLOWS) * FAMILIES.len() as u64 * senders.len() as u64;
    let mut consistent = Vec::new();
    for number in 0..8 {
        let sides = [number & 4, number & 2, number & 1].map(|bit| if bit == 0 { A } else { B });
        let source = source(node.scratch(), sides);
        let counts = delivered(&node, &source, &senders, receivers);
        println!("{}: {counts:?} at a, b and the sink", source.file_name().unwrap().to_str().unwrap());
        match sides {
            [A, A, A] => assert_eq!(counts, [each, 0, 0]),
            [B, B, B] => assert_eq!(counts, [0, each, 0]),
            _ => assert!(counts[2] >= each, "a mixture that the sink would not tell: {counts:?}"),
        }
        if matches!(sides, [A, A, A] | [B, B, B]) {
            consistent.push(source);
        }
    }

    // B is live; the sink counts every marked packet, the upstreams count in XDP.
    let sink = CountingSink::start(&lab.sink.namespace, "eth0", is_marked).unwrap();
    let _swallow = [a, b].map(|host| attach_xdp_drop(&host.namespace, "eth0").unwrap());
    let at_first = node.counters().unwrap();
    let arrived_at_first = [received(a), received(b)];
    let publish = || {
        let library = node.library().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for number in 0..PUBLISHES {
            let upstream = [a, b][number % 2];
            runtime.block_on(async {
                let proposal = propose(&library, &consistent[number % 2]).await.unwrap();
                let applied = apply(&library, proposal, &mut |_| {}).await.unwrap();
                assert!(applied.report.published.is_some(), "each is another set of rules");
            });
            // No generation goes by unseen: its own upstream gets marked packets before the next one comes.
            let before = received(upstream);
            let deadline = Instant::now() + SHOWN;
            while received(upstream) == before {
                assert!(Instant::now() < deadline, "generation {number} delivers nothing");
                thread::sleep(Duration::from_millis(1));
            }
        }
    };
    let stop = AtomicBool::new(false);
    let send = &|host: &Host, first_port| {
        let (socket, frames) = (PacketSocket::open(&host.namespace, "eth0").unwrap(), marked(host, first_port));
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            for frame in &frames {
                socket.send(frame).unwrap();
                sent += 1;
            }
            thread::sleep(PAUSE);
        }
        sent
    };
    let begun = Instant::now();
    let sent: Vec<u64> = thread::scope(|scope| {
        let senders: Vec<_> = [20_000, 30_000]
            .into_iter()
            .flat_map(|first_port| senders.map(|host| (host, first_port)))
            .map(|(host, first_port)| scope.spawn(move || send(host, first_port)))
            .collect();
        let published = lab.router.enter(publish);
        stop.store(true, Ordering::Relaxed);
        published.unwrap();
        senders.into_iter().map(|sender| sender.join().unwrap()).collect()
    });
    let took = begun.elapsed();
    thread::sleep(Duration::from_millis(200));
    let told = sink.stop().unwrap();
    let arrived = [received(a) - arrived_at_first[0], received(b) - arrived_at_first[1]];
    let counted = node.counters().unwrap().since(&at_first);
    println!(
        "{PUBLISHES} publishes in {took:?} under load: {sent:?} sent by four senders on two devices, {arrived:?} at a and b, \
         {told:?} at the sink; {counted:?}"
    );
    assert_eq!((told.matched, told.lost), (0, 0), "a packet met a mixture");
    assert!(arrived.iter().all(|count| *count >= PACKETS_MIN), "too few for a load: {arrived:?}");
    assert!(sent.iter().all(|count| *count >= PACKETS_MIN / 5), "a sender that hardly sent: {sent:?}");
    assert!(counted.get("drop/filter-deny") >= PACKETS_MIN, "the filters denied hardly anything: {counted:?}");
    // Whatever was neither forwarded nor denied would be a third thing that a packet can meet.
    let others: u64 = counted
        .0
        .iter()
        .filter(|(name, _)| !["forward/forwarded", "drop/filter-deny"].contains(&name.as_str()))
        .map(|(_, count)| count)
        .sum();
    assert!(others < 50, "{counted:?}");
}
