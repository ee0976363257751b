//! Real packets through a real node: where they go, what they look like then, and how they are counted.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use wayleave_tests::{
    Counters, Extension, Host, Mac, Packet, PacketSocket, Seen, TestNode, Topology, ping, require_root_and_bpf,
    tcp_flags,
};

const SECOND: Duration = Duration::from_secs(1);
/// Long enough for a frame through three namespaces, short enough to wait for one that must not come.
const QUIET: Duration = Duration::from_millis(150);

/// A lab whose neighbours are all known, and whose upstreams answer nothing: an ICMP error on its way back is a packet, too.
fn lab() -> Topology {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    lab.fix_neighbours().unwrap();
    for upstream in &lab.upstreams {
        for prefix in ["198.51.100.0/24", "203.0.113.0/24", "2001:db8:100::/48"] {
            upstream.namespace.ip(&format!("route delete local {prefix} dev lo")).unwrap();
        }
    }
    lab
}

/// The sample policies, live on the router.
fn with_samples(lab: &Topology) -> TestNode<'_> {
    let node = TestNode::router(lab).unwrap();
    node.write_samples().unwrap();
    node.apply().unwrap();
    node
}

/// A UDP packet from the client to `destination`, sent to the router.
fn to(lab: &Topology, destination: &str) -> Packet {
    let destination: IpAddr = destination.parse().unwrap();
    let source: IpAddr = if destination.is_ipv4() { lab.client.v4.into() } else { lab.client.v6.into() };
    Packet::between(source, destination).macs(lab.client.mac, lab.client.router_mac)
}

fn upstream_sockets(lab: &Topology) -> Vec<PacketSocket> {
    lab.upstreams.iter().map(|one| PacketSocket::open(&one.namespace, "eth0").unwrap()).collect()
}

/// Sends from the client.
fn send(lab: &Topology, packet: &Packet) {
    PacketSocket::open(&lab.client.namespace, "eth0").unwrap().send(&packet.frame()).unwrap();
}

/// What arrives with this payload, at which of the sockets.
fn arrivals(sockets: &mut [PacketSocket], payload: &[u8], timeout: Duration) -> Vec<(usize, Seen)> {
    let mut seen = Vec::new();
    for (number, socket) in sockets.iter_mut().enumerate() {
        let wanted = |frame: &[u8]| Seen::parse(frame).is_some_and(|seen| seen.payload.starts_with(payload));
        let timeout = if seen.is_empty() { timeout } else { QUIET };
        seen.extend(socket.receive(timeout, wanted).unwrap().map(|frame| (number, Seen::parse(&frame).unwrap())));
    }
    seen
}

/// What the client gets back as an ICMP error, with its type and code.
fn icmp_error(lab: &Topology, socket: &mut PacketSocket) -> Option<(IpAddr, (u8, u8))> {
    let me = [IpAddr::from(lab.client.v4), lab.client.v6.into()];
    let wanted = |frame: &[u8]| {
        Seen::parse(frame).is_some_and(|seen| {
            // Neighbour discovery is ICMPv6 133 to 137.
            me.contains(&seen.destination) && seen.icmp.is_some_and(|(kind, _)| !(133..=137).contains(&kind))
        })
    };
    let frame = socket.receive(SECOND, wanted).unwrap()?;
    let seen = Seen::parse(&frame).unwrap();
    assert!(seen.checksums_hold);
    Some((seen.source, seen.icmp.unwrap()))
}

/// Packets that came in on all ports of the router.
fn received(lab: &Topology) -> u64 {
    let hosts = lab.upstreams.iter().chain([&lab.client, &lab.sink]);
    hosts.map(|one| lab.router.counters(&one.router_device).unwrap().rx_packets).sum()
}

/// Counters since `before`, once they account for every packet that came in since `received_before`.
fn counted(lab: &Topology, node: &TestNode, before: &Counters, received_before: u64) -> Counters {
    let deadline = Instant::now() + 2 * SECOND;
    loop {
        // A packet that arrives between the two readings makes them differ once.
        let counters = node.counters().unwrap().since(before);
        let arrived = received(lab) - received_before;
        if counters.total() == arrived {
            return counters;
        }
        assert!(Instant::now() < deadline, "{arrived} packets came in, the counters hold {counters:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn assert_forwarded_by(seen: &Seen, upstream: &Host, ttl: u8) {
    assert_eq!((seen.source_mac, seen.destination_mac), (upstream.router_mac, upstream.mac));
    assert_eq!(seen.ttl, ttl);
    assert!(seen.checksums_hold, "{seen:?}");
}

#[test]
fn every_protocol_of_both_families_is_forwarded_and_rewritten() {
    let lab = lab();
    let node = with_samples(&lab);
    let mut sockets = upstream_sockets(&lab);
    let before = node.counters().unwrap();
    let mut sent = 0;
    for destination in ["198.51.100.77", "2001:db8:100::77"] {
        let base = to(&lab, destination).ttl(64);
        for (number, packet) in [
            base.clone().udp(1000, 53),
            base.clone().udp_without_checksum(1000, 53).ttl(2),
            base.clone().tcp(1001, 443, tcp_flags::SYN),
            base.clone().echo_request(1, 1).ttl(255),
            base.clone().protocol(47),
            base.clone().udp(1002, 53).traffic_class(0xb8),
        ]
        .into_iter()
        .enumerate()
        {
            let v6_without_checksum = destination.contains(':') && number == 1;
            let payload = format!("{destination} {number}");
            let packet = packet.payload(payload.as_bytes());
            let original = Seen::parse(&packet.frame()).unwrap();
            send(&lab, &packet);
            let arrived = arrivals(&mut sockets, payload.as_bytes(), SECOND);
            let [(at, seen)] = arrived.as_slice() else { panic!("{payload}: {arrived:?}") };
            let upstream = lab.upstream(*at).unwrap();
            if !v6_without_checksum {
                assert_forwarded_by(seen, upstream, original.ttl - 1);
            }
            let expected = Seen {
                source_mac: upstream.router_mac,
                destination_mac: upstream.mac,
                ttl: original.ttl - 1,
                ..original
            };
            assert_eq!(*seen, expected, "nothing else changes");
            // The same flow goes the same way again.
            send(&lab, &packet);
            assert_eq!(arrivals(&mut sockets, payload.as_bytes(), SECOND)[0].0, *at);
            sent += 2;
        }
    }
    assert_eq!(node.counters().unwrap().since(&before).get("forward/forwarded"), sent);
    // The way back, which the policy for clients names.
    let upstream = lab.upstream(0).unwrap();
    let mut client = [PacketSocket::open(&lab.client.namespace, "eth0").unwrap()];
    for (source, destination) in
        [(upstream.v4.into(), IpAddr::from(lab.client.v4)), (upstream.v6.into(), lab.client.v6.into())]
    {
        let packet = Packet::between(source, destination).macs(upstream.mac, upstream.router_mac).payload(b"back");
        PacketSocket::open(&upstream.namespace, "eth0").unwrap().send(&packet.frame()).unwrap();
        let arrived = arrivals(&mut client, b"back", SECOND);
        assert_forwarded_by(&arrived[0].1, &lab.client, 63);
    }
    assert_eq!(node.counters().unwrap().since(&before).get("forward/forwarded"), sent + 2);
}

#[test]
fn flows_are_shared_by_weight() {
    const FLOWS: u16 = 4000;
    let lab = lab();
    let node = with_samples(&lab);
    for destination in ["198.51.100.77", "2001:db8:100::77"] {
        let mut sockets = upstream_sockets(&lab);
        let before = node.counters().unwrap();
        let sender = PacketSocket::open(&lab.client.namespace, "eth0").unwrap();
        for port in 0..FLOWS {
            sender.send(&to(&lab, destination).udp(10_000 + port, 443).payload(b"flow").frame()).unwrap();
        }
        let [a, b] = [0, 1].map(|number| {
            let frames = sockets[number].receive_all(QUIET, |frame| frame.ends_with(b"flow")).unwrap();
            u16::try_from(frames.len()).unwrap()
        });
        println!("{destination}: {a} flows to edge-a, {b} to edge-b, weights 3 to 1");
        assert_eq!(a + b, FLOWS);
        // Three standard deviations of 4000 draws with p = 3/4 are 82.
        assert!(a.abs_diff(FLOWS / 4 * 3) <= 110, "{a} of {FLOWS} flows went to edge-a");
        assert_eq!(node.counters().unwrap().since(&before).get("forward/forwarded"), u64::from(FLOWS));
    }
}

/// Rules with every action, and a next hop that nobody answers for.
const ACTIONS: &str = r#"
apiVersion: wayleave/v1
kind: RoutePolicy
metadata: {name: actions}
spec:
  nextHops:
    - {name: a, via: 10.77.1.2, port: uplink-a}
    - {name: a6, via: "fd77:1::2", port: uplink-a}
    - {name: absent, via: 10.77.1.99, port: uplink-a}
    - {name: absent6, via: "fd77:1::99", port: uplink-a}
  routes:
    - {prefix: 198.51.100.0/24, nextHops: [{name: a}]}
    - {prefix: 198.51.100.64/26, action: drop}
    - {prefix: 198.51.100.128/26, action: pass}
    - {prefix: 198.51.100.192/26, nextHops: [{name: absent}]}
    - {prefix: "2001:db8:100::/48", nextHops: [{name: a6}]}
    - {prefix: "2001:db8:100:1::/64", action: drop}
    - {prefix: "2001:db8:100:2::/64", action: pass}
    - {prefix: "2001:db8:100:3::/64", nextHops: [{name: absent6}]}
"#;

fn with_actions(lab: &Topology) -> TestNode<'_> {
    let node = TestNode::router(lab).unwrap();
    node.write("actions.yaml", ACTIONS).unwrap();
    let outcome = node.apply().unwrap();
    assert!(outcome.stderr.contains("actions/absent via 10.77.1.99 on port uplink-a did not answer"), "{outcome:?}");
    node
}

#[test]
fn each_packet_ends_in_the_one_counter_of_its_reason() {
    let lab = lab();
    let node = with_actions(&lab);
    // What the rules leave to the kernel it sends to b.
    let b = lab.upstream(1).unwrap();
    for prefix in ["198.51.100.0/24", "203.0.113.0/24", "2001:db8:100::/48", "2001:db8:200::/48"] {
        lab.route_in_kernel(prefix, b).unwrap();
    }
    let other_mac = Mac([2, 0, 0, 0, 0, 9]);
    let multicast_mac = Mac([1, 0, 0x5e, 0, 0, 5]);
    let arp = {
        let mut frame = [[0xff; 6], lab.client.mac.0].concat();
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(lab.client.mac.0);
        frame.extend(lab.client.v4.octets());
        frame.extend([0; 6]);
        frame.extend(lab.client.router_v4.octets());
        frame
    };
    // The same request to the router's own address: not a group address, so it gets as far as its protocol.
    let mut arp_unicast = arp.clone();
    arp_unicast[..6].copy_from_slice(&lab.client.router_mac.0);
    let v4 = |last: u8| to(&lab, &format!("198.51.100.{last}"));
    let v6 = |net: u8| to(&lab, &format!("2001:db8:100:{net}::7"));
    let mut truncated = v4(7).payload(b"truncated").frame();
    truncated.truncate(40);
    // (frame, reason, where it arrives: 0 up-a, 1 up-b)
    let cases: Vec<(&str, Vec<u8>, &str, Option<usize>)> = vec![
        ("v4 forwarded", v4(7).payload(b"#00").frame(), "forward/forwarded", Some(0)),
        ("v6 forwarded", v6(0).payload(b"#01").frame(), "forward/forwarded", Some(0)),
        ("v4 drop", v4(70).payload(b"#02").frame(), "drop/route-drop", None),
        ("v6 drop", v6(1).payload(b"#03").frame(), "drop/route-drop", None),
        ("v4 pass", v4(130).payload(b"#04").frame(), "pass/route-pass", Some(1)),
        ("v6 pass", v6(2).payload(b"#05").frame(), "pass/route-pass", Some(1)),
        ("v4 no route", to(&lab, "203.0.113.1").payload(b"#06").frame(), "pass/no-route", Some(1)),
        ("v6 no route", to(&lab, "2001:db8:200::1").payload(b"#07").frame(), "pass/no-route", Some(1)),
        ("v4 no neighbour", v4(200).payload(b"#08").frame(), "pass/no-neighbour", Some(1)),
        ("v6 no neighbour", v6(3).payload(b"#09").frame(), "pass/no-neighbour", Some(1)),
        ("other MAC", v4(7).macs(lab.client.mac, other_mac).payload(b"#10").frame(), "pass/link-not-ours", None),
        ("group MAC", v4(7).macs(lab.client.mac, multicast_mac).payload(b"#11").frame(), "pass/link-not-ours", None),
        ("ARP broadcast", arp, "pass/link-not-ours", None),
        ("ARP unicast", arp_unicast, "pass/not-ip", None),
        ("VLAN", v4(7).vlan(5).payload(b"#14").frame(), "pass/vlan", None),
        ("service VLAN", v4(7).service_vlan(5).payload(b"#15").frame(), "pass/vlan", None),
        ("multicast", to(&lab, "224.0.0.9").payload(b"#16").frame(), "pass/not-forwardable", None),
        ("link-local", to(&lab, "fe80::1234").payload(b"#17").frame(), "pass/not-forwardable", None),
        (
            "router alert",
            v6(0).extension(Extension::HopByHop(vec![])).payload(b"#18").frame(),
            "pass/hop-by-hop",
            Some(1),
        ),
        (
            "options",
            v6(0).extension(Extension::DestinationOptions(vec![1, 0])).payload(b"#19").frame(),
            "forward/forwarded",
            Some(0),
        ),
        ("truncated", truncated, "pass/malformed", None),
        ("local v4", to(&lab, "10.77.1.1").payload(b"#21").frame(), "pass/local", None),
        ("local v6", to(&lab, "fd77:1::1").payload(b"#22").frame(), "pass/local", None),
    ];
    let sender = PacketSocket::open(&lab.client.namespace, "eth0").unwrap();
    let mut sockets = upstream_sockets(&lab);
    let mut expected = Counters::default();
    let (before, received_before) = (node.counters().unwrap(), received(&lab));
    for (name, frame, reason, arrives) in &cases {
        for _ in 0..5 {
            sender.send(frame).unwrap();
        }
        *expected.0.entry((*reason).to_owned()).or_default() += 5;
        let tail = frame[frame.len() - 3..].to_vec();
        let marked = |seen: &[u8]| seen.ends_with(&tail) && tail[0] == b'#';
        for (number, socket) in sockets.iter_mut().enumerate() {
            if *arrives == Some(number) {
                for _ in 0..5 {
                    let frame = socket.receive(SECOND, marked).unwrap();
                    let frame = frame.unwrap_or_else(|| panic!("{name} did not arrive at upstream {number}"));
                    assert_forwarded_by(&Seen::parse(&frame).unwrap(), lab.upstream(number).unwrap(), 63);
                }
            }
        }
    }
    // Nothing arrived beyond that, at no upstream.
    for socket in &mut sockets {
        let surplus = socket.receive_all(QUIET, |frame| frame.len() > 3 && frame[frame.len() - 3] == b'#').unwrap();
        assert!(surplus.is_empty(), "{surplus:?}");
    }
    // Exactly one counter for each packet that came in, the kernels' own neighbour discovery included.
    let counters = counted(&lab, &node, &before, received_before);
    for (reason, count) in &expected.0 {
        // What the kernels of the lab say among themselves can only be ARP, ND, MLD, ICMP errors.
        if matches!(reason.as_str(), "pass/link-not-ours" | "pass/not-ip" | "pass/not-forwardable" | "pass/local") {
            assert!(counters.get(reason) >= *count, "{reason}: {counters:?}");
        } else {
            assert_eq!(counters.get(reason), *count, "{reason}: {counters:?}");
        }
    }
    println!("{} packets in, {counters:?}", counters.total());
}

#[test]
fn the_kernel_answers_where_a_packet_ends() {
    let lab = lab();
    lab.router.set_mtu("upa", 1400).unwrap();
    let node = with_actions(&lab);
    let a = lab.upstream(0).unwrap();
    for prefix in ["198.51.100.0/24", "2001:db8:100::/48"] {
        lab.route_in_kernel(prefix, a).unwrap();
    }
    let before = node.counters().unwrap();
    let mut client = PacketSocket::open(&lab.client.namespace, "eth0").unwrap();
    let router = [IpAddr::from(lab.client.router_v4), lab.client.router_v6.into()];
    for (destination, from, expired, too_big) in
        [("198.51.100.7", router[0], (11, 0), (3, 4)), ("2001:db8:100::7", router[1], (3, 0), (2, 0))]
    {
        send(&lab, &to(&lab, destination).ttl(1).payload(b"short-lived"));
        assert_eq!(icmp_error(&lab, &mut client), Some((from, expired)), "{destination}");
        let large = to(&lab, destination).payload(&[0x77; 1401]);
        let large = if destination.contains(':') { large } else { large.dont_fragment() };
        send(&lab, &large);
        assert_eq!(icmp_error(&lab, &mut client), Some((from, too_big)), "{destination}");
    }
    let counters = node.counters().unwrap().since(&before);
    assert_eq!((counters.get("pass/ttl-expired"), counters.get("pass/over-mtu")), (2, 2), "{counters:?}");
    // A packet of exactly the MTU is forwarded: 20 and 8 bytes of headers.
    let mut sockets = upstream_sockets(&lab);
    let exact = vec![0x78; 1400 - 28];
    send(&lab, &to(&lab, "198.51.100.7").payload(&exact));
    assert_eq!(arrivals(&mut sockets, &exact, SECOND).len(), 1);
    assert_eq!(node.counters().unwrap().since(&before).get("forward/forwarded"), 1);
    // Without the don't-fragment flag the kernel cuts it up, and both parts arrive.
    send(&lab, &to(&lab, "198.51.100.8").payload(&[0x79; 1401]));
    let wanted = |frame: &[u8]| Seen::parse(frame).is_some_and(|seen| seen.fragment && seen.payload.ends_with(b"yy"));
    assert_eq!(sockets[0].receive_all(QUIET, wanted).unwrap().len(), 2);
}

#[test]
fn the_routers_own_addresses_stay_reachable_below_a_default_route() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    let policy = r#"
apiVersion: wayleave/v1
kind: RoutePolicy
metadata: {name: everything}
spec:
  nextHops:
    - {name: z, via: 10.77.255.2, port: sink}
    - {name: z6, via: "fd77:ff::2", port: sink}
  routes:
    - {prefix: 0.0.0.0/0, nextHops: [{name: z}]}
    - {prefix: "::/0", nextHops: [{name: z6}]}
"#;
    node.write("everything.yaml", policy).unwrap();
    node.apply().unwrap();
    let hosts: Vec<&Host> = lab.upstreams.iter().chain([&lab.client, &lab.sink]).collect();
    for host in &hosts {
        // From its own side, so that the answers need no route of the policy.
        for address in [IpAddr::from(host.router_v4), host.router_v6.into()] {
            assert!(ping(&host.namespace, address, SECOND).unwrap().is_some(), "no answer from {address}");
        }
    }
    // From the client to the addresses on the far side: the answer leaves by the kernel, not by XDP.
    for host in &hosts {
        for address in [IpAddr::from(host.router_v4), host.router_v6.into()] {
            assert!(ping(&lab.client.namespace, address, SECOND).unwrap().is_some(), "no answer from {address}");
        }
    }
    // Everything else goes to z, even what is for another upstream's subnet.
    let mut sockets = upstream_sockets(&lab);
    sockets.push(PacketSocket::open(&lab.sink.namespace, "eth0").unwrap());
    for destination in ["10.77.1.2", "192.0.2.1", "fd77:1::2", "2001:db8:f::1"] {
        send(&lab, &to(&lab, destination).payload(destination.as_bytes()));
        let arrived = arrivals(&mut sockets, destination.as_bytes(), SECOND / 2);
        let [(2, seen)] = arrived.as_slice() else { panic!("{destination}: {arrived:?}") };
        assert_forwarded_by(seen, &lab.sink, 63);
    }
}

#[test]
fn the_kernels_own_tables_are_asked_for_an_unknown_neighbour() {
    let lab = lab();
    let node = with_actions(&lab);
    let a = lab.upstream(0).unwrap();
    let mut sockets = upstream_sockets(&lab);
    let before = node.counters().unwrap();
    for (absent, destination) in [("10.77.1.99", "198.51.100.200"), ("fd77:1::99", "2001:db8:100:3::7")] {
        send(&lab, &to(&lab, destination).payload(b"before"));
        assert_eq!(arrivals(&mut sockets, b"before", QUIET), []);
        // The kernel learns it; nobody tells the program.
        lab.router.add_neighbour("upa", absent.parse().unwrap(), a.mac).unwrap();
        send(&lab, &to(&lab, destination).payload(b"after"));
        let arrived = arrivals(&mut sockets, b"after", SECOND);
        let [(0, seen)] = arrived.as_slice() else { panic!("{destination}: {arrived:?}") };
        assert_forwarded_by(seen, a, 63);
    }
    let counters = node.counters().unwrap().since(&before);
    assert_eq!((counters.get("pass/no-neighbour"), counters.get("forward/forwarded")), (2, 2), "{counters:?}");
    // The program by itself forwards only what the tables say: the status still calls them unresolved.
    let status = node.status().unwrap();
    assert_eq!(status["health"]["reason"], "next-hop-unresolved");
}
