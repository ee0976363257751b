//! The service stage: packets to a virtual address go to a backend, and its answers come back from that address.
//!
//! 1. The destination is a VIP and the port one of a service: the flow table says which backend has the flow; a flow that it
//!    does not know goes where Maglev's table says (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//!    Balancer", NSDI 2016, section 3.4). With `nat` destination address and port become the backend's.
//! 2. The source is a backend of a service with `nat`, and the flow table knows the flow: the source becomes the VIP.
//!
//! Where a service has health checks, a backend that is down ([`Node::is_down`]) is passed over, by new flows and by those that
//! it has: they go to a stand-in ([`stand_in`]), and no flow of another backend moves. One that is slow passes a share of its new
//! flows on ([`Node::passes_on`]), by their hash, and keeps those that it has.
//!
//! A flow is *half-open* until it is seen that both sides speak, and lies in a table of its own until then: whoever sends first packets
//! from invented addresses can only push out other half-open flows. What proves a flow:
//! - `nat`, TCP: the client acknowledges the sequence number of the backend's SYN-ACK, which only who got it knows; or the backend sends a
//!   segment without SYN and RST, which it does once its own handshake is complete.
//! - `nat`, UDP: the client sends another packet after an answer.
//! - Where answers do not come by here: TCP, a segment without SYN, FIN and RST after the first packet; UDP, a second packet.
//!
//! An ICMP error goes where the flow goes of the packet that it quotes ([`crate::icmp`]).
//!
//! With `ipip` the packet goes to the backend as it is, in a packet of its own: [`crate::tunnel`].
//!
//! What is found is a [`Steer`]: the route stage looks its address up, and [`translate`] changes the packet once it is known
//! that it leaves. A packet that does not leave is not changed, where the kernel must answer its sender.

use crate::hash;
use crate::icmp;
use crate::image::Image;
use crate::layout::{
    AT_HASH_SEED, AT_SERVICES, BACKEND_BYTES, BACKEND_ID, BACKEND_PORT, BACKEND_ROW_BYTES, BACKEND_SERVICE,
    BACKEND_SLOT_BYTES, BACKEND_WEIGHT, SERVICE_ADDRESS_BYTES, SERVICE_ADDRESS_PORTS_AT, SERVICE_ADDRESS_TRANSLATED,
    SERVICE_ADDRESS_VIP, SERVICE_ADDRESS_WORD, SERVICE_AFFINITY_V4_AT, SERVICE_AFFINITY_V6_AT, SERVICE_BACKEND_COUNT,
    SERVICE_BACKENDS, SERVICE_BUCKET_ENTRIES, SERVICE_BYTES, SERVICE_CLOSING_S, SERVICE_ESTABLISHED_S, SERVICE_FLAGS,
    SERVICE_FLAGS_AFFINITY, SERVICE_FLAGS_DROP, SERVICE_FLAGS_HEALTH, SERVICE_FLAGS_IPIP, SERVICE_FLAGS_NAT,
    SERVICE_FLAGS_REJECT, SERVICE_ID, SERVICE_PORT_AFTER, SERVICE_PORT_BEFORE, SERVICE_PORT_BYTES, SERVICE_PORT_LAST,
    SERVICE_PORT_SERVICE, SERVICE_PORT_TARGET, SERVICE_PORTS_MAX, SERVICE_SLOT_COUNT, SERVICE_SLOTS, SERVICE_UDP_S,
    Section,
};
use crate::packet::{
    ETHERNET_BYTES, ICMP, ICMPV6, IP_IN_IP, IPV6_IN_IP, Packet, PacketMut, Parsed, TCP, UDP, link, parse,
};
use crate::verdict::{Node, ReachWords, Reason};

/// An address of either family in two numeric words, IPv4 mapped into IPv6 (RFC 4291 section 2.5.5.2).
pub type Address = [u64; 2];

const MAPPED: u64 = 0xffff << 32;

/// An address as [`hash::Flow`] has it, in one form for both families.
#[inline(always)]
pub const fn mapped(family: u8, address: [u64; 2]) -> Address {
    if family == 4 { [0, MAPPED | address[0] >> 32] } else { address }
}

/// Whether the address is one of IPv4.
#[inline(always)]
pub const fn is_v4(address: Address) -> bool {
    address[0] == 0 && address[1] >> 32 == 0xffff
}

/// The address as the route stage looks it up.
#[inline(always)]
pub(crate) const fn plain(address: Address) -> [u64; 2] {
    if is_v4(address) { [address[1] << 32, 0] } else { address }
}

/// What identifies a flow in the flow table.
pub type FlowKey = [u64; 5];

/// The key of packets with these addresses; `ports` as [`hash::Flow`] has them.
#[inline(always)]
pub const fn flow_key(src: Address, dst: Address, protocol: u8, ports: u32) -> FlowKey {
    [src[0], src[1], dst[0], dst[1], ports as u64 | (protocol as u64) << 32]
}

/// An entry of the flow table: four words.
///
/// The first holds service and backend by their ids, which outlive generations. The second when the flow was last seen, in
/// seconds of the kernel's monotonic clock, its state, its direction, and a port; then an address. To a backend these are
/// the backend's, from a backend the VIP's.
pub type FlowWords = [u64; 4];

/// An entry of the table of half-open flows: that of the flow table, and a fifth word. From a backend this is 0 until it has
/// answered, then [`ANSWERED`], with the number that the client has to acknowledge (TCP) in the low half.
pub type HalfOpenWords = [u64; 5];

/// The bit of a half-open flow's fifth word that says that the backend has answered.
pub const ANSWERED: u64 = 1 << 32;

/// What a backend may have sent beyond its SYN-ACK before its handshake is complete: a window that is not scaled, RFC 7323 section 2.2.
const UNSCALED_WINDOW_MAX: u32 = 0xffff;

/// The table that knows a flow.
pub mod table {
    pub const NONE: u32 = 0;
    pub const ESTABLISHED: u32 = 1;
    pub const HALF_OPEN: u32 = 2;
}

/// An entry of the flow table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEntry {
    pub service: u32,
    pub backend: u32,
    pub seen_s: u32,
    pub state: u8,
    pub direction: u8,
    pub port: u16,
    pub address: Address,
}

impl FlowEntry {
    /// A handshake or a first packet; the other side was not yet seen to answer.
    pub const NEW: u8 = 0;
    pub const ESTABLISHED: u8 = 1;
    /// A FIN or RST was seen.
    pub const CLOSING: u8 = 2;

    pub const TO_BACKEND: u8 = 0;
    pub const FROM_BACKEND: u8 = 1;

    #[inline(always)]
    const fn state_of(second: u64) -> u8 {
        (second >> 32) as u8
    }

    #[inline(always)]
    const fn direction_of(second: u64) -> u8 {
        (second >> 40) as u8
    }

    #[inline(always)]
    const fn second_word(seen_s: u32, state: u8, direction: u8, port: u32) -> u64 {
        seen_s as u64 | (state as u64) << 32 | (direction as u64) << 40 | (port as u64) << 48
    }

    #[inline(always)]
    pub const fn encode(&self) -> FlowWords {
        [
            self.service as u64 | (self.backend as u64) << 32,
            self.seen_s as u64 | (self.state as u64) << 32 | (self.direction as u64) << 40 | (self.port as u64) << 48,
            self.address[0],
            self.address[1],
        ]
    }

    #[inline(always)]
    pub const fn decode(words: FlowWords) -> Self {
        Self {
            service: words[0] as u32,
            backend: (words[0] >> 32) as u32,
            seen_s: words[1] as u32,
            state: (words[1] >> 32) as u8,
            direction: (words[1] >> 40) as u8,
            port: (words[1] >> 48) as u16,
            address: [words[2], words[3]],
        }
    }
}

/// A service with one of its backends in one number: the backend's id in the low bits; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chosen(pub u32);

impl Chosen {
    const BACKEND_BITS: u32 = 17;

    #[inline(always)]
    pub const fn of(service: u32, backend: u32) -> Self {
        Self(service << Self::BACKEND_BITS | backend & ((1 << Self::BACKEND_BITS) - 1))
    }

    /// Id of the service; 0: the packet met none.
    #[inline(always)]
    pub const fn service(self) -> u32 {
        self.0 >> Self::BACKEND_BITS
    }

    /// Id of the backend; 0: none was chosen.
    #[inline(always)]
    pub const fn backend(self) -> u32 {
        self.0 & ((1 << Self::BACKEND_BITS) - 1)
    }
}

/// The bit of a backend's word that says that it gets no packets.
pub const BACKEND_DOWN: u32 = 1;
/// Where the word says how many of 256 new flows the backend passes on: 8 bits.
pub const BACKEND_AWAY_AT: u32 = 8;

/// Whether a backend with this word passes on a new flow that the number `drawn` has led to it: the bits that choose slots are its
/// highest, those that are compared here its lowest.
#[inline(always)]
pub const fn passes_on(word: u32, drawn: u32) -> bool {
    word & BACKEND_DOWN != 0 || drawn & 0xff < word >> BACKEND_AWAY_AT & 0xff
}

/// Why a packet goes to this backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Why {
    /// The flow table knows the flow.
    Flow = 0,
    /// The slot of Maglev's table that the flow's hash names.
    Slot = 1,
    /// The same, by the source address alone.
    Affinity = 2,
    /// The slot in the table of the generation before, for a flow that nobody saw begin.
    Previous = 3,
    /// An answer of the backend: the flow table knows its flow.
    Answer = 4,
    /// The backend of the slot is down, and this one takes its flows.
    StandIn = 5,
    /// The backend of the slot is slow, and has passed this flow on.
    PassedOn = 6,
}

impl Why {
    pub const ALL: [Self; 7] =
        [Self::Flow, Self::Slot, Self::Affinity, Self::Previous, Self::Answer, Self::StandIn, Self::PassedOn];
}

/// What is translated.
pub mod translated {
    pub const NOTHING: u32 = 0;
    pub const DESTINATION: u32 = 1;
    pub const SOURCE: u32 = 2;
}

/// What the service stage found: plain numbers, since programs keep it in a map instead of on their small stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Steer {
    /// The flow's key as the packet came in.
    pub key: FlowKey,
    /// That of its answers, where they are translated.
    answer_key: FlowKey,
    /// What the table of flows, or that of half-open ones, says of the packet's direction and is told of both.
    entry: HalfOpenWords,
    answer: HalfOpenWords,
    /// The address that the route stage looks up.
    pub route: [u64; 2],
    /// What is left to decide on: [`crate::Met`], and of the packet's flow the addresses, the protocol and the ports, as
    /// [`hash::Flow`] has them.
    pub met: u64,
    pub(crate) flow: [u64; 5],
    /// What the translated address becomes.
    pub address: Address,
    /// Of a packet that goes by a tunnel: how it is sent, as [`crate::Reach::encode`] writes it.
    pub sent_to: ReachWords,
    /// What the translated port becomes.
    pub port: u32,
    /// One of [`translated`].
    pub translated: u32,
    /// [`Chosen`].
    pub chosen: u32,
    /// Number of a [`Why`].
    pub why: u32,
    /// Bytes from the IP header to the transport header; of an ICMP error, to its own header.
    pub transport: u32,
    /// Of an ICMP error: bytes from the IP header to the transport header that it quotes; 0: the packet is none.
    pub quoted: u32,
    /// While an ICMP error is translated: [`Difference`] of what its checksum covers, and of what the quoted one covers.
    pub(crate) message: u32,
    pub(crate) segment: u32,
    /// What Maglev's table was asked with; 0: it was not.
    pub hash: u32,
    /// Flags of the TCP header as [`tcp`] has them.
    pub flags: u32,
    /// Of a TCP segment: the number that it acknowledges; with SYN, the one that its receiver is to acknowledge.
    number: u32,
    /// One of [`table`].
    table: u32,
    /// Id of the backend that the generation before would have chosen; 0: none, or it is not honoured any more.
    pub previous: u32,
    /// While the stage runs: row and offset of the service, offset of the backend, the backend's port if it has none of its
    /// own, the time.
    row: u32,
    service: u32,
    backend: u32,
    target: u32,
    now_s: u32,
    /// Id of the backend that would have the packet, and is down or passes it on; 0: none is.
    pub passed_over: u32,
    /// One of [`step`], where a program keeps it here.
    pub at: u32,
    /// One of [`step`]: the tunnel by which the packet reaches its backend; 0: none.
    pub tunnel: u32,
    /// Of a packet that goes by a tunnel: the largest one that its port takes; 0: no limit known.
    pub mtu: u32,
    /// Family of `route`; TTL; largest IP packet that leaves, whether it lies in several buffers, and the number of the reason
    /// for which it does not leave where it is too large.
    pub(crate) family: u32,
    pub(crate) ttl: u32,
    pub(crate) largest_segment: u32,
    pub(crate) is_scattered: u32,
    pub(crate) too_large: u32,
}

impl Steer {
    /// Of a packet that met no service.
    pub const NONE: Self = Self {
        key: [0; 5],
        answer_key: [0; 5],
        entry: [0; 5],
        answer: [0; 5],
        route: [0; 2],
        met: 0,
        flow: [0; 5],
        address: [0; 2],
        sent_to: [0; 4],
        port: 0,
        translated: translated::NOTHING,
        chosen: 0,
        why: 0,
        transport: 0,
        quoted: 0,
        message: 0,
        segment: 0,
        hash: 0,
        flags: 0,
        number: 0,
        table: table::NONE,
        previous: 0,
        row: 0,
        service: 0,
        backend: 0,
        target: 0,
        now_s: 0,
        passed_over: 0,
        at: step::UNSERVED,
        tunnel: 0,
        mtu: 0,
        family: 0,
        ttl: 0,
        largest_segment: 0,
        is_scattered: 0,
        too_large: 0,
    };

    pub fn why(&self) -> Option<Why> {
        Why::ALL.into_iter().find(|why| self.chosen != 0 && *why as u32 == self.why)
    }

    pub const fn chosen(&self) -> Chosen {
        Chosen(self.chosen)
    }

    /// Whether the packet, or the one that it quotes, is one of TCP.
    #[inline(always)]
    pub const fn is_tcp(&self) -> bool {
        self.protocol() == TCP
    }

    #[inline(always)]
    pub(crate) const fn protocol(&self) -> u8 {
        (self.key[4] >> 32) as u8
    }

    #[inline(always)]
    pub(crate) const fn ports(&self) -> u32 {
        self.key[4] as u32
    }

    #[inline(always)]
    pub(crate) const fn source(&self) -> Address {
        [self.key[0], self.key[1]]
    }

    #[inline(always)]
    pub(crate) const fn destination(&self) -> Address {
        [self.key[2], self.key[3]]
    }
}

/// Flags of the TCP header's 13th and 14th byte, RFC 9293 section 3.1.
pub mod tcp {
    pub const FIN: u32 = 1;
    pub const SYN: u32 = 2;
    pub const RST: u32 = 4;
    pub const ACK: u32 = 16;
}
const TCP_SEQUENCE_AT: u32 = 4;
const TCP_ACKNOWLEDGES_AT: u32 = 8;
const TCP_FLAGS_AT: u32 = 12;
pub(crate) const TCP_CHECKSUM_AT: u32 = 16;
const TCP_BYTES: u32 = 20;
pub(crate) const UDP_CHECKSUM_AT: u32 = 6;
const UDP_BYTES: u32 = 8;

/// How often the flow table is told of a flow that goes on.
const REFRESH_S: u32 = 1;
/// Steps of a search among [`SERVICE_PORTS_MAX`] rows.
const PORT_STEPS: u32 = SERVICE_PORTS_MAX.ilog2() + 1;

/// Where the stage has come to with a packet: a number, since it goes from function to function.
pub mod step {
    use crate::verdict::Reason;

    /// No service: the packet is routed as it is.
    pub const UNSERVED: u32 = 0;
    /// The `Steer` says where to.
    pub const STEERED: u32 = 1;
    /// To a service; from a backend; of a flow that is not known; to a backend that was just chosen; the table must be told.
    pub const TO_SERVICE: u32 = 2;
    pub const FROM_BACKEND: u32 = 3;
    pub const UNKNOWN: u32 = 4;
    pub const BEGUN: u32 = 5;
    pub const REFRESH: u32 = 6;
    /// A backend was picked; the one that would be is down, or passes the flow on.
    pub const PICKED: u32 = 7;
    pub const DOWN: u32 = 8;
    /// Of ICMP: whether it is an error about a packet of a service is not read yet.
    pub const ICMP: u32 = 9;
    /// An echo request, to a VIP or any other address.
    pub const ECHO: u32 = 10;
    /// A packet that holds another one.
    pub const OUTER: u32 = 11;
    /// [`STEERED`] by a tunnel: the packet gets an outer header of IPv4, of IPv6.
    pub const TUNNEL_V4: u32 = 12;
    pub const TUNNEL_V6: u32 = 13;
    const STAYS: u32 = 1 << 8;

    /// It goes no further, for this reason.
    #[inline(always)]
    pub const fn stays(reason: Reason) -> u32 {
        STAYS | reason as u32
    }

    /// Number of the reason of a packet that goes no further.
    #[inline(always)]
    pub const fn reason(step: u32) -> u8 {
        step as u8
    }
}

/// Whether the image has services.
#[inline(always)]
pub fn has_services<I: Image + ?Sized>(image: &I) -> bool {
    image.head(AT_SERVICES).is_some_and(|at| at != 0)
}

/// What is read of the packet: enough for [`stage`]. Gives one of [`step`]: `TO_SERVICE`, `ICMP` or `OUTER` for what the stage looks at;
/// `UNSERVED` for other protocols, and where the route stage says what is wrong with the packet.
#[inline(always)]
pub fn read<P: Packet + ?Sized>(headers: &P, ethertype: u16, steer: &mut Steer) -> u32 {
    let Ok(parsed) = parse(headers, ethertype) else { return step::UNSERVED };
    let Parsed { family, flow, header_bytes, .. } = parsed;
    let is_icmp = flow.protocol == if family == 4 { ICMP } else { ICMPV6 };
    let is_outer = flow.protocol == IP_IN_IP || flow.protocol == IPV6_IN_IP;
    if flow.protocol != TCP && flow.protocol != UDP && !is_icmp && !is_outer {
        return step::UNSERVED;
    }
    steer.key = flow_key(mapped(family, flow.src), mapped(family, flow.dst), flow.protocol, flow.ports);
    steer.transport = header_bytes;
    steer.quoted = 0;
    steer.flags = 0;
    steer.number = 0;
    steer.chosen = 0;
    steer.why = Why::Slot as u32;
    steer.previous = 0;
    steer.passed_over = 0;
    steer.hash = 0;
    steer.translated = translated::NOTHING;
    steer.tunnel = 0;
    if is_icmp {
        return step::ICMP;
    }
    if is_outer {
        return step::OUTER;
    }
    if flow.ports != 0 {
        let at = ETHERNET_BYTES + header_bytes;
        // The whole header must be readable, so that a translation that has begun can be completed.
        if flow.protocol == TCP {
            let (Some(_), Some(flags)) = (headers.be16(at + TCP_BYTES - 2), headers.be16(at + TCP_FLAGS_AT)) else {
                return step::stays(Reason::Malformed);
            };
            steer.flags = u32::from(flags) & 0x1ff;
            let (Some(sequence), Some(acknowledges)) =
                (headers.be32(at + TCP_SEQUENCE_AT), headers.be32(at + TCP_ACKNOWLEDGES_AT))
            else {
                return step::stays(Reason::Malformed);
            };
            steer.number = if steer.flags & tcp::SYN != 0 { sequence.wrapping_add(1) } else { acknowledges };
        } else if headers.be16(at + UDP_BYTES - 2).is_none() {
            return step::stays(Reason::Malformed);
        }
    }
    step::TO_SERVICE
}

/// The stage for a packet that [`read`] has taken: where it ends, as one of [`step`].
///
/// Programs call its parts one by one, which keeps their stack small.
pub fn stage<I: Image + ?Sized, N: Node>(image: &I, node: &N, steer: &mut Steer) -> u32 {
    match locate(image, steer) {
        step::TO_SERVICE => {
            look_up(node, steer);
            let mut at = known(image, node, steer);
            if at == step::UNKNOWN {
                steer.previous = node.previous_choice(steer);
                at = pick(image, node, steer);
                if at == step::DOWN {
                    at = stand_in(image, node, steer);
                }
                if at == step::PICKED {
                    at = begin(image, steer);
                }
            }
            if at == step::BEGUN || at == step::REFRESH { keep(image, node, steer, at) } else { at }
        }
        step::FROM_BACKEND => {
            look_up(node, steer);
            answer(node, steer)
        }
        other => other,
    }
}

const BAD_IMAGE: u32 = step::stays(Reason::BadImage);

/// Whether the packet is to a service or from a backend.
#[inline(always)]
pub fn locate<I: Image + ?Sized>(image: &I, steer: &mut Steer) -> u32 {
    locate_in(image, steer).unwrap_or(BAD_IMAGE)
}

#[inline(always)]
fn locate_in<I: Image + ?Sized>(image: &I, steer: &mut Steer) -> Option<u32> {
    let word = find(image, steer.destination())?;
    if word & SERVICE_ADDRESS_VIP != 0 {
        if steer.ports() == 0 {
            return Some(step::stays(Reason::ServiceFragment));
        }
        let row = port_row(image, word, u32::from(steer.protocol()) << 16 | steer.ports() & 0xffff)?;
        if row != 0 {
            steer.row = image.u32(row.wrapping_add(SERVICE_PORT_SERVICE))?;
            steer.service = image.head(Section::Services.at())?.wrapping_add(steer.row.wrapping_mul(SERVICE_BYTES));
            steer.target = target(image, row, steer.ports() & 0xffff)?;
            steer.chosen = Chosen::of(image.u32(steer.service.wrapping_add(SERVICE_ID))?, 0).0;
            return Some(step::TO_SERVICE);
        }
    }
    if steer.ports() != 0 && find(image, steer.source())? & SERVICE_ADDRESS_TRANSLATED != 0 {
        return Some(step::FROM_BACKEND);
    }
    Some(step::UNSERVED)
}

/// What the table of service addresses holds of an address; 0: nothing.
#[inline(always)]
pub(crate) fn find<I: Image + ?Sized>(image: &I, address: Address) -> Option<u64> {
    const BUCKET_BYTES: u32 = SERVICE_ADDRESS_BYTES * SERVICE_BUCKET_ENTRIES;
    let table = image.head(AT_SERVICES)?;
    let mask = (image.head(Section::ServiceAddresses.at() + 4)? / SERVICE_BUCKET_ENTRIES).wrapping_sub(1);
    let hash = address_hash(address);
    for bucket in [hash as u32 & mask, (hash >> 32) as u32 & mask] {
        let at = table.wrapping_add(bucket.wrapping_mul(BUCKET_BYTES));
        for entry in 0..SERVICE_BUCKET_ENTRIES {
            let at = at.wrapping_add(entry * SERVICE_ADDRESS_BYTES);
            let word = image.u64(at.wrapping_add(SERVICE_ADDRESS_WORD))?;
            if word != 0 && image.u64(at)? == address[0] && image.u64(at.wrapping_add(8))? == address[1] {
                return Some(word);
            }
        }
    }
    Some(0)
}

/// Both buckets of an address: one in each half.
#[inline(always)]
pub const fn address_hash(address: Address) -> u64 {
    // Off the mix's fixed point 0.
    hash::mix(hash::mix(address[0] ^ 0x9e37_79b9_7f4a_7c15) ^ address[1])
}

/// Offset of the row of a VIP's ports that holds `wanted`; 0: none does.
///
/// A search tree instead of bisection: every number comes from the image, so that the verifier knows nothing of where the
/// search stands, and does not follow it to each of the places where it can end.
#[inline(always)]
fn port_row<I: Image + ?Sized>(image: &I, word: u64, wanted: u32) -> Option<u32> {
    let table = image.head(Section::ServicePorts.at())?;
    let count = u32::from((word >> SERVICE_ADDRESS_PORTS_AT) as u16);
    let mut row = (word as u32).wrapping_add(count >> 1).wrapping_add(1);
    for _ in 0..PORT_STEPS {
        let at = table.wrapping_add(row.wrapping_sub(1).wrapping_mul(SERVICE_PORT_BYTES));
        row = if wanted < image.u32(at)? {
            image.u32(at.wrapping_add(SERVICE_PORT_BEFORE))?
        } else if wanted > image.u32(at.wrapping_add(SERVICE_PORT_LAST))? {
            image.u32(at.wrapping_add(SERVICE_PORT_AFTER))?
        } else {
            return Some(at);
        };
        if row == 0 {
            break;
        }
    }
    Some(0)
}

/// Whether the packet begins a TCP connection.
#[inline(always)]
const fn is_syn(steer: &Steer) -> bool {
    steer.protocol() == TCP && steer.flags & (tcp::SYN | tcp::ACK) == tcp::SYN
}

/// What the tables of flows know of the packet's.
#[inline(always)]
pub fn look_up<N: Node>(node: &N, steer: &mut Steer) {
    steer.now_s = node.now_s();
    steer.table = table::ESTABLISHED;
    let words = node.flow(&steer.key);
    if words[0] != 0 {
        steer.entry = half_open(words, 0);
        return;
    }
    steer.entry = node.half_open(&steer.key);
    steer.table = if steer.entry[0] == 0 { table::NONE } else { table::HALF_OPEN };
}

/// The entry of a half-open flow that nobody has answered.
pub const fn unanswered(words: FlowWords) -> HalfOpenWords {
    half_open(words, 0)
}

#[inline(always)]
const fn half_open(words: FlowWords, proof: u64) -> HalfOpenWords {
    [words[0], words[1], words[2], words[3], proof]
}

/// Writes an entry to the table of flows, or to that of half-open ones.
#[inline(always)]
fn write<N: Node>(node: &N, key: &FlowKey, words: &HalfOpenWords, is_established: bool) {
    if !is_established {
        node.keep_half_open(key, words);
    } else if let Some(words) = words.first_chunk() {
        node.keep(key, words);
    }
}

/// The backend that the flow tables know for a packet to a service; after [`look_up`].
#[inline(always)]
pub fn known<I: Image + ?Sized, N: Node>(image: &I, node: &N, steer: &mut Steer) -> u32 {
    known_in(image, node, steer).unwrap_or(BAD_IMAGE)
}

#[inline(always)]
fn known_in<I: Image + ?Sized, N: Node>(image: &I, node: &N, steer: &mut Steer) -> Option<u32> {
    let words = steer.entry;
    let (owner, state) = (words[0] as u32, FlowEntry::state_of(words[1]));
    if owner != Chosen(steer.chosen).service() || FlowEntry::direction_of(words[1]) != FlowEntry::TO_BACKEND {
        return Some(step::UNKNOWN);
    }
    let id = (words[0] >> 32) as u32;
    steer.backend = backend_with(image, id, steer.row)?;
    if steer.backend == 0 {
        return Some(step::UNKNOWN);
    }
    let flags = image.u32(steer.service.wrapping_add(SERVICE_FLAGS))?;
    if flags & SERVICE_FLAGS_HEALTH != 0 && node.is_down(id) {
        // Who would answer is gone; another backend at least says so.
        steer.passed_over = id;
        return Some(step::UNKNOWN);
    }
    let is_tcp = steer.protocol() == TCP;
    let timeout = if !is_tcp {
        SERVICE_UDP_S
    } else if state == FlowEntry::ESTABLISHED {
        SERVICE_ESTABLISHED_S
    } else {
        SERVICE_CLOSING_S
    };
    let age_s = steer.now_s.wrapping_sub(words[1] as u32);
    if age_s > image.u32(steer.service.wrapping_add(timeout))? {
        return Some(step::UNKNOWN);
    }
    // A connection that begins goes to no backend that is being drained, and is none that has ended.
    if is_syn(steer) && (state == FlowEntry::CLOSING || image.u16(steer.backend.wrapping_add(BACKEND_WEIGHT))? == 0) {
        return Some(step::UNKNOWN);
    }
    let now = next_state(state, is_tcp, steer.flags);
    let port = (words[1] >> 48) as u32;
    steered(image, port, id, steer)?;
    steer.why = Why::Flow as u32;
    let may_prove = steer.table == table::HALF_OPEN && may_prove(steer);
    if now == state && age_s < REFRESH_S && !may_prove {
        return Some(step::STEERED);
    }
    steer.entry[1] = FlowEntry::second_word(steer.now_s, now, FlowEntry::TO_BACKEND, port);
    Some(step::REFRESH)
}

/// A backend for a flow that the flow table does not know, in `steer.backend`.
#[inline(always)]
pub fn pick<I: Image + ?Sized, N: Node>(image: &I, node: &N, steer: &mut Steer) -> u32 {
    pick_in(image, node, steer).unwrap_or(BAD_IMAGE)
}

#[inline(always)]
fn pick_in<I: Image + ?Sized, N: Node>(image: &I, node: &N, steer: &mut Steer) -> Option<u32> {
    let flags = image.u32(steer.service.wrapping_add(SERVICE_FLAGS))?;
    steer.hash = flow_hash(image, flags, steer)?;
    steer.why = if flags & SERVICE_FLAGS_AFFINITY == 0 { Why::Slot as u32 } else { Why::Affinity as u32 };
    steer.backend = 0;
    // What has no handshake may always be a flow that begins now.
    if steer.previous != 0 && steer.protocol() == TCP && !is_syn(steer) {
        steer.backend = backend_with(image, steer.previous, steer.row)?;
        if flags & SERVICE_FLAGS_HEALTH != 0 && node.is_down(steer.previous) {
            steer.backend = 0;
        }
        if steer.backend != 0 {
            steer.why = Why::Previous as u32;
            return Some(step::PICKED);
        }
    }
    steer.backend = slot(image, steer.service, steer.hash)?;
    if steer.backend == 0 {
        return Some(none_takes_it(flags, steer));
    }
    if flags & SERVICE_FLAGS_HEALTH != 0 {
        let id = image.u32(steer.backend.wrapping_add(BACKEND_ID))?;
        if node.passes_on(id, steer.hash) {
            steer.passed_over = id;
            return Some(step::DOWN);
        }
    }
    Some(step::PICKED)
}

#[inline(always)]
const fn none_takes_it(flags: u32, steer: &Steer) -> u32 {
    // Nobody answers an error (RFC 1122 section 3.2.2) or a reset (RFC 9293 section 3.10.7.1).
    let is_answered = steer.quoted == 0 && steer.flags & tcp::RST == 0;
    step::stays(if flags & SERVICE_FLAGS_REJECT != 0 {
        if is_answered { Reason::NoBackendReject } else { Reason::NoBackendDrop }
    } else if flags & SERVICE_FLAGS_DROP != 0 {
        Reason::NoBackendDrop
    } else {
        Reason::NoBackend
    })
}

/// Draws from Maglev's table before backends are tried in order: with half of the weight down, fewer than one flow in 10^7
/// gets that far.
const REDRAWS_MAX: u32 = 24;
/// Backends that are then tried, from a place that the hash says on: all of a service that has no more.
pub const STAND_INS_MAX: u32 = 64;
/// Keeps the chain of draws off the mix's fixed point 0: 2^32 divided by the golden ratio.
const REDRAW_STEP: u64 = 0x9e37_79b9 << 32;

/// A backend that takes a flow of one that is down or passes it on, in `steer.backend`: by further draws from the same table, so that they
/// are shared out by weight; always the same one for the same flow, as long as the same backends are down.
#[inline(always)]
pub fn stand_in<I: Image + ?Sized, N: Node>(image: &I, node: &N, steer: &mut Steer) -> u32 {
    stand_in_for(image, node, steer).unwrap_or(BAD_IMAGE)
}

#[inline(always)]
fn stand_in_for<I: Image + ?Sized, N: Node>(image: &I, node: &N, steer: &mut Steer) -> Option<u32> {
    steer.why = if node.is_down(steer.passed_over) { Why::StandIn as u32 } else { Why::PassedOn as u32 };
    let mut drawn = steer.hash;
    for _ in 0..REDRAWS_MAX {
        drawn = (hash::mix(u64::from(drawn) + REDRAW_STEP) >> 32) as u32;
        let backend = slot(image, steer.service, drawn)?;
        if backend == 0 {
            break;
        }
        if !node.passes_on(image.u32(backend.wrapping_add(BACKEND_ID))?, drawn) {
            steer.backend = backend;
            return Some(step::PICKED);
        }
    }
    let count = image.u32(steer.service.wrapping_add(SERVICE_BACKEND_COUNT))?;
    let first = image.u32(steer.service.wrapping_add(SERVICE_BACKENDS))?;
    let backends = image.head(Section::Backends.at())?;
    for tried in 0..STAND_INS_MAX {
        // The remainder instead of a counter that starts again: the verifier would follow every value that it can have.
        let row = first.wrapping_add(drawn.wrapping_add(tried).checked_rem(count)?);
        let backend = backends.wrapping_add(row.wrapping_mul(BACKEND_BYTES));
        let takes_flows = image.u16(backend.wrapping_add(BACKEND_WEIGHT))? != 0;
        if takes_flows && !node.is_down(image.u32(backend.wrapping_add(BACKEND_ID))?) {
            steer.backend = backend;
            return Some(step::PICKED);
        }
    }
    Some(none_takes_it(image.u32(steer.service.wrapping_add(SERVICE_FLAGS))?, steer))
}

/// A flow to the backend that was picked.
#[inline(always)]
pub fn begin<I: Image + ?Sized>(image: &I, steer: &mut Steer) -> u32 {
    begin_in(image, steer).unwrap_or(BAD_IMAGE)
}

#[inline(always)]
fn begin_in<I: Image + ?Sized>(image: &I, steer: &mut Steer) -> Option<u32> {
    let id = image.u32(steer.backend.wrapping_add(BACKEND_ID))?;
    let own = u32::from(image.u16(steer.backend.wrapping_add(BACKEND_PORT))?);
    let port = if own == 0 { steer.target } else { own };
    steered(image, port, id, steer)?;
    let state = next_state(FlowEntry::NEW, steer.protocol() == TCP, steer.flags);
    steer.entry = [
        u64::from(Chosen(steer.chosen).service()) | u64::from(id) << 32,
        FlowEntry::second_word(steer.now_s, state, FlowEntry::TO_BACKEND, port),
        steer.address[0],
        steer.address[1],
        0,
    ];
    Some(step::BEGUN)
}

/// Whether a packet of a half-open flow to its backend can show that somebody is there; not of one that is only about to end.
#[inline(always)]
const fn may_prove(steer: &Steer) -> bool {
    !steer.is_tcp() || steer.flags & (tcp::SYN | tcp::FIN | tcp::RST | tcp::ACK) == tcp::ACK
}

/// Whether the backend's answer, as the fifth word of its half-open flow says, is what this packet of the client shows to have got.
#[inline(always)]
const fn proves(answered: u64, steer: &Steer) -> bool {
    answered & ANSWERED != 0 && (!steer.is_tcp() || steer.number.wrapping_sub(answered as u32) <= UNSCALED_WINDOW_MAX)
}

/// Tells the tables of a flow that begins ([`step::BEGUN`]) or goes on, and of its answers.
#[inline(always)]
pub fn keep<I: Image + ?Sized, N: Node>(image: &I, node: &N, steer: &mut Steer, at: u32) -> u32 {
    if steer.quoted != 0 {
        // An error begins no flow and keeps none alive: whoever can guess its addresses can send one.
        return step::STEERED;
    }
    let is_nat = steer.translated != translated::NOTHING;
    let is_begun = at == step::BEGUN;
    if is_begun && !node.admits_flow() {
        return if is_nat { step::stays(Reason::NewFlowRate) } else { step::STEERED };
    }
    let was_established = !is_begun && steer.table == table::ESTABLISHED;
    let mut is_established = was_established || !is_begun && may_prove(steer);
    if is_nat {
        // The other direction may have been silent for long, and must not be forgotten first.
        let vip_port = steer.ports() & 0xffff;
        let ports = steer.port << 16 | steer.ports() >> 16;
        steer.answer_key = flow_key(steer.address, steer.source(), steer.protocol(), ports);
        steer.answer = half_open(node.flow(&steer.answer_key), 0);
        let is_known = steer.answer[0] != 0;
        if !is_known {
            steer.answer = node.half_open(&steer.answer_key);
        }
        let vip = steer.destination();
        let second = steer.answer[1];
        if steer.answer[0] != 0 && ([steer.answer[2], steer.answer[3]] != vip || (second >> 48) as u32 != vip_port) {
            let longest = if steer.is_tcp() { SERVICE_ESTABLISHED_S } else { SERVICE_UDP_S };
            let Some(longest_s) = image.u32(steer.service.wrapping_add(longest)) else { return BAD_IMAGE };
            let age_s = steer.now_s.wrapping_sub(second as u32);
            if FlowEntry::state_of(second) != FlowEntry::CLOSING && age_s <= longest_s {
                return step::stays(Reason::FlowCollision);
            }
            steer.answer[4] = 0;
        }
        if is_begun {
            steer.answer[4] = 0;
            if is_known {
                node.forget(&steer.answer_key);
            }
        }
        is_established = was_established || is_established && proves(steer.answer[4], steer);
        let second = FlowEntry::second_word(steer.now_s, FlowEntry::NEW, FlowEntry::FROM_BACKEND, vip_port);
        steer.answer = half_open([steer.entry[0], second, vip[0], vip[1]], steer.answer[4]);
        write(node, &steer.answer_key, &steer.answer, is_established);
    }
    if is_begun && steer.table == table::ESTABLISHED {
        // What the flow was before it began anew: it would be found first.
        node.forget(&steer.key);
    }
    write(node, &steer.key, &steer.entry, is_established);
    step::STEERED
}

/// An answer of a backend, if the flow tables know what it answers; after [`look_up`].
#[inline(always)]
pub fn answer<N: Node>(node: &N, steer: &mut Steer) -> u32 {
    let words = steer.entry;
    if words[0] == 0 || FlowEntry::direction_of(words[1]) != FlowEntry::FROM_BACKEND {
        return step::UNSERVED;
    }
    steer.chosen = Chosen::of(words[0] as u32, (words[0] >> 32) as u32).0;
    steer.why = Why::Answer as u32;
    steer.translated = translated::SOURCE;
    steer.address = [words[2], words[3]];
    steer.port = (words[1] >> 48) as u32;
    steer.route = plain(steer.destination());
    if steer.quoted != 0 {
        return step::STEERED;
    }
    let state = FlowEntry::state_of(words[1]);
    let now = next_state(state, steer.is_tcp(), steer.flags);
    let is_news = now != state || steer.now_s.wrapping_sub(words[1] as u32) >= REFRESH_S;
    steer.entry[1] = FlowEntry::second_word(steer.now_s, now, FlowEntry::FROM_BACKEND, steer.port);
    let mut is_established = steer.table == table::ESTABLISHED;
    if is_established {
        if !is_news {
            return step::STEERED;
        }
    } else if steer.is_tcp() && steer.flags & (tcp::SYN | tcp::RST) == 0 {
        // The backend's handshake is complete: the flow is one, in both directions.
        is_established = true;
        let ports = steer.ports() << 16 | steer.port;
        steer.answer_key = flow_key(steer.destination(), steer.address, steer.protocol(), ports);
        let second =
            FlowEntry::second_word(steer.now_s, FlowEntry::ESTABLISHED, FlowEntry::TO_BACKEND, steer.ports() >> 16);
        steer.answer = half_open([words[0], second, steer.key[0], steer.key[1]], 0);
        write(node, &steer.answer_key, &steer.answer, is_established);
    } else {
        let is_reset = steer.is_tcp() && steer.flags & tcp::RST != 0;
        let answered = if is_reset { 0 } else { ANSWERED | u64::from(steer.number) };
        if !is_news && answered == words[4] {
            return step::STEERED;
        }
        steer.entry[4] = answered;
    }
    write(node, &steer.key, &steer.entry, is_established);
    step::STEERED
}

/// The state after a packet with these flags.
#[inline(always)]
const fn next_state(state: u8, is_tcp: bool, flags: u32) -> u8 {
    if is_tcp && flags & (tcp::FIN | tcp::RST) != 0 || state == FlowEntry::CLOSING && flags & tcp::SYN == 0 {
        FlowEntry::CLOSING
    } else if is_tcp && flags & tcp::SYN != 0 {
        FlowEntry::NEW
    } else {
        FlowEntry::ESTABLISHED
    }
}

/// To the backend at `steer.backend`, whose id is `backend`.
#[inline(always)]
fn steered<I: Image + ?Sized>(image: &I, port: u32, backend: u32, steer: &mut Steer) -> Option<()> {
    let address = address(image, steer.backend)?;
    let flags = image.u32(steer.service.wrapping_add(SERVICE_FLAGS))?;
    steer.route = plain(address);
    steer.address = address;
    steer.port = port;
    steer.translated = if flags & SERVICE_FLAGS_NAT != 0 { translated::DESTINATION } else { translated::NOTHING };
    let tunnel = if is_v4(address) { step::TUNNEL_V4 } else { step::TUNNEL_V6 };
    steer.tunnel = if flags & SERVICE_FLAGS_IPIP != 0 { tunnel } else { 0 };
    steer.chosen = Chosen::of(Chosen(steer.chosen).service(), backend).0;
    Some(())
}

#[inline(always)]
fn address<I: Image + ?Sized>(image: &I, backend: u32) -> Option<Address> {
    Some([image.u64(backend)?, image.u64(backend.wrapping_add(8))?])
}

/// The backend's port for a port of the service.
#[inline(always)]
fn target<I: Image + ?Sized>(image: &I, row: u32, port: u32) -> Option<u32> {
    let first = image.u32(row)? & 0xffff;
    let target = image.u32(row.wrapping_add(SERVICE_PORT_TARGET))?;
    Some(if target == 0 { port } else { target.wrapping_add(port).wrapping_sub(first) & 0xffff })
}

/// Offset of the backend with this id, if it is one of the service's; 0: none is.
#[inline(always)]
fn backend_with<I: Image + ?Sized>(image: &I, id: u32, service: u32) -> Option<u32> {
    if id >= image.head(Section::BackendRows.at() + 4)? {
        return Some(0);
    }
    let rows = image.head(Section::BackendRows.at())?;
    let row = image.u32(rows.wrapping_add(id.wrapping_mul(BACKEND_ROW_BYTES)))?;
    if row == 0 {
        return Some(0);
    }
    let at = image.head(Section::Backends.at())?.wrapping_add(row.wrapping_sub(1).wrapping_mul(BACKEND_BYTES));
    Some(if image.u32(at.wrapping_add(BACKEND_SERVICE))? == service { at } else { 0 })
}

/// What Maglev's table is asked with.
#[inline(always)]
fn flow_hash<I: Image + ?Sized>(image: &I, flags: u32, steer: &Steer) -> Option<u32> {
    let seed = image.head(AT_HASH_SEED)?;
    let src = plain(steer.source());
    if flags & SERVICE_FLAGS_AFFINITY == 0 {
        let dst = plain(steer.destination());
        return Some(hash::flow(&hash::Flow { src, dst, protocol: steer.protocol(), ports: steer.ports() }, seed));
    }
    let at = if is_v4(steer.source()) { SERVICE_AFFINITY_V4_AT } else { SERVICE_AFFINITY_V6_AT };
    let length = flags >> at & 0xff;
    let src = [src[0] & mask(length), if length > 64 { src[1] & mask(length - 64) } else { 0 }];
    Some(hash::flow(&hash::Flow { src, dst: [0, 0], protocol: 0, ports: 0 }, seed))
}

/// The first `length` bits of a word.
#[inline(always)]
const fn mask(length: u32) -> u64 {
    if length == 0 {
        0
    } else if length >= 64 {
        u64::MAX
    } else {
        u64::MAX << (64 - length)
    }
}

/// Offset of the backend that has the hash's slot; 0: the table is empty. `service` is the service's row.
#[inline(always)]
fn slot<I: Image + ?Sized>(image: &I, service: u32, hash: u32) -> Option<u32> {
    let count = image.u32(service.wrapping_add(SERVICE_SLOT_COUNT))?;
    if count == 0 {
        return Some(0);
    }
    // A share of the hash's range: no division, and as even.
    let slot = ((u64::from(hash) * u64::from(count)) >> 32) as u32;
    let first = image.u32(service.wrapping_add(SERVICE_SLOTS))?;
    let slots = image.head(Section::BackendSlots.at())?;
    let index = image.u16(slots.wrapping_add(first.wrapping_add(slot).wrapping_mul(BACKEND_SLOT_BYTES)))?;
    let row = image.u32(service.wrapping_add(SERVICE_BACKENDS))?.wrapping_add(index.into());
    Some(image.head(Section::Backends.at())?.wrapping_add(row.wrapping_mul(BACKEND_BYTES)))
}

/// Id of the backend that an image's Maglev table names for a packet that another image has no flow for; 0: none.
///
/// For the generation before: `steer` has been through [`stage`] with the live one.
#[inline(always)]
pub fn choice_of<I: Image + ?Sized>(image: &I, steer: &Steer) -> Option<u32> {
    if !has_services(image) {
        return Some(0);
    }
    let word = find(image, steer.destination())?;
    if word & SERVICE_ADDRESS_VIP == 0 {
        return Some(0);
    }
    let row = port_row(image, word, u32::from(steer.protocol()) << 16 | steer.ports() & 0xffff)?;
    if row == 0 {
        return Some(0);
    }
    let service = image.u32(row.wrapping_add(SERVICE_PORT_SERVICE))?;
    let at = image.head(Section::Services.at())?.wrapping_add(service.wrapping_mul(SERVICE_BYTES));
    let flags = image.u32(at.wrapping_add(SERVICE_FLAGS))?;
    let backend = slot(image, at, flow_hash(image, flags, steer)?)?;
    if backend == 0 { Some(0) } else { image.u32(backend.wrapping_add(BACKEND_ID)) }
}

/// Whether a packet that ends for this reason is translated: one that leaves, and one that the kernel routes on. Where the
/// kernel must answer the sender, it gets the packet as the sender made it.
#[inline(always)]
pub const fn is_translated_for(reason: u8) -> bool {
    const AS_IT_CAME: u64 =
        Reason::DROPS | Reason::ANSWERS | 1 << Reason::TtlExpired as u8 | 1 << Reason::OverMtu as u8;
    AS_IT_CAME >> (reason & 63) & 1 == 0
}

/// [`is_translated_for`] of a packet that the stage may have steered.
pub const fn is_translated(steer: &Steer, reason: Reason) -> bool {
    steer.translated != translated::NOTHING && is_translated_for(reason as u8)
}

/// Changes address, port and checksums (RFC 1624) of a frame as `steer` says. `None` before the first write: the frame is not
/// what [`read`] took.
pub fn translate<P: PacketMut + ?Sized>(packet: &mut P, steer: &mut Steer) -> Option<()> {
    match (steer.translated, steer.quoted) {
        (translated::NOTHING, _) => Some(()),
        (_, 0) => translate_segment(packet, steer),
        _ => {
            icmp::translate_addresses(packet, steer)?;
            icmp::translate_quoted(packet, steer)
        }
    }
}

/// The same of a packet that is no ICMP error.
#[inline(always)]
pub fn translate_segment<P: PacketMut + ?Sized>(packet: &mut P, steer: &Steer) -> Option<()> {
    let link = link(packet).ok()?;
    let l3 = ETHERNET_BYTES + link.tag_bytes;
    let is_source = steer.translated == translated::SOURCE;
    let to = steer.address;
    let l4 = l3 + steer.transport;
    let port_at = if is_source { l4 } else { l4 + 2 };
    let old_port = packet.be16(port_at)?;
    let is_tcp = steer.protocol() == TCP;
    let checksum_at = l4 + if is_tcp { TCP_CHECKSUM_AT } else { UDP_CHECKSUM_AT };
    let has_checksum = packet.be16(checksum_at)? != 0 || is_tcp;
    let mut sum = Difference(0);
    if is_v4(to) {
        let at = l3 + if is_source { 12 } else { 16 };
        let old = packet.be32(at)?;
        sum.replace32(old, to[1] as u32);
        let checksum = packet.be16(l3 + 10)?;
        packet.set_be16(l3 + 10, sum.apply(checksum))?;
        packet.set_be32(at, to[1] as u32)?;
    } else {
        let at = l3 + if is_source { 8 } else { 24 };
        for (offset, new) in
            [(0, (to[0] >> 32) as u32), (4, to[0] as u32), (8, (to[1] >> 32) as u32), (12, to[1] as u32)]
        {
            sum.replace32(packet.be32(at + offset)?, new);
            packet.set_be32(at + offset, new)?;
        }
    }
    packet.set_be16(port_at, steer.port as u16)?;
    if has_checksum {
        let mut ports = Difference(0);
        ports.replace16(old_port, steer.port as u16);
        packet.change_checksum(checksum_at, sum, ports, !is_tcp)?;
    }
    Some(())
}

/// What words that were replaced change of a checksum: their one's-complement sum, RFC 1624.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference(pub(crate) u32);

impl Difference {
    #[inline(always)]
    pub const fn replace16(&mut self, old: u16, new: u16) {
        self.0 += (!old) as u32 + new as u32;
    }

    #[inline(always)]
    pub const fn replace32(&mut self, old: u32, new: u32) {
        self.replace16((old >> 16) as u16, (new >> 16) as u16);
        self.replace16(old as u16, new as u16);
    }

    /// Words that were not there before.
    #[inline(always)]
    pub const fn add32(&mut self, word: u32) {
        self.0 += (word >> 16) + (word & 0xffff);
    }

    /// The same for an address of either family.
    #[inline(always)]
    pub(crate) const fn add_address(&mut self, address: Address) {
        if !is_v4(address) {
            self.add32((address[0] >> 32) as u32);
            self.add32(address[0] as u32);
            self.add32((address[1] >> 32) as u32);
        }
        self.add32(address[1] as u32);
    }

    /// Both.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Sixteen bits with the same meaning.
    #[inline(always)]
    pub const fn folded(self) -> u16 {
        let sum = (self.0 & 0xffff) + (self.0 >> 16);
        ((sum & 0xffff) + (sum >> 16)) as u16
    }

    /// The checksum afterwards: equation 3 of RFC 1624.
    #[inline(always)]
    pub const fn apply(self, checksum: u16) -> u16 {
        let sum = (!checksum) as u32 + self.folded() as u32;
        !((sum & 0xffff) + (sum >> 16)) as u16
    }
}
