//! The one binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    wayleave::cli::main()
}
