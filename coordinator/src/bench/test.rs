//! What is measured, and whether a cluster has room for it.

use std::fmt;

use brigade_shard::cost::PAGE_TOKENS;
use serde::Serialize;

use crate::status::ClusterStatus;

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    /// What each stream does.
    pub kind: TestKind,
    /// Streams that do it at the same time; at least 1.
    pub streams: u32,
}

/// What a stream of a test does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestKind {
    /// A prompt of so many tokens, up to the first token of its answer.
    Prompt {
        /// At least 1.
        tokens: u32,
    },
    /// An answer of so many tokens.
    Decode {
        /// At least 2: what is timed lies between them.
        tokens: u32,
        /// Tokens of the prompt before them; at least 1.
        depth: u32,
    },
}

impl Test {
    /// Tokens of each stream's prompt.
    pub fn prompt_tokens(&self) -> u32 {
        match self.kind {
            TestKind::Prompt { tokens } => tokens,
            TestKind::Decode { depth, .. } => depth,
        }
    }

    /// Tokens of each stream's answer.
    pub fn answer_tokens(&self) -> u32 {
        match self.kind {
            TestKind::Prompt { .. } => 1,
            TestKind::Decode { tokens, .. } => tokens,
        }
    }

    /// Cache tokens that all streams take together, in whole pages.
    fn cache_tokens(&self) -> u64 {
        let each = u64::from(self.prompt_tokens()) + u64::from(self.answer_tokens());
        each.next_multiple_of(u64::from(PAGE_TOKENS)) * u64::from(self.streams)
    }
}

/// In llama-bench's words, such as `pp512` or `tg128 @ d512`; without the number of streams.
impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            TestKind::Prompt { tokens } => write!(f, "pp{tokens}"),
            TestKind::Decode { tokens, depth: 1 } => write!(f, "tg{tokens}"),
            TestKind::Decode { tokens, depth } => write!(f, "tg{tokens} @ d{depth}"),
        }
    }
}

/// A test that a cluster has no room for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Its name.
    pub test: String,
    /// Its streams.
    pub streams: u32,
    /// Why, and what to do.
    pub reason: String,
}

/// Those of `tests` whose streams can all run at the same time on this cluster, and the others.
///
/// # Errors
/// Where a single stream is longer than the cluster's context, or none of the tests fits; says what to do.
pub fn fitting(tests: &[Test], status: &ClusterStatus) -> Result<(Vec<Test>, Vec<LeftOut>), String> {
    let longest = tests.iter().max_by_key(|test| test.prompt_tokens().saturating_add(test.answer_tokens()));
    if let Some(test) = longest {
        let needed = test.prompt_tokens().saturating_add(test.answer_tokens());
        if needed > status.context {
            return Err(format!(
                "{test} needs a context of {needed} tokens, and this cluster serves {}: start it with a larger --ctx, \
                 or give smaller -p, -n or -d",
                status.context
            ));
        }
    }
    let (fit, rest): (Vec<Test>, Vec<Test>) =
        tests.iter().partition(|test| test.cache_tokens() <= u64::from(status.cache_tokens));
    let left_out: Vec<LeftOut> = rest.iter().map(|test| left_out(test, status)).collect();
    match left_out.first().filter(|_| fit.is_empty()) {
        Some(first) => Err(first.reason.clone()),
        None => Ok((fit, left_out)),
    }
}

fn left_out(test: &Test, status: &ClusterStatus) -> LeftOut {
    let reason = format!(
        "{test} with {} stream(s) needs a cache of {} tokens, and this cluster's has {}: start it with a larger \
         --parallel or --memory, or give smaller --streams, -n or -d",
        test.streams,
        test.cache_tokens(),
        status.cache_tokens
    );
    LeftOut { test: test.to_string(), streams: test.streams, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(streams: u32, tokens: u32, depth: u32) -> Test {
        Test { kind: TestKind::Decode { tokens, depth }, streams }
    }

    #[test]
    fn names_are_llama_bench_s() {
        let prompt = Test { kind: TestKind::Prompt { tokens: 512 }, streams: 1 };
        assert_eq!(prompt.to_string(), "pp512");
        assert_eq!(decode(4, 128, 1).to_string(), "tg128");
        assert_eq!(decode(4, 128, 512).to_string(), "tg128 @ d512");
    }

    #[test]
    fn what_does_not_fit_is_left_out_with_its_reason() {
        let status = ClusterStatus { context: 256, cache_tokens: 320 + 31, ..ClusterStatus::default() };
        // 128 + 1 tokens take 5 pages of 32 tokens.
        let tests = [decode(1, 128, 1), decode(2, 128, 1), decode(4, 128, 1)];
        let (fit, rest) = fitting(&tests, &status).unwrap();
        assert_eq!(fit, tests[..2]);
        assert_eq!((rest.len(), rest[0].streams), (1, 4));
        assert!(rest[0].reason.contains("needs a cache of 640 tokens, and this cluster's has 351"));

        let none = fitting(&tests[2..], &status).unwrap_err();
        assert!(none.contains("--parallel"), "{none}");
        let long = fitting(&[decode(1, 128, 129)], &status).unwrap_err();
        assert!(
            long.contains("tg128 @ d129 needs a context of 257 tokens, and this cluster serves 256"),
            "{long}"
        );
        assert!(long.contains("--ctx"), "{long}");
    }
}
