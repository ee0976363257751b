//! Where things are pinned: one directory on a bpf file system, and the lock on it.
//!
//! ```text
//! <bpffs>/layout-<version>/                               all below, of one version of the layout
//!   version                                               symbolic link to the version of wayleave that made it
//!   maps/{PORTS,PORT_LINKS,NEIGHBOURS,…}                   outlive every generation and program
//!   class-<bits>/GENERATIONS                              the outer map of a capacity class of 2^bits bytes
//!   class-<bits>/live-[routes-][frags-|tc-]<object>       the live instances of the program, for the hooks in use
//!   class-<bits>/candidate-[routes-]<object>              the instance under test
//!   class-<bits>/CANDIDATE_<map>-<object>                 its own counters and ingress ports
//!   generation/<number>                                   retained images
//!   link/{xdp,tc}/<device>                                attachments; a dot of the name is a colon
//! ```
//!
//! The lock is on `<bpffs>` itself: versions of wayleave with different layouts keep out of each other's way by it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode};

use fib::layout::LAYOUT_VERSION;

use super::KernelError;
use super::attach::Hook;

/// `BPF_FS_MAGIC` of the kernel's magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Name of the symbolic link to the version of wayleave that made a layout's directory.
pub(super) const VERSION: &str = "version";

/// Digits of a generation's pin, so that names sort as numbers do.
const GENERATION_DIGITS: usize = 20;

/// Name of the directory of a layout, before its version.
pub(super) const LAYOUT: &str = "layout-";

/// The pins of one node.
#[derive(Clone, Debug)]
pub struct Pins {
    /// What the node's configuration names.
    place: PathBuf,
    /// The directory of this version's layout in it.
    root: PathBuf,
}

/// A filter of ours on a `clsact` qdisc. Filters cannot be pinned: a symbolic link stands for the pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Classifier {
    /// Kernel index of the device.
    pub(super) index: u32,
    /// The qdisc was made for the filter.
    pub(super) made_qdisc: bool,
}

impl Classifier {
    const KIND: &str = "clsact";
    const MADE: &str = "made";
    const FOUND: &str = "found";

    /// Reads such a link; `None`: something else is there, or nothing.
    pub(super) fn read(pin: &Path) -> Result<Option<Self>, KernelError> {
        let target = match std::fs::read_link(pin) {
            Ok(target) => target,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => return Ok(None),
            Err(source) => return Err(KernelError::Directory { path: pin.to_owned(), source }),
        };
        let mut words = target.to_str().unwrap_or_default().split(',');
        let read = || {
            let (kind, index, qdisc) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
            (kind == Self::KIND).then_some(Self { index, made_qdisc: qdisc == Self::MADE })
        };
        Ok({ read }())
    }

    fn text(self) -> String {
        format!("{},{},{}", Self::KIND, self.index, if self.made_qdisc { Self::MADE } else { Self::FOUND })
    }
}

/// Held while one process changes what is pinned; released when dropped or when the process ends.
#[derive(Debug)]
pub struct Lock {
    _directory: File,
}

impl Pins {
    /// Names the pins below `place`; touches nothing.
    pub fn new(place: &Path) -> Self {
        Self { place: place.to_owned(), root: place.join(format!("{LAYOUT}{LAYOUT_VERSION}")) }
    }

    /// The directory that the node's configuration names.
    pub fn place(&self) -> &Path {
        &self.place
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
    pub fn link(&self, hook: Hook, device: &str) -> PathBuf {
        self.root.join("link").join(hook.word()).join(device.replace('.', ":"))
    }

    /// Says that a device has a filter of ours; what said so before is replaced.
    pub(super) fn set_classifier(&self, pin: &Path, classifier: Classifier) -> Result<(), KernelError> {
        self.remove(pin)?;
        std::os::unix::fs::symlink(classifier.text(), pin)
            .map_err(|source| KernelError::Directory { path: pin.to_owned(), source })
    }

    /// Makes the place that the lock is on.
    pub fn create_place(&self) -> Result<(), KernelError> {
        let path = &self.place;
        std::fs::create_dir_all(path).map_err(|source| KernelError::Directory { path: path.clone(), source })
    }

    /// Makes the directories; refuses a place that is not a bpf file system.
    pub fn create(&self) -> Result<(), KernelError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| KernelError::Directory { path, source }
        };
        for directory in ["maps", "generation", "link/xdp", "link/tc"] {
            let path = self.root.join(directory);
            std::fs::create_dir_all(&path).map_err(failed(&path))?;
        }
        self.check_file_system()?;
        let version = self.root.join(VERSION);
        match std::os::unix::fs::symlink(env!("CARGO_PKG_VERSION"), &version) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(failed(&version)(e)),
            _ => Ok(()),
        }
    }

    /// Whether anything of wayleave is pinned here.
    pub fn exist(&self) -> bool {
        self.root.is_dir()
    }

    /// Refuses a place that is not on a bpf file system; a missing directory is judged by its parents.
    pub fn check_file_system(&self) -> Result<(), KernelError> {
        let existing = self.place.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
        let facts = rustix::fs::statfs(existing)
            .map_err(|e| KernelError::Directory { path: existing.to_owned(), source: e.into() })?;
        #[allow(clippy::cast_lossless, clippy::unnecessary_cast, reason = "the field's type differs by architecture")]
        if facts.f_type as i64 == BPF_FS_MAGIC {
            Ok(())
        } else {
            Err(KernelError::NotBpffs { path: self.place.clone() })
        }
    }

    /// Takes the lock of this directory, or says that another process holds it.
    pub fn lock(&self) -> Result<Lock, KernelError> {
        match lock(&self.place)? {
            Some(directory) => Ok(Lock { _directory: directory }),
            None => Err(KernelError::Locked { path: self.place.clone() }),
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

    /// Attachments by the name that their device had.
    pub fn links(&self) -> Result<Vec<(String, PathBuf)>, KernelError> {
        links_below(&self.root)
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

    /// Removes everything of this layout; what was attached by it alone is detached by that.
    pub fn remove_all(&self) -> Result<(), KernelError> {
        remove_tree(&self.root)
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

/// What is attached, of any layout: the devices' names, or what they were called by, and the pins.
pub(super) fn links_below(root: &Path) -> Result<Vec<(String, PathBuf)>, KernelError> {
    let directory = root.join("link");
    let mut links = Vec::new();
    for name in names(&directory)? {
        let path = directory.join(&name);
        if path.is_dir() {
            links.extend(names(&path)?.into_iter().map(|name| (name.replace(':', "."), path.join(name))));
        } else {
            links.push((name.replace(':', "."), path));
        }
    }
    Ok(links)
}

/// Removes a directory, the pins in it, and the directories in it.
pub(super) fn remove_tree(directory: &Path) -> Result<(), KernelError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| KernelError::Directory { path, source }
    };
    for name in names(directory)? {
        let path = directory.join(name);
        let kind = std::fs::symlink_metadata(&path).map_err(failed(&path))?;
        if kind.is_dir() {
            remove_tree(&path)?;
        } else {
            std::fs::remove_file(&path).map_err(failed(&path))?;
        }
    }
    match std::fs::remove_dir(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(directory)(e)),
        _ => Ok(()),
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
