"""How true predictions are: what a cluster says that it will do, against what it does, on this machine.

usage: python3 tests/bench/predictions.py [--only CASE,..] [--rounds N] [--work FOLDER] [--bin FOLDER] [--model FILE]

For every case and round it starts a cluster of real processes, whose workers measure themselves as they always do, asks the coordinator
what it expects of its plan (`GET /api/forecast`), and then measures that with `brigade bench`: one stream, 8 streams and a prompt. Starting
anew for every round keeps calibration and measurement close together, on machines whose speed changes by the hour. Slow links are network
namespaces (links.py), which need root; where they cannot be made, those cases are skipped, and that is said.

The model is llama-1b-32k-q4_k_m of the work folder (make_model.py makes it; pipeline.py, too), and SmolLM2 (deploy/fetch-model.sh) for the
cases that name it. Writes predictions.json and predictions.md to the work folder, as the cases end. Let nothing else run meanwhile.
"""

import json
import statistics
import sys
import time

import cases
import compare
import links
from cluster import Cluster, Programs
from compare import say

MODEL = "llama-1b-32k-q4_k_m"
SLOW_MS = 1.0
# Each case: threads of every worker, whether over slow links, and whether with SmolLM2.
CASES = {
    "one": ([1], False, False),
    "one-of-two-threads": ([2], False, False),
    "two": ([1, 1], False, False),
    "two-unequal": ([2, 1], False, False),
    "three": ([1, 1, 1], False, False),
    "three-unequal": ([1, 2, 1], False, False),
    "one-far": ([1], True, False),
    "two-far": ([1, 1], True, False),
    "two-unequal-far": ([2, 1], True, False),
    "three-far": ([1, 1, 1], True, False),
    "small-one": ([1], False, True),
    "small-two": ([1, 1], False, True),
}
WANTED = 0.10
HEARTBEATS_S = 2.5
STREAMS, ONE_TOKENS, MANY_TOKENS, PROMPT, CONTEXT = 8, 64, 48, 512, 1024
FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"


def asked(cluster, path):
    """What the coordinator answers, asked on its own host."""
    command = [sys.executable, "-c", FETCH, f"http://127.0.0.1:{cluster.http_port}{path}"]
    command = cluster.network.command(cluster.hosts[0], command) if cluster.network else command
    return json.loads(compare.call(command, env=cluster.environment))


def forecast(cluster, streams, tokens):
    # Sequences have half of what is drawn in the cache, on average; the prompt before it is a token or so.
    return asked(cluster, f"/api/forecast?streams={streams}&prompt={PROMPT}&context={tokens // 2}")


def round_of(cluster):
    """Predicted and measured tokens per second, by what is measured."""
    # Links are known when they have carried something and a heartbeat has told of it.
    cluster.bench("-p", 0, "-n", 8, "--streams", 1)
    time.sleep(HEARTBEATS_S)
    one, many = forecast(cluster, 1, ONE_TOKENS), forecast(cluster, STREAMS, MANY_TOKENS)
    measured = lambda *arguments: cluster.bench(*arguments)["tests"][0]["median_ts"]  # noqa: E731
    return {
        "one stream": (one["decode_tokens_per_s"], measured("-p", 0, "-n", ONE_TOKENS, "--streams", 1)),
        f"{STREAMS} streams": (many["decode_tokens_per_s"], measured("-p", 0, "-n", MANY_TOKENS, "--streams", STREAMS)),
        f"prompt of {PROMPT}": (one["prompt_tokens_per_s"], measured("-p", PROMPT, "-n", 0)),
    }


def run(case, args, programs, devices):
    threads, far, small = CASES[case]
    model = compare.model("smollm2-q4_1", None, args) if small else args.model
    network = links.Network([SLOW_MS] * (len(threads) + 1)) if far else None
    rounds = []
    try:
        for number in range(args.rounds):
            say(f"{case}, round {number + 1}: starting {len(threads)} worker(s)...")
            settings = ["--ctx", CONTEXT, "--parallel", STREAMS, "--no-speculation"]
            cluster = Cluster(programs, model, threads, network, list(range(len(threads) + 1)), settings)
            try:
                rounds.append(round_of(cluster))
                status = cluster.status()
                layers = [stage["layer_end"] - stage["layer_start"] for stage in status["stages"]]
                devices.append({"case": case, "layers": layers, "devices": asked(cluster, "/api/devices")})
            finally:
                cluster.stop()
            say("  " + ", ".join(f"{what} {one:.1f} predicted, {other:.1f} measured" for what, (one, other) in rounds[-1].items()))
    finally:
        if network:
            network.close()
    return [row(case, what, layers, [found[what] for found in rounds]) for what in rounds[0]]


def row(case, what, layers, pairs):
    errors = [predicted / measured - 1 for predicted, measured in pairs]
    middle = lambda values: statistics.median(values)  # noqa: E731
    error = middle(errors)
    return {
        "case": case, "what": what, "layers": layers, "predicted": middle([one for one, _ in pairs]), "measured": middle([other for _, other in pairs]),
        "error": error, "least": min(errors), "largest": max(errors), "holds": abs(error) <= WANTED,
    }  # fmt: skip


def described(case):
    threads, far, small = CASES[case]
    words = f"{len(threads)} worker{'s' if len(threads) > 1 else ''} of {', '.join(map(str, threads))} thread{'s' if threads != [1] else ''}"
    return words + (f", 1 Gbit/s and {SLOW_MS:g} ms each way" if far else "") + (", SmolLM2" if small else "")


def table(results):
    lines = cases.heading(results, f"{MODEL} unless it says otherwise")
    lines += ["| cluster | layers | | predicted | measured | error (rounds) |", "|---|---|---|--:|--:|--:|"]
    for row in results["rows"]:
        error = f"{row['error']:+.1%}{'' if row['holds'] else ' ✗'} ({row['least']:+.1%} to {row['largest']:+.1%})"
        layers = "+".join(map(str, row["layers"]))
        lines.append(f"| {described(row['case'])} | {layers} | {row['what']} | {row['predicted']:.1f} | {row['measured']:.1f} | {error} |")
    for skipped in results["skipped"]:
        lines.append(f"| {described(skipped['case'])} | | skipped: {skipped['reason']} | | | |")
    lines += ["", f"Tokens per second; errors are predicted against measured. ✗ marks more than {WANTED:.0%}."]
    return "\n".join(lines) + "\n"


def arguments():
    parser = cases.parser(__doc__, CASES)
    cases.add_model(parser, MODEL)
    return cases.parse(parser, CASES)


def main():
    args = arguments()
    programs, rows, devices = Programs(args.bin, say), [], []
    one = lambda case: rows.extend(run(case, args, programs, devices))  # noqa: E731
    cases.run("predictions", args, one, table, rows, devices=devices)


if __name__ == "__main__":
    main()
