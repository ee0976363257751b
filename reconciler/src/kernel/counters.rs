//! Packets and bytes by reason, summed over CPUs.

use std::borrow::Borrow;

use aya::maps::{Map, MapData, PerCpuArray};
use fib::Reason;

use super::KernelError;
use super::pins::Pins;

/// What one (verdict, reason) counter holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// Counters of live traffic since the maps were made, in the order of [`Reason::ALL`].
pub fn read(pins: &Pins) -> Result<Vec<(Reason, Count)>, KernelError> {
    let map = MapData::from_pin(pins.map("COUNTERS")).map_err(KernelError::map("COUNTERS"))?;
    let map = PerCpuArray::try_from(Map::PerCpuArray(map)).map_err(KernelError::map("COUNTERS"))?;
    Ok(Reason::ALL.iter().copied().zip(packets(&map)?).collect())
}

/// Every known reason's count.
pub(super) fn packets<T: Borrow<MapData>>(map: &PerCpuArray<T, [u64; 2]>) -> Result<Vec<Count>, KernelError> {
    Reason::ALL
        .iter()
        .map(|reason| {
            let values = map.get(&(*reason as u32), 0).map_err(KernelError::map("COUNTERS"))?;
            Ok(values.iter().fold(Count::default(), |sum, [packets, bytes]| Count {
                packets: sum.packets + packets,
                bytes: sum.bytes + bytes,
            }))
        })
        .collect()
}
