"""llama.cpp with several streams at once, alone or over RPC servers: what pipeline.py starts for each of its turns.

usage: python llama_streams.py MODEL.gguf --threads N --streams K [--decode 64] [--prompt 1] [--rpc HOST:PORT,..]
       python llama_streams.py --serve HOST:PORT --threads N

Timed are `llama_decode` of one token of every stream in a batch, so often, each waited for; nothing is sampled, and tokens are drawn at
random. With `--rpc`, layers are cut in equal parts over the servers, which hold their weights; `--serve` is such a server.
"""

import argparse
import ctypes
import json
import pathlib
import random
import time

import llama_cpp

LIBRARIES = pathlib.Path(llama_cpp.__file__).parent / "lib"


def silent(_level, _text, _data):
    pass


SILENT = llama_cpp.llama_log_callback(silent)


def library(name):
    for folder in (LIBRARIES, LIBRARIES.parent.parent / "lib"):
        for path in sorted(folder.glob(f"lib{name}.*")):
            return ctypes.CDLL(str(path))
    raise SystemExit(f"this llama.cpp was built without {name}: build it with -DGGML_RPC=ON")


def serve(endpoint, threads):
    base, rpc = library("ggml"), library("ggml-rpc")
    base.ggml_backend_load_all()
    base.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    cpu = base.ggml_backend_dev_by_type(0)
    devices = (ctypes.c_void_p * 1)(cpu)
    rpc.ggml_backend_rpc_start_server.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    rpc.ggml_backend_rpc_start_server(endpoint.encode(), None, threads, 1, devices)


def add_servers(endpoints):
    base, rpc = library("ggml"), library("ggml-rpc")
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    for endpoint in endpoints:
        server = rpc.ggml_backend_rpc_add_server(endpoint.encode())
        if not server:
            raise SystemExit(f"no RPC server answers at {endpoint}")
        base.ggml_backend_register(ctypes.c_void_p(server))


class Session:
    def __init__(self, args):
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 999 if args.rpc else 0
        self.model = llama_cpp.llama_model_load_from_file(args.model.encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {args.model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = args.streams * (args.prompt + args.decode + 32)
        params.n_seq_max = args.streams
        params.n_threads = params.n_threads_batch = args.threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot make a context of {params.n_ctx} tokens for {args.model}")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.draw = random.Random(31)
        self.batch = llama_cpp.llama_batch_init(max(args.streams, args.prompt), 0, 1)

    def step(self, rows):
        """Computes `rows` of (stream, position, whether its logits are wanted)."""
        self.batch.n_tokens = len(rows)
        for at, (stream, position, wanted) in enumerate(rows):
            self.batch.token[at] = self.draw.randrange(self.vocab)
            self.batch.pos[at] = position
            self.batch.n_seq_id[at] = 1
            self.batch.seq_id[at][0] = stream
            self.batch.logits[at] = wanted
        code = llama_cpp.llama_decode(self.context, self.batch)
        if code:
            raise SystemExit(f"llama_decode gave {code}")
        llama_cpp.llama_synchronize(self.context)


def measure(args):
    if args.rpc:
        add_servers(args.rpc.split(","))
    session = Session(args)
    for stream in range(args.streams):
        session.step([(stream, position, position + 1 == args.prompt) for position in range(args.prompt)])
    warm = 2
    for position in range(args.prompt, args.prompt + warm):
        session.step([(stream, position, True) for stream in range(args.streams)])
    began = time.perf_counter()
    for position in range(args.prompt + warm, args.prompt + warm + args.decode):
        session.step([(stream, position, True) for stream in range(args.streams)])
    took = time.perf_counter() - began
    print(json.dumps({"decode_ts": args.streams * args.decode / took, "step_ms": took / args.decode * 1e3}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=1)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--rpc", help="addresses of servers, separated by commas")
    parser.add_argument("--serve", metavar="HOST:PORT", help="be such a server")
    args = parser.parse_args()
    llama_cpp.llama_log_set(SILENT, None)
    if args.serve:
        serve(args.serve, args.threads)
        return
    if not args.model:
        parser.error("give a MODEL, or --serve")
    llama_cpp.llama_backend_init()
    measure(args)


if __name__ == "__main__":
    main()
