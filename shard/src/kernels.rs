//! What a device can compute, and what a part of a model needs.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::spec::{Attention, FeedForward, LayerSpec};
use crate::tensor_type::TensorType;

/// A set of things to compute: of those that a device has kernels for, or of those that a part of a model takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernels {
    /// One bit for each type of matrices.
    types: u64,
    experts: bool,
    latent_attention: bool,
}

impl Kernels {
    /// Nothing: what a part without matrices needs.
    pub const NONE: Kernels = Kernels { types: 0, experts: false, latent_attention: false };

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
        Kernels { types, experts: true, latent_attention: true }
    };

    /// What candle computes on CUDA and Metal: dense layers, on matrices of the types that it has quantised products for.
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
        Kernels { types, experts: false, latent_attention: false }
    };

    /// What a layer takes besides products with its matrices.
    pub(crate) fn of_layer(layer: &LayerSpec) -> Kernels {
        Kernels {
            types: 0,
            experts: matches!(layer.feed_forward, FeedForward::Experts(_)),
            latent_attention: matches!(layer.attention, Attention::Latent(_)),
        }
    }

    /// This and products with matrices of that type.
    #[must_use]
    pub fn with(self, kind: TensorType) -> Kernels {
        Kernels { types: self.types | bit(kind), ..self }
    }

    /// What is in either.
    #[must_use]
    pub fn and(self, other: Kernels) -> Kernels {
        Kernels {
            types: self.types | other.types,
            experts: self.experts || other.experts,
            latent_attention: self.latent_attention || other.latent_attention,
        }
    }

    /// Whether there are products with matrices of that type among them.
    pub fn has(self, kind: TensorType) -> bool {
        self.types & bit(kind) != 0
    }

    /// What a device that has these lacks of those `needed`; [`Kernels::NONE`] where it lacks nothing.
    #[must_use]
    pub fn lacking(self, needed: Kernels) -> Kernels {
        Kernels {
            types: needed.types & !self.types,
            experts: needed.experts && !self.experts,
            latent_attention: needed.latent_attention && !self.latent_attention,
        }
    }

    /// Whether a device that has these lacks nothing of those `needed`.
    pub fn can(self, needed: Kernels) -> bool {
        self.lacking(needed) == Kernels::NONE
    }

    fn names(self) -> impl Iterator<Item = &'static str> {
        let types = TensorType::all().filter(move |kind| self.has(*kind)).map(TensorType::name);
        let experts = self.experts.then_some("mixtures of experts");
        let latent = self.latent_attention.then_some("latent attention");
        experts.into_iter().chain(latent).chain(types)
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
        let needed = Kernels { experts: true, ..Kernels::NONE }.with(TensorType::IQ2_S).with(TensorType::Q4K);
        assert_eq!(Kernels::CPU.lacking(needed), Kernels::NONE);
        assert_eq!(Kernels::CANDLE.lacking(needed).to_string(), "mixtures of experts, IQ2_S");
        assert_eq!(Kernels::CANDLE.lacking(Kernels::NONE.with(TensorType::Q4K)), Kernels::NONE);
    }
}
