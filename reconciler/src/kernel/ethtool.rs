//! Device offloads, by the ethtool ioctl: what a device does to frames before a program sees them.

use std::io;
use std::os::fd::AsRawFd as _;

use rustix::net::{AddressFamily, SocketType, socket};

// linux/ethtool.h
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_SGSO: u32 = 0x24;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
const ETHTOOL_SGRO: u32 = 0x2c;
const ETH_FLAG_TXVLAN: u32 = 1 << 7;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// A device feature that changes what a frame looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Checksums left to the "hardware": on a veth they stay unfinished, and a program that forwards sees wrong ones.
    TxChecksum,
    /// TCP segmentation by the device.
    Tso,
    /// Segmentation as late as possible.
    Gso,
    /// Merging on receive; on a veth it also makes the peer accept redirected frames.
    Gro,
    /// VLAN tags carried beside the frame instead of in it, on receive and on transmit.
    Vlan,
}

/// Switches an offload of `device` in the calling thread's namespace.
pub fn set_offload(device: &str, offload: Offload, on: bool) -> io::Result<()> {
    let value = u32::from(on);
    match offload {
        Offload::TxChecksum => ethtool(device, ETHTOOL_STXCSUM, value),
        Offload::Tso => ethtool(device, ETHTOOL_STSO, value),
        Offload::Gso => ethtool(device, ETHTOOL_SGSO, value),
        Offload::Gro => ethtool(device, ETHTOOL_SGRO, value),
        Offload::Vlan => ethtool(device, ETHTOOL_GFLAGS, 0).and_then(|flags| {
            let tags = ETH_FLAG_TXVLAN | ETH_FLAG_RXVLAN;
            ethtool(device, ETHTOOL_SFLAGS, if on { flags | tags } else { flags & !tags })
        }),
    }
    .map(drop)
}

/// Lets a veth carry frames as a wire would: whole, checksums finished, tags in them. GRO makes it poll its ring, without
/// which it would drop frames that it gets by `XDP_REDIRECT`.
pub fn like_a_wire(device: &str) -> io::Result<()> {
    for offload in [Offload::TxChecksum, Offload::Tso, Offload::Gso, Offload::Vlan] {
        set_offload(device, offload, false)?;
    }
    set_offload(device, Offload::Gro, true)
}

/// Whether `device` takes the outer VLAN tag out of received frames (`rxvlan` of ethtool): XDP cannot see it then, TC can.
pub fn hides_vlan_tags(device: &str) -> io::Result<bool> {
    match ethtool(device, ETHTOOL_GFLAGS, 0) {
        Ok(flags) => Ok(flags & ETH_FLAG_RXVLAN != 0),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Makes one call that takes or gives one number.
fn ethtool(device: &str, command: u32, data: u32) -> io::Result<u32> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut value = EthtoolValue { command, data };
    // SAFETY: every field of `ifreq` is an integer, a raw pointer or a union of such, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..name].iter_mut().zip(device.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: with these commands SIOCETHTOOL reads and writes one `ethtool_value` behind ifru_data; both structures
    // outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value.data) }
}
