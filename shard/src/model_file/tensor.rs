//! Where a model's tensors stand.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::tensor_type::TensorType;
use crate::units::Bytes;

/// What a tensor is and where its data stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorInfo {
    /// Its name in the file, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Its dimensions in ggml's order: values along the first are neighbours. One to four, none of them 0.
    pub dims: Vec<u64>,
    /// How its values are stored.
    pub kind: TensorType,
    /// What its values are, compared with those that a model computes with.
    pub meaning: Meaning,
    /// How many bytes its data takes.
    pub bytes: Bytes,
    /// Where its data stands.
    pub pieces: Vec<Piece>,
    /// How the pieces' bytes become its own.
    pub layout: Layout,
}

/// How the bytes of a tensor's pieces become its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layout {
    /// The pieces, one after another, are the tensor.
    Whole,
    /// The one piece holds its values in another order, and perhaps others among them.
    Picked(Steps),
    /// Blocks of MXFP4 in two pieces: 16 bytes for each block's codes, two neighbours in a byte, the first one in its low
    /// half; and one byte for each block's scale.
    CodesAndScales(Steps),
}

/// Where in a piece the blocks of a tensor stand, counted in blocks, which are single values in types without blocks:
/// that of column c, row r and matrix m is number `first + c * column + r * row + m * matrix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps {
    /// The first block of all.
    pub first: u64,
    /// From one block to the next of its row; at least 1.
    pub column: u64,
    /// From one row to the next; at least 1.
    pub row: u64,
    /// From one matrix to the next.
    pub matrix: u64,
}

/// What stored values are, compared with those that a model computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Meaning {
    /// The same.
    Exact,
    /// One less: 1 is to be added.
    LessOne,
}

/// A part of a tensor's data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Where it is.
    pub place: Place,
    /// How long it is.
    pub bytes: Bytes,
}

/// Where data is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// In a file, which reaches past it.
    File {
        /// The file: an index into [`Header::parts`](super::Header::parts).
        part: usize,
        /// Bytes from the file's start.
        offset: u64,
    },
    /// In the header itself: values that follow from the hyper-parameters, as they would stand in a file.
    Stated(#[serde(with = "stated")] Arc<[u8]>),
}

/// Shared bytes as a list.
mod stated {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &Arc<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
        bytes[..].serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[u8]>, D::Error> {
        Vec::deserialize(deserializer).map(Arc::from)
    }
}

impl TensorInfo {
    /// A tensor whose data is in one place.
    pub fn whole(name: String, dims: Vec<u64>, kind: TensorType, bytes: Bytes, place: Place) -> TensorInfo {
        let pieces = vec![Piece { place, bytes }];
        TensorInfo { name, dims, kind, meaning: Meaning::Exact, bytes, pieces, layout: Layout::Whole }
    }

    /// The number of values: the product of the dimensions.
    pub fn values(&self) -> u64 {
        // The product was checked when the tensor's size was.
        self.dims.iter().product()
    }

    /// `count` of a matrix's rows, from row `first` on; `None` where it is no matrix, has not as many, or does not lie in
    /// the file as it is.
    pub fn rows(&self, first: u64, count: u64) -> Option<TensorInfo> {
        let ([width, all], Layout::Whole) = (&self.dims[..], self.layout) else {
            return None;
        };
        let (width, all) = (*width, *all);
        let row = self.kind.bytes_of(width)?;
        if first.checked_add(count)? > all || row * all != self.bytes {
            return None;
        }
        let (mut skipped, mut wanted) = ((row * first).0, (row * count).0);
        let mut pieces = Vec::new();
        for piece in &self.pieces {
            let taken = piece.bytes.0.saturating_sub(skipped).min(wanted);
            if taken > 0 {
                pieces.push(piece.cut(skipped, taken)?);
            }
            skipped = skipped.saturating_sub(piece.bytes.0);
            wanted -= taken;
        }
        Some(TensorInfo { dims: vec![width, count], bytes: row * count, pieces, ..self.clone() })
    }
}

impl TensorInfo {
    /// The first and the last block that its values are read from, of all blocks of its piece; `None` where these numbers
    /// are beyond all bounds.
    fn last_block(&self, steps: Steps) -> Option<u64> {
        let columns = self.dims.first()? / self.kind.block_values();
        let furthest = |count: u64, step: u64| count.checked_sub(1)?.checked_mul(step);
        let rows = self.dims.get(1).copied().unwrap_or(1);
        let matrices = self.dims.iter().skip(2).try_fold(1u64, |all, dim| all.checked_mul(*dim))?;
        steps
            .first
            .checked_add(furthest(columns, steps.column)?)?
            .checked_add(furthest(rows, steps.row)?)?
            .checked_add(furthest(matrices, steps.matrix)?)
    }

    /// What is wrong with it in files of `parts` bytes, for one that comes from another machine; readers of files check
    /// more than that.
    pub(super) fn problem(&self, parts: &[u64]) -> Option<&'static str> {
        let (1..=4) = self.dims.len() else {
            return Some("has no dimensions, or too many");
        };
        let values = self.dims.iter().try_fold(1u64, |all, dim| all.checked_mul(*dim));
        if values.is_none_or(|values| values == 0 || self.kind.bytes_of(values) != Some(self.bytes)) {
            return Some("is not as long as its dimensions say");
        }
        for piece in &self.pieces {
            let inside = match &piece.place {
                Place::File { part, offset } => {
                    let end = offset.checked_add(piece.bytes.0);
                    parts.get(*part).is_some_and(|size| end.is_some_and(|end| end <= *size))
                }
                Place::Stated(bytes) => bytes.len() as u64 == piece.bytes.0,
            };
            if !inside {
                return Some("reaches past the end of its file");
            }
        }
        let piece = |at: usize| self.pieces.get(at).map_or(0, |piece| piece.bytes.0);
        let holds = |at: usize, last: u64, block: u64| {
            last.checked_add(1)
                .and_then(|blocks| blocks.checked_mul(block))
                .is_some_and(|end| end <= piece(at))
        };
        let fits = match self.layout {
            Layout::Whole => {
                let sum = self.pieces.iter().try_fold(0u64, |sum, piece| sum.checked_add(piece.bytes.0));
                sum == Some(self.bytes.0)
            }
            Layout::Picked(steps) => {
                let last = self.last_block(steps);
                steps.column > 0
                    && steps.row > 0
                    && last.is_some_and(|last| holds(0, last, self.kind.block_bytes()))
            }
            Layout::CodesAndScales(steps) => {
                let last = self.last_block(steps);
                steps.column > 0
                    && steps.row > 0
                    && last.is_some_and(|last| holds(0, last, 16) && holds(1, last, 1))
            }
        };
        (!fits).then_some("is not where its pieces are")
    }
}

impl Piece {
    /// `len` of its bytes, from byte `from` on.
    fn cut(&self, from: u64, len: u64) -> Option<Piece> {
        let place = match &self.place {
            Place::File { part, offset } => Place::File { part: *part, offset: offset + from },
            Place::Stated(bytes) => Place::Stated(bytes.get(from as usize..(from + len) as usize)?.into()),
        };
        Some(Piece { place, bytes: Bytes(len) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_out_of_whatever_pieces_hold_them() {
        let piece = |part, offset, bytes| Piece { place: Place::File { part, offset }, bytes: Bytes(bytes) };
        let mut tensor = TensorInfo::whole(
            "m".to_owned(),
            vec![2, 6],
            TensorType::F32,
            Bytes(48),
            Place::File { part: 0, offset: 0 },
        );
        tensor.pieces = vec![piece(0, 100, 16), piece(1, 0, 8), piece(0, 500, 24)];
        let rows = |first, count| tensor.rows(first, count).map(|rows| rows.pieces);
        assert_eq!(rows(0, 2), Some(vec![piece(0, 100, 16)]));
        assert_eq!(rows(1, 3), Some(vec![piece(0, 108, 8), piece(1, 0, 8), piece(0, 500, 8)]));
        assert_eq!(rows(4, 2), Some(vec![piece(0, 508, 16)]));
        assert_eq!(rows(5, 2), None);
    }
}
