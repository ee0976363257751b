//! An event of the packet path in words: which packet, and which line of which file decided.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fib::event::Event;
use fib::packet::{self, ETHERNET_BYTES, Packet};
use fib::service::Chosen;
use fib::{Met, Reason, Verdict};
use serde_json::{Value, json};

use super::verdict_name;
use crate::compile::view::{Match, RouteView, View};
use crate::policy::FilterAction;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// The start of a frame, of which the rest was not captured.
#[derive(Clone, Copy, Debug)]
struct Captured<'b> {
    bytes: &'b [u8],
    length: u32,
}

impl Packet for Captured<'_> {
    fn length(&self) -> u32 {
        self.length
    }
    fn be16(&self, at: u32) -> Option<u16> {
        self.bytes.be16(at)
    }
    fn be32(&self, at: u32) -> Option<u32> {
        self.bytes.be32(at)
    }
    fn first_le64(&self) -> Option<u64> {
        self.bytes.first_le64()
    }
    fn after(&self, bytes: u32) -> impl Packet {
        let rest = self.bytes.get(bytes as usize..).unwrap_or_default();
        Captured { bytes: rest, length: self.length.saturating_sub(bytes) }
    }
    fn again(&self) -> impl Packet {
        *self
    }
}

/// Addresses of a packet; ports where they were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Endpoints {
    src: IpAddr,
    dst: IpAddr,
    protocol: Option<u8>,
    ports: Option<(u16, u16)>,
}

/// A filter rule, or the policy whose default is deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stopped<'a> {
    policy: &'a str,
    rule: Option<&'a str>,
    file: &'a str,
    line: u32,
}

fn stopped<'a>(event: &Event, view: &View<'a>) -> Option<Stopped<'a>> {
    match Reason::of(event.reason)? {
        Reason::FilterDeny | Reason::FilterRateLimited => {
            let rule = view.filter_rules().find(|rule| rule.id == event.next_hop)?;
            Some(Stopped { policy: rule.policy, rule: Some(rule.name), file: rule.file, line: rule.line })
        }
        Reason::FilterDefaultDeny => {
            let policy = view.filter_policies().find(|policy| policy.default == Some(FilterAction::Deny))?;
            Some(Stopped { policy: policy.name, rule: None, file: policy.file, line: policy.line })
        }
        _ => None,
    }
}

/// An event explained by the image of its generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained<'a> {
    event: Event,
    reason: Option<Reason>,
    endpoints: Option<Endpoints>,
    /// The longest matching prefix, where the packet got as far as the routes.
    route: Option<RouteView<'a>>,
    /// What stopped a packet that a filter stopped: policy, rule (where it was one) and place.
    filter: Option<Stopped<'a>>,
    in_port: Option<&'a str>,
    /// `policy/name`.
    next_hop: Option<String>,
    /// The service that the packet met, and its backend where one was chosen.
    service: Option<(&'a str, Option<String>)>,
    /// Whether the generation's image was there to ask.
    known: bool,
}

impl<'a> Explained<'a> {
    /// Explains an event by `view`, the image of its generation; `None`: that generation is gone, or there was none.
    pub fn new(event: &Event, frame: &[u8], view: Option<&View<'a>>) -> Self {
        let endpoints = endpoints(&Captured { bytes: frame, length: event.length });
        let route = view.zip(endpoints).filter(|_| event.target != 0).and_then(|(view, endpoints)| {
            match view.lookup(endpoints.dst) {
                // What the lookup tables said is compared, so that no other line is ever named.
                Match::Route(route) if route.target == event.target => Some(route),
                _ => None,
            }
        });
        let is_filtered = Reason::of(event.reason).is_some_and(|reason| Met::only(reason).is_filtered());
        let hop = view
            .filter(|_| event.next_hop != 0 && !is_filtered)
            .and_then(|v| v.next_hops().find(|h| h.id == event.next_hop));
        Self {
            event: *event,
            reason: Reason::ALL.iter().copied().find(|reason| *reason as u8 == event.reason),
            endpoints,
            route,
            filter: view.and_then(|view| stopped(event, view)),
            in_port: view.and_then(|v| v.ports().find(|port| port.id == event.in_port)).map(|port| port.name),
            next_hop: hop.map(|hop| format!("{}/{}", hop.policy, hop.name)),
            service: view.and_then(|view| service(view, Chosen(event.chosen))),
            known: view.is_some(),
        }
    }

    /// Name of the policy whose route or filter decided.
    pub fn policy(&self) -> Option<&'a str> {
        self.route.map(|route| route.policy).or(self.filter.map(|filter| filter.policy))
    }

    fn verdict(&self) -> &'static str {
        self.reason.map_or("unknown", |reason| verdict_name(reason.verdict()))
    }

    fn reason(&self) -> &'static str {
        self.reason.map_or("unknown", Reason::name)
    }

    /// One line; `time` is when it was, and `device` the name of the device where the packet came in.
    pub fn line(&self, time: &str, device: Option<&str>) -> String {
        let mut line = format!("{time} {} {}", self.verdict(), self.reason());
        match &self.endpoints {
            Some(Endpoints { src, dst, protocol, ports }) => {
                let at = |address: IpAddr, port: Option<u16>| match port {
                    Some(port) => SocketAddr::new(address, port).to_string(),
                    None => address.to_string(),
                };
                _ = write!(line, " {} -> {}", at(*src, ports.map(|p| p.0)), at(*dst, ports.map(|p| p.1)));
                if let Some(protocol) = protocol {
                    _ = write!(line, " {}", protocol_name(*protocol));
                }
            }
            None => _ = write!(line, " frame of {} bytes", self.event.length),
        }
        match (self.in_port, device) {
            (Some(port), _) => _ = write!(line, ", in by {port}"),
            (None, Some(device)) => _ = write!(line, ", in by device {device}"),
            (None, None) => _ = write!(line, ", in by device {}", self.event.device),
        }
        if let Some(route) = self.route {
            _ = write!(line, ", {} of {} ({}:{})", route.prefix, route.policy, route.file, route.line);
        }
        if let Some(Stopped { policy, rule, file, line: at }) = self.filter {
            let what = rule.map_or_else(|| format!("the default of {policy}"), |rule| format!("{policy}/{rule}"));
            _ = write!(line, ", {what} ({file}:{at})");
        }
        if let Some((service, backend)) = &self.service {
            _ = write!(line, ", service {service}");
            if let Some(backend) = backend {
                _ = write!(line, " backend {backend}");
            }
        }
        if let Some(next_hop) = &self.next_hop {
            _ = write!(line, ", to {next_hop}");
        }
        match (self.event.generation, self.known) {
            (0, _) => line += ", no generation",
            (number, true) => _ = write!(line, ", generation {number}"),
            (number, false) => _ = write!(line, ", generation {number}, which is gone: its rules cannot be shown"),
        }
        line
    }

    /// The same as one JSON object.
    pub fn json(&self, time: &str, device: Option<&str>) -> Value {
        let endpoints = self.endpoints;
        let ports = endpoints.and_then(|e| e.ports);
        json!({
            "format_version": 1, "time": time, "verdict": self.verdict(), "reason": self.reason(),
            "src": endpoints.map(|e| e.src), "dst": endpoints.map(|e| e.dst),
            "protocol": endpoints.and_then(|e| e.protocol).map(protocol_name),
            "sport": ports.map(|p| p.0), "dport": ports.map(|p| p.1), "length": self.event.length,
            "in_port": self.in_port, "device": device, "generation": Some(self.event.generation).filter(|&g| g != 0),
            "generation_gone": self.event.generation != 0 && !self.known,
            "prefix": self.route.map(|r| r.prefix.to_string()), "policy": self.policy(),
            "rule": self.filter.and_then(|f| f.rule),
            "file": self.route.map(|r| r.file).or(self.filter.map(|f| f.file)),
            "line": self.route.map(|r| r.line).or(self.filter.map(|f| f.line)), "next_hop": self.next_hop,
            "service": self.service.as_ref().map(|(service, _)| *service),
            "backend": self.service.as_ref().and_then(|(_, backend)| backend.clone()),
        })
    }
}

/// A service and one of its backends by name.
fn service<'a>(view: &View<'a>, chosen: Chosen) -> Option<(&'a str, Option<String>)> {
    if chosen.service() == 0 {
        return None;
    }
    let service = view.services().find(|service| service.id == chosen.service())?;
    let backend = view.backends(&service).find(|backend| backend.id == chosen.backend());
    Some((service.name, backend.map(|backend| backend.name())))
}

/// Reads addresses and ports; also of packets that the verdict has not read so far, as far as they were captured.
fn endpoints(frame: &Captured<'_>) -> Option<Endpoints> {
    let link = packet::link(frame).ok()?;
    let headers = frame.after(link.tag_bytes);
    let Ok(parsed) = packet::parse(&headers, link.ethertype) else { return addresses(&headers, link.ethertype) };
    let address = |words: [u64; 2]| -> IpAddr {
        if parsed.family == 4 {
            Ipv4Addr::from_bits((words[0] >> 32) as u32).into()
        } else {
            Ipv6Addr::from_bits(u128::from(words[0]) << 64 | u128::from(words[1])).into()
        }
    };
    let [a, b, c, d] = parsed.flow.ports.to_be_bytes();
    let ports = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Some(Endpoints {
        src: address(parsed.flow.src),
        dst: address(parsed.flow.dst),
        protocol: Some(parsed.flow.protocol),
        ports: Some(ports).filter(|_| parsed.flow.ports != 0),
    })
}

/// Of a packet that is not for the routes: only where addresses are read at their place, whatever else is wrong.
fn addresses<P: Packet>(packet: &P, ethertype: u16) -> Option<Endpoints> {
    let word = |at: u32| packet.be32(ETHERNET_BYTES + at);
    let v6 = |at: u32| {
        let words = [word(at)?, word(at + 4)?, word(at + 8)?, word(at + 12)?];
        let bits = words.into_iter().fold(0u128, |bits, word| bits << 32 | u128::from(word));
        Some(IpAddr::from(Ipv6Addr::from_bits(bits)))
    };
    let v4 = |at: u32| word(at).map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits)));
    let (src, dst) = match ethertype {
        ETHERTYPE_IPV4 => (v4(12)?, v4(16)?),
        ETHERTYPE_IPV6 => (v6(8)?, v6(24)?),
        _ => return None,
    };
    Some(Endpoints { src, dst, protocol: None, ports: None })
}

fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 | 58 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        other => other.to_string(),
    }
}

/// Reasons that make events: every one but those of forwarded packets.
pub fn reasons() -> impl Iterator<Item = Reason> {
    Reason::ALL.iter().copied().filter(|reason| reason.verdict() != Verdict::Forward)
}
