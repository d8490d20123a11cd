//! Writing a GGUF file (version 3) of a few tensors.

use std::io;
use std::path::Path;

use brigade_shard::tensor_type::TensorType;

/// Tensors begin at multiples of so many bytes, which is what GGUF says unless a file says otherwise.
const ALIGNMENT: usize = 32;

/// What a key stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GgufValue {
    /// A string.
    Text(&'static str),
    /// An unsigned number of 32 bits.
    Count(u32),
    /// A float of 32 bits.
    Number(f32),
    /// True or false.
    Flag(bool),
}

/// A tensor with its bytes.
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Its dimensions in ggml's order: `[inputs, outputs]`.
    pub dims: Vec<u64>,
    /// How values are stored.
    pub kind: TensorType,
    /// All blocks.
    pub bytes: Vec<u8>,
}

/// A file that is to be.
#[derive(Default)]
pub struct GgufFile {
    /// Metadata by full keys, such as `llama.block_count`.
    pub keys: Vec<(String, GgufValue)>,
    /// Tensors in the order in which they lie.
    pub tensors: Vec<GgufTensor>,
}

impl GgufFile {
    /// Writes the file, over one that is there.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            text(&mut file, key);
            match value {
                GgufValue::Count(count) => {
                    file.extend(4u32.to_le_bytes());
                    file.extend(count.to_le_bytes());
                }
                GgufValue::Number(number) => {
                    file.extend(6u32.to_le_bytes());
                    file.extend(number.to_le_bytes());
                }
                GgufValue::Flag(flag) => {
                    file.extend(7u32.to_le_bytes());
                    file.push(u8::from(*flag));
                }
                GgufValue::Text(words) => {
                    file.extend(8u32.to_le_bytes());
                    text(&mut file, words);
                }
            }
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            text(&mut file, &tensor.name);
            file.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
            file.extend(tensor.kind.to_ggml().to_le_bytes());
            file.extend((offset as u64).to_le_bytes());
            offset += tensor.bytes.len().next_multiple_of(ALIGNMENT);
        }
        for tensor in &self.tensors {
            file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
            file.extend(&tensor.bytes);
        }
        std::fs::write(path, file)
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
