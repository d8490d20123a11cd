//! Flags that several commands share, and the forms of their values.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use brigade_proto::control::CacheDtype;
use brigade_proto::device_choice::DeviceChoice;
use brigade_proto::step::WireDtype;
use brigade_shard::units::{ByteRate, Bytes};
use clap::{Args, ValueEnum};

use super::UsageError;
use crate::cluster::{ClusterSettings, DEFAULT_PREFILL_CHUNK};
use crate::discovery;
use crate::scheduler::Speculation;
use crate::store::names::without_ending;
use crate::store::{self, ModelName, Store, StoreError};
use crate::template::own_program;
use crate::traces::TraceSettings;

/// Port of the control plane (TCP) and the data plane (UDP) unless told otherwise.
pub(super) const CONTROL_PORT: u16 = 7481;

/// Requests that wait for cache before further ones are refused: a client gives up before the last of more has its turn.
const MAX_WAITING: usize = 256;

/// Share of this machine's memory that all local workers may use together, unless told otherwise.
const MEMORY_SHARE: f64 = 0.8;

/// How much is served at a time, and how.
#[derive(Clone, Debug, Args)]
pub(super) struct ServingOptions {
    /// Longest sequence, in tokens [default: what fits]
    #[arg(long, env = "BRIGADE_CTX", value_name = "N", hide_env = true, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) ctx: Option<u32>,

    /// Sequences of full length that the cache has room for, where memory allows; more of them are served while they
    /// are shorter
    #[arg(long, env = "BRIGADE_PARALLEL", value_name = "N", hide_env = true, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) parallel: u32,

    /// Most prompt tokens computed in one step
    #[arg(long, env = "BRIGADE_PREFILL_CHUNK", value_name = "N", hide_env = true, default_value_t = DEFAULT_PREFILL_CHUNK, value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub(super) prefill_chunk: u32,

    /// Layers of each stage, in the order of the pipeline, such as 20,20,40; all of the model's, with a worker for each
    /// stage [default: planned from the workers' memory and speed]
    #[arg(long, env = "BRIGADE_SPLIT", value_name = "N,N,..", hide_env = true, value_delimiter = ',')]
    pub(super) split: Vec<usize>,

    /// How keys and values are kept
    #[arg(long, env = "BRIGADE_KV_DTYPE", value_name = "TYPE", hide_env = true, default_value = "f16")]
    pub(super) kv_dtype: KvDtype,

    /// How hidden states cross links between workers: f32 gives the bits of a single box, the others halve what is sent
    #[arg(long, env = "BRIGADE_WIRE", value_name = "TYPE", hide_env = true, default_value = "f32")]
    pub(super) wire: Wire,

    /// Guess no tokens ahead from what stands in the prompt and the answer. Guesses change no token of an answer: they are
    /// computed beside the token before them where that is likely to make answers faster, and taken where they are what is
    /// drawn
    #[arg(long, env = "BRIGADE_NO_SPECULATION", hide_env = true)]
    pub(super) no_speculation: bool,

    /// A second, small model with the same tokenizer, whose guesses of what follows are computed ahead: a GGUF file, or a
    /// directory of safetensors. It is held by the worker with the most memory left; it is not asked where answers are no
    /// faster with it, and changes no token of them
    #[arg(long, env = "BRIGADE_DRAFT", value_name = "MODEL", hide_env = true)]
    pub(super) draft: Option<PathBuf>,

    /// Send no step before all of its tokens are known. Otherwise, where stages would wait for the coordinator, the last one
    /// tells the first what it has drawn, and the coordinator only listens; no answer changes by that
    #[arg(long, env = "BRIGADE_NO_SHORT_WAY", hide_env = true)]
    pub(super) no_short_way: bool,

    /// How long requests that run are kept while no plan can be made, because a worker is gone and the others have too
    /// little memory; then they end with an error
    #[arg(long, env = "BRIGADE_PARK", value_name = "TIME", hide_env = true, default_value = "120s", value_parser = parse_duration)]
    pub(super) park: Duration,

    /// How long an answer is kept after its last token that was asked for with the header `Idempotency-Key`, so that the
    /// same request gets it again, also after a restart; only this user can read it. 0s refuses such requests
    #[arg(long, env = "BRIGADE_KEEP_ANSWERS", value_name = "TIME", hide_env = true, default_value = "1h", value_parser = parse_duration)]
    pub(super) keep_answers: Duration,

    /// Send traces of requests to this OpenTelemetry collector, as OTLP over HTTP; never what they ask or are answered
    #[arg(long, env = "BRIGADE_OTLP", value_name = "URL", hide_env = true, value_parser = parse_collector)]
    pub(super) otlp: Option<String>,

    /// Share of the requests that are traced, from 0 to 1; those with a `traceparent` are traced where it says so
    #[arg(long, env = "BRIGADE_OTLP_SAMPLE", value_name = "SHARE", hide_env = true, default_value_t = 0.01, value_parser = parse_share)]
    pub(super) otlp_sample: f64,
}

fn parse_collector(text: &str) -> Result<String, String> {
    let url = reqwest::Url::parse(text).ok().filter(|url| url.scheme() == "http" && url.has_host());
    url.map(|_| text.to_owned()).ok_or_else(|| "write it as http://HOST:4318".to_owned())
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "write a number from 0 to 1".to_owned())
}

/// How hidden states cross links, as a flag's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Wire {
    /// 4 bytes
    F32,
    /// 2 bytes, finer near zero, at most 65504
    F16,
    /// 2 bytes, as wide as f32 and coarser than f16
    Bf16,
}

impl From<Wire> for WireDtype {
    fn from(wire: Wire) -> WireDtype {
        match wire {
            Wire::F32 => WireDtype::F32,
            Wire::F16 => WireDtype::F16,
            Wire::Bf16 => WireDtype::Bf16,
        }
    }
}

/// How keys and values are kept, as a flag's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum KvDtype {
    /// 2 bytes
    F16,
    /// 4 bytes
    F32,
}

impl From<KvDtype> for CacheDtype {
    fn from(dtype: KvDtype) -> CacheDtype {
        match dtype {
            KvDtype::F16 => CacheDtype::F16,
            KvDtype::F32 => CacheDtype::F32,
        }
    }
}

impl KvDtype {
    /// Bytes of one value.
    pub(super) fn bytes(self) -> u32 {
        match self {
            KvDtype::F16 => 2,
            KvDtype::F32 => 4,
        }
    }
}

/// Who may use the HTTP API, and where it listens.
#[derive(Clone, Debug, Args)]
pub(super) struct HttpOptions {
    /// Where HTTP listens
    #[arg(long, env = "BRIGADE_HTTP", value_name = "ADDR", hide_env = true, default_value = "127.0.0.1:7480", value_parser = parse_address)]
    pub(super) http: SocketAddr,

    /// A key that HTTP requests must carry; may be given several times (BRIGADE_API_KEY keeps it off the command line)
    #[arg(long, env = "BRIGADE_API_KEY", value_name = "KEY", hide_env = true, value_delimiter = ',')]
    pub(super) api_key: Vec<String>,

    /// Log what each request asks and is answered, a line each when it ends; otherwise no log line ever holds a prompt or
    /// an answer
    #[arg(long, env = "BRIGADE_LOG_PROMPTS", hide_env = true)]
    pub(super) log_prompts: bool,
}

impl HttpOptions {
    /// Refuses an API that everyone on the network could use.
    pub(super) fn check(&self) -> Result<(), UsageError> {
        if self.api_key.iter().any(String::is_empty) {
            return Err(UsageError("an API key must not be empty".to_owned()));
        }
        if self.http.ip().is_loopback() || !self.api_key.is_empty() {
            return Ok(());
        }
        Err(UsageError(format!(
            "HTTP on {} can be reached from other machines and needs an API key: set BRIGADE_API_KEY or give --api-key KEY, or listen on 127.0.0.1:{}",
            self.http,
            self.http.port()
        )))
    }
}

/// Workers on this machine.
#[derive(Clone, Debug, Args)]
pub(super) struct WorkerOptions {
    /// Workers to start on this machine
    #[arg(long, env = "BRIGADE_WORKERS", value_name = "N", hide_env = true, default_value_t = 1, value_parser = parse_workers)]
    pub(super) workers: usize,

    /// Where workers compute: cpu, cuda:N, metal, auto (the best that is there) or all (a worker for each card)
    #[arg(long, env = "BRIGADE_DEVICE", value_name = "DEVICE", hide_env = true, default_value = "cpu")]
    pub(super) device: DeviceChoice,

    /// What each worker may use for weights, cache, activations and workspace, such as 64MiB or 24GB [default: their
    /// share of 80% of this machine's memory; on a card, of what is free there but for 5% of it]
    #[arg(long, env = "BRIGADE_MEMORY", value_name = "SIZE", hide_env = true)]
    pub(super) memory: Option<Bytes>,

    /// Compute threads of each worker [default: their share of this machine's cores]
    #[arg(long, env = "BRIGADE_THREADS", value_name = "N", hide_env = true, value_parser = parse_threads)]
    pub(super) threads: Option<usize>,

    /// Leave weights in the model's file, for the system to read when they are used: a model larger than the memory runs,
    /// as slowly as the disk is read; --memory then says what to plan with. Nobody may change the file meanwhile
    #[arg(long, env = "BRIGADE_MMAP", hide_env = true)]
    pub(super) mmap: bool,

    /// Let workers read layers that do not fit their memory again for every step, where no other plan is as fast or possible:
    /// they are read past the system's cache, and nothing beyond --memory is used
    #[arg(long, env = "BRIGADE_OFFLOAD", hide_env = true)]
    pub(super) offload: bool,

    /// How fast the disk gives weights, such as 3GB/s [default: measured at the start]
    #[arg(long, env = "BRIGADE_OFFLOAD_RATE", value_name = "RATE", hide_env = true, requires = "offload")]
    pub(super) offload_rate: Option<ByteRate>,
}

/// What each of so many workers on this machine may use: `given`, else their share of what this machine has.
///
/// # Errors
/// Where it was not given and this machine's memory cannot be found out.
pub(super) fn memory_of_each(given: Option<Bytes>, workers: usize) -> anyhow::Result<Bytes> {
    if let Some(memory) = given {
        return Ok(memory);
    }
    let mut system =
        sysinfo::System::new().context("failed to find out this machine's memory; give --memory SIZE")?;
    system.refresh_memory();
    let together = (system.total_memory() as f64 * MEMORY_SHARE) as u64;
    Ok(Bytes(together / workers.max(1) as u64))
}

/// Most workers on one machine: each is a process with threads of its own.
const MAX_LOCAL_WORKERS: usize = 256;

/// Most threads of a worker.
const MAX_THREADS: usize = 1024;

pub(super) fn parse_workers(text: &str) -> Result<usize, String> {
    parse_count(text, MAX_LOCAL_WORKERS)
}

pub(super) fn parse_threads(text: &str) -> Result<usize, String> {
    parse_count(text, MAX_THREADS)
}

fn parse_count(text: &str, most: usize) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|n| (1..=most).contains(n))
        .ok_or_else(|| format!("write a number from 1 to {most}"))
}

/// An address to listen on: `IP:PORT`, `localhost:PORT`, or a port alone for loopback.
pub(super) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.trim_start_matches(':').parse() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    numeric.as_deref().unwrap_or(text).parse().map_err(|_| {
        "write an IP address and a port, such as 127.0.0.1:7480, 0.0.0.0:7480 or [::]:7480".to_owned()
    })
}

/// A time such as `24h`, `30m`, `90s` or `7d`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let error = || "write a number and a unit, such as 24h, 30m, 90s or 7d".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(error()),
    };
    let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(error)?;
    Ok(Duration::from_secs(seconds))
}

/// The state directory: the one given, else `brigade` in the user's state directory.
pub(super) fn state_dir(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let dir = given.map(Path::to_owned).or_else(discovery::default_state_dir);
    dir.ok_or_else(|| {
        UsageError(
            "there is no place for the state: give --state DIR, or set HOME or XDG_STATE_HOME".to_owned(),
        )
        .into()
    })
}

/// The store that commands look for models in: the one that `BRIGADE_STORE` names, or the user's.
pub(super) fn usual_store() -> Option<Store> {
    let given = std::env::var_os("BRIGADE_STORE").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    given.or_else(store::default_directory).map(|dir| Store::new(&dir))
}

/// Checks that `model` is there, as a path or else as a name in the store, and gives its absolute path.
pub(super) fn model_file(model: &Path) -> anyhow::Result<PathBuf> {
    model_file_in(model, usual_store().as_ref())
}

/// As [`model_file`], with the store to look in.
pub(super) fn model_file_in(model: &Path, store: Option<&Store>) -> anyhow::Result<PathBuf> {
    let error = match model.canonicalize() {
        Ok(path) => return Ok(path),
        Err(error) => error,
    };
    let not_in_store = match stored_model(model, store) {
        Some(Ok(path)) => match path.canonicalize() {
            Ok(path) => return Ok(path),
            Err(error) => format!(", and {} of the store cannot be opened: {error}", path.display()),
        },
        Some(Err(reason)) => format!(", and {reason}"),
        None => String::new(),
    };
    Err(anyhow::anyhow!(
        "failed to open the model {}: {error}{not_in_store}; give the path of a GGUF file, or of a directory of safetensors",
        model.display()
    ))
}

/// The model that `name` is in the store; `None` where it is not a name but a path, or there is no store.
pub(super) fn stored_model(name: &Path, store: Option<&Store>) -> Option<Result<PathBuf, StoreError>> {
    let store = store.filter(|store| store.root().is_dir())?;
    let text = name.to_str().filter(|text| ModelName::new(text).is_ok())?;
    Some(store.find(text).map(|found| found.path))
}

/// The id that requests give for the model in this file or directory: its name without `.gguf` and without the number of
/// a part.
pub(super) fn model_id(path: &Path) -> String {
    without_ending(&path.file_name().unwrap_or_default().to_string_lossy()).to_owned()
}

/// The settings of a cluster for `model` (absolute, checked).
pub(super) fn cluster_settings(
    model: &Path,
    state_dir: PathBuf,
    control: SocketAddr,
    min_workers: usize,
    serving: &ServingOptions,
) -> anyhow::Result<ClusterSettings> {
    let stages = serving.split.len();
    if stages > 0 && min_workers > stages {
        let reason =
            format!("a split into {stages} stages leaves some of the {min_workers} workers without one");
        return Err(UsageError(format!("{reason}: give the layers of as many stages as workers")).into());
    }
    let draft = serving.draft.as_deref().map(model_file).transpose()?;
    let draft = draft.map(|path| {
        let id = model_id(&path);
        (path, id)
    });
    Ok(ClusterSettings {
        model: model.to_owned(),
        model_id: model_id(model),
        draft,
        program: own_program().context("failed to find this program's own file")?,
        store: usual_store(),
        state_dir,
        control,
        data: None,
        min_workers: min_workers.max(stages),
        split: serving.split.clone(),
        context: serving.ctx,
        parallel: serving.parallel,
        prefill_chunk: serving.prefill_chunk,
        cache_dtype: serving.kv_dtype.into(),
        wire: serving.wire.into(),
        short_way: !serving.no_short_way,
        speculation: if serving.no_speculation { Speculation::Off } else { Speculation::Lookup },
        max_waiting: MAX_WAITING,
        park: serving.park,
        traces: serving.otlp.clone().map(|endpoint| TraceSettings { endpoint, sample: serving.otlp_sample }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_users_write_them() {
        for (text, address) in [
            ("7480", "127.0.0.1:7480"),
            (":0", "127.0.0.1:0"),
            ("localhost:80", "127.0.0.1:80"),
            ("0.0.0.0:7480", "0.0.0.0:7480"),
            ("[::]:7480", "[::]:7480"),
        ] {
            assert_eq!(parse_address(text).unwrap().to_string(), address, "{text}");
        }
        for text in ["", "host", "1.2.3.4", "127.0.0.1:99999", "localhost:"] {
            assert!(parse_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(parse_duration("24h"), Ok(Duration::from_secs(86400)));
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        for text in ["", "24", "h", "1w", "-1h", "99999999999999999999d", "999999999999999999d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_models_id_is_its_files_name() {
        for (path, id) in [
            ("/m/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1"),
            ("/m/R1-Q4_K_M-00001-of-00009.gguf", "R1-Q4_K_M"),
            ("/m/one-of-many.gguf", "one-of-many"),
            ("/m/plain", "plain"),
        ] {
            assert_eq!(model_id(Path::new(path)), id, "{path}");
        }
    }

    #[test]
    fn http_off_loopback_needs_a_key() {
        let options = |http: &str, keys: &[&str]| HttpOptions {
            http: parse_address(http).unwrap(),
            api_key: keys.iter().map(|key| (*key).to_owned()).collect(),
            log_prompts: false,
        };
        assert!(options("127.0.0.1:1", &[]).check().is_ok());
        assert!(options("[::1]:1", &[]).check().is_ok());
        assert!(options("0.0.0.0:1", &["secret"]).check().is_ok());
        let error = options("0.0.0.0:1", &[]).check().unwrap_err().to_string();
        assert!(error.contains("BRIGADE_API_KEY") && error.contains("127.0.0.1:1"), "{error}");
        assert!(options("127.0.0.1:1", &[""]).check().is_err());
    }
}
