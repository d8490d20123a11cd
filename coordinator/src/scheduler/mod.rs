//! Continuous batching over a pipeline: which sequences have cache, and what goes into the next step.
//!
//! A pure state machine. Requests wait in a bounded queue until there is cache to begin with (see `growth`); then their
//! prompts are sent in chunks, several of which may be on their way (see `chunks`), and after that one token at a time, in
//! several groups of sequences (see `groups`), so that every stage has something to do. The sizes of both follow from how
//! long stages take (see `times`). Behind that token go drafts of what may follow it, where they pay (see `speculation`);
//! and where stages would wait for the coordinator, steps are sent before their tokens are known (see `short_way`). A
//! sequence that has ended is released with the next step, once none of its segments is under way: a late segment must
//! never meet a stage that has forgotten the sequence. When the pipeline is lost, what ran waits for the next one (see
//! `recovery`).

mod acceptance;
mod active;
mod ahead;
mod chunks;
mod compose;
mod drafter;
mod groups;
mod growth;
mod lookup;
mod offers;
mod pages;
mod patience;
mod prefix;
mod recovery;
mod results;
mod sequence;
mod short_way;
mod speculation;
mod times;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use brigade_proto::control::StageRoom;
use brigade_proto::ids::{DeploymentId, Fence, SequenceId, StepId};
use brigade_proto::step::{Drawn, StageTiming, StepFrame, StepKind};
use brigade_shard::plan::pace::Crowd;

use crate::generation::{GenerationError, GenerationEvent, GenerationRequest};

use self::acceptance::Acceptance;
pub use self::active::{Active, Doing};
pub use self::drafter::DraftPipeline;
use self::drafter::Drafter;
use self::groups::Groups;
use self::pages::Pages;
use self::patience::Endings;
use self::prefix::PageKey;
pub use self::recovery::Outlook;
use self::recovery::{Recovery, fits, most_tokens};
use self::sequence::{Expected, Sequence};
pub use self::speculation::Speculation;
pub use self::times::StagePrediction;
use self::times::Times;

/// How long nothing may come back while steps are under way, before the pipeline counts as hung; on top of
/// [`SLOWEST_STEPS`]. Far beyond any step that a user would wait for.
pub const STEP_DEADLINE: Duration = Duration::from_secs(60);
/// How many times the slowest step seen is added to [`STEP_DEADLINE`], for pipelines that are slow but alive.
pub const SLOWEST_STEPS: u32 = 10;
/// After how many failed steps in a row, without a result between them, the pipeline counts as broken; besides two for
/// each stage, since one bad chunk makes those behind it fail too.
const FAILED_STEPS_LIMIT: u32 = 8;
/// Tokens of an answer that a sequence has cache for when it begins, and when it goes on after a replay: enough of them
/// to be worth computing the prompt for.
const ASSURED_TOKENS: usize = 128;

/// What the scheduler may fill: a plan that is active on every stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    /// What frames carry.
    pub fence: Fence,
    /// What is being served.
    pub deployment: DeploymentId,
    /// What the plan predicts of each stage; at least one.
    pub stages: Vec<StagePrediction>,
    /// Which of them would do more together than the machine that they share can.
    pub crowds: Vec<Crowd>,
    /// What every stage can hold.
    pub room: StageRoom,
    /// Whether its results have the bits that those of any other such pipeline have.
    pub exact: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Send a step to the first stage of its deployment.
    Send(StepFrame),
    /// Tell the first stage what steps that were sent to it wait for.
    Tell(Drawn),
    /// Tell a client. After [`GenerationEvent::Done`] or [`GenerationEvent::Failed`] nothing more comes for it.
    Emit {
        /// Which generation.
        sequence: SequenceId,
        /// What happened.
        event: GenerationEvent,
    },
    /// A generation has cache, and begins; or goes on after it gave its own back.
    Admitted {
        /// Which generation.
        sequence: SequenceId,
    },
    /// A step has come home: for statistics.
    Measured(Measured),
    /// What was being computed when the last pipeline was lost is where it was, as far as there is cache for it.
    CaughtUp,
    /// The pipeline does not work as it should: replace the plan. Comes once per pipeline.
    Broken {
        /// Why, for people.
        reason: String,
        /// Whether no stage has said anything: the caller may know which one hangs.
        silent: bool,
    },
    /// The draft model does not work as it should: load it again. Answers go on without it. Comes once per start.
    DraftsBroken {
        /// Why, for people.
        reason: String,
    },
}

/// What a step took.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The step's kind.
    pub kind: StepKind,
    /// Rows computed.
    pub rows: u32,
    /// From sending to the result.
    pub took: Duration,
    /// One entry per stage, in order.
    pub timings: Vec<StageTiming>,
    /// The generations that had a part in it.
    pub sequences: Vec<SequenceId>,
    /// Tokens that a sequence of it had in the cache in the end, on average.
    pub context: u32,
}

impl Measured {
    /// For how long its stages had it, waiting and computing, in microseconds.
    pub fn on_stages_us(&self) -> u32 {
        let each = self.timings.iter().map(|timing| timing.queued_us.saturating_add(timing.computed_us));
        each.fold(0, u32::saturating_add)
    }
}

/// Counts of requests and tokens. Those in the past tense only ever grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Generations that hold cache.
    pub running: u32,
    /// Generations that wait for cache, to begin or to go on.
    pub waiting: u32,
    /// Ended by themselves.
    pub finished: u64,
    /// Ended by their client.
    pub cancelled: u64,
    /// Ended by a failure.
    pub failed: u64,
    /// Prompt tokens computed.
    pub prompt_tokens: u64,
    /// Prompt tokens that were not computed, because others had them in the cache.
    pub prompt_tokens_reused: u64,
    /// Generations that had such tokens.
    pub prefix_hits: u64,
    /// Cache pages kept for prompts to come, and given up for others.
    pub pages_evicted: u64,
    /// Tokens drawn.
    pub generated_tokens: u64,
    /// Drafts sent with tokens, to be computed in the same step.
    pub draft_tokens: u64,
    /// Those of them that were what was drawn.
    pub draft_tokens_accepted: u64,
    /// Those drafts that were the draft model's.
    pub draft_model_tokens: u64,
    /// Those of them that were what was drawn.
    pub draft_model_tokens_accepted: u64,
    /// Cache tokens of the draft model's that sequences have.
    pub draft_cache_tokens_reserved: u32,
    /// Whether the draft model is not asked at the moment, since that would not pay.
    pub draft_model_rests: bool,
    /// Steps sent before their tokens were known.
    pub steps_ahead: u64,
    /// Times that a generation gave its cache back to an older one, to be computed again later.
    pub replayed: u64,
    /// Generations that went on after the loss of their pipeline.
    pub recovered: u64,
    /// Those of them of which some pipeline was not exact, so that their tokens may be others than without the loss.
    pub recovered_inexact: u64,
    /// Times that a request went over to another plan that took over by choice.
    pub moved: u64,
    /// Results dropped because their fence or step was not of this pipeline.
    pub results_fenced: u64,
    /// Cache tokens reserved.
    pub cache_tokens_reserved: u32,
    /// Cache tokens kept for prompts that begin with them, as long as nobody needs their place.
    pub cache_tokens_kept: u32,
}

/// A step on its way.
#[derive(Debug)]
struct Flight {
    kind: StepKind,
    sent: Instant,
    expected: Vec<Expected>,
    /// Whether it runs ahead of another one of the same sequence.
    ahead: bool,
    /// The step under way whose tokens it goes on from.
    after: Option<StepId>,
    /// Whether it went on from another one's tokens.
    chained: bool,
    /// Whether the first stage is told what it draws, and whether a step waits there for that.
    told: bool,
    followed: bool,
    releases: Vec<SequenceId>,
    /// For prefill: with which decode step, counted in those sent, it should be home.
    due: u64,
}

/// The scheduler of one deployment.
#[derive(Debug)]
pub struct Scheduler {
    max_waiting: usize,
    /// Why there is no pipeline, where there is none.
    closed: String,
    pipeline: Option<Pipeline>,
    pages: Pages,
    /// Sequences without cache, oldest first.
    waiting: BTreeMap<SequenceId, Sequence>,
    recovery: Recovery,
    sequences: BTreeMap<SequenceId, Sequence>,
    /// Sequences with prompt left to send, next first. May hold some that have ended meanwhile.
    prefilling: VecDeque<SequenceId>,
    /// Sequences with a token to send, longest ready first. May hold some that have ended meanwhile.
    ready: VecDeque<SequenceId>,
    /// Ended sequences whose release is still to be sent.
    releases: VecDeque<SequenceId>,
    /// Pages of ended sequences whose release has not come home.
    releasing: BTreeMap<SequenceId, Vec<u32>>,
    /// Pages of prompts that are being computed, and for which sequence.
    computing: HashMap<PageKey, SequenceId>,
    flights: BTreeMap<StepId, Flight>,
    next_step: StepId,
    times: Times,
    groups: Groups,
    endings: Endings,
    speculation: Speculation,
    drafter: Drafter,
    /// Whether the short way round may be used.
    short_way: bool,
    /// How often guesses of all sequences were right.
    acceptance: Acceptance,
    /// Decode steps since one had drafts.
    undrafted: u64,
    /// Decode steps sent.
    decodes_sent: u64,
    /// With which decode step, counted in those sent, the newest prefill step should be home.
    newest_due: u64,
    /// Whether prompts rode with decode steps when last a chunk was cut.
    rides: bool,
    /// When the pipeline last gave a sign of life while it had work.
    progress: Instant,
    slowest: Duration,
    failures_in_a_row: u32,
    broken: bool,
    counts: Counts,
    commands: VecDeque<Command>,
}

impl Scheduler {
    /// A scheduler without a pipeline. At most `max_waiting` requests wait for cache; `speculation` says where drafts come
    /// from.
    pub fn new(max_waiting: usize, speculation: Speculation, now: Instant) -> Scheduler {
        Scheduler {
            max_waiting,
            closed: "no plan yet".into(),
            pipeline: None,
            pages: Pages::new(0),
            waiting: BTreeMap::new(),
            recovery: Recovery::new(),
            sequences: BTreeMap::new(),
            prefilling: VecDeque::new(),
            ready: VecDeque::new(),
            releases: VecDeque::new(),
            releasing: BTreeMap::new(),
            computing: HashMap::new(),
            flights: BTreeMap::new(),
            next_step: StepId(1),
            times: Times::new(&[], 1),
            groups: Groups::new(),
            endings: Endings::default(),
            speculation,
            drafter: Drafter::new(),
            short_way: false,
            acceptance: Acceptance::default(),
            undrafted: 0,
            decodes_sent: 0,
            newest_due: 0,
            rides: false,
            progress: now,
            slowest: Duration::ZERO,
            failures_in_a_row: 0,
            broken: false,
            counts: Counts::default(),
            commands: VecDeque::new(),
        }
    }

    /// Counts, as of now.
    pub fn counts(&self) -> Counts {
        Counts {
            running: self.sequences.values().filter(|sequence| !sequence.ended).count() as u32,
            waiting: (self.waiting.len() + self.recovery.stranded()) as u32,
            cache_tokens_reserved: self.pages.reserved_tokens(),
            cache_tokens_kept: self.pages.kept_tokens(),
            draft_model_rests: self.drafter.rests(),
            draft_cache_tokens_reserved: self.drafter.reserved_tokens(),
            pages_evicted: self.counts.pages_evicted + self.pages.evicted(),
            ..self.counts
        }
    }

    /// Whether no generation runs or waits.
    pub fn is_idle(&self) -> bool {
        let runs = self.sequences.values().any(|sequence| !sequence.ended);
        !runs && self.waiting.is_empty() && self.recovery.stranded() == 0
    }

    /// Since when nothing has come back, while steps are under way.
    pub fn silent_since(&self) -> Option<Instant> {
        (!self.flights.is_empty()).then_some(self.progress)
    }

    /// Steps that have been sent and have not come home.
    pub fn steps_in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Begins to fill a pipeline, whose stages hold no sequence. What ran on another one goes on with it.
    pub fn start(&mut self, pipeline: Pipeline, now: Instant) {
        self.suspend("the plan was replaced");
        self.resume(&pipeline, now);
        self.empty_pages(pipeline.room.cache_tokens);
        self.times = Times::crowded(&pipeline.stages, pipeline.crowds.clone(), pipeline.room.step_rows);
        self.groups = Groups::new();
        self.endings = Endings::default();
        self.slowest = self.times.slowest_step(pipeline.room.step_rows);
        self.pipeline = Some(pipeline);
        self.progress = now;
        self.failures_in_a_row = 0;
        self.broken = false;
    }

    /// Gives the pipeline up for good: everything ends, for `reason`.
    pub fn stop(&mut self, reason: &str, now: Instant) {
        self.suspend(reason);
        self.look_out(Outlook::Short { reason: reason.to_owned() }, now);
        self.end_waiting(reason);
    }

    /// Forgets what is under way, and what the stages hold.
    fn forget_steps(&mut self) {
        self.drafter.forget_all();
        self.prefilling.clear();
        self.ready.clear();
        self.releases.clear();
        self.releasing.clear();
        self.computing.clear();
        self.flights.clear();
        self.empty_pages(0);
    }

    /// Begins with an empty cache of `cache_tokens` tokens.
    fn empty_pages(&mut self, cache_tokens: u32) {
        self.counts.pages_evicted += self.pages.evicted();
        self.pages = Pages::new(cache_tokens);
    }

    /// Says why there is no pipeline, for requests that come until there is one.
    pub fn explain(&mut self, reason: &str) {
        if self.closed != reason {
            self.closed = reason.to_owned();
        }
    }

    /// Takes a request in. Its events carry `sequence`, which must be greater than all before it: older requests have
    /// the smaller ids.
    ///
    /// # Errors
    /// Where nothing is served, the request does not fit, or too many are waiting.
    pub fn submit(
        &mut self,
        sequence: SequenceId,
        request: GenerationRequest,
    ) -> Result<(), GenerationError> {
        let room = self.room()?;
        if request.prompt.is_empty() {
            return Err(GenerationError::Interrupted { reason: "the prompt holds no token".into() });
        }
        if !request.drawn.is_empty() && request.drawn.len() >= request.max_tokens as usize {
            return Err(GenerationError::Interrupted {
                reason: "the answer has all its tokens already".into(),
            });
        }
        if !fits(&room, most_tokens(&request)) {
            return Err(GenerationError::ContextExceeded {
                prompt: u32::try_from(request.prompt.len()).unwrap_or(u32::MAX),
                max_tokens: request.max_tokens,
                context: room.context.min(room.cache_tokens),
            });
        }
        let (waiting, mut state) = (self.waiting.len(), Sequence::new(request));
        // What can run at once does not count as waiting.
        if waiting == 0 && self.admit(sequence, &mut state) {
            self.install(sequence, state);
        } else if waiting >= self.max_waiting {
            return Err(GenerationError::Overloaded { waiting, likely_wait: self.likely_wait() });
        } else {
            self.waiting.insert(sequence, state);
        }
        Ok(())
    }

    /// Ends a generation whose client has left. One that has ended already is ignored.
    pub fn cancel(&mut self, sequence: SequenceId) {
        if self.waiting.remove(&sequence).is_some() || self.cancel_stranded(sequence) {
            self.counts.cancelled += 1;
            self.note_caught_up(sequence);
        } else if self.sequences.get(&sequence).is_some_and(|state| !state.ended) {
            self.counts.cancelled += 1;
            self.end(sequence);
        }
    }

    /// The next thing to do. To be asked after every change until it says `None`.
    pub fn poll_command(&mut self, now: Instant) -> Option<Command> {
        if let Some(command) = self.commands.pop_front() {
            return Some(command);
        }
        self.compose(now).or_else(|| self.compose_drafts(now)).map(Command::Send)
    }

    /// Takes in that time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.expire_parked(now);
        self.handle_draft_timeout(now);
        if self.step_timeout().is_some_and(|due| now >= due) {
            let oldest = self.flights.values().map(|flight| flight.sent).min().unwrap_or(now);
            let waited = now.saturating_duration_since(oldest).as_secs();
            self.give_up(format!("a step has had no answer for {waited} s"), true);
        }
    }

    /// When [`Scheduler::handle_timeout`] has something to do next.
    pub fn next_timeout(&self) -> Option<Instant> {
        let drafts = self.drafter.next_timeout().filter(|_| !self.broken);
        [self.step_timeout(), self.recovery_timeout(), drafts].into_iter().flatten().min()
    }

    /// When the pipeline counts as hung.
    fn step_timeout(&self) -> Option<Instant> {
        let oldest = self.flights.values().map(|flight| flight.sent).min().filter(|_| !self.broken)?;
        let patience = STEP_DEADLINE + self.slowest * SLOWEST_STEPS;
        // A single step may be lost while others go on.
        Some((self.progress + patience).min(oldest + patience * 3))
    }

    /// Marks a sequence as ended, and releases it as soon as none of its segments is under way.
    fn end(&mut self, sequence: SequenceId) {
        let Some(state) = self.sequences.get_mut(&sequence) else {
            return;
        };
        state.ended = true;
        self.drafter.forget(sequence);
        let under_way = state.in_flight > 0;
        self.stop_computing(sequence);
        self.note_caught_up(sequence);
        if under_way {
            return;
        }
        let Some(state) = self.sequences.remove(&sequence) else {
            return;
        };
        if state.begun() {
            self.releasing.insert(sequence, state.pages);
            self.releases.push_back(sequence);
        } else {
            self.pages.free(&state.pages);
        }
    }

    fn emit(&mut self, sequence: SequenceId, event: GenerationEvent) {
        self.commands.push_back(Command::Emit { sequence, event });
    }

    fn fail(&mut self, sequence: SequenceId, error: GenerationError) {
        self.emit(sequence, GenerationEvent::Failed(error));
    }

    fn give_up(&mut self, reason: String, silent: bool) {
        if !self.broken {
            self.broken = true;
            self.commands.push_back(Command::Broken { reason, silent });
        }
    }
}

#[cfg(test)]
mod tests;
