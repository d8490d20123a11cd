//! What the draft model is asked next.

use std::collections::BTreeMap;
use std::time::Instant;

use brigade_proto::ids::{SequenceId, StepId};
use brigade_proto::step::{Segment, ShortWay, StepFrame, StepKind};

use super::mirror::{Mirror, Place};
use super::worth::{Terms, Use};
use super::{Drafter, Flight};
use crate::scheduler::pages::Pages;
use crate::scheduler::sequence::Sequence;
use crate::scheduler::speculation::{LEAST_CHANCE, MOST_DRAFTS, PROBE_DRAFTS};
use crate::scheduler::{ASSURED_TOKENS, Scheduler};

/// Most tokens that are made up for beside drafting; more go as a prompt does, behind what others wait for.
pub(super) const CATCH_UP: usize = 16;
/// The least answer that is worth computing a prompt for a second time.
const LEAST_ANSWER: usize = 8;
/// Most drafts of a sequence that the pipeline has not verified.
const MOST_COMING: usize = 2 * MOST_DRAFTS;
/// Least decode steps under way, so that the stage goes from one to the next.
const LEAST_STEPS: usize = 2;
/// Most decode steps under way: when drafts turn out to be wrong, what is right waits behind these.
const MOST_STEPS: usize = 8;
/// Most prefill steps under way.
const MOST_CHUNKS: usize = 2;

impl Scheduler {
    /// The draft model's next step, if there is something to ask and room for it.
    pub(in crate::scheduler) fn compose_drafts(&mut self, now: Instant) -> Option<StepFrame> {
        if self.pipeline.is_none() || self.drafter.draft.is_none() || self.drafter.broken {
            return None;
        }
        self.want_drafts(now);
        let (kind, follows, segments) = self.drafter.next_segments(&self.sequences);
        let releases = !self.drafter.releases.is_empty() && self.drafter.flights.is_empty();
        if segments.is_empty() && !releases {
            return None;
        }
        self.drafter.launch(kind, follows, segments, now)
    }

    /// Says of each sequence how many drafts it should have.
    fn want_drafts(&mut self, now: Instant) {
        let terms = self.draft_terms();
        let mut worth = self.drafter.worth;
        let usage = worth.judge(|chance| self.draft_gain(&terms, chance), now);
        self.drafter.worth = worth;
        self.drafter.usage = usage;
        if usage == Use::Rest {
            return self.drafter.forget_all();
        }
        let ids: Vec<SequenceId> = self.sequences.keys().copied().collect();
        for id in ids {
            let Some(sequence) = self.sequences.get(&id) else { continue };
            if self.drafter.mirrors.contains_key(&id) || self.drafter.mirror(id, sequence) {
                let wanted = self.wanted_drafts(id, &terms, usage);
                self.drafter.mirrors.entry(id).and_modify(|mirror| mirror.wanted = wanted);
            }
        }
    }

    /// How many drafts a sequence should have.
    fn wanted_drafts(&self, id: SequenceId, terms: &Terms, usage: Use) -> usize {
        let (Some(sequence), Some(mirror)) = (self.sequences.get(&id), self.drafter.mirrors.get(&id)) else {
            return 0;
        };
        let left = sequence.tokens_left().saturating_sub(1);
        match usage {
            Use::Wait | Use::Rest => return 0,
            Use::Try => return left.min(if self.probe_is_due() { PROBE_DRAFTS } else { 1 }),
            Use::Draft => {}
        }
        if !sequence.decodes() || sequence.guesses_better() {
            return left.min(1);
        }
        let chance = self.drafter.worth.chance(mirror.rate);
        let depth = |here| self.draft_depth(terms, chance, MOST_DRAFTS, here).drafts;
        let waited_for = if sequence.wants_decode() { depth(mirror.drafts.len()) } else { 0 };
        let useful = depth(MOST_DRAFTS).min(if terms.apart { MOST_DRAFTS } else { terms.free });
        // One more stands where the pipeline draws behind drafts that are right.
        let meanwhile = if useful > 0 { sequence.drafted() + useful + 1 } else { 0 };
        let wanted = waited_for.max(meanwhile);
        let likely = (LEAST_CHANCE.ln() / chance.min(0.999).ln()) as usize;
        wanted.min(likely.max(1)).min(MOST_COMING).min(left)
    }
}

impl Drafter {
    /// Begins to mirror a sequence, if it is worth that and there is room.
    fn mirror(&mut self, id: SequenceId, sequence: &Sequence) -> bool {
        let Some(draft) = &self.draft else {
            return false;
        };
        let (room, tokens) = (draft.pipeline.room, sequence.tokens());
        let places = self.mirrors.len() + self.releasing.len();
        let pages = Pages::needed(tokens.len() + ASSURED_TOKENS.min(sequence.tokens_left()));
        let fits = places < room.sequences as usize
            && !self.releasing.contains_key(&id)
            && pages <= self.pages.free_count()
            && tokens.len() + LEAST_ANSWER < room.context as usize;
        let worth_it = !sequence.ended && sequence.tokens_left() >= LEAST_ANSWER;
        if !fits || !worth_it || tokens.iter().any(|token| *token >= draft.vocabulary) {
            return false;
        }
        self.mirrors.insert(id, Mirror::new(sequence, draft.vocabulary));
        true
    }

    /// The segments of the next step: tokens that the pipeline has drawn before those that go on from drafts, and both
    /// before prompts.
    fn next_segments(
        &mut self,
        sequences: &BTreeMap<SequenceId, Sequence>,
    ) -> (StepKind, bool, Vec<(Segment, Place)>) {
        let decodes = self.flights.values().filter(|flight| flight.kind == StepKind::Decode).count();
        let chunks = self.flights.len() - decodes;
        let (step_s, _) = self.times.sum_and_slowest(StepKind::Decode, 1.0);
        let steps = (self.times.wire_s() / step_s).ceil() as usize + 1;
        let room = self.draft.as_ref().map_or(1, |draft| draft.pipeline.room.step_rows as usize);
        let mut segments = Vec::new();
        if decodes < MOST_STEPS {
            let near = |mirror: &Mirror| (1..=CATCH_UP).contains(&mirror.behind());
            segments = self.known_segments(sequences, StepKind::Decode, room, near);
        }
        if segments.is_empty() && decodes < steps.clamp(LEAST_STEPS, MOST_STEPS) {
            let ids = self.ready(StepKind::Decode, Mirror::can_follow);
            for id in ids.into_iter().take(room) {
                segments.extend(self.mirrors.get_mut(&id).map(|mirror| mirror.next_following(id)));
            }
            if !segments.is_empty() {
                return (StepKind::Decode, true, segments);
            }
        }
        if segments.is_empty() && chunks < MOST_CHUNKS {
            let far = |mirror: &Mirror| mirror.behind() > CATCH_UP;
            segments = self.known_segments(sequences, StepKind::Prefill, room, far);
            if !segments.is_empty() {
                return (StepKind::Prefill, false, segments);
            }
        }
        (StepKind::Decode, false, segments)
    }

    /// Segments of known tokens, as far as they go into a step of `room` rows.
    fn known_segments(
        &mut self,
        sequences: &BTreeMap<SequenceId, Sequence>,
        kind: StepKind,
        mut room: usize,
        which: impl Fn(&Mirror) -> bool,
    ) -> Vec<(Segment, Place)> {
        let mut segments = Vec::new();
        for id in self.ready(kind, which) {
            let (Some(mirror), Some(sequence)) = (self.mirrors.get_mut(&id), sequences.get(&id)) else {
                continue;
            };
            let rows = mirror.behind().min(room);
            if rows > 0 {
                segments.push(mirror.next_known(id, sequence.tokens(), rows, kind));
                room -= rows;
            }
        }
        segments
    }

    /// Mirrors that a segment of a kind can be sent of, with pages for it. One that there are no pages for is given up.
    fn ready(&mut self, kind: StepKind, which: impl Fn(&Mirror) -> bool) -> Vec<SequenceId> {
        let wants = |mirror: &Mirror| mirror.wants_draft() && mirror.may_send(kind) && which(mirror);
        let ids: Vec<SequenceId> =
            self.mirrors.iter().filter(|(_, mirror)| wants(mirror)).map(|(id, _)| *id).collect();
        ids.into_iter().filter(|id| self.grow(*id)).collect()
    }

    fn grow(&mut self, id: SequenceId) -> bool {
        let context = self.draft.as_ref().map_or(0, |draft| draft.pipeline.room.context as usize);
        let Some(mirror) = self.mirrors.get_mut(&id) else {
            return false;
        };
        if mirror.end() >= context {
            return false;
        }
        while mirror.pages.len() < mirror.pages_needed() {
            let Some(page) = self.pages.take() else {
                self.forget(id);
                return false;
            };
            mirror.pages.push(page);
        }
        true
    }

    fn launch(
        &mut self,
        kind: StepKind,
        follows: bool,
        segments: Vec<(Segment, Place)>,
        now: Instant,
    ) -> Option<StepFrame> {
        let pipeline = &self.draft.as_ref()?.pipeline;
        let step = self.next_step;
        self.next_step = StepId(step.0 + 1);
        let (segments, places): (Vec<Segment>, Vec<Place>) = segments.into_iter().unzip();
        let rows = segments.iter().map(|segment| segment.tokens.len() as u32).sum();
        let releases: Vec<SequenceId> = self.releases.drain(..).collect();
        let told = kind == StepKind::Decode && !segments.is_empty();
        let flight = Flight { kind, sent: now, rows, follows, places, releases: releases.clone() };
        let frame = StepFrame {
            fence: pipeline.fence,
            deployment: pipeline.deployment,
            step,
            kind,
            segments,
            release: releases,
            short_way: ShortWay { told, follows },
            timings: Vec::new(),
            hidden: None,
        };
        self.flights.insert(step, flight);
        Some(frame)
    }
}
