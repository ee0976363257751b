//! Saved plans: the plan's JSON with what it was made for, so that an apply can tell whether it still holds.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::beside::Beside;
use crate::cli::Global;
use crate::cli::offline::Named;
use crate::cli::source::Revision;
use crate::daemon::apply::Proposal;
use crate::daemon::node::{Node, unix_ms};
use crate::daemon::time::rfc3339;
use crate::plan::{Plan, Side};

/// A plan that was saved with `--out`.
pub(crate) struct Saved {
    pub(crate) plan: Plan,
    pub(super) beside: Beside,
}

pub(crate) fn read(path: &Path) -> anyhow::Result<Saved> {
    let bytes = std::fs::read(path).with_context(|| format!("the plan `{}` cannot be read", path.display()))?;
    let not_a_plan = || format!("`{}` is not a plan that this version of wayleave reads", path.display());
    let json: Value = serde_json::from_slice(&bytes).with_context(not_a_plan)?;
    let plan = Plan::from_json(&json).with_context(not_a_plan)?;
    let Value::Object(entries) = json else { bail!(not_a_plan()) };
    Ok(Saved { plan, beside: Beside::of_json(entries) })
}

/// What a plan of this node is made for.
pub(super) fn made_for(global: &Global, node: &Node, named: &Named) -> anyhow::Result<Value> {
    Ok(json!({"node": node.config.name, "config_digest": config_digest(global)?, "source": named.source,
        "ref": named.revision.rev, "subpath": named.revision.subpath, "repo": named.repo, "time": rfc3339(unix_ms())}))
}

fn config_digest(global: &Global) -> anyhow::Result<String> {
    let path = global.config_path();
    let bytes = std::fs::read(path).with_context(|| format!("`{}` cannot be read", path.display()))?;
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

impl Saved {
    /// The source that the plan was made from; the node's own, unless another one was named.
    pub(crate) fn source(&self) -> Named {
        let text = |key: &str| self.beside.get("made_for")[key].as_str().map(str::to_owned);
        Named {
            source: text("source").map(PathBuf::from),
            revision: Revision { rev: text("ref"), subpath: text("subpath") },
            repo: text("repo").map(PathBuf::from),
        }
    }

    /// Why the plan is not for this node as it is configured now.
    pub(crate) fn not_for(&self, global: &Global, node: &Node) -> anyhow::Result<Option<String>> {
        let made_for = self.beside.get("made_for");
        let Some(name) = made_for["node"].as_str() else {
            return Ok(Some(
                "it compares two sources; make one with `wayleave plan --out FILE` on the node".to_owned(),
            ));
        };
        if name != node.config.name {
            return Ok(Some(format!("it was made for the node {name}, this is {}", node.config.name)));
        }
        let same = made_for["config_digest"].as_str() == Some(config_digest(global)?.as_str());
        Ok((!same).then(|| "the node's configuration is another one now".to_owned()))
    }

    /// Why what the node would do now is not what was planned.
    pub(crate) fn differs_from(&self, now: &Proposal) -> Option<String> {
        let (was, is) = (self.plan.from(), now.plan.from());
        let number = |side: Option<&Side>| side.map_or(0, |side| side.generation);
        if number(was) != number(is) {
            let words = |number: u64| match number {
                0 => "no generation".to_owned(),
                number => format!("generation {number}"),
            };
            return Some(format!("{} was live then, {} is now", words(number(was)), words(number(is))));
        }
        if was.map(|side| side.digest) != is.map(|side| side.digest) {
            return Some(format!("the rules of generation {} are other ones now", number(is)));
        }
        let (was, is) = (self.plan.to(), now.plan.to());
        if was.digest == is.digest {
            return None;
        }
        Some(if was.revision == is.revision {
            "the same source makes other rules now: addresses of the node have changed".to_owned()
        } else {
            format!("the source was {} then and is {} now", was.revision, is.revision)
        })
    }
}
