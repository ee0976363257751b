//! Single requests to the kernel by netlink, for the families that no crate in use speaks.
//!
//! A request is answered before the call returns: by messages, and then by an acknowledgement or the end of a list.

use std::io;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, recv, send, socket};

// linux/netlink.h
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 1 << 15;
/// Without the flags for nested attributes and byte order.
const NLA_TYPE_MASK: u16 = 0x3fff;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_REPLACE: u16 = 0x100;
pub(super) const NLM_F_DUMP: u16 = 0x300;

/// Bytes of a message's header: length u32, type u16, flags u16, sequence u32, port u32.
const HEADER_BYTES: usize = 16;
/// Larger than what the kernel puts into one answer of a list.
const ANSWER_BYTES: usize = 64 << 10;

/// Attributes in the making.
#[derive(Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let bytes = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(bytes.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn with_nested(self, kind: u16, inner: &Self) -> Self {
        self.with(kind | NLA_F_NESTED, &inner.0)
    }
}

/// Sends one request of a family (`None`: rtnetlink), and returns its answers: what stands behind the header of each message.
///
/// `fixed` is the family's own header. An error that the kernel answers with is this call's error.
pub(super) fn ask(
    family: Option<Protocol>,
    kind: u16,
    flags: u16,
    fixed: &[u8],
    attributes: &Attributes,
) -> io::Result<Vec<Vec<u8>>> {
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, family)?;
    let bytes = HEADER_BYTES + fixed.len().next_multiple_of(4) + attributes.0.len();
    let mut request = u32::try_from(bytes).map_err(io::Error::other)?.to_ne_bytes().to_vec();
    request.extend(kind.to_ne_bytes());
    request.extend((flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    request.extend([0; 8]);
    request.extend(fixed);
    request.resize(request.len().next_multiple_of(4), 0);
    request.extend(&attributes.0);
    send(&socket, &request, SendFlags::empty())?;
    let mut answers = Vec::new();
    let mut buffer = vec![0; ANSWER_BYTES];
    loop {
        let (bytes, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = buffer.get(..bytes).ok_or_else(cut)?;
        if rest.is_empty() {
            return Err(cut());
        }
        while !rest.is_empty() {
            let length =
                usize::try_from(u32::from_ne_bytes(*rest.first_chunk().ok_or_else(cut)?)).map_err(|_| cut())?;
            let kind = rest.get(4..6).and_then(<[u8]>::first_chunk).map(|b| u16::from_ne_bytes(*b)).ok_or_else(cut)?;
            let body = rest.get(HEADER_BYTES..length).ok_or_else(cut)?;
            match kind {
                NLMSG_NOOP => {}
                NLMSG_ERROR | NLMSG_DONE => {
                    // Errors are negative; the end of a list has none, or 0.
                    return match body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code)) {
                        code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
                        _ => Ok(answers),
                    };
                }
                _ => answers.push(body.to_vec()),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// The attributes in `bytes`, up to the first that is cut short.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let [a, b, c, d] = *rest.first_chunk()?;
        let (length, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of a kind.
pub(super) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

pub(super) fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut short")
}
