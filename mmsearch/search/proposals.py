"""Where points come from: samplers of our own, and two of Optuna's that learn to live with conditional spaces."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from mmsearch.hyperparameters import Value
from mmsearch.search.space import at, distributions, varying
from mmsearch.search.storage import SLOT, learn_also
from mmsearch.search.values import MEMORY
from mmsearch.spaces import Choices, Range, Space

CROSSOVER = 0.9  # share of children that have two parents
TRIES = 100  # to make a child that nobody was before; a small space may have none left


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


class QuasiRandomPoints(BaseSampler):
    """Each trial takes the point of a scrambled Sobol sequence that has its number (Sobol, 1967; Owen, 1998).

    The points cover the space more evenly than random ones. Each dimension that varies has a coordinate of its own,
    which is used where the dimension applies. Optuna's `QMCSampler` counts points in the study instead, where two
    workers that look at once get the same one.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space."""
        return distributions(self._space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The trial's point."""
        return self.point(trial.number)

    def point(self, number: int) -> dict[str, Value]:
        """The point with a number, from 0: a value for each dimension that varies, whether it applies or not."""
        dimensions = self._space.varying()
        if not dimensions:
            return {}
        from scipy.stats import qmc  # here, since it takes half a second to import

        seed = np.random.default_rng(np.random.SeedSequence([self._seed, 4]))
        sequence = qmc.Sobol(len(dimensions), scramble=True, seed=seed)
        if number:
            sequence.fast_forward(number)
        shares = sequence.random(1)[0]
        return {name: at(d, float(share)) for (name, d), share in zip(dimensions.items(), shares, strict=True)}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never needed: a point has a coordinate for each parameter."""
        raise RuntimeError(f"{param_name} is not in the space")


class GaussianProcess(GPSampler):
    """Optuna's Gaussian process over the parameters that apply to every configuration, in the ranges as they are now.

    Optuna itself takes the parameters that all trials have with equal ranges: it would lose one whose range grew, and
    fail where a trial without one of them completes while it proposes. And it takes complete trials only: here one that
    ran out of memory counts as complete, with the worst values that there are, or it would be proposed again and again.
    """

    def __init__(self, distributions: dict[str, BaseDistribution], **options: Any) -> None:
        super().__init__(warn_independent_sampling=False, **options)
        self._distributions = distributions
        learn_also(self, self._out_of_memory)

    def _out_of_memory(self, study: Study, complete: list[FrozenTrial]) -> list[FrozenTrial]:
        """The trials that ran out of memory, as bad in all respects as the worst of the complete ones."""
        found, values = [], _worst(study, complete)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)):
            if trial.constraints.get(MEMORY, 0) > 0 and trial.params.keys() >= self._distributions.keys():
                bad = create_trial(params=trial.params, distributions=trial.distributions, values=values)
                for name in complete[0].constraints:
                    bad.set_constraint(name, max(other.constraints.get(name, 0.0) for other in complete))
                found.append(bad)
        return found

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What applies to every configuration."""
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As Optuna's; {}, for its other sampler to propose, where that was tried before or cannot be made.

        Its best is often the same end of a range again. It cannot be made while another worker writes its proposal.
        """
        try:
            found = super().sample_relative(study, trial, search_space)
        except json.JSONDecodeError:
            return {}
        known = (other.params for other in study.get_trials(deepcopy=False) if other.params)
        return {} if any(params.items() <= found.items() for params in known) else found


class Evolution(NSGAIISampler):
    """NSGA-II (Deb et al., 2002) for conditional spaces: whatever one of its parents has, a child may inherit.

    Generations, populations and who survives are Optuna's. Its children inherit only what all trials have in common;
    ours take each parameter from either parent, or only from the one that has it, and mutate one of them on average.
    """

    def __init__(self, space: Space, seed: int, population: int) -> None:
        super().__init__(seed=seed, population_size=population, child_generation_strategy=self._child)
        self._space = space
        self._random = np.random.default_rng(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Give the trial its generation; Optuna forgets those whose parameters were enqueued."""
        super().before_trial(study, trial)
        self.get_trial_generation(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space."""
        return distributions(self._space)

    def _child(
        self, study: Study, search_space: dict[str, BaseDistribution], parents: list[FrozenTrial]
    ) -> dict[str, Any]:
        known = [trial.params for trial in study.get_trials(deepcopy=False)]
        for _ in range(TRIES):
            child = self._mate(self._select(study, parents), self._select(study, parents))
            if child not in known:
                break
        return child

    def _select(self, study: Study, parents: list[FrozenTrial]) -> FrozenTrial:
        """The better of two that are drawn."""
        one, other = (parents[self._random.integers(len(parents))] for _ in range(2))
        return one if _beats(one, other, study.directions) else other

    def _mate(self, one: FrozenTrial, other: FrozenTrial) -> dict[str, Any]:
        pair = (one, other) if self._random.random() < CROSSOVER else (one,)

        def pick(name: str, dimension: Range | Choices) -> Value:
            held = [parent.params[name] for parent in pair if name in parent.params]
            if not held or self._random.random() < 1 / len(one.params):
                return at(dimension, self._random.random())
            value: Value = held[self._random.integers(len(held))]
            return value

        return varying(self._space, self._space.walk(pick))


def _worst(study: Study, trials: list[FrozenTrial]) -> list[float]:
    """The worst value of each metric."""
    columns = zip(study.directions, *(trial.values for trial in trials), strict=False)
    return [min(values) if direction == StudyDirection.MAXIMIZE else max(values) for direction, *values in columns]


def _beats(one: FrozenTrial, other: FrozenTrial, directions: list[StudyDirection]) -> bool:
    """Whether one dominates: it breaks its constraints less, or as much and is nowhere worse and somewhere better."""
    broken, theirs = (sum(max(value, 0) for value in trial.constraints.values()) for trial in (one, other))
    if broken != theirs:
        return broken < theirs
    signs = [1 if direction == StudyDirection.MAXIMIZE else -1 for direction in directions]
    gains: list[float] = [sign * (a - b) for sign, a, b in zip(signs, one.values, other.values, strict=True)]
    return min(gains) >= 0 and max(gains) > 0
