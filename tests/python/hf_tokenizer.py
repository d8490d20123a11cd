"""Write a Hugging Face tokenizer folder from the byte-level BPE tokenizer of a GGUF file.

usage: python hf_tokenizer.py MODEL.gguf FOLDER

lm-eval counts context tokens with it, so that it needs neither a hub nor a tokenizer endpoint of the server.
"""

import json
import pathlib
import sys

import gguf

CONTROL = gguf.TokenType.CONTROL
DIGIT_SPLIT = {"smollm": {"type": "Digits", "individual_digits": True}}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def field(reader, name):
    return reader.fields[f"tokenizer.ggml.{name}"].contents()


def convert(source, folder):
    reader = gguf.GGUFReader(source)
    model, pre = field(reader, "model"), field(reader, "pre")
    if model != "gpt2" or pre not in DIGIT_SPLIT:
        sys.exit(f"failed to convert the tokenizer: {model} with pre-tokenizer {pre} is not known here")
    tokens, types = field(reader, "tokens"), field(reader, "token_type")
    special = [(i, token) for i, (token, kind) in enumerate(zip(tokens, types)) if kind == CONTROL]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": token, **flags} for i, token in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGIT_SPLIT[pre], BYTE_LEVEL]},
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": field(reader, "merges"),
            "ignore_merges": False,
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[field(reader, "bos_token_id")],
        "eos_token": tokens[field(reader, "eos_token_id")],
        "clean_up_tokenization_spaces": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    convert(sys.argv[1], pathlib.Path(sys.argv[2]))
