//! How much cache and context plans make room for.

use super::search::Search;
use super::{LEAST_CONTEXT, PlanInput};
use crate::cost::{Cost, PAGE_TOKENS, Room};

/// The room for a context and `cache_tokens` of cache.
pub(super) fn room(input: &PlanInput, context: u32, cache_tokens: u64) -> Room {
    // Whole pages, so that the largest multiple of a page is the most that a plan can state.
    let most = u64::from(u32::MAX - u32::MAX % PAGE_TOKENS);
    Room {
        cache_tokens: cache_tokens.min(most) as u32,
        context,
        step_rows: input.step_rows,
        sequences: input.parallel.max(1),
        cache_value_bytes: input.cache_value_bytes,
    }
}

/// Cache tokens of one sequence of `context` tokens.
pub(super) fn sequence_tokens(context: u32) -> u64 {
    u64::from(context).next_multiple_of(u64::from(PAGE_TOKENS))
}

/// The least room that a plan may make: the stated context for all sequences, or a short one for one sequence.
pub(super) fn least_room(cost: &Cost, input: &PlanInput) -> Room {
    match input.context {
        Some(context) => room(input, context, sequence_tokens(context) * u64::from(input.parallel.max(1))),
        None => {
            let context = longest_context(cost).min(LEAST_CONTEXT);
            room(input, context, sequence_tokens(context))
        }
    }
}

/// The model's context in whole pages, or all of it where it is shorter than one.
pub(super) fn longest_context(cost: &Cost) -> u32 {
    let model = cost.context_length();
    if model < PAGE_TOKENS { model } else { model - model % PAGE_TOKENS }
}

/// The longest context that fits into `stages` stages, then as much cache as fits, up to all sequences at full length.
pub(super) fn largest_room(
    search: &Search<'_>,
    cost: &Cost,
    input: &PlanInput,
    stages: usize,
) -> Option<Room> {
    room_within(cost, input, |room| search.fits(room, stages))
}

/// The longest context that `fits`, then as much cache as does, up to all sequences at full length.
pub(super) fn room_within(cost: &Cost, input: &PlanInput, fits: impl Fn(&Room) -> bool) -> Option<Room> {
    let least = least_room(cost, input);
    if !fits(&least) {
        return None;
    }
    if input.context.is_some() {
        return Some(least);
    }
    let page = u64::from(PAGE_TOKENS);
    let most = longest_context(cost);
    let context = if most <= least.context {
        least.context
    } else {
        // Both ends are whole pages here.
        let pages = largest(u64::from(least.context) / page, u64::from(most) / page, |pages| {
            fits(&room(input, (pages * page) as u32, pages * page))
        });
        (pages * page) as u32
    };
    let one = sequence_tokens(context);
    let all = u64::from(room(input, context, one * u64::from(input.parallel.max(1))).cache_tokens);
    let pages = largest(one / page, all / page, |pages| fits(&room(input, context, pages * page)));
    Some(room(input, context, pages * page))
}

/// The largest number in `low..=high` that `fits`, given that `low` does and that what fits has no gaps.
pub(super) fn largest(low: u64, high: u64, fits: impl Fn(u64) -> bool) -> u64 {
    if fits(high) {
        return high;
    }
    let (mut low, mut high) = (low, high);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}
