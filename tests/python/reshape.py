"""Write a GGUF file of the llama architecture again with other layers, other weights or other tokens.

usage: python reshape.py INPUT OUTPUT [--layers N] [--type q4_0|q8_0] [--swap ID ID]

--layers with fewer layers than there are keeps the first ones. With more, the file's layers are repeated, and the repeated ones add
nothing: their last matrices of attention and feed-forward are zero. The model computes what it did before and takes as much longer.
--type quantises all matrices anew. --swap exchanges the texts of two tokens.
"""

import argparse
import re

import gguf
import numpy as np
from dequantise import values

TYPES = {"q4_0": gguf.GGMLQuantizationType.Q4_0, "q8_0": gguf.GGMLQuantizationType.Q8_0}
LAST = ("attn_output.weight", "ffn_down.weight")


def copy_metadata(reader, writer, layers, swap):
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value_type = field.types[0]
        sub_type = field.types[-1] if value_type == gguf.GGUFValueType.ARRAY else None
        value = field.contents()
        if value_type == gguf.GGUFValueType.ARRAY and len(value) == 0:
            continue
        if name == "llama.block_count":
            value = layers
        if name == "tokenizer.ggml.tokens" and swap:
            one, other = swap
            value[one], value[other] = value[other], value[one]
        writer.add_key_value(name, value, value_type, sub_type)


def tensors(reader, layers):
    """Each tensor of the new file: its name, the tensor that it is made from, and whether it is zero."""
    layer = re.compile(r"blk\.(\d+)\.(.*)")
    found = {}
    for tensor in reader.tensors:
        match = layer.fullmatch(tensor.name)
        if match:
            found.setdefault(int(match[1]), {})[match[2]] = tensor
        else:
            yield tensor.name, tensor, False
    for number in range(layers):
        for part, tensor in found[number % len(found)].items():
            yield f"blk.{number}.{part}", tensor, number >= len(found) and part in LAST


def data(tensor, zero, kind):
    matrix = sum(1 for n in tensor.shape if n > 1) > 1
    if kind and matrix:
        found, kind = gguf.quants.quantize(values(tensor, np.float32), TYPES[kind]), TYPES[kind]
    else:
        found, kind = tensor.data, tensor.tensor_type
    # A block of zeros is zero in every type: its scales are.
    return (np.zeros_like(found) if zero else found), kind


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--type", choices=TYPES)
    parser.add_argument("--swap", type=int, nargs=2)
    args = parser.parse_args()
    reader = gguf.GGUFReader(args.input)
    layers = args.layers or reader.get_field("llama.block_count").contents()
    writer = gguf.GGUFWriter(args.output, "llama")
    writer.data_alignment = reader.alignment
    copy_metadata(reader, writer, layers, args.swap)
    for name, tensor, zero in tensors(reader, layers):
        made, kind = data(tensor, zero, args.type)
        writer.add_tensor(name, made, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
