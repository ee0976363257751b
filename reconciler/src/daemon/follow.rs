//! Follows a repository: asks its server again and again, and hints when another commit was taken.
//!
//! Fetching is apart from looking: a server that is slow, gone or hostile delays nothing here, and what was taken before is
//! read on. What the follower knows is in a file for `status`.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

use crate::reconcile::poll_pause;
use crate::source::git::fetch::Stop;
use crate::source::git::{self, GitSource, Update, UpdateError};

use super::node::unix_ms;
use super::run::chain;
use super::state::State;

/// A running follower; it ends when this is dropped, and what it fetches with it.
pub(super) struct Follower {
    wake: Arc<Notify>,
    stop: Arc<Stop>,
    task: tokio::task::JoinHandle<()>,
}

impl Follower {
    /// Asks at once, then at the source's interval; `hints` hears of every commit that was taken.
    pub(super) fn start(source: GitSource, state: State, hints: mpsc::Sender<()>) -> Self {
        let (wake, stop) = (Arc::new(Notify::new()), Arc::new(Stop::default()));
        let task = tokio::spawn(follow(source, state, hints, Arc::clone(&wake), Arc::clone(&stop)));
        Self { wake, stop, task }
    }

    /// What asks the server now, or once more after it was asked.
    pub(super) fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.stop();
        self.task.abort();
    }
}

async fn follow(source: GitSource, state: State, hints: mpsc::Sender<()>, wake: Arc<Notify>, stop: Arc<Stop>) {
    let source = Arc::new(source);
    let mut known = Known::recall(&state, &source);
    loop {
        let (its_source, its_stop) = (Arc::clone(&source), Arc::clone(&stop));
        // A thread of its own: a fetch takes as long as the server lets it, up to its time limit.
        let result = tokio::task::spawn_blocking(move || git::update(&its_source, &its_stop)).await;
        let Ok(result) = result else { return };
        let news = known.learn(result);
        let pause = jittered(poll_pause(source.interval, known.failures));
        known.tell(&state, &source, pause);
        if news {
            // A full channel holds a hint already.
            let _ = hints.try_send(());
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = wake.notified() => {}
        }
    }
}

/// A tenth more or less.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() % 201;
    pause * u32::try_from(900 + random).unwrap_or(1000) / 1000
}

/// What the follower knows, for `status`.
#[derive(Default)]
struct Known {
    /// Of the commit that was taken last.
    revision: Option<String>,
    commit: Value,
    taken_unix_ms: Option<u64>,
    asked_unix_ms: Option<u64>,
    answered_unix_ms: Option<u64>,
    failures: u32,
    error: Option<(&'static str, String)>,
    warning: Option<String>,
    /// Since when it is as it is: answers, is refused, or fails.
    since: Option<(&'static str, u64)>,
    started: bool,
}

impl Known {
    /// What a predecessor left, for the time until the server has answered.
    fn recall(state: &State, source: &GitSource) -> Self {
        let old = state.source().unwrap_or_default();
        if old["url"] != source.url.to_string() || old["ref"] != source.reference.to_string() {
            return Self::default();
        }
        Self {
            revision: old["revision"].as_str().map(str::to_owned),
            commit: old["commit"].clone(),
            taken_unix_ms: old["taken_unix_ms"].as_u64(),
            answered_unix_ms: old["answered_unix_ms"].as_u64(),
            warning: old["warning"].as_str().map(str::to_owned),
            since: old["since_unix_ms"].as_u64().map(|since| (standing(&old), since)),
            ..Self::default()
        }
    }

    /// Takes note of an update; says whether there is something to look at.
    fn learn(&mut self, result: Result<Update, UpdateError>) -> bool {
        let now = unix_ms();
        self.asked_unix_ms = Some(now);
        match result {
            Ok(update) => {
                if self.error.take().is_some() {
                    tracing::info!("the source can be fetched again");
                }
                self.failures = 0;
                self.answered_unix_ms = Some(now);
                if let Some(warning) = update.warning {
                    tracing::warn!("{warning}");
                    self.warning = Some(warning);
                } else if update.changed {
                    self.warning = None;
                }
                if update.changed {
                    let commit = &update.commit;
                    tracing::info!(
                        revision = update.revision,
                        author = commit.author,
                        subject = commit.subject,
                        "fetched"
                    );
                    self.taken_unix_ms = Some(now);
                }
                self.commit = json!({"id": update.commit.id, "author": update.commit.author,
                    "author_unix_s": update.commit.author_unix_s, "subject": update.commit.subject});
                self.revision = Some(update.revision);
                let first = !std::mem::replace(&mut self.started, true);
                update.changed || first
            }
            Err(error) => {
                // A commit that is refused is asked for again as often as one that is not.
                let refused = error.is_refusal();
                self.failures = if refused { 0 } else { self.failures.saturating_add(1) };
                if refused {
                    self.answered_unix_ms = Some(now);
                }
                let told = (error.word(), chain(&error));
                if self.error.as_ref() != Some(&told) {
                    tracing::error!(reason = told.0, error = %told.1, "the source was not taken; the live generation stays");
                }
                self.error = Some(told);
                false
            }
        }
    }

    fn tell(&mut self, state: &State, source: &GitSource, pause: Duration) {
        let next = unix_ms() + u64::try_from(pause.as_millis()).unwrap_or(0);
        let mut value = json!({
            "pid": std::process::id(), "url": source.url.to_string(), "ref": source.reference.to_string(),
            "revision": self.revision, "commit": self.commit, "taken_unix_ms": self.taken_unix_ms,
            "asked_unix_ms": self.asked_unix_ms, "answered_unix_ms": self.answered_unix_ms,
            "failures": self.failures, "next_unix_ms": next,
            "reason": self.error.as_ref().map(|(word, _)| *word), "error": self.error.as_ref().map(|(_, text)| text),
            "warning": self.warning,
        });
        let now = standing(&value);
        let since = self.since.filter(|(before, _)| *before == now).map_or_else(unix_ms, |(_, since)| since);
        self.since = Some((now, since));
        value["since_unix_ms"] = since.into();
        if let Err(error) = state.set_source(&value) {
            tracing::warn!(%error, "the state directory cannot be written");
        }
    }
}

/// One word for what is known of a source.
fn standing(known: &Value) -> &'static str {
    match (known["error"].is_string(), known["reason"].as_str()) {
        (false, _) => "answers",
        (true, Some("rewritten" | "signature")) => "refused",
        (true, _) => "fails",
    }
}
