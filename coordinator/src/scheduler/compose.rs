//! Building the next step.

use std::collections::BTreeSet;
use std::time::Instant;

use brigade_proto::ids::{SequenceId, StepId};
use brigade_proto::step::{Segment, StepFrame, StepKind};

use super::sequence::{Expected, Sequence};
use super::{Flight, OVERTAKING_PER_STAGE, Pipeline, Scheduler};

impl Scheduler {
    /// The next step to send, if there is something to send and room for it in the pipeline. Decode goes before
    /// prefill, so that running streams do not wait for prompts.
    pub(super) fn compose(&mut self, now: Instant) -> Option<StepFrame> {
        let pipeline = self.pipeline.filter(|_| !self.broken)?;
        self.admit_waiting();
        if self.has_room(StepKind::Decode, &pipeline) {
            let segments = self.decode_segments(&pipeline);
            if !segments.is_empty() {
                return Some(self.launch(StepKind::Decode, segments, &pipeline, now));
            }
        }
        if self.has_room(StepKind::Prefill, &pipeline) {
            let segments = self.prefill_segments(&pipeline);
            if !segments.is_empty() {
                return Some(self.launch(StepKind::Prefill, segments, &pipeline, now));
            }
        }
        // Nothing to compute: cache is freed at once all the same.
        let release_alone = !self.releases.is_empty() && self.has_room(StepKind::Decode, &pipeline);
        release_alone.then(|| self.launch(StepKind::Decode, Vec::new(), &pipeline, now))
    }

    fn has_room(&self, kind: StepKind, pipeline: &Pipeline) -> bool {
        let under_way = self.flights.values().filter(|flight| flight.kind == kind).count();
        let overtaking = kind == StepKind::Decode
            && self.flights.values().any(|flight| {
                flight.kind == StepKind::Prefill && flight.overtaken >= OVERTAKING_PER_STAGE * pipeline.stages
            });
        under_way < pipeline.stages as usize && !overtaking
    }

    /// A token of each sequence that is ready and has cache for it. Those without go first the next time, oldest first.
    fn decode_segments(&mut self, pipeline: &Pipeline) -> Vec<(Segment, Expected)> {
        let (mut segments, mut short) = (Vec::new(), BTreeSet::new());
        while segments.len() < pipeline.room.step_rows as usize {
            let Some(id) = self.ready.pop_front() else { break };
            if !self.sequences.get(&id).is_some_and(Sequence::wants_decode) {
                continue;
            }
            if self.grow(id) {
                segments.extend(self.sequences.get_mut(&id).and_then(|sequence| sequence.next_decode(id)));
            } else {
                short.insert(id);
            }
        }
        short.into_iter().rev().for_each(|id| self.ready.push_front(id));
        segments
    }

    /// A chunk of each sequence in turn while rows are left; who has more to send goes to the end of the line, so that
    /// a short prompt does not wait for all of a long one.
    fn prefill_segments(&mut self, pipeline: &Pipeline) -> Vec<(Segment, Expected)> {
        let mut segments = Vec::new();
        let mut rows_left = pipeline.room.step_rows as usize;
        for _ in 0..self.prefilling.len() {
            if rows_left == 0 {
                break;
            }
            let Some(id) = self.prefilling.pop_front() else {
                break;
            };
            let Some(sequence) = self.sequences.get_mut(&id).filter(|sequence| sequence.wants_prefill())
            else {
                continue;
            };
            let rows = rows_left.min(pipeline.prefill_chunk as usize);
            let (segment, expected) = sequence.next_chunk(id, rows);
            rows_left -= segment.tokens.len();
            if sequence.wants_prefill() {
                self.prefilling.push_back(id);
            }
            segments.push((segment, expected));
        }
        segments
    }

    fn launch(
        &mut self,
        kind: StepKind,
        segments: Vec<(Segment, Expected)>,
        pipeline: &Pipeline,
        now: Instant,
    ) -> StepFrame {
        let step = self.next_step;
        self.next_step = StepId(step.0 + 1);
        let (segments, expected): (Vec<_>, Vec<_>) = segments.into_iter().unzip();
        let releases: Vec<SequenceId> = self.releases.drain(..).collect();
        if self.flights.is_empty() {
            self.progress = now;
        }
        self.flights
            .insert(step, Flight { kind, sent: now, expected, releases: releases.clone(), overtaken: 0 });
        StepFrame {
            fence: pipeline.fence,
            deployment: pipeline.deployment,
            step,
            kind,
            segments,
            release: releases,
            timings: Vec::new(),
            hidden: None,
        }
    }
}
