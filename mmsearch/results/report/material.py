"""All that a report is made from, and what can be counted in it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from mmsearch.config import OPTIONS, StudyConfig
from mmsearch.data.dataset import Dataset, Index
from mmsearch.data.splits import validation_splits
from mmsearch.results.report.content import Text
from mmsearch.search.storage import OWNER
from mmsearch.search.study import Counts
from mmsearch.search.values import RUN

if TYPE_CHECKING:
    from mmsearch.results.ablation import Ablation
    from mmsearch.results.confirm import Confirmation
    from mmsearch.results.figures.style import Figure


@dataclass(frozen=True)
class Searched:
    """A study's search, as it stands: its trials, what they aimed at, and which are the best.

    `signs` is 1 of each metric of which greater values are better, else -1. `baseline` is the complete trial that has
    the defaults. `front` are the trials that no other beats in all metrics, the best of the leading metric first.
    """

    config: StudyConfig
    trials: tuple[FrozenTrial, ...]
    counts: Counts
    total: int
    metrics: tuple[str, ...]
    signs: tuple[int, ...]
    constraints: tuple[str, ...]
    best: FrozenTrial
    baseline: FrozenTrial | None
    front: tuple[FrozenTrial, ...]
    gain: float | None

    @property
    def leading(self) -> str:
        """The metric that a trial's best epoch is chosen by."""
        return self.metrics[0]

    @property
    def smaller_is_better(self) -> bool:
        """Of the leading metric."""
        return self.signs[0] < 0

    @property
    def finished(self) -> list[FrozenTrial]:
        """The trials that count towards the total."""
        return [trial for trial in self.trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]

    @property
    def ended(self) -> list[tuple[datetime, datetime]]:
        """When each trial that has ended, in whatever state, began and ended (UTC)."""
        return [
            (t.datetime_start, t.datetime_complete) for t in self.trials if t.datetime_start and t.datetime_complete
        ]

    @property
    def training_seconds(self) -> float:
        """The sum of the trials' durations."""
        return sum((end - start).total_seconds() for start, end in self.ended)

    @property
    def wall_seconds(self) -> float:
        """How long at least one trial ran."""
        total, reached = 0.0, None
        for start, end in sorted(self.ended):
            begin = start if reached is None else max(start, reached)
            total += max(0.0, (end - begin).total_seconds())
            reached = end if reached is None else max(end, reached)
        return total

    @property
    def epochs(self) -> int:
        """The epochs of all trials."""
        return sum(trial.user_attrs.get("epochs", 0) for trial in self.trials)

    def hardware(self) -> Counter[tuple[str, str, int]]:
        """How many trials trained on which hardware: its name, the device and the number of threads."""
        runs = [trial.user_attrs[RUN] for trial in self.trials if RUN in trial.user_attrs]
        return Counter((run["hardware"], run["device"].partition(":")[0], run["threads"]) for run in runs)

    def versions(self) -> dict[str, list[str]]:
        """The versions of Python and of each library that trials ran with."""
        found: dict[str, list[str]] = {}
        for trial in self.trials:
            for name, version in trial.user_attrs.get(RUN, {}).get("versions", {}).items():
                if version not in found.setdefault(name, []):
                    found[name].append(version)
        return found

    def owners(self, key: str) -> int:
        """How many different workers, or hosts, had a trial."""
        return len({owner[key] for trial in self.trials if key in (owner := trial.system_attrs.get(OWNER, {}))})

    def command(self, verb: str) -> str:
        """A command on this study, with the options that were given to this one but for the total."""
        return self.config.command(verb, [option for option in OPTIONS if option != "--trials"])


@dataclass(frozen=True)
class Rows:
    """How many rows a data set has, and how they were shared out.

    `train` and `valid`: of each fold, the fewest and the most. `repeats`: different images and different recordings in
    the training rows and, of those that the model is judged by, in the scored ones.
    """

    training: int
    train: tuple[int, int]
    valid: tuple[int, int]
    test: int
    test_has_labels: bool
    held_back: int
    repeats: tuple[int, int]
    scored_on: str
    scored: int
    scored_repeats: tuple[int, int]

    @staticmethod
    def of(dataset: Dataset, config: StudyConfig) -> Rows:
        """Of a study's data set."""
        from mmsearch.results.scores import scored_split

        pairs = validation_splits(dataset, config)
        sides = [[len(pair[side]) for pair in pairs] for side in (0, 1)]
        name, scored = scored_split(dataset)
        apart = name == "test" and "test" in dataset.digests
        test = dataset.test
        return Rows(
            training=len(dataset.train),
            train=(min(sides[0]), max(sides[0])),
            valid=(min(sides[1]), max(sides[1])),
            test=0 if test is None else len(test),
            test_has_labels=test is not None and test.label is not None,
            held_back=0 if dataset.held_back is None else len(dataset.held_back),
            repeats=_different(dataset, "train", dataset.train.rows),
            scored_on=name,
            scored=len(scored),
            scored_repeats=_different(dataset, "test" if apart else "train", scored.rows),
        )


def _different(dataset: Dataset, split: str, rows: Index) -> tuple[int, int]:
    """How many different images and recordings some rows have."""
    import numpy as np

    image, audio = dataset.digests[split]
    return len(np.unique(image[rows])), len(np.unique(audio[rows]))


@dataclass(frozen=True)
class Model:
    """A retrained model's part of a report: what its metrics.json holds, where it lies, and what is drawn of it.

    `figures` and `layers` are empty where the data were not there to draw them from.
    """

    metrics: dict[str, Any]
    folder: str
    figures: tuple[Figure, ...] = ()
    layers: tuple[dict[str, Any], ...] = ()

    @property
    def scored_on(self) -> str:
        """`test`, `held_back` or `training`."""
        return str(self.metrics["modalities"]["scored_on"])

    @property
    def scores(self) -> dict[str, Any]:
        """The scores on those rows."""
        found: dict[str, Any] = self.metrics[self.scored_on]
        return found


@dataclass(frozen=True)
class Material:
    """All of it. `doubts`: what the reader must know of the model, or of why there is none; a sentence each.

    `models` is how many models of the study have been retrained, and so scored.
    """

    searched: Searched
    made: datetime
    dataset: Dataset | None
    rows: Rows | None
    search_figures: tuple[Figure, ...]
    confirmation: Confirmation | None
    ablation: Ablation | None
    model: Model | None
    models: int
    doubts: tuple[Text, ...]


def shown(config: StudyConfig, path: Path) -> str:
    """A file of a study as a report names it: from the storage folder on, not from the root of somebody's disk."""
    return path.resolve().relative_to(Path(config.study.folder).resolve().parent).as_posix()


def without_roots(config: StudyConfig, text: str) -> str:
    """A message whose absolute paths are cut: to what follows the working directory, the folder of the storage or the
    data's, or else to the last part.
    """
    begins = r"(?<![\w./:~-])"  # not within a path or an address
    for root in (Path.cwd(), Path(config.study.folder).resolve().parent):
        text = re.sub(f"{begins}{re.escape(str(root))}/", "", text)
    source = Path(config.data.source)
    if source.is_absolute():
        text = re.sub(f"{begins}{re.escape(str(source.parent))}/(?={re.escape(source.name)})", "", text)
    return re.sub(rf"{begins}/(?:[^\s/:;,'\"()]+/)*(?=[^\s/])", "", text)
