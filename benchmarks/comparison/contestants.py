"""Who is compared: how each searches, or trains fixed configurations, with its own commands; and its winners' scores.

All have the same data, the same validation rows, and two processes of one thread.
"""

from __future__ import annotations

import functools
import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import optuna

from comparison.plain_optuna import START
from comparison.processes import EpochLogs, Watched, run
from comparison.space import Params, study_text

HERE = Path(__file__).resolve().parent
BENCHMARKS, ROOT = HERE.parent, HERE.parent.parent
PLAIN = HERE / "plain_optuna.py"
WORKERS = 2
LOG = "epochs.jsonl"


@dataclass(frozen=True)
class Task:
    """What is to be done: a search of so many trials, or so many `fixed` configurations, which are not pruned."""

    data: Path
    folder: Path
    trials: int
    epochs: int
    seed: int
    frames: bool = False
    fixed: tuple[Params, ...] = ()
    workers: int = WORKERS

    @property
    def output(self) -> Path:
        """What the commands print."""
        return self.folder / "output.log"

    def begin(self) -> None:
        """Make the folder anew."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)


class Plain:
    """The plain Optuna script, started twice on one study in SQLite; making the study is not timed.

    It may fail: stock Optuna gives a waiting trial to both processes now and then, and the one that tells it last ends.
    """

    may_fail = True

    def __init__(self, task: Task) -> None:
        self.task = task
        self.storage = f"sqlite:///{task.folder / 'study.db'}"

    def commands(self) -> list[list[str | Path]]:
        """What is run side by side."""
        task = self.task
        options = [str(task.data), "--storage", self.storage, "--log", LOG, "--split", str(task.seed)]
        options += ["--trials", str(task.trials), "--epochs", str(task.epochs), *["--frames"] * task.frames]
        if task.fixed:
            options += ["--no-pruning", "--patience", str(task.epochs)]
        seeds = [WORKERS * task.seed + process for process in range(task.workers)]
        return [[sys.executable, PLAIN, *options, "--seed", str(seed)] for seed in seeds]

    def search(self) -> Watched:
        """Train what the task says."""
        task = self.task
        task.begin()
        study = optuna.create_study(study_name="digits", storage=self.storage, direction="maximize")
        for params in task.fixed or (START,):
            study.enqueue_trial(params)
        return run(self.commands(), log=task.output, epochs=EpochLogs(task.folder, LOG))

    def winners(self) -> list[dict[str, Any]]:
        """The best trial; of fixed configurations all, in their order: parameters and the best epoch."""
        study = optuna.load_study(study_name="digits", storage=self.storage)
        trials = study.trials if self.task.fixed else [study.best_trial]
        return [{"params": trial.params, "epochs": trial.user_attrs["best_epoch"]} for trial in trials]

    def scores(self) -> list[float]:
        """Each winner trained again on training and validation rows: its macro F1 on the test rows."""
        return retrain(self.task, self.winners())


def retrain(task: Task, winners: Sequence[dict[str, Any]]) -> list[float]:
    """The plain script's retraining, with two processes that share the winners out."""
    shares = [list(winners[process::WORKERS]) for process in range(WORKERS)]
    scores: dict[int, list[float]] = {}
    commands: list[list[str | Path]] = []
    for process, share in enumerate(shares):
        wanted = task.folder / f"winners-{process}.json"
        wanted.write_text(json.dumps(share))
        options = ["--retrain", str(wanted), "--split", str(task.seed), "--seed", str(1000 + task.seed)]
        options += ["--out", str(task.folder / f"scores-{process}.json"), *["--frames"] * task.frames]
        commands.append([sys.executable, PLAIN, str(task.data), *options])
    run([command for command, share in zip(commands, shares, strict=True) if share], log=task.output)
    for process, share in enumerate(shares):
        scores[process] = json.loads((task.folder / f"scores-{process}.json").read_text()) if share else []
    return [scores[place % WORKERS][place // WORKERS] for place in range(len(winners))]


class RayTune:
    """Ray Tune with ASHA and Optuna, in the environment that `python` belongs to."""

    may_fail = False

    def __init__(self, task: Task, python: Path) -> None:
        self.task, self.python = task, python
        self.winner = task.folder / "winner.json"

    def commands(self) -> list[list[str | Path]]:
        """What is run."""
        task = self.task
        options = ["--folder", "ray", "--log", LOG, "--trials", str(task.trials), "--epochs", str(task.epochs)]
        options += ["--seed", str(task.seed), "--out", str(self.winner)]
        return [[self.python, "-m", "comparison.ray_tune", task.data, *options]]

    def search(self) -> Watched:
        """Search as the task says."""
        self.task.begin()
        environment = {
            "PYTHONPATH": str(BENCHMARKS),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # also what makes Ray listen on 127.0.0.1 only, on any system
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else Ray writes one into the home folder
        }
        seen = run(
            self.commands(), log=self.task.output, environment=environment, epochs=EpochLogs(self.task.folder, LOG)
        )
        seen.cpu_s = None  # its workers are not waited for
        return seen

    def scores(self) -> list[float]:
        """The winner trained again by the plain script, whose training it is."""
        return retrain(self.task, [json.loads(self.winner.read_text())])


@functools.cache
def ray_versions(python: Path) -> dict[str, str]:
    """The versions of Ray, and of what it searches with, in its environment."""
    names = ("ray", "torch", "optuna", "numpy", "scikit-learn")
    program = f"import importlib.metadata as m; print(*map(m.version, {names!r}))"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    found = dict(zip(names, done.stdout.split(), strict=True))
    return {name if name == "ray" else f"ray's {name}": version for name, version in found.items()}


class Mmsearch:
    """mmsearch through its command line, on a study file.

    It counts cores once, at its start, and shares them out among its workers: it is shown one for each.
    """

    may_fail = False

    def __init__(self, task: Task) -> None:
        self.task = task
        self.study = task.folder / "three_conv.toml"

    def commands(self) -> list[list[str | Path]]:
        """What is run."""
        options = [str(self.study), "--workers", str(self.task.workers), "--seed", str(self.task.seed)]
        return [[sys.executable, "-m", "mmsearch", "launch", *options]]

    def search(self) -> Watched:
        """Train what the task says."""
        task = self.task
        task.begin()
        text = study_text(task.data, trials=task.trials, epochs=task.epochs, frames=task.frames, fixed=task.fixed)
        self.study.write_text(text)
        logs = EpochLogs(task.folder, "three_conv/trials/*/metrics.jsonl")
        seen = run(self.commands(), log=task.output, epochs=logs, cores=task.workers)
        seen.start_up_s = round(_first_attempt(task.folder).timestamp() - seen.began, 2)
        return seen

    def scores(self) -> list[float]:
        """The winner's macro F1 on the test rows, of `mmsearch retrain-best`; of fixed configurations all, in order."""
        if self.task.fixed:
            found = self.task.folder / "scores.json"
            options = [str(self.study), "--seed", str(self.task.seed), "--out", str(found)]
            command = [sys.executable, "-m", "comparison.retrain_all", *options]
            environment = {"PYTHONPATH": str(BENCHMARKS)}
            run([command], log=self.task.output, environment=environment)
            held: list[float] = json.loads(found.read_text())
            return held
        options = [str(self.study), "--seed", str(self.task.seed), "--no-calibrate"]
        run([[sys.executable, "-m", "mmsearch", "retrain-best", *options]], log=self.task.output)
        metrics = json.loads((self.task.folder / "three_conv/retrained/best/metrics.json").read_text())
        return [metrics["test"]["macro_f1"]]


def _first_attempt(folder: Path) -> datetime:
    """When the first trial of a folder's study began."""
    logs = folder.glob("three_conv/trials/*/metrics.jsonl")
    return min(
        datetime.fromisoformat(json.loads(line)["attempt"]) for log in logs for line in log.read_text().splitlines()
    )


class Contestant(Protocol):
    """Who is compared."""

    may_fail: bool  # and is then to be tried again

    def search(self) -> Watched:
        """Train what the task says, and be watched."""

    def scores(self) -> list[float]:
        """The macro F1 of the winners on the test rows, trained again on training and validation rows."""


def record(seen: Watched) -> dict[str, Any]:
    """A run as it is kept."""
    return asdict(seen)
