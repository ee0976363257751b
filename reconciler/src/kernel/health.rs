//! Health of backends beside the generation, by backend id: what the daemon's checks found, and whether packets come.
//!
//! Zero says that nothing was found yet, and packets come: without a daemon nothing changes. The program looks at the lowest bit
//! and the second byte; the others keep over restarts of the daemon what it had found.

use aya::maps::{Array, Map, MapData};
use fib::service::{BACKEND_AWAY_AT, BACKEND_DOWN};

use super::pins::Pins;
use super::{KernelError, restore};

/// What is known of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// Not checked yet.
    #[default]
    Unknown,
    Healthy,
    Unhealthy,
}

impl Health {
    /// As command output writes it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// A backend's entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub health: Health,
    /// It gets no packets. Not all that are unhealthy are: where too few would be left, all are used.
    pub is_down: bool,
    /// So many of 256 new flows go to others, because it is slow.
    pub away: u8,
}

const HEALTHY: u32 = 1 << 1;
const UNHEALTHY: u32 = 1 << 2;

impl Standing {
    /// As the packet path reads it.
    pub const fn encode(self) -> u32 {
        let health = match self.health {
            Health::Unknown => 0,
            Health::Healthy => HEALTHY,
            Health::Unhealthy => UNHEALTHY,
        };
        health | (self.away as u32) << BACKEND_AWAY_AT | if self.is_down { BACKEND_DOWN } else { 0 }
    }

    const fn decode(word: u32) -> Self {
        let health = match (word & HEALTHY != 0, word & UNHEALTHY != 0) {
            (_, true) => Health::Unhealthy,
            (true, false) => Health::Healthy,
            (false, false) => Health::Unknown,
        };
        let [_, away, ..] = word.to_le_bytes();
        Self { health, is_down: word & BACKEND_DOWN != 0, away }
    }
}

/// The open table.
pub struct Backends(Array<MapData, u32>);

const NAME: &str = "BACKEND_HEALTH";

impl Backends {
    /// Opens the pinned table; it exists once the program has been loaded.
    pub fn open(pins: &Pins) -> Result<Self, KernelError> {
        let map = MapData::from_fd(restore::map(pins, NAME)?).map_err(KernelError::map(NAME))?;
        Array::try_from(Map::Array(map)).map(Self).map_err(KernelError::map(NAME))
    }

    pub fn get(&self, id: u32) -> Result<Standing, KernelError> {
        self.0.get(&id, 0).map(Standing::decode).map_err(KernelError::map(NAME))
    }

    pub fn set(&mut self, id: u32, standing: Standing) -> Result<(), KernelError> {
        self.0.set(id, standing.encode(), 0).map_err(KernelError::map(NAME))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_zero_and_everything_comes_back() {
        assert_eq!(Standing::default().encode(), 0);
        for health in [Health::Unknown, Health::Healthy, Health::Unhealthy] {
            for (is_down, away) in [(false, 0), (true, 0), (false, 1), (true, 255)] {
                let standing = Standing { health, is_down, away };
                assert_eq!(Standing::decode(standing.encode()), standing);
                assert_eq!(
                    fib::service::passes_on(standing.encode(), away.into()),
                    is_down,
                    "from the first that it keeps"
                );
            }
        }
    }
}
