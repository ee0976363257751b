//! `wayleave test`: the policy tests of a source, by the library or in the kernel.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::node::{self, block_on};
use super::offline::{Offline, OfflineArgs, Read};
use super::{Exit, Global, note, print};
use crate::compile::{LiveIds, compile};
use crate::daemon::cases;
use crate::policy::Selector;
use crate::policy_test::{self, Ended, Outcome};

/// Run the policy tests of a source
///
/// Next hops are taken to be up. Exits with 3 when a test fails.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A directory or a git revision; the source in the node's configuration when left out
    #[arg(value_name = "SOURCE")]
    source: Option<PathBuf>,
    /// Run the packets through the program in this machine's kernel, too; needs root and the node's configuration. Nothing
    /// is sent, and what is live is not touched
    #[arg(long)]
    kernel: bool,
    #[arg(long, value_enum, default_value_t = TestFormat::Human)]
    format: TestFormat,
    #[command(flatten)]
    offline: OfflineArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TestFormat {
    Human,
    Json,
    /// The XML of `JUnit`, as CI servers read it
    Junit,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let (read, outcomes) = if args.kernel {
        in_kernel(args, global)?
    } else {
        let offline = args.offline.open(global)?;
        let read = offline.read(args.source.as_deref(), global)?;
        let mut outcomes = Vec::new();
        for view in offline.views(&[&read]) {
            outcomes.extend(in_view(&offline, &read, view.as_ref())?);
        }
        (read, outcomes)
    };
    match args.format {
        TestFormat::Human => {
            for outcome in outcomes.iter().filter(|outcome| outcome.ended != Ended::Passed) {
                print(&format!("{outcome}\n"))?;
            }
            print(&format!("{}\n", summary(&outcomes)))?;
        }
        TestFormat::Json => print(&format!("{:#}\n", json(&read, &outcomes)))?,
        TestFormat::Junit => print(&junit(&outcomes))?,
    }
    if outcomes.is_empty() {
        note("the source has no policy test");
    }
    Ok(if outcomes.iter().any(Outcome::failed) { Exit::Invalid } else { Exit::Ok })
}

/// The outcomes of the tests that are for the nodes of one view.
pub(super) fn in_view(offline: &Offline<'_>, read: &Read, view: Option<&Selector>) -> anyhow::Result<Vec<Outcome>> {
    let image = Offline::compile(read, view, &LiveIds::default())?;
    let tests: Vec<_> = match view {
        Some(view) => read.tests.iter().filter(|test| test.nodes.matches(view.labels())).cloned().collect(),
        None => read.tests.clone(),
    };
    let mut outcomes = policy_test::run_all(&image.view()?, &tests, offline.ports().as_deref())?;
    let nodes = view.map(|view| if view.labels().is_empty() { "other labels".to_owned() } else { view.to_string() });
    for outcome in &mut outcomes {
        outcome.nodes.clone_from(&nodes);
    }
    Ok(outcomes)
}

/// The tests in the kernel, with maps and programs of their own beside those of the node.
fn in_kernel(args: &Args, global: &Global) -> anyhow::Result<(Read, Vec<Outcome>)> {
    let node = match args.offline.node_path(global) {
        Some(path) => node::load_from(path)?,
        None => node::load(global)?,
    };
    let offline = Offline::of_node(&args.offline, node.config.clone());
    let read = offline.read(args.source.as_deref(), global)?;
    let facts = block_on(node.facts())??;
    let image = compile(&read.policy, &facts.node, &LiveIds::default())?;
    let outcomes = cases::run_beside(&node, &image, &facts, &read.tests)?;
    Ok((read, outcomes))
}

/// How many cases ended how: passed, failed, left out.
fn counts(outcomes: &[Outcome]) -> [usize; 3] {
    let failed = outcomes.iter().filter(|outcome| outcome.failed()).count();
    let passed = outcomes.iter().filter(|outcome| outcome.ended == Ended::Passed).count();
    [passed, failed, outcomes.len() - passed - failed]
}

fn summary(outcomes: &[Outcome]) -> String {
    let [passed, failed, left_out] = counts(outcomes);
    let left_out = if left_out == 0 { String::new() } else { format!(", {left_out} left out") };
    format!("{passed} passed, {failed} failed{left_out}")
}

fn json(read: &Read, outcomes: &[Outcome]) -> Value {
    let [passed, failed, left_out] = counts(outcomes);
    let cases: Vec<Value> = outcomes.iter().map(Outcome::to_json).collect();
    json!({"format_version": 1, "revision": read.snapshot.revision, "cases": cases,
        "summary": {"passed": passed, "failed": failed, "left_out": left_out}})
}

/// One `testsuite` a test, one `testcase` a case, as the schema of the Jenkins xUnit plugin has them.
fn junit(outcomes: &[Outcome]) -> String {
    let [_, failed, left_out] = counts(outcomes);
    let total = outcomes.len();
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(out, "<testsuites tests=\"{total}\" failures=\"{failed}\" skipped=\"{left_out}\">");
    for suite in outcomes.chunk_by(|a, b| a.test == b.test) {
        let [_, failed, left_out] = counts(suite);
        let name = xml(&suite[0].test);
        let _ = writeln!(
            out,
            "  <testsuite name=\"{name}\" tests=\"{}\" failures=\"{failed}\" errors=\"0\" skipped=\"{left_out}\">",
            suite.len()
        );
        for outcome in suite {
            let case = outcome.case.clone().unwrap_or_else(|| outcome.packet.clone());
            let case = match &outcome.nodes {
                Some(nodes) => format!("{case} on nodes with {nodes}"),
                None => case,
            };
            let (case, file, line) = (xml(&case), xml(&outcome.file), outcome.line);
            let _ = write!(out, "    <testcase name=\"{case}\" classname=\"{name}\" file=\"{file}\" line=\"{line}\"");
            let _ = match &outcome.ended {
                Ended::Passed => writeln!(out, "/>"),
                Ended::LeftOut { why } => {
                    writeln!(out, ">\n      <skipped message=\"{}\"/>\n    </testcase>", xml(why))
                }
                Ended::Failed { expected, got } => {
                    let message = xml(&format!("expected {expected}; got {got}"));
                    let packet = xml(&format!("{}:{}: {}", outcome.file, outcome.line, outcome.packet));
                    writeln!(out, ">\n      <failure message=\"{message}\">{packet}</failure>\n    </testcase>")
                }
            };
        }
        out.push_str("  </testsuite>\n");
    }
    out.push_str("</testsuites>\n");
    out
}

fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            // XML 1.0 has no way to write them.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
