//! Rows in, bytes out: the only code that writes an image.

use std::net::IpAddr;
use std::sync::OnceLock;

use fib::layout::{
    AT_DIGEST, AT_FILTER, AT_HASH_SEED, AT_IMAGE_BYTES, AT_LAYOUT_VERSION, AT_MAGIC, AT_NEXT_HOPS, AT_REVISION,
    AT_REVISION_BYTES, AT_SERVICES, AT_SLOTS, AT_TARGETS, AT_V4_FIB, AT_V6_FIB, BUCKET_BYTES, BUCKET_TARGETS,
    CAPACITY_MAX, FILTER_DEFAULT, FILTER_TABLE_BITS, FILTER_WORDS, FilterTable, HEADER_BYTES, LAYOUT_VERSION, MAGIC,
    PALETTE_BYTES, RADIX_ENTRIES_MAX, RADIX_TAG_BITS, RULES_START, SECTION_ALIGN, Section, V4_BLOCKS, V4_DIRECT,
    V4_DIRECT_BITS, V4_PALETTES, V6_BUCKETS, V6_ROOT, V6_ROOT_BITS,
};

use super::fib::{Poptrie, Rule, V4Fib, V6Fib};
use super::filter::Filters;
use super::service::ServiceTables;
use super::tables::{HopRow, TARGET_LOCAL, Tables};
use super::tunnel::TunnelTables;
use super::{CompileError, HASH_SEED, Image, View};

/// Everything an image holds.
pub(super) struct Contents<'a, 'p> {
    pub revision: &'a str,
    pub tables: &'a Tables<'p>,
    pub lookup: &'a Lookup,
    pub filters: &'a Filters,
    pub tunnels: &'a TunnelTables,
}

/// What depends on the node's own addresses: where packets look an address up.
pub(super) struct Lookup {
    pub v4: V4Fib,
    pub v6: V6Fib,
    /// Sorted, with the node's own addresses among them, told by their target.
    pub v4_rules: Vec<Rule<u32>>,
    pub v6_rules: Vec<Rule<u128>>,
    /// Sorted.
    pub locals: Vec<IpAddr>,
}

impl Lookup {
    /// Rows of a section; `None`: it does not depend on the node's own addresses.
    fn count(&self, section: Section) -> Option<usize> {
        Some(match section {
            Section::V4Direct => self.v4.direct.len(),
            Section::V4Blocks => self.v4.blocks.len(),
            Section::V4Palettes => self.v4.palettes.len(),
            Section::V4Nodes => self.v4.trie.nodes.len(),
            Section::V4Leaves => self.v4.trie.leaves.len(),
            Section::V6Root => self.v6.root.len(),
            Section::V6First => self.v6.steps[0].len(),
            Section::V6Second => self.v6.steps[1].len(),
            Section::V6Third => self.v6.steps[2].len(),
            Section::V6Buckets => self.v6.buckets.len(),
            Section::V6Nodes => self.v6.trie.nodes.len(),
            Section::V6Leaves => self.v6.trie.leaves.len(),
            Section::Locals => self.locals.len(),
            _ => return None,
        })
    }
}

impl Contents<'_, '_> {
    fn count(&self, section: Section) -> usize {
        let (tables, filters) = (self.tables, self.filters);
        if let Some(count) = self.lookup.count(section) {
            return count;
        }
        match section {
            Section::Targets => tables.targets.len(),
            Section::Slots => tables.slots.len(),
            Section::NextHops => tables.next_hops.len(),
            Section::Ports => tables.ports.len(),
            Section::Policies => tables.policies.len(),
            Section::Groups => tables.groups.len(),
            Section::Members => tables.members.len(),
            Section::V4Routes => self.lookup.v4_rules.iter().filter(|rule| rule.target != TARGET_LOCAL).count(),
            Section::V6Routes => self.lookup.v6_rules.iter().filter(|rule| rule.target != TARGET_LOCAL).count(),
            Section::Files => tables.files.len(),
            Section::Strings => tables.strings.len(),
            Section::Text => tables.text.len(),
            Section::FilterHead => usize::from(filters.words > 0),
            Section::FilterDirect => filters.direct.iter().map(|(_, entries)| entries.len()).sum(),
            Section::FilterBlocks => filters.blocks.rows.len(),
            Section::FilterPalettes => filters.blocks.palettes.len(),
            Section::FilterNodes => filters.trie.nodes.len(),
            Section::FilterLeaves => filters.trie.leaves.len(),
            Section::FilterClasses => filters.classes.len(),
            Section::FilterRows => filters.rows.len(),
            Section::FilterRules => filters.rules.len(),
            Section::FilterPolicies => filters.policies.len(),
            Section::ServiceAddresses => tables.services.addresses.len(),
            Section::ServicePorts => tables.services.ports.len(),
            Section::Services => tables.services.services.len(),
            Section::Backends => tables.services.backends.len(),
            Section::BackendRows => tables.services.backend_rows.len(),
            Section::BackendSlots => tables.services.slots.len(),
            Section::TunnelSources => self.tunnels.sources.len(),
            Section::Decapsulation => self.tunnels.decapsulation.len(),
            _ => 0,
        }
    }
}

/// The finished image, all but its place in history.
pub(super) fn write(contents: &Contents) -> Result<Image, CompileError> {
    let sections = Sections::lay_out(|section| contents.count(section))?;
    let mut bytes = begin(contents.revision, contents.lookup, &sections);
    write_rows(&mut bytes, contents, &sections);
    write_filters(&mut bytes, contents.filters, &sections);
    write_services(&mut bytes, &contents.tables.services, &sections);
    fill(&mut bytes, sections.offset(Section::TunnelSources), &contents.tunnels.sources, long_words::<2, 16>);
    fill(&mut bytes, sections.offset(Section::Decapsulation), &contents.tunnels.decapsulation, long_words::<5, 40>);
    Ok(finish(bytes))
}

/// The image that `view` looks at, with other lookup tables: no other byte of its rules changes, but where tables stand.
pub(super) fn write_moved(view: &View<'_>, lookup: &Lookup) -> Result<Image, CompileError> {
    let sections = Sections::lay_out(|section| lookup.count(section).unwrap_or(view.count(section) as usize))?;
    let mut bytes = begin(view.revision(), lookup, &sections);
    for (section, _) in Section::ALL {
        if lookup.count(section).is_none() {
            put(&mut bytes, sections.offset(section), view.section(section));
        }
    }
    if view.count(Section::FilterHead) > 0 {
        let head = sections.offset(Section::FilterHead);
        put(&mut bytes, AT_FILTER, &head.to_le_bytes());
        for table in FilterTable::ALL {
            let from_first = view.filter_table(table) - view.offset(Section::FilterDirect);
            let at = sections.offset(Section::FilterDirect) + from_first;
            put(&mut bytes, head + table.at(), &at.to_le_bytes());
        }
    }
    if view.count(Section::ServiceAddresses) > 0 {
        put(&mut bytes, AT_SERVICES, &sections.offset(Section::ServiceAddresses).to_le_bytes());
    }
    Ok(finish(bytes))
}

/// An image with its header and lookup tables; every other section is still zeros.
fn begin(revision: &str, lookup: &Lookup, sections: &Sections) -> Vec<u8> {
    let mut bytes = vec![0u8; sections.image_bytes as usize];
    put(&mut bytes, AT_MAGIC, &MAGIC.to_le_bytes());
    put(&mut bytes, AT_LAYOUT_VERSION, &LAYOUT_VERSION.to_le_bytes());
    put(&mut bytes, AT_IMAGE_BYTES, &sections.image_bytes.to_le_bytes());
    put(&mut bytes, AT_REVISION_BYTES, &(revision_bytes(revision)).to_le_bytes());
    put(&mut bytes, AT_REVISION, revision.as_bytes());
    write_header(&mut bytes, lookup, sections);
    write_lookup_tables(&mut bytes, lookup, sections);
    bytes
}

fn finish(mut bytes: Vec<u8>) -> Image {
    let digest = blake3::hash(&bytes[RULES_START as usize..]);
    put(&mut bytes, AT_DIGEST, digest.as_bytes());
    Image { bytes, checked: OnceLock::new() }
}

/// Where every section stands.
struct Sections {
    /// (offset, entries), in the order of [`Section::ALL`].
    at: [(u32, u32); Section::ALL.len()],
    image_bytes: u32,
}

impl Sections {
    /// One after the other, with as many rows as `count` says.
    fn lay_out(count: impl Fn(Section) -> usize) -> Result<Self, CompileError> {
        let mut offset = u64::from(HEADER_BYTES);
        let mut sections = Vec::with_capacity(Section::ALL.len());
        for (section, entry_bytes) in Section::ALL {
            let count = count(section) as u64;
            offset = offset.next_multiple_of(u64::from(SECTION_ALIGN));
            sections.push((offset, count));
            offset += count * u64::from(entry_bytes);
        }
        let radix_bytes = sections[Section::V6Buckets as usize].0 - sections[Section::V6Root as usize].0;
        if offset > u64::from(CAPACITY_MAX) || radix_bytes > u64::from(RADIX_ENTRIES_MAX) * 4 {
            return Err(CompileError::ImageTooLarge { bytes: offset, max: CAPACITY_MAX });
        }
        let at = std::array::from_fn(|i| (word(sections[i].0), word(sections[i].1)));
        Ok(Self { at, image_bytes: word(offset) })
    }

    fn offset(&self, section: Section) -> u32 {
        self.at[section as usize].0
    }
}

fn write_header(bytes: &mut [u8], lookup: &Lookup, sections: &Sections) {
    for (at, section) in [
        (AT_V4_FIB + V4_DIRECT, Section::V4Direct),
        (AT_V4_FIB + V4_BLOCKS, Section::V4Blocks),
        (AT_V4_FIB + V4_PALETTES, Section::V4Palettes),
        (AT_V6_FIB + V6_ROOT, Section::V6Root),
        (AT_V6_FIB + V6_BUCKETS, Section::V6Buckets),
    ] {
        put(bytes, at, &sections.offset(section).to_le_bytes());
    }
    put(bytes, AT_V4_FIB + V4_DIRECT_BITS, &lookup.v4.direct_bits.to_le_bytes());
    put(bytes, AT_V6_FIB + V6_ROOT_BITS, &lookup.v6.root_bits.to_le_bytes());
    put(bytes, AT_TARGETS, &sections.offset(Section::Targets).to_le_bytes());
    put(bytes, AT_SLOTS, &sections.offset(Section::Slots).to_le_bytes());
    put(bytes, AT_NEXT_HOPS, &sections.offset(Section::NextHops).to_le_bytes());
    put(bytes, AT_HASH_SEED, &HASH_SEED.to_le_bytes());
    for (section, _) in Section::ALL {
        let (offset, count) = sections.at[section as usize];
        put(bytes, section.at(), &offset.to_le_bytes());
        put(bytes, section.at() + 4, &count.to_le_bytes());
    }
}

fn write_lookup_tables(bytes: &mut [u8], lookup: &Lookup, sections: &Sections) {
    let (v4, v6) = (&lookup.v4, &lookup.v6);
    let numbers = |&number: &u32| number.to_le_bytes();
    fill(bytes, sections.offset(Section::V4Direct), &v4.direct, numbers);
    fill(bytes, sections.offset(Section::V4Blocks), &v4.blocks, |block| *block);
    fill(bytes, sections.offset(Section::V4Palettes), &v4.palettes, palette);
    write_trie(bytes, &v4.trie, [Section::V4Nodes, Section::V4Leaves].map(|section| sections.offset(section)));
    let root = sections.offset(Section::V6Root);
    let [first, second, third] = [Section::V6First, Section::V6Second, Section::V6Third].map(|s| sections.offset(s));
    for (at, entries, next) in [(root, &v6.root, first), (first, &v6.steps[0], second), (second, &v6.steps[1], third)] {
        // Entries count from the root on.
        let before = ((next - root) / 4) << RADIX_TAG_BITS;
        fill(bytes, at, entries, |entry| (entry + before).to_le_bytes());
    }
    fill(bytes, third, &v6.steps[2], numbers);
    fill(bytes, sections.offset(Section::V6Buckets), &v6.buckets, |bucket| {
        let mut row = [0; BUCKET_BYTES as usize];
        let (keys, targets) = row.split_at_mut(BUCKET_TARGETS as usize);
        for (to, word) in keys.chunks_exact_mut(8).zip(bucket.keys) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        for (to, target) in targets.chunks_exact_mut(2).zip(bucket.targets) {
            to.copy_from_slice(&target.to_le_bytes());
        }
        row
    });
    write_trie(bytes, &v6.trie, [Section::V6Nodes, Section::V6Leaves].map(|section| sections.offset(section)));
    fill(bytes, sections.offset(Section::Locals), &lookup.locals, |&address| {
        let mut row = [0; 24];
        let (family, octets) = family_and_octets(address);
        row[..16].copy_from_slice(&octets);
        row[16] = family;
        row
    });
}

fn write_trie(bytes: &mut [u8], trie: &Poptrie, [nodes, leaves]: [u32; 2]) {
    fill(bytes, nodes, &trie.nodes, |node| {
        let mut row = [0; 24];
        row[..8].copy_from_slice(&node.children.to_le_bytes());
        row[8..16].copy_from_slice(&node.leaves.to_le_bytes());
        row[16..20].copy_from_slice(&node.first_leaf.to_le_bytes());
        row[20..].copy_from_slice(&node.first_child.to_le_bytes());
        row
    });
    fill(bytes, leaves, &trie.leaves, |leaf| leaf.to_le_bytes());
}

fn write_rows(bytes: &mut [u8], contents: &Contents, sections: &Sections) {
    let tables = contents.tables;
    fill(bytes, sections.offset(Section::Targets), &tables.targets, |target| {
        let mut row = [0; 16];
        row[..8].copy_from_slice(&target[0].to_le_bytes());
        row[8..].copy_from_slice(&target[1].to_le_bytes());
        row
    });
    fill(bytes, sections.offset(Section::Slots), &tables.slots, |slot| slot.to_le_bytes());
    fill(bytes, sections.offset(Section::NextHops), &tables.next_hops, next_hop_row);
    fill(bytes, sections.offset(Section::Ports), &tables.ports, words::<2, 8>);
    fill(bytes, sections.offset(Section::Policies), &tables.policies, words::<4, 16>);
    fill(bytes, sections.offset(Section::Groups), &tables.groups, words::<4, 16>);
    fill(bytes, sections.offset(Section::Members), &tables.members, words::<2, 8>);
    let written = |rule: &&Rule<u32>| rule.target != TARGET_LOCAL;
    fill(bytes, sections.offset(Section::V4Routes), contents.lookup.v4_rules.iter().filter(written), |rule| {
        let mut row = [0; 16];
        row[..4].copy_from_slice(&rule.address.to_le_bytes());
        row[4..8].copy_from_slice(&rule.line.to_le_bytes());
        row[8..10].copy_from_slice(&rule.file.to_le_bytes());
        row[10..12].copy_from_slice(&rule.target.to_le_bytes());
        row[12] = rule.length;
        row
    });
    let written = |rule: &&Rule<u128>| rule.target != TARGET_LOCAL;
    fill(bytes, sections.offset(Section::V6Routes), contents.lookup.v6_rules.iter().filter(written), |rule| {
        let mut row = [0; 32];
        row[..16].copy_from_slice(&rule.address.to_le_bytes());
        row[16..20].copy_from_slice(&rule.line.to_le_bytes());
        row[20..22].copy_from_slice(&rule.file.to_le_bytes());
        row[22..24].copy_from_slice(&rule.target.to_le_bytes());
        row[24] = rule.length;
        row
    });
    fill(bytes, sections.offset(Section::Files), &tables.files, words::<1, 4>);
    fill(bytes, sections.offset(Section::Strings), &tables.strings, words::<2, 8>);
    put(bytes, sections.offset(Section::Text), tables.text.as_bytes());
}

fn palette(targets: &[u16; PALETTE_BYTES as usize / 2]) -> [u8; PALETTE_BYTES as usize] {
    let mut row = [0; PALETTE_BYTES as usize];
    for (to, target) in row.chunks_exact_mut(2).zip(targets) {
        to.copy_from_slice(&target.to_le_bytes());
    }
    row
}

fn write_filters(bytes: &mut [u8], filters: &Filters, sections: &Sections) {
    fill(bytes, sections.offset(Section::FilterRules), &filters.rules, |rule| *rule);
    fill(bytes, sections.offset(Section::FilterPolicies), &filters.policies, words::<5, 20>);
    if filters.words == 0 {
        return;
    }
    let head = sections.offset(Section::FilterHead);
    put(bytes, AT_FILTER, &head.to_le_bytes());
    put(bytes, head + FILTER_WORDS, &filters.words.to_le_bytes());
    put(bytes, head + FILTER_DEFAULT, &u32::from(filters.default).to_le_bytes());
    let mut at = sections.offset(Section::FilterDirect);
    for (table, (bits, entries)) in FilterTable::ALL.into_iter().zip(&filters.direct) {
        put(bytes, head + table.at(), &at.to_le_bytes());
        put(bytes, head + table.at() + FILTER_TABLE_BITS, &bits.to_le_bytes());
        fill(bytes, at, entries, |entry| entry.to_le_bytes());
        at += 4 << bits;
    }
    fill(bytes, sections.offset(Section::FilterBlocks), &filters.blocks.rows, |block| *block);
    fill(bytes, sections.offset(Section::FilterPalettes), &filters.blocks.palettes, palette);
    write_trie(
        bytes,
        &filters.trie,
        [Section::FilterNodes, Section::FilterLeaves].map(|section| sections.offset(section)),
    );
    fill(bytes, sections.offset(Section::FilterClasses), &filters.classes, |class| class.to_le_bytes());
    fill(bytes, sections.offset(Section::FilterRows), &filters.rows, |word| word.to_le_bytes());
}

fn write_services(bytes: &mut [u8], services: &ServiceTables, sections: &Sections) {
    if !services.addresses.is_empty() {
        put(bytes, AT_SERVICES, &sections.offset(Section::ServiceAddresses).to_le_bytes());
    }
    fill(bytes, sections.offset(Section::ServiceAddresses), &services.addresses, long_words::<4, 32>);
    fill(bytes, sections.offset(Section::ServicePorts), &services.ports, words::<6, 24>);
    fill(bytes, sections.offset(Section::Services), &services.services, |row| *row);
    fill(bytes, sections.offset(Section::Backends), &services.backends, |row| *row);
    fill(bytes, sections.offset(Section::BackendRows), &services.backend_rows, |row| row.to_le_bytes());
    fill(bytes, sections.offset(Section::BackendSlots), &services.slots, |slot| slot.to_le_bytes());
}

fn next_hop_row(hop: &HopRow) -> [u8; 40] {
    let mut row = [0; 40];
    let (family, octets) = family_and_octets(hop.via);
    row[..4].copy_from_slice(&hop.id.to_le_bytes());
    row[4..6].copy_from_slice(&hop.port.to_le_bytes());
    row[6] = family;
    row[8..24].copy_from_slice(&octets);
    row[24..28].copy_from_slice(&hop.name.to_le_bytes());
    row[28..32].copy_from_slice(&hop.policy.to_le_bytes());
    row[32..36].copy_from_slice(&hop.file.to_le_bytes());
    row[36..].copy_from_slice(&hop.line.to_le_bytes());
    row
}

fn family_and_octets(address: IpAddr) -> (u8, [u8; 16]) {
    match address {
        IpAddr::V4(address) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&address.octets());
            (4, octets)
        }
        IpAddr::V6(address) => (6, address.octets()),
    }
}

/// `COUNT` 32-bit words as `BYTES` bytes.
fn words<const COUNT: usize, const BYTES: usize>(row: &[u32; COUNT]) -> [u8; BYTES] {
    const { assert!(COUNT * 4 == BYTES) };
    let mut bytes = [0; BYTES];
    for (to, from) in bytes.chunks_exact_mut(4).zip(row) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    bytes
}

/// The same of 64-bit words.
fn long_words<const COUNT: usize, const BYTES: usize>(row: &[u64; COUNT]) -> [u8; BYTES] {
    const { assert!(COUNT * 8 == BYTES) };
    let mut bytes = [0; BYTES];
    for (to, from) in bytes.chunks_exact_mut(8).zip(row) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    bytes
}

fn put(bytes: &mut [u8], at: u32, value: &[u8]) {
    bytes[at as usize..at as usize + value.len()].copy_from_slice(value);
}

fn fill<R, const BYTES: usize>(
    bytes: &mut [u8],
    at: u32,
    rows: impl IntoIterator<Item = R>,
    encode: impl Fn(R) -> [u8; BYTES],
) {
    for (to, row) in bytes[at as usize..].chunks_exact_mut(BYTES).zip(rows) {
        to.copy_from_slice(&encode(row));
    }
}

#[expect(clippy::cast_possible_truncation, reason = "at most REVISION_BYTES_MAX, which compile() checks")]
fn revision_bytes(revision: &str) -> u32 {
    revision.len() as u32
}

#[expect(clippy::cast_possible_truncation, reason = "offsets and counts are below CAPACITY_MAX, checked in lay_out")]
fn word(number: u64) -> u32 {
    number as u32
}
