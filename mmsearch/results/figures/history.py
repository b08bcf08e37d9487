"""How a search went: the value of each trial against its number, and the best so far."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

from mmsearch.results.figures.style import GREEN, OCHRE, PURPLE, VERMILLION, Figure
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
    thinned,
    worst_shown,
)
from mmsearch.search.progress import plural
from mmsearch.search.study import count
from mmsearch.search.values import in_words

MOST_TRIALS = 1500
STRIP = 0.07  # share of the height that the failed trials get, below the others


@dataclass(frozen=True)
class _Scale:
    """The axis of values: its ends, the worst value that is drawn in its place, and how many lie beyond that."""

    edge: float
    ends: tuple[float, float]
    beyond: int


def history(searched: Searched) -> Figure | None:
    """Values against trial numbers, with the best so far, the defaults, and confirmed means; None without a value."""
    every = searched.shown()
    if not every:
        return None
    scale, steps = _scale(searched, every), best_so_far(searched)
    drawn = thinned(every, MOST_TRIALS, [searched.baseline, *(trial for trial, _ in steps)])
    plot = go.Figure()
    for kind in ("pruned", "violating", "complete"):
        _add_trials(plot, kind, [shown for shown in drawn if kind_of(shown[0]) == kind], searched, scale)
    _add_best(plot, searched, steps)
    _add_baseline(plot, searched, scale)
    _add_confirmed(plot, searched)
    failed = [trial.number for trial in searched.trials if kind_of(trial) == "failed"]
    _lay_out(plot, searched, scale, failed)
    caption = _caption(searched, scale) + drawn_of(len(drawn), len(every))
    return Figure("history", "History of the search", caption, plot, alternative=_alternative(searched))


def best_so_far(searched: Searched) -> list[Shown]:
    """The complete trials within the constraints that were better than all before them, by number."""
    steps: list[Shown] = []
    for trial, value in searched.shown("complete"):
        if not steps or searched.sign * value > searched.sign * steps[-1][1]:
            steps.append((trial, value))
    return steps


def _scale(searched: Searched, every: list[Shown]) -> _Scale:
    sign, values = searched.sign, [value for _, value in every]
    edge = worst_shown(values, sign)
    ends = [edge, max(values) if sign > 0 else min(values)]
    for row in searched.confirmation.rows if searched.confirmation is not None else ():
        ends += [row.mean, *(row.interval or ())]
    return _Scale(edge, padded(min(ends), max(ends)), sum(sign * value < sign * edge for value in values))


def _inside(value: float, sign: int, scale: _Scale) -> float:
    return number(max(sign * value, sign * scale.edge) * sign)


def _add_trials(plot: go.Figure, kind: Kind, trials: list[Shown], searched: Searched, scale: _Scale) -> None:
    if not trials:
        return
    label, colour, symbol = KINDS[kind]
    at_the_edge = "triangle-down" if searched.sign > 0 else "triangle-up"
    beyond = [searched.sign * value < searched.sign * scale.edge for _, value in trials]
    size = 7 if len(trials) <= 400 else 5
    plot.add_scatter(
        x=[trial.number for trial, _ in trials],
        y=[_inside(value, searched.sign, scale) for _, value in trials],
        customdata=[in_words(searched.metrics[0], value) for _, value in trials],
        mode="markers",
        marker={
            "color": colour,
            "symbol": [at_the_edge if out else symbol for out in beyond] if any(beyond) else symbol,
            "size": [size + 3 if out else size for out in beyond] if any(beyond) else size,
            "opacity": 0.85,
            "line": {"color": colour, "width": 1.2},
        },
        cliponaxis=False,
        name=label,
        hovertemplate=f"trial %{{x}}, {label}: %{{customdata}}<extra></extra>",
    )


def _add_best(plot: go.Figure, searched: Searched, steps: list[Shown]) -> None:
    if not steps:
        return
    ends = [*steps, (searched.trials[-1], steps[-1][1])]
    plot.add_scatter(
        x=[trial.number for trial, _ in ends],
        y=numbers(value for _, value in ends),
        customdata=[in_words(searched.metrics[0], value) for _, value in ends],
        mode="lines",
        line={"shape": "hv", "color": GREEN, "width": 2},
        name="best so far",
        hovertemplate="best up to trial %{x}: %{customdata}<extra></extra>",
    )


def _add_baseline(plot: go.Figure, searched: Searched, scale: _Scale) -> None:
    if searched.baseline is None:
        return
    (value,) = (value for trial, value in searched.shown() if trial.number == searched.baseline.number)
    plot.add_scatter(
        x=[searched.baseline.number],
        y=[_inside(value, searched.sign, scale)],
        customdata=[in_words(searched.metrics[0], value)],
        mode="markers",
        marker={"color": OCHRE, "symbol": "star", "size": 15},
        cliponaxis=False,
        name="the defaults",
        hovertemplate="trial %{x}, the defaults: %{customdata}<extra></extra>",
    )


def _add_confirmed(plot: go.Figure, searched: Searched) -> None:
    confirmation = searched.confirmation
    if confirmation is None:
        return
    rows = confirmation.rows
    plot.add_scatter(
        x=[row.trial for row in rows],
        y=numbers(row.mean for row in rows),
        error_y={
            "array": numbers((row.interval[1] - row.mean) if row.interval else 0 for row in rows),
            "arrayminus": numbers((row.mean - row.interval[0]) if row.interval else 0 for row in rows),
            "color": PURPLE,
            "thickness": 1.5,
            "width": 4,
        },
        mode="markers",
        marker={"color": PURPLE, "symbol": "diamond", "size": 9},
        name=f"confirmed: mean of {plural(confirmation.seeds, 'seed')}",
        hovertemplate="trial %{x}, confirmed: %{y:.4f}<extra></extra>",
    )


def _lay_out(plot: go.Figure, searched: Searched, scale: _Scale, failed: list[int]) -> None:
    first, last = 0, searched.trials[-1].number
    plot.update_layout(
        xaxis={"title": "trial number", "range": [first - 0.5 - 0.01 * last, last + 0.5 + 0.01 * last]},
        yaxis={"title": searched.words, "range": list(scale.ends)},
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"t": 60},
    )
    if last < 10:
        plot.update_xaxes(dtick=1)
    if failed:
        label, colour, symbol = KINDS["failed"]
        plot.add_scatter(
            x=failed,
            y=[0] * len(failed),
            yaxis="y2",
            mode="markers",
            marker={"symbol": symbol, "size": 9, "color": colour, "line": {"color": VERMILLION, "width": 2}},
            name=label,
            hovertemplate="trial %{x}, failed<extra></extra>",
        )
        plot.update_layout(
            xaxis={"anchor": "y2"},
            yaxis={"domain": [STRIP + 0.03, 1]},
            yaxis2={"domain": [0, STRIP], "range": [-1, 1], "tickvals": [0], "ticktext": ["failed"], "zeroline": False},
        )


def _caption(searched: Searched, scale: _Scale) -> str:
    folds = f", mean over {searched.folds} folds" if searched.folds > 1 else ""
    text = f"Complete trials at their best epoch{folds}; pruned ones at the last value that they reported."
    if len(searched.metrics) > 1:
        text += " Only the leading metric is shown."
    if scale.beyond:
        side = "below" if searched.sign > 0 else "above"
        text += (
            f" {plural(scale.beyond, 'trial')} {side} {in_words(searched.metrics[0], scale.edge)} drawn at the edge."
        )
    if searched.best is None:
        text += " No trial is complete" + (" within the constraints." if searched.constraints else ".")
    if searched.confirmation is not None:
        text += " Bars of confirmed means are 95 % intervals over seeds."
    return text


def _alternative(searched: Searched) -> str:
    counts, best = count(list(searched.trials)), searched.best
    text = f"{counts.complete} complete, {counts.pruned} pruned and {counts.failed} failed trials"
    if best is not None:
        text += f"; the best is trial {best.number} with {in_words(searched.metrics[0], best.values[0])}"
    return text + "."
