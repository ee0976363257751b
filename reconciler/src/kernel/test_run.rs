//! Test runs beside an apply: of one frame through any image, and of the programs of the other hooks.
//!
//! Nothing is sent, and no counter of live traffic moves: the candidate has counters of its own. The candidate that decides
//! before a publish is the XDP program. The instances of the other hooks read the same slot and write the same counters; they
//! are loaded for as long as somebody tests them, and are neither pinned nor attached.

use aya::programs::{Program, SchedClassifier, Xdp};
use aya::{Ebpf, TestRun as _};

use fib::Ingress;

use super::image_map::ImageMap;
use super::pins::Pins;
use super::program::{CANDIDATE, Programs, TEST_INGRESS, TestRunOutcome, load_object};
use super::{KernelError, sys};

/// Runs the candidate's program on one frame that came in by `ingress`, the port that takes these VLAN identifiers
/// (`Tags::vids`), over an image that lies in the candidate slot for as long.
///
/// The caller holds the lock. A process that is killed in here leaves a candidate, which the next apply removes.
pub fn run_once(
    programs: &Programs,
    image: &ImageMap,
    ingress: &Ingress,
    vids: u32,
    frame: &[u8],
) -> Result<TestRunOutcome, KernelError> {
    sys::set_slot(programs.generations(), CANDIDATE, image.fd())?;
    let ran = programs.set_test_ingress(vids, Some(ingress)).and_then(|()| programs.test_run(frame));
    let before = (vids == 0).then_some(&TEST_INGRESS);
    let restored = programs.set_test_ingress(vids, before);
    let cleared = sys::clear_slot(programs.generations(), CANDIDATE);
    let ran = ran?;
    restored?;
    cleared?;
    Ok(ran)
}

/// Longest frame that a test run takes in one buffer: a page, less what the kernel keeps before and behind it.
pub const FRAME_BYTES_MAX: usize = 3_400;

const FRAGS: &str = "wayleave_frags";
const TC: &str = "wayleave_tc";

/// The candidate's programs of the other hooks.
#[derive(Debug)]
pub struct OtherHooks {
    object: Ebpf,
}

impl OtherHooks {
    /// Loads them beside the candidate of `programs`.
    pub fn load(pins: &Pins, programs: &Programs) -> Result<Self, KernelError> {
        let mut object = load_object(pins, programs.bits, programs.stages, CANDIDATE)?;
        let frags = object.program_mut(FRAGS).ok_or(KernelError::NoProgram { name: FRAGS })?;
        let frags: &mut Xdp = frags.try_into().map_err(KernelError::program("find"))?;
        frags.load().map_err(KernelError::program("load"))?;
        let tc = object.program_mut(TC).ok_or(KernelError::NoProgram { name: TC })?;
        let tc: &mut SchedClassifier = tc.try_into().map_err(KernelError::program("find"))?;
        tc.load().map_err(KernelError::program("load"))?;
        Ok(Self { object })
    }

    /// As [`Programs::test_run`], for a frame that may be larger than a page: it lies in several buffers then.
    pub fn test_run_frags(&self, programs: &Programs, frame: &[u8]) -> Result<TestRunOutcome, KernelError> {
        let program: &Xdp = self.program(FRAGS)?.try_into().map_err(KernelError::program("find"))?;
        programs.counted_run(frame, |options| program.test_run(options))
    }

    /// As [`Programs::test_run`]; the action is a `TC_ACT_*`. The outermost VLAN tag that the program gives a frame stays
    /// beside its bytes, where a test run does not show it.
    pub fn test_run_tc(&self, programs: &Programs, frame: &[u8]) -> Result<TestRunOutcome, KernelError> {
        let program: &SchedClassifier = self.program(TC)?.try_into().map_err(KernelError::program("find"))?;
        programs.counted_run(frame, |options| program.test_run(options))
    }

    fn program(&self, name: &'static str) -> Result<&Program, KernelError> {
        self.object.program(name).ok_or(KernelError::NoProgram { name })
    }
}
