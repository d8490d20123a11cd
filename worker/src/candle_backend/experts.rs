//! Products with the experts that routes name.
//!
//! CUDA has a kernel that takes all experts and the list of those wanted. Elsewhere, and for types that it does not know,
//! every expert is a matrix of its own: the rows of each are gathered and multiplied with it. Either way each weight is
//! resident once.

use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result, Tensor};

use super::matrix;
use crate::backend::Routes;

/// The matrices of all experts, `[rows, width]` each.
pub enum ExpertMatrices {
    /// One tensor, `[experts, rows, width]`, for the kernel that finds its way in it.
    Indexed(QTensor),
    /// A tensor for each.
    Separate(Vec<Arc<QTensor>>),
    /// One tensor of floats, `[experts, rows, width]`; an expert is a view of it.
    Float(Tensor),
}

/// Whether the device has a kernel that is told which of the experts in one tensor to take, for their type.
pub(super) fn is_indexed(device: &Device, kind: GgmlDType) -> bool {
    use GgmlDType::{Q2K, Q3K, Q4K, Q5K, Q6K, Q8_0};
    device.is_cuda() && matches!(kind, Q8_0 | Q2K | Q3K | Q4K | Q5K | Q6K)
}

/// Routes on the device.
pub(super) struct Routed {
    /// The expert of each route, `[rows, used]`.
    experts: Tensor,
    /// The row of the input that each route takes, the routes ordered by their expert.
    rows: Tensor,
    /// Where each route has come to by that order.
    places: Tensor,
    /// The routes of each expert that has any, by that order.
    parts: Vec<(usize, Range<usize>)>,
    /// Routes that share a row of the input.
    share: usize,
}

impl Routed {
    /// Takes routes to `device`, where the input has `rows` rows: one for each `share` of them.
    pub(super) fn new(routes: &Routes, rows: usize, device: &Device) -> Result<Routed> {
        let count = routes.experts.len();
        let share = count / rows.max(1);
        let mut order: Vec<u32> = (0..count as u32).collect();
        order.sort_by_key(|&route| routes.experts[route as usize]);
        let mut places = vec![0u32; count];
        let mut parts: Vec<(usize, Range<usize>)> = Vec::new();
        for (place, &route) in order.iter().enumerate() {
            places[route as usize] = place as u32;
            let expert = routes.experts[route as usize] as usize;
            match parts.last_mut().filter(|part| part.0 == expert) {
                Some((_, part)) => part.end = place + 1,
                None => parts.push((expert, place..place + 1)),
            }
        }
        let rows: Vec<u32> = order.iter().map(|route| route / share.max(1) as u32).collect();
        Ok(Routed {
            experts: Tensor::from_slice(
                &routes.experts,
                (count / routes.used.max(1), routes.used.max(1)),
                device,
            )?,
            rows: Tensor::from_vec(rows, count, device)?,
            places: Tensor::from_vec(places, count, device)?,
            parts,
            share,
        })
    }
}

/// Multiplies `input`, a row per token or per route, with each of the matrices: `[routes, outputs]`.
pub(super) fn linear(input: &Tensor, routed: &Routed, all: &[&ExpertMatrices]) -> Result<Vec<Tensor>> {
    let mut products: Vec<Option<Tensor>> = Vec::with_capacity(all.len());
    for matrices in all {
        products.push(match matrices {
            ExpertMatrices::Indexed(tensor) => Some(indexed(input, routed, tensor)?),
            ExpertMatrices::Separate(_) | ExpertMatrices::Float(_) => None,
        });
    }
    let others: Vec<usize> = (0..all.len()).filter(|i| products[*i].is_none()).collect();
    if !others.is_empty() {
        let mut parts: Vec<Vec<Tensor>> = vec![Vec::with_capacity(routed.parts.len()); others.len()];
        for (expert, part) in &routed.parts {
            // Gathered anew, and not a view of all gathered rows: Metal's products do not look where a view begins.
            let input = input.index_select(&routed.rows.narrow(0, part.start, part.len())?, 0)?;
            for (parts, which) in parts.iter_mut().zip(&others) {
                parts.push(multiply(all[*which], *expert, &input)?);
            }
        }
        for (parts, which) in parts.into_iter().zip(others) {
            products[which] = Some(Tensor::cat(&parts, 0)?.index_select(&routed.places, 0)?);
        }
    }
    Ok(products.into_iter().flatten().collect())
}

/// One call for all routes.
fn indexed(input: &Tensor, routed: &Routed, matrices: &QTensor) -> Result<Tensor> {
    let (rows, used) = routed.experts.dims2()?;
    let width = input.dim(1)?;
    // An input has a row per token, for all of its routes, or one per route. It must not be a view: the kernel does not look
    // where one begins.
    let each = if routed.share == 1 { used } else { 1 };
    let input = matrix::whole(&input.reshape((rows, each, width))?)?;
    let product = matrices.indexed_moe_forward(&input, &routed.experts)?;
    let outputs = product.dim(2)?;
    product.reshape((rows * used, outputs))
}

fn multiply(matrices: &ExpertMatrices, expert: usize, input: &Tensor) -> Result<Tensor> {
    match matrices {
        ExpertMatrices::Separate(all) => match all.get(expert) {
            Some(tensor) => matrix::multiply_quantised(tensor, input),
            None => candle_core::bail!("there is no expert {expert}"),
        },
        ExpertMatrices::Float(all) => matrix::multiply_float(&all.get(expert)?, input),
        ExpertMatrices::Indexed(_) => candle_core::bail!("experts of one tensor are multiplied together"),
    }
}

/// Adds up the routes' rows of each token, each times its weight: `[routes, width] -> [tokens, width]`.
pub(super) fn combine(routed: &Tensor, routes: &Routes) -> Result<Tensor> {
    let (count, width) = routed.dims2()?;
    let used = routes.used.max(1);
    let tokens = count / used;
    let weights = Tensor::from_slice(&routes.weights, (tokens, 1, used), routed.device())?;
    weights.matmul(&routed.reshape((tokens, used, width))?)?.reshape((tokens, width))
}

/// Adds to each route's row its expert's part of `biases`, which are `[experts, width]`, one after another.
pub(super) fn add_bias(rows: &Tensor, routes: &Routes, biases: &Tensor) -> Result<Tensor> {
    let width = rows.dim(1)?;
    let biases = biases.reshape((biases.elem_count() / width.max(1), width))?;
    let experts = Tensor::from_slice(&routes.experts, routes.experts.len(), rows.device())?;
    rows + biases.index_select(&experts, 0)?
}
