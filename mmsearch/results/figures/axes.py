"""A hyperparameter as an axis: where a value lies on it, its ticks, and to which trials it applies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from mmsearch.hyperparameters import TABLE

Floats = npt.NDArray[np.float64]
Condition = tuple[str, tuple[Any, ...]]  # a parameter, and the values of which it must have one


@dataclass(frozen=True)
class Axis:
    """One hyperparameter: numbers from `low` to `high`, or a list of `choices` without order.

    A value's *place* is where it is drawn: the number, its logarithm to base 10 where `log`, or its position among the
    choices. `step` is that of whole numbers and of ranges that have one. It applies to a trial only where all
    `conditions` hold.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    step: float | None = None
    choices: tuple[Any, ...] | None = None
    conditions: tuple[Condition, ...] = ()

    @property
    def numeric(self) -> bool:
        """Whether it is of numbers, not of choices."""
        return self.choices is None

    @property
    def span(self) -> tuple[float, float]:
        """The places of its ends."""
        if self.choices is not None:
            return 0.0, float(max(len(self.choices) - 1, 0))
        return (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)

    def place(self, value: Any) -> float:
        """Where a value lies."""
        if self.choices is not None:
            return float(self.choices.index(value))
        return math.log10(value) if self.log else float(value)

    def draw(self, shares: Floats) -> tuple[Floats, list[Any]]:
        """The places, and the values, that lie at shares (from 0 to below 1) of what it extends over."""
        if self.choices is not None:
            places = np.floor(shares * len(self.choices))
            return places, [self.choices[int(place)] for place in places]
        low, high = self.span
        if self.step is not None and not self.log:
            values = self.low + self.step * np.floor(shares * (round((self.high - self.low) / self.step) + 1))
        elif self.whole:
            start, end = math.log10(self.low - 0.5), math.log10(self.high + 0.5)
            values = np.clip(np.round(10 ** (start + shares * (end - start))), self.low, self.high)
        else:
            places = low + shares * (high - low)
            values = 10**places if self.log else places
        places = np.log10(values) if self.log else values
        return places, [round(value) for value in values.tolist()] if self.whole else values.tolist()

    def ticks(self, most: int = 5) -> tuple[list[float], list[str]]:
        """The places of at most so many ticks, and their texts; of choices all of them."""
        if self.choices is not None:
            return [float(place) for place in range(len(self.choices))], [in_text(choice) for choice in self.choices]
        values = _log_ticks(self.low, self.high, most) if self.log else _ticks(self.low, self.high, most, self.whole)
        return [self.place(value) for value in values], [_tick(value) for value in values]


def axes_of(trials: Sequence[FrozenTrial]) -> dict[str, Axis]:
    """The axis of each parameter that has more than one value in the distributions of the trials, in the table's order.

    A range that grew, or a list, covers what all trials had.
    """
    held: dict[str, dict[Any, None]] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            held.setdefault(name, {})[distribution] = None
    names = [name for name in TABLE if name in held] + sorted(set(held) - set(TABLE))
    found = {name: _axis(name, list(held[name]), _conditions(name, held)) for name in names}
    return {name: axis for name, axis in found.items() if axis.span[0] < axis.span[1]}


def _axis(name: str, distributions: list[Any], conditions: tuple[Condition, ...]) -> Axis:
    if all(isinstance(distribution, FloatDistribution | IntDistribution) for distribution in distributions):
        last, steps = distributions[-1], {distribution.step for distribution in distributions}
        return Axis(
            name,
            float(min(distribution.low for distribution in distributions)),
            float(max(distribution.high for distribution in distributions)),
            log=all(distribution.log for distribution in distributions),
            whole=all(isinstance(distribution, IntDistribution) for distribution in distributions),
            step=float(last.step) if len(steps) == 1 and last.step is not None else None,
            conditions=conditions,
        )
    choices: dict[Any, None] = {}
    for distribution in distributions:
        if isinstance(distribution, CategoricalDistribution):
            choices |= dict.fromkeys(distribution.choices)
    return Axis(name, choices=tuple(choices), conditions=conditions)


def _conditions(name: str, varying: Mapping[str, Any]) -> tuple[Condition, ...]:
    """What decides whether a parameter applies, of what varies; a parent that is fixed hands on what decides it."""
    found: dict[Condition, None] = {}
    asked = list(TABLE[name].requires) if name in TABLE else []
    while asked:
        parent, allowed = asked.pop()
        if parent in varying:
            found[parent, tuple(allowed)] = None
        elif parent in TABLE:
            asked += TABLE[parent].requires
    return tuple(found)


def in_text(value: Any) -> str:
    """A value as a label."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tick(value: float) -> str:
    """A number as a label, short: 1e-4, not 0.0001."""
    if value and abs(value) < 0.001:
        digits, _, power = f"{value:e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:g}"


def _ticks(low: float, high: float, most: int, whole: bool) -> list[float]:
    """Round numbers from low to high, as many as fit."""
    rough = (high - low) / max(most - 1, 1)
    power = 10 ** math.floor(math.log10(rough))
    steps = [factor * power for factor in (1, 2, 2.5, 5, 10, 20)]
    if whole:
        steps = [step for step in steps if step >= 1 and step == int(step)] or [1.0]
    for step in steps:
        first = math.ceil(low / step - 1e-9)
        count = math.floor(high / step + 1e-9) - first + 1
        if count <= most:
            return [round((first + i) * step, 12) for i in range(count)] or [low]
    return [low, high]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Ones, twos and fives of each power of ten from low to high, as many as fit; else only ones."""
    for digits, every in (((1, 2, 5), 1), ((1, 3), 1), *(((1,), every) for every in (1, 2, 3, 5, 10, 20, 50, 100))):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [
            float(f"{digit}e{power}")
            for power in powers
            if not power % every
            for digit in digits
            if low * (1 - 1e-9) <= float(f"{digit}e{power}") <= high * (1 + 1e-9)
        ]
        if len(found) <= most:
            break
    return found if len(found) > 1 else [low, high]
