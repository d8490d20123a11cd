//! The events of this start and of those before it: numbered, kept in memory, and written down.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use super::store::{self, Store};
use super::{Damper, Event, Kind, between};
use crate::status::{ClusterStatus, EventRecord, Severity};

/// The file, in the coordinator's state directory.
const FILE: &str = "events.sqlite";
/// Newest events in memory, which answer most questions without the file: a page of `brigade events` and more.
const KEPT_IN_MEMORY: usize = 1000;
/// Events that wait to be written: far more than happen while a slow disk writes a few.
const WRITE_QUEUE: usize = 1024;
/// Most events of one transaction.
const MOST_AT_ONCE: usize = 256;
/// Longest text of an event, in characters: some of it comes from workers.
const LONGEST_TEXT: usize = 2000;

/// What has happened; cheap to clone.
#[derive(Clone, Debug)]
pub struct EventLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    recent: Mutex<Recent>,
    /// The file; `None` where events are in memory alone.
    file: Option<PathBuf>,
}

#[derive(Debug, Default)]
struct Recent {
    events: VecDeque<EventRecord>,
    /// Whether there are older ones that are not in memory any more.
    has_older: bool,
}

impl EventLog {
    /// Opens the log in a state directory, and records from now on what `status` tells, in `tasks` that end once its sender
    /// is dropped. Where the file cannot be used, that is said, and events are kept in memory.
    pub fn start(
        state_dir: &Path,
        status: watch::Receiver<Arc<ClusterStatus>>,
        tasks: &TaskTracker,
    ) -> EventLog {
        let path = state_dir.join(FILE);
        let opened = Store::open(&path, now_ms())
            .and_then(|store| Ok((store.newest(0, KEPT_IN_MEMORY)?, store)))
            .inspect_err(|error| {
                let path = path.display();
                tracing::warn!(
                    "events are kept in memory until the coordinator ends: failed to use {path}: {error}; check its \
                     permissions and the free space, or move it away and start the coordinator again"
                );
            });
        let (events, store) = opened.map_or((Vec::new(), None), |(events, store)| (events, Some(store)));
        let recent = Recent { has_older: events.len() == KEPT_IN_MEMORY, events: events.into() };
        let file = store.is_some().then_some(path);
        let log = EventLog { shared: Arc::new(Shared { recent: Mutex::new(recent), file }) };
        let queue = store.map(|store| {
            let (sender, events) = mpsc::channel(WRITE_QUEUE);
            tasks.spawn_blocking(move || write(store, events));
            sender
        });
        let recorder = Recorder { log: log.clone(), queue, damper: Damper::default(), not_written: 0 };
        tasks.spawn(recorder.record(status));
        log
    }

    /// Events with a larger number than `after`, oldest first; of more than `most` the newest.
    pub async fn read(&self, after: u64, most: usize) -> Vec<EventRecord> {
        let (recent, is_all) = self.recent(after, most);
        let Some(path) = self.shared.file.clone().filter(|_| !is_all) else {
            return recent;
        };
        let read = tokio::task::spawn_blocking(move || store::read(&path, after, most)).await;
        let mut events = match read {
            Ok(Ok(events)) => events,
            Ok(Err(error)) => {
                tracing::warn!("only the newest events are listed: failed to read the others: {error}");
                return recent;
            }
            // The program is ending.
            Err(_) => return recent,
        };
        // The newest may not have been written yet.
        let written = events.last().map_or(after, |event| event.id);
        events.extend(recent.into_iter().filter(|event| event.id > written));
        events.drain(..events.len().saturating_sub(most));
        events
    }

    /// The part of an answer that is in memory, and whether that is all of it.
    fn recent(&self, after: u64, most: usize) -> (Vec<EventRecord>, bool) {
        let recent = self.lock();
        let first = recent.events.partition_point(|event| event.id <= after);
        let found = recent.events.len() - first;
        let is_all = !recent.has_older || first > 0 || found >= most;
        let skipped = first + found.saturating_sub(most);
        (recent.events.iter().skip(skipped).cloned().collect(), is_all)
    }

    /// Gives an event its number and its time.
    fn add(&self, event: Event, now_ms: u64) -> EventRecord {
        let mut recent = self.lock();
        // The time, so that numbers grow from start to start even where the file is gone; and never a number twice.
        let id = recent.events.back().map_or(now_ms, |newest| now_ms.max(newest.id + 1));
        let text = match event.text.char_indices().nth(LONGEST_TEXT) {
            Some((end, _)) => format!("{}…", &event.text[..end]),
            None => event.text,
        };
        let kind = event.kind.as_str().to_owned();
        let record =
            EventRecord { id, at_ms: now_ms, severity: event.severity, kind, worker: event.worker, text };
        if recent.events.len() == KEPT_IN_MEMORY {
            recent.events.pop_front();
            recent.has_older = true;
        }
        recent.events.push_back(record.clone());
        record
    }

    fn lock(&self) -> MutexGuard<'_, Recent> {
        // Nothing that holds it can panic half way.
        self.shared.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Turns what the status tells into events.
struct Recorder {
    log: EventLog,
    queue: Option<mpsc::Sender<EventRecord>>,
    damper: Damper,
    /// Events that found no room in the queue, since that was last said.
    not_written: u64,
}

impl Recorder {
    /// Records until the status has no sender any more, and that with its last word.
    async fn record(mut self, mut status: watch::Receiver<Arc<ClusterStatus>>) {
        // As it was before the start; the first status may be there already.
        let mut before = Arc::new(ClusterStatus::default());
        while status.changed().await.is_ok() {
            let after = status.borrow_and_update().clone();
            for event in self.damper.take(between(&before, &after), Instant::now()) {
                self.add(event);
            }
            before = after;
        }
    }

    fn add(&mut self, event: Event) {
        let record = self.log.add(event, now_ms());
        let Some(queue) = &self.queue else { return };
        match queue.try_send(record) {
            Ok(()) if self.not_written > 0 => {
                let lost = std::mem::take(&mut self.not_written);
                let text = format!("{lost} events were not written down: the disk did not keep up");
                self.add(Event::new(Severity::Warning, Kind::Coordinator, text));
            }
            Ok(()) => {}
            Err(_) => self.not_written += 1,
        }
    }
}

/// Writes events until nobody sends any more.
fn write(mut store: Store, mut events: mpsc::Receiver<EventRecord>) {
    let mut batch = Vec::new();
    let mut failing = false;
    while events.blocking_recv_many(&mut batch, MOST_AT_ONCE) > 0 {
        let written = store.append(&batch);
        if let Err(error) = &written
            && !failing
        {
            tracing::warn!("events are not written down, and will be missing after a restart: {error}");
        }
        failing = written.is_err();
        batch.clear();
    }
}

fn now_ms() -> u64 {
    // A clock before 1970 is set wrongly, and events are numbered all the same.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::WorkerStatus;

    /// A log with a status that a test changes.
    struct Watched {
        log: EventLog,
        status: watch::Sender<Arc<ClusterStatus>>,
        tasks: TaskTracker,
    }

    impl Watched {
        fn start(dir: &Path) -> Watched {
            let (status, receiver) = watch::channel(Arc::new(ClusterStatus::default()));
            let tasks = TaskTracker::new();
            let log = EventLog::start(dir, receiver, &tasks);
            Watched { log, status, tasks }
        }

        fn publish(&self, workers: &[&str]) {
            let worker =
                |name: &&str| WorkerStatus { id: (*name).into(), name: (*name).into(), ..attached() };
            let workers = workers.iter().map(worker).collect();
            let status = ClusterStatus { version: "0.1.0".into(), workers, ..ClusterStatus::default() };
            self.status.send_replace(Arc::new(status));
        }

        async fn texts(&self) -> Vec<String> {
            let line = |event: EventRecord| format!("{}: {}", event.worker.unwrap_or_default(), event.text);
            self.log.read(0, 100).await.into_iter().map(line).collect()
        }

        async fn end(self) {
            drop(self.status);
            self.tasks.close();
            self.tasks.wait().await;
        }
    }

    fn attached() -> WorkerStatus {
        WorkerStatus { state: "attached".into(), ..WorkerStatus::default() }
    }

    async fn until(watched: &Watched, events: usize) -> Vec<String> {
        for _ in 0..500 {
            let texts = watched.texts().await;
            if texts.len() >= events {
                return texts;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("no {events} events within 5 s: {:?}", watched.texts().await);
    }

    #[tokio::test]
    async fn events_outlive_the_coordinator_and_their_numbers_grow() {
        let dir = tempfile::tempdir().unwrap();
        let first = Watched::start(dir.path());
        first.publish(&["anna"]);
        until(&first, 2).await;
        first.publish(&["anna", "ben"]);
        assert!(until(&first, 3).await[2].starts_with("ben: attached"));
        first.end().await;

        let second = Watched::start(dir.path());
        assert_eq!(second.texts().await.len(), 3);
        second.publish(&["anna"]);
        let texts = until(&second, 5).await;
        assert!(texts[2].starts_with("ben: attached") && texts[3].contains("serves"), "{texts:?}");
        let events = second.log.read(0, 100).await;
        assert!(events.windows(2).all(|pair| pair[0].id < pair[1].id), "{events:?}");
        assert_eq!(second.log.read(events[3].id, 100).await, events[4..]);
        assert_eq!(second.log.read(0, 2).await, events[3..]);
        second.end().await;
    }

    #[tokio::test]
    async fn a_damaged_file_is_left_alone_and_events_go_on_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let garbage = "this is not a database, and somebody may want to look at it";
        std::fs::write(&path, garbage).unwrap();
        let watched = Watched::start(dir.path());
        watched.publish(&["anna"]);
        until(&watched, 2).await;
        watched.end().await;
        assert_eq!(std::fs::read_to_string(path).unwrap(), garbage);
    }

    #[tokio::test]
    async fn what_is_not_in_memory_is_read_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let watched = Watched::start(dir.path());
        let all = KEPT_IN_MEMORY + 500;
        let event = |number: usize| Event::new(Severity::Info, Kind::Worker, number.to_string());
        let records: Vec<EventRecord> =
            (0..all).map(|number| watched.log.add(event(number), 1_000_000)).collect();
        // All but the newest, which are in memory alone for a moment.
        Store::open(&dir.path().join(FILE), 0).unwrap().append(&records[..all - 5]).unwrap();
        let texts = |events: &[EventRecord]| events.iter().map(|e| e.text.clone()).collect::<Vec<_>>();
        let numbers = |from: usize| (from..all).map(|number| number.to_string()).collect::<Vec<_>>();
        let events = watched.log.read(0, 10_000).await;
        assert_eq!(texts(&events), numbers(0));
        assert_eq!(texts(&watched.log.read(0, 1200).await), numbers(300));
        assert_eq!(texts(&watched.log.read(events[99].id, 10_000).await), numbers(100));
        assert_eq!(texts(&watched.log.read(0, 10).await), numbers(all - 10));
        watched.end().await;
    }
}
