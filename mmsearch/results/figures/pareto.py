"""What was gained at what cost: the Pareto front of several metrics, or of the value and the size of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from optuna.trial import FrozenTrial
from plotly.subplots import make_subplots

from mmsearch.results.figures.axes import Axis
from mmsearch.results.figures.style import OCHRE, VERMILLION, Figure
from mmsearch.results.figures.trials import (
    KINDS,
    METRICS_IN_WORDS,
    Searched,
    drawable,
    drawn_of,
    kind_of,
    number,
    numbers,
    padded,
    panel_grid,
    thinned,
    worst_shown,
)
from mmsearch.search.progress import plural
from mmsearch.search.values import METRICS, in_words

MOST_TRIALS = 1000
WIDE = 8  # a range that goes to so many times its lower end is drawn logarithmically

Point = tuple[FrozenTrial, float, float]  # a trial, its cost, and its leading value


@dataclass(frozen=True)
class _Panel:
    """The leading metric against another one, the cost; `front` lowest cost first."""

    metric: str
    points: Sequence[Point]
    front: Sequence[Point]


def pareto(searched: Searched) -> Figure | None:
    """The leading metric against each other one; of a single metric against the model's parameters.

    None where no complete trial has both.
    """
    others = searched.metrics[1:] or ("parameters",)
    panels = [panel for metric in others if (panel := _panel(searched, metric)) is not None]
    if not panels:
        return None
    columns, rows = min(len(panels), 2), -(-len(panels) // 2)
    layout = {"specs": panel_grid(len(panels), columns), "horizontal_spacing": 0.05, "vertical_spacing": 0.3 / rows}
    plot = make_subplots(rows, columns, shared_yaxes=True, **layout)
    values = [value for _, _, value in panels[0].points]
    edge = worst_shown(values, searched.sign)
    beyond = sum(searched.sign * value < searched.sign * edge for value in values)
    for place, panel in enumerate(panels):
        _draw(plot, panel, searched, edge, place // columns + 1, place % columns + 1)
    best = max(values) if searched.sign > 0 else min(values)
    plot.update_yaxes(range=padded(min(edge, best), max(edge, best)))
    for row in range(rows):
        plot.update_yaxes(title=searched.words, row=row + 1, col=1)
    plot.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}, margin={"t": 60})
    caption = _caption(searched, panels, beyond, edge) + drawn_of(min(len(values), MOST_TRIALS), len(values))
    said = f"{plural(len(panels[0].front), 'trial')} of {len(values)} on the front."
    height = 460 if rows == 1 else 60 + 360 * rows
    return Figure("pareto", "Pareto front", caption, plot, height=height, alternative=said)


def _panel(searched: Searched, metric: str) -> _Panel | None:
    place = searched.metrics.index(metric) if metric in searched.metrics else None
    points: list[Point] = []
    for trial, value in searched.shown("complete", "violating"):
        known = {"parameters": trial.user_attrs.get("parameters"), **trial.user_attrs.get(METRICS, {})}
        cost = known.get(metric) if place is None else trial.values[place]
        if cost is not None and drawable(cost):
            points.append((trial, float(cost), value))
    if not points:
        return None
    if place is None:
        front = _cheapest([point for point in points if kind_of(point[0]) == "complete"], searched.sign)
    else:
        held = {trial.number for trial in searched.front}
        front = [point for point in points if point[0].number in held]
    return _Panel(metric, points, sorted(front, key=lambda point: (point[1], point[2])))


def _cheapest(points: list[Point], sign: int) -> list[Point]:
    """Those that no other beats: with a value as good at a lower cost, or a better one at the same."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point[1], -sign * point[2], point[0].number)):
        if not front or sign * point[2] > sign * front[-1][2]:
            front.append(point)
    return front


def _draw(plot: go.Figure, panel: _Panel, searched: Searched, edge: float, row: int, column: int) -> None:
    legend, words = row == column == 1, METRICS_IN_WORDS.get(panel.metric, panel.metric)
    kept = {
        t.number for t, _ in thinned([(t, v) for t, _, v in panel.points], MOST_TRIALS, [p[0] for p in panel.front])
    }
    for kind in ("violating", "complete"):
        label, colour, symbol = KINDS[kind]
        points = [point for point in panel.points if kind_of(point[0]) == kind and point[0].number in kept]
        if points:
            plot.add_scatter(
                **_xy(points, searched, panel.metric, edge),
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 7, "opacity": 0.75, "line": {"color": colour}},
                name=label,
                legendgroup=kind,
                showlegend=legend,
                cliponaxis=False,
                row=row,
                col=column,
            )
    if panel.front:
        line = "lines+markers" if len(searched.metrics) <= 2 else "markers"
        plot.add_scatter(
            **_xy(panel.front, searched, panel.metric, edge),
            mode=line,
            line={"shape": "hv" if _is_a_cost(searched, panel.metric) else "vh", "color": VERMILLION, "width": 1.5},
            marker={"color": VERMILLION, "symbol": "diamond", "size": 9},
            name="on the front",
            legendgroup="front",
            showlegend=legend,
            cliponaxis=False,
            row=row,
            col=column,
        )
    _scale(plot, [cost for _, cost, _ in panel.points], words, row, column)
    for constraint in searched.constraints:
        if constraint.metric == panel.metric:
            plot.add_vline(constraint.limit, line={"dash": "dash", "color": OCHRE}, row=row, col=column)
        elif constraint.metric == searched.metrics[0]:
            plot.add_hline(constraint.limit, line={"dash": "dash", "color": OCHRE}, row=row, col=column)


def _xy(points: Sequence[Point], searched: Searched, metric: str, edge: float) -> dict[str, object]:
    sign = searched.sign
    return {
        "x": numbers(cost for _, cost, _ in points),
        "y": [number(sign * max(sign * value, sign * edge)) for *_, value in points],
        "customdata": [
            [trial.number, in_words(metric, cost), in_words(searched.metrics[0], value)]
            for trial, cost, value in points
        ],
        "hovertemplate": f"trial %{{customdata[0]}}: {searched.metrics[0]} %{{customdata[2]}}, "
        f"{metric} %{{customdata[1]}}<extra></extra>",
    }


def _is_a_cost(searched: Searched, metric: str) -> bool:
    """Whether less of a metric is better."""
    return metric not in searched.metrics or searched.signs[searched.metrics.index(metric)] < 0


def _scale(plot: go.Figure, costs: list[float], words: str, row: int, column: int) -> None:
    low, high = min(costs), max(costs)
    log = low > 0 and high >= WIDE * low
    thousands: dict[str, Any] = {"tickformat": "~s"} if low >= 1000 else {}  # 100k and 1M, as people say of parameters
    if log:
        axis = Axis(words, low / 1.15, high * 1.15, log=True)
        ticks, texts = axis.ticks()
        scale: dict[str, Any] = {"type": "log", "range": axis.span, "tickvals": [10**tick for tick in ticks]}
        scale |= thousands or {"ticktext": texts}
    else:
        scale = {"range": padded(low, high), "nticks": 7, **thousands}
    plot.update_xaxes(title=words, **scale, row=row, col=column)


def _caption(searched: Searched, panels: Sequence[_Panel], beyond: int, edge: float) -> str:
    if len(searched.metrics) > 1:
        names = "both metrics" if len(searched.metrics) == 2 else f"all {len(searched.metrics)} metrics"
        text = f"Complete trials. Those on the front are beaten by no other in {names} at once."
    else:
        text = "Complete trials. Those on the front have the best value of all models with as few parameters."
    if any(
        constraint.metric in (searched.metrics[0], *(p.metric for p in panels)) for constraint in searched.constraints
    ):
        text += " Dashed: the constraints."
    if beyond:
        side = "below" if searched.sign > 0 else "above"
        text += f" {plural(beyond, 'trial')} {side} {in_words(searched.metrics[0], edge)} drawn at the edge."
    if not panels[0].front:
        text += " No trial keeps to the constraints."
    return text
