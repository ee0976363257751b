//! The process that fetches: limits itself, fetches, answers, ends.

use std::io::{Read as _, Write as _};
use std::path::Path;

use git2::{ErrorCode, Oid, Repository};
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use serde_json::json;

use super::super::read::highest_version;
use super::super::spec::{Backend, Reference};
use super::{Fetch, FetchError, FetchErrorKind, RemoteRef, Request, libgit2, mirrored, program};

/// Address space of the process that fetches and of each one that it starts.
const MEMORY_BYTES_MAX: u64 = 1 << 30;

/// Reads a request from stdin, carries it out and writes the answer to stdout.
pub fn serve() -> std::io::Result<()> {
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let mut text = String::new();
    std::io::stdin().take(1 << 20).read_to_string(&mut text)?;
    let request = serde_json::from_str(&text).ok().as_ref().and_then(Request::from_json);
    let result = request
        .ok_or_else(|| FetchError::local("this command is wayleave's own: it takes a request on stdin"))
        .and_then(|request| limit(&request).and_then(|()| fetch(&request)));
    let answer = match result {
        Ok(name) => json!({"fetched": name}),
        Err(error) => json!({"error": error.kind.word(), "message": error.message}),
    };
    std::io::stdout().write_all(answer.to_string().as_bytes())
}

/// A pack that unfolds, or a delta of many gigabytes, ends this process and nothing else.
fn limit(request: &Request) -> Result<(), FetchError> {
    let set = |resource, bytes| {
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        setrlimit(resource, limit).map_err(|e| FetchError::local(format!("a limit of the fetch cannot be set: {e}")))
    };
    set(Resource::Core, 0)?;
    set(Resource::As, MEMORY_BYTES_MAX)?;
    set(Resource::Fsize, request.transfer_bytes_max)
}

/// The name that the server has for what was fetched; none for a commit.
fn fetch(request: &Request) -> Result<Option<String>, FetchError> {
    let mirror = open(&request.mirror)?;
    if let Reference::Commit(id) = &request.reference
        && has_commit(&mirror, id)
    {
        return Ok(None);
    }
    let backend: Box<dyn Fetch> = match request.backend {
        Backend::Libgit2 => Box::new(libgit2::Libgit2),
        Backend::Git => Box::new(program::Program),
    };
    let mut chosen = None;
    backend.fetch(request, &mut |remote| {
        let (name, refspecs) = choose(request, remote)?;
        let wanted = name.as_ref().and_then(|name| remote.iter().find(|r| r.name == *name));
        let known = wanted.is_some_and(|wanted| {
            let id = mirror.refname_to_id(&mirrored(&wanted.name)).map(|id| id.to_string());
            id.is_ok_and(|id| id == wanted.id)
        });
        chosen = name;
        Ok(if known { Vec::new() } else { refspecs })
    })?;
    match &request.reference {
        Reference::Commit(id) if !has_commit(&open(&request.mirror)?, id) => {
            let message = format!("{} has no branch or tag with the commit {id}", request.url);
            Err(FetchError::new(FetchErrorKind::NotFound, message))
        }
        _ => Ok(chosen),
    }
}

/// The full name of what is followed, and what to fetch of it.
fn choose(request: &Request, remote: &[RemoteRef]) -> Result<(Option<String>, Vec<String>), FetchError> {
    let missing = |what: String| FetchError::new(FetchErrorKind::NotFound, format!("{} has no {what}", request.url));
    let one = |name: String, what: String| {
        if !remote.iter().any(|r| r.name == name) {
            return Err(missing(what));
        }
        let refspec = format!("+{name}:{}", mirrored(&name));
        Ok((Some(name), vec![refspec]))
    };
    match &request.reference {
        Reference::Branch(name) => one(format!("refs/heads/{name}"), format!("branch `{name}`")),
        Reference::Tag(name) => one(format!("refs/tags/{name}"), format!("tag `{name}`")),
        Reference::Semver(range) => {
            let tags = remote.iter().filter_map(|r| r.name.strip_prefix("refs/tags/"));
            match highest_version(range, tags).map_err(|e| FetchError::local(e.to_string()))? {
                Some(tag) => one(format!("refs/tags/{tag}"), format!("tag `{tag}`")),
                None => Err(missing(format!("tag with a version in the range `{range}`"))),
            }
        }
        // Few servers give out a commit by its id alone.
        Reference::Commit(_) => {
            let kinds = ["heads", "tags"];
            Ok((None, kinds.map(|kind| format!("+refs/{kind}/*:refs/wayleave/remote/{kind}/*")).into()))
        }
    }
}

fn has_commit(mirror: &Repository, id: &str) -> bool {
    Oid::from_str(id).is_ok_and(|id| mirror.find_commit(id).is_ok())
}

/// Opens the mirror. One that is missing is made; one that cannot be opened is thrown away, as all of it can be fetched again.
pub(super) fn open(path: &Path) -> Result<Repository, FetchError> {
    let failed =
        |e: &dyn std::fmt::Display| FetchError::local(format!("the mirror {} cannot be made: {e}", path.display()));
    match Repository::open_bare(path) {
        // libgit2 opens one whose HEAD is broken, and fails later.
        Ok(repository) if repository.find_reference("HEAD").is_ok() => return Ok(repository),
        Err(e) if e.code() == ErrorCode::Owner => return Err(failed(&"it belongs to another user")),
        Ok(_) | Err(_) => {}
    }
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(&e)),
        _ => {}
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| failed(&e))?;
    }
    let mut options = git2::RepositoryInitOptions::new();
    // No templates: a mirror has no hooks.
    options.bare(true).external_template(false).mode(git2::RepositoryInitMode::from_bits_truncate(0o700));
    Repository::init_opts(path, &options).map_err(|e| failed(&e))
}

/// Reads a credential: one line.
pub(super) fn secret(path: &Path) -> Result<String, FetchError> {
    let bad = |why: String| {
        FetchError::new(FetchErrorKind::Credentials, format!("the credentials in {} {why}", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|e| bad(format!("cannot be read: {e}")))?;
    let line = text.trim_end_matches(['\r', '\n']);
    if line.is_empty() || line.chars().any(char::is_control) {
        return Err(bad("are not one line of text".to_owned()));
    }
    Ok(line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_one_line() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let check = |content: &str, expected: Option<&str>| {
            std::fs::write(file.path(), content).expect("written");
            assert_eq!(secret(file.path()).ok().as_deref(), expected, "{content:?}");
        };
        check("t0ken\n", Some("t0ken"));
        check("t0ken", Some("t0ken"));
        check("", None);
        check("\n", None);
        check("user\npassword=x\n", None);
    }
}
