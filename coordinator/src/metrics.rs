//! Counters, gauges and histograms, as Prometheus reads them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use brigade_proto::step::StepKind;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Buckets for computing and waiting: 0.1 ms to 26 s, so that a 10 ms step and a 10 s one are both told apart.
const SHORT_BUCKETS: (f64, f64, u16) = (1e-4, 2.0, 19);
/// Buckets for what a user waits for: 5 ms to 160 s.
const LONG_BUCKETS: (f64, f64, u16) = (5e-3, 2.0, 16);

/// The cluster's metrics. Clones share their values.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// Requests that have ended, by how.
    pub requests: Family<OutcomeLabel, Counter>,
    /// Tokens of prompts computed (`prompt`) and found in the cache (`reused`), and tokens drawn (`generated`).
    pub tokens: Family<TokenLabel, Counter>,
    /// From a request's arrival to its first token, in seconds.
    pub time_to_first_token: Histogram,
    /// Between two tokens of one request, in seconds.
    pub inter_token: Histogram,
    /// From sending a step to its result, in seconds.
    pub step: Family<KindLabel, Histogram>,
    /// A stage's computation of a step, in seconds.
    pub stage_computed: Family<StageLabel, Histogram>,
    /// A step's wait before a stage, in seconds.
    pub stage_queued: Family<StageLabel, Histogram>,
    /// Requests that hold cache.
    pub running: Gauge,
    /// Requests that wait for cache.
    pub waiting: Gauge,
    /// Cache tokens of the pipeline.
    pub cache_tokens: Gauge,
    /// Cache tokens reserved for running requests.
    pub cache_tokens_reserved: Gauge,
    /// Cache tokens kept for prompts that begin with them.
    pub cache_tokens_kept: Gauge,
    /// Requests whose prompt began with tokens in the cache.
    pub prefix_hits: Counter,
    /// Cache pages kept for prompts to come, and given up for others.
    pub pages_evicted: Counter,
    /// Tokens guessed and computed ahead.
    pub draft_tokens: Counter,
    /// Those of them that became part of an answer.
    pub draft_tokens_accepted: Counter,
    /// Tokens guessed by a draft model and computed ahead.
    pub draft_model_tokens: Counter,
    /// Those of them that became part of an answer.
    pub draft_model_tokens_accepted: Counter,
    /// 1 where a draft model is in use, otherwise 0.
    pub draft_model: Gauge,
    /// Steps sent before their tokens were known.
    pub steps_ahead: Counter,
    /// Workers attached.
    pub workers: Gauge,
    /// 1 where requests are served, otherwise 0.
    pub serving: Gauge,
    /// The plan's number.
    pub epoch: Gauge,
    /// Plans that have failed, while loading or while serving.
    pub plan_failures: Counter,
    /// Plans that took over from one that served, by choice.
    pub plan_moves: Counter,
    /// Times that a request gave its cache back to an older one, to be computed again.
    pub replays: Counter,
    /// Requests that went on after the loss of a plan.
    pub recovered: Counter,
    /// Those of them whose tokens may be others than without the loss.
    pub recovered_inexact: Counter,
    /// From the loss of a plan until what ran went on, in seconds.
    pub recovery: Family<RecoveryLabel, Histogram>,
    /// Results dropped because their fence was not the active one.
    pub results_fenced: Counter,
    /// Resident memory of each worker's process, in bytes.
    pub worker_resident: Family<WorkerLabel, Gauge<f64, AtomicU64>>,
    /// How many times as long as needed each worker's steps take: 1, but for measurements.
    pub worker_stretch: Family<WorkerLabel, Gauge<f64, AtomicU64>>,
    /// 1 for the state that each worker is in, 0 for the others.
    pub worker_health: Family<WorkerHealthLabel, Gauge>,
    /// 1 for the state that each stage is in, 0 for the others.
    pub stage_health: Family<StageHealthLabel, Gauge>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// By itself.
    Finished,
    /// By its client.
    Cancelled,
    /// By a failure.
    Failed,
    /// Before it began.
    Refused,
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        let name = match self {
            Outcome::Finished => "finished",
            Outcome::Cancelled => "cancelled",
            Outcome::Failed => "failed",
            Outcome::Refused => "refused",
        };
        name.encode(encoder)
    }
}

/// Label of [`Metrics::requests`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    /// How it ended.
    pub outcome: Outcome,
}

/// What a token was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenUse {
    /// Part of a prompt.
    Prompt,
    /// Part of a prompt, found in the cache.
    Reused,
    /// Part of an answer.
    Generated,
}

impl EncodeLabelValue for TokenUse {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        let name = match self {
            TokenUse::Prompt => "prompt",
            TokenUse::Reused => "reused",
            TokenUse::Generated => "generated",
        };
        name.encode(encoder)
    }
}

/// Label of [`Metrics::tokens`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TokenLabel {
    /// What it was.
    pub kind: TokenUse,
}

/// A step's kind as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Prompt chunks.
    Prefill,
    /// Generated tokens.
    Decode,
}

impl EncodeLabelValue for Kind {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        let name = match self {
            Kind::Prefill => "prefill",
            Kind::Decode => "decode",
        };
        name.encode(encoder)
    }
}

impl From<StepKind> for Kind {
    fn from(kind: StepKind) -> Kind {
        match kind {
            StepKind::Prefill => Kind::Prefill,
            StepKind::Decode => Kind::Decode,
        }
    }
}

/// Label of [`Metrics::step`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// The step's kind.
    pub kind: Kind,
}

/// Label of the stages' histograms.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StageLabel {
    /// Place in the pipeline, from 0.
    pub stage: u32,
    /// The step's kind.
    pub kind: Kind,
}

/// A part of a recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecoveryPart {
    /// From the last sign of life until the plan was given up.
    Detect,
    /// From then until stages of the next one were being loaded.
    Plan,
    /// From then until it served.
    Load,
    /// From then until what ran was where it had been.
    Replay,
}

impl EncodeLabelValue for RecoveryPart {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        let name = match self {
            RecoveryPart::Detect => "detect",
            RecoveryPart::Plan => "plan",
            RecoveryPart::Load => "load",
            RecoveryPart::Replay => "replay",
        };
        name.encode(encoder)
    }
}

/// Label of [`Metrics::recovery`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RecoveryLabel {
    /// Which part.
    pub part: RecoveryPart,
}

/// Label of the workers' gauges.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WorkerLabel {
    /// The worker's id.
    pub worker: String,
}

/// Label of [`Metrics::worker_health`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WorkerHealthLabel {
    /// The worker's id.
    pub worker: String,
    /// Its name.
    pub name: String,
    /// The state.
    pub state: &'static str,
}

/// Label of [`Metrics::stage_health`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StageHealthLabel {
    /// Place in the pipeline, from 0.
    pub stage: u32,
    /// The state.
    pub state: &'static str,
}

fn short() -> Histogram {
    let (start, factor, length) = SHORT_BUCKETS;
    Histogram::new(exponential_buckets(start, factor, length))
}

fn long() -> Histogram {
    let (start, factor, length) = LONG_BUCKETS;
    Histogram::new(exponential_buckets(start, factor, length))
}

impl Metrics {
    /// Registers the cluster's metrics, under `brigade_`, in `registry`, which it takes over.
    pub fn new(mut registry: Registry) -> Metrics {
        let mut metrics = Metrics {
            registry: Arc::default(),
            requests: Family::default(),
            tokens: Family::default(),
            time_to_first_token: long(),
            inter_token: short(),
            step: Family::new_with_constructor(short),
            stage_computed: Family::new_with_constructor(short),
            stage_queued: Family::new_with_constructor(short),
            running: Gauge::default(),
            waiting: Gauge::default(),
            cache_tokens: Gauge::default(),
            cache_tokens_reserved: Gauge::default(),
            cache_tokens_kept: Gauge::default(),
            prefix_hits: Counter::default(),
            pages_evicted: Counter::default(),
            draft_tokens: Counter::default(),
            draft_tokens_accepted: Counter::default(),
            draft_model_tokens: Counter::default(),
            draft_model_tokens_accepted: Counter::default(),
            draft_model: Gauge::default(),
            steps_ahead: Counter::default(),
            workers: Gauge::default(),
            serving: Gauge::default(),
            epoch: Gauge::default(),
            plan_failures: Counter::default(),
            plan_moves: Counter::default(),
            replays: Counter::default(),
            recovered: Counter::default(),
            recovered_inexact: Counter::default(),
            recovery: Family::new_with_constructor(long),
            results_fenced: Counter::default(),
            worker_resident: Family::default(),
            worker_stretch: Family::default(),
            worker_health: Family::default(),
            stage_health: Family::default(),
        };
        metrics.register(registry.sub_registry_with_prefix("brigade"));
        metrics.registry = Arc::new(registry);
        metrics
    }

    fn register(&self, to: &mut Registry) {
        to.register("requests", "Requests that have ended", self.requests.clone());
        to.register(
            "tokens",
            "Prompt tokens computed, those found in the cache, and tokens drawn",
            self.tokens.clone(),
        );
        let seconds = || Unit::Seconds;
        for (name, help, histogram) in [
            ("time_to_first_token", "From a request's arrival to its first token", &self.time_to_first_token),
            ("inter_token", "Between two tokens of one request", &self.inter_token),
        ] {
            to.register_with_unit(name, help, seconds(), histogram.clone());
        }
        to.register_with_unit("step", "From sending a step to its result", seconds(), self.step.clone());
        let computed = self.stage_computed.clone();
        to.register_with_unit("stage_computed", "A stage's computation of a step", seconds(), computed);
        let queued = self.stage_queued.clone();
        to.register_with_unit("stage_queued", "A step's wait before a stage", seconds(), queued);
        for (name, help, gauge) in [
            ("requests_running", "Requests that hold cache", &self.running),
            ("requests_waiting", "Requests that wait for cache", &self.waiting),
            ("cache_tokens", "Cache tokens of the pipeline", &self.cache_tokens),
            ("cache_tokens_reserved", "Cache tokens reserved for requests", &self.cache_tokens_reserved),
            ("cache_tokens_kept", "Cache tokens kept for prompts to come", &self.cache_tokens_kept),
            ("workers", "Workers attached", &self.workers),
            ("serving", "1 where requests are served", &self.serving),
            ("epoch", "The plan's number", &self.epoch),
            ("draft_model", "1 where a draft model is in use", &self.draft_model),
        ] {
            to.register(name, help, gauge.clone());
        }
        to.register("plan_failures", "Plans that have failed", self.plan_failures.clone());
        to.register("plan_moves", "Plans that took over by choice", self.plan_moves.clone());
        to.register("prefix_hits", "Requests that began with cached tokens", self.prefix_hits.clone());
        to.register("pages_evicted", "Kept cache pages given up for others", self.pages_evicted.clone());
        to.register("draft_tokens", "Tokens guessed and computed ahead", self.draft_tokens.clone());
        let accepted = self.draft_tokens_accepted.clone();
        to.register("draft_tokens_accepted", "Guessed tokens that became part of an answer", accepted);
        let by_model = self.draft_model_tokens.clone();
        to.register("draft_model_tokens", "Tokens guessed by a draft model and computed ahead", by_model);
        let accepted = self.draft_model_tokens_accepted.clone();
        to.register("draft_model_tokens_accepted", "Those that became part of an answer", accepted);
        to.register("steps_ahead", "Steps sent before their tokens were known", self.steps_ahead.clone());
        to.register("replays", "Requests that gave their cache back for a while", self.replays.clone());
        to.register(
            "requests_recovered",
            "Requests that went on after a plan was lost",
            self.recovered.clone(),
        );
        let inexact = self.recovered_inexact.clone();
        to.register(
            "requests_recovered_inexact",
            "Those whose tokens may be others than without that",
            inexact,
        );
        let recovery = self.recovery.clone();
        to.register_with_unit("recovery", "From a plan's loss until what ran went on", seconds(), recovery);
        to.register("results_fenced", "Results dropped for an old fence", self.results_fenced.clone());
        let resident = self.worker_resident.clone();
        to.register_with_unit("worker_resident", "Resident memory of a worker", Unit::Bytes, resident);
        let stretch = self.worker_stretch.clone();
        to.register("worker_stretch", "How many times as long as needed a worker's steps take", stretch);
        let health = self.worker_health.clone();
        to.register("worker_health", "1 for the state that a worker is in", health);
        to.register("stage_health", "1 for the state that a stage is in", self.stage_health.clone());
    }

    /// All values in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail; a value that cannot be written ends the text early.
        let _ = text::encode(&mut out, &self.registry);
        out
    }

    /// Counts a request that has ended.
    pub fn count_request(&self, outcome: Outcome) {
        self.count_requests(outcome, 1);
    }

    /// Counts requests that have ended.
    pub fn count_requests(&self, outcome: Outcome, count: u64) {
        self.requests.get_or_create(&OutcomeLabel { outcome }).inc_by(count);
    }

    /// Counts tokens.
    pub fn count_tokens(&self, kind: TokenUse, count: u64) {
        self.tokens.get_or_create(&TokenLabel { kind }).inc_by(count);
    }

    /// Notes a step's way through the pipeline.
    pub fn observe_step(&self, kind: StepKind, took: Duration) {
        self.step.get_or_create(&KindLabel { kind: kind.into() }).observe(took.as_secs_f64());
    }

    /// Notes a part of a recovery.
    pub fn observe_recovery(&self, part: RecoveryPart, took: Duration) {
        self.recovery.get_or_create(&RecoveryLabel { part }).observe(took.as_secs_f64());
    }

    /// Notes a stage's share of a step, in microseconds.
    pub fn observe_stage(&self, stage: u32, kind: StepKind, queued_us: u32, computed_us: u32) {
        let label = StageLabel { stage, kind: kind.into() };
        self.stage_queued.get_or_create(&label).observe(f64::from(queued_us) / 1e6);
        self.stage_computed.get_or_create(&label).observe(f64::from(computed_us) / 1e6);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_exposed() {
        let metrics = Metrics::new(Registry::default());
        metrics.count_request(Outcome::Finished);
        metrics.count_tokens(TokenUse::Generated, 7);
        metrics.observe_step(StepKind::Decode, Duration::from_millis(12));
        metrics.observe_stage(1, StepKind::Prefill, 10, 2_000);
        metrics.running.set(3);
        let text = metrics.encode();
        for line in [
            "brigade_requests_total{outcome=\"finished\"} 1",
            "brigade_tokens_total{kind=\"generated\"} 7",
            "brigade_step_seconds_count{kind=\"decode\"} 1",
            "brigade_stage_computed_seconds_count{stage=\"1\",kind=\"prefill\"} 1",
            "brigade_requests_running 3",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
