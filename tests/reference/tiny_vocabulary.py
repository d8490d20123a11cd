"""Small tokenizers for tiny models: byte-level BPE and SentencePiece with byte fallback."""

import functools
import heapq
from collections import Counter, defaultdict

import gguf

CONTROL, NORMAL, UNKNOWN = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.UNKNOWN
USER_DEFINED, UNUSED, BYTE = gguf.TokenType.USER_DEFINED, gguf.TokenType.UNUSED, gguf.TokenType.BYTE

TEXT = (
    "the town stood on the river and the line of hands passed the pails from the river to the fire . when the bucket "
    "came back empty the caller called the number again and the people in the line passed another bucket to the fire . "
    "There is a rule : Hello world , the Hello of the world . 12 123 1999 2024 100 you're I'm don't café naïve 你好 世界 привет "
).split(" ")[:-1]

BPE_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
WHOLE_WORDS = [" zebra", "Brigade", " 777"]
SPM_CONTROL = ["<|im_start|>", "<|im_end|>"]
SPM_USER_DEFINED = ["<tool>", "\n\n"]

CHAT_TEMPLATE_BPE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHAT_TEMPLATE_SPM = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@functools.cache
def byte_letters():
    """GPT-2's printable letter for each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters, extra = {}, 0
    for byte in range(256):
        if byte in plain:
            letters[byte] = chr(byte)
        else:
            letters[byte] = chr(256 + extra)
            extra += 1
    return tuple(letters[byte] for byte in range(256))


class Words:
    """Words on their way to tokens, with the pairs of neighbours in them."""

    def __init__(self, words):
        self.words = list(Counter(tuple(word) for word in words).items())
        self.pairs, self.places = Counter(), defaultdict(set)
        self.touched = set()
        for index in range(len(self.words)):
            self.count(index, 1)
        # Holds each pair with its present count, and with counts that it had.
        self.best = []
        self.push_touched()

    def count(self, index, sign):
        word, times = self.words[index]
        for pair in zip(word, word[1:]):
            self.pairs[pair] += sign * times
            self.places[pair].add(index)
            self.touched.add(pair)

    def push_touched(self):
        for pair in self.touched:
            heapq.heappush(self.best, (-self.pairs[pair], pair))
        self.touched.clear()

    def merge(self, pair):
        for index in self.places.pop(pair, ()):
            self.count(index, -1)
            word, times = self.words[index]
            self.words[index] = (merge(word, pair), times)
            self.count(index, 1)
        self.push_touched()

    def most_frequent(self):
        """The most frequent pair; ties go to the smaller one. `None` where there is no pair."""
        while self.best:
            count, pair = heapq.heappop(self.best)
            if count and -count == self.pairs[pair]:
                return pair
        return None


def learn_merges(words, count):
    """The `count` most frequent pairs, greedily; ties go to the smaller pair."""
    words = words if isinstance(words, Words) else Words(words)
    merges = []
    while len(merges) < count and (pair := words.most_frequent()):
        merges.append(pair)
        words.merge(pair)
    return merges


def merge(word, pair):
    out, i = [], 0
    while i < len(word):
        if word[i : i + 2] == pair:
            out.append(pair[0] + pair[1])
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)


def padded(tokens, types, vocab, filler):
    if len(tokens) > vocab:
        raise SystemExit(f"the tokenizer needs at least {len(tokens)} tokens, got --vocab {vocab}")
    while len(tokens) < vocab:
        tokens.append(filler.format(vocab - len(tokens)))
        types.append(UNUSED)


def add_bpe(writer, vocab, pre):
    """Bytes, merges, three words that no merge reaches, padding, then the special tokens at the end."""
    letters = byte_letters()
    spell = lambda text: "".join(letters[byte] for byte in text.encode("utf-8"))  # noqa: E731
    words = [spell(text) for word in TEXT for text in (word, " " + word)] + [spell(" " * n) for n in (2, 4, 8)] + [spell("\n\n")]
    merges = learn_merges(words, 120)
    tokens = list(letters)
    tokens += [token for token in dict.fromkeys(a + b for a, b in merges) if token not in tokens]
    tokens += [spell(word) for word in WHOLE_WORDS if spell(word) not in tokens]
    types = [NORMAL] * len(tokens)
    padded(tokens, types, vocab - len(BPE_SPECIAL), "<|unused_{}|>")
    tokens += BPE_SPECIAL
    types += [CONTROL] * len(BPE_SPECIAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{a} {b}" for a, b in merges])
    writer.add_bos_token_id(tokens.index("<|begin_of_text|>"))
    writer.add_eos_token_id(tokens.index("<|end_of_text|>"))
    writer.add_eot_token_id(tokens.index("<|eot_id|>"))
    writer.add_add_bos_token(pre == "llama-bpe")
    writer.add_chat_template(CHAT_TEMPLATE_BPE)


def add_spm(writer, vocab, space_prefix):
    """<unk> <s> </s>, the byte tokens, pieces by falling score, single characters last, then user-defined and control tokens."""
    words = ["\u2581" + word for word in TEXT] + list(TEXT) + ["\u2581" * n for n in (2, 4, 8)]
    pieces = list(dict.fromkeys(a + b for a, b in learn_merges(words, 90)))
    characters = sorted({c for word in words for c in word} | set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.!?'-"))
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + pieces + characters
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(pieces) + len(characters))
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces) + len(characters))]
    padded(tokens, types, vocab - len(SPM_USER_DEFINED) - len(SPM_CONTROL), "<unused_{}>")
    tokens += SPM_USER_DEFINED + SPM_CONTROL
    types += [USER_DEFINED] * len(SPM_USER_DEFINED) + [CONTROL] * len(SPM_CONTROL)
    scores += [-1000.0] * (vocab - len(scores))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(space_prefix)
    writer.add_chat_template(CHAT_TEMPLATE_SPM)
