//! `GET /api/devices`, `GET /api/forecast` and `GET /api/choices`: what plans are made with, what is to be expected of the
//! one that is served, and of the ones that a comparison could measure.

use axum::Json;
use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Response};
use brigade_shard::plan::{Load, PROMPT_TOKENS};
use serde::Deserialize;

use super::engine::Engine;
use super::error::ApiError;
use super::fields::invalid;
use super::state::Api;
use crate::compare::choices::ChoiceLoads;
use crate::generation::GenerationError;

/// Most streams that are asked about: many times what a pipeline serves.
const MOST_STREAMS: u32 = 4096;
/// Longest sequences that are asked about where the model's own length does not matter: longer than any model's.
const MOST_TOKENS: u32 = 1 << 28;
/// Most loads of each kind that are asked about at a time.
const MOST_LOADS: usize = 64;

/// Loads.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoadsQuery {
    /// Numbers of sequences that decode at the same time, separated by commas.
    #[serde(default = "one")]
    streams: String,
    /// Lengths of prompts that come alone, in tokens, separated by commas.
    #[serde(default = "usual_prompt", alias = "prompt")]
    prompts: String,
    /// Tokens of every sequence in the cache while it decodes.
    #[serde(default)]
    context: u32,
}

fn one() -> String {
    "1".to_owned()
}

fn usual_prompt() -> String {
    PROMPT_TOKENS.to_string()
}

impl LoadsQuery {
    /// All that are asked about; no sequence has more than so many tokens.
    fn read(&self, most_tokens: u32) -> Result<ChoiceLoads, ApiError> {
        if self.context > most_tokens {
            let context = self.context;
            return Err(invalid("context", format_args!("must be at most {most_tokens}, not {context}")));
        }
        Ok(ChoiceLoads {
            streams: numbers("streams", &self.streams, MOST_STREAMS)?,
            prompts: numbers("prompts", &self.prompts, most_tokens)?,
            context: self.context,
        })
    }
}

fn numbers(name: &str, text: &str, most: u32) -> Result<Vec<u32>, ApiError> {
    let each: Result<Vec<u32>, _> = text.split(',').map(|part| part.trim().parse::<u32>()).collect();
    let within = |numbers: &Vec<u32>| {
        numbers.len() <= MOST_LOADS && numbers.iter().all(|number| (1..=most).contains(number))
    };
    each.ok().filter(within).ok_or_else(|| {
        invalid(
            name,
            format_args!("must be numbers from 1 to {most}, up to {MOST_LOADS} separated by commas"),
        )
    })
}

/// `GET /api/devices`.
pub(crate) async fn devices<E: Engine>(State(api): State<Api<E>>) -> Result<Response, ApiError> {
    Ok(Json(api.engine().devices().await?).into_response())
}

/// `GET /api/forecast?streams=8&prompt=512&context=100`, of one load.
pub(crate) async fn forecast<E: Engine>(
    State(api): State<Api<E>>,
    Query(query): Query<LoadsQuery>,
) -> Result<Response, ApiError> {
    let loads = query.read(api.engine().model().context_length)?;
    let load = one_of(&loads).ok_or_else(|| {
        invalid("streams", "must be one number here, as must `prompt`; GET /api/choices takes several")
    })?;
    let forecast = api.engine().forecast(&load).await?.ok_or_else(|| GenerationError::NotReady {
        reason: "no plan is served of which something could be expected".to_owned(),
    })?;
    Ok(Json(forecast).into_response())
}

/// The load where there is one alone.
fn one_of(loads: &ChoiceLoads) -> Option<Load> {
    let mut loads = loads.loads();
    loads.next().filter(|_| loads.next().is_none())
}

/// `GET /api/choices?streams=1,8&prompts=512&context=64`: the fastest worker alone, the best cluster, and what is
/// predicted of them under every load.
pub(crate) async fn choices<E: Engine>(
    State(api): State<Api<E>>,
    Query(query): Query<LoadsQuery>,
) -> Result<Response, ApiError> {
    Ok(Json(api.engine().choices(query.read(MOST_TOKENS)?).await?).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_lists_of_numbers() {
        assert_eq!(numbers("streams", "1, 8,16", 16), Ok(vec![1, 8, 16]));
        for wrong in ["", "0", "a", "1;2", "1,,2", "17"] {
            assert!(numbers("streams", wrong, 16).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_load_is_told_from_several() {
        let loads =
            |streams: &[u32]| ChoiceLoads { streams: streams.to_vec(), prompts: vec![512], context: 9 };
        assert_eq!(one_of(&loads(&[8])), Some(Load { streams: 8, prompt_tokens: 512, context: 9 }));
        assert_eq!(one_of(&loads(&[1, 8])), None);
    }
}
