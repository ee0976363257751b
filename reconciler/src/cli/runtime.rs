//! The live generation's next hops as they are now: for `status`, and beside a plan.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use serde::Serialize;

use crate::compile::View;
use crate::compile::view::RouteAction;
use crate::daemon::adaptive::share_percent;
use crate::daemon::node::{Node, NodeError};
use crate::daemon::reach::word;
use crate::daemon::state::State;
use crate::daemon::time::rfc3339;
use crate::kernel::health::Backends;
use crate::kernel::tables::Tables;

/// Next hops named in the human form before the rest folds into a count.
const SHOWN_MAX: usize = 10;

/// Read from the kernel's neighbour table; the daemon's file only adds since when and why.
#[derive(Debug, Serialize)]
pub(super) struct Runtime {
    pub next_hops: Vec<NextHop>,
    /// Groups that have lost weight.
    pub degraded_groups: Vec<Group>,
    /// Backends of services that have health checks.
    pub backends: Vec<BackendHealth>,
    /// Services all of whose backends are used, because fewer than `minHealthy` are healthy.
    pub fail_open: Vec<String>,
    /// When a daemon last said how backends are.
    pub backends_as_of: Option<String>,
}

/// A backend as its checks found it: read from the kernel; the daemon's file adds since when, why and how often.
#[derive(Clone, Debug, Serialize)]
pub(super) struct BackendHealth {
    #[serde(skip)]
    pub id: u32,
    service: String,
    backend: String,
    /// `healthy`, `unhealthy` or `unknown`.
    state: &'static str,
    /// Whether packets go to it; where too few are healthy, all are used.
    used: bool,
    /// What it gets of the new flows that its weight gives it; less than 100 where the service is adaptive and it is slow.
    share_percent: u8,
    /// How long checks that pass take, averaged.
    latency_ms: Option<f64>,
    since: Option<String>,
    reason: Option<String>,
    /// How often the daemon that last ran has checked it, and when it last did.
    checks: Option<u64>,
    checked: Option<String>,
}

impl BackendHealth {
    pub(super) fn standing(&self) -> String {
        let since = self.since.as_ref().map(|since| format!(" since {since}")).unwrap_or_default();
        let why = self.reason.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        let used = if self.used && self.state == "unhealthy" { ", used all the same" } else { "" };
        let slow = if self.is_slow() { format!(", slow: {}", self.share()) } else { String::new() };
        format!("{}{since}{why}{used}{slow}", self.state)
    }

    fn is_slow(&self) -> bool {
        self.share_percent < 100 && self.used
    }

    /// What it keeps.
    fn share(&self) -> String {
        let latency = self.latency_ms.map(|ms| format!(", as checks take {ms:.1} ms")).unwrap_or_default();
        format!("gets {} % of its new flows{latency}", self.share_percent)
    }
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct NextHop {
    #[serde(skip)]
    pub id: u32,
    /// `policy/name`.
    #[serde(rename = "next_hop")]
    name: String,
    via: IpAddr,
    port: String,
    /// `null`: the node's configuration does not name the port.
    device: Option<String>,
    /// `up`, `down` or `unknown`.
    state: &'static str,
    /// Since when it is that; `null` where no daemon has seen it become so.
    since: Option<String>,
    why: Option<String>,
    resolved: bool,
}

/// A next-hop group some of whose weight is down.
#[derive(Debug, Serialize)]
pub(super) struct Group {
    members: Vec<Member>,
    weight: u32,
    weight_down: u32,
    on_all_down: &'static str,
    /// Routes that use it, and the first of them.
    routes: usize,
    first_route: Option<String>,
}

#[derive(Debug, Serialize)]
struct Member {
    next_hop: String,
    weight: u32,
    state: &'static str,
}

impl Runtime {
    pub(super) fn read(node: &Node, view: &View<'_>, state: &State) -> Result<Self, NodeError> {
        let tables = Tables::open(&node.pins)?;
        let records: BTreeMap<u32, _> = state.next_hops().into_iter().map(|record| (record.id, record)).collect();
        let mut next_hops = Vec::new();
        for hop in view.next_hops() {
            let reach = tables.reach(hop.id)?;
            let state = word(&reach);
            // An id that another next hop had, or a state that the kernel no longer holds, says nothing.
            let record = records.get(&hop.id).filter(|record| record.via == hop.via && record.state == state);
            next_hops.push(NextHop {
                id: hop.id,
                name: format!("{}/{}", hop.policy, hop.name),
                via: hop.via,
                port: hop.port.to_owned(),
                device: node.config.ports.get(hop.port).map(|port| port.device.clone()),
                state,
                since: record.map(|record| rfc3339(record.since_unix_ms)),
                why: record.and_then(|record| record.why.clone()),
                resolved: reach.up().is_some(),
            });
        }
        let degraded_groups = groups(view, &next_hops);
        let (backends, as_of) = backends(node, view, state)?;
        let fail_open: std::collections::BTreeSet<_> =
            backends.iter().filter(|b| b.state == "unhealthy" && b.used).map(|b| b.service.clone()).collect();
        let backends_as_of = as_of.filter(|_| !backends.is_empty()).map(rfc3339);
        Ok(Self { next_hops, degraded_groups, backends, fail_open: fail_open.into_iter().collect(), backends_as_of })
    }

    /// Without those of which nothing has to be said.
    pub(super) fn troubled(mut self) -> Self {
        self.next_hops.retain(|hop| hop.state != "up");
        self.backends.retain(|backend| backend.state == "unhealthy" || backend.is_slow());
        self
    }

    pub(super) fn is_down(&self) -> bool {
        self.next_hops.iter().any(|hop| hop.state == "down")
    }

    /// Lines of `status`.
    pub(super) fn human(&self) -> String {
        let count = |state: &str| self.next_hops.iter().filter(|hop| hop.state == state).count();
        let mut out =
            format!("  next hops   {} up, {} down, {} unknown\n", count("up"), count("down"), count("unknown"));
        let all = self.next_hops.len() <= SHOWN_MAX;
        for hop in self.next_hops.iter().filter(|hop| all || hop.state != "up").take(SHOWN_MAX) {
            let device = hop.device.as_ref().map(|device| format!(" ({device})")).unwrap_or_default();
            let _ = writeln!(
                out,
                "              {} via {} on port {}{device}: {}",
                hop.name,
                hop.via,
                hop.port,
                hop.standing()
            );
        }
        for group in self.degraded_groups.iter().take(SHOWN_MAX) {
            let _ = writeln!(out, "  degraded    {}", group.words());
        }
        out
    }

    /// What stands below a plan; empty where nothing is down.
    pub(super) fn beside_plan(&self) -> String {
        let mut out = String::new();
        let down: Vec<_> = self.next_hops.iter().filter(|hop| hop.state == "down").collect();
        for hop in down.iter().take(SHOWN_MAX) {
            let _ = writeln!(out, "  next hop {} is {}", hop.name, hop.standing());
        }
        if let Some(folded) = down.len().checked_sub(SHOWN_MAX).filter(|&folded| folded > 0) {
            let _ = writeln!(out, "  … and {folded} more next hops are down; --format json lists all");
        }
        for group in self.degraded_groups.iter().take(SHOWN_MAX) {
            let _ = writeln!(out, "  {}", group.words());
        }
        for backend in self.backends.iter().filter(|backend| backend.state == "unhealthy").take(SHOWN_MAX) {
            let _ = writeln!(out, "  backend {}/{} is {}", backend.service, backend.backend, backend.standing());
        }
        let slow = self.backends.iter().filter(|backend| backend.state != "unhealthy" && backend.is_slow());
        for backend in slow.take(SHOWN_MAX) {
            let _ = writeln!(out, "  backend {}/{} is slow: {}", backend.service, backend.backend, backend.share());
        }
        for service in self.fail_open.iter().take(SHOWN_MAX) {
            let _ = writeln!(out, "  service {service} has fewer healthy backends than minHealthy: all are used");
        }
        if out.is_empty() { out } else { format!("\nRuntime (not part of the plan):\n{out}") }
    }
}

impl NextHop {
    fn standing(&self) -> String {
        let since = self.since.as_ref().map(|since| format!(" since {since}")).unwrap_or_default();
        let why = self.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        format!("{}{since}{why}", self.state)
    }
}

impl Group {
    fn words(&self) -> String {
        let members: Vec<_> =
            self.members.iter().map(|m| format!("{} ×{} {}", m.next_hop, m.weight, m.state)).collect();
        let routes = match (self.routes, &self.first_route) {
            (1, Some(only)) => format!("route {only}"),
            (n, Some(first)) => format!("{n} routes, the first {first}"),
            (_, None) => "no route".to_owned(),
        };
        let then =
            if self.weight == self.weight_down { format!("; on-all-down {}", self.on_all_down) } else { String::new() };
        format!("{} of {} weight down for {routes}: {}{then}", self.weight_down, self.weight, members.join(", "))
    }
}

/// Backends that are checked, and when a daemon last said how they are.
fn backends(node: &Node, view: &View<'_>, state: &State) -> Result<(Vec<BackendHealth>, Option<u64>), NodeError> {
    if view.services().all(|service| service.health.is_none()) {
        return Ok((Vec::new(), None));
    }
    let table = Backends::open(&node.pins)?;
    let (as_of, records) = state.backends();
    let records: BTreeMap<u32, _> = records.into_iter().map(|record| (record.id, record)).collect();
    let mut all = Vec::new();
    for service in view.services().filter(|service| service.health.is_some()) {
        for backend in view.backends(&service) {
            let standing = table.get(backend.id)?;
            let (name, state) = (backend.name(), standing.health.word());
            let record =
                records.get(&backend.id).filter(|record| record.backend == name && record.service == service.name);
            let same = record.filter(|record| record.state == state);
            all.push(BackendHealth {
                id: backend.id,
                service: service.name.to_owned(),
                backend: name,
                state,
                used: !standing.is_down,
                share_percent: share_percent(standing.away),
                latency_ms: record.and_then(|record| record.latency_ms),
                since: same.map(|record| rfc3339(record.since_unix_ms)),
                reason: same.and_then(|record| record.why.clone()),
                checks: record.map(|record| record.checks),
                checked: record.and_then(|record| record.checked_unix_ms).map(rfc3339),
            });
        }
    }
    Ok((all, as_of))
}

fn groups(view: &View<'_>, next_hops: &[NextHop]) -> Vec<Group> {
    let states: BTreeMap<u32, &NextHop> = next_hops.iter().map(|hop| (hop.id, hop)).collect();
    if next_hops.iter().all(|hop| hop.state != "down") {
        return Vec::new();
    }
    let mut groups: BTreeMap<u32, Group> = BTreeMap::new();
    for route in view.routes_v4().chain(view.routes_v6()) {
        let RouteAction::Forward { group: number } = route.action else { continue };
        let group = groups.entry(number).or_insert_with(|| {
            let member = |m: crate::compile::view::MemberView<'_>| {
                let hop = states.get(&m.next_hop.id)?;
                Some(Member { next_hop: hop.name.clone(), weight: m.weight, state: hop.state })
            };
            let members: Vec<_> = view.members(number).filter_map(member).collect();
            let sum = |down: bool| members.iter().filter(|m| !down || m.state == "down").map(|m| m.weight).sum();
            let (weight, weight_down) = (sum(false), sum(true));
            let on_all_down = view.on_all_down(number).as_str();
            let first_route = Some(route.prefix.to_string());
            Group { weight, weight_down, members, on_all_down, routes: 0, first_route }
        });
        group.routes += 1;
    }
    groups.into_values().filter(|group| group.weight_down > 0).collect()
}
