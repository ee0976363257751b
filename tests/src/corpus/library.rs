//! The corpus, decided by the library over the compiled image.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use fib::packet::Tags;
use fib::service::{BACKEND_DOWN, FlowKey, FlowWords, HalfOpenWords, passes_on, unanswered};
use fib::{Image, Ingress, Neighbour, Node, Reach, ReachWords, Reason, Verdict};
use wayleave::compile::View;
use wayleave::trace::Frame;

use super::expect::{Alike, Outcome, check};
use super::node::port_id;
use super::{Case, Report, Theme};

/// The node of a theme, as the library asks for it.
struct LibraryNode {
    ingress: BTreeMap<u32, Ingress>,
    reach: BTreeMap<u32, Reach>,
    flows: BTreeMap<FlowKey, FlowWords>,
    half_open: BTreeMap<FlowKey, FlowWords>,
    backend_words: BTreeMap<u32, u32>,
}

/// The second at which the library decides.
const NOW_S: u32 = 1_000_000;

impl LibraryNode {
    fn of(theme: &Theme, case: &Case, view: &View) -> Result<Self> {
        let mut reach = BTreeMap::new();
        for hop in view.next_hops() {
            reach.insert(hop.id, theme.node.reach(hop.name, hop.port, &case.down)?);
        }
        let (mut flows, mut half_open) = (BTreeMap::new(), BTreeMap::new());
        for flow in &case.flows {
            let table = if flow.is_half_open { &mut half_open } else { &mut flows };
            table.extend(flow.entries(view, NOW_S)?);
        }
        Ok(Self {
            ingress: theme.node.ingress(case.ingress, |name| port_id(view, name)).collect(),
            reach,
            flows,
            half_open,
            backend_words: case.backend_words(view)?,
        })
    }
}

impl LibraryNode {
    fn word(&self, backend: u32) -> u32 {
        self.backend_words.get(&backend).copied().unwrap_or(0)
    }
}

impl Node for LibraryNode {
    fn ingress(&self, tags: Tags) -> Option<Ingress> {
        self.ingress.get(&tags.vids()).copied()
    }

    fn reach(&self, id: u32) -> ReachWords {
        self.reach.get(&id).copied().unwrap_or(Reach::Unknown).encode()
    }

    fn ask<I: Image + ?Sized>(&self, _image: &I, _at: u32, _port: u32) -> Option<Neighbour> {
        None
    }

    fn flow(&self, key: &FlowKey) -> FlowWords {
        self.flows.get(key).copied().unwrap_or_default()
    }

    fn half_open(&self, key: &FlowKey) -> HalfOpenWords {
        self.half_open.get(key).map_or([0; 5], |words| unanswered(*words))
    }

    fn is_down(&self, backend: u32) -> bool {
        self.word(backend) & BACKEND_DOWN != 0
    }

    fn passes_on(&self, backend: u32, drawn: u32) -> bool {
        passes_on(self.word(backend), drawn)
    }

    fn now_s(&self) -> u32 {
        NOW_S
    }
}

/// Runs every case of the themes in this process.
pub fn run_library(themes: &[Theme]) -> Result<Report> {
    let mut report = Report::default();
    for theme in themes {
        let view = theme.image.view()?;
        let ports: BTreeMap<u32, bool> =
            view.ports().map(|port| (port.id, theme.node.port(port.name).is_some_and(|p| p.has_device))).collect();
        let mut alike = Alike::new();
        for case in &theme.cases {
            let node = LibraryNode::of(theme, case, &view)?;
            let mut frame = Frame::new(&case.frame.bytes);
            let mut steer = fib::Steer::NONE;
            let decision = fib::decide_with(view.bytes(), &frame, &node, &mut steer);
            let mut reason = decision.reason();
            // What the program does with a decision, in the same order.
            if let (Verdict::Forward, Some(neighbour)) = (reason.verdict(), decision.neighbour()) {
                if !ports.get(&decision.port).is_some_and(|has_device| *has_device) {
                    reason = Reason::NoPort;
                } else if fib::tunnel::send(view.bytes(), &mut frame, &neighbour, &steer).is_none() {
                    reason = Reason::NoRoom;
                }
            }
            if fib::service::is_translated(&steer, reason) {
                fib::service::translate(&mut frame, &mut steer).context("the frame cannot be translated")?;
            }
            if reason == Reason::Decapsulated {
                fib::tunnel::decapsulate(&mut frame, &steer).context("the frame cannot be decapsulated")?;
            }
            if reason.verdict() == Verdict::Answer {
                reason = fib::answer::answer(&mut frame, &steer, reason);
            }
            let frame = frame.bytes().to_vec();
            let outcome = Outcome { verdict: reason.verdict(), reason, frame, is_tag_beside: false };
            report.note(case, "library", check(case, &theme.node, &outcome, &mut alike));
        }
    }
    Ok(report)
}
