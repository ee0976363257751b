//! Next hops to neighbours: which MAC addresses packets leave with.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use fib::{Ingress, Neighbour, Reach};

use crate::compile::View;
use crate::compile::view::NextHopView;
use crate::kernel::KernelError;
use crate::kernel::link::Link;
use crate::kernel::neighbour::{self, NeighbourError, neighbours};
use crate::kernel::tables::{Egress, Tables};
use crate::reconcile::{PortDevice, Wire};

use super::node::{Facts, NodeError};

/// How long publishing waits for neighbours that have not answered yet.
const RESOLVE_WAIT: Duration = Duration::from_millis(500);

/// A next hop that cannot be sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    pub next_hop: String,
    pub via: IpAddr,
    pub port: String,
}

/// One entry of the tables that say which devices and VLANs the ports are.
enum Entry {
    /// How packets leave by a port id; `None`: by no device.
    Port(u32, Option<Egress>),
    /// The port of frames from a device with these VLAN identifiers; `None`: no port's.
    Ingress(u32, u32, Option<Ingress>),
}

/// Writes the devices of the image's ports.
pub fn write_devices(tables: &mut Tables, view: &View<'_>, facts: &Facts) -> Result<(), NodeError> {
    for entry in stale_devices(tables, view, facts)? {
        match entry {
            Entry::Port(id, Some(egress)) => tables.set_port(id, &egress)?,
            Entry::Port(id, None) => tables.clear_port(id)?,
            Entry::Ingress(device, vids, ingress) => tables.set_ingress(device, vids, ingress.as_ref())?,
        }
    }
    Ok(())
}

/// Whether [`write_devices`] would change anything.
pub fn devices_differ(tables: &Tables, view: &View<'_>, facts: &Facts) -> Result<bool, NodeError> {
    Ok(!stale_devices(tables, view, facts)?.is_empty())
}

/// A next hop whose entry is not what the kernel says of its neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleNeighbour {
    /// `policy/name`.
    pub next_hop: String,
    pub via: IpAddr,
    pub is: Reach,
    pub wanted: Neighbour,
}

/// Next hops that the kernel knows a usable neighbour of, behind a link that is up, and whose entry is not that. While events
/// are on their way it finds what the daemon is about to write.
pub fn stale_neighbours(tables: &Tables, view: &View<'_>, facts: &Facts) -> Result<Vec<StaleNeighbour>, NodeError> {
    let known = usable(&facts.neighbours);
    let mut stale = Vec::new();
    for (hop, port, link) in hops(view, facts).filter(|(_, _, link)| link.up && link.carrier) {
        let is = tables.reach(hop.id)?;
        let Some(destination) = known.get(&(link.index, hop.via)) else { continue };
        let wanted = neighbour(port, link, mac(*destination));
        if is != Reach::Up(wanted) {
            stale.push(StaleNeighbour { next_hop: format!("{}/{}", hop.policy, hop.name), via: hop.via, is, wanted });
        }
    }
    Ok(stale)
}

/// What is not right in the tables of ports, in words.
pub fn stale_ports(tables: &Tables, view: &View<'_>, facts: &Facts) -> Result<Vec<(String, String)>, NodeError> {
    let device = |index: u32| {
        let link = facts.ports.iter().flat_map(|(port, link)| [&port.wire.link, link]).find(|link| link.index == index);
        link.map_or_else(|| format!("the device with index {index}"), |link| link.name.clone())
    };
    let port = |id: u32| view.ports().find(|port| port.id == id).map_or("none", |port| port.name).to_owned();
    stale_devices(tables, view, facts)?
        .into_iter()
        .map(|entry| {
            Ok(match entry {
                Entry::Port(id, wanted) => {
                    let by = |egress: Option<Egress>| egress.map_or("no device".to_owned(), |e| device(e.device));
                    let (is, wanted) = (by(tables.port(id)?), by(wanted));
                    let same = if is == wanted { ", with other tags or another index" } else { "" };
                    (port(id), format!("packets leave by {is}{same}, where the configuration says {wanted}"))
                }
                Entry::Ingress(index, vids, wanted) => {
                    let of = |ingress: Option<Ingress>| match ingress {
                        Some(ingress) if ingress.port != 0 => format!("port {}", port(ingress.port)),
                        Some(_) => "a port that no rule names".to_owned(),
                        None => "no port".to_owned(),
                    };
                    let (is, wanted) = (of(tables.ingress(index, vids)?), of(wanted));
                    let same = if is == wanted { " with another MAC" } else { "" };
                    let tags = if vids == 0 { String::new() } else { format!(" of {}", super::ports::vlan(vids)) };
                    (
                        device(index),
                        format!("frames{tags} come in by {is}{same}, where the configuration says {wanted}"),
                    )
                }
            })
        })
        .collect()
}

/// Entries that are not what they must be, in the order in which to write them.
fn stale_devices(tables: &Tables, view: &View<'_>, facts: &Facts) -> Result<Vec<Entry>, NodeError> {
    let mut stale = Vec::new();
    for port in view.ports() {
        // Without a device: it is gone, or a rolled-back policy names a port that the node no longer has.
        let egress = facts.ports.iter().find(|(p, _)| p.port == port.name).map(|(device, _)| {
            let Wire { link, tags, .. } = &device.wire;
            Egress { device: link.index, address_device: device.index, tags: *tags }
        });
        if tables.port(port.id)? != egress {
            stale.push(Entry::Port(port.id, egress));
        }
    }
    // Frames of a device by their tags. A device that carries only VLANs takes no untagged frames.
    let mut wanted: BTreeMap<(u32, u32), Option<Ingress>> =
        facts.ports.iter().map(|(device, _)| ((device.wire.link.index, 0), None)).collect();
    for (device, link) in &facts.ports {
        let port = view.ports().find(|port| port.name == device.port).map_or(0, |port| port.id);
        let ingress = Ingress { mac: mac(link.mac.unwrap_or_default()), port };
        wanted.insert((device.wire.link.index, device.wire.tags.vids()), Some(ingress));
    }
    let mut vlans: BTreeMap<(u32, u32), Option<Ingress>> =
        tables.vlans()?.into_iter().map(|(device, vids, ingress)| ((device, vids), ingress)).collect();
    for ((device, vids), ingress) in wanted {
        let before = if vids == 0 { tables.ingress(device, 0)? } else { vlans.remove(&(device, vids)).flatten() };
        if before != ingress {
            stale.push(Entry::Ingress(device, vids, ingress));
        }
    }
    // VLANs that are no ports any more.
    stale.extend(vlans.into_keys().map(|(device, vids)| Entry::Ingress(device, vids, None)));
    Ok(stale)
}

/// Resolves next hops that the live image does not have, together, and writes what is known of all. A new next hop that does
/// not answer is unknown: the program asks the kernel's own tables. One that is live and does not is not waited for again
/// with every publish and stays what it was: whether it is down is [`super::runtime`]'s to say.
pub async fn write_neighbours(
    tables: &mut Tables,
    view: &View<'_>,
    live: Option<&View<'_>>,
    facts: &Facts,
) -> Result<Vec<Unresolved>, NodeError> {
    let old: BTreeSet<u32> = live.into_iter().flat_map(View::next_hops).map(|hop| hop.id).collect();
    let new = hops(view, facts).filter(|(hop, ..)| !old.contains(&hop.id));
    let mut missing: BTreeSet<Key> = new.map(|(hop, _, link)| (link.index, hop.via)).collect();
    let known = known().await?;
    missing.retain(|key| !known.contains_key(key));
    resolve_all(missing).await;
    // After the wait: what was read before it is old.
    let known = self::known().await?;
    let mut unresolved = Vec::new();
    for (hop, port, link) in hops(view, facts) {
        let before = tables.reach(hop.id)?;
        let reach = match known.get(&(link.index, hop.via)) {
            Some(_) if !(link.up && link.carrier) && old.contains(&hop.id) => before,
            Some(destination) => Reach::Up(neighbour(port, link, mac(*destination))),
            None if old.contains(&hop.id) => before,
            None => Reach::Unknown,
        };
        if reach.up().is_none() {
            let next_hop = format!("{}/{}", hop.policy, hop.name);
            unresolved.push(Unresolved { next_hop, via: hop.via, port: hop.port.to_owned() });
        }
        write(tables, hop.id, &before, &reach)?;
    }
    Ok(unresolved)
}

/// Writes what packets to a next hop are to meet. Equal words are not written: readers on other CPUs keep the cache line.
pub fn write(tables: &mut Tables, id: u32, before: &Reach, reach: &Reach) -> Result<(), KernelError> {
    if before == reach { Ok(()) } else { tables.set_reach(id, reach) }
}

/// How frames reach the neighbour with this MAC through a port; `link` is the device that has its addresses.
pub fn neighbour(port: &PortDevice, link: &Link, destination: u64) -> Neighbour {
    Neighbour {
        destination,
        source: mac(link.mac.unwrap_or_default()),
        mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
        tags: port.wire.tags,
        one_buffer: !port.wire.link.driver.is_some_and(|driver| driver.target_frags),
    }
}

/// Device and address of a neighbour.
pub type Key = (u32, IpAddr);

/// The next hops whose port has a device on this node.
fn hops<'v>(view: &'v View<'_>, facts: &'v Facts) -> impl Iterator<Item = (NextHopView<'v>, &'v PortDevice, &'v Link)> {
    view.next_hops().filter_map(|hop| {
        let (port, link) = facts.ports.iter().find(|(p, _)| p.port == hop.port)?;
        Some((hop, port, link))
    })
}

/// Asks for all of `keys` at once, within one wait.
async fn resolve_all(keys: BTreeSet<Key>) {
    if let Err(error) = neighbour::resolve_all(keys, RESOLVE_WAIT).await {
        tracing::debug!(%error, "neighbours were not asked for");
    }
}

/// Every neighbour whose address the kernel holds to be usable.
async fn known() -> Result<BTreeMap<Key, [u8; 6]>, NeighbourError> {
    let all = neighbours().await?;
    Ok(usable(&all))
}

fn usable(all: &[neighbour::Neighbour]) -> BTreeMap<Key, [u8; 6]> {
    all.iter().filter_map(|n| n.usable_mac().map(|mac| ((n.ifindex, n.ip), mac))).collect()
}

/// Six bytes as `fib::Neighbour` holds them: the first byte lowest.
pub fn mac(bytes: [u8; 6]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}
