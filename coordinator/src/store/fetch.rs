//! Fetches files over HTTP, several ranges at once: the sockets, the clock and the disk around [`Ledger`].
//!
//! Everything runs in the task that calls it. When it ends, well or not, what has come is on the disk and in the journal.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use brigade_shard::units::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use reqwest::{Response, Url, header};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::digest::Expected;
use super::disk;
use super::error::{StoreError, io_error, is_full};
use super::ledger::{Answer, Ledger, Piece, Stuck, Then, Wanted};
use super::names::{FileName, within};
use super::record::{FORM, FileJournal, Journal};
use super::watch::Watch;
use super::web::{Ask, Patience, Web, WebError, host_of};
use crate::client::chain;

/// Requests on their way at once: hubs give each a share of what they could, and no line needs more.
const CONNECTIONS: usize = 8;

/// How often the journal is written: what came since is fetched again after a crash.
const JOURNAL_PERIOD: Duration = Duration::from_secs(2);

/// How often progress is told.
const PROGRESS_PERIOD: Duration = Duration::from_millis(100);

/// How often it is told that something fails and is tried again.
const TROUBLE_PERIOD: Duration = Duration::from_secs(10);

/// Kept free for the journal's last write on a disk that has become full.
const RESERVE_BYTES: usize = 64 << 10;

/// The reserve's file.
const RESERVE: &str = "reserve";

/// A file to fetch.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// Its name here.
    pub(super) name: FileName,
    /// Where it is.
    pub(super) url: Url,
    /// What is known of it, and what of it is there.
    pub(super) wanted: Wanted,
}

/// The place of an unfinished pull.
#[derive(Clone, Debug)]
pub(super) struct Partial {
    /// Its directory.
    pub(super) folder: PathBuf,
    /// Where it comes from, for the journal.
    pub(super) source: String,
}

impl Partial {
    /// Where its files are.
    pub(super) fn files(&self) -> PathBuf {
        self.folder.join("files")
    }

    /// Where a file is.
    pub(super) fn file(&self, name: &FileName) -> PathBuf {
        within(&self.files(), name)
    }

    /// The journal.
    pub(super) fn journal(&self) -> PathBuf {
        self.folder.join("journal.json")
    }
}

/// Something that has happened.
enum Event {
    Answered(Piece, Result<(Response, Answer), WebError>),
    Ended(Piece, Result<(), PieceError>),
}

/// Why a piece ended early.
enum PieceError {
    Web(WebError),
    Disk(io::Error),
}

/// Fetches what is missing of all targets into `partial`; how much that was. What has come of the `others` stays in the
/// journal.
///
/// # Errors
/// Where a file cannot be had or written, or `cancel` ends it; what has come is kept.
pub(super) async fn fetch(
    web: &Web,
    (targets, others): (&[Target], &[Target]),
    partial: &Partial,
    watch: &dyn Watch,
    cancel: &CancellationToken,
) -> Result<Bytes, StoreError> {
    let mut fetch = Fetch::new(web, (targets, others), partial, watch)?;
    let (before, _) = fetch.ledger.progress();
    let outcome = fetch.run(cancel).await;
    let kept = fetch.close().await;
    outcome.and(kept)?;
    let (after, _) = fetch.ledger.progress();
    Ok(Bytes(after.saturating_sub(before)))
}

struct Fetch<'a> {
    web: &'a Web,
    targets: &'a [Target],
    others: &'a [Target],
    partial: &'a Partial,
    watch: &'a dyn Watch,
    ledger: Ledger,
    files: Vec<Arc<File>>,
    /// Where each file's last answer came from in the end. Hubs count who asks them where a file is: they are asked again
    /// only where that place gives it no more.
    places: Vec<Option<Url>>,
    running: FuturesUnordered<BoxFuture<'a, Event>>,
    saving: Option<JoinHandle<io::Result<()>>>,
    saved: Instant,
    /// When it was told last that something fails.
    told: Option<Instant>,
}

impl<'a> Fetch<'a> {
    fn new(
        web: &'a Web,
        (targets, others): (&'a [Target], &'a [Target]),
        partial: &'a Partial,
        watch: &'a dyn Watch,
    ) -> Result<Fetch<'a>, StoreError> {
        let wanted = targets.iter().map(|target| target.wanted.clone()).collect();
        let ledger = Ledger::new(wanted, web.patience().backoff);
        disk::check_room(&partial.folder, Bytes(ledger.missing_bytes()))?;
        // Without it a full disk costs what has come since the journal was written last.
        let _ = disk::replace(&partial.folder.join(RESERVE), &vec![0; RESERVE_BYTES]);
        let open = |target: &Target| open_partial(&partial.file(&target.name)).map(Arc::new);
        let files = targets.iter().map(open).collect::<Result<_, _>>()?;
        let running = FuturesUnordered::new();
        Ok(Fetch {
            web,
            targets,
            others,
            partial,
            watch,
            ledger,
            files,
            places: vec![None; targets.len()],
            running,
            saving: None,
            saved: Instant::now(),
            told: None,
        })
    }

    async fn run(&mut self, cancel: &CancellationToken) -> Result<(), StoreError> {
        let mut tick = tokio::time::interval(PROGRESS_PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            while self.running.len() < CONNECTIONS
                && let Some(piece) = self.ledger.next()
            {
                let (url, place) = (&self.targets[piece.file].url, self.places[piece.file].clone());
                self.running.push(ask(self.web, url, place, piece).boxed());
            }
            if self.running.is_empty() {
                return if self.ledger.is_complete() { Ok(()) } else { Err(self.unfinished()) };
            }
            tokio::select! {
                () = cancel.cancelled() => return Err(StoreError::Cancelled),
                Some(event) = self.running.next() => self.handle(event)?,
                _ = tick.tick() => {
                    self.tell();
                    self.save_now_and_then().await?;
                }
            }
        }
    }

    fn tell(&self) {
        let (done, total) = self.ledger.progress();
        self.watch.at(done, total);
    }

    fn handle(&mut self, event: Event) -> Result<(), StoreError> {
        match event {
            Event::Answered(piece, Ok((response, answer))) => self.handle_answer(piece, response, &answer),
            Event::Answered(piece, Err(error)) => self.handle_end(&piece, Err(PieceError::Web(error))),
            Event::Ended(piece, outcome) => self.handle_end(&piece, outcome),
        }
    }

    fn handle_answer(&mut self, piece: Piece, response: Response, answer: &Answer) -> Result<(), StoreError> {
        self.places[piece.file] = Some(response.url().clone());
        let (_, size, _) = self.ledger.state(piece.file);
        let validator = validator(&response);
        let then = self.ledger.answered(&piece, answer, validator.as_deref());
        match then.map_err(|stuck| self.stuck(&piece, stuck, None))? {
            Then::Drop => {}
            Then::Restart => {
                let name = &self.targets[piece.file].name;
                self.watch.note(&format!("{name} has changed on the server: it is fetched anew"));
                // What still writes to the old file writes to one that nobody sees.
                let path = self.partial.file(name);
                std::fs::remove_file(&path).map_err(io_error("remove", &path))?;
                self.files[piece.file] = Arc::new(open_partial(&path)?);
            }
            Then::Read { start, end } => {
                if size.is_none() {
                    disk::check_room(&self.partial.folder, Bytes(self.ledger.missing_bytes()))?;
                }
                let file = Arc::clone(&self.files[piece.file]);
                self.running.push(read(response, file, piece, (start, end), *self.web.patience()).boxed());
            }
        }
        Ok(())
    }

    fn handle_end(&mut self, piece: &Piece, outcome: Result<(), PieceError>) -> Result<(), StoreError> {
        let (went_well, wait, error) = match outcome {
            Ok(()) => (true, Duration::ZERO, None),
            Err(PieceError::Web(error)) => match error.is_passing() {
                Some(wait) => (false, wait, Some(error)),
                None => return Err(self.web_error(piece, error)),
            },
            Err(PieceError::Disk(source)) => return Err(self.disk_error(piece, source)),
        };
        // A first failure is nothing: connections end.
        if let Some(error) = error.as_ref().filter(|_| piece.failures > 0)
            && self.told.is_none_or(|told| told.elapsed() >= TROUBLE_PERIOD)
        {
            self.told = Some(Instant::now());
            self.watch.note(&format!("{}: {error}; it is tried again", self.targets[piece.file].name));
        }
        self.ledger.ended(piece, went_well, wait).map_err(|stuck| self.stuck(piece, stuck, error))
    }

    fn web_error(&self, piece: &Piece, source: WebError) -> StoreError {
        let what = self.targets[piece.file].name.to_string();
        let after = match source.is_passing() {
            Some(_) => ". What has been fetched is kept: the same command goes on",
            None => "",
        };
        StoreError::Web { what, source, after }
    }

    fn disk_error(&self, piece: &Piece, source: io::Error) -> StoreError {
        let path = self.partial.file(&self.targets[piece.file].name);
        if is_full(&source) {
            return StoreError::Full { path, source, missing: Bytes(self.ledger.missing_bytes()) };
        }
        io_error("write", &path)(source)
    }

    fn stuck(&self, piece: &Piece, stuck: Stuck, error: Option<WebError>) -> StoreError {
        let target = &self.targets[piece.file];
        let file = target.name.clone();
        let problem = match (stuck, error) {
            (Stuck::Failing, Some(error)) => return self.web_error(piece, error),
            (Stuck::Failing, None) => "ends before its end, every time".to_owned(),
            (Stuck::Size { wanted, found }, _) => {
                format!(
                    "is of {found} bytes, but should be of {wanted}: the server is damaged, or no copy of the hub"
                )
            }
            (Stuck::Changing, _) => "changes while it is fetched: try again later".to_owned(),
            (Stuck::OtherRange, _) => {
                format!(
                    "cannot be fetched: {} answers another range than the one asked for",
                    host_of(&target.url)
                )
            }
        };
        StoreError::Server { file, problem }
    }

    /// Nothing is missing that could be asked for, and yet not everything is there: no server should bring this about.
    fn unfinished(&self) -> StoreError {
        let is_short = |(index, _): &(usize, &Target)| {
            let (done, bytes, _) = self.ledger.state(*index);
            bytes != Some(done.bytes())
        };
        let file = self
            .targets
            .iter()
            .enumerate()
            .find(is_short)
            .map_or_else(String::new, |(_, t)| t.name.to_string());
        StoreError::Setting(format!("{file} cannot be fetched whole; what has come is kept"))
    }

    fn snapshot(&self) -> Journal {
        let file = |(index, target): (usize, &Target)| {
            let (done, bytes, validator) = self.ledger.state(index);
            let validator = validator.map(str::to_owned);
            FileJournal {
                name: target.name.clone(),
                bytes,
                expected: target.wanted.expected,
                validator,
                done,
            }
        };
        let other = |other: &Target| FileJournal {
            name: other.name.clone(),
            bytes: other.wanted.bytes,
            expected: other.wanted.expected,
            validator: other.wanted.validator.clone(),
            done: other.wanted.done.clone(),
        };
        let files = self.targets.iter().enumerate().map(file).chain(self.others.iter().map(other)).collect();
        Journal { form: FORM, source: self.partial.source.clone(), files }
    }

    /// Writes the journal beside the downloads, unless it is being written.
    async fn save_now_and_then(&mut self) -> Result<(), StoreError> {
        if let Some(saving) = self.saving.take_if(|saving| saving.is_finished()) {
            self.saved_well(saving.await)?;
        }
        if self.saving.is_none() && self.saved.elapsed() >= JOURNAL_PERIOD {
            self.saving = Some(self.start_saving());
        }
        Ok(())
    }

    /// What the journal says is there is on the disk first.
    fn start_saving(&mut self) -> JoinHandle<io::Result<()>> {
        let (journal, files, path) = (self.snapshot(), self.files.clone(), self.partial.journal());
        self.saved = Instant::now();
        tokio::task::spawn_blocking(move || {
            files.iter().try_for_each(|file| file.sync_data())?;
            disk::replace(&path, &serde_json::to_vec(&journal)?)
        })
    }

    fn saved_well(&self, saved: Result<io::Result<()>, tokio::task::JoinError>) -> Result<(), StoreError> {
        let saved = saved.unwrap_or_else(|error| Err(io::Error::other(error)));
        saved.map_err(|source| {
            let path = self.partial.journal();
            if is_full(&source) {
                return StoreError::Full { path, source, missing: Bytes(self.ledger.missing_bytes()) };
            }
            io_error("write", &path)(source)
        })
    }

    /// Ends all requests, and writes the journal for the last time.
    async fn close(&mut self) -> Result<(), StoreError> {
        self.running.clear();
        self.tell();
        if let Some(saving) = self.saving.take() {
            // Whatever became of it: it is written again.
            let _ = saving.await;
        }
        let reserve = self.partial.folder.join(RESERVE);
        let saved = self.start_saving().await;
        let full = matches!(&saved, Ok(Err(error)) if is_full(error));
        let removed = std::fs::remove_file(&reserve);
        if full && removed.is_ok() {
            let again = self.start_saving().await;
            return self.saved_well(again);
        }
        self.saved_well(saved)
    }
}

/// Opens an unfinished file, making it where there is none.
pub(super) fn open_partial(path: &Path) -> Result<File, StoreError> {
    disk::is_plain_file(path)?;
    let options = OpenOptions::new().create(true).truncate(false).read(true).write(true).clone();
    disk::open(path, &options).map_err(io_error("open", path))
}

/// Asks for a piece: where the file's last answer came from, or else where the file is said to be.
async fn ask(web: &Web, url: &Url, place: Option<Url>, piece: Piece) -> Event {
    tokio::time::sleep(piece.pause).await;
    let ask =
        Ask { range: Some((piece.start, piece.end)), validator: piece.validator.as_deref(), head: false };
    let from_place = match &place {
        Some(place) if place != url => web.ask(place, &ask).await.ok(),
        _ => None,
    };
    let answered = match from_place {
        Some(response) => Ok(response),
        None => web.ask(url, &ask).await,
    };
    let answered = answered.and_then(|response| {
        let answer = understood(&response)?;
        Ok((response, answer))
    });
    Event::Answered(piece, answered)
}

/// What a server calls this version of a file: its entity tag, or else when it was changed.
pub(super) fn validator(response: &Response) -> Option<String> {
    let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    text(header::ETAG).or_else(|| text(header::LAST_MODIFIED))
}

/// What a successful answer is.
fn understood(response: &Response) -> Result<Answer, WebError> {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    match (response.status().as_u16(), range) {
        (206 | 416, Some(range)) => parse_range(range).ok_or_else(|| WebError::Malformed {
            url: super::source::public(response.url()).to_string(),
            problem: format!("its range is `{}`", super::names::shown(range)),
        }),
        (200, _) => Ok(Answer::Whole { total: response.content_length() }),
        (status, _) => {
            Err(WebError::Refused { url: super::source::public(response.url()).to_string(), status })
        }
    }
}

/// Reads `bytes 0-9/20`; of `bytes */20`, which refuses a range, an empty one.
fn parse_range(text: &str) -> Option<Answer> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let total = total.parse().ok()?;
    if range == "*" {
        return Some(Answer::Range { start: 0, end: 0, total });
    }
    let (first, last) = range.split_once('-')?;
    let (start, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    (start <= last && last < total).then_some(Answer::Range { start, end: last + 1, total })
}

/// Writes an answer's body to its place.
async fn read(
    mut response: Response,
    file: Arc<File>,
    piece: Piece,
    (start, end): (u64, Option<u64>),
    patience: Patience,
) -> Event {
    let host = host_of(response.url());
    let broken = |reason: String| PieceError::Web(WebError::Broken { host: host.clone(), reason });
    let mut at = start;
    let mut window = (Instant::now(), 0u64);
    let outcome = loop {
        if Some(at) == end {
            break Ok(());
        }
        let mut bytes = match tokio::time::timeout(patience.silence, response.chunk()).await {
            Err(_) => break Err(broken(format!("it sent nothing for {:?}", patience.silence))),
            Ok(Err(error)) => break Err(broken(chain(&error.without_url()))),
            Ok(Ok(Some(bytes))) => bytes,
            Ok(Ok(None)) => {
                let whole = end.is_none_or(|end| at >= end);
                break if whole { Ok(()) } else { Err(broken("the answer ended early".to_owned())) };
            }
        };
        let most = end.map_or(u64::MAX, |end| end - at);
        bytes.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        if let Err(error) = disk::write_at(&file, &bytes, at) {
            break Err(PieceError::Disk(error));
        }
        let come = bytes.len() as u64;
        at += come;
        piece.written.fetch_add(come, Ordering::Relaxed);
        window.1 += come;
        if window.0.elapsed() >= patience.trickle {
            if window.1 < patience.least_bytes {
                break Err(broken(format!(
                    "it sent no more than {} in {:?}",
                    Bytes(window.1),
                    patience.trickle
                )));
            }
            window = (Instant::now(), 0);
        }
    };
    Event::Ended(piece, outcome)
}

/// Asks what a server says of a file without fetching it: its size. Servers that do not answer such a request are asked
/// no more.
///
/// # Errors
/// Where the file is not there or may not be had.
pub(super) async fn size_of(web: &Web, url: &Url) -> Result<Option<u64>, WebError> {
    let ask = Ask { head: true, ..Ask::default() };
    match web.ask(url, &ask).await {
        Ok(response) => {
            let length = response.headers().get(header::CONTENT_LENGTH);
            Ok(length.and_then(|length| length.to_str().ok()?.parse().ok()))
        }
        // Links that are signed for one method refuse others.
        Err(WebError::Refused { status: 400 | 401 | 403 | 405 | 501, .. }) => Ok(None),
        Err(error) if error.is_passing().is_some() => Ok(None),
        Err(error) => Err(error),
    }
}

/// What of a file is there, as the journal has it and the disk bears it out.
pub(super) fn resumed(
    journal: Option<&Journal>,
    partial: &Partial,
    target: &mut Target,
) -> Result<(), StoreError> {
    let path = partial.file(&target.name);
    let Some(file) =
        journal.and_then(|journal| journal.of(&target.name, target.wanted.bytes, &target.wanted.expected))
    else {
        return remove_partial(&path);
    };
    let length =
        disk::open_to_read(&path)?.and_then(|file| file.metadata().ok()).map_or(0, |file| file.len());
    // Without a name of the version nobody could tell whether the rest belongs to it.
    let is_known = target.wanted.expected != Expected::Unknown || file.validator.is_some();
    if !is_known || !file.done.are_sound(Some(length)) {
        return remove_partial(&path);
    }
    target.wanted.done = file.done.clone();
    target.wanted.validator = file.validator.clone();
    target.wanted.bytes = target.wanted.bytes.or(file.bytes);
    Ok(())
}

/// Removes an unfinished file, if there is one.
pub(super) fn remove_partial(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_servers_write_them() {
        let range = |start, end, total| Some(Answer::Range { start, end, total });
        assert_eq!(parse_range("bytes 0-9/20"), range(0, 10, 20));
        assert_eq!(parse_range("bytes */20"), range(0, 0, 20));
        for text in ["", "bytes 0-9/*", "bytes 9-0/20", "bytes 0-20/20", "0-9/20", "bytes -9/20", "bytes 0-9"]
        {
            assert_eq!(parse_range(text), None, "{text}");
        }
    }
}
