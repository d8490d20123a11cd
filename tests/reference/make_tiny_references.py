"""Log-probabilities and token ids of the tiny models by llama.cpp.

usage: python make_tiny_references.py WORK_DIR TINY.json TINY_TOKENS.json
"""

import argparse
import hashlib
import json
import pathlib
import subprocess
import sys

import llama_cpp
import numpy as np

import make_tiny
import reference_model as reference
import tiny_vocabulary
import token_texts

# Prompts of about 5, 40 and 150 tokens, each with 16 more along the path.
PATH_LENGTHS = (21, 56, 166)
PATH_SEED = 7
CONTEXT = 256
HERE = pathlib.Path(__file__).parent

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


def paths(vocab):
    words = [int(word) % vocab for word in make_tiny.Stream(PATH_SEED).words(sum(PATH_LENGTHS))]
    for length in PATH_LENGTHS:
        yield words[:length]
        words = words[length:]


def rows_of(path, tokens, cache_f32):
    model = reference.load(path, 1, CONTEXT, cache_f32)
    rows = [reference.log_probabilities(model, ids) for ids in tokens]
    model.close()
    return rows


def make_variant(name, flags, work_dir):
    source, exact = work_dir / f"{name}.gguf", work_dir / f"{name}-f32.gguf"
    args = make_tiny.parse([str(source), *flags.split()])
    make_tiny.make(args)
    subprocess.run([sys.executable, HERE.parent / "python" / "dequantise.py", source, exact, "--type", "f32"], check=True)
    tokens = list(paths(args.vocab))
    exact_rows, own_rows = rows_of(exact, tokens, True), rows_of(source, tokens, False)
    item = {"name": name, "flags": flags, "sha256": hashlib.sha256(source.read_bytes()).hexdigest(), "paths": []}
    error = []
    for ids, wanted, own in zip(tokens, exact_rows, own_rows):
        item["paths"].append({"path": ids, "exact": reference.of_path(wanted, ids), "llama_cpp": reference.of_path(own, ids)})
        error += [abs(a - b) for a, b in zip(item["paths"][-1]["exact"][1:], item["paths"][-1]["llama_cpp"][1:])]
    rows = np.concatenate(exact_rows)
    entropy, best = float(-(np.exp(rows) * rows).sum(axis=1).mean()), float(np.exp(rows.max(axis=1)).mean())
    item["entropy"] = round(entropy, 3)
    print(
        f"{name}: {source.stat().st_size} bytes, entropy {entropy:.2f} of {np.log(args.vocab):.2f}, best {best:.2f}, "
        f"|llama_cpp - exact| mean {np.mean(error):.6f} max {np.max(error):.6f}",
        flush=True,
    )
    return item


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
    variants = [make_variant(name, flags, args.work_dir) for name, flags in VARIANTS.items()]
    args.tiny.write_text(f'{{"versions":{versions},"variants":{lines(variants)}}}\n')
    tokenizers = ",".join(f"{json.dumps(name)}:{lines(token_rows(name, args.work_dir))}" for name in TOKENIZERS)
    args.tokens.write_text(f'{{"versions":{versions},"tokenizers":{{{tokenizers}}}}}\n')


if __name__ == "__main__":
    main()
