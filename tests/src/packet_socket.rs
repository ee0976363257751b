//! Raw frames on a device.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::net::netdevice::name_to_index;

use crate::Namespace;
use crate::socket::{datagram_socket, open_socket, set_option, set_receive_timeout};

/// Longest frame that a receive returns whole.
const FRAME_BYTES_MAX: usize = 65_536 + 64;
const VLAN_TAG_BYTES: usize = 4;
const MACS_BYTES: usize = 12;

/// Sends frames out of a device and receives those that come in, as they are on the wire.
///
/// Frames that arrived before [`PacketSocket::open`] are not seen; those it sends itself are not received.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    device: String,
    buffer: FrameBuffer,
}

impl PacketSocket {
    pub fn open(namespace: &Namespace, device: &str) -> Result<Self> {
        let socket = open_packet_socket(namespace, device, libc::ETH_P_ALL)?;
        Ok(Self { socket, device: device.to_owned(), buffer: FrameBuffer::new(1, FRAME_BYTES_MAX) })
    }

    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the kernel reads `frame.len()` bytes of a live slice.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("sending {} bytes on {}", frame.len(), self.device));
        }
        Ok(())
    }

    /// The first frame that `wanted` accepts within `timeout`; others are thrown away.
    pub fn receive(&mut self, timeout: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            set_receive_timeout(&self.socket, left)?;
            for frame in self.buffer.receive(&self.socket).with_context(|| format!("receiving on {}", self.device))? {
                if wanted(frame) {
                    return Ok(Some(frame.to_vec()));
                }
            }
        }
    }

    /// Every frame that `wanted` accepts until `timeout` passes without one.
    pub fn receive_all(&mut self, timeout: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        while let Some(frame) = self.receive(timeout, &wanted)? {
            frames.push(frame);
        }
        Ok(frames)
    }
}

/// Opens an `AF_PACKET` socket bound to `device`; protocol zero makes it one that only sends.
pub(crate) fn open_packet_socket(namespace: &Namespace, device: &str, protocol: i32) -> Result<OwnedFd> {
    namespace.enter(|| -> Result<OwnedFd> {
        // Protocol zero until bound: no frame of another device gets in.
        let socket = open_socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
        let index = name_to_index(datagram_socket()?, device).with_context(|| format!("the index of {device}"))?;
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1i32)?;
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, &1i32)?;
        // Above rmem_max, which root may; the default holds only some hundred frames.
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(64i32 << 20))?;
        // SAFETY: `sockaddr_ll` is integers and an array of such, for which zero is valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET.try_into()?;
        address.sll_protocol = u16::try_from(protocol)?.to_be();
        address.sll_ifindex = index.try_into()?;
        let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())?;
        // SAFETY: `address` is a live `sockaddr_ll` of `length` bytes.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        ensure!(bound == 0, "binding to {device}: {}", io::Error::last_os_error());
        Ok(socket)
    })?
}

/// Room for a control message with one `tpacket_auxdata`, aligned as `cmsghdr` wants it.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
struct Control([u8; 64]);

/// Receives up to a batch of frames in one call and puts back the VLAN tag that the kernel takes out.
#[derive(Debug)]
pub(crate) struct FrameBuffer {
    bytes: Vec<u8>,
    slot_bytes: usize,
    controls: Vec<Control>,
    lengths: Vec<usize>,
    /// Where in its slot each frame starts: at zero with a tag put back, else after the room for it.
    starts: Vec<usize>,
}

impl FrameBuffer {
    /// Frames longer than `frame_bytes` are cut.
    pub(crate) fn new(batch: usize, frame_bytes: usize) -> Self {
        let slot_bytes = VLAN_TAG_BYTES + frame_bytes;
        Self {
            bytes: vec![0; batch * slot_bytes],
            slot_bytes,
            controls: vec![Control([0; 64]); batch],
            lengths: vec![0; batch],
            starts: vec![0; batch],
        }
    }

    /// Waits for the first frame up to the socket's receive timeout, then takes what is there; empty on timeout.
    pub(crate) fn receive(&mut self, socket: &OwnedFd) -> io::Result<impl Iterator<Item = &[u8]>> {
        let mut vectors: Vec<libc::iovec> = self
            .bytes
            .chunks_exact_mut(self.slot_bytes)
            .map(|slot| libc::iovec {
                iov_base: slot[VLAN_TAG_BYTES..].as_mut_ptr().cast(),
                iov_len: slot.len() - VLAN_TAG_BYTES,
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = vectors
            .iter_mut()
            .zip(&mut self.controls)
            .map(|(vector, control)| {
                // SAFETY: `mmsghdr` is integers and raw pointers, for which zero is valid.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_iov = vector;
                message.msg_hdr.msg_iovlen = 1;
                message.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
                message.msg_hdr.msg_controllen = size_of::<Control>() as _;
                message
            })
            .collect();
        let batch = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        // SAFETY: every message points to a live vector, slot and control buffer of the length it states.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                batch,
                libc::MSG_WAITFORONE as _,
                std::ptr::null_mut(),
            )
        };
        let count = match usize::try_from(received) {
            Ok(count) => count,
            Err(_) => match io::Error::last_os_error() {
                error if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
                error => return Err(error),
            },
        };
        for (at, message) in messages.iter().take(count).enumerate() {
            self.lengths[at] = (message.msg_len as usize).min(self.slot_bytes - VLAN_TAG_BYTES);
            self.starts[at] = VLAN_TAG_BYTES;
            if let Some((protocol, tag)) = taken_vlan(&message.msg_hdr) {
                let slot = &mut self.bytes[at * self.slot_bytes..][..self.slot_bytes];
                slot.copy_within(VLAN_TAG_BYTES..VLAN_TAG_BYTES + MACS_BYTES, 0);
                slot[MACS_BYTES..MACS_BYTES + 2].copy_from_slice(&protocol.to_be_bytes());
                slot[MACS_BYTES + 2..MACS_BYTES + 4].copy_from_slice(&tag.to_be_bytes());
                self.starts[at] = 0;
                self.lengths[at] += VLAN_TAG_BYTES;
            }
        }
        let slots = self.bytes.chunks_exact(self.slot_bytes).zip(self.starts.iter().zip(&self.lengths));
        Ok(slots.take(count).map(|(slot, (start, length))| &slot[*start..start + length]))
    }
}

/// Protocol and tag of the VLAN header that the kernel moved out of the frame.
fn taken_vlan(header: &libc::msghdr) -> Option<(u16, u16)> {
    // SAFETY: the kernel filled this header and the control buffer behind it, which is still live.
    let message = unsafe { libc::CMSG_FIRSTHDR(header) };
    if message.is_null() {
        return None;
    }
    // SAFETY: not null, so it points to a complete `cmsghdr` within the control buffer.
    let (level, kind) = unsafe { ((*message).cmsg_level, (*message).cmsg_type) };
    if (level, kind) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
        return None;
    }
    // SAFETY: the data of a PACKET_AUXDATA message is one `tpacket_auxdata`, at whatever alignment.
    let auxiliary: libc::tpacket_auxdata = unsafe { std::ptr::read_unaligned(libc::CMSG_DATA(message).cast()) };
    let valid = libc::TP_STATUS_VLAN_VALID | libc::TP_STATUS_VLAN_TPID_VALID;
    (auxiliary.tp_status & valid == valid).then_some((auxiliary.tp_vlan_tpid, auxiliary.tp_vlan_tci))
}
