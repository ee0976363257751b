//! What `wayleave watch` costs: packets forwarded and dropped a second, with a listener and without.

use std::net::Ipv4Addr;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fib::Reason;
use rustix::process::{Pid, Signal, kill_process};
use wayleave::kernel::counters::{Objects, Owners};
use wayleave_tests::attach_xdp_drop;

use crate::Options;
use crate::forward::{CLIENT, blast, macs, pin_to_first_cpu, small};
use crate::internet::{Random, Table};
use crate::lab::{Lab, wayleave};
use crate::lookup::Live;
use crate::report::{Better, Report, Samples, number};

/// One event in so many packets; none: nobody listens.
const LISTENERS: [(Option<u32>, &str); 3] =
    [(None, "nobody listens"), (Some(1000), "watch --every 1000"), (Some(1), "watch --every 1")];
/// How long a listener may take to begin, and counted packets to be counted.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) fn run(lab: &Lab, table: &Table, options: &Options, report: &mut Report) -> Result<()> {
    let mut live = Live::publish(lab, &small(table), &mut Random(20_260_619))?;
    live.programs.set_frame(macs(lab.lan_mac, lab.client_mac), CLIENT, Ipv4Addr::UNSPECIFIED)?;
    let _sink = attach_xdp_drop(&lab.sink, "eth0")?;
    let mut rows = Vec::new();
    rows.extend(path(lab, &mut live, options, "forwarded", report)?);
    // The same addresses, and one rule for all of them.
    std::fs::remove_dir_all(live.site.source())?;
    std::fs::create_dir(live.site.source())?;
    std::fs::write(
        live.site.source().join("drop.yaml"),
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {name: drop}\nspec:\n  routes:\n    - {prefix: 0.0.0.0/0, \
         action: drop}\n",
    )?;
    lab.apply(&live.site.node()?)?;
    rows.extend(path(lab, &mut live, options, "dropped", report)?);
    let title = "64-byte UDP packets, with `wayleave watch` and without; one CPU generates them and runs the program";
    report.table(title, &["", "Mpps, median", "min – max"], &rows);
    live.site.detach(lab)
}

/// Measures one way of packets through the program, with all listeners in turn.
fn path(lab: &Lab, live: &mut Live, options: &Options, name: &str, report: &mut Report) -> Result<Vec<Vec<String>>> {
    let mut samples = vec![Samples::default(); LISTENERS.len()];
    for repetition in 0..=options.forward_repetitions {
        eprintln!("watch, {name}: {repetition} of {}", options.forward_repetitions);
        let warm_up = repetition == 0;
        for ((every, shown), samples) in LISTENERS.iter().zip(&mut samples) {
            let listener = every.map(|every| Listener::start(lab, live, every)).transpose()?;
            if name == "forwarded" {
                let mut both = (std::mem::take(samples), Samples::default());
                blast(lab, live, options, &mut both, warm_up).context(*shown)?;
                *samples = both.0;
            } else {
                let rate =
                    drops(lab, live, if warm_up { options.frames / 10 } else { options.frames }).context(*shown)?;
                if !warm_up {
                    samples.push(rate);
                }
            }
            listener.map(Listener::stop).transpose()?;
        }
    }
    let [nobody, listened @ ..] = &samples[..] else { return Ok(Vec::new()) };
    for (samples, (_, shown)) in listened.iter().zip(&LISTENERS[1..]) {
        report.compare(
            &format!("{name}, {shown}"),
            samples.median(),
            (LISTENERS[0].1, nobody.median()),
            "Mpps",
            Better::More,
        );
    }
    let row = |((_, shown), samples): (&(Option<u32>, &str), &Samples)| {
        let (low, high) = samples.range();
        vec![format!("{name}, {shown}"), number(samples.median()), format!("{} – {}", number(low), number(high))]
    };
    Ok(LISTENERS.iter().zip(&samples).map(row).collect())
}

/// Sends frames that a rule drops: millions a second.
fn drops(lab: &Lab, live: &mut Live, frames: u32) -> Result<f64> {
    let client = lab.client.ifindex("eth0")?;
    let node = live.site.node()?;
    let counters = Objects::open(&node.pins)?.context("no program is loaded")?;
    let dropped = || {
        let reasons = counters.reasons(&Owners::default())?;
        let count = reasons.iter().find(|(reason, _)| *reason == Reason::RouteDrop);
        anyhow::Ok(count.map_or(0, |(_, count)| count.packets))
    };
    let before = dropped()?;
    let begin = Instant::now();
    lab.client.enter(|| {
        pin_to_first_cpu()?;
        live.programs.generate(live.generator, client, frames)
    })??;
    let mut elapsed = begin.elapsed();
    let mut count = dropped()? - before;
    while count < frames.into() && begin.elapsed() < elapsed + PATIENCE {
        let now = dropped()? - before;
        if now > count {
            (count, elapsed) = (now, begin.elapsed());
        }
    }
    ensure!(count == u64::from(frames), "{count} of {frames} frames were dropped");
    Ok(f64::from(frames) / elapsed.as_secs_f64() / 1e6)
}

/// A running `wayleave watch` whose lines nobody keeps.
struct Listener(Child);

impl Listener {
    fn start(lab: &Lab, live: &Live, every: u32) -> Result<Self> {
        let mut command = lab.router.command(wayleave()?);
        command.arg("--config").arg(live.site.config()).args(["watch", "--every", &every.to_string()]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("starting `wayleave watch`")?;
        // It says that it listens before it does.
        std::thread::sleep(PATIENCE / 2);
        Ok(Self(child))
    }

    fn stop(mut self) -> Result<()> {
        let process = Pid::from_raw(self.0.id().cast_signed()).context("a process id")?;
        kill_process(process, Signal::TERM)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "`wayleave watch` ended with {status}");
        Ok(())
    }
}
