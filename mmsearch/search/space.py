"""The space as Optuna sees it: suggest a configuration for a trial, and read it back from stored parameters."""

from __future__ import annotations

import itertools
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
from mmsearch.spaces import Choices, Range, Space


def distribution(name: str, dimension: Range | Choices) -> BaseDistribution:
    """The Optuna distribution of one dimension."""
    if isinstance(dimension, Choices):
        return CategoricalDistribution(dimension.options)
    if TABLE[name].kind is int:
        step = int(dimension.step or 1)
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=step)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


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


def grid(space: Space, seed: int) -> list[dict[str, Value]]:
    """All points of a space without conditional parameters, in an order shuffled by the study's seed."""
    dimensions = space.varying()
    axes = [d.options if isinstance(d, Choices) else d.grid() or () for d in dimensions.values()]
    points = [dict(zip(dimensions, values, strict=True)) for values in itertools.product(*axes)]
    order = np.random.default_rng(np.random.SeedSequence([seed, 3])).permutation(len(points))
    return [points[i] for i in order]
