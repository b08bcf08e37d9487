"""Which parameters matter: the share of the value's variance over the space that each explains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestRegressor

from mmsearch.results.figures.axes import Axis
from mmsearch.results.figures.trials import Searched, thinned, worst_counted
from mmsearch.results.statistics import CONFIDENCE, Interval
from mmsearch.search.progress import plural

FORESTS = 60  # of resampled trials, which make the intervals
SHUFFLES = 30  # forests of shuffled values, which tell what chance makes of a parameter
TREES = 8  # in each
LEAF = 200  # a leaf has at least two trials, and one of so many
MOST_TRIALS = 2000
DRAWN = 2048  # configurations of the space, over which a forest is averaged
BINS = 12  # of a range; fewer where less than `IN_A_BIN` configurations would be in each
IN_A_BIN = 16
SEED = 0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Importance:
    """One parameter: the share of the variance that it explains, with its bootstrap interval (95 %).

    `trials` is to how many trials it applied.
    """

    name: str
    share: float
    interval: Interval
    trials: int


@dataclass(frozen=True)
class Importances:
    """All parameters, the most important first, from so many trials.

    `chance` is the share that the most important of them would be given at most, in 19 of 20 cases, were the values
    dealt out to the trials at random. `edge` is the value as which worse ones count, and `beyond` how many did. `doubt`
    says why the trials are too few to tell; None where they are enough.
    """

    rows: tuple[Importance, ...]
    trials: int
    chance: float
    edge: float
    beyond: int
    doubt: str | None


def importances(searched: Searched) -> Importances | None:
    """The share of the variance of the leading value that each parameter explains by itself; None where all is one.

    First-order functional ANOVA on a forest of trees that is fitted to the trials: Hutter, Hoos and Leyton-Brown, "An
    efficient approach for assessing hyperparameter importance" (ICML 2014). Three things are done otherwise:

    - Averages are over configurations drawn from the space (a Latin hypercube), not over boxes, so that conditional
      parameters are met only where they apply. Not applying is a value of its own to the trees; the difference that it
      makes belongs to the parent that decides it, and the parameter explains what it does where it applies.
    - Pruned trials count, with the last value that they reported.
    - Outliers count as the worst value that is none, else a few trials that diverged would explain all.

    Intervals are of trials drawn again with replacement. The same trials give the same numbers.
    """
    known = thinned(searched.shown(), MOST_TRIALS)
    axes = [axis for axis in searched.axes.values() if any(axis.name in trial.params for trial, _ in known)]
    if len(known) < 2 or not axes:
        return None
    edge = worst_counted([value for _, value in known], searched.sign)
    gains = np.array([max(searched.sign * value, searched.sign * edge) for _, value in known])
    if np.ptp(gains) <= 0:
        return None
    rows = encode(axes, [trial.params for trial, _ in known])
    space = _Drawn.of(axes)
    rng = np.random.default_rng(SEED)
    resampled = (rng.integers(0, len(gains), len(gains)) for _ in range(FORESTS))
    found = np.array(list(_explained(rows, gains, ((drawn, drawn) for drawn in resampled), space)))
    every = np.arange(len(gains))
    dealt = np.array(list(_explained(rows, gains, ((every, rng.permutation(every)) for _ in range(SHUFFLES)), space)))
    variance = found[:, -1:]
    held = variance[:, 0] > 0
    if not held.any():
        return None
    shares = found[held, :-1] / variance[held]
    low, high = np.quantile(shares, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    chance = float(np.quantile(dealt[:, :-1].max(1), CONFIDENCE) / variance[held].mean())
    met = np.isfinite(rows).sum(0)
    made = [
        Importance(axis.name, float(share), (float(start), float(end)), int(applied))
        for axis, share, start, end, applied in zip(axes, shares.mean(0), low, high, met, strict=True)
    ]
    made.sort(key=lambda row: -row.share)
    beyond = sum(searched.sign * value < searched.sign * edge for _, value in known)
    return Importances(tuple(made), len(known), chance, edge, beyond, _doubt(made, chance, len(known)))


def encode(axes: Sequence[Axis], params: Sequence[Mapping[str, Any]]) -> Floats:
    """(trials, parameters) places on their axes; NaN where one does not apply."""
    found = [[axis.place(held[axis.name]) if axis.name in held else np.nan for axis in axes] for held in params]
    return np.array(found, dtype=np.float64).reshape(len(params), len(axes))


@dataclass(frozen=True)
class _Drawn:
    """Configurations drawn from the space.

    `places` is (`DRAWN`, parameters), NaN where one does not apply; `bins`, of each parameter, says for each
    configuration in which part of its axis it lies, -1 where it does not apply. `absent` is a place beside each axis.
    """

    places: Floats
    bins: tuple[npt.NDArray[np.int64], ...]
    absent: Floats

    @classmethod
    def of(cls, axes: Sequence[Axis]) -> _Drawn:
        rng = np.random.default_rng(SEED)
        strata = rng.random((DRAWN, len(axes))).argsort(axis=0)
        shares = (strata + rng.random(strata.shape)) / DRAWN
        values: dict[str, npt.NDArray[np.object_]] = {}
        places = np.full(shares.shape, np.nan)
        for column, axis in enumerate(axes):  # parents stand before what depends on them
            drawn, held = axis.draw(shares[:, column])
            applies = np.ones(len(shares), dtype=bool)
            for parent, allowed in axis.conditions:
                if parent in values:
                    applies &= np.array([value in allowed for value in values[parent]])
            places[applies, column] = drawn[applies]
            values[axis.name] = np.array(held, dtype=object)
            values[axis.name][~applies] = None
        bins = tuple(_bins(axis, places[:, column]) for column, axis in enumerate(axes))
        return cls(places, bins, np.array([low - 0.3 * (high - low) for low, high in (axis.span for axis in axes)]))

    def filled(self, places: Floats) -> npt.NDArray[np.float32]:
        """Places as trees take them."""
        return np.where(np.isnan(places), self.absent, places).astype(np.float32)


def _bins(axis: Axis, places: Floats) -> npt.NDArray[np.int64]:
    applies = ~np.isnan(places)
    found = np.full(len(places), -1, dtype=np.int64)
    distinct, which = np.unique(places[applies], return_inverse=True)
    most = max(2, min(BINS, int(applies.sum()) // IN_A_BIN))
    if axis.numeric and len(distinct) > most:
        low, high = axis.span
        which = np.minimum((places[applies] - low) / (high - low) * most, most - 1).astype(np.int64)
    found[applies] = which
    return found


def _explained(
    rows: Floats, gains: Floats, samples: Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]], space: _Drawn
) -> Iterator[Floats]:
    """Of a forest for each sample (of rows, and of the values for them): the variance that each parameter explains,
    and last the whole.
    """
    known, drawn = space.filled(rows), space.filled(space.places)
    leaf = max(2, len(gains) // LEAF)
    for seed, (taken, valued) in enumerate(samples):
        forest = RandomForestRegressor(TREES, min_samples_leaf=leaf, random_state=seed)
        said = forest.fit(known[taken], gains[valued]).predict(drawn)
        yield np.array([*(_between(bins, said) for bins in space.bins), said.var()])


def _between(bins: npt.NDArray[np.int64], said: Floats) -> float:
    """The variance between the bins of one parameter, without what the mean of so few would vary anyway."""
    applies = bins >= 0
    if not applies.any():
        return 0.0
    count = np.bincount(bins[applies])
    held = count > 0
    mean: Floats = np.bincount(bins[applies], weights=said[applies])[held] / count[held]
    weight = count[held] / count.sum()
    square = np.bincount(bins[applies], weights=said[applies] ** 2)[held] / count[held]
    within = float((weight * (square - mean**2)).sum())
    between = float((weight * (mean - (weight * mean).sum()) ** 2).sum())
    return float(applies.mean()) * max(0.0, between - within * (len(mean) - 1) / int(applies.sum()))


def _doubt(rows: Sequence[Importance], chance: float, trials: int) -> str | None:
    """Why the trials are too few, if they are.

    With fewer than two a parameter, most parameters hardly vary while others stay as they are. And where none of them
    stands out from what chance makes of it, their order says nothing.
    """
    if trials < 2 * len(rows):
        return f"{plural(trials, 'trial')} for {plural(len(rows), 'parameter')}, less than two for each"
    if rows[0].share <= chance:
        return "no parameter stands out from what chance would make of it"
    return None
