//! The scenarios of `tests/scenarios`: what people type on a node, in a review and in CI, and what they see.
//!
//! `WAYLEAVE_BLESS=1` rewrites what is expected; `SCENARIO=NAME` runs one.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::Path;

use wayleave_tests::require_root_and_bpf;
use wayleave_tests::scenario::Scenario;

/// The first line that differs, with both sides.
fn difference(expected: &str, found: &str) -> String {
    let number = expected.lines().zip(found.lines()).take_while(|(a, b)| a == b).count();
    let from = |text: &str| text.lines().skip(number.saturating_sub(3)).take(12).collect::<Vec<_>>().join("\n    ");
    format!("line {}, expected\n    {}\n  found\n    {}", number + 1, from(expected), from(found))
}

#[test]
fn every_scenario_goes_as_it_is_written() {
    require_root_and_bpf().unwrap();
    let only = std::env::var("SCENARIO").ok();
    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios"));
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    let mut wrong = Vec::new();
    let mut ran = 0;
    for path in paths {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        ran += 1;
        println!("{name}");
        let expected = fs::read_to_string(&path).unwrap();
        let found = Scenario::parse(&expected).and_then(|scenario| scenario.run());
        match found {
            Err(error) => wrong.push(format!("{name}: {error:#}")),
            Ok(found) if found == expected => {}
            Ok(found) if std::env::var_os("WAYLEAVE_BLESS").is_some() => fs::write(&path, found).unwrap(),
            Ok(found) => wrong.push(format!("{name}: {}", difference(&expected, &found))),
        }
    }
    assert!(ran > 0, "there is no such scenario");
    assert!(wrong.is_empty(), "not as written (WAYLEAVE_BLESS=1 rewrites it):\n{}", wrong.join("\n"));
}
