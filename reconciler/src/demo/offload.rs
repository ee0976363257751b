//! Device offloads through the ethtool ioctl: a veth must carry frames as a wire would.

use std::io;
use std::mem::zeroed;
use std::os::fd::AsRawFd as _;

use rustix::net::{AddressFamily, SocketType, socket};

// linux/ethtool.h
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_SGSO: u32 = 0x24;
const ETHTOOL_SGRO: u32 = 0x2c;

#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Makes frames leave whole, checksums finished, and come in by the device's ring: the peer of a veth takes frames by
/// `XDP_REDIRECT` only when it polls that ring, which GRO makes it do.
pub(super) fn like_a_wire(device: &str) -> io::Result<()> {
    for (command, data) in [(ETHTOOL_STXCSUM, 0), (ETHTOOL_STSO, 0), (ETHTOOL_SGSO, 0), (ETHTOOL_SGRO, 1)] {
        ethtool(device, command, data)?;
    }
    Ok(())
}

fn ethtool(device: &str, command: u32, data: u32) -> io::Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut value = EthtoolValue { command, data };
    // SAFETY: every field of `ifreq` is an integer, a raw pointer or a union of such, for which zero is valid.
    let mut request: libc::ifreq = unsafe { zeroed() };
    let name = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..name].iter_mut().zip(device.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: with these commands SIOCETHTOOL reads one `ethtool_value` behind ifru_data; both structures outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
