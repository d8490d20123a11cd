//! The parameters that completions and chat share: how to sample, when to stop, how to stream.

use brigade_proto::sampling::Sampling;
use serde_json::Value;

use super::answers::CONCURRENT_CHOICES;
use super::error::ApiError;
use super::fields::{Fields, invalid, number_of, wrong_type};

/// Most log-probabilities per position that a request may ask for; OpenAI's limit.
pub(crate) const MAX_LOGPROBS: i64 = 20;

/// Most choices of one prompt: as many as a request has under way at a time.
const MAX_CHOICES: i64 = CONCURRENT_CHOICES as i64;

/// Most stop strings; OpenAI allows 4, evaluation harnesses send a few more.
const MAX_STOPS: usize = 16;

/// Longest stop string, in bytes: what is held back from a stream at most.
const MAX_STOP_BYTES: usize = 1024;

/// Most entries of `logit_bias`: they travel with the sequence's first segment, which must stay small.
const MAX_LOGIT_BIAS: usize = 1024;

/// What must be known of the model to check a request's numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vocabulary<'a> {
    /// Number of token ids.
    pub(crate) size: usize,
    /// Ids that end an answer.
    pub(crate) end_ids: &'a [u32],
}

/// Parameters that completions and chat share.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shared {
    /// How to choose tokens; without `logprobs`, which the two endpoints spell differently.
    pub(crate) sampling: Sampling,
    /// Texts that end the answer; none is empty.
    pub(crate) stops: Vec<String>,
    /// How to send the answer.
    pub(crate) delivery: Delivery,
    /// Whether token ids are wanted beside the text.
    pub(crate) token_ids: bool,
    /// How many choices each prompt gets; at least 1.
    pub(crate) choices: usize,
}

/// How an answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// In one piece.
    Whole,
    /// As server-sent events.
    Stream {
        /// Whether the last event tells the usage.
        usage: bool,
    },
}

impl Shared {
    /// Reads the shared parameters, and those that are accepted because they cannot change an answer of this server:
    ///
    /// - for OpenAI's own bookkeeping: `user`, `safety_identifier`, `prompt_cache_key`, `metadata`, `store` when false,
    ///   `service_tier` when `auto` or `default`;
    ///
    /// `max_tokens` bounds `min_tokens`, where the request gives it.
    pub(crate) fn read(
        fields: &mut Fields,
        vocabulary: Vocabulary<'_>,
        max_tokens: Option<u32>,
    ) -> Result<Shared, ApiError> {
        read_neutral(fields)?;
        let sampling = read_sampling(fields, vocabulary, max_tokens)?;
        let stops = read_stops(fields)?;
        let delivery = read_delivery(fields)?;
        let choices = fields.whole("n", 1..=MAX_CHOICES)?.map_or(1, |choices| choices as usize);
        Ok(Shared { sampling, stops, delivery, token_ids: fields.flag("return_token_ids")?, choices })
    }

    /// How to choose the tokens of a prompt's choice `index`: each with a seed of its own, the first with the one asked
    /// for.
    pub(crate) fn sampling_of(&self, index: usize) -> Sampling {
        Sampling { seed: self.sampling.seed.wrapping_add(index as u64), ..self.sampling.clone() }
    }
}

fn read_neutral(fields: &mut Fields) -> Result<(), ApiError> {
    for name in ["user", "safety_identifier", "prompt_cache_key"] {
        fields.text(name)?;
    }
    fields.only("metadata", Value::is_object)?;
    fields.only("store", |value| *value == Value::Bool(false))?;
    fields.only("service_tier", |value| matches!(value.as_str(), Some("auto" | "default")))
}

fn read_sampling(
    fields: &mut Fields,
    vocabulary: Vocabulary<'_>,
    max_tokens: Option<u32>,
) -> Result<Sampling, ApiError> {
    let neutral = Sampling::default();
    let min_tokens = fields.whole("min_tokens", 0..=i64::from(max_tokens.unwrap_or(u32::MAX)))?;
    let top_k = fields.whole("top_k", -1..=i64::from(u32::MAX))?;
    let repetition = fields.number("repetition_penalty", 0.0..=10.0)?;
    if repetition == Some(0.0) {
        return Err(invalid("repetition_penalty", "must be greater than 0; 1 is neutral"));
    }
    Ok(Sampling {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(neutral.temperature),
        top_k: top_k.unwrap_or(0).max(0) as u32,
        top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(neutral.top_p),
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(neutral.min_p),
        repetition_penalty: repetition.unwrap_or(neutral.repetition_penalty),
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        seed: read_seed(fields)?,
        logit_bias: read_logit_bias(fields, vocabulary.size)?,
        logprobs: None,
        min_tokens: min_tokens.unwrap_or(0) as u32,
        end_ids: if fields.flag("ignore_eos")? { Vec::new() } else { vocabulary.end_ids.to_vec() },
    })
}

/// The seed asked for, any 64-bit number; without one, a random one.
fn read_seed(fields: &mut Fields) -> Result<u64, ApiError> {
    match fields.value("seed") {
        None => getrandom::u64().map_err(|error| {
            ApiError::internal(format!("the operating system gave no random number: {error}; pass `seed`"))
        }),
        Some(value) => match value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned)) {
            Some(seed) => Ok(seed),
            None => Err(wrong_type("seed", "a whole number of at most 64 bits", &value)),
        },
    }
}

fn read_logit_bias(fields: &mut Fields, vocabulary: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    const NAME: &str = "logit_bias";
    let Some(biases) = fields.object(NAME)? else {
        return Ok(Vec::new());
    };
    let biases = biases.rest();
    if biases.len() > MAX_LOGIT_BIAS {
        let found = biases.len();
        return Err(invalid(NAME, format_args!("may have at most {MAX_LOGIT_BIAS} entries, not {found}")));
    }
    biases
        .into_iter()
        .map(|(key, value)| {
            let id = key.parse::<u32>().ok().filter(|id| (*id as usize) < vocabulary).ok_or_else(|| {
                let known = vocabulary.saturating_sub(1);
                let why =
                    format_args!("has the key `{key}`: keys are token ids from 0 to {known}").to_string();
                invalid(NAME, why)
            })?;
            Ok((id, number_of(&value, &format!("{NAME}.{id}"), -100.0..=100.0)?))
        })
        .collect()
}

fn read_stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    const NAME: &str = "stop";
    let stops = match fields.value(NAME) {
        None => return Ok(Vec::new()),
        Some(Value::String(stop)) => vec![stop],
        Some(Value::Array(items)) => items
            .into_iter()
            .enumerate()
            .map(|(at, item)| match item {
                Value::String(stop) => Ok(stop),
                other => Err(wrong_type(&format!("{NAME}[{at}]"), "a string", &other)),
            })
            .collect::<Result<Vec<_>, _>>()?,
        Some(other) => return Err(wrong_type(NAME, "a string or an array of strings", &other)),
    };
    if stops.len() > MAX_STOPS {
        let found = stops.len();
        return Err(invalid(NAME, format_args!("may have at most {MAX_STOPS} strings, not {found}")));
    }
    match stops.iter().find(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
        None => Ok(stops),
        Some(stop) => {
            let found = stop.len();
            let why = format!("strings must have 1 to {MAX_STOP_BYTES} bytes, and one has {found}");
            Err(invalid(NAME, why))
        }
    }
}

fn read_delivery(fields: &mut Fields) -> Result<Delivery, ApiError> {
    let stream = fields.flag("stream")?;
    let options = fields.object("stream_options")?;
    if options.is_some() && !stream {
        return Err(invalid("stream_options", "may be given only with `stream`: true"));
    }
    let mut usage = false;
    if let Some(mut options) = options {
        usage = options.flag("include_usage")?;
        options.only("include_obfuscation", |value| *value == Value::Bool(false))?;
        options.finish()?;
    }
    Ok(if stream { Delivery::Stream { usage } } else { Delivery::Whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Shared, ApiError> {
        let mut fields = Fields::of_body(text.as_bytes())?;
        let shared = Shared::read(&mut fields, Vocabulary { size: 100, end_ids: &[2, 3] }, Some(8))?;
        fields.finish()?;
        Ok(shared)
    }

    #[test]
    fn an_empty_request_samples_as_openai_does() {
        let shared = read("{}").unwrap();
        let expected = Sampling { seed: shared.sampling.seed, end_ids: vec![2, 3], ..Sampling::default() };
        assert_eq!(shared.sampling, expected);
        assert_eq!(shared.delivery, Delivery::Whole);
        assert_ne!(read("{}").unwrap().sampling.seed, shared.sampling.seed, "the seed is random");
    }

    #[test]
    fn every_parameter_reaches_the_sampling() {
        let shared = read(
            r#"{"temperature": 0.5, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1,
                "presence_penalty": -1, "frequency_penalty": 2, "seed": -1, "logit_bias": {"7": -100, "99": 2.5},
                "ignore_eos": true, "min_tokens": 3, "stop": "end", "stream": true,
                "stream_options": {"include_usage": true}, "return_token_ids": true, "n": 3, "user": "someone"}"#,
        )
        .unwrap();
        let expected = Sampling {
            temperature: 0.5,
            top_k: 40,
            top_p: 0.9,
            min_p: 0.05,
            repetition_penalty: 1.1,
            presence_penalty: -1.0,
            frequency_penalty: 2.0,
            seed: u64::MAX,
            logit_bias: vec![(7, -100.0), (99, 2.5)],
            logprobs: None,
            min_tokens: 3,
            end_ids: Vec::new(),
        };
        assert_eq!(
            shared,
            Shared {
                sampling: expected,
                stops: vec!["end".to_owned()],
                delivery: Delivery::Stream { usage: true },
                token_ids: true,
                choices: 3,
            }
        );
    }

    #[test]
    fn a_wrong_value_is_refused_by_its_name() {
        for (request, name) in [
            (r#"{"temperature": -0.1}"#, "temperature"),
            (r#"{"temperature": "hot"}"#, "temperature"),
            (r#"{"top_p": 1.01}"#, "top_p"),
            (r#"{"top_k": -2}"#, "top_k"),
            (r#"{"min_p": 2}"#, "min_p"),
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
            (r#"{"seed": 1.5}"#, "seed"),
            (r#"{"logit_bias": {"100": 1}}"#, "logit_bias"),
            (r#"{"logit_bias": {"x": 1}}"#, "logit_bias"),
            (r#"{"logit_bias": {"1": 101}}"#, "logit_bias.1"),
            (r#"{"logit_bias": [1]}"#, "logit_bias"),
            (r#"{"min_tokens": 9}"#, "min_tokens"),
            (r#"{"stop": [1]}"#, "stop[0]"),
            (r#"{"stop": ""}"#, "stop"),
            (r#"{"stop": 5}"#, "stop"),
            (r#"{"stream": "yes"}"#, "stream"),
            (r#"{"stream_options": {"include_usage": true}}"#, "stream_options"),
            (r#"{"stream": true, "stream_options": {"x": 1}}"#, "stream_options.x"),
            (r#"{"n": 0}"#, "n"),
            (r#"{"n": 17}"#, "n"),
            (r#"{"store": true}"#, "store"),
            (r#"{"service_tier": "flex"}"#, "service_tier"),
            (r#"{"user": 3}"#, "user"),
        ] {
            let error = read(request).unwrap_err();
            assert!(error.to_string().contains(&format!("`{name}`")), "{request}: {error}");
            assert_eq!(error.to_json()["error"]["param"], name, "{request}");
        }
    }
}
