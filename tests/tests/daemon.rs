//! The daemon follows its source and its node, survives what happens to both, and is not needed for forwarding.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use wayleave_tests::{Daemon, Mac, Packet, PacketSocket, Seen, TestNode, Topology, require_root_and_bpf};

const SECOND: Duration = Duration::from_secs(1);
/// So long may a slow machine take; what is promised is a benchmark's business.
const BOUND: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);

fn lab() -> Topology {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    lab.fix_neighbours().unwrap();
    lab
}

/// Sends the probe to upstream a or b.
fn rules(upstream: char, remark: &str) -> String {
    let number = u32::from(upstream) - u32::from('a') + 1;
    format!(
        "# {remark}\napiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: probe}}\nspec:\n  nextHops:\n    - {{name: \
         up-{upstream}, via: 10.77.{number}.2, port: uplink-{upstream}}}\n  routes:\n    - {{prefix: 198.51.100.0/24, nextHops: \
         [{{name: up-{upstream}}}]}}\n"
    )
}

/// Sends probes and says where they come out.
struct Wire {
    sender: PacketSocket,
    receivers: Vec<PacketSocket>,
    frame: Vec<u8>,
}

impl Wire {
    fn new(lab: &Topology) -> Self {
        let packet = Packet::between(lab.client.v4.into(), "198.51.100.9".parse().unwrap())
            .macs(lab.client.mac, lab.client.router_mac)
            .payload(b"probe");
        Self {
            sender: PacketSocket::open(&lab.client.namespace, "eth0").unwrap(),
            receivers: lab.upstreams.iter().map(|o| PacketSocket::open(&o.namespace, "eth0").unwrap()).collect(),
            frame: packet.frame(),
        }
    }

    /// Where one probe arrives, and with which destination MAC; `None` when it is lost.
    fn probe(&mut self) -> Option<(char, Mac)> {
        // Nothing of an earlier probe may count.
        self.sender.send(&self.frame).unwrap();
        for _ in 0..20 {
            for (receiver, letter) in self.receivers.iter_mut().zip('a'..) {
                let frame = receiver.receive(Duration::from_millis(2), |frame| frame.ends_with(b"probe")).unwrap();
                if let Some(seen) = frame.and_then(|frame| Seen::parse(&frame)) {
                    return Some((letter, seen.destination_mac));
                }
            }
        }
        None
    }

    /// How long until probes arrive at this upstream.
    fn wait_for(&mut self, letter: char, since: Instant, what: &str) -> Duration {
        loop {
            let arrived = self.probe().map(|(at, _)| at);
            if arrived == Some(letter) {
                return since.elapsed();
            }
            assert!(since.elapsed() < BOUND, "{what}: probes arrive at {arrived:?}, not at {letter}");
        }
    }
}

/// Waits until the status is as wanted.
fn wait_for_status(node: &TestNode, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + BOUND;
    loop {
        let status = node.status().unwrap();
        if wanted(&status) {
            return status;
        }
        let log = fs::read_to_string(node.scratch().join("log")).unwrap_or_default();
        assert!(Instant::now() < deadline, "{what}: {status:#}\n{log}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_changed_file_is_live_soon() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a', "first")).unwrap();
    let daemon = Daemon::start(&node);
    let mut wire = Wire::new(&lab);
    assert_eq!(wire.probe().map(|(at, _)| at), Some('a'));
    let path = node.source().join("probe.yaml");
    let mut latencies = Vec::new();
    for round in 0..30 {
        let letter = if round % 2 == 0 { 'b' } else { 'a' };
        let begun = Instant::now();
        match round % 3 {
            // In place, by rename as editors do, and by removing first.
            0 => fs::write(&path, rules(letter, "in place")).unwrap(),
            1 => {
                let temporary = node.source().join(".probe.yaml.swp");
                fs::write(&temporary, rules(letter, "renamed")).unwrap();
                fs::rename(&temporary, &path).unwrap();
            }
            _ => {
                fs::rename(&path, node.source().join("probe.yaml~")).unwrap();
                fs::write(&path, rules(letter, "anew")).unwrap();
                fs::remove_file(node.source().join("probe.yaml~")).unwrap();
            }
        }
        latencies.push(wire.wait_for(letter, begun, "a changed file"));
    }
    latencies.sort_unstable();
    println!(
        "file changed to packets changed, 30 times: median {:?}, slowest {:?}",
        latencies[latencies.len() / 2],
        latencies[latencies.len() - 1]
    );
    let status = node.status().unwrap();
    assert_eq!(status["sync"]["state"], "in-sync");
    assert_eq!(status["sync"]["daemon"], "running");
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
    assert_eq!(wire.probe().map(|(at, _)| at), Some('a'), "forwarding goes on");
    assert_eq!(node.status().unwrap()["sync"]["daemon"], "stopped");
}

#[test]
fn a_kubernetes_volume_is_followed_by_its_data_link() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    // As the kubelet does it: files are links through ..data, which is renamed over.
    let volume = |name: &str, letter: char| {
        let directory = node.source().join(name);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("probe.yaml"), rules(letter, name)).unwrap();
        symlink(name, node.source().join("..data_tmp")).unwrap();
        fs::rename(node.source().join("..data_tmp"), node.source().join("..data")).unwrap();
    };
    volume("..2026_01", 'a');
    symlink("..data/probe.yaml", node.source().join("probe.yaml")).unwrap();
    let daemon = Daemon::start(&node);
    let mut wire = Wire::new(&lab);
    wire.wait_for('a', Instant::now(), "the first volume");
    for (number, letter) in [(2, 'b'), (3, 'a'), (4, 'b')] {
        let begun = Instant::now();
        volume(&format!("..2026_0{number}"), letter);
        fs::remove_dir_all(node.source().join(format!("..2026_0{}", number - 1))).unwrap();
        println!("volume swapped to packets changed: {:?}", wire.wait_for(letter, begun, "a swapped volume"));
    }
    assert_eq!(daemon.stop(Signal::INT), Some(0));
}

#[test]
fn a_broken_or_lost_source_changes_nothing_until_it_is_back() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a', "first")).unwrap();
    let daemon = Daemon::start(&node);
    let mut wire = Wire::new(&lab);
    let at = |wire: &mut Wire| wire.probe().map(|(at, _)| at);
    node.write("probe.yaml", "spec: [broken").unwrap();
    let status = wait_for_status(&node, "broken", |status| status["policy"]["state"] == "invalid");
    assert!(status["policy"]["message"].as_str().unwrap().contains("probe.yaml"), "{status}");
    assert_eq!((&status["generation"], &status["state"]), (&1.into(), &"forwarding".into()));
    assert_eq!(at(&mut wire), Some('a'));
    node.write("probe.yaml", &rules('b', "fixed")).unwrap();
    wire.wait_for('b', Instant::now(), "a fixed file");
    wait_for_status(&node, "fixed", |status| status["sync"]["state"] == "in-sync");

    let away = node.scratch().join("away");
    fs::rename(node.source(), &away).unwrap();
    wait_for_status(&node, "lost", |status| status["source"]["state"] == "failed");
    assert_eq!(at(&mut wire), Some('b'));
    fs::create_dir(node.source()).unwrap();
    thread::sleep(SECOND / 2);
    assert_eq!(at(&mut wire), Some('b'), "an empty source is not a wish");
    let begun = Instant::now();
    node.write("probe.yaml", &rules('a', "again")).unwrap();
    println!("source made again to packets changed: {:?}", wire.wait_for('a', begun, "the source is back"));
    // The new directory is watched as the old one was.
    let begun = Instant::now();
    node.write("probe.yaml", &rules('b', "watched")).unwrap();
    wire.wait_for('b', begun, "a change in the new directory");
    drop(daemon);
}

#[test]
fn a_rollback_stays_until_the_source_changes() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a', "first")).unwrap();
    let daemon = Daemon::start(&node);
    let mut wire = Wire::new(&lab);
    let begun = Instant::now();
    node.write("probe.yaml", &rules('b', "bad idea")).unwrap();
    wire.wait_for('b', begun, "the second");
    node.succeed(&["rollback", "--auto-approve"]).unwrap();
    assert_eq!(wire.probe().map(|(at, _)| at), Some('a'));
    // It looks again, at once, after the same bytes were written once more, after a file beside the policies made another
    // revision, and after an address made other rules; and it does not undo it.
    daemon.signal(Signal::HUP);
    thread::sleep(SECOND / 2);
    node.write("probe.yaml", &rules('b', "bad idea")).unwrap();
    thread::sleep(SECOND / 2);
    fs::write(node.source().join("README"), "not a policy").unwrap();
    thread::sleep(SECOND / 2);
    fs::remove_file(node.source().join("README")).unwrap();
    lab.router.ip("address add 10.99.0.1/32 dev lo").unwrap();
    thread::sleep(SECOND / 2);
    // The rules that it went back to follow the node's addresses meanwhile, as a generation of their own.
    wait_for_status(&node, "set aside", |status| status["sync"]["state"] == "quarantined" && status["generation"] == 4);
    assert_eq!(wire.probe().map(|(at, _)| at), Some('a'));
    // Not after a restart either.
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
    let daemon = Daemon::start(&node);
    thread::sleep(SECOND / 2);
    assert_eq!(wire.probe().map(|(at, _)| at), Some('a'));
    assert_eq!(node.status().unwrap()["sync"]["state"], "quarantined");
    // A different source is welcome.
    let begun = Instant::now();
    let different = rules('b', "better idea").replace("198.51.100.0/24", "198.51.0.0/16");
    node.write("probe.yaml", &different).unwrap();
    wire.wait_for('b', begun, "a different source");
    let status = wait_for_status(&node, "lifted", |status| status["sync"]["state"] == "in-sync");
    assert_eq!(status["sync"]["quarantined"], Value::Null);
    drop(daemon);
}

#[test]
fn a_neighbour_with_a_new_mac_is_followed() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a', "first")).unwrap();
    let daemon = Daemon::start(&node);
    let mut wire = Wire::new(&lab);
    let a = lab.upstream(0).unwrap();
    assert_eq!(wire.probe(), Some(('a', a.mac)));
    let mac = Mac([2, 0x77, 0, 0, 1, 0x99]);
    let begun = Instant::now();
    lab.router.add_neighbour("upa", a.v4.into(), mac).unwrap();
    while wire.probe() != Some(('a', mac)) {
        assert!(begun.elapsed() < BOUND, "{}", daemon.log());
    }
    println!("neighbour changed to packets changed: {:?}", begun.elapsed());
    // And the MAC of the router's own device, which frames to it carry and frames by it show. The kernel forgets the
    // device's neighbours then, permanent ones included: they are asked for again, without waiting for a timer.
    let own = Mac([2, 0x77, 0, 0, 1, 0x55]);
    let begun = Instant::now();
    lab.router.set_mac("upa", own).unwrap();
    loop {
        wire.sender.send(&wire.frame).unwrap();
        let frame = wire.receivers[0].receive(POLL, |frame| frame.ends_with(b"probe")).unwrap();
        let seen = frame.and_then(|frame| Seen::parse(&frame));
        if seen.is_some_and(|seen| (seen.source_mac, seen.destination_mac) == (own, a.mac)) {
            break;
        }
        assert!(begun.elapsed() < BOUND, "{}", daemon.log());
    }
    println!("device MAC changed to packets changed: {:?}", begun.elapsed());
    assert_eq!(node.status().unwrap()["generation"], 1, "no new generation for that");
    // A link that goes down and comes back; its IPv6 addresses go with it, and that is another set of rules.
    lab.router.set_up("upa", false).unwrap();
    thread::sleep(SECOND);
    let begun = Instant::now();
    lab.router.set_up("upa", true).unwrap();
    while wire.probe() != Some(('a', a.mac)) {
        assert!(begun.elapsed() < BOUND, "{}", daemon.log());
    }
    println!("link up to packets forwarded: {:?}", begun.elapsed());
    drop(daemon);
}

#[test]
fn a_killed_daemon_is_not_missed_and_its_successor_converges() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a', "first")).unwrap();
    let mut wire = Wire::new(&lab);
    for (round, letter) in ['b', 'a', 'b', 'a', 'b'].into_iter().enumerate() {
        let daemon = Daemon::start(&node);
        let before = if letter == 'b' { 'a' } else { 'b' };
        wire.wait_for(before, Instant::now(), "the successor");
        // Killed somewhere on its way through the next change.
        node.write("probe.yaml", &rules(letter, "next")).unwrap();
        thread::sleep(Duration::from_millis(15 + 8 * round as u64));
        assert_eq!(daemon.stop(Signal::KILL), None);
        let at = wire.probe().map(|(at, _)| at);
        assert!(at == Some(before) || at == Some(letter), "{at:?}");
    }
    let daemon = Daemon::start(&node);
    wire.wait_for('b', Instant::now(), "the last");
    let status = wait_for_status(&node, "in sync", |status| status["sync"]["state"] == "in-sync");
    assert_eq!((&status["leftovers"], &status["health"]["state"]), (&0.into(), &"healthy".into()));
    drop(daemon);
}

#[test]
fn a_device_that_comes_back_is_attached_again() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a', "first")).unwrap();
    let daemon = Daemon::start(&node);
    let mut wire = Wire::new(&lab);
    assert_eq!(wire.probe().map(|(at, _)| at), Some('a'));
    // A port that the probe does not need.
    lab.router.ip("link delete upz").unwrap();
    wait_for_status(&node, "lost", |status| status["health"]["reason"] == "port-not-attached");
    assert_eq!(wire.probe().map(|(at, _)| at), Some('a'));
    let begun = Instant::now();
    lab.router.ip("link add upz type veth peer name other").unwrap();
    wait_for_status(&node, "back", |status| status["health"]["state"] == "healthy");
    println!("device back to attached: {:?}", begun.elapsed());
    drop(daemon);
}
