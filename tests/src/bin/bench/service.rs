//! What services cost: packets forwarded by way of a service, by the route alone, and by a DNAT map of nftables.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use fib::layout::LAYOUT_VERSION;
use fib::service::{FlowKey, FlowWords, HalfOpenWords};
use wayleave_tests::attach_xdp_drop;

use crate::Options;
use crate::forward::{blast, macs};
use crate::lab::{Lab, Site, via_v4};
use crate::live::{STAGES, in_process, ms};
use crate::lookup::{Live, number_of};
use crate::programs::{ADDRESSES, Generator};
use crate::report::{Better, Report, Samples, number};

/// Services of the large source, and backends of each service.
const MANY: u32 = 10_000;
const BACKENDS: u32 = 10;
/// Flows that are sent in turn: with `nat`, nearly what the flow table holds; and many more than it does.
const FLOWS: u64 = 50_000;
const MANY_FLOWS: u64 = 1_000_000;
/// To publish many services and to begin many flows takes most of the time.
const REPETITIONS_MAX: u32 = 3;
/// New flows a second while flows are begun: the limit is not what is measured.
const UNLIMITED: u64 = 10_000_000;
/// How long it may take until every flow is known.
const PATIENCE: Duration = Duration::from_mins(1);

/// The first VIP, and the first backend; the others follow.
const VIP: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 1);
/// All backends.
const BACKEND_PREFIX: &str = "10.128.0.0/9";

/// Who forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forwarder {
    /// The backends are addressed directly: no service is asked.
    Route,
    /// The same, and there are services.
    RouteBesideServices,
    Nat,
    Dsr,
    Nftables,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    forwarder: Forwarder,
    services: u32,
    flows: u64,
}

const fn case(forwarder: Forwarder, services: u32, flows: u64) -> Case {
    Case { forwarder, services, flows }
}

const CASES: [Case; 9] = [
    case(Forwarder::Route, 1, FLOWS),
    case(Forwarder::RouteBesideServices, 1, FLOWS),
    case(Forwarder::Nat, 1, FLOWS),
    case(Forwarder::Nftables, 1, FLOWS),
    case(Forwarder::RouteBesideServices, MANY, FLOWS),
    case(Forwarder::Nat, MANY, FLOWS),
    case(Forwarder::Nftables, MANY, FLOWS),
    case(Forwarder::Route, 1, MANY_FLOWS),
    case(Forwarder::Dsr, 1, MANY_FLOWS),
];

impl Case {
    /// With fewer services and flows.
    fn quick(self) -> Self {
        Self { services: self.services.min(100), flows: self.flows.min(2_000), ..self }
    }

    fn name(&self) -> String {
        let services = if self.services == 1 {
            "1 service".to_owned()
        } else {
            format!("{} services", number_of(self.services as usize))
        };
        let flows = number_of(usize::try_from(self.flows).unwrap_or(usize::MAX));
        match self.forwarder {
            Forwarder::Route => format!("wayleave, route alone, {flows} flows"),
            Forwarder::RouteBesideServices => format!("wayleave, route beside {services}, {flows} flows"),
            Forwarder::Nat => format!("wayleave, {services}, nat, {flows} flows"),
            Forwarder::Dsr => format!("wayleave, {services}, l2-dsr, {flows} flows"),
            Forwarder::Nftables => format!("nftables, {services}, DNAT map, {flows} flows"),
        }
    }

    fn goes_to_vips(self) -> bool {
        !matches!(self.forwarder, Forwarder::Route | Forwarder::RouteBesideServices)
    }

    /// What the generator sends to.
    fn destinations(&self) -> Vec<u32> {
        let (first, count) =
            if self.goes_to_vips() { (VIP, self.services) } else { (BACKEND, self.services * BACKENDS) };
        (0..ADDRESSES).map(|number| first.to_bits() + number % count).collect()
    }

    /// The source of a node that does this.
    fn write(&self, source: &Path) -> Result<()> {
        match self.forwarder {
            Forwarder::Route | Forwarder::Nftables => write_route(source),
            Forwarder::RouteBesideServices | Forwarder::Nat => write_services(source, self.services),
            Forwarder::Dsr => write_dsr(source),
        }
    }
}

pub(crate) fn run(lab: &Lab, options: &Options, report: &mut Report) -> Result<()> {
    let cases = if options.quick { CASES.map(Case::quick) } else { CASES };
    lab.router.ip(&format!("route replace {BACKEND_PREFIX} via {} dev wan", via_v4(1)))?;
    let sink = attach_xdp_drop(&lab.sink, "eth0")?;
    let mut rates = vec![(Samples::default(), Samples::default()); cases.len()];
    let repetitions = options.forward_repetitions.min(REPETITIONS_MAX);
    for repetition in 1..=repetitions {
        for (case, rate) in cases.iter().zip(&mut rates) {
            eprintln!("service: {repetition} of {repetitions}, {}", case.name());
            turn(lab, case, options, rate).with_context(|| case.name())?;
        }
    }
    drop(sink);
    tables(&cases, &rates, report);
    publish(lab, if options.quick { 100 } else { MANY }, options, report)
}

/// Publishes, begins all flows, and measures.
fn turn(lab: &Lab, case: &Case, options: &Options, rate: &mut (Samples, Samples)) -> Result<()> {
    let mut live = Live::of(lab, Site::with(|source| case.write(source))?)?;
    live.programs.set_addresses_v4(&case.destinations())?;
    let unspecified = Ipv4Addr::UNSPECIFIED;
    live.programs.set_frame(macs(lab.lan_mac, lab.client_mac), unspecified, unspecified)?;
    live.programs.set_flows(case.flows)?;
    live.generator = Generator::Flows;
    if case.forwarder == Forwarder::Nftables {
        live.site.detach(lab)?;
        nft(lab, &dnat(case.services))?;
    } else if case.forwarder == Forwarder::Nat {
        unlimit(&live.site)?;
    }
    begin(lab, &mut live, case, options)?;
    blast(lab, &mut live, options, rate, false)?;
    if case.forwarder == Forwarder::Nftables {
        return nft(lab, "flush ruleset\n");
    }
    live.site.detach(lab)
}

/// Sends every flow until all of them arrive, and with `nat` until each is established: nobody answers here, so they would stay
/// half-open.
fn begin(lab: &Lab, live: &mut Live, case: &Case, options: &Options) -> Result<()> {
    let all = Options { frames: u32::try_from(case.flows)?, ..options.clone() };
    let started = Instant::now();
    loop {
        let mut rate = (Samples::default(), Samples::default());
        blast(lab, live, &all, &mut rate, false)?;
        let arrived = rate.1.median();
        let missing = if case.forwarder == Forwarder::Nat { missing(&live.site, case.flows)? } else { 0 };
        if arrived >= 100.0 && missing == 0 {
            return Ok(());
        }
        ensure!(started.elapsed() < PATIENCE, "{arrived} % of the flows arrive, {missing} entries are missing");
    }
}

/// Makes half-open flows established ones; returns how many entries of these are missing.
fn missing(site: &Site, flows: u64) -> Result<u64> {
    let pin = |name: &str| site.bpffs.path().join(format!("wayleave/layout-{LAYOUT_VERSION}/maps/{name}"));
    let open = |name: &str| anyhow::Ok(Map::LruHashMap(MapData::from_pin(pin(name))?));
    let half_open: HashMap<_, FlowKey, HalfOpenWords> = HashMap::try_from(open("HALF_OPEN")?)?;
    let mut established: HashMap<_, FlowKey, FlowWords> = HashMap::try_from(open("FLOWS")?)?;
    for entry in &half_open {
        let (key, [a, b, c, d, _]) = entry?;
        established.insert(key, [a, b, c, d], 0)?;
    }
    Ok((2 * flows).saturating_sub(established.keys().count().try_into()?))
}

/// Takes the limit from new flows.
fn unlimit(site: &Site) -> Result<()> {
    let pin = site.bpffs.path().join(format!("wayleave/layout-{LAYOUT_VERSION}/maps/FLOW_LIMITS"));
    let mut limits: Array<_, [u64; 3]> = Array::try_from(Map::Array(MapData::from_pin(pin)?))?;
    Ok(limits.set(0, [UNLIMITED, UNLIMITED, 0], 0)?)
}

fn vip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(VIP.to_bits() + service)
}

fn backend(service: u32, number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(BACKEND.to_bits() + service * BACKENDS + number)
}

fn write_route(source: &Path) -> Result<()> {
    let text = format!(
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: backends}}\nspec:\n  nextHops:\n    - {{name: one, via: {}, \
         port: wan}}\n  routes:\n    - {{prefix: {BACKEND_PREFIX}, nextHops: [{{name: one}}]}}\n",
        via_v4(1)
    );
    Ok(std::fs::write(source.join("route.yaml"), text)?)
}

fn service(number: u32, forwarding: &str, backends: impl Iterator<Item = Ipv4Addr>) -> String {
    let backends = backends.fold(String::new(), |mut text, address| {
        let _ = writeln!(text, "    - {{address: {address}}}");
        text
    });
    format!(
        "apiVersion: wayleave/v1\nkind: ServicePolicy\nmetadata: {{name: service-{number}}}\nspec:\n  vip: {}\n  ports: [{{port: 9, \
         protocol: udp}}]\n  forwarding: {forwarding}\n  backends:\n{backends}",
        vip(number)
    )
}

fn write_services(source: &Path, services: u32) -> Result<()> {
    write_route(source)?;
    for number in 0..services {
        let text = service(number, "nat", (0..BACKENDS).map(|at| backend(number, at)));
        std::fs::write(source.join(format!("service-{number}.yaml")), text)?;
    }
    Ok(())
}

/// One service whose backends are next hops.
fn write_dsr(source: &Path) -> Result<()> {
    let mut hops = String::new();
    let mut routes = String::new();
    for number in 1..=BACKENDS {
        let via = via_v4(number);
        writeln!(hops, "    - {{name: b-{number}, via: {via}, port: wan}}")?;
        writeln!(routes, "    - {{prefix: {via}/32, nextHops: [{{name: b-{number}}}]}}")?;
    }
    let text = format!(
        "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: backends}}\nspec:\n  nextHops:\n{hops}  routes:\n{routes}"
    );
    std::fs::write(source.join("route.yaml"), text)?;
    Ok(std::fs::write(source.join("service.yaml"), service(0, "l2-dsr", (1..=BACKENDS).map(via_v4)))?)
}

/// The same services for nftables: one lookup in a map for a packet that begins a flow, and connection tracking for all. The
/// map leads to one backend of each service, which is less work than to choose one.
fn dnat(services: u32) -> String {
    let mut text = String::from(
        "table ip bench {\n  map services {\n    type ipv4_addr . inet_service : ipv4_addr . inet_service\n    elements = {\n",
    );
    for number in 0..services {
        let _ = writeln!(text, "      {} . 9 : {} . 9,", vip(number), backend(number, 0));
    }
    text + "    }\n  }\n  chain prerouting {\n    type nat hook prerouting priority dstnat; policy accept;\n    dnat to ip daddr . \
            udp dport map @services\n  }\n}\n"
}

fn nft(lab: &Lab, rules: &str) -> Result<()> {
    let mut command = lab.router.command("nft");
    let mut child = command
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting nft (package nftables)")?;
    child.stdin.take().context("nft's input")?.write_all(rules.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn tables(cases: &[Case], rates: &[(Samples, Samples)], report: &mut Report) {
    let rate_of = |forwarder: Forwarder, like: &Case| {
        let is = |case: &Case| {
            case.forwarder == forwarder
                && case.flows == like.flows
                && (forwarder == Forwarder::Route || case.services == like.services)
        };
        cases.iter().zip(rates).find(|(case, _)| is(case)).map(|(_, rate)| rate.0.median())
    };
    let mut rows = Vec::new();
    for (case, (rate, arrived)) in cases.iter().zip(rates) {
        let (low, high) = rate.range();
        let more = rate_of(Forwarder::Route, case).map_or(f64::NAN, |base| 1e3 / rate.median() - 1e3 / base);
        rows.push(vec![
            case.name(),
            number(rate.median()),
            format!("{} – {}", number(low), number(high)),
            format!("{} %", number(arrived.median())),
            number(more),
        ]);
        if matches!(case.forwarder, Forwarder::Nat | Forwarder::Dsr) {
            let name = case.name().replace("wayleave, ", "");
            for (peer, shown) in
                [(Forwarder::Nftables, "nftables, DNAT map"), (Forwarder::Route, "wayleave, route alone")]
            {
                if let Some(peer) = rate_of(peer, case) {
                    report.compare(&name, rate.median(), (shown, peer), "Mpps", Better::More);
                }
            }
        }
    }
    let title = "64-byte UDP packets to services of 10 backends each, veth to veth, flows in turn; one CPU generates, forwards and counts";
    let head = ["", "Mpps delivered, median", "min – max", "of those sent", "ns a packet more than the route alone"];
    report.table(title, &head, &rows);
}

/// How long many services take to be live.
fn publish(lab: &Lab, services: u32, options: &Options, report: &mut Report) -> Result<()> {
    let site = Site::with(|source| write_services(source, services))?;
    let mut stages: BTreeMap<&str, Samples> = BTreeMap::new();
    let (mut cold, mut whole) = (Samples::default(), Samples::default());
    for repetition in 1..=options.live_repetitions {
        eprintln!("services until they are live: {repetition} of {}", options.live_repetitions);
        let times: BTreeMap<&str, f64> =
            in_process(lab, &site)?.into_iter().map(|(stage, time)| (stage, ms(time))).collect();
        let of = |stage: &str| times.get(stage).copied().unwrap_or(0.0);
        // What is done again and again: compile, stage, verify, publish.
        whole.push([STAGES[2], STAGES[7], STAGES[8], STAGES[9]].into_iter().map(of).sum());
        cold.push(STAGES[3..].iter().map(|stage| of(stage)).sum());
        for (stage, time) in times {
            stages.entry(stage).or_default().push(time);
        }
    }
    let mut rows: Vec<_> = STAGES.iter().filter_map(|stage| Some(((*stage).to_owned(), stages.get(stage)?))).collect();
    rows.push(("compile, stage, verify and publish".to_owned(), &whole));
    rows.push(("all of a first apply, from the proposal on".to_owned(), &cold));
    let title = format!(
        "Stages of one apply, {} services of {BACKENDS} backends, each in a file of its own, in process",
        number_of(services as usize)
    );
    report.samples(&title, "ms", &rows);
    Ok(())
}
