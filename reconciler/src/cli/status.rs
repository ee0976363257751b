//! `wayleave status`: what the kernel holds, what the daemon last tried, and what packets met.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use fib::Verdict;
use fib::layout::{LAYOUT_VERSION, Section};
use serde_json::{Value, json};

use super::confirm::in_words;
use super::node::{self, block_on};
use super::runtime::Runtime;
use super::{Exit, Format, Global, axes, print};
use crate::compile::View;
use crate::daemon::attempt::Attempt;
use crate::daemon::node::Node;
use crate::daemon::probation::{self, Standing};
use crate::daemon::state::State;
use crate::daemon::time::rfc3339;
use crate::kernel::attach::Hook;
use crate::kernel::counters::{self, Count, Owners};
use crate::kernel::flows;
use crate::kernel::layout::OtherLayout;
use crate::kernel::link::{Link, XdpMode, links, wire};
use crate::kernel::observe::Observed;
use crate::policy::{DriftMode, HealthChecks};
use crate::trace::tag_words;

/// Show what the kernel holds and how the node is doing
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let node = node::load(global)?;
    let links = block_on(links())??;
    let mut observed = node.observe()?;
    let (status, next_hops) = loop {
        let status = document(&node, &observed, &links)?;
        // An id could have passed to another object between the look at the image and the look at its counter.
        let now = node.observe()?;
        if now.live_number() == observed.live_number() {
            break status;
        }
        observed = now;
    };
    match args.format {
        Format::Json => print(&format!("{status:#}\n"))?,
        Format::Human => print(&human(&status, &next_hops))?,
    }
    Ok(Exit::Ok)
}

/// The status as JSON, and its next hops in words.
fn document(node: &Node, observed: &Observed, links: &[Link]) -> anyhow::Result<(Value, String)> {
    let state = State::new(&node.config.state_dir);
    let mut status = json!({
        "format_version": 1, "node": node.config.name, "state": "empty", "generation": null, "parent": null, "revision": null,
        "digest": null, "published": null, "routes": {"ipv4": 0, "ipv6": 0}, "services": 0, "filters": 0,
    });
    let (mut any_down, mut hop_words) = (false, String::new());
    let objects = if node.pins.exist() { counters::Objects::open(&node.pins)? } else { None };
    let views =
        observed.live.iter().chain(&observed.retained).map(|g| g.image.view()).collect::<Result<Vec<_>, _>>()?;
    let owners = Owners::of(&views);
    if let Some(live) = &observed.live {
        let view = live.image.view()?;
        status["generation"] = live.number.into();
        status["parent"] = live.image.view()?.parent().into();
        status["revision"] = view.revision().into();
        status["digest"] = view.digest().to_string().into();
        status["published"] = rfc3339(view.created_unix_ms()).into();
        status["routes"] = json!({"ipv4": view.count(Section::V4Routes), "ipv6": view.count(Section::V6Routes)});
        status["filters"] = view.count(Section::FilterRules).into();
        status["filter_rules"] = filter_rules(&view, objects.as_ref())?;
        status["image"] = json!({"bytes": view.bytes().len(), "capacity": live.image.capacity()});
        let runtime = Runtime::read(node, &view, &state)?;
        let mut next_hops = Vec::new();
        for hop in &runtime.next_hops {
            let mut row = serde_json::to_value(hop)?;
            if let Some(objects) = &objects {
                count(&mut row, objects.next_hop(hop.id)?);
            }
            next_hops.push(row);
        }
        status["next_hops"] = next_hops.into();
        let mut policies = Vec::new();
        for policy in view.policies() {
            let mut row = json!({"policy": policy.name, "file": policy.file, "line": policy.line});
            if let Some(objects) = &objects {
                count(&mut row, objects.policy(policy.id, &owners)?);
            }
            policies.push(row);
        }
        status["policies"] = policies.into();
        status["services"] = view.count(Section::Services).into();
        status["service_list"] = services(&view, objects.as_ref(), &runtime)?;
        status["degraded_groups"] = serde_json::to_value(&runtime.degraded_groups)?;
        any_down = runtime.is_down();
        hop_words = runtime.human();
    }
    if let Some(table) = objects.is_some().then(|| flows::table(&node.pins)).transpose()?.flatten() {
        status["flow_table"] = json!({"capacity": table.capacity,
            "half_open_capacity": table.half_open_capacity, "new_flows_per_second_and_cpu": table.rate,
            "begun": table.begun, "refused": table.refused});
    }
    let interfaces = interfaces(node, observed, links);
    let attached = interfaces.iter().all(|i| i["attached"] == true);
    if observed.live.is_some() {
        status["state"] = if attached && !any_down { "forwarding" } else { "degraded" }.into();
    }
    status["interfaces"] = interfaces.into();
    status["layout"] = LAYOUT_VERSION.into();
    status["other_layouts"] = observed.layouts.iter().map(other_layout).collect();
    let other = match (observed.live.is_some(), observed.layouts.last()) {
        (_, Some(last)) if last.is_newer() => Some("newer-layout"),
        (false, Some(_)) => Some("older-layout"),
        _ => None,
    };
    if let Some(other) = other {
        status["state"] = other.into();
    }
    status["retained"] = observed.retained.iter().map(|g| g.number).collect::<Vec<_>>().into();
    let older = observed.layouts.iter().filter(|layout| !layout.is_newer() && observed.live.is_some()).count();
    status["leftovers"] = (observed.strays.len() + older).into();
    let attempt = Attempt::last(&state);
    status["drift"] = drift(node, &state);
    let probation = probation::last(node)?;
    status["source"] = axes::source(node, &state, attempt.as_ref());
    status["policy"] = axes::policy(attempt.as_ref());
    status["sync"] = axes::sync(node, &state, observed, attempt.as_ref(), probation.as_ref())?;
    status["probation"] = probation.as_ref().map_or(Value::Null, |record| {
        json!({"generation": record.generation, "fallback": record.fallback, "state": record.standing.word(),
            "why": record.why, "confirm_within_s": record.confirm_within().map(|left| left.as_secs()),
            "unhealthy": record.unhealthy.iter().map(|(probe, error)| json!({"probe": probe, "error": error}))
                .collect::<Vec<_>>(), "words": in_words(record)})
    });
    // Until another change comes.
    let unhealthy = probation
        .as_ref()
        .filter(|record| record.standing == Standing::RolledBackUnhealthy && status["parent"] == record.generation);
    let published = observed.live.as_ref().map(|live| live.image.view()).transpose()?.map(|v| v.created_unix_ms());
    let not_attached = status["interfaces"].as_array().into_iter().flatten().filter(|i| i["attached"] != true);
    let words = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    status["health"] = axes::health(&axes::Signs {
        live: observed.live.is_some(),
        other_layout: other,
        not_attached: not_attached.map(|i| format!("{} on {}", words(&i["port"]), words(&i["device"]))).collect(),
        next_hops: status["next_hops"].as_array().map_or(&[], Vec::as_slice),
        services: status["service_list"].as_array().map_or(&[], Vec::as_slice),
        unhealthy: unhealthy.map(|record| (in_words(record), published)),
    });
    if let Some(objects) = &objects {
        let counters: Vec<_> = objects
            .reasons(&owners)?
            .into_iter()
            .filter(|(_, count)| count.packets > 0)
            .map(|(reason, count)| {
                json!({"verdict": verdict(reason.verdict()), "reason": reason.name(), "packets": count.packets,
                    "bytes": count.bytes})
            })
            .collect();
        status["counters"] = counters.into();
    }
    Ok((status, hop_words))
}

/// Services with their backends, by name.
fn services(view: &View<'_>, objects: Option<&counters::Objects>, runtime: &Runtime) -> anyhow::Result<Value> {
    let mut ports: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for (service, port) in view.service_ports() {
        ports.entry(service).or_default().push(port.to_string());
    }
    let mut list = Vec::new();
    for service in view.services() {
        let mut row = json!({
            "service": service.name, "vip": service.vip, "ports": ports.remove(&service.row).unwrap_or_default(),
            "forwarding": service.forwarding.as_str(), "on_no_backend": service.on_no_backend.as_str(),
            "echo": service.echo.as_str(),
            "file": service.file, "line": service.line,
        });
        if let Some(objects) = objects {
            let counted = objects.service(service.id)?;
            count(&mut row, counted.to);
            row["answers"] = json!({"packets": counted.answers.packets, "bytes": counted.answers.bytes});
        }
        if let Some(checks) = service.health {
            let words = HealthChecks::from_text(checks).map(|checks| checks.to_string());
            let open = runtime.fail_open.iter().any(|name| name == service.name);
            row["health"] = json!({"checks": words, "fail_open": open, "as_of": runtime.backends_as_of});
        }
        let mut backends = Vec::new();
        for backend in view.backends(&service) {
            let mut row = json!({"backend": backend.name(), "weight": backend.weight, "line": backend.line});
            if let Some(objects) = objects {
                count(&mut row, objects.backend(backend.id)?);
            }
            if let Some(health) = runtime.backends.iter().find(|health| health.id == backend.id) {
                row["health"] = serde_json::to_value(health)?;
                row["health"]["words"] = health.standing().into();
            }
            backends.push(row);
        }
        row["backends"] = backends.into();
        list.push(row);
    }
    Ok(list.into())
}

fn other_layout(layout: &OtherLayout) -> Value {
    json!({"version": layout.version, "directory": layout.directory, "newer": layout.is_newer(),
        "written_by": layout.written_by})
}

fn count(row: &mut Value, count: Count) {
    row["packets"] = count.packets.into();
    row["bytes"] = count.bytes.into();
}

/// Filter rules in the order in which they decide, with what they matched and what their limits dropped.
fn filter_rules(view: &View<'_>, objects: Option<&counters::Objects>) -> anyhow::Result<Value> {
    let mut rows = Vec::new();
    for rule in view.filter_rules() {
        let mut row = json!({"filter": format!("{}/{}", rule.policy, rule.name), "policy": rule.policy, "rule": rule.name,
            "meaning": rule.meaning, "file": rule.file, "line": rule.line});
        if let Some(objects) = objects {
            let (matched, limited) = objects.filter_rule(rule.id)?;
            count(&mut row, matched);
            row["limited_packets"] = limited.packets.into();
            row["limited_bytes"] = limited.bytes.into();
        }
        rows.push(row);
    }
    Ok(rows.into())
}

/// What the daemon last found to differ in the kernel. `wayleave drift` looks itself.
fn drift(node: &Node, state: &State) -> Value {
    let mode = node.config.drift.mode;
    let known =
        state.drift().filter(|known| mode != DriftMode::Off && known["mode"] == mode.word()).unwrap_or_default();
    let time = |value: &Value| value.as_u64().map(rfc3339);
    let repaired = match &known["repaired"] {
        Value::Object(_) => json!({"time": time(&known["repaired"]["unix_ms"]),
            "differences": known["repaired"]["differences"]}),
        _ => Value::Null,
    };
    json!({"mode": mode.word(), "looked": time(&known["unix_ms"]), "since": time(&known["since_unix_ms"]),
        "differences": known["differences"], "repaired": repaired, "error": known["error"]})
}

fn interfaces(node: &Node, observed: &Observed, links: &[Link]) -> Vec<Value> {
    let decided = State::new(&node.config.state_dir).attachments();
    let newer = observed.layouts.iter().any(OtherLayout::is_newer);
    node.config
        .ports
        .iter()
        .map(|(name, port)| {
            let link = links.iter().find(|l| l.name == port.device);
            // A VLAN's frames are taken from the device below.
            let wire = link.and_then(|link| wire(links, link).ok());
            let below = wire.map(|wire| wire.link);
            let held = below.and_then(|link| observed.links.iter().find(|held| held.index == link.index));
            let ours = |l: &&Link| {
                held.is_some_and(|h| match h.hook {
                    Hook::Tc => h.program != 0,
                    Hook::Xdp => l.xdp.is_some_and(|x| Some(h.program) == x.program_id),
                })
            };
            let attached = below.filter(ours);
            let vlan = wire.filter(|wire| wire.tags.vids() != 0);
            let tc = attached.is_some() && held.is_some_and(|h| h.hook == Hook::Tc);
            let xdp = attached.filter(|_| !tc).and_then(|l| l.xdp).map(|x| match x.mode {
                XdpMode::Native => "native",
                XdpMode::Generic => "generic",
                XdpMode::Hardware => "hardware",
                XdpMode::Multiple => "multiple",
            });
            let mode = if tc { Some("tc") } else { xdp };
            // What another attached later, by other means, was not decided here.
            let why = attached.and_then(|link| {
                let decided = decided.iter().find(|one| one.index == link.index && Some(one.mode.as_str()) == mode)?;
                Some(json!({"configured": decided.configured, "why": decided.why}))
            });
            let why = why.unwrap_or_else(|| json!({"configured": null, "why": null}));
            json!({"port": name, "device": port.device, "attached": (!newer).then_some(attached.is_some()), "mode": mode,
                "configured": why["configured"], "why": why["why"],
                "vlan": vlan.map(|wire| json!({"of": wire.link.name, "tags": tag_words(wire.tags)})),
                "up": link.is_some_and(|l| l.up && l.carrier)})
        })
        .collect()
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Forward => "forward",
        Verdict::Pass => "pass",
        Verdict::Drop => "drop",
        Verdict::Answer => "answer",
    }
}

fn human(status: &Value, next_hops: &str) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut out = format!("node {}: {}\n", text(&status["node"]), text(&status["state"]));
    for layout in list(&status["other_layouts"]) {
        let version = layout["version"].as_u64().map_or("without a version".to_owned(), |version| version.to_string());
        let by = layout["written_by"].as_str().map(|by| format!(", written by wayleave {by}")).unwrap_or_default();
        let what = if layout["newer"] == true {
            "newer than this version's: only a newer wayleave can read or change what is live"
        } else {
            "older than this version's: the next apply takes it over"
        };
        let _ = writeln!(out, "  layout      {version} in {}{by}; {what}", text(&layout["directory"]));
    }
    if status["generation"].is_null() && list(&status["other_layouts"]).is_empty() {
        out.push_str("  no generation is live; packets pass to the kernel\n");
    } else if !status["generation"].is_null() {
        let _ = writeln!(out, "  generation  {}, published {}", status["generation"], text(&status["published"]));
        let _ = writeln!(out, "  revision    {}", text(&status["revision"]));
        let _ = writeln!(out, "  digest      {}", text(&status["digest"]));
        let _ = writeln!(out, "  routes      {} IPv4, {} IPv6", status["routes"]["ipv4"], status["routes"]["ipv6"]);
        if status["filters"] != 0 {
            let _ = writeln!(out, "  filters     {} rules", status["filters"]);
        }
    }
    out.push_str(&axes::human(status));
    let drift = &status["drift"];
    let differences = list(&drift["differences"]);
    if !differences.is_empty() {
        let count = differences.len();
        let plural = if count == 1 { "" } else { "s" };
        let _ = writeln!(
            out,
            "  drift       {count} difference{plural} since {}, mode {}",
            text(&drift["since"]),
            text(&drift["mode"])
        );
        for difference in &differences {
            let _ = writeln!(out, "              {}", text(&difference["message"]));
        }
    } else if drift["repaired"].is_object() {
        let of: Vec<_> = list(&drift["repaired"]["differences"]).iter().map(|one| text(&one["message"])).collect();
        let _ = writeln!(out, "  drift       none; repaired {}: {}", text(&drift["repaired"]["time"]), of.join("; "));
    }
    if let Some(words) = status["probation"]["words"].as_str() {
        let _ = writeln!(out, "  probation   {words}");
    }
    for interface in list(&status["interfaces"]) {
        let attached = match interface["mode"].as_str() {
            Some(mode) => format!("attached, {mode}"),
            None if interface["attached"].is_null() => "not known to this version".to_owned(),
            None => "NOT ATTACHED".to_owned(),
        };
        let vlan = match &interface["vlan"] {
            Value::Object(vlan) => format!(" (VLAN {} of {})", text(&vlan["tags"]), text(&vlan["of"])),
            _ => String::new(),
        };
        let why = interface["why"].as_str().map(|why| format!(" ({why})")).unwrap_or_default();
        let down = if interface["up"] == false { ", link down" } else { "" };
        let _ = writeln!(
            out,
            "  port        {} on {}{vlan}: {attached}{why}{down}",
            text(&interface["port"]),
            text(&interface["device"])
        );
    }
    out.push_str(next_hops);
    for service in list(&status["service_list"]) {
        let ports: Vec<String> = list(&service["ports"]).iter().map(&text).collect();
        let _ = writeln!(
            out,
            "  service     {} {} {} by {}: {} packets, {} answers",
            text(&service["service"]),
            text(&service["vip"]),
            ports.join(", "),
            text(&service["forwarding"]),
            service["packets"],
            service["answers"]["packets"]
        );
        if let Some(checks) = service["health"]["checks"].as_str() {
            let as_of = service["health"]["as_of"].as_str().map(|as_of| format!(", as of {as_of}")).unwrap_or_default();
            let stopped = if status["sync"]["daemon"] == "running" { "" } else { ", and no daemon checks now" };
            let _ = writeln!(out, "              checked by {checks}{as_of}{stopped}");
            if service["health"]["fail_open"] == true {
                let _ = writeln!(out, "              fewer are healthy than minHealthy: all are used");
            }
        }
        for backend in list(&service["backends"]) {
            let drained = if backend["weight"] == 0 { ", drained" } else { "" };
            let health = backend["health"]["words"].as_str().map(|health| format!(", {health}")).unwrap_or_default();
            let _ = writeln!(
                out,
                "  backend     {} ×{}{drained}{health}: {} packets",
                text(&backend["backend"]),
                backend["weight"],
                backend["packets"]
            );
        }
    }
    if !list(&status["service_list"]).is_empty() {
        let table = &status["flow_table"];
        let _ = writeln!(
            out,
            "  flow table  {} entries, {} for half-open flows, {} flows begun, {} refused over {} a second and CPU",
            table["capacity"],
            table["half_open_capacity"],
            table["begun"],
            table["refused"],
            table["new_flows_per_second_and_cpu"]
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
    for (kind, key) in [("policy", "policies"), ("next_hop", "next_hops"), ("filter", "filter_rules")] {
        for row in list(&status[key]).iter().filter(|row| row["packets"].as_u64().is_some_and(|packets| packets > 0)) {
            let _ = writeln!(
                out,
                "  {:<28} {:>14} packets {:>16} bytes",
                format!("{:<11} {}", kind.replace('_', "-"), text(&row[kind])),
                row["packets"].to_string(),
                row["bytes"].to_string()
            );
            if let Some(limited) = row["limited_packets"].as_u64().filter(|limited| *limited > 0) {
                let _ = writeln!(
                    out,
                    "  {:<28} {limited:>14} packets {:>16} bytes",
                    "  over its limit",
                    row["limited_bytes"].to_string()
                );
            }
        }
    }
    out
}
