//! Building the next step.

use std::collections::BTreeSet;
use std::time::Instant;

use brigade_proto::ids::{SequenceId, StepId};
use brigade_proto::step::{Segment, ShortWay, StepFrame, StepKind};

use super::chunks::{self, Chunking, Decoding};
use super::sequence::{Expected, Sequence, Source};
use super::{Flight, Scheduler};

impl Scheduler {
    /// The next step to send, if there is something to send and room for it in the pipeline. Decode goes before
    /// prefill, so that running streams do not wait for prompts.
    pub(super) fn compose(&mut self, now: Instant) -> Option<StepFrame> {
        if self.broken || self.pipeline.is_none() {
            return None;
        }
        self.admit_waiting();
        let decoding = self.sequences.values().filter(|sequence| sequence.decodes()).count();
        self.choose_way(decoding);
        let groups = self.groups.adapt(&self.times, decoding, self.decodes_sent);
        let held = self.held_back(now);
        let mut segments = self.decode_segments(groups, decoding, &held);
        if !segments.is_empty() {
            segments.extend(self.riding_segments(decoding, &segments));
            self.decodes_sent += 1;
            return self.launch(StepKind::Decode, segments, None, 0, now);
        }
        if let Some(segment) = self.ahead_segment() {
            self.decodes_sent += 1;
            return self.launch(StepKind::Decode, vec![segment], None, 0, now);
        }
        if let Some((segments, after)) = self.following_segments(decoding) {
            self.decodes_sent += 1;
            self.counts.steps_ahead += 1;
            return self.launch(StepKind::Decode, segments, Some(after), 0, now);
        }
        let (segments, due) = self.prefill_segments(decoding);
        if !segments.is_empty() {
            self.newest_due = due;
            return self.launch(StepKind::Prefill, segments, None, due, now);
        }
        // Nothing to compute: cache is freed at once all the same, unless a decode step is about to make room for another.
        let decode_follows = self.flights.values().any(|flight| flight.kind == StepKind::Decode);
        if !self.releases.is_empty() && !decode_follows {
            self.launch(StepKind::Decode, Vec::new(), None, 0, now)
        } else {
            None
        }
    }

    /// Steps under way that compute something of a kind, without those that run ahead of others or wait for them.
    pub(super) fn under_way(&self, kind: StepKind) -> usize {
        let counts = |flight: &&Flight| {
            flight.kind == kind && !flight.expected.is_empty() && !flight.ahead && flight.after.is_none()
        };
        self.flights.values().filter(counts).count()
    }

    /// Whether decode steps wait for the oldest prefill step: stages compute decode steps first, so that a pipeline full
    /// of them would never get to the prompt.
    fn decoding_yields(&self) -> bool {
        let oldest = self.flights.values().find(|flight| flight.kind == StepKind::Prefill);
        // Each group may be one step ahead: what is a moment early need not stop.
        let ahead = self.groups.others() as u64 + 1;
        oldest.is_some_and(|flight| self.decodes_sent >= flight.due + ahead)
    }

    /// A token of each sequence of the next group, with its drafts: of those that are ready and not held back, as many as
    /// keep the groups of one size, and never all only because they happened to be ready together. Those without cache go
    /// first the next time, oldest first.
    fn decode_segments(
        &mut self,
        groups: usize,
        decoding: usize,
        held: &BTreeSet<SequenceId>,
    ) -> Vec<(Segment, Expected)> {
        let free = groups.saturating_sub(self.under_way(StepKind::Decode));
        let Some(step_rows) = self.step_rows().filter(|_| free > 0 && !self.decoding_yields()) else {
            return Vec::new();
        };
        let ready = self.sequences.values().filter(|sequence| sequence.wants_decode()).count() - held.len();
        let size = self.groups.largest(decoding).min(ready.div_ceil(free)).min(step_rows);
        let (mut chosen, mut short, mut kept) = (Vec::new(), BTreeSet::new(), Vec::new());
        while chosen.len() < size {
            let Some(id) = self.ready.pop_front() else { break };
            if !self.sequences.get(&id).is_some_and(Sequence::wants_decode) {
                continue;
            }
            if held.contains(&id) {
                kept.push(id);
            } else if self.grow(id) {
                chosen.push(id);
            } else {
                short.insert(id);
            }
        }
        kept.into_iter().rev().for_each(|id| self.ready.push_front(id));
        short.into_iter().rev().for_each(|id| self.ready.push_front(id));
        let drafts = self.draft(&chosen, step_rows - chosen.len());
        let each = chosen.into_iter().zip(drafts);
        each.filter_map(|(id, drafts)| self.sequences.get_mut(&id)?.next_decode(id, drafts)).collect()
    }

    /// The prompts of which a chunk can go in a step of this kind, and how; `None` where there are none.
    fn next_chunks(&mut self, kind: StepKind, decoding: usize) -> Option<(Vec<SequenceId>, Chunking)> {
        let step_rows = self.step_rows()?;
        let sequences = &self.sequences;
        self.prefilling.retain(|id| sequences.get(id).is_some_and(Sequence::wants_prefill));
        let can = |id: &&SequenceId| sequences.get(id).is_some_and(|sequence| sequence.may_send_chunk(kind));
        let mut sending: Vec<SequenceId> = self.prefilling.iter().filter(can).copied().collect();
        sending.retain(|id| self.settle_prefix(*id));
        if sending.is_empty() {
            return None;
        }
        let prompts = sending.iter().filter_map(|id| self.sequences.get(id));
        let prompt_rows = prompts.map(Sequence::prefill_rows).sum();
        let beside = Decoding { sequences: decoding, rides: self.rides, short_way: self.times.short_way() };
        let chunking = Chunking::choose(&self.times, &self.groups, beside, prompt_rows, step_rows);
        self.rides = chunking.riding > 0;
        Some((sending, chunking))
    }

    /// Chunks of these prompts, of `rows` rows together.
    fn cut(&mut self, sending: &[SequenceId], rows: usize, kind: StepKind) -> Vec<(Segment, Expected)> {
        let prompts = sending.iter().filter_map(|id| self.sequences.get(id));
        let left: Vec<usize> = prompts.map(Sequence::prefill_left).collect();
        let shares = chunks::deal(&left, rows);
        let mut segments = Vec::new();
        for (id, rows) in sending.iter().zip(shares).filter(|(_, rows)| *rows > 0) {
            segments.extend(self.sequences.get_mut(id).map(|sequence| sequence.next_chunk(*id, rows, kind)));
        }
        segments
    }

    /// Chunks that ride with a decode step of `segments`: their rows cost little more than what is read for the others.
    fn riding_segments(
        &mut self,
        decoding: usize,
        segments: &[(Segment, Expected)],
    ) -> Vec<(Segment, Expected)> {
        let taken: usize = segments.iter().map(|(segment, _)| segment.tokens.len()).sum();
        let free = self.step_rows().unwrap_or_default().saturating_sub(taken);
        let Some((sending, chunking)) = self.next_chunks(StepKind::Decode, decoding) else {
            return Vec::new();
        };
        match chunking.riding.min(free) {
            0 => Vec::new(),
            rows => self.cut(&sending, rows, StepKind::Decode),
        }
    }

    /// The next chunk in a step of its own, of one prompt or of several, and when it is due, in decode steps sent.
    fn prefill_segments(&mut self, decoding: usize) -> (Vec<(Segment, Expected)>, u64) {
        let Some((sending, chunking)) = self.next_chunks(StepKind::Prefill, decoding) else {
            return (Vec::new(), 0);
        };
        // What is to ride waits for the next decode step, if there will be one.
        let ride = chunking.riding > 0 && self.under_way(StepKind::Decode) > 0;
        if ride || self.under_way(StepKind::Prefill) >= chunking.under_way {
            return (Vec::new(), 0);
        }
        let segments = self.cut(&sending, chunking.rows, StepKind::Prefill);
        let stages = self.pipeline.as_ref().map_or(1, |pipeline| pipeline.stages.len());
        let most = self.decodes_sent + (stages + chunking.under_way) as u64 * chunking.decodes;
        let due = if self.under_way(StepKind::Prefill) == 0 {
            // On its way alone a chunk lets so many decode steps pass on each stage.
            self.decodes_sent + stages as u64 * chunking.decodes
        } else {
            // Those that follow each other overlap.
            most.min(self.newest_due + chunking.decodes)
        };
        (segments, due)
    }

    pub(super) fn step_rows(&self) -> Option<usize> {
        self.pipeline.as_ref().map(|pipeline| pipeline.room.step_rows as usize)
    }

    fn launch(
        &mut self,
        kind: StepKind,
        segments: Vec<(Segment, Expected)>,
        after: Option<StepId>,
        due: u64,
        now: Instant,
    ) -> Option<StepFrame> {
        let pipeline = self.pipeline.as_ref()?;
        let step = self.next_step;
        self.next_step = StepId(step.0 + 1);
        let (segments, expected): (Vec<Segment>, Vec<Expected>) = segments.into_iter().unzip();
        for (segment, expected) in segments.iter().zip(&expected) {
            let drafts = u64::from(segment.drafts);
            self.counts.draft_tokens += drafts;
            self.counts.draft_model_tokens += if expected.source == Source::Model { drafts } else { 0 };
        }
        let ahead = expected.iter().any(|expected| expected.ahead);
        let releases: Vec<SequenceId> = self.releases.drain(..).collect();
        if self.flights.is_empty() {
            self.progress = now;
        }
        let told = kind == StepKind::Decode && !segments.is_empty() && !ahead && self.times.short_way();
        let flight = Flight {
            kind,
            sent: now,
            expected,
            ahead,
            after,
            chained: false,
            told,
            followed: false,
            releases: releases.clone(),
            due,
        };
        self.flights.insert(step, flight);
        Some(StepFrame {
            fence: pipeline.fence,
            deployment: pipeline.deployment,
            step,
            kind,
            segments,
            release: releases,
            short_way: ShortWay { told, follows: after.is_some() },
            timings: Vec::new(),
            hidden: None,
        })
    }
}
