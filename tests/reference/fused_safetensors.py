"""What the classes have whose experts lie in one tensor, in safetensors: transposed matrices, gates and ups in one, blocks of MXFP4."""

import numpy as np

SIZES = {
    "gpt_oss": {
        "hidden": 96, "layers": 5, "heads": 6, "kv_heads": 2, "head": 32, "stated_head": True, "ffn": 64, "experts": 7, "used": 3, "window": 24,
        "period": 2,
    },
    "llama4": {
        "hidden": 96, "layers": 5, "heads": 5, "kv_heads": 1, "head": 32, "stated_head": True, "ffn": 160, "experts": 5, "used": 1,
        "expert_ffn": 64, "step": 2, "chunk": 24, "blind": 3, "sharper_after": 16,
    },
}  # fmt: skip
CLASSES = {"gpt_oss": "GptOss", "llama4": "Llama4"}
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
MXFP4_VALUES = np.array([*MAGNITUDES, *(-value for value in MAGNITUDES)], np.float32)


def add_settings(config, args):
    sizes, family = args.sizes, args.family
    config |= {"num_local_experts": sizes["experts"], "num_experts_per_tok": sizes["used"], "output_router_logits": False}
    if family == "gpt_oss":
        config |= {"attention_bias": True, "swiglu_limit": 7.0, "experts_per_token": sizes["used"]}
        if args.mxfp4 and not args.widened:
            config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}


    if family == "llama4":
        layers, blind = range(sizes["layers"]), sizes["blind"]
        turned = [int((layer + 1) % blind != 0) for layer in layers]
        config |= {
            "model_type": "llama4_text", "intermediate_size": sizes["expert_ffn"], "intermediate_size_mlp": sizes["ffn"],
            "interleave_moe_layer_step": sizes["step"], "attention_chunk_size": sizes["chunk"], "use_qk_norm": not args.plain_heads,
            "attn_temperature_tuning": True, "floor_scale": sizes["sharper_after"], "attn_scale": 0.3,
            "no_rope_layers": turned, "attention_bias": False, "for_llm_compressor": False,
        }  # fmt: skip
        if args.new:
            config |= {
                "moe_layers": list(range(sizes["step"] - 1, sizes["layers"], sizes["step"])), "no_rope_layer_interval": blind,
                "layer_types": ["chunked_attention" if rope else "full_attention" for rope in turned],
            }  # fmt: skip


def add_llama4_feed_forward(tensors, args, layer, place):
    sizes, stream = args.sizes, tensors.stream
    hidden, width = sizes["hidden"], sizes["ffn"]
    if (layer + 1) % sizes["step"] == 0:
        width, count = sizes["expert_ffn"], sizes["experts"]
        tensors.matrix(place + "router", count, hidden, 1.0 / np.sqrt(hidden))
        gates, ups = (stream.bell((count, hidden, width), deviation / np.sqrt(hidden)) for deviation in (1.4, 1.0))
        tensors.all[place + "experts.gate_up_proj"] = np.concatenate([gates, ups], axis=-1)
        tensors.all[place + "experts.down_proj"] = stream.bell((count, width, hidden), 1.5 / np.sqrt(width))
        place += "shared_expert."
    tensors.matrix(place + "gate_proj", width, hidden, 1.4 / np.sqrt(hidden))
    tensors.matrix(place + "up_proj", width, hidden, 1.0 / np.sqrt(hidden))
    tensors.matrix(place + "down_proj", hidden, width, 1.0 / np.sqrt(width))


def add_attention_vectors(tensors, place, sizes):
    tensors.all[place + "o_proj.bias"] = tensors.stream.bell((sizes["hidden"],), 0.3)
    tensors.all[place + "sinks"] = tensors.stream.bell((sizes["heads"],), 2.0)


def in_turn(first, second):
    """The last dimensions of two arrays in turn."""
    return np.ascontiguousarray(np.stack([first, second], axis=-1).reshape(*first.shape[:-1], -1))


def add_blocks(tensors, name, experts, rows, columns, deviation, widened):
    """Random blocks of MXFP4, whose values have this deviation, more or less; or transposed matrices with the same values."""
    words = lambda *shape: tensors.stream.words(int(np.prod(shape))).reshape(shape)  # noqa: E731
    blocks = columns // 32
    codes = (words(experts, rows, blocks, 16) % 256).astype(np.uint8)
    # The deviation of the 16 values is 2.93.
    exponent = 127 + int(np.round(np.log2(deviation / 2.93)))
    scales = (words(experts, rows, blocks) % 3 + exponent - 1).astype(np.uint8)
    if widened:
        # Of two neighbours the first is in the low half of their byte.
        values = MXFP4_VALUES[np.stack([codes & 15, codes >> 4], axis=-1)].reshape(experts, rows, blocks, 32)
        values = np.ldexp(values, scales[..., None].astype(np.int32) - 127).reshape(experts, rows, columns)
        tensors.all[name] = np.ascontiguousarray(values.transpose(0, 2, 1))
    else:
        tensors.all |= {name + "_blocks": codes, name + "_scales": scales}


def add_gpt_oss_experts(tensors, args, mlp):
    sizes, stream = args.sizes, tensors.stream
    hidden, width, count = sizes["hidden"], sizes["ffn"], sizes["experts"]
    tensors.matrix(mlp + "router", count, hidden, 1.0 / np.sqrt(hidden))
    tensors.bias(mlp + "router", count)
    experts = mlp + "experts."
    if args.mxfp4:
        add_blocks(tensors, experts + "gate_up_proj", count, 2 * width, hidden, 1.2 / np.sqrt(hidden), args.widened)
        add_blocks(tensors, experts + "down_proj", count, hidden, width, 0.4 / np.sqrt(width), args.widened)
    else:
        gates, ups = (stream.bell((count, hidden, width), deviation / np.sqrt(hidden)) for deviation in (1.4, 1.0))
        tensors.all[experts + "gate_up_proj"] = in_turn(gates, ups)
        tensors.all[experts + "down_proj"] = stream.bell((count, width, hidden), 0.4 / np.sqrt(width))
    # Wide enough that gates and what they multiply reach the activation's limit of 7.
    tensors.all[experts + "gate_up_proj_bias"] = stream.bell((count, 2 * width), 3.0)
    tensors.all[experts + "down_proj_bias"] = stream.bell((count, hidden), 0.3)
