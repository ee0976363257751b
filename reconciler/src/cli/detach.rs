//! `wayleave detach`: the way out; every packet is the kernel's again.

use super::{Exit, Global, node, note};
use crate::daemon::detach::detach;

/// Detach every device and free everything that wayleave holds in the kernel
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Needed, since forwarding by wayleave stops at once
    #[arg(long)]
    auto_approve: bool,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let node = node::load(global)?;
    node.refuse_newer_layout()?;
    if !args.auto_approve {
        let live = node.observe()?.live_number();
        note(&format!(
            "generation {live} would stop forwarding and all generations would be freed; say --auto-approve"
        ));
        return Ok(Exit::Refused);
    }
    let removed = detach(&node)?;
    let plural = if removed.devices == 1 { "" } else { "s" };
    note(&format!("detached {} device{plural}; packets pass to the kernel", removed.devices));
    Ok(Exit::Ok)
}
