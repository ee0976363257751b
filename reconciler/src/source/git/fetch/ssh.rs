//! ssh: the OpenSSH program, told to trust one file of host keys and to use one key.
//!
//! It never asks: a host that is not in the file, a key that the server does not know or a key with a passphrase end it.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::super::spec::Url;
use super::libgit2::{Failure, tell};
use super::{FetchError, FetchErrorKind, Request};

/// Of what ssh says on stderr.
const WORDS_BYTES_MAX: u64 = 4096;

/// The options of every ssh command, whoever starts it.
pub(super) fn options(request: &Request) -> Result<Vec<OsString>, FetchError> {
    let credentials = &request.credentials;
    let missing = |what: &str, key: &str| {
        FetchError::new(FetchErrorKind::Credentials, format!("{}: no {what} is named; set `auth.{key}`", request.url))
    };
    let known =
        credentials.known_hosts_file.as_deref().ok_or_else(|| missing("file of known hosts", "knownHostsFile"))?;
    let key = credentials.ssh_key_file.as_deref().ok_or_else(|| missing("key", "sshKeyFile"))?;
    for (file, what) in [(known, "the known hosts"), (key, "the key")] {
        std::fs::File::open(file).map_err(|e| {
            let message = format!("{what} in {} cannot be read: {e}", file.display());
            FetchError::new(FetchErrorKind::Credentials, message)
        })?;
    }
    let seconds = request.connect_timeout.as_secs().max(1);
    let mut options: Vec<OsString> = ["-F", "/dev/null", "-T"].map(OsString::from).into();
    let settings = [
        "BatchMode=yes".into(),
        "StrictHostKeyChecking=yes".into(),
        "GlobalKnownHostsFile=/dev/null".into(),
        setting("UserKnownHostsFile", known),
        "UpdateHostKeys=no".into(),
        "CheckHostIP=no".into(),
        "IdentitiesOnly=yes".into(),
        "IdentityAgent=none".into(),
        setting("IdentityFile", key),
        "PreferredAuthentications=publickey".into(),
        "NumberOfPasswordPrompts=0".into(),
        "ControlMaster=no".into(),
        "ControlPath=none".into(),
        "ClearAllForwardings=yes".into(),
        "PermitLocalCommand=no".into(),
        "ProxyCommand=none".into(),
        "ServerAliveInterval=5".into(),
        "ServerAliveCountMax=3".into(),
        format!("ConnectTimeout={seconds}").into(),
        "LogLevel=ERROR".into(),
    ];
    options.extend(settings.into_iter().flat_map(|setting: OsString| ["-o".into(), setting]));
    Ok(options)
}

/// A setting whose value is a path; ssh splits unquoted ones at blanks.
fn setting(name: &str, path: &Path) -> OsString {
    let mut text = OsString::from(format!("{name}=\""));
    text.push(path);
    text.push("\"");
    text
}

/// What ssh, or git that started it, said, as one of our errors.
pub(super) fn words(url: &Url, said: &str) -> FetchError {
    let said = said.trim();
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let kind = if has(&["Host key verification failed", "REMOTE HOST IDENTIFICATION HAS CHANGED", "host key is known"])
    {
        FetchErrorKind::Identity
    } else if has(&["Permission denied", "UNPROTECTED PRIVATE KEY", "bad permissions", "Too many authentication"]) {
        FetchErrorKind::Credentials
    } else if has(&["timed out"]) {
        FetchErrorKind::Timeout
    } else if has(&["does not appear to be a git repository", "not found"]) {
        FetchErrorKind::NotFound
    } else {
        FetchErrorKind::Server
    };
    // The last lines say what happened; boxes of @ come before them.
    let idle = ["Could not read from remote repository", "Please make sure you have", "and the repository exists"];
    let telling =
        |line: &&str| !line.is_empty() && !line.starts_with('@') && !idle.iter().any(|idle| line.contains(idle));
    let mut lines: Vec<&str> = said.lines().map(str::trim).filter(telling).rev().take(3).collect();
    lines.reverse();
    let text = if lines.is_empty() { "the connection ended".to_owned() } else { lines.join("; ") };
    let text: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    FetchError::new(kind, format!("{url}: {text}"))
}

/// A running `ssh … git-upload-pack`.
pub(super) struct Stream {
    child: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
    said: Option<std::thread::JoinHandle<String>>,
    received: u64,
    request: Request,
    failure: Failure,
}

impl Stream {
    pub(super) fn open(request: &Request, failure: Failure) -> Result<Self, FetchError> {
        let Url::Ssh { user, host, port, path } = &request.url else {
            return Err(FetchError::local("not an ssh URL"));
        };
        let mut command = Command::new("ssh");
        command.args(options(request)?);
        if let Some(port) = port {
            command.args(["-p", &port.to_string()]);
        }
        if let Some(user) = user {
            command.args(["-l", user]);
        }
        // Url::parse lets no quote and no blank through.
        command.arg("--").arg(host).arg(format!("git-upload-pack '{path}'"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = |e: io::Error| {
            FetchError::local(format!("`ssh` cannot be started: {e}; install OpenSSH's client (openssh-client)"))
        };
        let mut child = command.spawn().map_err(start)?;
        let (input, output, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let output = output.ok_or_else(|| FetchError::local("ssh has no output"))?;
        let said = std::thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(mut stderr) = stderr {
                let _ = stderr.by_ref().take(WORDS_BYTES_MAX).read_to_end(&mut text);
                // A chatty server must not block on a full pipe.
                let _ = io::copy(&mut stderr, &mut io::sink());
            }
            String::from_utf8_lossy(&text).into_owned()
        });
        Ok(Self { child, input, output, said: Some(said), received: 0, request: request.clone(), failure })
    }

    /// The connection has ended: why.
    fn ended(&mut self) -> io::Error {
        self.input = None;
        let _ = self.child.wait();
        let said = self.said.take().and_then(|said| said.join().ok()).unwrap_or_default();
        tell(&self.failure, words(&self.request.url, &said))
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.output.read(buffer)?;
        if read == 0 && !buffer.is_empty() {
            // git's protocol says itself when it is done: nobody reads up to the end of a connection that went well.
            return Err(self.ended());
        }
        self.received += read as u64;
        if self.received > self.request.transfer_bytes_max {
            return Err(tell(&self.failure, super::too_large(&self.request)));
        }
        Ok(read)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.input.as_mut().map(|input| input.write(bytes)) {
            Some(Ok(written)) => Ok(written),
            _ => Err(self.ended()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.input.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.input = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
