//! Next hops to neighbours: which MAC addresses packets leave with.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use fib::Neighbour;

use crate::compile::View;
use crate::kernel::neighbour::{Netlink, NetlinkError};
use crate::kernel::tables::Tables;

use super::node::{Facts, NodeError};

/// How long publishing waits for neighbours that have not answered yet.
const RESOLVE_WAIT: Duration = Duration::from_millis(500);

/// A next hop whose neighbour is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    pub next_hop: String,
    pub via: IpAddr,
    pub port: String,
}

/// Writes the devices of the image's ports.
pub fn write_devices(tables: &mut Tables, view: &View<'_>, facts: &Facts) -> Result<(), NodeError> {
    for port in view.ports() {
        if let Some((device, link)) = facts.ports.iter().find(|(p, _)| p.port == port.name) {
            tables.set_port(port.id, device.index)?;
            tables.set_device(device.index, mac(link.mac))?;
        }
    }
    for (device, link) in &facts.ports {
        tables.set_device(device.index, mac(link.mac))?;
    }
    Ok(())
}

/// Resolves the image's next hops, together, and writes what is known. An unknown neighbour's entry is emptied: the
/// program then asks the kernel's own tables.
pub async fn write_neighbours(
    tables: &mut Tables,
    view: &View<'_>,
    facts: &Facts,
    netlink: &Netlink,
) -> Result<Vec<Unresolved>, NodeError> {
    let mut known = known(netlink).await?;
    let hops: Vec<_> = view
        .next_hops()
        .filter_map(|hop| facts.ports.iter().find(|(p, _)| p.port == hop.port).map(|(_, link)| (hop, link)))
        .collect();
    let missing: Vec<(u32, IpAddr)> =
        hops.iter().map(|(hop, link)| (link.index, hop.via)).filter(|key| !known.contains_key(key)).collect();
    if !missing.is_empty() {
        known.extend(netlink.resolve_all(&missing, RESOLVE_WAIT).await?);
    }
    let mut unresolved = Vec::new();
    for (hop, link) in hops {
        let neighbour = known.get(&(link.index, hop.via)).map(|destination| Neighbour {
            destination: mac(*destination),
            source: mac(link.mac),
            mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
        });
        if neighbour.is_none() {
            unresolved.push(Unresolved {
                next_hop: format!("{}/{}", hop.policy, hop.name),
                via: hop.via,
                port: hop.port.to_owned(),
            });
        }
        // Equal words are not written: readers on other CPUs keep the cache line.
        if tables.neighbour(hop.id)? != neighbour {
            tables.set_neighbour(hop.id, neighbour.as_ref())?;
        }
    }
    Ok(unresolved)
}

/// Every neighbour whose address the kernel holds to be usable.
async fn known(netlink: &Netlink) -> Result<BTreeMap<(u32, IpAddr), [u8; 6]>, NetlinkError> {
    let neighbours = netlink.neighbours().await?;
    Ok(neighbours.into_iter().filter_map(|n| n.usable().map(|mac| ((n.index, n.ip), mac))).collect())
}

/// Six bytes as `fib::Neighbour` holds them: the first byte lowest.
fn mac(bytes: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = bytes;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}
