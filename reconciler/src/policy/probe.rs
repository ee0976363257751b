//! Probes: what must work after a change if it worked before it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::codes::Code;
use super::diagnostic::{Diagnostic, Faults};
use super::document;
use super::quantity;
use super::schema::shorten;
use super::yaml::{Node, Step};

/// Something that a node tries before and after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Unique on a node: `NAME` in its configuration, `POLICY/NAME` in a policy.
    pub name: String,
    pub check: Check,
    /// How long one try may take.
    pub timeout: Duration,
}

/// What is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// A TCP connection is made.
    Tcp(SocketAddr),
    /// A GET is answered with this status, or with any from 200 to 399.
    Http { url: String, status: Option<u16> },
    /// An ICMP echo is answered.
    Ping(IpAddr),
    /// A program exits with 0: the program and its arguments.
    Command(Vec<String>),
}

const DURATION: &str = "a duration such as 200ms, 5s, 2m or 1h, 1ms to 24h";

/// Reads the probes at `spec.probes`; those of a policy are named after it.
pub(super) fn read_probes(
    file: &str,
    root: &Node,
    written: &[document::Probe],
    policy: Option<&str>,
    faults: &mut Faults,
) -> Vec<Probe> {
    let mut reader = Reader { file, root, faults, names: Vec::new() };
    let mut probes = Vec::new();
    for (index, probe) in written.iter().enumerate() {
        let at = At { list: "probes", index };
        let Some(name) = reader.name(at, &probe.name) else { continue };
        let timeout = reader.duration(at, &probe.timeout);
        let check = reader.check(at, probe);
        if let (Some(check), Some(timeout)) = (check, timeout) {
            let name = policy.map_or_else(|| name.clone(), |policy| format!("{policy}/{name}"));
            probes.push(Probe { name, check, timeout });
        }
    }
    probes
}

/// Reads the probes of a node: those at `spec.probes` and the programs at `spec.probeCommands`.
pub(super) fn read_node_probes(
    file: &str,
    root: &Node,
    written: &[document::Probe],
    commands: &[document::ProbeCommand],
    faults: &mut Faults,
) -> Vec<Probe> {
    let mut probes = read_probes(file, root, written, None, faults);
    let names = written.iter().enumerate().map(|(index, probe)| (probe.name.clone(), At { list: "probes", index }));
    let mut reader = Reader { file, root, faults, names: names.collect() };
    for (index, command) in commands.iter().enumerate() {
        let at = At { list: "probeCommands", index };
        let name = reader.name(at, &command.name);
        let timeout = reader.duration(at, &command.timeout);
        if let (Some(name), Some(timeout)) = (name, timeout) {
            probes.push(Probe { name, check: Check::Command(command.run.clone()), timeout });
        }
    }
    probes
}

/// Which entry of which list.
#[derive(Clone, Copy)]
struct At {
    list: &'static str,
    index: usize,
}

struct Reader<'r> {
    file: &'r str,
    root: &'r Node,
    faults: &'r mut Faults,
    names: Vec<(String, At)>,
}

impl Reader<'_> {
    fn place(&self, at: At, rest: &[Step]) -> super::Span {
        let mut path = vec![Step::Key("spec"), Step::Key(at.list), Step::Item(at.index)];
        path.extend_from_slice(rest);
        self.root.place(&path)
    }

    fn malformed(&mut self, at: At, rest: &[Step], message: String) {
        let span = self.place(at, rest);
        self.faults.push(Diagnostic::new(Code::MalformedValue, self.file, Some(span), message));
    }

    /// The name, unless another probe has it.
    fn name(&mut self, at: At, name: &str) -> Option<String> {
        let span = self.place(at, &[Step::Key("name")]);
        if let Some((_, first)) = self.names.iter().find(|(other, _)| other == name) {
            let first = self.place(*first, &[Step::Key("name")]);
            let message = format!("the probe name `{name}` is used twice");
            let diagnostic = Diagnostic::new(Code::DuplicateProbe, self.file, Some(span), message);
            self.faults.push(diagnostic.related(self.file, first, "first used here"));
            return None;
        }
        self.names.push((name.to_owned(), at));
        Some(name.to_owned())
    }

    fn duration(&mut self, at: At, text: &str) -> Option<Duration> {
        let ms = quantity::duration_ms(text);
        if ms.is_none() {
            self.malformed(at, &[Step::Key("timeout")], format!("`{}` is not {DURATION}", shorten(text)));
        }
        ms.map(Duration::from_millis)
    }

    fn address(&mut self, at: At, kind: &str, text: &str) -> Option<IpAddr> {
        let address = text.parse().ok();
        if address.is_none() {
            let message = format!("`{}` is not an IPv4 or IPv6 address", shorten(text));
            self.malformed(at, &[Step::Key(kind), Step::Key("address")], message);
        }
        address
    }

    fn check(&mut self, at: At, probe: &document::Probe) -> Option<Check> {
        match (&probe.tcp, &probe.http, &probe.ping) {
            (Some(tcp), None, None) => {
                Some(Check::Tcp(SocketAddr::new(self.address(at, "tcp", &tcp.address)?, tcp.port)))
            }
            (None, Some(http), None) => Some(Check::Http { url: http.url.clone(), status: http.status }),
            (None, None, Some(ping)) => Some(Check::Ping(self.address(at, "ping", &ping.address)?)),
            _ => {
                let span = self.place(at, &[]);
                let message = format!("the probe `{}` needs exactly one of tcp, http and ping", probe.name);
                self.faults.push(Diagnostic::new(Code::ProbeCheck, self.file, Some(span), message));
                None
            }
        }
    }
}
