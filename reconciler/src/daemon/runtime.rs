//! Runtime state: which next hops are up, kept in the kernel's neighbour table beside the generation.
//!
//! It follows links and neighbours in a thread of its own, so that a look at a large source delays nothing here. Level-triggered:
//! an event only says when to look, and each look reads links and neighbours anew. Events that come close together are taken
//! together, so a flapping link costs at most one look each [`SETTLE`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fib::Reach;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::kernel::KernelError;
use crate::kernel::attach::Hook;
use crate::kernel::link::{Link, XdpAttachment};
use crate::kernel::neighbour::{Neighbour, Question, ask_all};
use crate::kernel::observe::{self, Generation};
use crate::kernel::tables::Tables;
use crate::kernel::watch::Watch;
use crate::policy::DriftMode;
use crate::reconcile::PortDevice;

use super::drift::{Difference, record};
use super::journal::Event;
use super::neighbours::{Key, mac, neighbour, write, write_devices};
use super::node::{Facts, Node, NodeError, unix_ms};
use super::reach::{Cause, Signs, Standing, judge, word};
use super::run::chain;
use super::state::{NextHopRecord, State};

/// Pause between an event and the look that it asks for, and so the least time between two looks.
const SETTLE: Duration = Duration::from_millis(20);

/// How often a neighbour that is up is asked whether it still is: one unicast request and its answer for each next hop. With the
/// kernel's three probes, a second apart, a neighbour that died behind a link that stays up is found out after at most
/// eight seconds. Left to itself, the kernel believes an answer for up to 45 s, and asks only when it sends by itself.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// How often one that is not known is asked for. The kernel sends three requests a second apart for each question.
const RESOLVE_EVERY: Duration = Duration::from_secs(2);

/// How often the live generation's number is read, so that what another process published is followed.
const IDLE: Duration = Duration::from_millis(500);

/// Transitions of one next hop are logged this often at most.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// What the thread saw that is not its own to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Devices or addresses are others than before, and rules or attachments must follow.
    Changed,
    /// A device is as before, and the program is not attached to it any more.
    Drifted,
}

/// The thread, seen from the daemon's own.
pub struct Runtime {
    wake: Arc<Notify>,
    ended: oneshot::Receiver<NodeError>,
}

impl Runtime {
    /// Starts it in the network namespace of the calling thread; it ends with the process. `hints` hears when devices or
    /// addresses have changed so that rules must.
    pub fn start(node: &Node, hints: mpsc::Sender<Hint>) -> Result<Self, NodeError> {
        let wake = Arc::new(Notify::new());
        let (end, ended) = oneshot::channel();
        let node = Node::new(node.config.clone());
        let woken = Arc::clone(&wake);
        let failed = |source| NodeError::State { path: "threads".into(), source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let follow = move || {
            let Err(error) = runtime.block_on(Follower::new(node, hints).follow(&woken));
            // Nobody listens any more when the daemon is about to end.
            let _ = end.send(error);
        };
        thread::Builder::new().name("runtime".to_owned()).spawn(follow).map_err(failed)?;
        Ok(Self { wake, ended })
    }

    /// Asks for a look now: another generation may be live.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits for the error that ended the thread; `None` when it panicked.
    pub async fn ended(&mut self) -> Option<NodeError> {
        (&mut self.ended).await.ok()
    }
}

/// What of the live generation is needed for every look, read once.
#[derive(Debug)]
struct Live {
    /// Of its map: another generation has another.
    map: u32,
    hops: Vec<Hop>,
    locals: Vec<IpAddr>,
}

#[derive(Debug)]
struct Hop {
    id: u32,
    /// `policy/name`.
    name: String,
    via: IpAddr,
    port: String,
}

/// What is remembered of a next hop between looks.
#[derive(Debug)]
struct Memory {
    state: &'static str,
    cause: Option<Cause>,
    since_unix_ms: u64,
    why: Option<String>,
    kept_until: Option<Instant>,
    logged: Option<Instant>,
    /// What was written last for the live generation: another entry is somebody else's.
    written: Option<Reach>,
}

/// What of the node's devices decides about ports and rules: everything but whether their links are up, and what is attached.
type Devices = Vec<(PortDevice, Link)>;

struct Follower {
    node: Node,
    state: State,
    hints: mpsc::Sender<Hint>,
    live: Option<Live>,
    /// What `write_devices` last wrote; `None` where it is still to write, for the live generation or for other devices.
    devices: Option<Devices>,
    /// The facts that the rules were last hinted at for.
    hinted: Option<(Devices, Vec<IpAddr>, Vec<Option<XdpAttachment>>)>,
    memory: BTreeMap<u32, Memory>,
    asked: BTreeMap<Key, Instant>,
}

impl Follower {
    fn new(node: Node, hints: mpsc::Sender<Hint>) -> Self {
        let state = State::new(&node.config.state_dir);
        // Since when and why survive a restart where the state itself has not changed meanwhile.
        let memory = state.next_hops().into_iter().filter_map(|record| Some((record.id, Memory::recall(record)?)));
        let memory = memory.collect();
        Self { node, state, hints, live: None, devices: None, hinted: None, memory, asked: BTreeMap::new() }
    }

    async fn follow(mut self, wake: &Notify) -> Result<std::convert::Infallible, NodeError> {
        let mut changes = Watch::open()?;
        let mut look_at = Instant::now();
        // A look for nothing but the time that has passed; it may turn out that there is nothing to do.
        let mut idle = false;
        loop {
            tokio::select! {
                biased;
                // Before events: however many come, looks are made.
                () = tokio::time::sleep_until(look_at.into()) => {
                    look_at = match self.look(idle).await {
                        Ok(next) => next,
                        Err(error) => {
                            tracing::warn!(error = %chain(&error), "next hops were not looked at");
                            self.live = None;
                            Instant::now() + RESOLVE_EVERY
                        }
                    };
                    idle = true;
                }
                () = wake.notified() => {
                    look_at = Instant::now();
                    idle = false;
                }
                changed = changes.next() => {
                    changed?;
                    look_at = look_at.min(Instant::now() + SETTLE);
                    idle = false;
                }
            }
        }
    }

    /// One look; returns when the next is due if nothing happens.
    async fn look(&mut self, idle: bool) -> Result<Instant, NodeError> {
        let now = Instant::now();
        let Some(generation) = observe::live(&self.node.pins)? else {
            self.live = None;
            return Ok(now + IDLE);
        };
        let changed = self.live.as_ref().is_none_or(|live| live.map != generation.image.id());
        if changed {
            // Whoever published it wrote the entries.
            self.memory.values_mut().for_each(|memory| memory.written = None);
        }
        if idle && !changed && !self.is_due(now) {
            return Ok(self.next(now));
        }
        let facts = self.node.facts().await?;
        let devices = devices(&facts);
        let mut tables = Tables::open(&self.node.pins)?;
        if changed {
            self.devices = None;
        }
        if self.devices.as_ref() != Some(&devices) {
            let view = generation.image.view()?;
            self.devices = self.write(&mut tables, &generation, &facts)?.then(|| devices.clone());
            let hops = view.next_hops().map(|hop| Hop {
                id: hop.id,
                name: format!("{}/{}", hop.policy, hop.name),
                via: hop.via,
                port: hop.port.to_owned(),
            });
            self.live =
                Some(Live { map: generation.image.id(), hops: hops.collect(), locals: view.locals().collect() });
        }
        self.hint(&facts, &devices)?;
        self.judge(&mut tables, &facts, now).await?;
        Ok(self.next(now))
    }

    /// Writes what the ports' devices are for the rules of `generation`. Whoever is publishing has the tables of his own
    /// generation in there before it is live: `false` while the lock is his, and when he has published meanwhile.
    fn write(&self, tables: &mut Tables, generation: &Generation, facts: &Facts) -> Result<bool, NodeError> {
        let _lock = match self.node.pins.lock() {
            Err(KernelError::Locked { .. }) => return Ok(false),
            lock => lock?,
        };
        if observe::live(&self.node.pins)?.is_none_or(|live| live.image.id() != generation.image.id()) {
            return Ok(false);
        }
        write_devices(tables, &generation.image.view()?, facts)?;
        Ok(true)
    }

    /// Whether a write that had to wait, a question or the end of a grace is due.
    fn is_due(&self, now: Instant) -> bool {
        self.devices.is_none() || self.next(now) <= now
    }

    fn next(&self, now: Instant) -> Instant {
        if self.devices.is_none() {
            return now + SETTLE;
        }
        let graces = self.memory.values().filter_map(|memory| memory.kept_until);
        let questions = self.asked.values().copied();
        graces.chain(questions).chain([now + IDLE]).min().unwrap_or(now + IDLE)
    }

    /// Says so when rules must follow the devices and addresses, once for each change of them.
    fn hint(&mut self, facts: &Facts, devices: &Devices) -> Result<(), NodeError> {
        let heals = self.node.config.drift.mode == DriftMode::Heal;
        // Which program is attached is worth a look where that is put right.
        let attached = facts.ports.iter().filter(|_| heals).map(|(port, _)| port.wire.link.xdp).collect();
        let seen = (devices.clone(), facts.node.local_addresses.clone(), attached);
        if self.hinted.as_ref() == Some(&seen) {
            return Ok(());
        }
        // What did not change itself and is not attached is drift.
        let before = self.hinted.as_ref().map(|(devices, ..)| devices.as_slice()).unwrap_or_default();
        let is_news = |port: &PortDevice| !before.iter().any(|(before, _)| before == port);
        let locals_differ = self.live.as_ref().is_some_and(|live| live.locals != facts.node.local_addresses);
        let attached = self.node.observe()?.links;
        let moved = |port: &PortDevice| {
            let fits = |hook| hook == Hook::Tc || !port.wire.hides_tags;
            !attached.iter().any(|link| link.index == port.wire.link.index && fits(link.hook))
        };
        if locals_differ || devices.iter().any(|(port, _)| is_news(port) && moved(port)) {
            // A full channel holds a hint already.
            let _ = self.hints.try_send(Hint::Changed);
        } else if heals && devices.iter().any(|(port, _)| moved(port)) {
            let _ = self.hints.try_send(Hint::Drifted);
        }
        self.hinted = Some(seen);
        Ok(())
    }

    /// Decides on every next hop, writes what changed, and asks for those that it is time to ask for.
    async fn judge(&mut self, tables: &mut Tables, facts: &Facts, now: Instant) -> Result<(), NodeError> {
        let Some(live) = &self.live else { return Ok(()) };
        let entries: BTreeMap<Key, Neighbour> =
            facts.neighbours.iter().map(|entry| ((entry.ifindex, entry.ip), entry.clone())).collect();
        let ports: BTreeMap<&str, &(PortDevice, Link)> =
            facts.ports.iter().map(|port| (port.0.port.as_str(), port)).collect();
        let mut questions = BTreeMap::new();
        let mut told = false;
        let mut repaired = Vec::new();
        for hop in &live.hops {
            let port = ports.get(hop.port.as_str());
            let device = port.map(|(port, _)| port);
            let link = port.map(|(_, link)| link);
            let key = link.map(|link| (link.index, hop.via));
            let entry = key.and_then(|key| entries.get(&key));
            let before = tables.reach(hop.id)?;
            let memory = self.memory.get(&hop.id);
            let kept_until = memory.and_then(|memory| memory.kept_until);
            let standing = judge(&Signs { link, entry, before, kept_until }, now);
            let reach = match (standing, port, before) {
                (Standing::Up(to), Some((port, link)), _) => Reach::Up(neighbour(port, link, mac(to))),
                (Standing::Kept(_), Some((port, link)), Reach::Up(was)) => {
                    Reach::Up(neighbour(port, link, was.destination))
                }
                (Standing::Down(_), ..) => Reach::Down,
                _ => Reach::Unknown,
            };
            let foreign = memory.and_then(|memory| memory.written).is_some_and(|written| written != before);
            // Nothing happened, and the entry is another one: somebody changed it.
            let tampered = foreign && memory.and_then(|memory| memory.written) == Some(reach) && reach != before;
            if !tampered || self.node.config.drift.mode == DriftMode::Heal {
                write(tables, hop.id, &before, &reach)?;
            }
            if tampered && self.node.config.drift.mode == DriftMode::Heal {
                repaired.push(hop.name.clone());
            }
            let unheard = memory.is_none_or(|memory| {
                // Back from a link that was down, or lost just now: asked at once, whenever the last question was.
                matches!(standing, Standing::Kept(_)) && memory.kept_until.is_none()
                    || matches!(standing, Standing::Down(Cause::NoAnswer | Cause::NeighbourFailed))
                        && matches!(memory.cause, Some(Cause::LinkDown | Cause::NoDevice))
            });
            told |= remember(&mut self.memory, hop, standing, &reach, device.map(|port| port.device.as_str()), now);
            if let (Some(key), false) = (key, matches!(standing, Standing::Down(Cause::LinkDown | Cause::NoDevice))) {
                let question = match standing {
                    Standing::Up(_) => Question::Probe,
                    _ => Question::Resolve,
                };
                questions.insert(key, (question, unheard, entry));
            }
        }
        if !repaired.is_empty() {
            self.tell_repaired(&repaired);
        }
        let ids: BTreeSet<u32> = live.hops.iter().map(|hop| hop.id).collect();
        self.memory.retain(|id, _| ids.contains(id));
        if told {
            self.tell();
        }
        self.ask(questions, now).await
    }

    /// Asks where it is time. `asked` holds when each is to be asked next.
    async fn ask(
        &mut self,
        questions: BTreeMap<Key, (Question, bool, Option<&Neighbour>)>,
        now: Instant,
    ) -> Result<(), NodeError> {
        self.asked.retain(|key, _| questions.contains_key(key));
        let mut due = Vec::new();
        for (key, (question, unheard, entry)) in questions {
            let every = if question == Question::Probe { PROBE_EVERY } else { RESOLVE_EVERY };
            let at = self.asked.get(&key).copied();
            // One that was up until now waits for its next probe, which is too late.
            let at = at.map(|at| at.min(now + every));
            if !unheard && at.is_some_and(|at| at > now) {
                self.asked.extend(at.map(|at| (key, at)));
                continue;
            }
            self.asked.insert(key, now + every);
            if question == Question::Resolve || entry.is_some_and(Neighbour::is_learned) {
                due.push((key.0, key.1, question));
            }
        }
        Ok(ask_all(&due).await?)
    }

    /// Says whose entries somebody had changed.
    fn tell_repaired(&self, next_hops: &[String]) {
        let differences: Vec<_> = next_hops.iter().map(|next_hop| Difference::foreign_neighbour(next_hop)).collect();
        for difference in &differences {
            tracing::warn!(of = difference.of, "drift repaired: {}", difference.message);
        }
        if let Err(error) = record(&self.node, Event::Repaired, &differences) {
            tracing::warn!(error = %chain(&error), "the journal cannot be written");
        }
    }

    /// Leaves since when and why where `status` and a successor find it.
    fn tell(&self) {
        let Some(live) = &self.live else { return };
        let record = |hop: &Hop| {
            let memory = self.memory.get(&hop.id)?;
            Some(NextHopRecord {
                id: hop.id,
                next_hop: hop.name.clone(),
                via: hop.via,
                state: memory.state.to_owned(),
                since_unix_ms: memory.since_unix_ms,
                why: memory.why.clone(),
            })
        };
        let records: Vec<_> = live.hops.iter().filter_map(record).collect();
        if let Err(error) = self.state.set_next_hops(&records) {
            tracing::warn!(%error, "the state directory cannot be written");
        }
    }
}

impl Memory {
    fn recall(record: NextHopRecord) -> Option<Self> {
        let state = ["up", "down", "unknown"].into_iter().find(|state| *state == record.state)?;
        let NextHopRecord { since_unix_ms, why, .. } = record;
        Some(Self { state, cause: None, since_unix_ms, why, kept_until: None, logged: None, written: None })
    }
}

/// Notes what a next hop is now; says whether anybody would be told something else than before.
fn remember(
    all: &mut BTreeMap<u32, Memory>,
    hop: &Hop,
    standing: Standing,
    reach: &Reach,
    device: Option<&str>,
    now: Instant,
) -> bool {
    let state = word(reach);
    let was = all.get(&hop.id);
    let kept_until = match standing {
        Standing::Kept(until) => Some(until),
        _ => None,
    };
    let cause = match (standing, was.and_then(|was| was.cause)) {
        // Asked for again, a neighbour that failed has not failed yet: no news.
        (Standing::Down(Cause::NoAnswer), Some(Cause::NeighbourFailed)) => Some(Cause::NeighbourFailed),
        (Standing::Down(cause), _) => Some(cause),
        _ => None,
    };
    let why = cause.map(|cause| cause.words(hop.via, &hop.port, device));
    let turned = was.is_none_or(|was| was.state != state);
    let news = turned || was.is_some_and(|was| was.why != why);
    let since_unix_ms = was.filter(|_| !turned).map_or_else(unix_ms, |was| was.since_unix_ms);
    let mut logged = was.and_then(|was| was.logged);
    if turned && (was.is_some() || state == "down") && logged.is_none_or(|at| now >= at + LOG_EVERY) {
        logged = Some(now);
        let (next_hop, via, port) = (&hop.name, hop.via, &hop.port);
        if let Some(why) = &why {
            tracing::warn!(next_hop, %via, port, why, "next hop down");
        } else {
            tracing::info!(next_hop, %via, port, "next hop {state}");
        }
    }
    all.insert(hop.id, Memory { state, cause, since_unix_ms, why, kept_until, logged, written: Some(*reach) });
    news
}

/// A veth's driver says that it takes frames while a program is attached: no change of the device either.
fn devices(facts: &Facts) -> Devices {
    let same = |link: &Link| Link { up: true, carrier: true, xdp: None, driver: None, ..link.clone() };
    let port_of = |port: &PortDevice| {
        let mut port = port.clone();
        port.wire.link = same(&port.wire.link);
        port
    };
    facts.ports.iter().map(|(port, link)| (port_of(port), same(link))).collect()
}
