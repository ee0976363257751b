//! Validation: a snapshot in, the checked policy or every fault of every file out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::source::{FileFault, Snapshot, SourceFile, is_yaml};

use super::codes::Code;
use super::diagnostic::{Diagnostic, Faults, Span};
use super::document;
use super::filter_policy::{self, read_filter_policy};
use super::route_policy::read_route_policy;
use super::routes::RouteTable;
use super::schema::{self, CONFIG_KINDS, POLICY_KINDS};
use super::service_policy::{Claim, ServicePolicy, check_claims, read_service_policy};
use super::test::{PolicyTest, Reference, check_references, read_test};
use super::yaml::{self, Node, Step, Value};
use super::{Policy, RoutePolicy, Selector, limits};

/// What validation made of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validated {
    /// Present exactly when no diagnostic is an error.
    pub policy: Option<Policy>,
    /// By name; empty when there is no policy.
    pub tests: Vec<PolicyTest>,
    /// By file, place, code and message.
    pub diagnostics: Vec<Diagnostic>,
}

/// What is shared by all documents of one run. Files are numbered as the snapshot orders them until the end, when only
/// those that a rule came from keep a number.
pub(super) struct Run<'s> {
    pub(super) snapshot: &'s Snapshot,
    pub(super) faults: Faults,
    pub(super) table: RouteTable<'s>,
    pub(super) file_ids: HashMap<&'s str, u32>,
    pub(super) used_files: HashSet<u32>,
    /// Lists already read, with the places that name them and the nodes that those are for.
    pub(super) lists: BTreeMap<&'s str, Vec<(String, Span, Selector)>>,
    pub(super) policies: Vec<RoutePolicy>,
    pub(super) filters: Vec<filter_policy::Written>,
    /// Lists that filters have read, and the prefixes that their rules have.
    pub(super) filter_lists: HashSet<&'s str>,
    pub(super) filter_prefixes: usize,
    pub(super) services: Vec<ServicePolicy>,
    /// Ports of vips, in the order written.
    pub(super) claims: Vec<Claim>,
    /// With what their references need to be checked, once every policy is known.
    pub(super) tests: Vec<(PolicyTest, Vec<Reference>)>,
}

/// Checks every document and list of `snapshot`.
pub fn validate(snapshot: &Snapshot) -> Validated {
    let file_ids = snapshot.files.keys().map(String::as_str).zip(0_u32..).collect();
    let mut run = Run {
        snapshot,
        faults: Faults::default(),
        table: RouteTable::new(snapshot),
        file_ids,
        used_files: HashSet::new(),
        lists: BTreeMap::new(),
        policies: Vec::new(),
        filters: Vec::new(),
        filter_lists: HashSet::new(),
        filter_prefixes: 0,
        services: Vec::new(),
        claims: Vec::new(),
        tests: Vec::new(),
    };
    let mut names = Names::new();
    let mut documents = 0;
    for (file, entry) in &snapshot.files {
        match entry {
            SourceFile::Fault(fault) => {
                if fault.hides_files() || is_yaml(file) {
                    run.faults.push(file_fault(file, fault));
                }
                documents += usize::from(is_yaml(file));
            }
            SourceFile::Content(bytes) if is_yaml(file) => {
                documents += usize::from(run.document(file, bytes, &mut names));
            }
            SourceFile::Content(_) => {}
        }
    }
    if documents == 0 {
        let message = if run.tests.is_empty() {
            "the source holds no policy document (`*.yaml` or `*.yml`)"
        } else {
            "the source holds tests and no policy"
        };
        run.faults.push(
            Diagnostic::new(Code::NoPolicy, ".", None, message)
                .help("an empty source never means \"remove every rule\""),
        );
    }
    run.finish()
}

/// Where a name of a kind is first used.
type Names = HashMap<(&'static str, String), (String, Span)>;

/// A file that could not be taken, as a diagnostic.
pub(super) fn file_fault(file: &str, fault: &FileFault) -> Diagnostic {
    let (code, help) = match fault {
        FileFault::LeavesSource { .. } | FileFault::Cycle | FileFault::Link { .. } => {
            (Code::LinkLeavesSource, "put the file itself into the source")
        }
        FileFault::Submodule { .. } => (Code::Submodule, "put the files themselves into the source"),
        FileFault::Oversized { .. } => (Code::FileTooLarge, "tables of this size belong in several lists"),
        FileFault::Unreadable { .. } | FileFault::NotRegular | FileFault::Name => {
            (Code::FileUnreadable, "rules that cannot be read are not removed rules: nothing is applied")
        }
    };
    Diagnostic::new(code, file, None, fault.to_string()).help(help)
}

/// The document without the routes that `diagnostics` point into; `None` when they point elsewhere only.
fn without_faulty_routes(root: &Node, diagnostics: &[Diagnostic]) -> Option<Node> {
    let mut rest = root.clone();
    let routes = rest.entry_mut("spec")?.entry_mut("routes")?;
    let Value::List(items) = &mut routes.value else { return None };
    let starts: Vec<_> = items.iter().map(|item| item.span.start).collect();
    // A block mapping's span is its first key: a route reaches to where the next one begins.
    let faulty: HashSet<usize> = diagnostics
        .iter()
        .filter_map(|d| {
            let at = d.span?.start;
            starts.partition_point(|start| *start <= at).checked_sub(1)
        })
        .collect();
    let mut index = 0;
    items.retain(|_| {
        index += 1;
        !faulty.contains(&(index - 1))
    });
    (items.len() < starts.len()).then_some(rest)
}

impl<'s> Run<'s> {
    /// Reads one document; says whether it holds, or should hold, rules.
    fn document(&mut self, file: &'s str, bytes: &'s [u8], names: &mut Names) -> bool {
        let text = match yaml::decode(file, bytes) {
            Ok(text) => text,
            Err(diagnostic) => {
                self.faults.push(diagnostic);
                return true;
            }
        };
        let parsed = yaml::parse(file, text);
        self.faults.extend(parsed.diagnostics);
        let Some(mut root) = parsed.root else { return true };
        let mut whole = true;
        let kind = match schema::check(file, &root, POLICY_KINDS, CONFIG_KINDS) {
            Ok(kind) => kind,
            Err(diagnostics) => {
                // The other routes are read all the same, so that one run shows every fault.
                let rest = without_faulty_routes(&root, &diagnostics);
                self.faults.extend(diagnostics);
                let Some(rest) = rest else { return true };
                let Ok(kind) = schema::check(file, &rest, POLICY_KINDS, CONFIG_KINDS) else { return true };
                root = rest;
                whole = false;
                kind
            }
        };
        if kind.name == schema::POLICY_TEST {
            if let Some(written) = self.typed::<document::PolicyTest>(file, &root) {
                self.claim_name(file, &root, kind.name, &written.metadata.name, names);
                let test = read_test(file, &root, written, &mut self.faults);
                self.tests.push(test);
            }
            return false;
        }
        if kind.name == schema::FILTER_POLICY {
            if let Some(written) = self.typed::<document::FilterPolicy>(file, &root) {
                self.claim_name(file, &root, kind.name, &written.metadata.name, names);
                read_filter_policy(self, file, &root, written);
            }
            return true;
        }
        if kind.name == schema::SERVICE_POLICY {
            if let Some(written) = self.typed::<document::ServicePolicy>(file, &root) {
                self.claim_name(file, &root, kind.name, &written.metadata.name, names);
                read_service_policy(self, file, &root, written);
            }
            return true;
        }
        if let Some(written) = self.typed::<document::RoutePolicy>(file, &root) {
            self.claim_name(file, &root, kind.name, &written.metadata.name, names);
            read_route_policy(self, file, &root, written, whole);
        }
        true
    }

    fn typed<T: serde::de::DeserializeOwned>(&mut self, file: &str, root: &Node) -> Option<T> {
        schema::typed(file, root).map_err(|diagnostic| self.faults.push(diagnostic)).ok()
    }

    fn claim_name(&mut self, file: &str, root: &Node, kind: &'static str, name: &str, names: &mut Names) {
        let span = root.place(&[Step::Key("metadata"), Step::Key("name")]);
        let key = (kind, name.to_owned());
        if let Some((first_file, first)) = names.get(&key) {
            let message = match kind {
                schema::POLICY_TEST => format!("the test name `{name}` is used twice"),
                _ => format!("the policy name `{name}` is used twice"),
            };
            let diagnostic = Diagnostic::new(Code::DuplicatePolicy, file, Some(span), message);
            self.faults.push(diagnostic.related(first_file, *first, "first used here"));
        } else {
            names.insert(key, (file.to_owned(), span));
        }
    }

    /// The number of `file`, which a rule comes from.
    pub(super) fn use_file(&mut self, file: &str) -> u32 {
        let id = self.file_ids.get(file).copied().unwrap_or(u32::MAX);
        self.used_files.insert(id);
        id
    }

    fn finish(mut self) -> Validated {
        self.table.sort(&self.policies, &mut self.faults);
        filter_policy::order(&mut self.filters, &mut self.faults);
        check_claims(std::mem::take(&mut self.claims), &mut self.faults);
        self.check_limits();
        // What cannot be found in policies with faults may be there once those are gone.
        if !self.faults.has_errors() {
            for (test, references) in &self.tests {
                let (policies, filters, services) = (&self.policies, &self.filters, &self.services);
                check_references(test, references, policies, filters, services, &self.table, &mut self.faults);
            }
        }
        if self.faults.has_errors() {
            return Validated { policy: None, tests: Vec::new(), diagnostics: self.faults.finish() };
        }
        let mut files = Vec::with_capacity(self.used_files.len());
        let mut numbers = vec![0_u32; self.snapshot.files.len()];
        for ((path, id), number) in self.snapshot.files.keys().zip(0_u32..).zip(&mut numbers) {
            if self.used_files.contains(&id) {
                *number = u32::try_from(files.len()).unwrap_or(u32::MAX);
                files.push(path.clone());
            }
        }
        self.table.distribute(&mut self.policies, &numbers);
        for policy in &mut self.policies {
            policy.origin.file = numbers[policy.origin.file as usize];
            for hop in &mut policy.next_hops {
                hop.origin.file = numbers[hop.origin.file as usize];
            }
        }
        self.policies.sort_by(|a, b| a.name.cmp(&b.name));
        for service in &mut self.services {
            service.origin.file = numbers[service.origin.file as usize];
            for backend in &mut service.backends {
                backend.origin.file = numbers[backend.origin.file as usize];
            }
        }
        self.services.sort_by(|a, b| a.name.cmp(&b.name));
        let mut filter_policies: Vec<_> = self.filters.into_iter().map(|written| written.policy).collect();
        for policy in &mut filter_policies {
            policy.renumber(&mut |file| numbers[file as usize]);
        }
        let policy = Policy {
            revision: self.snapshot.revision.clone(),
            files,
            route_policies: self.policies,
            filter_policies,
            service_policies: self.services,
        };
        let mut tests: Vec<PolicyTest> = self.tests.into_iter().map(|(test, _)| test).collect();
        tests.sort_by(|a, b| a.name.cmp(&b.name));
        Validated { policy: Some(policy), tests, diagnostics: self.faults.finish() }
    }

    fn check_limits(&mut self) {
        let hops = || self.policies.iter().flat_map(|p| &p.next_hops);
        let rules = || self.filters.iter().flat_map(|written| &written.policy.rules);
        let in_ports = rules().flat_map(|rule| rule.in_ports.iter().flatten().map(String::as_str));
        let ports: BTreeSet<&str> = hops().map(|hop| hop.port.as_str()).chain(in_ports).collect();
        let groups: usize = self.policies.iter().map(|p| p.groups.len()).sum();
        let (ipv4, ipv6) = self.table.counts();
        let tables = [
            ("IPv4 routes", ipv4, limits::ROUTES_PER_FAMILY_MAX),
            ("IPv6 routes", ipv6, limits::ROUTES_PER_FAMILY_MAX),
            ("next hops", hops().count(), limits::NEXT_HOPS_MAX),
            ("next-hop groups", groups, limits::GROUPS_MAX),
            ("ports", ports.len(), limits::PORTS_MAX),
            ("filter rules", self.most_filter_rules(), limits::FILTER_RULES_MAX),
            ("filter prefixes", self.filter_prefixes, limits::FILTER_PREFIXES_MAX),
            ("files", self.used_files.len(), limits::FILES_MAX),
            ("services", self.services.len(), limits::SERVICES_MAX),
            ("backends", self.services.iter().map(|s| s.backends.len()).sum(), limits::BACKENDS_MAX),
        ];
        for (table, needed, size) in tables {
            if needed > size {
                let message = format!("the table of {table} holds {size}; this source needs {needed}");
                self.faults.push(Diagnostic::new(Code::TableFull, ".", None, message));
            }
        }
    }

    /// Filter rules of the node that can have most of them.
    fn most_filter_rules(&self) -> usize {
        let of = |node: &filter_policy::Written| {
            let met = self.filters.iter().filter(|one| one.policy.nodes.can_meet(&node.policy.nodes));
            met.map(|one| one.policy.rules.len()).sum()
        };
        self.filters.iter().map(of).max().unwrap_or(0)
    }
}
