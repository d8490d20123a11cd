//! The element types of GGUF tensors, and how many bytes they take.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::units::Bytes;

/// How a tensor stores its values: blocks of [`block_values`](TensorType::block_values) neighbours along the first
/// dimension, each of [`block_bytes`](TensorType::block_bytes).
///
/// The numbers and sizes are those of the `ggml_type` enumeration and its block structures (ggml's `ggml.h` and
/// `ggml-common.h`). A type listed here can be measured and planned for; whether a device has kernels for it is the
/// worker's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(non_camel_case_types, reason = "these are the format's own names")]
#[expect(missing_docs, reason = "each variant is the ggml type of that name")]
pub enum TensorType {
    F32,
    F16,
    BF16,
    F64,
    I8,
    I16,
    I32,
    I64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    MXFP4,
}

/// One row per type: type, ggml number, name, values in a block, bytes of a block.
const TABLE: [(TensorType, u32, &str, u64, u64); 32] = {
    use TensorType::*;
    [
        (F32, 0, "F32", 1, 4),
        (F16, 1, "F16", 1, 2),
        (Q4_0, 2, "Q4_0", 32, 18),
        (Q4_1, 3, "Q4_1", 32, 20),
        (Q5_0, 6, "Q5_0", 32, 22),
        (Q5_1, 7, "Q5_1", 32, 24),
        (Q8_0, 8, "Q8_0", 32, 34),
        (Q8_1, 9, "Q8_1", 32, 36),
        (Q2K, 10, "Q2_K", 256, 84),
        (Q3K, 11, "Q3_K", 256, 110),
        (Q4K, 12, "Q4_K", 256, 144),
        (Q5K, 13, "Q5_K", 256, 176),
        (Q6K, 14, "Q6_K", 256, 210),
        (Q8K, 15, "Q8_K", 256, 292),
        (IQ2_XXS, 16, "IQ2_XXS", 256, 66),
        (IQ2_XS, 17, "IQ2_XS", 256, 74),
        (IQ3_XXS, 18, "IQ3_XXS", 256, 98),
        (IQ1_S, 19, "IQ1_S", 256, 50),
        (IQ4_NL, 20, "IQ4_NL", 32, 18),
        (IQ3_S, 21, "IQ3_S", 256, 110),
        (IQ2_S, 22, "IQ2_S", 256, 82),
        (IQ4_XS, 23, "IQ4_XS", 256, 136),
        (I8, 24, "I8", 1, 1),
        (I16, 25, "I16", 1, 2),
        (I32, 26, "I32", 1, 4),
        (I64, 27, "I64", 1, 8),
        (F64, 28, "F64", 1, 8),
        (IQ1_M, 29, "IQ1_M", 256, 56),
        (BF16, 30, "BF16", 1, 2),
        (TQ1_0, 34, "TQ1_0", 256, 54),
        (TQ2_0, 35, "TQ2_0", 256, 66),
        (MXFP4, 39, "MXFP4", 32, 17),
    ]
};

impl TensorType {
    /// Every type.
    pub fn all() -> impl Iterator<Item = TensorType> {
        TABLE.iter().map(|row| row.0)
    }

    /// The type with this `ggml_type` number; `None` where the number is unknown or no longer in use.
    pub fn from_ggml(number: u32) -> Option<TensorType> {
        TABLE.iter().find(|row| row.1 == number).map(|row| row.0)
    }

    /// The type with this name, as [`name`](TensorType::name) gives it.
    pub fn from_name(name: &str) -> Option<TensorType> {
        TABLE.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    /// The type's `ggml_type` number.
    pub fn to_ggml(self) -> u32 {
        self.row().1
    }

    /// The name that ggml gives it, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// How many neighbouring values share a block.
    pub fn block_values(self) -> u64 {
        self.row().3
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> u64 {
        self.row().4
    }

    /// Bytes of `values` values; `None` where they do not fill whole blocks or the product overflows.
    pub fn bytes_of(self, values: u64) -> Option<Bytes> {
        let (_, _, _, block_values, block_bytes) = *self.row();
        if !values.is_multiple_of(block_values) {
            return None;
        }
        (values / block_values).checked_mul(block_bytes).map(Bytes)
    }

    /// Whether one value stands by itself, as a floating-point number of 2 or 4 bytes.
    pub fn is_plain_float(self) -> bool {
        matches!(self, TensorType::F32 | TensorType::F16 | TensorType::BF16)
    }

    /// Whether values are packed into blocks with shared scales.
    pub fn is_quantised(self) -> bool {
        self.block_values() > 1
    }

    /// The type that rows of `width` values of this one can be turned into for a device that has kernels for ggml's older types,
    /// and none for the codebooks that came after them; `None` where this is an older one, or rows are no whole blocks.
    ///
    /// Weights that were rounded to a codebook of 4, 3 or 2 bits are off by some 7, 13 or 25% of their size. Rounding them
    /// again to Q6_K, Q5_K or Q4_K is off by 1.6, 3 or 6%, so that both together are off by 3% more than before. MXFP4 and the
    /// ternary types are what models are trained in: there is no rounding to hide in, and Q8_0 is off by half a percent at most.
    /// So is it where rows are no whole blocks of 256.
    pub fn stand_in(self, width: u64) -> Option<TensorType> {
        use TensorType::*;
        let wanted = match self {
            MXFP4 | TQ1_0 | TQ2_0 => Q8_0,
            IQ4_NL | IQ4_XS => Q6K,
            IQ3_XXS | IQ3_S => Q5K,
            IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S => Q4K,
            _ => return None,
        };
        [wanted, Q8_0].into_iter().find(|kind| width > 0 && width.is_multiple_of(kind.block_values()))
    }

    fn row(self) -> &'static (TensorType, u32, &'static str, u64, u64) {
        // The table has a row for every variant: the test below walks both.
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&TABLE[0])
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// By its name in ggml, such as `Q4_K`.
impl Serialize for TensorType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for TensorType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TensorType, D::Error> {
        let name = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        TensorType::from_name(&name).ok_or_else(|| {
            serde::de::Error::custom(format_args!(
                "`{name}` is no type of tensors: write it as ggml does, such as Q4_K"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_finds_its_own_row() {
        for (kind, number, name, block_values, block_bytes) in TABLE {
            assert_eq!(TensorType::from_ggml(number), Some(kind));
            assert_eq!((kind.to_ggml(), kind.name()), (number, name));
            assert_eq!(TensorType::from_name(name), Some(kind));
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{name}\""));
            assert_eq!(serde_json::from_str::<TensorType>(&format!("\"{name}\"")).unwrap(), kind);
            assert_eq!((kind.block_values(), kind.block_bytes()), (block_values, block_bytes));
        }
        for retired in [4, 5, 31, 32, 33, 36, 37, 38, 1 << 30] {
            assert_eq!(TensorType::from_ggml(retired), None, "{retired}");
        }
        assert!(serde_json::from_str::<TensorType>("\"Q4K\"").is_err());
    }

    #[test]
    fn sizes_are_whole_blocks_and_checked() {
        assert_eq!(TensorType::Q4K.bytes_of(512), Some(Bytes(288)));
        assert_eq!(TensorType::Q4K.bytes_of(100), None);
        assert_eq!(TensorType::F32.bytes_of(0), Some(Bytes(0)));
        assert_eq!(TensorType::F64.bytes_of(u64::MAX), None);
    }
}
