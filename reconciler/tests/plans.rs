//! Golden plans: every folder of `plan_cases/` holds two sources, and the plan that leads from one to the other as a
//! person reads it, seen by the node of a `config.yaml` where there is one; and as a comment where there is a `plan.md`.
//! `WAYLEAVE_BLESS=1` rewrites what is expected.
#![allow(clippy::disallowed_methods, reason = "a test reads its cases and runs the binary")]
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs `wayleave plan` in the case's folder: stdout, what stderr says, and the detailed exit code.
fn plan(case: &Path, format: &str) -> (String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wayleave"));
    command
        .args(["plan", "--detailed-exitcode", "--format", format, "desired"])
        // `live` would be the kernel: `./live` is the folder.
        .args(["--from", "./live"])
        .current_dir(case);
    if case.join("config.yaml").exists() {
        command.args(["--node-config", "config.yaml"]);
    }
    let output = command.output().unwrap();
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
        let comment = case.join("plan.md");
        if comment.exists() {
            let (text, _) = plan(&case, "markdown");
            if std::env::var_os("WAYLEAVE_BLESS").is_some() {
                fs::write(&comment, &text).unwrap();
            } else if fs::read_to_string(&comment).unwrap() != text {
                failures.push(format!("{}:\n{text}", comment.display()));
            }
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

/// A list of many routes, and the same with each next hop moved.
fn many(folder: &Path, routes: u32, hop: &str) {
    let policy = "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {name: many}\nspec:\n  nextHops:\n    \
        - {name: edge-a, via: 192.0.2.1, port: uplink}\n    - {name: edge-b, via: 192.0.2.2, port: uplink}\n  routes:\n    \
        - {prefixesFrom: list.txt}\n    - {prefix: 172.16.0.0/12, nextHops: [{name: edge-a}, {name: edge-b}]}\n";
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("many.yaml"), policy).unwrap();
    let list: String = (0..routes).map(|i| format!("10.{}.{}.0/24,{hop}\n", i / 256, i % 256)).collect();
    fs::write(folder.join("list.txt"), list).unwrap();
}

fn run(folder: &Path, arguments: &[&str]) -> (String, String, i32) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wayleave"));
    let output = command.args(arguments).current_dir(folder).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code().unwrap())
}

#[test]
fn a_comment_fits_and_says_what_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    many(&folder.path().join("old"), 5_000, "edge-a");
    many(&folder.path().join("new"), 4_000, "edge-b");
    let (comment, _, code) = run(folder.path(), &["plan", "--from", "./old", "new", "--format", "markdown"]);
    assert_eq!(code, 0);
    assert!(comment.len() <= 65_535 && comment.len() > 60_000, "{} bytes", comment.len());
    let first = comment.lines().next().unwrap();
    assert_eq!(first, "**Plan: 0 to add, 4000 to change, 1000 to remove.** **Apply would be refused: removals.**");
    assert!(comment.contains("- 1,280,000 IPv4 addresses change: 256,000 lose their route, 1,024,000 go elsewhere\n"));
    let shown = comment.lines().filter(|line| line.starts_with("! route") || line.starts_with("- route")).count();
    assert!(comment.contains(&format!("{} of 5000 changes were cut;", 5_000 - shown)), "{comment}");
    assert_eq!(comment.matches("<details>").count(), comment.matches("</details>").count());
    assert_eq!(comment.matches("```").count() % 2, 0);
}

#[test]
fn a_saved_plan_is_shown_again_when_everything_else_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    many(&folder.path().join("old"), 50, "edge-a");
    many(&folder.path().join("new"), 20, "edge-b");
    let args = ["plan", "--from", "./old", "new"];
    let (human, _, _) = run(folder.path(), &args);
    let (markdown, _, _) = run(folder.path(), &[&args[..], &["--format", "markdown"]].concat());
    let (json, _, _) = run(folder.path(), &[&args[..], &["--format", "json"]].concat());
    let (shown, said, code) =
        run(folder.path(), &[&args[..], &["--out", "saved.json", "--detailed-exitcode"]].concat());
    assert_eq!((shown.as_str(), said.as_str(), code), (human.as_str(), "plan saved to saved.json\n", 2));
    for gone in ["old", "new"] {
        fs::remove_dir_all(folder.path().join(gone)).unwrap();
    }
    let show = ["plan", "--show", "saved.json"];
    assert_eq!(run(folder.path(), &show), (human, String::new(), 0));
    assert_eq!(run(folder.path(), &[&show[..], &["--format", "markdown"]].concat()).0, markdown);
    assert_eq!(
        run(folder.path(), &[&show[..], &["--format", "json", "--detailed-exitcode"]].concat()),
        (json, String::new(), 2)
    );
    for (text, why) in
        [("", "empty"), ("{}", "no plan"), ("[1]", "no object"), (r#"{"format_version": 2}"#, "another version")]
    {
        fs::write(folder.path().join("saved.json"), text).unwrap();
        let (_, said, code) = run(folder.path(), &show);
        assert_eq!(code, 1, "{why}");
        assert!(said.contains("is not a plan that this version of wayleave reads"), "{why}: {said}");
    }
    assert_eq!(run(folder.path(), &["plan", "--show", "saved.json", "--from", "./old"]).2, 64);
}

/// A repository with one commit on main and another on a branch; the policies lie in `policies/`.
fn repository(folder: &Path) {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]);
        let status = command.args(arguments).current_dir(folder).output().unwrap();
        assert!(status.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&status.stderr));
    };
    git(&["init", "-q", "-b", "main"]);
    many(&folder.join("policies"), 30, "edge-a");
    git(&["add", "."]);
    git(&["commit", "-qm", "thirty"]);
    git(&["tag", "v1.0.0"]);
    git(&["checkout", "-qb", "fewer"]);
    many(&folder.join("policies"), 28, "edge-a");
    git(&["commit", "-qam", "twenty-eight"]);
}

#[test]
fn revisions_are_compared_without_a_checkout() {
    let folder = tempfile::tempdir().unwrap();
    repository(folder.path());
    let fewer = "- route 10.0.28.0/24: edge-a via 192.0.2.1 port uplink  [list.txt:29]\n";
    let check = |at: &Path, arguments: &[&str], expected: &str| {
        let (plan, said, code) = run(at, &[&["plan", "--detailed-exitcode"], arguments].concat());
        assert_eq!(code, if expected.is_empty() { 0 } else { 2 }, "{arguments:?}: {plan}{said}");
        assert!(plan.contains(expected), "{arguments:?}: {plan}");
    };
    let policies = folder.path().join("policies");
    check(folder.path(), &["--from", "main", "--to", "fewer", "--subpath", "policies"], fewer);
    check(&policies, &["--from", "main", "--to", "fewer"], fewer);
    check(&policies, &["--from", "HEAD~1", "HEAD"], fewer);
    check(&policies, &["--from", "v1.0.0", "."], fewer);
    check(&policies, &["--from", "v1.0.0", "main"], "");
    let other = tempfile::tempdir().unwrap();
    let repo = folder.path().to_str().unwrap();
    check(other.path(), &["--repo", repo, "--subpath", "policies", "--from", "main", "fewer"], fewer);
    let (_, said, code) = run(&policies, &["plan", "--from", "no-such-branch", "main"]);
    assert_eq!(code, 1);
    assert!(said.contains("`no-such-branch` is no directory, and not a revision"), "{said}");
    let (_, said, code) = run(&policies, &["validate", "fewer"]);
    assert_eq!(code, 0, "{said}");
    let trace = ["trace", "--against", "main", "--src", "198.18.0.1", "--dst", "10.0.29.1"];
    assert!(run(&policies, &trace).0.contains("[list.txt:30]"));
    // The trailer of the newest commit says that a removal is meant.
    many(&policies, 10, "edge-a");
    let commit = |message: &str, more: &[&str]| {
        let arguments =
            [&["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qam", message], more].concat();
        assert!(Command::new("git").args(arguments).current_dir(&policies).status().unwrap().success());
    };
    commit("ten", &[]);
    check(&policies, &["--from", "main", "HEAD"], "Apply would be refused by the guard removals: 20 of 31 routes");
    commit("ten\n\nWayleave-Allow: removals", &["--amend"]);
    check(&policies, &["--from", "main", "HEAD"], "to change, 20 to remove.\n");
    assert!(!run(&policies, &["plan", "--from", "main", "HEAD"]).0.contains("refused"));
    // A fault is shown with its line, which is in no file of the working tree.
    fs::write(policies.join("list.txt"), "10.0.0.1/8,edge-a\n").unwrap();
    commit("broken", &[]);
    fs::write(policies.join("list.txt"), "").unwrap();
    let (_, said, code) = run(&policies, &["plan", "--from", "main", "HEAD"]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("1 | 10.0.0.1/8,edge-a"), "{said}");
}
