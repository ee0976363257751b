//! Neighbours (ARP and ND entries): listed, and resolved on demand.
//!
//! XDP cannot wait for an answer to ARP, so a next hop has to be known before the first packet needs it. The kernel asks
//! and keeps the table; this module tells it to, and waits for what it learns.
//!
//! Everything acts in the network namespace of the thread that first polls the future.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use tokio::time::{Instant, timeout_at};

use super::watch::{Event, Watch};

/// Why rtnetlink could not say or do something.
#[derive(Debug, thiserror::Error)]
pub enum NeighbourError {
    #[error("cannot open an rtnetlink socket")]
    Open {
        #[source]
        source: io::Error,
    },
    #[error("the kernel refused to {what}")]
    Request {
        what: &'static str,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("interface {ifindex} cannot be asked for {ip}")]
    Ask {
        ifindex: u32,
        ip: IpAddr,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("{ip} on interface {ifindex} did not answer within {} ms; last state: {state:?}", timeout.as_millis())]
    TimedOut {
        ifindex: u32,
        ip: IpAddr,
        timeout: Duration,
        /// `Failed` or `Incomplete`: nobody answers; `None`: the kernel does not even keep an entry.
        state: Option<NeighbourState>,
    },
    #[error("cannot read link and neighbour notifications")]
    Receive {
        #[source]
        source: io::Error,
    },
    #[error("a notification of the kernel cannot be read: {reason}")]
    Decode { reason: String },
}

/// One entry of the kernel's neighbour table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub ifindex: u32,
    pub ip: IpAddr,
    /// Kept by the kernel even in entries that are no longer valid; see [`Neighbour::usable_mac`].
    pub mac: Option<[u8; 6]>,
    pub state: NeighbourState,
}

impl Neighbour {
    /// The MAC that the kernel itself would send to now, as in `NUD_VALID` of linux/net/neighbour.h.
    pub fn usable_mac(&self) -> Option<[u8; 6]> {
        match self.state {
            NeighbourState::Permanent
            | NeighbourState::Noarp
            | NeighbourState::Reachable
            | NeighbourState::Probe
            | NeighbourState::Stale
            | NeighbourState::Delay => self.mac,
            _ => None,
        }
    }

    /// Whether the kernel learned it by asking, so that it can be asked again.
    pub fn is_learned(&self) -> bool {
        matches!(self.state, NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay)
    }

    /// `None` for what is not an ARP or ND entry, such as a bridge's forwarding table.
    pub(super) fn from_message(message: &NeighbourMessage) -> Option<Self> {
        let mut ip = None;
        let mut mac = None;
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(IpAddr::V4(*v4)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(IpAddr::V6(*v6)),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
                _ => {}
            }
        }
        Some(Self { ifindex: message.header.ifindex, ip: ip?, mac, state: message.header.state })
    }
}

/// Lists the ARP and ND entries, ordered by interface and address.
pub async fn neighbours() -> Result<Vec<Neighbour>, NeighbourError> {
    list(&connect()?).await
}

/// What the kernel is to do about a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Find its MAC, as for a packet to it.
    Resolve,
    /// Check now that it still answers. Its MAC stays in use meanwhile; when `ucast_solicit` requests, `retrans_time`
    /// apart (three, a second apart, where nobody changed that), stay without an answer, the entry becomes `Failed`.
    Probe,
}

/// Has the kernel ask neighbours (interface and address), and waits for none: what it learns comes by [`Watch`]. Those
/// that cannot be asked are left out; their interface may just have gone.
pub async fn ask_all(questions: &[(u32, IpAddr, Question)]) -> Result<(), NeighbourError> {
    if questions.is_empty() {
        return Ok(());
    }
    let handle = connect()?;
    for &(ifindex, ip, question) in questions {
        let asked = match question {
            Question::Resolve => ask(&handle, ifindex, ip).await,
            Question::Probe => probe(&handle, ifindex, ip).await,
        };
        if let Err(error) = asked {
            tracing::debug!(%error, ?question, "not asked");
        }
    }
    Ok(())
}

/// Has the kernel ask for `ip` on the interface until it knows a MAC, for at most `timeout`.
///
/// An entry that is usable already is returned at once; if it is stale, the kernel checks it in the background (RFC
/// 4861's DELAY and PROBE), so calling this now and then keeps a next hop fresh that only XDP sends to.
pub async fn resolve(ifindex: u32, ip: IpAddr, timeout: Duration) -> Result<Neighbour, NeighbourError> {
    let deadline = Instant::now() + timeout;
    // Opened before asking: the answer may be there before the request returns.
    let mut watch = Watch::open()?;
    let handle = connect()?;
    let mut state = None;
    let asking = async {
        loop {
            ask(&handle, ifindex, ip).await?;
            if let Some(found) = list(&handle).await?.into_iter().find(|one| one.ifindex == ifindex && one.ip == ip) {
                if found.usable_mac().is_some() {
                    return Ok(found);
                }
                state = Some(found.state);
            }
            if let Some(found) = answered(&mut watch, ifindex, ip, &mut state).await? {
                return Ok(found);
            }
        }
    };
    match timeout_at(deadline, asking).await {
        Ok(result) => result,
        Err(_) => Err(NeighbourError::TimedOut { ifindex, ip, timeout, state }),
    }
}

/// As [`resolve`] for many at once, over one socket: gives what is usable when all are or `timeout` is over. An interface
/// that cannot be asked leaves its neighbours out of the answer.
pub async fn resolve_all(
    wanted: impl IntoIterator<Item = (u32, IpAddr)>,
    timeout: Duration,
) -> Result<BTreeMap<(u32, IpAddr), [u8; 6]>, NeighbourError> {
    let mut missing: BTreeSet<(u32, IpAddr)> = wanted.into_iter().collect();
    let mut found = BTreeMap::new();
    if missing.is_empty() {
        return Ok(found);
    }
    let deadline = Instant::now() + timeout;
    // Opened before asking: an answer may be there before the request returns.
    let mut watch = Watch::open()?;
    let handle = connect()?;
    let mut ask_all = true;
    while !missing.is_empty() {
        if std::mem::take(&mut ask_all) {
            for (ifindex, ip) in missing.clone() {
                if let Err(error) = ask(&handle, ifindex, ip).await {
                    tracing::debug!(%ip, ifindex, %error, "cannot be asked for");
                    missing.remove(&(ifindex, ip));
                }
            }
            for one in list(&handle).await? {
                if let Some(mac) = one.usable_mac()
                    && missing.remove(&(one.ifindex, one.ip))
                {
                    found.insert((one.ifindex, one.ip), mac);
                }
            }
            continue;
        }
        let Ok(event) = timeout_at(deadline, watch.next()).await else { break };
        match event? {
            Event::Neighbour(news) => {
                let key = (news.ifindex, news.ip);
                if let Some(mac) = news.usable_mac() {
                    if missing.remove(&key) {
                        found.insert(key, mac);
                    }
                } else if news.state == NeighbourState::Failed && missing.contains(&key) {
                    // The kernel has given up; it asks once more.
                    if let Err(error) = ask(&handle, key.0, key.1).await {
                        tracing::debug!(ip = %key.1, ifindex = key.0, %error, "cannot be asked for");
                        missing.remove(&key);
                    }
                }
            }
            // News was lost: what is known now is listed.
            Event::Lost => ask_all = true,
            _ => {}
        }
    }
    Ok(found)
}

/// Waits for a usable entry; `None` when the kernel has given up, or news was lost, and it has to be asked again.
async fn answered(
    watch: &mut Watch,
    ifindex: u32,
    ip: IpAddr,
    state: &mut Option<NeighbourState>,
) -> Result<Option<Neighbour>, NeighbourError> {
    loop {
        match watch.next().await? {
            Event::Neighbour(news) if news.ifindex == ifindex && news.ip == ip => {
                if news.usable_mac().is_some() {
                    return Ok(Some(news));
                }
                *state = Some(news.state);
                if news.state == NeighbourState::Failed {
                    return Ok(None);
                }
            }
            Event::NeighbourGone { ifindex: gone, ip: address } if gone == ifindex && address == ip => {
                *state = None;
                return Ok(None);
            }
            Event::Lost => return Ok(None),
            _ => {}
        }
    }
}

/// `ip neigh … use`: makes the entry if need be and starts resolution as a packet for it would (`NTF_USE`).
async fn ask(handle: &rtnetlink::Handle, ifindex: u32, ip: IpAddr) -> Result<(), NeighbourError> {
    let request = handle.neighbours().add(ifindex, ip).state(NeighbourState::None).flags(NeighbourFlags::Use).replace();
    request.execute().await.map_err(|source| NeighbourError::Ask { ifindex, ip, source })
}

/// `ip neigh change … nud probe` without its right to override: neither the MAC nor a router's flag changes by it, and an
/// entry that is gone is not made again.
async fn probe(handle: &rtnetlink::Handle, ifindex: u32, ip: IpAddr) -> Result<(), NeighbourError> {
    let mut message = NeighbourMessage::default();
    let (family, address) = match ip {
        IpAddr::V4(ip) => (AddressFamily::Inet, NeighbourAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, NeighbourAddress::Inet6(ip)),
    };
    message.header.family = family;
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Probe;
    message.attributes.push(NeighbourAttribute::Destination(address));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let refused = |source| NeighbourError::Ask { ifindex, ip, source };
    let mut answers = pin!(handle.clone().request(request).map_err(refused)?);
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(refused(rtnetlink::Error::NetlinkError(error)));
        }
    }
    Ok(())
}

async fn list(handle: &rtnetlink::Handle) -> Result<Vec<Neighbour>, NeighbourError> {
    let mut answers = pin!(handle.neighbours().get().execute());
    let mut neighbours = Vec::new();
    while let Some(message) =
        answers.try_next().await.map_err(|source| NeighbourError::Request { what: "list neighbours", source })?
    {
        neighbours.extend(Neighbour::from_message(&message));
    }
    neighbours.sort_by_key(|one| (one.ifindex, one.ip));
    Ok(neighbours)
}

/// A connection for requests; its task ends when the handle is dropped.
pub(super) fn connect() -> Result<rtnetlink::Handle, NeighbourError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|source| NeighbourError::Open { source })?;
    tokio::spawn(connection);
    Ok(handle)
}
