//! Which cache pages hold which sequence's tokens.
//!
//! Pure bookkeeping: pages are numbers, and every layer's cache of a stage uses the same ones. A page holds
//! [`PAGE_TOKENS`] consecutive tokens of one sequence.

use std::collections::HashMap;

use brigade_proto::ids::SequenceId;
use brigade_shard::cost::PAGE_TOKENS;

/// What a cache can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Pages in all.
    pub pages: u32,
    /// Sequences at a time.
    pub sequences: u32,
    /// Tokens of one sequence.
    pub context: u32,
}

/// How much of a cache is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUsage {
    /// Tokens held, over all sequences.
    pub tokens: u32,
    /// Sequences that hold any, or have begun to.
    pub sequences: u32,
}

/// A wish that the cache cannot fulfil; nothing has changed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum CacheError {
    /// The sequence was never begun, or was released.
    #[error("sequence {sequence} is not known here: its first segment must come first")]
    UnknownSequence { sequence: SequenceId },
    /// Tokens before the start are missing.
    #[error(
        "sequence {sequence} holds {held} tokens and was to go on at {start}: the tokens between are missing"
    )]
    Gap { sequence: SequenceId, start: u32, held: u32 },
    /// The sequence would be longer than the context.
    #[error("sequence {sequence} would have {tokens} tokens, and the context is {context}")]
    TooLong { sequence: SequenceId, tokens: u64, context: u32 },
    /// Too many sequences.
    #[error("{wanted} sequences were wanted at a time, and the stage has room for {limit}")]
    TooManySequences { wanted: usize, limit: u32 },
    /// Too few free pages.
    #[error(
        "the step needs {wanted} more cache pages of {PAGE_TOKENS} tokens, and {free} of {pages} are free"
    )]
    OutOfPages { wanted: usize, free: usize, pages: u32 },
    /// Two segments of one sequence in one step.
    #[error("sequence {sequence} has two segments in one step: it may have one")]
    Repeated { sequence: SequenceId },
}

/// Tokens that a step appends to a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Append {
    /// The sequence.
    pub sequence: SequenceId,
    /// Position of the first token; what the sequence holds from there on is forgotten.
    pub start: u32,
    /// How many.
    pub tokens: u32,
    /// Whether the sequence may begin here.
    pub begin: bool,
}

#[derive(Debug, Default)]
struct Table {
    pages: Vec<u32>,
    tokens: u32,
}

/// The page tables of all sequences.
#[derive(Debug)]
pub struct PageTables {
    limits: CacheLimits,
    /// Free pages; the last is taken next, so that a page just freed, still warm, is used again.
    free: Vec<u32>,
    tables: HashMap<SequenceId, Table>,
}

fn pages_of(tokens: u32) -> usize {
    tokens.div_ceil(PAGE_TOKENS) as usize
}

impl PageTables {
    /// No sequence, all pages free.
    pub fn new(limits: CacheLimits) -> PageTables {
        PageTables { limits, free: (0..limits.pages).rev().collect(), tables: HashMap::new() }
    }

    /// How much is in use.
    pub fn usage(&self) -> CacheUsage {
        CacheUsage {
            tokens: self.tables.values().map(|table| table.tokens).sum(),
            sequences: self.tables.len() as u32,
        }
    }

    /// How many tokens a sequence holds; `None` where it is not known.
    pub fn tokens(&self, sequence: SequenceId) -> Option<u32> {
        self.tables.get(&sequence).map(|table| table.tokens)
    }

    /// A sequence's pages, in order; empty where it is not known.
    pub fn pages(&self, sequence: SequenceId) -> &[u32] {
        self.tables.get(&sequence).map_or(&[], |table| &table.pages)
    }

    /// Forgets a sequence; one that is not known is no error.
    pub fn release(&mut self, sequence: SequenceId) {
        if let Some(table) = self.tables.remove(&sequence) {
            self.free.extend(table.pages.iter().rev());
        }
    }

    /// Forgets all sequences.
    pub fn clear(&mut self) {
        *self = PageTables::new(self.limits);
    }

    /// Makes room for all appends of a step, truncating each sequence to its start first; or for none of them.
    ///
    /// # Errors
    /// Where a sequence is unknown and may not begin, has a gap before the start, gets longer than the context or stands
    /// twice in the step, or sequences or pages run out.
    pub fn append(&mut self, step: &[Append]) -> Result<(), CacheError> {
        self.check(step)?;
        for append in step {
            let kept = pages_of(append.start);
            if let Some(table) = self.tables.get_mut(&append.sequence) {
                self.free.extend(table.pages.drain(kept.min(table.pages.len())..).rev());
            }
        }
        for append in step {
            let table = self.tables.entry(append.sequence).or_default();
            table.tokens = append.start + append.tokens;
            while table.pages.len() < pages_of(table.tokens) {
                // `check` has counted the free pages.
                let Some(page) = self.free.pop() else { break };
                table.pages.push(page);
            }
        }
        Ok(())
    }

    /// Shortens a sequence to its first `tokens`; does nothing where it is shorter or not known.
    pub fn truncate(&mut self, sequence: SequenceId, tokens: u32) {
        if let Some(table) = self.tables.get_mut(&sequence)
            && tokens < table.tokens
        {
            table.tokens = tokens;
            self.free.extend(table.pages.drain(pages_of(tokens)..).rev());
        }
    }

    fn check(&self, step: &[Append]) -> Result<(), CacheError> {
        let (mut begun, mut wanted, mut freed) = (0, 0, 0);
        for (i, &Append { sequence, start, tokens, begin }) in step.iter().enumerate() {
            if step[..i].iter().any(|other| other.sequence == sequence) {
                return Err(CacheError::Repeated { sequence });
            }
            let held = match self.tables.get(&sequence) {
                Some(table) => table.tokens,
                None if begin => 0,
                None => return Err(CacheError::UnknownSequence { sequence }),
            };
            begun += usize::from(!self.tables.contains_key(&sequence));
            if start > held {
                return Err(CacheError::Gap { sequence, start, held });
            }
            let total = u64::from(start) + u64::from(tokens);
            if total > u64::from(self.limits.context) {
                return Err(CacheError::TooLong { sequence, tokens: total, context: self.limits.context });
            }
            freed += pages_of(held) - pages_of(start);
            wanted += pages_of(start + tokens) - pages_of(start);
        }
        let sequences = self.tables.len() + begun;
        if sequences > self.limits.sequences as usize {
            return Err(CacheError::TooManySequences { wanted: sequences, limit: self.limits.sequences });
        }
        if wanted > self.free.len() + freed {
            return Err(CacheError::OutOfPages {
                wanted: wanted - freed,
                free: self.free.len(),
                pages: self.limits.pages,
            });
        }
        Ok(())
    }
}
