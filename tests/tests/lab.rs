//! The lab does what other tests believe of it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use wayleave_tests::{
    Blaster, Bpffs, CountingSink, Extension, Namespace, Packet, PacketSocket, Seen, Topology, attach_xdp_drop,
    attach_xdp_pass, ping, require_root_and_bpf, tcp_flags, veth,
};

const SECOND: Duration = Duration::from_secs(1);
/// Frames that a receiver's queue has room for (`net.core.netdev_max_backlog`, 1,000 unless somebody changed it), however
/// late its processor comes to it.
const BURST: u64 = 500;
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Two joined namespaces with 10.9.0.1 and 10.9.0.2 on `eth0`.
fn pair() -> (Namespace, Namespace) {
    require_root_and_bpf().unwrap();
    let (a, b) = (Namespace::new("a").unwrap(), Namespace::new("b").unwrap());
    veth(&a, "eth0", &b, "eth0").unwrap();
    a.add_address("eth0", "10.9.0.1/24").unwrap();
    b.add_address("eth0", "10.9.0.2/24").unwrap();
    (a, b)
}

/// A UDP frame from `a` to `b` that the kernel of `b` takes.
fn datagram(a: &Namespace, b: &Namespace) -> Packet {
    Packet::v4(Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 0, 2))
        .macs(a.mac("eth0").unwrap(), b.mac("eth0").unwrap())
        .udp(4000, 4001)
}

#[test]
fn a_namespace_goes_away_with_its_mount() {
    require_root_and_bpf().unwrap();
    let namespace = Namespace::new("short").unwrap();
    let path = Path::new("/run/netns").join(namespace.name());
    let inside = namespace.enter(|| fs::metadata("/proc/thread-self/ns/net").unwrap().ino()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), inside, "the name leads to the namespace");
    assert_ne!(fs::metadata("/proc/thread-self/ns/net").unwrap().ino(), inside, "the test's own thread stayed out");
    drop(namespace);
    assert!(!path.exists());
}

#[test]
fn leftovers_of_a_killed_run_are_removed() {
    require_root_and_bpf().unwrap();
    let mut ended = Command::new("true").spawn().unwrap();
    let pid = ended.id();
    ended.wait().unwrap();
    let stale = Path::new("/run/netns").join(format!("wl-{pid}-0-dead"));
    let stale_bpffs = std::env::temp_dir().join(format!("wayleave-bpffs-{pid}-0"));
    let _first = Namespace::new("first").unwrap();
    fs::write(&stale, "").unwrap();
    fs::create_dir(&stale_bpffs).unwrap();
    let _second = Namespace::new("second").unwrap();
    let _bpffs = Bpffs::mount().unwrap();
    assert!(!stale.exists() && !stale_bpffs.exists());
}

#[test]
fn a_command_in_a_namespace_sees_its_devices_and_the_bpffs() {
    let (a, _b) = pair();
    let bpffs = Bpffs::mount().unwrap();
    let file_system = rustix::fs::statfs(bpffs.path()).unwrap();
    assert_eq!(u32::try_from(file_system.f_type).unwrap(), BPF_FS_MAGIC);
    fs::create_dir(bpffs.path().join("mark")).unwrap();
    assert!(a.command("test").arg("-d").arg(bpffs.path().join("mark")).status().unwrap().success());
    let output = a.command("ip").args(["-br", "link"]).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("eth0@"));
    let path = bpffs.path().to_owned();
    drop(bpffs);
    assert!(!path.exists());
}

#[test]
fn ping_goes_through_the_router_in_both_families() {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    for upstream in &lab.upstreams {
        for to in [upstream.v4.into(), upstream.v6.into()] {
            assert!(ping(&lab.client.namespace, to, SECOND).unwrap().is_some(), "no answer from {to}");
        }
    }
    lab.router.set_forwarding(false).unwrap();
    let to = lab.upstreams[0].v4.into();
    assert_eq!(ping(&lab.client.namespace, to, Duration::from_millis(100)).unwrap(), None, "the router was not needed");
}

#[test]
fn destinations_answer_only_once_the_router_has_a_route() {
    require_root_and_bpf().unwrap();
    let lab = Topology::with_upstreams(3).unwrap();
    lab.fix_neighbours().unwrap();
    let cases = [
        ("198.51.100.0/24", "198.51.100.10"),
        ("203.0.113.0/24", "203.0.113.9"),
        ("2001:db8:100::/48", "2001:db8:100:7::1"),
    ];
    for (upstream, (prefix, to)) in lab.upstreams.iter().zip(cases) {
        let answer = ping(&lab.client.namespace, address(to), SECOND);
        assert!(answer.is_err(), "{to} should be unreachable before there is a route, not {answer:?}");
        lab.route_in_kernel(prefix, upstream).unwrap();
        let before = upstream.namespace.counters("eth0").unwrap().rx_packets;
        assert!(ping(&lab.client.namespace, address(to), SECOND).unwrap().is_some(), "no answer from {to}");
        assert!(upstream.namespace.counters("eth0").unwrap().rx_packets > before);
    }
    let other = address("192.0.2.1");
    lab.route_in_kernel("0.0.0.0/0", &lab.sink).unwrap();
    assert_eq!(ping(&lab.client.namespace, other, Duration::from_millis(100)).unwrap(), None, "the sink is silent");
}

#[test]
fn every_frame_sent_is_counted() {
    let (a, b) = pair();
    let before = b.counters("eth0").unwrap();
    let sink =
        CountingSink::start(&b, "eth0", |frame| Seen::parse(frame).is_some_and(|seen| seen.destination_port == 4001))
            .unwrap();
    let frames = [datagram(&a, &b).frame(), datagram(&a, &b).udp(4000, 4002).frame()];
    for burst in 1..=20_000 / BURST {
        let sent = Blaster::frames(&a, "eth0", frames.to_vec(), Some(BURST)).unwrap().wait().unwrap();
        assert_eq!(sent, BURST);
        assert_eq!(sink.wait_for(burst * BURST / 2, 5 * SECOND), burst * BURST / 2);
    }
    let count = sink.stop().unwrap();
    assert_eq!((count.matched, count.lost), (10_000, 0));
    assert!(count.seen >= 20_000);
    assert!(b.counters("eth0").unwrap().rx_packets - before.rx_packets >= 20_000);
}

#[test]
fn udp_is_sent_to_all_destinations_in_turn() {
    let (a, b) = pair();
    a.add_neighbour("eth0", address("10.9.0.2"), b.mac("eth0").unwrap()).unwrap();
    for port in [4001, 4002] {
        let sink = CountingSink::start(&b, "eth0", move |frame| {
            Seen::parse(frame).is_some_and(|seen| seen.destination_port == port && seen.checksums_hold)
        })
        .unwrap();
        let to = [SocketAddr::new(address("10.9.0.2"), 4001), SocketAddr::new(address("10.9.0.2"), 4002)];
        for burst in 1..=2_000 / BURST {
            // The receiver has no socket: ICMP "port unreachable" must not stop the blaster.
            let sent = Blaster::udp(&a, &to, 18, Some(BURST)).unwrap().wait().unwrap();
            assert_eq!(sent, BURST);
            assert_eq!(sink.wait_for(burst * BURST / 2, 5 * SECOND), burst * BURST / 2);
        }
    }
}

#[test]
fn a_stopped_blaster_tells_how_many_it_sent() {
    let (a, b) = pair();
    let drop_all = attach_xdp_drop(&b, "eth0").unwrap();
    let before = b.counters("eth0").unwrap().rx_packets;
    let blaster = Blaster::frames(&a, "eth0", vec![datagram(&a, &b).frame()], None).unwrap();
    while blaster.sent() < 10_000 {
        std::thread::yield_now();
    }
    let sent = blaster.stop().unwrap();
    let counters = b.counters("eth0").unwrap();
    assert!(sent >= 10_000);
    // Frames beyond the ring's room are counted as dropped by the veth itself, on the sending side.
    let dropped = a.counters("eth0").unwrap().tx_dropped;
    let arrived = counters.rx_packets - before;
    assert!(arrived + dropped >= sent && arrived > 0, "sent {sent}, arrived {arrived}, dropped {dropped}");
    drop(drop_all);
}

#[test]
fn the_kernel_takes_what_the_builder_makes() {
    let (a, b) = pair();
    b.add_address("eth0", "fd09::2/64").unwrap();
    let (from, to) = (a.mac("eth0").unwrap(), b.mac("eth0").unwrap());
    let v6 = Packet::v6("fd09::1".parse().unwrap(), "fd09::2".parse().unwrap()).macs(from, to).udp(4000, 4001);
    let cases = [
        datagram(&a, &b),
        datagram(&a, &b).udp_without_checksum(4000, 4001),
        datagram(&a, &b).ipv4_options(&[1, 1, 1]).dont_fragment(),
        v6.clone(),
        v6.clone().extension(Extension::HopByHop(vec![])),
        v6.extension(Extension::DestinationOptions(vec![1, 0])).extension(Extension::Fragment {
            offset_bytes: 0,
            more: false,
            identification: 7,
        }),
    ];
    let socket = b.enter(|| UdpSocket::bind("[::]:4001")).unwrap().unwrap();
    socket.set_read_timeout(Some(SECOND)).unwrap();
    let sender = PacketSocket::open(&a, "eth0").unwrap();
    for (number, packet) in cases.into_iter().enumerate() {
        let payload = format!("case {number}");
        sender.send(&packet.payload(payload.as_bytes()).frame()).unwrap();
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{payload}: {error}"));
        assert_eq!(&buffer[..length], payload.as_bytes());
    }
}

#[test]
fn the_kernel_answers_a_syn_and_an_echo_request() {
    let (a, b) = pair();
    let mut socket = PacketSocket::open(&a, "eth0").unwrap();
    a.add_neighbour("eth0", address("10.9.0.2"), b.mac("eth0").unwrap()).unwrap();
    // Not an address of a's, so that only this test answers; b needs no ARP for it.
    let ghost = Ipv4Addr::new(10, 9, 0, 77);
    b.add_neighbour("eth0", ghost.into(), a.mac("eth0").unwrap()).unwrap();
    let packet = Packet::v4(ghost, Ipv4Addr::new(10, 9, 0, 2)).macs(a.mac("eth0").unwrap(), b.mac("eth0").unwrap());
    let answer = |frame: &[u8]| Seen::parse(frame).is_some_and(|seen| seen.destination == IpAddr::from(ghost));
    socket.send(&packet.clone().tcp(5000, 1, tcp_flags::SYN).frame()).unwrap();
    let reset = Seen::parse(&socket.receive(SECOND, answer).unwrap().expect("an answer to SYN")).unwrap();
    assert_eq!((reset.protocol, reset.source_port, reset.destination_port), (6, 1, 5000));
    socket.send(&packet.echo_request(1, 2).payload(b"hello").frame()).unwrap();
    let reply = Seen::parse(&socket.receive(SECOND, answer).unwrap().expect("an echo reply")).unwrap();
    assert_eq!((reply.icmp, reply.payload.as_slice()), (Some((0, 0)), b"hello".as_slice()));
    assert!(reset.checksums_hold && reply.checksums_hold);
}

#[test]
fn frames_are_received_as_they_were_sent() {
    let (a, b) = pair();
    let sender = PacketSocket::open(&a, "eth0").unwrap();
    let mut receiver = PacketSocket::open(&b, "eth0").unwrap();
    let pass = attach_xdp_pass(&b, "eth0").unwrap();
    let packet = datagram(&a, &b).payload(b"as sent");
    for packet in [packet.clone(), packet.clone().vlan(7), packet.clone().service_vlan(8).vlan(9)] {
        let frame = packet.frame();
        sender.send(&frame).unwrap();
        let received = receiver.receive(SECOND, |frame| frame.ends_with(b"as sent")).unwrap();
        assert_eq!(received.as_ref(), Some(&frame), "{packet:?}");
    }
    drop(pass);
    assert_eq!(receiver.receive(Duration::from_millis(20), |frame| frame.ends_with(b"as sent")).unwrap(), None);
}

#[test]
fn the_drop_program_drops_until_it_is_detached() {
    let (a, b) = pair();
    let to = address("10.9.0.2");
    assert!(ping(&a, to, SECOND).unwrap().is_some());
    let program = attach_xdp_drop(&b, "eth0").unwrap();
    assert_eq!(ping(&a, to, Duration::from_millis(50)).unwrap(), None);
    drop(program);
    assert!(ping(&a, to, SECOND).unwrap().is_some());
}
