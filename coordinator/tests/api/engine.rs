//! An engine that says what it is told to, token by token, by the rules that a cluster follows.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use brigade_coordinator::api::Engine;
use brigade_coordinator::cluster::{DrainError, Drained, ModelInfo, PinError, PinOrder, Pinned, Stopping};
use brigade_coordinator::compare::choices::{ChoiceLoads, SideChoices};
use brigade_coordinator::generation::{
    Drawn, FinishReason, Generation, GenerationError, GenerationEvent, GenerationRequest, Origin,
};
use brigade_coordinator::planning::LiveDevices;
use brigade_coordinator::status::{ClusterStatus, EventRecord, Phase, StepTrace};
use brigade_proto::step::TokenScore;
use brigade_shard::plan::{Forecast, HopCost, Links, Load};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::model::{IM_END, model};

/// The context that is served, in tokens.
pub const CONTEXT: u32 = 256;

/// What a generation does.
#[derive(Clone, Debug)]
pub enum Act {
    /// Finds so many of the prompt's tokens in the cache.
    Reuse(u32),
    /// Draws a token.
    Draw(u32),
    /// Draws a token that was guessed, or for which guesses were wrong.
    Guess(u32, Origin),
    /// Takes this long.
    Wait(Duration),
    /// Breaks off.
    Fail(GenerationError),
    /// Does nothing until it is cancelled.
    Hang,
}

type Script = dyn Fn(&GenerationRequest) -> Vec<Act> + Send + Sync;

/// An engine in memory; after its script it draws the end token.
#[derive(Clone)]
pub struct ScriptedEngine {
    model: Arc<ModelInfo>,
    script: Arc<Script>,
    /// What `status` says.
    pub status: Arc<Mutex<ClusterStatus>>,
    /// Every request that came, in order.
    pub requests: Arc<Mutex<Vec<GenerationRequest>>>,
    /// Generations that were dropped before their end.
    pub cancelled: Arc<AtomicUsize>,
    /// Generations under way.
    pub running: Arc<AtomicUsize>,
    /// Most generations that may be under way.
    pub most_running: usize,
    /// What those are told who come when there are so many.
    pub likely_wait: Duration,
}

impl ScriptedEngine {
    /// Does what `script` says of each request.
    pub fn new(script: impl Fn(&GenerationRequest) -> Vec<Act> + Send + Sync + 'static) -> ScriptedEngine {
        ScriptedEngine::of(model(true), script)
    }

    /// The same with a model of its own.
    pub fn of(
        model: ModelInfo,
        script: impl Fn(&GenerationRequest) -> Vec<Act> + Send + Sync + 'static,
    ) -> ScriptedEngine {
        let status = ClusterStatus { phase: Phase::Serving, context: CONTEXT, ..ClusterStatus::default() };
        ScriptedEngine {
            model: Arc::new(model),
            script: Arc::new(script),
            status: Arc::new(Mutex::new(status)),
            requests: Arc::default(),
            cancelled: Arc::default(),
            running: Arc::default(),
            most_running: 64,
            likely_wait: Duration::ZERO,
        }
    }

    /// Draws these tokens.
    pub fn saying(tokens: Vec<u32>) -> ScriptedEngine {
        ScriptedEngine::new(move |_| draw(&tokens))
    }
}

/// Draws `tokens`, one after the other.
pub fn draw(tokens: &[u32]) -> Vec<Act> {
    tokens.iter().copied().map(Act::Draw).collect()
}

/// The log-probabilities that stand beside a token: its own the best, then those of the ids after it.
fn score(token: u32, request: &GenerationRequest) -> TokenScore {
    let Some(count) = request.sampling.logprobs else {
        return TokenScore { token, logprob: 0.0, top: Vec::new() };
    };
    let top = (0..count).map(|rank| (token + rank, -0.25 - rank as f32)).collect();
    TokenScore { token, logprob: -0.25, top }
}

impl Engine for ScriptedEngine {
    async fn generate(&self, request: GenerationRequest) -> Result<Generation, GenerationError> {
        self.requests.lock().unwrap().push(request.clone());
        let running = self.running.load(Ordering::SeqCst);
        if running >= self.most_running {
            return Err(GenerationError::Overloaded { waiting: running, likely_wait: self.likely_wait });
        }
        self.running.fetch_add(1, Ordering::SeqCst);
        let room = request.prompt.len() + request.max_tokens as usize + 2;
        let (events, receiver) = mpsc::channel(room);
        let token = CancellationToken::new();
        let cancel = token.clone().drop_guard();
        let engine = self.clone();
        tokio::spawn(async move {
            let whole = token.run_until_cancelled(play(&engine, &request, &events)).await;
            if whole.is_none() {
                engine.cancelled.fetch_add(1, Ordering::SeqCst);
            }
            engine.running.fetch_sub(1, Ordering::SeqCst);
        });
        Ok(Generation { events: receiver, cancel })
    }

    async fn drain(&self, worker: &str, _drain: bool) -> Result<Drained, DrainError> {
        match worker {
            "w1" => Ok(Drained { id: worker.to_owned().try_into().unwrap(), name: worker.to_owned() }),
            "w2" => Err(DrainError::NoRoom {
                worker: worker.to_owned(),
                reason: "2.0 GiB more are needed".into(),
            }),
            _ => Err(DrainError::Unknown { wanted: worker.to_owned(), known: "w1, w2".into() }),
        }
    }

    async fn pin(&self, order: PinOrder) -> Result<Pinned, PinError> {
        let mut pinned = Pinned { workers: Vec::new(), names: Vec::new() };
        for worker in order.workers {
            let found = self.drain(&worker, true).await.map_err(|error| match error {
                DrainError::NoRoom { worker, reason } => PinError::NoPlan { workers: worker, reason },
                error => error.into(),
            })?;
            pinned.workers.push(found.id);
            pinned.names.push(found.name);
        }
        let mut status = self.status.lock().unwrap();
        status.pinned.clone_from(&pinned.names);
        status.pinned_by = order.by;
        drop(status);
        Ok(pinned)
    }

    async fn unpin(&self) -> Result<(), PinError> {
        self.status.lock().unwrap().pinned.clear();
        Ok(())
    }

    async fn choices(&self, loads: ChoiceLoads) -> Result<SideChoices, Stopping> {
        let left_out = vec![format!("asked of {} loads", loads.loads().count())];
        Ok(SideChoices { one_box: None, cluster: None, left_out })
    }

    fn status(&self) -> Arc<ClusterStatus> {
        Arc::new(self.status.lock().unwrap().clone())
    }

    async fn devices(&self) -> Result<LiveDevices, Stopping> {
        let pairs = [((0, 1), HopCost { rtt_us: 250.0, bytes_per_s: 1e9 })].into();
        let links = Links { pairs, ..Links::all(HopCost::default()) };
        Ok(LiveDevices { links, ..LiveDevices::default() })
    }

    async fn forecast(&self, load: &Load) -> Result<Option<Forecast>, Stopping> {
        let serving = self.status.lock().unwrap().phase == Phase::Serving;
        Ok(serving.then(|| Forecast {
            decode_tokens_per_s: f64::from(load.streams),
            prompt_tokens_per_s: f64::from(load.prompt_tokens),
            ttft_ms: f64::from(load.context),
        }))
    }

    fn timeline(&self, _after: u64) -> Vec<StepTrace> {
        Vec::new()
    }

    async fn events(&self, _after: u64, _most: usize) -> Vec<EventRecord> {
        Vec::new()
    }

    fn model(&self) -> &ModelInfo {
        &self.model
    }

    fn metrics(&self) -> String {
        "# EOF\n".to_owned()
    }
}

async fn play(engine: &ScriptedEngine, request: &GenerationRequest, events: &mpsc::Sender<GenerationEvent>) {
    let send = async |event| events.send(event).await.unwrap_or(());
    if request.score_prompt {
        // In two chunks, as a long prompt's scores come.
        let scores: Vec<TokenScore> =
            request.prompt[1..].iter().map(|token| score(*token, request)).collect();
        let (first, second) = scores.split_at(scores.len() / 2);
        send(GenerationEvent::PromptScores(first.to_vec())).await;
        send(GenerationEvent::PromptScores(second.to_vec())).await;
    }
    let mut left = request.max_tokens - request.drawn.len() as u32;
    let mut acts = (engine.script)(request);
    acts.push(Act::Draw(IM_END));
    for act in acts {
        if left == 0 {
            break;
        }
        match act {
            Act::Draw(token) | Act::Guess(token, _) => {
                left -= 1;
                let origin =
                    if let Act::Guess(_, origin) = act { origin } else { Origin::Drawn { rejected: 0 } };
                send(GenerationEvent::Token(Drawn { score: score(token, request), origin })).await;
                if request.sampling.end_ids.contains(&token) {
                    return send(GenerationEvent::Done(FinishReason::EndToken)).await;
                }
                tokio::task::yield_now().await;
            }
            Act::Reuse(tokens) => send(GenerationEvent::Reused(tokens)).await,
            Act::Wait(time) => tokio::time::sleep(time).await,
            Act::Fail(error) => return send(GenerationEvent::Failed(error)).await,
            Act::Hang => std::future::pending().await,
        }
    }
    send(GenerationEvent::Done(FinishReason::Length)).await;
}
