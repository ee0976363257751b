//! A local repository, read by object id.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use git2::{ErrorClass, ErrorCode, ObjectType, Odb, Oid, Repository, RepositoryOpenFlags};
use semver::{Version, VersionReq};

use super::super::{FileFault, Limits, Snapshot, SourceFile};
use super::commit::Commit;
use super::error::GitError;

/// What [`Repo::resolve`] takes before a range of versions.
const SEMVER: &str = "semver:";

/// Modes of tree entries, as git writes them.
const MODE_DIRECTORY: i32 = 0o040_000;
const MODE_LINK: i32 = 0o120_000;
const MODE_SUBMODULE: i32 = 0o160_000;

/// The longest text of a symbolic link that is shown.
const LINK_BYTES_MAX: usize = 4096;

/// A repository on this machine, opened for reading.
pub struct Repo {
    repository: Repository,
    /// As the caller wrote it, for messages.
    path: PathBuf,
}

/// A commit, and by which name it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub commit: Commit,
    /// Branch or tag; `None` for a commit that was named by its id or as `HEAD~1`.
    pub name: Option<String>,
}

/// A signature and what it was made over.
pub(super) struct Signed {
    pub(super) signature: Vec<u8>,
    pub(super) content: Vec<u8>,
}

impl Resolved {
    /// `main@sha1:…`, `v1.2.0@sha1:…` or `sha1:…`.
    pub fn revision(&self) -> String {
        let id = &self.commit.id;
        match &self.name {
            Some(name) => format!("{name}@sha1:{id}"),
            None => format!("sha1:{id}"),
        }
    }
}

impl std::fmt::Debug for Repo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repo").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Repo {
    /// Opens the repository at `path`: a bare one, one with a working tree, or its `.git`. Folders above are not looked at.
    ///
    /// One that belongs to another user is refused, as git itself refuses it, unless its `safe.directory` says otherwise.
    pub fn open(path: &Path) -> Result<Self, GitError> {
        Self::open_with(path, RepositoryOpenFlags::NO_SEARCH)
    }

    /// The repository whose working tree holds `path`, and where in it `path` lies (`None`: at its root).
    pub fn around(path: &Path) -> Result<(Self, Option<String>), GitError> {
        let repo = Self::open_with(path, RepositoryOpenFlags::empty())?;
        let real = |path: &Path| path.canonicalize().map_err(|_| GitError::NotARepository { path: path.to_owned() });
        let Some(root) = repo.repository.workdir() else { return Ok((repo, None)) };
        let (inside, root) = (real(path)?, real(root)?);
        let below = inside.strip_prefix(&root).ok().and_then(Path::to_str).filter(|below| !below.is_empty());
        let below = below.map(str::to_owned);
        Ok((repo, below))
    }

    /// Where [`Self::open`] finds it again.
    pub fn root(&self) -> PathBuf {
        self.repository.path().to_owned()
    }

    fn open_with(path: &Path, flags: RepositoryOpenFlags) -> Result<Self, GitError> {
        let none: [&Path; 0] = [];
        match Repository::open_ext(path, flags, none) {
            Ok(repository) => Ok(Self { repository, path: path.to_owned() }),
            Err(e) if e.code() == ErrorCode::Owner => Err(GitError::Owner { path: absolute(path) }),
            Err(e) if e.code() == ErrorCode::NotFound => Err(GitError::NotARepository { path: path.to_owned() }),
            Err(cause) => Err(GitError::Unreadable { path: path.to_owned(), cause }),
        }
    }

    /// Finds the commit that `rev` names: a branch, a tag, a commit id or its beginning, an expression such as `HEAD~1`, or
    /// `semver:RANGE` for the tag of the highest version in that range.
    pub fn resolve(&self, rev: &str) -> Result<Resolved, GitError> {
        if let Some(range) = rev.strip_prefix(SEMVER) {
            return self.resolve_version(range);
        }
        let (object, reference) = self.repository.revparse_ext(rev).map_err(|e| match e.code() {
            ErrorCode::NotFound | ErrorCode::UnbornBranch => self.no_revision(rev),
            ErrorCode::Ambiguous => GitError::Ambiguous { rev: rev.to_owned() },
            ErrorCode::InvalidSpec => GitError::BadRevision { rev: rev.to_owned() },
            _ => self.failed(e),
        })?;
        let commit = object.peel_to_commit().map_err(|_| GitError::NotACommit {
            rev: rev.to_owned(),
            kind: object.kind().map_or("nothing known", |kind| kind.str()).to_owned(),
        })?;
        let name = reference.as_ref().and_then(|r| r.name().ok()).map(short_name);
        Ok(Resolved { commit: Commit::of(&commit), name })
    }

    /// Finds the commit of the reference with exactly this full name, such as `refs/heads/main`.
    pub fn resolve_reference(&self, name: &str) -> Result<Resolved, GitError> {
        let reference = self.repository.find_reference(name).map_err(|e| match e.code() {
            ErrorCode::NotFound => self.no_revision(name),
            ErrorCode::InvalidSpec => GitError::BadRevision { rev: name.to_owned() },
            _ => self.failed(e),
        })?;
        let object = reference.peel(ObjectType::Any).map_err(|e| self.failed(e))?;
        let commit = object.peel_to_commit().map_err(|_| GitError::NotACommit {
            rev: name.to_owned(),
            kind: object.kind().map_or("nothing known", |kind| kind.str()).to_owned(),
        })?;
        Ok(Resolved { commit: Commit::of(&commit), name: Some(short_name(name)) })
    }

    fn resolve_version(&self, range: &str) -> Result<Resolved, GitError> {
        let tags = self.repository.tag_names(None).map_err(|e| self.failed(e))?;
        let tags = tags.iter().filter_map(|name| name.ok().flatten());
        match highest_version(range, tags)? {
            Some(tag) => self.resolve_reference(&format!("refs/tags/{tag}")),
            None => Err(GitError::NoVersion { range: range.trim().to_owned(), path: self.path.clone() }),
        }
    }

    /// Every file below `subpath` of a commit that is not hidden, by the rules of a directory source: names that begin with
    /// a dot are left out, and a file above its limit is recorded and not read.
    pub fn snapshot(&self, resolved: &Resolved, subpath: Option<&str>, limits: &Limits) -> Result<Snapshot, GitError> {
        let odb = self.repository.odb().map_err(|e| self.failed(e))?;
        let tree = self.tree(resolved, subpath)?;
        let place = match subpath {
            Some(subpath) => format!("`{subpath}` of {}", resolved.revision()),
            None => resolved.revision(),
        };
        let mut walk =
            Walk { repo: self, odb: &odb, limits, place: &place, entries: 0, bytes: 0, found: BTreeMap::new() };
        walk.tree(tree, "", 0)?;
        if walk.found.is_empty() {
            return Err(GitError::Empty { place });
        }
        let files = walk.found;
        let commit = Oid::from_str(&resolved.commit.id).and_then(|id| self.repository.find_commit(id));
        let message = commit.map_err(|e| self.failed(e))?.message_bytes().to_vec();
        let message = Some(String::from_utf8_lossy(&message).into_owned());
        Ok(Snapshot { revision: resolved.revision(), files, message })
    }

    /// The tree at `subpath`. Links and submodules on the way are no directories.
    fn tree(&self, resolved: &Resolved, subpath: Option<&str>) -> Result<Oid, GitError> {
        let commit = Oid::from_str(&resolved.commit.id).map_err(|e| self.failed(e))?;
        let mut tree = self.repository.find_commit(commit).and_then(|c| c.tree()).map_err(|e| self.failed(e))?;
        let Some(subpath) = subpath else { return Ok(tree.id()) };
        let mut walked = String::new();
        for part in parts(subpath)? {
            walked.push_str(if walked.is_empty() { "" } else { "/" });
            walked.push_str(part);
            let Some((mode, id)) = tree.get_name(part).map(|entry| (entry.filemode(), entry.id())) else {
                return Err(GitError::NoSubpath { subpath: subpath.to_owned(), commit: resolved.commit.id.clone() });
            };
            let kind = match mode {
                MODE_DIRECTORY => {
                    tree = self.repository.find_tree(id).map_err(|e| self.failed(e))?;
                    continue;
                }
                MODE_LINK => "symbolic link",
                MODE_SUBMODULE => "submodule",
                _ => "file",
            };
            return Err(GitError::NotADirectory { path: walked, commit: resolved.commit.id.clone(), kind });
        }
        Ok(tree.id())
    }

    /// Reads a commit's tree, so that what is broken shows before it is relied on.
    pub(super) fn check(&self, resolved: &Resolved) -> Result<(), GitError> {
        self.tree(resolved, None).map(drop)
    }

    /// Whether the history of commit `now` has the commit `before`; false for one that is not here.
    pub(super) fn contains(&self, now: &str, before: &str) -> bool {
        let (Ok(now), Ok(before)) = (Oid::from_str(now), Oid::from_str(before)) else { return false };
        now == before || self.repository.graph_descendant_of(now, before).unwrap_or(false)
    }

    /// The signature of a commit and what it was made over; `None` without one, or of a commit that no person would read.
    pub(super) fn signed_commit(&self, commit: &str, bytes_max: usize) -> Result<Option<Signed>, git2::Error> {
        let id = Oid::from_str(commit)?;
        if self.repository.odb()?.read_header(id)?.0 > bytes_max {
            return Ok(None);
        }
        match self.repository.extract_signature(&id, None) {
            Ok((signature, content)) => Ok(Some(Signed { signature: signature.to_vec(), content: content.to_vec() })),
            Err(e) if e.code() == ErrorCode::NotFound && e.class() == ErrorClass::Object => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The bytes of the tag object that a reference names; `None` where it names a commit itself.
    pub(super) fn tag_object(&self, reference: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, git2::Error> {
        let id = self.repository.refname_to_id(reference)?;
        let odb = self.repository.odb()?;
        let (size, kind) = odb.read_header(id)?;
        if kind != ObjectType::Tag || size > bytes_max {
            return Ok(None);
        }
        Ok(Some(odb.read(id)?.data().to_vec()))
    }

    /// The commits that the history of `now` has and that of `before` has not; `None` when they are more than `limit`.
    pub(super) fn between(&self, before: &str, now: &str, limit: usize) -> Result<Option<Vec<String>>, git2::Error> {
        let mut walk = self.repository.revwalk()?;
        walk.push(Oid::from_str(now)?)?;
        let before = Oid::from_str(before)?;
        // One that was lost with a damaged mirror hides nothing: then all of them are new.
        if self.repository.find_commit(before).is_ok() {
            walk.hide(before)?;
        }
        let mut commits = Vec::new();
        for commit in walk {
            if commits.len() == limit {
                return Ok(None);
            }
            commits.push(commit?.to_string());
        }
        Ok(Some(commits))
    }

    /// Names a commit, so that it stays.
    pub(super) fn keep(&self, name: &str, commit: &str, why: &str) -> Result<(), git2::Error> {
        let id = Oid::from_str(commit)?;
        self.repository.find_commit(id)?;
        self.repository.reference(name, id, true, why).map(drop)
    }

    /// An error in the middle of reading: an object that another one promises is missing or broken, or the disk failed.
    fn failed(&self, cause: git2::Error) -> GitError {
        let path = self.path.clone();
        let damaged = matches!(
            cause.class(),
            ErrorClass::Odb | ErrorClass::Zlib | ErrorClass::Object | ErrorClass::Tree | ErrorClass::Indexer
        );
        if damaged || matches!(cause.code(), ErrorCode::HashsumMismatch | ErrorCode::NotFound) {
            GitError::Damaged { path, cause }
        } else {
            GitError::Unreadable { path, cause }
        }
    }

    fn no_revision(&self, rev: &str) -> GitError {
        GitError::NoRevision { rev: rev.to_owned(), path: self.path.clone() }
    }
}

struct Walk<'a> {
    repo: &'a Repo,
    odb: &'a Odb<'a>,
    limits: &'a Limits,
    /// For messages.
    place: &'a str,
    entries: usize,
    bytes: u64,
    found: BTreeMap<String, SourceFile>,
}

impl Walk<'_> {
    fn tree(&mut self, id: Oid, prefix: &str, depth: usize) -> Result<(), GitError> {
        if depth > self.limits.depth_max {
            return Err(self.too_large("levels of directories", self.limits.depth_max));
        }
        let tree = self.repo.repository.find_tree(id).map_err(|e| self.repo.failed(e))?;
        for entry in &tree {
            self.entries += 1;
            if self.entries > self.limits.entries_max {
                return Err(self.too_large("directory entries", self.limits.entries_max));
            }
            if entry.name_bytes().starts_with(b".") {
                continue;
            }
            let shown = format!("{prefix}{}", String::from_utf8_lossy(entry.name_bytes()));
            let file = match (entry.name(), entry.filemode()) {
                (Err(_), _) => SourceFile::Fault(FileFault::Name),
                (_, MODE_DIRECTORY) => {
                    self.tree(entry.id(), &format!("{shown}/"), depth + 1)?;
                    continue;
                }
                (_, MODE_LINK) => SourceFile::Fault(FileFault::Link { target: self.link(entry.id())? }),
                (_, MODE_SUBMODULE) => SourceFile::Fault(FileFault::Submodule { commit: entry.id().to_string() }),
                _ => self.blob(entry.id(), &shown)?,
            };
            self.found.insert(shown, file);
            if self.found.len() > self.limits.files_max {
                return Err(self.too_large("files", self.limits.files_max));
            }
        }
        Ok(())
    }

    /// Asks for the size before the bytes: the largest blob costs no memory unless it is within its limit.
    fn blob(&mut self, id: Oid, shown: &str) -> Result<SourceFile, GitError> {
        let (size, kind) = self.odb.read_header(id).map_err(|e| self.repo.failed(e))?;
        let (size_bytes, limit_bytes) = (size as u64, self.limits.bytes_max(shown));
        if size_bytes > limit_bytes {
            return Ok(SourceFile::Fault(FileFault::Oversized { size_bytes, limit_bytes }));
        }
        if kind != ObjectType::Blob {
            return Ok(SourceFile::Fault(FileFault::NotRegular));
        }
        self.bytes += size_bytes;
        if self.bytes > self.limits.total_bytes_max {
            let (place, limit) = (self.place.to_owned(), self.limits.total_bytes_max);
            return Err(GitError::TooLarge { place, what: "bytes in its files", limit });
        }
        let object = self.odb.read(id).map_err(|e| self.repo.failed(e))?;
        Ok(SourceFile::Content(object.data().into()))
    }

    /// Where a link leads, for the message.
    fn link(&self, id: Oid) -> Result<String, GitError> {
        let (size, _) = self.odb.read_header(id).map_err(|e| self.repo.failed(e))?;
        if size > LINK_BYTES_MAX {
            return Ok("a place with a very long name".to_owned());
        }
        let object = self.odb.read(id).map_err(|e| self.repo.failed(e))?;
        Ok(super::commit::printable(object.data()))
    }

    fn too_large(&self, what: &'static str, limit: usize) -> GitError {
        GitError::TooLarge { place: self.place.to_owned(), what, limit: limit as u64 }
    }
}

/// The parts of a subpath; git itself refuses trees with `.`, `..` and `.git`.
fn parts(subpath: &str) -> Result<Vec<&str>, GitError> {
    let parts: Vec<&str> = subpath.trim_end_matches('/').split('/').collect();
    if parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
        return Err(GitError::BadSubpath { subpath: subpath.to_owned() });
    }
    Ok(parts)
}

/// The tag of the highest version within `range`, in the notation of Cargo: `1.2` means `^1.2`. A tag may begin with `v`.
/// Of two tags for one version (`v1.0.0`, `1.0.0`) the first in byte order is taken.
pub(super) fn highest_version<'t>(
    range: &str,
    tags: impl Iterator<Item = &'t str>,
) -> Result<Option<&'t str>, GitError> {
    let wanted = VersionReq::parse(range.trim())
        .map_err(|cause| GitError::BadRange { range: range.trim().to_owned(), cause })?;
    let version = |tag: &str| Version::parse(tag.strip_prefix('v').unwrap_or(tag)).ok();
    let versions = tags.filter_map(|tag| version(tag).filter(|v| wanted.matches(v)).map(|v| (v, tag)));
    Ok(versions.max_by(|(a, a_tag), (b, b_tag)| a.cmp(b).then(b_tag.cmp(a_tag))).map(|(_, tag)| tag))
}

/// `main` for `refs/heads/main`.
fn short_name(name: &str) -> String {
    let kinds = ["refs/heads/", "refs/tags/", "refs/remotes/"];
    kinds.iter().find_map(|kind| name.strip_prefix(kind)).unwrap_or(name).to_owned()
}

fn absolute(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests;
