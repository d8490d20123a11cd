"""Write a GGUF file again with every weight matrix as F32 or F16.

usage: python dequantise.py INPUT OUTPUT --type f32|f16

Metadata, tokenizer and tensor order stay as they are; only general.file_type changes. One-dimensional tensors (norms, biases,
rope factors) become F32 in both cases, as llama.cpp wants them. One tensor is in memory at a time.
"""

import argparse

import gguf
import numpy as np

FILE_TYPES = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16}


def copy_metadata(reader, writer, file_type):
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        value_type = field.types[0]
        sub_type = field.types[-1] if value_type == gguf.GGUFValueType.ARRAY else None
        value = field.contents()
        if value_type == gguf.GGUFValueType.ARRAY and len(value) == 0:
            continue
        writer.add_key_value(name, value, value_type, sub_type)
    writer.add_file_type(file_type)


def element_type(tensor, wanted):
    matrix = sum(1 for n in tensor.shape if n > 1) > 1
    return np.dtype(np.float16) if wanted == "f16" and matrix else np.dtype(np.float32)


def values(tensor, dtype):
    """The tensor's values in `dtype`, shaped with the fastest dimension last."""
    data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    data = data.reshape([int(n) for n in reversed(tensor.shape)])
    if dtype == np.float16 and np.abs(data).max() > np.finfo(np.float16).max:
        raise SystemExit(f"failed to convert {tensor.name} to f16: a value is out of range")
    return np.ascontiguousarray(data.astype(dtype, copy=False))


def dequantise(source, target, wanted):
    reader = gguf.GGUFReader(source)
    architecture = reader.get_field("general.architecture").contents()
    writer = gguf.GGUFWriter(target, architecture)
    writer.data_alignment = reader.alignment
    copy_metadata(reader, writer, FILE_TYPES[wanted])
    for tensor in reader.tensors:
        dtype = element_type(tensor, wanted)
        shape = [int(n) for n in reversed(tensor.shape)]
        writer.add_tensor_info(tensor.name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        writer.write_tensor_data(values(tensor, element_type(tensor, wanted)))
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--type", choices=FILE_TYPES, required=True)
    args = parser.parse_args()
    dequantise(args.input, args.output, args.type)


if __name__ == "__main__":
    main()
