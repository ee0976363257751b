//! A change on probation: its record on disk, who waits for it, and how it is rolled back.
//!
//! The record is written before the publish, so a process that is killed in between cannot leave a change that nobody
//! watches: whoever comes next (the watcher that an `apply` leaves behind, a daemon that starts) finds it and goes on where
//! the other one stopped. Times are those of `CLOCK_BOOTTIME`, which goes on while the machine sleeps; a record of another
//! boot is overdue.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::resume_unwind;
use std::time::Duration;

use serde_json::{Value, json};

use crate::policy::{Check, Probe};
use crate::reconcile::probation::{Judgement, Probation, Rules};

use super::apply::{apply, propose_rollback};
use super::detach::detach;
use super::node::{Node, NodeError, operator};
use super::probe::{Results, try_all};
use super::settled;
use super::state::{SetAside, State};

/// How often a record is read again while its change is waited for: a person may confirm it meanwhile.
const POLL: Duration = Duration::from_millis(200);
const FILE: &str = "probation.json";

/// How a change stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It proves itself.
    Pending,
    /// All probes went on passing.
    Passed,
    /// A person confirmed it.
    Confirmed,
    /// Another change came before it was decided.
    Superseded,
    /// It was rolled back, and what worked before works again.
    RolledBack,
    /// It was rolled back, and something that worked before still does not.
    RolledBackUnhealthy,
}

impl Standing {
    const ALL: [Self; 6] =
        [Self::Pending, Self::Passed, Self::Confirmed, Self::Superseded, Self::RolledBack, Self::RolledBackUnhealthy];

    pub const fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Passed => "passed",
            Self::Confirmed => "confirmed",
            Self::Superseded => "superseded",
            Self::RolledBack => "rolled-back",
            Self::RolledBackUnhealthy => "rolled-back-unhealthy",
        }
    }
}

/// The last change that had to prove itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub generation: u64,
    /// What is rolled back to: the last generation that had nothing to prove any more; 0: none was live.
    pub fallback: u64,
    pub revision: String,
    /// Of the rules.
    pub digest: String,
    pub standing: Standing,
    /// Why it stands so.
    pub why: Option<String>,
    /// Probes that fail after the rollback, and what they say.
    pub unhealthy: Vec<(String, String)>,
    boot: String,
    published: Duration,
    pub confirm_by: Option<Duration>,
    rules: Rules,
    probes: Vec<Probe>,
    /// Names of the probes that passed before the change.
    passed: Vec<String>,
}

/// What a change must prove, found out before it is published.
#[derive(Clone, Debug)]
pub struct Terms {
    probes: Vec<Probe>,
    passed: Vec<String>,
    /// Those that failed before the change already, and what they said: nothing is expected of them.
    pub failing: Vec<(String, String)>,
    confirm_within: Option<Duration>,
    rules: Rules,
    /// Of an older change that was still on probation.
    fallback: Option<u64>,
}

impl Terms {
    /// Whether there is anything to prove.
    pub fn ask_anything(&self) -> bool {
        !self.passed.is_empty() || self.confirm_within.is_some()
    }

    pub fn passed(&self) -> usize {
        self.passed.len()
    }
}

/// Time since the machine was started, with the time that it slept.
pub fn boottime() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (seconds, nanoseconds) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanoseconds.unwrap_or(0))
}

fn boot() -> String {
    // A kernel without it has one boot only, as far as records know.
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Tries the probes before a change. One that is made while an older one is still on probation must prove what that one had
/// to: by now its probes may fail for its own fault.
pub async fn terms(node: &Node, probes: Vec<Probe>, confirm_within: Option<Duration>) -> Result<Terms, NodeError> {
    let settings = node.config.probation;
    let rules = Rules { window: settings.window, interval: settings.interval, failures: settings.failures };
    let results = tried(probes.clone()).await;
    let mut passed: BTreeSet<String> =
        results.iter().filter(|(_, result)| result.is_ok()).map(|(name, _)| name.clone()).collect();
    let mut fallback = None;
    if let Some(pending) = pending(node)? {
        fallback = Some(pending.fallback);
        passed.extend(pending.passed.into_iter().filter(|name| probes.iter().any(|probe| probe.name == *name)));
    }
    let failing = results
        .into_iter()
        .filter(|(name, _)| !passed.contains(name))
        .filter_map(|(name, result)| Some((name, result.err()?)))
        .collect();
    Ok(Terms { probes, passed: passed.into_iter().collect(), failing, confirm_within, rules, fallback })
}

/// What the change that is still on probation has to prove, for its rules once more; `None`: nothing is.
pub(super) async fn go_on(node: &Node) -> Result<Option<Terms>, NodeError> {
    match pending(node)? {
        Some(record) => terms(node, record.probes.clone(), record.confirm_within()).await.map(Some),
        None => Ok(None),
    }
}

/// Probes in a thread: each may take as long as its timeout.
async fn tried(probes: Vec<Probe>) -> Results {
    if probes.is_empty() {
        return Results::new();
    }
    // Never "nothing was expected": a panic goes on here. The task is not cancelled.
    tokio::task::spawn_blocking(move || try_all(&probes))
        .await
        .unwrap_or_else(|error| resume_unwind(error.into_panic()))
}

/// The change that has still to prove itself, if there is one.
pub fn pending(node: &Node) -> Result<Option<Record>, NodeError> {
    Ok(last(node)?.filter(|record| record.standing == Standing::Pending))
}

/// The last change that had to prove itself, however it ended.
pub fn last(node: &Node) -> Result<Option<Record>, NodeError> {
    read(&State::new(&node.config.state_dir)).map_err(|source| state_error(node, source))
}

fn state_error(node: &Node, source: io::Error) -> NodeError {
    NodeError::State { path: node.config.state_dir.clone(), source }
}

/// Writes the record of a change that is about to be published; the caller holds the lock.
pub(super) fn begin(
    node: &Node,
    terms: &Terms,
    generation: u64,
    parent: u64,
    revision: &str,
    digest: &str,
) -> Result<(), NodeError> {
    let now = boottime();
    let record = Record {
        generation,
        fallback: terms.fallback.unwrap_or(parent),
        revision: revision.to_owned(),
        digest: digest.to_owned(),
        standing: Standing::Pending,
        why: None,
        unhealthy: Vec::new(),
        boot: boot(),
        published: now,
        confirm_by: terms.confirm_within.map(|within| now + within),
        rules: terms.rules,
        probes: terms.probes.clone(),
        passed: terms.passed.clone(),
    };
    store(node, &record)
}

fn store(node: &Node, record: &Record) -> Result<(), NodeError> {
    let state = State::new(&node.config.state_dir);
    state.replace(FILE, record.to_json().to_string().as_bytes()).map_err(|source| state_error(node, source))
}

/// Puts the record back as it was: the change was not published after all.
pub(super) fn restore(node: &Node, before: Option<Record>) -> Result<(), NodeError> {
    if last(node)? == before {
        return Ok(());
    }
    match before {
        Some(before) => store(node, &before),
        None => match std::fs::remove_file(node.config.state_dir.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(state_error(node, error)),
            _ => Ok(()),
        },
    }
}

/// Generation `live` was published: an older one that was still on probation need not prove anything any more. Not so one
/// that this `concludes`.
pub(super) fn supersede(node: &Node, live: u64, concludes: Option<u64>) -> Result<(), NodeError> {
    match pending(node)? {
        Some(record) if record.generation != live && concludes != Some(record.generation) => {
            let why = Some(format!("generation {live} came before it had proved itself"));
            store(node, &Record { standing: Standing::Superseded, why, ..record })
        }
        _ => Ok(()),
    }
}

/// Notes that a change was decided, unless something else was meanwhile.
fn decide(node: &Node, generation: u64, standing: Standing, why: Option<String>) -> Result<bool, NodeError> {
    let _lock = node.lock()?;
    match pending(node)? {
        Some(record) if record.generation == generation => {
            store(node, &Record { standing, why, ..record })?;
            if matches!(standing, Standing::Passed | Standing::Confirmed) {
                settled::keep_live(node);
            }
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// What a person's confirmation found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmed {
    Generation(u64),
    /// There is nothing to confirm.
    Nothing,
}

/// A person says that a change is good.
pub fn confirm(node: &Node) -> Result<Confirmed, NodeError> {
    let Some(record) = pending(node)? else { return Ok(Confirmed::Nothing) };
    let why = Some(format!("confirmed by {}", operator()));
    let done = !record.is_of_another_boot() && decide(node, record.generation, Standing::Confirmed, why)?;
    Ok(if done { Confirmed::Generation(record.generation) } else { Confirmed::Nothing })
}

/// What became of a change that was waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    RollBack {
        why: String,
    },
    /// Somebody else decided it.
    Decided,
}

/// Waits until the change on probation is decided, and tries its probes meanwhile. Changes nothing; may be dropped at any time.
pub async fn wait(node: &Node, record: &Record) -> Result<Verdict, NodeError> {
    if record.is_of_another_boot() {
        return Ok(Verdict::RollBack { why: "the machine was restarted before it had proved itself".to_owned() });
    }
    let mut probation =
        Probation::new(record.rules, record.published, record.confirm_by, record.passed.iter().cloned());
    let expected = |probe: &&Probe| record.passed.contains(&probe.name);
    let probes: Vec<Probe> = record.probes.iter().filter(expected).cloned().collect();
    loop {
        match pending(node)? {
            Some(now) if now.generation == record.generation => {}
            _ => return Ok(Verdict::Decided),
        }
        let now = boottime();
        match probation.judge(now) {
            Judgement::Passed => return Ok(Verdict::Passed),
            Judgement::RollBack { why } => return Ok(Verdict::RollBack { why }),
            Judgement::Wait { until, try_probes } if until <= now && try_probes => {
                let results = tried(probes.clone()).await;
                if let Judgement::RollBack { why } = probation.heard(&results, boottime()) {
                    return Ok(Verdict::RollBack { why });
                }
            }
            Judgement::Wait { until, .. } => tokio::time::sleep(until.saturating_sub(now).min(POLL)).await,
        }
    }
}

/// Makes a verdict true, and says how the change stands then.
pub async fn conclude(node: &Node, generation: u64, verdict: Verdict) -> Result<Standing, NodeError> {
    match verdict {
        Verdict::Passed => {
            decide(node, generation, Standing::Passed, None)?;
        }
        Verdict::RollBack { why } => roll_back(node, generation, why).await?,
        Verdict::Decided => {}
    }
    Ok(last(node)?.filter(|record| record.generation == generation).map_or(Standing::Superseded, |r| r.standing))
}

async fn roll_back(node: &Node, generation: u64, why: String) -> Result<(), NodeError> {
    let Some(record) = pending(node)?.filter(|record| record.generation == generation) else { return Ok(()) };
    let live = node.observe()?.live_number();
    if live != generation && !record.is_of_another_boot() {
        let why = Some(format!("generation {live} is live"));
        decide(node, generation, Standing::Superseded, why)?;
        return Ok(());
    }
    // Before anything is changed: whoever follows the source must not bring it back in between.
    let aside = SetAside { revision: record.revision.clone(), digest: record.digest.clone() };
    let state = State::new(&node.config.state_dir);
    state.quarantine(aside).map_err(|source| state_error(node, source))?;
    if live == generation {
        back_to(node, &record, &why).await?;
    }
    // What worked before must work again.
    let probes: Vec<Probe> =
        record.probes.iter().filter(|probe| record.passed.contains(&probe.name)).cloned().collect();
    let unhealthy: Vec<(String, String)> =
        tried(probes).await.into_iter().filter_map(|(name, result)| Some((name, result.err()?))).collect();
    let standing = if unhealthy.is_empty() { Standing::RolledBack } else { Standing::RolledBackUnhealthy };
    let _lock = node.lock()?;
    // Another change may have come during the probes.
    if last(node)?.is_some_and(|now| now.generation == generation) {
        store(node, &Record { standing, why: Some(why), unhealthy, ..record })?;
    }
    Ok(())
}

/// Publishes the fallback's rules again; without one the node goes back to having none.
async fn back_to(node: &Node, record: &Record, why: &str) -> Result<(), NodeError> {
    if record.fallback == 0 {
        detach(node)?;
        return Ok(());
    }
    let mut proposal = propose_rollback(node, Some(record.fallback)).await?;
    proposal.concludes = Some(record.generation);
    proposal.why = Some(format!("generation {}: {why}", record.generation));
    apply(node, proposal, &mut |step| tracing::debug!(%step, "rollback")).await.map(drop)
}

impl Record {
    fn is_of_another_boot(&self) -> bool {
        self.boot != boot()
    }

    /// How long a person still has to confirm it.
    pub fn confirm_within(&self) -> Option<Duration> {
        self.confirm_by.map(|by| by.saturating_sub(boottime()))
    }

    fn to_json(&self) -> Value {
        let probe = |probe: &Probe| {
            let mut value = json!({"name": probe.name, "timeout_ms": ms(probe.timeout)});
            match &probe.check {
                Check::Tcp(address) => value["tcp"] = address.to_string().into(),
                Check::Http { url, status } => value["http"] = json!({"url": url, "status": status}),
                Check::Ping(address) => value["ping"] = address.to_string().into(),
                Check::Command(run) => value["command"] = json!(run),
            }
            value
        };
        json!({
            "format_version": 1,
            "generation": self.generation,
            "fallback": self.fallback,
            "revision": self.revision,
            "digest": self.digest,
            "state": self.standing.word(),
            "why": self.why,
            "unhealthy": self.unhealthy,
            "boot": self.boot,
            "published_boottime_ms": ms(self.published),
            "confirm_by_boottime_ms": self.confirm_by.map(ms),
            "window_ms": ms(self.rules.window),
            "interval_ms": ms(self.rules.interval),
            "failures": self.rules.failures,
            "probes": self.probes.iter().map(probe).collect::<Vec<_>>(),
            "passed": self.passed,
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |key: &str| value.get(key)?.as_str().map(str::to_owned);
        let number = |key: &str| value.get(key)?.as_u64();
        let time = |key: &str| number(key).map(Duration::from_millis);
        let list = |key: &str| value.get(key)?.as_array();
        let word = text("state")?;
        let pair = |pair: &Value| Some((pair.get(0)?.as_str()?.to_owned(), pair.get(1)?.as_str()?.to_owned()));
        Some(Self {
            generation: number("generation")?,
            fallback: number("fallback")?,
            revision: text("revision")?,
            digest: text("digest")?,
            standing: Standing::ALL.into_iter().find(|standing| standing.word() == word)?,
            why: text("why"),
            unhealthy: list("unhealthy")?.iter().map(pair).collect::<Option<_>>()?,
            boot: text("boot")?,
            published: time("published_boottime_ms")?,
            confirm_by: time("confirm_by_boottime_ms"),
            rules: Rules {
                window: time("window_ms")?,
                interval: time("interval_ms")?,
                failures: u8::try_from(number("failures")?).ok()?,
            },
            probes: list("probes")?.iter().map(probe_from_json).collect::<Option<_>>()?,
            passed: list("passed")?.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<_>>()?,
        })
    }
}

fn probe_from_json(value: &Value) -> Option<Probe> {
    let text = |key: &str| value.get(key)?.as_str();
    let check = if let Some(address) = text("tcp") {
        Check::Tcp(address.parse::<SocketAddr>().ok()?)
    } else if let Some(address) = text("ping") {
        Check::Ping(address.parse::<IpAddr>().ok()?)
    } else if let Some(http) = value.get("http") {
        let status = http.get("status").and_then(Value::as_u64).and_then(|status| u16::try_from(status).ok());
        Check::Http { url: http.get("url")?.as_str()?.to_owned(), status }
    } else {
        let word = |word: &Value| word.as_str().map(str::to_owned);
        Check::Command(value.get("command")?.as_array()?.iter().map(word).collect::<Option<_>>()?)
    };
    let timeout = Duration::from_millis(value.get("timeout_ms")?.as_u64()?);
    Some(Probe { name: text("name")?.to_owned(), check, timeout })
}

/// A record that is there and cannot be read is an error, never "nothing": a change would stay that nobody confirmed.
fn read(state: &State) -> io::Result<Option<Record>> {
    let Some(bytes) = state.read(FILE)? else { return Ok(None) };
    let value: Option<Value> = serde_json::from_slice(&bytes).ok();
    let record = value.as_ref().and_then(Record::from_json);
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("{FILE} is damaged; remove it to go on"));
    record.map(Some).ok_or_else(damaged)
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn a_record_is_read_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::new(dir.path());
        assert_eq!(read(&state).unwrap(), None);
        let timeout = Duration::from_millis(1500);
        let probe = |name: &str, check| Probe { name: name.to_owned(), check, timeout };
        let record = Record {
            generation: 7,
            fallback: 5,
            revision: "dir@sha256:aa".to_owned(),
            digest: "bb".to_owned(),
            standing: Standing::RolledBackUnhealthy,
            why: Some("because".to_owned()),
            unhealthy: vec![("web".to_owned(), "refused".to_owned())],
            boot: boot(),
            published: Duration::from_millis(12_345),
            confirm_by: None,
            rules: Rules { window: 3 * timeout, interval: timeout, failures: 2 },
            probes: vec![
                probe("tcp", Check::Tcp("[2001:db8::1]:443".parse().unwrap())),
                probe("web", Check::Http { url: "http://192.0.2.1/".to_owned(), status: Some(204) }),
                probe("ping", Check::Ping("192.0.2.1".parse().unwrap())),
                probe("run", Check::Command(vec!["/bin/true".to_owned(), "a b".to_owned()])),
            ],
            passed: vec!["tcp".to_owned(), "web".to_owned()],
        };
        let with_deadline = Record { confirm_by: Some(Duration::from_secs(99)), ..record.clone() };
        for record in [record, with_deadline] {
            state.replace(FILE, record.to_json().to_string().as_bytes()).unwrap();
            assert_eq!(read(&state).unwrap(), Some(record));
        }
        for damaged in ["", "{}", "{\"generation\": 7}"] {
            std::fs::write(dir.path().join(FILE), damaged).unwrap();
            assert!(read(&state).is_err(), "{damaged}");
        }
    }
}
