//! Guards: what an apply refuses until somebody says that it is meant.
//!
//! `(plan, both images, limits) -> refusals`. Pure. Plans are never refused, and neither is a rollback: they only say what
//! an apply would say.

use std::collections::BTreeSet;
use std::fmt;

use fib::layout::Section;
use serde_json::{Value, json};

use crate::compile::View;
use crate::plan::{Action, Change, Key, Kind, Plan};
use crate::policy::{Guard, Guards, Prefix};

/// Fewer removed routes than this are never too large a share: of small sets any change is a large part.
pub const REMOVED_FLOOR: usize = 10;
/// Routes that a refusal names.
const NAMED_MAX: usize = 5;

impl Guard {
    pub const ALL: [Self; 4] = [Self::Removals, Self::Empty, Self::DefaultRoute, Self::Management];

    /// As options, commit trailers and configurations write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Removals => "removals",
            Self::Empty => "empty",
            Self::DefaultRoute => "default-route",
            Self::Management => "management",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|guard| guard.name() == name)
    }
}

/// The guards that a commit message allows: its `Wayleave-Allow: removals, empty` trailers. Words that are no guards are
/// left out.
pub fn allowed_by_message(message: &str) -> BTreeSet<Guard> {
    let trailer = |line: &str| {
        let (key, value) = line.split_once(':')?;
        key.trim().eq_ignore_ascii_case("wayleave-allow").then(|| value.to_owned())
    };
    // Trailers are the last paragraph; a line quoted above it allows nothing.
    let last = message.trim_end().rsplit("\n\n").next().unwrap_or_default();
    last.lines()
        .filter_map(trailer)
        .flat_map(|value| {
            let words: Vec<_> = value.split([',', ' ']).filter_map(Guard::from_name).collect();
            words
        })
        .collect()
}

/// One guard's refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub guard: Guard,
    pub message: String,
    /// The first routes that it is about: prefix, and where it is (was, when it is removed) written.
    pub routes: Vec<(String, Option<(String, u32)>)>,
    /// How many routes more.
    pub more: usize,
}

impl Refusal {
    fn new(guard: Guard, message: String, changes: &[&Change]) -> Self {
        let place = |change: &&Change| {
            let place = change.place.as_ref().map(|(file, line)| (file.to_string(), *line));
            (change.key.to_string(), place)
        };
        Self {
            guard,
            message,
            routes: changes.iter().take(NAMED_MAX).map(place).collect(),
            more: changes.len().saturating_sub(NAMED_MAX),
        }
    }

    pub fn to_json(&self) -> Value {
        let routes: Vec<Value> = self
            .routes
            .iter()
            .map(|(prefix, place)| {
                let place = place.as_ref();
                json!({"prefix": prefix, "file": place.map(|(file, _)| file), "line": place.map(|(_, line)| line)})
            })
            .collect();
        json!({"guard": self.guard.name(), "message": self.message, "routes": routes, "more": self.more, "help": self.help()})
    }

    /// How to say that it is meant.
    pub fn help(&self) -> String {
        let name = self.guard.name();
        format!(
            "if this is meant: `wayleave apply --allow {name}`, the trailer `Wayleave-Allow: {name}` in the commit, or \
             `guards: {{allow: [{name}]}}` in the node's configuration"
        )
    }
}

/// Several lines: what, the first routes, and how to allow it.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.guard.name(), self.message)?;
        for (prefix, place) in &self.routes {
            write!(f, "\n    {prefix}")?;
            if let Some((file, line)) = place {
                write!(f, "  [{file}:{line}]")?;
            }
        }
        if self.more > 0 {
            write!(f, "\n    … and {} more", self.more)?;
        }
        write!(f, "\n  {}", self.help())
    }
}

/// What the guards say of `plan`, which leads from `before` (`None`: nothing is live) to `after`.
///
/// `management` are prefixes that the node is managed through, beside those of `guards`. `allowed` are the guards that this
/// apply goes past. Where nothing is live there is nothing to lose, so only [`Guard::Management`] is asked.
pub fn check(
    plan: &Plan,
    before: Option<&View<'_>>,
    after: &View<'_>,
    management: &[Prefix],
    guards: &Guards,
    allowed: &BTreeSet<Guard>,
) -> Vec<Refusal> {
    let routes: Vec<&Change> = plan.changes().iter().filter(|change| change.kind == Kind::Route).collect();
    let mut refusals = Vec::new();
    if let Some(before) = before {
        let count = |view: &View<'_>| (view.count(Section::V4Routes) + view.count(Section::V6Routes)) as usize;
        let removed: Vec<&Change> = routes.iter().copied().filter(|change| change.action == Action::Remove).collect();
        let (live, left) = (count(before), count(after));
        refusals.extend(removals(&removed, live, guards));
        if live > 0 && left == 0 {
            refusals.push(Refusal::new(Guard::Empty, format!("no route would be left; {live} are live"), &removed));
        }
        refusals.extend(default_route(&routes));
    }
    refusals.extend(covered(&routes, management.iter().chain(&guards.management)));
    refusals.retain(|refusal| !allowed.contains(&refusal.guard) && !guards.allow.contains(&refusal.guard));
    refusals
}

fn removals(removed: &[&Change], live: usize, guards: &Guards) -> Option<Refusal> {
    let count = removed.len();
    let of = format!("{count} of {live} routes would be removed");
    let message = if guards.removed_routes.is_some_and(|max| count > max) {
        format!("{of}, more than the {} that guards.removedRoutes allows", guards.removed_routes.unwrap_or_default())
    } else if count >= REMOVED_FLOOR && count * 100 > live * usize::from(guards.removed_percent) {
        format!("{of}, more than {} %", guards.removed_percent)
    } else {
        return None;
    };
    Some(Refusal::new(Guard::Removals, message, removed))
}

fn default_route(routes: &[&Change]) -> Option<Refusal> {
    let is_default = |change: &&&Change| matches!(change.key, Key::Prefix(prefix) if prefix.length() == 0);
    let touched: Vec<&Change> = routes.iter().filter(is_default).copied().collect();
    let words = |change: &Change| match (change.action, &change.before, &change.after) {
        (Action::Add, _, Some(after)) => format!("{} would be added: {after}", change.key),
        (Action::Remove, Some(before), _) => format!("{} would be removed, which is {before}", change.key),
        (_, Some(before), Some(after)) => format!("{} would change: {before} → {after}", change.key),
        _ => change.key.to_string(),
    };
    let message = touched.iter().map(|change| words(change)).collect::<Vec<_>>().join("; ");
    (!touched.is_empty()).then(|| Refusal::new(Guard::DefaultRoute, format!("the default route {message}"), &touched))
}

/// Routes that are new or do something new and overlap with `management`; a default route has a guard of its own.
fn covered<'p>(routes: &[&Change], management: impl Iterator<Item = &'p Prefix>) -> Option<Refusal> {
    let management: BTreeSet<Prefix> = management.copied().collect();
    let meets = |route: Prefix| {
        management.iter().copied().find(|managed| {
            route.length() > 0
                && (route.contains(managed.address()) && route.length() <= managed.length()
                    || managed.contains(route.address()) && managed.length() <= route.length())
        })
    };
    let mut first = None;
    let touched: Vec<&Change> = routes
        .iter()
        .copied()
        .filter(|change| match change.key {
            Key::Prefix(prefix) if change.action != Action::Remove => {
                let managed = meets(prefix);
                first = first.or(managed.map(|managed| (prefix, managed)));
                managed.is_some()
            }
            _ => false,
        })
        .collect();
    let (route, managed) = first?;
    let whole = if managed.is_ipv4() { 32 } else { 128 };
    let managed = if managed.length() == whole { managed.address().to_string() } else { managed.to_string() };
    let message = format!("the route {route} takes packets to {managed}, which this node is managed through");
    Some(Refusal::new(Guard::Management, message, &touched))
}

#[cfg(test)]
mod tests;
