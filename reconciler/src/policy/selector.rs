//! Which nodes a document is for.

use std::collections::BTreeMap;

/// Labels that a node must have, with their values; none: every node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector(BTreeMap<String, String>);

impl Selector {
    pub fn new(labels: BTreeMap<String, String>) -> Self {
        Self(labels)
    }

    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// Whether a node with `labels` is meant.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// Whether one node can be meant by both: no label is asked to have two values.
    pub fn can_meet(&self, other: &Self) -> bool {
        self.0.iter().all(|(key, value)| other.0.get(key).is_none_or(|theirs| theirs == value))
    }

    /// Whether every node that `other` means is meant, too.
    pub fn includes(&self, other: &Self) -> bool {
        self.matches(&other.0)
    }
}

/// `site=ams, role=edge`; `all` for every node.
impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("all");
        }
        for (i, (key, value)) in self.0.iter().enumerate() {
            write!(f, "{}{key}={value}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        text.split(' ').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    #[test]
    fn labels_are_asked_for_all_at_once() {
        let check = |selector: &str, node: &str, expected: bool| {
            assert_eq!(Selector::new(labels(selector)).matches(&labels(node)), expected, "{selector} on {node}");
        };
        check("", "", true);
        check("", "site=ams", true);
        check("site=ams", "", false);
        check("site=ams", "site=ams role=edge", true);
        check("site=ams role=edge", "site=ams", false);
        check("site=ams", "site=fra", false);
    }

    #[test]
    fn two_selectors_meet_unless_a_label_would_need_two_values() {
        let check = |a: &str, b: &str, meet: bool, includes: bool| {
            let (a, b) = (Selector::new(labels(a)), Selector::new(labels(b)));
            assert_eq!((a.can_meet(&b), b.can_meet(&a), a.includes(&b)), (meet, meet, includes), "{a} and {b}");
        };
        check("", "site=ams", true, true);
        check("site=ams", "", true, false);
        check("site=ams", "role=edge", true, false);
        check("site=ams", "site=fra", false, false);
        check("site=ams", "site=ams role=edge", true, true);
    }
}
