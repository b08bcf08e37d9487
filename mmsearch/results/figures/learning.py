"""How trials learned: training and validation, epoch by epoch, of the best ones before all the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import plotly.graph_objects as go
from optuna.trial import FrozenTrial
from plotly.subplots import make_subplots

from mmsearch.results.epochs import last_attempt
from mmsearch.results.figures.style import BLUE, GREEN, GREY, OCHRE, PURPLE, VERMILLION, Figure
from mmsearch.results.figures.trials import (
    KINDS,
    Searched,
    drawable,
    drawn_of,
    kind_of,
    numbers,
    padded,
    thinned,
    value_of,
    worst_shown,
)
from mmsearch.search.progress import plural

BEST = 5
COLOURS = (VERMILLION, BLUE, GREEN, PURPLE, OCHRE)  # of the best, in their order
MOST_TRIALS = 300
PANELS: Mapping[str, str] = {"macro_f1": "macro F1", "accuracy": "accuracy", "loss": "loss"}
KINDS_DRAWN = ("complete", "violating", "pruned")


@dataclass(frozen=True)
class Curves:
    """A trial's epochs, counted from 1: each column of its log by epoch, with k-fold validation the mean over folds."""

    trial: FrozenTrial
    columns: Mapping[str, Mapping[int, float]]

    def line(self, name: str) -> tuple[list[int], list[float]]:
        """Epochs and values of a column, in order; empty where it is not known."""
        held = sorted(self.columns.get(name, {}).items())
        return [epoch for epoch, _ in held], numbers(value for _, value in held)


def learning_curves(searched: Searched) -> Figure | None:
    """Training and validation against epochs, of the leading metric and of the loss; None where no epoch is known."""
    every = [(trial, value_of(trial) or 0.0) for trial in searched.trials if kind_of(trial) in KINDS_DRAWN]
    ranked = sorted(searched.shown("complete"), key=lambda shown: (-searched.sign * shown[1], shown[0].number))
    best = [trial for trial, _ in ranked[:BEST]]
    chosen = thinned(every, MOST_TRIALS, best)
    curves = [read_curves(searched, trial) for trial, _ in chosen]
    known = {held.trial.number: held for held in curves if held.columns}
    if not known:
        return None
    lead = searched.metrics[0]
    asked = (lead, "macro_f1" if lead == "loss" else "loss")
    names = [name for name in asked if any(held.columns.get(f"valid_{name}") for held in known.values())]
    plot = make_subplots(1, len(names), horizontal_spacing=0.1)
    leaders = [known[trial.number] for trial in best if trial.number in known]
    others = [held for number, held in known.items() if number not in {held.trial.number for held in leaders}]
    for column, name in enumerate(names, 1):
        _draw_others(plot, others, name, column)
        _draw_best(plot, leaders, name, column)
        _scale(plot, list(known.values()), leaders, name, column)
    if leaders:
        line = {"color": GREY, "width": 1.6, "dash": "dot"}
        plot.add_scatter(x=[None], y=[None], mode="lines", line=line, name="the same, training", legendrank=1900)
    plot.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}, margin={"t": 80})
    return Figure(
        "learning_curves",
        "Learning curves",
        _caption(searched, len(chosen), len(every), leaders, list(known.values())),
        plot,
        height=480,
        alternative=f"Curves of {plural(len(known), 'trial')}, the best {len(leaders)} in colour.",
    )


def read_curves(searched: Searched, trial: FrozenTrial) -> Curves:
    """A trial's epochs, from the log that its last attempt wrote; else what it reported to the storage."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in last_attempt(searched.epochs(trial.number)):
        for name, value in row.items():
            if drawable(value):
                found[name][row["epoch"]].append(value)
    if not found and searched.folds == 1:
        found[f"valid_{searched.metrics[0]}"] = {
            step: [value] for step, value in trial.intermediate_values.items() if drawable(value)
        }
    columns = {name: {epoch: fmean(held) for epoch, held in column.items()} for name, column in found.items()}
    return Curves(trial, {name: column for name, column in columns.items() if column})


def _draw_others(plot: go.Figure, others: Sequence[Curves], name: str, column: int) -> None:
    """The validation curves of all but the best: one thin line each, and a mark where a pruned one ended."""
    x: list[int | None] = []
    y: list[float | None] = []
    ends: list[tuple[int, float, int]] = []
    for held in others:
        epochs, values = held.line(f"valid_{name}")
        if not epochs:
            continue
        x += [*epochs, None]
        y += [*values, None]
        if kind_of(held.trial) == "pruned":
            ends.append((epochs[-1], values[-1], held.trial.number))
    if x:
        plot.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": GREY, "width": 1},
            opacity=0.55,
            name="other trials, validation",
            legendgroup="others",
            legendrank=2000,
            showlegend=column == 1,
            hoverinfo="skip",
            row=1,
            col=column,
        )
    if ends:
        plot.add_scatter(
            x=[epoch for epoch, _, _ in ends],
            y=[value for _, value, _ in ends],
            customdata=[number for _, _, number in ends],
            mode="markers",
            marker={"color": GREY, "symbol": KINDS["pruned"][2], "size": 8, "line": {"color": GREY, "width": 1.3}},
            name="pruned here",
            legendgroup="pruned",
            legendrank=2001,
            showlegend=column == 1,
            hovertemplate="trial %{customdata}, pruned after epoch %{x}: %{y:.4f}<extra></extra>",
            row=1,
            col=column,
        )


def _draw_best(plot: go.Figure, leaders: Sequence[Curves], name: str, column: int) -> None:
    """The best trials, each in its colour: validation as a line, training dotted. The best one lies on top."""
    for place, held in reversed(list(enumerate(leaders))):
        for part, dash in (("train", "dot"), ("valid", "solid")):
            epochs, values = held.line(f"{part}_{name}")
            said = "training" if part == "train" else "validation"
            plot.add_scatter(
                x=epochs,
                y=values,
                mode="lines+markers" if part == "valid" else "lines",
                line={"color": COLOURS[place], "width": 2.5 if place == 0 else 1.6, "dash": dash},
                marker={"size": 5 if place == 0 else 4},
                name=f"trial {held.trial.number}" + (", the best" if place == 0 else ""),
                legendgroup=str(held.trial.number),
                legendrank=1000 + place,
                showlegend=column == 1 and part == "valid",
                hovertemplate=f"trial {held.trial.number}, epoch %{{x}}, {said}: %{{y:.4f}}<extra></extra>",
                row=1,
                col=column,
            )


def _scale(plot: go.Figure, known: Sequence[Curves], leaders: Sequence[Curves], name: str, column: int) -> None:
    """Axes on which the last epochs can be told apart: a first epoch far off may leave the panel."""
    valid = [value for held in known for value in held.line(f"valid_{name}")[1]]
    train = [value for held in leaders for value in held.line(f"train_{name}")[1]]
    sign = -1 if name == "loss" else 1
    plot.update_yaxes(title=PANELS[name] + (" (lower is better)" if sign < 0 else ""), row=1, col=column)
    if valid:
        edge, best = worst_shown(valid, sign), max(sign * value for value in [*valid, *train]) * sign
        plot.update_yaxes(range=padded(min(edge, best), max(edge, best)), row=1, col=column)
    last = max((epoch for held in known for column_ in held.columns.values() for epoch in column_), default=1)
    plot.update_xaxes(title="epoch", range=[1 - 0.03 * last, last + 0.03 * last], row=1, col=column)
    if last <= 12:
        plot.update_xaxes(dtick=1, row=1, col=column)


def _caption(searched: Searched, drawn: int, there: int, leaders: Sequence[Curves], known: Sequence[Curves]) -> str:
    text = "Lines are validation rows; dotted ones training rows, measured while they train, with dropout and "
    text += "augmentation."
    if searched.best is None:
        text += " No trial is complete" + (" within the constraints." if searched.constraints else ".")
    elif len(leaders) > 1:
        text += f" In colour: the best {len(leaders)}."
    if searched.folds > 1:
        text += f" Each epoch is the mean over those of the {searched.folds} folds that reached it."
    if any(not held.columns.get("train_loss") for held in known):
        text += " Of some trials only what they reported is known: their files are not here."
    text += drawn_of(drawn, there)
    return text
