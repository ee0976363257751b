//! Writes the seeds of the fuzz targets: `fuzz-seeds ROOT DIRECTORY` fills `DIRECTORY/TARGET/`.

use std::path::Path;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, directory] = arguments.as_slice() else { bail!("usage: fuzz-seeds ROOT DIRECTORY") };
    wayleave_tests::fuzz::write_seeds(Path::new(root), Path::new(directory))
}
