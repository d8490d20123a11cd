//! Hashes of files: what a hub says that they should be, and what they are.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::str::FromStr;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// Bytes read at once while a file is hashed.
const READ_BYTES: usize = 1 << 20;

/// A SHA-256, shown, parsed and serialised as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

/// A hash that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a SHA-256: it has 64 hexadecimal digits")]
pub struct ParseDigestError(String);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Digest, ParseDigestError> {
        hexadecimal(text).map(Digest).ok_or_else(|| ParseDigestError(text.chars().take(80).collect()))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The bytes of so many pairs of hexadecimal digits.
fn hexadecimal<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(bytes)
}

/// What a file's contents should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    /// Of this SHA-256.
    Sha256(Digest),
    /// Of this name in a git repository, which is how a hub knows its small files.
    GitBlob(GitBlob),
    /// Nobody says.
    Unknown,
}

/// A git object's name: the SHA-1 of a file with its size before it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct GitBlob([u8; 20]);

impl fmt::Display for GitBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for GitBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GitBlob({self})")
    }
}

impl FromStr for GitBlob {
    type Err = ();

    fn from_str(text: &str) -> Result<GitBlob, ()> {
        hexadecimal(text).map(GitBlob).ok_or(())
    }
}

impl Serialize for GitBlob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GitBlob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<GitBlob, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|()| serde::de::Error::custom("not a git object's name"))
    }
}

/// A file's hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashes {
    /// Of its contents.
    pub sha256: Digest,
    /// As git names it; made only where it was asked for.
    pub git_blob: Option<GitBlob>,
    /// Its size.
    pub bytes: u64,
}

impl Hashes {
    /// Reads a whole file of `size` bytes. `on_bytes` is told of each piece, and ends the reading where it says no.
    ///
    /// # Errors
    /// Where the file cannot be read, or with [`io::ErrorKind::Interrupted`] where `on_bytes` ended it.
    pub fn of(
        file: &mut File,
        size: u64,
        with_git: bool,
        mut on_bytes: impl FnMut(u64) -> bool,
    ) -> io::Result<Hashes> {
        let mut hasher = Hasher::new(with_git.then_some(size));
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(read) => {
                    hasher.update(&buffer[..read]);
                    if !on_bytes(read as u64) {
                        return Err(io::ErrorKind::Interrupted.into());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the file is what it should be, in words where it is not.
    pub fn difference(&self, expected: &Expected) -> Option<(String, String)> {
        match expected {
            Expected::Sha256(wanted) if *wanted != self.sha256 => {
                Some((format!("SHA-256 {wanted}"), self.sha256.to_string()))
            }
            Expected::GitBlob(wanted) if Some(*wanted) != self.git_blob => {
                let found = self.git_blob.map_or_else(|| "none".to_owned(), |found| found.to_string());
                Some((format!("git object {wanted}"), found))
            }
            _ => None,
        }
    }
}

/// Makes a file's hashes from its pieces in order.
pub(super) struct Hasher {
    sha256: Sha256,
    git: Option<Context>,
    bytes: u64,
}

impl Hasher {
    /// With git's name of the file where its size is given.
    pub(super) fn new(git_size: Option<u64>) -> Hasher {
        let git = git_size.map(|size| {
            let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
            context.update(format!("blob {size}\0").as_bytes());
            context
        });
        Hasher { sha256: Sha256::new(), git, bytes: 0 }
    }

    pub(super) fn update(&mut self, piece: &[u8]) {
        self.sha256.update(piece);
        if let Some(git) = &mut self.git {
            git.update(piece);
        }
        self.bytes += piece.len() as u64;
    }

    pub(super) fn finish(self) -> Hashes {
        let git_blob = self.git.and_then(|git| git.finish().as_ref().try_into().ok()).map(GitBlob);
        Hashes { sha256: Digest(self.sha256.finalize().into()), git_blob, bytes: self.bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(text: &[u8]) -> Hashes {
        let mut hasher = Hasher::new(Some(text.len() as u64));
        text.chunks(3).for_each(|piece| hasher.update(piece));
        hasher.finish()
    }

    #[test]
    fn hashes_are_those_that_sha256sum_and_git_print() {
        let found = hashes(b"hello\n");
        assert_eq!(
            found.sha256.to_string(),
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
        );
        assert_eq!(found.git_blob.unwrap().to_string(), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(found.bytes, 6);
    }

    #[test]
    fn a_difference_names_both_sides() {
        let (one, other) = (hashes(b"one"), hashes(b"other"));
        for expected in
            [Expected::Sha256(one.sha256), Expected::GitBlob(one.git_blob.unwrap()), Expected::Unknown]
        {
            assert_eq!(one.difference(&expected), None);
            let json = serde_json::to_string(&expected).unwrap();
            assert_eq!(serde_json::from_str::<Expected>(&json).unwrap(), expected);
        }
        let (wanted, found) = other.difference(&Expected::Sha256(one.sha256)).unwrap();
        assert!(wanted.contains(&one.sha256.to_string()) && found == other.sha256.to_string());
        assert!(other.difference(&Expected::GitBlob(one.git_blob.unwrap())).is_some());
        assert!("12".parse::<Digest>().is_err() && "é".repeat(32).parse::<Digest>().is_err());
    }
}
