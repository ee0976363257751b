//! Hands in the kernel: what `drift` says of them, that `apply` mends them, and what the daemon does in each mode.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use fib::Reach;
use rustix::process::Signal;
use serde_json::Value;
use wayleave::kernel::tables::Tables;
use wayleave_tests::hands::{class, detach_link, put_live, put_zeros_live, update_link, with_prefix};
use wayleave_tests::{Daemon, Packet, PacketSocket, TestNode, Topology, require_root_and_bpf};

const SECOND: Duration = Duration::from_secs(1);
const BOUND: Duration = Duration::from_secs(8);

const POLICY: &str = "\
apiVersion: wayleave/v1
kind: RoutePolicy
metadata: {name: probe}
spec:
  nextHops:
    - {name: up-a, via: 10.77.1.2, port: uplink-a}
  routes:
    - {prefix: 198.51.100.0/24, nextHops: [{name: up-a}]}
";
const NO_DRIFT: &str = "No drift: the kernel is as the last publish left it.\n";

/// What somebody did, and what `drift` must say of it.
struct Hand {
    what: &'static str,
    says: &'static str,
    act: fn(&TestNode<'_>),
}

/// Runs with the tables of the node and the ids of its port `uplink-a` and next hop `up-a`.
fn with_tables(node: &TestNode<'_>, act: fn(&mut Tables, u32, u32)) {
    let work = || {
        let library = node.library().unwrap();
        let observed = library.observe().unwrap();
        let view = observed.live.as_ref().unwrap().image.view().unwrap();
        let port = view.ports().find(|port| port.name == "uplink-a").unwrap().id;
        let hop = view.next_hops().next().unwrap().id;
        act(&mut Tables::open(&library.pins).unwrap(), port, hop);
    };
    node.namespace().enter(work).unwrap();
}

fn link(node: &TestNode<'_>, device: &str) -> std::path::PathBuf {
    node.pins().join("link/xdp").join(device)
}

const HANDS: &[Hand] = &[
    Hand {
        what: "a map of zeros in the live slot",
        says: "what is live is no generation",
        act: |node| put_zeros_live(&class(&node.pins()).unwrap(), true).unwrap(),
    },
    Hand {
        what: "a map that can be written in the live slot",
        says: "is not frozen",
        act: |node| put_zeros_live(&class(&node.pins()).unwrap(), false).unwrap(),
    },
    Hand {
        what: "an older generation in the live slot",
        says: "was published last, by",
        act: |node| {
            let older = fs::read_dir(node.pins().join("generation")).unwrap().flatten().map(|entry| entry.path()).min();
            put_live(&class(&node.pins()).unwrap(), &older.unwrap()).unwrap();
        },
    },
    Hand {
        what: "a link's pin deleted",
        says: "upa: the program is not attached as the configuration says, for uplink-a\n",
        act: |node| fs::remove_file(link(node, "upa")).unwrap(),
    },
    Hand {
        what: "a link detached",
        says: "lan: the program was detached from it, for lan\n",
        act: |node| detach_link(&link(node, "lan")).unwrap(),
    },
    Hand {
        what: "the pins of two links swapped",
        says: "lan: its attachment is pinned under the name of upa\n",
        act: |node| {
            let aside = node.pins().join("link/xdp/aside");
            fs::rename(link(node, "lan"), &aside).unwrap();
            fs::rename(link(node, "upa"), link(node, "lan")).unwrap();
            fs::rename(&aside, link(node, "upa")).unwrap();
        },
    },
    Hand {
        what: "another program given to a link",
        says: "lan: program ",
        act: |node| {
            let candidate = with_prefix(&class(&node.pins()).unwrap(), "candidate-").unwrap();
            update_link(&link(node, "lan"), &candidate).unwrap();
        },
    },
    Hand {
        what: "the pin of the outer map deleted",
        says: "GENERATIONS: the pin is gone",
        act: |node| fs::remove_file(class(&node.pins()).unwrap().join("GENERATIONS")).unwrap(),
    },
    Hand {
        what: "the pin of the program deleted",
        says: "the program of this version of wayleave is not pinned",
        act: |node| fs::remove_file(with_prefix(&class(&node.pins()).unwrap(), "live-").unwrap()).unwrap(),
    },
    Hand {
        what: "the pin of the instance under test deleted",
        says: "the pin is gone",
        act: |node| fs::remove_file(with_prefix(&class(&node.pins()).unwrap(), "candidate-").unwrap()).unwrap(),
    },
    Hand {
        what: "the pin of a map of the instance under test deleted",
        says: "the pin is gone",
        act: |node| {
            fs::remove_file(with_prefix(&class(&node.pins()).unwrap(), "CANDIDATE_COUNTERS").unwrap()).unwrap();
        },
    },
    Hand {
        what: "a whole class's pins deleted",
        says: "GENERATIONS: the pin is gone",
        act: |node| fs::remove_dir_all(class(&node.pins()).unwrap()).unwrap(),
    },
    Hand {
        what: "the pins of all maps deleted",
        says: "maps/NEIGHBOURS: the pin is gone",
        act: |node| fs::remove_dir_all(node.pins().join("maps")).unwrap(),
    },
    Hand {
        what: "the live generation's pin deleted",
        says: "its pin is gone, or holds another map",
        act: |node| {
            let newest =
                fs::read_dir(node.pins().join("generation")).unwrap().flatten().map(|entry| entry.path()).max();
            fs::remove_file(newest.unwrap()).unwrap();
        },
    },
    Hand {
        what: "a port's entry deleted",
        says: "uplink-a: packets leave by no device, where the configuration says upa\n",
        act: |node| with_tables(node, |tables, port, _| tables.clear_port(port).unwrap()),
    },
    Hand {
        what: "a neighbour's entry changed",
        says: "next hop probe/up-a: its frames are made for another neighbour, device or MTU",
        act: |node| {
            with_tables(node, |tables, _, hop| {
                let mut neighbour = tables.reach(hop).unwrap().up().unwrap();
                neighbour.destination ^= 0x0100_0000;
                tables.set_reach(hop, &Reach::Up(neighbour)).unwrap();
            });
        },
    },
    Hand {
        what: "a neighbour's entry set to be down",
        says: "next hop probe/up-a: down in the table of neighbours",
        act: |node| with_tables(node, |tables, _, hop| tables.set_reach(hop, &Reach::Down).unwrap()),
    },
];

/// What `drift` says, which must end as it says.
fn drift(node: &TestNode<'_>) -> String {
    let outcome = node.run(&["drift"]).unwrap();
    let expected = if outcome.stdout.starts_with("No drift") { 0 } else { 2 };
    assert_eq!(outcome.code, Some(expected), "{outcome:?}");
    outcome.stdout
}

fn mend(node: &TestNode<'_>) {
    node.apply().unwrap();
    assert_eq!(drift(node), NO_DRIFT);
}

/// Whether a packet from the client arrives at upstream a as frames for it.
fn flows(lab: &Topology) -> bool {
    let a = lab.upstream(0).unwrap();
    let packet = Packet::between(lab.client.v4.into(), "198.51.100.9".parse().unwrap())
        .macs(lab.client.mac, lab.client.router_mac)
        .payload(b"probe");
    let mut receiver = PacketSocket::open(&a.namespace, "eth0").unwrap();
    PacketSocket::open(&lab.client.namespace, "eth0").unwrap().send(&packet.frame()).unwrap();
    receiver.receive(SECOND / 4, |frame| frame.ends_with(b"probe") && frame[..6] == a.mac.0).unwrap().is_some()
}

fn lab() -> Topology {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    lab.fix_neighbours().unwrap();
    lab
}

/// Two generations of rules that forward the probe.
fn publish_twice(node: &TestNode<'_>) {
    node.write("probe.yaml", &POLICY.replace("198.51.100.0/24", "198.51.0.0/16")).unwrap();
    node.apply().unwrap();
    node.write("probe.yaml", POLICY).unwrap();
    mend(node);
}

/// Waits until it is so.
fn wait_until(what: &str, daemon: &Daemon<'_>, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + BOUND;
    while !so() {
        assert!(Instant::now() < deadline, "{what}\n{}", daemon.log());
        thread::sleep(SECOND / 20);
    }
}

/// What `status` says that the daemon found.
fn found(node: &TestNode<'_>) -> Vec<String> {
    let status = node.status().unwrap();
    let message = |one: &Value| format!("{}\n", one["message"].as_str().unwrap());
    status["drift"]["differences"].as_array().map(|all| all.iter().map(message).collect()).unwrap_or_default()
}

#[test]
fn every_hand_in_the_kernel_is_named_and_mended() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    assert!(drift(&node).starts_with("No drift"), "nothing was published yet");
    for Hand { what, says, act } in HANDS {
        publish_twice(&node);
        assert!(flows(&lab), "before {what}");
        act(&node);
        let said = drift(&node);
        assert!(said.contains(says), "{what}: {said}");
        assert!(node.status().is_ok(), "{what}");
        node.apply().unwrap_or_else(|error| panic!("{what}: {error:#}"));
        assert_eq!(drift(&node), NO_DRIFT, "{what}");
        assert!(flows(&lab), "after {what}");
    }
    // A device that is no port any more keeps its program until the next apply.
    node.remove_port("sink").unwrap();
    assert_eq!(drift(&node), "upz: the program is attached, and the configuration has no port there\n");
    let json: Value = serde_json::from_str(&node.run(&["drift", "--format", "json"]).unwrap().stdout).unwrap();
    assert_eq!((&json["differences"][0]["kind"], &json["differences"][0]["of"]), (&"link".into(), &"upz".into()));
    mend(&node);
    // Everything is gone, as by a script that cleans up bpffs.
    fs::remove_dir_all(node.place()).unwrap();
    assert!(drift(&node).contains("was published last, and nothing is live"), "{}", drift(&node));
    mend(&node);
    assert!(flows(&lab));
}

#[test]
fn a_daemon_that_heals_puts_every_hand_right_and_says_so() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.set_spec("drift: {mode: heal, interval: 300ms}").unwrap();
    publish_twice(&node);
    let daemon = Daemon::start(&node);
    for Hand { what, act, .. } in HANDS {
        wait_until("before", &daemon, || flows(&lab));
        let generation = node.status().unwrap()["generation"].as_u64().unwrap();
        let lines = || fs::read_to_string(node.state().join("journal.jsonl")).unwrap().matches("\"repaired\"").count();
        let before = lines();
        act(&node);
        wait_until(what, &daemon, || lines() > before && drift(&node) == NO_DRIFT);
        assert!(flows(&lab), "{what}: {}", daemon.log());
        // Rules are published anew, everything else is mended under them.
        let now = node.status().unwrap();
        assert!(now["generation"].as_u64().unwrap() >= generation, "{what}: {now}");
        assert_eq!(now["sync"]["state"], "in-sync", "{what}: {now}");
    }
    let status = node.status().unwrap();
    assert_eq!(status["drift"]["mode"], "heal");
    assert!(!status["drift"]["repaired"]["differences"].as_array().unwrap().is_empty(), "{status}");
    assert!(daemon.log().contains("repaired: "), "{}", daemon.log());
    assert!(node.succeed(&["history"]).unwrap().stdout.contains("repaired by"));
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
}

#[test]
fn a_daemon_that_reports_changes_nothing_until_somebody_decides() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.set_spec("drift: {mode: report, interval: 200ms}\nrescanInterval: 300ms").unwrap();
    publish_twice(&node);
    let daemon = Daemon::start(&node);
    for Hand { what, says, act } in HANDS {
        wait_until(what, &daemon, || found(&node).is_empty());
        act(&node);
        wait_until(what, &daemon, || found(&node).concat().contains(says));
        // Several looks at drift and at the source, and one at neighbours.
        thread::sleep(SECOND);
        let said = drift(&node);
        assert!(said.contains(says), "{what} was touched: {said}\n{}", daemon.log());
        let human = node.succeed(&["status"]).unwrap().stdout;
        assert!(human.contains("  drift       ") && human.contains("mode report"), "{what}: {human}");
        // An apply is a decision.
        mend(&node);
        assert!(flows(&lab), "{what}");
    }
    wait_until("the last", &daemon, || found(&node).is_empty());
    let told = daemon.log().matches("lan: the program was detached from it").count();
    assert_eq!(told, 1, "{}", daemon.log());
    assert!(!daemon.log().contains("repaired"), "{}", daemon.log());
    assert!(node.succeed(&["history"]).unwrap().stdout.contains("drift found"));
    // So is another source, and a device that comes back.
    detach_link(&link(&node, "lan")).unwrap();
    wait_until("detached", &daemon, || !found(&node).is_empty());
    node.write("probe.yaml", &POLICY.replace("/24", "/25")).unwrap();
    wait_until("another source", &daemon, || drift(&node) == NO_DRIFT);
    lab.router.ip("link delete upz").unwrap();
    lab.router.ip("link add upz type veth peer name other").unwrap();
    wait_until("a device is back", &daemon, || drift(&node) == NO_DRIFT);
    drop(daemon);
}

#[test]
fn a_daemon_that_does_not_look_leaves_everything_and_follows_events() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.set_spec("drift: {mode: off, interval: 100ms}\nrescanInterval: 200ms").unwrap();
    publish_twice(&node);
    let daemon = Daemon::start(&node);
    for index in [4, 14] {
        (HANDS[index].act)(&node);
    }
    thread::sleep(SECOND);
    let status = node.status().unwrap();
    assert_eq!((&status["drift"]["mode"], &status["drift"]["differences"]), (&"off".into(), &Value::Null));
    assert!(!daemon.log().contains("drift: "), "{}", daemon.log());
    let said = drift(&node);
    for says in ["was detached", "packets leave by no device"] {
        assert!(said.contains(says), "{said}");
    }
    mend(&node);
    // Of other rules it is not said that they are the source's.
    (HANDS[2].act)(&node);
    wait_until("older rules", &daemon, || node.status().unwrap()["sync"]["state"] == "drifted");
    mend(&node);
    // A new MAC of the neighbour is an event.
    let mac = wayleave_tests::Mac([2, 0x77, 0, 0, 1, 0x99]);
    lab.router.add_neighbour("upa", lab.upstream(0).unwrap().v4.into(), mac).unwrap();
    wait_until("a new MAC", &daemon, || drift(&node) == NO_DRIFT);
    // So is another source.
    detach_link(&link(&node, "lan")).unwrap();
    node.write("probe.yaml", &POLICY.replace("/24", "/25")).unwrap();
    wait_until("another source", &daemon, || drift(&node) == NO_DRIFT);
    drop(daemon);
}

/// A device that is attached by TC, its link's pin, where hands are at work.
struct Classified<'a> {
    lab: &'a Topology,
    pin: std::path::PathBuf,
}

/// What somebody did, what `drift` must say of it, and how it is done.
type ClassifiedHand = (&'static str, &'static str, fn(&Classified<'_>));

impl Classified<'_> {
    fn tc(&self, arguments: &[&str]) {
        let output = self.lab.router.command("tc").args(arguments).output().unwrap();
        assert!(output.status.success(), "tc {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Before Linux 6.6 there is a filter in the place of a link.
    fn hands(&self) -> Vec<ClassifiedHand> {
        const DETACHED: &str = "lan: the program was detached from it";
        const NOT_ATTACHED: &str = "lan: the program is not attached as the configuration says, for lan\n";
        // As `kernel/clsact.rs` sets it.
        const OURS: [&str; 6] = ["dev", "lan", "ingress", "protocol", "all", "pref"];
        let mut hands: Vec<ClassifiedHand> =
            vec![("the pin deleted", NOT_ATTACHED, |of| fs::remove_file(&of.pin).unwrap())];
        if self.pin.is_symlink() {
            hands.push(("the filter deleted", DETACHED, |of| {
                of.tc(&[&["filter", "del"][..], &OURS, &["30561"]].concat());
            }));
            hands.push(("the qdisc deleted", DETACHED, |of| of.tc(&["qdisc", "del", "dev", "lan", "clsact"])));
            hands.push(("the filter replaced", DETACHED, |of| {
                let another = ["30561", "handle", "0x77617901", "bpf", "bytecode", "1,6 0 0 0,"];
                of.tc(&[&["filter", "replace"][..], &OURS, &another].concat());
            }));
        } else {
            hands.push(("the link detached", DETACHED, |of| detach_link(&of.pin).unwrap()));
        }
        hands
    }
}

#[test]
fn hands_at_a_device_that_is_attached_by_tc_are_named_and_mended() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.set_attach("lan", "tc").unwrap();
    node.set_spec("drift: {mode: heal, interval: 300ms}").unwrap();
    publish_twice(&node);
    let classified = Classified { lab: &lab, pin: node.pins().join("link/tc/lan") };
    for (what, says, act) in classified.hands() {
        assert!(flows(&lab), "before {what}");
        act(&classified);
        let said = drift(&node);
        assert!(said.contains(says), "{what}: {said}");
        mend(&node);
        assert!(flows(&lab), "after {what}");
    }
    let daemon = Daemon::start(&node);
    for (what, _, act) in classified.hands() {
        wait_until("before", &daemon, || flows(&lab));
        act(&classified);
        wait_until(what, &daemon, || flows(&lab) && drift(&node) == NO_DRIFT);
    }
    assert!(daemon.log().contains("repaired: "), "{}", daemon.log());
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
}
