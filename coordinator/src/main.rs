//! The program `brigade`.

use std::process::ExitCode;

fn main() -> ExitCode {
    brigade_coordinator::cli::main(std::env::args_os())
}
