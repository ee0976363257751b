//! Trace: what happens to one packet, and which line of which file says so.
//!
//! `(image, packet, node) -> Trace`. Pure. The verdict is the packet path's own code over the real bytes; the place comes
//! from the route tables; when the two disagree, that is an error and not an answer.

pub mod event;
mod filter;
mod frame;
mod node;
mod packet;
mod service;

use std::fmt;
use std::net::IpAddr;

use fib::layout::Section;
use fib::packet::Tags;
use fib::{Neighbour, Reach, Reason, Steer, Verdict};
use serde::{Serialize, Serializer};

use crate::compile::view::{FilterRuleView, Match, MemberView, NextHopView, RouteAction, RouteView, TargetView, View};
use crate::policy::OnAllDown;
pub use filter::Filtered;
pub use frame::Frame;
use node::{AllUp, mac};
pub use node::{Egress, Offline, OfflineBy, TraceNode, tag_words};
pub use packet::{Fields, PacketDescription, PacketError};
pub use service::Served;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    #[error("the image disagrees with itself about {address}: its routes say {routes}, its lookup tables say {lookup}")]
    ImageDisagrees { address: IpAddr, routes: String, lookup: String },
}

/// What happens to one packet.
#[derive(Clone, Debug)]
pub struct Trace<'v, 'a> {
    view: &'v View<'a>,
    packet: PacketDescription,
    reason: Reason,
    filtered: Filtered<'a>,
    /// What the destination meets; `None` when the packet was answered before the routes were asked.
    met: Option<Match<'a>>,
    next_hop: Option<NextHopView<'a>>,
    /// The member that the flow falls on, when it is down and another one was chosen.
    instead_of: Option<NextHopView<'a>>,
    /// What the node knows of the chosen next hop.
    reach: Option<Reach>,
    egress: Option<Egress>,
    in_port: Option<String>,
    /// The service that the packet met.
    served: Option<Served<'a>>,
    /// What its route was looked up for.
    routed_to: IpAddr,
}

/// Decides on a packet as the packet path would, and explains it.
pub fn trace<'v, 'a, N: TraceNode>(
    view: &'v View<'a>,
    packet: PacketDescription,
    node: &N,
) -> Result<Trace<'v, 'a>, TraceError> {
    let frame = packet.frame(Tags::default());
    let mut steer = Steer::NONE;
    let decision = fib::decide_with(view.bytes(), frame.as_slice(), node, &mut steer);
    let address = service::routed_to(&steer).unwrap_or(packet.dst());
    let in_port = node.in_port().map(str::to_owned);
    let mut trace = Trace {
        view,
        packet,
        reason: decision.reason(),
        filtered: Filtered::of(view, &frame, node),
        met: None,
        next_hop: None,
        instead_of: None,
        reach: None,
        egress: None,
        in_port,
        served: Served::of(view, &steer),
        routed_to: address,
    };
    if decision.family == 0 || service::ends_there(decision.reason()) {
        return Ok(trace);
    }
    let met = view.lookup(address);
    let target = view.target(decision.met.target());
    let disagrees = |lookup: String| TraceError::ImageDisagrees { address, routes: words(&met), lookup };
    if decision.reason() == Reason::BadImage || !target.is_some_and(|target| target.agrees_with(&met)) {
        return Err(disagrees(
            target.map_or_else(|| format!("target {}", decision.met.target()), |t| target_words(&t)),
        ));
    }
    let member = |row: u32| match target {
        Some(TargetView::Route { action: RouteAction::Forward { group }, .. })
            if row < view.count(Section::NextHops) && view.has_member(group, row) =>
        {
            Ok(view.next_hop(row))
        }
        _ => Err(disagrees(format!("next hop {row}, which is not a member of the group"))),
    };
    trace.next_hop = decision.next_hop.map(member).transpose()?;
    if let Some(hop) = trace.next_hop {
        let first = fib::decide(view.bytes(), frame.as_slice(), &AllUp(node));
        trace.instead_of = first.next_hop.filter(|row| Some(*row) != decision.next_hop).map(member).transpose()?;
        trace.reach = Some(decision.neighbour().map_or_else(|| Reach::decode(node.reach(hop.id)), Reach::Up));
        let egress = node.egress(decision.port);
        // The packet path finds that out when it sends.
        if trace.reason == Reason::Forwarded && egress == Egress::NoDevice {
            trace.reason = Reason::NoPort;
        }
        trace.egress = Some(egress);
    }
    trace.met = Some(met);
    Ok(trace)
}

impl<'a> Trace<'_, 'a> {
    pub fn verdict(&self) -> Verdict {
        self.reason.verdict()
    }

    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// What the filter said.
    pub fn filtered(&self) -> Filtered<'a> {
        self.filtered
    }

    /// The filter rule that stopped the packet.
    pub fn stopped_by(&self) -> Option<FilterRuleView<'a>> {
        self.filtered.rule().filter(|_| self.reason == Reason::FilterDeny)
    }

    /// The route that the packet met.
    pub fn route(&self) -> Option<RouteView<'a>> {
        match self.met {
            Some(Match::Route(route)) => Some(route),
            _ => None,
        }
    }

    /// What happens to packets of the route when all its next hops are down; `None` when it does not forward.
    pub fn on_all_down(&self) -> Option<OnAllDown> {
        match self.route()?.action {
            RouteAction::Forward { group } => Some(self.view.on_all_down(group)),
            _ => None,
        }
    }

    /// The chosen next hop, also when the packet could not be sent to it.
    pub fn next_hop(&self) -> Option<NextHopView<'a>> {
        self.next_hop
    }

    /// The member that the flow falls on, where it is down and [`Trace::next_hop`] takes its flows.
    pub fn instead_of(&self) -> Option<NextHopView<'a>> {
        self.instead_of
    }

    /// The service that the packet met, with its backend.
    pub fn served(&self) -> Option<&Served<'a>> {
        self.served.as_ref()
    }

    /// How frames reach the chosen next hop, where that is known.
    pub fn neighbour(&self) -> Option<Neighbour> {
        self.reach?.up().filter(|neighbour| *neighbour != Neighbour::default())
    }
}

pub(crate) fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Forward => "forward",
        Verdict::Pass => "pass",
        Verdict::Drop => "drop",
        Verdict::Answer => "answer",
    }
}

fn words(met: &Match) -> String {
    match met {
        Match::None => "no route".to_owned(),
        Match::Local => "local".to_owned(),
        Match::Route(route) => format!("{} of policy {} by {}", action_words(route.action), route.policy, route.prefix),
    }
}

fn target_words(target: &TargetView) -> String {
    match target {
        TargetView::None => "no route".to_owned(),
        TargetView::Local => "local".to_owned(),
        TargetView::Route { action, policy } => format!("{} of policy {policy}", action_words(*action)),
    }
}

fn action_words(action: RouteAction) -> String {
    match action {
        RouteAction::Forward { group } => format!("next-hop group {group}"),
        RouteAction::Drop => "drop".to_owned(),
        RouteAction::Pass => "pass".to_owned(),
    }
}

#[derive(Serialize)]
struct TraceJson<'a> {
    verdict: &'a str,
    reason: &'a str,
    generation: Option<u64>,
    revision: &'a str,
    prefix: Option<String>,
    policy: Option<&'a str>,
    file: Option<&'a str>,
    line: Option<u32>,
    /// `pass` or `drop`; of routes that forward.
    on_all_down: Option<&'a str>,
    /// What the filter says; `null`: there is none, or the packet is none for it.
    filter: serde_json::Value,
    next_hop: Option<NextHopJson<'a>>,
    /// The member that the flow falls on, when it is down and `next_hop` stands in for it.
    instead_of: Option<&'a str>,
    neighbour: Option<NeighbourJson>,
    egress: Option<EgressJson<'a>>,
    in_port: Option<&'a str>,
    /// Of the service, where the packet met one.
    backend: Option<String>,
    service: Option<service::ServedJson<'a>>,
}

#[derive(Serialize)]
struct NextHopJson<'a> {
    name: &'a str,
    via: IpAddr,
    port: &'a str,
    file: &'a str,
    line: u32,
}

#[derive(Serialize)]
struct NeighbourJson {
    /// `up`, `down`, `unknown`, or `assumed` where no node was asked.
    state: &'static str,
    mac: Option<String>,
    source_mac: Option<String>,
    /// `null`: no limit known.
    mtu: Option<u16>,
}

#[derive(Serialize)]
struct EgressJson<'a> {
    port: &'a str,
    /// `null`: the port has none, or no node was asked.
    device: Option<&'a str>,
    /// VLAN tags, outer first: `100` or `s200.100`; `null`: none.
    tags: Option<String>,
}

impl Serialize for Trace<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (route, stopped_by) = (self.route(), self.stopped_by());
        TraceJson {
            verdict: verdict_name(self.verdict()),
            reason: self.reason.name(),
            generation: Some(self.view.generation()).filter(|&generation| generation != 0),
            revision: self.view.revision(),
            prefix: route.map(|route| route.prefix.to_string()),
            policy: route.map(|route| route.policy).or(stopped_by.map(|rule| rule.policy)),
            file: route.map(|route| route.file).or(stopped_by.map(|rule| rule.file)),
            line: route.map(|route| route.line).or(stopped_by.map(|rule| rule.line)),
            on_all_down: self.on_all_down().map(OnAllDown::as_str),
            filter: self.filtered.json(),
            next_hop: self.next_hop.map(|hop| NextHopJson {
                name: hop.name,
                via: hop.via,
                port: hop.port,
                file: hop.file,
                line: hop.line,
            }),
            instead_of: self.instead_of.map(|hop| hop.name),
            neighbour: self.reach.map(|reach| NeighbourJson {
                state: self.state(reach),
                mac: self.neighbour().map(|neighbour| mac(neighbour.destination)),
                source_mac: self.neighbour().map(|neighbour| mac(neighbour.source)),
                mtu: self.neighbour().map(|neighbour| neighbour.mtu).filter(|&mtu| mtu != 0),
            }),
            egress: self.next_hop.zip(self.egress.as_ref()).map(|(hop, egress)| EgressJson {
                port: hop.port,
                device: egress.device(),
                tags: self.neighbour().and_then(|neighbour| tag_words(neighbour.tags)),
            }),
            in_port: self.in_port.as_deref(),
            backend: self.served.as_ref().and_then(|served| served.backend).map(|backend| backend.name()),
            service: self.served.as_ref().map(Served::to_json),
        }
        .serialize(serializer)
    }
}

/// One line a stage, in the order in which the packet passes them.
impl fmt::Display for Trace<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.in_port {
            None => writeln!(f, "packet    {}", self.packet)?,
            Some(port) => writeln!(f, "packet    {}, in by {port}", self.packet)?,
        }
        match self.view.generation() {
            0 => writeln!(f, "rules     {}, not published", self.view.revision())?,
            generation => writeln!(f, "rules     {}, generation {generation}", self.view.revision())?,
        }
        write!(f, "{}", self.filtered)?;
        if let Some(served) = &self.served {
            f.write_str(&served.lines())?;
        }
        match &self.met {
            None => writeln!(f, "route     not asked")?,
            Some(Match::None) => writeln!(f, "route     no prefix matches")?,
            Some(Match::Local) => writeln!(f, "route     {} is an address of this node", self.routed_to)?,
            Some(Match::Route(route)) => {
                writeln!(f, "route     {} of {}  [{}:{}]", route.prefix, route.policy, route.file, route.line)?;
                self.action(f, route.action)?;
            }
        }
        if let Some(hop) = self.next_hop {
            write!(f, "next hop  ")?;
            if let Some(down) = self.instead_of {
                write!(f, "{} is down, {} instead: ", down.name, hop.name)?;
            }
            writeln!(f, "{} via {} port {}  [{}:{}]", hop.name, hop.via, hop.port, hop.file, hop.line)?;
            self.leaving(f, &hop)?;
        } else if let Some(RouteAction::Forward { group }) = self.route().map(|route| route.action) {
            let down: Vec<&str> = self.view.members(group).map(|member| member.next_hop.name).collect();
            writeln!(f, "next hop  none: down: {}", down.join(", "))?;
        }
        writeln!(f, "verdict   {}, {}: {}", verdict_name(self.verdict()), self.reason.name(), why(self.reason))
    }
}

impl Trace<'_, '_> {
    fn action(&self, f: &mut fmt::Formatter<'_>, action: RouteAction) -> fmt::Result {
        let RouteAction::Forward { group } = action else {
            return writeln!(f, "action    {}", action_words(action));
        };
        let members: Vec<MemberView> = self.view.members(group).collect();
        let down = match self.view.on_all_down(group) {
            OnAllDown::Pass => "",
            OnAllDown::Drop => "; drop when all are down",
        };
        if let [only] = members.as_slice() {
            return writeln!(f, "action    forward by {}{down}", only.next_hop.name);
        }
        let each = members.iter().map(|m| format!("{} ×{}", m.next_hop.name, m.weight));
        writeln!(f, "action    forward by one of {}, by flow{down}", each.collect::<Vec<_>>().join(", "))
    }
}

impl Trace<'_, '_> {
    fn state(&self, reach: Reach) -> &'static str {
        match reach {
            Reach::Up(_) if self.neighbour().is_none() => "assumed",
            Reach::Up(_) => "up",
            Reach::Down => "down",
            Reach::Unknown => "unknown",
        }
    }

    /// The stages after the next hop: its neighbour entry, and the port that the frame leaves by.
    fn leaving(&self, f: &mut fmt::Formatter<'_>, hop: &NextHopView) -> fmt::Result {
        match (self.neighbour(), self.reach.map(|reach| self.state(reach))) {
            (Some(neighbour), _) => {
                write!(f, "neighbour {}, up", mac(neighbour.destination))?;
                match neighbour.mtu {
                    0 => writeln!(f)?,
                    mtu => writeln!(f, ", MTU {mtu}")?,
                }
            }
            (None, Some("assumed")) => writeln!(f, "neighbour offline: assumed up")?,
            (None, state) => writeln!(f, "neighbour {}", state.unwrap_or("unknown"))?,
        }
        let tags = self.neighbour().and_then(|neighbour| tag_words(neighbour.tags));
        let tags = tags.map_or_else(String::new, |tags| format!(", tags {tags}"));
        match &self.egress {
            Some(Egress::Device(device)) => {
                let from = self.neighbour().map_or_else(String::new, |n| format!(", from {}", mac(n.source)));
                writeln!(f, "egress    port {}, device {device}{from}{tags}", hop.port)
            }
            Some(Egress::NoDevice) => writeln!(f, "egress    port {} has no device on this node", hop.port),
            Some(Egress::Assumed) | None => writeln!(f, "egress    port {}{tags}", hop.port),
        }
    }
}

/// The reason in words.
fn why(reason: Reason) -> &'static str {
    match reason {
        Reason::Forwarded => "sent to the next hop",
        Reason::NoGeneration => "nothing is published yet",
        Reason::NoRoute => "no rule names this destination, the kernel decides",
        Reason::RoutePass => "the route leaves it to the kernel",
        Reason::Local => "addressed to the node itself, the kernel receives it",
        Reason::NotIp => "not IP, the kernel takes it",
        Reason::LinkNotOurs => "not sent to this node's MAC address",
        Reason::Vlan => "no port carries its VLAN tags, the kernel takes it",
        Reason::NotForwardable => "multicast, broadcast, loopback or link-local, never forwarded",
        Reason::TtlExpired => "TTL or hop limit ends here, the kernel answers with time exceeded",
        Reason::OverMtu => "larger than the egress MTU, the kernel fragments or answers",
        Reason::NoNeighbour => "the next hop's MAC address is not known, the kernel resolves it",
        Reason::NoPort => "the next hop's port has no device on this node",
        Reason::HopByHop => "hop-by-hop options, the kernel reads them",
        Reason::Malformed => "malformed, the kernel discards it",
        Reason::BadImage => "the image is damaged",
        Reason::RouteDrop => "the route drops it",
        Reason::FilterDeny => "the filter rule denies it",
        Reason::FilterDefaultDeny => "no filter rule allows it, and the filter's default is deny",
        Reason::FilterRateLimited => "over the rate limit of the filter rule",
        Reason::AllDown => "every next hop of the route is down, the kernel decides",
        Reason::AllDownDrop => "every next hop of the route is down, and the route says to drop it then",
        Reason::Scattered => "lies in several buffers, which the egress driver cannot send: the kernel sends it",
        Reason::NoRoom => {
            "its buffer has no room for the VLAN tags of the egress port, or for the outer header of a tunnel"
        }
        Reason::NoBackend => "no backend of the service takes new flows, the kernel decides",
        Reason::NoBackendDrop => "no backend of the service takes new flows, and the service says to drop it then",
        Reason::ServiceFragment => "a fragment, which shows no port of the service: the kernel decides",
        Reason::NewFlowRate => "more new flows than the flow table takes, its answer could not be translated back",
        Reason::EchoAnswered => "a ping, which the service answers",
        Reason::NoBackendReject => "no backend of the service takes new flows, and the service says to reject it then",
        Reason::AnswerRate => "no backend takes it, and more such packets come than are answered",
        Reason::NoAnswer => "its answer could not be made in its frame",
        Reason::TunnelMtu => "larger than the egress MTU with its outer header, the sender is told how large it may be",
        Reason::Decapsulated => "its outer header is taken off, the kernel receives what is in it",
        Reason::DecapsulationRefused => "packets in packets from there, or for what is inside, are not taken out here",
        Reason::DecapsulationMalformed => "what it holds is no whole packet",
        Reason::FlowCollision => "the client uses this port at the same backend by another service",
    }
}

#[cfg(test)]
mod tests;
