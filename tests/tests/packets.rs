//! The packet corpus of `tests/packets`, run by the library and by the program in this kernel.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;

use wayleave_tests::corpus::{load, run_in_kernel, run_library};
use wayleave_tests::{Bpffs, require_root_and_bpf};

/// What the corpus promises to hold.
const CASES_MIN: usize = 120;

fn directory() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/packets"))
}

#[test]
fn the_library_decides_every_packet_as_the_corpus_says() {
    let themes = load(directory()).unwrap();
    let report = run_library(&themes).unwrap().into_result().unwrap_or_else(|error| panic!("{error}"));
    println!("{} cases of {} files", report.ran, themes.len());
    assert!(report.ran >= CASES_MIN, "the corpus has only {} cases", report.ran);
}

#[test]
fn the_program_decides_every_packet_as_the_corpus_says() {
    require_root_and_bpf().unwrap();
    let themes = load(directory()).unwrap();
    let bpffs = Bpffs::mount().unwrap();
    let pins = bpffs.path().join("corpus");
    let report = run_in_kernel(&themes, &pins).unwrap();
    let report = report.into_result().unwrap_or_else(|error| panic!("{error}"));
    println!("{} cases of {} files; only by the library:\n{}", report.ran, themes.len(), report.left_out.join("\n"));
    assert!(report.ran >= CASES_MIN, "only {} cases were run by the program", report.ran);
    assert!(!pins.exists(), "the run left pins behind");
}
