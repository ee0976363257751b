//! The kernel: the only module that knows aya and bpf(2).
//!
//! Observe what is there, stage an image, verify it in the kernel, publish it by one write, retire what is old. Every
//! function here does one step and reports what the kernel said; the order of steps is `reconcile`'s business.

use std::io;
use std::path::PathBuf;

use crate::compile::ImageError;

pub mod address;
pub mod attach;
pub mod check;
mod clsact;
pub mod counters;
pub mod ethtool;
pub mod events;
pub mod flows;
pub mod health;
pub mod image_map;
pub mod layout;
pub mod link;
pub mod neighbour;
mod netlink;
pub mod observe;
pub mod pins;
pub mod probe;
pub mod program;
pub mod publish;
pub mod restore;
mod sys;
pub mod tables;
pub mod test_run;
pub mod watch;
pub mod xdp_features;

/// Why a step in the kernel failed. Nothing live has changed unless the message says so.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("{call} on {object} failed{}", advice(source))]
    Syscall { call: &'static str, object: String, source: io::Error },
    #[error("the map {id} is not frozen: wayleave did not make it a generation")]
    NotFrozen { id: u32 },
    #[error(
        "the kernel has no memory for an image map of {bytes} bytes; retained generations can be lowered with `retain`"
    )]
    NoMemory { bytes: u32 },
    #[error("the image of {image_bytes} bytes does not fit its class of {capacity} bytes")]
    TooLarge { image_bytes: usize, capacity: u32 },
    #[error("{} cannot be used", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("{} is not on a bpf file system; mount one with `mount -t bpf bpf /sys/fs/bpf`, or set `bpffs` in the node's config", path.display())]
    NotBpffs { path: PathBuf },
    #[error("another wayleave process is changing {}; wait for it to end", path.display())]
    Locked { path: PathBuf },
    #[error("another `wayleave watch` runs on this node; its lock is on {}", path.display())]
    Watched { path: PathBuf },
    #[error("the kernel does not say how many CPUs it may have")]
    Cpus { source: io::Error },
    #[error("the BPF object cannot be loaded")]
    Object { source: Box<aya::EbpfError> },
    #[error("the BPF object has no program `{name}`")]
    NoProgram { name: &'static str },
    #[error("cannot {action} the BPF program")]
    Program { action: &'static str, source: Box<aya::programs::ProgramError> },
    #[error("cannot use the map {map}")]
    Map { map: &'static str, source: Box<aya::maps::MapError> },
    #[error("the map {map} is not there")]
    NoMap { map: &'static str },
    #[error("cannot point port id {id} at the device with index {device}")]
    Port { id: u32, device: u32, source: Box<aya::maps::xdp::XdpMapError> },
    #[error("the {which} image cannot be read")]
    Image { which: &'static str, source: ImageError },
    #[error("a test run of the candidate was not counted")]
    NotCounted,
    #[error("the candidate failed its check in the kernel: {detail}")]
    Verify { detail: String },
    #[error("after publishing generation {generation}, the kernel holds {found}")]
    ReadBack { generation: u64, found: String },
    #[error(
        "{} holds layout {version}{}, which this version of wayleave (layout {ours}) does not know; it was left as it is. Use the newer wayleave, or take that out with its `wayleave detach` first",
        path.display(), by(written_by.as_deref())
    )]
    NewerLayout { path: PathBuf, version: u32, ours: u32, written_by: Option<String> },
    #[error("cannot attach to `{device}`: {detail}")]
    Attach { device: String, detail: String, source: io::Error },
}

/// Who wrote a layout, where that is known.
fn by(version: Option<&str>) -> String {
    version.map_or_else(String::new, |version| format!(", written by wayleave {version}"))
}

/// What to do about an error of bpf(2), where that is known.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; this needs root, or CAP_BPF and CAP_NET_ADMIN",
        _ => "",
    }
}

impl KernelError {
    fn map(map: &'static str) -> impl Fn(aya::maps::MapError) -> Self {
        move |source| Self::Map { map, source: Box::new(source) }
    }

    fn program(action: &'static str) -> impl Fn(aya::programs::ProgramError) -> Self {
        move |source| Self::Program { action, source: Box::new(source) }
    }

    fn image(which: &'static str) -> impl Fn(ImageError) -> Self {
        move |source| Self::Image { which, source }
    }
}
