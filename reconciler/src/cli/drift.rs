//! `wayleave drift`: whether the kernel is as the last publish left it.

use serde_json::json;

use super::node::{self, block_on};
use super::{Exit, Format, Global, print};
use crate::daemon::drift::drift;
use crate::daemon::health;

/// Say where the kernel is not as the last publish left it: rules, programs, attachments, ports
///
/// Exits with 0 when nothing differs and with 2 when something does. Changes nothing: `apply` mends it, and a running daemon
/// does so where the configuration says `drift: {mode: heal}`, as it does when it says nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let node = node::load(global)?;
    let mut differences = block_on(drift(&node))??;
    differences.extend(block_on(health::drift(&node))??);
    match args.format {
        Format::Json => {
            print(&format!("{:#}\n", json!({"format_version": 1, "differences": differences})))?;
        }
        Format::Human if differences.is_empty() => print("No drift: the kernel is as the last publish left it.\n")?,
        Format::Human => {
            for difference in &differences {
                print(&format!("{}\n", difference.message))?;
            }
        }
    }
    Ok(if differences.is_empty() { Exit::Ok } else { Exit::Changes })
}
