//! Several generations of one request, run side by side and merged into one stream of deltas.

use std::pin::Pin;

use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::choice::{Choice, Delta, Reading};
use super::engine::Engine;
use super::error::ApiError;
use super::kept::{Kept, Record};
use crate::generation::{Generation, GenerationError, GenerationEvent, GenerationRequest};

/// Most generations of one request at a time, so that a long list of prompts leaves room for other clients in the
/// scheduler's queue.
pub(crate) const CONCURRENT_CHOICES: usize = 16;

/// Deltas of a kept answer on their way from the task that keeps it to the client.
const KEPT_DELTAS: usize = 16;

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
/// Where the answer is kept, it begins with what there is of it, and goes on behind that; what happens is on its record
/// before it is told.
///
/// # Errors
/// Where one of the first jobs is refused; the others are cancelled then.
pub(crate) async fn start<E: Engine>(
    engine: &E,
    jobs: Vec<Job>,
    kept: Option<Kept>,
    shutdown: &CancellationToken,
) -> Result<Deltas, ApiError> {
    let tokenizer = &engine.model().tokenizer;
    let mut choices: Vec<Choice> =
        jobs.iter().map(|job| Choice::new(job.reading.clone(), tokenizer.clone())).collect();
    let mut past = Vec::new();
    for (index, choice) in choices.iter_mut().enumerate() {
        past.extend(choice.begin().map(|delta| (index, delta)));
    }
    for (index, event) in kept.iter().flat_map(|kept| &kept.past).cloned() {
        let delta = choices.get_mut(index).map(|choice| choice.read(event)).transpose()?;
        past.extend(delta.flatten().map(|delta| (index, delta)));
    }
    let left = jobs.into_iter().zip(&choices).enumerate().filter(|(_, (_, choice))| !choice.has_ended());
    let left = left.map(|(index, (job, _))| (index, job.request)).collect();
    let live = Live { arrivals: arrivals(engine, left, shutdown).await?, running: Vec::new(), choices };
    let past = stream::iter(past.into_iter().map(Ok));
    Ok(match kept {
        None => past.chain(live.into_stream()).boxed(),
        Some(kept) => {
            let (sender, receiver) = mpsc::channel(KEPT_DELTAS);
            kept.spawn(|record| live.keep(record, sender));
            past.chain(ReceiverStream::new(receiver)).boxed()
        }
    })
}

/// Something that happened to one of the generations.
enum Arrival {
    /// It was begun; dropping the guard cancels it.
    Begun(DropGuard),
    /// It said something.
    Event(GenerationEvent),
}

/// What happens to all generations, each with its choice's index.
type Arrivals = BoxStream<'static, Result<(usize, Arrival), ApiError>>;

/// Generations that run, and the texts that they become.
struct Live {
    arrivals: Arrivals,
    /// The guards of those that run; a choice's is gone once its answer has ended, so that the cluster stops at once.
    running: Vec<(usize, DropGuard)>,
    choices: Vec<Choice>,
}

impl Live {
    /// The next thing that happened; `None` once all answers have ended.
    async fn next(&mut self) -> Option<Result<(usize, GenerationEvent), ApiError>> {
        loop {
            match self.arrivals.next().await? {
                Ok((index, Arrival::Begun(guard))) => self.running.push((index, guard)),
                // What comes after a stop string.
                Ok((index, _)) if self.choices[index].has_ended() => {}
                Ok((index, Arrival::Event(event))) => return Some(Ok((index, event))),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// What becomes certain by it.
    fn read(&mut self, index: usize, event: GenerationEvent) -> Result<Option<Delta>, ApiError> {
        let delta = self.choices[index].read(event)?;
        if self.choices[index].has_ended() {
            self.running.retain(|(of, _)| *of != index);
        }
        Ok(delta)
    }

    fn into_stream(self) -> impl Stream<Item = Result<(usize, Delta), ApiError>> + Send {
        stream::unfold(Some(self), |live| async move {
            let mut live = live?;
            loop {
                let read = match live.next().await? {
                    Ok((index, event)) => {
                        live.read(index, event).map(|delta| delta.map(|delta| (index, delta)))
                    }
                    Err(error) => Err(error),
                };
                match read {
                    Ok(None) => {}
                    Ok(Some(delta)) => return Some((Ok(delta), Some(live))),
                    Err(error) => return Some((Err(error), None)),
                }
            }
        })
    }

    /// Tells `client` what happens, once it is on the record, until the client has left or another request goes on with the
    /// answer.
    async fn keep(mut self, mut record: Record, client: mpsc::Sender<Result<(usize, Delta), ApiError>>) {
        let taken_over = record.taken_over();
        loop {
            let next = tokio::select! {
                biased;
                () = taken_over.cancelled() => {
                    // A client that is still there is told why; one that is not has no use for it.
                    let _ = client.try_send(Err(ApiError::taken_over()));
                    return;
                }
                () = client.closed() => return,
                next = self.next() => next,
            };
            let Some(next) = next else {
                return record.finish().await;
            };
            // Never given up half-way: whoever goes on with the answer finds whole events.
            let told = match next {
                Ok((index, event)) => match record.append(index, &event).await {
                    Ok(()) => self.read(index, event).map(|delta| delta.map(|delta| (index, delta))),
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            };
            let Some(told) = told.transpose() else { continue };
            let failed = told.is_err();
            tokio::select! {
                biased;
                () = taken_over.cancelled() => {}
                sent = client.send(told) => if sent.is_err() || failed { return },
            }
        }
    }
}

/// Begins the generations, a bounded number at a time.
async fn arrivals<E: Engine>(
    engine: &E,
    requests: Vec<(usize, GenerationRequest)>,
    shutdown: &CancellationToken,
) -> Result<Arrivals, ApiError> {
    let mut entries = Vec::with_capacity(requests.len());
    for (at, (index, request)) in requests.into_iter().enumerate() {
        let entry = if at < CONCURRENT_CHOICES {
            Entry::begun(begin(engine, request, shutdown).await?)
        } else {
            Entry::Planned(request)
        };
        entries.push((index, entry));
    }
    let (engine, shutdown) = (engine.clone(), shutdown.clone());
    let choices = entries.into_iter().map(move |(index, entry)| {
        let state = (engine.clone(), shutdown.clone(), entry);
        stream::unfold(state, move |(engine, shutdown, entry)| async move {
            let (item, entry) = step(&engine, &shutdown, entry).await?;
            Some((item.map(|arrival| (index, arrival)), (engine, shutdown, entry)))
        })
        .boxed()
    });
    Ok(stream::iter(choices).flatten_unordered(Some(CONCURRENT_CHOICES)).boxed())
}

/// Where a generation stands.
enum Entry {
    Planned(GenerationRequest),
    /// Begun, which is still to be told.
    Begun(DropGuard, mpsc::Receiver<GenerationEvent>),
    Running(mpsc::Receiver<GenerationEvent>),
    Ended,
}

impl Entry {
    fn begun(generation: Generation) -> Entry {
        Entry::Begun(generation.cancel, generation.events)
    }
}

/// The next thing that happens to a generation, and where it stands then; `None` once it has ended.
async fn step<E: Engine>(
    engine: &E,
    shutdown: &CancellationToken,
    entry: Entry,
) -> Option<(Result<Arrival, ApiError>, Entry)> {
    let mut events = match entry {
        Entry::Ended => return None,
        Entry::Running(events) => events,
        Entry::Begun(guard, events) => return Some((Ok(Arrival::Begun(guard)), Entry::Running(events))),
        Entry::Planned(request) => match begin(engine, request, shutdown).await {
            Ok(generation) => {
                let Generation { events, cancel } = generation;
                return Some((Ok(Arrival::Begun(cancel)), Entry::Running(events)));
            }
            Err(error) => return Some((Err(error), Entry::Ended)),
        },
    };
    let event = tokio::select! {
        biased;
        () = shutdown.cancelled() => return Some((Err(ApiError::stopping()), Entry::Ended)),
        event = events.recv() => event,
    };
    let event = event.unwrap_or_else(|| {
        let reason = "the scheduler dropped it; ask again".to_owned();
        GenerationEvent::Failed(GenerationError::Interrupted { reason })
    });
    let last = matches!(event, GenerationEvent::Done(_) | GenerationEvent::Failed(_));
    Some((Ok(Arrival::Event(event)), if last { Entry::Ended } else { Entry::Running(events) }))
}

async fn begin<E: Engine>(
    engine: &E,
    request: GenerationRequest,
    shutdown: &CancellationToken,
) -> Result<Generation, ApiError> {
    tokio::select! {
        biased;
        () = shutdown.cancelled() => Err(ApiError::stopping()),
        started = engine.generate(request) => Ok(started?),
    }
}
