//! One node: its config, its pins, its state, and what a source means for it.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::compile::{CompileError, Image, ImageError, LiveIds, NodeFacts, View, capacity_class, compile};
use crate::guard::{self, Refusal};
use crate::kernel::KernelError;
use crate::kernel::address::{device_addresses, local_addresses};
use crate::kernel::attach::{Hook, Mode, Target};
use crate::kernel::ethtool;
use crate::kernel::layout;
use crate::kernel::link::{Link, XdpMode, links};
use crate::kernel::neighbour::{Neighbour, NeighbourError, neighbours};
use crate::kernel::observe::{LinkState, Observed, observe};
use crate::kernel::pins::{Lock, Pins};
use crate::kernel::program::{Entry, Stages};
use crate::kernel::tables::Tables;
use crate::kernel::xdp_features::all_xdp_features;
use crate::policy::{self, Diagnostic, Guard, NodeConfig, PolicyTest, Probe};
use crate::policy_test::Outcome;
use crate::reconcile::hold::Hold;
use crate::reconcile::{Attachment, Found, Held, PortDevice, Wanted};
use crate::source::{Limits, ReadSource, SourceError};

use super::journal::Journal;
use super::neighbours::{devices_differ, stale_neighbours};
use super::ports::{PortFault, carried, trunks};
use super::probation;

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
    Port(#[from] PortFault),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("the kernel's links and neighbours cannot be read")]
    Netlink(#[from] NeighbourError),
    #[error("{step} failed; {}", still(*live))]
    Step { step: String, live: u64, source: Box<NodeError> },
    #[error("the plan was made against generation {expected}, but generation {found} is live now; plan again")]
    Stale { expected: u64, found: u64 },
    #[error(
        "the ports `{}` and `{}` share the device `{device}`, which is attached once, but say `attach: {}` and `attach: {}`; let them say the same, or one of them `auto`",
        ports[0], ports[1], modes[0].word(), modes[1].word()
    )]
    AttachTwoWays { device: String, ports: [String; 2], modes: [Mode; 2] },
    #[error("{} policy {} failed", failures.len(), if failures.len() == 1 { "test" } else { "tests" })]
    Tests { failures: Vec<Outcome> },
    #[error("refused by {}", refusals.iter().map(|r| r.guard.name()).collect::<Vec<_>>().join(" and "))]
    Refused { refusals: Vec<Refusal> },
    #[error("held: {}", holds.iter().map(Hold::message).collect::<Vec<_>>().join("; "))]
    Held { holds: Vec<Hold> },
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
            | Self::AttachTwoWays { .. }
            | Self::Tests { .. }
            | Self::Refused { .. }
            | Self::Held { .. } => false,
            Self::Source(_)
            | Self::Port(_)
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
    /// The ports of the config that a device carries, each with the device that has its addresses.
    pub ports: Vec<(PortDevice, Link)>,
    /// The others.
    pub missing: Vec<PortFault>,
    pub node: NodeFacts,
    /// The node's own addresses on devices that carry no port: how else it is reached.
    pub management: Vec<IpAddr>,
    /// The kernel's own table.
    pub neighbours: Vec<Neighbour>,
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
    /// Those of the node, and of its policies.
    pub probes: Vec<Probe>,
    /// Guards that the commit goes past, by its trailers.
    pub allowed: BTreeSet<Guard>,
    /// The first line of the commit's message.
    pub subject: Option<String>,
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
        self.refuse_newer_layout()?;
        self.pins.create_place()?;
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match self.pins.lock() {
                Err(KernelError::Locked { .. }) if Instant::now() < deadline => std::thread::sleep(LOCK_POLL),
                result => {
                    let lock = result?;
                    // A newer one may have come while this process waited.
                    self.refuse_newer_layout()?;
                    self.pins.create()?;
                    return Ok(lock);
                }
            }
        }
    }

    /// An error where a newer version of wayleave has its layout on this node.
    pub fn refuse_newer_layout(&self) -> Result<(), NodeError> {
        Ok(layout::refuse_newer(&self.pins)?)
    }

    /// Reads devices and addresses from the kernel, and finds the device of every port.
    pub async fn facts(&self) -> Result<Facts, NodeError> {
        let mut links = links().await?;
        let mut drivers = all_xdp_features().unwrap_or_default();
        for link in &mut links {
            link.driver = drivers.remove(&link.index);
        }
        let mut hiding = trunks(&links);
        // One that is gone by now hides nothing.
        hiding.retain(|index| {
            links.iter().any(|l| l.index == *index && ethtool::hides_vlan_tags(&l.name).unwrap_or(false))
        });
        let (ports, missing) = carried(&self.config.ports, &links, &hiding);
        let addresses = device_addresses().await?;
        let carries = |index: u32| ports.iter().any(|(port, _)| port.index == index);
        let management = addresses.iter().filter(|(index, _)| !carries(*index)).map(|(_, address)| *address).collect();
        let node = NodeFacts { local_addresses: local_addresses(&addresses), tunnels: self.config.tunnels.clone() };
        Ok(Facts { ports, missing, node, management, neighbours: neighbours().await? })
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
        let unknown = policy::check_names(&policy, &self.config);
        if !unknown.is_empty() {
            diagnostics.extend(unknown);
            return Err(NodeError::Policy { diagnostics });
        }
        let image = compile(&policy, facts, &Self::live_ids(observed))?;
        let mut probes = self.config.probes.clone();
        probes.extend(policy.route_policies.iter().flat_map(|policy| policy.probes.iter().cloned()));
        let allowed = guard::allowed_by_message(snapshot.message.as_deref().unwrap_or_default());
        let subject = snapshot.message.as_deref().and_then(|message| message.lines().next()).map(str::to_owned);
        Ok(Desired { image, revision: policy.revision, diagnostics, tests, probes, allowed, subject })
    }

    /// The ids that the kernel's generations have given out.
    pub(super) fn live_ids(observed: &Observed) -> LiveIds {
        let views: Vec<_> =
            observed.live.iter().chain(&observed.retained).filter_map(|g| g.image.view().ok()).collect();
        LiveIds::from_views(&views)
    }

    /// What the steps are computed from: the kernel's side.
    pub fn found(&self, observed: &Observed, image: &Image, facts: &Facts) -> Result<Found, NodeError> {
        // Rules that are not what their digest says are nobody's wish.
        let sound = |view: &View<'_>| view.verify_digest().is_ok();
        let live = observed.live.as_ref().map(|g| g.image.view()).transpose()?;
        let live_digest = live.as_ref().filter(|view| sound(view)).map(|view| view.digest().0);
        let tables = match observed.live {
            Some(_) if observed.programs.contains_key(&Entry::Xdp) => match Tables::open(&self.pins) {
                // Pinned again, and written, before anything else.
                Err(KernelError::NoMap { .. }) if !observed.lost.is_empty() => None,
                tables => Some(tables?),
            },
            // Written with the first generation anyway, and with the first of a layout.
            _ => None,
        };
        // A journal that cannot be read could not be written after the publish either: better to know before.
        let state = |source| NodeError::State { path: self.config.state_dir.clone(), source };
        let journalled = self.journal.read().map_err(state)?.iter().map(|e| e.generation).max();
        let pinned = self.pins.generation_numbers()?.last().copied();
        let other_layouts = observed.layouts.iter().map(|layout| layout.newest);
        // Its publisher may have been killed before it wrote the journal.
        let on_probation = probation::last(self)?.map(|record| record.generation);
        Ok(Found {
            live: observed.live_number(),
            live_digest,
            class_bits: observed.class_bits,
            retained: observed.retained.iter().map(|g| (g.number, g.image.capacity())).collect(),
            links: observed.links.iter().map(|link| Held { mode: mode_of(link, facts), link: link.clone() }).collect(),
            programs: observed.programs.clone(),
            stages: observed.stages.clone(),
            live_stages: live.as_ref().map(Stages::of).unwrap_or_default(),
            layouts: observed.layouts.clone(),
            strays: observed.strays.clone(),
            lost: observed.lost.clone(),
            live_unpinned: observed.live_unpinned,
            ports_differ: match &tables {
                Some(tables) => devices_differ(tables, &image.view()?, facts)?,
                None => false,
            },
            // Those of rules that are not live yet are written with them.
            neighbours_differ: match (&tables, &live) {
                (Some(tables), Some(live)) => !stale_neighbours(tables, live, facts)?.is_empty(),
                _ => false,
            },
            newest: journalled.into_iter().chain(pinned).chain(on_probation).chain(other_layouts).max().unwrap_or(0),
        })
    }

    /// What the steps are computed from: the wanted side.
    pub fn wanted(&self, image: &Image, facts: &Facts) -> Result<Wanted, NodeError> {
        Ok(Wanted {
            digest: image.digest().0,
            class_bits: capacity_class(image.bytes().len())?.trailing_zeros(),
            stages: Stages::of(&image.view()?),
            attachments: attachments(&facts.ports)?,
            retain_generations: self.config.retain_generations.into(),
            retain_bytes: self.config.retain_memory_bytes,
            // What a change on probation would be rolled back to.
            keep: probation::pending(self)?.map(|record| record.fallback),
        })
    }
}

/// How a link's program is attached now, as far as it can be seen.
fn mode_of(link: &LinkState, facts: &Facts) -> Option<Mode> {
    if link.hook == Hook::Tc {
        return (link.program != 0).then_some(Mode::Tc);
    }
    let device = facts.ports.iter().map(|(port, _)| &port.wire.link).find(|device| device.index == link.index)?;
    match device.xdp.filter(|xdp| xdp.program_id == Some(link.program))?.mode {
        XdpMode::Native => Some(Mode::Native),
        XdpMode::Generic => Some(Mode::Generic),
        XdpMode::Hardware | XdpMode::Multiple => None,
    }
}

/// What to attach for these ports: each device once. `auto` yields to a port of the same device that says how.
fn attachments(ports: &[(PortDevice, Link)]) -> Result<Vec<Attachment>, NodeError> {
    let mut attachments: Vec<(Attachment, &PortDevice)> = Vec::new();
    for (port, _) in ports {
        let link = &port.wire.link;
        // A port that asks for XDP is not carried then.
        let only_tc = port.wire.hides_tags.then(|| {
            format!(
                "{0} takes VLAN tags out of frames, which XDP cannot see then; `ethtool -K {0} rxvlan off` leaves them in",
                link.name
            )
        });
        let Some((attachment, decides)) = attachments.iter_mut().find(|(a, _)| a.target.index == link.index) else {
            let target = Target {
                device: link.name.clone(),
                index: link.index,
                mode: port.mode,
                mtu: link.mtu,
                driver: link.driver,
                not_native: None,
                only_tc,
            };
            attachments.push((Attachment { target, ports: vec![port.port.clone()] }, port));
            continue;
        };
        attachment.ports.push(port.port.clone());
        if attachment.target.mode == Mode::Auto {
            attachment.target.mode = port.mode;
            *decides = port;
        } else if port.mode != Mode::Auto && port.mode != attachment.target.mode {
            return Err(NodeError::AttachTwoWays {
                device: attachment.target.device.clone(),
                ports: [decides.port.clone(), port.port.clone()],
                modes: [decides.mode, port.mode],
            });
        }
    }
    let mut attachments: Vec<_> = attachments.into_iter().map(|(attachment, _)| attachment).collect();
    keep_off_native(&mut attachments);
    Ok(attachments)
}

/// From native XDP, packets leave only by devices whose drivers take them, and are lost on the way to others. So where a port
/// has another device, `auto` stays with TC, from which packets leave by any.
fn keep_off_native(attachments: &mut [Attachment]) {
    // Many drivers become able to send for others when a program is attached to them natively.
    let cannot_send = |target: &Target| {
        let becomes_able = |native: bool| native && matches!(target.mode, Mode::Auto | Mode::Native);
        target.driver.is_some_and(|driver| !driver.target && !becomes_able(driver.native))
    };
    let Some(first) = attachments.iter().find(|a| cannot_send(&a.target)).map(|a| a.target.clone()) else { return };
    for Attachment { target, .. } in attachments {
        if target.index != first.index {
            target.not_native = Some(format!(
                "from native XDP no packet could leave by {}, whose driver does not send for others",
                first.device
            ));
        }
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

#[cfg(test)]
mod tests {
    use fib::packet::Tags;

    use super::*;
    use crate::kernel::xdp_features::XdpFeatures;
    use crate::reconcile::Wire;

    /// Two names of the same length are the same device.
    fn port(name: &str, device: &str, mode: Mode) -> (PortDevice, Link) {
        let index = device.len().try_into().unwrap_or(u32::MAX);
        let link = Link {
            index,
            name: device.into(),
            mac: None,
            mtu: 1500,
            up: true,
            carrier: true,
            xdp: None,
            driver: Some(XdpFeatures { native: true, target: true, ..XdpFeatures::default() }),
            vlan: None,
        };
        let wire = Wire { link: link.clone(), tags: Tags::default(), hides_tags: false };
        (PortDevice { port: name.into(), device: device.into(), index, wire, mode }, link)
    }

    fn of(ports: &[(PortDevice, Link)]) -> Result<Vec<(String, Mode, Vec<String>)>, String> {
        let all = attachments(ports).map_err(|e| e.to_string())?;
        Ok(all.into_iter().map(|a| (a.target.device, a.target.mode, a.ports)).collect())
    }

    #[test]
    fn auto_keeps_off_native_where_a_port_could_not_send_for_it() {
        let drivers = |native: bool, target: bool, mode: Mode| {
            let mut ports = [port("a", "eth0", Mode::Auto), port("b", "dummy", mode)];
            ports[1].0.wire.link.driver = Some(XdpFeatures { native, target, ..XdpFeatures::default() });
            let all = attachments(&ports).map_err(|e| e.to_string())?;
            Ok::<_, String>([all[0].target.not_native.is_some(), all[1].target.not_native.is_some()])
        };
        assert_eq!(drivers(false, false, Mode::Auto), Ok([true, false]), "no XDP at all");
        assert_eq!(drivers(true, false, Mode::Tc), Ok([true, false]), "it would, if it were attached natively");
        for able in
            [drivers(true, false, Mode::Auto), drivers(true, false, Mode::Native), drivers(false, true, Mode::Tc)]
        {
            assert_eq!(able, Ok([false, false]));
        }
    }

    #[test]
    fn ports_of_one_device_are_one_attachment() {
        let ports = [port("a", "eth0", Mode::Auto), port("b", "wan", Mode::Auto), port("c", "eth0", Mode::Auto)];
        let expected = vec![
            ("eth0".to_owned(), Mode::Auto, vec!["a".to_owned(), "c".to_owned()]),
            ("wan".to_owned(), Mode::Auto, vec!["b".to_owned()]),
        ];
        assert_eq!(of(&ports), Ok(expected));
    }

    #[test]
    fn auto_yields_to_a_port_that_says_how() {
        for modes in [[Mode::Auto, Mode::Tc], [Mode::Tc, Mode::Auto], [Mode::Tc, Mode::Tc]] {
            let ports = [port("a", "eth0", modes[0]), port("b", "eth0", modes[1])];
            assert_eq!(of(&ports), Ok(vec![("eth0".to_owned(), Mode::Tc, vec!["a".to_owned(), "b".to_owned()])]));
        }
    }

    #[test]
    fn two_ways_for_one_device_are_an_error_that_names_both_ports() {
        let ports = [
            port("a", "eth0", Mode::Auto),
            port("b", "eth0", Mode::Native),
            port("c", "eth0", Mode::Auto),
            port("d", "eth0", Mode::Tc),
        ];
        assert_eq!(
            of(&ports),
            Err("the ports `b` and `d` share the device `eth0`, which is attached once, but say `attach: native` and \
                 `attach: tc`; let them say the same, or one of them `auto`"
                .to_owned())
        );
    }
}
