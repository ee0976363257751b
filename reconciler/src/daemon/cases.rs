//! Policy tests in the kernel: every case's packet through the loaded program, over the candidate, before it is live.
//!
//! The program must do exactly what the library does over the node's tables as they are, byte for byte. Whether that is what
//! the case expects is then judged with next hops that are down taken to be up: a test is about rules, and a cable that is
//! out must not keep a good change from going live.

use std::path::Path;

use fib::packet::{Tags, destination_mac};
use fib::{Image, Ingress, Neighbour, Reach, ReachWords};

use crate::compile::{Image as CompiledImage, View, capacity_class};
use crate::kernel::check::{self, TableNode, by_library, difference};
use crate::kernel::pins::Pins;
use crate::kernel::program::{Programs, Stages, TEST_INGRESS};
use crate::kernel::tables::Tables;
use crate::kernel::test_run::FRAME_BYTES_MAX;
use crate::kernel::{KernelError, publish};
use crate::policy::{Case, PolicyTest};
use crate::policy_test::{Ended, Outcome, judge, left_out};
use crate::trace::{Offline, TraceNode, trace};

use super::neighbours;
use super::node::{Facts, Node, NodeError};
use super::trial::At;

/// Runs every case and fails with those that do not hold.
pub fn all_hold(
    programs: &Programs,
    view: &View<'_>,
    tables: &Tables,
    facts: &Facts,
    tests: &[PolicyTest],
) -> Result<(), NodeError> {
    let outcomes = run(programs, view, tables, facts, tests)?;
    let failures: Vec<Outcome> = outcomes.into_iter().filter(Outcome::failed).collect();
    if failures.is_empty() { Ok(()) } else { Err(NodeError::Tests { failures }) }
}

/// Runs every case through the candidate of `programs`, in whose slot the image of `view` lies. Nothing is sent, and no
/// counter of live packets moves. The caller holds the lock.
pub fn run(
    programs: &Programs,
    view: &View<'_>,
    tables: &Tables,
    facts: &Facts,
    tests: &[PolicyTest],
) -> Result<Vec<Outcome>, NodeError> {
    let ports: Vec<&str> = facts.ports.iter().map(|(port, _)| port.port.as_str()).collect();
    let mut outcomes = Vec::new();
    let mut failed = None;
    for (test, case) in tests.iter().flat_map(|test| test.cases.iter().map(move |case| (test, case))) {
        let ended = match left_out(case, view, Some(&ports)) {
            Some(why) => Ok(Ended::LeftOut { why }),
            None => one(programs, view, tables, facts, case),
        };
        match ended {
            Ok(ended) => outcomes.push(Outcome::new(test, case, ended)),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    if !outcomes.is_empty() || failed.is_some() {
        programs.set_test_ingress(0, Some(&TEST_INGRESS))?;
    }
    failed.map_or(Ok(outcomes), Err)
}

/// Runs every case over `image` in maps and programs of their own, which lie beside the node's pins for as long: what is
/// live, its neighbours and its counters have no part in it. Neighbours are unknown there, and so is every MTU.
pub fn run_beside(
    node: &Node,
    image: &CompiledImage,
    facts: &Facts,
    tests: &[PolicyTest],
) -> Result<Vec<Outcome>, NodeError> {
    let mut place = node.pins.place().as_os_str().to_owned();
    place.push("-test");
    let pins = Pins::new(Path::new(&place));
    pins.check_file_system()?;
    pins.create()?;
    // Also against what a killed process left.
    let lock = pins.lock()?;
    let outcomes = beside(&pins, image, facts, tests);
    pins.remove_all()?;
    drop(lock);
    pins.remove_directory(pins.place())?;
    outcomes
}

fn beside(pins: &Pins, image: &CompiledImage, facts: &Facts, tests: &[PolicyTest]) -> Result<Vec<Outcome>, NodeError> {
    let bits = capacity_class(image.bytes().len())?.trailing_zeros();
    let programs = Programs::ensure(pins, bits, Stages::of(&image.view()?))?;
    let mut image = image.clone();
    image.stamp(1, 0, 0);
    let mut tables = Tables::open(pins)?;
    neighbours::write_devices(&mut tables, &image.view()?, facts)?;
    let staged = publish::stage(pins, &programs, &image)?;
    let mut outcomes = Vec::new();
    let verified = staged.verify(|programs, view: &View<'_>| -> Result<(), NodeError> {
        check::agree(programs, view, &tables)?;
        outcomes = run(programs, view, &tables, facts, tests)?;
        Ok(())
    })?;
    drop(verified);
    Ok(outcomes)
}

fn one(programs: &Programs, view: &View<'_>, tables: &Tables, facts: &Facts, case: &Case) -> Result<Ended, NodeError> {
    let port = case.in_port.as_deref().and_then(|name| facts.ports.iter().find(|(p, _)| p.port == name));
    let tags = port.map_or(Tags::default(), |(port, _)| port.wire.tags);
    let mut frame = case.packet.frame(tags);
    if frame.len() > FRAME_BYTES_MAX {
        let why = format!("a test run in the kernel takes packets of up to {} bytes", FRAME_BYTES_MAX - 14);
        return Ok(Ended::LeftOut { why });
    }
    let ingress = match port {
        Some((device, link)) => {
            let mut mac = [0; 8];
            mac[..6].copy_from_slice(&link.mac.unwrap_or_default());
            let id = view.ports().find(|port| port.name == device.port).map_or(0, |port| port.id);
            let written = tables.ingress(device.wire.link.index, tags.vids())?;
            let ingress = written.unwrap_or(Ingress { mac: u64::from_le_bytes(mac), port: id });
            frame[..6].copy_from_slice(&ingress.mac.to_le_bytes()[..6]);
            ingress
        }
        None => Ingress { mac: destination_mac(frame.as_slice()).unwrap_or_default(), port: 0 },
    };
    let vids = tags.vids();
    programs.set_test_ingress(vids, Some(&ingress))?;
    let ran = programs.test_run(&frame);
    if vids != 0 {
        programs.set_test_ingress(vids, None)?;
    }
    let ran = ran?;
    let asked = At { ingress: &ingress, vids, tables: TableNode(tables) };
    let expected = by_library(view, tables, &asked, &frame)?;
    let traced = trace(view, case.packet, &Assumed(asked));
    let judged = match &traced {
        Ok(traced) => judge(case, traced),
        Err(error) => return Err(KernelError::Verify { detail: error.to_string() }.into()),
    };
    Ok(match (difference(&expected, &ran), judged) {
        (Some(difference), Ended::Failed { expected, got }) => {
            Ended::Failed { expected, got: format!("{got}; and the kernel disagrees: {difference}") }
        }
        (Some(difference), _) => {
            Ended::Failed { expected: "the loaded program and the library to decide alike".to_owned(), got: difference }
        }
        (None, judged) => judged,
    })
}

/// The same with every next hop up; those that are keep their MACs and MTU.
struct Assumed<'t>(At<'t>);

impl TraceNode for Assumed<'_> {}

impl fib::Node for Assumed<'_> {
    fn ingress(&self, tags: Tags) -> Option<Ingress> {
        self.0.ingress(tags)
    }

    fn reach(&self, id: u32) -> ReachWords {
        match self.0.tables.0.reach(id) {
            Ok(known @ Reach::Up(_)) => known.encode(),
            _ => Offline.reach(id),
        }
    }

    fn ask<I: Image + ?Sized>(&self, _image: &I, _at: u32, _port: u32) -> Option<Neighbour> {
        None
    }

    fn takes(&self, _ingress: &Ingress, _mac: Option<u64>) -> bool {
        true
    }
}
