//! What slow backends pass on: shares of new flows from the latency that checks measure. Pure: no clock, no kernel.
//!
//! A backend is slow beside the others of its service: their lower median is what it is held against, so that at least half of them
//! keep all that their weights say. The share that a slow one keeps is what makes up for its latency, between the floor of the
//! service and all of it. Averages are exponentially weighted, small differences change nothing, and after a change a backend
//! keeps its share for some checks: single slow answers move no flow.

use std::time::Duration;

/// How much the newest check counts in the average.
const NEWEST: f64 = 0.3;
/// How much longer than the others' a latency must be before it counts: the share is full up to there.
const TOLERANCE: f64 = 1.5;
/// Differences below this are the checking machine's own.
const NOISE: Duration = Duration::from_millis(1);
/// What is shared out: a backend passes on so many of this many new flows.
const ALL: f64 = 256.0;
/// A share changes by a tenth at least, but for the way back to all of it.
const STEP: u8 = 26;
/// Checks that must have passed before the first change, and between two.
pub(super) const PAUSE_CHECKS: u64 = 5;

/// The latency of a target's checks that passed since it was unhealthy last.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Latency {
    average_ms: f64,
    count: u64,
}

impl Latency {
    pub(super) fn note(&mut self, took: Duration) {
        let ms = took.as_secs_f64() * 1e3;
        self.average_ms = if self.count == 0 { ms } else { self.average_ms + (ms - self.average_ms) * NEWEST };
        self.count += 1;
    }

    /// `None`: not measured yet.
    pub(super) fn average_ms(&self) -> Option<f64> {
        (self.count > 0).then_some(self.average_ms)
    }
}

/// What a backend passes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// So many of 256 new flows go to others.
    pub away: u8,
    /// How many checks its latency had when this was last changed.
    changed: u64,
}

impl Share {
    /// What the kernel's table says, when a daemon begins.
    pub(super) fn found(away: u8) -> Self {
        Self { away, changed: 0 }
    }

    /// Takes what was measured of it and of all backends of its service that take new flows, its own among them; says whether it is
    /// another than before.
    pub(super) fn adapt(&mut self, own: &Latency, all: &[f64], floor_percent: u8) -> bool {
        // A new average begins when a backend was unhealthy.
        self.changed = self.changed.min(own.count);
        let Some(average) = own.average_ms() else { return false };
        let wanted = away(average, all, floor_percent);
        let is_step = wanted.abs_diff(self.away) >= STEP || wanted == 0;
        if wanted == self.away || !is_step || own.count < self.changed + PAUSE_CHECKS {
            return false;
        }
        *self = Self { away: wanted, changed: own.count };
        true
    }
}

/// How many of 256 new flows a backend with the latency `own` should pass on.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 255")]
fn away(own: f64, all: &[f64], floor_percent: u8) -> u8 {
    let mut sorted = all.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let Some(median) = sorted.get(sorted.len().saturating_sub(1) / 2) else { return 0 };
    let limit = (median * TOLERANCE).max(median + NOISE.as_secs_f64() * 1e3);
    if own <= limit {
        return 0;
    }
    let share = (limit / own).max(f64::from(floor_percent.clamp(1, 100)) / 100.0);
    // Rounded so that it keeps no less than the floor.
    (ALL - (ALL * share).ceil()) as u8
}

/// What a backend that passes on so many of 256 new flows keeps, in percent.
pub fn share_percent(away: u8) -> u8 {
    u8::try_from((256 - u32::from(away)) * 100 / 256).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latency(ms: u64, checks: u64) -> Latency {
        let mut latency = Latency::default();
        (0..checks).for_each(|_| latency.note(Duration::from_millis(ms)));
        latency
    }

    #[test]
    fn a_share_is_what_makes_up_for_the_latency_between_the_floor_and_all() {
        // Own latency, all latencies, floor -> percent kept.
        for (own, all, floor, kept) in [
            (10.0, &[10.0, 10.0, 10.0][..], 25, 100),
            (14.0, &[10.0, 10.0, 14.0], 25, 100),
            (30.0, &[10.0, 10.0, 30.0], 25, 50),
            (60.0, &[10.0, 10.0, 60.0], 25, 25),
            (1000.0, &[10.0, 10.0, 1000.0], 25, 25),
            (1000.0, &[10.0, 10.0, 1000.0], 1, 1),
            (1000.0, &[10.0, 10.0, 1000.0], 99, 99),
            // Of two the faster one is what counts.
            (30.0, &[10.0, 30.0], 10, 50),
            (10.0, &[10.0, 30.0], 10, 100),
            // All are slow alike, or there is no other.
            (500.0, &[500.0, 500.0, 10.0], 25, 100),
            (500.0, &[500.0], 25, 100),
            // Less than a millisecond is nobody's fault.
            (0.9, &[0.1, 0.1, 0.9], 25, 100),
        ] {
            assert_eq!(share_percent(away(own, all, floor)), kept, "{own} among {all:?}, floor {floor} %");
        }
    }

    #[test]
    fn no_share_is_below_its_floor() {
        for floor in 1..=99 {
            assert!(share_percent(away(1e9, &[1.0, 1.0, 1e9], floor)) >= floor, "{floor}");
        }
    }

    #[test]
    fn one_slow_answer_changes_nothing_and_many_do() {
        let fast = 10.0;
        let mut own = latency(10, 20);
        let mut share = Share::default();
        own.note(Duration::from_millis(25));
        assert!(!share.adapt(&own, &[fast, fast, own.average_ms], 25), "{own:?}");
        (0..8).for_each(|_| own.note(Duration::from_millis(25)));
        assert!(share.adapt(&own, &[fast, fast, own.average_ms], 25), "{own:?}");
        assert!((60..70).contains(&share_percent(share.away)), "{share:?}");
    }

    #[test]
    fn after_a_change_a_share_stays_for_some_checks() {
        let fast = 10.0;
        let mut share = Share::default();
        assert!(!share.adapt(&latency(60, PAUSE_CHECKS - 1), &[fast, fast, 60.0], 25), "measured too seldom");
        let mut own = latency(60, PAUSE_CHECKS);
        assert!(share.adapt(&own, &[fast, fast, 60.0], 25));
        let slow = share;
        for check in 1..PAUSE_CHECKS {
            own = Latency { average_ms: fast, count: own.count + 1 };
            assert!(!share.adapt(&own, &[fast; 3], 25), "check {check}");
            assert_eq!(share, slow);
        }
        own.count += 1;
        assert!(share.adapt(&own, &[fast; 3], 25));
        assert_eq!(share_percent(share.away), 100);
    }

    #[test]
    fn small_differences_change_nothing() {
        let mut share = Share::found(away(30.0, &[10.0, 10.0, 30.0], 10));
        for own in [28, 29, 31, 34] {
            assert!(!share.adapt(&latency(own, 100), &[10.0, 10.0, 10.0], 10), "{own}");
        }
        assert!(share.adapt(&latency(50, 100), &[10.0, 10.0, 10.0], 10));
    }
}
