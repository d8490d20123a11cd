"""Log-probabilities by llama.cpp of a tiny Llama 4 at the end of its first chunk of 8192 positions and past it.

usage: python make_chunk_reference.py WORK_DIR CHUNKS.json
"""

import argparse
import hashlib
import json
import pathlib

import llama_cpp
import numpy as np

import make_family
import make_tiny
import reference_model as reference

FLAGS = "llama4 --layers 4 --context 8448 --seed 101"
CONTEXT = 8448
PATH_SEED = 9
# The path ends a little past the chunk; scores are kept from a little before its end on.
PATH_LENGTH = 8300
FIRST_KEPT = 8160


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work_dir", type=pathlib.Path)
    parser.add_argument("chunks", type=pathlib.Path)
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    source = args.work_dir / "chunks.gguf"
    flags = make_family.parse([str(source), *FLAGS.split()])
    make_family.make(flags)
    path = [int(word) % flags.vocab for word in make_tiny.Stream(PATH_SEED).words(PATH_LENGTH)]
    item = {
        "versions": {"llama-cpp-python": llama_cpp.__version__, "numpy": np.__version__},
        "flags": FLAGS,
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "path": path,
        "first": FIRST_KEPT,
    }
    for name, cache_f32 in (("exact", True), ("llama_cpp", False)):
        model = reference.load(source, 2, CONTEXT, cache_f32)
        item[name] = reference.of_path(reference.log_probabilities(model, path), path)[FIRST_KEPT:]
        model.close()
    print(f"|llama_cpp - exact| max {max(abs(a - b) for a, b in zip(item['exact'], item['llama_cpp'])):.6f}")
    args.chunks.write_text(json.dumps(item, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
