"""How one study stands, for who sets several side by side: what it found, when, and what it cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from mmsearch.config import hide_password
from mmsearch.hyperparameters import TABLE
from mmsearch.paths import BundlePaths
from mmsearch.results.confirm import Confirmation, Confirmed, confirmation_of
from mmsearch.results.statistics import Interval
from mmsearch.search.study import Counts, OpenStudy, count
from mmsearch.search.values import best_of, candidates


@dataclass(frozen=True)
class Point:
    """How far a search was when a trial ended.

    `trials` counts complete and pruned ones; `hours` adds up what all trials took, failed ones too, on all workers;
    `best` is the leading value of the best complete trial so far, None before the first.
    """

    trials: int
    hours: float
    best: float | None


@dataclass(frozen=True)
class Scored:
    """What the latest retrained model scored: `on` is "test", or "held_back" where the test rows have no labels.

    `members` is how many models it averages, of which `trial` is the first.
    """

    on: str
    macro_f1: float
    interval: Interval | None
    rows: int
    trial: int
    members: int


@dataclass(frozen=True)
class Standing:
    """How one study stands.

    `sign` is 1 where greater values of `metric` are better, else -1. `best` is the number of the best complete trial
    that keeps to the constraints, and `value` its value. `taken` is the confirmed choice, or else that trial;
    `parameters` is the size of its model, and `configuration` has all its hyperparameters. All of them are None, or
    empty, where there is none. `setup` is what the study was begun with, None for one that is not of mmsearch.
    """

    name: str
    storage: str
    metric: str
    sign: int
    counts: Counts
    total: int
    progress: tuple[Point, ...]
    best: int | None
    value: float | None
    taken: int | None
    parameters: int | None
    configuration: Mapping[str, Any]
    confirmed: Confirmation | None
    scored: Scored | None
    setup: Mapping[str, Any] | None

    @property
    def hours(self) -> float:
        """What all trials that ended took, added up."""
        return self.progress[-1].hours if self.progress else 0.0

    @property
    def chosen(self) -> Confirmed | None:
        """The confirmed configuration to take; None where the study was not confirmed."""
        return None if self.confirmed is None else self.confirmed.chosen


def standing(opened: OpenStudy, name: str) -> Standing:
    """How a study stands now."""
    trials, sign = opened.trials(), opened.signs[0]
    stored = opened.stored_fingerprint()
    best = best_of(candidates(trials), opened.signs)
    confirmed = confirmation_of(opened)
    taken = best if confirmed is None else next(trial for trial in trials if trial.number == confirmed.choice)
    return Standing(
        name,
        hide_password(opened.config.storage_url),
        opened.metrics[0],
        sign,
        count(trials),
        opened.total(),
        tuple(progress(trials, sign)),
        None if best is None else best.number,
        None if best is None else float(best.values[0]),
        None if taken is None else taken.number,
        None if taken is None else taken.user_attrs.get("parameters"),
        {} if taken is None else configuration(stored, taken.params),
        confirmed,
        _scored(opened),
        stored,
    )


def progress(trials: Sequence[FrozenTrial], sign: int) -> Iterator[Point]:
    """A point for each trial that ended, in the order of their ends."""
    ended = [trial for trial in trials if trial.state.is_finished() and trial.datetime_complete]
    finished, seconds, best = 0, 0.0, None
    for trial in sorted(ended, key=lambda trial: (trial.datetime_complete or datetime.max, trial.number)):
        finished += trial.state != TrialState.FAIL
        seconds += trial.duration.total_seconds() if trial.duration else 0.0
        for found in candidates([trial]):
            value = float(found.values[0])
            best = value if best is None or sign * value > sign * best else best
        yield Point(finished, seconds / 3600, best)


def configuration(stored: Mapping[str, Any] | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """All hyperparameters of a trial, fixed ones too, by the study's fingerprint; without one, what varied."""
    if stored is None:
        return dict(params)
    known = {name for kind in ("fixed", "choices", "ranges") for name in stored[kind]}
    audio = "waveforms" if any(name.startswith("features.") for name in known) else "features"
    found: dict[str, Any] = {"data.audio": audio}  # as `StudyConfig.dimensions` has it
    for name, parameter in TABLE.items():
        if parameter.applies(found):  # what is not held has its default: an older version did not know of it
            found[name] = params.get(name, stored["fixed"].get(name, parameter.default))
    return {name: value for name, value in found.items() if name in TABLE}


def _scored(opened: OpenStudy) -> Scored | None:
    """What the latest retrained model scored on rows that it has not seen."""
    try:
        held = json.loads(BundlePaths(opened.config.paths.retrained / "best").metrics.read_text(encoding="utf-8"))
        on = next((name for name in ("test", "held_back") if held.get(name)), None)
        if on is None:
            return None
        scores = held[on]
        low, high = scores.get("macro_f1_interval") or (None, None)
        interval = None if low is None or high is None else (float(low), float(high))
        return Scored(on, scores["macro_f1"], interval, scores["rows"], held["trial"], len(held.get("members", [held])))
    except (OSError, ValueError, KeyError, TypeError):  # never retrained, or somewhere else
        return None
