//! The way back to the intent: what an image was compiled from, as far as rules go.

use std::collections::HashMap;

use fib::layout::{NEXT_HOP_FILE, NEXT_HOP_POLICY, Section};

use super::{RouteAction, View};
use crate::policy::{Action, NextHop, NextHopGroup, Origin, Policy, Route, RoutePolicy, Selector};

impl View<'_> {
    /// The policies that the image was compiled from, for the one node that it was compiled for: compiled again, they give the
    /// same bytes. What is no part of an image is left out: owners, selectors and probes. An image holds nothing but what
    /// [`crate::policy::validate()`] let through, so every reference resolves.
    pub fn policy(&self) -> Policy {
        let files: Vec<String> = self.rows(Section::Files).map(|row| self.file(row).to_owned()).collect();
        let number: HashMap<&str, u32> = files.iter().map(String::as_str).zip(0..).collect();
        let origin = |file: &str, line| Origin { file: number.get(file).copied().unwrap_or_default(), line };
        let mut policies: Vec<RoutePolicy> = self
            .policies()
            .map(|policy| RoutePolicy {
                name: policy.name.to_owned(),
                owner: None,
                nodes: Selector::default(),
                origin: origin(policy.file, policy.line),
                next_hops: Vec::new(),
                groups: Vec::new(),
                routes: Vec::new(),
                probes: Vec::new(),
            })
            .collect();
        // Rows of the image as (policy, place in it).
        let hops = self.next_hops_of(&mut policies);
        let groups = self.groups_of(&mut policies, &hops);
        let places: HashMap<&str, usize> = self.policies().map(|policy| policy.name).zip(0..).collect();
        for route in self.routes_v4().chain(self.routes_v6()) {
            let action = match route.action {
                RouteAction::Forward { group } => {
                    Action::Forward(groups.get(group as usize).copied().unwrap_or_default())
                }
                RouteAction::Drop => Action::Drop,
                RouteAction::Pass => Action::Pass,
            };
            let Some(policy) = places.get(route.policy).and_then(|place| policies.get_mut(*place)) else { continue };
            policy.routes.push(Route { prefix: route.prefix, action, origin: origin(route.file, route.line) });
        }
        Policy { revision: self.revision().to_owned(), files, route_policies: policies }
    }

    /// Adds the next hops; gives each row's place in its policy.
    fn next_hops_of(&self, policies: &mut [RoutePolicy]) -> Vec<u32> {
        let place = |row| {
            let hop = self.next_hop(row);
            let at = self.at(Section::NextHops, row);
            let policy = policies.get_mut(self.u32(at + NEXT_HOP_POLICY) as usize)?;
            let origin = Origin { file: self.u32(at + NEXT_HOP_FILE), line: hop.line };
            let (name, port) = (hop.name.to_owned(), hop.port.to_owned());
            policy.next_hops.push(NextHop { name, via: hop.via, port, origin });
            u32::try_from(policy.next_hops.len() - 1).ok()
        };
        self.rows(Section::NextHops).map(place).map(Option::unwrap_or_default).collect()
    }

    /// Adds the groups; gives each row's place in its policy.
    fn groups_of(&self, policies: &mut [RoutePolicy], hops: &[u32]) -> Vec<u32> {
        let place = |group| {
            let policy = policies.get_mut(self.u32(self.at(Section::Groups, group)) as usize)?;
            let member = |row| {
                let at = self.at(Section::Members, row);
                let hop = hops.get(self.u32(at) as usize).copied().unwrap_or_default();
                (hop, u16::try_from(self.u32(at + 4)).unwrap_or(u16::MAX))
            };
            let mut members: Vec<_> = self.member_rows(group).map(member).collect();
            members.sort_unstable();
            policy.groups.push(NextHopGroup { members, on_all_down: self.on_all_down(group) });
            u32::try_from(policy.groups.len() - 1).ok()
        };
        self.rows(Section::Groups).map(place).map(Option::unwrap_or_default).collect()
    }
}
