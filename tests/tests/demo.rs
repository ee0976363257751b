//! `wayleave demo` as a user runs it: what it shows, and that it leaves nothing behind however it ends.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use wayleave::kernel::probe;
use wayleave_tests::require_root_and_bpf;

/// Namespaces and what is pinned in them are freed by kernel workers, a moment after the process has ended.
const ENOUGH: Duration = Duration::from_secs(20);
/// The overflow user, which owns nothing.
const NOBODY: u32 = 65_534;

/// The program, which `./dev test kernel` builds before it runs the tests.
fn wayleave() -> PathBuf {
    // The test is target/PROFILE/deps/demo-HASH.
    let deps = std::env::current_exe().unwrap();
    let path = deps.ancestors().nth(3).unwrap().join("release/wayleave");
    assert!(path.is_file(), "{} is missing; build it with `./dev build`", path.display());
    path
}

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(wayleave());
    command.arg("demo").args(arguments);
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What a demo could leave on the machine.
#[derive(Debug, PartialEq, Eq)]
struct Machine {
    mounts: String,
    named_namespaces: BTreeSet<String>,
    /// Network namespaces that some process is in or holds.
    namespaces: BTreeSet<String>,
    temporary: BTreeSet<String>,
    pins: BTreeSet<String>,
    /// Programs called `wayleave` that are loaded.
    programs: usize,
}

impl Machine {
    fn look() -> Self {
        let names = |path: &str| -> BTreeSet<String> {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        let mut namespaces = BTreeSet::new();
        for pid in names("/proc").into_iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) {
            for link in [format!("/proc/{pid}/ns/net")]
                .into_iter()
                .chain(names(&format!("/proc/{pid}/fd")).into_iter().map(|fd| format!("/proc/{pid}/fd/{fd}")))
            {
                let target = fs::read_link(link).map(|target| target.to_string_lossy().into_owned());
                namespaces.extend(target.ok().filter(|target| target.starts_with("net:")));
            }
        }
        Self {
            mounts: fs::read_to_string("/proc/self/mounts").unwrap(),
            named_namespaces: names("/run/netns"),
            namespaces,
            temporary: names(std::env::temp_dir().to_str().unwrap()),
            pins: names("/sys/fs/bpf"),
            programs: probe::loaded().unwrap(),
        }
    }

    /// Compares with the machine as it was before, once the kernel had time to free things.
    fn assert_unchanged(&self) {
        let deadline = Instant::now() + ENOUGH;
        loop {
            let now = Self::look();
            if now == *self {
                return;
            }
            assert!(Instant::now() < deadline, "left behind:\nbefore {self:#?}\nafter {now:#?}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn the_demo_holds_what_it_claims_and_leaves_nothing() {
    require_root_and_bpf().unwrap();
    let before = Machine::look();
    let started = Instant::now();
    let output = demo(&[]).output().unwrap();
    let (text, took) = (text(&output), started.elapsed());
    assert_eq!(output.status.code(), Some(0), "{text}");
    for line in [
        "[ok] the client reaches the router",
        "[ok] it does not reach the service: nothing routes it yet",
        "$ wayleave apply --config node.yaml --auto-approve",
        "[ok] generation 1 is live in the kernel",
        "[ok] 400 of 400 answers came from the edge that the live rules name",
        "[ok] the counter drop/route-drop went up by 25",
        "256 IPv4 addresses change: 256 go elsewhere",
        "[ok] no packet was lost",
        "[ok] apply refuses it with exit code 3; generation 2 is still live",
        "[ok] generation 3 is live",
        "checks held.",
    ] {
        assert!(text.contains(line), "`{line}` is not in\n{text}");
    }
    assert!(!text.contains("FAILED") && !text.contains("SIMULATED"), "{text}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    before.assert_unchanged();
}

#[test]
fn without_root_every_line_says_that_it_is_simulated() {
    require_root_and_bpf().unwrap();
    let before = Machine::look();
    // A copy, since the user may not be allowed to look where the program lies.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join("wayleave");
    fs::copy(wayleave(), &copy).unwrap();
    for (arguments, reason) in
        [(&["demo"][..], "run it as root to see the kernel do it"), (&["demo", "--simulate"], "--simulate was given")]
    {
        let output = Command::new(&copy).args(arguments).uid(NOBODY).gid(NOBODY).current_dir("/").output().unwrap();
        check_simulated(&output, reason);
    }
    check_simulated(&demo(&["--simulate"]).output().unwrap(), "--simulate was given");
    drop(folder);
    before.assert_unchanged();
}

fn check_simulated(output: &Output, reason: &str) {
    let text = text(output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.lines().count() > 50 && text.lines().all(|line| line.starts_with("SIMULATED")), "{text}");
    assert!(text.contains(reason) && text.contains("checks held."), "{text}");
}

/// Ends a demo with `signal` when it has said `line`; nothing stays.
fn ended_by(signal: Signal, line: &str) {
    require_root_and_bpf().unwrap();
    let before = Machine::look();
    let mut child = demo(&[]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|said| said.unwrap().contains(line)), "the demo never said `{line}`");
    kill_process(Pid::from_child(&child), signal).unwrap();
    // A reader stays, so that the demo does not end for want of one.
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(signal.as_raw()), "it was not stopped in the middle: {rest:?}");
    before.assert_unchanged();
}

#[test]
fn ctrl_c_in_the_middle_leaves_nothing() {
    ended_by(Signal::INT, "generation 1 is live in the kernel");
}

#[test]
fn a_termination_request_leaves_nothing() {
    ended_by(Signal::TERM, "The swap, while packets flow");
}

#[test]
fn a_kill_while_it_makes_its_network_leaves_nothing() {
    ended_by(Signal::KILL, "A network: four namespaces");
}

#[test]
fn a_kill_while_packets_flow_leaves_nothing() {
    ended_by(Signal::KILL, "Back to the rules of before");
}
