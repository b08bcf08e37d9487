"""Figures that show rows as they are: the most confident mistakes, and samples of each class."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from mmsearch.results.figures.rasters import Planes, coloured, pictures, planes, sheet, shown, uri
from mmsearch.results.figures.rows import Scored, places, plain
from mmsearch.results.figures.style import GREEN, VERMILLION, Figure
from mmsearch.results.statistics import Index

CARDS, COLUMNS = 12, 3  # mistakes that are shown, and how many of them side by side
CARD, PICTURE, PLANE = (292, 176), 92, (134, 92)  # pixels
CLASSES, A_CLASS = 15, 8  # of which samples are shown, and how many of each
TILE, STRIP, GAP = 56, (84, 48), 4  # pixels of a sample's image and of its spectrogram, and between them


def most_confident_mistakes(scored: Scored, limit: int = CARDS) -> Index:
    """Positions of the rows that are wrong, the most confident first."""
    wrong = np.flatnonzero(~scored.correct)
    order = np.argsort(-scored.confidence[wrong], kind="stable")
    return np.asarray(wrong[order][:limit], dtype=np.int64)


def least_confident(scored: Scored, limit: int = CARDS) -> Index:
    """Positions of the rows that are right, the least confident first."""
    right = np.flatnonzero(scored.correct)
    order = np.argsort(scored.confidence[right], kind="stable")
    return np.asarray(right[order][:limit], dtype=np.int64)


def mistakes_figure(scored: Scored) -> Figure:
    """The most confident mistakes; where there is none, the least confident rows that are right."""
    wrong = most_confident_mistakes(scored)
    chosen = wrong if len(wrong) else least_confident(scored)
    images = pictures(scored.split, chosen, scored.trained.pixels)
    sounds = planes(scored.split, chosen, scored.trained)
    down = -(-len(chosen) // COLUMNS)
    width, height = min(len(chosen), COLUMNS) * CARD[0] + 24, down * CARD[1] + 24
    plot = go.Figure()
    for place, position in enumerate(chosen.tolist()):
        _card(plot, place, (width, height), images[place], sounds, scored, position)
    plot.update_layout(showlegend=False, margin={"l": 0, "r": 0, "t": 0, "b": 0})
    total = int((~scored.correct).sum())
    if total:
        title = "The most confident mistakes"
        told = (
            f"All mistakes ({total})"
            if total == len(wrong)
            else f"The {len(wrong)} most confident of {total:,} mistakes"
        )
    else:
        title = "The least confident rows (there is no mistake)"
        told = f"No row is wrong: the {len(chosen)} least confident ones that are right"
    return Figure(
        "mistakes",
        title,
        f"{told}, of the {scored.where}: each row's image and its audio, the true class, and what is said with which "
        f"confidence. {sounds.note}",
        plot,
        width=width,
        height=height,
        alternative="; ".join(
            f"{scored.row(i)}: {scored.classes[scored.labels[i]]} taken for {scored.classes[scored.predicted[i]]}"
            if total
            else f"{scored.row(i)}: {scored.classes[scored.labels[i]]}"
            for i in chosen[:3]
        )
        + ".",
    )


def _card(
    plot: go.Figure,
    place: int,
    size: tuple[int, int],
    image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    sounds: Planes,
    scored: Scored,
    position: int,
) -> None:
    """One row: two lines of text, its image, and beside it its audio on axes of its own."""
    width, height = size
    left, top = 12 + (place % COLUMNS) * CARD[0], 12 + (place // COLUMNS) * CARD[1]
    true, said = scored.classes[scored.labels[position]], scored.classes[scored.predicted[position]]
    right, confidence = bool(scored.correct[position]), f"{scored.confidence[position]:.3f}"
    verdict = f"<b>{plain(true, 14)}</b>, at {confidence}" if right else (
        f"<b>{plain(true, 12)}</b> taken for <b>{plain(said, 12)}</b>, at {confidence}"
    )  # fmt: skip
    here = {"xref": "paper", "yref": "paper", "x": left / width, "xanchor": "left", "showarrow": False}
    plot.add_annotation(
        **here,
        y=1 - top / height,
        yanchor="top",
        text=f"{verdict}<br><span style='font-size:11px'>{plain(scored.row(position), 42)}</span>",
        align="left",
        hovertext=f"{plain(scored.row(position))}: {plain(true)}, said {plain(said)} at {confidence}",
        borderpad=0,
    )
    under = top + 40
    plot.add_layout_image(
        source=uri(shown(image, PICTURE)),
        xref="paper",
        yref="paper",
        x=left / width,
        y=1 - under / height,
        sizex=PICTURE / width,
        sizey=PICTURE / height,
        xanchor="left",
        yanchor="top",
    )
    (across, x0, x1), (up, y0, y1) = sounds.across, sounds.up
    at, number = left + PICTURE + 50, "" if place == 0 else str(place + 1)
    axis = {"showgrid": False, "zeroline": False, "tickfont": {"size": 9}, "automargin": False, "ticklen": 3}
    plot.update_layout(
        {
            f"xaxis{number}": {
                **axis,
                "domain": (at / width, (at + PLANE[0]) / width),
                "anchor": f"y{number}",
                "range": (x0, x1),
                "nticks": 4,
                "title": {"text": across, "font": {"size": 10}, "standoff": 2},
            },
            f"yaxis{number}": {
                **axis,
                "domain": (1 - (under + PLANE[1]) / height, 1 - under / height),
                "anchor": f"x{number}",
                "range": (y0, y1),
                "nticks": 6,
                "title": {"text": up, "font": {"size": 10}, "standoff": 4},
            },
        }
    )
    plot.add_scatter(x=[None], y=[None], xaxis=f"x{number}", yaxis=f"y{number}", hoverinfo="skip")  # else no axes
    plot.add_layout_image(
        source=uri(coloured(sounds.values[place], PLANE)),
        xref=f"x{number}",
        yref=f"y{number}",
        x=x0,
        y=y1,
        sizex=x1 - x0,
        sizey=y1 - y0,
        sizing="stretch",
        layer="below",
    )
    plot.add_shape(
        type="rect",
        xref="paper",
        yref="paper",
        x0=(left - 6) / width,
        x1=(left - 4) / width,
        y0=1 - (under + PICTURE) / height,
        y1=1 - top / height,
        fillcolor=GREEN if right else VERMILLION,
        line={"width": 0},
    )


def sample_figures(scored: Scored) -> list[Figure]:
    """Images, and the audio, of some rows of each class: two grids of the same rows."""
    present = np.unique(scored.labels)
    classes = present[np.unique(np.linspace(0, len(present) - 1, min(CLASSES, len(present))).round().astype(np.int64))]
    rng = np.random.default_rng(0)
    chosen: list[int | None] = []
    for label in classes:
        rows = rng.permutation(np.flatnonzero(scored.labels == label))[:A_CLASS].tolist()
        chosen += rows + [None] * (A_CLASS - len(rows))
    positions = np.array([row for row in chosen if row is not None], dtype=np.int64)
    images = iter(pictures(scored.split, positions, scored.trained.pixels))
    sounds = planes(scored.split, positions, scored.trained)
    sound = iter(sounds.values)
    names = [plain(scored.classes[label], 22) for label in classes]
    few = "" if len(classes) == len(present) else f" {len(classes)} of {len(present)} classes are shown."
    told = f"Up to {A_CLASS} rows of each class, drawn at random from the {scored.where}.{few}"
    return [
        _grid(
            "sample_images",
            "Images of each class",
            told,
            [None if row is None else shown(next(images), TILE) for row in chosen],
            names,
            "rows drawn at random",
        ),
        _grid(
            "sample_sounds",
            "Audio of each class",
            f"{told} The same rows as the images. {sounds.note}",
            [None if row is None else coloured(next(sound), STRIP) for row in chosen],
            names,
            f"in each: {sounds.span}",
        ),
    ]


def _grid(
    name: str, title: str, caption: str, tiles: list[Image.Image | None], names: list[str], across: str
) -> Figure:
    page = sheet(tiles, A_CLASS, GAP)
    step = (page.height + GAP) / len(names)
    plot = go.Figure(go.Scatter(x=[None], y=[None], hoverinfo="skip"))
    plot.add_layout_image(
        source=uri(page), xref="x", yref="y", x=0, y=0, sizex=page.width, sizey=page.height, sizing="stretch"
    )
    plot.update_xaxes(range=(0, page.width), showgrid=False, zeroline=False, showticklabels=False, ticks="")
    plot.update_xaxes(title=across, showline=False, constrain="domain")
    plot.update_yaxes(**places(names), title="class", range=(page.height, 0), scaleanchor="x", ticks="", showline=False)
    plot.update_yaxes(tickvals=[(i + 0.5) * step - GAP / 2 for i in range(len(names))], constrain="domain")
    longest = max(len(text) for text in names)
    return Figure(
        name,
        title,
        caption,
        plot,
        width=max(480, page.width + 110 + 8 * longest),
        height=page.height + 80,
        alternative=f"A grid of {len(names)} classes with up to {A_CLASS} rows of each.",
    )
