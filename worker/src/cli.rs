//! The command line of `brigade-worker`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;

use brigade_proto::control::{DeviceKind, UnknownDevice};
use brigade_proto::device_choice::DeviceChoice;
use brigade_shard::units::{ByteRate, Bytes};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::bench::BenchArgs;
use crate::device::DevicesArgs;
use crate::doctor::DoctorArgs;
use crate::selftest::SelftestArgs;
use crate::stretch::Stretch;

/// What the program was asked to do.
#[derive(Parser)]
#[command(
    name = "brigade-worker",
    version,
    about = "Runs a shard of a model for a Brigade coordinator",
    after_help = "Exit codes: 0 done, 1 failed, 2 used wrongly."
)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Join a coordinator and serve it until told to end
    #[command(
        after_help = "Example:\n  brigade-worker join studio.local:7481 --token bg1-... --memory 24GiB --models ~/models\n\n\
                            The first start needs a token; its certificate is kept in the state directory, and later \
                            starts need none.\n\nWith --device all a worker process is started for each card, called \
                            NAME-cuda0 and so on, and started again where it dies; they end together. The token must \
                            serve all of them. What is said of memory counts for each, --state and --cache get a folder \
                            for each, and ports are counted up from those given."
    )]
    Join(Box<JoinArgs>),
    /// Measure how fast this machine alone runs a model, against what its memory gives
    #[command(
        after_help = "The whole model is loaded as one stage, and run as a cluster runs it: a prompt in steps, with the \
                            logits of its last token, then tokens one by one. As in llama-bench, nothing is sampled, and a \
                            run that does not count comes first.\n\n\
                            GB/s are the weights, keys and values that decoding reads; beside them stands their share of \
                            what as many threads read from memory in the same run, or, on a card, of what it reads and \
                            writes while it copies.\n\n\
                            Examples:\n  brigade-worker bench model.gguf\n  brigade-worker bench model.gguf -p 0 -n 64 -d \
                            0,4096 -t 4,8 -o csv"
    )]
    Bench(BenchArgs),
    /// List what a worker can compute on here, the best first, with its memory
    #[command(after_help = "Example:\n  brigade-worker devices --json")]
    Devices(DevicesArgs),
    /// Look for what stands between this machine and its neighbours, with the command that mends it
    #[command(
        after_help = "Nothing is changed, and nothing needs root. Exit code 0 when nothing has failed, 1 otherwise.\n\n\
                            Example:\n  brigade-worker doctor --to studio.local:7481"
    )]
    Doctor(DoctorArgs),
    /// Test whether a device computes what the processor does: every kernel, every family of models, and how fast
    #[command(
        after_help = "Every kernel runs on weights of every type, and a small model with random weights of every family, on \
                            the device and on the processor. Speeds are shown, and decide nothing. Exit code 0 when all is \
                            as near as it must be, 1 otherwise.\n\n\
                            Examples:\n  brigade-worker selftest --device cuda:0\n  brigade-worker selftest --device metal \
                            --model model.gguf --json"
    )]
    Selftest(SelftestArgs),
    /// Print the version
    Version,
}

/// Arguments of `join`. Every one of them can be set by the environment variable named with it; flags win.
#[derive(Args)]
pub struct JoinArgs {
    /// Where the coordinator listens for workers: HOST or HOST:PORT (7481 unless given)
    #[arg(value_name = "ADDR", env = "BRIGADE_COORDINATOR")]
    pub coordinator: CoordinatorAddress,

    /// Join token, as printed by `brigade serve` or `brigade token create`
    #[arg(long, env = "BRIGADE_TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// File that holds the join token
    #[arg(long, value_name = "FILE", env = "BRIGADE_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,

    /// Where to compute: cpu, cuda:N, metal, auto (the best that is there) or all (every card, with a worker process each)
    #[arg(long, default_value = "cpu", env = "BRIGADE_DEVICE")]
    pub device: DeviceChoice,

    /// Memory for weights, cache and workspace, such as 24GiB [default: 80% of this machine's; on a card what is free there,
    /// but for 5% of it all and at least 512 MiB]
    #[arg(long, value_name = "SIZE", env = "BRIGADE_MEMORY")]
    pub memory: Option<Bytes>,

    /// Compute threads [default: one per processor]
    #[arg(long, value_name = "N", env = "BRIGADE_THREADS")]
    pub threads: Option<NonZeroU16>,

    /// Leave weights in their files, for the system to read when they are used: a model larger than the memory runs, as
    /// slowly as the disk is read. Nobody may change the files meanwhile. For --device cpu
    #[arg(long, env = "BRIGADE_MMAP")]
    pub mmap: bool,

    /// Read layers that do not fit the memory again for every step, where no other plan is as fast or possible: they are read
    /// past the system's cache, and nothing beyond --memory is used. For --device cpu
    #[arg(long, env = "BRIGADE_OFFLOAD")]
    pub offload: bool,

    /// How fast the disk gives weights, such as 3GB/s [default: measured at the start with the largest model that is there]
    #[arg(long, value_name = "RATE", env = "BRIGADE_OFFLOAD_RATE", requires = "offload")]
    pub offload_rate: Option<ByteRate>,

    /// Turn weights of types that the device has no kernels for into others while they are loaded, instead of refusing them:
    /// IQ4 into Q6_K, IQ3 into Q5_K, IQ2 and IQ1 into Q4_K, MXFP4 and TQ into Q8_0. They take more memory so, which is counted
    /// before anything is loaded. On --device cpu, which has kernels for all, it changes nothing
    #[arg(long, env = "BRIGADE_CONVERT")]
    pub convert: bool,

    /// Directory (or file) with models; may be given several times, or as a list separated by colons
    /// [default: ~/.local/share/brigade/models]
    #[arg(long, value_name = "DIR", env = "BRIGADE_MODELS", value_delimiter = ':')]
    pub models: Vec<PathBuf>,

    /// Directory that keeps weights which come from other machines [default: cache in the state directory]
    #[arg(long, value_name = "DIR", env = "BRIGADE_CACHE")]
    pub cache: Option<PathBuf>,

    /// The most that --cache may hold, such as 200GiB: what was used the longest ago goes first, and nothing that is in use
    /// [default: all of the disk but 2%]
    #[arg(long, value_name = "SIZE", env = "BRIGADE_CACHE_LIMIT")]
    pub cache_limit: Option<Bytes>,

    /// The share of the time that fetching weights may take while answers are computed, here or where they come from, in percent
    #[arg(long, value_name = "PERCENT", default_value = "10", env = "BRIGADE_FETCH_SHARE", value_parser = parse_percent)]
    pub fetch_share: NonZeroU16,

    /// Directory that keeps this worker's certificate [default: ~/.local/state/brigade-worker/NAME]
    #[arg(long, value_name = "DIR", env = "BRIGADE_STATE")]
    pub state: Option<PathBuf>,

    /// This worker's name, for people [default: the machine's name]
    #[arg(long, env = "BRIGADE_NAME")]
    pub name: Option<WorkerName>,

    /// UDP address of the data plane [default: every interface, any free port]
    #[arg(long, value_name = "ADDR", env = "BRIGADE_DATA")]
    pub data: Option<SocketAddr>,

    /// TCP address that answers grpc.health.v1 checks [default: none]
    #[arg(long, value_name = "ADDR", env = "BRIGADE_HEALTH")]
    pub health: Option<SocketAddr>,

    /// How log lines look
    #[arg(long, value_name = "FORMAT", default_value = "text", env = "BRIGADE_LOG_FORMAT")]
    pub log_format: LogFormat,

    /// What to log: error, warn, info, debug, trace, or a filter such as brigade_worker=debug
    #[arg(long, value_name = "FILTER", env = "BRIGADE_LOG")]
    pub log: Option<String>,

    /// Sleep after each step, so that it takes so many times as long: for measurements of pipelines. The coordinator's
    /// status tells that it is so
    #[arg(long, value_name = "FACTOR", default_value_t = Stretch::NONE, env = "BRIGADE_STRETCH", hide = true)]
    pub stretch: Stretch,

    /// End when standard input does: for a supervisor that holds the other end of the pipe
    #[arg(long, hide = true)]
    pub exit_with_stdin: bool,
}

fn parse_percent(text: &str) -> Result<NonZeroU16, String> {
    let percent = text.trim_end_matches('%').parse().ok().filter(|percent| (1..=100).contains(percent));
    percent.and_then(NonZeroU16::new).ok_or_else(|| "write a number from 1 to 100".to_owned())
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Reads the arguments; `args` begins with the program's name.
///
/// # Errors
/// Where they are wrong, or ask for help: print the error and end with its exit code.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches_from(args)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    if let Command::Join(join) = &mut cli.command
        && let Some((_, matches)) = matches.subcommand()
    {
        choose_token(join, matches)?;
    }
    Ok(cli)
}

/// Leaves one source of the token: a flag wins over the environment, and the token itself over a file with it.
fn choose_token(join: &mut JoinArgs, matches: &ArgMatches) -> Result<(), clap::Error> {
    join.token = join.token.take().filter(|token| !token.trim().is_empty());
    join.token_file = join.token_file.take().filter(|path| !path.as_os_str().is_empty());
    let by_flag = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    match (by_flag("token"), by_flag("token_file")) {
        (true, true) => {
            let message = "--token and --token-file were both given: leave one out";
            return Err(Cli::command().error(clap::error::ErrorKind::ArgumentConflict, message));
        }
        (false, true) => join.token = None,
        (true, false) => join.token_file = None,
        (false, false) if join.token.is_some() => join.token_file = None,
        (false, false) => {}
    }
    Ok(())
}

/// TCP port of a coordinator's control plane where the address names none.
pub const DEFAULT_CONTROL_PORT: u16 = 7481;

/// Where a coordinator listens: `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorAddress(String);

impl CoordinatorAddress {
    /// The address with its port, as name resolution wants it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A value on the command line that is not what it must be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ValueError {
    /// Not a host with a port.
    #[error("`{0}` is not an address: write HOST, HOST:PORT or [IPV6]:PORT")]
    Address(String),
    /// Not a device.
    #[error(transparent)]
    Device(UnknownDevice),
    /// Not a name.
    #[error(
        "`{0}` is not a worker's name: 1 to 63 letters, digits, dots, dashes and underscores, not starting with a dot"
    )]
    Name(String),
}

impl FromStr for CoordinatorAddress {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = || ValueError::Address(text.to_owned());
        let trimmed = text.trim();
        if let Ok(address) = trimmed.parse::<SocketAddr>() {
            return if address.port() == 0 {
                Err(error())
            } else {
                Ok(CoordinatorAddress(address.to_string()))
            };
        }
        let bare = trimmed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(trimmed);
        if let Ok(ip) = bare.parse() {
            return Ok(CoordinatorAddress(SocketAddr::new(ip, DEFAULT_CONTROL_PORT).to_string()));
        }
        let (host, port) = match trimmed.split_once(':') {
            Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0).ok_or_else(error)?),
            None => (trimmed, DEFAULT_CONTROL_PORT),
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if host.is_empty() || !host.bytes().all(plain) {
            return Err(error());
        }
        Ok(CoordinatorAddress(format!("{host}:{port}")))
    }
}

/// A device on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device(pub DeviceKind);

impl FromStr for Device {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.parse().map(Device).map_err(ValueError::Device)
    }
}

/// A worker's name: also a directory's, so it has no separators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerName(String);

impl WorkerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A machine's name as a worker's: what a worker's name cannot hold becomes a dash.
    pub fn from_host(host: &str) -> WorkerName {
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }
        };
        let name: String = host.trim_start_matches('.').chars().map(plain).take(63).collect();
        WorkerName(if name.is_empty() { "worker".to_owned() } else { name })
    }
}

impl FromStr for WorkerName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let name = WorkerName::from_host(text);
        if name.0 == text { Ok(name) } else { Err(ValueError::Name(text.to_owned())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn coordinators_are_named_as_people_write_them() {
        for (text, address) in [
            ("studio.local", "studio.local:7481"),
            ("studio.local:9000", "studio.local:9000"),
            ("10.0.0.1", "10.0.0.1:7481"),
            ("10.0.0.1:9", "10.0.0.1:9"),
            ("::1", "[::1]:7481"),
            ("[fd00::1]", "[fd00::1]:7481"),
            ("[fd00::1]:9", "[fd00::1]:9"),
        ] {
            let parsed: CoordinatorAddress = text.parse().unwrap();
            assert_eq!(parsed.as_str(), address, "{text}");
        }
        for text in
            ["", ":7481", "host:", "host:0", "host:port", "1.2.3.4:0", "a/b", "http://x", "host:70000"]
        {
            assert!(text.parse::<CoordinatorAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn devices_are_cpu_cuda_and_metal() {
        assert_eq!("cpu".parse(), Ok(Device(DeviceKind::Cpu)));
        assert_eq!("cuda:3".parse(), Ok(Device(DeviceKind::Cuda(3))));
        assert_eq!("cuda".parse(), Ok(Device(DeviceKind::Cuda(0))));
        assert_eq!("metal".parse(), Ok(Device(DeviceKind::Metal)));
        for text in ["", "gpu", "cuda:", "cuda:x", "cpu:0", "metal:1"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_is_also_a_directory() {
        assert_eq!("w1".parse::<WorkerName>().unwrap().as_str(), "w1");
        for text in ["", "..", "a/b", ".hidden", "a b", &"x".repeat(64)] {
            assert!(text.parse::<WorkerName>().is_err(), "{text}");
        }
        assert_eq!(WorkerName::from_host("Jo's Mac Studio").as_str(), "Jo-s-Mac-Studio");
        assert_eq!(WorkerName::from_host("").as_str(), "worker");
    }
}
