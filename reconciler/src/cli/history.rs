//! `wayleave history`: what was published on this node, when, by whom, and why.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Exit, Format, Global, node, print};
use crate::daemon::journal::{Entry, Event};
use crate::daemon::time::rfc3339;
use crate::kernel::observe::Observed;

/// Digits of a digest that tell two apart for a person; JSON has all.
const DIGEST_SHOWN: usize = 12;

/// List what was published on this node
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
    /// Every event on its own: without it, equal rules that were published one after another are one line
    #[arg(long)]
    all: bool,
}

/// Generations that the kernel holds and the journal does not know: their process was killed right after the publish.
fn unrecorded(entries: &[Entry], observed: &Observed) -> anyhow::Result<Vec<Entry>> {
    let mut unrecorded = Vec::new();
    for generation in observed.live.iter().chain(&observed.retained) {
        if entries.iter().any(|e| e.generation == generation.number && publishes(e)) {
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

/// Whether an event made a generation live, or left one so.
fn publishes(entry: &Entry) -> bool {
    matches!(entry.event, Event::Applied | Event::RolledBack | Event::Restored | Event::Repaired)
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let node = node::load(global)?;
    let observed = node.observe()?;
    let mut entries = node.journal.read_all()?;
    let unrecorded = unrecorded(&entries, &observed)?;
    entries.extend(unrecorded);
    entries.sort_by_key(|e| std::cmp::Reverse((e.generation, e.unix_ms)));
    let live = observed.live_number();
    let kept = |generation: u64| observed.generation(generation).is_some();
    match args.format {
        Format::Json => {
            let row = |e: &Entry| row(e, e.generation == live && publishes(e), kept(e.generation));
            let list: Vec<_> = entries.iter().map(row).collect();
            print(&format!("{:#}\n", json!({"format_version": 1, "history": list})))?;
        }
        Format::Human if entries.is_empty() => print("Nothing was published on this node yet.\n")?,
        Format::Human => {
            for entries in groups(&entries, args.all) {
                let retired = |e: &Entry| !kept(e.generation);
                print(&lines(entries, live, retired))?;
            }
        }
    }
    Ok(Exit::Ok)
}

fn row(entry: &Entry, live: bool, retained: bool) -> Value {
    json!({"event": entry.event, "generation": entry.generation, "parent": entry.parent, "time": rfc3339(entry.unix_ms),
        "revision": entry.revision, "digest": entry.digest, "by": entry.by, "summary": entry.summary, "why": entry.why,
        "live": live, "retained": retained})
}

/// Entries that become one line: those that published equal rules one after another. A repair is always told.
fn groups(entries: &[Entry], all: bool) -> impl Iterator<Item = &[Entry]> {
    let folds = |entry: &Entry| publishes(entry) && entry.event != Event::Repaired;
    entries.chunk_by(move |newer, older| !all && folds(newer) && folds(older) && newer.digest == older.digest)
}

/// The newest entry of a group, and how many there are.
fn lines(entries: &[Entry], live: u64, retired: impl Fn(&Entry) -> bool) -> String {
    let [newest, older @ ..] = entries else { return String::new() };
    let mark = match newest.event {
        _ if !publishes(newest) => "",
        _ if newest.generation == live => " (live)",
        _ if retired(newest) => " (retired)",
        _ => "",
    };
    let what = match newest.event {
        Event::Applied => "applied",
        Event::RolledBack => "rolled back",
        Event::Detached => "detached",
        Event::Restored => "taken up again",
        Event::Suspended => "suspended",
        Event::Resumed => "resumed",
        Event::Repaired => "repaired",
        Event::Drifted => "drift found",
    };
    let summary = if newest.summary.is_empty() { String::new() } else { format!(": {}", newest.summary) };
    let time = rfc3339(newest.unix_ms);
    let mut out = format!("{:>6}  {time}  {what} by {}{summary}{mark}\n", newest.generation, newest.by);
    if publishes(newest) {
        let digest: String = newest.digest.chars().take(DIGEST_SHOWN).collect();
        let _ = writeln!(out, "        {}  rules {digest}", newest.revision);
    }
    if let (Some(oldest), times) = (older.last(), entries.len()) {
        let first = rfc3339(oldest.unix_ms);
        let _ =
            writeln!(out, "        the same rules {times} times, first as generation {} {first}", oldest.generation);
    }
    if let Some(why) = &newest.why {
        let _ = writeln!(out, "        {why}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(event: Event, generation: u64, digest: &str) -> Entry {
        let (by, summary) = ("alice".to_owned(), "1 added, 0 changed, 0 removed".to_owned());
        let revision = format!("dir@sha256:{generation}");
        Entry { generation, digest: digest.to_owned(), by, summary, revision, ..Entry::new(event, generation * 1000) }
    }

    #[test]
    fn equal_rules_one_after_another_are_one_line_with_their_number() {
        let entries = [
            Entry { why: Some("freeze".to_owned()), ..entry(Event::Suspended, 6, "") },
            entry(Event::Applied, 6, "a"),
            entry(Event::RolledBack, 5, "a"),
            entry(Event::Applied, 4, "b"),
            entry(Event::Detached, 3, ""),
            entry(Event::Applied, 3, "b"),
        ];
        let sizes = |all| groups(&entries, all).map(<[_]>::len).collect::<Vec<_>>();
        assert_eq!(sizes(false), [1, 2, 1, 1, 1]);
        assert_eq!(sizes(true), [1; 6]);
        let text: String = groups(&entries, false).map(|group| lines(group, 6, |e| e.generation < 4)).collect();
        let expected = "     \
     6  1970-01-01T00:00:06Z  suspended by alice: 1 added, 0 changed, 0 removed
        freeze
     6  1970-01-01T00:00:06Z  applied by alice: 1 added, 0 changed, 0 removed (live)
        dir@sha256:6  rules a
        the same rules 2 times, first as generation 5 1970-01-01T00:00:05Z
     4  1970-01-01T00:00:04Z  applied by alice: 1 added, 0 changed, 0 removed
        dir@sha256:4  rules b
     3  1970-01-01T00:00:03Z  detached by alice: 1 added, 0 changed, 0 removed
     3  1970-01-01T00:00:03Z  applied by alice: 1 added, 0 changed, 0 removed (retired)
        dir@sha256:3  rules b
";
        assert_eq!(text, expected);
    }
}
