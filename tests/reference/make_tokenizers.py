"""Write the small vocabularies that tokenizers are tested with, as GGUF files without tensors.

usage: python make_tokenizers.py FOLDER [NAME ...]

`words-PRE.gguf` holds byte-level BPE with the pre-tokenizer PRE, for every PRE in PRETOKENIZERS; its merges go across words, the rarest
neighbours first, so that a wrong split gives other ids. `ends-NAME.gguf` and `pieces-NAME.gguf` hold the special tokens of a family.
"""

import pathlib
import sys
from collections import Counter

import gguf

import token_texts
from tiny_vocabulary import BYTE, CONTROL, NORMAL, TEXT, UNKNOWN, USER_DEFINED, WHOLE_WORDS, Words, byte_letters, learn_merges

# Every name that Brigade knows.
PRETOKENIZERS = (
    "default gpt-2 phi-2 mpt olmo jais gigachat trillion granite-docling exaone4 mellum a.x-4.0 smollm starcoder refact command-r codeshell "
    "exaone minerva-7b mellum2 llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral lfm2 midm-2.0 smaug-bpe dbrx chatglm-bpe glm4 glm5 tekken "
    "gpt-4o llama4 kanana2 talkie minimax-m2 qwen2 deepseek-r1-qwen megrez hunyuan solar-open stablelm2 grok-2 kormo qwen35 deepseek-llm "
    "deepseek-coder deepseek-v3 hunyuan-dense joyai-llm hy_v4 kimi-k2 minicpm5"
).split()
MERGES = 1500

# Special tokens of the families: text and kind, in the order of their ids after the letters, then the keys that name some of them.
ENDS = {
    "llama3": {
        "control": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|start_header_id|>", "<|finetune_right_pad_id|>"],
        "keys": {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>"},
        "pre": "llama-bpe",
    },
    "qwen": {
        "control": [
            "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
            "<|file_sep|>",
        ],
        "user": ["<tool_call>", "</tool_call>", "<think>"],
        "keys": {"bos": "<|endoftext|>", "eos": "<|im_end|>", "padding": "<|endoftext|>"},
        "pre": "qwen2",
    },
    "gpt-oss": {
        "control": ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>", "<|call|>"],
        "keys": {"bos": "<|startoftext|>", "eos": "<|return|>"},
        "pre": "gpt-4o",
    },
    "harmony-without-calls": {"control": ["<|return|>", "<|end|>", "<|start|>"], "keys": {"bos": "<|start|>", "eos": "<|return|>"}, "pre": "gpt-4o"},
    "deepseek": {
        "control": ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜User｜>", "<｜Assistant｜>", "<|EOT|>"],
        "user": ["<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜tool▁calls▁begin｜>"],
        "keys": {"bos": "<｜begin▁of▁sentence｜>", "eos": "<｜end▁of▁sentence｜>"},
        "pre": "deepseek-v3",
    },
    "command-r": {
        "control": ["<PAD>", "<UNK>", "<BOS_TOKEN>", "<EOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>"],
        "keys": {"bos": "<BOS_TOKEN>", "eos": "<|END_OF_TURN_TOKEN|>", "padding": "<PAD>"},
        "pre": "command-r",
    },
    "glm4": {
        "control": ["<|endoftext|>", "[MASK]", "[gMASK]", "<sop>", "<|user|>", "<|observation|>", "<|code_prefix|>", "<|code_middle|>"],
        "keys": {"bos": "[gMASK]", "eos": "<|endoftext|>", "eot": "<|user|>", "eom": "<|observation|>"},
        "pre": "glm4",
    },
    "kimi": {"control": ["[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "[EOT]", "[PAD]"], "keys": {"bos": "[BOS]", "eos": "[EOS]"}, "pre": "kimi-k2"},
    "mistral": {"control": ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"], "keys": {"bos": "<s>", "eos": "</s>"}, "pre": "tekken"},
    "llama4": {
        "control": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot|>", "<|eom|>", "<|header_start|>", "<|fim_prefix|>", "<|finetune_right_pad|>"],
        "keys": {"bos": "<|begin_of_text|>", "eos": "<|eot|>"},
        "pre": "llama4",
    },
    "smollm": {
        "control": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>"],
        "keys": {"bos": "<|im_start|>", "eos": "<|im_end|>"},
        "pre": "smollm",
    },
    "plain-types": {"plain": ["<|eot_id|>", "<fim_pad>", "<REPO>", "<|suffix|>", "x</s>"], "control": ["<a>"], "keys": {"bos": "<a>", "eos": "<a>"}, "pre": "llama-bpe"},
    "stated-fim": {
        "control": ["<a>", "<pad>", "<rep>", "<sep>", "<|file_sep|>"],
        "keys": {"bos": "<a>", "eos": "<a>", "fim_pad": "<pad>", "fim_rep": "<rep>", "fim_sep": "<sep>"},
        "pre": "qwen2",
    },
    "solar": {"control": ["<|end|>", "<|flush|>", "<|calls|>", "<|begin|>"], "keys": {"bos": "<|begin|>", "eos": "<|end|>"}, "pre": "solar-open"},
    "gemma4-texts": {"control": ["<bos>", "<eos>", "<turn|>", "<|tool_response>", "</s>", "[e~["], "keys": {"bos": "<bos>", "eos": "<eos>"}, "pre": "gpt-2"},
}  # fmt: skip
PIECES = {
    "gemma": {
        "control": ["<start_of_turn>", "<end_of_turn>", "<unused0>"],
        "user": ["\n", "\n\n", "\n\n\n", "\t", "\t\t", "  ", "   ", "    ", "<table>", "[multimodal]"],
        "space_prefix": False,
    },
    "mistral": {"control": ["[INST]", "[/INST]", "[TOOL_CALLS]"], "user": []},
    "llama2": {"control": [], "user": ["<tool>"], "add_bos": None},
    "phi3": {"control": ["<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>"], "user": ["<|tool|>"], "name": "Phi-3 Mini 128k"},
}


def open_writer(path, name):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_block_count(1)
    return writer


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_words(writer, pre, merges, special, keys):
    """Letters, merges and whole words, then `special` tokens as (text, kind)."""
    letters = byte_letters()
    tokens = list(dict.fromkeys([*letters, *(a + b for a, b in merges), *(spelled(word) for word in WHOLE_WORDS)]))
    types = [NORMAL] * len(tokens) + [kind for _, kind in special]
    tokens += [text for text, _ in special]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{a} {b}" for a, b in merges])
    for key, text in keys.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", tokens.index(text))


def spelled(text):
    letters = byte_letters()
    return "".join(letters[byte] for byte in text.encode("utf-8"))


def add_pieces(writer, family):
    words = ["\u2581" + word for word in TEXT] + list(TEXT) + ["\u2581" * n for n in (2, 4, 8)]
    pieces = list(dict.fromkeys(a + b for a, b in learn_merges(words, 150)))
    characters = sorted({c for word in words for c in word} | set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.!?'-"))
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + pieces + characters + family["user"] + family["control"]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(pieces) + len(characters))
    types += [USER_DEFINED] * len(family["user"]) + [CONTROL] * len(family["control"])
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)])
    writer.add_token_types(types)
    if "space_prefix" in family:
        writer.add_add_space_prefix(family["space_prefix"])


def merges_across_words(texts, count):
    """Merges of the bytes where two characters meet, then of what that leaves. Letters and digits of ASCII among themselves count
    only after an apostrophe, where a contraction may end. `count` of the merges are of what is left."""
    plain = lambda c: c.isascii() and c.isalnum()  # noqa: E731
    meeting = Counter()
    for text in texts:
        for at, (a, b) in enumerate(zip(text, text[1:])):
            if not (plain(a) and plain(b)) or "'" in text[max(at - 2, 0) : at]:
                meeting[spelled(a)[-1], spelled(b)[0]] += 1
    first = sorted(meeting, key=lambda pair: (meeting[pair], pair))
    words = Words(spelled(text) for text in texts if text)
    for pair in first:
        words.merge(pair)
    return [*first, *learn_merges(words, count)]


def make(folder):
    merges = merges_across_words([*token_texts.COMMON, *token_texts.PRETOKENIZER], MERGES)
    for pre in PRETOKENIZERS:
        writer = open_writer(folder / f"words-{pre}.gguf", "words")
        add_words(writer, pre, merges, [("<bos>", CONTROL), ("<end>", CONTROL)], {"bos": "<bos>", "eos": "<end>"})
        close(writer)
    for name, family in ENDS.items():
        writer = open_writer(folder / f"ends-{name}.gguf", name)
        kinds = (("plain", NORMAL), ("control", CONTROL), ("user", USER_DEFINED))
        special = [(text, kind) for key, kind in kinds for text in family.get(key, [])]
        add_words(writer, family["pre"], merges[:100], special, family["keys"])
        close(writer)
    for name, family in PIECES.items():
        writer = open_writer(folder / f"pieces-{name}.gguf", family.get("name", name))
        add_pieces(writer, family)
        close(writer)


if __name__ == "__main__":
    make(pathlib.Path(sys.argv[1]))
