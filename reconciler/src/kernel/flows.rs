//! The flow table beside the generation, and that of half-open flows: how many flows they take, and how many they hold.
//!
//! The programs write them. They outlive generations, programs and daemons; what an entry says is checked against the live
//! generation by every packet that meets it.

use std::os::fd::AsFd as _;

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use fib::service::{FlowKey, FlowWords, HalfOpenWords};
use rustix::time::{ClockId, clock_gettime};

use super::counters::Count;
use super::pins::Pins;
use super::{KernelError, sys};

/// Seconds after a publish for which flows that the table does not know go where the generation before would have sent them.
pub const PREVIOUS_HONOURED_S: u64 = 900;
/// Seconds that a half-open flow has at least until others push it out: time for a SYN-ACK that is sent again after one (RFC 6298
/// section 2.1).
const HANDSHAKE_S: u64 = 2;
/// New flows a second that every CPU takes, however many there are.
const RATE_MIN: u64 = 1_000;
/// Entries that a flow takes at most.
const ENTRIES_A_FLOW: u64 = 2;

/// What the flow table holds and what it refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowTable {
    /// Entries that it has room for; a flow with `nat` takes two.
    pub capacity: u32,
    /// The same of the table of half-open flows; 0: the program is of a version that has none.
    pub half_open_capacity: u32,
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
    let rate = (u64::from(capacity(pins, "HALF_OPEN")?) / ENTRIES_A_FLOW / HANDSHAKE_S / cpus as u64).max(RATE_MIN);
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
    let half_open_capacity = match capacity(pins, "HALF_OPEN") {
        Err(KernelError::NoMap { .. }) => 0,
        capacity => capacity?,
    };
    let capacity = capacity(pins, "FLOWS")?;
    Ok(Some(FlowTable { capacity, half_open_capacity, rate, begun: sum(0), refused: sum(1) }))
}

/// The open flow tables, to look flows up in.
#[derive(Debug)]
pub struct Flows {
    established: HashMap<MapData, FlowKey, FlowWords>,
    /// `None`: the program is of a version that has none.
    half_open: Option<HashMap<MapData, FlowKey, HalfOpenWords>>,
}

impl Flows {
    /// `None` while no program was loaded.
    pub fn open(pins: &Pins) -> Result<Option<Self>, KernelError> {
        let Some(established) = table_of(pins, "FLOWS")? else { return Ok(None) };
        Ok(Some(Self { established, half_open: table_of(pins, "HALF_OPEN")? }))
    }

    /// Of an established flow; all zeros: there is none.
    pub fn get(&self, key: &FlowKey) -> FlowWords {
        self.established.get(key, 0).unwrap_or_default()
    }

    /// Of a half-open flow; all zeros: there is none.
    pub fn half_open(&self, key: &FlowKey) -> HalfOpenWords {
        self.half_open.as_ref().and_then(|flows| flows.get(key, 0).ok()).unwrap_or_default()
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

/// `None`: no program has made it.
fn table_of<W: aya::Pod>(pins: &Pins, name: &'static str) -> Result<Option<HashMap<MapData, FlowKey, W>>, KernelError> {
    if sys::pinned(&pins.map(name))?.is_none() {
        return Ok(None);
    }
    let map = MapData::from_pin(pins.map(name)).map_err(KernelError::map(name))?;
    HashMap::try_from(Map::LruHashMap(map)).map(Some).map_err(KernelError::map(name))
}

fn capacity(pins: &Pins, map: &'static str) -> Result<u32, KernelError> {
    let flows = sys::pinned(&pins.map(map))?.ok_or(KernelError::NoMap { map })?;
    sys::map_entries(flows.as_fd())
}

fn limits(pins: &Pins) -> Result<Array<MapData, [u64; 3]>, KernelError> {
    let map = MapData::from_pin(pins.map("FLOW_LIMITS")).map_err(KernelError::map("FLOW_LIMITS"))?;
    Array::try_from(Map::Array(map)).map_err(KernelError::map("FLOW_LIMITS"))
}
