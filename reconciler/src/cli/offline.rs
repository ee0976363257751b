//! What offline commands share: a source that is a directory or a revision of a repo, seen by one node or by all.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::{Ended, Exit, Global, node, note, report};
use crate::compile::{Image, LiveIds, NodeFacts, compile};
use crate::policy::{self, Diagnostic, NodeConfig, Policy, PolicyTest, Selector};
use crate::source::git::{GitError, Repo};
use crate::source::{self, Limits, Snapshot};

/// Where sources are looked for, and for whom they are read.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct OfflineArgs {
    /// Show what one node gets: its configuration chooses policies by its labels, and its ports are checked
    #[arg(long, value_name = "FILE")]
    node_config: Option<PathBuf>,
    /// The git repository of revisions; that of the current directory when left out
    #[arg(long, value_name = "DIR")]
    repo: Option<PathBuf>,
    /// Folder of the policies in a revision, from the top of the repository; the current directory's own place in it when
    /// left out
    #[arg(long, value_name = "PATH")]
    subpath: Option<String>,
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
}

impl OfflineArgs {
    /// The files of `named`, a directory or else a revision; and what their paths are shown below.
    ///
    /// A directory that is called like a branch is the directory: `refs/heads/main` is always the branch.
    pub(crate) fn snapshot(&self, named: &Path) -> anyhow::Result<(Snapshot, String)> {
        if named.exists() {
            return Ok((source::read_directory(named, &Limits::default())?, named.display().to_string()));
        }
        let revision = named.to_str().context("a revision is UTF-8 text")?;
        self.revision(revision).with_context(|| format!("`{revision}` is no directory, and not a revision"))
    }

    fn revision(&self, revision: &str) -> anyhow::Result<(Snapshot, String)> {
        let folder = self.repo.as_deref().unwrap_or(Path::new("."));
        // A bare repository has no working tree around a folder.
        let (repo, place) = match Repo::open(folder) {
            Ok(repo) => (repo, None),
            Err(GitError::NotARepository { .. }) => Repo::around(folder)?,
            Err(error) => return Err(error.into()),
        };
        let subpath = self.subpath.clone().or_else(|| place.clone());
        let snapshot = repo.snapshot(&repo.resolve(revision)?, subpath.as_deref(), &Limits::default())?;
        // Files of the current directory's own place are shown from here.
        let shown = if self.repo.is_none() && subpath == place { None } else { subpath };
        Ok((snapshot, shown.unwrap_or_default()))
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

    /// Reads and validates `named`; faults end the command once they are shown.
    pub(crate) fn read(&self, named: &Path) -> anyhow::Result<Read> {
        let (snapshot, _) = self.args.snapshot(named)?;
        let validated = policy::validate(&snapshot);
        let mut diagnostics = validated.diagnostics;
        let mut tests = validated.tests;
        let policy = match (validated.policy, &self.node) {
            (Some(policy), Some(node)) => {
                let policy = policy.for_node(&node.labels);
                tests.retain(|test| test.nodes.matches(&node.labels));
                let ports: Vec<&str> = node.ports.keys().map(String::as_str).collect();
                let unknown = policy::check_ports(&policy, &ports);
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
            note(&format!("invalid: {errors} {word} in {}", named.display()));
            return Err(Ended(Exit::Invalid).into());
        };
        Ok(Read { snapshot, policy, tests, diagnostics })
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
    pub(crate) fn compile(&self, read: &Read, view: Option<&Selector>, ids: &LiveIds) -> anyhow::Result<Image> {
        let of_view = view.map(|view| read.policy.clone().for_node(view.labels()));
        compile(of_view.as_ref().unwrap_or(&read.policy), &NodeFacts::default(), ids).map_err(|error| {
            note(&format!("error: {error}"));
            Ended(Exit::Invalid).into()
        })
    }

    /// The ports of the node; `None` when it is no particular one.
    pub(crate) fn ports(&self) -> Option<Vec<&str>> {
        self.node.as_ref().map(|node| node.ports.keys().map(String::as_str).collect())
    }
}
