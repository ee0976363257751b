//! Probation: a change proves itself after its publish, or is rolled back. Pure.
//!
//! What worked before must work after it: probes that passed before are tried again and again for a while. And a person may
//! have to confirm: without that it is rolled back, too. Times are those of a clock that goes on while the machine sleeps,
//! and come from the caller.

use std::collections::BTreeMap;
use std::time::Duration;

/// How a change must prove itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How long probes are tried.
    pub window: Duration,
    /// Pause between two rounds.
    pub interval: Duration,
    /// Failures in a row that a probe may not have; at least 1.
    pub failures: u8,
}

/// A change on probation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probation {
    rules: Rules,
    /// When its window ends.
    until: Duration,
    /// When a person must have confirmed it.
    confirm_by: Option<Duration>,
    /// The next round.
    next: Duration,
    /// Failures in a row of every probe that passed before the change.
    failures: BTreeMap<String, u8>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Wait until then, and ask again; `try_probes`: try them then.
    Wait { until: Duration, try_probes: bool },
    /// It has proved itself.
    Passed,
    /// It has not, for this reason.
    RollBack { why: String },
}

impl Probation {
    /// A change that was published at `now`. `passed`: the probes that passed before it.
    pub fn new(
        rules: Rules,
        published: Duration,
        confirm_by: Option<Duration>,
        passed: impl IntoIterator<Item = String>,
    ) -> Self {
        let failures = passed.into_iter().map(|name| (name, 0)).collect();
        Self { rules, until: published + rules.window, confirm_by, next: published, failures }
    }

    /// What to do at `now`.
    pub fn judge(&self, now: Duration) -> Judgement {
        if self.confirm_by.is_some_and(|by| now >= by) {
            return Judgement::RollBack { why: "nobody confirmed it in time".to_owned() };
        }
        let probing = !self.failures.is_empty() && self.next <= self.until;
        match (probing, self.confirm_by) {
            (true, Some(by)) if by < self.next => Judgement::Wait { until: by, try_probes: false },
            (true, _) => Judgement::Wait { until: self.next, try_probes: true },
            (false, Some(by)) => Judgement::Wait { until: by, try_probes: false },
            (false, None) => Judgement::Passed,
        }
    }

    /// A round of probes has ended at `now`; what they said, by name.
    pub fn heard(&mut self, results: &BTreeMap<String, Result<(), String>>, now: Duration) -> Judgement {
        let mut again = false;
        for (name, failures) in &mut self.failures {
            match results.get(name) {
                Some(Ok(())) => *failures = 0,
                // One that nobody tried any more has not failed.
                None => {}
                Some(Err(error)) => {
                    *failures = failures.saturating_add(1);
                    if *failures >= self.rules.failures {
                        return Judgement::RollBack {
                            why: format!("the probe {name} passed before it and fails now: {error}"),
                        };
                    }
                    again = true;
                }
            }
        }
        // A failure is looked into at once, and to its end: it may be the last thing in the window.
        self.next = if again { now } else { (self.next + self.rules.interval).max(now) };
        if again {
            self.until = self.until.max(now);
        }
        self.judge(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn rules(failures: u8) -> Rules {
        Rules { window: 3 * S, interval: S, failures }
    }

    fn results(all: &[(&str, bool)]) -> BTreeMap<String, Result<(), String>> {
        let result = |passed: bool| if passed { Ok(()) } else { Err("refused".to_owned()) };
        all.iter().map(|(name, passed)| ((*name).to_owned(), result(*passed))).collect()
    }

    fn round(until: Duration) -> Judgement {
        Judgement::Wait { until, try_probes: true }
    }

    #[test]
    fn probes_that_go_on_passing_end_it_with_its_window() {
        let mut probation = Probation::new(rules(2), 10 * S, None, ["web".to_owned()]);
        assert_eq!(probation.judge(10 * S), round(10 * S));
        let good = results(&[("web", true), ("never-passed", false)]);
        assert_eq!(probation.heard(&good, 10 * S), round(11 * S));
        assert_eq!(probation.heard(&good, 11 * S), round(12 * S));
        assert_eq!(probation.heard(&good, 12 * S), round(13 * S));
        assert_eq!(probation.heard(&good, 13 * S), Judgement::Passed);
    }

    #[test]
    fn a_failure_is_tried_again_at_once_and_the_second_is_one_too_many() {
        let mut probation = Probation::new(rules(2), 10 * S, None, ["web".to_owned()]);
        assert_eq!(probation.heard(&results(&[("web", false)]), 11 * S), round(11 * S));
        assert_eq!(probation.heard(&results(&[("web", true)]), 11 * S), round(12 * S));
        assert_eq!(probation.heard(&results(&[("web", false)]), 13 * S), round(13 * S));
        let why = "the probe web passed before it and fails now: refused".to_owned();
        assert_eq!(probation.heard(&results(&[("web", false)]), 14 * S), Judgement::RollBack { why });
    }

    #[test]
    fn one_failure_may_be_enough() {
        let mut probation = Probation::new(rules(1), 10 * S, None, ["web".to_owned()]);
        assert!(matches!(probation.heard(&results(&[("web", false)]), 10 * S), Judgement::RollBack { .. }));
    }

    #[test]
    fn nobody_confirms_in_time() {
        let mut probation = Probation::new(rules(2), 10 * S, Some(12 * S), ["web".to_owned()]);
        let good = results(&[("web", true)]);
        assert_eq!(probation.heard(&good, 10 * S), round(11 * S));
        assert_eq!(probation.heard(&good, 11 * S), round(12 * S));
        assert_eq!(probation.judge(12 * S), Judgement::RollBack { why: "nobody confirmed it in time".to_owned() });
        // Longer than the probes.
        let waiting = Probation::new(rules(2), 10 * S, Some(60 * S), []);
        assert_eq!(waiting.judge(10 * S), Judgement::Wait { until: 60 * S, try_probes: false });
        assert!(matches!(waiting.judge(60 * S), Judgement::RollBack { .. }));
    }

    #[test]
    fn nothing_to_prove_is_passed() {
        assert_eq!(Probation::new(rules(2), 10 * S, None, []).judge(10 * S), Judgement::Passed);
    }
}
