//! The commands of `brigade`: what a user types, and what it comes to.
//!
//! Each command is a file of its own. Settings come from flags, `BRIGADE_*` variables, `brigade.toml` and defaults, in
//! this order. Exit codes: 0 done, 1 failed, 2 used wrongly, 130 ended at once by a second Ctrl-C.

mod bench;
mod compare;
mod connect;
mod devices;
mod doctor;
mod drain;
mod events;
mod host;
mod logs;
mod models;
mod options;
mod own;
mod plan;
mod report;
mod run;
mod serve;
mod status;
mod token;
mod top;
mod up;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use brigade_proto::control::PROTOCOL_VERSION;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::cluster::{DraftError, StartError};
use crate::config::{self, Settings};
use crate::{discovery, template};

/// Exit code of a command that failed.
const FAILED: u8 = 1;

/// Exit code of a command that was used wrongly.
const USED_WRONGLY: u8 = 2;

/// Exit code of a command that a second Ctrl-C ended at once.
const INTERRUPTED: u8 = 130;

/// Run large language models over several machines.
#[derive(Debug, Parser)]
#[command(
    name = "brigade",
    version,
    about = "Run a large language model over several machines, none of which could hold it alone",
    after_help = "Settings: flags win over BRIGADE_* variables, these over brigade.toml (in the working directory or \
                  ~/.config/brigade), and that over the defaults.\nExit codes: 0 done, 1 failed, 2 used wrongly.\n\n\
                  Example: brigade up SmolLM2.gguf --workers 3 --memory 64MiB",
    disable_help_subcommand = false,
    arg_required_else_help = true,
    max_term_width = 110
)]
pub struct Cli {
    /// Read settings from this file instead of brigade.toml
    #[arg(long, global = true, env = "BRIGADE_CONFIG", value_name = "FILE", hide_env = true)]
    pub config: Option<PathBuf>,

    /// What is logged.
    #[command(flatten)]
    pub logs: logs::LogOptions,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model with workers on this machine, in one go
    Up(up::UpArgs),
    /// Serve a model with workers that join from other machines
    Serve(serve::ServeArgs),
    /// Chat in the terminal
    Run(run::RunArgs),
    /// Show how a model would be cut, how fast it would be and what it would cost, without running it
    Plan(plan::PlanArgs),
    /// Show the health of a running cluster
    Status(status::StatusArgs),
    /// Show what happened in the cluster, also before its coordinator's last start
    Events(events::EventsArgs),
    /// Watch a running cluster in the terminal: stages, steps, workers, requests and events
    Top(top::TopArgs),
    /// Look for what stands between this machine and a cluster, with the command that mends it
    Doctor(doctor::DoctorArgs),
    /// Empty a worker, so that it can be unplugged while answers run
    Drain(drain::DrainArgs),
    /// Measure a running cluster: prompts, decoding, and where the stages' time goes
    Bench(bench::BenchArgs),
    /// Measure one box against the cluster, in turns, and say whether splitting pays
    Compare(compare::CompareArgs),
    /// Pull, list, look at, check and remove models
    #[command(subcommand)]
    Models(models::ModelsCommand),
    /// Make, list and revoke the tokens that workers join with
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example: brigade completions bash > ~/.local/share/bash-completion/completions/brigade"
    )]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the version of the program and of its protocol
    #[command(after_help = "Example: brigade version")]
    Version,
}

/// A command that was used wrongly, although each of its flags is of its form.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Runs the command line `args`, whose first item is the program's name, and says how it ended.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    // Our own processes: they read no settings, and nobody types this.
    if args.get(1).is_some_and(|arg| arg == template::SUBCOMMAND) {
        return if template::serve().is_ok() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) };
    }
    let cli = match parse(&args) {
        Ok(cli) => cli,
        Err(ParseError::Settings(error)) => {
            complain(&anyhow::Error::new(error));
            return ExitCode::from(USED_WRONGLY);
        }
        Err(ParseError::File { path, error }) => {
            complain(&anyhow::anyhow!("{}: {}", path.display(), one_line(&error)));
            return ExitCode::from(USED_WRONGLY);
        }
        Err(ParseError::Usage(error)) => {
            // Help on a closed pipe has nobody to complain to.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(FAILED));
        }
    };
    let log_prompts = match &cli.command {
        Command::Up(args) => args.http.log_prompts,
        Command::Serve(args) => args.http.log_prompts,
        _ => false,
    };
    if let Err(error) = cli.logs.start(log_prompts) {
        complain(&anyhow::Error::new(error));
        return ExitCode::from(USED_WRONGLY);
    }
    match execute(cli.command) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::from(if used_wrongly(&error) { USED_WRONGLY } else { FAILED })
        }
    }
}

/// Whether an error is the fault of what was typed.
fn used_wrongly(error: &anyhow::Error) -> bool {
    let other_tokens = |cause: &StartError| matches!(cause, StartError::Draft(DraftError::Vocabulary { .. }));
    error.chain().any(|cause| cause.is::<UsageError>() || cause.downcast_ref().is_some_and(other_tokens))
}

/// A command line that is no command.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// The settings file is wrong.
    #[error(transparent)]
    Settings(#[from] config::ConfigError),
    /// A value of the settings file is not of its flag's form.
    #[error("{}: {error}", path.display())]
    File {
        /// The settings file.
        path: PathBuf,
        /// What clap says of its value.
        error: clap::Error,
    },
    /// The flags are wrong, or help or version were asked for.
    #[error(transparent)]
    Usage(#[from] clap::Error),
}

/// Reads a command line with the settings file that it names or that is found.
///
/// # Errors
/// Where the file or the flags are wrong; also where help or version were asked for.
pub fn parse(args: &[OsString]) -> Result<Cli, ParseError> {
    let explicit = config_flag(args).or_else(|| std::env::var_os("BRIGADE_CONFIG").map(PathBuf::from));
    let here = std::env::current_dir().unwrap_or_default();
    let Some(path) = config::find(explicit.as_deref(), &here, discovery::config_home().as_deref()) else {
        return Ok(parse_with(args, None)?);
    };
    let settings = match Settings::read(&path, &Cli::command()) {
        Ok(settings) => settings,
        // Whoever asks for help gets it, whatever the file says.
        Err(error) => match parse_with(args, None) {
            Err(usage) if !usage.use_stderr() => return Err(usage.into()),
            _ => return Err(error.into()),
        },
    };
    parse_with(args, Some(&settings)).map_err(|error| {
        use clap::error::ErrorKind::{InvalidValue, ValueValidation};
        let of_file = matches!(error.kind(), InvalidValue | ValueValidation)
            && match parse_with(args, None) {
                Ok(_) => true,
                Err(without) => without.kind() != error.kind(),
            };
        if of_file { ParseError::File { path, error } } else { error.into() }
    })
}

fn parse_with(args: &[OsString], settings: Option<&Settings>) -> Result<Cli, clap::Error> {
    let mut command = Cli::command();
    if let Some(settings) = settings {
        command = settings.apply(command);
    }
    let mut matches = command.try_get_matches_from_mut(args)?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// The value of `--config`, needed before the command line can be parsed.
fn config_flag(args: &[OsString]) -> Option<PathBuf> {
    let mut args = args.iter().take_while(|arg| *arg != "--");
    while let Some(arg) = args.next() {
        if arg == "--config" {
            return args.next().map(PathBuf::from);
        }
        if let Some(value) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            return Some(PathBuf::from(value));
        }
    }
    None
}

fn execute(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up(args) => block_on(up::up(args)),
        Command::Serve(args) => block_on(serve::serve(args)),
        Command::Run(args) => block_on(run::run(args)),
        Command::Plan(args) => block_on(plan::plan(args)),
        Command::Status(args) => block_on(status::status(args)),
        Command::Events(args) => block_on(events::events(args)),
        Command::Top(args) => block_on(top::top(args)),
        Command::Doctor(args) => block_on(doctor::doctor(args)),
        Command::Drain(args) => block_on(drain::drain(args)),
        Command::Bench(args) => block_on(bench::bench(args)),
        Command::Compare(args) => block_on(compare::compare(args)),
        Command::Models(command) => block_on(models::models(command)),
        Command::Token(command) => block_on(token::token(command)),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "brigade", &mut script);
            std::io::stdout().write_all(&script)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Version => {
            let version = env!("CARGO_PKG_VERSION");
            writeln!(std::io::stdout(), "brigade {version} (protocol {PROTOCOL_VERSION})")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// How long the process waits at its end for a thread that the system holds up, such as in reading a file.
const THREAD_GRACE: Duration = Duration::from_millis(100);

fn block_on(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime's threads")?;
    let ended = runtime.block_on(command);
    runtime.shutdown_timeout(THREAD_GRACE);
    ended
}

/// Writes the error and its causes as one line.
fn complain(error: &anyhow::Error) {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let part = cause.to_string();
        // A transparent wrapper repeats what it wraps.
        if !parts.last().is_some_and(|last| last.contains(&part)) {
            parts.push(part);
        }
    }
    let _ = writeln!(std::io::stderr(), "error: {}", parts.join(": "));
}

/// What clap says, without its `error:` and the hint at `--help`.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// Whether the reader of our output has gone, as in `brigade status | head`.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_settings_file_is_named_by_its_flag() {
        let args = |args: &[&str]| args.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(config_flag(&args(&["brigade", "up", "--config", "a.toml"])), Some("a.toml".into()));
        assert_eq!(config_flag(&args(&["brigade", "--config=b.toml", "up"])), Some("b.toml".into()));
        assert_eq!(config_flag(&args(&["brigade", "run", "m", "--", "--config", "c.toml"])), None);
    }
}
