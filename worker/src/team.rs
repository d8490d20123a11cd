//! Threads that do the pieces of one piece of work after another.
//!
//! A step has some hundreds of operations of a few microseconds each, too short to wake a thread for: a member that has
//! nothing to do looks for the next work for a moment before it sleeps, so that it sleeps between steps and not within
//! them. The thread that gives work does its share, and giving it allocates nothing.

use std::any::Any;
use std::cell::UnsafeCell;
use std::convert::Infallible;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a member looks for work before it sleeps: longer than the parts of a step that one thread does alone, and
/// nothing beside the time between two steps.
const PATIENCE: Duration = Duration::from_micros(50);

/// Looks for work, or for its end, before the system is asked whether another thread needs the processor more.
const LOOKS: u32 = 64;

/// A fixed number of threads, of which the caller is one.
pub struct Team {
    shared: Arc<Shared>,
    members: Vec<JoinHandle<()>>,
    /// Held by the thread whose work is being done.
    turn: Mutex<()>,
}

struct Shared {
    /// What is being done, see [`Turn`].
    turn: AtomicU64,
    /// Valid while the turn is open, or somebody has joined it.
    job: UnsafeCell<Option<Job>>,
    /// The next piece that nobody has taken.
    next: AtomicUsize,
    /// Members that sleep, or are about to.
    asleep: AtomicUsize,
    /// Guards falling asleep.
    bed: Mutex<()>,
    bell: Condvar,
    /// What a piece panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written only by the thread that holds the team's turn, while nobody can join; whoever has joined reads
// it. The rest is shareable by itself.
unsafe impl Sync for Shared {}
// SAFETY: a job is a pointer to something that is `Sync`.
unsafe impl Send for Shared {}

/// A function for the pieces, and how many there are. It gets the number of the member and of the piece.
#[derive(Clone, Copy)]
struct Job {
    work: *const (dyn Fn(usize, usize) + Sync),
    pieces: usize,
}

/// The state of a turn in one number: which turn it is, whether members may join it, how many have joined, and whether
/// there will be another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Turn(u64);

impl Turn {
    const OPEN: u64 = 1 << 31;
    const OVER: u64 = 1 << 30;
    const NEXT: u64 = 1 << 32;
    const JOINED: u64 = Turn::OVER - 1;

    fn number(self) -> u64 {
        self.0 / Turn::NEXT
    }

    fn is_open(self) -> bool {
        self.0 & Turn::OPEN != 0
    }

    fn is_over(self) -> bool {
        self.0 & Turn::OVER != 0
    }

    fn joined(self) -> u64 {
        self.0 & Turn::JOINED
    }
}

impl Team {
    /// A team of `threads`, at least one, the caller among them.
    ///
    /// # Errors
    /// Where the system gives no threads.
    pub fn new(threads: usize) -> std::io::Result<Team> {
        let shared = Arc::new(Shared {
            turn: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            asleep: AtomicUsize::new(0),
            bed: Mutex::new(()),
            bell: Condvar::new(),
            panic: Mutex::new(None),
        });
        let mut team = Team { shared, members: Vec::new(), turn: Mutex::new(()) };
        for member in 1..threads {
            let shared = team.shared.clone();
            let thread = std::thread::Builder::new().name(format!("compute-{member}"));
            // Where one does not start, those before it end with the team.
            team.members.push(thread.spawn(move || shared.serve(member))?);
        }
        Ok(team)
    }

    /// How many threads there are, the caller among them.
    pub fn threads(&self) -> usize {
        self.members.len() + 1
    }

    /// Calls `work` with every number below `pieces`, and returns when all calls have returned. Who takes which is left
    /// to chance. The work must not give the same team work: it would wait for itself.
    ///
    /// # Panics
    /// Where `work` does, after all other calls have returned.
    pub fn each(&self, pieces: usize, work: impl Fn(usize) + Sync) {
        self.each_by(pieces, |_, piece| work(piece));
    }

    /// The same, with the number of the thread first, below [`threads`](Self::threads): no two calls at the same time get
    /// the same.
    ///
    /// # Panics
    /// Where `work` does, after all other calls have returned.
    pub fn each_by(&self, pieces: usize, work: impl Fn(usize, usize) + Sync) {
        let _turn = lock(&self.turn);
        if self.members.is_empty() || pieces < 2 {
            (0..pieces).for_each(|piece| work(0, piece));
            return;
        }
        let shared = &*self.shared;
        let work: *const (dyn Fn(usize, usize) + Sync + '_) = &work;
        // SAFETY: only the lifetime is dropped. Nobody uses the pointer once this turn is closed and left by all, which
        // is waited for below, before `work` goes out of scope, whether or not it panics.
        let work: *const (dyn Fn(usize, usize) + Sync + 'static) = unsafe { std::mem::transmute(work) };
        let job = Job { work, pieces };
        // SAFETY: the last turn is closed and nobody is left in it, so that nobody reads.
        unsafe { *shared.job.get() = Some(job) };
        shared.next.store(0, Ordering::Relaxed);
        let before = shared.turn.load(Ordering::Relaxed);
        // Numbers begin anew after 2^32 turns; nobody sleeps through that many.
        let turn = before.wrapping_add(Turn::NEXT) | Turn::OPEN;
        // Whoever falls asleep says so first and then looks at the turn; here it is the other way round: one of both
        // sees the other.
        shared.turn.store(turn, Ordering::SeqCst);
        if shared.asleep.load(Ordering::SeqCst) > 0 {
            drop(lock(&shared.bed));
            shared.bell.notify_all();
        }
        shared.take_part(0, job);
        shared.turn.fetch_and(!Turn::OPEN, Ordering::Relaxed);
        let mut looks = 0u32;
        while Turn(shared.turn.load(Ordering::Acquire)).joined() > 0 {
            looks += 1;
            // A member that the system does not let run needs the processor more.
            if looks.is_multiple_of(LOOKS) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        if let Some(panic) = lock(&shared.panic).take() {
            resume_unwind(panic);
        }
    }

    /// The same for work that may fail: the rest is left undone, and one of the errors comes back.
    ///
    /// # Errors
    /// That of a call that failed.
    ///
    /// # Panics
    /// Where `work` does, after all other calls have returned.
    pub fn try_each_by<E: Send>(
        &self,
        pieces: usize,
        work: impl Fn(usize, usize) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        let failed = AtomicBool::new(false);
        let error = Mutex::new(None);
        self.each_by(pieces, |member, piece| {
            if failed.load(Ordering::Relaxed) {
                return;
            }
            if let Err(problem) = work(member, piece) {
                failed.store(true, Ordering::Relaxed);
                lock(&error).get_or_insert(problem);
            }
        });
        error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Cuts `all` into pieces of `len`, the last of which may be shorter, and hands them to `work` with their number.
    ///
    /// # Panics
    /// Where `work` does, after all other calls have returned; where `len` is 0.
    pub fn each_chunk<T: Send>(&self, all: &mut [T], len: usize, work: impl Fn(usize, &mut [T]) + Sync) {
        let done = self.try_each_chunk(all, len, |_, piece, chunk| {
            work(piece, chunk);
            Ok::<(), Infallible>(())
        });
        match done {
            Ok(()) => {}
            Err(never) => match never {},
        }
    }

    /// The same for work that may fail and gets the number of the thread first.
    ///
    /// # Errors
    /// That of a call that failed; the rest is left undone.
    ///
    /// # Panics
    /// As [`each_chunk`](Self::each_chunk) does.
    pub fn try_each_chunk<T: Send, E: Send>(
        &self,
        all: &mut [T],
        len: usize,
        work: impl Fn(usize, usize, &mut [T]) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        let total = all.len();
        let chunks = Chunks { start: all.as_mut_ptr(), len: total };
        self.try_each_by(total.div_ceil(len), |member, piece| {
            // SAFETY: every piece is given to one call, and no two pieces share an element.
            work(member, piece, unsafe { chunks.part(piece * len..total.min((piece + 1) * len)) })
        })
    }
}

/// Something for each thread of a team, such as memory that is used again.
pub struct PerMember<T>(Vec<Mutex<T>>);

impl<T: Default> PerMember<T> {
    /// One of each for `threads` threads.
    pub fn new(threads: usize) -> PerMember<T> {
        PerMember((0..threads).map(|_| Mutex::default()).collect())
    }
}

impl<T> PerMember<T> {
    /// That of thread `member`; nobody else asks for it, so that this does not wait.
    pub fn of(&self, member: usize) -> MutexGuard<'_, T> {
        lock(&self.0[member])
    }
}

/// A slice that is handed out in parts.
struct Chunks<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: parts are handed to other threads, as the elements may be.
unsafe impl<T: Send> Sync for Chunks<T> {}

impl<T> Chunks<T> {
    /// # Safety
    /// No two parts that live at the same time may overlap.
    #[expect(clippy::mut_from_ref, reason = "each caller gets a part of its own")]
    unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part outside the slice");
        // SAFETY: inside the slice that the team's caller has borrowed mutably; the caller upholds exclusivity.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

impl Shared {
    /// What a member does for as long as the team exists.
    fn serve(&self, member: usize) {
        let mut done = 0;
        while let Some(turn) = self.next_turn(done) {
            done = turn.number();
            if self.join(turn) {
                // SAFETY: having joined, this thread keeps the turn from ending; the job was written before it opened.
                if let Some(job) = unsafe { *self.job.get() } {
                    self.take_part(member, job);
                }
                self.turn.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// Waits for a turn after the one of number `done`; `None` once there is none.
    fn next_turn(&self, done: u64) -> Option<Turn> {
        let look = || Turn(self.turn.load(Ordering::Acquire));
        let is_new = |turn: Turn| turn.is_over() || (turn.is_open() && turn.number() != done);
        let mut since = None;
        loop {
            for _ in 0..LOOKS {
                let turn = look();
                if is_new(turn) {
                    return (!turn.is_over()).then_some(turn);
                }
                std::hint::spin_loop();
            }
            if since.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
                std::thread::yield_now();
                continue;
            }
            let mut bed = lock(&self.bed);
            self.asleep.fetch_add(1, Ordering::SeqCst);
            while !is_new(Turn(self.turn.load(Ordering::SeqCst))) {
                bed = self.bell.wait(bed).unwrap_or_else(PoisonError::into_inner);
            }
            self.asleep.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Becomes one of those who keep `turn` from ending, unless it is closed.
    fn join(&self, turn: Turn) -> bool {
        let mut now = turn;
        while now.is_open() && now.number() == turn.number() {
            match self.turn.compare_exchange_weak(now.0, now.0 + 1, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return true,
                Err(other) => now = Turn(other),
            }
        }
        false
    }

    /// Does pieces until none is left.
    fn take_part(&self, member: usize, job: Job) {
        // SAFETY: the function lives until the turn is closed and left by all; this thread has joined, or gave it.
        let work = unsafe { &*job.work };
        let done = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let piece = self.next.fetch_add(1, Ordering::Relaxed);
                if piece >= job.pieces {
                    break;
                }
                work(member, piece);
            }
        }));
        if let Err(panic) = done {
            // The others need not go on.
            self.next.store(job.pieces, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.turn.fetch_or(Turn::OVER, Ordering::SeqCst);
        drop(lock(&self.shared.bed));
        self.shared.bell.notify_all();
        for member in self.members.drain(..) {
            // A member does not panic: what it calls is caught.
            let _ = member.join();
        }
    }
}

/// What these locks guard is whole at all times, so that a panic elsewhere does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn every_piece_is_done_once_and_members_do_not_meet() {
        for threads in [1, 2, 3, 8] {
            let team = Team::new(threads).unwrap();
            assert_eq!(team.threads(), threads);
            for pieces in [0, 1, 2, 7, 1000].into_iter().cycle().take(500) {
                let done: Vec<AtomicU32> = (0..pieces).map(|_| AtomicU32::new(0)).collect();
                let inside: Vec<AtomicU32> = (0..threads).map(|_| AtomicU32::new(0)).collect();
                team.each_by(pieces, |member, piece| {
                    assert_eq!(inside[member].fetch_add(1, Ordering::Relaxed), 0);
                    done[piece].fetch_add(1, Ordering::Relaxed);
                    inside[member].fetch_sub(1, Ordering::Relaxed);
                });
                assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1), "{threads} {pieces}");
            }
        }
    }

    #[test]
    fn chunks_are_all_of_a_slice() {
        let team = Team::new(3).unwrap();
        let mut all = vec![0; 1003];
        team.each_chunk(&mut all, 10, |i, chunk| chunk.fill(i));
        assert!(all.iter().enumerate().all(|(i, &value)| value == i / 10));
    }

    #[test]
    fn members_that_slept_come_back() {
        let team = Team::new(4).unwrap();
        let all = AtomicUsize::new(0);
        for _ in 0..20 {
            std::thread::sleep(10 * PATIENCE);
            team.each(100, |piece| {
                all.fetch_add(piece, Ordering::Relaxed);
            });
        }
        assert_eq!(all.into_inner(), 20 * 4950);
    }

    #[test]
    fn several_callers_take_turns() {
        let team = Team::new(3).unwrap();
        let all = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        team.each(5, |piece| {
                            all.fetch_add(piece, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(all.into_inner(), 4 * 200 * 10);
    }

    #[test]
    fn a_panic_comes_back_to_the_caller_and_the_team_goes_on() {
        let team = Team::new(3).unwrap();
        for _ in 0..10 {
            let caught =
                catch_unwind(AssertUnwindSafe(|| team.each(50, |piece| assert_ne!(piece, 20, "piece 20"))));
            let words = *caught.unwrap_err().downcast::<String>().unwrap();
            assert!(words.contains("piece 20"), "{words}");
        }
        let all = AtomicUsize::new(0);
        team.each(10, |piece| {
            all.fetch_add(piece, Ordering::Relaxed);
        });
        assert_eq!(all.into_inner(), 45);
    }
}
