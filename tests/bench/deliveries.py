"""By how much a running stream is slowed while weights are fetched, on this machine.

usage: python3 tests/bench/deliveries.py [--share PERCENT] [--rounds N] [--work FOLDER] [--bin FOLDER] [--model FILE]

Every round starts a coordinator and a worker with the model, has it decode one long answer, and lets a worker join that has nothing. The plan
is pinned to both (`PUT /api/pin`), so that the second fetches its half beside the answer, gently, as `--fetch-share` says. The time between
tokens while weights come is compared with the time between those before. Both ends of the fetch and the stream share this machine's
processors, which is the worst there can be.

The model is llama-1b-32k-q4_k_m of the work folder (make_model.py makes it; pipeline.py, too). Writes deliveries.json and deliveries.md to the
work folder. Let nothing else run meanwhile.
"""

import json
import statistics
import threading
import time

import cases
import compare
from cluster import Cluster, Programs
from compare import say

MODEL = "llama-1b-32k-q4_k_m"
TOKENS, CONTEXT = 900, 1024
# Tokens before anything is fetched, and how long it may take until something is.
BEFORE_TOKENS, START_S, POLL_S = 150, 60, 0.02


def fetched(cluster):
    """Bytes that the second worker has got; nothing while it is not there."""
    workers = cluster.asked("GET", "/api/status")["workers"]
    return next((worker["fetched_bytes"] for worker in workers if worker["name"] == "w2" and worker["state"] == "attached"), None)


def wait(what, until):
    deadline = time.monotonic() + START_S
    while not until():
        if time.monotonic() > deadline:
            raise SystemExit(f"error: {what} is still waited for after {START_S} s")
        time.sleep(POLL_S)


def round_of(args, programs):
    settings = ["--ctx", CONTEXT, "--parallel", 1, "--no-speculation"]
    cluster = Cluster(programs, args.model, 1, None, [0, 0], settings)
    try:
        join = cluster.line(cluster.processes[0][1:], lambda words: "--token" in words)
        token = join[join.index("--token") + 1]
        control = join[join.index("join") + 1]
        empty = args.work / "empty"
        empty.mkdir(exist_ok=True)
        command = [programs.worker, "join", control, "--name", "w2", "--threads", 1, "--memory", "4GiB", "--models", empty]
        cluster.start("w2", 0, [*command, "--fetch-share", args.share], {"BRIGADE_TOKEN": token})
        wait("the second worker", lambda: fetched(cluster) is not None)
        stream = cluster.stream(16, TOKENS)
        began = time.monotonic()
        thread = threading.Thread(target=stream.run)
        thread.start()
        wait("an answer", lambda: len(stream.at) >= BEFORE_TOKENS)
        cluster.asked("PUT", "/api/pin", {"workers": ["w1", "w2"]})
        wait("weights", lambda: fetched(cluster) > 1 << 20)
        first, seen, seen_at = time.monotonic(), fetched(cluster), time.monotonic()
        while time.monotonic() < seen_at + 1.5 and thread.is_alive():
            now = fetched(cluster)
            if now > seen:
                seen, seen_at = now, time.monotonic()
            time.sleep(POLL_S)
        last = seen_at
        thread.join()
        at = [began + ms / 1e3 for ms in stream.at]
        between = lambda start, end: [later - sooner for sooner, later in zip(at, at[1:]) if start <= sooner and later <= end]  # noqa: E731
        before, during = between(at[20], at[BEFORE_TOKENS - 1]), between(first, last)
        if len(during) < 20:
            raise SystemExit(f"error: only {len(during)} tokens came while weights were fetched: take a larger model")
        rate = lambda times: len(times) / sum(times)  # noqa: E731
        return {"before": rate(before), "during": rate(during), "bytes": seen, "seconds": last - first, "tokens": len(during)}
    finally:
        cluster.stop()


def main():
    parser = cases.parser(__doc__)
    cases.add_model(parser, MODEL)
    parser.add_argument("--share", type=int, default=10, help="what --fetch-share says, in percent")
    args = cases.parse(parser)
    programs = Programs(args.bin, say)
    rounds = []
    for number in range(args.rounds):
        say(f"round {number + 1}...")
        found = round_of(args, programs)
        slower = 1 - found["during"] / found["before"]
        say(f"  {found['before']:.1f} tokens/s before, {found['during']:.1f} while {found['bytes'] / 1e6:.0f} MB came in {found['seconds']:.1f} s: "
            f"{slower:.1%} slower")  # fmt: skip
        rounds.append(found)
    slower = [1 - found["during"] / found["before"] for found in rounds]
    middle = lambda key: statistics.median(found[key] for found in rounds)  # noqa: E731
    lines = [
        f"Fetching with a share of {args.share}%: {middle('before'):.1f} tokens/s before, {middle('during'):.1f} while "
        f"{middle('bytes') / 1e6:.0f} MB came at {statistics.median(f['bytes'] / f['seconds'] for f in rounds) / 1e6:.0f} MB/s; "
        f"{statistics.median(slower):.1%} slower ({min(slower):.1%} to {max(slower):.1%}; medians of {len(rounds)} rounds)."
    ]  # fmt: skip
    results = {"machine": compare.machine(), "share": args.share, "rounds": rounds}
    (args.work / "deliveries.json").write_text(json.dumps(results, indent=1))
    (args.work / "deliveries.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
