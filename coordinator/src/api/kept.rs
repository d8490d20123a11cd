//! Answers that outlive their connection: requests with the header `Idempotency-Key`.
//!
//! What such a request asks for, the seed that was drawn for it, and every event of its generations are written down before
//! the client is told. Whoever asks the same again with the same key gets the same answer: what there is of it, and then
//! the rest, which goes on behind the last token that was written down. That holds after a lost connection as after a restart
//! of the coordinator. Records are written by `write`, so they outlive the process at once, and the machine once an
//! answer has ended.
//!
//! Each answer has a file of its own, a record, that only its owner may read.

mod record;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, HeaderName, header};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answers::Job;
use super::engine::Engine;
use super::envelope::Envelope;
use super::error::ApiError;
use crate::generation::{FinishReason, GenerationEvent, GenerationRequest};
use crate::state_dir::{StateDirError, create_private_dir, private_options};
use crate::tokens::hex;
use record::{Head, HeadChoice, Line, VERSION, What, parse};

/// The header that names an answer, as the IETF's draft `draft-ietf-httpapi-idempotency-key-header` has it.
const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The header in which a client of server-sent events says what it has seen.
const LAST_EVENT: HeaderName = HeaderName::from_static("last-event-id");
/// Longest key, in bytes.
const MAX_KEY: usize = 255;
/// Most answers that are kept; the oldest go first.
const MAX_RECORDS: usize = 10_000;
/// Time between two looks at what is too old.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// How long the request that has an answer may take to give it up.
const TURN_LIMIT: Duration = Duration::from_secs(10);

/// The answers of one coordinator. Clones share them.
#[derive(Clone, Debug)]
pub struct KeptAnswers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    keep: Duration,
    turns: Mutex<HashMap<String, Arc<Turn>>>,
    tasks: TaskTracker,
}

/// Whose turn it is with an answer: of several requests with one key the last one.
#[derive(Debug, Default)]
struct Turn {
    /// Cancelled when another request wants the answer.
    taken_over: Mutex<CancellationToken>,
    holder: Arc<tokio::sync::Mutex<()>>,
}

/// What a request says of its answer's keeping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Hash of the key, and of who asks.
    name: String,
    /// Hash of what is asked.
    request: String,
    /// The last event that the client has seen.
    pub(crate) last_event: Option<u64>,
}

/// An answer that is kept.
pub(crate) struct Kept {
    /// What has happened, each with its choice's index.
    pub(crate) past: Vec<(usize, GenerationEvent)>,
    record: Record,
    tasks: TaskTracker,
}

/// The file of an answer, and the right to write it.
pub(crate) struct Record {
    file: Arc<fs::File>,
    path: PathBuf,
    taken_over: CancellationToken,
    _turn: tokio::sync::OwnedMutexGuard<()>,
}

impl KeptAnswers {
    /// The answers in `folder`, which is made where it is missing; each is kept for `keep` after its last token.
    ///
    /// # Errors
    /// Where the folder cannot be made.
    pub fn open(folder: &Path, keep: Duration) -> Result<KeptAnswers, StateDirError> {
        create_private_dir(folder)?;
        let shared =
            Shared { folder: folder.to_owned(), keep, turns: Mutex::default(), tasks: TaskTracker::new() };
        Ok(KeptAnswers { shared: Arc::new(shared) })
    }

    /// Removes what is too old or too much, again and again until `shutdown`.
    pub(crate) fn tend(&self, shutdown: CancellationToken) {
        let store = self.clone();
        self.shared.tasks.spawn(shutdown.run_until_cancelled_owned(async move {
            loop {
                let sweeping = store.clone();
                // It says itself what fails.
                let _ = tokio::task::spawn_blocking(move || sweeping.sweep()).await;
                tokio::time::sleep(SWEEP_INTERVAL).await;
            }
        }));
    }

    /// Waits until what is under way is written down.
    pub(crate) async fn close(&self) {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// The answer that is wished, as far as there is one; otherwise its record is begun. `envelope` and `jobs` become those
    /// that it was begun with.
    ///
    /// # Errors
    /// 422 where the key was used for another request, 409 where another model answered it, 500 where the record cannot be
    /// read or written.
    pub(crate) async fn take<E: Engine>(
        &self,
        wish: &Wish,
        engine: &E,
        envelope: &mut Envelope,
        jobs: &mut [Job],
    ) -> Result<Kept, ApiError> {
        let path = self.shared.folder.join(&wish.name);
        let model = engine.model().fingerprint.to_string();
        // Before the answer is taken from a request that has it.
        let at = path.clone();
        let (head, ..) = parse(&blocking(move || read(&at)).await?);
        if let Some(head) = &head {
            head.check(wish, &model, jobs.len())?;
        }
        let turn = self.turn(&wish.name);
        let taken_over = CancellationToken::new();
        let before = std::mem::replace(&mut *lock(&turn.taken_over), taken_over.clone());
        before.cancel();
        let holder = tokio::time::timeout(TURN_LIMIT, turn.holder.clone().lock_owned()).await;
        let holder = holder.map_err(|_| ApiError::key_in_use())?;
        let at = path.clone();
        let (file, text) = blocking(move || open(&at)).await?;
        let mut record = Record { file: Arc::new(file), path, taken_over, _turn: holder };
        let (head, past, length) = parse(&text);
        match head {
            None => {
                record.truncate(0).await?;
                let choice = |job: &Job| HeadChoice {
                    prompt: job.request.prompt.clone(),
                    seed: job.request.sampling.seed,
                    max_tokens: job.request.max_tokens,
                };
                let (id, created) = envelope.identity();
                let head = Head {
                    version: VERSION,
                    request: wish.request.clone(),
                    model,
                    id: id.to_owned(),
                    created,
                    choices: jobs.iter().map(choice).collect(),
                };
                record.write(&head).await?;
            }
            Some(head) => {
                head.check(wish, &model, jobs.len())?;
                record.truncate(length as u64).await?;
                envelope.set_identity(head.id, head.created);
                for (choice, job) in head.choices.into_iter().zip(jobs.iter_mut()) {
                    job.request.prompt = choice.prompt;
                    job.request.sampling.seed = choice.seed;
                    job.request.max_tokens = choice.max_tokens;
                }
            }
        }
        let past = record.go_on(past, jobs).await?;
        Ok(Kept { past, record, tasks: self.shared.tasks.clone() })
    }

    fn turn(&self, name: &str) -> Arc<Turn> {
        lock(&self.shared.turns).entry(name.to_owned()).or_default().clone()
    }

    /// Removes what is too old or too much. Blocks.
    fn sweep(&self) {
        let now = SystemTime::now();
        let age = |time: SystemTime| now.duration_since(time).unwrap_or_default();
        // A turn that nobody holds or waits for can be begun anew.
        lock(&self.shared.turns)
            .retain(|_, turn| Arc::strong_count(turn) > 1 || turn.holder.try_lock().is_err());
        let Ok(entries) = fs::read_dir(&self.shared.folder) else { return };
        let mut records: Vec<(Duration, String)> = entries
            .flatten()
            .filter_map(|entry| {
                let changed = entry.metadata().ok()?.modified().ok()?;
                Some((age(changed), entry.file_name().into_string().ok()?))
            })
            .collect();
        records.sort_unstable();
        let spared = |name: &str| lock(&self.shared.turns).contains_key(name);
        for (place, (age, name)) in records.iter().enumerate() {
            if (*age > self.shared.keep || place >= MAX_RECORDS) && !spared(name) {
                let path = self.shared.folder.join(name);
                if let Err(error) = fs::remove_file(&path) {
                    tracing::warn!("failed to remove the kept answer {}: {error}", path.display());
                }
            }
        }
    }
}

impl Wish {
    /// What a request's headers say, and its `path` and `body`; `None` where its answer need not be kept.
    ///
    /// # Errors
    /// 400 where the headers are wrong.
    pub(crate) fn read(headers: &HeaderMap, path: &str, body: &[u8]) -> Result<Option<Wish>, ApiError> {
        let last_event = headers.get(LAST_EVENT);
        let Some(key) = headers.get(KEY) else {
            return match last_event {
                None => Ok(None),
                Some(_) => Err(wrong(
                    "`Last-Event-ID` needs the `Idempotency-Key` that the answer was asked for with",
                )),
            };
        };
        let key = key.as_bytes();
        if key.is_empty() || key.len() > MAX_KEY || !key.iter().all(|byte| (0x20..0x7f).contains(byte)) {
            return Err(wrong(
                "`Idempotency-Key` must be 1 to 255 printable ASCII characters, such as a UUID",
            ));
        }
        let number = |value: &axum::http::HeaderValue| value.to_str().ok()?.trim().parse().ok();
        let last_event = match last_event {
            None => None,
            Some(value) => Some(number(value).ok_or_else(|| {
                wrong("`Last-Event-ID` must be the `id` of an event of this answer, which is a whole number")
            })?),
        };
        // Keys of one client mean nothing to another.
        let owner = headers.get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
        let name = Sha256::new().chain_update(owner).chain_update([0]).chain_update(key).finalize();
        let request = Sha256::new().chain_update(path).chain_update([0]).chain_update(body).finalize();
        Ok(Some(Wish { name: hex(&name), request: hex(&request), last_event }))
    }
}

fn wrong(message: &str) -> ApiError {
    ApiError::bad_request("invalid_header", message)
}

impl Kept {
    /// Runs what keeps the answer on: it goes on until it has ended or nobody waits for it.
    pub(crate) fn spawn<F>(self, keep: impl FnOnce(Record) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(keep(self.record));
    }
}

impl Record {
    /// Cancelled when another request wants the answer.
    pub(crate) fn taken_over(&self) -> CancellationToken {
        self.taken_over.clone()
    }

    /// Writes down what happened to a choice. A failure is not: whoever asks again goes on.
    ///
    /// # Errors
    /// 500 where the file cannot be written.
    pub(crate) async fn append(&mut self, choice: usize, event: &GenerationEvent) -> Result<(), ApiError> {
        match What::of(event) {
            Some(what) => self.write(&Line { choice, what }).await,
            None => Ok(()),
        }
    }

    /// The answer is whole: it is to outlive the machine, too.
    pub(crate) async fn finish(self) {
        let file = self.file.clone();
        if let Err(error) = blocking(move || file.sync_data()).await {
            tracing::warn!("the kept answer {} may not outlive a power cut: {error}", self.path.display());
        }
    }

    /// Lets every choice go on where it was. Says what happened that still counts.
    async fn go_on(
        &mut self,
        past: Vec<(usize, GenerationEvent)>,
        jobs: &mut [Job],
    ) -> Result<Vec<(usize, GenerationEvent)>, ApiError> {
        let mut past: Vec<_> = past.into_iter().filter(|(choice, _)| *choice < jobs.len()).collect();
        for (index, job) in jobs.iter_mut().enumerate() {
            let own = || past.iter().filter(|(choice, _)| *choice == index).map(|(_, event)| event);
            let drawn = own().filter_map(|event| match event {
                GenerationEvent::Token(drawn) => Some(drawn.score.token),
                _ => None,
            });
            job.request.drawn = drawn.collect();
            let ended = own().any(|event| matches!(event, GenerationEvent::Done(_)));
            if job.request.drawn.is_empty() && !ended && own().next().is_some() {
                past.retain(|(choice, _)| *choice != index);
                self.write(&Line { choice: index, what: What::Again(()) }).await?;
            }
            // All scores were told before the first token.
            job.request.score_prompt &= job.request.drawn.is_empty();
            if let Some(reason) = end_of(&job.request).filter(|_| !ended) {
                let event = GenerationEvent::Done(reason);
                self.append(index, &event).await?;
                past.push((index, event));
            }
        }
        Ok(past)
    }

    async fn write(&self, line: &impl Serialize) -> Result<(), ApiError> {
        let mut text = serde_json::to_vec(line).map_err(|error| ApiError::internal(error.to_string()))?;
        text.push(b'\n');
        let file = self.file.clone();
        blocking(move || (&*file).write_all(&text)).await
    }

    /// Forgets what is behind `length`.
    async fn truncate(&self, length: u64) -> Result<(), ApiError> {
        let file = self.file.clone();
        blocking(move || file.set_len(length)).await
    }
}

/// How an answer ended of which all tokens were drawn before.
fn end_of(request: &GenerationRequest) -> Option<FinishReason> {
    let last = request.drawn.last()?;
    if request.sampling.end_ids.contains(last) {
        Some(FinishReason::EndToken)
    } else if request.drawn.len() >= request.max_tokens as usize {
        Some(FinishReason::Length)
    } else {
        None
    }
}

impl Head {
    /// Whether it is of the same request, and of the model that is served.
    fn check(&self, wish: &Wish, model: &str, choices: usize) -> Result<(), ApiError> {
        if self.request != wish.request || self.choices.len() != choices {
            Err(ApiError::key_of_another_request())
        } else if self.model != model {
            Err(ApiError::key_of_another_model())
        } else {
            Ok(())
        }
    }
}

/// What a record holds; nothing where there is none. Blocks.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

/// Opens a record, made where it is missing, to be appended to; with what it holds. Blocks.
fn open(path: &Path) -> io::Result<(fs::File, Vec<u8>)> {
    let file = private_options().create(true).append(true).open(path)?;
    Ok((file, fs::read(path)?))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| ApiError::internal(format!("the answer was not kept: {error}")))?;
    done.map_err(|error| ApiError::internal(format!("the answer cannot be kept: {error}; ask without a key")))
}

/// Nothing is left half done while the lock is held.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
