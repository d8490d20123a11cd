"""Token ids of SmolLM2's tokenizer by llama.cpp, without BOS, with special tokens parsed and not.

usage: python make_tokens.py MODEL.gguf OUTPUT.json
"""

import argparse
import json
import pathlib

import llama_cpp

import reference_model as reference
import token_texts

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<file_sep>", "<empty_output>"]


def rows(model, texts):
    for text in texts:
        yield {
            "text": text,
            "plain": reference.encode(model, text, special=False),
            "special": reference.encode(model, text, special=True),
        }


def write(output, head, items):
    opening = json.dumps(head, ensure_ascii=True, separators=(",", ":"))[:-1]
    lines = ",\n".join(json.dumps(item, ensure_ascii=True, separators=(",", ":")) for item in items)
    output.write_text(f'{opening},"texts":[\n{lines}\n]}}\n', encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    args = parser.parse_args()
    model = reference.load_vocabulary(args.model)
    texts = [*token_texts.COMMON, *token_texts.DIGIT_RUNS, *token_texts.special_texts(SPECIAL)]
    items = list(rows(model, texts))
    for item in items:
        for key in ("plain", "special"):
            if reference.decode(model, item[key]) != item["text"].encode("utf-8"):
                print(f"not restored from its {key} ids: {item['text']!r}: {reference.decode(model, item[key])!r}")
    write(args.output, {"model": args.model.name, "versions": {"llama-cpp-python": llama_cpp.__version__}}, items)
    print(f"{len(items)} texts")


if __name__ == "__main__":
    main()
