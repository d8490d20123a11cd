"""Small tokenizers in the form of `tokenizer.json`, with the files beside it: the kinds that published models have."""

import tiny_vocabulary as tiny

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPACE = "\u2581"

# Spelt as in the vocabularies of each kind; the first two are those that chats need.
SPECIAL = {
    "llama3": tiny.BPE_SPECIAL,
    "qwen2": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    "gpt2": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    "llama2": ["<s>", "</s>", "<unk>"],
    "gemma": ["<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<unk>", "<pad>"],
}
KINDS = tuple(SPECIAL)
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"


def added(token, token_id, special, **flags):
    return {"id": token_id, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special, **flags}


def byte_level(kind, vocab):
    letters = tiny.byte_letters()
    spell = lambda text: "".join(letters[byte] for byte in text.encode("utf-8"))  # noqa: E731
    words = [spell(text) for word in tiny.TEXT for text in (word, " " + word)] + [spell(" " * n) for n in (2, 4, 8)] + [spell("\n\n")]
    merges = tiny.learn_merges(words, 120)
    tokens = list(letters)
    tokens += [token for token in dict.fromkeys(a + b for a, b in merges) if token not in tokens]
    tokens += [spell(word) for word in tiny.WHOLE_WORDS if spell(word) not in tokens]
    special = SPECIAL[kind]
    # A user's own token, and ids at the end that no token has.
    own = [added("<tool_call>", len(tokens), False)]
    if kind == "llama3":
        own.append(added("<strip>", len(tokens) + 1, True, lstrip=True, rstrip=True))
    own += [added(token, len(tokens) + len(own) + index, True) for index, token in enumerate(special)]
    assert len(tokens) + len(own) < vocab
    split = lambda pattern: {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}  # noqa: E731
    byte_step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": kind == "gpt2"}
    steps = {"llama3": [split(LLAMA3)], "qwen2": [split(QWEN2)], "gpt2": [{"type": "Digits", "individual_digits": True}]}[kind]
    post = None
    if kind == "llama3":
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
        "normalizer": {"type": "NFC"} if kind == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, byte_step]},
        "post_processor": post,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": kind == "llama3",
            "vocab": {token: index for index, token in enumerate(tokens)},
            # Older files write a merge as one text.
            "merges": [[a, b] if kind == "qwen2" else f"{a} {b}" for a, b in merges],
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
    }[kind]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos, "chat_template": template}
    if kind == "llama2":
        settings |= {"add_bos_token": True, "add_eos_token": False, "eos_token": {"content": eos, "lstrip": False}}
    end_ids = [ids[token] for token in ends]
    generation = {"eos_token_id": end_ids if len(end_ids) > 1 else end_ids[0], "bos_token_id": ids.get(bos)}
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": settings, "generation_config.json": generation}
