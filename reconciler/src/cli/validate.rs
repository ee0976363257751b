//! `wayleave validate`: every fault of every file, offline and without root.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;

use super::offline::OfflineArgs;
use super::{Exit, Global, note, print, report, review};
use crate::policy::{self, Diagnostic, NodeConfig, Policy};
use crate::source::{Limits, ReadSource as _, Snapshot, SourceFile};

/// Check policies and show every fault, without root and without a kernel
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directories of policies, git repositories or URLs; the source in the node's configuration when left out
    #[arg(value_name = "SOURCE")]
    sources: Vec<PathBuf>,
    #[arg(long, value_enum, default_value_t = ValidateFormat::Human)]
    format: ValidateFormat,
    #[command(flatten)]
    offline: OfflineArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ValidateFormat {
    Human,
    Json,
    /// SARIF 2.1.0, for code scanning
    Sarif,
    /// Workflow commands that GitHub shows beside the lines; at most 10
    Github,
    /// Code quality report of GitLab
    Gitlab,
}

/// One source as it was read, with the path that its files are shown under.
struct Checked {
    shown: String,
    snapshot: Snapshot,
    policy: Option<Policy>,
    tests: usize,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let mut diagnostics = Vec::new();
    // Sources named on the command line are checked without a node, unless one is named as well.
    let config_path = match args.offline.node_path(global) {
        None if args.sources.is_empty() => Some(global.config_path()),
        named => named,
    };
    let config = config_path.map(read_config).transpose()?;
    let (config_text, node) = match config {
        Some((text, Ok(node))) => (text, Some(node)),
        Some((text, Err(faults))) => {
            diagnostics.extend(faults);
            (text, None)
        }
        None => (Vec::new(), None),
    };
    let sources = match &node {
        Some(node) if args.sources.is_empty() => vec![args.offline.source(None, Some(node))?],
        _ => {
            let open = |named: &PathBuf| args.offline.source(Some(named), node.as_ref());
            args.sources.iter().map(open).collect::<anyhow::Result<_>>()?
        }
    };
    let mut checked = Vec::new();
    for source in sources {
        let snapshot = source.read(&Limits::default())?;
        let shown = source.place().display().to_string();
        let validated = policy::validate(&snapshot);
        diagnostics.extend(validated.diagnostics.into_iter().map(|d| shown_under(&shown, d)));
        let mut policy = validated.policy;
        if let Some(node) = &node {
            policy = policy.map(|policy| policy.for_node(&node.labels));
        }
        if let Some(policy) = &policy {
            let unknown = node.as_ref().map(|node| policy::check_names(policy, node)).unwrap_or_default();
            let more = unknown.into_iter().chain(policy::redundant(policy));
            diagnostics.extend(more.map(|d| shown_under(&shown, d)));
        }
        checked.push(Checked { shown, snapshot, policy, tests: validated.tests.len() });
    }
    policy::diagnostic::sort(&mut diagnostics);
    match args.format {
        ValidateFormat::Json => print(&report::json(&diagnostics))?,
        ValidateFormat::Sarif => print(&review::sarif(&review::below_here(diagnostics.clone())))?,
        ValidateFormat::Github => print(&review::github(&review::below_here(diagnostics.clone())))?,
        ValidateFormat::Gitlab => print(&review::gitlab(&review::below_here(diagnostics.clone())))?,
        ValidateFormat::Human => {
            let mut texts = report::Texts::default();
            if let Some(path) = config_path {
                texts.insert(path.display().to_string(), &config_text);
            }
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

fn read_config(path: &Path) -> anyhow::Result<ReadConfig> {
    let text = std::fs::read(path).with_context(|| {
        let path = path.display();
        format!("the node's configuration `{path}` cannot be read; name a SOURCE to validate without it")
    })?;
    let node = policy::node_config(&text, path);
    Ok((text, node))
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
    let tests = match checked.iter().map(|c| c.tests).sum() {
        0 => String::new(),
        tests => format!(", {}", plural(tests, "policy test")),
    };
    let counts = format!(
        "{}, {}{tests}",
        plural(policies().count(), "route policy").replace("policys", "policies"),
        plural(routes, "route")
    );
    format!("valid: {counts}{warned}; {}", revisions.join(" "))
}
