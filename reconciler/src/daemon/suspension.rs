//! An operator's word that the source is not to be followed for a while: a file in the state directory.

use std::io;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Interval, MissedTickBehavior};

use crate::reconcile::hold::{self, Hold, Suspension};

use super::journal::{Entry, Event};
use super::node::{Node, NodeError, operator, unix_ms};
use super::state::State;

const FILE: &str = "suspend.json";
/// How often the daemon looks whether somebody suspended or resumed, and whether a window opened or closed.
const POLL: Duration = Duration::from_millis(250);

/// The suspension in force now.
pub fn current(node: &Node) -> Result<Option<Suspension>, NodeError> {
    let now = unix_ms();
    let suspension = read(&State::new(&node.config.state_dir)).map_err(|source| state_error(node, source))?;
    Ok(suspension.filter(|suspension| !suspension.is_over(now)))
}

/// What keeps changes of the source from being published now.
pub fn holds(node: &Node) -> Result<Vec<Hold>, NodeError> {
    Ok(hold::holds(current(node)?.as_ref(), &node.config.sync_windows, unix_ms()))
}

/// Suspends; returns the suspension that was in force before. A publish that another process has begun is waited for: once
/// this has returned nothing of the source is published any more.
pub fn suspend(node: &Node, reason: &str, until_unix_ms: Option<u64>) -> Result<Option<Suspension>, NodeError> {
    let _lock = node.lock()?;
    let before = current(node)?;
    let suspension = Suspension { by: operator(), reason: reason.to_owned(), since_unix_ms: unix_ms(), until_unix_ms };
    let state = State::new(&node.config.state_dir);
    state.replace(FILE, to_json(&suspension).to_string().as_bytes()).map_err(|source| state_error(node, source))?;
    let until = until_unix_ms.map_or_else(String::new, |until| format!(" until {}", super::time::rfc3339(until)));
    record(node, Event::Suspended, format!("the source is not followed{until}"), Some(reason.to_owned()))?;
    Ok(before)
}

/// Ends a suspension; returns the one that was in force.
pub fn resume(node: &Node) -> Result<Option<Suspension>, NodeError> {
    let _lock = node.lock()?;
    // A damaged one is removed, too: that is what its error says.
    let before = current(node).ok().flatten();
    match std::fs::remove_file(node.config.state_dir.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(state_error(node, error)),
        _ => {}
    }
    if before.is_some() {
        record(node, Event::Resumed, "the source is followed again".to_owned(), None)?;
    }
    Ok(before)
}

/// Notices when changes of the source are held, and when they are not any more: somebody suspended or resumed, a time came.
pub(super) struct Watched<'n> {
    node: &'n Node,
    last: (Option<Vec<u8>>, Vec<&'static str>),
    /// Nothing changes by itself from then on, unless somebody sets the clock back, …
    windows_from: u64,
    /// … until then.
    windows_until: Option<u64>,
    ticks: Interval,
}

impl<'n> Watched<'n> {
    pub(super) fn new(node: &'n Node) -> Self {
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watched = Self { node, last: (None, Vec::new()), windows_from: u64::MAX, windows_until: None, ticks };
        watched.last = watched.now();
        watched
    }

    /// Returns when something has changed. May be dropped and asked again.
    pub(super) async fn changed(&mut self) {
        loop {
            self.ticks.tick().await;
            let now = self.now();
            if now != self.last {
                self.last = now;
                return;
            }
        }
    }

    /// The file as it is, and what holds. A file that cannot be read is for the look to report.
    fn now(&mut self) -> (Option<Vec<u8>>, Vec<&'static str>) {
        let state = State::new(&self.node.config.state_dir);
        let file = state.read(FILE).unwrap_or_default();
        let now = unix_ms();
        let same_file = file == self.last.0;
        if same_file && self.windows_until.is_none_or(|until| now < until) && self.windows_from <= now {
            return (file, self.last.1.clone());
        }
        let suspension = read(&state).unwrap_or_default();
        let windows = &self.node.config.sync_windows;
        let names = hold::holds(suspension.as_ref(), windows, now).iter().map(Hold::name).collect();
        self.windows_until = hold::next_change(suspension.as_ref(), windows, now);
        self.windows_from = now;
        (file, names)
    }
}

fn record(node: &Node, event: Event, summary: String, why: Option<String>) -> Result<(), NodeError> {
    let generation = node.observe()?.live_number();
    let entry = Entry { generation, by: operator(), summary, why, ..Entry::new(event, unix_ms()) };
    node.journal.append(&entry).map_err(|source| state_error(node, source))
}

fn state_error(node: &Node, source: io::Error) -> NodeError {
    NodeError::State { path: node.config.state_dir.clone(), source }
}

/// One that is there and cannot be read is an error, never "nothing": what somebody stopped would go on.
fn read(state: &State) -> io::Result<Option<Suspension>> {
    let Some(bytes) = state.read(FILE)? else { return Ok(None) };
    let value: Option<Value> = serde_json::from_slice(&bytes).ok();
    let damaged =
        || io::Error::new(io::ErrorKind::InvalidData, format!("{FILE} is damaged; `wayleave resume` removes it"));
    value.as_ref().and_then(from_json).map(Some).ok_or_else(damaged)
}

fn to_json(suspension: &Suspension) -> Value {
    json!({
        "format_version": 1,
        "by": suspension.by,
        "reason": suspension.reason,
        "since_unix_ms": suspension.since_unix_ms,
        "until_unix_ms": suspension.until_unix_ms,
    })
}

fn from_json(value: &Value) -> Option<Suspension> {
    let text = |key: &str| value.get(key)?.as_str().map(str::to_owned);
    Some(Suspension {
        by: text("by")?,
        reason: text("reason")?,
        since_unix_ms: value.get("since_unix_ms")?.as_u64()?,
        until_unix_ms: match value.get("until_unix_ms")? {
            Value::Null => None,
            until => Some(until.as_u64()?),
        },
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn a_suspension_is_read_back_as_it_was_written_and_a_damaged_one_is_no_resume() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::new(dir.path());
        assert_eq!(read(&state).unwrap(), None);
        for until_unix_ms in [None, Some(77)] {
            let suspension =
                Suspension { by: "alice".to_owned(), reason: "\"x\"".to_owned(), since_unix_ms: 5, until_unix_ms };
            state.replace(FILE, to_json(&suspension).to_string().as_bytes()).unwrap();
            assert_eq!(read(&state).unwrap(), Some(suspension));
        }
        let half = r#"{"by": "alice", "reason": "x", "since_unix_ms": 5}"#;
        for damaged in ["", "{}", half, r#"{"by": "a", "reason": "x", "since_unix_ms": 5, "until_unix_ms": "soon"}"#] {
            std::fs::write(dir.path().join(FILE), damaged).unwrap();
            assert!(read(&state).is_err(), "{damaged}");
        }
    }
}
