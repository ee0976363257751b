//! The sample routing repo, and the one change that the story makes to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// The repo's folder `policies/`, as it was when the program was built.
pub(super) const FILES: [(&str, &str); 3] = [
    ("blocked.yaml", include_str!("../../../policies/blocked.yaml")),
    ("clients.yaml", include_str!("../../../policies/clients.yaml")),
    (UPLINKS, include_str!("../../../policies/uplinks.yaml")),
];

/// The file that changes.
pub(super) const UPLINKS: &str = "uplinks.yaml";

/// What the change is called.
pub(super) const CHANGE: &str = "uplinks: edge-b has the faster line now, it takes three flows of four";

/// The file as it is before the change, and after: the weights of the edges swapped.
pub(super) fn uplinks() -> (String, String) {
    let before = FILES.iter().filter(|(name, _)| *name == UPLINKS).map(|(_, text)| *text).collect::<String>();
    let after = before
        .replace("edge-a has the faster line", "edge-b has the faster line")
        .replace("weight: 3", "weight: ?")
        .replace("weight: 1", "weight: 3")
        .replace("weight: ?", "weight: 1");
    (before, after)
}

/// The repo as files of its own, committed when git is there.
#[derive(Debug)]
pub(super) struct Repository {
    pub(super) path: PathBuf,
    git: bool,
}

impl Repository {
    /// Writes the sample files into a new directory.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        fs::create_dir(path)?;
        let repository = Self::open(path);
        for (name, text) in FILES {
            fs::write(path.join(name), text)?;
        }
        if repository.git {
            repository.run(&["init", "--quiet", "--initial-branch=main"])?;
            repository.run(&["add", "--all"])?;
            repository.run(&["commit", "--quiet", "--message", "the sample routing repo"])?;
        }
        Ok(repository)
    }

    pub(super) fn open(path: &Path) -> Self {
        let git = Command::new("git").arg("--version").output().is_ok_and(|output| output.status.success());
        Self { path: path.to_owned(), git }
    }

    pub(super) fn has_git(&self) -> bool {
        self.git
    }

    /// Writes one file, and commits it.
    pub(super) fn change(&self, file: &str, text: &str, message: &str) -> anyhow::Result<()> {
        fs::write(self.path.join(file), text)?;
        if self.git {
            self.run(&["commit", "--quiet", "--all", "--message", message])?;
        }
        Ok(())
    }

    /// Runs one git command in the repo, whatever git's configuration on this machine says.
    pub(super) fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new("git")
            .current_dir(&self.path)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env_remove("GIT_DIR")
            .env_remove("GIT_WORK_TREE")
            .env_remove("GIT_INDEX_FILE")
            .args(["-c", "user.name=net-team", "-c", "user.email=net-team@example.org"])
            .args(arguments)
            .output()
            .context("git cannot be started")?;
        if !output.status.success() {
            bail!("git {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_change_swaps_the_weights_and_nothing_else_of_the_rules() {
        let (before, after) = uplinks();
        assert!(before.contains("{name: edge-a, weight: 3}, {name: edge-b, weight: 1}"), "{before}");
        assert!(after.contains("{name: edge-a, weight: 1}, {name: edge-b, weight: 3}"), "{after}");
        assert!(after.contains("{name: edge-a-v6, weight: 1}, {name: edge-b-v6, weight: 3}"), "{after}");
        assert_eq!(before.lines().count(), after.lines().count());
    }
}
