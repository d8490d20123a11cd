"""Token ids, decoded texts and chats of the tokenizers of json_tokenizers.py by Hugging Face's tokenizers.

usage: python make_json_tokenizer_references.py JSON-TOKENIZERS.json
"""

import argparse
import json
import pathlib
import tempfile

import tokenizers
import transformers

import json_tokenizers
import make_safetensors
import token_texts

# What kinds have in common; each has texts of its own besides.
TEXTS = [*token_texts.COMMON, *token_texts.DIGIT_RUNS, *token_texts.PRETOKENIZER]
# The user's own token, white space that a special token takes with it, and tokens with line ends.
AROUND = ["<tool_call>a</tool_call> <tool_call> ", "a <strip> \n b<strip>c", " a\n\n\nb \n\n c"]

# Its lines end in blocks, and so does the file.
TEMPLATE_OF_LINES = """\
{% for message in messages %}
    {% if message.role == 'system' %}
<|im_start|>system
{{ message.content | trim | upper }}<|im_end|>
    {% else %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""
MESSAGES = [
    {"role": "system", "content": "  You are brief. "},
    {"role": "user", "content": "Hello <s> world, caf\u00e9 \u4f60\u597d\n\n 12 <tool_call>"},
    {"role": "assistant", "content": "There is a rule:  123 "},
    {"role": "user", "content": "I don't see the fire.\n"},
]
# Models with their template in chat_template.jinja, or in tokenizer_config.json where there is none; that of the last
# one does not write the token that texts begin with.
CHATS = [
    ("llama --tokenizer llama3", None),
    ("qwen2 --tokenizer qwen2", TEMPLATE_OF_LINES),
    ("gemma3_text --tokenizer gemma", None),
]


def encoded(tokenizer, text, special):
    tokenizer.encode_special_tokens = not special
    return tokenizer.encode(text, add_special_tokens=False).ids


def row(tokenizer, text):
    """A text's ids, and what they decode to where that is another text."""
    plain, parsed = encoded(tokenizer, text, False), encoded(tokenizer, text, True)
    found = {"plain": plain}
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


def before(tokenizer, settings):
    """What stands before a text: what the post-processor puts there, or the token that the settings ask for."""
    begun = tokenizer.encode("a", add_special_tokens=True).ids
    added = begun[: len(begun) - len(encoded(tokenizer, "a", True))]
    if settings.get("add_bos_token") and not added:
        added = [tokenizer.token_to_id(settings["bos_token"])]
    return added


def kind_of(kind):
    files = json_tokenizers.files(kind, json_tokenizers.vocab_of(kind))
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    tokenizer.no_truncation()
    own = [*token_texts.special_texts(json_tokenizers.SPECIAL[kind]), *AROUND]
    rows = [row(tokenizer, text) for text in TEXTS]
    rows += [{"text": text, **row(tokenizer, text)} for text in own]
    added = before(tokenizer, files["tokenizer_config.json"])
    print(f"{kind}: {len(rows)} texts, before a text {added}")
    lines = ",\n".join(compact(found) for found in rows)
    vocab = json_tokenizers.vocab_of(kind)
    return f'{{"kind":"{kind}","vocab":{vocab},"before":{compact(added)},"rows":[\n{lines}\n]}}'


def chat(flags, template):
    """A chat with a model as transformers write it for the model, and the ids that they take for ends."""
    with tempfile.TemporaryDirectory() as folder:
        make_safetensors.make(make_safetensors.parse([folder, *flags.split()]))
        if template is not None:
            (pathlib.Path(folder) / "chat_template.jinja").write_text(template)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        text = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
        ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=True, return_dict=False)
        ends = transformers.GenerationConfig.from_pretrained(folder).eos_token_id
    print(f"{flags}: {text!r}, {len(ids)} tokens, ends {ends}")
    return compact({"flags": flags, "template": template, "messages": MESSAGES, "ids": ids, "ends": ends})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=pathlib.Path)
    args = parser.parse_args()
    kinds = ",\n".join(kind_of(kind) for kind in json_tokenizers.KINDS)
    chats = ",\n".join(chat(flags, template) for flags, template in CHATS)
    versions = compact({"tokenizers": tokenizers.__version__, "transformers": transformers.__version__})
    args.output.write_text(f'{{"versions":{versions},"texts":{compact(TEXTS)},"kinds":[\n{kinds}\n],"chats":[\n{chats}\n]}}\n')


if __name__ == "__main__":
    main()
