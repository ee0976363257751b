//! Notifications about links and neighbours.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;

use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::link::Link;
use super::neighbour::{Neighbour, NeighbourError};

// linux/rtnetlink.h: a group is bit number - 1 of the address.
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const NLMSG_ALIGN: usize = 4;
const NLMSG_HEADER_BYTES: usize = 16;

/// Something that changed in the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A device is new or changed.
    Link(Link),
    LinkGone {
        index: u32,
    },
    /// A neighbour is new or changed.
    Neighbour(Neighbour),
    NeighbourGone {
        ifindex: u32,
        ip: IpAddr,
    },
    /// The reader was too slow and the kernel threw news away: list links and neighbours again.
    Lost,
}

/// The stream of [`Event`]s of one namespace, from [`Watch::open`] on.
///
/// It reads the socket directly instead of through rtnetlink's connection task: what is not read yet waits in the
/// kernel's bounded buffer, never in an unbounded queue of ours.
pub struct Watch {
    socket: TokioSocket,
    waiting: VecDeque<Event>,
}

impl Watch {
    /// Subscribes in the namespace of the calling thread; needs a tokio runtime with I/O.
    pub fn open() -> Result<Self, NeighbourError> {
        Self::open_socket(None).map_err(|source| NeighbourError::Open { source })
    }

    /// As [`Watch::open`], with a receive buffer of this size; the kernel doubles it and has a minimum.
    pub fn open_with_buffer(bytes: u32) -> Result<Self, NeighbourError> {
        Self::open_socket(Some(bytes)).map_err(|source| NeighbourError::Open { source })
    }

    fn open_socket(buffer_bytes: Option<u32>) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        if let Some(bytes) = buffer_bytes {
            socket.socket_ref().set_rx_buf_sz(bytes)?;
        }
        socket.socket_mut().bind(&SocketAddr::new(0, 1 << (RTNLGRP_LINK - 1) | 1 << (RTNLGRP_NEIGH - 1)))?;
        Ok(Self { socket, waiting: VecDeque::new() })
    }

    /// The next change. Cancelling the future loses nothing.
    pub async fn next(&mut self) -> Result<Event, NeighbourError> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Ok(event);
            }
            match self.socket.recv_from_full().await {
                // Only the kernel is believed: any process may send to a netlink socket's address.
                Ok((datagram, from)) if from.port_number() == 0 => self.waiting.extend(events(&datagram)?),
                Ok(_) => {}
                Err(error) if is_overrun(&error) => {
                    self.discard_queue().map_err(|source| NeighbourError::Receive { source })?;
                    return Ok(Event::Lost);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(NeighbourError::Receive { source }),
            }
        }
    }

    /// Empties the socket after an overrun.
    ///
    /// Until its queue is empty the kernel goes on dropping, and says so only once (`NETLINK_S_CONGESTED` in
    /// `netlink_broadcast_deliver`): a list made before that would miss changes that nobody reports.
    fn discard_queue(&self) -> io::Result<()> {
        loop {
            match self.socket.socket_ref().recv_from_full() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if is_overrun(&error) || error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}

/// The events in one datagram, which may hold several messages.
fn events(datagram: &[u8]) -> Result<Vec<Event>, NeighbourError> {
    let mut events = Vec::new();
    let mut rest = datagram;
    while rest.len() >= NLMSG_HEADER_BYTES {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
            .map_err(|error| NeighbourError::Decode { reason: error.to_string() })?;
        let bytes = usize::try_from(message.header.length).unwrap_or(usize::MAX).max(NLMSG_HEADER_BYTES);
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => events.extend(event(&inner)),
            NetlinkPayload::Overrun(_) => events.push(Event::Lost),
            _ => {}
        }
        rest = rest.get(bytes.next_multiple_of(NLMSG_ALIGN)..).unwrap_or_default();
    }
    Ok(events)
}

fn event(message: &RouteNetlinkMessage) -> Option<Event> {
    match message {
        // A bridge's news about its ports: "deleted" there means that a device left the bridge.
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)
            if link.header.interface_family == AddressFamily::Bridge =>
        {
            None
        }
        RouteNetlinkMessage::NewLink(link) => Some(Event::Link(Link::from_message(link))),
        RouteNetlinkMessage::DelLink(link) => Some(Event::LinkGone { index: link.header.index }),
        RouteNetlinkMessage::NewNeighbour(message) => Neighbour::from_message(message).map(Event::Neighbour),
        RouteNetlinkMessage::DelNeighbour(message) => {
            Neighbour::from_message(message).map(|gone| Event::NeighbourGone { ifindex: gone.ifindex, ip: gone.ip })
        }
        _ => None,
    }
}
