//! How long an offline plan of the whole table takes, from two directories and without a kernel.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::Options;
use crate::internet::{NEXT_HOPS, Random, Table};
use crate::lab::wayleave;
use crate::lookup::number_of;
use crate::report::{Report, Samples};

/// Routes that go elsewhere in the copy.
const CHANGES: usize = 1_000;

pub(crate) fn run(table: &Table, options: &Options, report: &mut Report) -> Result<()> {
    let folder = TempDir::new()?;
    table.write_source(&folder.path().join("old"))?;
    let mut copy = table.clone();
    let mut random = Random(20_261_123);
    let mut changed = std::collections::BTreeSet::new();
    while changed.len() < CHANGES.min(copy.v4.len()) {
        changed.insert(random.below(copy.v4.len()));
    }
    for row in &changed {
        copy.v4[*row].1 = (copy.v4[*row].1 + 1) % NEXT_HOPS;
    }
    copy.write_source(&folder.path().join("new"))?;
    let mut time = Samples::default();
    for repetition in 1..=options.live_repetitions {
        eprintln!("offline plan: {repetition} of {}", options.live_repetitions);
        let mut command = Command::new(wayleave()?);
        command.args(["plan", "--from", "./old", "new"]).current_dir(folder.path()).stderr(Stdio::null());
        let begin = Instant::now();
        let output = command.output().context("starting wayleave")?;
        time.push(begin.elapsed().as_secs_f64() * 1e3);
        let plan = String::from_utf8_lossy(&output.stdout);
        let summary = format!("Plan: 0 to add, {} to change, 0 to remove.", changed.len());
        ensure!(output.status.success() && plan.contains(&summary), "not the plan that was expected:\n{plan}");
    }
    let all = number_of(table.v4.len() + table.v6.len());
    let name = format!("wayleave plan, {all} routes against a copy with {} changes, cold process", changed.len());
    report.samples("Offline plan", "ms", &[(name, &time)]);
    Ok(())
}
