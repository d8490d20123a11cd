//! What becomes of each request at the moment, for people.

use brigade_proto::ids::SequenceId;

use super::Scheduler;
use super::sequence::Sequence;

/// What a request is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Waits for cache.
    Waiting,
    /// Its prompt is being computed.
    Prefill,
    /// Its answer is being generated.
    Decode,
    /// Its plan was lost, or another one took over; it is not yet where it was.
    Recovering,
}

impl Doing {
    /// The word for it in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Doing::Waiting => "waiting",
            Doing::Prefill => "prefill",
            Doing::Decode => "decode",
            Doing::Recovering => "recovering",
        }
    }
}

/// A request that runs or waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Active {
    /// Its sequence.
    pub sequence: SequenceId,
    /// What it is doing.
    pub doing: Doing,
    /// Tokens of its prompt.
    pub prompt: usize,
    /// Those of them that are computed, or were found in the cache.
    pub prompt_done: usize,
    /// Tokens drawn.
    pub drawn: usize,
    /// The most that may be.
    pub max_tokens: usize,
}

impl Scheduler {
    /// The `most` oldest requests that run or wait, oldest first.
    pub fn active(&self, most: usize) -> Vec<Active> {
        let running = self.sequences.iter().filter(|(_, sequence)| !sequence.ended);
        let running = running.map(|(id, sequence)| (*id, sequence, true));
        let waiting = self.waiting.iter().map(|(id, sequence)| (*id, sequence));
        let waiting = waiting.chain(self.recovery.set_aside()).map(|(id, sequence)| (id, sequence, false));
        let mut all: Vec<Active> =
            running.chain(waiting).map(|(id, sequence, runs)| self.one(id, sequence, runs)).collect();
        all.sort_unstable_by_key(|active| active.sequence);
        all.truncate(most);
        all
    }

    fn one(&self, id: SequenceId, sequence: &Sequence, runs: bool) -> Active {
        let doing = if self.recovery.is_behind(id) {
            Doing::Recovering
        } else if !runs {
            Doing::Waiting
        } else if sequence.decodes() {
            Doing::Decode
        } else {
            Doing::Prefill
        };
        Active {
            sequence: id,
            doing,
            prompt: sequence.prompt_len(),
            prompt_done: sequence.prompt_done(),
            drawn: sequence.drawn(),
            max_tokens: sequence.max_tokens(),
        }
    }
}
