//! Why a repository gave no snapshot.

use std::path::PathBuf;

/// Why a repository gave no snapshot. The repository was only read.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error("`{}` is not a git repository", path.display())]
    NotARepository { path: PathBuf },
    #[error(
        "the repository `{}` belongs to another user, and git does not read those unasked; if you trust it, say \
         `git config --global --add safe.directory {}` (or --system, for a daemon)",
        path.display(), path.display()
    )]
    Owner { path: PathBuf },
    #[error("`{rev}` names nothing in the repository `{}`", path.display())]
    NoRevision { rev: String, path: PathBuf },
    #[error("`{rev}` is the beginning of more than one object id; write more of it")]
    Ambiguous { rev: String },
    #[error("`{rev}` is no name of a revision")]
    BadRevision { rev: String },
    #[error("`{rev}` is a {kind}, not a commit")]
    NotACommit { rev: String, kind: String },
    #[error("`{range}` is not a range of versions such as ^1.2, ~1.4 or `>=2, <3`")]
    BadRange {
        range: String,
        #[source]
        cause: semver::Error,
    },
    #[error("no tag of the repository `{}` is a version in the range `{range}`", path.display())]
    NoVersion { range: String, path: PathBuf },
    #[error("`{subpath}` is not a path inside a repository: write it relative, with `/`, and without `.` and `..`")]
    BadSubpath { subpath: String },
    #[error("the commit {commit} has no directory `{subpath}`; a lost source never means \"remove every rule\"")]
    NoSubpath { subpath: String, commit: String },
    #[error("`{path}` in the commit {commit} is a {kind}, not a directory")]
    NotADirectory { path: String, commit: String, kind: &'static str },
    #[error("{place} holds no file; that never means \"remove every rule\"")]
    Empty { place: String },
    #[error("{place} has more than {limit} {what}")]
    TooLarge { place: String, what: &'static str, limit: u64 },
    #[error("nothing was fetched from {url} yet")]
    NothingFetched { url: String },
    #[error("the commit {commit} of {url} is no longer on this machine; it will be fetched again")]
    Lost { url: String, commit: String },
    #[error("the repository `{}` is damaged", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        cause: git2::Error,
    },
    #[error("the repository `{}` cannot be read", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        cause: git2::Error,
    },
}
