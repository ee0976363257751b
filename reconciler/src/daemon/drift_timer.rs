//! Looks for drift on a timer, and does about it what the node's configuration says.

use std::time::Instant;

use serde_json::{Value, json};

use crate::policy::DriftMode;

use super::apply::Applied;
use super::drift::{self, Difference, drift, repair};
use super::journal::Event;
use super::node::{Node, unix_ms};
use super::run::chain;
use super::state::State;

/// Looks for drift on a timer.
pub(super) struct DriftTimer<'n> {
    node: &'n Node,
    state: State,
    next: Instant,
    /// What was told last, and since when it is so.
    told: Vec<Difference>,
    since_unix_ms: u64,
    repaired: Value,
    error: Option<String>,
}

impl<'n> DriftTimer<'n> {
    pub(super) fn new(node: &'n Node, state: State) -> Self {
        let next = Instant::now() + node.config.drift.interval;
        let repaired = state.drift().map(|drift| drift["repaired"].clone()).unwrap_or_default();
        Self { node, state, next, told: Vec::new(), since_unix_ms: unix_ms(), repaired, error: None }
    }

    /// Waits for the next look; for ever where nobody wants one. May be dropped and asked again.
    pub(super) async fn due(&self) {
        if self.node.config.drift.mode == DriftMode::Off {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep_until(self.next.into()).await;
    }

    /// Something has changed that should not: the next look is due.
    pub(super) fn hint(&mut self) {
        self.next = Instant::now();
    }

    /// One look: tells what differs, once, and puts it right where that is wanted. Says whether only the source can.
    pub(super) async fn look(&mut self) -> bool {
        let heals = self.node.config.drift.mode == DriftMode::Heal;
        let mut needs_source = false;
        let mut error = None;
        match drift(self.node).await {
            Ok(differences) => {
                if differences != self.told {
                    self.tell(&differences, heals);
                    self.since_unix_ms = unix_ms();
                    self.told = differences;
                }
                if heals && !self.told.is_empty() {
                    match repair(self.node, &self.told).await {
                        Ok(Some(applied)) => self.done(&applied),
                        Ok(None) => needs_source = true,
                        Err(failed) => error = Some(chain(&failed)),
                    }
                }
            }
            Err(failed) => error = Some(chain(&failed)),
        }
        if let Some(error) = error.as_ref().filter(|error| self.error.as_ref() != Some(error)) {
            tracing::error!(%error, "drift cannot be looked for, or not be repaired");
        }
        self.error = error;
        let document = json!({
            "mode": self.node.config.drift.mode.word(), "unix_ms": unix_ms(), "since_unix_ms": self.since_unix_ms,
            "differences": self.told, "repaired": self.repaired, "error": self.error,
        });
        if let Err(error) = self.state.set_drift(&document) {
            tracing::warn!(%error, "the state directory cannot be written");
        }
        self.next = Instant::now() + self.node.config.drift.interval;
        needs_source
    }

    fn tell(&self, differences: &[Difference], heals: bool) {
        for difference in differences.iter().filter(|difference| !self.told.contains(difference)) {
            tracing::warn!(of = difference.of, "drift: {}", difference.message);
        }
        if differences.is_empty() {
            tracing::info!("the kernel is as the last publish left it again");
        } else if !heals && let Err(error) = drift::record(self.node, Event::Drifted, differences) {
            tracing::warn!(error = %chain(&error), "the journal cannot be written");
        }
    }

    fn done(&mut self, applied: &Applied) {
        for difference in &self.told {
            tracing::info!(of = difference.of, generation = applied.live, "repaired: {}", difference.message);
        }
        self.repaired = json!({"unix_ms": unix_ms(), "generation": applied.live, "differences": self.told});
        self.told.clear();
        self.since_unix_ms = unix_ms();
    }
}
