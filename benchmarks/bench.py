#!/usr/bin/env python3
"""Compare mmsearch with a plain Optuna script and with Ray Tune, in turn, on the same two cores and the same data.

    bench.py [--quick] [--only step same-work workers search] [--seeds 0 1 2] [--repeats 3] [--work FOLDER] [--out FILE]

step       training samples a second of two networks, the plain loop against mmsearch's as it is and in float32, in turn
same-work  the same 20 configurations, none pruned, 6 epochs: seconds, and test macro F1 of each, trained again
workers    mmsearch with one worker of one thread against two on the same cores: trials an hour, once started
search     16 trials of one space, each in its own way: seconds until validation macro F1 is a target that all reach,
           and the winners' test macro F1

The data are pairs of the package's demo digits, or of --source, with noise. Each run's raw result is kept in FOLDER,
and not measured again while all that it depends on is the same: killed and run again, it goes on. The figures go as
Markdown tables to standard output, and to FILE, which only a whole pass has by default. That takes about 2.5 hours
on two cores, --quick under five minutes; its figures only show that all of it runs. Without --ray-python's file, Ray
Tune is left out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from comparison.contestants import BENCHMARKS, ROOT, WORKERS, ray_versions
from comparison.passes import COMPARISONS, QUICK, Pass, Scale
from comparison.processes import CommandFailed, adopt_orphans, say
from comparison.summary import summarise
from comparison.tables import tables

from mmsearch.errors import DataError
from mmsearch.paths import write_text
from mmsearch.training.provenance import code_digest, device_name, versions

RAY_PYTHON = ROOT / ".venv" / "ray" / "bin" / "python"


def parse(arguments: list[str]) -> argparse.Namespace:
    """The arguments; what is wrong with them is said, with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a little of everything, to see that it runs")
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS))
    parser.add_argument("--seeds", nargs="+", type=int, help="of *search*; default: 0 1 2")
    parser.add_argument("--repeats", type=int, help="of *same work*; default: 3")
    parser.add_argument("--source", default="demo", help="a data folder with a test split, or the word demo")
    parser.add_argument("--ray-python", type=Path, default=RAY_PYTHON, help="of `make bench-ray`")
    parser.add_argument("--work", type=Path, help="default: storage/bench, or storage/bench-quick")
    parser.add_argument(
        "--out",
        type=Path,
        help="default: benchmarks/results/bench.json for a whole pass of the demo data with Ray Tune, else none",
    )
    args = parser.parse_args(arguments)
    if args.repeats is not None and args.repeats < 1:
        parser.error("--repeats must be 1 or more")
    if args.seeds is not None and min(args.seeds) < 0:
        parser.error("--seeds must be 0 or more")
    return args


def planned(args: argparse.Namespace) -> Pass:
    """The pass that is asked for."""
    scale = QUICK if args.quick else Scale()
    if args.seeds:
        scale = replace(scale, seeds=tuple(args.seeds))
    if args.repeats:
        scale = replace(scale, repeats=args.repeats)
    work = args.work or ROOT / "storage" / ("bench-quick" if args.quick else "bench")
    ray = args.ray_python if args.ray_python.exists() else None
    source = args.source if args.source == "demo" else str(Path(args.source).resolve())
    return Pass(scale, source, work.resolve(), ray, tuple(args.only))


def whole(plan: Pass) -> bool:
    """Whether it is the pass whose figures are kept with the project."""
    return plan == replace(plan, scale=Scale(), source="demo", only=COMPARISONS) and plan.ray is not None


def provenance(plan: Pass) -> dict[str, Any]:
    """Where and with what the figures were measured."""
    found: dict[str, str] = versions()
    if plan.ray is not None:
        found = {**found, **ray_versions(plan.ray)}
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "hardware": {
            "device": device_name(torch.device("cpu")),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gb": round(pages / 1e9, 1),
        },
        "processes": f"{WORKERS}, one thread each",
        "versions": found,
        "code": code_digest(),
        "memory": "RssAnon of /proc/PID/status, summed over a run's processes, sampled each second, at its greatest",
        "data": {"source": plan.source if plan.source == "demo" else Path(plan.source).name, **asdict(plan.scale)},
    }


def end(number: int, frame: object) -> None:
    """A signal ends the run in order, so that no process is left."""
    raise SystemExit(128 + number)


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    if len(os.sched_getaffinity(0)) < WORKERS:
        sys.exit(f"it needs {WORKERS} cores, and this process has one")
    plan = planned(args)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, end)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:WORKERS])
    adopt_orphans()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if plan.ray is None and "search" in plan.only:
        say(f"{args.ray_python} is not there: Ray Tune is left out; `make bench-ray` installs it")
    try:
        raw = plan.run()
    except (CommandFailed, DataError) as error:
        sys.exit(str(error))
    shown = shlex.join(["benchmarks/bench.py", *arguments])
    found = {"command": shown, **provenance(plan), **summarise(raw)}
    if args.quick:
        del found["bars"]  # which are set for whole passes
    print(tables(found), end="")
    out = args.out or (BENCHMARKS / "results" / "bench.json" if whole(plan) else None)
    if out is not None:
        write_text(out, json.dumps(found, indent=2) + "\n")
        say(f"written: {out}")


if __name__ == "__main__":
    main(sys.argv[1:])
