//! The node's own addresses: packets to them are the kernel's, whatever the routes say.

use std::net::IpAddr;
use std::pin::pin;

use futures_util::TryStreamExt as _;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};

use super::neighbour::{NeighbourError, connect};

/// Addresses of every device of this network namespace with the device's index, IPv4 broadcast addresses included; sorted.
///
/// Without loopback and link-local ones: no packet to them ever meets a route, and a device that comes back with another
/// link-local address must not make a new generation.
pub async fn device_addresses() -> Result<Vec<(u32, IpAddr)>, NeighbourError> {
    let handle = connect()?;
    let mut addresses = Vec::new();
    let mut stream = pin!(handle.address().get().execute());
    while let Some(message) =
        stream.try_next().await.map_err(|source| NeighbourError::Request { what: "list addresses", source })?
    {
        let mut of_device = Vec::new();
        collect(&message, &mut of_device);
        addresses.extend(of_device.into_iter().map(|address| (message.header.index, address)));
    }
    addresses.retain(|(_, address)| may_meet_routes(address));
    addresses.sort_unstable();
    Ok(addresses)
}

/// The addresses alone, sorted, each once.
pub fn local_addresses(of_devices: &[(u32, IpAddr)]) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = of_devices.iter().map(|(_, address)| *address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Not among those that the packet path leaves to the kernel before it asks the routes.
fn may_meet_routes(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
    }
}

fn collect(message: &AddressMessage, addresses: &mut Vec<IpAddr>) {
    // On a point-to-point device `Address` is the peer's and `Local` is ours; IPv6 without a peer has only `Address`.
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let address = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    });
    addresses.extend(local.or(address));
    if message.header.family == AddressFamily::Inet {
        addresses.extend(message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Broadcast(ip) => Some(IpAddr::V4(*ip)),
            _ => None,
        }));
    }
}
