//! A model that is nothing but numbers: what a layer makes of a token depends on all tokens before it, as attention does,
//! so that a cache which lacks something, or holds something else, shows in every token after it.

use brigade_proto::sampling::Sampling;
use brigade_proto::step::TokenScore;
use brigade_shard::cost::{PAGE_TOKENS, StageBytes};
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::plan::{Optimality, Plan, PlanDevice, PlannedStage, Prediction};
use brigade_shard::units::Bytes;

use super::random::mix;

/// Layers of the model.
pub const LAYERS: usize = 6;
/// Token ids of the model.
pub const VOCABULARY: u64 = 40;
/// The token that ends answers which do not ignore it.
pub const END: u32 = 0;
/// Memory of a layer.
const LAYER: Bytes = Bytes::mib(10);
/// Longest sequence of a plan, in tokens.
const CONTEXT: u32 = 256;
/// Cache of a plan, in tokens.
const CACHE_TOKENS: u32 = 16 * PAGE_TOKENS;

/// What goes into the first layer.
pub fn embed(token: u32) -> u64 {
    mix(u64::from(token) + 1)
}

/// What a layer keeps of a position, and passes on: `before` is what it kept of the one before, 0 for the first.
pub fn layer(layer: usize, before: u64, input: u64) -> u64 {
    mix(before.rotate_left(17) ^ input ^ (layer as u64 + 1).wrapping_mul(0x2545_F491_4F6C_DD1D))
}

/// The token drawn at `position`, after what the last layer made of the one before.
pub fn draw(hidden: u64, sampling: &Sampling, position: usize) -> u32 {
    // Every third seed says things over and over, so that guesses come true.
    let hidden = if sampling.seed.is_multiple_of(3) { hidden % 2 } else { hidden };
    let place = if sampling.seed.is_multiple_of(3) { position % 7 } else { position };
    (mix(hidden ^ mix(sampling.seed ^ (place as u64) << 32)) % VOCABULARY) as u32
}

/// The score of a token after what the last layer made of the one before.
pub fn score(hidden: u64, token: u32) -> TokenScore {
    TokenScore { token, logprob: -((mix(hidden ^ u64::from(token)) % 1000) as f32) / 100.0, top: Vec::new() }
}

/// The answer to a prompt, and the scores of the prompt, without any machine between.
pub fn answer(prompt: &[u32], sampling: &Sampling, max_tokens: usize) -> (Vec<u32>, Vec<TokenScore>) {
    let mut kept = [0; LAYERS];
    let mut forward = |token: u32| {
        let mut hidden = embed(token);
        for (index, before) in kept.iter_mut().enumerate() {
            hidden = layer(index, *before, hidden);
            *before = hidden;
        }
        hidden
    };
    let mut scores = Vec::new();
    let mut hidden = 0;
    for (position, token) in prompt.iter().enumerate() {
        if position > 0 {
            scores.push(score(hidden, *token));
        }
        hidden = forward(*token);
    }
    let mut tokens = Vec::new();
    while tokens.len() < max_tokens {
        let token = draw(hidden, sampling, prompt.len() + tokens.len());
        tokens.push(token);
        if sampling.end_ids.contains(&token) {
            break;
        }
        hidden = forward(token);
    }
    (tokens, scores)
}

/// What a shard takes.
pub fn memory(shard: &Shard) -> StageBytes {
    let weights = Bytes(LAYER.0 * shard.layers.len() as u64);
    StageBytes { weights, cache: Bytes::mib(1), workspace: Bytes::mib(1) }
}

/// Even shards over as many devices as can have one, in an order that keeps those apart who cannot be neighbours.
///
/// # Errors
/// How much memory is missing.
pub fn plan(devices: &[PlanDevice], min_stages: usize, apart: &[(usize, usize)]) -> Result<Plan, String> {
    let most = devices.len().min(LAYERS);
    for stages in (min_stages.min(most).max(1)..=most).rev() {
        let shards: Vec<Shard> = (0..stages)
            .map(|stage| {
                let (start, end) = (stage * LAYERS / stages, (stage + 1) * LAYERS / stages);
                Shard::of(LayerRange { start, end }, LAYERS)
            })
            .collect();
        let mut order = Vec::new();
        if place(devices, &shards, apart, &mut order) {
            return Ok(made(&order, &shards));
        }
    }
    let offered: Bytes = devices.iter().map(|device| device.budget).sum();
    Err(format!("{} of {} are there, and that is too little", offered, Bytes(LAYER.0 * LAYERS as u64)))
}

/// Finds a device for each shard after those of `order`.
fn place(devices: &[PlanDevice], shards: &[Shard], apart: &[(usize, usize)], order: &mut Vec<usize>) -> bool {
    let Some(shard) = shards.get(order.len()) else {
        return true;
    };
    for device in 0..devices.len() {
        let before = order.last().copied();
        let is_apart = before.is_some_and(|b| apart.contains(&(b, device)) || apart.contains(&(device, b)));
        if order.contains(&device) || is_apart || memory(shard).total() > devices[device].budget {
            continue;
        }
        order.push(device);
        if place(devices, shards, apart, order) {
            return true;
        }
        order.pop();
    }
    false
}

fn made(order: &[usize], shards: &[Shard]) -> Plan {
    let stage = |(device, shard): (&usize, &Shard)| PlannedStage {
        device: *device,
        shard: *shard,
        memory: memory(shard),
        streamed_layers: 0,
        decode_ms: shard.layers.len() as f64,
        prefill_ms_per_token: 0.2 * shard.layers.len() as f64,
    };
    Plan {
        stages: order.iter().zip(shards).map(stage).collect(),
        context: CONTEXT,
        cache_tokens: CACHE_TOKENS,
        predicted: Prediction {
            decode_tokens_per_s: 1.0,
            ttft_ms: 1.0,
            // Every stage counts, so that workers which join make plans better.
            throughput_tokens_per_s: order.len() as f64,
        },
        optimality: Optimality::Exact,
        bottleneck: String::new(),
        unused: Vec::new(),
        notes: Vec::new(),
    }
}
