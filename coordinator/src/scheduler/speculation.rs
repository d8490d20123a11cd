//! How many drafts go with a decode step.
//!
//! A step of `rows` rows that brings `tokens` tokens on average makes `tokens / cycle(rows)` tokens per second (see
//! `groups` for a cycle). A draft adds a row, and as many tokens as its chance of being accepted. The likeliest drafts of
//! all sequences are added as far as that makes more tokens per second, so that one formula says how long drafts are, and
//! that there are none where they do not pay: because guesses fail, or because rows are dear, as they are beside many
//! other streams.

use brigade_proto::ids::SequenceId;

use super::Scheduler;

/// Most drafts in a segment.
pub(super) const MOST_DRAFTS: usize = 24;
/// Drafts less likely than this are not considered: chances this small are not known well enough.
pub(super) const LEAST_CHANCE: f64 = 0.05;
/// By how much drafts must make a step more productive: times and chances are estimates.
pub(super) const WORTHWHILE: f64 = 1.03;
/// After so many decode steps without drafts one is sent with some although it does not seem to pay: what a row costs
/// may have been overestimated, and steps of one size say nothing about it.
const PROBE_EVERY: u64 = 64;
/// The same while a draft model is tried, of which that is not known either.
const TRIAL_PROBE_EVERY: u64 = 4;
/// Drafts of such a step.
pub(super) const PROBE_DRAFTS: usize = 3;
/// The least chance of a first draft that is sent for that.
pub(super) const PROBE_CHANCE: f64 = 0.5;

/// Where drafts come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculation {
    /// From nowhere: every step brings a token.
    Off,
    /// From the sequence's own prompt and answer.
    #[default]
    Lookup,
}

/// How many drafts each sequence of a step should have, where `chances` are those of each one's drafts, falling, and
/// `cycle_s` is how long a cycle takes by the rows of its steps. At most `room` drafts in all. With the tokens per second
/// that they make.
fn best_drafts(chances: &[Vec<f64>], room: usize, cycle_s: impl Fn(usize) -> f64) -> (Vec<usize>, f64) {
    let each = chances.iter().enumerate();
    let mut drafts: Vec<(f64, usize)> = each
        .flat_map(|(place, chances)| chances.iter().take(MOST_DRAFTS).map(move |chance| (*chance, place)))
        .collect();
    // Stable, so that a sequence's drafts stay in order.
    drafts.sort_by(|a, b| b.0.total_cmp(&a.0));
    let plain = chances.len();
    let (mut tokens, mut best_count) = (plain as f64, 0);
    let mut best_rate = tokens / cycle_s(plain) * WORTHWHILE;
    for (count, (chance, _)) in (1..=room).zip(&drafts) {
        tokens += chance;
        let rate = tokens / cycle_s(plain + count);
        if rate > best_rate {
            (best_rate, best_count) = (rate, count);
        }
    }
    let mut counts = vec![0; plain];
    for (_, place) in &drafts[..best_count] {
        counts[*place] += 1;
    }
    if best_count == 0 {
        best_rate /= WORTHWHILE;
    }
    (counts, best_rate)
}

impl Scheduler {
    /// The drafts of a step of these sequences, each of which has a token to send and pages for it; the step has room
    /// for `room` of them. They have pages, too.
    pub(super) fn draft(&mut self, ids: &[SequenceId], room: usize) -> Vec<Vec<u32>> {
        if !self.guesses() || room == 0 {
            return vec![Vec::new(); ids.len()];
        }
        let chances: Vec<Vec<f64>> = ids.iter().map(|id| self.guess(*id)).collect();
        let (mut counts, rate) = self.best_drafts(&chances, room);
        if let ([id], [chances]) = (ids, &chances[..])
            && let Some(chain) = self.chain(*id, chances, rate)
        {
            counts = vec![(chain.rows - 1).min(room).min(chances.len())];
        }
        if counts.iter().any(|count| *count > 0) {
            self.undrafted = 0;
        } else {
            self.undrafted += 1;
            let likely = |chances: &Vec<f64>| chances.first().is_some_and(|chance| *chance >= PROBE_CHANCE);
            let probed = chances.iter().position(likely).filter(|_| self.probe_is_due());
            if let Some(place) = probed {
                counts[place] = chances[place].len().min(PROBE_DRAFTS).min(room);
                self.undrafted = 0;
            }
        }
        ids.iter().zip(counts).map(|(id, count)| self.reserve_drafts(*id, count)).collect()
    }

    /// Whether the next decode step is to have drafts although they do not seem to pay.
    pub(super) fn probe_is_due(&self) -> bool {
        self.undrafted >= if self.drafter.is_tried() { TRIAL_PROBE_EVERY } else { PROBE_EVERY }
    }

    /// How many drafts each sequence of a step should have, and how many tokens per second that makes.
    pub(super) fn best_drafts(&self, chances: &[Vec<f64>], room: usize) -> (Vec<usize>, f64) {
        best_drafts(chances, room, |rows| self.groups.cycle_of_rows_s(&self.times, rows as f64))
    }

    /// Whether there is anywhere that drafts could come from.
    pub(super) fn guesses(&self) -> bool {
        self.speculation != Speculation::Off || self.drafter.is_there()
    }

    /// The first `count` drafts that a sequence is offered, or as many as there are pages for: drafts never make a sequence
    /// give way.
    fn reserve_drafts(&mut self, id: SequenceId, count: usize) -> Vec<u32> {
        let count = self.reserve(id, count);
        self.sequences.get(&id).map_or_else(Vec::new, |sequence| sequence.offered()[..count].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cycle of `fixed` and `row` for each row.
    fn best(chances: &[&[f64]], room: usize, fixed: f64, row: f64) -> Vec<usize> {
        let chances: Vec<Vec<f64>> = chances.iter().map(|chances| chances.to_vec()).collect();
        best_drafts(&chances, room, |rows| fixed + row * rows as f64).0
    }

    #[test]
    fn drafts_are_as_long_as_they_pay() {
        let falling: Vec<f64> = (1..=20).map(|place| 0.8f64.powi(place)).collect();
        let steady = [0.95; 20];
        assert_eq!(best(&[&steady], 100, 4.0, 1.0), [20]);
        assert_eq!(best(&[&falling], 100, 4.0, 1.0), [4]);
        assert_eq!(best(&[&falling], 100, 4.0, 0.1), [10], "cheaper rows, longer drafts");
        assert_eq!(best(&[&falling], 100, 1.0, 1.0), [2]);
        assert_eq!(best(&[&falling], 100, 0.0, 1.0), [0], "rows cost as much as steps");
        assert_eq!(best(&[&[0.05, 0.01]], 100, 4.0, 1.0), [0]);
        assert_eq!(best(&[&steady], 7, 4.0, 1.0), [7]);
        assert_eq!(best(&[], 7, 4.0, 1.0), [0; 0]);
    }

    #[test]
    fn the_likeliest_drafts_of_all_are_sent() {
        let (sure, unsure) = ([0.99, 0.98, 0.97, 0.96], [0.5, 0.25, 0.12, 0.06]);
        assert_eq!(best(&[&unsure, &sure, &[]], 100, 4.0, 1.0), [0, 4, 0]);
        assert_eq!(best(&[&unsure, &sure, &[]], 100, 4.0, 0.1), [2, 4, 0]);
        assert_eq!(best(&[&unsure, &sure, &[]], 2, 4.0, 0.1), [0, 2, 0]);
    }

    #[test]
    fn beside_many_streams_a_draft_must_be_likelier() {
        let chances: Vec<Vec<f64>> = vec![vec![0.6]; 40];
        let count = |streams: usize| {
            let (found, _) = best_drafts(&chances[..streams], 128, |rows| 10.0 + rows as f64);
            found.iter().sum::<usize>()
        };
        assert_eq!((count(1), count(2), count(40)), (1, 2, 0));
    }
}
