//! Fetching chunks: from all that have them, the nearest first.
//!
//! Missing chunks lie in a queue, in the order in which a load reads them. Every source takes runs of them from its front, as
//! fast as it is, so that none waits for another; runs are longer where a source is faster. What fails goes back to the front
//! of the queue, for whoever is next. The coordinator's machine and all workers are asked what they have.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use brigade_proto::delivery::{DeliveryError, Holder, Source, page_of};
use brigade_proto::ids::Peer;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::kept::{KeepError, KeptModel};
use super::service::{FetchProgress, Shared};

/// Chunks that are asked for at a time: fewest and most, and what takes about so long.
const RUN_CHUNKS: Range<u32> = 1..32;
const RUN: Duration = Duration::from_millis(300);
/// The same while answers are computed: what delays them by little at a time.
const GENTLE_CHUNKS: u32 = 2;
/// Questions to one source at a time: while one answer comes, the next is read from its disk.
const LANES: usize = 2;
/// How much later a source begins than the one that is next nearer: small fetches need no other.
const LATER: Duration = Duration::from_millis(100);
/// How long other workers may take to be found.
const FINDING: Duration = Duration::from_secs(3);
/// How long nothing may come before a fetch is given up, and how long it rests before it asks again.
const PATIENCE: Duration = Duration::from_secs(30);
const REST: Duration = Duration::from_millis(500);

/// Some chunks that are to come.
pub(super) struct Job {
    kept: Arc<KeptModel>,
    queue: Mutex<Queue>,
    gently: bool,
    progress: Arc<FetchProgress>,
    pub(super) given_up: CancellationToken,
}

struct Queue {
    missing: VecDeque<u32>,
    /// Chunks that sources do not have, or do not have right.
    lacking: HashSet<(Peer, u32)>,
    /// Chunks that the coordinator has sent wrongly.
    damaged: HashSet<u32>,
    /// Workers that the coordinator has named; it may be gone later.
    holders: Vec<Holder>,
    last: Instant,
    /// Why sources were given up.
    problems: Vec<String>,
}

/// What ends a fetch, whatever other sources there are.
struct Fatal(String);

impl Job {
    pub(super) fn new(
        kept: Arc<KeptModel>,
        missing: Vec<u32>,
        gently: bool,
        progress: Arc<FetchProgress>,
        given_up: CancellationToken,
    ) -> Job {
        kept.job_begins();
        let queue = Queue {
            missing: missing.into(),
            lacking: HashSet::new(),
            damaged: HashSet::new(),
            holders: Vec::new(),
            last: Instant::now(),
            problems: Vec::new(),
        };
        Job { kept, queue: Mutex::new(queue), gently, progress, given_up }
    }

    /// Tells whoever waits how it ended.
    pub(super) fn end(&self, failure: Option<String>) {
        if let Some(reason) = failure.as_ref().filter(|_| !self.given_up.is_cancelled()) {
            tracing::warn!("failed to fetch weights: {reason}");
        }
        let mut queue = self.queue();
        queue.missing.clear();
        queue.problems = failure.into_iter().collect();
    }

    /// The next chunks that a source is to bring, one after another.
    fn take(&self, source: &Peer, holdings: &Holdings, most: u32) -> Option<Range<u32>> {
        let mut queue = self.queue();
        let Queue { missing, lacking, .. } = &mut *queue;
        let can = |chunk: u32| holdings.has(chunk) && !lacking.contains(&(source.clone(), chunk));
        let at = missing.iter().position(|chunk| can(*chunk))?;
        let first = missing[at];
        let page = page_of(first);
        let together = missing
            .iter()
            .skip(at)
            .zip(first..)
            .take_while(|(chunk, next)| *chunk == next && can(**chunk) && page_of(**chunk) == page);
        let count = together.take(most as usize).count();
        missing.drain(at..at + count);
        Some(first..first + count as u32)
    }

    fn put_back(&self, chunks: Range<u32>) {
        let mut queue = self.queue();
        chunks.rev().for_each(|chunk| queue.missing.push_front(chunk));
    }

    fn lacks(&self, source: &Peer, chunk: u32) {
        self.queue().lacking.insert((source.clone(), chunk));
    }

    fn came(&self, source: &Peer, bytes: usize) {
        self.progress.came(source, bytes);
        self.queue().last = Instant::now();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let never = || Some("the thread that fetches weights has ended".to_owned());
        let queue = self.queue.get_mut().unwrap_or_else(PoisonError::into_inner);
        let failure = if queue.missing.is_empty() { queue.problems.pop() } else { never() };
        self.kept.job_ended(failure);
    }
}

/// What a source has.
struct Holdings(Vec<Range<u32>>);

impl Holdings {
    fn has(&self, chunk: u32) -> bool {
        let at = self.0.partition_point(|range| range.start <= chunk);
        at > 0 && self.0[at - 1].contains(&chunk)
    }
}

/// Fetches all that is missing.
pub(super) async fn fetch(shared: &Shared, job: &Job) -> Result<(), String> {
    loop {
        let (home, sources) = sources(shared, job).await;
        let home = home.as_ref();
        let lanes = sources.iter().zip(0u32..).flat_map(|((source, holdings), rank)| {
            (0..LANES).map(move |lane| async move {
                tokio::time::sleep(LATER * rank).await;
                self::lane(shared, job, (source, home), holdings, lane).await
            })
        });
        let mut lanes: FuturesUnordered<_> = lanes.collect();
        while let Some(ended) = lanes.next().await {
            match ended {
                Ok(()) => {}
                Err(Ended::Fatal(Fatal(reason))) => return Err(reason),
                Err(Ended::Source(error)) => {
                    let problem = error.to_string();
                    let mut queue = job.queue();
                    if !queue.problems.contains(&problem) {
                        queue.problems.push(problem);
                    }
                }
            }
        }
        {
            let queue = job.queue();
            let Some(next) = queue.missing.front() else {
                return Ok(());
            };
            if queue.last.elapsed() >= PATIENCE {
                let nobody = || "nobody has it".to_owned();
                let why =
                    queue.problems.iter().rev().take(4).cloned().reduce(|all, one| format!("{all}; {one}"));
                return Err(format!(
                    "{} chunk(s) of the model could not be fetched, of which the first is {}: {}",
                    queue.missing.len(),
                    job.kept.describe(*next),
                    why.unwrap_or_else(nobody)
                ));
            }
        }
        tokio::time::sleep(REST).await;
    }
}

/// Everybody who can be reached and has something of the model, the nearest first; and the coordinator, if it can be.
async fn sources(shared: &Shared, job: &Job) -> (Option<Source>, Vec<(Source, Holdings)>) {
    let model = job.kept.fingerprint();
    let problem = |error: DeliveryError| job.queue().problems.push(error.to_string());
    let home = shared.coordinator().await.map_err(problem).ok();
    if let Some(home) = &home
        && let Ok(holders) = home.holders(model).await.map_err(problem)
    {
        job.queue().holders = holders;
    }
    let others = |holder: &Holder| holder.peer != shared.own;
    let holders: Vec<Holder> = job.queue().holders.iter().filter(|holder| others(holder)).cloned().collect();
    let dialled = holders.into_iter().map(|holder| async move {
        let dialling = shared.transport.dial_source(&holder.peer, &holder.addresses);
        // One that cannot be reached is one source less.
        tokio::time::timeout(FINDING, dialling).await.ok()?.ok()
    });
    let all = join_all(dialled).await.into_iter().flatten().chain(home.clone());
    let asked = all.map(|source| async move {
        let holdings = source.holdings(model).await.ok().filter(|ranges| !ranges.is_empty())?;
        Some((source, Holdings(holdings)))
    });
    let mut sources: Vec<(Source, Holdings)> = join_all(asked).await.into_iter().flatten().collect();
    sources.sort_by_key(|(source, _)| source.rtt());
    (home, sources)
}

/// Why a lane has ended before there was nothing left for it.
enum Ended {
    Source(DeliveryError),
    Fatal(Fatal),
}

impl From<DeliveryError> for Ended {
    fn from(error: DeliveryError) -> Ended {
        Ended::Source(error)
    }
}

/// Takes runs of chunks from one source, as long as it has some.
async fn lane(
    shared: &Shared,
    job: &Job,
    (source, home): (&Source, Option<&Source>),
    holdings: &Holdings,
    number: usize,
) -> Result<(), Ended> {
    let mut most = RUN_CHUNKS.start.max(GENTLE_CHUNKS);
    let mut busy_there = false;
    loop {
        let gently = job.gently || busy_there || shared.activity.is_busy();
        if gently && number > 0 {
            // The first lane goes on alone.
            return Ok(());
        }
        let turn = if gently { shared.gently.acquire().await.ok() } else { None };
        let most_now = if gently { GENTLE_CHUNKS } else { most };
        let Some(chunks) = job.take(source.peer(), holdings, most_now) else {
            return Ok(());
        };
        let began = Instant::now();
        let mut left = chunks.clone();
        let run = run(job, (source, home), &mut left).await;
        if !left.is_empty() {
            job.put_back(left);
        }
        busy_there = run?;
        let took = began.elapsed();
        most = longer_or_shorter(most, chunks.len() as u32, took);
        if gently {
            // So that weights take no larger share of the time than they may.
            tokio::time::sleep(took.mul_f64(1.0 / shared.manners.share - 1.0)).await;
        }
        drop(turn);
    }
}

/// How many chunks to ask for after so many have taken so long.
fn longer_or_shorter(most: u32, count: u32, took: Duration) -> u32 {
    if count < most {
        return most;
    }
    let fitting = f64::from(count) * RUN.as_secs_f64() / took.as_secs_f64().max(1e-6);
    (fitting as u32).clamp(most / 2, most * 2).clamp(RUN_CHUNKS.start, RUN_CHUNKS.end)
}

/// Takes the chunks of `left`, which it leaves behind those that have come; whether answers are computed at the source.
async fn run(
    job: &Job,
    (source, home): (&Source, Option<&Source>),
    left: &mut Range<u32>,
) -> Result<bool, Ended> {
    let model = job.kept.fingerprint();
    let page = page_of(left.start);
    if !job.kept.knows_page(page) {
        let edition = job.kept.edition();
        let document = match (source.hashes(model, edition, page).await, home) {
            // Who has the file itself has nobody's word for it.
            (Err(DeliveryError::NotHere { .. }), Some(home)) => home.hashes(model, edition, page).await,
            (document, _) => document,
        }?;
        job.kept.keep_page(page, &document).map_err(|error| fatal_or(source, error))?;
    }
    let mut stream = source.chunks(model, job.kept.chunks(), left.clone()).await?;
    let busy = stream.is_busy();
    let mut buffer = Vec::new();
    while let Some((chunk, here)) = stream.next(&mut buffer).await? {
        if !here {
            job.lacks(source.peer(), chunk);
            job.put_back(chunk..chunk + 1);
            left.start = chunk + 1;
            continue;
        }
        let (kept, bytes) = (job.kept.clone(), std::mem::take(&mut buffer));
        let keeping = spawn_blocking(move || {
            let outcome = kept.keep(chunk, &bytes);
            (outcome, bytes)
        });
        let (outcome, bytes) = keeping
            .await
            .map_err(|_| Ended::Fatal(Fatal("keeping a chunk ended with a defect".to_owned())))?;
        buffer = bytes;
        match outcome {
            Ok(()) => job.came(source.peer(), buffer.len()),
            Err(KeepError::Damaged(which)) => {
                damaged(job, source, chunk, &which)?;
                job.put_back(chunk..chunk + 1);
            }
            Err(error) => return Err(Ended::Fatal(Fatal(error.to_string()))),
        }
        left.start = chunk + 1;
    }
    Ok(busy)
}

/// Decides what becomes of a chunk that is not what the coordinator has signed.
fn damaged(job: &Job, source: &Source, chunk: u32, which: &str) -> Result<(), Ended> {
    let peer = source.peer();
    if *peer != Peer::Coordinator {
        tracing::warn!(
            "{which} came from {peer} otherwise than the coordinator has signed it: another source is asked"
        );
        job.lacks(peer, chunk);
        return Ok(());
    }
    if job.queue().damaged.insert(chunk) {
        tracing::warn!(
            "{which} came from the coordinator otherwise than it has signed it: it is asked for again"
        );
        return Ok(());
    }
    Err(Ended::Fatal(Fatal(format!(
        "{which} came twice from the coordinator otherwise than it has signed it: the file there is damaged, or its disk is failing; \
         check it with `brigade models verify`, and fetch the model again"
    ))))
}

/// A document that is not the coordinator's is the source's fault; that it cannot be kept is not.
fn fatal_or(source: &Source, error: KeepError) -> Ended {
    match error {
        KeepError::Io { .. } => Ended::Fatal(Fatal(error.to_string())),
        other => {
            Ended::Source(DeliveryError::Failed { peer: source.peer().clone(), reason: other.to_string() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_grow_and_shrink_with_the_speed_of_their_source() {
        let ms = Duration::from_millis;
        assert_eq!(longer_or_shorter(2, 2, ms(1)), 4);
        assert_eq!(longer_or_shorter(16, 16, ms(300)), 16);
        assert_eq!(longer_or_shorter(16, 16, ms(3000)), 8);
        assert_eq!(longer_or_shorter(1, 1, ms(3000)), 1);
        assert_eq!(longer_or_shorter(32, 32, ms(1)), RUN_CHUNKS.end);
        // What was left at the end says nothing.
        assert_eq!(longer_or_shorter(16, 3, ms(3000)), 16);
    }

    #[test]
    fn a_source_has_what_is_in_its_ranges() {
        let holdings = Holdings(vec![2..4, 7..8]);
        let has: Vec<u32> = (0..10).filter(|chunk| holdings.has(*chunk)).collect();
        assert_eq!(has, [2, 3, 7]);
    }
}
