"""What trials are worth: whether they keep to the constraints, the Pareto front, the rules that pick one, the words."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial, TrialState

from mmsearch.errors import UsageError

RUN = "run"  # user attribute of a trial: what its numbers depend on besides its configuration
METRICS = "metrics"  # user attribute of a trial: the value of each metric of the study and its constraints
VIOLATED = "violated"  # user attribute of a trial: which constraints it violates, and by which values; may be empty
MEMORY = "memory"  # the constraint of a trial that ran out of memory, which violates it by 1
RULES = "best, knee, or within=0.005 for so much less than the best of the leading metric"

Points = npt.NDArray[np.float64]


def keeps_to_constraints(trial: FrozenTrial) -> bool:
    """Whether no constraint of the trial is violated, as far as they are known."""
    return all(violation <= 0 for violation in trial.constraints.values())


def candidates(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The complete trials that keep to the constraints."""
    return [t for t in trials if t.state == TrialState.COMPLETE and t.values and keeps_to_constraints(t)]


def best_of(trials: Sequence[FrozenTrial], signs: Sequence[int]) -> FrozenTrial | None:
    """The trial with the best leading value; of equals the one that is better in the next metric, then the first.

    `signs` is 1 for each metric of which greater values are better, else -1.
    """
    return max(trials, key=lambda t: (*_gains(t, signs), -t.number), default=None)


def pareto_front(trials: Sequence[FrozenTrial], signs: Sequence[int]) -> list[FrozenTrial]:
    """The trials that no other beats in a metric without losing in another, by the leading metric, the best first."""
    front: list[tuple[tuple[float, ...], FrozenTrial]] = []
    for trial in sorted(trials, key=lambda t: (*(-gain for gain in _gains(t, signs)), t.number)):
        point = _gains(trial, signs)  # what beats it stands before it, or is beaten by what does
        if not any(other != point and all(map(operator.ge, other, point)) for other, _ in front):
            front.append((point, trial))
    return [trial for _, trial in front]


def margin_of(rule: str) -> float | None:
    """What a rule named `within=NUMBER` allows; None for the others. Raises `UsageError` for what is no rule."""
    if rule in ("best", "knee"):
        return None
    name, _, text = rule.partition("=")
    try:
        margin = float(text) if name == "within" else math.nan
    except ValueError:
        margin = math.nan
    if not 0 <= margin < math.inf:
        raise UsageError(f'"{rule}" is no rule to pick a trial by; allowed are {RULES}')
    return margin


def pick(front: Sequence[FrozenTrial], rule: str, signs: Sequence[int]) -> FrozenTrial:
    """The trial of a Pareto front, the best first, that a rule picks.

    `best`: the best of the leading metric. `knee`: the closest to the ideal point, each metric scaled to 0-1 over the
    front. `within=M`: of those whose leading value is at most M worse than the best, the best of the second metric.
    Raises `UsageError`.
    """
    margin = margin_of(rule)
    if rule == "best":
        return front[0]
    points = _points(front, signs)
    if margin is None:
        low, high = points.min(0), points.max(0)
        lacking = (high - points) / np.where(high > low, high - low, 1)
        return front[int(np.argmin(np.linalg.norm(lacking, axis=1)))]
    near = np.flatnonzero(points[0, 0] - points[:, 0] <= margin + 1e-12)
    return front[int(near[np.argmax(points[near, 1])])]


def in_words(metric: str, value: float) -> str:
    """A metric's value for people."""
    return f"{value:.0f}" if metric == "parameters" else f"{value:.3f}" if metric == "latency_ms" else f"{value:.4f}"


def all_in_words(values: Mapping[str, float]) -> str:
    """`macro_f1 0.9612, parameters 120034`."""
    return ", ".join(f"{metric} {in_words(metric, value)}" for metric, value in values.items())


def _gains(trial: FrozenTrial, signs: Sequence[int]) -> tuple[float, ...]:
    return tuple(sign * value for sign, value in zip(signs, trial.values or (), strict=True))


def _points(trials: Sequence[FrozenTrial], signs: Sequence[int]) -> Points:
    """(trials, metrics) values, greater ones better."""
    return np.array([_gains(trial, signs) for trial in trials], dtype=np.float64).reshape(len(trials), len(signs))
