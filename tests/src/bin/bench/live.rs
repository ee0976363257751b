//! How long a table on disk takes to be what packets meet.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wayleave::compile::{LiveIds, NodeFacts, compile};
use wayleave::daemon::apply::{apply, propose};
use wayleave::policy::validate;
use wayleave::reconcile::Step;
use wayleave::source::{Limits, read_directory};

use crate::internet::{Random, Table};
use crate::lab::{Lab, Site, wayleave};
use crate::lookup::{Live, number_of};
use crate::report::{Better, Report, Samples};
use crate::{Options, block_on};

/// Stages of one apply, in the order in which they happen.
pub(crate) const STAGES: [&str; 10] = [
    "read the files",
    "validate",
    "compile",
    "whole proposal: observe, read, validate, compile, plan",
    "load the programs",
    "write ports and neighbours",
    "attach",
    "stage",
    "verify in the kernel",
    "publish: the one write",
];

pub(crate) fn run(lab: &Lab, table: &Table, options: &Options, report: &mut Report) -> Result<()> {
    let v4 = Table { v4: table.v4.clone(), v6: Vec::new() };
    let (mut both, mut ours, mut kernel, mut trie) =
        (Samples::default(), Samples::default(), Samples::default(), Samples::default());
    let mut stages: BTreeMap<&str, Samples> = BTreeMap::new();
    let mut random = Random(20_260_618);
    for repetition in 1..=options.live_repetitions {
        eprintln!("time to live: {repetition} of {}", options.live_repetitions);
        both.push(ms(command(lab, table)?));
        ours.push(ms(command(lab, &v4)?));
        // A namespace of its own, so that each one starts empty.
        kernel.push(ms(load_kernel(&Lab::new()?, &v4)?));
        let mut live = Live::publish(lab, &v4, &mut random)?;
        trie.push(ms(live.fill_tries()?));
        live.site.detach(lab)?;
        for (stage, time) in in_process(lab, &Site::new(table)?)? {
            stages.entry(stage).or_default().push(ms(time));
        }
    }
    let all = number_of(table.v4.len() + table.v6.len());
    let count = number_of(table.v4.len());
    let rows = [
        (format!("wayleave apply, {count} IPv4 routes, cold process, from files"), &ours),
        (format!("LPM_TRIE, {count} IPv4 routes, one update a route, from memory"), &trie),
        (format!("ip -batch, {count} IPv4 routes, from a pipe"), &kernel),
        (format!("wayleave apply, {all} routes of both families, cold process, from files"), &both),
    ];
    report.samples("Time until a table is live", "ms", &rows);
    let name = format!("time to live, {count} v4 routes");
    report.compare(&name, ours.median(), ("ip -batch", kernel.median()), "ms", Better::Less);
    report.compare(&name, ours.median(), ("LPM_TRIE, one update a route", trie.median()), "ms", Better::Less);
    let rows: Vec<_> = STAGES.iter().filter_map(|stage| Some(((*stage).to_owned(), stages.get(stage)?))).collect();
    report.samples(&format!("Stages of one apply, {all} routes, in process"), "ms", &rows);
    Ok(())
}

pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// `ip -batch` of the IPv4 part into the router's main table.
pub(crate) fn load_kernel(lab: &Lab, table: &Table) -> Result<Duration> {
    let text = table.ip_batch();
    let begin = Instant::now();
    lab.router.ip_batch(&text)?;
    Ok(begin.elapsed())
}

/// A cold `wayleave apply` of the release binary: from its start to its end.
fn command(lab: &Lab, table: &Table) -> Result<Duration> {
    let site = Site::new(table)?;
    let mut command = lab.router.command(wayleave()?);
    command.arg("apply").arg("--auto-approve").arg("--config").arg(site.config());
    let begin = Instant::now();
    let output = command.stdout(Stdio::null()).output().context("starting wayleave")?;
    let time = begin.elapsed();
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "wayleave apply failed: {said}");
    ensure!(said.contains("generation 1 is live"), "wayleave apply published nothing: {said}");
    site.detach(lab)?;
    Ok(time)
}

/// The same way through the library, with the time of each stage.
pub(crate) fn in_process(lab: &Lab, site: &Site) -> Result<Vec<(&'static str, Duration)>> {
    let node = site.node()?;
    let mut times = Vec::new();

    let begin = Instant::now();
    let snapshot = read_directory(&site.source(), &Limits::default())?;
    times.push((STAGES[0], begin.elapsed()));
    let begin = Instant::now();
    let validated = validate(&snapshot);
    times.push((STAGES[1], begin.elapsed()));
    let policy = validated.policy.with_context(|| format!("invalid: {:?}", validated.diagnostics.first()))?;
    let begin = Instant::now();
    let image = compile(&policy, &NodeFacts::default(), &LiveIds::default())?;
    times.push((STAGES[2], begin.elapsed()));
    drop((image, policy, snapshot));

    let steps = lab.router.enter(|| {
        block_on(async {
            let begin = Instant::now();
            let proposal = propose(&node, &node.config.source).await?;
            let mut steps = vec![(STAGES[3], begin.elapsed())];
            let mut running: Option<(&'static str, Instant)> = None;
            let mut end = |running: Option<(&'static str, Instant)>| {
                if let Some((stage, begin)) = running {
                    steps.push((stage, begin.elapsed()));
                }
            };
            apply(&node, proposal, &mut |step| {
                end(running.take());
                running = stage(step).map(|stage| (stage, Instant::now()));
            })
            .await?;
            end(running.take());
            anyhow::Ok(steps)
        })?
    })??;
    site.detach(lab)?;
    // Ports are attached one by one: their times are one stage.
    for (stage, time) in steps {
        match times.iter_mut().find(|(known, _)| *known == stage) {
            Some((_, sum)) => *sum += time,
            None => times.push((stage, time)),
        }
    }
    Ok(times)
}

fn stage(step: &Step) -> Option<&'static str> {
    match step {
        Step::LoadPrograms { .. } => Some(STAGES[4]),
        Step::WriteTables => Some(STAGES[5]),
        Step::Attach { .. } => Some(STAGES[6]),
        Step::Stage { .. } => Some(STAGES[7]),
        Step::Verify { .. } => Some(STAGES[8]),
        Step::Publish { .. } => Some(STAGES[9]),
        _ => None,
    }
}
