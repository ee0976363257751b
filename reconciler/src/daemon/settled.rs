//! What a node comes up with when the machine is restarted: the last rules that had nothing to prove any more, in a file.
//!
//! The kernel forgets everything then, and the source may by now say something that cannot be applied: faults, what a guard
//! refuses, a change that was rolled back. Without the file such a node would have no rules. What is live is never read from
//! it: while the kernel holds anything, the kernel is right.

use std::io::{self, ErrorKind, Read as _};

use crate::compile::Image;
use crate::kernel::observe::live;

use super::apply::{apply, propose_settled, summary};
use super::journal::Event;
use super::node::{Node, NodeError};
use super::probation;
use super::run::chain;
use super::state::State;

const FILE: &str = "settled.image";

/// Keeps what is live, unless it is kept already or still has to prove itself. It is live, so a full disk is logged, not an error.
///
/// Forced to the disk: not while anybody waits for the next change.
pub fn keep_live(node: &Node) {
    if let Err(error) = try_keep_live(node) {
        tracing::warn!(error = %chain(&error), "the live rules are not kept for a restart of the machine");
    }
}

fn try_keep_live(node: &Node) -> Result<(), NodeError> {
    let Some(live) = live(&node.pins)? else { return Ok(()) };
    if probation::pending(node)?.is_some() {
        return Ok(());
    }
    let image = Image::copy_of(&live.image.view()?);
    if kept_header(node).is_some_and(|kept| image.has_rules_of(&kept)) {
        return Ok(());
    }
    let state = |source| NodeError::State { path: node.config.state_dir.clone(), source };
    State::new(&node.config.state_dir).replace(FILE, image.bytes()).map_err(state)
}

/// The node is to have no rules: nothing is taken up again.
pub(super) fn forget(node: &Node) -> io::Result<()> {
    match std::fs::remove_file(node.config.state_dir.join(FILE)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Where the kernel has forgotten what was live, makes it so again, before anybody asks the source. What cannot be taken up
/// is logged: the source may say what can.
pub(super) async fn restore(node: &Node) {
    match try_restore(node).await {
        Ok(None) => {}
        Ok(Some((generation, summary))) => {
            tracing::info!(generation, %summary, "the rules of before the restart of the machine are live again");
        }
        Err(error) => {
            tracing::warn!(error = %chain(&error), "the rules of before the restart of the machine cannot be taken up");
        }
    }
}

async fn try_restore(node: &Node) -> Result<Option<(u64, String)>, NodeError> {
    let observed = node.observe()?;
    if observed.live_number() != 0 {
        // Whoever published it may have been killed before it was kept.
        return try_keep_live(node).map(|()| None);
    }
    let state = |source| NodeError::State { path: node.config.state_dir.clone(), source };
    let last = node.journal.read().map_err(state)?.pop();
    if observed.foreign.is_some() || last.is_none_or(|last| last.event == Event::Detached) {
        return Ok(None);
    }
    let Some(bytes) = State::new(&node.config.state_dir).read(FILE).map_err(state)? else { return Ok(None) };
    let image = Image::read(bytes)?;
    let proposal = propose_settled(node, &image).await?;
    let summary = summary(&proposal.plan);
    let applied = apply(node, proposal, &mut |_| {}).await?;
    Ok(Some((applied.live, summary)))
}

/// The beginning of the file; `None` where there is none that could be read.
fn kept_header(node: &Node) -> Option<[u8; Image::HEADER_BYTES]> {
    let mut header = [0; Image::HEADER_BYTES];
    std::fs::File::open(node.config.state_dir.join(FILE)).ok()?.read_exact(&mut header).ok()?;
    Some(header)
}
