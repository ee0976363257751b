//! The routes of all policies while they are collected: two flat tables, sorted once, duplicates found on the way.

use std::collections::HashMap;

use crate::source::Snapshot;

use super::codes::Code;
use super::diagnostic::{Diagnostic, Faults, Span};
use super::limits::ROUTES_PER_FAMILY_MAX;
use super::prefix::Prefix;
use super::{Action, Origin, Route, RoutePolicy, list};

/// [`Row::site`] of a route that a list says: its place is found again from the line.
const IN_LIST: u32 = u32::MAX;

/// A route of one address family; `key` orders as [`Prefix`] does.
struct Row<K> {
    key: K,
    origin: Origin,
    /// Index into `sites`, or [`IN_LIST`].
    site: u32,
    policy: u32,
    action: Action,
}

pub(super) struct RouteTable<'s> {
    snapshot: &'s Snapshot,
    /// address << 8 | length
    ipv4: Vec<Row<u64>>,
    ipv6: Vec<Row<(u128, u8)>>,
    ipv4_seen: usize,
    ipv6_seen: usize,
    /// Places of prefixes in documents.
    sites: Vec<Span>,
}

impl<'s> RouteTable<'s> {
    pub(super) fn new(snapshot: &'s Snapshot) -> Self {
        Self { snapshot, ipv4: Vec::new(), ipv6: Vec::new(), ipv4_seen: 0, ipv6_seen: 0, sites: Vec::new() }
    }

    /// Routes seen, of IPv4 and of IPv6; those above the limit are counted and not kept.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.ipv4_seen, self.ipv6_seen)
    }

    /// Adds a route of the policy with index `policy`; `span` is its place in a document, `None` in a list.
    pub(super) fn add(&mut self, prefix: Prefix, action: Action, policy: u32, origin: Origin, span: Option<Span>) {
        let site = match span {
            None => IN_LIST,
            Some(span) => {
                self.sites.push(span);
                u32::try_from(self.sites.len() - 1).unwrap_or(IN_LIST)
            }
        };
        match prefix {
            Prefix::V4(address, length) => {
                self.ipv4_seen += 1;
                if self.ipv4.len() < ROUTES_PER_FAMILY_MAX {
                    let key = u64::from(address.to_bits()) << 8 | u64::from(length);
                    self.ipv4.push(Row { key, origin, site, policy, action });
                }
            }
            Prefix::V6(address, length) => {
                self.ipv6_seen += 1;
                if self.ipv6.len() < ROUTES_PER_FAMILY_MAX {
                    self.ipv6.push(Row { key: (address.to_bits(), length), origin, site, policy, action });
                }
            }
        }
    }

    /// Sorts both tables and reports every prefix that one node would get twice, at its later place.
    pub(super) fn sort(&mut self, policies: &[RoutePolicy], faults: &mut Faults) {
        // Lists are usually sorted already, which this sort notices. Places break ties, so the order of files does not.
        self.ipv4.sort_unstable_by_key(|r| (r.key, r.origin, r.site));
        self.ipv6.sort_unstable_by_key(|r| (r.key, r.origin, r.site));
        let mut places = Places { snapshot: self.snapshot, files: None, sites: &self.sites, lines: HashMap::new() };
        duplicates(&self.ipv4, ipv4_prefix, policies, &mut places, faults);
        duplicates(&self.ipv6, ipv6_prefix, policies, &mut places, faults);
    }

    /// The policies that write `prefix`, by index; of sorted tables.
    pub(super) fn writers(&self, prefix: Prefix) -> Vec<u32> {
        fn of<K: Ord + Copy>(rows: &[Row<K>], key: K) -> Vec<u32> {
            let first = rows.partition_point(|row| row.key < key);
            rows[first..].iter().take_while(|row| row.key == key).map(|row| row.policy).collect()
        }
        match prefix {
            Prefix::V4(address, length) => of(&self.ipv4, u64::from(address.to_bits()) << 8 | u64::from(length)),
            Prefix::V6(address, length) => of(&self.ipv6, (address.to_bits(), length)),
        }
    }

    /// Gives every policy its routes, in order; `numbers` are the final numbers of files.
    pub(super) fn distribute(&mut self, policies: &mut [RoutePolicy], numbers: &[u32]) {
        let mut counts = vec![0; policies.len()];
        let owners = self.ipv4.iter().map(|r| r.policy).chain(self.ipv6.iter().map(|r| r.policy));
        owners.for_each(|policy| counts[policy as usize] += 1);
        for (policy, count) in policies.iter_mut().zip(counts) {
            policy.routes = Vec::with_capacity(count);
        }
        give(&self.ipv4, ipv4_prefix, policies, numbers);
        give(&self.ipv6, ipv6_prefix, policies, numbers);
    }
}

fn ipv4_prefix(key: u64) -> Prefix {
    let [_, _, _, a, b, c, d, length] = key.to_be_bytes();
    Prefix::V4([a, b, c, d].into(), length)
}

fn ipv6_prefix((address, length): (u128, u8)) -> Prefix {
    Prefix::V6(address.into(), length)
}

fn give<K: Copy>(rows: &[Row<K>], prefix: fn(K) -> Prefix, policies: &mut [RoutePolicy], numbers: &[u32]) {
    for row in rows {
        let origin = Origin { file: numbers[row.origin.file as usize], line: row.origin.line };
        policies[row.policy as usize].routes.push(Route { prefix: prefix(row.key), action: row.action, origin });
    }
}

fn duplicates<K: Copy + Eq>(
    rows: &[Row<K>],
    prefix: fn(K) -> Prefix,
    policies: &[RoutePolicy],
    places: &mut Places,
    faults: &mut Faults,
) {
    let nodes = |row: &Row<K>| policies.get(row.policy as usize).map(|policy| &policy.nodes);
    let mut begin = 0;
    for at in 1..rows.len() {
        if rows[at].key != rows[begin].key {
            begin = at;
            continue;
        }
        let meets = |other: &Row<K>| match (nodes(other), nodes(&rows[at])) {
            (Some(theirs), Some(ours)) => theirs.can_meet(ours),
            _ => true,
        };
        // Policies for different nodes may write the same prefix: no node gets it twice.
        let Some(first) = (begin..at).find(|&other| meets(&rows[other])) else { continue };
        let file = places.file(rows[at].origin);
        if faults.is_full(file) {
            faults.count_error(file);
            continue;
        }
        let message = format!("the prefix {} is written twice", prefix(rows[at].key));
        let (span, first_span) = (places.span(&rows[at]), places.span(&rows[first]));
        let first_file = places.file(rows[first].origin);
        faults.push(
            Diagnostic::new(Code::DuplicatePrefix, file, Some(span), message)
                .related(first_file, first_span, "first written here")
                .help("remove one of the two"),
        );
    }
}

/// Finds the place of a row again; only faults pay for it.
struct Places<'a> {
    snapshot: &'a Snapshot,
    files: Option<Vec<&'a str>>,
    sites: &'a [Span],
    /// Places of the prefixes of a list, by line.
    lines: HashMap<u32, HashMap<u32, Span>>,
}

impl<'a> Places<'a> {
    fn file(&mut self, origin: Origin) -> &'a str {
        let files = self.files.get_or_insert_with(|| self.snapshot.files.keys().map(String::as_str).collect());
        files.get(origin.file as usize).copied().unwrap_or(".")
    }

    fn span<K>(&mut self, row: &Row<K>) -> Span {
        if let Some(span) = self.sites.get(row.site as usize) {
            return *span;
        }
        let file = self.file(row.origin);
        let snapshot = self.snapshot;
        let lines = self.lines.entry(row.origin.file).or_insert_with(|| {
            let text = std::str::from_utf8(snapshot.content(file).unwrap_or_default()).unwrap_or_default();
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            list::lines(text).map(|line| (line.number, line.span(line.prefix))).collect()
        });
        lines.get(&row.origin.line).copied().unwrap_or(Span::line(row.origin.line))
    }
}
