//! Attaching the program to devices, by links whose pins outlive the process.

use std::io;
use std::os::fd::AsFd as _;

use super::pins::Pins;
use super::program::Programs;
use super::{KernelError, sys};

/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE` of the kernel's `if_link.h`.
const GENERIC: u32 = 1 << 1;
const NATIVE: u32 = 1 << 2;

/// How a program may be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Native where the driver can, else generic.
    Auto,
    /// In the driver, before the kernel makes a buffer for the packet.
    Native,
    /// After the kernel has made one: works on every device, slower.
    Generic,
    /// By TC ingress, with a TCX link: from Linux 6.6.
    Tc,
}

impl Mode {
    /// As a node's configuration says it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tc => "tc",
        }
    }
}

/// How a program was attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    Native,
    Generic,
    Tc,
}

/// Attaches the live program to `device` and pins the link.
pub fn attach(pins: &Pins, programs: &Programs, device: &str, index: u32, mode: Mode) -> Result<Attached, KernelError> {
    let program = if mode == Mode::Tc { programs.live_tc_fd(pins)? } else { programs.live_fd()? };
    let native = || sys::create_xdp_link(program, index, NATIVE).map(|l| (l, Attached::Native));
    let generic = || sys::create_xdp_link(program, index, GENERIC).map(|l| (l, Attached::Generic));
    let result = match mode {
        Mode::Native => native(),
        Mode::Generic => generic(),
        Mode::Tc => sys::create_tcx_link(program, index).map(|l| (l, Attached::Tc)),
        // EOPNOTSUPP: the driver has no XDP. EINVAL and ERANGE: it has, but not as the device is set up now.
        Mode::Auto => native().or_else(|e| match e.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ERANGE) => generic(),
            _ => Err(e),
        }),
    };
    let (link, attached) = result.map_err(|source| KernelError::Attach {
        device: device.to_owned(),
        detail: advice(&source, mode).to_owned(),
        source,
    })?;
    sys::pin(link.as_fd(), &pins.link(device))?;
    Ok(attached)
}

fn advice(error: &io::Error, mode: Mode) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => "another XDP program is attached to it; remove that first",
        Some(libc::EOPNOTSUPP) if mode == Mode::Native => {
            "its driver has no native XDP; use `attach: auto` or `generic`"
        }
        Some(libc::EINVAL) if mode == Mode::Tc => "the kernel has no TCX links (they came with Linux 6.6)",
        Some(libc::EPERM | libc::EACCES) => "this needs root, or CAP_BPF and CAP_NET_ADMIN",
        _ => "the kernel refused",
    }
}

/// Gives an existing link the live program, in one step.
pub fn update(pins: &Pins, programs: &Programs, device: &str) -> Result<(), KernelError> {
    match sys::pinned(&pins.link(device))? {
        Some(link) => {
            let (_, _, tc) = sys::link_facts(link.as_fd())?;
            let program = if tc { programs.live_tc_fd(pins)? } else { programs.live_fd()? };
            sys::update_link(link.as_fd(), program)
        }
        None => Ok(()),
    }
}

/// Detaches a device and forgets its pin.
pub fn detach(pins: &Pins, device: &str) -> Result<(), KernelError> {
    if let Some(link) = sys::pinned(&pins.link(device))? {
        let (_, index, _) = sys::link_facts(link.as_fd())?;
        // A link whose device is gone is detached already.
        if index != 0 {
            sys::detach_link(link.as_fd())?;
        }
    }
    pins.remove(&pins.link(device))
}
