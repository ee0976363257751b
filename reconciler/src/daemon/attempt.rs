//! What was last tried, on three axes: the source, its policies, and whether the kernel holds what they say. The fourth, health,
//! is read from the kernel when somebody asks.
//!
//! The daemon writes it after each look and `apply` after each try; it survives both.

use std::cell::RefCell;

use serde_json::{Map, Value, json};

use crate::guard::Refusal;
use crate::plan::Plan;
use crate::policy::{Diagnostic, Severity};
use crate::policy_test::Ended;
use crate::reconcile::hold::Hold;
use crate::source::{Limits, ReadSource, Snapshot, SourceError};

use super::apply::Proposal;
use super::node::{Node, NodeError, operator, unix_ms};
use super::run::chain;
use super::state::State;

/// One axis of a node's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// One word.
    pub state: String,
    /// One more, where the first leaves open why.
    pub reason: Option<String>,
    /// For people.
    pub message: Option<String>,
    /// Since when it has this state; `None`: nobody saw it begin.
    pub since_unix_ms: Option<u64>,
    /// Numbers and names that belong to the state.
    pub details: Map<String, Value>,
}

impl Axis {
    pub fn new(state: &str) -> Self {
        Self { state: state.to_owned(), reason: None, message: None, since_unix_ms: None, details: Map::new() }
    }

    #[must_use]
    pub fn because(mut self, reason: &str) -> Self {
        self.reason = Some(reason.to_owned());
        self
    }

    #[must_use]
    pub fn saying(mut self, message: impl Into<String>) -> Self {
        self.message = Some(message.into());
        self
    }

    fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.details.insert(key.to_owned(), value.into());
        self
    }

    /// What this axis is now that this was found; nothing found leaves it as it was.
    fn learn(&mut self, found: Option<Self>, now_unix_ms: u64) {
        let Some(found) = found else { return };
        let since = self.since_unix_ms.filter(|_| self.state == found.state).unwrap_or(now_unix_ms);
        *self = Self { since_unix_ms: Some(since), ..found };
    }

    fn to_json(&self) -> Value {
        json!({"state": self.state, "reason": self.reason, "message": self.message,
            "since_unix_ms": self.since_unix_ms, "details": self.details})
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        Some(Self {
            state: text("state")?,
            reason: text("reason"),
            message: text("message"),
            since_unix_ms: value["since_unix_ms"].as_u64(),
            details: value["details"].as_object().cloned().unwrap_or_default(),
        })
    }
}

/// A revision that the kernel was known to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub revision: String,
    pub generation: u64,
    pub unix_ms: u64,
}

/// What the source asks for and the kernel does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub revision: String,
    pub add: usize,
    pub change: usize,
    pub remove: usize,
}

impl Pending {
    fn of(plan: &Plan) -> Self {
        let summary = plan.summary();
        let revision = plan.to().revision.clone();
        Self { revision, add: summary.add, change: summary.change, remove: summary.remove }
    }
}

/// The last attempt, and what it left standing of those before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Of the last daemon; `None`: none ever looked.
    pub daemon_pid: Option<u32>,
    pub by: String,
    pub unix_ms: u64,
    /// `None`: the source could not be read.
    pub revision: Option<String>,
    /// Of its rules, when they were compiled.
    pub digest: Option<String>,
    /// One word.
    pub outcome: String,
    pub source: Axis,
    pub policy: Axis,
    pub sync: Axis,
    pub pending: Option<Pending>,
    pub applied: Option<Applied>,
    /// Next hops without a neighbour, as `policy/name via address port`.
    pub unresolved: Vec<String>,
}

impl Attempt {
    /// Before anything was tried.
    fn none() -> Self {
        Self {
            daemon_pid: None,
            by: String::new(),
            unix_ms: 0,
            revision: None,
            digest: None,
            outcome: "none".to_owned(),
            source: Axis::new("unknown"),
            policy: Axis::new("unknown"),
            sync: Axis::new("unknown"),
            pending: None,
            applied: None,
            unresolved: Vec::new(),
        }
    }

    /// The last one; `None` where there was none, or none that this version can read: it only says what was, and decides nothing.
    pub fn last(state: &State) -> Option<Self> {
        Self::from_json(&state.attempt()?)
    }

    fn learn(&mut self, tried: Tried, seen: Seen, now_unix_ms: u64) {
        self.unix_ms = now_unix_ms;
        tried.outcome.clone_into(&mut self.outcome);
        self.source.learn(tried.source, now_unix_ms);
        self.policy.learn(tried.policy, now_unix_ms);
        self.sync.learn(tried.sync, now_unix_ms);
        if let (IN_SYNC, Some(revision)) = (tried.outcome, &seen.revision) {
            let same = self.applied.take().filter(|a| a.revision == *revision && a.generation == seen.live);
            let new = || Applied { revision: revision.clone(), generation: seen.live, unix_ms: now_unix_ms };
            self.applied = Some(same.unwrap_or_else(new));
        }
        // A source that cannot be read asks for nothing else than before.
        if seen.revision.is_some() {
            self.pending = seen.pending.filter(|_| tried.outcome != IN_SYNC);
            self.revision = seen.revision;
            self.digest = seen.digest;
        }
        self.unresolved = seen.unresolved;
    }

    fn to_json(&self) -> Value {
        json!({
            "format_version": 2,
            "daemon_pid": self.daemon_pid,
            "by": self.by,
            "unix_ms": self.unix_ms,
            "revision": self.revision,
            "digest": self.digest,
            "outcome": self.outcome,
            "source": self.source.to_json(),
            "policy": self.policy.to_json(),
            "sync": self.sync.to_json(),
            "pending": self.pending.as_ref().map(|p| {
                json!({"revision": p.revision, "add": p.add, "change": p.change, "remove": p.remove})
            }),
            "applied": self.applied.as_ref().map(|a| {
                json!({"revision": a.revision, "generation": a.generation, "unix_ms": a.unix_ms})
            }),
            "unresolved": self.unresolved,
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |value: &Value, key: &str| value[key].as_str().map(str::to_owned);
        let number = |value: &Value, key: &str| value[key].as_u64().and_then(|number| usize::try_from(number).ok());
        let pending = |p: &Value| {
            let (add, change, remove) = (number(p, "add")?, number(p, "change")?, number(p, "remove")?);
            Some(Pending { revision: text(p, "revision")?, add, change, remove })
        };
        let applied = |a: &Value| {
            let (revision, generation) = (text(a, "revision")?, a["generation"].as_u64()?);
            Some(Applied { revision, generation, unix_ms: a["unix_ms"].as_u64()? })
        };
        Some(Self {
            daemon_pid: value["daemon_pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()),
            by: text(value, "by")?,
            unix_ms: value["unix_ms"].as_u64()?,
            revision: text(value, "revision"),
            digest: text(value, "digest"),
            outcome: text(value, "outcome")?,
            source: Axis::from_json(&value["source"])?,
            policy: Axis::from_json(&value["policy"])?,
            sync: Axis::from_json(&value["sync"])?,
            pending: pending(&value["pending"]),
            applied: applied(&value["applied"]),
            unresolved: value["unresolved"]
                .as_array()
                .map(|all| all.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect())
                .unwrap_or_default(),
        })
    }
}

const IN_SYNC: &str = "in-sync";

/// How an attempt ended: one word, and what it found on each axis. `None`: it did not get that far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    pub outcome: &'static str,
    source: Option<Axis>,
    policy: Option<Axis>,
    sync: Option<Axis>,
}

impl Tried {
    fn new(outcome: &'static str, policy: Option<Axis>, sync: Option<Axis>) -> Self {
        Self { outcome, source: Some(Axis::new("ready")), policy, sync }
    }

    /// The kernel holds what the source says.
    pub fn in_sync() -> Self {
        Self::new(IN_SYNC, Some(Axis::new("valid")), Some(Axis::new(IN_SYNC)))
    }

    /// It was published, did not prove itself, and was rolled back.
    pub fn rolled_back() -> Self {
        Self { outcome: "rolled-back", ..Self::quarantined() }
    }

    /// The source is what was rolled back from; it waits for a different one.
    pub fn quarantined() -> Self {
        let sync = Axis::new("quarantined").saying("this source was rolled back; waiting for a different one");
        Self::new("quarantined", Some(Axis::new("valid")), Some(sync))
    }

    /// Somebody put other rules into the kernel, and the node's configuration leaves them there.
    pub fn drifted() -> Self {
        let sync = Axis::new("drifted")
            .saying("other rules than those published last are live; `wayleave apply` puts them right");
        Self::new("drifted", Some(Axis::new("valid")), Some(sync))
    }

    /// It waits for a time, or for an operator's word; `refusals` would keep it from being applied then, too.
    pub fn held(holds: &[Hold], refusals: &[Refusal]) -> Self {
        let message = holds.iter().map(Hold::message).collect::<Vec<_>>().join("; ");
        let outcome = holds.first().map_or("suspended", Hold::name);
        let policy = if refusals.is_empty() { Axis::new("valid") } else { refused(refusals) };
        Self::new(outcome, Some(policy), Some(Axis::new(outcome).saying(message)))
    }

    /// `proposed`: the policies were found to be valid before it failed.
    pub fn failed(error: &NodeError, proposed: bool) -> Self {
        let out = |reason: &str| Some(Axis::new("out-of-sync").because(reason));
        match error {
            NodeError::Source(_) | NodeError::Update(_) => {
                let source = Some(Axis::new("failed").saying(chain(error)));
                Self { outcome: "source-failed", source, policy: None, sync: None }
            }
            NodeError::Policy { diagnostics } => {
                let (errors, first) = first_error(diagnostics);
                let policy = Axis::new("invalid").saying(first).with("errors", errors);
                Self::new("invalid", Some(policy), out("policy"))
            }
            NodeError::Compile(_) | NodeError::AttachTwoWays { .. } => {
                Self::new("invalid", Some(Axis::new("invalid").saying(chain(error))), out("policy"))
            }
            NodeError::Tests { failures } => {
                let first = failures.first().map(|failure| match &failure.ended {
                    Ended::Failed { expected, got } => {
                        format!(
                            "{}:{}: {}: expected {expected}, got {got}",
                            failure.file,
                            failure.line,
                            failure.title()
                        )
                    }
                    _ => failure.title(),
                });
                let policy = Axis::new("tests-failed").saying(first.unwrap_or_default()).with("failed", failures.len());
                Self::new("tests-failed", Some(policy), out("policy"))
            }
            NodeError::Step { source, .. } if matches!(**source, NodeError::Tests { .. }) => {
                Self::failed(source, proposed)
            }
            NodeError::Refused { refusals } => Self::new("refused", Some(refused(refusals)), out("guard")),
            NodeError::Held { holds } => Self::held(holds, &[]),
            _ => {
                let sync = out("error").map(|axis| axis.saying(chain(error)));
                let source = proposed.then(|| Axis::new("ready"));
                Self { outcome: "failed", source, policy: proposed.then(|| Axis::new("valid")), sync }
            }
        }
    }

    /// The state of the policies, or else of the sync, and what is said of it.
    pub fn words(&self) -> (Option<&Axis>, Option<&Axis>) {
        (self.policy.as_ref(), self.sync.as_ref())
    }
}

fn refused(refusals: &[Refusal]) -> Axis {
    let guards: Vec<Value> = refusals.iter().map(|refusal| refusal.guard.name().into()).collect();
    let first = refusals.first().map(|refusal| format!("{}; {}", refusal.message, refusal.help()));
    Axis::new("refused").saying(first.unwrap_or_default()).with("guards", guards)
}

/// The errors' number and the first of them.
pub fn first_error(diagnostics: &[Diagnostic]) -> (usize, String) {
    let mut errors = diagnostics.iter().filter(|d| d.severity == Severity::Error);
    let first = errors.next().map(|d| {
        let line = d.span.map(|span| format!(":{}", span.start.line)).unwrap_or_default();
        format!("{}{line}: {}", d.file, d.message)
    });
    (errors.count() + usize::from(first.is_some()), first.unwrap_or_default())
}

/// What an attempt came to know on its way, however it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub revision: Option<String>,
    pub digest: Option<String>,
    pub pending: Option<Pending>,
    /// The generation that is live at its end.
    pub live: u64,
    pub unresolved: Vec<String>,
}

impl Seen {
    /// Takes note of a proposal.
    pub fn proposal(&mut self, proposal: &Proposal) {
        self.revision = Some(proposal.plan.to().revision.clone());
        self.digest = Some(proposal.plan.to().digest.to_string());
        self.pending = (!proposal.is_live()).then(|| Pending::of(&proposal.plan));
        self.live = proposal.parent();
    }
}

/// A source that keeps the revision that was read of it, whatever becomes of it afterwards.
pub struct Noting<'s, S: ?Sized> {
    source: &'s S,
    revision: RefCell<Option<String>>,
}

impl<'s, S: ReadSource + ?Sized> Noting<'s, S> {
    pub fn new(source: &'s S) -> Self {
        Self { source, revision: RefCell::new(None) }
    }

    pub fn revision(&self) -> Option<String> {
        self.revision.borrow().clone()
    }
}

impl<S: ReadSource + ?Sized> ReadSource for Noting<'_, S> {
    fn read(&self, limits: &Limits) -> Result<Snapshot, SourceError> {
        let snapshot = self.source.read(limits)?;
        *self.revision.borrow_mut() = Some(snapshot.revision.clone());
        Ok(snapshot)
    }
}

/// Who tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Daemon,
    Operator,
}

/// Writes down how an attempt ended. What is live is not at stake, so a full disk is logged, not an error.
pub fn record(node: &Node, by: By, seen: Seen, tried: Tried) {
    let state = State::new(&node.config.state_dir);
    let mut attempt = Attempt::last(&state).unwrap_or_else(Attempt::none);
    attempt.learn(tried, seen, unix_ms());
    match by {
        By::Daemon => {
            attempt.daemon_pid = Some(std::process::id());
            "the daemon".clone_into(&mut attempt.by);
        }
        By::Operator => attempt.by = operator(),
    }
    if let Err(error) = state.set_attempt(&attempt.to_json()) {
        tracing::warn!(%error, "the state directory cannot be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(revision: &str, live: u64) -> Seen {
        let pending = Some(Pending { revision: revision.to_owned(), add: 1, change: 2, remove: 3 });
        Seen { revision: Some(revision.to_owned()), digest: Some("d".to_owned()), pending, live, unresolved: vec![] }
    }

    fn states(attempt: &Attempt) -> [&str; 3] {
        [&attempt.source.state, &attempt.policy.state, &attempt.sync.state]
    }

    fn lost() -> Tried {
        Tried::failed(&NodeError::Source(SourceError::Missing { path: "gone".into() }), false)
    }

    #[test]
    fn each_axis_tells_its_own_trouble_and_since_when() {
        let mut attempt = Attempt::none();
        attempt.learn(Tried::in_sync(), seen("r1", 1), 10);
        assert_eq!(states(&attempt), ["ready", "valid", "in-sync"]);
        assert_eq!(attempt.applied, Some(Applied { revision: "r1".to_owned(), generation: 1, unix_ms: 10 }));
        assert_eq!(attempt.pending, None);

        // Faults in the policies say nothing of the source, and what was applied stays so.
        let invalid = Tried::failed(&NodeError::Policy { diagnostics: Vec::new() }, false);
        attempt.learn(invalid, Seen { revision: Some("r2".to_owned()), ..Seen::default() }, 20);
        assert_eq!(states(&attempt), ["ready", "invalid", "out-of-sync"]);
        assert_eq!([attempt.source.since_unix_ms, attempt.policy.since_unix_ms], [Some(10), Some(20)]);
        assert_eq!(attempt.revision.as_deref(), Some("r2"));
        assert_eq!(attempt.applied.as_ref().map(|a| a.revision.as_str()), Some("r1"));

        // A lost source says nothing of the policies that it had.
        attempt.learn(lost(), Seen::default(), 30);
        assert_eq!(states(&attempt), ["failed", "invalid", "out-of-sync"]);
        assert_eq!(attempt.policy.since_unix_ms, Some(20));
        assert_eq!(attempt.revision.as_deref(), Some("r2"), "what was tried last");

        attempt.learn(Tried::quarantined(), seen("r3", 1), 40);
        assert_eq!(states(&attempt), ["ready", "valid", "quarantined"]);
        assert_eq!(attempt.pending.as_ref().map(|p| p.remove), Some(3));
        attempt.learn(Tried::quarantined(), seen("r3", 1), 50);
        assert_eq!((attempt.sync.since_unix_ms, attempt.unix_ms), (Some(40), 50));
    }

    #[test]
    fn the_same_revision_was_applied_once() {
        let mut attempt = Attempt::none();
        for (now, revision, generation, expected) in [(1, "a", 1, 1), (2, "a", 1, 1), (3, "b", 1, 3), (4, "b", 2, 4)] {
            attempt.learn(Tried::in_sync(), seen(revision, generation), now);
            assert_eq!(attempt.applied.as_ref().map(|a| a.unix_ms), Some(expected), "{now}");
        }
    }

    #[test]
    fn an_attempt_is_read_back_as_it_was_written() {
        let mut attempt = Attempt::none();
        assert_eq!(Attempt::from_json(&attempt.to_json()), Some(attempt.clone()));
        attempt.learn(Tried::in_sync(), seen("r1", 1), 10);
        attempt.learn(Tried::quarantined(), seen("r2", 1), 20);
        attempt.daemon_pid = Some(7);
        assert_eq!(Attempt::from_json(&attempt.to_json()), Some(attempt));
    }
}
