//! Earlier comparisons, kept in the state directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, TransactionBehavior, params};
use serde::{Deserialize, Serialize};

use super::report::{figure_of, prediction_error};
use super::{Comparison, Quantity, SideKind};
use crate::state_dir::{create_private_dir, private_options};

/// The file, in a state directory.
const FILE: &str = "comparisons.sqlite";
/// Most comparisons kept; the oldest go first. At some 20 KB each the file stays near 20 MB.
const MOST_KEPT: usize = 1000;
/// How long one process waits for another that writes, which takes milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The form of the tables.
const SCHEMA_VERSION: i64 = 1;
/// An entry stands beside its comparison, so that lists need not read these. Numbers are never used twice.
const SCHEMA: &str = "
    CREATE TABLE comparisons (
        id         INTEGER PRIMARY KEY AUTOINCREMENT,
        entry      TEXT NOT NULL,
        comparison TEXT NOT NULL
    ) STRICT;";

/// A history that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file or its directory cannot be made or read.
    #[error("failed to open the comparisons in {}: {reason}; check its permissions and the free space", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The file is no history, or not whole.
    #[error(
        "the comparisons in {} cannot be read: {reason}; move the file away, and the next comparison begins a new one",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A later version has written the file.
    #[error(
        "the comparisons in {} are of form {found}, and this version knows {SCHEMA_VERSION}: update Brigade, or move the file away",
        .path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its form.
        found: i64,
    },
    /// Another process holds the file for longer than anything here takes.
    #[error("the comparisons in {} are in use by another program; try again", .path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
}

/// Comparisons on disk. Several processes may use the same file at the same time.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    connection: Connection,
}

/// An earlier comparison in a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Its number, larger than those of earlier ones.
    #[serde(default)]
    pub id: u64,
    /// When it began, in seconds since 1970.
    pub began_unix_s: u64,
    /// Version of the program.
    pub version: String,
    /// The model's id.
    pub model: String,
    /// What was compared, one box first.
    pub sides: Vec<HistorySide>,
    /// How far predictions were off on average, whatever the direction, as a share of what was measured; `None` where
    /// nothing was predicted.
    pub prediction_error: Option<f64>,
    /// Whether other requests ran meanwhile.
    pub disturbed: bool,
    /// Whether splitting was worth it for one stream; `None` where that stayed open.
    pub split_for_one_stream: Option<bool>,
    /// Whether it was for the most streams measured.
    pub split_for_many_streams: Option<bool>,
    /// The verdict in a sentence or two.
    pub verdict: String,
}

/// A side of an earlier comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistorySide {
    /// What it was.
    pub kind: SideKind,
    /// In words.
    pub name: String,
    /// Decoding with one stream, in tokens per second.
    pub one_stream: Option<f64>,
    /// Decoding with the most streams measured, where these were several.
    pub most_streams: Option<MostStreams>,
}

/// Decoding with many streams.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MostStreams {
    /// How many.
    pub streams: u32,
    /// Tokens per second of all together.
    pub tokens_per_s: f64,
}

impl HistoryEntry {
    /// A comparison with its number, in a line.
    pub fn new(id: u64, comparison: &Comparison) -> HistoryEntry {
        let decode = |streams| Quantity::Decode { streams };
        let sides = comparison.sides.iter().map(|side| {
            let streams = side.figures.iter().filter_map(|figure| match figure.quantity {
                Quantity::Decode { streams } if streams > 1 => Some(streams),
                _ => None,
            });
            let most = streams.max().and_then(|streams| {
                figure_of(side, decode(streams))
                    .map(|figure| MostStreams { streams, tokens_per_s: figure.mean })
            });
            HistorySide {
                kind: side.kind,
                name: side.name.clone(),
                one_stream: figure_of(side, decode(1)).map(|figure| figure.mean),
                most_streams: most,
            }
        });
        let figures = comparison.sides.iter().flat_map(|side| &side.figures);
        let errors: Vec<f64> = figures.filter_map(prediction_error).map(f64::abs).collect();
        HistoryEntry {
            id,
            began_unix_s: comparison.began_unix_s,
            version: comparison.version.clone(),
            model: comparison.model.clone(),
            sides: sides.collect(),
            prediction_error: (!errors.is_empty()).then(|| errors.iter().sum::<f64>() / errors.len() as f64),
            disturbed: comparison.disturbed,
            split_for_one_stream: comparison.verdict.split_for_one_stream,
            split_for_many_streams: comparison.verdict.split_for_many_streams,
            verdict: comparison.verdict.text.clone(),
        }
    }
}

impl History {
    /// Opens the history in a state directory, making both (only their owner may read them) where they are missing.
    ///
    /// # Errors
    /// [`HistoryError`], with what to do.
    pub fn open(state_dir: &Path) -> Result<History, HistoryError> {
        let path = state_dir.join(FILE);
        let failed = |reason: String| HistoryError::Open { path: path.clone(), reason };
        create_private_dir(state_dir).map_err(|error| failed(error.to_string()))?;
        let made = private_options().create(true).truncate(false).write(true).open(&path);
        made.map_err(|error| failed(error.to_string()))?;
        let connection = Connection::open(&path).map_err(|error| failed(error.to_string()))?;
        let mut history = History { path, connection };
        history.prepare().map_err(|error| history.error(error))?;
        history.check_version()?;
        Ok(history)
    }

    /// Opens the history in a state directory to read from; `None` where nothing has been kept there.
    ///
    /// # Errors
    /// [`HistoryError`], with what to do.
    pub fn open_to_read(state_dir: &Path) -> Result<Option<History>, HistoryError> {
        let path = state_dir.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let opened = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY);
        let connection =
            opened.map_err(|error| HistoryError::Open { path: path.clone(), reason: error.to_string() })?;
        let history = History { path, connection };
        history.connection.busy_timeout(BUSY_TIMEOUT).map_err(|error| history.error(error))?;
        // One that is just being made holds nothing yet.
        if history.form()? == 0 {
            return Ok(None);
        }
        history.check_version()?;
        Ok(Some(history))
    }

    /// Makes the tables where there are none.
    fn prepare(&mut self) -> rusqlite::Result<()> {
        self.connection.busy_timeout(BUSY_TIMEOUT)?;
        // Of two processes that come at once, the second finds what the first has made.
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if found == 0 {
            transaction.execute_batch(&format!("{SCHEMA} PRAGMA user_version = {SCHEMA_VERSION};"))?;
        }
        transaction.commit()
    }

    fn form(&self) -> Result<i64, HistoryError> {
        let found = self.connection.query_row("PRAGMA user_version", [], |row| row.get(0));
        found.map_err(|error| self.error(error))
    }

    fn check_version(&self) -> Result<(), HistoryError> {
        match self.form()? {
            SCHEMA_VERSION => Ok(()),
            found => Err(HistoryError::Version { path: self.path.clone(), found }),
        }
    }

    /// Keeps a comparison, and lets the oldest go where there are too many; its number.
    ///
    /// # Errors
    /// [`HistoryError`], with what to do.
    pub fn add(&mut self, comparison: &Comparison) -> Result<u64, HistoryError> {
        self.insert(comparison).map_err(|error| self.error(error))
    }

    fn insert(&mut self, comparison: &Comparison) -> rusqlite::Result<u64> {
        let text = |error| rusqlite::Error::ToSqlConversionFailure(Box::new(error));
        let entry = serde_json::to_string(&HistoryEntry::new(0, comparison)).map_err(text)?;
        let comparison = serde_json::to_string(comparison).map_err(text)?;
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute(
            "INSERT INTO comparisons (entry, comparison) VALUES (?1, ?2)",
            params![entry, comparison],
        )?;
        let id = transaction.last_insert_rowid();
        transaction.execute(
            "DELETE FROM comparisons WHERE id <= (SELECT id FROM comparisons ORDER BY id DESC LIMIT 1 OFFSET ?1)",
            [MOST_KEPT as i64],
        )?;
        transaction.commit()?;
        Ok(id as u64)
    }

    /// The newest comparisons, at most `limit`, the newest first.
    ///
    /// # Errors
    /// [`HistoryError`], with what to do.
    pub fn list(&self, limit: usize) -> Result<Vec<HistoryEntry>, HistoryError> {
        let rows = || -> rusqlite::Result<Vec<(i64, String)>> {
            let mut select =
                self.connection.prepare("SELECT id, entry FROM comparisons ORDER BY id DESC LIMIT ?1")?;
            let rows =
                select.query_map([limit.min(MOST_KEPT) as i64], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        };
        let rows = rows().map_err(|error| self.error(error))?;
        let entries = rows.into_iter().map(|(id, text)| {
            let entry: HistoryEntry = self.parse(&text)?;
            Ok(HistoryEntry { id: id as u64, ..entry })
        });
        entries.collect()
    }

    /// A comparison by its number; `None` where there is none.
    ///
    /// # Errors
    /// [`HistoryError`], with what to do.
    pub fn get(&self, id: u64) -> Result<Option<Comparison>, HistoryError> {
        let Ok(id) = i64::try_from(id) else {
            return Ok(None);
        };
        let found =
            self.connection.query_row("SELECT comparison FROM comparisons WHERE id = ?1", [id], |row| {
                row.get::<_, String>(0)
            });
        let text = found.optional().map_err(|error| self.error(error))?;
        text.map(|text| self.parse(&text)).transpose()
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, text: &str) -> Result<T, HistoryError> {
        let damaged = |error: serde_json::Error| HistoryError::Damaged {
            path: self.path.clone(),
            reason: error.to_string(),
        };
        serde_json::from_str(text).map_err(damaged)
    }

    /// SQLite's error in our words.
    fn error(&self, error: rusqlite::Error) -> HistoryError {
        use rusqlite::ErrorCode;
        let path = self.path.clone();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => HistoryError::Busy { path },
            Some(
                ErrorCode::NotADatabase
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::TypeMismatch
                | ErrorCode::Unknown,
            ) => HistoryError::Damaged { path, reason: error.to_string() },
            _ => HistoryError::Open { path, reason: error.to_string() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::sample::comparison;

    fn of_model(model: &str) -> Comparison {
        Comparison { model: model.to_owned(), ..comparison() }
    }

    #[test]
    fn what_is_kept_is_there_after_it_was_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("nested/state");
        assert!(History::open_to_read(&state).unwrap().is_none(), "reading makes nothing");
        assert!(!state.exists());
        let mut history = History::open(&state).unwrap();
        assert_eq!(history.list(10).unwrap(), []);
        let (first, second) = (history.add(&of_model("a")).unwrap(), history.add(&of_model("b")).unwrap());
        assert!(second > first);
        drop(history);
        let history = History::open_to_read(&state).unwrap().expect("it is there");
        let listed = history.list(10).unwrap();
        assert_eq!(
            listed,
            [HistoryEntry::new(second, &of_model("b")), HistoryEntry::new(first, &of_model("a"))]
        );
        assert_eq!(history.list(1).unwrap().len(), 1);
        assert_eq!(history.get(first).unwrap(), Some(of_model("a")));
        assert_eq!((history.get(99).unwrap(), history.get(u64::MAX).unwrap()), (None, None));
    }

    #[test]
    fn an_entry_holds_what_a_list_shows() {
        let entry = HistoryEntry::new(3, &comparison());
        let cluster = &entry.sides[1];
        assert_eq!((cluster.kind, cluster.one_stream), (SideKind::Cluster, Some(52.0)));
        assert_eq!(cluster.most_streams, Some(MostStreams { streams: 16, tokens_per_s: 278.8 }));
        // The mean of 3.1, 6.9, 2.2, 2.5, 2.1, 8, 6 and 15.6, 8.5, 6.3, 2.4, 8, 8, 6 percent.
        let error = entry.prediction_error.unwrap();
        assert!((error - 0.0603).abs() < 0.001, "{error}");
        let mut alone = comparison();
        alone.sides.iter_mut().for_each(|side| side.figures.truncate(1));
        assert_eq!(
            HistoryEntry::new(3, &alone).sides[0].most_streams,
            None,
            "one stream is not the most of several"
        );
    }

    #[test]
    fn the_oldest_go_and_numbers_do_not_come_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(dir.path()).unwrap();
        // As many as there may be, without the time that a thousand writes to a disk take.
        let entry = serde_json::to_string(&HistoryEntry::new(0, &of_model("old"))).unwrap();
        history
            .connection
            .execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                 INSERT INTO comparisons (entry, comparison) SELECT ?2, '{}' FROM n",
                params![MOST_KEPT as i64, entry],
            )
            .unwrap();
        let newest = history.add(&of_model("new")).unwrap();
        let listed = history.list(usize::MAX).unwrap();
        assert_eq!((listed.len(), listed[0].id, listed[0].model.as_str()), (MOST_KEPT, newest, "new"));
        assert_eq!(listed.last().map(|entry| entry.id), Some(2), "the first is gone");
        history.connection.execute("DELETE FROM comparisons", []).unwrap();
        assert!(history.add(&of_model("after")).unwrap() > newest);
    }

    #[test]
    fn two_that_write_at_once_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let path = dir.path().to_owned();
                std::thread::spawn(move || {
                    // Each opens it anew, as a program that is started does.
                    for at in 0..8 {
                        History::open(&path).unwrap().add(&of_model(&format!("{writer}-{at}"))).unwrap();
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let listed = History::open(dir.path()).unwrap().list(100).unwrap();
        let models: std::collections::BTreeSet<String> =
            listed.iter().map(|entry| entry.model.clone()).collect();
        assert_eq!((listed.len(), models.len()), (16, 16));
    }

    #[test]
    fn a_file_that_is_not_ours_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        std::fs::write(&path, "not a database at all, but long enough to be taken for one".repeat(20))
            .unwrap();
        for error in [History::open(dir.path()).unwrap_err(), History::open_to_read(dir.path()).unwrap_err()]
        {
            let text = error.to_string();
            assert!(matches!(error, HistoryError::Damaged { .. }), "{text}");
            assert!(text.contains("move the file away") && text.contains(FILE), "{text}");
        }
        std::fs::remove_file(&path).unwrap();
        let history = History::open(dir.path()).unwrap();
        history
            .connection
            .execute("INSERT INTO comparisons (entry, comparison) VALUES ('{', '{')", [])
            .unwrap();
        assert!(matches!(history.list(1), Err(HistoryError::Damaged { .. })));
        history.connection.pragma_update(None, "user_version", 7).unwrap();
        let text = History::open(dir.path()).unwrap_err().to_string();
        assert!(text.contains("form 7") && text.contains("update Brigade"), "{text}");
        let not_a_directory = dir.path().join("file");
        std::fs::write(&not_a_directory, "").unwrap();
        let text = History::open(&not_a_directory).unwrap_err().to_string();
        assert!(text.contains("failed to open the comparisons"), "{text}");
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        History::open(&state).unwrap().add(&comparison()).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&state), mode(&state.join(FILE))), (0o700, 0o600));
    }
}
