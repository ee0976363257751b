//! `wayleave demo`: the whole story once, on this machine, without touching it.

use super::Exit;
use crate::demo::{self, Outcome};

/// Route real packets between network namespaces of its own: plan, apply, change, roll back
///
/// Needs root for that. Without root, or on a kernel that cannot, the library tells the same story, marked SIMULATED.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave the kernel out even where it could be used
    #[arg(long)]
    simulate: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    Ok(match demo::run(args.simulate)? {
        Outcome::Held => Exit::Ok,
        Outcome::Failed => Exit::Error,
    })
}
