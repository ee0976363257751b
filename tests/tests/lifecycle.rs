//! A node's life: apply, plan, rollback, retire, grow, refuse, detach; each checked in the kernel and by packets.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use fib::layout::RULES_START;
use serde_json::Value;
use wayleave_tests::{
    Blaster, BpfObjects, Host, Namespace, Packet, PacketSocket, Seen, TestNode, Topology, attach_xdp_drop, binary,
    lossless, require_root_and_bpf, veth,
};

const SECOND: Duration = Duration::from_secs(1);
const QUIET: Duration = Duration::from_millis(100);
const PROBE: &str = "198.51.100.9";

fn lab() -> Topology {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    lab.fix_neighbours().unwrap();
    lab
}

/// One policy that sends the probe's prefix to an upstream, with `more` routes.
fn rules(upstream: char, more: &str) -> String {
    let number = u32::from(upstream) - u32::from('a') + 1;
    format!(
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: probe}}\nspec:\n  nextHops:\n    - {{name: up-{upstream}, \
         via: 10.77.{number}.2, port: uplink-{upstream}}}\n  routes:\n    - {{prefix: 198.51.100.0/24, nextHops: [{{name: \
         up-{upstream}}}]}}\n{more}"
    )
}

/// A list of 2^17 host routes: more than fits into the smallest class.
fn many_prefixes() -> String {
    (0..1u32 << 17).fold(String::new(), |mut list, number| {
        let [_, a, b, c] = (number * 2).to_be_bytes();
        writeln!(list, "100.{a}.{b}.{c}/32").unwrap();
        list
    })
}

fn many_rules(upstream: char) -> String {
    rules(upstream, &format!("    - {{prefixesFrom: many.txt, nextHops: [{{name: up-{upstream}}}]}}\n"))
}

fn probe(lab: &Topology) -> Packet {
    Packet::between(lab.client.v4.into(), PROBE.parse().unwrap())
        .macs(lab.client.mac, lab.client.router_mac)
        .payload(b"probe")
}

/// The upstream that a probe packet arrives at: `a`, `b`, or none.
fn probe_arrives_at(lab: &Topology) -> Option<char> {
    let mut sockets: Vec<_> = lab.upstreams.iter().map(|o| PacketSocket::open(&o.namespace, "eth0").unwrap()).collect();
    PacketSocket::open(&lab.client.namespace, "eth0").unwrap().send(&probe(lab).frame()).unwrap();
    sockets.iter_mut().zip('a'..).find_map(|(socket, letter)| {
        let frame = socket.receive(QUIET, |frame| frame.ends_with(b"probe")).unwrap()?;
        let seen = Seen::parse(&frame).unwrap();
        assert!(seen.checksums_hold && seen.ttl == 63, "{seen:?}");
        Some(letter)
    })
}

/// The rules of every generation that the kernel holds, by number, read from kernel memory.
fn rules_in_kernel(lab: &Topology, node: &TestNode) -> Vec<(u64, Vec<u8>)> {
    lab.router
        .enter(|| {
            let observed = node.library().unwrap().observe().unwrap();
            let generations = observed.live.iter().chain(&observed.retained);
            generations
                .map(|generation| {
                    let view = generation.image.view().unwrap();
                    view.verify_digest().unwrap();
                    (generation.number, view.bytes()[RULES_START as usize..].to_vec())
                })
                .collect()
        })
        .unwrap()
}

fn generation(status: &Value) -> u64 {
    status["generation"].as_u64().unwrap()
}

#[test]
fn what_was_applied_needs_no_change() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write_samples().unwrap();
    let before = node.run(&["plan", "--detailed-exitcode"]).unwrap();
    assert_eq!(before.code, Some(2), "{before:?}");
    assert_eq!(node.run(&["plan"]).unwrap().code, Some(0));
    let nothing = BpfObjects::pinned(&node.pins()).unwrap();
    assert!(nothing.is_empty(), "plan has made {nothing:?}");
    node.apply().unwrap();
    let plan = node.run(&["plan", "--detailed-exitcode", "--format", "json"]).unwrap();
    assert_eq!(plan.code, Some(0), "{plan:?}");
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    assert_eq!(plan["changes"].as_array().map(Vec::len), Some(0), "{plan}");
    let held = BpfObjects::pinned(&node.pins()).unwrap();
    let status = node.status().unwrap();
    node.apply().unwrap();
    assert_eq!(generation(&node.status().unwrap()), generation(&status));
    assert_eq!(BpfObjects::pinned(&node.pins()).unwrap(), held, "an apply without changes makes nothing");
    // The same rules in other files, in another order: the same bytes, no new generation.
    let text = fs::read_to_string(node.source().join("blocked.yaml")).unwrap();
    fs::remove_file(node.source().join("blocked.yaml")).unwrap();
    node.write("00-first.yaml", &text).unwrap();
    let moved = node.run(&["plan", "--detailed-exitcode"]).unwrap();
    println!("a renamed file: exit {:?}\n{}", moved.code, moved.stdout);
}

#[test]
fn a_status_says_what_is_live() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.set_attach("sink", "generic").unwrap();
    let empty = node.status().unwrap();
    assert_eq!((&empty["state"], &empty["generation"]), (&"empty".into(), &Value::Null));
    node.write_samples().unwrap();
    node.apply().unwrap();
    let status = node.status().unwrap();
    assert_eq!(status["format_version"], 1);
    assert_eq!(status["state"], "forwarding");
    assert_eq!(status["generation"], 1);
    assert!(status["revision"].as_str().unwrap().starts_with("dir@sha256:"));
    assert!(status["digest"].as_str().unwrap().len() >= 64);
    assert_eq!(status["routes"], serde_json::json!({"ipv4": 3, "ipv6": 3}));
    assert_eq!((&status["services"], &status["filters"]), (&0.into(), &0.into()));
    assert_eq!(status["health"]["state"], "healthy");
    assert_eq!(status["leftovers"], 0);
    assert_eq!((&status["sync"]["state"], &status["sync"]["daemon"]), (&"in-sync".into(), &"never run".into()));
    assert_eq!(status["source"]["directory"], node.source().to_str().unwrap());
    let mode = |status: &Value, port: &str| {
        let interfaces = status["interfaces"].as_array().unwrap();
        let one = interfaces.iter().find(|i| i["port"] == port).unwrap();
        assert_eq!(one["attached"], true, "{one}");
        one["mode"].as_str().unwrap().to_owned()
    };
    assert_eq!(mode(&status, "lan"), "native");
    assert_eq!(mode(&status, "sink"), "generic");
    let human = node.succeed(&["status"]).unwrap().stdout;
    assert!(human.contains("sink on upz: attached, generic"), "{human}");
    // A device without native XDP falls back by itself: the loopback's driver has none.
    node.set_port("loop", "lo").unwrap();
    let applied = node.apply().unwrap();
    let why = "the driver has no XDP (Operation not supported)";
    assert!(applied.stderr.contains(&format!("lo attached for loop, tc: {why}")), "{applied:?}");
    let status = node.status().unwrap();
    assert_eq!(mode(&status, "loop"), "tc");
    let interfaces = status["interfaces"].as_array().unwrap();
    let loopback = interfaces.iter().find(|i| i["port"] == "loop").unwrap();
    assert_eq!((&loopback["configured"], &loopback["why"]), (&"auto".into(), &why.into()));
    let human = node.succeed(&["status"]).unwrap().stdout;
    assert!(human.contains(&format!("loop on lo: attached, tc ({why})")), "{human}");
}

#[test]
fn ports_move_between_xdp_and_tc() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.write_samples().unwrap();
    let modes = |node: &TestNode| -> Vec<String> {
        let status = node.status().unwrap();
        let all = status["interfaces"].as_array().unwrap();
        all.iter().map(|i| i["mode"].as_str().unwrap_or("none").to_owned()).collect()
    };
    for attach in ["tc", "native", "tc"] {
        for port in ["lan", "uplink-a", "uplink-b", "sink"] {
            node.set_attach(port, attach).unwrap();
        }
        node.apply().unwrap();
        assert_eq!(modes(&node), [attach; 4]);
        assert_eq!(node.run(&["plan", "--detailed-exitcode"]).unwrap().code, Some(0), "nothing is left to do");
    }
    node.succeed(&["detach", "--auto-approve"]).unwrap();
    assert_eq!(modes(&node), ["none"; 4]);
}

#[test]
fn a_rollback_restores_the_bytes_and_the_traffic() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a', "")).unwrap();
    node.apply().unwrap();
    assert_eq!(probe_arrives_at(&lab), Some('a'));
    let nothing = node.run(&["rollback", "--auto-approve"]).unwrap();
    assert_eq!(nothing.code, Some(1), "{nothing:?}");
    assert!(nothing.stderr.contains("nothing to roll back to"), "{nothing:?}");
    let first = node.status().unwrap();
    node.write("probe.yaml", &rules('b', "")).unwrap();
    node.apply().unwrap();
    let second = node.status().unwrap();
    assert_eq!(probe_arrives_at(&lab), Some('b'));
    let refused = node.run(&["rollback"]).unwrap();
    assert_eq!(refused.code, Some(1), "without a terminal it must not roll back: {refused:?}");
    assert_eq!(probe_arrives_at(&lab), Some('b'));

    node.succeed(&["rollback", "--auto-approve"]).unwrap();
    let third = node.status().unwrap();
    assert_eq!((generation(&third), &third["digest"]), (3, &first["digest"]));
    assert_eq!(third["revision"], first["revision"]);
    assert_eq!(probe_arrives_at(&lab), Some('a'));
    let images = rules_in_kernel(&lab, &node);
    let bytes = |number: u64| images.iter().find(|(n, _)| *n == number).map(|(_, bytes)| bytes).unwrap();
    assert_eq!(bytes(3), bytes(1));
    assert_ne!(bytes(3), bytes(2));

    // Again: to what was before this one.
    node.succeed(&["rollback", "--auto-approve"]).unwrap();
    let fourth = node.status().unwrap();
    assert_eq!((generation(&fourth), &fourth["digest"]), (4, &second["digest"]));
    assert_eq!(probe_arrives_at(&lab), Some('b'));
    // A named one.
    node.succeed(&["rollback", "1", "--auto-approve"]).unwrap();
    assert_eq!(node.status().unwrap()["digest"], first["digest"]);
    let unknown = node.run(&["rollback", "77", "--auto-approve"]).unwrap();
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.stderr.contains("no generation 77"), "{unknown:?}");
    let history = node.succeed(&["history", "--format", "json"]).unwrap();
    let history: Value = serde_json::from_str(&history.stdout).unwrap();
    let events: Vec<_> = history["history"].as_array().unwrap().iter().map(|e| e["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["rolled-back", "rolled-back", "rolled-back", "applied", "applied"]);
}

#[test]
fn eight_generations_are_kept_and_older_ones_are_freed() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    let mut first_image = None;
    for number in 1..=11u32 {
        node.write("probe.yaml", &rules('a', &format!("    - {{prefix: 192.0.{number}.0/24, action: drop}}\n")))
            .unwrap();
        node.apply().unwrap();
        let objects = BpfObjects::pinned(&node.pins()).unwrap();
        first_image.get_or_insert(objects);
    }
    let status = node.status().unwrap();
    let retained: Vec<u64> = status["retained"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    assert_eq!((generation(&status), retained), (11, vec![10, 9, 8, 7, 6, 5, 4]));
    let now = BpfObjects::pinned(&node.pins()).unwrap();
    // Of the first apply everything is still in use but its image.
    let gone = first_image.unwrap().without(&now);
    assert_eq!((gone.maps.len(), gone.programs.len()), (1, 0));
    wait_until_gone(&gone);
    node.succeed(&["rollback", "4", "--auto-approve"]).unwrap();
    assert_eq!(node.run(&["rollback", "3", "--auto-approve"]).unwrap().code, Some(1));
}

/// The kernel frees objects some time after their last reference.
fn wait_until_gone(objects: &BpfObjects) {
    let deadline = Instant::now() + 5 * SECOND;
    while !objects.alive().is_empty() {
        assert!(Instant::now() < deadline, "still there: {:?}", objects.alive());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_is_refused_changes_nothing() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a', "")).unwrap();
    node.apply().unwrap();
    let held = BpfObjects::pinned(&node.pins()).unwrap();
    let unchanged = |what: &str| {
        assert_eq!(generation(&node.status().unwrap()), 1, "{what}");
        assert_eq!(BpfObjects::pinned(&node.pins()).unwrap(), held, "{what}");
        assert_eq!(probe_arrives_at(&lab), Some('a'), "{what}");
    };
    let host_bits = rules('b', "    - {prefix: 192.0.2.1/24, action: drop}\n");
    let unknown_port = rules('b', "").replace("uplink-b", "uplink-x");
    let cases = [
        ("broken YAML", "spec: [", "WL"),
        ("host bits", &host_bits, "192.0.2.0/24"),
        ("unknown port", &unknown_port, "uplink-x"),
    ];
    for (what, text, says) in cases {
        node.write("probe.yaml", text).unwrap();
        for arguments in [&["apply", "--auto-approve"][..], &["plan"]] {
            let outcome = node.run(arguments).unwrap();
            assert_eq!(outcome.code, Some(3), "{what}: {outcome:?}");
            assert!(outcome.stderr.contains(says) && outcome.stderr.contains("probe.yaml"), "{what}: {outcome:?}");
        }
        unchanged(what);
    }
    fs::remove_file(node.source().join("probe.yaml")).unwrap();
    let empty = node.run(&["apply", "--auto-approve"]).unwrap();
    println!("empty source: {empty:?}");
    assert!(matches!(empty.code, Some(1 | 3)), "an empty source must not remove everything: {empty:?}");
    unchanged("empty source");
    fs::remove_dir(node.source()).unwrap();
    let missing = node.run(&["apply", "--auto-approve"]).unwrap();
    println!("missing source: {missing:?}");
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(missing.stderr.contains(node.source().to_str().unwrap()), "{missing:?}");
    unchanged("missing source");
    // Nobody to ask is a no.
    fs::create_dir(node.source()).unwrap();
    node.write("probe.yaml", &rules('b', "")).unwrap();
    assert_eq!(node.run(&["apply"]).unwrap().code, Some(1));
    unchanged("nobody to ask");
}

#[test]
fn errors_name_what_to_do() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a', "")).unwrap();
    // As nobody, from a copy that nobody can read.
    let readable = tempfile::tempdir().unwrap();
    let copy = readable.path().join("wayleave");
    fs::copy(binary().unwrap(), &copy).unwrap();
    for path in [readable.path(), node.scratch(), &copy] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let as_nobody = || {
        let mut command = Command::new(&copy);
        command.arg("--config").arg(node.config()).args(["apply", "--auto-approve"]).uid(65_534).gid(65_534).output()
    };
    let output = lab.router.enter(as_nobody).unwrap().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    println!("as nobody: {stderr}");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("error: ") && stderr.contains("this needs root"), "{stderr}");
    // A device that is not there.
    node.set_port("uplink-b", "absent0").unwrap();
    let absent = node.run(&["apply", "--auto-approve"]).unwrap();
    assert_eq!(absent.code, Some(1));
    assert!(absent.stderr.contains("uplink-b") && absent.stderr.contains("absent0"), "{absent:?}");
    node.set_port("uplink-b", "upb").unwrap();
    // Somebody else's program on the device.
    let other = attach_xdp_drop(&lab.router, "upb").unwrap();
    let busy = node.run(&["apply", "--auto-approve"]).unwrap();
    println!("busy: {}", busy.stderr);
    assert_eq!(busy.code, Some(1));
    assert!(busy.stderr.contains("upb") && busy.stderr.contains("another XDP program"), "{busy:?}");
    drop(other);
    node.apply().unwrap();
    assert_eq!(probe_arrives_at(&lab), Some('a'));
    // Not a bpf file system.
    let elsewhere = TestNode::router(&lab).unwrap();
    elsewhere.write("probe.yaml", &rules('a', "")).unwrap();
    let text = fs::read_to_string(elsewhere.config()).unwrap();
    let wrong = text.replace(&elsewhere.place().display().to_string(), "/tmp/not-a-bpffs");
    fs::write(elsewhere.config(), wrong).unwrap();
    let outcome = elsewhere.run(&["apply", "--auto-approve"]).unwrap();
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("mount -t bpf"), "{outcome:?}");
    assert!(!Path::new("/tmp/not-a-bpffs").exists());
}

#[test]
fn a_second_process_waits_for_the_lock() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a', "")).unwrap();
    node.apply().unwrap();
    node.write("probe.yaml", &rules('b', "")).unwrap();
    let library = node.library().unwrap();
    let lock = library.lock().unwrap();
    let mut waiting = node.command(&["apply", "--auto-approve"]).unwrap().stdout(Stdio::null()).spawn().unwrap();
    thread::sleep(SECOND);
    assert!(waiting.try_wait().unwrap().is_none(), "it waits");
    assert_eq!(probe_arrives_at(&lab), Some('a'));
    drop(lock);
    assert_eq!(waiting.wait().unwrap().code(), Some(0));
    assert_eq!(probe_arrives_at(&lab), Some('b'));
    // And gives up with a clear word when nobody lets go.
    node.write("probe.yaml", &rules('a', "")).unwrap();
    let _lock = library.lock().unwrap();
    let begun = Instant::now();
    let refused = node.run(&["apply", "--auto-approve"]).unwrap();
    assert!(begun.elapsed() < 30 * SECOND);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("another wayleave process"), "{refused:?}");
    assert_eq!(probe_arrives_at(&lab), Some('b'));
}

#[test]
fn a_larger_class_is_entered_and_left_without_loss() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a', "")).unwrap();
    node.apply().unwrap();
    let capacity = |status: &Value| status["image"]["capacity"].as_u64().unwrap();
    let small = node.status().unwrap();
    assert_eq!(capacity(&small), 1 << 20);
    fs::write(node.source().join("many.txt"), many_prefixes()).unwrap();
    node.write("probe.yaml", &many_rules('b')).unwrap();
    let both: Vec<&Host> = lab.upstreams.iter().collect();
    lossless(&lab, &both, &probe(&lab).frame(), || drop(node.apply().unwrap()));
    let large = node.status().unwrap();
    assert!(capacity(&large) > 1 << 20, "{large}");
    assert_eq!(
        (&large["leftovers"], &large["state"], &large["routes"]["ipv4"]),
        (&0.into(), &"forwarding".into(), &131_073.into())
    );
    assert_eq!(probe_arrives_at(&lab), Some('b'));
    assert!(!node.pins().join("class-20").exists(), "the class that was left is gone");
    lossless(&lab, &both, &probe(&lab).frame(), || drop(node.succeed(&["rollback", "--auto-approve"]).unwrap()));
    let back = node.status().unwrap();
    assert_eq!(back["digest"], small["digest"]);
    assert_eq!(probe_arrives_at(&lab), Some('a'));
    let images = rules_in_kernel(&lab, &node);
    assert_eq!(images.iter().find(|(n, _)| *n == 3).unwrap().1, images.iter().find(|(n, _)| *n == 1).unwrap().1);
    lossless(&lab, &both, &probe(&lab).frame(), || drop(node.succeed(&["rollback", "--auto-approve"]).unwrap()));
    assert_eq!(node.status().unwrap()["digest"], large["digest"]);
    assert_eq!(probe_arrives_at(&lab), Some('b'));
    assert_eq!(node.status().unwrap()["leftovers"], 0);
    // Nothing but publishing: the control, with the same counting.
    lossless(&lab, &both, &probe(&lab).frame(), || thread::sleep(SECOND));
}

#[test]
fn detach_frees_everything() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a', "")).unwrap();
    node.apply().unwrap();
    node.write("probe.yaml", &rules('b', "")).unwrap();
    node.apply().unwrap();
    let held = BpfObjects::pinned(&node.pins()).unwrap();
    // Shared maps, outer map, the candidate's counters, two generations; both programs.
    assert!(held.maps.len() >= 8 && held.programs.len() == 2, "{held:?}");
    let refused = node.run(&["detach"]).unwrap();
    assert_eq!(refused.code, Some(4), "{refused:?}");
    assert_eq!(probe_arrives_at(&lab), Some('b'), "the process is gone, forwarding goes on");
    node.succeed(&["detach", "--auto-approve"]).unwrap();
    assert!(!node.place().exists());
    wait_until_gone(&held);
    assert_eq!(probe_arrives_at(&lab), None);
    lab.route_in_kernel("198.51.100.0/24", lab.upstream(0).unwrap()).unwrap();
    assert_eq!(probe_arrives_at(&lab), Some('a'), "packets are the kernel's again");
    assert_eq!(node.status().unwrap()["state"], "empty");
    node.succeed(&["detach", "--auto-approve"]).unwrap();
    // And back: numbers go on.
    node.apply().unwrap();
    assert_eq!(generation(&node.status().unwrap()), 3);
    assert_eq!(probe_arrives_at(&lab), Some('b'));
}

#[test]
fn a_port_that_leaves_or_moves_is_followed() {
    let lab = lab();
    let spare = Namespace::new("spare").unwrap();
    veth(&lab.router, "extra", &spare, "eth0").unwrap();
    let mut node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a', "")).unwrap();
    node.apply().unwrap();
    let attached = |device: &str| lab.router.ip(&format!("-d link show dev {device}")).unwrap().contains("prog/xdp");
    node.set_port("spare", "extra").unwrap();
    node.apply().unwrap();
    assert!(attached("extra"));
    node.set_port("spare", "upb").unwrap();
    let twice = node.run(&["apply", "--auto-approve"]).unwrap();
    assert_eq!(twice.code, Some(3), "one device, two ports: {twice:?}");
    // The device is replaced by another of the same name.
    lab.router.ip("link delete extra").unwrap();
    veth(&lab.router, "extra", &spare, "eth0").unwrap();
    node.set_port("spare", "extra").unwrap();
    assert_eq!(node.status().unwrap()["health"]["reason"], "port-not-attached");
    node.apply().unwrap();
    assert!(attached("extra"));
    let status = node.status().unwrap();
    // Its link-local address is another one; no rule depends on that.
    assert_eq!((&status["health"]["state"], generation(&status)), (&"healthy".into(), 1));
    assert_eq!(probe_arrives_at(&lab), Some('a'));
}

#[test]
fn the_tools_of_the_system_see_an_ordinary_xdp_program() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a', "")).unwrap();
    node.apply().unwrap();
    let link = lab.router.ip("-d link show dev lan").unwrap();
    assert!(link.contains("prog/xdp") && link.contains("name wayleave"), "{link}");
    // Many more packets than a ring holds go through.
    let to: IpAddr = PROBE.parse().unwrap();
    let upstream = lab.upstream(0).unwrap();
    let _drop = attach_xdp_drop(&upstream.namespace, "eth0").unwrap();
    let before = upstream.namespace.counters("eth0").unwrap().rx_packets;
    let blaster = Blaster::udp(&lab.client.namespace, &[(to, 9).into()], 18, Some(50_000)).unwrap();
    blaster.wait().unwrap();
    thread::sleep(QUIET);
    let arrived = upstream.namespace.counters("eth0").unwrap().rx_packets - before;
    println!("{arrived} of 50000 arrived at full speed");
    assert!(arrived > 10_000);
}
