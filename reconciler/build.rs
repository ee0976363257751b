//! Builds the BPF object and tells the library where it lies, as `env!("WAYLEAVE_BPF_OBJECT")`.
//!
//! `bpf/` is another target (`bpfel-unknown-none`), so it needs a second cargo. That one uses either a rustc that carries
//! a compiled `core` for this target (Debian's `libstd-rust-web-dev-bpf`), or a rustup nightly that compiles `core` itself.
//! Nothing is ever downloaded here but crates; a missing tool stops the build with the command that installs it.
#![allow(clippy::disallowed_methods, reason = "a build script's interface is its environment")]

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const PACKAGE: &str = "wayleave-bpf";

/// Settings of the outer cargo that also hold for the inner one; every other `CARGO_*` describes the host build.
const KEPT: [&str; 8] = [
    "CARGO_HOME",
    "CARGO_HTTP_",
    "CARGO_MAKEFLAGS", // the jobserver: both cargos together use the cores once
    "CARGO_NET_",
    "CARGO_REGISTRIES_",
    "CARGO_REGISTRY_",
    "CARGO_SOURCE_",
    "CARGO_TERM_",
];

fn main() -> ExitCode {
    match build() {
        Ok(object) => {
            println!("cargo:rustc-env=WAYLEAVE_BPF_OBJECT={}", object.display());
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// Builds the object and returns its path.
fn build() -> Result<PathBuf, String> {
    let root = path_var("CARGO_MANIFEST_DIR")?.join("..");
    for input in ["bpf/Cargo.toml", "bpf/src", "bpf/fib/Cargo.toml", "bpf/fib/src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo:rerun-if-changed=build.rs");

    let target = match var("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "little" => "bpfel-unknown-none",
        _ => "bpfeb-unknown-none",
    };
    let linker = find_linker();
    let compiler = Compiler::find(target);
    let (Some(linker), Some(compiler)) = (&linker, &compiler) else {
        return Err(missing_tools(target, linker.is_none(), compiler.is_none()));
    };
    // A new linker or compiler makes a new object.
    println!("cargo:rerun-if-changed={}", linker.display());

    let out_dir = path_var("OUT_DIR")?;
    let target_dir = target_dir(&out_dir);
    let mut cargo = compiler.cargo()?;
    cargo
        .current_dir(&root)
        // The outer cargo has brought the lock file up to date, or was told not to.
        .args(["build", "--release", "--locked", "--package", PACKAGE, "--bins", "--target", target])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(linker)?);
    let status = cargo.status().map_err(|error| format!("cannot run {cargo:?}: {error}"))?;
    if !status.success() {
        return Err(format!("{PACKAGE} does not build for {target} (its messages are above): {cargo:?}"));
    }
    // Copied, because builds of the workspace for several hosts share `target_dir`.
    let built = target_dir.join(target).join("release");
    let keep = |name: &str| {
        let (from, to) = (built.join(name), out_dir.join(format!("{name}.o")));
        fs::copy(&from, &to).map_err(|error| format!("cannot copy {} to {}: {error}", from.display(), to.display()))?;
        Ok::<_, String>(to)
    };
    // Handed to build scripts of dependents as DEP_WAYLEAVE_BPF_BENCH_OBJECT and DEP_WAYLEAVE_BPF_OBJECT.
    println!("cargo:bench_object={}", keep("wayleave-bench-bpf")?.display());
    let object = keep(PACKAGE)?;
    println!("cargo:object={}", object.display());
    Ok(object)
}

/// `bpf` in the workspace's target directory (which cargo marks with a CACHEDIR.TAG): debug and release builds share it.
/// It is a directory of its own because the outer cargo holds the lock of its own.
fn target_dir(out_dir: &Path) -> PathBuf {
    let outer = out_dir.ancestors().find(|directory| directory.join("CACHEDIR.TAG").is_file());
    outer.unwrap_or(out_dir).join("bpf")
}

/// Flags for the BPF target only: with `--target`, cargo keeps them from build scripts and procedural macros.
fn rustflags(linker: &Path) -> Result<OsString, String> {
    // aya-ebpf picks the layout of the host's registers by this name.
    let arch = match var("CARGO_CFG_TARGET_ARCH")? {
        arch if arch.starts_with("riscv64") => "riscv64".to_owned(),
        arch => arch,
    };
    let mut flags = OsString::from(format!("--cfg=bpf_target_arch=\"{arch}\""));
    // v3 (kernel 5.1): 32-bit registers and jumps, which the verifier follows better than shifts.
    // BTF, made from debug information: the kernel checks map types by it, the verifier's log shows source lines.
    flags.push("\x1f-Ctarget-cpu=v3\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf\x1f-Clinker=");
    flags.push(linker);
    Ok(flags)
}

/// A Rust compiler that can build for the BPF target.
enum Compiler {
    /// This rustc has a compiled `core` for the target. The target is not a stable one, hence `RUSTC_BOOTSTRAP`.
    Prebuilt(PathBuf),
    /// rustup's nightly with the source of `core`.
    Nightly,
}

impl Compiler {
    /// The rustc of the outer cargo first, then the system's, then rustup's nightly.
    fn find(target: &str) -> Option<Self> {
        let outer = env::var_os("RUSTC").map(PathBuf::from);
        for rustc in outer.into_iter().chain([PathBuf::from("/usr/bin/rustc")]) {
            if sysroot(&mut Command::new(&rustc))
                .is_some_and(|sysroot| sysroot.join("lib/rustlib").join(target).join("lib").is_dir())
            {
                return Some(Self::Prebuilt(rustc));
            }
        }
        sysroot(nightly().arg("rustc"))
            .is_some_and(|sysroot| sysroot.join("lib/rustlib/src/rust/library/core").is_dir())
            .then_some(Self::Nightly)
    }

    /// A cargo command that uses this compiler and inherits nothing of the host build.
    fn cargo(&self) -> Result<Command, String> {
        let mut cargo = match self {
            Self::Prebuilt(rustc) => {
                let mut cargo = Command::new(path_var("CARGO")?);
                scrub(&mut cargo);
                cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
            Self::Nightly => {
                let mut cargo = nightly();
                scrub(&mut cargo);
                cargo.args(["cargo", "-Zbuild-std=core"]);
                cargo
            }
        };
        cargo.env_remove("__CARGO_DEFAULT_LIB_METADATA");
        Ok(cargo)
    }
}

/// `rustup run nightly`, which fails when there is none.
fn nightly() -> Command {
    let mut rustup = Command::new("rustup");
    rustup.args(["run", "nightly"]).env("RUSTUP_AUTO_INSTALL", "0").env_remove("RUSTUP_TOOLCHAIN");
    rustup
}

/// Where `rustc` keeps its libraries; none if it does not run.
fn sysroot(rustc: &mut Command) -> Option<PathBuf> {
    let output = rustc.args(["--print", "sysroot"]).output().ok().filter(|output| output.status.success())?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim_end()))
}

/// Removes what would carry the outer build's compiler, flags, profiles or target directory into the inner one.
fn scrub(cargo: &mut Command) {
    for (name, _) in env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let host_build = text.starts_with("CARGO_") && !KEPT.iter().any(|kept| text.starts_with(kept));
        if host_build || text == "CARGO" || text.starts_with("RUSTC") || text == "RUSTDOC" || text == "RUSTFLAGS" {
            cargo.env_remove(name);
        }
    }
}

/// `bpf-linker` on PATH, else where `./dev` installs it.
fn find_linker() -> Option<PathBuf> {
    let on_path = env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
    let cache = env::var_os("XDG_CACHE_HOME")
        .filter(|cache| !cache.is_empty())
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    on_path
        .into_iter()
        .chain(cache.map(|cache| cache.join("wayleave/tools/bin")))
        .map(|directory| directory.join("bpf-linker"))
        .find(|linker| linker.is_file())
}

/// What to install, word for word.
fn missing_tools(target: &str, linker: bool, compiler: bool) -> String {
    let mut text = String::from(
        "wayleave's BPF program cannot be built on this machine yet. `./dev build` sets up Debian by itself.\n",
    );
    if compiler {
        let _ = write!(
            text,
            "\nNo Rust compiler for {target}. Install one of:\n  \
             Debian 12:  apt-get install rustc-web cargo-web libstd-rust-web-dev-bpf\n  \
             elsewhere:  rustup toolchain install nightly --profile minimal --component rust-src\n"
        );
    }
    if linker {
        text.push_str(
            "\nNo bpf-linker on PATH. Install it:\n  \
             Debian 12:  apt-get install llvm-22-dev libpolly-22-dev zlib1g-dev libzstd-dev &&\n              \
             LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --locked --no-default-features --features llvm-22\n  \
             elsewhere:  cargo install bpf-linker --version 0.13.0 --locked   (needs the LLVM that your rustc was built with)\n",
        );
    }
    text
}

fn var(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}; build scripts are run by cargo"))
}

fn path_var(name: &str) -> Result<PathBuf, String> {
    var(name).map(PathBuf::from)
}
