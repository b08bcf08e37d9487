"""Samplers and pruners by the names that study files use."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
    WilcoxonPruner,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mmsearch.config import StudyConfig
from mmsearch.search.proposals import Evolution, GaussianProcess, GridPoints, QuasiRandomPoints
from mmsearch.search.space import distributions, grid, unconditional
from mmsearch.search.storage import use_current_ranges

GP_TRIALS = 500  # beyond which a Gaussian process takes seconds for each proposal: 4 s at 1,000


class SeededSampler(BaseSampler):
    """A sampler that starts anew for each trial, seeded by the study's seed and the trial's number.

    Workers need no seeds of their own, never propose the same point twice, and a search that is resumed goes on with
    new numbers instead of repeating the first ones.
    """

    def __init__(
        self, make: Callable[[int], BaseSampler], seed: int, distributions: dict[str, BaseDistribution]
    ) -> None:
        self._make, self._seed, self._distributions = make, seed, distributions
        self._sampler: BaseSampler = RandomSampler(seed)  # until there is a trial: some take seconds to make

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


def build_sampler(config: StudyConfig) -> BaseSampler:
    """The sampler of a study, which reads what `trial.set_constraint` wrote.

    TPE is multivariate and grouped, which conditional spaces need, and counts running trials as bad ones, which keeps
    workers apart (Bergstra et al., 2011; Falkner et al., 2018). A Gaussian process (Matern kernel, expected
    improvement) models what applies to every configuration, and TPE proposes the rest, one parameter at a time.
    """
    space, seed, search = config.dimensions, config.study.seed, config.search
    varying = distributions(space)

    def tpe(seed: int) -> BaseSampler:
        with _no_word_of_experiments():
            return TPESampler(
                seed=seed, n_startup_trials=search.startup_trials, multivariate=True, group=True, constant_liar=True
            )

    def gp(seed: int) -> BaseSampler:
        always = {name: varying[name] for name in unconditional(space)}
        rest = TPESampler(seed=seed, n_startup_trials=search.startup_trials)
        first = max(1, search.startup_trials)  # it has nothing to learn from before
        return GaussianProcess(always, seed=seed, n_startup_trials=first, independent_sampler=rest)

    def nsga2(seed: int) -> BaseSampler:
        with _no_word_of_experiments():
            return Evolution(space, seed, search.population)

    match search.sampler:
        case "grid":
            return GridPoints(grid(space, seed), varying)
        case "qmc":
            return QuasiRandomPoints(space, seed)
        case "random":
            return SeededSampler(lambda seed: RandomSampler(seed=seed), seed, varying)
        case "gp":
            return SeededSampler(gp, seed, varying)
        case "nsga2":
            return SeededSampler(nsga2, seed, varying)
        case _:
            return SeededSampler(tpe, seed, varying)


def build_pruner(config: StudyConfig) -> BasePruner:
    """The pruner of a study; none where there are several metrics, for which Optuna has none.

    Steps are epochs, counted from 1; with k-fold they are folds, counted from 1. Which of them may be the first that
    is a trial's last, `first_step` says. The default was chosen by benchmarks/pruners.py.
    """
    search = config.search
    if len(config.study.metrics) > 1:
        return NopPruner()
    first = first_step(config)
    median = MedianPruner(n_startup_trials=search.pruner_startup, n_warmup_steps=first)
    match search.pruner:
        case "median":
            return median
        case "percentile":
            return PercentilePruner(
                search.pruner_percentile, n_startup_trials=search.pruner_startup, n_warmup_steps=first
            )
        case "hyperband":
            return HyperbandPruner(
                min_resource=first, max_resource=steps(config), reduction_factor=search.reduction_factor
            )
        case "halving":
            return SuccessiveHalvingPruner(min_resource=first, reduction_factor=search.reduction_factor)
        case "patient":
            with _no_word_of_experiments():
                return PatientPruner(median, patience=search.pruner_patience)
        case "threshold":
            return ThresholdPruner(lower=search.pruner_lower, upper=search.pruner_upper, n_warmup_steps=first)
        case "wilcoxon":
            with _no_word_of_experiments():
                return WilcoxonPruner(p_threshold=search.pruner_p, n_startup_steps=first)
        case _:
            return NopPruner()


def first_step(config: StudyConfig) -> int:
    """The first step at which a trial may be pruned, and the first rung: the one after `warmup`.

    Rungs begin after a tenth of the steps at the earliest: they double or treble from there, and from the first of 50
    epochs too few trials would train to the end.
    """
    last = steps(config)
    first = min(warmup(config) + 1, last)
    return max(first, last // 10) if config.search.pruner in ("halving", "hyperband") else first


def warmup(config: StudyConfig) -> int:
    """How many steps of a trial are never pruned: as many as the study file says, or as suit its pruner.

    Rungs compare trials again later; other rules judge once for all, and a first epoch tells little.
    """
    if config.search.pruner_warmup is not None:
        return config.search.pruner_warmup
    return 0 if config.search.pruner in ("halving", "hyperband") else 2


def steps(config: StudyConfig) -> int:
    """How often a trial reports, at most: once an epoch, or with k-fold once a fold."""
    return config.folds if config.folds > 1 else config.search.max_epochs


def notes(config: StudyConfig) -> list[str]:
    """What may surprise in the choice of sampler and pruner: one sentence each."""
    return [*_sampler_notes(config), *_pruner_notes(config)]


def _sampler_notes(config: StudyConfig) -> Iterator[str]:
    search, trials = config.search, config.study.trials
    if search.sampler == "gp":
        varying, always = config.dimensions.varying(), unconditional(config.dimensions)
        if len(always) < len(varying):
            yield (
                f"sampler gp models the {len(always)} of {len(varying)} parameters that apply to every configuration; "
                "TPE proposes the others"
            )
        if trials > GP_TRIALS:
            yield f"sampler gp takes seconds for each proposal beyond {GP_TRIALS} trials; tpe stays quick"
    at_random = {"tpe": search.startup_trials, "gp": search.startup_trials, "nsga2": search.population}
    if len(config.configurations) < trials <= at_random.get(search.sampler, 0):
        key = "population" if search.sampler == "nsga2" else "startup_trials"
        yield (
            f"sampler {search.sampler} proposes at random until {at_random[search.sampler]} trials are there ({key} in "
            f"[search]), and the study has {trials}"
        )
    if search.sampler == "nsga2" and search.pruner != "none" and len(config.study.metrics) == 1:
        yield 'sampler nsga2 learns from complete trials only: pruner = "none" lets it learn from all'


def _pruner_notes(config: StudyConfig) -> Iterator[str]:
    search, last = config.search, steps(config)
    if search.pruner == "none" or len(config.study.metrics) > 1:
        return
    first, reason = warmup(config) + 1, f"pruner_warmup = {warmup(config)}"
    if search.pruner == "wilcoxon":  # n folds that are all worse have a p of 1 in 2 to the n
        enough = next(n for n in range(2, 64) if 0.5**n < search.pruner_p)
        if enough > first:
            first, reason = enough, f"pruner_p = {search.pruner_p:g}"
    if search.pruner == "patient" and search.pruner_patience + 2 > first:
        first, reason = search.pruner_patience + 2, f"pruner_patience = {search.pruner_patience}"
    if first >= last:
        what = ("fold" if config.folds > 1 else "epoch") + ("" if first == 1 else "s")
        needs = f"with {reason} it needs more than {first} {what}, and there {'is' if last == 1 else 'are'} {last}"
        yield f"pruner {search.pruner} prunes nothing: {needs}"


@contextmanager
def _no_word_of_experiments() -> Iterator[None]:
    """Optuna tells whoever uses what it may still change; we pin its version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
