//! What commands on a live node share: its config, a runtime, and how their errors are shown.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::IsTerminal as _;
use std::path::Path;

use anyhow::Context as _;

use super::source::Opened;
use super::{Ended, Exit, Global, note, report};
use crate::daemon::node::{Node, NodeError};
use crate::policy::{self, Diagnostic};
use crate::reconcile::Step;
use crate::source::{Limits, ReadSource, Snapshot, SourceFile};

/// The node that the config names; a config with faults ends the command once they are shown.
pub(crate) fn load(global: &Global) -> anyhow::Result<Node> {
    load_from(global.config_path())
}

pub(crate) fn load_from(path: &Path) -> anyhow::Result<Node> {
    let text = std::fs::read(path).with_context(|| {
        format!("the node's configuration `{}` cannot be read; name one with --config", path.display())
    })?;
    match policy::node_config(&text, path) {
        Ok(config) => Ok(Node::new(config)),
        Err(diagnostics) => {
            let mut texts = report::Texts::default();
            texts.insert(path.display().to_string(), &text);
            note(report::human(&diagnostics, &texts, report::stderr_takes_colour()).trim_end());
            Err(Ended(Exit::Invalid).into())
        }
    }
}

/// Runs a future on a runtime of this thread: rtnetlink and BPF act in the namespace of the thread that calls.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime cannot be started")?;
    Ok(runtime.block_on(future))
}

/// Shows an error as its kind deserves, and says how the command ends.
pub(crate) fn fail(error: NodeError, source: &Opened) -> anyhow::Result<Exit> {
    match error {
        NodeError::Policy { diagnostics } => {
            show(&diagnostics, source);
            let (errors, _) = report::count(&diagnostics);
            let word = if errors == 1 { "error" } else { "errors" };
            note(&format!("invalid: {errors} {word} in {}; nothing was changed", source.place().display()));
            Ok(Exit::Invalid)
        }
        error @ (NodeError::Compile(_) | NodeError::AttachTwoWays { .. }) => {
            note(&format!("error: {:#}", anyhow::Error::new(error)));
            Ok(Exit::Invalid)
        }
        error @ NodeError::Stale { .. } => {
            note(&format!("error: {error}"));
            Ok(Exit::Stale)
        }
        NodeError::Tests { failures } => {
            for failure in &failures {
                note(&failure.to_string());
            }
            let word = if failures.len() == 1 { "policy test fails" } else { "policy tests fail" };
            note(&format!("error: {} {word}", failures.len()));
            Ok(Exit::Invalid)
        }
        NodeError::Refused { refusals } => {
            for refusal in &refusals {
                note(&format!("refused   {refusal}"));
            }
            note("error: refused by a guard; nothing was changed");
            Ok(Exit::Refused)
        }
        NodeError::Held { holds } => {
            for hold in &holds {
                note(&format!("held      {}: {}\n  {}", hold.name(), hold.message(), hold.help()));
            }
            note("error: changes are not taken now; nothing was changed");
            Ok(Exit::Refused)
        }
        NodeError::Step { source: error, live, .. } if matches!(*error, NodeError::Tests { .. }) => {
            let exit = fail(*error, source)?;
            note(&match live {
                0 => "nothing was published; packets pass to the kernel".to_owned(),
                live => format!("nothing was published; generation {live} is live"),
            });
            Ok(exit)
        }
        other => Err(other.into()),
    }
}

/// Shows diagnostics about a source on stderr, with the lines that they point at.
pub(crate) fn show(diagnostics: &[Diagnostic], source: &impl ReadSource) {
    if diagnostics.is_empty() {
        return;
    }
    let nothing = |_| Snapshot::of_directory(BTreeMap::new());
    show_in(diagnostics, &source.read(&Limits::default()).unwrap_or_else(nothing));
}

/// Shows diagnostics about a snapshot on stderr, with the lines that they point at.
pub(crate) fn show_in(diagnostics: &[Diagnostic], snapshot: &Snapshot) {
    if diagnostics.is_empty() {
        return;
    }
    let mut texts = report::Texts::default();
    for (file, content) in &snapshot.files {
        if let SourceFile::Content(bytes) = content
            && diagnostics.iter().any(|d| d.file == *file || d.related.iter().any(|r| r.file == *file))
        {
            texts.insert(file.clone(), bytes);
        }
    }
    note(report::human(diagnostics, &texts, report::stderr_takes_colour()).trim_end());
}

/// Says each step on stderr, when somebody is there to read it.
pub(crate) fn progress() -> impl FnMut(&Step) {
    let terminal = std::io::stderr().is_terminal();
    move |step| {
        if terminal {
            note(&format!("  {step}"));
        }
    }
}
