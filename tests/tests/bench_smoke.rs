//! The benchmark runs from end to end, and `results.json` has the shape that its readers expect.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;

use wayleave_tests::require_root_and_bpf;

#[test]
fn bench_compares_with_every_peer_and_writes_results() {
    require_root_and_bpf().unwrap();
    let out = tempfile::tempdir().unwrap();
    let bench = Path::new(env!("CARGO_BIN_EXE_bench"));
    // `cargo test` builds this package's programs, not the one that `apply` is measured with.
    let wayleave = bench.with_file_name("wayleave");
    assert!(wayleave.is_file(), "{} is not there: build it with `./dev build`", wayleave.display());
    let output = Command::new(bench).args(["--quick", "--out"]).arg(out.path()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.starts_with(|c: char| c.is_alphanumeric()) && stdout.contains("; Linux "), "{stdout}");

    let text = std::fs::read_to_string(out.path().join("results.json")).unwrap();
    let results: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let mut peers = Vec::new();
    for row in &results {
        let text = |key: &str| row[key].as_str().unwrap_or_else(|| panic!("{key} of {row}"));
        let figure = |key: &str| row[key].as_f64().filter(|v| *v > 0.0).unwrap_or_else(|| panic!("{key} of {row}"));
        assert_eq!(row.as_object().unwrap().len(), 6, "{row}");
        let (ours, peer, ratio) = (figure("ours"), figure("peer"), figure("ratio"));
        // More packets are better, of everything else less is.
        let expected = if text("unit") == "Mpps" { ours / peer } else { peer / ours };
        assert!((ratio - expected).abs() < 1e-9 * expected, "{row}");
        peers.push((text("name").split([' ', ',']).next().unwrap().to_owned(), text("peer_name").to_owned()));
    }
    for (name, peer) in [
        ("time", "ip -batch"),
        ("time", "LPM_TRIE"),
        ("lookup", "LPM_TRIE"),
        ("lookup", "bpf_fib_lookup"),
        ("lookup", "DIR-24-8"),
        ("bytes", "LPM_TRIE"),
        ("forwarding", "the kernel's own forwarding"),
        ("forwarding", "XDP without any lookup"),
    ] {
        assert!(peers.iter().any(|(n, p)| n == name && p.starts_with(peer)), "no {name} against {peer}: {peers:?}");
    }
}
