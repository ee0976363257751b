//! Golden plans: every folder of `plan_cases/` holds two sources, and the plan that leads from one to the other as a
//! person reads it. `WAYLEAVE_BLESS=1` rewrites what is expected.
#![allow(clippy::disallowed_methods, reason = "a test reads its cases and runs the binary")]
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs `wayleave plan` in the case's folder: stdout, what stderr says, and the detailed exit code.
fn plan(case: &Path, format: &str) -> (String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_wayleave"))
        .args(["plan", "--detailed-exitcode", "--format", format, "desired"])
        // `live` would be the kernel: `./live` is the folder.
        .args(["--from", "./live"])
        .current_dir(case)
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    (stdout, format!("{stderr}exit {}\n", output.status.code().unwrap()))
}

#[test]
fn every_plan_reads_as_it_should() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plan_cases");
    let mut seen = 0;
    let mut failures = Vec::new();
    let mut names: Vec<_> = fs::read_dir(&cases).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    for case in names {
        let (stdout, rest) = plan(&case, "human");
        let text = format!("{stdout}{rest}");
        let expected = case.join("plan.txt");
        if std::env::var_os("WAYLEAVE_BLESS").is_some() {
            fs::write(&expected, &text).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != text {
            failures.push(format!("{}:\n{text}", case.display()));
        }
        seen += 1;
    }
    assert!(seen >= 10, "only {seen} cases: the test looks at the wrong place");
    assert!(failures.is_empty(), "not as expected (WAYLEAVE_BLESS=1 rewrites):\n{}", failures.join("\n"));
}

#[test]
fn the_json_form_says_the_same() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plan_cases/a-route-becomes-a-drop");
    let (stdout, rest) = plan(&case, "json");
    assert_eq!(rest, "exit 2\n");
    let plan: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(plan["format_version"], 1);
    assert_eq!(plan["summary"]["change"], 2);
    let change = &plan["changes"][1];
    assert_eq!(change["action"], "change");
    assert_eq!(change["kind"], "route");
    assert_eq!(change["key"], "10.30.0.0/16");
    assert_eq!(change["after"], "drop");
    assert_eq!(change["file"], "offices.yaml");
    assert_eq!(change["line"], 10);
    for key in ["from", "to", "effect"] {
        assert!(plan[key].is_object(), "{key}");
    }
}
