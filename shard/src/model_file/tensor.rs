//! Where a model's tensors stand.

use std::sync::Arc;

use crate::tensor_type::TensorType;
use crate::units::Bytes;

/// What a tensor is and where its data stands.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The same.
    Exact,
    /// One less: 1 is to be added.
    LessOne,
}

/// A part of a tensor's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it is.
    pub place: Place,
    /// How long it is.
    pub bytes: Bytes,
}

/// Where data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a file, which reaches past it.
    File {
        /// The file: an index into [`Header::parts`](super::Header::parts).
        part: usize,
        /// Bytes from the file's start.
        offset: u64,
    },
    /// In the header itself: values that follow from the hyper-parameters, as they would stand in a file.
    Stated(Arc<[u8]>),
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
