//! The node as a trace asks it: what the verdict needs, and what is shown beside it.

use fib::packet::{ETHERTYPE_QINQ, Tags};
use fib::service::{FlowKey, FlowWords, HalfOpenWords};
use fib::{Ingress, Neighbour, Node, Reach, ReachWords};

/// How packets leave by a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Egress {
    /// No node was asked.
    Assumed,
    /// The node has no device for the port.
    NoDevice,
    /// Name of the device.
    Device(String),
}

impl Egress {
    pub(super) fn device(&self) -> Option<&str> {
        match self {
            Self::Device(device) => Some(device),
            Self::Assumed | Self::NoDevice => None,
        }
    }
}

/// What a trace shows of a node beside what the verdict asks of it.
pub trait TraceNode: Node {
    /// How packets leave by the port with this id.
    fn egress(&self, _port: u32) -> Egress {
        Egress::Assumed
    }
    /// Name of the port that the packet comes in by, where that was said.
    fn in_port(&self) -> Option<&str> {
        None
    }
}

/// A node that takes every neighbour to be up, with no MAC and no MTU: for traces without a kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Offline;

impl TraceNode for Offline {}

impl Node for Offline {
    fn ingress(&self, _tags: Tags) -> Option<Ingress> {
        Some(Ingress { mac: 0, port: 0 })
    }

    fn reach(&self, _id: u32) -> ReachWords {
        Reach::Up(Neighbour::default()).encode()
    }

    fn ask<I: fib::Image + ?Sized>(&self, _image: &I, _at: u32, _port: u32) -> Option<Neighbour> {
        None
    }

    fn takes(&self, _ingress: &Ingress, _mac: Option<u64>) -> bool {
        true
    }
}

/// [`Offline`], with packets that come in by the port with this id.
#[derive(Clone, Copy, Debug)]
pub struct OfflineBy(pub u32);

impl TraceNode for OfflineBy {}

impl Node for OfflineBy {
    fn ingress(&self, _tags: Tags) -> Option<Ingress> {
        Some(Ingress { mac: 0, port: self.0 })
    }

    fn reach(&self, id: u32) -> ReachWords {
        Offline.reach(id)
    }

    fn ask<I: fib::Image + ?Sized>(&self, _image: &I, _at: u32, _port: u32) -> Option<Neighbour> {
        None
    }

    fn takes(&self, _ingress: &Ingress, _mac: Option<u64>) -> bool {
        true
    }
}

/// A node when no next hop is down: shows which member a flow falls on.
pub(super) struct AllUp<'n, N>(pub(super) &'n N);

impl<N: Node> Node for AllUp<'_, N> {
    fn ingress(&self, tags: Tags) -> Option<Ingress> {
        self.0.ingress(tags)
    }

    fn reach(&self, _id: u32) -> ReachWords {
        Reach::Unknown.encode()
    }

    fn ask<I: fib::Image + ?Sized>(&self, _image: &I, _at: u32, _port: u32) -> Option<Neighbour> {
        None
    }

    fn takes(&self, ingress: &Ingress, mac: Option<u64>) -> bool {
        self.0.takes(ingress, mac)
    }

    fn flow(&self, key: &FlowKey) -> FlowWords {
        self.0.flow(key)
    }

    fn half_open(&self, key: &FlowKey) -> HalfOpenWords {
        self.0.half_open(key)
    }

    fn is_down(&self, backend: u32) -> bool {
        self.0.is_down(backend)
    }

    fn passes_on(&self, backend: u32, drawn: u32) -> bool {
        self.0.passes_on(backend, drawn)
    }

    fn now_s(&self) -> u32 {
        self.0.now_s()
    }
}

/// A MAC of the tables, as people write it.
pub(super) fn mac(word: u64) -> String {
    let bytes = word.to_le_bytes();
    let digits: Vec<String> = bytes[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    digits.join(":")
}

/// Tags as `100` (IEEE 802.1Q) or `s200.100` (IEEE 802.1ad outside); `None`: untagged.
pub fn tag_words(tags: Tags) -> Option<String> {
    let word = |tag: u32| {
        let kind = if tag >> 16 == u32::from(ETHERTYPE_QINQ) { "s" } else { "" };
        format!("{kind}{}", tag & 0xfff)
    };
    match (tags.outer, tags.inner) {
        (0, _) => None,
        (outer, 0) => Some(word(outer)),
        (outer, inner) => Some(format!("{}.{}", word(outer), word(inner))),
    }
}
