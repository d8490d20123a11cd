//! How fast this machine alone runs a model, against what its memory gives.
//!
//! The whole model is loaded as one stage, with the code that serves, and driven without the programs around it. A
//! measurement is a prompt, in steps, with the logits of its last token, or tokens one by one, each with its logits; as in
//! llama-bench, nothing is sampled and tokens are drawn at random. Several sequences decode together, a token of each in
//! every step, as those of several users do.

mod arguments;
mod bandwidth;
mod report;
mod subject;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use brigade_proto::control::DeviceKind;
use brigade_shard::model_file::{FileError, Header};
use brigade_shard::units::Bytes;

pub use self::arguments::{BenchArgs, OutputFormat, PromptThenDecode};
pub use self::bandwidth::memory_bytes_per_s;
use self::bandwidth::{Kept, read_s};
pub use self::report::Record;
use self::report::Report;
use self::subject::{Facts, Loading, Subject};
use crate::backend::BackendError;
use crate::candle_backend::{self, copied_bytes_per_s};
use crate::device::{Devices, Here};
use crate::settings::Machine;
use crate::telemetry::{FIXED_OVERHEAD, MemoryMeter};
use crate::weights::LoadError;

/// A measurement that could not be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum BenchError {
    /// No prompt, and nothing to decode.
    #[error("there is nothing to measure: give -p or -n a number above 0, or --pg P,N")]
    NothingToMeasure,
    /// A sequence that no position can count.
    #[error(
        "depth, prompt and decoded tokens together are more than a sequence can have: use smaller numbers"
    )]
    TooLong,
    /// The model would not fit.
    #[error(
        "the model takes {needed} with this depth and batch, and {device} has {memory} for it: use a smaller file, depth or batch"
    )]
    TooLittleMemory { needed: Bytes, memory: Bytes, device: String },
    /// The file is not a model.
    #[error(transparent)]
    File(#[from] FileError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] BackendError),
    /// The file could not be read once more.
    #[error("failed to read the file once more: {0}")]
    Read(#[source] io::Error),
    /// The results could not be written.
    #[error("failed to write the results: {0}")]
    Write(#[source] io::Error),
}

impl BenchError {
    /// Whether the arguments are to blame.
    pub fn is_usage(&self) -> bool {
        matches!(self, BenchError::NothingToMeasure | BenchError::TooLong)
    }
}

/// What a measurement does, with the tokens that the sequence holds before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Prompt { depth: u32, prompt: u32 },
    Decode { depth: u32, decode: u32, streams: u32 },
    Both { depth: u32, prompt: u32, decode: u32 },
}

impl Test {
    fn all(args: &BenchArgs) -> Vec<Test> {
        let of_depth = |&depth: &u32| {
            let prompts =
                args.n_prompt.iter().filter(|n| **n > 0).map(move |&prompt| Test::Prompt { depth, prompt });
            let decodes = args.n_gen.iter().filter(|n| **n > 0).flat_map(move |&decode| {
                args.streams.iter().map(move |streams| Test::Decode { depth, decode, streams: streams.get() })
            });
            let pairs = args.pg.iter().map(move |pair| {
                let PromptThenDecode { prompt, decode } = *pair;
                Test::Both { depth, prompt, decode }
            });
            prompts.chain(decodes).chain(pairs)
        };
        args.n_depth.iter().flat_map(of_depth).collect()
    }

    /// How many sequences there are.
    fn streams(self) -> u32 {
        match self {
            Test::Decode { streams, .. } => streams,
            Test::Prompt { .. } | Test::Both { .. } => 1,
        }
    }

    /// Tokens of a sequence in the end.
    fn tokens(self) -> Option<u32> {
        match self {
            Test::Prompt { depth, prompt } => depth.checked_add(prompt),
            Test::Decode { depth, decode, .. } => depth.checked_add(decode),
            Test::Both { depth, prompt, decode } => depth.checked_add(prompt)?.checked_add(decode),
        }
    }
}

/// Runs what `args` ask for on `machine`, and writes the results to `out`.
///
/// # Errors
/// Where nothing is to be measured, the file is not a model, it does not fit or cannot be computed, or `out` fails.
pub fn run(args: &BenchArgs, machine: &Machine, out: impl Write) -> Result<(), BenchError> {
    let tests = Test::all(args);
    if tests.is_empty() {
        return Err(BenchError::NothingToMeasure);
    }
    let context = tests.iter().map(|test| test.tokens()).max_by_key(|tokens| tokens.unwrap_or(u32::MAX));
    let context = context.flatten().ok_or(BenchError::TooLong)?;
    let streams = tests.iter().map(|test| test.streams()).max().unwrap_or(1);
    let threads: Vec<usize> = match args.threads.as_slice() {
        [] => vec![machine.parallelism],
        given => given.iter().map(|threads| usize::from(threads.get())).collect(),
    };
    let mut report = Report::new(out, args.output);
    for batch in &args.batch_size {
        for &threads in &threads {
            let device = args.device.0;
            let batch = batch.get();
            let (memory, streamed_layers) = (memory_of(device, machine), args.offload);
            let loading = Loading { device, threads, batch, context, streams, streamed_layers, memory };
            let records = measure(args, &tests, loading)?;
            report.add(&records).map_err(BenchError::Write)?;
        }
    }
    report.end().map_err(BenchError::Write)
}

/// What there is for a model: the machine's memory, or what is free on its card. A driver that does not tell is asked for the
/// memory itself.
fn memory_of(device: DeviceKind, machine: &Machine) -> Bytes {
    match device {
        DeviceKind::Cpu => machine.memory,
        card => Here.memory(card).ok().flatten().map_or(Bytes(u64::MAX), |memory| memory.free),
    }
}

/// One series of repetitions.
struct Series {
    streams: u32,
    depth: u32,
    prompt: u32,
    decode: u32,
    samples: Vec<Duration>,
}

fn measure(args: &BenchArgs, tests: &[Test], loading: Loading) -> Result<Vec<Record>, BenchError> {
    let mut meter = MemoryMeter::since_now();
    let threads = loading.threads;
    if args.read_file {
        let header = Header::open(&args.model)?;
        read_s(header.parts(), threads, Kept::Nothing).map_err(BenchError::Read)?;
    }
    let began = Instant::now();
    let header = Header::open(&args.model)?;
    let (mut subject, facts) = subject::load(&header, loading)?;
    let load_ms = began.elapsed().as_secs_f64() * 1e3;
    subject.settle();
    let (parts, file_bytes): (Vec<PathBuf>, Bytes) = (header.parts().to_vec(), header.file_bytes());
    drop(header);

    let mut all = Vec::new();
    for &test in tests {
        all.extend(repeat(&mut subject, test, args)?);
    }
    subject.check()?;
    let peak_resident = meter.read().peak;
    // The rest takes memory of its own.
    drop(subject);
    let read_file_ms = match args.read_file {
        true => Some(read_s(&parts, threads, Kept::All).map_err(BenchError::Read)? * 1e3),
        false => None,
    };
    let machine = Surroundings {
        args,
        loading,
        load_ms,
        read_file_ms,
        peak_resident,
        file_bytes,
        memory_bytes_per_s: match loading.device {
            DeviceKind::Cpu => memory_bytes_per_s(threads),
            card => copied_bytes_per_s(&candle_backend::device(card)?)?,
        },
        cpu_info: cpu_name(),
    };
    Ok(all.into_iter().map(|series| machine.record(&facts, series)).collect())
}

/// Makes a measurement as often as it is wanted.
fn repeat(subject: &mut Subject, test: Test, args: &BenchArgs) -> Result<Vec<Series>, BackendError> {
    let (depth, prompt, decode) = match test {
        Test::Prompt { depth, prompt } => (depth, prompt, 0),
        Test::Decode { depth, decode, .. } => (depth, 0, decode),
        Test::Both { depth, prompt, decode } => (depth, prompt, decode),
    };
    let streams = test.streams();
    if !args.no_warmup {
        match prompt {
            0 => subject.decode(streams, 0, 1)?,
            _ => subject.prompt(0, prompt)?,
        }
    }
    let mut prompts = Series { streams, depth, prompt, decode: 0, samples: Vec::new() };
    let mut decodes = Series { streams, depth: depth + prompt, prompt: 0, decode, samples: Vec::new() };
    for _ in 0..args.repetitions.get() {
        subject.fill(streams, depth)?;
        if prompt > 0 {
            let began = Instant::now();
            subject.prompt(depth, prompt)?;
            prompts.samples.push(began.elapsed());
        }
        if decode > 0 {
            let began = Instant::now();
            subject.decode(streams, depth + prompt, decode)?;
            decodes.samples.push(began.elapsed());
        }
    }
    Ok([prompts, decodes].into_iter().filter(|series| !series.samples.is_empty()).collect())
}

/// What all measurements with one loaded model have in common.
struct Surroundings<'a> {
    args: &'a BenchArgs,
    loading: Loading,
    load_ms: f64,
    read_file_ms: Option<f64>,
    peak_resident: Bytes,
    file_bytes: Bytes,
    memory_bytes_per_s: f64,
    cpu_info: String,
}

impl Surroundings<'_> {
    fn record(&self, facts: &Facts, series: Series) -> Record {
        let Series { streams, depth, prompt, decode, samples } = series;
        let tokens = f64::from(streams) * f64::from(prompt + decode);
        let seconds: Vec<f64> = samples.iter().map(Duration::as_secs_f64).collect();
        let speeds: Vec<f64> = seconds.iter().map(|seconds| tokens / seconds).collect();
        let ((mean_s, deviation_s), (speed, deviation)) = (spread(&seconds), spread(&speeds));
        let bytes_per_token = if decode > 0 { facts.reads.per_token(streams, depth, decode) } else { None };
        let read_bytes_per_s = bytes_per_token.map(|bytes| bytes * speed);
        let ns = |seconds: f64| (seconds * 1e9) as u64;
        Record {
            version: env!("CARGO_PKG_VERSION"),
            cpu_info: self.cpu_info.clone(),
            model_filename: self.args.model.display().to_string(),
            model_type: facts.name.clone(),
            model_size: facts.weights.0,
            model_n_params: facts.params,
            backend: match self.loading.device {
                DeviceKind::Cpu => "CPU".to_owned(),
                DeviceKind::Cuda(index) => format!("CUDA{index}"),
                DeviceKind::Metal => "Metal".to_owned(),
            },
            n_threads: self.loading.threads,
            n_batch: self.loading.batch,
            type_kv: "f16",
            streams,
            n_prompt: prompt,
            n_gen: decode,
            n_depth: depth,
            avg_ns: ns(mean_s),
            stddev_ns: ns(deviation_s),
            avg_ts: speed,
            stddev_ts: deviation,
            samples_ns: seconds.iter().map(|s| ns(*s)).collect(),
            samples_ts: speeds,
            bytes_per_token,
            read_bytes_per_s,
            memory_bytes_per_s: self.memory_bytes_per_s,
            memory_share: read_bytes_per_s.map(|bytes| bytes / self.memory_bytes_per_s),
            load_ms: self.load_ms,
            read_file_ms: self.read_file_ms,
            peak_resident: self.peak_resident.0,
            cache_size: facts.memory.cache.0,
            file_size: self.file_bytes.0,
            resident_limit: (facts.memory.weights + facts.memory.cache + FIXED_OVERHEAD).0,
        }
    }
}

/// Mean and standard deviation of a sample.
fn spread(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, if values.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 })
}

fn cpu_name() -> String {
    let system = sysinfo::System::new().map(|mut system| {
        system.refresh_cpu_all();
        system.cpus().first().map_or_else(String::new, |cpu| cpu.brand().to_owned())
    });
    system.unwrap_or_default()
}
