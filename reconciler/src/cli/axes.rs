//! The four axes of a node's state, for `status`: source, policy, sync and health. Each has a `state`, a `reason` and a `message`
//! where the word alone does not say enough, and `since`.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::confirm::in_words;
use crate::compile::View;
use crate::daemon::attempt::{Attempt, Axis};
use crate::daemon::journal::{Entry, Event};
use crate::daemon::node::{Node, NodeError, unix_ms};
use crate::daemon::probation::{Record, Standing};
use crate::daemon::state::State;
use crate::daemon::suspension;
use crate::daemon::time::rfc3339;
use crate::kernel::observe::Observed;
use crate::reconcile::hold::{self, Hold};
use crate::source::Source;

/// An axis as JSON; what belongs to its state stands beside it.
fn to_json(axis: &Axis) -> Value {
    let mut value = json!({"state": axis.state, "reason": axis.reason, "message": axis.message,
        "since": axis.since_unix_ms.map(rfc3339)});
    for (key, detail) in &axis.details {
        value[key] = detail.clone();
    }
    value
}

fn unknown() -> Axis {
    Axis::new("unknown").saying("nothing was tried yet")
}

/// Whether the source can be read, and what is known of it.
pub(super) fn source(node: &Node, state: &State, attempt: Option<&Attempt>) -> Value {
    let looked = attempt.map_or_else(unknown, |attempt| attempt.source.clone());
    let git = match &node.config.source {
        Source::Directory(directory) => {
            let mut value = to_json(&looked);
            value["directory"] = json!(directory);
            value["revision"] = json!(attempt.and_then(|attempt| attempt.revision.as_ref()));
            return value;
        }
        Source::Local { repo, rev, subpath } => {
            let mut value = to_json(&looked);
            value["repository"] = json!(repo);
            value["ref"] = json!(rev);
            value["subpath"] = json!(subpath);
            return value;
        }
        Source::Git(git) => git,
    };
    let (url, reference) = (git.url.to_string(), git.reference.to_string());
    // What is known of another repository says nothing about this one.
    let known = state.source().filter(|known| known["url"] == url && known["ref"] == reference).unwrap_or_default();
    let mut value = to_json(&fetched(&known, looked));
    let time = |key: &str| json!(known[key].as_u64().map(rfc3339));
    for (key, known) in [
        ("git", url.into()),
        ("ref", reference.into()),
        ("subpath", json!(git.subpath)),
        ("revision", known["revision"].clone()),
        ("commit", known["commit"].clone()),
        ("taken", time("taken_unix_ms")),
        ("last_asked", time("asked_unix_ms")),
        ("last_answered", time("answered_unix_ms")),
        ("next", time("next_unix_ms")),
        ("failures", known["failures"].clone()),
        ("warning", known["warning"].clone()),
    ] {
        value[key] = known;
    }
    value
}

/// A repository that is fetched: what its server says stands before what was found in it.
fn fetched(known: &Value, looked: Axis) -> Axis {
    let reason = known["reason"].as_str();
    let state = match (known["error"].as_str(), reason) {
        (Some(_), Some("rewritten" | "signature")) => "refused",
        // What was taken before is read on.
        (Some(_), _) if known["revision"].is_string() => "stale",
        (Some(_), _) => "failed",
        (None, _) if known["answered_unix_ms"].is_u64() && looked.state != "failed" => "ready",
        (None, _) if looked.state == "failed" => return looked,
        (None, _) => "unknown",
    };
    let message = known["error"].as_str().map(str::to_owned);
    let since_unix_ms = known["since_unix_ms"].as_u64();
    Axis { message, reason: reason.map(str::to_owned), since_unix_ms, ..Axis::new(state) }
}

/// Whether the policies that were read last are good.
pub(super) fn policy(attempt: Option<&Attempt>) -> Value {
    let mut value = to_json(&attempt.map_or_else(unknown, |attempt| attempt.policy.clone()));
    value["revision"] = json!(attempt.and_then(|attempt| attempt.revision.as_ref()));
    value
}

/// Whether the kernel holds what the source says, and why not.
pub(super) fn sync(
    node: &Node,
    state: &State,
    observed: &Observed,
    attempt: Option<&Attempt>,
    probation: Option<&Record>,
) -> anyhow::Result<Value> {
    let entries = node.journal.read()?;
    let published = entries.iter().rev().find(|entry| entry.event != Event::Detached);
    let suspended = suspension::current(node);
    let now = unix_ms();
    let windows = hold::standing(&node.config.sync_windows, now);
    let aside = state.quarantined();
    let live = observed.live.as_ref().map(|live| live.image.view()).transpose()?;
    let live_digest = live.as_ref().map(|live| live.digest().to_string());

    let base = attempt.map_or_else(unknown, |attempt| attempt.sync.clone());
    let is_aside = |attempt: &Attempt| {
        let (revision, digest) = (attempt.revision.as_deref(), attempt.digest.as_deref());
        aside.as_ref().is_ok_and(|all| {
            all.iter().any(|one| one.matches(revision.unwrap_or_default(), digest.unwrap_or_default()))
        })
    };
    let axis = match (&suspended, attempt) {
        (Err(error), _) => Axis::new("suspended").because("unreadable").saying(error_words(error)),
        (Ok(Some(one)), _) => {
            Axis { since_unix_ms: Some(one.since_unix_ms), ..Axis::new("suspended").saying(one.words()) }
        }
        // Somebody resumed, or a window has opened, and nobody has looked since.
        (Ok(None), Some(_)) if base.state == Hold::NAMES[0] || base.state == Hold::NAMES[1] && windows.open => {
            Axis::new("out-of-sync").because("waiting").saying("not held any more; the next look publishes it")
        }
        (Ok(None), Some(attempt)) if base.state == "in-sync" && attempt.digest != live_digest => match &live {
            Some(live) if is_aside(attempt) => Axis::new("quarantined")
                .saying(format!("generation {} is live; what the source says was rolled back", live.generation())),
            Some(live) => Axis::new("out-of-sync")
                .because("changed")
                .saying(format!("generation {} came live since the last look", live.generation())),
            None => Axis::new("out-of-sync").because("changed").saying("no generation is live any more"),
        },
        (Ok(None), Some(_)) if base.state == "in-sync" => match probation {
            Some(record) if record.standing == Standing::Pending && record.generation == observed.live_number() => {
                let since_unix_ms = live.as_ref().map(View::created_unix_ms);
                Axis { since_unix_ms, ..Axis::new("probation").saying(in_words(record)) }
            }
            _ => base,
        },
        _ => base,
    };
    let mut value = to_json(&axis);
    value["daemon"] = match attempt.and_then(|attempt| attempt.daemon_pid) {
        None => "never run",
        Some(pid) if Path::new(&format!("/proc/{pid}")).exists() => "running",
        Some(_) => "stopped",
    }
    .into();
    value["last_attempted"] = last_attempted(attempt, published);
    value["last_applied"] = last_applied(attempt, published, observed)?;
    value["pending"] = json!(attempt.and_then(|attempt| attempt.pending.as_ref()).map(|pending| {
        json!({"revision": pending.revision, "add": pending.add, "change": pending.change, "remove": pending.remove})
    }));
    value["suspended"] = match &suspended {
        Ok(None) => Value::Null,
        Ok(Some(one)) => json!({"by": one.by, "reason": one.reason, "since": rfc3339(one.since_unix_ms),
            "until": one.until_unix_ms.map(rfc3339)}),
        Err(error) => error_words(error).into(),
    };
    value["windows"] = if node.config.sync_windows.is_empty() {
        Value::Null
    } else {
        json!({"open": windows.open, "window": windows.window.map(crate::policy::SyncWindow::words),
            "until": windows.until_unix_ms.map(rfc3339)})
    };
    value["quarantined"] = match aside {
        Ok(aside) if aside.is_empty() => Value::Null,
        Ok(aside) => aside.into_iter().map(|a| a.revision).collect::<Vec<_>>().into(),
        Err(error) => error.to_string().into(),
    };
    Ok(value)
}

fn error_words(error: &NodeError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

/// The last attempt; one that was killed after its publish is known from the journal.
fn last_attempted(attempt: Option<&Attempt>, published: Option<&Entry>) -> Value {
    match (attempt, published) {
        (Some(attempt), published) if published.is_none_or(|entry| entry.unix_ms <= attempt.unix_ms) => {
            json!({"revision": attempt.revision, "time": rfc3339(attempt.unix_ms), "outcome": attempt.outcome,
                "by": attempt.by})
        }
        (_, Some(entry)) => {
            let outcome = if entry.event == Event::RolledBack { "rolled-back" } else { "applied" };
            json!({"revision": entry.revision, "time": rfc3339(entry.unix_ms), "outcome": outcome, "by": entry.by})
        }
        (_, None) => Value::Null,
    }
}

/// The revision that was published last, or the newer one of which the kernel held all already.
fn last_applied(attempt: Option<&Attempt>, published: Option<&Entry>, observed: &Observed) -> anyhow::Result<Value> {
    let generation = published.map_or(0, |entry| entry.generation).max(observed.live_number());
    if let Some(applied) =
        attempt.and_then(|attempt| attempt.applied.as_ref()).filter(|applied| applied.generation == generation)
    {
        return Ok(json!({"revision": applied.revision, "generation": generation, "time": rfc3339(applied.unix_ms)}));
    }
    if let Some(entry) = published.filter(|entry| entry.generation == generation) {
        return Ok(json!({"revision": entry.revision, "generation": generation, "time": rfc3339(entry.unix_ms)}));
    }
    let Some(live) = &observed.live else { return Ok(Value::Null) };
    let view = live.image.view()?;
    Ok(json!({"revision": view.revision(), "generation": generation, "time": rfc3339(view.created_unix_ms())}))
}

/// How what is live does its work.
pub(super) struct Signs<'s> {
    pub(super) live: bool,
    /// `newer-layout` or `older-layout`.
    pub(super) other_layout: Option<&'s str>,
    /// `port on device` of ports whose device the program is not attached to.
    pub(super) not_attached: Vec<String>,
    /// Rows of `next_hops`.
    pub(super) next_hops: &'s [Value],
    /// Rows of services in the status.
    pub(super) services: &'s [Value],
    /// What did not work after a rollback either, in words, and since when.
    pub(super) unhealthy: Option<(String, Option<u64>)>,
}

/// The axis of health; since when is `null` where nobody saw it begin.
pub(super) fn health(signs: &Signs<'_>) -> Value {
    let with = |key: &str, value: Value| signs.next_hops.iter().filter(|hop| hop[key] == value).collect::<Vec<_>>();
    let named = |hops: &[&Value]| {
        let mut text = String::new();
        for hop in hops.iter().take(3) {
            let why = hop["why"].as_str().map(|why| format!(" ({why})")).unwrap_or_default();
            let name = hop["next_hop"].as_str().unwrap_or_default();
            let _ = write!(text, "{}{name}{why}", if text.is_empty() { "" } else { ", " });
        }
        if hops.len() > 3 {
            let _ = write!(text, " and {} more", hops.len() - 3);
        }
        text
    };
    let (down, unresolved) = (with("state", "down".into()), with("resolved", false.into()));
    let first = |hops: &[&Value]| hops.iter().filter_map(|hop| hop["since"].as_str()).min().map(str::to_owned);
    let unwell: Vec<_> = signs.services.iter().flat_map(|s| s["backends"].as_array().into_iter().flatten()).collect();
    let unwell: Vec<_> = unwell.into_iter().map(|b| &b["health"]).filter(|h| h["state"] == "unhealthy").collect();
    let backends = || {
        let mut text = String::new();
        for health in unwell.iter().take(3) {
            let words = |key: &str| health[key].as_str().unwrap_or_default();
            let why = health["reason"].as_str().map(|why| format!(" ({why})")).unwrap_or_default();
            let comma = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{comma}{}/{}{why}", words("service"), words("backend"));
        }
        if unwell.len() > 3 {
            let _ = write!(text, " and {} more", unwell.len() - 3);
        }
        for service in signs.services.iter().filter(|service| service["health"]["fail_open"] == true) {
            let name = service["service"].as_str().unwrap_or_default();
            let _ = write!(text, "; {name} uses all backends: fewer than minHealthy are healthy");
        }
        text
    };
    let (state, reason, message, since) = match signs {
        Signs { other_layout: Some(other), .. } => ("unknown", Some(*other), None, None),
        Signs { live: false, .. } => ("none", Some("no-generation"), None, None),
        Signs { unhealthy: Some((words, since)), .. } => {
            ("rolled-back-unhealthy", None, Some(words.clone()), since.map(rfc3339))
        }
        Signs { not_attached, .. } if !not_attached.is_empty() => {
            ("degraded", Some("port-not-attached"), Some(not_attached.join(", ")), None)
        }
        _ if !down.is_empty() => ("degraded", Some("next-hop-down"), Some(named(&down)), first(&down)),
        _ if !unwell.is_empty() => ("degraded", Some("backend-down"), Some(backends()), first(&unwell)),
        _ if !unresolved.is_empty() => {
            ("degraded", Some("next-hop-unresolved"), Some(named(&unresolved)), first(&unresolved))
        }
        _ => ("healthy", None, None, None),
    };
    json!({"state": state, "reason": reason, "message": message, "since": since})
}

/// The lines of the four axes.
pub(super) fn human(status: &Value) -> String {
    let mut out = String::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for axis in ["source", "policy", "sync", "health"] {
        let value = &status[axis];
        let since = value["since"].as_str().map(|since| format!(" since {since}")).unwrap_or_default();
        let reason = value["reason"].as_str().map(|reason| format!(" ({reason})")).unwrap_or_default();
        let more = match axis {
            "source" => value["git"].as_str().map_or_else(
                || value["directory"].as_str().map(|directory| format!(", {directory}")).unwrap_or_default(),
                |url| format!(", {url}, {}", text(&value["ref"])),
            ),
            "sync" => format!(", daemon {}", text(&value["daemon"])),
            _ => String::new(),
        };
        let _ = writeln!(out, "  {axis:<11} {}{reason}{since}{more}", text(&value["state"]));
        for key in ["message", "warning"] {
            if let Some(words) = value[key].as_str() {
                let label = if key == "warning" { "warning: " } else { "" };
                let _ = writeln!(out, "              {label}{words}");
            }
        }
        match axis {
            "source" => {
                if let (Some(revision), Some(taken)) = (value["revision"].as_str(), value["taken"].as_str()) {
                    let _ = writeln!(out, "              {revision}, taken {taken}");
                }
            }
            "sync" => {
                for (key, label) in [("last_attempted", "attempted"), ("last_applied", "applied")] {
                    let row = &value[key];
                    if let (Some(revision), Some(time)) = (row["revision"].as_str(), row["time"].as_str()) {
                        let outcome = row["outcome"].as_str().map(|outcome| format!(": {outcome}")).unwrap_or_default();
                        let _ = writeln!(out, "              {label:<9} {revision} {time}{outcome}");
                    }
                }
                let pending = &value["pending"];
                if pending.is_object() {
                    let _ = writeln!(
                        out,
                        "              waiting   {} to add, {} to change, {} to remove",
                        pending["add"], pending["change"], pending["remove"]
                    );
                }
                if value["windows"].is_object() {
                    let open = if value["windows"]["open"] == true { "taken" } else { "not taken" };
                    let until = value["windows"]["until"].as_str().map(|until| format!(" until {until}"));
                    let _ = writeln!(out, "              changes are {open}{}", until.unwrap_or_default());
                }
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_does_not_answer_makes_a_source_stale_and_one_that_never_did_failed() {
        let check = |known: Value, looked: &str, expected: &str| {
            assert_eq!(fetched(&known, Axis::new(looked)).state, expected, "{known}");
        };
        let error = "no answer";
        check(json!({}), "unknown", "unknown");
        check(json!({"answered_unix_ms": 5, "revision": "r"}), "ready", "ready");
        check(json!({"answered_unix_ms": 5, "revision": "r"}), "failed", "failed");
        check(json!({"answered_unix_ms": 5, "revision": "r", "error": error, "reason": "timeout"}), "ready", "stale");
        check(json!({"revision": null, "error": error, "reason": "timeout"}), "failed", "failed");
        check(json!({"revision": "r", "error": error, "reason": "signature"}), "ready", "refused");
    }

    #[test]
    fn health_names_the_worst_first_and_since_when_where_somebody_saw_it() {
        let hop = |name: &str, state: &str, resolved: bool| json!({"next_hop": name, "state": state, "resolved": resolved, "since": "2026-01-01T00:00:00Z", "why": null});
        let hops = [hop("p/a", "up", true), hop("p/b", "down", false), hop("p/c", "unknown", false)];
        let signs = |next_hops| Signs {
            live: true,
            other_layout: None,
            not_attached: vec![],
            next_hops,
            services: &[],
            unhealthy: None,
        };
        let check = |signs: &Signs<'_>, state: &str, reason: Option<&str>, message: Option<&str>| {
            let health = health(signs);
            assert_eq!((&health["state"], &health["reason"]), (&state.into(), &json!(reason)), "{health}");
            assert_eq!(health["message"], json!(message), "{health}");
            health
        };
        check(&signs(&hops[..1]), "healthy", None, None);
        check(&signs(&hops[2..]), "degraded", Some("next-hop-unresolved"), Some("p/c"));
        let down = check(&signs(&hops), "degraded", Some("next-hop-down"), Some("p/b"));
        assert_eq!(down["since"], "2026-01-01T00:00:00Z");
        let port = || vec!["lan on eth1".to_owned()];
        check(
            &Signs { not_attached: port(), ..signs(&hops) },
            "degraded",
            Some("port-not-attached"),
            Some("lan on eth1"),
        );
        let unhealthy = Some(("web fails".to_owned(), Some(0)));
        check(
            &Signs { not_attached: port(), unhealthy, ..signs(&hops) },
            "rolled-back-unhealthy",
            None,
            Some("web fails"),
        );
        check(&Signs { live: false, ..signs(&[]) }, "none", Some("no-generation"), None);
        check(&Signs { other_layout: Some("newer-layout"), ..signs(&hops) }, "unknown", Some("newer-layout"), None);
    }
}
