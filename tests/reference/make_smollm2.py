"""Log-probabilities of SmolLM2-135M-Instruct by llama.cpp, along fixed paths.

usage: python make_smollm2.py MODEL.Q4_1.gguf WORK_DIR OUTPUT.json [--threads N]
"""

import argparse
import json
import pathlib
import subprocess
import sys
from importlib import metadata

import gguf
import jinja2
import llama_cpp
import numpy as np

import prompts
import reference_model as reference

CONTINUATION = 24
N_CTX = 2048
DEQUANTISE = pathlib.Path(__file__).parent.parent / "python" / "dequantise.py"


def converted(source, work_dir, name, kind):
    target = work_dir / f"smollm2-{name}.gguf"
    if not target.exists():
        subprocess.run([sys.executable, DEQUANTISE, source, target, "--type", kind], check=True)
    return target


def chat_renderer(source):
    fields = gguf.GGUFReader(source).fields
    template = fields["tokenizer.chat_template"].contents()
    tokens = fields["tokenizer.ggml.tokens"]
    bos = tokens.contents(fields["tokenizer.ggml.bos_token_id"].contents())
    eos = tokens.contents(fields["tokenizer.ggml.eos_token_id"].contents())
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    compiled = environment.from_string(template)
    return lambda messages: compiled.render(messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos)


def make_cases(path, render_chat, threads):
    """Prompts, their greedy paths and the exact log-probabilities."""
    model = reference.load(path, threads, N_CTX, cache_f32=True)
    cases = []
    for name, text in prompts.all_prompts(render_chat, lambda t: len(reference.prompt_ids(model, t))):
        ids = reference.prompt_ids(model, text)
        tokens = reference.greedy(model, ids, CONTINUATION)
        rows = reference.log_probabilities(model, tokens)
        continuation = rows[len(ids) - 1 :]
        margins = reference.margins(continuation)
        for row, token, margin in zip(continuation, tokens[len(ids) :], margins):
            assert int(row.argmax()) == token or margin < 1e-3, (name, token, margin)
        cases.append(
            {
                "name": name,
                "prompt": text,
                "prompt_tokens": ids,
                "path": tokens,
                "continuation": reference.decode(model, tokens[len(ids) :]).decode("utf-8", "replace"),
                "exact": reference.of_path(rows, tokens),
                "margins": margins,
            }
        )
        print(f"{name}: {len(ids)} + {CONTINUATION} tokens", flush=True)
    model.close()
    return cases


def add_measured(cases, key, path, threads, cache_f32=False):
    model = reference.load(path, threads, N_CTX, cache_f32=cache_f32)
    for case in cases:
        case[key] = reference.of_path(reference.log_probabilities(model, case["path"]), case["path"])
    model.close()


def errors(case, key):
    return np.abs(np.array(case[key][1:]) - np.array(case["exact"][1:]))


def figures(values):
    return {"mean": round(float(values.mean()), 6), "max": round(float(values.max()), 6)}


def summarise(cases):
    summary = {}
    for key in ("quantised", "f16"):
        per_case = {case["name"]: figures(errors(case, key)) for case in cases}
        summary[key] = {"total": figures(np.concatenate([errors(case, key) for case in cases])), "prompts": per_case}
    return summary


def write(output, document):
    """One case a line, so that a change reads well."""
    head = json.dumps({k: v for k, v in document.items() if k != "cases"}, ensure_ascii=False, separators=(",", ":"))
    lines = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in document["cases"])
    output.write_text(f'{head[:-1]},"cases":[\n{lines}\n]}}\n', encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("work_dir", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)

    f32 = converted(args.model, args.work_dir, "f32", "f32")
    f16 = converted(args.model, args.work_dir, "f16", "f16")
    widened = converted(f16, args.work_dir, "f16-widened", "f32")
    cases = make_cases(f32, chat_renderer(args.model), args.threads)
    add_measured(cases, "quantised", args.model, args.threads)
    add_measured(cases, "f16", f16, args.threads)
    add_measured(cases, "f16_exact", widened, args.threads, cache_f32=True)
    summary = summarise(cases)
    versions = {"llama-cpp-python": llama_cpp.__version__, "gguf": metadata.version("gguf"), "numpy": np.__version__}
    write(args.output, {"model": args.model.name, "versions": versions, "continuation": CONTINUATION, "summary": summary, "cases": cases})
    for key, parts in summary.items():
        for name, value in [*parts["prompts"].items(), ("total", parts["total"])]:
            print(f"|{key} - exact| {name}: mean {value['mean']:.6f} max {value['max']:.6f}")


if __name__ == "__main__":
    main()
