//! Reading a header's bytes in order, each checked against the file's end before it is wanted.

use std::fmt::Arguments;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::limits;
use crate::model_file::{FileError, Kind, Problem, Value};

/// Bytes read from the file at a time.
const BUFFER_BYTES: usize = 64 << 10;

/// A cursor over a file that hashes what it passes.
pub(crate) struct Reader<'p> {
    pub(crate) path: &'p Path,
    file: BufReader<File>,
    hash: Sha256,
    position: u64,
    len: u64,
}

impl<'p> Reader<'p> {
    /// A reader at the file's first byte.
    pub(crate) fn open(path: &'p Path) -> Result<Reader<'p>, FileError> {
        let io = |error| FileError::new(path, Problem::Io(error));
        // Asked before opening, which would wait for a writer where the path is a pipe.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(FileError::new(path, Problem::NotAFile));
        }
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        let file = BufReader::with_capacity(BUFFER_BYTES, file);
        Ok(Reader { path, file, hash: Sha256::new(), position: 0, len: metadata.len() })
    }

    /// A reader at byte `at` of a file that was `len` bytes long when its header was read.
    pub(crate) fn open_at(path: &'p Path, at: u64, len: u64) -> Result<Reader<'p>, FileError> {
        let mut reader = Reader::open(path)?;
        if reader.len != len {
            return Err(reader.error(Problem::Changed));
        }
        reader.file.seek(SeekFrom::Start(at)).map_err(|error| FileError::new(path, Problem::Io(error)))?;
        reader.position = at;
        Ok(reader)
    }

    pub(crate) fn error(&self, problem: Problem) -> FileError {
        FileError::new(self.path, problem)
    }

    /// The place of the next byte.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The file's size in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Ends the reading: the hash of everything passed and of the file's size.
    pub(crate) fn finish(mut self) -> [u8; 32] {
        self.hash.update(self.position.to_le_bytes());
        self.hash.update(self.len.to_le_bytes());
        self.hash.finalize().into()
    }

    /// Checks that `bytes` more bytes of a header are there.
    fn expect(&self, bytes: u64, inside: Arguments<'_>) -> Result<(), FileError> {
        let wanted = self.position.saturating_add(bytes);
        if wanted > self.len {
            return Err(self.error(Problem::Truncated { end: self.len, wanted, inside: inside.to_string() }));
        }
        if wanted > limits::MAX_HEADER_BYTES {
            let what = format!("the header's length up to {inside}");
            return Err(self.error(Problem::Limit { what, found: wanted, limit: limits::MAX_HEADER_BYTES }));
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), FileError> {
        self.file.read_exact(buffer).map_err(|error| FileError::new(self.path, Problem::Io(error)))?;
        self.hash.update(&*buffer);
        self.position += buffer.len() as u64;
        Ok(())
    }

    /// The next `N` bytes.
    pub(crate) fn bytes<const N: usize>(&mut self, inside: Arguments<'_>) -> Result<[u8; N], FileError> {
        self.expect(N as u64, inside)?;
        let mut buffer = [0; N];
        self.fill(&mut buffer)?;
        Ok(buffer)
    }

    /// The next four bytes as a number.
    pub(crate) fn u32(&mut self, inside: Arguments<'_>) -> Result<u32, FileError> {
        Ok(u32::from_le_bytes(self.bytes(inside)?))
    }

    /// The next eight bytes as a number.
    pub(crate) fn u64(&mut self, inside: Arguments<'_>) -> Result<u64, FileError> {
        Ok(u64::from_le_bytes(self.bytes(inside)?))
    }

    /// The next eight bytes as a number of at most `limit`.
    pub(crate) fn count(&mut self, limit: u64, what: Arguments<'_>) -> Result<u64, FileError> {
        let found = self.u64(what)?;
        if found > limit {
            return Err(self.error(Problem::Limit { what: what.to_string(), found, limit }));
        }
        Ok(found)
    }

    /// A plain number of `kind`; `None` where the kind is no number, or a bool that is neither 0 nor 1.
    pub(crate) fn number(&mut self, kind: Kind, inside: Arguments<'_>) -> Result<Option<Value>, FileError> {
        Ok(match kind.size() {
            Some(1) => Value::of_number(kind, &self.bytes::<1>(inside)?),
            Some(2) => Value::of_number(kind, &self.bytes::<2>(inside)?),
            Some(4) => Value::of_number(kind, &self.bytes::<4>(inside)?),
            Some(8) => Value::of_number(kind, &self.bytes::<8>(inside)?),
            _ => None,
        })
    }

    /// A string of at most `limit` bytes with its length before it; `None` where it is not UTF-8.
    pub(crate) fn string(&mut self, limit: u64, what: Arguments<'_>) -> Result<Option<String>, FileError> {
        let len = self.count(limit, format_args!("the length of {what}"))?;
        self.expect(len, what)?;
        // The length is below the limit and the file has as many bytes, so it fits into memory.
        let mut buffer = vec![0; len as usize];
        self.fill(&mut buffer)?;
        Ok(String::from_utf8(buffer).ok())
    }

    /// Passes over `bytes` bytes.
    pub(crate) fn skip(&mut self, bytes: u64, inside: Arguments<'_>) -> Result<(), FileError> {
        self.expect(bytes, inside)?;
        let mut buffer = [0; 4096];
        let mut left = bytes;
        while left > 0 {
            let n = left.min(buffer.len() as u64) as usize;
            self.fill(&mut buffer[..n])?;
            left -= n as u64;
        }
        Ok(())
    }
}
