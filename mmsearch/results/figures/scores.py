"""Figures of how well a model tells the classes apart: which it confuses, each class's scores, each modality's part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from mmsearch.results.figures.rows import Scored, places, plain
from mmsearch.results.figures.style import BLUE, GREEN, GREY, OCHRE, PURPLE, VERMILLION, Figure, through
from mmsearch.results.statistics import RESAMPLES, Floats, Index, bootstrap, confusion

NUMBERED = 30  # classes up to which each cell of a confusion matrix has its number
SHARED = 12  # and its share
PAIRS = 20  # of confused classes, at most
LISTED = 25  # classes whose scores are shown
MEASURES = (("precision", BLUE, "circle"), ("recall", VERMILLION, "square"), ("F1", GREEN, "diamond"))
PARTS = {
    "both": ("both", BLUE),
    "image_alone": ("image alone", GREEN),
    "audio_alone": ("audio alone", OCHRE),
    "image_shuffled": ("image shuffled", PURPLE),
    "audio_shuffled": ("audio shuffled", VERMILLION),
}


def confusion_figure(scored: Scored) -> Figure:
    """Which classes are taken for which: counts, and shares of the true class."""
    classes = scored.classes
    counts = confusion(scored.labels, scored.predicted, len(classes))
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    right = np.eye(len(classes), dtype=bool)
    numbered, shared = len(classes) <= NUMBERED, len(classes) <= SHARED
    weak, strong = (0.24, 0.62) if numbered else (0.4, 0.9)
    plot = go.Figure()
    for kept, colour in ((right, BLUE), (~right, VERMILLION)):  # a page shows through both, so that numbers stay clear
        plot.add_heatmap(
            z=np.where(kept & (counts > 0), share, np.nan),
            zmin=0,
            zmax=1 if kept is right else max(0.05, float(share[~right].max(initial=0))),
            colorscale=[[0, through(colour, weak)], [1, through(colour, strong)]],
            showscale=False,
            hoverinfo="skip",
            xgap=1,
            ygap=1,
        )
    true, said = np.nonzero(counts)
    plot.add_scatter(
        x=said,
        y=true,
        mode="text" if numbered else "markers",
        marker={"opacity": 0},
        text=[
            f"{counts[i, j]:,}" + (f"<br>{_percent(share[i, j])}" if shared else "")
            for i, j in zip(true, said, strict=True)
        ],
        textfont={"size": 16 if len(classes) <= 5 else 12 if shared else 10},
        hovertext=[
            f"{plain(classes[i])} taken for {plain(classes[j])}: {counts[i, j]:,} rows, {_percent(share[i, j])}"
            for i, j in zip(true, said, strict=True)
        ],
        hoverinfo="text",
    )
    ends = (-0.5, len(classes) - 0.5)
    axis = places([plain(name, 18) for name in classes], constrain="domain", tickfont={"size": 13 if numbered else 9})
    plot.update_xaxes(**axis, title="predicted class", range=ends)
    plot.update_yaxes(**axis, title="true class", range=ends[::-1], scaleanchor="x")
    plot.update_layout(showlegend=False, xaxis_mirror=True, yaxis_mirror=True)
    wrong = int(counts[~right].sum())
    return Figure(
        "confusion",
        "Confusion matrix",
        f"Rows of each true class by the class predicted, of the {scored.where}"
        + ("; below each count its share of the true class" if shared else "")
        + f". {wrong:,} of {counts.sum():,} are wrong. Blue is right, orange wrong, stronger the greater the share of "
        "the true class; each of the two has a scale of its own.",
        plot,
        width=680 if shared else 820,
        height=600 if shared else 780,
        alternative=f"Matrix of {len(classes)} classes: {counts.trace():,} of {counts.sum():,} rows on its diagonal. "
        + _worst_pairs(counts, classes),
    )


def confused_pairs_figure(scored: Scored) -> Figure | None:
    """The classes that are taken for one another most often; None where no row is wrong."""
    classes = scored.classes
    counts = confusion(scored.labels, scored.predicted, len(classes))
    pairs = _pairs(counts)[:PAIRS]
    if not pairs:
        return None
    rows = counts.sum(1)
    plot = go.Figure(
        go.Bar(
            x=[counts[pair] for pair in pairs],
            y=list(range(len(pairs))),
            orientation="h",
            marker={"color": VERMILLION},
            text=[f"{counts[i, j]} of {rows[i]}" for i, j in pairs],
            textposition="outside",
            cliponaxis=False,
            hoverinfo="skip",
        )
    )
    plot.update_xaxes(title="rows", rangemode="tozero", dtick=1 if counts[pairs[0]] <= 8 else None, zeroline=False)
    names = [f"{plain(classes[i], 24)} → {plain(classes[j], 24)}" for i, j in pairs]
    plot.update_yaxes(**places(names), title="true class → what it is taken for", range=(len(pairs) - 0.4, -0.6))
    plot.update_layout(margin={"r": 80})
    return Figure(
        "confused_pairs",
        "Most confused classes",
        f"The true classes that are most often taken for another one, of the {scored.where}; beside each bar the rows "
        "of the true class.",
        plot,
        height=110 + 26 * len(pairs),
        alternative=_worst_pairs(counts, classes),
    )


def class_scores(labels: Index, predicted: Index, classes: int) -> Floats:
    """(3, classes) precision, recall and F1 of each class; 0 where nothing is there to divide by."""
    counts = confusion(labels, predicted, classes).astype(np.float64)
    hits, true, said = counts.diagonal(), counts.sum(1), counts.sum(0)
    above, below = np.stack([hits, hits, 2 * hits]), np.stack([said, true, said + true])
    found: Floats = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return found


def per_class_figure(scored: Scored) -> Figure:
    """Precision, recall and F1 of each class with their intervals, and how many rows it has."""
    classes, labels, predicted = scored.classes, scored.labels, scored.predicted
    values = class_scores(labels, predicted, len(classes))
    intervals = bootstrap(
        lambda drawn: class_scores(labels[drawn], predicted[drawn], len(classes)).ravel().tolist(), len(labels)
    )
    ends = np.array(intervals).reshape(3, len(classes), 2)
    support = np.bincount(labels, minlength=len(classes))
    shown = np.arange(len(classes)) if len(classes) <= LISTED else np.argsort(values[2], kind="stable")[:LISTED]
    plot = go.Figure()
    for offset, (name, colour, symbol), value, (low, high) in zip(
        (-0.22, 0.0, 0.22), MEASURES, values[:, shown], ends[:, shown].transpose(0, 2, 1), strict=True
    ):
        plot.add_scatter(
            x=value,
            y=np.arange(len(shown)) + offset,
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol, "size": 8},
            error_x={
                "symmetric": False,
                "array": np.maximum(high - value, 0),
                "arrayminus": np.maximum(value - low, 0),
                "color": colour,
                "thickness": 1.5,
                "width": 3,
            },
            hovertext=[
                f"{plain(classes[i])}: {name} {x:.4f}, {one:.4f} to {other:.4f}"
                for i, x, one, other in zip(shown, value, low, high, strict=True)
            ],
            hoverinfo="text",
        )
    least = float(min(ends[:, shown].min(), values[:, shown].min()))
    spare = 0.03 * (1.02 - least)
    plot.update_xaxes(title="score, with its 95 % interval", range=(least - spare, 1 + spare), zeroline=False)
    names = [f"{plain(classes[i], 22)} ({support[i]:,})" for i in shown]
    plot.update_yaxes(**places(names), title="class (its rows)", range=(len(shown) - 0.4, -0.6))
    for between in range(1, len(shown)):
        plot.add_hline(y=between - 0.5, line={"color": GREY, "width": 0.5}, opacity=0.4)
    plot.update_layout(legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}, margin={"t": 44})
    few = "" if len(shown) == len(classes) else f" The {LISTED} of {len(classes)} classes with the lowest F1 are shown."
    return Figure(
        "per_class",
        "Scores of each class",
        f"Precision, recall and F1 of each class on the {scored.where}, with percentile intervals of {RESAMPLES:,} "
        "bootstrap resamples of the rows. A class without a mistake has no spread among its rows: an interval that is "
        "a point is no certainty." + few,
        plot,
        height=130 + len(shown) * (46 if len(shown) <= 12 else 32),
        alternative=f"Lowest F1: {float(values[2].min()):.3f}, of {classes[int(values[2].argmin())]}.",
    )


def modalities_figure(metrics: Mapping[str, Any]) -> Figure | None:
    """What each modality contributes, from metrics.json; None where it was not measured."""
    held = metrics.get("modalities")
    if not held:
        return None
    account = held.get("account") or {
        name: {"macro_f1": held[name]} for name in PARTS if isinstance(held.get(name), float)
    }
    parts = [(*PARTS[name], account[name]) for name in PARTS if name in account]
    if not parts:
        return None
    plot = go.Figure()
    for place, (name, colour, score) in enumerate(parts):
        value, interval = score["macro_f1"], score.get("interval")
        said = f"{value:.4f}" + (f"  ({interval[0]:.4f} to {interval[1]:.4f})" if interval else "")
        plot.add_bar(
            x=[value],
            y=[place],
            orientation="h",
            marker={"color": through(colour, 0.45), "line": {"color": colour, "width": 1.5}},
            error_x=None
            if not interval
            else {
                "symmetric": False,
                "array": [max(0, interval[1] - value)],
                "arrayminus": [max(0, value - interval[0])],
                "color": colour,
                "thickness": 2,
                "width": 8,
            },
            hovertext=f"{name}: {said}",
            hoverinfo="text",
        )
        plot.add_annotation(x=0.76, y=place, text=said, showarrow=False, xanchor="left", xref="paper", yref="y")
    plot.update_xaxes(title="macro F1", range=(0, 1.0), domain=(0, 0.74), dtick=0.2)
    names = [name for name, _, _ in parts]
    plot.update_yaxes(**places(names), title="what the model is given", range=(len(parts) - 0.4, -0.6))
    plot.update_layout(showlegend=False, bargap=0.35)
    gain, rows = account.get("fusion_gain"), account.get("rows")
    where = held.get("scored_on", "test").replace("_", " ")
    return Figure(
        "modalities",
        "What each modality contributes",
        f"Macro F1 on {f'{rows:,} ' if rows else ''}{where} rows. Alone: the training rows' mean stands in for the "
        "other modality"
        + ("; shuffled: it is another row's" if "image_shuffled" in account else "")
        + "."
        + (" In brackets, and as lines, 95 % bootstrap intervals." if "interval" in parts[0][2] else "")
        + (" " + _gain(gain) if gain else "")
        + " A model that was trained on both is not the best that one modality can do.",
        plot,
        height=110 + 52 * len(parts),
        alternative="; ".join(f"{name} {score['macro_f1']:.3f}" for name, _, score in parts) + ".",
    )


def _gain(gain: Mapping[str, Any]) -> str:
    low, high = gain["interval"]
    verdict = "" if low > 0 else ": no gain that these rows can show"
    return (
        f"Both together score {gain['macro_f1']:+.4f} against the better one alone "
        f"(95 % interval {low:+.4f} to {high:+.4f}){verdict}."
    )


def _pairs(counts: Index) -> list[tuple[int, int]]:
    """(true class, predicted class) of all mistakes, the most frequent first."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[: int((wrong > 0).sum())]
    true, said = np.unravel_index(order, wrong.shape)
    return list(zip(true.tolist(), said.tolist(), strict=True))


def _worst_pairs(counts: Index, classes: tuple[str, ...]) -> str:
    pairs = _pairs(counts)[:3]
    if not pairs:
        return "No row is wrong."
    return "Most often: " + ", ".join(f"{classes[i]} taken for {classes[j]} ({counts[i, j]})" for i, j in pairs) + "."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"
