//! The daemon: follows a source and the node, and keeps the kernel at what the policies say.
//!
//! Level-triggered: events only say when to look; each look reads everything anew. When the daemon stops or dies, the
//! live generation goes on forwarding.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::guard::Refusal;
use crate::policy::DriftMode;
use crate::reconcile::hold::Hold;
use crate::reconcile::{Outcome, Schedule};

use crate::source::git::GitError;
use crate::source::{Source, SourceError};

use super::apply::{Proposal, apply, propose_degraded, propose_kept, summary};
use super::attempt::{self, Axis, By, Noting, Seen, Tried};
use super::drift_timer::DriftTimer;
use super::follow::Follower;
use super::health::Checks;
use super::journal::Event;
use super::node::{Node, NodeError};
use super::probation::{self, Standing, Verdict};
use super::runtime::{Hint, Runtime};
use super::settled;
use super::state::State;
use super::suspension::Watched;
use super::webhook;

/// How long nothing must change until the live rules are written to the disk.
const KEEP_AFTER: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT. SIGHUP looks at once.
pub async fn run(node: &Node, source: &Source) -> Result<(), NodeError> {
    // Here it is an error; later, when a newer version takes the node over, this one waits and says so.
    node.refuse_newer_layout()?;
    let signal_error = |source| NodeError::State { path: PathBuf::from("signals"), source };
    let mut terminate = signal(SignalKind::terminate()).map_err(signal_error)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(signal_error)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(signal_error)?;

    settled::restore(node).await;

    let (hints, mut hinted) = mpsc::channel::<()>(1);
    let (changes, mut changed) = mpsc::channel::<Hint>(2);
    let mut runtime = Runtime::start(node, changes)?;
    let checks = Checks::start(node)?;
    let state = State::new(&node.config.state_dir);
    let mut files = match source {
        Source::Directory(directory) => Some(FileWatch::new(directory, hints.clone())),
        Source::Local { .. } | Source::Git(_) => None,
    };
    let follower = match source {
        Source::Git(git) => Some(Follower::start((**git).clone(), state.clone(), hints.clone())),
        Source::Directory(_) | Source::Local { .. } => None,
    };
    // Looks at the source, wherever it is.
    let wake = follower.as_ref().map(Follower::wake);
    let look_again = move || match &wake {
        Some(wake) => wake.notify_one(),
        // A full channel holds a hint already.
        None => drop(hints.try_send(())),
    };
    let _webhook = match &node.config.webhook {
        Some(config) => {
            let pushed = look_again.clone();
            let listener = webhook::Listener::start(config, pushed).await;
            Some(listener.map_err(|source| NodeError::Listen { address: config.listen, source })?)
        }
        None => None,
    };
    let mut schedule = Schedule::new(node.config.settle, node.config.rescan_interval, Instant::now());
    let mut drift = DriftTimer::new(node, state.clone());
    let mut daemon = Daemon { node, source, state, last: None, decided: true };
    let mut ready = false;
    // A change that a daemon before this one, or an `apply`, did not see to its end is watched first of all.
    let mut trial = Trial::default();
    trial.renew(node);
    let mut held = Watched::new(node);
    // When what is live by then is kept for a restart of the machine.
    let mut keep_at = None;

    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                schedule.hint(Instant::now());
                look_again();
            }
            Some(()) = hinted.recv() => schedule.hint(Instant::now()),
            () = held.changed() => schedule.hint(Instant::now()),
            // Devices or addresses are others: what has to follow them does, in every mode of drift.
            Some(hint) = changed.recv() => match hint {
                Hint::Changed => {
                    daemon.decided = true;
                    schedule.hint(Instant::now());
                }
                Hint::Drifted => drift.hint(),
            },
            () = drift.due() => {
                if drift.look().await {
                    daemon.decided = true;
                    schedule.hint(Instant::now());
                }
                trial.renew(node);
                runtime.wake();
                checks.wake()?;
            }
            error = runtime.ended() => return Err(error.unwrap_or_else(|| NodeError::State {
                path: PathBuf::from("threads"),
                source: io::Error::other("the thread that follows links and neighbours panicked"),
            })),
            (generation, verdict) = trial.verdict() => {
                daemon.conclude(generation, verdict).await;
                keep_at = Some(Instant::now() + KEEP_AFTER);
                runtime.wake();
                checks.wake()?;
                schedule.hint(Instant::now());
            }
            () = tokio::time::sleep_until(keep_at.unwrap_or_else(Instant::now).into()), if keep_at.is_some() => {
                keep_at = None;
                let node = Node::new(node.config.clone());
                // Nobody waits for it: the next one keeps what this one could not.
                drop(tokio::task::spawn_blocking(move || settled::keep_live(&node)));
            }
            () = tokio::time::sleep_until(schedule.next().into()) => {
                schedule.looking();
                if let Some(files) = &mut files {
                    files.renew();
                }
                let (outcome, lost) = daemon.look(&mut drift).await;
                if lost {
                    look_again();
                }
                // What was published just now; a change before it need not prove anything any more.
                trial.renew(node);
                runtime.wake();
                checks.wake()?;
                schedule.finished(outcome, Instant::now());
                keep_at = Some(Instant::now() + KEEP_AFTER);
                if !ready {
                    ready = true;
                    notify_systemd(&[sd_notify::NotifyState::Ready]);
                }
            }
        }
    }
    notify_systemd(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopped; the live generation goes on forwarding");
    Ok(())
}

/// Tells systemd, where it listens; a failure is logged and changes nothing.
fn notify_systemd(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd was not notified");
    }
}

struct Daemon<'a> {
    node: &'a Node,
    source: &'a Source,
    state: State,
    /// How the last look ended, to log changes of it.
    last: Option<Tried>,
    /// The next look puts everything right, whatever the mode of drift: it is the first, or follows a change of the node's
    /// devices or addresses.
    decided: bool,
}

/// How a look ended that did not fail.
enum Done {
    InSync,
    /// The source is what was rolled back from.
    Quarantined,
    /// The source is what was published last, and somebody put other rules into the kernel; `drift.mode` leaves them there.
    Drifted,
    /// A suspension or a window holds its change; guards would refuse it besides.
    Held(Vec<Hold>, Vec<Refusal>),
}

impl Daemon<'_> {
    /// One look at the source, recorded and logged. Says, too, whether the source must be fetched again.
    async fn look(&mut self, drift: &mut DriftTimer<'_>) -> (Outcome, bool) {
        let source = Noting::new(self.source);
        let mut seen = Seen::default();
        let result = self.reconcile(drift, &source, &mut seen).await;
        // Neither does a source that cannot be taken keep the node from its rules.
        if let Err(NodeError::Source(_) | NodeError::Policy { .. } | NodeError::Refused { .. }) = &result
            && let Err(error) = self.keep_live(drift, &mut seen).await
        {
            tracing::warn!(error = %chain(&error), "the live rules could not be kept in force");
        }
        let lost = matches!(&result, Err(NodeError::Source(SourceError::Git(GitError::Lost { .. }))));
        let may_pass = match &result {
            Ok(_) | Err(NodeError::Source(SourceError::Git(GitError::NothingFetched { .. }))) => false,
            Err(error) => error.may_pass(),
        };
        let proposed = seen.revision.is_some();
        let tried = match &result {
            Ok(Done::InSync) => Tried::in_sync(),
            Ok(Done::Quarantined) => Tried::quarantined(),
            Ok(Done::Drifted) => Tried::drifted(),
            Ok(Done::Held(holds, refusals)) => Tried::held(holds, refusals),
            Err(error) => Tried::failed(error, proposed),
        };
        if seen.revision.is_none() {
            seen.revision = source.revision();
        }
        if self.last.as_ref() != Some(&tried) || may_pass {
            log(&tried, seen.revision.as_deref(), result.as_ref().err());
        }
        self.last = Some(tried.clone());
        attempt::record(self.node, By::Daemon, seen, tried);
        (if may_pass { Outcome::Failed } else { Outcome::Settled }, lost)
    }

    /// Whether this source is what was published last: then whatever is to be done is not its doing.
    fn is_published(&self, digest: &str) -> Result<bool, NodeError> {
        let state = |source| NodeError::State { path: self.node.config.state_dir.clone(), source };
        let last = self.node.journal.read().map_err(state)?.pop();
        Ok(last.is_some_and(|last| last.event != Event::Detached && last.digest == digest))
    }

    async fn reconcile(
        &mut self,
        drift: &mut DriftTimer<'_>,
        source: &Noting<'_, Source>,
        seen: &mut Seen,
    ) -> Result<Done, NodeError> {
        let mut proposal = propose_degraded(self.node, source).await?;
        seen.proposal(&proposal);
        let (desired, digest) = {
            let view = proposal.desired()?;
            (view.revision().to_owned(), view.digest().to_string())
        };
        let state = |source| NodeError::State { path: self.node.config.state_dir.clone(), source };
        let aside = self.state.quarantined().map_err(state)?;
        // Live again all the same: an operator brought it back, or the rollback was interrupted before its publish.
        if aside.iter().any(|a| a.matches(&desired, &digest)) && !proposal.is_live() {
            self.keep_live(drift, seen).await?;
            return Ok(Done::Quarantined);
        }
        if !proposal.holds.is_empty() {
            let (holds, refusals) = (proposal.holds, proposal.refusals);
            self.keep_live(drift, seen).await?;
            return Ok(Done::Held(holds, refusals));
        }
        if !aside.is_empty()
            && let Err(error) = self.state.lift_quarantine()
        {
            tracing::warn!(%error, "the quarantine cannot be lifted");
        }
        if !self.decided && !proposal.is_empty() && self.is_published(&digest)? {
            if self.node.config.drift.mode != DriftMode::Heal {
                return Ok(if proposal.is_live() { Done::InSync } else { Done::Drifted });
            }
            // So that it is told what was put right.
            drift.look().await;
            proposal = propose_degraded(self.node, source).await?;
        }
        if !proposal.is_live() {
            let terms = probation::terms(self.node, proposal.probes.clone(), None).await?;
            for (probe, error) in &terms.failing {
                tracing::warn!(probe, error, "fails before the change already; nothing is expected of it");
            }
            proposal.terms = Some(terms);
        }
        match self.apply(proposal, seen).await {
            // Suspended while the probes were tried.
            Err(NodeError::Held { holds }) => {
                self.keep_live(drift, seen).await?;
                Ok(Done::Held(holds, Vec::new()))
            }
            result => result.map(|()| Done::InSync),
        }
    }

    /// Keeps the live rules in force while the source's are not published: devices that came back, the node's own addresses,
    /// and hands in the kernel as far as the mode of drift says.
    async fn keep_live(&mut self, drift: &mut DriftTimer<'_>, seen: &mut Seen) -> Result<(), NodeError> {
        let Some(mut proposal) = propose_kept(self.node).await? else { return Ok(()) };
        if !self.decided && proposal.is_live() && !proposal.is_empty() {
            if self.node.config.drift.mode != DriftMode::Heal {
                return Ok(());
            }
            drift.look().await;
            let Some(again) = propose_kept(self.node).await? else { return Ok(()) };
            proposal = again;
        }
        if proposal.is_empty() {
            return Ok(());
        }
        if !proposal.is_live() {
            proposal.terms = Some(probation::terms(self.node, proposal.probes.clone(), None).await?);
        }
        self.apply(proposal, seen).await
    }

    /// Ends a probation, and says how.
    async fn conclude(&self, generation: u64, verdict: Result<Verdict, NodeError>) {
        let standing = match verdict {
            Ok(verdict) => {
                if let Verdict::RollBack { why } = &verdict {
                    tracing::error!(generation, %why, "rolling back");
                }
                probation::conclude(self.node, generation, verdict).await
            }
            Err(error) => Err(error),
        };
        match standing {
            Ok(Standing::RolledBack) => tracing::warn!(generation, "rolled back"),
            Ok(Standing::RolledBackUnhealthy) => {
                tracing::error!(generation, "rolled back, and what worked before still does not");
            }
            Ok(standing) => tracing::info!(generation, state = standing.word(), "probation ended"),
            // The next look tries again.
            Err(error) => tracing::error!(generation, error = %chain(&error), "the probation could not be ended"),
        }
    }

    async fn apply(&mut self, proposal: Proposal, seen: &mut Seen) -> Result<(), NodeError> {
        let summary = summary(&proposal.plan);
        let applied = apply(self.node, proposal, &mut |_| {}).await?;
        for (attachment, attached) in &applied.report.attached {
            let (device, ports) = (&attachment.target.device, attachment.ports.join(", "));
            tracing::info!(device, ports, mode = attached.mode.word(), why = attached.why, "attached");
        }
        if let Some(generation) = applied.report.published {
            tracing::info!(generation, %summary, "published");
        }
        for next_hop in &applied.report.unresolved {
            tracing::warn!(next_hop = next_hop.next_hop, via = %next_hop.via, port = next_hop.port, "no neighbour");
        }
        self.decided = false;
        seen.live = applied.live;
        let unresolved = applied.report.unresolved.iter();
        seen.unresolved = unresolved.map(|u| format!("{} via {} port {}", u.next_hop, u.via, u.port)).collect();
        Ok(())
    }
}

/// How a look ended, where that is news.
fn log(tried: &Tried, revision: Option<&str>, error: Option<&NodeError>) {
    let (policy, sync) = tried.words();
    let said = |axis: Option<&Axis>| axis.and_then(|axis| axis.message.clone()).unwrap_or_default();
    match (tried.outcome, error) {
        ("in-sync", _) => tracing::info!(revision, "the kernel holds what the source says"),
        ("quarantined", _) => tracing::warn!(revision, "this source was rolled back; waiting for another one"),
        ("drifted", _) => {
            tracing::warn!(
                revision,
                "other rules than those published last are live; `wayleave apply` puts them right"
            );
        }
        ("suspended" | "outside-window", _) => {
            tracing::warn!(revision, why = said(sync), "the source's change is held; the live generation stays");
        }
        ("invalid", Some(NodeError::Policy { diagnostics })) => {
            let (errors, first) = attempt::first_error(diagnostics);
            tracing::error!(revision, errors, %first, "the policies have errors; the live generation stays");
        }
        ("refused", _) => {
            tracing::error!(revision, first = said(policy), "a guard refuses this source; the live generation stays");
        }
        ("tests-failed", _) => {
            tracing::error!(revision, first = said(policy), "policy tests fail; the live generation stays");
        }
        (_, Some(error @ NodeError::Source(SourceError::Git(GitError::NothingFetched { .. })))) => {
            tracing::info!("{}", chain(error));
        }
        (_, Some(error)) => tracing::error!(error = %chain(error), "the look failed; the live generation stays"),
        (outcome, None) => tracing::info!(revision, outcome, "looked"),
    }
}

type Waiting<'n> = Pin<Box<dyn Future<Output = Result<Verdict, NodeError>> + 'n>>;

/// The change on probation that is waited for.
#[derive(Default)]
struct Trial<'n> {
    /// Its generation, and the wait.
    waiting: Option<(u64, Waiting<'n>)>,
}

impl<'n> Trial<'n> {
    /// Waits for the change that is on probation now.
    fn renew(&mut self, node: &'n Node) {
        match probation::pending(node) {
            Ok(Some(record)) if self.waiting.as_ref().is_some_and(|(number, _)| *number == record.generation) => {}
            Ok(Some(record)) => {
                tracing::info!(generation = record.generation, "on probation");
                let number = record.generation;
                self.waiting = Some((number, Box::pin(async move { probation::wait(node, &record).await })));
            }
            Ok(None) => self.waiting = None,
            Err(error) => tracing::error!(error = %chain(&error), "the change on probation cannot be read"),
        }
    }

    /// What becomes of it; never, where there is none. May be dropped and asked again.
    async fn verdict(&mut self) -> (u64, Result<Verdict, NodeError>) {
        let Some((number, wait)) = &mut self.waiting else { return std::future::pending().await };
        let verdict = (*number, wait.await);
        self.waiting = None;
        verdict
    }
}

/// An error and its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Watches the source and the folder that holds it; a hint is lost at worst until the next rescan.
struct FileWatch {
    source: PathBuf,
    hints: mpsc::Sender<()>,
    watcher: Option<RecommendedWatcher>,
    /// Device and inode that are being watched: a source that was replaced is watched anew.
    watched: Option<(u64, u64)>,
}

impl FileWatch {
    fn new(source: &Path, hints: mpsc::Sender<()>) -> Self {
        let source = std::path::absolute(source).unwrap_or_else(|_| source.to_owned());
        let mut watch = Self { source, hints, watcher: None, watched: None };
        watch.renew();
        watch
    }

    /// Watches again when the directory is another one than before.
    fn renew(&mut self) {
        use std::os::unix::fs::MetadataExt as _;
        let identity = std::fs::metadata(&self.source).ok().map(|m| (m.dev(), m.ino()));
        if self.watcher.is_some() && identity == self.watched {
            return;
        }
        self.watched = identity;
        self.watcher = self.watch().map_err(|error| tracing::warn!(%error, "file events are not available")).ok();
    }

    fn watch(&self) -> notify::Result<RecommendedWatcher> {
        let hints = self.hints.clone();
        let source = self.source.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading is not a change; everything else, errors and overflows included, is worth a look.
            let read =
                |kind| matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write));
            let elsewhere = |paths: &[PathBuf]| !paths.is_empty() && !paths.iter().any(|p| p.starts_with(&source));
            if !event.is_ok_and(|e| read(e.kind) || elsewhere(&e.paths)) {
                // A full channel holds a hint already.
                let _ = hints.try_send(());
            }
        })?;
        if self.watched.is_some() {
            watcher.watch(&self.source, RecursiveMode::Recursive)?;
        }
        if let Some(parent) = self.source.parent().filter(|p| p.is_dir()) {
            watcher.watch(parent, RecursiveMode::NonRecursive)?;
        }
        Ok(watcher)
    }
}
