//! Models in several files.

use std::path::{Path, PathBuf};

use brigade_shard::model_file::{Header, Place, Problem};
use brigade_shard::spec::ModelSpec;
use brigade_shard::tensors::TensorTable;

use crate::gguf_writer::{Gguf, Meta};
use crate::tiny_llama;

/// Writes a model of two layers in three parts, the first without tensors.
fn write(folder: &Path) -> Vec<PathBuf> {
    let whole = tiny_llama::file(2);
    let tensors = whole.tensors.len();
    let head = Gguf { tensors: Vec::new(), ..whole.clone() };
    let parts = [
        head,
        Gguf { tensors: whole.tensors[..8].to_vec(), ..Gguf::default() },
        Gguf { tensors: whole.tensors[8..].to_vec(), ..Gguf::default() },
    ];
    let write = |(number, part): (usize, Gguf)| {
        let part = part
            .key("split.no", Meta::U16(number as u16))
            .key("split.count", Meta::U16(3))
            .key("split.tensors.count", Meta::I32(tensors as i32));
        let path = folder.join(format!("tiny-{:05}-of-00003.gguf", number + 1));
        part.write(&path);
        path
    };
    parts.into_iter().enumerate().map(write).collect()
}

#[test]
fn the_first_part_opens_all() {
    let folder = tempfile::tempdir().unwrap();
    let paths = write(folder.path());
    let header = Header::open(&paths[0]).unwrap();
    assert_eq!(header.parts(), paths);
    assert_eq!(header.tensors().len(), tiny_llama::file(2).tensors.len());
    for (name, wanted) in [("token_embd.weight", 1), ("blk.1.ffn_down.weight", 2)] {
        let place = &header.tensor(name).unwrap().pieces[0].place;
        assert!(matches!(place, Place::File { part, .. } if *part == wanted), "{name}: {place:?}");
    }
    let sizes: u64 = paths.iter().map(|path| path.metadata().unwrap().len()).sum();
    assert_eq!(header.file_bytes().0, sizes);
    let spec = ModelSpec::from_header(&header).unwrap();
    TensorTable::new(&header, &spec).unwrap();
    let alone = tiny_llama::file(2).open().unwrap();
    assert_ne!(header.fingerprint(), alone.fingerprint());
}

#[test]
fn another_part_is_refused_and_names_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let paths = write(folder.path());
    let error = Header::open(&paths[1]).unwrap_err();
    assert!(
        matches!(&error.problem, Problem::NotFirstPart { part: 2, count: 3, first } if *first == paths[0]),
        "{error}"
    );
    assert!(error.to_string().contains("tiny-00001-of-00003.gguf"), "{error}");
}

#[test]
fn a_missing_part_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let paths = write(folder.path());
    std::fs::remove_file(&paths[2]).unwrap();
    let message = Header::open(&paths[0]).unwrap_err().to_string();
    assert!(
        message.contains("tiny-00003-of-00003.gguf") && message.contains("part 3 of 3 is missing"),
        "{message}"
    );
}

#[test]
fn a_renamed_first_part_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let paths = write(folder.path());
    let renamed = folder.path().join("model.gguf");
    std::fs::rename(&paths[0], &renamed).unwrap();
    let message = Header::open(&renamed).unwrap_err().to_string();
    assert!(message.contains("-00001-of-00003.gguf"), "{message}");
}

#[test]
fn parts_in_the_wrong_place_and_of_other_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let paths = write(folder.path());
    std::fs::copy(&paths[1], &paths[2]).unwrap();
    let error = Header::open(&paths[0]).unwrap_err();
    assert!(matches!(error.problem, Problem::WrongPart { found: 2, wanted: 3, .. }), "{error}");

    let paths = write(folder.path());
    let other = tiny_llama::file(1).key("split.no", Meta::U16(2)).key("split.count", Meta::U16(3));
    other.write(&paths[2]);
    let error = Header::open(&paths[0]).unwrap_err();
    assert!(
        matches!(error.problem, Problem::SplitTensors { .. } | Problem::DuplicateTensor { .. }),
        "{error}"
    );
}

#[test]
fn a_tensor_in_two_parts_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let paths = write(folder.path());
    let third = Gguf { tensors: tiny_llama::file(2).tensors[..12].to_vec(), ..Gguf::default() }
        .key("split.no", Meta::U16(2))
        .key("split.count", Meta::U16(3));
    third.write(&paths[2]);
    let error = Header::open(&paths[0]).unwrap_err();
    assert!(matches!(error.problem, Problem::DuplicateTensor { .. }), "{error}");
}

#[test]
fn a_cut_off_part_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let paths = write(folder.path());
    let bytes = std::fs::read(&paths[1]).unwrap();
    std::fs::write(&paths[1], &bytes[..bytes.len() - 1]).unwrap();
    let error = Header::open(&paths[0]).unwrap_err();
    assert!(matches!(error.problem, Problem::Truncated { .. }), "{error}");
    assert_eq!(error.path, paths[1]);
}
