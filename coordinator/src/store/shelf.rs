//! What is in the store: where everything lies, what is there, and how it is removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use brigade_shard::safetensors;
use brigade_shard::units::Bytes;

use super::disk::{self, Lock};
use super::error::{StoreError, io_error};
use super::names::{FileName, ModelName, Part, shown, within};
use super::progress::Progress;
use super::record::{FORM, Form, Journal, Record, StoredFile};
use crate::config::nearest;

/// The hidden directory in which the store keeps its own affairs.
const OWN: &str = ".brigade";

/// Largest record or journal that is read, in bytes.
const MOST_RECORD_BYTES: u64 = 16 << 20;

/// A directory of models.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// A model that is in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: ModelName,
    /// What a command is given to use it: its file, the first of its parts, or its directory.
    pub path: PathBuf,
    /// Size of its files.
    pub bytes: Bytes,
    /// How many files.
    pub files: usize,
    /// What was written down of it; `None` where somebody else put it there.
    pub record: Option<Record>,
}

/// A pull that has not ended well yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// The model's name.
    pub name: ModelName,
    /// Where it comes from.
    pub source: String,
    /// What has come.
    pub done: Bytes,
    /// Size of all files, as far as it is known.
    pub total: Option<Bytes>,
}

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The files and directories.
    pub paths: Vec<PathBuf>,
    /// Their size.
    pub bytes: Bytes,
}

/// Where models are unless told otherwise: where workers look for them. `None` without a home directory.
pub fn default_directory() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
    Some(Path::new(&home).join(".local/share/brigade/models"))
}

impl Store {
    /// The store in this directory, which need not exist yet.
    pub fn new(root: &Path) -> Store {
        let absolute = root.canonicalize().or_else(|_| std::path::absolute(root));
        Store { root: absolute.unwrap_or_else(|_| root.to_owned()) }
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn own(&self, folder: &str) -> PathBuf {
        self.root.join(OWN).join(folder)
    }

    /// Makes the directories that something is about to be written to.
    pub(super) fn prepare(&self) -> Result<(), StoreError> {
        fs::create_dir_all(&self.root).map_err(io_error("make the directory", &self.root))?;
        disk::make_folder(&self.root.join(OWN))?;
        ["records", "partial", "locks"].iter().try_for_each(|folder| disk::make_folder(&self.own(folder)))
    }

    /// Whether its own directories are what they should be, as far as they are there.
    fn check_own(&self) -> Result<(), StoreError> {
        disk::is_plain_folder(&self.root.join(OWN))?;
        ["records", "partial"]
            .iter()
            .try_for_each(|folder| disk::is_plain_folder(&self.own(folder)).map(drop))
    }

    pub(super) fn lock(&self, name: &ModelName) -> Result<Lock, StoreError> {
        disk::lock(self.own("locks").join(name.as_str()), name)
    }

    /// Where a pull's files are until they are checked.
    pub(super) fn partial(&self, name: &ModelName) -> PathBuf {
        self.own("partial").join(name.as_str())
    }

    fn record_path(&self, name: &ModelName) -> PathBuf {
        self.own("records").join(format!("{name}.json"))
    }

    /// Where a file of a model has its place.
    pub(super) fn place(&self, name: &ModelName, format: Form, file: &FileName) -> PathBuf {
        match format {
            Form::Gguf => within(&self.root, file),
            Form::Safetensors => within(&self.root.join(name.as_str()), file),
        }
    }

    /// What a command is given to use the model of a record.
    pub fn path_of(&self, record: &Record) -> PathBuf {
        match (record.format, record.files.first()) {
            (Form::Gguf, Some(first)) => within(&self.root, &first.name),
            _ => self.root.join(record.name.as_str()),
        }
    }

    /// What was written down of a model; `None` where nothing was.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn record(&self, name: &ModelName) -> Result<Option<Record>, StoreError> {
        self.check_own()?;
        let path = self.record_path(name);
        let record: Option<Record> = read_json(&path)?;
        let damaged = |problem: &str| StoreError::Record { path: path.clone(), problem: problem.to_owned() };
        match &record {
            Some(record) if record.form != FORM => {
                Err(damaged("it was written by another version of this program"))
            }
            Some(record) if record.name != *name => Err(damaged("it is of another model")),
            Some(record) if record.files.is_empty() => Err(damaged("it names no files")),
            _ => Ok(record),
        }
    }

    pub(super) fn write_record(&self, record: &Record) -> Result<(), StoreError> {
        let path = self.record_path(&record.name);
        let text = serde_json::to_vec_pretty(record)
            .map_err(|error| StoreError::Record { path: path.clone(), problem: error.to_string() })?;
        disk::replace(&path, &text).map_err(io_error("write", &path))
    }

    /// How far an unfinished pull is; what cannot be read counts as nothing.
    pub(super) fn journal(&self, name: &ModelName) -> Result<Option<Journal>, StoreError> {
        self.check_own()?;
        let folder = self.partial(name);
        if !disk::is_plain_folder(&folder)? {
            return Ok(None);
        }
        let journal = read_json::<Journal>(&folder.join("journal.json"));
        Ok(journal.ok().flatten().filter(|journal| journal.form == FORM))
    }

    /// The models that are there, by name: those that were pulled, and those that somebody put there.
    ///
    /// # Errors
    /// Where the directory or a record cannot be read.
    pub fn list(&self) -> Result<Vec<Found>, StoreError> {
        let mut found = Vec::new();
        for name in self.names_in(&self.own("records"), ".json")? {
            if let Some(record) = self.record(&name)? {
                found.push(Found {
                    path: self.path_of(&record),
                    bytes: record.bytes(),
                    files: record.files.len(),
                    name,
                    record: Some(record),
                });
            }
        }
        found.extend(self.foreign(&found)?);
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Models that somebody else put there.
    fn foreign(&self, known: &[Found]) -> Result<Vec<Found>, StoreError> {
        let mut found: Vec<Found> = Vec::new();
        for path in entries(&self.root)? {
            let Some(file) = path.file_name().and_then(|name| FileName::new(&name.to_string_lossy()).ok())
            else {
                continue;
            };
            let is_folder = safetensors::is_model(&path);
            let is_first = Part::of(file.as_str()).is_none_or(|part| part.number == 1);
            let (true, Ok(name)) =
                (is_folder || (file.is_gguf() && path.is_file() && is_first), ModelName::new(file.as_str()))
            else {
                continue;
            };
            if known.iter().any(|known| known.name == name) {
                continue;
            }
            let files: Vec<PathBuf> = match Part::of(file.as_str()) {
                _ if is_folder => entries(&path)?,
                Some(part) => (1..=part.count).map(|number| self.root.join(part.name_of(number))).collect(),
                None => vec![path.clone()],
            };
            let sizes = files.iter().filter_map(|file| fs::metadata(file).ok());
            let bytes = sizes.filter(fs::Metadata::is_file).map(|file| Bytes(file.len())).sum();
            found.push(Found { name, path, bytes, files: files.len(), record: None });
        }
        Ok(found)
    }

    /// Pulls that have not ended well yet.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn unfinished(&self) -> Result<Vec<Unfinished>, StoreError> {
        let mut found = Vec::new();
        for name in self.names_in(&self.own("partial"), "")? {
            if let Some(journal) = self.journal(&name)? {
                let done = journal.files.iter().map(|file| Bytes(file.done.bytes())).sum();
                let total = journal.files.iter().map(|file| file.bytes.map(Bytes)).sum();
                found.push(Unfinished { name, source: journal.source, done, total });
            }
        }
        Ok(found)
    }

    /// The pulls that run now, in whatever process.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn pulls(&self) -> Result<Vec<Progress>, StoreError> {
        let names = self.names_in(&self.own("partial"), "")?;
        Ok(names.iter().filter_map(|name| Progress::read(&self.partial(name))).collect())
    }

    /// The names of models that files in a directory of our own have before `ending`, in order.
    fn names_in(&self, folder: &Path, ending: &str) -> Result<Vec<ModelName>, StoreError> {
        self.check_own()?;
        let paths = entries(folder)?;
        let names = paths.iter().filter_map(|path| path.file_name()?.to_str()?.strip_suffix(ending));
        // A name that reads otherwise was not written by us.
        let names = names.filter_map(|text| ModelName::new(text).ok().filter(|name| name.as_str() == text));
        Ok(names.collect())
    }

    /// The model of this name: as `ls` shows it, or its file's.
    ///
    /// # Errors
    /// Where there is none; the nearest name is said then.
    pub fn find(&self, name: &str) -> Result<Found, StoreError> {
        let all = self.list()?;
        let wanted = ModelName::new(name)?;
        let nearest = nearest(wanted.as_str(), all.iter().map(|found| found.name.as_str()));
        let nearest = match nearest {
            Some(nearest) => format!("; did you mean `{nearest}`?"),
            None => "; `brigade models ls` lists what is there".to_owned(),
        };
        all.into_iter().find(|found| found.name == wanted).ok_or_else(|| StoreError::NoSuch {
            name: shown(name),
            store: self.root.clone(),
            nearest,
        })
    }

    /// Removes a model that was pulled, and what has come of an unfinished pull of it.
    ///
    /// # Errors
    /// Where there is none, somebody else put it there, it is being pulled, or it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<Removed, StoreError> {
        let wanted = ModelName::new(name)?;
        let record = self.record(&wanted)?;
        let partial = self.partial(&wanted);
        let has_partial = disk::is_plain_folder(&partial)?;
        if record.is_none() && !has_partial {
            let found = self.find(name)?;
            return Err(StoreError::Setting(format!(
                "{} was not put there by `brigade models pull`: remove it yourself",
                found.path.display()
            )));
        }
        self.prepare()?;
        let _lock = self.lock(&wanted)?;
        let mut removed = Removed { paths: Vec::new(), bytes: Bytes::ZERO };
        if let Some(record) = &record {
            for StoredFile { name: file, .. } in &record.files {
                self.remove_file(&self.place(&wanted, record.format, file), &mut removed)?;
            }
            if record.format == Form::Safetensors {
                remove_if_empty(&self.root.join(wanted.as_str()))?;
            }
            let path = self.record_path(&wanted);
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
        if has_partial {
            let files = entries(&partial.join("files"))?;
            let files = files.iter().filter_map(|file| fs::symlink_metadata(file).ok());
            removed.bytes += files.map(|file| Bytes(file.len())).sum();
            fs::remove_dir_all(&partial).map_err(io_error("remove", &partial))?;
            removed.paths.push(partial);
        }
        Ok(removed)
    }

    /// Removes one file; a link in its place goes, and not what it leads to.
    fn remove_file(&self, path: &Path, removed: &mut Removed) -> Result<(), StoreError> {
        if let Some(folder) = path.parent().filter(|folder| *folder != self.root)
            && !disk::is_plain_folder(folder)?
        {
            return Ok(());
        }
        let bytes = match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_file() => Bytes(metadata.len()),
            Ok(_) => Bytes::ZERO,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(io_error("look at", path)(source)),
        };
        fs::remove_file(path).map_err(io_error("remove", path))?;
        removed.bytes += bytes;
        removed.paths.push(path.to_owned());
        Ok(())
    }
}

fn remove_if_empty(folder: &Path) -> Result<(), StoreError> {
    match fs::remove_dir(folder) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            Err(io_error("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

/// What a directory holds, in order; nothing where there is none.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    match fs::read_dir(folder) {
        Ok(entries) => {
            let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            paths.sort();
            Ok(paths)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(io_error("read", folder)(source)),
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let Some(file) = disk::open_to_read(path)? else { return Ok(None) };
    let damaged = |problem| StoreError::Record { path: path.to_owned(), problem };
    let size = file.metadata().map_err(io_error("look at", path))?.len();
    if size > MOST_RECORD_BYTES {
        return Err(damaged(format!("it is of {}", Bytes(size))));
    }
    let read = serde_json::from_reader(io::BufReader::new(file));
    read.map(Some).map_err(|error| damaged(error.to_string()))
}
