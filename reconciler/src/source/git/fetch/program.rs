//! Fetching by the `git` program, cut off from everybody's configuration.
//!
//! No prompt, no helper but ours, no protocol but the one of the URL, strict host keys. Arguments and environment name
//! files; the token itself goes from its file through a credential helper to git.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::super::spec::Url;
use super::{Choose, Fetch, FetchError, FetchErrorKind, RemoteRef, Request, child, ssh, too_large};

/// References listed are no more than this.
const LIST_BYTES_MAX: u64 = 64 << 20;
const WORDS_BYTES_MAX: u64 = 16 << 10;

/// Prints what `git credential` asks for. The token is the first line of a file that is named in the environment.
const HELPER: &str = "!f() { test \"$1\" = get || exit 0; printf 'username=%s\\npassword=%s\\n' \
                      \"$WAYLEAVE_GIT_USERNAME\" \"$(head -n 1 -- \"$WAYLEAVE_GIT_TOKEN_FILE\")\"; }; f";

pub(super) struct Program;

impl Fetch for Program {
    fn fetch(&self, request: &Request, choose: &mut Choose<'_>) -> Result<(), FetchError> {
        let url = address(&request.url);
        let listed = git(request, &["ls-remote".as_ref(), "--quiet".as_ref(), "--".as_ref(), url.as_ref()])?;
        let refs: Vec<_> = listed
            .lines()
            .filter_map(|line| line.split_once('\t'))
            .map(|(id, name)| RemoteRef { name: name.to_owned(), id: id.to_owned() })
            .collect();
        let refspecs = choose(&refs)?;
        if refspecs.is_empty() {
            return Ok(());
        }
        let mut arguments: Vec<OsString> =
            ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance"]
                .iter()
                .chain(&["--no-recurse-submodules", "--", &url])
                .map(Into::into)
                .collect();
        arguments.extend(refspecs.iter().map(Into::into));
        let arguments: Vec<&Path> = arguments.iter().map(Path::new).collect();
        git(request, &arguments).map(drop)
    }
}

fn address(url: &Url) -> String {
    match url {
        Url::Local(path) => format!("file://{}", path.display()),
        other => other.full(),
    }
}

/// Runs git in the mirror; gives what it printed.
fn git(request: &Request, arguments: &[&Path]) -> Result<String, FetchError> {
    let protocol = match &request.url {
        Url::Https { .. } => "https",
        Url::Ssh { .. } => "ssh",
        Url::Local(_) => "file",
    };
    let mut command = Command::new("git");
    command.arg("--git-dir").arg(&request.mirror);
    for setting in [
        "protocol.allow=never",
        &format!("protocol.{protocol}.allow=always"),
        "core.hooksPath=/dev/null",
        "core.fsmonitor=false",
        "gc.auto=0",
        "credential.helper=",
        "http.followRedirects=false",
        "http.proxy=",
        "http.lowSpeedLimit=1",
        &format!("http.lowSpeedTime={}", request.timeout.as_secs().max(1)),
        // Everything into packs, large objects past the memory.
        "fetch.unpackLimit=1",
        "fetch.fsckObjects=true",
        "core.bigFileThreshold=16m",
        "core.packedGitWindowSize=16m",
        "core.packedGitLimit=256m",
        "pack.threads=1",
    ] {
        command.args(["-c", setting]);
    }
    let credentials = &request.credentials;
    if let Some(file) = &credentials.ca_file {
        command.arg("-c").arg(format!("http.sslCAInfo={}", file.display()));
    }
    for (name, _) in std::env::vars_os() {
        if name.as_bytes().starts_with(b"GIT_") {
            command.env_remove(name);
        }
    }
    command
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_ATTR_NOSYSTEM", "1")
        .env("GIT_ASKPASS", "false")
        .env("SSH_ASKPASS", "false")
        .env("LC_ALL", "C");
    if let Some(file) = &credentials.token_file {
        // A bad file is an error here; git would only say that it has no password.
        child::secret(file)?;
        command.arg("-c").arg(format!("credential.helper={HELPER}"));
        command.env("WAYLEAVE_GIT_TOKEN_FILE", file);
        command.env("WAYLEAVE_GIT_USERNAME", credentials.username.as_deref().unwrap_or("git"));
    }
    if let Url::Ssh { .. } = request.url {
        let mut line = OsString::from("ssh");
        for option in ssh::options(request)? {
            line.push(" ");
            line.push(quoted(&option));
        }
        command.env("GIT_SSH_COMMAND", line).env("GIT_SSH_VARIANT", "ssh");
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = |e: std::io::Error| FetchError::local(format!("`git` cannot be started: {e}"));
    let mut child = command.spawn().map_err(start)?;
    let stderr = child.stderr.take();
    let said = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = stderr.by_ref().take(WORDS_BYTES_MAX).read_to_end(&mut text);
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    let mut text = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(LIST_BYTES_MAX).read_to_end(&mut text).map_err(start)?;
    }
    let status = child.wait().map_err(start)?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&text).into_owned());
    }
    let said = said.join().unwrap_or_default();
    Err(words(request, &said))
}

/// What git said, as one of our errors.
fn words(request: &Request, said: &str) -> FetchError {
    let url = &request.url;
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    // The limit on files ends git's helper by a signal, 25, and git itself may only say that it heard nothing.
    let complaints = said.lines().filter(|line| line.starts_with("fatal:") || line.starts_with("error:")).count();
    let silent = complaints == 1 && has(&["invalid index-pack output"]);
    if silent || has(&["died of signal 25", "File too large"]) {
        return too_large(request);
    }
    if has(&["returned error: 30"]) {
        let message = format!("{url} has moved; redirects are not followed, so write the URL where it is now");
        return FetchError::new(FetchErrorKind::Server, message);
    }
    if has(&["out of memory", "Out of memory", "mmap failed", "died of signal 9"]) {
        let message = format!("what {url} sent needs more memory than a fetch may take");
        return FetchError::new(FetchErrorKind::TooLarge, message);
    }
    if has(&["dubious ownership"]) {
        let message =
            format!("{url} belongs to another user; the backend libgit2 takes git's `safe.directory` into account");
        return FetchError::local(message);
    }
    if has(&[
        "Authentication failed",
        "could not read Username",
        "terminal prompts disabled",
        "error: 401",
        "error: 403",
    ]) {
        let why = match &request.credentials.token_file {
            Some(file) => format!("the token in {}", file.display()),
            None => "a reader without a token; `auth.tokenFile` names one".to_owned(),
        };
        return FetchError::new(FetchErrorKind::Credentials, format!("{url} refused {why}"));
    }
    if has(&["certificate", "SSL: no alternative", "does not match target host"]) && matches!(url, Url::Https { .. }) {
        let line = said.lines().rev().find(|line| line.starts_with("fatal")).unwrap_or("").trim();
        return FetchError::new(FetchErrorKind::Identity, format!("the certificate of {url} is not trusted: {line}"));
    }
    ssh::words(url, said)
}

/// One word of a shell.
fn quoted(word: &std::ffi::OsStr) -> OsString {
    let mut text = Vec::from(b"'");
    for byte in word.as_bytes() {
        if *byte == b'\'' {
            text.extend(b"'\\''");
        } else {
            text.push(*byte);
        }
    }
    text.push(b'\'');
    std::os::unix::ffi::OsStringExt::from_vec(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_a_shell_stays_one_word() {
        let check = |word: &str, expected: &str| assert_eq!(quoted(word.as_ref()), expected, "{word}");
        check("a b", "'a b'");
        check("a'b", "'a'\\''b'");
        check("$(x)", "'$(x)'");
    }
}
