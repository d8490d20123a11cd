//! What a device can compute, and what a part of a model needs.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::tensor_type::TensorType;

/// Types of matrices: those that a device has products for, or those that a part of a model has. All else that layers are
/// composed from runs on every device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernels {
    /// One bit for each type of matrices.
    types: u64,
    /// The same for types that a device turns into others while it reads them; of a part of a model, none.
    #[serde(default)]
    converted: u64,
}

impl Kernels {
    /// Nothing: what a part without matrices needs.
    pub const NONE: Kernels = Kernels { types: 0, converted: 0 };

    /// What a processor computes: every part, on matrices of every type that models are distributed in.
    pub const CPU: Kernels = {
        use TensorType::*;
        let types = Kernels::CANDLE.types
            | bit(IQ1_S)
            | bit(IQ1_M)
            | bit(IQ2_XXS)
            | bit(IQ2_XS)
            | bit(IQ2_S)
            | bit(IQ3_XXS)
            | bit(IQ3_S)
            | bit(IQ4_NL)
            | bit(IQ4_XS)
            | bit(MXFP4)
            | bit(TQ1_0)
            | bit(TQ2_0);
        Kernels { types, converted: 0 }
    };

    /// What candle computes on CUDA and Metal: every part, on matrices of the types that it has quantised products for.
    pub const CANDLE: Kernels = {
        use TensorType::*;
        let types = bit(F32)
            | bit(F16)
            | bit(BF16)
            | bit(Q4_0)
            | bit(Q4_1)
            | bit(Q5_0)
            | bit(Q5_1)
            | bit(Q8_0)
            | bit(Q2K)
            | bit(Q3K)
            | bit(Q4K)
            | bit(Q5K)
            | bit(Q6K);
        Kernels { types, converted: 0 }
    };

    /// This and products with matrices of that type.
    #[must_use]
    pub fn with(self, kind: TensorType) -> Kernels {
        Kernels { types: self.types | bit(kind), ..self }
    }

    /// What is in either.
    #[must_use]
    pub fn and(self, other: Kernels) -> Kernels {
        Kernels { types: self.types | other.types, converted: self.converted | other.converted }
    }

    /// Those of a device that turns matrices of all other types into such as it has products for. What it holds of these takes
    /// more memory than in its file.
    #[must_use]
    pub fn converting(self) -> Kernels {
        Kernels { converted: Kernels::CPU.types & !self.types, ..self }
    }

    /// Whether matrices of some types are turned into others.
    pub(crate) fn converts(self) -> bool {
        self.converted != 0
    }

    /// Whether there are products with matrices of that type among them, as they lie in their file.
    pub fn has(self, kind: TensorType) -> bool {
        self.types & bit(kind) != 0
    }

    /// What a device that has these lacks of those `needed`; [`Kernels::NONE`] where it lacks nothing.
    #[must_use]
    pub fn lacking(self, needed: Kernels) -> Kernels {
        Kernels { types: needed.types & !self.types & !self.converted, converted: 0 }
    }

    /// Whether a device that has these lacks nothing of those `needed`.
    pub fn can(self, needed: Kernels) -> bool {
        self.lacking(needed) == Kernels::NONE
    }

    fn names(self) -> impl Iterator<Item = &'static str> {
        TensorType::all().filter(move |kind| self.has(*kind)).map(TensorType::name)
    }
}

impl fmt::Display for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.names().collect();
        f.write_str(&names.join(", "))
    }
}

/// The bit of a type, of which there are fewer than 64.
const fn bit(kind: TensorType) -> u64 {
    1 << kind as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_named() {
        let needed = Kernels::NONE.with(TensorType::IQ2_S).with(TensorType::Q4K).with(TensorType::MXFP4);
        assert_eq!(Kernels::CPU.lacking(needed), Kernels::NONE);
        assert_eq!(Kernels::CANDLE.lacking(needed).to_string(), "IQ2_S, MXFP4");
        let converting = Kernels::CANDLE.converting();
        assert!(
            converting.can(needed) && !converting.has(TensorType::MXFP4) && converting.has(TensorType::Q4K)
        );
        assert_eq!(converting.lacking(needed.with(TensorType::I8)).to_string(), "I8");
        assert_eq!(Kernels::CANDLE.lacking(Kernels::NONE.with(TensorType::Q4K)), Kernels::NONE);
    }
}
