//! Golden policy tests: every folder of `test_cases/` is tested by the binary, offline, and its output compared.
//!
//! A case has `policies/`, with or without the `config.yaml` of a node, and `expected.txt`. `WAYLEAVE_BLESS=1` rewrites what
//! is expected.
#![allow(clippy::disallowed_methods, reason = "a test reads its cases and runs the binary")]
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/test_cases");

/// Runs `wayleave test` in the folder of a case: stdout, stderr, exit code.
fn test(case: &Path, arguments: &[&str]) -> (String, String, i32) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wayleave"));
    command.arg("test").args(arguments).arg("policies").current_dir(case);
    if case.join("config.yaml").exists() {
        command.args(["--node-config", "config.yaml"]);
    }
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code().unwrap())
}

fn case(name: &str) -> PathBuf {
    Path::new(CASES).join(name)
}

#[test]
fn every_case_prints_what_was_reviewed() {
    let mut wrong = Vec::new();
    let mut names: Vec<PathBuf> = fs::read_dir(CASES).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    assert!(names.len() >= 4, "{} cases", names.len());
    for case in names {
        let (stdout, stderr, code) = test(&case, &[]);
        let got = format!("{stdout}{stderr}exit {code}\n");
        let expected = case.join("expected.txt");
        if std::env::var_os("WAYLEAVE_BLESS").is_some() {
            fs::write(&expected, &got).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != got {
            wrong.push(format!("--- {}\n{got}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "differs from expected.txt (WAYLEAVE_BLESS=1 rewrites it):\n{}", wrong.join("\n"));
}

#[test]
fn the_json_form_has_every_case() {
    let (json, _, code) = test(&case("some-fail"), &["--format", "json"]);
    assert_eq!(code, 3);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["format_version"], 1);
    assert_eq!(report["summary"], serde_json::json!({"passed": 1, "failed": 3, "left_out": 0}));
    let first = &report["cases"][0];
    assert_eq!(first["file"], "tests.yaml");
    assert_eq!(first["line"], 6);
    assert_eq!(first["result"], "failed");
    assert_eq!(first["expected"], "drop");
    assert!(first["got"].as_str().unwrap().starts_with("forward, reason forwarded, next hop offices/edge-"));
}

#[test]
fn the_junit_form_is_well_formed_and_counts() {
    let (xml, _, code) = test(&case("some-fail"), &["--format", "junit"]);
    assert_eq!(code, 3);
    assert!(xml.starts_with(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites tests=\"4\" failures=\"3\" skipped=\"0\">"
    ));
    assert_eq!(xml.matches("<testcase ").count(), 4);
    assert_eq!(xml.matches("<failure ").count(), 3);
    assert!(xml.contains("name=\"198.18.0.1 → 10.20.3.4, tcp 0 → 0, ttl 64, 40 bytes\""), "{xml}");
    assert!(xml.contains("file=\"tests.yaml\" line=\"6\""), "{xml}");
    let mut open = Vec::new();
    for tag in xml.split('<').skip(2).map(|rest| rest.split('>').next().unwrap()) {
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name)),
            None if tag.ends_with('/') => {}
            None => open.push(tag.split(' ').next().unwrap()),
        }
    }
    assert_eq!(open, Vec::<&str>::new());
}

#[test]
fn tests_change_no_byte_of_the_rules() {
    let folder = tempfile::tempdir().unwrap();
    let (with, without) = (folder.path().join("with"), folder.path().join("without"));
    for (to, files) in [(&with, &["offices.yaml", "tests.yaml"][..]), (&without, &["offices.yaml"])] {
        fs::create_dir(to).unwrap();
        for file in files {
            fs::copy(case("some-fail").join("policies").join(file), to.join(file)).unwrap();
        }
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_wayleave"));
    command.args(["plan", "--from", "./without", "with", "--format", "json"]).current_dir(folder.path());
    let plan: serde_json::Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    assert_eq!(plan["from"]["digest"], plan["to"]["digest"]);
    assert_eq!(plan["tests"]["failed"], 3);
}

#[test]
fn every_example_is_valid_for_its_nodes_and_its_tests_hold() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut seen = 0;
    let run = |folder: &Path, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wayleave"));
        let output = command.args(arguments).current_dir(folder).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?} in {}: {said}", folder.display());
        assert!(!said.contains("warning"), "{arguments:?} in {}: {said}", folder.display());
    };
    for example in fs::read_dir(root.join("examples")).unwrap().map(|e| e.unwrap().path()) {
        if !example.join("policies").is_dir() {
            continue;
        }
        run(&example, &["validate", "policies"]);
        run(&example, &["test", "policies"]);
        for file in fs::read_dir(&example).unwrap().map(|e| e.unwrap().path()) {
            if file.extension().is_some_and(|ending| ending == "yaml") {
                let node = file.to_str().unwrap();
                run(&example, &["validate", "--node-config", node, "policies"]);
                run(&example, &["test", "--node-config", node, "policies"]);
                seen += 1;
            }
        }
    }
    assert!(seen >= 5, "{seen} nodes");
    run(&root, &["validate", "policies"]);
}
