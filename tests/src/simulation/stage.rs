//! A shard of the simulated model with its cache, as strict as a real one about pages, positions and sequences.

use std::collections::BTreeMap;

use brigade_proto::control::StageRoom;
use brigade_proto::ids::SequenceId;
use brigade_proto::sampling::Sampling;
use brigade_proto::step::{Hidden, Segment, SegmentOutput, StepFrame, StepResult, WireDtype};
use brigade_shard::cost::PAGE_TOKENS;
use brigade_shard::layers::{LayerRange, Shard};
use bytes::{BufMut, BytesMut};

use super::model;

const PAGE: usize = PAGE_TOKENS as usize;

/// What a step brought.
#[derive(Debug)]
pub enum Output {
    /// For the next stage.
    Pass(StepFrame),
    /// For the coordinator.
    Finish(StepResult),
}

/// A stage.
#[derive(Debug)]
pub struct SimulatedStage {
    shard: Shard,
    room: StageRoom,
    /// What each layer keeps of each position of each page.
    pages: Vec<Vec<Vec<u64>>>,
    sequences: BTreeMap<SequenceId, Sequence>,
}

#[derive(Debug)]
struct Sequence {
    pages: Vec<u32>,
    length: usize,
    sampling: Sampling,
    /// Where the newest token stands that was drawn, and the token.
    drawn: Option<(usize, u32)>,
}

impl SimulatedStage {
    /// A stage that holds nothing yet.
    pub fn new(shard: Shard, room: StageRoom) -> SimulatedStage {
        let pages = vec![Vec::new(); (room.cache_tokens / PAGE_TOKENS) as usize];
        SimulatedStage { shard, room, pages, sequences: BTreeMap::new() }
    }

    /// The layers that it holds.
    pub fn layers(&self) -> LayerRange {
        self.shard.layers
    }

    /// Forgets all sequences.
    pub fn clear(&mut self) {
        *self = SimulatedStage::new(self.shard, self.room);
    }

    /// Sequences that hold cache.
    pub fn held(&self) -> usize {
        self.sequences.len()
    }

    /// Computes a step.
    ///
    /// # Errors
    /// Where it is not a step for what the stage holds.
    pub fn run(&mut self, mut frame: StepFrame) -> Result<Output, String> {
        let rows: usize = frame.segments.iter().map(|segment| segment.tokens.len()).sum();
        if rows > self.room.step_rows as usize {
            return Err(format!("{rows} rows are too many"));
        }
        for released in &frame.release {
            self.sequences.remove(released);
        }
        let arrived: Vec<u64> = match frame.hidden.take() {
            Some(hidden) => hidden.data.chunks_exact(8).map(value).collect(),
            None => frame.segments.iter().flat_map(|s| &s.tokens).map(|token| model::embed(*token)).collect(),
        };
        let mut arrived = arrived.as_slice();
        let mut passed = BytesMut::new();
        let mut outputs = Vec::new();
        for segment in &frame.segments {
            let (inputs, rest) = arrived.split_at_checked(segment.tokens.len()).ok_or("rows are missing")?;
            arrived = rest;
            let made = self.segment(segment, inputs)?;
            made.iter().for_each(|hidden| passed.put_u64_le(*hidden));
            if self.shard.head {
                outputs.push(self.finish(segment, &made));
            }
        }
        if self.sequences.len() > self.room.sequences as usize {
            return Err(format!("{} sequences are too many", self.sequences.len()));
        }
        let StepFrame { fence, deployment, step, kind, .. } = frame;
        if self.shard.head {
            let timings = std::mem::take(&mut frame.timings);
            return Ok(Output::Finish(StepResult { fence, deployment, step, kind, outputs, timings }));
        }
        let (rows, data) = (rows as u32, passed.freeze());
        let hidden = (rows > 0).then_some(Hidden { rows, width: 2, dtype: WireDtype::F32, data });
        Ok(Output::Pass(StepFrame { hidden, ..frame }))
    }

    /// Takes a segment into the cache; what the last layer made of each row.
    fn segment(&mut self, segment: &Segment, inputs: &[u64]) -> Result<Vec<u64>, String> {
        let (id, start) = (segment.sequence, segment.start as usize);
        if let Some(begin) = &segment.begin {
            let sampling = begin.sampling.clone();
            let sequence = Sequence { pages: Vec::new(), length: start, sampling, drawn: None };
            if self.sequences.insert(id, sequence).is_some() {
                return Err(format!("sequence {id} began twice"));
            }
        }
        let own = segment.begin.as_ref().map_or(0, |_| start / PAGE);
        for page in &segment.pages[own.min(segment.pages.len())..] {
            let had = self.sequences.iter().find(|(_, sequence)| sequence.pages.contains(page));
            if let Some((other, _)) = had {
                return Err(format!("page {page} is given to sequence {id}, and {other} has it"));
            }
            self.pages[*page as usize].clear();
        }
        let sequence = self.sequences.get_mut(&id).ok_or(format!("sequence {id} never began"))?;
        sequence.pages.extend(&segment.pages);
        if start > sequence.length {
            return Err(format!("sequence {id} has {} positions, and goes on at {start}", sequence.length));
        }
        sequence.length = start;
        let mut made = Vec::new();
        for input in inputs {
            let position = sequence.length;
            let page_of = |position: usize| sequence.pages.get(position / PAGE).map(|page| *page as usize);
            let before = match position.checked_sub(1).and_then(page_of) {
                Some(page) => Some(self.pages[page].get((position - 1) % PAGE).cloned().ok_or("a hole")?),
                None => None,
            };
            let mut hidden = *input;
            let mut column = Vec::new();
            for (place, layer) in self.shard.layers.iter().enumerate() {
                hidden = model::layer(layer, before.as_ref().map_or(0, |before| before[place]), hidden);
                column.push(hidden);
            }
            let page = page_of(position).ok_or(format!("sequence {id} has no page for {position}"))?;
            self.pages[page].truncate(position % PAGE);
            self.pages[page].push(column);
            made.push(hidden);
            sequence.length += 1;
        }
        Ok(made)
    }

    /// What the last stage says of a segment.
    fn finish(&mut self, segment: &Segment, made: &[u64]) -> SegmentOutput {
        let id = segment.sequence;
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return SegmentOutput { sequence: id, scores: Vec::new(), sampled: Vec::new() };
        };
        let start = segment.start as usize;
        let following = segment.tokens[1..].iter().copied().chain(segment.next_token);
        let scores = if segment.score {
            made.iter().zip(following).map(|(hidden, token)| model::score(*hidden, token)).collect()
        } else {
            Vec::new()
        };
        let drafts = segment.drafts as usize;
        let ahead = drafts == segment.tokens.len();
        let counts = !ahead || sequence.drawn == Some((start, segment.tokens[0]));
        let first = made.len() - drafts - usize::from(!ahead);
        let mut sampled = Vec::new();
        let mut row = first;
        while segment.sample && counts && row < made.len() {
            let position = start + row + 1;
            let token = model::draw(made[row], &sequence.sampling, position);
            sampled.push(model::score(made[row], token));
            sequence.drawn = Some((position, token));
            row += 1;
            if segment.tokens.get(row) != Some(&token) {
                break;
            }
        }
        SegmentOutput { sequence: id, scores, sampled }
    }
}

fn value(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}
