//! The verdict: what happens to a packet, and the one reason why.

use core::hint::cold_path;

use crate::filter::{self, Limit};
use crate::image::Image;
use crate::layout::{
    AT_HASH_SEED, AT_NEXT_HOPS, AT_SLOTS, AT_TARGETS, FILTER_RULE_IDS_MAX, GROUP_BYTES, GROUP_FIRST_MEMBER,
    GROUP_MEMBERS, GROUP_MEMBERS_MAX, MEMBER_BYTES, NEXT_HOP_BYTES, NEXT_HOP_ID, NEXT_HOP_IDS_MAX, NEXT_HOP_PORT,
    POLICY_IDS_MAX, PORT_IDS_MAX, SLOT_BYTES, Section, TARGET_BYTES, TARGET_FLAGS_ON_ALL_DOWN_DROP, kind,
};
use crate::packet::{Link, Packet, Parsed, Tags, destination_mac, link, parse_route, ports_v4};
use crate::service::{self, FlowKey, FlowWords, HalfOpenWords, Steer, step};
use crate::{hash, icmp, lookup, tunnel};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leaves by a next hop.
    Forward,
    /// Goes on to the kernel's network stack, untouched.
    Pass,
    Drop,
    /// Is answered in the place of a service: the answer leaves by the device that the packet came in by.
    Answer,
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

            /// Numbers of the reasons for which packets are dropped, as bits.
            pub const DROPS: u64 =
                0 $(| if matches!(Self::$variant.verdict(), Verdict::Drop) { 1 << $number } else { 0 })*;

            /// The same of those for which they are answered.
            pub const ANSWERS: u64 =
                0 $(| if matches!(Self::$variant.verdict(), Verdict::Answer) { 1 << $number } else { 0 })*;

            /// The reason with this number.
            pub const fn of(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
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
    /// No port of the device carries the frame's VLAN tags, or it has more than two.
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
    /// Every next hop of the route is down, and the route says `onAllDown: pass`.
    AllDown = 17, Pass, "all-down";
    /// Every next hop of the route is down, and the route says `onAllDown: drop`.
    AllDownDrop = 18, Drop, "all-down-drop";
    /// The frame lies in several buffers, and the egress driver sends only such as lie in one.
    Scattered = 19, Pass, "scattered";
    /// The frame's buffer has no room for the VLAN tags of the egress port.
    NoRoom = 20, Pass, "no-room";
    /// The first filter rule that matches says `action: deny`.
    FilterDeny = 21, Drop, "filter-deny";
    /// No filter rule matches, and a filter policy says `default: deny`.
    FilterDefaultDeny = 22, Drop, "filter-default-deny";
    /// The first filter rule that matches has a rate limit, and its bucket is empty.
    FilterRateLimited = 23, Drop, "filter-rate-limited";
    /// No backend of the service takes new flows, and the service says `onNoBackend: pass`.
    NoBackend = 24, Pass, "no-backend";
    /// No backend of the service takes new flows, and the service says `onNoBackend: drop`.
    NoBackendDrop = 25, Drop, "no-backend-drop";
    /// A fragment to a service: only the first one shows ports, and a backend that gets that alone can do nothing with it.
    ServiceFragment = 26, Pass, "service-fragment";
    /// More new flows than the flow table takes: the answer to an untold flow could not be translated back.
    NewFlowRate = 27, Drop, "new-flow-rate";
    /// Another flow of the same client uses this port at the same backend: answers could not be told apart.
    FlowCollision = 28, Drop, "flow-collision";
    /// A ping of a vip, which a service of it answers.
    EchoAnswered = 29, Answer, "echo-answered";
    /// No backend of the service takes new flows, and the service says `onNoBackend: reject`.
    NoBackendReject = 30, Answer, "no-backend-reject";
    /// The same, but more of them than are answered.
    AnswerRate = 31, Drop, "answer-rate";
    /// The answer could not be made: the frame has no room for it, its headers do not lie in one piece, or it is an error itself.
    NoAnswer = 32, Drop, "no-answer";
    /// With the outer header of its backend's tunnel it would be larger than the egress MTU: its sender is told.
    TunnelMtu = 33, Answer, "tunnel-mtu";
    /// The outer header was taken off, and the kernel gets what was in it.
    Decapsulated = 34, Pass, "decapsulated";
    /// A packet in a packet to an address that decapsulates, whose outer source, inner destination or families are not allowed, or whose
    /// congestion mark the inner packet cannot carry on (RFC 6040).
    DecapsulationRefused = 35, Drop, "decapsulation-refused";
    /// A packet in a packet to such an address that is none: cut off, a fragment, or with a header that contradicts itself.
    DecapsulationMalformed = 36, Drop, "decapsulation-malformed";
}

/// Room for reasons in the counter array.
pub const REASONS_MAX: u32 = 64;

/// Draws from a group's slots before its members are tried in order: with half of the weight down, fewer than one flow in
/// 10^9 gets that far.
const REDRAWS_MAX: u32 = 32;
/// Keeps the chain of draws off the mix's fixed point 0: 2^32 divided by the golden ratio.
const REDRAW_STEP: u64 = 0x9e37_79b9 << 32;

/// How frames reach a next hop; a MAC is the low 48 bits with its first byte lowest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Neighbour {
    pub destination: u64,
    pub source: u64,
    /// Largest IP packet that the egress device takes; 0: no limit known.
    pub mtu: u16,
    /// What frames to it are tagged with.
    pub tags: Tags,
    /// The egress driver sends only frames that lie in one buffer.
    pub one_buffer: bool,
}

/// What the node knows of a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Nothing yet: the kernel's own tables are asked.
    Unknown,
    /// Nobody answers there, or the link is down: other members of a group take its packets.
    Down,
    Up(Neighbour),
}

/// A next hop's entry in the kernel's neighbour array. Each word is written and read whole, so no packet sees half a MAC.
pub type ReachWords = [u64; 4];

impl Reach {
    /// Set in the first word when the entry may be used.
    const UP: u64 = 1 << 48;
    const DOWN: u64 = 1 << 49;
    const ONE_BUFFER: u64 = 1 << 50;
    const MAC: u64 = (1 << 48) - 1;

    pub const fn encode(&self) -> ReachWords {
        match self {
            Self::Unknown => [0; 4],
            Self::Down => [Self::DOWN, 0, 0, 0],
            Self::Up(n) => [
                n.destination & Self::MAC | Self::UP | if n.one_buffer { Self::ONE_BUFFER } else { 0 },
                n.source & Self::MAC | (n.mtu as u64) << 48,
                (n.tags.inner as u64) << 32 | n.tags.outer as u64,
                0,
            ],
        }
    }

    #[inline(always)]
    pub const fn decode(words: ReachWords) -> Self {
        if !Self::is_up(words) {
            return if Self::is_down(words) { Self::Down } else { Self::Unknown };
        }
        Self::Up(Neighbour {
            destination: words[0] & Self::MAC,
            source: words[1] & Self::MAC,
            mtu: (words[1] >> 48) as u16,
            tags: Tags { outer: words[2] as u32, inner: (words[2] >> 32) as u32 },
            one_buffer: words[0] & Self::ONE_BUFFER != 0,
        })
    }

    /// Whether an entry says [`Reach::Up`].
    #[inline(always)]
    pub const fn is_up(words: ReachWords) -> bool {
        words[0] & (Self::UP | Self::DOWN) == Self::UP
    }

    /// Whether an entry says [`Reach::Down`].
    #[inline(always)]
    pub const fn is_down(words: ReachWords) -> bool {
        words[0] & Self::DOWN != 0
    }

    /// The neighbour, when there is one to send to.
    pub const fn up(self) -> Option<Neighbour> {
        match self {
            Self::Up(neighbour) => Some(neighbour),
            Self::Unknown | Self::Down => None,
        }
    }
}

/// Where a frame came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ingress {
    /// MAC of the port's device.
    pub mac: u64,
    /// Id of the port; 0 when the image does not name it.
    pub port: u32,
}

impl Ingress {
    const VALID: u64 = 1 << 63;
    const MAC: u64 = (1 << 48) - 1;
    const PORT: u64 = 0x7fff;

    /// One word, as the kernel's tables of ingress ports hold it.
    pub const fn encode(&self) -> u64 {
        self.mac & Self::MAC | (self.port as u64 & Self::PORT) << 48 | Self::VALID
    }

    /// `None` when no port is there.
    #[inline(always)]
    pub const fn decode(word: u64) -> Option<Self> {
        if word & Self::VALID == 0 {
            return None;
        }
        Some(Self { mac: word & Self::MAC, port: (word >> 48 & Self::PORT) as u32 })
    }
}

/// What the verdict asks of the node beside the image.
pub trait Node {
    /// The port that takes frames with these tags from the device that the packet came in by.
    fn ingress(&self, tags: Tags) -> Option<Ingress>;
    /// What is known of the next hop with this id, as [`Reach::encode`] writes it.
    fn reach(&self, id: u32) -> ReachWords;
    /// Asks the kernel's own tables for a next hop that is not known: `at` is its entry in the image, `port` its port.
    fn ask<I: Image + ?Sized>(&self, image: &I, at: u32, port: u32) -> Option<Neighbour>;
    /// Whether the node takes frames to this MAC address at `ingress`.
    #[inline(always)]
    fn takes(&self, ingress: &Ingress, mac: Option<u64>) -> bool {
        mac == Some(ingress.mac)
    }
    /// Whether the bucket of a filter rule's limit has room for the packet, which it then takes. Who keeps no buckets says
    /// that they are full.
    #[inline(always)]
    fn admits(&self, _limit: &Limit) -> bool {
        true
    }
    /// Counts a packet that a filter rule matched: the rule's id, and whether its limit drops the packet.
    #[inline(always)]
    fn count_rule(&self, _id: u32, _limited: bool) {}
    /// The flow table's entry; all zeros: it has none.
    #[inline(always)]
    fn flow(&self, _key: &FlowKey) -> FlowWords {
        [0; 4]
    }
    /// Writes an entry of the flow table.
    #[inline(always)]
    fn keep(&self, _key: &FlowKey, _entry: &FlowWords) {}
    /// Removes an entry of the flow table.
    #[inline(always)]
    fn forget(&self, _key: &FlowKey) {}
    /// The entry of the table of half-open flows; all zeros: it has none.
    #[inline(always)]
    fn half_open(&self, _key: &FlowKey) -> HalfOpenWords {
        [0; 5]
    }
    /// Writes an entry of the table of half-open flows.
    #[inline(always)]
    fn keep_half_open(&self, _key: &FlowKey, _entry: &HalfOpenWords) {}
    /// Whether the backend with this id gets no packets: its health checks fail.
    #[inline(always)]
    fn is_down(&self, _backend: u32) -> bool {
        false
    }
    /// Whether the backend with this id passes on a new flow that the number `drawn` has led to it, because it is down or slow
    /// ([`service::passes_on`]).
    #[inline(always)]
    fn passes_on(&self, backend: u32, _drawn: u32) -> bool {
        self.is_down(backend)
    }
    /// Whether the flow table has room for one more new flow now.
    #[inline(always)]
    fn admits_flow(&self) -> bool {
        true
    }
    /// Seconds of the clock that the flow table goes by.
    #[inline(always)]
    fn now_s(&self) -> u32 {
        0
    }
    /// Id of the backend that the generation before would have chosen, as long as that is honoured; 0: none
    /// ([`service::choice_of`]).
    #[inline(always)]
    fn previous_choice(&self, _steer: &Steer) -> u32 {
        0
    }
}

/// What a packet met, in one word: the reason, the port that it came in by, target, policy and next hop.
///
/// One word, since every check of the packet path can be its last: what it would have to say in several registers, each
/// check would have to load first, also for the packets that pass it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Met(u64);

const _: () = assert!(PORT_IDS_MAX <= 1 << 8 && POLICY_IDS_MAX <= 1 << 16 && NEXT_HOP_IDS_MAX <= 1 << 16);
const _: () = assert!(FILTER_RULE_IDS_MAX <= 1 << 16);

impl Met {
    const IN_PORT: u32 = 8;
    const TARGET: u32 = 16;
    const POLICY: u32 = 32;
    const NEXT_HOP: u32 = 48;
    const REASON_MASK: u64 = 0xff;

    /// Nothing but a reason.
    #[inline(always)]
    pub const fn only(reason: Reason) -> Self {
        Self(reason as u64)
    }

    /// The same with this reason.
    #[inline(always)]
    #[must_use]
    pub const fn because(self, reason: Reason) -> Self {
        Self(self.0 & !Self::REASON_MASK | reason as u64)
    }

    /// The same with the reason of this number.
    #[inline(always)]
    #[must_use]
    pub const fn because_of(self, reason: u8) -> Self {
        Self(self.0 & !Self::REASON_MASK | reason as u64)
    }

    #[inline(always)]
    const fn and(self, value: u64, at: u32) -> Self {
        Self(self.0 | value << at)
    }

    /// A packet that a filter stops: the port that it came in by, and ids of the policy and of the rule; 0: the default.
    #[inline(always)]
    pub(crate) const fn filtered(reason: Reason, in_port: u32, policy: u32, rule: u32) -> Self {
        Self::only(reason)
            .and(in_port as u8 as u64, Self::IN_PORT)
            .and(policy as u16 as u64, Self::POLICY)
            .and(rule as u16 as u64, Self::NEXT_HOP)
    }

    /// Whether a filter stopped the packet.
    #[inline(always)]
    pub const fn is_filtered(self) -> bool {
        matches!(
            Reason::of(self.reason()),
            Some(Reason::FilterDeny | Reason::FilterDefaultDeny | Reason::FilterRateLimited)
        )
    }

    /// Id of the filter rule that stopped the packet; 0: none.
    #[inline(always)]
    pub const fn rule(self) -> u32 {
        if self.is_filtered() { (self.0 >> Self::NEXT_HOP) as u32 } else { 0 }
    }

    pub const fn word(self) -> u64 {
        self.0
    }

    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// Number of the reason.
    #[inline(always)]
    pub const fn reason(self) -> u8 {
        self.0 as u8
    }

    #[inline(always)]
    pub const fn is_forwarded(self) -> bool {
        self.reason() == Reason::Forwarded as u8
    }

    /// Id of the port that the packet came in by; 0: none that the image names, or the packet was not read that far.
    #[inline(always)]
    pub const fn in_port(self) -> u32 {
        (self.0 >> Self::IN_PORT) as u8 as u32
    }

    /// The target that the longest matching prefix names; 0: none.
    #[inline(always)]
    pub const fn target(self) -> u16 {
        (self.0 >> Self::TARGET) as u16
    }

    /// Id of the policy that the target belongs to; 0: none.
    #[inline(always)]
    pub const fn policy(self) -> u32 {
        (self.0 >> Self::POLICY) as u16 as u32
    }

    /// Id of the next hop that was chosen; 0: none. Of a packet that a filter stopped, [`Met::rule`].
    #[inline(always)]
    pub const fn next_hop(self) -> u32 {
        (self.0 >> Self::NEXT_HOP) as u32
    }
}

/// The verdict on one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub met: Met,
    /// 4 or 6; 0 when the packet was not read that far.
    pub family: u8,
    /// The chosen next hop (index into the image's table), where one was chosen.
    pub next_hop: Option<u32>,
    /// Id of the next hop's port.
    pub port: u32,
    /// All zeros where [`Decision::neighbour`] knows none: no option, since what is undefined in `None` the compiler may
    /// keep in a register that nothing has written, which the verifier refuses.
    sent_to: Neighbour,
}

impl Decision {
    #[inline(always)]
    const fn early(reason: Reason) -> Self {
        let sent_to =
            Neighbour { destination: 0, source: 0, mtu: 0, tags: Tags { outer: 0, inner: 0 }, one_buffer: false };
        Self { met: Met::only(reason), family: 0, next_hop: None, port: 0, sent_to }
    }

    /// Where the packet is sent, or would be if it could leave by that device.
    #[inline(always)]
    pub fn neighbour(&self) -> Option<Neighbour> {
        let reached =
            [Reason::Forwarded, Reason::OverMtu, Reason::TunnelMtu, Reason::Scattered].map(|reason| reason as u8);
        reached.contains(&self.met.reason()).then_some(self.sent_to)
    }

    /// The neighbour of a packet that is forwarded.
    #[inline(always)]
    pub const fn sent_to(&self) -> &Neighbour {
        &self.sent_to
    }

    pub fn reason(&self) -> Reason {
        Reason::ALL.get(usize::from(self.met.reason())).copied().unwrap_or(Reason::BadImage)
    }
}

/// Decides on a frame. Reads only: the caller rewrites with [`crate::packet::forward`] and sends.
#[inline(always)]
pub fn decide<I: Image + ?Sized, P: Packet + ?Sized, N: Node>(image: &I, packet: &P, node: &N) -> Decision {
    if let Some(stopped) = filtered(image, packet, node) {
        return stopped;
    }
    match link(packet) {
        Ok(link) if service::has_services(image) => {
            let mut steer = Steer::NONE;
            decide_steered(image, packet, &link, node, &mut steer)
        }
        Ok(link) if link.is_plain_v4() => decide_plain_v4(image, packet, node),
        Ok(link) => decide_linked(image, packet, &link, node),
        Err(reason) => Decision::early(reason),
    }
}

/// The decision on a frame that a filter stops.
#[inline(always)]
fn filtered<I: Image + ?Sized, P: Packet + ?Sized, N: Node>(image: &I, packet: &P, node: &N) -> Option<Decision> {
    if !filter::has_filters(image) {
        return None;
    }
    let met = filter::judge(image, packet, node);
    (met != 0).then(|| Decision { met: Met::from_word(met), ..Decision::early(Reason::FilterDeny) })
}

/// [`decide`] that leaves what the service stage found.
pub fn decide_with<I: Image + ?Sized, P: Packet + ?Sized, N: Node>(
    image: &I,
    packet: &P,
    node: &N,
    steer: &mut Steer,
) -> Decision {
    *steer = Steer::NONE;
    match link(packet) {
        Ok(link) if service::has_services(image) => match filtered(image, packet, node) {
            Some(stopped) => stopped,
            None => decide_steered(image, packet, &link, node, steer),
        },
        _ => decide(image, packet, node),
    }
}

/// [`decide`] in an image that has services.
fn decide_steered<I: Image + ?Sized, P: Packet + ?Sized, N: Node>(
    image: &I,
    packet: &P,
    link: &Link,
    node: &N,
    steer: &mut Steer,
) -> Decision {
    let mut at = serve_read(packet, link, node, steer);
    if at == step::OUTER {
        at = tunnel::judge(image, &packet.after(link.tag_bytes), steer);
    }
    if at == step::ICMP {
        at = icmp::read(&packet.after(link.tag_bytes), steer);
    }
    if at == step::ECHO {
        at = icmp::echo(image, steer);
    }
    if at == step::TO_SERVICE {
        at = service::stage(image, node, steer);
    }
    at = tunnel::step(at, steer.tunnel);
    parse_served(packet, Ok(*link), node, at, steer);
    let decision = decide_served(image, node, steer);
    tunnel::note(at, decision.sent_to(), steer);
    decision
}

/// What the service stage reads of a packet, as [`service::read`] says it.
#[inline(always)]
pub fn serve_read<P: Packet + ?Sized, N: Node>(packet: &P, link: &Link, node: &N, steer: &mut Steer) -> u32 {
    let Some(ingress) = node.ingress(link.tags) else { return step::UNSERVED };
    if !node.takes(&ingress, destination_mac(packet)) {
        return step::UNSERVED;
    }
    service::read(&packet.after(link.tag_bytes), link.ethertype, steer)
}

/// What [`decide_served`] reads of a frame that the service stage has left at one of [`step`], in the `Steer`: so the verifier follows the
/// route stage of such packets once for all families of packets and of tunnels.
#[inline(always)]
pub fn parse_served<P: Packet + ?Sized, N: Node>(
    packet: &P,
    link: Result<Link, Reason>,
    node: &N,
    at: u32,
    steer: &mut Steer,
) {
    steer.met = parse_served_in(packet, link, node, at, steer).unwrap_or_else(Met::only).word();
}

#[inline(always)]
fn parse_served_in<P: Packet + ?Sized, N: Node>(
    packet: &P,
    link: Result<Link, Reason>,
    node: &N,
    at: u32,
    steer: &mut Steer,
) -> Result<Met, Reason> {
    let link = link?;
    let headers = packet.after(link.tag_bytes);
    let ingress = node.ingress(link.tags).ok_or(Reason::Vlan)?;
    let mut parsed = parse_route(&headers, link.ethertype)?;
    if !node.takes(&ingress, destination_mac(packet)) {
        return Err(Reason::LinkNotOurs);
    }
    let met = Met::only(Reason::Forwarded).and(u64::from(ingress.port as u8), Met::IN_PORT);
    steer.family = parsed.family.into();
    match at {
        step::UNSERVED => steer.route = parsed.flow.dst,
        step::STEERED => {}
        step::TUNNEL_V4 => steer.family = 4,
        step::TUNNEL_V6 => steer.family = 6,
        stays => return Ok(met.because_of(step::reason(stays))),
    }
    steer.largest_segment = headers.largest_segment(&parsed) + tunnel::overhead(at);
    steer.too_large = if tunnel::overhead(at) == 0 { Reason::OverMtu as u32 } else { Reason::TunnelMtu as u32 };
    steer.is_scattered = packet.is_scattered().into();
    if parsed.family == 4 {
        parsed.flow.ports = ports_v4(&headers).unwrap_or(0);
    }
    steer.ttl = parsed.ttl.into();
    steer.flow = [
        parsed.flow.src[0],
        parsed.flow.src[1],
        parsed.flow.dst[0],
        parsed.flow.dst[1],
        u64::from(parsed.flow.protocol) << 32 | u64::from(parsed.flow.ports),
    ];
    Ok(met)
}

/// [`decide`] for a frame that [`parse_served`] has read.
#[inline(always)]
pub fn decide_served<I: Image + ?Sized, N: Node>(image: &I, node: &N, steer: &Steer) -> Decision {
    let met = Met::from_word(steer.met);
    if !met.is_forwarded() {
        return Decision { met, ..Decision::early(Reason::BadImage) };
    }
    let family = steer.family as u8;
    let mut decision = Decision { family, met: met.because(Reason::BadImage), ..Decision::early(Reason::BadImage) };
    let size = Size {
        largest_segment: steer.largest_segment,
        too_large: steer.too_large as u8,
        is_scattered: steer.is_scattered != 0,
    };
    let [src_high, src_low, dst_high, dst_low, rest] = steer.flow;
    let (src, dst) = ([src_high, src_low], [dst_high, dst_low]);
    let flow = hash::Flow { src, dst, protocol: (rest >> 32) as u8, ports: rest as u32 };
    route(image, &Ported(flow), &size, steer.ttl as u8, (family, steer.route), node, &mut decision);
    decision
}

/// [`decide`] for a frame whose link layer is [`Link::PLAIN_V4`]: most frames are such, and all offsets are constants.
#[inline(always)]
pub fn decide_plain_v4<I: Image + ?Sized, P: Packet + ?Sized, N: Node>(image: &I, packet: &P, node: &N) -> Decision {
    under(image, packet, packet, &Link::PLAIN_V4, node)
}

/// [`decide`] for a frame whose link layer has been read.
#[inline(always)]
pub fn decide_linked<I: Image + ?Sized, P: Packet + ?Sized, N: Node>(
    image: &I,
    packet: &P,
    link: &Link,
    node: &N,
) -> Decision {
    under(image, packet, &packet.after(link.tag_bytes), link, node)
}

/// Decides on what lies under the link layer.
#[inline(always)]
fn under<I: Image + ?Sized, P: Packet + ?Sized, N: Node>(
    image: &I,
    packet: &P,
    headers: &(impl Packet + ?Sized),
    link: &Link,
    node: &N,
) -> Decision {
    let Some(ingress) = node.ingress(link.tags) else { return Decision::early(Reason::Vlan) };
    let parsed = match parse_route(headers, link.ethertype) {
        Ok(parsed) => parsed,
        Err(reason) => return Decision::early(reason),
    };
    if !node.takes(&ingress, destination_mac(packet)) {
        return Decision::early(Reason::LinkNotOurs);
    }
    let mut decision = Decision { family: parsed.family, ..Decision::early(Reason::BadImage) };
    decision.met = decision.met.and(u64::from(ingress.port as u8), Met::IN_PORT);
    // Read here, so that no pointer into the frame has to live through the lookup.
    let size = Size {
        largest_segment: headers.largest_segment(&parsed),
        too_large: Reason::OverMtu as u8,
        is_scattered: packet.is_scattered(),
    };
    let (ttl, dst) = (parsed.ttl, (parsed.family, parsed.flow.dst));
    route(image, &Portless { packet, parsed: &parsed }, &size, ttl, dst, node, &mut decision);
    decision
}

/// What limits how a packet can be sent.
struct Size {
    /// With the outer header that it gets.
    largest_segment: u32,
    /// Number of the reason of a packet for which that is too large.
    too_large: u8,
    is_scattered: bool,
}

/// The route stage: longest prefix, group member, neighbour, and what forbids forwarding.
#[inline(always)]
fn route<I: Image + ?Sized, N: Node>(
    image: &I,
    flow: &impl AsFlow,
    size: &Size,
    ttl: u8,
    (family, dst): (u8, [u64; 2]),
    node: &N,
    decision: &mut Decision,
) {
    let target = if family == 4 { lookup::v4(image, (dst[0] >> 32) as u32) } else { lookup::v6(image, dst[0], dst[1]) };
    let Some(target) = target else { return };
    decision.met = decision.met.and(target.into(), Met::TARGET);
    let Some(hop) = choose(image, flow, target, node, decision) else { return };
    decision.next_hop = Some(hop.index);
    decision.met = decision.met.and(u64::from(hop.id as u16), Met::NEXT_HOP);
    decision.port = hop.port;
    if ttl <= 1 {
        decision.met = decision.met.because(Reason::TtlExpired);
        return;
    }
    let neighbour = match Reach::decode(hop.reach) {
        Reach::Up(neighbour) => neighbour,
        Reach::Unknown | Reach::Down => {
            cold_path();
            // Computed anew: an offset that lived on from where the entry was read would be kept on the stack, and the
            // verifier of 6.1 does not learn of a kept value what was checked of it.
            let Some(next_hops) = image.head(AT_NEXT_HOPS) else { return };
            let at = next_hops.wrapping_add(hop.index.wrapping_mul(NEXT_HOP_BYTES));
            let Some(neighbour) = node.ask(image, at, hop.port) else {
                decision.met = decision.met.because(Reason::NoNeighbour);
                return;
            };
            neighbour
        }
    };
    decision.sent_to = neighbour;
    if size.largest_segment > u32::from(neighbour.mtu) && neighbour.mtu != 0 {
        cold_path();
        decision.met = decision.met.because_of(size.too_large);
        return;
    }
    if neighbour.one_buffer && size.is_scattered {
        cold_path();
        decision.met = decision.met.because(Reason::Scattered);
        return;
    }
    decision.met = decision.met.because(Reason::Forwarded);
}

/// A next hop of the image.
struct Hop {
    index: u32,
    id: u32,
    port: u32,
    /// What the node knows of it: plain words, since the verifier follows those.
    reach: ReachWords,
}

impl Hop {
    /// Reads an entry of the next-hop table.
    #[inline(always)]
    fn read<I: Image + ?Sized, N: Node>(image: &I, next_hops: u32, index: u32, node: &N) -> Option<Self> {
        let at = next_hops.wrapping_add(index.wrapping_mul(NEXT_HOP_BYTES));
        let id = image.u32(at.wrapping_add(NEXT_HOP_ID))?;
        let port = u32::from(image.u16(at.wrapping_add(NEXT_HOP_PORT))?);
        Some(Self { index, id, port, reach: node.reach(id) })
    }
}

/// Follows a target to a next hop that is not down, or sets the reason why there is none.
#[inline(always)]
fn choose<I: Image + ?Sized, N: Node>(
    image: &I,
    flow: &impl AsFlow,
    target: u16,
    node: &N,
    decision: &mut Decision,
) -> Option<Hop> {
    let at = image.head(AT_TARGETS)?.wrapping_add(u32::from(target).wrapping_mul(TARGET_BYTES));
    let head = image.u64(at)?;
    let tail = image.u64(at.wrapping_add(8))?;
    decision.met = decision.met.and(u64::from((head >> 16) as u16), Met::POLICY);
    // Before the others, of which there may be any number.
    if head as u8 == kind::FORWARD_ONE {
        let index = (head >> 32) as u32;
        let id = tail as u32;
        let hop = Hop { index, id, port: (tail >> 32) as u32, reach: node.reach(id) };
        return unless_down(hop, head, decision);
    }
    let hop = match head as u8 {
        kind::FORWARD_GROUP => {
            let next_hops = image.head(AT_NEXT_HOPS)?;
            let hash = hash::flow(&flow.flow(), image.head(AT_HASH_SEED)?);
            let slots = Slots {
                base: image.head(AT_SLOTS)?,
                first: tail as u32,
                mask: (tail >> 32) as u32,
                group: (head >> 32) as u32,
                next_hops,
            };
            let hop = Hop::read(image, next_hops, slots.member(image, hash)?, node)?;
            if Reach::is_down(hop.reach) {
                match another(image, &slots, hash, node) {
                    Some(index) => Hop::read(image, next_hops, index, node)?,
                    None => hop,
                }
            } else {
                hop
            }
        }
        other => {
            decision.met = decision.met.because(match other {
                kind::NONE => Reason::NoRoute,
                kind::DROP => Reason::RouteDrop,
                kind::PASS => Reason::RoutePass,
                kind::LOCAL => Reason::Local,
                _ => Reason::BadImage,
            });
            return None;
        }
    };
    unless_down(hop, head, decision)
}

/// The next hop, or the reason of a target whose next hops are all down.
#[inline(always)]
fn unless_down(hop: Hop, head: u64, decision: &mut Decision) -> Option<Hop> {
    if !Reach::is_up(hop.reach) && Reach::is_down(hop.reach) {
        cold_path();
        let drop = head & TARGET_FLAGS_ON_ALL_DOWN_DROP != 0;
        decision.met = decision.met.because(if drop { Reason::AllDownDrop } else { Reason::AllDown });
        return None;
    }
    Some(hop)
}

/// What a choice among several next hops goes by.
trait AsFlow {
    fn flow(&self) -> hash::Flow;
}

/// A packet that was read with its ports.
struct Ported(hash::Flow);

impl AsFlow for Ported {
    #[inline(always)]
    fn flow(&self) -> hash::Flow {
        self.0
    }
}

/// A packet that was read without: they are read where there is a choice.
struct Portless<'p, P: ?Sized> {
    packet: &'p P,
    parsed: &'p Parsed,
}

impl<P: Packet + ?Sized> AsFlow for Portless<'_, P> {
    #[inline(always)]
    fn flow(&self) -> hash::Flow {
        hash::Flow { ports: ports(self.packet, self.parsed), ..self.parsed.flow }
    }
}

/// The ports of a packet that was read without them.
#[inline(always)]
fn ports<P: Packet + ?Sized>(packet: &P, parsed: &Parsed) -> u32 {
    if parsed.family != 4 {
        return parsed.flow.ports;
    }
    let frame = packet.again();
    // It was read before: neither can fail.
    let Ok(link) = link(&frame) else { return 0 };
    ports_v4(&frame.after(link.tag_bytes)).unwrap_or(0)
}

/// One group: its slot table, and where its members are.
struct Slots {
    base: u32,
    first: u32,
    mask: u32,
    group: u32,
    next_hops: u32,
}

impl Slots {
    /// The member that a hash falls on: index of a next hop.
    #[inline(always)]
    fn member<I: Image + ?Sized>(&self, image: &I, hash: u32) -> Option<u32> {
        let slot = self.first.wrapping_add(hash & self.mask).wrapping_mul(SLOT_BYTES);
        image.u16(self.base.wrapping_add(slot)).map(u32::from)
    }

    #[inline(always)]
    fn is_up<I: Image + ?Sized, N: Node>(&self, image: &I, index: u32, node: &N) -> Option<bool> {
        let at = self.next_hops.wrapping_add(index.wrapping_mul(NEXT_HOP_BYTES));
        Some(!Reach::is_down(node.reach(image.u32(at.wrapping_add(NEXT_HOP_ID))?)))
    }
}

/// Draws from the slot table again while what was drawn is down. Each draw honours the weights, so the flows of a member
/// that is down divide among the others by their weights; after the last draw the members are tried one by one, so that
/// one that is up is always found. `None`: all are down, or the image is damaged.
///
/// Not inlined: the verifier follows its loops apart from what comes after them.
#[inline(never)]
fn another<I: Image + ?Sized, N: Node>(image: &I, slots: &Slots, hash: u32, node: &N) -> Option<u32> {
    let mut drawn = hash;
    for _ in 0..REDRAWS_MAX {
        drawn = (hash::mix(u64::from(drawn) + REDRAW_STEP) >> 32) as u32;
        let index = slots.member(image, drawn)?;
        if slots.is_up(image, index, node)? {
            return Some(index);
        }
    }
    let row = image.head(Section::Groups.at())?.wrapping_add(slots.group.wrapping_mul(GROUP_BYTES));
    let first = image.u32(row.wrapping_add(GROUP_FIRST_MEMBER))?;
    let count = image.u32(row.wrapping_add(GROUP_MEMBERS))?;
    let members = image.head(Section::Members.at())?.wrapping_add(first.wrapping_mul(MEMBER_BYTES));
    for tried in 0..GROUP_MEMBERS_MAX {
        // Round and round: a small group is seen several times, a group of the largest size once. The remainder instead of
        // a counter that starts again: the verifier would follow every value that it can have.
        let place = drawn.wrapping_add(tried).checked_rem(count)?;
        let index = image.u32(members.wrapping_add(place.wrapping_mul(MEMBER_BYTES)))?;
        if slots.is_up(image, index, node)? {
            return Some(index);
        }
    }
    None
}
