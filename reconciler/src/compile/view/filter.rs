//! Filters as an image has them.

use fib::image::Image as _;
use fib::layout::{
    AT_FILTER, FILTER_DEFAULT, FILTER_FLAGS, FILTER_NO_PORTS, FILTER_PAGES, FILTER_POLICY_SAYS_NONE, FILTER_PROTOCOLS,
    FILTER_RULE_DOES, FILTER_RULE_FILE, FILTER_RULE_ID, FILTER_RULE_IDS_MAX, FILTER_RULE_LINE, FILTER_RULE_MEANING,
    FILTER_RULE_NAME, FILTER_RULE_POLICY, FILTER_RULE_RATE, FILTER_RULES_MAX, FILTER_SOURCE_PAGES, FILTER_TABLE_BITS,
    FILTER_WORDS, FilterTable, Section, filter_action,
};

use super::check::{is_direct_entry, rows, trie};
use super::{ImageError, View};
use crate::policy::FilterAction;

/// A row of the table of filter policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterPolicyView<'a> {
    pub id: u32,
    pub name: &'a str,
    pub file: &'a str,
    pub line: u32,
    /// What it says of packets that no rule matches.
    pub default: Option<FilterAction>,
}

/// A filter rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterRuleView<'a> {
    pub id: u32,
    pub policy: &'a str,
    pub name: &'a str,
    /// In one line.
    pub meaning: &'a str,
    /// Whether it has a rate limit; otherwise it allows or denies.
    pub is_limit: bool,
    pub file: &'a str,
    pub line: u32,
}

impl<'a> View<'a> {
    /// In the order in which they decide.
    pub fn filter_policies(&self) -> impl ExactSizeIterator<Item = FilterPolicyView<'a>> + '_ {
        self.rows(Section::FilterPolicies).map(|row| {
            let at = self.at(Section::FilterPolicies, row);
            FilterPolicyView {
                id: self.u32(at),
                name: self.string(self.u32(at + 4)),
                file: self.file(self.u32(at + 8)),
                line: self.u32(at + 12),
                default: action(self.u32(at + 16)),
            }
        })
    }

    /// In the order in which they decide.
    pub fn filter_rules(&self) -> impl ExactSizeIterator<Item = FilterRuleView<'a>> + '_ {
        self.rows(Section::FilterRules).map(|row| self.filter_rule(row))
    }

    /// Row `row` of the filter rules, which must be below their count.
    pub fn filter_rule(&self, row: u32) -> FilterRuleView<'a> {
        let at = self.at(Section::FilterRules, row);
        let policy = self.at(Section::FilterPolicies, self.u32(at + FILTER_RULE_POLICY));
        FilterRuleView {
            id: self.u32(at + FILTER_RULE_ID),
            policy: self.string(self.u32(policy + 4)),
            name: self.string(self.u32(at + FILTER_RULE_NAME)),
            meaning: self.string(self.u32(at + FILTER_RULE_MEANING)),
            is_limit: self.u32(at + FILTER_RULE_DOES).to_le_bytes()[0] == filter_action::LIMIT,
            file: self.file(self.u32(at + FILTER_RULE_FILE)),
            line: self.u32(at + FILTER_RULE_LINE),
        }
    }

    /// Where one of the direct tables begins; the image must have filters.
    pub(in crate::compile) fn filter_table(&self, table: FilterTable) -> u32 {
        self.u32(self.u32(AT_FILTER) + table.at())
    }

    /// What happens to packets that no filter rule matches.
    pub fn filter_default(&self) -> FilterAction {
        let head = self.u32(AT_FILTER);
        let default = if head == 0 { None } else { action(self.u32(head + FILTER_DEFAULT)) };
        default.unwrap_or(FilterAction::Allow)
    }
}

fn action(number: u32) -> Option<FilterAction> {
    match number {
        FILTER_POLICY_SAYS_NONE => None,
        number if number == u32::from(filter_action::ALLOW) => Some(FilterAction::Allow),
        _ => Some(FilterAction::Deny),
    }
}

/// Every index of the filter tables names a row, so that no packet leads out of them.
pub(super) fn check(view: &View<'_>) -> Result<(), ImageError> {
    let (strings, files) = (view.count(Section::Strings), view.count(Section::Files));
    rows(view, Section::FilterPolicies, |at| {
        let default = view.u32(at + 16);
        let is_default = default <= u32::from(filter_action::DENY) || default == FILTER_POLICY_SAYS_NONE;
        view.u32(at + 4) < strings && view.u32(at + 8) < files && is_default
    })?;
    rows(view, Section::FilterRules, |at| {
        let action = view.u32(at + FILTER_RULE_DOES).to_le_bytes()[0];
        (1..FILTER_RULE_IDS_MAX).contains(&view.u32(at + FILTER_RULE_ID))
            && view.u32(at + FILTER_RULE_POLICY) < view.count(Section::FilterPolicies)
            && view.u32(at + FILTER_RULE_NAME) < strings
            && view.u32(at + FILTER_RULE_MEANING) < strings
            && view.u32(at + FILTER_RULE_FILE) < files
            && action <= filter_action::LIMIT
            && (action != filter_action::LIMIT || view.u64(at + FILTER_RULE_RATE) > 0)
    })?;
    let damaged = |section| Err(ImageError::Section { section });
    let (head, heads, rules) = (view.u32(AT_FILTER), view.count(Section::FilterHead), view.count(Section::FilterRules));
    if head == 0 {
        // A packet would ask for none of them.
        return if heads == 0 && rules == 0 { Ok(()) } else { damaged(Section::FilterHead) };
    }
    let words = if heads == 1 { view.u32(head + FILTER_WORDS) } else { 0 };
    if head != view.at(Section::FilterHead, 0)
        || words != rules.div_ceil(64).max(1)
        || rules > FILTER_RULES_MAX
        || view.u32(head + FILTER_DEFAULT) > u32::from(filter_action::DENY)
    {
        return damaged(Section::FilterHead);
    }
    let row_count = view.count(Section::FilterRows) / words;
    if !view.count(Section::FilterRows).is_multiple_of(words) || row_count == 0 {
        return damaged(Section::FilterRows);
    }
    let is_class = |class: u32| class < row_count;
    // No bit beyond the rules.
    let last = view.rows(Section::FilterRows).skip(words as usize - 1).step_by(words as usize);
    for row in last {
        let beyond = if rules % 64 == 0 && rules > 0 { 0 } else { u64::MAX << (rules % 64) };
        if view.u64(view.at(Section::FilterRows, row)) & beyond != 0 {
            return Err(ImageError::Row { section: Section::FilterRows, row });
        }
    }
    let direct = view.at(Section::FilterDirect, 0);
    let end = u64::from(direct) + u64::from(view.count(Section::FilterDirect)) * 4;
    for table in FilterTable::ALL {
        let (at, bits) = (view.u32(head + table.at()), view.u32(head + table.at() + FILTER_TABLE_BITS));
        if !matches!(bits, 6 | 12 | 18) || at < direct || at % 4 != 0 || u64::from(at) + (4u64 << bits) > end {
            return damaged(Section::FilterHead);
        }
    }
    let [blocks, palettes, nodes] =
        [Section::FilterBlocks, Section::FilterPalettes, Section::FilterNodes].map(|section| view.count(section));
    rows(view, Section::FilterDirect, |at| is_direct_entry(view.u32(at), blocks, palettes, nodes))?;
    rows(view, Section::FilterPalettes, |at| (0..256).all(|colour| is_class(view.u16(at + colour * 2).into())))?;
    trie(view, Section::FilterNodes, Section::FilterLeaves, |class| is_class(class.into()))?;
    let classes = view.count(Section::FilterClasses);
    if classes < FILTER_PAGES || !(classes - FILTER_PAGES).is_multiple_of(256) {
        return damaged(Section::FilterClasses);
    }
    let pages = (classes - FILTER_PAGES) / 256;
    for row in 0..classes {
        let number = u32::from(view.bytes.u16(view.at(Section::FilterClasses, row)).unwrap_or_default());
        let holds = if (FILTER_SOURCE_PAGES..FILTER_PAGES).contains(&row) { number < pages } else { is_class(number) };
        if !holds {
            return Err(ImageError::Row { section: Section::FilterClasses, row });
        }
    }
    const { assert!(FILTER_PROTOCOLS < FILTER_FLAGS && FILTER_FLAGS < FILTER_NO_PORTS) };
    Ok(())
}
