//! What one repetition comes to, and quantiles over many.

use std::time::Duration;

use serde::Serialize;

use super::repetition::{BenchError, Repetition, Stream};
use super::test::{Test, TestKind};

/// The figures of one repetition.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Tokens per second of all streams together: of their prompts up to the last stream's first token, or of the
    /// tokens that were drawn while every stream was decoding.
    pub tokens_per_s: f64,
    /// From asking to the first token, in milliseconds; one per stream.
    pub ttft_ms: Vec<f64>,
    /// Between two arrivals of one stream, in milliseconds. Tokens that came at once count as one arrival.
    pub gaps_ms: Vec<f64>,
}

impl Figures {
    /// What a repetition of `test` came to.
    ///
    /// # Errors
    /// Where a stream has not as many tokens as were asked for, or its streams did not decode at the same time.
    pub fn of(test: &Test, repetition: &Repetition) -> Result<Figures, BenchError> {
        for stream in &repetition.streams {
            let found = stream.arrivals.iter().map(|(_, tokens)| *tokens).sum::<usize>();
            if found != test.answer_tokens() as usize {
                return Err(BenchError::Tokens { found, wanted: test.answer_tokens() });
            }
        }
        let prompts = u64::from(test.prompt_tokens()) * u64::from(test.streams);
        Figures::of_what_came(test, prompts, &repetition.streams)
    }

    /// The same of streams that brought as many tokens as they did, and whose prompts had `prompt_tokens` in all.
    ///
    /// # Errors
    /// [`BenchError::NotTogether`] where they did not decode at the same time.
    pub fn of_what_came(test: &Test, prompt_tokens: u64, streams: &[Stream]) -> Result<Figures, BenchError> {
        let first = |stream: &Stream| stream.arrivals.first().map(|(at, _)| *at).unwrap_or_default();
        let last = |stream: &Stream| stream.arrivals.last().map(|(at, _)| *at).unwrap_or_default();
        let all_began = streams.iter().map(first).max().unwrap_or_default();
        let one_ended = streams.iter().map(last).min().unwrap_or_default();
        let tokens_per_s = match test.kind {
            TestKind::Prompt { .. } => per_second(prompt_tokens, all_began),
            TestKind::Decode { .. } => {
                let together = one_ended.checked_sub(all_began).filter(|window| !window.is_zero());
                let Some(together) = together else {
                    return Err(BenchError::NotTogether { streams: test.streams });
                };
                let arrivals = streams.iter().flat_map(|stream| &stream.arrivals);
                let inside = arrivals.filter(|(at, _)| *at > all_began && *at <= one_ended);
                per_second(inside.map(|(_, tokens)| *tokens as u64).sum(), together)
            }
        };
        let gaps = streams.iter().flat_map(|stream| {
            stream.arrivals.windows(2).map(|pair| milliseconds(pair[1].0.saturating_sub(pair[0].0)))
        });
        Ok(Figures {
            tokens_per_s,
            ttft_ms: streams.iter().map(|stream| milliseconds(first(stream))).collect(),
            gaps_ms: gaps.collect(),
        })
    }
}

fn per_second(tokens: u64, time: Duration) -> f64 {
    tokens as f64 / time.as_secs_f64().max(1e-9)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Values that so large a share of all values do not exceed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// Half of them.
    pub p50: f64,
    /// 95 of 100.
    pub p95: f64,
    /// 99 of 100.
    pub p99: f64,
}

impl Quantiles {
    /// Of these values; `None` where there is none.
    pub fn of(values: &[f64]) -> Option<Quantiles> {
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| {
            let place = (sorted.len() as f64 * share).ceil() as usize;
            sorted.get(place.max(1) - 1).copied()
        };
        Some(Quantiles { p50: at(0.5)?, p95: at(0.95)?, p99: at(0.99)? })
    }
}

/// The middle value, or the mean of the two in the middle; 0 where there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (length, middle) if length % 2 == 1 => sorted[middle],
        (_, middle) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(arrivals: &[(u64, usize)]) -> Stream {
        let arrivals = arrivals.iter().map(|(ms, tokens)| (Duration::from_millis(*ms), *tokens)).collect();
        Stream { arrivals, cached_tokens: 0 }
    }

    fn repetition(streams: &[&[(u64, usize)]]) -> Repetition {
        let streams = streams.iter().map(|arrivals| stream(arrivals)).collect();
        Repetition { took: Duration::from_secs(1), streams }
    }

    #[test]
    fn decoding_counts_while_every_stream_decodes() {
        let test = Test { kind: TestKind::Decode { tokens: 4, depth: 1 }, streams: 2 };
        let both = repetition(&[
            &[(10, 1), (20, 1), (30, 1), (40, 1)],
            // Begins late; two tokens come at once.
            &[(20, 1), (30, 2), (50, 1)],
        ]);
        let figures = Figures::of(&test, &both).unwrap();
        // From 20 ms to 40 ms: two tokens of the first stream and two of the second.
        assert!((figures.tokens_per_s - 200.0).abs() < 1e-6, "{figures:?}");
        assert_eq!(figures.ttft_ms, [10.0, 20.0]);
        assert_eq!(figures.gaps_ms, [10.0, 10.0, 10.0, 10.0, 20.0]);
    }

    #[test]
    fn prompts_count_up_to_the_last_first_token() {
        let test = Test { kind: TestKind::Prompt { tokens: 100 }, streams: 2 };
        let figures = Figures::of(&test, &repetition(&[&[(250, 1)], &[(500, 1)]])).unwrap();
        assert!((figures.tokens_per_s - 400.0).abs() < 1e-6, "{figures:?}");
        assert!(figures.gaps_ms.is_empty());
    }

    #[test]
    fn streams_that_did_not_do_what_was_asked_are_no_measurement() {
        let test = Test { kind: TestKind::Decode { tokens: 2, depth: 1 }, streams: 2 };
        let one_after_another = repetition(&[&[(10, 1), (20, 1)], &[(20, 1), (30, 1)]]);
        assert!(matches!(Figures::of(&test, &one_after_another), Err(BenchError::NotTogether { .. })));
        let short = repetition(&[&[(10, 1), (20, 1)], &[(10, 1)]]);
        assert!(matches!(Figures::of(&test, &short), Err(BenchError::Tokens { found: 1, wanted: 2 })));
    }

    #[test]
    fn quantiles_and_medians() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(Quantiles::of(&values), Some(Quantiles { p50: 50.0, p95: 95.0, p99: 99.0 }));
        assert_eq!(Quantiles::of(&[7.0]), Some(Quantiles { p50: 7.0, p95: 7.0, p99: 7.0 }));
        assert_eq!(Quantiles::of(&[]), None);
        assert_eq!([median(&[]), median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0])], [0.0, 2.0, 2.5]);
    }
}
