//! Next hops to neighbours: which MAC addresses packets leave with.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use fib::packet::Tags;
use fib::{Ingress, Neighbour, Reach};

use crate::compile::View;
use crate::compile::view::NextHopView;
use crate::kernel::KernelError;
use crate::kernel::link::Link;
use crate::kernel::neighbour::{self, NeighbourError, neighbours};
use crate::kernel::tables::{Egress, Tables};

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

/// Writes the devices of the image's ports.
pub fn write_devices(tables: &mut Tables, view: &View<'_>, facts: &Facts) -> Result<(), NodeError> {
    for port in view.ports() {
        match facts.ports.iter().find(|(p, _)| p.port == port.name) {
            Some((device, _)) => {
                let egress = Egress { device: device.index, address_device: device.index, tags: Tags::default() };
                if tables.port(port.id)? != Some(egress) {
                    tables.set_port(port.id, &egress)?;
                }
            }
            // The device is gone, or a rolled-back policy names a port that the node no longer has.
            None => tables.clear_port(port.id)?,
        }
    }
    for (device, link) in &facts.ports {
        let port = view.ports().find(|port| port.name == device.port).map_or(0, |port| port.id);
        let ingress = Ingress { mac: mac(link.mac.unwrap_or_default()), port };
        if tables.device(device.index)? != Some(ingress) {
            tables.set_device(device.index, Some(&ingress))?;
        }
    }
    Ok(())
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
    let new = hops(view, facts).filter(|(hop, _)| !old.contains(&hop.id));
    let mut missing: BTreeSet<Key> = new.map(|(hop, link)| (link.index, hop.via)).collect();
    let known = known().await?;
    missing.retain(|key| !known.contains_key(key));
    resolve_all(missing).await;
    // After the wait: what was read before it is old.
    let known = self::known().await?;
    let mut unresolved = Vec::new();
    for (hop, link) in hops(view, facts) {
        let before = tables.reach(hop.id)?;
        let reach = match known.get(&(link.index, hop.via)) {
            Some(_) if !(link.up && link.carrier) && old.contains(&hop.id) => before,
            Some(destination) => Reach::Up(neighbour(link, mac(*destination))),
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

/// How frames reach the neighbour with this MAC through a device.
pub fn neighbour(link: &Link, destination: u64) -> Neighbour {
    Neighbour {
        destination,
        source: mac(link.mac.unwrap_or_default()),
        mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
        tags: Tags::default(),
        one_buffer: !link.driver.is_some_and(|driver| driver.target_frags),
    }
}

/// Device and address of a neighbour.
pub type Key = (u32, IpAddr);

/// The next hops whose port has a device on this node.
fn hops<'v>(view: &'v View<'_>, facts: &'v Facts) -> impl Iterator<Item = (NextHopView<'v>, &'v Link)> {
    view.next_hops().filter_map(|hop| facts.ports.iter().find(|(p, _)| p.port == hop.port).map(|(_, link)| (hop, link)))
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
    Ok(all.into_iter().filter_map(|n| n.usable_mac().map(|mac| ((n.ifindex, n.ip), mac))).collect())
}

/// Six bytes as `fib::Neighbour` holds them: the first byte lowest.
pub fn mac(bytes: [u8; 6]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}
