//! What becomes of generations when their pipeline is gone.
//!
//! All their tokens are here, so nothing is lost with it: those that ran go back to those that wait, oldest first, and are
//! replayed on the next pipeline from their prompt and what was drawn. Neither tokens nor the scores of a prompt are told
//! twice, and what the old pipeline still sends is fenced. While no plan can be made they are parked, for a time that the
//! caller states; what runs or waits then ends with the reason. So does, after that time, what the next pipeline has no
//! room for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use brigade_proto::control::StageRoom;
use brigade_proto::ids::SequenceId;

use super::pages::Pages;
use super::sequence::Sequence;
use super::{Command, Pipeline, Scheduler};
use crate::generation::{GenerationError, GenerationRequest};

/// After so many pipelines lost in a row while it was being computed, without a token between them, a generation ends:
/// it may be what they are lost by.
const FRUITLESS_LIMIT: u32 = 3;
/// How long generations are parked where no plan can be made, unless told otherwise: machines restart in this time.
const DEFAULT_PARK: Duration = Duration::from_secs(120);

/// What is known of the next pipeline while there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// A plan is on its way. What was served goes on with it, and requests wait for it.
    Coming,
    /// None can be made as things are.
    Short {
        /// What is missing, for people.
        reason: String,
    },
}

/// Generations between two pipelines.
#[derive(Debug)]
pub(super) struct Recovery {
    /// How long they wait where no plan can be made.
    park: Duration,
    outlook: Outlook,
    /// Since when no plan could be made, with plans that came to nothing between; `None` where one serves.
    parked_since: Option<Instant>,
    /// What the newest pipeline could hold; `None` before the first.
    last_room: Option<StageRoom>,
    /// Those that this pipeline has no room for, and since when.
    stranded: BTreeMap<SequenceId, (Sequence, Instant)>,
    /// Those that were being computed when a pipeline was lost, until they are where they were.
    behind: BTreeSet<SequenceId>,
}

impl Recovery {
    pub(super) fn new() -> Recovery {
        Recovery {
            park: DEFAULT_PARK,
            outlook: Outlook::Coming,
            parked_since: None,
            last_room: None,
            stranded: BTreeMap::new(),
            behind: BTreeSet::new(),
        }
    }

    pub(super) fn stranded(&self) -> usize {
        self.stranded.len()
    }

    /// Those that this pipeline has no room for.
    pub(super) fn set_aside(&self) -> impl Iterator<Item = (SequenceId, &Sequence)> {
        self.stranded.iter().map(|(id, (sequence, _))| (*id, sequence))
    }

    /// Whether it was being computed when a pipeline was lost, and is not where it was.
    pub(super) fn is_behind(&self, id: SequenceId) -> bool {
        self.behind.contains(&id)
    }

    fn next_timeout(&self, serving: bool, waiting: bool) -> Option<Instant> {
        let parked = self.parked_since.filter(|_| !serving && waiting && self.outlook != Outlook::Coming);
        let stranded = self.stranded.values().map(|(_, since)| *since).filter(|_| serving);
        stranded.chain(parked).min().map(|since| since + self.park)
    }
}

impl Scheduler {
    /// Parks generations for so long where no plan can be made, or where the next one has no room for them.
    #[must_use]
    pub fn with_park(mut self, park: Duration) -> Scheduler {
        self.recovery.park = park;
        self
    }

    /// Gives the pipeline up. What runs is kept for the next one.
    pub fn suspend(&mut self, reason: &str) {
        self.closed = reason.to_owned();
        let exact = self.pipeline.take().is_none_or(|pipeline| pipeline.exact);
        for (id, mut sequence) in std::mem::take(&mut self.sequences) {
            // Its client has been told the end, or has left.
            if sequence.ended {
                continue;
            }
            let computed = sequence.begun();
            if sequence.suspend(exact) >= FRUITLESS_LIMIT {
                let reason =
                    format!("{FRUITLESS_LIMIT} plans in a row were lost while it was computed: {reason}");
                self.counts.failed += 1;
                self.fail(id, GenerationError::Interrupted { reason });
                continue;
            }
            if computed {
                self.recovery.behind.insert(id);
            }
            self.waiting.insert(id, sequence);
        }
        self.forget_steps();
    }

    /// Gives the pipeline up for another one that takes over by choice. What runs is kept for it; nothing of that counts as
    /// a loss.
    pub fn move_on(&mut self, reason: &str) {
        self.closed = reason.to_owned();
        self.pipeline = None;
        for (id, mut sequence) in std::mem::take(&mut self.sequences) {
            if sequence.ended {
                continue;
            }
            if sequence.begun() {
                self.counts.moved += 1;
                self.recovery.behind.insert(id);
            }
            sequence.move_on();
            self.waiting.insert(id, sequence);
        }
        self.forget_steps();
    }

    /// The most tokens that something which runs or waits may come to.
    pub fn longest(&self) -> usize {
        let stranded = self.recovery.stranded.values().map(|(sequence, _)| sequence);
        let all = self.sequences.values().chain(self.waiting.values()).chain(stranded);
        all.map(Sequence::most_tokens).max().unwrap_or(0)
    }

    /// Takes in what is known of the next pipeline.
    pub fn look_out(&mut self, outlook: Outlook, now: Instant) {
        if let Outlook::Short { reason } = &outlook {
            self.recovery.parked_since.get_or_insert(now);
            self.explain(reason);
        }
        self.recovery.outlook = outlook;
    }

    /// Whether a pipeline has been lost and the next one is on its way: requests are taken, and wait for it.
    pub fn is_recovering(&self) -> bool {
        self.pipeline.is_none()
            && self.recovery.last_room.is_some()
            && self.recovery.outlook == Outlook::Coming
    }

    /// Longest sequence of the newest pipeline, in tokens; 0 before the first.
    pub fn last_context(&self) -> u32 {
        self.recovery.last_room.map_or(0, |room| room.context)
    }

    /// What a request is measured by: the pipeline, or the last one while the next is on its way.
    pub(super) fn room(&self) -> Result<StageRoom, GenerationError> {
        let closed = || GenerationError::NotReady { reason: self.closed.clone() };
        match &self.pipeline {
            Some(pipeline) => Ok(pipeline.room),
            None => self.recovery.last_room.filter(|_| self.is_recovering()).ok_or_else(closed),
        }
    }

    /// Takes the next pipeline up: what it has no room for is set aside, so that it does not keep others waiting.
    pub(super) fn resume(&mut self, pipeline: &Pipeline, now: Instant) {
        let recovery = &mut self.recovery;
        recovery.parked_since = None;
        recovery.last_room = Some(pipeline.room);
        let before: BTreeMap<SequenceId, Instant> =
            recovery.stranded.iter().map(|(id, (_, since))| (*id, *since)).collect();
        let stranded = std::mem::take(&mut recovery.stranded).into_iter();
        self.waiting.extend(stranded.map(|(id, (sequence, _))| (id, sequence)));
        for (id, mut sequence) in std::mem::take(&mut self.waiting) {
            sequence.go_on_with(pipeline.exact);
            if fits(&pipeline.room, sequence.most_tokens()) {
                self.waiting.insert(id, sequence);
            } else {
                let since = before.get(&id).copied().unwrap_or(now);
                self.recovery.behind.remove(&id);
                self.recovery.stranded.insert(id, (sequence, since));
            }
        }
        if self.recovery.behind.is_empty() {
            self.commands.push_back(Command::CaughtUp);
        }
    }

    /// Notes that a generation's prompt, and what was drawn before, is computed.
    pub(super) fn note_recovered(&mut self, id: SequenceId) {
        if let Some(exact) = self.sequences.get_mut(&id).and_then(Sequence::recovered) {
            self.counts.recovered += 1;
            self.counts.recovered_inexact += u64::from(!exact);
        }
        self.note_caught_up(id);
    }

    /// Notes that a generation is where it was when its pipeline was lost, or has ended.
    pub(super) fn note_caught_up(&mut self, id: SequenceId) {
        let behind = &mut self.recovery.behind;
        if !behind.remove(&id) || self.pipeline.is_none() {
            return;
        }
        // Those that have to wait for cache wait for others, not for the recovery.
        if !behind.iter().any(|id| self.sequences.contains_key(id)) {
            behind.clear();
            self.commands.push_back(Command::CaughtUp);
        }
    }

    /// Forgets a generation that is set aside; whether there was one.
    pub(super) fn cancel_stranded(&mut self, id: SequenceId) -> bool {
        self.recovery.stranded.remove(&id).is_some()
    }

    pub(super) fn recovery_timeout(&self) -> Option<Instant> {
        self.recovery.next_timeout(self.pipeline.is_some(), !self.waiting.is_empty())
    }

    /// Ends what has been parked for too long.
    pub(super) fn expire_parked(&mut self, now: Instant) {
        if self.recovery_timeout().is_none_or(|due| now < due) {
            return;
        }
        let seconds = self.recovery.park.as_secs();
        if let Some(pipeline) = &self.pipeline {
            let room = pipeline.room;
            let park = self.recovery.park;
            let all = std::mem::take(&mut self.recovery.stranded).into_iter();
            let (late, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
                all.partition(|(_, (_, since))| now >= *since + park);
            self.recovery.stranded = rest;
            for (id, (sequence, _)) in late {
                let reason = format!(
                    "after a plan was lost the longest sequence that fits has {} tokens, and this one asked for {}; it \
                     was parked for {seconds} s, and no worker joined that would have made room",
                    room.context.min(room.cache_tokens),
                    sequence.most_tokens(),
                );
                self.counts.failed += 1;
                self.fail(id, GenerationError::Interrupted { reason });
            }
        } else {
            let reason = format!("{}; parked for {seconds} s, and no plan could be made", self.closed);
            self.end_waiting(&reason);
        }
    }

    /// Ends all that waits, for `reason`.
    pub(super) fn end_waiting(&mut self, reason: &str) {
        let stranded = std::mem::take(&mut self.recovery.stranded).into_iter();
        self.waiting.extend(stranded.map(|(id, (sequence, _))| (id, sequence)));
        self.recovery.behind.clear();
        for (id, sequence) in std::mem::take(&mut self.waiting) {
            let reason = reason.to_owned();
            let error = if sequence.was_served() {
                GenerationError::Interrupted { reason }
            } else {
                GenerationError::NotReady { reason }
            };
            self.counts.failed += 1;
            self.fail(id, error);
        }
    }
}

/// Whether an empty cache has room for a sequence of so many tokens.
pub(super) fn fits(room: &StageRoom, tokens: usize) -> bool {
    tokens <= room.context as usize && Pages::needed(tokens) <= Pages::whole(room.cache_tokens)
}

/// The tokens that a request may come to.
pub(super) fn most_tokens(request: &GenerationRequest) -> usize {
    request.prompt.len().saturating_add(request.max_tokens as usize)
}
