//! Tells the benchmark where the BPF object lies that it measures with; `reconciler/build.rs` made it.
#![allow(clippy::disallowed_methods, reason = "a build script's interface is its environment")]

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=DEP_WAYLEAVE_BPF_BENCH_OBJECT");
    if let Ok(object) = std::env::var("DEP_WAYLEAVE_BPF_BENCH_OBJECT") {
        println!("cargo:rerun-if-changed={object}");
        println!("cargo:rustc-env=WAYLEAVE_BENCH_OBJECT={object}");
    }
}
