//! Tensors that GGUF files have in another order, or as several: experts whose matrices are transposed, or whose gates and
//! ups lie in one, and blocks of MXFP4 whose scales lie apart.
//!
//! Nothing is rewritten: a tensor's [`Layout`] says where in the file its values are, and whoever reads it picks them.

use super::names::{layer_of, layer_tensor};
use crate::model_file::{Layout, Meaning, Piece, Problem, Steps, TensorInfo};
use crate::tensor_type::TensorType;

/// A tensor of a layer that holds one or several of those that GGUF files have.
#[derive(Debug)]
pub(super) struct Fused {
    /// Its name after the layer's number.
    pub(super) theirs: &'static str,
    /// GGUF's names for what it holds, after the layer's number.
    pub(super) ours: &'static [&'static str],
    /// How it holds them.
    pub(super) form: Form,
    /// How their rows share it, where they are several.
    pub(super) order: Order,
}

/// How a tensor holds others.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// For each expert a matrix `[inputs, outputs]`, as they are written there: the last are neighbours.
    Transposed,
    /// For each expert a vector.
    Vectors,
    /// For each expert the rows of a matrix, each as `[blocks, 16]`; the tensor of this name has the blocks' scales.
    Blocks {
        /// Its name after the layer's number.
        scales: &'static str,
    },
}

/// How the outputs of several matrices share a tensor.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// In turn: the first of each, then the second of each.
    InTurn,
    /// All of the first, then all of the next.
    OneByOne,
}

/// Bytes of a block of MXFP4 without its scale, and how many values it has.
const CODES_BYTES: u64 = 16;
const BLOCK_VALUES: u64 = 32;

/// The tensors that were not yet taken apart: those with values, each with its layer, and those with scales.
#[derive(Default)]
pub(super) struct Waiting {
    holders: Vec<(u64, &'static Fused, TensorInfo)>,
    scales: Vec<TensorInfo>,
}

impl Waiting {
    /// Takes a tensor in where `table` knows its name; gives it back otherwise.
    pub(super) fn take(&mut self, table: &'static [Fused], tensor: TensorInfo) -> Option<TensorInfo> {
        let Some((layer, rest)) = layer_of(&tensor.name) else {
            return Some(tensor);
        };
        for fused in table {
            if fused.theirs == rest {
                self.holders.push((layer, fused, tensor));
                return None;
            }
            if matches!(fused.form, Form::Blocks { scales } if scales == rest) {
                self.scales.push(tensor);
                return None;
            }
        }
        Some(tensor)
    }

    /// All that they hold, by the names of GGUF files.
    pub(super) fn taken_apart(
        mut self,
        table: &'static [Fused],
    ) -> Result<Vec<(String, TensorInfo)>, Problem> {
        let mut all = Vec::new();
        for (layer, fused, tensor) in self.holders {
            let scales = match fused.form {
                Form::Blocks { scales } => {
                    let name = layer_tensor(layer, scales);
                    let at = self.scales.iter().position(|tensor| tensor.name == name);
                    Some(self.scales.swap_remove(at.ok_or(Problem::MissingTensor { name })?))
                }
                Form::Transposed | Form::Vectors => None,
            };
            for (part, ours) in (0..).zip(fused.ours) {
                let held = held(fused, part, &tensor, scales.as_ref())?;
                all.push((format!("blk.{layer}.{ours}"), held));
            }
        }
        match self.scales.first().and_then(|tensor| layer_of(&tensor.name)) {
            Some((layer, rest)) => {
                let of = |fused: &&Fused| matches!(fused.form, Form::Blocks { scales } if scales == rest);
                let theirs = table.iter().find(of).map_or(rest, |fused| fused.theirs);
                Err(Problem::MissingTensor { name: layer_tensor(layer, theirs) })
            }
            None => Ok(all),
        }
    }
}

/// How files call what GGUF files call `ours`, after the layer's number, where it lies in another tensor.
pub(super) fn holder(table: &[Fused], ours: &str) -> Option<&'static str> {
    table.iter().find(|fused| fused.ours.contains(&ours)).map(|fused| fused.theirs)
}

/// Part `part` of what `tensor` holds.
fn held(
    fused: &Fused,
    part: u64,
    tensor: &TensorInfo,
    scales: Option<&TensorInfo>,
) -> Result<TensorInfo, Problem> {
    let parts = fused.ours.len() as u64;
    let shape = |wanted: &str| Problem::Damaged {
        what: format!("tensor `{}`", tensor.name),
        problem: format!("has the dimensions {:?}, the last written first, wanted {wanted}", tensor.dims),
    };
    let shared = |all: u64| match all.is_multiple_of(parts) {
        true => Ok(all / parts),
        false => Err(shape(&format!("a number of outputs that {parts} can share"))),
    };
    // The first of a part's outputs, and how far it is from one to the next.
    let outputs = |each: u64| match fused.order {
        Order::InTurn => (part, parts),
        Order::OneByOne => (part * each, 1),
    };
    let one_piece = |tensor: &TensorInfo| -> Result<Piece, Problem> {
        tensor.pieces.first().cloned().ok_or_else(|| shape("a place in a file"))
    };
    let piece = one_piece(tensor)?;
    let (dims, kind, layout, pieces) = match (fused.form, &tensor.dims[..]) {
        (Form::Transposed, &[all, inputs, experts]) => {
            let each = shared(all)?;
            let (first, row) = outputs(each);
            let steps = Steps { first, column: all, row, matrix: all * inputs };
            (vec![inputs, each, experts], tensor.kind, Layout::Picked(steps), vec![piece])
        }
        (Form::Transposed, _) => return Err(shape("three")),
        (Form::Vectors, &[all, experts]) => {
            let each = shared(all)?;
            let (first, column) = outputs(each);
            let steps = Steps { first, column, row: all, matrix: 0 };
            (vec![each, experts], tensor.kind, Layout::Picked(steps), vec![piece])
        }
        (Form::Vectors, _) => return Err(shape("two")),
        (Form::Blocks { .. }, &[CODES_BYTES, blocks, all, experts]) => {
            let each = shared(all)?;
            let scales = scales.ok_or_else(|| shape("scales beside it"))?;
            if (scales.dims.as_slice(), scales.kind) != (&[blocks, all, experts][..], TensorType::I8)
                || tensor.kind != TensorType::I8
            {
                let (first, second) = (tensor.name.clone(), scales.name.clone());
                return Err(Problem::Unlike { first, second });
            }
            let (first, step) = outputs(each);
            let steps = Steps { first: first * blocks, column: 1, row: step * blocks, matrix: all * blocks };
            let dims = vec![blocks * BLOCK_VALUES, each, experts];
            let pieces = vec![piece, one_piece(scales)?];
            (dims, TensorType::MXFP4, Layout::CodesAndScales(steps), pieces)
        }
        (Form::Blocks { .. }, _) => return Err(shape("four, the innermost of 16 bytes")),
    };
    // No larger than the tensor that holds it, whose product was checked.
    let bytes = kind.bytes_of(dims.iter().product()).ok_or_else(|| shape("whole blocks"))?;
    let name = tensor.name.clone();
    Ok(TensorInfo { name, dims, kind, meaning: Meaning::Exact, bytes, pieces, layout })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_file::Place;
    use crate::units::Bytes;

    const TABLE: &[Fused] = &[
        Fused { theirs: "both", ours: &["gate", "up"], form: Form::Transposed, order: Order::InTurn },
        Fused { theirs: "bias", ours: &["gate.b", "up.b"], form: Form::Vectors, order: Order::OneByOne },
        Fused {
            theirs: "blocks",
            ours: &["gate", "up"],
            form: Form::Blocks { scales: "scales" },
            order: Order::InTurn,
        },
    ];

    fn tensor(name: &str, dims: &[u64], kind: TensorType) -> TensorInfo {
        let bytes = kind.bytes_of(dims.iter().product()).unwrap();
        let place = Place::File { part: 0, offset: 0 };
        TensorInfo::whole(format!("model.layers.3.{name}"), dims.to_vec(), kind, bytes, place)
    }

    fn taken_apart(tensors: &[TensorInfo]) -> Result<Vec<(String, TensorInfo)>, Problem> {
        let mut waiting = Waiting::default();
        for tensor in tensors {
            assert_eq!(waiting.take(TABLE, tensor.clone()), None);
        }
        waiting.taken_apart(TABLE)
    }

    #[test]
    fn gates_and_ups_are_found_in_what_holds_both() {
        let all = taken_apart(&[tensor("both", &[10, 4, 3], TensorType::BF16)]).unwrap();
        let [(gate_name, gate), (up_name, up)] = &all[..] else { panic!("{all:?}") };
        assert_eq!((gate_name.as_str(), up_name.as_str()), ("blk.3.gate", "blk.3.up"));
        assert_eq!((&gate.dims, gate.bytes), (&vec![4, 5, 3], Bytes(120)));
        let steps = Steps { first: 1, column: 10, row: 2, matrix: 40 };
        assert_eq!(up.layout, Layout::Picked(steps));
        assert_eq!(gate.layout, Layout::Picked(Steps { first: 0, ..steps }));

        let all = taken_apart(&[tensor("bias", &[10, 3], TensorType::F32)]).unwrap();
        assert_eq!(all[1].1.dims, [5, 3]);
        let steps = Steps { first: 5, column: 1, row: 10, matrix: 0 };
        assert_eq!(all[1].1.layout, Layout::Picked(steps));
    }

    #[test]
    fn blocks_come_with_their_scales_or_not_at_all() {
        let blocks = tensor("blocks", &[16, 2, 6, 3], TensorType::I8);
        let scales = tensor("scales", &[2, 6, 3], TensorType::I8);
        let all = taken_apart(&[scales.clone(), blocks.clone()]).unwrap();
        let up = &all[1].1;
        assert_eq!((&up.dims, up.kind), (&vec![64, 3, 3], TensorType::MXFP4));
        assert_eq!((up.bytes, up.pieces.len()), (Bytes(2 * 3 * 3 * 17), 2));
        let steps = Steps { first: 2, column: 1, row: 4, matrix: 12 };
        assert_eq!(up.layout, Layout::CodesAndScales(steps));
        let without = |tensors: &[TensorInfo]| taken_apart(tensors).unwrap_err().to_string();
        assert!(without(std::slice::from_ref(&blocks)).contains("model.layers.3.scales"));
        assert!(without(&[scales]).contains("model.layers.3.blocks"));
        let short = tensor("scales", &[2, 5, 3], TensorType::I8);
        assert!(without(&[blocks, short]).contains("should be alike"));
        assert!(without(&[tensor("both", &[9, 4, 3], TensorType::F32)]).contains("[9, 4, 3]"));
    }
}
