"""All important parameters at once: a line a trial, across an axis a parameter, in the colour of its value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from mmsearch.results.figures.anova import Importances
from mmsearch.results.figures.axes import Axis
from mmsearch.results.figures.space import by_importance
from mmsearch.results.figures.style import BLUE, GREY, OCHRE, VERMILLION, Figure
from mmsearch.results.figures.trials import Searched, Shown, number, padded, thinned, worst_shown
from mmsearch.search.progress import plural
from mmsearch.search.values import in_words

MOST_AXES = 9  # of parameters; the value has one more
MOST_TRIALS = 200
COLOURS = (OCHRE, "#987e40", GREY, "#5880a1", BLUE)  # of each fifth of the trials, the worst one first
CLASSES = len(COLOURS)
BOTTOM = -0.14  # where a parameter lies that does not apply
SPREAD = 0.03  # to each side of a choice, so that lines can be told apart


def parallel(searched: Searched, found: Importances | None) -> Figure | None:
    """A line a trial over the most important parameters and its value; None with fewer than two trials."""
    every = searched.shown()
    axes = [axis for axis in by_importance(searched, found) if any(axis.name in t.params for t, _ in every)]
    shown_axes = axes[:MOST_AXES]
    if len(every) < 2 or not shown_axes:
        return None
    sign = searched.sign
    drawn = thinned(every, MOST_TRIALS, [searched.best, searched.baseline])
    edge = worst_shown([value for _, value in every], sign)
    best = max(sign * value for _, value in every) * sign
    low, high = (min(edge, best), max(edge, best)) if edge != best else padded(best, best)
    value_axis = Axis(searched.words.split(" (")[0], low, high)
    plot = go.Figure()
    classes: list[list[Shown]] = [[] for _ in range(CLASSES)]
    order = sorted(drawn, key=lambda shown: (sign * shown[1], shown[0].number))
    for rank, shown in enumerate(order):
        classes[rank * CLASSES // len(order)].append(shown)
    rng = np.random.default_rng(0)
    jitter = {trial.number: float(rng.uniform(-SPREAD, SPREAD)) for trial, _ in drawn}
    for rank, held in enumerate(classes):
        if held:
            _add_lines(plot, held, shown_axes, value_axis, edge, sign, jitter, COLOURS[rank], rank)
    if searched.best is not None:
        held = [shown for shown in drawn if shown[0].number == searched.best.number]
        _add_lines(plot, held, shown_axes, value_axis, edge, sign, jitter, VERMILLION, None)
    absent = any(axis.name not in trial.params for axis in shown_axes for trial, _ in drawn)
    _add_axes(plot, [*shown_axes, value_axis], absent)
    plot.update_layout(
        xaxis={"visible": False, "range": [-0.5, len(shown_axes) + 0.5]},
        yaxis={"visible": False, "range": [BOTTOM - 0.08 if absent else -0.06, 1.06]},
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0, "traceorder": "reversed"},
        margin={"t": 50, "b": 84, "l": 24, "r": 24},
        hovermode="closest",
    )
    return Figure(
        "parallel",
        "Parallel coordinates",
        _caption(searched, len(drawn), len(every), len(shown_axes), len(axes), edge),
        plot,
        width=max(480, 100 * (len(shown_axes) + 1)),
        height=480,
        alternative=f"{plural(len(drawn), 'trial')} over {plural(len(shown_axes), 'parameter')}.",
    )


def _add_lines(
    plot: go.Figure,
    trials: Sequence[Shown],
    axes: Sequence[Axis],
    value_axis: Axis,
    edge: float,
    sign: int,
    jitter: dict[int, float],
    colour: str,
    rank: int | None,
) -> None:
    """The lines of one class of values; `rank` is None for the best trial alone."""
    x: list[float | None] = []
    y: list[float | None] = []
    told: list[str | None] = []
    for trial, value in trials:
        for place, axis in enumerate(axes):
            at = _height(axis, trial.params[axis.name]) if axis.name in trial.params else BOTTOM
            spread = 0.0 if rank is None or axis.numeric else jitter[trial.number]
            x.append(place)
            y.append(number(at + spread))
        x += [len(axes), None]
        y += [number(_height(value_axis, sign * max(sign * value, sign * edge))), None]
        told += [f"trial {trial.number}: {value:.4f}"] * (len(axes) + 1) + [None]
    names = {0: f"the worst {100 // CLASSES} %", CLASSES - 1: f"the best {100 // CLASSES} %", None: "the best trial"}
    plot.add_scatter(
        x=x,
        y=y,
        text=told,
        mode="lines",
        line={"color": colour, "width": 3 if rank is None else 1 + 0.15 * rank},
        opacity=1 if rank is None else 0.45 + 0.1 * rank,
        name=names.get(rank, "between"),
        showlegend=rank in names or rank == CLASSES // 2,
        hovertemplate="%{text}<extra></extra>",
    )


def _height(axis: Axis, value: object) -> float:
    return _share(axis, axis.place(value))


def _share(axis: Axis, place: float) -> float:
    low, high = axis.span
    return (place - low) / (high - low)


def _add_axes(plot: go.Figure, axes: Sequence[Axis], absent: bool) -> None:
    lines: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    for place, axis in enumerate(axes):
        lines.append(
            {"type": "line", "x0": place, "x1": place, "y0": 0, "y1": 1, "line": {"color": GREY, "width": 1.5}}
        )
        label = {"x": place, "xanchor": "left", "xshift": 4, "font": {"size": 11}}
        label |= {"templateitemname": "label", "visible": True}
        for tick, text in zip(*axis.ticks(6), strict=True):
            texts.append({"y": number(_share(axis, tick)), "text": text, **label})
        name = axis.name.replace(".", ".<br>") if "." in axis.name else axis.name.replace(" ", "<br>")
        below = {"x": place, "y": 0, "yref": "paper", "yanchor": "top", "font": {"size": 11}, "showarrow": False}
        texts.append({"text": name + ("<br>(log)" if axis.log else ""), **below})
    if absent:
        beside = {"x": -0.45, "y": BOTTOM, "xanchor": "left", "font": {"size": 10}, "showarrow": False}
        texts.append({"text": "does not<br>apply", **beside})
    plot.update_layout(shapes=lines, annotations=texts)  # at once: one by one, plotly checks all of them each time


def _caption(searched: Searched, drawn: int, there: int, axes: int, of: int, edge: float) -> str:
    text = "Each line is a trial, pruned ones included with their last value; the colour says in which fifth of the "
    text += "trials its value lies."
    if there > drawn:
        text += f" Of {there:,} trials {drawn:,} are drawn, evenly by their number."
    if of > axes:
        text += f" The {axes} most important of {of} parameters are shown."
    if any(searched.sign * value < searched.sign * edge for _, value in searched.shown()):
        side = "below" if searched.sign > 0 else "above"
        text += f" Values {side} {in_words(searched.metrics[0], edge)} are drawn at the end of the axis."
    return text
