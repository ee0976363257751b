//! Counts frames that arrive.

use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::Namespace;
use crate::packet_socket::{FrameBuffer, open_packet_socket};
use crate::socket::set_receive_timeout;

const BATCH: usize = 64;
/// The matching closure sees at most this much of a frame.
const HEAD_BYTES: usize = 256;
const STOP_POLL: Duration = Duration::from_millis(20);

/// What a [`CountingSink`] counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkCount {
    /// Frames that the closure accepted.
    pub matched: u64,
    /// All frames that the thread read.
    pub seen: u64,
    /// Frames that the kernel had to throw away because the thread was too slow; any makes `matched` a lower bound.
    pub lost: u64,
}

/// A thread that counts the frames coming in on a device.
///
/// Good for some 100,000 frames a second; for more, use `attach_xdp_drop` and [`Namespace::counters`].
#[derive(Debug)]
pub struct CountingSink {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
    socket: Arc<OwnedFd>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    matched: AtomicU64,
    seen: AtomicU64,
}

impl CountingSink {
    /// Counts from now on; `wanted` sees the first 256 bytes of each frame.
    pub fn start(namespace: &Namespace, device: &str, wanted: impl Fn(&[u8]) -> bool + Send + 'static) -> Result<Self> {
        let socket = Arc::new(open_packet_socket(namespace, device, libc::ETH_P_ALL)?);
        set_receive_timeout(&socket, STOP_POLL)?;
        let shared = Arc::new(Shared::default());
        let (inner, reader) = (Arc::clone(&shared), Arc::clone(&socket));
        let work = move || count(&inner, &reader, wanted);
        let thread = thread::Builder::new().name(format!("sink {device}")).spawn(work)?;
        Ok(Self { shared, thread: Some(thread), socket })
    }

    /// Frames accepted so far.
    pub fn matched(&self) -> u64 {
        self.shared.matched.load(Ordering::Relaxed)
    }

    /// Waits until `count` frames were accepted or `timeout` has passed; returns how many were.
    pub fn wait_for(&self, count: u64, timeout: Duration) -> u64 {
        let deadline = Instant::now() + timeout;
        while self.matched() < count && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        self.matched()
    }

    /// Reads what has arrived until now and ends the thread.
    pub fn stop(mut self) -> Result<SinkCount> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the sink was stopped before")?;
        thread.join().map_err(|_| anyhow!("the sink's thread panicked"))??;
        Ok(SinkCount {
            matched: self.matched(),
            seen: self.shared.seen.load(Ordering::Relaxed),
            lost: lost_frames(&self.socket)?,
        })
    }
}

impl Drop for CountingSink {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn count(shared: &Shared, socket: &OwnedFd, wanted: impl Fn(&[u8]) -> bool) -> Result<()> {
    let mut buffer = FrameBuffer::new(BATCH, HEAD_BYTES);
    loop {
        // Read before the frames: a stop is obeyed only after one more look at an empty queue.
        let stop = shared.stop.load(Ordering::Relaxed);
        let (mut matched, mut seen) = (0, 0);
        for frame in buffer.receive(socket).context("receiving")? {
            seen += 1;
            matched += u64::from(wanted(frame));
        }
        shared.seen.fetch_add(seen, Ordering::Relaxed);
        shared.matched.fetch_add(matched, Ordering::Relaxed);
        if stop && seen == 0 {
            return Ok(());
        }
    }
}

fn lost_frames(socket: &OwnedFd) -> Result<u64> {
    // SAFETY: `tpacket_stats` is two integers, for which zero is valid.
    let mut statistics: libc::tpacket_stats = unsafe { zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tpacket_stats>())?;
    // SAFETY: the kernel writes at most `length` bytes into a live `tpacket_stats`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    ensure!(result == 0, "PACKET_STATISTICS: {}", std::io::Error::last_os_error());
    Ok(statistics.tp_drops.into())
}
