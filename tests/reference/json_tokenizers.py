"""Small tokenizers in the form of `tokenizer.json`, with the files beside it: the kinds that published models have.

The merges of kinds whose names end in `-across`, and of DeepSeek, o200k, Tekken and Command R, go across words, so that a wrong split
gives other ids.
"""

import make_tokenizers
import tiny_vocabulary as tiny
import token_texts

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENDINGS}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Written with the line ends and characters themselves, as in DeepSeek's files.
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
SPACE = "\u2581"
DIGITS = {"type": "Digits", "individual_digits": True}


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


# The steps before words become letters; `gpt2` and `command-r` leave the words themselves to the step that does that.
STEPS = {
    "llama3": [split(LLAMA3)],
    "qwen2": [split(QWEN2)],
    "gpt2": [DIGITS],
    "deepseek3": [split(pattern) for pattern in DEEPSEEK3],
    "o200k": [split(O200K)],
    "tekken": [split(TEKKEN)],
    "command-r": [DIGITS],
}
WORDS_BY_LETTERS = ("gpt2", "command-r")
NORMALIZER = {"qwen2": {"type": "NFC"}, "command-r": {"type": "NFC"}, "deepseek3": {"type": "Sequence", "normalizers": []}}
IGNORES_MERGES = ("llama3", "tekken")
# Older files write a merge as one text.
MERGES_AS_PAIRS = ("qwen2", "o200k", "tekken")
# Whose post-processor puts the first special token before a text.
WRITES_BOS = ("llama3", "tekken", "command-r")
# Special tokens that a file has for the user's own.
NOT_SPECIAL = ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>")

# Spelt as in the vocabularies of each kind; the first two are those that chats need.
SPECIAL = {
    "llama3": tiny.BPE_SPECIAL,
    "qwen2": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    "gpt2": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    "llama2": ["<s>", "</s>", "<unk>"],
    "gemma": ["<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<unk>", "<pad>"],
    "deepseek3": ["<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>", *NOT_SPECIAL],
    "o200k": ["<|start|>", "<|end|>", "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|channel|>", "<|message|>", "<|call|>"],
    "tekken": ["<s>", "</s>", "<unk>", "[INST]", "[/INST]"],
    "command-r": ["<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<PAD>", "<UNK>"],
}
ACROSS = "-across"
MERGES_ACROSS = 780
SPECIAL |= {kind + ACROSS: SPECIAL[kind] for kind in ("llama3", "qwen2", "gpt2")}
KINDS = tuple(SPECIAL)
# Tokens of a kind: those whose merges go across words have more.
VOCAB, VOCAB_ACROSS = 512, 2048
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"


def goes_across(kind):
    return kind.endswith(ACROSS) or kind in ("deepseek3", "o200k", "tekken", "command-r")


def vocab_of(kind):
    return VOCAB_ACROSS if goes_across(kind) else VOCAB


def added(token, token_id, special, **flags):
    return {"id": token_id, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special, **flags}


def byte_level(kind, vocab):
    letters = tiny.byte_letters()
    spell = make_tokenizers.spelled
    if goes_across(kind):
        merges = make_tokenizers.merges_across_words([*token_texts.COMMON, *token_texts.PRETOKENIZER], MERGES_ACROSS)
    else:
        words = [spell(text) for word in tiny.TEXT for text in (word, " " + word)] + [spell(" " * n) for n in (2, 4, 8)] + [spell("\n\n")]
        merges = tiny.learn_merges(words, 120)
    kind = kind.removesuffix(ACROSS)
    tokens = list(letters)
    tokens += [token for token in dict.fromkeys(a + b for a, b in merges) if token not in tokens]
    tokens += [spell(word) for word in tiny.WHOLE_WORDS if spell(word) not in tokens]
    special = SPECIAL[kind]
    # A user's own token, and ids at the end that no token has.
    own = [added("<tool_call>", len(tokens), False)]
    if kind == "llama3":
        own.append(added("<strip>", len(tokens) + 1, True, lstrip=True, rstrip=True))
    own += [added(token, len(tokens) + len(own) + index, token not in NOT_SPECIAL) for index, token in enumerate(special)]
    if len(tokens) + len(own) >= vocab:
        raise SystemExit(f"{kind} needs more than {len(tokens) + len(own)} tokens, got --vocab {vocab}")
    byte_step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": kind in WORDS_BY_LETTERS}
    post = None
    if kind in WRITES_BOS:
        bos = {"SpecialToken": {"id": special[0], "type_id": 0}}
        text = lambda name, at: {"Sequence": {"id": name, "type_id": at}}  # noqa: E731
        ids = next(token["id"] for token in own if token["content"] == special[0])
        template = {
            "type": "TemplateProcessing",
            "single": [bos, text("A", 0)],
            "pair": [bos, text("A", 0), bos, text("B", 1)],
            "special_tokens": {special[0]: {"id": special[0], "ids": [ids], "tokens": [special[0]]}},
        }
        post = {"type": "Sequence", "processors": [{**byte_step, "use_regex": True}, template]}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": own,
        "normalizer": NORMALIZER.get(kind),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*STEPS[kind], byte_step]},
        "post_processor": post,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": kind in IGNORES_MERGES,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [[a, b] if kind in MERGES_AS_PAIRS else f"{a} {b}" for a, b in merges],
        },
    }  # fmt: skip


def with_bytes(kind, vocab):
    """SentencePiece's BPE as `tokenizers` has it: merges instead of scores, and bytes for what is in no token."""
    special = {"llama2": ["<unk>", "<s>", "</s>"], "gemma": ["<pad>", "<eos>", "<bos>", "<unk>"]}[kind]
    words = [SPACE + word for word in tiny.TEXT] + list(tiny.TEXT) + [SPACE * n for n in (2, 4, 8)]
    merges = tiny.learn_merges(words, 90)
    characters = sorted({c for word in words for c in word} | set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.!?'-"))
    tokens = special + [f"<0x{byte:02X}>" for byte in range(256)] + list(dict.fromkeys(a + b for a, b in merges))
    tokens += [character for character in characters if character not in tokens]
    own = [added(token, index, True) for index, token in enumerate(special)]
    if kind == "gemma":
        own += [added("\n\n", len(tokens), False), *(added(token, len(tokens) + 1 + at, True) for at, token in enumerate(SPECIAL[kind][:2]))]
        tokens += [token["content"] for token in own[-3:]]
        normalizer = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        splitter = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    else:
        steps = [{"type": "Prepend", "prepend": SPACE}, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
        normalizer, splitter = {"type": "Sequence", "normalizers": steps}, None
    assert len(tokens) <= vocab
    steps = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if kind == "llama2":
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    bos = SPECIAL[kind][0] if kind == "llama2" else "<bos>"
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [tokens.index(bos)], "tokens": [bos]}},
    }
    return {
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}, "padding": None,
        "added_tokens": own, "normalizer": normalizer, "pre_tokenizer": splitter, "post_processor": template,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [f"{a} {b}" for a, b in merges],
        },
    }  # fmt: skip


def files(kind, vocab):
    """Every file that says something of the tokenizer, by its name."""
    tokenizer = (with_bytes if kind in ("llama2", "gemma") else byte_level)(kind, vocab)
    ids = {**tokenizer["model"]["vocab"], **{token["content"]: token["id"] for token in tokenizer["added_tokens"]}}
    bos, eos, ends, template = {
        "llama3": ("<|begin_of_text|>", "<|eot_id|>", ["<|end_of_text|>", "<|eot_id|>"], tiny.CHAT_TEMPLATE_BPE),
        "qwen2": (None, "<|im_end|>", ["<|im_end|>", "<|endoftext|>"], CHATML),
        "gpt2": (None, "<|im_end|>", ["<|im_end|>"], CHATML),
        "llama2": ("<s>", "</s>", ["</s>"], CHATML),
        "gemma": ("<bos>", "<eos>", ["<eos>", "<end_of_turn>"], CHATML),
        "deepseek3": (SPECIAL["deepseek3"][0], SPECIAL["deepseek3"][1], SPECIAL["deepseek3"][1:2], CHATML),
        "o200k": ("<|startoftext|>", "<|return|>", ["<|return|>", "<|endoftext|>", "<|call|>"], CHATML),
        "tekken": ("<s>", "</s>", ["</s>"], CHATML),
        "command-r": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", ["<|END_OF_TURN_TOKEN|>"], CHATML),
    }[kind.removesuffix(ACROSS)]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos, "chat_template": template}
    if kind == "llama2":
        settings |= {"add_bos_token": True, "add_eos_token": False, "eos_token": {"content": eos, "lstrip": False}}
    if kind == "deepseek3":
        # Its post-processor adds nothing.
        settings |= {"add_bos_token": True, "add_eos_token": False}
    end_ids = [ids[token] for token in ends]
    generation = {"eos_token_id": end_ids if len(end_ids) > 1 else end_ids[0], "bos_token_id": ids.get(bos)}
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": settings, "generation_config.json": generation}
