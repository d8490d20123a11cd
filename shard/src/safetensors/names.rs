//! Which tensor is which: from the names in safetensors to those that GGUF files have, and back.

use std::collections::{BTreeMap, HashMap};

use super::families::{ENDS, FAMILIES, Family, LAYER_PREFIXES};
use super::fused::{self, Waiting};
use crate::model_file::{Layout, Meaning, Problem, TensorInfo};
use crate::units::Bytes;

/// Ends of names of tensors that follow from the hyper-parameters, which older files hold all the same.
const DERIVED: [&str; 1] = ["rotary_emb.inv_freq"];

/// All tensors of a model, and their places in that list by the name that a GGUF file has for them. A tensor whose name
/// means nothing to the family has none.
#[derive(Default)]
pub(super) struct Named {
    pub(super) tensors: Vec<TensorInfo>,
    pub(super) by_name: HashMap<String, usize>,
}

impl Named {
    pub(super) fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|index| &self.tensors[*index])
    }

    pub(super) fn add(&mut self, name: Option<String>, tensor: TensorInfo) {
        if let Some(name) = name {
            self.by_name.insert(name, self.tensors.len());
        }
        self.tensors.push(tensor);
    }
}

/// What a name in a file says.
enum Meant {
    /// A tensor that a GGUF file calls so.
    Whole(String),
    /// One expert's part of such a tensor.
    Expert { name: String, expert: u64 },
    /// Nothing that the family knows.
    Unknown,
}

/// Names the tensors of a family with `experts` experts, joins those of the experts, and takes apart those that hold
/// several.
pub(super) fn named(
    family: &'static Family,
    tensors: Vec<TensorInfo>,
    experts: u64,
) -> Result<Named, Problem> {
    let mut named = Named::default();
    let mut parts: BTreeMap<String, BTreeMap<u64, TensorInfo>> = BTreeMap::new();
    let mut waiting = Waiting::default();
    let (tensors, strangers) = own_tensors(family, tensors);
    for tensor in tensors {
        if DERIVED.iter().any(|end| tensor.name.ends_with(end)) {
            continue;
        }
        let Some(mut tensor) = waiting.take(family.fused, tensor) else {
            continue;
        };
        match meant(family, &tensor.name) {
            Meant::Whole(name) => {
                if name.ends_with("norm.weight") {
                    tensor.meaning = family.norms;
                }
                named.add(Some(name), tensor);
            }
            Meant::Expert { name, expert } if expert < experts => {
                parts.entry(name).or_default().insert(expert, tensor);
            }
            Meant::Expert { .. } | Meant::Unknown => named.add(None, tensor),
        }
    }
    for (name, mut parts) in parts {
        let in_file = whole_name(family, &name);
        let parts: Result<Vec<TensorInfo>, Problem> = (0..experts)
            .map(|expert| {
                let missing = || Problem::MissingTensor { name: in_file.replace('*', &expert.to_string()) };
                parts.remove(&expert).ok_or_else(missing)
            })
            .collect();
        named.add(Some(name), joined(in_file, parts?)?);
    }
    for (name, tensor) in waiting.taken_apart(family.fused)? {
        // A second form of the same tensor stays unread, and is named as such.
        let name = (!named.by_name.contains_key(&name)).then_some(name);
        named.add(name, tensor);
    }
    named.tensors.iter_mut().for_each(|tensor| tensor.name = in_whole_model(family, &tensor.name));
    strangers.into_iter().for_each(|tensor| named.add(None, tensor));
    Ok(named)
}

/// The tensors of a family that may be a part of a model, with the names that they have where it is whole, and those that
/// belong to no part of such a model.
fn own_tensors(family: &Family, tensors: Vec<TensorInfo>) -> (Vec<TensorInfo>, Vec<TensorInfo>) {
    let Some(nested) = &family.nested else {
        return (tensors, Vec::new());
    };
    let (mut own, mut strangers) = (Vec::new(), Vec::new());
    for tensor in tensors {
        let mut names = nested
            .prefixes
            .iter()
            .filter_map(|(theirs, own)| tensor.name.strip_prefix(theirs).map(|rest| format!("{own}{rest}")));
        match names.next() {
            Some(name) => own.push(TensorInfo { name, ..tensor }),
            None if nested.other_tensors.iter().any(|start| tensor.name.starts_with(start)) => {}
            None => strangers.push(tensor),
        }
    }
    (own, strangers)
}

/// One tensor of matrices that are all alike.
fn joined(name: String, parts: Vec<TensorInfo>) -> Result<TensorInfo, Problem> {
    let (mut dims, kind) = match parts.first() {
        Some(first) => (first.dims.clone(), first.kind),
        None => return Err(Problem::MissingTensor { name }),
    };
    if let Some(other) = parts.iter().find(|part| (&part.dims, part.kind) != (&dims, kind)) {
        return Err(Problem::Unlike { first: parts[0].name.clone(), second: other.name.clone() });
    }
    dims.push(parts.len() as u64);
    let bytes: Bytes = parts.iter().map(|part| part.bytes).sum();
    let pieces = parts.into_iter().flat_map(|part| part.pieces).collect();
    Ok(TensorInfo { name, dims, kind, meaning: Meaning::Exact, bytes, pieces, layout: Layout::Whole })
}

fn meant(family: &Family, name: &str) -> Meant {
    if let Some((ours, _)) = ENDS.iter().find(|(_, theirs)| *theirs == name) {
        return Meant::Whole((*ours).to_owned());
    }
    let Some((layer, rest)) = layer_of(name) else {
        return Meant::Unknown;
    };
    for (ours, theirs) in family.names.iter().copied().flatten() {
        let ours = || format!("{}{layer}.{ours}", LAYER_PREFIXES.0);
        match theirs.split_once('*') {
            None if *theirs == rest => return Meant::Whole(ours()),
            None => {}
            Some((before, after)) => match rest.strip_prefix(before).and_then(leading_number) {
                Some((expert, end)) if end == after => return Meant::Expert { name: ours(), expert },
                _ => {}
            },
        }
    }
    Meant::Unknown
}

/// The number of a layer, and the name that one of its tensors has after it.
pub(super) fn layer_of(name: &str) -> Option<(u64, &str)> {
    let (layer, rest) = name.strip_prefix(LAYER_PREFIXES.1).and_then(leading_number)?;
    Some((layer, rest.strip_prefix('.')?))
}

/// The tensor of a layer with this name after the layer's number.
pub(super) fn layer_tensor(layer: u64, rest: &str) -> String {
    format!("{}{layer}.{rest}", LAYER_PREFIXES.1)
}

/// The number at a text's beginning, and what follows it. A number with zeros before it is none.
fn leading_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if digits.len() > 1 && digits.starts_with('0') {
        return None;
    }
    Some((digits.parse().ok()?, rest))
}

/// How a file of a family calls the tensor that a GGUF file calls `name`; a star stands for the number of an expert.
pub(super) fn name_in_file(family: &Family, name: &str) -> String {
    in_whole_model(family, &whole_name(family, name))
}

/// What a tensor is called in a model that its family is a part of, if it is one.
fn in_whole_model(family: &Family, name: &str) -> String {
    let prefixes = family.nested.iter().flat_map(|nested| nested.prefixes);
    let mut names =
        prefixes.filter_map(|(theirs, own)| name.strip_prefix(own).map(|rest| format!("{theirs}{rest}")));
    names.next().unwrap_or_else(|| name.to_owned())
}

/// Of the families of one class, the one whose text part is where these tensors are.
pub(super) fn as_spelt(family: &'static Family, tensors: &[TensorInfo]) -> &'static Family {
    let holds = |family: &Family| {
        let prefix = family.nested.as_ref().and_then(|nested| nested.prefixes.first());
        prefix.is_some_and(|(theirs, _)| tensors.iter().any(|tensor| tensor.name.starts_with(theirs)))
    };
    FAMILIES.iter().find(|other| other.class == family.class && holds(other)).unwrap_or(family)
}

/// How a file of a family calls a tensor where the model is no part of another.
fn whole_name(family: &Family, name: &str) -> String {
    if let Some((_, theirs)) = ENDS.iter().find(|(ours, _)| *ours == name) {
        return (*theirs).to_owned();
    }
    let layered = name.strip_prefix(LAYER_PREFIXES.0).and_then(leading_number);
    let theirs = layered.and_then(|(layer, rest)| {
        let rest = rest.strip_prefix('.')?;
        let named = family.names.iter().copied().flatten().find(|(ours, _)| *ours == rest);
        let theirs = named.map(|(_, theirs)| *theirs).or_else(|| fused::holder(family.fused, rest))?;
        Some(layer_tensor(layer, theirs))
    });
    theirs.unwrap_or_else(|| name.to_owned())
}
