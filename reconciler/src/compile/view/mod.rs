//! The way back: rules read from the bytes of an image, wherever they come from, live kernel memory included.
//!
//! [`View::new`] checks every offset, index and string once, so that no accessor can fail or panic afterwards, however
//! the bytes were damaged. Whether they are the bytes that were compiled is [`View::verify_digest`]'s question.

mod check;
mod filter;
mod routes;
mod services;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, OnceLock};

use fib::image::Image as _;
use fib::layout::{
    AT_CREATED_UNIX_MS, AT_DIGEST, AT_GENERATION, AT_PARENT, NEXT_HOP_FAMILY, NEXT_HOP_FILE, NEXT_HOP_ID,
    NEXT_HOP_LINE, NEXT_HOP_NAME, NEXT_HOP_POLICY, NEXT_HOP_PORT, NEXT_HOP_VIA, RULES_START, Section,
    TARGET_FLAGS_ON_ALL_DOWN_DROP,
};

use crate::policy::OnAllDown;
pub use filter::{FilterPolicyView, FilterRuleView};
use routes::Lengths;
pub use routes::{Match, RouteAction, RouteView, Routes, TargetView};
pub use services::{BackendView, ServiceView, ip};

/// Why bytes are not an image that this version can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("an image is at least {needed} bytes long, this is {bytes}")]
    Truncated { bytes: usize, needed: usize },
    #[error("these bytes are not a wayleave image: the magic number is {found:#018x}")]
    NotAnImage { found: u64 },
    #[error("the image has layout version {found}, this version of wayleave reads {supported}")]
    LayoutVersion { found: u32, supported: u32 },
    #[error("the image is damaged: table {section:?} lies outside the image or does not fit its header")]
    Section { section: Section },
    #[error("the image is damaged: row {row} of table {section:?} contradicts the other tables")]
    Row { section: Section, row: u32 },
    #[error("the image is damaged: its texts are not UTF-8")]
    Text,
    #[error("the image is damaged: its rules have digest {computed}, it says {stored}")]
    Digest { stored: Digest, computed: Digest },
}

/// BLAKE3 of an image's rules; displays as hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A checked image.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// Exactly the image, without the rest of its capacity class.
    bytes: &'a [u8],
    text: &'a str,
    revision: &'a str,
    /// Decoded, by target index.
    targets: Arc<[Target]>,
    v4_lengths: Lengths,
    v6_lengths: Lengths,
}

/// What the checks of an image leave, so that bytes which stay as they are need not be checked again.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    targets: Arc<[Target]>,
    v4_lengths: Lengths,
    v6_lengths: Lengths,
}

/// A target as the route tables mean it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    None,
    Local,
    /// (group)
    Forward(u32),
    /// (policy)
    Drop(u32),
    Pass(u32),
}

/// A row of the next-hop table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHopView<'a> {
    pub id: u32,
    pub policy: &'a str,
    pub name: &'a str,
    pub via: IpAddr,
    pub port: &'a str,
    pub port_id: u32,
    pub file: &'a str,
    pub line: u32,
}

/// A row of the port table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortView<'a> {
    pub id: u32,
    pub name: &'a str,
}

/// A row of the policy table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyView<'a> {
    pub id: u32,
    pub name: &'a str,
    pub file: &'a str,
    pub line: u32,
}

/// One member of a next-hop group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberView<'a> {
    pub next_hop: NextHopView<'a>,
    pub weight: u32,
}

impl<'a> View<'a> {
    /// The image at the start of `bytes`; what follows its end is ignored.
    pub fn new(bytes: &'a [u8]) -> Result<Self, ImageError> {
        check::view(bytes)
    }

    /// The view of bytes that do not change once they were checked, of which `checked` remembers it.
    pub(crate) fn once(bytes: &'a [u8], checked: &OnceLock<Checked>) -> Result<Self, ImageError> {
        if let Some(checked) = checked.get() {
            return check::again(bytes, checked.clone());
        }
        let view = check::view(bytes)?;
        let Self { targets, v4_lengths, v6_lengths, .. } = &view;
        let _ = checked.set(Checked { targets: Arc::clone(targets), v4_lengths: *v4_lengths, v6_lengths: *v6_lengths });
        Ok(view)
    }

    /// Computes the digest of the rules and compares it with the one stored.
    pub fn verify_digest(&self) -> Result<(), ImageError> {
        let rules = self.bytes.get(RULES_START as usize..).unwrap_or_default();
        let computed = Digest(*blake3::hash(rules).as_bytes());
        let stored = self.digest();
        if computed == stored { Ok(()) } else { Err(ImageError::Digest { stored, computed }) }
    }

    /// The image, to look up in with [`fib::lookup`] and [`fib::decide`].
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub fn generation(&self) -> u64 {
        self.u64(AT_GENERATION)
    }

    /// The generation that this one was made against; 0: none.
    pub fn parent(&self) -> u64 {
        self.u64(AT_PARENT)
    }

    pub fn created_unix_ms(&self) -> u64 {
        self.u64(AT_CREATED_UNIX_MS)
    }

    pub fn revision(&self) -> &'a str {
        self.revision
    }

    pub fn digest(&self) -> Digest {
        let stored = self.bytes.get(AT_DIGEST as usize..).and_then(|b| b.first_chunk());
        Digest(stored.copied().unwrap_or_default())
    }

    /// Rows of a table.
    pub fn count(&self, section: Section) -> u32 {
        self.u32(section.at() + 4)
    }

    /// Bytes of tables: [`Section::V4_FIB`] and [`Section::V6_FIB`] are what lookups read.
    pub fn lookup_bytes(&self, sections: &[Section]) -> usize {
        sections.iter().map(|&s| self.count(s) as usize * s.entry_bytes() as usize).sum()
    }

    /// In the image's order: by policy, then name.
    pub fn next_hops(&self) -> impl ExactSizeIterator<Item = NextHopView<'a>> + '_ {
        self.rows(Section::NextHops).map(|row| self.next_hop(row))
    }

    /// Row `row` of the next-hop table, which must be below its count.
    pub fn next_hop(&self, row: u32) -> NextHopView<'a> {
        let at = self.at(Section::NextHops, row);
        let port_id = u32::from(self.u16(at + NEXT_HOP_PORT));
        NextHopView {
            id: self.u32(at + NEXT_HOP_ID),
            policy: self.policy_name(self.u32(at + NEXT_HOP_POLICY)),
            name: self.string(self.u32(at + NEXT_HOP_NAME)),
            via: self.address(at + NEXT_HOP_VIA, at + NEXT_HOP_FAMILY),
            port: self.ports().find(|port| port.id == port_id).map_or("", |port| port.name),
            port_id,
            file: self.file(self.u32(at + NEXT_HOP_FILE)),
            line: self.u32(at + NEXT_HOP_LINE),
        }
    }

    /// Sorted by name.
    pub fn ports(&self) -> impl ExactSizeIterator<Item = PortView<'a>> + '_ {
        self.rows(Section::Ports).map(|row| {
            let at = self.at(Section::Ports, row);
            PortView { id: self.u32(at), name: self.string(self.u32(at + 4)) }
        })
    }

    /// Sorted by name.
    pub fn policies(&self) -> impl ExactSizeIterator<Item = PolicyView<'a>> + '_ {
        self.rows(Section::Policies).map(|row| {
            let at = self.at(Section::Policies, row);
            PolicyView {
                id: self.u32(at),
                name: self.string(self.u32(at + 4)),
                file: self.file(self.u32(at + 8)),
                line: self.u32(at + 12),
            }
        })
    }

    /// The node's own addresses, sorted.
    pub fn locals(&self) -> impl ExactSizeIterator<Item = IpAddr> + '_ {
        self.rows(Section::Locals).map(|row| {
            let at = self.at(Section::Locals, row);
            self.address(at, at + 16)
        })
    }

    /// Members of a group (as [`RouteAction::Forward`] names it), in the order of the next-hop table.
    pub fn members(&self, group: u32) -> impl ExactSizeIterator<Item = MemberView<'a>> + '_ {
        self.member_rows(group).map(|row| {
            let at = self.at(Section::Members, row);
            MemberView { next_hop: self.next_hop(self.u32(at)), weight: self.u32(at + 4) }
        })
    }

    /// What happens to packets of a group whose members are all down.
    pub fn on_all_down(&self, group: u32) -> OnAllDown {
        if group >= self.count(Section::Groups) {
            return OnAllDown::Pass;
        }
        let target = self.u32(self.at(Section::Groups, group) + 12);
        let head = if target < self.count(Section::Targets) { self.u64(self.at(Section::Targets, target)) } else { 0 };
        if head & TARGET_FLAGS_ON_ALL_DOWN_DROP == 0 { OnAllDown::Pass } else { OnAllDown::Drop }
    }

    /// Whether a row of the next-hop table is a member of a group.
    pub fn has_member(&self, group: u32, next_hop: u32) -> bool {
        self.member_rows(group).any(|row| self.u32(self.at(Section::Members, row)) == next_hop)
    }

    fn member_rows(&self, group: u32) -> std::ops::Range<u32> {
        if group >= self.count(Section::Groups) {
            return 0..0;
        }
        let at = self.at(Section::Groups, group);
        let (first, count) = (self.u32(at + 4), self.u32(at + 8));
        first..first + count
    }

    fn policy_name(&self, row: u32) -> &'a str {
        self.string(self.u32(self.at(Section::Policies, row) + 4))
    }

    fn file(&self, row: u32) -> &'a str {
        self.string(self.u32(self.at(Section::Files, row)))
    }

    fn string(&self, row: u32) -> &'a str {
        let at = self.at(Section::Strings, row);
        let (first, length) = (self.u32(at) as usize, self.u32(at + 4) as usize);
        self.text.get(first..first.saturating_add(length)).unwrap_or_default()
    }

    fn address(&self, at: u32, family_at: u32) -> IpAddr {
        let octets: [u8; 16] = self.bytes.get(at as usize..).and_then(|b| b.first_chunk()).copied().unwrap_or_default();
        if self.bytes.get(family_at as usize) == Some(&4) {
            Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into()
        } else {
            Ipv6Addr::from_octets(octets).into()
        }
    }

    fn rows(&self, section: Section) -> std::ops::Range<u32> {
        0..self.count(section)
    }

    /// Offset of a row; sections were checked to lie within the image, so this cannot overflow for rows that exist.
    fn at(&self, section: Section, row: u32) -> u32 {
        self.u32(section.at()).wrapping_add(row.wrapping_mul(section.entry_bytes()))
    }

    /// Where a section begins.
    pub(in crate::compile) fn offset(&self, section: Section) -> u32 {
        self.at(section, 0)
    }

    pub(in crate::compile) fn section(&self, section: Section) -> &'a [u8] {
        let (at, bytes) =
            (self.offset(section) as usize, self.count(section) as usize * section.entry_bytes() as usize);
        self.bytes.get(at..at + bytes).unwrap_or_default()
    }

    // Everything read was checked to be inside the image: the defaults are never seen.

    fn u16(&self, at: u32) -> u16 {
        self.bytes.u16(at).unwrap_or_default()
    }

    fn u32(&self, at: u32) -> u32 {
        self.bytes.u32(at).unwrap_or_default()
    }

    fn u64(&self, at: u32) -> u64 {
        self.bytes.u64(at).unwrap_or_default()
    }
}
