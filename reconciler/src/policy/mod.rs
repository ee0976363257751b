//! Policy: files in, checked intent or diagnostics out.
//!
//! `Snapshot -> Policy | Diagnostics`. Nothing here reads a file, a clock or the environment; a [`Policy`] can only be
//! made by [`validate()`], so whoever holds one knows that every reference in it resolves.

pub mod codes;
pub mod diagnostic;
mod document;
pub mod limits;
mod list;
mod node;
pub mod prefix;
mod quantity;
mod route_policy;
mod routes;
pub mod schema;
mod validate;
mod yaml;

use std::net::IpAddr;

pub use codes::Code;
pub use diagnostic::{Diagnostic, Position, Related, Severity, Span};
pub use document::{Attach, OnAllDown};
pub use node::{NodeConfig, Port, Webhook, check_ports, node_config};
pub use prefix::{Prefix, PrefixError};
pub use validate::{Validated, validate};

/// Where a rule was written: a file of the snapshot (index into [`Policy::files`]) and its 1-based line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    pub file: u32,
    pub line: u32,
}

/// The checked intent of one snapshot: every reference resolves, no prefix is written twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Identity of the snapshot, `dir@sha256:…` or `branch@sha1:…`.
    pub revision: String,
    /// Source-relative paths of every file that a rule came from, sorted.
    pub files: Vec<String>,
    /// Sorted by name; names are unique.
    pub route_policies: Vec<RoutePolicy>,
}

/// One `RoutePolicy` document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutePolicy {
    pub name: String,
    pub owner: Option<String>,
    pub origin: Origin,
    /// In the order written; names are unique within the policy. Every entry is kept, used or not.
    pub next_hops: Vec<NextHop>,
    /// Distinct next-hop groups that the routes use; a route names one by its index.
    pub groups: Vec<NextHopGroup>,
    /// Sorted by prefix (IPv4 before IPv6, then address, then length); unique across all policies of the snapshot.
    pub routes: Vec<Route>,
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
