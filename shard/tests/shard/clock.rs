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

/// How many times as slow as the machine of the committed figures one that tests run on may be: shared virtual machines
/// were up to two and a half times.
const SLOW_MACHINE: u32 = 3;

/// The longest that what is promised to take `promised` may take here.
pub fn longest(promised: Duration) -> Duration {
    promised * SLOW_MACHINE
}
