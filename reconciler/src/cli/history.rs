//! `wayleave history`: what was published on this node, when, and by whom.

use serde_json::json;

use super::{Exit, Format, Global, node, print};
use crate::daemon::journal::{Entry, Event};
use crate::daemon::time::rfc3339;
use crate::kernel::observe::Observed;

/// List what was published on this node
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

/// Generations that the kernel holds and the journal does not know: their process was killed right after the publish.
fn unrecorded(entries: &[Entry], observed: &Observed) -> anyhow::Result<Vec<Entry>> {
    let mut unrecorded = Vec::new();
    for generation in observed.live.iter().chain(&observed.retained) {
        if entries.iter().any(|e| e.generation == generation.number && e.event != Event::Detached) {
            continue;
        }
        let view = generation.image.view()?;
        unrecorded.push(Entry {
            generation: generation.number,
            parent: view.parent(),
            revision: view.revision().to_owned(),
            digest: view.digest().to_string(),
            by: "a process that was killed".to_owned(),
            summary: "not in the journal".to_owned(),
            ..Entry::new(Event::Applied, view.created_unix_ms())
        });
    }
    Ok(unrecorded)
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let node = node::load(global)?;
    let observed = node.observe()?;
    let mut entries = node.journal.read()?;
    let unrecorded = unrecorded(&entries, &observed)?;
    entries.extend(unrecorded);
    entries.sort_by_key(|e| std::cmp::Reverse((e.generation, e.unix_ms)));
    let kept = |generation: u64| observed.generation(generation).is_some();
    match args.format {
        Format::Json => {
            let list: Vec<_> = entries
                .iter()
                .map(|e| {
                    json!({"event": e.event, "generation": e.generation, "parent": e.parent, "time": rfc3339(e.unix_ms),
                        "revision": e.revision, "digest": e.digest, "by": e.by, "summary": e.summary, "why": e.why,
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
                    Event::Repaired => "repaired",
                    Event::Drifted => "drift found",
                };
                let why = entry.why.as_ref().map_or_else(String::new, |why| format!("        {why}\n"));
                print(&format!(
                    "{:>6}  {}  {what} by {}: {}{mark}\n        {}\n{why}",
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
