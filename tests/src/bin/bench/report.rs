//! What was measured: samples, tables on stdout, and `results.json`.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::json;

/// Repetitions of one measurement.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The middle one; of an even number the mean of both.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }

    /// The value that so many of all samples do not exceed.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (part * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn range(&self) -> (f64, f64) {
        self.0.iter().fold((f64::INFINITY, 0.0), |(low, high), v| (low.min(*v), high.max(*v)))
    }

    /// Median, and the whole range.
    fn cells(&self) -> [String; 2] {
        let (low, high) = self.range();
        [number(self.median()), format!("{} – {}", number(low), number(high))]
    }
}

/// Three digits that matter.
pub(crate) fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 100.0 {
        let digits = format!("{magnitude:.0}");
        let mut text = String::from(if value < 0.0 { "-" } else { "" });
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        text
    } else if magnitude >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// Whether more or less of a unit is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    Less,
    More,
}

/// All tables and comparisons of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    text: String,
    comparisons: Vec<serde_json::Value>,
}

impl Report {
    /// Adds a table of measurements.
    pub(crate) fn samples(&mut self, title: &str, unit: &str, rows: &[(String, &Samples)]) {
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|(name, samples)| {
                let [median, range] = samples.cells();
                vec![name.clone(), median, range]
            })
            .collect();
        self.table(title, &["", &format!("{unit}, median"), "min – max"], &rows);
    }

    /// Adds a table whose columns are aligned; the first one to the left.
    pub(crate) fn table(&mut self, title: &str, head: &[&str], rows: &[Vec<String>]) {
        let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
        let width = |column: usize| {
            std::iter::once(&head).chain(rows).filter_map(|row| Some(row.get(column)?.chars().count())).max()
        };
        let widths: Vec<usize> = (0..head.len()).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = format!("\n{title}\n\n");
        let rule: Vec<String> =
            widths.iter().enumerate().map(|(i, w)| "-".repeat(*w) + if i == 0 { "" } else { ":" }).collect();
        for (at, row) in std::iter::once(&head).chain(std::iter::once(&rule)).chain(rows).enumerate() {
            text.push('|');
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
                let _ = match (at, column) {
                    (1, 0) => write!(text, " {cell} |"),
                    (1, _) => write!(text, " {cell}|"),
                    (_, 0) => write!(text, " {cell}{padding} |"),
                    _ => write!(text, " {padding}{cell} |"),
                };
            }
            text.push('\n');
        }
        print!("{text}");
        self.text.push_str(&text);
    }

    /// Keeps one comparison for `results.json`; its ratio is above 1 where ours is better.
    pub(crate) fn compare(
        &mut self,
        name: &str,
        ours: f64,
        (peer_name, peer): (&str, f64),
        unit: &str,
        better: Better,
    ) {
        let ratio = match better {
            Better::Less => peer / ours,
            Better::More => ours / peer,
        };
        self.comparisons.push(json!({
            "name": name, "ours": ours, "peer_name": peer_name, "peer": peer, "unit": unit, "ratio": ratio,
        }));
    }

    /// Prints all ratios and writes `results.json` into `directory`.
    pub(crate) fn finish(mut self, directory: &Path) -> Result<()> {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let rows: Vec<Vec<String>> = self
            .comparisons
            .iter()
            .map(|row| {
                let figure = |key: &str| number(row[key].as_f64().unwrap_or(f64::NAN));
                vec![
                    text(&row["name"]),
                    figure("ours"),
                    text(&row["peer_name"]),
                    figure("peer"),
                    text(&row["unit"]),
                    figure("ratio"),
                ]
            })
            .collect();
        let title = "Ratios of the medians (above 1: wayleave is better)";
        self.table(title, &["", "wayleave", "peer", "peer's", "unit", "ratio"], &rows);
        std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        let path = directory.join("results.json");
        let json = serde_json::to_string_pretty(&self.comparisons)? + "\n";
        std::fs::write(&path, json).with_context(|| format!("writing {}", path.display()))?;
        eprintln!("wrote {}", path.display());
        Ok(())
    }
}

/// One line about the machine that the numbers come from.
pub(crate) fn machine() -> String {
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = file("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |(_, m)| m);
    let virtual_machine = if cpu.contains(" hypervisor") { ", virtual machine" } else { "" };
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = file("/proc/sys/kernel/osrelease");
    let load = file("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or("?");
    let date = Command::new("date").arg("-u").arg("+%F %R UTC").output();
    let date = date.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    format!("{model}, {cpus} CPUs{virtual_machine}; Linux {}; load {load} at the start; {date}", kernel.trim())
}
