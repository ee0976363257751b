//! Runtime tables beside the generation: egress devices by port id, device MACs, neighbours by next-hop id.
//!
//! They hold what changes without a commit. Every value is written in words that the program reads whole.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::xdp::{DevMap, XdpMapError};
use aya::maps::{Array, Map, MapData};
use fib::Neighbour;
use fib::layout::{NEXT_HOP_IDS_MAX, PORT_IDS_MAX};

use super::pins::Pins;
use super::{KernelError, sys};

/// Devices whose kernel index is at or above this cannot carry a port.
pub const DEVICE_INDEX_MAX: u32 = 1 << 16;

/// The open tables of one node.
pub struct Tables {
    ports: DevMap<MapData>,
    /// The same map, for the deletion that aya does not have.
    ports_fd: OwnedFd,
    devices: Array<MapData, u64>,
    neighbours: Array<MapData, [u64; 2]>,
}

impl Tables {
    /// Opens the pinned tables; they exist once the program has been loaded.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        let open = |name: &'static str| MapData::from_pin(pins.map(name)).map_err(KernelError::map(name));
        Ok(Self {
            ports: DevMap::try_from(Map::DevMap(open("PORTS")?)).map_err(KernelError::map("PORTS"))?,
            ports_fd: sys::pinned(&pins.map("PORTS"))?.ok_or(KernelError::NoMap { map: "PORTS" })?,
            devices: Array::try_from(Map::Array(open("DEVICES")?)).map_err(KernelError::map("DEVICES"))?,
            neighbours: Array::try_from(Map::Array(open("NEIGHBOURS")?)).map_err(KernelError::map("NEIGHBOURS"))?,
        })
    }

    /// Which device a port id leaves by. The kernel resolves the index in the calling thread's network namespace.
    pub fn set_port(&mut self, id: u32, device: u32) -> Result<(), KernelError> {
        debug_assert!(id < PORT_IDS_MAX, "the compiler gives out ids below the limit");
        self.ports.set(id, device, None, 0).map_err(|e| match e {
            XdpMapError::MapError(e) => KernelError::map("PORTS")(e),
            other @ XdpMapError::ChainedProgramNotSupported => {
                KernelError::Port { id, device, source: Box::new(other) }
            }
        })
    }

    /// Takes a port id's device away: packets for it pass to the kernel.
    pub fn clear_port(&mut self, id: u32) -> Result<(), KernelError> {
        sys::delete(self.ports_fd.as_fd(), id, "PORTS")
    }

    /// Device of a port id, if it has one.
    pub fn port(&self, id: u32) -> Result<Option<u32>, KernelError> {
        match self.ports.get(id, 0) {
            Ok(value) => Ok(Some(value.if_index)),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(e) => Err(KernelError::map("PORTS")(e)),
        }
    }

    /// The MAC that frames to this device carry; 0 forgets the device.
    pub fn set_device(&mut self, device: u32, mac: u64) -> Result<(), KernelError> {
        self.devices.set(device, mac, 0).map_err(KernelError::map("DEVICES"))
    }

    pub fn device(&self, device: u32) -> Result<u64, KernelError> {
        self.devices.get(&device, 0).map_err(KernelError::map("DEVICES"))
    }

    /// The neighbour of a next-hop id; `None` forgets it, so that the kernel's own tables are asked.
    pub fn set_neighbour(&mut self, id: u32, neighbour: Option<&Neighbour>) -> Result<(), KernelError> {
        debug_assert!(id < NEXT_HOP_IDS_MAX, "the compiler gives out ids below the limit");
        let words = neighbour.map_or([0, 0], Neighbour::encode);
        self.neighbours.set(id, words, 0).map_err(KernelError::map("NEIGHBOURS"))
    }

    pub fn neighbour(&self, id: u32) -> Result<Option<Neighbour>, KernelError> {
        let words = self.neighbours.get(&id, 0).map_err(KernelError::map("NEIGHBOURS"))?;
        Ok(Neighbour::decode(words))
    }
}
