//! The corpus, decided by the loaded program under `BPF_PROG_TEST_RUN`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use fib::service::unanswered;
use fib::{Reason, Verdict};
use wayleave::compile::capacity_class;
use wayleave::kernel::flows::now_s;
use wayleave::kernel::pins::Pins;
use wayleave::kernel::program::{Programs, Stages, TestRunOutcome};
use wayleave::kernel::publish::stage;
use wayleave::kernel::tables::{Egress, Tables};
use wayleave::kernel::test_run::{FRAME_BYTES_MAX, OtherHooks};

use super::case::Case;
use super::expect::{Alike, Outcome, check};
use super::node::{Port, port_id};
use super::{Report, Theme};

/// Kernel index of the loopback device in every network namespace (`LOOPBACK_IFINDEX`). Test runs come in by it, and it
/// stands for the device of every port: nothing is sent.
const LOOPBACK: u32 = 1;

/// `BPF_PROG_TEST_RUN` takes no frame shorter than an Ethernet header.
const FRAME_BYTES_MIN: usize = 14;

/// The programs of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `wayleave`: XDP, frames in one buffer.
    Xdp,
    /// `wayleave_frags`: XDP, frames in several buffers.
    Frags,
    /// `wayleave_tc`: TC ingress.
    Tc,
}

impl Program {
    pub const ALL: [Self; 3] = [Self::Xdp, Self::Frags, Self::Tc];

    fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Frags => "xdp frags",
            Self::Tc => "tc",
        }
    }

    /// Verdict by action: `XDP_*` and `TC_ACT_*` of the kernel's uapi.
    const fn actions(self) -> [(u32, Verdict); 3] {
        match self {
            Self::Xdp | Self::Frags => [(1, Verdict::Drop), (2, Verdict::Pass), (4, Verdict::Forward)],
            Self::Tc => [(2, Verdict::Drop), (0, Verdict::Pass), (7, Verdict::Forward)],
        }
    }

    /// Why a test run does not take a frame.
    fn refuses(self, frame: &[u8]) -> Option<&'static str> {
        let bytes = frame.len();
        match self {
            _ if bytes < FRAME_BYTES_MIN => Some("a test run takes no frame shorter than an Ethernet header"),
            Self::Xdp | Self::Tc if bytes > FRAME_BYTES_MAX => Some("a test run takes one page at most"),
            // It makes a socket of the packet's family from the addresses in its header.
            Self::Tc => match frame[12..14] {
                [0x08, 0x00] if bytes < FRAME_BYTES_MIN + 20 => Some("a test run of TC takes no half IPv4 header"),
                [0x86, 0xdd] if bytes < FRAME_BYTES_MIN + 40 => Some("a test run of TC takes no half IPv6 header"),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Runs every case of the themes through a program, loaded below `directory` on a bpf file system; removes it again.
///
/// Needs root (`CAP_BPF`, `CAP_NET_ADMIN`, `CAP_SYS_ADMIN`). A forwarded packet is run a second time with its port's
/// device taken away, to see that it was that port.
pub fn run_in_kernel(themes: &[Theme], program: Program, directory: &Path) -> Result<Report> {
    let pins = Pins::new(directory);
    pins.create()?;
    let lock = pins.lock()?;
    let result = run(themes, program, &pins);
    drop(lock);
    let removed = remove(&pins);
    // A failed run is the error to report, whatever cleaning up said.
    let report = result?;
    removed?;
    Ok(report)
}

fn run(themes: &[Theme], program: Program, pins: &Pins) -> Result<Report> {
    let mut report = Report::default();
    // Loading them is the most work of a run.
    let mut others: BTreeMap<(u32, Stages), OtherHooks> = BTreeMap::new();
    for (generation, theme) in (1..).zip(themes) {
        let mut image = theme.image.clone();
        image.stamp(generation, 0, 0);
        let bits = capacity_class(image.bytes().len())?.trailing_zeros();
        // As on a node: the programs have the stages that the image needs, and no more.
        let stages = Stages::of(&image.view()?);
        let programs = Programs::ensure(pins, bits, stages)?;
        if program != Program::Xdp && !others.contains_key(&(bits, stages)) {
            others.insert((bits, stages), OtherHooks::load(pins, &programs)?);
        }
        let others = others.get(&(bits, stages));
        let test_run = |case: &Case| {
            let frame = &case.frame.bytes;
            let ran = match (program, others) {
                (Program::Frags, Some(others)) => others.test_run_frags(&programs, frame)?,
                (Program::Tc, Some(others)) => others.test_run_tc(&programs, frame)?,
                _ => programs.test_run(frame)?,
            };
            outcome(program, ran)
        };
        let mut tables = Tables::open(pins)?;
        let view = image.view()?;
        let mut ports = Vec::new();
        for port in view.ports() {
            let of_node = theme.node.port(port.name).with_context(|| format!("no port {}", port.name))?;
            if of_node.has_device {
                tables.set_port(port.id, &egress(of_node))?;
            } else {
                tables.clear_port(port.id)?;
            }
            ports.push((of_node, port.id));
        }
        let staged = stage(pins, &programs, &image)?;
        let mut alike = Alike::new();
        for case in &theme.cases {
            if let Some(why) = program.refuses(&case.frame.bytes) {
                report.left_out.push(format!("{}:{}: {}: {why}", case.file, case.line, case.name));
                continue;
            }
            for hop in view.next_hops() {
                tables.set_reach(hop.id, &theme.node.reach(hop.name, hop.port, &case.down)?)?;
            }
            let ingress: Vec<_> = theme.node.ingress(case.ingress, |name| port_id(&view, name)).collect();
            programs.set_test_ingress(0, None)?;
            for (vids, port) in &ingress {
                programs.set_test_ingress(*vids, Some(port))?;
            }
            let place = || format!("{}:{}: {}", case.file, case.line, case.name);
            let now_s = u32::try_from(now_s()).unwrap_or_default();
            let flows: Vec<_> =
                case.flows.iter().map(|flow| flow.entries(&view, now_s)).collect::<Result<_>>().with_context(place)?;
            let set_flows = |are_there: bool| -> Result<()> {
                for (flow, entries) in case.flows.iter().zip(&flows) {
                    for (key, entry) in entries {
                        if flow.is_half_open {
                            let entry = unanswered(*entry);
                            programs.set_test_half_open(key, are_there.then_some(&entry))?;
                        } else {
                            programs.set_test_flow(key, are_there.then_some(entry))?;
                        }
                    }
                }
                Ok(())
            };
            set_flows(true)?;
            let words = case.backend_words(&view).with_context(place)?;
            words.iter().try_for_each(|(id, word)| programs.set_test_health(*id, *word))?;
            let got = test_run(case).with_context(place)?;
            let mut result = check(case, &theme.node, &got, &mut alike);
            let port = case.expect.port().and_then(|port| ports.iter().find(|(of_node, _)| of_node.name == port));
            if let (Ok(()), Some((of_node, id))) = (&result, port) {
                tables.clear_port(*id)?;
                let without = test_run(case).with_context(place)?;
                tables.set_port(*id, &egress(of_node))?;
                // A service's packet is translated for the kernel then.
                let same = without.frame == case.frame.bytes || case.expect.is_translated();
                if without.reason != Reason::NoPort || !same {
                    let (name, reason) = (&of_node.name, without.reason.name());
                    result = Err(format!("without a device for the port {name}: expected pass no-port, got {reason}"));
                }
            }
            report.note(case, program.name(), result);
            words.keys().try_for_each(|id| programs.set_test_health(*id, 0))?;
            set_flows(false)?;
            for (vids, _) in ingress {
                programs.set_test_ingress(vids, None)?;
            }
        }
        staged.release()?;
    }
    Ok(report)
}

fn egress(port: &Port) -> Egress {
    Egress { device: LOOPBACK, address_device: LOOPBACK, tags: port.tags() }
}

fn outcome(program: Program, ran: TestRunOutcome) -> Result<Outcome> {
    let reason = Reason::ALL.iter().copied().find(|reason| *reason as u32 == ran.reason);
    let is_answer = reason.is_some_and(|reason| reason.verdict() == Verdict::Answer);
    let verdict = program.actions().into_iter().find(|(action, _)| *action == ran.action).map(|(_, verdict)| verdict);
    // An answer leaves by a redirect, too: to the device that its packet came in by.
    let verdict =
        verdict.map(|verdict| if is_answer && verdict == Verdict::Forward { Verdict::Answer } else { verdict });
    Ok(Outcome {
        verdict: verdict.ok_or_else(|| anyhow!("the program returned the action {}", ran.action))?,
        reason: reason.ok_or_else(|| anyhow!("the program counted the reason {}", ran.reason))?,
        frame: ran.frame,
        is_tag_beside: program == Program::Tc,
    })
}

/// Removes every pin of the run, and the directories.
fn remove(pins: &Pins) -> Result<()> {
    pins.remove_all()?;
    match std::fs::remove_dir(pins.place()) {
        // The root of a bpf file system is a mount point, which stays.
        Err(e) if e.kind() != std::io::ErrorKind::ResourceBusy => Err(e).context("removing the directory of the pins"),
        _ => Ok(()),
    }
}
