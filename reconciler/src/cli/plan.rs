//! `wayleave plan`: what an apply would change, against the live rules or between two directories.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::node::{self, block_on, fail};
use super::runtime::Runtime;
use super::source::{self, Opened, Revision};
use super::{Exit, Format, Global, note, print};
use crate::compile::{Image, LiveIds, NodeFacts, compile};
use crate::daemon::apply::propose;
use crate::daemon::node::NodeError;
use crate::daemon::state::State;
use crate::plan::Plan;
use crate::policy;
use crate::source::{Limits, ReadSource as _};

/// Show what would change, without changing anything
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of policies, git repository or URL; the source in the node's configuration when left out
    #[arg(value_name = "SOURCE", conflicts_with = "to")]
    source: Option<PathBuf>,
    /// What to compare with: `live` reads the kernel (root), a directory is compiled, offline and without root
    #[arg(long, default_value = "live", value_name = "live|PATH")]
    from: PathBuf,
    /// The same as SOURCE
    #[arg(long, value_name = "PATH")]
    to: Option<PathBuf>,
    #[command(flatten)]
    revision: Revision,
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
    /// Exit with 2 when there are changes
    #[arg(long)]
    detailed_exitcode: bool,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let named = args.source.as_ref().or(args.to.as_ref());
    let (plan, steps, runtime) = if args.from == Path::new("live") {
        let node = node::load(global)?;
        let source = source::open(named.map(PathBuf::as_path), &args.revision, Some(&node.config))?;
        match block_on(propose(&node, &source))? {
            Ok(proposal) => {
                node::show(&proposal.diagnostics, &source);
                let live = proposal.live()?;
                let state = State::new(&node.config.state_dir);
                let runtime = live.map(|live| Runtime::read(&node, &live, &state)).transpose()?;
                (proposal.plan, proposal.steps, runtime.map(Runtime::troubled))
            }
            Err(error) => return fail(error, &source),
        }
    } else {
        let to = match named {
            Some(to) => source::open(Some(to), &args.revision, None)?,
            None => source::open(None, &args.revision, Some(&node::load(global)?.config))?,
        };
        let from = source::open(Some(&args.from), &Revision::default(), None)?;
        let from = match offline(&from, &LiveIds::default()) {
            Ok(image) => image,
            Err(error) => return fail(error, &from),
        };
        let from = from.view()?;
        match offline(&to, &LiveIds::from_views([&from])) {
            Ok(image) => (Plan::between(Some(&from), &image.view()?), Vec::new(), None),
            Err(error) => return fail(error, &to),
        }
    };
    match args.format {
        Format::Human => {
            print(&plan.to_string())?;
            if plan.is_empty() && !steps.is_empty() {
                print("An apply would still:\n")?;
                for step in &steps {
                    print(&format!("  {step}\n"))?;
                }
            }
            print(&runtime.as_ref().map(Runtime::beside_plan).unwrap_or_default())?;
        }
        Format::Json => write_json(&plan, runtime.as_ref())?,
    }
    let changes = !plan.is_empty() || !steps.is_empty();
    Ok(if args.detailed_exitcode && changes { Exit::Changes } else { Exit::Ok })
}

/// Reads, validates and compiles a source without a node: no addresses of its own, ports by name only.
pub(crate) fn offline(source: &Opened, ids: &LiveIds) -> Result<Image, NodeError> {
    let snapshot = source.read(&Limits::default())?;
    let validated = policy::validate(&snapshot);
    match validated.policy {
        Some(policy) => {
            node::show(&validated.diagnostics, source);
            Ok(compile(&policy, &NodeFacts::default(), ids)?)
        }
        None => Err(NodeError::Policy { diagnostics: validated.diagnostics }),
    }
}

fn write_json(plan: &Plan, runtime: Option<&Runtime>) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let written = plan
        .write_json_with(runtime, &mut out)
        .map_err(io::Error::from)
        .and_then(|()| io::Write::write_all(&mut out, b"\n"));
    match written.and_then(|()| io::Write::flush(&mut out)) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(e) => {
            note("the plan was not written whole");
            Err(e.into())
        }
        Ok(()) => Ok(()),
    }
}
