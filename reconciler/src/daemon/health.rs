//! Health of services' backends: checked from a thread of its own, kept in the kernel's table beside the generation.
//!
//! What is checked is read from the live generation. A backend of several services with the same checks is checked once. What the
//! table holds outlives the daemon: a new one goes on from there, and a backend that was unhealthy must pass `rise` checks as before.
//! An entry that is not what this thread wrote is somebody else's: with `drift: {mode: heal}` it is written again. How long checks take says what slow backends pass on, where the service is adaptive (`daemon/adaptive.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::compile::View;
use crate::kernel::health::{Backends, Health, Standing};
use crate::kernel::observe;
use crate::policy::{DriftMode, HealthCheck, HealthChecks, HealthCommand, MinHealthy, ServicePort};

use super::adaptive::{Latency, Share, share_percent};
use super::drift::{Difference, record};
use super::journal;
use super::node::{Node, NodeError, unix_ms};
use super::probe::check_backend;
use super::run::chain;
use super::state::{BackendRecord, State};

/// How often the live generation's number is read, so that what another process published is followed.
const IDLE: Duration = Duration::from_millis(500);
/// Pause between checks after the first one that failed.
const RETRY: Duration = Duration::from_millis(100);
/// Checks that are made at one time.
const CHECKERS_MAX: usize = 64;
/// How often it is written down when backends were last checked, while nothing else is to be said.
const RECORD_EVERY: Duration = Duration::from_secs(5);
/// How often news are written down at most.
const RECORD_NEWS_EVERY: Duration = Duration::from_millis(200);

/// How often the table is compared with what was written to it.
const COMPARE_EVERY: Duration = Duration::from_secs(2);

/// What is checked, and how.
type Target = (SocketAddr, HealthChecks);

/// The thread, seen from the daemon's own; it ends with the process.
pub struct Checks(mpsc::Sender<Event>);

enum Event {
    /// Another generation may be live.
    Look,
    /// What it found, and how long it took.
    Checked(Arc<Target>, Result<(), String>, Duration),
}

impl Checks {
    /// Starts it in the network namespace of the calling thread.
    pub fn start(node: &Node) -> Result<Self, NodeError> {
        let (events, received) = mpsc::channel();
        let node = Node::new(node.config.clone());
        let checker = Checker::new(node, events.clone());
        let run = move || checker.run(&received);
        let failed = |source| NodeError::State { path: "threads".into(), source };
        thread::Builder::new().name("health".to_owned()).spawn(run).map_err(failed)?;
        Ok(Self(events))
    }

    /// Asks for a look now: another generation may be live.
    pub fn wake(&self) -> Result<(), NodeError> {
        self.0.send(Event::Look).map_err(|_| NodeError::State {
            path: "threads".into(),
            source: io::Error::other("the thread that checks backends panicked"),
        })
    }
}

/// A service of the live generation that has checks.
struct Service {
    name: String,
    min_healthy: MinHealthy,
    /// Of adaptive ones: what a slow backend keeps at least, in percent.
    min_share: Option<u8>,
    backends: Vec<Backend>,
    /// Whether all are used because too few are healthy.
    is_open: bool,
}

struct Backend {
    id: u32,
    name: String,
    weight: u16,
    target: Arc<Target>,
    share: Share,
}

/// What is known of a target.
struct Memory {
    health: Health,
    since_unix_ms: u64,
    /// Why it is unhealthy.
    why: Option<String>,
    latency: Latency,
    /// Checks in a row that say otherwise.
    streak: u8,
    checks: u64,
    checked_unix_ms: u64,
    /// Since when it is being checked; `None`: it waits in the queue.
    started: Option<Instant>,
}

struct Checker {
    node: Node,
    state: State,
    /// The programs that checks may run.
    commands: Arc<BTreeMap<String, HealthCommand>>,
    events: mpsc::Sender<Event>,
    jobs: mpsc::Sender<Arc<Target>>,
    taken: Arc<Mutex<mpsc::Receiver<Arc<Target>>>>,
    workers: usize,
    /// Checks that are being made.
    running: usize,
    /// Targets by when they are to be checked, each once; the number tells those of one instant apart.
    queue: BTreeMap<(Instant, u64), Arc<Target>>,
    queued: u64,
    /// Map of the live generation.
    map: Option<u32>,
    services: Vec<Service>,
    memory: BTreeMap<Arc<Target>, Memory>,
    /// What this thread wrote, by backend id, and which of it somebody has changed since and that was told.
    written: BTreeMap<u32, Standing>,
    foreign: BTreeSet<u32>,
    compared: Instant,
    recorded: Instant,
    record_at: Option<Instant>,
}

impl Checker {
    fn new(node: Node, events: mpsc::Sender<Event>) -> Self {
        let state = State::new(&node.config.state_dir);
        let (jobs, taken) = mpsc::channel();
        let taken = Arc::new(Mutex::new(taken));
        let commands = Arc::new(node.config.health_commands.clone());
        Self {
            node,
            state,
            commands,
            events,
            jobs,
            taken,
            workers: 0,
            running: 0,
            queue: BTreeMap::new(),
            queued: 0,
            map: None,
            services: Vec::new(),
            memory: BTreeMap::new(),
            written: BTreeMap::new(),
            foreign: BTreeSet::new(),
            compared: Instant::now(),
            recorded: Instant::now(),
            record_at: None,
        }
    }

    fn run(mut self, events: &mpsc::Receiver<Event>) {
        let mut look_at = Instant::now();
        loop {
            if Instant::now() >= look_at {
                if let Err(error) = self.look() {
                    tracing::warn!(error = %chain(&error), "backends were not looked at");
                    self.map = None;
                }
                look_at = Instant::now() + IDLE;
            }
            self.start_due();
            if self.record_at.is_some_and(|at| at <= Instant::now()) {
                self.record();
            }
            let due = self.queue.first_key_value().map(|((due, _), _)| *due);
            let next = due.into_iter().chain(self.record_at).chain([look_at]).min().unwrap_or(look_at);
            match events.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Event::Look) => look_at = Instant::now(),
                Ok(Event::Checked(target, result, took)) => self.checked(&target, result, took),
                Err(RecvTimeoutError::Timeout) => {}
                // Not while it holds a sender itself.
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Follows the live generation.
    fn look(&mut self) -> Result<(), NodeError> {
        let live = observe::live(&self.node.pins)?;
        let map = live.as_ref().map(|live| live.image.id());
        if map == self.map {
            return self.compare();
        }
        // Ids may belong to others now.
        self.written.clear();
        self.foreign.clear();
        let mut services = match &live {
            Some(live) => services(&live.image.view()?),
            None => Vec::new(),
        };
        if services.is_empty() {
            (self.map, self.services) = (map, services);
            self.memory.clear();
            self.queue.clear();
            return Ok(());
        }
        let table = Backends::open(&self.node.pins)?;
        let records: BTreeMap<u32, BackendRecord> =
            self.state.backends().1.into_iter().map(|record| (record.id, record)).collect();
        let mut used = BTreeSet::new();
        // Of those that stay the daemon knows more than the table.
        let known: BTreeMap<u32, Share> =
            self.services.iter().flat_map(|service| &service.backends).map(|b| (b.id, b.share)).collect();
        for service in &mut services {
            let is_adaptive = service.min_share.is_some();
            for backend in service.backends.iter_mut().filter(|_| is_adaptive) {
                backend.share = match known.get(&backend.id) {
                    Some(share) => *share,
                    None => Share::found(table.get(backend.id)?.away),
                };
            }
        }
        for backend in services.iter().flat_map(|service| &service.backends) {
            if let Some(name) = unknown_command(&backend.target.1, &self.node) {
                tracing::warn!(backend = backend.name, "not checked: this node has no health command `{name}`");
                self.memory.insert(Arc::clone(&backend.target), Memory::new(Health::Unknown, unix_ms(), None));
                used.insert(Arc::clone(&backend.target));
                continue;
            }
            used.insert(Arc::clone(&backend.target));
            if self.memory.get(&backend.target).is_some_and(|memory| memory.health != Health::Unknown) {
                continue;
            }
            let health = table.get(backend.id)?.health;
            // Since when and why are only so where the kernel says the same.
            let record = records.get(&backend.id).filter(|record| {
                record.backend == backend.name && record.state == health.word() && health != Health::Unknown
            });
            let since_unix_ms = record.map_or_else(unix_ms, |record| record.since_unix_ms);
            let why = record.and_then(|record| record.why.clone());
            if let Some(memory) = self.memory.get_mut(&backend.target) {
                (memory.health, memory.since_unix_ms, memory.why) = (health, since_unix_ms, why);
                continue;
            }
            self.memory.insert(Arc::clone(&backend.target), Memory::new(health, since_unix_ms, why));
            self.queued += 1;
            self.queue.insert((Instant::now(), self.queued), Arc::clone(&backend.target));
        }
        self.memory.retain(|target, _| used.contains(target));
        self.queue.retain(|_, target| used.contains(target));
        self.services = services;
        self.write(None)?;
        self.map = map;
        self.record();
        Ok(())
    }

    /// Looks whether the table still holds what was written to it.
    fn compare(&mut self) -> Result<(), NodeError> {
        let mode = self.node.config.drift.mode;
        if self.written.is_empty() || mode == DriftMode::Off || self.compared.elapsed() < COMPARE_EVERY {
            return Ok(());
        }
        self.compared = Instant::now();
        let mut table = Backends::open(&self.node.pins)?;
        let mut differences = Vec::new();
        for (service, backend) in self.services.iter().flat_map(|s| s.backends.iter().map(move |backend| (s, backend)))
        {
            let Some(written) = self.written.get(&backend.id) else { continue };
            if table.get(backend.id)? == *written {
                self.foreign.remove(&backend.id);
                continue;
            }
            if mode == DriftMode::Heal {
                table.set(backend.id, *written)?;
            } else if !self.foreign.insert(backend.id) {
                continue;
            }
            differences.push(Difference::foreign_backend(&format!("{}/{}", service.name, backend.name)));
        }
        if differences.is_empty() {
            return Ok(());
        }
        let (event, word) = match mode {
            DriftMode::Heal => (journal::Event::Repaired, "drift repaired"),
            _ => (journal::Event::Drifted, "drift"),
        };
        for difference in &differences {
            tracing::warn!(of = difference.of, "{word}: {}", difference.message);
        }
        if let Err(error) = record(&self.node, event, &differences) {
            tracing::warn!(error = %chain(&error), "the journal cannot be written");
        }
        Ok(())
    }

    /// Starts the checks that are due.
    fn start_due(&mut self) {
        let now = Instant::now();
        while let Some(first) = self.queue.first_entry().filter(|first| first.key().0 <= now) {
            let target = first.remove();
            // Its service may be gone by now; or it came back while a check of it was being made.
            let Some(memory) = self.memory.get_mut(&target).filter(|memory| memory.started.is_none()) else { continue };
            self.running += 1;
            if self.running > self.workers && self.workers < CHECKERS_MAX {
                let (taken, events) = (Arc::clone(&self.taken), self.events.clone());
                let commands = Arc::clone(&self.commands);
                let work = move || {
                    while let Some(target) = next(&taken) {
                        let begun = Instant::now();
                        let result = check_backend(target.0, &target.1, &commands);
                        if events.send(Event::Checked(target, result, begun.elapsed())).is_err() {
                            return;
                        }
                    }
                };
                match thread::Builder::new().name("check".to_owned()).spawn(work) {
                    Ok(_) => self.workers += 1,
                    Err(error) => tracing::warn!(%error, "no thread for a check"),
                }
            }
            memory.started = Some(now);
            let _ = self.jobs.send(target);
        }
    }

    /// Takes what a check found.
    fn checked(&mut self, target: &Arc<Target>, result: Result<(), String>, took: Duration) {
        let now = Instant::now();
        self.running -= 1;
        // Its service may be gone by now.
        let Some(memory) = self.memory.get_mut(target) else { return };
        // One that its service left and came back to meanwhile waits in the queue.
        let Some(started) = memory.started.take() else { return };
        let has_passed = result.is_ok();
        let is_news = memory.note(&target.1, result, took);
        self.queued += 1;
        self.queue.insert((due(memory, &target.1, started, now), self.queued), Arc::clone(target));
        let soonest = self.recorded + if is_news { RECORD_NEWS_EVERY } else { RECORD_EVERY };
        self.record_at = Some(self.record_at.map_or(soonest, |at| at.min(soonest)));
        if is_news {
            let (address, why) = (target.0, memory.why.as_deref().unwrap_or_default());
            let of = self.services.iter().flat_map(|s| s.backends.iter().map(move |backend| (s, backend)));
            for (service, backend) in of.filter(|(_, backend)| backend.target == *target) {
                let (service, backend) = (&service.name, &backend.name);
                match memory.health {
                    Health::Unhealthy => tracing::warn!(service, backend, %address, why, "backend unhealthy"),
                    health => tracing::info!(service, backend, %address, "backend {}", health.word()),
                }
            }
        }
        let has_adapted = has_passed && self.adapt(target);
        if has_adapted {
            self.record_at = Some(self.recorded + RECORD_NEWS_EVERY);
        }
        if (is_news || has_adapted)
            && let Err(error) = self.write(Some(target))
        {
            tracing::warn!(error = %chain(&error), "the health of backends was not written");
            // The next look writes it.
            self.map = None;
        }
    }

    /// Adapts what a backend passes on to its latency; says whether that is another share in any service.
    fn adapt(&mut self, target: &Arc<Target>) -> bool {
        let mut has_adapted = false;
        for service in &mut self.services {
            let Some(floor) = service.min_share else { continue };
            let measured = |backend: &Backend| {
                let memory = self.memory.get(&backend.target)?;
                memory.latency.average_ms().filter(|_| memory.health != Health::Unhealthy)
            };
            let all: Vec<f64> = service.backends.iter().filter(|b| b.weight > 0).filter_map(measured).collect();
            let Some(latency) = self.memory.get(target).map(|memory| memory.latency) else { continue };
            for backend in service.backends.iter_mut().filter(|b| b.weight > 0 && b.target == *target) {
                if !backend.share.adapt(&latency, &all, floor) {
                    continue;
                }
                has_adapted = true;
                let (service, backend, share) = (&service.name, &backend.name, share_percent(backend.share.away));
                let latency_ms = latency.average_ms().unwrap_or_default();
                tracing::info!(service, backend, latency_ms, "backend keeps {share} % of its new flows");
            }
        }
        has_adapted
    }

    /// Writes what packets are to meet: in services with this target, or in all.
    fn write(&mut self, target: Option<&Arc<Target>>) -> Result<(), NodeError> {
        let mut table = Backends::open(&self.node.pins)?;
        let concerns = |service: &&mut Service| {
            target.is_none_or(|target| service.backends.iter().any(|backend| backend.target == *target))
        };
        for service in self.services.iter_mut().filter(concerns) {
            let health = |backend: &Backend| self.memory.get(&backend.target).map_or(Health::Unknown, |m| m.health);
            let usable: Vec<_> = service.backends.iter().filter(|backend| backend.weight > 0).map(health).collect();
            let well = usable.iter().filter(|health| **health != Health::Unhealthy).count();
            let is_open = well < service.min_healthy.of(usable.len());
            if is_open != service.is_open {
                let (service, of) = (&service.name, usable.len());
                if is_open {
                    tracing::error!(service, healthy = well, of, "fewer than minHealthy: all backends are used");
                } else {
                    tracing::info!(service, healthy = well, of, "enough backends are healthy");
                }
            }
            service.is_open = is_open;
            for backend in &service.backends {
                let health = health(backend);
                let is_down = health == Health::Unhealthy && !is_open;
                let standing = Standing { health, is_down, away: backend.share.away };
                // Equal words are not written: readers on other CPUs keep the cache line.
                if table.get(backend.id)? != standing {
                    table.set(backend.id, standing)?;
                }
                self.written.insert(backend.id, standing);
            }
        }
        Ok(())
    }

    /// Leaves since when and why where `status` and a successor find it.
    fn record(&mut self) {
        let record = |service: &Service, backend: &Backend| {
            let memory = self.memory.get(&backend.target)?;
            let standing = self.written.get(&backend.id).copied().unwrap_or_default();
            Some(BackendRecord {
                id: backend.id,
                service: service.name.clone(),
                backend: backend.name.clone(),
                state: memory.health.word().to_owned(),
                since_unix_ms: memory.since_unix_ms,
                why: memory.why.clone(),
                is_down: standing.is_down,
                away: standing.away,
                latency_ms: memory.latency.average_ms(),
                checks: memory.checks,
                checked_unix_ms: (memory.checks > 0).then_some(memory.checked_unix_ms),
            })
        };
        let all = self.services.iter().flat_map(|service| service.backends.iter().map(move |b| (service, b)));
        let records: Vec<_> = all.filter_map(|(service, backend)| record(service, backend)).collect();
        if let Err(error) = self.state.set_backends(unix_ms(), &records) {
            tracing::warn!(%error, "the state directory cannot be written");
        }
        (self.recorded, self.record_at) = (Instant::now(), None);
    }
}

/// Where the table of health is not what the daemon wrote down that it wrote; nothing where none ever did. For others than the
/// daemon, which compares by itself.
pub async fn drift(node: &Node) -> Result<Vec<Difference>, NodeError> {
    let first = differences(node)?;
    if first.is_empty() {
        return Ok(first);
    }
    // What was written just now is written down a moment later.
    tokio::time::sleep(2 * RECORD_NEWS_EVERY).await;
    let second = differences(node)?;
    Ok(second.into_iter().filter(|difference| first.contains(difference)).collect())
}

fn differences(node: &Node) -> Result<Vec<Difference>, NodeError> {
    let Some(live) = observe::live(&node.pins)? else { return Ok(Vec::new()) };
    let services = services(&live.image.view()?);
    let (_, records) = State::new(&node.config.state_dir).backends();
    if services.is_empty() || records.is_empty() {
        return Ok(Vec::new());
    }
    let table = Backends::open(&node.pins)?;
    let mut differences = Vec::new();
    for (service, backend) in services.iter().flat_map(|s| s.backends.iter().map(move |backend| (s, backend))) {
        // An id may be another's by now.
        let of = |record: &&BackendRecord| {
            record.id == backend.id && record.service == service.name && record.backend == backend.name
        };
        let Some(record) = records.iter().find(of) else { continue };
        let found = table.get(backend.id)?;
        if (found.health.word(), found.is_down, found.away) != (record.state.as_str(), record.is_down, record.away) {
            differences.push(Difference::foreign_backend(&format!("{}/{}", service.name, backend.name)));
        }
    }
    Ok(differences)
}

/// Waits for the next target to be checked.
fn next(taken: &Mutex<mpsc::Receiver<Arc<Target>>>) -> Option<Arc<Target>> {
    taken.lock().ok()?.recv().ok()
}

/// When a target is checked next.
fn due(memory: &Memory, checks: &HealthChecks, started: Instant, now: Instant) -> Instant {
    let doubted = memory.health != Health::Unhealthy && memory.streak > 0;
    let regular = started + checks.interval;
    if doubted { regular.min(now + RETRY) } else { regular }.max(now)
}

/// The command of checks that this node does not have: its configuration has changed since they were published.
fn unknown_command<'c>(checks: &'c HealthChecks, node: &Node) -> Option<&'c str> {
    match &checks.check {
        HealthCheck::Command { name, .. } if !node.config.health_commands.contains_key(name) => Some(name),
        _ => None,
    }
}

impl Memory {
    fn new(health: Health, since_unix_ms: u64, why: Option<String>) -> Self {
        let latency = Latency::default();
        Self { health, since_unix_ms, why, latency, streak: 0, checks: 0, checked_unix_ms: 0, started: None }
    }

    /// Notes a check; says whether the backend is another than before.
    fn note(&mut self, checks: &HealthChecks, result: Result<(), String>, took: Duration) -> bool {
        self.checks += 1;
        self.checked_unix_ms = unix_ms();
        if result.is_ok() {
            self.latency.note(took);
        }
        let (found, why) = match result {
            Ok(()) => (Health::Healthy, None),
            Err(why) => (Health::Unhealthy, Some(why)),
        };
        if found == self.health {
            self.streak = 0;
            // The last word on why.
            self.why = why;
            return false;
        }
        self.streak = self.streak.saturating_add(1);
        let enough = match (self.health, found) {
            (_, Health::Unhealthy) => checks.fall,
            (Health::Unknown, _) => 1,
            _ => checks.rise,
        };
        if self.streak < enough {
            return false;
        }
        (self.health, self.why, self.streak, self.since_unix_ms) = (found, why, 0, unix_ms());
        if found == Health::Unhealthy {
            // One that comes back is measured anew.
            self.latency = Latency::default();
        }
        true
    }
}

/// Services of an image that have checks.
fn services(view: &View<'_>) -> Vec<Service> {
    let mut ports: BTreeMap<u32, Vec<ServicePort>> = BTreeMap::new();
    for (service, port) in view.service_ports() {
        ports.entry(service).or_default().push(port);
    }
    let service = |row: crate::compile::view::ServiceView<'_>| {
        let checks = HealthChecks::from_text(row.health?)?;
        let ports = ports.get(&row.row).map(Vec::as_slice).unwrap_or_default();
        // How many must be healthy, and what becomes of slow ones, is the service's; a check is the same without.
        let check = HealthChecks { min_healthy: MinHealthy::Count(0), min_share: None, ..checks.clone() };
        let backend = |backend: crate::compile::view::BackendView<'_>| {
            let address = check.address(backend.address, backend.port, ports)?;
            let target = Arc::new((address, check.clone()));
            Some(Backend {
                id: backend.id,
                name: backend.name(),
                weight: backend.weight,
                target,
                share: Share::default(),
            })
        };
        let backends = view.backends(&row).filter_map(backend).collect();
        let (min_healthy, min_share) = (checks.min_healthy, checks.min_share);
        Some(Service { name: row.name.to_owned(), min_healthy, min_share, backends, is_open: false })
    };
    view.services().filter_map(service).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "any point in time will do to count from")]

    use super::*;

    const CHECKS: HealthChecks = HealthChecks {
        check: HealthCheck::Tcp { port: None },
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        rise: 3,
        fall: 2,
        min_healthy: MinHealthy::Count(0),
        min_share: None,
    };
    const TOOK: Duration = Duration::from_millis(2);

    fn memory(health: Health) -> Memory {
        Memory::new(health, 0, None)
    }

    #[test]
    fn a_backend_falls_after_so_many_failures_in_a_row_and_rises_after_so_many_passes() {
        let (pass, fail) = (Ok::<(), String>(()), Err("refused".to_owned()));
        let mut one = memory(Health::Healthy);
        let steps = [
            (&fail, false, Health::Healthy),
            (&pass, false, Health::Healthy),
            (&fail, false, Health::Healthy),
            (&fail, true, Health::Unhealthy),
            (&pass, false, Health::Unhealthy),
            (&pass, false, Health::Unhealthy),
            (&fail, false, Health::Unhealthy),
            (&pass, false, Health::Unhealthy),
            (&pass, false, Health::Unhealthy),
            (&pass, true, Health::Healthy),
        ];
        for (number, (result, turned, health)) in steps.into_iter().enumerate() {
            assert_eq!((one.note(&CHECKS, result.clone(), TOOK), one.health), (turned, health), "step {number}");
        }
        assert_eq!(one.checks, 10);
    }

    #[test]
    fn what_was_never_checked_is_healthy_at_its_first_pass() {
        let mut one = memory(Health::Unknown);
        assert!(one.note(&CHECKS, Ok(()), TOOK));
        assert_eq!(one.health, Health::Healthy);
        let mut one = memory(Health::Unknown);
        assert!(!one.note(&CHECKS, Err(String::new()), TOOK));
        assert!(one.note(&CHECKS, Err(String::new()), TOOK));
    }

    #[test]
    fn a_doubt_is_looked_into_at_once() {
        let now = Instant::now();
        let mut one = memory(Health::Healthy);
        assert_eq!(due(&one, &CHECKS, now, now), now + CHECKS.interval);
        one.note(&CHECKS, Err(String::new()), TOOK);
        assert_eq!(due(&one, &CHECKS, now, now), now + RETRY);
        one.note(&CHECKS, Err(String::new()), TOOK);
        assert_eq!(due(&one, &CHECKS, now, now), now + CHECKS.interval, "it is out by now");
    }
}
