//! Whatever a source holds, validation ends with a policy or with diagnostics; and the command line's exit codes.
#![allow(clippy::disallowed_methods, reason = "a test reads its cases and runs the binary")]
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::process::Command;

use proptest::prelude::*;
use wayleave::policy::{Severity, Validated, validate};
use wayleave::source::{Snapshot, SourceFile};

const POLICY: &str = "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {name: offices, owner: net-team}\nspec:\n  \
    nextHops:\n    - {name: edge-a, via: 192.0.2.1, port: uplink}\n    - {name: edge-b, via: \"2001:db8::1\", port: dc}\n  \
    routes:\n    - {prefix: 10.20.0.0/16, nextHops: [{name: edge-a, weight: 3}]}\n    \
    - prefixesFrom: list.txt\n      nextHops: [{name: edge-b}]\n";
const LIST: &str = "# six\n2001:db8:1::/48\n10.0.0.0/8,edge-a\r\n";

fn check(policy: &[u8], list: &[u8]) -> Validated {
    let file = |bytes: &[u8]| SourceFile::Content(bytes.into());
    let files = BTreeMap::from([("a.yaml".to_owned(), file(policy)), ("list.txt".to_owned(), file(list))]);
    let validated = validate(&Snapshot::of_directory(files));
    let errors = validated.diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
    assert_eq!(validated.policy.is_some(), errors == 0, "{validated:?}");
    validated
}

fn mutate(text: &str, changes: &[(prop::sample::Index, u8, u8)]) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for (at, kind, byte) in changes {
        let at = at.index(bytes.len().max(1)).min(bytes.len());
        match kind % 4 {
            0 if at < bytes.len() => bytes[at] = *byte,
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => bytes.truncate(at),
            _ => bytes.insert(at, *byte),
        }
    }
    bytes
}

#[test]
fn the_unchanged_policy_is_valid() {
    let policy = check(POLICY.as_bytes(), LIST.as_bytes()).policy.unwrap();
    assert_eq!(policy.files, ["a.yaml", "list.txt"]);
    let routes: Vec<String> = policy.route_policies[0]
        .routes
        .iter()
        .map(|r| format!("{} {}:{}", r.prefix, r.origin.file, r.origin.line))
        .collect();
    assert_eq!(routes, ["10.0.0.0/8 1:3", "10.20.0.0/16 0:9", "2001:db8:1::/48 1:2"]);
}

proptest! {
    #[test]
    fn a_policy_with_random_changes_is_valid_or_has_errors(
        policy in prop::collection::vec(any::<(prop::sample::Index, u8, u8)>(), 0..6),
        list in prop::collection::vec(any::<(prop::sample::Index, u8, u8)>(), 0..6),
    ) {
        check(&mutate(POLICY, &policy), &mutate(LIST, &list));
    }

    #[test]
    fn random_bytes_are_valid_or_have_errors(
        policy in prop::collection::vec(any::<u8>(), 0..300),
        list in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        check(&policy, &list);
        check(POLICY.as_bytes(), &list);
    }
}

#[test]
fn exit_codes_are_those_of_the_contract() {
    let exit = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_wayleave")).args(arguments).output().unwrap();
        output.status.code().unwrap()
    };
    assert_eq!(exit(&["--help"]), 0);
    assert_eq!(exit(&["explain"]), 0);
    assert_eq!(exit(&["explain", "WL0302"]), 0);
    assert_eq!(exit(&["schema", "config"]), 0);
    assert_eq!(exit(&["completions", "bash"]), 0);
    assert_eq!(exit(&["explain", "WL9999"]), 64);
    assert_eq!(exit(&["validate", "--no-such-flag"]), 64);
    assert_eq!(exit(&[]), 64);
    assert_eq!(exit(&["validate", "/no/such/source"]), 1);
}
