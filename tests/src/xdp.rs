//! Two-instruction XDP programs: a veth peer needs one, or GRO, to receive redirected frames.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, bail};

use crate::Namespace;

// linux/bpf.h
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
// linux/if_link.h
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const LICENSE: &CStr = c"GPL";

/// Where in the receive path a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, before a socket buffer exists.
    Native,
    /// After the socket buffer was made.
    Generic,
}

/// A program attached to a device until this is dropped.
#[derive(Debug)]
pub struct AttachedXdp {
    link: OwnedFd,
}

impl Drop for AttachedXdp {
    fn drop(&mut self) {
        // Closing alone is not enough: a child that another thread just forked holds a copy until its exec.
        let link = self.link.as_raw_fd();
        // SAFETY: for BPF_LINK_DETACH `bpf_attr` starts with the link's descriptor. Drop cannot report a failure, and
        // closing follows.
        unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const link, size_of_val(&link)) };
    }
}

/// Fails with what is missing, unless this process is root and the kernel loads and attaches BPF for it.
///
/// A test calls it first: without root or BPF it must fail with this reason and never skip.
pub fn require_root_and_bpf() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("this test needs root: it makes network namespaces and loads BPF programs (run it with sudo)");
    }
    load(XDP_PASS).context("this test needs a kernel with CONFIG_BPF_SYSCALL, and CAP_BPF and CAP_NET_ADMIN")?;
    Ok(())
}

/// Attaches a native program that passes every frame to the kernel.
pub fn attach_xdp_pass(namespace: &Namespace, device: &str) -> Result<AttachedXdp> {
    attach(namespace, device, XDP_PASS, XdpMode::Native)
}

/// Attaches a native program that drops every frame: the cheapest receiver, read its count from
/// [`Namespace::counters`].
pub fn attach_xdp_drop(namespace: &Namespace, device: &str) -> Result<AttachedXdp> {
    attach(namespace, device, XDP_DROP, XdpMode::Native)
}

/// Attaches a program that returns `action` for every frame, in the given mode.
fn attach(namespace: &Namespace, device: &str, action: u32, mode: XdpMode) -> Result<AttachedXdp> {
    #[repr(C)]
    struct Attributes {
        prog_fd: u32,
        target_ifindex: u32,
        attach_type: u32,
        flags: u32,
    }
    let program = load(action)?;
    let flags = match mode {
        XdpMode::Native => XDP_FLAGS_DRV_MODE,
        XdpMode::Generic => XDP_FLAGS_SKB_MODE,
    };
    let attributes = Attributes {
        prog_fd: program.as_raw_fd().try_into()?,
        target_ifindex: namespace.ifindex(device)?,
        attach_type: BPF_XDP,
        flags,
    };
    // The index is looked up in the namespace of the calling thread.
    let link = namespace.enter(|| {
        // SAFETY: for BPF_LINK_CREATE the first 16 bytes of `bpf_attr` are exactly these four fields.
        unsafe { bpf(BPF_LINK_CREATE, &attributes) }
    })?;
    let link = link.with_context(|| format!("attaching an XDP program to {device} ({mode:?})"))?;
    Ok(AttachedXdp { link })
}

fn load(action: u32) -> Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        prog_type: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buffer: u64,
        kernel_version: u32,
        flags: u32,
    }
    /// `struct bpf_insn`: the registers byte is dst | src << 4.
    #[repr(C)]
    struct Instruction {
        code: u8,
        registers: u8,
        offset: i16,
        immediate: u32,
    }
    let program = [
        Instruction { code: 0xb7, registers: 0, offset: 0, immediate: action }, // r0 = action
        Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 },      // exit
    ];
    let attributes = Attributes {
        prog_type: BPF_PROG_TYPE_XDP,
        instruction_count: 2,
        instructions: program.as_ptr().expose_provenance() as u64,
        license: LICENSE.as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the fields follow `bpf_attr` for BPF_PROG_LOAD; `program` and LICENSE outlive the call.
    unsafe { bpf(BPF_PROG_LOAD, &attributes) }.context("loading a two-instruction XDP program")
}

/// bpf(2) for the commands that return a descriptor.
///
/// # Safety
///
/// `T` must be a `repr(C)` prefix of `bpf_attr` for `command`, with every pointer in it valid for the call.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> Result<OwnedFd> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of a live `T`; the caller vouches for the content.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("bpf(2) command {command}"));
    }
    // SAFETY: both commands return a new descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(result.try_into()?) })
}
