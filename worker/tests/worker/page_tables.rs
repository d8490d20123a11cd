//! The cache's bookkeeping: pages are neither lost nor shared, and a wish that fails changes nothing.

use brigade_proto::ids::SequenceId;
use brigade_worker::cache::{Append, CacheError, CacheLimits, CacheUsage, PageTables};

fn tables() -> PageTables {
    PageTables::new(CacheLimits { pages: 6, sequences: 3, context: 160 })
}

fn append(sequence: u64, start: u32, tokens: u32) -> Append {
    Append { sequence: SequenceId(sequence), start, tokens, begin: start == 0 }
}

#[test]
fn pages_come_as_tokens_do_and_go_with_truncation() {
    let mut tables = tables();
    tables.append(&[append(1, 0, 33), append(2, 0, 1)]).unwrap();
    assert_eq!(tables.pages(SequenceId(1)), [0, 1]);
    assert_eq!(tables.pages(SequenceId(2)), [2]);
    tables.append(&[append(1, 33, 31)]).unwrap();
    assert_eq!(tables.pages(SequenceId(1)), [0, 1]);
    tables.append(&[append(1, 64, 1)]).unwrap();
    assert_eq!(tables.pages(SequenceId(1)), [0, 1, 3]);
    tables.append(&[append(1, 10, 2)]).unwrap();
    assert_eq!(tables.pages(SequenceId(1)), [0]);
    assert_eq!(tables.usage(), CacheUsage { tokens: 13, sequences: 2 });
    tables.truncate(SequenceId(1), 0);
    assert_eq!(tables.tokens(SequenceId(1)), Some(0));
    tables.release(SequenceId(1));
    assert_eq!(tables.tokens(SequenceId(1)), None);
}

#[test]
fn what_cannot_be_changes_nothing() {
    let mut tables = tables();
    tables.append(&[append(1, 0, 40)]).unwrap();
    let id = SequenceId;
    let go_on = Append { begin: false, ..append(7, 0, 1) };
    for (step, error) in [
        (vec![go_on], CacheError::UnknownSequence { sequence: id(7) }),
        (vec![append(1, 41, 1)], CacheError::Gap { sequence: id(1), start: 41, held: 40 }),
        (vec![append(1, 40, 121)], CacheError::TooLong { sequence: id(1), tokens: 161, context: 160 }),
        (
            vec![append(1, 40, u32::MAX)],
            CacheError::TooLong { sequence: id(1), tokens: 40 + u64::from(u32::MAX), context: 160 },
        ),
        (vec![append(2, 0, 1), append(2, 1, 1)], CacheError::Repeated { sequence: id(2) }),
        (vec![append(2, 0, 160)], CacheError::OutOfPages { wanted: 5, free: 4, pages: 6 }),
        (
            vec![append(2, 0, 1), append(3, 0, 1), append(4, 0, 1)],
            CacheError::TooManySequences { wanted: 4, limit: 3 },
        ),
    ] {
        assert_eq!(tables.append(&step), Err(error));
        assert_eq!(tables.usage(), CacheUsage { tokens: 40, sequences: 1 });
    }
    // Pages that the step itself gives up count as free.
    tables.append(&[append(1, 0, 1), append(2, 0, 160)]).unwrap();
    tables.clear();
    assert_eq!(tables.usage(), CacheUsage::default());
    tables.append(&[append(9, 0, 150)]).unwrap();
}

#[test]
fn no_page_is_ever_lost_or_shared() {
    let mut tables = tables();
    let mut random = 12345u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % below
    };
    for _ in 0..20_000 {
        let sequence = SequenceId(next(4));
        match next(4) {
            0 => tables.release(sequence),
            1 => tables.truncate(sequence, next(100) as u32),
            _ => {
                let start = next(u64::from(tables.tokens(sequence).unwrap_or(0)) + 2) as u32;
                let _ = tables.append(&[append(sequence.0, start, next(70) as u32 + 1)]);
            }
        }
        let mut pages: Vec<u32> = (0..4).flat_map(|id| tables.pages(SequenceId(id)).to_vec()).collect();
        let needed: u32 =
            (0..4).filter_map(|id| tables.tokens(SequenceId(id))).map(|tokens| tokens.div_ceil(32)).sum();
        assert_eq!(pages.len(), needed as usize);
        pages.sort_unstable();
        pages.dedup();
        assert_eq!(pages.len(), needed as usize, "a page is held twice");
    }
    (0..4).for_each(|id| tables.release(SequenceId(id)));
    tables.append(&[append(1, 0, 160), append(2, 0, 32)]).unwrap();
}
