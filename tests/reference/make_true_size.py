"""Write the header of a giant model at its true size: every tensor with its shape and type, in a file that is all hole.

usage: python make_true_size.py OUTPUT.gguf MODEL [--layer N]

The file has the size of the real one and takes a few megabytes on disk. Hyper-parameters are those of the published models; tensor
types are those of llama.cpp's Q4_K_M mix: Q4_K, and Q6_K for the output and for values and down projections of the first and last
eighth of the layers and of every third between; rows that are no multiple of 256 are Q5_0; routers, norms and biases are F32. The
vocabulary has as many tokens and merges as the real one, of other text.

With --layer, that layer's tensors and the rope's divisors are filled: with random blocks whose values are about 1 / sqrt(row width).
"""

import argparse
import os

import gguf
import numpy as np

import tiny_vocabulary

Q = gguf.GGMLQuantizationType
# Random bytes that blocks are cut from, each time from another place.
POOL_BYTES = 1 << 26
# Bytes written at a time.
PIECE_BYTES = 1 << 24


def use_more_bits(layer, layers):
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def llama_405b():
    layers, hidden, ffn, heads, kv_heads, head, vocab = 126, 16384, 53248, 128, 8, 128, 128256
    keys = {
        "block_count": layers, "context_length": 131072, "embedding_length": hidden, "feed_forward_length": ffn,
        "attention.head_count": heads, "attention.head_count_kv": kv_heads, "rope.freq_base": 500000.0,
        "attention.layer_norm_rms_epsilon": 1e-5, "attention.key_length": head, "attention.value_length": head,
        "vocab_size": vocab, "rope.dimension_count": head,
    }  # fmt: skip
    tensors = {"rope_freqs.weight": (Q.F32, head // 2)}
    for layer in range(layers):
        more = Q.Q6_K if use_more_bits(layer, layers) else Q.Q4_K
        tensors |= {
            f"blk.{layer}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (Q.F32, hidden), "attn_q": (Q.Q4_K, heads * head, hidden), "attn_k": (Q.Q4_K, kv_heads * head, hidden),
                "attn_v": (more, kv_heads * head, hidden), "attn_output": (Q.Q4_K, hidden, heads * head),
                "ffn_norm": (Q.F32, hidden), "ffn_gate": (Q.Q4_K, ffn, hidden), "ffn_up": (Q.Q4_K, ffn, hidden),
                "ffn_down": (more, hidden, ffn),
            }.items()
        }  # fmt: skip
    return {
        "name": "Llama 3.1 405B Instruct", "architecture": "llama", "pre": "llama-bpe", "merges": 280147, "vocab": vocab,
        "hidden": hidden, "keys": keys, "tensors": tensors,
    }  # fmt: skip


def deepseek_r1():
    layers, hidden, heads, vocab, dense = 61, 7168, 128, 129280, 3
    q_rank, kv_rank, nope, rope, value = 1536, 512, 128, 64, 128
    ffn, experts, width = 18432, 256, 2048
    keys = {
        "block_count": layers, "context_length": 163840, "embedding_length": hidden, "feed_forward_length": ffn,
        "attention.head_count": heads, "attention.head_count_kv": 1, "rope.freq_base": 10000.0,
        "attention.layer_norm_rms_epsilon": 1e-6, "expert_used_count": 8, "expert_group_count": 8, "expert_group_used_count": 4,
        "expert_gating_func": 2, "leading_dense_block_count": dense, "vocab_size": vocab,
        "attention.q_lora_rank": q_rank, "attention.kv_lora_rank": kv_rank, "attention.key_length": kv_rank + rope,
        "attention.value_length": kv_rank, "attention.key_length_mla": nope + rope, "attention.value_length_mla": value,
        "expert_feed_forward_length": width, "expert_count": experts, "expert_shared_count": 1, "expert_weights_scale": 2.5,
        "expert_weights_norm": True, "rope.dimension_count": rope, "rope.scaling.type": "yarn", "rope.scaling.factor": 40.0,
        "rope.scaling.original_context_length": 4096, "rope.scaling.yarn_log_multiplier": 0.1,
    }  # fmt: skip
    tensors = {}
    for layer in range(layers):
        more = Q.Q6_K if use_more_bits(layer, layers) else Q.Q4_K
        parts = {
            "attn_norm.weight": (Q.F32, hidden), "attn_q_a.weight": (Q.Q4_K, q_rank, hidden), "attn_q_a_norm.weight": (Q.F32, q_rank),
            "attn_q_b.weight": (Q.Q4_K, heads * (nope + rope), q_rank), "attn_kv_a_mqa.weight": (Q.Q4_K, kv_rank + rope, hidden),
            "attn_kv_a_norm.weight": (Q.F32, kv_rank), "attn_k_b.weight": (Q.Q5_0, heads, kv_rank, nope),
            "attn_v_b.weight": (Q.Q4_K, heads, value, kv_rank), "attn_output.weight": (Q.Q4_K, hidden, heads * value),
            "ffn_norm.weight": (Q.F32, hidden),
        }  # fmt: skip
        if layer < dense:
            parts |= {"ffn_gate.weight": (Q.Q4_K, ffn, hidden), "ffn_up.weight": (Q.Q4_K, ffn, hidden), "ffn_down.weight": (more, hidden, ffn)}
        else:
            parts |= {
                "ffn_gate_inp.weight": (Q.F32, experts, hidden), "exp_probs_b.bias": (Q.F32, experts),
                "ffn_gate_exps.weight": (Q.Q4_K, experts, width, hidden), "ffn_up_exps.weight": (Q.Q4_K, experts, width, hidden),
                "ffn_down_exps.weight": (more, experts, hidden, width), "ffn_gate_shexp.weight": (Q.Q4_K, width, hidden),
                "ffn_up_shexp.weight": (Q.Q4_K, width, hidden), "ffn_down_shexp.weight": (more, hidden, width),
            }  # fmt: skip
        tensors |= {f"blk.{layer}.{name}": shape for name, shape in parts.items()}
    return {
        "name": "DeepSeek R1", "architecture": "deepseek2", "pre": "deepseek-v3", "merges": 127741, "vocab": vocab, "hidden": hidden,
        "keys": keys, "tensors": tensors,
    }  # fmt: skip


MODELS = {"llama-405b": llama_405b, "deepseek-r1": deepseek_r1}


def add_vocabulary(writer, model):
    """Every byte, every pair of bytes, and as many triples as are missing; each triple is merged from either side."""
    letters = tiny_vocabulary.byte_letters()
    special = ["<|begin|>", "<|end|>"]
    pairs = [(a, b) for a in letters for b in letters]
    triples = [(a, b, c) for a in letters[:3] for b in letters for c in letters][: model["vocab"] - 256 - len(pairs) - len(special)]
    merges = [f"{a} {b}" for a, b in pairs]
    merges += [f"{a}{b} {c}" for a, b, c in triples] + [f"{a} {b}{c}" for a, b, c in triples]
    while len(merges) < model["merges"]:
        merges += merges[: model["merges"] - len(merges)]
    tokens = [*letters, *(a + b for a, b in pairs), *(a + b + c for a, b, c in triples), *special]
    assert len(tokens) == model["vocab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(model["pre"])
    writer.add_token_list(tokens)
    writer.add_token_types([tiny_vocabulary.NORMAL] * (len(tokens) - 2) + [tiny_vocabulary.CONTROL] * 2)
    writer.add_token_merges(merges[: model["merges"]])
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(True)
    writer.add_chat_template(tiny_vocabulary.CHAT_TEMPLATE_BPE)


def add_keys(writer, model):
    writer.add_name(model["name"])
    for key, value in model["keys"].items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}[type(value)]
        add(f"{model['architecture']}.{key}", value)


def half(value):
    return np.frombuffer(np.float16(value).tobytes(), np.uint8)


def blocks(kind, values, width, name, pool, places):
    """Random blocks of `values` values, as rows of bytes."""
    size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    count = values // size
    if kind == Q.F32:
        middle = 1.0 if name.endswith("norm.weight") or name == "rope_freqs.weight" else 0.0
        return (middle + places.normal(0, width**-0.5, count)).astype(np.float32).view(np.uint8)
    start = int(places.integers(0, len(pool) - count * block_bytes))
    data = pool[start : start + count * block_bytes].reshape(count, block_bytes).copy()
    if kind == Q.Q4_K:  # scale, minimum, twelve bytes of 6-bit scales, nibbles
        scale = width**-0.5 / 200
        data[:, 0:2], data[:, 2:4] = half(scale), half(7.5 * scale)
    elif kind == Q.Q6_K:  # low bits, high bits, 8-bit scales, scale
        data[:, 208:210] = half(width**-0.5 / 1365)
    elif kind == Q.Q5_0:  # scale, fifth bits, nibbles
        data[:, 0:2] = half(width**-0.5 / 9.2)
    else:
        raise SystemExit(f"no random blocks of {kind.name}")
    return data.reshape(-1)


def fill(path, layer):
    places = np.random.Generator(np.random.PCG64(31))
    pool = np.frombuffer(places.bytes(POOL_BYTES), np.uint8)
    with open(path, "r+b") as file:
        for tensor in gguf.GGUFReader(path, "r").tensors:
            if not tensor.name.startswith((f"blk.{layer}.", "rope_freqs.")):
                continue
            size, block_bytes = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
            width, left = int(tensor.shape[0]), int(tensor.n_elements)
            file.seek(tensor.data_offset)
            while left:
                values = min(left, PIECE_BYTES // block_bytes * size)
                file.write(blocks(tensor.tensor_type, values, width, tensor.name, pool, places).tobytes())
                left -= values


def make(path, model):
    writer = gguf.GGUFWriter(path, model["architecture"])
    add_keys(writer, model)
    add_vocabulary(writer, model)
    ends = {"token_embd.weight": (Q.Q4_K, model["vocab"], model["hidden"])}
    heads = {"output_norm.weight": (Q.F32, model["hidden"]), "output.weight": (Q.Q6_K, model["vocab"], model["hidden"])}
    total = 0
    for name, (kind, *shape) in {**ends, **model["tensors"], **heads}.items():
        size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        count = int(np.prod(shape, dtype=np.uint64)) // size * block_bytes
        writer.add_tensor_info(name, shape, np.dtype(np.float32), count, raw_dtype=kind)
        total += gguf.GGUFWriter.ggml_pad(count, writer.data_alignment)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    data = gguf.GGUFWriter.ggml_pad(os.path.getsize(path), writer.data_alignment)
    os.truncate(path, data + total)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--layer", type=int)
    args = parser.parse_args()
    make(args.output, MODELS[args.model]())
    if args.layer is not None:
        fill(args.output, args.layer)


if __name__ == "__main__":
    main()
