//! The file names of split models.

use std::path::{Path, PathBuf};

/// What a file's name says of its place in a split model: `name-00002-of-00005.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SplitName {
    folder: PathBuf,
    stem: String,
    /// The part's number, from 1.
    pub(super) part: u64,
    /// How many parts there are.
    pub(super) count: u64,
}

impl SplitName {
    /// Reads the name of `path`; `None` where it is not that of a part.
    pub(super) fn of(path: &Path) -> Option<SplitName> {
        let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = name.rsplit_once("-of-")?;
        let (stem, part) = rest.rsplit_once('-')?;
        let number = |digits: &str| -> Option<u64> {
            (digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
        };
        let (part, count) = (number(part)?, number(count)?);
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        (1 <= part && part <= count).then(|| SplitName { folder, stem: stem.to_owned(), part, count })
    }

    /// The path of another part, from 1.
    pub(super) fn path_of(&self, part: u64) -> PathBuf {
        self.folder.join(format!("{}-{part:05}-of-{:05}.gguf", self.stem, self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts_lead_to_each_other() {
        let name = SplitName::of(Path::new("/models/r1-of-x-Q4_K_M-00002-of-00005.gguf")).unwrap();
        assert_eq!((name.part, name.count), (2, 5));
        assert_eq!(name.path_of(1), Path::new("/models/r1-of-x-Q4_K_M-00001-of-00005.gguf"));
    }

    #[test]
    fn other_names_are_of_no_part() {
        for name in [
            "a.gguf",
            "a-00000-of-00002.gguf",
            "a-00003-of-00002.gguf",
            "a-1-of-2.gguf",
            "a-00001-of-00002.bin",
        ] {
            assert_eq!(SplitName::of(Path::new(name)), None, "{name}");
        }
    }
}
