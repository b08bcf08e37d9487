"""Searches side by side: the best so far against trials, and against hours of training."""

from __future__ import annotations

import html
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mmsearch.errors import NoCompletedTrial, UsageError
from mmsearch.paths import write_text
from mmsearch.results.compare import Comparison
from mmsearch.results.figures.style import PAGES, PALETTE, Figure, template, themed
from mmsearch.results.figures.trials import METRICS_IN_WORDS, padded, worst_shown
from mmsearch.results.standing import Point, Standing
from mmsearch.search.values import in_words

KINDS = (".html", ".png", ".svg")
DASHES = ("solid", "dash", "dot", "dashdot")
# Of a label at a line's end: its height, how many signs of a name it has, and how wide one of them is at most.
LABEL_PX, LABEL_SIGNS, SIGN_PX = 18, 18, 8
MINUTES_BELOW_H = 2.0  # up to which times are shown in minutes
PADDING_PX = 80  # what the template leaves above and below the panels
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title>
<style>
body {{ margin: 2rem auto; max-width: {width}px; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif;
  background: {light[page]}; color: {light[ink]}; }}
@media (prefers-color-scheme: dark) {{ body {{ background: {dark[page]}; color: {dark[ink]}; }} }}
figure {{ margin: 0; overflow-x: auto; }} figcaption {{ margin-top: 1rem; }}
</style></head>
<body><h1>{title}</h1><figure aria-label="{alternative}">{plot}<figcaption>{caption}</figcaption></figure></body></html>
"""
# The figure follows the page from light to dark, also when that changes.
FOLLOW = """
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => Plotly.relayout("{plot_id}", {template: dark.matches ? DARK : LIGHT});
dark.addEventListener("change", follow);
if (dark.matches) follow();
"""


def compare_figure(comparison: Comparison) -> Figure:
    """Two panels, one step line a study, and a third of the confirmed means with their intervals where there are some.

    Raises `NoCompletedTrial` where no study has anything to draw.
    """
    drawn = [one for one in comparison.standings if one.value is not None]
    if not drawn:
        raise NoCompletedTrial("none of the studies has a complete trial to draw")
    metrics = list(dict.fromkeys(one.metric for one in drawn))
    words = METRICS_IN_WORDS.get(metrics[0], metrics[0]) if len(metrics) == 1 else "leading value"
    share, unit = (1.0, "h") if max(one.hours for one in drawn) >= MINUTES_BELOW_H else (60.0, "min")
    confirmed = any(one.confirmed is not None for one in drawn)
    plot = make_subplots(
        cols=3 if confirmed else 2,
        column_widths=[0.42, 0.42, 0.16] if confirmed else None,
        shared_yaxes=True,
        horizontal_spacing=0.04,
    )
    for position, one in enumerate(drawn):
        _draw(plot, one, position, share, unit)
    axis = padded(*_ends(drawn))
    hidden = [one.name for one in drawn if any(not axis[0] <= best <= axis[1] for _, best in _steps(one))]
    height = max(420, len(drawn) * LABEL_PX + PADDING_PX)
    _label(plot, drawn, axis, height)
    plot.update_yaxes(range=axis)
    plot.update_yaxes(title_text=f"best so far: {words}", col=1)
    plot.update_xaxes(rangemode="tozero")
    plot.update_xaxes(title_text="finished trials", col=1)
    plot.update_xaxes(title_text=f"training, all workers added up ({unit})", col=2)
    if confirmed:
        middle = (len(drawn) - 1) / 2
        tick = {"tickvals": [middle], "ticktext": ["mean, 95 %"], "ticks": "", "showgrid": False, "zeroline": False}
        plot.update_xaxes(title_text="fresh seeds", range=[-1, len(drawn)], **tick, col=3)
    longest = max(min(len(one.name), LABEL_SIGNS) + len(_end(one)) for one in drawn)
    plot.update_layout(margin={"r": 40 + SIGN_PX * longest})
    names = ", ".join(one.name for one in drawn)
    left_out = [one.name for one in comparison.standings if one.value is None]
    return Figure(
        "compare",
        "Best so far",
        "The best complete trial so far of each study, against how many trials had finished (complete and pruned) and "
        "against the time that all trials had taken, failed ones too, added up over all workers."
        + (" To the right, the confirmed configurations on fresh seeds: mean and 95 % interval." if confirmed else "")
        + (f" The first values of {', '.join(hidden)} are beyond the axis." if hidden else "")
        + (f" Without a complete trial: {', '.join(left_out)}." if left_out else "")
        + "".join(f" Careful: {doubt}." for doubt in comparison.doubts if doubt.startswith("values")),
        plot,
        width=1000,
        height=height,
        alternative=f"Step lines of the best so far of {names}; at their ends: "
        + ", ".join(f"{one.name} {_end(one)}" for one in drawn),
    )


def _draw(plot: go.Figure, one: Standing, position: int, share: float, unit: str) -> None:
    """A study's lines, and its confirmed mean; `share` is an hour in `unit`."""
    color, name = _color(position), html.escape(one.name)
    steps = _steps(one)
    panels = (
        ([point.trials for point, _ in steps], "trials"),
        ([point.hours * share for point, _ in steps], unit),
    )
    for column, (ends, what) in enumerate(panels, 1):
        plot.add_scatter(
            x=ends,
            y=[best for _, best in steps],
            mode="lines+markers",
            line={"shape": "hv", "width": 2, "color": color, "dash": DASHES[position // len(PALETTE) % len(DASHES)]},
            marker={
                "color": color,
                "opacity": 1,
                "line_width": 0,
                "size": [0] * (len(steps) - 1) + [8],
            },  # the end alone
            name=one.name,
            showlegend=False,
            hovertemplate=f"%{{y:.4f}} after %{{x:.3~g}} {what}<extra>{name}</extra>",
            col=column,
            row=1,
        )
    chosen = one.chosen
    if chosen is not None:
        low, high = chosen.interval or (chosen.mean, chosen.mean)
        plot.add_scatter(
            x=[position],
            y=[chosen.mean],
            error_y={"array": [high - chosen.mean], "arrayminus": [chosen.mean - low], "color": color, "width": 5},
            mode="markers",
            marker={"color": color, "symbol": "diamond", "size": 9},
            name=one.name,
            showlegend=False,
            hovertemplate=f"trial {chosen.trial} on {len(chosen.values)} fresh seeds: %{{y:.4f}}<extra>{name}</extra>",
            col=3,
            row=1,
        )


def check_file(path: Path) -> None:
    """Raise `UsageError` for a figure's file of a kind that is not made."""
    if path.suffix not in KINDS:
        raise UsageError(f"--figure: {path} must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}")


def write_figure(figure: Figure, path: Path) -> None:
    """A figure as a file of one of `KINDS`; a page of HTML holds all that it needs. Raises `MmsearchError`."""
    check_file(path)
    if path.suffix == ".html":
        write_text(path, page_of(figure))
        return
    from mmsearch.results.figures.images import write_images

    write_images([replace(figure, name=path.stem)], path.parent, ("png" if path.suffix == ".png" else "svg",))


def page_of(figure: Figure) -> str:
    """A page of HTML with one interactive figure, which is light or dark as its reader's screen."""
    script = FOLLOW
    for scheme in PAGES:
        script = script.replace(scheme.upper(), json.dumps(template(scheme).to_plotly_json()))
    light = themed(figure, "light")
    plot = light.to_html(full_html=False, include_plotlyjs=True, div_id="figure", post_script=script)
    texts = {name: html.escape(getattr(figure, name)) for name in ("title", "caption", "alternative")}
    return PAGE.format(plot=plot, width=figure.width, **PAGES, **texts)


def _color(position: int) -> str:
    return PALETTE[position % len(PALETTE)]


def _steps(one: Standing) -> list[tuple[Point, float]]:
    """Where the best so far changed, and the end, each with the best."""
    points = [(point, point.best) for point in one.progress if point.best is not None]
    changed = [points[0], *(after for before, after in itertools.pairwise(points) if after[1] != before[1])]
    return changed if changed[-1] is points[-1] else [*changed, points[-1]]


def _ends(drawn: Sequence[Standing]) -> tuple[float, float]:
    """The lowest and the highest value that the axis shows: all that studies ended with, and what is not far worse.

    Intervals of confirmed means count as ends.
    """
    ends = [one.value for one in drawn if one.value is not None]
    ends += [end for one in drawn if one.chosen is not None for end in one.chosen.interval or (one.chosen.mean,)]
    values = [point.best for one in drawn for point in one.progress if point.best is not None]
    if len({one.sign for one in drawn}) == 1:  # else worse is on both sides
        sign = drawn[0].sign
        edge = sign * min(sign * value for value in (worst_shown(values, sign), *ends))
        values = [value for value in values if sign * value >= sign * edge]
    return min(*values, *ends), max(*values, *ends)


def _label(plot: go.Figure, drawn: Sequence[Standing], axis: tuple[float, float], height: int) -> None:
    """The name and the last value of each study beside the panels, at its line's height, none over another."""
    low, high = axis
    room = height - PADDING_PX
    values = [one.value for one in drawn if one.value is not None]
    heights = [(value - low) / (high - low) * room for value in values]
    for one, value, at, place in zip(drawn, values, heights, spread(heights, LABEL_PX, room), strict=True):
        name = one.name if len(one.name) <= LABEL_SIGNS else f"{one.name[: LABEL_SIGNS - 1]}…"
        color = _color(drawn.index(one))
        plot.add_annotation(
            text=f"{html.escape(name)} {_end(one)}",
            x=1,
            xref="paper",
            y=value,
            yref="y",
            ax=14,
            ay=at - place,
            xanchor="left",
            showarrow=True,
            arrowhead=0,
            arrowwidth=1,
            arrowcolor=color,
            font={"color": color},
        )


def spread(heights: Sequence[float], gap: float, room: float) -> list[float]:
    """Heights from 0 to `room` moved apart until each two are `gap` apart, in their order; all must have room."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    found = list(heights)
    floor, ceiling = -math.inf, room
    for i in order:
        found[i] = max(found[i], floor)
        floor = found[i] + gap
    for i in reversed(order):
        found[i] = min(found[i], ceiling)
        ceiling = found[i] - gap
    return found


def _end(one: Standing) -> str:
    assert one.value is not None
    return in_words(one.metric, one.value)
