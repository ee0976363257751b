//! Three witnesses agree on every packet: a naive reading of the rules, the library over the image, and the loaded program.
//!
//! Rules and packets are drawn from a seed; a failure prints it, and `WAYLEAVE_SEED` runs it again.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fib::packet::Tags;
use fib::{Neighbour, Reach, Reason, Verdict};
use wayleave::compile::{Image, LiveIds, NodeFacts, compile};
use wayleave::daemon::node::Node;
use wayleave::kernel::check::TableNode;
use wayleave::kernel::program::{Programs, Stages};
use wayleave::kernel::publish::stage;
use wayleave::kernel::tables::{Egress, Tables};
use wayleave::policy::validate;
use wayleave::source::{Limits, read_directory};
use wayleave_tests::{Extension, Packet, TestNode, Topology, require_root_and_bpf};

const POLICIES: u64 = 120;
const PACKETS: usize = 150;
const XDP_ACTIONS: [(Verdict, u32); 3] = [(Verdict::Drop, 1), (Verdict::Pass, 2), (Verdict::Forward, 4)];
/// Neighbour of the next hop with this id; none for every seventh, and a small MTU for every fifth.
fn neighbour(id: u32) -> Option<Neighbour> {
    let destination = u64::from(id) << 24 | 0xaa02;
    let mtu = if id.is_multiple_of(5) { 200 } else { 0 };
    (!id.is_multiple_of(7)).then_some(Neighbour { destination, source: 0xbb02, mtu, ..Neighbour::default() })
}

struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        fib::hash::mix(self.0)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.word() % limit as u64).unwrap()
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// What a rule does, as the naive witness sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Does {
    Forward(Vec<String>),
    Drop,
    Pass,
}

/// Rules as a list: (address left-aligned in 128 bits, length, IPv4, what).
type Rules = Vec<(u128, u8, bool, Does)>;

fn left_aligned(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()) << 96,
        IpAddr::V6(a) => a.to_bits(),
    }
}

/// The longest prefix by looking at every rule.
fn naive(rules: &Rules, address: IpAddr) -> Option<&Does> {
    let bits = left_aligned(address);
    let matches = |rule: &&(u128, u8, bool, Does)| {
        let mask = if rule.1 == 0 { 0 } else { u128::MAX << (128 - rule.1) };
        rule.2 == address.is_ipv4() && (bits ^ rule.0) & mask == 0
    };
    rules.iter().filter(matches).max_by_key(|rule| rule.1).map(|rule| &rule.3)
}

/// Few leading bytes, so that prefixes nest and addresses hit them.
fn address(random: &mut Random, is_ipv4: bool) -> IpAddr {
    let word = random.word();
    let bytes = word.to_be_bytes().map(|byte| if byte < 128 { byte % 4 } else { byte });
    if is_ipv4 {
        Ipv4Addr::new(10 + bytes[0] % 3, bytes[1], bytes[2], bytes[3]).into()
    } else {
        let low = u128::from(random.word());
        let high = u128::from(u64::from_be_bytes(bytes) >> 16);
        Ipv6Addr::from_bits(0x2001 << 112 | high << 64 | if random.chance(50) { low % 8 } else { low }).into()
    }
}

/// A policy document, and what it means.
fn policy(random: &mut Random, rules: &mut Rules, policy: usize) -> String {
    let mut text =
        format!("apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: p{policy}}}\nspec:\n  nextHops:\n");
    let hops = 2 + random.below(6);
    let mut used = vec![[false; 2]; hops];
    let mut routes = String::new();
    for _ in 0..random.below(40) + 2 {
        let is_ipv4 = random.chance(50);
        let bits = if is_ipv4 { 32 } else { 128 };
        let length = match random.below(6) {
            0 => random.below(bits + 1),
            1 => bits,
            _ => (8 + random.below(bits - 7)).min(64),
        };
        let length = u8::try_from(length.min(bits)).unwrap();
        let mask = if length == 0 { 0 } else { u128::MAX << (128 - length) };
        let at = left_aligned(address(random, is_ipv4)) & mask;
        if rules.iter().any(|rule| (rule.0, rule.1, rule.2) == (at, length, is_ipv4)) {
            continue;
        }
        let shown = if is_ipv4 {
            Ipv4Addr::from_bits(u32::try_from(at >> 96).unwrap()).to_string()
        } else {
            Ipv6Addr::from_bits(at).to_string()
        };
        write!(routes, "    - {{prefix: \"{shown}/{length}\", ").unwrap();
        let does = match random.below(10) {
            0 => Does::Drop,
            1 => Does::Pass,
            2..6 => {
                let hop = random.below(hops);
                used[hop][usize::from(is_ipv4)] = true;
                Does::Forward(vec![format!("p{policy}/h{hop}{}", if is_ipv4 { "" } else { "-v6" })])
            }
            _ => {
                let mut members = Vec::new();
                for (hop, used) in used.iter_mut().enumerate() {
                    if members.is_empty() || random.chance(60) {
                        used[usize::from(is_ipv4)] = true;
                        members.push(format!("p{policy}/h{hop}{}", if is_ipv4 { "" } else { "-v6" }));
                    }
                }
                Does::Forward(members)
            }
        };
        match &does {
            Does::Drop => writeln!(routes, "action: drop}}").unwrap(),
            Does::Pass => writeln!(routes, "action: pass}}").unwrap(),
            Does::Forward(members) => {
                let shares: Vec<String> = members
                    .iter()
                    .map(|name| {
                        format!("{{name: {}, weight: {}}}", name.split_once('/').unwrap().1, 1 + random.below(9))
                    })
                    .collect();
                writeln!(routes, "nextHops: [{}]}}", shares.join(", ")).unwrap();
            }
        }
        rules.push((at, length, is_ipv4, does));
    }
    for hop in 0..hops {
        let port = ["uplink-a", "uplink-b"][hop % 2];
        writeln!(text, "    - {{name: h{hop}, via: 10.77.1.{}, port: {port}}}", 10 + hop).unwrap();
        writeln!(text, "    - {{name: h{hop}-v6, via: \"fd77:1::{}\", port: {port}}}", 10 + hop).unwrap();
    }
    text + "  routes:\n" + &routes
}

/// A packet that a router could meet; `true` when it is plain enough for the naive witness.
fn packet(random: &mut Random) -> (IpAddr, Vec<u8>, bool) {
    let is_ipv4 = random.chance(50);
    let destination = address(random, is_ipv4);
    let source: IpAddr = if is_ipv4 { [198, 18, 3, 4].into() } else { "2001:2::5".parse::<Ipv6Addr>().unwrap().into() };
    let mut packet = Packet::between(source, destination);
    let (from, to) = (u16::try_from(random.below(65_536)).unwrap(), u16::try_from(random.below(65_536)).unwrap());
    packet = match random.below(6) {
        0 => packet.tcp(from, to, wayleave_tests::tcp_flags::SYN),
        1 => packet.echo_request(from, to),
        2 => packet.protocol(47),
        3 if is_ipv4 => packet.udp(from, to).fragment(u16::try_from(random.below(100) * 8).unwrap(), true, 7),
        3 => packet.udp(from, to).extension(Extension::DestinationOptions(vec![1, 0])).extension(Extension::Fragment {
            offset_bytes: 0,
            more: true,
            identification: 7,
        }),
        _ => packet.udp(from, to),
    };
    let mut plain = true;
    if random.chance(10) {
        packet = packet.ttl(1);
        plain = false;
    }
    if random.chance(15) {
        packet = packet.payload(&vec![0; random.below(400)]);
    }
    let mut frame = packet.frame();
    if random.chance(25) {
        plain = false;
        if random.chance(20) {
            frame.truncate(14 + random.below(frame.len() - 14));
        } else {
            // Anything may be wrong but the Ethernet addresses: behind them lies the program's own business.
            let at = 12 + random.below(frame.len().min(80) - 12);
            frame[at] ^= u8::try_from(1 << random.below(8)).unwrap();
        }
    }
    (destination, frame, plain)
}

/// One round: rules from this seed, packets from it, three answers to each.
fn agree(
    seed: u64,
    node: &Node,
    test: &TestNode,
    devices: &BTreeMap<&str, u32>,
    generation: u64,
    seen: &mut BTreeMap<&'static str, usize>,
) {
    let mut random = Random(seed);
    let mut rules = Rules::new();
    for file in 0..3 {
        let text = policy(&mut random, &mut rules, file);
        test.write(&format!("{file}.yaml"), &text).unwrap();
    }
    let snapshot = read_directory(&test.source(), &Limits::default()).unwrap();
    let validated = validate(&snapshot);
    let policy = validated.policy.unwrap_or_else(|| panic!("seed {seed}: {:?}", validated.diagnostics));
    let mut image: Image = compile(&policy, &NodeFacts::default(), &LiveIds::default()).unwrap();
    image.stamp(generation, 0, 0);
    let stages = Stages::of(&image.view().unwrap());
    let programs = Programs::ensure(&node.pins, 20, stages).unwrap();
    let mut tables = Tables::open(&node.pins).unwrap();
    let view = image.view().unwrap();
    for hop in view.next_hops() {
        tables.set_reach(hop.id, &neighbour(hop.id).map_or(Reach::Unknown, Reach::Up)).unwrap();
    }
    for port in view.ports() {
        let device = if port.name == "uplink-a" { "upa" } else { "upb" };
        let device = devices[device];
        tables.set_port(port.id, &Egress { device, address_device: device, tags: Tags::default() }).unwrap();
    }
    let staged = stage(&node.pins, &programs, &image).unwrap();
    for number in 0..PACKETS {
        let (destination, frame, plain) = packet(&mut random);
        let what = || format!("seed {seed}, packet {number} to {destination}: {frame:02x?}");
        let ran = programs.test_run(&frame).unwrap_or_else(|error| panic!("{}: {error}", what()));
        // The library over the same bytes.
        let decision = fib::decide(view.bytes(), frame.as_slice(), &TableNode(&tables));
        let mut expected = frame.clone();
        if decision.reason() == Reason::Forwarded {
            let neighbour = decision.neighbour().unwrap();
            fib::packet::forward(&mut expected[..], &neighbour).unwrap();
        }
        let action = XDP_ACTIONS.iter().find(|(verdict, _)| *verdict == decision.reason().verdict()).unwrap().1;
        assert_eq!((ran.reason, ran.action), (decision.reason() as u32, action), "{}", what());
        assert_eq!(ran.frame, expected, "{}", what());
        *seen.entry(decision.reason().name()).or_default() += 1;
        if !plain {
            continue;
        }
        // The naive witness knows the rule; of a group it knows who may be chosen.
        let hop = decision.next_hop.map(|row| view.next_hop(row));
        let name = hop.map(|hop| format!("{}/{}", hop.policy, hop.name));
        match naive(&rules, destination) {
            None => assert_eq!(decision.reason(), Reason::NoRoute, "{}", what()),
            Some(Does::Drop) => assert_eq!(decision.reason(), Reason::RouteDrop, "{}", what()),
            Some(Does::Pass) => assert_eq!(decision.reason(), Reason::RoutePass, "{}", what()),
            Some(Does::Forward(members)) => {
                let name = name.unwrap_or_else(|| panic!("{}: {:?}", what(), decision.reason()));
                assert!(members.contains(&name), "{}: {name} is none of {members:?}", what());
                let neighbour = neighbour(hop.unwrap().id);
                let reason = match neighbour {
                    None => Reason::NoNeighbour,
                    Some(neighbour) if neighbour.mtu != 0 && frame.len() - 14 > neighbour.mtu.into() => Reason::OverMtu,
                    Some(_) => Reason::Forwarded,
                };
                assert_eq!(decision.reason(), reason, "{}", what());
                if let (Reason::Forwarded, Some(neighbour)) = (reason, neighbour) {
                    assert_eq!(ran.frame[..6], neighbour.destination.to_le_bytes()[..6], "{}", what());
                }
            }
        }
    }
    staged.release().unwrap();
}

#[test]
fn rules_library_and_program_agree() {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    let test = TestNode::router(&lab).unwrap();
    let one: Option<u64> = std::env::var("WAYLEAVE_SEED").ok().map(|seed| seed.parse().unwrap());
    let mut seen = BTreeMap::new();
    let devices = ["upa", "upb"].map(|device| (device, lab.router.ifindex(device).unwrap())).into();
    lab.router
        .enter(|| {
            let node = test.library().unwrap();
            let _lock = node.lock().unwrap();
            for (generation, seed) in one.map_or(1..=POLICIES, |seed| seed..=seed).enumerate() {
                agree(seed, &node, &test, &devices, generation as u64 + 1, &mut seen);
            }
        })
        .unwrap();
    println!("{POLICIES} policies, {PACKETS} packets each: {seen:?}");
    if one.is_none() {
        for reason in [
            "forwarded",
            "no-route",
            "route-drop",
            "route-pass",
            "no-neighbour",
            "over-mtu",
            "ttl-expired",
            "malformed",
        ] {
            assert!(seen.contains_key(reason), "no packet ended in {reason}");
        }
    }
}
