//! One reconcile: observe, desire, plan, execute, record.

use crate::compile::{Image, View};
use crate::kernel::KernelError;
use crate::kernel::observe::Observed;
use crate::plan::Plan;
use crate::policy::Diagnostic;
use crate::reconcile::{Step, steps};
use crate::source::ReadSource;

use super::execute::{Report, execute};
use super::journal::{Entry, Event};
use super::node::{Facts, Node, NodeError, operator, unix_ms};

/// What a reconcile would do, computed without changing anything.
#[derive(Debug)]
pub struct Proposal {
    pub plan: Plan,
    pub steps: Vec<Step>,
    /// Warnings about the source.
    pub diagnostics: Vec<Diagnostic>,
    image: Image,
    observed: Observed,
    facts: Facts,
    event: Event,
}

/// What a reconcile did.
#[derive(Debug)]
pub struct Applied {
    /// The generation that is live now; 0: none.
    pub live: u64,
    pub report: Report,
}

impl Proposal {
    /// Whether the kernel holds what is wanted already.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether the desired rules are the live ones, whatever else is to be done.
    pub fn is_live(&self) -> bool {
        self.plan.from().is_some_and(|live| live.digest == self.plan.to().digest)
    }

    /// The generation that was live when the proposal was made; 0: none.
    pub fn parent(&self) -> u64 {
        self.observed.live_number()
    }

    /// The image that was live when the proposal was made.
    pub fn live(&self) -> Result<Option<View<'_>>, NodeError> {
        Ok(self.observed.live.as_ref().map(|live| live.image.view()).transpose()?)
    }

    /// The desired image.
    pub fn desired(&self) -> Result<View<'_>, NodeError> {
        Ok(self.image.view()?)
    }
}

/// Proposes what `source` says; every port of the config must have its device.
pub async fn propose(node: &Node, source: &(impl ReadSource + ?Sized)) -> Result<Proposal, NodeError> {
    let facts = node.facts().await?;
    if let Some((port, device)) = facts.missing.first().cloned() {
        return Err(NodeError::Kernel(KernelError::NoDevice { port, device }));
    }
    propose_with(node, source, facts)
}

/// Proposes what `source` says for the devices that exist: a lost device must not keep the others from their rules.
pub async fn propose_degraded(node: &Node, source: &(impl ReadSource + ?Sized)) -> Result<Proposal, NodeError> {
    let facts = node.facts().await?;
    for (port, device) in &facts.missing {
        tracing::warn!(port, device, "the port's device does not exist; its packets pass to the kernel");
    }
    propose_with(node, source, facts)
}

fn propose_with(node: &Node, source: &(impl ReadSource + ?Sized), facts: Facts) -> Result<Proposal, NodeError> {
    let observed = node.observe()?;
    let desired = node.desire(source, &facts.node, &observed)?;
    proposal(node, desired.image, desired.diagnostics, observed, facts, Event::Applied)
}

/// Proposes the rules of an older generation again: the newest retained one, or the one named.
pub async fn propose_rollback(node: &Node, number: Option<u64>) -> Result<Proposal, NodeError> {
    let observed = node.observe()?;
    let facts = node.facts().await?;
    let generation = match number {
        Some(number) => observed.generation(number).ok_or(NodeError::NoGeneration { number })?,
        None => observed.retained.first().ok_or(NodeError::NothingOlder { live: observed.live_number() })?,
    };
    let image = Image::copy_of(&generation.image.view()?);
    proposal(node, image, Vec::new(), observed, facts, Event::RolledBack)
}

fn proposal(
    node: &Node,
    image: Image,
    diagnostics: Vec<Diagnostic>,
    observed: Observed,
    facts: Facts,
    event: Event,
) -> Result<Proposal, NodeError> {
    let plan = {
        let live = observed.live.as_ref().map(|g| g.image.view()).transpose()?;
        Plan::between(live.as_ref(), &image.view()?)
    };
    let steps = steps(&node.found(&observed)?, &node.wanted(&image, &facts)?);
    Ok(Proposal { plan, steps, diagnostics, image, observed, facts, event })
}

/// Makes a proposal true. Refused when another generation has become live since it was made.
pub async fn apply(node: &Node, mut proposal: Proposal, progress: &mut dyn FnMut(&Step)) -> Result<Applied, NodeError> {
    let live = proposal.parent();
    if proposal.is_empty() {
        return Ok(Applied { live, report: Report::default() });
    }
    let _lock = node.lock()?;
    // What a killed process left, or another process did, may have changed while this one waited.
    let observed = node.observe()?;
    if observed.live_number() != live {
        return Err(NodeError::Stale { expected: live, found: observed.live_number() });
    }
    proposal.observed = observed;
    let found = node.found(&proposal.observed)?;
    proposal.steps = steps(&found, &node.wanted(&proposal.image, &proposal.facts)?);
    if let Some(Step::Publish { generation }) = proposal.steps.iter().find(|s| matches!(s, Step::Publish { .. })) {
        proposal.image.stamp(*generation, live, unix_ms());
    }
    let Proposal { steps, image, observed, facts, .. } = &proposal;
    let result = execute(node, steps, image, observed, facts, progress).await;
    // A step that fails after the publish leaves the new generation live: that is history, too.
    let now = match &result {
        Ok(report) => report.published.unwrap_or(live),
        Err(NodeError::Step { live: now, .. }) => *now,
        Err(_) => live,
    };
    if now != live {
        record(node, &proposal, now)?;
    }
    Ok(Applied { live: now, report: result? })
}

/// What a plan changes, in a few words.
pub fn summary(plan: &Plan) -> String {
    let summary = plan.summary();
    format!("{} added, {} changed, {} removed", summary.add, summary.change, summary.remove)
}

/// Writes the journal. The generation is live already, so a full disk is reported, not undone.
fn record(node: &Node, proposal: &Proposal, generation: u64) -> Result<(), NodeError> {
    let view = proposal.image.view()?;
    let entry = Entry {
        generation,
        parent: view.parent(),
        revision: view.revision().to_owned(),
        digest: view.digest().to_string(),
        by: operator(),
        summary: summary(&proposal.plan),
        ..Entry::new(proposal.event, view.created_unix_ms())
    };
    node.journal.append(&entry).map_err(|source| NodeError::State { path: node.config.state_dir.clone(), source })
}
