//! Packets and bytes by reason, by policy and by next hop, summed over CPUs.
//!
//! Policies and next hops are counted by their ids, which outlive generations: counters go on over every publish, restart
//! and version of the program. An id that passes to another object is cleared first ([`Objects::clear_policy`]).

use std::borrow::Borrow;

use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use fib::Reason;

use super::pins::Pins;
use super::{KernelError, sys};

/// What one counter holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

type Counters<T> = PerCpuArray<T, [u64; 2]>;

/// Counters of live traffic since the maps were made, in the order of [`Reason::ALL`].
pub fn read(pins: &Pins) -> Result<Vec<(Reason, Count)>, KernelError> {
    let map = open(pins, "COUNTERS")?;
    Ok(Reason::ALL.iter().copied().zip(packets(&map)?).collect())
}

/// Every known reason's count.
pub(super) fn packets<T: Borrow<MapData>>(map: &Counters<T>) -> Result<Vec<Count>, KernelError> {
    Reason::ALL.iter().map(|reason| sum(map, "COUNTERS", *reason as u32)).collect()
}

/// The open counters of policies and next hops.
pub struct Objects {
    policies: Counters<MapData>,
    next_hops: Counters<MapData>,
}

impl Objects {
    /// `None` while no program that counts them has been loaded.
    pub fn open(pins: &Pins) -> Result<Option<Self>, KernelError> {
        if sys::pinned(&pins.map("NEXT_HOP_COUNTERS"))?.is_none() {
            return Ok(None);
        }
        Ok(Some(Self { policies: open(pins, "POLICY_COUNTERS")?, next_hops: open(pins, "NEXT_HOP_COUNTERS")? }))
    }

    /// Packets that met a route of the policy with this id, whatever became of them.
    pub fn policy(&self, id: u32) -> Result<Count, KernelError> {
        sum(&self.policies, "POLICY_COUNTERS", id)
    }

    /// Packets that were sent to the next hop with this id.
    pub fn next_hop(&self, id: u32) -> Result<Count, KernelError> {
        sum(&self.next_hops, "NEXT_HOP_COUNTERS", id)
    }

    /// Starts a policy's counter anew. No generation that packets meet may use the id.
    pub fn clear_policy(&mut self, id: u32) -> Result<(), KernelError> {
        clear(&mut self.policies, "POLICY_COUNTERS", id)
    }

    /// Starts a next hop's counter anew. No generation that packets meet may use the id.
    pub fn clear_next_hop(&mut self, id: u32) -> Result<(), KernelError> {
        clear(&mut self.next_hops, "NEXT_HOP_COUNTERS", id)
    }
}

fn open(pins: &Pins, name: &'static str) -> Result<Counters<MapData>, KernelError> {
    let map = MapData::from_pin(pins.map(name)).map_err(KernelError::map(name))?;
    PerCpuArray::try_from(Map::PerCpuArray(map)).map_err(KernelError::map(name))
}

fn sum<T: Borrow<MapData>>(map: &Counters<T>, name: &'static str, id: u32) -> Result<Count, KernelError> {
    let values = map.get(&id, 0).map_err(KernelError::map(name))?;
    Ok(values.iter().fold(Count::default(), |sum, [packets, bytes]| Count {
        packets: sum.packets + packets,
        bytes: sum.bytes + bytes,
    }))
}

fn clear(map: &mut Counters<MapData>, name: &'static str, id: u32) -> Result<(), KernelError> {
    let failed = |source| KernelError::Cpus { source };
    let cpus = aya::util::nr_cpus().map_err(|(_, source)| failed(source))?;
    let zeros = PerCpuValues::try_from(vec![[0, 0]; cpus]).map_err(failed)?;
    map.set(id, zeros, 0).map_err(KernelError::map(name))
}
