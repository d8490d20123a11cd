"""What DeepSeek's models have that others do not: latent attention, sigmoid routers with groups, shared experts."""

import gguf
import numpy as np

SOFTMAX, SIGMOID = gguf.ExpertGatingFuncType.SOFTMAX, gguf.ExpertGatingFuncType.SIGMOID
# `head` is a query head's width: plain channels and then `turned` ones; `rank` is the latent vector's.
COMMON = {
    "hidden": 96, "heads": 5, "kv_heads": 5, "head": 48, "turned": 16, "value": 64, "rank": 96, "ffn": 160, "dense": 1,
    "experts": 9, "used": 3, "expert_ffn": 64, "shared": 2, "split": False, "gating": None, "bias": False, "groups": None, "norm": None,
}  # fmt: skip
# llama.cpp asks for a query rank unless there are 26 layers.
SIZES = {
    "deepseek-v2-lite": {
        **COMMON, "layers": 26, "hidden": 64, "heads": 3, "kv_heads": 3, "rank": 64, "value": 32, "ffn": 96, "experts": 5, "used": 2,
        "expert_ffn": 32, "shared": 3, "scale": 1.0,
    },
    "deepseek-v2": {**COMMON, "layers": 3, "query_rank": 64, "scale": 1.5, "groups": (3, 2), "multiplier": 0.707},
    "deepseek-v3": {
        **COMMON, "layers": 3, "query_rank": 64, "scale": 2.5, "groups": (3, 2), "multiplier": 1.0, "norm": True, "gating": SIGMOID,
        "bias": True, "split": True,
    },
}  # fmt: skip


def add_hyper_parameters(writer, sizes, yarn):
    """All but what every family has."""
    rank, turned, layers = sizes["rank"], sizes["turned"], sizes["layers"]
    writer.add_kv_lora_rank(rank)
    if "query_rank" in sizes:
        writer.add_q_lora_rank(sizes["query_rank"])
    writer.add_head_count_kv(1 if sizes["split"] else sizes["heads"])
    writer.add_key_length(rank + turned if sizes["split"] else sizes["head"])
    writer.add_value_length(rank if sizes["split"] else sizes["value"])
    if sizes["split"]:
        writer.add_key_length_mla(sizes["head"])
        writer.add_value_length_mla(sizes["value"])
    writer.add_rope_dimension_count(turned)
    if yarn:
        writer.add_rope_scaling_yarn_log_mul(0.1 * sizes["multiplier"])
    add_expert_parameters(writer, sizes)


def add_expert_parameters(writer, sizes):
    """Those of experts beside a shared one, after some dense layers."""
    writer.add_leading_dense_block_count(sizes["dense"])
    writer.add_expert_shared_count(sizes["shared"])
    writer.add_expert_weights_scale(sizes["scale"])
    if sizes["norm"] is not None:
        writer.add_expert_weights_norm(sizes["norm"])
    if sizes["gating"]:
        writer.add_expert_gating_func(sizes["gating"])
    if sizes["groups"]:
        writer.add_expert_group_count(sizes["groups"][0])
        writer.add_expert_group_used_count(sizes["groups"][1])
    if sizes.get("further"):
        writer.add_nextn_predict_layers(sizes["further"])


def add_attention(tensors, block, sizes, depth):
    hidden, heads, head, rank, value = (sizes[key] for key in ("hidden", "heads", "head", "rank", "value"))
    turned, stream = sizes["turned"], tensors.stream
    if "query_rank" in sizes:
        width = sizes["query_rank"]
        tensors.matrix(block + "attn_q_a.weight", width, hidden, 1.0 / np.sqrt(hidden))
        tensors.vector(block + "attn_q_a_norm.weight", stream.between((width,), 0.7, 1.3))
        tensors.matrix(block + "attn_q_b.weight", heads * head, width, 1.4 / np.sqrt(width))
    else:
        tensors.matrix(block + "attn_q.weight", heads * head, hidden, 1.4 / np.sqrt(hidden))
    tensors.matrix(block + "attn_kv_a_mqa.weight", rank + turned, hidden, 1.2 / np.sqrt(hidden))
    tensors.vector(block + "attn_kv_a_norm.weight", stream.between((rank,), 0.7, 1.3))
    plain = head - turned
    both = stream.bell((heads, plain + value, rank), 1.0 / np.sqrt(rank))
    if sizes["split"]:
        tensors.given(block + "attn_k_b.weight", np.ascontiguousarray(both[:, :plain].transpose(0, 2, 1)))
        tensors.given(block + "attn_v_b.weight", np.ascontiguousarray(both[:, plain:]))
    else:
        tensors.given(block + "attn_kv_b.weight", both.reshape(heads * (plain + value), rank))
    tensors.matrix(block + "attn_output.weight", hidden, heads * value, depth / np.sqrt(heads * value))


def add_shared_expert(tensors, block, sizes, depth):
    hidden, width = sizes["hidden"], sizes["shared"] * sizes["expert_ffn"]
    if sizes["bias"]:
        tensors.vector(block + "exp_probs_b.bias", tensors.stream.between((sizes["experts"],), -0.2, 0.2))
    tensors.matrix(block + "ffn_gate_shexp.weight", width, hidden, 1.4 / np.sqrt(hidden))
    tensors.matrix(block + "ffn_up_shexp.weight", width, hidden, 1.0 / np.sqrt(hidden))
    tensors.matrix(block + "ffn_down_shexp.weight", hidden, width, depth / np.sqrt(width))


def add_further_prediction(tensors, block, hidden):
    """What a layer that predicts a token beyond the next has besides."""
    tensors.matrix(block + "nextn.eh_proj.weight", hidden, 2 * hidden, 1.0 / np.sqrt(hidden))
    for norm in ("enorm", "hnorm", "shared_head_norm"):
        tensors.vector(block + f"nextn.{norm}.weight", tensors.stream.between((hidden,), 0.7, 1.3))
