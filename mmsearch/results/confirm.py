"""Whether the winners of a search are really better, or were lucky: the best trials trained again on fresh seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mmsearch.config import StudyConfig
from mmsearch.results.statistics import Interval
from mmsearch.search.progress import Progress
from mmsearch.search.study import OpenStudy

if TYPE_CHECKING:
    from collections.abc import Mapping

Prefer = Literal["best", "small"]


@dataclass(frozen=True)
class Confirmed:
    """One configuration of the search, trained again.

    `trial` is its number in the search, `rank` its place there by the leading value, from 1; None for the defaults
    where they are not among the best. `searched` is the value in the search, None where the trial has none; `values`
    are those of the fresh seeds, in their order, and `mean` and `interval` (95 %, Student's) are theirs. `drop` is how
    much worse the mean is than `searched`. `p` is of the paired t-test against the best, corrected after Holm; None for
    the best itself. `eligible`: it may be the choice, since its trial is complete and keeps to the constraints.
    """

    trial: int
    params: Mapping[str, Any]
    searched: float | None
    values: tuple[float, ...]
    mean: float
    interval: Interval | None
    drop: float | None
    parameters: int
    p: float | None
    differs: bool
    best_epochs: tuple[int, ...]
    rank: int | None = None
    defaults: bool = False
    eligible: bool = True


@dataclass(frozen=True)
class Confirmation:
    """How the best trials of a search did on fresh seeds, and which of them to take.

    `sign` is 1 where greater values of `metric` are better, else -1. `rows` stand with the best mean first, and then
    those that cannot be the choice. `choice` is a trial's number: by `prefer` the best mean, or the smallest model
    among those that do not differ from it. `finished` is how many trials the search had then, `now` how many it has.
    `missing` is how many trainings are not there, since they failed or were not waited for; `failures` says why.

    The validation rows are those of the search: intervals are over seeds on the same rows, not over other rows.
    """

    metric: str
    sign: int
    seeds: int
    rows: tuple[Confirmed, ...]
    choice: int
    prefer: Prefer
    finished: int
    now: int
    missing: int = 0
    failures: tuple[str, ...] = ()

    @property
    def chosen(self) -> Confirmed:
        """The row of the choice."""
        return next(row for row in self.rows if row.trial == self.choice)

    @property
    def stale(self) -> bool:
        """Whether the search has finished more trials since."""
        return self.now > self.finished


def confirm(
    config: StudyConfig,
    *,
    top: int = 5,
    seeds: int = 5,
    prefer: Prefer = "best",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Confirmation:
    """Train the best trials, and the defaults, again on fresh seeds."""
    raise NotImplementedError


def confirmation_of(opened: OpenStudy) -> Confirmation | None:
    """What `confirm` found last, as it is stored with the study; None where it was never run."""
    raise NotImplementedError
