//! `wayleave validate`: every fault of every file, offline and without root.

use std::path::PathBuf;

use anyhow::Context as _;

use super::source::{self, Revision};
use super::{Exit, Format, Global, note, print, report};
use crate::policy::{self, Diagnostic, NodeConfig, Policy};
use crate::source::{Limits, ReadSource as _, Snapshot, SourceFile};

/// Check policies and show every fault, without root and without a kernel
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directories of policies, git repositories or URLs; the source in the node's configuration when left out
    #[arg(value_name = "SOURCE")]
    sources: Vec<PathBuf>,
    #[command(flatten)]
    revision: Revision,
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

/// One source as it was read, with the path that its files are shown under.
struct Checked {
    shown: String,
    snapshot: Snapshot,
    policy: Option<Policy>,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let mut diagnostics = Vec::new();
    // Sources named on the command line are checked without a node, unless one is named as well.
    let config = if args.sources.is_empty() || global.config.is_some() { Some(read_config(global)?) } else { None };
    let (config_text, node) = match config {
        Some((text, Ok(node))) => (text, Some(node)),
        Some((text, Err(faults))) => {
            diagnostics.extend(faults);
            (text, None)
        }
        None => (Vec::new(), None),
    };
    let sources = match &node {
        Some(node) if args.sources.is_empty() => vec![source::open(None, &args.revision, Some(node))?],
        _ => {
            let open = |named: &PathBuf| source::open(Some(named), &args.revision, node.as_ref());
            args.sources.iter().map(open).collect::<anyhow::Result<_>>()?
        }
    };
    let mut checked = Vec::new();
    for source in sources {
        let snapshot = source.read(&Limits::default())?;
        let shown = source.place().display().to_string();
        let validated = policy::validate(&snapshot);
        diagnostics.extend(validated.diagnostics.into_iter().map(|d| shown_under(&shown, d)));
        if let (Some(policy), Some(node)) = (&validated.policy, &node) {
            diagnostics.extend(unknown_ports(policy, node).into_iter().map(|d| shown_under(&shown, d)));
        }
        checked.push(Checked { shown, snapshot, policy: validated.policy });
    }
    match args.format {
        Format::Json => print(&report::json(&diagnostics))?,
        Format::Human => {
            let mut texts = report::Texts::default();
            texts.insert(global.config_path().display().to_string(), &config_text);
            for source in &checked {
                for (file, content) in &source.snapshot.files {
                    let path = join(&source.shown, file);
                    if let SourceFile::Content(bytes) = content
                        && mentions(&diagnostics, &path)
                    {
                        texts.insert(path, bytes);
                    }
                }
            }
            print(&report::human(&diagnostics, &texts, report::stdout_takes_colour()))?;
        }
    }
    note(&summary(&diagnostics, &checked));
    Ok(if report::count(&diagnostics).0 > 0 { Exit::Invalid } else { Exit::Ok })
}

type ReadConfig = (Vec<u8>, Result<NodeConfig, Vec<Diagnostic>>);

fn read_config(global: &Global) -> anyhow::Result<ReadConfig> {
    let path = global.config_path();
    let text = std::fs::read(path).with_context(|| {
        let path = path.display();
        format!("the node's configuration `{path}` cannot be read; name a SOURCE to validate without it")
    })?;
    let node = policy::node_config(&text, path);
    Ok((text, node))
}

fn unknown_ports(policy: &Policy, node: &NodeConfig) -> Vec<Diagnostic> {
    let ports: Vec<&str> = node.ports.keys().map(String::as_str).collect();
    policy::check_ports(policy, &ports)
}

fn mentions(diagnostics: &[Diagnostic], path: &str) -> bool {
    diagnostics.iter().any(|d| d.file == path || d.related.iter().any(|r| r.file == path))
}

/// Files as they are named from where the command runs, which is what editors and code review link to.
fn shown_under(source: &str, mut diagnostic: Diagnostic) -> Diagnostic {
    diagnostic.file = join(source, &diagnostic.file);
    for related in &mut diagnostic.related {
        related.file = join(source, &related.file);
    }
    diagnostic
}

fn join(source: &str, file: &str) -> String {
    let source = source.trim_end_matches('/');
    let source = source.strip_prefix("./").unwrap_or(source);
    match (source, file) {
        (_, ".") => source.to_owned(),
        ("." | "", _) => file.to_owned(),
        _ => format!("{source}/{file}"),
    }
}

fn summary(diagnostics: &[Diagnostic], checked: &[Checked]) -> String {
    let plural = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    let (errors, warnings) = report::count(diagnostics);
    let warned = if warnings == 0 { String::new() } else { format!(", {}", plural(warnings, "warning")) };
    if errors > 0 {
        return format!("invalid: {}{warned}; `wayleave explain CODE` says more", plural(errors, "error"));
    }
    let policies = || checked.iter().filter_map(|c| c.policy.as_ref()).flat_map(|p| &p.route_policies);
    let routes: usize = policies().map(|p| p.routes.len()).sum();
    let revisions: Vec<&str> = checked.iter().map(|c| c.snapshot.revision.as_str()).collect();
    let counts = format!(
        "{}, {}",
        plural(policies().count(), "route policy").replace("policys", "policies"),
        plural(routes, "route")
    );
    format!("valid: {counts}{warned}; {}", revisions.join(" "))
}
