//! `wayleave explain`: what a diagnostic code means.

use std::fmt::Write as _;

use super::{Exit, note, print};
use crate::policy::Code;

/// Explain a diagnostic code, or list them all
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A code such as WL0302
    code: Option<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    let Some(number) = &args.code else {
        let mut list = String::new();
        for code in Code::ALL {
            let entry = code.entry();
            writeln!(list, "{}  {:<7}  {}", entry.number, entry.severity.as_str(), entry.title)?;
        }
        print(&list)?;
        return Ok(Exit::Ok);
    };
    let Some(code) = Code::from_number(number) else {
        note(&format!("error: there is no code `{number}`; `wayleave explain` lists them all"));
        return Ok(Exit::Usage);
    };
    let entry = code.entry();
    print(&format!("{} ({}): {}\n\n{}\n", entry.number, entry.severity.as_str(), entry.title, entry.explain))?;
    Ok(Exit::Ok)
}
