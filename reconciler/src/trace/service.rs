//! What a packet met at the service stage, in words.

use std::fmt::Write as _;
use std::net::IpAddr;

use fib::layout::Section;
use fib::service::{Why, translated};
use fib::{Reason, Steer};
use serde::Serialize;

use crate::compile::view::{BackendView, ServiceView, View, ip};
use crate::policy::backend_name;

/// The service of a packet, and the backend that it goes to or comes from.
#[derive(Clone, Debug)]
pub struct Served<'a> {
    pub service: ServiceView<'a>,
    /// `None`: there is none for it, or the image does not know it any more.
    pub backend: Option<BackendView<'a>>,
    why: Option<Why>,
    /// The slot of Maglev's table that the packet fell on, and how many there are.
    slot: Option<(u32, u32)>,
    /// The backend that would have the packet, and is down.
    passed_over: Option<BackendView<'a>>,
    /// What is translated, and to what.
    translated: Option<(&'static str, String)>,
    /// The packet is an ICMP error about one of the service.
    is_error: bool,
    /// The packet is put into one from the first address to the second; the first is `None` where no node was named.
    tunnel: Option<(Option<IpAddr>, IpAddr)>,
}

/// Whether the service stage itself ends a packet's way with this reason.
pub(super) fn ends_there(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NoBackend
            | Reason::NoBackendDrop
            | Reason::ServiceFragment
            | Reason::NewFlowRate
            | Reason::FlowCollision
            | Reason::EchoAnswered
            | Reason::NoBackendReject
            | Reason::AnswerRate
            | Reason::NoAnswer
            | Reason::Decapsulated
            | Reason::DecapsulationRefused
            | Reason::DecapsulationMalformed
    )
}

/// The address that the route stage looks up, where it is not the destination.
pub(super) fn routed_to(steer: &Steer) -> Option<IpAddr> {
    (steer.chosen().backend() != 0 && steer.why() != Some(Why::Answer)).then(|| ip(steer.address))
}

impl<'a> Served<'a> {
    pub(super) fn of(view: &View<'a>, steer: &Steer) -> Option<Self> {
        let chosen = steer.chosen();
        let service = view.services().find(|service| service.id == chosen.service())?;
        let backend = view.backends(&service).find(|backend| backend.id == chosen.backend());
        let why = backend.and_then(|_| steer.why());
        let passed_over = view.backends(&service).find(|backend| backend.id == steer.passed_over);
        let slots = u32::try_from(view.service_slots(&service).len()).unwrap_or(u32::MAX);
        let slot = matches!(why, Some(Why::Slot | Why::Affinity | Why::StandIn | Why::PassedOn))
            .then(|| (u32::try_from((u64::from(steer.hash) * u64::from(slots)) >> 32).unwrap_or_default(), slots));
        let what = match steer.translated {
            translated::DESTINATION => Some("destination"),
            translated::SOURCE => Some("source"),
            _ => None,
        };
        let port = u16::try_from(steer.port).ok();
        let translated = what.map(|what| (what, backend_name(ip(steer.address), port)));
        let tunnel = backend.filter(|_| steer.tunnel != 0).map(|to| (view.tunnel_source(to.address), to.address));
        Some(Self { service, backend, why, slot, passed_over, translated, is_error: steer.quoted != 0, tunnel })
    }

    /// Why it is this backend, as a word for programs.
    pub fn why_word(&self) -> Option<&'static str> {
        self.why.map(|why| match why {
            Why::Flow => "flow-table",
            Why::Slot => "maglev-slot",
            Why::Affinity => "affinity",
            Why::Previous => "previous-generation",
            Why::Answer => "answer",
            Why::StandIn => "stand-in",
            Why::PassedOn => "passed-on",
        })
    }

    pub(super) fn to_json(&self) -> ServedJson<'a> {
        ServedJson {
            service: self.service.name,
            vip: self.service.vip,
            forwarding: self.service.forwarding.as_str(),
            file: self.service.file,
            line: self.service.line,
            backend: self.backend.map(|backend| backend.name()),
            weight: self.backend.map(|backend| backend.weight),
            why: self.why_word(),
            slot: self.slot.map(|(slot, _)| slot),
            slots: self.slot.map(|(_, slots)| slots),
            passed_over: self.passed_over.map(|backend| backend.name()),
            translated: self.translated.as_ref().map(|(what, _)| *what),
            to: self.translated.as_ref().map(|(_, to)| to.clone()),
            icmp_error: self.is_error,
            tunnel: self.tunnel.map(|(source, destination)| TunnelJson { source, destination }),
        }
    }

    /// One line for the service, one for the backend.
    pub(super) fn lines(&self) -> String {
        let service = &self.service;
        let quoted = match (self.is_error, self.why) {
            (false, _) => "",
            (true, Some(Why::Answer)) => ": an error about a packet to its backend",
            (true, _) => ": an error about a packet from it",
        };
        let mut text = format!(
            "service   {} on {} by {}{quoted}  [{}:{}]\n",
            service.name,
            service.vip,
            service.forwarding.as_str(),
            service.file,
            service.line
        );
        let Some(backend) = &self.backend else {
            let down =
                self.passed_over.map_or(String::new(), |of| format!(": {} is down, and so are all others", of.name()));
            return text + &format!("backend   none{down}\n");
        };
        let why = match (self.why, self.slot) {
            (Some(Why::Flow), _) => "the flow table has this flow there".to_owned(),
            (Some(Why::Previous), _) => "the generation before sent such packets there".to_owned(),
            (Some(Why::Answer), _) if self.is_error => "the flow table has the quoted packet's flow there".to_owned(),
            (Some(Why::Answer), _) => "its answer, the flow table says".to_owned(),
            (Some(Why::Affinity), Some((slot, slots))) => {
                format!("slot {slot} of {slots} by the source address alone")
            }
            (Some(Why::StandIn), Some((slot, slots))) => {
                format!(
                    "stands in for {} of slot {slot} of {slots}, which is down",
                    self.passed_over.map_or_else(String::new, |of| of.name())
                )
            }
            (Some(Why::PassedOn), Some((slot, slots))) => {
                format!(
                    "passed on by {} of slot {slot} of {slots}, which is slow",
                    self.passed_over.map_or_else(String::new, |of| of.name())
                )
            }
            (_, Some((slot, slots))) => format!("slot {slot} of {slots}"),
            _ => String::new(),
        };
        let drained = if backend.weight == 0 { ", being drained" } else { "" };
        let _ = write!(text, "backend   {} ×{}{drained}: {why}", backend.name(), backend.weight);
        let is_said = matches!(self.why, Some(Why::StandIn | Why::PassedOn));
        if let (Some(over), false) = (&self.passed_over, is_said) {
            let _ = write!(text, "; its backend {} is down", over.name());
        }
        if let Some((what, to)) = &self.translated {
            let _ = match (self.is_error, *what) {
                (false, what) => write!(text, "; {what} becomes {to}"),
                (true, "source") => write!(text, "; source and quoted destination become {to}"),
                (true, _) => write!(text, "; destination and quoted source become {to}"),
            };
        }
        if let Some((from, to)) = self.tunnel {
            let from = from.map_or_else(|| "the node's tunnel source".to_owned(), |from| from.to_string());
            let _ = write!(text, "; in a packet from {from} to {to}");
        }
        let _ = writeln!(text, "  [{}:{}]", backend.file, backend.line);
        text
    }
}

impl View<'_> {
    /// Whether some service of the image has this name.
    pub fn has_service(&self, name: &str) -> bool {
        self.count(Section::Services) > 0 && self.services().any(|service| service.name == name)
    }
}

#[derive(Serialize)]
pub(super) struct ServedJson<'a> {
    service: &'a str,
    vip: IpAddr,
    forwarding: &'static str,
    file: &'a str,
    line: u32,
    backend: Option<String>,
    weight: Option<u16>,
    /// `flow-table`, `maglev-slot`, `affinity`, `previous-generation`, `answer`, `stand-in` or `passed-on`.
    why: Option<&'static str>,
    slot: Option<u32>,
    slots: Option<u32>,
    /// The backend that would have the packet, and is down or slow.
    passed_over: Option<String>,
    /// `destination` or `source`, and what it becomes.
    translated: Option<&'static str>,
    to: Option<String>,
    /// The packet is an ICMP error, and what is said here is said of the packet that it quotes, turned around.
    icmp_error: bool,
    /// The addresses of the outer header that it gets; `null`: none.
    tunnel: Option<TunnelJson>,
}

#[derive(Serialize)]
struct TunnelJson {
    /// `null`: no node was named that it could come from.
    source: Option<IpAddr>,
    destination: IpAddr,
}
