//! What offline commands share: a source that is a directory or a revision of a repo, seen by one node or by all.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::source::{self, Opened, Revision};
use super::{Ended, Exit, Global, node, note, report};
use crate::compile::{Image, LiveIds, NodeFacts, compile};
use crate::policy::{self, Diagnostic, NodeConfig, Policy, PolicyTest, Selector, Tunnels};
use crate::source::git::spec::looks_like_url;
use crate::source::git::{GitError, Repo};
use crate::source::{Limits, ReadSource as _, Snapshot};

/// Where sources are looked for, and for whom they are read.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct OfflineArgs {
    /// Show what one node gets: its configuration chooses policies by its labels, and its ports are checked
    #[arg(long, value_name = "FILE")]
    node_config: Option<PathBuf>,
    /// The git repository of revisions; that of the current directory when left out
    #[arg(long, value_name = "DIR")]
    repo: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) revision: Revision,
}

/// An offline command's view: of one node, or of all.
pub(crate) struct Offline<'a> {
    args: &'a OfflineArgs,
    pub(crate) node: Option<NodeConfig>,
}

/// A source without errors.
pub(crate) struct Read {
    pub(crate) snapshot: Snapshot,
    /// Of the node, where there is one.
    pub(crate) policy: Policy,
    pub(crate) tests: Vec<PolicyTest>,
    /// Warnings.
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// The node's, where there is one.
    tunnels: Tunnels,
}

/// Where a source was named.
#[derive(Clone, Debug, Default)]
pub(crate) struct Named {
    pub(crate) source: Option<PathBuf>,
    pub(crate) revision: Revision,
    pub(crate) repo: Option<PathBuf>,
}

impl Named {
    pub(crate) fn open(&self, config: &NodeConfig) -> anyhow::Result<Opened> {
        open(self.source.as_deref(), &self.revision, self.repo.as_deref(), Some(config))
    }
}

fn open(
    named: Option<&Path>,
    revision: &Revision,
    repo: Option<&Path>,
    config: Option<&NodeConfig>,
) -> anyhow::Result<Opened> {
    match named.map(|named| (named, named.to_str())) {
        Some((named, Some(text))) if !named.exists() && !looks_like_url(text) => {
            at_revision(text, revision, repo).with_context(|| format!("`{text}` is no directory, and not a revision"))
        }
        _ => source::open(named, revision, config),
    }
}

/// A revision that is named by itself, of a repository around a folder.
fn at_revision(text: &str, revision: &Revision, repo: Option<&Path>) -> anyhow::Result<Opened> {
    if revision.rev.is_some() {
        bail!("--ref goes with a directory, a repository or a URL");
    }
    let folder = repo.unwrap_or(Path::new("."));
    // A bare repository has no working tree around a folder.
    let (found, around) = match Repo::open(folder) {
        Ok(found) => (found, None),
        Err(GitError::NotARepository { .. }) => Repo::around(folder)?,
        Err(error) => return Err(error.into()),
    };
    let subpath = revision.subpath.clone().or_else(|| around.clone());
    let snapshot = found.snapshot(&found.resolve(text)?, subpath.as_deref(), &Limits::default())?;
    // Files of the current directory's own place are shown from here.
    let place = if repo.is_none() && subpath == around { None } else { subpath };
    Ok(Opened::Fetched { snapshot, place: place.unwrap_or_default().into(), taking: None })
}

impl OfflineArgs {
    /// The source that `named` is: a directory, a repository at `--ref`, a URL, or a revision; the node's when left out.
    ///
    /// A directory that is called like a branch is the directory: `refs/heads/main` is always the branch.
    pub(crate) fn source(&self, named: Option<&Path>, config: Option<&NodeConfig>) -> anyhow::Result<Opened> {
        open(named, &self.revision, self.repo.as_deref(), config)
    }

    /// What `--from` names: `--ref` is of the other side.
    fn other_side(&self, named: &Path) -> anyhow::Result<Opened> {
        let revision = Revision { rev: None, subpath: self.revision.subpath.clone() };
        open(Some(named), &revision, self.repo.as_deref(), None)
    }

    /// Where a source was named, to open the same again.
    pub(crate) fn named(&self, named: Option<&Path>) -> anyhow::Result<Named> {
        let absolute = |path: &Path| if path.exists() { std::path::absolute(path) } else { Ok(path.to_owned()) };
        Ok(Named {
            source: named.map(absolute).transpose()?,
            revision: self.revision.clone(),
            repo: Some(std::path::absolute(self.repo.as_deref().unwrap_or(Path::new(".")))?),
        })
    }

    /// The node that `--node-config` names, or else `--config`.
    pub(crate) fn node_path<'a>(&'a self, global: &'a Global) -> Option<&'a Path> {
        self.node_config.as_deref().or(global.config.as_deref())
    }

    pub(crate) fn open(&self, global: &Global) -> anyhow::Result<Offline<'_>> {
        let node = self.node_path(global).map(|path| -> anyhow::Result<NodeConfig> {
            let text = std::fs::read(path)
                .with_context(|| format!("the node's configuration `{}` cannot be read", path.display()))?;
            policy::node_config(&text, path).map_err(|diagnostics| {
                let mut texts = report::Texts::default();
                texts.insert(path.display().to_string(), &text);
                note(report::human(&diagnostics, &texts, report::stderr_takes_colour()).trim_end());
                Ended(Exit::Invalid).into()
            })
        });
        Ok(Offline { args: self, node: node.transpose()? })
    }
}

impl<'a> Offline<'a> {
    /// The view of a node whose configuration has been read.
    pub(crate) fn of_node(args: &'a OfflineArgs, node: NodeConfig) -> Self {
        Self { args, node: Some(node) }
    }

    /// Reads and validates what `--from` names; faults end the command once they are shown.
    pub(crate) fn read_other(&self, named: &Path) -> anyhow::Result<Read> {
        self.validate(&self.args.other_side(named)?)
    }

    /// Reads and validates `named`, or the node's own source; faults end the command once they are shown.
    pub(crate) fn read(&self, named: Option<&Path>, global: &Global) -> anyhow::Result<Read> {
        match (named, &self.node) {
            (None, None) => self.validate(&self.args.source(None, Some(&node::load(global)?.config))?),
            (named, node) => self.validate(&self.args.source(named, node.as_ref())?),
        }
    }

    fn validate(&self, source: &Opened) -> anyhow::Result<Read> {
        let snapshot = source.read(&Limits::default())?;
        let validated = policy::validate(&snapshot);
        let mut diagnostics = validated.diagnostics;
        let mut tests = validated.tests;
        let policy = match (validated.policy, &self.node) {
            (Some(policy), Some(node)) => {
                let policy = policy.for_node(&node.labels);
                tests.retain(|test| test.nodes.matches(&node.labels));
                let unknown = policy::check_names(&policy, node);
                let policy = unknown.is_empty().then_some(policy);
                diagnostics.extend(unknown);
                policy
            }
            (policy, _) => policy,
        };
        let Some(policy) = policy else {
            node::show_in(&diagnostics, &snapshot);
            let (errors, _) = report::count(&diagnostics);
            let word = if errors == 1 { "error" } else { "errors" };
            note(&format!("invalid: {errors} {word} in {}", source.place().display()));
            return Err(Ended(Exit::Invalid).into());
        };
        let tunnels = self.node.as_ref().map(|node| node.tunnels.clone()).unwrap_or_default();
        Ok(Read { snapshot, policy, tests, diagnostics, tunnels })
    }

    /// Whose images are looked at: the node's, or one for all; where policies for different nodes write the same prefix, one
    /// for every `nodes` that a policy of these sources has.
    pub(crate) fn views(&self, sources: &[&Read]) -> Vec<Option<Selector>> {
        if self.node.is_some() || !sources.iter().any(|read| read.policy.is_of_several_nodes()) {
            return vec![None];
        }
        let policies = || sources.iter().flat_map(|read| &read.policy.route_policies);
        let mut views: BTreeSet<Selector> = policies().map(|policy| policy.nodes.clone()).collect();
        // Those that no policy names get what is for all.
        views.insert(Selector::default());
        views.retain(|view| policies().any(|policy| policy.nodes.matches(view.labels())));
        views.into_iter().map(Some).collect()
    }

    /// Compiles for one of [`Self::views`], without addresses of a node, ports by name only.
    pub(crate) fn compile(read: &Read, view: Option<&Selector>, ids: &LiveIds) -> anyhow::Result<Image> {
        let of_view = view.map(|view| read.policy.clone().for_node(view.labels()));
        let facts = NodeFacts { tunnels: read.tunnels.clone(), ..NodeFacts::default() };
        compile(of_view.as_ref().unwrap_or(&read.policy), &facts, ids).map_err(|error| {
            note(&format!("error: {error}"));
            Ended(Exit::Invalid).into()
        })
    }

    /// The ports of the node; `None` when it is no particular one.
    pub(crate) fn ports(&self) -> Option<Vec<&str>> {
        self.node.as_ref().map(|node| node.ports.keys().map(String::as_str).collect())
    }
}
