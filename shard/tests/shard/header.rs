//! What a sound header says.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use brigade_shard::model_file::{Header, Place, Problem, Value};
use brigade_shard::tensor_type::TensorType;
use brigade_shard::units::Bytes;

use crate::gguf_writer::{Gguf, Meta, OnDisk, open_bytes};
use crate::tiny_llama;

fn sample() -> Gguf {
    Gguf::default()
        .key("a.u16", Meta::U16(7))
        .key("a.u64", Meta::U64(1 << 40))
        .key("a.i32", Meta::I32(-5))
        .key("a.f32", 0.5)
        .key("a.f64", Meta::F64(0.25))
        .key("a.bool", true)
        .key("a.text", "grüße")
        .key("a.texts", vec!["one", "", "drei"])
        .key("a.numbers", Meta::F32s(vec![1.0, -2.5]))
        .key("a.integers", Meta::I32s(vec![3, -4]))
        .tensor("first", &[32, 2], TensorType::Q4_0)
        .tensor("second", &[5], TensorType::F16)
}

#[test]
fn values_and_tensors_come_back_as_written() {
    let disk = OnDisk::new(&sample());
    let header = disk.header();
    assert_eq!(header.u64("a.u16").unwrap(), Some(7));
    assert_eq!(header.u64("a.u64").unwrap(), Some(1 << 40));
    assert_eq!(header.get("a.i32"), Some(&Value::Signed(-5)));
    assert_eq!(header.f32("a.f32").unwrap(), Some(0.5));
    assert_eq!(header.f32("a.f64").unwrap(), Some(0.25));
    assert_eq!(header.bool("a.bool").unwrap(), Some(true));
    assert_eq!(header.str("a.text").unwrap(), Some("grüße"));
    assert_eq!(header.strings("a.texts").unwrap().unwrap(), ["one", "", "drei"]);
    assert_eq!(header.f32s("a.numbers").unwrap().unwrap(), [1.0, -2.5]);
    assert_eq!(header.i32s("a.integers").unwrap().unwrap(), [3, -4]);
    assert_eq!(header.array_len("a.texts").unwrap(), Some(3));
    assert_eq!(header.u64("absent").unwrap(), None);
    assert_eq!(header.strings("absent").unwrap(), None);
    assert_eq!(header.metadata().count(), 10);

    let (bytes, data) = sample().header();
    let first = header.tensor("first").unwrap();
    let place = |past_header| Place::File { part: 0, offset: bytes.len() as u64 + past_header };
    assert_eq!((first.dims.as_slice(), first.kind), ([32, 2].as_slice(), TensorType::Q4_0));
    assert_eq!((&first.pieces[0].place, first.bytes, first.values()), (&place(0), Bytes(36), 64));
    let second = header.tensor("second").unwrap();
    assert_eq!((&second.pieces[0].place, second.bytes), (&place(64), Bytes(10)));
    assert_eq!(header.tensors().len(), 2);
    assert_eq!(header.tensor("third"), None);
    assert_eq!(header.file_bytes(), Bytes(bytes.len() as u64 + data));
    assert_eq!(header.parts(), std::slice::from_ref(&disk.path));
}

#[test]
fn a_value_of_another_type_is_an_error_that_says_what_was_wanted_and_found() {
    let disk = OnDisk::new(&sample());
    let header = disk.header();
    for (error, parts) in [
        (header.u64("a.text").unwrap_err(), ["`a.text`", "an integer", "the string `grüße`"]),
        (header.u64("a.i32").unwrap_err(), ["`a.i32`", "not negative", "-5"]),
        (header.f32("a.u16").unwrap_err(), ["`a.u16`", "floating-point", "7"]),
        (header.bool("a.f32").unwrap_err(), ["`a.f32`", "a bool", "0.5"]),
        (header.str("a.bool").unwrap_err(), ["`a.bool`", "a string", "true"]),
        (header.strings("a.numbers").unwrap_err(), ["`a.numbers`", "an array of strings", "2 f32"]),
        (header.f32s("a.texts").unwrap_err(), ["`a.texts`", "floating-point", "3 string"]),
        (header.i32s("a.u16").unwrap_err(), ["`a.u16`", "an array of integers", "7"]),
        (header.u64s("a.integers").unwrap_err(), ["`a.integers`", "entry 1", "negative"]),
        (header.array_len("a.text").unwrap_err(), ["`a.text`", "an array", "string"]),
    ] {
        let message = error.to_string();
        for part in parts {
            assert!(message.contains(part), "{part:?} in {message:?}");
        }
    }
}

#[test]
fn version_two_is_read_too() {
    let header = Gguf { version: 2, ..sample() }.open().unwrap();
    assert_eq!(header.tensors().len(), 2);
}

#[test]
fn the_fingerprint_follows_header_and_size_and_not_the_data() {
    let base = sample().bytes();
    let of = |bytes: &[u8]| open_bytes(bytes).unwrap().fingerprint().to_string();
    let mut other_data = base.clone();
    *other_data.last_mut().unwrap() = 1;
    assert_eq!(of(&base), of(&other_data));
    assert_eq!(of(&base).len(), 64);
    let mut longer = base.clone();
    longer.push(0);
    assert_ne!(of(&base), of(&longer));
    assert_ne!(of(&base), of(&sample().key("a.u16", Meta::U16(8)).bytes()));
}

#[test]
fn arrays_are_not_read_from_a_file_that_has_changed() {
    let disk = OnDisk::new(&sample());
    let header = disk.header();
    let mut file = File::options().append(true).open(&disk.path).unwrap();
    file.write_all(b"more").unwrap();
    let error = header.strings("a.texts").unwrap_err();
    assert!(matches!(error.problem, Problem::Changed), "{error}");
    std::fs::remove_file(&disk.path).unwrap();
    assert!(matches!(header.strings("a.texts").unwrap_err().problem, Problem::Io(_)));
}

#[test]
fn a_file_of_many_gigabytes_is_opened_without_reading_its_data() {
    let mut file = tiny_llama::file(1);
    file = file.tensor("huge", &[1 << 20, 1 << 13], TensorType::F32);
    let (bytes, data) = file.header();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("huge.gguf");
    std::fs::write(&path, &bytes).unwrap();
    let len = bytes.len() as u64 + data;
    if let Err(error) = File::options().write(true).open(&path).unwrap().set_len(len) {
        eprintln!("skipped: this file system has no files of {len} bytes: {error}");
        return;
    }
    let started = Instant::now();
    let header = Header::open(&path).unwrap();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(header.tensor("huge").unwrap().bytes, Bytes(1 << 35));
}

#[test]
fn what_is_no_file_is_an_error_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.gguf");
    let error = Header::open(&missing).unwrap_err();
    assert!(error.to_string().contains("missing.gguf"), "{error}");
    assert!(Header::open(folder.path()).is_err());
}
