//! `wayleave history`: what was published on this node, when, and by whom.

use clap::ValueEnum;
use serde_json::json;

use super::{Exit, Global, node, print};
use crate::daemon::journal::Event;
use crate::daemon::time::rfc3339;

/// List what was published on this node
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Human,
    Json,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let node = match node::load(global)? {
        Ok(node) => node,
        Err(exit) => return Ok(exit),
    };
    let mut entries = node.journal.read()?;
    entries.reverse();
    let observed = node.observe()?;
    let kept = |generation: u64| observed.generation(generation).is_some();
    match args.format {
        Format::Json => {
            let list: Vec<_> = entries
                .iter()
                .map(|e| {
                    json!({"event": e.event, "generation": e.generation, "parent": e.parent, "time": rfc3339(e.unix_ms),
                        "revision": e.revision, "digest": e.digest, "by": e.by, "summary": e.summary,
                        "live": e.generation == observed.live_number() && e.event != Event::Detached,
                        "retained": kept(e.generation)})
                })
                .collect();
            print(&format!("{:#}\n", json!({"format_version": 1, "history": list})))?;
        }
        Format::Human => {
            if entries.is_empty() {
                print("Nothing was published on this node yet.\n")?;
            }
            for entry in &entries {
                let mark = match entry.event {
                    Event::Detached => "",
                    _ if entry.generation == observed.live_number() => " (live)",
                    _ if kept(entry.generation) => "",
                    _ => " (retired)",
                };
                let what = match entry.event {
                    Event::Applied => "applied",
                    Event::RolledBack => "rolled back",
                    Event::Detached => "detached",
                };
                print(&format!(
                    "{:>6}  {}  {what} by {}: {}{mark}\n        {}\n",
                    entry.generation,
                    rfc3339(entry.unix_ms),
                    entry.by,
                    entry.summary,
                    entry.revision
                ))?;
            }
        }
    }
    Ok(Exit::Ok)
}
