//! Runs the built `brigade` in a home of its own, so that no settings or coordinator of the machine reach it.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// `brigade` with these arguments, whose home, state and working directory are `home`.
pub fn brigade(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BRIGADE_") || name.to_string_lossy().starts_with("XDG_") {
            command.env_remove(name);
        }
    }
    command.args(args).env("HOME", home).env("XDG_RUNTIME_DIR", home).current_dir(home).stdin(Stdio::null());
    command
}

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Runs the command to its end.
pub fn outcome(command: &mut Command) -> Outcome {
    let Output { status, stdout, stderr } = command.output().unwrap();
    Outcome {
        code: status.code(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

/// Runs `brigade` with these arguments to its end.
pub fn run(home: &Path, args: &[&str]) -> Outcome {
    outcome(&mut brigade(home, args))
}
