"""Log-probabilities of tiny models in safetensors by Hugging Face's transformers.

usage: python make_safetensors_references.py WORK_DIR SAFETENSORS.json [NAME ...]

With names, only those variants are made again; the others stay as they are in SAFETENSORS.json.
"""

import argparse
import hashlib
import json
import pathlib

import numpy as np
import torch
import transformers

import make_safetensors
import reference_paths

VARIANTS = {
    "llama": "llama --rope llama3 --shards 2",
    "llama-new": "llama --rope llama3 --new --tied --tokenizer llama2",
    "llama-linear": "llama --rope linear --tokenizer gpt2",
    "llama-yarn": "llama --rope yarn --seed 52",
    "llama-bf16": "llama --rope llama3 --dtype bf16",
    "llama-f16": "llama --dtype f16",
    "mistral": "mistral --tokenizer llama2",
    "mixtral": "mixtral --shards 3 --tokenizer llama2",
    "qwen2": "qwen2 --tokenizer qwen2",
    "qwen2-new": "qwen2 --new --tied --rope yarn-attention --tokenizer qwen2",
    "qwen3": "qwen3 --tokenizer qwen2",
    "qwen3moe": "qwen3_moe --shards 3 --tokenizer qwen2",
    "qwen3moe-new": "qwen3_moe --new --dtype bf16 --tokenizer qwen2",
    "phi3": "phi3 --tokenizer llama2",
    "phi3-short": "phi3 --long-factors --original-context 256 --tokenizer llama2",
    "phi3-long": "phi3 --long-factors --original-context 16 --new --tokenizer llama2",
    "gemma3": "gemma3_text --tokenizer gemma",
    "gemma3-new": "gemma3_text --new --dtype bf16 --tokenizer gemma",
    "gemma3-part": "gemma3_text --text-part --tokenizer gemma",
    "gemma3-part-new": "gemma3_text --text-part --new --dtype bf16 --tokenizer gemma",
    "cohere": "cohere --tokenizer gpt2",
    "cohere-norms": "cohere --head-norms --new --tokenizer gpt2",
    "cohere2": "cohere2 --tokenizer gpt2",
    "cohere2-new": "cohere2 --new --tokenizer gpt2",
    "deepseek2": "deepseek_v2 --rope yarn-scores --shards 3",
    "deepseek2-lite": "deepseek_v2 --direct-queries",
    "deepseek3": "deepseek_v3 --rope yarn-scores --further 1",
    "deepseek3-new": "deepseek_v3 --new --halves --direct-queries --shards 2",
    "deepseek3-bf16": "deepseek_v3 --rope yarn-scores --new --dtype bf16 --shards 2",
    "glm4moe": "glm4_moe --biases --further 1",
    "glm4moe-new": "glm4_moe --new --head-norms --dtype bf16 --shards 2",
    "gpt-oss": "gpt_oss --rope yarn-whole",
    "gpt-oss-bf16": "gpt_oss --rope yarn-whole --new --dtype bf16 --shards 2",
    "gpt-oss-mxfp4": "gpt_oss --rope yarn --dtype bf16 --mxfp4",
    "llama4": "llama4 --rope llama3-sharp",
    "llama4-new": "llama4 --new --plain-heads --dtype bf16 --shards 2",
    "llama4-part": "llama4 --text-part --rope llama3-sharp",
}


def digest(folder):
    hashed = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        hashed.update(file.read_bytes())
    return hashed.hexdigest()


def rows_of(folder, paths):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    for ids in paths:
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0]
        yield torch.log_softmax(logits.double(), dim=-1).numpy()[:-1]


def make_variant(name, flags, work_dir):
    folder = work_dir / name
    args = make_safetensors.parse([str(folder), *flags.split()])
    make_safetensors.make(args)
    paths = list(reference_paths.paths(args.vocab))
    rows = list(rows_of(folder, paths))
    scored = [
        {"path": ids, "exact": [None] + [round(float(row[token]), 6) for row, token in zip(of_path, ids[1:])]}
        for ids, of_path in zip(paths, rows)
    ]
    together = np.concatenate(rows)
    entropy, best = float(-(np.exp(together) * together).sum(axis=1).mean()), float(np.exp(together.max(axis=1)).mean())
    print(f"{name}: entropy {entropy:.2f} of {np.log(args.vocab):.2f}, best {best:.2f}", flush=True)
    return {"name": name, "flags": flags, "sha256": digest(folder), "entropy": round(entropy, 3), "paths": scored}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work_dir", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("names", nargs="*", choices=[*VARIANTS, []])
    args = parser.parse_args()
    known = {}
    if args.names and args.output.exists():
        known = {item["name"]: item for item in json.loads(args.output.read_text())["variants"]}
    for name in args.names or VARIANTS:
        known[name] = make_variant(name, VARIANTS[name], args.work_dir)
    versions = json.dumps({"transformers": transformers.__version__, "torch": torch.__version__}, separators=(",", ":"))
    lines = ",\n".join(json.dumps(known[name], separators=(",", ":")) for name in VARIANTS if name in known)
    args.output.write_text(f'{{"versions":{versions},"variants":[\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
