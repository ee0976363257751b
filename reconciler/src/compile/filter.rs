//! The filter tables of an image: classes by field, rows of bits by class, and the rules themselves.
//!
//! `fib::filter` says how they are read. Prefixes become direct tables, blocks, and a trie for what is longer, all of classes:
//! the class of an address is the set of rules that have a prefix around it, found in one pass over the sorted prefixes of
//! all rules. Rules tell few classes apart, so equal blocks are common, and each is kept once.

use std::collections::HashMap;

use fib::layout::{
    DIRECT_NODE, FILTER_DESTINATION_PAGES, FILTER_FLAGS, FILTER_IN_PORTS, FILTER_NO_FLAGS, FILTER_NO_PORTS,
    FILTER_PAGES, FILTER_POLICY_SAYS_NONE, FILTER_PROTOCOLS, FILTER_ROWS_MAX, FILTER_RULE_BYTES, FILTER_RULE_DEPTH,
    FILTER_RULE_DOES, FILTER_RULE_FILE, FILTER_RULE_FLAGS, FILTER_RULE_FLAGS_BYTES, FILTER_RULE_ID, FILTER_RULE_LINE,
    FILTER_RULE_MEANING, FILTER_RULE_NAME, FILTER_RULE_POLICY, FILTER_RULE_POLICY_ID, FILTER_RULE_RATE,
    FILTER_RULES_MAX, FILTER_SOURCE_PAGES, LIMIT_SECOND, STRIDE_BITS, filter_action, filter_per,
};

use super::CompileError;
use super::fib::{Address, Blocks, Poptrie, Rule, SLOTS, paint};
use super::ids::Ids;
use super::tables::Tables;
use crate::policy::{FilterAction, FilterRule, Policy, PortRange, Prefix, RuleAction};

/// Fewest prefixes of a table for which a direct table of 12 bits (16 KiB) is worth its bytes, and one of 18 bits (1 MiB).
const DIRECT_12_FROM: usize = 64;
const DIRECT_18_FROM: usize = 2048;

/// The tables as they stand in the image.
#[derive(Debug, Default)]
pub(super) struct Filters {
    /// Words of a row; 0: no packet has to ask.
    pub words: u32,
    /// What happens to packets that no rule matches.
    pub default: u8,
    /// In the order of `FilterTable`: bits that index it, and its entries.
    pub direct: [(u32, Vec<u32>); 4],
    pub blocks: Blocks,
    /// Direct entries of the blocks that are not one class throughout.
    mixed: HashMap<[u16; SLOTS], u32>,
    pub trie: Poptrie,
    pub classes: Vec<u16>,
    pub rows: Vec<u64>,
    pub rules: Vec<[u8; FILTER_RULE_BYTES as usize]>,
    /// (id, name, file, line, default)
    pub policies: Vec<[u32; 5]>,
}

impl Filters {
    pub(super) fn build<'p>(policy: &'p Policy, ids: &Ids<'p>, tables: &mut Tables<'p>) -> Result<Self, CompileError> {
        let mut filters = Self::default();
        let rules: Vec<&FilterRule> = policy.filter_policies.iter().flat_map(|policy| &policy.rules).collect();
        if rules.len() > FILTER_RULES_MAX as usize {
            let max = FILTER_RULES_MAX as usize;
            return Err(CompileError::TableFull { table: "filter rules", needed: rules.len(), max });
        }
        let denies = policy.filter_policies.iter().any(|policy| policy.default == Some(FilterAction::Deny));
        filters.add_rows(policy, ids, tables);
        if rules.is_empty() && !denies {
            return Ok(filters);
        }
        filters.default = if denies { filter_action::DENY } else { filter_action::ALLOW };
        let words = rules.len().div_ceil(64).max(1);
        let mut rows = Rows::new(words);
        filters.add_addresses(&rules, &mut rows)?;
        filters.classes = classes(&rules, ids, &mut rows)?;
        filters.words = index(words);
        filters.rows = rows.bits;
        Ok(filters)
    }

    fn add_rows<'p>(&mut self, policy: &'p Policy, ids: &Ids<'p>, tables: &mut Tables<'p>) {
        for (place, document) in policy.filter_policies.iter().enumerate() {
            let id = ids.filter_policies.get(document.name.as_str()).copied().unwrap_or_default();
            let default = match document.default {
                None => FILTER_POLICY_SAYS_NONE,
                Some(FilterAction::Allow) => filter_action::ALLOW.into(),
                Some(FilterAction::Deny) => filter_action::DENY.into(),
            };
            let name = tables.intern(&document.name);
            self.policies.push([id, name, document.origin.file, document.origin.line, default]);
            for rule in &document.rules {
                let key = (document.name.as_str(), rule.name.as_str());
                let rule_id = ids.filter_rules.get(&key).copied().unwrap_or_default();
                let (name, meaning) = (tables.intern(&rule.name), tables.intern(&rule.meaning));
                let mut row = [0; FILTER_RULE_BYTES as usize];
                let mut put = |at: u32, value: &[u8]| row[at as usize..][..value.len()].copy_from_slice(value);
                let (does, rate, depth, flags) = does(rule.action);
                put(FILTER_RULE_ID, &rule_id.to_le_bytes());
                put(FILTER_RULE_DOES, &does);
                put(FILTER_RULE_RATE, &rate.to_le_bytes());
                put(FILTER_RULE_DEPTH, &depth.to_le_bytes());
                put(FILTER_RULE_POLICY_ID, &id.to_le_bytes());
                put(FILTER_RULE_FLAGS, &flags.to_le_bytes());
                put(FILTER_RULE_POLICY, &index(place).to_le_bytes());
                put(FILTER_RULE_NAME, &name.to_le_bytes());
                put(FILTER_RULE_MEANING, &meaning.to_le_bytes());
                put(FILTER_RULE_FILE, &rule.origin.file.to_le_bytes());
                put(FILTER_RULE_LINE, &rule.origin.line.to_le_bytes());
                self.rules.push(row);
            }
        }
    }

    fn add_addresses(&mut self, rules: &[&FilterRule], rows: &mut Rows) -> Result<(), CompileError> {
        type Side = fn(&FilterRule) -> Option<&[Prefix]>;
        let sides: [Side; 2] = [|rule| rule.from.as_deref(), |rule| rule.to.as_deref()];
        for (place, side) in sides.into_iter().enumerate() {
            let any = rows.set(rules, |rule| side(rule).is_none());
            let (mut v4, mut v6) = (Vec::new(), Vec::new());
            for (number, rule) in rules.iter().enumerate() {
                for prefix in side(rule).unwrap_or_default() {
                    match *prefix {
                        Prefix::V4(address, length) => v4.push((address.to_bits(), length, number)),
                        Prefix::V6(address, length) => v6.push((address.to_bits(), length, number)),
                    }
                }
            }
            let none = rows.class(&any)?;
            let v4 = nested(v4, &any, none, rows)?;
            let v6 = nested(v6, &any, none, rows)?;
            self.direct[place] = self.table(&v4, none);
            self.direct[2 + place] = self.table(&v6, none);
        }
        Ok(())
    }

    /// The direct table of sorted prefixes, and the trie below it.
    fn table<A: Address>(&mut self, rules: &[Rule<A>], none: u16) -> (u32, Vec<u32>) {
        let bits = match rules.len() {
            DIRECT_18_FROM.. => 18,
            DIRECT_12_FROM.. => 12,
            _ => 6,
        };
        let mut targets = vec![none; 1 << bits];
        let mut divided = Vec::new();
        paint(rules, 0, bits, &mut targets, |slot, run| divided.push((slot, run)));
        let mut divided = divided.into_iter().peekable();
        let mut direct = Vec::with_capacity(targets.len());
        for (slot, &class) in targets.iter().enumerate() {
            let rules = divided.next_if(|(divided, _)| *divided == slot).map_or(&rules[..0], |(_, run)| &rules[run]);
            let entry = self.block(rules, bits, class);
            direct.push(entry.unwrap_or_else(|| DIRECT_NODE | self.trie.plant(rules, bits, class)));
        }
        (bits, direct)
    }

    /// The direct entry of a slot in which `rules` lie, as a block; `None`: they are longer, or there are no more palettes.
    fn block<A: Address>(&mut self, rules: &[Rule<A>], bits: u32, class: u16) -> Option<u32> {
        if rules.is_empty() {
            return self.blocks.uniform(class);
        }
        if rules.iter().any(|rule| u32::from(rule.length) > bits + STRIDE_BITS) {
            return None;
        }
        let mut classes = [class; SLOTS];
        paint(rules, bits, STRIDE_BITS, &mut classes, |_, _| ());
        if let Some(&entry) = self.mixed.get(&classes) {
            return Some(entry);
        }
        let entry = self.blocks.add(&classes)?;
        self.mixed.insert(classes, entry);
        Some(entry)
    }
}

/// Action, keeper and source lengths; rate; depth; flags.
fn does(action: RuleAction) -> ([u8; 4], u64, u64, u32) {
    match action {
        RuleAction::Allow => ([filter_action::ALLOW, 0, 0, 0], 0, 0, 0),
        RuleAction::Deny => ([filter_action::DENY, 0, 0, 0], 0, 0, 0),
        RuleAction::Limit(limit) => {
            let depth = u128::from(limit.burst) * u128::from(LIMIT_SECOND) / u128::from(limit.rate.max(1));
            let depth = u64::try_from(depth).unwrap_or(u64::MAX >> 1);
            let [per, v4, v6] =
                limit.source_bits.map_or([filter_per::RULE, 0, 0], |[v4, v6]| [filter_per::SOURCE, v4, v6]);
            let flags = if limit.is_bytes { FILTER_RULE_FLAGS_BYTES } else { 0 };
            ([filter_action::LIMIT, per, v4, v6], limit.rate, depth, flags)
        }
    }
}

/// Rows of bits, each once; a class is the number of a row. Row 0 has no bit.
struct Rows {
    words: usize,
    bits: Vec<u64>,
    classes: HashMap<Vec<u64>, u16>,
}

impl Rows {
    fn new(words: usize) -> Self {
        let none = vec![0; words];
        Self { words, bits: none.clone(), classes: HashMap::from([(none, 0)]) }
    }

    /// The rules for which something holds.
    fn set(&self, rules: &[&FilterRule], holds: impl Fn(&FilterRule) -> bool) -> Vec<u64> {
        let mut bits = vec![0; self.words];
        for (number, _) in rules.iter().enumerate().filter(|(_, rule)| holds(rule)) {
            bits[number / 64] |= 1 << (number % 64);
        }
        bits
    }

    fn class(&mut self, bits: &[u64]) -> Result<u16, CompileError> {
        if let Some(&class) = self.classes.get(bits) {
            return Ok(class);
        }
        let number = self.classes.len();
        let class = u16::try_from(number).map_err(|_| CompileError::TableFull {
            table: "filter classes (sets of rules that prefixes and ports tell apart)",
            needed: number + 1,
            max: FILTER_ROWS_MAX as usize,
        })?;
        self.bits.extend_from_slice(bits);
        self.classes.insert(bits.to_vec(), class);
        Ok(class)
    }

    fn row(&self, class: u16) -> &[u64] {
        &self.bits[usize::from(class) * self.words..][..self.words]
    }
}

/// Prefixes with the classes of their addresses: of the rules that have the prefix or one around it. Sorted, none twice.
fn nested<A: Address + Into<u128>>(
    mut prefixes: Vec<(A, u8, usize)>,
    any: &[u64],
    none: u16,
    rows: &mut Rows,
) -> Result<Vec<Rule<A>>, CompileError> {
    prefixes.sort_unstable();
    let mut rules: Vec<Rule<A>> = Vec::new();
    // The prefixes around the one at hand, the longest last: places in `rules`.
    let mut around: Vec<usize> = Vec::new();
    let contains = |outer: &Rule<A>, address: A| {
        let differs: u128 = outer.address.into() ^ address.into();
        differs.checked_shr(A::BITS - u32::from(outer.length)).unwrap_or(0) == 0
    };
    for same in prefixes.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
        let (address, length, _) = same[0];
        while around.pop_if(|at| !contains(&rules[*at], address)).is_some() {}
        let mut bits = around.last().map_or(any, |&at| rows.row(rules[at].target)).to_vec();
        for (.., number) in same {
            bits[number / 64] |= 1 << (number % 64);
        }
        let target = if bits == any { none } else { rows.class(&bits)? };
        around.push(rules.len());
        rules.push(Rule { address, length, target, file: 0, line: 0 });
    }
    Ok(rules)
}

/// The ports of one side that a rule asks for.
type PortsOf = fn(&FilterRule) -> Option<&[PortRange]>;

/// The classes of what is no address.
fn classes(rules: &[&FilterRule], ids: &Ids<'_>, rows: &mut Rows) -> Result<Vec<u16>, CompileError> {
    let mut classes = vec![0u16; FILTER_PAGES as usize];
    for (family, protocol) in (0..2usize).flat_map(|family| (0..=255u8).map(move |protocol| (family, protocol))) {
        let bits = rows.set(rules, |rule| rule.protocol.is_none_or(|wanted| wanted[family] == protocol));
        classes[FILTER_PROTOCOLS as usize + family * 256 + usize::from(protocol)] = rows.class(&bits)?;
    }
    let names: HashMap<u32, &str> = ids.ports.iter().map(|(name, id)| (*id, *name)).collect();
    for id in 0..256 {
        let is_named = |ports: &Vec<String>| names.get(&id).is_some_and(|name| ports.iter().any(|port| port == name));
        let bits = rows.set(rules, |rule| rule.in_ports.as_ref().is_none_or(is_named));
        classes[(FILTER_IN_PORTS + id) as usize] = rows.class(&bits)?;
    }
    for flags in 0..=255u8 {
        let bits = rows.set(rules, |rule| {
            rule.tcp_flags.is_none_or(|wanted| flags & wanted.set == wanted.set && flags & wanted.clear == 0)
        });
        classes[FILTER_FLAGS as usize + usize::from(flags)] = rows.class(&bits)?;
    }
    let sides: [(u32, PortsOf); 2] = [
        (FILTER_SOURCE_PAGES, |rule| rule.source_ports.as_deref()),
        (FILTER_DESTINATION_PAGES, |rule| rule.ports.as_deref()),
    ];
    let mut hidden = vec![(FILTER_NO_FLAGS, rows.set(rules, |rule| rule.tcp_flags.is_none()))];
    hidden.push((FILTER_NO_FLAGS + 1, rows.set(rules, |rule| rule.tcp_flags.is_none() || rule.fragments)));
    for ((_, side), at) in sides.iter().zip([FILTER_NO_PORTS, FILTER_NO_PORTS + 2]) {
        hidden.push((at, rows.set(rules, |rule| side(rule).is_none())));
        hidden.push((at + 1, rows.set(rules, |rule| side(rule).is_none() || rule.fragments)));
    }
    for (at, bits) in hidden {
        classes[at as usize] = rows.class(&bits)?;
    }
    let mut pages: HashMap<Vec<u16>, u16> = HashMap::new();
    for (first, side) in sides {
        let ports = port_classes(rules, side, rows)?;
        for (high, page) in (0..).zip(ports.chunks_exact(256)) {
            let next = u16::try_from(pages.len()).unwrap_or(u16::MAX);
            let number = *pages.entry(page.to_vec()).or_insert_with(|| {
                classes.extend_from_slice(page);
                next
            });
            classes[(first + high) as usize] = number;
        }
    }
    Ok(classes)
}

/// The class of every port.
fn port_classes(rules: &[&FilterRule], side: PortsOf, rows: &mut Rows) -> Result<Vec<u16>, CompileError> {
    // Which rules begin and end to match at a port.
    let mut turns: Vec<(u32, usize)> = Vec::new();
    for (number, rule) in rules.iter().enumerate() {
        for &(first, last) in side(rule).unwrap_or_default() {
            turns.extend([(u32::from(first), number), (u32::from(last) + 1, number)]);
        }
    }
    turns.sort_unstable();
    let mut bits = rows.set(rules, |rule| side(rule).is_none());
    let mut classes = Vec::with_capacity(1 << 16);
    let mut turns = turns.into_iter().peekable();
    let mut class = rows.class(&bits)?;
    for port in 0..1u32 << 16 {
        let mut turned = false;
        while let Some((_, number)) = turns.next_if(|turn| turn.0 == port) {
            // Ranges of a rule lie apart from each other, so that each turn changes its bit.
            bits[number / 64] ^= 1 << (number % 64);
            turned = true;
        }
        if turned {
            class = rows.class(&bits)?;
        }
        classes.push(class);
    }
    Ok(classes)
}

#[expect(clippy::cast_possible_truncation, reason = "the image's size limit is checked before anything is written")]
fn index(i: usize) -> u32 {
    i as u32
}
