//! Routes that change nothing: those that do what their covering route does, and those that no packet ever meets.
//!
//! `Policy -> warnings`. One pass over the routes in address order, with the routes that cover the present one on a stack:
//! O(routes × nesting).

use std::collections::BTreeMap;

use crate::source::is_yaml;

use super::codes::Code;
use super::diagnostic::{Diagnostic, Faults, Span};
use super::{Origin, Policy, Prefix, Route, RoutePolicy};

/// One warning for every such route of a document, and one for all of a prefix list: lists are made by machines, which do
/// not aggregate.
pub fn redundant(policy: &Policy) -> Vec<Diagnostic> {
    let mut search = Search { policy, faults: Faults::default(), lists: BTreeMap::new() };
    for ipv4 in [true, false] {
        let rows = rows(policy, ipv4);
        search.family(&rows);
    }
    search.finish()
}

struct Row<'p> {
    first: u128,
    last: u128,
    policy: &'p RoutePolicy,
    route: &'p Route,
}

fn rows(policy: &Policy, ipv4: bool) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    for of in &policy.route_policies {
        for route in of.routes.iter().filter(|route| route.prefix.is_ipv4() == ipv4) {
            let (first, host_bits) = match route.prefix {
                Prefix::V4(address, length) => (u128::from(address.to_bits()), 32 - u32::from(length)),
                Prefix::V6(address, length) => (address.to_bits(), 128 - u32::from(length)),
            };
            let last = first | u128::MAX.checked_shr(128 - host_bits).unwrap_or(0);
            rows.push(Row { first, last, policy: of, route });
        }
    }
    // The outer of two comes first; sorted runs are merged in one pass.
    rows.sort_by_key(|row| (row.first, std::cmp::Reverse(row.last)));
    rows
}

/// A route that covers the present one.
struct Cover<'r, 'p> {
    row: &'r Row<'p>,
    /// Up to here its addresses all meet longer prefixes; `None`: up to its end.
    uncovered: Option<u128>,
    /// The first of those.
    by: Option<&'r Row<'p>>,
}

/// The warnings of one list, of one kind.
struct InList {
    count: usize,
    prefix: Prefix,
    line: u32,
    other: (Prefix, Origin),
}

struct Search<'p> {
    policy: &'p Policy,
    faults: Faults,
    /// By file and code.
    lists: BTreeMap<(u32, Code), InList>,
}

impl Search<'_> {
    fn family(&mut self, rows: &[Row<'_>]) {
        let mut covers: Vec<Cover<'_, '_>> = Vec::new();
        for row in rows {
            while let Some(cover) = covers.pop_if(|cover| cover.row.last < row.first) {
                self.closed(&cover);
            }
            // What a packet would meet without this route, on a node that has it.
            let next = covers.iter().rev().find(|cover| cover.row.policy.nodes.can_meet(&row.policy.nodes));
            let same = next
                .filter(|cover| cover.row.policy.name == row.policy.name && cover.row.route.action == row.route.action);
            if let Some(cover) = same {
                self.found(Code::RedundantRoute, row, cover.row);
            } else {
                // Redundant routes cover nothing: or two equal halves would shadow the whole, and all three could go.
                for cover in &mut covers {
                    let Some(uncovered) = cover.uncovered else { continue };
                    if row.first <= uncovered
                        && row.last >= uncovered
                        && row.policy.nodes.includes(&cover.row.policy.nodes)
                    {
                        cover.by = cover.by.or(Some(row));
                        cover.uncovered = row.last.checked_add(1).filter(|next| *next <= cover.row.last);
                    }
                }
            }
            covers.push(Cover { row, uncovered: Some(row.first), by: None });
        }
        while let Some(cover) = covers.pop() {
            self.closed(&cover);
        }
    }

    /// Nothing longer comes any more.
    fn closed(&mut self, cover: &Cover<'_, '_>) {
        if let Cover { row, uncovered: None, by: Some(by) } = cover {
            self.found(Code::ShadowedRoute, row, by);
        }
    }

    fn found(&mut self, code: Code, row: &Row<'_>, other: &Row<'_>) {
        let (prefix, origin) = (row.route.prefix, row.route.origin);
        let other = (other.route.prefix, other.route.origin);
        let file = self.file(origin);
        if !is_yaml(file) {
            let first = InList { count: 0, prefix, line: origin.line, other };
            let all = self.lists.entry((origin.file, code)).or_insert(first);
            all.count += 1;
            if origin.line < all.line {
                *all = InList { count: all.count, prefix, line: origin.line, other };
            }
            return;
        }
        let message = match code {
            Code::ShadowedRoute => format!("no packet meets the route {prefix}: longer prefixes cover all of it"),
            _ => format!("the route {prefix} does what {} does, which covers it", other.0),
        };
        let diagnostic = Diagnostic::new(code, file, Some(Span::line(origin.line)), message);
        let diagnostic = diagnostic.related(self.file(other.1), Span::line(other.1.line), label(code, other.0));
        self.faults.push(diagnostic);
    }

    fn file(&self, origin: Origin) -> &str {
        self.policy.files.get(origin.file as usize).map_or(".", String::as_str)
    }

    fn finish(mut self) -> Vec<Diagnostic> {
        for ((file, code), all) in std::mem::take(&mut self.lists) {
            let file = self.policy.files.get(file as usize).map_or(".", String::as_str);
            let (count, prefix) = (all.count, all.prefix);
            let message = match (code, count) {
                (Code::ShadowedRoute, 1) => {
                    format!("no packet meets the route {prefix}: longer prefixes cover all of it")
                }
                (Code::ShadowedRoute, _) => {
                    format!(
                        "no packet meets {count} routes of this list, {prefix} the first: longer prefixes cover them"
                    )
                }
                (_, 1) => format!("the route {prefix} does what {} does, which covers it", all.other.0),
                _ => format!("{count} routes of this list do what their covering routes do, {prefix} the first"),
            };
            let other = self.file(all.other.1).to_owned();
            let label = label(code, all.other.0);
            let diagnostic = Diagnostic::new(code, file, Some(Span::line(all.line)), message);
            self.faults.push(diagnostic.related(&other, Span::line(all.other.1.line), label));
        }
        self.faults.finish()
    }
}

fn label(code: Code, other: Prefix) -> String {
    match code {
        Code::ShadowedRoute => format!("{other} is the first that covers it"),
        _ => format!("{other} covers it"),
    }
}

#[cfg(test)]
mod tests;
