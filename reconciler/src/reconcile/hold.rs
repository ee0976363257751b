//! What keeps a change of the source from being published for now: an operator's suspension, or a sync window. Pure.
//!
//! A rollback is never held, and neither is what keeps the live rules in force: neighbours, dead next hops, the node's own
//! addresses, what drifted.

use jiff::Timestamp;

use crate::policy::{SyncWindow, WindowKind};

/// Windows that follow each other without a gap are taken together up to this number. Where there are more, the next change is
/// said too early, and asked for again then.
const STEPS_MAX: usize = 100;

/// Somebody said that the source is not to be followed for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspension {
    pub by: String,
    pub reason: String,
    pub since_unix_ms: u64,
    /// `None`: until somebody resumes.
    pub until_unix_ms: Option<u64>,
}

impl Suspension {
    pub fn is_over(&self, now_unix_ms: u64) -> bool {
        self.until_unix_ms.is_some_and(|until| until <= now_unix_ms)
    }

    /// Such as `suspended by alice since … until …: freeze`.
    pub fn words(&self) -> String {
        let until = self.until_unix_ms.map_or_else(String::new, |until| format!(" until {}", time(until)));
        format!("suspended by {} since {}{until}: {}", self.by, time(self.since_unix_ms), self.reason)
    }
}

/// What the windows say of a point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing<'w> {
    /// Whether a change may be published.
    pub open: bool,
    /// The window that says so: of those that are open one that denies before one that allows; where all that allow are closed
    /// the one that opens first.
    pub window: Option<&'w SyncWindow>,
    /// Until when this holds at least; `None`: for ever.
    pub until_unix_ms: Option<u64>,
}

/// What `windows` say at `now_unix_ms`. One that denies wins over those that allow; where there is any that allows, a change
/// needs one to be open.
pub fn standing(windows: &[SyncWindow], now_unix_ms: u64) -> Standing<'_> {
    let of = |kind| windows.iter().filter(move |window| window.kind == kind);
    let open = |kind| of(kind).find(|window| open_until(window, now_unix_ms).is_some());
    if let Some(denies) = open(WindowKind::Deny) {
        return Standing { open: false, window: Some(denies), until_unix_ms: closed_until(windows, now_unix_ms) };
    }
    let first = of(WindowKind::Allow).min_by_key(|window| window.opens_after(now_unix_ms).unwrap_or(u64::MAX));
    let allows = open(WindowKind::Allow);
    if first.is_some() && allows.is_none() {
        return Standing { open: false, window: first, until_unix_ms: closed_until(windows, now_unix_ms) };
    }
    let denied = of(WindowKind::Deny).filter_map(|window| window.opens_after(now_unix_ms));
    let until_unix_ms = denied.chain(allowed_until(windows, now_unix_ms)).min();
    Standing { open: true, window: allows, until_unix_ms }
}

/// When none that denies is open and one that allows is, if there are any; from a time when that is not so.
fn closed_until(windows: &[SyncWindow], now: u64) -> Option<u64> {
    let of = |kind| windows.iter().filter(move |window| window.kind == kind);
    let mut time = now;
    for _ in 0..STEPS_MAX {
        if let Some(closes) = of(WindowKind::Deny).filter_map(|window| open_until(window, time)).max() {
            time = closes;
        } else if of(WindowKind::Allow).next().is_some() && allowed_until(windows, time).is_none() {
            time = of(WindowKind::Allow).filter_map(|window| window.opens_after(time)).min()?;
        } else {
            break;
        }
    }
    Some(time)
}

/// Until when one that allows is open, or another that follows it without a gap; `None`: none is.
fn allowed_until(windows: &[SyncWindow], now: u64) -> Option<u64> {
    let at = |time| {
        let allows = windows.iter().filter(|window| window.kind == WindowKind::Allow);
        allows.filter_map(|window| open_until(window, time)).max()
    };
    let mut until = at(now)?;
    for _ in 0..STEPS_MAX {
        match at(until) {
            Some(later) => until = later,
            None => break,
        }
    }
    Some(until)
}

/// When a window closes that is open at `now`; one that opens again meanwhile stays open.
fn open_until(window: &SyncWindow, now: u64) -> Option<u64> {
    let duration = u64::try_from(window.duration.as_millis()).unwrap_or(u64::MAX);
    let mut opened = window.opens_after(now.saturating_sub(duration)).filter(|opened| *opened <= now)?;
    for _ in 0..STEPS_MAX {
        match window.opens_after(opened) {
            Some(again) if again <= opened.saturating_add(duration) => opened = again,
            _ => break,
        }
    }
    Some(opened.saturating_add(duration))
}

/// Why a change is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    Suspended(Suspension),
    OutsideWindow {
        /// The window, in words.
        window: String,
        denies: bool,
        /// When changes are taken again.
        opens_unix_ms: Option<u64>,
    },
}

impl Hold {
    pub const NAMES: [&str; 2] = ["suspended", "outside-window"];

    /// As `--allow` writes it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Suspended(_) => Self::NAMES[0],
            Self::OutsideWindow { .. } => Self::NAMES[1],
        }
    }

    pub fn message(&self) -> String {
        match self {
            Self::Suspended(suspension) => suspension.words(),
            Self::OutsideWindow { window, denies, opens_unix_ms } => {
                let closed = if *denies { "is open" } else { "is closed" };
                let opens = opens_unix_ms.map_or_else(
                    || "changes are never taken again".to_owned(),
                    |opens| format!("changes are taken from {} on", time(opens)),
                );
                format!("{window} {closed}; {opens}")
            }
        }
    }

    /// The way out.
    pub fn help(&self) -> String {
        let name = self.name();
        match self {
            Self::Suspended(_) => {
                format!("`wayleave resume` ends it; `wayleave apply --allow {name}` makes this change all the same")
            }
            Self::OutsideWindow { .. } => format!("`wayleave apply --allow {name}` makes this change all the same"),
        }
    }
}

/// What holds changes at `now_unix_ms`, an operator's word first.
pub fn holds(suspension: Option<&Suspension>, windows: &[SyncWindow], now_unix_ms: u64) -> Vec<Hold> {
    let mut holds: Vec<Hold> =
        suspension.filter(|one| !one.is_over(now_unix_ms)).cloned().map(Hold::Suspended).into_iter().collect();
    let standing = standing(windows, now_unix_ms);
    if let (false, Some(window)) = (standing.open, standing.window) {
        holds.push(Hold::OutsideWindow {
            window: window.words(),
            denies: window.kind == WindowKind::Deny,
            opens_unix_ms: standing.until_unix_ms,
        });
    }
    holds
}

/// When [`holds`] may say something else, without anybody's doing; `None`: never.
pub fn next_change(suspension: Option<&Suspension>, windows: &[SyncWindow], now_unix_ms: u64) -> Option<u64> {
    let until = suspension.and_then(|one| one.until_unix_ms).filter(|until| *until > now_unix_ms);
    until.into_iter().chain(standing(windows, now_unix_ms).until_unix_ms).min()
}

fn time(unix_ms: u64) -> String {
    // To the second, as everywhere.
    let seconds = i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_or_else(|_| "the end of time".to_owned(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::window_tests::{at as ms, window};

    const HOUR: Duration = Duration::from_hours(1);

    fn allow(text: &str, duration: Duration) -> SyncWindow {
        window(WindowKind::Allow, text, duration, "Europe/Berlin")
    }

    fn deny(text: &str, duration: Duration) -> SyncWindow {
        window(WindowKind::Deny, text, duration, "Europe/Berlin")
    }

    /// (now, whether changes are taken, until when).
    fn check(windows: &[SyncWindow], cases: &[(&str, bool, Option<&str>)]) {
        for (now, open, until) in cases {
            let standing = standing(windows, ms(now));
            assert_eq!((standing.open, standing.until_unix_ms), (*open, until.map(ms)), "{now}");
        }
    }

    #[test]
    fn without_windows_changes_are_always_taken() {
        check(&[], &[("2026-07-01T12:00:00Z", true, None)]);
    }

    #[test]
    fn where_a_window_allows_changes_need_one() {
        // 22:00 in Berlin is 20:00 UTC in July.
        let nights = [allow("0 22 * * *", 4 * HOUR)];
        check(
            &nights,
            &[
                ("2026-07-01T19:59:59.999Z", false, Some("2026-07-01T20:00:00Z")),
                ("2026-07-01T20:00:00Z", true, Some("2026-07-02T00:00:00Z")),
                ("2026-07-01T23:59:59.999Z", true, Some("2026-07-02T00:00:00Z")),
                ("2026-07-02T00:00:00Z", false, Some("2026-07-02T20:00:00Z")),
            ],
        );
    }

    #[test]
    fn a_window_that_denies_wins_over_one_that_allows() {
        let windows = [allow("0 0 * * *", 24 * HOUR), deny("0 9 * * *", 8 * HOUR)];
        check(
            &windows,
            &[
                ("2026-07-01T06:59:59Z", true, Some("2026-07-01T07:00:00Z")),
                ("2026-07-01T07:00:00Z", false, Some("2026-07-01T15:00:00Z")),
                // The days follow each other: what allows never closes.
                ("2026-07-01T15:00:00Z", true, Some("2026-07-02T07:00:00Z")),
            ],
        );
        assert_eq!(standing(&windows, ms("2026-07-01T07:00:00Z")).window, Some(&windows[1]));
        // Alone, it leaves the rest of the day open.
        check(&windows[1..], &[("2026-07-01T18:00:00Z", true, Some("2026-07-02T07:00:00Z"))]);
    }

    #[test]
    fn an_opening_under_a_denial_is_no_opening() {
        let windows = [allow("0 22 * * *", 2 * HOUR), deny("0 21 * * *", 2 * HOUR)];
        check(&windows, &[("2026-07-01T12:00:00Z", false, Some("2026-07-01T21:00:00Z"))]);
    }

    #[test]
    fn a_window_that_starts_in_the_skipped_hour_is_open_for_its_whole_time_after_it() {
        let windows = [allow("30 2 * * *", HOUR)];
        check(
            &windows,
            &[
                ("2026-03-29T00:59:59Z", false, Some("2026-03-29T01:00:00Z")),
                ("2026-03-29T01:00:00Z", true, Some("2026-03-29T02:00:00Z")),
                ("2026-03-29T02:00:00Z", false, Some("2026-03-30T00:30:00Z")),
            ],
        );
    }

    #[test]
    fn a_window_over_the_repeated_hour_is_as_long_as_it_says() {
        // Opens at 02:30 summer time, 00:30 UTC; the second 02:30 opens nothing.
        let windows = [allow("30 2 * * *", HOUR / 2)];
        check(
            &windows,
            &[
                ("2026-10-25T00:30:00Z", true, Some("2026-10-25T01:00:00Z")),
                ("2026-10-25T01:30:00Z", false, Some("2026-10-26T01:30:00Z")),
            ],
        );
    }

    #[test]
    fn the_next_opening_is_found_behind_any_number_of_denials() {
        let zone = |kind, text: &str, duration| window(kind, text, duration, "UTC");
        let windows = [
            zone(WindowKind::Allow, "30 12 24 12 *", HOUR),
            zone(WindowKind::Deny, "0 * * * *", HOUR / 4),
            zone(WindowKind::Deny, "30 12 * * *", HOUR / 6),
        ];
        check(
            &windows,
            &[
                ("2026-01-01T00:00:00Z", false, Some("2026-12-24T12:40:00Z")),
                ("2026-12-24T12:40:00Z", true, Some("2026-12-24T13:00:00Z")),
                ("2026-12-24T13:15:00Z", true, Some("2026-12-24T13:30:00Z")),
                ("2026-12-24T13:30:00Z", false, Some("2027-12-24T12:40:00Z")),
            ],
        );
        // Two that cover each other's ends are one.
        let windows = [zone(WindowKind::Allow, "0 8 * * *", 2 * HOUR), zone(WindowKind::Allow, "0 10 * * *", HOUR)];
        check(&windows, &[("2026-07-01T08:00:00Z", true, Some("2026-07-01T11:00:00Z"))]);
    }

    #[test]
    fn a_window_that_never_closes_is_asked_again_some_time() {
        let windows = [allow("* * * * *", Duration::from_mins(2))];
        let standing = standing(&windows, ms("2026-07-01T12:00:30Z"));
        assert!(standing.open);
        assert!(standing.until_unix_ms.is_some_and(|until| until > ms("2026-07-01T13:00:00Z")));
    }

    #[test]
    fn a_suspension_ends_at_its_time_and_not_before() {
        let mut suspension = Suspension {
            by: "alice".to_owned(),
            reason: "maintenance".to_owned(),
            since_unix_ms: ms("2026-07-01T12:00:00Z"),
            until_unix_ms: Some(ms("2026-07-01T14:00:00Z")),
        };
        let held = |suspension: &Suspension, now: &str| {
            holds(Some(suspension), &[], ms(now)).iter().map(Hold::message).collect::<Vec<_>>()
        };
        let words = "suspended by alice since 2026-07-01T12:00:00Z until 2026-07-01T14:00:00Z: maintenance";
        assert_eq!(held(&suspension, "2026-07-01T13:59:59.999Z"), [words]);
        assert_eq!(held(&suspension, "2026-07-01T14:00:00Z"), [""; 0]);
        let next = |suspension: &Suspension, now: &str| next_change(Some(suspension), &[], ms(now));
        assert_eq!(next(&suspension, "2026-07-01T13:00:00Z"), suspension.until_unix_ms);
        assert_eq!(next(&suspension, "2026-07-01T14:00:00Z"), None);
        suspension.until_unix_ms = None;
        assert_eq!(held(&suspension, "2036-07-01T14:00:00Z").len(), 1);
        assert_eq!(next(&suspension, "2036-07-01T14:00:00Z"), None);
    }

    #[test]
    fn both_hold_and_each_says_the_way_out() {
        let suspension =
            Suspension { by: "bob".to_owned(), reason: "x".to_owned(), since_unix_ms: 0, until_unix_ms: None };
        let windows = [deny("0 9 * * *", 8 * HOUR)];
        let held = holds(Some(&suspension), &windows, ms("2026-07-01T08:00:00Z"));
        assert_eq!(held.iter().map(Hold::name).collect::<Vec<_>>(), Hold::NAMES);
        let message = held[1].message();
        assert_eq!(
            message,
            "the deny window `0 9 * * *` (Europe/Berlin) for 28800s [config.yaml:9] is open; changes are taken from \
             2026-07-01T15:00:00Z on"
        );
        assert!(held.iter().all(|hold| hold.help().contains(&format!("--allow {}", hold.name()))));
    }
}
