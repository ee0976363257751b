//! When to look at the source again.
//!
//! File events are hints: editors rename, mounts swap symlinks, events get lost. A hint starts a short wait for the
//! files to settle, a timer looks anyway, and failures back off. Times are monotonic and come from the caller.

use std::time::{Duration, Instant};

/// First pause after a failure; each further one doubles it.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// Longest pause after a failure.
const BACKOFF_MAX: Duration = Duration::from_mins(1);
/// A source that never rests is read after this many settle times.
const SETTLE_ROUNDS_MAX: u32 = 10;

/// How a look at the source ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel holds what the source says, or what it says is refused until it changes.
    Settled,
    /// Something that may pass: memory, a device that is not there yet, a source that cannot be read.
    Failed,
}

/// The next look, and why.
#[derive(Clone, Debug)]
pub struct Schedule {
    settle: Duration,
    rescan: Duration,
    /// First hint since the last look.
    hinted: Option<Instant>,
    next: Instant,
    failures: u32,
}

impl Schedule {
    /// Looks at once, then on hints and every `rescan`.
    pub fn new(settle: Duration, rescan: Duration, now: Instant) -> Self {
        Self { settle, rescan, hinted: None, next: now, failures: 0 }
    }

    /// When to look.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Something may have changed.
    pub fn hint(&mut self, now: Instant) {
        let first = *self.hinted.get_or_insert(now);
        let settled = now + self.settle;
        let latest = first + self.settle * SETTLE_ROUNDS_MAX;
        self.next = settled.min(latest);
    }

    /// A look has begun: hints from now on ask for another.
    pub fn looking(&mut self) {
        self.hinted = None;
    }

    /// A look has ended.
    pub fn finished(&mut self, outcome: Outcome, now: Instant) {
        let pause = match outcome {
            Outcome::Settled => {
                self.failures = 0;
                self.rescan
            }
            Outcome::Failed => {
                let pause = BACKOFF_FIRST.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MAX);
                self.failures = self.failures.saturating_add(1);
                pause.min(self.rescan)
            }
        };
        // A hint that came during the look keeps its own, earlier time.
        if self.hinted.is_none() {
            self.next = now + pause;
        }
    }
}

/// Longest pause between two questions to a server that fails, unless the interval itself is longer.
const POLL_BACKOFF_MAX: Duration = Duration::from_mins(5);

/// How long to wait before a server is asked again: `interval`, or after so many failures in a row 1 s, 2 s, 4 s, … up to
/// five minutes or the interval, whichever is longer.
pub fn poll_pause(interval: Duration, failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => interval,
        Some(doublings) => BACKOFF_FIRST.saturating_mul(1 << doublings.min(16)).min(POLL_BACKOFF_MAX.max(interval)),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "any point in time will do to count from")]

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_hint_waits_for_the_files_to_settle_but_not_for_ever() {
        let start = Instant::now();
        let mut schedule = Schedule::new(20 * MS, 30_000 * MS, start);
        schedule.looking();
        schedule.finished(Outcome::Settled, start);
        assert_eq!(schedule.next(), start + 30_000 * MS);
        schedule.hint(start + 5 * MS);
        assert_eq!(schedule.next(), start + 25 * MS);
        schedule.hint(start + 15 * MS);
        assert_eq!(schedule.next(), start + 35 * MS);
        schedule.hint(start + 199 * MS);
        assert_eq!(schedule.next(), start + 205 * MS, "ten settle times after the first hint");
    }

    #[test]
    fn a_hint_during_a_look_asks_for_another() {
        let start = Instant::now();
        let mut schedule = Schedule::new(20 * MS, 30_000 * MS, start);
        schedule.looking();
        schedule.hint(start + MS);
        schedule.finished(Outcome::Settled, start + 10 * MS);
        assert_eq!(schedule.next(), start + 21 * MS);
    }

    #[test]
    fn a_server_that_fails_is_asked_less_and_less_often() {
        let check = |interval_s: u64, expected: [u64; 6]| {
            let pause = |failures| poll_pause(Duration::from_secs(interval_s), failures).as_secs();
            assert_eq!([0, 1, 2, 3, 9, 99].map(pause), expected, "{interval_s}");
        };
        check(60, [60, 1, 2, 4, 256, 300]);
        check(1, [1, 1, 2, 4, 256, 300]);
        check(3600, [3600, 1, 2, 4, 256, 3600]);
    }

    #[test]
    fn failures_back_off_and_success_forgets_them() {
        let start = Instant::now();
        let mut schedule = Schedule::new(20 * MS, 3_600_000 * MS, start);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            schedule.looking();
            schedule.finished(Outcome::Failed, start);
            pauses.push((schedule.next() - start).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        schedule.finished(Outcome::Settled, start);
        schedule.finished(Outcome::Failed, start);
        assert_eq!((schedule.next() - start).as_secs(), 1);
    }
}
