//! One `FilterPolicy` document: ordered rules on packets, and what they match as sets that can be compared.

use std::collections::HashMap;

use crate::source::{SourceFile, is_yaml};

use super::codes::Code;
use super::diagnostic::{Diagnostic, Faults, Span, did_you_mean};
use super::document::{self, FilterAction, FilterPort, LimitPer, Names};
use super::list::{self, parse_prefix};
use super::prefix::Prefix;
use super::route_policy::prefix_fault;
use super::validate::{Run, file_fault};
use super::yaml::{Node, Step};
use super::{Origin, Selector, schema};

/// Protocol numbers of the IANA registry.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Protocols that begin with two ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
const WITH_PORTS: [u8; 5] = [TCP, UDP, 33, 132, 136];

/// The longest packet, in a frame with two VLAN tags: a bucket of bytes that holds less would never let it through.
const PACKET_BYTES_MAX: u64 = 65_575;
/// A bucket holds at most what comes in an hour.
const BURST_SECONDS_MAX: u64 = 3600;

/// One `FilterPolicy` document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterPolicy {
    pub name: String,
    pub owner: Option<String>,
    /// The nodes that it is for.
    pub nodes: Selector,
    pub origin: Origin,
    /// Policies stand by priority, then by name.
    pub priority: u16,
    /// What it says of packets that no rule matches.
    pub default: Option<FilterAction>,
    /// In the order in which they decide; names are unique within the policy.
    pub rules: Vec<FilterRule>,
}

impl FilterPolicy {
    /// Gives files other numbers.
    pub(super) fn renumber(&mut self, number: &mut impl FnMut(u32) -> u32) {
        self.origin.file = number(self.origin.file);
        for rule in &mut self.rules {
            rule.origin.file = number(rule.origin.file);
            rule.lists.iter_mut().for_each(|file| *file = number(*file));
        }
    }
}

/// One rule: matches packets for which all of it holds; `None` asks for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterRule {
    pub name: String,
    pub origin: Origin,
    /// Sorted; none twice.
    pub from: Option<Vec<Prefix>>,
    pub to: Option<Vec<Prefix>>,
    /// Files that prefixes come from.
    pub lists: Vec<u32>,
    /// Protocol number of IPv4 and of IPv6.
    pub protocol: Option<[u8; 2]>,
    /// Sorted and apart from each other.
    pub ports: Option<Vec<PortRange>>,
    pub source_ports: Option<Vec<PortRange>>,
    /// Sorted names of ports.
    pub in_ports: Option<Vec<String>>,
    pub tcp_flags: Option<TcpFlags>,
    /// Matches later fragments, whatever it says of ports and flags.
    pub fragments: bool,
    pub action: RuleAction,
    /// What it says, in one line: equal for rules that do the same to the same packets, as far as they are written alike.
    pub meaning: String,
}

/// Ports from the first to the last, both included.
pub type PortRange = (u16, u16);

/// Bits of the flags byte of TCP that must be set, and that must be clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags {
    pub set: u8,
    pub clear: u8,
}

/// What a rule does with the packets that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleAction {
    Allow,
    Deny,
    Limit(RateLimit),
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Packets or bytes a second; at least 1.
    pub rate: u64,
    /// What the bucket holds.
    pub burst: u64,
    /// Bytes of whole frames; otherwise packets.
    pub is_bytes: bool,
    /// Bits of an IPv4 and of an IPv6 source that share a bucket; `None`: the rule has one bucket.
    pub source_bits: Option<[u8; 2]>,
}

/// A rule with what is needed to compare it with others, once every policy is known.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) policy: FilterPolicy,
    pub(super) file: String,
    /// Places of the rules' names, and of `default`.
    rules: Vec<Span>,
    default: Option<Span>,
}

struct Reader<'r, 's> {
    run: &'r mut Run<'s>,
    file: &'s str,
    root: &'r Node,
    /// Of the rule.
    index: usize,
    sound: bool,
}

/// Reads the document `root` of `file` into `run`.
pub(super) fn read_filter_policy<'s>(run: &mut Run<'s>, file: &'s str, root: &Node, written: document::FilterPolicy) {
    let file_id = run.use_file(file);
    let mut policy = FilterPolicy {
        name: written.metadata.name,
        owner: written.metadata.owner,
        nodes: Selector::new(written.spec.nodes.map(|nodes| nodes.labels).unwrap_or_default()),
        origin: Origin { file: file_id, line: root.place(&[Step::Key("metadata"), Step::Key("name")]).start.line },
        priority: written.spec.priority,
        default: written.spec.default,
        rules: Vec::new(),
    };
    let default = policy.default.map(|_| root.place(&[Step::Key("spec"), Step::Key("default")]));
    let mut spans: Vec<Span> = Vec::new();
    let mut by_name: HashMap<String, Span> = HashMap::new();
    for (index, rule) in written.spec.rules.into_iter().enumerate() {
        let mut reader = Reader { run, file, root, index, sound: true };
        let span = reader.place(&[Step::Key("name")]);
        if let Some(first) = by_name.get(&rule.name) {
            let message = format!("the rule name `{}` is used twice", rule.name);
            let fault = Diagnostic::new(Code::DuplicateFilterRule, file, Some(span), message);
            reader.run.faults.push(fault.related(file, *first, "first used here"));
        } else {
            by_name.insert(rule.name.clone(), span);
        }
        let origin = Origin { file: file_id, line: span.start.line };
        if let Some(rule) = reader.rule(rule, origin) {
            policy.rules.push(rule);
            spans.push(span);
        }
    }
    run.filters.push(Written { policy, file: file.to_owned(), rules: spans, default });
}

impl<'s> Reader<'_, 's> {
    fn place(&self, rest: &[Step]) -> Span {
        let mut path = vec![Step::Key("spec"), Step::Key("rules"), Step::Item(self.index)];
        path.extend_from_slice(rest);
        self.root.place(&path)
    }

    fn key(&self, key: &'static str) -> Span {
        self.place(&[Step::Key(key)])
    }

    fn fault(&mut self, code: Code, span: Span, message: impl Into<String>, help: &str) {
        self.sound = false;
        let fault = Diagnostic::new(code, self.file, Some(span), message);
        self.run.faults.push(if help.is_empty() { fault } else { fault.help(help) });
    }

    fn rule(&mut self, written: document::FilterRule, origin: Origin) -> Option<FilterRule> {
        let mut lists = Vec::new();
        let from = self.prefixes("from", written.from.as_deref(), "fromList", written.from_list.as_deref(), &mut lists);
        let to = self.prefixes("to", written.to.as_deref(), "toList", written.to_list.as_deref(), &mut lists);
        lists.sort_unstable();
        lists.dedup();
        let protocol = written.protocol.as_deref().and_then(|text| self.protocol(text));
        let ports = written.ports.map(|ports| self.ports("ports", &ports));
        let source_ports = written.source_ports.map(|ports| self.ports("sourcePorts", &ports));
        let in_ports = written.in_port.map(|names| {
            let mut names = match names {
                Names::One(name) => vec![name],
                Names::Several(names) => names,
            };
            names.sort_unstable();
            names.dedup();
            names
        });
        let tcp_flags = written.tcp_flags.map(|flags| {
            let bits = |flags: &[document::TcpFlag]| flags.iter().fold(0, |bits, flag| bits | 1 << *flag as u8);
            TcpFlags { set: bits(&flags.set), clear: bits(&flags.clear) }
        });
        let action = self.action(written.action, written.rate_limit.as_ref());
        let mut rule = FilterRule {
            name: written.name,
            origin,
            from,
            to,
            lists,
            protocol,
            ports,
            source_ports,
            in_ports,
            tcp_flags,
            fragments: written.fragments,
            action: action.unwrap_or(RuleAction::Deny),
            meaning: String::new(),
        };
        if self.sound {
            self.check_possible(&rule);
        }
        rule.meaning = meaning(&rule, written.from_list.as_deref(), written.to_list.as_deref());
        self.sound.then_some(rule)
    }

    /// The prefixes written and those of the list; `None`: neither is written.
    fn prefixes(
        &mut self,
        key: &'static str,
        written: Option<&[String]>,
        list_key: &'static str,
        list: Option<&str>,
        lists: &mut Vec<u32>,
    ) -> Option<Vec<Prefix>> {
        if written.is_none() && list.is_none() {
            return None;
        }
        let mut prefixes = Vec::new();
        for (index, text) in written.unwrap_or_default().iter().enumerate() {
            match parse_prefix(text) {
                Ok(prefix) => prefixes.push(prefix),
                Err(error) => {
                    let span = self.place(&[Step::Key(key), Step::Item(index)]);
                    self.sound = false;
                    self.run.faults.push(prefix_fault(self.file, span, &error));
                }
            }
        }
        if let Some(path) = list {
            self.list(path, list_key, &mut prefixes, lists);
        }
        prefixes.sort_unstable();
        prefixes.dedup();
        self.run.filter_prefixes += prefixes.len();
        Some(prefixes)
    }

    fn list(&mut self, path: &str, key: &'static str, prefixes: &mut Vec<Prefix>, lists: &mut Vec<u32>) {
        let span = self.key(key);
        let Some((list_file, text)) = self.find_list(path, span) else {
            self.sound = false;
            return;
        };
        lists.push(self.run.use_file(list_file));
        // Another rule may read the same list: its faults are said once.
        let is_new = self.run.filter_lists.insert(list_file);
        let mut lines = 0;
        for line in list::lines(text) {
            lines += 1;
            let fault = match (parse_prefix(line.prefix), line.next_hop) {
                (Ok(prefix), None) => {
                    prefixes.push(prefix);
                    continue;
                }
                (Err(error), _) => prefix_fault(list_file, line.span(line.prefix), &error),
                (Ok(_), Some(surplus)) => {
                    let message = "the line has more than a prefix";
                    Diagnostic::new(Code::ListLine, list_file, Some(line.span(surplus)), message)
                        .help("a list that a filter reads has one prefix a line")
                }
            };
            self.sound = false;
            if !is_new {
                break;
            }
            if self.run.faults.is_full(list_file) {
                self.run.faults.count_error(list_file);
            } else {
                self.run.faults.push(fault);
            }
        }
        if lines == 0 {
            self.sound = false;
            if is_new {
                let fault = Diagnostic::new(Code::ListEmpty, list_file, None, "the list holds no prefix");
                self.run.faults.push(fault.related(self.file, span, "read by this rule"));
            }
        }
    }

    /// The list that `path` names, with its text.
    fn find_list(&mut self, path: &str, span: Span) -> Option<(&'s str, &'s str)> {
        if path.starts_with('/') || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            let message = format!("`{}` is not a path inside the source", schema::shorten(path));
            self.fault(Code::ListPath, span, message, "write a path from the top of the source, without `.` and `..`");
            return None;
        }
        let snapshot = self.run.snapshot;
        let Some((file, entry)) = snapshot.files.get_key_value(path) else {
            let lists = || snapshot.files.keys().map(String::as_str).filter(|f| !is_yaml(f));
            let similar = did_you_mean(path, lists().take(1000)).map(|found| format!("did you mean `{found}`?"));
            let message = format!("the source has no list `{}`", schema::shorten(path));
            self.fault(Code::ListMissing, span, message, similar.as_deref().unwrap_or_default());
            return None;
        };
        match entry {
            SourceFile::Content(bytes) => match super::yaml::decode(file, bytes) {
                Ok(text) => return Some((file, text)),
                Err(diagnostic) if self.run.filter_lists.insert(file) => self.run.faults.push(diagnostic),
                Err(_) => {}
            },
            // Links and documents were reported when the source was gone through.
            SourceFile::Fault(fault) if fault.hides_files() => {}
            SourceFile::Fault(_) if is_yaml(file) => {}
            SourceFile::Fault(fault) => {
                self.run.faults.push(file_fault(file, fault).related(self.file, span, "named here"));
            }
        }
        None
    }

    fn protocol(&mut self, text: &str) -> Option<[u8; 2]> {
        let numbers = match text {
            "tcp" => Some([TCP; 2]),
            "udp" => Some([UDP; 2]),
            "icmp" => Some([ICMP, ICMPV6]),
            text => text.parse().ok().map(|number| [number; 2]),
        };
        if numbers.is_none() {
            let message = format!("`{}` is no protocol", schema::shorten(text));
            self.fault(
                Code::MalformedValue,
                self.key("protocol"),
                message,
                "write tcp, udp, icmp or a number from 0 to 255",
            );
        }
        numbers
    }

    fn ports(&mut self, key: &'static str, written: &[FilterPort]) -> Vec<PortRange> {
        let mut ranges = Vec::new();
        for (index, port) in written.iter().enumerate() {
            let range = match port {
                FilterPort::One(port) => Some((*port, *port)),
                FilterPort::Text(text) => {
                    let number = |text: &str| {
                        let digits = text.bytes().all(|b| b.is_ascii_digit());
                        text.parse::<u16>().ok().filter(|_| digits)
                    };
                    match text.split_once('-') {
                        Some((first, last)) => number(first).zip(number(last)).filter(|(first, last)| first <= last),
                        None => number(text).map(|port| (port, port)),
                    }
                }
            };
            match (range, port) {
                (Some(range), _) => ranges.push(range),
                (None, FilterPort::Text(text)) => {
                    let message = format!("`{}` is no port and no range of ports", schema::shorten(text));
                    let span = self.place(&[Step::Key(key), Step::Item(index)]);
                    self.fault(
                        Code::FilterPorts,
                        span,
                        message,
                        "write 443, or \"8000-8099\" with the lower port first",
                    );
                }
                (None, FilterPort::One(_)) => {}
            }
        }
        merge_ports(ranges)
    }

    fn action(&mut self, action: Option<FilterAction>, limit: Option<&document::RateLimit>) -> Option<RuleAction> {
        match (action, limit) {
            (Some(FilterAction::Allow), None) => Some(RuleAction::Allow),
            (Some(FilterAction::Deny), None) => Some(RuleAction::Deny),
            (None, Some(limit)) => self.limit(limit).map(RuleAction::Limit),
            (Some(_), Some(_)) => {
                let message = "the rule has both `action` and `rateLimit`";
                self.fault(
                    Code::FilterAction,
                    self.key("rateLimit"),
                    message,
                    "a limit allows what is within it: remove `action`",
                );
                None
            }
            (None, None) => {
                let message = "the rule says neither `action` nor `rateLimit`";
                self.fault(
                    Code::FilterAction,
                    self.place(&[]),
                    message,
                    "add `action: allow`, `action: deny` or `rateLimit`",
                );
                None
            }
        }
    }

    fn limit(&mut self, written: &document::RateLimit) -> Option<RateLimit> {
        let span = self.key("rateLimit");
        let (rate, is_bytes) = match (written.packets_per_second, written.bytes_per_second) {
            (Some(packets), None) => (packets, false),
            (None, Some(bytes)) => (bytes, true),
            _ => {
                let message = "a limit has either `packetsPerSecond` or `bytesPerSecond`";
                self.fault(Code::FilterLimit, span, message, "write one of the two");
                return None;
            }
        };
        let least = if is_bytes { PACKET_BYTES_MAX } else { 1 };
        let most = rate.saturating_mul(BURST_SECONDS_MAX).max(least);
        let burst = written.burst.unwrap_or(rate.max(least));
        if !(least..=most).contains(&burst) {
            let message = format!("the burst is {burst}, it must be {least} to {most}");
            let at = self.place(&[Step::Key("rateLimit"), Step::Key("burst")]);
            self.fault(Code::FilterLimit, at, message, "");
            return None;
        }
        let lengths = [written.ipv4_prefix_length, written.ipv6_prefix_length];
        let source_bits = match written.per {
            LimitPer::Rule => None,
            LimitPer::Source => Some([32, 128]),
            LimitPer::SourcePrefix => Some([lengths[0].unwrap_or(24), lengths[1].unwrap_or(64)]),
        };
        if written.per != LimitPer::SourcePrefix && lengths.iter().any(Option::is_some) {
            let message = "prefix lengths without `per: sourcePrefix` mean nothing";
            self.fault(Code::FilterLimit, span, message, "write `per: sourcePrefix`, or remove the length");
            return None;
        }
        Some(RateLimit { rate, burst, is_bytes, source_bits })
    }

    /// Faults of a rule that asks for what excludes itself.
    fn check_possible(&mut self, rule: &FilterRule) {
        let families = |prefixes: &Option<Vec<Prefix>>| match prefixes {
            None => [true, true],
            Some(all) => [all.iter().any(|p| p.is_ipv4()), all.iter().any(|p| !p.is_ipv4())],
        };
        let (from, to) = (families(&rule.from), families(&rule.to));
        if !(from[0] && to[0] || from[1] && to[1]) {
            let message = "the sources of the rule are of one address family, its destinations of the other";
            self.fault(Code::FilterNothing, self.key("name"), message, "");
        }
        if let Some(protocol) = rule.protocol {
            if !WITH_PORTS.contains(&protocol[0]) && (rule.ports.is_some() || rule.source_ports.is_some()) {
                let key = if rule.ports.is_some() { "ports" } else { "sourcePorts" };
                self.fault(Code::FilterNothing, self.key(key), "the rule's protocol has no ports", "");
            }
            if protocol[0] != TCP && rule.tcp_flags.is_some() {
                self.fault(
                    Code::FilterNothing,
                    self.key("tcpFlags"),
                    "only TCP has these flags",
                    "write `protocol: tcp`",
                );
            }
        }
        if rule.tcp_flags.is_some_and(|flags| flags.set & flags.clear != 0) {
            self.fault(Code::FilterNothing, self.key("tcpFlags"), "a flag of the rule is set and clear", "");
        }
    }
}

/// Sorted, and apart from each other.
fn merge_ports(mut ranges: Vec<PortRange>) -> Vec<PortRange> {
    ranges.sort_unstable();
    let mut merged: Vec<PortRange> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if u32::from(first) <= u32::from(before.1) + 1 => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// Prefixes that a meaning spells out; of more it gives their number and a digest.
const SPELLED_MAX: usize = 4;

/// A rule in one line.
fn meaning(rule: &FilterRule, from_list: Option<&str>, to_list: Option<&str>) -> String {
    let mut words = match rule.action {
        RuleAction::Allow => "allow".to_owned(),
        RuleAction::Deny => "deny".to_owned(),
        RuleAction::Limit(limit) => {
            let per = match limit.source_bits {
                None => "rule".to_owned(),
                Some([32, 128]) => "source".to_owned(),
                Some([v4, v6]) => format!("source /{v4}, /{v6}"),
            };
            let unit = if limit.is_bytes { "bytes" } else { "packets" };
            format!("limit to {} {unit} a second, burst {}, per {per};", limit.rate, limit.burst)
        }
    };
    let mut add = |key: &str, text: String| {
        words.push(' ');
        words += key;
        words.push(' ');
        words += &text;
    };
    for (key, prefixes, list) in [("from", &rule.from, from_list), ("to", &rule.to, to_list)] {
        if let Some(prefixes) = prefixes {
            let all = || prefixes.iter().map(Prefix::to_string).collect::<Vec<_>>();
            add(
                key,
                match (prefixes.len(), list) {
                    (..=SPELLED_MAX, None) => all().join(", "),
                    (number, list) => {
                        let digest = blake3::hash(all().join("\n").as_bytes()).to_hex();
                        let of = list.map_or_else(String::new, |list| format!(" of {list}"));
                        format!("{number} prefixes{of} ({})", &digest.as_str()[..8])
                    }
                },
            );
        }
    }
    if let Some(protocol) = rule.protocol {
        add(
            "protocol",
            match protocol {
                [TCP, _] => "tcp".to_owned(),
                [UDP, _] => "udp".to_owned(),
                [ICMP, ICMPV6] => "icmp".to_owned(),
                [number, _] => number.to_string(),
            },
        );
    }
    for (key, ports) in [("ports", &rule.ports), ("source ports", &rule.source_ports)] {
        if let Some(ports) = ports {
            let range = |(first, last): &PortRange| {
                if first == last { first.to_string() } else { format!("{first}-{last}") }
            };
            add(key, ports.iter().map(range).collect::<Vec<_>>().join(", "));
        }
    }
    if let Some(ports) = &rule.in_ports {
        add("in by", ports.join(", "));
    }
    if let Some(flags) = rule.tcp_flags {
        const NAMES: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];
        let names = |bits: u8, sign: &str| {
            let of = |i: &usize| bits >> *i & 1 != 0;
            (0..8).filter(of).map(|i| format!("{sign}{}", NAMES[i])).collect::<Vec<_>>()
        };
        add("flags", [names(flags.set, ""), names(flags.clear, "!")].concat().join(" "));
    }
    if rule.fragments {
        add("and", "later fragments".to_owned());
    }
    words
}

/// Puts the policies in the order in which they decide, and reports defaults that contradict each other and rules that never
/// decide.
pub(super) fn order(filters: &mut [Written], faults: &mut Faults) {
    filters.sort_by(|a, b| (a.policy.priority, &a.policy.name).cmp(&(b.policy.priority, &b.policy.name)));
    for (at, later) in filters.iter().enumerate() {
        let says = |written: &Written| written.policy.default.zip(written.default);
        let Some((default, span)) = says(later) else { continue };
        let other = filters[..at].iter().find_map(|earlier| {
            let (theirs, place) = says(earlier)?;
            (theirs != default && earlier.policy.nodes.can_meet(&later.policy.nodes)).then_some((earlier, place))
        });
        if let Some((earlier, place)) = other {
            let message = format!(
                "the filter policies `{}` and `{}` have different defaults",
                earlier.policy.name, later.policy.name
            );
            let fault = Diagnostic::new(Code::FilterDefaults, &later.file, Some(span), message);
            faults.push(fault.related(&earlier.file, place, "says otherwise"));
        }
    }
    shadowed(filters, faults);
}

/// Reports rules that one earlier rule makes useless on every node that they are for.
fn shadowed(filters: &[Written], faults: &mut Faults) {
    let mut earlier: Vec<(&Written, usize, Sets)> = Vec::new();
    for written in filters {
        for (index, rule) in written.policy.rules.iter().enumerate() {
            let sets = Sets::of(rule);
            let covers = earlier.iter().find(|(of, at, theirs)| {
                of.policy.nodes.includes(&written.policy.nodes) && theirs.cover(&of.policy.rules[*at], &sets, rule)
            });
            if let Some((of, at, _)) = covers {
                let first = &of.policy.rules[*at];
                let name = format!("{}/{}", of.policy.name, first.name);
                let message =
                    format!("`{}` never decides: `{name}` comes first and matches all of its packets", rule.name);
                let fault = Diagnostic::new(Code::FilterShadowed, &written.file, Some(written.rules[index]), message);
                faults.push(fault.related(&of.file, of.rules[*at], "this rule decides"));
            }
            earlier.push((written, index, sets));
        }
    }
}

/// The addresses that a rule matches, as ranges: sorted and apart from each other.
struct Sets {
    from: Option<[Vec<(u128, u128)>; 2]>,
    to: Option<[Vec<(u128, u128)>; 2]>,
}

impl Sets {
    fn of(rule: &FilterRule) -> Self {
        Self { from: rule.from.as_deref().map(ranges), to: rule.to.as_deref().map(ranges) }
    }

    /// Whether `ours`, of which these are the sets, matches every packet that `theirs` matches.
    fn cover(&self, ours: &FilterRule, their_sets: &Self, theirs: &FilterRule) -> bool {
        (ours.protocol.is_none() || ours.protocol == theirs.protocol)
            && covers_shown(ours.ports.as_deref(), ours.fragments, theirs, theirs.ports.as_deref(), covers_ports)
            && covers_shown(
                ours.source_ports.as_deref(),
                ours.fragments,
                theirs,
                theirs.source_ports.as_deref(),
                covers_ports,
            )
            && covers_shown(ours.tcp_flags, ours.fragments, theirs, theirs.tcp_flags, |ours, theirs| {
                ours.set & !theirs.set == 0 && ours.clear & !theirs.clear == 0
            })
            && match (&ours.in_ports, &theirs.in_ports) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(ours), Some(theirs)) => theirs.iter().all(|port| ours.contains(port)),
            }
            && covers_addresses(self.from.as_ref(), their_sets, their_sets.from.as_ref())
            && covers_addresses(self.to.as_ref(), their_sets, their_sets.to.as_ref())
    }
}

/// Of what later fragments do not show: `fragments` says whether ours matches them all the same.
fn covers_shown<T>(
    ours: Option<T>,
    fragments: bool,
    their_rule: &FilterRule,
    theirs: Option<T>,
    covers: impl Fn(T, T) -> bool,
) -> bool {
    match (ours, theirs) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(ours), Some(theirs)) => covers(ours, theirs) && (fragments || !their_rule.fragments),
    }
}

fn covers_ports(ours: &[PortRange], theirs: &[PortRange]) -> bool {
    theirs.iter().all(|(first, last)| ours.iter().any(|range| range.0 <= *first && *last <= range.1))
}

/// Ranges of left-aligned addresses, of IPv4 and of IPv6.
fn ranges(prefixes: &[Prefix]) -> [Vec<(u128, u128)>; 2] {
    let mut found: [Vec<(u128, u128)>; 2] = [Vec::new(), Vec::new()];
    // Sorted, so that a range never begins before the one before it.
    for prefix in prefixes {
        let (first, bits) = match *prefix {
            Prefix::V4(address, length) => (u128::from(address.to_bits()), 32 - length),
            Prefix::V6(address, length) => (address.to_bits(), 128 - length),
        };
        let last = first | 1u128.checked_shl(bits.into()).map_or(u128::MAX, |size| size - 1);
        let list = &mut found[usize::from(!prefix.is_ipv4())];
        match list.last_mut() {
            Some((_, end)) if end.checked_add(1).is_none_or(|next| first <= next) => *end = last.max(*end),
            _ => list.push((first, last)),
        }
    }
    found
}

/// A rule without prefixes of one kind matches both families, as far as its other prefixes do.
fn covers_addresses(
    ours: Option<&[Vec<(u128, u128)>; 2]>,
    their_sets: &Sets,
    theirs: Option<&[Vec<(u128, u128)>; 2]>,
) -> bool {
    let Some(ours) = ours else { return true };
    (0..2).all(|family| {
        // Of a family that the other rule cannot match, nothing has to be covered.
        let possible = [&their_sets.from, &their_sets.to].into_iter().flatten().all(|sets| !sets[family].is_empty());
        if !possible {
            return true;
        }
        let all = [(0, if family == 0 { u128::from(u32::MAX) } else { u128::MAX })];
        let theirs: &[(u128, u128)] = theirs.map_or(&all, |sets| &sets[family]);
        let mut candidates = ours[family].iter().peekable();
        theirs.iter().all(|(first, last)| {
            while candidates.next_if(|range| range.1 < *first).is_some() {}
            candidates.peek().is_some_and(|range| range.0 <= *first && *last <= range.1)
        })
    })
}
