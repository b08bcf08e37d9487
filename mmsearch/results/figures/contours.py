"""How the value depends on the parameters, two by two."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mmsearch.results.figures.anova import Importances
from mmsearch.results.figures.axes import Axis, in_text
from mmsearch.results.figures.space import by_importance, short_name
from mmsearch.results.figures.style import SEQUENTIAL, Figure
from mmsearch.results.figures.trials import Searched, Shown, number, numbers, thinned, worst_shown
from mmsearch.search.values import in_words

PAIRS_OF = 3  # the most important parameters, of which pairs are drawn
LEAST_TRIALS = 15  # in a contour
LEAST_VALUES = 4  # of each of its parameters
GRID = 40
LEVELS = 12
NEAR = 2.5  # kernel widths from a trial, beyond which nothing is known
WIDTHS = (0.09, 0.13, 0.18, 0.25)  # of the kernel, as shares of the axes
MOST_TRIALS = 500

Floats = npt.NDArray[np.float64]


def contours(searched: Searched, found: Importances | None) -> Figure | None:
    """The value over pairs of the most important ranges; None where no pair has enough trials."""
    numeric = [axis for axis in by_importance(searched, found) if axis.numeric]
    every = searched.shown()
    tried = itertools.combinations(numeric[: 2 * PAIRS_OF], 2)
    pairs = [(pair, held) for pair in tried if (held := _both(pair, every))][:PAIRS_OF]
    if not pairs:
        return None
    plot = make_subplots(1, len(pairs), horizontal_spacing=0.16 if len(pairs) > 1 else 0.1)
    edge = worst_shown([value for _, value in every], searched.sign)
    best = max(searched.sign * value for _, value in every) * searched.sign
    if edge == best:
        return None
    low, high = min(edge, best), max(edge, best)
    for column, ((across, up), held) in enumerate(pairs, 1):
        _draw_pair(plot, across, up, thinned(held, MOST_TRIALS, [searched.best]), searched, (low, high), column)
    caption = (
        "The mean of the trials around each point, weighted by their distance, as it best foretells each trial from "
        "the others. Dots are trials in the colour of their own value, the star is the best. Where no trial is near, "
        "nothing is drawn. Other parameters vary too."
    )
    if found is not None and found.doubt:
        caption += f" Which parameters matter is uncertain: {found.doubt}."
    said = "; ".join(f"{across.name} and {up.name}" for (across, up), _ in pairs) + "."
    width = 900 if len(pairs) > 1 else 560
    return Figure("contours", "The value over pairs of parameters", caption, plot, width, 400, said)


def _both(pair: tuple[Axis, Axis], every: Sequence[Shown]) -> list[Shown]:
    """The trials that have both parameters; none where they are too few, or lie on too few values."""
    held = [shown for shown in every if all(axis.name in shown[0].params for axis in pair)]
    spread = all(len({trial.params[axis.name] for trial, _ in held}) >= LEAST_VALUES for axis in pair)
    return held if len(held) >= LEAST_TRIALS and spread else []


def _draw_pair(
    plot: go.Figure,
    across: Axis,
    up: Axis,
    dots: Sequence[Shown],
    searched: Searched,
    limits: tuple[float, float],
    column: int,
) -> None:
    low, high = limits
    points = np.array([[_share(axis, trial.params[axis.name]) for axis in (across, up)] for trial, _ in dots])
    values = np.array([min(max(value, low), high) for _, value in dots])
    surface, middle = smooth(points, values), (low + high) / 2
    plot.add_contour(
        x=numbers(np.linspace(*across.span, GRID).tolist()),
        y=numbers(np.linspace(*up.span, GRID).tolist()),
        z=[[None if math.isnan(value) else number(value) for value in row] for row in surface.tolist()],
        colorscale=SEQUENTIAL,
        reversescale=searched.sign < 0,
        zmin=low,
        zmax=high,
        showscale=column == 1,
        colorbar={
            "title": {"text": searched.words.split(" (")[0], "side": "right"},
            "tickvals": Axis("", low, high).ticks(6)[0],
            "thickness": 14,
            "outlinewidth": 0,
        },
        contours={"start": low, "end": high, "size": (high - low) / LEVELS},
        line={"width": 0},
        hovertemplate="about %{z:.4f}<extra></extra>",
        row=1,
        col=column,
    )
    plot.add_scatter(
        x=numbers(across.place(trial.params[across.name]) for trial, _ in dots),
        y=numbers(up.place(trial.params[up.name]) for trial, _ in dots),
        customdata=[
            [trial.number, in_words(searched.metrics[0], value), *(in_text(trial.params[a.name]) for a in (across, up))]
            for trial, value in dots
        ],
        mode="markers",
        marker={
            "color": numbers(value for _, value in dots),
            "colorscale": SEQUENTIAL,  # its own: plotly.js 4.1 hangs where a contour shares a coloraxis with marks
            "reversescale": searched.sign < 0,
            "cmin": low,
            "cmax": high,
            "symbol": ["star" if trial is searched.best else "circle" for trial, _ in dots],
            "size": [15 if trial is searched.best else 7 for trial, _ in dots],
            "line": {"color": [_outline(searched.sign * (value - middle)) for value in values], "width": 1},
        },
        showlegend=False,
        cliponaxis=False,
        hovertemplate=f"trial %{{customdata[0]}}: %{{customdata[1]}}<br>{across.name} %{{customdata[2]}}<br>"
        f"{up.name} %{{customdata[3]}}<extra></extra>",
        row=1,
        col=column,
    )
    for axis, most, update in ((across, 4, plot.update_xaxes), (up, 6, plot.update_yaxes)):
        ticks, texts = axis.ticks(most)
        scale = {"range": axis.span, "tickvals": ticks, "ticktext": texts, "tickangle": 0, "showgrid": False}
        update(title=short_name(axis.name, 32) + (" (log)" if axis.log else ""), **scale, row=1, col=column)


def _outline(above: float) -> str:
    """The colour of a mark's outline, which stands on the colour of values like its own: yellow, or else blue."""
    return "#1c2430" if above > 0 else "#ffffff"


def _share(axis: Axis, value: Any) -> float:
    low, high = axis.span
    return (axis.place(value) - low) / (high - low)


def smooth(points: Floats, values: Floats) -> Floats:
    """(`GRID`, `GRID`) means of the values over the unit square, the second coordinate first; NaN far from all points.

    Nadaraya's and Watson's estimate (1964) with a Gaussian kernel, of that width which best foretells each value from
    the other ones.
    """

    def weights(distances: Floats, width: float) -> Floats:
        found: Floats = np.exp(-0.5 * distances / width**2)
        return found

    def missed(width: float) -> float:
        held = weights(between, width)
        np.fill_diagonal(held, 0.0)
        return float((((held @ values + 1e-12 * values.mean()) / (held.sum(1) + 1e-12) - values) ** 2).mean())

    between = ((points[:, None] - points[None]) ** 2).sum(-1)
    width = min(WIDTHS, key=missed)
    side = np.linspace(0, 1, GRID)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    distances = ((grid[:, None] - points[None]) ** 2).sum(-1)
    held = weights(distances, width)
    found = np.where(distances.min(1) <= (NEAR * width) ** 2, (held @ values) / np.maximum(held.sum(1), 1e-300), np.nan)
    return found.reshape(GRID, GRID)
