//! How measurements are written down: a Markdown table as they come, or one JSON object at the end.

use std::io::{self, Write};

use serde::Serialize;

use super::figures::Quantiles;
use super::record::Record;
use super::test::LeftOut;
use crate::render::stage_shard;
use crate::status::ClusterStatus;

/// What was measured, and how.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// The coordinator's version.
    pub version: String,
    /// Where its HTTP is.
    pub url: String,
    /// The model.
    pub model: String,
    /// Bytes of its weights.
    pub model_size: u64,
    /// The plan's number.
    pub epoch: u64,
    /// Longest sequence, in tokens.
    pub context: u32,
    /// Cache tokens of the whole pipeline.
    pub cache_tokens: u32,
    /// The stages: worker, what it holds, threads.
    pub pipeline: Vec<StageSetting>,
    /// How often each test was repeated.
    pub repetitions: u32,
    /// Sampling temperature.
    pub temperature: f64,
    /// Seed of prompts and sampling.
    pub seed: u64,
    /// Tests that the cluster has no room for.
    pub left_out: Vec<LeftOut>,
}

/// A stage as it was measured.
#[derive(Clone, Debug, Serialize)]
pub struct StageSetting {
    /// Place in the pipeline, from 0.
    pub stage: u32,
    /// The worker's name.
    pub worker: String,
    /// What it holds, in words.
    pub holds: String,
    /// The worker's device.
    pub device: String,
    /// The worker's compute threads.
    pub threads: u32,
}

impl Setting {
    /// Of a cluster in this state.
    pub fn new(url: &str, status: &ClusterStatus, repetitions: u32, temperature: f64, seed: u64) -> Setting {
        let pipeline = status.stages.iter().map(|stage| {
            let worker = status.workers.iter().find(|worker| worker.id == stage.worker);
            StageSetting {
                stage: stage.stage,
                worker: stage.name.clone(),
                holds: stage_shard(stage).to_string(),
                device: worker.map(|worker| worker.device.clone()).unwrap_or_default(),
                threads: worker.map_or(0, |worker| worker.threads),
            }
        });
        Setting {
            version: status.version.clone(),
            url: url.to_owned(),
            model: status.model.id.clone(),
            model_size: status.model.weight_bytes,
            epoch: status.epoch,
            context: status.context,
            cache_tokens: status.cache_tokens,
            pipeline: pipeline.collect(),
            repetitions,
            temperature,
            seed,
            left_out: Vec::new(),
        }
    }
}

/// Writes a Markdown report: the tests as they come, where the stages' time went at the end.
pub struct Report<W: Write> {
    out: W,
    records: Vec<Record>,
}

const LEFT: bool = false;
const RIGHT: bool = true;

/// Columns of the tests: name, width, whether numbers stand in them. The table is at most 100 characters wide.
const TESTS: [(&str, usize, bool); 8] = [
    ("test", 15, LEFT),
    ("streams", 7, RIGHT),
    ("t/s", 8, RIGHT),
    ("least to most", 17, RIGHT),
    ("TTFT ms", 8, RIGHT),
    ("ITL p50", 7, RIGHT),
    ("p95", 6, RIGHT),
    ("p99", 6, RIGHT),
];

/// Columns of the stages.
const STAGES: [(&str, usize, bool); 8] = [
    ("test", 15, LEFT),
    ("streams", 7, RIGHT),
    ("on wire", 7, RIGHT),
    ("stage", 5, RIGHT),
    ("worker", 18, LEFT),
    ("busy", 6, RIGHT),
    ("idle", 6, RIGHT),
    ("sending", 7, RIGHT),
];

impl<W: Write> Report<W> {
    /// A report on `out`.
    pub fn new(out: W) -> Report<W> {
        Report { out, records: Vec::new() }
    }

    /// Writes a test's line.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn add(&mut self, record: Record) -> io::Result<()> {
        if self.records.is_empty() {
            head(&mut self.out, &TESTS)?;
        }
        row(&mut self.out, &TESTS, &test_cells(&record))?;
        self.records.push(record);
        self.out.flush()
    }

    /// Writes what comes after all tests: where the time went, and what to mind.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn end(mut self, setting: &Setting) -> io::Result<()> {
        writeln!(self.out)?;
        head(&mut self.out, &STAGES)?;
        for record in &self.records {
            for cells in stage_cells(record) {
                row(&mut self.out, &STAGES, &cells)?;
            }
        }
        writeln!(self.out, "\n{}, {}", setting.model, pipeline_in_words(setting))?;
        writeln!(
            self.out,
            "t/s: median of {} repetition(s), all streams together; ITL in ms; on wire: share of a step's way that\n\
             no stage accounts for; sending goes on beside computing.",
            setting.repetitions
        )?;
        for record in self.records.iter().filter(|record| record.disturbed) {
            writeln!(
                self.out,
                "{} with {} stream(s): other requests ran meanwhile.",
                record.test, record.streams
            )?;
        }
        for record in self.records.iter().filter(|record| record.cached_tokens > 0) {
            let cached = record.cached_tokens;
            writeln!(
                self.out,
                "{} with {} stream(s): {cached} prompt tokens were in the cache already; give another --seed.",
                record.test, record.streams
            )?;
        }
        for record in self.records.iter().filter(|record| record.draft_tokens > 0) {
            let (drafts, accepted) = (record.draft_tokens, record.draft_tokens_accepted);
            writeln!(
                self.out,
                "{} with {} stream(s): {accepted} of {drafts} tokens guessed ahead were right.",
                record.test, record.streams
            )?;
        }
        for left_out in &setting.left_out {
            writeln!(self.out, "left out: {}", left_out.reason)?;
        }
        self.out.flush()
    }
}

/// All of it as one JSON object.
///
/// # Errors
/// Where it cannot be written.
pub fn write_json(mut out: impl Write, setting: &Setting, records: &[Record]) -> io::Result<()> {
    #[derive(Serialize)]
    struct Document<'a> {
        #[serde(flatten)]
        setting: &'a Setting,
        tests: &'a [Record],
    }
    serde_json::to_writer_pretty(&mut out, &Document { setting, tests: records })?;
    writeln!(out)?;
    out.flush()
}

fn pipeline_in_words(setting: &Setting) -> String {
    let stages = setting.pipeline.iter();
    let each = stages.map(|s| format!("{} ({}, {} thread(s)): {}", s.worker, s.device, s.threads, s.holds));
    each.collect::<Vec<String>>().join("; ")
}

fn test_cells(record: &Record) -> [String; 8] {
    let quantile = |quantiles: &Option<Quantiles>, of: fn(&Quantiles) -> f64| {
        quantiles.as_ref().map_or_else(String::new, |quantiles| short(of(quantiles)))
    };
    [
        record.test.clone(),
        record.streams.to_string(),
        speed(record.median_ts),
        format!("{} to {}", speed(record.least_ts), speed(record.largest_ts)),
        quantile(&record.ttft_ms, |q| q.p50),
        quantile(&record.itl_ms, |q| q.p50),
        quantile(&record.itl_ms, |q| q.p95),
        quantile(&record.itl_ms, |q| q.p99),
    ]
}

fn stage_cells(record: &Record) -> impl Iterator<Item = [String; 8]> {
    let percent = |share: f64| format!("{:.1}%", share * 100.0);
    record.stages.iter().enumerate().map(move |(at, stage)| {
        // What is true of the whole pipeline stands beside its first stage.
        let first = |text: String| if at == 0 { text } else { String::new() };
        [
            first(record.test.clone()),
            first(record.streams.to_string()),
            first(percent(record.wire_share)),
            stage.stage.to_string(),
            stage.worker.chars().map(|c| if c.is_control() || c == '|' { '?' } else { c }).take(18).collect(),
            percent(stage.busy),
            percent(stage.idle),
            percent(stage.wire),
        ]
    })
}

/// Tokens per second, in at most eight characters.
fn speed(tokens_per_s: f64) -> String {
    if tokens_per_s < 1000.0 { format!("{tokens_per_s:.2}") } else { format!("{tokens_per_s:.0}") }
}

/// A number in about four digits.
fn short(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        ..1000.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn head<const N: usize>(out: &mut impl Write, columns: &[(&str, usize, bool); N]) -> io::Result<()> {
    row(out, columns, &columns.map(|(name, ..)| name.to_owned()))?;
    let rules = columns.map(
        |(_, width, right)| {
            if right { format!("{}:", "-".repeat(width - 1)) } else { "-".repeat(width) }
        },
    );
    row(out, columns, &rules)
}

fn row<const N: usize>(
    out: &mut impl Write,
    columns: &[(&str, usize, bool); N],
    cells: &[String; N],
) -> io::Result<()> {
    for (cell, (_, width, right)) in cells.iter().zip(columns) {
        if *right {
            write!(out, "| {cell:>width$} ")?;
        } else {
            write!(out, "| {cell:<width$} ")?;
        }
    }
    writeln!(out, "|")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{StageShare, Test, TestKind};

    fn record() -> Record {
        let test = Test { kind: TestKind::Decode { tokens: 128, depth: 4096 }, streams: 16 };
        Record {
            median_ts: 12_345.678,
            least_ts: 999.5,
            largest_ts: 23_456.7,
            ttft_ms: Some(Quantiles { p50: 12_345.6, p95: 1.0, p99: 1.0 }),
            itl_ms: Some(Quantiles { p50: 9.994, p95: 123.45, p99: 1234.5 }),
            wire_share: 0.0123,
            stages: (0..2)
                .map(|stage| StageShare {
                    stage,
                    worker: "a very long name of a worker".to_owned(),
                    busy: 0.987,
                    idle: 0.013,
                    ..StageShare::default()
                })
                .collect(),
            cached_tokens: 3,
            draft_tokens: 9,
            draft_tokens_accepted: 4,
            disturbed: true,
            ..Record::new(&test)
        }
    }

    fn setting() -> Setting {
        let mut setting = Setting::new("http://h:1", &ClusterStatus::default(), 3, 1.0, 7);
        setting.model = "m".to_owned();
        setting.left_out =
            vec![LeftOut { test: "tg128".to_owned(), streams: 32, reason: "too many".to_owned() }];
        setting
    }

    #[test]
    fn tables_are_at_most_100_characters_wide_and_aligned() {
        let mut text = Vec::new();
        let mut report = Report::new(&mut text);
        report.add(record()).unwrap();
        report.end(&setting()).unwrap();
        let text = String::from_utf8(text).unwrap();
        for table in text.split("\n\n").take(2) {
            let widths: Vec<usize> = table.lines().map(|line| line.chars().count()).collect();
            assert!(widths.iter().all(|width| *width == widths[0] && *width <= 100), "{widths:?}\n{text}");
        }
        assert!(text.contains("| tg128 @ d4096   |      16 |    12346 |   999.50 to 23457 |"), "{text}");
        assert!(text.contains("|    9.99 |  123.5 |   1234 |"), "{text}");
        for note in [
            "other requests ran meanwhile",
            "3 prompt tokens were in the cache",
            "4 of 9 tokens guessed ahead were right",
            "left out: too many",
        ] {
            assert!(text.contains(note), "{note} is missing in\n{text}");
        }
    }

    #[test]
    fn json_is_one_object_with_all_tests() {
        let mut text = Vec::new();
        write_json(&mut text, &setting(), &[record()]).unwrap();
        let document: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(document["tests"][0]["test"], "tg128 @ d4096");
        assert_eq!(document["tests"][0]["itl_ms"]["p95"], 123.45);
        assert_eq!(document["tests"][0]["stages"][1]["busy"], 0.987);
        assert_eq!((&document["seed"], &document["left_out"][0]["streams"]), (&7.into(), &32.into()));
    }
}
