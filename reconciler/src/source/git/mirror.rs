//! The mirror of a followed repository: what was fetched, and which commit of it was taken.
//!
//! Beside the bare repository lies a record of the commit that was taken last. It outlives the repository, which is thrown
//! away when it is damaged and fetched anew. Only a commit that passed every rule is recorded, and only the recorded one is
//! read: a fetch that fails or is refused changes nothing for the reader.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use super::super::{Limits, Snapshot};
use super::commit::Commit;
use super::error::GitError;
use super::fetch::{self, FetchError, Request, Stop, mirrored};
use super::read::{Repo, Resolved, highest_version};
use super::spec::{ForcePush, GitSource, Reference};
use super::verify::{self, VerifyError};

/// How often a lock that another process holds is tried.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// What an update found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    pub revision: String,
    /// Branch or tag.
    pub name: Option<String>,
    pub commit: Commit,
    /// Whether another commit was taken before.
    pub changed: bool,
    /// A history that was rewritten, and taken all the same.
    pub warning: Option<String>,
}

/// Why the commit that was taken before stays.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    #[error("the fetch failed")]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Git(#[from] GitError),
    #[error(
        "the history of {what} was rewritten: {new} does not contain {old}, which is kept as {kept}; `forcePush: allow` takes it"
    )]
    Rewritten { what: String, old: String, new: String, kept: String },
    #[error("the signatures do not allow it")]
    Verify(#[from] VerifyError),
    #[error("the state of the source in {} cannot be used", path.display())]
    State {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("another process has been updating {} for too long", path.display())]
    Busy { path: PathBuf },
}

impl UpdateError {
    /// Whether the server answered well, and what it has is refused until it has something else.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Rewritten { .. } | Self::Verify(_))
    }

    /// One word for machines.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Fetch(error) => error.kind.word(),
            Self::Git(GitError::Damaged { .. }) => "damaged",
            Self::Git(_) | Self::State { .. } | Self::Busy { .. } => "local",
            Self::Rewritten { .. } => "rewritten",
            Self::Verify(_) => "signature",
        }
    }
}

/// The commit that was taken, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Taken {
    /// What was followed then.
    reference: String,
    name: Option<String>,
    commit: String,
    /// Whether its signatures were checked.
    verified: bool,
}

/// Asks the server, fetches what is new, and takes it when every rule allows.
pub fn update(source: &GitSource, stop: &Stop) -> Result<Update, UpdateError> {
    let update = look(source, stop)?;
    take(source, &update)?;
    Ok(update)
}

/// Asks the server and fetches what is new, by every rule, without taking it.
pub fn look(source: &GitSource, stop: &Stop) -> Result<Update, UpdateError> {
    let _lock = lock(source)?;
    match attempt(source, stop) {
        Err(UpdateError::Git(GitError::Damaged { cause, .. })) => {
            tracing::warn!(%cause, "the mirror is damaged; it is thrown away and fetched anew");
            discard(source).map_err(|cause| UpdateError::State { path: source.mirror(), cause })?;
            attempt(source, stop)
        }
        result => result,
    }
}

fn attempt(source: &GitSource, stop: &Stop) -> Result<Update, UpdateError> {
    let fetched = fetch::run(&Request::new(source), stop)?;
    let repo = Repo::open(&source.mirror())?;
    let resolved = match (&fetched, &source.reference) {
        (Some(name), _) => {
            let short = name.strip_prefix("refs/heads/").or_else(|| name.strip_prefix("refs/tags/")).unwrap_or(name);
            Resolved { name: Some(short.to_owned()), ..repo.resolve_reference(&mirrored(name))? }
        }
        (None, Reference::Commit(id)) => Resolved { name: None, ..repo.resolve(id)? },
        (None, _) => return Err(FetchError::local("the fetch named no reference").into()),
    };
    let before = taken(source)?;
    let same =
        before.as_ref().is_some_and(|before| before.commit == resolved.commit.id && before.name == resolved.name);
    let followed = before.as_ref().filter(|before| before.reference == source.reference.to_string());
    if let Some(verify) = &source.verify
        && !(same && followed.is_some_and(|before| before.verified))
    {
        let last = followed.map(|before| before.commit.as_str());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let tag = fetched.as_deref().filter(|name| name.starts_with("refs/tags/")).map(mirrored);
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        verify::check(&repo, verify, &resolved, last, tag.as_deref(), now)?;
        if let Some(before) = followed
            && !verify.allow_rollback
            && goes_back(&repo, source, before, &resolved)
        {
            let (object, last) = (format!("the commit {}", resolved.commit.id), before.commit.clone());
            return Err(VerifyError::Rollback { object, last }.into());
        }
    }
    let mut warning = None;
    if let Some(before) = before.as_ref().filter(|before| before.commit != resolved.commit.id)
        && is_rewritten(&repo, source, before, &resolved)
    {
        let kept = keep(&repo, &before.commit);
        let what = resolved.name.clone().unwrap_or_default();
        let (old, new) = (before.commit.clone(), resolved.commit.id.clone());
        match source.force_push {
            ForcePush::Refuse => return Err(UpdateError::Rewritten { what, old, new, kept }),
            ForcePush::Warn => {
                warning =
                    Some(format!("the history of {what} was rewritten: {new} does not contain {old}, kept as {kept}"));
            }
            ForcePush::Allow => {}
        }
    }
    // What cannot be read is not taken.
    repo.check(&resolved)?;
    Ok(Update { revision: resolved.revision(), name: resolved.name, commit: resolved.commit, changed: !same, warning })
}

/// Takes what a look found: from now on it is what is read, and what a later update is compared with.
pub fn take(source: &GitSource, update: &Update) -> Result<(), UpdateError> {
    let known = taken(source)?;
    let noted = known.is_some_and(|known| {
        known.commit == update.commit.id
            && known.name == update.name
            && known.reference == source.reference.to_string()
            && (known.verified || source.verify.is_none())
    });
    if noted { Ok(()) } else { record(source, update) }
}

/// The files of the commit that a look found.
pub fn read_commit(source: &GitSource, update: &Update, limits: &Limits) -> Result<Snapshot, GitError> {
    let repo = Repo::open(&source.mirror())?;
    let resolved = Resolved { name: update.name.clone(), commit: update.commit.clone() };
    repo.snapshot(&resolved, source.subpath.as_deref(), limits)
}

/// The files of the commit that was taken.
pub fn read(source: &GitSource, limits: &Limits) -> Result<Snapshot, GitError> {
    let nothing = || GitError::NothingFetched { url: source.url.to_string() };
    let taken = taken(source).ok().flatten().ok_or_else(nothing)?;
    let read = || {
        let repo = Repo::open(&source.mirror())?;
        let resolved = Resolved { name: taken.name.clone(), ..repo.resolve(&taken.commit)? };
        repo.snapshot(&resolved, source.subpath.as_deref(), limits)
    };
    match read() {
        // The record says that it was here once.
        Err(GitError::NoRevision { .. } | GitError::NotARepository { .. } | GitError::Damaged { .. }) => {
            discard(source).ok();
            Err(GitError::Lost { url: source.url.to_string(), commit: taken.commit.clone() })
        }
        result => result,
    }
}

/// Whether who followed `before` would be surprised by `now`.
fn is_rewritten(repo: &Repo, source: &GitSource, before: &Taken, now: &Resolved) -> bool {
    // Another reference in the configuration: asked for.
    if before.reference != source.reference.to_string() {
        return false;
    }
    match &source.reference {
        Reference::Branch(_) => !repo.contains(&now.commit.id, &before.commit),
        Reference::Tag(_) => true,
        // A higher version is what a range is for; the same one must stay what it was.
        Reference::Semver(_) => before.name == now.name,
        Reference::Commit(_) => false,
    }
}

/// Whether `now`, signed as it may be, is older than `before`: somebody could replay what was signed once.
fn goes_back(repo: &Repo, source: &GitSource, before: &Taken, now: &Resolved) -> bool {
    let higher = || match (&before.name, &now.name) {
        (Some(before), Some(now)) => {
            highest_version("*", [before.as_str(), now].into_iter()).ok().flatten() == Some(now)
        }
        _ => false,
    };
    let higher = matches!(source.reference, Reference::Semver(_)) && before.name != now.name && higher();
    !higher && !repo.contains(&now.commit.id, &before.commit)
}

/// Gives a commit that nothing names any more a name of ours.
fn keep(repo: &Repo, commit: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let name = format!("refs/wayleave/old/{commit}");
    match repo.keep(&name, commit, &format!("replaced at {now}")) {
        Ok(()) => name,
        Err(_) => "nothing: it was lost with a damaged mirror".to_owned(),
    }
}

fn record_path(source: &GitSource) -> PathBuf {
    source.mirror().with_extension("json")
}

fn taken(source: &GitSource) -> Result<Option<Taken>, UpdateError> {
    let path = record_path(source);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(UpdateError::State { path, cause }),
    };
    let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    let (Some(reference), Some(commit)) = (text("reference"), text("commit")) else {
        let cause = io::Error::new(io::ErrorKind::InvalidData, "it is damaged; remove it to begin anew");
        return Err(UpdateError::State { path, cause });
    };
    Ok(Some(Taken { reference, name: text("name"), commit, verified: value["verified"] == true }))
}

fn record(source: &GitSource, update: &Update) -> Result<(), UpdateError> {
    let path = record_path(source);
    let value = json!({
        "url": source.url.to_string(), "reference": source.reference.to_string(), "name": update.name,
        "commit": update.commit.id, "verified": source.verify.is_some(),
    });
    let write = || {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(value.to_string().as_bytes())?;
        file.sync_data()?;
        fs::rename(&new, &path)
    };
    write().map_err(|cause| UpdateError::State { path: path.clone(), cause })
}

/// Throws the mirror away; the record stays.
fn discard(source: &GitSource) -> io::Result<()> {
    match fs::remove_dir_all(source.mirror()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Keeps two processes from updating one mirror.
fn lock(source: &GitSource) -> Result<File, UpdateError> {
    let path = source.mirror().with_extension("lock");
    let open = |path: &Path| -> io::Result<File> {
        make_private(&source.store)?;
        File::options().create(true).truncate(false).write(true).open(path)
    };
    let file = open(&path).map_err(|cause| UpdateError::State { path: path.clone(), cause })?;
    let deadline = Instant::now() + source.timeout;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(_) if Instant::now() < deadline => std::thread::sleep(LOCK_POLL),
            Err(_) => return Err(UpdateError::Busy { path: source.mirror() }),
        }
    }
}

fn make_private(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}
