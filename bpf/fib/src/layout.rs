//! The image: every offset, size and number that the compiler writes and the packet path reads.
//!
//! One generation is one flat image. All integers are little-endian, all offsets are bytes from the start of the image.
//!
//! ```text
//!   0 ..  256   identity: magic, layout version, generation, revision, digest (not covered by the digest)
//! 256 ..  320   the packet path's own cache line: where the tables are
//! 320 ..  704   section table: (offset, count) of every table
//! 704 ..        tables, each 64-byte aligned
//! ```
//!
//! Any change here changes [`LAYOUT_VERSION`].

/// `WAYLEAVE` as little-endian bytes.
pub const MAGIC: u64 = u64::from_le_bytes(*b"WAYLEAVE");
/// Changes with any change of this module's meaning.
pub const LAYOUT_VERSION: u32 = 7;

/// Smallest capacity class: 1 MiB.
pub const CAPACITY_MIN: u32 = 1 << 20;
/// Largest capacity class: the verifier refuses variable offsets of 2^29 and above (`BPF_MAX_VAR_OFF`).
pub const CAPACITY_MAX: u32 = 1 << 29;

// Identity.
pub const AT_MAGIC: u32 = 0;
pub const AT_LAYOUT_VERSION: u32 = 8;
pub const AT_IMAGE_BYTES: u32 = 12;
pub const AT_GENERATION: u32 = 16;
pub const AT_PARENT: u32 = 24;
pub const AT_CREATED_UNIX_MS: u32 = 32;
pub const AT_REVISION_BYTES: u32 = 40;
pub const AT_REVISION: u32 = 48;
/// Longest revision text.
pub const REVISION_BYTES_MAX: u32 = 128;
pub const AT_DIGEST: u32 = 192;
pub const DIGEST_BYTES: u32 = 32;

/// First byte that the digest covers: the rules. Two images with equal bytes from here on carry equal rules.
pub const RULES_START: u32 = 256;

// The packet path's cache line.
pub const AT_V4_FIB: u32 = 256;
pub const AT_V6_FIB: u32 = 272;
pub const AT_TARGETS: u32 = 288;
pub const AT_SLOTS: u32 = 292;
pub const AT_NEXT_HOPS: u32 = 296;
pub const AT_HASH_SEED: u32 = 300;
/// Where the head of the filters is; 0: the image has none, and the packet path asks no further.
pub const AT_FILTER: u32 = 304;
/// Where the table of service addresses is; 0: the image has no services and decapsulates nothing, and the packet path asks no further.
pub const AT_SERVICES: u32 = 308;

// Fields of the IPv4 FIB header. Where nodes and leaves are, the section table says: few lookups need them.
pub const V4_DIRECT: u32 = 0;
pub const V4_BLOCKS: u32 = 4;
pub const V4_PALETTES: u32 = 8;
/// Bits of the address that index the direct table: 6, 12 or 18.
pub const V4_DIRECT_BITS: u32 = 12;

/// Direct entry that is a trie node: its index is in the other bits.
pub const DIRECT_NODE: u32 = 1 << 31;
/// Otherwise the entry is a block in its low bits and the block's palette above them.
pub const DIRECT_BLOCK_BITS: u32 = 18;
/// Palettes that a direct entry can name.
pub const PALETTES_MAX: u32 = 1 << (31 - DIRECT_BLOCK_BITS);
/// Block: for each value of the [`STRIDE_BITS`] bits that follow the direct ones, a colour of the palette.
pub const BLOCK_BYTES: u32 = 1 << STRIDE_BITS;
/// Palette: the targets that the bytes of its blocks mean, u16 each.
pub const PALETTE_BYTES: u32 = 512;

// Fields of the IPv6 FIB header.
pub const V6_ROOT: u32 = 0;
pub const V6_BUCKETS: u32 = 4;
/// Bits of the address that index the root table: 6, 12 or 16.
pub const V6_ROOT_BITS: u32 = 8;

/// Radix tables that every address goes through below the root.
pub const RADIX_STEPS: usize = 3;
/// Entry of the root and of all steps but the last: in the low bits the bits of the address that index the next table,
/// above them where that table starts, in entries from the start of the root.
///
/// Entry of the last step: in the low bits those of the address that lead to the bucket, above them the bucket.
pub const RADIX_TAG_BITS: u32 = 6;
/// Set in an entry of the last step that is a trie node: its index is in the other bits.
pub const RADIX_NODE: u32 = 1 << 31;
/// Entries that can be told apart, from the root on.
pub const RADIX_ENTRIES_MAX: u32 = 1 << (32 - RADIX_TAG_BITS);

/// Bucket: 12 keys in lanes of four u64, then 13 targets, u16 each, and three that are zero.
///
/// A key is the [`BUCKET_KEY_BITS`] bits of an address that follow those that led to the bucket. A lane holds the key
/// that the next target starts with, less one, and its highest bit is set, so that a subtraction shows the larger.
pub const BUCKET_BYTES: u32 = 64;
pub const BUCKET_WORDS: usize = 4;
pub const BUCKET_LANES: usize = 3;
pub const BUCKET_LANE_BITS: u32 = 21;
pub const BUCKET_KEY_BITS: u32 = BUCKET_LANE_BITS - 1;
pub const BUCKET_KEYS: usize = BUCKET_WORDS * BUCKET_LANES;
pub const BUCKET_TARGETS: u32 = 32;

/// Address bits that one trie node resolves.
pub const STRIDE_BITS: u32 = 6;
/// Smallest direct table.
pub const DIRECT_BITS_MIN: u32 = 6;
/// Largest direct table: 1 MiB of entries.
pub const DIRECT_BITS_MAX: u32 = DIRECT_BLOCK_BITS;
/// Trie node: child bitmap u64, leaf bitmap u64, first leaf u32, first child u32.
pub const NODE_BYTES: u32 = 24;
/// A leaf is a target index.
pub const LEAF_BYTES: u32 = 2;

/// Target: kind u8, flags u8, policy id u16, u32, then two u32. For `ForwardOne` these are the next hop's index, its id
/// and its port; for `ForwardGroup` the group's index, its first slot and its slot mask.
pub const TARGET_BYTES: u32 = 16;
/// In the head word: packets are dropped while every next hop is down; otherwise they pass to the kernel.
pub const TARGET_FLAGS_ON_ALL_DOWN_DROP: u64 = 1 << 8;
/// Most targets, since a leaf is a u16.
pub const TARGETS_MAX: u32 = 1 << 16;
/// Group slot: next-hop index u16.
pub const SLOT_BYTES: u32 = 2;

/// Target kinds.
pub mod kind {
    /// No rule: target 0 is always this one.
    pub const NONE: u8 = 0;
    pub const FORWARD_ONE: u8 = 1;
    pub const FORWARD_GROUP: u8 = 2;
    pub const DROP: u8 = 3;
    pub const PASS: u8 = 4;
    /// An address of the node itself: always the kernel's.
    pub const LOCAL: u8 = 5;
}

/// Next hop: id u32, port u16, family u8 (4 or 6), zero u8, via 16 bytes (IPv4 in the first four), name u32 (string),
/// policy u32, file u32, line u32.
pub const NEXT_HOP_BYTES: u32 = 40;
pub const NEXT_HOP_ID: u32 = 0;
pub const NEXT_HOP_PORT: u32 = 4;
pub const NEXT_HOP_FAMILY: u32 = 6;
pub const NEXT_HOP_VIA: u32 = 8;
pub const NEXT_HOP_NAME: u32 = 24;
pub const NEXT_HOP_POLICY: u32 = 28;
pub const NEXT_HOP_FILE: u32 = 32;
pub const NEXT_HOP_LINE: u32 = 36;
/// Next-hop ids index the kernel's neighbour array: id 0 is never given out.
pub const NEXT_HOP_IDS_MAX: u32 = 1 << 16;

/// Policy ids index the kernel's counter array: id 0 is never given out.
pub const POLICY_IDS_MAX: u32 = 1 << 12;

/// Port: id u32, name u32 (string). Port ids index the kernel's device map: id 0 is never given out.
pub const PORT_BYTES: u32 = 8;
pub const PORT_IDS_MAX: u32 = 256;

/// String: first byte u32 (from the start of the text section), length u32.
pub const STRING_BYTES: u32 = 8;
/// File: path u32 (string).
pub const FILE_BYTES: u32 = 4;
/// Policy: id u32, name u32 (string), file u32, line u32.
pub const POLICY_BYTES: u32 = 16;
/// Group: policy u32, first member u32, member count u32, target u32.
pub const GROUP_BYTES: u32 = 16;
pub const GROUP_FIRST_MEMBER: u32 = 4;
pub const GROUP_MEMBERS: u32 = 8;
/// Most members of one group.
pub const GROUP_MEMBERS_MAX: u32 = 256;
/// Member: next hop u32, weight u32.
pub const MEMBER_BYTES: u32 = 8;
/// IPv4 route: address u32 (numeric), line u32, file u16, target u16, length u8, zero [u8; 3].
pub const V4_ROUTE_BYTES: u32 = 16;
/// IPv6 route: address 16 bytes (little-endian numeric), line u32, file u16, target u16, length u8, zero [u8; 7].
pub const V6_ROUTE_BYTES: u32 = 32;
/// Local address: 16 bytes as in a next hop, family u8, zero [u8; 7].
pub const LOCAL_BYTES: u32 = 24;

/// Head of the filters: words of a row u32, default action u32 ([`filter_action`]), then for each [`FilterTable`] where its
/// direct table is u32 and the bits that index it u32 (6, 12 or 18), then zeros.
///
/// A direct entry is a block and its palette, or with [`DIRECT_NODE`] a trie node, as those of the IPv4 FIB; all tables share
/// blocks, palettes, nodes and leaves, whose colours and leaves mean classes. A class is a row: of the rules that it matches,
/// one bit each, the first rule lowest in the first word.
pub const FILTER_HEAD_BYTES: u32 = 64;
pub const FILTER_WORDS: u32 = 0;
pub const FILTER_DEFAULT: u32 = 4;
pub const FILTER_TABLES: u32 = 8;
pub const FILTER_TABLE_BYTES: u32 = 8;
pub const FILTER_TABLE_BITS: u32 = 4;
/// Most rules of one image.
pub const FILTER_RULES_MAX: u32 = 1 << 10;
/// Most words of a row.
pub const FILTER_WORDS_MAX: u32 = FILTER_RULES_MAX / 64;
/// Most rows, since a class is a u16.
pub const FILTER_ROWS_MAX: u32 = 1 << 16;

/// What a filter looks addresses up in, in the order of the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FilterTable {
    V4Source = 0,
    V4Destination = 1,
    V6Source = 2,
    V6Destination = 3,
}

impl FilterTable {
    pub const ALL: [Self; 4] = [Self::V4Source, Self::V4Destination, Self::V6Source, Self::V6Destination];

    /// Where the table's words stand in the head.
    pub const fn at(self) -> u32 {
        FILTER_TABLES + self as u32 * FILTER_TABLE_BYTES
    }
}

// Classes of what is no address, u16 each: by protocol, of IPv4 and then of IPv6; by the port that the packet came in by;
// by the flags of TCP; of packets without them, and of later fragments.
pub const FILTER_PROTOCOLS: u32 = 0;
pub const FILTER_IN_PORTS: u32 = 512;
pub const FILTER_FLAGS: u32 = 768;
pub const FILTER_NO_FLAGS: u32 = 1024;
/// Of packets that show no source port, and of later fragments; then the same of destination ports.
pub const FILTER_NO_PORTS: u32 = 1032;
/// Page of each source port, by its high byte; then the same of destination ports.
pub const FILTER_SOURCE_PAGES: u32 = 1040;
pub const FILTER_DESTINATION_PAGES: u32 = FILTER_SOURCE_PAGES + 256;
/// Pages of 256 classes, by the port's low byte.
pub const FILTER_PAGES: u32 = FILTER_DESTINATION_PAGES + 256;

/// Filter rule: id u32, then one byte each: action ([`filter_action`]), what a limit is kept for ([`filter_per`]), bits of an
/// IPv4 and of an IPv6 source that share it; tokens a second u64; what may lie in the bucket, in [`LIMIT_SECOND`] u64;
/// policy id u32, flags u32, policy u32 (row), name u32 (string), meaning u32 (string), file u32, line u32, zero u32.
pub const FILTER_RULE_BYTES: u32 = 64;
pub const FILTER_RULE_ID: u32 = 0;
pub const FILTER_RULE_DOES: u32 = 4;
pub const FILTER_RULE_RATE: u32 = 8;
pub const FILTER_RULE_DEPTH: u32 = 16;
pub const FILTER_RULE_POLICY_ID: u32 = 24;
pub const FILTER_RULE_FLAGS: u32 = 28;
pub const FILTER_RULE_POLICY: u32 = 32;
pub const FILTER_RULE_NAME: u32 = 36;
pub const FILTER_RULE_MEANING: u32 = 40;
pub const FILTER_RULE_FILE: u32 = 44;
pub const FILTER_RULE_LINE: u32 = 48;
/// Tokens are bytes; otherwise packets.
pub const FILTER_RULE_FLAGS_BYTES: u32 = 1;
/// Filter rule ids index the kernel's counter array: id 0 is never given out. Enough for eight retained generations that
/// have no rule in common.
pub const FILTER_RULE_IDS_MAX: u32 = 1 << 13;
/// Units of time of a limit in a second: 1/64 ns, so that a byte of a fast link has a length.
pub const LIMIT_SECOND: u64 = 64_000_000_000;

/// What a filter rule does.
pub mod filter_action {
    pub const ALLOW: u8 = 0;
    pub const DENY: u8 = 1;
    pub const LIMIT: u8 = 2;
}

/// What shares the bucket of a limit.
pub mod filter_per {
    pub const RULE: u8 = 0;
    pub const SOURCE: u8 = 1;
}

/// Filter policy: id u32, name u32 (string), file u32, line u32, default u32 ([`filter_action`], or 255 where it says none).
pub const FILTER_POLICY_BYTES: u32 = 20;
pub const FILTER_POLICY_SAYS_NONE: u32 = 255;

/// Service address: address of two words (numeric, IPv4 mapped into IPv6 as in RFC 4291 section 2.5.5.2), then a word with
/// the first row of its ports, in bits 32 to 47 how many there are, and above them what the address is; then a word of
/// zeros. An entry that is nothing is empty.
///
/// Two entries are a bucket. An address lies in one of the two buckets that its hash names (cuckoo hashing: Pagh and Rodler,
/// Journal of Algorithms 51(2), 2004), so that four comparisons find it or say that it is not there. The number of buckets is
/// a power of two.
pub const SERVICE_ADDRESS_BYTES: u32 = 32;
pub const SERVICE_ADDRESS_WORD: u32 = 16;
pub const SERVICE_BUCKET_ENTRIES: u32 = 2;
pub const SERVICE_ADDRESS_FIRST_PORT: u64 = 0xffff_ffff;
pub const SERVICE_ADDRESS_PORTS_AT: u32 = 32;
/// The address is a VIP: it has ports.
pub const SERVICE_ADDRESS_VIP: u64 = 1 << 48;
/// The address is a backend's whose answers are translated back.
pub const SERVICE_ADDRESS_TRANSLATED: u64 = 1 << 49;

/// Pings of the VIP are answered.
pub const SERVICE_ADDRESS_ECHO: u64 = 1 << 50;

/// Ports of a VIP: first and last u32 (protocol in bits 16 to 23, port below), service u32, target u32: the backend's port
/// for the first one, 0: as it came, then the rows to go on with, u32 each and counted from 1: for ports before and after these;
/// 0: there are none. Sorted and disjoint within a VIP; the search begins in the middle.
pub const SERVICE_PORT_BYTES: u32 = 24;
pub const SERVICE_PORT_LAST: u32 = 4;
pub const SERVICE_PORT_SERVICE: u32 = 8;
pub const SERVICE_PORT_TARGET: u32 = 12;
pub const SERVICE_PORT_BEFORE: u32 = 16;
pub const SERVICE_PORT_AFTER: u32 = 20;
/// Most rows of ports of one VIP.
pub const SERVICE_PORTS_MAX: u32 = 1 << 12;

/// Service: id u32, flags u32, first slot u32, slots u32 (0: no backend takes new flows), first backend u32, backends u32,
/// three timeouts u32 in seconds, name u32 (string), file u32, line u32, VIP as two words,
/// how backends are checked u32 (string and one), zero u32.
pub const SERVICE_BYTES: u32 = 72;
pub const SERVICE_ID: u32 = 0;
pub const SERVICE_FLAGS: u32 = 4;
pub const SERVICE_SLOTS: u32 = 8;
pub const SERVICE_SLOT_COUNT: u32 = 12;
pub const SERVICE_BACKENDS: u32 = 16;
pub const SERVICE_BACKEND_COUNT: u32 = 20;
pub const SERVICE_ESTABLISHED_S: u32 = 24;
pub const SERVICE_CLOSING_S: u32 = 28;
pub const SERVICE_UDP_S: u32 = 32;
pub const SERVICE_NAME: u32 = 36;
pub const SERVICE_FILE: u32 = 40;
pub const SERVICE_LINE: u32 = 44;
pub const SERVICE_VIP: u32 = 48;
/// How its backends are checked, as a string's number and one; 0: they are not.
pub const SERVICE_HEALTH: u32 = 64;
/// Destination addresses and ports are translated; otherwise only the frame's MAC addresses change.
pub const SERVICE_FLAGS_NAT: u32 = 1 << 0;
/// Packets that no backend takes are dropped; otherwise they pass to the kernel.
pub const SERVICE_FLAGS_DROP: u32 = 1 << 1;
/// Packets go to the backend in a packet of its own: IP in IP. Not with [`SERVICE_FLAGS_NAT`].
pub const SERVICE_FLAGS_IPIP: u32 = 1 << 6;
/// The backend depends on the source address alone: bits 8 to 15 say how much of an IPv4 address, 16 to 23 of IPv6.
pub const SERVICE_FLAGS_AFFINITY: u32 = 1 << 2;
/// Backends that are down are passed over.
pub const SERVICE_FLAGS_HEALTH: u32 = 1 << 3;
/// Packets that no backend takes are answered by a reset or an error; not with [`SERVICE_FLAGS_DROP`].
pub const SERVICE_FLAGS_REJECT: u32 = 1 << 4;
/// Pings of the VIP are answered, whichever of its services says so.
pub const SERVICE_FLAGS_ECHO: u32 = 1 << 5;
pub const SERVICE_AFFINITY_V4_AT: u32 = 8;
pub const SERVICE_AFFINITY_V6_AT: u32 = 16;
/// Service ids index the kernel's counter array: id 0 is never given out.
pub const SERVICE_IDS_MAX: u32 = 1 << 14;

/// Backend: address of two words as in a service address, id u32, service u32 (row), port u16 (0: as the service's ports
/// say), weight u16 (0: takes no new flows), file u32, line u32, zero u32.
pub const BACKEND_BYTES: u32 = 40;
pub const BACKEND_ID: u32 = 16;
pub const BACKEND_SERVICE: u32 = 20;
pub const BACKEND_PORT: u32 = 24;
pub const BACKEND_WEIGHT: u32 = 26;
pub const BACKEND_FILE: u32 = 28;
pub const BACKEND_LINE: u32 = 32;
/// Backend ids index the kernel's counter array: id 0 is never given out.
pub const BACKEND_IDS_MAX: u32 = 1 << 17;
/// Row of the backend with this id, and one; 0: no backend of this image has the id.
pub const BACKEND_ROW_BYTES: u32 = 4;
/// Maglev slot: a backend, counted from its service's first one, u16.
pub const BACKEND_SLOT_BYTES: u32 = 2;
/// Most backends of one service.
pub const BACKENDS_MAX: u32 = 1 << 10;

/// Tunnel source: an address of two words as in a service address; zeros: there is none. Two rows: of IPv4, of IPv6.
pub const TUNNEL_SOURCE_BYTES: u32 = 16;

/// What is decapsulated: an address of two words as in a service address, then a mask of as many, then what must lie in that
/// prefix u64: [`decapsulation`].
pub const DECAPSULATION_BYTES: u32 = 40;
pub const DECAPSULATION_MASK: u32 = 16;
pub const DECAPSULATION_WHAT: u32 = 32;
/// Most rows: each is compared with every packet that has the protocol number of IP in IP.
pub const DECAPSULATION_ROWS_MAX: u32 = 32;

/// What a row of [`Section::Decapsulation`] is compared with.
pub mod decapsulation {
    /// The outer destination.
    pub const ADDRESS: u64 = 1;
    /// The outer source.
    pub const FROM: u64 = 2;
    /// The inner destination.
    pub const TO: u64 = 4;
}

/// Tables, in the order in which they lie in the image; the first [`Section::PATH`] are read by the packet path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Section {
    V4Direct = 0,
    V4Blocks = 1,
    V4Palettes = 2,
    V4Nodes = 3,
    V4Leaves = 4,
    V6Root = 5,
    V6First = 6,
    V6Second = 7,
    V6Third = 8,
    V6Buckets = 9,
    V6Nodes = 10,
    V6Leaves = 11,
    Targets = 12,
    Slots = 13,
    NextHops = 14,
    Ports = 15,
    Policies = 16,
    Groups = 17,
    Members = 18,
    V4Routes = 19,
    V6Routes = 20,
    Locals = 21,
    Files = 22,
    Strings = 23,
    Text = 24,
    FilterHead = 25,
    FilterDirect = 26,
    FilterNodes = 27,
    FilterLeaves = 28,
    FilterClasses = 29,
    FilterRows = 30,
    FilterRules = 31,
    FilterPolicies = 32,
    ServiceAddresses = 33,
    ServicePorts = 34,
    Services = 35,
    Backends = 36,
    BackendRows = 37,
    BackendSlots = 38,
    FilterBlocks = 39,
    FilterPalettes = 40,
    TunnelSources = 41,
    Decapsulation = 42,
}

impl Section {
    pub const ALL: [(Self, u32); 43] = [
        (Self::V4Direct, 4),
        (Self::V4Blocks, BLOCK_BYTES),
        (Self::V4Palettes, PALETTE_BYTES),
        (Self::V4Nodes, NODE_BYTES),
        (Self::V4Leaves, LEAF_BYTES),
        (Self::V6Root, 4),
        (Self::V6First, 4),
        (Self::V6Second, 4),
        (Self::V6Third, 4),
        (Self::V6Buckets, BUCKET_BYTES),
        (Self::V6Nodes, NODE_BYTES),
        (Self::V6Leaves, LEAF_BYTES),
        (Self::Targets, TARGET_BYTES),
        (Self::Slots, SLOT_BYTES),
        (Self::NextHops, NEXT_HOP_BYTES),
        (Self::Ports, PORT_BYTES),
        (Self::Policies, POLICY_BYTES),
        (Self::Groups, GROUP_BYTES),
        (Self::Members, MEMBER_BYTES),
        (Self::V4Routes, V4_ROUTE_BYTES),
        (Self::V6Routes, V6_ROUTE_BYTES),
        (Self::Locals, LOCAL_BYTES),
        (Self::Files, FILE_BYTES),
        (Self::Strings, STRING_BYTES),
        (Self::Text, 1),
        (Self::FilterHead, FILTER_HEAD_BYTES),
        (Self::FilterDirect, 4),
        (Self::FilterNodes, NODE_BYTES),
        (Self::FilterLeaves, LEAF_BYTES),
        (Self::FilterClasses, 2),
        (Self::FilterRows, 8),
        (Self::FilterRules, FILTER_RULE_BYTES),
        (Self::FilterPolicies, FILTER_POLICY_BYTES),
        (Self::ServiceAddresses, SERVICE_ADDRESS_BYTES),
        (Self::ServicePorts, SERVICE_PORT_BYTES),
        (Self::Services, SERVICE_BYTES),
        (Self::Backends, BACKEND_BYTES),
        (Self::BackendRows, BACKEND_ROW_BYTES),
        (Self::BackendSlots, BACKEND_SLOT_BYTES),
        (Self::FilterBlocks, BLOCK_BYTES),
        (Self::FilterPalettes, PALETTE_BYTES),
        (Self::TunnelSources, TUNNEL_SOURCE_BYTES),
        (Self::Decapsulation, DECAPSULATION_BYTES),
    ];
    /// How many of [`Section::ALL`] the packet path reads for every packet's route.
    pub const PATH: usize = 15;

    /// What the lookup of each family reads.
    pub const V4_FIB: &[Self] = &[Self::V4Direct, Self::V4Blocks, Self::V4Palettes, Self::V4Nodes, Self::V4Leaves];
    pub const V6_FIB: &[Self] =
        &[Self::V6Root, Self::V6First, Self::V6Second, Self::V6Third, Self::V6Buckets, Self::V6Nodes, Self::V6Leaves];

    /// Where the section's (offset u32, count u32) pair stands.
    pub const fn at(self) -> u32 {
        AT_SECTIONS + self as u32 * 8
    }

    /// Bytes of one entry.
    pub const fn entry_bytes(self) -> u32 {
        Self::ALL[self as usize].1
    }
}

pub const AT_SECTIONS: u32 = 320;
/// First byte of the first table.
pub const HEADER_BYTES: u32 = 704;
/// Tables start at multiples of a cache line.
pub const SECTION_ALIGN: u32 = 64;

const _: () = assert!(AT_SECTIONS + Section::ALL.len() as u32 * 8 <= HEADER_BYTES);
const _: () = assert!(AT_REVISION + REVISION_BYTES_MAX <= AT_DIGEST && AT_DIGEST + DIGEST_BYTES <= RULES_START);
