//! Several generations of one request, run side by side and merged into one stream of deltas.

use std::pin::Pin;

use futures_util::stream::{self, Stream, StreamExt};
use tokio_util::sync::CancellationToken;

use super::choice::{Choice, Delta, Reading};
use super::engine::Engine;
use super::error::ApiError;
use crate::generation::GenerationRequest;

/// Most generations of one request at a time, so that a long list of prompts leaves room for other clients in the
/// scheduler's queue.
pub(crate) const CONCURRENT_CHOICES: usize = 16;

/// What to generate for one choice, and how to read it.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// For the cluster.
    pub(crate) request: GenerationRequest,
    /// For us.
    pub(crate) reading: Reading,
}

/// Deltas of all choices, each with its choice's index; a choice's own are in order. Ends with the first error.
pub(crate) type Deltas = Pin<Box<dyn Stream<Item = Result<(usize, Delta), ApiError>> + Send>>;

/// Starts the jobs, the first [`CONCURRENT_CHOICES`] of them at once and each further one when another has ended.
/// Dropping the stream cancels them all, and so does `shutdown`.
///
/// # Errors
/// Where one of the first jobs is refused; the others are cancelled then.
pub(crate) async fn start<E: Engine>(
    engine: &E,
    jobs: Vec<Job>,
    shutdown: &CancellationToken,
) -> Result<Deltas, ApiError> {
    let mut entries = Vec::with_capacity(jobs.len());
    for (index, job) in jobs.into_iter().enumerate() {
        entries.push(if index < CONCURRENT_CHOICES {
            Entry::Running(begin(engine, job, shutdown).await?)
        } else {
            Entry::Planned(job)
        });
    }
    let (engine, shutdown) = (engine.clone(), shutdown.clone());
    let choices = entries.into_iter().enumerate().map(move |(index, entry)| {
        let state = (engine.clone(), shutdown.clone(), entry);
        stream::unfold(state, move |(engine, shutdown, entry)| async move {
            let (item, entry) = step(&engine, &shutdown, entry).await?;
            Some((item.map(|delta| (index, delta)), (engine, shutdown, entry)))
        })
        .boxed()
    });
    Ok(stream::iter(choices).flatten_unordered(Some(CONCURRENT_CHOICES)).boxed())
}

/// Where a choice stands.
enum Entry {
    Planned(Job),
    Running(Choice),
    Ended,
}

/// The next delta of a choice, and where it stands then; `None` once it has ended.
async fn step<E: Engine>(
    engine: &E,
    shutdown: &CancellationToken,
    entry: Entry,
) -> Option<(Result<Delta, ApiError>, Entry)> {
    let mut choice = match entry {
        Entry::Ended => return None,
        Entry::Running(choice) => choice,
        Entry::Planned(job) => match begin(engine, job, shutdown).await {
            Ok(choice) => choice,
            Err(error) => return Some((Err(error), Entry::Ended)),
        },
    };
    let next = tokio::select! {
        biased;
        () = shutdown.cancelled() => return Some((Err(ApiError::stopping()), Entry::Ended)),
        next = choice.next() => next,
    };
    match next {
        Ok(Some(delta)) => Some((Ok(delta), Entry::Running(choice))),
        Ok(None) => None,
        Err(error) => Some((Err(error.into()), Entry::Ended)),
    }
}

async fn begin<E: Engine>(engine: &E, job: Job, shutdown: &CancellationToken) -> Result<Choice, ApiError> {
    tokio::select! {
        biased;
        () = shutdown.cancelled() => Err(ApiError::stopping()),
        started = engine.generate(job.request) => {
            Ok(Choice::new(started?, job.reading, engine.model().tokenizer.clone()))
        }
    }
}
