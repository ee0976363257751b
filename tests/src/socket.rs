//! The few raw socket calls that neither `std` nor `rustix` has.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};

/// Opens a socket in the calling thread's namespace.
pub(crate) fn open_socket(domain: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    // SAFETY: socket(2) takes three integers.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("socket(domain {domain}, type {kind}, protocol {protocol})"));
    }
    // SAFETY: the kernel just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A socket that only carries ioctls about interfaces.
pub(crate) fn datagram_socket() -> Result<OwnedFd> {
    open_socket(libc::AF_INET, libc::SOCK_DGRAM, 0)
}

/// An `ifreq` about `device`, otherwise zero.
pub(crate) fn interface_request(device: &str) -> Result<libc::ifreq> {
    // SAFETY: every field of `ifreq` is an integer, a raw pointer or a union of such, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    ensure!(device.len() < request.ifr_name.len(), "the device name {device} is longer than 15 bytes");
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// Sets a socket option whose value is the plain C value `T`.
pub(crate) fn set_option<T: Copy>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>())?;
    // SAFETY: the kernel reads `length` bytes from a live `T` of that size.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), length) };
    if result < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("setsockopt(level {level}, option {option})"));
    }
    Ok(())
}

/// Bounds how long a receive call waits.
pub(crate) fn set_receive_timeout(socket: &OwnedFd, timeout: std::time::Duration) -> Result<()> {
    // A zero timeval would mean "for ever".
    let timeout = timeout.max(std::time::Duration::from_micros(1));
    let value = libc::timeval { tv_sec: timeout.as_secs().try_into()?, tv_usec: timeout.subsec_micros().into() };
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &value)
}
