"""Write a random-weight GGUF model at the true size of a family's member, in the mix of types that llama.cpp would give it.

usage: python make_model.py OUTPUT.gguf SHAPE MIX [--layers N] [--set NAME=VALUE ...]

SHAPE is one of those below, or any family of make_family.py (../reference) with --set, such as

    python make_model.py out.gguf qwen3 q4_k_m --layers 8 --set hidden=1024 --set heads=16 --set kv_heads=8 --set head=128 --set ffn=3072

MIX is q4_k_m, q5_k_m or mxfp4_moe, or any type of make_tiny.py, which all matrices but the output have then. A gigabyte takes a few
seconds: blocks are drawn once with a deviation of 1, and every row is cut from another place of theirs. Deviations are those of
make_family.py: they keep the residual stream near 1 and the logits near a deviation of 2, and no scale is anywhere near subnormal.
"""

import argparse
import functools
import pathlib
import sys

import gguf
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "reference"))
import make_family  # noqa: E402
import make_tiny  # noqa: E402
import make_true_size  # noqa: E402
import tiny_vocabulary  # noqa: E402

LLAMA_3 = {"vocab": 128256, "merges": 280147, "context": 131072}
SHAPES = {
    # Llama-3.2-1B and Llama-3.1-8B
    "llama-1b": {"family": "llama", "layers": 16, "hidden": 2048, "heads": 32, "kv_heads": 8, "head": 64, "ffn": 8192, "tied": True, **LLAMA_3},
    "llama-8b": {"family": "llama", "layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8, "head": 128, "ffn": 14336, **LLAMA_3},
    # The first with a vocabulary of Llama 2's size, so that the head weighs little
    "llama-1b-32k": {
        "family": "llama", "layers": 16, "hidden": 2048, "heads": 32, "kv_heads": 8, "head": 64, "ffn": 8192, "vocab": 32000, "merges": 0,
        "context": 131072,
    },
    # Qwen3-0.6B and Qwen3-30B-A3B
    "qwen3-0.6b": {
        "family": "qwen3", "layers": 28, "hidden": 1024, "heads": 16, "kv_heads": 8, "head": 128, "ffn": 3072, "tied": True,
        "vocab": 151936, "merges": 151387, "context": 40960,
    },
    "qwen3-30b-a3b": {
        "family": "qwen3moe", "layers": 48, "hidden": 2048, "heads": 32, "kv_heads": 4, "head": 128, "ffn": 6144, "expert_ffn": 768,
        "experts": 128, "used": 8, "vocab": 151936, "merges": 151387, "context": 40960,
    },
    # Gemma-3-1B
    "gemma3-1b": {
        "family": "gemma3", "layers": 26, "hidden": 1152, "heads": 4, "kv_heads": 1, "head": 256, "ffn": 6912, "tied": True, "window": 512,
        "vocab": 262144, "merges": 0, "context": 32768,
    },
    # DeepSeek-V2-Lite
    "deepseek-v2-lite": {
        "family": "deepseek-v2-lite", "layers": 27, "hidden": 2048, "heads": 16, "kv_heads": 16, "head": 192, "turned": 64, "value": 128,
        "rank": 512, "ffn": 10944, "dense": 1, "experts": 64, "used": 6, "expert_ffn": 1408, "shared": 2, "vocab": 102400, "merges": 99757,
        "context": 163840,
    },
    # gpt-oss-20b
    "gpt-oss-20b": {
        "family": "gpt-oss", "layers": 24, "hidden": 2880, "heads": 64, "kv_heads": 8, "head": 64, "ffn": 2880, "expert_ffn": 2880,
        "experts": 32, "used": 4, "window": 128, "vocab": 201088, "merges": 446189, "context": 131072,
    },
}  # fmt: skip
# What is no size of a layer.
OUTSIDE = ("family", "vocab", "merges", "context")

# What rows take that are no multiple of 256.
NARROW = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "tq1_0": "q4_0", "tq2_0": "q4_0"} | {
    kind: "iq4_nl" for kind in make_tiny.TYPES if kind.startswith("iq") and kind != "iq4_nl"
}
PLAIN = ("f32", "f16", "bf16")
# Values of a type that its pool of blocks holds.
POOL_VALUES = 1 << 22
# Rows that are cut from a pool at a time.
PIECE_ROWS = 1 << 13


def kind_of(mix, name, columns, layers, tied):
    """The type of a matrix: llama.cpp's choice for a mix of that name."""
    part = name.split(".")[-2]
    layer = int(name.split(".")[1]) if name.startswith("blk.") else None
    small, large = {"q4_k_m": ("q4_k", "q6_k"), "q5_k_m": ("q5_k", "q6_k"), "mxfp4_moe": ("q8_0", "q8_0")}.get(mix, (mix, mix))
    kind = small
    if part == "output" or (part == "token_embd" and tied):
        kind = small if small in PLAIN + ("q8_0",) else "q6_k"
    elif mix == "mxfp4_moe" and part.endswith("_exps"):
        kind = "mxfp4"
    elif part in ("attn_v", "attn_qkv", "ffn_down", "ffn_down_exps", "ffn_down_shexp") and make_true_size.use_more_bits(layer, layers):
        kind = large
    return NARROW.get(kind, kind) if columns % 256 else kind


class PooledStream(make_tiny.Stream):
    """Normal numbers cut from a pool of them."""

    @functools.cached_property
    def pool(self):
        return super().bell((POOL_VALUES,), 1.0)

    def bell(self, shape, deviation):
        count = int(np.prod(shape))
        start = int(self.words(1)[0])
        repeated = np.resize(self.pool[start:], count) if count > POOL_VALUES - start else self.pool[start : start + count]
        return (repeated * np.float32(deviation)).reshape(shape)


class PooledTensors(make_family.FamilyTensors):
    def __init__(self, writer, stream, mix, layers, tied):
        super().__init__(writer, stream, None)
        self.mix, self.layers, self.tied = mix, layers, tied

    def matrix(self, name, rows, columns, deviation):
        self.add(name, (rows, columns), deviation)

    def stack(self, name, count, rows, columns, deviation):
        self.add(name, (count, rows, columns), deviation)

    def given(self, name, values):
        self.add(name, values.shape, float(values.std()))

    def add(self, name, shape, deviation):
        kind = kind_of(self.mix, name, shape[-1], self.layers, self.tied)
        data = self.rows(kind, int(np.prod(shape[:-1])), shape[-1], float(np.float16(deviation)))
        self.writer.add_tensor(name, data.reshape(*shape[:-1], -1), raw_dtype=make_tiny.TYPES[kind])

    def rows(self, kind, rows, columns, deviation):
        """[rows, bytes of a row], each row from another place of the pool."""
        size, block_bytes = gguf.GGML_QUANT_SIZES[make_tiny.TYPES[kind]]
        pool, wide = self.pool(kind, deviation), columns // size
        out = np.empty((rows, wide * block_bytes), np.uint8)
        for first in range(0, rows, PIECE_ROWS):
            count = min(PIECE_ROWS, rows - first)
            starts = self.stream.bits.random_raw(count) % np.uint64(len(pool) - wide + 1)
            for row, start in enumerate(starts.astype(int), first):
                out[row] = pool[start : start + wide].reshape(-1)
        return out.view({"f32": np.float32, "f16": np.float16}.get(kind, np.uint8))

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def pool(self, kind, deviation):
        """[blocks, bytes of a block]"""
        size, block_bytes = gguf.GGML_QUANT_SIZES[make_tiny.TYPES[kind]]
        shape = (POOL_VALUES // 256 // 16, 16 * 256)
        if kind in make_tiny.K_BLOCKS:
            data = make_tiny.k_blocks(self.stream, kind, shape, deviation)
        else:
            data = self.stream.bell(shape, deviation)
            data = data if kind == "f32" else gguf.quants.quantize(data, make_tiny.TYPES[kind])
        return np.ascontiguousarray(data).view(np.uint8).reshape(-1, block_bytes)


def arguments(family, sizes, vocab, context, seed):
    """What make_family.py wants of its command line, for other sizes."""
    args = make_family.parse(["", family, "--vocab", str(vocab), "--context", str(context), "--seed", str(seed)])
    args.sizes = {**args.sizes, **sizes}
    return args


def make(output, shape, mix, changes, seed):
    given = {**SHAPES.get(shape, {"family": shape, "vocab": 4096, "merges": 0, "context": 4096}), **changes}
    sizes = {key: value for key, value in given.items() if key not in OUTSIDE}
    args = arguments(given["family"], sizes, given["vocab"], given["context"], seed)
    writer = gguf.GGUFWriter(output, make_family.ARCHITECTURE.get(args.family, args.family))
    make_family.add_hyper_parameters(writer, args)
    writer.kv_data[0]["general.name"].value = f"random {shape}"
    if given["merges"]:
        make_true_size.add_vocabulary(writer, {"vocab": given["vocab"], "merges": given["merges"], "pre": "llama-bpe"})
    else:
        tiny_vocabulary.add_bpe(writer, given["vocab"], "llama-bpe")
    tied = args.sizes.get("tied", False)
    make_family.add_tensors(PooledTensors(writer, PooledStream(seed), mix, args.sizes["layers"], tied), args)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def change(text):
    name, _, value = text.partition("=")
    if not value.isdigit():
        raise argparse.ArgumentTypeError(f"`{text}` is not NAME=NUMBER, such as hidden=1024")
    return name, int(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("shape", choices=[*SHAPES, *make_family.SIZES])
    parser.add_argument("mix", choices=["q4_k_m", "q5_k_m", "mxfp4_moe", *make_tiny.TYPES])
    parser.add_argument("--layers", type=int)
    parser.add_argument("--set", type=change, action="append", default=[], metavar="NAME=NUMBER", help="another size, vocab or context")
    parser.add_argument("--seed", type=int, default=31)
    args = parser.parse_args()
    changes = dict(args.set) | ({"layers": args.layers} if args.layers else {})
    make(args.output, args.shape, args.mix, changes, args.seed)


if __name__ == "__main__":
    main()
