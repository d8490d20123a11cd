"""How full the pipeline is: several workers of one thread against one, on this machine.

usage: python3 tests/bench/pipeline.py [--only CASE,..] [--rounds N] [--llama-venv FOLDER] [--work FOLDER] [--bin FOLDER]

Starts real clusters (`brigade serve` and workers, each a process), measures them with `brigade bench`, in turn (A B A B), and writes
ratios of medians with the least and largest of the rounds' own. Beside a speed stands the share of what the slowest stage alone would
reach, from the stages' own times in the same run. Slow links are network namespaces (links.py), which need root; where they cannot be
made, those cases are skipped, and that is said. Needs Python 3 with pip, Rust, and for llama.cpp a C++ compiler.

Writes pipeline.json and pipeline.md to the work folder, as the cases end. Let nothing else run meanwhile.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import threading

import cases
import compare
import links
from cluster import Cluster, Programs
from compare import say

MODEL = "llama-1b-32k-q4_k_m"
CASES = {
    "one-stream": "one stream, 2 workers against 1",
    "prompt": "prompt of 2048, 2 workers against 1",
    "hop": "what a hop adds to a step of 2048 f32",
    "eight-streams": "8 streams, 2 workers of 1 thread against one box of 2, and llama.cpp's RPC",
    "gap": "longest gap in 8 streams while a prompt of 4096 arrives",
    "slow-one-stream": "the same over links",
    "slow-prompt": "the same over links",
    "slow-eight-streams": "the same over links",
    "sixteen-streams": "16 streams, 3 workers, long links, stages stretched",
    "far-coordinator": "one stream, the coordinator behind a long link against beside the workers",
    "prompt-lookup": "an edit of given code with SmolLM2, one stream, 2 workers, with drafts against without",
    "draft-model": "one stream with a draft model against without: one that pays, and one that does not",
}
# Each way, in milliseconds.
SLOW_MS, LONG_MS, FAR_MS = 1.0, 5.0, 20.0
STRETCH = 4
# Layers of the model that is served where a second one drafts, and what is made of SmolLM2 for that (tests/python/reshape.py).
DEEP = 240
RESHAPED = {"deep": ["--layers", str(DEEP)], "rounded": ["--type", "q8_0"], "stump": ["--layers", "2"]}
CONTEXT, STREAMS = 4608, 16
# The repeated code is a file of Python, and what is wanted is the same with its class renamed; its beginning is given.
EDITED, RENAMED = "Inventory", "Store"
EDIT_TOKENS = 160
CODE = '''import json


class Inventory:
    """Counts of items by name."""

    def __init__(self, path):
        self.path = path
        self.items = {}

    def load(self):
        with open(self.path) as file:
            self.items = json.load(file)

    def save(self):
        with open(self.path, "w") as file:
            json.dump(self.items, file)

    def add(self, name, count):
        if count < 0:
            raise ValueError("count must not be negative")
        self.items[name] = self.items.get(name, 0) + count

    def remove(self, name, count):
        if self.items.get(name, 0) < count:
            raise ValueError("there are not so many")
        self.items[name] -= count

    def total(self):
        return sum(self.items.values())

    def report(self):
        for name, count in sorted(self.items.items()):
            print(name, count)
'''


class Bench:
    """Clusters as they are asked for, and what was measured on them."""

    def __init__(self, args, programs, model):
        self.args, self.programs, self.model = args, programs, model
        self.clusters, self.networks, self.rows = {}, {}, []

    def cluster(self, workers=1, threads=1, delays_ms=None, together=False, stretch=None, split=None):
        """A cluster that runs already, or a new one. Over links every process has a host of its own, unless the workers are together."""
        key = (workers, threads, delays_ms, together, stretch, split)
        if key not in self.clusters:
            hosts, network = [0] * (workers + 1), None
            if delays_ms is not None:
                hosts = [0] + [1 if together else 1 + worker for worker in range(workers)]
                network = self.network(tuple([delays_ms] * (max(hosts) + 1)))
            settings = ["--ctx", CONTEXT, "--parallel", 4 if workers > 2 else 9, *(["--split", split] if split else [])]
            say(f"starting {workers} worker(s) of {threads} thread(s){f', links of {delays_ms:g} ms' if network else ''}...")
            self.clusters[key] = Cluster(self.programs, self.model, threads, network, hosts, settings, stretch)
        return self.clusters[key]

    def real(self, *settings):
        """Two workers of one thread with SmolLM2, a model that says something; with these settings."""
        if settings not in self.clusters:
            say(f"starting 2 workers with SmolLM2 {' '.join(settings)}...")
            settings_here = ["--ctx", 2048, "--parallel", 2, *settings]
            self.clusters[settings] = Cluster(self.programs, compare.model("smollm2-q4_1", None, self.args), 1, None, [0] * 3, settings_here)
        return self.clusters[settings]

    def drafted(self, place, draft=None):
        """Two workers of one thread with SmolLM2 made deeper, which says what SmolLM2 says, on one of them or on both; with a draft model
        or without."""
        key = ("drafted", place, draft)
        if key not in self.clusters:
            say(f"starting 2 workers with SmolLM2 of {DEEP} layers{f' and {draft} as its draft model' if draft else ''}...")
            settings = ["--ctx", 1024, "--parallel", 1, "--no-speculation"] + (["--draft", self.reshaped(draft)] if draft else [])
            least = 1 if place == "apart" else 2
            self.clusters[key] = Cluster(self.programs, self.reshaped("deep"), 1, None, [0] * 3, settings, least=least)
        return self.clusters[key]

    def reshaped(self, name):
        made = self.args.work / f"smollm2-{name}.gguf"
        if not made.exists():
            script = compare.REPOSITORY / "tests/python/reshape.py"
            source, partial = compare.model("smollm2-q4_1", None, self.args), made.with_suffix(".partial")
            compare.call([self.args.llama or sys.executable, script, source, partial, *RESHAPED[name]])
            partial.rename(made)
        return made

    def network(self, delays_ms):
        if delays_ms not in self.networks:
            self.networks[delays_ms] = links.Network(list(delays_ms))
        return self.networks[delays_ms]

    def close(self):
        for cluster in self.clusters.values():
            cluster.stop()
        for network in self.networks.values():
            network.close()
        self.clusters, self.networks = {}, {}

    def rounds(self, sides, rounds=None):
        """Measures every side in turn, so often; each side is a function that gives a dictionary of numbers."""
        found = {name: [] for name in sides}
        for number in range(rounds or self.args.rounds):
            for name, side in sides.items():
                found[name].append(side())
                say(f"  round {number + 1}, {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in found[name][-1].items()))
        return found

    def row(self, case, what, wanted, found, ours, theirs, key, at_most=False, limit=None):
        """A line of results: the ratio of medians, and where asked the share of the slowest stage's limit."""
        pairs = list(zip(found[ours], found[theirs]))
        each = [one[key] / other[key] for one, other in pairs]
        middle = lambda side: statistics.median(one[key] for one in found[side])  # noqa: E731
        ratio = middle(ours) / middle(theirs)
        row = {
            "case": case, "what": what, "ours": middle(ours), "theirs": middle(theirs), "ratio": ratio, "least": min(each),
            "largest": max(each), "wanted": wanted, "at_most": at_most, "holds": ratio <= wanted if at_most else ratio >= wanted,
        }  # fmt: skip
        if limit is not None:
            share = statistics.median(one["limit_share"] for one in found[ours])
            row |= {"limit_share": share, "limit_wanted": limit, "limit_holds": share >= limit}
        self.rows.append(row)

    def figure(self, case, what, wanted, value, unit):
        """A line that is no ratio: at most so much."""
        self.rows.append({"case": case, "what": what, "value": value, "unit": unit, "wanted": wanted, "at_most": True, "holds": value <= wanted})


def decode(cluster, streams, tokens):
    test = cluster.bench("-p", 0, "-n", tokens, "--streams", streams)["tests"][0]
    stages = test["stages"]
    out = {"tokens/s": test["median_ts"], "itl_ms": test["itl_ms"]["p50"]}
    if streams == 1:
        # A lone stream is on one stage at a time.
        out["limit_share"] = sum(stage["decode_step_us"] for stage in stages) * test["median_ts"] / 1e6
    else:
        out["limit_share"] = max(stage["busy"] for stage in stages)
    return out


def prompt(cluster, tokens):
    test = cluster.bench("-p", tokens, "-n", 0)["tests"][0]
    return {"tokens/s": test["median_ts"], "limit_share": max(stage["busy"] for stage in test["stages"])}


def one_stream(bench, case, delays_ms=None):
    one, two = bench.cluster(1, delays_ms=delays_ms), bench.cluster(2, delays_ms=delays_ms)
    found = bench.rounds({"2 workers": lambda: decode(two, 1, 64), "1 worker": lambda: decode(one, 1, 64)})
    wanted = 0.97 if delays_ms is None else 0.90
    bench.row(case, f"one stream, 2 workers against 1{over(delays_ms)}", wanted, found, "2 workers", "1 worker", "tokens/s")


def long_prompt(bench, case, delays_ms=None):
    one, two = bench.cluster(1, delays_ms=delays_ms), bench.cluster(2, delays_ms=delays_ms, split="8,8")
    found = bench.rounds({"2 workers": lambda: prompt(two, 2048), "1 worker": lambda: prompt(one, 2048)}, min(bench.args.rounds, 2))
    what = f"prompt of 2048, 2 workers of 8 layers each against 1{over(delays_ms)}"
    bench.row(case, what, 1.75, found, "2 workers", "1 worker", "tokens/s", limit=0.95)


def eight_streams(bench, case, delays_ms=None):
    box, two = bench.cluster(1, threads=2, delays_ms=delays_ms), bench.cluster(2, delays_ms=delays_ms)
    sides = {"2 workers": lambda: decode(two, 8, 48), "one box": lambda: decode(box, 8, 48)}
    if delays_ms is None and bench.args.llama:
        sides["llama.cpp RPC"] = lambda: llama_rpc(bench, 8, 48)
    found = bench.rounds(sides)
    what = f"8 streams, 2 workers against a box of 2 threads{over(delays_ms)}"
    bench.row(case, what, 0.85, found, "2 workers", "one box", "tokens/s", limit=0.95)
    if "llama.cpp RPC" in sides:
        bench.row(case, "8 streams, 2 workers against llama.cpp RPC over 2 servers", 2.0, found, "2 workers", "llama.cpp RPC", "tokens/s")


def llama_rpc(bench, streams, tokens):
    script, servers, endpoints = compare.HERE / "llama_streams.py", [], []
    try:
        for processor in range(2):
            endpoint = f"127.0.0.1:{bench.programs.free_port()}"
            command = [bench.args.llama, script, "--serve", endpoint, "--threads", 1]
            pin = (lambda at=processor: os.sched_setaffinity(0, {at % os.cpu_count()})) if hasattr(os, "sched_setaffinity") else None
            servers.append(subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, preexec_fn=pin))
            endpoints.append(endpoint)
            bench.programs.wait_for_port(endpoint)
        command = [bench.args.llama, script, bench.model, "--threads", 1, "--streams", streams, "--decode", tokens, "--rpc", ",".join(endpoints)]
        return {"tokens/s": json.loads(compare.call(command))["decode_ts"]}
    finally:
        for server in servers:
            server.terminate()
            server.wait()


def hop(bench, case):
    """From the coordinator's own medians over the newest 256 steps of one stream, which goes around the two workers alone."""
    two = bench.cluster(2)

    def overhead(cluster):
        cluster.bench("-p", 0, "-n", 288, "--streams", 1)
        status = cluster.status()
        computed = sum(stage["decode_us_p50"] for stage in status["stages"])
        return {"beside stages us": status["steps"]["decode_us_p50"] - computed, "step us": status["steps"]["decode_us_p50"]}

    found = bench.rounds({"2 workers": lambda: overhead(two)})
    middle = statistics.median(one["beside stages us"] for one in found["2 workers"])
    bench.figure(case, "a hop between workers, p50: half of what a step takes besides both stages' own time", 150, middle / 2, "us")


def gap(bench, case):
    cluster = bench.cluster(2)

    def arriving():
        streams = [cluster.stream(16, 1200) for _ in range(8)]
        threads = [threading.Thread(target=stream.run, daemon=True) for stream in streams]
        for thread in threads:
            thread.start()
        for stream in streams:
            stream.wait_for(40)
        before = [stream.count() for stream in streams]
        prompt = cluster.stream(4096, 1).run()
        after = [stream.count() for stream in streams]
        for stream in streams:
            stream.cancel()
        for thread in threads:
            thread.join()
        if not all(other > one for one, other in zip(before, after)):
            raise SystemExit("error: a stream drew nothing while the prompt was computed")
        quiet = [step for stream, count in zip(streams, before) for step in stream.gaps_ms(8, count)]
        longest = max(max(stream.gaps_ms(one, other + 1), default=0.0) for stream, one, other in zip(streams, before, after))
        return {"gap_ms": longest, "usual_ms": statistics.median(quiet), "longest_usual_ms": max(quiet), "prompt_ms": prompt.first_ms}

    found = bench.rounds({"alone": lambda: {"prompt_ms": cluster.stream(4096, 1).run().first_ms}, "with": arriving})
    found["usual"] = [{"gap_ms": one["usual_ms"]} for one in found["with"]]
    without = statistics.median(one["longest_usual_ms"] for one in found["with"])
    what = f"longest gap in 8 streams against their usual step, a prompt of 4096 arriving (ms); before it came the longest was {without:.0f}"
    bench.row(case, what, 4.0, found, "with", "usual", "gap_ms", True)
    bench.row(case, "that prompt against alone (ms)", 2.0, found, "with", "alone", "prompt_ms", True)


def sixteen_streams(bench, case):
    cluster = bench.cluster(3, delays_ms=LONG_MS, stretch=STRETCH)
    found = bench.rounds({"3 workers": lambda: decode(cluster, 16, 32)})
    found["limit"] = [{"tokens/s": one["tokens/s"] / one["limit_share"]} for one in found["3 workers"]]
    what = f"16 streams, 3 workers{over(LONG_MS)}, stages stretched {STRETCH} times, against the slowest stage's limit"
    bench.row(case, what, 0.9, found, "3 workers", "limit", "tokens/s")


def far_coordinator(bench, case):
    beside, far = bench.cluster(2), bench.cluster(2, delays_ms=FAR_MS, together=True)
    found = bench.rounds({"far": lambda: decode(far, 1, 64), "beside": lambda: decode(beside, 1, 64)})
    bench.row(case, f"one stream, the coordinator behind {FAR_MS:g} ms against beside 2 workers", 0.9, found, "far", "beside", "tokens/s")


def prompt_lookup(bench, case):
    """Drafts of the text itself, where it repeats itself and where it does not; the answers must be the same."""
    edited = CODE.replace(EDITED, RENAMED)
    given = edited[: edited.index("(self)", edited.index("def save"))]
    edit = f"# inventory.py\n{CODE}\n\n# store.py, the same with the class renamed to {RENAMED}\n{given}"
    clusters = {"with drafts": bench.real(), "without": bench.real("--no-speculation")}

    def rounds(what, wanted, prompt, temperature):
        texts = set()

        def answer(cluster):
            took_s, text, usage = cluster.complete(prompt, EDIT_TOKENS, temperature)
            texts.add(text)
            details = usage["completion_tokens_details"]
            accepted, rejected = details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]
            return {"tokens/s": (EDIT_TOKENS - 1) / took_s, "drafts": accepted + rejected, "accepted": accepted}

        for cluster in clusters.values():
            answer(cluster)
        sides = {name: lambda cluster=cluster: answer(cluster) for name, cluster in clusters.items()}
        found = bench.rounds(sides, max(bench.args.rounds, 3))
        if len(texts) != 1:
            raise SystemExit(f"error: drafts changed the answer: {texts}")
        drafts, accepted = (statistics.median(one[key] for one in found["with drafts"]) for key in ("drafts", "accepted"))
        what = f"{what} (SmolLM2), one stream, 2 workers, with drafts against without; {accepted} of {drafts} drafts right"
        bench.row(case, what, wanted, found, "with drafts", "without", "tokens/s")

    rounds("an edit of given code", 1.5, edit, 0)
    rounds("a story at temperature 1", 0.97, "Once upon a time, in a town by the sea,", 1)


def draft_model(bench, case):
    """Drafts by a second model, with lookup off on both sides; the answers must be the same."""
    pairs = [
        ("SmolLM2 as Q8_0 for one of 8 times its layers, beside a stage of 2", 1.3, "beside", "rounded", 0),
        ("the same at temperature 1", 1.3, "beside", "rounded", 1),
        ("SmolLM2 as Q8_0 for one of 8 times its layers, on a worker of its own", 1.3, "apart", "rounded", 0),
        ("2 of its layers, which guess badly, beside a stage of 2", 0.95, "beside", "stump", 0),
    ]
    for what, wanted, place, draft, temperature in pairs:
        sides = {"with drafts": bench.drafted(place, draft), "without": bench.drafted(place)}
        texts = set()

        def answer(cluster, temperature=temperature, texts=texts):
            took_s, text, usage = cluster.complete("Once upon a time, in a town by the sea,", EDIT_TOKENS, temperature)
            texts.add(text)
            details = usage["completion_tokens_details"]
            accepted, rejected = details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]
            return {"tokens/s": (EDIT_TOKENS - 1) / took_s, "drafts": accepted + rejected, "accepted": accepted}

        for cluster in sides.values():
            answer(cluster)
        found = bench.rounds({name: lambda cluster=cluster: answer(cluster) for name, cluster in sides.items()}, max(bench.args.rounds, 3))
        if len(texts) != 1:
            raise SystemExit(f"error: drafts changed the answer: {texts}")
        drafts, accepted = (statistics.median(one[key] for one in found["with drafts"]) for key in ("drafts", "accepted"))
        bench.row(case, f"{what}; {accepted} of {drafts} drafts right", wanted, found, "with drafts", "without", "tokens/s")


def over(delays_ms):
    return "" if delays_ms is None else f", 1 Gbit/s and {delays_ms:g} ms each way"


RUNS = {
    "one-stream": one_stream, "prompt": long_prompt, "hop": hop, "eight-streams": eight_streams, "gap": gap,
    "slow-one-stream": lambda bench, case: [one_stream(bench, case, delay) for delay in (SLOW_MS, SLOW_MS / 2)], "slow-prompt": lambda bench, case: long_prompt(bench, case, SLOW_MS),
    "slow-eight-streams": lambda bench, case: eight_streams(bench, case, SLOW_MS), "sixteen-streams": sixteen_streams,
    "far-coordinator": far_coordinator, "prompt-lookup": prompt_lookup, "draft-model": draft_model,
}  # fmt: skip


def table(results):
    lines = [
        *cases.heading(results, f"{MODEL}, {compare.LLAMA_CPP}"),
        "| | ours | compared with | ratio (rounds) | wanted | of the slowest stage's limit | wanted |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    mark = lambda holds: "" if holds else " ✗"  # noqa: E731
    for row in results["rows"]:
        bound = "at most" if row["at_most"] else "at least"
        if "value" in row:
            lines.append(f"| {row['what']} | {row['value']:.0f} {row['unit']}{mark(row['holds'])} | | | {bound} {row['wanted']:g} | | |")
            continue
        limit = ["", ""]
        if "limit_share" in row:
            limit = [f"{row['limit_share']:.2f}{mark(row['limit_holds'])}", f"at least {row['limit_wanted']:g}"]
        lines.append(
            f"| {row['what']} | {row['ours']:.2f} | {row['theirs']:.2f} | {row['ratio']:.2f}{mark(row['holds'])} ({row['least']:.2f} to "
            f"{row['largest']:.2f}) | {bound} {row['wanted']:g} | {' | '.join(limit)} |"
        )
    lines += ["", "Tokens per second, unless it says otherwise. ✗ marks what misses what is wanted."]
    lines += [f"Skipped: {skipped['case']} ({CASES[skipped['case']]}): {skipped['reason']}." for skipped in results["skipped"]]
    return "\n".join(lines) + "\n"


def arguments():
    parser = cases.parser(__doc__, CASES)
    parser.add_argument("--llama-venv", type=pathlib.Path, help=f"a virtual environment with {compare.LLAMA_CPP} (built with -DGGML_RPC=ON), gguf and numpy")
    parser.add_argument("--no-llama", action="store_true", help="without llama.cpp; the model must be in the work folder already")
    return cases.parse(parser, CASES)


def main():
    args = arguments()
    model = args.work / f"{MODEL}.gguf"
    args.llama = None if args.no_llama else compare.llama_python(args)
    if args.llama:
        model = compare.model(MODEL, args.llama, args)
    elif not model.exists():
        raise SystemExit(f"error: there is no {model}; leave out --no-llama once, or make it with make_model.py")
    bench = Bench(args, Programs(args.bin, say), model)

    def one(case):
        say(f"{case}: {CASES[case]}")
        RUNS[case](bench, case)

    try:
        cases.run("pipeline", args, one, table, bench.rows)
    finally:
        bench.close()


if __name__ == "__main__":
    main()
