"""What is retrained: which trials, for how many epochs, from which seeds, and why these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median_high
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.config import StudyConfig
from mmsearch.errors import MmsearchError, UsageError
from mmsearch.hyperparameters import Hyperparameters
from mmsearch.results.confirm import Confirmation, Confirmed, confirmation_of
from mmsearch.search.folds import trial_seed
from mmsearch.search.progress import plural
from mmsearch.search.repeats import key_of
from mmsearch.search.space import restore
from mmsearch.search.study import OpenStudy
from mmsearch.search.values import all_in_words, best_of, candidates, in_words

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

MOST_MEMBERS = 20


@dataclass(frozen=True)
class PlannedMember:
    """One model to be trained: a trial's configuration, for so many epochs, from a seed."""

    trial: FrozenTrial
    hyperparameters: Hyperparameters
    epochs: int
    seed: int


@dataclass(frozen=True)
class Plan:
    """What is retrained, and why.

    `by` is `confirmed`, `best`, `knee`, `within=NUMBER` or `trial`; `why` says it in a sentence without an end. `hint`
    is what the user might do about it. `confirmation` is what the choice rests on, None where it is not confirmed.
    `unseen_epochs` are those of the trainings that calibrate, on fewer rows; 0 where there are none.
    """

    members: tuple[PlannedMember, ...]
    by: str
    why: str
    hint: str | None = None
    confirmation: Confirmation | None = None
    unseen_epochs: int = 0

    @property
    def trial(self) -> FrozenTrial:
        """The chosen trial; an ensemble's first."""
        return self.members[0].trial

    @property
    def epochs(self) -> int:
        """The epochs on all training rows, of all members."""
        return sum(member.epochs for member in self.members)

    @property
    def rule(self) -> str:
        """What picked the trial, as metrics.json has always said it."""
        return f"trial {self.trial.number}" if self.by == "trial" else self.by

    @property
    def confirmed(self) -> Confirmed | None:
        """What is known of the chosen trial on fresh seeds."""
        return None if self.confirmation is None else _row(self.confirmation, self.trial.number)


def make_plan(opened: OpenStudy, *, trial: int | None, rule: str | None, ensemble: int, calibrate: bool) -> Plan:
    """Which trials are retrained.

    Trial number `trial`; or else what `rule` picks; or else the winner that `mmsearch confirm` found, where there is
    one, and the best of the search where there is none. An ensemble of a trial that was asked for has its configuration
    on as many seeds; any other has as many configurations, the confirmed ones first in their order, then those with the
    best values. A configuration that was confirmed trains for the median of its best epochs over the seeds, any other
    for its trial's best epoch. Raises `UsageError` and `NoCompletedTrial`.
    """
    if not 1 <= ensemble <= MOST_MEMBERS:
        raise UsageError(f"an ensemble of {ensemble} is not possible: it has 2 to {MOST_MEMBERS} members")
    confirmation = confirmation_of(opened)
    if trial is not None:
        chosen, by = opened.complete_trial(trial), "trial"
    elif rule is None and confirmation is not None:
        chosen, by = opened.complete_trial(confirmation.choice), "confirmed"
    else:
        by = rule or "best"
        chosen = opened.picked(by)
    if trial is not None or rule is not None:
        trials = [chosen] * ensemble
    else:
        trials = _distinct(opened, chosen, confirmation, ensemble)
    members = tuple(_member(opened, confirmation, held, trials[:place]) for place, held in enumerate(trials))
    folds = opened.config.folds
    return Plan(
        members,
        by,
        _why(opened, by, trials, confirmation),
        _hint(opened, confirmation) if trial is None and rule is None else None,
        confirmation,
        sum(member.epochs for member in members) * folds if calibrate else 0,
    )


def _distinct(
    opened: OpenStudy, chosen: FrozenTrial, confirmation: Confirmation | None, count: int
) -> list[FrozenTrial]:
    """So many trials of different configurations, the chosen one first."""
    possible = candidates(opened.trials())
    known = {trial.number: trial for trial in possible}
    rows = () if confirmation is None else confirmation.rows
    confirmed = [known[row.trial] for row in rows if row.trial in known]
    first: dict[object, FrozenTrial] = {}
    for trial in (chosen, *confirmed, *_ranked(opened, possible)):
        first.setdefault(key_of(trial.params), trial)
    found = list(first.values())
    if len(found) < count:
        raise UsageError(
            f"an ensemble of {count} is not possible: the study {opened.config.study.name} has "
            f"{plural(len(found), 'complete trial')} of different configurations"
        )
    return found[:count]


def _ranked(opened: OpenStudy, trials: list[FrozenTrial]) -> Iterator[FrozenTrial]:
    """The trials, the best first."""
    left = list(trials)
    while (best := best_of(left, opened.signs)) is not None:
        left.remove(best)
        yield best


def _member(
    opened: OpenStudy, confirmation: Confirmation | None, trial: FrozenTrial, before: list[FrozenTrial]
) -> PlannedMember:
    """A trial's member, when these have theirs already."""
    config = opened.config
    row = None if confirmation is None else _row(confirmation, trial.number)
    epochs = _best_epoch(opened, trial) if row is None or not row.best_epochs else median_high(row.best_epochs)
    first = trial.system_attrs.get("failed_trial", trial.number)
    again = sum(other.number == trial.number for other in before)
    return PlannedMember(trial, restore(config.dimensions, trial.params), epochs, _seed(config, first, again))


def _seed(config: StudyConfig, first_number: int, again: int) -> int:
    """The seed of a trial's retraining, or of one more with the same configuration."""
    if not again:
        return trial_seed(config, first_number)
    return int(np.random.SeedSequence([config.study.seed, first_number, 2, again]).generate_state(1)[0])


def _best_epoch(opened: OpenStudy, trial: FrozenTrial) -> int:
    """The epoch whose value is the trial's; with k-fold validation the median of the folds' best."""
    if "best_epoch" in trial.user_attrs:
        return int(trial.user_attrs["best_epoch"])
    if not trial.intermediate_values or opened.config.folds > 1:
        raise MmsearchError(f"trial {trial.number} was added by hand: it has no epochs to retrain for")
    return max(trial.intermediate_values, key=lambda epoch: opened.signs[0] * trial.intermediate_values[epoch])


def _row(confirmation: Confirmation, number: int) -> Confirmed | None:
    return next((row for row in confirmation.rows if row.trial == number), None)


def _why(opened: OpenStudy, by: str, trials: list[FrozenTrial], confirmation: Confirmation | None) -> str:
    chosen = trials[0]
    searched = all_in_words(dict(zip(opened.metrics, chosen.values, strict=True)))
    said = {"best": "the best of the search", "trial": "as asked"}.get(by, f"picked by {by}")
    text = f"trial {chosen.number}, {said}: {searched}"
    row = None if confirmation is None else _row(confirmation, chosen.number)
    if by == "confirmed" and confirmation is not None and row is not None:
        mean = in_words(confirmation.metric, row.mean)
        if row.interval is not None:
            mean += f" [{', '.join(in_words(confirmation.metric, bound) for bound in row.interval)}]"
        small = ", the smallest that does not differ from the best" if confirmation.prefer == "small" else ""
        text = (
            f"trial {chosen.number}, confirmed on {plural(confirmation.seeds, 'seed')}{small}: {confirmation.metric} "
            f"{mean}; searched {in_words(opened.metrics[0], chosen.values[0])}"
        )
    others = [str(trial.number) for trial in trials[1:]]
    if not others:
        return text
    if {*others} == {str(chosen.number)}:
        return f"{text}; {len(trials)} times, on as many seeds, as an ensemble"
    return f"{text}; with {'trial' if len(others) == 1 else 'trials'} {_listed(others)} as an ensemble"


def _hint(opened: OpenStudy, confirmation: Confirmation | None) -> str | None:
    """What to do about a choice that nobody made."""
    command = opened.config.command("confirm")
    if confirmation is None:
        return f"the best of many trials may be a lucky one; this checks it on fresh seeds: {command}"
    if confirmation.stale:
        more = plural(confirmation.now - confirmation.finished, "trial")
        return f"the search has finished {more} since trial {confirmation.choice} was confirmed; again: {command}"
    return None


def _listed(words: list[str]) -> str:
    """`1`, `1 and 2`, `1, 2 and 3`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
