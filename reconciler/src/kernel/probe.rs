//! What this kernel and this process can do, tried for real; nothing stays behind.

use std::os::fd::AsFd as _;
use std::panic::resume_unwind;
use std::thread;

use fib::Reason;
use fib::layout::CAPACITY_MIN;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::image_map::ImageMap;
use super::pins::Pins;
use super::program::{ENTRY, Programs, Stages};
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
    let outer = sys::create_generations(image.fd(), 2)?;
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

/// Loads both instances of the program and runs one on a packet, in a bpf file system that only this thread sees.
///
/// Needs `CAP_SYS_ADMIN` for that file system.
pub fn program() -> Result<(), KernelError> {
    let work = || {
        let place = std::env::temp_dir();
        let unusable =
            |source: rustix::io::Errno| KernelError::Directory { path: place.clone(), source: source.into() };
        // SAFETY: the thread was started for this call and ends after it; its file descriptors stay as they are.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(unusable)?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).map_err(unusable)?;
        mount("bpf", &place, "bpf", MountFlags::empty(), None).map_err(unusable)?;
        let pins = Pins::new(&place.join("probe"));
        pins.create()?;
        let programs = Programs::ensure(&pins, CAPACITY_MIN.trailing_zeros(), Stages::All)?;
        let ran = programs.test_run(&[0; 64])?;
        if ran.reason == Reason::NoGeneration as u32 {
            return Ok(());
        }
        Err(KernelError::Verify { detail: format!("without a generation, a frame met reason {}", ran.reason) })
    };
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| resume_unwind(panic))
}
