"""The space as Optuna sees it: suggest a configuration for a trial, and read it back from stored parameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from mmsearch.hyperparameters import TABLE, Hyperparameters, Value
from mmsearch.spaces import Choices, Dimension, Range, Space


def distribution(name: str, dimension: Range | Choices) -> BaseDistribution:
    """The Optuna distribution of one dimension."""
    if isinstance(dimension, Choices):
        return CategoricalDistribution(dimension.options)
    if TABLE[name].kind is int:
        step = int(dimension.step or 1)
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=step)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The Optuna distribution of each dimension that varies."""
    return {name: distribution(name, dimension) for name, dimension in space.varying().items()}


def suggest(space: Space, trial: optuna.Trial) -> Hyperparameters:
    """One configuration, asking the trial's sampler for what varies and applies, and for nothing else."""

    def pick(name: str, dimension: Range | Choices) -> Value:
        found = distribution(name, dimension)
        value: Any
        if isinstance(found, CategoricalDistribution):
            value = trial.suggest_categorical(name, found.choices)
        elif isinstance(found, IntDistribution):
            value = trial.suggest_int(name, found.low, found.high, step=found.step, log=found.log)
        else:
            assert isinstance(found, FloatDistribution)
            value = trial.suggest_float(name, found.low, found.high, step=found.step, log=found.log)
        return TABLE[name].check(value)

    return space.walk(pick)


def restore(space: Space, params: Mapping[str, Any]) -> Hyperparameters:
    """The configuration that `suggest` made when Optuna stored these parameters."""
    return space.walk(lambda name, _: TABLE[name].check(params[name]))


def varying(space: Space, configuration: Hyperparameters) -> dict[str, Any]:
    """The Optuna parameters of a configuration: what varies and applies."""
    return {name: configuration[name] for name in space.varying() if name in configuration}


def unconditional(space: Space) -> list[str]:
    """What varies and applies to every configuration."""

    def values(dimension: Dimension) -> set[Value]:
        if isinstance(dimension, Choices):
            return set(dimension.options)
        if isinstance(dimension, Range):  # nothing depends on numbers that are not whole
            return set(range(int(dimension.low), int(dimension.high) + 1)) if dimension.whole else set()
        return {dimension.value}

    possible: dict[str, set[Value]] = {name: {value} for name, value in space.given.items()}
    for name, parameter in TABLE.items():  # parents stand before what depends on them
        if all(parent in possible and possible[parent] <= set(allowed) for parent, allowed in parameter.requires):
            possible[name] = values(space[name])
    return [name for name in space.varying() if name in possible]


def at(dimension: Range | Choices, share: float) -> Value:
    """The value that lies at a share, from 0 to below 1, of what a dimension extends over.

    Choices and steps have equal parts of it; a logarithmic range is spread evenly over the logarithm.
    """
    if isinstance(dimension, Choices):
        return dimension.options[int(share * len(dimension.options))]
    low, high, step = dimension.low, dimension.high, dimension.step
    if dimension.log:
        margin = 0.5 if dimension.whole else 0.0  # as much on the scale for the first and the last as for the others
        start, end = math.log(low - margin), math.log(high + margin)
        value = min(max(math.exp(start + share * (end - start)), low), high)
        return round(value) if dimension.whole else value
    if dimension.whole:
        step = int(step or 1)
        return int(low) + step * int(share * ((int(high) - int(low)) // step + 1))
    if step is None:
        return min(low + share * (high - low), high)
    return dimension.point(int(share * (round((high - low) / step) + 1)))


def grid(space: Space, seed: int) -> list[dict[str, Value]]:
    """All points of a space without conditional parameters, in an order shuffled by the study's seed."""
    dimensions = space.varying()
    axes = [d.options if isinstance(d, Choices) else d.grid() or () for d in dimensions.values()]
    points = [dict(zip(dimensions, values, strict=True)) for values in itertools.product(*axes)]
    order = np.random.default_rng(np.random.SeedSequence([seed, 3])).permutation(len(points))
    return [points[i] for i in order]
