"""Token ids, ends and defaults of the vocabularies of make_tokenizers.py by llama.cpp.

usage: python make_tokenizer_references.py WORK_DIR TOKENIZERS.json
"""

import argparse
import json
import pathlib

import llama_cpp

import make_tokenizers
import reference_model as reference
import token_texts


def vocabulary(path):
    model = reference.load_vocabulary(path)
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    ends = [id for id in range(llama_cpp.llama_vocab_n_tokens(vocab)) if llama_cpp.llama_vocab_is_eog(vocab, id)]
    return model, {"ends": ends, "adds_bos": bool(llama_cpp.llama_vocab_get_add_bos(vocab))}


def words(folder):
    """The ids of all texts, once for pre-tokenizers that give the same."""
    texts = [*token_texts.COMMON, *token_texts.DIGIT_RUNS, *token_texts.PRETOKENIZER]
    groups = {}
    for pre in make_tokenizers.PRETOKENIZERS:
        model, about = vocabulary(folder / f"words-{pre}.gguf")
        ids = [reference.encode(model, text, special=False) for text in texts]
        model.close()
        names = groups.setdefault(json.dumps(ids, separators=(",", ":")), {})
        names[pre] = about["adds_bos"]
    print(f"{len(texts)} texts, {len(groups)} groups: {[list(names) for names in groups.values()]}")
    rows = ",\n".join(f'{{"adds_bos":{json.dumps(names)},"ids":{ids}}}' for ids, names in groups.items())
    return json.dumps(texts, separators=(",", ":")), f"[\n{rows}\n]"


def special(folder, name, tokens):
    model, about = vocabulary(folder / f"{name}.gguf")
    rows = []
    for text in tokens:
        plain, parsed = (reference.encode(model, text, special=flag) for flag in (False, True))
        rows.append({"text": text, "plain": plain} if plain == parsed else {"text": text, "plain": plain, "special": parsed})
    model.close()
    print(f"{name}: ends {about['ends']}")
    return json.dumps({"name": name, **about, "texts": rows}, separators=(",", ":"))


def around(tokens):
    """Texts with special tokens, and around them."""
    first, last = tokens[0], tokens[-1]
    return [*tokens, f"a{first} b", f"{last}\n x", f"{last} \n\t x {first}  ", f" {first}{last} ", f"{first}  {last}\n\n", "a  b\n\n\tc    d\t\te\n\n\n\nf"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work_dir", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    make_tokenizers.make(args.work_dir)
    texts, groups = words(args.work_dir)
    rows = []
    for name, family in make_tokenizers.ENDS.items():
        tokens = [text for kind in ("plain", "control", "user") for text in family.get(kind, [])]
        rows.append(special(args.work_dir, f"ends-{name}", around(tokens)))
    for name, family in make_tokenizers.PIECES.items():
        own = around(["<s>", "</s>", "<unk>", *family["control"], *family["user"]])
        rows.append(special(args.work_dir, f"pieces-{name}", [*own, *token_texts.COMMON]))
    versions = json.dumps({"llama-cpp-python": llama_cpp.__version__}, separators=(",", ":"))
    special_rows = ",\n".join(rows)
    args.output.write_text(f'{{"versions":{versions},"texts":{texts},"words":{groups},"special":[\n{special_rows}\n]}}\n')


if __name__ == "__main__":
    main()
