//! Git servers for tests: real repositories behind a real sshd and behind `git http-backend` over TLS.
//!
//! Everything listens on 127.0.0.1 in the namespace it was started in, with keys made for the occasion. [`Repository`] is
//! the server's side, [`Sshd`] and [`Https`] serve it, [`Proxy`] spoils the connection.

mod https;
mod proxy;
mod sshd;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

pub use https::{Https, Tamper};
pub use proxy::{Proxy, Spoil};
pub use sshd::Sshd;

/// A bare repository that is served, and a clone to make commits in.
#[derive(Debug)]
pub struct Repository {
    folder: TempDir,
}

impl Repository {
    /// An empty repository with the branch `main`.
    pub fn new() -> Result<Self> {
        let repository = Self { folder: TempDir::new().context("a folder for repositories")? };
        run(git(repository.folder.path()).args(["init", "--quiet", "--bare", "-b", "main", "server.git"]))?;
        run(git(repository.folder.path()).args(["init", "--quiet", "-b", "main", "work"]))?;
        repository.git(&["remote", "add", "origin", "../server.git"])?;
        Ok(repository)
    }

    /// The bare repository.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("server.git")
    }

    /// The folder that holds both.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs git in the clone.
    pub fn git(&self, arguments: &[&str]) -> Result<String> {
        run(git(&self.folder.path().join("work")).args(arguments))
    }

    /// Writes a file of the clone.
    pub fn write(&self, path: &str, content: &str) -> Result<()> {
        let path = self.folder.path().join("work").join(path);
        fs::create_dir_all(path.parent().context("a path below the clone")?)?;
        Ok(fs::write(path, content)?)
    }

    /// Commits the clone as it is; returns the commit's id.
    pub fn commit(&self, message: &str) -> Result<String> {
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--allow-empty", "-m", message])?;
        self.head()
    }

    pub fn head(&self) -> Result<String> {
        Ok(self.git(&["rev-parse", "HEAD"])?.trim().to_owned())
    }

    /// Pushes what the arguments say, such as `main` or `+main`.
    pub fn push(&self, refspec: &str) -> Result<()> {
        self.git(&["push", "--quiet", "origin", refspec]).map(drop)
    }

    /// Writes a file, commits and pushes `main`; returns the commit's id.
    pub fn publish(&self, path: &str, content: &str, message: &str) -> Result<String> {
        self.write(path, content)?;
        let id = self.commit(message)?;
        self.push("main")?;
        Ok(id)
    }
}

/// git in `folder`, without anybody's configuration.
fn git(folder: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .env_remove("GIT_INDEX_FILE")
        .args(["-c", "user.name=net-team", "-c", "user.email=net-team@example.org"])
        .args(["-c", "protocol.file.allow=always", "-c", "core.bigFileThreshold=1m", "-c", "gc.auto=0"]);
    command
}

/// Runs a command that must succeed; returns what it printed.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
