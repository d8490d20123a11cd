//! A model's tensors in chunks: what is fetched, verified and kept at a time.
//!
//! No chunk holds bytes of what two different sets of tensors read, so that the tensors of a shard are whole chunks, and
//! together not a byte more. Chunks are numbered in the order of the files; everyone who knows a model's [`Outline`] numbers
//! them alike.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::model_file::{Outline, Place, TensorInfo};
use crate::units::Bytes;

/// Most bytes of a chunk: hashing one takes a millisecond at most, a page of a hundred hashes speaks for 100 MiB, and a
/// broken connection loses little.
pub const CHUNK_BYTES: u64 = 1 << 20;

/// A stretch of a file that chunks lie in, one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    part: usize,
    offset: u64,
    bytes: u64,
    /// The number of its first chunk.
    first: u32,
}

/// One chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The file: an index into [`Outline::parts`].
    pub part: usize,
    /// Bytes from the file's start.
    pub offset: u64,
    /// How long it is; at least 1.
    pub bytes: u64,
}

/// All chunks of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunks {
    stretches: Vec<Stretch>,
    count: u32,
}

impl Chunks {
    /// The chunks of the tensors that `outline` lists; `None` where there are more than can be numbered.
    pub fn of(outline: &Outline) -> Option<Chunks> {
        let mut edges: Vec<BTreeSet<u64>> = vec![BTreeSet::new(); outline.parts().len()];
        let mut read: Vec<Vec<(u64, u64)>> = vec![Vec::new(); outline.parts().len()];
        for (part, start, end) in outline.tensors().iter().flat_map(ranges) {
            edges[part].extend([start, end]);
            read[part].push((start, end));
        }
        let mut chunks = Chunks { stretches: Vec::new(), count: 0 };
        for (part, (edges, mut read)) in edges.into_iter().zip(read).enumerate() {
            read.sort_unstable();
            let mut read = read.into_iter().peekable();
            // How far what was read from here on reaches.
            let mut reached = 0;
            let edges: Vec<u64> = edges.into_iter().collect();
            for pair in edges.windows(2) {
                let (start, end) = (pair[0], pair[1]);
                while let Some((_, to)) = read.next_if(|(from, _)| *from <= start) {
                    reached = reached.max(to);
                }
                if reached >= end {
                    chunks.push(part, start, end - start)?;
                }
            }
        }
        Some(chunks)
    }

    fn push(&mut self, part: usize, offset: u64, bytes: u64) -> Option<()> {
        let count = u32::try_from(bytes.div_ceil(CHUNK_BYTES)).ok()?;
        self.stretches.push(Stretch { part, offset, bytes, first: self.count });
        self.count = self.count.checked_add(count)?;
        Some(())
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The chunk with this number.
    pub fn get(&self, number: u32) -> Option<Chunk> {
        let at = self.stretches.partition_point(|stretch| stretch.first <= number).checked_sub(1)?;
        let stretch = &self.stretches[at];
        let from = u64::from(number - stretch.first) * CHUNK_BYTES;
        let bytes = stretch.bytes.checked_sub(from).filter(|rest| *rest > 0)?.min(CHUNK_BYTES);
        Some(Chunk { part: stretch.part, offset: stretch.offset + from, bytes })
    }

    /// Bytes of all chunks with these numbers.
    pub fn bytes(&self, numbers: impl IntoIterator<Item = u32>) -> Bytes {
        numbers.into_iter().filter_map(|number| self.get(number)).map(|chunk| Bytes(chunk.bytes)).sum()
    }

    /// The chunk that holds the byte at `offset` of a file, if some tensor has it.
    pub fn at(&self, part: usize, offset: u64) -> Option<u32> {
        let before = |stretch: &Stretch| (stretch.part, stretch.offset) <= (part, offset);
        let at = self.stretches.partition_point(before).checked_sub(1)?;
        let stretch = &self.stretches[at];
        let within = stretch.part == part && offset - stretch.offset < stretch.bytes;
        within.then(|| stretch.first + ((offset - stretch.offset) / CHUNK_BYTES) as u32)
    }

    /// The chunks that hold what a tensor is read from.
    pub fn of_tensor(&self, tensor: &TensorInfo) -> impl Iterator<Item = Range<u32>> {
        ranges(tensor).filter_map(|(part, start, end)| {
            let (first, last) = (self.at(part, start)?, self.at(part, end - 1)?);
            Some(first..last + 1)
        })
    }
}

/// Where in files a tensor's pieces are, by part, first byte and the one past the last.
fn ranges(tensor: &TensorInfo) -> impl Iterator<Item = (usize, u64, u64)> {
    tensor.pieces.iter().filter_map(|piece| match piece.place {
        Place::File { part, offset } if piece.bytes.0 > 0 => Some((part, offset, offset + piece.bytes.0)),
        Place::File { .. } | Place::Stated(_) => None,
    })
}
