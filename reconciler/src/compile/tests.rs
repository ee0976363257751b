//! Properties: the policy scanned naively, the route tables and the lookup tables agree on every address.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ::fib::layout::{AT_LAYOUT_VERSION, HEADER_BYTES, LAYOUT_VERSION, Section};
use ::fib::lookup;
use proptest::prelude::*;

use super::view::{Match, RouteAction, View};
use super::*;
use crate::policy::{
    Action, FilterAction, FilterPolicy, FilterRule, NextHop, NextHopGroup, OnAllDown, Origin, Protocol, RateLimit,
    Route, RoutePolicy, RuleAction, ServicePort,
};

/// Routes as (prefix, policy, action); actions beyond the two plain ones name groups.
type Written = (Prefix, usize, u32);

const POLICIES: [&str; 3] = ["branch", "core", "edge"];
const GROUPS: [&[(u32, u16)]; 5] =
    [&[(0, 1)], &[(1, 7)], &[(0, 3), (1, 1)], &[(0, 1), (1, 1), (2, 2)], &[(0, 1), (1, 1), (2, 2)]];

/// The last two groups differ in this alone.
const ON_ALL_DOWN: [OnAllDown; 5] =
    [OnAllDown::Pass, OnAllDown::Drop, OnAllDown::Pass, OnAllDown::Pass, OnAllDown::Drop];

/// A policy set of the routes given; `rotate` changes every order that a policy may be written in.
fn policy(routes: &[Written], rotate: usize) -> Policy {
    let files = vec!["a.yaml".to_owned(), "b.yaml".to_owned(), "c.yaml".to_owned()];
    let route_policies = POLICIES.iter().enumerate().map(|(place, name)| {
        let file = u32::try_from(place).unwrap();
        let hop = |i: u32| NextHop {
            name: format!("hop-{i}"),
            via: Ipv4Addr::new(192, 0, 2, u8::try_from(place * 10).unwrap() + u8::try_from(i).unwrap()).into(),
            port: if i == 2 { "dc".to_owned() } else { "uplink".to_owned() },
            origin: Origin { file, line: 5 + i },
        };
        let mut hops: Vec<u32> = (0..3).collect();
        hops.rotate_left(rotate % 3);
        let written = |i: u32| u32::try_from(hops.iter().position(|&h| h == i).unwrap()).unwrap();
        let mut order: Vec<usize> = (0..GROUPS.len()).collect();
        order.rotate_left(rotate % GROUPS.len());
        let groups = order.iter().map(|&g| {
            let mut members: Vec<(u32, u16)> = GROUPS[g].iter().map(|&(hop, weight)| (written(hop), weight)).collect();
            members.sort_unstable();
            NextHopGroup { members, on_all_down: ON_ALL_DOWN[g] }
        });
        let mut own: Vec<Route> = routes
            .iter()
            .filter(|(_, policy, _)| *policy == place)
            .map(|&(prefix, _, action)| Route {
                prefix,
                action: match action {
                    0 => Action::Drop,
                    1 => Action::Pass,
                    g => Action::Forward(
                        u32::try_from(order.iter().position(|&o| o == g as usize - 2).unwrap()).unwrap(),
                    ),
                },
                origin: Origin { file, line: 100 + u32::from(prefix.length()) },
            })
            .collect();
        own.sort_by_key(|route| route.prefix);
        RoutePolicy {
            probes: vec![],
            name: (*name).to_owned(),
            owner: None,
            nodes: crate::policy::Selector::default(),
            origin: Origin { file, line: 1 },
            next_hops: hops.iter().map(|&i| hop(i)).collect(),
            groups: groups.collect(),
            routes: own,
        }
    });
    Policy {
        revision: "dir@sha256:test".to_owned(),
        files,
        route_policies: route_policies.collect(),
        filter_policies: vec![],
        service_policies: vec![],
    }
}

/// Two rules with prefixes, ports and a limit, and a default.
fn filter_policies() -> Vec<FilterPolicy> {
    let rule = |name: &str, from: Option<&[&str]>, ports, action| FilterRule {
        name: name.to_owned(),
        origin: Origin { file: 1, line: 7 },
        from: from.map(|all| all.iter().map(|prefix| prefix.parse().unwrap()).collect()),
        to: None,
        lists: vec![2],
        protocol: Some([6, 6]),
        ports,
        source_ports: None,
        in_ports: None,
        tcp_flags: None,
        fragments: false,
        action,
        meaning: format!("what {name} says"),
    };
    let limit = RateLimit { rate: 10, burst: 20, is_bytes: false, source_bits: Some([24, 64]) };
    vec![FilterPolicy {
        name: "front".to_owned(),
        owner: None,
        nodes: crate::policy::Selector::default(),
        origin: Origin { file: 1, line: 3 },
        priority: 1000,
        default: Some(FilterAction::Deny),
        rules: vec![
            rule("bogons", Some(&["10.0.0.0/9", "10.1.0.0/16", "2001:db8::/33"]), None, RuleAction::Deny),
            rule("web", None, Some(vec![(80, 80), (443, 444)]), RuleAction::Limit(limit)),
        ],
    }]
}

/// Lengths with the ends and the node boundaries more often than the rest.
fn length(max: u8) -> impl Strategy<Value = u8> {
    prop_oneof![3 => 0..=max, 1 => Just(0), 2 => Just(max), 1 => Just(6), 1 => Just(12), 1 => Just(18), 1 => Just(24)]
}

/// Addresses in few places, so that prefixes nest and neighbour.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0u32..8, any::<u32>(), 0u32..33).prop_map(|(top, low, shift)| {
            let low = low.checked_shr(shift).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits((0x0a00_0000 + (top << 16)) ^ (low & 0x0003_ffff)))
        }),
        (0u128..4, any::<u128>(), 0u32..129).prop_map(|(top, low, shift)| {
            let low = low.checked_shr(shift).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(((0x2001_0db8 << 96) + (top << 90)) ^ low))
        }),
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
        any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
    ]
}

fn written() -> impl Strategy<Value = Vec<Written>> {
    let one = (address(), length(128), 0..POLICIES.len(), 0u32..7)
        .prop_map(|(address, length, policy, action)| (Prefix::containing(address, length), policy, action));
    prop::collection::vec(one, 0..60).prop_map(|mut routes| {
        routes.sort_by_key(|(prefix, ..)| *prefix);
        routes.dedup_by_key(|(prefix, ..)| *prefix);
        routes
    })
}

/// First, last and neighbouring addresses of every prefix, and some anywhere.
fn interesting(routes: &[Written], more: &[IpAddr]) -> Vec<IpAddr> {
    let mut addresses = more.to_vec();
    for (prefix, ..) in routes {
        match *prefix {
            Prefix::V4(first, length) => {
                let last = first.to_bits() | u32::MAX.checked_shr(length.into()).unwrap_or(0);
                for bits in [first.to_bits(), first.to_bits().wrapping_sub(1), last, last.wrapping_add(1)] {
                    addresses.push(Ipv4Addr::from_bits(bits).into());
                }
            }
            Prefix::V6(first, length) => {
                let last = first.to_bits() | u128::MAX.checked_shr(length.into()).unwrap_or(0);
                for bits in [first.to_bits(), first.to_bits().wrapping_sub(1), last, last.wrapping_add(1)] {
                    addresses.push(Ipv6Addr::from_bits(bits).into());
                }
            }
        }
    }
    addresses
}

fn looked_up(view: &View, address: IpAddr) -> u16 {
    let target = match address {
        IpAddr::V4(a) => lookup::v4(view.bytes(), a.to_bits()),
        IpAddr::V6(a) => {
            let (high, low) = ((a.to_bits() >> 64) as u64, u64::try_from(a.to_bits() & u128::from(u64::MAX)).unwrap());
            lookup::v6(view.bytes(), high, low)
        }
    };
    target.expect("the lookup stays inside the image")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn three_witnesses_agree(
        routes in written(),
        more in prop::collection::vec(address(), 40),
        local_addresses in prop::collection::vec(address(), 0..4),
    ) {
        let node = NodeFacts { local_addresses, ..NodeFacts::default() };
        let image = compile(&policy(&routes, 0), &node, &LiveIds::default()).unwrap();
        let view = image.view().unwrap();
        view.verify_digest().unwrap();
        prop_assert_eq!(view.routes_v4().len() + view.routes_v6().len(), routes.len());
        let mut addresses = interesting(&routes, &more);
        addresses.extend(&node.local_addresses);
        for address in addresses {
            let naive = routes.iter().filter(|(p, ..)| p.contains(address)).max_by_key(|(p, ..)| p.length());
            let found = view.find(address);
            prop_assert_eq!(found.map(|route| route.prefix), naive.map(|(p, ..)| *p), "{}", address);
            if let (Some(found), Some(&(prefix, place, action))) = (found, naive) {
                prop_assert_eq!(found.policy, POLICIES[place]);
                prop_assert_eq!(found.line, 100 + u32::from(prefix.length()));
                match found.action {
                    RouteAction::Drop => prop_assert_eq!(action, 0),
                    RouteAction::Pass => prop_assert_eq!(action, 1),
                    RouteAction::Forward { group } => {
                        let members: Vec<(String, u32)> = view
                            .members(group)
                            .map(|m| (m.next_hop.name.to_owned(), m.weight))
                            .collect();
                        let expected: Vec<(String, u32)> = GROUPS[action as usize - 2]
                            .iter()
                            .map(|&(hop, weight)| (format!("hop-{hop}"), u32::from(weight)))
                            .collect();
                        prop_assert_eq!(members, expected);
                        prop_assert_eq!(view.on_all_down(group), ON_ALL_DOWN[action as usize - 2]);
                    }
                }
            }
            let exact = naive.is_some_and(|(p, ..)| p.length() == if address.is_ipv4() { 32 } else { 128 });
            let met = view.lookup(address);
            if node.local_addresses.contains(&address) && !exact {
                prop_assert_eq!(met, Match::Local);
            } else {
                prop_assert_eq!(met, found.map_or(Match::None, Match::Route));
            }
            let target = view.target(looked_up(&view, address)).unwrap();
            prop_assert!(target.agrees_with(&met), "{}: tables {:?}, lookup {:?}", address, met, target);
        }
    }

    #[test]
    fn bytes_do_not_depend_on_the_order_written(routes in written(), rotate in 1usize..12) {
        let node = NodeFacts { local_addresses: vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()], ..NodeFacts::default() };
        let back = NodeFacts { local_addresses: vec![[10, 0, 0, 2].into(), [10, 0, 0, 1].into(), [10, 0, 0, 2].into()], ..NodeFacts::default() };
        let image = compile(&policy(&routes, 0), &node, &LiveIds::default()).unwrap();
        let other = compile(&policy(&routes, rotate), &back, &LiveIds::default()).unwrap();
        prop_assert!(image.bytes() == other.bytes());
    }

    #[test]
    fn an_image_moves_to_other_addresses_of_its_node_as_its_policies_would(
        routes in written(),
        rotate in 0usize..12,
        filters in any::<bool>(),
        services in any::<bool>(),
        before in prop::collection::vec(address(), 0..4),
        after in prop::collection::vec(address(), 0..4),
    ) {
        let mut policy = policy(&routes, rotate);
        if filters {
            policy.filter_policies = filter_policies();
        }
        if services {
            let ports = vec![ServicePort { protocol: Protocol::Tcp, first: 80, last: 81, target: None }];
            policy.service_policies = vec![service::tests::service(1, 10, ports, &[1, 3])];
        }
        let (before, after) = (NodeFacts { local_addresses: before, ..NodeFacts::default() }, NodeFacts { local_addresses: after, ..NodeFacts::default() });
        let image = compile(&policy, &before, &LiveIds::default()).unwrap();
        let view = image.view().unwrap();
        prop_assert!(readdress(&view, &before).unwrap().bytes() == image.bytes());
        let expected = compile(&policy, &after, &LiveIds::from_views([&view])).unwrap();
        prop_assert!(readdress(&view, &after).unwrap().bytes() == expected.bytes());
    }

    #[test]
    fn damaged_bytes_never_panic(
        routes in written(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..8),
        header in any::<bool>(),
        cut in any::<prop::sample::Index>(),
        addresses in prop::collection::vec(address(), 8),
    ) {
        let image = compile(&policy(&routes, 0), &NodeFacts::default(), &LiveIds::default()).unwrap();
        let mut bytes = image.into_bytes();
        let range = if header { HEADER_BYTES as usize } else { bytes.len() };
        for (at, flip) in &flips {
            bytes[at.index(range)] ^= flip;
        }
        prop_assert!(View::new(&bytes[..cut.index(bytes.len())]).is_err());
        if let Ok(view) = View::new(&bytes) {
            let _ = (view.verify_digest(), view.revision(), LiveIds::from_views([&view]));
            for route in view.routes_v4().chain(view.routes_v6()) {
                if let RouteAction::Forward { group } = route.action {
                    view.members(group).for_each(drop);
                }
            }
            let _ = (view.locals().count(), view.policies().count());
            for address in addresses {
                let _ = (view.lookup(address), lookup::v4(view.bytes(), 0x0a00_0001));
            }
        }
    }
}

#[test]
fn names_keep_their_ids_and_new_ones_take_the_lowest_free() {
    let routes = [("10.0.0.0/8".parse().unwrap(), 0, 2)];
    let mut changed = policy(&routes, 0);
    let first = compile(&changed, &NodeFacts::default(), &LiveIds::default()).unwrap();
    let first = first.view().unwrap();
    let ids =
        |view: &View| view.next_hops().map(|hop| (format!("{}/{}", hop.policy, hop.name), hop.id)).collect::<Vec<_>>();
    assert_eq!(ids(&first)[..4].iter().map(|(_, id)| *id).collect::<Vec<_>>(), [1, 2, 3, 4]);

    // branch/hop-0 (id 1) goes, branch/hop-9 comes, and edge becomes the first policy by another name.
    changed.route_policies[0].next_hops[0].name = "hop-9".to_owned();
    changed.route_policies[2].name = "zone".to_owned();
    let second = compile(&changed, &NodeFacts::default(), &LiveIds::from_views([&first])).unwrap();
    let second = second.view().unwrap();
    let expected = [
        ("branch/hop-1", 2),
        ("branch/hop-2", 3),
        ("branch/hop-9", 10),
        ("core/hop-0", 4),
        ("core/hop-1", 5),
        ("core/hop-2", 6),
        ("zone/hop-0", 11),
        ("zone/hop-1", 12),
        ("zone/hop-2", 13),
    ];
    assert_eq!(ids(&second), expected.map(|(name, id)| (name.to_owned(), id)));
    assert_eq!(second.policies().map(|p| p.id).collect::<Vec<_>>(), [1, 2, 4]);
    assert_eq!(
        second.ports().map(|p| (p.name, p.id)).collect::<Vec<_>>(),
        first.ports().map(|p| (p.name, p.id)).collect::<Vec<_>>()
    );

    // Once no retained generation knows branch/hop-0, its id is free again; the same policy again changes nothing.
    let third = compile(&changed, &NodeFacts::default(), &LiveIds::from_views([&second])).unwrap();
    assert_eq!(ids(&third.view().unwrap()), ids(&second));
    changed.route_policies[0].next_hops[1].name = "hop-8".to_owned();
    let fourth = compile(&changed, &NodeFacts::default(), &LiveIds::from_views([&second])).unwrap();
    assert!(ids(&fourth.view().unwrap()).contains(&("branch/hop-8".to_owned(), 1)));

    // A next hop that moves is another object: its neighbour is written before the publish, beside the old one.
    changed.route_policies[0].next_hops[2].via = "192.0.2.200".parse().unwrap();
    let moved = compile(&changed, &NodeFacts::default(), &LiveIds::from_views([&second])).unwrap();
    let moved = moved.view().unwrap();
    let id_of = |view: &View| view.next_hops().find(|h| (h.policy, h.name) == ("branch", "hop-2")).unwrap().id;
    assert!(!second.next_hops().any(|hop| hop.id == id_of(&moved)));
    // And moves back to its old id while a retained generation knows it.
    changed.route_policies[0].next_hops[2].via = second.next_hops().find(|h| h.name == "hop-2").unwrap().via;
    let back = compile(&changed, &NodeFacts::default(), &LiveIds::from_views([&moved, &second])).unwrap();
    assert_eq!(id_of(&back.view().unwrap()), id_of(&second));
}

#[test]
fn limits_name_the_table_and_the_sizes() {
    let mut many = policy(&[], 0);
    let hop = many.route_policies[0].next_hops[0].clone();
    let named = |i: usize| NextHop { name: format!("n{i}"), port: format!("p{i}"), ..hop.clone() };
    many.route_policies[0].next_hops = (0..300).map(named).collect();
    many.route_policies[0].groups.clear();
    let error = compile(&many, &NodeFacts::default(), &LiveIds::default()).unwrap_err();
    assert_eq!(error.to_string(), "302 port ids needed, the limit is 255");
    let named = |i: usize| NextHop { name: format!("n{i}"), ..hop.clone() };
    many.route_policies[0].next_hops = (0..65_535).map(named).collect();
    let error = compile(&many, &NodeFacts::default(), &LiveIds::default()).unwrap_err();
    assert_eq!(error.to_string(), "65541 next-hop ids needed, the limit is 65535");
    assert_eq!(capacity_class(1).unwrap(), 1 << 20);
    assert_eq!(capacity_class((1 << 20) + 1).unwrap(), 1 << 21);
    assert_eq!(capacity_class(1 << 29).unwrap(), 1 << 29);
    let error = capacity_class((1 << 29) + 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the image would need 536870913 bytes, the largest capacity class is 536870912 bytes"
    );
}

#[test]
fn a_stamp_leaves_the_rules_and_their_digest_alone() {
    let routes: Vec<Written> =
        (0..10u8).map(|i| (Prefix::containing([10, i, 0, 0].into(), 16), 0, 2 + u32::from(i % 4))).collect();
    let mut image = compile(&policy(&routes, 0), &NodeFacts::default(), &LiveIds::default()).unwrap();
    // Mostly two slot tables for the groups of each of three policies.
    assert!(image.bytes().len() < 56 * 1024, "ten routes are {} bytes", image.bytes().len());
    let digest = image.digest();
    image.stamp(7, 6, 1_700_000_000_123);
    let view = image.view().unwrap();
    view.verify_digest().unwrap();
    assert_eq!((view.generation(), view.parent(), view.created_unix_ms()), (7, 6, 1_700_000_000_123));
    assert_eq!((view.digest(), view.revision()), (digest, "dir@sha256:test"));
    assert_eq!(view.count(Section::V4Routes), 10);

    let mut other = image.bytes().to_vec();
    other[AT_LAYOUT_VERSION as usize] ^= 1;
    let found = LAYOUT_VERSION ^ 1;
    assert_eq!(View::new(&other).unwrap_err(), ImageError::LayoutVersion { found, supported: LAYOUT_VERSION });
}

/// `SplitMix64`: large tables that are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        ::fib::hash::mix(self.0)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Compiles prefixes that forward to one of `hops` next hops each, and compares every lookup of `addresses` with the
/// longest prefix that an exact search by length finds.
fn lookups_agree(prefixes: &[Prefix], hops: u32, addresses: impl Iterator<Item = IpAddr>) -> Image {
    let origin = Origin { file: 0, line: 1 };
    let mut routes: Vec<Route> = prefixes
        .iter()
        .enumerate()
        .map(|(i, &prefix)| {
            let action = match u32::try_from(i).unwrap().wrapping_mul(2_654_435_761) % (hops + 2) {
                0 => Action::Drop,
                1 => Action::Pass,
                hop => Action::Forward(hop - 2),
            };
            Route { prefix, action, origin }
        })
        .collect();
    routes.sort_by_key(|route| route.prefix);
    routes.dedup_by_key(|route| route.prefix);
    let next_hops = (0..hops).map(|i| NextHop {
        name: format!("hop-{i}"),
        via: Ipv4Addr::from_bits(0x0a00_0000 + i).into(),
        port: "uplink".to_owned(),
        origin,
    });
    let policy = Policy {
        revision: "dir@sha256:test".to_owned(),
        files: vec!["a.yaml".to_owned()],
        filter_policies: vec![],
        service_policies: Vec::new(),
        route_policies: vec![RoutePolicy {
            probes: vec![],
            name: "all".to_owned(),
            owner: None,
            nodes: crate::policy::Selector::default(),
            origin,
            next_hops: next_hops.collect(),
            groups: (0..hops).map(|i| NextHopGroup { members: vec![(i, 1)], on_all_down: OnAllDown::Pass }).collect(),
            routes: routes.clone(),
        }],
    };
    let image = compile(&policy, &NodeFacts::default(), &LiveIds::default()).unwrap();
    let view = image.view().unwrap();
    let targets: std::collections::HashMap<Prefix, u16> =
        view.routes_v4().chain(view.routes_v6()).map(|route| (route.prefix, route.target)).collect();
    assert_eq!(targets.len(), routes.len());
    for address in addresses {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let longest = (0..=bits).rev().find_map(|length| targets.get(&Prefix::containing(address, length)));
        assert_eq!(looked_up(&view, address), longest.copied().unwrap_or(0), "{address}");
    }
    image
}

/// Ends of prefixes and their neighbours, and addresses inside them.
fn around(prefixes: &[Prefix], random: &mut Random) -> Vec<IpAddr> {
    let written: Vec<Written> = prefixes.iter().map(|&prefix| (prefix, 0, 0)).collect();
    let mut addresses = interesting(&written, &[]);
    for &prefix in prefixes {
        addresses.push(match prefix {
            Prefix::V4(first, length) => {
                let host = u32::MAX.checked_shr(length.into()).unwrap_or(0);
                Ipv4Addr::from_bits(first.to_bits() | u32::try_from(random.next() >> 32).unwrap() & host).into()
            }
            Prefix::V6(first, length) => {
                let host = u128::MAX.checked_shr(length.into()).unwrap_or(0);
                let bits = u128::from(random.next()) << 64 | u128::from(random.next());
                Ipv6Addr::from_bits(first.to_bits() | bits & host).into()
            }
        });
    }
    addresses
}

#[test]
fn large_tables_with_more_targets_than_a_palette_has_colours_are_looked_up_right() {
    let mut random = Random(7);
    for (v4, v6, hops) in [(3_000, 700, 40), (70_000, 9_000, 200), (70_000, 9_000, 20_000)] {
        let mut prefixes: Vec<Prefix> = Vec::new();
        for i in 0..v4 + v6 {
            // Some near each other, some anywhere; now and then inside an earlier one.
            let near = random.below(64);
            prefixes.push(if i < v4 {
                let length = [8, 12, 16, 18, 19, 20, 22, 23, 24, 24, 24, 24, 25, 27, 30, 31, 32]
                    [usize::try_from(random.below(17)).unwrap()];
                let bits = u32::try_from(random.next() >> 32).unwrap();
                let bits = if near < 60 { 0x0a00_0000 | bits & 0x03ff_ffff } else { bits };
                Prefix::containing(Ipv4Addr::from_bits(bits).into(), length)
            } else {
                let lengths = [16, 19, 20, 29, 32, 32, 36, 40, 44, 48, 48, 48, 49, 56, 63, 64, 65, 96, 127, 128];
                let length = lengths[usize::try_from(random.below(20)).unwrap()];
                let bits = u128::from(random.next()) << 64 | u128::from(random.next());
                // Few values of the bits that most lengths end in, so that prefixes nest.
                let bits = match near {
                    0..30 => 0x2001_0db8 << 96 | bits & (0xff << 80 | 0x3 << 64 | 0xffff),
                    30..60 => 0x2a00 << 112 | bits & (0x0fff_f0f0 << 72 | 0xff << 64),
                    _ => bits,
                };
                Prefix::containing(Ipv6Addr::from_bits(bits).into(), length)
            });
        }
        prefixes.sort_unstable();
        prefixes.dedup();
        let addresses = around(&prefixes, &mut random);
        let image = lookups_agree(&prefixes, hops, addresses.into_iter());
        let view = image.view().unwrap();
        assert_eq!(view.count(Section::V4Palettes) > 1, hops > 256);
        assert!(view.count(Section::V4Nodes) > 0 && view.count(Section::V6Nodes) > 0);
    }
}

#[test]
fn tables_made_to_be_hard_stay_small_and_are_looked_up_right() {
    let mut random = Random(8);
    let v6 = |bits: u128, length: u8| Prefix::containing(Ipv6Addr::from_bits(bits).into(), length);
    let v4 = |bits: u32, length: u8| Prefix::containing(Ipv4Addr::from_bits(bits).into(), length);
    let spread = |i: u32| u128::from(i.wrapping_mul(2_654_435_761));
    let tables: [(&str, Vec<Prefix>, usize); 7] = [
        ("all lengths of one address", (0..=128).map(|length| v6(u128::MAX / 3, length)).collect(), 64),
        ("all lengths of the last address", (0..=128).map(|length| v6(u128::MAX, length)).collect(), 64),
        ("all lengths of IPv4", (0..=32).map(|length| v4(0xaaaa_aaaa, length)).collect(), 64),
        ("/128s in one /64", (0..20_000).map(|i| v6(0x2001_0db8 << 96 | spread(i) << 20, 128)).collect(), 256),
        ("/48s in different /16s", (0..20_000).map(|i| v6(spread(i) << 96, 48)).collect(), 320),
        ("/64s in pairs", (0..20_000).map(|i| v6((spread(i) << 96) | u128::from(i & 1) << 64, 64)).collect(), 480),
        ("/32s of IPv4", (0..70_000u32).map(|i| v4(i.wrapping_mul(2_654_435_761), 32)).collect(), 160),
    ];
    for (name, mut prefixes, bytes_max) in tables {
        prefixes.sort_unstable();
        prefixes.dedup();
        let addresses = around(&prefixes, &mut random);
        let image = lookups_agree(&prefixes, 40, addresses.into_iter());
        let view = image.view().unwrap();
        let bytes = view.lookup_bytes(Section::V4_FIB) + view.lookup_bytes(Section::V6_FIB);
        // What the smallest tables of both families take does not count.
        let each = bytes.saturating_sub(8_192) / prefixes.len();
        println!("{name}: {each} bytes for each of {} prefixes", prefixes.len());
        assert!(each <= bytes_max, "{name}: {each} bytes for each of {} prefixes", prefixes.len());
    }
}

#[test]
fn a_view_refuses_indices_that_lead_out_of_the_lookup_tables() {
    let mut random = Random(9);
    let mut prefixes: Vec<Prefix> = (0..600u32)
        .flat_map(|i| {
            let bits = u128::from(random.next()) << 64 | u128::from(random.next());
            let deep = if i % 8 == 0 { 120 } else { 48 };
            [
                Prefix::containing(Ipv6Addr::from_bits(0x2001_0db8 << 96 | bits >> 32).into(), deep),
                Prefix::containing(Ipv4Addr::from_bits(0x0a00_0000 | i << 9).into(), if i % 8 == 0 { 30 } else { 18 }),
            ]
        })
        .collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    let image = lookups_agree(&prefixes, 40, std::iter::empty());
    let view = image.view().unwrap();
    for section in Section::V4_FIB.iter().chain(Section::V6_FIB) {
        assert!(view.count(*section) > 0, "{section:?} is empty");
        // Colours name any of a palette's 256 targets, and no byte is too large.
        if *section == Section::V4Blocks {
            continue;
        }
        let mut bytes = image.bytes().to_vec();
        // Every field of the first row at its largest; a bucket's keys may be anything.
        let at = usize::try_from(u32::from_le_bytes(*bytes[section.at() as usize..].first_chunk().unwrap())).unwrap();
        bytes[at..at + section.entry_bytes() as usize].fill(0xff);
        assert_eq!(View::new(&bytes).unwrap_err(), ImageError::Row { section: *section, row: 0 });
    }
}
