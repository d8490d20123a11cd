//! Drafts by a second, small model: a deployment of its own, of a single stage, that is asked what follows.
//!
//! It mirrors the sequences that decode (see `mirror`), with a cache of its own, and draws with their sampling and their
//! (seed, position) numbers, so that it guesses at any temperature. Its steps are chained: the stage goes on from what it
//! has drawn without waiting for the coordinator, which hears of every token. What the pipeline draws otherwise truncates
//! the mirror. The pipeline never waits for this model but where that pays, and then for a bounded time; whether it does
//! follows from how often its guesses were right and from the times of both (see `worth`).

mod compose;
mod mirror;
mod worth;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use brigade_proto::ids::{DeploymentId, SequenceId, StepId};
use brigade_proto::step::{StepKind, StepResult};

use super::pages::Pages;
use super::sequence::Sequence;
use super::times::{Observed, Times};
use super::{Command, Pipeline, Scheduler};

use self::mirror::{Mirror, Place};
use self::worth::{Use, Worth};

/// How long a step may have no answer before the draft model counts as lost, on top of [`SLOWEST_STEPS`]: nobody waits
/// for it that long.
pub const DRAFT_DEADLINE: Duration = Duration::from_secs(20);
/// How many times the longest step that can be asked for is added to [`DRAFT_DEADLINE`].
const SLOWEST_STEPS: u32 = 10;

/// A draft model that is active on its worker.
#[derive(Clone, Debug, PartialEq)]
pub struct DraftPipeline {
    /// Its single stage.
    pub pipeline: Pipeline,
    /// Token ids that both models know are below this.
    pub vocabulary: u32,
    /// Whether its worker computes a stage of the pipeline, too.
    pub shares_worker: bool,
}

/// A step on its way.
#[derive(Debug)]
struct Flight {
    kind: StepKind,
    sent: Instant,
    rows: u32,
    /// Whether it goes on from what the one before drew.
    follows: bool,
    places: Vec<Place>,
    releases: Vec<SequenceId>,
}

/// What the draft model is about to say of a sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Coming {
    /// The chance of each draft.
    pub(super) chance: f64,
    /// How many it has said.
    pub(super) here: usize,
}

/// The draft model with what it has been told.
#[derive(Debug)]
pub(super) struct Drafter {
    draft: Option<DraftPipeline>,
    pages: Pages,
    mirrors: BTreeMap<SequenceId, Mirror>,
    /// Mirrors given up whose release is still to be sent.
    releases: VecDeque<SequenceId>,
    /// Pages of mirrors whose release has not come home.
    releasing: BTreeMap<SequenceId, Vec<u32>>,
    flights: BTreeMap<StepId, Flight>,
    next_step: StepId,
    times: Times,
    worth: Worth,
    /// What it is used for at the moment.
    usage: Use,
    /// Whether it has not answered in the time that it was waited for: nobody waits for it until it has.
    late: bool,
    broken: bool,
}

impl Drafter {
    /// Without a draft model.
    pub(super) fn new() -> Drafter {
        Drafter {
            draft: None,
            pages: Pages::new(0),
            mirrors: BTreeMap::new(),
            releases: VecDeque::new(),
            releasing: BTreeMap::new(),
            flights: BTreeMap::new(),
            next_step: StepId(1),
            times: Times::new(&[], 1),
            worth: Worth::default(),
            usage: Use::Rest,
            late: false,
            broken: false,
        }
    }

    fn start(&mut self, draft: DraftPipeline) {
        let room = draft.pipeline.room;
        *self = Drafter {
            pages: Pages::new(room.cache_tokens),
            times: Times::new(&draft.pipeline.stages, room.step_rows),
            next_step: self.next_step,
            worth: Worth::new(),
            draft: Some(draft),
            ..Drafter::new()
        };
    }

    fn stop(&mut self) {
        // Steps go on being counted: what comes home late is told from what is asked next.
        *self = Drafter { next_step: self.next_step, ..Drafter::new() };
    }

    /// Whether results and failures of this deployment are the draft model's.
    pub(super) fn is(&self, deployment: DeploymentId) -> bool {
        self.draft.as_ref().is_some_and(|draft| draft.pipeline.deployment == deployment)
    }

    /// Whether there is a draft model.
    pub(super) fn is_there(&self) -> bool {
        self.draft.is_some() && !self.broken
    }

    /// Whether it answers in time.
    pub(super) fn can_be_waited_for(&self) -> bool {
        self.is_there() && !self.late && matches!(self.usage, Use::Draft | Use::Try)
    }

    /// Whether it is being tried.
    pub(super) fn is_tried(&self) -> bool {
        self.is_there() && self.usage == Use::Try
    }

    /// Whether it is asked about a sequence.
    pub(super) fn is_drafting(&self, id: SequenceId) -> bool {
        self.is_there() && self.mirrors.get(&id).is_some_and(|mirror| !mirror.ended && mirror.wanted > 0)
    }

    /// What it takes to follow a sequence's newest token, as far as it has said, and the chance of each.
    pub(super) fn drafts(&self, id: SequenceId) -> Option<(f64, Vec<u32>)> {
        let mirror = self.mirrors.get(&id).filter(|mirror| !mirror.ended && self.is_there())?;
        Some((self.worth.chance(mirror.rate), mirror.drafts.iter().copied().collect()))
    }

    /// What it can say soon of a sequence.
    pub(super) fn coming(&self, id: SequenceId) -> Option<Coming> {
        let mirror = self.mirrors.get(&id).filter(|mirror| mirror.drafts_soon())?;
        let chance = self.worth.chance(mirror.rate);
        Some(Coming { chance, here: mirror.drafts.len() })
    }

    /// Notes that a sequence's next step waits for `wanted` drafts, at most until `until` said the first time. Says whether it still
    /// does; what has not answered in time is not waited for again until it has.
    pub(super) fn hold(&mut self, id: SequenceId, wanted: usize, until: Instant, now: Instant) -> bool {
        let Some(mirror) = self.mirrors.get_mut(&id) else {
            return false;
        };
        mirror.wanted = mirror.wanted.max(wanted);
        let waits = now < *mirror.held_until.get_or_insert(until);
        if !waits {
            mirror.held_until = None;
            self.late = true;
        }
        waits
    }

    /// Notes that a sequence's next step waits no longer.
    pub(super) fn let_go(&mut self, id: SequenceId) {
        if let Some(mirror) = self.mirrors.get_mut(&id) {
            mirror.held_until = None;
        }
    }

    /// Takes in that the pipeline has drawn tokens for a sequence.
    pub(super) fn note(&mut self, id: SequenceId, sequence: &Sequence) {
        let vocabulary = self.draft.as_ref().map_or(0, |draft| draft.vocabulary);
        let Some(mirror) = self.mirrors.get_mut(&id) else {
            return;
        };
        let known = mirror.note(sequence.tokens(), vocabulary, &mut self.worth);
        if !known {
            self.forget(id);
        }
    }

    /// Forgets a sequence.
    pub(super) fn forget(&mut self, id: SequenceId) {
        let Some(mirror) = self.mirrors.get_mut(&id) else {
            return;
        };
        (mirror.ended, mirror.held_until) = (true, None);
        if mirror.in_flight > 0 {
            return;
        }
        let Some(mirror) = self.mirrors.remove(&id) else {
            return;
        };
        if mirror.begun() {
            self.releasing.insert(id, mirror.pages);
            self.releases.push_back(id);
        } else {
            self.pages.free(&mirror.pages);
        }
    }

    pub(super) fn forget_all(&mut self) {
        let all: Vec<SequenceId> = self.mirrors.keys().copied().collect();
        all.into_iter().for_each(|id| self.forget(id));
    }

    /// Tokens of its cache that sequences have.
    pub(super) fn reserved_tokens(&self) -> u32 {
        self.pages.reserved_tokens()
    }

    /// Whether it is not asked at the moment, since that would not pay.
    pub(super) fn rests(&self) -> bool {
        self.is_there() && matches!(self.usage, Use::Rest | Use::Wait)
    }

    /// When it should have answered at the latest.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let held = self.mirrors.values().filter_map(|mirror| mirror.held_until).min();
        self.step_is_due().into_iter().chain(held).min()
    }

    fn step_is_due(&self) -> Option<Instant> {
        let draft = self.draft.as_ref().filter(|_| !self.broken)?;
        let oldest = self.flights.values().map(|flight| flight.sent).min();
        let slowest = self.times.slowest_step(draft.pipeline.room.step_rows);
        oldest.map(|sent| sent + DRAFT_DEADLINE + slowest * SLOWEST_STEPS)
    }

    fn give_up(&mut self, reason: String) -> Option<Command> {
        if std::mem::replace(&mut self.broken, true) {
            return None;
        }
        self.worth.stop();
        Some(Command::DraftsBroken { reason })
    }

    fn handle_result(
        &mut self,
        result: StepResult,
        sequences: &BTreeMap<SequenceId, Sequence>,
        now: Instant,
    ) -> Result<(), String> {
        let Some(flight) = self.flights.remove(&result.step) else {
            return Ok(());
        };
        let asked = flight.places.iter().map(|place| place.sequence);
        let found = result.outputs.iter().map(|output| output.sequence);
        if result.kind != flight.kind || !asked.eq(found) {
            return Err(format!("its stage sent a wrong result for step {}", result.step));
        }
        self.late = false;
        for released in &flight.releases {
            if let Some(pages) = self.releasing.remove(released) {
                self.pages.free(&pages);
            }
        }
        if !flight.follows && !flight.places.is_empty() {
            let took = now.saturating_duration_since(flight.sent);
            let quiet = self.flights.values().all(|other| other.kind == flight.kind);
            let (kind, rows) = (flight.kind, flight.rows);
            self.times
                .observe(Observed { kind, rows, riding: 0, took, chained: false, quiet }, &result.timings);
        }
        let vocabulary = self.draft.as_ref().map_or(0, |draft| draft.vocabulary);
        for (place, output) in flight.places.iter().zip(&result.outputs) {
            let Some(mirror) = self.mirrors.get_mut(&place.sequence) else {
                continue;
            };
            mirror.in_flight -= 1;
            if mirror.ended {
                self.forget(place.sequence);
                continue;
            }
            if place.samples != (output.sampled.len() == 1) {
                return Err(format!(
                    "its stage drew {} tokens in step {}",
                    output.sampled.len(),
                    result.step
                ));
            }
            let drawn = output.sampled.first().map(|score| score.token);
            let known = sequences.get(&place.sequence).map(Sequence::tokens).unwrap_or_default();
            mirror.take(place, drawn.filter(|token| *token < vocabulary), known, &mut self.worth);
        }
        Ok(())
    }
}

impl Scheduler {
    /// Takes a draft model into service, whose stage holds no sequence.
    pub fn start_drafts(&mut self, draft: DraftPipeline) {
        self.drafter.start(draft);
    }

    /// Goes on without a draft model.
    pub fn stop_drafts(&mut self) {
        self.drafter.stop();
    }

    /// Takes in a result of the draft model's.
    pub(super) fn handle_draft_result(&mut self, result: StepResult, now: Instant) {
        let current = self.drafter.draft.as_ref().is_some_and(|draft| draft.pipeline.fence == result.fence);
        if !current {
            self.counts.results_fenced += 1;
            return;
        }
        if let Err(reason) = self.drafter.handle_result(result, &self.sequences, now) {
            self.give_drafts_up(reason);
        }
    }

    /// Takes in that the draft model's stage could not compute a step: nothing is certain of what it holds.
    pub(super) fn handle_draft_failure(&mut self, step: StepId, reason: &str) {
        if self.drafter.flights.contains_key(&step) {
            self.give_drafts_up(format!("its stage failed to compute a step: {reason}"));
        }
    }

    /// Takes in that time has passed.
    pub(super) fn handle_draft_timeout(&mut self, now: Instant) {
        if self.drafter.step_is_due().is_some_and(|due| now >= due) {
            let oldest = self.drafter.flights.values().map(|flight| flight.sent).min().unwrap_or(now);
            let waited = now.saturating_duration_since(oldest).as_secs();
            self.give_drafts_up(format!("a step has had no answer for {waited} s"));
        }
    }

    fn give_drafts_up(&mut self, reason: String) {
        let command = self.drafter.give_up(reason);
        self.commands.extend(command);
    }
}
