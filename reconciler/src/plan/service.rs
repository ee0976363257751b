//! Services and backends as a plan compares them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Named, sorted};
use crate::compile::view::{ServiceView, View};
use crate::policy::{Echo, FlowTimeouts, HealthChecks, OnNoBackend};

/// Services by name. Against `before`, the words of one whose Maglev table changes say how much of it does: so many new
/// flows go to another backend than they would have.
pub(super) fn services(view: &View, before: Option<&View>) -> Vec<Named> {
    let mut ports: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for (service, port) in view.service_ports() {
        let target = port.target.map_or_else(String::new, |target| format!("→{target}"));
        ports.entry(service).or_default().push(format!("{port}{target}"));
    }
    let old: BTreeMap<&str, ServiceView> =
        before.iter().flat_map(|view| view.services()).map(|service| (service.name, service)).collect();
    let named = |service: ServiceView| {
        let ports = ports.get(&service.row).map(|ports| ports.join(", ")).unwrap_or_default();
        let mut text = format!("{} {ports} by {}", service.vip, service.forwarding.as_str());
        if let Some(affinity) = service.affinity {
            let _ = write!(text, ", affinity of source /{} or /{}", affinity.ipv4, affinity.ipv6);
        }
        // Defaults are worth no word.
        if service.on_no_backend != OnNoBackend::default() {
            let _ = write!(text, ", on-no-backend {}", service.on_no_backend.as_str());
        }
        if service.echo != Echo::default() {
            let _ = write!(text, ", echo {}", service.echo.as_str());
        }
        if let Some(health) = service.health {
            let words = HealthChecks::from_text(health).map_or_else(|| health.to_owned(), |checks| checks.to_string());
            let _ = write!(text, ", checked by {words}");
        }
        let times = service.timeouts;
        if times != FlowTimeouts::default() {
            let (established, closing, udp) = (times.established_s, times.closing_s, times.udp_s);
            let _ = write!(text, ", flows kept {established} s, {closing} s, udp {udp} s");
        }
        if let Some((before, was)) = before.zip(old.get(service.name))
            && let Some(moved) = moved((before, was), (view, &service))
        {
            let _ = write!(text, "; {moved} of its slots move");
        }
        Named { name: service.name.to_owned(), text, place: Some((service.file.to_owned(), service.line)) }
    };
    sorted(view.services().map(named).collect())
}

/// Backends as `service/10.1.0.11:8099`.
pub(super) fn backends(view: &View) -> Vec<Named> {
    let mut list = Vec::new();
    for service in view.services() {
        for backend in view.backends(&service) {
            let text = match backend.weight {
                0 => "×0, drained".to_owned(),
                weight => format!("×{weight}"),
            };
            list.push(Named {
                name: format!("{}/{}", service.name, backend.name()),
                text,
                place: Some((backend.file.to_owned(), backend.line)),
            });
        }
    }
    sorted(list)
}

/// The share of slots that name another backend, as `33.4 %`; `None`: none does. Tables of different sizes are compared where
/// a flow's hash would fall in each.
fn moved((before, was): (&View, &ServiceView), (after, is): (&View, &ServiceView)) -> Option<String> {
    let owners = |view: &View, service: &ServiceView| -> Vec<String> {
        view.backends(service).map(|backend| backend.name()).collect()
    };
    let (old, new): (Vec<u16>, Vec<u16>) = (before.service_slots(was).collect(), after.service_slots(is).collect());
    let (old_names, new_names) = (owners(before, was), owners(after, is));
    let size = old.len().max(new.len());
    if size == 0 {
        return None;
    }
    // By place in one list of names: equal names are found at the same.
    let place = |slots: &[u16], names: &[String]| -> Vec<Option<usize>> {
        let of: Vec<Option<usize>> =
            names.iter().map(|name| old_names.iter().chain(&new_names).position(|other| other == name)).collect();
        (0..size)
            .map(|at| slots.get(at * slots.len() / size).and_then(|slot| of.get(usize::from(*slot)).copied().flatten()))
            .collect()
    };
    let moved = place(&old, &old_names).iter().zip(place(&new, &new_names)).filter(|(a, b)| **a != *b).count();
    (moved > 0).then(|| {
        let tenths = (moved * 1000).div_ceil(size);
        format!("{}.{} %", tenths / 10, tenths % 10)
    })
}
