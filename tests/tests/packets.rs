//! The packet corpus of `tests/packets`, run by the library and by the program in this kernel.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;

use wayleave_tests::corpus::{Program, load, run_in_kernel, run_library};
use wayleave_tests::{Bpffs, require_root_and_bpf};

/// What the corpus promises to hold.
const CASES_MIN: usize = 715;

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

fn check(program: Program) {
    require_root_and_bpf().unwrap();
    let themes = load(directory()).unwrap();
    let bpffs = Bpffs::mount().unwrap();
    let pins = bpffs.path().join("corpus");
    let report = run_in_kernel(&themes, program, &pins).unwrap();
    let report = report.into_result().unwrap_or_else(|error| panic!("{error}"));
    println!("{} cases of {} files; left out:\n{}", report.ran, themes.len(), report.left_out.join("\n"));
    assert!(report.ran >= CASES_MIN, "only {} cases were run by the program", report.ran);
    assert!(!pins.exists(), "the run left pins behind");
}

#[test]
fn the_xdp_program_decides_every_packet_as_the_corpus_says() {
    check(Program::Xdp);
}

#[test]
fn the_xdp_program_for_several_buffers_decides_every_packet_as_the_corpus_says() {
    check(Program::Frags);
}

#[test]
fn the_tc_program_decides_every_packet_as_the_corpus_says() {
    check(Program::Tc);
}
