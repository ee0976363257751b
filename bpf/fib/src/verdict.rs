//! The verdict: what happens to a packet, and the one reason why.

use crate::image::Image;
use crate::layout::{
    AT_HASH_SEED, AT_NEXT_HOPS, AT_SLOTS, AT_TARGETS, NEXT_HOP_BYTES, NEXT_HOP_ID, NEXT_HOP_PORT, SLOT_BYTES,
    TARGET_BYTES, kind,
};
use crate::packet::{Packet, Parsed, destination_mac, parse};
use crate::{hash, lookup};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leaves by a next hop.
    Forward,
    /// Goes on to the kernel's network stack, untouched.
    Pass,
    Drop,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $verdict:ident, $name:literal;)*) => {
        /// Why; every packet ends in exactly one. The number is the index of its counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $variant = $number,)* }

        impl Reason {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$variant => Verdict::$verdict,)* }
            }

            /// The reason's name in command output and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

reasons! {
    /// Sent to a next hop.
    Forwarded = 0, Forward, "forwarded";
    /// Nothing is published yet.
    NoGeneration = 1, Pass, "no-generation";
    /// No prefix matches.
    NoRoute = 2, Pass, "no-route";
    /// The longest matching prefix says `action: pass`.
    RoutePass = 3, Pass, "route-pass";
    /// Addressed to the node itself.
    Local = 4, Pass, "local";
    /// ARP and every other protocol that is not IP.
    NotIp = 5, Pass, "not-ip";
    /// The frame's destination MAC is a group address or another machine's.
    LinkNotOurs = 6, Pass, "link-not-ours";
    /// The frame carries a VLAN tag.
    Vlan = 7, Pass, "vlan";
    /// Multicast, broadcast, loopback or link-local addresses.
    NotForwardable = 8, Pass, "not-forwardable";
    /// TTL or hop limit would reach 0: the kernel answers with time exceeded.
    TtlExpired = 9, Pass, "ttl-expired";
    /// Larger than the egress MTU: the kernel fragments or answers.
    OverMtu = 10, Pass, "over-mtu";
    /// The next hop's MAC address is not known.
    NoNeighbour = 11, Pass, "no-neighbour";
    /// The next hop's port has no device on this node.
    NoPort = 12, Pass, "no-port";
    /// IPv6 hop-by-hop options: every router must look at them.
    HopByHop = 13, Pass, "hop-by-hop";
    /// Truncated, or lengths or version that contradict each other: the kernel discards and counts it.
    Malformed = 14, Pass, "malformed";
    /// The image led outside itself: a defect; never seen with a verified image.
    BadImage = 15, Pass, "bad-image";
    /// The longest matching prefix says `action: drop`.
    RouteDrop = 16, Drop, "route-drop";
}

/// Room for reasons in the counter array.
pub const REASONS_MAX: u32 = 64;

/// Link-layer addresses and MTU of a next hop; a MAC is the low 48 bits with its first byte lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub destination: u64,
    pub source: u64,
    /// Largest IP packet the egress device takes; 0: no limit known.
    pub mtu: u16,
}

impl Neighbour {
    /// Set in [`Neighbour::encode`]'s first word when the entry may be used.
    pub const VALID: u64 = 1 << 48;
    const MAC: u64 = (1 << 48) - 1;

    /// The two words of the kernel's neighbour array. Each word is written and read whole, so no packet sees half a MAC.
    pub const fn encode(&self) -> [u64; 2] {
        [self.destination & Self::MAC | Self::VALID, self.source & Self::MAC | (self.mtu as u64) << 48]
    }

    /// `None` when the entry is not valid.
    #[inline(always)]
    pub const fn decode(words: [u64; 2]) -> Option<Self> {
        if words[0] & Self::VALID == 0 {
            return None;
        }
        let mtu = (words[1] >> 48) as u16;
        Some(Self { destination: words[0] & Self::MAC, source: words[1] & Self::MAC, mtu })
    }
}

/// What the verdict asks of the node beside the image.
pub trait Node {
    /// MAC of the device that the packet came in by, as [`Neighbour`] holds them; `None` when any will do.
    fn ingress_mac(&self) -> Option<u64>;
    /// The neighbour of the next hop with this id behind `port`; `at` is its entry in the image, for whoever must ask by
    /// address.
    fn neighbour<I: Image + ?Sized>(&self, image: &I, id: u32, at: u32, port: u32) -> Option<Neighbour>;
}

/// The verdict on one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub reason: Reason,
    /// 4 or 6; 0 when the packet was not read that far.
    pub family: u8,
    /// The target that the longest matching prefix names; 0: none.
    pub target: u16,
    /// The chosen next hop (index into the image's table), where one was chosen.
    pub next_hop: Option<u32>,
    /// Id of the next hop's port.
    pub port: u32,
    pub neighbour: Option<Neighbour>,
}

impl Decision {
    const fn early(reason: Reason) -> Self {
        Self { reason, family: 0, target: 0, next_hop: None, port: 0, neighbour: None }
    }
}

/// Decides on a frame. Reads only: the caller rewrites with [`crate::packet::forward`] and sends.
#[inline(always)]
pub fn decide<I: Image + ?Sized, P: Packet + ?Sized, N: Node>(image: &I, packet: &P, node: &N) -> Decision {
    let parsed = match parse(packet) {
        Ok(parsed) => parsed,
        Err(reason) => return Decision::early(reason),
    };
    if let Some(ours) = node.ingress_mac()
        && destination_mac(packet) != Some(ours)
    {
        return Decision::early(Reason::LinkNotOurs);
    }
    route(image, &parsed, node)
}

/// The route stage: longest prefix, group member, neighbour, and what forbids forwarding.
#[inline(always)]
pub fn route<I: Image + ?Sized, N: Node>(image: &I, parsed: &Parsed, node: &N) -> Decision {
    let mut decision = Decision { family: parsed.family, ..Decision::early(Reason::BadImage) };
    let dst = parsed.flow.dst;
    let target =
        if parsed.family == 4 { lookup::v4(image, (dst[0] >> 32) as u32) } else { lookup::v6(image, dst[0], dst[1]) };
    let Some(target) = target else { return decision };
    decision.target = target;
    let Some(hop) = choose(image, target, &parsed.flow, &mut decision) else { return decision };
    if parsed.ttl <= 1 {
        decision.reason = Reason::TtlExpired;
        return decision;
    }
    let Some(neighbour) = node.neighbour(image, hop.id, hop.at, decision.port) else {
        decision.reason = Reason::NoNeighbour;
        return decision;
    };
    decision.neighbour = Some(neighbour);
    decision.reason = if neighbour.mtu != 0 && parsed.ip_bytes > u32::from(neighbour.mtu) {
        Reason::OverMtu
    } else {
        Reason::Forwarded
    };
    decision
}

/// A chosen next hop.
struct Hop {
    id: u32,
    /// Offset of its entry in the image.
    at: u32,
}

/// Follows a target to a next hop, or sets the reason why there is none.
#[inline(always)]
fn choose<I: Image + ?Sized>(image: &I, target: u16, flow: &hash::Flow, decision: &mut Decision) -> Option<Hop> {
    let at = image.u32(AT_TARGETS)?.wrapping_add(u32::from(target).wrapping_mul(TARGET_BYTES));
    let head = image.u64(at)?;
    let tail = image.u64(at.wrapping_add(8))?;
    let next_hops = image.u32(AT_NEXT_HOPS)?;
    match head as u8 {
        kind::FORWARD_ONE => {
            let index = (head >> 32) as u32;
            decision.next_hop = Some(index);
            decision.port = (tail >> 32) as u32;
            Some(Hop { id: tail as u32, at: next_hops.wrapping_add(index.wrapping_mul(NEXT_HOP_BYTES)) })
        }
        kind::FORWARD_GROUP => {
            let slot = hash::flow(flow, image.u32(AT_HASH_SEED)?) & (tail >> 32) as u32;
            let slot = (tail as u32).wrapping_add(slot).wrapping_mul(SLOT_BYTES);
            let index = u32::from(image.u16(image.u32(AT_SLOTS)?.wrapping_add(slot))?);
            let at = next_hops.wrapping_add(index.wrapping_mul(NEXT_HOP_BYTES));
            decision.next_hop = Some(index);
            decision.port = u32::from(image.u16(at.wrapping_add(NEXT_HOP_PORT))?);
            Some(Hop { id: image.u32(at.wrapping_add(NEXT_HOP_ID))?, at })
        }
        other => {
            decision.reason = match other {
                kind::NONE => Reason::NoRoute,
                kind::DROP => Reason::RouteDrop,
                kind::PASS => Reason::RoutePass,
                kind::LOCAL => Reason::Local,
                _ => Reason::BadImage,
            };
            None
        }
    }
}
