//! What a device's driver can do for XDP, asked of the kernel's generic netlink family `netdev` (Linux 6.3 and newer).
//!
//! Nothing is attached to find out: on many network cards that would interrupt the link.

use std::io;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, netlink, recv, send, socket};

// linux/netlink.h, linux/genetlink.h, linux/netdev.h
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_BASIC: u64 = 1;
const NETDEV_XDP_ACT_REDIRECT: u64 = 2;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 4;

/// Bytes of the netlink header and of the generic header after it.
const HEADERS: usize = 16 + 4;

/// What a driver can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures {
    /// A program can run in the driver, and send packets to other devices.
    pub native: bool,
    /// Other devices' programs can send packets to this one.
    pub target: bool,
}

/// Asks about the device with this index in the calling thread's namespace.
pub fn xdp_features(index: u32) -> io::Result<XdpFeatures> {
    let family = ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, b"netdev\0", CTRL_ATTR_FAMILY_ID)?;
    let family = family.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes)).ok_or_else(cut)?;
    let index = index.to_ne_bytes();
    let features = ask(family, NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, &index, NETDEV_A_DEV_XDP_FEATURES)?;
    let features = features.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes)).ok_or_else(cut)?;
    let native = NETDEV_XDP_ACT_BASIC | NETDEV_XDP_ACT_REDIRECT;
    Ok(XdpFeatures { native: features & native == native, target: features & NETDEV_XDP_ACT_NDO_XMIT != 0 })
}

/// Sends one request with one attribute, and returns the value of the attribute `wanted` of its answer.
fn ask(family: u16, command: u8, attribute: u16, value: &[u8], wanted: u16) -> io::Result<Vec<u8>> {
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::GENERIC))?;
    let attribute_bytes = u16::try_from(4 + value.len()).map_err(io::Error::other)?;
    let mut request = vec![0; 4];
    request.extend(family.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([command, 1, 0, 0]);
    request.extend(attribute_bytes.to_ne_bytes());
    request.extend(attribute.to_ne_bytes());
    request.extend(value);
    request.resize(request.len().next_multiple_of(4), 0);
    let bytes = u32::try_from(request.len()).map_err(io::Error::other)?;
    request[..4].copy_from_slice(&bytes.to_ne_bytes());
    send(&socket, &request, SendFlags::empty())?;
    let mut answer = vec![0; 16 << 10];
    let (bytes, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    answer.truncate(bytes);
    if answer.get(4..6) == Some(&NLMSG_ERROR.to_ne_bytes()[..]) {
        let code =
            answer.get(16..20).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| i32::from_ne_bytes(*bytes));
        return Err(io::Error::from_raw_os_error(-code));
    }
    let mut rest = answer.get(HEADERS..).ok_or_else(cut)?;
    while let Some(([a, b, c, d], _)) = rest.split_first_chunk::<4>() {
        let (length, kind) = (usize::from(u16::from_ne_bytes([*a, *b])), u16::from_ne_bytes([*c, *d]));
        let value = rest.get(4..length).ok_or_else(cut)?;
        if kind == wanted {
            return Ok(value.to_vec());
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "the kernel did not say"))
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut short")
}
