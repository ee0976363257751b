//! Fetching: brings what a source names into its mirror, in a process that can be killed.
//!
//! The caller's side is [`run`]: it starts this program again as `git-fetch`, hands it a [`Request`] on stdin and reads
//! one answer from stdout. Whatever a server does, the time limit ends that process and all it started, and its memory and
//! files have limits of their own. Requests name files with credentials; only the child reads them, so no secret is in an
//! argument, an environment or a message.

mod child;
mod http;
mod libgit2;
mod program;
mod ssh;

use std::io::{Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use super::spec::{Backend, Credentials, GitSource, Reference, Url};

pub use child::serve;

/// The hidden command of this program that fetches.
pub const COMMAND: &str = "git-fetch";
/// An answer is shorter than this.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// Beyond the time limit that the child keeps itself, for its message to arrive.
const GRACE: Duration = Duration::from_millis(500);

/// What is fetched into which mirror, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub url: Url,
    pub mirror: PathBuf,
    pub reference: Reference,
    pub credentials: Credentials,
    pub backend: Backend,
    pub connect_timeout: Duration,
    pub timeout: Duration,
    pub transfer_bytes_max: u64,
}

/// A reference that a server has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteRef {
    pub name: String,
    pub id: String,
}

/// Says which refspecs to fetch, of the references that a server has.
pub type Choose<'c> = dyn FnMut(&[RemoteRef]) -> Result<Vec<String>, FetchError> + 'c;

/// One way of talking to a server.
pub trait Fetch {
    /// Asks the server for its references, lets `choose` say which refspecs to fetch, and fetches those. No refspecs:
    /// nothing is fetched.
    fn fetch(&self, request: &Request, choose: &mut Choose<'_>) -> Result<(), FetchError>;
}

/// Why nothing was fetched. The message never holds a credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FetchError {
    pub kind: FetchErrorKind,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchErrorKind {
    /// The server does not know the key or token, or they cannot be read here.
    Credentials,
    /// The server is not the one that the known hosts or certificates name.
    Identity,
    /// There is no such repository, branch, tag, version or commit.
    NotFound,
    Timeout,
    /// More than a limit allows.
    TooLarge,
    /// The server cannot be reached, hung up, or sent what is no git.
    Server,
    /// The mirror or this machine.
    Local,
}

impl FetchErrorKind {
    const ALL: [(Self, &'static str); 7] = [
        (Self::Credentials, "credentials"),
        (Self::Identity, "identity"),
        (Self::NotFound, "not-found"),
        (Self::Timeout, "timeout"),
        (Self::TooLarge, "too-large"),
        (Self::Server, "server"),
        (Self::Local, "local"),
    ];

    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("local", |(_, word)| word)
    }

    fn from_word(word: &str) -> Self {
        Self::ALL.iter().find(|(_, known)| *known == word).map_or(Self::Local, |(kind, _)| *kind)
    }
}

impl FetchError {
    pub(super) fn new(kind: FetchErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(super) fn local(message: impl Into<String>) -> Self {
        Self::new(FetchErrorKind::Local, message)
    }
}

/// The reference of the mirror that holds what was fetched of `name`, such as `refs/heads/main`.
pub(super) fn mirrored(name: &str) -> String {
    format!("refs/wayleave/remote/{}", name.strip_prefix("refs/").unwrap_or(name))
}

impl Request {
    pub(super) fn new(source: &GitSource) -> Self {
        Self {
            url: source.url.clone(),
            mirror: source.mirror(),
            reference: source.reference.clone(),
            credentials: source.credentials.clone(),
            backend: source.backend,
            connect_timeout: source.connect_timeout,
            timeout: source.timeout,
            transfer_bytes_max: source.transfer_bytes_max,
        }
    }

    fn to_json(&self) -> Value {
        let (kind, name) = match &self.reference {
            Reference::Branch(name) => ("branch", name),
            Reference::Tag(name) => ("tag", name),
            Reference::Semver(range) => ("semver", range),
            Reference::Commit(id) => ("commit", id),
        };
        let url = match &self.url {
            Url::Https { rest } => json!({"https": rest}),
            Url::Ssh { user, host, port, path } => {
                json!({"ssh": {"user": user, "host": host, "port": port, "path": path}})
            }
            Url::Local(path) => json!({"local": path}),
        };
        let c = &self.credentials;
        json!({
            "url": url, "mirror": self.mirror, "kind": kind, "name": name,
            "username": c.username, "token": c.token_file, "key": c.ssh_key_file, "known_hosts": c.known_hosts_file,
            "ca": c.ca_file, "git": self.backend == Backend::Git,
            "connect_ms": u64::try_from(self.connect_timeout.as_millis()).unwrap_or(u64::MAX),
            "timeout_ms": u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX),
            "bytes": self.transfer_bytes_max,
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        let path = |key: &str| value[key].as_str().map(PathBuf::from);
        let name = text("name")?;
        let reference = match value["kind"].as_str()? {
            "branch" => Reference::Branch(name),
            "tag" => Reference::Tag(name),
            "semver" => Reference::Semver(name),
            "commit" => Reference::Commit(name),
            _ => return None,
        };
        let url = &value["url"];
        let url = if let Some(rest) = url["https"].as_str() {
            Url::Https { rest: rest.to_owned() }
        } else if let Some(path) = url["local"].as_str() {
            Url::Local(path.into())
        } else {
            let ssh = &url["ssh"];
            Url::Ssh {
                user: ssh["user"].as_str().map(str::to_owned),
                host: ssh["host"].as_str()?.to_owned(),
                port: ssh["port"].as_u64().and_then(|port| port.try_into().ok()),
                path: ssh["path"].as_str()?.to_owned(),
            }
        };
        Some(Self {
            url,
            mirror: path("mirror")?,
            reference,
            credentials: Credentials {
                username: text("username"),
                token_file: path("token"),
                ssh_key_file: path("key"),
                known_hosts_file: path("known_hosts"),
                ca_file: path("ca"),
            },
            backend: if value["git"] == true { Backend::Git } else { Backend::Libgit2 },
            connect_timeout: Duration::from_millis(value["connect_ms"].as_u64()?),
            timeout: Duration::from_millis(value["timeout_ms"].as_u64()?),
            transfer_bytes_max: value["bytes"].as_u64()?,
        })
    }
}

/// A way to end a fetch from another thread.
#[derive(Debug, Default)]
pub struct Stop(Mutex<Stopping>);

#[derive(Debug, Default)]
struct Stopping {
    stopped: bool,
    group: Option<Pid>,
}

impl Stop {
    /// Kills the fetch that runs now, and every later one before it begins.
    pub fn stop(&self) {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.stopped = true;
        if let Some(group) = state.group {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// Notes what runs; false when it must not.
    fn runs(&self, group: Option<Pid>) -> bool {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.group = group;
        !state.stopped
    }
}

/// Fetches into the mirror; returns the name that the server calls it by (`refs/heads/main`), or none for a commit.
///
/// Takes as long as the request allows at most.
pub fn run(request: &Request, stop: &Stop) -> Result<Option<String>, FetchError> {
    let start = |e: std::io::Error| FetchError::local(format!("the process that fetches cannot be started: {e}"));
    let mut command = Command::new("/proc/self/exe");
    command.arg(COMMAND).process_group(0).env_clear();
    for kept in ["PATH", "HOME", "XDG_CONFIG_HOME", "SUDO_UID"] {
        command.envs(std::env::var_os(kept).map(|value| (kept, value)));
    }
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(start)?;
    let mut group = Group { id: Pid::from_child(&child), child, stop };
    if !stop.runs(Some(group.id)) {
        return Err(FetchError::local("stopped"));
    }
    if let Some(mut stdin) = group.child.stdin.take() {
        stdin.write_all(request.to_json().to_string().as_bytes()).map_err(start)?;
    }
    let (send, answer) = mpsc::channel();
    let stdout = group.child.stdout.take();
    std::thread::spawn(move || {
        let mut text = String::new();
        if let Some(stdout) = stdout {
            let _ = stdout.take(ANSWER_BYTES_MAX).read_to_string(&mut text);
        }
        // Nobody listens any more when the time was over.
        let _ = send.send(text);
    });
    let text = answer.recv_timeout(request.timeout + GRACE).map_err(|_| {
        let seconds = request.timeout.as_secs_f64();
        FetchError::new(FetchErrorKind::Timeout, format!("{} did not deliver within {seconds} s", request.url))
    })?;
    let answer: Value = serde_json::from_str(&text).unwrap_or_default();
    if let Some(fetched) = answer.get("fetched") {
        return Ok(fetched.as_str().map(str::to_owned));
    }
    if let Some(message) = answer["message"].as_str() {
        return Err(FetchError::new(FetchErrorKind::from_word(answer["error"].as_str().unwrap_or_default()), message));
    }
    let status = group.child.wait().map_err(start)?;
    Err(match status.signal() {
        Some(libc::SIGXFSZ) => too_large(request),
        Some(libc::SIGABRT | libc::SIGSEGV) => FetchError::new(
            FetchErrorKind::TooLarge,
            format!("what {} sent needs more memory than a fetch may take", request.url),
        ),
        _ => FetchError::local(format!("the process that fetches ended early: {status}")),
    })
}

/// The words for more bytes than allowed.
fn too_large(request: &Request) -> FetchError {
    let message = format!(
        "{} sends more than {} bytes; `transferLimit` in the node's configuration allows more",
        request.url, request.transfer_bytes_max
    );
    FetchError::new(FetchErrorKind::TooLarge, message)
}

/// A child with all that it started; none of them outlives this.
struct Group<'s> {
    child: Child,
    id: Pid,
    stop: &'s Stop,
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        let _ = kill_process_group(self.id, Signal::KILL);
        let _ = self.child.wait();
        self.stop.runs(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_crosses_the_pipe_unchanged() {
        let mut request = Request {
            url: Url::Https { rest: "git.example.org/a".to_owned() },
            mirror: "/var/lib/wayleave/git/x.git".into(),
            reference: Reference::Branch("main".to_owned()),
            credentials: Credentials { token_file: Some("/etc/token".into()), ..Credentials::default() },
            backend: Backend::Git,
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_mins(1),
            transfer_bytes_max: 1 << 30,
        };
        assert_eq!(Request::from_json(&request.to_json()), Some(request.clone()));
        let (user, host) = (Some("git".to_owned()), "git.example.org".to_owned());
        request.url = Url::Ssh { user, host, port: Some(2222), path: "/srv/a".to_owned() };
        request.reference = Reference::Semver("^1".to_owned());
        request.backend = Backend::Libgit2;
        assert_eq!(Request::from_json(&request.to_json()), Some(request));
    }
}
