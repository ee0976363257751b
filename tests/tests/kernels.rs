//! Other kernels: each boots in a virtual machine, takes every program, and passes the tests that touch the kernel.
//!
//! The machine is QEMU without KVM, so it works wherever the rest does; its only file system is an initial RAM disk that
//! holds, at the same paths as here, the test executables, the released binary, `ip` and their libraries. Its first
//! process is `src/bin/guest.rs`. Kernels and QEMU are fetched by `./dev test kernels`, which runs this file.
//!
//! What the verifier said is compared with `tests/verifier-stats.txt`: that a program became more work for one of the
//! kernels is seen in review. `WAYLEAVE_BLESS=1 ./dev test kernels` rewrites it.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use wayleave_tests::verifier::{self, Statistics};
use wayleave_tests::{binary, require_root_and_bpf};

/// The kernel series that are booted, as `./dev` names their directories.
const SERIES: [&str; 2] = ["6.1", "6.12"];

/// Kernel modules, in the order of their loading; what Debian builds as modules and this test's machine may not.
const MODULES: [&str; 9] = ["veth", "llc", "stp", "bridge", "sch_ingress", "cls_bpf", "garp", "mrp", "8021q"];

/// The test executables that run in the machine, and those of their tests that do not, because they say nothing about a
/// kernel and take long.
///
/// They apply, publish, roll back, detach and change classes; send packets of every kind through veth; run packets of
/// random policies through the candidate; follow devices and neighbours. VLAN devices are tested here only: this test's own
/// machine may have none, so those tests are ignored there.
/// The packet corpus goes through all three programs. Services and filters meet real traffic; hands in the
/// kernel are found and mended, also those at what is attached by a classifier, which only the oldest kernel has.
const TESTS: [(&str, &[&str]); 13] = [
    (
        "attach",
        &[
            "a_newer_layout_is_left_alone",
            "an_older_layout_is_taken_over_without_loss",
            "another_version_of_the_program_takes_over_without_loss",
        ],
    ),
    ("counters", &[]),
    ("doctor", &[]),
    ("packets", &[]),
    ("neighbour", &[]),
    (
        "lifecycle",
        &["a_second_process_waits_for_the_lock", "errors_name_what_to_do", "what_is_refused_changes_nothing"],
    ),
    (
        "daemon",
        &[
            "a_broken_or_lost_source_changes_nothing_until_it_is_back",
            "a_kubernetes_volume_is_followed_by_its_data_link",
            "a_rollback_stays_until_the_source_changes",
        ],
    ),
    ("forwarding", &[]),
    ("witnesses", &[]),
    ("vlan", &[]),
    (
        // Without KVM each load of programs with every stage takes long. The other tunnels go through the corpus.
        "services",
        &[
            "a_flood_is_not_answered_above_the_rate",
            "a_flood_of_handshakes_is_held_to_the_rate_of_new_flows",
            "a_trace_names_service_backend_and_why",
            "a_tunnel_needs_a_source_and_trace_names_it",
            "connections_of_ipv4_through_tunnels_of_ipv6",
            "connections_of_ipv6_through_tunnels_of_ipv6",
            "connections_through_tunnels_of_ipv4",
            "established_connections_survive_whatever_is_published",
            "flows_that_are_forgotten_go_where_the_generation_before_sent_them",
            "status_counts_packets_by_service_and_backend",
            "the_lab_is_as_the_policies_say",
            "what_no_backend_takes_is_rejected_and_the_vip_answers_pings",
            "what_no_backend_takes_passes_or_is_dropped_and_is_counted",
        ],
    ),
    (
        "filters",
        &[
            "a_limit_of_bytes_counts_whole_frames_whatever_their_size",
            "a_publish_changes_filters_and_routes_at_once",
            "sources_of_one_prefix_share_a_limit_and_others_have_their_own",
            "the_tables_find_the_rule_that_a_scan_of_all_rules_finds",
            "who_watches_sees_the_rule_that_stopped_a_packet",
        ],
    ),
    (
        "drift",
        &[
            "a_daemon_that_does_not_look_leaves_everything_and_follows_events",
            "a_daemon_that_heals_puts_every_hand_right_and_says_so",
            "a_daemon_that_reports_changes_nothing_until_somebody_decides",
        ],
    ),
];

/// Directories of this repository that the tests read.
const READ: [&str; 3] = ["policies", "examples", "tests/packets"];

/// Longest life of a machine; on a machine with nothing else to do a third of it is enough.
const LIFE: Duration = Duration::from_mins(25);
/// Lines of the console that are shown of a machine that failed.
const CONSOLE_LINES: usize = 120;

/// The verifier gives up at a million instructions; nothing of ours may come near it, with every stage that there is.
const INSTRUCTIONS_MAX: u64 = 900_000;
/// A program may need so much more work than the committed table says, in percent, before someone has to look.
const GROWTH_MAX_PERCENT: u64 = 10;

/// What the verifier said, by program and kernel series.
type Table = BTreeMap<(String, String), Statistics>;

#[test]
fn every_kernel_takes_the_programs_and_routes_by_them() {
    require_root_and_bpf().unwrap();
    let kernels = kernels().unwrap();
    let tests = executables(&TESTS.map(|(name, _)| name)).unwrap();
    let mut table = Table::new();
    let mut failures = Vec::new();
    let here = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let here = series(&here).unwrap();
    for (program, statistics) in verifier::measure().unwrap() {
        table.insert((program, here.clone()), statistics);
    }
    let machines = SERIES.map(|name| Machine::prepare(&kernels, name, &tests).unwrap());
    // Each has one processor.
    let reports = thread::scope(|scope| {
        let running = machines.each_ref().map(|machine| scope.spawn(|| machine.run()));
        running.map(|machine| machine.join().unwrap())
    });
    for (machine, report) in machines.iter().zip(reports) {
        match report {
            Ok(report) => {
                println!("{}", report.summary());
                failures.extend(report.failures(machine));
                table.extend(report.statistics.into_iter().map(|(program, s)| ((program, machine.name.to_owned()), s)));
            }
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    check_table(&table, &here).unwrap();
}

/// Where `./dev test kernels` has put the kernels and QEMU.
fn kernels() -> Result<PathBuf> {
    let directory = std::env::var_os("WAYLEAVE_KERNELS").map(PathBuf::from);
    let directory = directory.context("no kernels to boot: run `./dev test kernels`, which fetches them")?;
    ensure!(directory.join("complete").is_file(), "{} has no kernels: run `./dev test kernels`", directory.display());
    Ok(directory)
}

/// `6.12` of `6.12.107+deb13-cloud-amd64`.
fn series(release: &str) -> Result<String> {
    let mut parts = release.trim().splitn(3, '.');
    let (Some(major), Some(minor)) = (parts.next(), parts.next()) else { bail!("{release} is no kernel release") };
    let digits = |part: &str| part.chars().take_while(char::is_ascii_digit).collect::<String>();
    Ok(format!("{}.{}", digits(major), digits(minor)))
}

// ---- the machine ----------------------------------------------------------------------------------------------------

/// A machine that can be switched on.
struct Machine {
    name: &'static str,
    qemu: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
    console: PathBuf,
    report: PathBuf,
}

/// What a machine said on its second serial port; see `src/bin/guest.rs`.
#[derive(Default)]
struct Report {
    kernel: String,
    statistics: BTreeMap<String, Statistics>,
    /// Test executable, whether it passed, seconds.
    tests: Vec<(String, bool, u64)>,
    error: Option<String>,
    done: bool,
    took: Duration,
}

impl Machine {
    /// Writes the machine's disk below target/tmp, where its console can be read afterwards.
    fn prepare(kernels: &Path, name: &'static str, tests: &[(String, PathBuf)]) -> Result<Self> {
        let directory = &Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels").join(name);
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        fs::create_dir_all(directory)?;
        let unpacked = kernels.join(name);
        let kernel = find(&unpacked.join("boot"), &|name| name.starts_with("vmlinuz-"))?;
        let kernel = kernel.with_context(|| format!("no kernel below {}", unpacked.display()))?;
        let mut disk = RamDisk::default();
        let guest = strip(Path::new(env!("CARGO_BIN_EXE_guest")), directory)?;
        disk.program(Path::new("/init"), &guest)?;
        for program in tests.iter().map(|(_, path)| path.clone()).chain([binary()?]) {
            disk.program(&program, &strip(&program, directory)?)?;
        }
        for tool in ["ip", "tc"] {
            let places = ["/sbin", "/usr/sbin", "/bin", "/usr/bin"].map(|place| Path::new(place).join(tool));
            let found = places.iter().find(|path| path.exists());
            disk.program(&Path::new("/bin").join(tool), found.context("no `ip` and `tc` (package iproute2)")?)?;
        }
        let mut modules = Vec::new();
        for module in MODULES {
            let file = find(&unpacked, &|name| name.split_once(".ko").is_some_and(|(stem, _)| stem == module))?;
            let file = file.with_context(|| format!("no module {module} below {}", unpacked.display()))?;
            let mut bytes = fs::read(&file)?;
            if file.extension().is_some_and(|extension| extension == "xz") {
                let compressed = std::mem::take(&mut bytes);
                xz2::read::XzDecoder::new(&compressed[..]).read_to_end(&mut bytes).context("a kernel module")?;
            }
            let at = format!("/modules/{module}.ko");
            disk.file(Path::new(&at), 0o644, &bytes);
            modules.push(at);
        }
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        disk.directory(package);
        for directory in READ {
            // The tests name them from their own directory.
            disk.tree(&package.parent().context("the repository")?.join(directory))?;
        }
        let commands: Vec<Value> = tests
            .iter()
            .map(|(test, path)| {
                let left_out = TESTS.iter().find(|(name, _)| name == test).map_or(&[][..], |(_, names)| names);
                let mut command = vec![
                    path.to_string_lossy().into_owned(),
                    "--test-threads=1".to_owned(),
                    "--include-ignored".to_owned(),
                ];
                command.extend(left_out.iter().map(|name| format!("--skip={name}")));
                json!({"name": test, "command": command})
            })
            .collect();
        disk.file(
            Path::new("/work.json"),
            0o644,
            json!({"modules": modules, "tests": commands}).to_string().as_bytes(),
        );
        let initrd = directory.join("initrd");
        fs::write(&initrd, disk.finish())?;
        Ok(Self {
            name,
            qemu: kernels.join("qemu-system-x86_64"),
            kernel,
            initrd,
            console: directory.join("console"),
            report: directory.join("report"),
        })
    }

    /// Boots, waits for the machine to switch itself off, and reads its report.
    fn run(&self) -> Result<Report> {
        let begun = Instant::now();
        let mut qemu = Command::new(&self.qemu)
            .args(["-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "1024M"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initrd)
            // A host with other work delivers timer interrupts too late for the kernel's check of them.
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check"])
            .arg("-serial")
            .arg(format!("file:{}", self.console.display()))
            .arg("-serial")
            .arg(format!("file:{}", self.report.display()))
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", self.qemu.display()))?;
        let status = loop {
            if let Some(status) = qemu.try_wait()? {
                break status;
            }
            if begun.elapsed() > LIFE {
                qemu.kill()?;
                qemu.wait()?;
                bail!("kernel {}: not done after {} s\n{}", self.name, LIFE.as_secs(), self.console());
            }
            thread::sleep(Duration::from_millis(50));
        };
        ensure!(status.success(), "kernel {}: QEMU ended with {status}\n{}", self.name, self.console());
        let mut report = Report { took: begun.elapsed(), ..Report::default() };
        let text = fs::read_to_string(&self.report).unwrap_or_default();
        for line in text.lines() {
            report.read(line).with_context(|| format!("kernel {}: the report has the line {line:?}", self.name))?;
        }
        Ok(report)
    }

    /// The last lines of the console.
    fn console(&self) -> String {
        let text = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).replace('\r', "");
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(CONSOLE_LINES);
        format!("---- console of {}, from line {} ----\n{}\n----", self.name, from + 1, lines[from..].join("\n"))
    }
}

impl Report {
    fn read(&mut self, line: &str) -> Result<()> {
        let line: Value = serde_json::from_str(line)?;
        let word = |key: &str| line[key].as_str().map(str::to_owned);
        if let Some(kernel) = word("kernel") {
            self.kernel = kernel;
        } else if let Some(program) = word("program") {
            self.statistics.insert(program, Statistics::from_json(&line["statistics"]).context("statistics")?);
        } else if let Some(test) = word("test") {
            let passed = line["passed"].as_bool().context("passed")?;
            self.tests.push((test, passed, line["seconds"].as_u64().context("seconds")?));
        } else if let Some(error) = word("error") {
            self.error = Some(error);
        } else if line["done"] == true {
            self.done = true;
        } else {
            bail!("unknown");
        }
        Ok(())
    }

    fn summary(&self) -> String {
        let mut text = format!("{}: {} programs loaded", self.kernel, self.statistics.len());
        for (test, passed, seconds) in &self.tests {
            write!(text, ", {test} {} in {seconds} s", if *passed { "passed" } else { "FAILED" }).unwrap();
        }
        write!(text, "; {} s in all", self.took.as_secs()).unwrap();
        text
    }

    /// All that is not as it should be.
    fn failures(&self, machine: &Machine) -> Option<String> {
        let mut failures: Vec<String> = self.error.iter().cloned().collect();
        if self.error.is_none() && !self.done {
            failures.push("the machine stopped before it was done".to_owned());
        }
        if series(&self.kernel).ok().as_deref() != Some(machine.name) {
            failures.push(format!("the machine runs the kernel {:?}", self.kernel));
        }
        if self.statistics.is_empty() {
            failures.push("no program was loaded".to_owned());
        }
        failures.extend(self.tests.iter().filter(|(_, passed, _)| !passed).map(|(test, ..)| format!("{test} failed")));
        let whole = self.done && self.tests.len() == TESTS.len();
        if !whole && self.error.is_none() {
            failures.push(format!("{} of {} tests ran", self.tests.len(), TESTS.len()));
        }
        let text = format!("kernel {}: {}\n{}", machine.name, failures.join("; "), machine.console());
        (!failures.is_empty()).then_some(text)
    }
}

// ---- its disk -------------------------------------------------------------------------------------------------------

/// An initial RAM disk in the making, in the "newc" format of the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`.
#[derive(Default)]
struct RamDisk {
    /// Path without its leading slash to mode and content; sorted, so that directories come before what is in them.
    entries: BTreeMap<String, (u32, Vec<u8>)>,
}

impl RamDisk {
    fn file(&mut self, at: &Path, permissions: u32, content: &[u8]) {
        const S_IFREG: u32 = 0o100_000;
        if let Some(parent) = at.parent() {
            self.directory(parent);
        }
        self.entries.insert(name(at), (S_IFREG | permissions, content.to_vec()));
    }

    fn directory(&mut self, at: &Path) {
        const S_IFDIR: u32 = 0o040_000;
        for one in at.ancestors().filter(|one| one.parent().is_some()) {
            self.entries.insert(name(one), (S_IFDIR | 0o755, Vec::new()));
        }
    }

    /// Puts the program `from` to `at`, and its libraries where its loader looks for them.
    fn program(&mut self, at: &Path, from: &Path) -> Result<()> {
        self.file(at, 0o755, &fs::read(from).with_context(|| format!("reading {}", from.display()))?);
        let output = Command::new("ldd").arg(from).output().context("starting ldd")?;
        ensure!(output.status.success(), "ldd {}: {}", from.display(), String::from_utf8_lossy(&output.stderr));
        // "libc.so.6 => /lib/…/libc.so.6 (0x…)" or "/lib64/ld-linux-x86-64.so.2 (0x…)"; the vDSO has no path.
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        for library in listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))) {
            let library = Path::new(library);
            self.file(library, 0o755, &fs::read(library).with_context(|| format!("reading {}", library.display()))?);
        }
        Ok(())
    }

    /// A directory with all that is in it, at the same path.
    fn tree(&mut self, from: &Path) -> Result<()> {
        self.directory(from);
        for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                self.tree(&path)?;
            } else {
                self.file(&path, 0o644, &fs::read(&path)?);
            }
        }
        Ok(())
    }

    fn finish(self) -> Vec<u8> {
        let mut disk = Vec::new();
        let entries = self.entries.into_iter().chain([("TRAILER!!!".to_owned(), (0, Vec::new()))]);
        for (number, (name, (mode, content))) in entries.enumerate() {
            // Magic; inode, mode, owner, group, links, time, size, device (2), node's device (2), bytes of the name with
            // its zero, checksum: eight hexadecimal digits each.
            let fields = [number + 1, mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
            disk.extend(b"070701");
            disk.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
            disk.extend(name.bytes().chain([0]));
            disk.resize(disk.len().next_multiple_of(4), 0);
            disk.extend(content);
            disk.resize(disk.len().next_multiple_of(4), 0);
        }
        disk
    }
}

fn name(at: &Path) -> String {
    at.to_string_lossy().trim_start_matches('/').to_owned()
}

/// The first file below a directory whose name is wanted.
fn find(directory: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        if path.is_dir() && !path.is_symlink() {
            if let Some(found) = find(&path, wanted)? {
                return Ok(Some(found));
            }
        } else if path.file_name().and_then(|name| name.to_str()).is_some_and(wanted) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// A copy without debug information, which is most of an executable, in `directory`.
fn strip(program: &Path, directory: &Path) -> Result<PathBuf> {
    let to = directory.join(program.file_name().context("a program without a name")?);
    let status = Command::new("strip").arg("-o").arg(&to).arg(program).status().context("starting strip (binutils)")?;
    ensure!(status.success(), "strip {}: {status}", program.display());
    Ok(to)
}

/// Builds test executables as this one was built, and says where they are.
fn executables(names: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    // What cargo has told this test of its package, build scripts would take for news and run again.
    const TOLD: [&str; 4] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];
    let mut cargo = Command::new(std::env::var_os("CARGO").context("cargo runs this test, and sets CARGO")?);
    for (name, _) in std::env::vars_os() {
        if TOLD.iter().any(|start| name.as_encoded_bytes().starts_with(start.as_bytes())) {
            cargo.env_remove(name);
        }
    }
    cargo.args(["test", "--locked", "--package", env!("CARGO_PKG_NAME"), "--no-run", "--message-format=json"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    for name in names {
        cargo.args(["--test", name]);
    }
    let output = cargo.stderr(Stdio::inherit()).output().context("starting cargo")?;
    ensure!(output.status.success(), "the tests do not build: {}", output.status);
    let mut found = BTreeMap::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let message: Value = serde_json::from_str(line)?;
        if let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str()) {
            found.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    let mut take = |name: &str| found.remove(name).with_context(|| format!("cargo has made no executable of {name}"));
    names.iter().map(|name| Ok(((*name).to_owned(), take(name)?))).collect()
}

// ---- the table ------------------------------------------------------------------------------------------------------

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/verifier-stats.txt");
const BLESS: &str = "WAYLEAVE_BLESS=1 ./dev test kernels";
const HEAD: &str = "\
# The verifier's work on every program, and what became of it, by kernel series: instructions followed (the kernel gives
# up at 1,000,000), verifier states at once and in all, bytes of stack, of the program, and of its machine code.
# `WAYLEAVE_BLESS=1 ./dev test kernels` rewrites this file; `./dev test kernels` fails on growth of more than 10 %.
";

fn render(table: &Table) -> String {
    let mut text = format!(
        "{HEAD}{:<20} {:>6} {:>12} {:>11} {:>7} {:>5} {:>8} {:>6}\n",
        "program", "kernel", "instructions", "peak-states", "states", "stack", "program", "jited"
    );
    for ((program, series), s) in table {
        writeln!(
            text,
            "{program:<20} {series:>6} {:>12} {:>11} {:>7} {:>5} {:>8} {:>6}",
            s.instructions, s.peak_states, s.states, s.stack_bytes, s.translated_bytes, s.jited_bytes
        )
        .unwrap();
    }
    text
}

fn parse(text: &str) -> Result<Table> {
    let rows = text.lines().filter(|line| !line.starts_with('#')).skip(1);
    rows.map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [program, series, instructions, peak_states, states, stack_bytes, translated_bytes, jited_bytes] =
            words[..]
        else {
            bail!("{TABLE} has the line {line:?}");
        };
        let statistics = Statistics {
            instructions: instructions.parse()?,
            peak_states: peak_states.parse()?,
            states: states.parse()?,
            stack_bytes: stack_bytes.parse()?,
            translated_bytes: translated_bytes.parse()?,
            jited_bytes: jited_bytes.parse()?,
        };
        Ok(((program.to_owned(), series.to_owned()), statistics))
    })
    .collect()
}

/// Why a table is not acceptable beside the committed one; `here` is the series of the machine that runs the test, which
/// the committed table need not know.
fn complaints(committed: &Table, found: &Table, here: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for ((program, series), now) in found {
        let name = format!("{program} on {series}");
        if now.instructions > INSTRUCTIONS_MAX {
            complaints.push(format!("{name}: {} instructions, more than {INSTRUCTIONS_MAX}", now.instructions));
        }
        match committed.get(&(program.clone(), series.clone())) {
            Some(before) if now.instructions * 100 > before.instructions * (100 + GROWTH_MAX_PERCENT) => {
                complaints.push(format!("{name}: {} instructions, from {}", now.instructions, before.instructions));
            }
            None if series != here || committed.keys().any(|(_, known)| known == here) => {
                complaints.push(format!("{name}: new"));
            }
            _ => {}
        }
    }
    let gone = |key: &&(String, String)| {
        let (_, series) = key;
        !found.contains_key(*key) && found.keys().any(|(_, s)| s == series)
    };
    complaints.extend(committed.keys().filter(gone).map(|(program, series)| format!("{program} on {series}: gone")));
    complaints
}

#[test]
fn a_program_that_grew_came_or_went_is_named() {
    let statistics = |instructions| Statistics {
        instructions,
        peak_states: 1,
        states: 2,
        stack_bytes: 3,
        translated_bytes: 4,
        jited_bytes: 5,
    };
    let table = |rows: &[(&str, &str, u64)]| -> Table {
        rows.iter()
            .map(|(name, series, instructions)| (((*name).into(), (*series).into()), statistics(*instructions)))
            .collect()
    };
    let committed = table(&[("a", "6.1", 1_000), ("a", "6.12", 1_000), ("a", "6.18", 1_000)]);
    assert_eq!(parse(&render(&committed)).unwrap(), committed);
    let check = |rows: &[(&str, &str, u64)], here: &str, expected: &[&str]| {
        assert_eq!(complaints(&committed, &table(rows), here), expected);
    };
    check(&[("a", "6.1", 1_100), ("a", "6.12", 1), ("a", "6.18", 1_000)], "6.18", &[]);
    check(&[("a", "6.1", 1_101), ("a", "6.12", 1_000)], "6.18", &["a on 6.1: 1101 instructions, from 1000"]);
    check(&[("b", "6.1", 1)], "6.18", &["b on 6.1: new", "a on 6.1: gone"]);
    check(&[("a", "6.18", 1), ("b", "6.18", 1)], "6.18", &["b on 6.18: new"]);
    check(&[("a", "7.0", 1)], "7.0", &[]);
    check(&[("a", "7.0", 900_001)], "7.0", &["a on 7.0: 900001 instructions, more than 900000"]);
}

fn check_table(found: &Table, here: &str) -> Result<()> {
    let committed = parse(&fs::read_to_string(TABLE).unwrap_or_default())?;
    let written = Path::new(env!("CARGO_TARGET_TMPDIR")).join("verifier-stats.txt");
    fs::write(&written, render(found))?;
    println!("{}", render(found));
    if std::env::var_os("WAYLEAVE_BLESS").is_some() {
        // Rows of other machines' kernels stay.
        let others = |((_, series), _): &(&(String, String), &Statistics)| found.keys().all(|(_, s)| s != series);
        let mut table: Table = committed.iter().filter(others).map(|(key, s)| (key.clone(), *s)).collect();
        table.extend(found.iter().map(|(key, s)| (key.clone(), *s)));
        return fs::write(TABLE, render(&table)).context(TABLE);
    }
    let complaints = complaints(&committed, found, here);
    ensure!(
        complaints.is_empty(),
        "differs from {TABLE}; if that is meant, `{BLESS}` rewrites it:\n  {}\n(the new table is in {})",
        complaints.join("\n  "),
        written.display()
    );
    Ok(())
}
