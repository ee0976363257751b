//! The packet corpus: readable cases of packets, each run by the library and by the loaded programs.
//!
//! A directory of `*.packets` files in, [`Report`]s out. `tests/packets/README.md` describes the files. What a case
//! expects is built here from its own words: the frame as it came, other MAC addresses, a lower TTL, and a checksum that
//! is summed up anew over the whole header. Nothing of the code under test takes part in it.
//!
//! [`load`] and [`run_library`] need no privileges. [`run_in_kernel`] needs bpf(2), a bpf file system and the loopback
//! device, and neither namespaces nor anything of this package's tests, so that it also runs in a bare guest.

mod case;
mod expect;
mod flow;
mod frame;
mod kernel;
mod library;
pub(crate) mod node;
mod theme;
mod words;

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

pub use case::Case;
pub use frame::Frame;
pub use kernel::{Program, run_in_kernel};
pub use library::run_library;
pub use node::{NodeDescription, Port};
pub use theme::Theme;

/// What the files of the corpus are called.
const EXTENSION: &str = "packets";

/// Reads and compiles every `*.packets` file of a directory, sorted by name; an error names `file:line`.
pub fn load(directory: &Path) -> Result<Vec<Theme>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            paths.push(path);
        }
    }
    ensure!(!paths.is_empty(), "{} holds no *.{EXTENSION} file", directory.display());
    paths.sort();
    paths.iter().map(|path| Theme::read(path)).collect()
}

/// What became of the cases of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Cases that ran.
    pub ran: usize,
    /// Cases that a test run of the program cannot take, with the reason.
    pub left_out: Vec<String>,
    pub failures: Vec<Failure>,
}

/// A case that went otherwise than it says. Displays as `file:line`, the case's name, and what differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub file: String,
    /// 1-based line of the case.
    pub line: usize,
    pub case: String,
    /// Who decided otherwise: the library, or one of the programs.
    pub by: &'static str,
    pub detail: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {} ({})", self.file, self.line, self.case, self.by)?;
        self.detail.lines().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

impl Report {
    fn note(&mut self, case: &Case, by: &'static str, result: Result<(), String>) {
        self.ran += 1;
        if let Err(detail) = result {
            let (file, line, case) = (case.file.clone(), case.line, case.name.clone());
            self.failures.push(Failure { file, line, case, by, detail });
        }
    }

    /// An error with every failure in it, if there is one.
    pub fn into_result(self) -> Result<Self> {
        let failures: String = self.failures.iter().map(|failure| format!("{failure}\n")).collect();
        ensure!(self.failures.is_empty(), "{} of {} cases failed:\n{failures}", self.failures.len(), self.ran);
        Ok(self)
    }
}
