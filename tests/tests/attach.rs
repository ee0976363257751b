//! Where the program is attached, and what happens to packets while that changes: every mode, large packets, another version
//! of the program, another layout of the pins.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use fib::layout::LAYOUT_VERSION;
use serde_json::Value;
use wayleave::kernel::program::object_id;
use wayleave_tests::{
    Blaster, BpfObjects, Namespace, Offload, Outcome, Packet, PacketSocket, Seen, TestNode, Topology, binary, lossless,
    require_root_and_bpf,
};

const SECOND: Duration = Duration::from_secs(1);
const PROBE: &str = "198.51.100.9";
const PORTS: [&str; 4] = ["lan", "uplink-a", "uplink-b", "sink"];

fn lab() -> Topology {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    lab.fix_neighbours().unwrap();
    lab
}

/// Sends the probe's prefixes to up-a; `third` tells versions of the rules apart.
fn rules(third: u8) -> String {
    format!(
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: probe}}\nspec:\n  nextHops:\n    - {{name: a, via: \
         10.77.1.2, port: uplink-a}}\n    - {{name: a6, via: \"fd77:1::2\", port: uplink-a}}\n  routes:\n    - {{prefix: \
         198.51.100.0/24, nextHops: [{{name: a}}]}}\n    - {{prefix: \"2001:db8:100::/48\", nextHops: [{{name: a6}}]}}\n    - \
         {{prefix: 192.0.{third}.0/24, action: drop}}\n"
    )
}

fn set_all(node: &mut TestNode, attach: &'static str) {
    for port in PORTS {
        node.set_attach(port, attach).unwrap();
    }
}

fn node<'l>(lab: &'l Topology, attach: &'static str) -> TestNode<'l> {
    let mut node = TestNode::router(lab).unwrap();
    set_all(&mut node, attach);
    node.write("probe.yaml", &rules(0)).unwrap();
    node
}

fn probe(lab: &Topology, to: &str, payload: &[u8]) -> Packet {
    let to: IpAddr = to.parse().unwrap();
    let from: IpAddr = if to.is_ipv4() { lab.client.v4.into() } else { lab.client.v6.into() };
    Packet::between(from, to).macs(lab.client.mac, lab.client.router_mac).payload(payload)
}

/// The packet reaches up-a as a router sends it on.
fn arrives(lab: &Topology, packet: &Packet, payload: &[u8], what: &str) {
    let upstream = &lab.upstreams[0];
    let mut receiver = PacketSocket::open(&upstream.namespace, "eth0").unwrap();
    PacketSocket::open(&lab.client.namespace, "eth0").unwrap().send(&packet.frame()).unwrap();
    let wanted = |frame: &[u8]| Seen::parse(frame).is_some_and(|seen| seen.payload == payload);
    let frame = receiver.receive(2 * SECOND, wanted).unwrap().unwrap_or_else(|| panic!("{what}: nothing arrived"));
    let seen = Seen::parse(&frame).unwrap();
    assert_eq!((seen.destination_mac, seen.ttl, seen.checksums_hold), (upstream.mac, 63, true), "{what}");
}

fn interface<'s>(status: &'s Value, port: &str) -> &'s Value {
    status["interfaces"].as_array().unwrap().iter().find(|i| i["port"] == port).unwrap()
}

/// Whether the running kernel is at least this one.
fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (major, minor)
}

#[test]
fn every_mode_forwards_and_says_why() {
    let lab = lab();
    let mut node = node(&lab, "auto");
    for (attach, mode, why) in [
        ("native", "native", "the configuration says so"),
        ("generic", "generic", "the configuration says so"),
        ("tc", "tc", "the configuration says so"),
        ("native", "native", "the configuration says so"),
        ("auto", "native", "the driver takes XDP"),
    ] {
        set_all(&mut node, attach);
        if attach == "auto" {
            // Otherwise it stays with what is attached.
            node.succeed(&["detach", "--auto-approve"]).unwrap();
        }
        let applied = node.apply().unwrap();
        assert!(applied.stderr.contains(&format!("lan attached for lan, {mode}: {why}")), "{attach}: {applied:?}");
        let before = node.counters().unwrap();
        for to in [PROBE, "2001:db8:100::9"] {
            let payload = format!("{attach} {to}");
            arrives(&lab, &probe(&lab, to, payload.as_bytes()), payload.as_bytes(), &payload);
        }
        let counted = node.counters().unwrap().since(&before);
        assert_eq!(counted.get("forward/forwarded"), 2, "{attach}: {counted:?}");
        let status = node.status().unwrap();
        assert_eq!(status["health"]["state"], "healthy");
        for port in PORTS {
            let one = interface(&status, port);
            assert_eq!((&one["mode"], &one["configured"], &one["why"]), (&mode.into(), &attach.into(), &why.into()));
        }
        assert_eq!(node.run(&["plan", "--detailed-exitcode"]).unwrap().code, Some(0), "{attach}");
        // The place that it left is empty.
        let xdp = lab.router.ip("-d link show dev lan").unwrap().contains("xdp");
        assert_eq!(xdp, mode != "tc", "{attach}");
    }
    // The daemon says it, too.
    node.succeed(&["detach", "--auto-approve"]).unwrap();
    let log = run_until(&node, "published");
    assert!(log.contains("attached") && log.contains("the driver takes XDP"), "{log}");
}

/// What `wayleave run` logs until it says this word.
fn run_until(node: &TestNode, word: &str) -> String {
    let path = node.scratch().join("log");
    let mut daemon = node.command(&["run"]).unwrap().stderr(fs::File::create(&path).unwrap()).spawn().unwrap();
    let deadline = Instant::now() + 30 * SECOND;
    while !fs::read_to_string(&path).unwrap().contains(word) && Instant::now() < deadline {
        thread::sleep(SECOND / 20);
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    fs::read_to_string(&path).unwrap()
}

#[test]
fn auto_keeps_off_native_xdp_where_packets_could_not_leave() {
    let lab = lab();
    let mut node = node(&lab, "auto");
    node.apply().unwrap();
    let mode = |node: &TestNode, port: &str| interface(&node.status().unwrap(), port)["mode"].clone();
    assert_eq!(mode(&node, "lan"), "native");
    // The loopback sends for nobody else's XDP program.
    node.set_port("loop", "lo").unwrap();
    let frame = probe(&lab, PROBE, b"probe").frame();
    lossless(&lab, &[&lab.upstreams[0]], &frame, || {
        node.apply().unwrap();
        thread::sleep(SECOND / 2);
    });
    if kernel_is_at_least(6, 3) {
        assert_eq!((mode(&node, "lan"), mode(&node, "loop")), ("tc".into(), "tc".into()));
        let why = "from native XDP no packet could leave by lo, whose driver does not send for others";
        assert_eq!(interface(&node.status().unwrap(), "lan")["why"], why);
    } else {
        // It does not say what drivers can do.
        assert_eq!((mode(&node, "lan"), mode(&node, "loop")), ("native".into(), "tc".into()));
    }
    assert_eq!(node.run(&["plan", "--detailed-exitcode"]).unwrap().code, Some(0));
}

#[test]
fn modes_change_without_loss() {
    let lab = lab();
    let mut node = node(&lab, "native");
    node.apply().unwrap();
    let frame = probe(&lab, PROBE, b"probe").frame();
    lossless(&lab, &[&lab.upstreams[0]], &frame, || {
        for attach in ["tc", "native", "tc", "native"] {
            node.set_attach("lan", attach).unwrap();
            node.apply().unwrap();
            assert_eq!(interface(&node.status().unwrap(), "lan")["mode"], attach);
        }
    });
}

fn tc(namespace: &Namespace, arguments: &str) -> String {
    let output = namespace.command("tc").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "tc {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn filters_and_qdiscs_of_others_stay() {
    let lab = lab();
    let node = node(&lab, "tc");
    let has_qdisc = || tc(&lab.router, "qdisc show dev lan").contains("clsact");
    let filters = || tc(&lab.router, "filter show dev lan ingress").matches("direct-action").count();
    let uses_tcx = kernel_is_at_least(6, 6);
    let ours = usize::from(!uses_tcx);
    node.apply().unwrap();
    assert_eq!((has_qdisc(), filters()), (!uses_tcx, ours), "the qdisc is made where it is needed");
    node.apply().unwrap();
    assert_eq!(filters(), ours);
    arrives(&lab, &probe(&lab, PROBE, b"first"), b"first", "at first");
    node.succeed(&["detach", "--auto-approve"]).unwrap();
    assert!(!has_qdisc(), "what was made is removed");
    // Somebody else's was there before.
    tc(&lab.router, "qdisc add dev lan clsact");
    node.apply().unwrap();
    assert_eq!(filters(), ours);
    arrives(&lab, &probe(&lab, PROBE, b"second"), b"second", "on another's qdisc");
    node.succeed(&["detach", "--auto-approve"]).unwrap();
    assert_eq!((has_qdisc(), filters()), (true, 0));
    tc(&lab.router, "qdisc del dev lan clsact");
    // Somebody else's filter came later, on the qdisc that was made for ours.
    node.apply().unwrap();
    if uses_tcx {
        tc(&lab.router, "qdisc add dev lan clsact");
    }
    let program = node.pins().join("class-20").join(format!("live-routes-tc-{}", object_id()));
    let add = format!("filter add dev lan ingress prio 60000 bpf direct-action object-pinned {}", program.display());
    tc(&lab.router, &add);
    assert_eq!(filters(), ours + 1);
    node.succeed(&["detach", "--auto-approve"]).unwrap();
    assert_eq!((has_qdisc(), filters()), (true, 1), "the other filter stays, and its qdisc");
    tc(&lab.router, "qdisc del dev lan clsact");
    // A filter that somebody removed is put back.
    node.apply().unwrap();
    if !uses_tcx {
        tc(&lab.router, "qdisc del dev lan clsact");
        assert_eq!(node.status().unwrap()["health"]["reason"], "port-not-attached");
        let plan = node.run(&["apply", "--auto-approve"]).unwrap();
        assert_eq!(plan.code, Some(0), "{plan:?}");
        assert_eq!((filters(), node.status().unwrap()["health"]["state"].clone()), (1, "healthy".into()));
    }
    arrives(&lab, &probe(&lab, PROBE, b"third"), b"third", "at last");
}

/// Every offload that makes packets larger than the wire's.
const OFFLOADS: [Offload; 4] = [Offload::TxChecksum, Offload::Gso, Offload::Tso, Offload::Gro];

/// Sends `bytes` over TCP from the client to an address behind up-a, and compares what arrives.
fn transfer(lab: &Topology, bytes: usize) -> Duration {
    let pattern = |at: usize| (at * 31 + at / 251).to_le_bytes()[0];
    let upstream = &lab.upstreams[0].namespace;
    let listener = upstream.enter(|| TcpListener::bind((PROBE, 7_000)).unwrap()).unwrap();
    let begun = Instant::now();
    thread::scope(|scope| {
        let receiving = scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(20 * SECOND)).unwrap();
            let mut received = Vec::with_capacity(bytes);
            stream.read_to_end(&mut received).unwrap();
            received
        });
        let mut stream = lab.client.namespace.enter(|| TcpStream::connect((PROBE, 7_000)).unwrap()).unwrap();
        stream.set_write_timeout(Some(20 * SECOND)).unwrap();
        stream.write_all(&(0..bytes).map(pattern).collect::<Vec<u8>>()).unwrap();
        drop(stream);
        let received = receiving.join().unwrap();
        assert_eq!(received.len(), bytes);
        assert!(
            received.iter().enumerate().all(|(at, byte)| *byte == pattern(at)),
            "what arrived is not what was sent"
        );
    });
    begun.elapsed()
}

#[test]
fn bulk_tcp_with_segmentation_offload_arrives_intact_through_tc() {
    let lab = lab();
    let node = node(&lab, "tc");
    node.apply().unwrap();
    for (namespace, device) in [
        (&lab.client.namespace, "eth0"),
        (&lab.router, "lan"),
        (&lab.router, "upa"),
        (&lab.upstreams[0].namespace, "eth0"),
    ] {
        for offload in OFFLOADS {
            namespace.set_offload(device, offload, true).unwrap();
        }
    }
    let bytes = if kernel_is_at_least(6, 13) { 64 << 20 } else { 8 << 20 };
    let average = |node: &TestNode, what: &str| {
        let begun = node.status().unwrap();
        let (before, counters) = (counted(&begun), node.counters().unwrap());
        let took = transfer(&lab, bytes);
        let now = counted(&node.status().unwrap());
        let (packets, all) = (now.0 - before.0, now.1 - before.1);
        println!("{what}: {bytes} bytes in {took:?}, {packets} packets of {} bytes", all / packets);
        assert!(all > bytes as u64, "{what}: all of it met the program");
        (all / packets, node.counters().unwrap().since(&counters))
    };
    // Packets of up to 64 KiB, whose segments fit: the program forwards them as they are.
    let (size, reasons) = average(&node, "1500 bytes");
    assert!(size > 4 * 1_500, "packets of {size} bytes on average");
    assert_eq!(reasons.get("pass/over-mtu"), 0, "{reasons:?}");
    // On a narrower way out segments of 1,460 bytes are too large: the kernel tells the sender, whose next ones fit.
    lab.route_in_kernel("198.51.100.0/24", &lab.upstreams[0]).unwrap();
    lab.router.set_mtu("upa", 1_300).unwrap();
    node.write("probe.yaml", &rules(1)).unwrap();
    node.apply().unwrap();
    let (size, reasons) = average(&node, "1300 bytes");
    assert!(size > 4 * 1_300, "packets of {size} bytes on average");
    assert!(reasons.get("pass/over-mtu") >= 1, "{reasons:?}");
}

#[test]
fn generic_xdp_leaves_to_the_kernel_what_tc_forwards() {
    let lab = lab();
    let mut node = node(&lab, "generic");
    lab.route_in_kernel("198.51.100.0/24", &lab.upstreams[0]).unwrap();
    for (namespace, device) in [(&lab.client.namespace, "eth0"), (&lab.router, "lan"), (&lab.router, "upa")] {
        for offload in OFFLOADS {
            namespace.set_offload(device, offload, true).unwrap();
        }
    }
    let mut too_large = [0; 2];
    for (at, attach) in ["generic", "tc"].into_iter().enumerate() {
        set_all(&mut node, attach);
        node.apply().unwrap();
        let before = node.counters().unwrap();
        let took = transfer(&lab, 4 << 20);
        let counted = node.counters().unwrap().since(&before);
        println!("{attach}: 4 MiB in {took:?}, {counted:?}");
        too_large[at] = counted.get("pass/over-mtu");
    }
    assert!(too_large[0] > 50 && too_large[1] == 0, "{too_large:?}");
}

/// Packets and bytes of the one policy.
fn counted(status: &Value) -> (u64, u64) {
    let row = &status["policies"][0];
    (row["packets"].as_u64().unwrap(), row["bytes"].as_u64().unwrap())
}

#[test]
fn jumbo_frames_are_forwarded() {
    let lab = lab();
    for (namespace, device) in [
        (&lab.client.namespace, "eth0"),
        (&lab.router, "lan"),
        (&lab.router, "upa"),
        (&lab.upstreams[0].namespace, "eth0"),
    ] {
        namespace.set_mtu(device, 9_000).unwrap();
    }
    // Before Linux 6.3 frames of several buffers cannot be redirected: the kernel sends them on.
    lab.route_in_kernel("198.51.100.0/24", &lab.upstreams[0]).unwrap();
    let mut node = node(&lab, "auto");
    let payload = vec![0x5a; 8_000];
    let packet = probe(&lab, PROBE, &payload);
    for (attach, why) in [
        ("auto", "the driver takes XDP in frames of several buffers, at MTU 9000"),
        ("native", "the driver takes XDP in frames of several buffers, at MTU 9000"),
        ("tc", "the configuration says so"),
        ("generic", "the configuration says so"),
    ] {
        node.succeed(&["detach", "--auto-approve"]).unwrap();
        set_all(&mut node, attach);
        node.apply().unwrap();
        let status = node.status().unwrap();
        assert_eq!(
            (&interface(&status, "lan")["why"], &status["health"]["state"]),
            (&why.into(), &"healthy".into()),
            "{attach}"
        );
        let native = matches!(attach, "auto" | "native");
        let link = lab.router.ip("-d link show dev lan").unwrap();
        assert_eq!(link.contains("name wayleave_frags"), native, "{attach}: {link}");
        let link = lab.router.ip("-d link show dev upb").unwrap();
        assert!(!link.contains("wayleave_frags"), "{attach}, a device with ordinary packets: {link}");
        let before = node.counters().unwrap();
        arrives(&lab, &packet, &payload, attach);
        arrives(&lab, &probe(&lab, PROBE, b"small"), b"small", attach);
        let counted = node.counters().unwrap().since(&before);
        let expected = if native && !kernel_is_at_least(6, 3) { (1, 1) } else { (2, 0) };
        let reasons = (counted.get("forward/forwarded"), counted.get("pass/scattered"));
        assert_eq!(reasons, expected, "{attach}: {counted:?}");
        // On a narrower way out they are too large.
        lab.router.set_mtu("upa", 4_000).unwrap();
        node.write("probe.yaml", &rules(9)).unwrap();
        node.apply().unwrap();
        let before = node.counters().unwrap();
        PacketSocket::open(&lab.client.namespace, "eth0").unwrap().send(&packet.frame()).unwrap();
        let deadline = Instant::now() + 2 * SECOND;
        while node.counters().unwrap().since(&before).get("pass/over-mtu") == 0 {
            assert!(Instant::now() < deadline, "{attach}: {:?}", node.counters().unwrap().since(&before));
        }
        lab.router.set_mtu("upa", 9_000).unwrap();
        node.write("probe.yaml", &rules(0)).unwrap();
    }
}

/// Another build of wayleave: the released binary with another BPF object in it, which differs in a byte that nobody reads (of
/// the padding in its ELF header). So its programs have other names and are loaded anew, and decide alike.
fn another_build(node: &TestNode) -> PathBuf {
    /// ELF64, little-endian, version 1, no ABI, seven bytes of padding, relocatable, for BPF (247).
    const BPF_OBJECT: [u8; 20] = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\xf7\0";
    const PADDING: usize = 15;
    let mut bytes = fs::read(binary().unwrap()).unwrap();
    let places: Vec<usize> =
        (0..bytes.len() - BPF_OBJECT.len()).filter(|at| bytes[*at..].starts_with(&BPF_OBJECT)).collect();
    assert_eq!(places.len(), 1, "one BPF object in the binary");
    bytes[places[0] + PADDING] = 1;
    let path = node.scratch().join("wayleave");
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn run_of(node: &TestNode, binary: &Path, arguments: &[&str]) -> Outcome {
    node.command_of(binary, arguments).unwrap().output().unwrap().into()
}

#[test]
fn another_version_of_the_program_takes_over_without_loss() {
    let lab = lab();
    let mut node = node(&lab, "native");
    // One of each kind; packets come in by lan.
    node.set_attach("sink", "generic").unwrap();
    node.set_attach("uplink-b", "tc").unwrap();
    let other = another_build(&node);
    let frame = probe(&lab, PROBE, b"probe").frame();
    for attach in ["native", "tc"] {
        node.set_attach("lan", attach).unwrap();
        node.apply().unwrap();
        let programs = || BpfObjects::pinned(&node.pins()).unwrap().programs;
        let (status, objects) = (node.status().unwrap(), programs());
        let (before, router_before) = (node.counters().unwrap(), lab.router.counters("lan").unwrap().rx_packets);
        let exchange = |binary: &Path| {
            let applied = run_of(&node, binary, &["apply", "--auto-approve"]);
            assert_eq!(applied.code, Some(0), "{applied:?}");
            assert!(applied.stdout.contains("replace the program on lan"), "{applied:?}");
        };
        // Paced: whatever was sent arrives.
        lossless(&lab, &[&lab.upstreams[0]], &frame, || {
            for binary in [&other, &binary().unwrap(), &other] {
                exchange(binary);
            }
        });
        let now = programs();
        assert!(objects.is_disjoint(&now), "every program is another one: {objects:?} {now:?}");
        // As fast as it goes: whatever the router took was forwarded, by one program or the other.
        let blaster = Blaster::frames(&lab.client.namespace, "eth0", vec![frame.clone()], None).unwrap();
        for binary in [&binary().unwrap(), &other, &binary().unwrap()] {
            exchange(binary);
        }
        let sent = blaster.stop().unwrap();
        thread::sleep(SECOND / 5);
        let after = node.status().unwrap();
        assert_eq!((&after["generation"], &after["digest"]), (&status["generation"], &status["digest"]));
        let counted = node.counters().unwrap().since(&before);
        let taken = lab.router.counters("lan").unwrap().rx_packets - router_before;
        println!("{attach}: {sent} sent at full speed; in all {taken} taken, {counted:?}");
        let forwarded = counted.get("forward/forwarded");
        assert!(sent > 10_000 && forwarded + 50 >= taken, "{attach}: {taken} taken, {counted:?}");
        // Up-a answers that nobody listens there; its answers come in by upa. The stacks in the namespaces report their
        // multicast groups when they please.
        let others = ["pass/not-ip", "pass/no-route", "pass/link-not-ours"]
            .map(|reason| counted.get(reason))
            .iter()
            .sum::<u64>();
        assert_eq!(counted.total(), forwarded + others, "{attach}: nothing else: {counted:?}");
        assert_eq!((&after["leftovers"], &after["health"]["state"]), (&0.into(), &"healthy".into()));
    }
}

/// What a command of this version says of the newer layout, which it must not touch.
fn refused(node: &TestNode, arguments: &[&str]) {
    let outcome = node.run(arguments).unwrap();
    assert_eq!(outcome.code, Some(1), "{arguments:?}: {outcome:?}");
    let ours = format!("(layout {LAYOUT_VERSION})");
    for word in ["layout 99", "written by wayleave 9.9.9", &ours, "newer wayleave"] {
        assert!(outcome.stderr.contains(word), "{arguments:?}: {outcome:?}");
    }
}

#[test]
fn a_newer_layout_is_left_alone() {
    let lab = lab();
    let node = node(&lab, "native");
    node.apply().unwrap();
    node.write("probe.yaml", &rules(1)).unwrap();
    node.apply().unwrap();
    // As a newer version would have left it: its own directory, and who made it.
    let newer = node.place().join("layout-99");
    fs::rename(node.pins(), &newer).unwrap();
    fs::remove_file(newer.join("version")).unwrap();
    symlink("9.9.9", newer.join("version")).unwrap();
    let held = BpfObjects::pinned(&node.place()).unwrap();
    node.write("probe.yaml", &rules(2)).unwrap();
    let frame = probe(&lab, PROBE, b"probe").frame();
    lossless(&lab, &[&lab.upstreams[0]], &frame, || {
        refused(&node, &["apply", "--auto-approve"]);
        refused(&node, &["apply"]);
        refused(&node, &["rollback", "--auto-approve"]);
        refused(&node, &["run"]);
        refused(&node, &["detach", "--auto-approve"]);
        refused(&node, &["detach"]);
        let status = node.status().unwrap();
        assert_eq!((&status["state"], &status["health"]["reason"]), (&"newer-layout".into(), &"newer-layout".into()));
        let other = serde_json::json!([{"version": 99, "directory": newer, "newer": true, "written_by": "9.9.9"}]);
        assert_eq!(status["other_layouts"], other);
        let human = node.succeed(&["status"]).unwrap().stdout;
        assert!(human.contains("only a newer wayleave can read or change what is live"), "{human}");
        assert!(!human.contains("no generation is live") && !human.contains("NOT ATTACHED"), "{human}");
        let doctor = node.run(&["doctor"]).unwrap();
        assert!(doctor.code == Some(1) && doctor.stdout.contains("layout 99"), "{doctor:?}");
    });
    assert_eq!(BpfObjects::pinned(&node.place()).unwrap(), held, "nothing was made or freed");
    assert_eq!(fs::read_dir(node.place()).unwrap().count(), 1, "no directory was made");
    // Back with the newer version, all is as it was.
    fs::rename(&newer, node.pins()).unwrap();
    assert_eq!(node.status().unwrap()["generation"], 2);
    node.apply().unwrap();
    assert_eq!(node.status().unwrap()["generation"], 3);
}

/// Moves what this version has pinned to where an older one pins.
type MakeOlder = fn(&TestNode);

fn to_version_1(node: &TestNode) {
    fs::rename(node.pins(), node.place().join("layout-1")).unwrap();
}

/// The layout without a directory of its own pinned links by port.
fn to_no_directory(node: &TestNode) {
    let ports = [("lan", "lan"), ("upa", "uplink-a"), ("upb", "uplink-b"), ("upz", "sink")];
    for hook in ["xdp", "tc"] {
        let directory = node.pins().join("link").join(hook);
        for (device, port) in ports {
            let from = directory.join(device);
            if from.symlink_metadata().is_ok() {
                fs::rename(from, node.pins().join("link").join(port)).unwrap();
            }
        }
        fs::remove_dir(directory).unwrap();
    }
    fs::remove_file(node.pins().join("version")).unwrap();
    for entry in fs::read_dir(node.pins()).unwrap() {
        let entry = entry.unwrap();
        fs::rename(entry.path(), node.place().join(entry.file_name())).unwrap();
    }
    fs::remove_dir(node.pins()).unwrap();
}

#[test]
fn an_older_layout_is_taken_over_without_loss() {
    let lab = lab();
    let frame = probe(&lab, PROBE, b"probe").frame();
    let layouts: [(&str, MakeOlder); 2] = [("layout 1", to_version_1), ("no directory", to_no_directory)];
    for (name, make_older) in layouts {
        for attach in ["native", "tc"] {
            let what = &format!("{name}, {attach}");
            let mut node = node(&lab, "native");
            node.set_attach("lan", attach).unwrap();
            node.apply().unwrap();
            node.write("probe.yaml", &rules(1)).unwrap();
            node.apply().unwrap();
            make_older(&node);
            let held = BpfObjects::pinned(&node.place()).unwrap();
            let status = node.status().unwrap();
            assert_eq!(
                (&status["state"], &status["other_layouts"][0]["newer"]),
                (&"older-layout".into(), &false.into())
            );
            assert_eq!(interface(&status, "lan")["attached"], true, "{what}");
            // A port that is no longer wanted goes with the older layout.
            let text = fs::read_to_string(node.config()).unwrap();
            let without: String =
                text.lines().filter(|line| !line.contains("sink:")).map(|l| format!("{l}\n")).collect();
            fs::write(node.config(), without).unwrap();
            lossless(&lab, &[&lab.upstreams[0]], &frame, || {
                node.apply().unwrap();
            });
            let status = node.status().unwrap();
            assert_eq!(
                (&status["state"], &status["generation"]),
                (&"forwarding".into(), &3.into()),
                "{what}: {status}"
            );
            assert_eq!((&status["leftovers"], &status["other_layouts"]), (&0.into(), &serde_json::json!([])), "{what}");
            let left: Vec<_> = fs::read_dir(node.place()).unwrap().map(|e| e.unwrap().path()).collect();
            assert_eq!(left, [node.pins()], "{what}");
            let now = BpfObjects::pinned(&node.place()).unwrap();
            assert!(held.maps.is_disjoint(&now.maps) && held.programs.is_disjoint(&now.programs), "{what}: all anew");
            assert!(
                !lab.router.ip("-d link show dev upz").unwrap().contains("prog/xdp"),
                "{what}: the sink is detached"
            );
            assert_eq!(node.run(&["plan", "--detailed-exitcode"]).unwrap().code, Some(0), "{what}");
            let deadline = Instant::now() + 5 * SECOND;
            while !held.alive().is_empty() {
                assert!(Instant::now() < deadline, "{what}: still there: {:?}", held.alive());
                thread::sleep(Duration::from_millis(20));
            }
            // Detaching takes an older layout out, too.
            make_older(node_with_sink(&mut node, &text));
            node.succeed(&["detach", "--auto-approve"]).unwrap();
            assert!(!node.place().exists(), "{what}");
            assert!(!lab.router.ip("-d link show").unwrap().contains("prog/xdp"), "{what}");
        }
    }
}

/// The node with all its ports attached again.
fn node_with_sink<'a, 'n>(node: &'a mut TestNode<'n>, config: &str) -> &'a TestNode<'n> {
    fs::write(node.config(), config).unwrap();
    node.apply().unwrap();
    node
}
