//! Drift: where the kernel is not as the last publish left it, because somebody else had a hand in it.
//!
//! What is compared is the live generation with the journal, with its pin, and with the node's devices and neighbours; not
//! with the source: what the source would change is a plan.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::kernel::observe::LinkState;
use crate::kernel::program::Entry;
use crate::kernel::tables::Tables;
use crate::kernel::{KernelError, pins::Lock};
use crate::reconcile::{Attachment, Step};

use super::apply::{Applied, Proposal, apply, propose_live, propose_published};
use super::journal::{Entry as Record, Event};
use super::neighbours::{stale_neighbours, stale_ports};
use super::node::{Node, NodeError, operator, unix_ms};
use super::reach::word;

/// How long a difference must last: what an event changes, the daemon follows within this time.
const SETTLE: Duration = Duration::from_millis(200);
/// How long another process may take with what it is changing.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(20);

/// What kind of thing differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The live slot of the outer map.
    Generation,
    /// The bytes of the live rules.
    Rules,
    Pin,
    Program,
    Link,
    Port,
    Neighbour,
    /// Whether packets go to a backend.
    Backend,
    /// Something that nothing needs.
    Leftover,
}

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub kind: Kind,
    /// Which: a generation's number, a device, a port, a next hop, a pin.
    pub of: String,
    /// What is the matter, in words that name it.
    pub message: String,
}

impl Difference {
    fn new(kind: Kind, of: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind, of: of.into(), message: message.into() }
    }

    /// An entry of a next hop that is not what the daemon wrote.
    pub(super) fn foreign_neighbour(next_hop: &str) -> Self {
        let message = format!("next hop {next_hop}: somebody changed its entry in the table of neighbours");
        Self::new(Kind::Neighbour, next_hop, message)
    }

    /// An entry of a backend that is not what the daemon wrote.
    pub(super) fn foreign_backend(backend: &str) -> Self {
        let message = format!("backend {backend}: somebody changed its entry in the table of health");
        Self::new(Kind::Backend, backend, message)
    }

    /// Whether other rules than those that were published decide about packets, or none.
    pub fn is_of_rules(&self) -> bool {
        matches!(self.kind, Kind::Generation | Kind::Rules)
    }
}

/// Every difference; empty when there is none. What another process is just changing, or an event is about to, is none.
pub async fn drift(node: &Node) -> Result<Vec<Difference>, NodeError> {
    let first = compare(node).await?;
    if first.is_empty() {
        return Ok(first);
    }
    let _lock = lock(node).await;
    sleep(SETTLE).await;
    compare(node).await
}

/// Keeps applies out, where there is anything that could be changed; gives up when another process takes too long.
async fn lock(node: &Node) -> Option<Lock> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match node.pins.lock() {
            Err(KernelError::Locked { .. }) if Instant::now() < deadline => sleep(LOCK_POLL).await,
            result => return result.ok(),
        }
    }
}

async fn compare(node: &Node) -> Result<Vec<Difference>, NodeError> {
    let entries = journal(node)?;
    let last = entries.last().filter(|entry| entry.event != Event::Detached);
    let Some(proposal) = propose_live(node).await? else { return nothing_live(node, last) };
    let mut differences = Vec::new();
    let (live, found) = (proposal.parent(), &proposal.found);
    let (number, view) = (live.to_string(), proposal.desired()?);
    match last {
        // Published by a process that was killed before it wrote the journal.
        Some(last) if live > last.generation && !found.live_unpinned => {}
        Some(last) if last.generation != live => differences.push(Difference::new(
            Kind::Generation,
            &number,
            format!("generation {live} is live, and generation {} was published last, by {}", last.generation, last.by),
        )),
        Some(last) if last.digest != view.digest().to_string() => differences.push(Difference::new(
            Kind::Generation,
            &number,
            format!("generation {live} is live with rules of another digest than those that {} published", last.by),
        )),
        _ => {}
    }
    if let Err(error) = view.verify_digest() {
        let message = format!("the live rules are not those that were published: {error}");
        differences.push(Difference::new(Kind::Rules, &number, message));
    }
    if found.live_unpinned {
        let message = format!("generation {live}: its pin is gone, or holds another map than the live one");
        differences.push(Difference::new(Kind::Pin, format!("generation/{live}"), message));
    }
    differences.extend(lost(node, &found.lost));
    if !found.programs.contains_key(&Entry::Xdp) && found.lost.is_empty() {
        let message = "the program of this version of wayleave is not pinned";
        differences.push(Difference::new(Kind::Pin, "program", message));
    }
    for step in &proposal.steps {
        differences.extend(in_words(node, step, &proposal));
    }
    if found.ports_differ || found.neighbours_differ {
        let tables = Tables::open(&node.pins)?;
        for (of, what) in stale_ports(&tables, &view, proposal.facts())? {
            let message = format!("{of}: {what}");
            differences.push(Difference::new(Kind::Port, of, message));
        }
        for stale in stale_neighbours(&tables, &view, proposal.facts())? {
            let is = match stale.is.up() {
                Some(_) => "its frames are made for another neighbour, device or MTU",
                None => word(&stale.is),
            };
            let message = format!(
                "next hop {}: {is} in the table of neighbours, and the kernel knows {} to be {}",
                stale.next_hop,
                stale.via,
                mac(stale.wanted.destination)
            );
            differences.push(Difference::new(Kind::Neighbour, stale.next_hop, message));
        }
    }
    Ok(differences)
}

fn nothing_live(node: &Node, last: Option<&Record>) -> Result<Vec<Difference>, NodeError> {
    let observed = node.observe()?;
    let of = last.map_or_else(|| "none".to_owned(), |last| last.generation.to_string());
    let message = match (&observed.foreign, last) {
        (Some(why), Some(last)) => {
            let number = last.generation;
            format!("generation {number} was published last, and what is live is no generation: {why}")
        }
        (Some(why), None) => format!("what is live is no generation: {why}"),
        (None, Some(last)) => format!("generation {} was published last, and nothing is live", last.generation),
        (None, None) => return Ok(Vec::new()),
    };
    let mut differences = vec![Difference::new(Kind::Generation, of, message)];
    differences.extend(lost(node, &observed.lost));
    Ok(differences)
}

fn lost(node: &Node, paths: &[std::path::PathBuf]) -> impl Iterator<Item = Difference> {
    paths.iter().map(|path| {
        let name = below(node, path);
        let message = format!("{name}: the pin is gone, and the program goes on without it");
        Difference::new(Kind::Pin, name, message)
    })
}

/// A pin's path from the node's place on.
fn below(node: &Node, path: &Path) -> String {
    path.strip_prefix(node.pins.place()).unwrap_or(path).display().to_string()
}

/// What a step would mend; `None` for those that come with every other, or are told apart already.
fn in_words(node: &Node, step: &Step, proposal: &Proposal) -> Option<Difference> {
    let links = || proposal.found.links.iter().map(|held| &held.link);
    let attaches = |index: u32, device: &str| {
        proposal.steps.iter().any(|step| {
            matches!(step, Step::Attach { attachment: Attachment { target, .. } }
                if target.index == index || target.device == device)
        })
    };
    Some(match step {
        Step::Attach { attachment } => {
            let (device, ports) = (&attachment.target.device, attachment.ports.join(", "));
            let of_device = |link: &&LinkState| link.device == *device;
            let elsewhere = links().find(|link| link.index == attachment.target.index && link.device != *device);
            let message = match elsewhere {
                Some(link) => format!("{device}: its attachment is pinned under the name of {}", link.device),
                None if links().find(of_device).is_some_and(|link| link.index == 0) => {
                    format!("{device}: the program was detached from it, for {ports}")
                }
                None => format!("{device}: the program is not attached as the configuration says, for {ports}"),
            };
            Difference::new(Kind::Link, device, message)
        }
        // Said with the attachment that takes its place.
        Step::Detach { link } if attaches(link.index, &link.device) => return None,
        Step::Detach { link } if link.index == 0 => {
            let message = format!("left over: the pin of an attachment to {}, which is gone", link.device);
            Difference::new(Kind::Leftover, &link.device, message)
        }
        Step::Detach { link } => {
            let message = format!("{}: the program is attached, and the configuration has no port there", link.device);
            Difference::new(Kind::Link, &link.device, message)
        }
        // A filter of a classifier, whose pin tells where it was.
        Step::UpdateLink { link } if link.program == 0 => {
            let message = format!("{}: the program was detached from it", link.device);
            Difference::new(Kind::Link, &link.device, message)
        }
        Step::UpdateLink { link } => {
            let message = format!("{}: program {} runs, which is not this version's", link.device, link.program);
            Difference::new(Kind::Program, &link.device, message)
        }
        Step::RemovePin { path } => {
            let name = below(node, path);
            let message = format!("left over: {name}");
            Difference::new(Kind::Leftover, name, message)
        }
        Step::ClearCandidate { .. }
        | Step::RemoveClass { .. }
        | Step::RemovePrograms { .. }
        | Step::TakeLink { .. }
        | Step::RemoveLayout { .. } => Difference::new(Kind::Leftover, step.to_string(), format!("left over: {step}")),
        Step::WriteTables
        | Step::RestorePins { .. }
        | Step::PinLive
        | Step::LoadPrograms { .. }
        | Step::CopyLive { .. }
        | Step::Stage { .. }
        | Step::Verify { .. }
        | Step::Publish { .. }
        | Step::Retire { .. } => return None,
    })
}

/// Puts right what differs, by what was published last. `None`: the kernel does not hold that any more, only the source does.
pub async fn repair(node: &Node, differences: &[Difference]) -> Result<Option<Applied>, NodeError> {
    let of_rules = differences.iter().any(Difference::is_of_rules);
    let proposal = if of_rules { propose_published(node).await? } else { propose_live(node).await? };
    let Some(mut proposal) = proposal else { return Ok(None) };
    proposal.why = Some(all_in_words(differences));
    let applied = apply(node, proposal, &mut |_| {}).await?;
    if applied.report.published.is_none() {
        record(node, Event::Repaired, differences)?;
    }
    Ok(Some(applied))
}

/// Leaves in the journal what was found; the generation published last stays that.
pub fn record(node: &Node, event: Event, differences: &[Difference]) -> Result<(), NodeError> {
    let Some(last) = journal(node)?.pop() else { return Ok(()) };
    let entry = Record {
        event,
        unix_ms: unix_ms(),
        by: operator(),
        summary: match differences.len() {
            1 => "1 difference".to_owned(),
            count => format!("{count} differences"),
        },
        why: Some(all_in_words(differences)),
        ..last
    };
    let state = |source| NodeError::State { path: node.config.state_dir.clone(), source };
    node.journal.append(&entry).map_err(state)
}

fn journal(node: &Node) -> Result<Vec<Record>, NodeError> {
    let state = |source| NodeError::State { path: node.config.state_dir.clone(), source };
    node.journal.read().map_err(state)
}

/// Differences in one line, which ends somewhere.
fn all_in_words(differences: &[Difference]) -> String {
    const SHOWN_MAX: usize = 8;
    let shown = differences.iter().take(SHOWN_MAX).map(|difference| difference.message.as_str());
    let mut text = shown.collect::<Vec<_>>().join("; ");
    if let Some(more) = differences.len().checked_sub(SHOWN_MAX).filter(|more| *more > 0) {
        text += "; and ";
        text += &more.to_string();
        text += " more";
    }
    text
}

fn mac(word: u64) -> String {
    let bytes = word.to_le_bytes();
    bytes[..6].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}
