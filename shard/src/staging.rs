//! Memory for the layers of a stage that are read again for every step.
//!
//! Their vectors stay in memory, as those of other layers do. Their matrices pass through [`STAGED_LAYERS`] buffers, each
//! large enough for any of the layers: one is computed with while the next is read. Files are read past the system's cache
//! where that is possible, which takes whole blocks of them to memory where blocks may begin; so a matrix begins in a buffer
//! as far behind a block's beginning as in its file, and has all the blocks that it touches for itself.

use crate::model_file::{Layout, Place, TensorInfo};
use crate::units::Bytes;

/// Layers that are in memory of those that are read again for every step: one is computed while the next is read.
pub const STAGED_LAYERS: u64 = 2;

/// Bytes of a block: a multiple of what any disk reads at a time.
pub const DIRECT_BLOCK: u64 = 4096;

/// Where a matrix's bytes stand in a file in one piece: the part and the first byte.
///
/// `None` for one that is put together from several pieces or picked out of others.
pub fn in_one_piece(tensor: &TensorInfo) -> Option<(usize, u64)> {
    match (&tensor.pieces[..], tensor.layout) {
        ([piece], Layout::Whole) => match piece.place {
            Place::File { part, offset } => Some((part, offset)),
            Place::Stated(_) => None,
        },
        _ => None,
    }
}

/// How far behind the beginning of its first block a matrix begins in a buffer.
pub fn staged_lead(tensor: &TensorInfo) -> u64 {
    in_one_piece(tensor).map_or(0, |(_, offset)| offset % DIRECT_BLOCK)
}

/// Bytes of all blocks that a matrix has in a buffer.
pub fn staged_bytes(tensor: &TensorInfo) -> Bytes {
    Bytes((staged_lead(tensor) + tensor.bytes.0).next_multiple_of(DIRECT_BLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor_type::TensorType;

    #[test]
    fn a_matrix_has_the_blocks_that_it_touches() {
        let at = |offset, bytes| {
            let place = Place::File { part: 0, offset };
            TensorInfo::whole("m".to_owned(), vec![bytes], TensorType::F32, Bytes(bytes), place)
        };
        let staged = |offset, bytes| (staged_lead(&at(offset, bytes)), staged_bytes(&at(offset, bytes)).0);
        assert_eq!(staged(8192, 4096), (0, 4096));
        assert_eq!(staged(8192, 4097), (0, 8192));
        assert_eq!(staged(8193, 4096), (1, 8192));
        assert_eq!(staged(12287, 2), (4095, 8192));
        let mut apart = at(5, 4096);
        apart.pieces.push(apart.pieces[0].clone());
        assert_eq!((in_one_piece(&apart), staged_lead(&apart), staged_bytes(&apart).0), (None, 0, 4096));
    }
}
