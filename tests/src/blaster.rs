//! Sends packets as quickly as the kernel takes them.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, ensure};

use crate::Namespace;
use crate::packet_socket::open_packet_socket;
use crate::socket::set_option;

const BATCH: usize = 64;

/// A thread that sends in rotation until it is stopped or its limit is reached.
#[derive(Debug)]
pub struct Blaster {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// One thing to send: to whom (nobody for raw frames) and what.
struct Message {
    address: Option<Address>,
    bytes: Vec<u8>,
}

struct Address {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

impl Blaster {
    /// Sends UDP datagrams of `payload_bytes` to the destinations in turn, all of one address family.
    ///
    /// While a neighbour is not resolved the kernel takes datagrams and drops most: resolve it, or set it, before.
    /// `limit` is the number of datagrams after which it ends by itself.
    pub fn udp(
        namespace: &Namespace,
        destinations: &[SocketAddr],
        payload_bytes: usize,
        limit: Option<u64>,
    ) -> Result<Self> {
        let v4 = destinations.first().context("no destination to send to")?.is_ipv4();
        ensure!(destinations.iter().all(|to| to.is_ipv4() == v4), "destinations of both address families");
        let any = if v4 { SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)) } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        let socket: OwnedFd = namespace.enter(|| UdpSocket::bind(any))??.into();
        set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &(8i32 << 20))?;
        let messages = destinations
            .iter()
            .map(|to| Ok(Message { address: Some(address(to)?), bytes: vec![0x77; payload_bytes] }))
            .collect::<Result<_>>()?;
        Self::start(socket, messages, limit)
    }

    /// Sends ready-made frames out of `device` in turn, past its queueing discipline.
    pub fn frames(namespace: &Namespace, device: &str, frames: Vec<Vec<u8>>, limit: Option<u64>) -> Result<Self> {
        ensure!(!frames.is_empty(), "no frame to send");
        let socket = open_packet_socket(namespace, device, 0)?;
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1i32)?;
        let messages = frames.into_iter().map(|bytes| Message { address: None, bytes }).collect();
        Self::start(socket, messages, limit)
    }

    fn start(socket: OwnedFd, messages: Vec<Message>, limit: Option<u64>) -> Result<Self> {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stop_inside, sent_inside) = (Arc::clone(&stop), Arc::clone(&sent));
        let work = move || blast(&socket, &messages, limit.unwrap_or(u64::MAX), &stop_inside, &sent_inside);
        let thread = thread::Builder::new().name("blaster".to_owned()).spawn(work)?;
        Ok(Self { stop, sent, thread: Some(thread) })
    }

    /// How many the kernel has taken so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Stops now; returns how many the kernel took.
    pub fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.wait()
    }

    /// Waits for the limit; returns how many the kernel took.
    pub fn wait(mut self) -> Result<u64> {
        let thread = self.thread.take().context("the blaster was stopped before")?;
        thread.join().map_err(|_| anyhow!("the blaster's thread panicked"))??;
        Ok(self.sent())
    }
}

impl Drop for Blaster {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn blast(socket: &OwnedFd, messages: &[Message], limit: u64, stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let vectors: Vec<libc::iovec> = messages
        .iter()
        .map(|message| libc::iovec { iov_base: message.bytes.as_ptr().cast_mut().cast(), iov_len: message.bytes.len() })
        .collect();
    let mut headers: Vec<libc::mmsghdr> = messages.iter().zip(&vectors).map(header).collect();
    // Whole batches, so that few messages do not mean one call each.
    while headers.len() < BATCH {
        headers.extend_from_within(..);
    }
    let mut at = 0;
    while !stop.load(Ordering::Relaxed) {
        let left = limit - sent.load(Ordering::Relaxed);
        let batch = BATCH.min(headers.len() - at).min(usize::try_from(left).unwrap_or(BATCH));
        if batch == 0 {
            break;
        }
        let slice = &mut headers[at..at + batch];
        // SAFETY: each header points to a vector, an address and bytes in `messages` and `vectors`, which outlive the
        // call; the kernel only reads them and writes `msg_len`.
        let taken = unsafe { libc::sendmmsg(socket.as_raw_fd(), slice.as_mut_ptr(), u32::try_from(batch)?, 0) };
        match usize::try_from(taken) {
            Ok(taken) => {
                sent.fetch_add(taken as u64, Ordering::Relaxed);
                at = (at + taken) % headers.len();
            }
            Err(_) => match io::Error::last_os_error() {
                // The queue is full: not an error, only not sent yet.
                error if error.raw_os_error() == Some(libc::ENOBUFS) => thread::yield_now(),
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error).context("sendmmsg"),
            },
        }
    }
    Ok(())
}

fn header((message, vector): (&Message, &libc::iovec)) -> libc::mmsghdr {
    // SAFETY: `mmsghdr` is integers and raw pointers, for which zero is valid.
    let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
    header.msg_hdr.msg_iov = std::ptr::from_ref(vector).cast_mut();
    header.msg_hdr.msg_iovlen = 1;
    if let Some(address) = &message.address {
        header.msg_hdr.msg_name = (&raw const address.storage).cast_mut().cast();
        header.msg_hdr.msg_namelen = address.length;
    }
    header
}

fn address(to: &SocketAddr) -> Result<Address> {
    // SAFETY: `sockaddr_storage` is integers and arrays of such, for which zero is valid.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let length = match to {
        SocketAddr::V4(to) => {
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET.try_into()?,
                sin_port: to.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: `sockaddr_storage` is larger than, and aligned for, every socket address.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(address) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(to) => {
            let address = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6.try_into()?,
                sin6_port: to.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: to.ip().octets() },
                sin6_scope_id: to.scope_id(),
            };
            // SAFETY: as above.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(address) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    Ok(Address { storage, length: length.try_into()? })
}
