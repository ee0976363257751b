//! A plan read back from its JSON, to be shown again where nothing else is left of it.

use serde_json::Value;

use super::{Action, Change, Count, Effect, Key, Kind, Plan, Side, Summary};
use crate::compile::view::Digest;

impl Plan {
    /// The plan that [`Plan::write_json`] wrote; `None` for anything else.
    pub fn from_json(json: &Value) -> Option<Self> {
        (json["format_version"] == super::render::FORMAT_VERSION).then_some(())?;
        let from = match &json["from"] {
            Value::Null => None,
            side => Some(read_side(side)?),
        };
        let changes = json["changes"].as_array()?.iter().map(change).collect::<Option<_>>()?;
        let number = |key: &str| usize::try_from(json["summary"][key].as_u64()?).ok();
        let summary = Summary {
            add: number("add")?,
            change: number("change")?,
            remove: number("remove")?,
            unchanged: number("unchanged")?,
        };
        let count = |of: &str| {
            let number = |way: &str| whole(&json["effect"][format!("{of}_{way}")]);
            Some(Count {
                changed: number("changed")?,
                gained: number("gained")?,
                lost: number("lost")?,
                dropped: number("dropped")?,
                rerouted: number("rerouted")?,
            })
        };
        let effect = Effect {
            ipv4_addresses: count("ipv4_addresses")?,
            ipv6_prefixes: count("ipv6_prefixes")?,
            ipv6_addresses: count("ipv6_addresses")?,
        };
        Some(Self { from, to: read_side(&json["to"])?, changes, summary, effect })
    }
}

/// A count: a number up to 2^64, which alone is too large for 64 bits, or digits; 2^128 is 0.
fn whole(value: &Value) -> Option<u128> {
    const TWO_TO_THE_64: f64 = 18_446_744_073_709_551_616.0;
    match value {
        Value::Number(number) if number.as_u64().is_none() => (number.as_f64()? >= TWO_TO_THE_64).then_some(1 << 64),
        Value::Number(number) => number.as_u64().map(u128::from),
        Value::String(digits) if digits == super::render::TWO_TO_THE_128 => Some(0),
        Value::String(digits) => digits.parse().ok(),
        _ => None,
    }
}

fn read_side(json: &Value) -> Option<Side> {
    let hex = json["digest"].as_str()?.as_bytes();
    let mut digest = [0; 32];
    if hex.len() != 64 {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    let generation = json["generation"].as_u64().unwrap_or(0);
    Some(Side { generation, revision: json["revision"].as_str()?.to_owned(), digest: Digest(digest) })
}

fn change(json: &Value) -> Option<Change> {
    let action = match json["action"].as_str()? {
        "add" => Action::Add,
        "change" => Action::Change,
        "remove" => Action::Remove,
        _ => return None,
    };
    let kind = match json["kind"].as_str()? {
        "policy" => Kind::Policy,
        "port" => Kind::Port,
        "nextHop" => Kind::NextHop,
        "local" => Kind::Local,
        "tunnel" => Kind::Tunnel,
        "filterPolicy" => Kind::FilterPolicy,
        "filterRule" => Kind::FilterRule,
        "route" => Kind::Route,
        "service" => Kind::Service,
        "backend" => Kind::Backend,
        _ => return None,
    };
    let key = json["key"].as_str()?;
    let text = |key: &str| json[key].as_str().map(Into::into);
    Some(Change {
        action,
        kind,
        key: if kind == Kind::Route { Key::Prefix(key.parse().ok()?) } else { Key::Name(key.to_owned()) },
        before: text("before"),
        after: text("after"),
        place: text("file").zip(json["line"].as_u64().and_then(|line| u32::try_from(line).ok())),
    })
}
