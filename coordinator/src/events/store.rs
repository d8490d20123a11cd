//! The SQLite file that events are written to.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, Row, params};

use crate::state_dir::private_options;
use crate::status::{EventRecord, Severity};

/// Most events kept; the oldest go first. At some 150 bytes each the file stays near 15 MB.
pub(super) const MOST_KEPT: u64 = 100_000;
/// For how long an event is kept, in milliseconds: 30 days.
const KEPT_MS: u64 = 30 * 24 * 3600 * 1000;
/// After how many new events those that are too old or too many are removed.
const PRUNE_EVERY: usize = 1000;
/// The form of the tables.
const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
    CREATE TABLE events (
        id       INTEGER PRIMARY KEY,
        at_ms    INTEGER NOT NULL,
        severity TEXT    NOT NULL,
        kind     TEXT    NOT NULL,
        worker   TEXT,
        text     TEXT    NOT NULL
    ) STRICT;
    CREATE INDEX events_by_time ON events (at_ms);";

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// SQLite says so.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// The file cannot be made.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Its contents are not whole.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// Its tables are not of our form.
    #[error("its form is {0}, and this version knows {SCHEMA_VERSION}")]
    Version(i64),
}

/// Events on disk, for one writer and any number of readers.
#[derive(Debug)]
pub(super) struct Store {
    connection: Connection,
    since_pruned: usize,
}

impl Store {
    /// Opens the file to write to, making it (only its owner may read it) where it is missing.
    pub(super) fn open(path: &Path, now_ms: u64) -> Result<Store, StoreError> {
        // SQLite gives the files beside it the permissions of this one.
        private_options().create(true).truncate(false).write(true).open(path)?;
        let connection = Connection::open(path)?;
        // Readers never wait for the writer. After a power cut the last events may be missing; the file is whole.
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if found != "ok" {
            return Err(StoreError::Damaged(found));
        }
        match connection.query_row("PRAGMA user_version", [], |row| row.get(0))? {
            0 => {
                connection.execute_batch(&format!(
                    "BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                ))?;
            }
            SCHEMA_VERSION => {}
            other => return Err(StoreError::Version(other)),
        }
        let mut store = Store { connection, since_pruned: 0 };
        store.prune(now_ms)?;
        Ok(store)
    }

    /// Opens the file to read from.
    fn open_to_read(path: &Path) -> Result<Store, StoreError> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        Ok(Store { connection, since_pruned: 0 })
    }

    /// Writes events, whose numbers are new; all of them or none.
    pub(super) fn append(&mut self, events: &[EventRecord]) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        {
            let mut insert = transaction.prepare(
                "INSERT INTO events (id, at_ms, severity, kind, worker, text) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            for event in events {
                let (id, at_ms) = (event.id as i64, event.at_ms as i64);
                let severity = event.severity.as_str();
                insert.execute(params![id, at_ms, severity, event.kind, event.worker, event.text])?;
            }
        }
        transaction.commit()?;
        self.since_pruned += events.len();
        if self.since_pruned >= PRUNE_EVERY
            && let Some(newest) = events.last()
        {
            self.prune(newest.at_ms)?;
        }
        Ok(())
    }

    /// Removes what is too old, and the oldest of what is too many.
    fn prune(&mut self, now_ms: u64) -> Result<(), StoreError> {
        self.since_pruned = 0;
        let oldest = now_ms.saturating_sub(KEPT_MS) as i64;
        self.connection.execute("DELETE FROM events WHERE at_ms < ?1", [oldest])?;
        self.connection.execute(
            "DELETE FROM events WHERE id <= (SELECT id FROM events ORDER BY id DESC LIMIT 1 OFFSET ?1)",
            [MOST_KEPT as i64],
        )?;
        Ok(())
    }

    /// Events with a larger number than `after`, oldest first; of more than `most` the newest.
    pub(super) fn newest(&self, after: u64, most: usize) -> Result<Vec<EventRecord>, StoreError> {
        let mut select = self.connection.prepare(
            "SELECT id, at_ms, severity, kind, worker, text FROM events WHERE id > ?1 ORDER BY id DESC LIMIT ?2",
        )?;
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let rows = select.query_map(params![after, most as i64], record)?;
        let mut events = rows.collect::<Result<Vec<EventRecord>, _>>()?;
        events.reverse();
        Ok(events)
    }
}

/// As [`Store::newest`], over a connection of its own.
pub(super) fn read(path: &Path, after: u64, most: usize) -> Result<Vec<EventRecord>, StoreError> {
    Store::open_to_read(path)?.newest(after, most)
}

fn record(row: &Row<'_>) -> rusqlite::Result<EventRecord> {
    let severity: String = row.get(2)?;
    Ok(EventRecord {
        id: row.get::<_, i64>(0)? as u64,
        at_ms: row.get::<_, i64>(1)? as u64,
        // What a later version calls worse is no less than an error.
        severity: Severity::parse(&severity).unwrap_or(Severity::Error),
        kind: row.get(3)?,
        worker: row.get(4)?,
        text: row.get(5)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: u64, at_ms: u64) -> EventRecord {
        EventRecord {
            id,
            at_ms,
            severity: Severity::Warning,
            kind: "worker".into(),
            worker: id.is_multiple_of(2).then(|| "anna".into()),
            text: format!("event {id}"),
        }
    }

    #[test]
    fn what_is_written_is_read_also_after_it_was_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.sqlite");
        let written: Vec<EventRecord> = (1..=5).map(|id| event(id, 1000 + id)).collect();
        let mut store = Store::open(&path, 1000).unwrap();
        store.append(&written[..3]).unwrap();
        store.append(&written[3..]).unwrap();
        // A reader does not wait for the writer.
        assert_eq!(read(&path, 0, 100).unwrap(), written);
        drop(store);
        let store = Store::open(&path, 2000).unwrap();
        assert_eq!(store.newest(0, 100).unwrap(), written);
        assert_eq!(store.newest(2, 2).unwrap(), written[3..]);
        assert_eq!(store.newest(5, 2).unwrap(), []);
    }

    #[test]
    fn the_old_and_the_too_many_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.sqlite");
        let mut store = Store::open(&path, 0).unwrap();
        store.append(&[event(1, 5), event(2, KEPT_MS + 5)]).unwrap();
        drop(store);
        let mut store = Store::open(&path, KEPT_MS + 6).unwrap();
        assert_eq!(store.newest(0, 100).unwrap(), [event(2, KEPT_MS + 5)]);
        let many: Vec<EventRecord> = (3..MOST_KEPT + 10).map(|id| event(id, KEPT_MS + 6)).collect();
        store.append(&many).unwrap();
        let kept = store.newest(0, usize::MAX >> 1).unwrap();
        assert_eq!(kept.len() as u64, MOST_KEPT);
        assert_eq!(kept.last().unwrap().id, MOST_KEPT + 9);
    }

    #[test]
    fn a_file_that_is_not_ours_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.sqlite");
        std::fs::write(&path, "not a database at all, but long enough to be taken for one").unwrap();
        let error = Store::open(&path, 0).unwrap_err().to_string();
        assert!(error.contains("not a database"), "{error}");
        let other = dir.path().join("other.sqlite");
        Store::open(&other, 0).unwrap().connection.pragma_update(None, "user_version", 7).unwrap();
        let error = Store::open(&other, 0).unwrap_err().to_string();
        assert!(error.contains("its form is 7"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(&dir.path().join("events.sqlite"), 0).unwrap();
        store.append(&[event(1, 1)]).unwrap();
        let mut files = 0;
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", entry.path().display());
            files += 1;
        }
        assert!(files >= 2, "the file and its log");
    }
}
