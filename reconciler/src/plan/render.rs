//! A plan as people read it, and as programs do.

use std::fmt::{self, Write as _};
use std::io;

use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

use super::{Action, Change, Count, Effect, Kind, ON_ALL_DOWN, Plan, Summary};

/// Changes listed in the human form before the rest folds into a count.
const CHANGES_SHOWN_MAX: usize = 200;
pub(super) const FORMAT_VERSION: u32 = 1;
/// All IPv6 addresses.
pub(super) const TWO_TO_THE_128: &str = "340282366920938463463374607431768211456";

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return match &self.from {
                Some(from) if from.generation == 0 && from.digest == self.to.digest => {
                    writeln!(f, "No changes. Both sides carry the same rules.")
                }
                Some(from) if from.generation == 0 => {
                    writeln!(f, "No changes. Every packet meets the same rules; only their files or lines differ.")
                }
                Some(from) if from.digest == self.to.digest => {
                    writeln!(f, "No changes. Generation {} already carries these rules.", from.generation)
                }
                Some(from) => writeln!(
                    f,
                    "No changes. Every packet meets the same rules as in generation {}; only their files or lines differ.",
                    from.generation
                ),
                None => writeln!(f, "No changes. Nothing is published, and there is nothing to publish."),
            };
        }
        for change in self.changes.iter().take(CHANGES_SHOWN_MAX) {
            writeln!(f, "{change}")?;
        }
        if let Some(folded) = self.changes.len().checked_sub(CHANGES_SHOWN_MAX).filter(|&folded| folded > 0) {
            writeln!(f, "… and {} more changes; --format json lists all", grouped(folded as u128))?;
        }
        writeln!(f)?;
        for (i, line) in self.effect_lines().into_iter().enumerate() {
            writeln!(f, "{} {line}", if i == 0 { "Effect:" } else { "       " })?;
        }
        writeln!(f, "{}", self.summary_line())
    }
}

impl Plan {
    /// What changes for packets, in two sentences or three.
    pub fn effect_lines(&self) -> Vec<String> {
        let Effect { ipv4_addresses, ipv6_prefixes, ipv6_addresses } = self.effect;
        let mut lines = vec![
            effect_words("IPv4 address", "IPv4 addresses", ipv4_addresses),
            effect_words("IPv6 /64", "IPv6 /64s", ipv6_prefixes),
        ];
        let filters = self.changes.iter().filter(|c| matches!(c.kind, Kind::FilterPolicy | Kind::FilterRule)).count();
        if filters > 0 {
            let word = if filters == 1 { "change of a filter" } else { "changes of filters" };
            lines.push(format!(
                "{} {word}: which packets are dropped changes, whatever their routes",
                grouped(filters as u128)
            ));
        }
        // 2^64 of them are 2^128 addresses, which are 0 here as there.
        if ipv6_prefixes.changed << 64 != ipv6_addresses.changed {
            let addresses = ipv6_addresses.changed;
            let word = if addresses == 1 { "address" } else { "addresses" };
            lines.push(format!("not all of them whole: {} IPv6 {word}", grouped(addresses)));
        }
        lines
    }

    /// `Plan: 1 to add, 2 to change, 3 to remove.`
    pub fn summary_line(&self) -> String {
        let Summary { add, change, remove, .. } = self.summary;
        format!("Plan: {add} to add, {change} to change, {remove} to remove.")
    }
}

/// One change in one line, as `~ route 10.0.0.0/8: drop → pass  [offices.yaml:7]`.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&line(self))
    }
}

fn line(change: &Change) -> String {
    let sign = match change.action {
        Action::Add => '+',
        Action::Change => '~',
        Action::Remove => '-',
    };
    let kind = match change.kind {
        Kind::Policy => "policy",
        Kind::Port => "port",
        Kind::NextHop => "next hop",
        Kind::Local => "local address",
        Kind::Tunnel => "tunnel",
        Kind::FilterPolicy => "filter policy",
        Kind::FilterRule => "filter rule",
        Kind::Route => "route",
        Kind::Service => "service",
        Kind::Backend => "backend",
    };
    let mut text = format!("{sign} {kind} {}", change.key);
    let words = match (&change.before, &change.after) {
        (Some(before), Some(after)) => match (before.split_once(ON_ALL_DOWN), after.split_once(ON_ALL_DOWN)) {
            // The next hops stay, and need no second mention.
            (Some((hops, was)), Some((same, becomes))) if hops == same && was != becomes => {
                format!(": {hops}{ON_ALL_DOWN}{was} → {becomes}")
            }
            _ => format!(": {before} → {after}"),
        },
        // What only exists says nothing more than its name.
        _ if matches!(change.kind, Kind::Policy | Kind::Port | Kind::Local | Kind::Tunnel) => String::new(),
        (Some(only), None) | (None, Some(only)) => format!(": {only}"),
        (None, None) => String::new(),
    };
    text.push_str(&words);
    if let Some((file, line)) = &change.place {
        let _ = write!(text, "  [{file}:{line}]");
    }
    text
}

fn effect_words(one: &str, many: &str, count: Count) -> String {
    let Count { changed, gained, lost, dropped, rerouted } = count;
    let unit = if changed == 1 { one } else { many };
    if changed == 0 {
        return format!("no {one} changes");
    }
    let ways =
        [(gained, "gain a route"), (lost, "lose their route"), (dropped, "become dropped"), (rerouted, "go elsewhere")];
    let ways = ways.iter().filter(|(n, _)| *n > 0).map(|(n, way)| format!("{} {way}", grouped(*n)));
    format!("{} {unit} change: {}", grouped(changed), ways.collect::<Vec<_>>().join(", "))
}

/// `1234567` as `1,234,567`.
fn grouped(number: u128) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl Plan {
    /// Writes the plan as one JSON document, change by change: a plan of a million changes needs no second copy.
    pub fn write_json(&self, to: impl io::Write) -> serde_json::Result<()> {
        self.write_json_with(&serde_json::Map::new(), to)
    }

    /// As [`Self::write_json`], with the entries of `beside` at its end, which are no part of the plan.
    pub fn write_json_with(
        &self,
        beside: &serde_json::Map<String, serde_json::Value>,
        to: impl io::Write,
    ) -> serde_json::Result<()> {
        let side = |side: &super::Side| SideJson {
            generation: (side.generation != 0).then_some(side.generation),
            revision: side.revision.clone(),
            digest: side.digest.to_string(),
        };
        let document = PlanJson {
            format_version: FORMAT_VERSION,
            from: self.from.as_ref().map(side),
            to: side(&self.to),
            changes: ChangesJson(&self.changes),
            summary: self.summary,
            effect: (&self.effect).into(),
            beside,
        };
        serde_json::to_writer(to, &document)
    }
}

#[derive(Serialize)]
struct PlanJson<'p> {
    format_version: u32,
    from: Option<SideJson>,
    to: SideJson,
    changes: ChangesJson<'p>,
    summary: Summary,
    effect: EffectJson,
    #[serde(flatten)]
    beside: &'p serde_json::Map<String, serde_json::Value>,
}

#[derive(Serialize)]
struct SideJson {
    generation: Option<u64>,
    revision: String,
    digest: String,
}

struct ChangesJson<'p>(&'p [Change]);

impl Serialize for ChangesJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for change in self.0 {
            list.serialize_element(&ChangeJson {
                action: change.action,
                kind: change.kind,
                key: change.key.to_string(),
                before: change.before.as_deref(),
                after: change.after.as_deref(),
                file: change.place.as_ref().map(|(file, _)| &**file),
                line: change.place.as_ref().map(|(_, line)| *line),
            })?;
        }
        list.end()
    }
}

#[derive(Serialize)]
struct ChangeJson<'p> {
    action: Action,
    kind: Kind,
    key: String,
    before: Option<&'p str>,
    after: Option<&'p str>,
    file: Option<&'p str>,
    line: Option<u32>,
}

/// Numbers may exceed 2^53: read them as 64-bit integers (2^64 at most). IPv6 addresses are digits in quotes, up to 2^128.
#[derive(Serialize)]
struct EffectJson {
    ipv4_addresses_changed: u128,
    ipv4_addresses_gained: u128,
    ipv4_addresses_lost: u128,
    ipv4_addresses_dropped: u128,
    ipv4_addresses_rerouted: u128,
    ipv6_prefixes_changed: u128,
    ipv6_prefixes_gained: u128,
    ipv6_prefixes_lost: u128,
    ipv6_prefixes_dropped: u128,
    ipv6_prefixes_rerouted: u128,
    ipv6_addresses_changed: String,
    ipv6_addresses_gained: String,
    ipv6_addresses_lost: String,
    ipv6_addresses_dropped: String,
    ipv6_addresses_rerouted: String,
}

impl From<&Effect> for EffectJson {
    fn from(effect: &Effect) -> Self {
        let Effect { ipv4_addresses: v4, ipv6_prefixes: v6, ipv6_addresses: single } = effect;
        let digits = |addresses: u128, prefixes: u128| match (addresses, prefixes) {
            (0, 1..) => TWO_TO_THE_128.to_owned(),
            _ => addresses.to_string(),
        };
        Self {
            ipv4_addresses_changed: v4.changed,
            ipv4_addresses_gained: v4.gained,
            ipv4_addresses_lost: v4.lost,
            ipv4_addresses_dropped: v4.dropped,
            ipv4_addresses_rerouted: v4.rerouted,
            ipv6_prefixes_changed: v6.changed,
            ipv6_prefixes_gained: v6.gained,
            ipv6_prefixes_lost: v6.lost,
            ipv6_prefixes_dropped: v6.dropped,
            ipv6_prefixes_rerouted: v6.rerouted,
            ipv6_addresses_changed: digits(single.changed, v6.changed),
            ipv6_addresses_gained: digits(single.gained, v6.gained),
            ipv6_addresses_lost: digits(single.lost, v6.lost),
            ipv6_addresses_dropped: digits(single.dropped, v6.dropped),
            ipv6_addresses_rerouted: digits(single.rerouted, v6.rerouted),
        }
    }
}
