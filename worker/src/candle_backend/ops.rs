//! What happens to each row alone: norms, rope and gates, in one kernel each where candle has one.

use brigade_shard::spec::{Activation, Norm, RopePairing};
use candle_core::{D, Result, Tensor};

/// Normalises along the last dimension of `x`, `[rows, width]`, with the weights `[width]`.
pub(super) fn norm(norm: Norm, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    match norm {
        Norm::Rms { epsilon } => candle_nn::ops::rms_norm(&x.contiguous()?, weight, epsilon),
        Norm::Layer { .. } => centred(norm, x)?.broadcast_mul(weight),
    }
}

/// Normalises each part of `part` channels, with a weight per channel of a part or of a row.
pub(super) fn norm_parts(kind: Norm, x: &Tensor, part: usize, weight: &Tensor) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let parts = x.reshape((rows * (width / part), part))?;
    if weight.elem_count() == part {
        return norm(kind, &parts, weight)?.reshape((rows, width));
    }
    let normed = match kind {
        Norm::Rms { .. } => {
            let ones = Tensor::ones(part, x.dtype(), x.device())?;
            norm(kind, &parts, &ones)?
        }
        Norm::Layer { .. } => centred(kind, &parts)?,
    };
    normed.reshape((rows, width))?.broadcast_mul(weight)
}

/// The rows normalised without weights, with the mean taken off where the norm says so.
fn centred(norm: Norm, x: &Tensor) -> Result<Tensor> {
    let (x, epsilon) = match norm {
        Norm::Rms { epsilon } => (x.clone(), epsilon),
        Norm::Layer { epsilon } => (x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?, epsilon),
    };
    let root = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(epsilon))?.sqrt()?;
    x.broadcast_div(&root)
}

/// Turns the first channels of each head of `x`, `[rows, width]`, by the angles of its row, `[rows, pairs]`.
pub(super) fn rope(
    x: &Tensor,
    head_width: usize,
    pairing: RopePairing,
    cos: &Tensor,
    sin: &Tensor,
) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let (heads, pairs) = (width / head_width, cos.dim(1)?);
    // A row is a sequence of one position, so that every row has its own angles.
    let x = x.reshape((rows, heads, 1, head_width))?;
    let (cos, sin) = (cos.reshape((rows, 1, pairs))?, sin.reshape((rows, 1, pairs))?);
    let turn = |part: &Tensor| match pairing {
        RopePairing::Adjacent => candle_nn::rotary_emb::rope_i(part, &cos, &sin),
        RopePairing::Halves => candle_nn::rotary_emb::rope(part, &cos, &sin),
    };
    let all = match head_width - 2 * pairs {
        0 => turn(&x.contiguous()?)?,
        rest => {
            let turned = turn(&x.narrow(3, 0, 2 * pairs)?.contiguous()?)?;
            Tensor::cat(&[turned, x.narrow(3, 2 * pairs, rest)?], 3)?
        }
    };
    all.reshape((rows, width))
}

/// The gate with `activation`, times what it gates.
pub(super) fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Silu => gate.silu()? * up,
        Activation::Gelu => gate.gelu()? * up,
        Activation::ClampedSwish => {
            let gate = gate.minimum(7.0)?;
            let divisor = ((&gate * -1.702)?.exp()? + 1.0)?;
            (gate / divisor)? * (up.clamp(-7.0, 7.0)? + 1.0)?
        }
    }
}
