//! What targets mean, comparable between images: two images number equal things differently.

use std::collections::HashMap;
use std::sync::Arc;

use fib::layout::Section;

use crate::compile::view::{MemberView, RouteAction, TargetView, View};
use crate::policy::OnAllDown;

/// What one target means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meaning {
    /// Equal for equal action, policy and members with their names, addresses, ports and weights.
    pub identity: u32,
    /// Equal for equal fate of a packet, whatever names and policy are.
    pub fate: Fate,
    /// In words, without what only `on_all_down` says.
    pub text: Arc<str>,
    /// `None` for what does not forward.
    pub on_all_down: Option<OnAllDown>,
}

/// What becomes of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    NoRoute,
    Local,
    Drop,
    Pass,
    /// Equal numbers, equal next hops and proportions.
    Forward(u32),
}

/// Numbers shared by all images of one comparison.
#[derive(Debug, Default)]
pub(super) struct Meanings {
    identities: HashMap<String, u32>,
    fates: HashMap<String, u32>,
}

impl Meanings {
    /// The meaning of every target of an image, by target index.
    pub(super) fn read(&mut self, view: &View) -> Vec<Meaning> {
        (0..view.count(Section::Targets))
            .map(|target| {
                let target = u16::try_from(target).ok().and_then(|target| view.target(target));
                let mut on_all_down = None;
                let (fate, text, policy) = match target {
                    None | Some(TargetView::None) => (Fate::NoRoute, "no route".to_owned(), ""),
                    Some(TargetView::Local) => (Fate::Local, "local".to_owned(), ""),
                    Some(TargetView::Route { action: RouteAction::Drop, policy }) => {
                        (Fate::Drop, "drop".to_owned(), policy)
                    }
                    Some(TargetView::Route { action: RouteAction::Pass, policy }) => {
                        (Fate::Pass, "pass".to_owned(), policy)
                    }
                    Some(TargetView::Route { action: RouteAction::Forward { group }, policy }) => {
                        let members: Vec<MemberView> = view.members(group).collect();
                        on_all_down = Some(view.on_all_down(group));
                        let fate = number(&mut self.fates, fate_key(&members));
                        (Fate::Forward(fate), words(&members), policy)
                    }
                };
                let identity = number(&mut self.identities, format!("{policy}\n{text}\n{on_all_down:?}"));
                Meaning { identity, fate, text: text.into(), on_all_down }
            })
            .collect()
    }
}

fn number(numbers: &mut HashMap<String, u32>, key: String) -> u32 {
    let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
    *numbers.entry(key).or_insert(next)
}

/// `edge-a ×3 via 192.0.2.1 port uplink, edge-b ×1 via …`; one member's weight says nothing and is left out.
fn words(members: &[MemberView]) -> String {
    let member = |m: &MemberView| {
        let weight = if members.len() > 1 { format!(" ×{}", m.weight) } else { String::new() };
        format!("{}{weight} via {} port {}", m.next_hop.name, m.next_hop.via, m.next_hop.port)
    };
    members.iter().map(member).collect::<Vec<_>>().join(", ")
}

/// Members by address and port, with weights reduced and added up where two names mean the same gateway.
fn fate_key(members: &[MemberView]) -> String {
    let mut weights = std::collections::BTreeMap::new();
    for m in members {
        *weights.entry((m.next_hop.via, m.next_hop.port)).or_insert(0u64) += u64::from(m.weight);
    }
    let divisor = weights.values().fold(0, |divisor, &weight| greatest_common_divisor(divisor, weight)).max(1);
    weights
        .iter()
        .map(|((via, port), weight)| format!("{via} {port} {}", weight / divisor))
        .collect::<Vec<_>>()
        .join("\n")
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
