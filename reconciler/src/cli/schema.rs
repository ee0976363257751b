//! `wayleave schema`: print the published JSON Schemas.

use clap::ValueEnum;

use super::{Exit, print};
use crate::policy::schema::Published;

/// Print the JSON Schema of policies or of a node's configuration
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(value_enum, default_value_t = Which::Policy)]
    which: Which,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Which {
    Policy,
    Config,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    let schema = match args.which {
        Which::Policy => Published::Policy,
        Which::Config => Published::Config,
    };
    print(schema.text())?;
    Ok(Exit::Ok)
}
