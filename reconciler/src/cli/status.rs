//! `wayleave status`: what the kernel holds, what the daemon last tried, and what packets met.

use std::fmt::Write as _;

use fib::Verdict;
use fib::layout::Section;
use serde_json::{Value, json};

use super::node::{self, block_on};
use super::{Exit, Format, Global, print};
use crate::daemon::node::Node;
use crate::daemon::state::State;
use crate::daemon::time::rfc3339;
use crate::kernel::counters;
use crate::kernel::link::{Link, XdpMode, links};
use crate::kernel::observe::Observed;
use crate::kernel::tables::Tables;

/// Show what the kernel holds and how the node is doing
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let node = node::load(global)?;
    let observed = node.observe()?;
    let links = block_on(links())??;
    let status = document(&node, &observed, &links)?;
    match args.format {
        Format::Json => print(&format!("{status:#}\n"))?,
        Format::Human => print(&human(&status))?,
    }
    Ok(Exit::Ok)
}

fn document(node: &Node, observed: &Observed, links: &[Link]) -> anyhow::Result<Value> {
    let state = State::new(&node.config.state_dir);
    let mut status = json!({
        "format_version": 1, "node": node.config.name, "state": "empty", "generation": null, "revision": null,
        "digest": null, "published": null, "routes": {"ipv4": 0, "ipv6": 0}, "services": 0, "filters": 0,
    });
    if let Some(live) = &observed.live {
        let view = live.image.view()?;
        status["generation"] = live.number.into();
        status["revision"] = view.revision().into();
        status["digest"] = view.digest().to_string().into();
        status["published"] = rfc3339(view.created_unix_ms()).into();
        status["routes"] = json!({"ipv4": view.count(Section::V4Routes), "ipv6": view.count(Section::V6Routes)});
        status["image"] = json!({"bytes": view.bytes().len(), "capacity": live.image.capacity()});
        let tables = Tables::open(&node.pins)?;
        let mut neighbours = Vec::new();
        for hop in view.next_hops() {
            let known = tables.reach(hop.id)?.up().is_some();
            neighbours.push(json!({"next_hop": format!("{}/{}", hop.policy, hop.name), "via": hop.via,
                "port": hop.port, "resolved": known}));
        }
        status["next_hops"] = neighbours.into();
    }
    let interfaces = interfaces(node, observed, links);
    let attached = interfaces.iter().all(|i| i["attached"] == true);
    if observed.live.is_some() {
        status["state"] = if attached { "forwarding" } else { "degraded" }.into();
    }
    status["interfaces"] = interfaces.into();
    status["retained"] = observed.retained.iter().map(|g| g.number).collect::<Vec<_>>().into();
    status["leftovers"] = observed.strays.len().into();
    status["source"] = json!({"directory": node.config.source_directory});
    status["sync"] = sync(&state);
    let unresolved = status["next_hops"].as_array().is_some_and(|all| all.iter().any(|h| h["resolved"] == false));
    status["health"] = match (observed.live.is_some(), attached, unresolved) {
        (false, ..) => "no-generation",
        (_, false, _) => "port-not-attached",
        (_, _, true) => "next-hop-unresolved",
        _ => "ok",
    }
    .into();
    if node.pins.exist() {
        let counters: Vec<_> = counters::read(&node.pins)?
            .into_iter()
            .filter(|(_, count)| count.packets > 0)
            .map(|(reason, count)| {
                json!({"verdict": verdict(reason.verdict()), "reason": reason.name(), "packets": count.packets,
                    "bytes": count.bytes})
            })
            .collect();
        status["counters"] = counters.into();
    }
    Ok(status)
}

/// The daemon's last look, and whether it is still there to make another.
fn sync(state: &State) -> Value {
    let mut sync = match state.attempt() {
        Some(attempt) => {
            let alive =
                attempt["pid"].as_u64().is_some_and(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists());
            let mut sync = attempt["sync"].clone();
            sync["daemon"] = if alive { "running" } else { "stopped" }.into();
            sync["last_attempted"] = json!({"revision": attempt["revision"],
                "time": attempt["unix_ms"].as_u64().map(rfc3339)});
            sync
        }
        None => json!({"state": "manual", "daemon": "never run"}),
    };
    sync["quarantined"] = match state.quarantined() {
        Ok(aside) if aside.is_empty() => Value::Null,
        Ok(aside) => aside.into_iter().map(|a| a.revision).collect::<Vec<_>>().into(),
        Err(error) => error.to_string().into(),
    };
    sync
}

fn interfaces(node: &Node, observed: &Observed, links: &[Link]) -> Vec<Value> {
    node.config
        .ports
        .iter()
        .map(|(name, port)| {
            let link = links.iter().find(|l| l.name == port.device);
            let held = observed.links.iter().find(|l| l.port == *name);
            let ours = |l: &&Link| {
                held.is_some_and(|h| {
                    h.device == l.index && (h.tc || l.xdp.is_some_and(|x| Some(h.program) == x.program_id))
                })
            };
            let attached = link.filter(ours);
            let tc = attached.is_some() && held.is_some_and(|h| h.tc);
            let xdp = attached.filter(|_| !tc).and_then(|l| l.xdp).map(|x| match x.mode {
                XdpMode::Native => "native",
                XdpMode::Generic => "generic",
                XdpMode::Hardware => "hardware",
                XdpMode::Multiple => "multiple",
            });
            let mode = if tc { Some("tc") } else { xdp };
            json!({"port": name, "device": port.device, "attached": attached.is_some(), "mode": mode,
                "up": link.is_some_and(|l| l.up && l.carrier)})
        })
        .collect()
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Forward => "forward",
        Verdict::Pass => "pass",
        Verdict::Drop => "drop",
    }
}

fn human(status: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut out = format!("node {}: {}\n", text(&status["node"]), text(&status["state"]));
    if status["generation"].is_null() {
        out.push_str("  no generation is live; packets pass to the kernel\n");
    } else {
        let _ = writeln!(out, "  generation  {}, published {}", status["generation"], text(&status["published"]));
        let _ = writeln!(out, "  revision    {}", text(&status["revision"]));
        let _ = writeln!(out, "  digest      {}", text(&status["digest"]));
        let _ = writeln!(out, "  routes      {} IPv4, {} IPv6", status["routes"]["ipv4"], status["routes"]["ipv6"]);
    }
    let _ =
        writeln!(out, "  sync        {}, daemon {}", text(&status["sync"]["state"]), text(&status["sync"]["daemon"]));
    for key in ["error", "first"] {
        if let Some(reason) = status["sync"][key].as_str() {
            let _ = writeln!(out, "              {reason}");
        }
    }
    let _ = writeln!(out, "  health      {}", text(&status["health"]));
    for interface in list(&status["interfaces"]) {
        let attached = match interface["mode"].as_str() {
            Some(mode) => format!("attached, {mode}"),
            None => "NOT ATTACHED".to_owned(),
        };
        let down = if interface["up"] == false { ", link down" } else { "" };
        let _ = writeln!(
            out,
            "  port        {} on {}: {attached}{down}",
            text(&interface["port"]),
            text(&interface["device"])
        );
    }
    for hop in list(&status["next_hops"]).iter().filter(|h| h["resolved"] == false).take(10) {
        let _ = writeln!(
            out,
            "  unresolved  {} via {} on port {}",
            text(&hop["next_hop"]),
            text(&hop["via"]),
            text(&hop["port"])
        );
    }
    for counter in list(&status["counters"]) {
        let _ = writeln!(
            out,
            "  {:<11} {:<16} {:>14} packets {:>16} bytes",
            text(&counter["verdict"]),
            text(&counter["reason"]),
            counter["packets"].to_string(),
            counter["bytes"].to_string()
        );
    }
    out
}
