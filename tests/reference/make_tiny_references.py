"""Log-probabilities and token ids of the tiny models by llama.cpp.

usage: python make_tiny_references.py WORK_DIR TINY.json TINY_TOKENS.json
"""

import argparse
import json
import pathlib

import llama_cpp
import numpy as np

import make_tiny
import reference_model as reference
import tiny_vocabulary
import token_texts

PATH_SEED = 7

WIDE = "--hidden 256 --layers 2 --heads 4 --kv-heads 2 --head-dim 64 --ffn 256"
VARIANTS = {
    "llama3": "--layers 3 --hidden 64 --heads 4 --kv-heads 2 --head-dim 32 --ffn 160 --rope-freqs --rope-base 500000 --seed 11",
    "llama2-spm": "--layers 2 --hidden 64 --heads 4 --kv-heads 4 --head-dim 16 --ffn 96 --tokenizer spm --norm-eps 1e-3 --seed 12",
    "spm-no-prefix": "--layers 1 --hidden 32 --heads 2 --kv-heads 1 --ffn 64 --tokenizer spm --no-space-prefix --tied --seed 13",
    "tied-smollm": "--layers 4 --hidden 96 --heads 3 --kv-heads 1 --head-dim 32 --ffn 192 --tied --pre smollm --seed 14",
    "rope-linear": "--layers 2 --rope-linear 4 --seed 15",
    "one-layer": "--layers 1 --seed 16",
    **{
        f"type-{kind}": f"--type {kind} --hidden 128 --layers 2 --heads 4 --kv-heads 2 --head-dim 32 --ffn 192 --seed 20"
        for kind in ("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
    },
    **{f"type-{kind}": f"--type {kind} {WIDE} --seed 21" for kind in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")},
    **{
        f"type-{kind}": f"--type {kind} {WIDE} --seed 21"
        for kind in ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs", "tq1_0", "tq2_0")
    },
    **{
        f"type-{kind}": f"--type {kind} --hidden 128 --layers 2 --heads 4 --kv-heads 2 --head-dim 32 --ffn 192 --seed 20"
        for kind in ("iq4_nl", "mxfp4")
    },
    "type-q8_0-tied": "--type q8_0 --hidden 128 --layers 2 --heads 4 --kv-heads 2 --head-dim 32 --ffn 192 --tied --seed 22",
}
TOKENIZERS = ["llama3", "tied-smollm", "llama2-spm", "spm-no-prefix"]


def token_rows(name, work_dir):
    model = reference.load_vocabulary(work_dir / f"{name}.gguf")
    special = tiny_vocabulary.SPM_CONTROL + tiny_vocabulary.SPM_USER_DEFINED + ["<s>", "</s>", "<unk>"]
    if "spm" not in name:
        special = tiny_vocabulary.BPE_SPECIAL
    own = [" ".join(tiny_vocabulary.TEXT), *tiny_vocabulary.WHOLE_WORDS, "zebra", "a zebra", " Brigade", "a<tool>b", "a <tool> b", "x\n\ny"]
    texts = [*own, *token_texts.COMMON, *token_texts.DIGIT_RUNS, *token_texts.special_texts(special)]
    for text in texts:
        plain, parsed = (reference.encode(model, text, special=flag) for flag in (False, True))
        yield {"text": text, "plain": plain} if plain == parsed else {"text": text, "plain": plain, "special": parsed}


def lines(items):
    return "[\n" + ",\n".join(json.dumps(item, separators=(",", ":")) for item in items) + "\n]"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work_dir", type=pathlib.Path)
    parser.add_argument("tiny", type=pathlib.Path)
    parser.add_argument("tokens", type=pathlib.Path)
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    versions = json.dumps({"llama-cpp-python": llama_cpp.__version__, "numpy": np.__version__}, separators=(",", ":"))
    variants = [reference.make_variant(make_tiny, name, flags, args.work_dir, PATH_SEED) for name, flags in VARIANTS.items()]
    args.tiny.write_text(f'{{"versions":{versions},"variants":{lines(variants)}}}\n')
    tokenizers = ",".join(f"{json.dumps(name)}:{lines(token_rows(name, args.work_dir))}" for name in TOKENIZERS)
    args.tokens.write_text(f'{{"versions":{versions},"tokenizers":{{{tokenizers}}}}}\n')


if __name__ == "__main__":
    main()
