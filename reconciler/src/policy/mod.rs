//! Policy: files in, checked intent or diagnostics out.
//!
//! `Snapshot -> Policy | Diagnostics`. Nothing here reads a file, a clock or the environment; a [`Policy`] can only be
//! made by [`validate()`], so whoever holds one knows that every reference in it resolves.

pub mod codes;
pub mod diagnostic;
mod document;
mod filter_policy;
mod health;
pub mod limits;
mod list;
mod node;
pub mod prefix;
mod probe;
mod quantity;
mod redundant;
mod route_policy;
mod routes;
pub mod schema;
mod selector;
mod service_policy;
mod test;
mod validate;
mod window;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub use codes::Code;
pub use diagnostic::{Diagnostic, Position, Related, Severity, Span};
pub use document::{
    Attach, DriftMode, Echo, FilterAction, Forwarding, Guard, OnAllDown, OnNoBackend, Protocol, WindowKind,
};
pub use filter_policy::{FilterPolicy, FilterRule, PortRange, RateLimit, RuleAction, TcpFlags};
pub use health::{HealthCheck, HealthChecks, MinHealthy};
pub use node::{Drift, Guards, HealthCommand, NodeConfig, Port, Probation, Tunnels, Webhook, check_names, node_config};
pub use prefix::{Prefix, PrefixError};
pub use probe::{Check, Probe};
pub use redundant::redundant;
pub use selector::Selector;
pub use service_policy::{Affinity, Backend, FlowTimeouts, ServicePolicy, ServicePort, backend_name};
pub use test::{Case, Expectation, PolicyTest};
pub use validate::{Validated, validate};
pub use window::SyncWindow;
#[cfg(test)]
pub(crate) use window::tests as window_tests;

/// A duration as documents write it, such as `200ms`, `5s`, `2m` or `1h`; 1 ms to 24 h.
pub fn duration(text: &str) -> Option<std::time::Duration> {
    quantity::duration_ms(text).map(std::time::Duration::from_millis)
}

/// The same up to a year, with days: `90m`, `3d`.
pub fn long_duration(text: &str) -> Option<std::time::Duration> {
    quantity::long_duration_ms(text).map(std::time::Duration::from_millis)
}

/// Where a rule was written: a file of the snapshot (index into [`Policy::files`]) and its 1-based line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    pub file: u32,
    pub line: u32,
}

/// The checked intent of one snapshot: every reference resolves, and no node gets a prefix twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Identity of the snapshot, `dir@sha256:…` or `branch@sha1:…`.
    pub revision: String,
    /// Source-relative paths of every file that a rule came from, sorted.
    pub files: Vec<String>,
    /// Sorted by name; names are unique.
    pub route_policies: Vec<RoutePolicy>,
    /// In the order in which they decide: by priority, then name; names are unique.
    pub filter_policies: Vec<FilterPolicy>,
    /// Sorted by name; names are unique.
    pub service_policies: Vec<ServicePolicy>,
}

impl Policy {
    /// Whether two policies, which are for different nodes then, write the same prefix: no one image can hold all of it.
    pub fn is_of_several_nodes(&self) -> bool {
        if self.has_a_service_port_twice() {
            return true;
        }
        if self.route_policies.iter().all(|policy| policy.nodes == Selector::default()) {
            return false;
        }
        let mut prefixes: Vec<Prefix> =
            self.route_policies.iter().flat_map(|policy| policy.routes.iter().map(|route| route.prefix)).collect();
        prefixes.sort_unstable();
        prefixes.windows(2).any(|pair| pair[0] == pair[1])
    }

    /// Whether services for different nodes have the same port of a vip.
    fn has_a_service_port_twice(&self) -> bool {
        let mut ports: Vec<(IpAddr, ServicePort)> = self
            .service_policies
            .iter()
            .flat_map(|service| service.ports.iter().map(|port| (service.vip, *port)))
            .collect();
        ports.sort_unstable();
        ports.windows(2).any(|pair| {
            let [(vip, port), (next_vip, next)] = [pair[0], pair[1]];
            (vip, port.protocol) == (next_vip, next.protocol) && next.first <= port.last
        })
    }

    /// What of it is for a node with `labels`. Files of which nothing is left are not named any more: what is written for
    /// other nodes changes no byte of this node's image.
    #[must_use]
    pub fn for_node(mut self, labels: &BTreeMap<String, String>) -> Self {
        let count =
            |policy: &Self| policy.route_policies.len() + policy.filter_policies.len() + policy.service_policies.len();
        let all = count(&self);
        self.route_policies.retain(|policy| policy.nodes.matches(labels));
        self.filter_policies.retain(|policy| policy.nodes.matches(labels));
        self.service_policies.retain(|policy| policy.nodes.matches(labels));
        if count(&self) == all {
            return self;
        }
        let mut used = BTreeSet::new();
        for policy in &self.route_policies {
            used.insert(policy.origin.file);
            used.extend(policy.next_hops.iter().map(|hop| hop.origin.file));
            used.extend(policy.routes.iter().map(|route| route.origin.file));
        }
        for policy in &self.filter_policies {
            used.insert(policy.origin.file);
            used.extend(policy.rules.iter().flat_map(|rule| rule.lists.iter().copied()));
        }
        used.extend(self.service_policies.iter().map(|service| service.origin.file));
        let number: BTreeMap<u32, u32> = used.iter().copied().zip(0..).collect();
        let renumber = |origin: &mut Origin| origin.file = number.get(&origin.file).copied().unwrap_or(u32::MAX);
        for policy in &mut self.route_policies {
            renumber(&mut policy.origin);
            policy.next_hops.iter_mut().for_each(|hop| renumber(&mut hop.origin));
            policy.routes.iter_mut().for_each(|route| renumber(&mut route.origin));
        }
        for service in &mut self.service_policies {
            renumber(&mut service.origin);
            service.backends.iter_mut().for_each(|backend| renumber(&mut backend.origin));
        }
        for policy in &mut self.filter_policies {
            let mut of = |file: u32| number.get(&file).copied().unwrap_or(u32::MAX);
            policy.renumber(&mut of);
        }
        let mut at = 0;
        self.files.retain(|_| {
            at += 1;
            used.contains(&(at - 1))
        });
        self
    }
}

/// One `RoutePolicy` document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutePolicy {
    pub name: String,
    pub owner: Option<String>,
    /// The nodes that it is for.
    pub nodes: Selector,
    pub origin: Origin,
    /// In the order written; names are unique within the policy. Every entry is kept, used or not.
    pub next_hops: Vec<NextHop>,
    /// Distinct next-hop groups that the routes use; a route names one by its index.
    pub groups: Vec<NextHopGroup>,
    /// Sorted by prefix (IPv4 before IPv6, then address, then length); unique across all policies that one node can have.
    pub routes: Vec<Route>,
    /// What must work after a change if it worked before it. No part of an image.
    pub probes: Vec<Probe>,
}

/// A named gateway behind a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    pub name: String,
    pub via: IpAddr,
    /// The policy's name for an interface; a node maps it to a device.
    pub port: String,
    pub origin: Origin,
}

/// Weighted next hops, sorted by next-hop index; at least one, weights 1 to 65,535, all of one address family. Equal
/// members with another `on_all_down` are another group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHopGroup {
    /// (index into [`RoutePolicy::next_hops`], weight)
    pub members: Vec<(u32, u16)>,
    pub on_all_down: OnAllDown,
}

/// What happens to packets whose longest matching prefix this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Forward by a group of the same policy (index into [`RoutePolicy::groups`]).
    Forward(u32),
    Drop,
    /// Leave the packet to the kernel.
    Pass,
}

/// One prefix and its action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub prefix: Prefix,
    pub action: Action,
    /// The line that says so: in the policy document, or in the list file that `prefixesFrom` names.
    pub origin: Origin,
}
