//! Filter policies and their rules as a plan compares them.

use std::collections::{HashMap, HashSet};

use super::{Named, sorted};
use crate::compile::view::View;
use crate::policy::FilterAction;

pub(super) fn policies(view: &View) -> Vec<Named> {
    let words = |default: Option<FilterAction>| match default {
        None => "no default",
        Some(FilterAction::Allow) => "default allow",
        Some(FilterAction::Deny) => "default deny",
    };
    let named = |policy: crate::compile::view::FilterPolicyView| Named {
        name: policy.name.to_owned(),
        text: words(policy.default).to_owned(),
        place: Some((policy.file.to_owned(), policy.line)),
    };
    sorted(view.filter_policies().map(named).collect())
}

/// The rules of both sides. One that stands elsewhere among those that stay says so: what decides first is part of what
/// a rule does. As few as possible are said to have moved.
pub(super) fn rules(before: Option<&View>, after: &View) -> (Option<Vec<Named>>, Vec<Named>) {
    let name = |rule: &crate::compile::view::FilterRuleView| format!("{}/{}", rule.policy, rule.name);
    let names = |view: &View| view.filter_rules().map(|rule| name(&rule)).collect::<Vec<_>>();
    let (old, new) = (before.map(names).unwrap_or_default(), names(after));
    let place: HashMap<&str, usize> = new.iter().map(String::as_str).zip(0..).collect();
    let common: Vec<(&str, usize)> =
        old.iter().filter_map(|name| place.get(name.as_str()).map(|at| (name.as_str(), *at))).collect();
    let moved = moved(&common);
    let named = |view: &View| {
        let of = |(rule, number): (crate::compile::view::FilterRuleView, usize)| {
            let name = name(&rule);
            let text = if moved.contains(name.as_str()) {
                format!("{} (rule {number})", rule.meaning)
            } else {
                rule.meaning.to_owned()
            };
            Named { name, text, place: Some((rule.file.to_owned(), rule.line)) }
        };
        sorted(view.filter_rules().zip(1..).map(of).collect())
    };
    (before.map(named), named(after))
}

/// Those that are not part of a longest run whose places ascend.
fn moved<'n>(common: &[(&'n str, usize)]) -> HashSet<&'n str> {
    // For each length the run of that length which ends lowest, by its last element; and the element before each.
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = Vec::new();
    for (at, (_, place)) in common.iter().enumerate() {
        let length = ends.partition_point(|&end| common[end].1 < *place);
        before.push(length.checked_sub(1).map(|shorter| ends[shorter]));
        if length == ends.len() { ends.push(at) } else { ends[length] = at }
    }
    let mut stays = HashSet::new();
    let mut next = ends.last().copied();
    while let Some(at) = next {
        stays.insert(common[at].0);
        next = before[at];
    }
    common.iter().map(|(name, _)| *name).filter(|name| !stays.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_rules_are_said_to_have_moved() {
        let check = |places: &[usize], expected: &[&str]| {
            let names = ["a", "b", "c", "d", "e"];
            let common: Vec<(&str, usize)> = names.into_iter().zip(places.iter().copied()).collect();
            let mut found: Vec<&str> = moved(&common).into_iter().collect();
            found.sort_unstable();
            assert_eq!(found, expected, "{places:?}");
        };
        check(&[0, 1, 2, 3, 4], &[]);
        check(&[4, 0, 1, 2, 3], &["a"]);
        check(&[1, 2, 3, 4, 0], &["e"]);
        check(&[0, 7, 9, 11], &[]);
        check(&[1, 0], &["a"]);
        check(&[], &[]);
    }
}
