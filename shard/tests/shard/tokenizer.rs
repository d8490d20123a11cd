//! Tokenizers of small vocabularies, and text that comes token by token.

use brigade_shard::tokenizer::{
    MAX_RUN_CHARACTERS, ParseSpecial, SpecialText, TextStart, TextStream, Tokenizer, TokenizerError,
    known_pretokenizers,
};

use crate::gguf_writer::{Gguf, Meta, OnDisk};

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// Adds a byte-level BPE tokenizer of 40 tokens.
pub fn byte_pairs(file: Gguf) -> Gguf {
    let mut tokens: Vec<String> =
        ["<|endoftext|>", "<|begin|>", "<|end|>", "[X]"].map(str::to_owned).to_vec();
    tokens.extend(('a'..='z').map(String::from));
    tokens.extend(["Ġ", "Ċ", "Ã", "¶", "he", "ll", "hell", "hello", "Ġw", "!"].map(str::to_owned));
    let mut kinds = vec![NORMAL; tokens.len()];
    kinds[..4].copy_from_slice(&[CONTROL, CONTROL, CONTROL, USER_DEFINED]);
    file.key("tokenizer.ggml.model", "gpt2")
        .key("tokenizer.ggml.pre", "smollm")
        .key("tokenizer.ggml.tokens", Meta::Strs(tokens))
        .key("tokenizer.ggml.token_type", Meta::I32s(kinds))
        .key("tokenizer.ggml.merges", vec!["h e", "l l", "he ll", "hell o", "Ġ w"])
        .key("tokenizer.ggml.bos_token_id", 1)
        .key("tokenizer.ggml.eos_token_id", 2)
}

/// A SentencePiece tokenizer: three special tokens, all bytes, then pieces with scores.
fn pieces() -> Gguf {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut kinds = vec![UNKNOWN, CONTROL, CONTROL];
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    kinds.extend([BYTE; 256]);
    let mut scores = vec![0.0; tokens.len()];
    for (piece, score) in [
        ("▁", -9.0),
        ("a", -9.0),
        ("b", -9.0),
        ("▁a", -1.0),
        ("ab", -0.5),
        ("▁ab", -3.0),
        ("bb", -2.0),
        ("é", -9.0),
    ] {
        tokens.push(piece.to_owned());
        kinds.push(NORMAL);
        scores.push(score);
    }
    tokens.push("<tool>".to_owned());
    kinds.push(USER_DEFINED);
    scores.push(0.0);
    Gguf::default()
        .key("tokenizer.ggml.model", "llama")
        .key("tokenizer.ggml.tokens", Meta::Strs(tokens))
        .key("tokenizer.ggml.token_type", Meta::I32s(kinds))
        .key("tokenizer.ggml.scores", Meta::F32s(scores))
}

const PIECE: u32 = 259;
const SPACE: u32 = PIECE;
const A: u32 = PIECE + 1;
const B: u32 = PIECE + 2;
const SPACE_A: u32 = PIECE + 3;
const AB: u32 = PIECE + 4;
const SPACE_AB: u32 = PIECE + 5;
const BB: u32 = PIECE + 6;
const E_ACUTE: u32 = PIECE + 7;
const TOOL: u32 = PIECE + 8;

fn build(file: &Gguf) -> Result<Tokenizer, TokenizerError> {
    let disk = OnDisk::new(file);
    Tokenizer::from_header(&disk.header())
}

fn byte_pair_tokenizer() -> Tokenizer {
    build(&byte_pairs(Gguf::default())).unwrap()
}

fn plain(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, ParseSpecial::No).unwrap()
}

#[test]
fn byte_pairs_are_merged_in_the_order_of_the_merges() {
    let tokenizer = byte_pair_tokenizer();
    assert_eq!(plain(&tokenizer, "hello"), [37]);
    assert_eq!(plain(&tokenizer, "hell"), [36]);
    assert_eq!(plain(&tokenizer, "hello world"), [37, 38, 18, 21, 15, 7]);
    assert_eq!(plain(&tokenizer, "ö\n"), [32, 33, 31]);
    assert_eq!(plain(&tokenizer, ""), [0u32; 0]);
    for text in ["hello", "hello world", "ö\n", "a  b\n\n!"] {
        assert_eq!(tokenizer.decode(&plain(&tokenizer, text), SpecialText::Show), text);
    }
}

#[test]
fn special_tokens_are_parsed_only_when_asked_and_user_defined_ones_always() {
    let tokenizer = byte_pair_tokenizer();
    let parsed = |text: &str| tokenizer.encode(text, ParseSpecial::Yes).unwrap();
    assert_eq!(parsed("<|begin|>hello[X]!<|end|>"), [1, 37, 3, 39, 2]);
    assert_eq!(parsed("<|begin|><|begin|>"), [1, 1]);
    let as_text = plain(&tokenizer, "<|end|>[X]hello");
    assert!(!as_text.contains(&2));
    assert_eq!(as_text[as_text.len() - 2..], [3, 37]);
}

#[test]
fn the_longest_special_token_wins() {
    let mut file = byte_pairs(Gguf::default());
    let Meta::Strs(mut tokens) =
        file.keys.iter().find(|(key, _)| key.ends_with(".tokens")).unwrap().1.clone()
    else {
        panic!("no tokens")
    };
    tokens[1] = "<|end|>x".to_owned();
    file.set("tokenizer.ggml.tokens", Meta::Strs(tokens));
    let tokenizer = build(&file).unwrap();
    assert_eq!(tokenizer.encode("<|end|>x<|end|>a", ParseSpecial::Yes).unwrap(), [1, 2, 4]);
}

#[test]
fn a_token_before_the_text_is_added_as_the_file_or_its_kind_says() {
    let file = || byte_pairs(Gguf::default());
    let bos = |file: Gguf| build(&file).unwrap().bos_to_add();
    assert_eq!(bos(file()), None);
    assert_eq!(bos(file().key("tokenizer.ggml.add_bos_token", true)), Some(1));
    assert_eq!(bos(file().key("tokenizer.ggml.pre", "llama-bpe")), Some(1));
    assert_eq!(
        bos(file().key("tokenizer.ggml.pre", "llama-bpe").key("tokenizer.ggml.add_bos_token", false)),
        None
    );
    assert_eq!(bos(pieces()), Some(1));
    assert_eq!(build(&pieces()).unwrap().bos_to_add_to_chat(), Some(1));
    assert_eq!(bos(pieces().key("tokenizer.ggml.add_bos_token", false)), None);
    let error =
        build(&file().without("tokenizer.ggml.bos_token_id").key("tokenizer.ggml.add_bos_token", true));
    assert!(error.unwrap_err().to_string().contains("bos_token_id"));
}

#[test]
fn tokens_that_end_an_answer_are_found_by_key_and_by_text() {
    let tokenizer = byte_pair_tokenizer();
    assert_eq!(tokenizer.end_ids(), [0, 2]);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_size()), (Some(1), Some(2), 40));
    let stated = byte_pairs(Gguf::default())
        .key("tokenizer.ggml.eot_token_id", 5)
        .key("tokenizer.ggml.eom_token_id", 6);
    assert_eq!(build(&stated).unwrap().end_ids(), [0, 2, 5, 6]);
    let beyond = byte_pairs(Gguf::default()).key("tokenizer.ggml.eos_token_id", 1000);
    assert_eq!(build(&beyond).unwrap().eos(), None);
    assert_eq!(tokenizer.id_of("<|end|>"), Some(2));
    assert_eq!(tokenizer.id_of("absent"), None);
    assert_eq!(tokenizer.token_text(37), Some("hello"));
    assert_eq!(tokenizer.token_text(40), None);
    let special: Vec<(u32, &str)> = tokenizer.special_tokens().collect();
    assert_eq!(special, [(0, "<|endoftext|>"), (1, "<|begin|>"), (2, "<|end|>")]);
    assert_eq!(build(&pieces()).unwrap().end_ids(), [2]);
}

#[test]
fn words_that_are_tokens_are_taken_whole_where_the_pretokenizer_says_so() {
    let tokens = |pre: &str| {
        let file = byte_pairs(Gguf::default())
            .key("tokenizer.ggml.pre", pre)
            .key("tokenizer.ggml.merges", vec!["h e"]);
        plain(&build(&file).unwrap(), "hello")
    };
    assert_eq!(tokens("llama-bpe"), [37]);
    assert_eq!(tokens("smollm"), [34, 15, 15, 18]);
}

#[test]
fn a_pretokenizer_that_is_not_known_is_refused_by_name() {
    let error =
        build(&byte_pairs(Gguf::default()).key("tokenizer.ggml.pre", "new-words")).unwrap_err().to_string();
    assert!(error.contains("`new-words` is not known"), "{error}");
    for pre in known_pretokenizers() {
        let error = build(&byte_pairs(Gguf::default()).key("tokenizer.ggml.pre", pre)).err();
        assert!(error.is_none(), "{pre}: {error:?}");
    }
}

#[test]
fn incomplete_and_contradicting_tokenizers_are_refused() {
    let file = || byte_pairs(Gguf::default());
    for (file, expected) in [
        (file().without("tokenizer.ggml.model"), "no `tokenizer.ggml.model`"),
        (file().without("tokenizer.ggml.tokens"), "no `tokenizer.ggml.tokens`"),
        (file().without("tokenizer.ggml.merges"), "no `tokenizer.ggml.merges`"),
        (file().without("tokenizer.ggml.pre"), "no `tokenizer.ggml.pre`"),
        (pieces().without("tokenizer.ggml.scores"), "no `tokenizer.ggml.scores`"),
        (file().key("tokenizer.ggml.model", "bert"), "`bert` is not supported"),
        (file().key("tokenizer.ggml.merges", vec!["he"]), "entry 0 is `he`"),
        (file().key("tokenizer.ggml.merges", vec!["x y"]), "do not fit the vocabulary"),
        (file().key("tokenizer.ggml.token_type", Meta::I32s(vec![1])), "1 entries for 40 tokens"),
        (pieces().key("tokenizer.ggml.scores", Meta::F32s(vec![0.0])), "1 entries for"),
        (pieces().key("tokenizer.ggml.scores", Meta::F32s(vec![f32::NAN; 268])), "is not a number"),
        (file().key("tokenizer.ggml.tokens", vec!["a"; 40]), "`a` twice"),
    ] {
        let message = build(&file).unwrap_err().to_string();
        assert!(message.contains(expected), "{expected:?} in {message:?}");
    }
}

#[test]
fn pieces_are_merged_by_score() {
    let tokenizer = build(&pieces()).unwrap();
    assert_eq!(plain(&tokenizer, "ab"), [SPACE_AB]);
    assert_eq!(plain(&tokenizer, "aab"), [SPACE_A, AB]);
    assert_eq!(plain(&tokenizer, "abb"), [SPACE_AB, B]);
    assert_eq!(plain(&tokenizer, "bbb"), [SPACE, BB, B]);
    assert_eq!(plain(&tokenizer, " a b"), [SPACE, SPACE_A, SPACE, B]);
    assert_eq!(plain(&tokenizer, ""), [0u32; 0]);
}

#[test]
fn what_is_in_no_piece_becomes_bytes() {
    let tokenizer = build(&pieces()).unwrap();
    assert_eq!(plain(&tokenizer, "é"), [SPACE, E_ACUTE]);
    let byte = |byte: u32| byte + 3;
    assert_eq!(plain(&tokenizer, "ü\n"), [SPACE, byte(0xC3), byte(0xBC), byte(0x0A)]);
    for text in ["ü\n", "aé b", " a", "世界"] {
        assert_eq!(tokenizer.decode(&plain(&tokenizer, text), SpecialText::Show), text);
    }
    assert_eq!(tokenizer.decode_token_bytes(byte(0xBC), SpecialText::Skip), [0xBC]);
}

#[test]
fn a_space_comes_before_the_text_and_after_every_special_token() {
    let tokenizer = build(&pieces()).unwrap();
    let parsed = tokenizer.encode("a<s>ab<tool>a", ParseSpecial::Yes).unwrap();
    assert_eq!(parsed, [SPACE_A, 1, SPACE_AB, TOOL, SPACE_A]);
    let bare = build(&pieces().key("tokenizer.ggml.add_space_prefix", false)).unwrap();
    assert_eq!(plain(&bare, "ab a"), [AB, SPACE_A]);
    assert!(!bare.adds_leading_space());
    assert_eq!(bare.decode(&[SPACE_A, A], SpecialText::Show), " aa");
}

#[test]
fn a_character_the_vocabulary_cannot_express_is_an_error() {
    let file = Gguf::default()
        .key("tokenizer.ggml.model", "llama")
        .key("tokenizer.ggml.tokens", vec!["<unk>", "<s>", "</s>", "▁", "a"])
        .key("tokenizer.ggml.scores", Meta::F32s(vec![0.0; 5]));
    let tokenizer = build(&file).unwrap();
    assert_eq!(plain(&tokenizer, "a"), [3, 4]);
    let error = tokenizer.encode("aü", ParseSpecial::No).unwrap_err().to_string();
    assert!(error.contains("`ü`"), "{error}");
}

#[test]
fn a_stream_gives_out_whole_characters_only() {
    let tokenizer = byte_pair_tokenizer();
    let mut stream = TextStream::new(TextStart::Continued, SpecialText::Skip);
    assert_eq!(stream.push(&tokenizer, 37), "hello");
    assert_eq!(stream.push(&tokenizer, 32), "");
    assert!(!stream.is_whole());
    assert_eq!(stream.push(&tokenizer, 33), "ö");
    assert!(stream.is_whole());
    assert_eq!(stream.push(&tokenizer, 2), "");
    // The first byte of a character without its second one, then a second one without its first.
    assert_eq!(stream.push(&tokenizer, 32), "");
    assert_eq!(stream.push(&tokenizer, 4), "\u{FFFD}a");
    assert_eq!(stream.push(&tokenizer, 33), "\u{FFFD}");
    assert_eq!(stream.push(&tokenizer, 32), "");
    assert_eq!(stream.finish(), "\u{FFFD}");
    assert_eq!(stream.finish(), "");
    assert_eq!(stream.push(&tokenizer, 1000), "");
}

#[test]
fn every_text_survives_a_stream_of_bytes() {
    let tokenizer = build(&pieces()).unwrap();
    let text = "aß世😀\u{10FFFF} ab\u{0}é";
    let ids = plain(&tokenizer, text);
    let mut stream = TextStream::new(TextStart::OfText, SpecialText::Show);
    let streamed: String = ids.iter().map(|id| stream.push(&tokenizer, *id)).collect();
    assert_eq!(streamed + &stream.finish(), text);
}

#[test]
fn special_tokens_are_shown_or_skipped() {
    let tokenizer = byte_pair_tokenizer();
    assert_eq!(tokenizer.decode(&[1, 37, 3, 2], SpecialText::Show), "<|begin|>hello[X]<|end|>");
    assert_eq!(tokenizer.decode(&[1, 37, 3, 2], SpecialText::Skip), "hello[X]");
}

#[test]
fn only_a_texts_beginning_loses_the_added_space() {
    let tokenizer = build(&pieces()).unwrap();
    let text = |start| {
        let mut stream = TextStream::new(start, SpecialText::Skip);
        [1, SPACE_A, SPACE_AB].iter().map(|id| stream.push(&tokenizer, *id)).collect::<String>()
    };
    assert_eq!(text(TextStart::OfText), "a ab");
    assert_eq!(text(TextStart::Continued), " a ab");
}

#[test]
fn a_run_too_long_for_the_patterns_is_refused_and_a_long_text_is_not() {
    let tokenizer = byte_pair_tokenizer();
    let run = " ".repeat(MAX_RUN_CHARACTERS + 1);
    let error = tokenizer.encode(&run, ParseSpecial::No).unwrap_err().to_string();
    assert!(error.contains("white space in a row"), "{error}");
    let words = "hello ".repeat(100_000);
    assert_eq!(plain(&tokenizer, &words).len(), 200_000);
}

#[test]
fn tokenizers_differ_in_the_first_id_that_means_something_else() {
    let (one, other) = (build(&pieces()).unwrap(), byte_pair_tokenizer());
    assert_eq!(one.difference(&build(&pieces()).unwrap()), None);
    let (id, here, there) = one.difference(&other).unwrap();
    assert!(id < 3 && here != there, "{id}: {here} {there}");
    assert_eq!(other.difference(&one), Some((id, there, here)));
    // One is padded: what both have is the same.
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>", "▁", "a", "b"].map(str::to_owned).to_vec();
    let of = |tokens: &[String]| {
        let file = Gguf::default()
            .key("tokenizer.ggml.model", "llama")
            .key("tokenizer.ggml.tokens", Meta::Strs(tokens.to_vec()))
            .key("tokenizer.ggml.token_type", Meta::I32s(vec![NORMAL; tokens.len()]))
            .key("tokenizer.ggml.scores", Meta::F32s(vec![0.0; tokens.len()]));
        build(&file).unwrap()
    };
    let short = of(&tokens);
    tokens.push("[PAD]".to_owned());
    assert_eq!(short.difference(&of(&tokens)), None);
    tokens[4] = "c".to_owned();
    assert_eq!(short.difference(&of(&tokens)), Some((4, "a", "c")));
}
