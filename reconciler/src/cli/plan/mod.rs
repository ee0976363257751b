//! `wayleave plan`: what an apply would change, against the live rules or between two sources.

mod beside;
mod markdown;
pub(crate) mod saved;

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::node::{self, block_on, fail};
use super::offline::{Offline, OfflineArgs, Read};
use super::runtime::Runtime;
use super::{Exit, Global, note, print};
use crate::compile::LiveIds;
use crate::daemon::apply::{Proposal, propose};
use crate::daemon::state::State;
use crate::guard;
use crate::plan::Plan;
use crate::policy::{self, Diagnostic, Selector};
use beside::Beside;

/// Show what would change, without changing anything
///
/// A side is `live` (the kernel's rules; needs root), a directory, or a git revision such as main, v1.2.0 or HEAD~1.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What is wanted: a directory or a revision; the source in the node's configuration when left out
    #[arg(value_name = "SOURCE", conflicts_with = "to")]
    source: Option<PathBuf>,
    /// What to compare with: `live`, a directory, or a revision
    #[arg(long, default_value = "live", value_name = "live|REV|PATH")]
    from: PathBuf,
    /// The same as SOURCE
    #[arg(long, value_name = "REV|PATH")]
    to: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = PlanFormat::Human)]
    format: PlanFormat,
    /// Exit with 2 when there are changes
    #[arg(long)]
    detailed_exitcode: bool,
    /// Save the plan, for `apply --plan` or to be shown again
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Show a saved plan, whatever has become of its node and sources
    #[arg(long, value_name = "FILE", conflicts_with_all = ["source", "from", "to", "out", "node_config", "repo", "rev", "subpath"])]
    show: Option<PathBuf>,
    #[command(flatten)]
    offline: OfflineArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PlanFormat {
    Human,
    Json,
    /// For a comment on a pull request: the summary first, the rest folded, at most 65,535 bytes
    Markdown,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    if let Some(path) = &args.show {
        let saved = saved::read(path)?;
        return finish(args, &saved.plan, &saved.beside);
    }
    if args.from != Path::new("live") {
        return offline(args, global);
    }
    let node = node::load(global)?;
    let named = args.source.as_deref().or(args.to.as_deref());
    let source = args.offline.source(named, Some(&node.config))?;
    let proposal = match block_on(propose(&node, &source))? {
        Ok(proposal) => proposal,
        Err(error) => return fail(error, &source),
    };
    node::show(&proposal.diagnostics, &source);
    let runtime = {
        let state = State::new(&node.config.state_dir);
        let live = proposal.live()?;
        live.map(|live| Runtime::read(&node, &live, &state)).transpose()?.map(Runtime::troubled)
    };
    let mut beside = Beside::new(&proposal.refusals, &proposal.outcomes()?, &[]);
    beside.steps(&proposal.steps);
    beside.holds(&proposal.holds);
    if let Some(runtime) = &runtime {
        beside.set("runtime", serde_json::to_value(runtime)?);
    }
    if let Some(path) = &args.out {
        beside.set("made_for", saved::made_for(global, &node, &args.offline.named(named)?)?);
        save(path, &proposal.plan, &beside)?;
    }
    let Proposal { plan, .. } = &proposal;
    let exit = finish(args, plan, &beside)?;
    if args.format == PlanFormat::Human {
        print(&runtime.as_ref().map(Runtime::beside_plan).unwrap_or_default())?;
    }
    Ok(exit)
}

fn offline(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let offline = args.offline.open(global)?;
    let before = offline.read_other(&args.from)?;
    let after = offline.read(args.source.as_deref().or(args.to.as_deref()), global)?;
    let warnings = new_warnings(&before, &after);
    node::show_in(&warnings, &after.snapshot);
    let mut plans = Vec::new();
    let views = offline.views(&[&before, &after]);
    for view in &views {
        let (plan, mut beside) = in_view(&offline, &before, &after, view.as_ref(), &warnings)?;
        if let Some(node) = &offline.node {
            beside.set("node", node.name.as_str().into());
        }
        plans.push((view.as_ref(), plan, beside));
    }
    if let [(_, plan, beside)] = plans.as_slice() {
        if let Some(path) = &args.out {
            save(path, plan, beside)?;
        }
        return finish(args, plan, beside);
    }
    if args.out.is_some() {
        anyhow::bail!("the policies make other rules for other nodes; --node-config names the one to save a plan for");
    }
    several(args, &plans)
}

fn in_view(
    offline: &Offline<'_>,
    before: &Read,
    after: &Read,
    view: Option<&Selector>,
    warnings: &[Diagnostic],
) -> anyhow::Result<(Plan, Beside)> {
    let from_image = Offline::compile(before, view, &LiveIds::default())?;
    let from = from_image.view()?;
    let to_image = Offline::compile(after, view, &LiveIds::from_views([&from]))?;
    let to = to_image.view()?;
    let plan = Plan::between(Some(&from), &to);
    let guards = offline.node.as_ref().map(|node| node.guards.clone()).unwrap_or_default();
    let allowed = guard::allowed_by_message(after.snapshot.message.as_deref().unwrap_or_default());
    let refusals = guard::check(&plan, Some(&from), &to, &[], &guards, &allowed);
    let outcomes = super::test::in_view(offline, after, view)?;
    Ok((plan, Beside::new(&refusals, &outcomes, warnings)))
}

/// One plan for each view of the sources, in the order of their labels.
fn several(args: &Args, plans: &[(Option<&Selector>, Plan, Beside)]) -> anyhow::Result<Exit> {
    let nodes = |view: Option<&Selector>| match view {
        Some(view) if !view.labels().is_empty() => format!("nodes with {view}"),
        _ => "all other nodes".to_owned(),
    };
    match args.format {
        PlanFormat::Human => {
            for (view, plan, beside) in plans {
                print(&format!("For {}:\n\n{plan}{}\n", nodes(*view), beside.human(plan)))?;
            }
        }
        PlanFormat::Markdown => {
            let changed = plans.iter().filter(|(_, plan, _)| !plan.is_empty()).count();
            print(&format!("**{changed} of {} kinds of nodes change.**\n\n", plans.len()))?;
            let each = (markdown::BYTES_MAX - 100) / plans.len().max(1);
            for (view, plan, beside) in plans {
                let title = format!("For {}: ", nodes(*view));
                print(&format!("{title}{}\n", markdown::markdown(plan, beside, each.saturating_sub(title.len() + 1))))?;
            }
        }
        PlanFormat::Json => {
            let mut out = io::BufWriter::new(io::stdout().lock());
            write!(out, "{{\"format_version\":1,\"views\":[")?;
            for (i, (view, plan, beside)) in plans.iter().enumerate() {
                if i > 0 {
                    write!(out, ",")?;
                }
                let mut beside = beside.clone();
                beside.set("labels", serde_json::to_value(view.map(Selector::labels))?);
                plan.write_json_with(beside.json(), &mut out)?;
            }
            writeln!(out, "]}}")?;
            out.flush()?;
        }
    }
    let changes = plans.iter().any(|(_, plan, _)| !plan.is_empty());
    Ok(if args.detailed_exitcode && changes { Exit::Changes } else { Exit::Ok })
}

/// Warnings about the desired side that the other side does not have: what this change brings.
fn new_warnings(before: &Read, after: &Read) -> Vec<Diagnostic> {
    let all = |read: &Read| {
        let mut all = read.diagnostics.clone();
        all.extend(policy::redundant(&read.policy));
        all
    };
    let known = all(before);
    let mut new = all(after);
    // Lines may have moved.
    new.retain(|d| !known.iter().any(|k| (k.code, &k.file, &k.message) == (d.code, &d.file, &d.message)));
    policy::diagnostic::sort(&mut new);
    new
}

fn finish(args: &Args, plan: &Plan, beside: &Beside) -> anyhow::Result<Exit> {
    match args.format {
        PlanFormat::Human => {
            print(&plan.to_string())?;
            print(&beside.human(plan))?;
        }
        PlanFormat::Markdown => print(&markdown::markdown(plan, beside, markdown::BYTES_MAX))?,
        PlanFormat::Json => write_json(plan, beside, io::stdout().lock())?,
    }
    let changes = !plan.is_empty() || beside.has_steps();
    Ok(if args.detailed_exitcode && changes { Exit::Changes } else { Exit::Ok })
}

/// Writes the plan beside `path` and renames it: a reader finds all of it.
fn save(path: &Path, plan: &Plan, beside: &Beside) -> anyhow::Result<()> {
    use anyhow::Context as _;
    let cannot = || format!("the plan cannot be saved to `{}`", path.display());
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let file = std::fs::File::create(&new).with_context(cannot)?;
    write_json(plan, beside, &file)?;
    file.sync_data().and_then(|()| std::fs::rename(&new, path)).with_context(cannot)?;
    note(&format!("plan saved to {}", path.display()));
    Ok(())
}

fn write_json(plan: &Plan, beside: &Beside, out: impl Write) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(out);
    let written =
        plan.write_json_with(beside.json(), &mut out).map_err(io::Error::from).and_then(|()| out.write_all(b"\n"));
    match written.and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(e) => {
            note("the plan was not written whole");
            Err(e.into())
        }
        Ok(()) => Ok(()),
    }
}
