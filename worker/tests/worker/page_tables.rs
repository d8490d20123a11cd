//! The cache's bookkeeping: what is shared is computed, nothing is written that another sequence has, and a wish that
//! fails changes nothing.

use std::collections::BTreeMap;

use super::tiny_model::Random;
use brigade_proto::ids::SequenceId;
use brigade_worker::cache::{Append, CacheError, CacheLimits, CacheUsage, PageTables};

fn tables() -> PageTables {
    PageTables::new(CacheLimits { pages: 6, sequences: 3, context: 160 })
}

/// A sequence goes on.
fn append(sequence: u64, start: u32, tokens: u32, pages: &[u32]) -> Append<'_> {
    Append { sequence: SequenceId(sequence), start, tokens, begin: false, pages }
}

/// A sequence begins.
fn begin(sequence: u64, start: u32, tokens: u32, pages: &[u32]) -> Append<'_> {
    Append { begin: true, ..append(sequence, start, tokens, pages) }
}

#[test]
fn pages_are_given_and_stay_with_truncation() {
    let mut tables = tables();
    tables.append(&[begin(1, 0, 33, &[4, 0]), begin(2, 0, 1, &[2])]).unwrap();
    assert_eq!(tables.pages(SequenceId(1)), [4, 0]);
    tables.append(&[append(1, 33, 31, &[])]).unwrap();
    tables.append(&[append(1, 64, 1, &[3])]).unwrap();
    assert_eq!(tables.pages(SequenceId(1)), [4, 0, 3]);
    tables.append(&[append(1, 10, 2, &[])]).unwrap();
    assert_eq!(tables.pages(SequenceId(1)), [4, 0, 3]);
    assert_eq!(tables.usage(), CacheUsage { tokens: 13, sequences: 2 });
    tables.truncate(SequenceId(1), 0);
    assert_eq!(tables.tokens(SequenceId(1)), Some(0));
    tables.release(SequenceId(1));
    assert_eq!(tables.tokens(SequenceId(1)), None);
    assert_eq!(tables.usage(), CacheUsage { tokens: 1, sequences: 1 });
}

#[test]
fn what_is_shared_counts_once_and_outlives_its_sequences() {
    let mut tables = tables();
    tables.append(&[begin(1, 0, 70, &[0, 1, 2])]).unwrap();
    tables.append(&[begin(2, 64, 3, &[0, 1, 3])]).unwrap();
    assert_eq!(tables.usage(), CacheUsage { tokens: 73, sequences: 2 });
    tables.release(SequenceId(1));
    assert_eq!(tables.usage(), CacheUsage { tokens: 67, sequences: 1 });
    tables.release(SequenceId(2));
    assert_eq!(tables.usage(), CacheUsage::default());
    tables.append(&[begin(3, 32, 5, &[0, 4])]).unwrap();
    assert_eq!(tables.usage(), CacheUsage { tokens: 37, sequences: 1 });
    // Page 1 is given to be written: what was in it is gone.
    tables.append(&[append(3, 37, 30, &[1])]).unwrap();
    let refused = tables.append(&[begin(1, 64, 1, &[0, 1, 5])]);
    assert_eq!(refused, Err(CacheError::NotComputed { sequence: SequenceId(1), page: 1, tokens: 3 }));
    tables.clear();
    assert!(tables.append(&[begin(1, 32, 1, &[0, 1])]).is_err(), "clearing forgets what was in the pages");
}

#[test]
fn a_sequence_may_begin_anew_in_its_own_pages() {
    let mut tables = tables();
    tables.append(&[begin(1, 0, 70, &[0, 1, 2])]).unwrap();
    tables.append(&[begin(1, 32, 40, &[0, 2, 1])]).unwrap();
    assert_eq!(tables.pages(SequenceId(1)), [0, 2, 1]);
    assert_eq!(tables.usage(), CacheUsage { tokens: 72, sequences: 1 });
}

#[test]
fn what_cannot_be_changes_nothing() {
    let mut tables = tables();
    tables.append(&[begin(1, 0, 40, &[0, 1])]).unwrap();
    let id = SequenceId;
    for (step, error) in [
        (vec![append(7, 0, 1, &[2])], CacheError::UnknownSequence { sequence: id(7) }),
        (vec![append(1, 41, 1, &[])], CacheError::Gap { sequence: id(1), start: 41, held: 40 }),
        (vec![append(1, 40, 121, &[])], CacheError::TooLong { sequence: id(1), tokens: 161, context: 160 }),
        (
            vec![append(1, 40, u32::MAX, &[])],
            CacheError::TooLong { sequence: id(1), tokens: 40 + u64::from(u32::MAX), context: 160 },
        ),
        (vec![begin(2, 0, 1, &[2]), append(2, 1, 1, &[])], CacheError::Repeated { sequence: id(2) }),
        (vec![append(1, 40, 25, &[])], CacheError::TooFewPages { sequence: id(1), tokens: 65, pages: 2 }),
        (
            vec![begin(2, 0, 1, &[2, 3, 4, 5, 0, 1])],
            CacheError::TooManyPages { sequence: id(2), pages: 6, context: 160 },
        ),
        (vec![begin(2, 0, 1, &[6])], CacheError::UnknownPage { sequence: id(2), page: 6, pages: 6 }),
        (vec![begin(2, 0, 1, &[1])], CacheError::PageInUse { sequence: id(2), page: 1 }),
        (vec![begin(2, 0, 1, &[2, 2])], CacheError::PageInUse { sequence: id(2), page: 2 }),
        (
            vec![begin(2, 0, 1, &[2]), begin(3, 0, 1, &[2])],
            CacheError::PageInUse { sequence: id(3), page: 2 },
        ),
        (
            vec![append(1, 31, 1, &[]), begin(2, 32, 1, &[0, 2])],
            CacheError::PageInUse { sequence: id(2), page: 0 },
        ),
        (vec![begin(2, 31, 1, &[0, 2])], CacheError::PartOfPage { sequence: id(2), start: 31 }),
        (vec![begin(2, 64, 1, &[0, 1, 2])], CacheError::NotComputed { sequence: id(2), page: 1, tokens: 8 }),
        (
            vec![begin(2, 0, 1, &[2]), begin(3, 0, 1, &[3]), begin(4, 0, 1, &[4])],
            CacheError::TooManySequences { wanted: 4, limit: 3 },
        ),
    ] {
        assert_eq!(tables.append(&step), Err(error));
        assert_eq!(tables.usage(), CacheUsage { tokens: 40, sequences: 1 });
    }
    tables.append(&[begin(2, 32, 1, &[0, 2])]).unwrap();
    assert_eq!(
        tables.append(&[append(1, 31, 1, &[])]),
        Err(CacheError::PageInUse { sequence: id(1), page: 0 })
    );
}

/// What each sequence has said, and what stands in each page, kept without any cleverness.
#[derive(Default)]
struct Naive {
    said: BTreeMap<u64, (Vec<u32>, Vec<u64>)>,
    pages: [Vec<u64>; 6],
}

/// Random steps against a cache that is kept naively: whatever is accepted leaves every sequence's own tokens in its
/// pages, and what a careful coordinator wants is never refused.
#[test]
fn no_sequence_ever_loses_a_token_to_another() {
    let mut tables = tables();
    let mut naive = Naive::default();
    let mut random = Random::new(12345);
    let mut next = |below: u32| (random.uniform() * below as f32) as u32;
    let (mut token, mut shared, mut refused) = (0, 0, 0);
    for _ in 0..40_000 {
        let sequence = u64::from(next(4));
        let known = naive.said.get(&sequence).cloned();
        match next(6) {
            0 => {
                tables.release(SequenceId(sequence));
                naive.said.remove(&sequence);
            }
            1 => {
                let length = next(100);
                tables.truncate(SequenceId(sequence), length);
                if let Some((_, said)) = naive.said.get_mut(&sequence) {
                    said.truncate(length as usize);
                }
            }
            choice => {
                let begins = known.is_none() || choice == 2;
                let (mut pages, mut said) = known.filter(|_| !begins).unwrap_or_default();
                let mut start = next(said.len() as u32 + 2);
                let given: Vec<u32> = (0..next(5)).map(|_| next(6)).collect();
                if begins {
                    start = 32 * next(given.len() as u32 + 1);
                    let shared = &given[..start as usize / 32];
                    said = shared.iter().flat_map(|page| naive.pages[*page as usize].clone()).collect();
                }
                let count = next(70) + 1;
                let step = Append { begin: begins, ..append(sequence, start, count, &given) };
                if tables.append(&[step]).is_err() {
                    refused += 1;
                    continue;
                }
                assert!(!begins || said.len() == start as usize, "shared pages are whole");
                shared += usize::from(begins && start > 0);
                pages.extend(&given);
                said.truncate(start as usize);
                said.extend((0..count).map(|_| {
                    token += 1;
                    token
                }));
                // Pages given to be written are empty, and then hold what was said.
                for page in &given[if begins { start as usize / 32 } else { 0 }..] {
                    naive.pages[*page as usize].clear();
                }
                for (page, tokens) in pages.iter().zip(said.chunks(32)).skip(start as usize / 32) {
                    naive.pages[*page as usize] = tokens.to_vec();
                }
                naive.said.insert(sequence, (pages, said));
            }
        }
        for (sequence, (pages, said)) in &naive.said {
            assert_eq!(tables.pages(SequenceId(*sequence)), pages);
            assert_eq!(tables.tokens(SequenceId(*sequence)), Some(said.len() as u32));
            for (page, tokens) in pages.iter().zip(said.chunks(32)) {
                assert!(
                    naive.pages[*page as usize].starts_with(tokens),
                    "sequence {sequence} in page {page}"
                );
            }
        }
    }
    assert!(shared > 100 && refused > 500, "{shared} shared and {refused} refused");
    (0..4).for_each(|id| tables.release(SequenceId(id)));
    assert_eq!(tables.usage(), CacheUsage::default());
    tables.append(&[begin(1, 0, 160, &[0, 1, 2, 3, 4]), begin(2, 0, 32, &[5])]).unwrap();
}
