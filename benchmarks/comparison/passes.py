"""A pass over the comparisons: which runs there are, in turn, each kept in the work folder and not done twice."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from comparison.contestants import BENCHMARKS, Contestant, Mmsearch, Plain, RayTune, Task, ray_versions, record
from comparison.kept import digest, kept
from comparison.pairs import FILES, write_pairs
from comparison.processes import CommandFailed, run, say
from comparison.space import NETWORKS, configurations, longest_first
from mmsearch.data.sources import read_dataset
from mmsearch.training.provenance import versions

COMPARISONS = ("step", "same-work", "workers", "search")
AGAIN = 5  # so often at most is a run repeated until all its trials are trained once


@dataclass(frozen=True)
class Scale:
    """How much is run. Rows of pairs; turns of *step*, configurations and epochs of *same work*, and of *search*."""

    train: int = 4000
    test: int = 5000
    networks: tuple[str, ...] = tuple(NETWORKS)
    step_rows: int = 3200
    step_repeats: int = 7
    configurations: int = 20
    epochs: int = 6
    repeats: int = 3
    same_work_scores: bool = True
    trials: int = 16
    search_epochs: int = 10
    seeds: tuple[int, ...] = (0, 1, 2)
    workers_configurations: int = 16
    workers_epochs: int = 6
    workers_repeats: int = 5


QUICK = Scale(
    train=400,
    test=400,
    networks=("16-32-64",),
    step_rows=320,
    step_repeats=3,
    configurations=3,
    epochs=1,
    repeats=1,
    same_work_scores=False,
    trials=3,
    search_epochs=2,
    seeds=(0,),
    workers_configurations=2,
    workers_epochs=1,
    workers_repeats=1,
)


@dataclass(frozen=True)
class Pass:
    """One pass: how much, from which data, where it is kept, and Ray's Python, if there is one."""

    scale: Scale
    source: str
    work: Path
    ray: Path | None
    only: tuple[str, ...] = COMPARISONS

    @property
    def data(self) -> Path:
        """The pairs."""
        return self.work / "pairs"

    def run(self) -> dict[str, dict[str, Any]]:
        """The raw result of each run, by its name; those that are kept already are read."""
        scale = self.scale
        found: dict[str, dict[str, Any]] = {}
        splits = sorted({0, *scale.seeds, *range(max(scale.repeats, scale.workers_repeats))})
        of = {
            "source": read_dataset(self.source).fingerprint,
            "train": scale.train,
            "test": scale.test,
            "splits": splits,
            "versions": versions(),
        }
        kept(
            self._raw("pairs"),
            "pairs",
            of,
            lambda: self._write_pairs(splits),
            still=lambda result: result["content"] == self._content(splits),
        )
        for comparison in self.only:
            jobs: dict[str, Callable[[], Iterator[tuple[str, dict[str, Any]]]]] = {
                "step": self._step,
                "same-work": self._same_work,
                "workers": self._workers,
                "search": self._search,
            }
            found.update(jobs[comparison]())
        return found

    def _write_pairs(self, splits: list[int]) -> dict[str, Any]:
        write_pairs(self.data, train=self.scale.train, test=self.scale.test, source=self.source, splits=splits)
        return {"content": self._content(splits)}

    def _content(self, splits: Sequence[int]) -> str:
        """A digest of the pairs and of these validation rows, whatever their folder is called."""
        return digest([self.data / f"{name}.npy" for name in (*FILES, *(f"validation_rows_{n}" for n in splits))])

    def _raw(self, name: str) -> Path:
        return self.work / "raw" / f"{name.replace('/', '-')}.json"

    def _step(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for network in self.scale.networks:
            for form in ("flat", "frames"):
                name = f"step/{network}/{form}"
                settings = {"rows": self.scale.step_rows, "repeats": self.scale.step_repeats}

                def measure(name: str = name, network: str = network, form: str = form) -> dict[str, Any]:
                    folder = self.work / "runs" / name
                    folder.mkdir(parents=True, exist_ok=True)
                    options = [
                        "--network",
                        network,
                        "--out",
                        str(folder / "step.json"),
                        *["--frames"] * (form == "frames"),
                    ]
                    options += ["--rows", str(self.scale.step_rows), "--repeats", str(self.scale.step_repeats)]
                    command = [sys.executable, "-m", "comparison.step", str(self.data), *options]
                    run([command], log=folder / "output.log", environment={"PYTHONPATH": str(BENCHMARKS)})
                    held: dict[str, Any] = json.loads((folder / "step.json").read_text())
                    return held

                yield name, self._kept(name, settings, measure)

    def _same_work(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each repeat begins with another contestant; scores are of the first repeat's trials."""
        scale = self.scale
        fixed = tuple(configurations(scale.configurations))
        for repeat in range(scale.repeats):
            task = Task(self.data, Path(), len(fixed), scale.epochs, repeat, fixed=fixed)
            names = ["plain/flat", "mmsearch/flat", "plain/frames", "mmsearch/frames"]
            for name in _turned(names, repeat):
                kind, form = name.split("/")
                yield from self._contest(
                    f"same-work/{name}/{repeat}",
                    kind,
                    replace(task, frames=form == "frames"),
                    scored=scale.same_work_scores and repeat == 0,
                )

    def _workers(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """mmsearch alone: one worker of one thread against two; short trials last, so that both end together."""
        scale = self.scale
        fixed = tuple(longest_first(configurations(scale.workers_configurations)))
        for repeat in range(scale.workers_repeats):
            for workers in _turned([1, 2], repeat):
                task = Task(self.data, Path(), len(fixed), scale.workers_epochs, repeat, True, fixed, workers)
                yield from self._contest(f"workers/{workers}/{repeat}", "mmsearch", task, scored=False)

    def _search(self) -> Iterator[tuple[str, dict[str, Any]]]:
        scale = self.scale
        names = ["plain/flat", "mmsearch/flat", "plain/frames", "mmsearch/frames", *(["ray/flat"] if self.ray else [])]
        for turn, seed in enumerate(scale.seeds):
            task = Task(self.data, Path(), scale.trials, scale.search_epochs, seed)
            for name in _turned(names, turn):
                kind, form = name.split("/")
                yield from self._contest(f"search/{name}/{seed}", kind, replace(task, frames=form == "frames"))

    def _contest(self, name: str, kind: str, task: Task, scored: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
        """One run, and its winners' scores."""
        task = replace(task, folder=self.work / "runs" / name)
        contestant = self._contestant(kind, task)
        settings = {key: value for key, value in asdict(task).items() if key not in ("data", "folder")}
        searched = self._kept(name, settings, lambda: _once_each(contestant, task))
        yield name, searched
        if scored:
            score, settings["winners of"] = f"{name}/scores", searched["began"]
            yield score, self._kept(score, settings, lambda: {"macro_f1": contestant.scores()})

    def _contestant(self, kind: str, task: Task) -> Contestant:
        if kind == "ray":
            assert self.ray is not None
            return RayTune(task, self.ray)
        return Plain(task) if kind == "plain" else Mmsearch(task)

    def _kept(self, name: str, settings: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The raw result of a run, measured now unless it is kept from the same settings, data, machine and code."""
        found = {**versions(), **(ray_versions(self.ray) if "/ray/" in name and self.ray else {})}
        of = {**settings, "pairs": self._content([settings.get("seed", 0)]), "versions": found}
        return kept(self._raw(name), name, of, measure)


def _turned(names: list[Any], turn: int) -> list[Any]:
    """The same in another order each turn, so that none is always first."""
    at = turn % len(names)
    return names[at:] + names[:at]


def _once_each(contestant: Contestant, task: Task) -> dict[str, Any]:
    """A run, and how often it was made again: where stock Optuna gave one trial to both processes, of which one fails
    or both train it, or they trained one more than there are.
    """
    for again in range(AGAIN + 1):
        try:
            seen = contestant.search()
        except CommandFailed as error:
            if not contestant.may_fail or again == AGAIN:
                raise
            say(f"{error}: once more")
            continue
        done = {(trial, epoch) for _, trial, epoch, _ in seen.epochs}
        twice = len(done) < len(seen.epochs)
        if not twice and (not task.fixed or len(done) == len(task.fixed) * task.epochs):
            return {**record(seen), "made_again": again}
        say(f"{len(seen.epochs)} epochs of {len({trial for trial, _ in done})} trials is not the work given: once more")
    raise CommandFailed(f"{task.folder}: not the work given, {AGAIN + 1} times")
