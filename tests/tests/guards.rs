//! What an apply refuses: guards, stale plans, failing policy tests. Each leaves the live generation and its packets alone.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use wayleave_tests::{BpfObjects, Daemon, Outcome, TestNode, Topology, require_root_and_bpf};

const BOUND: Duration = Duration::from_secs(20);
/// Guards as they are when the configuration says nothing of them.
const GUARDED: &str = "guards: {}";

fn lab() -> Topology {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    lab.fix_neighbours().unwrap();
    lab
}

/// One policy of so many routes, which go to upstream a or b.
fn rules(upstream: char, routes: u32) -> String {
    let number = u32::from(upstream) - u32::from('a') + 1;
    let routes: String = (0..routes)
        .map(|i| format!("    - {{prefix: 100.64.{i}.0/24, nextHops: [{{name: up-{upstream}}}]}}\n"))
        .collect();
    format!(
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: probe}}\nspec:\n  nextHops:\n    - {{name: \
         up-{upstream}, via: 10.77.{number}.2, port: uplink-{upstream}}}\n  routes:\n{routes}"
    )
}

/// One case, which is on line 6.
fn expects(destination: &str, expect: &str) -> String {
    format!(
        "apiVersion: wayleave/v1\nkind: PolicyTest\nmetadata: {{name: reachability}}\nspec:\n  cases:\n    - {{packet: \
         {{src: 198.18.0.1, dst: {destination}, inPort: lan}}, expect: {{{expect}}}}}\n"
    )
}

fn refused(outcome: &Outcome, code: i32, said: &[&str]) {
    assert_eq!(outcome.code, Some(code), "{outcome:?}");
    for words in said {
        assert!(outcome.stderr.contains(words), "{words:?} is not in\n{}", outcome.stderr);
    }
}

/// Generation and digest of what is live.
fn live(node: &TestNode) -> (Value, Value) {
    let status = node.status().unwrap();
    (status["generation"].clone(), status["digest"].clone())
}

fn wait_for_state(node: &TestNode, axis: &str, state: &str) -> Value {
    let deadline = Instant::now() + BOUND;
    loop {
        let status = node.status().unwrap();
        if status[axis]["state"] == state {
            return status;
        }
        let log = fs::read_to_string(node.scratch().join("log")).unwrap_or_default();
        assert!(Instant::now() < deadline, "not {state}: {status:#}\n{log}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_removal_of_many_routes_waits_for_a_word() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.set_spec(GUARDED).unwrap();
    node.write("probe.yaml", &rules('a', 40)).unwrap();
    node.apply().unwrap();
    let before = live(&node);
    let held = BpfObjects::pinned(&node.pins()).unwrap();

    node.write("probe.yaml", &rules('a', 20)).unwrap();
    let outcome = node.run(&["apply", "--auto-approve"]).unwrap();
    let said = [
        "removals: 20 of 40 routes would be removed, more than 10 %",
        "100.64.20.0/24  [probe.yaml:28]",
        "… and 15 more",
        "--allow removals",
        "`Wayleave-Allow: removals`",
        "guards: {allow: [removals]}",
    ];
    refused(&outcome, 4, &said);
    assert_eq!(live(&node), before);
    assert_eq!(BpfObjects::pinned(&node.pins()).unwrap(), held, "a refused apply has left something");
    let plan = node.run(&["plan"]).unwrap();
    assert_eq!(plan.code, Some(0), "{plan:?}");
    assert!(plan.stdout.contains("Apply would be refused by the guard removals: 20 of 40"), "{}", plan.stdout);

    refused(&node.run(&["apply", "--auto-approve", "--allow", "empty"]).unwrap(), 4, &["removals"]);
    refused(
        &node.run(&["apply", "--auto-approve", "--allow", "everything"]).unwrap(),
        64,
        &["there is no guard `everything`"],
    );
    let outcome = node.run(&["apply", "--auto-approve", "--allow", "empty,removals"]).unwrap();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(node.status().unwrap()["routes"]["ipv4"], 20);

    // A rollback is never guarded: the way back must be open. And neither is an empty plan.
    node.succeed(&["rollback", "--auto-approve"]).unwrap();
    assert_eq!(node.status().unwrap()["routes"]["ipv4"], 40);
}

#[test]
fn default_routes_and_management_addresses_wait_for_a_word() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.set_spec("guards: {management: [203.0.113.0/24]}").unwrap();
    node.write("probe.yaml", &rules('a', 3)).unwrap();
    node.apply().unwrap();
    let before = live(&node);
    let with = |route: &str| rules('a', 3) + &format!("    - {{prefix: {route}, action: drop}}\n");
    node.write("probe.yaml", &with("0.0.0.0/0")).unwrap();
    refused(
        &node.run(&["apply", "--auto-approve"]).unwrap(),
        4,
        &["the default route 0.0.0.0/0 would be added: drop", "0.0.0.0/0  [probe.yaml:11]", "--allow default-route"],
    );
    node.write("probe.yaml", &with("203.0.112.0/20")).unwrap();
    refused(
        &node.run(&["apply", "--auto-approve"]).unwrap(),
        4,
        &["the route 203.0.112.0/20 takes packets to 203.0.113.0/24", "--allow management"],
    );
    let empty = "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {name: probe}\nspec: {routes: []}\n";
    node.write("probe.yaml", empty).unwrap();
    refused(
        &node.run(&["apply", "--auto-approve"]).unwrap(),
        4,
        &["empty: no route would be left; 3 are live", "--allow empty"],
    );
    assert_eq!(live(&node), before);
}

#[test]
fn addresses_of_devices_without_a_port_are_guarded() {
    let lab = lab();
    let (lan, lan_device) = ("lan", lab.client.router_device.as_str());
    let mut node =
        TestNode::new(&lab.router, &[(lan, lan_device), ("uplink-a", &lab.upstreams[0].router_device)]).unwrap();
    node.set_spec(GUARDED).unwrap();
    node.write("probe.yaml", &rules('a', 3)).unwrap();
    node.apply().unwrap();
    // 10.77.2.1 is the node's own, towards upstream b, which is no port here.
    node.write("probe.yaml", &(rules('a', 3) + "    - {prefix: 10.77.2.0/24, action: drop}\n")).unwrap();
    refused(&node.run(&["apply", "--auto-approve"]).unwrap(), 4, &["the route 10.77.2.0/24 takes packets to 10.77.2."]);
    node.write("probe.yaml", &(rules('a', 3) + "    - {prefix: 10.77.1.0/24, action: drop}\n")).unwrap();
    node.apply().unwrap();
}

#[test]
fn the_daemon_keeps_what_is_live_until_another_source_comes() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.set_spec(GUARDED).unwrap();
    node.write("probe.yaml", &rules('a', 40)).unwrap();
    let _daemon = Daemon::start(&node);
    wait_for_state(&node, "sync", "in-sync");
    let before = live(&node);

    node.write("probe.yaml", &rules('a', 10)).unwrap();
    let status = wait_for_state(&node, "policy", "refused");
    assert_eq!(status["policy"]["guards"], serde_json::json!(["removals"]));
    assert!(status["policy"]["message"].as_str().unwrap().contains("--allow removals"), "{status:#}");
    assert_eq!(live(&node), before);
    assert!(node.run(&["status"]).unwrap().stdout.contains("30 of 40 routes would be removed"));

    node.write("probe.yaml", &rules('a', 39)).unwrap();
    let status = wait_for_state(&node, "sync", "in-sync");
    assert_eq!(status["routes"]["ipv4"], 39);

    // A test that fails in the kernel keeps it, too.
    node.write("tests.yaml", &expects("100.64.1.1", "verdict: drop")).unwrap();
    node.write("probe.yaml", &rules('b', 39)).unwrap();
    let status = wait_for_state(&node, "policy", "tests-failed");
    assert_eq!(status["policy"]["failed"], 1);
    assert!(
        status["policy"]["message"]
            .as_str()
            .unwrap()
            .starts_with("tests.yaml:6: reachability: expected drop, got forward")
    );
    assert_eq!(status["generation"], 2, "{status:#}");
    node.write("tests.yaml", &expects("100.64.1.1", "nextHop: up-b")).unwrap();
    assert_eq!(wait_for_state(&node, "sync", "in-sync")["generation"], 3);
}

#[test]
fn a_node_takes_up_after_a_reboot_what_it_was_once_allowed() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.set_spec("guards: {management: [100.64.1.0/24]}").unwrap();
    node.write("probe.yaml", &rules('a', 3)).unwrap();
    refused(&node.run(&["apply", "--auto-approve"]).unwrap(), 4, &["--allow management"]);
    node.succeed(&["apply", "--auto-approve", "--allow", "management"]).unwrap();
    // What a reboot leaves: the state directory, and nothing in the kernel.
    node.succeed(&["detach", "--auto-approve"]).unwrap();
    node.apply().unwrap();
    node.succeed(&["detach", "--auto-approve"]).unwrap();
    node.write("probe.yaml", &rules('b', 3)).unwrap();
    refused(&node.run(&["apply", "--auto-approve"]).unwrap(), 4, &["--allow management"]);
}

#[test]
fn a_saved_plan_is_made_or_refused_whole() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a', 3)).unwrap();
    node.apply().unwrap();
    node.write("probe.yaml", &rules('b', 3)).unwrap();
    let (file, other) = (node.scratch().join("plan.json"), node.scratch().join("other.json"));
    let (file, other) = (file.to_str().unwrap(), other.to_str().unwrap());
    let shown = node.succeed(&["plan", "--out", file]).unwrap().stdout;
    node.succeed(&["plan", "--out", other]).unwrap();
    let stale = |node: &TestNode, why: &str| {
        let before = live(node);
        refused(&node.run(&["apply", "--plan", file]).unwrap(), 5, &["the plan does not hold any more", why]);
        assert_eq!(live(node), before);
        let again = node.run(&["plan", "--show", file]).unwrap();
        assert_eq!((again.stdout.as_str(), again.code), (shown.as_str(), Some(0)), "{again:?}");
    };
    // Another source.
    node.write("probe.yaml", &rules('b', 4)).unwrap();
    stale(&node, "the source was dir@sha256:");
    // Another configuration, and another node.
    node.write("probe.yaml", &rules('b', 3)).unwrap();
    node.set_spec("retain: {generations: 3}").unwrap();
    stale(&node, "the node's configuration is another one now");
    let text = fs::read_to_string(node.config()).unwrap();
    fs::write(node.config(), text.replace("{name: lab}", "{name: another}")).unwrap();
    stale(&node, "it was made for the node lab, this is another");
    node.set_spec("").unwrap();
    // Nothing is different any more: it is made, and nobody is asked.
    let done = node.succeed(&["apply", "--plan", file]).unwrap();
    assert!(done.stderr.contains("generation 2 is live"), "{done:?}");
    assert_eq!(done.stdout, shown);
    // And the same one again: another generation is live.
    stale(&node, "generation 1 was live then, generation 2 is now");
    refused(&node.run(&["apply", "--plan", other]).unwrap(), 5, &["generation 2 is now"]);
    assert_eq!(node.run(&["apply", "--plan", file, "policies"]).unwrap().code, Some(64));
    // A plan between two sources is nobody's.
    let source = node.source();
    let source = source.to_str().unwrap();
    node.succeed(&["plan", "--from", source, source, "--out", other]).unwrap();
    refused(&node.run(&["apply", "--plan", other]).unwrap(), 5, &["it compares two sources"]);
}

#[test]
fn a_failing_policy_test_blocks_the_publish() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a', 3)).unwrap();
    node.write("tests.yaml", &expects("100.64.1.1", "verdict: forward, nextHop: up-a")).unwrap();
    node.apply().unwrap();
    let before = live(&node);
    node.write("probe.yaml", &rules('b', 3).replace("up-b", "up-a")).unwrap();
    node.write("tests.yaml", &expects("100.64.1.1", "verdict: drop")).unwrap();
    let outcome = node.run(&["apply", "--auto-approve"]).unwrap();
    let said = [
        "FAILED    reachability  [tests.yaml:6]",
        "expected  drop",
        "got       forward, reason forwarded, next hop probe/up-a, by 100.64.1.0/24 of probe  [probe.yaml:9]",
        "nothing was published; generation 1 is live",
    ];
    refused(&outcome, 3, &said);
    assert_eq!(live(&node), before);
    assert_eq!(node.status().unwrap()["leftovers"], 0, "the candidate was not freed");
    assert!(node.run(&["plan"]).unwrap().stdout.contains("Apply would be refused, since policy tests fail"));
    node.write("tests.yaml", &expects("100.64.9.1", "reason: no-route")).unwrap();
    node.apply().unwrap();
    assert_eq!(live(&node).0, 2);
}

#[test]
fn a_next_hop_that_is_down_fails_no_test() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a', 3)).unwrap();
    node.write("tests.yaml", &expects("100.64.1.1", "verdict: forward, nextHop: up-b")).unwrap();
    lab.router.ip(&format!("link set {} down", lab.upstreams[1].router_device)).unwrap();
    node.write("probe.yaml", &rules('b', 3)).unwrap();
    node.apply().unwrap();
}

#[test]
fn tests_run_in_the_kernel_beside_a_node_and_leave_nothing() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a', 3)).unwrap();
    let cases = expects("100.64.1.1", "verdict: forward")
        + "    - {packet: {src: 198.18.0.1, dst: 100.64.1.1, inPort: \
        dmz}, expect: {verdict: drop}}\n";
    node.write("tests.yaml", &cases).unwrap();
    let check = |code: i32, said: &[&str]| {
        let held = BpfObjects::pinned(&node.pins()).unwrap();
        let outcome = node.run(&["test", "--kernel"]).unwrap();
        assert_eq!(outcome.code, Some(code), "{outcome:?}");
        for words in said {
            assert!(outcome.stdout.contains(words), "{words}: {outcome:?}");
        }
        assert_eq!(BpfObjects::pinned(&node.pins()).unwrap(), held);
        let beside = format!("{}-test", node.pins().display());
        assert!(!std::path::Path::new(&beside).exists(), "{beside} is left");
    };
    check(
        0,
        &["left out  reachability  [tests.yaml:7]: this node has no port `dmz`\n1 passed, 0 failed, 1 left out\n"],
    );
    node.apply().unwrap();
    let before = live(&node);
    node.write("tests.yaml", &expects("100.64.1.1", "verdict: drop")).unwrap();
    check(3, &["FAILED    reachability  [tests.yaml:6]", "0 passed, 1 failed"]);
    assert_eq!(live(&node), before);
}

#[test]
fn a_commit_says_that_its_removals_are_meant() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.set_spec(GUARDED).unwrap();
    let repo = node.scratch().join("repo");
    fs::create_dir(&repo).unwrap();
    let commit = |routes: u32, message: &str| {
        fs::write(repo.join("probe.yaml"), rules('a', routes)).unwrap();
        for arguments in [&["init", "-q", "-b", "main"][..], &["add", "."], &["commit", "-qm", message]] {
            let identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"];
            let mut git = Command::new("git");
            assert!(git.args(identity).args(arguments).current_dir(&repo).status().unwrap().success());
        }
    };
    let source = repo.to_str().unwrap();
    let apply = ["apply", source, "--ref", "main", "--auto-approve"];
    commit(40, "forty");
    node.succeed(&apply).unwrap();
    commit(20, "twenty\n\nWayleave-Allow: empty");
    refused(&node.run(&apply).unwrap(), 4, &["removals: 20 of 40"]);
    commit(19, "nineteen\n\nWayleave-Allow: removals, empty");
    node.succeed(&apply).unwrap();
    assert_eq!(node.status().unwrap()["routes"]["ipv4"], 19);
}
