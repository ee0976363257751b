//! What packets of policies and next hops are counted, and the events of those that were dropped or passed.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use wayleave::kernel::program::object_id;
use wayleave_tests::{Packet, PacketSocket, TestNode, Topology, require_root_and_bpf};

const SECOND: Duration = Duration::from_secs(1);
/// Bytes of the frames that the tests send: addresses, IPv4, UDP and a payload of 18 bytes.
const FRAME_BYTES: u64 = 14 + 20 + 8 + 18;

fn lab() -> Topology {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    lab.fix_neighbours().unwrap();
    lab
}

/// A policy of this name: a weighted group for one prefix, a drop and a pass.
fn policy(name: &str, third: u8) -> String {
    format!(
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: {name}}}\nspec:\n  nextHops:\n    - {{name: a, via: \
         10.77.1.2, port: uplink-a}}\n    - {{name: b, via: 10.77.2.2, port: uplink-b}}\n  routes:\n    - {{prefix: \
         198.51.{third}.0/24, nextHops: [{{name: a, weight: 3}}, {{name: b, weight: 1}}]}}\n    - {{prefix: \
         192.0.{third}.0/24, action: drop}}\n    - {{prefix: 192.0.{third}.128/25, action: pass}}\n"
    )
}

/// Lines of [`policy`] where its routes stand.
const DROP_LINE: u64 = 10;
const PASS_LINE: u64 = 11;

struct Wire<'l> {
    lab: &'l Topology,
    sender: PacketSocket,
}

impl<'l> Wire<'l> {
    fn new(lab: &'l Topology) -> Self {
        Self { lab, sender: PacketSocket::open(&lab.client.namespace, "eth0").unwrap() }
    }

    /// Sends frames of [`FRAME_BYTES`] to an address, each of another flow.
    fn send(&mut self, to: &str, frames: u16) {
        for source in 0..frames {
            let packet = Packet::between(self.lab.client.v4.into(), to.parse().unwrap())
                .macs(self.lab.client.mac, self.lab.client.router_mac)
                .udp(1024 + source, 53)
                .payload(&[7; 18]);
            let frame = packet.frame();
            assert_eq!(frame.len() as u64, FRAME_BYTES);
            self.sender.send(&frame).unwrap();
        }
    }
}

/// Packets and bytes of the row whose `key` is `name`.
fn count(status: &Value, list: &str, key: &str, name: &str) -> (u64, u64) {
    let rows = status[list].as_array().unwrap();
    let row = rows.iter().find(|row| row[key] == name).unwrap_or_else(|| panic!("no {name} in {rows:?}"));
    (row["packets"].as_u64().unwrap(), row["bytes"].as_u64().unwrap())
}

fn policy_count(status: &Value, name: &str) -> (u64, u64) {
    count(status, "policies", "policy", name)
}

fn hop_count(status: &Value, name: &str) -> u64 {
    let (packets, bytes) = count(status, "next_hops", "next_hop", name);
    assert_eq!(bytes, packets * FRAME_BYTES, "{status}");
    packets
}

/// Waits until the policy has counted so many packets, and then some: there must not be more.
fn settled(node: &TestNode, name: &str, packets: u64) -> Value {
    let deadline = Instant::now() + 5 * SECOND;
    while policy_count(&node.status().unwrap(), name).0 < packets && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(Duration::from_millis(50));
    let status = node.status().unwrap();
    assert_eq!(policy_count(&status, name), (packets, packets * FRAME_BYTES), "{status}");
    status
}

#[test]
fn policies_and_next_hops_count_their_own_packets() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("one.yaml", &policy("one", 100)).unwrap();
    node.write("two.yaml", &policy("two", 101)).unwrap();
    node.apply().unwrap();
    let mut wire = Wire::new(&lab);
    let status = node.status().unwrap();
    for name in ["one", "two"] {
        assert_eq!(policy_count(&status, name), (0, 0), "test packets of the candidate are nobody's: {status}");
    }
    wire.send("198.51.100.9", 400);
    wire.send("192.0.100.9", 30);
    wire.send("192.0.100.200", 20);
    wire.send("198.51.101.9", 8);
    // No route at all: no policy's.
    wire.send("203.0.113.9", 5);
    let status = settled(&node, "one", 450);
    settled(&node, "two", 8);
    let (a, b) = (hop_count(&status, "one/a"), hop_count(&status, "one/b"));
    assert_eq!(a + b, 400, "only what was sent on counts for next hops");
    assert!((60..=140).contains(&b), "weights 3 and 1: {a} and {b}");
    assert_eq!(hop_count(&status, "two/a") + hop_count(&status, "two/b"), 8);
    let human = node.succeed(&["status"]).unwrap().stdout;
    let line =
        |start: &str| human.lines().find(|line| line.trim().starts_with(start)).unwrap_or_else(|| panic!("{human}"));
    assert!(line("policy      one").contains("450 packets"), "{human}");
    assert!(line("next-hop    one/a").contains(&format!("{a} packets")), "{human}");
}

#[test]
fn counts_go_on_over_everything_that_replaces_something() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.set_spec("retain: {generations: 3}").unwrap();
    node.write("one.yaml", &policy("one", 100)).unwrap();
    node.apply().unwrap();
    let mut wire = Wire::new(&lab);
    let mut sent = 0;
    let mut more = |node: &TestNode, what: &str| {
        wire.send("198.51.100.9", 40);
        wire.send("192.0.100.9", 2);
        sent += 42;
        let status = settled(node, "one", sent);
        let forwarded = hop_count(&status, "one/a") + hop_count(&status, "one/b");
        assert_eq!(forwarded, sent / 42 * 40, "{what}: {status}");
    };
    more(&node, "at first");
    node.write("two.yaml", &policy("two", 101)).unwrap();
    node.apply().unwrap();
    more(&node, "after a publish");
    node.succeed(&["rollback", "--auto-approve"]).unwrap();
    more(&node, "after a rollback");
    // What a program of another version would have pinned.
    let class = node.pins().join("class-20");
    for entry in fs::read_dir(&class).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if let Some(role) = name.strip_suffix(&object_id()) {
            fs::rename(&path, class.join(format!("{role}0123456789abcdef"))).unwrap();
        }
    }
    node.apply().unwrap();
    more(&node, "after another version of the program");
    for _ in 0..2 {
        let mut daemon = node.command(&["run"]).unwrap().stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(SECOND);
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }
    more(&node, "after the daemon was killed twice");
    let detached = node.succeed(&["detach", "--auto-approve"]).unwrap();
    assert!(detached.code == Some(0));
}

#[test]
fn a_count_is_never_that_of_another_object() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.set_spec("retain: {generations: 2}").unwrap();
    node.write("kept.yaml", &policy("kept", 99)).unwrap();
    node.write("gone.yaml", &policy("gone", 100)).unwrap();
    node.apply().unwrap();
    let mut wire = Wire::new(&lab);
    wire.send("198.51.99.9", 10);
    wire.send("198.51.100.9", 70);
    settled(&node, "gone", 70);
    let ids = |policy: &str| {
        let ids = || {
            let observed = node.library().unwrap().observe().unwrap();
            let view = observed.live.as_ref().unwrap().image.view().unwrap();
            let hops: Vec<u32> = view.next_hops().filter(|hop| hop.policy == policy).map(|hop| hop.id).collect();
            (view.policies().find(|p| p.name == policy).unwrap().id, hops)
        };
        lab.router.enter(ids).unwrap()
    };
    let gone = ids("gone");
    // Gone from the source, but a rollback can bring it back: its ids stay its own, and so do its counts.
    fs::remove_file(node.source().join("gone.yaml")).unwrap();
    node.apply().unwrap();
    let status = node.status().unwrap();
    assert_eq!(status["policies"].as_array().unwrap().len(), 1, "only live objects are shown: {status}");
    node.succeed(&["rollback", "--auto-approve"]).unwrap();
    settled(&node, "gone", 70);
    // Gone for good: no generation knows it any more.
    for third in [101, 102, 103] {
        node.write("more.yaml", &policy("more", third)).unwrap();
        node.apply().unwrap();
    }
    assert_ne!(ids("more"), gone);
    node.write("heir.yaml", &policy("heir", 104)).unwrap();
    node.apply().unwrap();
    assert_eq!(ids("heir"), gone, "the lowest free ids are taken");
    let status = node.status().unwrap();
    assert_eq!(policy_count(&status, "heir"), (0, 0), "{status}");
    assert_eq!((hop_count(&status, "heir/a"), hop_count(&status, "heir/b")), (0, 0), "{status}");
    settled(&node, "kept", 10);
    wire.send("198.51.104.9", 3);
    settled(&node, "heir", 3);
}

/// Packets that were forwarded, as `status` sums them up.
fn forwarded(status: &Value) -> u64 {
    let rows = status["counters"].as_array().unwrap();
    rows.iter().find(|row| row["reason"] == "forwarded").map_or(0, |row| row["packets"].as_u64().unwrap())
}

/// A policy of one next hop, for one prefix.
fn to(hop: &str, via: &str, port: &str) -> String {
    format!(
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: one}}\nspec:\n  nextHops:\n    - {{name: {hop}, via: \
         {via}, port: {port}}}\n  routes:\n    - {{prefix: 198.51.100.0/24, nextHops: [{{name: {hop}}}]}}\n    - {{prefix: \
         192.0.100.0/24, action: drop}}\n"
    )
}

#[test]
fn what_a_next_hop_sent_stays_with_its_policy_when_it_is_gone() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.set_spec("retain: {generations: 1}").unwrap();
    let hops = [to("a", "10.77.1.2", "uplink-a"), to("b", "10.77.2.2", "uplink-b")];
    node.write("one.yaml", &hops[0]).unwrap();
    node.apply().unwrap();
    let mut wire = Wire::new(&lab);
    let mut sent = 0;
    // Each next hop comes and goes, and takes the id of the one before the last.
    for (round, hop) in (1u16..).zip(hops.iter().cycle().take(6)) {
        node.write("one.yaml", hop).unwrap();
        node.apply().unwrap();
        let name = if round % 2 == 1 { "one/a" } else { "one/b" };
        if round > 2 {
            assert_eq!(hop_count(&node.status().unwrap(), name), 0, "another object, round {round}");
        }
        wire.send("198.51.100.9", 10 * round);
        wire.send("192.0.100.9", 1);
        sent += u64::from(10 * round) + 1;
        let status = settled(&node, "one", sent);
        assert_eq!(hop_count(&status, name), u64::from(10 * round), "round {round}: {status}");
        assert_eq!(forwarded(&status), sent - u64::from(round), "round {round}: {status}");
    }
    // The policy goes too: what was forwarded stays forwarded, and its heir begins at zero.
    fs::remove_file(node.source().join("one.yaml")).unwrap();
    for third in [101, 102] {
        node.write("more.yaml", &policy("more", third)).unwrap();
        node.apply().unwrap();
    }
    node.write("heir.yaml", &hops[0].replace("name: one}", "name: heir}")).unwrap();
    node.apply().unwrap();
    let status = node.status().unwrap();
    assert_eq!(policy_count(&status, "heir"), (0, 0), "{status}");
    assert_eq!(forwarded(&status), sent - 6, "{status}");
}

#[test]
fn a_count_that_was_being_moved_counts_once() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.set_spec("retain: {generations: 1}").unwrap();
    node.write("one.yaml", &policy("one", 100)).unwrap();
    node.write("gone.yaml", &policy("gone", 101)).unwrap();
    node.apply().unwrap();
    let mut wire = Wire::new(&lab);
    wire.send("198.51.101.9", 40);
    wire.send("198.51.100.9", 7);
    let status = settled(&node, "gone", 40);
    let (ids, policy) = lab
        .router
        .enter(|| {
            let observed = node.library().unwrap().observe().unwrap();
            let view = observed.live.as_ref().unwrap().image.view().unwrap();
            let hop = |name: &str| view.next_hops().find(|hop| hop.policy == "gone" && hop.name == name).unwrap().id;
            ((hop("a"), hop("b")), view.policies().find(|policy| policy.name == "gone").unwrap().id)
        })
        .unwrap();
    let (a, b) = (hop_count(&status, "gone/a"), hop_count(&status, "gone/b"));
    // As a process leaves it that is killed after the first of its writes: next hop and policy, then what all next hops and
    // those of the policy have left behind.
    let carrying = [u64::from(ids.0) | u64::from(policy) << 32, a, a * FRAME_BYTES, a, a * FRAME_BYTES];
    set_map(&lab, &node, "CARRYING", 0, carrying);
    let interrupted = |status: &Value| {
        assert_eq!(policy_count(status, "gone"), (40, 40 * FRAME_BYTES), "{status}");
        assert_eq!((hop_count(status, "gone/a"), hop_count(status, "gone/b")), (0, b), "{status}");
        assert_eq!(forwarded(status), 47, "{status}");
    };
    interrupted(&node.status().unwrap());
    // And after the second.
    set_map(&lab, &node, "CARRIED", 0, [a, a * FRAME_BYTES]);
    interrupted(&node.status().unwrap());
    fs::remove_file(node.source().join("gone.yaml")).unwrap();
    node.apply().unwrap();
    let status = node.status().unwrap();
    assert_eq!(forwarded(&status), 47, "{status}");
    settled(&node, "one", 7);
}

/// Writes an entry of one of the node's arrays.
fn set_map<T: aya::Pod + Send + Sync>(lab: &Topology, node: &TestNode, name: &str, index: u32, value: T) {
    let pin = node.pins().join("maps").join(name);
    lab.router
        .enter(|| {
            let map = aya::maps::MapData::from_pin(&pin).unwrap();
            let mut map: aya::maps::Array<_, T> = aya::maps::Map::Array(map).try_into().unwrap();
            map.set(index, value, 0).unwrap();
        })
        .unwrap();
}

/// A running `wayleave watch --format json`, whose lines are read one by one.
struct Watch {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

/// Waits until a watcher that was started is heard by the program, however long it takes to start.
fn until_heard(child: &mut Child) {
    let mut says = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut says).unwrap();
    assert!(says.starts_with("watching "), "{says}");
}

impl Watch {
    /// Started, and heard by the program.
    fn start(node: &TestNode, arguments: &[&str]) -> Self {
        let mut command = node.command(&["watch", "--format", "json"]).unwrap();
        let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until_heard(&mut child);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn next(&mut self) -> Option<Value> {
        self.lines.next().map(|line| serde_json::from_str(&line.unwrap()).unwrap())
    }

    fn signal(&self, which: Signal) {
        signal(self.child.id(), which);
    }

    /// Ends it by SIGTERM; returns what it had still to say.
    fn end(mut self) -> Vec<Value> {
        self.signal(Signal::TERM);
        let rest = std::iter::from_fn(|| self.next()).collect();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        rest
    }
}

/// What the kernel's array says about listening: how many packets make an event; 0: nobody listens.
fn sampled_every(lab: &Topology, node: &TestNode) -> u64 {
    let map = node.pins().join("maps/SAMPLING");
    lab.router
        .enter(|| {
            let map = aya::maps::MapData::from_pin(&map).unwrap();
            let map: aya::maps::Array<_, [u64; 3]> = aya::maps::Map::Array(map).try_into().unwrap();
            map.get(&0, 0).unwrap()[0] & 0xffff_ffff
        })
        .unwrap()
}

#[test]
fn events_name_the_line_that_decided() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("one.yaml", &policy("one", 100)).unwrap();
    node.apply().unwrap();
    let mut wire = Wire::new(&lab);
    let mut watch = Watch::start(&node, &["--count", "3", "--reason", "route-drop", "--reason", "route-pass"]);
    // Forwarded packets and those of other reasons make no events.
    wire.send("198.51.100.9", 5);
    wire.send("203.0.113.9", 5);
    wire.send("192.0.100.9", 1);
    let dropped = watch.next().unwrap();
    let expected = serde_json::json!({
        "format_version": 1, "time": dropped["time"], "verdict": "drop", "reason": "route-drop", "src": "10.77.0.2",
        "dst": "192.0.100.9", "protocol": "udp", "sport": 1024, "dport": 53, "length": FRAME_BYTES, "in_port": Value::Null,
        "device": "lan", "generation": 1, "generation_gone": false, "prefix": "192.0.100.0/24", "policy": "one",
        "rule": Value::Null, "file": "one.yaml", "line": DROP_LINE, "next_hop": Value::Null,
        "service": Value::Null, "backend": Value::Null,
    });
    assert_eq!(dropped, expected);
    wire.send("192.0.100.200", 1);
    let passed = watch.next().unwrap();
    assert_eq!((&passed["verdict"], &passed["reason"]), (&"pass".into(), &"route-pass".into()));
    assert_eq!((&passed["prefix"], &passed["line"]), (&"192.0.100.128/25".into(), &PASS_LINE.into()));
    // The same rule moves to another line and another generation.
    node.write("one.yaml", &format!("# reviewed\n{}", policy("one", 100))).unwrap();
    node.write("two.yaml", &policy("two", 101)).unwrap();
    node.apply().unwrap();
    wire.send("192.0.100.9", 1);
    let moved = watch.next().unwrap();
    assert_eq!((&moved["generation"], &moved["line"]), (&2.into(), &(DROP_LINE + 1).into()));
    assert_eq!(watch.next(), None);
    assert_eq!(watch.child.wait().unwrap().code(), Some(0));
    assert_eq!(sampled_every(&lab, &node), 0, "nobody listens any more");
    // For people.
    let mut human = node.command(&["watch", "--policy", "two", "--count", "1"]).unwrap();
    let mut human = human.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until_heard(&mut human);
    wire.send("192.0.100.9", 3);
    wire.send("192.0.101.9", 1);
    let output = human.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let wanted = format!(
        " drop route-drop 10.77.0.2:1024 -> 192.0.101.9:53 udp, in by device lan, 192.0.101.0/24 of two \
         (two.yaml:{DROP_LINE}), generation 2\n"
    );
    assert!(text.ends_with(&wanted) && text.lines().count() == 1, "{text}");
}

#[test]
fn one_in_n_and_one_watcher_at_a_time() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("one.yaml", &policy("one", 100)).unwrap();
    let nothing = node.run(&["watch"]).unwrap();
    assert_eq!(nothing.code, Some(1), "{nothing:?}");
    assert!(nothing.stderr.contains("no generation is live"), "{nothing:?}");
    node.apply().unwrap();
    let mut wire = Wire::new(&lab);
    let watch = Watch::start(&node, &["--reason", "route-drop", "--every", "10"]);
    let second = node.run(&["watch", "--count", "1"]).unwrap();
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains("another `wayleave watch`"), "{second:?}");
    node.apply().unwrap();
    wire.send("192.0.100.9", 200);
    settled(&node, "one", 200);
    let events = watch.end().len();
    // Each CPU counts for itself.
    assert!((18..=20).contains(&events), "{events} of 200");
    for (arguments, code) in [
        (&["watch", "--reason", "forwarded"][..], 64),
        (&["watch", "--every", "0"], 64),
        (&["watch", "--policy", "nobody"], 1),
    ] {
        assert_eq!(node.run(arguments).unwrap().code, Some(code), "{arguments:?}");
    }
}

#[test]
fn a_killed_watcher_soon_costs_nothing() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("one.yaml", &policy("one", 100)).unwrap();
    node.apply().unwrap();
    let mut wire = Wire::new(&lab);
    let mut watch = Watch::start(&node, &["--reason", "route-drop"]);
    wire.send("192.0.100.9", 1);
    assert!(watch.next().is_some());
    watch.signal(Signal::KILL);
    watch.child.wait().unwrap();
    assert_eq!(sampled_every(&lab, &node), 1, "nobody could say that the watcher is gone");
    wire.send("192.0.100.9", 4);
    thread::sleep(4 * SECOND);
    wire.send("192.0.100.9", 1);
    settled(&node, "one", 6);
    assert_eq!(sampled_every(&lab, &node), 0, "the first packet after the wish has run out ends it");
    // The next watcher does not show what the killed one left.
    let mut watch = Watch::start(&node, &["--reason", "route-drop"]);
    wire.send("192.0.100.77", 1);
    assert_eq!(watch.next().unwrap()["dst"], "192.0.100.77");
    assert_eq!(watch.end(), Vec::<Value>::new());
}

#[test]
fn what_finds_no_room_is_said_to_be_lost() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("one.yaml", &policy("one", 100)).unwrap();
    node.apply().unwrap();
    let mut watch = Watch::start(&node, &["--reason", "route-drop"]);
    // It wishes, but does not read.
    watch.signal(Signal::STOP);
    Wire::new(&lab).send("192.0.100.9", 2000);
    settled(&node, "one", 2000);
    watch.signal(Signal::CONT);
    let mut stderr = BufReader::new(watch.child.stderr.take().unwrap()).lines();
    let id = watch.child.id();
    let reader = thread::spawn(move || {
        let said = stderr.next().unwrap().unwrap();
        signal(id, Signal::TERM);
        said
    });
    let shown = std::iter::from_fn(|| watch.next()).count();
    let said = reader.join().unwrap();
    assert_eq!(watch.child.wait().unwrap().code(), Some(0));
    assert!(said.contains("events were lost"), "{said}");
    let lost: usize = said.split(' ').next().unwrap().parse().unwrap();
    assert_eq!(shown + lost, 2000);
}

fn signal(process: u32, signal: Signal) {
    kill_process(Pid::from_raw(process.cast_signed()).unwrap(), signal).unwrap();
}
