//! `wayleave rollback`: the rules of an older generation again, byte for byte.

use super::node::{self, block_on, fail};
use super::source::Opened;
use super::suspend::reason;
use super::{Exit, Global, apply::carry_out, note};
use crate::daemon::apply::propose_rollback;
use crate::daemon::node::NodeError;
use crate::daemon::state::{SetAside, State};
use crate::source::Source;

/// Publish the rules of an older generation again
///
/// The daemon goes on following the source, but sets aside what was rolled back until a different source comes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The generation to restore; the one before the live one when left out
    #[arg(value_name = "GENERATION")]
    generation: Option<u64>,
    /// Do not ask
    #[arg(long)]
    auto_approve: bool,
    /// Why, for `history`
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<String>,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let node = node::load(global)?;
    let here = Opened::Here(Source::Directory(".".into()));
    let live = match node.observe() {
        Ok(observed) => match &observed.live {
            Some(live) => {
                let view = live.image.view()?;
                Some(SetAside { revision: view.revision().to_owned(), digest: view.digest().to_string() })
            }
            None => None,
        },
        Err(error) => return fail(error, &here),
    };
    let mut proposal = match block_on(propose_rollback(&node, args.generation))? {
        Ok(proposal) => proposal,
        Err(error) => return fail(error, &here),
    };
    proposal.why.clone_from(&args.reason);
    let state = State::new(&node.config.state_dir);
    let untouched = state.quarantined()?.is_empty();
    let set_aside = live.filter(|_| !proposal.is_live());
    // Before publishing: a running daemon must not bring it back in between.
    if let Some(aside) = set_aside.clone() {
        state.quarantine(aside).map_err(|source| NodeError::State { path: node.config.state_dir.clone(), source })?;
    }
    match carry_out(&node, proposal, args.auto_approve, None, global) {
        Ok(Ok(Exit::Ok)) => {
            if let Some(aside) = set_aside {
                note(&format!("set aside until a different source comes: {}", aside.revision));
            }
            Ok(Exit::Ok)
        }
        failed => {
            // Nothing was rolled back, so nothing more is set aside than before.
            if untouched {
                state.lift_quarantine()?;
            }
            match failed? {
                Ok(exit) => Ok(exit),
                Err(error) => fail(error, &here),
            }
        }
    }
}
