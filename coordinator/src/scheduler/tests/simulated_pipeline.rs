//! A pipeline in simulated time, for tests: stages that compute one step at a time, decode before prefill, and links with
//! latency, driven by the real scheduler.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use brigade_proto::control::{CacheDtype, StageRoom};
use brigade_proto::ids::{DeploymentId, Epoch, Fence, Incarnation, SequenceId};
use brigade_proto::sampling::Sampling;
use brigade_proto::step::{Drawn, DrawnToken, Segment, StageTiming, StepFrame, StepKind, StepResult};

use super::draft_stage::{DRAFT, DraftStage, draft_pipeline};
use super::simulated_stage::SimulatedStage;
use crate::generation::{GenerationEvent, GenerationRequest, ReuseScope, TraceContext};
use crate::scheduler::{Command, Pipeline, Scheduler, Speculation, StagePrediction};
use crate::test_random::Random;

/// How long a stage takes: milliseconds for any step, and for each row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speed {
    pub(super) decode_ms: (f64, f64),
    pub(super) prefill_ms: (f64, f64),
}

impl Speed {
    fn us(&self, kind: StepKind, rows: usize) -> u64 {
        let (fixed_ms, row_ms) = match kind {
            StepKind::Decode => self.decode_ms,
            StepKind::Prefill => self.prefill_ms,
        };
        ((fixed_ms + row_ms * rows as f64) * 1e3) as u64
    }

    /// How long a step takes: rows of prompts cost as much in a decode step as in one of their own.
    fn of(&self, travelling: &Travelling) -> u64 {
        let riding = match travelling.step.kind {
            StepKind::Decode => travelling.riding(),
            StepKind::Prefill => 0,
        };
        let riding_us = (self.prefill_ms.1 * riding as f64 * 1e3) as u64;
        self.us(travelling.step.kind, travelling.rows() - riding) + riding_us
    }
}

/// A step on its way, with what stages have said of it.
#[derive(Debug)]
struct Travelling {
    step: StepFrame,
    timings: Vec<StageTiming>,
    arrived_us: u64,
}

impl Travelling {
    fn rows(&self) -> usize {
        self.step.segments.iter().map(|segment| segment.tokens.len()).sum()
    }

    /// Those of chunks.
    fn riding(&self) -> usize {
        let chunks = self.step.segments.iter().filter(|segment| {
            !segment.sample || segment.begin.is_some() || (segment.tokens.len() > 1 && segment.drafts == 0)
        });
        chunks.map(|segment| segment.tokens.len()).sum()
    }
}

#[derive(Debug)]
enum Event {
    Asked(Travelling),
    Drafted(Travelling, StepResult),
    Arrives(usize, Travelling),
    Computed(usize, Travelling, StepResult, u64),
    Home(StepResult),
    Told(Drawn),
}

/// A draft model beside the pipeline.
#[derive(Debug)]
struct Draft {
    stage: DraftStage,
    speed: Speed,
    link_us: u64,
    steps: VecDeque<Travelling>,
    computing: bool,
    /// The pipeline's stage on the same worker: both compute one step at a time.
    beside: Option<usize>,
    /// Does not answer.
    hangs: bool,
}

#[derive(Debug)]
struct Stage {
    speed: Speed,
    strict: SimulatedStage,
    decode: VecDeque<Travelling>,
    prefill: VecDeque<Travelling>,
    computing: bool,
    busy_us: u64,
}

/// The pipeline with its scheduler, at a moment of simulated time.
#[derive(Debug)]
pub(super) struct SimulatedPipeline {
    pub(super) scheduler: Scheduler,
    begin: Instant,
    now_us: u64,
    stages: Vec<Stage>,
    /// Latency from the coordinator to the first stage, between stages, and home.
    links_us: Vec<u64>,
    /// By how many percent at most a computation is shorter or longer than its speed says.
    jitter: u64,
    sharing: bool,
    /// Latency from the last stage to the first; without it only the coordinator tells the first what was drawn.
    short_us: Option<u64>,
    /// Steps on the first stage ahead of their tokens.
    ahead: VecDeque<Travelling>,
    /// The newest token of each sequence that the first stage was told, with its position.
    told: BTreeMap<SequenceId, (u32, u32)>,
    draft: Option<Draft>,
    random: Random,
    /// What happens when; the second number keeps the order of what happens at the same time.
    events: BTreeMap<(u64, u64), Event>,
    happened: u64,
    /// When each sequence got its tokens.
    pub(super) tokens_us: BTreeMap<SequenceId, Vec<u64>>,
    /// When each sequence ended.
    pub(super) ended_us: BTreeMap<SequenceId, u64>,
    /// The groups at every step that came home.
    pub(super) groups: Vec<usize>,
    next: u64,
}

impl SimulatedPipeline {
    /// Stages of `speeds`, with a link of `links_ms` before each and one home. The plan predicts every stage's time
    /// wrongly by the factor `prediction`.
    pub(super) fn new(speeds: &[Speed], links_ms: &[f64], prediction: f64) -> SimulatedPipeline {
        SimulatedPipeline::with(speeds, links_ms, prediction, Speculation::Off)
    }

    /// The same with drafts, or without.
    pub(super) fn with(
        speeds: &[Speed],
        links_ms: &[f64],
        prediction: f64,
        speculation: Speculation,
    ) -> SimulatedPipeline {
        assert_eq!(links_ms.len(), speeds.len() + 1, "a link before each stage, and one home");
        let predicted = |speed: &Speed| StagePrediction {
            decode_s: speed.us(StepKind::Decode, 1) as f64 * 1e-6 * prediction,
            prefill_s_per_row: speed.prefill_ms.1 * 1e-3 * prediction,
        };
        let room = StageRoom {
            cache_tokens: 1 << 17,
            context: 8192,
            step_rows: 128,
            sequences: 64,
            cache_dtype: CacheDtype::F16,
        };
        let pipeline = Pipeline {
            crowds: Vec::new(),
            exact: true,
            fence: Fence { incarnation: Incarnation(1), epoch: Epoch(1) },
            deployment: DeploymentId(1),
            stages: speeds.iter().map(predicted).collect(),
            room,
        };
        let stage = |speed: &Speed| Stage {
            speed: *speed,
            strict: SimulatedStage::new(pipeline.clone()),
            decode: VecDeque::new(),
            prefill: VecDeque::new(),
            computing: false,
            busy_us: 0,
        };
        let begin = Instant::now();
        let mut scheduler = Scheduler::new(64, speculation, begin);
        scheduler.start(pipeline.clone(), begin);
        SimulatedPipeline {
            scheduler,
            begin,
            now_us: 0,
            stages: speeds.iter().map(stage).collect(),
            links_us: links_ms.iter().map(|ms| (ms * 1e3) as u64).collect(),
            jitter: 0,
            sharing: false,
            short_us: None,
            ahead: VecDeque::new(),
            told: BTreeMap::new(),
            draft: None,
            random: Random::new(1),
            events: BTreeMap::new(),
            happened: 0,
            tokens_us: BTreeMap::new(),
            ended_us: BTreeMap::new(),
            groups: Vec::new(),
            next: 1,
        }
    }

    /// Lets computations vary by so many percent.
    pub(super) fn with_jitter(self, percent: u64) -> SimulatedPipeline {
        SimulatedPipeline { jitter: percent, ..self }
    }

    /// Lets steps be sent ahead of their tokens, which come to the first stage in `short_ms` where there is a link.
    pub(super) fn with_short_way(self, short_ms: Option<f64>) -> SimulatedPipeline {
        let scheduler = self.scheduler.with_short_way(true);
        SimulatedPipeline { scheduler, short_us: short_ms.map(|ms| (ms * 1e3) as u64), ..self }
    }

    /// With a draft model that guesses right with a chance of `percent`, on a worker of its own or beside a stage.
    pub(super) fn with_draft(
        mut self,
        speed: Speed,
        link_ms: f64,
        percent: u64,
        beside: Option<usize>,
    ) -> SimulatedPipeline {
        let predicted = StagePrediction {
            decode_s: speed.us(StepKind::Decode, 1) as f64 * 1e-6,
            prefill_s_per_row: speed.prefill_ms.1 * 1e-3,
        };
        let draft = draft_pipeline(vec![predicted], 1 << 17, 8192, 128, beside.is_some());
        self.draft = Some(Draft {
            stage: DraftStage::new(&draft, percent),
            speed,
            link_us: (link_ms * 1e3) as u64,
            steps: VecDeque::new(),
            computing: false,
            beside,
            hangs: false,
        });
        self.scheduler.start_drafts(draft);
        self
    }

    /// From now on the draft model does not answer any more.
    pub(super) fn hang_draft(&mut self) {
        self.draft.as_mut().expect("there is a draft model").hangs = true;
    }

    /// Whether a draft model is in use.
    pub(super) fn has_draft(&self) -> bool {
        self.draft.is_some()
    }

    /// Lets prompts share what they have in common: all begin alike.
    pub(super) fn with_sharing(self) -> SimulatedPipeline {
        SimulatedPipeline { sharing: true, ..self }
    }

    /// Submits a request that runs to its limit.
    pub(super) fn submit(&mut self, prompt: u32, max_tokens: u32) -> SequenceId {
        let id = SequenceId(self.next);
        self.next += 1;
        let request = GenerationRequest {
            prompt: (0..prompt).collect(),
            drawn: Vec::new(),
            sampling: Sampling::default(),
            max_tokens,
            score_prompt: false,
            scope: ReuseScope(if self.sharing { 0 } else { id.0 }),
            trace: TraceContext::default(),
        };
        self.stages.iter_mut().for_each(|stage| stage.strict.expect(id, &request.prompt));
        self.scheduler.submit(id, request).expect("the request fits");
        self.poll();
        id
    }

    pub(super) fn cancel(&mut self, id: SequenceId) {
        self.scheduler.cancel(id);
        self.poll();
    }

    pub(super) fn now_us(&self) -> u64 {
        self.now_us
    }

    /// Microseconds that each stage has computed.
    pub(super) fn busy_us(&self) -> Vec<u64> {
        self.stages.iter().map(|stage| stage.busy_us).collect()
    }

    /// Whether no stage holds a sequence and nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        let nothing_held = self.stages.iter().all(|stage| stage.strict.held.is_empty());
        nothing_held && self.events.is_empty() && self.scheduler.steps_in_flight() == 0
    }

    /// Lets `us` microseconds pass.
    pub(super) fn pass(&mut self, us: u64) {
        let end = self.now_us + us;
        loop {
            let due_us = self.hold_due_us().filter(|due_us| *due_us <= end);
            let first = self.events.first_entry().filter(|entry| entry.key().0 <= end);
            match first {
                Some(entry) if due_us.is_none_or(|due_us| entry.key().0 < due_us) => {
                    self.now_us = entry.key().0;
                    let event = entry.remove();
                    self.happen(event);
                }
                _ => {
                    let Some(due_us) = due_us else { break };
                    self.now_us = due_us.max(self.now_us);
                    self.scheduler.handle_timeout(self.now());
                    self.poll();
                }
            }
        }
        self.now_us = end;
    }

    /// When the scheduler has waited long enough for a draft model.
    fn hold_due_us(&self) -> Option<u64> {
        self.draft.as_ref()?;
        let due = self.scheduler.next_timeout()?;
        Some(due.saturating_duration_since(self.begin).as_micros() as u64 + 1)
    }

    /// Lets time pass until a sequence has ended, and says when that was; panics where everything stands still first.
    pub(super) fn pass_until_ended(&mut self, id: SequenceId) -> u64 {
        while !self.ended_us.contains_key(&id) {
            let happens = self.events.keys().next().map(|key| key.0);
            let next = happens.into_iter().chain(self.hold_due_us()).min();
            let next =
                next.unwrap_or_else(|| panic!("nothing happens any more, and sequence {id} has not ended"));
            let next = next.max(self.now_us);
            self.pass(next - self.now_us);
        }
        self.ended_us[&id]
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Asked(mut travelling) => {
                travelling.arrived_us = self.now_us;
                let draft = self.draft.as_mut().expect("there is a draft model");
                draft.steps.push_back(travelling);
                let place = draft.beside;
                self.draft_next();
                place.into_iter().for_each(|place| self.compute_next(place));
            }
            Event::Drafted(travelling, mut result) => {
                let draft = self.draft.as_mut().expect("there is a draft model");
                draft.computing = false;
                let (link_us, place) = (draft.link_us, draft.beside);
                result.timings = travelling.timings;
                self.after(link_us, Event::Home(result));
                place.into_iter().for_each(|place| self.compute_next(place));
                self.draft_next();
            }
            Event::Arrives(0, travelling) if travelling.step.short_way.follows => {
                self.ahead.push_back(travelling);
                self.fill();
            }
            Event::Told(drawn) => {
                for DrawnToken { sequence, position, token } in drawn.tokens {
                    let told = self.told.entry(sequence).or_insert((position, token));
                    *told = (*told).max((position, token));
                }
                self.fill();
            }
            Event::Arrives(place, mut travelling) => {
                travelling.arrived_us = self.now_us;
                let stage = &mut self.stages[place];
                match travelling.step.kind {
                    StepKind::Decode => stage.decode.push_back(travelling),
                    StepKind::Prefill => stage.prefill.push_back(travelling),
                }
                self.compute_next(place);
            }
            Event::Computed(place, travelling, mut result, computed_us) => {
                let stage = &mut self.stages[place];
                (stage.computing, stage.busy_us) = (false, stage.busy_us + computed_us);
                if place + 1 < self.stages.len() {
                    self.after(self.links_us[place + 1], Event::Arrives(place + 1, travelling));
                } else {
                    if let Some(short_us) = self.short_us.filter(|_| travelling.step.short_way.told) {
                        self.after(short_us, Event::Told(drawn_by(&travelling.step, &result)));
                    }
                    result.timings = travelling.timings;
                    self.after(self.links_us[place + 1], Event::Home(result));
                }
                self.compute_next(place);
                self.draft_next();
            }
            Event::Home(result) => {
                self.scheduler.handle_result(result, self.now());
                self.poll();
                self.groups.push(self.scheduler.groups.others() + 1);
            }
        }
    }

    /// Lets the steps set out whose tokens are known.
    fn fill(&mut self) {
        for mut travelling in std::mem::take(&mut self.ahead) {
            let known = |segment: &Segment| {
                let told = self.told.get(&segment.sequence);
                told.filter(|(position, _)| *position == segment.start).map(|(_, token)| *token)
            };
            let tokens: Option<Vec<u32>> = travelling.step.segments.iter().map(known).collect();
            let Some(tokens) = tokens else {
                self.ahead.push_back(travelling);
                continue;
            };
            for (segment, token) in travelling.step.segments.iter_mut().zip(tokens) {
                segment.tokens = vec![token];
            }
            travelling.step.short_way.follows = false;
            self.after(0, Event::Arrives(0, travelling));
        }
    }

    /// The draft model's stage computes its next step, decode steps first.
    fn draft_next(&mut self) {
        let Some(draft) = self.draft.as_mut().filter(|draft| !draft.computing && !draft.hangs) else {
            return;
        };
        if draft.beside.is_some_and(|place| self.stages[place].computing) {
            return;
        }
        let decode = draft.steps.iter().position(|travelling| travelling.step.kind == StepKind::Decode);
        let next = draft.steps.remove(decode.unwrap_or(0));
        let Some(mut travelling) = next else { return };
        draft.computing = true;
        let result = draft.stage.run(&travelling.step);
        let computed_us = draft.speed.of(&travelling);
        travelling.timings.push(StageTiming {
            stage: 0,
            queued_us: (self.now_us - travelling.arrived_us) as u32,
            computed_us: computed_us as u32,
            ..StageTiming::default()
        });
        self.after(computed_us, Event::Drafted(travelling, result));
    }

    fn compute_next(&mut self, place: usize) {
        let drafting =
            self.draft.as_ref().is_some_and(|draft| draft.computing && draft.beside == Some(place));
        let stage = &mut self.stages[place];
        if stage.computing || drafting {
            return;
        }
        let Some(mut travelling) = stage.decode.pop_front().or_else(|| stage.prefill.pop_front()) else {
            return;
        };
        stage.computing = true;
        let result = stage.strict.run(&travelling.step).expect("every step can be computed");
        let us = stage.speed.of(&travelling);
        let percent = 100 - self.jitter + self.random.below(2 * self.jitter + 1);
        let computed_us = us * percent / 100;
        travelling.timings.push(StageTiming {
            stage: place as u32,
            queued_us: (self.now_us - travelling.arrived_us) as u32,
            computed_us: computed_us as u32,
            ..StageTiming::default()
        });
        self.after(computed_us, Event::Computed(place, travelling, result, computed_us));
    }

    fn after(&mut self, us: u64, event: Event) {
        self.happened += 1;
        self.events.insert((self.now_us + us, self.happened), event);
    }

    fn now(&self) -> Instant {
        self.begin + Duration::from_micros(self.now_us)
    }

    fn poll(&mut self) {
        while let Some(command) = self.scheduler.poll_command(self.now()) {
            match command {
                Command::Send(step) if step.deployment == DRAFT => {
                    let link_us = self.draft.as_ref().expect("there is a draft model").link_us;
                    let travelling = Travelling { step, timings: Vec::new(), arrived_us: 0 };
                    self.after(link_us, Event::Asked(travelling));
                }
                Command::DraftsBroken { .. } => {
                    self.scheduler.stop_drafts();
                    self.draft = None;
                }
                Command::Send(step) => {
                    let travelling = Travelling { step, timings: Vec::new(), arrived_us: 0 };
                    self.after(self.links_us[0], Event::Arrives(0, travelling));
                }
                Command::Tell(drawn) => self.after(self.links_us[0], Event::Told(drawn)),
                Command::Emit { sequence, event } => match event {
                    GenerationEvent::Token(_) => {
                        self.tokens_us.entry(sequence).or_default().push(self.now_us);
                    }
                    GenerationEvent::Done(_) => {
                        self.ended_us.insert(sequence, self.now_us);
                    }
                    GenerationEvent::Reused(_) | GenerationEvent::PromptScores(_) => {}
                    GenerationEvent::Failed(error) => panic!("sequence {sequence} failed: {error}"),
                },
                Command::Admitted { .. } | Command::Measured(_) | Command::CaughtUp => {}
                Command::Broken { reason, .. } => panic!("the pipeline broke: {reason}"),
            }
        }
    }
}

/// What the last stage tells the first.
fn drawn_by(step: &StepFrame, result: &StepResult) -> Drawn {
    let tokens = step.segments.iter().zip(&result.outputs).filter_map(|(segment, output)| {
        let token = output.sampled.last()?.token;
        let position = segment.start + output.sampled.len() as u32;
        Some(DrawnToken { sequence: segment.sequence, position, token })
    });
    Drawn { fence: step.fence, deployment: step.deployment, step: step.step, tokens: tokens.collect() }
}
