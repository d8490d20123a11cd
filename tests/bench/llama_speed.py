"""llama.cpp's speed on one model, through its C API: what compare.py starts for each of its turns.

usage: python llama_speed.py MODEL.gguf --threads N [--prompt 512] [--decode 128] [--no-mmap]

Timed are `llama_decode` of the prompt in one batch, and of one token after it so often, each waited for and with the logits of its last
token; nothing is sampled, and tokens are drawn at random, as in llama-bench. A whole prompt that does not count comes first. All that
is not said is llama.cpp's default: micro-batches of 512, a cache of F16, flash attention where it chooses so, repacked weights.
Memory is the kernel's high-water mark, less what Python itself held before the model was loaded.
"""

import argparse
import ctypes
import json
import random
import time

import llama_cpp


def status(field):
    """Bytes that the kernel counts for this process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def silent(_level, _text, _data):
    pass


SILENT = llama_cpp.llama_log_callback(silent)


class Session:
    def __init__(self, args):
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE if args.no_mmap else llama_cpp.LLAMA_LOAD_MODE_AUTO
        self.model = llama_cpp.llama_model_load_from_file(args.model.encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {args.model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = args.prompt + args.decode
        params.n_threads = params.n_threads_batch = args.threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot make a context of {params.n_ctx} tokens for {args.model}")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        draw = random.Random(31)
        self.tokens = (llama_cpp.llama_token * params.n_ctx)(*(draw.randrange(self.vocab) for _ in range(params.n_ctx)))

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)

    def run(self, first, count, each):
        """Seconds for `count` tokens from the `first` on, `each` at a time."""
        base, size = ctypes.addressof(self.tokens), ctypes.sizeof(llama_cpp.llama_token)
        began = time.perf_counter()
        for at in range(first, first + count, each):
            tokens = ctypes.cast(base + at * size, ctypes.POINTER(llama_cpp.llama_token))
            code = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(tokens, each))
            if code:
                raise SystemExit(f"llama_decode gave {code} at token {at}")
            llama_cpp.llama_synchronize(self.context)
        return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--no-mmap", action="store_true", help="read the file instead of mapping it")
    args = parser.parse_args()
    llama_cpp.llama_log_set(SILENT, None)
    llama_cpp.llama_backend_init()
    python = status("VmRSS:")
    began = time.perf_counter()
    session = Session(args)
    load_s = time.perf_counter() - began
    session.run(0, args.prompt, args.prompt)
    session.clear()
    prompt_s = session.run(0, args.prompt, args.prompt)
    decode_s = session.run(args.prompt, args.decode, 1)
    print(
        json.dumps(
            {
                "system": llama_cpp.llama_print_system_info().decode(), "prompt_ts": args.prompt / prompt_s,
                "decode_ts": args.decode / decode_s, "load_ms": load_s * 1e3, "peak_resident": status("VmHWM:") - python,
            }
        )  # fmt: skip
    )


if __name__ == "__main__":
    main()
