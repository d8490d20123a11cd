//! Names that become paths, checked once and here: nothing that a server, a record or a user says leads out of the store.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Longest name of a file, in bytes: file systems end at 255, and temporary names are a little longer.
const MAX_NAME_BYTES: usize = 200;

/// Longest path in a repository, in bytes.
const MAX_PATH_BYTES: usize = 1024;

/// The end of a GGUF file's name.
const GGUF: &str = ".gguf";

/// A name that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{shown}` cannot be the name of {what} in the store: {problem}")]
pub struct NameError {
    what: &'static str,
    shown: String,
    problem: &'static str,
}

/// What is wrong with a name that is to be one component of a path.
fn problem_of(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.len() > MAX_NAME_BYTES {
        return Some("it is longer than 200 bytes");
    }
    if name.starts_with('.') {
        return Some("it begins with a dot");
    }
    if name.contains(['/', '\\', ':']) {
        return Some("it holds a separator of paths");
    }
    name.chars().any(char::is_control).then_some("it holds a control character")
}

/// A name as it may be shown: short, and without control characters.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(120).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The name of a file in the store: one plain component of a path, and not hidden.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileName(String);

impl FileName {
    /// The checked name.
    ///
    /// # Errors
    /// Where it is not one plain component of a path.
    pub fn new(name: &str) -> Result<FileName, NameError> {
        match problem_of(name) {
            None => Ok(FileName(name.to_owned())),
            Some(problem) => Err(NameError { what: "a file", shown: shown(name), problem }),
        }
    }

    /// The last component of `path`, checked.
    ///
    /// # Errors
    /// As [`FileName::new`].
    pub fn of(path: &Path) -> Result<FileName, NameError> {
        FileName::new(&path.file_name().unwrap_or_default().to_string_lossy())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is that of a GGUF file.
    pub fn is_gguf(&self) -> bool {
        self.0.ends_with(GGUF)
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for FileName {
    type Error = NameError;

    fn try_from(name: String) -> Result<FileName, NameError> {
        FileName::new(&name)
    }
}

impl From<FileName> for String {
    fn from(name: FileName) -> String {
        name.0
    }
}

/// The name of a model in the store: its file's without `.gguf` and the number of a part, or its directory's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

impl ModelName {
    /// The checked name; `.gguf` and the number of a part at its end may be left out or given.
    ///
    /// # Errors
    /// Where it is not one plain component of a path.
    pub fn new(name: &str) -> Result<ModelName, NameError> {
        let short = without_ending(name);
        match problem_of(short) {
            None => Ok(ModelName(short.to_owned())),
            Some(problem) => Err(NameError { what: "a model", shown: shown(name), problem }),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The file of a model of `count` files in GGUF, from 1; `None` where its name would be too long.
    pub fn gguf_file(&self, number: u32, count: u32) -> Result<FileName, NameError> {
        let name = match count {
            0 | 1 => format!("{}{GGUF}", self.0),
            _ => format!("{}-{number:05}-of-{count:05}{GGUF}", self.0),
        };
        FileName::new(&name)
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ModelName {
    type Error = NameError;

    fn try_from(name: String) -> Result<ModelName, NameError> {
        ModelName::new(&name)
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> String {
        name.0
    }
}

/// A file's name without `.gguf` and without the number of a part.
pub(crate) fn without_ending(name: &str) -> &str {
    let stem = name.strip_suffix(GGUF).unwrap_or(name);
    Part::of_stem(stem).map_or(stem, |part| part.stem)
}

/// The place of a file in a split model, as its name `STEM-00002-of-00005.gguf` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part<'n> {
    /// What comes before the number.
    pub(crate) stem: &'n str,
    /// From 1.
    pub(crate) number: u32,
    /// How many there are.
    pub(crate) count: u32,
}

impl<'n> Part<'n> {
    /// Reads a file's name; `None` where it is not that of a part.
    pub(crate) fn of(name: &'n str) -> Option<Part<'n>> {
        Part::of_stem(name.strip_suffix(GGUF)?)
    }

    fn of_stem(stem: &'n str) -> Option<Part<'n>> {
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let five_digits = |text: &str| -> Option<u32> {
            (text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
        };
        let (number, count) = (five_digits(number)?, five_digits(count)?);
        ((1..=count).contains(&number) && !stem.is_empty()).then_some(Part { stem, number, count })
    }

    /// The name of another part, from 1.
    pub(crate) fn name_of(&self, number: u32) -> String {
        format!("{}-{number:05}-of-{:05}{GGUF}", self.stem, self.count)
    }
}

/// A file's path in a repository: components that stay within it, with `/` between them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoPath(String);

impl RepoPath {
    /// The checked path.
    ///
    /// # Errors
    /// Where it is absolute, leads out of the repository, or holds what no path should.
    pub fn new(path: &str) -> Result<RepoPath, NameError> {
        let leads_out = path.split('/').any(|part| matches!(part, "" | "." | ".."));
        let problem = if leads_out {
            "it leads out of its repository"
        } else if path.len() > MAX_PATH_BYTES {
            "it is longer than 1024 bytes"
        } else if path.contains('\\') || path.chars().any(char::is_control) {
            "it holds a backslash or a control character"
        } else {
            return Ok(RepoPath(path.to_owned()));
        };
        Err(NameError { what: "a file", shown: shown(path), problem })
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its last component.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// Its directory; `None` at the top.
    pub(super) fn folder(&self) -> Option<&str> {
        self.0.rsplit_once('/').map(|(folder, _)| folder)
    }
}

impl fmt::Display for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Joins a checked name to a directory.
pub(super) fn within(folder: &Path, name: &FileName) -> PathBuf {
    folder.join(name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_become_paths() {
        for name in ["model.gguf", "a b.gguf", "R1-Q4_K_M-00001-of-00009.gguf", "größe.gguf"] {
            assert!(FileName::new(name).is_ok(), "{name}");
        }
        let long = "x".repeat(201);
        for name in
            ["", ".", "..", ".hidden", "a/b", "/etc/passwd", "..\\x", "a\0", "a\n", "c:evil", long.as_str()]
        {
            assert!(FileName::new(name).is_err(), "{name:?}");
            assert!(ModelName::new(name).is_err(), "{name:?}");
            let json = serde_json::to_string(name).unwrap();
            assert!(serde_json::from_str::<FileName>(&json).is_err(), "{name:?}");
        }
        let error = FileName::new("../x\u{1b}").unwrap_err().to_string();
        assert!(error.contains("`../x?`") && error.contains("begins with a dot"), "{error}");
    }

    #[test]
    fn paths_stay_within_their_repository() {
        for path in ["model.gguf", ".gitattributes", "UD-Q4_K_XL/model-00001-of-00002.gguf"] {
            assert!(RepoPath::new(path).is_ok(), "{path}");
        }
        for path in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "a\\..\\b", "a\0b", "./a"] {
            assert!(RepoPath::new(path).is_err(), "{path:?}");
        }
        let path = RepoPath::new("a/b/c.gguf").unwrap();
        assert_eq!((path.folder(), path.file_name()), (Some("a/b"), "c.gguf"));
    }

    #[test]
    fn a_model_is_called_like_its_file() {
        for (given, name) in [
            ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1"),
            ("R1-Q4_K_M-00001-of-00009.gguf", "R1-Q4_K_M"),
            ("R1-Q4_K_M", "R1-Q4_K_M"),
            ("one-of-many.gguf", "one-of-many"),
        ] {
            assert_eq!(ModelName::new(given).unwrap().as_str(), name);
        }
        let name = ModelName::new("r1").unwrap();
        assert_eq!(name.gguf_file(1, 1).unwrap().as_str(), "r1.gguf");
        assert_eq!(name.gguf_file(2, 3).unwrap().as_str(), "r1-00002-of-00003.gguf");
    }

    #[test]
    fn names_of_parts_lead_to_each_other() {
        let part = Part::of("r1-of-x-00002-of-00005.gguf").unwrap();
        assert_eq!(part, Part { stem: "r1-of-x", number: 2, count: 5 });
        assert_eq!(part.name_of(1), "r1-of-x-00001-of-00005.gguf");
        for name in [
            "a.gguf",
            "a-00000-of-00002.gguf",
            "a-00003-of-00002.gguf",
            "a-1-of-2.gguf",
            "a-00001-of-00002.bin",
        ] {
            assert_eq!(Part::of(name), None, "{name}");
        }
    }
}
