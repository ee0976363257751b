//! A node's own configuration: text in, checked [`NodeConfig`] or diagnostics out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::codes::Code;
use super::diagnostic::{Diagnostic, Faults, suggestion};
use super::document::{self, Attach, Guard};
use super::list::parse_prefix;
use super::prefix::Prefix;
use super::probe::{Probe, read_node_probes};
use super::route_policy::prefix_fault;
use super::schema::{self, CONFIG_KINDS, POLICY_KINDS};
use super::yaml::{self, Node, Step};
use super::{Policy, quantity};

/// The checked configuration of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// Absolute, or relative to where the process runs when the configuration's own path was.
    pub source_directory: PathBuf,
    /// Port name to device; no two ports share a device.
    pub ports: BTreeMap<String, Port>,
    pub bpffs: PathBuf,
    pub state_dir: PathBuf,
    /// Generations kept, the live one included; 1 to 64.
    pub retain_generations: u8,
    pub retain_memory_bytes: Option<u64>,
    pub rescan_interval: Duration,
    pub settle: Duration,
    /// What must work after a change if it worked before it.
    pub probes: Vec<Probe>,
    pub probation: Probation,
    pub guards: Guards,
}

/// What an apply on this node refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guards {
    /// Of the live routes; 0 to 100.
    pub removed_percent: u8,
    pub removed_routes: Option<usize>,
    /// Where the node is managed from, beside its own addresses.
    pub management: Vec<Prefix>,
    /// Those that are off.
    pub allow: BTreeSet<Guard>,
}

impl Default for Guards {
    fn default() -> Self {
        let removed_percent = document::Guards::default().removed_percent;
        Self { removed_percent, removed_routes: None, management: Vec::new(), allow: BTreeSet::new() }
    }
}

/// How long a change must prove itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probation {
    pub window: Duration,
    pub interval: Duration,
    /// Failures in a row that a probe may not have; at least 1.
    pub failures: u8,
}

/// The device behind a port name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub device: String,
    pub attach: Attach,
}

/// Reads the configuration `text` that was found at `path`; diagnostics name that path.
pub fn node_config(text: &[u8], path: &Path) -> Result<NodeConfig, Vec<Diagnostic>> {
    let file = path.display().to_string();
    let text = yaml::decode(&file, text).map_err(|d| vec![d])?;
    let parsed = yaml::parse(&file, text);
    let mut faults = Faults::default();
    faults.extend(parsed.diagnostics);
    let config = parsed.root.and_then(|root| match schema::check(&file, &root, CONFIG_KINDS, POLICY_KINDS) {
        Ok(_) => checked(&file, &root, path, &mut faults),
        Err(diagnostics) => {
            faults.extend(diagnostics);
            None
        }
    });
    match config {
        Some(config) if !faults.has_errors() => Ok(config),
        _ => Err(faults.finish()),
    }
}

fn checked(file: &str, root: &Node, path: &Path, faults: &mut Faults) -> Option<NodeConfig> {
    let written: document::NodeConfig = match schema::typed(file, root) {
        Ok(written) => written,
        Err(diagnostic) => {
            faults.push(diagnostic);
            return None;
        }
    };
    let spec = written.spec;
    let mut quantity = |text: &str, key: &[Step], read: fn(&str) -> Option<u64>, example: &str| {
        let value = read(text);
        if value.is_none() {
            let mut at = vec![Step::Key("spec")];
            at.extend_from_slice(key);
            let message = format!("`{}` is not {example}", schema::shorten(text));
            faults.push(Diagnostic::new(Code::MalformedValue, file, Some(root.place(&at)), message));
        }
        value
    };
    let duration = "a duration such as 200ms, 5s, 2m or 1h, 1ms to 24h";
    let rescan_ms = quantity(&spec.rescan_interval, &[Step::Key("rescanInterval")], quantity::duration_ms, duration);
    let settle_ms = quantity(&spec.settle, &[Step::Key("settle")], quantity::duration_ms, duration);
    let memory = spec.retain.memory.as_deref().map(|text| {
        let size = "a size such as 64KiB, 512MiB or 2GiB";
        quantity(text, &[Step::Key("retain"), Step::Key("memory")], quantity::size_bytes, size)
    });
    let window_ms = quantity(
        &spec.probation.window,
        &[Step::Key("probation"), Step::Key("window")],
        quantity::duration_ms,
        duration,
    );
    let interval = &[Step::Key("probation"), Step::Key("interval")];
    let interval_ms = quantity(&spec.probation.interval, interval, quantity::duration_ms, duration);
    let probes = read_node_probes(file, root, &spec.probes, &spec.probe_commands, faults);
    check_port_entries(file, root, &spec.ports, faults);
    let guards = guards(file, root, spec.guards, faults);
    let folder = path.parent().unwrap_or(Path::new(""));
    Some(NodeConfig {
        name: written.metadata.name,
        labels: written.metadata.labels,
        source_directory: folder.join(spec.source.directory),
        ports: spec.ports.into_iter().map(|(name, p)| (name, Port { device: p.device, attach: p.attach })).collect(),
        bpffs: spec.bpffs,
        state_dir: spec.state_dir,
        retain_generations: spec.retain.generations,
        retain_memory_bytes: memory.flatten(),
        rescan_interval: Duration::from_millis(rescan_ms?),
        settle: Duration::from_millis(settle_ms?),
        probes,
        probation: Probation {
            window: Duration::from_millis(window_ms?),
            interval: Duration::from_millis(interval_ms?),
            failures: spec.probation.failures,
        },
        guards,
    })
}

fn guards(file: &str, root: &Node, written: document::Guards, faults: &mut Faults) -> Guards {
    let mut management = Vec::new();
    for (index, text) in written.management.iter().enumerate() {
        match parse_prefix(text) {
            Ok(prefix) => management.push(prefix),
            Err(error) => {
                let path = [Step::Key("spec"), Step::Key("guards"), Step::Key("management"), Step::Item(index)];
                faults.push(prefix_fault(file, root.place(&path), &error));
            }
        }
    }
    Guards {
        removed_percent: written.removed_percent,
        removed_routes: written.removed_routes.map(|routes| routes as usize),
        management,
        allow: written.allow.into_iter().collect(),
    }
}

fn check_port_entries(file: &str, root: &Node, ports: &BTreeMap<String, document::Port>, faults: &mut Faults) {
    let ports_node = root.entry("spec").and_then(|s| s.value.entry("ports")).map(|e| &e.value);
    let mut by_device: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, port) in ports {
        let entry = ports_node.and_then(|n| n.entry(name));
        if !is_name(name) {
            let message = format!("`{}` cannot be the name of a port", schema::shorten(name));
            faults.push(
                Diagnostic::new(Code::MalformedValue, file, entry.map(|e| e.key_span), message)
                    .help("use lower-case letters, digits and `-`, beginning and ending with a letter or digit"),
            );
        }
        let place =
            |name: &str| root.place(&[Step::Key("spec"), Step::Key("ports"), Step::Key(name), Step::Key("device")]);
        if let Some(first) = by_device.insert(&port.device, name) {
            let message = format!("the device `{}` is mapped to two ports", port.device);
            faults.push(Diagnostic::new(Code::DeviceTwice, file, Some(place(name)), message).related(
                file,
                place(first),
                "first here",
            ));
        }
    }
}

fn is_name(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| alphanumeric(*b) || *b == b'-')
        && bytes.first().is_some_and(|b| alphanumeric(*b))
        && bytes.last().is_some_and(|b| alphanumeric(*b))
}

/// One error for every next hop whose port is not among the node's `ports`.
pub fn check_ports(policy: &Policy, ports: &[&str]) -> Vec<Diagnostic> {
    let mut faults = Faults::default();
    for route_policy in &policy.route_policies {
        for hop in route_policy.next_hops.iter().filter(|hop| !ports.contains(&hop.port.as_str())) {
            let file = policy.files.get(hop.origin.file as usize).map_or(".", String::as_str);
            let message =
                format!("the next hop `{}` uses the port `{}`, which this node does not have", hop.name, hop.port);
            let span = super::Span::line(hop.origin.line);
            let help = suggestion(&hop.port, ports.iter().copied());
            faults.push(Diagnostic::new(Code::UnknownPort, file, Some(span), message).maybe_help(help));
        }
    }
    faults.finish()
}
