//! One `ServicePolicy` document: its ports and backends.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::codes::Code;
use super::diagnostic::{Diagnostic, Faults, Span};
use super::document::{self, Echo, Forwarding, OnNoBackend, PortRange, Protocol};
use super::health::{HealthChecks, read_health};
use super::quantity::duration_ms;
use super::validate::Run;
use super::yaml::{Node, Step};
use super::{Origin, Selector, schema};

/// One `ServicePolicy` document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePolicy {
    pub name: String,
    pub owner: Option<String>,
    /// The nodes that it is for.
    pub nodes: Selector,
    pub origin: Origin,
    pub vip: IpAddr,
    /// Sorted and disjoint, also from those of other services of the vip that one node can have.
    pub ports: Vec<ServicePort>,
    pub forwarding: Forwarding,
    /// Where that is written.
    pub forwarding_span: Span,
    /// Sorted by address, then port; each once.
    pub backends: Vec<Backend>,
    pub affinity: Option<Affinity>,
    pub on_no_backend: OnNoBackend,
    pub echo: Echo,
    pub timeouts: FlowTimeouts,
    pub health: Option<HealthChecks>,
    /// [`HealthChecks::text`] of it; empty where there is none.
    pub health_text: String,
    /// Line of what is checked; 0 where nothing is.
    pub health_line: u32,
}

/// Ports of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePort {
    pub protocol: Protocol,
    pub first: u16,
    pub last: u16,
    /// The backend's port for the first one; `None`: the same.
    pub target: Option<u16>,
}

/// One of those that serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    pub address: IpAddr,
    /// `None`: what the service's ports say.
    pub port: Option<u16>,
    /// 0: it takes no new flows.
    pub weight: u16,
    pub origin: Origin,
}

/// How many bits of a client's address decide which backend its flows go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Affinity {
    pub ipv4: u8,
    pub ipv6: u8,
}

/// Seconds for which a flow is known without a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowTimeouts {
    pub established_s: u32,
    pub closing_s: u32,
    pub udp_s: u32,
}

/// Those of a document that says nothing.
impl Default for FlowTimeouts {
    fn default() -> Self {
        Self { established_s: 900, closing_s: 60, udp_s: 120 }
    }
}

/// The ports of one service, `443/tcp` or `8000-8099/udp`.
impl std::fmt::Display for ServicePort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.first == self.last {
            write!(f, "{}/{}", self.first, self.protocol.as_str())
        } else {
            write!(f, "{}-{}/{}", self.first, self.last, self.protocol.as_str())
        }
    }
}

/// Its address and, where it has one, its port: what it is called.
impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&backend_name(self.address, self.port))
    }
}

/// `10.1.0.11:8099`, `[2001:db8::1]:8099`, or the address alone.
pub fn backend_name(address: IpAddr, port: Option<u16>) -> String {
    match (address, port) {
        (address, None) => address.to_string(),
        (IpAddr::V4(address), Some(port)) => format!("{address}:{port}"),
        (IpAddr::V6(address), Some(port)) => format!("[{address}]:{port}"),
    }
}

/// A place where ports of a vip are written, to find those that are written twice.
pub(super) struct Claim {
    vip: IpAddr,
    port: ServicePort,
    nodes: Selector,
    file: String,
    span: Span,
}

/// The document being read.
struct Reader<'r> {
    file: &'r str,
    root: &'r Node,
    faults: &'r mut Faults,
}

/// Reads the document `root` of `file` into `run`.
pub(super) fn read_service_policy(run: &mut Run<'_>, file: &str, root: &Node, written: document::ServicePolicy) {
    let file_id = run.use_file(file);
    let spec = written.spec;
    let nodes = Selector::new(spec.nodes.map(|nodes| nodes.labels).unwrap_or_default());
    let mut reader = Reader { file, root, faults: &mut run.faults };
    let vip = reader.address(&spec.vip, &[Step::Key("vip")], "a vip");
    let ports = reader.ports(&spec.ports, spec.forwarding);
    let backends = reader.backends(&spec.backends, vip, file_id, spec.forwarding, &ports);
    let timeouts = reader.timeouts(&spec.flow_timeouts);
    if let Some(vip) = vip {
        for (port, span) in &ports {
            run.claims.push(Claim { vip, port: *port, nodes: nodes.clone(), file: file.to_owned(), span: *span });
        }
    }
    let mut numbers: Vec<ServicePort> = ports.iter().map(|(port, _)| *port).collect();
    numbers.sort_unstable();
    let health =
        spec.health.as_ref().and_then(|health| read_health(file, root, &mut run.faults, health, &backends, &numbers));
    let line = root.place(&[Step::Key("metadata"), Step::Key("name")]).start.line;
    // Where one could not be read there is an error, and no `Policy` comes of it.
    let (Some(vip), Some(timeouts)) = (vip, timeouts) else { return };
    run.services.push(ServicePolicy {
        name: written.metadata.name,
        owner: written.metadata.owner,
        nodes,
        origin: Origin { file: file_id, line },
        vip,
        ports: numbers,
        forwarding: spec.forwarding,
        forwarding_span: root.place(&[Step::Key("spec"), Step::Key("forwarding")]),
        backends,
        affinity: spec.affinity.map(|affinity| Affinity { ipv4: affinity.source.ipv4, ipv6: affinity.source.ipv6 }),
        on_no_backend: spec.on_no_backend,
        echo: spec.echo,
        timeouts,
        health_text: health.as_ref().map(HealthChecks::text).unwrap_or_default(),
        health_line: health.as_ref().map_or(0, |_| health_line(root)),
        health,
    });
}

/// Where the command of a check is named, or else where the checks are.
fn health_line(root: &Node) -> u32 {
    let health = [Step::Key("spec"), Step::Key("health")];
    let command = [Step::Key("command"), Step::Key("name")];
    root.place(&[&health[..], &command[..]].concat()).start.line
}

impl Reader<'_> {
    fn place(&self, rest: &[Step]) -> Span {
        self.root.place(&[&[Step::Key("spec")], rest].concat())
    }

    fn fault(&self, code: Code, at: &[Step], message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(code, self.file, Some(self.place(at)), message)
    }

    /// An address that packets can be sent to.
    fn address(&mut self, text: &str, at: &[Step], what: &str) -> Option<IpAddr> {
        let Ok(address) = text.parse::<IpAddr>() else {
            let message = format!("`{}` is not an IP address", schema::shorten(text));
            let fault = self.fault(Code::MalformedValue, at, message);
            self.faults.push(fault.help("write an address without a length, such as 192.0.2.1 or 2001:db8::1"));
            return None;
        };
        let link_local = |v6: std::net::Ipv6Addr| v6.segments()[0] & 0xffc0 == 0xfe80;
        let why = match address {
            _ if address.is_unspecified() => "unspecified",
            _ if address.is_multicast() => "a multicast address",
            _ if address.is_loopback() => "a loopback address",
            IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
            IpAddr::V4(v4) if v4.is_link_local() => "a link-local address",
            IpAddr::V4(v4) if v4.octets()[0] == 0 => "an address of this network",
            IpAddr::V6(v6) if link_local(v6) => "a link-local address",
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4-mapped IPv6 address",
            _ => return Some(address),
        };
        let fault = self.fault(Code::ServiceAddress, at, format!("{address} is {why} and cannot be {what}'s"));
        self.faults.push(fault.help("write an address that packets are routed to"));
        None
    }

    fn ports(&mut self, written: &[document::ServicePort], forwarding: Forwarding) -> Vec<(ServicePort, Span)> {
        let mut ports = Vec::with_capacity(written.len());
        for (index, port) in written.iter().enumerate() {
            let at = [Step::Key("ports"), Step::Item(index)];
            let range = match &port.port {
                PortRange::One(port) => Some((*port, *port)),
                PortRange::Text(text) => text
                    .split_once('-')
                    .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)))
                    .filter(|(first, last): &(u16, u16)| *first > 0 && first <= last),
            };
            let Some((first, last)) = range else {
                let message = "a range begins with its lowest port and ends with its highest, from 1 to 65535";
                let fault = self.fault(Code::ServicePorts, &[at[0], at[1], Step::Key("port")], message);
                self.faults.push(fault.help("write a range such as \"8000-8099\""));
                continue;
            };
            if let Some(target) = port.target_port {
                let key = [at[0], at[1], Step::Key("targetPort")];
                if forwarding != Forwarding::Nat {
                    let message = "ports are translated with `forwarding: nat` only";
                    let fault = self.fault(Code::BackendPort, &key, message);
                    self.faults.push(fault.help("remove `targetPort`"));
                } else if u32::from(target) + u32::from(last - first) > u32::from(u16::MAX) {
                    let message = format!("the ports of the range end beyond 65535 when they begin at {target}");
                    let fault = self.fault(Code::ServicePorts, &key, message);
                    self.faults.push(fault);
                }
            }
            let span = self.place(&at);
            ports.push((ServicePort { protocol: port.protocol, first, last, target: port.target_port }, span));
        }
        ports
    }

    fn backends(
        &mut self,
        written: &[document::Backend],
        vip: Option<IpAddr>,
        file: u32,
        forwarding: Forwarding,
        ports: &[(ServicePort, Span)],
    ) -> Vec<Backend> {
        let mut first_of = BTreeMap::new();
        let mut backends = Vec::with_capacity(written.len());
        for (index, backend) in written.iter().enumerate() {
            let at = |key| [Step::Key("backends"), Step::Item(index), Step::Key(key)];
            let Some(address) = self.address(&backend.address, &at("address"), "a backend") else { continue };
            if let Some(vip) = vip {
                let is_carried = forwarding == Forwarding::Ipip && address.is_ipv6();
                if vip.is_ipv4() != address.is_ipv4() && !is_carried {
                    let (message, help) = if forwarding == Forwarding::Ipip {
                        let message = format!("ipip carries no packets of IPv6 in IPv4; the vip {vip} is one of IPv6");
                        (message, Some("write the backend's IPv6 address"))
                    } else {
                        let message = format!(
                            "{} carries packets to a backend of their own family; the vip {vip} is of the other one",
                            forwarding.as_str()
                        );
                        let help = "`forwarding: ipip` carries packets of IPv4 in IPv6";
                        (message, vip.is_ipv4().then_some(help))
                    };
                    let fault = self.fault(Code::BackendFamily, &at("address"), message);
                    let fault = fault.maybe_help(help.map(str::to_owned));
                    self.faults.push(fault.related(self.file, self.place(&[Step::Key("vip")]), "the vip"));
                } else if vip == address {
                    let message = "the vip is its own backend";
                    let fault = self.fault(Code::ServiceAddress, &at("address"), message);
                    self.faults.push(fault.related(self.file, self.place(&[Step::Key("vip")]), "the vip"));
                }
            }
            if let Some(port) = backend.port {
                let (message, help) = match ports {
                    _ if forwarding != Forwarding::Nat => {
                        ("ports are translated with `forwarding: nat` only", "remove `port`")
                    }
                    [(only, _)] if only.first == only.last => ("", ""),
                    _ => (
                        "answers from one port could not be told apart: the service has several",
                        "remove `port` and give the service's ports a `targetPort` where they differ",
                    ),
                };
                if !message.is_empty() {
                    let fault = self.fault(Code::BackendPort, &at("port"), format!("{message} ({port})"));
                    self.faults.push(fault.help(help));
                }
            }
            let span = self.place(&at("address"));
            if let Some(first) = first_of.get(&(address, backend.port)) {
                let message = format!("the backend {} is written twice", backend_name(address, backend.port));
                let fault = self.fault(Code::BackendTwice, &at("address"), message);
                let fault = fault.related(self.file, *first, "first written here");
                self.faults.push(fault.help("use `weight` for a larger share"));
                continue;
            }
            first_of.insert((address, backend.port), span);
            let origin = Origin { file, line: span.start.line };
            backends.push(Backend { address, port: backend.port, weight: backend.weight, origin });
        }
        if !backends.is_empty() && backends.iter().all(|backend| backend.weight == 0) {
            let message = "every backend is being drained: new flows meet `onNoBackend`";
            let fault = self.fault(Code::AllDrained, &[Step::Key("backends")], message);
            self.faults.push(fault);
        }
        backends.sort_unstable();
        backends
    }

    fn timeouts(&mut self, written: &document::FlowTimeouts) -> Option<FlowTimeouts> {
        let mut seconds = |key: &'static str, text: &str| {
            let ms = duration_ms(text);
            if ms.is_none() {
                let message = format!("`{}` is not a duration", schema::shorten(text));
                let at = [Step::Key("flowTimeouts"), Step::Key(key)];
                let fault = self.fault(Code::MalformedValue, &at, message);
                self.faults.push(fault.help("write a duration such as 30s or 15m"));
            }
            ms.and_then(|ms| u32::try_from(ms.div_ceil(1000)).ok())
        };
        let (established, closing, udp) = (
            seconds("established", &written.established),
            seconds("closing", &written.closing),
            seconds("udp", &written.udp),
        );
        Some(FlowTimeouts { established_s: established?, closing_s: closing?, udp_s: udp? })
    }
}

/// One error for every port of a vip that two services of one node, or one twice, have.
pub(super) fn check_claims(mut claims: Vec<Claim>, faults: &mut Faults) {
    claims.sort_by(|a, b| {
        (a.vip, a.port.protocol, a.port.first, &a.file, a.span.start.line, a.span.start.column).cmp(&(
            b.vip,
            b.port.protocol,
            b.port.first,
            &b.file,
            b.span.start.line,
            b.span.start.column,
        ))
    });
    for (at, claim) in claims.iter().enumerate() {
        let same = |other: &&Claim| (other.vip, other.port.protocol) == (claim.vip, claim.port.protocol);
        let overlapping =
            claims[at + 1..].iter().take_while(same).take_while(|next| next.port.first <= claim.port.last);
        for next in overlapping.filter(|next| next.nodes.can_meet(&claim.nodes)) {
            let message = format!("{} of {} belongs to two services", next.port, next.vip);
            let fault = Diagnostic::new(Code::ServiceTwice, &next.file, Some(next.span), message);
            faults.push(fault.related(&claim.file, claim.span, format!("{} is here", claim.port)));
        }
    }
}
