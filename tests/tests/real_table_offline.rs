//! The Internet's real routing table, compiled without a kernel: size, speed, and agreement with an independent oracle.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use fib::layout::Section;
use fib::lookup;
use prefix_trie::PrefixMap;
use wayleave::compile::view::{Match, RouteAction};
use wayleave::compile::{LiveIds, NodeFacts, View, capacity_class, compile};
use wayleave::plan::{Count, Effect, Plan};
use wayleave::policy::{Action, NextHop, NextHopGroup, OnAllDown, Origin, Policy, Prefix, Route, RoutePolicy};
use wayleave::trace::{Offline, PacketDescription, trace};

/// Next hops that the origin AS numbers are spread over.
const NEXT_HOPS: u32 = 249;
const LOOKUPS: u32 = 100_000;

/// (prefix, origin AS) of one table in `tests/data`.
fn table(name: &str) -> Vec<(Prefix, u32)> {
    let folder =
        std::env::var("WAYLEAVE_TEST_DATA").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/data").into());
    let path = Path::new(&folder).join(name);
    let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut text = String::new();
    xz2::read::XzDecoder::new(file).read_to_string(&mut text).unwrap();
    let parse = |line: &str| {
        let (prefix, number) = line.split_once(' ')?;
        Some((prefix.parse().ok()?, number.parse().ok()?))
    };
    text.lines().map(|line| parse(line).unwrap_or_else(|| panic!("{name}: {line}"))).collect()
}

/// One policy of all routes; IPv4 and IPv6 next hops by AS number.
fn policy(routes: &[(Prefix, u32)]) -> Policy {
    let hop = |i: u32| NextHop {
        name: format!("hop-{i}"),
        via: if i < NEXT_HOPS {
            Ipv4Addr::from_bits(0xc000_0200 + i).into()
        } else {
            Ipv6Addr::from_bits((0x2001_0db8 << 96) + u128::from(i)).into()
        },
        port: format!("port-{}", i % 4),
        origin: Origin { file: 0, line: 6 + i },
    };
    let mut routes: Vec<Route> = routes
        .iter()
        .zip(1..)
        .map(|(&(prefix, number), line)| Route {
            prefix,
            action: Action::Forward(number % NEXT_HOPS + if prefix.is_ipv4() { 0 } else { NEXT_HOPS }),
            origin: Origin { file: 1, line },
        })
        .collect();
    routes.sort_by_key(|route| route.prefix);
    routes.dedup_by_key(|route| route.prefix);
    Policy {
        revision: "dir@sha256:internet".to_owned(),
        files: vec!["internet.yaml".to_owned(), "lists/internet.txt".to_owned()],
        filter_policies: vec![],
        service_policies: Vec::new(),
        route_policies: vec![RoutePolicy {
            probes: vec![],
            name: "internet".to_owned(),
            owner: None,
            nodes: wayleave::policy::Selector::default(),
            origin: Origin { file: 0, line: 1 },
            next_hops: (0..2 * NEXT_HOPS).map(hop).collect(),
            groups: (0..2 * NEXT_HOPS)
                .map(|i| NextHopGroup { members: vec![(i, 1)], on_all_down: OnAllDown::Pass })
                .collect(),
            routes,
        }],
    }
}

/// A step of `SplitMix64` (Steele, Lea, Flood 2014).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    fib::hash::mix(*state)
}

fn fastest(runs: u32, mut work: impl FnMut()) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..runs {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed());
    }
    best
}

/// One AS moves to other next hops and one block is lost; what changes is counted from the list itself.
fn plan_of_the_whole_table(routes: &[(Prefix, u32)], live: &View) {
    const MOVED: u32 = 4134;
    let changed: Vec<(Prefix, u32)> =
        routes[1..].iter().map(|&(p, number)| (p, if number == MOVED { number + 1 } else { number })).collect();
    let image = compile(&policy(&changed), &NodeFacts::default(), &LiveIds::from_views([live])).unwrap();
    let desired = image.view().unwrap();
    let plan = Plan::between(Some(live), &desired);
    let moved = routes.iter().filter(|(_, number)| *number == MOVED).count();
    assert_eq!((plan.summary().change, plan.summary().add), (moved, 0));
    // One route, and the node's own address that the second compile was not told.
    assert_eq!(plan.summary().remove, 2);
    let plan_time = fastest(5, || drop(std::hint::black_box(Plan::between(Some(live), &desired))));
    println!("plan of {moved} changes among {} routes, fastest of 5: {plan_time:?}", routes.len());
    println!("{:?}", plan.effect());
    let start = Instant::now();
    assert_eq!(plan.effect(), &effect_at_boundaries(live, &desired));
    assert_eq!(Plan::between(None, &desired).effect(), &effect_from_nothing(&desired));
    println!("the same by asking at every boundary: {:?}", start.elapsed());
    let first = fastest(3, || drop(std::hint::black_box(Plan::between(None, &desired))));
    println!("first plan, everything added, fastest of 3: {first:?}");
}

/// What an address meets: nothing, the node itself (as an address that no next hop has), or a next hop.
fn fate(view: &View, address: IpAddr) -> Fate {
    match view.lookup(address) {
        Match::None => None,
        Match::Local => Some(Ipv4Addr::UNSPECIFIED.into()),
        Match::Route(route) => {
            let RouteAction::Forward { group } = route.action else { panic!("{address}: every route forwards") };
            view.members(group).next().map(|member| member.next_hop.via)
        }
    }
}

/// The effect by brute force: both tables are asked at every boundary of a prefix, where alone something can change.
fn effect_at_boundaries(before: &View, after: &View) -> Effect {
    effect_by(&[before, after], |address| (fate(before, address), fate(after, address)))
}

fn effect_from_nothing(after: &View) -> Effect {
    effect_by(&[after], |address| (None, fate(after, address)))
}

type Fate = Option<IpAddr>;

fn effect_by(views: &[&View], fates: impl Fn(IpAddr) -> (Fate, Fate)) -> Effect {
    let count = |ipv4: bool, unit_bits: u32| {
        let end = if ipv4 { u128::from(u32::MAX) } else { u128::MAX };
        let mut boundaries = vec![0u128];
        for view in views {
            let routes: Vec<_> = if ipv4 { view.routes_v4().collect() } else { view.routes_v6().collect() };
            let locals = view.locals().filter(|a| a.is_ipv4() == ipv4).map(|a| Prefix::containing(a, u8::MAX));
            for prefix in routes.iter().map(|route| route.prefix).chain(locals) {
                let (first, host_bits) = match prefix {
                    Prefix::V4(a, length) => (u128::from(a.to_bits()), 32 - u32::from(length)),
                    Prefix::V6(a, length) => (a.to_bits(), 128 - u32::from(length)),
                };
                boundaries.push(first);
                boundaries.extend((first | u128::MAX.checked_shr(128 - host_bits).unwrap_or(0)).checked_add(1));
            }
        }
        boundaries.retain(|boundary| *boundary <= end);
        boundaries.sort_unstable();
        boundaries.dedup();
        let mut count = Count::default();
        // The first unit of each number that is not counted yet.
        let mut next = [0u128; 4];
        for (i, &first) in boundaries.iter().enumerate() {
            let last = boundaries.get(i + 1).map_or(end, |next| next - 1) >> unit_bits;
            let address = if ipv4 {
                Ipv4Addr::from_bits(u32::try_from(first).unwrap()).into()
            } else {
                Ipv6Addr::from_bits(first).into()
            };
            let way = match fates(address) {
                (was, becomes) if was == becomes => continue,
                (None, _) => 1,
                (_, None) => 2,
                _ => 3,
            };
            for number in [0, way] {
                let from = (first >> unit_bits).max(next[number]);
                if last >= from {
                    let sum: [&mut u128; 4] =
                        [&mut count.changed, &mut count.gained, &mut count.lost, &mut count.rerouted];
                    *sum[number] += last - from + 1;
                    next[number] = last.saturating_add(1);
                }
            }
        }
        count
    };
    Effect { ipv4_addresses: count(true, 0), ipv6_prefixes: count(false, 64), ipv6_addresses: count(false, 0) }
}

/// JSON line in, JSON line out, as `trace --stdin` does; routes and lookup tables cross-check every packet.
fn traces_by_the_line(view: &View) {
    const TRACES: u32 = 200_000;
    let mut state = 7;
    let lines: Vec<String> = (0..TRACES)
        .map(|i| {
            let dst: IpAddr = if i % 4 == 0 {
                Ipv6Addr::from_bits(0x2 << 124 | u128::from(random(&mut state)) << 60).into()
            } else {
                Ipv4Addr::from_bits(u32::try_from(random(&mut state) >> 32).unwrap()).into()
            };
            let src = if dst.is_ipv4() { "198.18.0.1" } else { "2001:db8::1" };
            format!(r#"{{"src": "{src}", "dst": "{dst}", "protocol": "udp", "sport": {}, "dport": 53}}"#, i % 65_536)
        })
        .collect();
    let start = Instant::now();
    let mut out = Vec::new();
    for line in &lines {
        let packet = PacketDescription::from_json(line).unwrap();
        serde_json::to_writer(&mut out, &trace(view, packet, &Offline).unwrap()).unwrap();
        out.push(b'\n');
    }
    let elapsed = start.elapsed();
    println!("{TRACES} traces with JSON in and out: {elapsed:?}, {} bytes written", out.len());
    let forwarded = out.split(|&b| b == b'\n').filter(|line| line.starts_with(br#"{"verdict":"forward""#)).count();
    assert!(forwarded > TRACES as usize / 4, "{forwarded}");
    assert!(cfg!(debug_assertions) || elapsed < Duration::from_secs(5));
}

#[test]
fn the_real_table_is_small_and_every_witness_agrees() {
    let mut routes = table("internet-v4.txt.xz");
    let v4_count = routes.len();
    routes.extend(table("internet-v6.txt.xz"));
    assert!(v4_count > 500_000 && routes.len() - v4_count > 150_000);
    let policy = policy(&routes);
    let node = NodeFacts { local_addresses: vec![[192, 0, 2, 250].into()], ..NodeFacts::default() };
    let ids = LiveIds::default();
    let image = compile(&policy, &node, &ids).unwrap();
    let view = image.view().unwrap();

    let v4_bytes = view.lookup_bytes(Section::V4_FIB);
    let v6_bytes = view.lookup_bytes(Section::V6_FIB);
    let (v4, v6) = (view.routes_v4().len(), view.routes_v6().len());
    let per = |bytes: usize, count: usize| format!("{}.{:02}", bytes / count, bytes * 100 / count % 100);
    println!("IPv4: {v4} routes, {v4_bytes} bytes of lookup tables, {} a route", per(v4_bytes, v4));
    println!("IPv6: {v6} routes, {v6_bytes} bytes of lookup tables, {} a route", per(v6_bytes, v6));
    let class = capacity_class(image.bytes().len()).unwrap();
    println!("image: {} bytes in capacity class {class}", image.bytes().len());
    println!("compile, fastest of 7: {:?}", fastest(7, || drop(std::hint::black_box(compile(&policy, &node, &ids)))));
    println!("View::new, fastest of 7: {:?}", fastest(7, || drop(std::hint::black_box(View::new(image.bytes())))));
    println!("verify_digest, fastest of 7: {:?}", fastest(7, || view.verify_digest().unwrap()));
    plan_of_the_whole_table(&routes, &view);
    traces_by_the_line(&view);
    assert!(v4_bytes <= 8 * v4, "more than 8 bytes for an IPv4 route");

    let mut v4_oracle = PrefixMap::<ipnet::Ipv4Net, Route>::new();
    let mut v6_oracle = PrefixMap::<ipnet::Ipv6Net, Route>::new();
    for route in &policy.route_policies[0].routes {
        match route.prefix {
            Prefix::V4(a, length) => drop(v4_oracle.insert(ipnet::Ipv4Net::new(a, length).unwrap(), *route)),
            Prefix::V6(a, length) => drop(v6_oracle.insert(ipnet::Ipv6Net::new(a, length).unwrap(), *route)),
        }
    }
    let mut state = 20_260_617;
    let mut matched: HashMap<bool, u32> = HashMap::new();
    let mut find_time = Duration::ZERO;
    for i in 0..2 * LOOKUPS {
        // Half anywhere, half inside a random prefix of the table.
        let bits = u128::from(random(&mut state)) << 64 | u128::from(random(&mut state));
        let within = &routes[usize::try_from(random(&mut state)).unwrap() % routes.len()].0;
        let address: IpAddr = match (i < LOOKUPS, within) {
            (true, Prefix::V4(a, length)) if i % 2 == 0 => {
                let host = u32::try_from(bits >> 96).unwrap() & u32::MAX.checked_shr((*length).into()).unwrap_or(0);
                Ipv4Addr::from_bits(a.to_bits() | host).into()
            }
            (true, _) => Ipv4Addr::from_bits(u32::try_from(bits >> 96).unwrap()).into(),
            (false, Prefix::V6(a, length)) => {
                Ipv6Addr::from_bits(a.to_bits() | bits & u128::MAX.checked_shr((*length).into()).unwrap_or(0)).into()
            }
            (false, _) => Ipv6Addr::from_bits(0x2 << 124 | bits >> 4).into(),
        };
        let (expected, target) = match address {
            IpAddr::V4(a) => (
                v4_oracle.get_lpm(&ipnet::Ipv4Net::new(a, 32).unwrap()).map(|(_, route)| route),
                lookup::v4(view.bytes(), a.to_bits()),
            ),
            IpAddr::V6(a) => (
                v6_oracle.get_lpm(&ipnet::Ipv6Net::new(a, 128).unwrap()).map(|(_, route)| route),
                lookup::v6(
                    view.bytes(),
                    u64::try_from(a.to_bits() >> 64).unwrap(),
                    u64::try_from(a.to_bits() & u128::from(u64::MAX)).unwrap(),
                ),
            ),
        };
        let start = Instant::now();
        let found = view.find(address);
        find_time += start.elapsed();
        assert_eq!(found.map(|route| route.prefix), expected.map(|route| route.prefix), "{address}");
        let target = view.target(target.unwrap()).unwrap();
        assert!(target.agrees_with(&found.map_or(Match::None, Match::Route)), "{address}: {found:?} {target:?}");
        if let (Some(found), Some(expected)) = (found, expected) {
            assert_eq!(found.line, expected.origin.line);
            let RouteAction::Forward { group } = found.action else { panic!("{address}: every route forwards") };
            let Action::Forward(written) = expected.action else { panic!("{address}: every route forwards") };
            let members: Vec<_> = view.members(group).map(|m| m.next_hop.name.to_owned()).collect();
            assert_eq!(members, [format!("hop-{written}")]);
            *matched.entry(address.is_ipv4()).or_default() += 1;
        }
    }
    println!("addresses with a route: {matched:?} of {LOOKUPS} each");
    println!("View::find: {:?} an address", find_time / (2 * LOOKUPS));
    assert!(matched.values().all(|&count| count > LOOKUPS / 8) && matched.len() == 2);
}
