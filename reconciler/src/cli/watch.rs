//! `wayleave watch`: dropped and passed packets as they come, each with the line that decided.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::builder::PossibleValuesParser;
use fib::event::{Event, Sampling};
use tokio::signal::unix::{SignalKind, signal};

use super::node::{self, block_on};
use super::{Exit, Format, Global, note};
use crate::daemon::node::Node;
use crate::daemon::time::rfc3339;
use crate::kernel::events::{Listener, unix_ms};
use crate::kernel::link::links;
use crate::kernel::observe::{self, Generation};
use crate::kernel::pins::Pins;
use crate::trace::event::{Explained, reasons};

/// How often the wish for events is renewed: several times while it holds.
const RENEW: Duration = Duration::from_secs(1);
/// Images that are kept open for the next events.
const IMAGES_MAX: usize = 3;

/// Print dropped and passed packets, each with the file and line that decided
///
/// Packets that are forwarded make no events. Ends on Ctrl-C, SIGTERM, or after `--count` events; one watcher at a time.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only packets of this reason; can be given several times
    #[arg(long, value_name = "REASON", value_parser = PossibleValuesParser::new(reasons().map(fib::Reason::name)), hide_possible_values = true)]
    reason: Vec<String>,
    /// Only packets that met a route of this policy, or that a rule of this filter policy dropped
    #[arg(long, value_name = "POLICY")]
    policy: Option<String>,
    /// Only every N-th packet of each reason, counted on each CPU by itself
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    every: u32,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let node = node::load(global)?;
    block_on(follow(args, &node))?
}

async fn follow(args: &Args, node: &Node) -> anyhow::Result<Exit> {
    if node.observe()?.live.is_none() {
        bail!("no generation is live on this node: every packet passes to the kernel");
    }
    let mut terminate = signal(SignalKind::terminate()).context("signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
    let mut listener = Listener::open(&node.pins)?;
    let mut shown = Shown { args, pins: &node.pins, images: Vec::new(), devices: BTreeMap::new(), count: 0 };
    if let Some(policy) = &args.policy
        && policy_id(node, policy)?.is_none()
    {
        bail!("no policy `{policy}` is live on this node; `wayleave status --format json` lists those that are");
    }
    shown.devices = devices().await?;
    // Said once it is true: from here on no packet is missed.
    listener.wish(&wish(args, node)?)?;
    note(&announcement(args));
    let mut lost = 0;
    let mut renew = tokio::time::interval(RENEW);
    let ended = loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break Exit::Ok,
            _ = interrupt.recv() => break Exit::Ok,
            _ = renew.tick() => {
                if !listener.is_attached(&node.pins)? {
                    note("error: wayleave was detached from this node: there is nothing to watch any more");
                    break Exit::Error;
                }
                listener.wish(&wish(args, node)?)?;
                shown.devices = devices().await?;
                let now = listener.lost()?;
                if now > lost {
                    note(&format!("{} events were lost: they came faster than they were printed", now - lost));
                    lost = now;
                }
            }
            ready = listener.ready() => ready?,
        }
        if !shown.print(&listener.take())? {
            break Exit::Ok;
        }
    };
    let now = listener.lost()?;
    if now > lost {
        note(&format!("{} events were lost: they came faster than they were printed", now - lost));
    }
    Ok(ended)
}

/// Names of the devices by kernel index.
async fn devices() -> anyhow::Result<BTreeMap<u32, String>> {
    Ok(links().await?.into_iter().map(|link| (link.index, link.name)).collect())
}

fn announcement(args: &Args) -> String {
    let each = if args.every == 1 { "every".to_owned() } else { format!("one in {} of each CPU's", args.every) };
    let of = if args.reason.is_empty() { "any reason".to_owned() } else { args.reason.join(", ") };
    let policy = args.policy.as_ref().map_or_else(String::new, |policy| format!(", routes of {policy} only"));
    format!("watching {each} dropped and passed packet: {of}{policy}")
}

fn wish(args: &Args, node: &Node) -> anyhow::Result<Sampling> {
    let wanted = |name: &str| args.reason.is_empty() || args.reason.iter().any(|reason| reason == name);
    let bits = reasons().filter(|reason| wanted(reason.name())).fold(0, |bits, reason| bits | 1 << (reason as u8));
    // A policy that is gone for now: its last id keeps quiet, since no other policy gets it while it is retained.
    let policy = match &args.policy {
        Some(policy) => policy_id(node, policy)?.unwrap_or(u32::MAX),
        None => 0,
    };
    Ok(Sampling { every: args.every, policy, until_ns: 0, reasons: bits })
}

/// The id that the live generation knows a policy by.
fn policy_id(node: &Node, name: &str) -> anyhow::Result<Option<u32>> {
    let observed = node.observe()?;
    let Some(live) = &observed.live else { return Ok(None) };
    let view = live.image.view()?;
    let of_routes = view.policies().find(|policy| policy.name == name).map(|policy| policy.id);
    let of_filters = || view.filter_policies().find(|policy| policy.name == name).map(|policy| policy.id);
    Ok(of_routes.or_else(of_filters))
}

/// What has been printed, and what the next events are explained with.
struct Shown<'n> {
    args: &'n Args,
    pins: &'n Pins,
    images: Vec<Generation>,
    /// Names by kernel index.
    devices: BTreeMap<u32, String>,
    count: u64,
}

impl Shown<'_> {
    /// Prints events; `false`: the last one that was asked for, or nobody reads any more.
    fn print(&mut self, events: &[(Event, Vec<u8>)]) -> anyhow::Result<bool> {
        let mut text = String::new();
        let mut more = true;
        for run in events.chunk_by(|(a, _), (b, _)| a.generation == b.generation) {
            let generation = run.first().map_or(0, |(event, _)| event.generation);
            self.open(generation)?;
            let view = self.images.iter().find(|g| g.number == generation).map(|g| g.image.view()).transpose()?;
            for (event, frame) in run {
                let explained = Explained::new(event, frame, view.as_ref());
                let device = self.devices.get(&event.device).map(String::as_str);
                let elsewhere = |wanted: &String| explained.policy().is_some_and(|policy| policy != wanted);
                if !more || self.args.policy.as_ref().is_some_and(elsewhere) {
                    continue;
                }
                let ms = unix_ms(event.monotonic_ns);
                let time = format!("{}.{:03}Z", rfc3339(ms).trim_end_matches('Z'), ms % 1000);
                text += &match self.args.format {
                    Format::Human => explained.line(&time, device),
                    Format::Json => explained.json(&time, device).to_string(),
                };
                text.push('\n');
                self.count += 1;
                more = self.args.count.is_none_or(|count| self.count < count);
            }
        }
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
            result => Ok(result.map(|()| more)?),
        }
    }

    /// Opens the image of a generation, if it is there and not open yet.
    fn open(&mut self, generation: u64) -> anyhow::Result<()> {
        if generation == 0 || self.images.iter().any(|open| open.number == generation) {
            return Ok(());
        }
        if let Some(opened) = observe::generation(self.pins, generation)? {
            // The oldest goes: an open image keeps its memory in the kernel.
            if self.images.len() == IMAGES_MAX {
                self.images.remove(0);
            }
            self.images.push(opened);
        }
        Ok(())
    }
}
