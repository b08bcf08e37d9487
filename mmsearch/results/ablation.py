"""What each parameter of the best configuration is worth: one at a time back at its default, trained again."""

from __future__ import annotations

from dataclasses import dataclass

from mmsearch.config import StudyConfig
from mmsearch.hyperparameters import Value
from mmsearch.results.statistics import Interval
from mmsearch.search.progress import Progress
from mmsearch.search.study import OpenStudy


@dataclass(frozen=True)
class AblationRow:
    """The best configuration with one parameter back at its default.

    `best` and `default` are the parameter's two values. `values`, `mean` and `interval` (95 %, Student's) are of the
    configuration with the default. `difference` is how much worse it is than the best configuration, with
    `difference_interval` over the seeds that both have; negative where the default is better. `p` is of the paired
    t-test against the best configuration, corrected after Holm; None of fewer than two shared seeds.
    """

    parameter: str
    best: Value
    default: Value
    values: tuple[float, ...]
    mean: float
    interval: Interval | None
    difference: float
    difference_interval: Interval | None
    p: float | None
    differs: bool


@dataclass(frozen=True)
class Ablation:
    """What each parameter of one configuration is worth, on validation rows; what is worth most stands first.

    `trial` is the configuration's number in the search; `values`, `mean` and `interval` are its own on the same seeds.
    `sign` is 1 where greater values of `metric` are better, else -1. `missing` is how many trainings are not there,
    since they failed or were not waited for; `failures` says why.
    """

    metric: str
    sign: int
    seeds: int
    trial: int
    values: tuple[float, ...]
    mean: float
    interval: Interval | None
    rows: tuple[AblationRow, ...]
    missing: int = 0
    failures: tuple[str, ...] = ()


def ablate(
    config: StudyConfig, *, seeds: int = 3, workers: int | None = None, progress: Progress | None = None
) -> Ablation:
    """Train the best configuration, and it with one parameter at a time back at its default, on the same seeds."""
    raise NotImplementedError


def ablation_of(opened: OpenStudy) -> Ablation | None:
    """What `ablate` found last, as it is stored with the study; None where it was never run."""
    raise NotImplementedError
