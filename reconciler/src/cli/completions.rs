//! `wayleave completions`: print a completion script for a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Exit, print};

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    // Written to memory first: the generator panics when its output goes away.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "wayleave", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}
