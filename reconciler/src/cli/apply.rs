//! `wayleave apply`: one reconcile, shown first and made after a yes.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;

use anyhow::bail;

use super::node::{self, block_on, fail, progress};
use super::source::{self, Revision};
use super::{Exit, Global, note, print};
use crate::daemon::apply::{Applied, Proposal, apply, propose};
use crate::daemon::node::{Node, NodeError};
use crate::daemon::state::State;

/// Make the kernel hold what the policies say
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of policies, git repository or URL; the source in the node's configuration when left out
    #[arg(value_name = "SOURCE")]
    source: Option<PathBuf>,
    #[command(flatten)]
    revision: Revision,
    /// Do not ask
    #[arg(long)]
    auto_approve: bool,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let node = node::load(global)?;
    let source = source::open(args.source.as_deref(), &args.revision, Some(&node.config))?;
    let proposal = match block_on(propose(&node, &source))? {
        Ok(proposal) => proposal,
        Err(error) => return fail(error, &source),
    };
    node::show(&proposal.diagnostics, &source);
    let done = carry_out(&node, proposal, args.auto_approve);
    // An operator who applies on purpose has decided: what was set aside by a rollback is welcome again.
    if matches!(done, Ok(Ok(Exit::Ok))) {
        State::new(&node.config.state_dir).lift_quarantine()?;
        source.applied()?;
    }
    match done? {
        Ok(exit) => Ok(exit),
        Err(error) => fail(error, &source),
    }
}

/// Shows a proposal, asks, and makes it true.
pub(crate) fn carry_out(
    node: &Node,
    proposal: Proposal,
    auto_approve: bool,
) -> anyhow::Result<Result<Exit, NodeError>> {
    print(&proposal.plan.to_string())?;
    if proposal.is_empty() {
        return Ok(Ok(Exit::Ok));
    }
    if proposal.plan.is_empty() {
        for step in &proposal.steps {
            print(&format!("  {step}\n"))?;
        }
    }
    if !auto_approve && !confirmed()? {
        note("nothing was changed");
        return Ok(Ok(Exit::Error));
    }
    let outcome = block_on(apply(node, proposal, &mut progress()))?;
    Ok(outcome.map(|applied| {
        report(&applied);
        Exit::Ok
    }))
}

/// Says what was done, on stderr.
fn report(applied: &Applied) {
    for (port, mode) in &applied.report.attached {
        note(&format!("port {port} attached, {}", format!("{mode:?}").to_lowercase()));
    }
    for next_hop in &applied.report.unresolved {
        note(&format!(
            "warning: next hop {} via {} on port {} did not answer; the kernel's own tables are asked for it",
            next_hop.next_hop, next_hop.via, next_hop.port
        ));
    }
    match applied.report.published {
        Some(generation) => note(&format!("generation {generation} is live")),
        None => note(&format!("generation {} is still live; ports are up to date", applied.live)),
    }
}

/// Asks on the terminal; without one there is nobody to ask.
fn confirmed() -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("there is no terminal to ask on; say --auto-approve to apply without asking");
    }
    eprint!("\nApply this? Only `yes` is taken as yes: ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}
