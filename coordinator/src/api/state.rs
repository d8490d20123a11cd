//! What every handler shares.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::http::HeaderMap;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::ApiSettings;
use super::answers::Job;
use super::auth::Guard;
use super::engine::Engine;
use super::envelope::Envelope;
use super::error::ApiError;
use super::kept::{Kept, KeptAnswers, Wish};
use super::params::Vocabulary;
use crate::generation::{GenerationError, TraceContext, TraceParent};
use crate::status::Phase;

/// Most prompts that are encoded at a time: encoding keeps a core busy, and the coordinator shares its machine.
const CONCURRENT_ENCODINGS: usize = 4;

/// Most clients that watch at a time: far more than people look at one cluster, and few of the connections that there are.
const WATCHERS: usize = 64;

/// The engine and the settings, shared by all requests; cheap to clone.
pub(crate) struct Api<E> {
    shared: Arc<Shared<E>>,
}

struct Shared<E> {
    engine: E,
    guard: Guard,
    shutdown: CancellationToken,
    kept: Option<KeptAnswers>,
    log_prompts: bool,
    comparisons: Option<PathBuf>,
    encodings: Arc<Semaphore>,
    watchers: Arc<Semaphore>,
}

impl<E> Clone for Api<E> {
    fn clone(&self) -> Api<E> {
        Api { shared: Arc::clone(&self.shared) }
    }
}

impl<E: Engine> Api<E> {
    /// Serves `engine` until `shutdown`, as `settings` say.
    pub(crate) fn new(
        engine: E,
        guard: Guard,
        settings: &ApiSettings,
        shutdown: CancellationToken,
    ) -> Api<E> {
        let (kept, log_prompts) = (settings.kept.clone(), settings.log_prompts);
        let comparisons = settings.comparisons.clone();
        let encodings = Arc::new(Semaphore::new(CONCURRENT_ENCODINGS));
        let watchers = Arc::new(Semaphore::new(WATCHERS));
        let shared = Shared { engine, guard, shutdown, kept, log_prompts, comparisons, encodings, watchers };
        Api { shared: Arc::new(shared) }
    }

    /// Takes up the answer that is wished, where one is: `envelope` and `jobs` become those that it was begun with.
    ///
    /// # Errors
    /// 400 where this server keeps no answers, and as [`KeptAnswers::take`].
    pub(crate) async fn keep(
        &self,
        wish: Option<&Wish>,
        envelope: &mut Envelope,
        jobs: &mut [Job],
    ) -> Result<Option<Kept>, ApiError> {
        let Some(wish) = wish else {
            return Ok(None);
        };
        let Some(kept) = &self.shared.kept else {
            let message = "this server keeps no answers (--keep-answers 0s): leave out `Idempotency-Key`";
            return Err(ApiError::bad_request("answers_not_kept", message));
        };
        kept.take(wish, self.engine(), envelope, jobs).await.map(Some)
    }

    /// The cluster.
    pub(crate) fn engine(&self) -> &E {
        &self.shared.engine
    }

    /// Who may ask.
    pub(crate) fn guard(&self) -> &Guard {
        &self.shared.guard
    }

    /// Whether what requests ask and are answered is logged.
    pub(crate) fn logs_prompts(&self) -> bool {
        self.shared.log_prompts
    }

    /// The state directory whose comparisons are listed.
    pub(crate) fn comparisons(&self) -> Option<&Path> {
        self.shared.comparisons.as_deref()
    }

    /// Cancelled when the server is to end.
    pub(crate) fn shutdown(&self) -> &CancellationToken {
        &self.shared.shutdown
    }

    /// Leave to encode a prompt; waits for its turn.
    pub(crate) async fn text_permit(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        Arc::clone(&self.shared.encodings).acquire_owned().await
    }

    /// Leave to watch.
    ///
    /// # Errors
    /// 503 while too many watch.
    pub(crate) fn watch_permit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.shared.watchers).try_acquire_owned().map_err(|_| ApiError::watched_enough(WATCHERS))
    }

    /// What requests are checked against.
    pub(crate) fn vocabulary(&self) -> Vocabulary<'_> {
        let model = self.engine().model();
        Vocabulary { size: model.vocab, end_ids: model.tokenizer.end_ids() }
    }

    /// Refuses a model other than the one served; none at all means that one.
    pub(crate) fn check_model(&self, wanted: Option<&str>) -> Result<(), ApiError> {
        let served = &self.engine().model().id;
        match wanted {
            Some(wanted) if wanted != served => Err(ApiError::unknown_model(wanted, served)),
            _ => Ok(()),
        }
    }

    /// The longest sequence that requests may ask for, in tokens: what is served now, or was until a moment ago, where a
    /// plan was lost and the next one is on its way.
    ///
    /// # Errors
    /// 503 while nothing is served, with what is missing.
    pub(crate) fn context(&self) -> Result<u32, ApiError> {
        let status = self.engine().status();
        if status.recovering && !self.shutdown().is_cancelled() {
            return Ok(status.context);
        }
        self.served_context()
    }

    /// The longest sequence that is served now, in tokens.
    ///
    /// # Errors
    /// 503 while nothing is served, with what is missing.
    pub(crate) fn served_context(&self) -> Result<u32, ApiError> {
        if self.shutdown().is_cancelled() {
            return Err(ApiError::stopping());
        }
        let status = self.engine().status();
        match status.phase {
            Phase::Serving => Ok(status.context),
            phase => {
                let reason = status.reason.clone().unwrap_or_else(|| phase_in_words(phase).to_owned());
                Err(GenerationError::NotReady { reason }.into())
            }
        }
    }

    /// How many tokens to generate after a prompt: as many as asked for, or what is left of the context.
    ///
    /// # Errors
    /// 400 `context_length_exceeded` where prompt and answer do not fit, 503 while nothing is served.
    pub(crate) fn answer_tokens(&self, prompt: usize, wanted: Option<u32>) -> Result<u32, ApiError> {
        let context = self.context()?;
        let prompt = u32::try_from(prompt).unwrap_or(u32::MAX);
        let max_tokens = wanted.unwrap_or_else(|| context.saturating_sub(prompt).max(1));
        if prompt.saturating_add(max_tokens) > context {
            return Err(GenerationError::ContextExceeded { prompt, max_tokens, context }.into());
        }
        Ok(max_tokens)
    }
}

/// Where a request comes from.
pub(crate) fn trace_context(headers: &HeaderMap, chat: bool) -> TraceContext {
    let parent = headers.get("traceparent").and_then(|value| TraceParent::parse(value.to_str().ok()?));
    TraceContext { chat, parent }
}

/// What the cluster is doing while it does not serve.
pub(crate) fn phase_in_words(phase: Phase) -> &'static str {
    match phase {
        Phase::Waiting => "waiting for workers",
        Phase::Loading => "loading the model",
        Phase::Connecting => "connecting the stages",
        Phase::Serving => "serving",
        Phase::Stopping => "shutting down",
    }
}
