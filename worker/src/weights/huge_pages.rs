//! Moving weights to huge pages, once they are loaded.
//!
//! Decoding goes through all weights for every token. On pages of 4 KiB the processor looks up an address for each of
//! them, which on virtual machines goes through two tables: a fifth of the time. Huge pages must be found, though, which
//! takes several times as long as reading the weights where memory is in pieces. So weights are read to small pages, and
//! moved afterwards, 2 MiB at a time, by a thread that rests most of the time, while the stage serves already. Its priority
//! is the usual one: whoever reads a page that is being moved waits for it, so that a mover that is never let run would hold
//! up the steps themselves.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of a huge page, and of the memory that is moved at once: short enough that ending does not wait.
const HUGE_PAGE: usize = 2 << 20;

/// A page that took longer was waited for, not moved, and counts as this long.
const LONGEST_PAGE: Duration = Duration::from_millis(5);

/// For how many times as long as a page took the mover rests after it.
const REST: u32 = 3;

/// Huge pages in a row that could not be had, before the rest stays where it is.
const FAILURES_LIMIT: u32 = 16;

/// The move. Dropping it ends it, after the page under way.
pub(crate) struct HugePages {
    ended: Arc<AtomicBool>,
    mover: Option<JoinHandle<()>>,
}

impl HugePages {
    /// Begins to move `memory`, ranges of addresses. What they hold stays the same at all times.
    ///
    /// Fails where the operating system gives no thread; does nothing where it has no huge pages to be moved to.
    pub(crate) fn begin(memory: Vec<Range<usize>>) -> io::Result<HugePages> {
        let ended = Arc::new(AtomicBool::new(false));
        let seen = ended.clone();
        let mover = std::thread::Builder::new()
            .name("huge-pages".to_owned())
            .spawn(move || move_all(&memory, &seen))?;
        Ok(HugePages { ended, mover: Some(mover) })
    }

    /// Waits until everything is moved that can be.
    pub(crate) fn wait(&mut self) {
        if let Some(mover) = self.mover.take() {
            // A defect in it has moved less, and nothing else.
            let _ = mover.join();
        }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.wait();
    }
}

fn move_all(memory: &[Range<usize>], ended: &AtomicBool) {
    let mut failures = 0;
    for range in memory {
        let whole = range.start.next_multiple_of(HUGE_PAGE)..range.end / HUGE_PAGE * HUGE_PAGE;
        for address in whole.step_by(HUGE_PAGE) {
            if ended.load(Ordering::Relaxed) || failures == FAILURES_LIMIT {
                return;
            }
            let start = Instant::now();
            failures = if collapse(address) { 0 } else { failures + 1 };
            std::thread::sleep(start.elapsed().min(LONGEST_PAGE) * REST);
        }
    }
}

/// Moves the memory of a huge page to one; `false` where there is none.
#[cfg(target_os = "linux")]
fn collapse(address: usize) -> bool {
    /// Since Linux 6.1; see madvise(2).
    const MADV_COLLAPSE: libc::c_int = 25;
    // SAFETY: the call changes no byte, whatever lies at the address.
    unsafe { libc::madvise(address as *mut libc::c_void, HUGE_PAGE, MADV_COLLAPSE) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn collapse(_address: usize) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::WeightBuffer;

    /// More than two huge pages, wherever the system puts them, and not a whole number of them.
    fn filled() -> (WeightBuffer, Range<usize>) {
        let mut buffer = WeightBuffer::zeroed(3 * HUGE_PAGE + 12_345).expect("a few MiB");
        buffer.bytes_mut().iter_mut().enumerate().for_each(|(i, byte)| *byte = (i % 251) as u8);
        let bytes = buffer.bytes().as_ptr_range();
        let range = bytes.start as usize..bytes.end as usize;
        (buffer, range)
    }

    fn unchanged(buffer: &WeightBuffer) -> bool {
        buffer.bytes().iter().enumerate().all(|(i, byte)| *byte == (i % 251) as u8)
    }

    #[test]
    fn moving_changes_no_byte_and_can_be_ended_at_any_time() {
        let (first, first_range) = filled();
        let (second, second_range) = filled();
        let mut moving = HugePages::begin(vec![first_range, second_range]).expect("a thread");
        // Read while they are moved.
        assert!(unchanged(&first) && unchanged(&second));
        moving.wait();
        assert!(unchanged(&first) && unchanged(&second));
        let (third, range) = filled();
        drop(HugePages::begin(vec![range]).expect("a thread"));
        assert!(unchanged(&third));
    }
}
