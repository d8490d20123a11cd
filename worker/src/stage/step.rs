//! Running a step frame on a model.

use brigade_proto::control::StageRoom;
use brigade_proto::ids::SequenceId;
use brigade_proto::step::{Hidden, Segment, SegmentOutput, StepFrame, StepResult, WireDtype};
use brigade_shard::cost::PAGE_TOKENS;

use super::StageOutput;
use super::error::StepError;
use super::score::{Outcome, first_drawn, runs_ahead, segment_rows, wanted_rows};
use super::sequences::Sequences;
use crate::backend::{Backend, Batch, Span};
use crate::cache::{Append, CacheLimits, CacheUsage, PageTables};
use crate::model::{Input, StageModel};
use crate::sampler::{self, Sampler};

/// What a [`Stage`](super::Stage) needs, whatever the device.
pub(super) trait Steps: Send {
    fn run(&mut self, frame: StepFrame) -> Result<StageOutput, StepError>;
    fn set_wire(&mut self, wire: WireDtype);
    fn usage(&self) -> CacheUsage;
    fn clear(&mut self);
}

struct Runner<B: Backend> {
    model: StageModel<B>,
    pages: PageTables,
    sequences: Sequences,
    sampler: Sampler,
    wire: WireDtype,
    step_rows: u32,
    /// The step's hidden states as they came, in f32.
    arrived: Vec<f32>,
}

/// Wraps a loaded model.
pub(super) fn boxed<B: Backend + 'static>(model: StageModel<B>, room: &StageRoom) -> Box<dyn Steps> {
    let limits = CacheLimits {
        pages: room.cache_tokens / PAGE_TOKENS,
        sequences: room.sequences,
        context: room.context,
    };
    let sequences = Sequences::new(if model.has_head() { room.cache_tokens } else { 0 });
    Box::new(Runner {
        model,
        pages: PageTables::new(limits),
        sequences,
        sampler: Sampler::default(),
        wire: WireDtype::F32,
        step_rows: room.step_rows,
        arrived: Vec::new(),
    })
}

impl<B: Backend> Steps for Runner<B> {
    fn run(&mut self, mut frame: StepFrame) -> Result<StageOutput, StepError> {
        for &sequence in &frame.release {
            self.release(sequence);
        }
        self.check(&frame)?;
        let appends: Vec<Append<'_>> = frame.segments.iter().map(append).collect();
        let known: Vec<bool> = appends.iter().map(|a| self.pages.tokens(a.sequence).is_some()).collect();
        self.pages.append(&appends)?;
        if self.model.has_head() {
            for segment in &frame.segments {
                self.sequences.append(segment, self.pages.pages(segment.sequence));
            }
        }
        let hidden = frame.hidden.take();
        let result = self.compute(&frame, hidden);
        if result.is_err() {
            // What was written for these rows is of no use; a replay starts where they did.
            for (segment, known) in frame.segments.iter().zip(known) {
                self.pages.truncate(segment.sequence, segment.start);
                self.sequences.truncate(segment.sequence, segment.start);
                if !known {
                    self.release(segment.sequence);
                }
            }
        }
        match result? {
            Computed::Hidden(hidden) => Ok(StageOutput::Pass(StepFrame { hidden, ..frame })),
            Computed::Outputs(outputs) => Ok(StageOutput::Finish(StepResult {
                fence: frame.fence,
                deployment: frame.deployment,
                step: frame.step,
                kind: frame.kind,
                outputs,
                timings: frame.timings,
            })),
        }
    }

    fn set_wire(&mut self, wire: WireDtype) {
        self.wire = wire;
    }

    fn usage(&self) -> CacheUsage {
        self.pages.usage()
    }

    fn clear(&mut self) {
        self.pages.clear();
        self.sequences.clear();
    }
}

/// What a segment wants of the cache.
fn append(segment: &Segment) -> Append<'_> {
    Append {
        sequence: segment.sequence,
        start: segment.start,
        tokens: segment.tokens.len() as u32,
        begin: segment.begin.is_some(),
        pages: &segment.pages,
    }
}

enum Computed {
    Hidden(Option<Hidden>),
    Outputs(Vec<SegmentOutput>),
}

impl<B: Backend> Runner<B> {
    fn release(&mut self, sequence: SequenceId) {
        self.pages.release(sequence);
        self.sequences.release(sequence);
    }

    /// Checks everything that the page tables do not.
    fn check(&self, frame: &StepFrame) -> Result<(), StepError> {
        let vocab = self.model.spec().vocab;
        let rows: usize = frame.segments.iter().map(|segment| segment.tokens.len()).sum();
        if rows > self.step_rows as usize {
            return Err(StepError::TooManyRows { rows, limit: self.step_rows });
        }
        for segment in &frame.segments {
            let sequence = segment.sequence;
            if segment.tokens.is_empty() {
                return Err(StepError::EmptySegment { sequence });
            }
            let mut tokens = segment.tokens.iter().chain(&segment.next_token);
            if let Some(&token) = tokens.find(|&&token| token as usize >= vocab) {
                return Err(StepError::UnknownToken { sequence, token, vocab });
            }
            if !self.model.has_head() {
                continue;
            }
            if let Some(start) = &segment.begin {
                let failed = |source| StepError::Sample { sequence, source };
                sampler::check(&start.sampling, vocab).map_err(failed)?;
            } else if segment.sample && self.sequences.get(sequence).is_none() {
                return Err(StepError::NoSampling { sequence });
            }
        }
        let width = self.model.spec().hidden;
        match (&frame.hidden, self.model.takes_tokens()) {
            (Some(_), true) => Err(StepError::UnexpectedHidden),
            (None, false) if rows > 0 => Err(StepError::NoHidden),
            (Some(hidden), false) if (hidden.rows as usize, hidden.width as usize) != (rows, width) => {
                let (found_rows, found_width) = (hidden.rows, hidden.width);
                Err(StepError::HiddenShape { found_rows, found_width, rows, width })
            }
            _ => Ok(()),
        }
    }

    fn compute(&mut self, frame: &StepFrame, hidden: Option<Hidden>) -> Result<Computed, StepError> {
        let spans = segment_rows(&frame.segments).zip(&frame.segments).map(|(rows, segment)| {
            let start = segment.start as usize;
            // Those given ahead hold nothing yet.
            let pages = (start + rows.len()).div_ceil(PAGE_TOKENS as usize);
            Span { rows, start, pages: self.pages.pages(segment.sequence)[..pages].to_vec() }
        });
        let batch = Batch { spans: spans.collect() };
        // What ran ahead in vain is written again before anything looks at it.
        let in_vain = |segment| runs_ahead(segment) && !self.sequences.begins_with_drawn(segment);
        let useless = self.model.has_head() && frame.segments.iter().all(in_vain);
        if batch.rows() > 0 && !useless {
            self.run_blocks(frame, hidden, &batch)?;
        }
        if self.model.has_head() { self.outputs(frame) } else { self.passed_on(frame, &batch) }
    }

    fn run_blocks(
        &mut self,
        frame: &StepFrame,
        hidden: Option<Hidden>,
        batch: &Batch,
    ) -> Result<(), StepError> {
        if let Some(hidden) = hidden {
            hidden.to_f32(&mut self.arrived)?;
            // The frame's own copy goes before the next one is made, so that there are never more than two.
            drop(hidden);
            self.model.run(Input::Hidden(&self.arrived), batch)?;
        } else {
            let tokens: Vec<u32> = frame.segments.iter().flat_map(|s| s.tokens.iter().copied()).collect();
            self.model.run(Input::Tokens(&tokens), batch)?;
        }
        Ok(())
    }

    fn passed_on(&mut self, frame: &StepFrame, batch: &Batch) -> Result<Computed, StepError> {
        let rows = batch.rows();
        if rows == 0 {
            return Ok(Computed::Hidden(None));
        }
        let (width, wire) = (self.model.spec().hidden, self.wire);
        let hidden = self.model.hidden(|values| {
            let limit = wire.largest();
            if let Some(at) = values.iter().position(|value| value.is_nan() || value.abs() > limit) {
                let (sequence, position) = place(frame, at / width);
                return Err(match values[at] {
                    value if value.is_finite() => {
                        StepError::TooLarge { sequence, position, value, wire: wire.as_str(), limit }
                    }
                    _ => StepError::NotFinite { sequence, position },
                });
            }
            Ok(Hidden::from_f32(values, rows as u32, width as u32, wire)?)
        })??;
        Ok(Computed::Hidden(Some(hidden)))
    }

    fn outputs(&mut self, frame: &StepFrame) -> Result<Computed, StepError> {
        let mut outputs: Vec<SegmentOutput> = frame
            .segments
            .iter()
            .map(|segment| SegmentOutput {
                sequence: segment.sequence,
                scores: Vec::new(),
                sampled: Vec::new(),
            })
            .collect();
        let sequences = &self.sequences;
        let wanted = wanted_rows(&frame.segments, |segment| sequences.begins_with_drawn(segment));
        let rows: Vec<usize> = wanted.iter().map(|wanted| wanted.row).collect();
        let outcome = Outcome { segments: &frame.segments, sequences };
        let sampler = &mut self.sampler;
        self.model.logits(&rows, |index, logits| {
            let wanted = &wanted[index];
            outcome.of_row(sampler, wanted, logits, &mut outputs[wanted.segment])
        })?;
        for (segment, output) in frame.segments.iter().zip(&outputs) {
            if let Some(last) = output.sampled.last() {
                let position = segment.start as usize + first_drawn(segment) + output.sampled.len();
                self.sequences.note_drawn(segment.sequence, position as u32, last.token);
            }
        }
        Ok(Computed::Outputs(outputs))
    }
}

/// The sequence that a row of a step belongs to, and the row's position in it.
fn place(frame: &StepFrame, row: usize) -> (SequenceId, u32) {
    let rows = segment_rows(&frame.segments).zip(&frame.segments);
    for (rows, segment) in rows {
        if rows.contains(&row) {
            return (segment.sequence, segment.start + (row - rows.start) as u32);
        }
    }
    (SequenceId::default(), 0)
}
