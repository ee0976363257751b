//! Executing steps: one match, in the order that [`crate::reconcile::steps`] gave.

use std::cell::OnceCell;
use std::collections::BTreeSet;

use crate::compile::{Image, View};
use crate::kernel::counters::{self, Owners};
use crate::kernel::health::{Backends, Standing};
use crate::kernel::observe::{Generation, Observed};
use crate::kernel::program::{Programs, Stages};
use crate::kernel::publish::{self, Staged, Verified};
use crate::kernel::tables::Tables;
use crate::kernel::{KernelError, attach, check, layout, restore};
use crate::policy::PolicyTest;
use crate::reconcile::{Attachment, Step};

use super::cases;
use super::neighbours::{self, Unresolved};
use super::node::{Facts, Node, NodeError};
use super::state::{AttachmentRecord, State};

/// What an execution did.
#[derive(Debug, Default)]
pub struct Report {
    /// The generation that was published, if one was.
    pub published: Option<u64>,
    /// Devices that were attached for their ports, and how.
    pub attached: Vec<(Attachment, attach::Attached)>,
    /// Next hops whose neighbour did not answer: packets to them use the kernel's own tables, or pass.
    pub unresolved: Vec<Unresolved>,
}

/// Where an image stands on its way.
enum Candidate<'k> {
    None,
    Staged(Staged<'k>),
    Verified(Verified<'k>),
}

/// Executes `steps` in order; the first failure stops it, names its step and the generation that is still live.
///
/// The caller holds the lock. `image` is stamped already; `tests` are run in the kernel before it is published; `progress` hears of each step before it is made.
pub async fn execute(
    node: &Node,
    steps: &[Step],
    image: &Image,
    observed: &Observed,
    facts: &Facts,
    tests: &[PolicyTest],
    progress: &mut dyn FnMut(&Step),
) -> Result<Report, NodeError> {
    let programs = OnceCell::new();
    let mut run = Run {
        node,
        image,
        observed,
        facts,
        tests,
        programs: &programs,
        candidate: Candidate::None,
        retired: BTreeSet::new(),
    };
    let mut report = Report::default();
    for step in steps {
        progress(step);
        tracing::debug!(%step, "step");
        if let Err(source) = run.step(step, &mut report).await {
            let live = report.published.unwrap_or(observed.live_number());
            return Err(NodeError::Step { step: step.to_string(), live, source: Box::new(source) });
        }
    }
    Ok(report)
}

struct Run<'a> {
    node: &'a Node,
    image: &'a Image,
    observed: &'a Observed,
    facts: &'a Facts,
    tests: &'a [PolicyTest],
    programs: &'a OnceCell<Programs>,
    candidate: Candidate<'a>,
    /// Generations that are gone already.
    retired: BTreeSet<u64>,
}

impl<'a> Run<'a> {
    async fn step(&mut self, step: &Step, report: &mut Report) -> Result<(), NodeError> {
        let pins = &self.node.pins;
        match step {
            Step::RestorePins { bits } => restore::restore(pins, *bits)?,
            Step::ClearCandidate { bits } => publish::clear_candidate(pins, *bits)?,
            Step::RemovePin { path } => pins.remove(path)?,
            Step::RemovePrograms { bits } => {
                for name in Stages::Routes.pins() {
                    pins.remove(&pins.class(*bits).join(name))?;
                }
            }
            Step::RemoveClass { bits } => pins.remove_directory(&pins.class(*bits))?,
            Step::PinLive => publish::pin_live(pins, self.live()?)?,
            Step::LoadPrograms { bits, stages } => {
                let programs = Programs::ensure(pins, *bits, *stages)?;
                // Steps load once; a second set would be a defect of the planner.
                assert!(self.programs.set(programs).is_ok(), "programs are loaded once");
            }
            Step::CopyLive { .. } => publish::copy_live(self.programs()?, self.live()?)?,
            Step::UpdateLink { link } => attach::update(self.programs()?, &link.pin)?,
            Step::TakeLink { link, device } => attach::take(pins, self.programs()?, device, &link.pin)?,
            Step::Detach { link } => attach::detach(&link.pin)?,
            Step::RemoveLayout { layout } => layout::remove(pins, &layout.directory)?,
            Step::Attach { attachment } => {
                let attached = attach::attach(pins, self.programs()?, &attachment.target)?;
                self.remember(attachment, &attached);
                report.attached.push((attachment.clone(), attached));
            }
            Step::WriteTables => {
                let mut tables = Tables::open(pins)?;
                let view = self.image.view()?;
                neighbours::write_devices(&mut tables, &view, self.facts)?;
                self.clear_counters(&view)?;
                let live = self.observed.live.as_ref().map(|g| g.image.view()).transpose()?;
                report.unresolved = neighbours::write_neighbours(&mut tables, &view, live.as_ref(), self.facts).await?;
            }
            Step::Stage { .. } => {
                self.candidate = Candidate::Staged(publish::stage(pins, self.programs()?, self.image)?);
            }
            Step::Verify { .. } => {
                let Candidate::Staged(staged) = std::mem::replace(&mut self.candidate, Candidate::None) else {
                    return Err(out_of_order(step));
                };
                let tables = Tables::open(pins)?;
                let verified = staged.verify(|programs, view: &View<'_>| {
                    check::agree(programs, view, &tables)?;
                    cases::all_hold(programs, view, &tables, self.facts, self.tests)
                })?;
                self.candidate = Candidate::Verified(verified);
            }
            Step::Publish { .. } => {
                let Candidate::Verified(verified) = std::mem::replace(&mut self.candidate, Candidate::None) else {
                    return Err(out_of_order(step));
                };
                report.published = Some(verified.publish()?.number);
            }
            Step::Retire { generation } => {
                self.carry_counts(*generation, report.published.is_some())?;
                pins.remove(&pins.generation(*generation))?;
                self.retired.insert(*generation);
            }
        }
        Ok(())
    }

    /// Starts the counters of ids that no generation of the kernel knows: they may be those of objects that are gone.
    fn clear_counters(&self, view: &View<'_>) -> Result<(), NodeError> {
        let mut policies: BTreeSet<u32> = view.policies().map(|policy| policy.id).collect();
        policies.extend(view.filter_policies().map(|policy| policy.id));
        let mut filter_rules: BTreeSet<u32> = view.filter_rules().map(|rule| rule.id).collect();
        let mut next_hops: BTreeSet<u32> = view.next_hops().map(|hop| hop.id).collect();
        let mut services: BTreeSet<u32> = view.services().map(|service| service.id).collect();
        let mut backends: BTreeSet<u32> =
            view.services().flat_map(|service| view.backends(&service).map(|b| b.id).collect::<Vec<_>>()).collect();
        // Nearly always the live generation knows them all, and no other image has to be read.
        for generation in self.observed.live.iter().chain(&self.observed.retained) {
            let objects_gone = services.is_empty() && backends.is_empty() && filter_rules.is_empty();
            if policies.is_empty() && next_hops.is_empty() && objects_gone {
                return Ok(());
            }
            let known = generation.image.view()?;
            known.policies().for_each(|policy| _ = policies.remove(&policy.id));
            known.next_hops().for_each(|hop| _ = next_hops.remove(&hop.id));
            known.filter_policies().for_each(|policy| _ = policies.remove(&policy.id));
            known.filter_rules().for_each(|rule| _ = filter_rules.remove(&rule.id));
            for service in known.services() {
                services.remove(&service.id);
                known.backends(&service).for_each(|backend| _ = backends.remove(&backend.id));
            }
        }
        let Some(mut counters) = counters::Objects::open(&self.node.pins)? else { return Ok(()) };
        policies.into_iter().try_for_each(|id| counters.clear_policy(id))?;
        filter_rules.into_iter().try_for_each(|id| counters.clear_filter_rule(id))?;
        // Carried already where their last generation was retired in an orderly way.
        next_hops.into_iter().try_for_each(|id| counters.carry(id, 0))?;
        services.into_iter().try_for_each(|id| counters.clear_service(id))?;
        if !backends.is_empty() {
            let mut health = Backends::open(&self.node.pins)?;
            backends.into_iter().try_for_each(|id| {
                health.set(id, Standing::default())?;
                counters.clear_backend(id)
            })?;
        }
        Ok(())
    }

    /// Before a generation is retired: the counts of next hops that no other one knows go to their policies.
    fn carry_counts(&self, generation: u64, published: bool) -> Result<(), NodeError> {
        let Some(mut counters) = counters::Objects::open(&self.node.pins)? else { return Ok(()) };
        let Some(gone) = self.observed.generation(generation) else { return Ok(()) };
        let gone = Owners::of([&gone.image.view()?]);
        let stays = |g: &&Generation| g.number != generation && !self.retired.contains(&g.number);
        let others = self.observed.live.iter().chain(&self.observed.retained).filter(stays);
        let mut views = others.map(|g| g.image.view()).collect::<Result<Vec<_>, _>>()?;
        if published {
            views.push(self.image.view()?);
        }
        let others = Owners::of(&views);
        Ok(gone.without(&others).try_for_each(|(next_hop, policy)| counters.carry(next_hop, policy))?)
    }

    /// Leaves for `status` how a device was attached, and why so. What it is attached by, the kernel says.
    fn remember(&self, attachment: &Attachment, attached: &attach::Attached) {
        let target = &attachment.target;
        let record = AttachmentRecord {
            device: target.device.clone(),
            index: target.index,
            configured: target.mode.word().to_owned(),
            mode: attached.mode.word().to_owned(),
            why: attached.why.clone(),
        };
        if let Err(error) = State::new(&self.node.config.state_dir).add_attachment(record) {
            tracing::warn!(%error, "the state directory cannot be written");
        }
    }

    fn programs(&self) -> Result<&'a Programs, NodeError> {
        let missing = || KernelError::Verify { detail: "the programs are not loaded".to_owned() };
        Ok(self.programs.get().ok_or_else(missing)?)
    }

    fn live(&self) -> Result<&'a Generation, NodeError> {
        let missing = || KernelError::Verify { detail: "no generation is live".to_owned() };
        Ok(self.observed.live.as_ref().ok_or_else(missing)?)
    }
}

fn out_of_order(step: &Step) -> NodeError {
    KernelError::Verify { detail: format!("{step}: the candidate is not ready for it") }.into()
}
