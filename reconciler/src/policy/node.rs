//! A node's own configuration: text in, checked [`NodeConfig`] or diagnostics out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::codes::Code;
use super::diagnostic::{Diagnostic, Faults, Span, suggestion};
use super::document::{self, Attach, DriftMode, Forwarding, Guard};
use super::health::{HealthCheck, HealthChecks};
use super::list::parse_prefix;
use super::prefix::Prefix;
use super::probe::{Probe, read_node_probes};
use super::route_policy::prefix_fault;
use super::schema::{self, CONFIG_KINDS, POLICY_KINDS};
use super::window::{SyncWindow, read_windows};
use super::yaml::{self, Node, Step};
use super::{Policy, quantity, service_policy};
use crate::source::Source;
use crate::source::git::spec::{Backend, Credentials, ForcePush, GitSource, Reference, Url, Verify, VerifyMode};

/// The checked configuration of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// Its paths are absolute, or relative to where the process runs when the configuration's own path was.
    pub source: Source,
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
    /// Programs that health checks may run, by name.
    pub health_commands: BTreeMap<String, HealthCommand>,
    pub probation: Probation,
    pub guards: Guards,
    /// When changes of the source are taken.
    pub sync_windows: Vec<SyncWindow>,
    pub webhook: Option<Webhook>,
    pub drift: Drift,
    pub tunnels: Tunnels,
}

/// The node's ends of tunnels, part of every generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tunnels {
    /// Outer sources of packets to backends.
    pub source_v4: Option<Ipv4Addr>,
    pub source_v6: Option<Ipv6Addr>,
    /// Addresses that decapsulate, in any order.
    pub addresses: Vec<IpAddr>,
    /// Outer sources that it is done for.
    pub from: Vec<Prefix>,
    /// Inner destinations that it is done for.
    pub to: Vec<Prefix>,
}

impl Tunnels {
    /// The outer source of packets to this backend.
    pub fn source(&self, backend: IpAddr) -> Option<IpAddr> {
        match backend {
            IpAddr::V4(_) => self.source_v4.map(Into::into),
            IpAddr::V6(_) => self.source_v6.map(Into::into),
        }
    }
}

/// A program that tells whether a backend serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCommand {
    /// The program and its arguments.
    pub run: Vec<String>,
    /// How long it may take, if the policy does not say less.
    pub timeout: Option<Duration>,
}

/// What the daemon does about drift, and how often it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drift {
    pub mode: DriftMode,
    pub interval: Duration,
}

/// Where the daemon listens for pushes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    pub listen: SocketAddr,
    pub secret_file: PathBuf,
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
        read_quantity(file, root, faults, text, key, read, example)
    };
    let duration = DURATION;
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
    let drift_interval = &[Step::Key("drift"), Step::Key("interval")];
    let drift_ms = quantity(&spec.drift.interval, drift_interval, quantity::duration_ms, duration);
    let probes = read_node_probes(file, root, &spec.probes, &spec.probe_commands, faults);
    check_port_entries(file, root, &spec.ports, faults);
    let health_commands = health_commands(file, root, spec.health_commands, faults);
    let guards = guards(file, root, spec.guards, faults);
    let sync_windows = read_windows(file, root, spec.sync.windows, faults);
    let tunnels = read_tunnels(file, root, &spec.tunnel, spec.decapsulate.as_ref(), faults);
    let folder = path.parent().unwrap_or(Path::new(""));
    let store = spec.state_dir.join("git");
    let source = match (spec.source.directory, spec.source.git) {
        (Some(directory), _) => Some(Source::Directory(folder.join(directory))),
        (None, Some(git)) => git_source(file, root, git, folder, store, faults).map(|git| Source::Git(Box::new(git))),
        (None, None) => None, // the schema asks for one of them
    };
    let webhook = spec.webhook.map(|webhook| {
        let listen = webhook.listen.parse().ok();
        if listen.is_none() {
            let at = [Step::Key("spec"), Step::Key("webhook"), Step::Key("listen")];
            let message =
                format!("`{}` is not an address and port such as 127.0.0.1:9797", schema::shorten(&webhook.listen));
            faults.push(Diagnostic::new(Code::MalformedValue, file, Some(root.place(&at)), message));
        }
        listen.map(|listen| Webhook { listen, secret_file: folder.join(&webhook.secret_file) })
    });
    Some(NodeConfig {
        name: written.metadata.name,
        labels: written.metadata.labels,
        source: source?,
        ports: spec.ports.into_iter().map(|(name, p)| (name, Port { device: p.device, attach: p.attach })).collect(),
        bpffs: spec.bpffs,
        state_dir: spec.state_dir,
        retain_generations: spec.retain.generations,
        retain_memory_bytes: memory.flatten(),
        rescan_interval: Duration::from_millis(rescan_ms?),
        settle: Duration::from_millis(settle_ms?),
        probes,
        health_commands,
        probation: Probation {
            window: Duration::from_millis(window_ms?),
            interval: Duration::from_millis(interval_ms?),
            failures: spec.probation.failures,
        },
        guards,
        sync_windows,
        webhook: webhook.flatten(),
        drift: Drift { mode: spec.drift.mode, interval: Duration::from_millis(drift_ms?) },
        tunnels,
    })
}

fn read_tunnels(
    file: &str,
    root: &Node,
    tunnel: &document::Tunnel,
    decapsulate: Option<&document::Decapsulate>,
    faults: &mut Faults,
) -> Tunnels {
    let mut tunnels = Tunnels::default();
    let at = |keys: [&'static str; 2], item: usize| {
        root.place(&[Step::Key("spec"), Step::Key(keys[0]), Step::Key(keys[1]), Step::Item(item)])
    };
    for (index, text) in tunnel.sources.iter().enumerate() {
        let place = at(["tunnel", "sources"], index);
        let twice = match outer_address(file, place, text, faults) {
            Some(IpAddr::V4(v4)) => tunnels.source_v4.replace(v4).is_some(),
            Some(IpAddr::V6(v6)) => tunnels.source_v6.replace(v6).is_some(),
            None => false,
        };
        if twice {
            let message = "a second source of this family: packets come from one address".to_owned();
            faults.push(Diagnostic::new(Code::MalformedValue, file, Some(place), message));
        }
    }
    let Some(decapsulate) = decapsulate else { return tunnels };
    for (index, text) in decapsulate.addresses.iter().enumerate() {
        tunnels.addresses.extend(outer_address(file, at(["decapsulate", "addresses"], index), text, faults));
    }
    let mut prefixes = |key: &'static str, texts: &[String]| -> Vec<Prefix> {
        let mut read = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            // An address by itself is the prefix of its whole length.
            let parsed = match text.parse() {
                Ok(address) => Ok(Prefix::containing(address, u8::MAX)),
                Err(_) => parse_prefix(text),
            };
            match parsed {
                Ok(prefix) => read.push(prefix),
                Err(error) => faults.push(prefix_fault(file, at(["decapsulate", key], index), &error)),
            }
        }
        read
    };
    tunnels.from = prefixes("from", &decapsulate.from);
    tunnels.to = prefixes("to", &decapsulate.to);
    tunnels
}

/// An address that can stand in an outer header.
fn outer_address(file: &str, place: Span, text: &str, faults: &mut Faults) -> Option<IpAddr> {
    let usable = |address: &IpAddr| {
        let odd = address.is_unspecified() || address.is_multicast() || address.is_loopback();
        let local = match address {
            IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast() || v4.octets()[0] == 0,
            IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80 || v6.to_ipv4_mapped().is_some(),
        };
        !odd && !local
    };
    let address = text.parse().ok().filter(usable);
    if address.is_none() {
        let message = format!("`{}` is not an address that packets are routed to", schema::shorten(text));
        let help = "write an address of the node without a length, such as 192.0.2.1 or 2001:db8::1";
        faults.push(Diagnostic::new(Code::MalformedValue, file, Some(place), message).help(help));
    }
    address
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

const DURATION: &str = "a duration such as 200ms, 5s, 2m or 1h, 1ms to 24h";

fn read_quantity(
    file: &str,
    root: &Node,
    faults: &mut Faults,
    text: &str,
    key: &[Step],
    read: fn(&str) -> Option<u64>,
    example: &str,
) -> Option<u64> {
    let value = read(text);
    if value.is_none() {
        let mut at = vec![Step::Key("spec")];
        at.extend_from_slice(key);
        let message = format!("`{}` is not {example}", schema::shorten(text));
        faults.push(Diagnostic::new(Code::MalformedValue, file, Some(root.place(&at)), message));
    }
    value
}

/// A git source with every fault of it; `store` is where its mirror will lie.
fn git_source(
    file: &str,
    root: &Node,
    git: document::GitSource,
    folder: &Path,
    store: PathBuf,
    faults: &mut Faults,
) -> Option<GitSource> {
    let steps = |key: &'static str| [Step::Key("source"), Step::Key("git"), Step::Key(key)];
    let place = |key: &'static str| {
        let [source, git, key] = steps(key);
        root.place(&[Step::Key("spec"), source, git, key])
    };
    let malformed = |span, message: String| Diagnostic::new(Code::MalformedValue, file, span, message);
    let url = match Url::parse(&git.url, folder) {
        Ok(url) => Some(url),
        Err(error) => {
            // Neither the URL nor its line is shown: it may hold a password.
            let message = format!("`spec.source.git.url` is not usable: {error}");
            faults.push(malformed(None, message));
            None
        }
    };
    let auth = git.auth;
    let reference = match git.reference {
        document::GitReference { branch: Some(name), .. } => Some(Reference::Branch(name)),
        document::GitReference { tag: Some(name), .. } => Some(Reference::Tag(name)),
        document::GitReference { semver: Some(range), .. } => Some(Reference::Semver(range)),
        document::GitReference { commit: Some(id), .. } => Some(Reference::Commit(id)),
        _ => None, // the schema asks for one of them
    };
    match &reference {
        Some(Reference::Branch(name) | Reference::Tag(name)) if !is_reference(name) => {
            let message = format!("`{}` is no name of a branch or tag", schema::shorten(name));
            faults.push(malformed(Some(place("ref")), message));
        }
        Some(Reference::Semver(range)) if semver::VersionReq::parse(range).is_err() => {
            let message = format!("`{}` is no range of versions", schema::shorten(range));
            faults.push(malformed(Some(place("ref")), message).help("such as ^1.2, ~1.4 or `>=2, <3`"));
        }
        _ => {}
    }
    if git.subpath.as_deref().is_some_and(|path| !is_subpath(path)) {
        let message = "`subpath` must be a relative path with `/`, without `.` and `..`".to_owned();
        faults.push(malformed(Some(place("subpath")), message));
    }
    match &url {
        Some(Url::Ssh { .. }) if auth.known_hosts_file.is_none() || auth.ssh_key_file.is_none() => {
            let message = "an ssh source needs `auth.sshKeyFile` and `auth.knownHostsFile`".to_owned();
            let help = "`ssh-keyscan HOST` prints host keys; compare them with what the server's owner publishes";
            faults.push(Diagnostic::new(Code::MissingKey, file, Some(place("url")), message).help(help));
        }
        Some(Url::Https { .. }) if auth.ssh_key_file.is_some() || auth.known_hosts_file.is_some() => {
            let message = "an https source has no use for `auth.sshKeyFile` and `auth.knownHostsFile`".to_owned();
            faults.push(malformed(Some(place("auth")), message));
        }
        Some(Url::Ssh { .. } | Url::Local(_)) if auth.token_file.is_some() || auth.ca_file.is_some() => {
            let message = "only an https source has a use for `auth.tokenFile` and `auth.caFile`".to_owned();
            faults.push(malformed(Some(place("auth")), message));
        }
        _ => {}
    }
    let verify = git.verify;
    if verify.as_ref().is_some_and(|verify| verify.mode == document::GitVerifyMode::Tag)
        && !matches!(reference, None | Some(Reference::Tag(_) | Reference::Semver(_)))
    {
        let message = "`verify.mode: tag` needs a `ref` of tag or semver".to_owned();
        faults.push(malformed(Some(place("verify")), message));
    }
    let mut duration =
        |text: &str, key| read_quantity(file, root, faults, text, &steps(key), quantity::duration_ms, DURATION);
    let interval = duration(&git.interval, "interval");
    let timeout = duration(&git.timeout, "timeout");
    let connect_timeout = duration(&git.connect_timeout, "connectTimeout");
    let size = "a size such as 64KiB, 512MiB or 2GiB";
    let limit =
        read_quantity(file, root, faults, &git.transfer_limit, &steps("transferLimit"), quantity::size_bytes, size);
    let file = |path: Option<PathBuf>| path.map(|path| folder.join(path));
    Some(GitSource {
        url: url?,
        reference: reference?,
        subpath: git.subpath,
        interval: Duration::from_millis(interval?),
        timeout: Duration::from_millis(timeout?),
        connect_timeout: Duration::from_millis(connect_timeout?),
        transfer_bytes_max: limit?,
        credentials: Credentials {
            username: auth.username,
            token_file: file(auth.token_file),
            ssh_key_file: file(auth.ssh_key_file),
            known_hosts_file: file(auth.known_hosts_file),
            ca_file: file(auth.ca_file),
        },
        backend: match git.backend {
            document::GitBackend::Libgit2 => Backend::Libgit2,
            document::GitBackend::Git => Backend::Git,
        },
        force_push: match git.force_push {
            document::GitForcePush::Allow => ForcePush::Allow,
            document::GitForcePush::Warn => ForcePush::Warn,
            document::GitForcePush::Refuse => ForcePush::Refuse,
        },
        verify: verify.map(|verify| Verify {
            mode: match verify.mode {
                document::GitVerifyMode::Head => VerifyMode::Head,
                document::GitVerifyMode::AllSinceLast => VerifyMode::AllSinceLast,
                document::GitVerifyMode::Tag => VerifyMode::Tag,
            },
            allowed_signers: folder.join(verify.allowed_signers),
            allow_rollback: verify.allow_rollback,
        }),
        store,
    })
}

/// The rules of git-check-ref-format(1) that matter for a name that becomes part of a refspec.
fn is_reference(name: &str) -> bool {
    let odd = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
    let part = |part: &str| {
        let reserved = part.starts_with('.') || part.strip_suffix(".lock").is_some() || part.ends_with('.');
        !part.is_empty() && !reserved
    };
    !name.contains(odd)
        && !name.contains("..")
        && !name.contains("@{")
        && !name.starts_with('-')
        && name.split('/').all(part)
}

fn is_subpath(path: &str) -> bool {
    path.trim_end_matches('/').split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn health_commands(
    file: &str,
    root: &Node,
    written: BTreeMap<String, document::HealthCommand>,
    faults: &mut Faults,
) -> BTreeMap<String, HealthCommand> {
    let commands = root.entry("spec").and_then(|spec| spec.value.entry("healthCommands")).map(|entry| &entry.value);
    let mut read = BTreeMap::new();
    for (name, command) in written {
        if !is_name(&name) {
            let key = commands.and_then(|commands| commands.entry(&name)).map(|entry| entry.key_span);
            let message = format!("`{}` cannot be the name of a health command", schema::shorten(&name));
            faults.push(Diagnostic::new(Code::MalformedValue, file, key, message).help(NAMES));
        }
        let key = [Step::Key("healthCommands"), Step::Key(&name), Step::Key("timeout")];
        let ms = |text: &String| read_quantity(file, root, faults, text, &key, quantity::duration_ms, DURATION);
        let timeout = command.timeout.as_ref().and_then(ms).map(Duration::from_millis);
        read.insert(name, HealthCommand { run: command.run, timeout });
    }
    read
}

const NAMES: &str = "use lower-case letters, digits and `-`, beginning and ending with a letter or digit";

fn check_port_entries(file: &str, root: &Node, ports: &BTreeMap<String, document::Port>, faults: &mut Faults) {
    let ports_node = root.entry("spec").and_then(|s| s.value.entry("ports")).map(|e| &e.value);
    let mut by_device: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, port) in ports {
        let entry = ports_node.and_then(|n| n.entry(name));
        if !is_name(name) {
            let message = format!("`{}` cannot be the name of a port", schema::shorten(name));
            faults.push(Diagnostic::new(Code::MalformedValue, file, entry.map(|e| e.key_span), message).help(NAMES));
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

/// One error for everything that a policy names and the node's configuration must have, and does not: ports and health commands.
pub fn check_names(policy: &Policy, node: &NodeConfig) -> Vec<Diagnostic> {
    let ports: Vec<&str> = node.ports.keys().map(String::as_str).collect();
    let mut faults = Faults::default();
    check_ports(policy, &ports, &mut faults);
    check_tunnels(policy, &node.tunnels, &mut faults);
    for service in &policy.service_policies {
        let Some(HealthChecks { check: HealthCheck::Command { name, .. }, .. }) = &service.health else { continue };
        if node.health_commands.contains_key(name) {
            continue;
        }
        let file = policy.files.get(service.origin.file as usize).map_or(".", String::as_str);
        let message = format!(
            "the service `{}` is checked by the command `{name}`, which is not among this node's healthCommands",
            service.name
        );
        let help = suggestion(name, node.health_commands.keys().map(String::as_str)).unwrap_or_else(|| {
            format!(
                "the node's owner allows it in the node's configuration: healthCommands: {{{name}: {{run: [PROGRAM]}}}}"
            )
        });
        let span = Span::line(service.health_line);
        faults.push(Diagnostic::new(Code::UnknownHealthCommand, file, Some(span), message).help(help));
    }
    faults.finish()
}

/// One error for every service whose tunnels would come from nowhere, and family.
fn check_tunnels(policy: &Policy, tunnels: &Tunnels, faults: &mut Faults) {
    for service in policy.service_policies.iter().filter(|service| service.forwarding == Forwarding::Ipip) {
        let lacks = |is_v4: bool| {
            let of_family = |backend: &&service_policy::Backend| backend.address.is_ipv4() == is_v4;
            service.backends.iter().find(of_family).filter(|backend| tunnels.source(backend.address).is_none())
        };
        for (backend, family, example) in
            [(lacks(true), "IPv4", "192.0.2.1"), (lacks(false), "IPv6", "\"2001:db8::1\"")]
        {
            let Some(backend) = backend else { continue };
            let file = policy.files.get(service.origin.file as usize).map_or(".", String::as_str);
            let message = format!(
                "the service `{}` sends packets to {} by ipip, and this node has no {family} source address for them",
                service.name, backend.address
            );
            let help = format!("name one in the node's configuration: spec: {{tunnel: {{sources: [{example}]}}}}");
            let fault = Diagnostic::new(Code::NoTunnelSource, file, Some(service.forwarding_span), message);
            faults.push(fault.help(help));
        }
    }
}

fn check_ports(policy: &Policy, ports: &[&str], faults: &mut Faults) {
    for route_policy in &policy.route_policies {
        for hop in route_policy.next_hops.iter().filter(|hop| !ports.contains(&hop.port.as_str())) {
            let file = policy.files.get(hop.origin.file as usize).map_or(".", String::as_str);
            let message =
                format!("the next hop `{}` uses the port `{}`, which this node does not have", hop.name, hop.port);
            let span = Span::line(hop.origin.line);
            let help = suggestion(&hop.port, ports.iter().copied());
            faults.push(Diagnostic::new(Code::UnknownPort, file, Some(span), message).maybe_help(help));
        }
    }
    for (filter, rule) in policy.filter_policies.iter().flat_map(|f| f.rules.iter().map(move |rule| (f, rule))) {
        for port in rule.in_ports.iter().flatten().filter(|port| !ports.contains(&port.as_str())) {
            let file = policy.files.get(rule.origin.file as usize).map_or(".", String::as_str);
            let message = format!(
                "the filter rule `{}/{}` names the port `{port}`, which this node does not have",
                filter.name, rule.name
            );
            let span = Span::line(rule.origin.line);
            let help = suggestion(port, ports.iter().copied());
            faults.push(Diagnostic::new(Code::UnknownPort, file, Some(span), message).maybe_help(help));
        }
    }
}
