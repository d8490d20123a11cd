//! Time that is this test's own.

use std::time::Duration;

/// How long this thread has computed: other tests, and other programs, use the processors too.
pub fn computed() -> Duration {
    let read = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    match read.split_whitespace().next().and_then(|nanoseconds| nanoseconds.parse().ok()) {
        Some(nanoseconds) => Duration::from_nanos(nanoseconds),
        // Systems that do not tell.
        None => std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default(),
    }
}

/// What [`work`] takes on a machine that keeps promises exactly: a fifth to a third less than on the one of the committed
/// figures, since one and the same work varies by that much.
const WORK: Duration = Duration::from_millis(25);

/// The longest that what is promised to take `promised` may take here: more than that on a machine that works more slowly,
/// and nowhere less.
pub fn longest(promised: Duration) -> Duration {
    let least = (0..5).map(|_| work()).min().unwrap_or_default();
    promised.mul_f64((least.as_secs_f64() / WORK.as_secs_f64()).max(1.0))
}

/// How long this thread computes something like planning: it makes lists, compares and sorts.
fn work() -> Duration {
    let started = computed();
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let mut lists: Vec<Vec<u64>> = (0..200_000).map(|_| (0..12).map(|_| next()).collect()).collect();
    lists.sort_unstable_by_key(|list| (list[0] % 1000, list[1]));
    assert!(std::hint::black_box(&lists).is_sorted_by_key(|list| (list[0] % 1000, list[1])));
    computed() - started
}
