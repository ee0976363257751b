//! The first and only process of a virtual machine that boots another kernel: loads every program and reports what the
//! verifier said, runs tests, and turns the machine off. `tests/tests/kernels.rs` boots it, and reads the report from
//! the second serial port: one JSON object a line, as listed at [`run`].

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};
use serde_json::{Value, json};
use wayleave_tests::verifier;

/// Written by the host: `{modules: [path], tests: [{name, command: [word]}]}`.
const WORK: &str = "/work.json";
const REPORT: &str = "/dev/ttyS1";

fn main() -> Result<()> {
    ensure!(std::process::id() == 1, "this program is the init of a virtual machine; run `./dev test kernels` instead");
    if let Err(error) = run() {
        let _ = report(&json!({"error": format!("{error:#}")}));
        eprintln!("guest: {error:#}");
    }
    // QEMU was told to end where a machine would restart; that works without ACPI, too.
    reboot(RebootCommand::Restart).context("reboot(2)")
}

/// Reports, in this order: `{kernel}`, a `{program, statistics}` for each program, a `{test, passed, seconds}` for each
/// test, and `{done: true}`; `{error}` in place of what could not be done, and then nothing more.
fn run() -> Result<()> {
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("bpf", "/sys/fs/bpf"),
    ] {
        fs::create_dir_all(at).with_context(|| format!("making {at}"))?;
        mount(kind, at, kind, MountFlags::empty(), None).with_context(|| format!("mounting {kind} at {at}"))?;
    }
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    report(&json!({"kernel": kernel.trim()}))?;
    let work: Value = serde_json::from_slice(&fs::read(WORK).context(WORK)?).context(WORK)?;
    for module in strings(&work["modules"])? {
        let file = File::open(module).with_context(|| format!("opening {module}"))?;
        finit_module(&file, c"", 0).with_context(|| format!("loading the kernel module {module}"))?;
    }
    for (program, statistics) in verifier::measure()? {
        report(&json!({"program": program, "statistics": statistics.to_json()}))?;
    }
    for test in work["tests"].as_array().context("no tests")? {
        let command = strings(&test["command"])?;
        let (program, arguments) = command.split_first().context("an empty command")?;
        println!("guest: {}", command.join(" "));
        let begun = Instant::now();
        let status = Command::new(program).args(arguments).status().with_context(|| format!("running {program}"))?;
        let seconds = begun.elapsed().as_secs();
        report(&json!({"test": test["name"], "passed": status.success(), "seconds": seconds}))?;
    }
    report(&json!({"done": true}))
}

fn strings(list: &Value) -> Result<Vec<&str>> {
    list.as_array().and_then(|list| list.iter().map(Value::as_str).collect()).with_context(|| format!("{list}"))
}

/// Opened anew for each line, since `/dev` is there only after the first mounts; written at once.
fn report(line: &Value) -> Result<()> {
    let mut port = OpenOptions::new().write(true).open(REPORT).context(REPORT)?;
    port.write_all(format!("{line}\n").as_bytes()).context(REPORT)
}
