//! The standard lab: a client, a router and upstreams.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};

use crate::{Mac, Namespace, veth};

/// Addresses behind every upstream: any of them answers, so a test sees by MAC or counter which one got a packet.
const DESTINATIONS: [&str; 3] = ["198.51.100.0/24", "203.0.113.0/24", "2001:db8:100::/48"];
/// The sink's subnets are numbered apart from the upstreams'.
const SINK_SUBNET: u8 = 0xff;

/// A namespace at the other end of one of the router's devices.
///
/// Its own device is always `eth0`, and its default routes lead to the router.
#[derive(Debug)]
pub struct Host {
    pub namespace: Namespace,
    /// The router's device towards it: `lan`, `upa`, `upb`, …, `upz`.
    pub router_device: String,
    pub router_v4: Ipv4Addr,
    pub router_v6: Ipv6Addr,
    pub router_mac: Mac,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pub mac: Mac,
}

/// client — router — upstreams, and a sink z, each on a /24 and a /64 of its own:
///
/// ```text
/// client 10.77.0.2  fd77:0::2 ── lan 10.77.0.1 ┌────────┐ upa 10.77.1.1   ── 10.77.1.2   fd77:1::2  up-a
///                                              │ router │ upb 10.77.2.1   ── 10.77.2.2   fd77:2::2  up-b
///                                              └────────┘ upz 10.77.255.1 ── 10.77.255.2 fd77:ff::2 sink
/// ```
///
/// The router forwards in the kernel between its subnets, but has no route to the destinations 198.51.100.0/24,
/// 203.0.113.0/24 and `2001:db8:100::/48`, which are local on every upstream: a packet that reaches one was forwarded by
/// the program under test, or by a route from [`Topology::route_in_kernel`]. The sink answers nothing but for its own
/// address; it swallows the rest silently.
#[derive(Debug)]
pub struct Topology {
    pub client: Host,
    pub router: Namespace,
    pub upstreams: Vec<Host>,
    pub sink: Host,
}

impl Topology {
    /// The usual two upstreams, up-a and up-b.
    pub fn router() -> Result<Self> {
        Self::with_upstreams(2)
    }

    /// Up to 25 upstreams: up-a, up-b, … behind `upa`, `upb`, ….
    pub fn with_upstreams(count: u8) -> Result<Self> {
        ensure!((1..=25).contains(&count), "{count} upstreams, where 1 to 25 are possible");
        let router = Namespace::new("router")?;
        let client = Host::join(&router, "client", "lan", 0)?;
        let upstreams = (1..=count)
            .map(|number| {
                let letter = char::from(b'a' + number - 1);
                let upstream = Host::join(&router, &format!("up-{letter}"), &format!("up{letter}"), number)?;
                for prefix in DESTINATIONS {
                    upstream.namespace.ip(&format!("route add local {prefix} dev lo"))?;
                }
                Ok(upstream)
            })
            .collect::<Result<_>>()?;
        let sink = Host::join(&router, "z", "upz", SINK_SUBNET)?;
        // Its default routes are the silent kind, so that nothing it gets ever comes back.
        sink.namespace.ip_batch("route replace blackhole 0.0.0.0/0\nroute replace blackhole ::/0 metric 1\n")?;
        router.set_forwarding(true)?;
        Ok(Self { client, router, upstreams, sink })
    }

    /// The upstream with this number, from zero.
    pub fn upstream(&self, number: usize) -> Result<&Host> {
        self.upstreams.get(number).with_context(|| format!("no upstream number {number}"))
    }

    /// Gives the router's kernel a route for `prefix` to the neighbour, as an ordinary router has.
    pub fn route_in_kernel(&self, prefix: &str, to: &Host) -> Result<()> {
        let via: IpAddr = if prefix.contains(':') { to.v6.into() } else { to.v4.into() };
        self.router.ip(&format!("route replace {prefix} via {via} dev {}", to.router_device)).map(drop)
    }

    /// Makes every neighbour known to the router for good, so that no packet waits for ARP or ND.
    pub fn fix_neighbours(&self) -> Result<()> {
        for one in self.upstreams.iter().chain([&self.client, &self.sink]) {
            for (address, router_address) in
                [(IpAddr::from(one.v4), IpAddr::from(one.router_v4)), (one.v6.into(), one.router_v6.into())]
            {
                self.router.add_neighbour(&one.router_device, address, one.mac)?;
                one.namespace.add_neighbour("eth0", router_address, one.router_mac)?;
            }
        }
        Ok(())
    }
}

impl Host {
    /// Makes the namespace and wires it to the router's subnet of this number.
    fn join(router: &Namespace, label: &str, router_device: &str, subnet: u8) -> Result<Self> {
        let namespace = Namespace::new(label)?;
        veth(router, router_device, &namespace, "eth0")?;
        let one = Self {
            router_device: router_device.to_owned(),
            router_v4: Ipv4Addr::new(10, 77, subnet, 1),
            router_v6: Ipv6Addr::new(0xfd77, subnet.into(), 0, 0, 0, 0, 0, 1),
            router_mac: Mac([0x02, 0x77, 0, 0, subnet, 1]),
            v4: Ipv4Addr::new(10, 77, subnet, 2),
            v6: Ipv6Addr::new(0xfd77, subnet.into(), 0, 0, 0, 0, 0, 2),
            mac: Mac([0x02, 0x77, 0, 0, subnet, 2]),
            namespace,
        };
        router.ip_batch(&format!(
            "link set {router_device} address {}\naddress add {}/24 dev {router_device}\naddress add {}/64 dev {router_device} nodad\n",
            one.router_mac, one.router_v4, one.router_v6
        ))?;
        one.namespace.ip_batch(&format!(
            "link set eth0 address {}\naddress add {}/24 dev eth0\naddress add {}/64 dev eth0 nodad\n\
             route add default via {}\nroute add default via {} metric 1024\n",
            one.mac, one.v4, one.v6, one.router_v4, one.router_v6
        ))?;
        router.wait_until_local(one.router_v6)?;
        one.namespace.wait_until_local(one.v6)?;
        Ok(one)
    }
}
