//! Runtime tables beside the generation: egress by port id, ingress by device and VLAN, neighbours by next-hop id.
//!
//! They hold what changes without a commit. Every value is written in words that the program reads whole.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::xdp::{DevMap, XdpMapError};
use aya::maps::{Array, HashMap, Map, MapData};
use fib::layout::{NEXT_HOP_IDS_MAX, PORT_IDS_MAX};
use fib::packet::Tags;
use fib::verdict::ReachWords;
use fib::{Ingress, Reach};

use super::pins::Pins;
use super::{KernelError, restore, sys};

/// Devices whose kernel index is at or above this cannot carry a port.
pub const DEVICE_INDEX_MAX: u32 = 1 << 16;

/// How packets leave by a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Kernel index of the device that sends.
    pub device: u32,
    /// Kernel index of the device that has the port's addresses: another one where the port is a VLAN.
    pub address_device: u32,
    /// What frames are tagged with.
    pub tags: Tags,
}

/// The open tables of one node.
pub struct Tables {
    /// For frames of one buffer, and of several.
    ports: [DevMap<MapData>; 2],
    /// The same maps, for the deletion that aya does not have.
    ports_fds: [OwnedFd; 2],
    port_links: Array<MapData, [u64; 2]>,
    devices: Array<MapData, u64>,
    vlans: HashMap<MapData, u64, u64>,
    neighbours: Array<MapData, ReachWords>,
}

impl Tables {
    /// Opens the pinned tables; they exist once the program has been loaded.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        let descriptor = |name| match restore::map(pins, name) {
            // Only the program for frames of several buffers holds it; where that is not loaded, nothing is lost with its pin.
            Err(KernelError::NoMap { .. }) if name == "PORTS_FRAGS" => restore::map(pins, "PORTS"),
            map => map,
        };
        let open = |name: &'static str| MapData::from_fd(descriptor(name)?).map_err(KernelError::map(name));
        let ports = |name| DevMap::try_from(Map::DevMap(open(name)?)).map_err(KernelError::map(name));
        Ok(Self {
            ports: [ports("PORTS")?, ports("PORTS_FRAGS")?],
            ports_fds: [descriptor("PORTS")?, descriptor("PORTS_FRAGS")?],
            port_links: Array::try_from(Map::Array(open("PORT_LINKS")?)).map_err(KernelError::map("PORT_LINKS"))?,
            devices: Array::try_from(Map::Array(open("DEVICES")?)).map_err(KernelError::map("DEVICES"))?,
            vlans: HashMap::try_from(Map::HashMap(open("VLANS")?)).map_err(KernelError::map("VLANS"))?,
            neighbours: Array::try_from(Map::Array(open("NEIGHBOURS")?)).map_err(KernelError::map("NEIGHBOURS"))?,
        })
    }

    /// How packets leave by a port id. The kernel resolves indexes in the calling thread's network namespace.
    pub fn set_port(&mut self, id: u32, egress: &Egress) -> Result<(), KernelError> {
        debug_assert!(id < PORT_IDS_MAX, "the compiler gives out ids below the limit");
        let device = egress.device;
        let words = [
            u64::from(device) | u64::from(egress.address_device) << 32,
            u64::from(egress.tags.outer) | u64::from(egress.tags.inner) << 32,
        ];
        self.port_links.set(id, words, 0).map_err(KernelError::map("PORT_LINKS"))?;
        for ports in &mut self.ports {
            ports.set(id, device, None, 0).map_err(|e| match e {
                XdpMapError::MapError(e) => KernelError::map("PORTS")(e),
                other @ XdpMapError::ChainedProgramNotSupported => {
                    KernelError::Port { id, device, source: Box::new(other) }
                }
            })?;
        }
        Ok(())
    }

    /// Takes a port id's device away: packets for it pass to the kernel.
    pub fn clear_port(&mut self, id: u32) -> Result<(), KernelError> {
        for ports in &self.ports_fds {
            sys::delete(ports.as_fd(), id, "PORTS")?;
        }
        self.port_links.set(id, [0, 0], 0).map_err(KernelError::map("PORT_LINKS"))
    }

    /// Where a port id leads, if it has a device.
    pub fn port(&self, id: u32) -> Result<Option<Egress>, KernelError> {
        let device = match self.ports[0].get(id, 0) {
            Ok(value) => value.if_index,
            Err(aya::maps::MapError::KeyNotFound) => return Ok(None),
            Err(e) => return Err(KernelError::map("PORTS")(e)),
        };
        // One of the two is not what was written: then neither is to be relied on.
        if self.ports[1].get(id, 0).ok().map(|value| value.if_index) != Some(device) {
            return Ok(None);
        }
        let [devices, tags] = self.port_links.get(&id, 0).map_err(KernelError::map("PORT_LINKS"))?;
        let tags = Tags { outer: low(tags), inner: low(tags >> 32) };
        Ok(Some(Egress { device, address_device: low(devices >> 32), tags }))
    }

    /// The port that takes frames with these VLAN identifiers (`Tags::vids`; 0: untagged ones) from a device; `None`: no port
    /// does.
    pub fn set_ingress(&mut self, device: u32, vids: u32, ingress: Option<&Ingress>) -> Result<(), KernelError> {
        if vids == 0 {
            let word = ingress.map_or(0, Ingress::encode);
            return self.devices.set(device, word, 0).map_err(KernelError::map("DEVICES"));
        }
        let key = u64::from(device) << 32 | u64::from(vids);
        let result = match ingress {
            Some(ingress) => self.vlans.insert(key, ingress.encode(), 0),
            None => match self.vlans.remove(&key) {
                Err(aya::maps::MapError::KeyNotFound) => Ok(()),
                result => result,
            },
        };
        result.map_err(KernelError::map("VLANS"))
    }

    /// The port that takes frames with these VLAN identifiers from a device, as [`Tables::set_ingress`] has them.
    pub fn ingress(&self, device: u32, vids: u32) -> Result<Option<Ingress>, KernelError> {
        if vids == 0 {
            return self.devices.get(&device, 0).map(Ingress::decode).map_err(KernelError::map("DEVICES"));
        }
        match self.vlans.get(&(u64::from(device) << 32 | u64::from(vids)), 0) {
            Ok(word) => Ok(Ingress::decode(word)),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(KernelError::map("VLANS")(error)),
        }
    }

    /// Device, VLAN and port of every port that takes tagged frames.
    pub fn vlans(&self) -> Result<Vec<(u32, u32, Option<Ingress>)>, KernelError> {
        self.vlans
            .iter()
            .map(|entry| {
                let (key, word) = entry.map_err(KernelError::map("VLANS"))?;
                Ok((low(key >> 32), low(key), Ingress::decode(word)))
            })
            .collect()
    }

    /// What packets to a next-hop id meet.
    pub fn set_reach(&mut self, id: u32, reach: &Reach) -> Result<(), KernelError> {
        debug_assert!(id < NEXT_HOP_IDS_MAX, "the compiler gives out ids below the limit");
        self.neighbours.set(id, reach.encode(), 0).map_err(KernelError::map("NEIGHBOURS"))
    }

    pub fn reach(&self, id: u32) -> Result<Reach, KernelError> {
        self.neighbours.get(&id, 0).map(Reach::decode).map_err(KernelError::map("NEIGHBOURS"))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low half of the word is meant")]
fn low(word: u64) -> u32 {
    word as u32
}
