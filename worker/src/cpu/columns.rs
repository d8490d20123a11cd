//! A result that several threads write at once, each its own part, and rows that are computed side by side.

use std::marker::PhantomData;

/// Rows of activations `[rows, width]`, shared by tasks that each write columns, or rows, that no other task touches.
///
/// The tasks of one operation divide the matrix among themselves; nothing reads it before all have ended.
pub(crate) struct Columns<'a> {
    data: *mut f32,
    len: usize,
    width: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: writes go through raw pointers to `f32`s that by the type's contract no other task touches.
unsafe impl Send for Columns<'_> {}
// SAFETY: as above.
unsafe impl Sync for Columns<'_> {}

impl<'a> Columns<'a> {
    /// Shares `data`, rows of `width` values.
    ///
    /// # Safety
    /// Of the tasks that get it, no two may touch the same value.
    pub(crate) unsafe fn new(data: &'a mut [f32], width: usize) -> Columns<'a> {
        Columns { len: data.len(), data: data.as_mut_ptr(), width, owner: PhantomData }
    }

    /// Writes the value of a row and column.
    pub(crate) fn set(&self, (row, column): (usize, usize), value: f32) {
        let index = row * self.width + column;
        assert!(index < self.len && column < self.width, "value outside the result");
        // SAFETY: the index is inside the slice that `self` borrows mutably, and by the type's contract no other task
        // touches this value.
        unsafe { self.data.add(index).write(value) }
    }

    /// Part of a row, to be written.
    ///
    /// # Safety
    /// No other live reference may overlap it, and no other task may touch it.
    #[expect(clippy::mut_from_ref, reason = "tasks share the result and each borrows a part of its own")]
    pub(crate) unsafe fn part(&self, row: usize, columns: std::ops::Range<usize>) -> &mut [f32] {
        let start = row * self.width + columns.start;
        assert!(columns.end <= self.width && start + columns.len() <= self.len, "part outside the result");
        // SAFETY: inside the slice that `self` borrows mutably; the caller upholds exclusivity.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), columns.len()) }
    }
}

/// Does something for blocks of `R` numbers of a range, as large as they can be.
macro_rules! in_blocks {
    ($range:expr, |$first:ident, $R:ident| $do:expr) => {{
        let mut range: std::ops::Range<usize> = $range;
        while !range.is_empty() {
            let $first = range.start;
            macro_rules! block {
                ($count:literal) => {{
                    const $R: usize = $count;
                    $do;
                    range.start += $R;
                }};
            }
            match range.len() {
                8.. => block!(8),
                4.. => block!(4),
                3 => block!(3),
                2 => block!(2),
                _ => block!(1),
            }
        }
    }};
}
pub(crate) use in_blocks;
