//! Network devices, as rtnetlink reports them.

use std::pin::pin;

use futures_util::TryStreamExt;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, LinkXdp, XdpAttached};

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
            driver: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
                LinkAttribute::Xdp(attributes) => link.xdp = XdpAttachment::from_attributes(attributes),
                _ => {}
            }
        }
        link
    }
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
