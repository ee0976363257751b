//! The listener: asks the program for sampled events of dropped and passed packets, and takes them out of its ring buffer.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::Duration;

use aya::maps::{Array, Map, MapData, PerCpuArray, RingBuf};
use fib::event::{Event, Sampling, SamplingWords};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::pins::Pins;
use super::{KernelError, sys};

/// How long a wish holds unless it is renewed: so long does a listener that was killed cost something.
pub const WISH_HOLDS: Duration = Duration::from_secs(3);

/// Events taken at once, so that a flood leaves time for other things.
const BATCH: usize = 4096;

/// The only listener of a node. Sampling ends when it is dropped, or [`WISH_HOLDS`] after it was killed.
pub struct Listener {
    _lock: File,
    events: AsyncFd<RingBuf<MapData>>,
    sampling: Array<MapData, SamplingWords>,
    lost: PerCpuArray<MapData, u64>,
    /// Id of the ring buffer.
    id: u32,
    lost_before: u64,
    /// The last batch was full: there may be more.
    more: bool,
}

impl Listener {
    /// Opens the pinned maps and throws away what an earlier listener left. Needs a tokio runtime with I/O; refused while
    /// another process listens.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        const EVENTS: &str = "EVENTS";
        let Some(pinned) = sys::pinned(&pins.map(EVENTS))? else { return Err(KernelError::NoMap { map: EVENTS }) };
        let (id, _) = sys::map_facts(pinned.as_fd())?;
        let lock = pins.lock_events()?;
        let open = |name: &'static str| MapData::from_pin(pins.map(name)).map_err(KernelError::map(name));
        let ring = RingBuf::try_from(Map::RingBuf(open(EVENTS)?)).map_err(KernelError::map(EVENTS))?;
        let lost = PerCpuArray::try_from(Map::PerCpuArray(open("EVENTS_LOST")?));
        // SAFETY: the ring buffer owns its descriptor, which is the same one for as long as it lives.
        let events = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        let events = events.map_err(|e| KernelError::Syscall {
            call: "epoll_ctl",
            object: EVENTS.to_owned(),
            source: e.into(),
        })?;
        let mut listener = Self {
            _lock: lock,
            events,
            sampling: Array::try_from(Map::Array(open("SAMPLING")?)).map_err(KernelError::map("SAMPLING"))?,
            lost: lost.map_err(KernelError::map("EVENTS_LOST"))?,
            id,
            lost_before: 0,
            more: false,
        };
        listener.set(&Sampling::default())?;
        while !listener.take().is_empty() {}
        listener.lost_before = listener.lost_ever()?;
        Ok(listener)
    }

    /// Says which packets are wanted, for [`WISH_HOLDS`]; `until_ns` is set here.
    pub fn wish(&mut self, sampling: &Sampling) -> Result<(), KernelError> {
        let holds = u64::try_from(WISH_HOLDS.as_nanos()).unwrap_or(u64::MAX);
        self.set(&Sampling { until_ns: nanoseconds(ClockId::Monotonic).saturating_add(holds), ..*sampling })
    }

    fn set(&mut self, sampling: &Sampling) -> Result<(), KernelError> {
        self.sampling.set(0, sampling.encode(), 0).map_err(KernelError::map("SAMPLING"))
    }

    /// Waits until there may be events.
    pub async fn ready(&mut self) -> Result<(), KernelError> {
        if self.more {
            return Ok(());
        }
        let guard = self.events.readable().await;
        let failed = |source| KernelError::Syscall { call: "epoll_wait", object: "EVENTS".to_owned(), source };
        // Cleared before the events are taken: one that comes meanwhile is taken too, or wakes again.
        guard.map_err(failed)?.clear_ready();
        Ok(())
    }

    /// Takes the events that are there, oldest first, each with the start of its frame.
    pub fn take(&mut self) -> Vec<(Event, Vec<u8>)> {
        let mut taken = Vec::new();
        let ring = self.events.get_mut();
        while taken.len() < BATCH
            && let Some(item) = ring.next()
        {
            if let Some((event, frame)) = Event::decode(&item) {
                taken.push((event, frame.to_vec()));
            }
        }
        self.more = taken.len() == BATCH;
        taken
    }

    /// Events that found no room since the listener was opened.
    pub fn lost(&self) -> Result<u64, KernelError> {
        Ok(self.lost_ever()?.saturating_sub(self.lost_before))
    }

    fn lost_ever(&self) -> Result<u64, KernelError> {
        let lost = self.lost.get(&0, 0).map_err(KernelError::map("EVENTS_LOST"))?;
        Ok(lost.iter().sum())
    }

    /// Whether the program still writes where this listener reads: not after a detach.
    pub fn is_attached(&self, pins: &Pins) -> Result<bool, KernelError> {
        let Some(events) = sys::pinned(&pins.map("EVENTS"))? else { return Ok(false) };
        Ok(sys::map_facts(events.as_fd())?.0 == self.id)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = self.set(&Sampling::default()) {
            tracing::warn!(%error, "sampling was not switched off; it ends by itself in seconds");
        }
    }
}

/// Milliseconds since 1970 of a point of the monotonic clock, as the clocks stand now.
pub fn unix_ms(monotonic_ns: u64) -> u64 {
    let ago = nanoseconds(ClockId::Monotonic).saturating_sub(monotonic_ns);
    nanoseconds(ClockId::Realtime).saturating_sub(ago) / 1_000_000
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or_default()
}
