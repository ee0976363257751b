//! `wayleave apply`: one reconcile, shown first and made after a yes.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;

use super::confirm::{Watcher, in_words};
use super::node::{self, block_on, fail, progress};
use super::plan::saved;
use super::source::{self, Revision};
use super::suspend::reason;
use super::{Exit, Global, note, print};
use crate::daemon::apply::{Applied, Proposal, apply, propose};
use crate::daemon::attempt::{self, By, Noting, Seen, Tried};
use crate::daemon::node::{Node, NodeError};
use crate::daemon::probation::{self, Standing};
use crate::daemon::settled;
use crate::daemon::state::State;
use crate::policy::{self, Guard};
use crate::reconcile::hold::Hold;

/// Make the kernel hold what the policies say
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of policies, git repository or URL; the source in the node's configuration when left out
    #[arg(value_name = "SOURCE", conflicts_with = "plan")]
    source: Option<PathBuf>,
    #[command(flatten)]
    revision: Revision,
    /// Make exactly what a plan saved with `plan --out` says, without asking; refused when anything is different by now
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rev", "subpath"])]
    plan: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    auto_approve: bool,
    /// Roll the change back after this time, such as 60s, unless `wayleave confirm` comes first
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    confirm_timeout: Option<Duration>,
    /// Go past a guard, a suspension (suspended) or a sync window (outside-window); several with commas
    #[arg(long, value_name = "GUARD", value_delimiter = ',', value_parser = allow)]
    allow: Vec<Allow>,
    /// Why, for `history`
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<String>,
}

/// What an apply goes past.
#[derive(Clone, Copy, Debug)]
enum Allow {
    Guard(Guard),
    /// By its name.
    Hold(&'static str),
}

fn allow(name: &str) -> Result<Allow, String> {
    if let Some(hold) = Hold::NAMES.into_iter().find(|hold| *hold == name) {
        return Ok(Allow::Hold(hold));
    }
    let all = Hold::NAMES.join(", ");
    guard(name).map(Allow::Guard).map_err(|error| format!("{error}, and {all}"))
}

/// A guard by its name.
pub(crate) fn guard(name: &str) -> Result<Guard, String> {
    let all = Guard::ALL.map(Guard::name).join(", ");
    Guard::from_name(name).ok_or_else(|| format!("there is no guard `{name}`; there are {all}"))
}

fn duration(text: &str) -> Result<Duration, String> {
    policy::duration(text).ok_or_else(|| "a duration is 200ms, 5s, 2m or 1h, 1ms to 24h".to_owned())
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let node = node::load(global)?;
    let saved = args.plan.as_deref().map(saved::read).transpose()?;
    if let Some(why) = saved.as_ref().map(|saved| saved.not_for(global, &node)).transpose()?.flatten() {
        return Ok(stale(&why));
    }
    let source = match &saved {
        Some(saved) => saved.source().open(&node.config)?,
        None => source::open(args.source.as_deref(), &args.revision, Some(&node.config))?,
    };
    let noting = Noting::new(&source);
    let mut seen = Seen::default();
    let mut proposal = match block_on(propose(&node, &noting))? {
        Ok(proposal) => proposal,
        Err(error) => {
            seen.revision = noting.revision();
            attempt::record(&node, By::Operator, seen, Tried::failed(&error, false));
            return fail(error, &source);
        }
    };
    if let Some(why) = saved.as_ref().and_then(|saved| saved.differs_from(&proposal)) {
        return Ok(stale(&why));
    }
    let guards =
        args.allow.iter().filter_map(|allow| if let Allow::Guard(guard) = allow { Some(*guard) } else { None });
    proposal.allow(&guards.collect());
    let holds = args.allow.iter().filter_map(|allow| if let Allow::Hold(hold) = allow { Some(*hold) } else { None });
    proposal.go_past(&holds.collect());
    if args.reason.is_some() {
        proposal.why.clone_from(&args.reason);
    }
    node::show(&proposal.diagnostics, &source);
    seen.proposal(&proposal);
    let done = carry_out(&node, proposal, args.auto_approve || saved.is_some(), args.confirm_timeout, global);
    // An operator who applies on purpose has decided: what was set aside by a rollback is welcome again.
    if matches!(done, Ok(Ok(Exit::Ok))) {
        State::new(&node.config.state_dir).lift_quarantine()?;
        source.applied()?;
    }
    let done = done?;
    let tried = match &done {
        Ok(Exit::Ok) => Some(Tried::in_sync()),
        Ok(Exit::RolledBack) => Some(Tried::rolled_back()),
        // Somebody said no: nothing was tried.
        Ok(_) => None,
        Err(error) => Some(Tried::failed(error, true)),
    };
    if let Some(tried) = tried {
        seen.live = node.observe()?.live_number();
        attempt::record(&node, By::Operator, seen, tried);
    }
    match done {
        Ok(exit) => Ok(exit),
        Err(error) => fail(error, &source),
    }
}

fn stale(why: &str) -> Exit {
    note(&format!("error: the plan does not hold any more: {why}; nothing was changed, plan again"));
    Exit::Stale
}

/// Shows a proposal, asks, makes it true, and waits until it has proved itself.
pub(crate) fn carry_out(
    node: &Node,
    mut proposal: Proposal,
    auto_approve: bool,
    confirm_within: Option<Duration>,
    global: &Global,
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
    if !proposal.refusals.is_empty() {
        return Ok(Err(NodeError::Refused { refusals: proposal.refusals }));
    }
    if !proposal.holds.is_empty() {
        return Ok(Err(NodeError::Held { holds: proposal.holds }));
    }
    if !auto_approve && !confirmed()? {
        note("nothing was changed");
        return Ok(Ok(Exit::Error));
    }
    let mut watcher = None;
    if !proposal.is_live() {
        let terms = match block_on(probation::terms(node, proposal.probes.clone(), confirm_within))? {
            Ok(terms) => terms,
            Err(error) => return Ok(Err(error)),
        };
        for (name, error) in &terms.failing {
            note(&format!("warning: the probe {name} fails already, so nothing is expected of it: {error}"));
        }
        if terms.ask_anything() {
            watcher = Some(Watcher::start(global)?);
        }
        proposal.terms = Some(terms);
    }
    let outcome = block_on(apply(node, proposal, &mut progress()))?;
    let exit = match (&outcome, &mut watcher) {
        (Ok(applied), Some(watcher)) => {
            report(applied);
            prove(node, applied.live, watcher)?
        }
        (Ok(applied), None) => {
            report(applied);
            settled::keep_live(node);
            Exit::Ok
        }
        (Err(_), _) => Exit::Error,
    };
    if let Some(watcher) = watcher {
        watcher.release()?;
    }
    Ok(outcome.map(|_| exit))
}

/// Waits until a published change is decided.
fn prove(node: &Node, generation: u64, watcher: &mut Watcher) -> anyhow::Result<Exit> {
    // It may be decided already: only what `follow` finds says how.
    if let Some(pending) = probation::pending(node)?.filter(|record| record.generation == generation) {
        note(&in_words(&pending));
    }
    let decided = watcher.follow(node, generation)?;
    if let Some(record) = &decided {
        note(&in_words(record));
    }
    Ok(match decided.map(|record| record.standing) {
        Some(Standing::RolledBack | Standing::RolledBackUnhealthy) => Exit::RolledBack,
        _ => Exit::Ok,
    })
}

/// Says what was done, on stderr.
fn report(applied: &Applied) {
    for (attachment, attached) in &applied.report.attached {
        let (device, ports) = (&attachment.target.device, attachment.ports.join(", "));
        note(&format!("{device} attached for {ports}, {}: {}", attached.mode.word(), attached.why));
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
