//! Tests of the scheduler: single properties by hand, and all invariants under random events.

mod active;
mod busy;
mod draft_stage;
mod drafts;
mod prefix;
mod recovery;
mod short_way;
mod simulated_pipeline;
mod simulated_stage;
mod speculation;

use std::collections::{BTreeMap, VecDeque};

use brigade_proto::control::CacheDtype;
use brigade_proto::ids::{Epoch, Incarnation};
use brigade_proto::sampling::Sampling;
use brigade_proto::step::{DrawnToken, StepResult};

use self::draft_stage::{DRAFT, DraftStage, draft_pipeline};
use self::simulated_stage::{END, SimulatedStage, drawn};
use super::chunks::MOST_CHUNKS;
use super::groups::MOST_GROUPS;
use super::*;
use crate::generation::{FinishReason, Origin, ReuseScope, TraceContext};
use crate::test_random::Random;

const DEPLOYMENT: DeploymentId = DeploymentId(1);

fn pipeline(stages: u32, cache_tokens: u32) -> Pipeline {
    Pipeline {
        fence: Fence { incarnation: Incarnation(1), epoch: Epoch(1) },
        deployment: DEPLOYMENT,
        stages: vec![StagePrediction { decode_s: 0.010, prefill_s_per_row: 0.002 }; stages as usize],
        room: StageRoom {
            cache_tokens,
            context: 256,
            step_rows: 16,
            sequences: 8,
            cache_dtype: CacheDtype::F16,
        },
        crowds: Vec::new(),
        exact: true,
    }
}

fn request(prompt: u32, max_tokens: u32) -> GenerationRequest {
    GenerationRequest {
        prompt: (0..prompt).map(|i| 100 + i).collect(),
        drawn: Vec::new(),
        sampling: Sampling::default(),
        max_tokens,
        score_prompt: false,
        scope: ReuseScope::default(),
        trace: TraceContext::default(),
    }
}

/// A scheduler with its pipeline, stepped by hand.
struct Bench {
    scheduler: Scheduler,
    stage: SimulatedStage,
    now: Instant,
    events: BTreeMap<SequenceId, Vec<GenerationEvent>>,
    decode: VecDeque<StepFrame>,
    prefill: VecDeque<StepFrame>,
    broken: Option<String>,
    /// Segments that ran ahead of others.
    ahead: u64,
    /// What the first stage was told last of each sequence: a position and the token there.
    told: BTreeMap<SequenceId, (usize, u32)>,
    /// Steps run that came ahead of their tokens.
    followed: u64,
    /// How often what ran was where it had been when a pipeline was lost.
    caught_up: u64,
    /// The draft model's stage, and its steps.
    draft: Option<DraftStage>,
    draft_steps: VecDeque<StepFrame>,
    drafts_broken: Option<String>,
}

impl Bench {
    fn new(pipeline: Pipeline, max_waiting: usize) -> Bench {
        Bench::with(pipeline, max_waiting, Speculation::Off)
    }

    fn with(pipeline: Pipeline, max_waiting: usize, speculation: Speculation) -> Bench {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(max_waiting, speculation, now);
        scheduler.start(pipeline.clone(), now);
        Bench {
            scheduler,
            stage: SimulatedStage::new(pipeline),
            now,
            events: BTreeMap::new(),
            decode: VecDeque::new(),
            prefill: VecDeque::new(),
            broken: None,
            ahead: 0,
            told: BTreeMap::new(),
            followed: 0,
            caught_up: 0,
            draft: None,
            draft_steps: VecDeque::new(),
            drafts_broken: None,
        }
    }

    /// Lets steps be sent ahead of their tokens.
    fn with_short_way(self) -> Bench {
        Bench { scheduler: self.scheduler.with_short_way(true), ..self }
    }

    /// With a draft model whose drafts are right with a chance of `percent`.
    fn with_draft(mut self, percent: u64, cache_tokens: u32) -> Bench {
        let times = vec![StagePrediction { decode_s: 0.001, prefill_s_per_row: 0.000_1 }];
        let draft = draft_pipeline(times, cache_tokens, 256, 16, false);
        self.draft = Some(DraftStage::new(&draft, percent));
        self.scheduler.start_drafts(draft);
        self
    }

    /// The draft model computes its oldest step; one after it that is a decode step may come first.
    fn run_draft(&mut self) -> bool {
        let decode = self.draft_steps.iter().position(|step| step.kind == StepKind::Decode);
        let Some(step) = self.draft_steps.remove(decode.unwrap_or(0)) else {
            return false;
        };
        let result = self.draft.as_mut().expect("there is a draft model").run(&step);
        self.scheduler.handle_result(result, self.now);
        self.poll();
        true
    }

    /// The draft model is lost, with all that it was asked.
    fn lose_draft(&mut self) {
        self.scheduler.stop_drafts();
        self.draft_steps.clear();
        self.draft = None;
        self.poll();
    }

    fn submit(&mut self, id: u64, request: GenerationRequest) -> Result<(), GenerationError> {
        self.stage.expect(SequenceId(id), &request.prompt);
        let result = self.scheduler.submit(SequenceId(id), request);
        self.poll();
        result
    }

    fn cancel(&mut self, id: u64) {
        self.scheduler.cancel(SequenceId(id));
        self.poll();
    }

    /// Carries commands out: steps queue up before the stage.
    fn poll(&mut self) {
        while let Some(command) = self.scheduler.poll_command(self.now) {
            match command {
                Command::Send(step) if step.deployment == DRAFT => self.draft_steps.push_back(step),
                Command::DraftsBroken { reason } => {
                    assert!(
                        self.drafts_broken.replace(reason).is_none(),
                        "told twice that drafts are broken"
                    );
                }
                Command::Send(step) => {
                    let ahead = step.segments.iter().filter(|s| s.drafts as usize == s.tokens.len());
                    self.ahead += ahead.count() as u64;
                    self.queue(step.kind).push_back(step);
                }
                Command::Emit { sequence, event } => self.events.entry(sequence).or_default().push(event),
                Command::Tell(drawn) => {
                    for DrawnToken { sequence, position, token } in drawn.tokens {
                        self.told.insert(sequence, (position as usize, token));
                    }
                }
                Command::Admitted { .. } | Command::Measured(_) => {}
                Command::CaughtUp => self.caught_up += 1,
                Command::Broken { reason, .. } => {
                    assert!(self.broken.replace(reason).is_none(), "told twice that it is broken");
                }
            }
        }
        assert!(self.decode.len() <= MOST_GROUPS + 1, "{} decode steps under way", self.decode.len());
        assert!(self.prefill.len() <= MOST_CHUNKS, "{} prefill steps under way", self.prefill.len());
    }

    fn queue(&mut self, kind: StepKind) -> &mut VecDeque<StepFrame> {
        match kind {
            StepKind::Decode => &mut self.decode,
            StepKind::Prefill => &mut self.prefill,
        }
    }

    /// The stage computes the oldest step of a kind.
    fn run(&mut self, kind: StepKind) -> bool {
        let Some(mut step) = self.queue(kind).pop_front() else {
            return false;
        };
        if step.short_way.follows {
            self.fill(&mut step);
        }
        match self.stage.run(&step) {
            Ok(result) => self.scheduler.handle_result(result, self.now),
            Err(reason) => self.scheduler.handle_failure(DEPLOYMENT, step.step, 0, &reason, self.now),
        }
        self.poll();
        true
    }

    /// Replaces a step's tokens by those that were told, as the first stage does.
    fn fill(&mut self, step: &mut StepFrame) {
        for segment in &mut step.segments {
            let (id, start) = (segment.sequence, segment.start as usize);
            let (position, token) = self.told[&id];
            assert_eq!(position, start, "sequence {id} would wait for ever");
            if let Some((_, drawn)) = self.stage.next.get(&id).filter(|(position, _)| *position == start) {
                assert_eq!(token, *drawn, "sequence {id} goes on from another token");
            }
            segment.tokens = vec![token];
        }
        self.followed += 1;
    }

    /// The oldest step of a kind fails before the stage has done anything for it.
    fn fail(&mut self, kind: StepKind) -> bool {
        let Some(step) = self.queue(kind).pop_front() else {
            return false;
        };
        self.stage.fail(&step);
        self.scheduler.handle_failure(DEPLOYMENT, step.step, 0, "it was meant to", self.now);
        self.poll();
        true
    }

    fn run_all(&mut self) {
        loop {
            while self.run_draft() || self.run(StepKind::Decode) || self.run(StepKind::Prefill) {}
            // Nothing is under way: only the time that drafts are waited for may have to pass.
            let Some(due) = self.scheduler.next_timeout().filter(|_| self.draft.is_some()) else { return };
            self.now = self.now.max(due);
            self.scheduler.handle_timeout(self.now);
            self.poll();
        }
    }

    fn events(&self, id: u64) -> &[GenerationEvent] {
        self.events.get(&SequenceId(id)).map_or(&[], Vec::as_slice)
    }

    fn tokens(&self, id: u64) -> Vec<u32> {
        let token = |event: &GenerationEvent| match event {
            GenerationEvent::Token(drawn) => Some(drawn.score.token),
            _ => None,
        };
        self.events(id).iter().filter_map(token).collect()
    }

    fn scores(&self, id: u64) -> Vec<u32> {
        let scores = |event: &GenerationEvent| match event {
            GenerationEvent::PromptScores(scores) => scores.iter().map(|score| score.token).collect(),
            _ => Vec::new(),
        };
        self.events(id).iter().flat_map(scores).collect()
    }

    fn assert_idle(&self) {
        assert_eq!(self.scheduler.steps_in_flight(), 0);
        assert_eq!(self.scheduler.counts().cache_tokens_reserved, 0);
        if let Some(draft) = &self.draft {
            assert_eq!(self.scheduler.counts().draft_cache_tokens_reserved, 0);
            assert!(draft.held.is_empty(), "the draft model still holds {:?}", draft.held.keys());
            assert_eq!(draft.begun, draft.released);
        }
        assert!(self.stage.held.is_empty(), "the stage still holds {:?}", self.stage.held.keys());
        assert_eq!(
            self.stage.released, self.stage.begun,
            "each time that a sequence begins it is released once"
        );
    }
}

#[test]
fn a_prompt_goes_in_chunks_and_the_answer_follows_token_by_token() {
    let mut bench = Bench::new(pipeline(2, 512), 4);
    bench.submit(7, request(40, 3)).unwrap();
    // Chunks follow each other back to back, and one more waits than there are stages.
    assert_eq!(bench.prefill.iter().map(|s| s.segments[0].start).collect::<Vec<_>>(), [0, 8, 16]);
    assert!(bench.prefill[0].segments[0].begin.is_some() && bench.prefill[1].segments[0].begin.is_none());
    bench.run_all();
    let expected: Vec<u32> = (40..43).map(|position| drawn(SequenceId(7), position)).collect();
    assert_eq!(bench.tokens(7), expected);
    assert_eq!(bench.events(7).last(), Some(&GenerationEvent::Done(FinishReason::Length)));
    bench.assert_idle();
    let counts = bench.scheduler.counts();
    assert_eq!((counts.prompt_tokens, counts.generated_tokens, counts.finished), (40, 3, 1));
}

#[test]
fn an_end_token_ends_the_answer_and_is_its_last_token() {
    let ends =
        (1..).find(|id| drawn(SequenceId(*id), 12) == END && drawn(SequenceId(*id), 11) != END).unwrap();
    let mut bench = Bench::new(pipeline(1, 512), 4);
    let mut wanted = request(11, 20);
    wanted.sampling.end_ids = vec![END];
    bench.submit(ends, wanted).unwrap();
    bench.run_all();
    assert_eq!(bench.tokens(ends).len(), 2);
    assert_eq!(bench.events(ends).last(), Some(&GenerationEvent::Done(FinishReason::EndToken)));
    bench.assert_idle();
}

#[test]
fn every_prompt_token_but_the_first_is_scored_once_across_chunks() {
    let mut bench = Bench::new(pipeline(3, 512), 4);
    for (id, prompt, max_tokens) in [(1, 37, 0), (2, 16, 2), (3, 1, 0), (4, 1, 1)] {
        let wanted = GenerationRequest { score_prompt: true, ..request(prompt, max_tokens) };
        let expected = wanted.prompt[1..].to_vec();
        bench.submit(id, wanted).unwrap();
        bench.run_all();
        assert_eq!(bench.scores(id), expected, "prompt of {prompt}");
        assert_eq!(bench.tokens(id).len(), max_tokens as usize);
        assert_eq!(bench.events(id).last(), Some(&GenerationEvent::Done(FinishReason::Length)));
    }
    bench.assert_idle();
}

#[test]
fn sequences_that_are_ready_share_a_step() {
    let mut bench = Bench::new(pipeline(1, 512), 4);
    bench.submit(1, request(4, 10)).unwrap();
    bench.submit(2, request(4, 10)).unwrap();
    bench.submit(3, request(4, 10)).unwrap();
    bench.submit(4, request(4, 10)).unwrap();
    let sizes = |queue: &VecDeque<StepFrame>| queue.iter().map(|s| s.segments.len()).collect::<Vec<_>>();
    assert_eq!(sizes(&bench.prefill), [1, 1], "one computes, one waits");
    bench.run(StepKind::Prefill);
    // The first decodes already, and the prompts that had to wait share its step.
    assert_eq!((sizes(&bench.decode), sizes(&bench.prefill)), (vec![3], vec![1]));
    while bench.run(StepKind::Prefill) {}
    bench.run(StepKind::Decode);
    assert_eq!(sizes(&bench.decode), [4]);
}

#[test]
fn a_long_prompt_does_not_keep_a_short_one_waiting() {
    let mut bench = Bench::new(pipeline(1, 512), 4);
    bench.submit(1, request(200, 1)).unwrap();
    bench.submit(2, request(5, 1)).unwrap();
    for _ in 0..3 {
        bench.run(StepKind::Prefill);
    }
    assert_eq!(bench.tokens(2).len(), 1, "the short prompt waits for the long one");
}

#[test]
fn decoding_does_not_keep_a_prompt_waiting_for_ever() {
    let mut bench = Bench::new(pipeline(2, 512), 4);
    bench.submit(1, request(4, 200)).unwrap();
    while bench.run(StepKind::Prefill) {}
    bench.submit(2, request(4, 1)).unwrap();
    // The stage prefers decode steps for as long as there are any.
    let mut overtaken = 0;
    while bench.run(StepKind::Decode) {
        overtaken += 1;
    }
    assert!((1..=10).contains(&overtaken), "{overtaken} decode steps went before the prompt");
    bench.run_all();
    assert_eq!((bench.tokens(1).len(), bench.tokens(2).len()), (200, 1));
}

#[test]
fn what_does_not_fit_waits_in_order_and_past_the_bound_is_refused() {
    let mut bench = Bench::new(pipeline(1, 256), 2);
    bench.submit(1, request(100, 28)).unwrap();
    bench.submit(2, request(100, 60)).unwrap();
    bench.submit(3, request(4, 4)).unwrap();
    assert_eq!(bench.scheduler.counts().waiting, 2, "the small request must not overtake the large one");
    // The first one ends at the latest after a prompt of 100 rows at 36 ms for 16, and 28 tokens at 10 ms.
    let refused = bench.submit(4, request(4, 4)).unwrap_err();
    let GenerationError::Overloaded { waiting: 2, likely_wait } = refused else {
        panic!("{refused:?}");
    };
    assert!((0.3..0.6).contains(&likely_wait.as_secs_f64()), "{likely_wait:?}");
    bench.cancel(2);
    assert_eq!(bench.scheduler.counts().waiting, 0);
    bench.run_all();
    assert_eq!((bench.tokens(1).len(), bench.tokens(2).len(), bench.tokens(3).len()), (28, 0, 4));
    bench.assert_idle();
}

#[test]
fn long_limits_do_not_keep_others_out_and_the_youngest_gives_way() {
    let mut bench = Bench::new(pipeline(2, 512), 4);
    for id in 1..=3 {
        bench.submit(id, request(20, 236)).unwrap();
    }
    assert_eq!(bench.scheduler.counts().running, 3, "each could fill half of the cache, but does not yet");
    while bench.scheduler.counts().replayed == 0 {
        assert!(bench.run(StepKind::Decode) || bench.run(StepKind::Prefill));
    }
    let tokens: Vec<usize> = (1..=3).map(|id| bench.tokens(id).len()).collect();
    assert!(tokens.iter().all(|tokens| *tokens > ASSURED_TOKENS), "{tokens:?}");
    let counts = bench.scheduler.counts();
    assert_eq!((counts.running, counts.waiting), (2, 1));
    bench.run_all();
    assert_eq!(
        bench.stage.begun,
        BTreeMap::from([(SequenceId(1), 1), (SequenceId(2), 1), (SequenceId(3), 2)])
    );
    for id in 1..=3 {
        let expected: Vec<u32> = (20..256).map(|position| drawn(SequenceId(id), position)).collect();
        assert_eq!(bench.tokens(id), expected);
        assert_eq!(bench.events(id).last(), Some(&GenerationEvent::Done(FinishReason::Length)));
    }
    assert_eq!(bench.scheduler.counts().prompt_tokens, 60, "a replay computes no prompt for the first time");
    bench.assert_idle();
}

#[test]
fn one_that_gave_way_may_leave_and_is_told_when_the_plan_ends() {
    let parked = || {
        let mut bench = Bench::new(pipeline(1, 320), 4);
        bench.submit(1, request(20, 200)).unwrap();
        bench.submit(2, request(20, 200)).unwrap();
        while bench.scheduler.counts().replayed == 0 {
            assert!(bench.run(StepKind::Decode) || bench.run(StepKind::Prefill));
        }
        bench
    };
    let mut bench = parked();
    bench.cancel(2);
    bench.run_all();
    assert_eq!(bench.scheduler.counts().cancelled, 1);
    bench.assert_idle();
    let mut bench = parked();
    bench.scheduler.stop("w2 was lost", bench.now);
    bench.poll();
    let reason = "w2 was lost".to_owned();
    let interrupted = GenerationEvent::Failed(GenerationError::Interrupted { reason });
    assert_eq!(bench.events(2).last(), Some(&interrupted));
}

#[test]
fn what_can_never_fit_is_refused_at_once() {
    let mut bench = Bench::new(pipeline(1, 128), 2);
    for (prompt, max_tokens) in [(257, 0), (200, 57), (129, 0), (1, u32::MAX)] {
        let error = bench.submit(1, request(prompt, max_tokens)).unwrap_err();
        assert_eq!(error, GenerationError::ContextExceeded { prompt, max_tokens, context: 128 });
    }
    bench.submit(1, request(100, 28)).unwrap();
    assert!(bench.submit(2, request(0, 1)).is_err());
}

#[test]
fn a_cancelled_sequence_is_released_at_once_though_nothing_else_runs() {
    let mut bench = Bench::new(pipeline(2, 512), 2);
    bench.submit(1, request(140, 100)).unwrap();
    assert_eq!(bench.prefill.len(), 3);
    bench.cancel(1);
    // Its chunks are under way: a release now could overtake them.
    assert!(bench.decode.is_empty());
    for _ in 0..3 {
        bench.run(StepKind::Prefill);
    }
    assert!(bench.prefill.is_empty(), "what was not sent never is");
    assert_eq!(bench.decode.len(), 1);
    assert_eq!(
        (bench.decode[0].segments.len(), bench.decode[0].release.as_slice()),
        (0, &[SequenceId(1)][..])
    );
    assert!(bench.scheduler.counts().cache_tokens_reserved > 0);
    bench.run(StepKind::Decode);
    bench.assert_idle();
    assert!(bench.events(1).is_empty());
    assert_eq!(bench.scheduler.counts().cancelled, 1);
}

#[test]
fn a_failed_step_ends_its_sequences_and_its_releases_are_sent_again() {
    let mut bench = Bench::new(pipeline(1, 512), 2);
    bench.submit(1, request(4, 50)).unwrap();
    bench.run(StepKind::Prefill);
    bench.submit(2, request(4, 1)).unwrap();
    // Its prompt rides with the second decode step, and the third brings the release.
    assert!(bench.decode[0].release.is_empty(), "it was on its way before");
    bench.run(StepKind::Decode);
    bench.run(StepKind::Decode);
    assert_eq!(bench.decode[0].release, [SequenceId(2)]);
    bench.fail(StepKind::Decode);
    assert!(matches!(
        bench.events(1).last(),
        Some(GenerationEvent::Failed(GenerationError::Interrupted { reason })) if reason.contains("meant to")
    ));
    assert_eq!(bench.decode[0].release, [SequenceId(1), SequenceId(2)]);
    bench.run_all();
    bench.assert_idle();
    assert_eq!(bench.broken, None);
}

#[test]
fn a_pipeline_that_only_fails_is_broken() {
    let mut bench = Bench::new(pipeline(1, 512), 100);
    for id in 0..60 {
        bench.submit(id, request(4, 4)).unwrap();
    }
    while bench.broken.is_none() && (bench.fail(StepKind::Decode) || bench.fail(StepKind::Prefill)) {}
    assert!(bench.broken.as_ref().is_some_and(|reason| reason.contains("meant to")), "{:?}", bench.broken);
}

#[test]
fn silence_breaks_the_pipeline_after_the_deadline_and_not_before() {
    let mut bench = Bench::new(pipeline(1, 512), 2);
    assert_eq!(bench.scheduler.next_timeout(), None, "an idle pipeline owes nothing");
    bench.submit(1, request(4, 4)).unwrap();
    // The largest step is predicted to take 4 ms, and 2 ms for each of its 16 rows.
    bench.now += STEP_DEADLINE + Duration::from_millis(36) * SLOWEST_STEPS - Duration::from_millis(1);
    bench.scheduler.handle_timeout(bench.now);
    bench.poll();
    assert_eq!(bench.broken, None);
    bench.now += Duration::from_millis(1);
    bench.scheduler.handle_timeout(bench.now);
    bench.poll();
    assert!(bench.broken.is_some());
    assert_eq!(bench.scheduler.next_timeout(), None);
}

#[test]
fn wrong_results_break_the_pipeline_and_foreign_ones_are_dropped() {
    type Change = fn(&mut StepResult);
    let changes: [(Change, bool); 7] = [
        (|r| r.fence.epoch = Epoch(9), false),
        (|r| r.fence.incarnation = Incarnation(9), false),
        (|r| r.deployment = DeploymentId(9), false),
        (|r| r.step = StepId(99), false),
        (|r| r.kind = StepKind::Decode, true),
        (|r| r.outputs.clear(), true),
        (|r| r.outputs[0].sampled.clear(), true),
    ];
    for (change, breaks) in changes {
        let mut bench = Bench::new(pipeline(1, 512), 2);
        bench.submit(1, request(4, 4)).unwrap();
        let step = bench.prefill.pop_front().unwrap();
        let good = bench.stage.run(&step).unwrap();
        let mut bad = good.clone();
        change(&mut bad);
        bench.scheduler.handle_result(bad, bench.now);
        bench.poll();
        assert_eq!(bench.broken.is_some(), breaks);
        assert_eq!(bench.scheduler.counts().results_fenced, u64::from(!breaks));
        assert!(bench.events(1).is_empty());
        if !breaks {
            bench.scheduler.handle_result(good, bench.now);
            bench.poll();
            bench.run_all();
            assert_eq!(bench.tokens(1).len(), 4);
        }
    }
}

#[test]
fn stopping_ends_everything_and_says_why() {
    let mut bench = Bench::new(pipeline(1, 128), 8);
    bench.submit(1, request(100, 28)).unwrap();
    bench.submit(2, request(100, 28)).unwrap();
    bench.scheduler.stop("w2 was lost", bench.now);
    bench.poll();
    let reason = || "w2 was lost".to_owned();
    assert_eq!(bench.events(1), [GenerationEvent::Failed(GenerationError::Interrupted { reason: reason() })]);
    assert_eq!(bench.events(2), [GenerationEvent::Failed(GenerationError::NotReady { reason: reason() })]);
    assert_eq!(bench.submit(3, request(1, 1)), Err(GenerationError::NotReady { reason: reason() }));
    // The stopped plan's results come too late for the next plan.
    let late = bench.prefill.pop_front().unwrap();
    let late = bench.stage.run(&late).unwrap();
    bench.scheduler.start(pipeline(1, 128), bench.now);
    bench.scheduler.handle_result(late, bench.now);
    bench.poll();
    assert_eq!(bench.scheduler.counts().results_fenced, 1);
}

#[test]
fn only_intervals_while_others_wait_count() {
    let mut now = Instant::now();
    let mut endings = Endings::default();
    endings.observe(true, now);
    assert_eq!(endings.mean_s, None, "one end is no interval");
    now += Duration::from_secs(4);
    endings.observe(false, now);
    assert_eq!(endings.mean_s, Some(4.0));
    now += Duration::from_secs(3600);
    endings.observe(true, now);
    assert_eq!(endings.mean_s, Some(4.0), "an hour in which nobody waited");
    now += Duration::from_secs(12);
    endings.observe(true, now);
    assert_eq!(endings.mean_s, Some(5.0));
}

/// Submissions, cancellations, results and failures in any order: positions are sent once and in order (the stage
/// panics otherwise), cache is never reserved twice, every request ends exactly once, and all is free at the end.
#[test]
fn invariants_hold_under_random_events() {
    let (mut replayed, mut replayed_with_failures) = (0, 0);
    let mut followed = 0;
    for seed in 0..120 {
        let mut random = Random::new(seed);
        let stages = 1 + random.below(4) as u32;
        let mut bench = Bench::new(pipeline(stages, 32 * (8 + random.below(12) as u32)), 6);
        if seed % 2 == 1 {
            bench = bench.with_short_way();
        }
        let failures = random.below(3) == 0;
        let long = random.below(2) == 0;
        let mut wanted = BTreeMap::new();
        let mut cancelled = std::collections::BTreeSet::new();
        let mut next = 1;
        for _ in 0..if long { 6000 } else { 1500 } {
            bench.now += Duration::from_millis(random.below(20));
            match random.below(10) {
                0 | 1 => {
                    let (longest, most) = if long { (40, 250) } else { (120, 20) };
                    let prompt = 1 + random.below(longest) as u32;
                    let mut asked = request(prompt, (random.below(most) as u32).min(256 - prompt));
                    asked.score_prompt = random.below(2) == 0;
                    asked.sampling.end_ids = if random.below(2) == 0 { vec![END] } else { Vec::new() };
                    if bench.submit(next, asked.clone()).is_ok() {
                        wanted.insert(next, asked);
                    }
                    next += 1;
                }
                2 if next > 1 => {
                    let id = 1 + random.below(next - 1);
                    if bench.events(id).iter().all(|event| !is_end(event)) && wanted.contains_key(&id) {
                        cancelled.insert(id);
                    }
                    bench.cancel(id);
                }
                3 if failures && random.below(4) == 0 && !bench.prefill.is_empty() => {
                    bench.fail(StepKind::Prefill);
                }
                3..=6 => {
                    bench.run(StepKind::Decode);
                }
                _ => {
                    bench.run(StepKind::Prefill);
                }
            }
            if bench.broken.is_some() {
                break;
            }
        }
        if bench.broken.is_some() {
            assert!(failures, "seed {seed}: {:?}", bench.broken);
            bench.scheduler.stop("it is broken", bench.now);
            bench.poll();
        } else {
            bench.run_all();
            bench.assert_idle();
        }
        followed += bench.followed;
        let times = bench.scheduler.counts().replayed;
        *(if failures { &mut replayed_with_failures } else { &mut replayed }) += times;
        for (id, asked) in &wanted {
            check_ending(&bench, *id, asked, cancelled.contains(id), seed);
        }
    }
    assert!(replayed > 60 && replayed_with_failures > 10, "{replayed} and {replayed_with_failures} replays");
    assert!(followed > 1000, "{followed} steps came ahead of their tokens");
}

fn is_end(event: &GenerationEvent) -> bool {
    matches!(event, GenerationEvent::Done(_) | GenerationEvent::Failed(_))
}

fn check_ending(bench: &Bench, id: u64, asked: &GenerationRequest, cancelled: bool, seed: u64) {
    let what = format!("seed {seed}, sequence {id}: {:?}", bench.events(id));
    let events = bench.events(id);
    let ends = events.iter().filter(|event| is_end(event)).count();
    assert_eq!(ends, usize::from(!cancelled), "{what}");
    let tokens = bench.tokens(id);
    let prompt = asked.prompt.len() as u32;
    for (place, token) in tokens.iter().enumerate() {
        assert_eq!(*token, drawn(SequenceId(id), prompt + place as u32), "{what}");
    }
    match events.last() {
        Some(GenerationEvent::Done(FinishReason::Length)) => {
            assert_eq!(tokens.len(), asked.max_tokens as usize, "{what}");
        }
        Some(GenerationEvent::Done(FinishReason::EndToken)) => {
            assert_eq!(tokens.last(), Some(&END), "{what}");
            assert!(asked.sampling.end_ids.contains(&END), "{what}");
        }
        _ => return,
    }
    let scored = if asked.score_prompt { &asked.prompt[1..] } else { &[] };
    assert_eq!(bench.scores(id), scored, "{what}");
}
