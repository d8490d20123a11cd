//! Counters, gauges and histograms, as Prometheus reads them; named in vLLM's habits, so that what people have for that
//! needs little change. `docs/metrics.md` lists them.

#[cfg(test)]
mod documented;
mod status;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use brigade_proto::step::StepKind;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

pub use self::status::StatusMetrics;

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
    /// Prompt tokens computed.
    pub prompt_tokens: Counter,
    /// Prompt tokens found in the cache.
    pub prompt_tokens_cached: Counter,
    /// Tokens drawn.
    pub generation_tokens: Counter,
    /// From a request's arrival to its first token, in seconds.
    pub time_to_first_token: Histogram,
    /// Between two tokens of one request, in seconds.
    pub inter_token_latency: Histogram,
    /// From a request's arrival to its last token, in seconds.
    pub e2e_request_latency: Histogram,
    /// From a request's arrival until it first had cache, in seconds.
    pub request_queue_time: Histogram,
    /// From sending a step to its result, in seconds.
    pub step: Family<KindLabel, Histogram>,
    /// A stage's computation of a step, in seconds.
    pub stage_computed: Family<StageLabel, Histogram>,
    /// A step's wait before a stage, in seconds.
    pub stage_queued: Family<StageLabel, Histogram>,
    /// A stage's sending of a step, in seconds.
    pub stage_sent: Family<StageLabel, Histogram>,
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
    /// Steps sent before their tokens were known.
    pub steps_ahead: Counter,
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
    /// Losses of a plan after which what ran went on.
    pub recoveries: Counter,
    /// From the loss of a plan until what ran went on, in seconds.
    pub recovery: Family<RecoveryLabel, Histogram>,
    /// Results dropped because their fence was not the active one.
    pub results_fenced: Counter,
    /// Traces that the collector did not take, or that came faster than it took them.
    pub traces_dropped: Counter,
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

fn short() -> Histogram {
    let (start, factor, length) = SHORT_BUCKETS;
    Histogram::new(exponential_buckets(start, factor, length))
}

fn long() -> Histogram {
    let (start, factor, length) = LONG_BUCKETS;
    Histogram::new(exponential_buckets(start, factor, length))
}

impl Metrics {
    /// Registers the cluster's metrics, under `brigade_`, in `registry`, which it takes over; those of the status, too.
    pub fn new(mut registry: Registry, status: StatusMetrics) -> Metrics {
        let mut metrics = Metrics {
            registry: Arc::default(),
            requests: Family::default(),
            prompt_tokens: Counter::default(),
            prompt_tokens_cached: Counter::default(),
            generation_tokens: Counter::default(),
            time_to_first_token: long(),
            inter_token_latency: short(),
            e2e_request_latency: long(),
            request_queue_time: long(),
            step: Family::new_with_constructor(short),
            stage_computed: Family::new_with_constructor(short),
            stage_queued: Family::new_with_constructor(short),
            stage_sent: Family::new_with_constructor(short),
            prefix_hits: Counter::default(),
            pages_evicted: Counter::default(),
            draft_tokens: Counter::default(),
            draft_tokens_accepted: Counter::default(),
            draft_model_tokens: Counter::default(),
            draft_model_tokens_accepted: Counter::default(),
            steps_ahead: Counter::default(),
            plan_failures: Counter::default(),
            plan_moves: Counter::default(),
            replays: Counter::default(),
            recovered: Counter::default(),
            recovered_inexact: Counter::default(),
            recoveries: Counter::default(),
            recovery: Family::new_with_constructor(long),
            results_fenced: Counter::default(),
            traces_dropped: Counter::default(),
        };
        let ours = registry.sub_registry_with_prefix("brigade");
        metrics.register(ours);
        ours.register_collector(Box::new(status));
        metrics.registry = Arc::new(registry);
        metrics
    }

    fn register(&self, to: &mut Registry) {
        to.register("requests", "Requests that have ended", self.requests.clone());
        for (name, help, histogram) in [
            ("time_to_first_token", "From a request's arrival to its first token", &self.time_to_first_token),
            ("inter_token_latency", "Between two tokens of one request", &self.inter_token_latency),
            ("e2e_request_latency", "From a request's arrival to its end", &self.e2e_request_latency),
            ("request_queue_time", "From a request's arrival until it had cache", &self.request_queue_time),
        ] {
            to.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        to.register_with_unit("step", "From sending a step to its result", Unit::Seconds, self.step.clone());
        for (name, help, histograms) in [
            ("stage_computed", "A stage's computation of a step", &self.stage_computed),
            ("stage_queued", "A step's wait before a stage", &self.stage_queued),
            ("stage_sent", "A stage's sending of a step", &self.stage_sent),
        ] {
            to.register_with_unit(name, help, Unit::Seconds, histograms.clone());
        }
        let recovery = self.recovery.clone();
        to.register_with_unit(
            "recovery",
            "From a plan's loss until what ran went on",
            Unit::Seconds,
            recovery,
        );
        for (name, help, counter) in [
            ("prompt_tokens", "Prompt tokens computed", &self.prompt_tokens),
            ("prompt_tokens_cached", "Prompt tokens found in the cache", &self.prompt_tokens_cached),
            ("generation_tokens", "Tokens generated", &self.generation_tokens),
            ("plan_failures", "Plans that have failed", &self.plan_failures),
            ("plan_moves", "Plans that took over by choice", &self.plan_moves),
            ("prefix_hits", "Requests that began with cached tokens", &self.prefix_hits),
            ("pages_evicted", "Kept cache pages given up for others", &self.pages_evicted),
            ("draft_tokens", "Tokens guessed and computed ahead", &self.draft_tokens),
            (
                "draft_tokens_accepted",
                "Guessed tokens that became part of an answer",
                &self.draft_tokens_accepted,
            ),
            (
                "draft_model_tokens",
                "Tokens guessed by a draft model and computed ahead",
                &self.draft_model_tokens,
            ),
            (
                "draft_model_tokens_accepted",
                "Tokens guessed by a draft model that became part of an answer",
                &self.draft_model_tokens_accepted,
            ),
            ("steps_ahead", "Steps sent before their tokens were known", &self.steps_ahead),
            ("replays", "Requests that gave their cache back for a while", &self.replays),
            ("requests_recovered", "Requests that went on after a plan was lost", &self.recovered),
            (
                "requests_recovered_inexact",
                "Recovered requests whose tokens may be others than without the loss",
                &self.recovered_inexact,
            ),
            ("recoveries", "Losses of a plan after which what ran went on", &self.recoveries),
            ("results_fenced", "Results dropped for an old fence", &self.results_fenced),
            ("traces_dropped", "Traces that the collector did not take", &self.traces_dropped),
        ] {
            to.register(name, help, counter.clone());
        }
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

    /// Notes a step's way through the pipeline.
    pub fn observe_step(&self, kind: StepKind, took: Duration) {
        self.step.get_or_create(&KindLabel { kind: kind.into() }).observe(took.as_secs_f64());
    }

    /// Notes a part of a recovery.
    pub fn observe_recovery(&self, part: RecoveryPart, took: Duration) {
        self.recovery.get_or_create(&RecoveryLabel { part }).observe(took.as_secs_f64());
    }

    /// Notes how long a step waited before a stage, was computed there and was sent on, in microseconds.
    pub fn observe_stage(&self, stage: u32, kind: StepKind, [queued_us, computed_us, sent_us]: [u32; 3]) {
        let label = StageLabel { stage, kind: kind.into() };
        self.stage_queued.get_or_create(&label).observe(f64::from(queued_us) / 1e6);
        self.stage_computed.get_or_create(&label).observe(f64::from(computed_us) / 1e6);
        self.stage_sent.get_or_create(&label).observe(f64::from(sent_us) / 1e6);
    }
}
