//! Finds a model's files on this machine by its fingerprint.
//!
//! A coordinator names a model by the hash of its header and a file name as a hint; where the file lies here, only
//! this worker knows. [`ModelStore::find`] looks at the hint first and then at every other GGUF file or directory of
//! safetensors in its directories, reading headers only, and remembers what it has read until a file changes.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use brigade_shard::model_file::Header;
use brigade_shard::safetensors;

/// Most files looked at in one search: reading this many headers takes seconds, and a directory with more of them
/// is not a models directory.
pub const MAX_FILES: usize = 4096;

/// The directories (or single models) that a worker takes models from.
#[derive(Debug)]
pub struct ModelStore {
    places: Vec<PathBuf>,
    /// Fingerprints of single-file models by path.
    seen: HashMap<PathBuf, Seen>,
}

#[derive(Debug)]
struct Seen {
    bytes: u64,
    modified: Option<SystemTime>,
    fingerprint: String,
}

/// A model that is not here.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// None of the files has the fingerprint.
    #[error(
        "no model with fingerprint {fingerprint} (`{hint}` on the coordinator's machine) in {places}: looked at \
         {looked_at} file(s){unread}; copy the file into one of these directories, or name its own with --models"
    )]
    NotFound {
        /// What was looked for, in hexadecimal.
        fingerprint: String,
        /// The coordinator's name for the file.
        hint: String,
        /// The directories looked in, as text.
        places: String,
        /// Files whose header was considered.
        looked_at: usize,
        /// What is wrong with the hinted file, where it is here but of no use; otherwise empty.
        unread: String,
    },
    /// The hint is more than a file's name.
    #[error("`{0}` is not the base name of a file, and a coordinator may name nothing else")]
    HintIsPath(String),
    /// The search was given up.
    #[error("the search was cancelled")]
    Cancelled,
}

impl ModelStore {
    /// A store over `places`, each a directory of models, or a model; they need not exist yet.
    pub fn new(places: Vec<PathBuf>) -> ModelStore {
        ModelStore { places, seen: HashMap::new() }
    }

    /// The header of the model with this `fingerprint` (hexadecimal), looked for at `hint` first.
    ///
    /// # Errors
    /// Where no file has it, `hint` is not a plain file name, or `cancelled` says so between two files.
    pub fn find(
        &mut self,
        hint: &str,
        fingerprint: &str,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Header, ModelError> {
        if !is_base_name(hint) {
            return Err(ModelError::HintIsPath(hint.to_owned()));
        }
        let mut looked_at = 0;
        let mut unread = String::new();
        for path in self.candidates(hint) {
            if cancelled() {
                return Err(ModelError::Cancelled);
            }
            looked_at += 1;
            match self.open(&path, fingerprint) {
                Ok(Some(header)) => return Ok(header),
                Ok(None) if is_named(&path, hint) => {
                    unread = format!("; {} is another model or another version of it", path.display());
                }
                Err(error) if is_named(&path, hint) => {
                    unread = format!("; {} cannot be read: {error}", path.display());
                }
                Ok(None) | Err(_) => {}
            }
        }
        let places: Vec<String> = self.places.iter().map(|place| place.display().to_string()).collect();
        Err(ModelError::NotFound {
            fingerprint: fingerprint.to_owned(),
            hint: hint.to_owned(),
            places: places.join(", "),
            looked_at,
            unread,
        })
    }

    /// The header at `path` if it has the fingerprint; an error only where the file cannot be read.
    fn open(&mut self, path: &Path, fingerprint: &str) -> Result<Option<Header>, String> {
        let file = fs::metadata(path).map_err(|error| error.to_string())?;
        let (bytes, modified) = (file.len(), file.modified().ok());
        let known = self.seen.get(path).filter(|seen| seen.bytes == bytes && seen.modified == modified);
        if known.is_some_and(|seen| modified.is_some() && seen.fingerprint != fingerprint) {
            return Ok(None);
        }
        let header = Header::open(path).map_err(|error| error.to_string())?;
        let found = header.fingerprint().to_string();
        // Other parts, and what lies in a directory, change without its size or time: only whole files are remembered.
        if file.is_file()
            && header.parts().len() == 1
            && (self.seen.len() < MAX_FILES || self.seen.contains_key(path))
        {
            self.seen.insert(path.to_owned(), Seen { bytes, modified, fingerprint: found.clone() });
        }
        Ok((found == fingerprint).then_some(header))
    }

    /// Files to look at, those named like the hint first, then the rest by place and name.
    fn candidates(&self, hint: &str) -> Vec<PathBuf> {
        let mut first = Vec::new();
        let mut rest = Vec::new();
        for place in &self.places {
            if place.is_file() || safetensors::is_model(place) {
                let list = if is_named(place, hint) { &mut first } else { &mut rest };
                list.push(place.clone());
                continue;
            }
            let hinted = place.join(hint);
            if hinted.is_file() || safetensors::is_model(&hinted) {
                first.push(hinted);
            }
            let Ok(entries) = fs::read_dir(place) else {
                continue;
            };
            let mut found: Vec<PathBuf> = entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| (is_model_start(path) || safetensors::is_model(path)) && !is_named(path, hint))
                .take(MAX_FILES)
                .collect();
            found.sort();
            rest.append(&mut found);
        }
        first.append(&mut rest);
        first.truncate(MAX_FILES);
        first
    }
}

/// Whether `hint` is one plain path component.
fn is_base_name(hint: &str) -> bool {
    !hint.is_empty() && hint != "." && hint != ".." && !hint.contains(['/', '\\', '\0'])
}

fn is_named(path: &Path, name: &str) -> bool {
    path.file_name().is_some_and(|file| file == name)
}

/// Whether a path is a GGUF file that a model begins with: not a later part of a split one.
fn is_model_start(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    let Some(stem) = name.strip_suffix(".gguf") else {
        return false;
    };
    match split_number(stem) {
        Some(number) => number == 1 && path.is_file(),
        None => path.is_file(),
    }
}

/// The part number of a stem such as `model-00002-of-00003`, from 1.
fn split_number(stem: &str) -> Option<u32> {
    let (front, count) = stem.rsplit_once("-of-")?;
    let (_, number) = front.rsplit_once('-')?;
    let five_digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    (five_digits(count) && five_digits(number)).then(|| number.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_parts_of_a_split_model_are_told_apart() {
        for (stem, number) in [
            ("big-00001-of-00003", Some(1)),
            ("big-00003-of-00003", Some(3)),
            ("big-1-of-3", None),
            ("one-of-00003", None),
            ("plain", None),
        ] {
            assert_eq!(split_number(stem), number, "{stem}");
        }
    }

    #[test]
    fn only_plain_names_are_hints() {
        for name in ["model.gguf", "a b.gguf", "..gguf"] {
            assert!(is_base_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "/etc/passwd", "..\\x", "a\0"] {
            assert!(!is_base_name(name), "{name:?}");
        }
    }
}
