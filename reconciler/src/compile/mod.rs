//! Compile: checked intent in, the bytes of a generation out.
//!
//! `(Policy, NodeFacts, LiveIds) -> Image`. A pure function: equal arguments give equal bytes, whatever the order of
//! files, documents or routes was. [`view`] is the way back, from bytes to rules.

mod fib;
mod filter;
mod group;
mod ids;
mod service;
mod tables;
#[cfg(test)]
mod tests;
mod tunnel;
pub mod view;
mod write;

use std::net::IpAddr;
use std::sync::OnceLock;

use ::fib::layout::{
    AT_CREATED_UNIX_MS, AT_DIGEST, AT_GENERATION, AT_LAYOUT_VERSION, AT_MAGIC, AT_PARENT, CAPACITY_MAX, CAPACITY_MIN,
    DIGEST_BYTES, REVISION_BYTES_MAX, RULES_START,
};

use crate::policy::{Policy, Prefix, RoutePolicy, Tunnels};
use fib::{Address, Rule, V4Fib, V6Fib};
use filter::Filters;
pub use group::{MEMBERS_MAX, SLOTS_MAX};
pub use ids::LiveIds;
use tables::{TARGET_LOCAL, Tables};
use tunnel::TunnelTables;
use view::Checked;
pub use view::{Digest, ImageError, View};
use write::{Contents, Lookup};

/// Seeds the flow hash. The same in every generation, so that flows stay on their member across a publish.
const HASH_SEED: u32 = 0x7761_796c;

/// What a node adds to the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Addresses of the node itself, in any order: packets to them are the kernel's, unless a route names exactly that
    /// address.
    pub local_addresses: Vec<IpAddr>,
    /// Its ends of tunnels.
    pub tunnels: Tunnels,
}

/// Why a policy does not fit into an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("{needed} {table} needed, the limit is {max}")]
    TableFull { table: &'static str, needed: usize, max: usize },
    #[error("the image would need {bytes} bytes, the largest capacity class is {max} bytes")]
    ImageTooLarge { bytes: u64, max: u32 },
    #[error("{prefix} is written by the policies {} and {}, which are for different nodes; --node-config names one", policies[0], policies[1])]
    PrefixTwice { prefix: Prefix, policies: [String; 2] },
    #[error("the services {} and {} have the same port of a vip and are for different nodes; --node-config names one", services[0], services[1])]
    ServiceTwice { services: [String; 2] },
    #[error("the revision is {bytes} bytes long, the limit is {max}: `{revision}`")]
    RevisionTooLong { revision: String, bytes: usize, max: u32 },
}

/// The bytes of a generation, exactly as long as they need to be.
#[derive(Clone, Debug)]
pub struct Image {
    bytes: Vec<u8>,
    /// Of the rules, which never change.
    checked: OnceLock<Checked>,
}

impl PartialEq for Image {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Image {}

impl Image {
    /// What stands before the rules.
    pub const HEADER_BYTES: usize = RULES_START as usize;

    /// The bytes that a view looks at, to be published again.
    pub fn copy_of(view: &View<'_>) -> Self {
        Self { bytes: view.bytes().to_vec(), checked: OnceLock::new() }
    }

    /// An image that was kept somewhere; an error unless it is whole, and as this version lays it out.
    pub fn read(bytes: Vec<u8>) -> Result<Self, ImageError> {
        let image = Self { bytes, checked: OnceLock::new() };
        image.view()?.verify_digest()?;
        Ok(image)
    }

    /// Whether an image that begins with these bytes holds the same rules in the same layout.
    pub fn has_rules_of(&self, header: &[u8; Self::HEADER_BYTES]) -> bool {
        let equal = |from: u32, to: u32| {
            let range = from as usize..to as usize;
            self.bytes.get(range.clone()).is_some_and(|own| header.get(range) == Some(own))
        };
        equal(AT_MAGIC, AT_LAYOUT_VERSION + 4) && equal(AT_DIGEST, AT_DIGEST + DIGEST_BYTES)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// BLAKE3 of the rules: equal rules, equal digest, whatever generation they are.
    pub fn digest(&self) -> Digest {
        let mut digest = [0; 32];
        digest.copy_from_slice(&self.bytes[AT_DIGEST as usize..][..32]);
        Digest(digest)
    }

    /// Gives the image its place in history; the rules and their digest stay as they are.
    pub fn stamp(&mut self, generation: u64, parent: u64, created_unix_ms: u64) {
        for (at, value) in [(AT_GENERATION, generation), (AT_PARENT, parent), (AT_CREATED_UNIX_MS, created_unix_ms)] {
            self.bytes[at as usize..][..8].copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Checked the first time only.
    pub fn view(&self) -> Result<View<'_>, ImageError> {
        View::once(&self.bytes, &self.checked)
    }
}

/// The size of the inner map that holds an image: the next power of two within the capacity classes.
pub fn capacity_class(image_bytes: usize) -> Result<u32, CompileError> {
    match u32::try_from(image_bytes) {
        Ok(bytes) if bytes <= CAPACITY_MAX => Ok(bytes.next_power_of_two().max(CAPACITY_MIN)),
        _ => Err(CompileError::ImageTooLarge { bytes: image_bytes as u64, max: CAPACITY_MAX }),
    }
}

/// Compiles a policy for one node; names that `live` knows keep their ids.
pub fn compile(policy: &Policy, node: &NodeFacts, live: &LiveIds) -> Result<Image, CompileError> {
    if policy.revision.len() > REVISION_BYTES_MAX as usize {
        return Err(CompileError::RevisionTooLong {
            revision: policy.revision.clone(),
            bytes: policy.revision.len(),
            max: REVISION_BYTES_MAX,
        });
    }
    let ids = live.assign(policy)?;
    let mut tables = Tables::collect(policy, &ids)?;
    let filters = Filters::build(policy, &ids, &mut tables)?;
    let (v4_rules, v6_rules) = rules(policy, &tables);
    check_once(policy, &v4_rules, |rule| Prefix::containing(IpAddr::V4(rule.address.into()), rule.length))?;
    check_once(policy, &v6_rules, |rule| Prefix::containing(IpAddr::V6(rule.address.into()), rule.length))?;
    let lookup = lookup(v4_rules, v6_rules, &node.local_addresses);
    let tunnels = TunnelTables::of(policy, &node.tunnels)?;
    tunnels.place(&mut tables.services);
    write::write(&Contents {
        tunnels: &tunnels,
        revision: &policy.revision,
        tables: &tables,
        lookup: &lookup,
        filters: &filters,
    })
}

/// The same rules on a node that has other addresses of its own: what compiling their policies again would give.
pub fn readdress(view: &View<'_>, node: &NodeFacts) -> Result<Image, CompileError> {
    let lookup = lookup(view.v4_rules().collect(), view.v6_rules().collect(), &node.local_addresses);
    write::write_moved(view, &lookup)
}

/// The lookup tables of sorted routes, with the node's own addresses among them.
fn lookup(mut v4_rules: Vec<Rule<u32>>, mut v6_rules: Vec<Rule<u128>>, addresses: &[IpAddr]) -> Lookup {
    let mut locals = addresses.to_vec();
    locals.sort_unstable();
    locals.dedup();
    let v4_locals = locals.iter().filter_map(|a| if let IpAddr::V4(a) = a { Some(a.to_bits()) } else { None });
    add_locals(&mut v4_rules, v4_locals);
    let v6_locals = locals.iter().filter_map(|a| if let IpAddr::V6(a) = a { Some(a.to_bits()) } else { None });
    add_locals(&mut v6_rules, v6_locals);
    let (v4, v6) = (V4Fib::build(&v4_rules), V6Fib::build(&v6_rules));
    Lookup { v4, v6, v4_rules, v6_rules, locals }
}

/// The routes of all policies, sorted by (address, length).
fn rules(policy: &Policy, tables: &Tables) -> (Vec<Rule<u32>>, Vec<Rule<u128>>) {
    let mut v4 = Vec::new();
    let mut v6 = Vec::new();
    for (document, actions) in policy.route_policies.iter().zip(&tables.actions) {
        let v4_count = document.routes.partition_point(|route| route.prefix.is_ipv4());
        v4.reserve(v4_count);
        v6.reserve(document.routes.len() - v4_count);
        for route in &document.routes {
            let target = actions.of(route.action);
            // Below 2^16 since the files table is.
            let file = u16::try_from(route.origin.file).unwrap_or(u16::MAX);
            let line = route.origin.line;
            match route.prefix {
                Prefix::V4(a, length) => v4.push(Rule { address: a.to_bits(), length, target, file, line }),
                Prefix::V6(a, length) => v6.push(Rule { address: a.to_bits(), length, target, file, line }),
            }
        }
    }
    // Stable sorts merge the sorted runs of single policies in one pass.
    v4.sort_by_key(|rule| (rule.address, rule.length));
    v6.sort_by_key(|rule| (rule.address, rule.length));
    (v4, v6)
}

/// One image is one node's: policies for different nodes may write the same prefix, but nobody gets both.
fn check_once<A: Address>(
    policy: &Policy,
    rules: &[Rule<A>],
    prefix: impl Fn(&Rule<A>) -> Prefix,
) -> Result<(), CompileError> {
    let same = |pair: &&[Rule<A>]| (pair[0].address, pair[0].length) == (pair[1].address, pair[1].length);
    let Some(pair) = rules.windows(2).find(same) else { return Ok(()) };
    let prefix = prefix(&pair[0]);
    let writes = |of: &&RoutePolicy| of.routes.binary_search_by_key(&prefix, |route| route.prefix).is_ok();
    let mut policies = policy.route_policies.iter().filter(writes).map(|of| of.name.clone());
    let mut next = || policies.next().unwrap_or_default();
    Err(CompileError::PrefixTwice { prefix, policies: [next(), next()] })
}

/// Adds the node's own addresses, but not where a route names exactly the same address.
fn add_locals<A: Address>(rules: &mut Vec<Rule<A>>, locals: impl Iterator<Item = A>) {
    let written = rules.len();
    let length = if A::BITS == 32 { 32 } else { 128 };
    for address in locals {
        if rules[..written].binary_search_by_key(&(address, length), |rule| (rule.address, rule.length)).is_err() {
            rules.push(Rule { address, length, target: TARGET_LOCAL, file: 0, line: 0 });
        }
    }
    if rules.len() > written {
        rules.sort_by_key(|rule| (rule.address, rule.length));
    }
}
