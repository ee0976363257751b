//! `./dev bench`: wayleave against its peers, in the same run, on this machine.
//!
//! Everything runs in namespaces that the benchmark makes. Progress goes to stderr, tables to stdout, and every ratio
//! into `results.json`. docs/benchmarks.md says how to read them.
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "measurements are rounded to three digits; halves of addresses are taken on purpose"
)]

mod filter;
mod follow;
mod forward;
mod internet;
mod lab;
mod live;
mod lookup;
mod plan;
mod programs;
mod report;
mod service;
mod watch;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use wayleave_tests::require_root_and_bpf;

use internet::{Random, Table};
use lab::Lab;
use report::Report;

const USAGE: &str =
    "usage: bench [--quick] [--only plan|live|follow|lookup|forward|service|filter|watch] [--out DIRECTORY]

  --quick  small tables and few repetitions: shows that everything works, measures little
  --only   one part instead of all
  --out    where results.json goes (target/bench)";

/// How much is measured.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    quick: bool,
    only: Option<String>,
    out: PathBuf,
    /// Of each lookup: passes over all addresses.
    repetitions: u32,
    live_repetitions: u32,
    /// Of a file that the daemon follows.
    changes: u32,
    forward_repetitions: u32,
    /// Sent in one repetition.
    frames: u32,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
        let (mut quick, mut only, mut out) = (false, None, target);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => quick = true,
                "--only" => only = arguments.next(),
                "--out" => out = arguments.next().context(USAGE)?.into(),
                _ => bail!("{USAGE}"),
            }
        }
        let parts = ["plan", "live", "follow", "lookup", "forward", "service", "filter", "watch"];
        if only.as_deref().is_some_and(|only| !parts.contains(&only)) {
            bail!("{USAGE}");
        }
        let (repetitions, live_repetitions, changes, forward_repetitions, frames) =
            if quick { (3, 1, 3, 1, 200_000) } else { (15, 3, 200, 5, 4_000_000) };
        Ok(Self { quick, only, out, repetitions, live_repetitions, changes, forward_repetitions, frames })
    }

    fn wants(&self, part: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == part)
    }
}

/// Runs a future on the calling thread, since rtnetlink and BPF act in that thread's namespace.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(future))
}

fn main() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    require_root_and_bpf().context("the benchmark needs what the real-kernel tests need")?;
    println!("{}", report::machine());
    let mut table = Table::internet()?;
    if options.quick {
        table = table.sample(20_000, 5_000, &mut Random(1));
    }
    let mut report = Report::default();
    let lab = Lab::new()?;
    if options.wants("plan") {
        plan::run(&table, &options, &mut report)?;
    }
    if options.wants("live") {
        live::run(&lab, &table, &options, &mut report)?;
    }
    if options.wants("follow") {
        follow::run(&lab, &table, &options, &mut report)?;
    }
    if options.wants("lookup") || options.wants("forward") {
        eprintln!("loading {} routes into the kernel's own table", table.v4.len());
        live::load_kernel(&lab, &table)?;
    }
    if options.wants("lookup") {
        lookup::run(&lab, &table, &options, &mut report)?;
    }
    if options.wants("forward") {
        forward::run(&lab, &table, &options, &mut report)?;
    }
    if options.wants("service") {
        service::run(&lab, &options, &mut report)?;
    }
    if options.wants("filter") {
        filter::run(&lab, &table, &options, &mut report)?;
    }
    if options.wants("watch") {
        watch::run(&lab, &table, &options, &mut report)?;
    }
    report.finish(&options.out)
}
