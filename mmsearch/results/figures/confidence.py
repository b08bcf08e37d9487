"""Figures of how far a model's probabilities can be trusted: reliability, and what is gained by saying nothing."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mmsearch.results.figures.rows import Scored
from mmsearch.results.figures.style import BLUE, GREY, VERMILLION, Figure
from mmsearch.results.statistics import BINS, Floats, calibration_bins, expected_calibration_error, wilson

POINTS = 400  # of a curve, at most


def reliability_figure(scored: Scored) -> Figure:
    """Confidence against the share that is right, in bins, before and after temperature scaling; the rows of each bin.

    Niculescu-Mizil and Caruana, "Predicting good probabilities with supervised learning" (2005).
    """
    scaled = scored.temperature != 1.0
    series = [("before temperature scaling" if scaled else "as trained", scored.before, BLUE, "circle")]
    if scaled:
        after = f"after it, T = {scored.temperature:.3g}"
        series.append((after, scored.after, VERMILLION, "square"))
    plot = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.72, 0.28], vertical_spacing=0.05)
    plot.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": GREY, "dash": "dash"}, name="perfect", hoverinfo="skip"
    )
    errors, middles = [], (np.arange(BINS) + 0.5) / BINS
    for name, probabilities, colour, symbol in series:
        confidence = probabilities.max(1).astype(np.float64)
        correct = probabilities.argmax(1) == scored.labels
        count, mean, share = calibration_bins(confidence, correct).T
        held = count > 0
        ends = np.array([wilson(round(k), int(n)) for k, n in zip((share * count)[held], count[held], strict=True)])
        errors.append(expected_calibration_error(confidence, correct))
        said = f"{name} (ECE {errors[-1]:.4f})"
        plot.add_scatter(
            x=mean[held],
            y=share[held],
            mode="markers",
            name=said,
            marker={"color": colour, "symbol": symbol, "size": 9},
            error_y={
                "symmetric": False,
                "array": np.maximum(ends[:, 1] - share[held], 0),
                "arrayminus": np.maximum(share[held] - ends[:, 0], 0),
                "color": colour,
                "thickness": 1.5,
                "width": 4,
            },
            hovertext=[
                f"{n:.0f} rows: confidence {x:.3f}, right {y:.3f}"
                for n, x, y in zip(count[held], mean[held], share[held], strict=True)
            ],
            hoverinfo="text",
        )
        plot.add_bar(
            x=middles,
            y=count,
            width=0.9 / BINS / len(series),
            offset=(0.9 / BINS) * (len(errors) - 1) / len(series) - 0.45 / BINS,
            marker={"color": colour},
            text=[f"{n:,.0f}" if n else "" for n in count],
            textposition="outside",
            textangle=0,
            textfont={"size": 10},
            cliponaxis=False,
            showlegend=False,
            hovertemplate="%{y} rows<extra></extra>",
            row=2,
            col=1,
        )
    plot.update_xaxes(range=(0, 1.01), dtick=0.1, zeroline=False)
    plot.update_xaxes(title="confidence: the greatest probability", row=2, col=1)
    plot.update_xaxes(showticklabels=False, row=1, col=1)
    plot.update_yaxes(range=(0, 1.03), dtick=0.2, title="share that is right", zeroline=False, row=1, col=1)
    plot.update_yaxes(title="rows", rangemode="tozero", nticks=4, row=2, col=1)
    plot.update_layout(legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}, margin_t=44)
    return Figure(
        "reliability",
        "Reliability diagram",
        f"Rows in {BINS} bins of confidence, of the {scored.where}: the share that is right should be the confidence. "
        "Bars are 95 % intervals of the share (Wilson); below, how many rows a bin has. ECE is the expected "
        "calibration error, the mean distance from the dashed line, weighted by rows."
        + ("" if scaled else " The model's temperature is 1: its probabilities are as it was trained to give them."),
        plot,
        width=760,
        height=600,
        alternative=f"Expected calibration error {' before and '.join(f'{e:.4f}' for e in errors)}"
        + (" after temperature scaling." if scaled else "."),
    )


def selective_accuracy(confidence: Floats, correct: Floats) -> tuple[Floats, Floats, Floats]:
    """(thresholds, coverage, accuracy), each (m,): of the rows at or above each confidence that occurs, highest first.

    El-Yaniv and Wiener, "On the foundations of noise-free selective classification" (2010).
    """
    order = np.argsort(-confidence, kind="stable")
    falling = np.asarray(confidence, dtype=np.float64)[order]
    right = np.cumsum(np.asarray(correct, dtype=np.float64)[order])
    last = np.flatnonzero(np.append(np.diff(falling) != 0, True))
    count = last + 1.0
    return falling[last], count / len(order), right[last] / count


def coverage_figure(scored: Scored) -> Figure:
    """How accurate the model is on the rows that it is surest of, against how many these are."""
    thresholds, coverage, accuracy = selective_accuracy(scored.confidence, scored.correct.astype(np.float64))
    shown = np.unique(np.linspace(0, len(coverage) - 1, min(POINTS, len(coverage))).round().astype(np.int64))
    plot = go.Figure(
        go.Scatter(
            x=100 * coverage[shown],
            y=100 * accuracy[shown],
            mode="lines" if len(shown) > 1 else "markers",
            line={"color": BLUE, "width": 2},
            customdata=thresholds[shown],
            hovertemplate="confidence of at least %{customdata:.3f}: %{x:.1f} % answered, %{y:.2f} % of them right"
            "<extra></extra>",
            showlegend=False,
        )
    )
    marks = [(1.0, float(accuracy[-1]), f"always answers: {100 * accuracy[-1]:.2f} % right", BLUE, "circle")]
    threshold = scored.abstain_below
    if threshold is not None:
        kept = scored.confidence >= threshold
        if kept.any():
            answered, right = float(kept.mean()), float(scored.correct[kept].mean())
            said = f"abstains below {threshold:.3g}: {100 * answered:.1f} % answered, {100 * right:.2f} % of them right"
            marks.append((answered, right, said, VERMILLION, "diamond"))
            plot.add_vline(x=100 * answered, line={"color": VERMILLION, "dash": "dot", "width": 1.5})
    for x, y, said, colour, symbol in marks:
        plot.add_scatter(
            x=[100 * x],
            y=[100 * y],
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 11},
            name=said,
            hoverinfo="name",
            cliponaxis=False,
        )
    low = 100 * float(accuracy[shown].min())
    spare = 0.06 * (100.1 - low)
    plot.update_xaxes(title="coverage (% of rows that get an answer)", range=(0, 101), zeroline=False)
    plot.update_yaxes(title="accuracy of the answers (%)", range=(low - spare, 100 + spare), zeroline=False)
    plot.update_layout(showlegend=True, legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}, margin_t=44)
    none = ""
    if threshold is None:
        none = " The model has no threshold: it always answers."
    elif len(marks) == 1:
        none = f" The model's threshold, {threshold:.3g}, leaves no row."
    return Figure(
        "coverage",
        "Accuracy against coverage",
        f"Where the model says nothing of rows whose confidence is below a threshold, fewer rows get an answer, and "
        f"more of the answers are right: all thresholds, on the {scored.where}." + none,
        plot,
        height=440,
        alternative="; ".join(said for _, _, said, _, _ in marks) + ".",
    )
