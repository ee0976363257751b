//! The small tables of an image: strings, ports, policies, next hops, groups with their slots, and targets.

use std::collections::HashMap;
use std::net::IpAddr;

use fib::layout::{TARGET_FLAGS_ON_ALL_DOWN_DROP, TARGETS_MAX, kind};

use super::CompileError;
use super::group::{self, Placed};
use super::ids::{Ids, hop_key};
use super::service::{self, ServiceTables};
use crate::policy::{Action, OnAllDown, Policy, RoutePolicy};

/// Target index of "no rule".
pub(super) const TARGET_NONE: u16 = 0;
/// Target index of the node's own addresses.
pub(super) const TARGET_LOCAL: u16 = 1;

/// One row of the next-hop table.
#[derive(Debug)]
pub(super) struct HopRow {
    pub id: u32,
    pub port: u16,
    pub via: IpAddr,
    pub name: u32,
    pub policy: u32,
    pub file: u32,
    pub line: u32,
}

/// Rows as they stand in the image, without the prefixes.
#[derive(Debug, Default)]
pub(super) struct Tables<'p> {
    pub text: String,
    /// (first byte, bytes)
    pub strings: Vec<[u32; 2]>,
    interned: HashMap<&'p str, u32>,
    /// (path)
    pub files: Vec<[u32; 1]>,
    /// (id, name)
    pub ports: Vec<[u32; 2]>,
    /// (id, name, file, line)
    pub policies: Vec<[u32; 4]>,
    pub next_hops: Vec<HopRow>,
    /// (policy, first member, members, target)
    pub groups: Vec<[u32; 4]>,
    /// (next hop, weight)
    pub members: Vec<[u32; 2]>,
    pub slots: Vec<u16>,
    /// Head and tail words.
    pub targets: Vec<[u64; 2]>,
    /// Target of each policy's actions, by the policy's place.
    pub actions: Vec<ActionTargets>,
    pub services: ServiceTables,
}

/// Which target stands for an action of one policy.
#[derive(Debug, Default)]
pub(super) struct ActionTargets {
    drop: u16,
    pass: u16,
    groups: Vec<u16>,
}

impl ActionTargets {
    pub(super) fn of(&self, action: Action) -> u16 {
        match action {
            Action::Forward(group) => self.groups.get(group as usize).copied().unwrap_or(TARGET_NONE),
            Action::Drop => self.drop,
            Action::Pass => self.pass,
        }
    }
}

/// Slot tables that groups share: members with reduced weights -> (first slot, mask).
type SlotTables = HashMap<Vec<(u32, u16)>, [u32; 2]>;

impl<'p> Tables<'p> {
    pub(super) fn collect(policy: &'p Policy, ids: &Ids<'p>) -> Result<Self, CompileError> {
        check_limits(policy)?;
        let mut tables = Self::default();
        for path in &policy.files {
            let path = tables.intern(path);
            tables.files.push([path]);
        }
        for (&name, &id) in &ids.ports {
            let name = tables.intern(name);
            tables.ports.push([id, name]);
        }
        tables.targets.push([u64::from(kind::NONE), 0]);
        tables.targets.push([u64::from(kind::LOCAL), 0]);
        let mut slot_tables = SlotTables::new();
        for document in &policy.route_policies {
            tables.add_policy(document, ids, &mut slot_tables);
        }
        tables.services = service::collect(policy, ids, &mut tables)?;
        if tables.targets.len() > TARGETS_MAX as usize {
            return Err(full("targets (distinct actions and next-hop groups)", tables.targets.len(), TARGETS_MAX));
        }
        Ok(tables)
    }

    fn add_policy(&mut self, document: &'p RoutePolicy, ids: &Ids<'p>, slot_tables: &mut SlotTables) {
        let place = index(self.policies.len());
        let id = ids.policies.get(document.name.as_str()).copied().unwrap_or_default();
        let name = self.intern(&document.name);
        self.policies.push([id, name, document.origin.file, document.origin.line]);

        // By name, so that the order in which they are written does not show.
        let mut order: Vec<usize> = (0..document.next_hops.len()).collect();
        order.sort_by_key(|&i| &document.next_hops[i].name);
        let mut rows = vec![0u32; order.len()];
        let mut identities = vec![0u64; order.len()];
        for i in order {
            let hop = &document.next_hops[i];
            rows[i] = index(self.next_hops.len());
            identities[i] = group::identity(&document.name, hop);
            let row = HopRow {
                id: ids.next_hops.get(&hop_key(&document.name, hop)).copied().unwrap_or_default(),
                port: low16(ids.ports.get(hop.port.as_str()).copied().unwrap_or_default()),
                via: hop.via,
                name: self.intern(&hop.name),
                policy: place,
                file: hop.origin.file,
                line: hop.origin.line,
            };
            self.next_hops.push(row);
        }

        let used = |action| document.routes.iter().any(|route| route.action == action);
        let head = u64::from(low16(id)) << 16;
        let mut actions = ActionTargets::default();
        if used(Action::Drop) {
            actions.drop = self.target([head | u64::from(kind::DROP), 0]);
        }
        if used(Action::Pass) {
            actions.pass = self.target([head | u64::from(kind::PASS), 0]);
        }
        // By members, so that the order in which routes use them does not show.
        let mut groups: Vec<(Vec<Placed>, OnAllDown, usize)> = document
            .groups
            .iter()
            .map(|group| {
                let mut members: Vec<Placed> = group
                    .members
                    .iter()
                    .map(|&(hop, weight)| Placed {
                        identity: identities[hop as usize],
                        weight,
                        next_hop: low16(rows[hop as usize]),
                    })
                    .collect();
                members.sort_by_key(|m| m.next_hop);
                (members, group.on_all_down)
            })
            .zip(0..)
            .map(|((members, on_all_down), place_written)| (members, on_all_down, place_written))
            .collect();
        groups.sort_by_cached_key(|(members, on_all_down, _)| {
            (members.iter().map(|m| (m.next_hop, m.weight)).collect::<Vec<_>>(), *on_all_down)
        });
        actions.groups = vec![TARGET_NONE; groups.len()];
        for (members, on_all_down, place_written) in groups {
            let flags = if on_all_down == OnAllDown::Drop { TARGET_FLAGS_ON_ALL_DOWN_DROP } else { 0 };
            let words = self.forward(head | flags, &members, slot_tables);
            let target = self.target(words);
            actions.groups[place_written] = target;
            self.groups.push([place, index(self.members.len()), index(members.len()), u32::from(target)]);
            self.members.extend(members.iter().map(|m| [u32::from(m.next_hop), u32::from(m.weight)]));
        }
        self.actions.push(actions);
    }

    /// The target of the group whose row is made next; more than one member also takes a slot table, shared by groups of
    /// equal proportions.
    fn forward(&mut self, head: u64, members: &[Placed], slot_tables: &mut SlotTables) -> [u64; 2] {
        if let [only] = members {
            let hop = &self.next_hops[usize::from(only.next_hop)];
            let head = head | u64::from(kind::FORWARD_ONE) | u64::from(only.next_hop) << 32;
            return [head, u64::from(hop.id) | u64::from(hop.port) << 32];
        }
        let divisor = members.iter().fold(0, |divisor, m| greatest_common_divisor(divisor, m.weight)).max(1);
        let members: Vec<Placed> = members.iter().map(|m| Placed { weight: m.weight / divisor, ..*m }).collect();
        let key = members.iter().map(|m| (u32::from(m.next_hop), m.weight)).collect();
        let [first, mask] = *slot_tables.entry(key).or_insert_with(|| {
            let slots = group::slots(&members);
            let first = index(self.slots.len());
            self.slots.extend_from_slice(&slots);
            [first, index(slots.len()).saturating_sub(1)]
        });
        let group = u64::from(index(self.groups.len()));
        [head | u64::from(kind::FORWARD_GROUP) | group << 32, u64::from(first) | u64::from(mask) << 32]
    }

    fn target(&mut self, words: [u64; 2]) -> u16 {
        self.targets.push(words);
        low16(index(self.targets.len() - 1))
    }

    pub(super) fn intern(&mut self, text: &'p str) -> u32 {
        *self.interned.entry(text).or_insert_with(|| {
            self.strings.push([index(self.text.len()), index(text.len())]);
            self.text.push_str(text);
            index(self.strings.len() - 1)
        })
    }
}

/// Everything that a 16-bit index names is counted before the first row is made.
fn check_limits(policy: &Policy) -> Result<(), CompileError> {
    const INDEX_MAX: u32 = 1 << 16;
    let next_hops: usize = policy.route_policies.iter().map(|p| p.next_hops.len()).sum();
    // The two that every image has, and at most a drop and a pass of each policy: counted exactly afterwards.
    let targets = 2 + policy.route_policies.iter().map(|p| p.groups.len()).sum::<usize>();
    for (table, needed, max) in [
        ("files", policy.files.len(), INDEX_MAX),
        ("next hops", next_hops, INDEX_MAX),
        ("targets (distinct actions and next-hop groups)", targets, TARGETS_MAX),
    ] {
        if needed > max as usize {
            return Err(full(table, needed, max));
        }
    }
    let members = |p: &RoutePolicy| p.groups.iter().map(|g| g.members.len()).max().unwrap_or(0);
    match policy.route_policies.iter().map(members).max() {
        Some(needed) if needed > group::MEMBERS_MAX => {
            Err(CompileError::TableFull { table: "members of one next-hop group", needed, max: group::MEMBERS_MAX })
        }
        _ => Ok(()),
    }
}

fn full(table: &'static str, needed: usize, max: u32) -> CompileError {
    CompileError::TableFull { table, needed, max: max as usize }
}

fn greatest_common_divisor(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[expect(clippy::cast_possible_truncation, reason = "the image's size limit is checked before anything is written")]
fn index(i: usize) -> u32 {
    i as u32
}

#[expect(clippy::cast_possible_truncation, reason = "ids and rows that 16 bits name are below 2^16 by check_limits")]
fn low16(i: u32) -> u16 {
    i as u16
}
