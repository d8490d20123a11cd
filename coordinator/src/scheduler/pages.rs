//! The pipeline's cache as pages: who has which, what stands in them, and which are free.
//!
//! Pages have the same numbers on every stage. A page that nobody has any more, but whose tokens are known, is kept for
//! sequences that begin with the same tokens, until it is needed: the one let go the longest ago goes first. Such pages
//! never keep a sequence waiting.

use std::collections::{BTreeMap, HashMap};

use brigade_shard::cost::PAGE_TOKENS;

use super::prefix::PageKey;

/// Pages of the cache.
#[derive(Debug)]
pub(super) struct Pages {
    pages: Vec<Page>,
    /// Pages without known tokens that nobody has.
    blank: Vec<u32>,
    /// Pages with known tokens that nobody has, by when they were let go.
    idle: BTreeMap<u64, u32>,
    /// Where tokens stand; of several pages that hold the same, the first.
    known: HashMap<PageKey, u32>,
    /// Counts pages let go.
    clock: u64,
    /// Pages whose known tokens were given up for others.
    evicted: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Page {
    /// How many sequences have it.
    holders: u32,
    /// What it is found by in `known`.
    key: Option<PageKey>,
    /// While it is idle: when it was let go.
    since: u64,
}

impl Pages {
    /// The pages of a cache of `cache_tokens` tokens, all free.
    pub(super) fn new(cache_tokens: u32) -> Pages {
        let total = Pages::whole(cache_tokens);
        Pages {
            pages: vec![Page::default(); total],
            blank: (0..total as u32).rev().collect(),
            idle: BTreeMap::new(),
            known: HashMap::new(),
            clock: 0,
            evicted: 0,
        }
    }

    /// How many pages `tokens` tokens of one sequence take.
    pub(super) fn needed(tokens: usize) -> usize {
        tokens.div_ceil(PAGE_TOKENS as usize)
    }

    /// How many whole pages there are in a cache of `cache_tokens` tokens.
    pub(super) fn whole(cache_tokens: u32) -> usize {
        (cache_tokens / PAGE_TOKENS) as usize
    }

    /// Takes `count` pages, the first of them those that hold `keys`, as far as these are known; says how many these
    /// are. `None`, and nothing taken, where too few are free.
    pub(super) fn begin(&mut self, keys: &[PageKey], count: usize) -> Option<(Vec<u32>, usize)> {
        let mut pages: Vec<u32> = keys.iter().map_while(|key| self.known.get(key).copied()).collect();
        pages.truncate(count);
        let shared = pages.len();
        let idle = pages.iter().filter(|page| self.pages[**page as usize].holders == 0).count();
        if count - shared > self.blank.len() + self.idle.len() - idle {
            return None;
        }
        pages.iter().for_each(|page| self.share(*page));
        pages.extend((shared..count).filter_map(|_| self.take()));
        Some((pages, shared))
    }

    /// Exchanges the first of a sequence's own pages, from `shared` on, for those that hold `keys`, as far as these are
    /// known by now; says how many are shared then.
    pub(super) fn exchange(&mut self, pages: &mut [u32], keys: &[PageKey], shared: usize) -> usize {
        let mut known = shared;
        for (place, key) in pages.iter_mut().zip(keys).skip(shared) {
            let Some(page) = self.known.get(key).copied() else {
                break;
            };
            self.share(page);
            self.let_go(std::mem::replace(place, page));
            known += 1;
        }
        known
    }

    /// Takes a page, if one is free.
    pub(super) fn take(&mut self) -> Option<u32> {
        let page = self.blank.pop().or_else(|| self.evict())?;
        self.pages[page as usize].holders = 1;
        Some(page)
    }

    /// How many pages could be taken.
    pub(super) fn free_count(&self) -> usize {
        self.blank.len() + self.idle.len()
    }

    /// Gives a sequence's pages back, in its order.
    pub(super) fn free(&mut self, pages: &[u32]) {
        // The last first: what is begun with is needed the longest.
        pages.iter().rev().for_each(|page| self.let_go(*page));
    }

    /// Notes that a page, which somebody has, is computed and holds the tokens that `key` stands for.
    pub(super) fn learn(&mut self, page: u32, key: PageKey) {
        let state = &mut self.pages[page as usize];
        debug_assert!(state.holders > 0, "page {page} was computed for nobody");
        if state.key.is_none() && !self.known.contains_key(&key) {
            state.key = Some(key);
            self.known.insert(key, page);
        }
    }

    /// Tokens of the pages that sequences have.
    pub(super) fn reserved_tokens(&self) -> u32 {
        (self.pages.len() - self.free_count()) as u32 * PAGE_TOKENS
    }

    /// Tokens of the pages that are kept for sequences to come.
    pub(super) fn kept_tokens(&self) -> u32 {
        self.idle.len() as u32 * PAGE_TOKENS
    }

    /// Pages whose known tokens were given up for others.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    fn share(&mut self, page: u32) {
        let state = &mut self.pages[page as usize];
        if state.holders == 0 {
            self.idle.remove(&state.since);
        }
        state.holders += 1;
    }

    fn let_go(&mut self, page: u32) {
        let state = &mut self.pages[page as usize];
        debug_assert!(state.holders > 0, "page {page} was let go too often");
        state.holders -= 1;
        if state.holders > 0 {
            return;
        }
        if state.key.is_some() {
            self.clock += 1;
            state.since = self.clock;
            self.idle.insert(self.clock, page);
        } else {
            self.blank.push(page);
        }
    }

    fn evict(&mut self) -> Option<u32> {
        let (_, page) = self.idle.pop_first()?;
        self.evicted += 1;
        if let Some(key) = self.pages[page as usize].key.take() {
            self.known.remove(&key);
        }
        Some(page)
    }
}
