//! What of a download to ask for next, decided from what has come: a pure machine, which knows no sockets, clocks or disks.
//!
//! A file begins with one request. What answers it decides how to go on: with ranges several requests at once, without
//! them one stream from the start. Whoever drives it tells of each answer and of each end, and does what [`Then`] says.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::digest::Expected;
use super::spans::Spans;

/// Bytes of one request: large beside what a request costs, small beside what is lost where one fails for good.
pub(super) const PART_BYTES: u64 = 16 << 20;

/// How often in a row a request may fail without having brought [`MEANINGFUL_BYTES`]: with pauses that double, a network
/// may be away for a minute.
const MOST_FAILURES: u32 = 7;

/// What a request must bring to count as progress: a server that cuts every connection after less gets nowhere.
const MEANINGFUL_BYTES: u64 = 64 << 10;

/// How often a file may change on the server while it is fetched.
const MOST_CHANGES: u32 = 2;

/// Most doublings of the pause between two tries.
const MOST_DOUBLINGS: u32 = 6;

/// A file to fetch.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Its size, as far as it is known.
    pub(super) bytes: Option<u64>,
    /// What it should hold: where that is known, versions need not be told apart.
    pub(super) expected: Expected,
    /// The server's name of the version of which some is there.
    pub(super) validator: Option<String>,
    /// What is there.
    pub(super) done: Spans,
}

/// A range of a file to ask for.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// Which file.
    pub(super) file: usize,
    /// Which of the file's beginnings it belongs to: after a change it begins anew.
    pub(super) generation: u32,
    /// Its first byte.
    pub(super) start: u64,
    /// Behind its last byte.
    pub(super) end: u64,
    /// What the server must still call the file.
    pub(super) validator: Option<String>,
    /// How long to wait before asking.
    pub(super) pause: Duration,
    /// How often it has failed.
    pub(super) failures: u32,
    /// How many of its bytes have been written; whoever fetches it counts.
    pub(super) written: Arc<AtomicU64>,
}

/// How a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The range, of a file of `total` bytes.
    Range {
        /// Its first byte.
        start: u64,
        /// Behind its last one.
        end: u64,
        /// Size of the file.
        total: u64,
    },
    /// The whole file.
    Whole {
        /// Its size, where that is said.
        total: Option<u64>,
    },
}

/// What to do with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Write its body, which ends at `end`, or wherever it ends.
    Read {
        /// From which byte of the file.
        start: u64,
        /// Behind the last byte.
        end: Option<u64>,
    },
    /// Throw it away, and begin the file anew, as an empty one.
    Restart,
    /// Throw it away; it belongs to a version of the file that was given up.
    Drop,
}

/// Why a file cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stuck {
    /// Its size is not what was said before.
    Size {
        /// What was said.
        wanted: u64,
        /// What the server has.
        found: u64,
    },
    /// It changes all the time.
    Changing,
    /// Every request fails.
    Failing,
    /// The server answers another range than the one asked for.
    OtherRange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Nobody has asked yet, or what is known of it is in doubt.
    Unopened,
    /// One request is on its way.
    Opening,
    /// The server gives ranges.
    Ranges,
    /// One stream is on its way; the server gives no ranges.
    Stream,
    /// Everything is there.
    Complete,
}

#[derive(Debug)]
struct Todo {
    start: u64,
    end: u64,
    failures: u32,
    pause: Duration,
}

#[derive(Debug)]
struct File {
    bytes: Option<u64>,
    expected: Expected,
    validator: Option<String>,
    done: Spans,
    mode: Mode,
    generation: u32,
    changes: u32,
    todo: VecDeque<Todo>,
    flying: Vec<Piece>,
}

/// All files of a download.
#[derive(Debug)]
pub(super) struct Ledger {
    files: Vec<File>,
    backoff: Duration,
}

impl Ledger {
    /// Files to fetch, with the pause after a first failure.
    pub(super) fn new(wanted: Vec<Wanted>, backoff: Duration) -> Ledger {
        let file = |wanted: Wanted| File {
            bytes: wanted.bytes,
            expected: wanted.expected,
            validator: wanted.validator,
            done: wanted.done,
            mode: Mode::Unopened,
            generation: 0,
            changes: 0,
            todo: VecDeque::new(),
            flying: Vec::new(),
        };
        let mut ledger = Ledger { files: wanted.into_iter().map(file).collect(), backoff };
        ledger.files.iter_mut().for_each(File::settle);
        ledger
    }

    /// What to ask for next; `None` where nothing can be before something on its way has ended.
    pub(super) fn next(&mut self) -> Option<Piece> {
        let index = self.files.iter().position(File::can_ask)?;
        self.files[index].next(index)
    }

    /// A server has answered the request for a piece.
    ///
    /// # Errors
    /// Where the file cannot be had.
    pub(super) fn answered(
        &mut self,
        piece: &Piece,
        answer: &Answer,
        validator: Option<&str>,
    ) -> Result<Then, Stuck> {
        let file = &mut self.files[piece.file];
        if file.generation != piece.generation {
            return Ok(Then::Drop);
        }
        // A hash decides better: the servers of one file may well call it differently.
        let named_otherwise = file.expected == Expected::Unknown
            && file.validator.is_some()
            && file.validator.as_deref() != validator;
        let total = match answer {
            Answer::Range { total, .. } => Some(*total),
            Answer::Whole { total } => *total,
        };
        let resized = match (file.bytes, total) {
            (Some(wanted), Some(found)) if wanted != found => Some((wanted, found)),
            _ => None,
        };
        if let (Some((wanted, found)), false) = (resized, file.expected == Expected::Unknown) {
            return Err(Stuck::Size { wanted, found });
        }
        if named_otherwise || resized.is_some() {
            return file.restart(total, validator);
        }
        file.validator = file.validator.take().or_else(|| validator.map(str::to_owned));
        match *answer {
            Answer::Range { start, end, total } => {
                if start != piece.start || end > piece.end.min(total) || end <= start {
                    return Err(Stuck::OtherRange);
                }
                file.bytes = Some(total);
                if file.mode == Mode::Opening {
                    file.mode = Mode::Ranges;
                    file.plan();
                }
                Ok(Then::Read { start, end: Some(end) })
            }
            Answer::Whole { .. } if file.mode == Mode::Ranges => file.restart(total, validator),
            Answer::Whole { total } => {
                file.bytes = file.bytes.or(total);
                file.mode = Mode::Stream;
                file.done = Spans::default();
                file.todo.clear();
                for flying in &mut file.flying {
                    flying.start = 0;
                    flying.end = total.unwrap_or(u64::MAX);
                }
                Ok(Then::Read { start: 0, end: file.bytes })
            }
        }
    }

    /// A piece has ended: with what was counted in it written, and well, or else to be tried again, after a pause of at
    /// least `wait`.
    ///
    /// # Errors
    /// [`Stuck::Failing`] where it has failed too often.
    pub(super) fn ended(&mut self, piece: &Piece, went_well: bool, wait: Duration) -> Result<(), Stuck> {
        let file = &mut self.files[piece.file];
        if file.generation != piece.generation {
            return Ok(());
        }
        let Some(at) = file.flying.iter().position(|flying| Arc::ptr_eq(&flying.written, &piece.written))
        else {
            return Ok(());
        };
        let flying = file.flying.swap_remove(at);
        let written = flying.written.load(Ordering::Relaxed);
        let reached = flying.start.saturating_add(written);
        file.done.add(flying.start, reached);
        if went_well && file.mode == Mode::Stream && file.bytes.is_none() {
            file.bytes = Some(reached);
        }
        let end = file.bytes.map_or(flying.end, |bytes| flying.end.min(bytes));
        if went_well && reached >= end {
            file.settle();
            return Ok(());
        }
        let failures = if written >= MEANINGFUL_BYTES { 1 } else { flying.failures + 1 };
        if failures > MOST_FAILURES {
            return Err(Stuck::Failing);
        }
        // An answer that ended early, but well, is asked on at once.
        let doubled = self.backoff * 2u32.pow((failures - 1).min(MOST_DOUBLINGS));
        let pause = if went_well && written > 0 { Duration::ZERO } else { doubled.max(wait) };
        if matches!(file.mode, Mode::Stream | Mode::Opening) {
            file.mode = Mode::Unopened;
        }
        file.todo.push_front(Todo { start: reached, end, failures, pause });
        Ok(())
    }

    /// What of a file is there, with what is on its way, and its size and validator, as far as these are known.
    pub(super) fn state(&self, file: usize) -> (Spans, Option<u64>, Option<&str>) {
        let file = &self.files[file];
        let mut done = file.done.clone();
        for piece in &file.flying {
            let written = piece.written.load(Ordering::Relaxed);
            done.add(piece.start, piece.start.saturating_add(written));
        }
        (done, file.bytes, file.validator.as_deref())
    }

    /// Bytes of all files that are there, and of all files, as far as these are known.
    pub(super) fn progress(&self) -> (u64, Option<u64>) {
        let done = (0..self.files.len()).map(|file| self.state(file).0.bytes()).sum();
        (done, self.files.iter().map(|file| file.bytes).sum())
    }

    /// Bytes that are missing, as far as sizes are known.
    pub(super) fn missing_bytes(&self) -> u64 {
        let missing = |file: usize| {
            let (done, bytes, _) = self.state(file);
            bytes.map_or(0, |bytes| bytes.saturating_sub(done.bytes()))
        };
        (0..self.files.len()).map(missing).sum()
    }

    /// Whether everything is there.
    pub(super) fn is_complete(&self) -> bool {
        self.files.iter().all(|file| file.mode == Mode::Complete)
    }
}

impl File {
    fn can_ask(&self) -> bool {
        match self.mode {
            Mode::Unopened => self.flying.is_empty(),
            Mode::Ranges => !self.todo.is_empty(),
            Mode::Opening | Mode::Stream | Mode::Complete => false,
        }
    }

    fn next(&mut self, index: usize) -> Option<Piece> {
        let todo = if self.mode == Mode::Unopened {
            // What has failed is asked for again with its pause; a file begins with what is missing first.
            let failed = self.todo.pop_front().unwrap_or(Todo {
                start: 0,
                end: 0,
                failures: 0,
                pause: Duration::ZERO,
            });
            self.todo.clear();
            let size = self.bytes.unwrap_or(u64::MAX);
            let (start, end) = self.done.missing_first(size, PART_BYTES)?;
            self.mode = Mode::Opening;
            Todo { start, end, ..failed }
        } else {
            self.todo.pop_front()?
        };
        let piece = Piece {
            file: index,
            generation: self.generation,
            start: todo.start,
            end: todo.end,
            // Of a file whose hash is known it does not matter what a server calls it, and several may differ in that.
            validator: self.validator.clone().filter(|_| self.expected == Expected::Unknown),
            pause: todo.pause,
            failures: todo.failures,
            written: Arc::default(),
        };
        self.flying.push(piece.clone());
        Some(piece)
    }

    /// Notes everything that is missing and not on its way.
    fn plan(&mut self) {
        let Some(bytes) = self.bytes else { return };
        let mut there = self.done.clone();
        self.flying.iter().for_each(|piece| there.add(piece.start, piece.end.min(bytes)));
        let todo = |(start, end)| Todo { start, end, failures: 0, pause: Duration::ZERO };
        self.todo = there.missing(bytes, PART_BYTES).into_iter().map(todo).collect();
    }

    /// Finds out whether the file is complete.
    fn settle(&mut self) {
        if self.bytes == Some(self.done.bytes()) {
            self.mode = Mode::Complete;
        } else if self.mode == Mode::Ranges && self.todo.is_empty() && self.flying.is_empty() {
            self.plan();
        } else if self.mode == Mode::Stream {
            self.mode = Mode::Unopened;
        }
    }

    /// Gives up what is there: the file is another one.
    fn restart(&mut self, bytes: Option<u64>, validator: Option<&str>) -> Result<Then, Stuck> {
        self.changes += 1;
        if self.changes > MOST_CHANGES {
            return Err(Stuck::Changing);
        }
        self.generation += 1;
        self.done = Spans::default();
        self.todo.clear();
        self.flying.clear();
        self.mode = Mode::Unopened;
        self.bytes = bytes;
        self.validator = validator.map(str::to_owned);
        self.settle();
        Ok(Then::Restart)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 5 * PART_BYTES / 2;

    fn ledger(done: Spans, validator: Option<&str>) -> Ledger {
        let validator = validator.map(str::to_owned);
        let wanted = Wanted { bytes: Some(SIZE), expected: Expected::Unknown, validator, done };
        Ledger::new(vec![wanted], Duration::from_secs(1))
    }

    fn range(piece: &Piece) -> Answer {
        Answer::Range { start: piece.start, end: piece.end, total: SIZE }
    }

    fn finish(ledger: &mut Ledger, piece: &Piece, bytes: u64, went_well: bool) -> Result<(), Stuck> {
        piece.written.store(bytes, Ordering::Relaxed);
        ledger.ended(piece, went_well, Duration::ZERO)
    }

    #[test]
    fn one_request_opens_a_file_and_then_come_the_others() {
        let mut ledger = ledger(Spans::default(), None);
        let first = ledger.next().unwrap();
        assert_eq!((first.start, first.end), (0, PART_BYTES));
        assert!(ledger.next().is_none(), "what answers decides first");
        let then = ledger.answered(&first, &range(&first), Some("v1")).unwrap();
        assert_eq!(then, Then::Read { start: 0, end: Some(PART_BYTES) });
        let (second, third) = (ledger.next().unwrap(), ledger.next().unwrap());
        assert_eq!((second.start, second.end), (PART_BYTES, 2 * PART_BYTES));
        assert_eq!((third.start, third.end), (2 * PART_BYTES, SIZE));
        assert_eq!(third.validator.as_deref(), Some("v1"));
        assert!(ledger.next().is_none());
        for piece in [third, first, second] {
            assert!(!ledger.is_complete());
            ledger.answered(&piece, &range(&piece), Some("v1")).unwrap();
            finish(&mut ledger, &piece, piece.end - piece.start, true).unwrap();
        }
        assert!(ledger.is_complete());
        assert_eq!(ledger.progress(), (SIZE, Some(SIZE)));
    }

    #[test]
    fn only_what_is_missing_is_asked_for() {
        let mut done = Spans::default();
        done.add(100, PART_BYTES);
        done.add(PART_BYTES + 7, SIZE);
        let mut ledger = ledger(done, Some("v1"));
        assert_eq!(ledger.missing_bytes(), 107);
        let first = ledger.next().unwrap();
        assert_eq!((first.start, first.end), (0, 100));
        ledger.answered(&first, &range(&first), Some("v1")).unwrap();
        let second = ledger.next().unwrap();
        assert_eq!((second.start, second.end), (PART_BYTES, PART_BYTES + 7));
        assert!(ledger.next().is_none());
    }

    #[test]
    fn a_piece_that_breaks_off_goes_on_where_it_was_after_a_pause() {
        let mut ledger = ledger(Spans::default(), None);
        let first = ledger.next().unwrap();
        ledger.answered(&first, &range(&first), None).unwrap();
        finish(&mut ledger, &first, 1000, false).unwrap();
        let again = ledger.next().unwrap();
        assert_eq!((again.start, again.end, again.failures), (1000, PART_BYTES, 1));
        assert_eq!(again.pause, Duration::from_secs(1));
        ledger.answered(&again, &range(&again), None).unwrap();
        finish(&mut ledger, &again, 0, false).unwrap();
        let third = ledger.next().unwrap();
        assert_eq!((third.start, third.pause), (1000, Duration::from_secs(2)));
        // Whoever brings much may fail as often as he likes.
        finish(&mut ledger, &third, MEANINGFUL_BYTES, false).unwrap();
        assert_eq!(ledger.next().unwrap().failures, 1);
    }

    #[test]
    fn what_always_fails_is_given_up_and_a_server_may_ask_for_a_longer_pause() {
        let mut ledger = ledger(Spans::default(), None);
        for failures in 0..MOST_FAILURES {
            let piece = ledger.next().unwrap();
            assert_eq!(piece.failures, failures);
            let longest = Duration::from_secs(1) * 2u32.pow(MOST_FAILURES);
            assert!(piece.pause <= longest, "{piece:?}");
            ledger.ended(&piece, false, Duration::from_secs(9)).unwrap();
        }
        let last = ledger.next().unwrap();
        assert_eq!(last.pause, Duration::from_secs(64));
        assert_eq!(finish(&mut ledger, &last, 0, false), Err(Stuck::Failing));
    }

    #[test]
    fn a_file_that_has_changed_begins_anew() {
        let mut done = Spans::default();
        done.add(0, PART_BYTES);
        let mut ledger = ledger(done, Some("v1"));
        let piece = ledger.next().unwrap();
        assert_eq!(ledger.answered(&piece, &Answer::Whole { total: Some(9) }, Some("v2")), Ok(Then::Restart));
        finish(&mut ledger, &piece, 500, true).unwrap();
        assert_eq!(ledger.progress(), (0, Some(9)), "what belongs to the old one does not count");
        let piece = ledger.next().unwrap();
        assert_eq!((piece.start, piece.end, piece.validator.as_deref()), (0, 9, Some("v2")));
        let answer = Answer::Range { start: 0, end: 9, total: 9 };
        assert_eq!(ledger.answered(&piece, &answer, Some("v3")), Ok(Then::Restart));
        let piece = ledger.next().unwrap();
        assert_eq!(ledger.answered(&piece, &answer, Some("v4")), Err(Stuck::Changing));
    }

    #[test]
    fn without_ranges_there_is_one_stream_from_the_start() {
        let mut done = Spans::default();
        done.add(0, PART_BYTES);
        let mut ledger = ledger(done, None);
        let piece = ledger.next().unwrap();
        let whole = Answer::Whole { total: Some(SIZE) };
        assert_eq!(ledger.answered(&piece, &whole, None), Ok(Then::Read { start: 0, end: Some(SIZE) }));
        assert!(ledger.next().is_none());
        finish(&mut ledger, &piece, 2 * PART_BYTES, false).unwrap();
        assert_eq!(ledger.state(0).0.bytes(), 2 * PART_BYTES);
        let piece = ledger.next().unwrap();
        assert_eq!((piece.start, piece.failures), (2 * PART_BYTES, 1), "it may give ranges after all");
        assert_eq!(ledger.answered(&piece, &whole, None), Ok(Then::Read { start: 0, end: Some(SIZE) }));
        finish(&mut ledger, &piece, SIZE, true).unwrap();
        assert!(ledger.is_complete());
    }

    #[test]
    fn a_stream_may_say_its_size_only_by_its_end() {
        let wanted =
            Wanted { bytes: None, expected: Expected::Unknown, validator: None, done: Spans::default() };
        let mut ledger = Ledger::new(vec![wanted], Duration::ZERO);
        assert_eq!(ledger.progress(), (0, None));
        let piece = ledger.next().unwrap();
        assert_eq!(
            ledger.answered(&piece, &Answer::Whole { total: None }, None),
            Ok(Then::Read { start: 0, end: None })
        );
        finish(&mut ledger, &piece, 12, true).unwrap();
        assert!(ledger.is_complete());
        assert_eq!(ledger.progress(), (12, Some(12)));
    }

    #[test]
    fn a_size_that_the_hub_did_not_say_is_refused() {
        let expected = Expected::Sha256("ab".repeat(32).parse().unwrap());
        let wanted =
            Wanted { bytes: Some(10), expected, validator: Some("a".to_owned()), done: Spans::default() };
        let mut ledger = Ledger::new(vec![wanted], Duration::ZERO);
        let piece = ledger.next().unwrap();
        let answer = Answer::Range { start: 0, end: 10, total: 11 };
        assert_eq!(ledger.answered(&piece, &answer, None), Err(Stuck::Size { wanted: 10, found: 11 }));
        let answer = Answer::Range { start: 1, end: 10, total: 10 };
        assert_eq!(ledger.answered(&piece, &answer, Some("b")), Err(Stuck::OtherRange));
    }

    #[test]
    fn empty_files_are_not_asked_for() {
        let wanted =
            Wanted { bytes: Some(0), expected: Expected::Unknown, validator: None, done: Spans::default() };
        assert!(Ledger::new(vec![wanted], Duration::ZERO).is_complete());
    }
}
