//! How many groups decoding sequences go in, and how prompts are cut: what the scheduler decides as it goes and a
//! forecast must foresee.

/// Most decode steps under way: what a worker queues before its engine.
pub const MOST_GROUPS: usize = 32;
/// What an idle moment of the slowest stage counts beside the cycle's length: where two numbers of groups give the same
/// cycle, the one whose slowest stage has less slack absorbs what steps vary by.
const IDLE_COUNTS: f64 = 0.25;
/// How much longer a step's way round by the coordinator must be than what the slowest stage computes meanwhile, before
/// steps are sent ahead of their tokens, the short way round: times are estimates.
pub const SHORT_WAY_WORTHWHILE: f64 = 1.05;
/// Chunks have a multiple of so many rows where they can: matrix products take rows in fours.
pub const EVEN_ROWS: usize = 4;

/// What a number of groups costs: the fewer seconds, the better. `cycle_s` are those from one token of a sequence to its
/// next, and `busy_s` those of them that the slowest stage computes.
pub fn groups_cost(cycle_s: f64, busy_s: f64) -> f64 {
    cycle_s + IDLE_COUNTS * (cycle_s - busy_s)
}

/// Where a stage computes: what it shares with others of its machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seat<M> {
    /// The machine.
    pub machine: M,
    /// What the stage's threads do of all that the machine's processors do together, from 0 to 1.
    pub share: f64,
}

/// Stages of one machine whose threads would do more together than its processors can, since they are more, or processors
/// share cores: while all of them compute they hold each other up, and the machine as a whole decides how fast they go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Crowd {
    /// Stages, each with the share of the machine that it keeps busy.
    shares: Vec<(usize, f64)>,
}

impl Crowd {
    /// The crowds among stages, each of which has a seat or a device of its own.
    pub fn among<M: PartialEq>(seats: &[Option<Seat<M>>]) -> Vec<Crowd> {
        let mut machines: Vec<(&M, Vec<(usize, f64)>)> = Vec::new();
        for (stage, seat) in seats.iter().enumerate() {
            let Some(Seat { machine, share }) = seat else { continue };
            let share = (stage, *share);
            match machines.iter_mut().find(|(known, _)| *known == machine) {
                Some((_, shares)) => shares.push(share),
                None => machines.push((machine, vec![share])),
            }
        }
        let shares = machines.into_iter().map(|(_, shares)| shares);
        let crowded = |shares: &Vec<(usize, f64)>| {
            shares.len() > 1 && shares.iter().map(|(_, share)| share).sum::<f64>() > 1.0
        };
        shares.filter(crowded).map(|shares| Crowd { shares }).collect()
    }

    /// Seconds that the machine is busy while each of its stages is for as long as `stage_s` says.
    pub fn busy_s(&self, stage_s: impl Fn(usize) -> f64) -> f64 {
        self.shares.iter().map(|(stage, share)| share * stage_s(*stage)).sum()
    }
}

/// How many groups of how many of `sequences` sequences there are, where there are `groups` of them, at most one per
/// sequence.
pub(super) fn group_sizes(sequences: usize, groups: usize) -> impl Iterator<Item = (usize, usize)> {
    let groups = groups.clamp(1, sequences.max(1));
    let (least, larger) = (sequences / groups, sequences % groups);
    [(larger, least + 1), (groups - larger, least)].into_iter().filter(|(count, _)| *count > 0)
}

/// The sizes of chunks to choose from, up to `most` rows: any small one, and of the others those that come out even, ever
/// farther apart.
pub fn chunk_sizes(most: usize) -> impl Iterator<Item = usize> {
    let farther = |rows: &usize| Some((rows + rows / 8 + 1).next_multiple_of(EVEN_ROWS));
    let even = std::iter::successors(Some(EVEN_ROWS), farther);
    (1..EVEN_ROWS).chain(even).take_while(move |rows| *rows < most).chain([most.max(1)])
}

/// Rows of all chunks but the last, where `left` rows are cut into chunks of at most `rows`: about as many each, so that
/// the last one is not a sliver.
pub fn even_chunk(left: usize, rows: usize) -> usize {
    let chunks = left.div_ceil(rows.max(1)).max(1);
    left.div_ceil(chunks).next_multiple_of(EVEN_ROWS).min(rows).min(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::SharedHost;

    #[test]
    fn stages_that_would_do_more_than_their_machine_can_are_a_crowd() {
        let host = |processors, speedup| SharedHost { bandwidth_bytes_per_s: 1e9, processors, speedup };
        let seat = |machine, threads| Some(Seat::of(machine, &host(2, 2.0), threads));
        assert_eq!(Crowd::among(&[seat("a", 1.0), seat("a", 1.0), None]), []);
        assert_eq!(Crowd::among(&[seat("a", 4.0), seat("b", 1.0)]), []);
        let cores = Some(Seat::of("a", &host(2, 1.5), 1.0));
        assert_eq!(Crowd::among(&[cores, cores])[0].busy_s(|_| 3.0), 4.0, "processors that share a core");
        let elsewhere = Some(Seat::of("b", &host(8, 8.0), 1.0));
        let three = [seat("a", 1.0), None, seat("a", 1.0), elsewhere, seat("a", 1.0)];
        let found = Crowd::among(&three);
        assert_eq!(found, [Crowd { shares: vec![(0, 0.5), (2, 0.5), (4, 0.5)] }]);
        assert_eq!(found[0].busy_s(|stage| stage as f64), 3.0);
    }

    #[test]
    fn groups_are_as_even_as_they_can_be() {
        let sizes = |sequences, groups| group_sizes(sequences, groups).collect::<Vec<_>>();
        assert_eq!(sizes(8, 3), [(2, 3), (1, 2)]);
        assert_eq!(sizes(8, 2), [(2, 4)]);
        assert_eq!(sizes(2, 5), [(2, 1)]);
        assert_eq!(sizes(0, 1), [(1, 0)]);
    }

    #[test]
    fn chunks_have_a_size_that_is_offered_and_come_out_even() {
        assert_eq!(chunk_sizes(3).collect::<Vec<_>>(), [1, 2, 3]);
        let sizes: Vec<usize> = chunk_sizes(128).collect();
        assert!(sizes.is_sorted() && sizes.iter().all(|rows| *rows < 4 || rows % 4 == 0), "{sizes:?}");
        assert_eq!((sizes.first(), sizes.last()), (Some(&1), Some(&128)));
        assert_eq!(even_chunk(130, 128), 68);
        assert_eq!(even_chunk(5, 128), 5);
        assert_eq!(even_chunk(0, 128), 0);
    }
}
