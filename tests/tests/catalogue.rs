//! The catalogue's models against files: the same tensors, of the same shapes, types and sizes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use brigade_shard::catalogue::{Mix, model};
use brigade_shard::cost::{Cost, LayerCost};
use brigade_shard::model_file::Header;
use brigade_shard::spec::ModelSpec;
use brigade_shard::tensor_type::TensorType;
use brigade_shard::tensors::TensorTable;
use brigade_shard::units::Bytes;
use brigade_tests::setup;

/// Every tensor's dimensions and type by its name.
fn tensors(header: &Header) -> BTreeMap<String, (Vec<u64>, TensorType)> {
    header.tensors().iter().map(|tensor| (tensor.name.clone(), (tensor.dims.clone(), tensor.kind))).collect()
}

/// What the file's model computes, under the catalogue's name of it.
fn spec(header: &Header, name: &str) -> ModelSpec {
    ModelSpec { name: name.to_owned(), ..ModelSpec::from_header(header).unwrap() }
}

#[test]
fn the_real_models_file_has_the_shapes_that_the_catalogue_says() {
    let file = Header::open(setup::smollm2()).unwrap();
    let (smollm2, _) = model("HuggingFaceTB/SmolLM2-135M-Instruct").unwrap();
    assert_eq!(spec(&file, &smollm2.name), *smollm2.spec());
    // Its Q4_1 is none of the catalogue's mixes: types are compared where both keep 32 bits.
    let (found, wanted) = (tensors(&file), tensors(&smollm2.header(Mix::Q8_0)));
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (name, (dims, kind)) in &wanted {
        let (found_dims, found_kind) = &found[name];
        assert_eq!(found_dims, dims, "{name}");
        assert_eq!(*found_kind == TensorType::F32, *kind == TensorType::F32, "{name} is {found_kind}");
    }
}

#[test]
fn giants_have_tensor_by_tensor_what_their_files_have() {
    let folder = tempfile::tempdir().unwrap();
    for (script, name) in [("llama-405b", "Llama 3.1 405B"), ("deepseek-r1", "DeepSeek R1")] {
        let path = folder.path().join(format!("{script}.gguf"));
        make_true_size(&path, script);
        let file = Header::open(&path).unwrap();
        let (model, mix) = model(name).unwrap();
        assert_eq!(mix, Mix::Q4KM);
        assert_eq!(spec(&file, name), *model.spec());
        let (found, wanted) = (tensors(&file), tensors(&model.header(mix)));
        let differing = wanted.iter().filter(|(name, tensor)| found.get(*name) != Some(tensor));
        let differing: Vec<_> = differing.map(|(name, tensor)| (name, tensor, found.get(name))).collect();
        assert!(differing.is_empty(), "{}: {:?}", differing.len(), &differing[..differing.len().min(8)]);
        assert_eq!(found.len(), wanted.len(), "{name}");
        let table = TensorTable::new(&file, model.spec()).unwrap();
        let (from_file, computed) = (Cost::new(model.spec(), &table), model.cost(mix));
        // Where a matrix begins in a file decides how much memory its blocks take, and nothing else here.
        let layers = |cost: &Cost| -> Vec<LayerCost> {
            cost.layers().iter().map(|layer| LayerCost { staged: Bytes::ZERO, ..*layer }).collect()
        };
        assert!(layers(&from_file) == layers(&computed), "{name}");
        assert_eq!(from_file.weights(&from_file.whole()), computed.weights(&computed.whole()), "{name}");
    }
}

fn make_true_size(path: &Path, giant: &str) {
    let script = setup::repository().join("tests/reference/make_true_size.py");
    let output = Command::new(setup::python()).arg(script).arg(path).arg(giant).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
