//! What this kernel and this process can do, tried for real; nothing stays behind.

use std::os::fd::AsFd as _;

use super::image_map::ImageMap;
use super::program::ENTRY;
use super::{KernelError, sys};

/// A capability that wayleave needs, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    pub name: &'static str,
    pub purpose: &'static str,
    pub effective: bool,
}

/// Numbers of the kernel's capability.h.
const CAPABILITIES: [(u32, &str, &str); 4] = [
    (12, "CAP_NET_ADMIN", "attaching to devices"),
    (21, "CAP_SYS_ADMIN", "opening maps by their id, mounting a bpf file system"),
    (38, "CAP_PERFMON", "loading the program"),
    (39, "CAP_BPF", "making maps and loading the program"),
];

/// The capabilities that wayleave needs, and whether this process has them.
pub fn capabilities() -> Result<Vec<Capability>, KernelError> {
    let path = "/proc/self/status";
    let status =
        std::fs::read_to_string(path).map_err(|source| KernelError::Directory { path: path.into(), source })?;
    let effective =
        status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok()).unwrap_or(0);
    Ok(CAPABILITIES
        .iter()
        .map(|&(number, name, purpose)| Capability { name, purpose, effective: effective & (1 << number) != 0 })
        .collect())
}

/// Tries what generations rest on: an image map that is filled by a mapping and frozen, inside an outer map.
pub fn image_maps() -> Result<(), KernelError> {
    const BYTES: u32 = 1 << 20;
    let content = [0xa5; 64];
    let image = ImageMap::create(&content, BYTES)?;
    let outer = sys::create_generations(image.fd())?;
    sys::set_slot(outer.as_fd(), 0, image.fd())?;
    let found = sys::slot(outer.as_fd(), 0)?;
    if found != Some(image.id()) || image.bytes().get(..content.len()) != Some(&content[..]) {
        return Err(KernelError::ReadBack { generation: 0, found: format!("{found:?}") });
    }
    Ok(())
}

/// How many instances of the program the kernel holds, whoever loaded them. Needs `CAP_SYS_ADMIN`.
pub fn loaded() -> Result<usize, KernelError> {
    let mut count = 0;
    for program in aya::programs::loaded_programs() {
        let program = program.map_err(KernelError::program("list"))?;
        count += usize::from(program.name_as_str() == Some(ENTRY));
    }
    Ok(count)
}
