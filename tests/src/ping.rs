//! ICMP echo without the `ping` program.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::Namespace;
use crate::socket::{open_socket, set_option};

/// Sends one echo request from the namespace and returns the time to its reply, or `None` after `timeout`.
///
/// An ICMP error for it, such as "unreachable", comes back as an error at once.
pub fn ping(namespace: &Namespace, destination: IpAddr, timeout: Duration) -> Result<Option<Duration>> {
    let (domain, protocol, request) = match destination {
        IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP, 8),
        IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6, 128),
    };
    let socket = namespace.enter(|| open_socket(domain, libc::SOCK_DGRAM, protocol))??;
    // Without it the kernel keeps "network unreachable" to itself.
    match destination {
        IpAddr::V4(_) => set_option(&socket, libc::SOL_IP, libc::IP_RECVERR, &1i32)?,
        IpAddr::V6(_) => set_option(&socket, libc::SOL_IPV6, libc::IPV6_RECVERR, &1i32)?,
    }
    // A ping socket speaks datagrams; std's UDP type only makes the calls.
    let socket = UdpSocket::from(socket);
    socket.connect(SocketAddr::new(destination, 0)).with_context(|| format!("no route to {destination}"))?;
    let started = Instant::now();
    // The kernel fills in the checksum and the identifier, and gives us only the replies to it.
    socket.send(&[request, 0, 0, 0, 0, 0, 0, 1]).with_context(|| format!("echo request to {destination}"))?;
    loop {
        let left = timeout.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut [0; 64]) {
            Ok(_) => return Ok(Some(started.elapsed())),
            // A timeout, or a signal that cut the call short: the clock decides.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error).with_context(|| format!("echo request to {destination}")),
        }
    }
}
