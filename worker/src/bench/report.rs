//! How measurements are written down.

use std::io::{self, Write};

use brigade_shard::units::Bytes;
use serde::Serialize;

use super::OutputFormat;

/// One measurement, with what it was made with. Names are llama-bench's where it has them.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// This program's version.
    pub version: &'static str,
    /// The processor's name.
    pub cpu_info: String,
    /// Where the model lies.
    pub model_filename: String,
    /// The model's name, and the type of most of its weights.
    pub model_type: String,
    /// Bytes of its weights.
    pub model_size: u64,
    /// How many weights.
    pub model_n_params: u64,
    /// Where it was computed: cpu, cuda:N or metal.
    pub backend: String,
    /// Compute threads.
    pub n_threads: usize,
    /// Most tokens in one step.
    pub n_batch: u32,
    /// How keys and values are kept.
    pub type_kv: &'static str,
    /// Sequences that decoded together.
    pub streams: u32,
    /// Tokens processed as a prompt; 0 where tokens were decoded.
    pub n_prompt: u32,
    /// Tokens decoded one by one, of each sequence; 0 where a prompt was processed.
    pub n_gen: u32,
    /// Tokens that each sequence held before.
    pub n_depth: u32,
    /// Mean time of a repetition.
    pub avg_ns: u64,
    /// Its standard deviation.
    pub stddev_ns: u64,
    /// Mean speed, in tokens per second, of all sequences together.
    pub avg_ts: f64,
    /// Its standard deviation.
    pub stddev_ts: f64,
    /// Time of each repetition.
    pub samples_ns: Vec<u64>,
    /// Speed of each repetition, in tokens per second.
    pub samples_ts: Vec<f64>,
    /// Bytes of weights, keys and values that are read for a decoded token. Weights count once for all sequences of a step;
    /// nothing is said where several sequences choose experts.
    pub bytes_per_token: Option<f64>,
    /// Those bytes times the mean speed, per second.
    pub read_bytes_per_s: Option<f64>,
    /// What as many threads read from this machine's memory.
    pub memory_bytes_per_s: f64,
    /// The share of it that decoding reaches.
    pub memory_share: Option<f64>,
    /// Time from opening the file to a model that is ready.
    pub load_ms: f64,
    /// Time of merely reading the file into memory with as many threads; only where it was asked for.
    pub read_file_ms: Option<f64>,
    /// Most memory that the process has held, up to the end of its measurements.
    pub peak_resident: u64,
    /// Bytes of the cache.
    pub cache_size: u64,
    /// Bytes of the model's files.
    pub file_size: u64,
    /// What the process may hold: its weights, its cache and 48 MiB.
    pub resident_limit: u64,
}

impl Record {
    /// The measurement in llama-bench's words, such as `pp512` or `tg128 @ d512`; `8 x tg128` where sequences decoded
    /// together.
    pub fn test(&self) -> String {
        let together = if self.streams > 1 { format!("{} x ", self.streams) } else { String::new() };
        let test = match self.n_gen {
            0 => format!("pp{}", self.n_prompt),
            tokens => format!("{together}tg{tokens}"),
        };
        if self.n_depth > 0 { format!("{test} @ d{}", self.n_depth) } else { test }
    }
}

/// Writes records as they come.
pub(super) struct Report<W: Write> {
    out: W,
    format: OutputFormat,
    /// Records so far; JSON is one value, and CSV begins with a line of names.
    written: usize,
    /// The last lines of a Markdown report.
    notes: Vec<String>,
}

const COLUMNS: [(&str, usize, Side); 9] = [
    ("model", 28, Side::Left),
    ("size", 10, Side::Right),
    ("params", 9, Side::Right),
    ("backend", 7, Side::Left),
    ("threads", 7, Side::Right),
    ("test", 15, Side::Right),
    ("t/s", 16, Side::Right),
    ("GB/s", 6, Side::Right),
    ("of memory's", 11, Side::Right),
];

/// Where a column's text stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

impl<W: Write> Report<W> {
    pub(super) fn new(out: W, format: OutputFormat) -> Report<W> {
        Report { out, format, written: 0, notes: Vec::new() }
    }

    /// Writes the measurements that were made with one loaded model.
    pub(super) fn add(&mut self, records: &[Record]) -> io::Result<()> {
        for record in records {
            match self.format {
                OutputFormat::Md => self.row(record)?,
                OutputFormat::Json => {
                    let start = if self.written == 0 { "[\n" } else { ",\n" };
                    write!(self.out, "{start}{}", serde_json::to_string_pretty(record)?)?;
                }
                OutputFormat::Csv => self.line(record)?,
            }
            self.written += 1;
        }
        self.notes.extend(records.first().map(note));
        self.out.flush()
    }

    /// Writes what comes after all measurements.
    pub(super) fn end(mut self) -> io::Result<()> {
        match self.format {
            OutputFormat::Json => writeln!(self.out, "{}]", if self.written == 0 { "[" } else { "\n" })?,
            OutputFormat::Csv => {}
            OutputFormat::Md => {
                writeln!(self.out)?;
                for note in &self.notes {
                    writeln!(self.out, "{note}")?;
                }
            }
        }
        self.out.flush()
    }

    fn row(&mut self, record: &Record) -> io::Result<()> {
        if self.written == 0 {
            let names: Vec<String> = COLUMNS.iter().map(|(name, ..)| (*name).to_owned()).collect();
            self.cells(&names)?;
            let lines = COLUMNS.map(|(_, width, side)| match side {
                Side::Left => "-".repeat(width),
                Side::Right => format!("{}:", "-".repeat(width - 1)),
            });
            self.cells(&lines)?;
        }
        let decimals =
            |value: Option<f64>, digits| value.map_or_else(String::new, |x| format!("{x:.digits$}"));
        self.cells(&[
            record.model_type.replace('|', "/"),
            Bytes(record.model_size).to_string(),
            count(record.model_n_params),
            record.backend.clone(),
            record.n_threads.to_string(),
            record.test(),
            format!("{:.2} ± {:.2}", record.avg_ts, record.stddev_ts),
            decimals(record.read_bytes_per_s.map(|bytes| bytes / 1e9), 1),
            record.memory_share.map_or_else(String::new, |share| format!("{:.0}%", share * 100.0)),
        ])
    }

    fn cells(&mut self, cells: &[String]) -> io::Result<()> {
        for (cell, (_, width, side)) in cells.iter().zip(COLUMNS) {
            match side {
                Side::Left => write!(self.out, "| {cell:<width$} ")?,
                Side::Right => write!(self.out, "| {cell:>width$} ")?,
            }
        }
        writeln!(self.out, "|")
    }

    fn line(&mut self, record: &Record) -> io::Result<()> {
        let value = serde_json::to_value(record)?;
        let fields = value.as_object().into_iter().flatten().filter(|(_, value)| !value.is_array());
        let (names, values): (Vec<_>, Vec<_>) =
            fields.map(|(name, value)| (name.as_str(), quoted(value))).unzip();
        if self.written == 0 {
            writeln!(self.out, "{}", names.join(","))?;
        }
        writeln!(self.out, "{}", values.join(","))
    }
}

/// A value as a field of CSV (RFC 4180); nothing where there is none.
fn quoted(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(text) => format!("\"{}\"", text.replace('"', "\"\"")),
        other => other.to_string(),
    }
}

/// What is said once of a loaded model.
fn note(record: &Record) -> String {
    let read =
        record.read_file_ms.map_or_else(String::new, |ms| format!(" (merely reading the file: {ms:.0} ms)"));
    format!(
        "-t {} -b {}: loaded in {:.0} ms{read}; memory at most {:.0} MiB, of {:.0} weights, {:.0} cache and \
         48 = {:.0}; \
         memory gives {:.1} GB/s.",
        record.n_threads,
        record.n_batch,
        record.load_ms,
        Bytes(record.peak_resident).as_mib(),
        Bytes(record.model_size).as_mib(),
        Bytes(record.cache_size).as_mib(),
        Bytes(record.resident_limit).as_mib(),
        record.memory_bytes_per_s / 1e9,
    )
}

/// A number of weights as people say it.
fn count(number: u64) -> String {
    const UNITS: [(&str, f64); 4] = [("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)];
    let number = number as f64;
    UNITS
        .iter()
        .find(|(_, unit)| number >= *unit)
        .map_or_else(|| number.to_string(), |(name, unit)| format!("{:.2} {name}", number / unit))
}
