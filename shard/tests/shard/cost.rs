//! What parts of a model take.

use brigade_shard::cost::{Room, Widths, workspace_bytes};
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::tensor_type::TensorType;
use brigade_shard::units::Bytes;

use crate::tiny_llama::{self, FEED_FORWARD, HIDDEN, KV, VOCAB};

const ROOM: Room = Room { cache_tokens: 100, context: 50, step_rows: 8, sequences: 2, cache_value_bytes: 2 };

/// Weight bytes of a layer of the tiny model, tensor by tensor.
fn layer_bytes() -> u64 {
    let q4_0 = |values: u64| values / 32 * 18;
    let norms = 2 * HIDDEN * 4;
    let attention = 2 * q4_0(HIDDEN * HIDDEN) + q4_0(HIDDEN * KV) + HIDDEN * KV / 32 * 34;
    let feed_forward = 2 * q4_0(HIDDEN * FEED_FORWARD) + HIDDEN * FEED_FORWARD / 32 * 20;
    norms + attention + feed_forward
}

const EMBEDDING: u64 = HIDDEN * VOCAB / 32 * 34;

fn shard(start: usize, end: usize, layers: usize) -> Shard {
    Shard::of(LayerRange { start, end }, layers)
}

#[test]
fn weights_are_the_files_bytes() {
    let (_, _, table, cost) = tiny_llama::read(&tiny_llama::file(3));
    assert_eq!(cost.weights(&shard(1, 2, 3)), Bytes(layer_bytes()));
    assert_eq!(cost.weights(&shard(0, 2, 3)), Bytes(2 * layer_bytes() + EMBEDDING));
    assert_eq!(cost.weights(&shard(2, 3, 3)), Bytes(layer_bytes() + EMBEDDING + HIDDEN * 4));
    // A tied head shares its matrix with the embedding where both are on one shard.
    assert_eq!(cost.weights(&cost.whole()), Bytes(3 * layer_bytes() + EMBEDDING + HIDDEN * 4));
    for (start, end) in [(0, 1), (0, 3), (1, 3), (2, 3)] {
        let shard = shard(start, end, 3);
        let tensors: Bytes = table.of(&shard).iter().map(|(_, tensor)| tensor.bytes).sum();
        assert_eq!(cost.weights(&shard), tensors, "{shard}");
    }
}

#[test]
fn an_untied_head_and_rope_divisors_count_where_they_are_held() {
    let file = tiny_llama::untied(2).tensor("rope_freqs.weight", &[8], TensorType::F32);
    let (_, _, table, cost) = tiny_llama::read(&file);
    assert_eq!(cost.weights(&cost.whole()), Bytes(2 * layer_bytes() + 2 * EMBEDDING + HIDDEN * 4 + 32));
    for shard in [shard(0, 1, 2), shard(1, 2, 2)] {
        let tensors: Bytes = table.of(&shard).iter().map(|(_, tensor)| tensor.bytes).sum();
        assert_eq!(cost.weights(&shard), tensors, "{shard}");
    }
}

#[test]
fn the_cache_is_whole_pages_of_every_held_layer() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(3));
    // 100 tokens are four pages of 32; a layer keeps 32 keys and 32 values per token.
    assert_eq!(cost.memory(&shard(0, 2, 3), &ROOM).cache, Bytes(2 * 128 * 2 * KV * 2));
    let wide = Room { cache_value_bytes: 4, ..ROOM };
    assert_eq!(cost.memory(&shard(0, 2, 3), &wide).cache, Bytes(2 * 128 * 2 * KV * 4));
}

#[test]
fn the_workspace_is_the_documented_sum() {
    let (_, spec, _, cost) = tiny_llama::read(&tiny_llama::file(3));
    let rows = 8;
    let activations = rows * 4 * (3 * HIDDEN + HIDDEN + KV + KV + HIDDEN + 2 * FEED_FORWARD);
    let quantised = rows * FEED_FORWARD / 32 * 48;
    let scores = 4 * 50 * 4;
    let frames = 2 * rows * HIDDEN * 4;
    let logits = 2 * 16 * VOCAB * 4;
    let middle = activations + quantised + scores + frames;
    assert_eq!(cost.memory(&shard(1, 2, 3), &ROOM).workspace, Bytes(middle));
    assert_eq!(cost.memory(&shard(2, 3, 3), &ROOM).workspace, Bytes(middle + logits));
    assert_eq!(workspace_bytes(&Widths::of(&spec), &ROOM, true), Bytes(middle + logits));
    let memory = cost.memory(&shard(2, 3, 3), &ROOM);
    assert_eq!(memory.total(), memory.weights + memory.cache + memory.workspace);
}

#[test]
fn arithmetic_is_two_operations_per_weight() {
    let (_, _, _, cost) = tiny_llama::read(&tiny_llama::file(1));
    let weights = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV + 3 * HIDDEN * FEED_FORWARD;
    let layer = cost.layers()[0];
    assert_eq!((layer.flops, layer.active), (2 * weights, Bytes(layer_bytes())));
    assert_eq!(layer.cache_values, 2 * KV);
    assert_eq!(cost.head().flops, 2 * HIDDEN * VOCAB);
    assert_eq!(cost.embedding().active, Bytes(HIDDEN / 32 * 34));
}
