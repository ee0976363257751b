//! What a node comes up with when the machine is restarted: the last rules that had nothing to prove any more, in a file.
//!
//! The kernel forgets everything then, and the source may by now say something that cannot be applied: faults, what a guard
//! refuses, a change that was rolled back. Without the file such a node would have no rules. What is live is never read from
//! it: while the kernel holds anything, the kernel is right.

use std::io::{self, ErrorKind, Read as _};

use crate::compile::Image;
use crate::kernel::observe::generation;

use super::apply::{apply, propose_settled, summary};
use super::journal::Event;
use super::node::{Node, NodeError};
use super::probation;
use super::run::chain;
use super::state::State;

const FILE: &str = "settled.image";

/// Keeps these rules, unless they are kept already. They are live, so a full disk is logged, not an error.
pub(super) fn keep(node: &Node, image: &Image) {
    if kept_header(node).is_some_and(|kept| image.has_rules_of(&kept)) {
        return;
    }
    if let Err(error) = State::new(&node.config.state_dir).replace(FILE, image.bytes()) {
        tracing::warn!(%error, "the rules are not kept for a restart of the machine");
    }
}

/// Keeps the rules of a generation that has proved itself.
pub(super) fn keep_generation(node: &Node, number: u64) {
    let image = || -> Result<Option<Image>, NodeError> {
        let Some(found) = generation(&node.pins, number)? else { return Ok(None) };
        Ok(Some(Image::copy_of(&found.image.view()?)))
    };
    match image() {
        Ok(Some(image)) => keep(node, &image),
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(error = %chain(&error), generation = number, "not kept for a restart of the machine");
        }
    }
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
    let live = observed.live_number();
    if live != 0 {
        // Whoever published it may have been killed before it was kept.
        if probation::pending(node)?.is_none() {
            keep_generation(node, live);
        }
        return Ok(None);
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
