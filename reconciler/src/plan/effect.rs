//! The effect of a plan on packets: how many addresses meet another fate, counted exactly.
//!
//! Both longest-prefix structures are flattened into runs of equal fate, in address order; one sweep over both compares
//! them. Linear in the number of routes.

use std::net::IpAddr;

use super::meaning::{Fate, Meaning};
use crate::compile::view::{RouteView, View};
use crate::policy::Prefix;

/// Units whose fate changes; a unit counts in every way that any of its addresses changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// In any way.
    pub changed: u128,
    /// No route before.
    pub gained: u128,
    /// No route afterwards.
    pub lost: u128,
    /// Dropped afterwards, not before.
    pub dropped: u128,
    /// Other next hops, other proportions, or between forwarding, the kernel and the node itself.
    pub rerouted: u128,
}

/// What changes for packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    pub ipv4_addresses: Count,
    /// In units of /64.
    pub ipv6_prefixes: Count,
    /// Single addresses, modulo 2^128: a whole family is 0 here, and 2^64 of `ipv6_prefixes`.
    pub ipv6_addresses: Count,
}

type Side<'s, 'a> = (&'s View<'a>, &'s [Meaning]);

pub(super) fn between(before: Option<Side>, after: Side) -> Effect {
    let v4 = |side: Option<Side>| runs::<32>(side, |view| view.routes_v4().collect(), IpAddr::is_ipv4);
    let v6 = |side: Option<Side>| runs::<128>(side, |view| view.routes_v6().collect(), IpAddr::is_ipv6);
    let ipv4_addresses = sweep(&v4(before), &v4(Some(after)), u128::from(u32::MAX), 0);
    let (before, after) = (v6(before), v6(Some(after)));
    Effect {
        ipv4_addresses,
        ipv6_prefixes: sweep(&before, &after, u128::MAX, 64),
        ipv6_addresses: sweep(&before, &after, u128::MAX, 0),
    }
}

/// A run of addresses of equal fate starts here and lasts until the next one.
type Run = (u128, Fate);

fn runs<'a, const BITS: u32>(
    side: Option<Side<'_, 'a>>,
    routes: impl Fn(&View<'a>) -> Vec<RouteView<'a>>,
    of_family: impl Fn(&IpAddr) -> bool,
) -> Vec<Run> {
    let Some((view, meanings)) = side else { return vec![(0, Fate::NoRoute)] };
    let mut ranges: Vec<(u128, u128, Fate)> = routes(view)
        .into_iter()
        .map(|route| {
            let (first, length) = numeric(route.prefix);
            let last = first | low_bits(BITS - u32::from(length));
            (first, last, meanings.get(usize::from(route.target)).map_or(Fate::NoRoute, |meaning| meaning.fate))
        })
        .collect();
    let routed = ranges.len();
    for local in view.locals().filter(of_family) {
        let (address, _) = numeric(Prefix::containing(local, u8::MAX));
        // A route of exactly this address goes before; it is the last one that starts here.
        let at = ranges[..routed].partition_point(|range| range.0 <= address);
        if ranges[..at].last().is_none_or(|range| (range.0, range.1) != (address, address)) {
            ranges.push((address, address, Fate::Local));
        }
    }
    if ranges.len() > routed {
        ranges.sort_by_key(|&(first, last, _)| (first, std::cmp::Reverse(last)));
    }
    flatten(&ranges)
}

/// Nested ranges, outer before inner, as runs.
fn flatten(ranges: &[(u128, u128, Fate)]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::with_capacity(ranges.len() * 2 + 1);
    runs.push((0, Fate::NoRoute));
    let start = |runs: &mut Vec<Run>, at: u128, fate: Fate| match runs.last_mut() {
        Some(run) if run.0 == at => run.1 = fate,
        _ => runs.push((at, fate)),
    };
    let mut open: Vec<(u128, Fate)> = Vec::new();
    let close = |runs: &mut Vec<Run>, open: &mut Vec<(u128, Fate)>, before: Option<u128>| {
        while let Some(&(last, _)) = open.last()
            && before.is_none_or(|first| last < first)
        {
            open.pop();
            if let Some(next) = last.checked_add(1) {
                start(runs, next, open.last().map_or(Fate::NoRoute, |&(_, fate)| fate));
            }
        }
    };
    for &(first, last, fate) in ranges {
        close(&mut runs, &mut open, Some(first));
        start(&mut runs, first, fate);
        open.push((last, fate));
    }
    close(&mut runs, &mut open, None);
    runs
}

/// Compares two lists of runs that both start at 0, up to `end`, in units of 2^`unit_bits` addresses.
fn sweep(before: &[Run], after: &[Run], end: u128, unit_bits: u32) -> Count {
    let mut tally = Tally { unit_bits, count: Count::default(), counted: [None; 5] };
    let (mut i, mut j, mut at) = (0, 0, 0u128);
    loop {
        // The first address at which either side's run ends; past the last run, the end of the family.
        let next = [before.get(i + 1), after.get(j + 1)].into_iter().flatten().map(|run| run.0).min();
        let last = next.map_or(end, |next| (next - 1).min(end));
        tally.add(before[i].1, after[j].1, at, last);
        match next {
            Some(next) if next <= end => {
                i += usize::from(before.get(i + 1).is_some_and(|run| run.0 == next));
                j += usize::from(after.get(j + 1).is_some_and(|run| run.0 == next));
                at = next;
            }
            _ => return tally.count,
        }
    }
}

struct Tally {
    unit_bits: u32,
    count: Count,
    /// The last unit counted, of each number: runs may meet inside a unit.
    counted: [Option<u128>; 5],
}

impl Tally {
    fn add(&mut self, before: Fate, after: Fate, first: u128, last: u128) {
        if before == after {
            return;
        }
        let way = match (before, after) {
            (_, Fate::Drop) => 3,
            (_, Fate::NoRoute) => 2,
            (Fate::NoRoute, _) => 1,
            _ => 4,
        };
        let (first, last) = (first >> self.unit_bits, last >> self.unit_bits);
        for number in [0, way] {
            let from = match self.counted[number] {
                Some(counted) if counted == first => first.wrapping_add(1),
                _ => first,
            };
            // Modulo 2^128, as the sums: `from` is at most one past `last`.
            let units = last.wrapping_sub(from).wrapping_add(1);
            let count = &mut self.count;
            let sums: [&mut u128; 5] =
                [&mut count.changed, &mut count.gained, &mut count.lost, &mut count.dropped, &mut count.rerouted];
            *sums[number] = sums[number].wrapping_add(units);
            self.counted[number] = Some(last);
        }
    }
}

fn numeric(prefix: Prefix) -> (u128, u8) {
    match prefix {
        Prefix::V4(address, length) => (u128::from(address.to_bits()), length),
        Prefix::V6(address, length) => (address.to_bits(), length),
    }
}

fn low_bits(bits: u32) -> u128 {
    u128::MAX.checked_shr(128 - bits).unwrap_or(0)
}
