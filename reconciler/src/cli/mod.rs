//! The command line: one file a command, each with its `Args` and its `run`.
//!
//! Data goes to stdout and everything else to stderr. A new command is three lines here: its module, its variant of
//! [`Command`] and its arm in [`dispatch`].

mod apply;
mod axes;
mod completions;
mod confirm;
mod demo;
mod detach;
mod doctor;
mod drift;
mod explain;
mod history;
pub(crate) mod node;
mod offline;
mod plan;
pub mod report;
mod review;
mod rollback;
mod run;
mod runtime;
mod schema;
mod source;
mod status;
mod suspend;
mod test;
mod trace;
mod validate;
mod watch;

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

/// Where a node's configuration is looked for.
const CONFIG_DEFAULT: &str = "/etc/wayleave/config.yaml";

/// Routes as code, in the kernel.
#[derive(Debug, Parser)]
#[command(name = "wayleave", version, about, propagate_version = true, subcommand_required = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// The node's configuration; /etc/wayleave/config.yaml when left out
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Global {
    /// Whether `--config` was given.
    pub(crate) fn names_config(&self) -> bool {
        self.config.is_some()
    }

    /// The configuration named with `--config`, or the node's own.
    pub(crate) fn config_path(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new(CONFIG_DEFAULT))
    }
}

/// How a command writes its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Human,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    Validate(validate::Args),
    Plan(plan::Args),
    Test(test::Args),
    Apply(apply::Args),
    Run(run::Args),
    Status(status::Args),
    Trace(trace::Args),
    Watch(watch::Args),
    History(history::Args),
    Rollback(rollback::Args),
    Confirm(confirm::Args),
    Suspend(suspend::Args),
    Resume(suspend::ResumeArgs),
    Drift(drift::Args),
    Detach(detach::Args),
    Demo(demo::Args),
    Doctor(doctor::Args),
    Schema(schema::Args),
    Explain(explain::Args),
    Completions(completions::Args),
    /// Fetches for another process of this program: a request on stdin, an answer on stdout
    #[command(name = crate::source::git::fetch::COMMAND, hide = true)]
    GitFetch,
}

fn dispatch(cli: &Cli) -> anyhow::Result<Exit> {
    match &cli.command {
        Command::Validate(args) => validate::run(args, &cli.global),
        Command::Plan(args) => plan::run(args, &cli.global),
        Command::Test(args) => test::run(args, &cli.global),
        Command::Apply(args) => apply::run(args, &cli.global),
        Command::Run(args) => run::run(args, &cli.global),
        Command::Trace(args) => trace::run(args, &cli.global),
        Command::Watch(args) => watch::run(args, &cli.global),
        Command::Status(args) => status::run(args, &cli.global),
        Command::History(args) => history::run(args, &cli.global),
        Command::Rollback(args) => rollback::run(args, &cli.global),
        Command::Confirm(args) => confirm::run(args, &cli.global),
        Command::Suspend(args) => suspend::run(args, &cli.global),
        Command::Resume(args) => suspend::resume(args, &cli.global),
        Command::Drift(args) => drift::run(args, &cli.global),
        Command::Detach(args) => detach::run(args, &cli.global),
        Command::Doctor(args) => doctor::run(args, &cli.global),
        Command::Demo(args) => demo::run(args),
        Command::Schema(args) => schema::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Completions(args) => completions::run(args),
        Command::GitFetch => Ok(crate::source::git::fetch::serve().map(|()| Exit::Ok)?),
    }
}

/// How a command ended; the numbers are part of the command contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, or nothing to do.
    Ok = 0,
    Error = 1,
    /// There are changes, and `--detailed-exitcode` asked for it.
    Changes = 2,
    /// Invalid policy, or a policy test that fails.
    Invalid = 3,
    /// Refused by a guard.
    Refused = 4,
    /// The plan was made against another generation.
    Stale = 5,
    /// Applied, then rolled back.
    RolledBack = 6,
    Usage = 64,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// The command has ended this way and has said why; nothing is left to print.
#[derive(Debug, thiserror::Error)]
#[error("ended with {0:?}")]
pub(crate) struct Ended(pub(crate) Exit);

/// Parses the command line, runs the command, and says how it ended.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` come this way too. Nobody is left to tell when this cannot be printed.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok }.into();
        }
    };
    match dispatch(&cli) {
        Ok(exit) => exit.into(),
        Err(error) => {
            if let Some(Ended(exit)) = error.downcast_ref() {
                return (*exit).into();
            }
            note(&format!("error: {error:#}"));
            Exit::Error.into()
        }
    }
}

/// Writes data to stdout. A reader that went away, such as `head`, is no error.
pub(crate) fn print(data: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(data.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes one line to stderr; when that is closed there is nowhere left to say so.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
