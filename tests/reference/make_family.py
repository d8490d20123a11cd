"""Write a random-weight GGUF model of one of the families, for tests.

usage: python make_family.py OUTPUT.gguf FAMILY [--type TYPE] [--layers N] ... (see --help)

The same arguments give the same bytes, as with make_tiny.py. Every family has sizes of its own that nobody would hard-code: heads
whose width is not hidden / heads where the family's files state it, odd numbers of layers and experts, windows shorter than the paths.
"""

import argparse

import gguf
import numpy as np

import deepseek_parts
import tiny_vocabulary
from make_tiny import K_BLOCKS, TYPES, Stream, Tensors, k_blocks

SIZES = {
    "llama": {"hidden": 96, "layers": 3, "heads": 6, "kv_heads": 2, "head": 16, "ffn": 160},
    "qwen2": {"hidden": 96, "layers": 3, "heads": 6, "kv_heads": 2, "head": 16, "ffn": 160},
    "qwen3": {"hidden": 96, "layers": 3, "heads": 5, "kv_heads": 1, "head": 32, "ffn": 160},
    "phi3": {"hidden": 96, "layers": 3, "heads": 3, "kv_heads": 1, "head": 32, "ffn": 160},
    "gemma3": {"hidden": 96, "layers": 7, "heads": 4, "kv_heads": 2, "head": 32, "ffn": 160, "tied": True, "window": 24},
    "mixtral": {"hidden": 96, "layers": 3, "heads": 6, "kv_heads": 2, "head": 16, "ffn": 64, "experts": 5, "used": 2},
    "qwen3moe": {"hidden": 96, "layers": 3, "heads": 5, "kv_heads": 1, "head": 32, "ffn": 160, "expert_ffn": 64, "experts": 7, "used": 3},
    "command-r": {"hidden": 96, "layers": 3, "heads": 6, "kv_heads": 2, "head": 16, "ffn": 160, "tied": True},
    "cohere2": {"hidden": 96, "layers": 5, "heads": 6, "kv_heads": 2, "head": 16, "ffn": 160, "tied": True, "window": 24},
    "llama4": {"hidden": 96, "layers": 5, "heads": 5, "kv_heads": 1, "head": 32, "ffn": 160, "expert_ffn": 64, "experts": 5, "used": 1, "moe_step": 2},
    "gpt-oss": {"hidden": 96, "layers": 5, "heads": 6, "kv_heads": 2, "head": 32, "ffn": 64, "expert_ffn": 64, "experts": 7, "used": 3, "window": 24},
    "glm4moe": {
        "hidden": 96, "layers": 3, "heads": 5, "kv_heads": 1, "head": 32, "turned": 16, "ffn": 160, "dense": 1, "experts": 7, "used": 3,
        "expert_ffn": 64, "shared": 1, "scale": 2.5, "norm": True, "gating": deepseek_parts.SIGMOID, "bias": True, "groups": (1, 1),
    },
    **deepseek_parts.SIZES,
}  # fmt: skip
DEEPSEEK = tuple(deepseek_parts.SIZES)
# Families that a variant of another architecture has its name for.
ARCHITECTURE = {"mixtral": "llama", **dict.fromkeys(DEEPSEEK, "deepseek2")}
BIASED = ("qwen2", "gpt-oss", "glm4moe")
LAYER_NORM = ("command-r", "cohere2")
PARALLEL = ("command-r", "cohere2")
ROPE_BASE = {"llama": 10000.0, "qwen2": 1e6, "qwen3": 1e6, "phi3": 10000.0, "gemma3": 1e6, "mixtral": 1e6, "qwen3moe": 1e6, "command-r": 8e6, "cohere2": 50000.0, "gpt-oss": 150000.0, "llama4": 5e5, "glm4moe": 1e6, **dict.fromkeys(DEEPSEEK, 10000.0)}


class FamilyTensors(Tensors):
    def __init__(self, writer, stream, kind, stack_kinds=()):
        super().__init__(writer, stream, kind)
        self.stack_kinds = stack_kinds

    def stack(self, name, count, rows, columns, deviation):
        """`count` matrices in one tensor."""
        layer = int(name.split(".")[1])
        kind = self.stack_kinds[layer % len(self.stack_kinds)] if self.stack_kinds else self.kind
        if kind in K_BLOCKS:
            data = k_blocks(self.stream, kind, (count * rows, columns), deviation).reshape(count, rows, -1)
        else:
            data = self.stream.bell((count, rows, columns), deviation)
            if kind != "f32":
                data = gguf.quants.quantize(data, TYPES[kind])
        self.writer.add_tensor(name, data, raw_dtype=TYPES[kind])

    def given(self, name, values):
        """Matrices with these values."""
        if self.kind in K_BLOCKS:
            raise SystemExit(f"{name} cannot be made of random blocks of {self.kind}")
        data = values if self.kind == "f32" else gguf.quants.quantize(values, TYPES[self.kind])
        self.writer.add_tensor(name, data, raw_dtype=TYPES[self.kind])


def has_experts(sizes, layer):
    return "experts" in sizes and layer >= sizes.get("dense", 0) and (layer + 1) % sizes.get("moe_step", 1) == 0


def add_hyper_parameters(writer, args):
    sizes, family = args.sizes, args.family
    writer.add_name("brigade-tiny")  # llama.cpp asks for certain tokens where a name says phi3
    writer.add_block_count(sizes["layers"] + sizes.get("further", 0))
    writer.add_context_length(args.context)
    writer.add_embedding_length(sizes["hidden"])
    writer.add_feed_forward_length(sizes["ffn"])
    writer.add_head_count(sizes["heads"])
    if family in DEEPSEEK:
        deepseek_parts.add_hyper_parameters(writer, sizes, args.yarn)
    else:
        writer.add_head_count_kv(sizes["kv_heads"])
    writer.add_rope_freq_base(ROPE_BASE[family])
    if family in LAYER_NORM:
        writer.add_layer_norm_eps(1e-4)
        writer.add_logit_scale(0.25)
    else:
        writer.add_layer_norm_rms_eps(1e-5)
    if family in DEEPSEEK:
        pass  # the lengths depend on the layout
    elif sizes["head"] * sizes["heads"] != sizes["hidden"] or family in ("qwen3", "qwen3moe", "gemma3", "gpt-oss"):
        writer.add_key_length(sizes["head"])
        writer.add_value_length(sizes["head"])
    if "experts" in sizes:
        writer.add_expert_count(sizes["experts"])
        writer.add_expert_used_count(sizes["used"])
    if "expert_ffn" in sizes:
        writer.add_expert_feed_forward_length(sizes["expert_ffn"])
    if family == "glm4moe":
        writer.add_rope_dimension_count(sizes["turned"])
        deepseek_parts.add_expert_parameters(writer, sizes)
    if "moe_step" in sizes:
        writer.add_interleave_moe_layer_step(sizes["moe_step"])
    if "window" in sizes:
        writer.add_sliding_window(sizes["window"])
    if family == "phi3":
        writer.add_rope_dimension_count(sizes["head"] // 4 * 3)
        writer.add_rope_scaling_orig_ctx_len(args.original_context)
        writer.add_rope_scaling_attn_factors(1.19)
        writer.add_sliding_window(20)
    if args.yarn:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(args.yarn)
        writer.add_rope_scaling_orig_ctx_len(args.original_context)
        if args.attn_factor:
            writer.add_rope_scaling_attn_factors(args.attn_factor)
    if family == "gemma3":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)
    if family in ("command-r", "cohere2"):
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    if family == "cohere2":
        writer.add_rope_dimension_count(sizes["head"])
        writer.add_vocab_size(args.vocab)


def add_tensors(tensors, args):
    """Deviations keep the residual stream near 1 a component and the logits near a deviation of --logit-spread."""
    sizes, family, stream = args.sizes, args.family, tensors.stream
    hidden, heads, kv_heads, head, ffn = (sizes[key] for key in ("hidden", "heads", "kv_heads", "head", "ffn"))
    tied = sizes.get("tied", False) or args.tied
    vector = lambda name, shape=(hidden,): tensors.vector(name, stream.between(shape, 0.7, 1.3))  # noqa: E731
    output = args.logit_spread / np.sqrt(hidden) * (4 if family in LAYER_NORM else 1)
    tensors.matrix("token_embd.weight", args.vocab, hidden, output if tied else 1.0)
    if family == "phi3":
        for length, low, high in (("long", 1.0, 30.0), ("short", 1.0, 2.0)):
            tensors.vector(f"rope_factors_{length}.weight", stream.between((head // 8 * 3,), low, high))
    depth = 0.2 if sizes["layers"] >= 26 else 1.0
    if family == "llama4":
        tensors.vector("rope_freqs.weight", stream.between((head // 2,), 1.0, 16.0))
    for layer in range(sizes["layers"] + sizes.get("further", 0)):
        block = f"blk.{layer}."
        vector(block + "attn_norm.weight")
        parts = {"q": (heads, 1.4), "k": (kv_heads, 1.4), "v": (kv_heads, 1.0)}
        if family in DEEPSEEK:
            deepseek_parts.add_attention(tensors, block, sizes, depth)
        elif family == "phi3":
            tensors.matrix(block + "attn_qkv.weight", (heads + 2 * kv_heads) * head, hidden, 1.3 / np.sqrt(hidden))
        else:
            for part, (count, deviation) in parts.items():
                tensors.matrix(block + f"attn_{part}.weight", count * head, hidden, deviation / np.sqrt(hidden))
                if family in BIASED:
                    tensors.vector(block + f"attn_{part}.bias", stream.bell((count * head,), 0.5))
        if family in ("qwen3", "qwen3moe", "gemma3") or args.head_norm:
            vector(block + "attn_q_norm.weight", (head,))
            vector(block + "attn_k_norm.weight", (head,))
        if family == "command-r" and sizes["layers"] >= 64:
            vector(block + "attn_q_norm.weight", (heads, head))
            vector(block + "attn_k_norm.weight", (kv_heads, head))
        if family not in DEEPSEEK:
            tensors.matrix(block + "attn_output.weight", hidden, heads * head, depth / np.sqrt(heads * head))
        if family == "gpt-oss":
            tensors.vector(block + "attn_output.bias", stream.bell((hidden,), 0.3))
            tensors.vector(block + "attn_sinks.weight", stream.bell((heads,), 2.0))
        if family in ("gemma3", "gpt-oss", "glm4moe"):
            vector(block + "post_attention_norm.weight")
        if family not in PARALLEL and family not in ("gpt-oss", "glm4moe"):
            vector(block + "ffn_norm.weight")
        if family == "phi3":
            tensors.matrix(block + "ffn_up.weight", 2 * ffn, hidden, 1.2 / np.sqrt(hidden))
        elif has_experts(sizes, layer):
            count, width = sizes["experts"], sizes.get("expert_ffn", ffn)
            tensors.vector(block + "ffn_gate_inp.weight", stream.bell((count, hidden), 1.0 / np.sqrt(hidden)))
            tensors.stack(block + "ffn_gate_exps.weight", count, width, hidden, 1.4 / np.sqrt(hidden))
            tensors.stack(block + "ffn_up_exps.weight", count, width, hidden, 1.0 / np.sqrt(hidden))
            # gpt-oss adds 1 to what its gate multiplies, so that its products are larger.
            down = 0.4 if family == "gpt-oss" else 1.5 * depth
            tensors.stack(block + "ffn_down_exps.weight", count, hidden, width, down / np.sqrt(width))
            if family == "llama4":
                tensors.matrix(block + "ffn_gate_shexp.weight", width, hidden, 1.4 / np.sqrt(hidden))
                tensors.matrix(block + "ffn_up_shexp.weight", width, hidden, 1.0 / np.sqrt(hidden))
                tensors.matrix(block + "ffn_down_shexp.weight", hidden, width, 1.0 / np.sqrt(width))
            if family == "gpt-oss":
                tensors.vector(block + "ffn_gate_inp.bias", stream.bell((count,), 0.5))
                # Wide enough that gates and what they multiply reach the activation's limit of 7.
                tensors.vector(block + "ffn_gate_exps.bias", stream.bell((count, width), 3.0))
                tensors.vector(block + "ffn_up_exps.bias", stream.bell((count, width), 3.0))
                tensors.vector(block + "ffn_down_exps.bias", stream.bell((count, hidden), 0.3))
            if "shared" in sizes:
                deepseek_parts.add_shared_expert(tensors, block, sizes, depth)
        else:
            tensors.matrix(block + "ffn_gate.weight", ffn, hidden, 1.4 / np.sqrt(hidden))
            tensors.matrix(block + "ffn_up.weight", ffn, hidden, 1.0 / np.sqrt(hidden))
        if not has_experts(sizes, layer):
            tensors.matrix(block + "ffn_down.weight", hidden, ffn, depth / np.sqrt(ffn))
        if family == "gemma3":
            vector(block + "post_ffw_norm.weight")
        if layer >= sizes["layers"]:
            deepseek_parts.add_further_prediction(tensors, block, hidden)
    vector("output_norm.weight")
    if not tied:
        tensors.matrix("output.weight", args.vocab, hidden, output)


def types(text):
    """Types with commas between."""
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in TYPES]
    if unknown:
        raise argparse.ArgumentTypeError(f"`{unknown[0]}` is not one of {', '.join(TYPES)}")
    return names


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("family", choices=SIZES)
    parser.add_argument("--type", choices=TYPES, default="f32", help="type of every matrix")
    parser.add_argument("--experts-type", type=types, default=(), help="type of the experts' matrices, where it is another; of several, the layers take one after another")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--ffn", type=int)
    parser.add_argument("--expert-ffn", type=int)
    parser.add_argument("--experts", type=int)
    parser.add_argument("--used", type=int, help="experts that a token takes")
    parser.add_argument("--moe-step", type=int, help="llama4: one layer of so many has experts")
    parser.add_argument("--tied", action="store_true", help="no output.weight: the head is the embedding")
    parser.add_argument("--original-context", type=int, default=128, help="phi3: up to here the short factors hold; the origin of YaRN")
    parser.add_argument("--yarn", type=float, help="factor of YaRN's rope scaling")
    parser.add_argument("--attn-factor", type=float, help="with YaRN: a further factor on cosine and sine")
    parser.add_argument("--joined", action="store_true", help="deepseek: key and value matrices in one tensor, as in older files")
    parser.add_argument("--further", type=int, help="deepseek, glm4moe: so many layers at the end that predict tokens beyond the next")
    parser.add_argument("--head-norm", action="store_true", help="glm4moe: a norm for every query and key head")
    parser.add_argument("--vocab", type=int, default=512)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--logit-spread", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=31)
    args = parser.parse_args(arguments)
    args.sizes = dict(SIZES[args.family])
    if args.joined:
        args.sizes["split"] = False
    for key in ("layers", "hidden", "ffn", "expert_ffn", "experts", "used", "moe_step", "further"):
        if getattr(args, key):
            args.sizes[key] = getattr(args, key)
    return args


def make(args):
    writer = gguf.GGUFWriter(args.output, ARCHITECTURE.get(args.family, args.family))
    add_hyper_parameters(writer, args)
    tiny_vocabulary.add_bpe(writer, args.vocab, "llama-bpe")
    add_tensors(FamilyTensors(writer, Stream(args.seed), args.type, args.experts_type), args)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    make(parse())
