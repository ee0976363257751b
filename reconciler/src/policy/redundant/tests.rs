//! Redundant routes against taking each one away.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::compile::{LiveIds, NodeFacts, View, compile};
use crate::plan::{Effect, Plan};
use crate::policy::{Action, RoutePolicy, Selector};

type Table = BTreeMap<(u32, u8), (usize, bool)>;

/// Two policies of drops and passes; the line of a route is its number.
fn policy_of(table: &Table, without: Option<u32>) -> Policy {
    let mut policies: Vec<RoutePolicy> = ["a", "b"]
        .map(|name| RoutePolicy {
            probes: vec![],
            name: name.to_owned(),
            owner: None,
            nodes: Selector::default(),
            origin: Origin { file: 0, line: 1 },
            next_hops: Vec::new(),
            groups: Vec::new(),
            routes: Vec::new(),
        })
        .into();
    let mut routes: BTreeMap<Prefix, (usize, bool)> = BTreeMap::new();
    for (&(low, more), &route) in table {
        routes.insert(Prefix::containing(Ipv4Addr::from_bits(0x0a00_0000 + low).into(), 26 + more), route);
    }
    for ((prefix, (policy, drop)), line) in routes.into_iter().zip(1..) {
        if Some(line) != without {
            let action = if drop { Action::Drop } else { Action::Pass };
            policies[policy].routes.push(Route { prefix, action, origin: Origin { file: 0, line } });
        }
    }
    Policy {
        revision: "dir@sha256:x".to_owned(),
        files: vec!["a.yaml".to_owned()],
        route_policies: policies,
        filter_policies: vec![],
        service_policies: Vec::new(),
    }
}

fn effect(before: &Policy, after: &Policy) -> Effect {
    let image = |policy| compile(policy, &NodeFacts::default(), &LiveIds::default()).unwrap();
    let (before, after) = (image(before), image(after));
    *Plan::between(Some(&before.view().unwrap()), &after.view().unwrap()).effect()
}

/// The policy of every address, which an effect does not count.
fn owners(policy: &Policy) -> Vec<Option<String>> {
    let image = compile(policy, &NodeFacts::default(), &LiveIds::default()).unwrap();
    let view: View<'_> = image.view().unwrap();
    let at = |low: u32| view.find(Ipv4Addr::from_bits(0x0a00_0000 + low).into());
    (0..64).map(|low| at(low).map(|route| route.policy.to_owned())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// A route is said to be redundant or shadowed only when nothing is another thing without it; and every route without
    /// which nothing changes is said, or lies between others that are.
    #[test]
    fn what_is_said_changes_nothing_and_what_changes_nothing_is_said(
        table in prop::collection::btree_map((0u32..64, 0u8..7), (0usize..2, any::<bool>()), 1..14),
    ) {
        let whole = policy_of(&table, None);
        let said: Vec<u32> = redundant(&whole).iter().map(|d| d.span.unwrap().start.line).collect();
        let lines: Vec<u32> =
            whole.route_policies.iter().flat_map(|policy| policy.routes.iter().map(|route| route.origin.line)).collect();
        for line in lines {
            let without = policy_of(&table, Some(line));
            let same = effect(&whole, &without) == Effect::default() && owners(&whole) == owners(&without);
            if said.contains(&line) {
                prop_assert!(same, "line {line} of {:?} is needed", whole.route_policies);
            } else if same {
                // Both halves of a prefix may do what the whole does: they are said, the whole is not.
                let of = |line: u32| {
                    let all = whole.route_policies.iter().flat_map(|policy| &policy.routes);
                    all.clone().find(|route| route.origin.line == line).unwrap().prefix
                };
                let inside = said.iter().any(|other| of(line).contains(of(*other).address()));
                prop_assert!(inside, "line {line} of {:?} is not said", whole.route_policies);
            }
        }
    }
}

#[test]
fn policies_for_other_nodes_cover_nothing() {
    let node = |site: &str| Selector::new(BTreeMap::from([("site".to_owned(), site.to_owned())]));
    let mut policy = policy_of(&[((0, 0), (0, true)), ((0, 2), (0, true))].into(), None);
    assert_eq!(redundant(&policy).len(), 1);
    // Between the two lies a route for some nodes only: on those it is what the inner one differs from.
    let between = policy_of(&[((0, 1), (1, false))].into(), None);
    policy.route_policies[1].routes = between.route_policies[1].routes.clone();
    assert_eq!(redundant(&policy).len(), 0);
    policy.route_policies[1].nodes = node("ams");
    assert_eq!(redundant(&policy).len(), 0);
    policy.route_policies[0].nodes = node("fra");
    assert_eq!(redundant(&policy).len(), 1);
}
