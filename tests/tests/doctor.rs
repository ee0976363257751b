//! `wayleave doctor` on a router that can do it, and on ones that cannot.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;
use wayleave_tests::{Bpffs, Namespace, Offload, Topology, require_root_and_bpf};

/// The program, which `./dev test kernel` builds before it runs the tests.
fn wayleave() -> PathBuf {
    // The test is target/PROFILE/deps/doctor-HASH.
    let path = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("release/wayleave");
    assert!(path.is_file(), "{} is missing; build it with `./dev build`", path.display());
    path
}

/// Writes a node's configuration and a policy, and returns the configuration's path.
fn configuration(folder: &Path, bpffs: &Path, uplink: &str) -> PathBuf {
    let policies = folder.join("policies");
    fs::create_dir_all(&policies).unwrap();
    let policy = "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {name: one}\nspec:\n  \
                  nextHops: [{name: a, via: 10.77.1.2, port: uplink}]\n  \
                  routes: [{prefix: 198.51.100.0/24, nextHops: [{name: a}]}]\n";
    fs::write(policies.join("one.yaml"), policy).unwrap();
    let path = folder.join("config.yaml");
    let text = format!(
        "apiVersion: wayleave/v1\nkind: NodeConfig\nmetadata: {{name: router}}\nspec:\n  \
         source: {{directory: policies}}\n  ports: {{lan: {{device: lan}}, uplink: {{device: {uplink}}}}}\n  \
         bpffs: {}/wayleave\n",
        bpffs.display()
    );
    fs::write(&path, text).unwrap();
    path
}

fn doctor(router: &Namespace, config: &Path) -> (Output, Vec<(String, String)>) {
    let arguments = ["doctor", "--format", "json", "--config"];
    let output = router.command(wayleave()).args(arguments).arg(config).output().unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["ok"], output.status.success());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let checks = document["checks"].as_array().unwrap();
    let checks = checks.iter().map(|check| (text(&check["state"]), text(&check["what"]))).collect();
    (output, checks)
}

fn states(checks: &[(String, String)], about: &str) -> Vec<String> {
    checks.iter().filter(|(_, what)| what.contains(about)).map(|(state, _)| state.clone()).collect()
}

/// Whether the kernel says what drivers can do: Linux 6.3 and newer.
fn kernel_tells_of_drivers() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 3)
}

#[test]
fn a_router_that_can_do_it_is_told_so() {
    require_root_and_bpf().unwrap();
    let (lab, bpffs, folder) = (Topology::router().unwrap(), Bpffs::mount().unwrap(), tempfile::tempdir().unwrap());
    // The kernel itself may put files into a new one.
    let pinned = fs::read_dir(bpffs.path()).unwrap().count();
    let config = configuration(folder.path(), bpffs.path(), "upa");
    let (output, checks) = doctor(&lab.router, &config);
    assert_eq!(output.status.code(), Some(0), "{checks:?}");
    for about in ["image maps", "the program loads and runs", "IPv4", "IPv6", "bpf file system", "valid"] {
        let states = states(&checks, about);
        assert!(!states.is_empty() && states.iter().all(|state| state == "ok"), "{about}: {checks:?}");
    }
    for port in ["port lan", "port uplink"] {
        if kernel_tells_of_drivers() {
            assert_eq!(states(&checks, port), ["ok"], "{checks:?}");
        } else {
            assert_eq!(states(&checks, port), ["warn"], "{checks:?}");
            assert_eq!(states(&checks, "does not say what its driver can do"), ["warn", "warn"], "{checks:?}");
        }
    }
    assert_eq!(fs::read_dir(bpffs.path()).unwrap().count(), pinned, "it pinned something");
}

#[test]
fn every_obstacle_is_named() {
    require_root_and_bpf().unwrap();
    let (lab, folder) = (Topology::router().unwrap(), tempfile::tempdir().unwrap());
    let config = configuration(folder.path(), folder.path(), "nowhere");
    fs::write(folder.path().join("policies/two.yaml"), "apiVersion: [").unwrap();
    lab.router.set_forwarding(false).unwrap();
    // Without GRO at its peer a veth takes no redirected frames.
    lab.client.namespace.set_offload("eth0", Offload::Gro, false).unwrap();
    let (output, checks) = doctor(&lab.router, &config);
    assert_eq!(output.status.code(), Some(1), "{checks:?}");
    let target = if kernel_tells_of_drivers() { "as it is set up now" } else { "this kernel does not say" };
    for (about, state) in [
        ("does not forward IPv4", "warn"),
        ("does not forward IPv6", "warn"),
        ("does not lie on a bpf file system", "fail"),
        (&*format!("port lan on lan: {target}"), "warn"),
        ("port uplink on nowhere: there is no such device", "fail"),
        ("the policies in", "fail"),
    ] {
        let found = states(&checks, about);
        assert_eq!(found, [state], "{about}: {checks:?}");
    }
}

#[test]
fn without_root_it_says_what_it_could_not_check() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join("wayleave");
    fs::copy(wayleave(), &copy).unwrap();
    let output = std::process::Command::new(&copy).arg("doctor").uid(65_534).gid(65_534).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("warn  not checked: image maps, loading the program  — run doctor as root"), "{text}");
    assert!(text.lines().all(|line| ["ok    ", "warn  ", "fail  "].iter().any(|s| line.starts_with(s))), "{text}");
}
