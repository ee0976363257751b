//! Nanoseconds of one lookup, in the kernel, and bytes of one route.

use anyhow::{Result, ensure};
use fib::layout::Section;
use wayleave::compile::View;

use crate::Options;
use crate::internet::{Random, Table};
use crate::lab::{Lab, Site};
use crate::programs::{ADDRESSES, Generator, Pass, Programs};
use crate::report::{Better, Report, Samples, number};

/// The programs that look up IPv4 addresses, and what they are called in tables.
const LIST: (&str, &str) = ("empty_v4", "the list of addresses alone");
const IMAGE: (&str, &str) = ("image_v4", "wayleave, tables in the image");
const TRIE: (&str, &str) = ("trie_v4", "LPM_TRIE");
const KERNEL: (&str, &str) = ("kernel_v4", "bpf_fib_lookup, same routes in the kernel");
const DIR: (&str, &str) = ("dir_v4", "DIR-24-8 in one array value");
const IMAGE_V6: (&str, &str) = ("image_v6", "wayleave, tables in the image");
const LIST_V6: (&str, &str) = ("empty_v6", "the list of addresses alone");
const TRIE_V6: (&str, &str) = ("trie_v6", "LPM_TRIE");

/// Addresses of a pass that is over before a table is back in the caches.
const COLD: u32 = 1 << 16;

/// Tables below the whole one, in routes of IPv4.
const SIZES: [usize; 3] = [10, 1_000, 10_000];

/// A generation that is live in the lab, and the benchmark's programs beside it.
pub(crate) struct Live {
    pub(crate) site: Site,
    pub(crate) programs: Programs,
    /// What frames are sent.
    pub(crate) generator: Generator,
    /// Routes with their targets in the image.
    routes: Vec<(wayleave::policy::Prefix, u16)>,
    bytes: Bytes,
}

/// What the image takes.
struct Bytes {
    image: usize,
    capacity: usize,
    lookup_v4: usize,
    lookup_v6: usize,
    routes_v4: usize,
    routes_v6: usize,
}

impl Live {
    /// Applies a table as the daemon does, and loads the programs.
    pub(crate) fn publish(lab: &Lab, table: &Table, random: &mut Random) -> Result<Self> {
        let addresses = usize::try_from(ADDRESSES)?;
        let v4 = table.addresses_v4(addresses, random);
        let v6 = if table.v6.is_empty() { Vec::new() } else { table.addresses_v6(addresses, random) };
        let mut live = Self::of(lab, Site::new(table)?)?;
        live.programs.set_addresses_v4(&v4)?;
        live.programs.set_addresses_v6(&v6)?;
        Ok(live)
    }

    /// The same of any source; the list of addresses is empty.
    pub(crate) fn of(lab: &Lab, site: Site) -> Result<Self> {
        let node = site.node()?;
        let device = lab.router.ifindex("lan")?;
        lab.apply(&node)?;
        let (programs, routes, bytes) = lab.router.enter(|| {
            let observed = node.observe()?;
            let live = observed.live.as_ref().ok_or_else(|| anyhow::anyhow!("nothing was published"))?;
            let capacity = live.image.capacity();
            let pin = node.pins.generations(capacity.trailing_zeros());
            let programs = Programs::load(&pin, u32::try_from(capacity)?, device)?;
            let view = live.image.view()?;
            let routes = view.routes_v4().chain(view.routes_v6()).map(|route| (route.prefix, route.target)).collect();
            anyhow::Ok((programs, routes, bytes(&view, capacity)))
        })??;
        Ok(Self { site, programs, generator: Generator::To, routes, bytes })
    }

    pub(crate) fn fill_tries(&mut self) -> Result<std::time::Duration> {
        self.programs.fill_tries(self.routes.iter().copied())
    }

    /// Runs the programs in turn, so often, over so many addresses; all that find targets must find the same ones.
    fn measure(&mut self, lab: &Lab, names: &[(&str, &str)], addresses: u32, repetitions: u32) -> Result<Vec<Samples>> {
        let mut samples = vec![Samples::default(); names.len()];
        let mut expected: Option<Pass> = None;
        for repetition in 0..=repetitions {
            for ((name, shown), samples) in names.iter().zip(&mut samples) {
                let pass = lab.router.enter(|| self.programs.pass(name, addresses))??;
                if *name != LIST.0 && *name != LIST_V6.0 {
                    ensure!(pass.found == u64::from(addresses), "{shown} found {} of {addresses}", pass.found);
                    // The kernel's tables know no targets: there, being found must do.
                    if *name != KERNEL.0 {
                        let sum = expected.get_or_insert(pass).sum;
                        ensure!(pass.sum == sum, "{shown} found other routes: {} instead of {sum}", pass.sum);
                    }
                }
                // The first round warms up.
                if repetition > 0 {
                    samples.push(pass.ns);
                }
            }
        }
        Ok(samples)
    }
}

fn bytes(view: &View, capacity: usize) -> Bytes {
    Bytes {
        image: view.bytes().len(),
        capacity,
        lookup_v4: view.lookup_bytes(Section::V4_FIB),
        lookup_v6: view.lookup_bytes(Section::V6_FIB),
        routes_v4: view.routes_v4().len(),
        routes_v6: view.routes_v6().len(),
    }
}

/// Measures all tables of this part. `lab` holds the routes of `table` in the kernel too.
pub(crate) fn run(lab: &Lab, table: &Table, options: &Options, report: &mut Report) -> Result<()> {
    let mut random = Random(20_260_617);
    sizes(lab, table, options, report, &mut random)?;

    eprintln!("lookup: {} IPv4 and {} IPv6 routes", table.v4.len(), table.v6.len());
    let mut live = Live::publish(lab, table, &mut random)?;
    live.fill_tries()?;
    let dir_bytes = live.programs.fill_dir(live.routes.iter().copied())?;
    for (names, family, routes) in [
        (&[LIST, IMAGE, TRIE, KERNEL, DIR][..], 4, table.v4.len()),
        (&[LIST_V6, IMAGE_V6, TRIE_V6][..], 6, table.v6.len()),
    ] {
        for (addresses, caches) in [(ADDRESSES, ""), (COLD, ", cold caches")] {
            let samples = live.measure(lab, names, addresses, options.repetitions)?;
            let rows: Vec<_> = names.iter().zip(&samples).map(|((_, shown), s)| ((*shown).to_owned(), s)).collect();
            let title =
                format!("Lookup, {} IPv{family} routes, random addresses inside them{caches}", number_of(routes));
            report.samples(&title, "ns a lookup", &rows);
            // The list and the image come first.
            let [_, ours, peers @ ..] = &samples[..] else { continue };
            let name = format!("lookup v{family}, {} routes{caches}", number_of(routes));
            for (peer, (_, shown)) in peers.iter().zip(&names[2..]) {
                report.compare(&name, ours.median(), (shown, peer.median()), "ns", Better::Less);
            }
        }
    }

    memory(&mut live, dir_bytes, report)?;
    live.site.detach(lab)
}

/// Small tables: where the trie is at its best.
fn sizes(lab: &Lab, table: &Table, options: &Options, report: &mut Report, random: &mut Random) -> Result<()> {
    let mut rows = Vec::new();
    for size in SIZES {
        eprintln!("lookup: {size} IPv4 routes");
        let mut live = Live::publish(lab, &table.sample(size, 0, random), random)?;
        live.fill_tries()?;
        let [ours, peer] = &live.measure(lab, &[IMAGE, TRIE], ADDRESSES, options.repetitions)?[..] else { continue };
        for (name, samples) in [("wayleave", ours), (TRIE.1, peer)] {
            rows.push((format!("{} routes, {name}", number_of(size)), samples.clone()));
        }
        let name = format!("lookup v4, {} routes", number_of(size));
        report.compare(&name, ours.median(), (TRIE.1, peer.median()), "ns", Better::Less);
        live.site.detach(lab)?;
    }
    let rows: Vec<_> = rows.iter().map(|(name, samples)| (name.clone(), samples)).collect();
    report.samples("Lookup in small IPv4 tables, random addresses inside them", "ns a lookup", &rows);
    Ok(())
}

/// What the tables of the data plane take.
fn memory(live: &mut Live, dir_bytes: usize, report: &mut Report) -> Result<()> {
    let b = &live.bytes;
    let figure = |bytes: u64| bytes as f64;
    let (v4, v6) = (b.routes_v4, b.routes_v6);
    let ours = b.lookup_v4 as f64 / v4 as f64;
    let ours_v6 = b.lookup_v6 as f64 / v6 as f64;
    let trie = figure(live.programs.memory("TRIE_V4")?);
    let trie_v6 = figure(live.programs.memory("TRIE_V6")?);
    let row =
        |name: &str, bytes: f64, routes: usize| vec![name.to_owned(), number(bytes), number(bytes / routes as f64)];
    let rows = [
        row("wayleave, IPv4 lookup tables", b.lookup_v4 as f64, v4),
        row("LPM_TRIE, IPv4, as the kernel accounts it", trie, v4),
        row("DIR-24-8, IPv4, blocks in use", dir_bytes as f64, v4),
        row("wayleave, IPv6 lookup tables", b.lookup_v6 as f64, v6),
        row("LPM_TRIE, IPv6, as the kernel accounts it", trie_v6, v6),
        row("wayleave, whole image: both families, and every route's file and line", b.image as f64, v4 + v6),
        row("wayleave, its capacity class: what the kernel gives", b.capacity as f64, v4 + v6),
    ];
    report.table("Memory of the data plane", &["", "bytes", "a route"], &rows);
    report.compare("bytes per v4 route", ours, (TRIE.1, trie / v4 as f64), "bytes", Better::Less);
    report.compare("bytes per v4 route", ours, (DIR.1, dir_bytes as f64 / v4 as f64), "bytes", Better::Less);
    report.compare("bytes per v6 route", ours_v6, (TRIE_V6.1, trie_v6 / v6 as f64), "bytes", Better::Less);
    Ok(())
}

/// A count with its thousands apart.
pub(crate) fn number_of(count: usize) -> String {
    if count < 100 { count.to_string() } else { number(count as f64) }
}
