//! Drift: where the kernel is not as the last publish left it. Reads only.
//!
//! What is compared is the live generation with the node's devices and with the journal, not with the source: what the
//! source would change is a plan.

use crate::reconcile::Step;

use super::apply::propose_live;
use super::journal::Event;
use super::node::{Node, NodeError};

/// Every difference, in words; empty when there is none.
pub async fn drift(node: &Node) -> Result<Vec<String>, NodeError> {
    let state = |source| NodeError::State { path: node.config.state_dir.clone(), source };
    let entries = node.journal.read().map_err(state)?;
    let last = entries.last().filter(|entry| entry.event != Event::Detached);
    let Some(proposal) = propose_live(node).await? else {
        return Ok(last
            .map(|last| format!("generation {} was published last, and nothing is live", last.generation))
            .into_iter()
            .collect());
    };
    let mut differences = Vec::new();
    let live = proposal.parent();
    match last {
        Some(last) if last.generation != live => differences.push(format!(
            "generation {live} is live, and generation {} was published last, by {}",
            last.generation, last.by
        )),
        _ => {}
    }
    let view = proposal.desired()?;
    if let Err(error) = view.verify_digest() {
        differences.push(format!("the live rules are not those that were published: {error}"));
    }
    differences.extend(proposal.steps.iter().filter_map(|step| in_words(step, proposal.ports_differ)));
    Ok(differences)
}

/// What a step would mend; `None` for those that come with every other.
fn in_words(step: &Step, ports_differ: bool) -> Option<String> {
    Some(match step {
        Step::Attach { attachment } => {
            let (device, ports) = (&attachment.target.device, attachment.ports.join(", "));
            format!("{device}: the program is not attached as the configuration says, for {ports}")
        }
        Step::Detach { link } => {
            format!("{}: the program is attached, and the configuration has no port there", link.device)
        }
        Step::UpdateLink { link } => {
            format!("{}: program {} runs, which is not this version's", link.device, link.program)
        }
        Step::WriteTables if ports_differ => "the tables of ports are not what the devices ask for".to_owned(),
        Step::ClearCandidate { .. }
        | Step::RemovePin { .. }
        | Step::RemoveClass { .. }
        | Step::TakeLink { .. }
        | Step::RemoveLayout { .. } => format!("left over: {step}"),
        Step::WriteTables
        | Step::PinLive
        | Step::LoadPrograms { .. }
        | Step::CopyLive { .. }
        | Step::Stage { .. }
        | Step::Verify { .. }
        | Step::Publish { .. }
        | Step::Retire { .. } => return None,
    })
}
