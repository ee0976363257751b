//! Sources: where policy documents come from; one read gives one immutable [`Snapshot`].
//!
//! Path in, `Snapshot` out. A snapshot is pure data: whoever holds one needs no file system, and the same files give
//! the same revision wherever they lie.

mod directory;
pub mod git;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

pub use directory::read_directory;
use git::GitSource;

/// Where policies come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Directory(PathBuf),
    /// A revision of a repository on this machine.
    Local {
        repo: PathBuf,
        rev: String,
        subpath: Option<String>,
    },
    /// A repository that is fetched; what was taken of it is read.
    Git(Box<GitSource>),
}

/// What a snapshot can be read of.
pub trait ReadSource {
    fn read(&self, limits: &Limits) -> Result<Snapshot, SourceError>;
}

impl ReadSource for Source {
    fn read(&self, limits: &Limits) -> Result<Snapshot, SourceError> {
        match self {
            Self::Directory(path) => read_directory(path, limits),
            Self::Local { repo, rev, subpath } => Ok(git::read_local(repo, rev, subpath.as_deref(), limits)?),
            Self::Git(source) => Ok(git::read(source, limits)?),
        }
    }
}

impl ReadSource for Path {
    fn read(&self, limits: &Limits) -> Result<Snapshot, SourceError> {
        read_directory(self, limits)
    }
}

impl ReadSource for PathBuf {
    fn read(&self, limits: &Limits) -> Result<Snapshot, SourceError> {
        read_directory(self, limits)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::Local { repo, rev, .. } => write!(f, "{rev} of {}", repo.display()),
            Self::Git(source) => write!(f, "{} of {}", source.reference, source.url),
        }
    }
}

impl Source {
    /// The place that the source's files are named from, for messages.
    pub fn place(&self) -> PathBuf {
        match self {
            Self::Directory(path) => path.clone(),
            Self::Local { subpath, .. } => subpath.as_deref().unwrap_or(".").into(),
            Self::Git(source) => source.subpath.as_deref().unwrap_or(".").into(),
        }
    }
}

/// The files of one source state, by source-relative path with `/` between the parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// `dir@sha256:…` over path and content of every file; independent of the order in which they were read. For git
    /// `main@sha1:…`, `v1.2.0@sha1:…` or `sha1:…`: name and commit.
    pub revision: String,
    pub files: BTreeMap<String, SourceFile>,
    /// What the author of the commit wrote; `None` for a directory.
    pub message: Option<String>,
}

/// The bytes of one file, or why they are not here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceFile {
    Content(Arc<[u8]>),
    Fault(FileFault),
}

/// Why one file of a source could not be taken; the others are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileFault {
    #[error("the file has {size_bytes} bytes; the limit is {limit_bytes}")]
    Oversized { size_bytes: u64, limit_bytes: u64 },
    #[error("the symbolic link leaves the source: it leads to `{target}`")]
    LeavesSource { target: String },
    #[error("symbolic links are not followed in git sources; this one leads to `{target}`")]
    Link { target: String },
    #[error("submodules are not fetched; this one stands at the commit {commit}")]
    Submodule { commit: String },
    #[error("the symbolic link leads back to a directory that contains it")]
    Cycle,
    #[error("the file cannot be read: {reason}")]
    Unreadable { reason: String },
    #[error("this is neither a regular file nor a directory")]
    NotRegular,
    #[error("the name is not valid UTF-8")]
    Name,
}

impl FileFault {
    /// Whether files that a reviewer would expect are not among the source's: a fault even where nobody names the path.
    pub fn hides_files(&self) -> bool {
        matches!(self, Self::LeavesSource { .. } | Self::Cycle | Self::Link { .. } | Self::Submodule { .. })
    }
}

/// Why a source gave no snapshot at all.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("the source directory `{path}` does not exist")]
    Missing { path: PathBuf },
    #[error("the source `{path}` is not a directory")]
    NotADirectory { path: PathBuf },
    #[error("`{path}` cannot be read")]
    Unreadable {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("the source directory `{path}` holds no file; that never means \"remove every rule\"")]
    Empty { path: PathBuf },
    #[error("the source `{path}` has more than {limit} {what}")]
    TooLarge { path: PathBuf, what: &'static str, limit: u64 },
    #[error("the files of `{path}` kept changing while they were read")]
    Changing { path: PathBuf },
    #[error(transparent)]
    Git(#[from] git::GitError),
}

/// How much of a source is read at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub files_max: usize,
    /// Directory entries looked at, hidden ones included.
    pub entries_max: usize,
    /// Directories below the source.
    pub depth_max: usize,
    /// Size of one `.yaml` or `.yml` file.
    pub yaml_bytes_max: u64,
    /// Size of one other file, such as a prefix list.
    pub file_bytes_max: u64,
    pub total_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            files_max: 65_535,
            entries_max: 262_144,
            depth_max: 16,
            yaml_bytes_max: 4 << 20,
            file_bytes_max: 128 << 20,
            total_bytes_max: 512 << 20,
        }
    }
}

impl Limits {
    fn bytes_max(&self, path: &str) -> u64 {
        if is_yaml(path) { self.yaml_bytes_max } else { self.file_bytes_max }
    }
}

/// Whether `path` is named like a policy document.
pub fn is_yaml(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.rsplit_once('.')
        .is_some_and(|(_, ending)| ending.eq_ignore_ascii_case("yaml") || ending.eq_ignore_ascii_case("yml"))
}

impl Snapshot {
    /// A snapshot of `files`, with its revision.
    pub fn of_directory(files: BTreeMap<String, SourceFile>) -> Self {
        let mut hash = Sha256::new();
        for (path, file) in &files {
            // Lengths before contents: no two different sets of files give the same bytes to the hash.
            hash.update((path.len() as u64).to_le_bytes());
            hash.update(path);
            match file {
                SourceFile::Content(bytes) => {
                    hash.update([0]);
                    hash.update((bytes.len() as u64).to_le_bytes());
                    hash.update(bytes);
                }
                SourceFile::Fault(fault) => {
                    let text = fault.to_string();
                    hash.update([1]);
                    hash.update((text.len() as u64).to_le_bytes());
                    hash.update(text);
                }
            }
        }
        let mut revision = String::from("dir@sha256:");
        for byte in hash.finalize() {
            revision.push(char::from(HEX[usize::from(byte >> 4)]));
            revision.push(char::from(HEX[usize::from(byte & 15)]));
        }
        Self { revision, files, message: None }
    }

    /// The bytes of `path`, when the snapshot has them.
    pub fn content(&self, path: &str) -> Option<&[u8]> {
        match self.files.get(path)? {
            SourceFile::Content(bytes) => Some(bytes),
            SourceFile::Fault(_) => None,
        }
    }
}

const HEX: [u8; 16] = *b"0123456789abcdef";
