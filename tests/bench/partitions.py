"""Whether the chosen plan is as fast as every other contiguous partition, by measurement on one unequal pair of workers.

usage: python3 tests/bench/partitions.py [--stretch N,N] [--streams N] [--every N] [--rounds N] [--work FOLDER] [--bin FOLDER] [--model FILE]

Starts a coordinator and two workers of one thread, of which the second sleeps after each step until it has taken twice as long
(`BRIGADE_STRETCH`, which it says and is planned with), and notes the plan that is chosen. Then it pins the plan (`PUT /api/pin`) to every cut
of the layers, one after the other, and measures each with `brigade bench`: 8 streams that decode. Which worker comes first is predicted for
each cut, and no pin says otherwise. Every round goes through all cuts, in turn forwards and backwards, so that a machine whose speed drifts
favours none. `--every 3` takes every third cut; the chosen one, its neighbours and the even one are always among them.

The model is llama-1b-32k-q4_k_m of the work folder (make_model.py makes it; pipeline.py, too). Writes partitions.json and partitions.md to
the work folder after each round. Let nothing else run meanwhile.
"""

import datetime
import json
import os
import statistics
import time

import cases
import compare
from cluster import Cluster, Programs
from compare import say

MODEL = "llama-1b-32k-q4_k_m"
# As cluster.py calls them.
WORKERS = ["w1", "w2"]
STREAMS, TOKENS, PROMPT, CONTEXT = 8, 48, 512, 1024
# After a switch, before anything counts: weights that were just read are still moved to huge pages.
SETTLE_TOKENS = 24
SWITCH_S, POLL_S = 120, 0.1
# Of what the best one does, the least that the chosen one does: less than what makes the planner take another stage.
WANTED = 0.05


class Pair:
    """Two workers that serve a model, and may be pinned to a cut: the layers of each stage, in the pipeline's order."""

    def __init__(self, args, programs):
        self.streams = args.streams
        settings = ["--ctx", CONTEXT, "--parallel", args.streams, "--no-speculation"]
        self.cluster = Cluster(programs, args.model, 1, None, [0, 0, 0], settings, args.stretch)

    def served(self):
        """Workers and layers of what is served; nothing where something else is coming."""
        status = self.cluster.asked("GET", "/api/status")
        if status["phase"] != "serving" or status["note"]:
            return []
        return [(stage["name"], stage["layer_end"] - stage["layer_start"]) for stage in status["stages"]]

    def pin(self, cut):
        self.cluster.asked("PUT", "/api/pin", {"workers": WORKERS, "split": cut})
        deadline = time.monotonic() + SWITCH_S
        while layers(self.served()) != cut:
            if time.monotonic() > deadline:
                raise SystemExit(f"error: {cut} is not served after {SWITCH_S} s: {self.cluster.asked('GET', '/api/status')}")
            time.sleep(POLL_S)

    def measure(self, cut):
        """Predicted and measured tokens per second of all streams together."""
        self.pin(cut)
        self.cluster.bench("-p", 0, "-n", SETTLE_TOKENS, "--streams", self.streams)
        # Sequences have half of what is drawn in the cache, on average.
        forecast = self.cluster.asked("GET", f"/api/forecast?streams={self.streams}&prompt={PROMPT}&context={TOKENS // 2}")
        test = self.cluster.bench("-p", 0, "-n", TOKENS, "--streams", self.streams)["tests"][0]
        served = self.served()
        if layers(served) != cut:
            raise SystemExit(f"error: {cut} was measured, and {served} is served by now")
        return {"stages": served, "predicted": forecast["decode_tokens_per_s"], "measured": test["median_ts"]}


def layers(stages):
    return tuple(count for _, count in stages)


def cuts(chosen, every):
    """The chosen cut, and every so many of the others."""
    count = sum(chosen)
    always = {chosen[0] - 1, chosen[0], chosen[0] + 1, count // 2}
    others = [(cut, count - cut) for cut in range(1, count) if cut in always or cut % every == 0]
    return [chosen, *(cut for cut in others if cut != chosen)]


def described(stages):
    return ", ".join(f"{name} {count}" for name, count in stages)


def rows(chosen, samples):
    """A line for each cut, the fastest first, with what it does by what the chosen one does in the same round."""
    found = []
    for cut, rounds in samples.items():
        each = [one["measured"] / other["measured"] for one, other in zip(rounds, samples[chosen])]
        middle = lambda key, rounds=rounds: statistics.median(one[key] for one in rounds)  # noqa: E731
        found.append({
            "stages": described(rounds[-1]["stages"]), "is_chosen": cut == chosen, "predicted": middle("predicted"),
            "measured": middle("measured"), "ratio": statistics.median(each), "least": min(each), "largest": max(each),
        })  # fmt: skip
    return sorted(found, key=lambda row: -row["measured"])


def verdict(found):
    """By how much the chosen cut is slower than the fastest, as a share of what that does."""
    best, chosen = found[0], next(row for row in found if row["is_chosen"])
    slower = 1 - chosen["measured"] / best["measured"]
    place = found.index(chosen) + 1
    return {"slower": slower, "best": best["stages"], "place": place, "of": len(found), "wanted": WANTED, "holds": slower <= WANTED}


def table(results):
    found = results["verdict"]
    stretch = " and ".join(f"{factor:g}" for factor in results["stretch"])
    lines = cases.heading(results, f"{results['model']}, workers stretched {stretch} times, {results['streams']} streams")
    lines += ["| layers, in the pipeline's order | predicted | measured | of the chosen one's (rounds) |", "|---|--:|--:|--:|"]
    for row in results["rows"]:
        what = f"**{row['stages']}** (chosen)" if row["is_chosen"] else row["stages"]
        ratio = f"{row['ratio']:.2f} ({row['least']:.2f} to {row['largest']:.2f})"
        lines.append(f"| {what} | {row['predicted']:.1f} | {row['measured']:.1f} | {ratio} |")
    words = "is the fastest" if found["place"] == 1 else f"is {found['slower']:.1%} slower than the fastest ({found['best']})"
    mark = "" if found["holds"] else " ✗"
    lines += ["", f"Tokens per second. The chosen cut {words}, of {found['of']}{mark}; at most {found['wanted']:.0%} are wanted."]
    return "\n".join(lines) + "\n"


def factors(text):
    return [float(part) for part in text.split(",")]


def arguments():
    parser = cases.parser(__doc__)
    cases.add_model(parser, MODEL)
    parser.add_argument("--stretch", type=factors, default=[1, 2], help="how many times as long each worker's steps take as they need")
    parser.add_argument("--streams", type=int, default=STREAMS)
    parser.add_argument("--every", type=int, default=1, help="take every so many of the cuts")
    args = cases.parse(parser)
    if len(args.stretch) != 2 or min(args.stretch) < 1:
        parser.error("--stretch is two numbers from 1, one for each worker")
    if min(args.streams, args.every) < 1:
        parser.error("streams and every so many start at 1")
    return args


def main():
    args = arguments()
    programs = Programs(args.bin, say)
    began = datetime.datetime.now(datetime.timezone.utc)
    results = {
        "date": began.strftime("%Y-%m-%d"), "began": began.isoformat(timespec="seconds"), "machine": compare.machine(),
        "commit": compare.call(["git", "rev-parse", "--short", "HEAD"], cwd=compare.REPOSITORY).strip(), "model": args.model.stem,
        "stretch": args.stretch, "streams": args.streams, "rounds": 0,
    }  # fmt: skip
    results["machine"]["busiest"] = os.getloadavg()[0]
    say(f"starting two workers, stretched {args.stretch[0]:g} and {args.stretch[1]:g} times...")
    pair = Pair(args, programs)
    try:
        chosen = layers(pair.served())
        if len(chosen) != len(WORKERS):
            raise SystemExit(f"error: the plan is not one of two stages: {pair.cluster.asked('GET', '/api/status')}")
        say(f"chosen: {described(pair.served())}")
        samples = {cut: [] for cut in cuts(chosen, args.every)}
        for number in range(args.rounds):
            results["machine"]["busiest"] = max(results["machine"]["busiest"], os.getloadavg()[0])
            for cut in list(samples) if number % 2 == 0 else reversed(samples):
                one = pair.measure(cut)
                samples[cut].append(one)
                say(f"  round {number + 1}, {described(one['stages'])}: {one['predicted']:.1f} predicted, {one['measured']:.1f} measured")
            found = rows(chosen, samples)
            results |= {"rounds": number + 1, "rows": found, "verdict": verdict(found), "samples": list(samples.values())}
            # Written as it grows, so that nothing is lost where somebody ends it.
            (args.work / "partitions.json").write_text(json.dumps(results, indent=1) + "\n")
            (args.work / "partitions.md").write_text(table(results))
        pair.cluster.asked("DELETE", "/api/pin")
    finally:
        pair.cluster.stop()
    print(table(results), end="")
    say(f"results are in {args.work}/partitions.json and partitions.md")


if __name__ == "__main__":
    main()
