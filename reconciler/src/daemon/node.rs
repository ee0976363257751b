//! One node: its config, its pins, its state, and what a source means for it.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::compile::{CompileError, Image, ImageError, LiveIds, NodeFacts, capacity_class, compile};
use crate::guard::{self, Refusal};
use crate::kernel::KernelError;
use crate::kernel::address::{device_addresses, local_addresses};
use crate::kernel::attach::Mode;
use crate::kernel::link::{Link, links};
use crate::kernel::neighbour::NeighbourError;
use crate::kernel::observe::{Observed, observe};
use crate::kernel::pins::{Lock, Pins};
use crate::kernel::tables::DEVICE_INDEX_MAX;
use crate::policy::{self, Attach, Diagnostic, Guard, NodeConfig, PolicyTest};
use crate::policy_test::Outcome;
use crate::reconcile::{Found, PortDevice, Wanted};
use crate::source::{Limits, ReadSource, SourceError};

use super::journal::Journal;

/// How long a command waits for another process to finish its apply.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How often it looks.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// Why a node cannot be brought to what is wanted. Unless the message says otherwise, the live generation stays.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("the source cannot be read")]
    Source(#[from] SourceError),
    #[error("the source cannot be fetched")]
    Update(#[from] crate::source::git::UpdateError),
    #[error("the policies have errors")]
    Policy { diagnostics: Vec<Diagnostic> },
    #[error("the policies do not fit into an image")]
    Compile(#[from] CompileError),
    #[error("the image cannot be read")]
    Image(#[from] ImageError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("the kernel's links and neighbours cannot be read")]
    Netlink(#[from] NeighbourError),
    #[error("{step} failed; {}", still(*live))]
    Step { step: String, live: u64, source: Box<NodeError> },
    #[error("the plan was made against generation {expected}, but generation {found} is live now; plan again")]
    Stale { expected: u64, found: u64 },
    #[error("{} policy {} failed", failures.len(), if failures.len() == 1 { "test" } else { "tests" })]
    Tests { failures: Vec<Outcome> },
    #[error("refused by {}", refusals.iter().map(|r| r.guard.name()).collect::<Vec<_>>().join(" and "))]
    Refused { refusals: Vec<Refusal> },
    #[error("there is no generation {number}; `wayleave history` lists those that can be rolled back to")]
    NoGeneration { number: u64 },
    #[error("nothing older than generation {live} is retained; there is nothing to roll back to")]
    NothingOlder { live: u64 },
    #[error("nothing can listen on {address} for the webhook")]
    Listen { address: std::net::SocketAddr, source: io::Error },
    #[error("the state directory {} cannot be used", path.display())]
    State { path: std::path::PathBuf, source: io::Error },
}

fn still(live: u64) -> String {
    match live {
        0 => "no generation is live, packets pass to the kernel".to_owned(),
        live => format!("generation {live} is live"),
    }
}

impl NodeError {
    /// Whether another try without a change of the source can help.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Policy { .. }
            | Self::Compile(_)
            | Self::Image(_)
            | Self::NoGeneration { .. }
            | Self::Tests { .. }
            | Self::Refused { .. } => false,
            Self::Source(_)
            | Self::Update(_)
            | Self::Kernel(_)
            | Self::Netlink(_)
            | Self::Stale { .. }
            | Self::NothingOlder { .. }
            | Self::Listen { .. }
            | Self::State { .. } => true,
            Self::Step { source, .. } => source.may_pass(),
        }
    }
}

/// A node that this process may look at and change.
#[derive(Debug)]
pub struct Node {
    pub config: NodeConfig,
    pub pins: Pins,
    pub journal: Journal,
}

/// The node as it is now, beside what wayleave put into the kernel.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The devices that carry a port of the config.
    pub ports: Vec<(PortDevice, Link)>,
    /// Ports of the config whose device does not exist, and the device.
    pub missing: Vec<(String, String)>,
    pub node: NodeFacts,
    /// The node's own addresses on devices that carry no port: how else it is reached.
    pub management: Vec<IpAddr>,
}

/// What a source means for this node.
#[derive(Debug)]
pub struct Desired {
    pub image: Image,
    pub revision: String,
    /// Warnings: errors never get this far.
    pub diagnostics: Vec<Diagnostic>,
    /// Those for this node.
    pub tests: Vec<PolicyTest>,
    /// Guards that the commit goes past, by its trailers.
    pub allowed: BTreeSet<Guard>,
}

impl Node {
    /// Names the node's places; touches nothing.
    pub fn new(config: NodeConfig) -> Self {
        let pins = Pins::new(&config.bpffs);
        let journal = Journal::new(&config.state_dir);
        Self { config, pins, journal }
    }

    /// Reads what the kernel holds.
    pub fn observe(&self) -> Result<Observed, NodeError> {
        Ok(observe(&self.pins)?)
    }

    /// Takes the lock on this node's pins, making their directories; waits a while for another process.
    pub fn lock(&self) -> Result<Lock, NodeError> {
        self.pins.check_file_system()?;
        self.pins.create()?;
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match self.pins.lock() {
                Err(KernelError::Locked { .. }) if Instant::now() < deadline => std::thread::sleep(LOCK_POLL),
                result => return Ok(result?),
            }
        }
    }

    /// Reads devices and addresses from the kernel, and finds the device of every port.
    pub async fn facts(&self) -> Result<Facts, NodeError> {
        let links = links().await?;
        let mut ports = Vec::new();
        let mut missing = Vec::new();
        for (name, port) in &self.config.ports {
            let Some(link) = links.iter().find(|l| l.name == port.device) else {
                missing.push((name.clone(), port.device.clone()));
                continue;
            };
            if link.index >= DEVICE_INDEX_MAX {
                return Err(NodeError::Kernel(KernelError::DeviceIndex {
                    port: name.clone(),
                    device: port.device.clone(),
                    index: link.index,
                    max: DEVICE_INDEX_MAX,
                }));
            }
            let mode = match port.attach {
                Attach::Auto => Mode::Auto,
                Attach::Native => Mode::Native,
                Attach::Generic => Mode::Generic,
                Attach::Tc => Mode::Tc,
            };
            let device = PortDevice { port: name.clone(), device: port.device.clone(), index: link.index, mode };
            ports.push((device, link.clone()));
        }
        let addresses = device_addresses().await?;
        let carries = |index: u32| ports.iter().any(|(port, _)| port.index == index);
        let management = addresses.iter().filter(|(index, _)| !carries(*index)).map(|(_, address)| *address).collect();
        let node = NodeFacts { local_addresses: local_addresses(&addresses) };
        Ok(Facts { ports, missing, node, management })
    }

    /// Reads, validates and compiles a source for this node; ids of the kernel's generations are kept.
    pub fn desire(
        &self,
        source: &(impl ReadSource + ?Sized),
        facts: &NodeFacts,
        observed: &Observed,
    ) -> Result<Desired, NodeError> {
        let snapshot = source.read(&Limits::default())?;
        let validated = policy::validate(&snapshot);
        let mut diagnostics = validated.diagnostics;
        let Some(policy) = validated.policy else { return Err(NodeError::Policy { diagnostics }) };
        let policy = policy.for_node(&self.config.labels);
        let mut tests = validated.tests;
        tests.retain(|test| test.nodes.matches(&self.config.labels));
        let ports: Vec<&str> = self.config.ports.keys().map(String::as_str).collect();
        let unknown = policy::check_ports(&policy, &ports);
        if !unknown.is_empty() {
            diagnostics.extend(unknown);
            return Err(NodeError::Policy { diagnostics });
        }
        let views: Vec<_> =
            observed.live.iter().chain(&observed.retained).filter_map(|g| g.image.view().ok()).collect();
        let image = compile(&policy, facts, &LiveIds::from_views(&views))?;
        let allowed = guard::allowed_by_message(snapshot.message.as_deref().unwrap_or_default());
        Ok(Desired { image, revision: policy.revision, diagnostics, tests, allowed })
    }

    /// What the steps are computed from: the kernel's side.
    pub fn found(&self, observed: &Observed) -> Result<Found, NodeError> {
        let live_digest = observed.live.as_ref().map(|g| g.image.view().map(|v| v.digest().0)).transpose()?;
        // A journal that cannot be read could not be written after the publish either: better to know before.
        let state = |source| NodeError::State { path: self.config.state_dir.clone(), source };
        let journalled = self.journal.read().map_err(state)?.iter().map(|e| e.generation).max();
        let pinned = self.pins.generation_numbers()?.last().copied();
        Ok(Found {
            live: observed.live_number(),
            live_digest,
            class_bits: observed.class_bits,
            retained: observed.retained.iter().map(|g| (g.number, g.image.capacity())).collect(),
            links: observed.links.clone(),
            program: observed.program,
            program_tc: observed.program_tc,
            strays: observed.strays.clone(),
            newest: journalled.into_iter().chain(pinned).max().unwrap_or(0),
        })
    }

    /// What the steps are computed from: the wanted side.
    pub fn wanted(&self, image: &Image, facts: &Facts) -> Result<Wanted, NodeError> {
        Ok(Wanted {
            digest: image.digest().0,
            class_bits: capacity_class(image.bytes().len())?.trailing_zeros(),
            ports: facts.ports.iter().map(|(port, _)| port.clone()).collect(),
            retain_generations: self.config.retain_generations.into(),
            retain_bytes: self.config.retain_memory_bytes,
        })
    }
}

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Who runs this process: the login name behind sudo, else the user's name.
pub fn operator() -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    variable("SUDO_USER").or_else(|| variable("USER")).or_else(|| variable("LOGNAME")).unwrap_or_else(|| {
        match rustix::process::getuid() {
            uid if uid.is_root() => "root".to_owned(),
            uid => format!("uid {}", uid.as_raw()),
        }
    })
}
