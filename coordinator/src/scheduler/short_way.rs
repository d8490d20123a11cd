//! Steps sent ahead of their tokens.
//!
//! Where a step's way to the coordinator and back keeps stages waiting, the coordinator sends the next one before it knows
//! what the last one draws: the first stage is told that by the last one (see `brigade_proto::step::ShortWay`). A step that
//! follows another has the same sequences, without those whose answers have room for no more tokens; it is sent as soon as
//! it is among the next so many as the way home takes, so that it is there when its tokens are.
//!
//! That costs the steps that follow an answer's end, computed in vain. So it is done only where stages wait for steps
//! anyway, and nothing else is to be sent: no prompt, no sequence that joins others, and no draft, for which tokens must be
//! known.

use brigade_proto::ids::{SequenceId, StepId};
use brigade_proto::step::{Drawn, DrawnToken, Segment, SegmentOutput, StepKind};
use brigade_shard::plan::pace::SHORT_WAY_WORTHWHILE;

use super::groups::MOST_GROUPS;
use super::sequence::{Expected, Sequence};
use super::{Command, Flight, Scheduler};

/// Most steps sent ahead of a sequence's tokens: a way home of three times a cycle.
const MOST_DEPTH: usize = 4;

impl Scheduler {
    /// Uses the short way round where it pays, or never.
    #[must_use]
    pub fn with_short_way(self, allowed: bool) -> Scheduler {
        Scheduler { short_way: allowed, ..self }
    }

    /// Decides whether steps are to be sent ahead of their tokens, for `decoding` sequences.
    pub(super) fn choose_way(&mut self, decoding: usize) {
        let stages_wait = || {
            let (busy_s, far_s) = self.groups.busy_and_far_round_s(&self.times, decoding);
            far_s > busy_s * SHORT_WAY_WORTHWHILE
        };
        let pays = self.short_way && decoding > 0 && stages_wait();
        self.times.take_short_way(pays);
    }

    /// The next step that follows another one, with that one's number.
    pub(super) fn following_segments(
        &mut self,
        decoding: usize,
    ) -> Option<(Vec<(Segment, Expected)>, StepId)> {
        let under_way = self.flights.values().filter(|flight| flight.kind == StepKind::Decode).count();
        // Groups that are too many end where nothing follows them, and become part of others.
        let too_many = self.under_way(StepKind::Decode) > self.groups.others() + 1;
        if !self.times.short_way() || under_way >= MOST_GROUPS || too_many || self.anything_else_to_send() {
            return None;
        }
        let cycle_s = self.groups.cycle_s(&self.times, decoding);
        let depth = ((self.times.far_wire_s() / cycle_s).ceil() as usize).clamp(1, MOST_DEPTH);
        let told = |flight: &Flight| flight.told && !flight.followed;
        let flights: Vec<StepId> =
            self.flights.iter().filter(|(_, flight)| told(flight)).map(|(step, _)| *step).collect();
        flights.into_iter().find_map(|step| Some((self.follow(step, depth)?, step)))
    }

    fn anything_else_to_send(&self) -> bool {
        let others =
            |sequence: &Sequence| sequence.wants_prefill() || sequence.wants_decode() || sequence.parking;
        self.sequences.values().any(others) || self.under_way(StepKind::Prefill) > 0
    }

    fn follow(&mut self, step: StepId, depth: usize) -> Option<Vec<(Segment, Expected)>> {
        let flight = self.flights.get(&step)?;
        let goes_on =
            |id: &SequenceId| self.sequences.get(id).is_some_and(|sequence| sequence.can_follow(depth));
        let ids: Vec<SequenceId> =
            flight.expected.iter().map(|expected| expected.sequence).filter(goes_on).collect();
        if ids.is_empty() || self.would_draft(&ids) || !ids.iter().all(|id| self.reserve_following(*id)) {
            return None;
        }
        let segments: Vec<(Segment, Expected)> =
            ids.into_iter().filter_map(|id| Some(self.sequences.get_mut(&id)?.next_following(id))).collect();
        let flight = self.flights.get_mut(&step)?;
        flight.followed = true;
        Some(segments)
    }

    /// Whether a step of these sequences would have drafts, were their tokens known.
    fn would_draft(&mut self, ids: &[SequenceId]) -> bool {
        if !self.guesses() {
            return false;
        }
        // What it says is not known before the tokens are that it says it of.
        if ids.iter().any(|id| self.drafter.is_drafting(*id)) {
            return true;
        }
        let chances: Vec<Vec<f64>> = ids.iter().map(|id| self.guess(*id)).collect();
        let room = self.step_rows().unwrap_or_default().saturating_sub(ids.len());
        let (counts, _) = self.best_drafts(&chances, room);
        counts.iter().any(|count| *count > 0)
    }

    /// Whether there are pages for a sequence's next token, which is not known yet; nobody gives way for it.
    fn reserve_following(&mut self, id: SequenceId) -> bool {
        let unknown = self.sequences.get(&id).map_or(0, Sequence::unknown);
        self.reserve(id, unknown) >= unknown
    }

    /// Tells the first stage what the steps wait for that follow `step`, in case that nobody else did: with the tokens that
    /// came of it or, where it failed, with any.
    pub(super) fn tell_followers(
        &mut self,
        step: StepId,
        flight: &Flight,
        outputs: Option<&[SegmentOutput]>,
    ) {
        let Some(pipeline) = self.pipeline.as_ref().filter(|_| flight.followed) else {
            return;
        };
        let token = |(place, expected): (usize, &Expected)| {
            let output = outputs.and_then(|outputs| outputs.get(place));
            let drawn = output.map_or(&[][..], |output| &output.sampled);
            DrawnToken {
                sequence: expected.sequence,
                position: (expected.start + drawn.len().max(1)) as u32,
                token: drawn.last().map_or(0, |score| score.token),
            }
        };
        let tokens = flight.expected.iter().enumerate().map(token).collect();
        let (fence, deployment) = (pipeline.fence, pipeline.deployment);
        self.commands.push_back(Command::Tell(Drawn { fence, deployment, step, tokens }));
    }
}
