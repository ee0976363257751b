//! The real routing tables of `tests/data`, and policy sources made of them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use wayleave::policy::Prefix;

use crate::lab;

/// Next hops of each family; a route's one is its origin AS modulo this.
pub(crate) const NEXT_HOPS: u32 = 249;

/// A prefix and its next hop.
pub(crate) type Route = (Prefix, u32);

/// Routes of both families, each sorted and without duplicates.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) v4: Vec<Route>,
    pub(crate) v6: Vec<Route>,
}

impl Table {
    pub(crate) fn internet() -> Result<Self> {
        Ok(Self { v4: read("internet-v4.txt.xz")?, v6: read("internet-v6.txt.xz")? })
    }

    /// A random part, with at most so many routes of each family.
    pub(crate) fn sample(&self, v4: usize, v6: usize, random: &mut Random) -> Self {
        let mut take = |routes: &[Route], count: usize| {
            let mut rows = BTreeSet::new();
            while rows.len() < count.min(routes.len()) {
                rows.insert(random.below(routes.len()));
            }
            rows.into_iter().map(|row| routes[row]).collect()
        };
        Self { v4: take(&self.v4, v4), v6: take(&self.v6, v6) }
    }

    /// Writes a source directory: one policy, one prefix list for each family.
    pub(crate) fn write_source(&self, directory: &Path) -> Result<()> {
        let mut yaml = String::from(
            "apiVersion: wayleave/v1\nkind: RoutePolicy\nmetadata: {name: internet}\nspec:\n  nextHops:\n",
        );
        let mut routes = String::from("  routes:\n");
        std::fs::create_dir_all(directory.join("lists"))?;
        for (name, table) in [("v4", &self.v4), ("v6", &self.v6)] {
            if table.is_empty() {
                continue;
            }
            let used: BTreeSet<u32> = table.iter().map(|(_, hop)| *hop).collect();
            for hop in used {
                let via = if name == "v4" { IpAddr::from(lab::via_v4(hop)) } else { lab::via_v6(hop).into() };
                writeln!(yaml, "    - {{name: {name}-{hop}, via: \"{via}\", port: wan}}")?;
            }
            let mut list = String::with_capacity(table.len() * 24);
            for (prefix, hop) in table {
                writeln!(list, "{prefix},{name}-{hop}")?;
            }
            std::fs::write(directory.join(format!("lists/{name}.txt")), list)?;
            writeln!(routes, "    - {{prefixesFrom: lists/{name}.txt}}")?;
        }
        std::fs::write(directory.join("internet.yaml"), yaml + &routes)?;
        Ok(())
    }

    /// The IPv4 part as `ip -batch` reads it.
    pub(crate) fn ip_batch(&self) -> String {
        let mut text = String::with_capacity(self.v4.len() * 56);
        for (prefix, hop) in &self.v4 {
            let _ = writeln!(text, "route add {prefix} via {} dev wan", lab::via_v4(*hop));
        }
        text
    }

    /// Random addresses, each inside a random route.
    pub(crate) fn addresses_v4(&self, count: usize, random: &mut Random) -> Vec<u32> {
        let inside = |(prefix, _): &Route, bits: u64| match prefix {
            Prefix::V4(address, length) => {
                let host = u32::MAX.checked_shr((*length).into()).unwrap_or(0);
                address.to_bits() | (bits >> 32) as u32 & host
            }
            Prefix::V6(..) => 0,
        };
        (0..count).map(|_| inside(&self.v4[random.below(self.v4.len())], random.next())).collect()
    }

    /// As above, in two numeric halves.
    pub(crate) fn addresses_v6(&self, count: usize, random: &mut Random) -> Vec<[u64; 2]> {
        let inside = |(prefix, _): &Route, bits: u128| match prefix {
            Prefix::V6(address, length) => {
                let host = u128::MAX.checked_shr((*length).into()).unwrap_or(0);
                let address = address.to_bits() | bits & host;
                [(address >> 64) as u64, address as u64]
            }
            Prefix::V4(..) => [0, 0],
        };
        (0..count)
            .map(|_| {
                let bits = u128::from(random.next()) << 64 | u128::from(random.next());
                inside(&self.v6[random.below(self.v6.len())], bits)
            })
            .collect()
    }
}

/// Reads one table of `tests/data`.
fn read(name: &str) -> Result<Vec<Route>> {
    let folder = std::env::var_os("WAYLEAVE_TEST_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("data"), PathBuf::from);
    let path = folder.join(name);
    let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    let mut text = String::new();
    xz2::read::XzDecoder::new(file).read_to_string(&mut text).with_context(|| format!("reading {}", path.display()))?;
    let mut routes = Vec::new();
    for line in text.lines() {
        let (prefix, number) = line.split_once(' ').with_context(|| format!("{name}: {line}"))?;
        let number: u32 = number.parse().with_context(|| format!("{name}: {line}"))?;
        routes.push((prefix.parse().with_context(|| format!("{name}: {line}"))?, number % NEXT_HOPS));
    }
    routes.sort_unstable();
    routes.dedup_by_key(|(prefix, _)| *prefix);
    Ok(routes)
}

/// `SplitMix64` (Steele, Lea, Flood 2014), from a fixed seed: every run measures the same addresses.
#[derive(Debug)]
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        fib::hash::mix(self.0)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap_or(0)
    }
}
