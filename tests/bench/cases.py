"""Benchmarks of several cases each: what they are told, the cases one after another, and results that are written as they grow."""

import argparse
import datetime
import json
import os
import pathlib

import compare
import links
from compare import say


def parser(description, cases=()):
    """The flags that all of them have, and `--only` where there are several cases."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if cases:
        parser.add_argument("--only", type=lambda text: text.split(","), default=list(cases), help=f"of {', '.join(cases)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=pathlib.Path, default=compare.REPOSITORY / "target/bench", help="folder for models and results")
    parser.add_argument("--bin", type=pathlib.Path, help="folder of a brigade and a brigade-worker that are built already")
    return parser


def add_model(parser, name):
    """The flag that names the file of the model `name`, which is in the work folder otherwise."""
    parser.add_argument("--model", type=pathlib.Path, help=f"{name}.gguf, where it is not in the work folder")
    parser.set_defaults(model_name=name)


def parse(parser, cases=()):
    """What was typed; the work folder is there then, and so is the model, where one is named."""
    args = parser.parse_args()
    unknown = [case for case in args.only if case not in cases] if cases else []
    if unknown:
        parser.error(f"there is no case {', '.join(unknown)}: choose from {', '.join(cases)}")
    if args.rounds < 1:
        parser.error("rounds start at 1")
    if "model_name" in args:
        args.model = args.model or args.work / f"{args.model_name}.gguf"
        if not args.model.exists():
            parser.error(f"there is no {args.model}: make it with make_model.py, or name it with --model")
        args.model = args.model.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    return args


def run(name, args, one, table, rows, **more):
    """Runs `one` on every case, which adds to `rows`, and writes NAME.json, with `more` in it, and NAME.md, which `table` makes of the same.
    Cases that cannot be run here are skipped, and that is said."""
    began, skipped = datetime.datetime.now(datetime.timezone.utc), []
    machine = compare.machine() | {"busiest": 0.0}
    results = {
        "date": began.strftime("%Y-%m-%d"), "began": began.isoformat(timespec="seconds"), "machine": machine, "rounds": args.rounds,
        "commit": compare.call(["git", "rev-parse", "--short", "HEAD"], cwd=compare.REPOSITORY).strip(), "rows": rows, "skipped": skipped,
        **more,
    }  # fmt: skip
    for case in args.only:
        machine["busiest"] = max(machine["busiest"], os.getloadavg()[0])
        try:
            one(case)
        except links.Unavailable as reason:
            say(f"skipped {case}: {reason}")
            skipped.append({"case": case, "reason": str(reason)})
        # Written as it grows, so that nothing is lost where somebody ends it.
        (args.work / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
        (args.work / f"{name}.md").write_text(table(results))
    print(table(results), end="")
    took = (datetime.datetime.now(datetime.timezone.utc) - began).total_seconds()
    say(f"took {took:.0f} s; results are in {args.work}/{name}.json and {name}.md")


def heading(results, measured):
    """The lines over a table: when, where and on what was `measured`."""
    machine = results["machine"]
    return [
        f"{results['date']}, {machine['processors']} processors, {machine['memory_gib']:.0f} GiB, {machine['system']}; Brigade "
        f"{results['commit']}, {measured}; medians of {results['rounds']} round(s).",
        "",
        # A case's own work is in the load of the next.
        *compare.warning(machine, machine["processors"] * 2),
    ]
