//! Changes that must prove themselves: by probes that passed before, or by a person's word. What fails is rolled back, whoever
//! is still alive to see it.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use wayleave_tests::{Daemon, Outcome, TestNode, Topology, require_root_and_bpf};

const SECOND: Duration = Duration::from_secs(1);
/// The server that clients reach through the router, behind up-a.
const SERVER: &str = "198.51.100.9";
const PORT: u16 = 8080;

/// Sends the server's prefix to up-a, where it is, or into the sink; `more` makes rules that differ and harm nobody.
fn policy(to_sink: bool, more: u8) -> String {
    let hop = if to_sink { "z" } else { "a" };
    format!(
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: web}}\nspec:\n  nextHops:\n    - {{name: a, via: \
         10.77.1.2, port: uplink-a}}\n    - {{name: z, via: 10.77.255.2, port: sink}}\n  routes:\n    - {{prefix: \
         198.51.100.0/24, nextHops: [{{name: {hop}}}]}}\n    - {{prefix: 192.0.2.{more}/32, nextHops: [{{name: a}}]}}\n    \
         - {{prefix: 192.0.2.255/32, nextHops: [{{name: z}}]}}\n"
    )
}

/// A node whose probe is a client's connection through it.
fn node<'n>(lab: &'n Topology, probation: &str) -> TestNode<'n> {
    let mut node = TestNode::router(lab).unwrap();
    let client = lab.client.namespace.name();
    node.set_spec(&format!(
        "probation: {probation}\nprobeCommands:\n  - {{name: web, timeout: 500ms, run: [ip, netns, exec, {client}, bash, -c, \
         \"exec 3<>/dev/tcp/{SERVER}/{PORT}\"]}}"
    ))
    .unwrap();
    node.write("web.yaml", &policy(false, 0)).unwrap();
    node
}

fn lab() -> (Topology, TcpListener) {
    require_root_and_bpf().unwrap();
    let lab = Topology::router().unwrap();
    lab.fix_neighbours().unwrap();
    let listener = lab.upstream(0).unwrap().namespace.enter(|| TcpListener::bind((SERVER, PORT)).unwrap()).unwrap();
    (lab, listener)
}

fn reachable(lab: &Topology) -> bool {
    let address = format!("{SERVER}:{PORT}").parse().unwrap();
    lab.client.namespace.enter(|| TcpStream::connect_timeout(&address, SECOND / 2).is_ok()).unwrap()
}

fn probation(node: &TestNode, key: &str) -> Value {
    node.status().unwrap()["probation"][key].clone()
}

/// Waits until the last change that had to prove itself stands so.
fn wait_for(node: &TestNode, state: &str) -> Value {
    let deadline = Instant::now() + 20 * SECOND;
    loop {
        let status = node.status().unwrap();
        if status["probation"]["state"] == state {
            return status;
        }
        assert!(Instant::now() < deadline, "not {state}: {:#}", status["probation"]);
        thread::sleep(Duration::from_millis(20));
    }
}

fn apply(node: &TestNode, more: &[&str]) -> Outcome {
    node.run(&[&["apply", "--auto-approve"], more].concat()).unwrap()
}

fn spawn(node: &TestNode, arguments: &[&str]) -> Child {
    node.command(arguments).unwrap().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_change_that_breaks_what_worked_is_rolled_back_at_once() {
    let (lab, _server) = lab();
    let node = node(&lab, "{window: 2s, interval: 100ms}");
    // Nothing passed before the first rules: nothing is expected of them.
    let first = apply(&node, &[]);
    assert_eq!(first.code, Some(0), "{first:?}");
    assert!(first.stderr.contains("the probe web fails already"), "{first:?}");
    assert!(reachable(&lab));
    let before = node.status().unwrap();
    node.write("web.yaml", &policy(true, 0)).unwrap();
    let begun = Instant::now();
    let broken = apply(&node, &[]);
    assert_eq!(broken.code, Some(6), "{broken:?}");
    assert!(broken.stderr.contains("generation 2 was rolled back: the probe web passed before it"), "{broken:?}");
    assert!(reachable(&lab), "{broken:?}");
    assert!(begun.elapsed() < 15 * SECOND, "{:?}", begun.elapsed());
    let after = node.status().unwrap();
    assert_eq!((&after["digest"], &after["generation"]), (&before["digest"], &3.into()), "{after:#}");
    assert_eq!(
        (&after["probation"]["state"], &after["health"]["state"]),
        (&"rolled-back".into(), &"healthy".into()),
        "{after:#}"
    );
    let history = node.succeed(&["history"]).unwrap().stdout;
    assert!(history.contains("generation 2: the probe web passed before it and fails now"), "{history}");
    // A good change proves itself.
    node.write("web.yaml", &policy(false, 7)).unwrap();
    let good = apply(&node, &[]);
    assert_eq!(good.code, Some(0), "{good:?}");
    assert!(good.stderr.contains("generation 4 has proved itself"), "{good:?}");
}

#[test]
fn a_change_that_nobody_confirms_is_rolled_back_though_everybody_is_dead() {
    let (lab, _server) = lab();
    let node = node(&lab, "{window: 100ms}");
    apply(&node, &[]);
    // A person in time.
    node.write("web.yaml", &policy(false, 1)).unwrap();
    let mut waiting = spawn(&node, &["apply", "--auto-approve", "--confirm-timeout", "30s"]);
    wait_for(&node, "pending");
    let confirmed = node.succeed(&["confirm"]).unwrap();
    assert!(confirmed.stderr.contains("generation 2 is confirmed"), "{confirmed:?}");
    assert_eq!(waiting.wait().unwrap().code(), Some(0));
    let again = node.run(&["confirm"]).unwrap();
    assert_eq!(again.code, Some(1), "{again:?}");
    assert!(again.stderr.contains("there is nothing to confirm"), "{again:?}");
    // Nobody: the apply is killed, and no daemon runs.
    let before = node.status().unwrap()["digest"].clone();
    node.write("web.yaml", &policy(false, 2)).unwrap();
    let mut killed = spawn(&node, &["apply", "--auto-approve", "--confirm-timeout", "3s"]);
    wait_for(&node, "pending");
    killed.kill().unwrap();
    killed.wait().unwrap();
    let status = wait_for(&node, "rolled-back");
    assert_eq!(status["digest"], before, "{status:#}");
    assert_eq!(status["probation"]["why"], "nobody confirmed it in time");
    assert!(reachable(&lab));
}

#[test]
fn the_first_rules_that_nobody_confirms_leave_nothing() {
    let (lab, _server) = lab();
    let node = node(&lab, "{window: 100ms}");
    let outcome = apply(&node, &["--confirm-timeout", "1s"]);
    assert_eq!(outcome.code, Some(6), "{outcome:?}");
    let status = node.status().unwrap();
    assert_eq!(status["generation"], Value::Null, "{status:#}");
    assert!(status["interfaces"].as_array().unwrap().iter().all(|i| i["attached"] == false), "{status:#}");
}

#[test]
fn a_policy_brings_probes_of_its_own() {
    let (lab, _server) = lab();
    let node = TestNode::router(&lab).unwrap();
    // The answers to the router's own ping come in by uplink-a, where the second rules drop them.
    let rules = |more: &str| {
        format!(
            "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: web}}\nspec:\n  probes:\n    - {{name: upstream, \
             ping: {{address: 10.77.1.2}}, timeout: 500ms}}\n  nextHops:\n    - {{name: a, via: 10.77.1.2, port: uplink-a}}\n  routes:\n    \
             - {{prefix: 198.51.100.0/24, nextHops: [{{name: a}}]}}\n{more}"
        )
    };
    node.write("web.yaml", &rules("")).unwrap();
    let first = apply(&node, &[]);
    assert_eq!(first.code, Some(0), "{first:?}");
    let before = node.status().unwrap();
    node.write("web.yaml", &rules("    - {prefix: 10.77.1.1/32, action: drop}\n")).unwrap();
    let broken = apply(&node, &["--allow", "management"]);
    assert_eq!(broken.code, Some(6), "{broken:?}");
    assert!(broken.stderr.contains("the probe web/upstream passed before it"), "{broken:?}");
    let after = node.status().unwrap();
    assert_eq!((&after["digest"], &after["health"]["state"]), (&before["digest"], &"healthy".into()), "{after:#}");
}

#[test]
fn a_restart_of_the_machine_is_no_proof() {
    let (lab, _server) = lab();
    let node = node(&lab, "{window: 60s, interval: 100ms}");
    apply(&node, &[]);
    let good = node.status().unwrap();
    node.write("web.yaml", &policy(false, 4)).unwrap();
    let mut killed = spawn(&node, &["apply", "--auto-approve", "--confirm-timeout", "60s"]);
    wait_for(&node, "pending");
    killed.kill().unwrap();
    killed.wait().unwrap();
    // What a restart does: the kernel forgets everything, and the record on disk is of another boot.
    let record = node.state().join("probation.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(text.contains(boot.trim()), "{text}");
    std::fs::write(&record, text.replace(boot.trim(), "00000000-0000-4000-8000-000000000000")).unwrap();
    std::fs::remove_dir_all(node.pins()).unwrap();
    assert!(!reachable(&lab));
    let daemon = Daemon::start(&node);
    // What had proved itself before is live again, and what had not is set aside.
    let status = wait_for(&node, "rolled-back");
    let why = status["probation"]["why"].as_str().unwrap();
    assert!(why.contains("restarted"), "{status:#}");
    assert_eq!(status["digest"], good["digest"], "{status:#}\n{}", daemon.log());
    assert!(reachable(&lab));
    thread::sleep(SECOND);
    let status = node.status().unwrap();
    assert_eq!(status["sync"]["state"], "quarantined", "{status:#}\n{}", daemon.log());
    assert_eq!(status["digest"], good["digest"], "{status:#}");
    // What comes next is taken.
    node.write("web.yaml", &policy(false, 5)).unwrap();
    let deadline = Instant::now() + 20 * SECOND;
    while node.status().unwrap()["digest"] == good["digest"] {
        assert!(Instant::now() < deadline, "{}", daemon.log());
        thread::sleep(Duration::from_millis(20));
    }
    assert!(reachable(&lab));
}

/// What a restart of the machine does: the kernel forgets everything, and the state directory stays.
fn forget(node: &TestNode) {
    std::fs::remove_dir_all(node.place()).unwrap();
}

/// Waits until the daemon has looked at the source, and its axis `axis` says `state`.
fn wait_for_state(node: &TestNode, daemon: &Daemon, axis: &str, state: &str) -> Value {
    let deadline = Instant::now() + 20 * SECOND;
    loop {
        let status = node.status().unwrap();
        if status[axis]["state"] == state {
            return status;
        }
        assert!(Instant::now() < deadline, "{status:#}\n{}", daemon.log());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn after_a_restart_the_last_good_rules_are_live_whatever_the_source_says_by_then() {
    let (lab, _server) = lab();
    let mut node = TestNode::router(&lab).unwrap();
    node.set_spec("guards: {}").unwrap();
    node.write("web.yaml", &policy(false, 0)).unwrap();
    apply(&node, &[]);
    let good = node.status().unwrap()["digest"].clone();
    forget(&node);
    assert!(!reachable(&lab));
    node.write("web.yaml", "kind: RoutePolicy\nspec: {routes: [{prefix: 198.51.100.0/33}]}\n").unwrap();
    let daemon = Daemon::start(&node);
    let status = wait_for_state(&node, &daemon, "policy", "invalid");
    assert_eq!(status["digest"], good, "{status:#}\n{}", daemon.log());
    assert!(reachable(&lab));
    let all = node.succeed(&["history", "--all"]).unwrap().stdout;
    assert!(all.contains("taken up again by") && all.contains("the machine was restarted"), "{all}");
    daemon.stop(Signal::TERM);

    // Guards compare what the source says with them.
    forget(&node);
    let empty = "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {name: web}\nspec: {routes: []}\n";
    node.write("web.yaml", empty).unwrap();
    let daemon = Daemon::start(&node);
    let status = wait_for_state(&node, &daemon, "policy", "refused");
    assert_eq!(status["digest"], good, "{status:#}\n{}", daemon.log());
    assert!(reachable(&lab));
    daemon.stop(Signal::TERM);

    // A file that was damaged is not believed; the source is.
    forget(&node);
    let file = node.state().join("settled.image");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    node.write("web.yaml", "kind: RoutePolicy\nspec: {routes: [{prefix: 198.51.100.0/33}]}\n").unwrap();
    let daemon = Daemon::start(&node);
    let status = wait_for_state(&node, &daemon, "policy", "invalid");
    assert_eq!(status["generation"], Value::Null, "{status:#}\n{}", daemon.log());
    assert!(daemon.log().contains("cannot be taken up"), "{}", daemon.log());
    node.write("web.yaml", &policy(false, 0)).unwrap();
    wait_for_state(&node, &daemon, "sync", "in-sync");
    daemon.stop(Signal::TERM);

    // Nor does what an operator has taken away come back.
    node.succeed(&["detach", "--auto-approve"]).unwrap();
    assert!(!file.exists());
    node.write("web.yaml", "kind: RoutePolicy\nspec: {routes: [{prefix: 198.51.100.0/33}]}\n").unwrap();
    let daemon = Daemon::start(&node);
    let status = wait_for_state(&node, &daemon, "policy", "invalid");
    assert_eq!(status["generation"], Value::Null, "{status:#}\n{}", daemon.log());
}

#[test]
fn a_daemon_rolls_back_sets_aside_and_goes_on() {
    let (lab, _server) = lab();
    let node = node(&lab, "{window: 2s, interval: 100ms}");
    apply(&node, &[]);
    let before = node.status().unwrap()["digest"].clone();
    let daemon = Daemon::start(&node);
    node.write("web.yaml", &policy(true, 0)).unwrap();
    let status = wait_for(&node, "rolled-back");
    assert_eq!(status["digest"], before, "{status:#}\n{}", daemon.log());
    assert!(reachable(&lab));
    // It stays away while the source does not change.
    daemon.signal(Signal::HUP);
    thread::sleep(SECOND);
    let status = node.status().unwrap();
    assert_eq!((&status["digest"], &status["sync"]["state"]), (&before, &"quarantined".into()), "{status:#}");
    node.write("web.yaml", &policy(false, 9)).unwrap();
    let status = wait_for(&node, "passed");
    assert_eq!(status["sync"]["state"], "in-sync", "{status:#}\n{}", daemon.log());
    assert!(reachable(&lab));
}

#[test]
fn what_a_killed_daemon_left_on_probation_is_decided_by_the_next_one() {
    let (lab, server) = lab();
    // The first daemon is killed before the second failure counts.
    let node = node(&lab, "{window: 60s, interval: 100ms, failures: 100}");
    apply(&node, &[]);
    let before = node.status().unwrap()["digest"].clone();
    let daemon = Daemon::start(&node);
    node.write("web.yaml", &policy(false, 3)).unwrap();
    wait_for(&node, "pending");
    daemon.stop(Signal::KILL);
    drop(server);
    let daemon = Daemon::start(&node);
    let status = wait_for(&node, "rolled-back-unhealthy");
    assert_eq!(status["digest"], before, "{status:#}\n{}", daemon.log());
    assert_eq!(status["health"]["state"], "rolled-back-unhealthy", "{status:#}");
    assert_eq!(probation(&node, "unhealthy")[0]["probe"], "web");
    drop(daemon);
}

#[test]
fn the_last_of_a_hundred_pushes_wins_and_falls_back_to_what_had_proved_itself() {
    let (lab, _server) = lab();
    let node = node(&lab, "{window: 30s, interval: 100ms}");
    apply(&node, &[]);
    let proved = node.status().unwrap();
    let daemon = Daemon::start(&node);
    for push in 1..=100 {
        node.write("web.yaml", &policy(false, push)).unwrap();
        thread::sleep(Duration::from_millis(50));
    }
    let deadline = Instant::now() + 20 * SECOND;
    loop {
        let trace =
            node.succeed(&["trace", "--src", "198.18.0.1", "--dst", "192.0.2.100", "--format", "json"]).unwrap().stdout;
        if serde_json::from_str::<Value>(&trace).unwrap()["verdict"] == "forward" {
            break;
        }
        assert!(Instant::now() < deadline, "{}", daemon.log());
        thread::sleep(Duration::from_millis(50));
    }
    let status = wait_for(&node, "pending");
    assert_eq!(status["probation"]["fallback"], proved["generation"], "{:#}", status["probation"]);
    // A hundred harmless changes later the first harmful one goes back to what had proved itself.
    node.write("web.yaml", &policy(true, 100)).unwrap();
    let status = wait_for(&node, "rolled-back");
    assert_eq!(status["digest"], proved["digest"], "{status:#}\n{}", daemon.log());
    assert!(reachable(&lab));
}
