//! The pipeline's cache as pages: what is reserved for sequences, and what is free.

use brigade_shard::cost::PAGE_TOKENS;

/// Pages of the cache. Every stage has the same number, and holds the same tokens of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pages {
    total: u32,
    reserved: u32,
}

impl Pages {
    /// The pages of a cache of `cache_tokens` tokens, all free.
    pub(super) fn new(cache_tokens: u32) -> Pages {
        Pages { total: cache_tokens / PAGE_TOKENS, reserved: 0 }
    }

    /// How many pages `tokens` tokens of one sequence take.
    pub(super) fn needed(tokens: usize) -> u32 {
        u32::try_from(tokens.div_ceil(PAGE_TOKENS as usize)).unwrap_or(u32::MAX)
    }

    /// Whether `pages` would fit an empty cache.
    pub(super) fn could_hold(&self, pages: u32) -> bool {
        pages <= self.total
    }

    /// Reserves `pages`, if so many are free.
    pub(super) fn reserve(&mut self, pages: u32) -> bool {
        let fits = pages <= self.total - self.reserved;
        if fits {
            self.reserved += pages;
        }
        fits
    }

    /// Gives `pages` back.
    pub(super) fn free(&mut self, pages: u32) {
        debug_assert!(pages <= self.reserved, "more pages freed than were reserved");
        self.reserved = self.reserved.saturating_sub(pages);
    }

    /// Tokens of the reserved pages.
    pub(super) fn reserved_tokens(&self) -> u32 {
        self.reserved * PAGE_TOKENS
    }
}
