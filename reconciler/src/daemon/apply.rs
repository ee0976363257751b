//! One reconcile: observe, desire, plan, execute, record.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::compile::{Image, View, readdress};
use crate::guard::{self, Refusal};
use crate::kernel::KernelError;
use crate::kernel::observe::{Observed, generation};
use crate::plan::Plan;
use crate::policy::{Diagnostic, Guard, PolicyTest, Prefix, Probe};
use crate::policy_test::{self, Outcome};
use crate::reconcile::hold::Hold;
use crate::reconcile::{Found, Step, steps};
use crate::source::{ReadSource, Source};

use super::execute::{Report, execute};
use super::journal::{Entry, Event};
use super::node::{Facts, Node, NodeError, operator, unix_ms};
use super::probation::{self, Terms};
use super::suspension;

/// How long the name of the source's server is looked up.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a reconcile would do, computed without changing anything.
#[derive(Debug)]
pub struct Proposal {
    pub plan: Plan,
    pub steps: Vec<Step>,
    /// What the steps were computed from.
    pub found: Found,
    /// Warnings about the source.
    pub diagnostics: Vec<Diagnostic>,
    /// Tests of the source, which are run in the kernel before its rules are published.
    pub tests: Vec<PolicyTest>,
    /// What must work after it if it worked before.
    pub probes: Vec<Probe>,
    /// What it has to prove; nothing when left out. Another change that was still on probation counts as superseded then.
    pub terms: Option<Terms>,
    /// The generation on probation that this rolls back: it says itself how it ended.
    pub concludes: Option<u64>,
    /// Why, where somebody said so.
    pub why: Option<String>,
    /// What the guards say of it; [`apply`] refuses a proposal with any.
    pub refusals: Vec<Refusal>,
    /// What keeps it from being published for now; [`apply`] refuses a proposal with any, and looks again itself.
    pub holds: Vec<Hold>,
    /// Whether it brings something new of the source, which can be held.
    can_be_held: bool,
    /// Holds that it goes past, by name.
    past_holds: BTreeSet<&'static str>,
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

    /// Goes past these guards.
    pub fn allow(&mut self, guards: &BTreeSet<Guard>) {
        self.refusals.retain(|refusal| !guards.contains(&refusal.guard));
    }

    /// Goes past these holds; the words of [`Hold::NAMES`].
    pub fn go_past(&mut self, holds: &BTreeSet<&'static str>) {
        self.past_holds.clone_from(holds);
        self.holds.retain(|hold| !holds.contains(hold.name()));
    }

    /// The tests by the library, every next hop taken to be up.
    pub fn outcomes(&self) -> Result<Vec<Outcome>, NodeError> {
        let view = self.desired()?;
        let ports: Vec<&str> = self.facts.ports.iter().map(|(port, _)| port.port.as_str()).collect();
        policy_test::run_all(&view, &self.tests, Some(&ports))
            .map_err(|error| KernelError::Verify { detail: error.to_string() }.into())
    }

    /// Whether the desired rules are the live ones, whatever else is to be done.
    pub fn is_live(&self) -> bool {
        // Live rules that are not what their digest says are none.
        self.found.live_digest.is_some() && self.plan.from().is_some_and(|live| live.digest == self.plan.to().digest)
    }

    /// The generation that was live when the proposal was made; 0: none.
    pub fn parent(&self) -> u64 {
        self.observed.live_number()
    }

    pub(super) fn facts(&self) -> &Facts {
        &self.facts
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
    node.refuse_newer_layout()?;
    let facts = node.facts().await?;
    if let Some(fault) = facts.missing.first() {
        return Err(fault.clone().into());
    }
    propose_with(node, source, facts).await
}

/// Proposes what `source` says for the devices that exist: a lost device must not keep the others from their rules.
pub async fn propose_degraded(node: &Node, source: &(impl ReadSource + ?Sized)) -> Result<Proposal, NodeError> {
    node.refuse_newer_layout()?;
    let facts = node.facts().await?;
    for fault in &facts.missing {
        tracing::warn!("{fault}; its packets pass to the kernel");
    }
    propose_with(node, source, facts).await
}

async fn propose_with(node: &Node, source: &(impl ReadSource + ?Sized), facts: Facts) -> Result<Proposal, NodeError> {
    let observed = node.observe()?;
    let desired = node.desire(source, &facts.node, &observed)?;
    let mut proposal = proposal(node, desired.image, desired.diagnostics, observed, facts, Event::Applied)?;
    proposal.tests = desired.tests;
    proposal.probes = desired.probes;
    proposal.why = desired.subject;
    let was_live_before = was_live_before(node, &proposal)?;
    if !was_live_before {
        proposal.refusals = refusals(node, &proposal, &desired.allowed).await?;
    }
    // The source that is live already, compiled anew for other addresses or devices of the node, is nothing new.
    let same_revision = proposal.plan.from().is_some_and(|live| live.revision == proposal.plan.to().revision);
    proposal.can_be_held = !proposal.is_live() && !same_revision && !was_live_before;
    if proposal.can_be_held {
        proposal.holds = suspension::holds(node)?;
    }
    Ok(proposal)
}

async fn refusals(node: &Node, proposal: &Proposal, allowed: &BTreeSet<Guard>) -> Result<Vec<Refusal>, NodeError> {
    let mut management = proposal.facts.management.clone();
    if let Source::Git(source) = &node.config.source
        && let Some(host) = source.url.host()
        && !proposal.plan.is_empty()
    {
        management.extend(addresses_of(host).await);
    }
    let management: Vec<Prefix> = management.iter().map(|address| Prefix::containing(*address, u8::MAX)).collect();
    let (before, after) = (proposal.live()?, proposal.desired()?);
    Ok(guard::check(&proposal.plan, before.as_ref(), &after, &management, &node.config.guards, allowed))
}

/// The addresses of the source's server; none when nobody says them in time: a name server that is away must not keep the
/// node from its rules.
async fn addresses_of(host: &str) -> Vec<IpAddr> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return vec![address];
    }
    let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, 0))).await;
    if let Ok(Ok(addresses)) = found {
        return addresses.map(|address| address.ip()).collect();
    }
    tracing::warn!(host, "the address of the source's server is not known; no guard covers it");
    Vec::new()
}

/// Whether nothing is live, and this source is what was live last: after a reboot a node takes up its rules again, whatever
/// somebody had to allow when they were new.
fn was_live_before(node: &Node, proposal: &Proposal) -> Result<bool, NodeError> {
    if proposal.parent() != 0 {
        return Ok(false);
    }
    let state = |source| NodeError::State { path: node.config.state_dir.clone(), source };
    let entries = node.journal.read().map_err(state)?;
    let last = entries.iter().rev().find(|entry| entry.event != Event::Detached);
    let to = proposal.plan.to();
    Ok(last.is_some_and(|last| last.revision == to.revision || last.digest == to.digest.to_string()))
}

/// Proposes the rules of an older generation again: the newest retained one, or the one named.
pub async fn propose_rollback(node: &Node, number: Option<u64>) -> Result<Proposal, NodeError> {
    node.refuse_newer_layout()?;
    let observed = node.observe()?;
    let facts = node.facts().await?;
    let generation = match number {
        Some(number) => observed.generation(number).ok_or(NodeError::NoGeneration { number })?,
        None => observed.retained.first().ok_or(NodeError::NothingOlder { live: observed.live_number() })?,
    };
    let image = Image::copy_of(&generation.image.view()?);
    proposal(node, image, Vec::new(), observed, facts, Event::RolledBack)
}

/// Proposes what is live again, for what the node's devices are now; `None`: nothing is live.
pub async fn propose_live(node: &Node) -> Result<Option<Proposal>, NodeError> {
    node.refuse_newer_layout()?;
    let observed = node.observe()?;
    let facts = node.facts().await?;
    let Some(live) = &observed.live else { return Ok(None) };
    let image = Image::copy_of(&live.image.view()?);
    proposal(node, image, Vec::new(), observed, facts, Event::Applied).map(Some)
}

/// Proposes that what is live stays in force on the node as it is now, its own addresses included, whatever the source says;
/// `None`: nothing is live.
pub async fn propose_kept(node: &Node) -> Result<Option<Proposal>, NodeError> {
    node.refuse_newer_layout()?;
    let observed = node.observe()?;
    let facts = node.facts().await?;
    let Some(live) = &observed.live else { return Ok(None) };
    let (image, moved) = for_addresses(&live.image.view()?, &facts)?;
    let mut proposal = proposal(node, image, Vec::new(), observed, facts, Event::Applied)?;
    proposal.why = moved.then(|| "the node has other addresses of its own".to_owned());
    proposal.probes.clone_from(&node.config.probes);
    Ok(Some(proposal))
}

/// Proposes rules that were live before the machine was restarted, for the node as it is now.
pub(super) async fn propose_settled(node: &Node, settled: &Image) -> Result<Proposal, NodeError> {
    node.refuse_newer_layout()?;
    let (observed, facts) = (node.observe()?, node.facts().await?);
    let (image, _) = for_addresses(&settled.view()?, &facts)?;
    let mut proposal = proposal(node, image, Vec::new(), observed, facts, Event::Restored)?;
    proposal.why = Some("the machine was restarted".to_owned());
    // A change that the restart kept from proving itself has failed, not been superseded.
    proposal.concludes = probation::pending(node)?.map(|record| record.generation);
    Ok(proposal)
}

/// The same rules for the node's own addresses as they are now, and whether those were others.
fn for_addresses(view: &View<'_>, facts: &Facts) -> Result<(Image, bool), NodeError> {
    let mut addresses = facts.node.local_addresses.clone();
    addresses.sort_unstable();
    addresses.dedup();
    if view.locals().eq(addresses) {
        return Ok((Image::copy_of(view), false));
    }
    Ok((readdress(view, &facts.node)?, true))
}

/// Proposes what was published last once more, as its pin still holds it: for a live slot in which somebody put something
/// else. `None`: nothing was published, or the pin does not hold it any more.
pub async fn propose_published(node: &Node) -> Result<Option<Proposal>, NodeError> {
    node.refuse_newer_layout()?;
    let state = |source| NodeError::State { path: node.config.state_dir.clone(), source };
    let entries = node.journal.read().map_err(state)?;
    let Some(last) = entries.last().filter(|last| last.event != Event::Detached) else { return Ok(None) };
    let Some(published) = generation(&node.pins, last.generation)? else { return Ok(None) };
    let view = published.image.view()?;
    if view.verify_digest().is_err() || view.digest().to_string() != last.digest {
        return Ok(None);
    }
    let (observed, facts) = (node.observe()?, node.facts().await?);
    let image = Image::copy_of(&view);
    let mut proposal = proposal(node, image, Vec::new(), observed, facts, Event::Repaired)?;
    // What it still had to prove goes on.
    proposal.terms = probation::go_on(node).await?;
    Ok(Some(proposal))
}

/// Both the plan and the steps are made against what is there; a newer layout is nothing that this version can read.
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
    let found = node.found(&observed, &image, &facts)?;
    let steps = steps(&found, &node.wanted(&image, &facts)?);
    let (tests, probes, refusals) = (Vec::new(), Vec::new(), Vec::new());
    let (terms, concludes, why) = (None, None, None);
    let (holds, can_be_held, past_holds) = (Vec::new(), false, BTreeSet::new());
    Ok(Proposal {
        plan,
        steps,
        found,
        diagnostics,
        tests,
        probes,
        terms,
        concludes,
        why,
        refusals,
        holds,
        can_be_held,
        past_holds,
        image,
        observed,
        facts,
        event,
    })
}

/// Makes a proposal true. Refused when a guard says so, and when another generation has become live since it was made.
pub async fn apply(node: &Node, mut proposal: Proposal, progress: &mut dyn FnMut(&Step)) -> Result<Applied, NodeError> {
    let live = proposal.parent();
    if proposal.is_empty() {
        return Ok(Applied { live, report: Report::default() });
    }
    if !proposal.refusals.is_empty() {
        return Err(NodeError::Refused { refusals: proposal.refusals });
    }
    let _lock = node.lock()?;
    // Somebody may have suspended since, and a window may have closed.
    if proposal.can_be_held {
        let mut holds = suspension::holds(node)?;
        holds.retain(|hold| !proposal.past_holds.contains(hold.name()));
        if !holds.is_empty() {
            return Err(NodeError::Held { holds });
        }
    }
    // What a killed process left, or another process did, may have changed while this one waited.
    let observed = node.observe()?;
    if observed.live_number() != live {
        return Err(NodeError::Stale { expected: live, found: observed.live_number() });
    }
    proposal.observed = observed;
    let found = node.found(&proposal.observed, &proposal.image, &proposal.facts)?;
    proposal.steps = steps(&found, &node.wanted(&proposal.image, &proposal.facts)?);
    let before = probation::last(node)?;
    if let Some(Step::Publish { generation }) = proposal.steps.iter().find(|s| matches!(s, Step::Publish { .. })) {
        proposal.image.stamp(*generation, live, unix_ms());
        if let Some(terms) = proposal.terms.as_ref().filter(|terms| terms.ask_anything()) {
            let to = proposal.plan.to();
            probation::begin(node, terms, *generation, live, &to.revision, &to.digest.to_string())?;
        }
    }
    let Proposal { steps, image, observed, facts, tests, .. } = &proposal;
    let result = execute(node, steps, image, observed, facts, tests, progress).await;
    // A step that fails after the publish leaves the new generation live: that is history, too.
    let now = match &result {
        Ok(report) => report.published.unwrap_or(live),
        Err(NodeError::Step { live: now, .. }) => *now,
        Err(_) => live,
    };
    if now == live {
        probation::restore(node, before)?;
    } else {
        probation::supersede(node, now, proposal.concludes)?;
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
        why: proposal.why.clone(),
        ..Entry::new(proposal.event, view.created_unix_ms())
    };
    node.journal.append(&entry).map_err(|source| NodeError::State { path: node.config.state_dir.clone(), source })
}
