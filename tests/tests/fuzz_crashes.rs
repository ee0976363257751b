//! Inputs that once made a fuzz target panic, and the seeds: none of them does.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::Path;

use wayleave_tests::fuzz::TARGETS;

#[test]
fn no_crash_comes_back() {
    let crashes = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/crashes");
    let mut replayed = 0;
    for (name, target) in TARGETS {
        for entry in fs::read_dir(crashes.join(name)).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with(".gitkeep") {
                continue;
            }
            // Seen when the test stops, and only then.
            println!("replaying {}", path.display());
            target(&fs::read(&path).unwrap());
            replayed += 1;
        }
    }
    assert!(replayed > 0, "no input is kept: the test looks at the wrong place");
}

#[test]
fn no_seed_is_a_crash() {
    let seeds = tempfile::tempdir().unwrap();
    wayleave_tests::fuzz::write_seeds(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), seeds.path()).unwrap();
    for (name, target) in TARGETS {
        let mut seen = 0;
        for entry in fs::read_dir(seeds.path().join(name)).unwrap() {
            let path = entry.unwrap().path();
            println!("seed {}", path.display());
            target(&fs::read(&path).unwrap());
            seen += 1;
        }
        assert!(seen > 0, "the target {name} has no seed");
    }
}
