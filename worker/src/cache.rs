//! Which cache pages hold which sequence's tokens.
//!
//! Pure bookkeeping: pages are numbers, and every layer's cache of a stage uses the same ones. A page holds
//! [`PAGE_TOKENS`] consecutive tokens. The coordinator gives pages to sequences, the same on every stage, and may have
//! several sequences begin with the same whole pages; what is kept here is what makes sure that it never errs: a page is
//! written by one sequence alone, and shared only once all its tokens have been computed.

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
    /// Tokens held by sequences; those that several share count once.
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
    /// Pages for too few tokens.
    #[error(
        "sequence {sequence} would have {tokens} tokens in {pages} cache pages of {PAGE_TOKENS} tokens: it was given too few"
    )]
    TooFewPages { sequence: SequenceId, tokens: u64, pages: usize },
    /// Pages for more tokens than the context has.
    #[error("sequence {sequence} was given {pages} cache pages, and a context of {context} tokens has fewer")]
    TooManyPages { sequence: SequenceId, pages: usize, context: u32 },
    /// A page that is not there.
    #[error("sequence {sequence} was given cache page {page}, and there are {pages}")]
    UnknownPage { sequence: SequenceId, page: u32, pages: u32 },
    /// A sequence that begins with part of a page.
    #[error(
        "sequence {sequence} was to begin at {start}: it can share whole cache pages of {PAGE_TOKENS} tokens only"
    )]
    PartOfPage { sequence: SequenceId, start: u32 },
    /// A page to begin with that is not computed to its end.
    #[error("sequence {sequence} was to begin with cache page {page}, which holds {tokens} tokens so far")]
    NotComputed { sequence: SequenceId, page: u32, tokens: u32 },
    /// A page that two sequences would write, or one would write while another reads.
    #[error("cache page {page} was to be written for sequence {sequence}, and another one has it")]
    PageInUse { sequence: SequenceId, page: u32 },
    /// Two segments of one sequence in one step.
    #[error("sequence {sequence} has two segments in one step: it may have one")]
    Repeated { sequence: SequenceId },
}

/// Tokens that a step appends to a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Append<'a> {
    /// The sequence.
    pub sequence: SequenceId,
    /// Position of the first token; what the sequence holds from there on is forgotten. Where the sequence begins, the
    /// positions before it are in its first pages already.
    pub start: u32,
    /// How many.
    pub tokens: u32,
    /// Whether the sequence begins here; what it was before is forgotten.
    pub begin: bool,
    /// Pages that the sequence is given, behind those that it has. A sequence that begins has none.
    pub pages: &'a [u32],
}

impl Append<'_> {
    fn end(&self) -> u64 {
        u64::from(self.start) + u64::from(self.tokens)
    }

    /// How many of its pages were computed for others.
    fn shared(&self) -> usize {
        if self.begin { pages_of(self.start) } else { 0 }
    }
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
    pages: Vec<Page>,
    tables: HashMap<SequenceId, Table>,
    /// Tokens in pages that sequences have.
    tokens: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Page {
    /// How many sequences have it.
    holders: u32,
    /// How many of its tokens are computed, from the first on; they stay when nobody has the page any more.
    tokens: u32,
}

fn pages_of(tokens: u32) -> usize {
    tokens.div_ceil(PAGE_TOKENS) as usize
}

impl PageTables {
    /// No sequence, and nothing in any page.
    pub fn new(limits: CacheLimits) -> PageTables {
        let pages = vec![Page::default(); limits.pages as usize];
        PageTables { limits, pages, tables: HashMap::new(), tokens: 0 }
    }

    /// How much is in use.
    pub fn usage(&self) -> CacheUsage {
        CacheUsage { tokens: self.tokens, sequences: self.tables.len() as u32 }
    }

    /// How many tokens a sequence holds; `None` where it is not known.
    pub fn tokens(&self, sequence: SequenceId) -> Option<u32> {
        self.tables.get(&sequence).map(|table| table.tokens)
    }

    /// A sequence's pages, in order; empty where it is not known. May be more than its tokens need.
    pub fn pages(&self, sequence: SequenceId) -> &[u32] {
        self.tables.get(&sequence).map_or(&[], |table| &table.pages)
    }

    /// Forgets a sequence; one that is not known is no error. Its pages keep what they hold, for others to begin with,
    /// until they are given to a sequence to be written.
    pub fn release(&mut self, sequence: SequenceId) {
        let Some(table) = self.tables.remove(&sequence) else {
            return;
        };
        for page in table.pages {
            let page = &mut self.pages[page as usize];
            page.holders -= 1;
            if page.holders == 0 {
                self.tokens -= page.tokens;
            }
        }
    }

    /// Forgets all sequences, and what is in the pages.
    pub fn clear(&mut self) {
        *self = PageTables::new(self.limits);
    }

    /// Makes room for all appends of a step, truncating each sequence to its start first; or for none of them.
    ///
    /// # Errors
    /// Where a sequence is unknown and does not begin, has a gap before the start, gets longer than the context or stands
    /// twice in the step; where there are too many sequences; or where its pages are too few, or another sequence's.
    pub fn append(&mut self, step: &[Append<'_>]) -> Result<(), CacheError> {
        self.check(step)?;
        for append in step {
            if append.begin {
                self.release(append.sequence);
            }
            self.give(append);
            // `check` has seen that the end is within the context.
            self.fill(append.sequence, append.start, append.start + append.tokens);
        }
        Ok(())
    }

    /// Shortens a sequence to its first `tokens`; does nothing where it is shorter or not known.
    pub fn truncate(&mut self, sequence: SequenceId, tokens: u32) {
        if self.tables.get(&sequence).is_some_and(|table| tokens < table.tokens) {
            self.fill(sequence, tokens, tokens);
        }
    }

    fn give(&mut self, append: &Append<'_>) {
        let table = self.tables.entry(append.sequence).or_default();
        table.pages.extend_from_slice(append.pages);
        for (index, page) in append.pages.iter().enumerate() {
            let page = &mut self.pages[*page as usize];
            page.holders += 1;
            if index >= append.shared() {
                page.tokens = 0;
            } else if page.holders == 1 {
                self.tokens += page.tokens;
            }
        }
    }

    /// Notes that a sequence has `tokens` tokens, and that only those before `start` are what they were.
    fn fill(&mut self, sequence: SequenceId, start: u32, tokens: u32) {
        let Some(table) = self.tables.get_mut(&sequence) else {
            return;
        };
        let touched = pages_of(table.tokens.max(tokens));
        table.tokens = tokens;
        for index in (start / PAGE_TOKENS) as usize..touched {
            let page = &mut self.pages[table.pages[index] as usize];
            // One that others have too is only left behind, not written.
            if page.holders == 1 {
                let before = index as u32 * PAGE_TOKENS;
                let held = tokens.saturating_sub(before).min(PAGE_TOKENS);
                self.tokens = self.tokens - page.tokens + held;
                page.tokens = held;
            }
        }
    }

    fn check(&self, step: &[Append<'_>]) -> Result<(), CacheError> {
        let begun = step.iter().filter(|a| a.begin && !self.tables.contains_key(&a.sequence)).count();
        let sequences = self.tables.len() + begun;
        if sequences > self.limits.sequences as usize {
            return Err(CacheError::TooManySequences { wanted: sequences, limit: self.limits.sequences });
        }
        // Pages that the step gives to one sequence alone, or writes.
        let mut taken = Vec::new();
        for (i, append) in step.iter().enumerate() {
            let sequence = append.sequence;
            if step[..i].iter().any(|other| other.sequence == sequence) {
                return Err(CacheError::Repeated { sequence });
            }
            self.check_tokens(append)?;
            self.check_pages(append, &mut taken)?;
        }
        taken.sort_unstable();
        if let Some(twice) = taken.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let (page, sequence) = twice[1];
            return Err(CacheError::PageInUse { sequence, page });
        }
        for append in step {
            let shared = append.pages.iter().take(append.shared());
            for &page in shared {
                if taken.binary_search_by_key(&page, |(page, _)| *page).is_ok() {
                    return Err(CacheError::PageInUse { sequence: append.sequence, page });
                }
            }
        }
        Ok(())
    }

    fn check_tokens(&self, append: &Append<'_>) -> Result<(), CacheError> {
        let &Append { sequence, start, begin, .. } = append;
        match self.tables.get(&sequence) {
            _ if begin && !start.is_multiple_of(PAGE_TOKENS) => {
                return Err(CacheError::PartOfPage { sequence, start });
            }
            Some(table) if !begin && start > table.tokens => {
                return Err(CacheError::Gap { sequence, start, held: table.tokens });
            }
            None if !begin => return Err(CacheError::UnknownSequence { sequence }),
            Some(_) | None => {}
        }
        if append.end() > u64::from(self.limits.context) {
            let context = self.limits.context;
            return Err(CacheError::TooLong { sequence, tokens: append.end(), context });
        }
        Ok(())
    }

    /// Whether an append's pages are there, enough, and its own; pages to be written are added to `taken`.
    fn check_pages(&self, append: &Append<'_>, taken: &mut Vec<(u32, SequenceId)>) -> Result<(), CacheError> {
        let &Append { sequence, start, begin, pages: given, .. } = append;
        let before = self.pages(sequence);
        let kept: &[u32] = if begin { &[] } else { before };
        let count = kept.len() + given.len();
        if (count as u64) * u64::from(PAGE_TOKENS) < append.end() {
            return Err(CacheError::TooFewPages { sequence, tokens: append.end(), pages: count });
        }
        if count > pages_of(self.limits.context) {
            let context = self.limits.context;
            return Err(CacheError::TooManyPages { sequence, pages: count, context });
        }
        for (index, &page) in given.iter().enumerate() {
            let Some(state) = self.pages.get(page as usize) else {
                return Err(CacheError::UnknownPage { sequence, page, pages: self.limits.pages });
            };
            if index < append.shared() {
                if state.tokens < PAGE_TOKENS {
                    return Err(CacheError::NotComputed { sequence, page, tokens: state.tokens });
                }
                continue;
            }
            // A sequence that begins anew may get back what it had alone.
            let own = begin && state.holders == 1 && before.contains(&page);
            if state.holders > 0 && !own {
                return Err(CacheError::PageInUse { sequence, page });
            }
            taken.push((page, sequence));
        }
        let written = kept.iter().take(pages_of(append.start + append.tokens));
        for &page in written.skip((start / PAGE_TOKENS) as usize) {
            if self.pages[page as usize].holders > 1 {
                return Err(CacheError::PageInUse { sequence, page });
            }
            taken.push((page, sequence));
        }
        Ok(())
    }
}
