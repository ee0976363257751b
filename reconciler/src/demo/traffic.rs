//! Real traffic: servers at the edges that say who they are, and clients that count answers.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use rustix::net::{AddressFamily, SocketType, ipproto, socket};

use super::network::{Namespace, Network, SERVICE_V4, SERVICE_V6};

/// Where both edges serve: TCP answers with the edge's name, UDP with the datagram and the name.
pub(super) const PORT: u16 = 8080;

/// How long an answer may take before it counts as lost.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// Between two rounds of the stream.
const ROUND_PAUSE: Duration = Duration::from_millis(2);
/// UDP flows of the stream, by family: each has a source port of its own, and so its own edge.
const FLOWS: [(IpAddr, usize); 2] = [(IpAddr::V4(SERVICE_V4), 48), (IpAddr::V6(SERVICE_V6), 16)];

/// Starts the servers of both edges; they run until the process ends.
pub(super) fn serve(network: &Network) -> anyhow::Result<()> {
    for &(name, ref edge) in &network.edges {
        for address in [IpAddr::V4(SERVICE_V4), IpAddr::V6(SERVICE_V6)] {
            let at = SocketAddr::new(address, PORT);
            let (tcp, udp) = edge.enter(|| Ok((TcpListener::bind(at)?, UdpSocket::bind(at)?)))?;
            thread::spawn(move || serve_tcp(&tcp, name));
            thread::spawn(move || serve_udp(&udp, name));
        }
    }
    Ok(())
}

fn serve_tcp(listener: &TcpListener, name: &str) {
    for connection in listener.incoming().flatten() {
        // A client that is gone needs no answer.
        let _ = (&connection).write_all(name.as_bytes());
    }
}

fn serve_udp(socket: &UdpSocket, name: &str) {
    let mut datagram = [0; 64];
    while let Ok((bytes, from)) = socket.recv_from(&mut datagram) {
        let answer = [&datagram[..bytes], name.as_bytes()].concat();
        let _ = socket.send_to(&answer, from);
    }
}

/// One connection: where it came from, and which edge answered it.
pub(super) type Answered = (SocketAddr, String);

/// Makes `count` TCP connections to an address, one after another, and asks each who answers.
pub(super) fn connections(client: &Namespace, to: IpAddr, count: usize) -> anyhow::Result<Vec<Answered>> {
    client.enter(|| {
        (0..count)
            .map(|number| {
                let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, PORT), ANSWER_WAIT)
                    .with_context(|| format!("connection {number} to {to}"))?;
                stream.set_read_timeout(Some(ANSWER_WAIT))?;
                let mut name = String::new();
                stream.read_to_string(&mut name).with_context(|| format!("an answer from {to}"))?;
                Ok((stream.local_addr()?, name))
            })
            .collect()
    })
}

/// Sends `count` echo requests and returns how many were answered within `wait`.
pub(super) fn pings(client: &Namespace, to: IpAddr, count: u64, wait: Duration) -> anyhow::Result<u64> {
    client.enter(|| {
        let mut flow = Flow::ping(to)?;
        let mut answered = 0;
        for sequence in 0..count {
            flow.send(sequence);
            thread::sleep(Duration::from_millis(1));
        }
        let deadline = Instant::now() + wait;
        while answered < count && Instant::now() < deadline {
            match flow.receive() {
                Some(_) => answered += 1,
                None => thread::sleep(Duration::from_micros(200)),
            }
        }
        Ok(answered)
    })
}

/// What became of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Streamed {
    pub(super) sent: u64,
    pub(super) lost: u64,
    pub(super) flows: usize,
    /// Flows that another edge answered at the end than at the beginning.
    pub(super) moved: usize,
    /// Flows that changed their edge more than once.
    pub(super) wavered: usize,
}

/// Datagrams and echo requests on many flows at once, without a pause, until it is stopped.
pub(super) struct Stream {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<Streamed>,
}

impl Stream {
    pub(super) fn start(client: &Namespace) -> anyhow::Result<Self> {
        let mut flows = client.enter(|| {
            let mut flows = vec![Flow::ping(SERVICE_V4.into())?, Flow::ping(SERVICE_V6.into())?];
            for (to, count) in FLOWS {
                for _ in 0..count {
                    flows.push(Flow::datagrams(to)?);
                }
            }
            Ok(flows)
        })?;
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = thread::spawn(move || {
            let mut streamed = Streamed { flows: flows.len(), ..Streamed::default() };
            while !stopped.load(Ordering::Relaxed) {
                let round = counted.fetch_add(1, Ordering::Relaxed);
                streamed.sent += flows.len() as u64;
                streamed.lost += one_round(&mut flows, round);
                thread::sleep(ROUND_PAUSE);
            }
            streamed.moved = flows.iter().filter(|f| f.first != f.last).count();
            streamed.wavered = flows.iter().filter(|f| f.moves > 1).count();
            streamed
        });
        let stream = Self { stop, rounds, thread };
        stream.wait_for_rounds(20);
        Ok(stream)
    }

    /// Lets the stream go on for a while, then says what became of it.
    pub(super) fn stop(self) -> anyhow::Result<Streamed> {
        self.wait_for_rounds(20);
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the stream's thread panicked"))
    }

    fn wait_for_rounds(&self, more: u64) {
        let wanted = self.rounds.load(Ordering::Relaxed) + more;
        while self.rounds.load(Ordering::Relaxed) < wanted && !self.thread.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Sends one packet on every flow and waits for all answers; returns how many did not come.
fn one_round(flows: &mut [Flow], round: u64) -> u64 {
    let mut waiting: Vec<&mut Flow> = flows.iter_mut().collect();
    for flow in &mut waiting {
        flow.send(round);
    }
    let deadline = Instant::now() + ANSWER_WAIT;
    while !waiting.is_empty() && Instant::now() < deadline {
        waiting.retain_mut(|flow| flow.receive() != Some(round));
        thread::yield_now();
    }
    waiting.len() as u64
}

/// One flow of echo requests or datagrams, each with a number that comes back.
struct Flow {
    socket: UdpSocket,
    /// The ICMP header of an echo request; the kernel fills in checksum and identifier.
    header: &'static [u8],
    first: Option<String>,
    last: Option<String>,
    moves: u32,
}

impl Flow {
    fn ping(to: IpAddr) -> anyhow::Result<Self> {
        let (family, protocol, header): (_, _, &[u8]) = match to {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, &[8, 0, 0, 0, 0, 0, 0, 0]),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, &[128, 0, 0, 0, 0, 0, 0, 0]),
        };
        // An echo socket speaks datagrams; std's UDP type only makes the calls.
        let socket = UdpSocket::from(socket(family, SocketType::DGRAM, Some(protocol)).context("an echo socket")?);
        Self::new(socket, SocketAddr::new(to, 0), header)
    }

    fn datagrams(to: IpAddr) -> anyhow::Result<Self> {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        Self::new(UdpSocket::bind(SocketAddr::new(any, 0))?, SocketAddr::new(to, PORT), &[])
    }

    fn new(socket: UdpSocket, to: SocketAddr, header: &'static [u8]) -> anyhow::Result<Self> {
        socket.connect(to).with_context(|| format!("no route to {to}"))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, header, first: None, last: None, moves: 0 })
    }

    /// A packet that cannot be sent is one that is not answered.
    fn send(&self, number: u64) {
        let _ = self.socket.send(&[self.header, &number.to_be_bytes()].concat());
    }

    /// The number of an answer that has arrived, if one has; notes who sent it.
    fn receive(&mut self) -> Option<u64> {
        let mut answer = [0; 64];
        let bytes = self.socket.recv(&mut answer).ok()?;
        let (number, name) = answer[..bytes].get(self.header.len()..)?.split_first_chunk::<8>()?;
        let name = Some(String::from_utf8_lossy(name).into_owned());
        if self.first.is_none() {
            self.first.clone_from(&name);
        } else if self.last != name {
            self.moves += 1;
        }
        self.last = name;
        Some(u64::from_be_bytes(*number))
    }
}

/// How many connections each edge answered.
pub(super) fn by_edge(answered: &[Answered]) -> BTreeMap<&str, usize> {
    let mut count = BTreeMap::new();
    for (_, name) in answered {
        *count.entry(name.as_str()).or_default() += 1;
    }
    count
}
