#!/usr/bin/env python3
"""Train each write-up's own configuration on several seeds, as a user would, and compare with what it reports.

    benchmarks/writeups.py DATA [--studies three_conv ...] [--seeds 0 1 2] [--jobs 2] [--work FOLDER] [--out FILE]

DATA is a folder in the zenodo layout with 60,000 + 10,000 rows. Each run is `mmsearch launch` of one trial, the one
with the study file's defaults, and `mmsearch retrain-best`, in a process that has one core to itself. What was done is
kept in FOLDER and not done again. The results go to FILE, and as a Markdown table to standard output.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REPORTED = {  # what each write-up says of itself, and of which rows
    "dual_conv": "none (its results are a competition's submission)",
    "three_conv": "0.9893 (on its validation rows)",
    "conv_lstm": "0.99 (on a tenth of the training rows)",
}


def run(study: str, seed: int, data: Path, work: Path, core: int) -> dict[str, Any]:
    """Search one trial and retrain it; the scores, seconds and commands."""
    name = f"{study}-{seed}"
    options = ["--data", str(data), "--study-name", name, "--seed", str(seed)]
    file = str(ROOT / "studies" / f"{study}.toml")
    commands = [
        ["launch", file, *options, "--trials", "1", "--workers", "1"],
        ["retrain-best", file, *options],
    ]
    shown = {file: f"studies/{study}.toml", str(data): "DATA"}
    record = work / name / "benchmark.json"
    if record.exists():
        held: dict[str, Any] = json.loads(record.read_text())
        return held
    seconds = []
    (work / name).mkdir(parents=True, exist_ok=True)
    with (work / f"{name}.log").open("a") as log:
        for command in commands:
            started = time.monotonic()
            subprocess.run(
                [sys.executable, "-m", "mmsearch", *command],
                env={**os.environ, "MMSEARCH_FOLDER": str(work)},
                stdout=log,
                stderr=log,
                check=True,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )
            seconds.append(round(time.monotonic() - started, 1))
    metrics = json.loads((work / name / "retrained" / "best" / "metrics.json").read_text())
    kept = {key: metrics[key] for key in ("epochs", "parameters", "hardware", "versions")}
    found = {
        "study": study,
        "seed": seed,
        "macro_f1": metrics["test"]["macro_f1"],
        "accuracy": metrics["test"]["accuracy"],
        "validation": metrics["searched"]["value"],
        "held_back_macro_f1": (metrics.get("held_back") or {}).get("macro_f1"),
        "rows": [metrics["data"]["training_rows"], metrics["test"]["rows"]],
        "launch_s": seconds[0],
        "retrain_s": seconds[1],
        "commands": ["mmsearch " + shlex.join(shown.get(part, part) for part in command) for command in commands],
        **kept,
    }
    record.write_text(json.dumps(found, indent=2) + "\n")
    return found


def table(results: list[dict[str, Any]]) -> str:
    """A row a study: reported, ours with spread, data, seeds, time."""
    lines = [
        "| study | the write-up says | mean test macro F1 | lowest and highest | seeds | epochs | minutes a seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for study, said in REPORTED.items():
        found = [result for result in results if result["study"] == study]
        if not found:
            continue
        scores = [result["macro_f1"] for result in found]
        minutes = statistics.mean(result["launch_s"] + result["retrain_s"] for result in found) / 60
        epochs = ", ".join(str(result["epochs"]) for result in found)
        lines.append(
            f"| `{study}` | {said} | {statistics.mean(scores):.4f} | {min(scores):.4f} to {max(scores):.4f} | "
            f"{len(found)} | {epochs} | {minutes:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--studies", nargs="+", choices=sorted(REPORTED), default=list(REPORTED))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=ROOT / "storage" / "writeups")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "writeups.json")
    args = parser.parse_args()
    cores: Queue[int] = Queue()
    for core in sorted(os.sched_getaffinity(0))[: args.jobs]:
        cores.put(core)

    def job(pair: tuple[str, int]) -> dict[str, Any]:
        core = cores.get()
        try:
            found = run(*pair, args.data.resolve(), args.work.resolve(), core)
        finally:
            cores.put(core)
        print(f"{pair[0]} seed {pair[1]}: test macro F1 {found['macro_f1']:.4f}", file=sys.stderr, flush=True)
        return found

    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(job, [(study, seed) for study in args.studies for seed in args.seeds]))
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    command = shlex.join(
        ["benchmarks/writeups.py", "DATA", "--studies", *args.studies, "--seeds", *map(str, args.seeds)]
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"date": date, "command": command, "results": results}, indent=2) + "\n")
    print(table(results), end="")


if __name__ == "__main__":
    main()
