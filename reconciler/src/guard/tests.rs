//! Guards on plans between small tables.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;

use super::*;
use crate::compile::{Image, LiveIds, NodeFacts, compile};
use crate::policy;
use crate::source::{Snapshot, SourceFile};

/// The image of one policy with these routes, each `PREFIX ACTION`.
fn image(routes: &[String]) -> Image {
    let mut text =
        String::from("apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {name: offices}\nspec:\n  routes:\n");
    for route in routes {
        let (prefix, action) = route.split_once(' ').unwrap();
        let _ = writeln!(text, "    - {{prefix: \"{prefix}\", action: {action}}}");
    }
    if routes.is_empty() {
        text.truncate(text.len() - 1);
        text.push_str(" []\n");
    }
    let files = [("offices.yaml".to_owned(), SourceFile::Content(text.into_bytes().into()))].into();
    let validated = policy::validate(&Snapshot::of_directory(files));
    let policy = validated.policy.unwrap_or_else(|| panic!("{:?}", validated.diagnostics));
    compile(&policy, &NodeFacts::default(), &LiveIds::default()).unwrap()
}

fn numbered(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|i| format!("10.{}.{}.0/24 drop", i / 256, i % 256)).collect()
}

/// The guards that refuse, as `name: message`.
fn refused(before: Option<&[String]>, after: &[String], guards: &Guards, management: &[&str]) -> Vec<String> {
    let (before, after) = (before.map(image), image(after));
    let before = before.as_ref().map(|image| image.view().unwrap());
    let after = after.view().unwrap();
    let plan = Plan::between(before.as_ref(), &after);
    let management: Vec<Prefix> = management.iter().map(|p| p.parse().unwrap()).collect();
    check(&plan, before.as_ref(), &after, &management, guards, &BTreeSet::new())
        .iter()
        .map(|refusal| format!("{}: {}", refusal.guard.name(), refusal.message))
        .collect()
}

fn words(routes: &[&str]) -> Vec<String> {
    routes.iter().map(|route| (*route).to_owned()).collect()
}

#[test]
fn many_removals_are_refused_and_few_are_not() {
    let guards = Guards::default();
    let check = |live: u32, left: u32, guards: &Guards, expected: &[&str]| {
        assert_eq!(refused(Some(&numbered(0..live)), &numbered(0..left), guards, &[]), expected, "{live} -> {left}");
    };
    check(100, 91, &guards, &[]); // 9 % and below the floor
    check(90, 81, &guards, &[]); // 10 %, below the floor
    check(20, 11, &guards, &[]); // 45 %, below the floor
    check(100, 90, &guards, &[]); // exactly 10 %
    check(99, 89, &guards, &["removals: 10 of 99 routes would be removed, more than 10 %"]);
    check(1000, 899, &guards, &["removals: 101 of 1000 routes would be removed, more than 10 %"]);
    let three = Guards { removed_routes: Some(3), ..Guards::default() };
    check(1000, 997, &three, &[]);
    check(
        1000,
        996,
        &three,
        &["removals: 4 of 1000 routes would be removed, more than the 3 that guards.removedRoutes allows"],
    );
    let none = Guards { removed_percent: 100, ..Guards::default() };
    check(1000, 1, &none, &[]);
}

#[test]
fn an_emptied_set_is_refused_however_small() {
    let none = Guards { removed_percent: 100, ..Guards::default() };
    assert_eq!(
        refused(Some(&words(&["10.0.0.0/8 drop"])), &[], &none, &[]),
        ["empty: no route would be left; 1 are live"]
    );
    assert_eq!(refused(Some(&[]), &[], &none, &[]), [""; 0]);
    assert_eq!(refused(None, &[], &none, &[]), [""; 0]);
}

#[test]
fn a_default_route_is_refused_in_every_way_and_not_at_first() {
    let guards = Guards::default();
    let check = |before: &[&str], after: &[&str], expected: &[&str]| {
        assert_eq!(refused(Some(&words(before)), &words(after), &guards, &[]), expected);
    };
    let other = "10.0.0.0/8 drop";
    check(&[other], &[other, "0.0.0.0/0 pass"], &["default-route: the default route 0.0.0.0/0 would be added: pass"]);
    check(&[other, "::/0 drop"], &[other], &["default-route: the default route ::/0 would be removed, which is drop"]);
    check(
        &["0.0.0.0/0 pass"],
        &["0.0.0.0/0 drop"],
        &["default-route: the default route 0.0.0.0/0 would change: pass → drop"],
    );
    check(&["0.0.0.0/0 pass"], &["0.0.0.0/0 pass", other], &[]);
    assert_eq!(refused(None, &words(&["0.0.0.0/0 pass"]), &guards, &[]), [""; 0]);
}

#[test]
fn a_prefix_over_management_addresses_is_refused_when_it_is_new() {
    let guards = Guards { management: vec!["192.0.2.0/24".parse().unwrap()], ..Guards::default() };
    let managed = ["198.51.100.7/32", "2001:db8::7/128"];
    let check = |before: Option<&[&str]>, after: &[&str], expected: &[&str]| {
        let before = before.map(words);
        assert_eq!(refused(before.as_deref(), &words(after), &guards, &managed), expected, "{after:?}");
    };
    let over = |route: &str, managed: &str| {
        format!("management: the route {route} takes packets to {managed}, which this node is managed through")
    };
    check(None, &["198.51.100.0/24 drop"], &[&over("198.51.100.0/24", "198.51.100.7")]);
    check(None, &["198.51.100.7/32 pass"], &[&over("198.51.100.7/32", "198.51.100.7")]);
    check(None, &["2001:db8::/32 drop"], &[&over("2001:db8::/32", "2001:db8::7")]);
    check(None, &["192.0.2.128/25 drop"], &[&over("192.0.2.128/25", "192.0.2.0/24")]);
    check(None, &["192.0.0.0/16 drop"], &[&over("192.0.0.0/16", "192.0.2.0/24")]);
    check(None, &["198.51.101.0/24 drop", "0.0.0.0/0 pass"], &[]);
    check(Some(&["198.51.100.0/24 drop"]), &["198.51.100.0/24 drop", "10.0.0.0/8 drop"], &[]);
    check(Some(&["198.51.100.0/24 drop"]), &["198.51.100.0/24 pass"], &[&over("198.51.100.0/24", "198.51.100.7")]);
    check(Some(&["198.51.100.0/24 drop", "10.0.0.0/8 drop"]), &["10.0.0.0/8 drop"], &[]);
}

#[test]
fn a_refusal_names_the_first_routes_and_its_override() {
    let (before, after) = (image(&numbered(0..12)), image(&[]));
    let (before, after) = (before.view().unwrap(), after.view().unwrap());
    let plan = Plan::between(Some(&before), &after);
    let refusals = check(&plan, Some(&before), &after, &[], &Guards::default(), &[Guard::Empty].into());
    let expected = "\
removals: 12 of 12 routes would be removed, more than 10 %
    10.0.0.0/24  [offices.yaml:6]
    10.0.1.0/24  [offices.yaml:7]
    10.0.2.0/24  [offices.yaml:8]
    10.0.3.0/24  [offices.yaml:9]
    10.0.4.0/24  [offices.yaml:10]
    … and 7 more
  if this is meant: `wayleave apply --allow removals`, the trailer `Wayleave-Allow: removals` in the commit, or \
`guards: {allow: [removals]}` in the node's configuration";
    assert_eq!(refusals.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
    let all = Guards { allow: Guard::ALL.into(), ..Guards::default() };
    assert_eq!(check(&plan, Some(&before), &after, &[], &all, &BTreeSet::new()), []);
}

#[test]
fn only_trailers_of_a_commit_message_allow() {
    let check = |message: &str, expected: &[Guard]| {
        assert_eq!(allowed_by_message(message), expected.iter().copied().collect(), "{message:?}");
    };
    check("offices: close\n\nWayleave-Allow: removals\n", &[Guard::Removals]);
    check("x\n\nSigned-off-by: a\nwayleave-allow: removals, default-route\n", &[Guard::Removals, Guard::DefaultRoute]);
    check("x\n\nWayleave-Allow: everything\n", &[]);
    check("x\n\nWayleave-Allow: removals\n\nSigned-off-by: a\n", &[]);
    check("Wayleave-Allow removals", &[]);
}
