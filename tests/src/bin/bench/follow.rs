//! How soon a changed file is live under `wayleave run`, and how much memory the daemon takes.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::Options;
use crate::internet::{Random, Table};
use crate::lab::{Lab, Site, via_v4, wayleave};
use crate::lookup::number_of;
use crate::report::{Report, Samples, number};

/// Routes of the source whose lines change.
const ROUTES: usize = 1_000;
/// The benchmark looks this often which generation is live.
const POLL: Duration = Duration::from_millis(1);
/// Pause between a publish and the next change, so that each is one change and not a part of a burst.
const PAUSE: Duration = Duration::from_millis(30);
/// A change that is not live by then is a failure.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn run(lab: &Lab, table: &Table, options: &Options, report: &mut Report) -> Result<()> {
    let mut random = Random(20_261_123);
    let small = Table { v4: table.sample(ROUTES - 1, 0, &mut random).v4, v6: Vec::new() };
    let (times, small_bytes) = changes(lab, &small, options.changes)?;
    let (_, large_bytes) = changes(lab, table, 1)?;
    let row = |part: f64| number(times.quantile(part));
    let rows = [vec![number_of(times.count()), row(0.5), row(0.9), row(0.99), number(times.range().1)]];
    let title = format!(
        "One changed line in a source of {} routes, `wayleave run` watching: from the write to the publish, in ms",
        number_of(ROUTES)
    );
    report.table(&title, &["changes", "median", "90 %", "99 %", "max"], &rows);
    let routes = table.v4.len() + table.v6.len();
    let rows = [(ROUTES, small_bytes), (routes, large_bytes)]
        .map(|(routes, bytes)| vec![number_of(routes), number(bytes as f64 / f64::from(1 << 20))]);
    report.table("Peak resident memory of `wayleave run`, in MiB", &["routes", "MiB"], &rows);
    Ok(())
}

/// Follows a source through so many changes: the time of each, and the peak of the daemon's memory.
fn changes(lab: &Lab, table: &Table, count: u32) -> Result<(Samples, u64)> {
    let site = Site::new(table)?;
    let changing = site.source().join("changing.yaml");
    std::fs::write(&changing, document(0))?;
    let daemon = Daemon::start(lab, &site)?;
    let mut live = wait_beyond(lab, &site, 0).context("the daemon's first publish")?;
    let mut times = Samples::default();
    for change in 1..=count {
        std::thread::sleep(PAUSE);
        let begin = Instant::now();
        std::fs::write(&changing, document(change))?;
        live = wait_beyond(lab, &site, live).with_context(|| format!("change {change}"))?;
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    let bytes = daemon.peak_bytes()?;
    daemon.stop()?;
    site.detach(lab)?;
    Ok((times, bytes))
}

/// A policy of one route, whose next hop changes.
fn document(change: u32) -> String {
    format!(
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: changing}}\nspec:\n  nextHops:\n    - {{name: one, via: \
         {}, port: wan}}\n    - {{name: two, via: {}, port: wan}}\n  routes:\n    - {{prefix: 198.18.7.0/24, nextHops: [{{name: \
         one, weight: {}}}, {{name: two}}]}}\n",
        via_v4(1),
        via_v4(2),
        change + 1,
    )
}

/// Waits until a later generation is live, and returns its number.
fn wait_beyond(lab: &Lab, site: &Site, live: u64) -> Result<u64> {
    let node = site.node()?;
    let deadline = Instant::now() + PATIENCE;
    lab.router.enter(|| {
        while Instant::now() < deadline {
            let now = node.observe()?.live_number();
            if now > live {
                return Ok(now);
            }
            std::thread::sleep(POLL);
        }
        bail!("generation {live} was still live after {PATIENCE:?}")
    })?
}

/// `wayleave run`, killed when dropped.
struct Daemon(Child);

impl Daemon {
    fn start(lab: &Lab, site: &Site) -> Result<Self> {
        let mut command = lab.router.command(wayleave()?);
        command.arg("run").arg("--config").arg(site.config()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn().context("starting wayleave run")?))
    }

    /// `VmHWM` of proc(5).
    fn peak_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(Path::new("/proc").join(self.0.id().to_string()).join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kibibytes * 1024)
    }

    fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "wayleave run ended with {status}");
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
