//! Network devices, as rtnetlink reports them.

use std::pin::pin;

use fib::packet::{ETHERTYPE_QINQ, ETHERTYPE_VLAN, Tags};
use futures_util::TryStreamExt;
use netlink_packet_route::link::{
    InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, VlanProtocol, XdpAttached,
};

use super::neighbour::{NeighbourError, connect};
use super::xdp_features::XdpFeatures;

/// A network device of the calling thread's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Means something in this namespace only.
    pub index: u32,
    pub name: String,
    /// `None` for devices without Ethernet addresses.
    pub mac: Option<[u8; 6]>,
    pub mtu: u32,
    /// Switched on by the administrator.
    pub up: bool,
    /// The other end answers; a veth whose peer is down has none.
    pub carrier: bool,
    pub xdp: Option<XdpAttachment>,
    /// What the driver can do for XDP; `None` where nobody has asked, and where the kernel does not say (before Linux 6.3).
    pub driver: Option<XdpFeatures>,
    /// Only for VLAN devices.
    pub vlan: Option<Vlan>,
}

/// What a VLAN device (`ip link add link LOWER type vlan`) does to the frames of its lower device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// Index of the lower device.
    pub lower: u32,
    /// The lower device lies in another namespace, where this index means something.
    pub lower_elsewhere: bool,
    /// As in [`Tags`]: the tag protocol identifier in the high half, the VLAN identifier in the low half.
    pub tag: u32,
}

/// Where the frames of a device are on a wire: on which device, and with which tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire<'l> {
    pub link: &'l Link,
    pub tags: Tags,
}

/// Why the frames of a VLAN device cannot be taken from its lower devices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("{device} lies on a device of another network namespace; run there, where that device is")]
    Elsewhere { device: String },
    #[error("{device} is the third VLAN in a frame; two are the most")]
    TooDeep { device: String },
    #[error("{device} has VLAN identifier 0, which says only a priority; a port needs 1 to 4094")]
    PriorityOnly { device: String },
    /// It went away between two reads.
    #[error("the device below {device} is gone")]
    Gone { device: String },
}

/// The XDP program of a device, whoever attached it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpAttachment {
    pub mode: XdpMode,
    /// `None` where programs in several modes are attached at once.
    pub program_id: Option<u32>,
}

/// Where in the receive path an attached program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    Native,
    Generic,
    Hardware,
    /// Several programs, each in another mode.
    Multiple,
}

/// Lists the devices, in the order of their indexes.
///
/// Needs a tokio runtime with I/O; the socket is made in the thread that first polls this.
pub async fn links() -> Result<Vec<Link>, NeighbourError> {
    let handle = connect()?;
    let mut answers = pin!(handle.link().get().execute());
    let mut links = Vec::new();
    while let Some(message) =
        answers.try_next().await.map_err(|source| NeighbourError::Request { what: "list links", source })?
    {
        links.push(Link::from_message(&message));
    }
    links.sort_by_key(|link| link.index);
    Ok(links)
}

/// Follows VLAN devices down to the device that frames really come in by. Other kinds of stacked devices (bonds, bridges,
/// tunnels) have frames of their own.
pub fn wire<'l>(links: &'l [Link], link: &'l Link) -> Result<Wire<'l>, WireError> {
    let mut wire = Wire { link, tags: Tags::default() };
    while let Some(vlan) = wire.link.vlan {
        let device = || wire.link.name.clone();
        if vlan.lower_elsewhere {
            return Err(WireError::Elsewhere { device: device() });
        }
        if wire.tags.inner != 0 {
            return Err(WireError::TooDeep { device: device() });
        }
        if (Tags { outer: vlan.tag, inner: 0 }).vids() == 0 {
            return Err(WireError::PriorityOnly { device: device() });
        }
        let below = links.iter().find(|l| l.index == vlan.lower).ok_or_else(|| WireError::Gone { device: device() })?;
        // What was outermost lies behind the tag of the lower device.
        wire = Wire { link: below, tags: Tags { outer: vlan.tag, inner: wire.tags.outer } };
    }
    Ok(wire)
}

impl Link {
    pub(super) fn from_message(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            carrier: message.header.flags.contains(LinkFlags::LowerUp),
            xdp: None,
            vlan: None,
            driver: None,
        };
        let (mut lower, mut lower_elsewhere) = (None, false);
        let mut tag = None;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
                LinkAttribute::Xdp(attributes) => link.xdp = XdpAttachment::from_attributes(attributes),
                LinkAttribute::Link(index) => lower = Some(*index),
                LinkAttribute::LinkNetNsId(_) => lower_elsewhere = true,
                LinkAttribute::LinkInfo(kind) => tag = vlan_tag(kind),
                _ => {}
            }
        }
        link.vlan = lower.zip(tag).map(|(lower, tag)| Vlan { lower, lower_elsewhere, tag });
        link
    }
}

/// The tag of a VLAN device, as in [`Vlan::tag`].
fn vlan_tag(kind: &[LinkInfo]) -> Option<u32> {
    let vlan = kind.iter().find_map(|one| match one {
        LinkInfo::Data(InfoData::Vlan(vlan)) => Some(vlan),
        _ => None,
    })?;
    let id = vlan.iter().find_map(|one| match one {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    })?;
    let protocol = vlan.iter().find_map(|one| match one {
        InfoVlan::Protocol(VlanProtocol::Ieee8021Q) => Some(ETHERTYPE_VLAN),
        InfoVlan::Protocol(VlanProtocol::Ieee8021Ad) => Some(ETHERTYPE_QINQ),
        _ => None,
    })?;
    Some(u32::from(protocol) << 16 | u32::from(id))
}

impl XdpAttachment {
    fn from_attributes(attributes: &[LinkXdp]) -> Option<Self> {
        let mode = attributes.iter().find_map(|attribute| match attribute {
            LinkXdp::Attached(XdpAttached::Driver) => Some(XdpMode::Native),
            LinkXdp::Attached(XdpAttached::SocketBuffer) => Some(XdpMode::Generic),
            LinkXdp::Attached(XdpAttached::Hardware) => Some(XdpMode::Hardware),
            LinkXdp::Attached(XdpAttached::Multiple) => Some(XdpMode::Multiple),
            _ => None,
        })?;
        let program_id = attributes.iter().find_map(|attribute| match attribute {
            LinkXdp::ProgId(id) => Some(*id),
            _ => None,
        });
        Some(Self { mode, program_id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `vlan`: index of the lower device, tag protocol, identifier.
    fn device(index: u32, name: &str, vlan: Option<(u32, u16, u16)>) -> Link {
        let name = name.to_owned();
        let vlan = vlan.map(|(lower, protocol, id)| {
            let tag = u32::from(protocol) << 16 | u32::from(id);
            Vlan { lower, lower_elsewhere: false, tag }
        });
        Link { index, name, mac: None, mtu: 1500, up: true, carrier: true, xdp: None, driver: None, vlan }
    }

    fn check(links: &[Link], expected: Result<(u32, u32, u32), &str>) {
        let found = wire(links, links.last().expect("one device"));
        let found = found.map(|w| (w.link.index, w.tags.outer, w.tags.inner)).map_err(|e| e.to_string());
        assert_eq!(found, expected.map_err(str::to_owned));
    }

    #[test]
    fn a_plain_device_is_its_own_wire() {
        check(&[device(2, "eth0", None)], Ok((2, 0, 0)));
    }

    #[test]
    fn the_lowest_vlan_is_the_outermost_tag() {
        let eth0 = device(2, "eth0", None);
        let outer = device(3, "eth0.100", Some((2, ETHERTYPE_QINQ, 100)));
        check(&[eth0.clone(), outer.clone()], Ok((2, 0x88a8_0064, 0)));
        check(&[eth0, outer, device(4, "eth0.100.7", Some((3, ETHERTYPE_VLAN, 7)))], Ok((2, 0x88a8_0064, 0x8100_0007)));
    }

    #[test]
    fn what_cannot_be_taken_apart_is_said() {
        let eth0 = device(2, "eth0", None);
        let a = device(3, "a", Some((2, ETHERTYPE_VLAN, 1)));
        let b = device(4, "b", Some((3, ETHERTYPE_VLAN, 2)));
        let c = device(5, "c", Some((4, ETHERTYPE_VLAN, 3)));
        check(&[eth0.clone(), a.clone(), b, c], Err("a is the third VLAN in a frame; two are the most"));
        check(
            &[eth0, device(3, "prio", Some((2, ETHERTYPE_VLAN, 0)))],
            Err("prio has VLAN identifier 0, which says only a priority; a port needs 1 to 4094"),
        );
        check(std::slice::from_ref(&a), Err("the device below a is gone"));
        let mut far = a;
        far.vlan = far.vlan.map(|v| Vlan { lower_elsewhere: true, ..v });
        check(&[far], Err("a lies on a device of another network namespace; run there, where that device is"));
    }
}
