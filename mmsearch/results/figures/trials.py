"""A study as its figures show it: read once, so that all of them tell of the same moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from mmsearch.constraints import Constraint
from mmsearch.results.figures.axes import Axis, axes_of
from mmsearch.results.figures.style import BLUE, GREEN, GREY, OCHRE, VERMILLION
from mmsearch.search.study import OpenStudy
from mmsearch.search.values import keeps_to_constraints

if TYPE_CHECKING:
    from mmsearch.results.confirm import Confirmation

Kind = Literal["complete", "violating", "pruned", "failed", "running"]
# Of each kind of trial: its words, its colour, and its mark.
KINDS: Mapping[Kind, tuple[str, str, str]] = {
    "complete": ("complete", BLUE, "circle"),
    "violating": ("violates a constraint", OCHRE, "square-open"),
    "pruned": ("pruned", GREY, "triangle-down-open"),
    "failed": ("failed", VERMILLION, "x-thin-open"),
    "running": ("running", GREEN, "circle-open"),
}
METRICS_IN_WORDS: Mapping[str, str] = {
    "macro_f1": "validation macro F1",
    "accuracy": "validation accuracy",
    "loss": "validation loss (lower is better)",
    "parameters": "parameters of the model",
    "latency_ms": "latency (ms)",
}
HUGE = 1e100
Shown = tuple[FrozenTrial, float]  # a trial and its value


@dataclass(frozen=True)
class Searched:
    """A study as its figures show it.

    `metrics` and `signs` as of `OpenStudy`, the leading one first. `trials` are by number. `axes` has each parameter
    that varies in them, in the table's order; `folds` is how many models a trial trains. `best` is None where no trial
    is complete within the constraints, and `baseline`, the trial with the defaults, where it has no value.
    `epochs(number)` is the file of a trial's epochs, which may be missing.
    """

    metrics: tuple[str, ...]
    signs: tuple[int, ...]
    trials: tuple[FrozenTrial, ...]
    axes: Mapping[str, Axis]
    best: FrozenTrial | None
    front: tuple[FrozenTrial, ...]
    baseline: FrozenTrial | None
    constraints: tuple[Constraint, ...]
    folds: int
    epochs: Callable[[int], Path]
    confirmation: Confirmation | None = None

    @property
    def words(self) -> str:
        """The leading metric in words."""
        return METRICS_IN_WORDS.get(self.metrics[0], self.metrics[0])

    @property
    def sign(self) -> int:
        """1 where a greater leading value is better, else -1."""
        return self.signs[0]

    def shown(self, *kinds: Kind) -> list[Shown]:
        """The trials of these kinds that have a value, by number, each with it; without kinds those of all."""
        found = ((trial, value_of(trial)) for trial in self.trials if not kinds or kind_of(trial) in kinds)
        return [(trial, value) for trial, value in found if value is not None]


def read_study(opened: OpenStudy, confirmation: Confirmation | None = None) -> Searched:
    """A study as it stands now."""
    trials = opened.trials()
    baseline = opened.defaults(trials)
    return Searched(
        opened.metrics,
        tuple(opened.signs),
        tuple(trials),
        axes_of(trials),
        opened.best(trials) if trials else None,
        tuple(opened.front(trials)) if trials else (),
        None if baseline is None or value_of(baseline) is None else baseline,
        opened.config.constraints,
        opened.config.folds,
        opened.config.paths.epochs,
        confirmation,
    )


def kind_of(trial: FrozenTrial) -> Kind | None:
    """What became of a trial; None of one that waits."""
    if trial.state == TrialState.COMPLETE:
        return "complete" if keeps_to_constraints(trial) else "violating"
    kinds: dict[TrialState, Kind] = {
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
        TrialState.RUNNING: "running",
    }
    return kinds.get(trial.state)


def value_of(trial: FrozenTrial) -> float | None:
    """The leading value of a complete trial, or the last that a pruned one reported; None where it cannot be drawn."""
    value: float | None = None
    if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
        if trial.values:
            value = trial.values[0]
        elif trial.last_step is not None:
            value = trial.intermediate_values[trial.last_step]
    return value if drawable(value) else None


def drawable(value: object) -> bool:
    """Whether a value is a number that can be drawn, and be squared."""
    return isinstance(value, int | float) and abs(value) < HUGE


def worst_shown(values: Sequence[float], sign: int) -> float:
    """Up to which value an axis is to reach, so that the better trials can be told apart.

    It is `worst_counted`; or, where that would leave less than a tenth of the axis to the better half of the values,
    what is `worst_counted` of that half.
    """
    worst = worst_counted(values, sign)
    gains = np.sort(sign * np.asarray(values, dtype=np.float64))
    half = worst_counted((sign * gains[len(gains) // 2 :]).tolist(), sign)
    best = gains[-1]
    return half if 0 < best - sign * half < 0.1 * (best - sign * worst) else worst


def worst_counted(values: Sequence[float], sign: int) -> float:
    """The worst value that is no outlier: the worst of all, or Tukey's fence where that halves the range.

    The fence lies one and a half times the distance between the quartiles beyond the worse of them.
    """
    gains = np.sort(sign * np.asarray(values, dtype=np.float64))
    best, worst = gains[-1], gains[0]
    low, high = np.quantile(gains, [0.25, 0.75])
    fence = low - 1.5 * (high - low)
    return float(sign * (fence if 0 < best - fence < 0.5 * (best - worst) else worst))


def padded(low: float, high: float, share: float = 0.05) -> tuple[float, float]:
    """A range with room on both sides, and of some width."""
    room = (high - low) * share or abs(high) * share or 1.0
    return low - room, high + room


def thinned(trials: Sequence[Shown], most: int, keep: Iterable[FrozenTrial | None] = ()) -> list[Shown]:
    """At most about `most` of the trials, evenly by their number, and those to keep."""
    if len(trials) <= most:
        return list(trials)
    kept = {trial.number for trial in keep if trial is not None}
    kept |= {trials[int(place)][0].number for place in np.linspace(0, len(trials) - 1, most)}
    return [shown for shown in trials if shown[0].number in kept]


def panel_grid(count: int, columns: int) -> list[list[dict[str, Any] | None]]:
    """What `make_subplots` takes as `specs`: so many panels, row by row, and nothing in the rest of the last row."""
    rows = -(-count // columns)
    return [[{} if row * columns + column < count else None for column in range(columns)] for row in range(rows)]


def number(value: float) -> float:
    """A number as a figure holds it: to seven digits, which no screen can tell apart."""
    return float(f"{value:.7g}")


def numbers(values: Iterable[float]) -> list[float]:
    """As `number`, of each."""
    return [number(value) for value in values]


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([*([", ".join(parts[:-1])] if len(parts) > 1 else []), *parts[-1:]])


def drawn_of(drawn: int, there: int) -> str:
    """A sentence for a caption where not all trials are drawn; else nothing."""
    return "" if drawn >= there else f" Of {there:,} trials {drawn:,} are drawn, evenly by their number."
