//! Sync windows: when a node takes changes from its source, and when not.
//!
//! A window opens at the times of a cron schedule in a time zone and stays open for a duration. Of the hours that daylight
//! saving time skips, one at a fixed time opens when they are over; of those that it repeats, it opens in the first.

use std::str::FromStr as _;
use std::time::Duration;

use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::{TimeZone, TimeZoneDatabase};

use super::codes::Code;
use super::diagnostic::{Diagnostic, Faults, suggestion};
use super::document::{self, WindowKind};
use super::quantity;
use super::schema::shorten;
use super::yaml::{Node, Step};

/// A schedule that has no time from here on has none at all: years are no part of it.
const ANY_TIME: &str = "2024-01-01T00:00:00Z";

/// One entry of `spec.sync.windows`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncWindow {
    pub kind: WindowKind,
    /// How long it stays open; 1 s to 7 days.
    pub duration: Duration,
    pub reason: Option<String>,
    /// As written: `0 22 * * 1-5`.
    pub schedule: String,
    /// Its name: `Europe/Berlin`.
    pub time_zone: String,
    /// As written: `4h`.
    pub duration_text: String,
    /// Where it is written.
    pub file: String,
    pub line: u32,
    cron: Cron,
    zone: TimeZone,
}

impl SyncWindow {
    /// When it opens next, later than `unix_ms`; `None`: not within the time that calendars know.
    pub fn opens_after(&self, unix_ms: u64) -> Option<u64> {
        let after = Timestamp::from_millisecond(i64::try_from(unix_ms).ok()?).ok()?.to_zoned(self.zone.clone());
        let opens = self.cron.find_next_occurrence(&after, false).ok()?;
        u64::try_from(opens.timestamp().as_millisecond()).ok()
    }

    /// Such as ``the allow window `0 22 * * 1-5` (Europe/Berlin) for 4h [config.yaml:9]``.
    pub fn words(&self) -> String {
        let reason = self.reason.as_ref().map(|reason| format!(", \"{reason}\"")).unwrap_or_default();
        format!(
            "the {} window `{}` ({}) for {}{reason} [{}:{}]",
            self.kind.name(),
            self.schedule,
            self.time_zone,
            self.duration_text,
            self.file,
            self.line
        )
    }
}

/// Reads the windows at `spec.sync.windows`, with every fault of them.
pub(super) fn read_windows(
    file: &str,
    root: &Node,
    written: Vec<document::SyncWindow>,
    faults: &mut Faults,
) -> Vec<SyncWindow> {
    let read = |(index, window)| read_window(file, root, index, window, faults);
    written.into_iter().enumerate().filter_map(read).collect()
}

fn read_window(
    file: &str,
    root: &Node,
    index: usize,
    window: document::SyncWindow,
    faults: &mut Faults,
) -> Option<SyncWindow> {
    let place = |key: Option<&'static str>| {
        let mut path = vec![Step::Key("spec"), Step::Key("sync"), Step::Key("windows"), Step::Item(index)];
        path.extend(key.map(Step::Key));
        root.place(&path)
    };
    let zone = time_zone(&window.time_zone);
    if zone.is_none() {
        let message = format!("`{}` is no time zone", shorten(&window.time_zone));
        let known = TimeZoneDatabase::bundled();
        let names: Vec<_> = known.available().map(|name| name.as_str().to_owned()).collect();
        let help = suggestion(&window.time_zone, names.iter().map(String::as_str))
            .unwrap_or_else(|| "use a name such as Europe/Berlin, America/New_York or UTC".to_owned());
        faults.push(Diagnostic::new(Code::TimeZone, file, Some(place(Some("timeZone"))), message).help(help));
    }
    let cron = match schedule(&window.schedule) {
        Ok(cron) => Some(cron),
        Err(why) => {
            let message = format!("`{}` is no cron schedule: {why}", shorten(&window.schedule));
            let help = "minute hour day-of-month month day-of-week, such as `0 22 * * 1-5`";
            faults.push(Diagnostic::new(Code::CronSchedule, file, Some(place(Some("schedule"))), message).help(help));
            None
        }
    };
    let duration = quantity::long_duration_ms(&window.duration).filter(|ms| (1000..=7 * 86_400_000).contains(ms));
    if duration.is_none() {
        let message = format!("`{}` is no time that a window can be open", shorten(&window.duration));
        let help = "use a duration such as 30m, 4h or 2d, 1s to 7d";
        faults.push(Diagnostic::new(Code::WindowDuration, file, Some(place(Some("duration"))), message).help(help));
    }
    Some(SyncWindow {
        kind: window.kind,
        duration: Duration::from_millis(duration?),
        reason: window.reason,
        schedule: window.schedule,
        time_zone: window.time_zone,
        duration_text: window.duration,
        file: file.to_owned(),
        line: place(None).start.line,
        cron: cron?,
        zone: zone?,
    })
}

fn time_zone(name: &str) -> Option<TimeZone> {
    TimeZoneDatabase::bundled().get(name).ok()
}

/// Five fields, or a nickname such as `@daily`.
fn schedule(text: &str) -> Result<Cron, String> {
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    let cron = parser.parse(text).map_err(words)?;
    let start = Timestamp::from_str(ANY_TIME).map_err(|error| error.to_string())?.to_zoned(TimeZone::UTC);
    match cron.find_next_occurrence(&start, true) {
        Ok(_) => Ok(cron),
        Err(_) => Err("there is no such day".to_owned()),
    }
}

/// What is wrong, without the parser's own classes of faults.
fn words(error: CronError) -> String {
    match error {
        CronError::ComponentError(words) | CronError::InvalidPattern(words) | CronError::IllegalCharacters(words) => {
            words.trim_end_matches('.').to_owned()
        }
        CronError::EmptyPattern => "it is empty".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    /// A window for tests of others.
    pub(crate) fn window(kind: WindowKind, text: &str, duration: Duration, zone: &str) -> SyncWindow {
        SyncWindow {
            kind,
            duration,
            reason: None,
            schedule: text.to_owned(),
            time_zone: zone.to_owned(),
            duration_text: format!("{}s", duration.as_secs()),
            file: "config.yaml".to_owned(),
            line: 9,
            cron: schedule(text).unwrap(),
            zone: time_zone(zone).unwrap(),
        }
    }

    /// Milliseconds since 1970 of an RFC 3339 time.
    pub(crate) fn at(text: &str) -> u64 {
        u64::try_from(Timestamp::from_str(text).unwrap().as_millisecond()).unwrap()
    }

    fn opens(text: &str, zone: &str, after: &str, expected: &[&str]) {
        let window = window(WindowKind::Allow, text, Duration::from_mins(1), zone);
        let mut time = at(after);
        for expected in expected {
            time = window.opens_after(time).unwrap();
            assert_eq!(
                Timestamp::from_millisecond(i64::try_from(time).unwrap()).unwrap().to_string(),
                *expected,
                "{text} {zone}"
            );
        }
    }

    #[test]
    fn a_schedule_means_the_clock_of_its_zone() {
        // Friday evening, then Monday; summer time is two hours before UTC in Berlin, winter time one.
        let weekdays = ["2026-07-03T20:00:00Z", "2026-07-06T20:00:00Z"];
        opens("0 22 * * 1-5", "Europe/Berlin", "2026-07-03T10:00:00Z", &weekdays);
        opens("0 22 * * 1-5", "Europe/Berlin", "2026-12-01T10:00:00Z", &["2026-12-01T21:00:00Z"]);
        opens("0 22 * * *", "UTC", "2026-12-01T22:00:00Z", &["2026-12-02T22:00:00Z"]);
        opens("30 4 * * *", "Asia/Kolkata", "2026-12-01T00:00:00Z", &["2026-12-01T23:00:00Z"]);
        opens(
            "0 9 1 * *",
            "America/New_York",
            "2026-02-10T00:00:00Z",
            &["2026-03-01T14:00:00Z", "2026-04-01T13:00:00Z"],
        );
        opens("@daily", "UTC", "2026-12-01T22:00:00Z", &["2026-12-02T00:00:00Z"]);
    }

    #[test]
    fn a_window_in_the_hour_that_spring_skips_opens_when_it_is_over() {
        // 2026-03-29, 02:00 becomes 03:00 in Berlin, which is 01:00 UTC.
        let expected = ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"];
        opens("30 2 * * *", "Europe/Berlin", "2026-03-27T12:00:00Z", &expected);
        // One that comes each quarter goes on at the first quarter that there is.
        let quarters = ["2026-03-29T00:45:00Z", "2026-03-29T01:00:00Z", "2026-03-29T01:15:00Z"];
        opens("*/15 * * * *", "Europe/Berlin", "2026-03-29T00:30:00Z", &quarters);
    }

    #[test]
    fn a_window_in_the_hour_that_autumn_repeats_opens_once() {
        // 2026-10-25, 03:00 becomes 02:00 in Berlin, which is 01:00 UTC.
        let expected = ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"];
        opens("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", &expected);
    }

    #[test]
    fn what_is_no_schedule_is_said() {
        for bad in ["", "* * * *", "61 * * * *", "0 0 30 2 *", "0 0 * * * *", "0 22 * * 9", "noon"] {
            assert!(schedule(bad).is_err(), "{bad}");
        }
        for (zone, known) in
            [("Europe/Berlin", true), ("UTC", true), ("Europe/Berln", false), ("CEST", false), ("", false)]
        {
            assert_eq!(time_zone(zone).is_some(), known, "{zone}");
        }
    }
}
