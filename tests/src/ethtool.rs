//! Device offloads through the ethtool ioctl, as the lab must not need the `ethtool` program.

use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};

use crate::socket::{datagram_socket, interface_request};

// linux/ethtool.h
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_SGSO: u32 = 0x24;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
const ETHTOOL_SGRO: u32 = 0x2c;
const ETH_FLAG_TXVLAN: u32 = 1 << 7;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// A device feature that changes what a frame looks like on a veth.
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
    /// VLAN tags carried beside the frame instead of in it.
    Vlan,
}

#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Switches an offload of `device` in the calling thread's namespace.
pub(crate) fn set_offload(device: &str, offload: Offload, on: bool) -> Result<()> {
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
    .with_context(|| format!("switching {offload:?} of {device} {}", if on { "on" } else { "off" }))
}

fn ethtool(device: &str, command: u32, data: u32) -> Result<u32> {
    let socket = datagram_socket()?;
    let mut value = EthtoolValue { command, data };
    let mut request = interface_request(device)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: SIOCETHTOOL with these commands reads and writes one `ethtool_value` behind ifru_data; both structures
    // outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("ethtool command {command:#x}"));
    }
    Ok(value.data)
}
