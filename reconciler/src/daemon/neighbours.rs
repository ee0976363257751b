//! Next hops to neighbours: which MAC addresses packets leave with.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use fib::packet::Tags;
use fib::{Ingress, Neighbour, Reach};

use crate::compile::View;
use crate::compile::view::NextHopView;
use crate::kernel::link::Link;
use crate::kernel::neighbour::{self, NeighbourError, neighbours};
use crate::kernel::tables::{Egress, Tables};

use super::node::{Facts, NodeError};

/// How long publishing waits for neighbours that have not answered yet.
const RESOLVE_WAIT: Duration = Duration::from_millis(500);

/// A next hop whose neighbour is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    pub next_hop: String,
    pub via: IpAddr,
    pub port: String,
    /// Known until now.
    pub lost: bool,
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

/// Resolves next hops that the live image does not have, together, and writes what is known of all. An unknown
/// neighbour's entry is emptied: the program then asks the kernel's own tables. A live next hop that does not answer is
/// not waited for again with every publish.
pub async fn write_neighbours(
    tables: &mut Tables,
    view: &View<'_>,
    live: Option<&View<'_>>,
    facts: &Facts,
) -> Result<Vec<Unresolved>, NodeError> {
    let mut known = known().await?;
    let old: BTreeSet<u32> = live.into_iter().flat_map(View::next_hops).map(|hop| hop.id).collect();
    let new = hops(view, facts).filter(|(hop, _)| !old.contains(&hop.id));
    let missing: Vec<_> = new.map(|(hop, link)| (link.index, hop.via)).collect();
    resolve_missing(&mut known, missing).await;
    write_known(tables, view, facts, &known)
}

/// Writes what the kernel knows now, without asking anybody.
pub async fn refresh_neighbours(
    tables: &mut Tables,
    view: &View<'_>,
    facts: &Facts,
) -> Result<Vec<Unresolved>, NodeError> {
    write_known(tables, view, facts, &known().await?)
}

/// Asks for every next hop again: the kernel checks stale entries in the background, and unknown ones get their chance.
/// Packets that XDP forwards do not keep the kernel's entries fresh by themselves.
pub async fn revalidate(tables: &mut Tables, view: &View<'_>, facts: &Facts) -> Result<Vec<Unresolved>, NodeError> {
    let all: BTreeSet<Key> = hops(view, facts).map(|(hop, link)| (link.index, hop.via)).collect();
    resolve_all(all).await;
    refresh_neighbours(tables, view, facts).await
}

/// Device and address of a neighbour.
type Key = (u32, IpAddr);

/// The next hops whose port has a device on this node.
fn hops<'v>(view: &'v View<'_>, facts: &'v Facts) -> impl Iterator<Item = (NextHopView<'v>, &'v Link)> {
    view.next_hops().filter_map(|hop| facts.ports.iter().find(|(p, _)| p.port == hop.port).map(|(_, link)| (hop, link)))
}

fn write_known(
    tables: &mut Tables,
    view: &View<'_>,
    facts: &Facts,
    known: &BTreeMap<Key, [u8; 6]>,
) -> Result<Vec<Unresolved>, NodeError> {
    let mut unresolved = Vec::new();
    for (hop, link) in hops(view, facts) {
        let reach = known.get(&(link.index, hop.via)).map_or(Reach::Unknown, |destination| {
            Reach::Up(Neighbour {
                destination: mac(*destination),
                source: mac(link.mac.unwrap_or_default()),
                mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
                tags: Tags::default(),
                one_buffer: true,
            })
        });
        let before = tables.reach(hop.id)?;
        if reach.up().is_none() {
            let next_hop = format!("{}/{}", hop.policy, hop.name);
            let lost = before.up().is_some();
            unresolved.push(Unresolved { next_hop, via: hop.via, port: hop.port.to_owned(), lost });
        }
        // Equal words are not written: readers on other CPUs keep the cache line.
        if before != reach {
            tables.set_reach(hop.id, &reach)?;
        }
    }
    Ok(unresolved)
}

async fn resolve_missing(known: &mut BTreeMap<Key, [u8; 6]>, keys: Vec<Key>) {
    let missing: BTreeSet<Key> = keys.into_iter().filter(|key| !known.contains_key(key)).collect();
    known.extend(resolve_all(missing).await);
}

/// Asks for all of `keys` at once, within one wait. Who does not answer is not in the result.
async fn resolve_all(keys: BTreeSet<Key>) -> BTreeMap<Key, [u8; 6]> {
    match neighbour::resolve_all(keys, RESOLVE_WAIT).await {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(%error, "neighbours were not asked for");
            BTreeMap::new()
        }
    }
}

/// Every neighbour whose address the kernel holds to be usable.
async fn known() -> Result<BTreeMap<Key, [u8; 6]>, NeighbourError> {
    let all = neighbours().await?;
    Ok(all.into_iter().filter_map(|n| n.usable_mac().map(|mac| ((n.ifindex, n.ip), mac))).collect())
}

/// Six bytes as `fib::Neighbour` holds them: the first byte lowest.
fn mac(bytes: [u8; 6]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}
