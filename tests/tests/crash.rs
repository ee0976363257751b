//! SIGKILL at every step: before each system call that changes something, for every kind of change.
//!
//! After each kill the kernel holds the old rules or the new, whole; packets flow on; and the next apply converges and
//! leaves nothing behind.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use wayleave::kernel::program::object_id;
use wayleave_tests::{
    BpfObjects, Fate, Packet, PacketSocket, Seen, TestNode, Topology, kill_before, require_root_and_bpf,
};

const SECOND: Duration = Duration::from_secs(1);

/// Kills of all scenarios, by what the process was about to do.
static KILLS: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

/// Rules that send the probe to up-a, in a form that `variant` tells apart, over different tables.
fn rules(variant: u32, list: bool) -> String {
    let (hop, list) = if list {
        (
            "    - {name: b6, via: \"fd77:2::2\", port: uplink-b}\n",
            "    - {prefixesFrom: many.txt, nextHops: [{name: b6}]}\n",
        )
    } else {
        ("", "")
    };
    format!(
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: probe}}\nspec:\n  nextHops:\n    - {{name: a, via: \
         10.77.1.2, port: uplink-a}}\n    - {{name: b, via: 10.77.2.2, port: uplink-b}}\n{hop}  routes:\n    - {{prefix: \
         198.51.100.0/24, nextHops: [{{name: a}}]}}\n    - {{prefix: 192.0.{variant}.0/24, nextHops: [{{name: b}}]}}\n{list}"
    )
}

fn digest_of_rules(lab: &Topology, node: &TestNode) -> String {
    lab.router
        .enter(|| {
            let node = node.library().unwrap();
            let observed = node.observe().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let facts = runtime.block_on(node.facts()).unwrap();
            let desired = node.desire(&node.config.source, &facts.node, &observed).unwrap();
            desired.image.digest().to_string()
        })
        .unwrap()
}

/// Digest of what is live, whose bytes were compared with it.
fn live(lab: &Topology, node: &TestNode) -> Option<String> {
    lab.router
        .enter(|| {
            let observed = node.library().unwrap().observe().unwrap();
            observed.live.as_ref().map(|generation| {
                let view = generation.image.view().unwrap();
                view.verify_digest().unwrap();
                view.digest().to_string()
            })
        })
        .unwrap()
}

struct Wire {
    sender: PacketSocket,
    receiver: PacketSocket,
    frame: Vec<u8>,
}

impl Wire {
    fn new(lab: &Topology) -> Self {
        let packet = Packet::between(lab.client.v4.into(), "198.51.100.9".parse().unwrap())
            .macs(lab.client.mac, lab.client.router_mac)
            .payload(b"probe");
        Self {
            sender: PacketSocket::open(&lab.client.namespace, "eth0").unwrap(),
            receiver: PacketSocket::open(&lab.upstreams[0].namespace, "eth0").unwrap(),
            frame: packet.frame(),
        }
    }

    /// A few packets go from the client to up-a.
    fn flows(&mut self, lab: &Topology, what: &str) {
        for _ in 0..3 {
            self.sender.send(&self.frame).unwrap();
            let frame = self.receiver.receive(SECOND, |frame| frame.ends_with(b"probe")).unwrap();
            let seen = Seen::parse(&frame.unwrap_or_else(|| panic!("{what}: the probe did not arrive"))).unwrap();
            assert_eq!(
                (seen.destination_mac, seen.ttl, seen.checksums_hold),
                (lab.upstreams[0].mac, 63, true),
                "{what}"
            );
        }
    }
}

/// What one scenario does before each kill, and what is killed.
struct Scenario<'s> {
    name: &'s str,
    arguments: &'s [&'s str],
    /// Whether a generation is live before.
    live_before: bool,
}

/// Kills `scenario` at its first call, its second, …, until it ends by itself.
fn kill_everywhere(lab: &Topology, node: &TestNode, scenario: &Scenario, mut before: impl FnMut(usize)) -> usize {
    let mut wire = Wire::new(lab);
    let begun = Instant::now();
    let known = BpfObjects::of_wayleave().unwrap();
    let ends = Path::new(node.scratch()).join("stderr");
    for nth in 1.. {
        before(nth);
        let old = live(lab, node);
        assert_eq!(old.is_some(), scenario.live_before, "{}", scenario.name);
        let new = if scenario.arguments[0] == "apply" { Some(digest_of_rules(lab, node)) } else { None };
        let mut command = node.command(scenario.arguments).unwrap();
        command.stdout(Stdio::null()).stderr(fs::File::create(&ends).unwrap());
        let fate = kill_before(&mut command, nth).unwrap();
        let what = match &fate {
            Fate::Ended { code } => {
                assert_eq!(*code, 0, "{}: {}", scenario.name, fs::read_to_string(&ends).unwrap());
                assert!(nth > 10, "{} made only {nth} calls", scenario.name);
                let kills = nth - 1;
                println!("{}: {kills} kills in {:.1} s", scenario.name, begun.elapsed().as_secs_f32());
                nothing_left_behind(&known);
                return kills;
            }
            Fate::Killed { before } => {
                *KILLS.lock().unwrap().entry(before.clone()).or_default() += 1;
                format!("{}, killed before call {nth}, {before}", scenario.name)
            }
        };
        let now = live(lab, node);
        let new_is_live = new.is_some() && now == new;
        assert!(now == old || new_is_live || new.is_none(), "{what}: {now:?} is neither {old:?} nor {new:?}");
        wire.flows(lab, &what);
        // What the killed one wanted, or the source again: both must succeed and clean up.
        let applied = node.run(&["apply", "--auto-approve"]).unwrap();
        assert_eq!(applied.code, Some(0), "{what}: {applied:?}");
        let status = node.status().unwrap();
        assert_eq!(
            (&status["leftovers"], &status["state"], &status["health"]["state"]),
            (&0.into(), &"forwarding".into(), &"healthy".into()),
            "{what}: {status}"
        );
        assert_eq!(status["digest"].as_str().map(str::to_owned), Some(digest_of_rules(lab, node)), "{what}");
        only_what_belongs(node, &status, &what);
        wire.flows(lab, &what);
        let again = node.run(&["plan", "--detailed-exitcode"]).unwrap();
        assert_eq!(again.code, Some(0), "{what}: {again:?}");
    }
    unreachable!("a command ends")
}

/// The pins are exactly those of the live and the retained generations, one class, and the ports.
fn only_what_belongs(node: &TestNode, status: &serde_json::Value, what: &str) {
    let names = |directory: &str| -> Vec<String> {
        let entries = fs::read_dir(node.pins().join(directory)).unwrap_or_else(|e| panic!("{what}: {directory}: {e}"));
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let capacity = status["image"]["capacity"].as_u64().unwrap();
    let class = format!("class-{}", capacity.trailing_zeros());
    assert_eq!(fs::read_dir(node.place()).unwrap().count(), 1, "{what}: one layout");
    assert_eq!(names(""), [class.as_str(), "generation", "link", "maps", "version"], "{what}");
    let object = object_id();
    // Programs for routes alone, or those with every stage: never both.
    let stages = if names(&class).contains(&format!("live-{object}")) { "" } else { "routes-" };
    let mut expected = CANDIDATE_MAPS.map(|role| format!("{role}{object}")).to_vec();
    expected.extend(["candidate-", "live-"].map(|role| format!("{role}{stages}{object}")));
    expected.push("GENERATIONS".to_owned());
    let interfaces = status["interfaces"].as_array().unwrap();
    let by_tc = interfaces.iter().filter(|interface| interface["mode"] == "tc").count();
    // Left for the next time where the devices have moved to XDP.
    let has_tc = by_tc > 0 || names(&class).iter().any(|name| name.starts_with(&format!("live-{stages}tc-")));
    if has_tc {
        expected.push(format!("live-{stages}tc-{object}"));
    }
    expected.sort();
    assert_eq!(names(&class), expected, "{what}");
    let mut maps = vec![
        "BACKEND_HEALTH",
        "CARRIED",
        "CARRYING",
        "COUNTERS",
        "DEVICES",
        "EVENTS",
        "EVENTS_LOST",
        "FILTER_BUCKETS",
        "FLOWS",
        "FLOW_EVENTS",
        "FLOW_LIMITS",
        "HALF_OPEN",
        "NEIGHBOURS",
        "NEXT_HOP_COUNTERS",
        "POLICY_STAYED",
        "PORTS",
        "PORTS_FRAGS",
        "PORT_LINKS",
        "SAMPLING",
        "VLANS",
    ];
    if stages.is_empty() {
        maps.extend(["BACKEND_COUNTERS", "FILTER_COUNTERS", "SERVICE_COUNTERS"]);
        maps.sort_unstable();
    }
    assert_eq!(names("maps"), maps, "{what}");
    let mut generations: Vec<u64> =
        status["retained"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    generations.push(status["generation"].as_u64().unwrap());
    generations.sort_unstable();
    let pinned: Vec<u64> = names("generation").iter().map(|name| name.parse().unwrap()).collect();
    assert_eq!(pinned, generations, "{what}");
    let links = (interfaces.len() - by_tc, by_tc);
    assert_eq!((names("link/xdp").len(), names("link/tc").len()), links, "{what}");
    // The node's maps, the outer map, the candidate's six, an image for each generation; the live program for each hook in use
    // (XDP always), and the candidate.
    let programs = 2 + usize::from(has_tc);
    let objects = BpfObjects::pinned(&node.pins()).unwrap();
    assert_eq!(
        (objects.maps.len(), objects.programs.len()),
        (maps.len() + 7 + generations.len(), programs),
        "{what}: {objects:?}"
    );
}

/// Every image, outer map and program hangs on a pin; the kernel frees the others a while after their last reference.
fn nothing_left_behind(known: &BpfObjects) {
    let deadline = Instant::now() + 10 * SECOND;
    loop {
        // Other users of this machine hold theirs open, as a benchmark does; ours are dead.
        let explained = [BpfObjects::pinned_anywhere().unwrap(), BpfObjects::held_open().unwrap(), known.clone()];
        let unpinned = explained.iter().fold(BpfObjects::of_wayleave().unwrap(), |left, other| left.without(other));
        if unpinned.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "without a pin: {unpinned:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// IPv6 routes, each in trie nodes of its own: few of them need more than the smallest class.
fn many_prefixes() -> String {
    (0..1u32 << 14).fold(String::new(), |mut list, number| {
        let [_, a, b, c] = (number << 9 | 1).to_be_bytes();
        writeln!(list, "2a00:{a:02x}{b:02x}:{c:02x}00::/48").unwrap();
        list
    })
}

fn lab() -> Topology {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    lab.fix_neighbours().unwrap();
    lab
}

/// The maps that a class directory holds of one version of the program.
const CANDIDATE_MAPS: [&str; 6] = [
    "CANDIDATE_BACKEND_HEALTH-",
    "CANDIDATE_COUNTERS-",
    "CANDIDATE_DEVICES-",
    "CANDIDATE_FLOWS-",
    "CANDIDATE_HALF_OPEN-",
    "CANDIDATE_VLANS-",
];
/// A filter that stops nothing of what the test sends.
const FILTER: &str = "apiVersion: wayleave/v1\nkind: FilterPolicy\nmetadata: {name: edge}\nspec:\n  default: allow\n  rules:\n    \
    - {name: telnet, protocol: tcp, ports: [23], action: deny}\n";
const APPLY: &[&str] = &["apply", "--auto-approve"];

#[test]
fn a_killed_process_leaves_the_old_or_the_new_rules() {
    let lab = lab();
    let mut total = 0;

    // Packets are the kernel's until the first generation is live.
    {
        let node = TestNode::router(&lab).unwrap();
        lab.route_in_kernel("198.51.100.0/24", &lab.upstreams[0]).unwrap();
        node.write("probe.yaml", &rules(0, false)).unwrap();
        let scenario = Scenario { name: "first apply", arguments: APPLY, live_before: false };
        let clean = |_| drop(node.succeed(&["detach", "--auto-approve"]).unwrap());
        total += kill_everywhere(&lab, &node, &scenario, clean);
    }
    lab.router.ip("route delete 198.51.100.0/24").unwrap();

    // Each round changes the rules that the last one left; three generations are kept, so that one is retired, too.
    let mut node = TestNode::router(&lab).unwrap();
    node.set_spec("retain: {generations: 3}").unwrap();
    node.write("probe.yaml", &rules(0, false)).unwrap();
    node.apply().unwrap();
    let scenario = Scenario { name: "change of rules", arguments: APPLY, live_before: true };
    let change = |nth| node.write("probe.yaml", &rules(u32::try_from(nth).unwrap(), false)).unwrap();
    total += kill_everywhere(&lab, &node, &scenario, change);

    let scenario = Scenario { name: "rollback", arguments: &["rollback", "--auto-approve"], live_before: true };
    let change = |nth: usize| {
        node.write("probe.yaml", &rules(100 + u32::try_from(nth).unwrap(), false)).unwrap();
        node.apply().unwrap();
    };
    total += kill_everywhere(&lab, &node, &scenario, change);

    let scenario = Scenario { name: "another version of the program", arguments: APPLY, live_before: true };
    let change = |nth: usize| {
        node.write("probe.yaml", &rules(u32::try_from(nth).unwrap(), false)).unwrap();
        // What a program of another version would have pinned.
        let class = node.pins().join("class-20");
        for role in CANDIDATE_MAPS.into_iter().chain(["candidate-routes-", "live-routes-"]) {
            let other = class.join(format!("{role}0123456789abcdef"));
            fs::rename(class.join(format!("{role}{}", object_id())), other).unwrap();
        }
    };
    total += kill_everywhere(&lab, &node, &scenario, change);

    // The older layout's program forwards until this one's has its generation.
    let scenario = Scenario { name: "an older layout", arguments: APPLY, live_before: false };
    let change = |_| {
        node.succeed(&["detach", "--auto-approve"]).unwrap();
        node.apply().unwrap();
        fs::rename(node.pins(), node.place().join("layout-1")).unwrap();
    };
    total += kill_everywhere(&lab, &node, &scenario, change);

    // Nor do the programs lose a stage.
    let scenario = Scenario { name: "filters", arguments: APPLY, live_before: true };
    let change = |_| {
        node.succeed(&["detach", "--auto-approve"]).unwrap();
        let _ = fs::remove_file(node.source().join("filter.yaml"));
        node.apply().unwrap();
        node.write("filter.yaml", FILTER).unwrap();
    };
    total += kill_everywhere(&lab, &node, &scenario, change);
    fs::remove_file(node.source().join("filter.yaml")).unwrap();

    // A class never shrinks, so each round starts anew.
    fs::write(node.source().join("many.txt"), many_prefixes()).unwrap();
    let scenario = Scenario { name: "a larger class", arguments: APPLY, live_before: true };
    let change = |_| {
        node.succeed(&["detach", "--auto-approve"]).unwrap();
        node.write("probe.yaml", &rules(1, false)).unwrap();
        node.apply().unwrap();
        node.write("probe.yaml", &rules(2, true)).unwrap();
    };
    total += kill_everywhere(&lab, &node, &scenario, change);
    assert!(!node.pins().join("class-20").exists(), "the class has grown");

    println!("{total} kills");
    for (call, kills) in &*KILLS.lock().unwrap() {
        println!("{kills:5} before {call}");
    }
    assert!(total >= 200, "only {total} kills");
}

#[test]
fn a_killed_change_of_mode_leaves_every_device_attached() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules(1, false)).unwrap();
    let config = fs::read_to_string(node.config()).unwrap();
    for (name, from, to) in [("from XDP to TC", "native", "tc"), ("from TC to XDP", "tc", "native")] {
        let scenario = Scenario { name, arguments: APPLY, live_before: true };
        let change = |_| {
            node.succeed(&["detach", "--auto-approve"]).unwrap();
            fs::write(node.config(), config.replace("attach: auto", &format!("attach: {from}"))).unwrap();
            node.apply().unwrap();
            fs::write(node.config(), config.replace("attach: auto", &format!("attach: {to}"))).unwrap();
        };
        assert!(kill_everywhere(&lab, &node, &scenario, change) > 10);
    }
}
