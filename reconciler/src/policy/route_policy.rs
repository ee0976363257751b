//! One `RoutePolicy` document: its next hops, groups, inline routes and lists.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::source::{SourceFile, is_yaml};

use super::codes::Code;
use super::diagnostic::{Diagnostic, Span, did_you_mean, suggestion};
use super::document::{self, OnAllDown, RouteAction};
use super::list::{self, Line, parse_prefix};
use super::prefix::{Prefix, PrefixError};
use super::probe::read_probes;
use super::validate::{Run, file_fault};
use super::yaml::{Node, Step};
use super::{Action, NextHop, NextHopGroup, Origin, RoutePolicy, Selector, schema};

/// The document being read.
struct Reader<'r, 's> {
    run: &'r mut Run<'s>,
    file: &'s str,
    file_id: u32,
    root: &'r Node,
    /// Index of this policy in `run.policies`.
    policy: u32,
    next_hops: Vec<NextHop>,
    /// Whether a next hop is IPv4; `None` when its address could not be read.
    hop_is_ipv4: Vec<Option<bool>>,
    hop_used: Vec<bool>,
    hop_by_name: HashMap<String, u32>,
    groups: Vec<NextHopGroup>,
    group_by_members: HashMap<NextHopGroup, u32>,
    nodes: &'r Selector,
    /// What routes do that say nothing else.
    on_all_down: OnAllDown,
    /// The groups of a next hop alone, by what is done when it is down; made when a list line first names it.
    group_of_hop: Vec<[Option<u32>; 2]>,
}

/// What a route says about its packets.
#[derive(Clone, Copy)]
enum Says {
    /// The same for every prefix. `is_ipv4` is the family that the next hops ask for.
    Does { action: Action, is_ipv4: Option<bool> },
    /// Every line of the list names its own next hop.
    PerLine,
    /// A fault was reported; prefixes are still checked.
    Unclear,
}

/// Reads the document `root` of `file` into `run`. One that is not `whole` has lost routes with faults: what seems unused in
/// it may be used there.
pub(super) fn read_route_policy<'s>(
    run: &mut Run<'s>,
    file: &'s str,
    root: &Node,
    written: document::RoutePolicy,
    whole: bool,
) {
    let file_id = run.use_file(file);
    let policy = u32::try_from(run.policies.len()).unwrap_or(u32::MAX);
    let nodes = Selector::new(written.spec.nodes.map(|nodes| nodes.labels).unwrap_or_default());
    let mut reader = Reader {
        run,
        file,
        file_id,
        root,
        policy,
        next_hops: Vec::new(),
        hop_is_ipv4: Vec::new(),
        hop_used: Vec::new(),
        hop_by_name: HashMap::new(),
        groups: Vec::new(),
        group_by_members: HashMap::new(),
        nodes: &nodes,
        on_all_down: written.spec.on_all_down,
        group_of_hop: Vec::new(),
    };
    reader.read_next_hops(written.spec.next_hops);
    for (index, route) in written.spec.routes.iter().enumerate() {
        reader.read_route(index, route);
    }
    if whole {
        reader.report_unused();
    }
    let name = &written.metadata.name;
    let probes = read_probes(file, root, &written.spec.probes, Some(name), &mut reader.run.faults);
    let Reader { run, next_hops, groups, .. } = reader;
    let line = root.place(&[Step::Key("metadata"), Step::Key("name")]).start.line;
    run.policies.push(RoutePolicy {
        name: written.metadata.name,
        owner: written.metadata.owner,
        nodes: nodes.clone(),
        origin: Origin { file: file_id, line },
        next_hops,
        groups,
        routes: Vec::new(), // `RouteTable::distribute` fills them in
        probes,
    });
}

impl<'s> Reader<'_, 's> {
    fn place(&self, list: &str, index: usize, rest: &[Step]) -> Span {
        let mut path = vec![Step::Key("spec"), Step::Key(list), Step::Item(index)];
        path.extend_from_slice(rest);
        self.root.place(&path)
    }

    fn fault(&mut self, code: Code, span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(code, self.file, Some(span), message)
    }

    fn read_next_hops(&mut self, written: Vec<document::NextHop>) {
        for (index, hop) in written.into_iter().enumerate() {
            let name_span = self.place("nextHops", index, &[Step::Key("name")]);
            let via = self.read_gateway(&hop.via, self.place("nextHops", index, &[Step::Key("via")]));
            if let Some(first) = self.hop_by_name.get(&hop.name) {
                let first = self.place("nextHops", *first as usize, &[Step::Key("name")]);
                let message = format!("the next-hop name `{}` is used twice", hop.name);
                let diagnostic = self.fault(Code::DuplicateNextHop, name_span, message);
                self.run.faults.push(diagnostic.related(self.file, first, "first used here"));
            } else {
                self.hop_by_name.insert(hop.name.clone(), u32::try_from(index).unwrap_or(u32::MAX));
            }
            self.hop_is_ipv4.push(via.map(|v| v.is_ipv4()));
            self.hop_used.push(false);
            self.group_of_hop.push([None; 2]);
            self.next_hops.push(NextHop {
                name: hop.name,
                // With no readable address there is an error, so no `Policy` ever holds this stand-in.
                via: via.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)),
                port: hop.port,
                origin: Origin { file: self.file_id, line: name_span.start.line },
            });
        }
    }

    fn read_gateway(&mut self, text: &str, span: Span) -> Option<IpAddr> {
        let Ok(via) = text.parse::<IpAddr>() else {
            let message = format!("`{}` is not an IP address", schema::shorten(text));
            let diagnostic = self.fault(Code::MalformedValue, span, message);
            self.run
                .faults
                .push(diagnostic.help("write an address without a length, such as 192.0.2.1 or 2001:db8::1"));
            return None;
        };
        let why = match via {
            _ if via.is_unspecified() => "unspecified",
            _ if via.is_multicast() => "a multicast address",
            _ if via.is_loopback() => "a loopback address",
            IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4-mapped IPv6 address",
            _ => return Some(via),
        };
        let diagnostic = self.fault(Code::NotAGateway, span, format!("{via} is {why} and cannot be a gateway"));
        self.run.faults.push(diagnostic.help("write the address of a neighbour"));
        Some(via)
    }

    fn read_route(&mut self, index: usize, route: &document::Route) {
        let says = self.read_action(index, route);
        let on_all_down = route.on_all_down.unwrap_or(self.on_all_down);
        match (&route.prefix, &route.prefixes_from) {
            (Some(prefix), None) => self.read_prefix(index, prefix, says),
            (None, Some(path)) => self.read_list(index, path, says, on_all_down),
            (prefix, _) => {
                let message = match prefix {
                    Some(_) => "the route has both `prefix` and `prefixesFrom`",
                    None => "the route has neither `prefix` nor `prefixesFrom`",
                };
                let diagnostic = self.fault(Code::RoutePrefixes, self.place("routes", index, &[]), message);
                self.run.faults.push(diagnostic.help("write exactly one of the two"));
            }
        }
    }

    fn read_action(&mut self, index: usize, route: &document::Route) -> Says {
        let span = if route.action.is_some() {
            self.place("routes", index, &[Step::Key("action")])
        } else {
            self.place("routes", index, &[])
        };
        if let (Some(RouteAction::Drop | RouteAction::Pass), Some(_)) = (route.action, route.on_all_down) {
            let key = self.place("routes", index, &[Step::Key("onAllDown")]);
            let message = "the route does not forward, so no next hop of it can be down";
            let diagnostic = self.fault(Code::OnAllDownUnused, key, message);
            self.run.faults.push(diagnostic.help("remove `onAllDown`, or give the route `nextHops` and no action"));
        }
        let on_all_down = route.on_all_down.unwrap_or(self.on_all_down);
        match (route.action, &route.next_hops) {
            (Some(RouteAction::Drop), None) => Says::Does { action: Action::Drop, is_ipv4: None },
            (Some(RouteAction::Pass), None) => Says::Does { action: Action::Pass, is_ipv4: None },
            (None | Some(RouteAction::Forward), Some(shares)) => self.read_group(index, shares, on_all_down),
            (None | Some(RouteAction::Forward), None) if route.prefixes_from.is_some() => Says::PerLine,
            (action, shares) => {
                // Named in vain, but named: another fault about them would be noise.
                for hop in shares.iter().flatten().filter_map(|share| self.hop_by_name.get(&share.name)) {
                    self.hop_used[*hop as usize] = true;
                }
                let (message, help) = match action {
                    None => (
                        "the route says neither `nextHops` nor `action`",
                        "add `nextHops`, `action: drop` or `action: pass`",
                    ),
                    Some(RouteAction::Forward) => ("the route forwards, but to no next hop", "add `nextHops`"),
                    Some(RouteAction::Drop) => {
                        ("a route that drops has no next hops", "remove `nextHops` or the action")
                    }
                    Some(RouteAction::Pass) => {
                        ("a route that passes has no next hops", "remove `nextHops` or the action")
                    }
                };
                let diagnostic = self.fault(Code::RouteAction, span, message);
                self.run.faults.push(diagnostic.help(help));
                Says::Unclear
            }
        }
    }

    fn read_group(&mut self, index: usize, shares: &[document::NextHopShare], on_all_down: OnAllDown) -> Says {
        let mut members: Vec<(u32, u16)> = Vec::with_capacity(shares.len());
        let mut family: Option<(bool, usize)> = None;
        let mut clear = true;
        for (at, share) in shares.iter().enumerate() {
            let span = self.place("routes", index, &[Step::Key("nextHops"), Step::Item(at), Step::Key("name")]);
            let Some(hop) = self.hop_by_name.get(&share.name).copied() else {
                let diagnostic = self.unknown_next_hop(self.file, &share.name, span);
                self.run.faults.push(diagnostic);
                clear = false;
                continue;
            };
            self.hop_used[hop as usize] = true;
            if members.iter().any(|(other, _)| *other == hop) {
                let message = format!("the next hop `{}` is twice in one group", share.name);
                let diagnostic = self.fault(Code::GroupMemberTwice, span, message);
                self.run.faults.push(diagnostic.help("use `weight` for a larger share"));
                clear = false;
                continue;
            }
            members.push((hop, share.weight));
            let Some(is_ipv4) = self.hop_is_ipv4[hop as usize] else {
                clear = false;
                continue;
            };
            match family {
                None => family = Some((is_ipv4, at)),
                Some((first, first_at)) if first != is_ipv4 => {
                    let path = [Step::Key("nextHops"), Step::Item(first_at), Step::Key("name")];
                    let first_span = self.place("routes", index, &path);
                    let message =
                        format!("`{}` is {}, others of the group are {}", share.name, name(is_ipv4), name(first));
                    let diagnostic = self.fault(Code::MixedFamilies, span, message);
                    self.run.faults.push(diagnostic.related(self.file, first_span, format!("this is {}", name(first))));
                    clear = false;
                }
                Some(_) => {}
            }
        }
        if !clear {
            return Says::Unclear;
        }
        members.sort_unstable();
        let group = self.group(NextHopGroup { members, on_all_down });
        Says::Does { action: Action::Forward(group), is_ipv4: family.map(|(is_ipv4, _)| is_ipv4) }
    }

    fn group(&mut self, group: NextHopGroup) -> u32 {
        if let Some(known) = self.group_by_members.get(&group) {
            return *known;
        }
        let number = u32::try_from(self.groups.len()).unwrap_or(u32::MAX);
        self.groups.push(group.clone());
        self.group_by_members.insert(group, number);
        number
    }

    fn unknown_next_hop(&self, file: &str, hop: &str, span: Span) -> Diagnostic {
        let message = format!("this policy declares no next hop `{}`", schema::shorten(hop));
        let known = self.next_hops.iter().map(|h| h.name.as_str());
        Diagnostic::new(Code::UnknownNextHop, file, Some(span), message).maybe_help(suggestion(hop, known))
    }

    fn read_prefix(&mut self, index: usize, text: &str, says: Says) {
        let span = self.place("routes", index, &[Step::Key("prefix")]);
        let prefix = match parse_prefix(text) {
            Ok(prefix) => prefix,
            Err(error) => {
                self.run.faults.push(prefix_fault(self.file, span, &error));
                return;
            }
        };
        let origin = Origin { file: self.file_id, line: span.start.line };
        match says {
            Says::Does { action, is_ipv4 } => {
                if let Some(diagnostic) = mixed(self.file, span, prefix, is_ipv4) {
                    self.run.faults.push(diagnostic);
                }
                self.run.table.add(prefix, action, self.policy, origin, Some(span));
            }
            // `PerLine` needs a list; an inline route never gets it.
            Says::PerLine | Says::Unclear => {
                self.run.table.add(prefix, Action::Pass, self.policy, origin, Some(span));
            }
        }
    }

    fn read_list(&mut self, index: usize, path: &str, says: Says, on_all_down: OnAllDown) {
        let span = self.place("routes", index, &[Step::Key("prefixesFrom")]);
        let Some((list_file, text)) = self.find_list(path, span) else {
            self.use_every_next_hop(says);
            return;
        };
        let list_id = self.run.use_file(list_file);
        let mut lines = 0;
        for line in list::lines(text) {
            lines += 1;
            self.read_line(list_file, list_id, &line, says, on_all_down);
        }
        if lines == 0 {
            let message = "the list holds no prefix";
            let diagnostic = Diagnostic::new(Code::ListEmpty, list_file, None, message);
            self.run.faults.push(diagnostic.related(self.file, span, "read by this route"));
        }
    }

    /// A list that cannot be read might have used any of them: no warning then.
    fn use_every_next_hop(&mut self, says: Says) {
        if matches!(says, Says::PerLine) {
            self.hop_used.fill(true);
        }
    }

    /// The list that `path` names, with its text.
    fn find_list(&mut self, path: &str, span: Span) -> Option<(&'s str, &'s str)> {
        if path.starts_with('/') || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            let message = format!("`{}` is not a path inside the source", schema::shorten(path));
            let diagnostic = self.fault(Code::ListPath, span, message);
            self.run.faults.push(diagnostic.help("write a path from the top of the source, without `.` and `..`"));
            return None;
        }
        let snapshot = self.run.snapshot;
        let Some((file, entry)) = snapshot.files.get_key_value(path) else {
            let folder = format!("{path}/");
            let message = if snapshot.files.keys().any(|f| f.starts_with(&folder)) {
                format!("`{}` is a directory, not a list", schema::shorten(path))
            } else {
                format!("the source has no list `{}`", schema::shorten(path))
            };
            let help = self.similar_list(path);
            let diagnostic = self.fault(Code::ListMissing, span, message);
            self.run.faults.push(diagnostic.maybe_help(help));
            return None;
        };
        let readers = self.run.lists.entry(file).or_default();
        if let Some((first_file, first, _)) = readers.iter().find(|(.., nodes)| nodes.can_meet(self.nodes)) {
            let message = format!("the list `{path}` is read by two routes, so every prefix of it is written twice");
            let diagnostic = Diagnostic::new(Code::DuplicatePrefix, self.file, Some(span), message);
            let diagnostic = diagnostic.related(first_file, *first, "first read here");
            self.run.faults.push(diagnostic);
            return None;
        }
        readers.push((self.file.to_owned(), span, self.nodes.clone()));
        match entry {
            SourceFile::Content(bytes) => match super::yaml::decode(file, bytes) {
                Ok(text) => return Some((file, text)),
                Err(diagnostic) => self.run.faults.push(diagnostic),
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

    fn similar_list(&self, path: &str) -> Option<String> {
        let name = |p: &str| p.rsplit('/').next().unwrap_or_default().to_owned();
        let lists = || self.run.snapshot.files.keys().map(String::as_str).filter(|f| !is_yaml(f));
        let found = lists().find(|f| name(f) == name(path)).or_else(|| did_you_mean(path, lists().take(1000)))?;
        Some(format!("did you mean `{found}`?"))
    }

    fn read_line(&mut self, file: &str, file_id: u32, line: &Line<'_>, says: Says, on_all_down: OnAllDown) {
        let Ok((action, is_ipv4)) = self.line_action(file, line, says, on_all_down) else { return };
        match parse_prefix(line.prefix) {
            Ok(prefix) if is_ipv4.is_none_or(|is_ipv4| is_ipv4 == prefix.is_ipv4()) => {
                let origin = Origin { file: file_id, line: line.number };
                self.run.table.add(prefix, action, self.policy, origin, None);
            }
            other => self.list_fault(file, || {
                let span = line.span(line.prefix);
                match other {
                    Ok(prefix) => mixed(file, span, prefix, is_ipv4),
                    Err(error) => Some(prefix_fault(file, span, &error)),
                }
            }),
        }
    }

    fn line_action(
        &mut self,
        file: &str,
        line: &Line<'_>,
        says: Says,
        on_all_down: OnAllDown,
    ) -> Result<(Action, Option<bool>), ()> {
        if let Some(surplus) = line.surplus {
            self.list_fault(file, || {
                let message = "the line has more than a prefix and a next hop";
                Some(
                    Diagnostic::new(Code::ListLine, file, Some(line.span(surplus)), message)
                        .help("write PREFIX or PREFIX,NEXT-HOP-NAME"),
                )
            });
            return Err(());
        }
        let Some(hop_name) = line.next_hop else {
            return match says {
                Says::Does { action, is_ipv4 } => Ok((action, is_ipv4)),
                Says::Unclear => Ok((Action::Pass, None)),
                Says::PerLine => {
                    self.list_fault(file, || {
                        let message = "the line names no next hop, and neither does the route that reads the list";
                        Some(
                            Diagnostic::new(Code::ListNextHop, file, Some(line.span(line.prefix)), message)
                                .help("write PREFIX,NEXT-HOP-NAME, or give the route `nextHops`"),
                        )
                    });
                    Err(())
                }
            };
        };
        if let Says::Does { action: Action::Drop | Action::Pass, .. } = says {
            self.list_fault(file, || {
                let message = "the line names a next hop, but its route does not forward";
                Some(Diagnostic::new(Code::RouteAction, file, Some(line.span(hop_name)), message))
            });
            return Err(());
        }
        let Some(hop) = self.hop_by_name.get(hop_name).copied() else {
            if self.run.faults.is_full(file) {
                self.run.faults.count_error(file);
            } else {
                let diagnostic = self.unknown_next_hop(file, hop_name, line.span(hop_name));
                self.run.faults.push(diagnostic);
            }
            return Err(());
        };
        let at = hop as usize;
        self.hop_used[at] = true;
        let group = if let Some(group) = self.group_of_hop[at][on_all_down as usize] {
            group
        } else {
            let group = self.group(NextHopGroup { members: vec![(hop, 1)], on_all_down });
            self.group_of_hop[at][on_all_down as usize] = Some(group);
            group
        };
        Ok((Action::Forward(group), self.hop_is_ipv4[at]))
    }

    /// Reports a fault of a list, and only counts it when the list already has too many.
    fn list_fault(&mut self, file: &str, diagnostic: impl FnOnce() -> Option<Diagnostic>) {
        if self.run.faults.is_full(file) {
            self.run.faults.count_error(file);
        } else if let Some(diagnostic) = diagnostic() {
            self.run.faults.push(diagnostic);
        }
    }

    fn report_unused(&mut self) {
        for index in 0..self.next_hops.len() {
            // The second of two equal names was reported already.
            let hop = &self.next_hops[index];
            let is_named = self.hop_by_name.get(&hop.name).is_some_and(|first| *first as usize == index);
            if !self.hop_used[index] && is_named {
                let message = format!("the next hop `{}` is used by no route", hop.name);
                let span = self.place("nextHops", index, &[Step::Key("name")]);
                let diagnostic = self.fault(Code::UnusedNextHop, span, message);
                self.run.faults.push(diagnostic);
            }
        }
    }
}

fn name(is_ipv4: bool) -> &'static str {
    if is_ipv4 { "IPv4" } else { "IPv6" }
}

fn mixed(file: &str, span: Span, prefix: Prefix, is_ipv4: Option<bool>) -> Option<Diagnostic> {
    let wanted = is_ipv4.filter(|is_ipv4| *is_ipv4 != prefix.is_ipv4())?;
    let message = format!("the prefix is {}, its next hops are {}", name(prefix.is_ipv4()), name(wanted));
    Some(Diagnostic::new(Code::MixedFamilies, file, Some(span), message).help("use next hops of the prefix's family"))
}

pub(super) fn prefix_fault(file: &str, span: Span, error: &PrefixError) -> Diagnostic {
    match error {
        PrefixError::HostBits { network, .. } => {
            Diagnostic::new(Code::HostBits, file, Some(span), error.to_string()).help(format!("write {network}"))
        }
        _ => Diagnostic::new(Code::NotAPrefix, file, Some(span), error.to_string()),
    }
}
