//! One `PolicyTest` document: its packets, and what must happen to them.

use std::net::IpAddr;

use fib::{Reason, Verdict};

use crate::trace::{Fields, PacketDescription};

use super::codes::Code;
use super::diagnostic::{Diagnostic, Faults, Span, suggestion};
use super::document::{self, Names, TestVerdict};
use super::filter_policy::Written;
use super::list::parse_prefix;
use super::prefix::Prefix;
use super::route_policy::prefix_fault;
use super::routes::RouteTable;
use super::yaml::{Node, Step};
use super::{RoutePolicy, Selector, ServicePolicy, schema};

/// One `PolicyTest` document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTest {
    pub name: String,
    pub owner: Option<String>,
    /// The nodes that it is for.
    pub nodes: Selector,
    /// Source-relative path.
    pub file: String,
    /// In the order written.
    pub cases: Vec<Case>,
}

/// One packet and what must happen to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    pub name: Option<String>,
    /// 1-based, in the file of the test.
    pub line: u32,
    pub packet: PacketDescription,
    /// The port that the packet comes in by.
    pub in_port: Option<String>,
    pub expect: Expectation,
}

/// What must hold; `None` and an empty list ask for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expectation {
    pub verdict: Option<Verdict>,
    pub reason: Option<Reason>,
    /// `NAME` or `POLICY/NAME`; the packet must be sent to one of them.
    pub next_hops: Vec<String>,
    pub policy: Option<String>,
    pub prefix: Option<Prefix>,
    /// Policy and name of the filter rule that matches first, whether it lets the packet through or not.
    pub filter_rule: Option<(String, String)>,
    pub service: Option<String>,
    /// `ADDRESS` or `ADDRESS:PORT`; the packet must be sent to one of them.
    pub backends: Vec<String>,
}

/// A name that a case expects, and where it is written.
pub(super) struct Reference {
    case: usize,
    span: Span,
    to: ReferenceTo,
}

enum ReferenceTo {
    Policy,
    NextHop(String),
    Prefix(Prefix),
    FilterRule(String, String),
    Service(String),
    Backend(String),
}

/// Reads the document `root` of `file`; cases with faults are left out.
pub(super) fn read_test(
    file: &str,
    root: &Node,
    written: document::PolicyTest,
    faults: &mut Faults,
) -> (PolicyTest, Vec<Reference>) {
    let mut test = PolicyTest {
        name: written.metadata.name,
        owner: written.metadata.owner,
        nodes: Selector::new(written.spec.nodes.map(|nodes| nodes.labels).unwrap_or_default()),
        file: file.to_owned(),
        cases: Vec::new(),
    };
    let mut references = Vec::new();
    for (index, case) in written.spec.cases.into_iter().enumerate() {
        let mut reader = Reader { file, root, index, number: test.cases.len(), faults, references: &mut references };
        test.cases.extend(reader.case(case));
    }
    (test, references)
}

struct Reader<'r> {
    file: &'r str,
    root: &'r Node,
    /// Of the case, as written.
    index: usize,
    /// Of the case, among those that are kept.
    number: usize,
    faults: &'r mut Faults,
    references: &'r mut Vec<Reference>,
}

impl Reader<'_> {
    fn place(&self, rest: &[&str]) -> Span {
        let mut path = vec![Step::Key("spec"), Step::Key("cases"), Step::Item(self.index)];
        path.extend(rest.iter().copied().map(Step::Key));
        self.root.place(&path)
    }

    fn fault(&mut self, code: Code, at: &[&str], message: impl Into<String>) {
        let span = self.place(at);
        self.faults.push(Diagnostic::new(code, self.file, Some(span), message));
    }

    fn case(&mut self, written: document::TestCase) -> Option<Case> {
        let line = self.place(&[]).start.line;
        let in_port = written.packet.in_port.clone();
        let packet = self.packet(&written.packet);
        let expect = self.expect(written.expect);
        Some(Case { name: written.name, line, packet: packet?, in_port, expect: expect? })
    }

    fn packet(&mut self, written: &document::TestPacket) -> Option<PacketDescription> {
        let mut address = |key: &str, text: &str| {
            let address = text.parse::<IpAddr>().ok();
            if address.is_none() {
                let message = format!("`{}` is not an IP address", schema::shorten(text));
                self.fault(Code::MalformedValue, &["packet", key], message);
            }
            address
        };
        let (src, dst) = (address("src", &written.src), address("dst", &written.dst));
        let fields = Fields {
            src: Some(src?),
            dst: Some(dst?),
            protocol: written.protocol.as_deref(),
            sport: written.sport,
            dport: written.dport,
            ttl: written.ttl,
            length: written.length,
            about: written.about.as_deref(),
        };
        match PacketDescription::new(&fields) {
            Ok(packet) => Some(packet),
            Err(error) => {
                self.fault(Code::TestPacket, &["packet"], error.to_string());
                None
            }
        }
    }

    fn expect(&mut self, written: document::Expect) -> Option<Expectation> {
        let reason = written.reason.and_then(|name| Reason::ALL.iter().copied().find(|reason| reason.name() == name));
        let verdict = written.verdict.map(|verdict| match verdict {
            TestVerdict::Forward => Verdict::Forward,
            TestVerdict::Pass => Verdict::Pass,
            TestVerdict::Drop => Verdict::Drop,
            TestVerdict::Answer => Verdict::Answer,
        });
        let list = |names: Option<Names>| match names {
            None => Vec::new(),
            Some(Names::One(name)) => vec![name],
            Some(Names::Several(names)) => names,
        };
        let mut expect = Expectation {
            verdict,
            reason,
            next_hops: list(written.next_hop),
            policy: written.policy,
            prefix: None,
            filter_rule: None,
            service: written.service,
            backends: list(written.backend),
        };
        let mut sound = true;
        if let Some(text) = &written.prefix {
            match parse_prefix(text) {
                Ok(prefix) => expect.prefix = Some(prefix),
                Err(error) => {
                    let span = self.place(&["expect", "prefix"]);
                    self.faults.push(prefix_fault(self.file, span, &error));
                    sound = false;
                }
            }
        }
        if let Some(rule) = &written.rule {
            sound &= self.rule(rule, &mut expect);
        }
        sound &= self.is_consistent(&expect);
        if !sound {
            return None;
        }
        self.refer(&expect, written.rule.is_some());
        Some(expect)
    }

    fn rule(&mut self, rule: &str, expect: &mut Expectation) -> bool {
        let at = ["expect", "rule"];
        let Some((policy, prefix)) = rule.split_once('/') else {
            let message = format!(
                "`{}` is not a rule; write POLICY/PREFIX, as in offices/10.0.0.0/8, or POLICY/RULE of a filter",
                schema::shorten(rule)
            );
            self.fault(Code::MalformedValue, &at, message);
            return false;
        };
        let is_name = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if is_name(prefix) && !prefix.is_empty() {
            expect.filter_rule = Some((policy.to_owned(), prefix.to_owned()));
            return true;
        }
        let prefix = match parse_prefix(prefix) {
            Ok(prefix) => prefix,
            Err(error) => {
                let span = self.place(&at);
                self.faults.push(prefix_fault(self.file, span, &error));
                return false;
            }
        };
        if expect.policy.as_deref().is_some_and(|other| other != policy) || expect.prefix.is_some_and(|p| p != prefix) {
            self.fault(
                Code::TestContradiction,
                &at,
                "`rule` names another policy or prefix than `policy` and `prefix`",
            );
            return false;
        }
        expect.policy = Some(policy.to_owned());
        expect.prefix = Some(prefix);
        true
    }

    fn is_consistent(&mut self, expect: &Expectation) -> bool {
        let contradiction = match (expect.verdict, expect.reason) {
            (Some(verdict), Some(reason)) if reason.verdict() != verdict => Some((
                "reason",
                format!(
                    "the reason `{}` is one of the verdict {}, not {}",
                    reason.name(),
                    crate::trace::verdict_name(reason.verdict()),
                    crate::trace::verdict_name(verdict)
                ),
            )),
            _ => {
                let verdict = expect.verdict.or(expect.reason.map(Reason::verdict));
                let stays = verdict.is_some_and(|verdict| verdict != Verdict::Forward);
                let message = "a packet that is not forwarded is sent to no next hop";
                (stays && !expect.next_hops.is_empty()).then(|| ("nextHop", message.to_owned()))
            }
        };
        if let Some((key, message)) = contradiction {
            self.fault(Code::TestContradiction, &["expect", key], message);
            return false;
        }
        true
    }

    fn refer(&mut self, expect: &Expectation, by_rule: bool) {
        let case = self.number;
        let place = |reader: &Self, key: &str| reader.place(&["expect", if by_rule { "rule" } else { key }]);
        if expect.policy.is_some() {
            let span = place(self, "policy");
            self.references.push(Reference { case, span, to: ReferenceTo::Policy });
        }
        if let Some(prefix) = expect.prefix {
            let span = place(self, "prefix");
            self.references.push(Reference { case, span, to: ReferenceTo::Prefix(prefix) });
        }
        if let Some((policy, rule)) = &expect.filter_rule {
            let span = self.place(&["expect", "rule"]);
            let to = ReferenceTo::FilterRule(policy.clone(), rule.clone());
            self.references.push(Reference { case, span, to });
        }
        let item = |reader: &Self, key: &'static str, index: usize| {
            let path = ["spec", "cases"].map(Step::Key);
            let rest = [Step::Item(reader.index), Step::Key("expect"), Step::Key(key), Step::Item(index)];
            reader.root.place(&[&path[..], &rest].concat())
        };
        for (index, name) in expect.next_hops.iter().enumerate() {
            let span = item(self, "nextHop", index);
            self.references.push(Reference { case, span, to: ReferenceTo::NextHop(name.clone()) });
        }
        if let Some(service) = &expect.service {
            let span = self.place(&["expect", "service"]);
            self.references.push(Reference { case, span, to: ReferenceTo::Service(service.clone()) });
        }
        for (index, name) in expect.backends.iter().enumerate() {
            let span = item(self, "backend", index);
            self.references.push(Reference { case, span, to: ReferenceTo::Backend(name.clone()) });
        }
    }
}

/// One error for every reference of `test` that no policy for its nodes resolves; `table` is sorted.
pub(super) fn check_references(
    test: &PolicyTest,
    references: &[Reference],
    policies: &[RoutePolicy],
    filters: &[Written],
    services: &[ServicePolicy],
    table: &RouteTable<'_>,
    faults: &mut Faults,
) {
    for reference in references {
        let Some(case) = test.cases.get(reference.case) else { continue };
        let meets = || services.iter().filter(|service| service.nodes.can_meet(&test.nodes));
        let missing = match &reference.to {
            ReferenceTo::Service(name) => {
                let known = || meets().map(|service| service.name.as_str());
                let message = format!("there is no service `{}` for these nodes", schema::shorten(name));
                (!known().any(|known| known == name)).then(|| (message, suggestion(name, known())))
            }
            ReferenceTo::Backend(name) => {
                let wanted = case.expect.service.as_deref();
                let mine = || meets().filter(|service| wanted.is_none_or(|wanted| service.name == wanted));
                let known: Vec<String> =
                    mine().flat_map(|service| service.backends.iter().map(ToString::to_string)).collect();
                let message = format!("no service for these nodes has a backend `{}`", schema::shorten(name));
                let help = || suggestion(name, known.iter().map(String::as_str));
                (mine().count() > 0 && !known.contains(name)).then(|| (message, help()))
            }
            _ => None,
        };
        if let Some((message, help)) = missing {
            let fault = Diagnostic::new(Code::TestReference, &test.file, Some(reference.span), message);
            faults.push(fault.maybe_help(help));
        }
        if matches!(reference.to, ReferenceTo::Service(_) | ReferenceTo::Backend(_)) {
            continue;
        }
        let named = case.expect.policy.as_deref();
        let of_node = || filters.iter().map(|f| &f.policy).filter(|filter| filter.nodes.can_meet(&test.nodes));
        let meant =
            |policy: &RoutePolicy| policy.nodes.can_meet(&test.nodes) && named.is_none_or(|name| policy.name == name);
        let meant: Vec<&RoutePolicy> = policies.iter().filter(|policy| meant(policy)).collect();
        let whose = match named {
            Some(name) => format!("the policy `{}`", schema::shorten(name)),
            None => "no policy for these nodes".to_owned(),
        };
        let none = if named.is_some() { "no" } else { "a" };
        let (message, help) = match &reference.to {
            ReferenceTo::Policy if !meant.is_empty() => continue,
            ReferenceTo::Policy if of_node().any(|filter| Some(filter.name.as_str()) == named) => continue,
            ReferenceTo::FilterRule(policy, rule) => {
                let rules = of_node().filter(|filter| filter.name == *policy).flat_map(|filter| &filter.rules);
                let known: Vec<&str> = rules.map(|rule| rule.name.as_str()).collect();
                if known.contains(&rule.as_str()) {
                    continue;
                }
                let (policy, rule) = (schema::shorten(policy), schema::shorten(rule));
                let message = format!("no filter policy `{policy}` for these nodes has a rule `{rule}`");
                (message, suggestion(&rule, known.iter().copied()))
            }
            ReferenceTo::Policy => {
                let name = named.unwrap_or_default();
                let meets = policies.iter().filter(|policy| policy.nodes.can_meet(&test.nodes));
                let known: Vec<&str> = meets.map(|policy| policy.name.as_str()).collect();
                let help = suggestion(name, known.iter().copied());
                (format!("there is no policy `{}` for these nodes", schema::shorten(name)), help)
            }
            // Said once, by the reference to the policy itself.
            _ if named.is_some() && meant.is_empty() => continue,
            ReferenceTo::NextHop(written) => {
                let (policy, hop) = written.split_once('/').map_or((None, written.as_str()), |(p, h)| (Some(p), h));
                let known: Vec<&str> = meant
                    .iter()
                    .filter(|p| policy.is_none_or(|name| p.name == name))
                    .flat_map(|policy| policy.next_hops.iter().map(|hop| hop.name.as_str()))
                    .collect();
                if known.contains(&hop) {
                    continue;
                }
                let help = suggestion(hop, known.iter().copied());
                (format!("{whose} declares {none} next hop `{}`", schema::shorten(written)), help)
            }
            ReferenceTo::Prefix(prefix) => {
                let writers = table.writers(*prefix);
                if writers
                    .iter()
                    .filter_map(|at| policies.get(*at as usize))
                    .any(|p| meant.iter().any(|m| m.name == p.name))
                {
                    continue;
                }
                (format!("{whose} has {none} route for {prefix}"), None)
            }
            ReferenceTo::Service(_) | ReferenceTo::Backend(_) => continue,
        };
        faults.push(Diagnostic::new(Code::TestReference, &test.file, Some(reference.span), message).maybe_help(help));
    }
}
