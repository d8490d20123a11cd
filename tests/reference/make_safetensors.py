"""Write a random-weight model as a directory of safetensors, as Hugging Face's transformers read it, for tests.

usage: python make_safetensors.py OUTPUT_DIR FAMILY [--dtype DTYPE] [--shards N] [--new] ... (see --help)

The same arguments give the same bytes: weights come from PCG64's raw stream, as with make_tiny.py. Every family has sizes of its own
that nobody would hard-code. With --new, config.json is spelt as newer versions of transformers write it (`rope_parameters`,
`layer_types`).
"""

import argparse
import json
import pathlib
import struct

import numpy as np

import fused_safetensors
import json_tokenizers
import routed_safetensors
import text_part
from make_tiny import Stream

COMMON = {"hidden": 96, "layers": 3, "heads": 6, "kv_heads": 2, "head": 16, "ffn": 160}
SIZES = {
    "llama": {**COMMON, "head": 32, "stated_head": True},
    "mistral": {**COMMON, "window": 24},
    "mixtral": {**COMMON, "ffn": 64, "experts": 5, "used": 2},
    "qwen2": COMMON,
    "qwen3": {**COMMON, "heads": 5, "kv_heads": 1, "head": 32, "stated_head": True},
    "qwen3_moe": {**COMMON, "heads": 5, "kv_heads": 1, "head": 32, "stated_head": True, "experts": 7, "used": 3, "expert_ffn": 64},
    "phi3": {**COMMON, "heads": 3, "kv_heads": 1, "head": 32, "window": 24},
    "gemma3_text": {**COMMON, "layers": 7, "heads": 4, "head": 32, "stated_head": True, "tied": True, "window": 24, "period": 6},
    "cohere": {**COMMON, "tied": True},
    "cohere2": {**COMMON, "layers": 5, "tied": True, "window": 24, "period": 4},
    **routed_safetensors.SIZES,
    **fused_safetensors.SIZES,
}
CLASSES = {
    "llama": "Llama", "mistral": "Mistral", "mixtral": "Mixtral", "qwen2": "Qwen2", "qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe",
    "phi3": "Phi3", "gemma3_text": "Gemma3", "cohere": "Cohere", "cohere2": "Cohere2",
    **routed_safetensors.CLASSES,
    **fused_safetensors.CLASSES,
}  # fmt: skip
ROPE_BASE = {"llama": 500000.0, "mistral": 10000.0, "phi3": 10000.0, "cohere": 8e6, "cohere2": 50000.0, "deepseek_v2": 10000.0, "deepseek_v3": 10000.0, "gpt_oss": 150000.0, "llama4": 500000.0}
ROPE_SCALINGS = {
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    # As in Llama 4 Scout, where no wave lengths lie between the two.
    "llama3-sharp": {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0, "original_max_position_embeddings": 64},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0},
    "yarn-scores": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.9},
    "yarn-whole": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0, "beta_slow": 1.0, "truncate": False},
    "yarn-attention": {"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 128, "attention_factor": 0.9},
}
HEAD_NORMS = ("qwen3", "qwen3_moe", "gemma3_text")
LAYER_NORM = ("cohere", "cohere2")


def rope(args):
    """The base and, where there is any, the scaling."""
    scaling = dict(ROPE_SCALINGS[args.rope]) if args.rope else None
    if args.long_factors:
        half = args.sizes["head"] // 8 * 3
        stream = Stream(args.seed + 1)
        scaling = {
            "type": "longrope",
            "long_factor": [float(x) for x in stream.between((half,), 1.0, 30.0)],
            "short_factor": [float(x) for x in stream.between((half,), 1.0, 2.0)],
        }
    return ROPE_BASE.get(args.family, 1e6), scaling


def add_rope(config, args):
    base, scaling = rope(args)
    if args.family == "gemma3_text":
        scaling = {"rope_type": "linear", "factor": 8.0}
    if not args.new:
        config["rope_theta"] = base
        config["rope_scaling"] = scaling
        if args.family == "gemma3_text":
            config["rope_local_base_freq"] = 10000.0
        return
    whole = {"rope_theta": base, **(scaling or {"rope_type": "default"})}
    if "type" in whole:
        whole["rope_type"] = whole.pop("type")
    if args.family in ("phi3", "glm4_moe"):
        whole["partial_rotary_factor"] = config.pop("partial_rotary_factor")
    if args.family == "gemma3_text":
        whole = {"full_attention": whole, "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}}
    config["rope_parameters"] = whole


def config_of(args):
    sizes, family = args.sizes, args.family
    config = {
        "architectures": [CLASSES[family] + "ForCausalLM"],
        "model_type": family,
        "dtype" if args.new else "torch_dtype": {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[args.dtype],
        "hidden_size": sizes["hidden"],
        "num_hidden_layers": sizes["layers"],
        "max_position_embeddings": args.context,
        "intermediate_size": sizes["ffn"],
        "vocab_size": args.vocab,
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv_heads"],
        "use_cache": True,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    if sizes.get("stated_head"):
        config["head_dim"] = sizes["head"]
    if family in LAYER_NORM:
        config |= {"layer_norm_eps": 1e-4, "logit_scale": 0.25}
    else:
        config["rms_norm_eps"] = 1e-5
    config["hidden_activation" if family == "gemma3_text" else "hidden_act"] = "gelu_pytorch_tanh" if family == "gemma3_text" else "silu"
    if not (sizes.get("tied") and not args.new):
        config["tie_word_embeddings"] = bool(sizes.get("tied") or args.tied)
    if "window" in sizes:
        config["sliding_window"] = sizes["window"]
    if "period" in sizes:
        if args.new or family == "gpt_oss":
            kinds = ["full_attention" if layer % sizes["period"] == sizes["period"] - 1 else "sliding_attention" for layer in range(sizes["layers"])]
            config["layer_types"] = kinds
        else:
            config["sliding_window_pattern"] = sizes["period"]
    if family in ("llama", "qwen3", "gemma3_text", "cohere", "cohere2", "phi3"):
        config["attention_bias"] = False
    if family in ("qwen2", "qwen3", "qwen3_moe"):
        config |= {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 1}
    if family == "mixtral":
        config |= {"num_local_experts": sizes["experts"], "num_experts_per_tok": sizes["used"], "sliding_window": None}
    if family == "qwen3_moe":
        config |= {
            "num_experts": sizes["experts"], "num_experts_per_tok": sizes["used"], "moe_intermediate_size": sizes["expert_ffn"],
            "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        }  # fmt: skip
    if family in routed_safetensors.SIZES:
        routed_safetensors.add_settings(config, args)
    if family in fused_safetensors.SIZES:
        fused_safetensors.add_settings(config, args)
    if family == "phi3":
        config |= {"partial_rotary_factor": 0.75, "original_max_position_embeddings": args.original_context}
    if family == "gemma3_text":
        config["query_pre_attn_scalar"] = 24
    if family == "cohere":
        config["use_qk_norm"] = args.head_norms
    add_rope(config, args)
    return config


class Tensors:
    """Tensors in the order in which they are made, float32."""

    def __init__(self, stream, less_one):
        self.stream, self.less_one, self.all = stream, less_one, {}

    def matrix(self, name, rows, columns, deviation):
        self.all[name + ".weight"] = self.stream.bell((rows, columns), deviation)

    def norm(self, name, shape):
        values = self.stream.between(shape, 0.7, 1.3)
        self.all[name + ".weight"] = values - np.float32(1) if self.less_one else values

    def bias(self, name, width):
        self.all[name + ".bias"] = self.stream.bell((width,), 0.5)


def tensors_of(args):
    """Deviations keep the residual stream near 1 a component and the logits near a deviation of --logit-spread."""
    sizes, family = args.sizes, args.family
    tensors = Tensors(Stream(args.seed), family == "gemma3_text")
    hidden, heads, kv_heads, head, ffn = (sizes[key] for key in ("hidden", "heads", "kv_heads", "head", "ffn"))
    tied = sizes.get("tied", False) or args.tied
    output = args.logit_spread / np.sqrt(hidden) * (4 if family in LAYER_NORM else 1)
    tensors.matrix("model.embed_tokens", args.vocab, hidden, output if tied else 1.0)
    for layer in range(sizes["layers"] + args.further):
        block = f"model.layers.{layer}."
        attention, mlp = block + "self_attn.", block + "mlp."
        tensors.norm(block + "input_layernorm", (hidden,))
        if "rank" in sizes:
            routed_safetensors.add_latent_attention(tensors, attention, sizes)
        elif family == "phi3":
            tensors.matrix(attention + "qkv_proj", (heads + 2 * kv_heads) * head, hidden, 1.3 / np.sqrt(hidden))
        else:
            for part, count, deviation in (("q", heads, 1.4), ("k", kv_heads, 1.4), ("v", kv_heads, 1.0)):
                tensors.matrix(attention + f"{part}_proj", count * head, hidden, deviation / np.sqrt(hidden))
                if family in ("qwen2", "gpt_oss") or args.biases:
                    tensors.bias(attention + f"{part}_proj", count * head)
        if family in HEAD_NORMS or (args.head_norms and family != "cohere"):
            tensors.norm(attention + "q_norm", (head,))
            tensors.norm(attention + "k_norm", (head,))
        if args.head_norms and family == "cohere":
            tensors.norm(attention + "q_norm", (heads, head))
            tensors.norm(attention + "k_norm", (kv_heads, head))
        value = sizes.get("value", head)
        tensors.matrix(attention + "o_proj", hidden, heads * value, 1.0 / np.sqrt(heads * value))
        if family == "gpt_oss":
            fused_safetensors.add_attention_vectors(tensors, attention, sizes)
        if family not in LAYER_NORM:
            tensors.norm(block + "post_attention_layernorm", (hidden,))
        if family == "gemma3_text":
            tensors.norm(block + "pre_feedforward_layernorm", (hidden,))
            tensors.norm(block + "post_feedforward_layernorm", (hidden,))
        feed_forward(tensors, args, layer, block, mlp)
        if layer >= sizes["layers"]:
            routed_safetensors.add_further_prediction(tensors, block, hidden)
    tensors.norm("model.norm", (hidden,))
    if not tied:
        tensors.matrix("lm_head", args.vocab, hidden, output)
    return tensors.all


def feed_forward(tensors, args, layer, block, mlp):
    sizes, hidden = args.sizes, args.sizes["hidden"]
    if args.family == "phi3":
        tensors.matrix(mlp + "gate_up_proj", 2 * sizes["ffn"], hidden, 1.2 / np.sqrt(hidden))
        tensors.matrix(mlp + "down_proj", hidden, sizes["ffn"], 1.0 / np.sqrt(sizes["ffn"]))
        return
    if args.family == "gpt_oss":
        fused_safetensors.add_gpt_oss_experts(tensors, args, mlp)
        return
    if args.family == "llama4":
        fused_safetensors.add_llama4_feed_forward(tensors, args, layer, block + "feed_forward.")
        return
    names, places = ("gate_proj", "up_proj", "down_proj"), [mlp]
    width, gain = sizes["ffn"], 1.0
    if "experts" in sizes and layer >= sizes.get("dense", 0):
        mixture = block + "block_sparse_moe." if args.family == "mixtral" else mlp
        names = ("w1", "w3", "w2") if args.family == "mixtral" else names
        width, gain = sizes.get("expert_ffn", width), 1.5
        tensors.matrix(mixture + "gate", sizes["experts"], hidden, 1.0 / np.sqrt(hidden))
        places = [f"{mixture}experts.{expert}." for expert in range(sizes["experts"])]
        if "shared" in sizes:
            routed_safetensors.add_shared_expert(tensors, mixture, sizes)
    for place in places:
        tensors.matrix(place + names[0], width, hidden, 1.4 / np.sqrt(hidden))
        tensors.matrix(place + names[1], width, hidden, 1.0 / np.sqrt(hidden))
        tensors.matrix(place + names[2], hidden, width, gain / np.sqrt(width))


def stored(values, dtype):
    """The bytes of float32 values in a type, rounded to the nearest, ties to even."""
    if dtype == "f32":
        return values.astype("<f4").tobytes()
    if dtype == "f16":
        return values.astype("<f2").tobytes()
    bits = values.astype("<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


def write_file(path, tensors, dtype):
    header, data = {"__metadata__": {"format": "pt"}}, []
    at = 0
    for name, values in tensors.items():
        kind = "u8" if values.dtype == np.uint8 else dtype
        data.append(values.tobytes() if kind == "u8" else stored(values, dtype))
        header[name] = {"dtype": kind.upper(), "shape": list(values.shape), "data_offsets": [at, at + len(data[-1])]}
        at += len(data[-1])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))


def make(args):
    output = pathlib.Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    write_json = lambda name, value: (output / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")  # noqa: E731
    config, tensors = config_of(args), tensors_of(args)
    if args.text_part:
        config, tensors = text_part.of(config, tensors, args.new)
    write_json("config.json", config)
    if args.shards == 1:
        write_file(output / "model.safetensors", tensors, args.dtype)
    else:
        # One tensor to each file in turn, so that experts of one layer lie in several.
        names, places = list(tensors), {}
        for shard in range(args.shards):
            file = f"model-{shard + 1:05}-of-{args.shards:05}.safetensors"
            part = {name: tensors[name] for name in names[shard :: args.shards]}
            write_file(output / file, part, args.dtype)
            places |= dict.fromkeys(part, file)
        write_json("model.safetensors.index.json", {"metadata": {}, "weight_map": dict(sorted(places.items()))})
    for name, value in json_tokenizers.files(args.tokenizer, args.vocab).items():
        write_json(name, value)


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("family", choices=SIZES)
    parser.add_argument("--dtype", choices=("f32", "f16", "bf16"), default="f32")
    parser.add_argument("--shards", type=int, default=1, help="files that the tensors are spread over")
    parser.add_argument("--new", action="store_true", help="config.json as newer versions of transformers write it")
    parser.add_argument("--tied", action="store_true", help="no lm_head.weight: the head is the embedding")
    parser.add_argument("--rope", choices=ROPE_SCALINGS)
    parser.add_argument("--long-factors", action="store_true", help="phi3: factors for long and short contexts")
    parser.add_argument("--original-context", type=int, default=512, help="phi3: up to here the short factors hold")
    parser.add_argument("--head-norms", action="store_true", help="cohere, glm4_moe: a norm for every query and key head")
    parser.add_argument("--biases", action="store_true", help="glm4_moe: queries, keys and values have biases")
    parser.add_argument("--direct-queries", action="store_true", help="deepseek: one matrix makes the queries, and no groups limit the choice")
    parser.add_argument("--halves", action="store_true", help="deepseek_v3: rope turns the halves of a head together")
    parser.add_argument("--further", type=int, default=0, help="deepseek_v3, glm4_moe: so many layers at the end that predict tokens beyond the next")
    parser.add_argument("--mxfp4", action="store_true", help="gpt_oss: experts in MXFP4")
    parser.add_argument("--widened", action="store_true", help="with --mxfp4: the same values in the type of the others")
    parser.add_argument("--plain-heads", action="store_true", help="llama4: heads have no norm")
    parser.add_argument("--text-part", action="store_true", help="gemma3_text, llama4: as a part of a model that sees images, too")
    parser.add_argument("--tokenizer", choices=json_tokenizers.KINDS, default="llama3")
    parser.add_argument("--vocab", type=int, default=512)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--logit-spread", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=51)
    args = parser.parse_args(arguments)
    args.sizes = dict(SIZES[args.family])
    if args.direct_queries:
        args.sizes |= {"query_rank": None, "groups": (1, 1)}
    return args


if __name__ == "__main__":
    make(parse())
