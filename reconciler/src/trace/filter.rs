//! What the filter stage says of a packet, and which rule says so.

use std::fmt;

use fib::Packet as _;
use fib::filter::{NO_RULE, find, has_filters, see};
use fib::layout::Section;
use fib::packet::link;
use serde_json::{Value, json};

use super::TraceNode;
use crate::compile::view::{FilterRuleView, View};
use crate::policy::FilterAction;

/// The filter's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtered<'a> {
    /// The first rule that matches. One with a rate limit allows the packet as far as a trace can tell: buckets are the
    /// kernel's.
    Rule(FilterRuleView<'a>),
    /// No rule matches: the default decides.
    Default(FilterAction),
    /// The image has no filters, or the packet is none for them.
    None,
}

impl<'a> Filtered<'a> {
    pub(super) fn of(view: &View<'a>, frame: &[u8], node: &impl TraceNode) -> Self {
        let seen = || {
            let link = link(frame).ok()?;
            let ingress = node.ingress(link.tags)?;
            let seen = see(&frame.after(link.tag_bytes), link.ethertype)?;
            find(view.bytes(), &seen, ingress.port)
        };
        match has_filters(view.bytes()).then(seen).flatten() {
            Some(NO_RULE) => Self::Default(view.filter_default()),
            Some(row) if row < view.count(Section::FilterRules) => Self::Rule(view.filter_rule(row)),
            // Refused by the checks of the image: no row has a bit beyond the rules.
            None | Some(_) => Self::None,
        }
    }

    pub fn rule(&self) -> Option<FilterRuleView<'a>> {
        match self {
            Self::Rule(rule) => Some(*rule),
            Self::Default(_) | Self::None => None,
        }
    }

    pub(super) fn json(&self) -> Value {
        match self {
            Self::None => Value::Null,
            Self::Default(default) => json!({"rule": null, "default": word(*default)}),
            Self::Rule(rule) => json!({
                "rule": format!("{}/{}", rule.policy, rule.name), "policy": rule.policy, "meaning": rule.meaning,
                "file": rule.file, "line": rule.line, "subject_to_limit": rule.is_limit,
            }),
        }
    }
}

fn word(action: FilterAction) -> &'static str {
    match action {
        FilterAction::Allow => "allow",
        FilterAction::Deny => "deny",
    }
}

/// The stage's line in a trace; empty where there is no filter.
impl fmt::Display for Filtered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Default(default) => writeln!(f, "filter    no rule matches, default {}", word(*default)),
            Self::Rule(rule) => {
                let limit = if rule.is_limit { "; allowed here, subject to that limit" } else { "" };
                writeln!(
                    f,
                    "filter    {}/{}: {}{limit}  [{}:{}]",
                    rule.policy, rule.name, rule.meaning, rule.file, rule.line
                )
            }
        }
    }
}
