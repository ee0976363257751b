//! The story without a kernel: the same policies, plan and packets, decided by the library.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Context as _;
use fib::Verdict;

use super::narration::Narration;
use super::network::{BLOCKED_V4, CLIENT_V4, CLIENT_V6, SERVICE_V4, SERVICE_V6};
use super::repository::{CHANGE, FILES, UPLINKS, uplinks};
use super::traffic::PORT;
use crate::compile::{Image, LiveIds, NodeFacts, compile};
use crate::plan::Plan;
use crate::policy;
use crate::source::{Snapshot, SourceFile};
use crate::trace::{Fields, Offline, PacketDescription, trace};

/// First source port of the flows that are tried, and how many: as a client's kernel would choose them.
const SPORTS: std::ops::Range<u16> = 40_000..40_400;

/// Percent of the flows that the edge with weight 3 of 4 may get; the other edge would get a quarter.
const SHARES: std::ops::RangeInclusive<usize> = 60..=90;

/// Tells the story; `reason` says why no kernel takes part.
pub(super) fn tell(tell: &mut Narration, reason: &str) -> anyhow::Result<()> {
    tell.say("wayleave demo, SIMULATED: no packet is sent and no kernel takes part.")?;
    tell.say(&format!("({reason})"))?;
    tell.say("The library that decides here is the same code that runs in the kernel.")?;
    let (before, after) = uplinks();

    tell.step("Route policies")?;
    tell.command("wayleave validate policies")?;
    let mut first = compiled(&before, None)?;
    tell.output(&FILES.map(|(name, _)| name).join(", "))?;
    tell.say("valid")?;

    tell.step("The plan, then the first publish")?;
    tell.command("wayleave plan --config node.yaml")?;
    tell.output(&Plan::between(None, &first.view()?).to_string())?;
    first.stamp(1, 0, 0);

    tell.step("Traffic: which edge would each flow meet?")?;
    flows(tell, &first, "edge-a")?;

    tell.step("A reviewed change: edge-b takes three flows of four")?;
    tell.say(&format!("commit: {CHANGE}"))?;
    let mut second = compiled(&after, Some(&first))?;
    let plan = Plan::between(Some(&first.view()?), &second.view()?);
    tell.command("wayleave plan --config node.yaml")?;
    tell.output(&plan.to_string())?;
    tell.check(!plan.is_empty(), "the plan names what changes for packets")?;
    second.stamp(2, 1, 0);

    tell.step("Traffic after the swap")?;
    flows(tell, &second, "edge-b")?;

    tell.step("A mistake: the live rules would stay")?;
    let faults = policy::validate(&snapshot(&after.replace("198.51.100.0/24", "198.51.100.7/24")));
    for fault in &faults.diagnostics {
        tell.output(&format!("{}: {}: {}", fault.file, fault.code, fault.message))?;
    }
    tell.check(faults.policy.is_none(), "policies with a fault never become rules")?;

    tell.step("Back to the rules of before")?;
    tell.command("wayleave rollback --config node.yaml")?;
    let mut back = compiled(&before, Some(&second))?;
    back.stamp(3, 2, 0);
    tell.output(&Plan::between(Some(&second.view()?), &back.view()?).to_string())?;
    tell.check(back.digest() == first.digest(), "the rules are those of generation 1, byte for byte")?;
    flows(tell, &back, "edge-a")
}

fn snapshot(uplinks: &str) -> Snapshot {
    let file = |(name, text): (&str, &str)| {
        let text = if name == UPLINKS { uplinks } else { text };
        (name.to_owned(), SourceFile::Content(text.as_bytes().into()))
    };
    Snapshot::of_directory(FILES.into_iter().map(file).collect())
}

fn compiled(uplinks: &str, live: Option<&Image>) -> anyhow::Result<Image> {
    let policy = policy::validate(&snapshot(uplinks)).policy.context("the sample policies are not valid")?;
    let ids = match live {
        Some(live) => LiveIds::from_views([&live.view()?]),
        None => LiveIds::default(),
    };
    Ok(compile(&policy, &NodeFacts::default(), &ids)?)
}

/// Asks the rules about many flows to the service, and about one to the blocked host.
fn flows(tell: &mut Narration, image: &Image, most: &str) -> anyhow::Result<()> {
    let view = image.view()?;
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    for (src, dst) in [(IpAddr::V4(CLIENT_V4), IpAddr::V4(SERVICE_V4)), (CLIENT_V6.into(), SERVICE_V6.into())] {
        for sport in SPORTS {
            let trace = trace(&view, packet(src, dst, sport)?, &Offline)?;
            let hop = trace.next_hop().map_or("nobody", |hop| hop.name.trim_end_matches("-v6"));
            *taken.entry(hop.to_owned()).or_default() += 1;
        }
    }
    let total: usize = taken.values().sum();
    let words: Vec<String> = taken.iter().map(|(name, n)| format!("{name} {n}")).collect();
    tell.say(&format!("{total} flows from the client to the service: {}", words.join(", ")))?;
    let share = taken.get(most).copied().unwrap_or(0) * 100 / total;
    tell.check(SHARES.contains(&share), &format!("{most} would take {share} % of the flows: three of four"))?;
    show(tell, image, SERVICE_V4.into())?;
    let verdict = show(tell, image, BLOCKED_V4.into())?;
    tell.check(verdict == Verdict::Drop, "the blocked host would be dropped")
}

/// Shows what the rules say about one packet, and which lines say so.
fn show(tell: &Narration, image: &Image, dst: IpAddr) -> anyhow::Result<Verdict> {
    let (view, sport) = (image.view()?, SPORTS.start);
    tell.command(&format!(
        "wayleave trace --against policies --src {CLIENT_V4} --dst {dst} --protocol tcp --sport {sport} --dport {PORT}"
    ))?;
    let trace = trace(&view, packet(CLIENT_V4.into(), dst, sport)?, &Offline)?;
    tell.output(&trace.to_string())?;
    Ok(trace.verdict())
}

fn packet(src: IpAddr, dst: IpAddr, sport: u16) -> anyhow::Result<PacketDescription> {
    let fields = Fields { src: Some(src), dst: Some(dst), sport: Some(sport), dport: Some(PORT), ..Fields::default() };
    Ok(PacketDescription::new(&fields)?)
}
