//! Plan: the ordered, printable list of what publishing the desired image changes.
//!
//! `(observed, desired) -> Plan`. Pure; a [`Plan`] can only be made here and never changes afterwards. It names the
//! generation it was made against, so that it can be refused when another one is live.

mod effect;
mod filter;
mod meaning;
mod render;
mod saved;
mod service;

use std::cmp::Ordering;
use std::fmt;
use std::iter::Peekable;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::compile::view::{Digest, RouteView, View};
use crate::policy::{OnAllDown, Prefix};
pub use effect::{Count, Effect};
use meaning::Meanings;

/// Between a route's next hops and what happens when all of them are down.
const ON_ALL_DOWN: &str = ", on-all-down ";

/// What happens to one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    Add,
    Change,
    Remove,
}

/// What kind of object changes; in the order in which plans list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    Policy,
    Port,
    NextHop,
    Local,
    Tunnel,
    FilterPolicy,
    FilterRule,
    Route,
    Service,
    Backend,
}

/// The name of what changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// Of a policy, port, next hop (`policy/name`), filter rule (likewise) or local address.
    Name(String),
    Prefix(Prefix),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Prefix(prefix) => fmt::Display::fmt(prefix, f),
        }
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub action: Action,
    pub kind: Kind,
    pub key: Key,
    /// What it was, in words; `None` when it is added.
    pub before: Option<Arc<str>>,
    /// What it becomes; `None` when it is removed.
    pub after: Option<Arc<str>>,
    /// Where it is written (was, when it is removed); `None` for what no file says.
    pub place: Option<(Arc<str>, u32)>,
}

/// How many objects change and how many stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    pub add: usize,
    pub change: usize,
    pub remove: usize,
    pub unchanged: usize,
}

/// The image on one side of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// 0 for an image that was never staged.
    pub generation: u64,
    pub revision: String,
    pub digest: Digest,
}

/// What publishing changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    from: Option<Side>,
    to: Side,
    changes: Vec<Change>,
    summary: Summary,
    effect: Effect,
}

impl Plan {
    /// Compares what was read back (`None`: nothing is published) with what should be.
    pub fn between(observed: Option<&View>, desired: &View) -> Self {
        let mut meanings = Meanings::default();
        let before = observed.map(|view| meanings.read(view));
        let after = meanings.read(desired);
        let mut changes = Changes::default();

        changes.named(Kind::Policy, observed.map(policies), policies(desired));
        changes.named(Kind::Port, observed.map(ports), ports(desired));
        changes.named(Kind::NextHop, observed.map(next_hops), next_hops(desired));
        changes.named(Kind::Local, observed.map(locals), locals(desired));
        changes.named(Kind::Tunnel, observed.map(tunnels), tunnels(desired));
        changes.named(Kind::FilterPolicy, observed.map(filter::policies), filter::policies(desired));
        let (before_rules, after_rules) = filter::rules(observed, desired);
        changes.named(Kind::FilterRule, before_rules, after_rules);
        let sides = Sides { before: before.as_deref().unwrap_or_default(), after: &after };
        changes.routes(&sides, observed.into_iter().flat_map(View::routes_v4), desired.routes_v4());
        changes.routes(&sides, observed.into_iter().flat_map(View::routes_v6), desired.routes_v6());

        changes.named(
            Kind::Service,
            observed.map(|view| service::services(view, None)),
            service::services(desired, observed),
        );
        changes.named(Kind::Backend, observed.map(service::backends), service::backends(desired));

        let effect = effect::between(observed.map(|view| (view, sides.before)), (desired, sides.after));
        let Changes { list, summary, .. } = changes;
        Self { from: observed.map(side), to: side(desired), changes: list, summary, effect }
    }

    /// The generation that the plan was made against; 0: none was live.
    pub fn parent(&self) -> u64 {
        self.from.as_ref().map_or(0, |from| from.generation)
    }

    pub fn from(&self) -> Option<&Side> {
        self.from.as_ref()
    }

    pub fn to(&self) -> &Side {
        &self.to
    }

    /// Sorted by kind, then name or prefix.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    pub fn summary(&self) -> Summary {
        self.summary
    }

    pub fn effect(&self) -> &Effect {
        &self.effect
    }

    /// Whether nothing changes for any object; the digests may still differ, when only files and lines moved.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

fn side(view: &View) -> Side {
    Side { generation: view.generation(), revision: view.revision().to_owned(), digest: view.digest() }
}

/// A named object of one side, ready to compare.
struct Named {
    name: String,
    text: String,
    place: Option<(String, u32)>,
}

fn policies(view: &View) -> Vec<Named> {
    let named = |p: crate::compile::view::PolicyView| Named {
        name: p.name.to_owned(),
        text: "routes".to_owned(),
        place: Some((p.file.to_owned(), p.line)),
    };
    sorted(view.policies().map(named).collect())
}

fn ports(view: &View) -> Vec<Named> {
    let named =
        |p: crate::compile::view::PortView| Named { name: p.name.to_owned(), text: "port".to_owned(), place: None };
    sorted(view.ports().map(named).collect())
}

fn next_hops(view: &View) -> Vec<Named> {
    let named = |hop: crate::compile::view::NextHopView| Named {
        name: format!("{}/{}", hop.policy, hop.name),
        text: format!("{} port {}", hop.via, hop.port),
        place: Some((hop.file.to_owned(), hop.line)),
    };
    sorted(view.next_hops().map(named).collect())
}

fn locals(view: &View) -> Vec<Named> {
    let named = |address: IpAddr| Named { name: address.to_string(), text: "local".to_owned(), place: None };
    sorted(view.locals().map(named).collect())
}

/// The node's ends of tunnels.
fn tunnels(view: &View) -> Vec<Named> {
    let any = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
    let sources =
        any.into_iter().filter_map(|family| view.tunnel_source(family)).map(|source| format!("source {source}"));
    let decapsulated = view.decapsulation().into_iter().map(|what| format!("decapsulate {what}"));
    let named = |name| Named { name, text: "tunnel".to_owned(), place: None };
    sorted(sources.chain(decapsulated).map(named).collect())
}

fn sorted(mut list: Vec<Named>) -> Vec<Named> {
    list.sort_by(|a, b| a.name.cmp(&b.name));
    list
}

/// The meaning of every target, on both sides.
struct Sides<'m> {
    before: &'m [meaning::Meaning],
    after: &'m [meaning::Meaning],
}

#[derive(Default)]
struct Changes {
    list: Vec<Change>,
    summary: Summary,
    /// The file named last: neighbours in a list are mostly of one file.
    file: Option<Arc<str>>,
}

impl Changes {
    fn named(&mut self, kind: Kind, before: Option<Vec<Named>>, after: Vec<Named>) {
        let place = |named: &Named| named.place.clone().map(|(file, line)| (file.into(), line));
        merge(
            before.unwrap_or_default().into_iter(),
            after.into_iter(),
            |a, b| a.name.cmp(&b.name),
            |a, b| {
                let text = |side: &Option<Named>| side.as_ref().map(|named| Arc::from(named.text.as_str()));
                let (before, after) = (text(&a), text(&b));
                if let Some(named) = b.or(a) {
                    let place = place(&named);
                    self.add(kind, Key::Name(named.name), before, after, place);
                }
            },
        );
    }

    fn routes<'a>(
        &mut self,
        sides: &Sides,
        before: impl Iterator<Item = RouteView<'a>>,
        after: impl Iterator<Item = RouteView<'a>>,
    ) {
        merge(
            before,
            after,
            |a, b| a.prefix.cmp(&b.prefix),
            |a, b| {
                let was = a.and_then(|route| sides.before.get(usize::from(route.target)));
                let becomes = b.and_then(|route| sides.after.get(usize::from(route.target)));
                if let (Some(was), Some(becomes)) = (was, becomes)
                    && was.identity == becomes.identity
                {
                    self.summary.unchanged += 1;
                    return;
                }
                // The default is worth a word only where it changes.
                let on_all_down = |side: Option<&meaning::Meaning>| side.and_then(|meaning| meaning.on_all_down);
                let (a_down, b_down) = (on_all_down(was), on_all_down(becomes));
                let turns = a_down.is_some() && b_down.is_some() && a_down != b_down;
                // Words that are equal mean another policy's objects of the same name: then the policy tells them apart.
                let alike = !turns && matches!((was, becomes), (Some(was), Some(becomes)) if was.text == becomes.text);
                let text = |meaning: &meaning::Meaning, route: Option<RouteView>| match route {
                    Some(route) if alike => Arc::from(format!("{} (policy {})", meaning.text, route.policy)),
                    _ => match meaning.on_all_down {
                        Some(down) if turns || down == OnAllDown::Drop => {
                            Arc::from(format!("{}{ON_ALL_DOWN}{}", meaning.text, down.as_str()))
                        }
                        _ => Arc::clone(&meaning.text),
                    },
                };
                let (was, becomes) = (was.map(|m| text(m, a)), becomes.map(|m| text(m, b)));
                if let Some(route) = b.or(a) {
                    let place = Some((self.file(route.file), route.line));
                    self.add(Kind::Route, Key::Prefix(route.prefix), was, becomes, place);
                }
            },
        );
    }

    fn add(
        &mut self,
        kind: Kind,
        key: Key,
        before: Option<Arc<str>>,
        after: Option<Arc<str>>,
        place: Option<(Arc<str>, u32)>,
    ) {
        let (action, count) = match (&before, &after) {
            (None, _) => (Action::Add, &mut self.summary.add),
            (_, None) => (Action::Remove, &mut self.summary.remove),
            (Some(before), Some(after)) if before != after => (Action::Change, &mut self.summary.change),
            _ => {
                self.summary.unchanged += 1;
                return;
            }
        };
        *count += 1;
        self.list.push(Change { action, kind, key, before, after, place });
    }

    fn file(&mut self, name: &str) -> Arc<str> {
        match &self.file {
            Some(file) if **file == *name => Arc::clone(file),
            _ => Arc::clone(self.file.insert(name.into())),
        }
    }
}

/// Walks two sorted lists together; `each` gets what is on the left, on the right, or on both sides.
fn merge<T>(
    left: impl Iterator<Item = T>,
    right: impl Iterator<Item = T>,
    compare: impl Fn(&T, &T) -> Ordering,
    mut each: impl FnMut(Option<T>, Option<T>),
) {
    let (mut left, mut right): (Peekable<_>, Peekable<_>) = (left.peekable(), right.peekable());
    loop {
        let order = match (left.peek(), right.peek()) {
            (Some(a), Some(b)) => compare(a, b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return,
        };
        let a = if order.is_le() { left.next() } else { None };
        let b = if order.is_ge() { right.next() } else { None };
        each(a, b);
    }
}

#[cfg(test)]
mod tests;
