"""What the classes with DeepSeek's experts have that others do not, in safetensors: latent attention, routers, shared experts."""

import numpy as np

EXPERTS = {"dense": 1, "experts": 9, "used": 3, "expert_ffn": 64}
# `head` is a query head's width: plain channels and then `turned` ones; `rank` is the latent vector's.
LATENT = {"hidden": 96, "layers": 3, "head": 40, "turned": 16, "value": 56, "rank": 88, "query_rank": 64, "ffn": 160, **EXPERTS}
SIZES = {
    # transformers want heads that divide the hidden width here.
    "deepseek_v2": {**LATENT, "heads": 3, "kv_heads": 3, "shared": 2, "scale": 1.5, "groups": (3, 2)},
    "deepseek_v3": {**LATENT, "heads": 5, "kv_heads": 5, "shared": 1, "scale": 2.5, "groups": (3, 2), "bias": True},
    "glm4_moe": {
        "hidden": 96, "layers": 3, "heads": 5, "kv_heads": 1, "head": 32, "stated_head": True, "ffn": 160, **EXPERTS, "shared": 1,
        "scale": 1.8, "groups": (1, 1), "bias": True,
    },
}  # fmt: skip
CLASSES = {"deepseek_v2": "DeepseekV2", "deepseek_v3": "DeepseekV3", "glm4_moe": "Glm4Moe"}


def add_settings(config, args):
    sizes, family = args.sizes, args.family
    config |= {
        "first_k_dense_replace": sizes["dense"], "n_routed_experts": sizes["experts"], "num_experts_per_tok": sizes["used"],
        "n_shared_experts": sizes["shared"], "moe_intermediate_size": sizes["expert_ffn"], "routed_scaling_factor": sizes["scale"],
        "n_group": sizes["groups"][0], "topk_group": sizes["groups"][1], "norm_topk_prob": family != "deepseek_v2",
        "attention_bias": args.biases,
    }  # fmt: skip
    if family == "glm4_moe":
        config |= {"partial_rotary_factor": 0.5, "use_qk_norm": args.head_norms}
    else:
        config |= {
            "kv_lora_rank": sizes["rank"], "q_lora_rank": sizes["query_rank"], "qk_nope_head_dim": sizes["head"] - sizes["turned"],
            "qk_rope_head_dim": sizes["turned"], "v_head_dim": sizes["value"], "moe_layer_freq": 1, "ep_size": 1,
            # Large, so that it shows where it must not be used: the norms within attention have an epsilon of their own.
            "rms_norm_eps": 1e-2,
        }  # fmt: skip
    if family == "deepseek_v2":
        method = "group_limited_greedy" if sizes["groups"][0] > 1 else "greedy"
        config |= {"topk_method": method, "scoring_func": "softmax", "aux_loss_alpha": 0.001, "seq_aux": True}
    else:
        config["num_nextn_predict_layers"] = args.further
    if family == "deepseek_v3":
        config |= {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
        if args.new:
            config |= {"rope_interleave": not args.halves, "qk_head_dim": sizes["head"], "head_dim": sizes["turned"]}


def add_latent_attention(tensors, place, sizes):
    hidden, heads, head, rank = (sizes[key] for key in ("hidden", "heads", "head", "rank"))
    if sizes["query_rank"]:
        width = sizes["query_rank"]
        tensors.matrix(place + "q_a_proj", width, hidden, 1.0 / np.sqrt(hidden))
        tensors.norm(place + "q_a_layernorm", (width,))
        tensors.matrix(place + "q_b_proj", heads * head, width, 1.4 / np.sqrt(width))
    else:
        tensors.matrix(place + "q_proj", heads * head, hidden, 1.4 / np.sqrt(hidden))
    tensors.matrix(place + "kv_a_proj_with_mqa", rank + sizes["turned"], hidden, 1.2 / np.sqrt(hidden))
    tensors.norm(place + "kv_a_layernorm", (rank,))
    tensors.matrix(place + "kv_b_proj", heads * (head - sizes["turned"] + sizes["value"]), rank, 1.0 / np.sqrt(rank))


def add_shared_expert(tensors, mlp, sizes):
    hidden, width = sizes["hidden"], sizes["shared"] * sizes["expert_ffn"]
    if sizes.get("bias"):
        tensors.all[mlp + "gate.e_score_correction_bias"] = tensors.stream.between((sizes["experts"],), -0.2, 0.2)
    tensors.matrix(mlp + "shared_experts.gate_proj", width, hidden, 1.4 / np.sqrt(hidden))
    tensors.matrix(mlp + "shared_experts.up_proj", width, hidden, 1.0 / np.sqrt(hidden))
    tensors.matrix(mlp + "shared_experts.down_proj", hidden, width, 1.0 / np.sqrt(width))


def add_further_prediction(tensors, block, hidden):
    """What a layer that predicts a token beyond the next has besides; its own copies of both ends are left out."""
    tensors.matrix(block + "eh_proj", hidden, 2 * hidden, 1.0 / np.sqrt(hidden))
    for norm in ("enorm", "hnorm", "shared_head.norm"):
        tensors.norm(block + norm, (hidden,))
