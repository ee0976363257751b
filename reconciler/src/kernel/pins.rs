//! Where things are pinned: one directory on a bpf file system, and the lock on it.
//!
//! ```text
//! <bpffs>/maps/{PORTS,PORT_LINKS,NEIGHBOURS,…}            outlive every generation and program
//! <bpffs>/class-<bits>/GENERATIONS                        the outer map of a capacity class of 2^bits bytes
//! <bpffs>/class-<bits>/{live,candidate}-<object>          the two instances of the program
//! <bpffs>/class-<bits>/CANDIDATE_<map>-<object>           the candidate's own counters and ingress ports
//! <bpffs>/generation/<number>                             retained images
//! <bpffs>/link/<device>                                   attachments; a dot of the name is a colon
//! ```

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode};

use super::KernelError;

/// `BPF_FS_MAGIC` of the kernel's magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Digits of a generation's pin, so that names sort as numbers do.
const GENERATION_DIGITS: usize = 20;

/// The pins of one node.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

/// Held while one process changes what is pinned; released when dropped or when the process ends.
#[derive(Debug)]
pub struct Lock {
    _directory: File,
}

impl Pins {
    /// Names the pins below `root`; touches nothing.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    pub fn class(&self, bits: u32) -> PathBuf {
        self.root.join(format!("class-{bits}"))
    }

    pub fn generations(&self, bits: u32) -> PathBuf {
        self.class(bits).join("GENERATIONS")
    }

    pub fn generation(&self, number: u64) -> PathBuf {
        self.root.join("generation").join(format!("{number:0GENERATION_DIGITS$}"))
    }

    /// A bpf file system takes no dots, a device's name no colons.
    pub fn link(&self, device: &str) -> PathBuf {
        self.root.join("link").join(device.replace('.', ":"))
    }

    /// Makes the directories; refuses a place that is not a bpf file system.
    pub fn create(&self) -> Result<(), KernelError> {
        for directory in ["maps", "generation", "link"] {
            let path = self.root.join(directory);
            std::fs::create_dir_all(&path).map_err(|source| KernelError::Directory { path: path.clone(), source })?;
        }
        self.check_file_system()
    }

    /// Whether anything of wayleave is pinned here.
    pub fn exist(&self) -> bool {
        self.root.join("maps").is_dir()
    }

    /// Refuses a place that is not on a bpf file system; a missing directory is judged by its parents.
    pub fn check_file_system(&self) -> Result<(), KernelError> {
        let existing = self.root.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
        let facts = rustix::fs::statfs(existing)
            .map_err(|e| KernelError::Directory { path: existing.to_owned(), source: e.into() })?;
        #[allow(clippy::cast_lossless, clippy::unnecessary_cast, reason = "the field's type differs by architecture")]
        if facts.f_type as i64 == BPF_FS_MAGIC {
            Ok(())
        } else {
            Err(KernelError::NotBpffs { path: self.root.clone() })
        }
    }

    /// Takes the lock of this directory, or says that another process holds it.
    pub fn lock(&self) -> Result<Lock, KernelError> {
        match lock(&self.root)? {
            Some(directory) => Ok(Lock { _directory: directory }),
            None => Err(KernelError::Locked { path: self.root.clone() }),
        }
    }

    /// Takes the lock of the only listener to events, which keeps nobody from changing anything.
    pub(super) fn lock_events(&self) -> Result<File, KernelError> {
        let path = self.root.join("maps");
        lock(&path)?.ok_or(KernelError::Watched { path })
    }

    /// Capacity classes that have a directory, smallest first.
    pub fn classes(&self) -> Result<Vec<u32>, KernelError> {
        let mut classes: Vec<u32> =
            names(&self.root)?.iter().filter_map(|n| n.strip_prefix("class-")?.parse().ok()).collect();
        classes.sort_unstable();
        Ok(classes)
    }

    /// Numbers of the pinned generations, oldest first.
    pub fn generation_numbers(&self) -> Result<Vec<u64>, KernelError> {
        let mut numbers: Vec<u64> =
            names(&self.root.join("generation"))?.iter().filter_map(|n| n.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Devices that have a pinned link, by name.
    pub fn links(&self) -> Result<Vec<String>, KernelError> {
        Ok(names(&self.root.join("link"))?.into_iter().map(|name| name.replace(':', ".")).collect())
    }

    /// Removes one pin; a missing one is no error.
    pub fn remove(&self, path: &Path) -> Result<(), KernelError> {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(KernelError::Directory { path: path.to_owned(), source: e })
            }
            _ => Ok(()),
        }
    }

    /// Removes a directory and the pins in it.
    pub fn remove_directory(&self, path: &Path) -> Result<(), KernelError> {
        for name in names(path)? {
            self.remove(&path.join(name))?;
        }
        match std::fs::remove_dir(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(KernelError::Directory { path: path.to_owned(), source: e })
            }
            _ => Ok(()),
        }
    }
}

/// Locks a directory for this process; `None`: another one has locked it.
fn lock(path: &Path) -> Result<Option<File>, KernelError> {
    let failed = |source: rustix::io::Errno| KernelError::Directory { path: path.to_owned(), source: source.into() };
    let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(directory.into())),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

/// Names in a directory, sorted; none when it does not exist.
pub(super) fn names(directory: &Path) -> Result<Vec<String>, KernelError> {
    let failed = |source| KernelError::Directory { path: directory.to_owned(), source };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
