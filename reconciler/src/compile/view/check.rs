//! The checks that make a [`View`] of bytes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use fib::image::Image as _;
use fib::layout::{
    AT_IMAGE_BYTES, AT_LAYOUT_VERSION, AT_MAGIC, AT_NEXT_HOPS, AT_REVISION, AT_REVISION_BYTES, AT_SLOTS, AT_TARGETS,
    AT_V4_FIB, AT_V6_FIB, BUCKET_BYTES, BUCKET_TARGETS, DIRECT_BLOCK_BITS, DIRECT_NODE, HEADER_BYTES, LAYOUT_VERSION,
    MAGIC, NEXT_HOP_FAMILY, NEXT_HOP_FILE, NEXT_HOP_NAME, NEXT_HOP_POLICY, NEXT_HOP_PORT, RADIX_NODE, RADIX_TAG_BITS,
    REVISION_BYTES_MAX, Section, V4_BLOCKS, V4_DIRECT, V4_DIRECT_BITS, V4_PALETTES, V6_BUCKETS, V6_ROOT, V6_ROOT_BITS,
    kind,
};

use super::routes::Lengths;
use super::{Checked, ImageError, Target, View};

pub(super) fn view(bytes: &[u8]) -> Result<View<'_>, ImageError> {
    let nothing = Checked { targets: Arc::default(), v4_lengths: Lengths::default(), v6_lengths: Lengths::default() };
    let mut view = again(bytes, nothing)?;
    headers(&view)?;
    small_tables(&view)?;
    view.check_services()?;
    view.targets = targets(&view)?.into();
    v4_fib(&view)?;
    v6_fib(&view)?;
    super::filter::check(&view)?;
    view.v4_lengths = view.check_v4_routes()?;
    view.v6_lengths = view.check_v6_routes()?;
    Ok(view)
}

/// The view of bytes whose tables were checked before.
pub(super) fn again(bytes: &[u8], checked: Checked) -> Result<View<'_>, ImageError> {
    let bytes = identity(bytes)?;
    let revision_bytes = bytes.u32(AT_REVISION_BYTES).unwrap_or(u32::MAX);
    if revision_bytes > REVISION_BYTES_MAX {
        return Err(ImageError::Text);
    }
    let revision = text(bytes, AT_REVISION, revision_bytes)?;
    sections(bytes)?;
    let Checked { targets, v4_lengths, v6_lengths } = checked;
    let mut view = View { bytes, text: "", revision, targets, v4_lengths, v6_lengths };
    view.text = text(bytes, view.at(Section::Text, 0), view.count(Section::Text))?;
    Ok(view)
}

/// Magic, layout version and length; returns the image without what follows it.
fn identity(bytes: &[u8]) -> Result<&[u8], ImageError> {
    let truncated = |needed: u32| ImageError::Truncated { bytes: bytes.len(), needed: needed as usize };
    let magic = bytes.u64(AT_MAGIC).ok_or(truncated(HEADER_BYTES))?;
    if magic != MAGIC {
        return Err(ImageError::NotAnImage { found: magic });
    }
    let version = bytes.u32(AT_LAYOUT_VERSION).ok_or(truncated(HEADER_BYTES))?;
    if version != LAYOUT_VERSION {
        return Err(ImageError::LayoutVersion { found: version, supported: LAYOUT_VERSION });
    }
    let image_bytes = bytes.u32(AT_IMAGE_BYTES).ok_or(truncated(HEADER_BYTES))?.max(HEADER_BYTES);
    bytes.get(..image_bytes as usize).ok_or(truncated(image_bytes))
}

fn text(bytes: &[u8], first: u32, length: u32) -> Result<&str, ImageError> {
    let range = first as usize..first as usize + length as usize;
    bytes.get(range).and_then(|bytes| std::str::from_utf8(bytes).ok()).ok_or(ImageError::Text)
}

fn sections(bytes: &[u8]) -> Result<(), ImageError> {
    for section in all() {
        let end = bytes.u32(section.at()).zip(bytes.u32(section.at() + 4)).map(|(offset, count)| {
            (u64::from(offset), u64::from(offset) + u64::from(count) * u64::from(section.entry_bytes()))
        });
        if !end.is_some_and(|(start, end)| start >= u64::from(HEADER_BYTES) && end <= bytes.len() as u64) {
            return Err(ImageError::Section { section });
        }
    }
    Ok(())
}

fn all() -> impl Iterator<Item = Section> {
    Section::ALL.into_iter().map(|(section, _)| section)
}

/// The packet path's offsets must name the same tables.
fn headers(view: &View) -> Result<(), ImageError> {
    let same = |at: u32, section: Section| {
        if view.u32(at) == view.at(section, 0) { Ok(()) } else { Err(ImageError::Section { section }) }
    };
    same(AT_V4_FIB + V4_DIRECT, Section::V4Direct)?;
    same(AT_V4_FIB + V4_BLOCKS, Section::V4Blocks)?;
    same(AT_V4_FIB + V4_PALETTES, Section::V4Palettes)?;
    same(AT_V6_FIB + V6_ROOT, Section::V6Root)?;
    same(AT_V6_FIB + V6_BUCKETS, Section::V6Buckets)?;
    same(AT_TARGETS, Section::Targets)?;
    same(AT_SLOTS, Section::Slots)?;
    same(AT_NEXT_HOPS, Section::NextHops)
}

/// Every index of the IPv4 lookup names a row, so that no address leads out of the tables.
fn v4_fib(view: &View) -> Result<(), ImageError> {
    let bits = view.u32(AT_V4_FIB + V4_DIRECT_BITS);
    if !matches!(bits, 6 | 12 | 18) || view.count(Section::V4Direct) != 1 << bits {
        return Err(ImageError::Section { section: Section::V4Direct });
    }
    let [blocks, palettes, nodes] =
        [Section::V4Blocks, Section::V4Palettes, Section::V4Nodes].map(|section| view.count(section));
    rows(view, Section::V4Direct, |at| is_direct_entry(view.u32(at), blocks, palettes, nodes))?;
    rows(view, Section::V4Palettes, |at| (0..256).all(|colour| is_target(view, view.u16(at + colour * 2))))?;
    trie(view, Section::V4Nodes, Section::V4Leaves, |target| is_target(view, target))
}

/// Whether an entry of a direct table leads to a node, or to a block and a palette, of which there are so many.
pub(super) fn is_direct_entry(entry: u32, blocks: u32, palettes: u32, nodes: u32) -> bool {
    if entry & DIRECT_NODE != 0 {
        entry & !DIRECT_NODE < nodes
    } else {
        entry & ((1 << DIRECT_BLOCK_BITS) - 1) < blocks && entry >> DIRECT_BLOCK_BITS < palettes
    }
}

/// As above, of IPv6.
fn v6_fib(view: &View) -> Result<(), ImageError> {
    let bits = view.u32(AT_V6_FIB + V6_ROOT_BITS);
    if !matches!(bits, 6 | 12 | 16) || view.count(Section::V6Root) != 1 << bits {
        return Err(ImageError::Section { section: Section::V6Root });
    }
    let root = u64::from(view.at(Section::V6Root, 0));
    let steps = [Section::V6Root, Section::V6First, Section::V6Second, Section::V6Third];
    for (section, next) in steps.into_iter().zip(&steps[1..]) {
        let start = u64::from(view.at(*next, 0));
        let end = start + u64::from(view.count(*next)) * 4;
        rows(view, section, |at| {
            let entry = view.u32(at);
            let (table, bits) = (root + u64::from(entry >> RADIX_TAG_BITS) * 4, entry & ((1 << RADIX_TAG_BITS) - 1));
            bits < 32 && table >= start && table + (4 << bits) <= end
        })?;
    }
    let (buckets, nodes) = (view.count(Section::V6Buckets), view.count(Section::V6Nodes));
    rows(view, Section::V6Third, |at| {
        let entry = view.u32(at);
        if entry & RADIX_NODE != 0 { entry & !RADIX_NODE < nodes } else { entry >> RADIX_TAG_BITS < buckets }
    })?;
    rows(view, Section::V6Buckets, |at| {
        (at + BUCKET_TARGETS..at + BUCKET_BYTES).step_by(2).all(|at| is_target(view, view.u16(at)))
    })?;
    trie(view, Section::V6Nodes, Section::V6Leaves, |target| is_target(view, target))
}

pub(super) fn trie(
    view: &View,
    nodes: Section,
    leaves: Section,
    is_leaf: impl Fn(u16) -> bool,
) -> Result<(), ImageError> {
    let (node_count, leaf_count) = (u64::from(view.count(nodes)), u64::from(view.count(leaves)));
    rows(view, nodes, |at| {
        let (children, starts) = (view.u64(at), view.u64(at + 8));
        let (first_leaf, first_child) = (u64::from(view.u32(at + 16)), u64::from(view.u32(at + 20)));
        // Every slot is a child, or comes at or after the start of a run of leaves.
        (!children).trailing_zeros() >= starts.trailing_zeros()
            && first_leaf + u64::from(starts.count_ones()) <= leaf_count
            && first_child + u64::from(children.count_ones()) <= node_count
    })?;
    rows(view, leaves, |at| is_leaf(view.u16(at)))
}

fn is_target(view: &View, target: u16) -> bool {
    u32::from(target) < view.count(Section::Targets)
}

fn small_tables(view: &View) -> Result<(), ImageError> {
    let strings = view.count(Section::Strings);
    let is_string = |row: u32| row < strings;
    let is_file = |row: u32| row < view.count(Section::Files);
    let is_policy = |row: u32| row < view.count(Section::Policies);
    let is_family = |at: u32| matches!(view.bytes.get(at as usize), Some(4 | 6));

    rows(view, Section::Strings, |at| {
        let first = view.u32(at) as usize;
        view.text.get(first..first.saturating_add(view.u32(at + 4) as usize)).is_some()
    })?;
    rows(view, Section::Files, |at| is_string(view.u32(at)))?;
    rows(view, Section::Ports, |at| is_string(view.u32(at + 4)))?;
    rows(view, Section::Policies, |at| is_string(view.u32(at + 4)) && is_file(view.u32(at + 8)))?;
    let ports: BTreeSet<u32> = view.ports().map(|port| port.id).collect();
    rows(view, Section::NextHops, |at| {
        is_string(view.u32(at + NEXT_HOP_NAME))
            && is_policy(view.u32(at + NEXT_HOP_POLICY))
            && is_file(view.u32(at + NEXT_HOP_FILE))
            && is_family(at + NEXT_HOP_FAMILY)
            && ports.contains(&u32::from(view.u16(at + NEXT_HOP_PORT)))
    })?;
    rows(view, Section::Members, |at| view.u32(at) < view.count(Section::NextHops))?;
    rows(view, Section::Groups, |at| {
        let end = view.u32(at + 4).checked_add(view.u32(at + 8));
        is_policy(view.u32(at)) && end.is_some_and(|end| end <= view.count(Section::Members))
    })?;
    rows(view, Section::Slots, |at| u32::from(view.u16(at)) < view.count(Section::NextHops))?;
    rows(view, Section::Locals, |at| is_family(at + 16))
}

pub(super) fn rows(view: &View, section: Section, holds: impl Fn(u32) -> bool) -> Result<(), ImageError> {
    match (0..view.count(section)).find(|&row| !holds(view.at(section, row))) {
        Some(row) => Err(ImageError::Row { section, row }),
        None => Ok(()),
    }
}

fn targets(view: &View) -> Result<Vec<Target>, ImageError> {
    let groups: HashMap<u32, u32> =
        (0..view.count(Section::Groups)).map(|group| (view.u32(view.at(Section::Groups, group) + 12), group)).collect();
    let policies: HashMap<u32, u32> = view.policies().zip(0..).map(|(policy, row)| (policy.id, row)).collect();
    let decode = |row: u32| {
        let at = view.at(Section::Targets, row);
        let (head, tail) = (view.u64(at), view.u64(at + 8));
        let [kind, flags, low, high, ..] = head.to_le_bytes();
        let forwards = matches!(kind, kind::FORWARD_ONE | kind::FORWARD_GROUP);
        if flags > u8::from(forwards) {
            return None;
        }
        let policy = || policies.get(&u32::from(u16::from_le_bytes([low, high]))).copied();
        match kind {
            kind::NONE => Some(Target::None),
            kind::LOCAL => Some(Target::Local),
            kind::DROP => policy().map(Target::Drop),
            kind::PASS => policy().map(Target::Pass),
            kind::FORWARD_ONE if head >> 32 < u64::from(view.count(Section::NextHops)) => {
                groups.get(&row).copied().map(Target::Forward)
            }
            kind::FORWARD_GROUP if (tail & 0xffff_ffff) + (tail >> 32) < u64::from(view.count(Section::Slots)) => {
                groups.get(&row).copied().filter(|&group| u64::from(group) == head >> 32).map(Target::Forward)
            }
            _ => None,
        }
    };
    let section = Section::Targets;
    let targets: Result<Vec<Target>, ImageError> =
        (0..view.count(section)).map(|row| decode(row).ok_or(ImageError::Row { section, row })).collect();
    match targets?.as_slice() {
        targets @ [Target::None, ..] => Ok(targets.to_vec()),
        _ => Err(ImageError::Row { section, row: 0 }),
    }
}
