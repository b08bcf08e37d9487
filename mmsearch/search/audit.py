"""How good pruning is: a share of the trials that the pruner would end trains on, and tells what was missed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from mmsearch.config import StudyConfig
from mmsearch.search.values import VIOLATED, best_of, candidates

AUDITED = "audited"  # user attribute of a trial: the mark that it bears, as `mark` makes it; None where it bears none
SECONDS = "seconds"  # user attribute of a trial: of its epochs, those before it was gone on with included
LOT = 2  # the training seeds of a trial have 1 in this place
ENOUGH = 5  # audited trials that tell how long pruned ones would have trained; before, all complete ones do


def is_drawn(config: StudyConfig, first: int) -> bool:
    """Whether the trial whose first attempt has this number is audited if the pruner would end it.

    Each attempt draws the same, and a greater share draws these and more.
    """
    lot = np.random.SeedSequence([config.study.seed, first, LOT]).generate_state(1, np.uint64)[0]
    return float(lot) / 2.0**64 < config.search.audit


def mark(step: int, value: float, epochs: int, before: Sequence[FrozenTrial], sign: int) -> dict[str, Any]:
    """What an audited trial bears: the step and the value at which the pruner would have ended it, how many epochs it
    had then, and the value of the best complete trial there was, None before the first.

    `sign` is 1 where greater values are better, else -1.
    """
    best = best_of(candidates(before), [sign])
    return {"step": step, "value": value, "epochs": epochs, "best": None if best is None else best.values[0]}


@dataclass(frozen=True)
class Audit:
    """How good pruning was in one study.

    `pruned` trials were ended by the pruner; `audited` ones would have been, trained on, and are complete. `among_best`
    of these are in the best tenth of all complete trials, ties included. `judged` of them had a complete trial to be
    compared with when the pruner would have ended them, and `better` ended better than the best of those. Both keep to
    the constraints. `saved` estimates the
    seconds of training that the pruned trials would have taken beyond what they did: their missing epochs, as many as
    audited trials, or the complete ones where fewer than five are audited, had beyond as many, at their own seconds an
    epoch; None where no complete trial tells. `cost` are the seconds that audited trials trained beyond their mark.
    """

    pruned: int
    audited: int
    judged: int
    better: int
    among_best: int
    saved: float | None
    cost: float


def audit_of(trials: Sequence[FrozenTrial], sign: int) -> Audit:
    """What a study's trials tell; `sign` is 1 where greater values of the leading metric are better, else -1."""
    complete = [t for t in trials if t.state == TrialState.COMPLETE and t.user_attrs.get("epochs")]
    audited = [trial for trial in complete if trial.user_attrs.get(AUDITED)]
    pruned = [t for t in trials if t.state == TrialState.PRUNED and not t.user_attrs.get(VIOLATED)]
    good = sorted((sign * trial.values[0] for trial in candidates(complete)), reverse=True)
    bar = good[math.ceil(len(good) / 10) - 1] if good else math.inf
    gains = [(sign * trial.values[0], trial.user_attrs[AUDITED]["best"]) for trial in candidates(audited)]
    lengths = [trial.user_attrs["epochs"] for trial in (audited if len(audited) >= ENOUGH else complete)]
    further = {epochs: _further(epochs, lengths) for epochs in {trial.user_attrs.get("epochs", 0) for trial in pruned}}
    saved = (further[epochs] * _pace(trial) for trial in pruned if (epochs := trial.user_attrs.get("epochs", 0)))
    return Audit(
        len(pruned),
        len(audited),
        sum(trial.user_attrs[AUDITED]["best"] is not None for trial in audited),
        sum(best is not None and gain > sign * best for gain, best in gains),
        sum(gain >= bar for gain, _ in gains),
        math.fsum(saved) if lengths else None,
        math.fsum(_beyond(trial) for trial in audited),
    )


def audit_notes(config: StudyConfig) -> Iterator[str]:
    """That nothing will be audited, where that is so."""
    if config.search.audit and len(config.study.metrics) > 1:
        yield f"audit = {config.search.audit:g} audits nothing: trials with several metrics are not pruned"
    elif config.search.audit and config.search.pruner == "none":
        yield f'audit = {config.search.audit:g} audits nothing: pruner = "none" prunes nothing'


def _further(epochs: int, lengths: Sequence[int]) -> float:
    """How many epochs more those trials had, on average, that had more than so many; 0 where none had."""
    longer = [length - epochs for length in lengths if length > epochs]
    return fmean(longer) if longer else 0.0


def _beyond(trial: FrozenTrial) -> float:
    """The seconds that an audited trial trained beyond its mark."""
    held: Mapping[str, Any] = trial.user_attrs[AUDITED]
    return max(0, int(trial.user_attrs["epochs"]) - int(held["epochs"])) * _pace(trial)


def _pace(trial: FrozenTrial) -> float:
    """Seconds an epoch."""
    seconds = trial.user_attrs.get(SECONDS)
    if seconds is None:  # of a version before this was kept
        assert trial.duration is not None
        seconds = trial.duration.total_seconds()
    return float(seconds) / float(trial.user_attrs["epochs"])
