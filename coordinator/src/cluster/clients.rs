//! The generations that clients listen to.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use brigade_proto::ids::SequenceId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::generation::{Generation, GenerationEvent, GenerationRequest};
use crate::metrics::{Metrics, Outcome};
use crate::recent::{Lately, Readings};
use crate::scheduler::{Active, Counts, Measured};
use crate::status::{ActiveRequest, RateStatus};
use crate::traces::{Ending, Recording, Tracer};

/// Rates are of so much time: long enough to be steady, short enough to be what is.
const RATES: Duration = Duration::from_secs(10);
/// Times to the first token count for so long: they come seldom.
const FIRST_TOKENS: Duration = Duration::from_secs(60);
/// Rates of less than this would leap with every token.
const LEAST_RATES_S: f64 = 1.0;

/// Where events go, by sequence.
pub(super) struct Clients {
    clients: HashMap<SequenceId, Client>,
    next: u64,
    metrics: Metrics,
    tracer: Option<Tracer>,
    counted: Counts,
    counts: Readings<Counts>,
    /// In milliseconds.
    first_tokens: Lately,
    inter_tokens: Lately,
}

struct Client {
    events: mpsc::Sender<GenerationEvent>,
    submitted: Instant,
    /// Whether it has had cache.
    admitted: bool,
    last_token: Option<Instant>,
    trace: Option<Box<Recording>>,
}

/// A generation just made, before anyone listens.
pub(super) struct NewGeneration {
    pub(super) sequence: SequenceId,
    /// Cancelled when the client drops the generation.
    pub(super) cancelled: CancellationToken,
    pub(super) generation: Generation,
}

impl Clients {
    pub(super) fn new(metrics: Metrics, tracer: Option<Tracer>) -> Clients {
        Clients {
            clients: HashMap::new(),
            next: 0,
            metrics,
            tracer,
            counted: Counts::default(),
            counts: Readings::default(),
            first_tokens: Lately::default(),
            inter_tokens: Lately::default(),
        }
    }

    /// Makes a generation for a request.
    pub(super) fn add(&mut self, request: &GenerationRequest) -> NewGeneration {
        self.next += 1;
        let sequence = SequenceId(self.next);
        let (sender, events) = mpsc::channel(most_events(request));
        let cancelled = CancellationToken::new();
        let generation = Generation { events, cancel: cancelled.clone().drop_guard() };
        let submitted = Instant::now();
        let trace = self.tracer.as_ref().and_then(|tracer| tracer.begin(request, submitted)).map(Box::new);
        let client = Client { events: sender, submitted, admitted: false, last_token: None, trace };
        self.clients.insert(sequence, client);
        NewGeneration { sequence, cancelled, generation }
    }

    /// The workers of the stages that compute from now on.
    pub(super) fn serve_on(&mut self, stages: Vec<String>) {
        if let Some(tracer) = &mut self.tracer {
            tracer.serve_on(stages);
        }
    }

    /// A step has come home.
    pub(super) fn measured(&mut self, step: &Measured, now: Instant) {
        if self.tracer.is_none() {
            return;
        }
        for sequence in &step.sequences {
            if let Some(trace) = self.clients.get_mut(sequence).and_then(|client| client.trace.as_mut()) {
                trace.step(&step.timings, step.took, now);
            }
        }
    }

    /// Forgets a generation that nobody listens to any more.
    pub(super) fn forget(&mut self, sequence: SequenceId) {
        self.end(sequence, Ending::Cancelled, Instant::now());
    }

    fn end(&mut self, sequence: SequenceId, how: Ending, now: Instant) {
        let trace = self.clients.remove(&sequence).and_then(|client| client.trace);
        if let (Some(tracer), Some(trace)) = (&self.tracer, trace) {
            tracer.end(*trace, how, now);
        }
    }

    /// Forgets a generation that was not taken.
    pub(super) fn refuse(&mut self, sequence: SequenceId) {
        self.clients.remove(&sequence);
        self.metrics.count_request(Outcome::Refused);
    }

    /// A generation has cache. One that gave its own back may be told of several times.
    pub(super) fn admitted(&mut self, sequence: SequenceId, now: Instant) {
        let Some(client) = self.clients.get_mut(&sequence) else {
            return;
        };
        if let Some(trace) = &mut client.trace {
            trace.admitted(now);
        }
        if !std::mem::replace(&mut client.admitted, true) {
            let waited = now.saturating_duration_since(client.submitted);
            self.metrics.request_queue_time.observe(waited.as_secs_f64());
        }
    }

    /// Tells a client. It has room for every event of its request, so that nothing is ever lost or waited for.
    pub(super) fn emit(&mut self, sequence: SequenceId, event: GenerationEvent, now: Instant) {
        let Some(client) = self.clients.get_mut(&sequence) else {
            return;
        };
        let ending = match &event {
            GenerationEvent::Done(reason) => Some(Ending::Finished(*reason)),
            GenerationEvent::Failed(error) => Some(Ending::Failed(error.to_string())),
            _ => None,
        };
        match (&mut client.trace, &event) {
            (Some(trace), GenerationEvent::Token(_)) => trace.token(now),
            (Some(trace), GenerationEvent::Reused(tokens)) => trace.reused(*tokens),
            _ => {}
        }
        if matches!(event, GenerationEvent::Token(_)) {
            match client.last_token.replace(now) {
                None => {
                    let waited_s = now.saturating_duration_since(client.submitted).as_secs_f64();
                    self.metrics.time_to_first_token.observe(waited_s);
                    self.first_tokens.push(waited_s * 1e3, now);
                }
                Some(before) => {
                    let between_s = now.saturating_duration_since(before).as_secs_f64();
                    self.metrics.inter_token_latency.observe(between_s);
                    // Tokens that were guessed come together: what a reader sees is the time between those that do not.
                    if between_s > 0.0 {
                        self.inter_tokens.push(between_s * 1e3, now);
                    }
                }
            }
        }
        if matches!(event, GenerationEvent::Done(_)) {
            let took = now.saturating_duration_since(client.submitted);
            self.metrics.e2e_request_latency.observe(took.as_secs_f64());
        }
        // The client may have gone: its generation is being cancelled then.
        let _ = client.events.try_send(event);
        if let Some(how) = ending {
            self.end(sequence, how, now);
        }
    }

    /// What was done each second lately.
    pub(super) fn rates(&self, counts: &Counts, now: Instant) -> RateStatus {
        let before = self.counts.before(RATES, now);
        let rate = |count: fn(&Counts) -> u64| {
            let since = before.map(|(age, before)| (count(counts).saturating_sub(count(before)) as f64, age));
            since.map_or(0.0, |(count, age)| count / age.as_secs_f64().max(LEAST_RATES_S))
        };
        RateStatus {
            prompt_tokens_per_s: rate(|counts| counts.prompt_tokens),
            generated_tokens_per_s: rate(|counts| counts.generated_tokens),
            requests_per_s: rate(|counts| counts.finished + counts.cancelled + counts.failed),
            ttft_ms_p50: self.first_tokens.median(FIRST_TOKENS, now).unwrap_or(0.0),
            itl_ms_p50: self.inter_tokens.median(RATES, now).unwrap_or(0.0),
        }
    }

    /// A request as the status lists it.
    pub(super) fn active(&self, active: &Active, now: Instant) -> ActiveRequest {
        let tokens = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let submitted = self.clients.get(&active.sequence).map(|client| client.submitted);
        let age = submitted.map(|submitted| now.saturating_duration_since(submitted));
        ActiveRequest {
            id: active.sequence.0,
            state: active.doing.as_str().into(),
            prompt_tokens: tokens(active.prompt),
            prompt_tokens_done: tokens(active.prompt_done),
            generated_tokens: tokens(active.drawn),
            max_tokens: tokens(active.max_tokens),
            age_s: age.unwrap_or_default().as_secs_f64(),
        }
    }

    /// Brings the counters to what the scheduler has counted.
    pub(super) fn count(&mut self, counts: &Counts, now: Instant) {
        self.counts.read(*counts, now);
        let before = std::mem::replace(&mut self.counted, *counts);
        for (outcome, now, before) in [
            (Outcome::Finished, counts.finished, before.finished),
            (Outcome::Cancelled, counts.cancelled, before.cancelled),
            (Outcome::Failed, counts.failed, before.failed),
        ] {
            self.metrics.count_requests(outcome, now.saturating_sub(before));
        }
        for (counter, now, before) in [
            (&self.metrics.prompt_tokens, counts.prompt_tokens, before.prompt_tokens),
            (&self.metrics.prompt_tokens_cached, counts.prompt_tokens_reused, before.prompt_tokens_reused),
            (&self.metrics.generation_tokens, counts.generated_tokens, before.generated_tokens),
        ] {
            counter.inc_by(now.saturating_sub(before));
        }
        self.metrics.prefix_hits.inc_by(counts.prefix_hits.saturating_sub(before.prefix_hits));
        let accepted = counts.draft_tokens_accepted.saturating_sub(before.draft_tokens_accepted);
        self.metrics.draft_tokens.inc_by(counts.draft_tokens.saturating_sub(before.draft_tokens));
        self.metrics.draft_tokens_accepted.inc_by(accepted);
        let by_model = counts.draft_model_tokens.saturating_sub(before.draft_model_tokens);
        self.metrics.draft_model_tokens.inc_by(by_model);
        let accepted = counts.draft_model_tokens_accepted.saturating_sub(before.draft_model_tokens_accepted);
        self.metrics.draft_model_tokens_accepted.inc_by(accepted);
        self.metrics.steps_ahead.inc_by(counts.steps_ahead.saturating_sub(before.steps_ahead));
        self.metrics.pages_evicted.inc_by(counts.pages_evicted.saturating_sub(before.pages_evicted));
        self.metrics.replays.inc_by(counts.replayed.saturating_sub(before.replayed));
        self.metrics.recovered.inc_by(counts.recovered.saturating_sub(before.recovered));
        let inexact = counts.recovered_inexact.saturating_sub(before.recovered_inexact);
        self.metrics.recovered_inexact.inc_by(inexact);
        self.metrics.results_fenced.inc_by(counts.results_fenced.saturating_sub(before.results_fenced));
    }
}

/// Most events that a request can cause: what is reused, scores per chunk of its prompt (a chunk has a token at least),
/// a token each, and the end.
fn most_events(request: &GenerationRequest) -> usize {
    let scores = if request.score_prompt { request.prompt.len() } else { 0 };
    let tokens = usize::try_from(request.max_tokens).unwrap_or(usize::MAX);
    // A request this large is refused for its context; the bound keeps the channel constructible until then.
    scores.saturating_add(tokens).saturating_add(2).min(1 << 24)
}

#[cfg(test)]
mod tests {
    use brigade_proto::sampling::Sampling;
    use brigade_proto::step::TokenScore;
    use std::sync::Arc;

    use prometheus_client::registry::Registry;
    use tokio::sync::watch;

    use super::*;
    use crate::generation::{Drawn, Origin, ReuseScope, TraceContext};
    use crate::metrics::StatusMetrics;
    use crate::scheduler::Doing;

    #[test]
    fn rates_are_of_the_last_seconds_and_a_request_has_an_age() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let status = StatusMetrics::new(watch::channel(Arc::default()).1);
        let mut clients = Clients::new(Metrics::new(Registry::default(), status), None);
        let request = GenerationRequest {
            prompt: vec![1, 2],
            drawn: Vec::new(),
            sampling: Sampling::default(),
            max_tokens: 100,
            score_prompt: false,
            scope: ReuseScope::default(),
            trace: TraceContext::default(),
        };
        let made = clients.add(&request);
        let mut counts = Counts { generated_tokens: 1000, ..Counts::default() };
        for second in 0..30 {
            clients.count(&counts, at(f64::from(second)));
            counts.generated_tokens += if second < 10 { 100 } else { 7 };
            let score = TokenScore { token: 5, logprob: 0.0, top: Vec::new() };
            let token = Drawn { score, origin: Origin::Drawn { rejected: 0 } };
            for _ in 0..3 {
                let token = GenerationEvent::Token(token.clone());
                clients.emit(made.sequence, token, at(f64::from(second) + 0.5));
            }
        }
        let rates = clients.rates(&counts, at(30.0));
        assert!((rates.generated_tokens_per_s - 7.0).abs() < 1e-9, "{rates:?}");
        assert!((rates.itl_ms_p50 - 1000.0).abs() < 1e-6 && rates.ttft_ms_p50 > 0.0, "{rates:?}");
        let later = clients.rates(&counts, at(600.0));
        assert_eq!((later.ttft_ms_p50, later.itl_ms_p50), (0.0, 0.0), "that is long past");
        let active = Active {
            sequence: made.sequence,
            doing: Doing::Decode,
            prompt: 2,
            prompt_done: 2,
            drawn: 30,
            max_tokens: 100,
        };
        let told = clients.active(&active, at(30.0));
        assert_eq!((told.state.as_str(), told.generated_tokens), ("decode", 30));
        assert!(told.age_s > 25.0, "{told:?}");
    }
}
