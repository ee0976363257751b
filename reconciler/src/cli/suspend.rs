//! `wayleave suspend` and `wayleave resume`: whether the source is followed.

use super::node;
use super::{Exit, Global, note};
use crate::daemon::node::unix_ms;
use crate::daemon::suspension;
use crate::daemon::time::from_rfc3339;
use crate::policy;

/// Stop publishing what the source says, until `resume` or a time
///
/// The daemon goes on reading and checking the source, and `status` says what it would do. What is live stays in force: next
/// hops, the node's own addresses and devices are followed as before. A rollback goes through.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Why, for whoever is held up by it
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
    /// When it ends by itself: a time such as 2026-11-23T18:00:00Z, or a duration such as 2h or 3d
    #[arg(long, value_name = "TIME", value_parser = until)]
    until: Option<u64>,
}

/// Publish what the source says again
#[derive(Debug, clap::Args)]
pub(crate) struct ResumeArgs {}

/// A text that says something, on one line.
pub(crate) fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err("a reason is one line of text".to_owned());
    }
    if text.len() > 1024 {
        return Err("a reason has at most 1,024 bytes".to_owned());
    }
    Ok(text.to_owned())
}

/// Milliseconds since 1970 of a time to come.
fn until(text: &str) -> Result<u64, String> {
    let now = unix_ms();
    if let Some(duration) = policy::long_duration(text) {
        return Ok(now.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)));
    }
    match from_rfc3339(text) {
        Some(until) if until > now => Ok(until),
        Some(_) => Err("that time is over".to_owned()),
        None => Err("neither a time with its zone, such as 2026-11-23T18:00:00Z or 2026-11-23T18:00:00+01:00, nor a \
                     duration such as 90m, 2h or 3d, at most 366d"
            .to_owned()),
    }
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let node = node::load(global)?;
    let before = suspension::suspend(&node, &args.reason, args.until)?;
    if let Some(before) = before {
        note(&format!("this takes the place of: {}", before.words()));
    }
    if let Some(now) = suspension::current(&node)? {
        note(&now.words());
    }
    Ok(Exit::Ok)
}

pub(crate) fn resume(_args: &ResumeArgs, global: &Global) -> anyhow::Result<Exit> {
    let node = node::load(global)?;
    match suspension::resume(&node)? {
        Some(before) => note(&format!("the source is followed again; it was {}", before.words())),
        None => note("nothing is suspended"),
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_is_over_or_unreadable_is_refused_in_words() {
        assert!(until("2h").is_ok_and(|until| until > unix_ms() + 7_100_000));
        assert!(until("2999-01-01T00:00:00+01:00").is_ok());
        assert_eq!(until("2001-01-01T00:00:00Z"), Err("that time is over".to_owned()));
        for bad in ["", "tomorrow", "2999-01-01", "2999-01-01T00:00:00", "2999-02-30T00:00:00Z", "0s", "400d", "-2h"] {
            assert!(until(bad).is_err_and(|error| error.contains("a duration such as")), "{bad}");
        }
    }

    #[test]
    fn a_reason_is_one_line_that_says_something() {
        assert_eq!(reason(" freeze "), Ok("freeze".to_owned()));
        for bad in ["", "  ", "a\nb", &"x".repeat(1025)] {
            assert!(reason(bad).is_err(), "{bad}");
        }
    }
}
