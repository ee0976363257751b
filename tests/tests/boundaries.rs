//! Invariants that are absences: who must not use what.

use std::fs;
use std::path::{Path, PathBuf};

/// Rust files below `directory` of the workspace, with their text.
fn sources(directory: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    let mut open = vec![root.join(directory)];
    while let Some(path) = open.pop() {
        for entry in fs::read_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())) {
            let path = entry.expect("an entry of a readable directory").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                found.push((path.strip_prefix(&root).expect("below the root").to_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "no sources below {directory}: the test looks at the wrong place");
    found
}

/// Files below `directory` that mention one of `words` outside comments, except below `allowed`.
fn offenders(directory: &str, words: &[&str], allowed: &[&str]) -> Vec<String> {
    sources(directory)
        .into_iter()
        .filter(|(path, _)| !allowed.iter().any(|a| path.starts_with(a)))
        .filter(|(_, text)| {
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            code.into_iter().any(|line| words.iter().any(|word| line.contains(word)))
        })
        .map(|(path, _)| path.display().to_string())
        .collect()
}

#[test]
fn only_the_kernel_module_uses_aya() {
    assert!(!offenders("reconciler/src", &["aya::", "aya_obj::"], &[]).is_empty(), "the search finds nothing at all");
    assert_eq!(offenders("reconciler/src", &["aya::", "aya_obj::"], &["reconciler/src/kernel"]), [""; 0]);
}

#[test]
fn only_the_document_module_derives_deserialize() {
    let derives = ["Deserialize)", "Deserialize,", "Deserialize}", "Deserialize;"];
    let document = "reconciler/src/policy/document.rs";
    assert!(
        offenders("reconciler/src", &derives, &[]).contains(&document.to_owned()),
        "the search finds nothing at all"
    );
    assert_eq!(offenders("reconciler/src", &derives, &[document]), [""; 0]);
}

#[test]
fn the_shared_crate_is_safe_and_featureless() {
    assert_eq!(offenders("bpf/fib/src", &["unsafe {", "unsafe fn", "cfg(feature", "extern crate alloc"], &[]), [""; 0]);
    let lib = sources("bpf/fib/src").into_iter().find(|(path, _)| path.ends_with("lib.rs")).expect("lib.rs").1;
    assert!(lib.contains("#![forbid(unsafe_code)]") && lib.contains("#![no_std]"));
}

#[test]
fn decisions_know_no_clock_and_no_file() {
    let words = ["std::fs", "SystemTime", "Instant::now", "std::env", "tokio::", "rustix::"];
    for pure in ["compile", "plan", "trace", "reconcile"] {
        let tests = format!("reconciler/src/{pure}/tests.rs");
        let parts = ["reconciler/src/compile/group/tests.rs", "reconciler/src/compile/service/tests.rs"];
        let allowed = [&tests, parts[0], parts[1], "reconciler/src/reconcile/schedule.rs"];
        let found = offenders(&format!("reconciler/src/{pure}"), &words, &allowed);
        assert_eq!(found, [""; 0], "{pure}");
    }
}
