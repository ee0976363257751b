//! Tells the tests and the benchmark where the BPF objects lie; `reconciler/build.rs` made them.
#![allow(clippy::disallowed_methods, reason = "a build script's interface is its environment")]

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for (made, told) in
        [("DEP_WAYLEAVE_BPF_OBJECT", "WAYLEAVE_BPF_OBJECT"), ("DEP_WAYLEAVE_BPF_BENCH_OBJECT", "WAYLEAVE_BENCH_OBJECT")]
    {
        println!("cargo:rerun-if-env-changed={made}");
        if let Ok(object) = std::env::var(made) {
            println!("cargo:rerun-if-changed={object}");
            println!("cargo:rustc-env={told}={object}");
        }
    }
}
