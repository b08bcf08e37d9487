#!/usr/bin/env python3
"""What a search costs beside its training: in all, start-up, memory, the sampler, looking at a study of 5,000 trials.

    benchmarks/overhead.py [--parts share start memory sampler looking] [--repeats 5] [--pairs 60000]
                           [--trials 100 1000 5000] [--data FOLDER] [--work FOLDER] [--out FILE]

All of it is the study `digits`, as its user runs it: commands in processes of their own, in a fresh storage folder.

- *share*: of the workers' time in a study's first 100 trials of some 2 seconds each, on SQLite with 2 workers, what is
  not in epochs, as the summary of the launch says it. Nothing is pruned, so that trials are of one length.
- *start*: seconds from the start of `mmsearch launch --workers 2` to the first training step, on the demo data and on
  so many pairs, for a new storage folder, and again with what the first launch left in its cache.
- *memory*: of each worker of 1, 2 and 4, the peak of its anonymous memory (`smaps_rollup`, every 100 ms) over a trial
  of one epoch on so many pairs.
- *sampler*: seconds of one `ask` and all its `suggest`s with so many finished trials in SQLite: mmsearch's TPE, its
  random sampler, and Optuna's own storage with its own `TPESampler()`.
- *looking*: `mmsearch status`, `export`, and the dashboard's API, at the largest number of trials.

A study of many trials is filled without training: values are those of a smooth function with noise, each with ten
reports and all that a worker leaves with a trial. Pairs are made of the demo data with noise, unless `--data` has a
folder. CPU seconds are of user and system, of all processes there are; they are what a busy machine leaves alone.
Writes one JSON object to FILE, and to standard output.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import json
import os
import platform
import re
import resource
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "studies" / "digits.toml"
MMSEARCH = [sys.executable, "-m", "mmsearch"]
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
LOOK_S = 0.1
REPORTS = 10
PARTS = ("share", "start", "memory", "sampler", "looking")
SHORT = {  # of the study file, for trials of some two seconds that are all of one length
    "\ntrials = 20 ": "\ntrials = 100 ",
    "# rows = 1000 ": "rows = 1100 ",
    'pruner = "halving" ': 'pruner = "none" ',
    "max_epochs = 10": "max_epochs = 8",
    "\npatience = 3 ": "\npatience = 9 ",
}
POLLS, POLL_S = 12, 1.0  # the dashboard keeps what it read for ten seconds

Numbers = dict[str, Any]


def spread(values: list[float], digits: int = 3) -> Numbers:
    """The median of repeats, their least and greatest, and themselves."""
    rounded = [round(value, digits) for value in values]
    middle = round(statistics.median(values), digits)
    return {"median": middle, "min": min(rounded), "max": max(rounded), "all": rounded}


def make_pairs(folder: Path, count: int) -> Path:
    """A data set of so many pairs in the zenodo layout: rows of the demo data, with noise, so that none is repeated."""
    from mmsearch.data.sources import read_dataset

    folder.mkdir(parents=True, exist_ok=True)
    demo = read_dataset("demo", test=0)
    rng = np.random.default_rng(0)
    for name, split, rows in (("train", demo.train, count), ("test", demo.test, count // 6)):
        assert split is not None
        drawn = rng.choice(split.rows, rows)
        for kind, array, scale in (("wr", split.image, split.image_scale), ("sp", split.audio, 1.0)):
            made = np.lib.format.open_memmap(
                folder / f"data_{kind}_{name}.npy", "w+", np.float32, (rows, int(np.prod(array.shape[1:])))
            )
            for start in range(0, rows, 5000):
                chunk = array[drawn[start : start + 5000]].reshape(-1, made.shape[1]).astype(np.float32) * scale
                noise = rng.standard_normal(chunk.shape, dtype=np.float32) * (0.1 if kind == "wr" else 0.2)
                made[start : start + 5000] = np.clip(chunk + noise, 0, 1) if kind == "wr" else chunk + noise
            made.flush()
        assert split.label is not None
        np.save(folder / f"labels_{name}.npy", split.label[drawn])
    return folder


class Watch(threading.Thread):
    """Looks every 100 ms at a process and its children: CPU seconds of all, and peaks of each child's memory."""

    def __init__(self, parent: int) -> None:
        super().__init__(daemon=True)
        self.parent = parent
        self.over = threading.Event()
        self.cpu: list[tuple[float, float]] = []  # when, and CPU seconds until then
        self.peaks: dict[int, dict[str, float]] = {}  # of each child: megabytes by kind

    def run(self) -> None:
        """Until it is over."""
        while not self.over.is_set():
            when, total = time.time(), 0.0
            for stat in Path("/proc").glob("[0-9]*/stat"):
                try:
                    fields = stat.read_text().rpartition(")")[2].split()
                    pid = int(stat.parent.name)
                    if pid != self.parent and int(fields[1]) != self.parent:
                        continue
                    total += (int(fields[11]) + int(fields[12])) * TICK_S
                    if pid != self.parent:
                        self._remember(pid, (stat.parent / "smaps_rollup").read_text())
                except OSError:  # it has ended
                    continue
            self.cpu.append((when, total))
            self.over.wait(LOOK_S)

    def _remember(self, pid: int, text: str) -> None:
        peaks = self.peaks.setdefault(pid, {})
        for kind in ("Anonymous", "Pss", "Rss"):
            found = re.search(rf"^{kind}: +(\d+) kB", text, re.MULTILINE)
            if found is not None:
                peaks[kind] = max(peaks.get(kind, 0.0), int(found[1]) / 1024)

    def cpu_until(self, when: float) -> float:
        """CPU seconds of all processes until then."""
        moments, seconds = zip(*self.cpu, strict=True)
        return float(np.interp(when, moments, seconds))


def launch(work: Path, name: str, data: str, workers: int) -> Numbers:
    """One launch of a trial of one epoch for each worker: its first training step, and each worker's memory."""
    text = STUDY.read_text(encoding="utf-8").replace("max_epochs = 10", "max_epochs = 1")
    file = work / "studies" / "digits.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    options = ["--data", data, "--study-name", name, "--trials", str(workers), "--workers", str(workers)]
    with (work / "launch.log").open("a") as log:
        began = time.time()
        process = subprocess.Popen([*MMSEARCH, "launch", str(file), *options], stdout=log, stderr=log)
        watch = Watch(process.pid)
        watch.start()
        code = process.wait()
        ended = time.time()
    watch.over.set()
    watch.join()
    if code:
        raise SystemExit(f"the launch ended with {code}; its log is {work / 'launch.log'}")
    lines = [path.read_text() for path in (work / "storage" / name / "trials").glob("*/metrics.jsonl")]
    # what an epoch is logged with is when its attempt was ready: its first step follows
    first = min(datetime.datetime.fromisoformat(json.loads(line)["attempt"]).timestamp() for line in lines)
    return {
        "seconds": first - began,
        "cpu": watch.cpu_until(first),
        "whole": ended - began,
        "workers": list(watch.peaks.values()),
    }


def measure_share(work: Path, repeats: int) -> Numbers:
    """How much of the workers' time is not in epochs, and of what it is made up."""
    found: dict[str, list[float]] = {}
    for number in range(repeats):
        file = work / f"share-{number}" / "studies" / "digits.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(short_trials(STUDY.read_text(encoding="utf-8")), encoding="utf-8")
        command = [*MMSEARCH, "launch", str(file), "--workers", "2"]
        told = subprocess.run(command, capture_output=True, text=True, check=True)
        (line,) = [line for line in (told.stdout + told.stderr).splitlines() if line.startswith("workers ")]
        shares = {word: float(share) for word, share in re.findall(r"([a-z][a-z -]*?) +([0-9.]+) %", line)}
        shares["in epochs"] = shares.pop("workers")
        shares["beside epochs"] = 100 - shares["in epochs"]
        exported = subprocess.run([*MMSEARCH, "export", str(file)], capture_output=True, text=True, check=True).stdout
        trial = statistics.mean(float(row["duration_s"]) for row in csv.DictReader(io.StringIO(exported)))
        numbers = {f"% {word}": share for word, share in shares.items()}
        numbers["seconds a trial"] = trial
        numbers["milliseconds beside epochs, a trial"] = 10 * trial * shares["beside epochs"]
        numbers["start-up, seconds a worker"] = float(re.findall(r"start-up ([0-9.]+) s", line)[0])
        for name, value in numbers.items():
            found.setdefault(name, []).append(value)
    return {name: spread(values) for name, values in found.items()}


def short_trials(text: str) -> str:
    """The study file with trials of some 2 seconds, none of which is pruned or ends early."""
    for before, after in SHORT.items():
        assert before in text
        text = text.replace(before, after)
    return text


def measure_start(work: Path, sources: dict[str, str], repeats: int) -> Numbers:
    """From the start of `launch` to its first training step."""
    launch(work / "warm", "warm", sources["demo"], 2)  # files into the page cache, and byte code
    found: Numbers = {}
    for name, data in sources.items():
        told: dict[str, list[Numbers]] = {"new": [], "again": []}
        for number in range(repeats):
            folder = work / f"start-{name}-{number}".replace(" ", "-")
            for kind in told:
                told[kind].append(launch(folder, kind, data, 2))
        found[name] = {
            kind: {
                "seconds": spread([one["seconds"] for one in held]),
                "CPU seconds of launcher and 2 workers": spread([one["cpu"] for one in held]),
            }
            for kind, held in told.items()
        }
    return found


def measure_memory(work: Path, data: str, repeats: int) -> Numbers:
    """The peak of a worker's memory over a trial."""
    found: Numbers = {}
    for workers in (1, 2, 4):
        peaks = [
            peak
            for number in range(repeats)
            for peak in launch(work / f"memory-{number}", f"of-{workers}", data, workers)["workers"]
        ]
        found[f"{workers} workers"] = {
            "anonymous, MB a worker": spread([peak["Anonymous"] for peak in peaks], 0),
            "resident, MB a worker": spread([peak["Rss"] for peak in peaks], 0),
            "proportional (Pss), MB a worker": spread([peak["Pss"] for peak in peaks], 0),
        }
    return found


def fill(work: Path, trials: int) -> Path:
    """A workspace whose study has so many finished trials, as if a search had made them; returns the study file."""
    import optuna
    import sqlalchemy as sa
    from optuna.distributions import distribution_to_json

    from mmsearch.config import load_config
    from mmsearch.data.sources import load_dataset
    from mmsearch.search.machine import new_worker_name, this_process
    from mmsearch.search.space import suggest
    from mmsearch.search.storage import OWNER
    from mmsearch.search.study import create_study

    file = work / "studies" / "digits.toml"
    file.parent.mkdir(parents=True)
    file.write_text(STUDY.read_text(encoding="utf-8"), encoding="utf-8")
    config = load_config(file, {"study.trials": trials})
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened, _ = create_study(config, load_dataset(config).fingerprint)
    rng = np.random.default_rng(0)
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    engine = sa.create_engine(config.storage_url)
    metadata = sa.MetaData()
    metadata.reflect(engine)
    rows: dict[str, list[Numbers]] = {name: [] for name in metadata.tables}
    run: Numbers = {"seed": 1, "threads": 1, "device": "cpu", "hardware": "any", "data": "0" * 32, "code": "0" * 16}
    run["versions"] = {name: version(name) for name in ("torch", "optuna", "numpy")}
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    queued = len(opened.trials())  # the defaults and what the study file queues: they stay, and are failed below
    for waiting in opened.trials():
        opened.storage.set_trial_state_values(waiting._trial_id, optuna.trial.TrialState.RUNNING)
        opened.storage.fail(waiting._trial_id, "not trained", 0)
    for number in range(queued, queued + trials):
        trial = drawn.ask()
        lr = suggest(config.dimensions, trial)["optimizer.lr"]
        known = {"trial_id": number + 1}
        best = 0.99 - 0.02 * abs(np.log10(lr / 2e-3)) - 0.01 * trial.params["head.dropout"] + rng.normal(0, 0.002)
        steps = REPORTS if number % 3 else 3  # every third is pruned
        values = [float(best - 0.1 * 0.5**step + rng.normal(0, 0.001)) for step in range(1, steps + 1)]
        state = "COMPLETE" if number % 3 else "PRUNED"
        began = now - datetime.timedelta(seconds=20 * (queued + trials - number))
        ended = began + datetime.timedelta(seconds=15)
        times = {"datetime_start": began, "datetime_complete": ended}
        rows["trials"].append({**known, "number": number, "study_id": opened.id, "state": state, **times})
        rows["trial_heartbeats"].append({**known, "heartbeat": began})
        rows["trial_values"].append({**known, "objective": 0, "value": max(values), "value_type": "FINITE"})
        for step, value in enumerate(values, 1):
            reported = {"intermediate_value": value, "intermediate_value_type": "FINITE"}
            rows["trial_intermediate_values"].append({**known, "step": step, **reported})
        for name, distribution in trial.distributions.items():
            stored = distribution.to_internal_repr(trial.params[name])
            held = {"param_value": stored, "distribution_json": distribution_to_json(distribution)}
            rows["trial_params"].append({**known, "param_name": name, **held})
        told = {"run": run, "parameters": 122746, "epochs": steps, "best_epoch": 1 + int(np.argmax(values))}
        owned: dict[str, Any] = {OWNER: {**this_process(new_worker_name(0)), "patience": 120.0, "claim": "0" * 32}}
        for picture in ("metrics.csv", "curves.png", "confusion.png"):
            key = f"{number:08d}-{picture}"
            artifact = {"artifact_id": key, "filename": picture, "mimetype": "image/png", "encoding": None}
            owned[f"artifacts:{key}"] = json.dumps(artifact)
        for table, attributes in (("trial_user_attributes", told), ("trial_system_attributes", owned)):
            rows[table] += [{**known, "key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]
        drawn.tell(trial, best)
    with engine.begin() as connection:
        for name, made in rows.items():
            if made:
                connection.execute(metadata.tables[name].insert(), made)
    engine.dispose()
    opened.storage.engine.dispose()
    return file


def ask(file: Path, kind: str, repeats: int) -> Numbers:
    """In this process: the first proposal, which reads the study, and further ones."""
    import optuna

    from mmsearch.config import load_config
    from mmsearch.search.space import suggest
    from mmsearch.search.study import open_study

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = load_config(file, {"search.sampler": "random"} if kind == "random" else {})
    if kind == "stock":
        study = optuna.load_study(
            study_name=config.study.name,
            storage=optuna.storages.RDBStorage(config.storage_url),
            sampler=optuna.samplers.TPESampler(seed=0),
        )
    else:
        study = open_study(config).optuna
    cpu, wall = [], []
    for number in range(repeats + 1):
        before = time.process_time(), time.perf_counter()
        trial = study.ask()
        suggest(config.dimensions, trial)
        cpu.append(time.process_time() - before[0])
        wall.append(time.perf_counter() - before[1])
        study.tell(trial, 0.9 + 0.001 * number)
    return {"first": {"seconds": wall[0], "cpu": cpu[0]}, "seconds": spread(wall[1:], 4), "cpu": spread(cpu[1:], 4)}


def measure_sampler(files: dict[int, Path], repeats: int) -> Numbers:
    """What one proposal costs; each kind has a process and a copy of the study of its own."""
    kinds = {"mmsearch, tpe": "tpe", "mmsearch, random": "random", "Optuna's storage and TPESampler()": "stock"}
    found: Numbers = {}
    for trials, file in files.items():
        found[f"{trials} trials"] = {}
        for name, kind in kinds.items():
            with tempfile.TemporaryDirectory() as folder:
                subprocess.run(["cp", "-r", f"{file.parents[1]}/.", folder], check=True)
                command = [sys.executable, __file__, "--ask", str(Path(folder) / "studies" / file.name), kind]
                told = subprocess.run([*command, str(repeats)], check=True, capture_output=True, text=True).stdout
            found[f"{trials} trials"][name] = json.loads(told)
    return found


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and CPU seconds of the processes that it waited for."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run()
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@contextmanager
def dashboard(file: Path) -> Iterator[str]:
    """The address of the study's API while the block runs."""
    command = [*MMSEARCH, "dashboard", str(file), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"(http://\S+)/dashboard/studies/(\d+)", line):
                yield f"{found[1]}/api/studies/{found[2]}"
                break
        else:
            raise SystemExit("the dashboard did not start")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


def measure_looking(file: Path, repeats: int) -> Numbers:
    """How long a person waits who looks at a study."""
    commands = {"status": ["status", str(file)], "export": ["export", str(file)]}
    commands |= {"export --top 10 --format md": ["export", str(file), "--top", "10", "--format", "md"]}
    found: Numbers = {}
    for name, command in commands.items():

        def run(command: list[str] = command) -> None:
            subprocess.run([*MMSEARCH, *command], check=True, stdout=subprocess.DEVNULL)

        run()
        pairs = [timed(run) for _ in range(repeats)]
        walls, cpus = zip(*pairs, strict=True)
        found[f"mmsearch {name}"] = {"seconds": spread(list(walls)), "cpu": spread(list(cpus))}
    began = time.perf_counter()
    with dashboard(file) as address:
        found["dashboard: until it listens"] = round(time.perf_counter() - began, 2)

        def load(after: int) -> tuple[float, int]:
            asked = time.perf_counter()
            with urllib.request.urlopen(f"{address}?after={after}") as answer:
                size = len(answer.read())
            return time.perf_counter() - asked, size

        seconds, size = load(0)
        found["dashboard: first load"] = {"seconds": round(seconds, 2), "megabytes": round(size / 1e6, 1)}
        again, polls = load(0)[0], list[float]()
        for _ in range(POLLS):
            time.sleep(POLL_S)
            polls.append(load(int(1e6))[0])
        found["dashboard: the page loaded again"] = {"seconds": round(again, 2)}
        found["dashboard: a poll of the open page"] = {"seconds": spread(polls)}
    return found


def hardware() -> Numbers:
    """What it was measured on."""
    from mmsearch.search.machine import cores

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"processor": model, "cores": cores(), "memory_gib": round(memory, 1), "system": platform.platform()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=60_000)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--data", type=Path, help="a data folder instead of pairs that are made")
    parser.add_argument("--work", type=Path, help="where studies and pairs go (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "overhead.json")
    parser.add_argument("--ask", nargs=3, help=argparse.SUPPRESS)  # of a process that measures a sampler
    given = parser.parse_args()
    if given.ask is not None:
        print(json.dumps(ask(Path(given.ask[0]), given.ask[1], int(given.ask[2]))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        found: Numbers = {
            "what": "what a search costs beside its training; see benchmarks/overhead.py",
            "command": shlex.join(["benchmarks/overhead.py", *sys.argv[1:]]),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "hardware": hardware(),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("mmsearch", "torch", "optuna", "optuna-dashboard", "sqlalchemy")},
            "repeats": given.repeats,
            "load average before": os.getloadavg()[0],
        }
        pairs = str(given.data or "")
        if not pairs and {"start", "memory"} & set(given.parts):
            pairs = str(make_pairs(work / "pairs", given.pairs))
        filled = [n for n in given.trials if "sampler" in given.parts or n == max(given.trials)]
        if not {"sampler", "looking"} & set(given.parts):
            filled = []
        files = {trials: fill(work / f"of-{trials}", trials) for trials in filled}
        for part in given.parts:
            print(f"measuring {part} ...", file=sys.stderr, flush=True)
            if part == "share":
                found[part] = measure_share(work, min(given.repeats, 3))
            elif part == "start":
                found[part] = measure_start(work, {"demo": "demo", f"{given.pairs} pairs": pairs}, given.repeats)
            elif part == "memory":
                found[part] = measure_memory(work, pairs, 1)
            elif part == "sampler":
                found[part] = measure_sampler(files, 2 * given.repeats)
            else:
                found[part] = measure_looking(files[max(files)], given.repeats)
        text = json.dumps(found, indent=2) + "\n"
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text, encoding="utf-8")
        print(text, end="")


if __name__ == "__main__":
    main()
