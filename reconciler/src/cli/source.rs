//! SOURCE on a command line: a directory, a local repository at a revision, or a repository that is fetched.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::note;
use crate::policy::NodeConfig;
use crate::source::git::fetch::Stop;
use crate::source::git::spec::{Backend, Credentials, ForcePush, GitSource, Reference, Url, looks_like_url};
use crate::source::git::{self, Repo};
use crate::source::{Limits, ReadSource, Snapshot, Source, SourceError};

/// Limits of a fetch that no configuration describes.
const TIMEOUT: Duration = Duration::from_mins(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const TRANSFER_BYTES_MAX: u64 = 1 << 30;

/// Which revision of a repository, and which folder of it.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Revision {
    /// SOURCE is a git repository, or a folder of one, at this revision: a branch, a tag, a commit, HEAD~1, or semver:RANGE
    #[arg(long = "ref", value_name = "REV")]
    pub(crate) rev: Option<String>,
    /// The folder of the repository that holds the policies
    #[arg(long, value_name = "PATH")]
    pub(crate) subpath: Option<String>,
}

/// A source that a command reads, once for all that it does with it.
#[derive(Debug)]
pub(crate) enum Opened {
    /// Read where it lies.
    Here(Source),
    /// Fetched by this command.
    Fetched { snapshot: Snapshot, place: PathBuf, taking: Option<Box<Taking>> },
}

/// A commit that was looked at and is the source's once it has been applied.
#[derive(Debug)]
pub(crate) struct Taking {
    source: GitSource,
    update: git::Update,
}

impl ReadSource for Opened {
    fn read(&self, limits: &Limits) -> Result<Snapshot, SourceError> {
        match self {
            Self::Here(source) => source.read(limits),
            Self::Fetched { snapshot, .. } => Ok(snapshot.clone()),
        }
    }
}

impl Opened {
    /// The place that files are named from.
    pub(crate) fn place(&self) -> PathBuf {
        match self {
            Self::Here(source) => source.place(),
            Self::Fetched { place, .. } => place.clone(),
        }
    }

    /// Notes that the source was applied as it was read here.
    pub(crate) fn applied(&self) -> anyhow::Result<()> {
        if let Self::Fetched { taking: Some(taking), .. } = self {
            git::take(&taking.source, &taking.update)?;
        }
        Ok(())
    }
}

/// The source that is named, else the node's; a repository is fetched now.
pub(crate) fn open(named: Option<&Path>, revision: &Revision, config: Option<&NodeConfig>) -> anyhow::Result<Opened> {
    match (named, config) {
        (Some(named), _) => open_named(named, revision, config),
        (None, Some(config)) => match &config.source {
            Source::Git(source) => {
                let source = match &revision.rev {
                    Some(rev) => GitSource {
                        reference: reference(rev),
                        subpath: revision.subpath.clone().or_else(|| source.subpath.clone()),
                        ..(**source).clone()
                    },
                    None => (**source).clone(),
                };
                fetch(source, revision.rev.is_none())
            }
            Source::Directory(directory) if revision.rev.is_some() => open_named(directory, revision, None),
            here @ (Source::Directory(_) | Source::Local { .. }) => Ok(Opened::Here(here.clone())),
        },
        (None, None) => bail!("name a SOURCE"),
    }
}

fn open_named(named: &Path, revision: &Revision, config: Option<&NodeConfig>) -> anyhow::Result<Opened> {
    let text = named.to_str().filter(|text| looks_like_url(text) && !named.exists());
    if let Some(text) = text {
        let url = Url::parse(text, Path::new(""))?;
        let Some(rev) = &revision.rev else {
            bail!("{url} is a repository: say with --ref which branch, tag or commit of it");
        };
        return fetch_apart(url, rev, revision.subpath.clone(), config);
    }
    match &revision.rev {
        None => Ok(Opened::Here(Source::Directory(named.to_owned()))),
        Some(rev) => {
            let (repo, below) = Repo::around(named)?;
            let subpath = match (below, &revision.subpath) {
                (Some(below), Some(subpath)) => Some(format!("{below}/{subpath}")),
                (below, subpath) => below.or_else(|| subpath.clone()),
            };
            Ok(Opened::Here(Source::Local { repo: repo.root(), rev: rev.clone(), subpath }))
        }
    }
}

/// What `--ref` means to a server: a range, a commit by its whole id, `tag:NAME`, else a branch.
fn reference(rev: &str) -> Reference {
    if let Some(range) = rev.strip_prefix("semver:") {
        return Reference::Semver(range.to_owned());
    }
    if let Some(tag) = rev.strip_prefix("tag:").or_else(|| rev.strip_prefix("refs/tags/")) {
        return Reference::Tag(tag.to_owned());
    }
    if rev.len() == 40 && rev.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Reference::Commit(rev.to_ascii_lowercase());
    }
    Reference::Branch(rev.strip_prefix("refs/heads/").unwrap_or(rev).to_owned())
}

/// Fetches a source of the configuration into its mirror. Nothing is taken yet: `plan` changes nothing.
fn fetch(source: GitSource, configured: bool) -> anyhow::Result<Opened> {
    let update = git::look(&source, &Stop::default())?;
    if let Some(warning) = &update.warning {
        note(&format!("warning: {warning}"));
    }
    let snapshot = git::read_commit(&source, &update, &Limits::default())?;
    let place = source.subpath.as_deref().unwrap_or(".").into();
    Ok(Opened::Fetched { snapshot, place, taking: configured.then(|| Box::new(Taking { source, update })) })
}

/// Fetches a URL of the command line into a folder of its own, which is gone afterwards.
fn fetch_apart(url: Url, rev: &str, subpath: Option<String>, config: Option<&NodeConfig>) -> anyhow::Result<Opened> {
    // Credentials only go where the configuration sends them.
    let configured = match config.map(|config| &config.source) {
        Some(Source::Git(source)) if source.url == url => Some((**source).clone()),
        _ => None,
    };
    let store = std::env::temp_dir().join(format!("wayleave-{}", std::process::id()));
    fs::DirBuilder::new().mode(0o700).create(&store).with_context(|| format!("making {}", store.display()))?;
    let base = configured.unwrap_or_else(|| GitSource {
        url,
        reference: reference(rev),
        subpath: None,
        interval: TIMEOUT,
        timeout: TIMEOUT,
        connect_timeout: CONNECT_TIMEOUT,
        transfer_bytes_max: TRANSFER_BYTES_MAX,
        credentials: Credentials::default(),
        backend: Backend::default(),
        force_push: ForcePush::Allow,
        verify: None,
        store: PathBuf::new(),
    });
    let opened = fetch(GitSource { reference: reference(rev), subpath, store: store.clone(), ..base }, false);
    let _ = fs::remove_dir_all(&store);
    opened
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_for_a_server_is_a_branch_unless_it_says_otherwise() {
        let check = |rev: &str, expected: &str| assert_eq!(reference(rev).to_string(), expected);
        check("main", "branch main");
        check("refs/heads/main", "branch main");
        check("tag:v1.0.0", "tag v1.0.0");
        check("refs/tags/v1.0.0", "tag v1.0.0");
        check("semver:^1", "semver ^1");
        check("0123456789012345678901234567890123456789", "commit 0123456789012345678901234567890123456789");
        check("0123456", "branch 0123456");
    }
}
