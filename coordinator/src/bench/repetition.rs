//! Measuring a test once: all its streams at the same time, through the HTTP API.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;

use super::test::{Test, TestKind};
use crate::client::{Client, ClientError, TokenEvent, TokenRequest};

/// How long a cluster is left alone before its state is read: longer than a state stays published, so that the reading
/// holds every step.
pub const SETTLE: Duration = Duration::from_millis(300);

/// Tokens decoded by each stream before the first measurement.
pub const WARM_UP_TOKENS: u32 = 8;

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The cluster did not answer, or broke off.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A stream ended early, or did not end.
    #[error(
        "a stream brought {found} tokens where {wanted} were asked for; is this a coordinator of this version?"
    )]
    Tokens {
        /// Tokens that came.
        found: usize,
        /// Tokens that should have come.
        wanted: u32,
    },
    /// The streams ran one after another.
    #[error(
        "{streams} streams did not decode at the same time; is the cluster busy with other requests? Otherwise give a \
         larger -n"
    )]
    NotTogether {
        /// How many streams.
        streams: u32,
    },
    /// The stages are not those of the beginning.
    #[error("the plan changed while it was measured (epoch {before}, then {after}); measure again")]
    PlanChanged {
        /// The epoch at the beginning.
        before: u64,
        /// The epoch at the end.
        after: u64,
    },
}

/// How streams are sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// The model's id.
    pub model: String,
    /// Temperature.
    pub temperature: f64,
    /// Seed of prompts and of sampling.
    pub seed: u64,
}

/// Prompts of random token ids. No two begin alike, so that none finds another's beginning in a cache.
#[derive(Clone, Debug)]
pub struct Prompts {
    state: u64,
    vocabulary: u32,
    /// The first token of the next prompt.
    first: u32,
}

impl Prompts {
    /// Prompts of ids below `vocabulary`, which is at least 1; equal seeds give equal prompts.
    pub fn new(seed: u64, vocabulary: u32) -> Prompts {
        let mut prompts = Prompts { state: seed, vocabulary: vocabulary.max(1), first: 0 };
        prompts.first = prompts.token();
        prompts
    }

    /// The next prompt, of `tokens` token ids.
    pub fn next(&mut self, tokens: u32) -> Vec<u32> {
        let first = self.first;
        self.first = (first + 1) % self.vocabulary;
        let rest = (1..tokens).map(|_| self.token()).collect::<Vec<u32>>();
        [vec![first], rest].concat()
    }

    /// A token id from SplitMix64 (Steele, Lea and Flood 2014).
    fn token(&mut self) -> u32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % u64::from(self.vocabulary)) as u32
    }
}

/// What came of measuring once.
#[derive(Clone, Debug, PartialEq)]
pub struct Repetition {
    /// From asking to the end of the last stream.
    pub took: Duration,
    /// One for each stream.
    pub streams: Vec<Stream>,
}

/// What a stream brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stream {
    /// When tokens came, since all streams were asked for, and how many at once.
    pub arrivals: Vec<(Duration, usize)>,
    /// Tokens of its prompt that were in the cluster's cache.
    pub cached_tokens: u64,
}

/// Measures `test` once.
///
/// # Errors
/// Where a stream is refused or breaks off.
pub async fn repeat(
    client: &Client,
    test: &Test,
    sampling: &Sampling,
    prompts: &mut Prompts,
) -> Result<Repetition, BenchError> {
    let requests = (0..test.streams).map(|stream| TokenRequest {
        model: sampling.model.clone(),
        prompt: prompts.next(test.prompt_tokens()),
        max_tokens: test.answer_tokens(),
        temperature: sampling.temperature,
        seed: sampling.seed.wrapping_add(u64::from(stream)),
    });
    let requests: Vec<TokenRequest> = requests.collect();
    let began = Instant::now();
    let streams = try_join_all(requests.iter().map(|request| stream(client, request, began))).await?;
    Ok(Repetition { took: began.elapsed(), streams })
}

/// Runs what allocates and calibrates for the first time: the longest prompt of `tests`, and the most streams.
///
/// # Errors
/// As [`repeat`].
pub async fn warm_up(
    client: &Client,
    tests: &[Test],
    sampling: &Sampling,
    prompts: &mut Prompts,
) -> Result<(), BenchError> {
    let longest = tests.iter().map(Test::prompt_tokens).max().unwrap_or(1);
    let most = tests.iter().map(|test| test.streams).max().unwrap_or(1);
    let shortest = tests.iter().map(Test::answer_tokens).max().unwrap_or(1).clamp(1, WARM_UP_TOKENS);
    let prompt = Test { kind: TestKind::Prompt { tokens: longest }, streams: 1 };
    repeat(client, &prompt, sampling, prompts).await?;
    let decode = Test { kind: TestKind::Decode { tokens: shortest, depth: 1 }, streams: most };
    repeat(client, &decode, sampling, prompts).await?;
    Ok(())
}

async fn stream(client: &Client, request: &TokenRequest, began: Instant) -> Result<Stream, ClientError> {
    let mut answer = client.complete(request).await?;
    let mut stream = Stream::default();
    while let Some(event) = answer.next().await? {
        match event {
            TokenEvent::Tokens(count) => stream.arrivals.push((began.elapsed(), count)),
            TokenEvent::Usage { cached, .. } => stream.cached_tokens = cached,
        }
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn prompts_are_of_the_vocabulary_and_begin_differently() {
        let mut prompts = Prompts::new(7, 100);
        let all: Vec<Vec<u32>> = (0..100).map(|_| prompts.next(64)).collect();
        assert!(all.iter().all(|prompt| prompt.len() == 64 && prompt.iter().all(|id| *id < 100)));
        let firsts: BTreeSet<u32> = all.iter().map(|prompt| prompt[0]).collect();
        assert_eq!(firsts.len(), 100);
        let rests: BTreeSet<&[u32]> = all.iter().map(|prompt| &prompt[1..]).collect();
        assert_eq!(rests.len(), 100);
        assert_eq!(Prompts::new(7, 100).next(64), all[0], "equal seeds give equal prompts");
        assert_ne!(Prompts::new(8, 100).next(64)[1..], all[0][1..]);
        assert_eq!(Prompts::new(7, 100).next(1).len(), 1);
    }
}
