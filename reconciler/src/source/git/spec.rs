//! What a git source is: a URL, a reference, and the rules of following it. Data only; nothing here connects.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

/// A repository to follow, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitSource {
    pub url: Url,
    pub reference: Reference,
    pub subpath: Option<String>,
    /// How often the server is asked; a tenth more or less, so that nodes do not ask at once.
    pub interval: Duration,
    /// For one whole fetch; what runs longer is killed.
    pub timeout: Duration,
    pub connect_timeout: Duration,
    /// Of one fetch on the wire and of a file of the mirror.
    pub transfer_bytes_max: u64,
    pub credentials: Credentials,
    pub backend: Backend,
    pub force_push: ForcePush,
    pub verify: Option<Verify>,
    /// Where mirrors lie: a folder of the node's own.
    pub store: PathBuf,
}

impl GitSource {
    /// The bare repository that this source is fetched into.
    pub fn mirror(&self) -> PathBuf {
        self.store.join(format!("{}.git", self.url.digest()))
    }
}

/// Files that hold what the server wants to see; read at each fetch, never copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Sent with the token over https.
    pub username: Option<String>,
    pub token_file: Option<PathBuf>,
    pub ssh_key_file: Option<PathBuf>,
    pub known_hosts_file: Option<PathBuf>,
    /// Certificates that the server's must lead to, instead of the system's.
    pub ca_file: Option<PathBuf>,
}

/// What is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    Branch(String),
    Tag(String),
    /// The tag of the highest version in a range.
    Semver(String),
    /// Forty hexadecimal digits.
    Commit(String),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Branch(name) => write!(f, "branch {name}"),
            Self::Tag(name) => write!(f, "tag {name}"),
            Self::Semver(range) => write!(f, "semver {range}"),
            Self::Commit(id) => write!(f, "commit {id}"),
        }
    }
}

/// What fetches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    #[default]
    Libgit2,
    /// The `git` program.
    Git,
}

/// What becomes of a branch whose new tip does not contain the old one, or of a tag that moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForcePush {
    Allow,
    #[default]
    Warn,
    Refuse,
}

/// Whose commits are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verify {
    pub mode: VerifyMode,
    /// In the format of `ssh-keygen -Y verify`.
    pub allowed_signers: PathBuf,
    /// Take a signed commit that does not contain the last one taken.
    pub allow_rollback: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyMode {
    /// The commit that is taken.
    Head,
    /// Every commit since the last one taken; of a source that was never read, the commit that is taken.
    AllSinceLast,
    /// The annotated tag.
    Tag,
}

/// Where a repository is. Never holds a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Url {
    /// `HOST[:PORT]/PATH`
    Https {
        rest: String,
    },
    /// `path` is as the server's shell sees it: absolute for `ssh://`, relative to the home for `user@host:path`.
    Ssh {
        user: Option<String>,
        host: String,
        port: Option<u16>,
        path: String,
    },
    Local(PathBuf),
}

/// Why a text is no URL of a repository. No variant repeats the text: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("the URL carries credentials; put them into a file and name it under `auth`")]
    Credentials,
    #[error("only https, ssh and file URLs and local paths are taken")]
    Scheme,
    #[error("the URL names no host, or a host with characters that no name has")]
    Host,
    #[error("the URL names no repository on the host")]
    Path,
    #[error("the port of the URL is not a number from 1 to 65535")]
    Port,
    #[error("the URL holds blanks or control characters")]
    Characters,
}

impl Url {
    /// The server's name or address; `None` for a path.
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Https { rest } => {
                let place = rest.split('/').next().unwrap_or_default();
                // A bracketed IPv6 address has colons of its own.
                Some(match place.rfind(']') {
                    Some(end) => &place[..=end],
                    None => place.split(':').next().unwrap_or_default(),
                })
            }
            Self::Ssh { host, .. } => Some(host),
            Self::Local(_) => None,
        }
    }

    /// Reads `https://…`, `ssh://…`, `user@host:path`, `file:///…` or a path; a relative path starts at `folder`.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, UrlError> {
        if text.is_empty() {
            return Err(UrlError::Path);
        }
        if text.chars().any(char::is_control) {
            return Err(UrlError::Characters);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return match text.split_once(':') {
                // As git has it: a colon before the first slash.
                Some((place, path)) if !place.contains('/') => {
                    let (user, host) = split_user(place)?;
                    Self::ssh(user, host, None, path.to_owned())
                }
                _ => Ok(Self::Local(folder.join(text))),
            };
        };
        if scheme != "file" && text.chars().any(char::is_whitespace) {
            return Err(UrlError::Characters);
        }
        match scheme {
            "file" if rest.starts_with('/') => Ok(Self::Local(PathBuf::from(rest))),
            "file" => Err(UrlError::Host),
            "https" => {
                let (place, path) = rest.split_once('/').ok_or(UrlError::Path)?;
                if place.contains('@') {
                    return Err(UrlError::Credentials);
                }
                let (host, port) = split_port(place)?;
                check_host(host)?;
                let path = path.trim_end_matches('/');
                if path.is_empty() || path.contains(['?', '#']) {
                    return Err(UrlError::Path);
                }
                let port = port.map_or_else(String::new, |port| format!(":{port}"));
                Ok(Self::Https { rest: format!("{host}{port}/{path}") })
            }
            "ssh" => {
                let (place, path) = rest.split_once('/').ok_or(UrlError::Path)?;
                let (user, place) = split_user(place)?;
                let (host, port) = split_port(place)?;
                Self::ssh(user, host, port, format!("/{path}"))
            }
            _ => Err(UrlError::Scheme),
        }
    }

    fn ssh(user: Option<&str>, host: &str, port: Option<u16>, path: String) -> Result<Self, UrlError> {
        check_host(host)?;
        let odd = |c: char| c.is_whitespace() || c == '\'' || c == '\\' || c == '!';
        if path.trim_matches('/').is_empty() || path.starts_with('-') || path.contains(odd) {
            return Err(UrlError::Path);
        }
        if user.is_some_and(|user| user.is_empty() || user.starts_with('-') || user.contains(odd)) {
            return Err(UrlError::Host);
        }
        let host = host.trim_matches(['[', ']']).to_owned();
        Ok(Self::Ssh { user: user.map(str::to_owned), host, port, path })
    }

    /// Thirty-two hexadecimal digits that stand for the URL in names of files.
    pub fn digest(&self) -> String {
        Sha256::digest(self.full()).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// As `git` takes it.
    pub fn full(&self) -> String {
        match self {
            Self::Ssh { user, host, port, path } if !path.starts_with('/') && port.is_none() => {
                format!("{}{}:{path}", user_at(user.as_deref()), bracketed(host))
            }
            Self::Ssh { user, host, port, path } => {
                let port = port.map_or_else(String::new, |port| format!(":{port}"));
                format!("ssh://{}{}{port}/{}", user_at(user.as_deref()), bracketed(host), path.trim_start_matches('/'))
            }
            Self::Https { rest } => format!("https://{rest}"),
            Self::Local(path) => path.display().to_string(),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full())
    }
}

fn user_at(user: Option<&str>) -> String {
    user.map_or_else(String::new, |user| format!("{user}@"))
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

fn split_user(place: &str) -> Result<(Option<&str>, &str), UrlError> {
    match place.rsplit_once('@') {
        Some((user, _)) if user.contains(':') || user.contains('@') => Err(UrlError::Credentials),
        Some((user, host)) => Ok((Some(user), host)),
        None => Ok((None, place)),
    }
}

fn split_port(place: &str) -> Result<(&str, Option<u16>), UrlError> {
    let after_address = place.rfind(']').map_or(0, |end| end + 1);
    match place[after_address..].split_once(':') {
        Some((between, port)) => {
            let port = port.parse().ok().filter(|port| *port > 0).ok_or(UrlError::Port)?;
            Ok((&place[..after_address + between.len()], Some(port)))
        }
        None => Ok((place, None)),
    }
}

fn check_host(host: &str) -> Result<(), UrlError> {
    let address = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let good = address.map_or_else(
        || !host.is_empty() && !host.starts_with('-') && host.chars().all(letters),
        |address| address.parse::<Ipv6Addr>().is_ok(),
    );
    if good { Ok(()) } else { Err(UrlError::Host) }
}

/// Whether a SOURCE on a command line is meant as a URL; a path otherwise.
pub fn looks_like_url(text: &str) -> bool {
    text.contains("://") || text.split_once(':').is_some_and(|(place, _)| place.contains('@') && !place.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_knows_its_host() {
        let check = |text: &str, expected: Option<&str>| {
            let url = Url::parse(text, Path::new("/")).expect("a URL");
            assert_eq!(url.host(), expected, "{text}");
        };
        check("https://git.example.org:8443/a", Some("git.example.org"));
        check("https://192.0.2.7/a", Some("192.0.2.7"));
        check("https://[2001:db8::1]:8443/a", Some("[2001:db8::1]"));
        check("git@git.example.org:net/policies.git", Some("git.example.org"));
        check("file:///srv/policies.git", None);
    }

    #[test]
    fn urls_are_read_and_written_as_git_takes_them() {
        let check = |text: &str, expected: &str| {
            let url = Url::parse(text, Path::new("/etc/wayleave"));
            assert_eq!(url.map(|url| url.to_string()), Ok(expected.to_owned()), "{text}");
        };
        check("https://git.example.org/net/policies.git", "https://git.example.org/net/policies.git");
        check("https://git.example.org:8443/a/", "https://git.example.org:8443/a");
        check("https://[2001:db8::1]:8443/a", "https://[2001:db8::1]:8443/a");
        check("ssh://git@git.example.org:2222/net/policies", "ssh://git@git.example.org:2222/net/policies");
        check("ssh://[2001:db8::1]/a", "ssh://[2001:db8::1]/a");
        check("git@git.example.org:net/policies.git", "git@git.example.org:net/policies.git");
        check("git@git.example.org:/srv/policies.git", "ssh://git@git.example.org/srv/policies.git");
        check("file:///srv/policies.git", "/srv/policies.git");
        check("/srv/policies.git", "/srv/policies.git");
        check("policies.git", "/etc/wayleave/policies.git");
    }

    #[test]
    fn passwords_odd_schemes_and_options_are_refused_without_repeating_them() {
        let check = |text: &str, expected: UrlError| {
            assert_eq!(Url::parse(text, Path::new("/")), Err(expected), "{text}");
            assert!(!expected.to_string().contains("s3cret"));
        };
        check("https://ada:s3cret@git.example.org/a", UrlError::Credentials);
        check("https://s3cret@git.example.org/a", UrlError::Credentials);
        check("ssh://ada:s3cret@git.example.org/a", UrlError::Credentials);
        check("http://git.example.org/a", UrlError::Scheme);
        check("ext::sh -c touch", UrlError::Path);
        check("ext://x/y", UrlError::Scheme);
        check("git://git.example.org/a", UrlError::Scheme);
        check("ssh://-oProxyCommand=x/a", UrlError::Host);
        check("ssh://git@git.example.org/a'b", UrlError::Path);
        check("git@git.example.org:-x", UrlError::Path);
        check("https://git.example.org/", UrlError::Path);
        check("https://git.example.org/a?token=s3cret", UrlError::Path);
        check("https://git.example.org:0/a", UrlError::Port);
        check("https://git.example.org/a b", UrlError::Characters);
        check("file://host/a", UrlError::Host);
        check("", UrlError::Path);
    }

    #[test]
    fn a_source_on_the_command_line_is_a_url_or_a_path() {
        for url in ["https://h/p", "ssh://h/p", "git@h:p", "file:///p"] {
            assert!(looks_like_url(url), "{url}");
        }
        for path in ["policies", "/srv/x", "./a:b", "a@b/c", "C:"] {
            assert!(!looks_like_url(path), "{path}");
        }
    }
}
