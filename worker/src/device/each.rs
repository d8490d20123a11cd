//! `--device all`: a worker process for each card, supervised, as one command that ends together with all of them.
//!
//! Workers have names, state directories, caches and ports of their own; everything else they are told as this process was.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;

use brigade_proto::control::DeviceKind;
use brigade_proto::worker_processes::{WorkerEvent, WorkerProcess, WorkerProcesses};
use clap::ValueEnum;
use tokio_util::sync::CancellationToken;

use crate::cli::{JoinArgs, LogFormat, WorkerName};
use crate::settings::Machine;

/// What is logged where nobody says otherwise: these workers have no other supervisor that would tell the story.
const LOG: &str = "info";

/// Longest name of a worker.
const NAME_BYTES: usize = 63;

/// Why workers cannot be started, or go on.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum EachError {
    /// The addresses that were given do not suffice.
    #[error(
        "{flag} {at} is the first of {count} ports, one for each worker, and there are not as many: give a lower one"
    )]
    Ports { flag: &'static str, at: SocketAddr, count: usize },
    /// A worker cannot be run at all.
    #[error("the worker {worker} cannot run, so that all were ended: {reason}")]
    Fatal { worker: String, reason: String },
}

impl EachError {
    /// Whether the arguments are to blame.
    pub fn is_usage(&self) -> bool {
        matches!(self, EachError::Ports { .. })
    }
}

/// How a worker for each of `devices` is started by `program`, given what this one was told.
///
/// # Errors
/// Where ports are given and there are too few from them on.
pub fn worker_processes(
    args: &JoinArgs,
    devices: &[DeviceKind],
    machine: &Machine,
    program: &Path,
) -> Result<Vec<WorkerProcess>, EachError> {
    let base = args.name.clone().unwrap_or_else(|| WorkerName::from_host(&machine.host));
    let each = devices.iter().enumerate().map(|(place, device)| {
        let name = name_on(&base, *device);
        let port = |flag: &'static str, first: Option<SocketAddr>| {
            first.map(|at| port_after(flag, at, place, devices.len())).transpose()
        };
        let ports = (port("--data", args.data)?, port("--health", args.health)?);
        let threads = args.threads.map_or_else(
            || (machine.parallelism / devices.len().max(1)).max(1),
            |threads| usize::from(threads.get()),
        );
        Ok(WorkerProcess {
            program: program.to_owned(),
            arguments: arguments(args, *device, &name, threads, ports),
            environment: token(args),
            name,
        })
    });
    each.collect()
}

/// What a worker on a device is called, given what this one would be: `box-cuda0`.
fn name_on(base: &WorkerName, device: DeviceKind) -> String {
    let suffix = format!("-{}", device.to_string().replace(':', ""));
    let kept: String = base.as_str().chars().take(NAME_BYTES - suffix.len()).collect();
    kept + &suffix
}

/// The port of the worker at `place`, where the first has `at`; any free one stays so.
fn port_after(
    flag: &'static str,
    at: SocketAddr,
    place: usize,
    count: usize,
) -> Result<SocketAddr, EachError> {
    let shift = if at.port() == 0 { 0 } else { place };
    let port = u16::try_from(usize::from(at.port()) + shift);
    let port = port.map_err(|_| EachError::Ports { flag, at, count })?;
    Ok(SocketAddr::new(at.ip(), port))
}

/// A token travels in the environment, since everybody can read a command line.
fn token(args: &JoinArgs) -> Vec<(OsString, OsString)> {
    let token = args.token.iter().map(|token| ("BRIGADE_TOKEN".into(), token.into()));
    let file = args.token_file.iter().map(|file| ("BRIGADE_TOKEN_FILE".into(), file.into()));
    token.chain(file).collect()
}

fn arguments(
    args: &JoinArgs,
    device: DeviceKind,
    name: &str,
    threads: usize,
    (data, health): (Option<SocketAddr>, Option<SocketAddr>),
) -> Vec<OsString> {
    // All fields are named, so that no new one is forgotten.
    let JoinArgs {
        coordinator,
        token: _,
        token_file: _,
        device: _,
        memory,
        threads: _,
        mmap,
        offload,
        offload_rate,
        models,
        cache,
        cache_limit,
        fetch_share,
        convert,
        state,
        name: _,
        data: _,
        health: _,
        log_format,
        log,
        stretch,
        exit_with_stdin: _,
    } = args;
    let mut words: Vec<OsString> = vec!["join".into(), coordinator.as_str().into()];
    // One word each, since a value may begin with a dash.
    let mut flag = |flag: &str, value: &OsStr| {
        let mut word = OsString::from(format!("{flag}="));
        word.push(value);
        words.push(word);
    };
    flag("--device", device.to_string().as_ref());
    flag("--name", name.as_ref());
    flag("--threads", threads.to_string().as_ref());
    flag("--fetch-share", fetch_share.to_string().as_ref());
    flag("--stretch", stretch.to_string().as_ref());
    flag("--log", log.as_deref().unwrap_or(LOG).as_ref());
    if let Some(format) = log_format.to_possible_value() {
        flag("--log-format", format.get_name().as_ref());
    }
    if let Some(memory) = memory {
        flag("--memory", memory.0.to_string().as_ref());
    }
    if let Some(rate) = offload_rate {
        flag("--offload-rate", format!("{}B/s", rate.0).as_ref());
    }
    if let Some(limit) = cache_limit {
        flag("--cache-limit", limit.0.to_string().as_ref());
    }
    for folder in models {
        flag("--models", folder.as_os_str());
    }
    // Directories that a worker has for itself.
    for (which, folder) in [("--cache", cache), ("--state", state)] {
        if let Some(folder) = folder {
            flag(which, folder.join(name).as_os_str());
        }
    }
    for (which, at) in [("--data", data), ("--health", health)] {
        if let Some(at) = at {
            flag(which, at.to_string().as_ref());
        }
    }
    words.extend(mmap.then(|| "--mmap".into()));
    words.extend(offload.then(|| "--offload".into()));
    words.extend(convert.then(|| "--convert".into()));
    words
}

/// Runs these workers until `ending` is cancelled, all have ended as their coordinator told them to, or one cannot run.
///
/// # Errors
/// Where one cannot run, after the others were ended.
pub async fn run(
    workers: Vec<WorkerProcess>,
    format: LogFormat,
    ending: CancellationToken,
) -> Result<(), EachError> {
    let (processes, mut events) = WorkerProcesses::start(workers);
    let result = loop {
        let event = tokio::select! {
            () = ending.cancelled() => break Ok(()),
            event = events.recv() => event,
        };
        match event {
            None => break Ok(()),
            Some(WorkerEvent::Line { worker, text }) => pass_on(format, &worker, &text),
            Some(WorkerEvent::Restarting { worker, ended, pause }) => {
                let pause_s = pause.as_secs_f64();
                tracing::warn!("worker {worker} died ({ended}); starting it again in {pause_s:.1} s");
            }
            Some(WorkerEvent::Ended { worker }) => tracing::info!("worker {worker} has ended"),
            Some(WorkerEvent::Fatal { worker, reason }) => break Err(EachError::Fatal { worker, reason }),
        }
    };
    processes.expect_end();
    // What workers say while they end, until none of them is left.
    tokio::join!(processes.stop(), async {
        while let Some(event) = events.recv().await {
            if let WorkerEvent::Line { worker, text } = event {
                pass_on(format, &worker, &text);
            }
        }
    });
    result
}

/// A worker's line on our standard error; one that is closed is no reason to stop.
fn pass_on(format: LogFormat, worker: &str, text: &str) {
    let mut out = std::io::stderr().lock();
    let _ = match format {
        LogFormat::Text => writeln!(out, "[{worker}] {text}"),
        // A line is an object, and stays one.
        LogFormat::Json => writeln!(out, "{text}"),
    };
}

#[cfg(test)]
mod tests {
    use brigade_shard::units::{ByteRate, Bytes};

    use super::*;
    use crate::cli::{self, Command};
    use brigade_proto::device_choice::DeviceChoice;

    fn parsed(words: &[OsString]) -> JoinArgs {
        let words = [OsString::from("brigade-worker")].into_iter().chain(words.iter().cloned());
        match cli::parse(words).map(|cli| cli.command) {
            Ok(Command::Join(args)) => *args,
            Ok(_) => panic!("not `join`"),
            Err(error) => panic!("{error}"),
        }
    }

    fn args(line: &str) -> JoinArgs {
        parsed(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    fn machine() -> Machine {
        Machine {
            host: "box".to_owned(),
            memory: Bytes::mib(1000),
            parallelism: 12,
            home: None,
            state_home: None,
        }
    }

    const TWO: [DeviceKind; 2] = [DeviceKind::Cuda(0), DeviceKind::Cuda(1)];

    fn processes(line: &str) -> Vec<WorkerProcess> {
        worker_processes(&args(line), &TWO, &machine(), Path::new("/bin/brigade-worker"))
            .unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn each_card_has_a_worker_with_a_name_and_a_place_of_its_own() {
        let all = processes("join host:9 --device all --state /s --cache /c --token t --data 10.0.0.2:7000");
        let names: Vec<&str> = all.iter().map(|process| process.name.as_str()).collect();
        assert_eq!(names, ["box-cuda0", "box-cuda1"]);
        let second = parsed(&all[1].arguments);
        assert_eq!(second.device, DeviceChoice::One(DeviceKind::Cuda(1)));
        assert_eq!(second.name.as_ref().map(WorkerName::as_str), Some("box-cuda1"));
        assert_eq!(second.state.as_deref(), Some(Path::new("/s/box-cuda1")));
        assert_eq!(second.cache.as_deref(), Some(Path::new("/c/box-cuda1")));
        assert_eq!(second.data, Some(([10, 0, 0, 2], 7001).into()));
        assert_eq!(second.threads.map(u16::from), Some(6), "threads are shared");
        assert_eq!(second.memory, None, "each asks its card");
        assert_eq!(second.token, None, "a token is on no command line");
        let environment: Vec<_> = all[1].environment.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(environment, ["BRIGADE_TOKEN"]);
    }

    #[test]
    fn everything_else_is_passed_on_as_it_was_told() {
        let all = processes(
            "join host:9 --device all --memory 64MiB --threads 3 --mmap --offload --offload-rate 3GB/s --models /a --models /-b \
             --cache-limit 1GiB --fetch-share 20 --health 127.0.0.1:0 --log debug --log-format json --stretch 2 --name n",
        );
        let first = parsed(&all[0].arguments);
        assert_eq!(first.coordinator.as_str(), "host:9");
        assert_eq!(first.memory, Some(Bytes::mib(64)));
        assert_eq!((first.threads.map(u16::from), first.fetch_share.get()), (Some(3), 20));
        assert!(first.mmap && first.offload);
        assert_eq!(first.offload_rate, Some(ByteRate(3_000_000_000)));
        assert_eq!(first.models, [Path::new("/a"), Path::new("/-b")]);
        assert_eq!(first.cache_limit, Some(Bytes::mib(1024)));
        assert_eq!(first.health, Some(([127, 0, 0, 1], 0).into()));
        assert_eq!((first.log.as_deref(), first.log_format), (Some("debug"), LogFormat::Json));
        assert_eq!(first.stretch.factor(), 2.0);
        assert_eq!(first.name.as_ref().map(WorkerName::as_str), Some("n-cuda0"));
        assert_eq!((first.state, first.cache), (None, None));
        let second = parsed(&all[1].arguments);
        assert_eq!(second.health, first.health, "any free port stays any free port");
    }

    #[test]
    fn long_names_are_cut_and_ports_have_an_end() {
        let long = "x".repeat(63);
        let all = processes(&format!("join host --device all --name {long}"));
        assert_eq!(all[0].name.len(), 63);
        assert!(all[0].name.ends_with("x-cuda0"));
        let args = args("join host --device all --data 10.0.0.2:65535");
        let error = worker_processes(&args, &TWO, &machine(), Path::new("/p")).err();
        let error = error.expect("there is no port 65536");
        assert!(error.is_usage() && error.to_string().contains("--data 10.0.0.2:65535"), "{error}");
    }
}
