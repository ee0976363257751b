//! The flow table beside the generation: how many flows it takes, and how many it holds.
//!
//! The programs write it. It outlives generations, programs and daemons; what an entry says is checked against the live
//! generation by every packet that meets it.

use std::os::fd::AsFd as _;

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use fib::service::{FlowKey, FlowWords};
use rustix::time::{ClockId, clock_gettime};

use super::counters::Count;
use super::pins::Pins;
use super::{KernelError, sys};

/// Seconds after a publish for which flows that the table does not know go where the generation before would have sent them.
pub const PREVIOUS_HONOURED_S: u64 = 900;
/// Seconds in which new flows may fill the whole table.
const TURNOVER_S: u64 = 5;
/// New flows a second that every CPU takes, however many there are.
const RATE_MIN: u64 = 1_000;
/// Entries that a flow takes at most.
const ENTRIES_A_FLOW: u64 = 2;

/// What the flow table holds and what it refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowTable {
    /// Entries that it has room for; a flow with `nat` takes two.
    pub capacity: u32,
    /// New flows a second that one CPU takes; 0: nothing was published yet.
    pub rate: u64,
    /// Flows that were begun since the table was made.
    pub begun: u64,
    /// Flows that were not taken because the rate was exceeded.
    pub refused: u64,
}

/// Sets the rate of new flows, and from when on the generation before is not honoured any more.
pub(super) fn set_limits(pins: &Pins) -> Result<(), KernelError> {
    let cpus = aya::util::nr_cpus().map_err(|(_, source)| KernelError::Cpus { source })?;
    let rate = (u64::from(capacity(pins)?) / ENTRIES_A_FLOW / TURNOVER_S / cpus as u64).max(RATE_MIN);
    let mut limits = limits(pins)?;
    limits.set(0, [rate, rate, now_s() + PREVIOUS_HONOURED_S], 0).map_err(KernelError::map("FLOW_LIMITS"))
}

/// The state of the flow table; `None` while no program was loaded.
pub fn table(pins: &Pins) -> Result<Option<FlowTable>, KernelError> {
    if sys::pinned(&pins.map("FLOWS"))?.is_none() {
        return Ok(None);
    }
    let [_, rate, _] = limits(pins)?.get(&0, 0).map_err(KernelError::map("FLOW_LIMITS"))?;
    let events = MapData::from_pin(pins.map("FLOW_EVENTS")).map_err(KernelError::map("FLOW_EVENTS"))?;
    let events: PerCpuArray<_, [u64; 2]> =
        PerCpuArray::try_from(Map::PerCpuArray(events)).map_err(KernelError::map("FLOW_EVENTS"))?;
    let counts = events.get(&0, 0).map_err(KernelError::map("FLOW_EVENTS"))?;
    let sum = |at: usize| counts.iter().map(|count| count[at]).sum();
    Ok(Some(FlowTable { capacity: capacity(pins)?, rate, begun: sum(0), refused: sum(1) }))
}

/// The open flow table, to look flows up in.
#[derive(Debug)]
pub struct Flows(HashMap<MapData, FlowKey, FlowWords>);

impl Flows {
    /// `None` while no program was loaded.
    pub fn open(pins: &Pins) -> Result<Option<Self>, KernelError> {
        if sys::pinned(&pins.map("FLOWS"))?.is_none() {
            return Ok(None);
        }
        let map = MapData::from_pin(pins.map("FLOWS")).map_err(KernelError::map("FLOWS"))?;
        HashMap::try_from(Map::LruHashMap(map)).map(|map| Some(Self(map))).map_err(KernelError::map("FLOWS"))
    }

    /// All zeros: there is none.
    pub fn get(&self, key: &FlowKey) -> FlowWords {
        self.0.get(key, 0).unwrap_or_default()
    }
}

/// Seconds of the clock that the flow table goes by.
pub fn now_s() -> u64 {
    clock_gettime(ClockId::Monotonic).tv_sec.unsigned_abs()
}

/// Packets and bytes to a service, and those of its answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCount {
    pub to: Count,
    pub answers: Count,
}

fn capacity(pins: &Pins) -> Result<u32, KernelError> {
    let flows = sys::pinned(&pins.map("FLOWS"))?.ok_or(KernelError::NoMap { map: "FLOWS" })?;
    sys::map_entries(flows.as_fd())
}

fn limits(pins: &Pins) -> Result<Array<MapData, [u64; 3]>, KernelError> {
    let map = MapData::from_pin(pins.map("FLOW_LIMITS")).map_err(KernelError::map("FLOW_LIMITS"))?;
    Array::try_from(Map::Array(map)).map_err(KernelError::map("FLOW_LIMITS"))
}
