//! What happens to one request that is traced, and the spans that it becomes.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use brigade_proto::step::StageTiming;
use serde_json::{Value, json};

use crate::generation::{FinishReason, GenerationRequest, TraceContext};

/// A span of our own code, and one that serves a caller, in OTLP's numbers.
const INTERNAL: u32 = 1;
const SERVER: u32 = 2;
/// A span that failed.
const ERROR: u32 = 2;

/// How a traced request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself.
    Finished(FinishReason),
    /// By its client.
    Cancelled,
    /// By a failure, with its cause.
    Failed(String),
}

/// A request under way.
#[derive(Debug)]
pub struct Recording {
    context: TraceContext,
    trace_id: [u8; 16],
    /// Where the spans' own ids are counted from.
    first_span: u64,
    /// The wall clock at `begun`, in nanoseconds since the Unix epoch.
    begun_ns: u128,
    begun: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
    prompt_tokens: usize,
    cached_tokens: u32,
    max_tokens: u32,
    tokens: u64,
    stages: Vec<StageWork>,
}

/// What a stage did for a request, over all steps that held a part of it.
#[derive(Clone, Copy, Debug)]
struct StageWork {
    stage: u32,
    steps: u64,
    queued_us: u64,
    computed_us: u64,
    sent_us: u64,
    first: Instant,
    last: Instant,
}

impl Recording {
    /// The beginning; `None` where the system has no random numbers.
    pub(super) fn begin(request: &GenerationRequest, now: Instant) -> Option<Recording> {
        let mut random = [0; 24];
        getrandom::fill(&mut random).ok()?;
        let (trace, span) = random.split_at(16);
        let own = trace.try_into().ok()?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(Recording {
            context: request.trace,
            trace_id: request.trace.parent.map_or(own, |parent| parent.trace_id),
            // Zero is no id, and there are some spans behind the first.
            first_span: (u64::from_le_bytes(span.try_into().ok()?) >> 1) | 1,
            begun_ns: since.as_nanos(),
            begun: now,
            admitted: None,
            first_token: None,
            prompt_tokens: request.prompt.len(),
            cached_tokens: 0,
            max_tokens: request.max_tokens,
            tokens: 0,
            stages: Vec::new(),
        })
    }

    /// It has cache.
    pub fn admitted(&mut self, now: Instant) {
        self.admitted.get_or_insert(now);
    }

    /// So many tokens of its prompt were in the cache.
    pub fn reused(&mut self, tokens: u32) {
        self.cached_tokens = tokens;
    }

    /// A token was drawn.
    pub fn token(&mut self, now: Instant) {
        self.first_token.get_or_insert(now);
        self.tokens += 1;
    }

    /// A step that held a part of it has come home, `took` after it was sent.
    pub fn step(&mut self, timings: &[StageTiming], took: Duration, now: Instant) {
        let sent = now.checked_sub(took).unwrap_or(now);
        for timing in timings {
            let known = self.stages.iter().position(|work| work.stage == timing.stage);
            let place = known.unwrap_or_else(|| {
                let (stage, first, last) = (timing.stage, sent, now);
                self.stages.push(StageWork {
                    stage,
                    steps: 0,
                    queued_us: 0,
                    computed_us: 0,
                    sent_us: 0,
                    first,
                    last,
                });
                self.stages.len() - 1
            });
            let work = &mut self.stages[place];
            work.steps += 1;
            work.queued_us += u64::from(timing.queued_us);
            work.computed_us += u64::from(timing.computed_us);
            work.sent_us += u64::from(timing.sent_us);
            work.last = now;
        }
    }

    /// The spans in OTLP's JSON: the request's own first.
    pub(super) fn end(self, model: &str, stages: &[String], how: Ending, now: Instant) -> Vec<Value> {
        let operation = if self.context.chat { "chat" } else { "text_completion" };
        let count = |n: u64| json!({"intValue": n.to_string()});
        let text = |text: &str| json!({"stringValue": text});
        let mut attributes = vec![
            ("gen_ai.operation.name", text(operation)),
            ("gen_ai.provider.name", text("brigade")),
            ("gen_ai.request.model", text(model)),
            ("gen_ai.request.max_tokens", count(self.max_tokens.into())),
            ("gen_ai.usage.input_tokens", count(self.prompt_tokens as u64)),
            ("gen_ai.usage.cache_read.input_tokens", count(self.cached_tokens.into())),
            ("gen_ai.usage.output_tokens", count(self.tokens)),
        ];
        let mut status = json!({});
        match &how {
            Ending::Finished(reason) => {
                let reason = match reason {
                    FinishReason::EndToken => "stop",
                    FinishReason::Length => "length",
                };
                let reasons = json!({"arrayValue": {"values": [text(reason)]}});
                attributes.push(("gen_ai.response.finish_reasons", reasons));
            }
            Ending::Cancelled => attributes.push(("brigade.cancelled", json!({"boolValue": true}))),
            Ending::Failed(reason) => status = json!({"code": ERROR, "message": reason}),
        }
        let parent = self.context.parent.map(|parent| hex(&parent.span_id));
        let mut root = self.span(0, &format!("{operation} {model}"), SERVER, (self.begun, now), attributes);
        root["status"] = status;
        if let Some(parent) = parent {
            root["parentSpanId"] = parent.into();
        }
        let mut spans = vec![root];
        let admitted = self.admitted.unwrap_or(now);
        let mut parts = vec![("queue", self.begun, admitted)];
        if self.admitted.is_some() {
            parts.push(("prefill", admitted, self.first_token.unwrap_or(now)));
        }
        parts.extend(self.first_token.map(|first| ("decode", first, now)));
        for (name, from, to) in parts {
            let number = spans.len() as u64;
            spans.push(self.span(number, name, INTERNAL, (from, to), Vec::new()));
        }
        for work in &self.stages {
            let mut attributes = vec![
                ("brigade.stage", count(work.stage.into())),
                ("brigade.steps", count(work.steps)),
                ("brigade.queued_us", count(work.queued_us)),
                ("brigade.computed_us", count(work.computed_us)),
                ("brigade.sent_us", count(work.sent_us)),
            ];
            attributes.extend(stages.get(work.stage as usize).map(|name| ("brigade.worker", text(name))));
            let (name, number) = (format!("stage {}", work.stage), spans.len() as u64);
            spans.push(self.span(number, &name, INTERNAL, (work.first, work.last), attributes));
        }
        let root_id = spans[0]["spanId"].clone();
        spans.iter_mut().skip(1).for_each(|span| span["parentSpanId"] = root_id.clone());
        spans
    }

    fn span(
        &self,
        number: u64,
        name: &str,
        kind: u32,
        (from, to): (Instant, Instant),
        attributes: Vec<(&str, Value)>,
    ) -> Value {
        let at = |time: Instant| {
            (self.begun_ns + time.saturating_duration_since(self.begun).as_nanos()).to_string()
        };
        let attributes: Vec<Value> =
            attributes.into_iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
        json!({
            "traceId": hex(&self.trace_id),
            "spanId": hex(&self.first_span.wrapping_add(number).to_be_bytes()),
            "name": name,
            "kind": kind,
            "startTimeUnixNano": at(from),
            "endTimeUnixNano": at(to),
            "attributes": attributes,
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
