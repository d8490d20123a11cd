//! Reading a header's bytes in order, each checked against the file's end before it is wanted.

use std::fmt::Arguments;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::error::{GgufError, Problem};
use super::limits;
use super::value::{Kind, Value};

/// Bytes read from the file at a time.
const BUFFER_BYTES: usize = 64 << 10;

/// A cursor over a file that hashes what it passes.
pub(super) struct Reader<'p> {
    pub(super) path: &'p Path,
    file: BufReader<File>,
    hash: Sha256,
    position: u64,
    len: u64,
}

impl<'p> Reader<'p> {
    /// A reader at the file's first byte.
    pub(super) fn open(path: &'p Path) -> Result<Reader<'p>, GgufError> {
        let io = |error| GgufError::new(path, Problem::Io(error));
        // Asked before opening, which would wait for a writer where the path is a pipe.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(GgufError::new(path, Problem::NotAFile));
        }
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        let file = BufReader::with_capacity(BUFFER_BYTES, file);
        Ok(Reader { path, file, hash: Sha256::new(), position: 0, len: metadata.len() })
    }

    /// A reader at byte `at` of a file that was `len` bytes long when its header was read.
    pub(super) fn open_at(path: &'p Path, at: u64, len: u64) -> Result<Reader<'p>, GgufError> {
        let mut reader = Reader::open(path)?;
        if reader.len != len {
            return Err(reader.error(Problem::Changed));
        }
        reader.file.seek(SeekFrom::Start(at)).map_err(|error| GgufError::new(path, Problem::Io(error)))?;
        reader.position = at;
        Ok(reader)
    }

    pub(super) fn error(&self, problem: Problem) -> GgufError {
        GgufError::new(self.path, problem)
    }

    /// The place of the next byte.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The file's size in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Ends the reading: the hash of everything passed and of the file's size.
    pub(super) fn finish(mut self) -> [u8; 32] {
        self.hash.update(self.position.to_le_bytes());
        self.hash.update(self.len.to_le_bytes());
        self.hash.finalize().into()
    }

    /// Checks that `bytes` more bytes of a header are there.
    fn expect(&self, bytes: u64, inside: Arguments<'_>) -> Result<(), GgufError> {
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

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), GgufError> {
        self.file.read_exact(buffer).map_err(|error| GgufError::new(self.path, Problem::Io(error)))?;
        self.hash.update(&*buffer);
        self.position += buffer.len() as u64;
        Ok(())
    }

    /// The next `N` bytes.
    pub(super) fn bytes<const N: usize>(&mut self, inside: Arguments<'_>) -> Result<[u8; N], GgufError> {
        self.expect(N as u64, inside)?;
        let mut buffer = [0; N];
        self.fill(&mut buffer)?;
        Ok(buffer)
    }

    /// The next four bytes as a number.
    pub(super) fn u32(&mut self, inside: Arguments<'_>) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.bytes(inside)?))
    }

    /// The next eight bytes as a number.
    pub(super) fn u64(&mut self, inside: Arguments<'_>) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.bytes(inside)?))
    }

    /// The next eight bytes as a number of at most `limit`.
    pub(super) fn count(&mut self, limit: u64, what: Arguments<'_>) -> Result<u64, GgufError> {
        let found = self.u64(what)?;
        if found > limit {
            return Err(self.error(Problem::Limit { what: what.to_string(), found, limit }));
        }
        Ok(found)
    }

    /// A plain number of `kind`; `None` where the kind is no number, or a bool that is neither 0 nor 1.
    pub(super) fn number(&mut self, kind: Kind, inside: Arguments<'_>) -> Result<Option<Value>, GgufError> {
        Ok(match kind.size() {
            Some(1) => Value::of_number(kind, &self.bytes::<1>(inside)?),
            Some(2) => Value::of_number(kind, &self.bytes::<2>(inside)?),
            Some(4) => Value::of_number(kind, &self.bytes::<4>(inside)?),
            Some(8) => Value::of_number(kind, &self.bytes::<8>(inside)?),
            _ => None,
        })
    }

    /// A string of at most `limit` bytes with its length before it; `None` where it is not UTF-8.
    pub(super) fn string(&mut self, limit: u64, what: Arguments<'_>) -> Result<Option<String>, GgufError> {
        let len = self.count(limit, format_args!("the length of {what}"))?;
        self.expect(len, what)?;
        // The length is below the limit and the file has as many bytes, so it fits into memory.
        let mut buffer = vec![0; len as usize];
        self.fill(&mut buffer)?;
        Ok(String::from_utf8(buffer).ok())
    }

    /// Passes over `bytes` bytes.
    pub(super) fn skip(&mut self, bytes: u64, inside: Arguments<'_>) -> Result<(), GgufError> {
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
