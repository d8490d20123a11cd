//! How large the next prompt chunk is, how many are under way, and which prompts it is of.
//!
//! A prompt of `P` rows in chunks of `c` rows takes, alone, the first chunk's way through all stages and then the slowest
//! stage once per further chunk: `sum over stages of t(c) + (ceil(P / c) - 1) * t(c) of the slowest stage`. Small chunks
//! fill and drain the pipeline quickly; large ones pay the fixed part of a step less often. Results do not depend on it.
//!
//! While sequences decode, stages compute `d` decode steps for every chunk. With `G` groups, a sequence gets a token once
//! per `G` decode steps and `max(G / d, 1)` chunks of the slowest stage, or once per round of its step that finds a chunk
//! just begun on every stage, whichever is longer. In the first case a step that comes a moment late finds one chunk more
//! on every stage but one. This is kept below [`LONGEST_GAP`] usual cycles, and where that leaves a choice, a prompt takes
//! less than [`LONGEST_PROMPT`] times as long as alone.
//!
//! Instead of that, `r` rows of prompts may ride with every decode step: what is read for `s` sequences is read for `s + r`
//! rows at once, and no step finds a chunk in its way. Then a cycle takes what decode steps of `s + r` rows take, and brings
//! prompts `G * r` rows further. Where decoding alone does not fill the pipeline, chunks of their own may do better.

use std::cmp::Ordering;

use brigade_proto::step::StepKind;
use brigade_shard::plan::pace::{chunk_sizes, even_chunk};

use super::groups::Groups;
use super::times::Times;

/// Most chunks under way: half of the frames that a worker queues before its engine.
pub(super) const MOST_CHUNKS: usize = 32;
/// How many of its usual cycles a sequence may wait for a token because of prompts; four are promised, and times vary.
const LONGEST_GAP: f64 = 3.7;
/// How many times as long as alone a prompt may take because of decoding; twice is promised, and times vary.
const LONGEST_PROMPT: f64 = 1.6;
/// Most rows that ride with a decode step: its frames are to stay small, and arithmetic decides long before that.
const MOST_RIDING: usize = 64;
/// Another way for prompts beside decoding must be better by this share: chunks of the one kind wait for those of the other.
const CLEARLY: f64 = 0.1;
/// Two ways are as fast within this share: it is what times are known to.
const AS_FAST: f64 = 0.03;
/// Chunks under way beyond what keeps the slowest stage busy, as a share of that: chunks differ in how long they take.
const SPARE_CHUNKS: f64 = 0.05;

/// How prompts go on their way at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunking {
    /// Most rows of a step; at least 1.
    pub(super) rows: usize,
    /// Most prefill steps under way; at least 1.
    pub(super) under_way: usize,
    /// How many decode steps may be sent for each chunk that comes home; at least 1.
    pub(super) decodes: u64,
    /// Rows of prompts that go with every decode step; 0 where chunks go in steps of their own.
    pub(super) riding: usize,
}

/// What is decoded beside prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decoding {
    /// Sequences that decode.
    pub(super) sequences: usize,
    /// Whether prompts ride with them already: what changes that must be clearly better.
    pub(super) rides: bool,
    /// Whether decode steps are sent before their tokens are known, so that nothing can ride with them.
    pub(super) short_way: bool,
}

impl Chunking {
    /// The best chunks for prompts of `prompt_rows` rows together beside what is decoded in `groups`; steps have at most
    /// `step_rows` rows.
    pub(super) fn choose(
        times: &Times,
        groups: &Groups,
        beside: Decoding,
        prompt_rows: usize,
        step_rows: usize,
    ) -> Chunking {
        let prompt_rows = prompt_rows.max(1);
        let alone = chunk_sizes(step_rows.min(prompt_rows))
            .map(|rows| (rows, alone_s(times, prompt_rows, rows)))
            .min_by(|a, b| a.1.total_cmp(&b.1));
        let (mut rows, alone_s) = alone.unwrap_or((1, 0.0));
        let (mut decodes, mut riding) = (1, 0);
        let Decoding { sequences: decoding, rides, short_way } = beside;
        if decoding > 0 {
            let allowed_s = LONGEST_PROMPT * alone_s / prompt_rows as f64;
            let beside = Beside { times, groups, decoding };
            let own = beside.best(rows, allowed_s);
            (rows, decodes) = own.what;
            let most = step_rows.saturating_sub(groups.largest(decoding)).min(MOST_RIDING);
            if !short_way && most > 0 {
                let with = beside.best_riding(most, allowed_s);
                let favour = if rides { 1.0 - CLEARLY } else { 1.0 };
                riding = if with.is_better(&own, favour) { with.what } else { 0 };
            }
        }
        let (round_s, slowest_s) = times.sum_and_slowest(StepKind::Prefill, rows as f64);
        let busy = (round_s + times.wire_s()) / slowest_s * (1.0 + SPARE_CHUNKS);
        // One more while decode steps come between them.
        let under_way = busy.ceil() as usize + usize::from(decoding > 0);
        Chunking { rows, under_way: under_way.clamp(1, MOST_CHUNKS), decodes, riding }
    }
}

/// Seconds of a prompt of `prompt_rows` in chunks of `rows`, with nothing beside it.
fn alone_s(times: &Times, prompt_rows: usize, rows: usize) -> f64 {
    let (sum_s, slowest_s) = times.prefill_alone(rows as f64);
    sum_s + (prompt_rows.div_ceil(rows) - 1) as f64 * slowest_s
}

/// A way to let prompts go on beside decoding.
#[derive(Clone, Copy, Debug)]
struct Choice<T> {
    what: T,
    /// Seconds per row of a prompt, or those that are allowed, whichever is longer.
    row_s: f64,
    /// The longest that a sequence waits for its next token.
    gap_s: f64,
}

impl<T> Choice<T> {
    fn compare(&self, other: &Choice<T>) -> Ordering {
        self.row_s.total_cmp(&other.row_s).then(self.gap_s.total_cmp(&other.gap_s))
    }

    /// Whether it is better than one of another kind, where its own times count `favour` times: prompts are faster, or as
    /// fast and decoding is held up less.
    fn is_better<U>(&self, other: &Choice<U>, favour: f64) -> bool {
        let (row_s, gap_s) = (self.row_s * favour, self.gap_s * favour);
        row_s < other.row_s * (1.0 - AS_FAST)
            || (row_s < other.row_s * (1.0 + AS_FAST) && gap_s < other.gap_s)
    }
}

/// Chunks beside sequences that decode.
struct Beside<'a> {
    times: &'a Times,
    groups: &'a Groups,
    decoding: usize,
}

impl Beside<'_> {
    /// The size of chunks, up to `most` rows, and the decode steps per chunk: of those that keep the longest gap, the ones
    /// that hold up decoding least while a prompt takes at most `allowed_s` per row; where there are none, the ones with
    /// which prompts are fastest.
    fn best(&self, most: usize, allowed_s: f64) -> Choice<(usize, u64)> {
        let longest_s = self.longest_s();
        let most_decodes = 2 * (self.groups.others() as u64 + 1);
        let all = chunk_sizes(most).flat_map(|rows| (1..=most_decodes).map(move |decodes| (rows, decodes)));
        let kept = all.filter(|&(rows, decodes)| rows == 1 || self.gap_s(rows, decodes) <= longest_s);
        let choice = |what @ (rows, decodes)| {
            let row_s = self.row_s(rows, decodes).max(allowed_s);
            Choice { what, row_s, gap_s: self.gap_s(rows, decodes) }
        };
        kept.map(choice).min_by(Choice::compare).unwrap_or_else(|| choice((1, 1)))
    }

    /// The same for rows that ride with every decode step, up to `most`.
    fn best_riding(&self, most: usize, allowed_s: f64) -> Choice<usize> {
        let longest_s = self.longest_s();
        let choice = |rows: usize| {
            let groups = self.groups.others() + 1;
            let (sum_s, slowest_s) =
                self.times.riding(self.groups.largest(self.decoding) as f64, rows as f64);
            let cycle_s = (groups as f64 * slowest_s).max(sum_s + self.times.wire_s());
            let row_s = cycle_s / (groups * rows) as f64;
            Choice { what: rows, row_s: row_s.max(allowed_s), gap_s: cycle_s }
        };
        let kept =
            chunk_sizes(most).map(choice).filter(|choice| choice.what == 1 || choice.gap_s <= longest_s);
        kept.min_by(Choice::compare).unwrap_or_else(|| choice(1))
    }

    /// The longest that a sequence may wait for its next token.
    fn longest_s(&self) -> f64 {
        LONGEST_GAP * self.groups.usual_cycle_s(self.times, self.decoding)
    }

    fn stages(&self, rows: usize) -> impl Iterator<Item = (f64, f64)> {
        let largest = self.groups.largest(self.decoding) as f64;
        let stages = self.times.lines(StepKind::Decode).zip(self.times.lines(StepKind::Prefill));
        stages.map(move |(decode, prefill)| (decode.at(largest), prefill.at(rows as f64)))
    }

    /// Seconds per row of a prompt where the slowest stage computes so many decode steps beside each chunk.
    fn row_s(&self, rows: usize, decodes: u64) -> f64 {
        let stages = self.stages(rows);
        stages.map(|(decode_s, chunk_s)| chunk_s + decodes as f64 * decode_s).fold(0.0, f64::max)
            / rows as f64
    }

    /// The longest that a sequence waits for its next token.
    fn gap_s(&self, rows: usize, decodes: u64) -> f64 {
        let groups = self.groups.others() as f64 + 1.0;
        let chunks_per_cycle = (groups / decodes as f64).max(1.0);
        let cycles =
            self.stages(rows).map(|(decode_s, chunk_s)| groups * decode_s + chunks_per_cycle * chunk_s);
        let cycle_s = cycles.fold(0.0, f64::max);
        let (chunks_s, shortest_s) = self
            .stages(rows)
            .fold((0.0, f64::INFINITY), |(sum, least), (_, chunk_s)| (sum + chunk_s, chunk_s.min(least)));
        let late_s = chunks_s - shortest_s;
        let round_s = self.groups.round_s(self.times, self.decoding) + chunks_s;
        (cycle_s + late_s).max(round_s)
    }
}

/// Cuts a chunk of at most `rows` rows from prompts of which `left` rows are left, oldest first: how many rows of each.
///
/// The oldest gets half of the chunk, so that it always comes to its end, and what has the least left gets the rest, so
/// that short prompts do not wait behind long ones. Chunks are cut evenly, so that the last one is not a sliver.
pub(super) fn deal(left: &[usize], rows: usize) -> Vec<usize> {
    let total: usize = left.iter().sum();
    let mut free = even_chunk(total, rows);
    let mut shares = vec![0; left.len()];
    let mut take = |place: usize, most: usize, free: &mut usize| {
        let rows = (left[place] - shares[place]).min(most);
        shares[place] += rows;
        *free -= rows;
    };
    if !left.is_empty() {
        take(0, free.div_ceil(2), &mut free);
    }
    let mut shortest: Vec<usize> = (0..left.len()).collect();
    shortest.sort_by_key(|&place| (left[place], place));
    for place in shortest {
        let most = free;
        take(place, most, &mut free);
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::times::StagePrediction;

    /// Stages that take `fixed_ms` for any chunk and `row_ms` for each row, and decode a token in `fixed_ms`.
    fn times(stages: &[(f64, f64)]) -> Times {
        let predicted = |&(fixed_ms, row_ms): &(f64, f64)| StagePrediction {
            decode_s: fixed_ms / 1e3,
            prefill_s_per_row: row_ms / 1e3,
        };
        let predicted: Vec<StagePrediction> = stages.iter().map(predicted).collect();
        Times::new(&predicted, 512)
    }

    fn beside(sequences: usize) -> Decoding {
        Decoding { sequences, rides: false, short_way: false }
    }

    fn alone(stages: &[(f64, f64)], prompt_rows: usize) -> Chunking {
        Chunking::choose(&times(stages), &Groups::new(), beside(0), prompt_rows, 512)
    }

    #[test]
    fn a_single_stage_takes_the_largest_chunks_and_a_pipeline_smaller_ones() {
        assert_eq!(alone(&[(10.0, 4.0)], 4096).rows, 512);
        // About sqrt(P * fixed / per_row): between overlap and what each chunk costs.
        let chunking = alone(&[(10.0, 4.0); 2], 2048);
        assert!((32..=64).contains(&chunking.rows), "{chunking:?}");
        assert!(alone(&[(100.0, 4.0); 2], 2048).rows > 128);
        assert!(alone(&[(1.0, 4.0); 2], 2048).rows <= 32);
        assert!(alone(&[(10.0, 4.0); 2], 128).rows <= 32);
        assert!(alone(&[(10.0, 4.0); 8], 2048).rows <= 32);
    }

    #[test]
    fn as_many_chunks_are_under_way_as_keep_the_slowest_stage_busy() {
        assert_eq!(alone(&[(10.0, 4.0)], 4096).under_way, 2);
        assert_eq!(alone(&[(10.0, 4.0); 3], 4096).under_way, 4);
        assert_eq!(alone(&[(30.0, 12.0), (10.0, 4.0), (10.0, 4.0)], 4096).under_way, 2);
    }

    #[test]
    fn beside_decoding_chunks_are_as_short_as_the_longest_gap_asks() {
        let times = times(&[(20.0, 4.0); 2]);
        let mut groups = Groups::new();
        let sequences = 8;
        groups.adapt(&times, sequences, 0);
        let chunking = Chunking::choose(&times, &groups, beside(sequences), 4096, 512);
        let free = Chunking::choose(&times, &groups, beside(0), 4096, 512);
        assert!(chunking.rows < free.rows, "{chunking:?} {free:?}");
        let chunk_s = times.sum_and_slowest(StepKind::Prefill, chunking.rows as f64).0;
        let round_s = groups.round_s(&times, sequences) + chunk_s;
        assert!(round_s <= 4.0 * groups.cycle_s(&times, sequences), "{round_s}");
    }

    #[test]
    fn rows_of_prompts_ride_where_decoding_fills_the_pipeline() {
        let times = times(&[(20.0, 4.0); 2]);
        let mut groups = Groups::new();
        groups.adapt(&times, 8, 0);
        let choose = |groups: &Groups, beside| Chunking::choose(&times, groups, beside, 4096, 512);
        assert!(choose(&groups, beside(8)).riding > 0);
        assert_eq!(choose(&groups, Decoding { short_way: true, ..beside(8) }).riding, 0);
        assert_eq!(choose(&Groups::new(), beside(0)).riding, 0, "there is nothing to ride with");
    }

    #[test]
    fn steps_that_say_nothing_still_get_chunks() {
        let odd = Times::new(&[StagePrediction { decode_s: f64::NAN, prefill_s_per_row: f64::NAN }; 2], 512);
        let chunking = Chunking::choose(&odd, &Groups::new(), beside(3), 0, 1);
        assert_eq!(chunking.rows, 1);
        assert!(chunking.under_way >= 2 && chunking.decodes >= 1);
    }

    #[test]
    fn a_prompt_is_cut_evenly() {
        assert_eq!(deal(&[130], 128), [68]);
        assert_eq!(deal(&[58], 128), [58]);
        assert_eq!(deal(&[5], 128), [5]);
        assert_eq!(deal(&[100], 7), [7]);
        assert_eq!(deal(&[], 128), [0; 0]);
    }

    #[test]
    fn the_oldest_gets_half_and_the_shortest_the_rest() {
        assert_eq!(deal(&[4000, 3000, 20], 128), [64, 44, 20]);
        assert_eq!(deal(&[4000, 3000, 2000], 128), [64, 0, 64]);
        assert_eq!(deal(&[10, 3000, 2000], 128), [10, 0, 118]);
        assert_eq!(deal(&[3000, 5, 5], 1), [1, 0, 0]);
    }
}
