//! The candidate's check: the loaded program and the library must decide alike on the real image, before it is live.

use std::net::IpAddr;

use fib::packet::Tags;
use fib::{Image, Ingress, Neighbour, Reach, ReachWords, Reason, Verdict};

use crate::compile::View;
use crate::trace::Frame;

use super::KernelError;
use super::program::{Programs, TEST_INGRESS, TestRunOutcome};
use super::tables::Tables;

/// Routes of each family whose packets are tried.
const ROUTES_TRIED: usize = 64;

/// `XDP_DROP`, `XDP_PASS` and `XDP_REDIRECT` of the kernel's uapi.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// The node as the library sees it: the same tables that the program reads.
pub struct TableNode<'t>(pub &'t Tables);

impl fib::Node for TableNode<'_> {
    fn ingress(&self, tags: Tags) -> Option<Ingress> {
        (tags.vids() == 0).then_some(TEST_INGRESS)
    }

    fn reach(&self, id: u32) -> ReachWords {
        self.0.reach(id).unwrap_or(Reach::Unknown).encode()
    }

    fn ask<I: Image + ?Sized>(&self, _image: &I, _at: u32, _port: u32) -> Option<Neighbour> {
        None
    }
}

/// Runs packets to a spread of the image's routes through the candidate, and compares action, reason and every byte.
pub fn agree(programs: &Programs, view: &View<'_>, tables: &Tables) -> Result<(), KernelError> {
    let mut destinations: Vec<IpAddr> = vec![[198, 18, 0, 1].into(), [0x2001, 0x2, 0, 0, 0, 0, 0, 1].into()];
    destinations.extend(spread(view.routes_v4().map(|r| r.prefix.address()), view.routes_v4().count()));
    destinations.extend(spread(view.routes_v6().map(|r| r.prefix.address()), view.routes_v6().count()));
    for (number, destination) in destinations.into_iter().enumerate() {
        let frame = probe(destination, u16::try_from(number).unwrap_or(u16::MAX));
        one(programs, view, tables, &frame)
            .map_err(|detail| KernelError::Verify { detail: format!("packet to {destination}: {detail}") })??;
    }
    Ok(())
}

/// Compares one frame; the outer error is a disagreement, the inner one a failed call.
fn one(programs: &Programs, view: &View<'_>, tables: &Tables, frame: &[u8]) -> Result<Result<(), KernelError>, String> {
    let ran = match programs.test_run(frame) {
        Ok(ran) => ran,
        Err(e) => return Ok(Err(e)),
    };
    match by_library(view, tables, &TableNode(tables), frame) {
        Ok(expected) => difference(&expected, &ran).map_or(Ok(Ok(())), Err),
        Err(e) => Ok(Err(e)),
    }
}

/// What the XDP program must do with a frame, as the library decides over the same tables.
pub fn by_library(
    view: &View<'_>,
    tables: &Tables,
    node: &impl fib::Node,
    frame: &[u8],
) -> Result<TestRunOutcome, KernelError> {
    let mut frame = Frame::new(frame);
    let mut steer = fib::Steer::NONE;
    let decision = fib::decide_with(view.bytes(), &frame, node, &mut steer);
    let mut reason = decision.reason();
    if let (Verdict::Forward, Some(neighbour)) = (reason.verdict(), decision.neighbour()) {
        // In the program's order.
        if tables.port(decision.port)?.is_none() {
            reason = Reason::NoPort;
        } else if fib::tunnel::send(view.bytes(), &mut frame, &neighbour, &steer).is_none() {
            reason = Reason::NoRoom;
        }
    }
    if fib::service::is_translated(&steer, reason) {
        fib::service::translate(&mut frame, &mut steer);
    }
    if reason == Reason::Decapsulated && fib::tunnel::decapsulate(&mut frame, &steer).is_none() {
        reason = Reason::NoRoom;
    }
    if reason.verdict() == Verdict::Answer {
        reason = fib::answer::answer(&mut frame, &steer, reason);
    }
    let action = match reason.verdict() {
        Verdict::Drop => XDP_DROP,
        Verdict::Pass => XDP_PASS,
        Verdict::Forward | Verdict::Answer => XDP_REDIRECT,
    };
    Ok(TestRunOutcome { action, reason: reason as u32, frame: frame.bytes().to_vec() })
}

/// Where the program's outcome is not what the library says.
pub fn difference(expected: &TestRunOutcome, ran: &TestRunOutcome) -> Option<String> {
    if expected.reason == Reason::NoNeighbour as u32 && ran.reason == Reason::Forwarded as u32 {
        // The kernel's own tables knew the neighbour: the program asks them, the library cannot.
        return None;
    }
    if (ran.action, ran.reason) != (expected.action, expected.reason) {
        return Some(format!(
            "the library says {} (action {}), the program says {} (action {})",
            reason_name(expected.reason),
            expected.action,
            reason_name(ran.reason),
            ran.action
        ));
    }
    (ran.frame != expected.frame).then(|| "the program rewrote it otherwise than the library".to_owned())
}

/// The name of a reason by its number, as the program counts it.
pub fn reason_name(number: u32) -> &'static str {
    Reason::ALL.iter().find(|reason| **reason as u32 == number).map_or("unknown", |reason| reason.name())
}

/// At most [`ROUTES_TRIED`] of `total` items, evenly spread, first and last included.
fn spread<T>(items: impl Iterator<Item = T>, total: usize) -> impl Iterator<Item = T> {
    let step = total.div_ceil(ROUTES_TRIED).max(1);
    let last = total.saturating_sub(1);
    items.enumerate().filter(move |(i, _)| i % step == 0 || *i == last).map(|(_, item)| item)
}

/// A UDP packet to `destination` in an Ethernet frame to the loopback device's address; `source_port` varies the flow.
fn probe(destination: IpAddr, source_port: u16) -> Vec<u8> {
    const PAYLOAD_BYTES: u8 = 26;
    const UDP: u8 = 17;
    let mut frame = vec![0; 12];
    match destination {
        IpAddr::V4(to) => {
            frame.extend([0x08, 0x00, 0x45, 0, 0, 28 + PAYLOAD_BYTES, 0, 0, 0, 0, 64, UDP, 0, 0, 198, 18, 0, 2]);
            frame.extend(to.octets());
        }
        IpAddr::V6(to) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8 + PAYLOAD_BYTES, UDP, 64]);
            frame.extend([0x20, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
            frame.extend(to.octets());
        }
    }
    frame.extend(source_port.to_be_bytes());
    frame.extend([0, 9, 0, 8 + PAYLOAD_BYTES, 0, 0]);
    frame.resize(frame.len() + usize::from(PAYLOAD_BYTES), 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disagreement_names_both() {
        let outcome = |action, reason: Reason, frame: &[u8]| TestRunOutcome {
            action,
            reason: reason as u32,
            frame: frame.to_vec(),
        };
        let library = outcome(XDP_DROP, Reason::RouteDrop, &[1]);
        assert_eq!(difference(&library, &library), None);
        assert_eq!(
            difference(&library, &outcome(XDP_PASS, Reason::NoRoute, &[1])).as_deref(),
            Some("the library says route-drop (action 1), the program says no-route (action 2)")
        );
        assert_eq!(
            difference(&library, &outcome(XDP_DROP, Reason::RouteDrop, &[2])).as_deref(),
            Some("the program rewrote it otherwise than the library")
        );
        // The program may know more neighbours, and nothing else.
        let silent = outcome(XDP_PASS, Reason::NoNeighbour, &[1]);
        assert_eq!(difference(&silent, &outcome(XDP_REDIRECT, Reason::Forwarded, &[2])), None);
        assert!(difference(&silent, &outcome(XDP_DROP, Reason::RouteDrop, &[1])).is_some());
    }
}
