//! Git as a source: commits and trees are read from a repository, nothing is ever checked out.
//!
//! Revision in, [`Snapshot`] out. Objects are read by id: no working tree, filters, hooks or half-written files are on the
//! way, and nothing that the repository's configuration names is run. Symbolic links and submodules inside the policy path
//! become faults of their path.

mod commit;
mod error;
pub mod fetch;
mod mirror;
mod read;
pub mod spec;
mod verify;

use std::path::Path;

pub use commit::Commit;
pub use error::GitError;
pub use mirror::{Update, UpdateError, look, read, read_commit, take, update};
pub use read::{Repo, Resolved};
pub use spec::GitSource;
pub use verify::VerifyError;

use super::{Limits, Snapshot};

/// The files of a local repository, bare or with a working tree, at `rev`, below `subpath`.
///
/// `rev` is whatever [`Repo::resolve`] takes: a branch, a tag, a commit or its beginning, `HEAD~1`, or `semver:RANGE`.
pub fn read_local(repo: &Path, rev: &str, subpath: Option<&str>, limits: &Limits) -> Result<Snapshot, GitError> {
    let repo = Repo::open(repo)?;
    let resolved = repo.resolve(rev)?;
    repo.snapshot(&resolved, subpath, limits)
}
