//! Packets and bytes by reason, by policy and by next hop, summed over CPUs.
//!
//! The program counts every packet once: one that it forwards by the id of its next hop, every other one by its reason, and
//! by the id of the policy that it met. What was forwarded in all, and for which policy, is the sum over next hops, each of
//! which belongs to one policy ([`Owners`]). Ids outlive generations, so counts go on over every publish, restart and
//! version of the program.
//!
//! A next hop that no generation of the kernel knows any more leaves its count behind ([`Objects::carry`]): it stays in
//! both sums, and its id is free for another object. `CARRIED` holds what was left behind, by policy id; at 0, which is no
//! policy's id, that of all. Each count moves by way of `CARRYING`, which says what the other maps will hold: whoever is
//! killed on the way leaves there what the next one completes, and readers go by it. So no packet counts twice or not at
//! all; a reader without the lock can see a count that is moving at this moment in one place too many or too few.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::os::fd::AsFd as _;

use aya::maps::{Array, Map, MapData, PerCpuArray, PerCpuValues};
use fib::Reason;

use crate::compile::View;

use super::KernelError;
use super::flows::ServiceCount;
use super::pins::Pins;
use super::{restore, sys};

/// What one counter holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

impl std::ops::Add for Count {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

impl std::iter::Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, count| sum + count)
    }
}

type Counters<T> = PerCpuArray<T, [u64; 2]>;

const FILTER_RULES: &str = "FILTER_COUNTERS";
const SERVICES: &str = "SERVICE_COUNTERS";
const BACKENDS: &str = "BACKEND_COUNTERS";

/// Ids of the policies and next hops that generations know, and whose each next hop is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// Policy by next hop.
    next_hops: BTreeMap<u32, u32>,
}

impl Owners {
    /// Of several generations. An id belongs to one object in all of them.
    pub fn of<'v>(views: impl IntoIterator<Item = &'v View<'v>>) -> Self {
        let mut owners = Self::default();
        for view in views {
            let policies: BTreeMap<&str, u32> = view.policies().map(|policy| (policy.name, policy.id)).collect();
            let owned = view.next_hops().map(|hop| (hop.id, policies.get(hop.policy).copied().unwrap_or_default()));
            owners.next_hops.extend(owned);
        }
        owners
    }

    /// Next hops and their policies that `others` does not know.
    pub fn without<'o>(&'o self, others: &'o Self) -> impl Iterator<Item = (u32, u32)> + 'o {
        self.next_hops.iter().filter(|(id, _)| !others.next_hops.contains_key(id)).map(|(id, policy)| (*id, *policy))
    }
}

/// Counters of the candidate's test packets, in the order of [`Reason::ALL`]; forwarded ones are not among them.
pub(super) fn packets<T: Borrow<MapData>>(map: &Counters<T>) -> Result<Vec<Count>, KernelError> {
    Reason::ALL.iter().map(|reason| sum(map, "COUNTERS", *reason as u32)).collect()
}

/// The open counters of live traffic since the maps were made.
pub struct Objects {
    reasons: Counters<MapData>,
    /// Packets that met a policy and were not forwarded.
    policies: Counters<MapData>,
    next_hops: Counters<MapData>,
    /// This and what follows is there once a program has counted it: nodes of which no image had filters or services have none.
    filter_rules: Option<PerCpuArray<MapData, [u64; 4]>>,
    /// Packets to services and their answers.
    services: Option<PerCpuArray<MapData, [u64; 4]>>,
    /// Packets that were sent to backends.
    backends: Option<Counters<MapData>>,
    carried: Array<MapData, [u64; 2]>,
    carrying: Array<MapData, CarryingWords>,
}

/// What the counters will be when a next hop's count has been carried: all values, no differences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Carrying {
    /// The next hop whose counter starts anew; 0: nothing is being carried.
    next_hop: u32,
    /// 0: the policy is gone too.
    policy: u32,
    all: Count,
    of_policy: Count,
}

/// [`Carrying`] as the kernel's array holds it.
type CarryingWords = [u64; 5];

impl Carrying {
    const NOTHING: CarryingWords = [0; 5];

    fn encode(self) -> CarryingWords {
        [
            u64::from(self.next_hop) | u64::from(self.policy) << 32,
            self.all.packets,
            self.all.bytes,
            self.of_policy.packets,
            self.of_policy.bytes,
        ]
    }

    #[expect(clippy::cast_possible_truncation, reason = "two ids in one word")]
    fn decode(words: CarryingWords) -> Option<Self> {
        let carrying = Self {
            next_hop: words[0] as u32,
            policy: (words[0] >> 32) as u32,
            all: Count { packets: words[1], bytes: words[2] },
            of_policy: Count { packets: words[3], bytes: words[4] },
        };
        (carrying.next_hop != 0).then_some(carrying)
    }
}

/// Where `CARRIED` holds the counts of all next hops that are gone.
const ALL: u32 = 0;

impl Objects {
    /// `None` while no program that counts them has been loaded; the first one pins them one by one.
    pub fn open(pins: &Pins) -> Result<Option<Self>, KernelError> {
        let names = ["CARRYING", "CARRIED", "COUNTERS", "NEXT_HOP_COUNTERS", "POLICY_STAYED"];
        for name in names.into_iter().chain(["FLOW_EVENTS", "FLOW_LIMITS"]) {
            match restore::map(pins, name) {
                Err(KernelError::NoMap { .. }) => return Ok(None),
                result => drop(result?),
            }
        }
        Ok(Some(Self {
            reasons: open(pins, "COUNTERS")?,
            policies: open(pins, "POLICY_STAYED")?,
            next_hops: open(pins, "NEXT_HOP_COUNTERS")?,
            filter_rules: open_of_stage(pins, FILTER_RULES)?,
            services: open_of_stage(pins, SERVICES)?,
            backends: open_of_stage(pins, BACKENDS)?,
            carried: open_array(pins, "CARRIED")?,
            carrying: open_array(pins, "CARRYING")?,
        }))
    }

    /// Counts by reason, in the order of [`Reason::ALL`]. `owners` knows every generation of the kernel.
    pub fn reasons(&self, owners: &Owners) -> Result<Vec<(Reason, Count)>, KernelError> {
        let count = |reason| {
            let count = if reason == Reason::Forwarded {
                let sent = owners.next_hops.keys().map(|id| self.next_hop(*id)).sum::<Result<Count, _>>()?;
                sent + self.carried(ALL)?
            } else {
                sum(&self.reasons, "COUNTERS", reason as u32)?
            };
            Ok((reason, count))
        };
        Reason::ALL.iter().copied().map(count).collect()
    }

    /// Packets that met a route of the policy with this id, whatever became of them.
    pub fn policy(&self, id: u32, owners: &Owners) -> Result<Count, KernelError> {
        let own = owners.next_hops.iter().filter(|(_, policy)| **policy == id);
        let sent = own.map(|(next_hop, _)| self.next_hop(*next_hop)).sum::<Result<Count, _>>()?;
        Ok(sent + self.carried(id)? + sum(&self.policies, "POLICY_STAYED", id)?)
    }

    /// Packets that were sent to the next hop with this id.
    pub fn next_hop(&self, id: u32) -> Result<Count, KernelError> {
        if self.carrying()?.is_some_and(|carrying| carrying.next_hop == id) {
            return Ok(Count::default());
        }
        sum(&self.next_hops, "NEXT_HOP_COUNTERS", id)
    }

    /// Packets that the filter rule with this id matched, and those among them that its limit dropped.
    pub fn filter_rule(&self, id: u32) -> Result<(Count, Count), KernelError> {
        let Some(map) = &self.filter_rules else { return Ok(Default::default()) };
        let values = map.get(&id, 0).map_err(KernelError::map(FILTER_RULES))?;
        let count = |at: usize| values.iter().map(|words| Count { packets: words[at], bytes: words[at + 1] }).sum();
        Ok((count(0), count(2)))
    }

    /// Starts a filter rule's counters anew. No generation that packets meet may use the id, and the caller holds the lock.
    pub fn clear_filter_rule(&mut self, id: u32) -> Result<(), KernelError> {
        self.filter_rules.as_mut().map_or(Ok(()), |map| clear(map, FILTER_RULES, id))
    }

    /// Packets to the service with this id, whatever became of them, and its answers.
    pub fn service(&self, id: u32) -> Result<ServiceCount, KernelError> {
        let Some(map) = &self.services else { return Ok(ServiceCount::default()) };
        let values = map.get(&id, 0).map_err(KernelError::map(SERVICES))?;
        let sum = |at: usize| values.iter().map(|v| Count { packets: v[at], bytes: v[at + 1] }).sum();
        Ok(ServiceCount { to: sum(0), answers: sum(2) })
    }

    /// Packets that were sent to the backend with this id.
    pub fn backend(&self, id: u32) -> Result<Count, KernelError> {
        self.backends.as_ref().map_or(Ok(Count::default()), |map| sum(map, BACKENDS, id))
    }

    /// Starts a service's counters anew; no generation that packets meet may use the id.
    pub fn clear_service(&mut self, id: u32) -> Result<(), KernelError> {
        self.services.as_mut().map_or(Ok(()), |map| clear(map, SERVICES, id))
    }

    /// Starts a backend's counter anew, as above.
    pub fn clear_backend(&mut self, id: u32) -> Result<(), KernelError> {
        self.backends.as_mut().map_or(Ok(()), |map| clear(map, BACKENDS, id))
    }

    fn carried(&self, policy: u32) -> Result<Count, KernelError> {
        match self.carrying()? {
            Some(carrying) if policy == ALL => return Ok(carrying.all),
            Some(carrying) if policy == carrying.policy => return Ok(carrying.of_policy),
            _ => {}
        }
        let [packets, bytes] = self.carried.get(&policy, 0).map_err(KernelError::map("CARRIED"))?;
        Ok(Count { packets, bytes })
    }

    fn carrying(&self) -> Result<Option<Carrying>, KernelError> {
        self.carrying.get(&0, 0).map(Carrying::decode).map_err(KernelError::map("CARRYING"))
    }

    /// Starts a policy's counters anew. No generation that packets meet may use the id, and the caller holds the lock.
    pub fn clear_policy(&mut self, id: u32) -> Result<(), KernelError> {
        self.complete()?;
        clear(&mut self.policies, "POLICY_STAYED", id)?;
        self.carried.set(id, [0, 0], 0).map_err(KernelError::map("CARRIED"))
    }

    /// Starts a next hop's counter anew, and adds what it held to what `policy` has left behind (0: the policy is gone).
    /// No generation that packets meet may use the id, and the caller holds the lock.
    pub fn carry(&mut self, next_hop: u32, policy: u32) -> Result<(), KernelError> {
        self.complete()?;
        let count = self.next_hop(next_hop)?;
        if count == Count::default() {
            return Ok(());
        }
        let of_policy = if policy == 0 { Count::default() } else { self.carried(policy)? + count };
        self.say(Carrying { next_hop, policy, all: self.carried(ALL)? + count, of_policy }.encode())?;
        self.complete()
    }

    /// Carries what was said to be carried; does nothing new where that is done already.
    fn complete(&mut self) -> Result<(), KernelError> {
        let Some(Carrying { next_hop, policy, all, of_policy }) = self.carrying()? else { return Ok(()) };
        let failed = || KernelError::map("CARRIED");
        self.carried.set(ALL, [all.packets, all.bytes], 0).map_err(failed())?;
        if policy != 0 {
            self.carried.set(policy, [of_policy.packets, of_policy.bytes], 0).map_err(failed())?;
        }
        clear(&mut self.next_hops, "NEXT_HOP_COUNTERS", next_hop)?;
        self.say(Carrying::NOTHING)
    }

    /// One update of the map: a process that is killed has made it or not.
    fn say(&mut self, words: CarryingWords) -> Result<(), KernelError> {
        self.carrying.set(0, words, 0).map_err(KernelError::map("CARRYING"))
    }
}

fn open_array<T: aya::Pod>(pins: &Pins, name: &'static str) -> Result<Array<MapData, T>, KernelError> {
    let map = MapData::from_fd(restore::map(pins, name)?).map_err(KernelError::map(name))?;
    Array::try_from(Map::Array(map)).map_err(KernelError::map(name))
}

/// `None` where the program has the map only in name, with one entry, or where no program has it.
fn open_of_stage<T: aya::Pod>(pins: &Pins, name: &'static str) -> Result<Option<PerCpuArray<MapData, T>>, KernelError> {
    let map = match restore::map(pins, name) {
        Err(KernelError::NoMap { .. }) => return Ok(None),
        map => map?,
    };
    if sys::map_entries(map.as_fd())? == 1 {
        return Ok(None);
    }
    let map = MapData::from_fd(map).map_err(KernelError::map(name))?;
    PerCpuArray::try_from(Map::PerCpuArray(map)).map(Some).map_err(KernelError::map(name))
}

fn open(pins: &Pins, name: &'static str) -> Result<Counters<MapData>, KernelError> {
    let map = MapData::from_fd(restore::map(pins, name)?).map_err(KernelError::map(name))?;
    PerCpuArray::try_from(Map::PerCpuArray(map)).map_err(KernelError::map(name))
}

fn sum<T: Borrow<MapData>>(map: &Counters<T>, name: &'static str, id: u32) -> Result<Count, KernelError> {
    let values = map.get(&id, 0).map_err(KernelError::map(name))?;
    Ok(values.iter().map(|&[packets, bytes]| Count { packets, bytes }).sum())
}

fn clear<const WORDS: usize>(
    map: &mut PerCpuArray<MapData, [u64; WORDS]>,
    name: &'static str,
    id: u32,
) -> Result<(), KernelError>
where
    [u64; WORDS]: aya::Pod,
{
    let failed = |source| KernelError::Cpus { source };
    let cpus = aya::util::nr_cpus().map_err(|(_, source)| failed(source))?;
    let zeros = PerCpuValues::try_from(vec![[0; WORDS]; cpus]).map_err(failed)?;
    map.set(id, zeros, 0).map_err(KernelError::map(name))
}
