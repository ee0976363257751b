//! A client, a router and two edges: four network namespaces, joined by veth pairs.
//!
//! ```text
//! client 10.77.0.2 fd77::2 ── lan [router] up-a ── 10.77.1.2 fd77:1::2 edge-a ┐ both are
//!                                          up-b ── 10.77.2.2 fd77:2::2 edge-b ┘ 198.51.100.10
//! ```

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::cli::node::block_on;
use crate::kernel::ethtool::like_a_wire;

/// The service that both edges carry, in both families.
pub(super) const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
pub(super) const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x10);
/// A host that the policies block. Both edges carry it too: only the policies keep the client away.
pub(super) const BLOCKED_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub(super) const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub(super) const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);

/// Settings of every namespace: IPv6 addresses usable at once, no second opinion on source addresses, echo sockets
/// for this process.
const SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
];

/// How long a new address may take until it can be used.
const USABLE_WAIT: Duration = Duration::from_secs(3);

/// Gives the process a mount table of its own with an empty directory for files and a bpf file system in it.
///
/// Must run before any other thread is started. Nobody else sees these mounts, and they go when the process ends.
pub(super) fn private_files() -> anyhow::Result<PathBuf> {
    // SAFETY: the calling thread is the only one; its file descriptors stay as they are.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("a mount namespace")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("private mounts")?;
    let place = std::env::temp_dir();
    mount("wayleave-demo", &place, "tmpfs", MountFlags::empty(), None).context("a tmpfs")?;
    let bpffs = place.join("bpffs");
    fs::create_dir(&bpffs)?;
    mount("bpf", &bpffs, "bpf", MountFlags::empty(), None).context("a bpf file system")?;
    Ok(place)
}

/// A network namespace without a name: it lasts as long as this value or a thread in it.
#[derive(Debug)]
pub(super) struct Namespace {
    fd: OwnedFd,
}

/// The demo's machines.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) client: Namespace,
    pub(super) router: Namespace,
    /// By the name of their next hop.
    pub(super) edges: [(&'static str, Namespace); 2],
}

impl Network {
    pub(super) fn new() -> anyhow::Result<Self> {
        let router = Namespace::new()?;
        let client = Namespace::new()?;
        let edges = [("edge-a", Namespace::new()?), ("edge-b", Namespace::new()?)];
        join(&router, "lan", &client, 0, &[]).context("wiring the client")?;
        for ((name, edge), (device, subnet)) in edges.iter().zip([("up-a", 1), ("up-b", 2)]) {
            let services = [SERVICE_V4.into(), SERVICE_V6.into(), BLOCKED_V4.into()];
            join(&router, device, edge, subnet, &services).with_context(|| format!("wiring {name}"))?;
        }
        router.enter(|| {
            write_sysctl("net/ipv4/ip_forward", "1")?;
            write_sysctl("net/ipv6/conf/all/forwarding", "1")
        })?;
        Ok(Self { client, router, edges })
    }
}

impl Namespace {
    fn new() -> anyhow::Result<Self> {
        let make = || -> anyhow::Result<OwnedFd> {
            // SAFETY: the thread was started for this call and ends after it; its file descriptors stay as they are.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context("a network namespace")?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        };
        let fd = thread::scope(|scope| scope.spawn(make).join()).unwrap_or_else(|panic| resume_unwind(panic))?;
        let namespace = Self { fd };
        namespace.enter(|| SYSCTLS.iter().try_for_each(|(key, value)| write_sysctl(key, value)))?;
        Ok(namespace)
    }

    /// Runs `work` in a thread that lives here; sockets that it opens stay here wherever they are used.
    pub(super) fn enter<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.join_thread()?;
                work()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Moves the calling thread here for good, and what it starts from then on.
    pub(super) fn join_thread(&self) -> anyhow::Result<()> {
        move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network)).context("entering a namespace")
    }

    fn configure(&self, work: impl AsyncFnOnce(&Handle) -> anyhow::Result<()> + Send) -> anyhow::Result<()> {
        self.enter(|| {
            block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection()?;
                tokio::spawn(connection);
                work(&handle).await
            })?
        })
    }
}

/// Joins `host` to the router's subnet of this number; `services` are addresses of the host beside its own.
fn join(router: &Namespace, device: &str, host: &Namespace, subnet: u8, services: &[IpAddr]) -> anyhow::Result<()> {
    let addresses = |end: u8| -> [(IpAddr, u8); 2] {
        let v6 = Ipv6Addr::new(0xfd77, subnet.into(), 0, 0, 0, 0, 0, end.into());
        [(Ipv4Addr::new(10, 77, subnet, end).into(), 24), (v6.into(), 64)]
    };
    let [at_router, at_host] = [addresses(1), addresses(2)];
    let fd = host.fd.as_raw_fd();
    router.configure(async |handle| {
        handle.link().add(LinkVeth::new(device, "eth0").build()).execute().await?;
        Ok(handle.link().set(LinkUnspec::new_with_name("eth0").setns_by_fd(fd).build()).execute().await?)
    })?;
    // The host first: a veth takes frames by XDP_REDIRECT if its peer had GRO when it came up.
    host.configure(async |handle| {
        let lo: Vec<(IpAddr, u8)> = services.iter().map(|a| (*a, if a.is_ipv4() { 32 } else { 128 })).collect();
        bring_up(handle, "lo", &lo).await?;
        bring_up(handle, "eth0", &at_host).await
    })?;
    router.configure(async |handle| bring_up(handle, device, &at_router).await)?;
    host.configure(async |handle| {
        for (gateway, _) in at_router {
            let route = match gateway {
                IpAddr::V4(gateway) => RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build(),
                IpAddr::V6(gateway) => RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).build(),
            };
            handle.route().add(route).execute().await.with_context(|| format!("the route via {gateway}"))?;
        }
        Ok(())
    })?;
    for (namespace, addresses) in [(router, at_router), (host, at_host)] {
        namespace.enter(|| wait_until_usable(addresses[1].0))?;
    }
    host.enter(|| services.iter().try_for_each(|service| wait_until_usable(*service)))
}

/// Waits until sockets can be bound to an address: a kernel worker makes IPv6 addresses usable a moment later.
fn wait_until_usable(address: IpAddr) -> anyhow::Result<()> {
    let deadline = Instant::now() + USABLE_WAIT;
    loop {
        match UdpSocket::bind((address, 0)) {
            Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
            result => return result.map(drop).with_context(|| format!("{address} is not usable")),
        }
    }
}

async fn bring_up(handle: &Handle, device: &str, addresses: &[(IpAddr, u8)]) -> anyhow::Result<()> {
    let index = rustix::net::netdevice::name_to_index(
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?,
        device,
    )
    .with_context(|| format!("the index of {device}"))?;
    if device != "lo" {
        like_a_wire(device).with_context(|| format!("the offloads of {device}"))?;
    }
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
    for (address, length) in addresses {
        let added = handle.address().add(index, *address, *length).execute().await;
        added.with_context(|| format!("the address {address} of {device}"))?;
    }
    Ok(())
}

fn write_sysctl(key: &str, value: &str) -> anyhow::Result<()> {
    let path = Path::new("/proc/sys").join(key);
    fs::write(&path, value).with_context(|| format!("writing {value} to {}", path.display()))
}
