//! Hands in the kernel: what somebody with root and bpf(2) can do to a node behind its back.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::bpf_objects::{bpf, open_pin};

// linux/bpf.h
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_FREEZE: libc::c_long = 22;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_MAP_TYPE_ARRAY: u64 = 2;
const BPF_F_MMAPABLE: u64 = 1 << 10;

fn raw(object: &OwnedFd) -> u64 {
    object.as_raw_fd().cast_unsigned().into()
}

/// The one class directory below a node's pins.
pub fn class(pins: &Path) -> Result<PathBuf> {
    with_prefix(pins, "class-")
}

/// The pin in a directory whose name begins so.
pub fn with_prefix(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found = fs::read_dir(directory)?.flatten().map(|entry| entry.path());
    let named = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
    found.find(named).with_context(|| format!("nothing called {prefix}… in {}", directory.display()))
}

/// Puts a map of zeros, which is no generation, into the live slot of a class.
pub fn put_zeros_live(class: &Path, frozen: bool) -> Result<()> {
    let bits: u32 = class.to_string_lossy().rsplit('-').next().unwrap_or_default().parse()?;
    let words = &mut [BPF_MAP_TYPE_ARRAY | 4 << 32, 1 << bits | 1 << 32, BPF_F_MMAPABLE, 0, 0, 0, 0, 0, 0];
    let map = bpf(BPF_MAP_CREATE, words).context("BPF_MAP_CREATE")?;
    // SAFETY: the kernel has just opened this descriptor for us.
    let map = unsafe { OwnedFd::from_raw_fd(map.try_into()?) };
    if frozen {
        bpf(BPF_MAP_FREEZE, &mut [raw(&map)]).context("BPF_MAP_FREEZE")?;
    }
    set_live(class, &map)
}

/// Puts a pinned image into the live slot of a class.
pub fn put_live(class: &Path, image: &Path) -> Result<()> {
    set_live(class, &open_pin(image).context("opening the image")?)
}

fn set_live(class: &Path, map: &OwnedFd) -> Result<()> {
    let outer = open_pin(&class.join("GENERATIONS")).context("opening the outer map")?;
    let (slot, value) = (0u32, map.as_raw_fd());
    let mut words =
        [raw(&outer), (&raw const slot).expose_provenance() as u64, (&raw const value).expose_provenance() as u64, 0];
    bpf(BPF_MAP_UPDATE_ELEM, &mut words).context("BPF_MAP_UPDATE_ELEM").map(drop)
}

/// Detaches a pinned link, whose pin stays.
pub fn detach_link(link: &Path) -> Result<()> {
    let link = open_pin(link).context("opening the link")?;
    bpf(BPF_LINK_DETACH, &mut [raw(&link)]).context("BPF_LINK_DETACH").map(drop)
}

/// Gives a pinned link another pinned program.
pub fn update_link(link: &Path, program: &Path) -> Result<()> {
    let link = open_pin(link).context("opening the link")?;
    let program = open_pin(program).context("opening the program")?;
    bpf(BPF_LINK_UPDATE, &mut [raw(&link) | raw(&program) << 32, 0]).context("BPF_LINK_UPDATE").map(drop)
}
