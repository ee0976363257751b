//! Golden diagnostics: every folder of `diagnostics/` is validated by the binary and its output compared.
//!
//! A case has `policies/`, or `policies.fast-import` for a repository with the branch `main`, with or without a `config.yaml`, and `expected.txt`. A file `NAME.sparse` stands for a file
//! NAME of as many bytes as it says. `WAYLEAVE_BLESS=1` rewrites what is expected.
#![allow(clippy::disallowed_methods, reason = "a test reads its cases and runs the binary")]
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::Path;
use std::process::Command;

use wayleave::policy::Code;

const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/diagnostics");

#[test]
fn every_case_prints_what_was_reviewed() {
    let bless = std::env::var_os("WAYLEAVE_BLESS").is_some();
    let mut wrong = Vec::new();
    for case in cases() {
        let folder = Path::new(CASES).join(&case);
        let got = run(&folder);
        let expected = folder.join("expected.txt");
        if bless {
            fs::write(&expected, &got).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != got {
            wrong.push(format!("--- {case}\n{got}"));
        }
    }
    assert!(wrong.is_empty(), "differs from expected.txt (WAYLEAVE_BLESS=1 rewrites it):\n{}", wrong.join("\n"));
}

#[test]
fn every_code_has_a_case() {
    let all: String =
        cases().iter().map(|c| fs::read_to_string(Path::new(CASES).join(c).join("expected.txt")).unwrap()).collect();
    let missing: Vec<&str> =
        Code::ALL.iter().map(|c| c.number()).filter(|n| !all.contains(&format!("[{n}]"))).collect();
    assert!(missing.is_empty(), "no case shows {missing:?}");
}

fn cases() -> Vec<String> {
    let mut cases: Vec<String> =
        fs::read_dir(CASES).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    cases.sort();
    assert!(cases.len() >= 35, "{} cases", cases.len());
    cases
}

/// What validating the case prints, and how it exits.
fn run(case: &Path) -> String {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(case, copy.path());
    let mut command = Command::new(env!("CARGO_BIN_EXE_wayleave"));
    command.current_dir(copy.path()).arg("validate");
    if case.join("config.yaml").exists() {
        command.args(["--config", "config.yaml"]);
    }
    command.arg("policies");
    let stream = case.join("policies.fast-import");
    if stream.exists() {
        import(&copy.path().join("policies"), &stream);
        command.args(["--ref", "main"]);
    }
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let exit = output.status.code().unwrap();
    format!("{}{}exit {exit}\n", text(output.stdout), text(output.stderr))
}

/// Makes a bare repository from a stream of git-fast-import(1).
fn import(repository: &Path, stream: &Path) {
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .arg("-C")
            .arg(repository)
            .args(arguments);
        assert!(git.stdin(fs::File::open(stream).unwrap()).status().unwrap().success(), "{arguments:?}");
    };
    fs::create_dir(repository).unwrap();
    git(&["init", "--quiet", "--bare"]);
    git(&["fast-import", "--quiet"]);
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path()).unwrap(), target).unwrap();
        } else if kind.is_dir() {
            fs::create_dir(&target).unwrap();
            copy_folder(&entry.path(), &target);
        } else if target.extension().is_some_and(|ending| ending == "sparse") {
            let bytes = fs::read_to_string(entry.path()).unwrap().trim().parse().unwrap();
            fs::File::create(target.with_extension("")).unwrap().set_len(bytes).unwrap();
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
