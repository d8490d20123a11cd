"""Brigade against llama.cpp on this machine: both in turn, on the same files, with the same threads.

usage: python3 tests/bench/compare.py [--files NAME,..] [--threads N,..] [--rounds N] [--llama-venv FOLDER] [--work FOLDER]

Makes what it needs (llama.cpp from the PyPI source package, for this processor; `brigade-worker` for any x86-64 or arm64; the models),
then goes round: for each file and number of threads a process of ours, a process of llama.cpp, and again. Every process loads the
model, runs a prompt that does not count, and is timed once on a prompt of 512 tokens and on 128 tokens decoded one by one after it.
Figures are medians over the rounds. Ratios are ours to llama.cpp's, with the least and largest of the rounds' own.

Needs Python 3 with pip, Rust, and for llama.cpp a C++ compiler. Writes results.json and results.md to the work folder. Let nothing else
run meanwhile: the load before each round is noted, and a warning stands over the table where there was any.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
LLAMA_CPP = "llama-cpp-python==0.3.36"
PACKAGES = ["gguf==0.19.0", "numpy==2.4.6"]
# The real model, and the shape and mix of each other.
MODELS = {
    "smollm2-q4_1": None,
    "llama-1b-q4_k_m": ("llama-1b", "q4_k_m"),
    "llama-1b-q8_0": ("llama-1b", "q8_0"),
    "llama-1b-q4_0": ("llama-1b", "q4_0"),
    "llama-1b-q6_k": ("llama-1b", "q6_k"),
    "llama-1b-32k-q4_k_m": ("llama-1b-32k", "q4_k_m"),
}
COMPARED = [name for name in MODELS if not name.startswith("llama-1b-32k")]
PROMPT, DECODE = 512, 128
# What must hold: decoding at least the smaller of so many times llama.cpp's and so much of the memory's speed; prompts at least as fast;
# memory at most weights + cache + 48 MiB; loading at most so many times merely reading the file, and so many milliseconds.
DECODE_RATIO, MEMORY_SHARE, PROMPT_RATIO, LOAD_RATIO, LOAD_MS = 1.1, 0.92, 1.0, 1.2, 100
# Load averages below this count as a machine that does nothing else.
QUIET_LOAD = 0.3
MIB = 1 << 20


def say(text):
    print(text, file=sys.stderr, flush=True)


def call(command, **options):
    """What a program says, or its end where it fails."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, **options)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}")
    return done.stdout


def llama_python(args):
    """A Python that has llama.cpp, built for this processor."""
    if args.llama_venv:
        python = args.llama_venv / "bin/python"
        # Asked for by name, so that a wrong version is said, not measured.
        version = call([python, "-c", "import llama_cpp; print(llama_cpp.__version__)"]).strip()
        if version != LLAMA_CPP.split("==")[1]:
            raise SystemExit(f"error: {args.llama_venv} has llama-cpp-python {version}, wanted {LLAMA_CPP}")
        return python
    folder = args.work / "llama-venv"
    python, made = folder / "bin/python", folder / "made-from.txt"
    wanted = "\n".join([LLAMA_CPP, *PACKAGES])
    if not made.exists() or made.read_text() != wanted:
        say("building llama.cpp for this processor (about 5 minutes on 2 cores)...")
        call([sys.executable, "-m", "venv", "--clear", folder])
        environment = os.environ | {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}
        # A wheel in pip's cache may have been built with other settings.
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
        call([*install, "--no-binary", "llama-cpp-python", LLAMA_CPP, *PACKAGES], env=environment)
        made.write_text(wanted)
    return python


def our_worker(args):
    if args.worker:
        return args.worker
    say("building brigade-worker...")
    call(["cargo", "build", "--release", "--locked", "-p", "brigade-worker", "--bin", "brigade-worker"], cwd=REPOSITORY)
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")) / "release/brigade-worker"


def model(name, python, args):
    if MODELS[name] is None:
        return REPOSITORY / call([REPOSITORY / "deploy/fetch-model.sh"]).strip()
    path = args.work / f"{name}.gguf"
    if not path.exists():
        say(f"making {path.name}...")
        partial = path.with_suffix(".partial")
        call([python, HERE / "make_model.py", partial, *MODELS[name]])
        partial.rename(path)
    return path


def pinned(threads):
    """Keeps a process on as many processors as it has threads, the same for both programs."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    processors = sorted(os.sched_getaffinity(0))[:threads]
    return lambda: os.sched_setaffinity(0, processors)


def ours(worker, path, threads):
    tests = ["-p", "0", "-n", "0", "--pg", f"{PROMPT},{DECODE}", "-r", "1", "-t", threads, "--read-file", "-o", "json"]
    prompt, decode = json.loads(call([worker, "bench", path, *tests], preexec_fn=pinned(threads)))
    return {
        "prompt_ts": prompt["avg_ts"], "decode_ts": decode["avg_ts"], "bytes_per_token": decode["bytes_per_token"],
        **{key: decode[key] for key in ("memory_bytes_per_s", "load_ms", "read_file_ms", "peak_resident", "resident_limit", "model_size")},
        "cpu_info": decode["cpu_info"],
    }  # fmt: skip


def llama(python, path, threads, *more):
    command = [python, HERE / "llama_speed.py", path, "--threads", threads, "--prompt", PROMPT, "--decode", DECODE, *more]
    return json.loads(call(command, preexec_fn=pinned(threads)))


def measure(name, threads, args, worker, python):
    path = model(name, python, args)
    rounds = []
    for number in range(args.rounds):
        load = os.getloadavg()[0]
        rounds.append({"load_before": load, "ours": ours(worker, path, threads), "llama": llama(python, path, threads)})
        one = rounds[-1]
        say(
            f"{name} -t {threads} round {number + 1}: prompt {one['ours']['prompt_ts']:.1f} / {one['llama']['prompt_ts']:.1f}, "
            f"decode {one['ours']['decode_ts']:.2f} / {one['llama']['decode_ts']:.2f} tokens/s"
        )
    # Only its memory is of interest, which needs no more than loading and a few tokens.
    unmapped = llama(python, path, threads, "--no-mmap", "--prompt", "32", "--decode", "2")
    return {"name": name, "threads": threads, "rounds": rounds, "llama_no_mmap": unmapped, "summary": summary(rounds)}


def summary(rounds):
    """Medians, ratios with their spread, and what must hold."""
    middle = lambda side, key: statistics.median(one[side][key] for one in rounds)  # noqa: E731
    out = {"bandwidth_gb_s": middle("ours", "memory_bytes_per_s") / 1e9}
    for test in ("prompt", "decode"):
        key = f"{test}_ts"
        each = [one["ours"][key] / one["llama"][key] for one in rounds]
        out[test] = {
            "ours": middle("ours", key), "llama": middle("llama", key), "ratio": middle("ours", key) / middle("llama", key),
            "least": min(each), "largest": max(each),
        }  # fmt: skip
    bytes_per_token = middle("ours", "bytes_per_token")
    share = lambda speed: speed * bytes_per_token / middle("ours", "memory_bytes_per_s")  # noqa: E731
    decode = out["decode"]
    decode["share"], decode["llama_share"] = share(decode["ours"]), share(decode["llama"])
    by_memory = MEMORY_SHARE * middle("ours", "memory_bytes_per_s") / bytes_per_token
    decode["wanted"] = min(DECODE_RATIO * decode["llama"], by_memory)
    decode["holds"] = decode["ours"] >= decode["wanted"]
    out["prompt"]["wanted"] = PROMPT_RATIO * out["prompt"]["llama"]
    out["prompt"]["holds"] = out["prompt"]["ours"] >= out["prompt"]["wanted"]
    peak, limit = max(one["ours"]["peak_resident"] for one in rounds), rounds[0]["ours"]["resident_limit"]
    out["memory"] = {"ours": peak, "llama": middle("llama", "peak_resident"), "wanted": limit, "holds": peak <= limit}
    read_ms, load_ms = middle("ours", "read_file_ms"), middle("ours", "load_ms")
    wanted = LOAD_RATIO * read_ms + LOAD_MS
    out["load"] = {"ours": load_ms, "llama": middle("llama", "load_ms"), "read": read_ms, "wanted": wanted, "holds": load_ms <= wanted}
    return out


def warning(machine, own_load):
    """What stands over a table where the load was more than what was measured makes by itself."""
    if machine["busiest"] <= QUIET_LOAD + own_load:
        return []
    return [f"**The machine was doing other things, too (load up to {machine['busiest']:.1f}): read no more than trends.**", ""]


def table(results):
    machine = results["machine"]
    lines = [
        f"{results['date']}, {machine['cpu']}, {machine['processors']} processors, {machine['memory_gib']:.0f} GiB, "
        f"{machine['system']}; Brigade {results['commit']}, {LLAMA_CPP}; medians of {results['rounds']} round(s).",
        "",
    ]
    lines += warning(machine, max(item["threads"] for item in results["items"]))
    lines += [
        f"| model | threads | memory GB/s | prompt {PROMPT} | llama.cpp | ratio (rounds) | decode {DECODE} | llama.cpp | ratio (rounds) "
        "| of memory's | wanted |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    mark = lambda part: "" if part["holds"] else " ✗"  # noqa: E731
    ratio = lambda part: f"{part['ratio']:.2f} ({part['least']:.2f} to {part['largest']:.2f})"  # noqa: E731
    for item in results["items"]:
        out = item["summary"]
        prompt, decode = out["prompt"], out["decode"]
        lines.append(
            f"| {item['name']} | {item['threads']} | {out['bandwidth_gb_s']:.1f} | {prompt['ours']:.1f}{mark(prompt)} | {prompt['llama']:.1f} "
            f"| {ratio(prompt)} | {decode['ours']:.2f}{mark(decode)} | {decode['llama']:.2f} | {ratio(decode)} | {decode['share']:.0%} "
            f"| {decode['wanted']:.2f} |"
        )
    lines += [
        "",
        "| model | threads | most memory, MiB | at most | llama.cpp | llama.cpp without mmap | load, ms | at most | merely reading | llama.cpp |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for item in results["items"]:
        memory, load = item["summary"]["memory"], item["summary"]["load"]
        lines.append(
            f"| {item['name']} | {item['threads']} | {memory['ours'] / MIB:.0f}{mark(memory)} | {memory['wanted'] / MIB:.0f} "
            f"| {memory['llama'] / MIB:.0f} | {item['llama_no_mmap']['peak_resident'] / MIB:.0f} | {load['ours']:.0f}{mark(load)} "
            f"| {load['wanted']:.0f} | {load['read']:.0f} | {load['llama']:.0f} |"
        )
    lines += ["", "✗ marks what misses what is wanted."]
    return "\n".join(lines) + "\n"


def machine():
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {"processors": os.cpu_count(), "memory_gib": pages * page / (1 << 30), "system": f"{platform.system()} {platform.machine()}"}


def numbers(text):
    return [int(part) for part in text.split(",")]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=lambda text: text.split(","), default=COMPARED, help=f"of {', '.join(MODELS)}")
    parser.add_argument("--threads", type=numbers, default=[1, 2], help="numbers of threads, such as 1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=pathlib.Path, default=REPOSITORY / "target/bench", help="folder for models and results")
    parser.add_argument("--llama-venv", type=pathlib.Path, help=f"a virtual environment with {LLAMA_CPP}, gguf and numpy, to save building it")
    parser.add_argument("--worker", type=pathlib.Path, help="a brigade-worker that is built already")
    args = parser.parse_args()
    unknown = [name for name in args.files if name not in MODELS]
    if unknown:
        parser.error(f"there is no model {', '.join(unknown)}: choose from {', '.join(MODELS)}")
    if args.rounds < 1 or min(args.threads) < 1 or max(args.threads) > os.cpu_count():
        parser.error(f"rounds start at 1, and threads are 1 to {os.cpu_count()} here")
    return args


def main():
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    python, worker = llama_python(args), our_worker(args)
    if os.getloadavg()[0] > QUIET_LOAD:
        say(f"warning: the load is {os.getloadavg()[0]:.1f}; where other programs compute, llama.cpp's threads wait for each other for minutes")
    for name in args.files:
        model(name, python, args)
    began, items = datetime.datetime.now(datetime.timezone.utc), []
    results = {
        "date": began.strftime("%Y-%m-%d"), "began": began.isoformat(timespec="seconds"), "machine": machine(), "rounds": args.rounds,
        "commit": call(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY).strip(), "llama_cpp": LLAMA_CPP, "items": items,
    }  # fmt: skip
    for name in args.files:
        for threads in args.threads:
            items.append(measure(name, threads, args, worker, python))
            rounds = [one for item in items for one in item["rounds"]]
            results["machine"]["cpu"] = rounds[0]["ours"]["cpu_info"]
            results["machine"]["busiest"] = max(one["load_before"] for one in rounds)
            # Written as it grows, so that nothing is lost where somebody ends it.
            (args.work / "results.json").write_text(json.dumps(results, indent=1) + "\n")
            (args.work / "results.md").write_text(table(results))
    print(table(results), end="")
    took = (datetime.datetime.now(datetime.timezone.utc) - began).total_seconds()
    say(f"took {took:.0f} s; results are in {args.work}/results.json and results.md")


if __name__ == "__main__":
    main()
