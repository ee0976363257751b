//! The Internet's real routing table, from files on disk into the kernel, and every answer checked against an independent
//! oracle: by the command line and by the loaded program.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use ipnet::{Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use serde_json::Value;
use wayleave::compile::Image;
use wayleave::kernel::program::{Programs, Stages};
use wayleave::kernel::publish::stage;
use wayleave_tests::{Host, Mac, Packet, TestNode, Topology, require_root_and_bpf};

const NEXT_HOPS: u32 = 249;
const ADDRESSES: usize = 100_000;
const IN_KERNEL: usize = 10_000;
/// From files on disk to published, on a machine that does other things, too.
const BOUND: Duration = Duration::from_secs(15);
const XDP_REDIRECT: u32 = 4;
const XDP_PASS: u32 = 2;

/// One table of `tests/data` as a list `PREFIX,NEXT-HOP`, and the oracle's rows; a prefix that comes twice is taken once.
fn list(name: &str, hop: &str) -> (String, Vec<(String, u32)>) {
    let folder =
        std::env::var("WAYLEAVE_TEST_DATA").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/data").into());
    let path = Path::new(&folder).join(name);
    let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut text = String::new();
    xz2::read::XzDecoder::new(file).read_to_string(&mut text).unwrap();
    let (mut list, mut rows, mut seen) = (String::new(), Vec::new(), HashSet::new());
    for line in text.lines() {
        let (prefix, number) = line.split_once(' ').unwrap();
        if !seen.insert(prefix) {
            println!("{name}: the second {prefix} is left out");
            continue;
        }
        let number = number.parse::<u32>().unwrap() % NEXT_HOPS;
        writeln!(list, "{prefix},{hop}-{number:03}").unwrap();
        rows.push((prefix.to_owned(), number));
    }
    (list, rows)
}

fn via_v4(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a4d_0103 + number)
}

fn via_v6(number: u32) -> Ipv6Addr {
    format!("fd77:1::1:{number:x}").parse().unwrap()
}

/// Each neighbour's own, so that a rewritten frame says which next hop was chosen.
fn mac(is_ipv4: bool, number: u32) -> Mac {
    Mac([2, 0xab, if is_ipv4 { 4 } else { 6 }, 0, 0, u8::try_from(number).unwrap()])
}

fn policy() -> String {
    let mut text =
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {name: internet}\nspec:\n  nextHops:\n".to_owned();
    for number in 0..NEXT_HOPS {
        writeln!(text, "    - {{name: nh-{number:03}, via: {}, port: uplink-a}}", via_v4(number)).unwrap();
        writeln!(text, "    - {{name: nh6-{number:03}, via: \"{}\", port: uplink-a}}", via_v6(number)).unwrap();
    }
    text + "  routes:\n    - {prefixesFrom: v4.txt}\n    - {prefixesFrom: v6.txt}\n"
}

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    fib::hash::mix(*state)
}

/// What the oracle expects of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Expected {
    address: IpAddr,
    /// Prefix and next hop.
    route: Option<(String, u32)>,
}

struct Oracle {
    v4: PrefixMap<Ipv4Net, (String, u32)>,
    v6: PrefixMap<Ipv6Net, (String, u32)>,
}

impl Oracle {
    fn look_up(&self, address: IpAddr) -> Expected {
        let route = match address {
            IpAddr::V4(a) => self.v4.get_lpm(&Ipv4Net::new(a, 32).unwrap()).map(|(_, route)| route.clone()),
            IpAddr::V6(a) => self.v6.get_lpm(&Ipv6Net::new(a, 128).unwrap()).map(|(_, route)| route.clone()),
        };
        Expected { address, route }
    }
}

/// Half anywhere, half inside a random prefix of the table.
fn addresses(v4: &[(String, u32)], v6: &[(String, u32)]) -> Vec<IpAddr> {
    let mut state = 20_260_619;
    let mut all = Vec::new();
    for i in 0..ADDRESSES {
        let bits = u128::from(random(&mut state)) << 64 | u128::from(random(&mut state));
        let pick = usize::try_from(random(&mut state) >> 1).unwrap();
        let low32 = u32::try_from(bits & 0xffff_ffff).unwrap();
        if i % 2 == 0 {
            all.push(Ipv4Addr::from_bits(low32).into());
            // Global unicast.
            all.push(Ipv6Addr::from_bits(bits >> 3 | 1 << 125).into());
        } else {
            let net: Ipv4Net = v4[pick % v4.len()].0.parse().unwrap();
            all.push(Ipv4Addr::from_bits(net.addr().to_bits() | low32 & net.hostmask().to_bits()).into());
            let net: Ipv6Net = v6[pick % v6.len()].0.parse().unwrap();
            all.push(Ipv6Addr::from_bits(net.addr().to_bits() | bits & net.hostmask().to_bits()).into());
        }
    }
    all
}

/// Destinations that no route is asked for (RFC 6890, RFC 4291), written here once more, apart from the program.
fn never_forwarded(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            let [first, ..] = a.octets();
            first == 0 || a.is_loopback() || a.is_link_local() || a.is_multicast() || a.is_broadcast()
        }
        IpAddr::V6(a) => a.is_multicast() || a.is_unicast_link_local() || a.is_loopback() || a.is_unspecified(),
    }
}

fn source_of(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { "198.18.0.1".parse().unwrap() } else { "2001:2::1".parse().unwrap() }
}

/// Asks `wayleave trace --stdin` about every address, and compares.
fn traces_agree(node: &TestNode, expected: &[Expected]) {
    let questions = node.scratch().join("questions.jsonl");
    let mut text = String::new();
    for (number, one) in expected.iter().enumerate() {
        let (src, sport) = (source_of(one.address), number % 60_000);
        writeln!(text, r#"{{"src":"{src}","dst":"{}","protocol":"udp","sport":{sport},"dport":53}}"#, one.address)
            .unwrap();
    }
    fs::write(&questions, text).unwrap();
    let mut command = node.command(&["trace", "--stdin", "--against", "live"]).unwrap();
    let begun = Instant::now();
    let output = command.stdin(File::open(&questions).unwrap()).stdout(Stdio::piped()).output().unwrap();
    println!("{} traces by the command line: {:?}", expected.len(), begun.elapsed());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers = String::from_utf8(output.stdout).unwrap();
    assert_eq!(answers.lines().count(), expected.len());
    for (answer, one) in answers.lines().zip(expected) {
        let answer: Value = serde_json::from_str(answer).unwrap();
        let found = (answer["verdict"].as_str().unwrap(), answer["reason"].as_str().unwrap());
        if never_forwarded(one.address) {
            assert_eq!(found, ("pass", "not-forwardable"), "{one:?}: {answer}");
            continue;
        }
        let Some((prefix, number)) = &one.route else {
            assert_eq!(found, ("pass", "no-route"), "{one:?}: {answer}");
            continue;
        };
        let name = if one.address.is_ipv4() { format!("nh-{number:03}") } else { format!("nh6-{number:03}") };
        assert_eq!(found, ("forward", "forwarded"), "{one:?}: {answer}");
        assert_eq!(
            (answer["prefix"].as_str(), answer["next_hop"]["name"].as_str()),
            (Some(prefix.as_str()), Some(name.as_str())),
            "{one:?}"
        );
    }
}

/// Runs packets through the loaded program on a candidate with the live rules; the new MAC address says which next hop.
fn program_agrees(lab: &Topology, node: &TestNode, expected: &[Expected]) {
    let work = || {
        let node = node.library().unwrap();
        let _lock = node.lock().unwrap();
        let observed = node.observe().unwrap();
        let live = observed.live.as_ref().unwrap();
        let mut image = Image::copy_of(&live.image.view().unwrap());
        image.stamp(live.number + 1, live.number, 0);
        let programs = Programs::ensure(&node.pins, observed.class_bits.unwrap(), Stages::Routes).unwrap();
        let staged = stage(&node.pins, &programs, &image).unwrap();
        let begun = Instant::now();
        for one in expected {
            let frame = Packet::between(source_of(one.address), one.address).frame();
            let ran = programs.test_run(&frame).unwrap();
            let expected = match &one.route {
                Some((_, number)) if !never_forwarded(one.address) => {
                    (XDP_REDIRECT, Some(mac(one.address.is_ipv4(), *number)))
                }
                _ => (XDP_PASS, None),
            };
            let written = Mac(ran.frame[..6].try_into().unwrap());
            let found = (ran.action, (written != Mac::default()).then_some(written));
            assert_eq!(found, expected, "{one:?}: reason {}", ran.reason);
        }
        println!("{} packets through the loaded program: {:?}", expected.len(), begun.elapsed());
        staged.release().unwrap();
    };
    lab.router.enter(work).unwrap();
}

fn with_neighbours(lab: &Topology) -> &Host {
    let a = lab.upstream(0).unwrap();
    let mut lines = String::new();
    for number in 0..NEXT_HOPS {
        for (via, mac) in
            [(IpAddr::from(via_v4(number)), mac(true, number)), (via_v6(number).into(), mac(false, number))]
        {
            writeln!(lines, "neighbour replace {via} lladdr {mac} dev upa nud permanent").unwrap();
        }
    }
    lab.router.ip_batch(&lines).unwrap();
    a
}

#[test]
fn the_real_table_is_live_within_seconds_and_right_everywhere() {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    lab.fix_neighbours().unwrap();
    // Room for the neighbours of both families.
    for key in ["net/ipv4/neigh/default", "net/ipv6/neigh/default"] {
        for (name, value) in [("gc_thresh1", "1024"), ("gc_thresh2", "4096"), ("gc_thresh3", "8192")] {
            // Only the first namespace has these; its values may be large enough already.
            let _ = fs::write(format!("/proc/sys/{key}/{name}"), value);
        }
    }
    with_neighbours(&lab);
    let node = TestNode::router(&lab).unwrap();
    let (v4_list, v4) = list("internet-v4.txt.xz", "nh");
    let (v6_list, v6) = list("internet-v6.txt.xz", "nh6");
    node.write("internet.yaml", &policy()).unwrap();
    node.write("v4.txt", &v4_list).unwrap();
    node.write("v6.txt", &v6_list).unwrap();

    let mut times = Vec::new();
    for _ in 0..5 {
        node.succeed(&["detach", "--auto-approve"]).unwrap();
        let begun = Instant::now();
        let mut command = node.command(&["apply", "--auto-approve"]).unwrap();
        let output = command.stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
        times.push(begun.elapsed());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        assert!(!stderr.contains("did not answer"), "{stderr}");
    }
    times.sort_unstable();
    println!("{} routes from files on disk to published, five times: {times:?}", v4.len() + v6.len());
    assert!(times[4] < BOUND, "{times:?}");
    let status = node.status().unwrap();
    assert_eq!(status["routes"], serde_json::json!({"ipv4": v4.len(), "ipv6": v6.len()}));
    assert_eq!((&status["health"]["state"], &status["state"]), (&"healthy".into(), &"forwarding".into()));
    println!("image: {}", status["image"]);

    let oracle = Oracle {
        v4: v4.iter().map(|row| (row.0.parse().unwrap(), row.clone())).collect(),
        v6: v6.iter().map(|row| (row.0.parse().unwrap(), row.clone())).collect(),
    };
    let expected: Vec<Expected> = addresses(&v4, &v6).into_iter().map(|address| oracle.look_up(address)).collect();
    assert!(expected.iter().filter(|one| one.route.is_some()).count() > ADDRESSES, "more than half of both families");
    traces_agree(&node, &expected);
    program_agrees(&lab, &node, &expected[..2 * IN_KERNEL]);
    // The candidate is gone again, and what was live still is.
    assert_eq!(node.status().unwrap()["leftovers"], 0);
}
