//! Source, policy, sync and health each tell their own trouble; a suspension and sync windows hold a change of the source, and
//! never a way back.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::Value;
use wayleave_tests::{Daemon, Outcome, TestNode, Topology, require_root_and_bpf};

const SECOND: Duration = Duration::from_secs(1);
const BOUND: Duration = Duration::from_secs(5);

fn lab() -> Topology {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    lab.fix_neighbours().unwrap();
    lab
}

/// Sends a prefix to upstream a or b.
fn rules(upstream: char) -> String {
    let number = u32::from(upstream) - u32::from('a') + 1;
    format!(
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: probe}}\nspec:\n  nextHops:\n    - {{name: \
         up-{upstream}, via: 10.77.{number}.2, port: uplink-{upstream}}}\n  routes:\n    - {{prefix: 198.51.100.0/24, nextHops: \
         [{{name: up-{upstream}}}]}}\n"
    )
}

/// The upstream that packets go to.
fn upstream(node: &TestNode) -> String {
    let trace = ["trace", "--src", "198.18.0.1", "--dst", "198.51.100.9", "--format", "json"];
    let trace: Value = serde_json::from_str(&node.succeed(&trace).unwrap().stdout).unwrap();
    trace["next_hop"]["name"].as_str().unwrap_or_default().to_owned()
}

fn wait(node: &TestNode, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    wait_within(node, BOUND, what, wanted)
}

fn wait_within(node: &TestNode, bound: Duration, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + bound;
    loop {
        let status = node.status().unwrap();
        if wanted(&status) {
            return status;
        }
        let log = fs::read_to_string(node.scratch().join("log")).unwrap_or_default();
        assert!(Instant::now() < deadline, "{what}: {status:#}\n{log}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn states(status: &Value) -> [&str; 4] {
    ["source", "policy", "sync", "health"].map(|axis| status[axis]["state"].as_str().unwrap_or_default())
}

/// Runs a command as if alice had done so by sudo.
fn as_alice(node: &TestNode, arguments: &[&str]) -> Outcome {
    node.command(arguments).unwrap().env("SUDO_USER", "alice").output().unwrap().into()
}

fn refused(outcome: &Outcome, said: &[&str]) {
    assert_eq!(outcome.code, Some(4), "{outcome:?}");
    for words in said {
        assert!(outcome.stderr.contains(words), "{words:?} is not in\n{}", outcome.stderr);
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A window in UTC that opened with the present minute and closes so many seconds from now.
fn open_for(seconds: u64) -> String {
    let now = unix_now();
    let (hour, minute) = (now / 3600 % 24, now / 60 % 60);
    format!("schedule: \"{minute} {hour} * * *\", duration: {}s", now % 60 + seconds)
}

#[test]
fn a_suspension_holds_changes_over_restarts_until_somebody_resumes() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a')).unwrap();
    let daemon = Daemon::start(&node);
    let before = node.status().unwrap();
    assert_eq!(states(&before), ["ready", "valid", "in-sync", "healthy"], "{before:#}");
    let suspended = as_alice(&node, &["suspend", "--reason", "change freeze"]);
    assert_eq!(suspended.code, Some(0), "{suspended:?}");
    assert!(suspended.stderr.contains("suspended by alice since "), "{suspended:?}");

    // The change is read, checked and reported, and not made.
    node.write("probe.yaml", &rules('b')).unwrap();
    let held = |status: &Value| status["sync"]["pending"].is_object();
    let status = wait(&node, "reported", held);
    assert_eq!(states(&status), ["ready", "valid", "suspended", "healthy"], "{status:#}");
    assert_eq!(status["sync"]["suspended"]["by"], "alice");
    assert_eq!(status["sync"]["suspended"]["reason"], "change freeze");
    assert_ne!(status["sync"]["last_attempted"]["revision"], status["sync"]["last_applied"]["revision"]);
    assert_eq!(status["sync"]["last_attempted"]["outcome"], "suspended");
    let human = node.succeed(&["status"]).unwrap().stdout;
    assert!(human.contains("change freeze") && human.contains("to add"), "{human}");
    // Faults in it are, too.
    node.write("probe.yaml", "spec: [broken").unwrap();
    wait(&node, "a fault", |status| states(status) == ["ready", "invalid", "suspended", "healthy"]);
    node.write("probe.yaml", &rules('b')).unwrap();
    wait(&node, "mended", |status| status["policy"]["state"] == "valid");

    let plan = node.run(&["plan"]).unwrap();
    assert_eq!(plan.code, Some(0), "{plan:?}");
    assert!(plan.stdout.contains("Apply would be held now: suspended by alice"), "{plan:?}");
    // Not by hand either, without a word.
    let by_hand = node.run(&["apply", "--auto-approve"]).unwrap();
    refused(&by_hand, &["suspended by alice since ", "change freeze", "`wayleave resume`", "--allow suspended"]);
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
    refused(&node.run(&["apply", "--auto-approve"]).unwrap(), &["change freeze"]);

    // Nor after a restart.
    let daemon = Daemon::start(&node);
    daemon.signal(Signal::HUP);
    thread::sleep(SECOND);
    let status = node.status().unwrap();
    assert_eq!((&status["generation"], &status["sync"]["state"]), (&1.into(), &"suspended".into()), "{status:#}");
    assert_eq!(upstream(&node), "up-a");

    // What is live stays in force meanwhile: it follows the node's own addresses, and a device that comes back is attached.
    lab.router.ip("address add 198.51.100.77/32 dev lo").unwrap();
    wait(&node, "another address", |status| status["generation"] == 2);
    let local = ["trace", "--src", "198.18.0.1", "--dst", "198.51.100.77", "--format", "json"];
    let local: Value = serde_json::from_str(&node.succeed(&local).unwrap().stdout).unwrap();
    assert_eq!((&local["verdict"], &local["next_hop"]), (&"pass".into(), &Value::Null), "{local}");
    assert_eq!(upstream(&node), "up-a");
    lab.router.ip("link delete upz").unwrap();
    wait(&node, "lost", |status| status["health"]["reason"] == "port-not-attached");
    lab.router.ip("link add upz type veth peer name other").unwrap();
    wait(&node, "back", |status| status["health"]["reason"] != "port-not-attached");
    assert_eq!(upstream(&node), "up-a");

    let begun = Instant::now();
    let resumed = as_alice(&node, &["resume"]);
    assert!(resumed.stderr.contains("the source is followed again"), "{resumed:?}");
    let status = wait(&node, "resumed", |status| status["sync"]["state"] == "in-sync");
    println!("resumed to published: {:?}", begun.elapsed());
    assert!(begun.elapsed() < 3 * SECOND, "{:?}", begun.elapsed());
    assert_eq!(upstream(&node), "up-b");
    assert_eq!(status["sync"]["suspended"], Value::Null);
    assert_eq!(status["sync"]["pending"], Value::Null);
    assert!(node.succeed(&["resume"]).unwrap().stderr.contains("nothing is suspended"));
    let history = node.succeed(&["history"]).unwrap().stdout;
    assert!(history.contains("suspended by alice") && history.contains("change freeze"), "{history}");
    assert!(history.contains("resumed by alice"), "{history}");
    drop(daemon);
}

#[test]
fn a_suspension_ends_by_itself_at_its_time() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a')).unwrap();
    let daemon = Daemon::start(&node);
    let begun = Instant::now();
    node.succeed(&["suspend", "--reason", "a short one", "--until", "3s"]).unwrap();
    node.write("probe.yaml", &rules('b')).unwrap();
    let status = wait(&node, "held", |status| status["sync"]["pending"].is_object());
    assert!(status["sync"]["suspended"]["until"].is_string(), "{status:#}");
    let status = wait(&node, "over", |status| status["generation"] == 2);
    assert!(begun.elapsed() >= 3 * SECOND, "{:?}", begun.elapsed());
    assert!(begun.elapsed() < 6 * SECOND, "{:?}", begun.elapsed());
    assert_eq!(status["sync"]["suspended"], Value::Null, "{}", daemon.log());
    assert_eq!(upstream(&node), "up-b");

    for (until, said) in [
        ("2001-01-01T00:00:00Z", "that time is over"),
        ("soon", "neither a time with its zone"),
        ("2999-01-01", "neither a time with its zone"),
    ] {
        let outcome = node.run(&["suspend", "--reason", "x", "--until", until]).unwrap();
        assert_eq!(outcome.code, Some(64), "{outcome:?}");
        assert!(outcome.stderr.contains(said), "{outcome:?}");
    }
    assert_eq!(node.run(&["suspend"]).unwrap().code, Some(64), "without a reason");
    assert_eq!(node.status().unwrap()["sync"]["suspended"], Value::Null);
    drop(daemon);
}

#[test]
fn the_way_back_is_open_while_changes_are_held() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a')).unwrap();
    node.apply().unwrap();
    node.write("probe.yaml", &rules('b')).unwrap();
    node.apply().unwrap();
    // Both: an operator's word, and a window that denies.
    let window = format!("sync: {{windows: [{{kind: deny, {}, reason: month-end}}]}}", open_for(600));
    node.set_spec(&window).unwrap();
    node.succeed(&["suspend", "--reason", "freeze"]).unwrap();
    let daemon = Daemon::start(&node);
    let back = as_alice(&node, &["rollback", "--auto-approve", "--reason", "b loses packets"]);
    assert_eq!(back.code, Some(0), "{back:?}");
    assert_eq!(upstream(&node), "up-a");
    let history = node.succeed(&["history"]).unwrap().stdout;
    assert!(history.contains("rolled back by alice") && history.contains("b loses packets"), "{history}");

    // A change needs a word for each of the two, and stays then.
    let different = rules('b').replace("198.51.100.0/24", "198.51.0.0/16");
    node.write("probe.yaml", &different).unwrap();
    refused(&node.run(&["apply", "--auto-approve"]).unwrap(), &["freeze", "month-end", "config.yaml:"]);
    refused(&node.run(&["apply", "--auto-approve", "--allow", "suspended"]).unwrap(), &["--allow outside-window"]);
    refused(&node.run(&["apply", "--auto-approve", "--allow", "outside-window"]).unwrap(), &["--allow suspended"]);
    let both = ["apply", "--auto-approve", "--allow", "suspended,outside-window", "--reason", "approved by the board"];
    let outcome = as_alice(&node, &both);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    daemon.signal(Signal::HUP);
    thread::sleep(SECOND);
    assert_eq!(upstream(&node), "up-b");
    let history: Value = serde_json::from_str(&node.succeed(&["history", "--format", "json"]).unwrap().stdout).unwrap();
    let newest = &history["history"][0];
    assert_eq!((&newest["by"], &newest["why"]), (&"alice".into(), &"approved by the board".into()), "{newest}");
    drop(daemon);
}

#[test]
fn a_change_outside_the_windows_waits_for_one() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.write("probe.yaml", &rules('a')).unwrap();
    node.apply().unwrap();
    let closes = unix_now() + 6;
    // Changes are always allowed, except while the other is open: for a few seconds more.
    let windows = format!(
        "sync:\n  windows:\n    - {{kind: allow, schedule: \"0 0 * * *\", duration: 24h}}\n    - {{kind: deny, {}, \
         timeZone: UTC, reason: backup runs}}",
        open_for(6)
    );
    node.set_spec(&windows).unwrap();
    let daemon = Daemon::start(&node);
    node.write("probe.yaml", &rules('b')).unwrap();
    let status = wait(&node, "held", |status| status["sync"]["state"] == "outside-window");
    assert_eq!(states(&status), ["ready", "valid", "outside-window", "healthy"], "{status:#}");
    assert_eq!(status["sync"]["windows"]["open"], false);
    assert!(status["sync"]["message"].as_str().unwrap().contains("backup runs"), "{status:#}");
    let line = fs::read_to_string(node.config()).unwrap().lines().position(|l| l.contains("kind: deny")).unwrap() + 1;
    let place = format!("config.yaml:{line}]");
    refused(
        &node.run(&["apply", "--auto-approve"]).unwrap(),
        &["the deny window `", "backup runs", &place, "changes are taken from ", "--allow outside-window"],
    );
    assert_eq!(node.status().unwrap()["generation"], 1);
    let status = wait_within(&node, 12 * SECOND, "opened", |status| status["generation"] == 2);
    assert!(unix_now() >= closes, "{}", daemon.log());
    assert!(unix_now() <= closes + 3, "published {} s late\n{}", unix_now() - closes, daemon.log());
    assert_eq!(upstream(&node), "up-b");
    wait(&node, "in sync", |status| status["sync"]["state"] == "in-sync");
    assert_eq!(status["sync"]["windows"]["open"], true, "{status:#}");
    drop(daemon);

    // Where a window allows, there must be one that is open.
    let closed = (unix_now() / 3600 + 12) % 24;
    node.set_spec(&format!("sync: {{windows: [{{kind: allow, schedule: \"0 {closed} * * *\", duration: 1h}}]}}"))
        .unwrap();
    node.write("probe.yaml", &rules('a')).unwrap();
    refused(
        &node.run(&["apply", "--auto-approve"]).unwrap(),
        &["the allow window `0 ", "is closed; changes are taken from "],
    );
    assert_eq!(upstream(&node), "up-b");
}

#[test]
fn faults_in_windows_are_named_with_their_place() {
    let lab = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.set_spec(
        "sync:\n  windows:\n    - {kind: allow, schedule: \"22:00\", duration: 4h}\n    - {kind: deny, schedule: \"0 22 * * \
         *\", duration: 0h, timeZone: Europe/Berlni}",
    )
    .unwrap();
    let outcome = node.run(&["status"]).unwrap();
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    let text = fs::read_to_string(node.config()).unwrap();
    let place = |words: &str| {
        let (line, column) = text.lines().zip(1..).find_map(|(l, n)| Some((n, l.find(words)? + 1))).unwrap();
        format!("config.yaml:{line}:{column}")
    };
    for said in [
        "WL0901",
        "`22:00` is no cron schedule",
        &place("\"22:00\""),
        "WL0902",
        "`Europe/Berlni` is no time zone",
        "Europe/Berlin",
        &place("Europe/Berlni"),
        "WL0903",
        "`0h` is no time that a window can be open",
        &place("0h"),
    ] {
        assert!(outcome.stderr.contains(said), "{said:?} is not in\n{}", outcome.stderr);
    }
}

#[test]
fn each_trouble_shows_on_its_own_axis() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    assert_eq!(states(&node.status().unwrap()), ["unknown", "unknown", "unknown", "none"]);
    node.write("probe.yaml", &rules('a')).unwrap();
    // Without a daemon, too.
    node.apply().unwrap();
    let status = node.status().unwrap();
    assert_eq!(states(&status), ["ready", "valid", "in-sync", "healthy"], "{status:#}");
    let first = status["revision"].clone();
    let attempted = |status: &Value| (status["sync"]["last_attempted"].clone(), status["sync"]["last_applied"].clone());
    let (tried, applied) = attempted(&status);
    assert_eq!((&tried["revision"], &applied["revision"], &applied["generation"]), (&first, &first, &1.into()));

    // Faults in the policies.
    node.write("probe.yaml", "spec: [broken").unwrap();
    assert_eq!(node.run(&["apply", "--auto-approve"]).unwrap().code, Some(3));
    let status = node.status().unwrap();
    assert_eq!(states(&status), ["ready", "invalid", "out-of-sync", "healthy"], "{status:#}");
    let (tried, applied) = attempted(&status);
    assert_eq!((&tried["outcome"], &applied["revision"]), (&"invalid".into(), &first), "{status:#}");
    assert!(tried["revision"].is_string() && tried["revision"] != first, "{status:#}");
    assert!(status["policy"]["message"].as_str().unwrap().contains("probe.yaml:1"), "{status:#}");
    assert!(status["policy"]["since"].is_string(), "{status:#}");

    // The same for the daemon, and after it.
    let daemon = Daemon::start(&node);
    let status = node.status().unwrap();
    assert_eq!(states(&status), ["ready", "invalid", "out-of-sync", "healthy"], "{status:#}");
    assert_eq!(status["sync"]["last_attempted"]["by"], "the daemon");
    assert_eq!(daemon.stop(Signal::TERM), Some(0));
    let (tried_before, applied_before) = attempted(&status);
    let status = node.status().unwrap();
    assert_eq!(attempted(&status), (tried_before, applied_before));
    assert_eq!(status["sync"]["daemon"], "stopped");
    let daemon = Daemon::start(&node);

    // A lost source says nothing of the policies, and is not their fault.
    node.write("probe.yaml", &rules('b')).unwrap();
    wait(&node, "mended", |status| states(status) == ["ready", "valid", "in-sync", "healthy"]);
    let away = node.scratch().join("away");
    fs::rename(node.source(), &away).unwrap();
    let status = wait(&node, "lost", |status| status["source"]["state"] == "failed");
    assert_eq!(states(&status), ["failed", "valid", "in-sync", "healthy"], "{status:#}");
    assert!(status["source"]["message"].as_str().unwrap().contains("does not exist"), "{status:#}");
    fs::rename(&away, node.source()).unwrap();
    wait(&node, "back", |status| status["source"]["state"] == "ready");

    // A rollback.
    node.succeed(&["rollback", "--auto-approve"]).unwrap();
    daemon.signal(Signal::HUP);
    let status = wait(&node, "set aside", |status| status["sync"]["last_attempted"]["outcome"] == "quarantined");
    assert_eq!(states(&status), ["ready", "valid", "quarantined", "healthy"], "{status:#}");
    assert_eq!(status["sync"]["last_applied"]["generation"], 3);
    assert_eq!(status["sync"]["last_applied"]["revision"], first);

    // A dead link.
    lab.router.set_up("upa", false).unwrap();
    let status = wait(&node, "a dead link", |status| status["health"]["reason"] == "next-hop-down");
    assert_eq!(states(&status), ["ready", "valid", "quarantined", "degraded"], "{status:#}");
    assert!(status["health"]["since"].is_string(), "{status:#}");
    let human = node.succeed(&["status"]).unwrap().stdout;
    for line in [
        "  source      ready since ",
        "  policy      valid since ",
        "  sync        quarantined",
        "  health      degraded",
    ] {
        assert!(human.contains(line), "{line:?} is not in\n{human}");
    }
}

#[test]
fn history_folds_equal_rules_that_follow_each_other() {
    let lab = lab();
    let node = TestNode::router(&lab).unwrap();
    for round in 0..3 {
        node.write("probe.yaml", &rules('a')).unwrap();
        node.succeed(&["apply", "--auto-approve", "--reason", &format!("round {round}")]).unwrap();
        // As after a restart of the machine: the kernel has nothing, and the journal knows.
        fs::remove_dir_all(node.place()).unwrap();
    }
    node.write("probe.yaml", &rules('b')).unwrap();
    node.succeed(&["apply", "--auto-approve"]).unwrap();
    let history = node.succeed(&["history"]).unwrap().stdout;
    assert_eq!(history.matches("applied by").count(), 2, "{history}");
    assert!(history.contains("the same rules 3 times, first as generation 1 "), "{history}");
    assert!(history.contains("round 2") && !history.contains("round 1"), "{history}");
    let all = node.succeed(&["history", "--all"]).unwrap().stdout;
    assert_eq!(all.matches("applied by").count(), 4, "{all}");
    let json: Value = serde_json::from_str(&node.succeed(&["history", "--format", "json"]).unwrap().stdout).unwrap();
    assert_eq!(json["history"].as_array().unwrap().len(), 4);
    assert_eq!(json["history"][1]["why"], "round 2");
}
