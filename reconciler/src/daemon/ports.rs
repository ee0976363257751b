//! Ports of the config and the devices that carry them. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::kernel::attach::Mode;
use crate::kernel::link::{Link, WireError, wire};
use crate::kernel::tables::DEVICE_INDEX_MAX;
use crate::policy::{Attach, Port};
use crate::reconcile::{PortDevice, Wire};

/// Why packets of a port are left to the kernel: nothing on this node carries it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortFault {
    #[error("port `{port}`: device `{device}` does not exist on this node")]
    NoDevice { port: String, device: String },
    #[error(
        "port `{port}`: device `{device}` has the kernel index {index}; indexes of {DEVICE_INDEX_MAX} and above cannot \
         carry a port"
    )]
    Index { port: String, device: String, index: u32 },
    #[error("port `{port}`: {fault}")]
    Wire { port: String, fault: WireError },
    #[error(
        "port `{port}`: `{device}` has VLAN devices, and takes their tags out of frames before XDP sees them: \
         `ethtool -K {device} rxvlan off` leaves them in, and `attach: tc` sees them anyhow"
    )]
    HiddenTags { port: String, device: String },
    /// VLANs of the two tag protocols with one identifier: ports are told apart by identifiers only.
    #[error(
        "port `{port}`: {vlan} on `{device}` is port `{first}` already; the tag protocols 802.1Q and 802.1ad are not told \
         apart: give one of them another identifier"
    )]
    SameVlan { port: String, first: String, device: String, vlan: String },
}

/// The ports that have a device, each with the link that has its addresses; and the others. `hiding`: indexes of devices that
/// take VLAN tags out of frames.
pub fn carried(
    ports: &BTreeMap<String, Port>,
    links: &[Link],
    hiding: &BTreeSet<u32>,
) -> (Vec<(PortDevice, Link)>, Vec<PortFault>) {
    let mut carried: Vec<(PortDevice, Link)> = Vec::new();
    let mut faults = Vec::new();
    for (name, port) in ports {
        match one(name, port, links, hiding) {
            Ok((device, link)) => {
                let key = |d: &PortDevice| (d.wire.link.index, d.wire.tags.vids());
                match carried.iter().find(|(other, _)| key(other) == key(&device)) {
                    Some((first, _)) => faults.push(PortFault::SameVlan {
                        port: device.port,
                        first: first.port.clone(),
                        device: device.wire.link.name,
                        vlan: vlan(device.wire.tags.vids()),
                    }),
                    None => carried.push((device, link.clone())),
                }
            }
            Err(fault) => faults.push(fault),
        }
    }
    (carried, faults)
}

/// Indexes of the devices that have VLAN devices above them.
pub fn trunks(links: &[Link]) -> BTreeSet<u32> {
    links.iter().filter_map(|link| link.vlan).filter(|vlan| !vlan.lower_elsewhere).map(|vlan| vlan.lower).collect()
}

fn one<'l>(
    name: &str,
    port: &Port,
    links: &'l [Link],
    hiding: &BTreeSet<u32>,
) -> Result<(PortDevice, &'l Link), PortFault> {
    let no_device = || PortFault::NoDevice { port: name.to_owned(), device: port.device.clone() };
    let link = links.iter().find(|l| l.name == port.device).ok_or_else(no_device)?;
    let wire = wire(links, link).map_err(|fault| PortFault::Wire { port: name.to_owned(), fault })?;
    if let Some(high) = [link, wire.link].into_iter().find(|link| link.index >= DEVICE_INDEX_MAX) {
        return Err(PortFault::Index { port: name.to_owned(), device: high.name.clone(), index: high.index });
    }
    let mode = match port.attach {
        Attach::Auto => Mode::Auto,
        Attach::Native => Mode::Native,
        Attach::Generic => Mode::Generic,
        Attach::Tc => Mode::Tc,
    };
    let hides_tags = hiding.contains(&wire.link.index);
    if hides_tags && let Mode::Native | Mode::Generic = mode {
        return Err(PortFault::HiddenTags { port: name.to_owned(), device: wire.link.name.clone() });
    }
    let wire = Wire { link: wire.link.clone(), tags: wire.tags, hides_tags };
    let device = PortDevice { port: name.to_owned(), device: port.device.clone(), index: link.index, wire, mode };
    Ok((device, link))
}

/// Identifiers (`Tags::vids`) in words: `VLAN 100`, or `VLAN 100.7` with the outer one first.
pub fn vlan(vids: u32) -> String {
    match (vids >> 16, vids & 0xffff) {
        (outer, 0) => format!("VLAN {outer}"),
        (outer, inner) => format!("VLAN {outer}.{inner}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::link::Vlan;

    const Q: u16 = 0x8100;
    const AD: u16 = 0x88a8;

    /// `vlan`: index of the lower device, tag protocol, identifier.
    fn link(index: u32, name: &str, vlan: Option<(u32, u16, u16)>) -> Link {
        let vlan = vlan.map(|(lower, protocol, id)| {
            let tag = u32::from(protocol) << 16 | u32::from(id);
            Vlan { lower, lower_elsewhere: false, tag }
        });
        Link {
            index,
            name: name.into(),
            mac: Some([2; 6]),
            mtu: 1500,
            up: true,
            carrier: true,
            xdp: None,
            driver: None,
            vlan,
        }
    }

    fn check(links: &[Link], expected: &[&str]) {
        // Every device is a port of its own name.
        let port = |device: String| (device.clone(), Port { device, attach: Attach::Auto });
        let mut ports: BTreeMap<_, _> = links.iter().map(|l| port(l.name.clone())).collect();
        ports.extend([port("none".to_owned())]);
        let (carried, faults) = carried(&ports, links, &BTreeSet::new());
        let carried = carried.iter().map(|(d, _)| {
            let Wire { link, tags, .. } = &d.wire;
            let device = &link.name;
            format!("{} on {device} {:08x} {:08x}", d.port, tags.outer, tags.inner)
        });
        let all: Vec<String> = carried.chain(faults.iter().map(ToString::to_string)).collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn vlan_devices_are_taken_from_the_device_below() {
        check(
            &[link(2, "eth0", None), link(3, "office", Some((2, Q, 100))), link(4, "shop", Some((3, Q, 7)))],
            &[
                "eth0 on eth0 00000000 00000000",
                "office on eth0 81000064 00000000",
                "shop on eth0 81000064 81000007",
                "port `none`: device `none` does not exist on this node",
            ],
        );
    }

    #[test]
    fn one_identifier_is_one_port() {
        check(
            &[link(2, "eth0", None), link(3, "a", Some((2, Q, 100))), link(4, "b", Some((2, AD, 100)))],
            &[
                "a on eth0 81000064 00000000",
                "eth0 on eth0 00000000 00000000",
                "port `b`: VLAN 100 on `eth0` is port `a` already; the tag protocols 802.1Q and 802.1ad are not told \
                 apart: give one of them another identifier",
                "port `none`: device `none` does not exist on this node",
            ],
        );
    }

    #[test]
    fn hidden_tags_are_no_matter_for_tc() {
        let links = [link(2, "eth0", None), link(3, "a", Some((2, Q, 100))), link(4, "eth1", None)];
        let port = |device: &str, attach| (device.to_owned(), Port { device: device.to_owned(), attach });
        let check = |attach, expected: [usize; 2]| {
            let ports = BTreeMap::from([port("eth0", attach), port("a", attach), port("eth1", attach)]);
            let (carried, faults) = carried(&ports, &links, &trunks(&links));
            assert_eq!([carried.len(), faults.len()], expected, "{attach:?}");
            assert!(carried.iter().all(|(d, _)| d.wire.hides_tags == (d.wire.link.index == 2)), "{attach:?}");
        };
        check(Attach::Auto, [3, 0]);
        check(Attach::Tc, [3, 0]);
        check(Attach::Native, [1, 2]);
        check(Attach::Generic, [1, 2]);
    }

    #[test]
    fn an_index_beyond_the_tables_is_no_port() {
        check(
            &[link(DEVICE_INDEX_MAX, "eth0", None), link(3, "a", Some((DEVICE_INDEX_MAX, Q, 100)))],
            &[
                "port `a`: device `eth0` has the kernel index 65536; indexes of 65536 and above cannot carry a port",
                "port `eth0`: device `eth0` has the kernel index 65536; indexes of 65536 and above cannot carry a port",
                "port `none`: device `none` does not exist on this node",
            ],
        );
    }
}
