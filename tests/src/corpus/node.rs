//! The node of a theme: its ports, what it knows of neighbours, its own addresses.

use std::net::IpAddr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use fib::packet::Tags;
use fib::{Ingress, Neighbour, Reach};
use wayleave::policy::Tunnels;

use super::words::{Words, number};
use crate::Mac;

/// A port as the node maps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    pub mac: Mac,
    /// Largest IP packet that the device takes; 0: not known.
    pub mtu: u16,
    /// Tags that frames on the device carry, outer first; none: untagged.
    pub tags: Vec<Tag>,
    /// Index of the port whose device it shares; its own where nothing is written.
    device: usize,
    /// Whether the node has a device for the port.
    pub has_device: bool,
}

/// A VLAN tag, written `100` (IEEE 802.1Q) or `s100` (IEEE 802.1ad); with priority 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    pub id: u16,
    pub is_service: bool,
}

impl Tag {
    fn read(text: &str) -> Result<Self> {
        let (is_service, id) = text.strip_prefix('s').map_or((false, text), |id| (true, id));
        let id = number(id)?;
        ensure!((1..4095).contains(&id), "`{text}`: VLAN ids are 1 to 4094");
        Ok(Self { id, is_service })
    }

    /// The four bytes that stand before the ethertype.
    pub(super) fn bytes(self) -> [u8; 4] {
        let [high, low] = self.id.to_be_bytes();
        let [type_high, type_low]: [u8; 2] = if self.is_service { [0x88, 0xa8] } else { [0x81, 0x00] };
        [type_high, type_low, high, low]
    }
}

/// What the node knows of a next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) name: String,
    /// `None`: not resolved.
    pub(super) mac: Option<Mac>,
    pub(super) is_down: bool,
}

/// Ports, neighbours and addresses, in the order in which they are written; the first port is where packets come in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeDescription {
    pub ports: Vec<Port>,
    pub(super) hops: Vec<Hop>,
    pub(super) locals: Vec<IpAddr>,
    pub(super) tunnels: Tunnels,
}

impl NodeDescription {
    /// Reads one line of the `node:` section.
    pub(super) fn add(&mut self, line: &str) -> Result<()> {
        let mut words = Words::of(line)?;
        match words.next("what it is")? {
            "port" => {
                let name = words.next("the port's name")?.to_owned();
                ensure!(self.port(&name).is_none(), "the port `{name}` stands twice");
                let mac = words.text("mac").context("`mac` is missing")?.parse()?;
                let mtu = words.number("mtu")?.unwrap_or(0);
                let tags = words.text("tags").map_or(Ok(Vec::new()), |t| t.split('.').map(Tag::read).collect())?;
                ensure!(tags.len() <= 2, "frames have two tags at most");
                let device = match words.text("on") {
                    None => self.ports.len(),
                    Some(other) => {
                        let at = self.ports.iter().position(|port| port.name == other);
                        self.ports[at.with_context(|| format!("`on={other}`: there is no such port above"))?].device
                    }
                };
                let twice = self.ports.iter().find(|port| port.device == device && vids(&port.tags) == vids(&tags));
                if let Some(port) = twice {
                    bail!("frames of one VLAN belong to one port: {} has them", port.name);
                }
                let has_device = match words.text("device") {
                    None => true,
                    Some("none") => false,
                    Some(other) => bail!("`device={other}`: a port has a device unless it says `device=none`"),
                };
                self.ports.push(Port { name, mac, mtu, tags, device, has_device });
            }
            "neighbour" => {
                let name = words.next("the next hop's name")?.to_owned();
                ensure!(self.hops.iter().all(|hop| hop.name != name), "the neighbour `{name}` stands twice");
                let mac: Option<Mac> = words.text("mac").map(str::parse).transpose()?;
                let is_down = words.flag("down");
                ensure!(
                    mac.is_some() != words.flag("unresolved"),
                    "a neighbour has a `mac=…`, or is `unresolved`, and may be `down`"
                );
                ensure!(
                    mac.is_none() || self.hops.iter().all(|hop| hop.mac != mac),
                    "two neighbours have the same MAC: nobody could tell which one a frame was sent to"
                );
                self.hops.push(Hop { name, mac, is_down });
            }
            "local" => self.locals.push(words.next("the address")?.parse().context("an IP address")?),
            "tunnel" => match words.next("the outer source")?.parse().context("an IP address")? {
                IpAddr::V4(source) => self.tunnels.source_v4 = Some(source),
                IpAddr::V6(source) => self.tunnels.source_v6 = Some(source),
            },
            "decapsulate" => {
                let mut rest = || words.next("the address or prefix").map(str::to_owned);
                let what = rest()?;
                match &*what {
                    "from" => self.tunnels.from.push(rest()?.parse()?),
                    "to" => self.tunnels.to.push(rest()?.parse()?),
                    address => self.tunnels.addresses.push(address.parse().context("an IP address")?),
                }
            }
            other => bail!("`{other}` is none of port, neighbour, local, tunnel and decapsulate"),
        }
        words.finish()
    }

    /// The ports that take frames from the device of the port at `index`, each with the VLAN identifiers of its frames as
    /// `Tags::vids` has them.
    /// `id` gives the id that the image has for a port's name; 0: none.
    pub(crate) fn ingress<'n>(
        &'n self,
        index: usize,
        id: impl Fn(&str) -> u32 + 'n,
    ) -> impl Iterator<Item = (u32, Ingress)> + 'n {
        let device = self.ports[index].device;
        let of_device = self.ports.iter().filter(move |port| port.device == device);
        of_device.map(move |port| (vids(&port.tags), Ingress { mac: word(port.mac), port: id(&port.name) }))
    }

    pub(super) fn port(&self, name: &str) -> Option<&Port> {
        self.ports.iter().find(|port| port.name == name)
    }

    pub(super) fn hop(&self, name: &str) -> Option<&Hop> {
        self.hops.iter().find(|hop| hop.name == name)
    }

    /// The MAC of a port or a neighbour.
    pub(super) fn mac(&self, name: &str) -> Option<Mac> {
        self.port(name).map(|port| port.mac).or_else(|| self.hop(name)?.mac)
    }

    /// What the node's table holds for the next hop `hop` behind `port`, when those of `down` are down, too.
    pub(crate) fn reach(&self, hop: &str, port: &str, down: &[String]) -> Result<Reach> {
        let port = self.port(port).ok_or_else(|| anyhow!("the node has no port `{port}`"))?;
        let hop = self.hop(hop).ok_or_else(|| anyhow!("the node says nothing of the neighbour `{hop}`"))?;
        if hop.is_down || down.contains(&hop.name) {
            return Ok(Reach::Down);
        }
        Ok(hop.mac.map_or(Reach::Unknown, |mac| {
            Reach::Up(Neighbour {
                destination: word(mac),
                source: word(port.mac),
                mtu: port.mtu,
                tags: port.tags(),
                one_buffer: false,
            })
        }))
    }
}

impl Port {
    /// The tags of frames on the device.
    pub(super) fn tags(&self) -> Tags {
        let word = |at: usize| self.tags.get(at).map_or(0, |tag: &Tag| u32::from_be_bytes(tag.bytes()));
        Tags { outer: word(0), inner: word(1) }
    }
}

/// VLAN identifiers, outer in the high half; 0 where there is no tag.
fn vids(tags: &[Tag]) -> u32 {
    let id = |at: usize| tags.get(at).map_or(0, |tag| u32::from(tag.id));
    id(0) << 16 | id(1)
}

/// A MAC as the tables hold it: 48 bits, its first byte lowest.
pub(crate) fn word(mac: Mac) -> u64 {
    let mut bytes = [0; 8];
    bytes[..6].copy_from_slice(&mac.0);
    u64::from_le_bytes(bytes)
}

/// The id that an image has for a port; 0: none.
pub(crate) fn port_id(view: &wayleave::compile::View, name: &str) -> u32 {
    view.ports().find(|port| port.name == name).map_or(0, |port| port.id)
}
