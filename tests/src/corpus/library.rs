//! The corpus, decided by the library over the compiled image.

use std::collections::BTreeMap;

use anyhow::Result;
use fib::packet::Tags;
use fib::{Image, Ingress, Neighbour, Node, Reach, ReachWords, Reason, Verdict};

use super::expect::{Alike, Outcome, check};
use super::node::word;
use super::{Report, Theme};
use crate::Mac;

/// The node of a theme, as the library asks for it.
struct LibraryNode<'t> {
    ingress: Mac,
    neighbours: &'t BTreeMap<u32, Neighbour>,
}

impl Node for LibraryNode<'_> {
    fn ingress(&self, tags: Tags) -> Option<Ingress> {
        (tags.vids() == 0).then(|| Ingress { mac: word(self.ingress), port: 0 })
    }

    fn reach(&self, id: u32) -> ReachWords {
        self.neighbours.get(&id).map_or(Reach::Unknown, |neighbour| Reach::Up(*neighbour)).encode()
    }

    fn ask<I: Image + ?Sized>(&self, _image: &I, _at: u32, _port: u32) -> Option<Neighbour> {
        None
    }
}

/// Runs every case of the themes in this process.
pub fn run_library(themes: &[Theme]) -> Result<Report> {
    let mut report = Report::default();
    for theme in themes {
        let view = theme.image.view()?;
        let mut neighbours = BTreeMap::new();
        for hop in view.next_hops() {
            if let Some(neighbour) = theme.node.neighbour(hop.name, hop.port)? {
                neighbours.insert(hop.id, neighbour);
            }
        }
        let ports: BTreeMap<u32, bool> =
            view.ports().map(|port| (port.id, theme.node.port(port.name).is_some_and(|p| p.has_device))).collect();
        let mut alike = Alike::new();
        for case in &theme.cases {
            let node = LibraryNode { ingress: theme.node.ports[case.ingress].mac, neighbours: &neighbours };
            let mut frame = case.frame.bytes.clone();
            let decision = fib::decide(view.bytes(), &frame[..], &node);
            let mut reason = decision.reason;
            // What the program does with a decision, in the same order.
            if let (Verdict::Forward, Some(neighbour)) = (reason.verdict(), decision.neighbour) {
                if !ports.get(&decision.port).is_some_and(|has_device| *has_device) {
                    reason = Reason::NoPort;
                } else if fib::packet::forward(&mut frame[..], &neighbour).is_none() {
                    reason = Reason::Malformed;
                }
            }
            let outcome = Outcome { verdict: reason.verdict(), reason, frame };
            report.note(case, "library", check(case, &theme.node, &outcome, &mut alike));
        }
    }
    Ok(report)
}
