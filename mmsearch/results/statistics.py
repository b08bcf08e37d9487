"""How sure a number is: intervals, paired tests, corrections. Plain arrays in, plain numbers out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 1000
BINS = 15  # of confidence, as Guo et al. use

Floats = npt.NDArray[np.floating[Any]]
Index = npt.NDArray[np.int64]
Interval = tuple[float, float]


def mean_interval(
    values: Sequence[float], confidence: float = CONFIDENCE, *, resolution: float = 0.0
) -> Interval | None:
    """Student's interval of the mean of independent values; None of fewer than two.

    `resolution` is the step in which the values come, as in `paired_p`: equal values are no certainty.
    """
    if len(values) < 2:
        return None
    mean = float(np.mean(values))
    error = math.sqrt((float(np.var(values, ddof=1)) + resolution**2 / 12) / len(values))
    half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1)) * error
    return mean - half, mean + half


def wilson(correct: int, rows: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's interval of a share, `correct` of `rows` rows, of which there must be one at least.

    "Probable inference, the law of succession, and statistical inference" (1927).
    """
    ends = stats.binomtest(correct, rows).proportion_ci(confidence, method="wilson")
    return float(ends.low), float(ends.high)


def paired_p(one: Sequence[float], other: Sequence[float], resolution: float = 0.0) -> float | None:
    """The two-sided p-value of Student's paired t-test; None of fewer than two pairs.

    `resolution` is the step in which the values come, such as 1/800 of an accuracy on 800 rows: the variance that it
    hides is added, or else two pairs that differ by a row each would be a certainty. Without one, pairs that all differ
    by the same are no accident (p = 0), unless they do not differ at all (p = 1).
    """
    if len(one) < 2:
        return None
    difference = np.subtract(one, other, dtype=np.float64)
    spread = math.sqrt(float(difference.var(ddof=1)) + resolution**2 / 6)  # of two values, 1/12 each
    if spread <= 1e-12 * max(1.0, float(np.abs(difference).max())):
        return 1.0 if np.abs(difference).max() <= 1e-12 else 0.0
    t = float(difference.mean()) / (spread / math.sqrt(len(one)))
    return float(2 * stats.t.sf(abs(t), len(one) - 1))


def welch_p(one: Sequence[float], other: Sequence[float], resolutions: tuple[float, float] = (0.0, 0.0)) -> float:
    """The two-sided p-value of Welch's t-test of two samples, each of two values or more; their spreads may differ.

    `resolutions` are the steps in which the values of each come, as in `paired_p`. Samples without any spread, nor a
    step that may hide one, differ for sure (p = 0), unless their means are the same (p = 1). Welch, "The generalization
    of Student's problem when several different population variances are involved" (1947).
    """
    difference = float(np.mean(one)) - float(np.mean(other))
    errors = [
        (float(np.var(sample, ddof=1)) + step**2 / 12) / len(sample)
        for sample, step in zip((one, other), resolutions, strict=True)
    ]
    scale = max(1.0, *map(abs, (*one, *other)))
    if math.sqrt(sum(errors)) <= 1e-12 * scale:
        return 1.0 if abs(difference) <= 1e-12 * scale else 0.0
    freedom = sum(errors) ** 2 / sum(e**2 / (len(s) - 1) for e, s in zip(errors, (one, other), strict=True))
    return float(2 * stats.t.sf(abs(difference) / math.sqrt(sum(errors)), freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, in their order: Holm, "A simple sequentially rejective multiple test
    procedure" (1979).
    """
    corrected, floor = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(np.argsort(p_values, kind="stable").tolist()):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = floor
    return corrected


def bootstrap(
    score: Callable[[Index], float | Sequence[float]],
    rows: int,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> list[Interval]:
    """Percentile intervals of one score, or of several, of `rows` rows drawn again with replacement.

    `score` is told the drawn positions, (rows,), and returns a number or several. Efron, "Bootstrap methods: another
    look at the jackknife" (1979).
    """
    rng = np.random.default_rng(seed)
    found = np.array([np.atleast_1d(score(rng.integers(0, rows, rows))) for _ in range(resamples)], dtype=np.float64)
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return [(float(one), float(other)) for one, other in zip(low, high, strict=True)]


def confusion(labels: Index, predicted: Index, classes: int) -> Index:
    """(classes, classes) counts: rows are true classes, columns predicted ones."""
    counts = np.bincount(labels * classes + predicted, minlength=classes * classes)
    found: Index = counts.reshape(classes, classes)
    return found


def calibration_bins(confidences: Floats, correct: npt.NDArray[np.bool_], bins: int = BINS) -> Floats:
    """(bins, 3) rows in each bin of confidence, of equal width: their number, mean confidence, and share correct.

    The last two are NaN where a bin is empty.
    """
    place = np.clip((np.asarray(confidences, dtype=np.float64) * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(place, minlength=bins).astype(np.float64)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, weights=confidences, minlength=bins) / count
        share = np.bincount(place, weights=correct, minlength=bins) / count
    return np.stack([count, mean, share], axis=1)


def expected_calibration_error(confidences: Floats, correct: npt.NDArray[np.bool_], bins: int = BINS) -> float:
    """The mean distance between confidence and share correct, over bins, weighted by their rows.

    Guo et al., "On calibration of modern neural networks" (arXiv 1706.04599), equation 3.
    """
    count, mean, share = calibration_bins(confidences, correct, bins).T
    held = count > 0
    return float(np.sum(count[held] * np.abs(mean[held] - share[held])) / count.sum())
