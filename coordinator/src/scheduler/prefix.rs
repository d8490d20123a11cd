//! Prompts that begin alike: what one sequence has computed, others begin with.
//!
//! A page is known by all tokens up to its end, and by who may share it. Only pages that have come home computed are
//! shared, so that no order of steps matters: whatever a stage is sent afterwards finds them written. A sequence whose
//! next page is being computed for another one waits for that before its first chunk, so that of requests that come at
//! once and begin alike, one computes the beginning for all.

use brigade_proto::ids::SequenceId;
use brigade_shard::cost::PAGE_TOKENS;
use sha2::{Digest, Sha256};

use super::Scheduler;
use super::sequence::Expected;
use crate::generation::{GenerationEvent, ReuseScope};

/// Stands for all tokens up to a page's end, within a scope. A cryptographic hash, since what it finds is not compared:
/// nobody can make two beginnings that are taken for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PageKey([u8; 32]);

impl PageKey {
    /// What stands before the first page.
    pub(super) fn root(scope: ReuseScope) -> PageKey {
        PageKey(Sha256::digest(scope.0.to_le_bytes()).into())
    }

    /// The page of `tokens` after this one.
    pub(super) fn next(&self, tokens: &[u32]) -> PageKey {
        let mut hash = Sha256::new_with_prefix(self.0);
        tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        PageKey(hash.finalize().into())
    }
}

/// The keys of a sequence's whole pages, as far as they were asked for.
#[derive(Debug)]
pub(super) struct PageKeys {
    root: PageKey,
    keys: Vec<PageKey>,
}

impl PageKeys {
    pub(super) fn new(scope: ReuseScope) -> PageKeys {
        PageKeys { root: PageKey::root(scope), keys: Vec::new() }
    }

    /// The keys of the whole pages of `tokens`, which begin with those of the time before.
    pub(super) fn of(&mut self, tokens: &[u32]) -> &[PageKey] {
        let pages = tokens.chunks_exact(PAGE_TOKENS as usize);
        let count = pages.len();
        for page in pages.skip(self.keys.len()) {
            let before = self.keys.last().unwrap_or(&self.root);
            self.keys.push(before.next(page));
        }
        &self.keys[..count]
    }
}

impl Scheduler {
    /// Settles what a sequence begins with, before its first chunk. Says whether its next chunk may be sent: not while
    /// the page that it would compute next is being computed for another sequence.
    pub(super) fn settle_prefix(&mut self, id: SequenceId) -> bool {
        let Some(sequence) = self.sequences.get_mut(&id).filter(|sequence| !sequence.settled()) else {
            return true;
        };
        let shared = sequence.shared;
        let (keys, pages) = sequence.reusable();
        let known = self.pages.exchange(pages, keys, shared);
        if keys.get(known).is_some_and(|key| self.computing.contains_key(key)) {
            sequence.shared = known;
            return false;
        }
        let replay = sequence.begin_with(known);
        for key in &sequence.prefill_keys()[known..] {
            self.computing.entry(*key).or_insert(id);
        }
        if known > 0 && !replay {
            let tokens = known as u32 * PAGE_TOKENS;
            self.counts.prefix_hits += 1;
            self.counts.prompt_tokens_reused += u64::from(tokens);
            self.emit(id, GenerationEvent::Reused(tokens));
        }
        true
    }

    /// Takes in that a segment has come home: the pages that are whole now may be shared.
    pub(super) fn note_computed(&mut self, expected: &Expected) {
        let id = expected.sequence;
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        for (page, key) in sequence.note_computed(expected) {
            self.pages.learn(page, key);
            if self.computing.get(&key) == Some(&id) {
                self.computing.remove(&key);
            }
        }
    }

    /// No more of a sequence's prompt is going to be computed.
    pub(super) fn stop_computing(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        for key in sequence.prefill_keys() {
            if self.computing.get(key) == Some(&id) {
                self.computing.remove(key);
            }
        }
    }
}
