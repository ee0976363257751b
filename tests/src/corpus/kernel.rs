//! The corpus, decided by the loaded program under `BPF_PROG_TEST_RUN`.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use fib::packet::Tags;
use fib::{Ingress, Reach, Reason, Verdict};
use wayleave::compile::capacity_class;
use wayleave::kernel::pins::Pins;
use wayleave::kernel::program::Programs;
use wayleave::kernel::publish::stage;
use wayleave::kernel::tables::{Egress, Tables};

use super::case::Case;
use super::expect::{Alike, Outcome, check};
use super::node::word;
use super::{Report, Theme};

/// Kernel index of the loopback device in every network namespace (`LOOPBACK_IFINDEX`). Test runs come in by it, and it
/// stands for the device of every port: nothing is sent.
const LOOPBACK: u32 = 1;
const EGRESS: Egress = Egress { device: LOOPBACK, address_device: LOOPBACK, tags: Tags { outer: 0, inner: 0 } };

/// Verdict by `XDP_*` action of the kernel's uapi.
const ACTIONS: [(u32, Verdict); 3] = [(1, Verdict::Drop), (2, Verdict::Pass), (4, Verdict::Forward)];

/// Runs every case of the themes through the program, loaded below `directory` on a bpf file system; removes it again.
///
/// Needs root (`CAP_BPF`, `CAP_NET_ADMIN`, `CAP_SYS_ADMIN`). A forwarded packet is run a second time with its port's
/// device taken away, to see that it was that port.
pub fn run_in_kernel(themes: &[Theme], directory: &Path) -> Result<Report> {
    let pins = Pins::new(directory);
    pins.create()?;
    let lock = pins.lock()?;
    let result = run(themes, &pins);
    drop(lock);
    let removed = remove(&pins);
    // A failed run is the error to report, whatever cleaning up said.
    let report = result?;
    removed?;
    Ok(report)
}

fn run(themes: &[Theme], pins: &Pins) -> Result<Report> {
    let mut report = Report::default();
    for (generation, theme) in (1..).zip(themes) {
        let mut image = theme.image.clone();
        image.stamp(generation, 0, 0);
        let bits = capacity_class(image.bytes().len())?.trailing_zeros();
        let programs = Programs::ensure(pins, bits)?;
        let mut tables = Tables::open(pins)?;
        let view = image.view()?;
        for hop in view.next_hops() {
            let reach = theme.node.neighbour(hop.name, hop.port)?.map_or(Reach::Unknown, Reach::Up);
            tables.set_reach(hop.id, &reach)?;
        }
        let mut ports = Vec::new();
        for port in view.ports() {
            if theme.node.port(port.name).is_some_and(|port| port.has_device) {
                tables.set_port(port.id, &EGRESS)?;
            } else {
                tables.clear_port(port.id)?;
            }
            ports.push((port.name.to_owned(), port.id));
        }
        let staged = stage(pins, &programs, &image)?;
        let mut alike = Alike::new();
        for case in &theme.cases {
            if let Some(why) = &case.only_library {
                report.left_out.push(format!("{}:{}: {}: {why}", case.file, case.line, case.name));
                continue;
            }
            let ingress = Ingress { mac: word(theme.node.ports[case.ingress].mac), port: 0 };
            programs.set_test_ingress(0, Some(&ingress))?;
            let place = || format!("{}:{}: {}", case.file, case.line, case.name);
            let got = test_run(&programs, case).with_context(place)?;
            let mut result = check(case, &theme.node, &got, &mut alike);
            let port = case.expect.port().and_then(|port| ports.iter().find(|(name, _)| name == port));
            if let (Ok(()), Some((name, id))) = (&result, port) {
                tables.clear_port(*id)?;
                let without = test_run(&programs, case).with_context(place)?;
                tables.set_port(*id, &EGRESS)?;
                if (without.reason, &without.frame) != (Reason::NoPort, &case.frame.bytes) {
                    let reason = without.reason.name();
                    result = Err(format!("without a device for the port {name}: expected pass no-port, got {reason}"));
                }
            }
            report.note(case, "program", result);
        }
        staged.release()?;
    }
    Ok(report)
}

fn test_run(programs: &Programs, case: &Case) -> Result<Outcome> {
    let ran = programs.test_run(&case.frame.bytes)?;
    let verdict = ACTIONS.iter().find(|(action, _)| *action == ran.action).map(|(_, verdict)| *verdict);
    let reason = Reason::ALL.iter().copied().find(|reason| *reason as u32 == ran.reason);
    Ok(Outcome {
        verdict: verdict.ok_or_else(|| anyhow!("the program returned the action {}", ran.action))?,
        reason: reason.ok_or_else(|| anyhow!("the program counted the reason {}", ran.reason))?,
        frame: ran.frame,
    })
}

/// Removes every pin of the run, and the directories.
fn remove(pins: &Pins) -> Result<()> {
    for bits in pins.classes()? {
        pins.remove_directory(&pins.class(bits))?;
    }
    for directory in ["maps", "generation", "link"] {
        pins.remove_directory(&pins.root().join(directory))?;
    }
    match std::fs::remove_dir(pins.root()) {
        // The root of a bpf file system is a mount point, which stays.
        Err(e) if e.kind() != std::io::ErrorKind::ResourceBusy => Err(e).context("removing the directory of the pins"),
        _ => Ok(()),
    }
}
