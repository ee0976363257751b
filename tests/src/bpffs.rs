//! A BPF file system of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::namespace::owner_is_gone;

const PREFIX: &str = "wayleave-bpffs-";

/// A bpffs mounted at a fresh temporary directory; unmounting it on drop frees everything pinned in it.
#[derive(Debug)]
pub struct Bpffs {
    path: PathBuf,
}

impl Bpffs {
    pub fn mount() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        remove_stale().context("removing bpffs mounts of runs that died")?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        if let Err(error) = mount("bpf", &path, "bpf", MountFlags::empty(), None) {
            // Already failing: the mount's error is the one to report.
            let _ = fs::remove_dir(&path);
            return Err(error).with_context(|| format!("mounting a bpffs at {}", path.display()));
        }
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    // Drop cannot report. What stays behind is found by `remove_stale` of the next run.
    let _ = unmount(path, UnmountFlags::DETACH);
    let _ = fs::remove_dir(path);
}

fn remove_stale() -> Result<()> {
    for entry in fs::read_dir(std::env::temp_dir())? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().and_then(|name| name.strip_prefix(PREFIX)).is_some_and(owner_is_gone) {
            remove(&entry.path());
        }
    }
    Ok(())
}
