//! Packets a second from one veth pair to another, by each forwarder in the same place.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};
use wayleave_tests::{Mac, attach_xdp_drop};

use crate::Options;
use crate::internet::{Random, Table};
use crate::lab::Lab;
use crate::lookup::{Live, number_of};
use crate::report::{Better, Report, Samples, number};

/// Forwarders beside wayleave: the program, none for the kernel itself, and what tables call it.
const PEERS: [(Option<&str>, &str); 6] = [
    (None, "the kernel's own forwarding"),
    (Some("forward_trie"), "XDP with LPM_TRIE"),
    (Some("forward_kernel"), "XDP with bpf_fib_lookup"),
    (Some("forward_age"), "XDP: parse, TTL and checksum only"),
    (Some("forward_verify"), "XDP: the same, and the header's checksum verified"),
    (Some("forward_rewrite"), "XDP without any lookup"),
];

/// How long frames may take to arrive after the last was sent.
const SETTLE: Duration = Duration::from_millis(200);

/// Where frames come from.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// Routes of the small table: what forwarding costs beside the lookup.
const SMALL: usize = 1_000;

/// Measures all forwarders. `lab` holds the routes of `table` in the kernel too.
pub(crate) fn run(lab: &Lab, table: &Table, options: &Options, report: &mut Report) -> Result<()> {
    one_table(lab, table, &PEERS, options, report)?;
    one_table(lab, &small(table), &PEERS[PEERS.len() - 3..], options, report)
}

/// The table that shows what forwarding costs beside the lookup.
pub(crate) fn small(table: &Table) -> Table {
    Table { v4: table.sample(SMALL, 0, &mut Random(20_261_123)).v4, v6: Vec::new() }
}

fn one_table(
    lab: &Lab,
    table: &Table,
    forwarders: &[(Option<&str>, &'static str)],
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let mut live = Live::publish(lab, table, &mut Random(20_260_619))?;
    live.fill_tries()?;
    let _sink = attach_xdp_drop(&lab.sink, "eth0")?;
    let wan = lab.router.ifindex("wan")?;
    lab.router.enter(|| live.programs.set_egress(wan, macs(lab.sink_mac, lab.wan_mac)))??;
    live.programs.set_frame(macs(lab.lan_mac, lab.client_mac), CLIENT, Ipv4Addr::UNSPECIFIED)?;

    let mut ours = (Samples::default(), Samples::default());
    let mut peers = vec![(Samples::default(), Samples::default()); forwarders.len()];
    // A device carries one program at a time: wayleave's goes when the peers' turn comes.
    for repetition in 0..=options.forward_repetitions {
        eprintln!("forwarding: {repetition} of {}", options.forward_repetitions);
        let warm_up = repetition == 0;
        let node = live.site.node()?;
        if !warm_up {
            lab.apply(&node)?;
        }
        blast(lab, &mut live, options, &mut ours, warm_up).context("wayleave")?;
        live.site.detach(lab)?;
        for ((program, shown), samples) in forwarders.iter().zip(&mut peers) {
            if let Some(program) = program {
                lab.router.enter(|| live.programs.attach(program, "lan"))??;
            }
            blast(lab, &mut live, options, samples, warm_up).context(*shown)?;
            if let Some(program) = program {
                live.programs.detach(program)?;
            }
        }
    }

    let all = std::iter::once(("wayleave", &ours)).chain(forwarders.iter().map(|(_, shown)| *shown).zip(&peers));
    let rows: Vec<Vec<String>> = all
        .map(|(name, (rate, arrived))| {
            let (low, high) = rate.range();
            let spread = format!("{} – {}", number(low), number(high));
            vec![name.to_owned(), number(rate.median()), spread, format!("{} %", number(arrived.median()))]
        })
        .collect();
    let title = format!(
        "64-byte UDP packets forwarded, veth to veth, random destinations inside {} IPv4 routes; one CPU generates, \
         forwards and counts",
        number_of(table.v4.len())
    );
    report.table(&title, &["", "Mpps delivered, median", "min – max", "of those sent"], &rows);
    for ((_, shown), (rate, _)) in forwarders.iter().zip(&peers) {
        let name = format!("forwarding v4, {} routes", number_of(table.v4.len()));
        report.compare(&name, ours.0.median(), (shown, rate.median()), "Mpps", Better::More);
    }
    // The last repetition left no program attached, but the generation is still there.
    live.site.detach(lab)?;
    Ok(())
}

pub(crate) fn macs(destination: Mac, source: Mac) -> [u8; 12] {
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&destination.0);
    macs[6..].copy_from_slice(&source.0);
    macs
}

/// Keeps the calling thread on one CPU. A veth's softirqs run where frames were sent, so this one does all the work, and
/// no run gains by moving away from its own softirqs.
pub(crate) fn pin_to_first_cpu() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0);
    Ok(sched_setaffinity(None, &cpus)?)
}

/// Sends and counts what arrives: millions a second, and percent of what was sent.
pub(crate) fn blast(
    lab: &Lab,
    live: &mut Live,
    options: &Options,
    samples: &mut (Samples, Samples),
    warm_up: bool,
) -> Result<()> {
    let client = lab.client.ifindex("eth0")?;
    let frames = if warm_up { options.frames / 10 } else { options.frames };
    let before = lab.sink.counters("eth0")?.rx_packets;
    let arrived = || anyhow::Ok(lab.sink.counters("eth0")?.rx_packets - before);
    let begin = Instant::now();
    lab.client.enter(|| {
        pin_to_first_cpu()?;
        live.programs.generate(live.generator, client, frames)
    })??;
    let mut elapsed = begin.elapsed();
    let mut count = arrived()?;
    // What is still on its way arrives within moments; what does not was dropped.
    let deadline = Instant::now() + SETTLE;
    while count < frames.into() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
        let now = arrived()?;
        if now > count {
            (count, elapsed) = (now, begin.elapsed());
        }
    }
    ensure!(count > u64::from(frames) / 100, "{count} of {frames} frames arrived");
    if !warm_up {
        samples.0.push(count as f64 / elapsed.as_secs_f64() / 1e6);
        samples.1.push(count as f64 * 100.0 / f64::from(frames));
    }
    Ok(())
}
