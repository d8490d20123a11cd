"""Log-probabilities of the families' tiny models by llama.cpp.

usage: python make_family_references.py WORK_DIR FAMILIES.json [NAME ...]

With names, only those variants are made again; the others stay as they are in FAMILIES.json.
"""

import argparse
import json
import pathlib

import llama_cpp
import numpy as np

import make_family
import reference_model as reference

# Seeds of models whose distances are pooled: fixed before anything was computed with them. Models with F32 weights and experts
# take the first of them that is no near-tie of a router: llama.cpp itself stays within 0.02 with its cache in F16 and in F32.
POOL_SEEDS = range(101, 107)


def both(name, flags):
    return {f"{name}-{kind}": f"{flags} --type {kind}" for kind in ("f32", "q8_0")}


def pool(name, flags):
    """One model for each seed; the tests judge them together."""
    return {f"{name}-{seed}": f"{flags} --seed {seed}" for seed in POOL_SEEDS}


DEEPSEEK_V3 = "deepseek-v3 --yarn 4 --original-context 64"
GPT_OSS = "gpt-oss --yarn 32 --original-context 64"
# Rows of whole blocks of 256.
WIDE_EXPERTS = "qwen3moe --type q8_0 --hidden 256 --expert-ffn 256"
VARIANTS = {
    **both("qwen2", "qwen2"),
    "qwen2-tied": "qwen2 --tied --seed 32",
    **both("qwen3", "qwen3"),
    "mixtral-f32": "mixtral --seed 41",
    "qwen3moe-f32": "qwen3moe --seed 41",
    **pool("mixtral-q8_0", "mixtral --type q8_0"),
    **pool("qwen3moe-q8_0", "qwen3moe --type q8_0"),
    **pool("qwen3moe-k", f"{WIDE_EXPERTS} --layers 5 --experts-type q2_k,q3_k,q4_k,q5_k,q6_k"),
    **pool("qwen3moe-iq1-iq2", f"{WIDE_EXPERTS} --layers 5 --experts-type iq1_s,iq1_m,iq2_xxs,iq2_xs,iq2_s"),
    **pool("qwen3moe-iq3-iq4", f"{WIDE_EXPERTS} --layers 4 --experts-type iq3_xxs,iq3_s,iq4_nl,iq4_xs"),
    "llama-yarn-f32": "llama --yarn 4 --original-context 64",
    "qwen2-yarn-f32": "qwen2 --yarn 2.5 --original-context 2048 --attn-factor 0.8",
    "qwen3-yarn-f32": "qwen3 --yarn 8 --original-context 32",
    **both("phi3", "phi3"),
    "phi3-short": "phi3 --original-context 256",
    **both("gemma3", "gemma3"),
    **both("command-r", "command-r"),
    "command-r-deep": "command-r --layers 64 --hidden 96 --ffn 64",
    **both("cohere2", "cohere2"),
    "llama4-f32": "llama4 --seed 102",
    "llama4-two-f32": "llama4 --used 2 --moe-step 1 --seed 101",
    "llama4-maverick-f32": "llama4 --experts 128 --layers 4 --seed 101",
    **pool("llama4-q8_0", "llama4 --type q8_0"),
    "deepseek-v2-lite-f32": "deepseek-v2-lite --seed 103",
    "deepseek-v2-f32": "deepseek-v2 --yarn 4 --original-context 64 --seed 101",
    "deepseek-v3-f32": f"{DEEPSEEK_V3} --seed 101",
    "deepseek-v3-joined-f32": f"{DEEPSEEK_V3} --joined --seed 101",
    "deepseek-v3-further-f32": f"{DEEPSEEK_V3} --further 1 --seed 101",
    **pool("deepseek-v2-lite-q8_0", "deepseek-v2-lite --type q8_0"),
    **pool("deepseek-v3-q8_0", f"{DEEPSEEK_V3} --type q8_0"),
    **pool("deepseek-v3-joined-q8_0", f"{DEEPSEEK_V3} --joined --type q8_0"),
    "glm4moe-f32": "glm4moe --further 1 --seed 101",
    "glm4moe-norm-f32": "glm4moe --head-norm --seed 102",
    **pool("glm4moe-q8_0", "glm4moe --further 1 --type q8_0"),
    "gpt-oss-f32": f"{GPT_OSS} --seed 101",
    **pool("gpt-oss-q8_0", f"{GPT_OSS} --type q8_0"),
    **pool("gpt-oss-mxfp4", f"{GPT_OSS} --type q8_0 --experts-type mxfp4"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work_dir", type=pathlib.Path)
    parser.add_argument("families", type=pathlib.Path)
    parser.add_argument("names", nargs="*", choices=[*VARIANTS, []])
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    known = {}
    if args.names and args.families.exists():
        known = {item["name"]: item for item in json.loads(args.families.read_text())["variants"]}
    wanted = args.names or VARIANTS
    for name in wanted:
        known[name] = reference.make_variant(make_family, name, VARIANTS[name], args.work_dir)
    versions = json.dumps({"llama-cpp-python": llama_cpp.__version__, "numpy": np.__version__}, separators=(",", ":"))
    lines = ",\n".join(json.dumps(known[name], separators=(",", ":")) for name in VARIANTS if name in known)
    args.families.write_text(f'{{"versions":{versions},"variants":[\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
