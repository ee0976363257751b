//! Flows that the flow table knows while a case runs.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use fib::service::{Address, FlowEntry, FlowKey, FlowWords, flow_key, mapped};
use wayleave::compile::View;

use super::words::Words;

/// One flow of a service: `SERVICE PROTOCOL CLIENT VIP BACKEND [new|closing] [half-open] [age=SECONDS]`, addresses with
/// ports. The backend's port is that of its translated packets; with `l2-dsr` that of the vip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownFlow {
    service: String,
    protocol: u8,
    client: SocketAddr,
    vip: SocketAddr,
    backend: SocketAddr,
    state: u8,
    age_s: u32,
    /// Which table it lies in.
    pub(super) is_half_open: bool,
}

impl KnownFlow {
    pub(super) fn read(text: &str) -> Result<Self> {
        let mut words = Words::of(text)?;
        let state = match (words.flag("new"), words.flag("closing")) {
            (true, _) => FlowEntry::NEW,
            (_, true) => FlowEntry::CLOSING,
            _ => FlowEntry::ESTABLISHED,
        };
        let is_half_open = words.flag("half-open");
        let service = words.next("the service")?.to_owned();
        let protocol = match words.next("the protocol")? {
            "tcp" => 6,
            "udp" => 17,
            other => bail!("`{other}` is neither tcp nor udp"),
        };
        let mut socket = |what| -> Result<SocketAddr> { words.next(what)?.parse().context("an address with its port") };
        let (client, vip, backend) = (socket("the client")?, socket("the vip")?, socket("the backend")?);
        let age_s = words.number("age")?.unwrap_or(0);
        words.finish()?;
        Ok(Self { service, protocol, client, vip, backend, state, age_s, is_half_open })
    }

    /// The entries of both directions, as they are at the second `now_s`.
    pub(super) fn entries(&self, view: &View<'_>, now_s: u32) -> Result<[(FlowKey, FlowWords); 2]> {
        let service = view.services().find(|service| service.name == self.service).context("no such service")?;
        let backend = view.backends(&service).find(|backend| backend.address == self.backend.ip());
        let backend = backend.context("the service has no backend of this address")?.id;
        let key = |from: SocketAddr, to: SocketAddr| {
            let ports = u32::from(from.port()) << 16 | u32::from(to.port());
            flow_key(address(from.ip()), address(to.ip()), self.protocol, ports)
        };
        let entry = |to: SocketAddr, direction: u8| {
            let entry = FlowEntry {
                service: service.id,
                backend,
                seen_s: now_s.wrapping_sub(self.age_s),
                state: self.state,
                direction,
                port: to.port(),
                address: address(to.ip()),
            };
            entry.encode()
        };
        Ok([
            (key(self.client, self.vip), entry(self.backend, FlowEntry::TO_BACKEND)),
            (key(self.backend, self.client), entry(self.vip, FlowEntry::FROM_BACKEND)),
        ])
    }
}

fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => mapped(4, [u64::from(v4.to_bits()) << 32, 0]),
        IpAddr::V6(v6) => {
            let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default();
            [half(v6.to_bits() >> 64), half(v6.to_bits())]
        }
    }
}
