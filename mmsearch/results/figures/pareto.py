"""What was gained at what cost: the Pareto front of several metrics, or of the value and the size of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from optuna.trial import FrozenTrial
from plotly.subplots import make_subplots

from mmsearch.results.figures.axes import Axis
from mmsearch.results.figures.style import VERMILLION, Figure
from mmsearch.results.figures.trials import (
    KINDS,
    METRICS_IN_WORDS,
    Searched,
    drawn_of,
    kind_of,
    number,
    numbers,
    padded,
    thinned,
    worst_shown,
)
from mmsearch.search.progress import plural
from mmsearch.search.values import METRICS, candidates, in_words, pareto_front

MOST_TRIALS = 1000
WIDE = 8  # a range of so many times its lower end is drawn logarithmically


@dataclass(frozen=True)
class _Panel:
    """The leading metric against another one."""

    metric: str
    sign: int
    points: Sequence[tuple[FrozenTrial, float, float]]  # with the other metric's value, and the leading one
    front: Sequence[tuple[FrozenTrial, float, float]]


def pareto(searched: Searched) -> Figure | None:
    """The leading metric against each other one; of a single metric against the model's parameters.

    None where no complete trial has both.
    """
    others = searched.metrics[1:] or ("parameters",)
    panels = [panel for metric in others if (panel := _panel(searched, metric)) is not None]
    if not panels:
        return None
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    plot = make_subplots(rows, columns, shared_yaxes=True, horizontal_spacing=0.05, vertical_spacing=0.22)
    drawn = 0
    for place, panel in enumerate(panels):
        row, column = place // columns + 1, place % columns + 1
        drawn = max(drawn, _draw(plot, panel, searched, row, column, legend=place == 0))
        plot.update_yaxes(title=searched.words if column == 1 else None, row=row, col=column)
    edge = worst_shown([value for panel in panels for *_, value in panel.points], searched.sign)
    values = [value for panel in panels for *_, value in panel.points]
    plot.update_yaxes(range=padded(*sorted((edge, max(values) if searched.sign > 0 else min(values)))))
    plot.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}, margin={"t": 60})
    beyond = sum(searched.sign * value < searched.sign * edge for *_, value in panels[0].points)
    return Figure(
        "pareto",
        "Pareto front",
        _caption(searched, panels, beyond, edge) + drawn_of(drawn, len(panels[0].points)),
        plot,
        height=460 if rows == 1 else 60 + 360 * rows,
        alternative=f"{plural(len(panels[0].front), 'trial')} on the front of {len(panels[0].points)}.",
    )


def _panel(searched: Searched, metric: str) -> _Panel | None:
    several = len(searched.metrics) > 1
    place = searched.metrics.index(metric) if several else None
    points = []
    for trial, value in searched.shown("complete", "violating"):
        known = {"parameters": trial.user_attrs.get("parameters"), **trial.user_attrs.get(METRICS, {})}
        other = trial.values[place] if place is not None else known.get(metric)
        if other is not None and abs(other) < float("inf"):
            points.append((trial, float(other), value))
    if not points:
        return None
    sign = searched.signs[place] if place is not None else -1
    if several:
        numbered = {trial.number for trial in searched.front}
        front = [point for point in points if point[0].number in numbered]
    else:
        front = [p for p in points if kind_of(p[0]) == "complete"]
        front = [p for p in front if not any(_beats(other, p, searched.sign) for other in front)]
    return _Panel(metric, sign, points, sorted(front, key=lambda point: point[1:]))


def _beats(one: tuple[FrozenTrial, float, float], other: tuple[FrozenTrial, float, float], sign: int) -> bool:
    """Whether one has a value as good with as few parameters, and is better in one of the two."""
    ours, theirs = (sign * one[2], -one[1]), (sign * other[2], -other[1])
    return ours != theirs and all(mine >= its for mine, its in zip(ours, theirs, strict=True))
