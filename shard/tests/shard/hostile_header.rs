//! What damaged and hostile files get: an error that names the place, and nothing else.

use brigade_shard::cost::Cost;
use brigade_shard::model_file::Problem;
use brigade_shard::spec::ModelSpec;
use brigade_shard::tensor_type::TensorType;
use brigade_shard::tensors::TensorTable;
use brigade_shard::tokenizer::Tokenizer;

use crate::gguf_writer::{Gguf, Meta, Tensor, open_bytes, string};
use crate::random::Random;
use crate::{tiny_llama, tokenizer};

#[test]
fn a_file_cut_off_at_any_byte_is_said_to_be_cut_off_there() {
    let file = tokenizer::byte_pairs(tiny_llama::file(1));
    let bytes = file.bytes();
    let (header, _) = file.header();
    let points = (0..header.len()).chain((header.len()..bytes.len()).step_by(61));
    for end in points {
        let error = open_bytes(&bytes[..end]).expect_err(&format!("cut off at {end}"));
        let Problem::Truncated { end: said, wanted, inside } = &error.problem else {
            panic!("at {end}: {error}")
        };
        assert_eq!(*said, end as u64);
        assert!(*wanted > end as u64 && *wanted <= bytes.len() as u64, "at {end}: {error}");
        assert!(!inside.is_empty());
        assert!(error.to_string().contains(&format!("file ends at byte {end} inside ")), "{error}");
    }
    assert!(open_bytes(&bytes).is_ok());
}

/// The error that a file gets.
fn refusal(file: &Gguf) -> String {
    file.open().map(|_| ()).expect_err("the file was taken").to_string()
}

fn one_tensor(dims: &[u64], kind: u32, offset: Option<u64>) -> Gguf {
    let tensor = Tensor { name: "t".to_owned(), dims: dims.to_vec(), kind, offset };
    Gguf { tensors: vec![tensor], data: Some(4096), ..Gguf::default() }
}

#[test]
fn broken_preambles_are_refused() {
    let with = |version: u32| refusal(&Gguf { version, ..Gguf::default() });
    assert!(with(1).contains("version 1"), "{}", with(1));
    assert!(with(4).contains("version 4"), "{}", with(4));
    assert!(with(3u32.swap_bytes()).contains("big-endian"), "{}", with(3u32.swap_bytes()));
    let message = open_bytes(b"GGML....................").unwrap_err().to_string();
    assert!(message.contains("not a GGUF file"), "{message}");
    for (tensors, keys) in [(1u64 << 60, 0u64), (0, 1 << 60), (u64::MAX, u64::MAX)] {
        let bytes = [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &keys.to_le_bytes()].concat();
        let message = open_bytes(&bytes).unwrap_err().to_string();
        assert!(message.contains("past the limit"), "{message}");
    }
}

#[test]
fn broken_metadata_is_refused_by_key() {
    let huge = (1u64 << 60).to_le_bytes().to_vec();
    let array_of = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    let nested = [array_of(9, 1), array_of(4, 1), vec![0; 4]].concat();
    for (what, value, expected) in [
        ("string of 2^60 bytes", Meta::Raw(8, huge), "the length of the value of `k`"),
        ("array of 2^60 numbers", Meta::Raw(9, array_of(4, 1 << 60)), "the number of elements of `k`"),
        ("array of 2^60 strings", Meta::Raw(9, array_of(8, 1 << 60)), "the number of elements of `k`"),
        ("array longer than the file", Meta::Raw(9, array_of(4, 1000)), "inside the elements of `k`"),
        ("array in an array", Meta::Raw(9, nested), "array of arrays"),
        ("unknown type", Meta::Raw(13, vec![0; 8]), "the type of `k` is 13"),
        ("unknown element type", Meta::Raw(9, array_of(77, 1)), "the element type of `k` is 77"),
        ("bool of 2", Meta::Raw(7, vec![2]), "neither 0 nor 1"),
        (
            "text that is no UTF-8",
            Meta::Raw(8, [1u64.to_le_bytes().to_vec(), vec![0xff]].concat()),
            "not UTF-8",
        ),
    ] {
        let message = refusal(&Gguf::default().key("k", value));
        assert!(message.contains(expected), "{what}: {message}");
    }
    let mut twice = Gguf::default().key("k", 1);
    twice.keys.push(("k".to_owned(), Meta::U32(2)));
    assert!(refusal(&twice).contains("`k` appears twice"));
    assert!(refusal(&Gguf::default().key("", 1)).contains("metadata key 1 of 1 is empty"));
    let long = "k".repeat(1 << 17);
    assert!(refusal(&Gguf::default().key(&long, 1)).contains("past the limit"));
}

#[test]
fn an_impossible_alignment_is_refused() {
    for alignment in [0u32, 3, 48, 1 << 31] {
        let message = refusal(&Gguf::default().key("general.alignment", alignment));
        assert!(message.contains(&format!("`general.alignment` is {alignment}")), "{message}");
    }
    assert!(refusal(&Gguf::default().key("general.alignment", "32")).contains("wanted an integer"));
    let wide = Gguf { data: Some(4096), ..Gguf::default().key("general.alignment", 64) };
    assert!(wide.open().is_ok());
}

#[test]
fn broken_tensors_are_refused_by_name() {
    let f32_type = TensorType::F32.to_ggml();
    for (what, file, expected) in [
        ("overflow", one_tensor(&[1 << 32, 1 << 32], f32_type, None), "overflows"),
        ("overflow in bytes", one_tensor(&[1 << 31, 1 << 31], f32_type, None), "overflows"),
        ("zero", one_tensor(&[4, 0], f32_type, None), "none may be 0"),
        ("no dimensions", one_tensor(&[], f32_type, None), "0 dimensions"),
        ("five dimensions", one_tensor(&[1; 5], f32_type, None), "5 dimensions"),
        ("past the end", one_tensor(&[2048], f32_type, None), "inside tensor `t`"),
        ("offset past the end", one_tensor(&[4], f32_type, Some(1 << 40)), "inside tensor `t`"),
        ("offset that overflows", one_tensor(&[4], f32_type, Some(u64::MAX - 31)), "overflows"),
        ("unaligned", one_tensor(&[4], f32_type, Some(8)), "not a multiple of 32"),
        ("unknown type", one_tensor(&[4], 5, None), "ggml type 5"),
        ("part of a block", one_tensor(&[33], TensorType::Q8_0.to_ggml(), None), "blocks of 32"),
    ] {
        let message = refusal(&file);
        assert!(message.contains(expected) && message.contains("`t`"), "{what}: {message}");
    }
    let twice = one_tensor(&[4], f32_type, None).tensor("t", &[4], TensorType::F32);
    assert!(refusal(&twice).contains("tensor `t` appears twice"));
    let mut overlapping = one_tensor(&[64], f32_type, None).tensor("u", &[4], TensorType::F32);
    overlapping.tensors[1].offset = Some(32);
    assert!(refusal(&overlapping).contains("`t` and `u` overlap"), "{}", refusal(&overlapping));
    let nameless = Gguf::default().tensor("", &[4], TensorType::F32);
    assert!(refusal(&nameless).contains("tensor 1 of 1 is empty"));
}

#[test]
fn a_string_as_long_as_the_file_claims_is_not_allocated_before_it_is_there() {
    // The length is below every limit, but the file ends right after it.
    let bytes = Gguf::default().key("k", Meta::Raw(8, (3u64 << 20).to_le_bytes().to_vec())).bytes();
    let message = open_bytes(&bytes).unwrap_err().to_string();
    assert!(message.contains("inside the value of `k`"), "{message}");
}

/// Peak resident memory of this process in KiB; `None` where the system does not say.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn thousands_of_mutations_never_panic_and_take_little_memory() {
    let file = tokenizer::byte_pairs(tiny_llama::untied(2));
    let (header, _) = file.header();
    let sound = file.bytes();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut random = Random::new(17);
    let (mut opened, mut parsed, mut before) = (0, 0, None);
    for round in 0..6000 {
        let mut bytes = sound.clone();
        for _ in 0..=random.below(3) {
            mutate(&mut bytes, header.len() as u64, &mut random);
        }
        std::fs::write(&path, &bytes).unwrap();
        if round == 10 {
            before = peak_kib();
        }
        let Ok(header) = brigade_shard::model_file::Header::open(&path) else {
            continue;
        };
        opened += 1;
        let _ = Tokenizer::from_header(&header).map(|tokenizer| {
            let ids = tokenizer.encode("hello <|end|> wörld", brigade_shard::tokenizer::ParseSpecial::Yes);
            ids.map(|ids| tokenizer.decode(&ids, brigade_shard::tokenizer::SpecialText::Show))
        });
        let Ok(spec) = ModelSpec::from_header(&header) else {
            continue;
        };
        let Ok(table) = TensorTable::new(&header, &spec) else {
            continue;
        };
        parsed += 1;
        let _ = Cost::new(&spec, &table).weights(&Cost::new(&spec, &table).whole());
    }
    assert!(opened > 100 && parsed > 10, "{opened} opened, {parsed} parsed: the mutations are too strong");
    if let (Some(before), Some(after)) = (before, peak_kib()) {
        // Other tests run in this process at the same time: the bound is one that a single wrong length would break.
        assert!(after - before < 1 << 20, "{} MiB more", (after - before) >> 10);
    }
}

/// Changes a byte, a number, or the order of the header.
fn mutate(bytes: &mut Vec<u8>, header: u64, random: &mut Random) {
    let at = random.below(header - 8) as usize;
    match random.below(6) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next() as u8,
        2 => {
            let number = [0, 1, 31, 1 << 20, 1 << 31, 1 << 60, u64::MAX][random.below(7) as usize];
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        3 => bytes[at..at + 4].copy_from_slice(&(random.below(40) as u32).to_le_bytes()),
        4 => {
            let from = random.below(header - 8) as usize;
            bytes.copy_within(from..from + 8, at);
        }
        _ => {
            let text = string("llama.block_count");
            let end = (at + text.len()).min(bytes.len());
            bytes.splice(at..end, text);
        }
    }
}
