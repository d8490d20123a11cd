//! Brings a model into the store: what is there already stays, what is missing is fetched, and nothing gets its final
//! name before it is whole, checked and readable as a model.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use brigade_shard::model_file::{FileError, Header};
use brigade_shard::tensor_type::TensorType;
use brigade_shard::units::Bytes;
use tokio_util::sync::CancellationToken;

use super::check::hash;
use super::digest::{Digest, Expected, Hashes};
use super::disk;
use super::error::{StoreError, io_error};
use super::fetch::{self, Partial, Target};
use super::hub::HubSettings;
use super::ledger::Wanted;
use super::local;
use super::names::FileName;
use super::plan::{Origin, Plan, Planned, Way};
use super::progress::Told;
use super::record::{Checked, FORM, Form, Record, StoredFile};
use super::shelf::Store;
use super::source::Source;
use super::spans::Spans;
use super::watch::{Phase, Watch};
use super::web::{Patience, Web};

/// What makes a directory one of a model, and says whether it can be run.
const CONFIG: &str = "config.json";

/// How often what turns out to be damaged is fetched before it is given up.
const ROUNDS: usize = 2;

/// How to pull.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// What to call the model; like its file where it is `None`.
    pub name: Option<String>,
    /// What its only file should hold.
    pub sha256: Option<Digest>,
    /// Which hub, and who asks.
    pub hub: HubSettings,
    /// How long to wait for servers.
    pub patience: Patience,
}

/// What a pull came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// What was written down.
    pub record: Record,
    /// What a command is given to use the model.
    pub path: PathBuf,
    /// What came over the network, or from another place on this machine.
    pub fetched: Bytes,
}

/// A file that is in its place and as it should be.
type Kept = BTreeMap<FileName, Hashes>;

impl Store {
    /// Brings a model into the store, or goes on with it; of one that is there, checks every file, and fetches what is
    /// missing or damaged.
    ///
    /// # Errors
    /// Where it cannot be had, written or read; [`StoreError`] says whether what has come is kept.
    pub async fn pull(
        &self,
        source: &Source,
        options: &PullOptions,
        watch: &dyn Watch,
        cancel: &CancellationToken,
    ) -> Result<Pulled, StoreError> {
        let plan = tokio::select! {
            plan = Plan::make(source, options, watch) => plan?,
            () = cancel.cancelled() => return Err(StoreError::Cancelled),
        };
        self.refuse_own(&plan)?;
        self.prepare()?;
        let _lock = self.lock(&plan.name)?;
        let told = Told::new(watch, self.partial(&plan.name), &plan.name, &plan.source);
        let pull = Pull { store: self, plan: &plan, watch: &told, cancel };
        pull.run().await
    }

    /// A file of the store is not copied onto itself.
    fn refuse_own(&self, plan: &Plan) -> Result<(), StoreError> {
        let is_here =
            |file: &Planned| matches!(&file.origin, Origin::Path(path) if path.starts_with(self.root()));
        if plan.files.iter().any(is_here) {
            return Err(StoreError::Setting(format!("{} is in the store already", plan.source)));
        }
        Ok(())
    }
}

struct Pull<'a> {
    store: &'a Store,
    plan: &'a Plan,
    watch: &'a dyn Watch,
    cancel: &'a CancellationToken,
}

impl Pull<'_> {
    async fn run(&self) -> Result<Pulled, StoreError> {
        let earlier = self.store.record(&self.plan.name)?;
        if let Some(earlier) = earlier.as_ref().filter(|earlier| !self.plan.is_from(&earlier.source)) {
            let (name, source_of_it) = (self.plan.name.clone(), earlier.source.clone());
            return Err(StoreError::Taken { name, source_of_it });
        }
        let mut hashes = self.kept(earlier.as_ref()).await?;
        let missing: Vec<&Planned> =
            self.plan.files.iter().filter(|file| !hashes.contains_key(&file.name)).collect();
        let partial =
            Partial { folder: self.store.partial(&self.plan.name), source: self.plan.source.clone() };
        let mut fetched = Bytes::ZERO;
        if !missing.is_empty() {
            self.open_partial(&partial)?;
            let new = match &self.plan.way {
                Way::Web(web) => self.fetch(web, &missing, &partial, &mut fetched).await?,
                Way::Disk => self.copy(&missing, &partial, &mut fetched).await?,
            };
            hashes.extend(new);
            let is_whole = missing.len() == self.plan.files.len();
            if is_whole {
                self.read_header(&self.start(&partial.files()), &partial)?;
            }
            self.put(&missing, &partial)?;
        }
        let record = self.record(&hashes, earlier.as_ref(), &partial)?;
        self.store.write_record(&record)?;
        self.remove_left_over(earlier.as_ref(), &record)?;
        match fs::remove_dir_all(&partial.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io_error("remove", &partial.folder)(error));
            }
            _ => {}
        }
        Ok(Pulled { path: self.store.path_of(&record), record, fetched })
    }

    fn place(&self, file: &FileName) -> PathBuf {
        self.store.place(&self.plan.name, self.plan.format, file)
    }

    /// The directory of a model in safetensors.
    fn folder(&self) -> PathBuf {
        self.store.root().join(self.plan.name.as_str())
    }

    /// What a header is read from, where the model's files are in `folder`.
    fn start(&self, folder: &Path) -> PathBuf {
        match (self.plan.format, self.plan.files.first()) {
            (Form::Gguf, Some(first)) => folder.join(first.name.as_str()),
            _ => folder.to_owned(),
        }
    }

    /// The files that are in their places, and as they should be.
    async fn kept(&self, earlier: Option<&Record>) -> Result<Kept, StoreError> {
        let mut kept = Kept::new();
        if self.plan.format == Form::Safetensors && !disk::is_plain_folder(&self.folder())? {
            return Ok(kept);
        }
        let was_ours = earlier.is_some()
            || self.store.journal(&self.plan.name)?.is_some_and(|j| self.plan.is_from(&j.source));
        let there: Vec<&Planned> =
            self.plan.files.iter().filter(|file| self.place(&file.name).symlink_metadata().is_ok()).collect();
        if there.is_empty() {
            let is_taken = self.plan.format == Form::Safetensors && !was_ours;
            return if is_taken { Err(StoreError::Foreign { path: self.folder() }) } else { Ok(kept) };
        }
        let total = there.iter().filter_map(|file| file.bytes).sum();
        self.watch.begin(Phase::Checking, 0, Some(total));
        let mut before = 0;
        for file in there {
            let path = self.place(&file.name);
            let recorded =
                earlier.and_then(|record| record.files.iter().find(|stored| stored.name == file.name));
            // Of what nobody knows a checksum of, the one of the last time will do.
            let expected = match (&file.expected, recorded) {
                (Expected::Unknown, Some(stored)) => Expected::Sha256(stored.sha256),
                (expected, _) => *expected,
            };
            let at = |done| self.watch.at(before + done, Some(total));
            let found = hash(&path, file.bytes, &expected, self.cancel, at).await?;
            before += file.bytes.unwrap_or(0);
            let Some(found) = found else { continue };
            let is_known = expected != Expected::Unknown;
            let is_sound =
                file.bytes.is_none_or(|bytes| bytes == found.bytes) && found.difference(&expected).is_none();
            if is_known && is_sound {
                kept.insert(file.name.clone(), found);
            } else if was_ours {
                self.watch
                    .note(&format!("{} is damaged or out of date: it is fetched again", path.display()));
            } else {
                return Err(StoreError::Foreign { path });
            }
        }
        Ok(kept)
    }

    /// Makes the place of the unfinished files, or empties one that belongs to another source.
    fn open_partial(&self, partial: &Partial) -> Result<(), StoreError> {
        let journal = self.store.journal(&self.plan.name)?;
        let is_other = journal.is_none_or(|journal| !self.plan.is_from(&journal.source));
        if disk::is_plain_folder(&partial.folder)? && is_other {
            fs::remove_dir_all(&partial.folder).map_err(io_error("remove", &partial.folder))?;
        }
        disk::make_folder(&partial.folder)?;
        disk::make_folder(&partial.files())
    }

    async fn fetch(
        &self,
        web: &Web,
        missing: &[&Planned],
        partial: &Partial,
        fetched: &mut Bytes,
    ) -> Result<Kept, StoreError> {
        let mut targets = self.targets(missing, partial)?;
        if let Some(config) = missing.iter().position(|file| file.name.as_str() == CONFIG) {
            *fetched += self.fetch_config(web, &targets, config, partial).await?;
            targets = self.targets(missing, partial)?;
        }
        let mut checked = Kept::new();
        for round in 1..=ROUNDS {
            let there: u64 = targets.iter().map(|target| target.wanted.done.bytes()).sum();
            let total: Option<u64> = targets.iter().map(|target| target.wanted.bytes).sum();
            if total != Some(there) {
                self.watch.begin(Phase::Fetching, there, total);
            }
            *fetched += fetch::fetch(web, (&targets, &[]), partial, self.watch, self.cancel).await?;
            let files: Vec<&Planned> =
                missing.iter().copied().filter(|file| !checked.contains_key(&file.name)).collect();
            let mut damaged = Vec::new();
            for (file, found) in self.hashes(&files, partial).await? {
                match found.difference(&file.expected) {
                    None => drop(checked.insert(file.name.clone(), found)),
                    Some((wanted, found)) => damaged.push((file, wanted, found)),
                }
            }
            let Some((file, wanted, found)) = damaged.first() else { break };
            for (file, ..) in &damaged {
                fetch::remove_partial(&partial.file(&file.name))?;
            }
            if round == ROUNDS {
                let (file, wanted, found) = (file.name.clone(), wanted.clone(), found.clone());
                return Err(StoreError::Damaged { file, wanted, found });
            }
            for (file, wanted, found) in &damaged {
                let name = &file.name;
                self.watch.note(&format!(
                    "{name} is damaged: it should be of {wanted}, but is of {found}; it is fetched once more"
                ));
                let fresh = Wanted {
                    bytes: file.bytes,
                    expected: file.expected,
                    validator: None,
                    done: Spans::default(),
                };
                targets
                    .iter_mut()
                    .filter(|target| target.name == *name)
                    .for_each(|t| t.wanted = fresh.clone());
            }
            for target in targets.iter_mut().filter(|target| checked.contains_key(&target.name)) {
                let bytes = checked.get(&target.name).map(|hashes| hashes.bytes);
                target.wanted.bytes = bytes;
                target.wanted.done = Spans::whole(bytes.unwrap_or(0));
            }
        }
        Ok(checked)
    }

    fn targets(&self, missing: &[&Planned], partial: &Partial) -> Result<Vec<Target>, StoreError> {
        let journal = self.store.journal(&self.plan.name)?;
        let target = |file: &&Planned| {
            let Origin::Url(url) = &file.origin else {
                return Err(StoreError::Setting(format!("{} is not fetched over HTTP", file.name)));
            };
            let wanted = Wanted {
                bytes: file.bytes,
                expected: file.expected,
                validator: None,
                done: Spans::default(),
            };
            let mut target = Target { name: file.name.clone(), url: url.clone(), wanted };
            fetch::resumed(journal.as_ref(), partial, &mut target)?;
            Ok(target)
        };
        missing.iter().map(target).collect()
    }

    /// Fetches the configuration before all else, and sees whether it is one of a model that can be run: nobody fetches
    /// hundreds of gigabytes to be told then that they are of no use.
    async fn fetch_config(
        &self,
        web: &Web,
        targets: &[Target],
        config: usize,
        partial: &Partial,
    ) -> Result<Bytes, StoreError> {
        let (mut first, mut others) = (Vec::new(), Vec::new());
        for (index, target) in targets.iter().enumerate() {
            if index == config { first.push(target.clone()) } else { others.push(target.clone()) }
        }
        let fetched = fetch::fetch(web, (&first, &others), partial, self.watch, self.cancel).await?;
        let (path, expected) = (partial.file(&targets[config].name), targets[config].wanted.expected);
        let found = hash(&path, None, &expected, self.cancel, |_| {}).await?;
        if found.is_none_or(|found| found.difference(&expected).is_some()) {
            // It comes once more, with the others.
            fetch::remove_partial(&path)?;
            return Ok(fetched);
        }
        match Header::open(&partial.files()) {
            Err(FileError { path, problem }) if path.file_name().is_some_and(|name| name == CONFIG) => {
                let _ = fs::remove_dir_all(&partial.folder);
                let source_of_it = self.plan.source.clone();
                Err(StoreError::NoModel { source_of_it, problem: FileError { path, problem } })
            }
            _ => Ok(fetched),
        }
    }

    /// The hashes of unfinished files that are complete; they are durable then.
    async fn hashes<'f>(
        &self,
        files: &[&'f Planned],
        partial: &Partial,
    ) -> Result<Vec<(&'f Planned, Hashes)>, StoreError> {
        let paths: Vec<PathBuf> = files.iter().map(|file| partial.file(&file.name)).collect();
        let total = paths.iter().filter_map(|path| path.metadata().ok()).map(|file| file.len()).sum();
        self.watch.begin(Phase::Checking, 0, Some(total));
        let (mut hashes, mut before) = (Vec::new(), 0);
        for (file, path) in files.iter().zip(&paths) {
            let at = |done| self.watch.at(before + done, Some(total));
            let found = hash(path, None, &file.expected, self.cancel, at).await?;
            let found = found.ok_or_else(|| io_error("open", path)(std::io::ErrorKind::NotFound.into()))?;
            before += found.bytes;
            hashes.push((*file, found));
        }
        Ok(hashes)
    }

    async fn copy(
        &self,
        missing: &[&Planned],
        partial: &Partial,
        fetched: &mut Bytes,
    ) -> Result<Kept, StoreError> {
        let total: u64 = missing.iter().filter_map(|file| file.bytes).sum();
        disk::check_room(&partial.folder, Bytes(total))?;
        self.watch.begin(Phase::Copying, 0, Some(total));
        let mut copied = Kept::new();
        for file in missing {
            let Origin::Path(from) = &file.origin else {
                return Err(StoreError::Setting(format!("{} is not on this machine", file.name)));
            };
            let before = fetched.0;
            let at = |done| self.watch.at(before + done, Some(total));
            let to = partial.file(&file.name);
            let hashes = match local::copy(from, &to, self.cancel, at).await {
                Ok(hashes) => hashes,
                Err(error) => {
                    // A copy is made anew, so that half of one is of no use.
                    let _ = fs::remove_dir_all(&partial.folder);
                    return Err(error);
                }
            };
            if let Some((wanted, found)) = hashes.difference(&file.expected) {
                let _ = fs::remove_dir_all(&partial.folder);
                return Err(StoreError::Setting(format!(
                    "{} is not what was asked for: it should be of {wanted}, but is of {found}",
                    from.display()
                )));
            }
            *fetched += Bytes(hashes.bytes);
            copied.insert(file.name.clone(), hashes);
        }
        Ok(copied)
    }

    /// Reads the headers of what was fetched.
    fn read_header(&self, start: &Path, partial: &Partial) -> Result<Header, StoreError> {
        Header::open(start).map_err(|problem| {
            // What arrived whole and cannot be read will not become better.
            let _ = fs::remove_dir_all(&partial.folder);
            StoreError::NoModel { source_of_it: self.plan.source.clone(), problem }
        })
    }

    /// Gives what was fetched its final names: the part last that others begin with.
    fn put(&self, missing: &[&Planned], partial: &Partial) -> Result<(), StoreError> {
        disk::sync_folder(&partial.files())?;
        if self.plan.format == Form::Safetensors && !disk::is_plain_folder(&self.folder())? {
            return disk::put(&partial.files(), &self.folder());
        }
        missing.iter().rev().try_for_each(|file| {
            let place = self.place(&file.name);
            disk::is_plain_file(&place)?;
            disk::put(&partial.file(&file.name), &place)
        })
    }

    fn record(
        &self,
        hashes: &Kept,
        earlier: Option<&Record>,
        partial: &Partial,
    ) -> Result<Record, StoreError> {
        let folder = match self.plan.format {
            Form::Gguf => self.store.root().to_owned(),
            Form::Safetensors => self.folder(),
        };
        let header = self.read_header(&self.start(&folder), partial)?;
        let file = |file: &Planned| {
            let hashes = hashes.get(&file.name)?;
            let checked = match (file.checked, earlier) {
                (Checked::Size, Some(earlier)) => earlier
                    .files
                    .iter()
                    .find(|stored| stored.name == file.name && stored.sha256 == hashes.sha256)
                    .map_or(Checked::Size, |stored| stored.checked),
                (checked, _) => checked,
            };
            Some(StoredFile {
                name: file.name.clone(),
                bytes: Bytes(hashes.bytes),
                sha256: hashes.sha256,
                checked,
            })
        };
        Ok(Record {
            form: FORM,
            name: self.plan.name.clone(),
            format: self.plan.format,
            source: self.plan.source.clone(),
            revision: self.plan.revision.clone(),
            pulled_s: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            weights: main_type(&header),
            fingerprint: *header.fingerprint(),
            files: self.plan.files.iter().filter_map(file).collect(),
        })
    }

    /// Removes files that belonged to the model as it was pulled before, and no more.
    fn remove_left_over(&self, earlier: Option<&Record>, now: &Record) -> Result<(), StoreError> {
        let Some(earlier) = earlier else { return Ok(()) };
        let left_over = earlier.files.iter().filter(|old| now.files.iter().all(|new| new.name != old.name));
        left_over.map(|old| self.store.place(&earlier.name, earlier.format, &old.name)).try_for_each(|path| {
            if disk::is_plain_file(&path)? { fetch::remove_partial(&path) } else { Ok(()) }
        })
    }
}

/// The type that the most bytes of a model's tensors have.
fn main_type(header: &Header) -> String {
    let mut bytes: BTreeMap<TensorType, Bytes> = BTreeMap::new();
    for tensor in header.tensors() {
        *bytes.entry(tensor.kind).or_default() += tensor.bytes;
    }
    let most = bytes.into_iter().max_by_key(|(_, bytes)| *bytes);
    most.map_or_else(|| "-".to_owned(), |(kind, _)| kind.to_string())
}
