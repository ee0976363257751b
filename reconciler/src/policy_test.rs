//! Policy tests: whether packets meet what a `PolicyTest` document expects.
//!
//! `(image, tests, node) -> outcomes`. Pure; what happens to a packet is [`crate::trace`]'s answer. A test is about rules, not
//! about the state of cables: next hops that are down or unknown are taken to be up by whoever gives the node.

use std::fmt::{self, Write as _};

use serde_json::{Value, json};

use crate::compile::View;
use crate::policy::{Case, PolicyTest};
use crate::trace::{OfflineBy, Trace, TraceError, TraceNode, trace, verdict_name};

/// How one case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Of the test.
    pub test: String,
    /// Of the case, when it has one.
    pub case: Option<String>,
    pub file: String,
    pub line: u32,
    /// The packet in words.
    pub packet: String,
    /// The nodes that it was run for, where a source has several views.
    pub nodes: Option<String>,
    pub ended: Ended,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    Passed,
    /// What was expected, and what happened.
    Failed {
        expected: String,
        got: String,
    },
    /// The case is about something that this node does not have.
    LeftOut {
        why: String,
    },
}

impl Outcome {
    pub fn new(test: &PolicyTest, case: &Case, ended: Ended) -> Self {
        Self {
            test: test.name.clone(),
            case: case.name.clone(),
            file: test.file.clone(),
            line: case.line,
            packet: case.packet.to_string(),
            nodes: None,
            ended,
        }
    }

    pub fn failed(&self) -> bool {
        matches!(self.ended, Ended::Failed { .. })
    }

    /// The test and its case, as `branch-reachability: partners` or `branch-reachability`.
    pub fn title(&self) -> String {
        let case = self.case.as_ref().map_or_else(String::new, |case| format!(": {case}"));
        let nodes = self.nodes.as_ref().map_or_else(String::new, |nodes| format!(", nodes with {nodes}"));
        format!("{}{case}{nodes}", self.test)
    }

    pub fn to_json(&self) -> Value {
        let (result, expected, got, why) = match &self.ended {
            Ended::Passed => ("passed", None, None, None),
            Ended::Failed { expected, got } => ("failed", Some(expected), Some(got), None),
            Ended::LeftOut { why } => ("left-out", None, None, Some(why)),
        };
        json!({"test": self.test, "case": self.case, "file": self.file, "line": self.line, "packet": self.packet,
            "nodes": self.nodes,
            "result": result, "expected": expected, "got": got, "why": why})
    }
}

/// A failure in four lines, anything else in one.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = self.title();
        match &self.ended {
            Ended::Passed => write!(f, "ok        {title}  [{}:{}]", self.file, self.line),
            Ended::LeftOut { why } => write!(f, "left out  {title}  [{}:{}]: {why}", self.file, self.line),
            Ended::Failed { expected, got } => write!(
                f,
                "FAILED    {title}  [{}:{}]\n    packet    {}\n    expected  {expected}\n    got       {got}",
                self.file, self.line, self.packet
            ),
        }
    }
}

/// Why this node, with the ports and policies that it has, cannot answer the case; `ports` is `None` where no node is known.
pub fn left_out(case: &Case, view: &View<'_>, ports: Option<&[&str]>) -> Option<String> {
    if let (Some(port), Some(ports)) = (case.in_port.as_deref(), ports)
        && !ports.contains(&port)
    {
        return Some(format!("this node has no port `{port}`"));
    }
    let expect = &case.expect;
    if let Some(policy) = expect.policy.as_deref()
        && !view.policies().any(|p| p.name == policy)
        && !view.filter_policies().any(|p| p.name == policy)
    {
        return Some(format!("this node does not have the policy `{policy}`"));
    }
    if let Some((policy, _)) = &expect.filter_rule
        && !view.filter_policies().any(|p| p.name == policy)
    {
        return Some(format!("this node does not have the filter policy `{policy}`"));
    }
    if let Some(service) = expect.service.as_deref()
        && !view.has_service(service)
    {
        return Some(format!("this node does not have the service `{service}`"));
    }
    let known = |name: &String| view.next_hops().any(|hop| is_named(name, hop.policy, hop.name));
    if !expect.next_hops.is_empty() && !expect.next_hops.iter().any(known) {
        return Some(format!("no policy of this node has the next hop {}", listed(&expect.next_hops)));
    }
    None
}

/// Runs one case by the library.
pub fn run<N: TraceNode>(view: &View<'_>, case: &Case, node: &N) -> Result<Ended, TraceError> {
    Ok(judge(case, &trace(view, case.packet, node)?))
}

/// Runs every case by the library, without a kernel: every next hop is up, with no MTU.
pub fn run_all(view: &View<'_>, tests: &[PolicyTest], ports: Option<&[&str]>) -> Result<Vec<Outcome>, TraceError> {
    let cases = tests.iter().flat_map(|test| test.cases.iter().map(move |case| (test, case)));
    cases
        .map(|(test, case)| {
            let ended = if let Some(why) = left_out(case, view, ports) {
                Ended::LeftOut { why }
            } else {
                let named = |name: &str| view.ports().find(|port| port.name == name).map(|port| port.id);
                run(view, case, &OfflineBy(case.in_port.as_deref().and_then(named).unwrap_or(0)))?
            };
            Ok(Outcome::new(test, case, ended))
        })
        .collect()
}

/// Whether the trace of the case's packet is what the case expects.
pub fn judge(case: &Case, trace: &Trace<'_, '_>) -> Ended {
    let expect = &case.expect;
    let route = trace.route();
    let hop = trace.next_hop();
    let served = trace.served();
    let holds = expect.verdict.is_none_or(|verdict| verdict == trace.verdict())
        && expect.reason.is_none_or(|reason| reason == trace.reason())
        && expect.policy.as_deref().is_none_or(|policy| {
            route.map(|route| route.policy).or(trace.stopped_by().map(|rule| rule.policy)) == Some(policy)
        })
        && expect.filter_rule.as_ref().is_none_or(|(policy, name)| {
            trace.filtered().rule().is_some_and(|rule| rule.policy == policy && rule.name == name)
        })
        && expect.prefix.is_none_or(|prefix| route.is_some_and(|route| route.prefix == prefix))
        && expect.service.as_deref().is_none_or(|service| served.is_some_and(|served| served.service.name == service))
        && (expect.backends.is_empty()
            || served
                .and_then(|served| served.backend)
                .is_some_and(|backend| expect.backends.contains(&backend.name())))
        && (expect.next_hops.is_empty()
            || hop.is_some_and(|hop| expect.next_hops.iter().any(|name| is_named(name, hop.policy, hop.name))));
    if holds { Ended::Passed } else { Ended::Failed { expected: expected(case), got: got(trace) } }
}

fn is_named(name: &str, policy: &str, hop: &str) -> bool {
    match name.split_once('/') {
        Some((of, name)) => of == policy && name == hop,
        None => name == hop,
    }
}

fn expected(case: &Case) -> String {
    let expect = &case.expect;
    let mut words: Vec<String> = Vec::new();
    words.extend(expect.verdict.map(|verdict| verdict_name(verdict).to_owned()));
    words.extend(expect.reason.map(|reason| format!("reason {}", reason.name())));
    if !expect.next_hops.is_empty() {
        words.push(format!("next hop {}", listed(&expect.next_hops)));
    }
    words.extend(expect.service.as_ref().map(|service| format!("service {service}")));
    if !expect.backends.is_empty() {
        words.push(format!("backend {}", listed(&expect.backends)));
    }
    words.extend(expect.prefix.map(|prefix| format!("by {prefix}")));
    words.extend(expect.filter_rule.as_ref().map(|(policy, rule)| format!("by the filter rule {policy}/{rule}")));
    words.extend(expect.policy.as_ref().map(|policy| format!("of {policy}")));
    words.join(", ")
}

fn listed(names: &[String]) -> String {
    names.join(" or ")
}

fn got(trace: &Trace<'_, '_>) -> String {
    let mut words = format!("{}, reason {}", verdict_name(trace.verdict()), trace.reason().name());
    if let Some(served) = trace.served() {
        let _ = write!(words, ", service {}", served.service.name);
        if let Some(backend) = served.backend {
            let _ = write!(words, ", backend {}", backend.name());
        }
    }
    if let Some(hop) = trace.next_hop() {
        let _ = write!(words, ", next hop {}/{}", hop.policy, hop.name);
    }
    if let Some(rule) = trace.filtered().rule() {
        let _ = write!(words, ", by the filter rule {}/{}  [{}:{}]", rule.policy, rule.name, rule.file, rule.line);
    }
    if let Some(route) = trace.route() {
        let _ = write!(words, ", by {} of {}  [{}:{}]", route.prefix, route.policy, route.file, route.line);
    }
    words
}
