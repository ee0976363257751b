//! Plans against what every single address meets.
#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests; halves of addresses on purpose")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::compile::view::{Match, RouteAction};
use crate::compile::{Image, LiveIds, NodeFacts, compile};
use crate::policy::{self, NextHop, NextHopGroup, Origin, Policy, Route, RoutePolicy};

/// Routes as (prefix, next hops with weights | "drop" | "pass"); one policy, three next hops.
fn image(routes: &[(&str, &str)], line: u32, locals: &[&str]) -> Image {
    let node =
        NodeFacts { local_addresses: locals.iter().map(|a| a.parse().unwrap()).collect(), ..NodeFacts::default() };
    compile(&policy_of(routes, line), &node, &LiveIds::default()).unwrap()
}

fn policy_of(routes: &[(&str, &str)], line: u32) -> Policy {
    let mut groups: Vec<NextHopGroup> = Vec::new();
    let mut list = Vec::new();
    for (i, (prefix, action)) in (0..).zip(routes) {
        let action = match *action {
            "drop" => policy::Action::Drop,
            "pass" => policy::Action::Pass,
            members => {
                let (members, on_all_down) = match members.strip_suffix(" or drop") {
                    Some(members) => (members, OnAllDown::Drop),
                    None => (members, OnAllDown::Pass),
                };
                let mut members: Vec<(u32, u16)> = members
                    .split(' ')
                    .map(|m| {
                        let (hop, weight) = m.split_once('*').unwrap_or((m, "1"));
                        (
                            ["a", "b", "c"].iter().position(|h| *h == hop).unwrap().try_into().unwrap(),
                            weight.parse().unwrap(),
                        )
                    })
                    .collect();
                members.sort_unstable();
                let group = NextHopGroup { members, on_all_down };
                let at = groups.iter().position(|g| *g == group).unwrap_or_else(|| {
                    groups.push(group);
                    groups.len() - 1
                });
                policy::Action::Forward(at.try_into().unwrap())
            }
        };
        list.push(Route { prefix: prefix.parse().unwrap(), action, origin: Origin { file: 0, line: line + i } });
    }
    list.sort_by_key(|route| route.prefix);
    let hop = |i: u8| NextHop {
        name: format!("edge-{}", char::from(b'a' + i)),
        via: Ipv4Addr::new(192, 0, 2, 1 + i).into(),
        port: "uplink".to_owned(),
        origin: Origin { file: 0, line: 5 + u32::from(i) },
    };
    Policy {
        revision: format!("dir@sha256:{line}"),
        files: vec!["branch.yaml".to_owned()],
        filter_policies: vec![],
        service_policies: Vec::new(),
        route_policies: vec![RoutePolicy {
            probes: vec![],
            name: "branch".to_owned(),
            owner: None,
            nodes: policy::Selector::default(),
            origin: Origin { file: 0, line: 1 },
            next_hops: (0..3).map(hop).collect(),
            groups,
            routes: list,
        }],
    }
}

fn plan(before: &[(&str, &str)], after: &[(&str, &str)]) -> Plan {
    let (mut before, after) = (image(before, 10, &[]), image(after, 10, &[]));
    before.stamp(4, 3, 0);
    Plan::between(Some(&before.view().unwrap()), &after.view().unwrap())
}

#[test]
fn a_plan_reads_as_a_review() {
    let plan = plan(
        &[("10.0.0.0/8", "a"), ("10.1.0.0/16", "a"), ("10.2.0.0/16", "drop"), ("2001:db8::/48", "pass")],
        &[("10.0.0.0/8", "a"), ("10.1.0.0/16", "a*3 b*1"), ("10.2.3.0/24", "drop"), ("2001:db8::/48", "drop")],
    );
    let expected = "\
~ route 10.1.0.0/16: edge-a via 192.0.2.1 port uplink → edge-a ×3 via 192.0.2.1 port uplink, edge-b ×1 via 192.0.2.2 port uplink  [branch.yaml:11]
- route 10.2.0.0/16: drop  [branch.yaml:12]
+ route 10.2.3.0/24: drop  [branch.yaml:12]
~ route 2001:db8::/48: pass → drop  [branch.yaml:13]

Effect: 130,816 IPv4 addresses change: 130,816 go elsewhere
        65,536 IPv6 /64s change: 65,536 become dropped
Plan: 1 to add, 2 to change, 1 to remove.
";
    assert_eq!(plan.to_string(), expected);
    assert_eq!((plan.parent(), plan.summary().unchanged), (4, 6));
    let mut json = Vec::new();
    plan.write_json(&mut json).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["format_version"], 1);
    assert_eq!(json["from"]["generation"], 4);
    assert_eq!(json["to"]["generation"], serde_json::Value::Null);
    assert_eq!(json["to"]["digest"], plan.to().digest.to_string());
    assert_eq!(json["changes"][1]["action"], "remove");
    assert_eq!(json["changes"][1]["key"], "10.2.0.0/16");
    assert_eq!(json["changes"][1]["before"], "drop");
    assert_eq!(json["changes"][1]["after"], serde_json::Value::Null);
    assert_eq!(json["changes"][1]["line"], 12);
    assert_eq!(json["effect"]["ipv4_addresses_rerouted"], 130_816);
    assert_eq!(json["summary"]["change"], 2);
}

#[test]
fn equal_rules_are_no_changes_wherever_they_are_written() {
    let routes = [("10.0.0.0/8", "a*2 b*1"), ("10.1.0.0/16", "b")];
    let mut before = image(&routes, 10, &[]);
    before.stamp(9, 8, 0);
    let same = Plan::between(Some(&before.view().unwrap()), &image(&routes, 10, &[]).view().unwrap());
    assert!(same.is_empty());
    assert_eq!(same.to_string(), "No changes. Generation 9 already carries these rules.\n");
    let moved = Plan::between(Some(&before.view().unwrap()), &image(&routes, 20, &[]).view().unwrap());
    assert!(moved.is_empty() && moved.effect() == &Effect::default());
    assert!(moved.to_string().contains("only their files or lines differ"));
}

#[test]
fn what_is_done_when_all_are_down_is_a_change() {
    let plan = plan(
        &[("10.0.0.0/8", "a*2 b*1"), ("10.1.0.0/16", "b or drop")],
        &[("10.0.0.0/8", "a*2 b*1 or drop"), ("10.1.0.0/16", "b")],
    );
    let expected = "\
~ route 10.0.0.0/8: edge-a ×2 via 192.0.2.1 port uplink, edge-b ×1 via 192.0.2.2 port uplink, on-all-down pass → drop  [branch.yaml:10]
~ route 10.1.0.0/16: edge-b via 192.0.2.2 port uplink, on-all-down drop → pass  [branch.yaml:11]

Effect: no IPv4 address changes
        no IPv6 /64 changes
Plan: 0 to add, 2 to change, 0 to remove.
";
    assert_eq!(plan.to_string(), expected);
    let change = &plan.changes()[1];
    assert_eq!(change.before.as_deref(), Some("edge-b via 192.0.2.2 port uplink, on-all-down drop"));
    assert_eq!(change.after.as_deref(), Some("edge-b via 192.0.2.2 port uplink, on-all-down pass"));
}

#[test]
fn the_first_plan_adds_everything_and_folds() {
    let prefixes: Vec<String> = (0..300u32).map(|i| format!("10.{}.{}.0/24", i / 256, i % 256)).collect();
    let routes: Vec<(&str, &str)> = prefixes.iter().map(|p| (p.as_str(), "a")).collect();
    let first = image(&routes, 10, &["10.0.0.1"]);
    let plan = Plan::between(None, &first.view().unwrap());
    let text = plan.to_string();
    assert_eq!(plan.parent(), 0);
    assert_eq!(plan.summary(), Summary { add: 306, ..Summary::default() });
    assert_eq!(text.lines().count(), 200 + 1 + 4);
    assert!(text.contains("… and 106 more changes; --format json lists all"), "{text}");
    assert!(text.contains("Effect: 76,800 IPv4 addresses change: 76,800 gain a route\n"), "{text}");
    assert_eq!(plan.effect().ipv4_addresses.gained, 300 * 256);
}

#[test]
fn objects_beside_routes_are_listed_first() {
    let before = policy_of(&[("10.0.0.0/8", "a"), ("10.1.0.0/16", "b"), ("10.2.0.0/16", "drop")], 10);
    let mut after = before.clone();
    after.route_policies[0].name = "core".to_owned();
    after.route_policies[0].next_hops[0].port = "dc".to_owned();
    let before = compile(&before, &NodeFacts::default(), &LiveIds::default()).unwrap();
    let node = NodeFacts { local_addresses: vec![[10, 0, 0, 1].into()], ..NodeFacts::default() };
    let live = LiveIds::from_views([&before.view().unwrap()]);
    let after = compile(&after, &node, &live).unwrap();
    let plan = Plan::between(Some(&before.view().unwrap()), &after.view().unwrap());
    let expected = "\
- policy branch  [branch.yaml:1]
+ policy core  [branch.yaml:1]
+ port dc
- next hop branch/edge-a: 192.0.2.1 port uplink  [branch.yaml:5]
- next hop branch/edge-b: 192.0.2.2 port uplink  [branch.yaml:6]
- next hop branch/edge-c: 192.0.2.3 port uplink  [branch.yaml:7]
+ next hop core/edge-a: 192.0.2.1 port dc  [branch.yaml:5]
+ next hop core/edge-b: 192.0.2.2 port uplink  [branch.yaml:6]
+ next hop core/edge-c: 192.0.2.3 port uplink  [branch.yaml:7]
+ local address 10.0.0.1
~ route 10.0.0.0/8: edge-a via 192.0.2.1 port uplink → edge-a via 192.0.2.1 port dc  [branch.yaml:10]
~ route 10.1.0.0/16: edge-b via 192.0.2.2 port uplink (policy branch) → edge-b via 192.0.2.2 port uplink (policy core)  [branch.yaml:11]
~ route 10.2.0.0/16: drop (policy branch) → drop (policy core)  [branch.yaml:12]

Effect: 16,646,144 IPv4 addresses change: 16,646,144 go elsewhere
        no IPv6 /64 changes
Plan: 6 to add, 3 to change, 4 to remove.
";
    assert_eq!(plan.to_string(), expected);
}

#[test]
fn a_whole_family_is_counted_exactly() {
    let everything = [("0.0.0.0/0", "a"), ("::/0", "b")];
    let effect = *plan(&[], &everything).effect();
    assert_eq!(effect.ipv4_addresses, Count { changed: 1 << 32, gained: 1 << 32, ..Count::default() });
    assert_eq!(effect.ipv6_prefixes, Count { changed: 1 << 64, gained: 1 << 64, ..Count::default() });
    assert_eq!(plan(&everything, &[]).effect().ipv6_prefixes.lost, 1 << 64);
}

/// The effect by brute force: the routes are asked at every boundary of a prefix of either side, and between two of them
/// every address meets the same.
fn at_all_boundaries(before: &View, after: &View) -> Effect {
    let family = |ipv4: bool| {
        let address = |bits: u128| -> IpAddr {
            if ipv4 {
                Ipv4Addr::from_bits(u32::try_from(bits).unwrap()).into()
            } else {
                Ipv6Addr::from_bits(bits).into()
            }
        };
        let end = if ipv4 { u128::from(u32::MAX) } else { u128::MAX };
        let mut boundaries = std::collections::BTreeSet::from([0]);
        for view in [before, after] {
            let routes: Vec<RouteView> = if ipv4 { view.routes_v4().collect() } else { view.routes_v6().collect() };
            let locals = view.locals().filter(|a| a.is_ipv4() == ipv4).map(|a| Prefix::containing(a, u8::MAX));
            for prefix in routes.iter().map(|route| route.prefix).chain(locals) {
                let (first, host_bits) = match prefix {
                    Prefix::V4(a, length) => (u128::from(a.to_bits()), 32 - u32::from(length)),
                    Prefix::V6(a, length) => (a.to_bits(), 128 - u32::from(length)),
                };
                boundaries.insert(first);
                let last = first | u128::MAX.checked_shr(128 - host_bits).unwrap_or(0);
                boundaries.extend(last.checked_add(1).filter(|next| *next <= end));
            }
        }
        let boundaries: Vec<u128> = boundaries.into_iter().collect();
        // (first, last, way) of every run that changes.
        let mut runs = Vec::new();
        for (i, &first) in boundaries.iter().enumerate() {
            let last = boundaries.get(i + 1).map_or(end, |next| next - 1);
            let (was, becomes) = (fate(before, address(first)), fate(after, address(first)));
            if was != becomes {
                runs.push((first, last, way(&was, &becomes)));
            }
        }
        runs
    };
    let count = |runs: &[(u128, u128, &'static str)], unit_bits: u32| {
        let units = |of: Option<&str>| {
            let mut next = 0u128;
            let mut sum = 0u128;
            for (first, last, way) in runs {
                if of.is_none_or(|of| of == *way) {
                    let (first, last) = (first >> unit_bits, last >> unit_bits);
                    let from = first.max(next);
                    if last >= from {
                        sum = sum.wrapping_add(last - from).wrapping_add(1);
                    }
                    next = last.saturating_add(1);
                }
            }
            sum
        };
        Count {
            changed: units(None),
            gained: units(Some("gained")),
            lost: units(Some("lost")),
            dropped: units(Some("dropped")),
            rerouted: units(Some("rerouted")),
        }
    };
    let (v4, v6) = (family(true), family(false));
    Effect { ipv4_addresses: count(&v4, 0), ipv6_prefixes: count(&v6, 64), ipv6_addresses: count(&v6, 0) }
}

#[test]
fn a_whole_family_is_zero_addresses_modulo_its_size_and_said_in_full() {
    let everything = plan(&[], &[("::/0", "drop")]);
    assert_eq!(everything.effect().ipv6_addresses, Count::default());
    let mut json = Vec::new();
    everything.write_json(&mut json).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["effect"]["ipv6_addresses_changed"], "340282366920938463463374607431768211456");
    assert_eq!(json["effect"]["ipv6_addresses_dropped"], "340282366920938463463374607431768211456");
    assert_eq!(json["effect"]["ipv6_addresses_gained"], "0");
    assert_eq!(Plan::from_json(&json).as_ref(), Some(&everything));
    let part = plan(&[], &[("2001:db8::/63", "drop"), ("2001:db8:0:4::1/128", "a")]);
    assert_eq!(part.effect().ipv6_prefixes.changed, 3);
    assert_eq!(part.effect().ipv6_addresses.changed, (1 << 65) + 1);
    let text = "not all of them whole: 36,893,488,147,419,103,233 IPv6 addresses";
    assert!(part.to_string().contains(text), "{part}");
}

/// What a packet to `address` meets, independent of the sweep and of names.
fn fate(view: &View, address: IpAddr) -> String {
    match view.lookup(address) {
        Match::None => "none".to_owned(),
        Match::Local => "local".to_owned(),
        Match::Route(RouteView { action: RouteAction::Drop, .. }) => "drop".to_owned(),
        Match::Route(RouteView { action: RouteAction::Pass, .. }) => "pass".to_owned(),
        Match::Route(RouteView { action: RouteAction::Forward { group }, .. }) => {
            let members: Vec<(IpAddr, u32)> = view.members(group).map(|m| (m.next_hop.via, m.weight)).collect();
            if let [(via, _)] = members[..] { format!("{via}") } else { format!("{members:?}") }
        }
    }
}

fn way(before: &str, after: &str) -> &'static str {
    match (before, after) {
        (_, "drop") => "dropped",
        (_, "none") => "lost",
        ("none", _) => "gained",
        _ => "rerouted",
    }
}

type Table = BTreeMap<(u32, u8), usize>;
const ACTIONS: [&str; 5] = ["a", "b", "a*3 b*1", "drop", "pass"];

/// First address (of 1,024) and length of prefixes, for both families to use.
fn tables() -> impl Strategy<Value = (Table, Table)> {
    let table = || prop::collection::btree_map((0u32..1024, 0u8..11), 0..ACTIONS.len(), 0..25);
    (table(), table(), any::<bool>()).prop_map(|(mut a, b, alike)| {
        if alike {
            a.extend(b.clone());
        }
        (a, b)
    })
}

fn v4(table: &Table) -> BTreeMap<Prefix, &'static str> {
    table
        .iter()
        .map(|(&(low, more), &action)| {
            (Prefix::containing(Ipv4Addr::from_bits(0x0a00_0000 + low).into(), 22 + more), ACTIONS[action])
        })
        .collect()
}

/// 1,024 steps of a quarter of a /64.
fn v6(table: &Table) -> BTreeMap<Prefix, &'static str> {
    table
        .iter()
        .map(|(&(low, more), &action)| {
            let bits = (0x2001_0db8 << 96) + (u128::from(low) << 62);
            (Prefix::containing(Ipv6Addr::from_bits(bits).into(), 56 + more), ACTIONS[action])
        })
        .collect()
}

fn of(routes: &BTreeMap<Prefix, &'static str>, locals: &[&str]) -> Image {
    let texts: Vec<(String, &str)> = routes.iter().map(|(prefix, action)| (prefix.to_string(), *action)).collect();
    let routes: Vec<(&str, &str)> = texts.iter().map(|(prefix, action)| (prefix.as_str(), *action)).collect();
    image(&routes, 1, locals)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn the_effect_is_what_a_scan_of_all_addresses_counts((before, after) in tables(), local in any::<bool>()) {
        let locals: &[&str] = if local { &["10.0.0.77", "10.0.1.0"] } else { &[] };
        let (a, b) = (of(&v4(&before), &[]), of(&v4(&after), locals));
        let (a, b) = (a.view().unwrap(), b.view().unwrap());
        let plan = Plan::between(Some(&a), &b);
        let mut ways: BTreeMap<&str, u128> = BTreeMap::new();
        for low in 0..1024 {
            let address = Ipv4Addr::from_bits(0x0a00_0000 + low).into();
            let (was, becomes) = (fate(&a, address), fate(&b, address));
            if was != becomes {
                *ways.entry(way(&was, &becomes)).or_default() += 1;
            }
        }
        let count = plan.effect().ipv4_addresses;
        let of = |way| ways.get(way).copied().unwrap_or(0);
        let scanned = Count {
            changed: ways.values().sum(), gained: of("gained"), lost: of("lost"), dropped: of("dropped"), rerouted: of("rerouted"),
        };
        prop_assert_eq!(count, scanned);
        prop_assert!(count.changed == 0 || !plan.is_empty());
    }

    #[test]
    fn a_half_changed_64_counts_once((before, after) in tables()) {
        let (a, b) = (of(&v6(&before), &[]), of(&v6(&after), &[]));
        let (a, b) = (a.view().unwrap(), b.view().unwrap());
        let mut ways: BTreeMap<&str, std::collections::BTreeSet<u32>> = BTreeMap::new();
        for quarter in 0..1024u32 {
            let address = Ipv6Addr::from_bits((0x2001_0db8 << 96) + (u128::from(quarter) << 62)).into();
            let (was, becomes) = (fate(&a, address), fate(&b, address));
            if was != becomes {
                ways.entry(way(&was, &becomes)).or_default().insert(quarter / 4);
                ways.entry("changed").or_default().insert(quarter / 4);
            }
        }
        let of = |way| ways.get(way).map_or(0, |units| units.len() as u128);
        let scanned = Count {
            changed: of("changed"), gained: of("gained"), lost: of("lost"), dropped: of("dropped"), rerouted: of("rerouted"),
        };
        prop_assert_eq!(Plan::between(Some(&a), &b).effect().ipv6_prefixes, scanned);
    }

    /// Prefixes of any length anywhere, so that runs end where families do.
    #[test]
    fn the_effect_is_what_is_found_at_every_boundary(
        before in prop::collection::btree_map((any::<u128>(), 0u8..129), 0..ACTIONS.len(), 0..30),
        after in prop::collection::btree_map((any::<u128>(), 0u8..129), 0..ACTIONS.len(), 0..30),
        dense in any::<bool>(),
        local in any::<bool>(),
    ) {
        let table = |table: &BTreeMap<(u128, u8), usize>| -> BTreeMap<Prefix, &'static str> {
            table.iter().map(|(&(bits, length), &action)| {
                // Dense: both ends of the family, where prefixes meet and nest.
                let bits = if dense { if bits % 2 == 0 { bits >> 120 } else { !(bits >> 120) } } else { bits };
                let prefix = if length % 2 == 0 {
                    let folded = if dense { bits as u32 } else { (bits >> 96) as u32 };
                    Prefix::containing(Ipv4Addr::from_bits(folded).into(), length / 4)
                } else {
                    Prefix::containing(Ipv6Addr::from_bits(bits).into(), length)
                };
                (prefix, ACTIONS[action])
            }).collect()
        };
        let locals: &[&str] = if local { &["0.0.0.3", "255.255.255.255", "::7", "2001:db8::1"] } else { &[] };
        let (a, b) = (of(&table(&before), &[]), of(&table(&after), locals));
        let (a, b) = (a.view().unwrap(), b.view().unwrap());
        let plan = Plan::between(Some(&a), &b);
        prop_assert_eq!(plan.effect(), &at_all_boundaries(&a, &b));
        let mut json = Vec::new();
        plan.write_json(&mut json).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        prop_assert_eq!(Plan::from_json(&json), Some(plan));
    }

    #[test]
    fn changes_turn_the_old_routes_into_the_new((before, after) in tables()) {
        let (old, new) = (v4(&before), v4(&after));
        let (a, b) = (of(&old, &[]), of(&new, &[]));
        let plan = Plan::between(Some(&a.view().unwrap()), &b.view().unwrap());
        let mut applied: BTreeMap<String, String> = texts(&a);
        for change in plan.changes().iter().filter(|change| change.kind == Kind::Route) {
            let key = change.key.to_string();
            prop_assert_eq!(applied.get(&key).cloned(), change.before.as_deref().map(str::to_owned));
            match &change.after {
                Some(after) => drop(applied.insert(key, after.to_string())),
                None => drop(applied.remove(&key)),
            }
        }
        prop_assert_eq!(applied, texts(&b));
        let summary = plan.summary();
        prop_assert_eq!(summary.add + summary.change + summary.remove, plan.changes().len());
        prop_assert!(Plan::between(Some(&b.view().unwrap()), &b.view().unwrap()).is_empty());
    }
}

/// Every route in words, as a first plan would add it.
fn texts(image: &Image) -> BTreeMap<String, String> {
    Plan::between(None, &image.view().unwrap())
        .changes()
        .iter()
        .filter(|change| change.kind == Kind::Route)
        .map(|change| (change.key.to_string(), change.after.as_deref().unwrap().to_owned()))
        .collect()
}
