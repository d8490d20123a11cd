//! `brigade-worker`: runs a shard of a model for a Brigade coordinator.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use brigade_proto::control::DeviceKind;
use brigade_proto::device_choice::DeviceChoice;
use brigade_worker::bench;
use brigade_worker::cli::{self, Command, JoinArgs, LogFormat};
use brigade_worker::device::{self, Devices};
use brigade_worker::doctor;
use brigade_worker::driver::Driver;
use brigade_worker::selftest;
use brigade_worker::settings::{Machine, Settings};
use brigade_worker::shutdown;
use brigade_worker::worker::{WorkerError, run};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Used wrongly.
const USAGE: u8 = 2;

/// Failed.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done about a terminal that is gone.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
    };
    match cli.command {
        Command::Version => {
            let written = writeln!(std::io::stdout(), "brigade-worker {}", env!("CARGO_PKG_VERSION"));
            if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
        }
        Command::Join(args) => join(*args),
        Command::Devices(args) => {
            match device::list_devices(&args, &device::Here, &Machine::here(), std::io::stdout().lock()) {
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                    fail(FAILED, &format!("failed to write: {error}"))
                }
                Ok(()) | Err(_) => ExitCode::SUCCESS,
            }
        }
        Command::Doctor(args) => match doctor::run(args, &Machine::here(), std::io::stdout().lock()) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(FAILED),
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Err(error) => fail(FAILED, &format!("failed to write: {error}")),
        },
        Command::Selftest(args) => match selftest::run(&args, &Machine::here(), std::io::stdout().lock()) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(FAILED),
            Err(error) => fail(FAILED, &error.to_string()),
        },
        Command::Bench(args) => match bench::run(&args, &Machine::here(), std::io::stdout().lock()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) if error.is_usage() => fail(USAGE, &error.to_string()),
            Err(error) => fail(FAILED, &error.to_string()),
        },
    }
}

fn join(args: JoinArgs) -> ExitCode {
    if let Err(message) = start_logging(&args) {
        return fail(USAGE, &message);
    }
    let machine = Machine::here();
    if args.device == DeviceChoice::All {
        return join_each(&args, &machine);
    }
    let supervised = args.exit_with_stdin;
    let settings = match Settings::new(args, &machine, &device::Here) {
        Ok(settings) => settings,
        Err(error) => return fail(if error.is_usage() { USAGE } else { FAILED }, &error.to_string()),
    };
    let driver = match Driver::new() {
        Ok(driver) => driver,
        Err(error) => return fail(FAILED, &format!("failed to start: {error}")),
    };
    let result = driver.run({
        let driver = driver.clone();
        async move {
            let ending = CancellationToken::new();
            let signals = shutdown::on_signals(ending.clone())?;
            if supervised {
                shutdown::on_end_of_stdin(ending.clone())?;
            }
            let result = run(settings, driver, ending).await;
            signals.abort();
            anyhow::Ok(result)
        }
    });
    // A computation that did not end in time must not keep the process.
    driver.shut_down();
    let result = match result {
        Ok(result) => result,
        Err(error) => return fail(FAILED, &format!("failed to run on, which is a defect: {error}")),
    };
    match result {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(WorkerError::Session(error))) if error.is_usage() => fail(USAGE, &error.to_string()),
        Ok(Err(error)) => fail(FAILED, &error.to_string()),
        Err(error) => fail(FAILED, &format!("failed to start: {error}")),
    }
}

/// A worker process for each card, and none of our own.
fn join_each(args: &JoinArgs, machine: &Machine) -> ExitCode {
    let found = device::Here.found();
    let devices = match found.cards() {
        cards if cards.is_empty() => vec![DeviceKind::Cpu],
        cards => cards,
    };
    tracing::info!(
        "starting {} worker(s), on {}: {found}",
        devices.len(),
        devices.iter().map(|device| device.to_string()).collect::<Vec<_>>().join(", ")
    );
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            return fail(FAILED, &format!("failed to find this program, to start it again: {error}"));
        }
    };
    let workers = match device::worker_processes(args, &devices, machine, &program) {
        Ok(workers) => workers,
        Err(error) => return fail(USAGE, &error.to_string()),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILED, &format!("failed to start: {error}")),
    };
    let ran = runtime.block_on(async {
        let ending = CancellationToken::new();
        let signals = shutdown::on_signals(ending.clone())?;
        if args.exit_with_stdin {
            shutdown::on_end_of_stdin(ending.clone())?;
        }
        let result = device::run_each(workers, args.log_format, ending).await;
        signals.abort();
        std::io::Result::Ok(result)
    });
    match ran {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => fail(FAILED, &error.to_string()),
        Err(error) => fail(FAILED, &format!("failed to start: {error}")),
    }
}

fn fail(code: u8, message: &str) -> ExitCode {
    // Nothing can be done about a terminal that is gone.
    let _ = writeln!(std::io::stderr(), "error: {message}");
    ExitCode::from(code)
}

/// Log lines go to standard error; a supervised worker is quiet unless asked, because its supervisor tells the story.
fn start_logging(args: &JoinArgs) -> Result<(), String> {
    let default = if args.exit_with_stdin { "warn" } else { "info" };
    let filter = args.log.as_deref().filter(|filter| !filter.trim().is_empty()).unwrap_or(default);
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| format!("--log `{filter}` is not a filter ({error}): write a level such as info"))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Json => logs.json().init(),
        LogFormat::Text => logs.with_ansi(std::io::stderr().is_terminal()).with_target(false).init(),
    }
    Ok(())
}
