//! Tensors whose values stand in another order in their file, or among others.
//!
//! Only as much as is asked for is read, in runs of neighbours, so that nothing is held twice. Whoever asks for many rows
//! at a time gets long runs out of a transposed matrix.

use brigade_shard::model_file::{Layout, Steps, TensorInfo};

use super::parts::Parts;
use super::{LoadError, READING, lengthen};
use crate::backend::BackendError;

/// Bytes of a block of MXFP4: its scale, then its codes.
const MXFP4_BYTES: usize = 17;
const CODES_BYTES: usize = 16;

impl Parts {
    /// Fills `out` with the tensor's bytes from byte `at` on.
    pub(super) fn pick(
        &self,
        info: &TensorInfo,
        steps: Steps,
        at: u64,
        out: &mut [u8],
    ) -> Result<(), LoadError> {
        let kind = info.kind;
        let columns = info.dims[0] / kind.block_values();
        let row_bytes = columns * kind.block_bytes();
        let (first, end) = (at / row_bytes, (at + out.len() as u64).div_ceil(row_bytes));
        if at.is_multiple_of(row_bytes) && (end - first) * row_bytes == out.len() as u64 {
            return self.pick_rows(info, steps, columns, first, out);
        }
        let mut rows = Vec::new();
        lengthen(READING, &mut rows, ((end - first) * row_bytes) as usize)?;
        self.pick_rows(info, steps, columns, first, &mut rows)?;
        out.copy_from_slice(&rows[(at - first * row_bytes) as usize..][..out.len()]);
        Ok(())
    }

    /// Fills `out` with whole rows of `columns` blocks, from row `first` of all matrices on.
    fn pick_rows(
        &self,
        info: &TensorInfo,
        steps: Steps,
        columns: u64,
        first: u64,
        out: &mut [u8],
    ) -> Result<(), LoadError> {
        let block = info.kind.block_bytes() as usize;
        let row_bytes = columns as usize * block;
        let of_matrix = info.dims[1];
        let (mut row, mut rest, mut scratch) = (first, out, Scratch::default());
        while !rest.is_empty() {
            // The rows of one matrix.
            let (matrix, within) = (row / of_matrix, row % of_matrix);
            let count = ((rest.len() / row_bytes) as u64).min(of_matrix - within);
            let (rows, later) = rest.split_at_mut(count as usize * row_bytes);
            let begin = steps.first + matrix * steps.matrix + within * steps.row;
            if steps.column <= steps.row {
                for (begin, out) in
                    (0..).map(|row| begin + row * steps.row).zip(rows.chunks_exact_mut(row_bytes))
                {
                    let run = Run { begin, count: columns, step: steps.column };
                    let mut blocks = out.chunks_exact_mut(block);
                    self.read_run(info, &run, &mut scratch, |bytes| {
                        if let Some(out) = blocks.next() {
                            out.copy_from_slice(bytes);
                        }
                    })?;
                }
            } else {
                for column in 0..columns {
                    let run = Run { begin: begin + column * steps.column, count, step: steps.row };
                    let mut at = column as usize * block;
                    self.read_run(info, &run, &mut scratch, |bytes| {
                        rows[at..at + block].copy_from_slice(bytes);
                        at += row_bytes;
                    })?;
                }
            }
            (row, rest) = (row + count, later);
        }
        Ok(())
    }

    /// Hands the blocks of a run to `each`, one after another.
    fn read_run(
        &self,
        info: &TensorInfo,
        run: &Run,
        scratch: &mut Scratch,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), LoadError> {
        let pieces = &info.pieces;
        if let Layout::CodesAndScales(_) = info.layout {
            let codes = run.span(CODES_BYTES, &mut scratch.values)?;
            self.read_piece(info, &pieces[0], run.begin * CODES_BYTES as u64, codes)?;
            let scales = run.span(1, &mut scratch.scales)?;
            self.read_piece(info, &pieces[1], run.begin, scales)?;
            let step = run.step as usize;
            let codes = codes.as_chunks::<CODES_BYTES>().0.iter().step_by(step);
            for (codes, scale) in codes.zip(scales.iter().step_by(step)) {
                each(&mxfp4(*scale, codes));
            }
            return Ok(());
        }
        let block = info.kind.block_bytes() as usize;
        let span = run.span(block, &mut scratch.values)?;
        self.read_piece(info, &pieces[0], run.begin * block as u64, span)?;
        span.chunks_exact(block).step_by(run.step as usize).for_each(each);
        Ok(())
    }
}

/// Blocks at even distances in a piece.
struct Run {
    begin: u64,
    count: u64,
    step: u64,
}

impl Run {
    /// Room for everything from the first block of `unit` bytes to the last.
    fn span<'s>(&self, unit: usize, buffer: &'s mut Vec<u8>) -> Result<&'s mut [u8], BackendError> {
        let blocks = self.count.saturating_sub(1) * self.step + 1;
        let len = blocks as usize * unit;
        lengthen(READING, buffer, len)?;
        Ok(&mut buffer[..len])
    }
}

/// What a run is read into.
#[derive(Default)]
struct Scratch {
    values: Vec<u8>,
    scales: Vec<u8>,
}

/// A block of MXFP4 from its scale and its codes, of which neighbours share a byte there and those 16 apart here.
fn mxfp4(scale: u8, codes: &[u8; CODES_BYTES]) -> [u8; MXFP4_BYTES] {
    let code = |value: usize| codes[value / 2] >> (4 * (value % 2)) & 15;
    std::array::from_fn(|at| match at {
        0 => scale,
        _ => code(at - 1) | code(at - 1 + CODES_BYTES) << 4,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_codes_move_apart() {
        // Value v has the code v mod 16.
        let codes = std::array::from_fn(|byte| {
            let even = (2 * byte % 16) as u8;
            even | (even + 1) << 4
        });
        let block = mxfp4(120, &codes);
        assert_eq!(block[0], 120);
        for (value, byte) in block[1..].iter().enumerate() {
            assert_eq!(*byte, value as u8 | (value as u8) << 4, "value {value}");
        }
    }
}
