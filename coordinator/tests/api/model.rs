//! A small model file: a byte-level vocabulary whose first 256 ids are the bytes, a few longer tokens, and a template.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use brigade_coordinator::cluster::ModelInfo;
use brigade_coordinator::template::ChatRenderer;
use brigade_shard::model_file::Header;
use brigade_shard::template::TemplateSource;
use brigade_shard::tokenizer::Tokenizer;
use brigade_shard::units::Bytes;

/// The program, which renders templates.
const PROGRAM: &str = env!("CARGO_BIN_EXE_brigade");
/// The model's name.
pub const MODEL: &str = "tiny";
/// Begins a message.
pub const IM_START: u32 = 256;
/// Ends a message and an answer.
pub const IM_END: u32 = 257;
/// Longer tokens, from this id.
pub const WORDS_FROM: u32 = 259;
/// The longer tokens.
pub const WORDS: [&str; 5] = ["Hello", " world", "!\n\n", "he", "end."];
/// A control token that stands before calls.
pub const TOOL_CALLS: u32 = WORDS_FROM + WORDS.len() as u32;
/// Number of token ids.
pub const VOCAB: usize = TOOL_CALLS as usize + 1;

const TEMPLATE: &str = "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}\
    {{ '<|im_start|>' + m['role'] + (' ' + m['name'] if m['name'] else '') + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + (prefix or '') }}{% endif %}";

/// The id of one of [`WORDS`].
pub fn word(text: &str) -> u32 {
    WORDS_FROM + WORDS.iter().position(|word| *word == text).unwrap() as u32
}

/// The ids of a text's bytes.
pub fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// What the cluster knows of the model; without a template if told so.
pub fn model(with_template: bool) -> ModelInfo {
    model_with(with_template.then_some(TEMPLATE))
}

/// The same with a template of its own.
pub fn model_with(template: Option<&str>) -> ModelInfo {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), gguf(template.unwrap_or_default())).unwrap();
    let header = Header::open(file.path()).unwrap();
    let tokenizer = Tokenizer::from_header(&header).unwrap();
    let source = template.map(|_| TemplateSource::from_header(&header, &tokenizer).unwrap());
    let template = source.map(|source| ChatRenderer::new(PROGRAM.into(), source).unwrap());
    ModelInfo {
        id: MODEL.to_owned(),
        name: "Tiny".to_owned(),
        fingerprint: *header.fingerprint(),
        layers: 1,
        vocab: VOCAB,
        weights: Bytes::mib(1),
        context_length: 4096,
        tokenizer: Arc::new(tokenizer),
        template,
        created: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
    }
}

/// GPT-2's printable letter for each byte.
fn letters() -> Vec<char> {
    let plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut extra = 256;
    (0..=255u8)
        .map(|byte| {
            if plain(byte) {
                return char::from(byte);
            }
            extra += 1;
            char::from_u32(extra - 1).unwrap()
        })
        .collect()
}

fn gguf(template: &str) -> Vec<u8> {
    let letters = letters();
    let written = |text: &str| text.bytes().map(|byte| letters[usize::from(byte)]).collect::<String>();
    let mut tokens: Vec<String> = letters.iter().map(|letter| letter.to_string()).collect();
    tokens.extend(["<|im_start|>", "<|im_end|>", "<|endoftext|>"].map(String::from));
    tokens.extend(WORDS.map(written));
    tokens.push("[TOOL_CALLS]".to_owned());
    let is_control = |id: u32| (256..259).contains(&id) || id == TOOL_CALLS;
    let kinds: Vec<u32> = (0..tokens.len() as u32).map(|id| if is_control(id) { 3 } else { 1 }).collect();

    let mut metadata = Metadata::default();
    metadata.text("general.architecture", "llama");
    metadata.text("tokenizer.ggml.model", "gpt2");
    metadata.text("tokenizer.ggml.pre", "smollm");
    metadata.texts("tokenizer.ggml.tokens", &tokens);
    metadata.numbers("tokenizer.ggml.token_type", &kinds);
    metadata.texts("tokenizer.ggml.merges", &["h e".to_owned()]);
    metadata.number("tokenizer.ggml.bos_token_id", 258);
    metadata.number("tokenizer.ggml.eos_token_id", IM_END);
    metadata.text("tokenizer.chat_template", template);

    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.extend(metadata.count.to_le_bytes());
    file.extend(metadata.bytes);
    file.resize(file.len().next_multiple_of(32), 0);
    file
}

/// A file's metadata as it is written.
#[derive(Default)]
struct Metadata {
    count: u64,
    bytes: Vec<u8>,
}

impl Metadata {
    fn string(&mut self, text: &str) {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn key(&mut self, key: &str, kind: u32) {
        self.count += 1;
        self.string(key);
        self.bytes.extend(kind.to_le_bytes());
    }

    fn array(&mut self, key: &str, kind: u32, length: usize) {
        self.key(key, 9);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((length as u64).to_le_bytes());
    }

    fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        self.string(value);
    }

    fn number(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.bytes.extend(value.to_le_bytes());
    }

    fn texts(&mut self, key: &str, values: &[String]) {
        self.array(key, 8, values.len());
        values.iter().for_each(|value| self.string(value));
    }

    /// As 32-bit signed integers.
    fn numbers(&mut self, key: &str, values: &[u32]) {
        self.array(key, 5, values.len());
        values.iter().for_each(|value| self.bytes.extend(value.to_le_bytes()));
    }
}
