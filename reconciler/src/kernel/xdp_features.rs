//! What the drivers can do for XDP, asked of the kernel's generic netlink family `netdev` (Linux 6.3 and newer).
//!
//! Nothing is attached to find out: on many network cards that would interrupt the link.

use std::collections::BTreeMap;
use std::io;

use rustix::net::netlink;

use super::netlink::{Attributes, NLM_F_DUMP, ask, attribute, cut};

// linux/genetlink.h, linux/netdev.h
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_BASIC: u64 = 1 << 0;
const NETDEV_XDP_ACT_REDIRECT: u64 = 1 << 1;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 1 << 2;
const NETDEV_XDP_ACT_RX_SG: u64 = 1 << 5;
const NETDEV_XDP_ACT_NDO_XMIT_SG: u64 = 1 << 6;

/// Bytes of the generic header: command u8, version u8, zero u16.
const GENERIC_BYTES: usize = 4;

/// What a driver can do, as the device is set up now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an answer of the kernel by itself")]
pub struct XdpFeatures {
    /// A program can run in the driver, and send packets to other devices.
    pub native: bool,
    /// Such a program can get frames of several buffers.
    pub native_frags: bool,
    /// Other devices' programs can send packets to this one.
    pub target: bool,
    /// They can be frames of several buffers.
    pub target_frags: bool,
}

/// Asks about every device of the calling thread's namespace, by index. `NotFound`: the kernel does not say.
pub fn all_xdp_features() -> io::Result<BTreeMap<u32, XdpFeatures>> {
    Ok(devices(NLM_F_DUMP, &Attributes::default())?.into_iter().collect())
}

/// Asks about the device with this index in the calling thread's namespace. `NotFound`: the kernel does not say.
pub fn xdp_features(index: u32) -> io::Result<XdpFeatures> {
    let one = devices(0, &Attributes::default().with(NETDEV_A_DEV_IFINDEX, &index.to_ne_bytes()))?;
    one.first().map(|(_, features)| *features).ok_or_else(cut)
}

fn devices(flags: u16, attributes: &Attributes) -> io::Result<Vec<(u32, XdpFeatures)>> {
    let generic = |kind, flags, command, attributes: &Attributes| {
        ask(Some(netlink::GENERIC), kind, flags, &[command, 1, 0, 0], attributes)
    };
    let name = Attributes::default().with(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let families = generic(GENL_ID_CTRL, 0, CTRL_CMD_GETFAMILY, &name)?;
    let family = families.first().and_then(|family| attribute(family.get(GENERIC_BYTES..)?, CTRL_ATTR_FAMILY_ID));
    let family = family.and_then(<[u8]>::first_chunk).map(|id| u16::from_ne_bytes(*id)).ok_or_else(cut)?;
    let answers = generic(family, flags, NETDEV_CMD_DEV_GET, attributes)?;
    let device = |answer: &Vec<u8>| {
        let answer = answer.get(GENERIC_BYTES..)?;
        let index = attribute(answer, NETDEV_A_DEV_IFINDEX)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))?;
        let bits = attribute(answer, NETDEV_A_DEV_XDP_FEATURES)?.first_chunk().map(|b| u64::from_ne_bytes(*b))?;
        Some((index, XdpFeatures::from_bits(bits)))
    };
    answers.iter().map(|answer| device(answer).ok_or_else(cut)).collect()
}

impl XdpFeatures {
    fn from_bits(bits: u64) -> Self {
        let all = |wanted| bits & wanted == wanted;
        let native = NETDEV_XDP_ACT_BASIC | NETDEV_XDP_ACT_REDIRECT;
        Self {
            native: all(native),
            native_frags: all(native | NETDEV_XDP_ACT_RX_SG),
            target: all(NETDEV_XDP_ACT_NDO_XMIT),
            target_frags: all(NETDEV_XDP_ACT_NDO_XMIT | NETDEV_XDP_ACT_NDO_XMIT_SG),
        }
    }
}
