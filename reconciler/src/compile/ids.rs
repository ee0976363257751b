//! Ids that outlive a generation: an object keeps its id for as long as any retained generation knows it.
//!
//! A next hop is the same object while its policy, name, address and port are: the kernel's neighbour array is indexed
//! by its id and written before a generation is published, so a next hop that moves must not take its id along. With the
//! old id, packets of the old generation would meet the new neighbour before the one write.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fib::layout::{
    BACKEND_IDS_MAX, FILTER_RULE_IDS_MAX, NEXT_HOP_IDS_MAX, POLICY_IDS_MAX, PORT_IDS_MAX, SERVICE_IDS_MAX,
};

use super::CompileError;
use super::view::View;
use crate::policy::{Backend, NextHop, Policy};

/// Ids that the live and retained generations use.
///
/// Counters and neighbours in the kernel are indexed by id, so an id never passes to another name while a generation
/// that uses it may still be live or become so again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveIds {
    /// By (policy, next hop, address, port).
    pub next_hops: BTreeMap<(String, String, IpAddr, String), u32>,
    pub ports: BTreeMap<String, u32>,
    pub policies: BTreeMap<String, u32>,
    /// They and `policies` are numbered together.
    pub filter_policies: BTreeMap<String, u32>,
    /// By (policy, rule).
    pub filter_rules: BTreeMap<(String, String), u32>,
    pub services: BTreeMap<String, u32>,
    /// By (service, address, port).
    pub backends: BTreeMap<(String, IpAddr, Option<u16>), u32>,
}

impl LiveIds {
    /// The union over images, the live one first: where two disagree about a name, the first holds.
    pub fn from_views<'v, 'a: 'v>(views: impl IntoIterator<Item = &'v View<'a>>) -> Self {
        let mut ids = Self::default();
        for view in views {
            for hop in view.next_hops() {
                let key = (hop.policy.to_owned(), hop.name.to_owned(), hop.via, hop.port.to_owned());
                ids.next_hops.entry(key).or_insert(hop.id);
            }
            for port in view.ports() {
                ids.ports.entry(port.name.to_owned()).or_insert(port.id);
            }
            for policy in view.policies() {
                ids.policies.entry(policy.name.to_owned()).or_insert(policy.id);
            }
            for policy in view.filter_policies() {
                ids.filter_policies.entry(policy.name.to_owned()).or_insert(policy.id);
            }
            for rule in view.filter_rules() {
                ids.filter_rules.entry((rule.policy.to_owned(), rule.name.to_owned())).or_insert(rule.id);
            }
            for service in view.services() {
                ids.services.entry(service.name.to_owned()).or_insert(service.id);
                for backend in view.backends(&service) {
                    let key = (service.name.to_owned(), backend.address, backend.port);
                    ids.backends.entry(key).or_insert(backend.id);
                }
            }
        }
        ids
    }

    /// The ids of a policy's names: those known keep theirs, new ones get the lowest that nobody has.
    pub(super) fn assign<'p>(&self, policy: &'p Policy) -> Result<Ids<'p>, CompileError> {
        let hops = policy
            .route_policies
            .iter()
            .flat_map(|p| p.next_hops.iter().map(|hop| hop_key(&p.name, hop)))
            .collect::<BTreeSet<_>>();
        let ports = policy.route_policies.iter().flat_map(|p| p.next_hops.iter().map(|hop| hop.port.as_str()));
        let rules = || policy.filter_policies.iter().flat_map(|p| p.rules.iter().map(move |rule| (p, rule)));
        let ports = ports.chain(rules().flat_map(|(_, rule)| rule.in_ports.iter().flatten().map(String::as_str)));
        // Whether it is a filter policy, and its name.
        let names = policy.route_policies.iter().map(|p| (false, p.name.as_str()));
        let names = names.chain(policy.filter_policies.iter().map(|p| (true, p.name.as_str())));
        let live_rules: BTreeMap<(&str, &str), u32> =
            self.filter_rules.iter().map(|((policy, rule), &id)| ((policy.as_str(), rule.as_str()), id)).collect();
        let taken_policies = self.policies.values().chain(self.filter_policies.values());
        // A map with `String` keys cannot be asked by `&str`: a borrowed copy can.
        let live_hops: BTreeMap<HopKey<'_>, u32> = self
            .next_hops
            .iter()
            .map(|((policy, hop, via, port), &id)| ((policy.as_str(), hop.as_str(), *via, port.as_str()), id))
            .collect();
        let services = policy.service_policies.iter().map(|service| service.name.as_str()).collect();
        let backends = policy
            .service_policies
            .iter()
            .flat_map(|service| service.backends.iter().map(|backend| backend_key(&service.name, backend)))
            .collect();
        let live_backends: BTreeMap<BackendKey<'_>, u32> = self
            .backends
            .iter()
            .map(|((service, address, port), &id)| ((service.as_str(), *address, *port), id))
            .collect();
        let live = |ids: &'_ BTreeMap<String, u32>, name: &str| ids.get(name).copied();
        let policies = give("policy ids", POLICY_IDS_MAX, names.collect(), taken_policies, |(filter, name)| {
            live(if filter { &self.filter_policies } else { &self.policies }, name)
        })?;
        Ok(Ids {
            next_hops: give("next-hop ids", NEXT_HOP_IDS_MAX, hops, self.next_hops.values(), |n| {
                live_hops.get(&n).copied()
            })?,
            ports: give("port ids", PORT_IDS_MAX, ports.collect(), self.ports.values(), |n| live(&self.ports, n))?,
            filter_rules: give(
                "filter rule ids",
                FILTER_RULE_IDS_MAX,
                rules().map(|(p, rule)| (p.name.as_str(), rule.name.as_str())).collect(),
                self.filter_rules.values(),
                |n| live_rules.get(&n).copied(),
            )?,
            filter_policies: policies.iter().filter(|((filter, _), _)| *filter).map(|((_, n), id)| (*n, *id)).collect(),
            policies: policies.into_iter().filter(|((filter, _), _)| !filter).map(|((_, n), id)| (n, id)).collect(),
            services: give("service ids", SERVICE_IDS_MAX, services, self.services.values(), |n| {
                live(&self.services, n)
            })?,
            backends: give("backend ids", BACKEND_IDS_MAX, backends, self.backends.values(), |n| {
                live_backends.get(&n).copied()
            })?,
        })
    }
}

/// What makes a next hop the same object.
pub(super) type HopKey<'p> = (&'p str, &'p str, IpAddr, &'p str);

/// The key of a next hop of `policy`.
pub(super) fn hop_key<'p>(policy: &'p str, hop: &'p NextHop) -> HopKey<'p> {
    (policy, hop.name.as_str(), hop.via, hop.port.as_str())
}

/// What makes a backend the same object: its service, address and port, not its weight.
pub(super) type BackendKey<'p> = (&'p str, IpAddr, Option<u16>);

/// The key of a backend of `service`.
pub(super) fn backend_key<'p>(service: &'p str, backend: &Backend) -> BackendKey<'p> {
    (service, backend.address, backend.port)
}

/// Ids of every object in one policy set.
#[derive(Debug)]
pub(super) struct Ids<'p> {
    pub next_hops: BTreeMap<HopKey<'p>, u32>,
    pub ports: BTreeMap<&'p str, u32>,
    pub policies: BTreeMap<&'p str, u32>,
    pub filter_policies: BTreeMap<&'p str, u32>,
    /// By (policy, rule).
    pub filter_rules: BTreeMap<(&'p str, &'p str), u32>,
    pub services: BTreeMap<&'p str, u32>,
    pub backends: BTreeMap<BackendKey<'p>, u32>,
}

fn give<'l, N: Ord + Copy>(
    table: &'static str,
    ids_max: u32,
    names: BTreeSet<N>,
    taken: impl Iterator<Item = &'l u32>,
    known: impl Fn(N) -> Option<u32>,
) -> Result<BTreeMap<N, u32>, CompileError> {
    let taken: BTreeSet<u32> = taken.copied().collect();
    let new = names.iter().filter(|&&name| known(name).is_none()).count();
    let mut free = (1..ids_max).filter(|id| !taken.contains(id));
    let mut ids = BTreeMap::new();
    for name in names {
        let id = known(name).or_else(|| free.next()).ok_or(CompileError::TableFull {
            table,
            needed: taken.len() + new,
            max: ids_max as usize - 1,
        })?;
        ids.insert(name, id);
    }
    Ok(ids)
}
