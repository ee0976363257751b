//! Devices of a namespace: veth pairs, addresses, neighbours, counters.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use wayleave::kernel::ethtool::{like_a_wire, set_offload};

use crate::socket::{datagram_socket, interface_request};
use crate::{Namespace, Offload};

/// A MAC address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if at == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl FromStr for Mac {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let bytes: Vec<u8> = text
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16))
            .collect::<Result<_, _>>()
            .with_context(|| format!("{text} is not a MAC address"))?;
        let bytes = bytes.try_into().map_err(|_| anyhow::anyhow!("{text} does not have six bytes"))?;
        Ok(Self(bytes))
    }
}

/// What the kernel counted on a device, as `ip -s link` shows it; on a veth frames taken by XDP count as received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_dropped: u64,
}

/// Joins two namespaces by a veth pair, both ends up, every offload off that changes frames, GRO on.
///
/// GRO on makes each end poll its ring, without which frames that its peer gets by `XDP_REDIRECT` would be dropped.
pub fn veth(a: &Namespace, name_a: &str, b: &Namespace, name_b: &str) -> Result<()> {
    a.ip(&format!("link add {name_a} type veth peer name {name_b} netns {}", b.name()))?;
    for (namespace, device) in [(a, name_a), (b, name_b)] {
        namespace.enter(|| like_a_wire(device))?.with_context(|| format!("the offloads of {device}"))?;
    }
    a.set_up(name_a, true)?;
    b.set_up(name_b, true)
}

impl Namespace {
    pub fn set_offload(&self, device: &str, offload: Offload, on: bool) -> Result<()> {
        self.enter(|| set_offload(device, offload, on))?.with_context(|| format!("switching {offload:?} of {device}"))
    }

    pub fn set_up(&self, device: &str, up: bool) -> Result<()> {
        self.ip(&format!("link set {device} {}", if up { "up" } else { "down" })).map(drop)
    }

    pub fn set_mtu(&self, device: &str, mtu: u32) -> Result<()> {
        self.ip(&format!("link set {device} mtu {mtu}")).map(drop)
    }

    pub fn set_mac(&self, device: &str, mac: Mac) -> Result<()> {
        self.ip(&format!("link set {device} address {mac}")).map(drop)
    }

    /// Adds `address/length` and returns once it is usable.
    pub fn add_address(&self, device: &str, address: &str) -> Result<()> {
        let ip = address.split('/').next().unwrap_or(address);
        match ip.parse().with_context(|| format!("{address} is not an address with its prefix length"))? {
            IpAddr::V4(_) => self.ip(&format!("address add {address} dev {device}")).map(drop),
            IpAddr::V6(v6) => {
                self.ip(&format!("address add {address} dev {device} nodad"))?;
                self.wait_until_local(v6)
            }
        }
    }

    /// Waits for the address's local route: even without DAD a kernel worker adds it after `ip` has returned.
    pub(crate) fn wait_until_local(&self, address: Ipv6Addr) -> Result<()> {
        const RTF_LOCAL: u32 = 0x8000_0000;
        let wanted = format!("{:032x}", u128::from(address));
        // Destination, its length in hex, source, its length, next hop, metric, references, uses, flags, device.
        let is_it = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let flags = words.get(8).and_then(|flags| u32::from_str_radix(flags, 16).ok()).unwrap_or(0);
            words.starts_with(&[&wanted, "80"]) && flags & RTF_LOCAL != 0
        };
        self.enter(|| {
            for _ in 0..2_000 {
                if fs::read_to_string("/proc/thread-self/net/ipv6_route")?.lines().any(is_it) {
                    return Ok(());
                }
                thread::sleep(Duration::from_millis(1));
            }
            bail!("{address} in {} was not usable within two seconds", self.name())
        })?
    }

    /// Adds a permanent neighbour.
    pub fn add_neighbour(&self, device: &str, address: IpAddr, mac: Mac) -> Result<()> {
        self.ip(&format!("neighbour replace {address} lladdr {mac} dev {device} nud permanent")).map(drop)
    }

    /// The interface index, which means something in this namespace only.
    pub fn ifindex(&self, device: &str) -> Result<u32> {
        self.enter(|| {
            let index = rustix::net::netdevice::name_to_index(datagram_socket()?, device);
            index.with_context(|| format!("the index of {device}"))
        })?
    }

    pub fn mac(&self, device: &str) -> Result<Mac> {
        self.enter(|| {
            let socket = datagram_socket()?;
            let mut request = interface_request(device)?;
            // SAFETY: SIOCGIFHWADDR reads the name and fills the hardware address of a live `ifreq`.
            if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR as _, &raw mut request) } < 0 {
                return Err(io::Error::last_os_error()).with_context(|| format!("the MAC of {device}"));
            }
            // SAFETY: after a successful SIOCGIFHWADDR the union holds `ifru_hwaddr`.
            let bytes = unsafe { request.ifr_ifru.ifru_hwaddr }.sa_data;
            let mut mac = Mac::default();
            for (to, from) in mac.0.iter_mut().zip(bytes) {
                [*to] = from.to_ne_bytes();
            }
            Ok(mac)
        })?
    }

    pub fn counters(&self, device: &str) -> Result<LinkCounters> {
        // /proc/net is the namespace of the process's first thread; thread-self is ours.
        let table = self.enter(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
        let line = table.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| name.trim() == device);
        let Some((_, numbers)) = line else { bail!("no device {device} in {}", self.name()) };
        let numbers: Vec<u64> = numbers.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        // Receive: bytes packets errs drop fifo frame compressed multicast; then transmit: bytes packets errs drop …
        let [rx_bytes, rx_packets, _, rx_dropped, _, _, _, _, tx_bytes, tx_packets, _, tx_dropped, ..] = numbers[..]
        else {
            bail!("/proc/net/dev has a form this lab does not know: {numbers:?}");
        };
        Ok(LinkCounters { rx_bytes, rx_packets, rx_dropped, tx_bytes, tx_packets, tx_dropped })
    }
}
