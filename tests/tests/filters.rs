//! Filters: a naive scan of the rules against the compiled tables, and real packets through the attached program.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use fib::filter::{NO_RULE, find, see};
use fib::packet::link;
use serde_json::Value;
use wayleave::compile::{LiveIds, NodeFacts, compile};
use wayleave::policy::{FilterRule, Policy, validate};
use wayleave::source::{Snapshot, SourceFile};
use wayleave_tests::{Blaster, CountingSink, Packet, TestNode, Topology, require_root_and_bpf};

const POLICIES: usize = 150;
const PACKETS: usize = 200;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        usize::try_from(fib::hash::mix(self.0) % limit as u64).unwrap()
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Few bits vary, so that prefixes nest and packets hit them.
    fn v4(&mut self) -> u32 {
        let bytes =
            [10, self.one(&[0, 1, 2, 128, 255]), self.one(&[0, 1, 64, 128, 255]), self.one(&[0, 1, 2, 127, 128, 255])];
        u32::from_be_bytes(bytes)
    }

    fn v6(&mut self) -> u128 {
        let high = u128::from(self.v4());
        let low = u128::from(self.v4()) << self.one(&[0, 7, 32, 64]);
        0x2001_0db8 << 96 | high << 64 | low
    }
}

/// What the naive witness knows of a packet, by having made it.
#[derive(Clone, Copy, Debug)]
struct Made {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    ports: Option<(u16, u16)>,
    flags: Option<u8>,
    is_later: bool,
    in_port: &'static str,
}

/// Every field of every rule, one after the other.
fn naive<'p>(policy: &'p Policy, packet: &Made) -> Option<(&'p str, &'p FilterRule)> {
    let rules = policy.filter_policies.iter().flat_map(|p| p.rules.iter().map(move |rule| (p.name.as_str(), rule)));
    let within = |prefixes: &Option<Vec<wayleave::policy::Prefix>>, address: IpAddr| {
        prefixes.as_ref().is_none_or(|prefixes| prefixes.iter().any(|prefix| prefix.contains(address)))
    };
    let port = |ranges: &Option<Vec<(u16, u16)>>, port: Option<u16>, rule: &FilterRule| match (ranges, port) {
        (None, _) => true,
        (Some(_), None) => packet.is_later && rule.fragments,
        (Some(ranges), Some(port)) => ranges.iter().any(|(first, last)| (*first..=*last).contains(&port)),
    };
    let family = usize::from(packet.src.is_ipv6());
    let matches = |(_, rule): &(&str, &FilterRule)| {
        within(&rule.from, packet.src)
            && within(&rule.to, packet.dst)
            && rule.protocol.is_none_or(|protocol| protocol[family] == packet.protocol)
            && port(&rule.source_ports, packet.ports.map(|p| p.0), rule)
            && port(&rule.ports, packet.ports.map(|p| p.1), rule)
            && rule.in_ports.as_ref().is_none_or(|ports| ports.iter().any(|port| port == packet.in_port))
            && match (rule.tcp_flags, packet.flags) {
                (None, _) => true,
                (Some(_), None) => packet.is_later && rule.fragments,
                (Some(wanted), Some(flags)) => flags & wanted.set == wanted.set && flags & wanted.clear == 0,
            }
    };
    rules.into_iter().find(matches)
}

fn prefixes(random: &mut Random, is_ipv4: bool, most: usize) -> Vec<String> {
    (0..=random.below(most))
        .map(|_| {
            if is_ipv4 {
                let length = random.one(&[0, 1, 8, 9, 16, 17, 24, 25, 31, 32]);
                let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
                format!("\"{}/{length}\"", Ipv4Addr::from_bits(random.v4() & mask))
            } else {
                let length = random.one(&[0, 32, 48, 63, 64, 65, 96, 100, 127, 128]);
                let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
                format!("\"{}/{length}\"", Ipv6Addr::from_bits(random.v6() & mask))
            }
        })
        .collect()
}

fn ranges(random: &mut Random) -> String {
    let ports = [0, 1, 22, 79, 80, 81, 255, 256, 443, 8000, 65_535u16];
    let range = |random: &mut Random| {
        let (a, b) = (random.one(&ports), random.one(&ports));
        format!("\"{}-{}\"", a.min(b), a.max(b))
    };
    (0..=random.below(3)).map(|_| range(random)).collect::<Vec<_>>().join(", ")
}

/// A source with up to three policies, and lists.
fn policy(random: &mut Random) -> Policy {
    let mut files = BTreeMap::new();
    let many = random.chance(10);
    for number in 0..=random.below(3) {
        let priority = random.one(&[1, 5, 1000]);
        let mut text = format!(
            "apiVersion: wayleave/v1\nkind: FilterPolicy\nmetadata: {{name: p{number}}}\nspec:\n  priority: {priority}\n  rules:\n"
        );
        for rule in 0..=random.below(if many { 90 } else { 12 }) {
            write!(text, "    - {{name: r{rule}, ").unwrap();
            let is_ipv4 = random.chance(60);
            for key in ["from", "to"] {
                if random.chance(50) {
                    let mut all = prefixes(random, is_ipv4, 5);
                    if random.chance(15) {
                        all.extend(prefixes(random, !is_ipv4, 3));
                    }
                    write!(text, "{key}: [{}], ", all.join(", ")).unwrap();
                } else if random.chance(10) {
                    let list = format!("lists/{number}-{rule}-{key}.txt");
                    let all = prefixes(random, is_ipv4, 3000).join("\n").replace('"', "");
                    write!(text, "{key}List: {list}, ").unwrap();
                    files.insert(list, SourceFile::Content(all.into_bytes().into()));
                }
            }
            let has_ports = random.chance(40);
            let protocol = if has_ports {
                random.one(&["tcp", "udp", ""])
            } else {
                random.one(&["tcp", "icmp", "\"47\"", "", ""])
            };
            if !protocol.is_empty() {
                write!(text, "protocol: {protocol}, ").unwrap();
            }
            if has_ports {
                let key = random.one(&["ports", "sourcePorts"]);
                let ranges = ranges(random);
                write!(text, "{key}: [{ranges}], fragments: {}, ", random.chance(30)).unwrap();
            }
            if matches!(protocol, "tcp" | "") && random.chance(20) {
                text.push_str(random.one(&["tcpFlags: {set: [syn]}, ", "tcpFlags: {set: [ack], clear: [rst, fin]}, "]));
            }
            if random.chance(15) {
                text.push_str(random.one(&["inPort: lan, ", "inPort: [lan, dc], "]));
            }
            text.push_str(random.one(&["action: allow}\n", "action: deny}\n"]));
        }
        files.insert(format!("p{number}.yaml"), SourceFile::Content(text.into_bytes().into()));
    }
    let validated = validate(&Snapshot::of_directory(files));
    validated.policy.unwrap_or_else(|| panic!("{:?}", validated.diagnostics))
}

fn packet(random: &mut Random) -> (Made, Packet) {
    let (src, dst): (IpAddr, IpAddr) = if random.chance(60) {
        (Ipv4Addr::from_bits(random.v4()).into(), Ipv4Addr::from_bits(random.v4()).into())
    } else {
        (Ipv6Addr::from_bits(random.v6()).into(), Ipv6Addr::from_bits(random.v6()).into())
    };
    let ports = [0, 1, 21, 22, 79, 80, 81, 255, 256, 442, 443, 7999, 8000, 65_535];
    let (sport, dport) = (random.one(&ports), random.one(&ports));
    let flags = random.one(&[0, 2, 0x10, 0x11, 0x12, 0x14, 0xff]);
    let icmp = if src.is_ipv4() { 1 } else { 58 };
    let packet = Packet::between(src, dst)
        .macs(wayleave_tests::Mac([2, 0, 0, 0, 0, 1]), wayleave_tests::Mac([2, 0, 0, 0, 0, 2]));
    let (protocol, packet, shown, flags) = match random.below(5) {
        0 | 1 => (6, packet.tcp(sport, dport, flags), Some((sport, dport)), Some(flags)),
        2 => (17, packet.udp(sport, dport), Some((sport, dport)), None),
        3 => (icmp, packet.echo_request(1, 1), None, None),
        _ => (47, packet.protocol(47).payload(&[0; 8]), None, None),
    };
    let is_later = random.chance(15);
    let packet = if is_later {
        packet.payload(&[0; 24]).fragment(64, random.chance(50), 7)
    } else if random.chance(10) {
        packet.payload(&[0; 24]).fragment(0, true, 7)
    } else {
        packet
    };
    let in_port = random.one(&["lan", "dc", "other"]);
    let (ports, flags) = if is_later { (None, None) } else { (shown, flags) };
    (Made { src, dst, protocol, ports, flags, is_later, in_port }, packet)
}

#[test]
fn the_tables_find_the_rule_that_a_scan_of_all_rules_finds() {
    let seed = std::env::var("WAYLEAVE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_260_131);
    let (mut decided, mut undecided) = (0, 0);
    for number in 0..POLICIES {
        let mut random = Random(seed + (number as u64) * 1_000_003);
        let policy = policy(&mut random);
        let image = compile(&policy, &NodeFacts::default(), &LiveIds::default()).unwrap();
        let view = image.view().unwrap();
        for _ in 0..PACKETS {
            let (made, packet) = packet(&mut random);
            let frame = packet.frame();
            let wanted = naive(&policy, &made).map(|(policy, rule)| format!("{policy}/{}", rule.name));
            let ethertype = link(frame.as_slice()).unwrap().ethertype;
            let in_port = view.ports().find(|port| port.name == made.in_port).map_or(0, |port| port.id);
            let found = match find(view.bytes(), &see(frame.as_slice(), ethertype).unwrap(), in_port).unwrap() {
                NO_RULE => None,
                row => Some(view.filter_rule(row)).map(|rule| format!("{}/{}", rule.policy, rule.name)),
            };
            assert_eq!(found, wanted, "WAYLEAVE_SEED={seed}, policy {number}: {made:?}");
            if found.is_some() { decided += 1 } else { undecided += 1 }
        }
    }
    println!("{decided} packets met a rule, {undecided} none");
    assert!(decided > 5000 && undecided > 2000, "{decided} and {undecided}: the draw is of no use");
}

// ---- in the kernel

const ROUTES: &str = "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {name: all}\nspec:\n  nextHops:\n    - {name: a, \
                      via: 10.77.1.2, port: uplink-a}\n  routes:\n    - {prefix: 198.51.0.0/16, nextHops: [{name: a}]}\n";

fn filter(rules: &str) -> String {
    format!("apiVersion: wayleave/v1\nkind: FilterPolicy\nmetadata: {{name: edge}}\nspec:\n  rules:\n{rules}")
}

fn lab() -> Topology {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    lab.fix_neighbours().unwrap();
    lab
}

/// Frames of the client to an address and a UDP port.
fn frame(lab: &Topology, to: &str, port: u16) -> Vec<u8> {
    let packet = Packet::between(lab.client.v4.into(), to.parse().unwrap());
    packet.macs(lab.client.mac, lab.client.router_mac).udp(4000, port).payload(&[7; 18]).frame()
}

/// Whether a frame is IPv4 and UDP to this port.
fn is_to(port: u16) -> impl Fn(&[u8]) -> bool + Send + 'static {
    move |frame| frame.len() >= 42 && frame[12..14] == [8, 0] && frame[23] == 17 && frame[36..38] == port.to_be_bytes()
}

fn row(status: &Value, rule: &str) -> Value {
    let rows = status["filter_rules"].as_array().unwrap();
    rows.iter().find(|row| row["filter"] == rule).unwrap_or_else(|| panic!("no {rule} in {rows:?}")).clone()
}

/// Waits until the rule has matched so many packets.
fn matched(node: &TestNode, rule: &str, packets: u64) -> Value {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let status = node.status().unwrap();
        let row = row(&status, rule);
        if row["packets"].as_u64().unwrap() >= packets || Instant::now() > deadline {
            return status;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn send(lab: &Topology, frame: Vec<u8>, count: u64) {
    let sent = Blaster::frames(&lab.client.namespace, "eth0", vec![frame], Some(count)).unwrap().wait().unwrap();
    assert_eq!(sent, count);
}

#[test]
fn what_is_denied_is_counted_and_does_not_arrive_whatever_the_program_is_attached_by() {
    for attach in ["native", "tc"] {
        let lab = lab();
        let mut node = TestNode::router(&lab).unwrap();
        node.set_attach("lan", attach).unwrap();
        node.write("routes.yaml", ROUTES).unwrap();
        node.write("filter.yaml", &filter("    - {name: no-dns, protocol: udp, ports: [53], action: deny}\n    - {name: web, ports: [80], action: allow}\n")).unwrap();
        node.apply().unwrap();
        let upstream = lab.upstream(0).unwrap();
        let (denied, allowed) = (
            CountingSink::start(&upstream.namespace, "eth0", is_to(53)).unwrap(),
            CountingSink::start(&upstream.namespace, "eth0", is_to(80)).unwrap(),
        );
        send(&lab, frame(&lab, "198.51.100.9", 53), 40);
        send(&lab, frame(&lab, "198.51.100.9", 80), 30);
        assert_eq!(allowed.wait_for(30, Duration::from_secs(5)), 30, "{attach}");
        let status = matched(&node, "edge/no-dns", 40);
        assert_eq!(denied.matched(), 0, "{attach}");
        let bytes = frame(&lab, "198.51.100.9", 53).len() as u64;
        let counts = |rule: &str| {
            let row = row(&status, rule);
            (row["packets"].as_u64().unwrap(), row["bytes"].as_u64().unwrap())
        };
        assert_eq!(
            (counts("edge/no-dns"), counts("edge/web")),
            ((40, 40 * bytes), (30, 30 * bytes)),
            "{attach}: {status}"
        );
        assert_eq!(node.counters().unwrap().get("drop/filter-deny"), 40, "{attach}");
        assert_eq!(status["filters"], 2);

        // Another generation: a rule more and another order of files. Counters belong to rules, by name.
        node.write("filter.yaml", &filter("    - {name: first, from: [192.0.2.0/24], action: deny}\n    - {name: no-dns, protocol: udp, ports: [53, 54], action: deny}\n    - {name: web, ports: [80], action: allow}\n")).unwrap();
        node.apply().unwrap();
        send(&lab, frame(&lab, "198.51.100.9", 54), 5);
        let status = matched(&node, "edge/no-dns", 45);
        assert_eq!(row(&status, "edge/no-dns")["packets"], 45, "{attach}: counters survive a publish");
        assert_eq!(row(&status, "edge/web")["packets"], 30, "{attach}");
        assert_eq!(row(&status, "edge/first")["packets"], 0, "{attach}");
    }
}

#[test]
fn a_limit_lets_through_what_it_says_and_goes_on_over_a_publish() {
    const RATE: u64 = 5000;
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    let limit = |burst: u64| {
        filter(&format!(
            "    - {{name: slow, ports: [9], rateLimit: {{packetsPerSecond: {RATE}, burst: {burst}, per: source}}}}\n"
        ))
    };
    node.write("routes.yaml", ROUTES).unwrap();
    node.write("filter.yaml", &limit(100)).unwrap();
    node.apply().unwrap();
    let sink = CountingSink::start(&lab.upstream(0).unwrap().namespace, "eth0", is_to(9)).unwrap();
    let blaster = Blaster::frames(&lab.client.namespace, "eth0", vec![frame(&lab, "198.51.100.9", 9)], None).unwrap();
    let start = Instant::now();
    thread::sleep(Duration::from_secs(1));
    // The same bucket, whatever generation asks for it: the new burst is no new start.
    node.write("filter.yaml", &limit(101)).unwrap();
    node.apply().unwrap();
    if let Some(rest) = Duration::from_secs(2).checked_sub(start.elapsed()) {
        thread::sleep(rest);
    }
    let sent = blaster.stop().unwrap();
    let took = start.elapsed();
    thread::sleep(Duration::from_millis(200));
    let arrived = sink.stop().unwrap();
    let expected = 100 + RATE * u64::try_from(took.as_millis()).unwrap() / 1000;
    println!(
        "{sent} sent in {took:?}, {} arrived, {expected} allowed, {} lost by the sink",
        arrived.matched, arrived.lost
    );
    assert!(sent > 4 * arrived.matched, "{sent} sent: too few to be limited");
    let through = arrived.matched + arrived.lost;
    assert!((expected * 9 / 10..=expected * 11 / 10).contains(&through), "{arrived:?} of {expected}");
    let row = row(&node.status().unwrap(), "edge/slow");
    assert_eq!(
        row["packets"].as_u64().unwrap() - row["limited_packets"].as_u64().unwrap(),
        arrived.matched + arrived.lost,
        "{row}"
    );
}

/// Two generations, each of which lets the packet through to its own upstream by its own filter; any mixture drops it.
#[test]
fn a_publish_changes_filters_and_routes_at_once() {
    const PUBLISHES: usize = 60;
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    let side = |hop: &str, third: u8, denied: &str| {
        let route = format!(
            "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: all}}\nspec:\n  nextHops:\n    - {{name: hop, via: \
             10.77.{third}.2, port: uplink-{hop}}}\n  routes:\n    - {{prefix: 198.51.{third}.0/24, nextHops: [{{name: hop}}]}}\n"
        );
        (route, filter(&format!("    - {{name: other, to: [{denied}], action: deny}}\n")))
    };
    // A forwards to 198.51.1/24 and denies 198.51.2/24, B the other way round. A packet to either is forwarded or denied;
    // by A's filter and B's routes, or the other way round, one of them would have no route at all.
    let sides = [side("a", 1, "198.51.2.0/24"), side("b", 2, "198.51.1.0/24")];
    let publish = |number: usize| {
        node.write("routes.yaml", &sides[number % 2].0).unwrap();
        node.write("filter.yaml", &sides[number % 2].1).unwrap();
        node.apply().unwrap();
    };
    publish(0);
    let frames = vec![frame(&lab, "198.51.1.9", 9), frame(&lab, "198.51.2.9", 9)];
    let before = node.counters().unwrap();
    let blaster = Blaster::frames(&lab.client.namespace, "eth0", frames, None).unwrap();
    (1..PUBLISHES).for_each(publish);
    let sent = blaster.stop().unwrap();
    thread::sleep(Duration::from_millis(200));
    let counted = node.counters().unwrap().since(&before);
    let of = |name: &str| counted.get(name);
    println!("{sent} sent over {PUBLISHES} publishes: {counted:?}");
    assert!(of("forward/forwarded") > 1000 && of("drop/filter-deny") > 1000, "{counted:?}");
    assert_eq!(of("pass/no-route"), 0, "a mixture of two generations: {counted:?}");
}

/// Frames of a source behind the client to a UDP port, of so many bytes in all.
fn frame_from(lab: &Topology, from: &str, to: &str, port: u16, bytes: usize) -> Vec<u8> {
    let packet = Packet::between(from.parse().unwrap(), to.parse().unwrap());
    let empty = packet.clone().macs(lab.client.mac, lab.client.router_mac).udp(4000, port).frame().len();
    packet.macs(lab.client.mac, lab.client.router_mac).udp(4000, port).payload(&vec![7; bytes - empty]).frame()
}

/// What a rule let through and what its limit dropped: packets and bytes of each.
fn through(status: &Value, rule: &str) -> [u64; 4] {
    let row = row(status, rule);
    let [packets, bytes, limited, limited_bytes] =
        ["packets", "bytes", "limited_packets", "limited_bytes"].map(|key| row[key].as_u64().unwrap());
    [packets - limited, bytes - limited_bytes, limited, limited_bytes]
}

#[test]
fn a_limit_of_bytes_counts_whole_frames_whatever_their_size() {
    const FRAME: usize = 1_000;
    const BURST: u64 = 100_000;
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("routes.yaml", ROUTES).unwrap();
    // So slow that what comes during the test is less than one large frame.
    let limit = format!("    - {{name: quota, ports: [9], rateLimit: {{bytesPerSecond: 40, burst: {BURST}}}}}\n");
    node.write("filter.yaml", &filter(&limit)).unwrap();
    node.apply().unwrap();
    let sink = CountingSink::start(&lab.upstream(0).unwrap().namespace, "eth0", is_to(9)).unwrap();
    // Ten large ones take a tenth of it, a thousand small ones six tenths, and large ones the rest and no more.
    let (large, small) =
        (frame_from(&lab, "10.77.0.2", "198.51.100.9", 9, FRAME), frame_from(&lab, "10.77.0.2", "198.51.100.9", 9, 60));
    send(&lab, large.clone(), 10);
    send(&lab, small, 1_000);
    send(&lab, large, 100);
    let status = matched(&node, "edge/quota", 1_110);
    assert_eq!(through(&status, "edge/quota"), [10 + 1_000 + 30, BURST, 70, 70_000], "{status:#}");
    assert_eq!(sink.wait_for(1_040, Duration::from_secs(5)), 1_040);
    assert_eq!(node.counters().unwrap().get("drop/filter-rate-limited"), 70);
}

#[test]
fn sources_of_one_prefix_share_a_limit_and_others_have_their_own() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("routes.yaml", ROUTES_6).unwrap();
    let limit = "    - {name: shared, ports: [9], rateLimit: {packetsPerSecond: 1, burst: 10, per: sourcePrefix, ipv4PrefixLength: 24, \
                 ipv6PrefixLength: 56}}\n";
    node.write("filter.yaml", &filter(limit)).unwrap();
    node.apply().unwrap();
    let begun = Instant::now();
    let mut sent = 0;
    let mut let_through = 0;
    // (source, how many of 8 pass)
    for (from, passes) in [
        ("198.18.1.1", 8),
        ("198.18.1.200", 2),
        ("198.18.2.1", 8),
        ("2001:db8:1:100::1", 8),
        ("2001:db8:1:1ff:ffff::1", 2),
        ("2001:db8:1:200::1", 8),
    ] {
        let to = if from.contains(':') { "2001:db8:100::9" } else { "198.51.100.9" };
        send(&lab, frame_from(&lab, from, to, 9, 80), 8);
        sent += 8;
        let status = matched(&node, "edge/shared", sent);
        let [now, ..] = through(&status, "edge/shared");
        // A token a second comes while the test runs.
        let slack = begun.elapsed().as_secs() + 1;
        assert!(
            (passes..=(passes + slack).min(8)).contains(&(now - let_through)),
            "{from}: {} of 8 passed",
            now - let_through
        );
        let_through = now;
    }
}

const ROUTES_6: &str = "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {name: all}\nspec:\n  nextHops:\n    - {name: a, \
                        via: 10.77.1.2, port: uplink-a}\n    - {name: a6, via: \"fd77:1::2\", port: uplink-a}\n  routes:\n    - \
                        {prefix: 198.51.0.0/16, nextHops: [{name: a}]}\n    - {prefix: \"2001:db8:100::/48\", nextHops: [{name: a6}]}\n";

/// Whether a frame is IPv6 and UDP to this port.
fn is_v6_to(port: u16) -> impl Fn(&[u8]) -> bool + Send + 'static {
    move |frame| {
        frame.len() >= 62 && frame[12..14] == [0x86, 0xdd] && frame[20] == 17 && frame[56..58] == port.to_be_bytes()
    }
}

#[test]
fn ipv6_traffic_meets_the_rules_of_its_prefixes() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("routes.yaml", ROUTES_6).unwrap();
    let rules = "    - {name: one-host, from: [\"2001:db8:1:2::3/128\"], action: allow}\n    - {name: its-net, from: \
                 [\"2001:db8:1:2::/64\", 198.18.0.0/16], action: deny}\n    - {name: port, to: [\"2001:db8:100::/64\"], protocol: udp, ports: \
                 [53], action: deny}\n";
    node.write("filter.yaml", &filter(rules)).unwrap();
    node.apply().unwrap();
    let upstream = lab.upstream(0).unwrap();
    let sinks: Vec<_> =
        [9, 53].map(|port| CountingSink::start(&upstream.namespace, "eth0", is_v6_to(port)).unwrap()).into();
    for (count, from, to, port) in [
        (3, "2001:db8:1:2::3", "2001:db8:100::9", 9),
        (5, "2001:db8:1:2::4", "2001:db8:100::9", 9),
        (7, "2001:db8:1:3::3", "2001:db8:100::9", 9),
        (11, "2001:db8:1:3::3", "2001:db8:100::9", 53),
        (13, "2001:db8:1:3::3", "2001:db8:100:1::9", 53),
        // The first rule that matches decides.
        (17, "2001:db8:1:2::3", "2001:db8:100::9", 53),
    ] {
        send(&lab, frame_from(&lab, from, to, port, 90), count);
    }
    let wait = Duration::from_secs(5);
    assert_eq!((sinks[0].wait_for(3 + 7, wait), sinks[1].wait_for(13 + 17, wait)), (10, 30));
    let status = matched(&node, "edge/port", 11);
    let counts =
        ["edge/one-host", "edge/its-net", "edge/port"].map(|rule| row(&status, rule)["packets"].as_u64().unwrap());
    assert_eq!(counts, [20, 5, 11], "{status:#}");
    thread::sleep(Duration::from_millis(100));
    assert_eq!((sinks[0].matched(), sinks[1].matched()), (10, 30), "nothing that is denied arrives late");
}

#[test]
fn who_watches_sees_the_rule_that_stopped_a_packet() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("routes.yaml", ROUTES_6).unwrap();
    let rules = "    - {name: no-dns, protocol: udp, ports: [53], action: deny}\n    - {name: slow, ports: [9], rateLimit: {packetsPerSecond: 1, \
                 burst: 1}}\n    - {name: rest, ports: [80], action: allow}\n    - {name: answers, to: [10.77.0.0/24, \"2001:db8:1::/48\"], action: allow}\n  default: deny\n";
    node.write("filter.yaml", &filter(rules)).unwrap();
    node.apply().unwrap();
    let mut command = node.command(&["watch", "--format", "json", "--count", "3"]).unwrap();
    for reason in ["filter-deny", "filter-rate-limited", "filter-default-deny"] {
        command.args(["--reason", reason]);
    }
    let mut watch = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut says = String::new();
    BufReader::new(watch.stderr.as_mut().unwrap()).read_line(&mut says).unwrap();
    assert!(says.starts_with("watching "), "{says}");
    // What is allowed makes no event.
    send(&lab, frame(&lab, "198.51.100.9", 80), 5);
    send(&lab, frame(&lab, "198.51.100.9", 53), 1);
    send(&lab, frame_from(&lab, "2001:db8:1::1", "2001:db8:100::9", 9, 90), 2);
    send(&lab, frame(&lab, "198.51.100.9", 81), 1);
    let output = watch.wait_with_output().unwrap();
    let events: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told = |event: &Value| {
        let [reason, rule, policy, file] =
            ["reason", "rule", "policy", "file"].map(|key| event[key].as_str().unwrap_or("-").to_owned());
        format!("{reason} {policy}/{rule} {file}:{} {}", event["line"], event["dst"].as_str().unwrap())
    };
    assert_eq!(
        events.iter().map(told).collect::<Vec<_>>(),
        [
            "filter-deny edge/no-dns filter.yaml:6 198.51.100.9",
            "filter-rate-limited edge/slow filter.yaml:7 2001:db8:100::9",
            "filter-default-deny edge/- filter.yaml:3 198.51.100.9",
        ]
    );
}
