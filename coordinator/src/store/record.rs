//! What is written down of each model and of each unfinished pull.

use brigade_shard::model_file::Fingerprint;
use brigade_shard::units::Bytes;
use serde::{Deserialize, Serialize};

use super::digest::{Digest, Expected};
use super::names::{FileName, ModelName};
use super::spans::Spans;

/// The number of the records' form; others are not read.
pub(super) const FORM: u32 = 1;

/// How a model lies in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Files of its name at the top.
    Gguf,
    /// A directory of its name.
    Safetensors,
}

/// A model in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The number of this form.
    pub form: u32,
    /// Its name.
    pub name: ModelName,
    /// How it lies there.
    pub format: Form,
    /// Where it comes from, as can be given to `pull` again.
    pub source: String,
    /// The commit of its repository.
    pub revision: Option<String>,
    /// When it was pulled, in seconds since 1970.
    pub pulled_s: u64,
    /// The type that most of its weights have.
    pub weights: String,
    /// Its identity.
    pub fingerprint: Fingerprint,
    /// Its files.
    pub files: Vec<StoredFile>,
}

impl Record {
    /// Size of all files.
    pub fn bytes(&self) -> Bytes {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// A file of a model in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredFile {
    /// Its name.
    pub name: FileName,
    /// Its size.
    pub bytes: Bytes,
    /// Of its contents.
    pub sha256: Digest,
    /// Who said what it should hold.
    pub checked: Checked,
}

/// Against what a file was checked when it was pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Checked {
    /// What the hub says.
    Hub,
    /// What the user said.
    User,
    /// The file that it was copied from.
    Original,
    /// Nothing but its size: nobody said more.
    Size,
}

/// An unfinished pull: written down so that another process goes on with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Journal {
    /// The number of this form.
    pub(super) form: u32,
    /// Where it comes from.
    pub(super) source: String,
    /// How far each file is.
    pub(super) files: Vec<FileJournal>,
}

/// How far a file is. Nothing in it is believed before it is checked: what it says is there may be missing after a power
/// cut, which the file's hash tells at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileJournal {
    /// Its name.
    pub(super) name: FileName,
    /// Its size, as far as it is known.
    pub(super) bytes: Option<u64>,
    /// What it should hold.
    pub(super) expected: Expected,
    /// What the server calls this version of it.
    pub(super) validator: Option<String>,
    /// What is on the disk.
    pub(super) done: Spans,
}

impl Journal {
    /// What of the file `name` is there, where it is to hold the same as before.
    pub(super) fn of(
        &self,
        name: &FileName,
        bytes: Option<u64>,
        expected: &Expected,
    ) -> Option<&FileJournal> {
        let file = self.files.iter().find(|file| file.name == *name)?;
        let is_same =
            file.expected == *expected && (bytes.is_none() || file.bytes.is_none() || file.bytes == bytes);
        (is_same && file.done.are_sound(file.bytes)).then_some(file)
    }
}
