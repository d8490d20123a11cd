"""Token ids, decoded texts and chats of the tokenizers of json_tokenizers.py by Hugging Face's tokenizers.

usage: python make_json_tokenizer_references.py JSON-TOKENIZERS.json
"""

import argparse
import json
import pathlib

import tokenizers

import json_tokenizers
import token_texts

VOCAB = 512
# The user's own token, white space that a special token takes with it, and tokens with line ends.
AROUND = ["<tool_call>a</tool_call> <tool_call> ", "a <strip> \n b<strip>c", " a\n\n\nb \n\n c"]


def texts_of(kind):
    special = json_tokenizers.SPECIAL[kind]
    texts = [*token_texts.COMMON, *token_texts.DIGIT_RUNS, *token_texts.PRETOKENIZER]
    return texts, [*token_texts.special_texts(special), *AROUND]


def encoded(tokenizer, text, special):
    tokenizer.encode_special_tokens = not special
    return tokenizer.encode(text, add_special_tokens=False).ids


def row(tokenizer, text):
    """A text's ids, and what they decode to where that is another text."""
    plain, parsed = encoded(tokenizer, text, False), encoded(tokenizer, text, True)
    found = {"text": text, "plain": plain}
    if parsed != plain:
        found["special"] = parsed
    shown, skipped = (tokenizer.decode(parsed, skip_special_tokens=skip) for skip in (False, True))
    if shown != text:
        found["shown"] = shown
    if skipped != shown:
        found["skipped"] = skipped
    return found


def compact(value):
    return json.dumps(value, separators=(",", ":"))


def kind_of(kind):
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(json_tokenizers.files(kind, VOCAB)["tokenizer.json"]))
    tokenizer.no_truncation()
    common, special = texts_of(kind)
    rows = [row(tokenizer, text) for text in [*common, *special]]
    begun = tokenizer.encode("a", add_special_tokens=True).ids
    added = begun[: len(begun) - len(encoded(tokenizer, "a", True))]
    print(f"{kind}: {len(rows)} texts, before a text {added}")
    lines = ",\n".join(compact(found) for found in rows)
    return f'{{"kind":"{kind}","before":{compact(added)},"texts":[\n{lines}\n]}}'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=pathlib.Path)
    args = parser.parse_args()
    kinds = ",\n".join(kind_of(kind) for kind in json_tokenizers.KINDS)
    versions = compact({"tokenizers": tokenizers.__version__})
    args.output.write_text(f'{{"versions":{versions},"kinds":[\n{kinds}\n]}}\n')


if __name__ == "__main__":
    main()
