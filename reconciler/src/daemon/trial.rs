//! One packet through the loaded program, beside the library's answer: what `trace --kernel` shows.

use fib::packet::Tags;
use fib::{Image, Ingress, Neighbour, ReachWords};

use crate::compile::{View, capacity_class};
use crate::kernel::check::{TableNode, by_library, difference};
use crate::kernel::image_map::ImageMap;
use crate::kernel::program::{Programs, Stages, TestRunOutcome};
use crate::kernel::tables::Tables;
use crate::kernel::test_run::run_once;

use super::node::{Node, NodeError};

/// What both made of the packet.
#[derive(Debug)]
pub struct Trial {
    pub by_library: TestRunOutcome,
    pub by_program: TestRunOutcome,
}

impl Trial {
    /// Where they differ.
    pub fn difference(&self) -> Option<String> {
        difference(&self.by_library, &self.by_program)
    }
}

/// Runs a frame that comes in by `ingress`, the port of these VLAN identifiers, through `candidate`, or else through the live generation, which lies in the
/// candidate slot, too, for as long. No live packet meets it, and none of their counters moves.
///
/// `None`: no generation is live.
pub fn run(
    node: &Node,
    candidate: Option<&View<'_>>,
    ingress: &Ingress,
    vids: u32,
    frame: &[u8],
) -> Result<Option<Trial>, NodeError> {
    let _lock = node.lock()?;
    let observed = node.observe()?;
    let (Some(live), Some(live_bits)) = (&observed.live, observed.class_bits) else { return Ok(None) };
    // The live programs' own, where they will do.
    let has = observed.stages.last().copied().unwrap_or_default();
    let Some(candidate) = candidate else {
        return over(node, &live.image, (live_bits, has), ingress, vids, frame).map(Some);
    };
    let stages = has.max(Stages::of(candidate));
    let bits = capacity_class(candidate.bytes().len())?.trailing_zeros().max(live_bits);
    let image = ImageMap::create(candidate.bytes(), 1 << bits)?;
    let result = over(node, &image, (bits, stages), ingress, vids, frame);
    if bits != live_bits {
        node.pins.remove_directory(&node.pins.class(bits))?;
    } else if stages != has {
        stages.pins().try_for_each(|name| node.pins.remove(&node.pins.class(bits).join(name)))?;
    }
    result.map(Some)
}

fn over(
    node: &Node,
    image: &ImageMap,
    (bits, stages): (u32, Stages),
    ingress: &Ingress,
    vids: u32,
    frame: &[u8],
) -> Result<Trial, NodeError> {
    let programs = Programs::ensure(&node.pins, bits, stages)?;
    let tables = Tables::open(&node.pins)?;
    let by_program = run_once(&programs, image, ingress, vids, frame)?;
    let asked = At { ingress, vids, tables: TableNode(&tables) };
    let by_library = by_library(&image.view()?, &tables, &asked, frame)?;
    Ok(Trial { by_library, by_program })
}

/// The node's tables, and the port that the frame comes in by.
pub(super) struct At<'t> {
    pub(super) ingress: &'t Ingress,
    /// VLAN identifiers of the port's frames.
    pub(super) vids: u32,
    pub(super) tables: TableNode<'t>,
}

impl fib::Node for At<'_> {
    fn ingress(&self, tags: Tags) -> Option<Ingress> {
        (tags.vids() == self.vids).then_some(*self.ingress)
    }

    fn reach(&self, id: u32) -> ReachWords {
        self.tables.reach(id)
    }

    fn ask<I: Image + ?Sized>(&self, image: &I, at: u32, port: u32) -> Option<Neighbour> {
        self.tables.ask(image, at, port)
    }
}
