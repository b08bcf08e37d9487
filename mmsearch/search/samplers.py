"""Samplers and pruners by the names that study files use."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mmsearch.config import StudyConfig
from mmsearch.hyperparameters import Value
from mmsearch.search.space import distribution, grid
from mmsearch.search.storage import SLOT, use_current_ranges


class SeededSampler(BaseSampler):
    """A sampler that starts anew for each trial, seeded by the study's seed and the trial's number.

    Workers need no seeds of their own, never propose the same point twice, and a search that is resumed goes on with
    new numbers instead of repeating the first ones.
    """

    def __init__(
        self, make: Callable[[int], BaseSampler], seed: int, distributions: dict[str, BaseDistribution]
    ) -> None:
        self._make, self._seed, self._distributions = make, seed, distributions
        self._sampler = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Make the trial's own sampler."""
        self._sampler = self._make(int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0]))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the trial's sampler does, with the ranges as the study file has them now."""
        found = self._sampler.infer_relative_search_space(study, trial)
        if isinstance(self._sampler, TPESampler):
            use_current_ranges(self._sampler, self._distributions)
        return {name: self._distributions.get(name, known) for name, known in found.items()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the trial's sampler does."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the trial's sampler does."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As the trial's sampler does."""
        self._sampler.after_trial(study, trial, state, values)


class GridPoints(BaseSampler):
    """Each trial takes the point of the grid that the storage gave it: all of them, and none twice."""

    def __init__(self, points: list[dict[str, Value]], distributions: dict[str, BaseDistribution]) -> None:
        self._points, self._distributions = points, distributions

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space."""
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The trial's point."""
        slot = trial.system_attrs.get(SLOT)
        return {} if slot is None else dict(self._points[slot])

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never needed: a grid's space has no conditional parameters."""
        raise RuntimeError(f"{param_name} is not on the grid")


def build_sampler(config: StudyConfig) -> BaseSampler:
    """The sampler of a study.

    TPE is multivariate and grouped, which conditional spaces need, and counts running trials as bad ones, which keeps
    workers apart (Bergstra et al., 2011; Falkner et al., 2018).
    """
    seed, startup = config.study.seed, config.search.startup_trials
    distributions = {name: distribution(name, d) for name, d in config.dimensions.varying().items()}
    if config.search.sampler == "grid":
        return GridPoints(grid(config.dimensions, seed), distributions)
    if config.search.sampler == "random":
        return SeededSampler(lambda seed: RandomSampler(seed=seed), seed, distributions)

    def tpe(seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True)

    return SeededSampler(tpe, seed, distributions)


def build_pruner(config: StudyConfig) -> BasePruner:
    """The pruner of a study. Steps are epochs, counted from 1."""
    if config.search.pruner == "median":
        return MedianPruner(
            n_startup_trials=config.search.pruner_startup, n_warmup_steps=config.search.pruner_warmup + 1
        )
    if config.search.pruner == "hyperband":
        first_rung = min(config.search.pruner_warmup + 1, config.search.max_epochs)
        return HyperbandPruner(min_resource=first_rung, max_resource=config.search.max_epochs)
    return NopPruner()
