//! What filters cost: packets forwarded behind rules that let them pass, and the search for the rule by itself.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Result, ensure};
use wayleave::policy::Prefix;
use wayleave_tests::attach_xdp_drop;

use crate::Options;
use crate::forward::{blast, macs};
use crate::internet::{Random, Table};
use crate::lab::{Lab, Site, via_v4};
use crate::lookup::{Live, number_of};
use crate::programs::{ADDRESSES, Generator};
use crate::report::{Better, Report, Samples, number};

/// Prefixes of the long list.
const DENIED: usize = 100_000;
/// Numbers of rules.
const RULES: [usize; 3] = [10, 100, 1_000];
/// Passes of one turn; the best one counts, since what disturbs it only takes time.
const PASSES: u32 = 3;

/// Filters before the route, from none on.
struct Case {
    name: String,
    /// `None`: the image has no filters.
    rules: Option<Vec<Rule>>,
}

struct Rule {
    from: Vec<Prefix>,
    more: String,
}

/// What was measured of a case.
#[derive(Default)]
struct Measured {
    rate: (Samples, Samples),
    search: Samples,
}

pub(crate) fn run(lab: &Lab, table: &Table, options: &Options, report: &mut Report) -> Result<()> {
    let mut random = Random(20_261_124);
    let denied = table.sample(DENIED, 0, &mut random);
    let sources = outside(table, &denied, &mut random)?;
    let prefixes: Vec<Prefix> = denied.v4.iter().map(|(prefix, _)| *prefix).collect();
    let cases = cases(&prefixes);
    let _sink = attach_xdp_drop(&lab.sink, "eth0")?;
    let mut measured: Vec<Measured> = cases.iter().map(|_| Measured::default()).collect();
    for repetition in 0..=options.forward_repetitions {
        eprintln!("filter: {repetition} of {}", options.forward_repetitions);
        for (case, measured) in cases.iter().zip(&mut measured) {
            turn(lab, case, &sources, options, measured, repetition == 0)?;
        }
    }
    tables(&cases, &measured, report);
    Ok(())
}

fn cases(denied: &[Prefix]) -> Vec<Case> {
    let deny = |from: &[Prefix]| vec![Rule { from: from.to_vec(), more: String::new() }];
    let mut cases = vec![
        Case { name: "no filters".to_owned(), rules: None },
        Case { name: "1 deny prefix".to_owned(), rules: Some(deny(&denied[..1])) },
        Case { name: format!("{} deny prefixes", number_of(denied.len())), rules: Some(deny(denied)) },
    ];
    for count in RULES {
        let rule = |number: usize| Rule {
            from: vec![denied[number * (denied.len() / RULES[2])]],
            more: format!(", protocol: udp, ports: [{}]", 10_000 + number),
        };
        cases.push(Case { name: format!("{} rules", number_of(count)), rules: Some((0..count).map(rule).collect()) });
    }
    cases
}

/// One case, published anew: its rate and its search.
fn turn(
    lab: &Lab,
    case: &Case,
    sources: &[u32],
    options: &Options,
    measured: &mut Measured,
    warm_up: bool,
) -> Result<()> {
    let site = Site::with(|source| write(source, case.rules.as_deref()))?;
    let mut live = Live::of(lab, site)?;
    live.programs.set_addresses_v4(sources)?;
    live.programs.set_frame(macs(lab.lan_mac, lab.client_mac), Ipv4Addr::UNSPECIFIED, via_v4(1))?;
    live.generator = Generator::From;
    // Each publish begins with cold tables.
    blast(lab, &mut live, options, &mut measured.rate, true)?;
    if !warm_up {
        blast(lab, &mut live, options, &mut measured.rate, false)?;
        let mut best = f64::INFINITY;
        for _ in 0..PASSES {
            let program = if case.rules.is_some() { "filter_v4" } else { "empty_filter_v4" };
            let pass = lab.router.enter(|| live.programs.pass(program, ADDRESSES))??;
            // One for each packet: no rule matches.
            ensure!(
                case.rules.is_none() || pass.sum == u64::from(ADDRESSES),
                "{}: rules match that should not",
                case.name
            );
            best = best.min(pass.ns);
        }
        measured.search.push(best);
    }
    live.site.detach(lab)
}

fn write(source: &Path, rules: Option<&[Rule]>) -> Result<()> {
    std::fs::write(
        source.join("route.yaml"),
        format!(
            "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {{name: all}}\nspec:\n  nextHops:\n    - {{name: one, via: {}, \
             port: wan}}\n  routes:\n    - {{prefix: 10.78.1.0/24, nextHops: [{{name: one}}]}}\n",
            via_v4(1)
        ),
    )?;
    let Some(rules) = rules else { return Ok(()) };
    let mut yaml = String::from(
        "apiVersion: wayleave/v1\nkind: FilterPolicy\nmetadata: {name: edge}\nspec:\n  default: allow\n  rules:\n",
    );
    for (number, rule) in rules.iter().enumerate() {
        let mut list = String::with_capacity(rule.from.len() * 20);
        for prefix in &rule.from {
            writeln!(list, "{prefix}")?;
        }
        std::fs::write(source.join(format!("{number}.txt")), list)?;
        writeln!(yaml, "    - {{name: rule-{number}, fromList: {number}.txt{}, action: deny}}", rule.more)?;
    }
    Ok(std::fs::write(source.join("filter.yaml"), yaml)?)
}

/// Random addresses of the table that no denied prefix holds, as many as the list of addresses has.
fn outside(table: &Table, denied: &Table, random: &mut Random) -> Result<Vec<u32>> {
    let mut spans: Vec<(u32, u32)> = denied
        .v4
        .iter()
        .filter_map(|(prefix, _)| match prefix {
            Prefix::V4(address, length) => {
                let first = address.to_bits();
                Some((first, first | u32::MAX.checked_shr((*length).into()).unwrap_or(0)))
            }
            Prefix::V6(..) => None,
        })
        .collect();
    spans.sort_unstable();
    // The end of all that begin up to here: prefixes nest.
    let mut end = 0;
    for span in &mut spans {
        end = span.1.max(end);
        span.1 = end;
    }
    let is_denied = |address: u32| {
        let after = spans.partition_point(|(first, _)| *first <= address);
        after > 0 && spans[after - 1].1 >= address
    };
    let wanted = usize::try_from(ADDRESSES)?;
    let mut found = Vec::with_capacity(wanted);
    // Of the whole table few are denied, of a small one nearly all.
    for _ in 0..64 {
        found.extend(table.addresses_v4(wanted, random).into_iter().filter(|address| !is_denied(*address)));
        if found.len() >= wanted {
            found.truncate(wanted);
            return Ok(found);
        }
        if found.is_empty() {
            break;
        }
    }
    // All over the unicast addresses.
    while found.len() < wanted {
        let address = u32::try_from(random.next() >> 32)? % (0xdf00_0000 - 0x0100_0000) + 0x0100_0000;
        if address >> 24 != 127 && !is_denied(address) {
            found.push(address);
        }
    }
    Ok(found)
}

fn tables(cases: &[Case], measured: &[Measured], report: &mut Report) {
    let [none, ..] = measured else { return };
    let base = 1e3 / none.rate.0.median();
    let mut rows = Vec::new();
    for (case, measured) in cases.iter().zip(measured) {
        let rate = &measured.rate.0;
        let (low, high) = rate.range();
        rows.push(vec![
            case.name.clone(),
            number(rate.median()),
            format!("{} – {}", number(low), number(high)),
            format!("{} %", number(measured.rate.1.median())),
            number(1e3 / rate.median() - base),
        ]);
        if case.rules.is_some() {
            let name = format!("forwarding behind {}", case.name);
            report.compare(&name, rate.median(), ("no filters", none.rate.0.median()), "Mpps", Better::More);
        }
    }
    let title = "64-byte UDP packets from random addresses, forwarded behind filters that let them pass; one CPU generates, \
                 forwards and counts";
    report.table(
        title,
        &["", "Mpps delivered, median", "min – max", "of those sent", "ns a packet more than none"],
        &rows,
    );
    let rows: Vec<_> = cases
        .iter()
        .zip(measured)
        .map(|(case, measured)| {
            let name = if case.rules.is_some() { &case.name } else { "the list of addresses alone" };
            (name.to_owned(), &measured.search)
        })
        .collect();
    report.samples("The search for the rule of random source addresses, which finds none, by itself", "ns", &rows);
}
