"""Blocks of the IQ, TQ and MXFP4 tensor types and what they stand for by gguf-py's `quants.dequantize`.

usage: python make_block_values.py block-values.txt

A line is `TYPE block BYTES VALUES` (little-endian f32), both in hexadecimal, or `TYPE many SEED COUNT HASH`: the hash of the
values of COUNT random blocks, which the same generator gives again from SEED.
"""

import argparse
import pathlib

import gguf
import numpy as np

MASK = 2**64 - 1
COUNT = 1024
# Where a block's half-precision scale stands; MXFP4 has an exponent instead, IQ1_M spreads the scale over four nibbles.
SCALE_AT = {
    "IQ4_NL": 0, "MXFP4": None, "IQ4_XS": 0, "IQ1_S": 0, "IQ1_M": None, "IQ2_XXS": 0, "IQ2_XS": 0, "IQ2_S": 0,
    "IQ3_XXS": 0, "IQ3_S": 0, "TQ1_0": 52, "TQ2_0": 64,
}  # fmt: skip


def random_bytes(seed, count):
    """Bytes of xorshift64 words."""
    words, state = [], seed
    for _ in range((count + 7) // 8):
        state ^= state << 13 & MASK
        state ^= state >> 7
        state ^= state << 17 & MASK
        words.append(state)
    return np.array(words, "<u8").view("<u1")[:count].copy()


def hash_of(values):
    """FNV-1a over the bits of the values, a word at a time."""
    result = 0xCBF29CE484222325
    for bits in values.astype("<f4").view("<u4").reshape(-1).tolist():
        result = ((result ^ bits) * 0x100000001B3) & MASK
    return result


def with_scale(kind, blocks, scale):
    """The blocks with this half-precision scale, given as its bits."""
    blocks = blocks.copy()
    if kind == "MXFP4":
        blocks[:, 0] = scale
    elif kind == "IQ1_M":
        for i in range(4):
            blocks[:, 49 + 2 * i] = blocks[:, 49 + 2 * i] & 15 | (scale >> (4 * i) & 15) << 4
    else:
        blocks[:, SCALE_AT[kind]] = scale & 255
        blocks[:, SCALE_AT[kind] + 1] = scale >> 8
    return blocks


def values(kind, blocks):
    # Minus zero is no other value than zero.
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind]) + np.float32(0)


def single_blocks(kind, size):
    """A usual scale, a subnormal, a negative and the largest one (exponents: usual, the two subnormal, large), then all bits clear and all set."""
    scales = (125, 0, 1, 250) if kind == "MXFP4" else (0x2E66, 0x0001, 0xB00F, 0x7BFF)
    for i, scale in enumerate(scales):
        yield with_scale(kind, random_bytes(1000 + i, size).reshape(1, size), scale)
    for byte in (0, 255):
        yield with_scale(kind, np.full((1, size), byte, np.uint8), scales[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=pathlib.Path)
    output = parser.parse_args().output
    lines = []
    for number, kind in enumerate(SCALE_AT):
        _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        for block in single_blocks(kind, size):
            lines.append(f"{kind} block {block.tobytes().hex()} {values(kind, block).astype('<f4').tobytes().hex()}")
        many = with_scale(kind, random_bytes(77 + number, COUNT * size).reshape(COUNT, size), 128 if kind == "MXFP4" else 0x3555)
        lines.append(f"{kind} many {77 + number} {COUNT} {hash_of(values(kind, many)):016x}")
    output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
