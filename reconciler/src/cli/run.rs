//! `wayleave run`: the daemon.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use super::node::{self, block_on};
use super::{Exit, Global};
use crate::daemon::run::run as daemon;
use crate::source::Source;

/// Follow the source and keep the kernel at what it says
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of policies; the source in the node's configuration when left out
    #[arg(value_name = "SOURCE")]
    source: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
    let node = node::load(global)?;
    let source = match &args.source {
        Some(directory) => Source::Directory(directory.clone()),
        None => node.config.source.clone(),
    };
    block_on(daemon(&node, &source))??;
    Ok(Exit::Ok)
}
