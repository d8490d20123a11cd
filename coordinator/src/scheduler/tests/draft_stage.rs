//! A draft model's stage without a model, for tests: as strict as a real one about positions and pages.

use std::collections::BTreeMap;

use brigade_proto::control::{CacheDtype, StageRoom};
use brigade_proto::ids::{DeploymentId, Epoch, Fence, Incarnation, SequenceId};
use brigade_proto::step::{Segment, SegmentOutput, StepFrame, StepResult, TokenScore};
use brigade_shard::cost::PAGE_TOKENS;

use super::simulated_stage::drawn;
use crate::scheduler::{DraftPipeline, Pipeline, StagePrediction};
use crate::test_random::Random;

/// The draft model's deployment.
pub(super) const DRAFT: DeploymentId = DeploymentId(2);

/// A draft model with a cache of `cache_tokens` tokens.
pub(super) fn draft_pipeline(
    stages: Vec<StagePrediction>,
    cache_tokens: u32,
    context: u32,
    step_rows: u32,
    shares_worker: bool,
) -> DraftPipeline {
    let fence = Fence { incarnation: Incarnation(1), epoch: Epoch(7) };
    let cache_dtype = CacheDtype::F16;
    let room = StageRoom { cache_tokens, context, step_rows, sequences: 32, cache_dtype };
    let pipeline = Pipeline { fence, deployment: DRAFT, stages, crowds: Vec::new(), room, exact: true };
    DraftPipeline { pipeline, vocabulary: 10_000, shares_worker }
}

/// The stage.
#[derive(Debug)]
pub(super) struct DraftStage {
    pipeline: Pipeline,
    /// The chance of a right draft, in percent.
    percent: u64,
    /// The tokens of every sequence that holds cache.
    pub(super) held: BTreeMap<SequenceId, Vec<u32>>,
    pages: BTreeMap<SequenceId, Vec<u32>>,
    /// What it drew last, by which the next step may be filled in.
    last: BTreeMap<SequenceId, (u32, u32)>,
    /// Sequences begun, and released.
    pub(super) begun: u64,
    pub(super) released: u64,
}

impl DraftStage {
    pub(super) fn new(draft: &DraftPipeline, percent: u64) -> DraftStage {
        DraftStage {
            pipeline: draft.pipeline.clone(),
            percent,
            held: BTreeMap::new(),
            pages: BTreeMap::new(),
            last: BTreeMap::new(),
            begun: 0,
            released: 0,
        }
    }

    /// Computes a step, and panics where a real stage would fail.
    pub(super) fn run(&mut self, step: &StepFrame) -> StepResult {
        assert_eq!((step.fence, step.deployment), (self.pipeline.fence, self.pipeline.deployment));
        for released in &step.release {
            self.held.remove(released).expect("what is released was begun");
            self.pages.remove(released);
            self.released += 1;
        }
        let rows: usize = step.segments.iter().map(|segment| segment.tokens.len()).sum();
        assert!(rows <= self.pipeline.room.step_rows as usize, "{rows} rows in one step");
        let outputs =
            step.segments.iter().map(|segment| self.segment(segment, step.short_way.follows)).collect();
        assert!(self.held.len() <= self.pipeline.room.sequences as usize, "too many sequences");
        StepResult {
            fence: step.fence,
            deployment: step.deployment,
            step: step.step,
            kind: step.kind,
            outputs,
            timings: Vec::new(),
        }
    }

    fn segment(&mut self, segment: &Segment, follows: bool) -> SegmentOutput {
        let id = segment.sequence;
        if segment.begin.is_some() {
            assert!(self.held.insert(id, Vec::new()).is_none(), "sequence {id} began twice");
            self.begun += 1;
        }
        let pages = self.pages.entry(id).or_default();
        pages.extend(&segment.pages);
        let room = pages.len() * PAGE_TOKENS as usize;
        let mut all: Vec<u32> = self.pages.values().flatten().copied().collect();
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "a page was given twice");
        assert!(all.iter().all(|page| page * PAGE_TOKENS < self.pipeline.room.cache_tokens));
        let held = self.held.get_mut(&id).expect("a sequence's first segment must begin it");
        assert!(segment.start as usize <= held.len(), "sequence {id} skips positions");
        held.truncate(segment.start as usize);
        if follows {
            let (position, token) = self.last[&id];
            assert_eq!(position, segment.start, "sequence {id} would wait for ever");
            held.push(token);
        } else {
            held.extend(&segment.tokens);
        }
        assert!(held.len() <= room, "sequence {id} has no pages for {} tokens", held.len());
        assert!(held.len() <= self.pipeline.room.context as usize, "sequence {id} is past the context");
        let sampled = if segment.sample { vec![self.draw(id)] } else { Vec::new() };
        SegmentOutput { sequence: id, scores: Vec::new(), sampled }
    }

    /// What follows: what the pipeline will draw, or something else.
    fn draw(&mut self, id: SequenceId) -> TokenScore {
        let position = self.held[&id].len() as u32;
        let chance = Random::new(id.0 << 33 | u64::from(position)).below(100);
        let token = drawn(id, position) + if chance < self.percent { 0 } else { 60 };
        self.last.insert(id, (position, token));
        TokenScore { token, logprob: 0.0, top: Vec::new() }
    }
}
