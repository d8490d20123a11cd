//! A stage without a model, for tests: as strict as a real one about positions, pages and sequences.

use std::collections::BTreeMap;

use brigade_proto::ids::SequenceId;
use brigade_proto::step::{Segment, SegmentOutput, StepFrame, StepResult, TokenScore};
use brigade_shard::cost::PAGE_TOKENS;

use crate::scheduler::Pipeline;

const PAGE: usize = PAGE_TOKENS as usize;

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
    /// The pages of these sequences.
    tables: BTreeMap<SequenceId, Vec<u32>>,
    /// The tokens in every page.
    pages: Vec<Vec<u32>>,
    /// How often each sequence began.
    pub(super) begun: BTreeMap<SequenceId, u32>,
    /// How often each sequence was released.
    pub(super) released: BTreeMap<SequenceId, u32>,
    /// How many of these are certain: those behind them are drafts that were not drawn.
    certain: BTreeMap<SequenceId, usize>,
    /// Which token was drawn last, and its position.
    pub(super) next: BTreeMap<SequenceId, (usize, u32)>,
    /// All that was ever said of each sequence, its prompt included.
    said: BTreeMap<SequenceId, Vec<u32>>,
}

/// The token that stands at `position` of a sequence's answer. Of three sequences one says things over and over, with a
/// slip here and there.
pub(super) fn drawn(sequence: SequenceId, position: u32) -> u32 {
    let mut random = crate::test_random::Random::new(sequence.0 << 32 | u64::from(position));
    let slips = random.next().is_multiple_of(16);
    if sequence.0 % 3 == 1 && !slips {
        let place = sequence.0 << 32 | u64::from(position % 11);
        return (crate::test_random::Random::new(place).next() % VOCAB) as u32;
    }
    (random.next() % VOCAB) as u32
}

fn score(token: u32) -> TokenScore {
    TokenScore { token, logprob: -1.0, top: Vec::new() }
}

impl SimulatedStage {
    pub(super) fn new(pipeline: Pipeline) -> SimulatedStage {
        SimulatedStage {
            pages: vec![Vec::new(); (pipeline.room.cache_tokens / PAGE_TOKENS) as usize],
            pipeline,
            held: BTreeMap::new(),
            tables: BTreeMap::new(),
            begun: BTreeMap::new(),
            released: BTreeMap::new(),
            certain: BTreeMap::new(),
            next: BTreeMap::new(),
            said: BTreeMap::new(),
        }
    }

    /// The stages of the next pipeline, which hold nothing. What was said of sequences stays said.
    pub(super) fn anew(self, pipeline: Pipeline) -> SimulatedStage {
        SimulatedStage { said: self.said, ..SimulatedStage::new(pipeline) }
    }

    /// Notes a sequence's prompt: whatever the sequence begins with must be that.
    pub(super) fn expect(&mut self, sequence: SequenceId, prompt: &[u32]) {
        self.said.insert(sequence, prompt.to_vec());
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
            if segment.begin.is_none() && segment.start as usize > length {
                return Err(format!("sequence {} has no position {}", segment.sequence, segment.start));
            }
        }
        for released in &step.release {
            self.tables.remove(released);
            if self.held.remove(released).is_some() {
                *self.released.entry(*released).or_default() += 1;
            }
        }
        let outputs = step.segments.iter().map(|segment| self.segment(segment)).collect();
        for (id, held) in &self.held {
            for (page, tokens) in self.tables[id].iter().zip(held.chunks(PAGE)) {
                let page = &self.pages[*page as usize];
                assert!(page.starts_with(tokens), "sequence {id} has lost {tokens:?} to {page:?}");
            }
        }
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

    /// Fails to compute a step: what it was to write is not there, and what stood there no longer counts.
    pub(super) fn fail(&mut self, step: &StepFrame) {
        for segment in &step.segments {
            if let Some(held) = self.held.get_mut(&segment.sequence) {
                held.truncate(segment.start as usize);
            }
        }
    }

    /// What stands in the pages that a sequence begins with.
    fn shared(&self, segment: &Segment) -> Vec<u32> {
        let (whole, rest) = (segment.start as usize / PAGE, segment.start as usize % PAGE);
        assert_eq!(rest, 0, "sequence {} begins within a page", segment.sequence);
        let pages = segment.pages[..whole].iter().map(|page| &self.pages[*page as usize]);
        pages
            .flat_map(|tokens| {
                assert_eq!(tokens.len(), PAGE, "sequence {} begins with a part of a page", segment.sequence);
                tokens.clone()
            })
            .collect()
    }

    /// Gives a sequence its new pages.
    fn give(&mut self, segment: &Segment) {
        let shared = if segment.begin.is_some() { segment.start as usize / PAGE } else { 0 };
        for page in &segment.pages[shared..] {
            let had = self.tables.iter().find(|(_, pages)| pages.contains(page));
            assert!(had.is_none(), "page {page} was given to {} while {had:?} had it", segment.sequence);
            self.pages[*page as usize].clear();
        }
        self.tables.entry(segment.sequence).or_default().extend(&segment.pages);
    }

    fn segment(&mut self, segment: &Segment) -> SegmentOutput {
        let id = segment.sequence;
        assert!(!segment.tokens.is_empty());
        if segment.begin.is_some() {
            let shared = self.shared(segment);
            assert!(self.held.insert(id, shared).is_none(), "sequence {id} began twice");
            *self.begun.entry(id).or_default() += 1;
        }
        self.give(segment);
        let held = self.held.get_mut(&id).expect("a sequence's first segment must begin it");
        let certain = *self.certain.get(&id).filter(|_| segment.begin.is_none()).unwrap_or(&held.len());
        // What runs ahead goes on from drafts, and counts if the last of them, and its own first token, were drawn.
        let ahead = segment.drafts as usize == segment.tokens.len();
        let start = if ahead { held.len() } else { certain };
        assert_eq!(segment.start as usize, start, "sequence {id} repeats or skips positions");
        let next = self.next.get(&id).copied();
        let counts = !ahead || next == Some((start, segment.tokens[0]));
        held.truncate(start);
        let table = &self.tables[&id];
        for token in &segment.tokens {
            let page = table[held.len() / PAGE];
            let others = self.tables.iter().filter(|(other, _)| **other != id);
            assert!(
                !others.flat_map(|(_, pages)| pages).any(|other| *other == page),
                "page {page} is shared"
            );
            self.pages[page as usize].truncate(held.len() % PAGE);
            self.pages[page as usize].push(*token);
            held.push(*token);
        }
        let following = segment.tokens[1..].iter().copied().chain(segment.next_token);
        let scores = if segment.score { following.map(score).collect() } else { Vec::new() };
        let first = held.len() - segment.drafts as usize + usize::from(ahead);
        let mut sampled = Vec::new();
        let mut goes_on = segment.sample && counts;
        while goes_on {
            let position = first + sampled.len();
            let token = drawn(id, position as u32);
            sampled.push(score(token));
            goes_on = held.get(position) == Some(&token);
            self.next.insert(id, (position, token));
        }
        let certain = if counts { first + sampled.len().saturating_sub(1) } else { certain };
        self.certain.insert(id, certain);
        let said = self.said.entry(id).or_default();
        if said.len() < certain {
            said.extend(&held[said.len()..certain]);
        }
        assert!(said.starts_with(&held[..certain]), "sequence {id} is replayed with other tokens");
        SegmentOutput { sequence: id, scores, sampled }
    }
}
