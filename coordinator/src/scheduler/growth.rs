//! Cache for sequences: what they begin with, how they get more, and who gives way when there is none.
//!
//! A sequence begins with pages for its prompt and the first `ASSURED_TOKENS` of its answer, and gets further ones as
//! it grows, so that long limits that answers seldom reach do not keep others out. Where no page is free the youngest
//! sequence gives its own back, and is replayed when there is room again: its tokens are all here, and computing them
//! once more gives the same. What is still in the cache by then is not computed again (see `prefix`). The oldest never
//! gives way, and any single request fits the cache, so that all get done.

use brigade_proto::ids::SequenceId;

use super::sequence::Sequence;
use super::{Command, Scheduler};

impl Scheduler {
    /// Reserves cache and a place for a sequence to begin with, if there is room.
    pub(super) fn admit(&mut self, id: SequenceId, sequence: &mut Sequence) -> bool {
        let Some(pipeline) = &self.pipeline else {
            return false;
        };
        // Sequences whose release is under way still have their place on the stages; one that gave its cache back must
        // not begin anew before that is known everywhere; and those that run are served before others join them.
        let places = self.sequences.len() + self.releasing.len();
        let full = places >= pipeline.room.sequences as usize;
        if full || self.releasing.contains_key(&id) || self.some_must_grow() {
            return false;
        }
        let count = sequence.first_pages();
        let (keys, _) = sequence.reusable();
        let Some((pages, shared)) = self.pages.begin(keys, count) else {
            return false;
        };
        sequence.pages = pages;
        sequence.shared = shared;
        true
    }

    pub(super) fn install(&mut self, id: SequenceId, sequence: Sequence) {
        self.sequences.insert(id, sequence);
        self.prefilling.push_back(id);
        self.commands.push_back(Command::Admitted { sequence: id });
    }

    /// Admits waiting sequences, oldest first: a large one is not overtaken, so that it gets its turn.
    pub(super) fn admit_waiting(&mut self) {
        while let Some((id, mut sequence)) = self.waiting.pop_first() {
            if !self.admit(id, &mut sequence) {
                self.waiting.insert(id, sequence);
                return;
            }
            self.install(id, sequence);
        }
    }

    /// Whether a sequence has pages for its next token, after it was given another if need be.
    pub(super) fn grow(&mut self, id: SequenceId) -> bool {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return false;
        };
        while sequence.next_pages() > sequence.pages.len() {
            let Some(page) = self.pages.take() else {
                self.make_way();
                return false;
            };
            sequence.pages.push(page);
        }
        true
    }

    fn some_must_grow(&self) -> bool {
        self.ready
            .iter()
            .filter_map(|id| self.sequences.get(id))
            .any(|sequence| sequence.wants_decode() && sequence.next_pages() > sequence.pages.len())
    }

    /// Has the youngest sequence give its cache back, unless some is on its way back already. Those that still compute
    /// their prompt keep it: they end soon, or decode soon.
    fn make_way(&mut self) {
        let coming = self.sequences.values().any(|sequence| sequence.ended || sequence.parking);
        if coming || !self.releasing.is_empty() {
            return;
        }
        let oldest = self.sequences.keys().next().copied();
        let youngest = self.sequences.iter().rev().find(|(_, sequence)| sequence.decodes());
        let youngest = youngest.map(|(id, sequence)| (*id, sequence.in_flight));
        match youngest.filter(|(id, _)| Some(*id) != oldest) {
            // The oldest waits for those that compute their prompt.
            None => {}
            Some((id, 0)) => self.park(id),
            Some((id, _)) => {
                self.sequences.entry(id).and_modify(|sequence| sequence.parking = true);
            }
        }
    }

    /// Takes a sequence's cache, none of whose segments is under way, and puts it back among those that wait.
    pub(super) fn park(&mut self, id: SequenceId) {
        let Some(mut sequence) = self.sequences.remove(&id) else {
            return;
        };
        self.counts.replayed += 1;
        self.drafter.forget(id);
        self.releasing.insert(id, sequence.restart());
        self.releases.push_back(id);
        self.waiting.insert(id, sequence);
    }
}
