//! Fills members up to their quotas at the least loss of score, by chains of exchanges.
//!
//! Every slot starts at the member that scores it highest. While a member holds more than its quota, a unit of it moves
//! along the cheapest chain of exchanges to one that holds less: the successive shortest paths of a minimum-cost flow
//! (Ahuja, Magnanti and Orlin, "Network Flows", 1993, section 9.7), with prices that keep every step's cost from being
//! negative. The outcome is the assignment of largest total score that meets the quotas: a property of scores and quotas,
//! not of the way there.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::rendezvous::{ONE, log2};

/// Whom a slot may go to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Index of the member.
    pub member: u32,
    pub score: i64,
}

/// Units of one slot that a member holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub slot: u32,
    pub units: u32,
    score: i64,
}

/// A step of a chain: units of `slot` go from one member to the next.
#[derive(Clone, Copy, Debug)]
struct Step {
    from: usize,
    slot: u32,
    /// Of the member that gets them.
    score: i64,
}

/// Rounds that bring the prices near: a few slots a member are left for chains.
const ROUNDS: usize = 3;
/// How far a slot's second candidate may be behind for chains to move it, in units of members / slots.
const NEAR: i64 = 16;

struct Exchange<'c> {
    /// `width` of each slot.
    candidates: &'c [Candidate],
    width: usize,
    quotas: &'c [u32],
    /// What a unit costs at each member: scores are compared less it.
    prices: Vec<i64>,
    /// Units that chains may move.
    held: Vec<Vec<Held>>,
    /// Units that are far from any exchange stay with their member.
    kept: Vec<Vec<Held>>,
    /// Units held by each member.
    holds: Vec<u32>,
}

/// Divides the slots, of `units` each, among members; `None` when the candidates do not allow the quotas.
///
/// `candidates` has `width` of each slot; `quotas` add up to all units.
pub(super) fn assign(candidates: &[Candidate], width: usize, quotas: &[u32], units: u32) -> Option<Vec<Vec<Held>>> {
    let mut exchange = Exchange {
        candidates,
        width,
        quotas,
        prices: vec![0; quotas.len()],
        held: vec![Vec::new(); quotas.len()],
        kept: vec![Vec::new(); quotas.len()],
        holds: Vec::new(),
    };
    exchange.find_prices(units);
    let found = exchange.prices.clone();
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let near = ONE * NEAR * number(quotas.len()) / number(candidates.len() / width);
    for near in [near, i64::MAX] {
        exchange.prices.clone_from(&found);
        exchange.give_to_best(units, near);
        if exchange.run_chains().is_some() && exchange.keeps_well() {
            return Some(
                exchange.held.into_iter().zip(exchange.kept).map(|(held, kept)| [held, kept].concat()).collect(),
            );
        }
    }
    None
}

impl Exchange<'_> {
    /// Prices at which slots that go to their best candidate nearly meet the quotas: a price changes by the logarithm of
    /// what its member has too much.
    fn find_prices(&mut self, units: u32) {
        let logarithm = |units: u32| log2(2 * u64::from(units) + 1);
        for (price, &quota) in self.prices.iter_mut().zip(self.quotas) {
            *price = -logarithm(quota);
        }
        let mut holds = vec![0; self.quotas.len()];
        for _ in 0..ROUNDS {
            holds.fill(0);
            for slot in self.candidates.chunks_exact(self.width) {
                holds[self.best(slot).0.member as usize] += units;
            }
            for ((price, &holds), &quota) in self.prices.iter_mut().zip(&holds).zip(self.quotas) {
                *price += logarithm(holds) - logarithm(quota);
            }
        }
    }

    /// The candidate worth most at the prices, the first of equals, and by how much.
    fn best(&self, candidates: &[Candidate]) -> (Candidate, i64) {
        let (mut best, mut first, mut second) = (0, i64::MIN / 2, i64::MIN / 2);
        for (at, candidate) in candidates.iter().enumerate() {
            let worth = candidate.score - self.prices[candidate.member as usize];
            second = second.max(worth.min(first));
            best = if worth > first { at } else { best };
            first = first.max(worth);
        }
        (candidates[best], first - second)
    }

    /// Gives every slot to its best candidate; those that another one is `near` are for chains to move.
    fn give_to_best(&mut self, units: u32, near: i64) {
        self.held.iter_mut().chain(&mut self.kept).for_each(Vec::clear);
        self.holds = vec![0; self.quotas.len()];
        for (slot, candidates) in (0..).zip(self.candidates.chunks_exact(self.width)) {
            let (Candidate { member, score }, ahead) = self.best(candidates);
            let list = if ahead <= near { &mut self.held } else { &mut self.kept };
            list[member as usize].push(Held { slot, units, score });
            self.holds[member as usize] += units;
        }
    }

    fn run_chains(&mut self) -> Option<()> {
        let mut search = Search::default();
        while self.holds != self.quotas {
            let end = search.run(self)?;
            self.shift(&search, end);
        }
        Some(())
    }

    /// Whether what was kept is still with its best candidate, so that chains could not have used it.
    fn keeps_well(&self) -> bool {
        (0..).zip(&self.kept).all(|(member, kept)| {
            kept.iter().all(|held| {
                let candidates = &self.candidates[held.slot as usize * self.width..][..self.width];
                self.best(candidates).0.member == member
            })
        })
    }

    /// Moves as many units as fit along the chain that ends at `end`, and makes the prices fit it.
    fn shift(&mut self, search: &Search, end: usize) {
        let length = search.distances[end];
        for (price, &distance) in self.prices.iter_mut().zip(&search.distances) {
            *price += (length - distance).max(0);
        }
        let mut chain = Vec::new();
        let mut start = end;
        while let Some(step) = search.steps[start] {
            chain.push((step, start));
            start = step.from;
        }
        let spare = self.holds[start] - self.quotas[start];
        let units = chain
            .iter()
            .filter_map(|(step, _)| self.held[step.from].iter().find(|held| held.slot == step.slot))
            .map(|held| held.units)
            .fold(spare.min(self.quotas[end] - self.holds[end]), u32::min);
        for (Step { from, slot, score }, to) in chain {
            if let Some(at) = self.held[from].iter().position(|held| held.slot == slot) {
                self.held[from][at].units -= units;
                if self.held[from][at].units == 0 {
                    self.held[from].swap_remove(at);
                }
            }
            match self.held[to].iter_mut().find(|held| held.slot == slot) {
                Some(held) => held.units += units,
                None => self.held[to].push(Held { slot, units, score }),
            }
        }
        self.holds[start] -= units;
        self.holds[end] += units;
    }
}

/// Shortest chains from members above their quotas (Dijkstra).
#[derive(Default)]
struct Search {
    distances: Vec<i64>,
    /// How a member is reached; `None` where chains start.
    steps: Vec<Option<Step>>,
    settled: Vec<bool>,
    queue: BinaryHeap<Reverse<(i64, usize)>>,
}

impl Search {
    /// The nearest member below its quota.
    fn run(&mut self, exchange: &Exchange) -> Option<usize> {
        let Exchange { candidates, width, quotas, prices, held, holds, .. } = exchange;
        self.distances.clear();
        self.distances.resize(quotas.len(), i64::MAX);
        self.steps.clear();
        self.steps.resize(quotas.len(), None);
        self.settled.clear();
        self.settled.resize(quotas.len(), false);
        self.queue.clear();
        for member in (0..quotas.len()).filter(|&member| holds[member] > quotas[member]) {
            self.distances[member] = 0;
            self.queue.push(Reverse((0, member)));
        }
        while let Some(Reverse((distance, from))) = self.queue.pop() {
            if std::mem::replace(&mut self.settled[from], true) {
                continue;
            }
            if holds[from] < quotas[from] {
                return Some(from);
            }
            for &Held { slot, score, .. } in &held[from] {
                let here = distance + score - prices[from];
                for candidate in &candidates[slot as usize * width..][..*width] {
                    let to = candidate.member as usize;
                    let there = here - (candidate.score - prices[to]);
                    if there < self.distances[to] && !self.settled[to] {
                        self.distances[to] = there;
                        self.steps[to] = Some(Step { from, slot, score: candidate.score });
                        self.queue.push(Reverse((there, to)));
                    }
                }
            }
        }
        None
    }
}
