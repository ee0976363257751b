//! `wayleave trace`: what would happen to a packet, and which line of which file says so.

use std::io::{self, BufRead, ErrorKind, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use fib::packet::Tags;
use fib::{Image, Ingress, Neighbour, Reach, ReachWords};

use super::node::{self, block_on, fail};
use super::plan::offline;
use super::{Exit, Format, Global, note, print};
use crate::compile::{LiveIds, View};
use crate::daemon::apply::propose;
use crate::kernel::tables::Tables;
use crate::trace::{Fields, Offline, PacketDescription, PacketError, trace};

/// Explain what happens to a packet
///
/// Exits with 0 whatever the verdict is.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("packet").required(true).args(["dst", "stdin"]))]
pub(crate) struct Args {
    #[arg(long, requires = "dst")]
    src: Option<IpAddr>,
    #[arg(long, requires = "src")]
    dst: Option<IpAddr>,
    /// tcp, udp, icmp or a number
    #[arg(long, default_value = "tcp")]
    protocol: String,
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
    /// Read one JSON packet a line, write one JSON trace a line
    #[arg(long, conflicts_with_all = ["src", "sport", "dport", "ttl", "length"])]
    stdin: bool,
    /// Whose rules: `live` and `candidate` (what the config's source would become) ask this node, as root; a directory is
    /// compiled, offline and without root
    #[arg(long, default_value = "live", value_name = "live|candidate|PATH")]
    against: PathBuf,
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

/// What the verdict asks of the node: nothing offline, the kernel's tables on a node.
enum Asked {
    Offline,
    Tables(Box<Tables>),
}

impl fib::Node for Asked {
    fn ingress(&self, tags: Tags) -> Option<Ingress> {
        fib::Node::ingress(&Offline, tags)
    }

    fn reach(&self, id: u32) -> ReachWords {
        match self {
            Self::Offline => fib::Node::reach(&Offline, id),
            Self::Tables(tables) => tables.reach(id).unwrap_or(Reach::Unknown).encode(),
        }
    }

    fn ask<I: Image + ?Sized>(&self, _image: &I, _at: u32, _port: u32) -> Option<Neighbour> {
        None
    }

    fn takes(&self, _ingress: &Ingress, _mac: Option<u64>) -> bool {
        true
    }
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    if args.against != Path::new("live") && args.against != Path::new("candidate") {
        return match offline(&args.against, &LiveIds::default()) {
            Ok(image) => answer(args, &image.view()?, &Asked::Offline),
            Err(error) => fail(error, &args.against),
        };
    }
    let node = node::load(global)?;
    if args.against == Path::new("candidate") {
        let source = node.config.source_directory.clone();
        return match block_on(propose(&node, &source))? {
            // A candidate's next hops may have no entry in the tables yet: they are resolved before it is published.
            Ok(proposal) => answer(args, &proposal.desired()?, &Asked::Offline),
            Err(error) => fail(error, &source),
        };
    }
    let observed = node.observe()?;
    let Some(live) = &observed.live else {
        bail!("no generation is live on this node: every packet passes to the kernel");
    };
    answer(args, &live.image.view()?, &Asked::Tables(Box::new(Tables::open(&node.pins)?)))
}

fn answer(args: &Args, view: &View<'_>, node: &Asked) -> anyhow::Result<Exit> {
    if args.stdin {
        return lines(view, node);
    }
    let packet = PacketDescription::new(&Fields {
        src: args.src,
        dst: args.dst,
        protocol: Some(&args.protocol),
        sport: args.sport,
        dport: args.dport,
        ttl: args.ttl,
        length: args.length,
    })?;
    let trace = trace(view, packet, node)?;
    match args.format {
        Format::Human => print(&trace.to_string())?,
        Format::Json => print(&format!("{}\n", serde_json::to_string_pretty(&trace)?))?,
    }
    Ok(Exit::Ok)
}

/// Answers line by line. A line that is no packet is named and answered with its error; the rest is answered still.
fn lines(view: &View<'_>, node: &Asked) -> anyhow::Result<Exit> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut faults = 0usize;
    for (number, line) in io::stdin().lock().lines().enumerate() {
        let line = line.context("stdin cannot be read")?;
        if line.trim().is_empty() {
            continue;
        }
        let written = match PacketDescription::from_json(&line) {
            Ok(packet) => serde_json::to_writer(&mut out, &trace(view, packet, node)?).map_err(io::Error::from),
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
