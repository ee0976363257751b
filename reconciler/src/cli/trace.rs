//! `wayleave trace`: what would happen to a packet, and which line of which file says so.

use std::collections::BTreeMap;
use std::io::{self, BufRead, ErrorKind, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use fib::packet::{Tags, destination_mac};
use fib::service::{FlowKey, FlowWords, HalfOpenWords};
use fib::{Image, Ingress, Neighbour, Reach, ReachWords, Reason};

use super::node::{self, block_on, fail};
use super::offline::{Offline as Reader, OfflineArgs};
use super::source;
use super::{Ended, Exit, Format, Global, note, print};
use crate::compile::{LiveIds, View};
use crate::daemon::apply::propose;
use crate::daemon::node::{Facts, Node};
use crate::daemon::trial::{self, Trial};
use crate::kernel::check::reason_name;
use crate::kernel::flows::{Flows, now_s};
use crate::kernel::health::{Backends, Standing};
use crate::kernel::tables::Tables;
use crate::kernel::test_run::FRAME_BYTES_MAX;
use crate::trace::{Egress, Fields, Offline, PacketDescription, PacketError, Trace, TraceNode, trace, verdict_name};

/// Explain what happens to a packet
///
/// Exits with 0 whatever the verdict is; with 1 when --kernel finds that the loaded program decides otherwise.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("packet").required(true).args(["dst", "stdin"]))]
pub(crate) struct Args {
    #[arg(long, requires = "dst")]
    src: Option<IpAddr>,
    #[arg(long, requires = "src")]
    dst: Option<IpAddr>,
    /// tcp, udp, icmp or a number; tcp when left out
    #[arg(long)]
    protocol: Option<String>,
    #[arg(long)]
    sport: Option<u16>,
    #[arg(long)]
    dport: Option<u16>,
    /// TTL or hop limit; 64 when left out
    #[arg(long)]
    ttl: Option<u8>,
    /// Bytes of the IP packet; just its headers when left out
    #[arg(long)]
    length: Option<u32>,
    /// The packet is an ICMP error that quotes this one, as in "tcp 198.51.100.10:443 198.18.0.1:40000"
    #[arg(long, requires = "dst", value_name = "PROTOCOL SOURCE DESTINATION", conflicts_with_all = ["sport", "dport"])]
    about: Option<String>,
    /// Read one JSON packet a line, write one JSON trace a line
    #[arg(long, conflicts_with_all = ["src", "sport", "dport", "ttl", "length", "about"])]
    stdin: bool,
    /// Whose rules: `live` and `candidate` (what the config's source would become) ask this node, as root; a directory or a
    /// git revision is compiled, offline and without root
    #[arg(long, default_value = "live", value_name = "live|candidate|REV|PATH")]
    against: PathBuf,
    /// Port that the packet comes in by
    #[arg(long, value_name = "PORT")]
    in_port: Option<String>,
    /// Run the packet through the loaded program, too, and compare; nothing is sent, and no counter of live packets moves
    #[arg(long, conflicts_with = "stdin")]
    kernel: bool,
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
    #[command(flatten)]
    offline: OfflineArgs,
}

/// What the verdict asks of the node: nothing offline, the kernel's tables on a node.
#[derive(Default)]
struct Asked {
    tables: Option<Tables>,
    /// The flow table, of live rules.
    flows: Option<Flows>,
    /// Which backends are down, of live rules.
    health: Option<Backends>,
    /// Next hops without an entry are taken to be up: they are resolved before a candidate is published.
    assumes: bool,
    /// Devices by port id; `None` offline.
    devices: Option<BTreeMap<u32, String>>,
    in_port: Option<InPort>,
}

/// The port that `--in-port` names.
struct InPort {
    name: String,
    ingress: Ingress,
    /// What its frames are tagged with.
    tags: Tags,
}

impl TraceNode for Asked {
    fn egress(&self, port: u32) -> Egress {
        match &self.devices {
            None => Egress::Assumed,
            Some(devices) => devices.get(&port).map_or(Egress::NoDevice, |device| Egress::Device(device.clone())),
        }
    }

    fn in_port(&self) -> Option<&str> {
        self.in_port.as_ref().map(|port| port.name.as_str())
    }
}

impl fib::Node for Asked {
    fn ingress(&self, tags: Tags) -> Option<Ingress> {
        self.in_port.as_ref().map(|port| port.ingress).or_else(|| Offline.ingress(tags))
    }

    fn reach(&self, id: u32) -> ReachWords {
        let known = self.tables.as_ref().map_or(Reach::Unknown, |tables| tables.reach(id).unwrap_or(Reach::Unknown));
        if known == Reach::Unknown && self.assumes { Offline.reach(id) } else { known.encode() }
    }

    fn ask<I: Image + ?Sized>(&self, _image: &I, _at: u32, _port: u32) -> Option<Neighbour> {
        None
    }

    fn takes(&self, _ingress: &Ingress, _mac: Option<u64>) -> bool {
        true
    }

    fn flow(&self, key: &FlowKey) -> FlowWords {
        self.flows.as_ref().map_or([0; 4], |flows| flows.get(key))
    }

    fn half_open(&self, key: &FlowKey) -> HalfOpenWords {
        self.flows.as_ref().map_or([0; 5], |flows| flows.half_open(key))
    }

    fn is_down(&self, backend: u32) -> bool {
        self.health.as_ref().is_some_and(|health| health.get(backend).is_ok_and(|standing| standing.is_down))
    }

    fn passes_on(&self, backend: u32, drawn: u32) -> bool {
        let passes_on = |standing: Standing| fib::service::passes_on(standing.encode(), drawn);
        self.health.as_ref().is_some_and(|health| health.get(backend).is_ok_and(passes_on))
    }

    fn now_s(&self) -> u32 {
        self.flows.as_ref().map_or(0, |_| u32::try_from(now_s()).unwrap_or(u32::MAX))
    }
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    if args.against != Path::new("live") && args.against != Path::new("candidate") {
        if args.kernel {
            bail!("--kernel runs the program of a node: it goes with --against live and --against candidate");
        }
        let in_port = args.in_port.clone().map(|name| InPort {
            name,
            ingress: Ingress { mac: 0, port: 0 },
            tags: Tags::default(),
        });
        let offline = args.offline.open(global)?;
        let read = offline.read(Some(&args.against), global)?;
        let image = Reader::compile(&read, None, &LiveIds::default())?;
        let view = image.view()?;
        let in_port = in_port.map(|mut port| {
            port.ingress.port = view.ports().find(|known| known.name == port.name).map_or(0, |known| known.id);
            port
        });
        return answer(args, &view, &Asked { assumes: true, in_port, ..Asked::default() }, None);
    }
    match on_node(args, &node::load(global)?) {
        Err(error)
            if args.kernel && !rustix::process::geteuid().is_root() && error.downcast_ref::<Ended>().is_none() =>
        {
            Err(error.context("--kernel runs the loaded program, which needs root, or CAP_BPF and CAP_NET_ADMIN"))
        }
        result => result,
    }
}

fn on_node(args: &Args, node: &Node) -> anyhow::Result<Exit> {
    let facts = block_on(node.facts())??;
    if args.against == Path::new("candidate") {
        let source = source::open(None, &args.offline.revision, Some(&node.config))?;
        return match block_on(propose(node, &source))? {
            Ok(proposal) => {
                let view = proposal.desired()?;
                // Nothing may be in the kernel yet.
                let tables = Tables::open(&node.pins).ok();
                let asked = asked(args, &view, tables, &facts, !args.kernel)?;
                answer(args, &view, &asked, args.kernel.then_some((node, Some(&view))))
            }
            Err(error) => fail(error, &source),
        };
    }
    let observed = node.observe()?;
    let Some(live) = &observed.live else { bail!(NOTHING_LIVE) };
    let view = live.image.view()?;
    let mut asked = asked(args, &view, Some(Tables::open(&node.pins)?), &facts, false)?;
    asked.flows = Flows::open(&node.pins)?;
    asked.health = Some(Backends::open(&node.pins)?);
    answer(args, &view, &asked, args.kernel.then_some((node, None)))
}

/// The node as its tables are; with `assumes` as they will be when the rules are live.
fn asked(args: &Args, view: &View<'_>, tables: Option<Tables>, facts: &Facts, assumes: bool) -> anyhow::Result<Asked> {
    let mut devices = BTreeMap::new();
    for port in view.ports() {
        let of_config = facts.ports.iter().find(|(device, _)| device.port == port.name);
        let egress = tables.as_ref().map(|tables| tables.port(port.id)).transpose()?.flatten();
        let device = match (assumes, of_config, egress) {
            (true, Some((device, _)), _) => Some(device.device.clone()),
            (true, None, _) | (false, _, None) => None,
            (false, _, Some(egress)) => {
                let link = facts.ports.iter().find(|(device, _)| device.index == egress.address_device);
                Some(link.map_or_else(
                    || format!("with index {}", egress.address_device),
                    |(device, _)| device.device.clone(),
                ))
            }
        };
        devices.extend(device.map(|device| (port.id, device)));
    }
    let in_port = args.in_port.as_ref().map(|name| ingress(name, view, tables.as_ref(), facts)).transpose()?;
    Ok(Asked { tables, flows: None, health: None, assumes, devices: Some(devices), in_port })
}

/// The port that `--in-port` names, as the node's tables have it.
fn ingress(name: &str, view: &View<'_>, tables: Option<&Tables>, facts: &Facts) -> anyhow::Result<InPort> {
    let Some((device, link)) = facts.ports.iter().find(|(device, _)| device.port == name) else {
        let known: Vec<&str> = facts.ports.iter().map(|(device, _)| device.port.as_str()).collect();
        bail!("this node has no port `{name}` with a device; it has {}", known.join(", "));
    };
    let (index, tags) = (device.wire.link.index, device.wire.tags);
    let written = tables.map(|tables| tables.ingress(index, tags.vids())).transpose()?.flatten();
    let id = view.ports().find(|port| port.name == name).map_or(0, |port| port.id);
    let mut mac = [0; 8];
    mac[..6].copy_from_slice(&link.mac.unwrap_or_default());
    let ingress = written.unwrap_or(Ingress { mac: u64::from_le_bytes(mac), port: id });
    Ok(InPort { name: name.to_owned(), ingress, tags })
}

const NOTHING_LIVE: &str = "no generation is live on this node: every packet passes to the kernel";

/// `kernel` is the node whose program is asked, too, and the candidate that it is asked about.
fn answer(
    args: &Args,
    view: &View<'_>,
    asked: &Asked,
    kernel: Option<(&Node, Option<&View<'_>>)>,
) -> anyhow::Result<Exit> {
    if args.stdin {
        return lines(view, asked);
    }
    let packet = PacketDescription::new(&Fields {
        src: args.src,
        dst: args.dst,
        protocol: args.protocol.as_deref(),
        sport: args.sport,
        dport: args.dport,
        ttl: args.ttl,
        length: args.length,
        about: args.about.as_deref(),
    })?;
    let trace = trace(view, packet, asked)?;
    let trial = match kernel {
        None => None,
        Some((node, candidate)) => Some(tried(node, candidate, asked, &packet)?),
    };
    let difference = trial.as_ref().and_then(Trial::difference);
    match args.format {
        Format::Human => {
            print(&trace.to_string())?;
            if let Some(trial) = &trial {
                print(&in_words(trial, &trace))?;
            }
        }
        Format::Json => {
            let mut json = serde_json::to_value(&trace)?;
            if let Some(trial) = &trial {
                json["kernel"] = serde_json::json!({
                    "agrees": difference.is_none(),
                    "reason": reason_name(trial.by_program.reason),
                    "frame": hex(&trial.by_program.frame),
                });
            }
            print(&format!("{}\n", serde_json::to_string_pretty(&json)?))?;
        }
    }
    let Some(difference) = difference else { return Ok(Exit::Ok) };
    note(&format!("error: the kernel disagrees: {difference}"));
    if let Some(Trial { by_library, by_program }) = &trial {
        note(&format!("  library: {}, frame {}", reason_name(by_library.reason), hex(&by_library.frame)));
        note(&format!("  program: {}, frame {}", reason_name(by_program.reason), hex(&by_program.frame)));
    }
    Ok(Exit::Error)
}

/// The packet through the loaded program.
fn tried(
    node: &Node,
    candidate: Option<&View<'_>>,
    asked: &Asked,
    packet: &PacketDescription,
) -> anyhow::Result<Trial> {
    let tags = asked.in_port.as_ref().map_or(Tags::default(), |port| port.tags);
    let mut frame = packet.frame(tags);
    if frame.len() > FRAME_BYTES_MAX {
        bail!("--kernel takes packets of up to {} bytes: a test run has one page", FRAME_BYTES_MAX - 14);
    }
    let ingress = match &asked.in_port {
        Some(InPort { ingress, .. }) => {
            frame[..6].copy_from_slice(&ingress.mac.to_le_bytes()[..6]);
            *ingress
        }
        None => Ingress { mac: destination_mac(frame.as_slice()).unwrap_or_default(), port: 0 },
    };
    trial::run(node, candidate, &ingress, tags.vids(), &frame)?.context(NOTHING_LIVE)
}

fn in_words(trial: &Trial, trace: &Trace<'_, '_>) -> String {
    if trial.difference().is_some() {
        return "kernel    DISAGREES\n".to_owned();
    }
    let number = trial.by_program.reason;
    let reason = Reason::ALL.iter().copied().find(|reason| *reason as u32 == number);
    let verdict = reason.map_or("unknown", |reason| verdict_name(reason.verdict()));
    let leaves = match (reason, trace.next_hop()) {
        (Some(Reason::Forwarded), Some(hop)) => {
            format!("; frame leaves by {}, {} bytes", hop.port, trial.by_program.frame.len())
        }
        _ => String::new(),
    };
    format!("kernel    agrees: {verdict}, {}{leaves}\n", reason_name(number))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Answers line by line. A line that is no packet is named and answered with its error; the rest is answered still.
fn lines(view: &View<'_>, asked: &Asked) -> anyhow::Result<Exit> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut faults = 0usize;
    for (number, line) in io::stdin().lock().lines().enumerate() {
        let line = line.context("stdin cannot be read")?;
        if line.trim().is_empty() {
            continue;
        }
        let written = match PacketDescription::from_json(&line) {
            Ok(packet) => serde_json::to_writer(&mut out, &trace(view, packet, asked)?).map_err(io::Error::from),
            Err(error) => {
                faults += 1;
                fault(&mut out, number + 1, &error)
            }
        };
        match written.and_then(|()| out.write_all(b"\n")) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(Exit::Ok),
            written => written?,
        }
    }
    out.flush()?;
    if faults > 0 {
        note(&format!("error: {faults} lines are no packets"));
        return Ok(Exit::Error);
    }
    Ok(Exit::Ok)
}

fn fault(out: &mut impl Write, line: usize, error: &PacketError) -> io::Result<()> {
    let text = serde_json::json!({"error": error.to_string(), "line": line});
    write!(out, "{text}")
}
