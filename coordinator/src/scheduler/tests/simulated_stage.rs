//! A stage without a model, for tests: as strict as a real one about positions, pages and sequences.

use std::collections::BTreeMap;

use brigade_proto::ids::SequenceId;
use brigade_proto::step::{Segment, SegmentOutput, StepFrame, StepResult, TokenScore};
use brigade_shard::cost::PAGE_TOKENS;

use crate::scheduler::Pipeline;

/// What is drawn and never ends a sequence, but [`END`] does.
const VOCAB: u64 = 50;
/// The token that ends sequences which do not ignore it.
pub(super) const END: u32 = 0;

/// A whole pipeline in one.
#[derive(Debug)]
pub(super) struct SimulatedStage {
    pipeline: Pipeline,
    /// The tokens of every sequence that holds cache.
    pub(super) held: BTreeMap<SequenceId, Vec<u32>>,
    /// How often each sequence began.
    pub(super) begun: BTreeMap<SequenceId, u32>,
    /// How often each sequence was released.
    pub(super) released: BTreeMap<SequenceId, u32>,
    /// All that was ever said of each sequence.
    said: BTreeMap<SequenceId, Vec<u32>>,
}

/// The token that stands at `position` of a sequence's answer.
pub(super) fn drawn(sequence: SequenceId, position: u32) -> u32 {
    let mut random = crate::test_random::Random::new(sequence.0 << 32 | u64::from(position));
    (random.next() % VOCAB) as u32
}

fn score(token: u32) -> TokenScore {
    TokenScore { token, logprob: -1.0, top: Vec::new() }
}

impl SimulatedStage {
    pub(super) fn new(pipeline: Pipeline) -> SimulatedStage {
        SimulatedStage {
            pipeline,
            held: BTreeMap::new(),
            begun: BTreeMap::new(),
            released: BTreeMap::new(),
            said: BTreeMap::new(),
        }
    }

    /// Computes a step, and panics where a real stage would lose data.
    ///
    /// # Errors
    /// Where a sequence's earlier chunk has failed: what a real stage answers with `StepFailed`.
    pub(super) fn run(&mut self, step: &StepFrame) -> Result<StepResult, String> {
        assert_eq!((step.fence, step.deployment), (self.pipeline.fence, self.pipeline.deployment));
        let rows: usize = step.segments.iter().map(|segment| segment.tokens.len()).sum();
        assert!(rows <= self.pipeline.room.step_rows as usize, "{rows} rows in one step");
        for segment in &step.segments {
            let length = self.held.get(&segment.sequence).map_or(0, |held| held.len());
            if segment.start as usize > length {
                return Err(format!("sequence {} has no position {}", segment.sequence, segment.start));
            }
        }
        for released in &step.release {
            if self.held.remove(released).is_some() {
                *self.released.entry(*released).or_default() += 1;
            }
        }
        let outputs = step.segments.iter().map(|segment| self.segment(segment)).collect();
        let pages: u32 = self.held.values().map(|held| (held.len() as u32).div_ceil(PAGE_TOKENS)).sum();
        assert!(pages * PAGE_TOKENS <= self.pipeline.room.cache_tokens, "{pages} pages held");
        assert!(self.held.len() <= self.pipeline.room.sequences as usize, "too many sequences");
        Ok(StepResult {
            fence: step.fence,
            deployment: step.deployment,
            step: step.step,
            kind: step.kind,
            outputs,
            timings: Vec::new(),
        })
    }

    fn segment(&mut self, segment: &Segment) -> SegmentOutput {
        let id = segment.sequence;
        assert!(!segment.tokens.is_empty());
        if segment.begin.is_some() {
            assert!(self.held.insert(id, Vec::new()).is_none(), "sequence {id} began twice");
            *self.begun.entry(id).or_default() += 1;
        }
        let held = self.held.get_mut(&id).expect("a sequence's first segment must begin it");
        assert_eq!(segment.start as usize, held.len(), "sequence {id} repeats or skips positions");
        held.extend(&segment.tokens);
        let said = self.said.entry(id).or_default();
        if said.len() < held.len() {
            said.extend(&held[said.len()..]);
        }
        assert!(said.starts_with(held), "sequence {id} is replayed with other tokens");
        let following = segment.tokens[1..].iter().copied().chain(segment.next_token);
        let scores = if segment.score { following.map(score).collect() } else { Vec::new() };
        let position = held.len() as u32;
        SegmentOutput { sequence: id, scores, sampled: segment.sample.then(|| score(drawn(id, position))) }
    }
}
