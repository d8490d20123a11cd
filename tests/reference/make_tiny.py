"""Write a random-weight GGUF model of the llama architecture, for tests.

usage: python make_tiny.py OUTPUT.gguf [--hidden N] [--layers N] ... (see --help)

The same flags give the same bytes: weights come from PCG64's raw stream and are quantised by the `gguf` package. Types that
`gguf` cannot quantise (the k-quants and codebooks), or not alike everywhere (MXFP4), get random blocks with the wanted spread.
"""

import argparse

import gguf
import numpy as np

import tiny_vocabulary

TYPES = {
    name: getattr(gguf.GGMLQuantizationType, name.upper())
    for name in (
        "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k",
        "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_nl", "iq4_xs", "mxfp4", "tq1_0", "tq2_0",
    )
}  # fmt: skip

# Random blocks: byte offsets of the scale `d` and the minimum `dmin` (if any), dmin / d for a mean of zero, and the
# standard deviation of the values at d = 1 when all other bytes are random.
K_BLOCKS = {
    "q2_k": (80, 82, 1.5, 13.94),
    "q3_k": (108, None, 0.0, 43.1),
    "q4_k": (0, 2, 7.5, 260.0),
    "q5_k": (0, 2, 15.5, 528.0),
    "q6_k": (208, None, 0.0, 1365.0),
    "iq1_s": (0, None, 0.0, 7.2),
    "iq1_m": (None, None, 0.0, 7.2),
    "iq2_xxs": (0, None, 0.0, 53.4),
    "iq2_xs": (0, None, 0.0, 55.8),
    "iq2_s": (0, None, 0.0, 56.3),
    "iq3_xxs": (0, None, 0.0, 142.2),
    "iq3_s": (0, None, 0.0, 140.1),
    "iq4_nl": (0, None, 0.0, 67.4),
    "iq4_xs": (0, None, 0.0, 1245.0),
    "mxfp4": (None, None, 0.0, 13.0),
}


class Stream:
    """Random numbers that do not depend on numpy's distributions."""

    def __init__(self, seed):
        self.bits = np.random.PCG64(seed)

    def words(self, count):
        """`count` uniform 16-bit integers."""
        return self.bits.random_raw((count + 3) // 4).astype("<u8").view("<u2")[:count]

    def bell(self, shape, deviation):
        """Sums of four uniforms: mean 0, the given standard deviation, float32."""
        count = int(np.prod(shape))
        total = self.words(4 * count).reshape(count, 4).astype(np.int64).sum(axis=1) - 2 * 65535
        unit = np.sqrt(4 * (65536.0**2 - 1) / 12)
        return (total * (deviation / unit)).astype(np.float32).reshape(shape)

    def between(self, shape, low, high):
        words = self.words(int(np.prod(shape))).astype(np.float64) / 65536
        return (low + (high - low) * words).astype(np.float32).reshape(shape)


def k_blocks(stream, kind, shape, deviation):
    """Raw bytes of a [rows, columns] matrix in a k-quant."""
    at_d, at_min, ratio, spread = K_BLOCKS[kind]
    elements, size = gguf.GGML_QUANT_SIZES[TYPES[kind]]
    rows, columns = shape
    if columns % elements:
        raise SystemExit(f"{kind} wants rows of a multiple of {elements}, got {columns}")
    count = rows * columns // elements
    data = stream.words(count * ((size + 1) // 2)).view("<u1").reshape(count, -1)[:, :size].copy()
    d = np.float16(deviation / spread)
    if kind == "mxfp4":
        # The scale is 2^(byte - 128): three neighbouring powers of two, the lowest at least half of what is wanted.
        data[:, 0] = 128 + np.frexp(deviation / spread)[1] + data[:, 0] % 3 - 1
    elif kind == "iq1_m":
        # The four top nibbles of the scales' words.
        bits = int(d.view("<u2"))
        for i in range(4):
            data[:, 49 + 2 * i] = data[:, 49 + 2 * i] & 15 | (bits >> 4 * i & 15) << 4
    else:
        data[:, at_d : at_d + 2] = np.frombuffer(d.tobytes(), "<u1")
    if at_min is not None:
        data[:, at_min : at_min + 2] = np.frombuffer(np.float16(d * ratio).tobytes(), "<u1")
    return data.reshape(rows, -1)


class Tensors:
    def __init__(self, writer, stream, kind):
        self.writer, self.stream, self.kind = writer, stream, kind

    def matrix(self, name, rows, columns, deviation):
        if self.kind in K_BLOCKS:
            data = k_blocks(self.stream, self.kind, (rows, columns), deviation)
        else:
            data = self.stream.bell((rows, columns), deviation)
            if self.kind != "f32":
                data = gguf.quants.quantize(data, TYPES[self.kind])
        self.writer.add_tensor(name, data, raw_dtype=TYPES[self.kind])

    def vector(self, name, values):
        self.writer.add_tensor(name, values)


def add_hyper_parameters(writer, args):
    writer.add_name("brigade-tiny")
    writer.add_block_count(args.layers)
    writer.add_context_length(args.context)
    writer.add_embedding_length(args.hidden)
    writer.add_feed_forward_length(args.ffn)
    writer.add_head_count(args.heads)
    writer.add_head_count_kv(args.kv_heads)
    writer.add_key_length(args.head_dim)
    writer.add_value_length(args.head_dim)
    writer.add_layer_norm_rms_eps(args.norm_eps)
    writer.add_rope_dimension_count(args.head_dim)
    writer.add_rope_freq_base(args.rope_base)
    if args.rope_linear:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(args.rope_linear)
    writer.add_vocab_size(args.vocab)


def add_tensors(tensors, args):
    """Deviations keep the residual stream near 1 a component and the logits near a deviation of --logit-spread."""
    stream, hidden, width = tensors.stream, args.hidden, args.heads * args.head_dim
    norm = lambda: stream.between((hidden,), 0.7, 1.3)  # noqa: E731
    output = args.logit_spread / np.sqrt(hidden)
    tensors.matrix("token_embd.weight", args.vocab, hidden, output if args.tied else 1.0)
    if args.rope_freqs:
        tensors.vector("rope_freqs.weight", stream.between((args.head_dim // 2,), 1.0, 8.0))
    for layer in range(args.layers):
        block = f"blk.{layer}."
        tensors.vector(block + "attn_norm.weight", norm())
        tensors.matrix(block + "attn_q.weight", width, hidden, 1.4 / np.sqrt(hidden))
        tensors.matrix(block + "attn_k.weight", args.kv_heads * args.head_dim, hidden, 1.4 / np.sqrt(hidden))
        tensors.matrix(block + "attn_v.weight", args.kv_heads * args.head_dim, hidden, 1.0 / np.sqrt(hidden))
        tensors.matrix(block + "attn_output.weight", hidden, width, 1.0 / np.sqrt(width))
        tensors.vector(block + "ffn_norm.weight", norm())
        tensors.matrix(block + "ffn_gate.weight", args.ffn, hidden, 1.4 / np.sqrt(hidden))
        tensors.matrix(block + "ffn_up.weight", args.ffn, hidden, 1.0 / np.sqrt(hidden))
        tensors.matrix(block + "ffn_down.weight", hidden, args.ffn, 1.0 / np.sqrt(args.ffn))
    tensors.vector("output_norm.weight", norm())
    if not args.tied:
        tensors.matrix("output.weight", args.vocab, hidden, output)


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=16)
    parser.add_argument("--ffn", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=512)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--norm-eps", type=float, default=1e-5)
    parser.add_argument("--tied", action="store_true", help="no output.weight: the head is the embedding")
    parser.add_argument("--rope-freqs", action="store_true", help="add rope_freqs.weight")
    parser.add_argument("--rope-base", type=float, default=10000.0)
    parser.add_argument("--rope-linear", type=float, help="factor of linear rope scaling")
    parser.add_argument("--type", choices=TYPES, default="f32", help="type of every matrix")
    parser.add_argument("--tokenizer", choices=("bpe", "spm"), default="bpe")
    parser.add_argument("--pre", default="llama-bpe", help="pre-tokenizer of a bpe tokenizer: llama-bpe or smollm")
    parser.add_argument("--no-space-prefix", action="store_true", help="spm: add_space_prefix = false")
    parser.add_argument("--logit-spread", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(arguments)


def make(args):
    writer = gguf.GGUFWriter(args.output, "llama")
    add_hyper_parameters(writer, args)
    if args.tokenizer == "bpe":
        tiny_vocabulary.add_bpe(writer, args.vocab, args.pre)
    else:
        tiny_vocabulary.add_spm(writer, args.vocab, space_prefix=not args.no_space_prefix)
    add_tensors(Tensors(writer, Stream(args.seed), args.type), args)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    make(parse())
