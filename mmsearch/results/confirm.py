"""Whether the winners of a search are better, or were lucky: the best trials, trained again on fresh seeds.

The best of many noisy values is too good by its luck (the winner's curse). Fresh seeds have no part in the choice of
the trials, so their means are fair to each. The best of those means is a little too good again: the test rows, which
nothing here looks at, have the last word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import Any, Literal

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from mmsearch.config import StudyConfig
from mmsearch.data.dataset import Dataset
from mmsearch.data.sources import load_dataset
from mmsearch.data.splits import validation_splits
from mmsearch.errors import NoCompletedTrial, UsageError
from mmsearch.results.statistics import CONFIDENCE, Interval, holm, mean_interval, paired_p
from mmsearch.search.note import save_note
from mmsearch.search.progress import Progress
from mmsearch.search.repeats import Outcome, key_of, missing, repeat, shared, why_missing
from mmsearch.search.study import CONFIRMED, OpenStudy, count, open_study
from mmsearch.search.values import candidates

WORD = "confirm"  # behind the study's name
FIRST_SEED = 1_000_000  # above the number of any trial
SIGNIFICANT = 1 - CONFIDENCE

Prefer = Literal["best", "small"]


@dataclass(frozen=True)
class Finalist:
    """A configuration to be trained again: `trial` and `searched`, its number and its value in the search.

    `rank` is its place there, from 1, None where it is there as the `defaults` alone. `eligible`: it may be the choice,
    since its trial is complete and keeps to the constraints.
    """

    trial: int
    params: Mapping[str, Any]
    searched: float | None
    rank: int | None = None
    defaults: bool = False
    eligible: bool = True


@dataclass(frozen=True)
class Confirmed:
    """A finalist that was trained again: `trial`, `params`, `searched`, `rank`, `defaults` and `eligible` are its own.

    `values` are those of the fresh seeds, in their order, without those that are missing; `mean` and `interval` (95 %,
    Student's; None of one value) are theirs. `drop` is how much worse the mean is than `searched`. `p` is of the paired
    t-test against the best row over the seeds that both have, corrected; None for the best itself, and where there are
    fewer than two. `parameters` is the size of the model, `best_epochs` the epoch of each value.
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

    `sign` is 1 where greater values of `metric` are better, else -1. `rows` has the best mean first; behind the others
    stand those with fewer seeds, then those that cannot be the choice. `choice` is a trial's number: by `prefer` the
    best row, or the smallest model among those that do not differ from it. `finished` is how many trials the search had
    then, `now` how many it has. `missing` is how many values are not there, `failures` why, and `ended` why this run
    ended before all was trained, where it did. `resolution` is what one validation row is worth, at most and about.

    The validation rows are those of the search: intervals are over seeds on the same rows, and say nothing of others.
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
    ended: str | None = None
    resolution: float = 0.0

    @property
    def chosen(self) -> Confirmed:
        """The row of the choice."""
        return next(row for row in self.rows if row.trial == self.choice)

    @property
    def mean_drop(self) -> float | None:
        """How much worse the best trials of the search are on fresh seeds, on average; without the defaults, unless
        they are among them, since nobody chose those for their value.
        """
        drops = [row.drop for row in self.rows if row.rank is not None and row.drop is not None]
        return fmean(drops) if drops else None

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
    """Train the `top` best trials, and that of the defaults, again on so many fresh seeds, and choose among them.

    The best are the complete trials that keep to the constraints, by the leading metric, each configuration once. They
    are trained in the study `<study>-confirm` and scored on the validation rows of the search; what is there already is
    not trained again. What is found is kept with the study, unless the run ended before all was trained. The search may
    go on meanwhile.

    Raises `UsageError`, `StudyMismatch`, `NoCompletedTrial`, and what `mmsearch.search.launcher.launch` raises.
    """
    if top < 1:
        raise UsageError(f"--top must be 1 at least, not {top}")
    if seeds < 2:
        raise UsageError(f"--seeds must be 2 at least, not {seeds}: one value does not say how far values spread")
    with open_study(config) as opened:
        opened.must_be_a_search()
        opened.picked()  # raises where there is none
        dataset = load_dataset(config)
        opened.check(dataset.fingerprint)
        trials = opened.trials()
        chosen = pick_finalists(opened, trials, top)
        numbers = [FIRST_SEED + number for number in range(seeds)]
        found = repeat(
            opened, dataset, WORD, [held.params for held in chosen], numbers, workers=workers, progress=progress
        )
        finished = count(trials).finished
        worth = worth_of_a_row(config, dataset)
        made = summarise(opened.metrics[0], opened.signs[0], chosen, found.outcomes, prefer, finished, worth)
        made = replace(made, now=count(opened.trials()).finished, ended=found.ended)
        if found.ended is None:
            opened.storage.set_study_system_attr(opened.id, CONFIRMED, asdict(made))
            save_note(opened)
        return made


def confirmation_of(opened: OpenStudy) -> Confirmation | None:
    """What `confirm` found last, as it is stored with the study; None where it was never run. Trains nothing."""
    stored = opened.storage.get_study_system_attrs(opened.id).get(CONFIRMED)
    if stored is None:
        return None
    rows = tuple(Confirmed(**{name: _tuple(value) for name, value in row.items()}) for row in stored["rows"])
    held = {**stored, "rows": rows, "failures": tuple(stored["failures"]), "now": count(opened.trials()).finished}
    return Confirmation(**held)


def winner(opened: OpenStudy) -> FrozenTrial:
    """The confirmed choice, or else the best trial of the search; raises `NoCompletedTrial`."""
    confirmed = confirmation_of(opened)
    return opened.picked() if confirmed is None else opened.complete_trial(confirmed.choice)


def worth_of_a_row(config: StudyConfig, dataset: Dataset) -> float:
    """What one validation row is worth in the leading metric, at most and about; with k-fold, in the mean of the folds.

    A row of the smallest class moves macro F1 the most: a class has its share of it, however few its rows are.
    """
    if config.metric == "loss":
        return 0.0
    labels = [valid.labels for _, valid in validation_splits(dataset, config)]
    if config.metric == "accuracy":
        return fmean(1 / len(theirs) for theirs in labels) / len(labels)
    counts = [np.unique(theirs, return_counts=True)[1] for theirs in labels]
    return fmean(1 / (len(theirs) * int(theirs.min())) for theirs in counts) / len(labels)


def interval_of(metric: str, values: Sequence[float], resolution: float) -> Interval | None:
    """As `mean_interval`, within what the metric can be."""
    found = mean_interval(values, resolution=resolution)
    if found is None:
        return None
    return max(found[0], 0.0), found[1] if metric == "loss" else min(found[1], 1.0)


def pick_finalists(opened: OpenStudy, trials: Sequence[FrozenTrial], top: int) -> list[Finalist]:
    """The best `top` configurations of a search, the best first, and that of the defaults, whatever became of it."""
    good = candidates(trials)
    ranked = sorted(good, key=lambda t: (*(-s * v for s, v in zip(opened.signs, t.values, strict=True)), t.number))
    first: dict[object, FrozenTrial] = {}
    for trial in ranked:
        first.setdefault(key_of(trial.params), trial)
    found = [Finalist(t.number, t.params, t.values[0], rank) for rank, t in enumerate([*first.values()][:top], 1)]
    baseline = opened.defaults(list(trials))
    if baseline is None:
        return found
    params = {**baseline.system_attrs.get("fixed_params", {}), **baseline.params}
    known = next((held for held in found if key_of(held.params) == key_of(params)), None)
    if known is not None:
        return [replace(held, defaults=held is known) for held in found]
    value = baseline.values[0] if baseline.state == TrialState.COMPLETE else None
    return [*found, Finalist(baseline.number, params, value, None, True, baseline in good)]


def summarise(
    metric: str,
    sign: int,
    finalists: Sequence[Finalist],
    outcomes: Sequence[Sequence[Outcome]],
    prefer: Prefer,
    finished: int,
    resolution: float = 0.0,
) -> Confirmation:
    """What the outcomes of each finalist on each seed say; `finished` and `resolution` are as in `Confirmation`.

    Which row is best is known from the same values, so whatever is compared with it was chosen among all pairs: p is
    corrected for these, with Holm's procedure. (Corrected for the comparisons with the best alone, 8 % of six equal
    configurations on 5 seeds would show a difference; so it is 3 %.)

    Raises `NoCompletedTrial` where none that may be the choice has a value.
    """
    found = [*zip(finalists, outcomes, strict=True)]
    values = {held.trial: [outcome.value for outcome in theirs] for held, theirs in found}
    failures = tuple(why_missing(f"trial {held.trial}", theirs) for held, theirs in found if missing(theirs))
    rows = [_row(metric, sign, held, theirs, resolution) for held, theirs in found if missing(theirs) < len(theirs)]
    rows.sort(key=lambda row: (not row.eligible, -len(row.values), -sign * row.mean, row.parameters, row.trial))
    if not rows or not rows[0].eligible:
        raise NoCompletedTrial(f"no trial could be trained again on any seed: {failures[0]}")
    corrected = _corrected([row.trial for row in rows], values, resolution)
    best = rows[0]
    for place, row in enumerate(rows[1:], 1):
        p = corrected.get(frozenset((best.trial, row.trial)))
        rows[place] = replace(row, p=p, differs=p is not None and p < SIGNIFICANT)
    tied = [row for row in rows if row.eligible and not row.differs and len(row.values) == len(best.values)]
    choice = best if prefer == "best" else min(tied, key=lambda row: (row.parameters, rows.index(row)))
    return Confirmation(
        metric,
        sign,
        len(outcomes[0]),
        tuple(rows),
        choice.trial,
        prefer,
        finished,
        finished,
        sum(map(missing, outcomes)),
        failures,
        resolution=resolution,
    )


def _row(metric: str, sign: int, held: Finalist, outcomes: Sequence[Outcome], resolution: float) -> Confirmed:
    """What the values of one finalist say by themselves; there must be one."""
    there = [outcome for outcome in outcomes if outcome.value is not None]
    values = tuple(outcome.value for outcome in there if outcome.value is not None)
    mean = fmean(values)
    return Confirmed(
        **vars(held),
        values=values,
        mean=mean,
        interval=interval_of(metric, values, resolution),
        drop=None if held.searched is None else sign * (held.searched - mean),
        parameters=there[0].parameters,
        p=None,
        differs=False,
        best_epochs=tuple(outcome.best_epoch for outcome in there),
    )


def _corrected(
    trials: Sequence[int], values: Mapping[int, Sequence[float | None]], resolution: float
) -> dict[frozenset[int], float]:
    """The corrected p-value of each pair of trials that shares at least two seeds."""
    found: dict[frozenset[int], float] = {}
    for one, other in combinations(sorted(trials), 2):
        p = paired_p(*shared(values[one], values[other]), resolution)
        if p is not None:
            found[frozenset((one, other))] = p
    return dict(zip(found, holm([*found.values()]), strict=True))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
