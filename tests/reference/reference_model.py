"""llama.cpp as the reference: token ids and log-probabilities of a fixed path."""

import ctypes
import hashlib
import pathlib
import subprocess
import sys

import llama_cpp
import numpy as np

import reference_paths

F32 = 0
HERE = pathlib.Path(__file__).parent
# Positions that tiny models get room for; the paths are shorter.
CONTEXT = 256


def load(path, threads, n_ctx, cache_f32):
    """A model on the CPU without flash attention, which keeps the logits of every position."""
    cache = {"type_k": F32, "type_v": F32} if cache_f32 else {}
    return llama_cpp.Llama(
        str(path), n_ctx=n_ctx, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads, n_gpu_layers=0,
        logits_all=True, flash_attn=False, seed=0, verbose=False, **cache,
    )  # fmt: skip


def load_vocabulary(path):
    return llama_cpp.Llama(str(path), vocab_only=True, verbose=False)


def encode(model, text, special):
    """Token ids of `text` without BOS. The buffer is sized by llama.cpp itself, since ids may outnumber bytes."""
    data = text.encode("utf-8")
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    count = -llama_cpp.llama_tokenize(vocab, data, len(data), None, 0, False, special)
    if count <= 0:
        return []
    ids = (llama_cpp.llama_token * count)()
    written = llama_cpp.llama_tokenize(vocab, data, len(data), ids, count, False, special)
    assert written == count
    return list(ids)


def decode(model, ids, special=True):
    """The bytes that llama.cpp makes of each id, joined."""
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    out, buffer = b"", ctypes.create_string_buffer(256)
    for token in ids:
        size = llama_cpp.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, special)
        out += buffer.raw[:size]
    return out


def prompt_ids(model, text):
    """Ids of a prompt: special tokens parsed, BOS where the file asks for it."""
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    bos = [model.token_bos()] if llama_cpp.llama_vocab_get_add_bos(vocab) else []
    return bos + encode(model, text, special=True)


def greedy(model, ids, steps):
    """`ids` and `steps` greedy tokens after it; end tokens do not stop it."""
    model.reset()
    model.eval(ids)
    path = list(ids)
    for step in range(steps):
        path.append(int(np.argmax(model.scores[len(path) - 1])))
        if step + 1 < steps:
            model.eval(path[-1:])
    return path


def log_probabilities(model, path):
    """[positions, vocabulary] in float64: row i is the distribution of path[i + 1] given path[..=i]. One batch, from a cleared cache."""
    model.reset()
    model.eval(path)
    return np.stack([log_softmax(model.scores[i]) for i in range(len(path) - 1)])


def log_softmax(logits):
    logits = logits.astype(np.float64)
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def of_path(rows, path):
    """Each path token's log-probability; the first has none."""
    return [None] + [round(float(row[token]), 6) for row, token in zip(rows, path[1:])]


def margins(rows):
    """Best minus second best log-probability of each row."""
    best = np.partition(rows, -2, axis=1)[:, -2:]
    return [round(float(b - a), 6) for a, b in best]


def rows_of(path, tokens, cache_f32):
    model = load(path, 1, CONTEXT, cache_f32)
    rows = [log_probabilities(model, ids) for ids in tokens]
    model.close()
    return rows


def make_variant(generator, name, flags, work_dir, seed=reference_paths.PATH_SEED):
    """A model that `generator` makes from `flags`, and what llama.cpp gives for it on paths drawn with `seed`."""
    source, exact = work_dir / f"{name}.gguf", work_dir / f"{name}-exact.gguf"
    args = generator.parse([str(source), *flags.split()])
    generator.make(args)
    subprocess.run([sys.executable, HERE.parent / "python" / "dequantise.py", source, exact, "--type", "f32"], check=True)
    tokens = list(reference_paths.paths(args.vocab, seed))
    exact_rows, own_rows = rows_of(exact, tokens, True), rows_of(source, tokens, False)
    item = {"name": name, "flags": flags, "sha256": hashlib.sha256(source.read_bytes()).hexdigest(), "paths": []}
    error = []
    for ids, wanted, own in zip(tokens, exact_rows, own_rows):
        item["paths"].append({"path": ids, "exact": of_path(wanted, ids), "llama_cpp": of_path(own, ids)})
        error += [abs(a - b) for a, b in zip(item["paths"][-1]["exact"][1:], item["paths"][-1]["llama_cpp"][1:])]
    rows = np.concatenate(exact_rows)
    entropy, best = float(-(np.exp(rows) * rows).sum(axis=1).mean()), float(np.exp(rows.max(axis=1)).mean())
    item["entropy"] = round(entropy, 3)
    print(
        f"{name}: {source.stat().st_size} bytes, entropy {entropy:.2f} of {np.log(args.vocab):.2f}, best {best:.2f}, "
        f"|llama_cpp - exact| mean {np.mean(error):.6f} max {np.max(error):.6f}",
        flush=True,
    )
    return item
