//! Damaged images: nothing panics, every look is bounded, and what [`View`] accepts can be read to its last row.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use fib::Image as _;
use fib::layout::{AT_LAYOUT_VERSION, AT_MAGIC, HEADER_BYTES, LAYOUT_VERSION, MAGIC, Section};
use fib::packet::Tags;
use wayleave::compile::{LiveIds, View};
use wayleave::plan::Plan;
use wayleave::trace::{Fields, Offline, PacketDescription, trace};

use super::world::WORLD;

/// Reads of the image that one packet may cost: a few words of header, two a trie level of six bits, a few for the target.
const READS_MAX: u32 = 64;
/// Rows that are looked at, of tables whose rows lead to rows of other tables.
const ROWS_MAX: usize = 64;

/// An image that counts how often it is read.
struct Counted<'a> {
    bytes: &'a [u8],
    reads: Cell<u32>,
}

macro_rules! counted {
    ($($name:ident: $type:ty),*) => {
        $(fn $name(&self, offset: u32) -> Option<$type> {
            self.reads.set(self.reads.get() + 1);
            self.bytes.$name(offset)
        })*
    };
}

impl fib::Image for Counted<'_> {
    counted!(u8: u8, u16: u16, u32: u32, u64: u64);

    fn words<const COUNT: usize>(&self, offset: u32) -> Option<[u64; COUNT]> {
        self.reads.set(self.reads.get() + 1);
        self.bytes.words(offset)
    }
}

/// Bytes taken from the front of the input, zeros when it has run out.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().map_or((0, &[][..]), |(first, rest)| (*first, rest));
        self.0 = rest;
        first
    }

    fn number(&mut self) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    fn below(&mut self, limit: usize) -> usize {
        self.number() as usize % limit.max(1)
    }
}

/// The first byte chooses between an image made of the bytes that follow, the same with a good identity, and the good
/// image with changes that they describe.
pub fn image(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut image;
    match input.byte() % 4 {
        0 => image = input.0.to_vec(),
        1 => {
            image = input.0.to_vec();
            put(&mut image, AT_MAGIC as usize, &MAGIC.to_le_bytes());
            put(&mut image, AT_LAYOUT_VERSION as usize, &LAYOUT_VERSION.to_le_bytes());
        }
        _ => {
            image = WORLD.view.bytes().to_vec();
            while !input.0.is_empty() {
                change(&mut image, &mut input);
            }
        }
    }
    packet_path(&image);
    if let Ok(view) = View::new(&image) {
        read_everything(&view);
    }
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = image.get_mut(at..at.saturating_add(bytes.len())) {
        place.copy_from_slice(bytes);
    }
}

fn change(image: &mut Vec<u8>, input: &mut Input) {
    let kind = input.byte() % 8;
    let word = |image: &[u8], at: usize| image.u32(u32::try_from(at).unwrap_or(u32::MAX)).unwrap_or(0);
    match kind {
        // A bit, a byte, a word: anywhere, or in the header, where everything else hangs.
        0 => {
            let at = input.below(image.len());
            let bit = 1 << (input.byte() % 8);
            if let Some(byte) = image.get_mut(at) {
                *byte ^= bit;
            }
        }
        1 => {
            let at = input.below(image.len());
            let byte = input.byte();
            put(image, at, &[byte]);
        }
        2 | 3 => {
            let limit = if kind == 2 { image.len() } else { HEADER_BYTES as usize };
            let at = input.below(limit) & !3;
            let value = input.number();
            put(image, at, &value.to_le_bytes());
        }
        // A word that is off by a little.
        4 => {
            let at = input.below(image.len()) & !3;
            let value = word(image, at).wrapping_add_signed(i32::from(input.byte().cast_signed()));
            put(image, at, &value.to_le_bytes());
        }
        // A table that begins elsewhere or has other rows.
        5 => {
            let (section, _) = Section::ALL[input.below(Section::ALL.len())];
            let at = section.at() as usize + if input.byte().is_multiple_of(2) { 0 } else { 4 };
            let value = if input.byte().is_multiple_of(2) { input.number() } else { u32::from(input.byte()) };
            put(image, at, &value.to_le_bytes());
        }
        // A row copied over another place.
        6 => {
            let (from, to) = (input.below(image.len()), input.below(image.len()));
            let row: Vec<u8> = image.iter().skip(from).take(16).copied().collect();
            put(image, to, &row);
        }
        _ => {
            let length = input.below(image.len() + 1);
            image.truncate(length);
        }
    }
}

/// Packets to every part of the good tables, and their frames.
static PACKETS: LazyLock<Vec<(IpAddr, PacketDescription, Vec<u8>)>> = LazyLock::new(|| {
    let packet = |dst: IpAddr| (dst, description(dst), description(dst).frame(Tags::default()));
    addresses().into_iter().map(packet).collect()
});

fn addresses() -> Vec<IpAddr> {
    let v4 = [[10, 1, 2, 3], [10, 20, 1, 1], [10, 20, 30, 129], [192, 0, 2, 254], [255, 255, 255, 254], [1, 0, 0, 0]];
    let v6 = ["2001:db8::1", "2001:db8:20:30:8000::1", "2001:db8:1::9", "2001:db8:ffff::ffff", "4000::", "ffff::1"];
    let v6 = v6.iter().filter_map(|text| text.parse::<Ipv6Addr>().ok());
    v4.into_iter().map(|octets| Ipv4Addr::from(octets).into()).chain(v6.map(IpAddr::from)).collect()
}

fn description(dst: IpAddr) -> PacketDescription {
    let src: IpAddr = if dst.is_ipv4() {
        Ipv4Addr::new(198, 18, 0, 1).into()
    } else {
        Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1).into()
    };
    let fields = Fields { src: Some(src), dst: Some(dst), sport: Some(4000), dport: Some(443), ..Fields::default() };
    PacketDescription::new(&fields).unwrap_or_else(|error| panic!("{error}"))
}

/// What the kernel does with an image: the library's side of it must end, whatever the bytes are.
fn packet_path(bytes: &[u8]) {
    for (_, _, frame) in &*PACKETS {
        let counted = Counted { bytes, reads: Cell::new(0) };
        let decision = fib::decide(&counted, &frame[..], &Offline);
        assert!(counted.reads.get() <= READS_MAX, "{} reads for one packet: {decision:?}", counted.reads.get());
    }
}

/// Every accessor, and what is built on them.
fn read_everything(view: &View<'_>) {
    let mut seen = 0;
    for hop in view.next_hops().take(ROWS_MAX) {
        seen += hop.name.len() + hop.policy.len() + hop.port.len() + hop.file.len();
    }
    seen += view.ports().map(|port| port.name.len()).sum::<usize>();
    seen += view.policies().map(|policy| policy.name.len() + policy.file.len()).sum::<usize>();
    seen += view.locals().count();
    for group in 0..=view.count(Section::Groups).min(64) {
        for member in view.members(group).take(ROWS_MAX) {
            seen += member.next_hop.name.len();
        }
        seen += usize::from(view.has_member(group, 0));
    }
    let routes = view.routes_v4().chain(view.routes_v6());
    for route in routes.take(ROWS_MAX) {
        seen += route.file.len() + route.policy.len();
        assert!(view.find(route.prefix.address()).is_some(), "the route {:?} is not found", route.prefix);
    }
    for target in [0, 1, 2, 255, u16::MAX] {
        seen += usize::from(view.target(target).is_some());
    }
    std::hint::black_box((
        seen,
        view.digest(),
        view.revision(),
        view.generation(),
        view.parent(),
        view.created_unix_ms(),
    ));
    std::hint::black_box(view.verify_digest().is_ok());
    for (address, packet, _) in &*PACKETS {
        std::hint::black_box(view.lookup(*address));
        if let Ok(trace) = trace(view, *packet, &Offline) {
            std::hint::black_box((trace.to_string(), trace.route(), trace.next_hop()));
        }
    }
    let small = Section::ALL.iter().all(|(section, _)| view.count(*section) < 4096);
    if small {
        let good = &WORLD.view;
        let there = Plan::between(Some(view), good);
        let back = Plan::between(Some(good), view);
        std::hint::black_box((there.to_string(), back.to_string()));
        std::hint::black_box(LiveIds::from_views([view, good]));
    }
}
