"""How the value depends on the parameters, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mmsearch.results.figures.anova import Importances
from mmsearch.results.figures.axes import Axis
from mmsearch.results.figures.style import VERMILLION, Figure
from mmsearch.results.figures.trials import (
    KINDS,
    Kind,
    Searched,
    Shown,
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
from mmsearch.search.values import in_words

MOST_PANELS = 16
COLUMNS = 4
MOST_TRIALS = 600
JITTER = 0.32  # to each side of a choice, which has a width of 1
LABEL = 26  # letters of a parameter's name that fit under a panel
ROOM = 26  # letters of all ticks that fit on one line there
LONGEST = 13  # letters of a tick that fit where every other one is on a second line


def by_importance(searched: Searched, found: Importances | None) -> list[Axis]:
    """The parameters' axes, the most important first; in the table's order where that is not known."""
    if found is None:
        return list(searched.axes.values())
    return [searched.axes[row.name] for row in found.rows]


def slices(searched: Searched, found: Importances | None) -> Figure | None:
    """The value against each parameter, a panel each; None with fewer than two trials."""
    every = searched.shown()
    applying = [axis for axis in by_importance(searched, found) if any(axis.name in t.params for t, _ in every)]
    axes = applying[:MOST_PANELS]
    if len(every) < 2 or not axes:
        return None
    rows = -(-len(axes) // COLUMNS)
    columns = min(COLUMNS, len(axes))
    height = 60 + 210 * rows
    layout = {"horizontal_spacing": 0.03, "vertical_spacing": 78 / (210 * rows)}
    plot = make_subplots(rows, columns, shared_yaxes=True, specs=panel_grid(len(axes), columns), **layout)
    drawn = thinned(every, MOST_TRIALS, [searched.best, searched.baseline])
    edge = worst_shown([value for _, value in every], searched.sign)
    best = max(searched.sign * value for _, value in every) * searched.sign
    rng = np.random.default_rng(0)
    for place, axis in enumerate(axes):
        row, column = place // COLUMNS + 1, place % COLUMNS + 1
        held = [shown for shown in drawn if axis.name in shown[0].params and shown[0] is not searched.best]
        for kind in ("pruned", "violating", "complete"):
            _add(plot, axis, kind, held, searched, edge, rng, row, column)
        if searched.best is not None and axis.name in searched.best.params:
            shown = [shown for shown in drawn if shown[0] is searched.best]
            _add(plot, axis, "complete", shown, searched, edge, rng, row, column, best=True)
        _scale(plot, axis, row, column)
    plot.update_yaxes(range=padded(min(edge, best), max(edge, best), 0.08), nticks=5)
    for row in range(1, rows + 1):
        plot.update_yaxes(title=searched.words.split(" (")[0].replace("validation ", ""), row=row, col=1)
    _add_legend(plot, {kind_of(t) for t, _ in drawn}, searched)
    plot.update_layout(legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0})
    plot.update_layout(margin={"t": 44, "b": 70})
    beyond = sum(searched.sign * value < searched.sign * edge for _, value in every)
    caption = _slices_caption(searched, found, len(axes), len(applying), beyond, edge)
    said = f"Panels of {plural(len(axes), 'parameter')}: {', '.join(axis.name for axis in axes)}."
    return Figure(
        "slices",
        "The value against each parameter",
        caption + drawn_of(len(drawn), len(every)),
        plot,
        height=height,
        alternative=said,
    )


def _add(
    plot: go.Figure,
    axis: Axis,
    kind: Kind,
    shown: Sequence[Shown],
    searched: Searched,
    edge: float,
    rng: np.random.Generator,
    row: int,
    column: int,
    *,
    best: bool = False,
) -> None:
    held = [(trial, value) for trial, value in shown if kind_of(trial) == kind]
    if not held:
        return
    label, colour, symbol = KINDS[kind]
    x = [axis.place(trial.params[axis.name]) for trial, _ in held]
    if not axis.numeric and not best:
        x = [place + float(rng.uniform(-JITTER, JITTER)) for place in x]
    elif axis.log:
        x = [float(trial.params[axis.name]) for trial, _ in held]
    opacity = 0.4 if kind == "pruned" else 0.75
    marker: dict[str, Any] = {"color": colour, "symbol": symbol, "size": 5, "opacity": opacity}
    if best:
        label, marker = "the best", {"color": VERMILLION, "symbol": "star", "size": 12}
    sign = searched.sign
    plot.add_scatter(
        x=numbers(x),
        y=[number(sign * max(sign * value, sign * edge)) for _, value in held],
        customdata=[
            [trial.number, str(trial.params[axis.name]), in_words(searched.metrics[0], value)] for trial, value in held
        ],
        mode="markers",
        marker=marker,
        name=label,
        showlegend=False,
        cliponaxis=False,
        hovertemplate=f"trial %{{customdata[0]}}, {label}: %{{customdata[2]}} at %{{customdata[1]}}<extra></extra>",
        row=row,
        col=column,
    )


def _add_legend(plot: go.Figure, kinds: set[Kind | None], searched: Searched) -> None:
    """One entry a mark, whichever panels have it."""
    marks = [KINDS[kind] for kind in ("complete", "pruned", "violating") if kind in kinds]
    if searched.best is not None:
        marks.append(("the best", VERMILLION, "star"))
    for label, colour, symbol in marks:
        marker = {"color": colour, "symbol": symbol, "size": 9}
        plot.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=label, row=1, col=1)


def _scale(plot: go.Figure, axis: Axis, row: int, column: int) -> None:
    low, high = axis.span
    ticks, texts = axis.ticks(4)
    scale: dict[str, Any] = {"tickvals": ticks, "ticktext": texts, "tickangle": 0}
    if axis.log:
        scale |= {"type": "log", "tickvals": [10**tick for tick in ticks]}
    if axis.numeric:
        room = (high - low) * 0.06
        scale |= {"range": [low - room, high + room]}
    else:
        scale |= {"range": [-0.6, high + 0.6], "showgrid": False}
        if sum(map(len, texts)) + 2 * len(texts) > ROOM:  # in turn on one line and the next
            shown = [text if len(text) <= LONGEST else text[: LONGEST - 1] + "…" for text in texts]
            shown = [f"<br>{text}" if place % 2 else text for place, text in enumerate(shown)]
            scale |= {"ticktext": shown, "tickfont": {"size": 11}}
    plot.update_xaxes(title={"text": short_name(axis.name), "font": {"size": 12}}, **scale, row=row, col=column)


def short_name(name: str, most: int = LABEL) -> str:
    """A parameter's name in two lines where one has no room."""
    if len(name) <= most:
        return name
    head, _, tail = name.rpartition(".")
    return f"{head}.<br>{tail}"


def _slices_caption(
    searched: Searched, found: Importances | None, drawn: int, there: int, beyond: int, edge: float
) -> str:
    text = "Each dot is a trial to which the parameter applied; pruned ones, paler, have their last value. Choices are "
    text += "spread sideways."
    if drawn > 1 and found is not None:
        text += " The most important parameter comes first."
    if there > drawn:
        text += f" The first {drawn} of {there} parameters are shown."
    if beyond:
        side = "below" if searched.sign > 0 else "above"
        text += f" {plural(beyond, 'trial')} {side} {in_words(searched.metrics[0], edge)} drawn at the edge."
    return text
